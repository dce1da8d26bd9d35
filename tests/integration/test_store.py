"""The image store on disks that fill up, lose what was not synced and are written to by others: what is
damaged is never used, what was acknowledged is there, and nothing is left of what failed."""
import glob
import gzip
import json
import os
import re
import shutil
import signal
import subprocess

import grpc

import images
import registry
from harness import (SLEEP, TOP, Failure, Krun, check, equal, holds, refused, restarts, skip,
                     test, until)
from images import Image, Tree


def setup(k):
    k.fake = registry.FakeRegistry(5002)
    k.allow_http("127.0.0.1:5002")


def teardown(k):
    k.fake.stop()


def before_each(k):
    k.fake.gate.set()


def status(k, name):
    return k.cri.ImageStatus(image={"image": name}).image


def runnable(title, files=1, size=100, more=None):
    """A system in one layer and a second layer that is unlike all others."""
    more = more or Tree()
    for n in range(files):
        more.file(f"data/{n}", (f"{title} {n} " * size)[:size])
    return Image([images.busybox_tree(), more], {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})


def layer_path(k, image, index=1):
    return f"{k.root}/layers/{images.digest(image.tars[index])[7:]}"


def leftovers(k):
    """What is in images/ and layers/ that no whole image has."""
    have = set(os.listdir(k.root + "/layers")) - {".empty"}
    records = {n[:-5] for n in have if n.endswith(".json")}
    odd = {n for n in have if not n.endswith(".json")} ^ records
    used = set()
    for path in glob.glob(k.root + "/images/*.json"):
        with open(path) as f:
            used |= set(json.load(f)["layers"])
    return sorted(odd | (records ^ used)) + sorted(
        n for n in os.listdir(k.root + "/images") if not re.fullmatch(r"[0-9a-f]{64}\.json", n))


def clean(k):
    def is_clean():
        check(k.process.poll() is None, "the daemon has ended")
        return not leftovers(k)
    try:
        until("nothing is left that no image has", is_clean)
    except Failure:
        raise Failure(f"left: {leftovers(k)}") from None


def drop(k, *wanted):
    for name in wanted:
        k.cri.RemoveImage(image={"image": name})


# -- damage ---------------------------------------------------------------------------------------

@restarts
@test
def a_damaged_image_is_refused_forgotten_and_pulled_anew(k):
    image = runnable("damage")
    name = k.fake.put(image, "damage")
    k.pull(name)
    old = k.pod().start(*SLEEP, image={"image": name})
    k.kill()
    os.unlink(layer_path(k, image) + "/data/0")
    k.start()
    old.cri = k.cri
    check(status(k, name).id, "nobody has looked yet")
    pod = k.pod()
    text = refused("DATA_LOSS", lambda: pod.create(image={"image": name}), "1 entry is missing")
    holds(name, text, "the message")
    holds(os.path.basename(layer_path(k, image))[:12], text, "the message")
    check(not status(k, name).id, "the kubelet is told that it is not there")
    equal(old.sh("cat /bin/busybox | wc -c"), f"{os.stat('/bin/busybox').st_size}\n",
          "what the running container reads")
    k.pull(name)
    equal(pod.prints("cat", "/data/0", image={"image": name}), image_text("damage"), "the content")
    equal(old.sh("ls /data"), "", "the running container's own view")
    check(glob.glob(k.root + "/layers/*.damaged-*"), "that is still on disk")
    k.remove_all()
    drop(k, name)
    clean(k)


def image_text(title, n=0, size=100):
    return (f"{title} {n} " * size)[:size]


@restarts
@test
def a_damaged_image_volume_is_refused(k):
    image = runnable("volume")
    name = k.fake.put(image, "volume")
    k.pull(name)
    k.restart()
    os.chmod(layer_path(k, image) + "/data/0", 0o4777)
    mount = {"container_path": "/v", "image": {"image": name}, "readonly": True}
    refused("DATA_LOSS", lambda: k.pod().create(mounts=[mount]), "ImageVolumeMountFailed")
    k.pull(name)
    equal(k.pod().prints("stat", "-c", "%a", "/v/data/0", mounts=[mount]), "644\n", "its mode")
    k.remove_all()
    drop(k, name)
    clean(k)


@restarts
@test
def many_creates_at_once_on_an_unchecked_image_all_succeed(k):
    image = runnable("many", files=500)
    name = k.fake.put(image, "many")
    k.pull(name)
    k.restart()
    pods = [k.pod() for _ in range(4)]
    calls = [k.cri.begin("CreateContainer", pod_sandbox_id=p.id, sandbox_config=p.config, config={
        "metadata": {"name": f"c{n}"}, "image": {"image": name}, "command": ["true"],
        "log_path": f"{n}.log"}) for p in pods for n in range(4)]
    for call in calls:
        check(call.result().container_id, "made")
    k.remove_all()
    drop(k, name)
    clean(k)


@test
def krun_check_tells_what_is_damaged_and_exits_with_1(k):
    one, two = runnable("one"), runnable("two")
    names = [k.fake.put(one, "one"), k.fake.put(two, "two")]
    for name in names:
        k.pull(name)
    done = k.cli("check")
    for name in names:
        check(re.search(re.escape(name) + r" +\w+ +whole", done.stdout.decode()), done.stdout.decode())
    with open(layer_path(k, two) + "/data/0", "ab") as f:
        f.write(b"more")
    equal(k.cli("check", names[0]).returncode, 0, "exit code for a whole one")
    done = k.cli("check", check_status=False)
    equal(done.returncode, 1, "exit code")
    line = next(li for li in done.stdout.decode().splitlines() if names[1] in li)
    holds("104 bytes, not 100", line, "its line")
    check(not status(k, names[1]).id and status(k, names[0]).id, "only the damaged one is forgotten")
    equal(k.cli("check", names[1], check_status=False).returncode, 1, "exit code for what is not there")
    rows = json.loads(k.cli("check", "-o", "json").stdout)["images"]
    check(rows and not [r for r in rows if r.get("damage")], str(rows))
    k.pull(names[1])
    equal(k.cli("check", *names).returncode, 0, "exit code after a pull")
    drop(k, *names)
    clean(k)


@restarts
@test
def the_built_in_image_heals_itself(k):
    layer = {os.path.basename(p)[:-5] for p in glob.glob(k.root + "/layers/*.json")}
    krun_layers = [n for n in layer if os.path.exists(f"{k.root}/layers/{n}/krun")]
    equal(len(krun_layers), 1, "layers with krun in them")
    k.kill()
    os.truncate(f"{k.root}/layers/{krun_layers[0]}/krun", 1000)
    k.start()
    command, image = ("/krun", "self", "print", "hi"), {"image": "localhost/krun:self"}
    refused("DATA_LOSS", lambda: k.pod().create(*command, image=image), "1000 bytes")
    equal(k.pod().prints(*command, image=image), "hi\n", "the second try")
    k.remove_all()
    clean(k)


@restarts
@test
def a_pull_gets_only_the_layers_that_are_not_there(k):
    one, two = runnable("shared 1"), runnable("shared 2")
    names = [k.fake.put(one, "shared1"), k.fake.put(two, "shared2")]

    def fetched(name):
        k.fake.requests.clear()
        k.pull(name)
        wanted = {images.digest(b): n for n, b in enumerate(two.layers)}
        return [wanted[p.split("/")[-1]] for _, p in k.fake.requests if p.split("/")[-1] in wanted]
    k.pull(names[0])
    equal(fetched(names[1]), [1], "layers that were fetched")
    equal(fetched(names[1]), [], "when all are there")
    k.kill()
    os.unlink(layer_path(k, two) + "/data/0")
    k.start()
    equal(fetched(names[1]), [1], "when one is damaged")
    equal(k.cli("check", *names).returncode, 0, "krun check")
    drop(k, *names)
    clean(k)


# -- what it takes on disk ------------------------------------------------------------------------

def du(path):
    """Blocks and inodes below a directory, each inode once; as du(1)."""
    seen = {}
    for top, directories, files in os.walk(path):
        for name in [top] + [os.path.join(top, n) for n in directories + files]:
            st = os.lstat(name)
            seen[st.st_dev, st.st_ino] = st.st_blocks * 512
    return sum(seen.values()), len(seen)


@test
def ImageFsInfo_counts_layers_as_du_does(k):
    name = k.fake.put(runnable("du", files=200, size=5000), "du")
    k.pull(name)
    clean(k)
    paths = [p for p in glob.glob(k.root + "/layers/*") if os.path.isdir(p)]
    blocks, inodes = (sum(v) for v in zip(*(du(p) for p in paths)))
    usage = k.cri.ImageFsInfo().image_filesystems[0]
    equal(usage.inodes_used.value, inodes, "inodes")
    check(abs(usage.used_bytes.value - blocks) <= 512 * len(paths),
          f"{usage.used_bytes.value} bytes, du says {blocks}")
    drop(k, name)
    clean(k)
    check(k.cri.ImageFsInfo().image_filesystems[0].inodes_used.value <= inodes - 200, "after removal")


@test
def ImageFsInfo_counts_what_containers_write(k):
    def usage():
        info = k.cri.ImageFsInfo()
        equal(info.container_filesystems[0].fs_id.mountpoint, info.image_filesystems[0].fs_id.mountpoint,
              "the mount point")
        return info.container_filesystems[0]
    empty = usage()
    write = "dd if=/dev/zero of=/big bs=64k count={} 2>&1; for i in $(seq {}); do : >/f$i; done; {}"
    k.pod().prints("sh", "-c", write.format(64, 50, "true"))
    ended = usage()
    check(4 << 20 <= ended.used_bytes.value - empty.used_bytes.value <= 5 << 20, str(ended))
    check(51 <= ended.inodes_used.value - empty.inodes_used.value <= 70, str(ended))
    container = k.pod().start("sh", "-c", write.format(32, 30, ": >/done; sleep 98765"))
    until("it has written", lambda: container.run("test", "-e", "/done").exit_code == 0)
    running = usage()
    check(2 << 20 <= running.used_bytes.value - ended.used_bytes.value <= 3 << 20, str(running))
    container.sh("dd if=/dev/zero of=/more bs=64k count=64 2>&1")
    container.stop()
    more = usage()
    check(more.used_bytes.value - running.used_bytes.value >= 4 << 20, "after its end it is looked at")
    k.remove_all()
    equal(usage().used_bytes.value, empty.used_bytes.value, "bytes when all are gone")


@test
def ImageFsInfo_answers_while_containers_come_and_go(k):
    pods = [k.pod() for _ in range(3)]
    for _ in range(5):
        calls = [k.cri.begin("ImageFsInfo") for _ in range(8)]
        containers = [p.start("sh", "-c", "mkdir -p /a/b/c/d; : >/a/b/c/d/e") for p in pods]
        calls += [k.cri.begin("ImageFsInfo") for _ in range(8)]
        calls += [k.cri.begin("RemoveContainer", container_id=c.id) for c in containers]
        calls[0].cancel()
        for call in calls[1:]:
            call.result()


# -- full and read-only disks ---------------------------------------------------------------------

class Small:
    """A krun with a file system of its own as --root."""

    def __init__(self, k, *mount, flags=()):
        self.directory = k.directory + "/small"
        os.makedirs(self.directory + "/root")
        self.mount(*mount)
        self.krun = Krun(self.directory, flags)
        self.krun.allow_http("127.0.0.1:5000", "127.0.0.1:5002")

    def mount(self, *arguments):
        done = subprocess.run(["mount", *arguments, self.directory + "/root"], stderr=subprocess.PIPE)
        if done.returncode:
            skip("mount: " + done.stderr.decode().strip())

    def remount(self, options):
        subprocess.check_call(["mount", "-o", "remount," + options, self.directory + "/root"])

    def __enter__(self):
        return self.krun

    def __exit__(self, *_):
        if self.krun.process and self.krun.process.poll() is None:
            self.krun.stop()
        subprocess.call(["umount", "-l", self.directory + "/root"])
        shutil.rmtree(self.directory, ignore_errors=True)


def no_room(krun, name, text="No space left"):
    try:
        krun.pull(name)
    except grpc.RpcError as error:
        holds(text, error.details(), "the message")
        holds(name, error.details(), "the message")
        return error.details()
    raise Failure("the pull succeeded")


def full_then_room(small, give_room, image, name):
    """The pull fails, says why and leaves nothing; then there is room, and the same daemon does it."""
    with small as krun:
        krun.start()
        for _ in range(3):
            no_room(krun, name)
            equal([i.id for i in krun.cri.ListImages().images if i.id == image.id], [], "listed")
            until("nothing is left of it", lambda: not [
                n for n in os.listdir(krun.root + "/layers") if ".partial" in n or ".tmp" in n])
        give_room()
        equal(krun.pull(name), image.id, "the pull when there is room")
        equal(krun.cli("check", name).returncode, 0, "krun check")
        krun.restart()
        equal(status(krun, name).id, image.id, "after a restart")
        check(status(krun, "localhost/krun:self").id, "the built-in image, which had no room before")
        clean(krun)


@restarts
@test
def on_a_disk_of_1_MiB_a_pull_says_so_and_works_when_there_is_room(k):  # T59
    image = runnable("one MiB")
    name = k.fake.put(image, "onemib")
    small = Small(k, "-t", "tmpfs", "-o", "size=1m", "small")
    full_then_room(small, lambda: small.remount("size=64m"), image, name)


@restarts
@test
def what_cannot_fit_is_refused_before_a_layer_of_it_comes(k):  # R9
    """By what the manifest says; what is there or has begun to come counts as there."""
    trees = [Tree().file("small", "1"), Tree().file("large", os.urandom(10 << 20))]
    image = Image(trees, {"Cmd": ["/none"]}, compress=lambda tar: tar)
    name = k.fake.put(image, "nofit")
    path = images.write_tar(images.oci_files(image, "example.test/nofit:1"), k.directory + "/nofit.tar")
    small = Small(k, "-t", "tmpfs", "-o", "size=8m", "small")
    with small as krun:
        krun.start()
        k.fake.requests.clear()
        text = f"the layers to fetch have {sum(map(len, image.layers))} bytes, as they are sent, and in "
        holds(f"{krun.root}/layers", no_room(krun, name, text), "the message")
        equal([r for r in k.fake.requests for b in image.layers if images.digest(b) in str(r)], [], "layers asked for")
        done = krun.cli("load", path, check_status=False)
        holds(text, done.stderr.decode(), "what a load prints")
        holds("No space left", done.stderr.decode(), "what a load prints")
        equal((leftovers(krun), os.listdir(krun.root + "/blobs")), ([], []), "what is left")
        small.remount("size=64m")
        krun.cli("load", path)
        small.remount("size=16m")
        equal(krun.pull(name), image.id, "a pull of what is there, on a disk that is as good as full")


@restarts
@test
def a_load_that_fills_the_disk_says_so_and_leaves_nothing(k):  # R9
    """In the spool of a compressed archive; in a layer."""
    image = Image([Tree().file("zeros", bytes(20 << 20))], {"Cmd": ["/none"]})
    small = Small(k, "-t", "tmpfs", "-o", "size=8m", "small")
    docker = images.write_tar(images.docker_files(image, ["example.test/fills:1"]), k.directory + "/docker.tar")
    with open(docker, "rb") as f, open(docker + ".gz", "wb") as to:
        to.write(gzip.compress(f.read(), 1))
    oci = images.write_tar(images.oci_files(image, "example.test/fills:1"), k.directory + "/oci.tar")
    with small as krun:
        krun.start()
        for path, step in ((docker + ".gz", "unpacked archive"), (oci, "zeros")):
            said = krun.cli("load", path, check_status=False).stderr.decode()
            for part in (step, path, "No space left"):
                holds(part, said, "what is printed")
            until("nothing is left", lambda: not leftovers(krun) and not os.listdir(krun.root + "/blobs") and
                  not os.listdir(krun.root + "/trash"))
        small.remount("size=64m")
        krun.cli("load", docker + ".gz")


@restarts
@test
def a_save_that_fills_the_disk_says_so_and_leaves_nothing(k):  # R9
    image = Image([Tree().file("zeros", bytes(20 << 20))], {"Cmd": ["/none"]})
    name = k.fake.put(image, "saved")
    k.pull(name)
    full = k.directory + "/full"
    os.makedirs(full)
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=8m", "full", full])
    try:
        for path in ("/a.tar", "/dev/full"):
            path = full + path if path != "/dev/full" else path
            done = k.cli("save", "-o", path, name, check_status=False)
            check(done.returncode, "the exit status")
            holds("No space left", done.stderr.decode(), "what is printed")
            holds(path, done.stderr.decode(), "what is printed")
        equal(os.listdir(full), [], "what is left")
    finally:
        subprocess.check_call(["umount", full])
        os.rmdir(full)


@restarts
@test
def on_a_disk_of_100_inodes_a_pull_says_so_and_works_when_there_is_room(k):  # T59
    image = runnable("inodes", files=200)
    name = k.fake.put(image, "inodes")
    small = Small(k, "-t", "tmpfs", "-o", "size=64m,nr_inodes=100", "small")
    full_then_room(small, lambda: small.remount("nr_inodes=10000"), image, name)


def ext4(k, megabytes):
    path = k.directory + "/disk"
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "wb") as f:
        f.truncate(megabytes << 20)
    subprocess.check_call(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", path])
    return path


def fill(path):
    with open(path, "wb", buffering=0) as hog:
        for size in (1 << 20, 1 << 12):
            try:
                while hog.write(bytes(size)):
                    pass
            except OSError:
                pass
        os.fsync(hog.fileno())


@restarts
@test
def at_every_fullness_of_a_disk_a_pull_fails_cleanly_or_is_whole(k):  # T59
    """The room grows until the pull works: so it ends in the layer, in its record, in the image's."""
    image = runnable("fullness", files=40, size=5000)
    name = k.fake.put(image, "fullness")
    small = Small(k, "-o", "loop", ext4(k, 24))
    with small as krun:
        krun.start()
        krun.pull(krun.image)
        fill(krun.root + "/hog")
        while True:
            try:
                krun.pull(name)
                break
            except grpc.RpcError as error:
                holds("No space left", error.details(), "the message")
            equal(leftovers(krun), [], "what is left")
            check(status(krun, krun.image).id and not status(krun, name).id, "the other image lives")
            with open(krun.root + "/hog", "r+b") as hog:
                size = os.fstat(hog.fileno()).st_size
                check(size, "the disk is empty and the pull still fails")
                hog.truncate(max(0, size - (64 << 10)))
        krun.restart()
        equal(status(krun, name).id, image.id, "the image")
        equal(krun.cli("check").returncode, 0, "krun check")
        clean(krun)


@restarts
@test
def a_disk_that_turns_read_only_keeps_its_images_and_changes_nothing(k):  # T59
    image = runnable("read-only")
    name = k.fake.put(image, "readonly")
    disk = ext4(k, 64)
    small = Small(k, "-o", "loop,errors=remount-ro", disk)
    with small as krun:
        krun.start()
        krun.pull(krun.image)
        device = subprocess.check_output(["findmnt", "-no", "SOURCE", krun.root]).decode().strip()
        trigger = f"/sys/fs/ext4/{os.path.basename(device)}/trigger_fs_error"
        try:
            with open(trigger, "w") as f:
                f.write("a test")
        except OSError as why:
            skip(f"{trigger}: {why}")
        no_room(krun, name, "Read-only file system")
        check(status(krun, krun.image).id, "what was there is there")
        refused("INTERNAL", lambda: drop(krun, krun.image), "Read-only file system")
        check(status(krun, krun.image).id, "what cannot be removed stays")
        krun.kill()
        subprocess.check_call(["umount", krun.root])
        subprocess.call(["e2fsck", "-fy", disk], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        small.mount("-o", "loop", disk)
        krun.start()
        equal(krun.pull(name), image.id, "the pull on the repaired disk")
        equal(krun.cli("check").returncode, 0, "krun check")
        clean(krun)


# -- power cuts -----------------------------------------------------------------------------------

def power_cut(k, krun, disk):
    """Copies the disk as it is without what was not synced (that is in the file system's cache, not yet
    on its device), and gives a Small that stands on the copy."""
    copy = k.directory + "/after-the-cut"
    subprocess.check_call(["cp", "--sparse=always", disk, copy])
    krun.kill()
    subprocess.check_call(["umount", krun.root])
    small = Small.__new__(Small)
    small.directory, small.krun = krun.directory, krun
    small.mount("-o", "loop", copy)
    return small


def powered(k, image, name, fault=None, flags=()):
    """Pulls, cuts the power, starts again. True if the image was acknowledged, and the krun."""
    disk = ext4(k, 64)
    small = Small(k, "-o", "loop,commit=600", disk, flags=flags)
    krun = small.krun
    krun.start()
    krun.pull(krun.image)
    subprocess.check_call(["sync", "-f", krun.root])
    if fault:
        krun.end(signal.SIGTERM)
        krun.environment = {"KRUN_FAULT": fault}
        krun.start()
    try:
        acknowledged = krun.pull(name) == image.id
    except grpc.RpcError:
        acknowledged = False
    if fault and not acknowledged:
        until("it is killed", lambda: krun.process.poll() is not None)
    krun.environment = {}
    return acknowledged, power_cut(k, krun, disk)


def no_empty_files(krun, image):
    for index, _ in enumerate(image.tars):
        path = layer_path(krun, image, index)
        for top, _, files in os.walk(path):
            for name in files:
                check(os.lstat(os.path.join(top, name)).st_size, f"{top}/{name} has lost its bytes")


@restarts
@test
def an_acknowledged_image_survives_a_power_cut(k):  # T62
    image = runnable("power", files=50, size=3000)
    name = k.fake.put(image, "power")
    acknowledged, small = powered(k, image, name)
    with small as krun:
        check(acknowledged, "the pull succeeded")
        krun.start()
        equal(status(krun, name).id, image.id, "the image")
        no_empty_files(krun, image)
        equal(krun.cli("check").returncode, 0, "krun check")
        equal(krun.pod().prints("cat", "/data/7", image={"image": name}), image_text("power", 7, 3000),
              "a file's content")
        krun.remove_all()
        clean(krun)


@restarts
@test
def without_sync_a_power_cut_loses_the_image_and_never_serves_half_of_it(k):  # T62
    """Also the proof that the tests beside this one lose what was not synced."""
    image = runnable("no power", files=50, size=3000)
    name = k.fake.put(image, "nopower")
    acknowledged, small = powered(k, image, name, flags=["--image-sync=false"])
    with small as krun:
        check(acknowledged, "the pull succeeded")
        krun.start()
        check(not status(krun, name).id, "it is gone")
        equal(krun.pull(name), image.id, "the pull after it")
        no_empty_files(krun, image)
        clean(krun)


def records_of_a_start(k):
    """How many records a daemon writes when it starts: faults in later ones are counted from there."""
    krun = Krun(k.directory + "/counted")
    krun.start()
    krun.stop()
    for n in range(20):
        krun.environment = {"KRUN_FAULT": f"record:{n + 1}"}
        try:
            krun.start()
            krun.stop()
            return n
        except Failure:
            pass  # it was killed at its record n + 1
    raise Failure("a start writes more than 20 records")


@restarts
@test
def a_power_cut_in_the_middle_of_a_pull_leaves_all_of_an_image_or_nothing(k):  # T62
    image = runnable("half", files=50, size=3000)
    name = k.fake.put(image, "half")
    first = records_of_a_start(k)
    for fault in ("pull.layer:1", f"record:{first + 1}", "pull.rename:1", "pull.record:1",
                  f"record:{first + 2}", "pull.tags:1"):
        acknowledged, small = powered(k, image, name, fault)
        with small as krun:
            check(not acknowledged, f"it was killed at {fault}")
            krun.start()
            equal(bool(status(krun, name).id), fault == "pull.tags:1", f"whether it is there after {fault}")
            check(status(krun, krun.image).id, "the other image is")
            if status(krun, name).id:
                no_empty_files(krun, image)
            equal(krun.cli("check").returncode, 0, "krun check")
            equal(krun.pull(name), image.id, "the pull after it")
            no_empty_files(krun, image)
            clean(krun)


# -- kill -9 --------------------------------------------------------------------------------------

def store_steps():
    """The steps of the store and of pulls, and that of every record, as the source has them; but for
    those of the import directory, which have a test of their own."""
    with open(os.environ.get("KRUN_SOURCE", os.path.join(TOP, "krun.c"))) as f:
        source = f.read()
    part = source[source.index("/* == 24. "):source.index("/* == 8. ")]
    steps = set(re.findall(r'fault_point\("([^"]+)"\)', part))
    return ["record"] + sorted(step for step in steps if not step.startswith("import."))


class StoreLife:
    """Two images that share a layer come by pull and by load, one is damaged and comes again, both go.
    Their upper layers do not speak of /tmp, so there is one of attributes on top."""

    def __init__(self, k):
        self.k = k
        self.one, self.two = (runnable("life " + n, more=Tree().file("tmp/x", n)) for n in "12")
        self.name = k.fake.put(self.one, "life")
        self.archive = images.write_tar(images.docker_files(self.two, ["example.test/life:2"]),
                                        k.directory + "/life.tar")

    def run(self, krun):
        krun.pull(self.name)
        krun.cli("load", self.archive)
        path = layer_path(krun, self.one) + "/data/0"
        with open(path, "ab") as f:
            f.write(b"!")
        equal(krun.cli("check", self.name, check_status=False).returncode, 1, "krun check's exit code")
        krun.pull(self.name)
        equal(krun.cli("check").returncode, 0, "krun check's exit code")
        drop(krun, self.name, "example.test/life:2")
        until("only what was there before is", lambda: len(krun.cri.ListImages().images) == 1)
        clean(krun)


def life_with_a_kill(life, krun, fault):
    """True if the step was passed so often."""
    krun.end(signal.SIGTERM)
    open(krun.directory + "/daemon.log", "w").close()
    krun.environment = {"KRUN_FAULT": fault}
    try:
        krun.start()
        life.run(krun)
        hit = False
    except (Failure, grpc.RpcError, OSError):
        until("it has been killed", lambda: krun.process.poll() is not None, 5)
        hit = True
    krun.environment = {}
    krun.end(signal.SIGKILL)
    names = set(os.listdir(krun.root + "/layers"))
    equal([n for n in names if re.fullmatch("[0-9a-f]{64}", n) and n + ".json" not in names], [],
          f"layers without a record after {fault}")
    krun.start()
    for row in json.loads(krun.cli("check", "-o", "json", check_status=False).stdout)["images"]:
        damaged = row.get("damage")  # the test's own doing, when the kill came before the check's end
        check(not damaged or row["name"] == life.name, f"{fault}: {row}")
    until(f"after {fault} no half of anything is left", lambda: not [
        n for n in os.listdir(krun.root + "/layers") if not re.fullmatch(r"[0-9a-f]{64}(\.json)?|\.empty", n)])
    life.run(krun)
    return hit


def make(step):
    def body(k):
        life = StoreLife(k)
        directory = k.directory + "/life"
        krun = Krun(directory, ["--keep-blobs"])
        krun.allow_http("127.0.0.1:5002")
        krun.start()
        n = 1
        try:
            while life_with_a_kill(life, krun, f"{step}:{n}"):
                n += 1
        finally:
            krun.stop()
            shutil.rmtree(directory)
        check(n > 1, "the life of these images does not pass this step: let it")
    body.__name__ = f"killed_at_each_{step}_the_store_is_whole_and_a_retry_works"
    body.__module__ = __name__
    return restarts(test(body))


for _step in store_steps():
    make(_step)
