"""The daemon dies, ends, comes back; monitors die; the machine reboots; records are damaged."""
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import grpc

from harness import (KRUN, Failure, Krun, cgroup2_mount, cgroups, check, equal, holds, pb, processes, refused,
                     restarts, running, skip, test, tree, until)

def hasty(function):
    """For a test that waits until a monitor is given up: with this daemon it takes two seconds, not ten."""
    @functools.wraps(function)
    def run(k):
        k.environment = {"KRUN_HASTE": "5"}
        k.restart()
        try:
            function(k)
            k.remove_all()
        finally:
            k.environment = {}
            k.restart()
    return restarts(run)


COUNT = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done"]


def setup(k):
    k.write_cni()


def numbers(container):
    return [int(r.text) for r in container.log() if r.tag == "F"]


def grows(container):
    """Waits until it has printed some more."""
    n = len(numbers(container))
    until("it goes on counting", lambda: len(numbers(container)) > n + 10)


def reconnect(krun, *things):
    """After a restart: pods and containers speak through the new connection."""
    for thing in things:
        thing.cri = krun.cri


def facts(pod, *containers):
    """What must be the same before and after."""
    return [pod.status().SerializeToString(deterministic=True)] + \
        [c.status().SerializeToString(deterministic=True) for c in containers]


def monitors():
    return {p: line for p, line in processes().items() if line.startswith("krun monitor")}


def monitor_of(pod):
    return next(p for p, line in monitors().items() if pod.id in line)


def restart_keeps_everything(k, number):
    pod = k.own_network_pod(labels={"a": "b"}, annotations={"c": "d" * 1000})
    running = pod.start(*COUNT)
    created = pod.create()
    ended = pod.start("sh", "-c", "exit 9")
    ended.exited()
    before = facts(pod, running, created, ended)
    k.end(number)
    grows(running)
    k.start()
    reconnect(k, pod, running, created, ended)
    equal(facts(pod, running, created, ended), before, "statuses")
    grows(running)
    found = numbers(running)
    equal(found, list(range(1, len(found) + 1)), "the numbers in the log")
    equal(running.run("echo", "hi").stdout, b"hi\n", "exec")
    k.cri.ReopenContainerLog(container_id=running.id)
    created.start()
    equal(created.status().state, pb.CONTAINER_RUNNING, "the created one, started now")
    running.stop()
    pod.start("true").exited()


@restarts
@test
def after_kill_9_everything_is_there_and_running_containers_have_not_noticed(k):
    restart_keeps_everything(k, signal.SIGKILL)


@restarts
@test
def after_SIGTERM_everything_is_there_and_running_containers_have_not_noticed(k):
    restart_keeps_everything(k, signal.SIGTERM)


@restarts
@test
def SIGTERM_ends_the_daemon_with_0_and_its_socket_is_gone_or_dead(k):
    pod = k.pod()
    container = pod.start()
    equal(k.stop(), 0, "exit status")
    equal(len(monitors()), 1, "monitors that live on")
    k.start()
    reconnect(k, container)
    equal(container.status().state, pb.CONTAINER_RUNNING, "state")


@restarts
@test
def who_exits_while_the_daemon_is_down_has_its_true_code_and_time(k):
    pod = k.pod()
    go = k.directory + "/go"
    mounts = [{"host_path": k.directory, "container_path": "/t"}]
    containers = [pod.start("sh", "-c", f"while ! test -e /t/go; do sleep 0.05; done; echo bye; {end}",
                            mounts=mounts) for end in ("exit 0", "exit 23")]
    k.kill()
    before = time.time_ns()
    with open(go, "w"):
        pass
    until("they have ended", lambda: not running("test -e /t/go"))
    until("their ends are written down", lambda: all(os.path.exists(
        f"{k.root}/pods/{pod.id}/containers/{c.id}/exit") for c in containers))
    check(all("bye" in c.output() for c in containers), "what they said last is in the logs")
    after = time.time_ns()
    k.start()
    reconnect(k, *containers)
    for container, end in zip(containers, ((0, "Completed"), (23, "Error"))):
        status = container.status()
        equal((status.state, status.exit_code, status.reason), (pb.CONTAINER_EXITED, *end), "end")
        check(before <= status.finished_at <= after, "it finished while the daemon was down")
    os.unlink(go)


@restarts
@test
def a_stale_socket_is_taken_over(k):
    k.kill()
    check(os.path.exists(k.socket), "the dead daemon's socket is there")
    k.start()
    k.cri.Version()


@restarts
@test
def ten_restarts_leave_nothing_of_themselves(k):
    container = k.pod().start(*COUNT)
    for n in range(10):
        k.restart(signal.SIGKILL if n % 2 else signal.SIGTERM)
    reconnect(k, container)
    grows(container)
    equal(len(monitors()), 1, "monitors")


@restarts
@test
def an_exec_under_way_ends_with_the_daemon(k):
    container = k.pod().start()
    call = k.cri.begin("ExecSync", container_id=container.id, cmd=["sleep", "5100001"])
    until("it runs", lambda: running("5100001"))
    k.kill()
    call.exception()
    until("it is gone: nobody waits for it", lambda: not running("5100001"))
    k.start()
    reconnect(k, container)
    container.sh("true")


@restarts
@test
def a_stop_under_way_is_taken_up_by_the_next_one(k):
    container = k.pod().start("sh", "-c",
                              "trap 'echo TERM' TERM; echo up; while :; do sleep 0.1; done")
    until("it traps", lambda: "up" in container.output())
    call = k.cri.begin("StopContainer", container_id=container.id, timeout=3600)
    until("the signal arrives", lambda: "TERM" in container.output())
    k.kill()
    call.exception()
    k.start()
    reconnect(k, container)
    container.stop(timeout=1)
    equal(container.status().state, pb.CONTAINER_EXITED, "state")


# -- a monitor dies -------------------------------------------------------------------------------

@test
def when_a_monitor_is_killed_its_containers_end_with_255_and_others_live(k):  # T57
    pod, other = k.own_network_pod(), k.pod()
    container, neighbour = pod.start("sleep", "5200001"), other.start()
    os.kill(monitor_of(pod), signal.SIGKILL)
    status = container.exited()
    equal((status.exit_code, status.reason), (255, "Unknown"), "the end")
    check(status.finished_at > 0, "it has a time")
    until("its processes are gone", lambda: not running("5200001"))
    until("the pod is NOTREADY", lambda: pod.status().state == pb.SANDBOX_NOTREADY)
    neighbour.sh("true")
    pod.stop()
    equal(k.reserved_addresses(), [], "addresses after the stop")


@restarts
@test
def a_monitor_that_died_with_the_daemon_is_noticed_at_the_start(k):  # T57
    pod = k.pod()
    container = pod.start("sleep", "5300001")
    pid = monitor_of(pod)
    k.kill()
    os.kill(pid, signal.SIGKILL)
    k.start()
    reconnect(k, pod, container)
    status = container.exited()
    equal((status.exit_code, status.reason), (255, "Unknown"), "the end")
    until("its processes are gone", lambda: not running("5300001"))
    until("the pod is NOTREADY", lambda: pod.status().state == pb.SANDBOX_NOTREADY)


@restarts
@test
def a_start_that_was_cut_off_with_its_monitor_and_the_daemon_is_ended(k):
    """Killed between two steps of a start: there is a cgroup, with a process, and nothing else yet."""
    tree = cgroup2_mount() or skip("no cgroup version 2 tree")
    pod = k.pod()
    container, other = pod.create("sleep", "5300003"), pod.create()
    pid = monitor_of(pod)
    k.kill()
    os.kill(pid, signal.SIGKILL)
    cgroup = f"{tree}/krun/{pod.id}/{container.id}"
    os.makedirs(cgroup)
    with subprocess.Popen(["sleep", "5300003"]) as process:
        with open(cgroup + "/cgroup.procs", "w") as f:
            f.write(str(process.pid))
        try:
            k.start()
            reconnect(k, pod, container, other)
            until("the process has ended", lambda: process.poll() is not None)
        finally:
            process.kill()
    equal((container.exited().exit_code, other.status().state), (255, pb.CONTAINER_CREATED), "states")
    check(not os.path.exists(cgroup), "its cgroup stays")


@restarts
@test
def a_pod_can_be_stopped_when_nothing_can_be_written(k):  # T59: else a full disk stays full
    pod = k.pod()
    container = pod.start("sleep", "5300004")
    subprocess.check_call(["prlimit", "--pid", str(k.process.pid), "--fsize=0:unlimited"])
    pod.stop()
    check(not running("5300004"), "it runs on")
    equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod")
    k.restart()
    reconnect(k, pod, container)
    equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod after a restart")
    equal(container.status().state, pb.CONTAINER_EXITED, "the container after a restart")


@test
@hasty
def a_container_whose_start_stands_still_can_be_stopped(k):
    tree = cgroup2_mount() or skip("no cgroup version 2 tree")
    pod = k.pod()
    container = pod.create()
    cgroup = f"{tree}/krun/{pod.id}/{container.id}"
    os.makedirs(cgroup)
    with open(cgroup + "/cgroup.freeze", "w") as f:
        f.write("1")
    call = k.cri.begin("StartContainer", container_id=container.id)
    with open(cgroup + "/cgroup.procs") as f:
        until("the start has begun", lambda: f.seek(0) or f.read())
    container.stop()
    equal(container.status().state, pb.CONTAINER_EXITED, "its state")
    check(call.exception(), "the start fails")


@restarts
@test
def an_exit_code_outlives_the_daemon_and_the_monitor(k):
    pod = k.pod()
    go = k.directory + "/go"
    container = pod.start("sh", "-c", "while ! test -e /t/go; do sleep 0.02; done; exit 29",
                          mounts=[{"host_path": k.directory, "container_path": "/t"}])
    pid = monitor_of(pod)
    k.kill()
    with open(go, "w"):
        pass
    until("its end is written down", lambda: os.path.exists(
        f"{k.root}/pods/{pod.id}/containers/{container.id}/exit"))
    os.kill(pid, signal.SIGKILL)
    os.unlink(go)
    k.start()
    reconnect(k, pod, container)
    equal(container.exited().exit_code, 29, "exit code")


@restarts
@test
def a_process_that_has_a_dead_monitors_number_is_left_alone(k):  # R17: a pid alone names nobody
    pod = k.pod()
    container = pod.start("sleep", "5300002")
    pid = monitor_of(pod)
    k.kill()
    os.kill(pid, signal.SIGKILL)
    until("its containers are noticed to be alone", lambda: pid not in processes())
    stranger = subprocess.Popen(["sleep", "5300003"])
    try:
        record = f"{k.root}/pods/{pod.id}/pod.json"
        with open(record) as f:
            text = f.read()
        holds(f": {pid},", text, "the pod's record")
        with open(record, "w") as f:
            f.write(without_sum(text).replace(f": {pid},", f": {stranger.pid},"))
        k.start()
        reconnect(k, pod, container)
        equal(container.exited().exit_code, 255, "exit code")
        pod.remove()
        equal(stranger.poll(), None, "how the stranger ended")
    finally:
        stranger.kill()
        stranger.wait()


@test
def a_monitor_that_is_frozen_delays_its_own_pod_only(k):  # T57
    pod, other = k.pod(), k.pod()
    container, neighbour = pod.start(), other.start()
    pid = monitor_of(pod)
    os.kill(pid, signal.SIGSTOP)
    try:
        call = k.cri.begin("ExecSync", container_id=container.id, cmd=["true"])
        k.cri.Status()
        k.cri.ListContainers()
        container.status()
        neighbour.sh("true")
        k.pod().start()
        check(not call.done(), "the frozen one's exec waits")
    finally:
        os.kill(pid, signal.SIGCONT)
    equal(call.result().exit_code, 0, "exit code once it goes on")


@test
@hasty
def a_monitor_that_is_frozen_does_not_keep_its_pod_from_being_stopped(k):
    pod = k.own_network_pod()
    container = pod.start("sleep", "5500022")
    os.kill(monitor_of(pod), signal.SIGSTOP)
    pod.stop()
    equal((container.status().exit_code, container.status().reason), (255, "Unknown"), "the container")
    equal((running("5500022"), monitors(), os.listdir("/run/netns")), ([], {}, []), "what is left")


@test
@hasty
def a_start_that_waits_for_a_frozen_monitor_does_not_keep_its_pod_from_being_stopped(k):
    pod = k.pod()
    container = pod.create("sleep", "5500024")
    os.kill(monitor_of(pod), signal.SIGSTOP)
    n = asked()
    call = k.cri.begin("StartContainer", container_id=container.id)
    until("it has been asked", lambda: asked() > n)
    pod.stop()
    equal(call.exception().code().name, "UNAVAILABLE", "what the start says")
    equal((container.status().exit_code, container.status().reason), (128, "StartError"), "the container")
    equal((running("5500024"), monitors()), ([], {}), "what is left")


@test
@hasty
def a_monitor_that_is_frozen_does_not_keep_a_container_from_being_killed(k):
    pod = k.pod()
    container = pod.start("sleep", "5500023")
    pid = monitor_of(pod)
    os.kill(pid, signal.SIGSTOP)
    try:
        call = k.cri.begin("StopContainer", _timeout=300, container_id=container.id, timeout=0)
        until("it is dead", lambda: not running("5500023"))
    finally:
        os.kill(pid, signal.SIGCONT)
    call.result()
    equal(container.status().exit_code, 137, "exit code")


@test
def a_monitor_is_hard_to_kill_for_want_of_memory(k):  # R19
    pod = k.pod()
    pod.start()
    with open(f"/proc/{monitor_of(pod)}/oom_score_adj") as f:
        got = int(f.read())
    with open("/proc/self/status") as f:
        may = int(next(line for line in f if line.startswith("CapEff")).split()[1], 16) >> 24 & 1
    if not may:
        skip("without CAP_SYS_RESOURCE oom_score_adj cannot be lowered")
    check(got in (-999, -1000), f"oom_score_adj {got}")


@restarts
@test
def what_is_killed_on_its_way_into_a_container_has_failed(k):
    for what in ("start", "exec"):
        k.environment = {"KRUN_FAULT": "init.launcher:1"}
        k.restart()
        k.environment = {}
        pid = pb.POD if what == "start" else pb.CONTAINER
        spaces = {"linux": {"security_context": {"namespace_options": {"network": pb.NODE, "pid": pid}}}}
        pod = k.pod(**spaces)
        container = pod.create("sleep", "5500025", **spaces)
        if what == "start":
            refused("ABORTED", container.start, "was killed")
            equal((container.status().exit_code, container.status().reason), (128, "StartError"), "the end")
            continue
        container.start()
        refused("ABORTED", lambda: container.run("true"), "was killed")
        equal(container.run("true").exit_code, 0, "exit code of the next one")
    k.restart()


@restarts
@test
def a_command_whose_launcher_is_killed_right_after_its_birth_is_not_forgotten(k):
    k.environment = {"KRUN_FAULT": "init.launched:1"}
    k.restart()
    k.environment = {}
    container = k.pod().start(*COUNT)
    equal(container.run("sh", "-c", "exit 7").exit_code, 7, "exit code of the first command")
    equal(container.run("true").exit_code, 0, "exit code of the next one")
    container.stop(0)  # a process that nobody reaps would hold up the end of the PID namespace
    equal(container.exited().exit_code, 137, "exit code")
    k.restart()


@restarts
@test
def a_monitor_that_dies_as_it_starts_fails_the_pod_and_nothing_waits_for_it(k):
    for fault in ("monitor.start:1", "monitor.listens:1"):
        k.environment = {"KRUN_FAULT": fault}
        k.restart()
        k.environment = {}
        config = k.pod_config()
        for _ in range(2):
            refused("UNAVAILABLE", lambda: k.cri.RunPodSandbox(config=config), "monitor")
            equal(len(k.cri.ListPodSandbox().items), 0, "pods")
    k.restart()
    k.cri.RunPodSandbox(config=config)


@test
def whenever_a_monitor_is_killed_its_pod_is_refused_or_becomes_NOTREADY(k):
    for n in range(60):
        call = k.cri.begin("RunPodSandbox", config=k.pod_config())
        pid = until("a monitor", lambda: next(iter(monitors()), None) or (call.done() and -1))
        time.sleep(n % 20 / 2000)
        if pid > 0:
            os.kill(pid, signal.SIGKILL)
        if not call.exception():
            pod = call.result().pod_sandbox_id
            until("it is NOTREADY", lambda: k.cri.PodSandboxStatus(
                pod_sandbox_id=pod).status.state == pb.SANDBOX_NOTREADY)
        k.remove_all()


@restarts
@test
def a_pod_whose_pause_process_dies_is_NOTREADY_and_stays_so(k):
    def spaces(pid):
        return {"linux": {"security_context": {"namespace_options": {"network": pb.NODE, "pid": pid}}}}
    pod = k.pod(**spaces(pb.POD))
    shared = pod.start("sleep", "5500001", **spaces(pb.POD))
    own = pod.start("sleep", "5500002", **spaces(pb.CONTAINER))

    def is_pause(pid):
        try:
            with open(f"/proc/{pid}/comm") as f:
                return f.read() == "krun-pause\n"
        except OSError:
            return False
    os.kill(next(p for p in processes() if is_pause(p)), signal.SIGKILL)
    until("it is NOTREADY", lambda: pod.status().state == pb.SANDBOX_NOTREADY)
    equal(shared.exited().exit_code, 137, "exit code of what was in its PID namespace")
    own.sh("true")
    refused("FAILED_PRECONDITION", pod.create, "not ready")
    k.restart()
    reconnect(k, pod, shared, own)
    equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod after a restart")
    own.sh("true")
    os.kill(monitor_of(pod), signal.SIGKILL)
    equal(own.exited().exit_code, 255, "exit code once the monitor has died too")
    until("its processes are gone", lambda: not running("5500002"))


@restarts
@test
def a_second_start_of_a_container_does_not_touch_what_the_first_has_started(k):
    pod = k.pod()
    container = pod.create("sleep", "5500003")
    pid = monitor_of(pod)
    os.kill(pid, signal.SIGSTOP)
    try:
        n = asked()
        first = k.cri.begin("StartContainer", container_id=container.id)
        until("it has been asked", lambda: asked() > n)
        k.restart()
        first.exception()
        reconnect(k, pod, container)
        n = asked()
        second = k.cri.begin("StartContainer", container_id=container.id)
        until("it has been asked again", lambda: asked() > n)
    finally:
        os.kill(pid, signal.SIGCONT)
    second.exception()
    until("it runs", lambda: running("5500003"))
    until("and is said to", lambda: container.status().state == pb.CONTAINER_RUNNING)
    container.sh("true")
    container.stop()
    equal(container.status().exit_code, 137, "its own exit code")


def asked():
    """How many connections to monitors there are, of one that does not run also those that were given up."""
    with open("/proc/net/unix") as f:
        return sum("monitor.sock" in line for line in f)


@restarts
@test
def stopped_monitors_are_all_asked_before_one_is_waited_for(k):
    pods = [k.pod() for _ in range(8)]
    frozen = [monitor_of(p) for p in pods]
    k.kill()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    before = asked()
    open(k.directory + "/daemon.log", "w").close()
    try:
        k.spawn()
        until("one is given up", lambda: "does not answer" in k.log_end(100) or listening(k))
        holds("does not answer", k.log_end(100), "the log")
        more = asked() - before
        until("the daemon answers", k.greets)
        reconnect(k, *pods)
        equal([p.status().state for p in pods], [pb.SANDBOX_READY] * 8, "pods")
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        until("the daemon answers", k.greets)
    check(more >= 8, f"{more} of 8 had been asked when the first was given up")
    for pod in pods:
        pod.start("true").exited()


# -- another version ------------------------------------------------------------------------------

def change_version(k, binary):
    """Ends the daemon; another build of krun serves."""
    k.kill()
    k.binary = binary
    k.start()


def earlier_builds():
    return list(filter(None, os.environ.get("KRUN_OLD", "").split(":"))) or \
        skip("no binary of an earlier krun: KRUN_OLD names none, and tests/earlier.sh could build none")


def takes_over(k, first, second):
    """Pods that one build has started are served, stopped and removed by another one."""
    try:
        change_version(k, first)
        pod, gone, lost = k.own_network_pod(), k.own_network_pod(), k.own_network_pod()
        counting, created = pod.start(*COUNT), pod.create(*COUNT)
        ended = pod.start("sh", "-c", "exit 9")
        equal(ended.exited().exit_code, 9, "exit code")
        victim = lost.start("sleep", "5500021")
        with_stop = gone.start(*COUNT)
        before = facts(pod, counting, created, ended)
        change_version(k, second)
        reconnect(k, pod, gone, lost, counting, created, ended, victim, with_stop)
        equal(facts(pod, counting, created, ended), before, "statuses")
        grows(counting)
        equal(counting.run("sh", "-c", "echo hi; exit 3").exit_code, 3, "exit code of an exec")
        k.cri.ReopenContainerLog(container_id=counting.id)
        grows(counting)
        created.start()
        grows(created)
        os.kill(monitor_of(lost), signal.SIGKILL)
        equal(victim.exited().exit_code, 255, "exit code of what has lost its monitor")
        counting.stop()
        equal(counting.status().exit_code, 137, "exit code of what was stopped")
        ended.remove()
        with_stop.stop()
        gone.stop()
        pod.start("true").exited()
        k.restart()
        reconnect(k, pod, gone, lost)
        equal([p.status().state for p in (pod, gone, lost)],
              [pb.SANDBOX_READY, pb.SANDBOX_NOTREADY, pb.SANDBOX_NOTREADY], "pods")
        for one in (pod, gone, lost):
            one.stop()
            one.remove()
        equal((os.listdir("/run/netns"), k.reserved_addresses(), monitors()), ([], [], {}), "left")
        if second == KRUN:  # the monitors of another version had a cgroup of another name, perhaps
            homes = [path for path in cgroups() if "/monitors-" in path and "/cni-" not in path]
            equal(len(homes), 1, f"number of cgroups for monitors among {homes}")
    finally:
        k.remove_all()
        change_version(k, first if second == KRUN else second)
        k.stop()  # it removes the cgroup of its monitors, whose name may be another
        change_version(k, KRUN)


@restarts
@test
def pods_of_an_earlier_version_go_on_with_this_one(k):
    for earlier in earlier_builds():
        takes_over(k, earlier, KRUN)


@restarts
@test
def pods_of_this_version_go_on_with_an_earlier_one(k):
    for earlier in earlier_builds():
        takes_over(k, KRUN, earlier)


# -- a reboot -------------------------------------------------------------------------------------

def reboot(k):
    """What a reboot does: processes, namespaces, cgroups and --run are gone, the boot id is another."""
    k.kill()
    keep = {1, os.getpid()}
    for pid, line in processes().items():
        if pid not in keep and ("krun monitor" in line or "98765" in line or "5400001" in line):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    until("they are gone", lambda: not monitors())
    for name in os.listdir("/run/netns"):
        subprocess.call(["ip", "netns", "del", name])
    top = cgroup2_mount()

    def removed():
        for path in sorted(cgroups(), key=len, reverse=True):
            if "tests" not in path and path != ".":
                try:
                    os.rmdir(os.path.join(top, path))
                except OSError:
                    pass
        return [c for c in cgroups() if c not in (".", "tests")] == []
    if top:
        until("the cgroups are gone", removed)
    subprocess.check_call(["find", k.run, "-mindepth", "1", "-delete"])  # the same directory: its
    # number names the cgroup that the world is compared by
    other = k.directory + "/boot_id"
    with open(other, "w") as f:
        f.write("11111111-2222-4333-8444-555555555555\n")
    subprocess.check_call(["mount", "--bind", other, "/proc/sys/kernel/random/boot_id"])


@restarts
@test
def after_a_reboot_pods_are_NOTREADY_containers_exited_and_addresses_come_back(k):  # T63
    pod = k.own_network_pod()
    running, created = pod.start("sleep", "5400001"), pod.create()
    ended = pod.start("sh", "-c", "exit 9")
    ended.exited()
    equal(len(k.reserved_addresses()), 1, "addresses before")
    reboot(k)
    try:
        k.start()
        reconnect(k, pod, running, created, ended)
        equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod")
        status = running.status()
        equal((status.state, status.exit_code, status.reason), (pb.CONTAINER_EXITED, 255, "Unknown"),
              "what was running")
        equal(ended.status().exit_code, 9, "what had ended before")
        check(created.status().state in (pb.CONTAINER_EXITED, pb.CONTAINER_CREATED),
              "what was created")
        equal(len(k.cri.ListPodSandbox().items), 1, "pods")
        pod.stop()
        equal(k.reserved_addresses(), [], "addresses after the stop: DEL was made")
        equal(k.pod().prints("echo", "new"), "new\n", "a new pod")
        k.remove_all()
        k.kill()
    finally:
        subprocess.check_call(["umount", "/proc/sys/kernel/random/boot_id"])
        if k.process.poll() is None:
            k.kill()
    k.start()


# -- damaged state --------------------------------------------------------------------------------

def records(k):
    return [p for p in tree(k.root + "/pods") if os.path.isfile(f"{k.root}/pods/{p}") and
            "/upper/" not in p and "/work/" not in p]


@restarts
@test
def damaged_records_of_one_pod_harm_no_other(k):  # T61
    good = k.pod()
    keeper = good.start(*COUNT)
    victims = [k.pod() for _ in range(6)]
    canary = k.directory + "/canary"
    with open(canary, "w") as f:
        f.write("as it was")
    for pod in victims:
        pod.create()
    k.kill()
    ways = (lambda p: open(p, "w").close(), lambda p: os.truncate(p, os.path.getsize(p) // 2),
            lambda p: zero(p), os.unlink, lambda p: (os.unlink(p), os.mkdir(p)),
            lambda p: (os.unlink(p), os.symlink(canary, p)))
    for pod, way in zip(victims, ways):
        for path in [p for p in records(k) if p.startswith(pod.id) and p.count("/") == 1]:
            way(f"{k.root}/pods/{path}")
    k.start()
    reconnect(k, good, keeper)
    equal(good.status().state, pb.SANDBOX_READY, "the undamaged one")
    grows(keeper)
    k.remove_all()
    numbers_left = lambda: [n for n, pod in enumerate(victims)
                            if any(pod.id in line for line in monitors().values())]
    until(f"all monitors are gone (left: {numbers_left()})", lambda: not numbers_left())
    with open(canary) as f:
        equal(f.read(), "as it was", "what a link named")
    for path in os.listdir(k.root + "/pods"):  # put aside for whoever wants to look at it
        shutil.rmtree(f"{k.root}/pods/{path}", ignore_errors=True)


@restarts
@test
def a_container_whose_record_is_damaged_runs_no_more(k):
    ways = (lambda p: os.truncate(p, os.path.getsize(p) // 2), zero, os.unlink,
            lambda p: (os.unlink(p), os.mkdir(p)))
    pods = [k.pod() for _ in ways]
    containers = [pod.start("sleep", f"55001{n}") for n, pod in enumerate(pods)]
    keepers = [pod.start() for pod in pods]
    k.kill()
    for way, pod, container in zip(ways, pods, containers):
        way(f"{k.root}/pods/{pod.id}/containers/{container.id}/container.json")
    k.start()
    reconnect(k, *pods, *containers, *keepers)
    until("none of them runs", lambda: not running("55001"))
    equal({c.id for c in k.cri.ListContainers().containers}, {c.id for c in keepers}, "containers")
    for pod, keeper in zip(pods, keepers):
        keeper.sh("true")
        equal(pod.status().state, pb.SANDBOX_READY, "the pod")
        pod.start("true").exited()


@restarts
@test
def a_pod_whose_record_is_damaged_runs_no_more_wherever_its_cgroup_is(k):
    if not cgroup2_mount():
        skip("no cgroup version 2 tree")
    top = cgroup2_mount() + "/krt-parent"
    for monitor_lives in (True, False):
        for both in (False, True):
            os.makedirs(top + "/pod")
            pod = k.pod(linux={"cgroup_parent": "/krt-parent/pod"})
            container = pod.start("sleep", "55002")
            pid = monitor_of(pod)
            k.kill()
            zero(f"{k.root}/pods/{pod.id}/pod.json")
            if both:
                zero(f"{k.root}/pods/{pod.id}/containers/{container.id}/container.json")
            os.kill(pid, signal.SIGSTOP if monitor_lives else signal.SIGKILL)
            k.start()
            until("it runs no more", lambda: not running("55002"))
            until("its monitor has ended", lambda: not monitors())
            equal(len(k.cri.ListPodSandbox().items), 0, "pods")
            until("no network is owed", lambda: not os.listdir(k.root + "/networks"))
            equal([d for d in os.listdir(top + "/pod") if os.path.isdir(f"{top}/pod/{d}")], [],
                  "cgroups")
            os.rmdir(top + "/pod")
            os.rmdir(top)
    for path in os.listdir(k.root + "/pods"):
        shutil.rmtree(f"{k.root}/pods/{path}", ignore_errors=True)


def zero(path):
    size = os.path.getsize(path)
    with open(path, "wb") as f:
        f.write(b"\0" * size)


def without_sum(text):
    """A record as a krun that knew no sums has written it."""
    return re.sub(r'"sum": "sha256:[0-9a-f]{64}",\s*', "", text, count=1)


def of_version(text, number):
    changed = re.sub(r'"version": 1\b', f'"version": {number}', without_sum(text), count=1)
    check(changed != text, "the record has no version")
    return changed


def rewrite(path, change):
    with open(path) as f:
        text = f.read()
    with open(path, "w") as f:
        f.write(change(text))
    return text


@restarts
@test
def a_pod_of_a_newer_krun_is_left_alone_and_no_other_is(k):  # R22, T65
    pod, other, keeper = k.own_network_pod(), k.pod(), k.pod()
    box, ended = pod.start("sleep", "55201"), pod.start("sh", "-c", "exit 7")
    inner, sibling, third = other.start("sleep", "55202"), other.start("sleep", "55203"), keeper.start("sleep", "55204")
    ended.exited()
    before = facts(pod, box, ended) + facts(other, inner, sibling)
    k.kill()
    paths = [f"{k.root}/pods/{pod.id}/pod.json",
             f"{k.root}/pods/{other.id}/containers/{inner.id}/container.json"]
    texts = [rewrite(path, lambda text: of_version(text, 1000)) for path in paths]
    texts.append(rewrite(paths[0], lambda text: text.replace('"spec": {', '"spec": [], "was": {')))
    newer = {path: open(path).read() for path in paths}
    things = tree(f"{k.root}/pods/{pod.id}") + tree(f"{k.run}/pods/{pod.id}") + tree(f"{k.run}/pods/{other.id}")
    lines = k.log_end(10**6).count("left alone")
    try:
        for _ in range(2):
            k.start()
            equal(k.log_end(10**6).count("left alone"), lines + 2, "lines that name them")
            lines += 2
            reconnect(k, keeper, third)
            equal([p.id for p in k.cri.ListPodSandbox().items], [keeper.id], "pods")
            equal([c.id for c in k.cri.ListContainers().containers], [third.id], "containers")
            third.sh("true")
            k.cri.RemovePodSandbox(pod_sandbox_id=pod.id)
            k.cri.RemoveContainer(container_id=inner.id)
            k.pod().remove()
            for n in (1, 2, 3, 4):
                check(running(f"5520{n}"), f"sleep 5520{n} has ended")
            equal({path: open(path).read() for path in paths}, newer, "the records")
            check(os.path.exists(f"/run/netns/krun-{pod.id}"), "the network namespace is gone")
            equal(tree(f"{k.root}/pods/{pod.id}") + tree(f"{k.run}/pods/{pod.id}") +
                  tree(f"{k.run}/pods/{other.id}"), things, "what they have on disk")
            k.kill()
    finally:
        for path, text in zip(paths, texts):
            with open(path, "w") as f:
                f.write(text)
    k.start()
    reconnect(k, pod, box, ended, other, inner, sibling, keeper, third)
    equal(facts(pod, box, ended) + facts(other, inner, sibling), before, "state")
    box.sh("true")
    inner.sh("true")


@restarts
@test
def a_flipped_bit_makes_no_pod_one_of_a_newer_krun(k):
    pod, keeper = k.pod(), k.pod()
    pod.start("sleep", "55210")
    box = keeper.start("sleep", "55211")
    k.kill()
    rewrite(f"{k.root}/pods/{pod.id}/pod.json", lambda text: text.replace('"version": 1', '"version": 3'))
    k.start()
    reconnect(k, keeper, box)
    until("it runs no more", lambda: not running("55210"))
    box.sh("true")
    equal([p.id for p in k.cri.ListPodSandbox().items], [keeper.id], "pods")
    for path in os.listdir(k.root + "/pods"):
        if path.startswith("bad-"):
            shutil.rmtree(f"{k.root}/pods/{path}")


def listening(k):
    try:
        return k.answers()
    except Failure:
        return True


@restarts
@test
def two_daemons_with_their_own_directories_do_not_meet(k):
    directory = k.directory + "/second"
    os.makedirs(directory)
    second = Krun(directory)
    second.allow_http("127.0.0.1:5000")
    second.start()
    second.pull(second.image)
    container = second.pod().start(*COUNT)
    k.pod().start()
    equal((len(k.cri.ListContainers().containers), len(second.cri.ListContainers().containers)),
          (1, 1), "lists")
    k.restart()
    grows(container)
    second.remove_all()
    equal(second.stop(), 0, "exit status")


@test
def times_of_a_clock_that_was_set_after_the_pod_was_made_are_right(k):
    """As on a device that begins in 1970: what the records say is taken back by 56 years, which is what they
    would say if the clock had been set only now."""
    pod = k.pod()
    c = pod.start()
    created, started = c.status().created_at, c.status().started_at
    past = 56 * 365 * 86400 * 10**9
    k.stop()

    def change(path, *fields):
        with open(path) as f:
            record = json.load(f)
        record.pop("sum")
        for field in fields:
            record[field] = str(int(record[field]) - past)
        with open(path, "w") as f:
            json.dump(record, f)
    top = f"{k.root}/pods/{pod.id}"
    change(top + "/pod.json", "createdAt")
    change(f"{top}/containers/{c.id}/container.json", "createdAt")
    k.start()
    reconnect(k, pod, c)
    near = 10**9
    now = c.status()
    check(abs(now.created_at - created) < near, f"created at {now.created_at}, not {created}")
    check(abs(now.started_at - started) < near, f"started at {now.started_at}, not {started}")
    check(abs(k.cri.ListPodSandbox().items[0].created_at - created) < 60 * near, "the pod's time")
    check(abs(k.cri.ListContainers().containers[0].created_at - created) < near, "the time in the list")
    check("years" not in k.cli("ps").stdout.decode() + k.cli("pods").stdout.decode(), "ages")
    check(k.pod().status().created_at > now.created_at, "a new pod is newer")
    c.stop()
    k.stop()
    change(f"{top}/containers/{c.id}/exit", "startedAt", "finishedAt")
    k.start()
    reconnect(k, pod, c)
    check(abs(c.status().started_at - started) < near, "started, of what has exited")
    check(c.status().finished_at >= started, "finished")
    environment = k.environment
    k.stop()
    k.environment = {**environment, "KRUN_BOOT_ID": "another"}  # what time it was then nobody can tell
    k.start()
    holds("unknown", k.cli("pods").stdout.decode(), "krun pods")
    k.environment = environment
    k.remove_all()
