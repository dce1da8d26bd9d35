"""The daemon itself: Version, Status, configuration, its socket, and clients that misbehave."""
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading

import grpc

import images

from harness import (Cri, DEADLINE, KRUN, Krun, check, equal, holds, pb, refused, test, tree, until)


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
def no_socket_is_abstract(k):  # CVE-2020-15257: a host-network pod could reach it
    k.pod().start()
    with open("/proc/net/unix") as f:
        names = [line.split()[-1] for line in f if len(line.split()) > 7]
    equal([n for n in names if n.startswith("@") and "krun" in n], [], "abstract sockets")


@test
def a_second_daemon_on_the_same_root_is_refused(k):  # R23
    with open(os.devnull) as null:
        second = subprocess.run(k.command(), stdin=null, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, timeout=4 * DEADLINE)
    check(second.returncode != 0, "the second one fails")
    holds(k.root, second.stdout.decode(), "its complaint")
    k.cri.Version()


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
