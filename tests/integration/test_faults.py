"""kill -9 at every step that changes the world: KRUN_FAULT=step:n ends krun at the n-th passing of a
step (the list is read from krun.c). After a new start the retry succeeds and nothing is left (T56)."""
import os
import re
import signal
import subprocess

import grpc

import images
from harness import (DEADLINE, TOP, Failure, Krun, check, equal, holds, merge, pb, restarts, skip,
                     test, until)

REGISTRY = "127.0.0.1:5000/"


def setup(k):
    k.write_cni()


# A pod's life does not pass them, or no call of it fails there. Groups store and airgap have lives that do;
# network, for pod.owed; restart, for init.launched.
ELSEWHERE = {"state.unrecorded", "import.settle", "layer.condemned", "layer.forgotten", "pod.owed", "pull.blob",
             "pull.inherit", "init.launched"}


def steps():
    with open(os.environ.get("KRUN_SOURCE", os.path.join(TOP, "krun.c"))) as f:
        return sorted(set(re.findall(r'fault_point\("([^"]+)"\)', f.read())) - ELSEWHERE)


class Scenario:
    """One pod's life from the pull to the removal; each call may meet the daemon's death. The names
    are the same in each run, as a kubelet's retries have them."""

    def __init__(self, k):
        self.k = k
        own = {"hostname": "h",
               "linux": {"security_context": {"namespace_options": {"network": pb.POD}}}}
        self.config = merge(k.pod_config(**own), {"metadata": {"name": "fault", "uid": "fault"}})

    def run(self):
        cri, image = self.k.cri, {"image": REGISTRY + "test/configured:1"}
        cri.RemoveImage(image=image)
        cri.PullImage(image=image)
        pod = cri.RunPodSandbox(config=self.config).pod_sandbox_id
        # A kubelet makes no second container beside one that it finds.
        made = {c.metadata.name: c.id for c in cri.ListContainers(
            filter={"pod_sandbox_id": pod}).containers}
        for name, command in (("long", ["sleep", "98765"]), ("short", ["sh", "-c", "exit 3"])):
            config = {"metadata": {"name": name}, "image": image, "command": command,
                      "log_path": name + ".log"}
            if name not in made:
                made[name] = cri.CreateContainer(pod_sandbox_id=pod, config=config,
                                                 sandbox_config=self.config).container_id
        for name in made:
            self.start(made[name])
        long = made["long"]
        if self.state(long) == pb.CONTAINER_RUNNING:
            equal(cri.ExecSync(container_id=long, cmd=["echo", "x"]).stdout, b"x\n", "exec")
        until("the short one ends", lambda: self.state(made["short"]) == pb.CONTAINER_EXITED)
        cri.StopContainer(container_id=long, timeout=0)
        cri.RemoveContainer(container_id=made["short"])
        cri.StopPodSandbox(pod_sandbox_id=pod)
        cri.RemovePodSandbox(pod_sandbox_id=pod)
        cri.RemoveImage(image=image)

    def state(self, container):
        return self.k.cri.ContainerStatus(container_id=container).status.state

    def start(self, container):
        """A retry may find it started already by the call that never answered."""
        if self.state(container) == pb.CONTAINER_CREATED:
            self.k.cri.StartContainer(container_id=container)


def dies(k, scenario, step):
    """Runs the scenario until something of krun's is killed. True if the step was passed at all."""
    try:
        scenario.run()
    except (grpc.RpcError, Failure) as error:
        if isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise Failure(f"a call hung after the death at {step}") from error
    try:
        k.process.wait(0.5)
    except Exception:  # pylint: disable=broad-except
        pass
    return f"KRUN_FAULT: killed at {step}" in k.log_end(400) or k.process.poll() is not None


def one_step(k, step, n):
    scenario = Scenario(k)
    open(k.directory + "/daemon.log", "w").close()
    k.environment = {"KRUN_FAULT": f"{step}:{n}"}
    try:
        try:
            k.restart()
        except Failure:
            pass  # it was killed while it started
        hit = dies(k, scenario, step) if k.cri else True
    finally:
        k.environment = {}
    k.restart()
    for pod in k.cri.ListPodSandbox().items:
        check(pod.state in (pb.SANDBOX_READY, pb.SANDBOX_NOTREADY), f"{step}: a pod's state")
        k.cri.PodSandboxStatus(pod_sandbox_id=pod.id)
    for container in k.cri.ListContainers().containers:
        k.cri.ContainerStatus(container_id=container.id)
    # What is NOTREADY the kubelet removes, then it tries again.
    for pod in k.cri.ListPodSandbox(filter={"state": {"state": pb.SANDBOX_NOTREADY}}).items:
        k.cri.StopPodSandbox(pod_sandbox_id=pod.id)
        k.cri.RemovePodSandbox(pod_sandbox_id=pod.id)
    for container in k.cri.ListContainers(filter={"state": {"state": pb.CONTAINER_EXITED}}).containers:
        k.cri.RemoveContainer(container_id=container.id)
    scenario.run()
    until("the addresses are back", lambda: not k.reserved_addresses(), DEADLINE)
    return hit


def make(step, n):
    def body(k):
        hit = one_step(k, step, n)
        if n == 1 and not hit:
            skip("the scenario does not pass this step")
    body.__name__ = f"killed_at_{step}_for_the_{'first' if n == 1 else 'second'}_time_krun_recovers"
    body.__module__ = __name__
    return restarts(test(body))


for _step in steps():
    for _n in (1, 2):
        make(_step, _n)


@restarts
@test
def killed_while_many_calls_are_under_way_krun_recovers(k):
    pods = [k.own_network_pod() for _ in range(3)]
    containers = [p.start() for p in pods]
    calls = [k.cri.begin("RunPodSandbox", config=k.pod_config()) for _ in range(10)]
    calls += [k.cri.begin("StopContainer", container_id=c.id, timeout=0) for c in containers]
    calls += [k.cri.begin("RemovePodSandbox", pod_sandbox_id=p.id) for p in pods]
    k.end(signal.SIGKILL)
    for call in calls:
        call.exception()
    k.start()
    k.remove_all()
    equal(k.reserved_addresses(), [], "addresses")


@test
def a_full_disk_fails_what_needs_room_and_nothing_else(k):  # T59
    directory = k.directory + "/small"
    os.makedirs(directory + "/root")
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=12m,nr_inodes=4000", "small",
                           directory + "/root"])
    big = images.Image([images.Tree().file("big", os.urandom(16 << 20))], {"Cmd": ["/none"]})
    name = images.push(big, "127.0.0.1:5000", "test/big", "1")
    small = Krun(directory)
    small.allow_http("127.0.0.1:5000")
    try:
        small.start()
        small.pull(small.image)
        container = small.pod().start()
        before = set(os.listdir(directory + "/root/layers"))
        try:
            small.pull(name)
            raise Failure("16 MiB went into 12")
        except grpc.RpcError as error:
            holds("No space left", error.details(), "the message")
        until("nothing is left of it",
              lambda: set(os.listdir(directory + "/root/layers")) <= before)
        container.sh("true")
        subprocess.check_call(["mount", "-o", "remount,size=64m", directory + "/root"])
        equal(small.pull(name), big.id, "the same pull, now that there is room")
        small.remove_all()
        small.stop()
    finally:
        small.kill()
        subprocess.call(["umount", "-l", directory + "/root"])


@test
def without_descriptors_calls_fail_one_by_one_and_the_daemon_stays(k):  # T60
    container = k.pod().start()
    pid = str(k.process.pid)
    before = subprocess.check_output(["prlimit", "--pid", pid, "--nofile", "--raw", "--noheadings",
                                      "--output", "SOFT,HARD"]).decode().split()
    used = len(os.listdir(f"/proc/{pid}/fd"))
    subprocess.check_call(["prlimit", "--pid", pid, f"--nofile={used + 3}:{before[1]}"])
    try:
        for call in [k.cri.begin("ExecSync", container_id=container.id, cmd=["true"])
                     for _ in range(20)]:
            call.exception()
        k.cri.Status()
    finally:
        subprocess.check_call(["prlimit", "--pid", pid, f"--nofile={before[0]}:{before[1]}"])
    equal(container.run("true").exit_code, 0, "an exec once there is room again")
