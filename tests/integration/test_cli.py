"""krun's own command line: tables for people, JSON for programs, exit codes passed through."""
import json
import os
import re
import shutil
import signal
import subprocess

import images
from harness import KRUN, TOP, check, equal, holds, pb, skip, test, until

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
def make_install_gives_a_unit_that_fits_and_uninstall_takes_all_away(k):
    """With any PREFIX below any DESTDIR: the unit names files that are there when DESTDIR is /."""
    if not os.path.exists(TOP + "/Makefile") or not shutil.which("make"):
        skip("there is no make, or no Makefile")

    def make(goal, prefix, destination):
        subprocess.run(["make", "-s", "-C", TOP, "-o", "krun", goal, f"PREFIX={prefix}",
                        f"DESTDIR={destination}"], check=True, stdout=subprocess.DEVNULL)
    for prefix in ("/usr", "/usr/local", "/opt/a-b_c"):
        there = f"{k.directory}/installed"
        make("install", prefix, there)
        with open(f"{there}{prefix}/lib/systemd/system/krun.service") as f:
            unit = f.read()
        lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line[:30])
        program = lines["ExecStart"].split()[0]
        equal(program, prefix + "/bin/krun", "the unit's program")
        check(os.access(there + program, os.X_OK), f"{program} can be executed")
        documents = lines["Documentation"].split()
        check(documents, "the unit names documentation")
        for document in documents:
            check(document.startswith("file:///"), f"{document} is a file")
            check(os.path.isfile(there + document[len("file://"):]), f"{document} is there")
        named = re.findall(r"`(examples/[^` ]+)`", open(f"{TOP}/README.md").read())
        check(len(named) > 3, f"README.md names examples: {named}")
        for example in [*named, "examples/hosts.toml"]:  # krun.toml names that
            check(os.path.isfile(f"{there}{prefix}/share/doc/krun/{example}"), f"{example} is there")
        holds("-HUP $MAINPID", lines["ExecReload"], "ExecReload")
        check(os.access(lines["ExecReload"].split()[0], os.X_OK), lines["ExecReload"])
        if prefix != "/usr/local":
            check("/usr/local" not in unit, "another prefix in the unit")
        if shutil.which("systemd-analyze"):
            # What it says of a unit whose program is not below / is the program's name alone.
            verify = subprocess.run(["systemd-analyze", "verify", "--root", there, "krun.service"],
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            bad = [line for line in verify.stdout.decode().splitlines() if "krun.service:" in line
                   and "is not executable" not in line and "Failed to" not in line]
            equal(bad, [], "what systemd says of the unit")
        make("uninstall", prefix, there)
        equal([f for _, _, files in os.walk(there) for f in files], [], "files after uninstall")
        shutil.rmtree(there)


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
            ('\n\nroot = "lib/krun"\n', f'{path}:3: root must be an absolute path, not "lib/krun"'),
            ('image-sync = 1\n', f"{path}:1: image-sync must be a string, true, false"))
    for text, want in rows:
        holds(want, complaint(k, 1, "serve", "--config", put(path, text)), text)
    put(path, "")
    for line, code, want in ((["--log-level", "loud"], 1, '--log-level "loud": must be debug, info, warn or error'),
                             (["--run", "run"], 1, '--run must be an absolute path, not "run"'),
                             (["--keep-blobs=maybe"], 1, '--keep-blobs "maybe": must be false or true'),
                             (["--sokcet", "/x"], 2, 'unknown flag --sokcet: did you mean "socket"?'),
                             (["word"], 2, "unexpected word word"), (["--root"], 2, "a value is missing after --root")):
        holds(want, complaint(k, code, "serve", "--config", path, *line), str(line))


@test
def a_line_that_was_typed_wrong_says_what_is_wrong_and_what_is_near(k):
    rows = ((["imagse"], 'there is no command "imagse": did you mean "images"?'),
            (["frob"], 'there is no command "frob" (see: krun --help)'),
            (["help", "frob"], 'there is no command "frob"'), (["--help", "sotp"], 'did you mean "stop"?'),
            (["ps", "--quite"], 'unknown option --quite: did you mean "--quiet"?'),
            (["run", "--interactiv", "x"], "did you mean"), (["ps", "--frob"], "unknown option --frob (see"),
            (["ps", "-o", "yaml"], '--output "yaml": must be table or json'),
            (["run", "--net=bridge", "x"], '--net "bridge": must be host, cni or none'),
            (["run", "--memory", "much", "x"], '--memory "much": must be a size such as 64m'),
            (["run", "--cpus", "all", "x"], '--cpus "all": must be a number such as 0.5'),
            (["logs", "--tail", "all", "x"], '--tail "all": must be a whole number'),
            (["logs", "x", "--tail"], "--tail wants a value: LINES"), (["ps", "--quiet=1"], "--quiet takes no value"),
            (["run"], "missing image name"), (["run", ""], "missing image name"), (["pull"], "missing image name"),
            (["rmi"], "missing image name"), (["exec"], "missing name or ID"), (["exec", "x"], "missing command"),
            (["stop"], "missing name or ID"), (["inspect", ""], "missing name or ID"), (["runp"], "missing file POD.json"),
            (["create", "x", "y"], "missing file POD.json"), (["create"], "missing name or ID of a pod"),
            (["load"], "missing file, directory or -"), (["rm"], "give pods and containers, or --all"),
            (["rm", "--all", "x"], "give pods and containers, or --all"),
            (["logs", "x", "y"], 'unexpected word "y"'), (["ps", "x"], 'unexpected word "x"'))
    for line, want in rows:
        holds(want, complaint(k, 2, *line), f"krun {line}")
    for name in ("serve", "self", "ps", "help"):
        done = subprocess.run([KRUN, "help", name], stdout=subprocess.PIPE, check=True)
        holds("usage: krun", done.stdout.decode(), f"krun help {name}")


@test
def what_cannot_be_done_is_said_once_and_by_the_name_that_was_given(k):
    def run(*line, stdin=b""):
        done = k.cli(*line, stdin=stdin, check_status=False)
        equal(done.stdout, b"", f"what krun {line} prints")
        return done.returncode, done.stderr.decode()
    code, text = run("load", "-", stdin=b"junk")
    equal(code, 1, "load -")
    holds("krun: load standard input: ", text, "load -")
    check("/proc/" not in text, f"load -: {text}")
    text = run("load", "/etc/passwd")[1]
    equal(text.count("load"), 1, f"load of what is no archive: {text}")
    text = run("pull", "127.0.0.1:5000/no/such:1")[1]
    equal(text.count("pull"), 1, f"pull of what is not there: {text}")
    for name in ("-x", "a/b", "", "x" * 64):
        code, text = run("run", "--name", name, SELF)
        equal(code, 125, f"run --name {name}: {text}")
        holds("must be 1 to 63 letters, digits, '-', '_' or '.', and begin with a letter or digit", text, name)
    words(k, "run", "-d", "--net", "none", "--name", "busy", SELF, "sleep")
    equal(run("rm", "busy"), (1, 'krun: "busy" is running: stop it first, or use --force\n'), "rm")
    words(k, "rm", "-f", "busy")


@test
def input_and_terminals_are_refused_with_a_sentence(k):
    for line in (["run", "-i", SELF], ["run", "-it", SELF], ["exec", "-i", "x", "true"], ["exec", "-ti", "x", "true"]):
        holds("not there yet: a program has no", complaint(k, 2, *line), f"krun {line}")
    holds("not there yet: a program has no terminal", complaint(k, 2, "exec", "-t", "x", "true"), "exec -t")


@test
def who_may_not_reach_the_daemon_is_told_why(k):
    def as_nobody(*line):
        done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", KRUN, *line], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env={**os.environ, "KRUN_SOCKET": k.socket})
        return done.returncode, done.stderr.decode()
    for line in (["ps"], ["serve", "--config", ""]):
        code, text = as_nobody(*line)
        equal(code, 1, f"krun {line}: {text}")
        holds("must run as root", text, f"krun {line}")
    holds("is krun serve running?", complaint(k, 1, "ps", environment={"KRUN_SOCKET": "/none"}), "krun ps")
    holds("is krun serve running?", complaint(k, 1, "stop", "x", "y", environment={"KRUN_SOCKET": "/none"}), "krun stop")


@test
def lists_go_on_past_what_is_not_there_and_fail_at_their_end(k):
    def run(*line):
        done = k.cli(*line, check_status=False)
        return done.returncode, done.stdout.decode().split(), done.stderr.decode()
    for name in ("one", "two"):
        words(k, "run", "-d", "--net", "none", "--name", name, SELF, "sleep")
    for command in ("stop", "rm"):
        line = [command, "-t", "0"] if command == "stop" else [command]
        code, out, err = run(*line, "one", "none", "", "two")
        equal((code, out), (1, ["one", "two"]), f"krun {command}")
        holds('there is no pod or container "none"', err, command)
        holds('there is no pod or container ""', err, command)
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")
    code, out, err = run("inspect", "none", SELF)
    equal((code, json.loads("".join(out))["status"]["repoTags"]), (1, [SELF]), "krun inspect")
    holds('there is no pod, container or image "none"', err, "inspect")
    code, out, err = run("start", "none", "neither")
    equal((code, err.count("there is no")), (1, 2), "krun start")
    code, out, err = run("pin", "none", SELF)
    equal((code, out), (1, [SELF]), f"krun pin: {err}")
    code, out, err = run("check", "none", SELF)
    equal(code, 1, "krun check")
    holds(SELF, " ".join(out), "check")
    name = "127.0.0.1:5000/test/docker:1"
    code, out, err = run("pull", "-q", "127.0.0.1:5000/no/such:1", name)
    equal((code, len(out)), (1, 1), f"krun pull: {err}")
    equal(err.count("127.0.0.1:5000/no/such:1"), 1, f"what it says of the one that is not there: {err}")
    code, out, err = run("rmi", "none", name)
    equal(code, 1, f"krun rmi: {err}")
    check("test/docker" not in words(k, "images"), "it is gone")


@test
def a_name_means_the_same_thing_to_every_command(k):
    """The pod of that name, and in it the container of that name or the only one; else the container."""
    first = words(k, "run", "-d", "--net", "none", "--name", "web", SELF, "print", "--every", "100", "first").strip()
    box = k.cri.ListContainers(filter={"pod_sandbox_id": first}).containers[0].id
    config = {"metadata": {"name": "other", "uid": "u1", "namespace": "n"}, "log_directory": k.directory + "/o",
              "linux": {"security_context": {"namespace_options": {"network": "NODE"}}}}
    put(k.directory + "/pod.json", json.dumps(config))
    other = words(k, "runp", k.directory + "/pod.json").strip()
    for name in ("web", "side"):
        put(k.directory + "/c.json", json.dumps({"metadata": {"name": name}, "image": {"image": SELF}, "args": ["sleep"],
                                                 "log_path": name + ".log", "linux": {}}))
        words(k, "create", "other", k.directory + "/c.json", k.directory + "/pod.json")
    shown = json.loads(words(k, "inspect", "web"))
    equal((shown["status"]["id"], [c["status"]["id"] for c in shown["containers"]]), (first, [box]), "inspect web")
    holds("first", words(k, "logs", "web"), "logs web")
    equal(json.loads(words(k, "inspect", "side"))["status"]["metadata"]["name"], "side", "inspect side")
    words(k, "start", "side")
    equal(k.cli("logs", "other", check_status=False).returncode, 1, "logs of a pod with two containers")
    holds('pod "other" has 2 containers: say which (', k.cli("logs", "other", check_status=False).stderr.decode(), "logs")
    words(k, "stop", "-t", "0", "web")
    equal(k.cri.PodSandboxStatus(pod_sandbox_id=first).status.state, pb.SANDBOX_NOTREADY, "the pod after stop web")
    words(k, "rm", "web")
    equal([p.id for p in k.cri.ListPodSandbox().items], [other], "pods after rm web")
    equal(json.loads(words(k, "inspect", "web"))["status"]["metadata"]["name"], "web", "inspect of the other web")
    config["metadata"]["uid"] = "u2"
    put(k.directory + "/pod2.json", json.dumps(config))
    second = words(k, "runp", k.directory + "/pod2.json").strip()
    for command in (["stop"], ["inspect"], ["rm", "-f"], ["logs"], ["ps", "--pod"]):
        holds('"other" is ambiguous (2 matches): use an ID',
              k.cli(*command, "other", check_status=False).stderr.decode(), str(command))
    words(k, "rm", "--force", second[:20], other)
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def interrupted_runs_end_as_shells_expect(k):
    """130 after Ctrl-C and 143 after SIGTERM; the program's own code if it made something of its stop."""
    trap = ["--entrypoint", "/bin/sh", k.image, "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"]
    rows = ((signal.SIGINT, [SELF, "print", "--every", "100", "up"], 130),
            (signal.SIGTERM, [SELF, "print", "--every", "100", "up"], 143), (signal.SIGINT, trap, 5))
    for number, line, code in rows:
        with subprocess.Popen([KRUN, "run", "--socket", k.socket, "--rm", "--net", "none", *line],
                              stdout=subprocess.PIPE) as run:
            run.stdout.readline()
            run.send_signal(number)
            equal(run.wait(), code, f"exit status after {number}")
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def nothing_is_said_when_the_reader_of_the_output_goes(k):
    """Also where SIGPIPE is ignored, as under systemd."""
    def unread(*line, ignored):
        reader, writer = os.pipe()
        os.close(reader)
        old = signal.signal(signal.SIGPIPE, signal.SIG_IGN if ignored else signal.SIG_DFL)
        done = subprocess.run([KRUN, *line, "--socket", k.socket], stdout=writer, stderr=subprocess.PIPE,
                              restore_signals=False)
        signal.signal(signal.SIGPIPE, old)
        os.close(writer)
        return done.returncode, done.stderr
    words(k, "run", "-d", "--net", "none", "--name", "talk", SELF, "print", "word")
    for line in (["images"], ["images", "-o", "json"], ["inspect", SELF, SELF], ["info"], ["logs", "talk"], ["ps", "-aq"],
                 ["version"], ["pin", SELF, SELF]):
        equal(unread(*line, ignored=True), (141, b""), f"krun {line}")
        equal(unread(*line, ignored=False), (-signal.SIGPIPE, b""), f"krun {line}")
    words(k, "rm", "-f", "talk")
    reader, writer = os.pipe()
    with subprocess.Popen([KRUN, "run", "--socket", k.socket, "--rm", "--net", "none", SELF, "print", "--every", "0.01",
                           "x"], stdout=writer, stderr=subprocess.PIPE) as run:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        equal((run.wait(), run.stderr.read()), (141, b""), "krun run into head")
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


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
def logs_f_goes_on_when_the_log_is_truncated_in_place(k):
    words(k, "run", "-d", "--net", "none", "--name", "t", SELF, "print", "--every", "0.02", "line")
    path = k.cri.ContainerStatus(container_id=k.cri.ListContainers().containers[0].id).status.log_path
    with subprocess.Popen([KRUN, "logs", "--socket", k.socket, "-f", "t"], stdout=subprocess.PIPE) as follow:
        for _ in range(3):
            for _ in range(5):
                holds("line ", follow.stdout.readline().decode(), "what is followed")
            os.truncate(path, 0)
        shown = int(follow.stdout.readline().split()[1])
        until("a later line is in the file", lambda: f"line {shown + 20}\n" in open(path).read())
        os.truncate(path, 0)
        while int(follow.stdout.readline().split()[1]) < shown + 25:
            pass
        words(k, "stop", "-t", "0", "t")
        follow.stdout.read()
        equal(follow.wait(), 0, "exit status")
    words(k, "rm", "t")


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
    holds("untagged: " + name, words(k, "rmi", name), "rmi")
    check("test/docker" not in words(k, "images"), "it is gone")
    done = k.cli("pull", "127.0.0.1:5000/no/such:1", check_status=False)
    check(done.returncode != 0 and b"no/such" in done.stderr, f"a missing one: {done.stderr}")


def load_named(k, names):
    """An image of its own with these names; its ID."""
    tree = images.Tree().file("f", " ".join(names))
    path = images.write_tar(images.docker_files(images.Image([tree]), names), k.directory + "/named.tar")
    words(k, "load", path)
    return k.cri.ImageStatus(image={"image": names[0]}).image.id


@test
def rmi_takes_one_name_away_and_the_image_with_the_last(k):
    def run(*line):
        done = k.cli("rmi", *line, check_status=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def tags():
        return list(k.cri.ImageStatus(image={"image": ident}).image.repo_tags)
    names = [f"example.test/{n}" for n in ("a:1", "a:2", "b:1")]
    ident = load_named(k, names)
    equal(run(names[0]), (0, f"untagged: {names[0]}\n", ""), "rmi of one name")
    equal(tags(), names[1:], "names")
    code, out, err = run(ident[7:19])
    equal((code, out), (1, ""), "rmi of the ID of an image with two names")
    holds(f"has 2 names ({names[1]}, {names[2]}): give one of them, or use --force", err, "rmi")
    equal(tags(), names[1:], "names")
    k.stop(), k.start()
    equal(tags(), names[1:], "names after a restart of the daemon")
    equal(run(names[1])[0], 0, "rmi")
    equal(run(names[2]), (0, f"untagged: {names[2]}\ndeleted: {ident}\n", ""), "rmi of the last name")
    equal(k.cri.ImageStatus(image={"image": ident}).HasField("image"), False, "the image is there")
    holds("there is no image", run(names[2])[2], "rmi again")
    ident = load_named(k, names)
    equal(run("-f", ident)[1].count("untagged"), 3, "names that go with --force ID")
    ident = load_named(k, names)
    k.cri.RemoveImage(image={"image": names[1]})
    equal(k.cri.ImageStatus(image={"image": ident}).HasField("image"), False, "there after the CRI's RemoveImage")


@test
def rmi_of_a_digest_and_of_the_last_tag_of_a_repository(k):
    name = "127.0.0.1:5000/test/docker:1"
    words(k, "pull", "-q", name)
    image = k.cri.ImageStatus(image={"image": name}).image
    digest = image.repo_digests[0]
    holds(f"untagged: {digest}\n", words(k, "rmi", digest), "rmi")
    equal(list(k.cri.ImageStatus(image={"image": name}).image.repo_digests), [], "digests")
    words(k, "pull", "-q", name)
    equal(words(k, "rmi", name), f"untagged: {name}\nuntagged: {digest}\ndeleted: {image.id}\n", "rmi of the only tag")


@test
def rmi_refuses_what_a_container_uses(k):
    names = ["example.test/used:1", "example.test/used:2"]
    tree = images.Tree().file("krun", open(KRUN, "rb").read(), mode=0o755)
    path = images.write_tar(images.docker_files(images.Image([tree], {"Entrypoint": ["/krun", "self"]}), names),
                            k.directory + "/used.tar")
    words(k, "load", path)
    words(k, "run", "-d", "--net", "none", "--name", "user", names[0], "sleep")
    words(k, "rmi", names[0])
    done = k.cli("rmi", names[1], check_status=False)
    equal((done.returncode, done.stdout), (1, b""), "rmi")
    holds("is in use by container ", done.stderr.decode(), "rmi")
    holds("(user): remove that first, or use --force", done.stderr.decode(), "rmi")
    holds("deleted: ", words(k, "rmi", "--force", names[1]), "rmi --force")
    words(k, "rm", "-f", "user")
    load_named(k, ["example.test/volume:1"])
    pod = k.pod()
    volume = {"container_path": "/data", "image": {"image": "example.test/volume:1"}, "readonly": True}
    user = pod.create(*["sleep", "98765"], mounts=[volume])
    done = k.cli("rmi", "example.test/volume:1", check_status=False)
    equal(done.returncode, 1, "rmi of a volume's image")
    holds("is in use by container " + user.id[:13], done.stderr.decode(), "rmi")
    pod.remove()
    words(k, "rmi", "example.test/volume:1")


@test
def the_built_in_image_goes_and_comes_back_without_a_network(k):
    def there():
        return k.cri.ImageStatus(image={"image": SELF}).HasField("image")
    first = k.cri.ImageStatus(image={"image": SELF}).image.id
    equal(words(k, "pull", SELF), first + "\n", "pull of what is there")
    equal(k.cri.PullImage(image={"image": SELF}).image_ref, first, "PullImage of what is there")
    k.cri.RemoveImage(image={"image": SELF})
    equal(there(), False, "there after RemoveImage")
    equal(k.cri.PullImage(image={"image": SELF}).image_ref, first, "PullImage")
    holds("hello", words(k, "run", "--rm", "--net", "none", "--pull", "always", SELF, "print", "hello"), "output")
    ident = load_named(k, ["example.test/x:1"])
    kept = [i.id for i in k.cri.ListImages().images]
    words(k, "pin", "example.test/x:1")
    out = words(k, "rmi", "--all")
    equal(sorted(line.split()[1] for line in out.splitlines() if line.startswith("deleted")), sorted(kept), "deleted")
    check(ident in kept, "the pinned one was among them")
    equal(len(k.cri.ListImages().images), 0, "images after rmi --all")
    calls = [k.cri.begin("PullImage", image={"image": SELF}) for _ in range(8)]
    equal({c.result().image_ref for c in calls}, {first}, "IDs of eight pulls at once")
    k.cri.RemoveImage(image={"image": SELF})
    k.stop(), k.start()
    equal(there(), True, "there after a restart of the daemon")
    k.pull(k.image)


@test
def a_name_is_one_pods(k):
    """Also when several are made at the same moment; and free again when the pod has gone."""
    words(k, "run", "-d", "--net", "none", "--name", "s", SELF, "print", "first")
    done = k.cli("run", "--rm", "--net", "none", "--name", "s", SELF, "print", "second", check_status=False)
    equal((done.returncode, done.stdout), (125, b""), "a second run of that name")
    holds('the name "s" is in use by pod ', done.stderr.decode(), "the complaint")
    equal(words(k, "logs", "-f", "s"), "first\n", "the log of the first")
    words(k, "rm", "-f", "s")
    runs = [subprocess.Popen([KRUN, "run", "--socket", k.socket, "--net", "none", "--name", "s", SELF, "print", str(n)],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for n in range(12)]
    ends = [(r.communicate()[0].decode(), r.returncode) for r in runs]
    equal(sorted(code for _, code in ends), [0] + [125] * 11, "exit codes of twelve runs at once")
    equal(len(k.cri.ListPodSandbox().items), 1, "pods")
    equal([out for out, code in ends if code == 0], [words(k, "logs", "s")], "output and log of the one")
    k.cri.RemovePodSandbox(pod_sandbox_id=k.cri.ListPodSandbox().items[0].id)
    equal(words(k, "run", "--rm", "--net", "none", "--name", "s", SELF, "print", "again"), "again\n", "output")
    shutil.rmtree(k.root + "/logs")  # of the pod that krun rm has not removed


@test
def volumes_that_are_not_there_are_refused_and_not_made(k):
    path = k.directory + "/mistyped"
    for source in (path, path + "/deeper", "./mistyped-too"):
        done = k.cli("run", "--rm", "--net", "none", "-v", source + ":/data", SELF, "print", "x", check_status=False)
        equal((done.returncode, done.stdout), (125, b""), source)
        holds("mistyped", done.stderr.decode(), "the complaint")
        holds("No such file or directory", done.stderr.decode(), "the complaint")
    check(not os.path.exists(path) and not os.path.exists("mistyped-too"), "nothing was made")
    equal(len(k.cri.ListPodSandbox().items), 0, "pods")


@test
def the_same_files_again_give_the_same_and_others_are_refused(k):
    def pod(**changes):
        config = {"metadata": {"name": "p", "uid": "u", "namespace": "n"}, "log_directory": k.directory + "/logs-of-p",
                  "labels": {"a": "1", "b": "2"},
                  "linux": {"security_context": {"namespace_options": {"network": "NODE"}}}, **changes}
        return put(k.directory + "/pod.json", json.dumps(config))

    def container(**changes):
        config = {"metadata": {"name": "c"}, "image": {"image": SELF}, "args": ["sleep"], "log_path": "c.log",
                  "linux": {}, **changes}
        return put(k.directory + "/c.json", json.dumps(config))

    def refused(*line):
        done = k.cli(*line, check_status=False)
        equal((done.returncode, done.stdout), (1, b""), str(line))
        holds("another configuration: remove it or raise the attempt", done.stderr.decode(), "the complaint")
    for restarts in (False, True):
        made = words(k, "runp", pod())
        inside = words(k, "create", made.strip(), container(), pod())
        if restarts:
            k.stop(), k.start()
        equal(words(k, "runp", pod(labels={"b": "2", "a": "1"})), made, "the pod of the same file")
        equal(words(k, "create", made.strip(), container(), pod()), inside, "the container of the same file")
        refused("runp", pod(annotations={"a": "b"}))
        refused("runp", pod(labels={"a": "1", "b": "3"}))
        refused("create", made.strip(), container(args=["sleep", "1"]), pod())
        refused("create", made.strip(), container(labels={"a": "b"}), pod())
        equal(len(k.cri.ListContainers().containers), 1, "containers")
        words(k, "rm", "-f", made.strip())


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
