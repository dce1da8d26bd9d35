"""What strangers send us on purpose: configurations of images, name servers, full disks, many at once."""
import http.server
import json
import os
import socket
import socketserver
import struct
import subprocess
import threading

import grpc

import images
import registry
import trees
from harness import (CANARY, DEADLINE, KRUN, Failure, Krun, check, equal, holds, test, until)
from images import Image, Tree

FAKE, PORT = "127.0.0.1:5001/", 5001


def setup(k):
    k.fake = registry.FakeRegistry(PORT)
    # One more layer, small and unlike others, makes an image that is a test's own.
    k.base = images.busybox_tree()


def teardown(k):
    k.fake.stop()


def layers(k):
    return set(os.listdir(k.root + "/layers"))


def fails(call):
    """The call must fail; gives its message."""
    try:
        answer = call()
    except Exception as error:  # pylint: disable=broad-except
        return error.details()
    raise Failure(f"it succeeded: {answer}")


def drop(k, name):
    k.cri.RemoveImage(image={"image": name})


def pulled(k, repository, config, *trees):
    """An image of busybox with a configuration and more layers."""
    image = Image([k.base, *trees], dict({"Env": ["PATH=/bin"]}, **config))
    k.fake.put(image, repository)
    k.pull(FAKE + repository)
    return {"image": FAKE + repository}


# -- what an image says about itself --------------------------------------------------------------

@test
def an_images_labels_are_text_and_nothing_else(k):  # T39, CVE-2026-53488
    labels = {f"label-{n}": "v" * 20 for n in range(100000)}
    labels.update({"krun.privileged": "true", "io.kubernetes.cri.container-type": "sandbox",
                   "containerd.io/logger": f"binary:///bin/touch?{CANARY}-label", "\\n": "\\n"})
    image = pulled(k, "labels", {"Labels": labels})
    info = k.cri.ImageStatus(image=image, verbose=True).info
    equal(len(json.loads(info["info"])["imageSpec"]["config"]["Labels"]), len(labels), "labels shown")
    container = k.pod().start(image=image)
    equal(dict(container.status().labels), {}, "the container's labels")
    check(not os.path.exists(CANARY + "-label"), "no label is a command")
    k.remove_all()
    drop(k, image["image"])


@test
def an_images_environment_is_taken_or_refused_whole(k):  # T39
    image = pulled(k, "environment", {"Env": ["PATH=/bin", "NO_EQUALS", "LINES=a\nb", "=x", "A=1", "A=2"]})
    output = k.pod().prints("sh", "-c", "tr '\\0' '\\n' </proc/self/environ; echo; echo $LINES", image=image)
    holds("LINES=a\nb\n", output)
    holds("A=2", output)
    check("A=1\n" not in output, "the last of equal names counts")
    k.remove_all()
    drop(k, image["image"])


@test
def an_images_volumes_hold_nothing_of_the_host(k):  # T39, CVE-2022-23648
    os.makedirs(CANARY)
    with open(CANARY + "/secret", "w") as f:
        f.write("of the host")
    rows = ("../.." + CANARY, "/../../.." + CANARY, "/", "/proc", "/proc/self", "/sys", "/dev",
            "/v/../.." + CANARY, "/link", "/link/sub", "relative", "", "/a:b", "/a,b", "/n\nl")
    try:
        for number, volume in enumerate(rows):
            more = Tree().link("link", CANARY).file(f"number-{number}")
            image = pulled(k, "volume", {"Volumes": {volume: {}}}, more)
            try:
                container = k.pod().start(image=image)
                container.run("sh", "-c", "for d in / /link /v /tmp /relative; do echo x >$d/planted; done; true")
                said = container.run("find", "/", "-xdev", "-name", "secret").stdout
                equal(said, b"", f"the host's file with volume {volume!r}")
                equal(os.listdir("/proc/self/fd") != [], True, "the host's /proc")
            except Exception as error:  # pylint: disable=broad-except
                if isinstance(error, Failure):
                    raise
            equal(os.listdir(CANARY), ["secret"], f"the canary with volume {volume!r}")
            k.remove_all()
            drop(k, image["image"])
    finally:
        os.unlink(CANARY + "/secret")
        os.rmdir(CANARY)


@test
def an_images_working_directory_is_inside(k):  # T39, T52, CVE-2024-21626
    more = Tree().link("fd", "/proc/self/fd/7").link("up", "../../../../../..").link("loop", "loop") \
        .file("file", "x").directory("real").link("link", "real")
    rows = {f"/proc/self/fd/{n}": None for n in (3, 5, 7, 8, 9, 12)}
    rows.update({"/proc/self/fd/7/../../../..": None, "/fd": None, "/loop": None, "/file": None, "/up": "/\n",
                 "/link": "/real\n", "/made/new": "/made/new\n", "relative": None, "/../../real": "/real\n"})
    for directory, want in rows.items():
        image = pulled(k, "workdir", {"WorkingDir": directory}, more)
        pod = k.pod()
        try:
            output = pod.prints("sh", "-c", "pwd -P; ls -A /proc/self/cwd/", image=image)
        except Exception as error:  # pylint: disable=broad-except
            check(want is None, f"{directory}: {error}")
        else:
            got = output.split("\n", 1)[0] + "\n"
            check(got.startswith("/") and "(unreachable)" not in got, f"{directory} leads to {got}")
            if want:
                equal(got, want, directory)
            check("krun.sock" not in output and "images" not in output, f"{directory}: {output}")
        k.remove_all()
        drop(k, image["image"])


def bytes_read(k):
    """What the daemon's threads have read with read(2); of the process it would count its children's as well."""
    total = 0
    for thread in os.listdir(f"/proc/{k.process.pid}/task"):
        with open(f"/proc/{k.process.pid}/task/{thread}/io", encoding="ascii") as f:
            total += int(next(line for line in f if line.startswith("rchar:")).split()[1])
    return total


@test
def an_images_users_are_not_read_by_the_daemon(k):  # T40
    """What is in passwd and group was written by strangers: a process without rights reads it."""
    names = "".join(f"u{n}:x:{n}:{n}::/home/u{n}:\n" for n in range(1000, 26000))
    groups = "".join(f"g{n}:x:{n}:u{n},u{n + 1}\n" for n in range(1000, 26000))
    check(len(names) > 700 << 10 and len(groups) > 500 << 10, "the files are large")
    image = pulled(k, "users", {"User": "u25000"},
                   Tree().file("etc/passwd", "root:x:0:0::/:\n" + names).file("etc/group", groups))
    pod = k.pod()
    for turn in range(3):
        before = bytes_read(k)
        container = pod.create("sh", "-c", "id -u; id -G; echo $HOME", image=image)
        read = bytes_read(k) - before
        check(read < 100 << 10, f"the daemon read {read} bytes to make container {turn}")
        container.start()
        equal(container.exited().exit_code, 0, "the exit code")
        equal(container.output(), "25000\n25000 24999\n/home/u25000\n", "who it was")
    k.remove_all()
    drop(k, image["image"])


@test
def a_user_in_more_groups_than_the_kernel_takes_is_refused(k):  # T40
    image = pulled(k, "groups", {"User": "u"}, Tree().file("etc/passwd", "u:x:1:1::/:\n").file(
        "etc/group", "".join(f"g:x:{n}:u\n" for n in range(1, 70001))))
    holds("the user is in 70000 groups, more than 65536",
          fails(lambda: k.pod().create("true", image=image)))
    k.remove_all()
    drop(k, image["image"])


@test
def an_images_entrypoint_may_be_kruns_program_but_not_change_it(k):  # T39, T51
    """What it finds there is a sealed copy, which does nothing that the container may not."""
    running = f"/proc/{k.process.pid}/exe"
    before = trees.fingerprint(KRUN), trees.fingerprint(running)
    for number, path in enumerate(("/proc/self/exe", "/proc/1/exe", "/proc/self/fd/3", "/link")):
        more = Tree().link("link", "/proc/self/exe").file(f"number-{number}")
        image = pulled(k, "entrypoint", {"Entrypoint": [path]}, more)
        try:
            k.pod().create(image=image, command=[], args=["--version"]).start().exited()
        except Exception as error:  # pylint: disable=broad-except
            if isinstance(error, Failure):
                raise
        equal((trees.fingerprint(KRUN), trees.fingerprint(running)), before, f"krun after {path}")
        k.remove_all()
        drop(k, image["image"])


@test
def an_images_user_is_who_it_says_or_nobody(k):  # T39, CVE-2024-40635
    rows = {"0x0": None, "-1": None, "2147483648": None, "4294967296": None, "root:x:0": None, "1000:nogroup-here": None,
            ":0": "0", "1:": "1", "::": None, " 1": None, "+1": None, "1x": None, "1000": "1000", "1234": "1234",
            "65534:65534": "65534", "alice": "1000", "alice:staff": "1000"}
    for user, want in rows.items():
        image = pulled(k, "user", {"User": user})
        pod = k.pod()
        if want is None:
            fails(lambda image=image, pod=pod: pod.create(image=image).start())
        else:
            equal(pod.prints("id", "-u", image=image), want + "\n", f"the user of {user!r}")
        k.remove_all()
        drop(k, image["image"])


# -- many, and too little room --------------------------------------------------------------------

@test
def of_fifty_pulls_at_once_half_may_go_away(k):  # T42
    before = layers(k)
    image = Image([Tree().file("a", os.urandom(300000)), Tree().file("b", "2")])
    k.fake.put(image, "fifty")
    k.fake.requests.clear()
    k.fake.gate.clear()
    k.fake.asked.clear()
    calls = [k.cri.begin("PullImage", image={"image": FAKE + "fifty"}) for _ in range(50)]
    until("a blob is asked for", k.fake.asked.is_set)
    for call in calls[::2]:
        call.cancel()
    k.cri.Version()
    k.fake.gate.set()
    equal({c.result().image_ref for c in calls[1::2]}, {image.id}, "answers")
    blobs = [p for m, p in k.fake.requests if m == "GET" and "/blobs/" in p]
    equal(len(blobs), len(set(blobs)), "each blob is fetched once")
    drop(k, FAKE + "fifty")
    until("nothing is left", lambda: layers(k) <= before)


@test
def an_image_may_be_removed_while_its_layers_are_pulled_again(k):  # T42
    before = layers(k)
    shared = Tree().file("shared", os.urandom(100000))
    one, two = (Image([shared, Tree().file("which", n)], {"Labels": {"n": n}}) for n in "12")
    k.fake.put(one, "removed")
    k.pull(FAKE + "removed")
    k.fake.put(two, "removed")
    k.fake.gate.clear()
    k.fake.asked.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "removed"})
    until("a blob is asked for", k.fake.asked.is_set)
    drop(k, FAKE + "removed")
    drop(k, one.id)
    k.fake.gate.set()
    equal(call.result().image_ref, two.id, "the answer")
    names = {images.digest(t)[7:] for t in two.tars}
    check(names <= layers(k), "its layers are there")
    k.cri.RemoveImage(image={"image": two.id})
    until("nothing is left", lambda: layers(k) <= before)


@test
def a_full_disk_stops_a_pull_and_room_lets_it_go_on(k):  # T42, T59
    other = Krun(k.directory + "/full")
    options = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", other.root]
    subprocess.check_call(options)
    try:
        other.allow_http("127.0.0.1:5001")
        other.start()
        before = layers(other)
        trees_ = [Tree().file("1", os.urandom(1 << 20)), Tree().file("2", os.urandom(1 << 20)),
                  Tree().file("3", os.urandom(30 << 20))]
        image = Image(trees_)
        k.fake.put(image, "large")
        holds("No space left", fails(lambda: other.pull(FAKE + "large")))
        until("nothing half made is left", lambda: not [n for n in layers(other) if "partial" in n])
        check(not other.cri.ImageStatus(image={"image": FAKE + "large"}).HasField("image"), "no image")
        other.cri.Status()
        subprocess.check_call(["mount", "-o", "remount,size=100m", other.root])
        equal(other.pull(FAKE + "large"), image.id, "the second try")
        with open(f"{other.root}/layers/{images.digest(image.tars[2])[7:]}/3", "rb") as f:
            check(f.read() in image.tars[2], "the file is whole")
        drop(other, FAKE + "large")
        until("nothing is left", lambda: layers(other) <= before)
    finally:
        other.stop()
        subprocess.check_call(["umount", "-l", other.root])


# -- name servers ---------------------------------------------------------------------------------

A, CNAME, AAAA = 1, 5, 28
SELF = b"\x7f\0\0\1"


def record(kind, data, name=b"\xc0\x0c"):
    return name + struct.pack(">HHIH", kind, 1, 1, len(data)) + data


def name_of(text):
    return b"".join(bytes([len(p)]) + p.encode() for p in text.split(".")) + b"\0"


class NameServer:
    """On 127.0.0.1, port 53, UDP and TCP. The first label of a name says how it is answered."""

    def __init__(self):
        self.asked = []
        outer = self

        class Udp(socketserver.BaseRequestHandler):
            def handle(self):
                for reply in outer.answer(self.request[0], False):
                    self.request[1].sendto(reply, self.client_address)

        class Tcp(socketserver.BaseRequestHandler):
            def handle(self):
                size = struct.unpack(">H", self.request.recv(2, socket.MSG_WAITALL))[0]
                for reply in outer.answer(self.request.recv(size, socket.MSG_WAITALL), True):
                    self.request.sendall(struct.pack(">H", len(reply)) + reply)

        class TcpServer(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
        self.servers = [socketserver.ThreadingUDPServer(("127.0.0.1", 53), Udp),
                        TcpServer(("127.0.0.1", 53), Tcp)]
        for server in self.servers:
            server.daemon_threads = True
            server.max_packet_size = 65535
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def answer(self, query, tcp):
        end = query.index(b"\0", 12) + 5
        question, kind = query[12:end], struct.unpack(">H", query[end - 4:end - 2])[0]
        way = query[13:13 + query[12]].decode()
        self.asked.append((way, kind, tcp))

        def reply(*records, number=query[:2], flags=0x8180):
            return number + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(records)
        wrong = bytes([query[0] ^ 0xFF, query[1]])
        good = reply(record(A, SELF)) if kind == A else reply()
        ways = {
            "good": [good],
            "silent": [],
            "truncated": [good] if tcp else [reply(flags=0x8380)],
            "cut": [good] if tcp else [good[:20], good[:-2], b"", good],
            "never": [reply(flags=0x8380)],  # truncated for ever, over TCP too
            "loop": [reply(record(CNAME, b"\xc0\x0c"), record(CNAME, name_of("loop.test"), name_of("loop2.test")))],
            "pointer": [reply(b"\xc0" + bytes([end]) + record(A, SELF)[2:])],
            "huge": [reply(*[record(A, SELF)] * 4000)[:65535]] if tcp else [reply(flags=0x8380)],
            "datagram": [reply(*[record(A, SELF)] * 4000)[:65000]],
            "wrong": [reply(record(A, SELF), number=wrong)],
            "wrongthengood": [reply(record(A, b"\x7f\0\0\x09"), number=wrong), good],
            "question": [query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + name_of("other.test") +
                         question[-4:] + record(A, SELF)],
            "none": [reply(flags=0x8183)],
            "metadata": [reply(record(A, b"\xa9\xfe\xa9\xfe"))] if kind == A else [reply()],
        }
        return ways.get(way, [reply(flags=0x8183)])


class Resolving:
    """resolv.conf names our server, once to ask and one second to wait."""

    def __init__(self, k):
        self.file = k.directory + "/resolv.conf"
        with open(self.file, "w") as f:
            f.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")

    def __enter__(self):
        self.server = NameServer()
        subprocess.check_call(["mount", "--bind", self.file, "/etc/resolv.conf"])
        return self.server

    def __exit__(self, *_):
        subprocess.check_call(["umount", "/etc/resolv.conf"])
        self.server.stop()


@test
def whatever_a_name_server_says_a_pull_ends(k):  # T44
    rows = {"good": True, "silent": False, "truncated": True, "cut": None, "never": False, "loop": False,
            "pointer": None, "huge": True, "datagram": None, "wrong": False, "wrongthengood": True,
            "question": False, "none": False}
    with Resolving(k) as server:
        calls = {}
        for way in rows:  # at a time, since most of them only wait
            k.allow_http(f"{way}.test:{PORT}")
            k.fake.put(Image([Tree().file("named", way)]), "named/" + way)
            calls[way] = k.cri.begin("PullImage", image={"image": f"{way}.test:{PORT}/named/{way}"})
        for way, want in rows.items():
            try:
                calls[way].result()
                done = True
                drop(k, f"{way}.test:{PORT}/named/{way}")
            except grpc.RpcError as error:
                done, said = False, error.details()
                holds(f"{way}.test", said, "the message")
                holds("RegistryUnavailable", said, "the message")
            check(want is None or done == want, f"{way}: pulled is {done}" + ("" if done else f": {said}"))
            check(any(w == way for w, _, _ in server.asked), f"{way} was asked for")


@test
def no_name_leads_a_redirect_to_a_link_local_address(k):  # T44, T41
    """Where clouds serve a machine's own secrets; here somebody listens there, and hears nothing."""
    image = Image([Tree().file("redirected", "x")])
    k.fake.put(image, "redirected")
    heard = []

    class Redirect(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(307)
            self.send_header("Location", f"http://metadata.test:{PORT + 2}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
    subprocess.check_call(["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"])
    front = http.server.ThreadingHTTPServer(("127.0.0.1", PORT + 1), Redirect)
    secret = socketserver.ThreadingTCPServer(("169.254.169.254", PORT + 2), lambda *a: heard.append(a))
    try:
        for server in (front, secret):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        with Resolving(k):
            k.allow_http(f"127.0.0.1:{PORT + 1}")
            said = fails(lambda: k.pull(f"127.0.0.1:{PORT + 1}/redirected"))
            holds("metadata.test", said, "the message")
        equal(heard, [], "connections")
    finally:
        for server in (front, secret):
            server.shutdown()
            server.server_close()
        subprocess.check_call(["ip", "addr", "del", "169.254.169.254/32", "dev", "lo"])
