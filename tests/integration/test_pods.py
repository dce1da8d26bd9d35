"""Pod sandboxes, but for their network: identity, lists, namespaces, files, sysctls, cgroups."""
import os
import re
import socket

from harness import (SLEEP, Failure, cgroup2_mount, check, equal, holds, merge, pb, pid_of,
                     processes, refused, skip, test, until)


def options(**namespace_options):
    return {"linux": {"security_context": {"namespace_options": namespace_options}}}


def setup(k):
    k.write_cni()


def namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


# -- identity and lists ---------------------------------------------------------------------------

@test
def a_pod_is_READY_when_RunPodSandbox_answers(k):
    pod = k.pod()
    check(re.fullmatch("[0-9a-f]{64}", pod.id), f"the id is 64 hexadecimal digits: {pod.id}")
    equal(pod.status().state, pb.SANDBOX_READY, "state")


@test
def its_status_gives_back_what_the_request_said(k):
    labels = {"io.kubernetes.pod.name": "x", "a/b": "", "ünï": "cödé\n\x01"}
    notes = {"json": '{"k": "v"}', "big": "y" * 200000}
    pod = k.pod(labels=labels, annotations=notes, metadata={"attempt": 3})
    listed = k.cri.ListPodSandbox(filter={"id": pod.id}).items[0]
    for got in (pod.status(), listed):
        equal(dict(got.labels), labels, "labels")
        equal(dict(got.annotations), notes, "annotations")
        equal((got.metadata.name, got.metadata.uid, got.metadata.namespace, got.metadata.attempt),
              (pod.config["metadata"]["name"], pod.config["metadata"]["uid"], "tests", 3), "metadata")
        check(got.created_at > 10**18, "created_at is in nanoseconds")
    equal(pod.status().linux.namespaces.options.network, pb.NODE, "network namespace mode")


@test
def created_at_grows_strictly(k):
    times = [k.pod().status().created_at for _ in range(5)]
    equal(times, sorted(set(times)), "creation times")


@test
def the_same_request_again_answers_the_same_pod(k):
    config = k.pod_config()
    first = k.cri.RunPodSandbox(config=config).pod_sandbox_id
    equal(k.cri.RunPodSandbox(config=config).pod_sandbox_id, first, "the second answer")
    equal(len(k.cri.ListPodSandbox().items), 1, "pods")


@test
def a_request_repeated_while_under_way_joins_it(k):
    config = k.pod_config()
    calls = [k.cri.begin("RunPodSandbox", config=config) for _ in range(10)]
    equal(len({c.result().pod_sandbox_id for c in calls}), 1, "different answers")
    equal(len(k.cri.ListPodSandbox().items), 1, "pods")


@test
def another_attempt_is_another_pod(k):
    config = k.pod_config()
    first = k.cri.RunPodSandbox(config=config).pod_sandbox_id
    config["metadata"]["attempt"] = 1
    check(k.cri.RunPodSandbox(config=config).pod_sandbox_id != first, "two ids")


@test
def a_removed_pods_name_can_be_used_again(k):
    config = k.pod_config()
    first = k.cri.RunPodSandbox(config=config).pod_sandbox_id
    k.cri.RemovePodSandbox(pod_sandbox_id=first)
    check(k.cri.RunPodSandbox(config=config).pod_sandbox_id != first, "a new pod")


@test
def a_cancelled_RunPodSandbox_leaves_nothing_that_its_retry_trips_over(k):  # T9
    config = merge(k.pod_config(hostname="a-pod"), options(network=pb.POD))
    for _ in range(5):
        k.cri.begin("RunPodSandbox", config=config).cancel()
    pod = k.cri.RunPodSandbox(config=config).pod_sandbox_id
    until("only one pod is READY", lambda: [
        p.id for p in k.cri.ListPodSandbox(filter={"state": {"state": pb.SANDBOX_READY}}).items] == [pod])


@test
def twenty_pods_at_once_are_twenty_pods(k):
    configs = [k.pod_config() for _ in range(20)]
    calls = [k.cri.begin("RunPodSandbox", config=c) for c in configs]
    equal(len({c.result().pod_sandbox_id for c in calls}), 20, "ids")


@test
def a_pod_without_metadata_or_with_a_bad_hostname_is_refused(k):  # T4, T49
    rows = ({"metadata": {"name": ""}}, {"metadata": {"namespace": ""}}, {"hostname": "a\nb"},
            {"hostname": "x" * 300}, {"dns_config": {"searches": ["a\nnameserver 6.6.6.6"]}})
    for row in rows:
        own = merge(merge(k.pod_config(hostname="ok"), options(network=pb.POD)), row)
        refused("INVALID_ARGUMENT", lambda own=own: k.cri.RunPodSandbox(config=own))
    refused("INVALID_ARGUMENT", k.cri.RunPodSandbox)
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def a_pod_needs_no_uid_and_keeps_that_it_has_none(k):
    pod = k.pod(metadata={"uid": ""})
    equal(pod.status().metadata.uid, "", "uid")
    equal(k.cri.RunPodSandbox(config=pod.config).pod_sandbox_id, pod.id, "the same again")
    other = k.pod(metadata={"name": pod.config["metadata"]["name"], "uid": "u"})
    check(other.id != pod.id, "with a uid it is another pod")
    equal(pod.prints("echo", "runs"), "runs\n", "output")


@test
def a_pod_on_the_hosts_network_cannot_have_a_name_of_its_own(k):
    refused("INVALID_ARGUMENT", lambda: k.pod(hostname="another"), "config.hostname")
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def an_unknown_runtime_handler_is_refused(k):
    try:
        pod = k.cri.RunPodSandbox(config=k.pod_config(), runtime_handler="no-such-handler")
    except Exception as error:  # pylint: disable=broad-except
        holds("no-such-handler", error.details(), "the message")
        return
    raise Failure(f"accepted: {pod}")


@test
def stop_and_remove_of_what_is_not_there_succeed(k):
    for unknown in ("0" * 64, "no-such-pod"):
        k.cri.StopPodSandbox(pod_sandbox_id=unknown)
        k.cri.RemovePodSandbox(pod_sandbox_id=unknown)
    pod = k.pod()
    for _ in range(3):
        pod.stop()
    for _ in range(3):
        pod.remove()


@test
def what_needs_a_pod_says_NOT_FOUND_without_one(k):
    unknown = "f" * 64
    pod = k.pod()
    config = {"metadata": {"name": "c"}, "image": {"image": k.image}, "command": SLEEP}
    refused("NOT_FOUND", lambda: k.cri.PodSandboxStatus(pod_sandbox_id=unknown))
    refused("NOT_FOUND", lambda: k.cri.CreateContainer(pod_sandbox_id=unknown, config=config,
                                                       sandbox_config=pod.config))
    pod.remove()
    refused("NOT_FOUND", pod.status)


@test
def a_stopped_pod_is_NOTREADY_with_its_containers_exited_and_takes_no_new_ones(k):
    pod = k.pod()
    container = pod.start()
    pod.stop()
    equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod")
    equal(container.status().state, pb.CONTAINER_EXITED, "the container")
    try:
        pod.create()
    except Exception:  # pylint: disable=broad-except
        return
    raise Failure("a container was made in a stopped pod")


@test
def RemovePodSandbox_ends_and_removes_what_runs_in_it(k):
    pod = k.pod()
    container = pod.start()
    pod.create()
    pod.remove()
    refused("NOT_FOUND", container.status)
    equal(len(k.cri.ListPodSandbox().items) + len(k.cri.ListContainers().containers), 0, "left")


@test
def a_unique_prefix_of_an_id_is_as_good_as_the_id(k):
    pod = k.pod()
    container = pod.start()
    for n in (13, 40):
        equal(k.cri.PodSandboxStatus(pod_sandbox_id=pod.id[:n]).status.id, pod.id, "status")
        equal([p.id for p in k.cri.ListPodSandbox(filter={"id": pod.id[:n]}).items], [pod.id],
              "list")
        equal(k.cri.ContainerStatus(container_id=container.id[:n]).status.id, container.id,
              "status")
        for question in ({"id": container.id[:n]}, {"pod_sandbox_id": pod.id[:n]}):
            equal([c.id for c in k.cri.ListContainers(filter=question).containers], [container.id],
                  f"containers with {question}")
        equal(k.cri.ExecSync(container_id=container.id[:n], cmd=["true"]).exit_code, 0, "exit code")
    k.cri.StopContainer(container_id=container.id[:13], timeout=0)
    k.cri.RemoveContainer(container_id=container.id[:13])
    k.cri.StopPodSandbox(pod_sandbox_id=pod.id[:13])
    equal(pod.status().state, pb.SANDBOX_NOTREADY, "state")
    k.cri.RemovePodSandbox(pod_sandbox_id=pod.id[:13])


@test
def an_ambiguous_prefix_is_an_error_in_calls(k):
    ids = [k.pod().id for _ in range(17)]  # two of seventeen share their first digit
    shared = next(i[0] for n, i in enumerate(ids) if i[0] in [j[0] for j in ids[:n]])
    try:
        answer = k.cri.PodSandboxStatus(pod_sandbox_id=shared)
    except Exception as error:  # pylint: disable=broad-except
        check(error.code().name != "NOT_FOUND", "the kubelet would take NOT_FOUND for gone")
        return
    raise Failure(f"{shared} was taken for {answer.status.id}")


@test
def list_filters_and_together(k):
    blue = k.pod(labels={"colour": "blue", "size": "1"})
    red = k.pod(labels={"colour": "red", "size": "1"})
    red.stop()
    ready, stopped = {"state": pb.SANDBOX_READY}, {"state": pb.SANDBOX_NOTREADY}
    rows = (
        ({}, {blue.id, red.id}), ({"id": blue.id}, {blue.id}), ({"id": "0" * 64}, set()),
        ({"state": ready}, {blue.id}), ({"state": stopped}, {red.id}),
        ({"label_selector": {"size": "1"}}, {blue.id, red.id}),
        ({"label_selector": {"size": "1", "colour": "red"}}, {red.id}),
        ({"label_selector": {"colour": "blu"}}, set()), ({"label_selector": {"no": ""}}, set()),
        ({"id": blue.id, "state": stopped}, set()),
        ({"state": ready, "label_selector": {"colour": "red"}}, set()))
    for question, wanted in rows:
        got = {p.id for p in k.cri.ListPodSandbox(filter=question).items}
        equal(got, wanted, f"pods with {question}")
    equal({p.id for p in k.cri.ListPodSandbox().items}, {blue.id, red.id}, "pods without a filter")


@test
def a_selector_may_have_as_many_pairs_as_a_pod_has_labels(k):
    """Compared each with each they would hold up every call for minutes."""
    labels = {f"k{n}": str(n) for n in range(200000)}
    pod = k.pod(labels=labels)
    def listed(selector):
        return [p.id for p in k.cri.ListPodSandbox(filter=pb.PodSandboxFilter(label_selector=selector)).items]
    equal(listed(dict(reversed(labels.items()))), [pod.id], "with its own labels, backwards")
    equal(listed(dict(labels, k0="1")), [], "with another value")
    equal(listed(dict(labels, more="")), [], "with one more")
    equal(listed({"k199999": "199999"}), [pod.id], "with one of them")


@test
def verbose_status_has_JSON_and_the_terse_one_has_none(k):
    import json
    pod = k.pod()
    equal(dict(k.cri.PodSandboxStatus(pod_sandbox_id=pod.id).info), {}, "info")
    info = k.cri.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info
    check(info, "there is verbose information")
    for value in info.values():
        json.loads(value)


@test
def verbose_status_says_how_to_enter_the_pods_namespaces(k):
    import json
    pod = k.own_network_pod(annotations={"x": "y"})

    def info():
        return json.loads(k.cri.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"])
    seen = info()
    spec = seen["runtimeSpec"]
    equal((spec["hostname"], spec["annotations"]), ("a-pod", {"x": "y"}), "hostname, annotations")
    spaces = {n["type"]: n.get("path") for n in spec["linux"]["namespaces"]}
    check({"network", "uts", "ipc"} <= set(spaces), f"namespaces {spaces}")
    equal(os.stat(spaces["network"]).st_ino, os.stat(f"/proc/{seen['pid']}/ns/net").st_ino,
          "the network namespace of .info.pid and of its path")
    pod.stop()
    equal(info()["pid"], 0, "the pid of a stopped pod")


# -- namespaces -----------------------------------------------------------------------------------

def marked(k):
    return ["sleep", str(1000000 + int(k.name("")))]


@test
def containers_of_a_pod_share_network_IPC_and_UTS_but_not_PID_and_mounts(k):
    pod = k.own_network_pod()
    one, two = (pid_of(pod.start(*marked(k))) for _ in range(2))
    for kind in ("net", "ipc", "uts"):
        equal(namespace(one, kind), namespace(two, kind), kind)
        check(namespace(one, kind) != namespace("self", kind), f"{kind} is not the host's")
    for kind in ("pid", "mnt"):
        check(namespace(one, kind) != namespace(two, kind), f"{kind} is each one's own")


@test
def a_pod_on_the_hosts_network_has_its_UTS_too(k):
    pid = pid_of(k.pod().start(*marked(k)))
    for kind in ("net", "uts"):
        equal(namespace(pid, kind), namespace("self", kind), kind)
    check(namespace(pid, "ipc") != namespace("self", "ipc"), "IPC is the pod's")


@test
def IPC_NODE_is_the_hosts_IPC_with_its_dev_shm(k):
    pod = k.pod(**options(ipc=pb.NODE))
    container = pod.start(*marked(k), **options(ipc=pb.NODE))
    equal(namespace(pid_of(container), "ipc"), namespace("self", "ipc"), "ipc")
    path = "/dev/shm/krun-test-" + pod.id[:12]
    container.sh("touch " + path)
    check(os.path.exists(path), "a file in /dev/shm is on the host's")
    os.unlink(path)


@test
def PID_CONTAINER_makes_each_command_number_1(k):
    pod = k.pod()
    for _ in range(2):
        equal(pod.prints("sh", "-c", "echo $$").strip(), "1", "pid")


@test
def PID_POD_shows_the_other_containers_processes(k):
    shared = options(pid=pb.POD)
    pod = k.pod(**shared)
    mark = marked(k)
    pod.start(*mark, **shared)
    seen = pod.prints("ps", **shared)
    holds(" ".join(mark), seen, "the processes")
    check(pod.prints("sh", "-c", "echo $$", **shared).strip() != "1", "1 is not the container's")


@test
def PID_NODE_is_the_hosts(k):
    pod = k.pod(**options(pid=pb.NODE))
    container = pod.start(*marked(k), **options(pid=pb.NODE))
    equal(namespace(pid_of(container), "pid"), namespace("self", "pid"), "pid")


@test
def PID_TARGET_is_that_containers(k):
    pod = k.pod()
    mark = marked(k)
    target = pod.start(*mark)
    holds(" ".join(mark), pod.prints("ps", **options(pid=pb.TARGET, target_id=target.id)), "ps")
    try:
        pod.create(**options(pid=pb.TARGET, target_id="0" * 64))
    except Exception:  # pylint: disable=broad-except
        return
    raise Failure("a target that is not there was accepted")


@test
def the_first_process_of_a_shared_PID_namespace_can_get_no_capability(k):
    """Who has SYS_PTRACE can have it execute any program; as it is root's, the bounding set alone decides
    what that program may do."""
    pod = k.pod(**options(pid=pb.POD))
    sets = pod.prints("grep", "^Cap", "/proc/1/status", **options(pid=pb.POD)).split()
    equal(sets, [word for name in ("Inh", "Prm", "Eff", "Bnd", "Amb") for word in (f"Cap{name}:", "0" * 16)],
          "its capabilities")


@test
def there_is_no_pause_process_unless_the_PID_namespace_is_shared(k):
    before = set(processes())
    k.pod()
    equal(len(set(processes()) - before), 1, "processes of an empty pod (its monitor)")
    k.pod(**options(pid=pb.POD))
    equal(len(set(processes()) - before), 3, "processes with a second pod that shares PIDs")


# -- files ----------------------------------------------------------------------------------------

@test
def the_hostname_is_the_pods(k):
    pod = k.own_network_pod(hostname="some-name")
    equal(pod.prints("hostname"), "some-name\n", "hostname")
    equal(pod.prints("cat", "/etc/hostname"), "some-name\n", "/etc/hostname")
    holds("some-name", pod.prints("cat", "/etc/hosts"), "/etc/hosts")
    check(socket.gethostname() != "some-name", "the host's name is as before")


@test
def a_pod_on_the_hosts_network_has_the_hosts_name(k):
    equal(k.pod().prints("hostname").strip(), socket.gethostname(), "hostname")


@test
def etc_hosts_names_localhost(k):
    holds("127.0.0.1", k.own_network_pod().prints("cat", "/etc/hosts"), "/etc/hosts")
    holds("localhost", k.pod().prints("cat", "/etc/hosts"), "/etc/hosts")


@test
def resolv_conf_is_written_from_the_DNS_configuration(k):
    pod = k.pod(dns_config={"servers": ["10.1.1.1", "10.1.1.2"], "searches": ["a.test", "b.test"],
                            "options": ["ndots:5", "edns0"]})
    equal(pod.prints("cat", "/etc/resolv.conf"),
          "search a.test b.test\nnameserver 10.1.1.1\nnameserver 10.1.1.2\noptions ndots:5 edns0\n",
          "resolv.conf")


@test
def resolv_conf_is_the_hosts_without_a_DNS_configuration_and_empty_with_an_empty_one(k):
    with open("/etc/resolv.conf") as f:
        hosts = f.read()
    equal(k.pod().prints("cat", "/etc/resolv.conf"), hosts, "without")
    equal(k.pod(dns_config={}).prints("cat", "/etc/resolv.conf"), "", "with an empty one")


@test
def dev_shm_is_64_MiB_and_shared_within_the_pod_only(k):
    pod = k.pod()
    one, two = pod.start(), pod.start()
    equal(one.sh("df -k /dev/shm | tail -1 | awk '{print $2}'").strip(), "65536", "KiB")
    equal(one.sh("stat -c %a /dev/shm").strip(), "1777", "mode")
    one.sh("echo here >/dev/shm/a")
    equal(two.sh("cat /dev/shm/a"), "here\n", "the other container's view")
    equal(k.pod().prints("ls", "/dev/shm"), "", "another pod's view")


# -- sysctls --------------------------------------------------------------------------------------

@test
def namespaced_sysctls_are_set_in_the_pod_alone(k):
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        before = f.read()
    pod = k.own_network_pod(linux={"sysctls": {"net.ipv4.ip_local_port_range": "40000 50000",
                                               "kernel.msgmax": "12345"}})
    equal(pod.prints("cat", "/proc/sys/net/ipv4/ip_local_port_range").split(), ["40000", "50000"],
          "in the pod")
    equal(pod.prints("cat", "/proc/sys/kernel/msgmax").strip(), "12345", "kernel.msgmax in the pod")
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        equal(f.read(), before, "on the host")


@test
def low_ports_and_ping_need_no_rights_in_a_pods_own_network(k):
    pod = k.own_network_pod()
    equal(pod.prints("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").strip(), "0", "ports")
    equal(pod.prints("cat", "/proc/sys/net/ipv4/ping_group_range").split(), ["0", "2147483647"],
          "ping")


@test
def sysctls_that_are_not_the_pods_own_are_refused(k):  # T48, CVE-2022-0532, CVE-2022-0811
    own = options(network=pb.POD)
    rows = (
        (own, {"kernel.core_pattern": "|/x"}), (own, {"vm.swappiness": "1"}),
        (own,
         {"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/x", "kernel/../vm.swappiness": "1"}),
        (own, {"net/../kernel/core_pattern": "x"}), (own, {"net.ipv4.ip_forward\nx": "1"}),
        (options(network=pb.NODE), {"net.ipv4.ip_forward": "1"}),
        (merge(own, options(ipc=pb.NODE)), {"kernel.shmmax": "1"}))
    for pod, sysctls in rows:
        config = merge(merge(k.pod_config(hostname="h"), pod), {"linux": {"sysctls": sysctls}})
        refused("INVALID_ARGUMENT", lambda config=config: k.cri.RunPodSandbox(config=config))
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


# -- cgroups --------------------------------------------------------------------------------------

def cgroup_of(pid):
    with open(f"/proc/{pid}/cgroup") as f:
        return next(line[3:].strip() for line in f if line.startswith("0::"))


@test
def containers_live_below_the_cgroup_parent_which_stays_if_krun_did_not_make_it(k):
    if not cgroup2_mount():
        skip("no cgroup version 2 tree")
    parent = "/krt-kubelet/pod1"
    path = cgroup2_mount() + parent
    os.makedirs(path)
    try:
        pod = k.pod(linux={"cgroup_parent": parent})
        container = pod.start(*marked(k))
        place = cgroup_of(pid_of(container))
        check(place.startswith(parent + "/"), f"{place} is below {parent}")
        check(container.id in os.path.basename(place),
              f"{place} has the container's id, for cAdvisor")
        pod.remove()
        check(os.path.isdir(path), "the kubelet's cgroup is still there")
        equal([d for d in os.listdir(path) if os.path.isdir(f"{path}/{d}")], [], "cgroups below it")
    finally:
        os.rmdir(path)
        os.rmdir(os.path.dirname(path))


@test
def a_cgroup_parent_that_krun_made_goes_with_the_pod(k):
    if not cgroup2_mount():
        skip("no cgroup version 2 tree")
    pod = k.pod(linux={"cgroup_parent": "/krt-made/by/krun"})
    pod.start()
    pod.remove()
    check(not os.path.exists(cgroup2_mount() + "/krt-made"), "the cgroups are gone")


@test
def a_cgroup_parent_cannot_lead_out_of_the_tree(k):
    for parent in ("/../../x", "/a/../../b", "/a\nb"):
        config = k.pod_config(linux={"cgroup_parent": parent})
        refused("INVALID_ARGUMENT", lambda config=config: k.cri.RunPodSandbox(config=config))
