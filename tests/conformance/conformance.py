"""Inside the sandbox: a registry with critest's images, a daemon, critest, and what came of it."""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for part in ("integration", "images"):
    sys.path.insert(0, os.path.join(TESTS, part))
import harness  # noqa: E402
import images  # noqa: E402
import registry  # noqa: E402
import critest_images  # noqa: E402

# Specs that this set-up cannot run, and why.
LEFT_OUT = {
    "public image with digest should be pulled and removed":
        "wants the image with one fixed sha256 digest, which nobody can make anew",
}
with open(harness.cgroup2_mount() + "/cgroup.controllers") as controllers:
    if "memory" not in controllers.read().split():
        LEFT_OUT["runtime should output OOMKilled reason"] = "no memory controller in the version 2 tree"
# Specs of what krun has not got yet: words of the title, and what the failure's message must say. They
# count as skipped. One that passes, fails otherwise or is not there is a failure: the list stays true.
STATISTICS = "ContainerStats is not implemented"
PROFILES = "seccomp profiles are not implemented"
EXPECTED = {
    "runtime should support listing container stats": STATISTICS,
    "runtime should support listing stats for containers filtered by labels": STATISTICS,
    "runtime should support listing stats for started containers": STATISTICS,
    "runtime should support listing stats for started containers when filter is nil": STATISTICS,
    "runtime should support listing stats for three created containers when filter is nil": STATISTICS,
    "runtime should support an seccomp profile that blocks setting hostname with SYS_ADMIN": PROFILES,
    "should support seccomp default on the container": PROFILES,
    "should support seccomp localhost profile on the container": PROFILES,
    "runtime should support attach": "Attach is not implemented",
    "runtime should support exec with tty=false and stdin=false": "Exec is not implemented",
    "runtime should support exec with tty=true and stdin=true": "Exec is not implemented",
    "runtime should support portforward": "PortForward is not implemented",
    "runtime should support portforward in host network": "PortForward is not implemented",
}
MIRRORED = ("registry.k8s.io", "k8s.gcr.io", "gcr.io")


def mirror(krun, host, address):
    """hosts.toml: whatever is asked of this registry, ask the one on loopback."""
    os.makedirs(f"{krun.certs}/{host}")
    with open(f"{krun.certs}/{host}/hosts.toml", "w") as f:
        f.write(f'server = "https://{host}"\n\n[host."http://{address}"]\n'
                '  capabilities = ["pull", "resolve"]\n')


def prepare(krun, server):
    for (repository, tag), image in critest_images.all_images(os.environ["KRUN_NGINX"],
                                                              krun.directory).items():
        images.push(image, server.address, repository, tag)
    for host in MIRRORED:
        mirror(krun, host, server.address)
    krun.write_cni()
    with open(krun.cni + "/10-test.conflist") as f:
        network = json.load(f)
    network["plugins"][1]["snat"] = True  # a spec asks 127.0.0.1 for a port of a pod
    with open(krun.cni + "/10-test.conflist", "w") as f:
        json.dump(network, f)


def critest(krun, report, flags):
    """Runs it; its own output goes to a file, for what it found is in the report."""
    command = [os.environ["KRUN_CRITEST"], "--runtime-endpoint=unix://" + krun.socket,
               "--config=" + krun.directory + "/none", "--ginkgo.no-color", "--ginkgo.v=false",
               "--ginkgo.show-node-events=false", "--ginkgo.seed=1",
               "--ginkgo.json-report=" + report, *flags]
    for words in LEFT_OUT:
        command.append("--ginkgo.skip=" + words)
    temporary = krun.directory + "/tmp"
    os.mkdir(temporary, 0o1777)
    os.chmod(temporary, 0o1777)  # specs run as other users write there
    with open(krun.directory + "/critest.log", "wb") as log:
        return subprocess.call(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                               cwd=temporary, env=dict(os.environ, TMPDIR=temporary))


def specs(report):
    """(title, state, reason) of every spec that was looked at."""
    with open(report) as f:
        suites = json.load(f)
    for spec in suites[0]["SpecReports"] or []:
        if spec["LeafNodeType"] == "It" or spec["State"] not in ("passed", "skipped"):
            title = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
            reason = spec.get("Failure", {}).get("Message", "")
            yield title.replace("[k8s.io] ", ""), spec["State"], " ".join(reason.split())


def cause(reason):
    """What gomega says, without the Go structures around it."""
    status = re.search(r"rpc error: code = (\w+ desc = .*?)(?: Unexpected error| \{ |$)", reason)
    return status[1] if status else reason[:600]


def expectation(title):
    """What this spec's failure must say; None: it must pass."""
    bare = title.replace(" [Conformance]", "").rstrip(".")
    return next((says for words, says in EXPECTED.items() if bare.endswith(words)), None)


def judge(report, flags):
    """Prints what failed and was skipped; gives the numbers. `flags`: the caller asked for a part."""
    passed, failed, skipped, seen = [], [], [], 0
    for title, state, reason in specs(report):
        if "benchmark" in title:
            continue  # critest's own benchmarks: never part of the validation
        wanted = expectation(title)
        seen += wanted is not None and state not in ("skipped", "pending")
        if state == "passed" and wanted:
            failed.append((title, f"it passes, and the list of expected failures says {wanted!r}"))
        elif state == "failed" and wanted and wanted in reason:
            skipped.append((title, f"expected: {wanted}"))
        elif state == "passed":
            passed.append(title)
        elif state in ("skipped", "pending"):
            why = next((w for words, w in LEFT_OUT.items() if words in title), reason)
            if why:  # none: the caller's own --ginkgo.focus did not ask for it
                skipped.append((title, why))
        else:
            failed.append((title, reason))
    if seen != len(EXPECTED) and not flags:
        failed.append(("the list of expected failures", f"{seen} of its {len(EXPECTED)} specs were run"))
    for title, reason in sorted(skipped):
        print(f"SKIP   {title}: {reason[:300]}")
    for title, reason in sorted(failed):
        print(f"FAILED {title}\n       {cause(reason)}")
    return len(passed), len(failed), len(skipped)


def left_behind(krun, before):
    """Ends the daemon as a group of integration tests does: then all must be as before. The complaint."""
    try:
        if krun.process.poll() is not None:
            return f"the daemon has ended with {krun.process.returncode}: {krun.log_end()}"
        krun.remove_all()
        harness.end_group(krun, before)
    except (harness.Failure, harness.grpc.RpcError) as error:
        return str(error)
    return ""


def main(flags):
    directory = tempfile.mkdtemp(prefix="krun-conformance-")
    os.chmod(directory, 0o755)
    krun = harness.Krun(directory)
    server = registry.Registry(directory + "/registry")
    report = directory + "/report.json"
    try:
        prepare(krun, server)
        before = harness.world(krun)
        krun.start()
        print("conformance: critest runs; some minutes", flush=True)
        critest(krun, report, flags)
        if not os.path.exists(report):
            with open(directory + "/critest.log") as f:
                print(f.read()[-3000:])
            print("0 passed, 1 failed, 0 skipped")
            return 1
        passed, failed, skipped = judge(report, flags)
        complaint = left_behind(krun, before)
        if complaint:
            print(f"FAILED nothing is left behind\n       {complaint}")
        passed, failed = passed + (not complaint), failed + bool(complaint)
    finally:
        krun.stop()
        server.stop()
        if os.environ.get("KRUN_TEST_KEEP"):
            print(f"conformance: kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
