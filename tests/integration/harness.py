"""What every group of integration tests stands on: a daemon on directories of its own, a CRI client
made from cri.proto at run time, pods and containers with sensible defaults, and the leak check.

Nothing here knows how krun works inside. It sees what a kubelet sees (the socket), what an
administrator sees (files, processes, mounts) and nothing else.
"""
import collections
import glob
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import grpc

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(TOP, "tests", "images"))
sys.path.insert(0, os.path.join(TOP, "tests"))
from sandbox import cgroup2_mount  # noqa: E402

KRUN = os.environ.get("KRUN", os.path.join(TOP, "krun"))
DEADLINE = 30 * float(os.environ.get("KRUN_TEST_SLOWNESS", "1"))
BRIDGE = "krt0"
CANARY = tempfile.gettempdir() + "/krun-canary"  # what hostile images aim at; the lanes share /tmp
SLEEP = ["sleep", "98765"]  # as PID 1 it ignores SIGTERM, as the kernel has it for PID 1


# -- claims ---------------------------------------------------------------------------------------

class Failure(Exception):
    pass


class Skipped(Exception):
    pass


def skip(reason):
    raise Skipped(reason)


def check(condition, message):
    if not condition:
        raise Failure(message)


def short(value):
    text = repr(value)
    return text if len(text) < 600 else f"{text[:400]}...{text[-150:]}"


def equal(got, want, what="value"):
    if got != want:
        raise Failure(f"{what} is {short(got)}, not {short(want)}")


def holds(part, whole, what="text"):
    if part not in whole:
        raise Failure(f"{what} lacks {part!r}: {short(whole)}")


def until(what, question, deadline=None):
    """Asks until the answer is true, and gives it. The deadline only ends what never happens."""
    end = time.monotonic() + (deadline or DEADLINE)
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Failure(f"never happened: {what}")
        time.sleep(0.01)


def refused(code, call, text=""):
    """The call must fail with this gRPC code, and its message must hold `text`. Gives the message."""
    try:
        answer = call()
    except grpc.RpcError as error:
        if error.code().name != code:
            raise Failure(f"answered {error.code().name} ({error.details()}), not {code}") from None
        holds(text, error.details() or "", "the error's message")
        return error.details()
    raise Failure(f"answered OK ({str(answer)[:200]!r}), not {code}")


# -- the CRI client -------------------------------------------------------------------------------

def load_messages():
    """Python classes for every message of cri.proto, compiled by protoc into a directory that goes."""
    proto = os.environ.get("KRUN_PROTO", os.path.join(TOP, "cri.proto"))
    where = tempfile.mkdtemp(prefix="krun-proto-")
    sys.path.insert(0, where)
    try:
        shutil.copy(proto, where + "/krun_cri.proto")
        subprocess.check_call(["protoc", "-I", where, "--python_out", where, "krun_cri.proto"])
        return importlib.import_module("krun_cri_pb2")
    finally:
        sys.path.remove(where)
        shutil.rmtree(where)


pb = load_messages()


class Cri:
    """One connection. cri.Version() calls; keywords are the request's fields, _timeout the deadline;
    cri.begin("PullImage", ...) gives a future. Methods come from the descriptors of cri.proto."""

    def __init__(self, path, package="runtime.v1"):
        self.channel = grpc.insecure_channel("unix:" + path, options=[
            ("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", 16 << 20)])
        self.methods = {}
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                self.methods[method.name] = (f"/{package}.{service.name}/{method.name}", method)

    def stub(self, name):
        path, method = self.methods[name]
        ask, answer = (getattr(pb, t.name) for t in (method.input_type, method.output_type))
        kind = "unary_stream" if path.split("/")[-1] == "GetContainerEvents" or \
            name.startswith("Stream") else "unary_unary"
        call = getattr(self.channel, kind)(path, ask.SerializeToString, answer.FromString)
        return call, ask

    def __getattr__(self, name):
        if name not in self.methods:
            raise AttributeError(name)
        call, ask = self.stub(name)
        return lambda _timeout=2 * DEADLINE, **fields: call(ask(**fields), timeout=_timeout)

    def begin(self, name, _timeout=2 * DEADLINE, **fields):
        call, ask = self.stub(name)
        return call.future(ask(**fields), timeout=_timeout)

    def close(self):
        self.channel.close()


def merge(base, changes):
    """base with changes laid over it, dictionaries member by member."""
    out = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if both else value
    return out


# -- pods and containers --------------------------------------------------------------------------

LogLine = collections.namedtuple("LogLine", "time stream tag text")


class Container:
    def __init__(self, pod, config):
        self.pod, self.cri, self.config = pod, pod.cri, config
        self.id = self.cri.CreateContainer(pod_sandbox_id=pod.id, config=config,
                                           sandbox_config=pod.config).container_id
        self.log_path = os.path.join(pod.config["log_directory"], config["log_path"])

    def start(self):
        self.cri.StartContainer(container_id=self.id)
        return self

    def status(self, **more):
        return self.cri.ContainerStatus(container_id=self.id, **more).status

    def exited(self):
        """Waits for its end; gives the status."""
        def ended():
            status = self.status()
            return status if status.state == pb.CONTAINER_EXITED else None
        return until(f"container {self.id[:13]} exits", ended)

    def run(self, *command, timeout=0):
        return self.cri.ExecSync(container_id=self.id, cmd=command, timeout=timeout)

    def sh(self, script):
        """The output of a shell line inside, which must succeed."""
        answer = self.run("sh", "-c", script)
        if answer.exit_code:
            raise Failure(f"{script!r} exited {answer.exit_code}: {answer.stdout} {answer.stderr}")
        return answer.stdout.decode()

    def log(self):
        """The log file's records so far."""
        with open(self.log_path, "rb") as f:
            data = f.read()
        records = []
        for line in data.split(b"\n")[:-1]:
            moment, stream, tag, text = line.split(b" ", 3)
            records.append(LogLine(moment.decode(), stream.decode(), tag.decode(), text))
        return records

    def output(self, stream="stdout"):
        """What it has printed, put together again from the log."""
        lines = [r for r in self.log() if r.stream == stream]
        return b"".join(r.text + (b"\n" if r.tag == "F" else b"") for r in lines).decode()

    def stop(self, timeout=0):
        self.cri.StopContainer(container_id=self.id, timeout=timeout)

    def remove(self):
        self.cri.RemoveContainer(container_id=self.id)


class Pod:
    def __init__(self, krun, config):
        self.krun, self.cri, self.config = krun, krun.cri, config
        self.id = self.cri.RunPodSandbox(config=config).pod_sandbox_id

    def status(self):
        return self.cri.PodSandboxStatus(pod_sandbox_id=self.id).status

    def create(self, *command, **changes):
        """A container of this pod: by default busybox and a long sleep."""
        name = self.krun.name("c")
        spaces = self.config["linux"]["security_context"]["namespace_options"]  # as the kubelet does
        config = {"metadata": {"name": name}, "image": {"image": self.krun.image},
                  "command": list(command) or SLEEP, "log_path": name + ".log",
                  "linux": {"security_context": {"namespace_options": spaces}}}
        return Container(self, merge(config, changes))

    def start(self, *command, **changes):
        return self.create(*command, **changes).start()

    def prints(self, *command, **changes):
        """Runs a command to its end; gives what it printed to stdout. It must succeed."""
        container = self.start(*command, **changes)
        status = container.exited()
        if status.exit_code:
            raise Failure(f"{command} exited {status.exit_code}: {container.output()}"
                          f"{container.output('stderr')} {status.message}")
        return container.output()

    def stop(self):
        self.cri.StopPodSandbox(pod_sandbox_id=self.id)

    def remove(self):
        self.cri.RemovePodSandbox(pod_sandbox_id=self.id)


# -- the daemon -----------------------------------------------------------------------------------

class Krun:
    """`krun serve` on directories of its own. `image` is what containers are made from by default."""

    def __init__(self, directory, flags=(), environment=None):
        self.directory, self.flags = directory, list(flags)
        self.environment = environment or {}
        self.binary = KRUN
        for name in ("root", "run", "cni", "certs", "logs"):
            os.makedirs(f"{directory}/{name}", exist_ok=True)
            setattr(self, name, f"{directory}/{name}")
        self.socket = self.run + "/krun.sock"
        self.process = self.cri = None
        self.names = 0
        self.image = "127.0.0.1:5000/test/busybox:1"

    def name(self, prefix="p"):
        self.names += 1
        return f"{prefix}{self.names}"

    def command(self):
        return [self.binary, "serve", "--config", "", "--root", self.root, "--run", self.run,
                "--socket", self.socket, "--missing-controllers=ignore",
                "--cni-conf-dir", self.cni, "--cni-bin-dir", "/usr/lib/cni",
                "--hosts-dir", self.certs, *self.flags]

    def spawn(self):
        """Starts the daemon and does not wait for it."""
        log = open(self.directory + "/daemon.log", "ab")
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                        stderr=log, env=dict(os.environ, **self.environment))
        log.close()

    def answers(self):
        if self.process.poll() is not None:
            raise Failure(f"the daemon ended with {self.process.returncode}: {self.log_end()}")
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(self.socket)
            return True
        except OSError:
            return False

    def start(self):
        self.spawn()
        until("the daemon answers", self.greets)
        return self

    def greets(self):
        """True, with self.cri, once Version is answered. That somebody listens is not enough: a child
        of a daemon just killed can hold its socket open for a moment longer."""
        if not self.answers():
            return False
        self.cri = Cri(self.socket)
        try:
            return self.cri.Version()
        except grpc.RpcError:
            self.cri.close()
            self.cri = None
            return False

    def end(self, number):
        """Sends the daemon a signal and waits; gives its exit status as subprocess does."""
        if self.cri:
            self.cri.close()
            self.cri = None
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(2 * DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise Failure(f"signal {number} did not end the daemon: {self.log_end()}") from None
        return self.process.returncode if self.process else None

    def stop(self):
        return self.end(signal.SIGTERM)

    def kill(self):
        return self.end(signal.SIGKILL)

    def restart(self, number=signal.SIGKILL):
        self.end(number)
        return self.start()

    def log_end(self, lines=12):
        with open(self.directory + "/daemon.log", errors="replace") as f:
            return "".join(f.readlines()[-lines:])

    def cli(self, *arguments, stdin=b"", check_status=True):
        """krun's own command line on this daemon's socket."""
        done = subprocess.run([KRUN, arguments[0], "--socket", self.socket, *arguments[1:]],
                              input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=4 * DEADLINE)
        if check_status and done.returncode:
            raise Failure(f"krun {' '.join(arguments)}: exit {done.returncode}: "
                          f"{done.stderr.decode()}")
        return done

    def allow_http(self, *registries):
        """hosts.toml files that make these registries plain HTTP."""
        for registry in registries:
            os.makedirs(f"{self.certs}/{registry}", exist_ok=True)
            with open(f"{self.certs}/{registry}/hosts.toml", "w") as f:
                f.write(f'server = "http://{registry}"\n\n[host."http://{registry}"]\n'
                        '  capabilities = ["pull", "resolve"]\n')

    def write_cni(self, **changes):
        """A real network: bridge, host-local and portmap plugins."""
        bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False,
                  "hairpinMode": True,
                  "ipam": {"type": "host-local", "dataDir": self.directory + "/ipam",
                           "ranges": [[{"subnet": "10.123.0.0/16"}]],
                           "routes": [{"dst": "0.0.0.0/0"}]}}
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}
        conf = merge({"cniVersion": "1.0.0", "name": "krun-test", "plugins": [bridge, portmap]},
                     changes)
        with open(self.cni + "/.new", "w") as f:
            json.dump(conf, f)
        os.rename(self.cni + "/.new", self.cni + "/10-test.conflist")

    def reserved_addresses(self):
        """The addresses that host-local has given out and not got back."""
        return [os.path.basename(p) for p in glob.glob(self.directory + "/ipam/krun-test/*.*.*.*")]

    def pod_config(self, **changes):
        """A pod on the host's network: the quickest kind, when a test does not care."""
        name = self.name()
        config = {"metadata": {"name": name, "uid": "uid-" + name, "namespace": "tests"},
                  "log_directory": f"{self.logs}/{name}",
                  "linux": {"security_context": {"namespace_options": {
                      "network": pb.NODE, "pid": pb.CONTAINER}}}}
        config = merge(config, changes)
        os.makedirs(config["log_directory"], exist_ok=True)  # as the kubelet does
        return config

    def pod(self, **changes):
        return Pod(self, self.pod_config(**changes))

    def own_network_pod(self, **changes):
        """A pod with a network namespace, for which the group must have called write_cni."""
        own = {"hostname": "a-pod", "linux": {"security_context": {"namespace_options": {
            "network": pb.POD}}}}
        return self.pod(**merge(own, changes))

    def pull(self, name):
        return self.cri.PullImage(image={"image": name}).image_ref

    def remove_all(self):
        """Removes every pod: a test leaves its own behind on purpose, and it is part of the test that
        they can be removed whatever state it left them in."""
        for pod in self.cri.ListPodSandbox().items:
            self.cri.StopPodSandbox(pod_sandbox_id=pod.id)
            self.cri.RemovePodSandbox(pod_sandbox_id=pod.id)
        equal(len(self.cri.ListContainers().containers), 0, "containers after all pods are removed")


def running(mark):
    """The processes that have `mark` in their command line."""
    return [pid for pid, line in processes().items() if mark in line]


def pid_of(container):
    """The container's process, found by its last argument, which must be one that only it has."""
    mark = container.config["command"][-1]
    found = until(f"{mark} runs", lambda: running(mark))
    equal(len(found), 1, f"number of processes with {mark}")
    return found[0]


# -- leaks ----------------------------------------------------------------------------------------

def processes():
    """pid to command line, of all processes with one (kernel threads and zombies have none)."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                line = f.read()
            with open(f"/proc/{pid}/stat") as f:
                zombie = f.read().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            continue
        if line or zombie:
            found[int(pid)] = line.replace(b"\0", b" ").decode(errors="replace") or "a zombie"
    return found


def mounts():
    with open("/proc/self/mountinfo") as f:
        return sorted(" ".join(line.split()[3:5]) for line in f)


def tree(top, leave_out=()):
    out = []
    for path, directories, files in os.walk(top):
        directories[:] = [d for d in directories
                          if os.path.relpath(os.path.join(path, d), top) not in leave_out]
        out += [os.path.relpath(os.path.join(path, n), top) for n in directories + files]
    return sorted(out)


def cgroups():
    top = cgroup2_mount()
    return sorted(os.path.relpath(p, top) for p, _, _ in os.walk(top)) if top else []


def descriptors(pid):
    """What the process has open, without the numbers that differ each time."""
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{fd}")))
        except OSError:
            pass
    return sorted(names)


def world(krun):
    """All that a pod could leave behind. Each member is a sorted list of strings."""
    links = json.loads(subprocess.check_output(["ip", "-j", "link"]))
    alive = krun.process and krun.process.poll() is None
    mine = {os.getpid(), krun.process.pid if alive else 0}
    return {
        "mounts": mounts(),
        "network namespaces": sorted(os.listdir("/run/netns")),
        "links": sorted(link["ifname"] for link in links if link["ifname"] != BRIDGE),
        "addresses": krun.reserved_addresses(),
        "cgroups": cgroups(),
        "processes": sorted(v for k, v in processes().items() if k not in mine),
        "descriptors": descriptors(krun.process.pid) if alive else [],
        "run directory": tree(krun.run),
        "root directory": [p for p in tree(krun.root, ("images", "layers")) if p != "logs"],
    }


def vanished(mount):
    """Whether the directory of a mount that is gone is gone too. A mount of somebody else on this machine
    goes so: the kernel ends it in all namespaces when its directory is removed outside (rmdir(2))."""
    return not os.path.lexists(mount.split()[1].encode().decode("unicode_escape"))


def difference(before, after):
    lines = []
    for name in before:
        more = collections.Counter(after[name]) - collections.Counter(before[name])
        less = collections.Counter(before[name]) - collections.Counter(after[name])
        if name == "descriptors":  # what the test before had not yet closed may go
            less = None
        if name == "mounts":
            less = [m for m in less.elements() if not vanished(m)]
        if name == "root directory":  # what was on its way out before
            less = [p for p in less.elements() if not p.startswith("trash/")]
        for mark, entries in (("left behind", more), ("gone", less)):
            if entries:
                lines.append(f"{name} {mark}: {sorted(collections.Counter(entries).elements())[:12]}")
    return "; ".join(lines)


def compare_worlds(krun, before, ignore=()):
    """Fails unless the world is, within the deadline, as it was. What a test has thrown away may be large:
    the deadline begins when krun has removed it."""
    last = {}

    def same():
        # A removal may begin only now, and end at any time: what it has to say is waited for first.
        until("krun has removed what was thrown away", lambda: "krun remove " not in processes().values(), 4 * DEADLINE)
        after = world(krun)
        last["text"] = difference({k: v for k, v in before.items() if k not in ignore}, after)
        return not last["text"]
    end = time.monotonic() + DEADLINE / 3
    while not same():
        if time.monotonic() > end and not same():  # once more: the last wait may have been for a removal
            raise Failure(last["text"])
        time.sleep(0.01)


# -- running tests --------------------------------------------------------------------------------

TESTS = collections.OrderedDict()  # module name to its tests, as they stand in the file


def test(function):
    """Marks a test. Its name is a sentence that can be false."""
    TESTS.setdefault(function.__module__, []).append(function)
    return function


class Score:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def run(self, title, function, *arguments):
        """Runs one test and says how it went. A hang is ended by an alarm. True unless it failed."""
        def late(*_):
            raise Failure("the test hangs; " + "".join(traceback.format_stack(limit=6)))
        signal.signal(signal.SIGALRM, late)
        signal.alarm(int(10 * DEADLINE))
        began = time.monotonic()
        try:
            function(*arguments)
        except Skipped as why:
            self.skipped += 1
            print(f"SKIP   {title}: {why}", flush=True)
            return True
        except Exception as error:  # pylint: disable=broad-except
            self.failed += 1
            print(f"FAILED {title}", flush=True)
            text = str(error) if isinstance(error, Failure) else describe(error)
            place = traceback.extract_tb(error.__traceback__)
            where = next((f for f in reversed(place) if "/test_" in f.filename), place[-1])
            print(f"       {os.path.basename(where.filename)}:{where.lineno}: {text}", flush=True)
            return False
        finally:
            signal.alarm(0)
        self.passed += 1
        print(f"ok     {title} ({time.monotonic() - began:.2f} s)", flush=True)
        return True

    def line(self):
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def describe(error):
    if isinstance(error, grpc.RpcError):
        return f"gRPC {error.code().name}: {error.details()}"
    return "".join(traceback.format_exception_only(type(error), error)).strip() + " " + \
        "".join(traceback.format_tb(error.__traceback__)[-2:])


def one_test(krun, function):
    """A test, the removal of what it made, and the look around whether anything stayed. A group may
    have a function before_each, for what its tests change."""
    getattr(sys.modules[function.__module__], "before_each", lambda _: None)(krun)
    before = world(krun)
    try:
        function(krun)
        if krun.process.poll() is not None:
            raise Failure(f"the daemon ended: {krun.log_end()}")
    finally:
        if krun.process.poll() is not None or not krun.cri:
            krun.start()
        krun.remove_all()
    compare_worlds(krun, before, ("descriptors",) if getattr(function, "restarts", 0) else ())


def restarts(function):
    """For a test that ends the daemon: the new one's descriptors are not the old one's."""
    function.restarts = True
    return function


def run_group(module, score, wanted):
    """One group: its daemon, its tests, and then the machine must be as it was before."""
    title = module.__name__[5:]
    tests = [t for t in TESTS.get(module.__name__, []) if not wanted or
             any(w in f"{title}: {t.__name__.replace('_', ' ')}" for w in wanted)]
    if not tests:
        return
    directory = tempfile.mkdtemp(prefix="krun-test-")
    krun = Krun(directory, getattr(module, "FLAGS", ()))
    before = world(krun)
    try:
        if not score.run(f"{title}: the daemon starts", begin_group, krun, module):
            print(krun.log_end() if os.path.exists(directory + "/daemon.log") else "", flush=True)
            return
        for function in tests:
            name = function.__name__.replace("_", " ")
            if not score.run(f"{title}: {name}", one_test, krun, function) and \
                    os.environ.get("KRUN_TEST_LOG"):
                print("       the daemon's log: " + krun.log_end(), flush=True)
        if hasattr(module, "teardown"):
            module.teardown(krun)
        score.run(f"{title}: nothing is left behind", end_group, krun, before)
    finally:
        if krun.process and krun.process.poll() is None:
            krun.kill()
        subprocess.call(["ip", "link", "del", BRIDGE], stderr=subprocess.DEVNULL)
        if os.environ.get("KRUN_TEST_KEEP"):
            print(f"       kept: {directory}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def begin_group(krun, module):
    krun.allow_http("127.0.0.1:5000", "127.0.0.1:5001")
    krun.start()
    if getattr(module, "IMAGE", True):
        krun.pull(krun.image)
        krun.pod().start().stop()  # what is made once for all pods is there from now on
        krun.remove_all()
    if hasattr(module, "setup"):
        module.setup(krun)
        krun.remove_all()


def end_group(krun, before):
    """After SIGTERM with no pods nothing may remain but images."""
    equal(krun.stop(), 0, "the daemon's exit status")
    compare_worlds(krun, before, ("root directory", "run directory"))
    left = [p for p in tree(krun.root, ("images", "layers")) if p.startswith(("pods/", "tmp/"))]
    equal(left, [], "files left in the root directory")
    sockets = [p for p in tree(krun.run) if not os.path.isdir(os.path.join(krun.run, p))]
    equal([s for s in sockets if "pods" in s or s.endswith(".sock")], [], "files left in --run")
