"""Pod networks through real CNI plugins (bridge, host-local, portmap) and through one of ours that
writes down how it was called and fails on request."""
import functools
import ipaddress
import json
import os
import signal
import socket
import subprocess

from harness import (BRIDGE, DEADLINE, Failure, check, equal, holds, merge, pb, refused, restarts,
                     running, test, tree, until)

RECORDER = """#!/bin/sh
# Keeps what a CNI plugin is told; answers with the result of the plugin before it.
d=%(d)s
n=$d/$(date +%%s%%N).$$
cat >$n.stdin
env | grep ^CNI_ >$n.env
[ ! -e $d/hang ] || sleep 98765
[ ! -e $d/fail ] || [ "$CNI_COMMAND" != ADD ] ||
    { echo '{"cniVersion":"1.0.0","code":11,"msg":"told to fail"}'; exit 1; }
[ ! -e $d/rubbish ] || { echo 'this is no JSON'; exit 0; }
[ "$CNI_COMMAND" != ADD ] || /usr/bin/python3 -c '
import json, sys
print(json.dumps(json.load(open(sys.argv[1]))["prevResult"]))' $n.stdin
"""

# The bridge plugin, which does as files in our directory say: `fail-DEL` makes its DEL fail before it
# has done anything, `slow-ADD` and `slow-DEL` give it something to wait for first, with `orphan-ADD` it
# is killed while its IPAM plugin runs. It writes down each call, and whether a process "sleep
# 56..." ran at that time; and that it came to its end.
STUBBORN = """#!/bin/sh
d=%(d)s
echo "$CNI_COMMAND $CNI_CONTAINERID $(grep -lz '^56' /proc/[0-9]*/cmdline 2>/dev/null | wc -l)" >>$d/bridge.calls
while [ -e $d/slow-$CNI_COMMAND ]; do sleep 0.1; done
[ ! -e $d/fail-$CNI_COMMAND ] ||
    { echo '{"cniVersion":"1.0.0","code":11,"msg":"told to fail"}'; exit 1; }
[ ! -e $d/orphan-$CNI_COMMAND ] || { exec 4<&0; (sleep 1; /usr/lib/cni/host-local <&4) & kill -9 $$; }
/usr/lib/cni/bridge
status=$?
echo "end-of-$CNI_COMMAND $CNI_CONTAINERID" >>$d/bridge.calls
exit $status
"""


# A plugin that nobody waits for any more has two seconds to end, not ten; a failed DEL is sent again after one.
HASTE = {"KRUN_HASTE": "5"}


def setup(k):
    k.environment = dict(HASTE)
    k.write_cni()
    k.calls = k.directory + "/calls"
    os.makedirs(k.calls)
    plugins = k.directory + "/plugins"
    os.makedirs(plugins)
    with open(plugins + "/recorder", "w") as f:
        f.write(RECORDER % {"d": k.calls})
    with open(plugins + "/stubborn", "w") as f:
        f.write(STUBBORN % {"d": k.calls})
    for name in ("recorder", "stubborn"):
        os.chmod(f"{plugins}/{name}", 0o755)
    # The flag takes directories split by ':', as PATH does.
    k.flags += ["--cni-bin-dir", plugins + ":/usr/lib/cni"]
    k.restart()


def before_each(k):
    k.write_cni()
    for name in os.listdir(k.calls):
        os.unlink(os.path.join(k.calls, name))


def with_recorder(k):
    """Makes the network end in our recording plugin, for this test."""
    path = k.cni + "/10-test.conflist"
    with open(path) as f:
        conf = json.load(f)
    if conf["plugins"][-1]["type"] != "recorder":
        conf["plugins"].append({"type": "recorder", "capabilities": {"portMappings": True}})
    with open(k.cni + "/.new", "w") as f:
        json.dump(conf, f)
    os.rename(k.cni + "/.new", path)


def recorded(k):
    """(environment, stdin) of each call, in order."""
    out = []
    for name in sorted(n[:-4] for n in os.listdir(k.calls) if n.endswith(".env")):
        with open(f"{k.calls}/{name}.env") as f:
            environment = dict(line.rstrip("\n").split("=", 1) for line in f)
        with open(f"{k.calls}/{name}.stdin") as f:
            out.append((environment, json.load(f)))
    return out


def serve(pod, port=8080):
    """A container that answers HTTP on this port once it runs."""
    container = pod.start("sh", "-c", f"echo hello >/tmp/index.html; httpd -p {port} -h /tmp; "
                                      "echo serving; sleep 98765")
    until("it serves", lambda: "serving" in container.output())
    return container


def fetch(address, port=8080):
    with socket.create_connection((address, port), timeout=DEADLINE) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        out = b""
        while True:
            part = s.recv(4096)
            if not part:
                return out.decode()
            out += part


@test
def the_pods_address_is_in_its_status_and_inside(k):
    pod = k.own_network_pod()
    address = pod.status().network.ip
    check(ipaddress.ip_address(address) in ipaddress.ip_network("10.123.0.0/16"), address)
    holds(address, pod.prints("ip", "-4", "addr", "show", "eth0"), "the container's view")
    holds(address, pod.prints("cat", "/etc/hosts"), "/etc/hosts")
    holds("default via 10.123.0.1", pod.prints("ip", "route"), "routes")
    equal(pod.status().linux.namespaces.options.network, pb.POD, "mode")


@test
def loopback_is_up_in_the_pod(k):
    holds("LOOPBACK,UP", pod_links(k.own_network_pod()), "links")


def pod_links(pod):
    return pod.prints("ip", "link", "show", "lo")


@test
def the_host_and_other_pods_reach_it(k):
    server = k.own_network_pod()
    serve(server)
    address = server.status().network.ip
    holds("hello", fetch(address), "the host's view")
    equal(k.own_network_pod().prints("wget", "-qO-", f"http://{address}:8080/"), "hello\n",
          "another pod's view")


@test
def a_host_port_leads_to_the_container_port(k):
    pod = k.own_network_pod(port_mappings=[{"container_port": 8080, "host_port": 12080},
                                           {"container_port": 8081, "host_port": 0}])
    serve(pod)
    holds("hello", fetch("10.123.0.1", 12080), "through the host port")
    pod.stop()
    rules = subprocess.check_output(["iptables-save", "-t", "nat"]).decode()
    check("12080" not in rules, "the rule went with the pod")


@test
def the_network_namespace_is_pinned_while_the_pod_is_there(k):
    pod = k.own_network_pod()
    equal(os.listdir("/run/netns"), ["krun-" + pod.id], "/run/netns")
    pod.stop()
    equal(os.listdir("/run/netns"), [], "/run/netns after the stop")


@test
def the_address_is_given_back_when_the_pod_stops(k):
    pod = k.own_network_pod()
    equal(k.reserved_addresses(), [pod.status().network.ip], "reserved")
    pod.stop()
    equal(k.reserved_addresses(), [], "reserved after the stop")
    pod.stop()


@test
def a_pod_on_the_hosts_network_meets_no_plugin(k):
    with_recorder(k)
    k.pod().start().remove()
    equal(recorded(k), [], "calls")


@test
def plugins_are_told_what_the_CNI_specification_says(k):
    with_recorder(k)
    pod = k.own_network_pod(port_mappings=[{"container_port": 80, "host_port": 12090,
                                            "protocol": pb.UDP}])
    pod.stop()
    calls = recorded(k)
    equal([e["CNI_COMMAND"] for e, _ in calls], ["ADD", "DEL"], "commands")
    for environment, conf in calls:
        equal(environment["CNI_CONTAINERID"], pod.id, "CNI_CONTAINERID")
        equal(environment["CNI_IFNAME"], "eth0", "CNI_IFNAME")
        equal(environment["CNI_NETNS"], "/run/netns/krun-" + pod.id, "CNI_NETNS")
        arguments = dict(a.split("=", 1) for a in environment["CNI_ARGS"].split(";"))
        equal(arguments["K8S_POD_NAME"], pod.config["metadata"]["name"], "K8S_POD_NAME")
        equal(arguments["K8S_POD_NAMESPACE"], "tests", "K8S_POD_NAMESPACE")
        equal(arguments["K8S_POD_INFRA_CONTAINER_ID"], pod.id, "K8S_POD_INFRA_CONTAINER_ID")
        equal((conf["cniVersion"], conf["name"], conf["type"]), ("1.0.0", "krun-test", "recorder"),
              "conf")
        mapping = conf["runtimeConfig"]["portMappings"][0]
        equal((mapping["hostPort"], mapping["containerPort"], mapping["protocol"].lower()),
              (12090, 80, "udp"), "port mapping")
        check("prevResult" in conf, "prevResult")


@test
def a_failed_ADD_is_undone_and_its_reason_told(k):  # T45
    with_recorder(k)
    with open(k.calls + "/fail", "w"):
        pass
    config = merge(k.pod_config(hostname="h"),
                   {"linux": {"security_context": {"namespace_options": {"network": pb.POD}}}})
    try:
        k.cri.RunPodSandbox(config=config)
        raise Failure("the pod is there")
    except Failure:
        raise
    except Exception as error:  # pylint: disable=broad-except
        holds("told to fail", error.details(), "the message")
        holds("recorder", error.details(), "the message")
    finally:
        os.unlink(k.calls + "/fail")
    until("the address is back", lambda: not k.reserved_addresses())
    equal([p.id for p in k.cri.ListPodSandbox(filter={"state": {"state": pb.SANDBOX_READY}}).items],
          [], "ready pods")
    k.cri.RunPodSandbox(config=config)  # the retry, with the same metadata


@test
def rubbish_from_a_plugin_and_a_missing_plugin_are_named(k):  # T45
    config = merge(k.pod_config(hostname="h"),
                   {"linux": {"security_context": {"namespace_options": {"network": pb.POD}}}})
    with_recorder(k)
    with open(k.calls + "/rubbish", "w"):
        pass
    rows = [("recorder", k.cni + "/10-test.conflist", None)]
    rows.append(("no-such-plugin", k.cni + "/10-test.conflist", {
        "cniVersion": "1.0.0", "name": "krun-test", "plugins": [{"type": "no-such-plugin"}]}))
    for wanted, path, conf in rows:
        if conf:
            with open(path, "w") as f:
                json.dump(conf, f)
        try:
            k.cri.RunPodSandbox(config=config)
            raise Failure("the pod is there")
        except Failure:
            raise
        except Exception as error:  # pylint: disable=broad-except
            holds(wanted, error.details(), "the message")
        k.remove_all()
    os.unlink(k.calls + "/rubbish")
    k.write_cni()
    until("addresses are back", lambda: not k.reserved_addresses())


@test
def a_hanging_plugin_delays_its_own_pod_only(k):  # T45
    with_recorder(k)
    with open(k.calls + "/hang", "w"):
        pass
    config = merge(k.pod_config(hostname="h"),
                   {"linux": {"security_context": {"namespace_options": {"network": pb.POD}}}})
    call = k.cri.begin("RunPodSandbox", config=config)
    until("the plugin hangs", lambda: recorded(k))
    k.cri.Status()
    k.pod().start().run("true")
    check(not call.done(), "the hanging one is still under way")
    call.cancel()
    os.unlink(k.calls + "/hang")
    k.write_cni()
    k.cri.RunPodSandbox(config=config)  # joins or comes after: either way a pod


@test
def a_pod_can_be_stopped_when_its_namespace_was_deleted_under_it(k):
    pod = k.own_network_pod()
    subprocess.check_call(["ip", "netns", "del", "krun-" + pod.id])
    pod.stop()
    equal(k.reserved_addresses(), [], "reserved")


@test
def a_pod_can_be_removed_when_the_configuration_is_gone(k):
    pod = k.own_network_pod()
    os.unlink(k.cni + "/10-test.conflist")
    pod.stop()
    pod.remove()
    equal(k.reserved_addresses(), [], "reserved")
    k.write_cni()


@test
def a_second_address_is_among_the_additional_ones(k):
    if not os.path.exists("/proc/sys/net/ipv6"):
        from harness import skip
        skip("this kernel has no IPv6")
    path = k.cni + "/10-test.conflist"
    with open(path) as f:
        conf = json.load(f)
    conf["plugins"][0]["ipam"]["ranges"].append([{"subnet": "fd00:1234::/64"}])
    with open(path, "w") as f:
        json.dump(conf, f)
    network = k.own_network_pod().status().network
    equal(ipaddress.ip_address(network.ip).version, 4, "the first address")
    equal([ipaddress.ip_address(a.ip).version for a in network.additional_ips], [6], "the others")
    k.remove_all()
    subprocess.check_call(["ip", "-6", "addr", "flush", "dev", BRIDGE, "scope", "global"])
    k.write_cni()


@test
def the_kernel_takes_the_links_with_the_namespace(k):
    pods = [k.own_network_pod() for _ in range(5)]
    for pod in pods:
        pod.remove()
    links = json.loads(subprocess.check_output(["ip", "-j", "link", "show", "master",
                                                BRIDGE]) or "[]")
    until("the bridge has no port left", lambda: not [
        x for x in json.loads(subprocess.check_output(
            ["ip", "-j", "link", "show", "master", BRIDGE]) or "[]") if x.get("ifname")] or not links)


# -- a DEL that fails is owed ----------------------------------------------------------------------

def with_stubborn(k, *told):
    """Makes the bridge plugin of the network our stubborn one; `told` are names of files for it."""
    path = k.cni + "/10-test.conflist"
    with open(path) as f:
        conf = json.load(f)
    conf["plugins"][0]["type"] = "stubborn"
    with open(k.cni + "/.new", "w") as f:
        json.dump(conf, f)
    os.rename(k.cni + "/.new", path)
    for name in told:
        tell(k, name)


def tell(k, name):
    with open(f"{k.calls}/{name}", "w"):
        pass


def forget(k, name):
    os.unlink(f"{k.calls}/{name}")


def bridge_calls(k, command):
    """The ids of the pods for which the stubborn plugin was called so, call by call."""
    try:
        with open(k.calls + "/bridge.calls") as f:
            return [line.split()[1] for line in f if line.startswith(command + " ")]
    except FileNotFoundError:
        return []


def owed(k):
    """What lies in --root about networks that are still to be taken down."""
    return [p for p in tree(k.root, ("images", "layers", "pods")) if "network" in p and "/" in p]


def own_network(k):
    return merge(k.pod_config(hostname="h"),
                 {"linux": {"security_context": {"namespace_options": {"network": pb.POD}}}})


def settled(k):
    until("addresses are back", lambda: not k.reserved_addresses())
    until("the namespaces are gone", lambda: not os.listdir("/run/netns"))
    until("nothing is owed", lambda: not owed(k))


@test
def containers_have_ended_before_the_network_goes(k):
    with_stubborn(k)
    pod = k.own_network_pod()
    pod.start("sleep", "5600001")
    pod.stop()
    with open(k.calls + "/bridge.calls") as f:
        calls = [line.split() for line in f if "end-of" not in line]
    equal([(c[0], c[2]) for c in calls], [("ADD", "0"), ("DEL", "0")],
          "calls, and containers that ran then")


@test
def StopPodSandbox_says_that_DEL_failed_and_the_next_one_sends_it_again(k):
    with_stubborn(k, "fail-DEL")
    pod = k.own_network_pod()
    container = pod.start("sleep", "5600002")
    address = pod.status().network.ip
    for _ in range(2):
        holds("stubborn", refused("INTERNAL", pod.stop, "told to fail"), "the message")
        equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod")
        equal(container.status().state, pb.CONTAINER_EXITED, "the container")
        equal(k.reserved_addresses(), [address], "reserved")
        equal(os.listdir("/run/netns"), ["krun-" + pod.id], "namespaces, for the next attempt")
    forget(k, "fail-DEL")
    pod.stop()
    equal(k.reserved_addresses(), [], "reserved after a DEL that succeeds")
    equal((os.listdir("/run/netns"), owed(k)), ([], []), "what is left")
    n = len(bridge_calls(k, "DEL"))
    pod.stop()
    pod.remove()
    equal(len(bridge_calls(k, "DEL")), n, "DELs once one has succeeded")


@test
def a_DEL_that_failed_is_sent_again_without_being_asked_for(k):
    with_stubborn(k, "fail-DEL")
    pod = k.own_network_pod()
    refused("INTERNAL", pod.stop)
    forget(k, "fail-DEL")
    settled(k)
    equal(pod.status().state, pb.SANDBOX_NOTREADY, "the pod")
    pod.stop()


@test
def a_pod_whose_DEL_fails_can_be_removed_and_its_address_comes_back(k):
    with_stubborn(k, "fail-DEL")
    pods = [k.own_network_pod() for _ in range(6)]
    for pod in pods:
        pod.start()
        pod.remove()
        refused("NOT_FOUND", pod.status)
    equal(len(k.reserved_addresses()), 6, "reserved meanwhile")
    forget(k, "fail-DEL")
    settled(k)


@test
def krun_rm_removes_a_pod_whose_DEL_fails(k):
    with_stubborn(k, "fail-DEL")
    pod = k.own_network_pod()
    k.cli("rm", pod.id)
    refused("NOT_FOUND", pod.status)
    forget(k, "fail-DEL")
    settled(k)


@restarts
@test
def what_is_owed_outlives_the_daemon(k):
    with_stubborn(k, "fail-DEL")
    removed, stopped = k.own_network_pod(), k.own_network_pod()
    removed.remove()
    refused("INTERNAL", stopped.stop)
    k.kill()
    forget(k, "fail-DEL")
    k.start()
    settled(k)
    equal([p.id for p in k.cri.ListPodSandbox().items], [stopped.id], "pods")


@restarts
@test
def a_daemon_that_dies_between_the_two_records_of_what_is_owed_owes_it(k):
    for removed in (False, True):
        with_stubborn(k, "fail-DEL")
        k.environment = {**HASTE, "KRUN_FAULT": "pod.owed:1"}
        k.restart()
        pod = k.own_network_pod()
        name = "RemovePodSandbox" if removed else "StopPodSandbox"
        check(k.cri.begin(name, pod_sandbox_id=pod.id).exception(), "the daemon died")
        k.environment = dict(HASTE)
        forget(k, "fail-DEL")
        k.restart()
        settled(k)
        k.remove_all()


@restarts
@test
def a_half_made_pod_is_owed_its_DEL_and_does_not_hold_up_the_start(k):
    with_stubborn(k, "fail-DEL")
    k.environment = {**HASTE, "KRUN_FAULT": "pod.connected:1"}
    k.restart()
    k.cri.begin("RunPodSandbox", config=own_network(k)).exception()
    k.environment = dict(HASTE)
    equal(len(k.reserved_addresses()), 1, "addresses of the half-made pod")
    forget(k, "fail-DEL")
    tell(k, "slow-DEL")
    k.restart()
    k.cri.Status()
    until("DEL is under way", lambda: bridge_calls(k, "DEL"))
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")
    forget(k, "slow-DEL")
    settled(k)


@test
def a_failed_RunPodSandbox_owes_its_DEL(k):
    with_recorder(k)
    with_stubborn(k, "fail-DEL", "fail")
    refused("INTERNAL", lambda: k.cri.RunPodSandbox(config=own_network(k)), "told to fail")
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")
    equal(len(k.reserved_addresses()), 1, "reserved: the bridge's ADD had gone well")
    forget(k, "fail-DEL")
    settled(k)


@test
def a_failed_ADD_is_undone_once(k):
    with_recorder(k)
    with_stubborn(k, "fail")
    refused("INTERNAL", lambda: k.cri.RunPodSandbox(config=own_network(k)), "told to fail")
    equal([e["CNI_COMMAND"] for e, _ in recorded(k)], ["ADD", "DEL"], "the recorder's calls")
    equal(len(bridge_calls(k, "DEL")), 1, "the bridge's DELs")
    settled(k)


@test
def a_missing_plugin_owes_nothing(k):
    with_stubborn(k)
    path = k.cni + "/10-test.conflist"
    with open(path) as f:
        conf = json.load(f)
    conf["plugins"].append({"type": "no-such-plugin"})
    with open(path, "w") as f:
        json.dump(conf, f)
    refused("FAILED_PRECONDITION", lambda: k.cri.RunPodSandbox(config=own_network(k)), "no-such-plugin")
    equal((bridge_calls(k, "ADD"), owed(k), k.reserved_addresses()), ([], [], []), "what was done")


@restarts
@test
def a_damaged_record_of_what_is_owed_is_told_of_and_harms_nothing_else(k):
    with_stubborn(k, "fail-DEL")
    pods = [k.own_network_pod() for _ in range(4)]
    for pod in pods:
        pod.remove()
    k.kill()
    paths = [f"{k.root}/networks/{pod.id}" for pod in pods]
    os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
    os.truncate(paths[1], 0)
    os.unlink(paths[2])
    os.mkdir(paths[2])
    forget(k, "fail-DEL")
    k.start()
    until("the good one is settled", lambda: not os.path.exists(paths[3]))
    until("the others are told of", lambda: sum(
        "cannot be used" in line for line in k.log_end(100).splitlines()) >= 3)
    for pod, path in list(zip(pods, paths))[:3]:
        (os.rmdir if os.path.isdir(path) else os.unlink)(path)
        subprocess.check_call(["ip", "netns", "del", "krun-" + pod.id])
    equal(len(k.reserved_addresses()), 3, "addresses whose records are lost")
    for address in k.reserved_addresses():
        os.unlink(f"{k.directory}/ipam/krun-test/{address}")


@restarts
@test
def what_is_owed_is_given_up_once_no_configuration_names_the_network(k):
    with_stubborn(k, "fail-DEL")
    pod, removed = k.own_network_pod(), k.own_network_pod()
    refused("INTERNAL", pod.stop)
    removed.remove()
    os.rename(k.cni + "/10-test.conflist", k.cni + "/aside")
    until("nothing is owed", lambda: not owed(k))
    until("the namespaces are gone", lambda: not os.listdir("/run/netns"))
    pod.stop()
    equal(len(k.reserved_addresses()), 2, "addresses that nobody can give back")
    for address in k.reserved_addresses():
        os.unlink(f"{k.directory}/ipam/krun-test/{address}")


# -- a plugin does not outlive whoever undoes its work ----------------------------------------------

def patient(function):
    """A test of a plugin that ends in time has all the time that there is."""
    @functools.wraps(function)
    def run(k):
        k.environment = {}
        k.restart()
        try:
            function(k)
        finally:
            k.environment = dict(HASTE)
            k.restart()
    return restarts(run)


def daemon_dies_in_an_ADD(k, number):
    """Ends the daemon while a plugin's ADD waits; a new one serves. Gives the pod's id."""
    with_stubborn(k, "slow-ADD")
    call = k.cri.begin("RunPodSandbox", config=own_network(k))
    until("ADD is under way", lambda: bridge_calls(k, "ADD"))
    k.end(number)
    call.exception()
    k.start()
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")
    return bridge_calls(k, "ADD")[0]


def the_undo_came_after(k):
    forget(k, "slow-ADD")
    until("the pod's DEL", lambda: bridge_calls(k, "end-of-DEL"))
    settled(k)
    check(not running("stubborn"), "no plugin is left")


@test
@patient
def an_ADD_whose_daemon_was_killed_ends_before_its_DEL(k):
    pod = daemon_dies_in_an_ADD(k, signal.SIGKILL)
    the_undo_came_after(k)
    with open(k.calls + "/bridge.calls") as f:
        calls = [line.split()[0] for line in f if pod in line]
    equal(calls, ["ADD", "end-of-ADD", "DEL", "end-of-DEL"], "calls")


@restarts
@test
def an_ADD_whose_daemon_was_ended_ends_before_its_DEL(k):
    daemon_dies_in_an_ADD(k, signal.SIGTERM)
    the_undo_came_after(k)


@restarts
@test
def an_ADD_that_hangs_and_whose_daemon_was_killed_is_killed_and_undone(k):
    daemon_dies_in_an_ADD(k, signal.SIGKILL)
    until("the pod's DEL", lambda: bridge_calls(k, "end-of-DEL"))
    equal(bridge_calls(k, "end-of-ADD"), [], "ADDs that ended")
    until("no plugin is left", lambda: not running("stubborn"))
    the_undo_came_after(k)


@test
@patient
def a_DEL_whose_daemon_was_killed_ends_before_the_next_one(k):
    with_stubborn(k, "slow-DEL")
    pod = k.own_network_pod()
    call = k.cri.begin("StopPodSandbox", pod_sandbox_id=pod.id)
    until("DEL is under way", lambda: bridge_calls(k, "DEL"))
    k.restart()
    call.exception()
    equal(len(bridge_calls(k, "DEL")), 1, "DELs while the first one runs")
    forget(k, "slow-DEL")
    settled(k)
    with open(k.calls + "/bridge.calls") as f:
        equal([line.split()[0] for line in f], ["ADD", "end-of-ADD"] + ["DEL", "end-of-DEL"] * 2, "calls")


@test
@patient
def an_ADD_whose_caller_hangs_up_may_finish_what_it_has_begun(k):
    with_stubborn(k, "slow-ADD")
    call = k.cri.begin("RunPodSandbox", config=own_network(k))
    until("ADD is under way", lambda: bridge_calls(k, "ADD"))
    call.cancel()
    k.cri.Status()
    forget(k, "slow-ADD")
    until("the pod's DEL", lambda: bridge_calls(k, "end-of-DEL"))
    equal(len(bridge_calls(k, "end-of-ADD")), 1, "ADDs that ended")
    settled(k)


@test
@patient
def what_a_plugin_that_was_killed_leaves_running_ends_before_the_DEL(k):
    with_stubborn(k, "orphan-ADD")
    refused("INTERNAL", lambda: k.cri.RunPodSandbox(config=own_network(k)), "stubborn")
    forget(k, "orphan-ADD")
    settled(k)
