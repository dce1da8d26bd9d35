"""ExecSync: exit codes, output and its cap, timeouts, and commands that will not end."""
import grpc

from harness import DEADLINE, check, equal, holds, pb, processes, refused, running, test, until


@test
def the_exit_code_and_both_outputs_come_back(k):
    container = k.pod().start()
    answer = container.run("sh", "-c", "echo out; echo err >&2; exit 42")
    equal((answer.exit_code, answer.stdout, answer.stderr), (42, b"out\n", b"err\n"), "the answer")
    equal(container.run("true").exit_code, 0, "exit code of true")


@test
def death_by_a_signal_is_128_and_its_number(k):
    equal(k.pod().start().run("sh", "-c", "kill -9 $$").exit_code, 137, "exit code")


@test
def a_command_that_is_not_there_is_told(k):
    container = k.pod().start()
    try:
        answer = container.run("/no/such/program")
        check(answer.exit_code in (126, 127), f"exit code {answer.exit_code}")
    except grpc.RpcError as error:
        holds("/no/such/program", error.details(), "the message")


@test
def an_empty_command_is_refused(k):
    container = k.pod().start()
    refused("INVALID_ARGUMENT", lambda: k.cri.ExecSync(container_id=container.id))


@test
def it_runs_as_the_container_does(k):
    context = {"run_as_user": {"value": 1000}, "run_as_group": {"value": 50},
               "supplemental_groups": [777], "no_new_privs": True}
    container = k.pod().start(working_dir="/tmp", envs=[{"key": "WHO", "value": b"me"}],
                              linux={"security_context": context})
    equal(container.sh("pwd; echo $WHO; id -u; id -g").split(), ["/tmp", "me", "1000", "50"],
          "answers")
    same = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
            "Seccomp", "SigBlk", "SigIgn")

    def rights(path):
        text = container.run("cat", path).stdout.decode()
        return [line for line in text.splitlines() if line.split(":")[0] in same]
    equal(rights("/proc/self/status"), rights("/proc/1/status"), "rights")
    for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        equal(container.sh(f"readlink /proc/self/ns/{kind}"),
              container.sh(f"readlink /proc/1/ns/{kind}"), f"the {kind} namespace")


@test
def it_has_three_descriptors_and_nothing_to_read(k):
    container = k.pod().start()
    equal(container.run("cat").stdout, b"", "what cat reads")
    equal(len(container.run("ls", "/proc/self/fd").stdout.split()), 4, "descriptors of ls")


@test
def only_a_running_container_can_be_entered(k):
    container = k.pod().create()
    for state in ("created", "stopped"):
        try:
            container.run("true")
            check(False, f"it ran in a {state} container")
        except grpc.RpcError as error:
            check(error.code().name != "NOT_FOUND", "it is there, only not running")
        if state == "created":
            container.start().stop()


@test
def a_timeout_is_DEADLINE_EXCEEDED_and_kills_all_that_was_started(k):  # T54
    container = k.pod().start()
    script = "setsid sleep 4100001 & trap '' TERM; setsid sh -c 'sleep 4100001' & sleep 4100001"
    refused("DEADLINE_EXCEEDED", lambda: container.run("sh", "-c", script, timeout=1))
    until("all of it is gone", lambda: not running("4100001"))
    equal(container.run("true").exit_code, 0, "the container lives")


@test
def a_background_child_does_not_hang_the_call(k):
    container = k.pod().start()
    answer = container.run("sh", "-c", "sleep 4200001 & echo done")
    equal((answer.exit_code, answer.stdout), (0, b"done\n"), "the answer")


@test
def a_client_that_hangs_up_ends_its_command(k):
    container = k.pod().start()
    call = k.cri.begin("ExecSync", container_id=container.id, cmd=["sleep", "4300001"])
    until("it runs", lambda: running("4300001"))
    call.cancel()
    until("it is gone", lambda: not running("4300001"))


@test
def output_is_cut_so_that_the_whole_answer_fits_16_MiB(k):  # T7, T54, CVE-2022-1708
    container = k.pod().start()
    rows = ("head -c 40000000 /dev/zero", "head -c 40000000 /dev/zero >&2",
            "head -c 40000000 /dev/zero; head -c 40000000 /dev/zero >&2")
    for script in rows:
        answer = container.run("sh", "-c", script + "; exit 9")
        equal(answer.exit_code, 9, "exit code")
        size = answer.ByteSize()
        check(size <= 16 << 20, f"{size} bytes fit 16 MiB")
        check(len(answer.stdout) + len(answer.stderr) > 15 << 20, "and no more is cut than must be")


@test
def output_of_a_few_MiB_is_whole(k):
    answer = k.pod().start().run("sh", "-c",
                                 "head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2")
    equal((len(answer.stdout), len(answer.stderr)), (5000000, 3000000), "bytes")


@test
def two_hundred_hanging_execs_delay_nobody(k):
    container = k.pod().start()
    other = k.pod().start()
    calls = [k.cri.begin("ExecSync", container_id=container.id, cmd=["sleep", "4400001"],
                         _timeout=20 * DEADLINE) for _ in range(200)]
    until("all of them run, or one has ended",
          lambda: len(running("4400001")) == 200 or any(c.done() for c in calls), 4 * DEADLINE)
    equal([c.exception() for c in calls if c.done()], [], "what has ended")
    k.cri.Status()
    equal(other.run("echo", "hi").stdout, b"hi\n", "another exec")
    k.pod().start().stop()
    check(not any(c.done() for c in calls), "they still hang")
    container.stop()
    for call in calls:
        if not call.exception():
            equal(call.result().exit_code, 137, "exit code of a killed exec")
    equal(running("4400001"), [], "processes")


@test
def a_container_that_dies_in_the_middle_ends_the_exec(k):  # T54
    for end in ("StopContainer", "RemoveContainer"):
        container = k.pod().start()
        call = k.cri.begin("ExecSync", container_id=container.id, cmd=["sleep", "4500001"])
        until("it runs", lambda: running("4500001"))
        getattr(k.cri, end)(container_id=container.id)
        call.exception()
        equal(running("4500001"), [], "processes")


@test
def execs_side_by_side_keep_their_outputs_apart(k):
    container = k.pod().start()
    calls = [k.cri.begin("ExecSync", container_id=container.id, cmd=["echo", str(n)])
             for n in range(60)]
    equal([c.result().stdout for c in calls], [b"%d\n" % n for n in range(60)], "outputs")


@test
def execs_leave_no_zombie_and_no_cgroup(k):
    container = k.pod().start()
    for _ in range(20):
        container.run("true")
    equal([line for line in processes().values() if line == "a zombie"], [], "zombies")
    seen = container.sh("ls -d /sys/fs/cgroup/exec* /sys/fs/cgroup/*/exec* 2>/dev/null | wc -l")
    check(int(seen) <= 1, f"{seen} cgroups of execs are there (one is our own)")


@test
def it_ends_with_the_container_when_nobody_waits(k):
    container = k.pod().start()
    container.run("sh", "-c", "setsid sleep 4600001 >/dev/null 2>&1 &")
    container.stop()
    equal(running("4600001"), [], "processes")
    equal(container.status().state, pb.CONTAINER_EXITED, "state")
