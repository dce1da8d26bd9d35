"""The daemon itself: Version, Status, configuration, its socket, and clients that misbehave."""
import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import threading

import grpc

import images

from harness import (Cri, DEADLINE, Failure, KRUN, Krun, Pod, SLEEP, check, equal, holds, pb, pid_of,
                     processes, refused, restarts, running, skip, test, tree, until)


@test
def Version_says_0_1_0_and_names_a_runtime(k):
    answer = k.cri.Version()
    equal(answer.version, "0.1.0", "version")
    equal(answer.runtime_name, "krun", "runtime_name")
    equal(answer.runtime_api_version, "v1", "runtime_api_version")
    numbers = answer.runtime_version.lstrip("v").split("-")[0].split(".")
    check(len(numbers) >= 2 and all(n.isdigit() for n in numbers),
          "runtime_version has dotted numbers")


@test
def v1alpha2_is_served_by_the_same_handlers(k):
    old = Cri(k.socket, "runtime.v1alpha2")
    equal(old.Version().runtime_name, "krun", "runtime_name")
    equal(len(old.ListPodSandbox().items), 0, "pods")
    old.close()


@test
def Status_says_that_the_runtime_is_ready(k):
    conditions = {c.type: c for c in k.cri.Status().status.conditions}
    check(conditions["RuntimeReady"].status, str(conditions["RuntimeReady"]))
    check("NetworkReady" in conditions, "NetworkReady is among the conditions")


@test
def Status_lists_the_default_handler(k):
    handlers = {h.name: h for h in k.cri.Status().runtime_handlers}
    check("" in handlers, "a handler with the empty name")
    check(handlers[""].features.recursive_read_only_mounts,
          "recursive read-only mounts are offered")


@test
def NetworkReady_waits_for_a_configuration_and_says_so(k):
    def network():
        return {c.type: c for c in k.cri.Status().status.conditions}["NetworkReady"]
    before = network()
    check(not before.status and before.reason and before.message,
          f"not ready, with a reason: {before}")
    k.write_cni()
    until("the network is ready once the file is there", lambda: network().status)
    os.unlink(k.cni + "/10-test.conflist")
    until("the network is not ready once the file is gone", lambda: not network().status)


@test
def a_broken_network_configuration_is_the_reason_given(k):
    with open(k.cni + "/10-test.conflist", "w") as f:
        f.write('{"cniVersion": "1.0.0", "name": "x", "plugins": [')
    try:
        state = {c.type: c for c in k.cri.Status().status.conditions}["NetworkReady"]
        check(not state.status, "NetworkReady is false")
        holds("10-test.conflist", state.message, "the message")
    finally:
        os.unlink(k.cni + "/10-test.conflist")


@test
def verbose_Status_tells_the_configuration_as_JSON(k):
    equal(dict(k.cri.Status().info), {}, "info without verbose")
    config = json.loads(k.cri.Status(verbose=True).info["config"])
    check(os.path.isdir(config["stateDir"]), f"stateDir is a directory: {config.get('stateDir')}")


@test
def RuntimeConfig_names_the_cgroup_driver(k):
    answer = k.cri.RuntimeConfig()
    check(answer.HasField("linux"), "linux is there, else the kubelet uses its own idea")
    equal(answer.linux.cgroup_driver, pb.CGROUPFS, "driver where PID 1 is not systemd")


@test
def UpdateRuntimeConfig_takes_a_pod_CIDR(k):
    k.cri.UpdateRuntimeConfig(runtime_config={"network_config": {"pod_cidr": "10.0.0.0/24"}})


@test
def every_RPC_of_the_CRI_is_registered(k):
    """What is not built yet says that by its name; no path is simply unknown."""
    for name, (path, _) in k.cri.methods.items():
        call, ask = k.cri.stub(name)
        try:
            answer = call(ask(), timeout=0.5)
            if hasattr(answer, "cancel"):
                next(iter(answer), None)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                holds(name, error.details(), path)


@test
def an_unknown_RPC_is_UNIMPLEMENTED(k):
    for path in ("/runtime.v1.RuntimeService/Nothing", "/runtime.v2.RuntimeService/Version",
                 "/runtime.v1.runtimeservice/Version", "/x"):
        call = k.cri.channel.unary_unary(path)
        refused("UNIMPLEMENTED", lambda call=call: call(b"", timeout=DEADLINE))


@test
def bytes_that_are_no_message_are_refused_and_the_connection_lives(k):  # T1
    call = k.cri.channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")
    for wire in (b"\x0a\xff\xff\xff\xff\x0f", b"\x80" * 11, b"\x0f", b"\x0a\x05ab"):
        try:
            call(wire, timeout=DEADLINE)
            check(False, f"{wire!r} was accepted")
        except grpc.RpcError as error:
            check(error.code().name in ("INVALID_ARGUMENT", "INTERNAL"), str(error.code()))
    k.cri.Version()


@test
def a_string_that_is_not_UTF_8_is_refused_by_name(k):  # T4
    wire = b"\x0a\x07\x0a\x05\x0a\x03\xff\xfe\xfd"  # config.metadata.name
    call = k.cri.channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")
    refused("INVALID_ARGUMENT", lambda: call(wire, timeout=DEADLINE), "name")


@test
def messages_of_16_MiB_pass_and_larger_ones_are_refused(k):  # T7
    call = k.cri.channel.unary_unary("/runtime.v1.RuntimeService/Version")
    pad = b"\xfa\x07"  # field 127, length-delimited: unknown to the message, so stepped over

    def padded(total):
        body = total - 2 - 4
        length = bytes([body & 127 | 128, body >> 7 & 127 | 128, body >> 14 & 127 | 128,
                        body >> 21])
        return pad + length + b"x" * body
    call(padded(16 << 20), timeout=DEADLINE)
    refused("RESOURCE_EXHAUSTED", lambda: call(padded((16 << 20) + 1), timeout=DEADLINE))
    k.cri.Version()


@test
def hundreds_of_calls_at_once_are_all_answered(k):
    calls = [k.cri.begin("Version") for _ in range(500)]
    for call in calls:
        equal(call.result().version, "0.1.0", "version")


@test
def clients_that_say_nothing_or_rubbish_do_not_disturb_others(k):  # T10
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for index, s in enumerate(silent):
        s.connect(k.socket)
        if index % 2:
            s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    other = Cri(k.socket)
    other.Version()
    other.close()
    for s in silent:
        s.close()


@test
def connections_leave_no_descriptor_behind(k):
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(k.socket)
    k.cri.Version()


@test
def the_socket_and_the_directories_are_for_root_alone(k):  # R7
    mode = os.stat(k.socket).st_mode
    check(stat.S_ISSOCK(mode), "a socket")
    equal(oct(mode & 0o777), "0o600", "the socket's mode")
    k.pod().start()
    for top in (k.root, k.run):
        for path in [top] + [os.path.join(top, p) for p in tree(top, ("layers", "images"))]:
            info = os.lstat(path)
            if stat.S_ISDIR(info.st_mode) and "/upper" not in path:
                check(info.st_mode & 0o077 in (0, 0o011), f"{path} is closed: {oct(info.st_mode)}")
                if info.st_mode & 0o011:
                    break
            elif stat.S_ISSOCK(info.st_mode):
                equal(oct(info.st_mode & 0o777), "0o600", path)


@test
def parts_of_krun_run_from_a_sealed_copy(k):  # CVE-2019-5736: what no container can write to
    k.pod().start()
    parts = [p for p, line in processes().items() if line.startswith("krun monitor")]
    check(parts, "a monitor is there")
    for pid in parts:
        equal(os.readlink(f"/proc/{pid}/exe"), "/memfd:krun (deleted)", "its program")
        try:
            with open(f"/proc/{pid}/exe", "r+b"):
                raise Failure("its program can be opened to be written to")
        except OSError:
            pass  # ETXTBSY while it runs, EPERM by the seal


@test
def no_socket_is_abstract(k):  # CVE-2020-15257: a host-network pod could reach it
    k.pod().start()
    with open("/proc/net/unix") as f:
        names = [line.split()[-1] for line in f if len(line.split()) > 7]
    equal([n for n in names if n.startswith("@") and "krun" in n], [], "abstract sockets")


def serve_again(**changes):
    """A further daemon that must not start: its exit status and what it says."""
    flags = {"config": "", "missing-controllers": "ignore", **changes}
    done = subprocess.run([KRUN, "serve", *(f"--{n.replace('_', '-')}={v}" for n, v in flags.items())],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=DEADLINE)
    return done.returncode, done.stdout.decode()


def refuses_to_start(wanted, **changes):
    try:
        status, text = serve_again(**changes)
    except subprocess.TimeoutExpired:
        raise Failure(f"a daemon with {changes} serves") from None
    equal(status, 1, f"exit status with {changes}: {text}")
    for words in wanted:
        holds(words, text, f"the complaint about {changes}")


def meet_again(k, *boxes):
    """Containers of a daemon that was started again speak to the new one."""
    for box in boxes:
        box.cri = box.pod.cri = k.cri


def inode(path):
    st = os.stat(path)
    return st.st_dev, st.st_ino


@test
def a_second_daemon_on_the_same_root_is_refused(k):  # R23
    for run in (k.run, k.directory + "/run-b"):
        refuses_to_start([k.root, f"process {k.process.pid}", "--root"], root=k.root, run=run)
    equal(os.path.exists(k.directory + "/run-b"), False, "the other run directory")
    k.cri.Version()


@test
def a_second_daemon_on_the_same_run_directory_is_refused_and_touches_nothing(k):  # R23
    """By whatever path, with whatever root and socket: the pods of the first are not harmed."""
    box = k.pod().start(*SLEEP)
    before, socket_before = tree(k.run), inode(k.socket)
    other = k.directory + "/second"
    bound, link = k.directory + "/bound", k.directory + "/link"
    os.makedirs(bound)
    os.symlink(k.run, link)
    subprocess.check_call(["mount", "--bind", k.run, bound])
    try:
        for run in (k.run, link, bound, k.run + "/../run/"):
            for socket_path in ("", other + "/x.sock", k.socket):
                refuses_to_start(["another krun serve", f"process {k.process.pid}", "--run"],
                                 root=other, run=run, socket=socket_path)
    finally:
        subprocess.check_call(["umount", bound])
        os.rmdir(bound)
        os.unlink(link)
    equal(os.path.exists(other), False, "the second root directory")
    equal(tree(k.run), before, "the run directory")
    equal(inode(k.socket), socket_before, "the socket")
    equal(box.status().state, pb.CONTAINER_RUNNING, "the container")
    equal(box.sh("echo alive"), "alive\n", "an exec")


@test
def the_root_and_the_run_directory_are_two(k):
    path = k.directory + "/both"
    os.makedirs(path)
    refuses_to_start([path], root=path, run=path)
    refuses_to_start([path], root=path, run=path + "/../both")
    shutil.rmtree(path)


@test
@restarts
def living_pods_keep_their_run_directory_from_another_root(k):
    """Also when their daemon does not run. Without such pods, after a reboot, or when a person says
    so, it is free again."""
    box = k.pod().start(*SLEEP)
    pid = pid_of(box)
    other = k.directory + "/second"
    k.kill()
    refuses_to_start([k.run, k.root, other, "root.json"], root=other, run=k.run)
    check(os.path.exists(f"/proc/{pid}"), "the container runs on")
    k.start()
    meet_again(k, box)
    equal(box.status().state, pb.CONTAINER_RUNNING, "the container")
    k.remove_all()
    k.stop()
    changed = Krun(other)
    changed.run, changed.socket = k.run, k.run + "/krun.sock"
    changed.start()  # no pod lives: the directory changes hands
    equal(changed.stop(), 0, "exit status")
    shutil.rmtree(other)
    k.start()


@test
@restarts
def a_root_is_not_given_another_run_directory_while_its_pods_live(k):
    box = k.pod().start(*SLEEP)
    other = k.directory + "/run-b"
    k.stop()
    refuses_to_start([k.run, k.root, "run.json"], root=k.root, run=other)
    k.start()
    meet_again(k, box)
    equal(box.status().state, pb.CONTAINER_RUNNING, "the container")
    equal(box.sh("echo alive"), "alive\n", "an exec")
    shutil.rmtree(other)


@test
@restarts
def directories_that_were_moved_or_bound_elsewhere_are_the_same(k):
    box = k.pod().start(*SLEEP)
    equal(k.stop(), 0, "exit status")
    moved = k.directory + "/moved"
    os.makedirs(moved)
    root, run, socket_path = k.root, k.run, k.socket
    os.rename(root, moved + "/root")
    os.rename(run, moved + "/run")
    k.root, k.run, k.socket = moved + "/root", moved + "/run", moved + "/a.sock"
    try:
        k.start()
        meet_again(k, box)
        equal(box.status().state, pb.CONTAINER_RUNNING, "the container after a move")
        equal(box.sh("echo alive"), "alive\n", "an exec")
        k.stop()
    finally:
        os.rename(moved + "/root", root)
        os.rename(moved + "/run", run)
        k.root, k.run, k.socket = root, run, socket_path
    shutil.rmtree(moved)
    k.start()
    meet_again(k, box)
    equal(box.status().state, pb.CONTAINER_RUNNING, "the container, moved back")


@test
@restarts
def a_run_directory_of_a_root_that_is_gone_can_be_had(k):
    """The way out that the refusal names; and a root made anew under its old name needs none."""
    lost = Krun(k.directory + "/lost")
    lost.image = "localhost/krun:self"
    lost.start()
    lost.pod().create(command=["/krun", "self", "sleep", "97531"]).start()
    lost.stop()
    shutil.rmtree(lost.root, ignore_errors=True)
    heir = k.directory + "/heir"
    refuses_to_start([lost.root, "remove", "root.json"], root=heir, run=lost.run)
    equal(len(running("97531")), 1, "the lost root's process")
    lost.start()
    equal(len(lost.cri.ListPodSandbox().items), 0, "pods")
    until("what nobody knows is ended", lambda: not running("97531"))
    lost.pod().create(command=["/krun", "self", "sleep", "97531"]).start()
    lost.stop()
    os.unlink(lost.run + "/root.json")
    other = Krun(heir)
    other.run, other.socket = lost.run, lost.socket
    other.start()
    until("what nobody knows is ended", lambda: not running("97531"))
    other.stop()
    shutil.rmtree(lost.directory, ignore_errors=True)
    shutil.rmtree(heir)


@test
@restarts
def a_damaged_note_of_the_other_directory_stops_no_start(k):
    box = k.pod().start(*SLEEP)
    for rubbish in (b"", b"{", b"\0" * 100, b'{"path": 7}', b"[" * 5000):
        k.kill()
        for note in (k.run + "/root.json", k.root + "/run.json"):
            with open(note, "wb") as f:
                f.write(rubbish)
        k.start()
        meet_again(k, box)
        equal(box.status().state, pb.CONTAINER_RUNNING, "the container")


@test
def a_socket_that_somebody_serves_is_not_replaced(k):
    """Neither krun's own nor another program's; what is no socket stays too. A dead one goes."""
    other = k.directory + "/third"
    foreign = k.directory + "/foreign.sock"
    kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
    for kind in kinds:
        with socket.socket(socket.AF_UNIX, kind) as s:
            s.bind(foreign)
            if kind != socket.SOCK_DGRAM:
                s.listen(0)
            for _ in range(2):  # the second time its queue is full
                before = inode(foreign)
                refuses_to_start([foreign, "--socket"], root=other, run=other + "/run",
                                 socket=foreign)
                equal(inode(foreign), before, "the foreign socket")
        os.unlink(foreign)
    refuses_to_start([k.socket, "--socket"], root=other, run=other + "/run", socket=k.socket)
    with open(foreign, "w") as f:
        f.write("precious")
    refuses_to_start([foreign, "no socket"], root=other, run=other + "/run", socket=foreign)
    equal(open(foreign).read(), "precious", "the file")
    os.unlink(foreign)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(foreign)  # nobody listens there any more
    second = Krun(other)
    second.socket = foreign
    second.start()
    equal(second.stop(), 0, "exit status")
    equal(os.path.exists(foreign), False, "the socket after the end")
    shutil.rmtree(other)
    k.cri.Version()


@test
def of_three_that_start_at_once_one_serves(k):
    """Whether they want the same root, the same run directory or the same socket."""
    other = k.directory + "/race"
    for shared in ("root", "run", "socket"):
        for _ in range(3):
            flags = [[f"--{name}={other}/{name}{'' if name == shared else n}"
                      for name in ("root", "run", "socket")] for n in range(3)]
            started = [subprocess.Popen([KRUN, "serve", "--config=",
                                         "--missing-controllers=ignore", *f],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL) for f in flags]
            until("two have given up", lambda: sum(p.poll() is not None for p in started) == 2)
            for p in started:
                p.terminate()
            equal(sorted(p.wait(DEADLINE) for p in started), [0, 1, 1], f"with one {shared}")
    shutil.rmtree(other)


def log_after(k, action):
    """What the action has written to the daemon's log."""
    path = k.directory + "/daemon.log"
    before = os.path.getsize(path)
    action()
    with open(path, errors="replace") as f:
        f.seek(before)
        return f.read()


def one_line(text, *words):
    """The one line that has all these words."""
    found = [line for line in text.splitlines() if all(w in line for w in words)]
    equal(len(found), 1, f"number of lines with {words} in {text}")
    return found[0]


@test
def the_log_has_a_line_for_each_event_of_pods_and_containers(k):
    """With the pod's and container's names and short IDs, exit codes and why."""
    def life():
        pod = k.pod()
        made["pod"] = pod.id
        for name, command in (("seven", "exit 7"), ("killed", "exit 143")):
            box = pod.start("sh", "-c", command, metadata={"name": name})
            box.exited()
            made[name] = box.id
        box = pod.start(*SLEEP, metadata={"name": "long"})
        made["long"] = box.id
        box.stop(0)
        box.remove()
        bad = pod.create("/no/such/program", metadata={"name": "bad"})
        refused("UNKNOWN", bad.start)
        made["bad"] = bad.id
        pod.stop()
        pod.stop()
        pod.remove()
        made["name"] = pod.config["metadata"]["name"]
    made = {}
    text = log_after(k, life)
    whole = f"tests/{made['name']}"
    pod = f"pod {made['pod'][:12]} {whole}: "
    for event in ("is ready", "stopped", "removed"):
        one_line(text, " INFO ", pod + event)

    def box(name):
        return f" INFO  container {made[name][:12]} {whole}/{name}: "
    for name in ("seven", "killed", "long"):
        one_line(text, box(name) + "created from " + k.image)
        one_line(text, box(name) + "started in ")
    one_line(text, box("seven") + "exited with 7 after ", "Error")
    one_line(text, box("killed") + "exited with 143", "Terminated", " after ")
    one_line(text, box("long") + "is to stop")
    one_line(text, box("long") + "exited with 137")
    one_line(text, box("long") + "removed")
    one_line(text, box("bad") + "exited with 128", "StartError", "/no/such/program")
    one_line(text, "StartContainer failed with UNKNOWN", "/no/such/program")
    check(" ERROR " not in text and " WARN " not in text, f"nothing else is wrong: {text}")


@test
@restarts
def a_daemon_that_comes_back_tells_no_exit_twice(k):
    pod = k.pod()
    gone = pod.start("sh", "-c", "exit 5", metadata={"name": "gone"})
    gone.exited()
    box = pod.start("sh", "-c", "until [ -e /go ]; do sleep 0.1; done; exit 9",
                    metadata={"name": "box"})

    def again():
        k.restart()
        meet_again(k, box, gone)
        box.sh("touch /go")
        equal(box.exited().exit_code, 9, "exit code")
    text = log_after(k, again)
    one_line(text, f"container {box.id[:12]}", "exited with 9")
    check(gone.id[:12] not in text, f"what was told before: {text}")


@test
@restarts
def the_log_tells_an_exit_that_a_monitor_wrote_down_before_it_died(k):
    k.environment = {"KRUN_FAULT": "monitor.recorded:1"}
    k.restart()
    k.environment = {}
    box = []

    def life():
        box.append(k.pod().start("sh", "-c", "exit 6"))
        equal(box[0].exited().exit_code, 6, "exit code")
        until("it is told", lambda: "exited with 6" in k.log_end(30))
    one_line(log_after(k, life), f"container {box[0].id[:12]}", "exited with 6")
    k.restart()


@test
def the_log_tells_what_became_of_images_and_of_calls(k):
    name = "localhost/test/logged:1"
    path = images.write_tar(images.docker_files(images.Image([images.Tree().file("f", "logged")]),
                                                [name]), k.directory + "/logged.tar")
    one_line(log_after(k, lambda: k.cli("load", path)), " INFO ", "loaded " + name, path)
    one_line(log_after(k, lambda: k.cri.RemoveImage(image={"image": name})), " INFO ",
             "removed " + name)
    os.unlink(path)
    other = "127.0.0.1:5000/test/plain-layer:1"
    text = log_after(k, lambda: k.pull(other))
    one_line(text, " INFO ", "pulled " + other, "sha256:", " bytes in ")
    k.cri.RemoveImage(image={"image": other})
    text = log_after(k, lambda: refused("INVALID_ARGUMENT", lambda: k.cri.CreateContainer()))
    one_line(text, " INFO ", "CreateContainer failed with INVALID_ARGUMENT: ")
    text = log_after(k, lambda: refused("NOT_FOUND", lambda: k.cri.ContainerStatus(
        container_id="0" * 64)))
    equal(text, "", "a status that is asked for in vain, at this level")


@test
def a_cancelled_pull_is_logged_with_its_name(k):
    with socket.socket() as quiet:  # takes a connection and says nothing
        quiet.bind(("127.0.0.1", 0))
        quiet.listen()
        registry = f"127.0.0.1:{quiet.getsockname()[1]}"
        k.allow_http(registry)

        def give_up():
            call = k.cri.begin("PullImage", image={"image": registry + "/never/comes:1"})
            quiet.accept()[0].close
            call.cancel()
            until("the log tells it", lambda: "cancelled" in k.log_end(3))
        one_line(log_after(k, give_up), registry + "/never/comes:1", "cancelled")


@test
def what_strangers_write_stays_on_its_line(k):  # R16
    evil = "a\n2026-01-01T00:00:00.000000000Z ERROR forged\x1b[2J"
    text = log_after(k, lambda: refused("NOT_FOUND", lambda: k.pod().create(image={"image": evil})))
    text += log_after(k, lambda: refused("INVALID_ARGUMENT", lambda: k.cri.PullImage(
        image={"image": evil})))
    check("\x1b" not in text, "an escape sequence")
    equal([line for line in text.splitlines() if line.startswith("2026-01-01T")], [], "forged lines")
    holds("\\x0a2026-01-01", text, "the log")


class Piped(Krun):
    """Its log goes into a pipe that the test reads, or does not."""
    def spawn(self):
        self.reader, writer = os.pipe()
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=writer,
                                        stderr=writer)
        os.close(writer)

    def log_end(self, lines=12):
        return "not read"


@test
def a_log_that_nobody_reads_stops_nobody(k):
    second = Piped(k.directory + "/piped")
    second.start()
    for n in range(1500):  # 100 KiB of log; the pipe has room for 64
        refused("INVALID_ARGUMENT", lambda: second.cri.CreateContainer())
    pod = second.pod()
    pod.stop()
    pod.remove()
    os.set_blocking(second.reader, False)
    read = b""
    try:
        while True:
            more = os.read(second.reader, 65536)
            if not more:
                break
            read += more
    except BlockingIOError:
        pass
    check(all(line.startswith(b"20") for line in read.splitlines()), "whole lines")
    refused("INVALID_ARGUMENT", lambda: second.cri.CreateContainer())
    holds("lines are lost", os.read(second.reader, 65536).decode(), "what comes when it is read again")
    second.stop()
    os.close(second.reader)
    shutil.rmtree(second.directory)


@test
def a_start_writes_nothing_to_the_kernels_log(k):
    """overlayfs complains of an option that it does not know, each time."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        room = ctypes.create_string_buffer(1 << 22)

        def complaints():
            n = libc.klogctl(3, room, len(room))
            if n < 0:
                skip("the kernel's log may not be read here")
            return room.raw[:n].count(b"lowerdir+")
        before = complaints()
    except OSError:
        skip("the kernel's log may not be read here")
    pod = k.pod()
    for _ in range(3):
        pod.prints("true")
    equal(complaints() - before, 0, "new lines about lowerdir+")


class Wrapped(Krun):
    """A daemon that is started by way of another program, or from another file."""
    def __init__(self, directory, *words, program=KRUN):
        super().__init__(directory)
        self.words, self.program = list(words), program
        self.image = "localhost/test/busybox:1"

    def command(self):
        return self.words + [self.program] + super().command()[1:]

    def begin(self):
        path = images.write_tar(images.docker_files(images.busybox(), [self.image]), self.directory + "/image.tar")
        self.start()
        self.cli("load", path)
        return self.pod()


ODD_PARENT = """
import os, resource, signal, sys
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGCHLD])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
os.umask(0o077)
os.nice(7)
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.environ["SECRET"] = "of the daemon"
os.chdir("/tmp")
os.execv(sys.argv[3], sys.argv[3:])
"""
LOOK = ("ulimit -Sn; ulimit -Hn; umask; grep -E '^(SigIgn|SigBlk|SigCgt|Cpus_allowed):' "
        "/proc/self/status; cut -d' ' -f19 /proc/self/stat; cat /proc/self/timerslack_ns "
        "/proc/self/personality 2>/dev/null; env | grep -c SECRET; true")


@test
def a_container_inherits_nothing_odd_from_the_daemon(k):
    """A soft limit of open files that programs expect, a hard one of at most 524288 and no more than
    the daemon has; and neither signals, urgency, CPUs, umask nor environment."""
    seen = {}
    for soft, hard in ((700, 800), (1024, 20000), (20000, 20000), (1000000, 1000000)):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        second = Wrapped(f"{k.directory}/odd{soft}", "/usr/bin/python3", "-c", ODD_PARENT,
                         str(min(soft, most)), str(min(hard, most)))
        pod = second.begin()
        printed = pod.prints("sh", "-c", LOOK).split("\n")
        box = pod.start()
        equal(box.sh(LOOK).split("\n"), printed, "an exec sees what the container sees")
        limits, seen[soft] = [int(n) for n in printed[:2]], printed[2:]
        equal(limits, [min(1024, hard, most), min(524288, hard, most)], "limits of open files")
        fresh = subprocess.check_output(
            ["/usr/bin/python3", "-c", "import os, sys\nos.sched_setaffinity(0, range(os.cpu_count()))"
             "\nos.execv('/bin/grep', ['grep', '^Cpus_allowed:', '/proc/self/status'])"]).decode()
        holds(fresh.strip(), "\n".join(printed), "the CPUs")
        numbers = dict(line.split(":\t") for line in printed if ":\t" in line)
        equal({numbers[n] for n in ("SigIgn", "SigBlk")}, {"0" * 16}, "signals ignored and blocked")
        equal(printed[2], "0022", "umask")
        equal(printed[7], "0", "nice value")
        equal(printed[-2], "0", "secrets")
        with open(f"/proc/{second.process.pid}/limits") as f:
            own = next(line.split() for line in f if line.startswith("Max open files"))
        equal(own[3:5], [str(min(hard, most))] * 2, "the daemon's own limit")
        second.remove_all()
        second.stop()
        shutil.rmtree(second.directory)
    equal(len({str(s) for s in seen.values()}), 1, f"whatever the daemon has: {seen}")


@test
def a_daemon_from_a_tmpfs_runs_its_parts_from_sealed_memory(k):  # CVE-2019-5736
    """Every file of a tmpfs has a seal, so that it has some says nothing: an appliance's initramfs."""
    where = k.directory + "/memory"
    os.makedirs(where)
    subprocess.check_call(["mount", "-t", "tmpfs", "none", where])
    try:
        shutil.copy(KRUN, where + "/krun")
        second = Wrapped(k.directory + "/appliance", program=where + "/krun")
        pod = second.begin()
        monitor = next(p for p in running("krun monitor") if pod.id in processes()[p])
        exe = f"/proc/{monitor}/exe"
        holds("/memfd:krun", os.readlink(exe), "the monitor's program")
        try:
            open(exe, "r+b").close()
            raise Failure("the monitor's program can be written to")
        except OSError:
            pass
        second.remove_all()
        second.stop()
        shutil.rmtree(second.directory)
    finally:
        subprocess.check_call(["umount", where])
        os.rmdir(where)


CHROOT = """
[ "$1" = plain ] || mount --bind "$0" "$0"
for d in proc sys dev; do mount --rbind /$d "$0/$d"; done
shift
exec chroot "$0" "$@"
"""


def check_in_a_chroot(k, kind):
    """The daemon's directories, at their own paths, are in a tree that is its root; so are the logs,
    at a path that is not there outside. Who enters a container's mount namespace is at its root."""
    tree_in, directory, logs = (f"{k.directory}/{kind}{part}" for part in ("-tree", "", "-logs"))
    for path in ("/proc", "/sys", "/dev", "/run", "/tmp", directory, logs):
        os.makedirs(tree_in + path)
    os.symlink(tree_in + directory, directory)
    shutil.copy(KRUN, tree_in + "/krun")
    second = Wrapped(directory, "unshare", "-m", "sh", "-c", CHROOT, tree_in, kind, program="/krun")
    second.start()
    second.image = "localhost/krun:self"
    try:
        for pid in (pb.POD, pb.CONTAINER):
            check_pod_in_a_chroot(second, tree_in, logs, pid)
        second.remove_all()
        second.stop()
    finally:
        if second.process.poll() is None:
            second.kill()
        shutil.rmtree(tree_in)
        os.unlink(directory)


def check_pod_in_a_chroot(second, tree_in, logs, pid):
    config = second.pod_config(log_directory=logs, linux={"security_context": {"namespace_options": {"pid": pid}}})
    os.rmdir(logs)  # pod_config makes it outside
    pod = Pod(second, config)
    first = pod.create("/krun", "self", "print", "hello").start()
    equal(first.exited().exit_code, 0, "the exit code")
    with open(f"{tree_in}{logs}/{first.config['log_path']}", encoding="utf-8") as f:
        holds("hello", f.read(), "the log inside")
    check(not os.path.exists(logs), "a log is outside of the chroot")
    last = pod.create("/krun", "self", "sleep", f"98{pid}7").start()
    equal(last.run("/krun", "self", "print", "there").stdout, b"there\n", "an exec's output")
    inside = subprocess.check_output(["nsenter", "--mount", "--target", str(pid_of(last)), "/krun", "self",
                                      "print", "inside"], stderr=subprocess.STDOUT)
    equal(inside, b"inside\n", "what runs at the root of the container's mount namespace")


@test
def a_daemon_in_a_chroot_that_is_a_mount_keeps_to_it(k):
    check_in_a_chroot(k, "mount")


@test
def a_daemon_in_a_chroot_that_is_a_plain_directory_keeps_to_it(k):
    check_in_a_chroot(k, "plain")


@test
def a_limit_for_files_makes_calls_fail_and_kills_nobody(k):
    second = Wrapped(k.directory + "/small")
    pod = second.begin()
    box = pod.start("sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done")
    pid, limit = second.process.pid, (20000, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    refused("INTERNAL", lambda: second.pod(annotations={"a": "b" * 50000}), "File too large")
    path = images.write_tar(images.docker_files(images.Image([images.Tree().file(
        "large", os.urandom(300000))]), ["localhost/test/large:1"]), second.directory + "/large.tar")
    done = second.cli("load", path, check_status=False)
    check(done.returncode != 0, "a layer with a large file is refused")
    holds("File too large", done.stderr.decode(), "what load says")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    second.process.send_signal(signal.SIGHUP)  # its log is full too, and this writes a line to it
    second.cri.Version()
    equal(second.process.poll(), None, "the daemon's exit status")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    small = second.pod()  # its monitor, and so its log, has the limit too
    loud = small.start("sh", "-c", "i=0; while [ $i -lt 2000 ]; do echo $i 0123456789; "
                                   "i=$((i + 1)); done; exit 3")
    equal(loud.exited().exit_code, 3, "exit code of one whose log is full")
    equal(box.status().state, pb.CONTAINER_RUNNING, "the container before")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    second.remove_all()
    second.stop()
    shutil.rmtree(second.directory)


@test
def a_bad_flag_and_a_bad_file_are_refused_with_their_names(k):  # T28
    config = k.directory + "/bad.toml"
    rows = ((["--no-such-flag"], None, "no-such-flag"),
            (["--config", config], 'root = "/x\n', "bad.toml:1"),
            (["--config", config], "nonsense_key = 1\n", "nonsense_key"),
            (["--config", k.directory + "/absent.toml"], None, "absent.toml"))
    for flags, text, wanted in rows:
        if text:
            with open(config, "w") as f:
                f.write(text)
        done = subprocess.run([KRUN, "serve", "--root", k.directory + "/r2", "--run",
                               k.directory + "/run2", *flags], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=4 * DEADLINE)
        check(done.returncode != 0, f"{flags} are refused")
        holds(wanted, done.stdout.decode(), f"the complaint about {flags}")


@test
def SIGHUP_reads_the_files_again_and_a_broken_one_changes_nothing(k):  # T28
    other = k.directory + "/reload"
    os.makedirs(other)
    file = other + "/krun.toml"

    def put(text):
        with open(file, "w") as f:
            f.write('log-level = "debug"\n' + text)

    class ByFile(Krun):
        def command(self):
            return [KRUN, "serve", "--config", file, "--root", self.root, "--run", self.run]

        def reload(self, wanted):
            before = len(log())
            self.process.send_signal(signal.SIGHUP)
            until(f"the log says {wanted}", lambda: wanted in log()[before:])
    second = ByFile(other)

    def log():
        with open(other + "/daemon.log") as f:
            return f.read()

    def pinned():
        return second.cri.ImageStatus(image={"image": "example.test/reload:1"}).image.pinned
    put("")
    second.start()
    path = images.write_tar(images.docker_files(images.Image([images.Tree().file("a", "b")]),
                                                ["example.test/reload:1"]), other + "/image.tar")
    second.cli("load", path)
    equal(pinned(), False, "pinned")
    put('[image]\npinned = ["example.test/reload:1"]\n')
    second.reload("read again")
    equal(pinned(), True, "pinned after the reload")
    told = json.loads(second.cri.Status(verbose=True).info["config"])
    equal(told["image-pinned"], "example.test/reload:1", "the setting that verbose Status tells")
    equal(told["log-level"], "debug", "log-level")
    put('[image]\npinned = ["example.test/other:1"\nverify = "/x"\n')
    second.reload("krun.toml:4")
    equal(pinned(), True, "pinned after the broken file")
    put("[image]\nno-such-key = 1\n")
    second.reload("no-such-key")
    equal(pinned(), True, "pinned after the unknown key")
    second.stop()
    shutil.rmtree(other)


@test
def the_configuration_file_is_read_and_flags_win_over_it(k):
    other = k.directory + "/other"
    os.makedirs(other)
    with open(other + "/krun.toml", "w") as f:
        f.write(f'root = "{other}/root"\nrun = "{other}/nowhere"\n'
                f'cni-conf-dir = "{other}/cni"\nmissing-controllers = "ignore"\n')

    class ByFile(Krun):
        def command(self):
            return [KRUN, "serve", "--config", other + "/krun.toml", "--run", self.run]
    second = ByFile(other)
    second.start()
    equal(os.path.exists(other + "/nowhere"), False, "the file's run directory")
    check(os.listdir(other + "/root"), "the file's root directory is used")
    equal(second.stop(), 0, "exit status")


@test
def a_setting_that_cannot_work_is_refused_with_its_place(k):
    other = k.directory + "/bad-settings"
    os.makedirs(other)
    with open(other + "/no-program", "w") as f:
        f.write("#!/bin/sh\n")
    rows = [(f'stream-address = "{bad}"', "must be an address and a port, like 127.0.0.1:0")
            for bad in ("foo", "foo:1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", ":1", "::1:0",
                        "127.0.0.1:-1", "[::1]", "[127.0.0.1]:1", "")]
    rows += [('tls-helper = "/no/such/helper %h"', "the program: No such file"),
             ('tls-helper = "no-such-helper"', "the program: No such file"),
             ('tls-helper = "./helper"', "must be an absolute path"),
             ('image-verify = "/no/such/verifier"', "the program: No such file"),
             ('image-verify = "verifier"', "must be an absolute path"),
             (f'image-verify = "{other}/no-program"', "the program: Permission denied"),
             (f'image-verify = "{other}"', "the program: Permission denied")]
    for text, wanted in rows:
        with open(other + "/krun.toml", "w") as f:
            f.write("\n" + text + "\n")
        done = subprocess.run([KRUN, "serve", "--config", other + "/krun.toml", "--root",
                               other + "/root", "--run", other + "/run"], capture_output=True,
                              text=True, timeout=DEADLINE, check=False)
        equal(done.returncode, 1, f"the exit status with {text}")
        holds(f"krun.toml:2: {text.split(' = ')[0]} ", done.stderr, "the message")
        holds(wanted, done.stderr, "the message")
    equal(os.path.exists(other + "/root"), False, "the root directory")


@test
def a_file_that_is_named_and_not_there_is_said(k):
    other = Krun(k.directory + "/missing", ["--stream-address", "[::1]:0"])
    names = {"image-auth-file": other.directory + "/none.json",
             "hosts-dir": other.directory + "/none"}
    for name, path in names.items():
        other.flags += ["--" + name, path]
    other.start()
    equal(other.stop(), 0, "exit status")
    for name, path in names.items():
        holds(f'--{name} "{path}": No such file', other.log_end(100), "the log")


@test
def calls_from_many_threads_and_connections_agree(k):
    errors = []

    def work():
        try:
            cri = Cri(k.socket)
            for _ in range(50):
                cri.ListPodSandbox()
                cri.ListImages()
                cri.Status()
            cri.close()
        except Exception as error:  # pylint: disable=broad-except
            errors.append(error)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    equal(errors, [], "errors")


@test
def the_streamed_lists_say_what_the_plain_ones_say(k):
    """Or UNIMPLEMENTED, which sends a client back to the plain ones for good."""
    pod = k.pod()
    pod.start()
    rows = (("StreamPodSandboxes", "pod_sandboxes", "ListPodSandbox", "items"),
            ("StreamContainers", "containers", "ListContainers", "containers"),
            ("StreamImages", "images", "ListImages", "images"))
    for stream, member, plain, items in rows:
        try:
            got = [i.id for part in getattr(k.cri, stream)() for i in getattr(part, member)]
        except grpc.RpcError as error:
            equal(error.code().name, "UNIMPLEMENTED", stream)
            continue
        equal(sorted(got), sorted(i.id for i in getattr(getattr(k.cri, plain)(), items)), stream)
