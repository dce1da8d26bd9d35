"""The images that Kubernetes' node suite (v1.36.3) pulls, with the same names, users and commands, made
from Debian's packages and the suite's own agnhost (kubernetes: test/utils/image, test/images).
"""
import os
import subprocess

import images
from critest_images import install
from images import Image, Tree

HERE = os.path.dirname(os.path.abspath(__file__))
E2E = "e2e-test-images/"
ENVIRONMENT = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
PASSWD = """root:x:0:0:root:/root:/bin/sh
user-defined-in-image:x:1000:1000::/home:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = """root:x:0:
user-defined-in-image:x:1000:
group-defined-in-image:x:50000:user-defined-in-image
nogroup:x:65534:
"""
# PID 1 gets only the signals that it has asked for (pid_namespaces(7)): a mere sleep would ignore SIGTERM.
PAUSE = """#!/bin/sh
trap 'exit 0' TERM INT
sleep 2147483647 &
wait
"""


def compile_static(source, directory):
    """A small C program for the images; its path."""
    program = f"{directory}/{os.path.basename(source)[:-2]}"
    subprocess.check_call([os.environ.get("CC", "cc"), "-static", "-O1", "-o", program, source])
    return program


def certificate(directory):
    """What agnhost serves https with; nobody checks it."""
    names = ("localhost.crt", "localhost.key")
    certificate_file, key_file = (f"{directory}/{name}" for name in names)
    subprocess.check_call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                           "-subj", "/CN=localhost", "-out", certificate_file, "-keyout", key_file],
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = {}
    for name in names:
        with open(f"{directory}/{name}", "rb") as f:
            found[name] = f.read()
    return found


def base(nmeter):
    """busybox under all its names but sh: that is bash, for specs look for variables with names such as
    data-1, which ash takes out of the environment."""
    tree = images.busybox_tree()
    tree.entries = [(e, data) for e, data in tree.entries if e.name not in ("bin/sh", "etc/passwd", "etc/group")]
    tree.copy("bin/sh", "/bin/bash-static").hard_link("bin/bash", "bin/sh")
    tree.file("etc/passwd", PASSWD).file("etc/group", GROUP).file("etc/os-release", "ID=alpine\n")
    tree.directory("usr/local").directory("usr/local/bin").directory("mnt").directory("data").directory("uploads")
    return tree.copy("bin/nmeter", nmeter)


def all_images(agnhost, directory):
    """(repository, tag) to image; the registry's own name is not part of it. agnhost: the program."""
    nmeter = compile_static(HERE + "/nmeter.c", directory)
    shell = Image([base(nmeter)], dict(ENVIRONMENT, Cmd=["sh"]))
    server = Image([base(nmeter)], dict(ENVIRONMENT, Cmd=["httpd", "-f", "-p", "80", "-h", "/mnt"]))
    tools = Tree().copy("agnhost", agnhost).link("agnhost-2", "agnhost")
    install(tools, "bin/curl", "/usr/bin/curl")
    install(tools, "bin/nc", "/usr/bin/nc.openbsd")  # busybox's has no UDP
    for name, data in certificate(directory).items():
        tools.file(name, data)
    host = Image([base(nmeter), tools], dict(ENVIRONMENT, Entrypoint=["/agnhost"], Cmd=["pause"]))
    names = Tree()  # a shell with Debian's hostname, which asks the C library
    install(names, "bin/hostname", "/usr/bin/hostname")
    with open(compile_static(HERE + "/../images/nnp.c", directory), "rb") as f:
        nnp = base(nmeter).file("usr/local/bin/nnp", f.read(), mode=0o6755)
    return {
        (E2E + "busybox", "1.37.0-1"): shell,
        (E2E + "ipc-utils", "1.4"): shell,
        (E2E + "perl", "5.26"): shell,
        (E2E + "nonroot", "1.5"): Image([base(nmeter)], dict(ENVIRONMENT, Cmd=["sh"], User="1234")),
        (E2E + "glibc-dns-testing", "2.0.0"): Image([base(nmeter), names], dict(ENVIRONMENT, Cmd=["sh"])),
        (E2E + "nginx", "1.15-4"): server,
        (E2E + "nginx", "1.27-0"): server,
        (E2E + "agnhost", "2.63.0"): host,
        (E2E + "agnhost", "2.55"): host,
        ("pause", "3.10.2"): Image([base(nmeter).file("pause", PAUSE, mode=0o755)], dict(ENVIRONMENT, Entrypoint=["/pause"])),
        (E2E + "nonewprivs", "1.4"): Image([nnp], dict(ENVIRONMENT, Cmd=["nnp"])),
    }
