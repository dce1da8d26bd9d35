"""How fast, how small: a CRI runtime measured from outside, by its socket. run.sh starts it.

  bench.py [--out FILE] [--label TEXT] [--workloads A,B,...] [--runs N] [--limit PROGRAM] [--peer NAME]
  bench.py --compare FILE FILE...      medians side by side, and ratios to the first
Workloads: version pod podcni exec pods cold pull log size. All times are medians of what a client sees.
What a column is compared with must come from the same machine: the files say which it was.
"""
import argparse
import ctypes
import itertools
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
for part in ("integration", "images"):
    sys.path.insert(0, os.path.join(os.path.dirname(HERE), part))
import harness  # noqa: E402
import registry  # noqa: E402
import bench_images  # noqa: E402
from harness import pb  # noqa: E402
from wire import Wire  # noqa: E402

PAYLOAD = "98761"  # in the command line of every process that runs in a container
RUNTIME = "/runtime.v1.RuntimeService/"
TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
MIB = 1 << 20
WORKLOADS = ["version", "pod", "podcni", "exec", "cold", "pods", "pull", "log", "size"]


# -- numbers --------------------------------------------------------------------------------------

def summary(values, unit="ms"):
    """Of a series: the median, and how far it spreads."""
    v = sorted(values)

    def at(share):
        return round(v[min(len(v) - 1, int(share * len(v)))], 4)
    return {"unit": unit, "n": len(v), "min": round(v[0], 4), "median": at(0.5), "p95": at(0.95),
            "p99": at(0.99), "max": round(v[-1], 4)}


def single(value, unit, **more):
    return {"unit": unit, "median": round(value, 4), **more}


def milliseconds(function, times, warm_up=3):
    series = []
    for _ in range(times + warm_up):
        began = time.perf_counter()
        function()
        series.append((time.perf_counter() - began) * 1e3)
    return series[warm_up:]


class Laps:
    """Times of the steps of one cycle, in ms, gathered over many cycles."""

    def __init__(self):
        self.series = {}

    def note(self, name, began):
        end = time.perf_counter()
        self.series.setdefault(name, []).append((end - began) * 1e3)
        return end


# -- processes ------------------------------------------------------------------------------------

def read(path, otherwise=b""):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return otherwise


def pids():
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def stat(pid):
    """The fields of /proc/PID/stat from `state` on (proc_pid_stat(5), field 3)."""
    return read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(") ")[2].split()


def cpu_seconds(pid):
    """User and system time of a process and of the children it has waited for."""
    fields = stat(pid)
    return sum(int(f) for f in fields[11:15]) / TICKS if fields else 0


def pss(pid):
    """Proportional set size in KiB."""
    for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1])
    return 0


def machine_busy():
    """CPU seconds that the whole machine has worked."""
    fields = [int(f) for f in read("/proc/stat").split(b"\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


# -- the runtime under test ---------------------------------------------------------------------

class Bench:
    def __init__(self, krun, sizes):
        self.krun, self.sizes = krun, sizes
        self.image = "127.0.0.1:5000/bench/busybox:1"
        self.results = {}
        # What the runtime leaves running becomes our child, and its CPU time ours to count.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.before = pids() | {os.getpid()}
        self.names = itertools.count()

    def put(self, name, result):
        self.results[name] = result
        print(f"  {name:34} {result['median']:>12} {result['unit']}", file=sys.stderr, flush=True)

    def cri(self):
        return harness.Cri(self.krun.socket)

    def ours(self):
        """The runtime's processes: all that came since, but for what runs in containers."""
        found = []
        for pid in pids() - self.before:
            state, parent = (stat(pid) + ["", ""])[:2]
            if state == "Z" and parent == str(os.getpid()) and pid != self.krun.process.pid:
                os.waitpid(pid, 0)
            elif PAYLOAD.encode() not in read(f"/proc/{pid}/cmdline", PAYLOAD.encode()):
                found.append(pid)
        return found

    def cpu(self):
        used = sum(cpu_seconds(pid) for pid in self.ours())
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used + ended.ru_utime + ended.ru_stime

    def pod_config(self, network):
        name = f"bench-{next(self.names)}"
        changes = {"metadata": {"name": name, "uid": name}}
        if network == "cni":
            changes.update(hostname=name, linux={"security_context": {"namespace_options": {
                "network": pb.POD}}})
        return self.krun.pod_config(**changes)

    def up(self, cri, network="host", command=("sleep", PAYLOAD), laps=None):
        """A pod with one container, running; gives what is needed to stop it."""
        laps = laps or Laps()
        pod = self.pod_config(network)
        container = {"metadata": {"name": "c"}, "image": {"image": self.image}, "command": command,
                     "log_path": "c.log", "linux": {
                         "resources": {"memory_limit_in_bytes": 256 * MIB, "cpu_shares": 102},
                         "security_context": pod["linux"]["security_context"]}}
        began = time.perf_counter()
        pod_id = cri.RunPodSandbox(config=pod).pod_sandbox_id
        then = laps.note("RunPodSandbox", began)
        container_id = cri.CreateContainer(pod_sandbox_id=pod_id, config=container,
                                           sandbox_config=pod).container_id
        then = laps.note("CreateContainer", then)
        cri.StartContainer(container_id=container_id)
        laps.note("StartContainer", then)
        laps.note("to_running", began)
        return pod_id, container_id, pod["log_directory"] + "/c.log"

    def down(self, cri, pod_id, container_id, _log=None, laps=None):
        laps = laps or Laps()
        began = time.perf_counter()
        cri.StopContainer(container_id=container_id, timeout=0)
        then = laps.note("StopContainer", began)
        cri.RemoveContainer(container_id=container_id)
        then = laps.note("RemoveContainer", then)
        cri.StopPodSandbox(pod_sandbox_id=pod_id)
        then = laps.note("StopPodSandbox", then)
        cri.RemovePodSandbox(pod_sandbox_id=pod_id)
        laps.note("RemovePodSandbox", then)
        laps.note("to_gone", began)


# -- workloads ------------------------------------------------------------------------------------

def version(b, times=2000):
    wire, cri = Wire(b.krun.socket), b.cri()
    before = b.cpu()
    b.put("version.raw", summary(milliseconds(lambda: wire.call(RUNTIME + "Version"), times, 200)))
    b.put("version.cpu", single((b.cpu() - before) / (times + 200) * 1e3, "ms"))
    b.put("version.grpcio", summary(milliseconds(cri.Version, times // 2, 100)))
    wire.close()
    cri.close()


def cycles(b, title, network, times):
    cri, laps = b.cri(), Laps()
    b.down(cri, *b.up(cri, network))
    before = b.cpu()
    for _ in range(times):
        began = time.perf_counter()
        b.down(cri, *b.up(cri, network, laps=laps), laps=laps)
        laps.note("cycle", began)
    b.put(f"{title}.cpu", single((b.cpu() - before) / times * 1e3, "ms"))
    for name, series in laps.series.items():
        b.put(f"{title}.{name}", summary(series))
    cri.close()


def pod(b):
    cycles(b, "pod_host", "host", 60)


def podcni(b):
    cycles(b, "pod_cni", "cni", 30)


def exec_(b, times=100):
    cri = b.cri()
    made = b.up(cri)

    def run():
        answer = cri.ExecSync(container_id=made[1], cmd=["true"])
        assert answer.exit_code == 0
    before = b.cpu()
    b.put("exec_sync", summary(milliseconds(run, times)))
    b.put("exec_sync.cpu", single((b.cpu() - before) / times * 1e3, "ms"))
    b.down(cri, *made)
    cri.close()


def in_parallel(b, clients, jobs, work):
    """Every job once, by as many clients with a connection each; gives the seconds that it took."""
    left, lock, failures = iter(jobs), threading.Lock(), []

    def client():
        cri = b.cri()
        try:
            cri.Version()
            gate.wait()
            while True:
                with lock:
                    job = next(left, None)
                if job is None:
                    return
                work(cri, job)
        except Exception as error:  # pylint: disable=broad-except
            failures.append(error)
            gate.abort()
        finally:
            cri.close()
    gate = threading.Barrier(clients + 1)
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - began


def lists(b, cri, count, times=200):
    wire = Wire(b.krun.socket)
    for name in ("ListPodSandbox", "ListContainers"):
        raw = milliseconds(lambda: wire.call(RUNTIME + name), times)  # pylint: disable=all
        b.put(f"list{count}.{name}", summary(raw))
    try:
        b.put(f"list{count}.ListContainerStats", summary(milliseconds(cri.ListContainerStats, times)))
    except harness.grpc.RpcError as error:
        if error.code() != harness.grpc.StatusCode.UNIMPLEMENTED:
            raise
    wire.close()


def pods(b, count=50, clients=10):
    """Many pods at once: how fast they come, what they weigh, how the lists and a restart are then."""
    idle = sum(pss(pid) for pid in b.ours())
    b.put("daemon.pss_idle", single(pss(b.krun.process.pid) / 1024, "MiB"))
    made, laps = [], Laps()
    took = in_parallel(b, clients, range(count), lambda cri, _: made.append(b.up(cri, laps=laps)))
    b.put("parallel.pods_per_s", single(count / took, "pods/s", clients=clients, pods=count))
    b.put("parallel.to_running", summary(laps.series["to_running"]))
    signal.sigtimedwait([], 1)  # threads that have nothing to do any more end
    mine = b.ours()
    b.put("density.pss_per_pod", single((sum(pss(p) for p in mine) - idle) / count, "KiB"))
    b.put("density.helpers_per_pod", single((len(mine) - 1) / count, "processes"))
    b.put("density.daemon_pss", single(pss(b.krun.process.pid) / 1024, "MiB"))
    cri = b.cri()
    lists(b, cri, count)
    cri.close()
    cold(b, count)
    cri = b.cri()
    running = [c for c in cri.ListContainers().containers if c.state == pb.CONTAINER_RUNNING]
    assert len(running) == count, f"{len(running)} of {count} containers are running after the restarts"
    took = in_parallel(b, clients, made, lambda each, job: b.down(each, *job))
    b.put("parallel.removed_per_s", single(count / took, "pods/s"))
    assert not cri.ListPodSandbox().items, "pods are left"
    cri.close()


def answer_time(b, method):
    """Starts the daemon; ms until it has answered."""
    began = time.perf_counter()
    b.krun.spawn()
    while True:
        try:
            wire = Wire(b.krun.socket)
            wire.call(RUNTIME + method)
            wire.close()
            return (time.perf_counter() - began) * 1e3
        except (OSError, RuntimeError):
            assert b.krun.process.poll() is None, "the daemon has ended"
            signal.sigtimedwait([], 0.0002)


def cold(b, count=0, times=7):
    """From exec of the daemon to its first answer."""
    for name, method in (("version", "Version"), ("list", "ListPodSandbox")):
        series = []
        for _ in range(times):
            b.krun.stop()
            series.append(answer_time(b, method))
        b.put(f"cold{count}.{name}", summary(series))


class Peak:
    """The most memory (PSS) that all processes of the runtime have at a time, looked at every 10 ms."""

    def __init__(self, b):
        self.b, self.most, self.ended = b, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ended.wait(0.01):
            self.most = max(self.most, sum(pss(pid) for pid in self.b.ours()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def pull(b, times=5):
    """Each image pulled and removed again; memory is looked at in pulls of its own, for looking costs.
    krun removes layers after it has answered, so each pull waits until they are gone."""
    cri, layers = b.cri(), b.krun.root + "/layers"
    before_all = os.listdir(layers) if os.path.isdir(layers) else []

    def remove(image):
        cri.RemoveImage(image=image)
        harness.until("its layers are gone", lambda: not before_all or len(os.listdir(layers)) == len(before_all))

    for kind, size in b.sizes.items():
        image, series, before, used = {"image": f"127.0.0.1:5000/bench/big-{kind}:1"}, [], 0, []
        for _ in range(times + 1):
            os.sync()
            before, began = b.cpu(), time.perf_counter()
            cri.PullImage(image=image)
            series.append(time.perf_counter() - began)
            used.append(b.cpu() - before)
            remove(image)
        with Peak(b) as peak:
            cri.PullImage(image=image)
        remove(image)
        b.put(f"pull.{kind}", summary(series[1:], "s"))
        rate = size / 1e6 / summary(series[1:])["median"]
        b.put(f"pull.{kind}.rate", single(rate, "MB/s", bytes=size))
        b.put(f"pull.{kind}.cpu", summary(used[1:], "s"))
        b.put(f"pull.{kind}.peak", single(peak.most / 1024, "MiB"))
    cri.close()


def last_growth(path, size):
    """Waits until the file has been written in full; gives the time of that."""
    grown, since = -1, time.perf_counter()
    while time.perf_counter() - since < 1 or grown < size:
        now = os.path.getsize(path)
        if now != grown:
            grown, since = now, time.perf_counter()
        assert time.perf_counter() - since < 60, f"{path} has stopped growing at {grown} bytes"
        signal.sigtimedwait([], 0.002)
    return since


def log(b, times=3, repeats=20):
    """A container that prints as fast as it can. Every line must arrive, whole."""
    cri, rates, used = b.cri(), [], []
    lines = bench_images.LINES * repeats
    payload = lines * 129
    command = ["sh", "-c", "cat " + "/lines " * repeats + "; sleep " + PAYLOAD]
    for _ in range(times):
        os.sync()
        before, began = b.cpu(), time.perf_counter()
        made = b.up(cri, command=command)
        rates.append(payload / 1e6 / (last_growth(made[2], payload) - began))
        used.append((b.cpu() - before) / payload * 1e9)
        with open(made[2], "rb") as f:
            whole = sum(line[30:80].find(b" stdout F ") >= 0 for line in f)
        assert whole == lines, f"{whole} of {lines} lines have arrived whole"
        b.down(cri, *made)
        os.unlink(made[2])
    b.put("log.rate", summary(rates, "MB/s"))
    b.put("log.cpu", summary(used, "s/GB"))
    cri.close()


def size(b):
    b.put("size.binary", single(os.path.getsize(harness.KRUN) / MIB, "MiB"))


# -- another runtime, by the same client ---------------------------------------------------------

CONTAINERD = """version = 2
root = "{d}/root"
state = "{d}/run"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs"]
[grpc]
  address = "{d}/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{d}/certs"
"""


class Containerd(harness.Krun):
    """A containerd on directories of its own: Debian's, or the program that KRUN_PEER names. Only for
    pulls: it gets no runc and no network."""

    def __init__(self, directory):
        super().__init__(directory)
        self.socket = self.run + "/containerd.sock"
        with open(directory + "/config.toml", "w") as f:
            f.write(CONTAINERD.format(d=directory))

    def command(self):
        return [os.environ.get("KRUN_PEER", "containerd"), "--config", self.directory + "/config.toml", "--log-level", "warn"]

    def remove_all(self):
        pass


PEERS = {"containerd": Containerd}


# -- all of it --------------------------------------------------------------------------------

def quiet(patience):
    """Waits until the machine has little else to do, but not for ever."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        busy = machine_busy()
        signal.sigtimedwait([], 0.3)
        if machine_busy() - busy < 0.05:
            return


def attempt(b, name):
    """One run of a workload: its results, and how many cores others used meanwhile. (Containers, the
    registry and kernel threads are others too; /proc counts in 10 ms: it is good for comparing.)"""
    b.results = {}
    busy, mine, own, began = machine_busy(), b.cpu(), time.process_time(), time.perf_counter()
    try:
        globals()["exec_" if name == "exec" else name](b)
    except Exception as error:  # pylint: disable=broad-except
        print(f"  {name} has failed: {harness.describe(error)}", file=sys.stderr, flush=True)
        b.put(name + ".failed", single(1, "", error=str(error)[:500]))
        b.krun.remove_all()
    took = time.perf_counter() - began
    others = machine_busy() - busy - (b.cpu() - mine) - (time.process_time() - own)
    b.results["other_cpu." + name] = single(others / took, "cores")
    return b.results


def measure(b, names, runs, patience):
    """All workloads, `runs` times over; of each the run that was disturbed least."""
    best = {}
    for _ in range(runs):
        for name in names:
            print(name, file=sys.stderr, flush=True)
            quiet(patience)
            noise = "other_cpu." + name
            results = attempt(b, name)
            if name not in best or results[noise]["median"] < best[name][noise]["median"]:
                best[name] = results
    return {key: value for name in names for key, value in best[name].items()}


def limits(program):
    """The kernel's own price of the same steps: see limit.c."""
    with tempfile.TemporaryDirectory(prefix="krun-limit-") as directory:
        text = subprocess.run([program, directory], stdout=subprocess.PIPE, check=True).stdout.decode()
    results = {}
    for line in text.splitlines():
        name, unit, count, low, middle, high = line.split()
        results["limit." + name] = {"unit": unit, "n": int(count), "min": float(low),
                                    "median": float(middle), "p95": float(high)}
    return results


def machine():
    cpu = next((line.split(b":")[1].strip().decode() for line in read("/proc/cpuinfo").splitlines()
                if line.startswith(b"model name")), platform.machine())
    return {"kernel": platform.release(), "cpu": cpu, "cpus": os.cpu_count(),
            "load": os.getloadavg()}


def write_network(krun):
    """A bridge with addresses, and nothing else: every plugin more is a process more, twice a pod."""
    krun.write_cni()
    path = krun.cni + "/10-test.conflist"
    with open(path) as f:
        network = json.load(f)
    del network["plugins"][1:]
    with open(path, "w") as f:
        json.dump(network, f)


def fresh_directory():
    """A directory that ext4 puts into a block group of its own choice (chattr(1), T), as on a new machine:
    where thousands of files were removed in the last minutes, making one costs a millisecond, and whoever
    is measured next would pay for what was removed before."""
    top = tempfile.mkdtemp(prefix="krun-bench-")
    subprocess.call(["chattr", "+T", top], stderr=subprocess.DEVNULL)
    return tempfile.mkdtemp(dir=top)


def run(options):
    directory = fresh_directory()
    krun = PEERS.get(options.peer, harness.Krun)(directory)
    server = registry.Registry(directory + "/registry")
    try:
        names = [n for n in WORKLOADS if n in options.workloads.split(",")]
        kinds = tuple(bench_images.BIG) if "pull" in names else ()
        sizes = bench_images.push_all(server.address, options.cache, kinds)
        krun.allow_http(server.address)
        write_network(krun)
        b = Bench(krun, sizes)
        krun.start()
        krun.pull(b.image)
        results = measure(b, names, options.runs, options.quiet)
        if options.limit:
            quiet(options.quiet)
            results.update(limits(options.limit))
    finally:
        if krun.cri is None and krun.process and krun.process.poll() is None:
            krun.cri = harness.Cri(krun.socket)
        if krun.cri:
            krun.remove_all()
        krun.stop()
        server.stop()
        subprocess.call(["ip", "link", "del", harness.BRIDGE], stderr=subprocess.DEVNULL)
        shutil.rmtree(os.path.dirname(directory), ignore_errors=True)
    with open(options.out, "w") as f:
        json.dump({"label": options.label, "machine": machine(), "results": results}, f, indent=1)
    print_table(options.out)
    return any(name.endswith(".failed") for name in results)


def print_table(*files):
    columns = []
    for path in files:
        with open(path) as f:
            columns.append(json.load(f))
    names = list(dict.fromkeys(n for c in columns for n in c["results"]))
    print(f"{'':36}{'unit':>10}" + "".join(f"{c['label'][:12]:>13}" for c in columns))
    for name in names:
        values = [c["results"].get(name, {}).get("median") for c in columns]
        unit = next(c["results"][name]["unit"] for c in columns if name in c["results"])
        cells = "".join(f"{v:>13.3f}" if v is not None else f"{'-':>13}" for v in values)
        ratios = "".join(f"{v / values[0]:>8.2f}x" for v in values[1:] if v is not None and values[0])
        print(f"{name:36}{unit:>10}{cells}{ratios}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs="+", metavar="FILE")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--label", default=None, help="the column's heading")
    parser.add_argument("--peer", choices=PEERS, help="measure this one, if it is installed; pulls only")
    parser.add_argument("--out", default="bench.json")
    parser.add_argument("--limit", metavar="PROGRAM", help="limit.c, built")
    parser.add_argument("--runs", type=int, default=1, metavar="N",
                        help="of each workload keep the quietest of N runs")
    parser.add_argument("--quiet", type=float, default=5, metavar="SECONDS",
                        help="wait so long for a quiet machine before each workload")
    parser.add_argument("--cache", default=os.environ.get("KRUN_TEST_CACHE", "/tmp"))
    options = parser.parse_args()
    options.label = options.label or options.peer or "krun"
    if options.peer:
        options.workloads = "pull"
    if options.compare:
        print_table(*options.compare)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
