"""What one client of the crash campaign has asked for, and what krun has acknowledged of it.

A call that was answered is a promise, and `verify` holds krun to it. A call that a kill interrupted
may have happened or not: the thing is "asked for", and the client looks which of the two it was, as a
kubelet does, before it goes on.
"""
import os
import random
import subprocess

import grpc

import images
from harness import DEADLINE, KRUN, Failure, check, equal, merge, pb, until

REGISTRY = "127.0.0.1:5000/"
CLIENTS = int(os.environ.get("CLIENTS", "6"))
STOP_CODES = (137, 143)


class Interrupted(Exception):
    """A call failed, and something was killed that explains it."""


class Container:
    """state: asked, created, starting, started, stopping, stopped, removing. In the first of each pair
    nobody knows yet whether it has happened."""

    def __init__(self, kind, code, config):
        self.kind, self.code, self.config = kind, code, config
        self.id, self.state = None, "asked"
        self.logs = 0  # how many files its log was moved to


class Pod:
    """state: asked, ready, stopping, stopped, removing. `hurt` says what of it was killed."""

    def __init__(self, config):
        self.config = config
        self.id, self.state = None, "asked"
        self.containers = []


def log_numbers(pod, container):
    """The numbers that it has printed, from all files of its log."""
    numbers = []
    top = f"{pod.config['log_directory']}/{container.config['log_path']}"
    for path in [f"{top}.{n}" for n in range(container.logs)] + [top]:
        if not os.path.exists(path):
            continue
        with open(path, "rb") as f:
            lines = f.read().split(b"\n")
        numbers += [int(line.split(b" ", 3)[3]) for line in lines[:-1]]
    return numbers


class Client:
    """One kubelet of several; its pods and images have its number in their names."""

    def __init__(self, world, number):
        self.world, self.number = world, number
        self.pods, self.images = [], {REGISTRY + f"crash/pulled-{number}:1": "absent",
                                      f"localhost/crash/loaded-{number}:1": "absent"}
        self.names = 0
        self.random = random.Random()

    # -- calls ------------------------------------------------------------------------------------

    def call(self, method, pod=None, must=False, **fields):
        """One CRI call. A failure that no kill explains is krun's. `must`: nothing but the daemon's
        death may make it fail, whatever became of the pod."""
        world = self.world
        cri, before = world.connection(), world.marks()
        world.count("calls")
        try:
            return getattr(cri, method)(**fields)
        except grpc.RpcError as error:
            text = f"{method} {pod.id if pod else ''}: {error.code().name}: {error.details()}"
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Failure(f"{text}: it hangs") from None
            if world.daemon_died_since(before) or not must and world.explains(before, pod and pod.id):
                raise Interrupted(text) from None
            raise Failure(f"{text}; nothing was killed") from None
        finally:
            cri.close()

    def until_done(self, method, pod=None, **fields):
        """A call that has to succeed at last, however often the daemon dies under it."""
        for _ in range(50):
            try:
                return self.call(method, pod, must=True, **fields)
            except Interrupted:
                pass
        raise Failure(f"{method} was interrupted 50 times")

    # -- what is there ----------------------------------------------------------------------------

    def listed(self):
        """Pods of this client, by name. Two of one name are a violation."""
        prefix = f"client{self.number}-"
        found = [p for p in self.until_done("ListPodSandbox").items
                 if p.metadata.name.startswith(prefix)]
        names = [p.metadata.name for p in found]
        equal(len(set(names)), len(names), f"the number of names among {names}")
        return {p.metadata.name: p for p in found}

    def settle(self):
        """Looks what became of all that was asked for and not answered."""
        pods = self.listed()
        for pod in list(self.pods):
            listed = pods.get(pod.config["metadata"]["name"])
            if pod.state == "asked" and listed:
                pod.id = listed.id
                pod.state = "ready" if listed.state == pb.SANDBOX_READY else "stopping"
            if not listed and pod.state in ("asked", "removing"):
                self.pods.remove(pod)
            else:
                check(listed, f"pod {pod.id} ({pod.state}) is not listed")
                self.settle_containers(pod)

    def settle_containers(self, pod):
        listed = {c.metadata.name: c for c in self.until_done(
            "ListContainers", filter={"pod_sandbox_id": pod.id}).containers}
        for c in list(pod.containers):
            found = listed.get(c.config["metadata"]["name"])
            if not found and c.state in ("asked", "removing"):
                pod.containers.remove(c)
                continue
            check(found, f"container {c.id} ({c.state}) of pod {pod.id} ({pod.state}) is not listed")
            c.id = found.id
            if c.state == "asked":
                c.state = "created"
            if c.state == "starting":
                c.state = "created" if found.state == pb.CONTAINER_CREATED else "started"

    def verify(self):
        """Each thing in the state that was acknowledged; asked for with nothing being killed."""
        self.settle()
        for pod in self.pods:
            hurt = self.world.hurt.get(pod.id, ())
            status = self.until_done("PodSandboxStatus", pod_sandbox_id=pod.id).status
            if set(hurt) == {"part"}:
                pass  # of a start that failed, or of the pod's own: both states can be right
            elif pod.state == "ready" and not hurt:
                equal(status.state, pb.SANDBOX_READY, f"the state of pod {pod.id}")
            elif pod.state == "stopped" or hurt:
                until(f"pod {pod.id} ({pod.state}, killed: {list(hurt)}) is not ready",
                      lambda p=pod: self.until_done("PodSandboxStatus", pod_sandbox_id=p.id)
                      .status.state == pb.SANDBOX_NOTREADY, DEADLINE / 3)
            for container in pod.containers:
                self.verify_container(pod, container, hurt)
        listed = {t for i in self.until_done("ListImages").images for t in i.repo_tags}
        for name, state in self.images.items():
            if state != "asked":
                equal(name in listed, state == "present", f"{name} ({state}) is listed")

    def verify_container(self, pod, container, hurt):
        where = f"container {container.id} ({container.kind} {container.code}, {container.state}, " \
            f"of pod {pod.id}, {pod.state}, killed: {list(hurt)})"

        def status():
            return self.until_done("ContainerStatus", container_id=container.id).status
        stopped = container.state in ("stopping", "stopped") or pod.state != "ready"
        if container.state in ("created", "removing") or set(hurt) == {"part"}:
            return
        if container.kind in ("sleeps", "counts") and not hurt and not stopped:
            equal(status().state, pb.CONTAINER_RUNNING, f"the state of {where}")
        elif hurt or container.kind == "ends" or container.state == "stopped" or \
                pod.state == "stopped":
            until(f"{where} has ended; it was {status().state} at first",
                  lambda: status().state == pb.CONTAINER_EXITED, DEADLINE / 3)
            codes = {container.code} if container.kind == "ends" else set()
            codes |= set(STOP_CODES) if stopped else set()
            codes |= {255, *STOP_CODES} if hurt else set()  # never started: 128 and others
            end = status()
            if not (hurt and end.reason == "StartError"):
                check(end.exit_code in codes, f"{where}: exit code {end.exit_code}, not {codes}")
        self.verify_log(pod, container, where, hurt or stopped)

    def verify_log(self, pod, container, where, cut):
        numbers = log_numbers(pod, container)
        equal(numbers, list(range(1, len(numbers) + 1)), f"the log of {where}")
        if container.kind == "ends" and container.state == "started" and not cut:
            equal(len(numbers), 20, f"lines in the log of {where}")

    # -- steps ------------------------------------------------------------------------------------

    def step(self):
        """One step that fits to what is there."""
        steps = [self.new_pod] * (3 if len(self.pods) < 3 else 0)
        steps += [self.pull, self.load] + [self.remove_image] * 2
        ready = [p for p in self.pods if p.state == "ready"]
        if ready:
            steps += [self.new_container] * 5 + [self.start] * 6 + [self.execute] * 4
            steps += [self.reopen] * 2 + [self.stop] * 2 + [self.remove_container] * 2
        steps += [self.end_pod] * (1 if self.pods else 0)
        try:
            self.random.choice(steps)()
        except Interrupted:
            self.world.count("interrupted")
            self.settle()

    def pick(self, *states, pods=("ready",)):
        """A pod and one of its containers in one of these states; or nothing."""
        all_of_them = [(p, c) for p in self.pods if p.state in pods
                       for c in p.containers if c.state in states]
        return self.random.choice(all_of_them) if all_of_them else (None, None)

    def new_pod(self):
        self.names += 1
        name = f"client{self.number}-{self.names}"
        spaces = {"network": self.random.choice((pb.POD, pb.POD, pb.NODE)),
                  "pid": self.random.choice((pb.POD, pb.CONTAINER))}
        config = self.world.krun.pod_config(
            metadata={"name": name, "uid": name, "attempt": 0},
            linux={"security_context": {"namespace_options": spaces}},
            **({"hostname": "h"} if spaces["network"] == pb.POD else {}))
        pod = Pod(config)
        self.pods.append(pod)
        pod.id = self.call("RunPodSandbox", config=config).pod_sandbox_id
        pod.state = "ready"
        self.world.count("pods")

    def new_container(self):
        pod = self.random.choice([p for p in self.pods if p.state == "ready"])
        kind = self.random.choice(("sleeps", "counts", "ends", "ends"))
        code = self.random.randrange(1, 100) if kind == "ends" else 0
        pause = self.random.choice(("", "", "sleep 0.1; ", "sleep 0.5; "))
        command = {"sleeps": "sleep 98765",
                   "counts": "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done",
                   "ends": f"for i in $(seq 20); do echo $i; done; {pause}exit {code}"}[kind]
        present = [n for n, s in self.images.items() if s == "present"]
        self.names += 1
        name = f"c{self.names}"
        image = self.random.choice([self.world.krun.image] + present)
        config = {"metadata": {"name": name}, "image": {"image": image}, "log_path": name + ".log",
                  "command": ["sh", "-c", command], "linux": {"security_context": {
                      "namespace_options":
                          pod.config["linux"]["security_context"]["namespace_options"]}}}
        container = Container(kind, code, config)
        pod.containers.append(container)
        container.id = self.call("CreateContainer", pod, pod_sandbox_id=pod.id, config=config,
                                 sandbox_config=pod.config).container_id
        container.state = "created"
        self.world.count("containers")

    def start(self):
        pod, container = self.pick("created")
        if container:
            container.state = "starting"
            self.call("StartContainer", pod, container_id=container.id)
            container.state = "started"
            self.world.count("starts")

    def execute(self):
        pod, container = self.pick("started")
        if not container or container.kind == "ends":
            return
        code, word = self.random.randrange(100), str(self.random.randrange(10**9))
        answer = self.call("ExecSync", pod, container_id=container.id,
                           cmd=["sh", "-c", f"echo {word}; exit {code}"])
        if not self.world.hurt.get(pod.id):
            equal((answer.exit_code, answer.stdout.decode()), (code, word + "\n"), "what exec gave")
            self.world.count("execs")

    def reopen(self):
        """As the kubelet rotates a log: the file is moved, then krun is told."""
        pod, container = self.pick("started")
        if not container or container.kind != "counts":
            return
        path = f"{pod.config['log_directory']}/{container.config['log_path']}"
        if os.path.exists(path):
            os.rename(path, f"{path}.{container.logs}")
            container.logs += 1
            self.call("ReopenContainerLog", pod, container_id=container.id)
            self.world.count("rotations")

    def stop(self):
        pod, container = self.pick("started", "stopping", "starting")
        if container:
            container.state = "stopping"
            self.call("StopContainer", pod, must=True, container_id=container.id,
                      timeout=self.random.choice((0, 0, 1)))
            container.state = "stopped"

    def remove_container(self):
        pod, container = self.pick("created", "started", "stopped", "removing",
                                   pods=("ready", "stopped", "stopping"))
        if container:
            container.state = "removing"
            self.call("RemoveContainer", pod, must=True, container_id=container.id)
            pod.containers.remove(container)

    def end_pod(self):
        """Stops a pod, or removes it: with both steps or in one go."""
        pod = self.random.choice(self.pods)
        if pod.state == "asked":
            return self.settle()
        if pod.state in ("ready", "stopping") and self.random.random() < 0.8:
            pod.state = "stopping"
            self.call("StopPodSandbox", pod, must=True, pod_sandbox_id=pod.id)
            pod.state = "stopped"
        if self.random.random() < 0.6:
            pod.state = "removing"
            self.call("RemovePodSandbox", pod, must=True, pod_sandbox_id=pod.id)
            self.pods.remove(pod)
        return None

    # -- images -----------------------------------------------------------------------------------

    def pull(self):
        name = REGISTRY + f"crash/pulled-{self.number}:1"
        if self.images[name] != "present":
            self.images[name] = "asked"
            self.call("PullImage", image={"image": name})
            self.images[name] = "present"
            self.world.count("pulls")

    def load(self):
        name = f"localhost/crash/loaded-{self.number}:1"
        if self.images[name] == "present":
            return
        world = self.world
        world.connection().close()
        before = world.marks()
        self.images[name] = "asked"
        done = subprocess.run([KRUN, "load", "--socket", world.krun.socket,
                               f"{world.archives}/{self.number}.tar"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * DEADLINE,
                              check=False)
        if done.returncode and not world.daemon_died_since(before):
            raise Failure(f"krun load: exit {done.returncode}: {done.stdout.decode()}")
        if done.returncode == 0:
            self.images[name] = "present"
            world.count("loads")

    def remove_image(self):
        used = {c.config["image"]["image"] for p in self.pods for c in p.containers}
        free = [n for n, s in self.images.items() if s != "absent" and n not in used]
        if free:
            name = self.random.choice(free)
            self.images[name] = "asked"
            self.call("RemoveImage", must=True, image={"image": name})
            self.images[name] = "absent"

    # -- the end ----------------------------------------------------------------------------------

    def remove_all(self):
        """Removes all in a random order, whatever is killed meanwhile."""
        self.settle()
        while self.pods:
            pod = self.random.choice(self.pods)
            if self.random.random() < 0.5:
                self.until_done("StopPodSandbox", pod, pod_sandbox_id=pod.id)
            self.until_done("RemovePodSandbox", pod, pod_sandbox_id=pod.id)
            self.pods.remove(pod)
        for name in self.images:
            self.until_done("RemoveImage", image={"image": name})
            self.images[name] = "absent"


def prepare_images(world, registry):
    """An image to pull and one to load for each client; their first layer is the same in all."""
    settings = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}
    for number in range(CLIENTS):
        own = images.Tree().file("which", f"{number}\n" * 20000).directory("d").file("d/f", "x")
        image = images.Image([images.busybox_tree(), own], settings)
        images.push(image, registry.address, f"crash/pulled-{number}", "1")
        top = images.Tree().file("loaded", "x")
        image = images.Image([images.busybox_tree(), own, top], settings)
        images.write_tar(images.docker_files(image, [f"localhost/crash/loaded-{number}:1"]),
                         f"{world.archives}/{number}.tar")
