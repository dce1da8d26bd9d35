"""krun's own command line: tables for people, JSON for programs, exit codes passed through."""
import json
import os
import subprocess

from harness import KRUN, check, equal, holds, pb, test, until

SELF = "localhost/krun:self"


def words(k, *arguments, **more):
    return k.cli(*arguments, **more).stdout.decode()


@test
def help_is_everywhere_and_names_each_command(k):
    text = subprocess.run([KRUN, "--help"], stdout=subprocess.PIPE, check=True).stdout.decode()
    for command in ("serve", "run", "pods", "ps", "images", "pull", "load", "rmi", "exec", "logs",
                    "inspect", "stop", "rm", "version", "info"):
        holds(f"  {command} ", text, "krun --help")
        own = subprocess.run([KRUN, command, "--help"], stdout=subprocess.PIPE)
        equal(own.returncode, 0, f"exit status of krun {command} --help")
        holds("usage: krun " + command, own.stdout.decode().lower(), f"krun {command} --help")


@test
def wrong_words_are_refused_with_2(k):
    for line in (["nonsense"], ["ps", "--nonsense"], ["run"], ["stop", "-t", "x", "y"]):
        done = subprocess.run([KRUN, *line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        equal(done.returncode, 2, f"exit status of krun {line}")
        check(done.stderr, "it says why")


def complaint(k, code, *line, environment=None):
    """What a command says on stderr that must end with this exit code and print nothing else."""
    done = subprocess.run([KRUN, *line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env={**os.environ, "KRUN_SOCKET": k.socket, **(environment or {})})
    equal((done.returncode, done.stdout), (code, b""), f"krun {line}: {done.stderr}")
    return done.stderr.decode()


def put(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


@test
def a_mistake_in_a_pods_file_is_named_with_its_line_and_the_nearest_name(k):
    path = k.directory + "/wrong.json"
    rows = (('{\n "metadata": {\n  "nmae": "x"\n }\n}', ':3: PodSandboxConfig.metadata: PodSandboxMetadata has no '
             'field "nmae": did you mean "name"?'),
            ('{\n "metadata": {"name": "x"},\n "logDirectroy": "/x" }', ':3: PodSandboxConfig has no field '
             '"logDirectroy": did you mean "log_directory"?'),
            ('{\n "metadata": {"name": "x"}\n "hostname": "x" }', ":3: PodSandboxConfig: JSON: "),
            ('{\n "linux": {\n "security_context": {"namespace_options": {"pid": "HOST"}}}}', ':3: PodSandboxConfig.'),
            ('{\n "linux": {\n "security_context": {"namespace_options": {"pid": "HOST"}}}}',
             "must be POD, CONTAINER, NODE or TARGET"),
            ('', ":1: "), ('"x"', ":1: must be an object"))
    for text, want in rows:
        holds(path + (want if want[0] == ":" else ""), complaint(k, 1, "runp", put(path, text)), text)
        holds(want, complaint(k, 1, "runp", path), text)
    holds("/none.json", complaint(k, 1, "runp", k.directory + "/none.json"), "a file that is not there")


@test
def a_mistake_in_the_settings_is_named_with_its_place_and_what_is_allowed(k):
    path = k.directory + "/wrong.toml"
    rows = (('root = "/x"\nlog-levle = "info"\n', f'{path}:2: unknown key "log-levle": did you mean "log-level"?'),
            ('[image]\n\nimprot = "/x"\n', f'{path}:3: unknown key "improt": did you mean "import"?'),
            ('log-level = "loud"\n', f'{path}:1: log-level "loud": must be debug, info, warn or error'),
            ('\nmissing-controllers = "no"\n', f'{path}:2: missing-controllers "no": must be refuse or ignore'),
            ('image-sync = 1\n', f"{path}:1: image-sync must be a string, true, false"))
    for text, want in rows:
        holds(want, complaint(k, 1, "serve", "--config", put(path, text)), text)
    put(path, "")
    for line, code, want in ((["--log-level", "loud"], 1, '--log-level "loud": must be debug, info, warn or error'),
                             (["--keep-blobs=maybe"], 1, '--keep-blobs "maybe": must be false or true'),
                             (["--sokcet", "/x"], 2, 'unknown flag --sokcet: did you mean "socket"?'),
                             (["word"], 2, "unexpected word word"), (["--root"], 2, "a value is missing after --root")):
        holds(want, complaint(k, code, "serve", "--config", path, *line), str(line))


@test
def without_a_daemon_it_says_so(k):
    done = subprocess.run([KRUN, "pods", "--socket", k.directory + "/none.sock"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    check(done.returncode != 0, "it fails")
    holds("none.sock", done.stderr.decode(), "the complaint")


@test
def version_and_info_tell_about_both_sides(k):
    holds("krun", words(k, "version"), "version")
    equal(json.loads(words(k, "version", "-o", "json"))["version"], "0.1.0", "version in JSON")
    holds("RuntimeReady", words(k, "info"), "info")
    json.loads(words(k, "info", "-o", "json"))


@test
def run_prints_what_the_program_prints_and_exits_as_it_does(k):
    rows = ((["sh", "-c", "echo out; echo err >&2; exit 7"], 7, "out\n", "err\n"),
            (["true"], 0, "", ""), (["sh", "-c", "exit 255"], 255, "", ""))
    for command, code, out, err in rows:
        done = k.cli("run", "--rm", "--net", "host", "--entrypoint", command[0], k.image, *command[1:],
                     check_status=False)
        equal((done.returncode, done.stdout.decode(), done.stderr.decode()), (code, out, err),
              str(command))
    equal(len(k.cri.ListPodSandbox().items), 0, "pods after --rm")


@test
def run_tells_a_missing_program_from_one_that_cannot_run(k):
    for program, code in (("/no/such", 127), ("/etc/passwd", 126)):
        done = k.cli("run", "--rm", "--net", "host", "--entrypoint", program, k.image,
                     check_status=False)
        equal(done.returncode, code, program)


@test
def run_passes_environment_volumes_user_and_directory(k):
    os.makedirs(k.directory + "/v", exist_ok=True)
    with open(k.directory + "/v/f", "w") as f:
        f.write("from the host\n")
    text = words(k, "run", "--rm", "--net", "host", "-e", "A=b", "-v", k.directory + "/v:/v:ro", "-u",
                 "1000:50", "-w", "/tmp", "--entrypoint", "/bin/sh", k.image, "-c",
                 "echo $A; cat /v/f; id -u; id -g; pwd; touch /v/x 2>/dev/null || echo ro")
    equal(text, "b\nfrom the host\n1000\n50\n/tmp\nro\n", "output")


@test
def run_without_a_network_has_loopback_only(k):
    text = words(k, "run", "--rm", "--net", "none", "--entrypoint", "/bin/ip", k.image, "-o",
                 "link")
    equal(len(text.splitlines()), 1, f"links: {text}")
    holds("lo:", text, "links")


@test
def run_on_the_built_in_image_needs_nothing_else(k):
    holds("hello", words(k, "run", "--rm", "--net", "host", SELF, "print", "hello"), "output")
    done = k.cli("run", "--rm", "--net", "host", SELF, "exit", "9", check_status=False)
    equal(done.returncode, 9, "exit status")


@test
def detached_containers_are_listed_entered_read_stopped_and_removed(k):
    pod = words(k, "run", "-d", "--net", "host", "--name", "mine", "--entrypoint", "/bin/sh", k.image,
                "-c", "echo line 1; echo line 2; sleep 98765").strip()
    listed = k.cri.ListContainers().containers[0]
    until("it has printed", lambda: "line 2" in words(k, "logs", listed.id))
    equal(words(k, "logs", "mine"), "line 1\nline 2\n", "logs by name")
    equal(words(k, "logs", "--tail", "1", listed.id[:12]), "line 2\n", "the tail by a prefix")
    holds("mine", words(k, "ps"), "ps")
    holds("mine", words(k, "pods"), "pods")
    equal(words(k, "ps", "-q").split(), [listed.id] if len(words(k, "ps", "-q").split()[0]) == 64
          else [listed.id[:len(words(k, "ps", "-q").split()[0])]], "ps -q")
    equal(words(k, "exec", "mine", "echo", "inside"), "inside\n", "exec")
    equal(k.cli("exec", "mine", "sh", "-c", "exit 5", check_status=False).returncode, 5,
          "exec's status")
    about = json.loads(words(k, "inspect", "mine"))
    holds(listed.id, json.dumps(about), "inspect")
    k.cli("stop", "-t", "0", "mine")
    equal(k.cri.ContainerStatus(container_id=listed.id).status.state, pb.CONTAINER_EXITED, "state")
    equal(words(k, "ps").count("mine"), 0, "in ps after the stop")
    holds("mine", words(k, "ps", "-a"), "ps -a")
    k.cli("rm", pod)
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def logs_f_follows_until_the_end(k):
    words(k, "run", "-d", "--net", "host", "--name", "f", "--entrypoint", "/bin/sh", k.image, "-c",
          "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")
    equal(words(k, "logs", "-f", "f"), "1\n2\n3\n4\n5\n", "what is followed")
    k.cli("rm", "--force", "f")
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def output_as_JSON_is_what_the_CRI_says(k):
    pod = k.pod()
    container = pod.start()
    equal([p["id"] for p in json.loads(words(k, "pods", "-o", "json"))["items"]], [pod.id], "pods")
    found = json.loads(words(k, "ps", "-o", "json"))["containers"]
    equal([c["id"] for c in found], [container.id], "containers")
    equal([c["state"] for c in found], ["CONTAINER_RUNNING"], "states")
    tags = [t for i in json.loads(words(k, "images", "-o", "json"))["images"]
            for t in i.get("repoTags", [])]
    check(k.image in tags and SELF in tags, f"images: {tags}")


@test
def images_are_pulled_listed_and_removed(k):
    name = "127.0.0.1:5000/test/docker:1"
    words(k, "pull", name)
    holds("test/docker", words(k, "images"), "images")
    words(k, "rmi", name)
    check("test/docker" not in words(k, "images"), "it is gone")
    done = k.cli("pull", "127.0.0.1:5000/no/such:1", check_status=False)
    check(done.returncode != 0 and b"no/such" in done.stderr, f"a missing one: {done.stderr}")


@test
def crictls_JSON_files_make_pods_and_containers(k):
    import google.protobuf.json_format as form
    pod = k.directory + "/pod.json"
    container = k.directory + "/container.json"
    with open(pod, "w") as f:
        f.write(form.MessageToJson(pb.PodSandboxConfig(**k.pod_config()),
                                   preserving_proto_field_name=True))
    with open(container, "w") as f:
        json.dump({"metadata": {"name": "c"}, "image": {"image": k.image}, "command": ["sleep", "98765"],
                   "log_path": "c.log", "linux": {}}, f)
    made = words(k, "runp", pod).strip()
    inside = words(k, "create", made, container, pod).strip()
    words(k, "start", inside)
    equal(k.cri.ContainerStatus(container_id=inside).status.state, pb.CONTAINER_RUNNING, "state")
