"""Every field of every request: what krun does with it. A field that cri.proto gains and that has no row
here fails the walk, so none can be forgotten.

  yes   it is honoured; the tests of its subject show it
  no    it is refused with its name; the requests below show it
  -     it says nothing to a runtime such as krun; README.md names it ("Fields without a meaning here")
A field whose verdict is "no" or "-" is not walked into."""
import contextlib
import os
import subprocess

from harness import TOP, Failure, check, equal, merge, pb, refused, test

VERDICTS = """
AttachRequest -
AuthConfig username yes password yes auth yes server_address yes identity_token yes registry_token yes
Capability add_capabilities yes drop_capabilities yes add_ambient_capabilities yes
CDIDevice name yes
CheckpointContainerRequest -
CheckpointPodRequest -
ContainerConfig metadata yes image yes command yes args yes working_dir yes envs yes mounts yes devices yes
  labels yes annotations yes log_path yes stdin yes stdin_once yes tty yes linux yes windows -
  CDI_devices no stop_signal yes
ContainerFilter id yes state yes pod_sandbox_id yes label_selector yes
ContainerMetadata name yes attempt yes
ContainerStateValue state yes
ContainerStatsRequest -
ContainerStatusRequest container_id yes verbose yes
CreateContainerRequest pod_sandbox_id yes config yes sandbox_config -
Device container_path yes host_path yes permissions yes
DNSConfig servers yes searches yes options yes
ExecRequest -
ExecSyncRequest container_id yes cmd yes timeout yes
GetEventsRequest -
HugepageLimit page_size yes limit yes
ImageFilter image yes
ImageFsInfoRequest
ImageSpec image yes annotations - user_specified_image yes runtime_handler - image_ref -
ImageStatusRequest image yes verbose yes
Int64Value value yes
KeyValue key yes value yes
LinuxContainerConfig resources yes security_context yes
LinuxContainerResources cpu_period yes cpu_quota yes cpu_shares yes memory_limit_in_bytes yes
  oom_score_adj yes cpuset_cpus yes cpuset_mems yes hugepage_limits yes unified yes
  memory_swap_limit_in_bytes yes
LinuxContainerSecurityContext capabilities yes privileged yes namespace_options yes selinux_options no
  run_as_user yes run_as_group yes run_as_username yes readonly_rootfs yes supplemental_groups yes
  no_new_privs yes masked_paths yes readonly_paths yes seccomp no apparmor no apparmor_profile no
  seccomp_profile_path no supplemental_groups_policy yes
LinuxPodSandboxConfig cgroup_parent yes security_context yes sysctls yes overhead - resources -
LinuxSandboxSecurityContext namespace_options yes selinux_options no run_as_user - run_as_group -
  readonly_rootfs - supplemental_groups - privileged yes seccomp - apparmor - seccomp_profile_path -
  supplemental_groups_policy -
ListContainersRequest filter yes
ListContainerStatsRequest -
ListImagesRequest filter yes
ListMetricDescriptorsRequest -
ListPodSandboxMetricsRequest -
ListPodSandboxRequest filter yes
ListPodSandboxStatsRequest -
Mount container_path yes host_path yes readonly yes selinux_relabel - propagation yes uidMappings no
  gidMappings no recursive_read_only yes image yes image_sub_path yes mount_options yes
NamespaceOption network yes pid yes ipc yes target_id yes userns_options no
NetworkConfig pod_cidr -
PodSandboxConfig metadata yes hostname yes log_directory yes dns_config yes port_mappings yes labels yes
  annotations yes linux yes windows -
PodSandboxFilter id yes state yes label_selector yes
PodSandboxMetadata name yes uid yes namespace yes attempt yes
PodSandboxStateValue state yes
PodSandboxStatsRequest -
PodSandboxStatusRequest pod_sandbox_id yes verbose yes
PortForwardRequest -
PortMapping protocol yes container_port yes host_port yes host_ip yes
PullImageRequest image yes auth yes sandbox_config -
RemoveContainerRequest container_id yes
RemoveImageRequest image yes
RemovePodSandboxRequest pod_sandbox_id yes
ReopenContainerLogRequest container_id yes
RestorePodRequest -
RunPodSandboxRequest config yes runtime_handler yes
RuntimeConfig network_config yes
RuntimeConfigRequest
StartContainerRequest container_id yes
StatusRequest verbose yes
StopContainerRequest container_id yes timeout yes
StopPodSandboxRequest pod_sandbox_id yes
StreamContainersRequest filter yes
StreamContainerStatsRequest -
StreamImagesRequest filter yes
StreamPodSandboxesRequest filter yes
StreamPodSandboxMetricsRequest -
StreamPodSandboxStatsRequest -
UpdateContainerResourcesRequest -
UpdatePodSandboxResourcesRequest -
UpdateRuntimeConfigRequest runtime_config yes
VersionRequest version -
"""


def table():
    """Message to {field: verdict}; a message with "-" alone is of a call that is not built yet."""
    found, name = {}, None
    for line in VERDICTS.strip().splitlines():
        words = line.split()
        if not line.startswith(" "):
            name, words = words[0], words[1:]
            found[name] = None if words == ["-"] else {}
        if found[name] is not None:
            found[name].update(zip(words[::2], words[1::2]))
    return found


def requests():
    """The types of all requests, as cri.proto has them."""
    return [m.input_type for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods]


def walk(rows):
    """What the table lacks, what it has too much; the fields with "no" and with "-"."""
    missing, refusals, silent, seen = [], set(), set(), set()
    todo = list(requests())
    while todo:
        message = todo.pop()
        if message.name in seen:
            continue
        seen.add(message.name)
        if message.name not in rows:
            missing.append(message.name)
        fields = rows.get(message.name) or {}
        for field in message.fields if rows.get(message.name) is not None else ():
            verdict = fields.get(field.name)
            path = f"{message.name}.{field.name}"
            if verdict not in ("yes", "no", "-"):
                missing.append(path)
            elif verdict != "yes":
                (refusals if verdict == "no" else silent).add(path)
            elif field.message_type and not field.message_type.GetOptions().map_entry:
                todo.append(field.message_type)
        missing += [f"{message.name}.{name} is not in cri.proto"
                    for name in set(fields) - {f.name for f in message.fields}]
    return missing, refusals, silent


@test
def every_field_of_every_request_has_a_verdict(k):
    missing, _, silent = walk(table())
    equal(missing, [], "fields without a row")
    rows = table()
    lost = dict(rows, Mount={n: v for n, v in rows["Mount"].items() if n != "image"})
    check("Mount.image" in walk(lost)[0], "the walk finds what is forgotten")
    with open(os.path.join(TOP, "README.md")) as f:
        said = f.read().split("Fields without a meaning here", 1)[1].split("\n## ", 1)[0]
    equal([path for path in sorted(silent) if f"`{path.split('.')[1]}`" not in said], [],
          "fields without a meaning that README.md does not name")


def security(**context):
    return {"linux": {"security_context": context}}


LOCALHOST = {"profile_type": pb.SecurityProfile.Localhost, "localhost_ref": "x"}
DEFAULT = {"profile_type": pb.SecurityProfile.RuntimeDefault}
MAPPING = [{"host_id": 1000, "container_id": 0, "length": 10}]
SPACES = {"userns_options": {"mode": pb.POD, "uids": MAPPING, "gids": MAPPING}}


def of_containers(k):
    """Field to requests that use it and must be refused with its name."""
    volume = {"host_path": k.directory, "container_path": "/v"}
    labels = [{"user": "u"}, {"role": "r"}, {"type": "t"}, {"level": "s0:c1,c2"}]
    context = {
        "selinux_options": labels, "seccomp": [DEFAULT, LOCALHOST], "apparmor": [DEFAULT, LOCALHOST],
        "apparmor_profile": ["runtime/default", "localhost/x", "nonsense"],
        "seccomp_profile_path": ["runtime/default", "docker/default", "localhost/x.json", "x"]}
    rows = {f"LinuxContainerSecurityContext.{name}": [security(**{name: v}) for v in values]
            for name, values in context.items()}
    rows["ContainerConfig.CDI_devices"] = [{"CDI_devices": [{"name": "vendor.com/gpu=0"}]}]
    rows["Mount.uidMappings"] = [{"mounts": [dict(volume, uidMappings=MAPPING, gidMappings=MAPPING)]}]
    rows["Mount.gidMappings"] = [{"mounts": [dict(volume, gidMappings=MAPPING)]}]
    rows["NamespaceOption.userns_options"] = [security(namespace_options=dict(SPACES, network=pb.NODE))]
    return rows


def message(call):
    try:
        call()
    except Exception as error:  # pylint: disable=broad-except
        return error.details()
    raise Failure("it succeeded")


@contextlib.contextmanager
def a_kernel(k, selinux):
    """Meanwhile /proc/filesystems is that of a kernel with SELinux, or of one without."""
    with open("/proc/filesystems") as f:
        lines = [line for line in f if "selinuxfs" not in line] + ["nodev\tselinuxfs\n"] * selinux
    with open(k.directory + "/filesystems", "w") as f:
        f.writelines(lines)
    subprocess.check_call(["mount", "--bind", k.directory + "/filesystems", "/proc/filesystems"])
    try:
        yield
    finally:
        subprocess.check_call(["umount", "/proc/filesystems"])


@test
def what_is_not_built_is_refused_with_the_fields_name(k):
    with a_kernel(k, selinux=True):
        all_refusals(k)


def all_refusals(k):
    _, refusals, _ = walk(table())
    pod, shown = k.pod(), {"LinuxSandboxSecurityContext.selinux_options"}
    for path, changes in of_containers(k).items():
        name = path.split(".")[1]
        word = {"CDI_devices": "CDI devices", "gidMappings": "Mappings", "uidMappings": "Mappings",
                "userns_options": "user namespaces"}.get(name, name)
        for change in changes:
            said = message(lambda change=change: pod.create(**change))
            check(word in said, f"{path}: {said}")
        shown.add(path)
    refused("UNIMPLEMENTED", lambda: k.pod(**security(selinux_options={"level": "s0:c1"})),
            "selinux_options")
    refused("UNIMPLEMENTED", lambda: k.pod(**security(namespace_options=SPACES)), "user namespaces")
    equal(sorted(shown), sorted(refusals), "refused fields that are shown")
    equal(len(k.cri.ListContainers().containers), 0, "containers")


@test
def labels_say_nothing_to_a_kernel_without_selinux(k):
    labels = {"user": "u", "role": "r", "type": "spc_t", "level": "s0:c1,c2"}
    with a_kernel(k, selinux=False):
        pod = k.pod(**security(selinux_options=labels))
        equal(pod.prints("echo", "runs", **security(selinux_options=labels)), "runs\n", "output")


@test
def what_asks_for_nothing_is_taken(k):
    pod = k.pod(**security(selinux_options={}, seccomp=DEFAULT))
    none = {"profile_type": pb.SecurityProfile.Unconfined}
    for context in ({"selinux_options": {}}, {"seccomp_profile_path": "unconfined"}, {"apparmor_profile": "unconfined"},
                    {"seccomp": none, "seccomp_profile_path": "runtime/default"}, {"apparmor": none}):
        pod.create(**security(**context))
    privileged = k.pod(**security(privileged=True))
    privileged.create(**security(privileged=True, seccomp=DEFAULT, apparmor=DEFAULT,
                                 selinux_options={"level": "s0"}))


@test
def a_container_cannot_leave_the_namespaces_of_its_pod(k):
    pod = k.pod(linux={"security_context": {"namespace_options": {"network": pb.POD}}},
                annotations={"krun.network": "none"})
    for name in ("network", "ipc"):
        asked = merge({"network": pb.POD}, {name: pb.NODE})
        refused("INVALID_ARGUMENT", lambda asked=asked: pod.create(
            **security(namespace_options=asked)), "namespace_options." + name)
