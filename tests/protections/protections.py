#!/usr/bin/python3
"""protections.py [--fits] [WORDS]...: whether each of krun's protections has a test that goes red without
it; what `make protections` runs. As root.

list.py names the protections; WORDS choose some of them, by their names or their tests. Each is taken out of a copy of krun.c, the
copy is built, and the test that the list names must fail, after it has passed with the whole krun.c. A
protection whose test stays green is a survivor, and counts as a failure; so does an edit that does not
fit krun.c exactly once. With --fits only that is looked at: `make structure` does, without root.

A krun without a protection can do harm. So everything happens where all mounts of this machine are
read-only, but for memory file systems that go at the end, and in the sandbox of the integration tests.
The last line is `N passed, N failed, N skipped`.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.dirname(HERE))
from list import PROTECTIONS  # noqa: E402
from sandbox import cgroup2_mount  # noqa: E402

WRITABLE = ("/tmp", "/var/tmp", "/run", "/dev/shm", "/var/lib/containers", "/var/cache")


# -- the place ------------------------------------------------------------------------------------

def mount_points():
    with open("/proc/self/mountinfo") as f:
        return [line.split()[4].encode().decode("unicode_escape") for line in f]


def make_read_only():
    """In a mount namespace of our own. The cgroup tree stays: the sandbox makes one below it."""
    for point in mount_points():
        if point != cgroup2_mount() and not point.startswith("/proc"):
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=False,
                           stderr=subprocess.DEVNULL)
    for point in filter(os.path.isdir, WRITABLE):
        subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", point])
    for directory in ("/", "/etc", "/usr", "/root", "/var/lib", TOP):
        try:
            with tempfile.TemporaryFile(dir=directory):
                sys.exit(f"protections: {directory} is still writable")
        except OSError:
            pass
    os.environ.update(KRUN_READ_ONLY="1", TMPDIR="/tmp", PYTHONDONTWRITEBYTECODE="1")


# -- one protection -------------------------------------------------------------------------------

def body_of(source, function):
    """Where the definition of a function begins and ends."""
    found = [m for m in re.finditer(rf"^[A-Za-z_(][^\n;]*\b{function}\([^;{{]*\)\n\{{\n.*?^\}}\n", source,
                                    re.S | re.M)]
    if len(found) != 1:
        raise ValueError(f"krun.c has {len(found)} functions {function}")
    return found[0].span()


def without(source, protection):
    """krun.c without it. Raises ValueError unless the edit fits exactly once."""
    start, end = body_of(source, protection.function) if protection.function else (0, len(source))
    part = source[start:end]
    if part.count(protection.old) != 1:
        raise ValueError(f"{protection.old!r} is {part.count(protection.old)} times in "
                         f"{protection.function or 'krun.c'}")
    return source[:start] + part.replace(protection.old, protection.new) + source[end:]


def snapshot(to):
    """All that a build and a test need, as it is now: what changes meanwhile is another krun."""
    os.makedirs(to)
    for name in ("krun.c", "krun.h", "cri.proto"):
        shutil.copy(f"{TOP}/{name}", to)
    shutil.copytree(TOP + "/tests", to + "/tests", ignore=shutil.ignore_patterns("unit*-sanitized", "fuzz-*"))
    return to


def build(source, directory, unit):
    """Builds krun, or the unit tests, from a source text; without optimising, which is quicker."""
    with open(directory + "/krun.c", "w") as f:
        f.write(source)
    what = ["-o", "tests/unit", "tests/unit.c"] if unit else ["-static", "-o", "krun", "krun.c"]
    subprocess.run(["gcc", "-std=gnu11", "-O0", "-w", *what, "-lpthread"], cwd=directory, check=True)


def goes_red(directory, test):
    """Runs the test. True if it failed, False if it passed; raises ValueError if it was not run."""
    kind, _, words = test.partition(" ")
    command = ["tests/sandbox.py", "./tests/unit"] if kind == "unit" else ["tests/integration/run.py"]
    done = subprocess.run(["timeout", "-k", "10", "300", sys.executable, *command, words], cwd=directory,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    text = done.stdout.decode(errors="replace")
    if done.returncode >= 124:
        return True  # it hangs, or a signal ended it
    if kind == "unit":
        if not re.search(r"^\d+ passed, [^\n]*$", text, re.M):
            raise ValueError(f"no totals of unit {words}: {text[-300:]}")
        if "0 passed, 0 failed" in text:
            raise ValueError(f"there is no unit test {words}")
        return done.returncode != 0
    started = f"{words.split(':')[0]}: the daemon starts"  # a krun that cannot do that is red too
    lines = [line for line in text.split("\n") if line.startswith(("ok ", "FAILED")) and words in line
             or line == f"FAILED {started}"]
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} tests were run: {text[-600:]}")
    return lines[0].startswith("FAILED")


def examine(protection, source, directory, green):
    """Why it is not proved that a test guards this protection; "" if it is. `green` has the tests that are
    known to pass with the whole krun.c."""
    try:
        mutant = without(source, protection)
        unit = protection.test.startswith("unit ")
        if protection.test not in green:
            if goes_red(directory + "/whole", protection.test):
                return f"its test fails with the whole krun.c: {protection.test}"
            green.add(protection.test)
        broken = directory + "/broken"
        build(mutant, broken, unit)
        return "" if goes_red(broken, protection.test) else f"SURVIVED {protection.test}"
    except (ValueError, subprocess.CalledProcessError) as error:
        return str(error)


def fits():
    """Whether each edit still fits krun.c."""
    with open(TOP + "/krun.c") as f:
        source = f.read()
    failed = 0
    for protection in PROTECTIONS:
        try:
            without(source, protection)
        except ValueError as error:
            failed += 1
            print(f"FAILED {protection.name}: {error}")
    print(f"protections: {len(PROTECTIONS) - failed} of {len(PROTECTIONS)} edits fit krun.c")
    return 1 if failed else 0


def main(words):
    chosen = [p for p in PROTECTIONS if not words or any(w in p.name or w in p.test for w in words)]
    passed, green = 0, set()
    with tempfile.TemporaryDirectory(prefix="krun-protections-") as directory:
        os.chmod(directory, 0o755)
        with open(snapshot(directory + "/whole") + "/krun.c") as f:
            source = f.read()
        snapshot(directory + "/broken")
        for unit in (False, True):
            build(source, directory + "/whole", unit)
        for protection in chosen:
            complaint = examine(protection, source, directory, green)
            passed += not complaint
            print(f"FAILED {protection.name}: {complaint}" if complaint else f"ok     {protection.name}",
                  flush=True)
    print(f"{passed} passed, {len(chosen) - passed} failed, 0 skipped", flush=True)
    return 1 if passed < len(chosen) or not chosen else 0


if __name__ == "__main__":
    if "--fits" in sys.argv:
        sys.exit(fits())
    if os.geteuid() != 0:
        sys.exit("protections: containers need root: sudo make protections")
    if os.environ.get("KRUN_READ_ONLY") != "1":
        if "--inside" not in sys.argv:
            os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", "/usr/bin/python3",
                                  os.path.abspath(__file__), "--inside", *sys.argv[1:]])
        make_read_only()
    sys.exit(main([a for a in sys.argv[1:] if a != "--inside"]))
