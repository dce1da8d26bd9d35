"""The images that critest v1.36.0 pulls, with the same names, users and commands, made from Debian's
packages. What each must hold is what the specs ask of it (cri-tools: images/, pkg/validate).
"""
import os
import re
import subprocess

import images
from images import Image, Tree

HERE = os.path.dirname(os.path.abspath(__file__))
STAGING = "k8s-staging-cri-tools/"
E2E = "e2e-test-images/"
SHELL = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}


def libraries(program):
    """The shared libraries of a program, its loader included, at the paths where it looks for them."""
    text = subprocess.check_output(["ldd", program]).decode()
    return sorted(set(re.findall(r"(/\S+) \(0x", text)))


def install(tree, path, program):
    """Lays a program of this machine into the image, with all that it needs to run."""
    tree.copy(path, program)
    for library in libraries(program):
        tree.copy(library.lstrip("/"), os.path.realpath(library))


def base():
    """The tests' busybox system, but of Debian's package busybox: in busybox-static `ls` of the shell is
    the shell itself, whatever becomes of /bin/ls, which a spec masks."""
    images.BUSYBOX = os.environ["KRUN_BUSYBOX"]
    tree = images.busybox_tree()
    for library in libraries(images.BUSYBOX):
        tree.copy(library.lstrip("/"), os.path.realpath(library))
    return tree


def busybox():
    """Docker Hub's busybox has two programs more than Debian's."""
    tools = Tree()
    install(tools, "bin/ipcs", "/usr/bin/ipcs")
    tools.file("bin/pgrep", '#!/bin/sh\nexec pidof "$1"\n', mode=0o755)
    return Image([base(), tools], SHELL)


def named(mark):
    """An image that differs from its brothers in one file."""
    return Image([base(), Tree().file(mark)], SHELL)


def with_user(user):
    return Image([base()], dict(SHELL, User=user))


def predefined_group():
    users = Tree()
    users.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"
               "default-user:x:1000:1000::/home/default-user:/bin/sh\n")
    users.file("etc/group", "root:x:0:\ndefault-user:x:1000:\n"
               "group-defined-in-image:x:50000:default-user\n")
    return Image([base(), users], dict(SHELL, User="1000"))


NGINX_CONF = """user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log /dev/stdout;
    server {{ listen {port}; location / {{ root /srv; index index.html; }} }}
}}
"""


def nginx(program, port):
    """The real one: specs look for its pid file, its process name and its master's title."""
    server = Tree()
    install(server, "bin/nginx", program)
    for path in ("etc/nginx", "srv", "var/lib", "var/lib/nginx", "var/log", "var/log/nginx"):
        server.directory(path)
    server.file("etc/nginx/nginx.conf", NGINX_CONF.format(port=port))
    server.file("srv/index.html", "it works\n")
    return Image([base(), server], {
        "Entrypoint": ["nginx"], "Env": ["PATH=/bin"], "StopSignal": "SIGQUIT",
        "Cmd": ["-c", "/etc/nginx/nginx.conf", "-e", "/dev/stderr", "-g", "daemon off;"]})


def httpd():
    """A web server on port 80 that names itself in its log."""
    pages = Tree().directory("srv").file("srv/index.html", "it works\n")
    command = "echo 'httpd: serving /srv'; exec httpd -f -p 80 -h /srv"
    return Image([base(), pages], dict(SHELL, Cmd=["sh", "-c", command]))


def no_new_privileges(directory):
    program, source = directory + "/nnp", os.path.join(HERE, "..", "images", "nnp.c")
    subprocess.check_call([os.environ.get("CC", "cc"), "-static", "-O1", "-o", program, source])
    with open(program, "rb") as f:
        tree = Tree().file("nnp", f.read(), mode=0o4755)
    return Image([base(), tree], dict(SHELL, Entrypoint=["/nnp"], Cmd=[]))


def pause():
    return Image([base()], dict(SHELL, Cmd=["sleep", "2147483647"]))


def all_images(nginx_program, directory):
    """(repository, tag) to image; the registry's own name is not part of it."""
    tagged, tags = named("test-image-tag"), named("test-image-tags")
    made = {
        (E2E + "busybox", "1.29-2"): busybox(),
        (E2E + "nginx", "1.14-2"): nginx(nginx_program, 80),
        (E2E + "httpd", "2.4.39-4"): httpd(),
        (E2E + "nonewprivs", "1.3"): no_new_privileges(directory),
        (STAGING + "hostnet-nginx-" + images.architecture(), "latest"): nginx(nginx_program, 12003),
        (STAGING + "test-image-predefined-group", "latest"): predefined_group(),
        (STAGING + "test-image-tag", "test"): tagged,
        (STAGING + "test-image-tag", "all"): tagged,
        ("pause", "3.9"): pause(),
    }
    for name in ("latest", "1", "2", "3"):
        made[STAGING + "test-image-" + name, "latest"] = named("test-image-" + name)
    for tag in ("1", "2", "3"):
        made[STAGING + "test-image-tags", tag] = tags
    users = {"uid": "1002", "username": "www-data", "uid-group": "1003:1004",
             "username-group": "www-data:1004"}
    for name, user in users.items():
        made[STAGING + "test-image-user-" + name, "latest"] = with_user(user)
    return made
