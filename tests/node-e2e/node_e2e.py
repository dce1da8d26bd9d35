"""Kubernetes' node suite against this krun: an API server, etcd and the namespace controller (in the suite's
program), a kubelet and krun, all in one sandbox. Outside it is only what the sandbox cannot have made.

On a machine with cgroup v1 hierarchies the kubelet makes its cgroups in these: it gets a cgroup of its own in
each, which goes with it, and krun the version 2 tree.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
for part in ("integration", "images", "conformance"):
    sys.path.insert(0, os.path.join(TESTS, part))
import harness  # noqa: E402
import images  # noqa: E402
import registry  # noqa: E402
import conformance  # noqa: E402
import node_images  # noqa: E402
import sandbox  # noqa: E402

# Specs of the kind that other runtimes' own tests run too, less what takes the machine for itself.
FILTER = "NodeConformance && !Serial && !Slow && !Flaky && !Disruptive"
NODE, ADDRESS, PORT = "e2e-node", "10.231.0.1", 5077


# -- outside ------------------------------------------------------------------------------------

def hierarchies():
    """(mount point, options) of every cgroup v1 hierarchy."""
    found = []
    with open("/proc/self/mountinfo") as f:
        for line in f:
            fields = line.split()
            if fields[fields.index("-") + 1] != "cgroup":
                continue
            options = [o for o in fields[-1].split(",") if o not in ("rw", "ro", "xattr", "clone_children")
                       and not o.startswith("release_agent=")]
            named = [o for o in options if o.startswith("name=")]
            found.append((fields[4], ",".join(["none", *named] if named else options)))
    return found


def enter(top):
    """Makes a cgroup and moves this process there. A new cpuset is empty, and takes no process so."""
    os.mkdir(top)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if os.path.exists(f"{top}/{name}"):
            shutil.copyfile(f"{top}/../{name}", f"{top}/{name}")
    sandbox.write(top + "/cgroup.procs", str(os.getpid()))


def outside(flags):
    tops = [f"{mount}/krun-node-e2e-{os.getpid()}" for mount, _ in hierarchies()]
    command = [TESTS + "/sandbox.py", "unshare", "--uts", "--ipc", __file__, "--inside", *flags]
    child = subprocess.Popen([sys.executable, *command[:4], sys.executable, *command[4:]],
                             preexec_fn=lambda: [enter(top) for top in tops])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: child.terminate())
    status = child.wait()
    stayed = [top for top in tops if not sandbox.remove_cgroups(top)]
    if stayed:
        print("node-e2e: cannot be removed:", *stayed, file=sys.stderr)
    return status or bool(stayed)


# -- inside: what a node has ----------------------------------------------------------------------

def furnish(directory):
    for mount, options in hierarchies():
        subprocess.check_call(["umount", "-l", mount])
        subprocess.check_call(["mount", "-t", "cgroup", "-o", options, "cgroup", mount])
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"])
    os.mkdir("/run/netns")
    for path in ("/var/lib/kubelet", "/var/log"):
        own = directory + path
        os.makedirs(own)
        os.makedirs(path, exist_ok=True)
        subprocess.check_call(["mount", "--bind", own, path])
        subprocess.check_call(["mount", "--make-rshared", path])
    # Where the suite finds it, it starts the kubelet as a unit, outside of the sandbox.
    if os.path.exists("/usr/bin/systemd-run"):
        subprocess.check_call(["mount", "--bind", "/dev/null", "/usr/bin/systemd-run"])
    with open(directory + "/hosts", "w") as f:
        f.write(f"127.0.0.1 localhost\n{ADDRESS} {NODE}\n")
    subprocess.check_call(["mount", "--bind", directory + "/hosts", "/etc/hosts"])
    subprocess.check_call(["hostname", NODE])
    # The kubelet takes the address of the default route's link for the node's.
    for line in ("link add ne0 type veth peer name ne1", f"addr add {ADDRESS}/24 dev ne0", "link set ne0 up",
                 "link set ne1 up", "route add default via 10.231.0.254 dev ne0"):
        subprocess.check_call(["ip", *line.split()])


KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
    "cgroupRoot": "/", "cgroupDriver": "cgroupfs", "failCgroupV1": False, "failSwapOn": False,
    "serializeImagePulls": False, "volumeStatsAggPeriod": "10s", "fileCheckFrequency": "10s",
    "podCIDR": "10.123.0.0/16", "evictionPressureTransitionPeriod": "30s",
    "evictionHard": {"memory.available": "250Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
                     "imagefs.available": "1%"},
    "evictionMinimumReclaim": {"nodefs.available": "1%", "nodefs.inodesFree": "1%"},
}


def prepare(krun, server, programs):
    for (repository, tag), image in node_images.all_images(programs + "/agnhost-1.36.3", krun.directory).items():
        images.push(image, server.address, repository, tag)
    for host in ("registry.k8s.io", "gcr.io"):
        conformance.mirror(krun, host, server.address)
    krun.write_cni()
    with open(krun.directory + "/kubelet.json", "w") as f:
        json.dump(KUBELET, f)
    os.mkdir(krun.directory + "/bin")  # the suite looks for the name kubelet
    os.symlink(programs + "/kubelet-1.36.3", krun.directory + "/bin/kubelet")


def suite(krun, programs, report, flags):
    """Runs it; what it prints goes to a file, for what it found is in the report."""
    if not any("label-filter" in flag or "focus" in flag for flag in flags):
        flags = ["--label-filter=" + FILTER, *flags]
    command = [programs + "/ginkgo-2.28.1", "--procs=" + os.environ.get("KRUN_NODE_E2E_PROCS", "16"), "--no-color",
               "--timeout=3h", "--output-dir=" + krun.directory, "--json-report=" + os.path.basename(report),
               *flags, programs + "/e2e_node-1.36.3.test", "--",
               "--k8s-bin-dir=" + krun.directory + "/bin", "--kubelet-config-file=" + krun.directory + "/kubelet.json",
               "--container-runtime-endpoint=unix://" + krun.socket, "--node-name=" + NODE,
               "--report-dir=" + krun.directory, "--prepull-images=false", "--restart-kubelet=false",
               "--kubelet-flags=--system-cgroups= --kubelet-cgroups= --runtime-cgroups= --fail-cgroupv1=false"]
    with open(krun.directory + "/suite.log", "wb") as log:
        return subprocess.call(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=krun.directory)


# -- inside: what came of it ------------------------------------------------------------------------

# Specs that fail here: words of the title, and why. They count as skipped; one that passes is a failure.
EXPECTED = {
    "should report container metrics":
        "the kubelet's cAdvisor reads containers only of the sockets that it knows, containerd's and CRI-O's",
    "should report resource usage through the stats api": "the same, and ContainerStats is not implemented",
    "Pod cgroup should be sum of overhead and resource limits": "wants a runtime handler named test-handler",
    "should not write to root filesystem":
        "compares the message with that of another shell; with that shell more specs fail",
    "should support remote command execution over websockets":
        "Exec is not implemented, and a websocket that is refused does not say so",
}
# What krun has not got yet. A spec fails by it if its failure, or an event of its pods, says so.
NOT_BUILT = ("RuntimeService/Exec is not implemented", "RuntimeService/PortForward is not implemented",
             "seccomp profiles are not implemented", "user namespaces are not implemented")


def why(spec, title):
    """Why this spec may fail; None: it must pass."""
    said = spec.get("Failure", {}).get("Message", "") + spec.get("CapturedGinkgoWriterOutput", "")
    words = next((w for w in EXPECTED if w in title), None)
    return EXPECTED.get(words) or next((text for text in NOT_BUILT if text in said), None)


def judge(report, part):
    """Prints what failed and was skipped; gives the numbers. part: only some specs were asked for."""
    passed, failed, skipped, seen = [], [], [], set()
    with open(report) as f:
        ran = [spec for suite in json.load(f) for spec in suite["SpecReports"] or []]
    for spec in ran:
        if spec["LeafNodeType"] != "It" and spec["State"] in ("passed", "skipped"):
            continue
        title = " ".join([*(spec["ContainerHierarchyTexts"] or []), spec["LeafNodeText"]])
        state, reason = spec["State"], " ".join(spec.get("Failure", {}).get("Message", "").split())
        words = next((w for w in EXPECTED if w in title), None)
        if state in ("skipped", "pending"):
            if reason:  # none: the filter did not ask for it
                skipped.append((title, reason))
            continue
        seen.add(words)
        expected = why(spec, title)
        if words and state == "passed":
            failed.append((title, f"it passes, and the list of expected failures says: {EXPECTED[words]}"))
        elif state == "passed":
            passed.append(title)
        elif expected:
            skipped.append((title, "expected: " + expected))
        else:
            failed.append((title, reason))
    for words in sorted(set(EXPECTED) - seen if not part else ()):
        failed.append(("the list of expected failures", f"no spec was run that is called {words!r}"))
    for title, reason in sorted(skipped):
        print(f"SKIP   {title}: {reason[:300]}")
    for title, reason in sorted(failed):
        print(f"FAILED {title}\n       {conformance.cause(reason)}")
    return len(passed), len(failed), len(skipped)


def inside(flags):
    programs = os.environ["KRUN_NODE_E2E"]
    directory = tempfile.mkdtemp(prefix="krun-node-e2e-")
    os.chmod(directory, 0o755)
    furnish(directory)
    krun = harness.Krun(directory)
    server = registry.Registry(directory + "/registry", port=PORT)
    report = directory + "/report.json"
    try:
        prepare(krun, server, programs)
        krun.start()
        print("node-e2e: the suite runs", flush=True)
        suite(krun, programs, report, flags)
        if not os.path.exists(report):
            with open(directory + "/suite.log") as f:
                print(f.read()[-3000:])
            print("0 passed, 1 failed, 0 skipped")
            return 1
        passed, failed, skipped = judge(report, bool(flags))
        if krun.process.poll() is not None:
            print(f"FAILED the daemon has ended with {krun.process.returncode}: {krun.log_end()}")
            failed += 1
    finally:
        krun.stop()
        server.stop()
        if os.environ.get("KRUN_TEST_KEEP"):
            print(f"node-e2e: kept {directory}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(inside(arguments[1:]) if arguments[:1] == ["--inside"] else outside(arguments))
