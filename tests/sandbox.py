#!/usr/bin/python3
"""sandbox.py COMMAND...: runs a command as root where it can do the machine no harm.

The command gets its own mount, PID, network and cgroup namespaces. Whatever it starts dies with it,
what it mounts or links nobody else sees, 127.0.0.1 is its alone, so that ports need no searching, and
its TMPDIR goes when it ends.
For krun the sandbox is "the host": what a test finds left in it, krun has left.

The exit status is the command's; 97 when it left a cgroup that cannot be removed.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile


def cgroup2_mount():
    """Where the version 2 cgroup tree is mounted: /sys/fs/cgroup, or below it on a hybrid host."""
    with open("/proc/self/mountinfo") as f:
        for line in f:
            fields = line.split()
            if fields[fields.index("-") + 1] == "cgroup2":
                return fields[4]
    return None


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def remove_cgroups(top):
    """Kills what is in a tree of cgroups and removes it. True if nothing of it stays."""
    if not os.path.isdir(top):
        return True
    try:
        write(top + "/cgroup.kill", "1")
    except OSError:
        pass  # kernels before 5.14: the PID namespace's end has killed all that was in it
    for path, _, _ in os.walk(top, topdown=False):
        for _ in range(500):
            try:
                os.rmdir(path)
                break
            except OSError:
                signal.sigtimedwait([], 0.01)  # a killed process leaves its cgroup a moment later
    return not os.path.exists(top)


def wait_for(question):
    while not question():
        signal.sigtimedwait([], 0.005)


def move_out(pid, tree):
    """unshare(1) waits in the cgroup that has become the sandbox's root. Controllers can be handed on
    only by a cgroup that has no process of its own (cgroup-v2.rst, "No Internal Process Constraint")."""
    with open("/proc/self/cgroup") as f:
        home = next(line[3:].strip() for line in f if line.startswith("0::"))
    try:
        write(f"{tree}{home}/cgroup.procs", str(pid))
    except OSError:
        pass  # it has ended, and says why


def environment(temporary):
    """Without what this machine has set for its own programs: proxies, logins, krun's own settings for a
    person; and with a locale in which files are UTF-8 and programs speak English."""
    ours = {name: value for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("LC_", "LANG", "CONTAINERS_"))
            and name not in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "KRUN_SOCKET", "XDG_RUNTIME_DIR")}
    return {"HOME": "/root", **ours, "TMPDIR": temporary, "LC_ALL": "C.UTF-8"}


def outside(command):
    """Makes the namespaces and waits. Our cgroup becomes the root of the sandbox's cgroup tree."""
    tree = cgroup2_mount()
    top = f"{tree}/krun-sandbox-{os.getpid()}" if tree else None
    if top:
        os.mkdir(top)

    def enter():
        if top:
            write(top + "/cgroup.procs", str(os.getpid()))

    arguments = ["unshare", "--mount", "--pid", "--net", "--cgroup", "--fork", "--kill-child",
                 "--mount-proc", "--propagation", "private", sys.executable, __file__, "--inside"]
    temporary = tempfile.mkdtemp(prefix="ks-")
    sandbox = subprocess.Popen(arguments + command, preexec_fn=enter, env=environment(temporary))
    if top:
        wait_for(lambda: os.path.isdir(top + "/tests") or sandbox.poll() is not None)
        move_out(sandbox.pid, tree)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sandbox.kill())
    status = sandbox.wait()
    if not os.environ.get("KRUN_TEST_KEEP"):
        shutil.rmtree(temporary, ignore_errors=True)
    if top and not remove_cgroups(top):
        print(f"sandbox: {top} cannot be removed", file=sys.stderr)
        return 97
    return status if status >= 0 else 128 - status


def furnish():
    """What a host has and these namespaces lack."""
    tree = cgroup2_mount()
    if tree:
        subprocess.check_call(["umount", "-l", tree])
        subprocess.check_call(["mount", "-t", "cgroup2", "cgroup2", tree])
        os.mkdir(tree + "/tests")
        write(tree + "/tests/cgroup.procs", "0")
        wait_for(lambda: not open(tree + "/cgroup.procs").read())  # see move_out
    os.makedirs("/run/netns", exist_ok=True)
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=755", "netns", "/run/netns"])
    # As systemd leaves it: mount propagation into containers has something to propagate from.
    subprocess.check_call(["mount", "--make-rshared", "/"])
    subprocess.check_call(["ip", "link", "set", "lo", "up"])


def inside(command):
    """PID 1 of the sandbox: starts the command and reaps whatever is orphaned meanwhile. Signals that
    our caller ignores, as a shell has it for what it starts with `&`, mean here what they mean elsewhere."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    furnish()
    main = subprocess.Popen(command)
    while True:
        pid, status = os.wait()
        if pid == main.pid:
            main.returncode = 0
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(inside(sys.argv[2:]))
    if len(sys.argv) < 2 or os.geteuid() != 0:
        sys.exit("usage, as root: sandbox.py COMMAND [ARGUMENT...]")
    sys.exit(outside(sys.argv[1:]))
