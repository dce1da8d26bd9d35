#!/usr/bin/python3
"""crash.py: the crash campaign; what `make crash` runs. As root, in a sandbox of its own.

Clients make, use and remove pods, containers and images, all at random, while the daemon, the
daemon that just starts, monitors, pause processes or several of these at once are killed. After each
round everything that was acknowledged must be there, in its state, with its exit code and its log; then
all is removed, under kills again, and nothing may be left: mounts, network namespaces, links,
addresses, cgroups, processes, files. Each event of a pod or a container must be one that its table
has; which of them were met is printed. The last line is `N passed, N failed, N skipped`, in rounds.

  ROUNDS=30   how many
  CLIENTS=6   how many work at once
  SEED=n      the first round's seed; a round that failed prints its own. ROUNDS=1 SEED=that makes the
              same choices again; how processes interleave is not repeated
  KILLS="daemon starting"   only these of the kinds that are listed below
  KRUN=FILE   the binary; KRUN_TEST_KEEP=1 keeps the directories
"""
import collections
import glob
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for part in ("integration", "images", "crash"):
    sys.path.insert(0, os.path.join(TESTS, part))

KINDS = ("daemon", "daemon", "daemon", "daemon ends", "starting", "starting", "monitor", "monitor",
         "pause", "part", "part", "all at once")
CHOSEN = [k for k in KINDS if k in os.environ.get("KILLS", ",".join(KINDS))]
STEPS = 60  # of each client in a round


class World:
    """The daemon, what was killed so far, and the totals. The clients and the killer share it."""

    def __init__(self, krun, seed):
        self.krun, self.seed = krun, seed
        self.archives = tempfile.mkdtemp(prefix="krun-crash-")
        self.random = random.Random(seed)
        self.totals = collections.Counter()
        self.hurt = {}       # pod's ID to what of it was killed
        self.deaths = 0      # of the daemon: changes with each
        self.up = threading.Event()
        self.lock = threading.Lock()

    def count(self, what):
        with self.lock:
            self.totals[what] += 1

    def connection(self):
        """A new connection, once the daemon answers."""
        if not self.up.wait(2 * harness.DEADLINE):
            raise harness.Failure("the daemon is not up again")
        return harness.Cri(self.krun.socket)

    def marks(self):
        return self.deaths, len(self.hurt), sum(map(len, list(self.hurt.values())))

    def daemon_died_since(self, before):
        return self.deaths != before[0] or not self.up.is_set()

    def explains(self, before, pod):
        """Whether a kill explains that a call failed: one of this pod, or of one just being made."""
        return self.daemon_died_since(before) or (pod in self.hurt if pod else
                                                  self.marks() != before)


# -- kills ----------------------------------------------------------------------------------------

def monitor_number(krun, pod):
    """The pid of a pod's monitor as its record has it, or None."""
    try:
        with open(f"{krun.root}/pods/{pod}/pod.json") as f:
            found = re.search(r'"monitor_?pid": *(\d+)', f.read(), re.IGNORECASE)
    except OSError:
        return None
    return int(found[1]) if found else None


def of_krun(krun):
    """(pid, what, pod's ID) of each monitor, pause process, and part: a child of a monitor on its way to a
    program has its parent's name still, and so has a monitor that is not on record yet."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as f:
                words = f.read().split("\0")
            with open(f"/proc/{pid}/comm") as f:
                name = f.read().strip()
        except OSError:
            continue
        if words[:2] == ["krun", "monitor"] and len(words) > 2:
            kind = "pause" if name == "krun-pause" else \
                "monitor" if int(pid) == monitor_number(krun, words[2]) else "part"
            yield int(pid), kind, words[2]


def kill_of_pod(world, kind):
    """Kills a process of a pod, if there is one of that kind; says so first, for a client could see it before we have noted it."""
    found = sorted((p for p in of_krun(world.krun) if p[1] == kind), key=lambda p: p[2])
    if not found:
        return
    pid, _, pod = world.random.choice(found)
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if (pid, kind, pod) in of_krun(world.krun):  # the number has not been given to another one
            with world.lock:
                world.hurt[pod] = world.hurt.get(pod, ()) + (kind,)
            signal.pidfd_send_signal(process, signal.SIGKILL)
            world.count(f"kills of a {kind}")
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


def end_daemon(world, number):
    """Counts before and after: whoever looked in between has a connection to the dead one."""
    world.up.clear()
    world.deaths += 1
    world.krun.end(number)
    world.deaths += 1


def start_daemon(world):
    """Starts it; fails when it does not answer."""
    world.krun.start()
    world.up.set()


def strike(world, kind):
    if kind in ("monitor", "pause", "part"):
        return kill_of_pod(world, kind)
    if kind == "all at once":
        for what in [k for k in ("part", "pause", "monitor") if k in CHOSEN]:
            kill_of_pod(world, what)
    end_daemon(world, signal.SIGTERM if kind == "daemon ends" else signal.SIGKILL)
    world.count("ends of the daemon" if kind == "daemon ends" else "kills of the daemon")
    if kind == "starting":
        for _ in range(world.random.randrange(1, 4)):
            world.krun.spawn()
            time.sleep(world.random.random() ** 2 * 0.03)
            if kind == "starting" and world.random.random() < 0.2:
                kill_of_pod(world, "monitor")
            world.krun.end(signal.SIGKILL)
            world.count("kills of a starting daemon")
    start_daemon(world)
    return None


def kill_while(world, threads):
    """Kills one thing after the other, as long as the clients work."""
    while any(t.is_alive() for t in threads):
        time.sleep(0.01 + world.random.random() ** 3 * 0.4)
        if any(t.is_alive() for t in threads):
            strike(world, world.random.choice(CHOSEN))


# -- rounds ---------------------------------------------------------------------------------------

def in_parallel(world, clients, work, kills):
    """Each client's work in a thread of its own; the first complaint is raised."""
    complaints = []

    def run(client):
        try:
            work(client)
        except Exception as error:  # pylint: disable=broad-except
            complaints.append(error if isinstance(error, harness.Failure)
                              else harness.Failure(harness.describe(error)))
    threads = [threading.Thread(target=run, args=(c,)) for c in clients]
    for thread in threads:
        thread.start()
    try:
        if kills:
            kill_while(world, threads)
    finally:
        for thread in threads:
            thread.join()
    if complaints:
        raise complaints[0]


def steps(client):
    for _ in range(STEPS):
        client.step()


def one_round(world, clients, seed, before, last):
    """Work under kills, a look at all, removal under kills, and a look at what is left."""
    world.random = random.Random(f"{seed}")
    for client in clients:
        client.random = random.Random(f"{seed} {client.number}")
    in_parallel(world, clients, steps, kills=True)
    in_parallel(world, clients, lambda c: c.verify(), kills=False)
    if world.random.random() < 0.3 and not last:
        return  # the next round goes on with what there is
    in_parallel(world, clients, lambda c: c.remove_all(), kills=world.random.random() < 0.6)
    world.krun.cri = world.connection()
    for name in ("ListPodSandbox", "ListContainers"):
        left = getattr(world.krun.cri, name)()
        harness.check(not (left.items if name == "ListPodSandbox" else left.containers),
                      f"{name} after all was removed: {harness.short(left)}")
    forget_parts(world)
    harness.compare_worlds(world.krun, before, ("descriptors",))
    compare_stores(world)
    world.hurt.clear()


def forget_parts(world):
    """A download that was cut waits for a day to be gone on with: no leak."""
    for path in glob.glob(world.krun.root + "/blobs/*.part"):
        os.unlink(path)


def stored(krun):
    return {name: os.listdir(f"{krun.root}/{name}") for name in ("images", "layers")}


def compare_stores(world):
    """Fails unless images and layers are, within the deadline, what they were before."""
    try:
        harness.until("the store is as before", lambda: not harness.difference(
            world.stored, stored(world.krun)), harness.DEADLINE / 3)
    except harness.Failure:
        text = harness.difference(world.stored, stored(world.krun))
        harness.check(not text, text)


def begin_again(world, clients):
    """After a violation: what can be removed is, and the next round begins with the world as it is."""
    if not world.up.is_set() or world.krun.process.poll() is not None:
        world.krun.end(signal.SIGKILL)
        world.deaths += 1
        start_daemon(world)
    world.krun.cri = world.connection()
    for pod in world.krun.cri.ListPodSandbox().items:
        try:
            world.krun.cri.RemovePodSandbox(pod_sandbox_id=pod.id)
        except harness.grpc.RpcError as error:
            print(f"       pod {pod.id} cannot be removed: {error.details()}", flush=True)
    for client in clients:
        client.pods = []
        for name in client.images:
            client.until_done("RemoveImage", image={"image": name})
            client.images[name] = "absent"
    time.sleep(1)
    forget_parts(world)
    for path in glob.glob(world.krun.root + "/pods/*"):
        shutil.rmtree(path, ignore_errors=True)
    world.hurt.clear()
    world.stored = stored(world.krun)
    return harness.world(world.krun)


def campaign(world, rounds):
    clients = [model.Client(world, n) for n in range(model.CLIENTS)]
    before, passed, failed = harness.world(world.krun), 0, 0
    world.stored = stored(world.krun)
    for number in range(rounds):
        seed, began = world.seed + number, time.monotonic()
        try:
            one_round(world, clients, seed, before, number == rounds - 1)
            passed += 1
            print(f"ok     round {number + 1}, SEED={seed} ({time.monotonic() - began:.1f} s)", flush=True)
        except Exception as error:  # pylint: disable=broad-except
            failed += 1
            text = error if isinstance(error, harness.Failure) else \
                "".join(traceback.format_exception(error))
            print(f"FAILED round {number + 1}, SEED={seed}: {text}\n       the daemon's log: "
                  f"{world.krun.log_end(12)}", flush=True)
            before = begin_again(world, clients)
    return passed, failed


def main():
    rounds = int(os.environ.get("ROUNDS", "30"))
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"crash: {rounds} rounds, SEED={seed}", flush=True)
    directory = tempfile.mkdtemp(prefix="krun-crash-")
    # A copy: the binary may be built anew meanwhile.
    harness.KRUN = model.KRUN = shutil.copy(harness.KRUN, directory + "/krun")
    krun = harness.Krun(directory)
    krun.flags += ["--log-level", "debug"]
    server = registry.Registry(directory + "/registry")
    world = World(krun, seed)
    try:
        run.push_images(server)
        model.prepare_images(world, server)
        krun.allow_http("127.0.0.1:5000")
        krun.write_cni()
        krun.start()
        krun.pull(krun.image)
        krun.own_network_pod().start().stop()  # what is made once for all pods is there from now on
        krun.remove_all()
        world.up.set()
        passed, failed = campaign(world, rounds)
        failed += not machines.report(directory + "/daemon.log")
    finally:
        krun.end(signal.SIGKILL)
        server.stop()
        if os.environ.get("KRUN_TEST_KEEP"):
            print(f"crash: kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(world.archives, ignore_errors=True)
    print("crash: " + ", ".join(f"{n} {what}" for what, n in sorted(world.totals.items())))
    print(f"{passed} passed, {failed} failed, 0 skipped", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    if os.environ.get("KRUN_IN_SANDBOX") != "1":
        os.environ["KRUN_IN_SANDBOX"] = "1"
        os.execv("/usr/bin/python3", ["/usr/bin/python3", os.path.join(TESTS, "sandbox.py"),
                                      "/usr/bin/python3", os.path.abspath(__file__)])
    import harness
    import machines
    import model
    import registry
    import run
    sys.exit(main())
