"""Containers: life cycle, what runs and as whom, mounts, and what is taken away from them."""
import json
import os
import re
import stat
import subprocess
import tarfile

import images
from harness import (CANARY, SLEEP, Container, Failure, cgroup2_mount, check, equal, holds, merge, pb, pid_of,
                     refused, running, skip, test, until)

REGISTRY = "127.0.0.1:5000/"
DEFAULT_CAPABILITIES = 0xa80425fb  # chown dac_override fowner fsetid kill setgid setuid setpcap
#                                    net_bind_service net_raw sys_chroot mknod audit_write setfcap


def security(**context):
    return {"linux": {"security_context": context}}


def image(name):
    return {"image": {"image": REGISTRY + name + ":1"}}


def pull(k, name):
    k.pull(REGISTRY + name + ":1")
    return image(name)


def id_of(number):
    return {"value": number}


def fails(call, *words):
    """The call must fail, with a message that has these words."""
    try:
        call()
    except Failure:
        raise
    except Exception as error:  # pylint: disable=broad-except
        for word in words:
            holds(word, error.details(), "the message")
        return error
    raise Failure("it succeeded")


def proc_status(text):
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


# -- life cycle -----------------------------------------------------------------------------------

@test
def a_container_goes_from_CREATED_to_RUNNING_to_EXITED_and_tells_when(k):
    container = k.pod().create("sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 1; done")
    check(re.fullmatch("[0-9a-f]{64}", container.id), f"the id: {container.id}")
    status = container.status()
    equal((status.state, status.started_at, status.finished_at), (pb.CONTAINER_CREATED, 0, 0),
          "created")
    check(status.created_at > 10**18, "created_at is in nanoseconds")
    container.start()
    status = container.status()
    equal((status.state, status.finished_at), (pb.CONTAINER_RUNNING, 0), "running")
    check(status.started_at >= status.created_at, "it started after it was created")
    until("it traps", lambda: "up" in container.output())
    container.stop(timeout=600)
    status = container.status()
    equal((status.state, status.exit_code), (pb.CONTAINER_EXITED, 3), "exited")
    check(status.finished_at > status.started_at, "it finished after it started")


@test
def exit_codes_and_reasons_are_the_kubelets(k):
    pod = k.pod()
    rows = (("exit 0", 0, "Completed"), ("exit 7", 7, "Error"), ("exit 255", 255, "Error"))
    for script, code, reason in rows:
        status = pod.start("sh", "-c", script).exited()
        equal((status.exit_code, status.reason), (code, reason), script)


@test
def death_by_a_signal_is_128_and_its_number(k):
    pod = k.pod(linux={"security_context": {"namespace_options": {"pid": pb.NODE}}})
    for number in (9, 15, 6):
        container = pod.start("sleep", str(2000000 + number),
                              **security(namespace_options={"pid": pb.NODE}))
        os.kill(pid_of(container), number)
        status = container.exited()
        equal((status.exit_code, status.reason), (128 + number, "Error"), f"signal {number}")


@test
def its_status_gives_back_what_the_request_said(k):
    labels = {"io.kubernetes.container.name": "x", "ü": "\n"}
    notes = {"io.kubernetes.container.hash": "abc", "big": "z" * 100000}
    pod = k.pod()
    resources = {"cpu_shares": 204, "cpu_period": 100000, "oom_score_adj": 500}
    container = pod.create(labels=labels, annotations=notes, metadata={"attempt": 2},
                           linux={"resources": resources})
    container.start()
    listed = k.cri.ListContainers(filter={"id": container.id}).containers[0]
    for got in (container.status(), listed):
        equal((dict(got.labels), dict(got.annotations)), (labels, notes), "labels and annotations")
        equal((got.metadata.name, got.metadata.attempt), (container.config["metadata"]["name"], 2),
              "name")
        equal(got.image.image, k.image, "image")
        check(got.image_ref, "image_ref is not empty")
        equal(got.image_id, k.cri.ImageStatus(image={"image": k.image}).image.id, "image_id")
    status = container.status()
    equal(status.log_path, container.log_path, "log_path")
    for name, value in resources.items():
        equal(getattr(status.resources.linux, name), value, name)
    equal(listed.pod_sandbox_id, pod.id, "pod_sandbox_id")


@test
def image_ref_stays_when_the_image_is_removed(k):
    name = "test/plain-layer"
    container = k.pod().start(**pull(k, name))
    before = container.status()
    k.cri.RemoveImage(image=image(name)["image"])
    after = container.status()
    equal((after.image_ref, after.image_id), (before.image_ref, before.image_id), "image")
    container.sh("true")


@test
def the_same_request_again_answers_the_same_container(k):
    pod = k.pod()
    config = {"metadata": {"name": "same"}, "image": {"image": k.image}, "command": SLEEP}
    ask = {"pod_sandbox_id": pod.id, "config": config, "sandbox_config": pod.config}
    calls = [k.cri.begin("CreateContainer", **ask) for _ in range(10)]
    ids = {c.result().container_id for c in calls} | {k.cri.CreateContainer(**ask).container_id}
    equal(len(ids), 1, "different answers")
    equal(len(k.cri.ListContainers().containers), 1, "containers")


@test
def a_started_or_ended_container_cannot_be_started(k):
    pod = k.pod()
    container = pod.start()
    fails(container.start)
    equal(container.status().state, pb.CONTAINER_RUNNING, "state")
    container.stop()
    fails(container.start)
    equal(container.status().state, pb.CONTAINER_EXITED, "state")


@test
def stop_and_remove_of_what_is_not_there_succeed(k):
    for unknown in ("0" * 64, "no-such-container"):
        k.cri.StopContainer(container_id=unknown, timeout=1)
        k.cri.RemoveContainer(container_id=unknown)
    container = k.pod().create()
    container.stop()
    for _ in range(3):
        container.remove()


@test
def calls_about_an_unknown_container_say_NOT_FOUND(k):
    unknown = "e" * 64
    rows = {"ContainerStatus": {}, "StartContainer": {}, "ExecSync": {"cmd": ["true"]},
            "ReopenContainerLog": {}}
    for name, more in rows.items():
        refused("NOT_FOUND", lambda name=name, more=more: getattr(k.cri, name)(
            container_id=unknown, **more))


@test
def a_stopped_created_container_is_EXITED_or_CREATED_but_never_lost(k):
    container = k.pod().create()
    container.stop()
    check(container.status().state in (pb.CONTAINER_EXITED, pb.CONTAINER_CREATED), "state")
    container.remove()
    refused("NOT_FOUND", container.status)


@test
def RemoveContainer_ends_what_runs(k):
    container = k.pod().start("sleep", "3000001")
    container.remove()
    refused("NOT_FOUND", container.status)
    equal(running("3000001"), [], "processes")


@test
def list_filters_and_together(k):
    one, two = k.pod(), k.pod()
    a, b, c = one.start(labels={"l": "1"}), one.create(labels={"l": "2"}), two.start(labels={"l": "1"})
    running, created = {"state": pb.CONTAINER_RUNNING}, {"state": pb.CONTAINER_CREATED}
    rows = (
        ({}, {a.id, b.id, c.id}), ({"id": a.id}, {a.id}), ({"id": "0" * 64}, set()),
        ({"state": running}, {a.id, c.id}), ({"state": created}, {b.id}),
        ({"pod_sandbox_id": one.id}, {a.id, b.id}), ({"label_selector": {"l": "1"}}, {a.id, c.id}),
        ({"pod_sandbox_id": one.id, "label_selector": {"l": "1"}}, {a.id}),
        ({"id": c.id, "pod_sandbox_id": one.id}, set()),
        ({"state": running, "pod_sandbox_id": two.id, "id": c.id, "label_selector": {"l": "1"}}, {c.id}))
    for question, wanted in rows:
        got = {x.id for x in k.cri.ListContainers(filter=question).containers}
        equal(got, wanted, f"containers with {question}")
    equal({x.id for x in k.cri.ListContainers().containers}, {a.id, b.id, c.id}, "without a filter")


@test
def verbose_status_has_JSON(k):
    container = k.pod().start()
    equal(dict(k.cri.ContainerStatus(container_id=container.id).info), {}, "info without verbose")
    info = k.cri.ContainerStatus(container_id=container.id, verbose=True).info
    check(info, "there is verbose information")
    for value in info.values():
        json.loads(value)


@test
def verbose_status_has_the_specification_as_the_OCI_has_it(k):
    """Scripts that know other runtimes read .info.runtimeSpec, .info.pid and .info.config of crictl."""
    source = volume(k)
    pod = k.pod(linux={"cgroup_parent": "/of-a-script"})
    container = pod.create(
        "sleep", "4400001", tty=True, working_dir="/tmp", annotations={"a\"b": "c\n"},
        envs=[{"key": "PLAIN", "value": b"x=y"}, {"key": "ODD", "value": b"\xff\"q"}],
        mounts=[mount(source, "/mnt/v", readonly=True), mount(source, "/dev/shm")],
        devices=[{"host_path": "/dev/zero", "container_path": "/dev/nought", "permissions": "r"}],
        **{"linux": {"resources": {"cpu_shares": 512, "memory_limit_in_bytes": 64 << 20,
                                   "unified": {"memory.low": "0"}, "oom_score_adj": 7},
                     "security_context": {"run_as_user": id_of(1000), "no_new_privs": True,
                                          "supplemental_groups": [777], "readonly_rootfs": True,
                                          "capabilities": {"add_capabilities": ["NET_ADMIN"]},
                                          "masked_paths": ["/proc/tty"]}}})

    def info():
        return json.loads(k.cri.ContainerStatus(container_id=container.id, verbose=True).info["info"])
    equal((info()["pid"], info()["privileged"]), (0, False), "the pid of what does not run")
    container.start()
    seen = info()
    equal((seen["pid"], seen["sandboxID"]), (pid_of(container), pod.id), "pid and sandboxID")
    spec, process = seen["runtimeSpec"], seen["runtimeSpec"]["process"]
    equal(process["args"], ["sleep", "4400001"], "args")
    for line in ("PLAIN=x=y", 'ODD=\ufffd"q', "TERM=xterm"):
        check(line in process["env"], f"{line} is in {process['env']}")
    equal((process["cwd"], process["terminal"], process["noNewPrivileges"], process["oomScoreAdj"]),
          ("/tmp", True, True, 7), "cwd, terminal, noNewPrivileges, oomScoreAdj")
    equal((process["user"]["uid"], process["user"]["gid"]), (1000, 1000), "user")
    check(777 in process["user"]["additionalGids"], f"groups {process['user']}")
    check("CAP_NET_ADMIN" in process["capabilities"]["bounding"], "a capability")
    equal(process["capabilities"]["effective"], [], "effective capabilities of uid 1000")
    equal(spec["root"]["readonly"], True, "root.readonly")
    equal(spec["annotations"], {"a\"b": "c\n"}, "annotations")
    places = {m["destination"]: m for m in spec["mounts"]}
    equal((places["/mnt/v"]["source"], places["/proc"]["type"]), (source, "proc"), "mounts")
    check("ro" in places["/mnt/v"]["options"], "the volume is read-only")
    equal([m["type"] for m in spec["mounts"] if m["destination"] == "/dev/shm"], ["bind"], "/dev/shm")
    linux = spec["linux"]
    equal((linux["resources"]["cpu"]["shares"], linux["resources"]["memory"]["limit"],
           linux["resources"]["unified"]), (512, 64 << 20, {"memory.low": "0"}), "resources")
    equal({n["type"] for n in linux["namespaces"]}, {"mount", "pid", "cgroup", "ipc"}, "namespaces")
    equal(linux["devices"], [{"path": "/dev/nought", "type": "c", "major": 1, "minor": 5}], "devices")
    equal(linux["maskedPaths"], ["/proc/tty"], "maskedPaths")
    holds("of-a-script", linux["cgroupsPath"], "cgroupsPath")
    container.stop()
    equal(info()["pid"], 0, "the pid of what has ended")


# -- stopping -------------------------------------------------------------------------------------

TRAPS = """for s in TERM USR1 INT; do trap "echo got $s; exit 5" $s; done; echo up
while :; do sleep 0.1; done"""


@test
def the_stop_signal_is_the_requests_else_the_images_else_SIGTERM(k):
    pod = k.pod()
    own = pull(k, "test/configured")
    rows = (({}, "TERM", pb.SIGNAL_SIGTERM), (own, "USR1", pb.SIGNAL_SIGUSR1),
            (merge(own, {"stop_signal": pb.SIGNAL_SIGINT}), "INT", pb.SIGNAL_SIGINT))
    for changes, name, number in rows:
        container = pod.start("sh", "-c", TRAPS, **changes)
        until("it traps", lambda: "up" in container.output())
        equal(container.status().stop_signal, number, "stop_signal in the status")
        container.stop(timeout=600)
        holds("got " + name, container.output(), "its output")
        equal(container.status().exit_code, 5, "exit code")


@test
def after_the_timeout_it_is_killed(k):
    container = k.pod().start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    until("it traps", lambda: "up" in container.output())
    container.stop(timeout=1)
    status = container.status()
    equal((status.state, status.exit_code), (pb.CONTAINER_EXITED, 137), "state and exit code")


@test
def timeout_0_kills_at_once(k):
    container = k.pod().start("sh", "-c", TRAPS)
    until("it traps", lambda: "up" in container.output())
    container.stop(timeout=0)
    equal(container.status().exit_code, 137, "exit code")
    check("got" not in container.output(), "no stop signal was sent")


@test
def a_stop_ends_all_that_the_container_started(k):
    container = k.pod().start("sh", "-c", "trap 'exit 0' TERM; setsid sleep 3100001 & setsid sh -c 'trap"
                              " \"\" TERM INT HUP; echo child; sleep 3100001' & echo up; while :; do sleep 1; done")
    until("both have set their traps", lambda: {"up", "child"} <= set(container.output().split()))
    until("they run", lambda: len(running("3100001")) >= 3)
    container.stop(timeout=600)
    equal(running("3100001"), [], "processes")


@test
def the_end_of_the_first_process_ends_all_the_others(k):
    shared = security(namespace_options={"pid": pb.POD})
    container = k.pod(**shared).start("sh", "-c", "setsid sleep 3200001 & sleep 0.2; exit 4",
                                      **shared)
    equal(container.exited().exit_code, 4, "exit code")
    until("the rest is gone", lambda: not running("3200001"))


@test
def a_second_stop_with_a_shorter_timeout_shortens_the_first(k):
    container = k.pod().start("sh", "-c",
                              "trap 'echo TERM' TERM; echo up; while :; do sleep 0.1; done")
    until("it traps", lambda: "up" in container.output())
    first = k.cri.begin("StopContainer", container_id=container.id, timeout=3600, _timeout=600)
    until("the signal arrives", lambda: "TERM" in container.output())
    k.cri.StopContainer(container_id=container.id, timeout=1)
    first.result()
    equal(container.status().exit_code, 137, "exit code")
    equal(container.output().count("TERM"), 1, "stop signals sent")


@test
def status_and_exec_do_not_wait_behind_a_stop(k):
    container = k.pod().start("sh", "-c",
                              "trap 'echo TERM' TERM; echo up; while :; do sleep 0.1; done")
    until("it traps", lambda: "up" in container.output())
    stop = k.cri.begin("StopContainer", container_id=container.id, timeout=3600, _timeout=600)
    until("the signal arrives", lambda: "TERM" in container.output())
    equal(container.status().state, pb.CONTAINER_RUNNING, "state")
    equal(container.run("true").exit_code, 0, "exec's exit code")
    k.cri.ReopenContainerLog(container_id=container.id)
    check(not stop.done(), "the stop still waits")
    k.cri.StopContainer(container_id=container.id, timeout=0)
    stop.result()


# -- what runs ------------------------------------------------------------------------------------

@test
def command_and_args_follow_the_image_as_Kubernetes_says(k):
    pod = k.pod()
    own = pull(k, "test/configured")
    user = security(run_as_user=id_of(0))
    rows = (([], [], "entry from cmd\n"), ([], ["given"], "entry given\n"),
            (["/bin/echo", "mine"], [], "mine\n"), (["/bin/echo"], ["both"], "both\n"))
    for command, args, wanted in rows:
        container = pod.create(**merge(own, merge(user, {"args": args})), command=command)
        container.start()
        equal(container.exited().exit_code, 0, "exit code")
        equal(container.output(), wanted, f"the output of {command} {args}")


@test
def a_command_that_is_not_there_fails_the_start_and_says_why(k):
    container = k.pod().create("/no/such/program")
    fails(container.start, "/no/such/program")
    status = container.status()
    equal((status.state, status.exit_code, status.reason),
          (pb.CONTAINER_EXITED, 128, "StartError"), "status")
    holds("/no/such/program", status.message, "the status's message")
    check(status.finished_at >= status.created_at, "it has a time")


@test
def a_file_that_cannot_be_executed_fails_the_start(k):
    container = k.pod().create("/etc/passwd")
    fails(container.start, "/etc/passwd")
    equal(container.status().state, pb.CONTAINER_EXITED, "state")


@test
def the_working_directory_is_the_requests_else_the_images_and_is_made(k):
    pod = k.pod()
    own = pull(k, "test/configured")
    equal(pod.prints("pwd"), "/\n", "without any")
    equal(pod.prints("pwd", **own), "/home/alice\n", "the image's")
    equal(pod.prints("pwd", **merge(own, {"working_dir": "/tmp"})), "/tmp\n", "the request's")
    equal(pod.prints("pwd", working_dir="/not/there"), "/not/there\n", "a missing one")
    read_only = {"linux": {"security_context": {"readonly_rootfs": True}}}
    script = "pwd; touch x 2>&1; touch /tmp/x 2>&1; true"
    equal(pod.prints("sh", "-c", script, working_dir="/nor/here", **read_only),
          "/nor/here\ntouch: x: Read-only file system\ntouch: /tmp/x: Read-only file system\n",
          "a missing one under a read-only root")


@test
def the_search_of_path_passes_over_what_is_no_program(k):
    script = b"#!/bin/sh\necho found\n"
    tree = images.busybox_tree().link("loop/tool", "tool").link("dangling/tool", "none").file("file", script)
    tree.directory("dir/tool").file("plain/tool", script).file("last/tool", script, 0o755)
    before = ["loop", "dangling", "file", "dir", "plain", "none", "n" * 300, "n/" * 3000]
    path = ":".join("/" + name for name in before + ["last", "bin"])
    name = images.push(images.Image([tree], {"Env": ["PATH=" + path]}), "127.0.0.1:5000", "test/path", "1")
    k.pull(name)
    equal(k.pod().prints("tool", image={"image": name}), "found\n", "output")


@test
def a_working_directory_cannot_be_a_descriptor(k):  # T52, CVE-2024-21626
    pod = k.pod()
    for n in range(3, 20):
        container = pod.create("pwd", working_dir=f"/proc/self/fd/{n}")
        try:
            container.start()
        except Exception:  # pylint: disable=broad-except
            continue
        container.exited()
        check(k.directory not in container.output(), f"descriptor {n}: {container.output()}")


@test
def the_environment_is_the_images_with_the_requests_over_it(k):
    own = pull(k, "test/configured")
    envs = [{"key": "BOTH", "value": b"request"}, {"key": "NEW", "value": b"a=b c"},
            {"key": "EMPTY", "value": b""}]
    lines = k.pod().prints("env", envs=envs, **own).splitlines()
    for line in ("FROM_IMAGE=yes", "BOTH=request", "NEW=a=b c", "EMPTY=", "PATH=/bin",
                 "HOME=/home/alice"):
        check(line in lines, f"{line} is in {lines}")
    equal(len([x for x in lines if x.startswith("BOTH=")]), 1, "settings of BOTH")


@test
def nothing_of_the_daemons_environment_reaches_a_container(k):
    lines = k.pod().prints("env").splitlines()
    equal([x for x in lines if "KRUN" in x], [], "variables")


@test
def a_process_has_three_descriptors_no_ignored_signals_and_umask_022(k):  # T52, R5
    text = k.pod().prints("sh", "-c", "ls /proc/self/fd | wc -l; cat /proc/self/status; umask")
    equal(text.splitlines()[0].strip(), "4", "descriptors of ls (one is the directory)")
    status = proc_status(text)
    for name in ("SigIgn", "SigBlk"):
        equal(int(status[name], 16), 0, name)
    equal(text.splitlines()[-1], "0022", "umask")


@test
def without_stdin_there_is_nothing_to_read(k):
    equal(k.pod().prints("sh", "-c", "cat; echo end"), "end\n", "output")


@test
def a_tty_is_one_and_all_output_is_stdout(k):
    container = k.pod().start("sh", "-c", "tty; ls -l /dev/console | cut -c1; echo err >&2; stty size",
                              tty=True)
    container.exited()
    text = container.output()
    holds("/dev/", text, "tty's output")
    holds("err", text, "what went to stderr")
    equal({r.stream for r in container.log()}, {"stdout"}, "streams")


# -- users ----------------------------------------------------------------------------------------

@test
def the_user_is_who_the_request_and_the_image_say(k):
    pod = k.pod()
    rows = (
        ("test/busybox", {}, "uid=0(root) gid=0(root)"),
        ("test/busybox", {"run_as_user": id_of(1000)}, "uid=1000(alice) gid=1000"),
        ("test/busybox", {"run_as_user": id_of(4242)}, "uid=4242 gid=0"),
        ("test/busybox", {"run_as_user": id_of(1000), "run_as_group": id_of(50)},
         "uid=1000(alice) gid=50"),
        ("test/busybox", {"run_as_username": "bob"}, "uid=1001(bob) gid=1000"),
        ("test/user-uid", {}, "uid=1234"), ("test/user-uid-gid", {}, "uid=1234 gid=555"),
        ("test/user-name", {}, "uid=1000(alice) gid=1000"),
        ("test/user-name-gid", {}, "uid=1000(alice) gid=555"),
        ("test/user-name-group", {}, "uid=1001(bob) gid=29(audio)"),
        ("test/user-name", {"run_as_user": id_of(0)}, "uid=0(root) gid=0"))
    for name, context, wanted in rows:
        pull(k, name)
        got = pod.prints("sh", "-c", "id; grep -E ^[UG]id: /proc/self/status | tr '\\n\\t' '  '",
                         **merge(image(name), security(**context)))
        uid = re.match(r"uid=(\d+)", wanted)[1]
        gid = re.search(r"gid=(\d+)", wanted)
        holds(f"Uid: {uid} {uid} {uid} {uid}", got, f"{name} {context}")
        if gid:
            holds(f"Gid: {gid[1]} {gid[1]} {gid[1]} {gid[1]}", got, f"{name} {context}")


@test
def a_user_of_digits_is_a_number_even_when_a_name_looks_like_it(k):  # CVE-2016-3697, T39
    pull(k, "test/user-uid")  # its /etc/passwd has a user named 1234 whose uid is 0
    equal(k.pod().prints("id", "-u", **image("test/user-uid")).strip(), "1234", "uid")


@test
def users_that_do_not_exist_or_are_no_numbers_are_refused(k):  # T39, CVE-2024-40635
    pod = k.pod()
    for name in ("test/user-unknown", "test/user-too-big", "test/user-negative"):
        pull(k, name)
        fails(lambda name=name: pod.create(**image(name)).start())
    rows = ({"run_as_username": "nosuchuser"}, {"run_as_group": id_of(5)},
            {"run_as_user": id_of(4294967296)}, {"run_as_user": id_of(-1)},
            {"run_as_user": id_of(1), "run_as_group": id_of(-5)},
            {"run_as_user": id_of(1), "supplemental_groups": [4294967296]})
    for context in rows:
        fails(lambda context=context: pod.create(**security(**context)).start())


@test
def supplemental_groups_merge_with_the_images_or_are_strictly_the_requests(k):
    pod = k.pod()
    alice = {"run_as_user": id_of(1000), "run_as_group": id_of(1000), "supplemental_groups": [777]}
    rows = ((dict(alice, supplemental_groups_policy=pb.Merge), {1000, 777, 50, 29}),
            (dict(alice, supplemental_groups_policy=pb.Strict), {1000, 777}),
            ({"run_as_username": "alice"}, {1000, 50, 29}))
    for context, wanted in rows:
        container = pod.start(**security(**context))
        groups = {int(g) for g in container.sh("id -G").split()}
        equal(groups, wanted, f"groups with {context}")
        user = container.status().user.linux
        equal((user.uid, user.gid), (1000, 1000), "the status's user")
        equal(set(user.supplemental_groups) | {1000}, wanted, "the status's groups")


# -- rights ---------------------------------------------------------------------------------------

def rights(pod, **context):
    return proc_status(pod.prints("cat", "/proc/self/status", **security(**context)))


def capabilities(status, name):
    return int(status[name], 16)


@test
def the_default_capabilities_are_the_usual_fourteen(k):
    status = rights(k.pod())
    for name in ("CapBnd", "CapPrm", "CapEff"):
        equal(hex(capabilities(status, name)), hex(DEFAULT_CAPABILITIES), name)
    for name in ("CapInh", "CapAmb"):  # CVE-2022-29162
        equal(capabilities(status, name), 0, name)


@test
def capabilities_are_added_and_dropped(k):
    pod = k.pod()
    net_admin, chown, every = 1 << 12, 1 << 0, None
    with open("/proc/self/status") as f:
        every = int(proc_status(f.read())["CapBnd"], 16)
    rows = (({"add_capabilities": ["NET_ADMIN"]}, DEFAULT_CAPABILITIES | net_admin),
            ({"drop_capabilities": ["CHOWN"]}, DEFAULT_CAPABILITIES & ~chown),
            ({"drop_capabilities": ["ALL"]}, 0), ({"add_capabilities": ["ALL"]}, every),
            ({"drop_capabilities": ["ALL"], "add_capabilities": ["CHOWN"]}, chown),
            ({"add_capabilities": ["ALL"], "drop_capabilities": ["CHOWN"]}, every & ~chown),
            ({"add_capabilities": ["CAP_NET_ADMIN"]}, DEFAULT_CAPABILITIES | net_admin))
    for row, wanted in rows:
        status = rights(pod, capabilities=row)
        for name in ("CapBnd", "CapEff"):
            equal(hex(capabilities(status, name)), hex(wanted), f"{name} with {row}")


@test
def an_unknown_capability_is_refused(k):
    pod = k.pod()
    fails(lambda: pod.create(**security(capabilities={"add_capabilities": ["NO_SUCH"]})), "NO_SUCH")


@test
def a_user_other_than_root_has_no_effective_capability_but_ambient_ones(k):
    pod = k.pod()
    alice = {"run_as_user": id_of(1000)}
    status = rights(pod, **alice)
    equal((capabilities(status, "CapEff"), capabilities(status, "CapPrm")), (0, 0), "effective")
    equal(hex(capabilities(status, "CapBnd")), hex(DEFAULT_CAPABILITIES), "bounding")
    status = rights(pod, capabilities={"add_ambient_capabilities": ["NET_BIND_SERVICE"]}, **alice)
    equal((capabilities(status, "CapEff"), capabilities(status, "CapAmb")), (1 << 10, 1 << 10),
          "ambient")


@test
def a_privileged_container_has_all_capabilities_devices_and_a_writable_sys(k):
    pod = k.pod(**security(privileged=True))
    with open("/proc/self/status") as f:
        every = int(proc_status(f.read())["CapBnd"], 16)
    container = pod.start(**security(privileged=True))
    equal(capabilities(proc_status(container.sh("cat /proc/self/status")), "CapEff"), every,
          "CapEff")
    holds("rw", re.search(r" /sys sysfs (\S+)", container.sh("cat /proc/mounts"))[1], "/sys")
    for name in ("kmsg", "loop-control"):
        if os.path.exists("/dev/" + name):
            container.sh(f"test -c /dev/{name}")


@test
def no_new_privs_is_as_asked(k):
    pod = k.pod()
    equal(rights(pod)["NoNewPrivs"], "0", "by default")
    equal(rights(pod, no_new_privs=True)["NoNewPrivs"], "1", "when asked")


@test
def masked_paths_show_nothing_and_read_only_ones_cannot_be_written(k):
    container = k.pod().start(**security(
        masked_paths=["/proc/meminfo", "/proc/tty", "/no/such/path"],
        readonly_paths=["/proc/sys", "/proc/bus", "/no/such/path"]))
    equal(container.sh("cat /proc/meminfo; ls /proc/tty"), "", "a masked file and directory")
    check(container.run("sh", "-c", "echo x >/proc/sys/kernel/domainname").exit_code, "read-only")
    container.sh("cat /proc/version >/dev/null")


@test
def a_container_cannot_change_the_hosts_null_device(k):
    """Its root may change the mode of every device it can reach, and all of the host need this one."""
    def changed():
        now = os.stat("/dev/null")
        return (now.st_ctime_ns, now.st_mode, now.st_uid, now.st_gid)
    script = ("for f in /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/meminfo; do"
              " chmod 666 $f; chown 0:0 $f; done; chmod 666 /dev/null; echo x >/dev/null")
    before = changed()
    masked = security(masked_paths=["/proc/meminfo"])
    pod = k.pod()
    pod.start("sh", "-c", script, **masked).exited()
    pod.start("sh", "-c", script, log_path="", **masked).exited()
    container = pod.start(mounts=[{"host_path": volume(k), "container_path": "/dev"}], **masked)
    for where in (container, pod.start(**masked)):
        where.run("sh", "-c", script)
        equal(where.sh("cat /proc/meminfo; cat"), "", "a masked file and standard input")
    equal(changed(), before, "change time, mode and owner of the host's /dev/null")


@test
def a_read_only_root_has_writable_dev_shm_and_mounts(k):
    source = k.directory + "/volume"
    os.makedirs(source, exist_ok=True)
    container = k.pod().start(mounts=[{"container_path": "/data", "host_path": source}],
                              **security(readonly_rootfs=True))
    for path in ("/x", "/etc/x", "/tmp/x"):
        check(container.run("touch", path).exit_code, f"{path} cannot be made")
    container.sh("touch /data/x /dev/shm/x")


@test
def a_writable_root_is_the_containers_own(k):
    pod = k.pod()
    one, two = pod.start(), pod.start()
    one.sh("echo mine >/etc/passwd; rm /bin/vi; mkdir -p /new/dir")
    holds("root:", two.sh("cat /etc/passwd"), "the other's /etc/passwd")
    two.sh("test -e /bin/vi && ! test -e /new")


@test
def oom_score_adj_is_as_asked(k):
    pod = k.pod()
    for wanted in (0, 500, 1000):
        equal(pod.prints("cat", "/proc/self/oom_score_adj", linux={"resources": {
            "oom_score_adj": wanted}}).strip(), str(wanted), "oom_score_adj")


@test
def a_negative_oom_score_adj_is_kept_or_clamped_but_never_fatal(k):
    got = int(k.pod().prints("cat", "/proc/self/oom_score_adj", linux={"resources": {
        "oom_score_adj": -998}}))
    check(got in range(-998, 1), f"oom_score_adj {got}")


# -- mounts ---------------------------------------------------------------------------------------

def volume(k, name="volume"):
    """A new directory of the host with a file in it."""
    path = f"{k.directory}/{k.name(name)}"
    os.makedirs(path)
    with open(path + "/file", "w") as f:
        f.write("content\n")
    return path


def mount(source, destination="/mnt/v", **more):
    return dict({"host_path": source, "container_path": destination}, **more)


@test
def proc_sys_dev_and_their_like_are_mounted_as_usual(k):
    text = k.pod().prints("cat", "/proc/mounts")
    rows = ((r" /proc proc ", "nosuid,nodev,noexec"), (r" /dev tmpfs ", "nosuid"),
            (r" /dev/pts devpts ", "nosuid,noexec"), (r" /dev/shm tmpfs ", "nosuid,nodev,noexec"),
            (r" /dev/mqueue mqueue ", "nosuid,nodev,noexec"),
            (r" /sys sysfs ", "ro,nosuid,nodev,noexec"),
            (r" /sys/fs/cgroup cgroup2 ", "ro,nosuid,nodev,noexec"))
    for pattern, words in rows:
        found = re.search(pattern + r"(\S+)", text)
        check(found, f"{pattern} is in {text}")
        for word in words.split(","):
            check(word in found[1].split(","), f"{pattern} is {word}: {found[1]}")


@test
def dev_has_the_usual_nodes_and_links(k):
    container = k.pod().start()
    for name, numbers in (("null", "1 3"), ("zero", "1 5"), ("full", "1 7"), ("random", "1 8"),
                          ("urandom", "1 9"), ("tty", "5 0")):
        equal(container.sh(f"stat -c '%F %t %T %a' /dev/{name}").strip(),
              f"character special file {numbers} 666", name)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"),
                         ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
                         ("ptmx", "pts/ptmx")):
        equal(container.sh(f"readlink /dev/{name}").strip(), target, name)


@test
def a_device_of_the_request_is_there(k):
    container = k.pod().start(devices=[{"host_path": "/dev/zero", "container_path": "/dev/my/nought",
                                        "permissions": "rwm"}])
    equal(container.sh("head -c 3 /dev/my/nought | od -An -tx1").split(), ["00"] * 3, "its bytes")


@test
def host_directories_and_files_are_mounted_and_echoed(k):
    source = volume(k)
    mounts = [mount(source, "/a/b/c"), mount(source + "/file", "/etc/config"),
              mount(source, "/ro", readonly=True)]
    container = k.pod().start(mounts=mounts)
    equal(container.sh("cat /a/b/c/file /etc/config /ro/file"), "content\n" * 3, "content")
    container.sh("echo new >/a/b/c/new && echo changed >/etc/config")
    check(container.run("touch", "/ro/x").exit_code, "the read-only one cannot be written")
    check(os.path.exists(source + "/new"), "the write is on the host")
    echoed = [(m.host_path, m.container_path, m.readonly) for m in container.status().mounts]
    for row in mounts:
        check((row["host_path"], row["container_path"], row.get("readonly", False)) in echoed,
              f"{row} is in {echoed}")
    equal(len(echoed), len(mounts), "mounts in the status")


@test
def mount_options_are_those_of_the_mount(k):
    pod = k.pod()
    source = volume(k)
    rows = (("noatime", "noatime", "relatime"), ("strictatime", "", "relatime,noatime"),
            ("noatime,relatime", "relatime", "noatime"), ("nodiratime", "nodiratime", ""),
            ("noexec,nosuid,nodev", "noexec,nosuid,nodev", ""), ("noexec,exec", "", "noexec"),
            ("exec,noexec", "noexec", ""), ("atime,diratime,suid,dev,symfollow,defaults", "rw", ""),
            ("nosymfollow", "nosymfollow", ""), ("ro", "ro", ""), ("ro,noatime", "ro,noatime", ""),
            ("norelatime", "", "noatime"), ("nostrictatime,rbind,bind", "rw", "noatime"))
    names = [mount(source, f"/v{i}", mount_options=row[0].split(",")) for i, row in enumerate(rows)]
    names.append(mount(source, "/kept", readonly=True, mount_options=["rw", "noexec"]))
    lines = pod.prints("cat", "/proc/mounts", mounts=names).splitlines()
    found = {line.split()[1]: line.split()[3].split(",") for line in lines}
    for i, (asked, has, lacks) in enumerate(rows):
        for word in filter(None, has.split(",")):
            check(word in found[f"/v{i}"], f"{asked}: {word} is in {found[f'/v{i}']}")
        for word in filter(None, lacks.split(",")):
            check(word not in found[f"/v{i}"], f"{asked}: {word} is not in {found[f'/v{i}']}")
    check({"ro", "noexec"} <= set(found["/kept"]), f"readonly stays: {found['/kept']}")
    for bad in ("uid=0", "NOEXEC", "", "size=1m", "rshared", "sync"):
        refused("INVALID_ARGUMENT", lambda bad=bad: pod.create(
            mounts=[mount(source, mount_options=["ro", bad])]), f'"{bad}"')


@test
def mounts_come_in_an_order_that_hides_none(k):
    outer, inner = volume(k), volume(k)
    os.makedirs(outer + "/in")
    pod = k.pod()
    for mounts in ([mount(outer, "/o"), mount(inner, "/o/in")],
                   [mount(inner, "/o/in"), mount(outer, "/o")]):
        equal(pod.prints("ls", "/o/in", mounts=mounts), "file\n", "what is in the inner one")


@test
def a_file_and_a_directory_are_not_mounted_on_each_other(k):
    source = volume(k)
    for path, place, want in ((source, "/etc/passwd", "a directory cannot be mounted on a file"),
                              (source + "/file", "/tmp", "a file cannot be mounted on a directory")):
        container = k.pod().create(mounts=[mount(path, place)])
        fails(container.start, f"mount at {place}: {want}")


@test
def a_missing_host_path_is_made_as_a_directory(k):
    path = k.directory + "/" + k.name("made") + "/deep"
    k.pod().start(mounts=[mount(path)])
    check(os.path.isdir(path), "the directory is there")
    equal(oct(os.stat(path).st_mode & 0o777), "0o755", "its mode")


@test
def a_symbolic_host_path_is_resolved(k):
    source = volume(k)
    os.symlink(source, source + "-link")
    container = k.pod().start(mounts=[mount(source + "-link")])
    equal(container.sh("cat /mnt/v/file"), "content\n", "content")


@test
def a_mount_of_the_pods_files_wins_over_kruns(k):  # CVE-2021-43816
    source = volume(k)
    for path in ("/etc/hosts", "/etc/resolv.conf", "/etc/hostname"):
        equal(k.pod().prints("cat", path, mounts=[mount(source + "/file", path)]), "content\n",
              path)
    with open(source + "/file") as f:
        equal(f.read(), "content\n", "the host's file")


@test
def a_pods_own_dev_shm_mount_wins(k):
    source = volume(k)
    equal(k.pod().prints("cat", "/dev/shm/file", mounts=[mount(source, "/dev/shm")]), "content\n",
          "content")


@test
def a_volume_at_dev_gets_no_directories_that_nobody_needs(k):
    """The host's own /dev is such a volume, and a host need not have /dev/mqueue."""
    source = volume(k)
    os.mkdir(source + "/shm")
    pod = k.pod()
    for readonly in (True, False):
        equal(pod.prints("ls", "/dev", mounts=[mount(source, "/dev", readonly=readonly)]), "file\nshm\n",
              f"what is in /dev, read-only {readonly}")
    equal(sorted(os.listdir(source)), ["file", "shm"], "the volume")
    os.mkdir(source + "/mqueue")
    holds(" /dev/mqueue mqueue ", pod.prints("cat", "/proc/mounts", mounts=[mount(source, "/dev", readonly=True)]),
          "the mounts where the directory is there")
    holds("/dev/pts/0", pod.prints("tty", tty=True, mounts=[mount(source, "/dev")]), "a terminal all the same")


@test
def read_only_leaves_submounts_writable_but_recursively_read_only_does_not(k):
    source = volume(k)
    os.makedirs(source + "/sub")
    subprocess.check_call(["mount", "-t", "tmpfs", "sub", source + "/sub"])
    try:
        pod = k.pod()
        plain = pod.start(mounts=[mount(source, readonly=True)])
        check(plain.run("touch", "/mnt/v/x").exit_code, "the top cannot be written")
        plain.sh("touch /mnt/v/sub/x")
        strict = pod.start(mounts=[mount(source, readonly=True, recursive_read_only=True)])
        check(strict.run("touch", "/mnt/v/x").exit_code, "the top cannot be written")
        check(strict.run("touch", "/mnt/v/sub/y").exit_code, "nor what is mounted below")
        check(strict.status().mounts[0].recursive_read_only, "and the status says so")
        for bad in ({"readonly": False}, {"readonly": True,
                                          "propagation": pb.PROPAGATION_HOST_TO_CONTAINER}):
            fails(lambda bad=bad: pod.create(mounts=[mount(source, recursive_read_only=True,
                                                           **bad)]))
        k.remove_all()
    finally:
        subprocess.check_call(["umount", source + "/sub"])


@test
def mount_propagation_is_as_asked(k):
    source = volume(k)
    subprocess.check_call(["mount", "-t", "tmpfs", "shared", source])
    subprocess.check_call(["mount", "--make-rshared", source])
    try:
        pod = k.pod(**security(privileged=True))
        made = {}
        for name in ("PRIVATE", "HOST_TO_CONTAINER", "BIDIRECTIONAL"):
            number = getattr(pb, "PROPAGATION_" + name)
            made[name] = pod.start(mounts=[mount(source, propagation=number)],
                                   **security(privileged=True))
            equal(made[name].status().mounts[0].propagation, number, "propagation in the status")
        os.makedirs(source + "/later")
        subprocess.check_call(["mount", "-t", "tmpfs", "later", source + "/later"])
        for name, container in made.items():
            seen = " /mnt/v/later " in container.sh("cat /proc/mounts")
            equal(seen, name != "PRIVATE", f"a later host mount is seen with {name}")
        subprocess.check_call(["umount", source + "/later"])
        os.makedirs(source + "/inside")
        for name, container in made.items():
            container.sh("mount -t tmpfs inside /mnt/v/inside")
            with open("/proc/self/mountinfo") as f:
                seen = source + "/inside " in f.read()
            equal(seen, name == "BIDIRECTIONAL", f"a mount made inside is on the host with {name}")
        made["BIDIRECTIONAL"].sh("umount /mnt/v/inside")
        k.remove_all()
    finally:
        subprocess.call(["umount", "-R", source])


@test
def shared_propagation_needs_a_shared_source(k):
    source = volume(k)
    subprocess.check_call(["mount", "-t", "tmpfs", "alone", source])
    subprocess.check_call(["mount", "--make-rprivate", source])
    try:
        pod = k.pod(**security(privileged=True))
        for number in (pb.PROPAGATION_HOST_TO_CONTAINER, pb.PROPAGATION_BIDIRECTIONAL):
            fails(lambda number=number: pod.create(
                mounts=[mount(source, propagation=number)], **security(privileged=True)).start())
        k.remove_all()
    finally:
        subprocess.check_call(["umount", source])


@test
def an_image_can_be_a_volume(k):
    pull(k, "test/layered")
    spec = {"image": REGISTRY + "test/layered:1"}
    pod = k.pod()
    container = pod.start(mounts=[{"container_path": "/img", "readonly": True, "image": spec},
                                  {"container_path": "/part", "readonly": True, "image": spec, "image_sub_path": "d"}])
    equal(container.sh("cat /img/d/replaced /part/kept"), "new1", "content")
    for path in ("/img/x", "/part/x"):
        check(container.run("touch", path).exit_code, f"{path} cannot be made")
    check(all(m.image.image for m in container.status().mounts), "the status names the image")


@test
def an_image_volume_that_is_to_be_written_is_refused(k):
    pod = k.pod()
    for more in ({}, {"readonly": False}, {"image_sub_path": "etc"}):
        refused("INVALID_ARGUMENT", lambda more=more: pod.create(mounts=[
            {"container_path": "/img", "image": {"image": k.image}, **more}]), "readonly")
    equal(len(k.cri.ListContainers().containers), 0, "containers")


@test
def the_status_names_the_image_as_it_was_asked_for_and_its_digest(k):
    """As a kubelet creates: by the image's ID, with the name from the pod beside it."""
    pushed = images.busybox({"Labels": {"for": k.name()}})
    one = images.push(pushed, "127.0.0.1:5000", "test/named", "a")
    two = images.push(pushed, "127.0.0.1:5000", "test/other", "b")
    own = k.pull(one)
    equal(k.pull(two), own, "the same image by another name")
    asked = {"image": own, "user_specified_image": two}
    by_digest = f"127.0.0.1:5000/test/named@{pushed.digest}"
    k.pull(by_digest)
    pod = k.pod()
    rows = (({"image": own, "user_specified_image": one}, one, "test/named"), (asked, two, "test/other"),
            ({"image": own}, one, "test/named"), ({"image": own[7:20]}, one, "test/named"),
            ({"image": two}, two, "test/other"), ({"image": by_digest}, by_digest, "test/named"),
            ({"image": own, "user_specified_image": "named"}, "named", "test/"))
    for spec, name, repository in rows:
        container = pod.create(image=spec)
        listed = k.cri.ListContainers(filter={"id": container.id}).containers[0]
        for got in (container.status(), listed):
            equal(got.image.image, name, f"image.image of {spec}")
            check(got.image_ref.startswith("127.0.0.1:5000/" + repository) and
                  got.image_ref.endswith("@" + pushed.digest), f"image_ref {got.image_ref} of {spec}")
            equal(got.image_id, own, f"image_id of {spec}")
    container = pod.create(image={"image": "localhost/krun:self"}, **{"command": ["/krun"]})
    equal(container.status().image_ref, container.status().image_id, "image_ref without a digest")


@test
def the_status_tells_which_image_a_volume_shows(k):
    pull(k, "test/layered")
    name = REGISTRY + "test/layered:1"
    volume_id = k.cri.ImageStatus(image={"image": name}).image.id
    pod = k.pod()
    container = pod.start(mounts=[{"container_path": "/a", "readonly": True, "image": {"image": name}},
                                  {"container_path": "/b", "readonly": True, "image": {"image": volume_id}},
                                  mount(volume(k))])
    seen = [(m.container_path, m.image.image, m.image.image_ref) for m in container.status().mounts]
    equal(seen, [("/a", name, volume_id), ("/b", volume_id, volume_id), ("/mnt/v", "", "")],
          "the mounts in the status")


@test
def a_part_of_an_image_that_cannot_be_shown_is_refused_at_once(k):
    pull(k, "test/layered")
    name = REGISTRY + "test/layered:1"
    pod = k.pod()

    def part(path, of=name):
        return lambda: pod.create(mounts=[{"container_path": "/x", "readonly": True, "image": {"image": of},
                                           "image_sub_path": path}])
    rows = (("absent", name, "NOT_FOUND"), ("d/hidden", name, "NOT_FOUND"),  # a later layer hides it
            ("d/kept", REGISTRY + "not/pulled:1", "NOT_FOUND"))
    for path, of, code in rows:
        said = refused(code, part(path, of), path if of == name else of)
        check(said.startswith("ImageVolumeMountFailed: "), said)
    refused("INVALID_ARGUMENT", part("d/../../etc"), "image_sub_path")
    equal(len(k.cri.ListContainers().containers), 0, "containers")


@test
def a_file_of_an_image_can_be_a_volume_and_is_read_only(k):
    pull(k, "test/layered")
    spec = {"image": REGISTRY + "test/layered:1"}
    container = k.pod().start(**merge(
        {"mounts": [{"container_path": "/one", "readonly": True, "image": spec, "image_sub_path": "d/kept"},
                    {"container_path": "/etc/two", "readonly": True, "image": spec, "image_sub_path": "/swap"}]},
        security(capabilities={"add_capabilities": ["ALL"]})))
    equal(container.sh("cat /one /etc/two"), "1now a file", "content")
    for path in ("/one", "/etc/two"):
        check(container.run("sh", "-c", f"echo x >{path}").exit_code, f"{path} cannot be written")
        check(container.run("mount", "-o", "remount,bind,rw", path).exit_code or
              container.run("sh", "-c", f"echo x >{path}").exit_code, f"{path} stays read-only")


@test
def nobody_can_write_to_the_only_layer_of_an_image_volume(k):
    """Who may mount may make a bind mount writable, and the layer is many images'. Whiteouts hide what they name."""
    layer = images.Tree().directory("d").file("d/kept", "1").file("d/.wh.gone").file(".wh.absent")
    name = images.push(images.Image([layer], {"Cmd": ["/none"]}), "127.0.0.1:5000", "test/one-layer", "1")
    k.pull(name)
    spec = {"image": name}
    where = f"{k.root}/layers/{images.digest(layer.tar())[7:]}/d/kept"
    container = k.pod(**security(privileged=True)).start(**merge(
        {"mounts": [{"container_path": "/whole", "readonly": True, "image": spec},
                    {"container_path": "/part", "readonly": True, "image": spec, "image_sub_path": "d"},
                    {"container_path": "/file", "readonly": True, "image": spec, "image_sub_path": "d/kept"}]},
        security(privileged=True)))
    equal(container.sh("cat /whole/d/kept /part/kept /file; ls -A /whole; test ! -e /whole/d/gone; test ! -e /part/gone"),
          "111d\n", "content")
    for path, inside in (("/whole", "/whole/d/kept"), ("/part", "/part/kept"), ("/file", "/file")):
        for how in ("remount,bind,rw", "remount,rw"):
            container.run("mount", "-o", how, path)
            check(container.run("sh", "-c", f"echo x >{inside}").exit_code, f"{path} is writable after {how}")
    with open(where) as f:
        equal(f.read(), "1", "what lies in the layer")


@test
def image_volumes_share_layers_with_the_container_and_with_each_other(k):
    pull(k, "test/layered")
    spec = {"image": REGISTRY + "test/layered:1"}
    same = {"image": k.image}
    mounts = [{"container_path": f"/v{i}", "readonly": True, "image": spec} for i in range(4)] + [
        {"container_path": "/own", "readonly": True, "image": same}, {"container_path": "/bin2", "readonly": True, "image": same,
                                                    "image_sub_path": "bin"},
        {"container_path": "/krun", "readonly": True, "image": {"image": "localhost/krun:self"}}]
    container = k.pod().start(mounts=mounts)
    equal(container.sh("cat /v0/d/kept /v1/d/kept /v2/d/kept /v3/d/kept"), "1111", "four of one image")
    equal(container.sh("cmp /own/bin/busybox /bin/busybox; cmp /bin2/busybox /bin/busybox"), "",
          "the container's own image")
    equal(container.sh("ls /krun"), "krun\n", "the built-in image")
    container.sh("rm /bin/vi && test -e /own/bin/vi && test -e /bin2/vi")


@test
def image_volumes_and_others_lie_inside_each_other(k):
    pull(k, "test/layered")
    spec = {"image": REGISTRY + "test/layered:1"}
    outer, inner = volume(k), volume(k)
    os.makedirs(outer + "/there")
    container = k.pod().start(mounts=[
        mount(inner, "/img/d"), {"container_path": "/img", "readonly": True, "image": spec},
        {"container_path": "/v/there", "readonly": True, "image": spec, "image_sub_path": "d"},
        {"container_path": "/v/new/deep", "readonly": True, "image": spec, "image_sub_path": "o"}, mount(outer, "/v"),
        {"container_path": "/img/o", "readonly": True, "image": {"image": k.image}, "image_sub_path": "etc"}])
    equal(container.sh("ls /img/d; cat /v/there/kept; ls -A /v/new/deep; ls /v/file"),
          "file\n1above\n/v/file\n", "what lies where")
    container.sh("test -e /img/o/passwd && test -e /img/swap && touch /img/d/new")
    equal(sorted(os.listdir(inner)), ["file", "new"], "the volume in the image")
    equal(os.listdir(outer + "/there"), [], "what lies under the image")
    fails(lambda: k.pod().create(mounts=[mount(inner, "/img/not-there"), {
        "container_path": "/img", "readonly": True, "image": spec}]).start(), "/img/not-there")


@test
def links_of_an_image_lead_a_sub_path_nowhere_but_into_the_image(k):  # T39, CVE-2022-23648
    def links(tree):
        tree.directory("a").file("a/b", "inside")
        tree.link("host-etc", "/etc").link("up", "../../../../../../../../etc")
        tree.link("self", "/proc/self/root/etc").link("to-a", "/a")
    name = images.push(images.busybox({"Labels": {"evil": "sub path"}}, extra=links),
                       "127.0.0.1:5000", "test/evil-sub-path", "1")
    k.pull(name)
    pod = k.pod()

    def start(path):
        return pod.start(mounts=[{"container_path": "/x", "readonly": True, "image": {"image": name},
                                  "image_sub_path": path}])
    equal(start("to-a").sh("cat /x/b"), "inside", "a link inside")
    with open("/etc/passwd") as f:
        host = f.read()
    for path in ("host-etc", "up"):
        got = start(path).sh("cat /x/passwd")
        check(got == images.PASSWD and got != host, f"{path} is the image's /etc: {got}")
    refused("NOT_FOUND", lambda: start("self"), "ImageVolumeMountFailed")


@test
def volumes_that_an_images_config_names_copy_nothing_from_the_host(k):  # T39, CVE-2022-23648
    wanted = {"/../../etc": {}, "../../.." + CANARY: {}, "/": {}, "/proc": {}, "/link": {}}
    os.makedirs(CANARY, exist_ok=True)
    try:
        with open(CANARY + "/secret", "w") as f:
            f.write("of the host")
        evil = images.busybox({"Volumes": wanted}, extra=lambda t: t.link("link", CANARY))
        name = images.push(evil, "127.0.0.1:5000", "test/evil-volumes", "1")
        k.pull(name)
        container = k.pod().start(image={"image": name})
        equal(container.sh("cat /etc/passwd"), images.PASSWD, "/etc/passwd")
        check(container.run("cat", "/link/secret").exit_code, "the host's file is not there")
        equal(container.sh("find / -xdev -name secret"), "", "nor anywhere else")
        equal(os.listdir(CANARY), ["secret"], "the host's directory")
        k.remove_all()
    finally:
        os.unlink(CANARY + "/secret")
        os.rmdir(CANARY)


@test
def a_container_keeps_the_layers_of_a_volume_whose_image_is_removed(k):
    pull(k, "test/layered")
    name = REGISTRY + "test/layered:1"
    pod = k.pod()
    container = pod.create(mounts=[{"container_path": "/img", "image": {"image": name}, "readonly": True}])
    ref = container.status().mounts[0].image.image_ref
    k.cri.RemoveImage(image={"image": name})
    equal(container.start().sh("cat /img/d/kept"), "1", "content")
    equal(container.status().mounts[0].image.image_ref, ref, "image_ref of what has been removed")


@test
def an_images_volumes_are_writable(k):
    pull(k, "test/configured")
    equal(k.pod().prints("sh", "-c", "touch /data/x && cat /data/seed", **image("test/configured")),
          "planted", "what the image has there")


@test
def a_destination_that_is_a_link_in_the_image_stays_in_the_image(k):  # T50, R1
    evil = images.busybox({"Labels": {"evil": "link"}}, extra=lambda t: t.link(
        "escape", CANARY).link("up", "../../../../../.." + CANARY))
    name = images.push(evil, "127.0.0.1:5000", "test/evil-link", "1")
    k.pull(name)
    source = volume(k)
    os.makedirs(CANARY, exist_ok=True)
    try:
        for destination in ("/escape/x", "/up/x", "/escape"):
            container = k.pod().create(image={"image": name}, mounts=[mount(source, destination)])
            try:
                container.start()
            except Exception:  # pylint: disable=broad-except
                pass  # refusing is as good
            equal(os.listdir(CANARY), [], f"on the host with {destination}")
        k.remove_all()
    finally:
        os.rmdir(CANARY)


@test
def a_destination_may_be_a_link_to_what_is_not_there_or_to_another_mount(k):
    """Such as /etc/localtime of an image without zones, and /var/run beside a volume at /run."""
    tree = images.busybox_tree().link("etc/localtime", "/usr/share/zoneinfo/UTC").link("far", "nowhere/at/all")
    name = images.push(images.Image([tree], {"Env": ["PATH=/bin"]}), "127.0.0.1:5000", "test/dangling", "1")
    k.pull(name)
    plain, linked = volume(k), volume(k)
    os.symlink("../a/file", linked + "/link")
    token = "/secrets/kubernetes.io/serviceaccount"
    rows = (([mount(plain + "/file", "/etc/localtime")], "/usr/share/zoneinfo/UTC"),
            ([mount(plain + "/file", "/far")], "/nowhere/at/all"), ([mount(plain, "/far")], "/nowhere/at/all/file"),
            ([mount(plain, "/var/run" + token, readonly=True), mount(linked, "/run")], f"/run{token}/file"),
            ([mount(plain + "/file", "/tmp/b/link"), mount(linked, "/tmp/b")], "/tmp/a/file"))
    pod = k.pod()
    for mounts, path in rows:
        equal(pod.prints("cat", path, image={"image": name}, mounts=mounts), "content\n", path)


@test
def links_at_dev_proc_sys_and_etc_of_an_image_harm_nothing_outside(k):  # T50
    canary = CANARY
    rows = ("dev", "proc", "sys", "etc/hosts", "etc/resolv.conf", "etc/hostname")
    os.makedirs(canary)
    with open(canary + "/ptmx", "w") as f:
        f.write("untouched")
    try:
        for path in rows:
            tree = images.busybox_tree()
            tree.entries = [e for e in tree.entries if e[0].name != path]
            tree.link(path, canary if "/" not in path else canary + "/ptmx")
            name = images.push(images.Image([tree], {"Labels": {"link": path}}), "127.0.0.1:5000",
                               "test/evil-" + path.replace("/", "-"), "1")
            k.pull(name)
            try:
                k.pod().start(image={"image": name})
            except Exception:  # pylint: disable=broad-except
                pass  # refused
            equal(os.listdir(canary), ["ptmx"], f"the canary with a link at {path}")
            with open(canary + "/ptmx") as f:
                equal(f.read(), "untouched", f"the canary with a link at {path}")
        k.remove_all()
    finally:
        os.unlink(canary + "/ptmx")
        os.rmdir(canary)


@test
def an_image_with_an_endless_passwd_is_no_danger(k):  # T40
    rows = {"fifo": lambda t: t.add("etc/passwd", images.tarfile.FIFOTYPE),
            "device": lambda t: t.link("etc/passwd", "/dev/zero"),
            "huge": lambda t: t.file("etc/passwd", b"x:x:1:1:::\n" * 400000)}
    for title, change in rows.items():
        tree = images.busybox_tree()
        tree.entries = [e for e in tree.entries if e[0].name != "etc/passwd"]
        change(tree)
        name = images.push(images.Image([tree], {"User": "alice", "Env": ["PATH=/bin"],
                                                 "Labels": {"p": title}}),
                           "127.0.0.1:5000", "test/passwd-" + title, "1")
        k.pull(name)
        pod = k.pod()
        fails(lambda pod=pod, name=name: pod.create(image={"image": name}).start())
        equal(pod.status().state, pb.SANDBOX_READY, f"the pod after {title}")


@test
def kruns_own_program_cannot_be_changed_from_inside(k):  # T51, CVE-2019-5736
    import hashlib
    from harness import KRUN

    def fingerprint():
        with open(KRUN, "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()
    before = fingerprint()
    script = "for p in /proc/[0-9]*; do { echo x >$p/exe; } 2>/dev/null; done; true"
    container = k.pod(**security(privileged=True)).start(**security(privileged=True))
    for _ in range(10):
        container.run("sh", "-c", script)
        container.run("/proc/self/exe", "sh", "-c", script)
    equal(fingerprint(), before, "krun's bytes")


# -- many -----------------------------------------------------------------------------------------

SPY = """cd /proc
for p in [0-9]*; do
    read name <$p/comm && [ "$name" = "krun monitor" ] || continue
    test -e $p/root$0 && echo the root of the host
    for f in $p/fd/*; do
        case $(readlink $f) in *$1*) echo $f; readlink $f;; esac
        case "$(ls $f/.. $f/../.. 2>/dev/null)" in *$2*) echo above $f: the cgroups of the host;; esac
        mkdir $f/planted 2>/dev/null && echo $f can be written
    done
    echo seen
done"""


@test
def who_may_trace_finds_nothing_of_the_host_in_a_start_beside_it(k):  # CVE-2016-9962
    """A container that joins the pod's PID namespace, or another container's, is seen by those in it. Its
    cgroup is there before it, and frozen: so it stands still as it is born."""
    tree = cgroup2_mount() or skip("no cgroup version 2 tree")
    pod = k.pod(linux={"security_context": {"namespace_options": {"pid": pb.POD}}})
    spy = pod.start(**security(capabilities={"add_capabilities": ["SYS_PTRACE"]}))
    other = k.pod()
    target = other.start(**security(capabilities={"add_capabilities": ["SYS_PTRACE"]}))
    for owner, looks, mode in ((pod, spy, {"pid": pb.POD}),
                               (other, target, {"pid": pb.TARGET, "target_id": target.id})):
        container = owner.create("sleep", "5200001", **security(namespace_options=mode))
        cgroup = f"{tree}/krun/{owner.id}/{container.id}"
        os.makedirs(cgroup)
        with open(cgroup + "/cgroup.freeze", "w") as f:
            f.write("1")
        call = k.cri.begin("StartContainer", container_id=container.id)

        def sees(looks=looks, container=container):
            return looks.run("sh", "-c", SPY, k.root, os.path.basename(k.directory),
                             container.id).stdout.decode()
        try:
            until("the new process is seen", lambda sees=sees: "seen" in sees())
            equal(sees(), "seen\n", "what is seen of it")
        finally:
            with open(cgroup + "/cgroup.freeze", "w") as f:
                f.write("0")
        call.result()
        equal(container.sh("test -e /proc/$(pidof sleep | cut -d ' ' -f 1)/stat && echo yes"), "yes\n",
              "whether it has a /proc of the namespace")


@test
def who_may_trace_finds_nothing_of_the_host_in_an_exec(k):  # CVE-2016-9962
    """The cgroup of the first exec is there before it, and frozen: so it stands still as it is born."""
    tree = cgroup2_mount() or skip("no cgroup version 2 tree")
    pod = k.pod()
    container = pod.start(**security(capabilities={"add_capabilities": ["SYS_PTRACE"]}))
    cgroup = f"{tree}/krun/{pod.id}/{container.id}/exec-0"
    os.makedirs(cgroup)
    with open(cgroup + "/cgroup.freeze", "w") as f:
        f.write("1")
    call = k.cri.begin("ExecSync", container_id=container.id, cmd=["echo", "done"])

    def sees():
        return container.run("sh", "-c", SPY, k.root, os.path.basename(k.directory),
                             container.id).stdout.decode()
    try:
        until("the new process is seen", lambda: "seen" in sees())
        equal(sees(), "seen\n", "what is seen of it")
    finally:
        with open(cgroup + "/cgroup.freeze", "w") as f:
            f.write("0")
    equal(call.result().stdout, b"done\n", "the exec's output")


@test
def containers_made_at_once_each_have_their_own_environment(k):  # CVE-2021-21334
    pod = k.pod()
    calls = []
    for n in range(30):
        config = {"metadata": {"name": f"e{n}"}, "image": {"image": k.image}, "log_path": f"e{n}.log",
                  "command": ["sh", "-c", "echo $WHO"], "envs": [{"key": "WHO", "value": b"%d" % n}]}
        calls.append(k.cri.begin("CreateContainer", pod_sandbox_id=pod.id, config=config,
                                 sandbox_config=pod.config))
    ids = [c.result().container_id for c in calls]
    for call in [k.cri.begin("StartContainer", container_id=i) for i in ids]:
        call.result()
    for n, i in enumerate(ids):
        until("it has ended", lambda i=i: k.cri.ContainerStatus(
            container_id=i).status.state == pb.CONTAINER_EXITED)
        with open(f"{pod.config['log_directory']}/e{n}.log") as f:
            check(f.read().endswith(f" stdout F {n}\n"), f"container {n} printed its number")


@test
def start_and_stop_from_many_clients_make_only_legal_transitions(k):  # T69, a small one
    pod = k.pod()
    containers = [pod.create() for _ in range(4)]
    calls = []
    for _ in range(8):
        for c in containers:
            calls.append(k.cri.begin("StartContainer", container_id=c.id))
            calls.append(k.cri.begin("StopContainer", container_id=c.id, timeout=0))
            calls.append(k.cri.begin("ContainerStatus", container_id=c.id))
    for call in calls:
        call.exception()  # an error is an answer too
    for c in containers:
        c.stop()
        check(c.status().state in (pb.CONTAINER_EXITED, pb.CONTAINER_CREATED), "the end state")


# -- what images ask for that other runtimes take ---------------------------------------------------

def made(k, config, extra=None):
    """An image of busybox with this config, pulled; the change that makes a container use it."""
    name = images.push(images.busybox(config, extra=extra), "127.0.0.1:5000", "test/made",
                       k.name("t"))
    k.pull(name)
    return {"image": {"image": name}}


@test
def an_entrypoint_of_one_empty_word_is_none(k):
    own = made(k, {"Entrypoint": [""], "Cmd": ["echo", "from cmd"]})
    pod = k.pod()
    for args, wanted in (([], "from cmd\n"), (["echo", "given"], "given\n")):
        container = Container(pod, {
            "metadata": {"name": k.name("c")}, "args": args, "log_path": k.name("l"), "linux": {},
            **own}).start()
        container.exited()
        equal(container.output(), wanted, f"the output with args {args}")
    own = made(k, {"Entrypoint": ["echo", ""], "Cmd": ["x"]})
    container = Container(pod, {"metadata": {"name": k.name("c")}, "log_path": k.name("l"),
                                "linux": {}, **own}).start()
    container.exited()
    equal(container.output(), " x\n", "an entrypoint of two words, one of them empty")


@test
def a_volume_that_the_image_lacks_is_made(k):
    own = made(k, {"Volumes": {"/data/deep/er": {}, "relative": {}, "/by/link/x": {}, "/a/../up": {}}},
               lambda t: t.link("by", "/somewhere"))
    text = k.pod().prints("stat", "-c", "%n %a %u:%g", "/data/deep/er", "/relative",
                          "/somewhere/link/x", "/up", **own)
    equal(text.splitlines(), [f"{path} 755 0:0" for path in (
        "/data/deep/er", "/relative", "/somewhere/link/x", "/up")], "the directories")


@test
def a_volume_of_the_image_can_be_written_under_a_read_only_root(k):
    def seeds(tree):
        tree.directory("have", 0o755, (1000, 1000)).file("have/seed", "s").file("plain", "f")
        tree.link("led", "/have2").directory("have2")
    own = made(k, {"Volumes": dict.fromkeys(("/have", "/have/in", "/new", "/led", "/plain", "/proc/x",
                                             "/sys", "/dev", "/", "/covered"), {})}, seeds)
    source = volume(k)
    container = k.pod().start(**merge(merge(own, security(readonly_rootfs=True)), {
        "mounts": [mount(source, "/covered", readonly=True)]}))
    equal(container.sh("stat -c %u /have; cat /have/seed; touch /have/x /have/in/x /new/x /have2/x /dev/x"),
          "1000\ns", "owner and content of what the image has there")
    equal(container.sh("cat /covered/file"), "content\n", "a mount of the request wins")
    for path in ("/x", "/etc/x", "/covered/x", "/proc/x", "/sys/x"):
        check(container.run("touch", path).exit_code, f"{path} cannot be made")
    other = k.pod().start(**merge(own, security(readonly_rootfs=True)))
    equal(other.sh("ls /have /new"), "/have:\nin\nseed\n\n/new:\n", "another container's volumes")


@test
def the_pods_own_files_are_read_only_with_a_read_only_root_alone(k):
    pod = k.pod(**security(privileged=True))
    script = "for f in hosts resolv.conf hostname; do echo '# x' >>/etc/$f && echo $f; done"
    for context, wanted in (({}, "hosts\nresolv.conf\nhostname\n"), ({"readonly_rootfs": True}, ""),
                            ({"privileged": True}, "hosts\nresolv.conf\nhostname\n")):
        got = pod.start(**security(**context)).run("sh", "-c", script).stdout.decode()
        equal(got, wanted, f"files that can be written with {context}")


@test
def a_mount_path_with_dots_means_the_place_that_its_words_say(k):
    source = volume(k)
    pod = k.pod()
    rows = (("/a/../b", "/b"), ("/../../c", "/c"), ("/d/./e//", "/d/e"), ("/etc/x/../hosts", "/etc/hosts"))
    for asked, place in rows:
        what = source + ("/file" if place == "/etc/hosts" else "")
        container = pod.start(mounts=[mount(what, asked)])
        shown = place if place == "/etc/hosts" else place + "/file"
        equal(container.sh(f"cat {shown}"), "content\n", f"{place} of {asked}")
        equal([m.container_path for m in container.status().mounts], [asked], "the status's path")
    for root in ("/", "/..", "/a/..", "//"):
        refused("INVALID_ARGUMENT", lambda root=root: pod.create(mounts=[mount(source, root)]),
                "container_path")


@test
def the_images_stop_signal_is_understood_in_every_spelling(k):
    pod = k.pod()
    rows = (("sigusr1", pb.SIGNAL_SIGUSR1), ("usr2", pb.SIGNAL_SIGUSR2), ("10", pb.SIGNAL_SIGUSR1),
            ("SIGRTMIN+3", pb.SIGNAL_SIGRTMINPLUS3), ("rtmin+3", pb.SIGNAL_SIGRTMINPLUS3),
            ("37", pb.SIGNAL_SIGRTMINPLUS3), ("QUIT", pb.SIGNAL_SIGQUIT),
            ("SIGNONSENSE", pb.SIGNAL_SIGTERM), ("", pb.SIGNAL_SIGTERM))
    for word, number in rows:
        container = pod.create(**made(k, {"StopSignal": word}))
        equal(container.status().stop_signal, number, f"the signal of {word!r}")


@test
def the_images_user_may_lack_a_half(k):
    pod = k.pod()
    for user, wanted in (("root:", "0 0"), ("alice:", "1000 1000"), ("1000:", "1000 1000"),
                         ("4321:", "4321 0"), (":audio", "0 29"), (":", "0 0")):
        got = pod.prints("sh", "-c", "echo $(id -u) $(id -g)", **made(k, {"User": user}))
        equal(got.strip(), wanted, f"user {user!r}")
    for user in ("alice:audio:x", "::", " ", "alice :"):
        fails(lambda user=user: pod.create(**made(k, {"User": user})).start())


# -- devices ----------------------------------------------------------------------------------------

KMSG = os.makedev(1, 11)  # no container has it unless it asks


def opens(container, path):
    return container.run("sh", "-c", f"exec 3>{path}").exit_code == 0


@test
def a_directory_of_devices_brings_nodes_and_rules_from_all_levels(k):
    top = k.directory + "/" + k.name("devices")
    os.makedirs(top + "/one/two")
    for path in ("/a", "/one/b", "/one/two/c"):
        os.mknod(top + path, 0o660 | stat.S_IFCHR, KMSG if path.endswith("c") else os.makedev(1, 5))
        os.chmod(top + path, 0o660)
        os.chown(top + path, 12, 34)
    pod = k.pod()
    for level in ("", "/one", "/one/two"):
        container = pod.start(devices=[{"host_path": top + level, "container_path": "/dev/d",
                                        "permissions": "rw"}])
        for path in ("/a", "/one/b", "/one/two/c"):
            if path.startswith(level):
                inside = "/dev/d" + path[len(level):]
                numbers = "1:b" if path.endswith("c") else "1:5"
                equal(container.sh(f"stat -c '%t:%T %a %u:%g' {inside}").strip(),
                      numbers + " 660 12:34", inside)
                check(opens(container, inside), f"{inside} can be opened")
    other = pod.start()
    other.sh("mknod /k c 1 11")
    check(not opens(other, "/k"), "a container that did not ask")


@test
def devices_outside_of_dev_are_as_good_as_those_in_it(k):
    pod = k.pod()
    ask = [{"host_path": "/dev/zero", "container_path": "/opt/box/nought", "permissions": "rwm"},
           {"host_path": "/dev/zero", "container_path": "/opt/../srv/nought", "permissions": "r"}]
    container = pod.start(devices=ask)
    for path in ("/opt/box/nought", "/srv/nought"):
        equal(container.sh(f"head -c 3 {path} | od -An -tx1").split(), ["00"] * 3, path)
    container.sh("mknod /tmp/null c 1 3 && echo x >/tmp/null")  # as a chroot's /dev is made
    container.sh("mknod /tmp/kmsg c 1 11")
    check(not opens(container, "/tmp/kmsg"), "the rules count for nodes that the container makes")


@test
def a_node_of_an_image_opens_what_the_rules_allow(k):
    def nodes(tree):
        for name, minor in (("nought", 5), ("kmsg", 11)):
            tree.add("box/" + name, tarfile.CHRTYPE, mode=0o666)
            tree.entries[-1][0].devmajor, tree.entries[-1][0].devminor = 1, minor
    container = k.pod().start(**made(k, {}, nodes))
    equal(container.sh("head -c 2 /box/nought | od -An -tx1").split(), ["00"] * 2, "zero")
    check(not opens(container, "/box/kmsg"), "another device")


@test
def a_device_that_is_asked_for_takes_the_place_of_another(k):
    pod = k.pod(**security(privileged=True))
    def ask(host, inside):
        return {"devices": [{"host_path": host, "container_path": inside, "permissions": "rwm"}]}
    for context in ({"privileged": True}, {}):
        for host, inside, numbers in (("/dev/zero", "/dev/full", "1:5"), ("/dev/zero", "/dev/zero", "1:5"),
                                      ("/dev/null", "/dev/stdin", "1:3"), ("/dev/zero", "/etc/passwd", "1:5")):
            container = pod.start(**merge(ask(host, inside), security(**context)))
            equal(container.sh(f"stat -c %t:%T {inside}").strip(), numbers, f"{inside} with {context}")
        for inside in ("/dev/pts", "/etc", "/"):
            fails(lambda inside=inside, context=context: pod.start(
                **merge(ask("/dev/zero", inside), security(**context))))
    source = volume(k)  # but never what is the host's
    fails(lambda: pod.start(mounts=[mount(source, "/vol")], **ask("/dev/zero", "/vol/file")), "/vol/file")
    with open(source + "/file") as f:
        equal(f.read(), "content\n", "the host's file")
