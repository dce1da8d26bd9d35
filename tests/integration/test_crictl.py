"""crictl v1.36.0, unmodified: grpc-go is the second gRPC stack that we did not write."""
import json
import os
import shutil
import subprocess

from harness import DEADLINE, Failure, check, equal, holds, pb, skip, test, until

CRICTL = os.environ.get("KRUN_CRICTL") or shutil.which("crictl")


def crictl(k, *arguments, status=0):
    """Runs it; gives what it printed. Its deadline of 2 s is crictl's own default, so we lengthen it."""
    if not CRICTL or not os.path.exists(CRICTL):
        skip("crictl is not there (tests/install.sh)")
    end = "unix://" + k.socket
    done = subprocess.run([CRICTL, "--config", "/dev/null", "--runtime-endpoint", end, "--image-endpoint",
                           end, "--timeout", f"{int(DEADLINE)}s", *arguments], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=4 * DEADLINE)
    if status is not None and done.returncode != status:
        raise Failure(f"crictl {' '.join(arguments)}: {done.returncode}: {done.stderr.decode()}")
    return done.stdout.decode()


def files(k):
    """A pod's and a container's configuration as crictl reads them."""
    config = k.pod_config(hostname="")
    pod = {"metadata": dict(config["metadata"], attempt=1), "log_directory": config["log_directory"],
           "labels": {"who": "crictl"}, "linux": {"security_context": {"namespace_options": {"network": 2}}}}
    container = {"metadata": {"name": "busy"}, "image": {"image": k.image}, "log_path": "busy.log",
                 "command": ["sh", "-c", "echo hello from crictl; sleep 98765"], "linux": {}}
    names = []
    for title, what in (("pod", pod), ("container", container)):
        names.append(f"{k.directory}/{title}.json")
        with open(names[-1], "w") as f:
            json.dump(what, f)
    return names


@test
def version_and_info(k):
    text = crictl(k, "version")
    holds("RuntimeName:  krun", text, "crictl version")
    conditions = json.loads(crictl(k, "info"))["status"]["conditions"]
    check(any(c["type"] == "RuntimeReady" and c["status"] for c in conditions), str(conditions))


@test
def a_pod_and_a_container_live_their_whole_life(k):
    pod_file, container_file = files(k)
    pod = crictl(k, "runp", pod_file).strip()
    equal(len(pod), 64, "length of the pod's id")
    container = crictl(k, "create", pod, container_file, pod_file).strip()
    crictl(k, "start", container)
    holds(container[:13], crictl(k, "ps"), "crictl ps")
    holds("Running", crictl(k, "ps", "--name", "busy"), "crictl ps --name")
    holds("Ready", crictl(k, "pods", "--label", "who=crictl"), "crictl pods")
    until("its log is there", lambda: "hello from crictl" in crictl(k, "logs", container))
    equal(crictl(k, "exec", "-s", container, "echo", "sync").strip(), "sync", "crictl exec -s")
    about = json.loads(crictl(k, "inspect", container))
    equal(about["status"]["state"], "CONTAINER_RUNNING", "state")
    equal(json.loads(crictl(k, "inspectp", pod))["status"]["state"], "SANDBOX_READY",
          "the pod's state")
    equal(crictl(k, "ps", "-q", "--pod", pod[:13]).strip(), container, "crictl ps -q --pod")
    crictl(k, "stop", "--timeout", "0", container)
    holds("Exited", crictl(k, "ps", "-a"), "crictl ps -a")
    crictl(k, "rm", container)
    crictl(k, "stopp", pod)
    holds("NotReady", crictl(k, "pods"), "crictl pods")
    crictl(k, "rmp", pod)
    equal(crictl(k, "pods", "-q"), "", "pods")


@test
def images_are_pulled_listed_inspected_and_removed(k):
    name = "127.0.0.1:5000/test/configured:1"
    holds("Image is up to date", crictl(k, "pull", name), "crictl pull")
    holds("test/configured", crictl(k, "images"), "crictl images")
    about = json.loads(crictl(k, "inspecti", name))
    equal(about["status"]["repoTags"], [name], "repoTags")
    holds("Deleted: " + name, crictl(k, "rmi", name), "crictl rmi")
    check("test/configured" not in crictl(k, "images"), "it is gone")
    crictl(k, "imagefsinfo")


@test
def run_does_all_in_one(k):
    pod_file, container_file = files(k)
    container = crictl(k, "run", "--no-pull", container_file, pod_file).strip()
    equal(k.cri.ContainerStatus(container_id=container).status.state, pb.CONTAINER_RUNNING, "state")


@test
def errors_are_shown_with_their_text(k):
    try:
        crictl(k, "inspect", "no-such-container")
    except Failure as failure:
        holds("no-such-container", str(failure), "crictl's message")
        return
    raise Failure("crictl inspect of nothing succeeded")


@test
def runtime_configuration_is_read(k):
    text = crictl(k, "runtime-config", status=None)
    check("CGROUPFS" in text.upper() or "cgroup" in text.lower(), f"crictl runtime-config: {text}")


@test
def all_containers_of_a_full_node_are_stopped_side_by_side(k):
    crictl(k, "version")  # or the test is skipped
    pod = k.pod()
    ids = {pod.start().id for _ in range(110)}
    ps = crictl(k, "ps", "-q").split()
    equal(set(ps), ids, "crictl ps -q")
    end = "unix://" + k.socket
    command = ["xargs", "-P0", "-n1", CRICTL, "--config", "/dev/null", "--runtime-endpoint", end,
               "--image-endpoint", end, "--timeout", f"{int(4 * DEADLINE)}s", "stop", "--timeout"]
    slow = subprocess.Popen([*command, "3600"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)
    slow.stdin.write("\n".join(ps).encode())
    slow.stdin.close()
    until("the kubelet sees that all go on", lambda: crictl(k, "ps", "-q").split() == ps)
    quick = subprocess.run([*command, "0"], input="\n".join(ps).encode(), timeout=4 * DEADLINE,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    equal((quick.returncode, quick.stderr), (0, b""), "stopping all at once")
    equal(crictl(k, "ps", "-q"), "", "what runs then")
    equal((slow.wait(4 * DEADLINE), slow.stderr.read()), (0, b""), "those that waited")
