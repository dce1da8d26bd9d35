"""How an image comes: who may say no to it, and what is seen of it meanwhile.

The daemon of this group asks a program about every image (image-verify); it is a shell script that a
test rewrites, and allows everything at the beginning of each."""
import concurrent.futures
import fcntl
import os
import pty
import re
import signal
import stat
import struct
import subprocess
import termios
import threading

import grpc

import images
import registry
from harness import (DEADLINE, KRUN, Cri, check, equal, holds, pb, processes, refused, restarts,
                     test, until)
from images import Image, Tree

FAKE = "127.0.0.1:5001/"
REFUSED = "SignatureValidationFailed: "
IMAGE = False  # nothing comes before the verifier is there


def setup(k):
    k.fake = registry.FakeRegistry(5001)
    k.verifier, k.asked = k.directory + "/verify", k.directory + "/asked"
    k.archives = k.directory + "/archives"
    os.makedirs(k.archives)
    verify(k)
    k.flags += ["--image-verify", k.verifier]
    k.restart()
    k.pull(k.image)
    k.pod().start().stop()


def teardown(k):
    k.fake.stop()


def before_each(k):
    verify(k)
    k.fake.gate.set()
    k.fake.halves.clear()
    if os.path.exists(k.asked):
        os.unlink(k.asked)


def verify(k, script="exit 0", interpreter="/bin/sh"):
    """Gives the daemon another verifier."""
    with open(k.verifier + ".new", "w") as f:
        f.write(f"#!{interpreter}\n{script}\n")
    os.chmod(k.verifier + ".new", 0o700)
    os.rename(k.verifier + ".new", k.verifier)


def small(title, *trees, **options):
    """An image without programs, unlike all others."""
    return Image(trees or [Tree().file("title", title)], {"Cmd": ["/none"], "Labels": {"t": title}},
                 **options)


def state(k):
    """What there is of images: names and layers."""
    names = sorted(t for i in k.cri.ListImages().images for t in [*i.repo_tags, *i.repo_digests])
    return names, sorted(os.listdir(k.root + "/layers")), sorted(os.listdir(k.root + "/images"))


def archive(k, image, *names):
    path = f"{k.archives}/{k.name('archive')}.tar"
    return images.write_tar(images.docker_files(image, list(names)), path)


def drop(k, *names):
    for name in names:
        k.cri.RemoveImage(image={"image": name})


def said(k):
    with open(k.asked) as f:
        return f.read()


# -- image-verify ---------------------------------------------------------------------------------

@test
def the_verifier_is_told_reference_and_digest_and_has_a_clean_environment(k):
    image = small("told")
    k.fake.put(image, "told", "1")
    verify(k, f'{{ echo "$# $1 $2"; env | sort; id -u; pwd; wc -c; ls /proc/self/fd | wc -l;'
              f' cut -d" " -f1,6 /proc/$$/stat; }} >{k.asked}')
    k.pull(FAKE + "told:1")
    lines = said(k).splitlines()
    equal(lines[0], f"2 {FAKE}told:1 {image.digest}", "the arguments")
    mine = [line for line in lines if line.startswith("KRUN_")]
    equal(mine, [f"KRUN_DIGEST={image.digest}", f"KRUN_IMAGE={FAKE}told:1",
                 f"KRUN_PLATFORM_DIGEST={image.digest}"], "variables")
    names = {line.split("=")[0] for line in lines if "=" in line}
    check(names <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_", "KRUN_DIGEST", "KRUN_IMAGE",
                    "KRUN_PLATFORM_DIGEST"}, f"nothing else: {names}")
    equal(lines[-5:-2], ["0", "/", "0"], "user, directory, bytes of its standard input")
    equal(lines[-2], "4", "descriptors (ls has one more)")
    pid, session = lines[-1].split()
    equal(session, pid, "its session is its own")
    drop(k, FAKE + "told:1")


@test
def the_verifier_is_told_the_index_and_the_manifest_for_this_machine(k):
    import json
    mine = small("of an index")
    k.fake.put(mine, "index", "mine")
    kind = images.OCI + "index.v1+json"
    body = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [{
        "mediaType": mine.media_type, "digest": mine.digest, "size": len(mine.manifest),
        "platform": {"os": "linux", "architecture": images.architecture()}}]}).encode()
    for reference in ("latest", images.digest(body)):
        k.fake.manifests["index", reference] = (kind, body)
    verify(k, f'echo "$1 $2 $KRUN_PLATFORM_DIGEST" >>{k.asked}')
    k.pull(FAKE + "index")
    k.pull(FAKE + "index@" + images.digest(body))
    equal(said(k).splitlines(), [f"{FAKE}index:latest {images.digest(body)} {mine.digest}",
                                 f"{FAKE}index@{images.digest(body)} {images.digest(body)} "
                                 f"{mine.digest}"], "what it was told")
    drop(k, FAKE + "index")


@test
def a_refused_image_leaves_nothing_and_says_why(k):
    before = state(k)
    image = small("refused")
    k.fake.put(image, "refused")
    k.fake.requests.clear()
    verify(k, 'echo "on its way"; echo "no \\033[31mkey" >&2; exit 7')
    message = refused("UNKNOWN", lambda: k.pull(FAKE + "refused"))
    check(message.startswith(REFUSED), message)
    for part in (FAKE + "refused:latest", "exit status 7", "no \\x1b[31mkey", k.verifier):
        holds(part, message, "the message")
    equal(state(k), before, "images and layers")
    equal([p for m, p in k.fake.requests if m == "GET" and "/blobs/" in p], [], "blobs asked for")
    done = k.cli("pull", FAKE + "refused", check_status=False)
    equal((done.returncode, done.stdout), (1, b""), "krun pull")
    holds(REFUSED, done.stderr.decode(), "what krun pull says")
    verify(k)
    equal(k.pull(FAKE + "refused"), image.id, "when it is allowed")
    drop(k, FAKE + "refused")


@test
def whatever_keeps_the_verifier_from_saying_yes_is_a_no(k):
    k.fake.put(small("no"), "no")
    before = state(k)
    rows = (("kill -9 $$", "exit status 137"), ("exit 255", "exit status 255"))
    for script, wanted in rows:
        verify(k, script)
        holds(wanted, refused("UNKNOWN", lambda: k.pull(FAKE + "no"), REFUSED), script)
    verify(k, interpreter="/no/such/interpreter")
    refused("UNKNOWN", lambda: k.pull(FAKE + "no"), REFUSED)
    verify(k)
    os.chmod(k.verifier, stat.S_IRUSR)
    holds("Permission denied", refused("UNKNOWN", lambda: k.pull(FAKE + "no"), REFUSED), "no x bit")
    os.unlink(k.verifier)
    holds("No such file", refused("UNKNOWN", lambda: k.pull(FAKE + "no"), REFUSED), "none there")
    equal(state(k), before, "images and layers")


@test
def a_verifier_that_prints_without_end_costs_nothing(k):
    k.fake.put(small("loud"), "loud")
    verify(k, "head -c 30000000 /dev/zero | tr '\\0' x; echo the end >&2; exit 3")
    message = refused("UNKNOWN", lambda: k.pull(FAKE + "loud"), REFUSED)
    holds("xthe end", message, "the last of what it printed")
    check(len(message) < 1000, f"{len(message)} bytes of message")
    with open(f"/proc/{k.process.pid}/status") as f:
        peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
    check(peak < 64 << 10, f"the daemon took {peak} KiB")
    verify(k, "printf '\\377\\0\\n%s' \"$1\" >&2; exit 1")
    holds("\\xff\\x00\\x0a" + FAKE, refused("UNKNOWN", lambda: k.pull(FAKE + "loud")), "escaped")


@test
def a_verifier_that_hangs_ends_with_the_call_and_all_that_it_started(k):
    before = state(k)
    k.fake.put(small("hangs"), "hangs")
    verify(k, f"trap '' TERM HUP; sleep 87654 & touch {k.asked}; sleep 87653; exit 0")
    call = k.cri.begin("PullImage", image={"image": FAKE + "hangs"})
    until("the verifier runs", lambda: os.path.exists(k.asked))
    call.cancel()

    def left():
        return [p for p in processes().values() if "8765" in p or p.startswith("/bin/sh " + k.verifier)]
    until("nothing of it runs any more", lambda: not left())
    until("nothing is left of the image", lambda: state(k) == before)
    verify(k)
    k.pull(FAKE + "hangs")
    drop(k, FAKE + "hangs")


@test
def a_child_that_the_verifier_leaves_behind_delays_nobody(k):
    k.fake.put(small("child"), "child")
    verify(k, "sleep 87654 & exit 0")
    k.pull(FAKE + "child")
    until("it is gone too", lambda: not [p for p in processes().values() if "87654" in p])
    verify(k, "setsid sleep 87652 & exit 5")  # in a session of its own it escapes, and holds the pipe
    refused("UNKNOWN", lambda: k.pull(FAKE + "child"), "exit status 5")
    for pid in [p for p, line in processes().items() if "87652" in line]:
        os.kill(pid, 9)
    drop(k, FAKE + "child")


@test
def an_image_that_is_there_is_verified_again(k):
    k.fake.put(small("again"), "again")
    k.pull(FAKE + "again")
    before = state(k)
    verify(k, "exit 1")
    refused("UNKNOWN", lambda: k.pull(FAKE + "again"), REFUSED)
    equal(state(k), before, "what was allowed before is there")
    drop(k, FAKE + "again")


@test
def what_is_loaded_is_verified_under_each_name_that_it_gets(k):
    before = state(k)
    image = small("loaded")
    names = ["example.test/one:1", "example.test/two:2"]
    path = archive(k, image, *names)
    verify(k, f'echo "$1" >>{k.asked}; case $2 in sha256:*) ;; *) exit 4;; esac')
    equal(k.cli("load", path).stdout.decode().split(), names, "what load prints")
    equal(said(k).split(), names, "names asked about")
    drop(k, image.id)
    until("it is gone", lambda: state(k) == before)
    verify(k, "test $1 != example.test/two:2")
    done = k.cli("load", path, check_status=False)
    equal(done.returncode, 1, "exit status")
    holds(REFUSED + "example.test/two:2", done.stderr.decode(), "what load says")
    equal(state(k), before, "images and layers")
    os.rename(path, k.archives + "/nameless.tar")
    verify(k, "test $1 != localhost/nameless:latest")
    images.write_tar(images.docker_files(image, []), k.archives + "/nameless.tar")
    holds("localhost/nameless:latest", k.cli("load", k.archives + "/nameless.tar",
                                             check_status=False).stderr.decode(), "a nameless one")
    equal(state(k), before, "images and layers")


@restarts
@test
def the_built_in_image_needs_no_leave_but_its_name_gives_none(k):
    verify(k, "exit 1")
    k.restart(15)
    check(k.cri.ImageStatus(image={"image": "localhost/krun:self"}).image.id, "it is there")
    path = archive(k, small("false self"), "localhost/krun:self")
    holds(REFUSED, k.cli("load", path, check_status=False).stderr.decode(), "another by its name")


# -- progress: the call ---------------------------------------------------------------------------

WAITING, DOWNLOADING, EXTRACTING, DONE, EXISTS = range(5)


def fields(data):
    """(number, value) of each field of a message in protobuf: numbers and runs of bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(data):
        tag = varint()
        value = varint()
        if tag & 7 == 2:
            value, at = data[at:at + value], at + value
        yield tag >> 3, value


class Progress:
    """KrunPullProgress of chapter 7."""

    def __init__(self, data):
        self.layers, self.image_ref = [], ""
        for number, value in fields(data):
            if number == 1:
                one = dict(fields(value))
                self.layers.append((one[1].decode(), one.get(2, 0), one.get(3, 0), one.get(4, 0)))
            else:
                self.image_ref = value.decode()


def watch(k, name):
    call = k.cri.channel.unary_stream("/krun.v1.Krun/PullImage", pb.PullImageRequest.SerializeToString,
                                      Progress)
    return call(pb.PullImageRequest(image={"image": name}), timeout=2 * DEADLINE)


def half_way(k, name, *trees):
    """An image whose last layer stops in the middle until the gate opens: (image, that layer)."""
    image = small(name, *trees, Tree().file("big", os.urandom(400000)))
    k.fake.put(image, name)
    layer = image.layers[-1]
    k.fake.halves.add(images.digest(layer))
    k.fake.gate.clear()
    return image, layer


def until_half(messages, layer):
    """Reads messages until one has some of that layer; gives it."""
    for message in messages:
        for digest, total, done, _ in message.layers:
            if digest == images.digest(layer) and 0 < done < total:
                return message
    check(False, "the stream ends before a part of the layer has come")


@test
def who_watches_a_pull_sees_each_layer_come(k):
    shared = Tree().file("shared", "x" * 1000)
    k.fake.put(small("base", shared), "base")
    k.pull(FAKE + "base")
    image, layer = half_way(k, "watched", shared)
    messages = watch(k, FAKE + "watched")
    seen = until_half(messages, layer)
    equal([(d, t) for d, t, _, _ in seen.layers], [(images.digest(b), len(b)) for b in image.layers],
          "the layers")
    equal(seen.layers[1][3], DOWNLOADING, "the state of the one that comes")
    equal(seen.image_ref, "", "the image meanwhile")
    k.fake.gate.set()
    last = list(messages)[-1]
    equal(last.image_ref, image.id, "the image")
    equal([(s, d) for _, _, d, s in last.layers],
          [(EXISTS, len(image.layers[0])), (DONE, len(layer))], "states and bytes at the end")
    drop(k, FAKE + "watched", FAKE + "base")


@test
def all_who_watch_and_who_do_not_share_one_pull(k):
    image, layer = half_way(k, "shared-pull")
    k.fake.requests.clear()
    streams = [watch(k, FAKE + "shared-pull") for _ in range(4)]
    call = k.cri.begin("PullImage", image={"image": FAKE + "shared-pull"})
    for messages in streams:
        until_half(messages, layer)
    late = watch(k, FAKE + "shared-pull")
    until_half(late, layer)
    streams.pop().cancel()  # one less changes nothing
    k.fake.gate.set()
    equal({list(m)[-1].image_ref for m in [*streams, late]} | {call.result().image_ref}, {image.id},
          "answers")
    blobs = [p for m, p in k.fake.requests if m == "GET" and "/blobs/" in p]
    equal(len(blobs), len(set(blobs)), "each blob is fetched once")
    drop(k, FAKE + "shared-pull")


@test
def a_watched_pull_ends_with_its_last_watcher_and_fails_as_the_other_does(k):
    before = state(k)
    _, layer = half_way(k, "left")
    messages = watch(k, FAKE + "left")
    until_half(messages, layer)
    messages.cancel()
    until("nothing of krun fetches any more", lambda: not [
        line for line in processes().values() if line.startswith(("krun fetch", "krun unpack"))])
    k.fake.gate.set()
    until("no image is left", lambda: state(k) == before)
    k.pull(FAKE + "left")  # with what had come
    drop(k, FAKE + "left")
    for name in (FAKE + "no/such:1", "a//b"):
        codes = []
        for call in (lambda: list(watch(k, name)), lambda: k.pull(name)):
            try:
                call()
            except grpc.RpcError as error:
                codes.append((error.code(), error.details()))
        equal(len(codes), 2, f"failures of {name}")
        equal(codes[0], codes[1], f"how both fail for {name}")


def leave_by(k, how, name):
    """A pull that is under way, and what ends it."""
    if how == "krun pull and ^C":
        done = subprocess.Popen([KRUN, "pull", "--socket", k.socket, FAKE + name], stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)
        return lambda: (done.send_signal(signal.SIGINT), done.wait(DEADLINE))
    own = Cri(k.socket)
    call = own.begin("PullImage", image={"image": FAKE + name}, _timeout=2 if how == "deadline" else DEADLINE)
    if how == "deadline":
        return call.exception
    if how == "connection gone":
        return lambda: (own.close(), call)
    if how in ("SIGTERM", "SIGKILL"):
        return lambda: (k.restart(getattr(signal, how)), call)
    return call.cancel


@restarts
@test
def a_pull_that_is_left_goes_on_with_what_had_come(k):
    for n, how in enumerate(("cancelled", "deadline", "connection gone", "krun pull and ^C", "SIGTERM", "SIGKILL")):
        image, half = half_way(k, f"on{n}", Tree().file("whole", os.urandom(50000)))
        whole = image.layers[0]
        part = f"{k.root}/blobs/{images.digest(half)[7:]}.part"
        asked = []

        def trick(h, half=half, asked=asked):
            if h.path.endswith(images.digest(half)) and h.headers.get("Range"):
                asked.append(h.headers["Range"])
                begin = int(asked[-1][len("bytes="):-1])
                return h.answer(206, half[begin:], Content_Range=f"bytes {begin}-{len(half) - 1}/{len(half)}")
            return False
        k.fake.trick = trick
        leave = leave_by(k, how, f"on{n}")
        until(f"half of it is here before it is {how}", lambda: os.path.exists(part) and os.path.getsize(part) >= len(half) // 2)
        until("a layer is whole", lambda: [p for p in os.listdir(k.root + "/layers") if p.endswith(".json") and
                                           images.digest(image.tars[0])[7:] in p])
        leave()
        until("nothing of krun fetches any more", lambda: not [
            line for line in processes().values() if line.startswith(("krun fetch", "krun unpack"))])
        k.fake.gate.set()
        equal(os.path.getsize(part), len(half) // 2, f"bytes that are kept when it was {how}")
        k.fake.requests.clear()
        equal(k.pull(FAKE + f"on{n}"), image.id, "the image at the second try")
        equal(asked, [f"bytes={len(half) // 2}-"], f"ranges asked for when it was {how}")
        again = [p for _, p in k.fake.requests if p.endswith(images.digest(whole))]
        if not how.startswith("SIG"):
            equal(again, [], f"requests for the layer that was whole when it was {how}")
        drop(k, FAKE + f"on{n}")
        until("its layers go with it", lambda: not [p for p in os.listdir(k.root + "/layers") for t in image.tars
                                                    if images.digest(t)[7:] in p])
    k.fake.trick = None
    equal(os.listdir(k.root + "/blobs"), [], "what is left of the downloads")


@test
def a_pull_of_wrong_bytes_leaves_nothing_of_them(k):
    image = small("wrong", Tree().file("good", os.urandom(3000)), Tree().file("bad", os.urandom(300000)))
    k.fake.put(image, "wrong")
    before = state(k)
    bad = image.layers[1]
    k.fake.blobs[images.digest(bad)] = bad[:-1] + bytes([bad[-1] ^ 1])
    try:
        k.pull(FAKE + "wrong")
        check(False, "it was pulled")
    except grpc.RpcError as error:
        holds(images.digest(bad), error.details(), "the error")
    until("no layer is left", lambda: state(k) == before)
    equal(os.listdir(k.root + "/blobs"), [], "what is left of the download")
    k.fake.blobs[images.digest(bad)] = bad
    equal(k.pull(FAKE + "wrong"), image.id, "the second try")
    drop(k, FAKE + "wrong")


@test
def the_daemon_logs_what_came_and_how_fast(k):
    image = small("logged", Tree().file("x", os.urandom(5000)))
    k.fake.put(image, "logged")
    k.pull(FAKE + "logged")
    k.pull(FAKE + "logged")
    with open(k.directory + "/daemon.log") as f:
        log = [line for line in f if "logged" in line]
    holds(f"pulling {FAKE}logged:latest from http://127.0.0.1:5001", log[0], "the start")
    size = len(image.manifest) + len(image.config) + len(image.layers[0])
    check(re.search(rf"pulled {FAKE}logged:latest as {image.id}: {size} bytes in [0-9.]+ s "
                    r"\([0-9.e+-]+ MB/s\); layers: 1 fetched, 0 there already", log[1]), log[1])
    holds(f": {size - len(image.layers[0])} bytes in ", log[3], "of one that is there")
    holds("layers: 0 fetched, 1 there already", log[3], "of one that is there")
    drop(k, FAKE + "logged")


# -- progress: krun pull --------------------------------------------------------------------------

def named(layer):
    return images.digest(layer)[7:20]


def size(layer):
    return f"{len(layer) / 1000:.3g}kB"


@test
def without_a_terminal_each_layer_has_a_line_when_something_happens(k):
    shared = Tree().file("shared", "x" * 1000)
    k.fake.put(small("base", shared), "base")
    k.pull(FAKE + "base")
    image, layer = half_way(k, "plain", shared)
    done = {}
    thread = threading.Thread(target=lambda: done.update(it=k.cli("pull", FAKE + "plain")))
    messages = watch(k, FAKE + "plain")
    thread.start()
    until_half(messages, layer)
    until("krun pull has been told", lambda: len([  # it joins: nothing else asks this socket twice
        p for p in processes().values() if "pull --socket" in p]) == 1)
    k.fake.gate.set()
    list(messages)
    thread.join()
    equal(done["it"].stdout.decode(), image.id + "\n", "stdout")
    lines = done["it"].stderr.decode().splitlines()
    equal(len(lines), len(set(lines)), f"lines, each once: {lines}")
    check(set(lines) <= {f"{named(image.layers[0])}: exists", f"{named(layer)}: done",
                             f"{named(layer)}: downloading {size(layer)}"}, str(lines))
    check({f"{named(image.layers[0])}: exists", f"{named(layer)}: done"} <= set(lines), str(lines))
    drop(k, FAKE + "plain", FAKE + "base")


@test
def quiet_prints_the_ID_only(k):
    image = small("quiet")
    k.fake.put(image, "quiet")
    for option in ("-q", "--quiet"):
        done = k.cli("pull", option, FAKE + "quiet")
        equal((done.stdout.decode(), done.stderr), (image.id + "\n", b""), option)
        drop(k, FAKE + "quiet")
    done = k.cli("pull", "-q", FAKE + "none", check_status=False)
    equal((done.returncode, done.stdout), (1, b""), "one that is not there")
    check(done.stderr, "it says so")


class Screen:
    """What a terminal shows: as much of ECMA-48 as krun may use. Anything else is an error."""

    def __init__(self, columns):
        self.lines, self.row, self.column, self.columns, self.rest = [""], 0, 0, columns, ""

    def feed(self, text):
        text = self.rest + text
        while text:
            found = re.match(r"\x1b\[(\d*)([AKJ])|\r|\n|[ -~]+", text)
            if not found:
                check(re.fullmatch(r"\x1b(\[\d*)?", text), f"unknown sequence: {text[:20]!r}")
                break
            self.obey(found)
            text = text[found.end():]
        self.rest = text

    def obey(self, found):
        line = self.lines[self.row]
        if found[2] == "A":
            self.row -= int(found[1] or 1)
            check(self.row >= 0, "the cursor stays on the screen")
        elif found[2] == "K":
            self.lines[self.row] = line[:self.column]
        elif found[2] == "J":
            self.lines[self.row:] = [line[:self.column]]
        elif found[0] == "\r":
            self.column = 0
        elif found[0] == "\n":
            self.row += 1
            self.lines += [""] * (self.row - len(self.lines) + 1)
        else:
            text = found[0]
            self.lines[self.row] = line[:self.column].ljust(self.column) + text + \
                line[self.column + len(text):]
            self.column += len(text)
            check(self.column < self.columns, f"the line fits {self.columns}: {self.lines[self.row]}")

    def shown(self):
        return [line.rstrip() for line in self.lines if line.strip()]


class Terminal:
    """krun on a terminal of its own: stderr there, stdout a pipe."""

    def __init__(self, k, *arguments, columns=80, rows=24, **environment):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        clean = {n: v for n, v in os.environ.items() if n not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [KRUN, arguments[0], "--socket", k.socket, *arguments[1:]], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=theirs, env={**clean, "TERM": "xterm", **environment})
        os.close(theirs)
        self.ours, self.columns = ours, int(environment.get("COLUMNS", columns))
        self.screen, self.raw = Screen(self.columns), b""

    def read_until(self, question):
        """Feeds the screen until it shows what is asked for, or the program has ended."""
        while not question(self.screen):
            try:
                data = os.read(self.ours, 4096)
            except OSError:  # EIO: the other end is closed
                return False
            self.raw += data
            self.screen.feed(data.decode())
        return True

    def end(self):
        self.read_until(lambda _: False)
        out = self.process.communicate()[0].decode()
        os.close(self.ours)
        return out


def line_of(screen, layer):
    found = [line for line in screen.shown() if line.startswith(named(layer))]
    check(len(found) <= 1, f"one line for each layer: {screen.shown()}")
    return found[0] if found else ""


@test
def on_a_terminal_a_bar_grows_in_place_and_a_line_a_layer_remains(k):
    shared = Tree().file("shared", "x" * 1000)
    k.fake.put(small("base", shared), "base")
    k.pull(FAKE + "base")
    image, layer = half_way(k, "drawn", shared, Tree().file("more", "y"))
    terminal = Terminal(k, "pull", FAKE + "drawn")
    check(terminal.read_until(lambda s: re.search(r"\[=+>", line_of(s, layer))), "a bar is drawn")
    half = line_of(terminal.screen, layer)
    check(re.search(rf"  \[=+> +\]  [ 0-9.]+kB/ {size(layer)}  [ 0-9.]+[kM]?B/s", half), half)
    check(len(half) < 80, half)
    equal(terminal.process.poll(), None, "krun pull meanwhile")
    k.fake.gate.set()
    equal(terminal.end(), image.id + "\n", "stdout")
    equal(terminal.process.returncode, 0, "exit status")
    shown = terminal.screen.shown()
    equal(sorted(shown), sorted([f"{named(image.layers[0])}  exists",
                                 f"{named(image.layers[1])}  done {len(image.layers[1])}B",
                                 f"{named(layer)}  done {size(layer)}"]), "what remains")
    drop(k, FAKE + "drawn", FAKE + "base")


@test
def the_terminals_width_is_that_of_COLUMNS_or_its_own(k):
    for title, given in {"narrow": {"columns": 50}, "wide": {"columns": 200},
                        "named": {"columns": 80, "COLUMNS": "50"}, "tiny": {"columns": 10},
                        "unknown": {"columns": 0}}.items():
        image, layer = half_way(k, title)
        terminal = Terminal(k, "pull", FAKE + title, **given)
        terminal.screen.columns = 1000  # the name of the image may wrap
        check(terminal.read_until(lambda s, of=layer: "[=" in line_of(s, of) or "%" in line_of(s, of)
                                  or (title == "tiny" and s.shown())), f"{title}: it is drawn")
        drawn = terminal.screen.shown()[-1]
        width = int(given.get("COLUMNS", given["columns"])) or 80
        check(len(drawn) < width, f"{title}: {len(drawn)} columns: {drawn}")
        if title == "wide":
            check(len(drawn) > 150, f"it uses the width: {drawn}")
        k.fake.gate.set()
        equal(terminal.end(), image.id + "\n", "stdout")
        drop(k, FAKE + title)
        before_each(k)


@test
def more_layers_than_lines_are_drawn_within_the_screen(k):
    trees = [Tree().file(f"f{i}", os.urandom(200)) for i in range(30)]
    image = small("many layers", *trees)
    k.fake.put(image, "many")
    k.fake.halves.add(images.digest(image.layers[0]))
    k.fake.halves.add(images.digest(image.layers[1]))
    k.fake.halves.add(images.digest(image.layers[2]))
    k.fake.gate.clear()
    terminal = Terminal(k, "pull", FAKE + "many", rows=10)
    check(terminal.read_until(lambda s: "and 22 more" in s.shown()), "the rest is counted")
    equal(len(terminal.screen.shown()), 9, "lines")
    k.fake.gate.set()
    equal(terminal.end(), image.id + "\n", "stdout")
    equal(sorted(line[:13] for line in terminal.screen.shown()),
          sorted(named(b) for b in image.layers), "a line for each layer")
    drop(k, FAKE + "many")


@test
def a_dumb_terminal_gets_plain_lines(k):
    image = small("dumb")
    k.fake.put(image, "dumb")
    terminal = Terminal(k, "pull", FAKE + "dumb", TERM="dumb")
    equal(terminal.end(), image.id + "\n", "stdout")
    check(b"\x1b" not in terminal.raw, f"no escape sequence: {terminal.raw}")
    holds(f"{named(image.layers[0])}: done", terminal.raw.decode(), "what is said")
    drop(k, FAKE + "dumb")


@test
def krun_run_shows_the_pull_likewise(k):
    name = images.push(images.busybox({"Labels": {"shown": "run"}}), "127.0.0.1:5000", "test/shown")
    done = k.cli("run", "--rm", "--net", "host", "--entrypoint", "/bin/echo", name, "hello")
    equal(done.stdout.decode(), "hello\n", "stdout")
    lines = done.stderr.decode().splitlines()
    check(re.fullmatch(r"[0-9a-f]{13}: (done|exists)", lines[-1]), str(lines))
    drop(k, name)


@test
def a_runtime_that_cannot_show_progress_is_asked_to_pull_all_the_same(k):
    path = k.directory + "/other.sock"
    asked = []

    def pull(request, _):
        asked.append(pb.PullImageRequest.FromString(request).image.image)
        return pb.PullImageResponse(image_ref="sha256:of-another").SerializeToString()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
        "runtime.v1.ImageService", {"PullImage": grpc.unary_unary_rpc_method_handler(pull)})])
    server.add_insecure_port("unix:" + path)
    server.start()
    try:
        done = k.cli("pull", "--socket", path, "example.test/x:1")
        equal((done.stdout.decode(), asked), ("sha256:of-another\n", ["example.test/x:1"]), "the pull")
    finally:
        server.stop(None).wait()
