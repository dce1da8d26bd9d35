"""Limits that the kernel enforces. They need the controllers in the version 2 tree: on a hybrid host
these tests are skipped and run in the virtual machine (tests/vm/run)."""
import os

from harness import (Krun, cgroup2_mount, check, equal, holds, pb, pid_of, refused, running, skip, test,
                     until)

MIB = 1 << 20


def needs(*controllers):
    top = cgroup2_mount()
    have = []
    if top:
        with open(top + "/cgroup.controllers") as f:
            have = f.read().split()
    missing = [c for c in controllers if c not in have]
    if missing:
        skip(f"no {', '.join(missing)} controller in the version 2 tree")


def limits(**resources):
    return {"linux": {"resources": resources}}


def cgroup(container):
    """The container's cgroup, found by its first process."""
    with open(f"/proc/{pid_of(container)}/cgroup") as f:
        return cgroup2_mount() + next(line[3:].strip() for line in f if line.startswith("0::"))


def value(container, name):
    with open(f"{cgroup(container)}/{name}") as f:
        return f.read().strip()


# One buffer of 200 MB, filled: as fast as the kernel can hand out pages.
EATER = "dd if=/dev/zero of=/dev/null bs=200M count=1"
EAT = EATER.split()


@test
def a_memory_limit_kills_who_exceeds_it_with_the_reason_OOMKilled(k):
    needs("memory")
    container = k.pod().start(*EAT, **limits(memory_limit_in_bytes=32 * MIB,
                                             memory_swap_limit_in_bytes=32 * MIB))
    status = container.exited()
    equal((status.reason, status.exit_code), ("OOMKilled", 137), "the end")
    check("records" not in container.output(), "it did not get that far")


@test
def the_monitor_and_the_neighbour_survive_an_OOM_kill(k):  # CVE-2019-14891
    needs("memory")
    pod = k.pod()
    neighbour = pod.start()
    victim = pod.start(*EAT, **limits(memory_limit_in_bytes=32 * MIB,
                                      memory_swap_limit_in_bytes=32 * MIB))
    victim.exited()
    neighbour.sh("true")
    equal(pod.status().state, pb.SANDBOX_READY, "the pod")


@test
def with_memory_oom_group_all_of_the_container_dies(k):
    needs("memory")
    script = f"sleep 6100001 & {EATER}; sleep 98765"
    container = k.pod().start("sh", "-c", script, **limits(
        memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB,
        unified={"memory.oom.group": "1"}))
    equal(container.exited().reason, "OOMKilled", "reason")


@test
def a_child_that_is_OOM_killed_alone_does_not_make_its_parent_OOMKilled_with_exit_0(k):
    needs("memory")
    container = k.pod().start("sh", "-c", EATER + "; exit 0", **limits(
        memory_limit_in_bytes=32 * MIB, memory_swap_limit_in_bytes=32 * MIB))
    status = container.exited()
    equal(status.exit_code, 0, "exit code")


@test
def memory_and_swap_are_written_as_version_2_has_them(k):
    needs("memory")
    container = k.pod().start("sleep", "6200001", **limits(
        memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=96 * MIB))
    equal(value(container, "memory.max"), str(64 * MIB), "memory.max")
    if os.path.exists(cgroup(container) + "/memory.swap.max"):
        equal(value(container, "memory.swap.max"), str(32 * MIB), "memory.swap.max")
        other = k.pod().start("sleep", "6200002", **limits(memory_limit_in_bytes=64 * MIB))
        equal(value(other, "memory.swap.max"), "0", "memory.swap.max without a swap limit")


@test
def a_process_limit_bites(k):
    needs("pids")
    container = k.pod().start("sh", "-c", "i=0; while [ $i -lt 50 ]; do sleep 6300001 & i=$((i+1)); done; "
                              "echo all; sleep 98765", **limits(unified={"pids.max": "20"}))
    until("a fork fails", lambda: "fork" in container.output("stderr"))
    check(len(running("6300001")) < 21, "processes")


@test
def a_cpu_quota_bites(k):
    """A loop that wants a whole CPU gets a tenth: the cgroup is throttled in nearly every period."""
    needs("cpu")
    container = k.pod().start("sh", "-c", "while :; do :; done # 6400001", **limits(
        cpu_period=100000, cpu_quota=10000))

    def throttled():
        stat = dict(line.split() for line in value(container, "cpu.stat").splitlines())
        return int(stat["nr_throttled"]) >= 10 and stat
    stat = until("it is throttled", throttled)
    used, periods = int(stat["usage_usec"]), int(stat["nr_periods"])
    check(used <= periods * 10000 * 3, f"{used} us in {periods} periods of 10 ms each")


@test
def cpu_shares_become_a_weight_by_the_current_formula(k):
    needs("cpu")
    for shares, weight in ((2, "1"), (1024, "100"), (262144, "10000"), (512, "59")):
        container = k.pod().start("sleep", str(6500000 + shares), **limits(cpu_shares=shares))
        equal(value(container, "cpu.weight"), weight, f"cpu.weight of {shares} shares")


@test
def cpusets_are_kept_and_bad_ones_refused(k):
    needs("cpuset")
    container = k.pod().start("sleep", "6600001", **limits(cpuset_cpus="0", cpuset_mems="0"))
    equal(value(container, "cpuset.cpus"), "0", "cpuset.cpus")
    holds("Cpus_allowed_list:\t0\n", container.sh("cat /proc/self/status"), "status")
    try:
        k.pod().start(**limits(cpuset_cpus="4000-5000"))
    except Exception as error:  # pylint: disable=broad-except
        holds("cpuset", error.details(), "the message")
        return
    check(False, "4000-5000 was accepted")


@test
def unified_keys_are_written_and_paths_in_them_refused(k):
    needs("memory")
    container = k.pod().start("sleep", "6700001", **limits(unified={"memory.high": str(48 * MIB)}))
    equal(value(container, "memory.high"), str(48 * MIB), "memory.high")
    for key in ("../cgroup.procs", "memory/../x", "cgroup.kill", "no.such.key"):
        try:
            k.pod().start(**limits(unified={key: "1"}))
        except Exception as error:  # pylint: disable=broad-except
            check(error.code().name in ("INVALID_ARGUMENT", "INTERNAL", "FAILED_PRECONDITION"),
                  str(error))
            continue
        check(False, f"{key} was accepted")


@test
def execs_count_against_the_containers_limits(k):
    needs("pids")
    container = k.pod().start(**limits(unified={"pids.max": "10"}))
    answer = container.run("sh", "-c",
                           "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait")
    holds(b"fork", answer.stderr, "the exec's complaint")


@test
def limits_are_refused_where_they_cannot_be_kept_unless_told_to_ignore(k):
    """The rule for missing controllers: a hard limit that cannot be kept is an error, a weight is not."""
    top = cgroup2_mount()
    if top:
        with open(top + "/cgroup.controllers") as f:
            if "memory" in f.read().split():
                skip("this machine can keep them")
    directory = k.directory + "/strict"
    os.makedirs(directory)

    class Strict(Krun):
        def command(self):
            return [w for w in super().command() if "missing-controllers" not in w]
    strict = Strict(directory)
    strict.allow_http("127.0.0.1:5000")
    strict.start()
    try:
        strict.pull(strict.image)
        pod = strict.pod()
        pod.start(**limits(cpu_shares=512))
        for resources in ({"memory_limit_in_bytes": 32 * MIB}, {"cpu_quota": 10000, "cpu_period": 100000},
                          {"cpuset_cpus": "0"}, {"unified": {"pids.max": "10"}}):
            try:
                pod.create(**limits(**resources)).start()
            except Exception as error:  # pylint: disable=broad-except
                check("controller" in error.details(), f"it says why: {error.details()}")
                continue
            check(False, f"{resources} was accepted")
        strict.remove_all()
    finally:
        strict.stop()


@test
def a_fork_bomb_is_stopped(k):  # T67
    needs("pids")
    container = k.pod().start("sh", "-c", "b() { b | b & }; b; sleep 98765",
                              **limits(unified={"pids.max": "200"}))
    container.stop(timeout=1)
    equal(container.status().state, pb.CONTAINER_EXITED, "state")


@test
def a_frozen_container_can_be_stopped(k):  # T67
    if not cgroup2_mount():
        skip("no cgroup version 2 tree")
    container = k.pod().start("sleep", "6900001")
    path = cgroup(container) + "/cgroup.freeze"
    if not os.path.exists(path):
        skip("no cgroup.freeze")
    with open(path, "w") as f:
        f.write("1")
    refused("DEADLINE_EXCEEDED", lambda: container.run("true", timeout=1))
    container.stop(timeout=1)
    equal(container.status().exit_code, 137, "exit code")
