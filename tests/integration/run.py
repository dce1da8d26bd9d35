#!/usr/bin/python3
"""run.py [GROUP|WORDS]...: the integration tests, in a sandbox; all of them, or those named.

A group is a file test_GROUP.py. WORDS pick tests by their names. Environment:
  KRUN               the binary (krun at the top of the repository)
  KRUN_CRICTL        crictl, for that group
  KRUN_OLD           binaries of earlier kruns, with colons between them, for the tests of an upgrade and of
                     the way back (those that tests/earlier.sh builds)
  KRUN_TEST_LANES=2  so many sandboxes side by side; each takes the next group that nobody has taken
  KRUN_TEST_SLOWNESS multiplies the deadlines (in a virtual machine)
  KRUN_TEST_KEEP=1   keeps the directories; KRUN_TEST_LOG=1 shows the daemon's log of a failed test
"""
import glob
import os
import re
import subprocess
import sys
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
ORDER = ["daemon", "http2", "images", "store", "registries", "pull", "airgap", "strange", "trees", "hostile", "fields", "pods",
         "network", "containers", "exec", "logs", "restart", "leftovers", "faults", "cli", "crictl", "limits"]
LONGEST = ["trees", "hostile", "faults", "store", "registries", "airgap", "http2"]  # they go first into the lanes


def push_images(registry):
    """The images that every group may use."""
    import images
    import testimages
    for (repository, tag), image in testimages.all_images().items():
        images.push(image, registry.address, repository, tag)


def take(name):
    """Whether this lane is the first to ask for the group. Without lanes it always is."""
    lanes = os.environ.get("KRUN_TEST_TAKEN")
    if not lanes:
        return True
    try:
        os.close(os.open(f"{lanes}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return True
    except FileExistsError:
        return False


def main(arguments):
    sys.path.insert(0, HERE)
    import harness
    import registry
    names = [os.path.basename(p)[5:-3] for p in glob.glob(HERE + "/test_*.py")]
    names.sort(key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    groups = [n for n in names if n in arguments] or names
    words = [a for a in arguments if a not in names]
    if os.environ.get("KRUN_TEST_TAKEN"):
        groups.sort(key=lambda n: LONGEST.index(n) if n in LONGEST else len(LONGEST))
    score = harness.Score()
    with tempfile.TemporaryDirectory(prefix="krun-registry-") as directory:
        server = registry.Registry(directory)
        try:
            push_images(server)
            for name in filter(take, groups):
                harness.run_group(__import__("test_" + name), score, words)
        finally:
            server.stop()
    print(score.line(), flush=True)
    return 1 if score.failed or not score.passed else 0


def build_earlier(arguments):
    """The kruns that an upgrade begins with, for the group that needs them. In the sandbox git and the
    compiler would work as well, but several lanes would build at a time."""
    groups = [a for a in arguments if os.path.exists(f"{HERE}/test_{a}.py")]
    if "KRUN_OLD" not in os.environ and (not groups or "restart" in groups):
        done = subprocess.run([os.path.join(os.path.dirname(HERE), "earlier.sh")], stdout=subprocess.PIPE, text=True)
        os.environ["KRUN_OLD"] = done.stdout.strip()


def lanes(command, count):
    """Runs the command so often, side by side, and adds up what they say. Lines come as they are made."""
    totals, states = [0, 0, 0], []

    def lane(environment):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=environment) as process:
            for line in process.stdout:
                found = re.fullmatch(r"(\d+) passed, (\d+) failed, (\d+) skipped\n", line)
                if found:
                    totals[:] = [a + int(b) for a, b in zip(totals, found.groups())]
                else:
                    print(line, end="", flush=True)
        states.append((process.returncode, bool(found)))
    with tempfile.TemporaryDirectory(prefix="krun-lanes-") as taken:
        environment = dict(os.environ, KRUN_TEST_TAKEN=taken)
        threads = [threading.Thread(target=lane, args=(environment,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    broken = [code for code, counted in states if not counted or code not in (0, 1)]
    totals[1] += len(broken)  # a lane that ended without its totals
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped", flush=True)
    return 1 if totals[1] or not totals[0] else 0


if __name__ == "__main__":
    if os.environ.get("KRUN_IN_SANDBOX") != "1":
        os.environ["KRUN_IN_SANDBOX"] = "1"
        build_earlier(sys.argv[1:])
        sandbox = os.path.join(os.path.dirname(HERE), "sandbox.py")
        inside = [sys.executable, sandbox, sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        wanted = int(os.environ.get("KRUN_TEST_LANES", "1"))
        if wanted > 1:
            sys.exit(lanes(inside, wanted))
        os.execv(sys.executable, inside)
    sys.exit(main(sys.argv[1:]))
