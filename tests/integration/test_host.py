"""What a container must not do to the host, where that can be seen: in the host's own namespaces. They
run in the virtual machine, outside of the sandbox (tests/vm/run), and are skipped elsewhere."""
import os
import subprocess
import time

from harness import Krun, cgroup2_mount, check, equal, holds, pb, skip, test, until

INITIAL = "cgroup:[4026531835]"  # PROC_CGROUP_INIT_INO, linux/proc_ns.h


def before_each(_):
    if os.readlink("/proc/self/ns/cgroup") != INITIAL:
        skip("not in the host's cgroup namespace")
    subprocess.check_call(["mount", "-o", "remount,nsdelegate,memory_recursiveprot",
                           cgroup2_mount()])


def security(**context):
    return {"linux": {"security_context": context}}


def host_mounts():
    """Every mount of the host: where it is, its options, its type, and the options of its file system,
    which all mounts of that file system share."""
    with open("/proc/self/mountinfo") as f:
        lines = [line.split() for line in f]
    return [(x[4], x[5], *x[x.index("-") + 1:]) for x in lines]


def cgroup_options():
    return next(m[-1] for m in host_mounts() if m[2] == "cgroup2")


HOSTS = {"network": pb.NODE, "pid": pb.NODE, "ipc": pb.NODE}


@test
def no_kind_of_container_changes_an_option_of_a_mount_of_the_host(k):
    subprocess.check_call(["mount", "-o", "remount,hidepid=1", "/proc"])
    os.makedirs("/dev/mqueue", exist_ok=True)
    own = [("/dev/mqueue", "mqueue"), ("/sys/kernel/debug", "debugfs"),
           ("/proc/sys/fs/binfmt_misc", "binfmt_misc")]
    mounted = [path for path, kind in own
               if os.path.isdir(path) and not os.path.ismount(path) and not subprocess.call(
                   ["mount", "-t", kind, "none", path], stderr=subprocess.DEVNULL)]
    try:
        holds("nsdelegate", cgroup_options(), "the options of the host's cgroup2")
        before = host_mounts()
        for privileged in (True, False):
            for spaces in ({"network": pb.NODE, "pid": pb.CONTAINER}, HOSTS):
                context = security(privileged=privileged, namespace_options=spaces)
                pod = k.pod(**context)
                container = pod.start(**context)
                container.sh("mount; cat /proc/mounts; ls /sys/fs/cgroup /dev/mqueue /dev/shm")
                equal(host_mounts(), before, f"the host's mounts beside {context}")
        k.remove_all()
        equal(host_mounts(), before, "the host's mounts after all")
    finally:
        for path in mounted:
            subprocess.check_call(["umount", path])
        subprocess.check_call(["mount", "-o", "remount,hidepid=0", "/proc"])


@test
def a_privileged_container_sees_and_makes_the_hosts_cgroups(k):
    os.mkdir(cgroup2_mount() + "/of-the-host")
    try:
        context = security(privileged=True)
        container = k.pod(**context).start(**context)
        container.sh("mkdir /sys/fs/cgroup/of-the-host/made && test -e /sys/fs/cgroup/cgroup.procs")
        os.rmdir(cgroup2_mount() + "/of-the-host/made")
        for word in ("nosuid", "nodev", "noexec"):
            holds(word, container.sh("grep ' /sys/fs/cgroup ' /proc/mounts"), "its cgroup mount")
    finally:
        os.rmdir(cgroup2_mount() + "/of-the-host")


@test
def a_daemon_that_sees_no_cgroup_mount_leaves_the_options_as_they_are(k):
    before = cgroup_options()
    other = Krun(k.directory + "/other")
    usual = other.command()
    other.command = lambda: ["unshare", "--mount", "sh", "-c", 'umount "$0" && exec "$@"',
                             cgroup2_mount(), *usual]
    try:
        other.start()
        context = security(privileged=True)
        other.cri.ListPodSandbox()
        equal(cgroup_options(), before, "the options of the host's cgroup2")
    finally:
        other.stop()


@test
def ages_are_right_when_the_clock_is_set_after_pods_were_made(k):
    """As on a device without a battery, which begins in 1970."""
    def clock_to(seconds):
        time.clock_settime(time.CLOCK_REALTIME, seconds)
    began, mono = time.time(), time.monotonic()
    try:
        clock_to(86400)
        early = k.pod(**security(namespace_options={"network": pb.NODE}))
        box = early.start()
        clock_to(began + time.monotonic() - mono)
        late = k.pod(**security(namespace_options={"network": pb.NODE}))
        for made in (early.status(), box.status(), late.status(), *k.cri.ListPodSandbox().items,
                     *k.cri.ListContainers().containers):
            check(began - 5 < made.created_at / 1e9 < time.time() + 5, f"created at {made.created_at / 1e9}, not {began}")
        check(early.status().created_at < late.status().created_at, "the order of the pods")
        check(box.status().started_at >= box.status().created_at, "the container's start")
        check("years" not in k.cli("ps").stdout.decode() + k.cli("pods").stdout.decode(), "ages")
    finally:
        clock_to(began + time.monotonic() - mono)
    k.remove_all()


class Inside(Krun):
    """A daemon in a cgroup namespace of its own, whose root holds another process beside it. One with
    `stuck` cannot move that process: it belongs to another PID namespace."""
    stuck = False

    def command(self):
        top = cgroup2_mount()
        spaces = "--cgroup --mount" + (" --pid --fork --kill-child --mount-proc" if self.stuck else "")
        script = (f"mkdir -p {top}/inner && echo $$ >{top}/inner/cgroup.procs && "
                  f"{{ sleep 5500001 & }} && exec unshare {spaces} sh -c "
                  f"'umount {top}; mount -t cgroup2 none {top}; exec \"$@\"' - \"$@\"")
        return ["sh", "-c", script, "-", *super().command()]


def run_inside(k, stuck):
    daemon = Inside(f"{k.directory}/inside-{stuck}")
    daemon.image, daemon.stuck = "localhost/krun:self", stuck
    try:
        daemon.start()
        pod = daemon.pod()
        container = pod.start("/krun", "self", "sleep", "5500002", **{"linux": {"resources": {
            "memory_limit_in_bytes": 64 << 20}}})
        equal(container.status().state, pb.CONTAINER_RUNNING, "the container")
        daemon.remove_all()
        return daemon.log_end(50)
    finally:
        daemon.kill()
        subprocess.call(["sh", "-c", f"echo 1 >{cgroup2_mount()}/inner/cgroup.kill"])
        for path, _, _ in os.walk(cgroup2_mount() + "/inner", topdown=False):
            until("the cgroup is empty", lambda path=path: remove(path))


def remove(path):
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


@test
def processes_at_the_root_of_a_cgroup_namespace_make_room(k):
    holds("are in the cgroup /init now", run_inside(k, False), "the log")


@test
def without_room_pods_run_without_limits_if_that_may_be(k):
    holds("cannot be moved", run_inside(k, True), "the log")
