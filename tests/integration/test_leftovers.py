"""Whatever lies below --root and --run, krun starts: what a kill, a full disk, another program or a
person has left there is removed, or put aside and told once."""
import contextlib
import glob
import os
import shutil
import stat
import subprocess
import tempfile

import grpc

import images
from harness import Failure, Krun, check, equal, holds, pb, skip, test, until

REGISTRY = "127.0.0.1:5000"
BUSYBOX = REGISTRY + "/test/busybox:1"


@contextlib.contextmanager
def node(k):
    """A krun of its own, not started: what one test breaks must not hurt the next."""
    directory = tempfile.mkdtemp(prefix="n", dir=k.directory)
    own = Krun(directory)
    own.allow_http(REGISTRY)
    try:
        yield own
    finally:
        end(own)
        shutil.rmtree(directory, ignore_errors=True)


def end(own):
    """A whole end, which takes the daemon's cgroup with it."""
    if own.cri:
        with contextlib.suppress(grpc.RpcError):
            own.remove_all()
    own.stop()


@contextlib.contextmanager
def small_disk(own, size="24M"):
    """An ext4 of its own as the root directory."""
    image = own.directory + "/disk"
    subprocess.check_call(["truncate", "-s", size, image])
    subprocess.check_call(["mkfs.ext4", "-q", "-m", "0", "-b", "1024", "-N", "6000", image])
    if subprocess.call(["mount", "-o", "loop", image, own.root], stderr=subprocess.DEVNULL):
        skip("no loop device")
    try:
        yield own.root
    finally:
        end(own)
        subprocess.check_call(["umount", own.root])


def fill(directory):
    """Takes all that is left of the disk, to the last block and, with empty files, the last inode."""
    with open(directory + "/filler", "wb", buffering=0) as f:
        for size in (1 << 20, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while True:
                    f.write(b"x" * size)
    os.sync()


def log_of(own):
    with open(own.directory + "/daemon.log", errors="replace") as f:
        return f.read()


def plant(path, depth=3, files=2):
    """Directories below each other with some files in each."""
    for level in range(depth):
        path += f"/d{level}"
        os.makedirs(path)
        for n in range(files):
            open(f"{path}/f{n}", "w").close()


def gone(own, path):
    until(f"{path} is removed", lambda: not os.path.lexists(f"{own.root}/{path}"))


def empty_but_ours(own):
    """Nothing lies in layers/ but layers and their records, and nothing in the trash."""
    names = [n for n in os.listdir(own.root + "/layers") if n != ".empty"]
    records = {n[:-5] for n in names if n.endswith(".json")}
    rest = [n for n in names if n not in records and n[:-5] not in records]
    return not rest and not glob.glob(own.root + "/trash/*")


# -- names ----------------------------------------------------------------------------------------

@test
def names_that_an_earlier_krun_gave_while_removing_keep_no_start(k):
    with node(k) as own:
        for path in ("layers/x.partial/.krun-remove-0/a/b", "layers/y.partial/a/.krun-remove-0/c/d",
                     "layers/y.partial/.krun-remove-0/e/f", "blobs/z/.krun-remove-0/a/b",
                     "pods/" + "ab" * 32 + "/.krun-remove-0/a/b",
                     "pods/" + "cd" * 32 + "/containers/" + "ef" * 32 + "/a/b/c"):
            os.makedirs(f"{own.root}/{path}")
        own.start()
        for path in ("layers/x.partial", "layers/y.partial", "blobs/z", "pods/" + "ab" * 32,
                     "pods/" + "cd" * 32):
            gone(own, path)


@test
def any_name_can_be_swept(k):
    with node(k) as own:
        for name in ("a\nb", "\x1b[2J", " ", "-rf", "n" * 255, ".", "\xff\xfe"):
            where = f"{own.root}/layers/{name}.partial/{name}"
            if len(name) == 255:
                where = f"{own.root}/layers/{name}/{name}/{name}"
            os.makedirs(where.encode("latin-1"))
        own.start()
        until("all is swept", lambda: empty_but_ours(own))
        check("\x1b" not in log_of(own), "an escape sequence is in the log")


def hostile_image():
    """A layer with the names that an earlier krun gave: in the top, deep, and one in place of another."""
    tree = images.busybox_tree()
    for top in (".krun-remove-0", ".krun-remove-1", "a/.krun-remove-0"):
        for part in ("x", "y"):
            tree.file(f"{top}/{part}/z/file", "1")
    tree.file("swap/.krun-remove-0/a/b", "1").file("swap/c/d/e", "1").file("swap/c/f/g", "1")
    tree.file("swap2", "1")
    tree.add("swap", kind=images.tarfile.SYMTYPE, link="bin")  # unpack removes what it has made
    return tree


@test
def an_image_with_such_names_is_pulled_refused_and_removed(k):
    image = images.Image([hostile_image()])
    images.push(image, REGISTRY, "test/lifted", "1")
    with node(k) as own:
        own.start()
        name = REGISTRY + "/test/lifted:1"
        own.pull(name)
        own.cri.RemoveImage(image={"image": name})
        until("its layer is removed", lambda: empty_but_ours(own))
        broken = images.Image([hostile_image().file("../../out", "1")])
        images.push(broken, REGISTRY, "test/lifted-bad", "1")
        with contextlib.suppress(grpc.RpcError):
            own.pull(REGISTRY + "/test/lifted-bad:1")
        own.restart()
        own.pull(name)
        own.restart()


# -- what cannot be removed -----------------------------------------------------------------------

@test
def what_is_immutable_is_told_by_its_path_and_all_else_goes(k):
    with node(k) as own, small_disk(own):
        for name in ("layers/x.partial", "layers/y.partial", "pods/" + "ab" * 32):
            plant(f"{own.root}/{name}")
        held = [f"{own.root}/layers/x.partial/d0/d1/f1", f"{own.root}/layers/y.partial/d0",
                f"{own.root}/pods/{'ab' * 32}/d0/f0"]
        for path in held:
            if subprocess.call(["chattr", "+i", path], stderr=subprocess.DEVNULL):
                skip("no immutable files here")
        try:
            own.start()
            until("all that can go has gone", lambda: not [
                p for p in glob.glob(own.root + "/**", recursive=True) if p.endswith("f0") and
                "/d2/" in p and "/y.partial/d0/" not in p])
            for part in ("d0/d1/f1: Operation not permitted", "chattr -i", "d0/f0: Operation"):
                until(part, lambda part=part: part in log_of(own))
            own.pull(BUSYBOX)
            own.restart()
        finally:
            for path in glob.glob(own.root + "/**", recursive=True):
                subprocess.call(["chattr", "-f", "-i", path])
        own.restart()
        until("all is swept", lambda: empty_but_ours(own) and not os.listdir(own.root + "/pods"))


@test
def a_foreign_mount_is_not_entered_and_keeps_no_start(k):
    with node(k) as own:
        places = [own.root + "/layers/x.partial", own.root + "/layers/y.partial/m",
                  own.root + "/pods/" + "ab" * 32]
        victim = own.directory + "/victim"
        os.makedirs(victim)
        open(victim + "/keep", "w").close()
        plant(own.root + "/layers/z.partial")
        for path in places:
            os.makedirs(path)
            subprocess.check_call(["mount", "--bind", victim, path])
        try:
            own.start()
            gone(own, "layers/z.partial")
            own.pull(BUSYBOX)
            own.restart()
            check(os.path.exists(victim + "/keep"), "a mounted directory was emptied")
            until("the log says why", lambda: "is something mounted there?" in log_of(own))
        finally:
            own.stop()
            with open("/proc/self/mountinfo") as f:
                for line in reversed(f.readlines()):
                    if own.root + "/" in line:
                        subprocess.check_call(["umount", line.split()[4]])
        own.start()
        until("all is swept", lambda: empty_but_ours(own) and not os.listdir(own.root + "/pods"))
        check(os.path.exists(victim + "/keep"), "a directory that was mounted was emptied")


@test
def a_directory_that_is_mounted_read_only_keeps_no_start(k):
    with node(k) as own:
        own.start()
        own.pull(BUSYBOX)
        own.kill()
        for name in ("layers/x.partial", "blobs/y", "pods/" + "ab" * 32):
            plant(f"{own.root}/{name}")
        open(own.root + "/images/.x.json.1.2.tmp", "w").close()
        tops = [f"{own.root}/{name}" for name in ("images", "layers", "blobs", "pods")]
        try:
            for top in tops:
                subprocess.check_call(["mount", "--bind", top, top])
                subprocess.check_call(["mount", "-o", "remount,bind,ro", top])
            own.start()
            equal(len(own.cri.ListImages(filter={"image": {"image": BUSYBOX}}).images), 1, "images")
            holds("Read-only file system", log_of(own))
        finally:
            own.stop()
            for top in tops:
                subprocess.call(["umount", top], stderr=subprocess.DEVNULL)
        own.start()
        until("all is swept", lambda: empty_but_ours(own))


# -- things in the place of others ----------------------------------------------------------------

KINDS = {
    "file": lambda path, victim: open(path, "w").close(),
    "directory": lambda path, victim: plant(path),
    "fifo": lambda path, victim: os.mkfifo(path),
    "socket": lambda path, victim: os.mknod(path, stat.S_IFSOCK | 0o600),
    "dangling link": lambda path, victim: os.symlink("/nowhere/at/all", path),
    "link to itself": lambda path, victim: os.symlink(os.path.basename(path), path),
    "link elsewhere": lambda path, victim: os.symlink(victim, path),
}
PLACES = ["root/images", "root/layers", "root/blobs", "root/pods", "root/networks", "root/trash",
          "root/lock", "root/run.json", "run/pods", "run/lock", "run/root.json", "run/krun.sock",
          "run/krun.sock.new", "root/pods/" + "ab" * 32, "root/layers/" + "ab" * 32,
          "root/layers/" + "ab" * 32 + ".json", "root/images/" + "ab" * 32 + ".json",
          "root/blobs/" + "ab" * 32, "root/blobs/" + "ab" * 32 + ".part", "run/pods/" + "ab" * 32,
          "root/images/.x.json.1.tmp", "root/networks/" + "ab" * 32]


def one_kind(k, kind):
    with node(k) as own:
        victim = own.directory + "/victim"
        plant(victim)
        before = sorted(glob.glob(victim + "/**", recursive=True))
        own.start()
        own.stop()
        for place in PLACES:
            path = f"{own.directory}/{place}"
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            with contextlib.suppress(OSError):
                os.unlink(path)
            # A later place may lie in an earlier one, which is something else now.
            with contextlib.suppress(OSError):
                if not os.path.islink(os.path.dirname(path)):
                    KINDS[kind](path, victim)
        own.start()
        own.restart()
        equal(sorted(glob.glob(victim + "/**", recursive=True)), before, "what a link led to")


for _kind in KINDS:
    def _body(k, kind=_kind):
        one_kind(k, kind)
    _body.__name__ = f"a_{_kind}_in_the_place_of_anything_keeps_no_start".replace(" ", "_")
    _body.__module__ = __name__
    test(_body)


@test
def one_thing_of_the_wrong_kind_costs_nothing_else(k):
    """Entry by entry in directories that are whole."""
    with node(k) as own:
        victim = own.directory + "/victim"
        plant(victim)
        own.start()
        own.pull(BUSYBOX)
        pod = own.cri.RunPodSandbox(config=own.pod_config()).pod_sandbox_id
        own.kill()
        for n, kind in enumerate(KINDS):
            for top in ("root/layers", "root/images", "root/blobs", "root/pods", "root/networks",
                        "run/pods", "root/trash"):
                os.makedirs(f"{own.directory}/{top}", exist_ok=True)
                for name in (f"{n:064x}", f"{n:064x}.json", f".{n}.tmp", f"{n}.partial"):
                    KINDS[kind](f"{own.directory}/{top}/{name}", victim)
        own.start()
        equal([p.id for p in own.cri.ListPodSandbox().items], [pod], "pods")
        equal(len(own.cri.ListImages(filter={"image": {"image": BUSYBOX}}).images), 1, "images")
        check(os.path.exists(victim + "/d0/d1/d2/f1"), "what a link led to is gone")
        own.remove_all()


# -- temporary files ------------------------------------------------------------------------------

@test
def temporary_files_of_records_are_swept_wherever_they_are(k):
    with node(k) as own:
        own.start()
        own.pull(BUSYBOX)
        pod = own.cri.RunPodSandbox(config=own.pod_config()).pod_sandbox_id
        made = own.cri.CreateContainer(pod_sandbox_id=pod, config={
            "metadata": {"name": "c"}, "image": {"image": BUSYBOX},
            "command": ["sh", "-c", "exit 3"]}).container_id
        own.kill()
        places = [own.root, own.run, own.root + "/images", own.root + "/layers", own.root + "/blobs",
                  own.root + "/networks", f"{own.root}/pods/{pod}",
                  f"{own.root}/pods/{pod}/containers/{made}"]
        temps = [f"{place}/.pod.json.{n}.tmp" for place in places if os.path.isdir(place)
                 for n in range(20)]
        for path in temps:
            open(path, "w").close()
        own.start()
        until("they are gone", lambda: not [p for p in temps if os.path.exists(p)])
        own.cri.StartContainer(container_id=made)
        until("it ends", lambda: own.cri.ContainerStatus(container_id=made).status.state ==
              pb.CONTAINER_EXITED)
        equal(own.cri.ContainerStatus(container_id=made).status.exit_code, 3, "exit code")
        own.remove_all()


# -- killed while it removes ----------------------------------------------------------------------

STEPS = 200  # more than any removal here takes: the last one tried must not be passed


def killed(own):
    return "KRUN_FAULT: killed at" in log_of(own)


def clean(own):
    """Nothing of what was to go is anywhere, live or in the trash."""
    return empty_but_ours(own) and not [n for n in os.listdir(own.root + "/pods")
                                        if not n.startswith("bad-")]


def at_every_step(own, begin, step="tree.entry", first=1, by=1):
    """`begin` makes a started krun remove something; krun is killed at the first step of that, at the
    second, and so on until it is not killed any more. Each next start ends clean. How many steps."""
    for n in range(first, STEPS, by):
        open(own.directory + "/daemon.log", "w").close()
        own.kill()
        own.environment = {"KRUN_FAULT": f"{step}:{n}"}
        with contextlib.suppress(grpc.RpcError, Failure):
            own.start()
            begin()
        with contextlib.suppress(Failure):
            until("all is removed, or krun is killed", lambda: killed(own) or clean(own))
        died = killed(own)
        own.environment = {}
        own.restart()
        for pod in own.cri.ListPodSandbox().items:  # it was killed before the removal counted
            own.cri.StopPodSandbox(pod_sandbox_id=pod.id)
            own.cri.RemovePodSandbox(pod_sandbox_id=pod.id)
        until(f"the next start ends clean after {step}:{n}: {os.listdir(own.root + '/layers')}, "
              f"{os.listdir(own.root + '/pods')}", lambda: clean(own))
        if not died:
            return n - first
    raise Failure(f"still killed at {step}:{n}")


SMALL = images.Image([images.Tree().directory("a").file("a/b", "1").directory("a/c").file(
    "a/c/d", "2").directory("a/c/e").directory("a/c/e/f").file("g", "3")])


def remove_small(own):
    def begin():
        own.pull(REGISTRY + "/test/small:1")
        own.cri.RemoveImage(image={"image": REGISTRY + "/test/small:1"})
        layer = images.digest(SMALL.tars[0])[7:]  # it goes in the background
        until("the layer goes", lambda: killed(own) or
              not os.path.exists(f"{own.root}/layers/{layer}"))
    return begin


def remove_pod(own):
    def begin():
        own.pull(BUSYBOX)
        pod = own.cri.RunPodSandbox(config=own.pod_config()).pod_sandbox_id
        made = own.cri.CreateContainer(pod_sandbox_id=pod, config={
            "metadata": {"name": "c"}, "image": {"image": BUSYBOX},
            "command": ["sh", "-c", "mkdir -p /.krun-remove-0/x/y; echo > /.krun-remove-0/x/z"]})
        own.cri.StartContainer(container_id=made.container_id)
        until("it ends", lambda: own.cri.ContainerStatus(
            container_id=made.container_id).status.state == pb.CONTAINER_EXITED)
        own.cri.StopPodSandbox(pod_sandbox_id=pod)
        own.cri.RemovePodSandbox(pod_sandbox_id=pod)
    return begin


@test
def killed_at_every_step_of_removing_an_image_the_next_start_ends_clean(k):
    images.push(SMALL, REGISTRY, "test/small", "1")
    with node(k) as own:
        check(at_every_step(own, remove_small(own)) >= 7, "steps")
        equal(at_every_step(own, remove_small(own), "trash.taken"), 1, "steps")


@test
def killed_at_every_step_of_removing_a_pod_the_next_start_ends_clean(k):
    with node(k) as own:
        check(at_every_step(own, remove_pod(own), first=2) >= 8, "steps")  # 1: the work directory
        check(at_every_step(own, remove_pod(own), "trash.taken") >= 1, "steps")


def plant_all(own, many=1):
    for n in range(many):
        plant(f"{own.root}/layers/x{n}.partial", 2, 1)
    plant(f"{own.root}/pods/{'ab' * 32}", 2, 1)
    plant(f"{own.root}/pods/{'cd' * 32}/containers/{'ef' * 32}", 2, 1)


@test
def killed_at_every_step_of_a_sweep_the_next_start_ends_clean(k):
    """It is the helper that removes then, and the daemon answers without it."""
    with node(k) as own:
        own.start()
        own.stop()

        def again():
            plant_all(own)
            own.cri.Version()
            own.kill()
            own.start()
        check(at_every_step(own, again) >= 12, "steps")


@test
def on_a_full_disk_all_can_be_removed_whatever_kills_it(k):
    images.push(SMALL, REGISTRY, "test/small", "1")
    for where in ("sweep", "image", "pod"):
        with node(k) as own, small_disk(own):
            own.start()
            own.pull(BUSYBOX)
            remove = remove_pod(own) if where == "pod" else remove_small(own)

            def begin(own=own, where=where, remove=remove):
                """All but the last step needs room; what frees it is left to the killed one."""
                with contextlib.suppress(OSError):
                    os.unlink(own.root + "/filler")
                if where == "sweep":
                    plant_all(own, 40)
                    fill(own.root)
                    own.kill()
                    own.start()
                    return
                drop = own.cri.RemoveImage if where == "image" else own.cri.RemovePodSandbox

                def filled(**fields):
                    fill(own.root)
                    return drop(**fields)
                setattr(own.cri, "RemoveImage" if where == "image" else "RemovePodSandbox", filled)
                remove()
            at_every_step(own, begin, first=2, by=17 if where == "sweep" else 3)
            os.unlink(own.root + "/filler")
            own.pull(BUSYBOX)


@test
def without_a_trash_what_is_removed_is_removed_in_its_place(k):
    images.push(SMALL, REGISTRY, "test/small", "1")
    with node(k) as own, small_disk(own):
        own.start()
        own.stop()
        if subprocess.call(["chattr", "+i", own.root + "/trash"], stderr=subprocess.DEVNULL):
            skip("no immutable files here")
        try:
            check(at_every_step(own, remove_pod(own), first=2, by=2) >= 4, "steps")
            check(at_every_step(own, remove_pod(own), "state.unrecorded") >= 1, "steps")
            check(at_every_step(own, remove_small(own), by=2) >= 4, "steps")
            check(at_every_step(own, remove_small(own), "layer.unrecorded") >= 1, "steps")
        finally:
            subprocess.call(["chattr", "-i", own.root + "/trash"])


@test
def a_large_tree_is_removed_by_a_process_of_its_own(k):
    """Whatever is in it, also when that process is killed: then with the next thing that goes."""
    big = images.busybox_tree()
    for n in range(3000):
        big.file(f"d{n % 40}/e/f{n}", "1")
    images.push(images.Image([big]), REGISTRY, "test/big", "1")
    images.push(SMALL, REGISTRY, "test/small", "1")
    with node(k) as own:
        own.start()
        own.pull(REGISTRY + "/test/big:1")
        own.kill()
        own.environment = {"KRUN_FAULT": "tree.entry:1000"}
        own.start()
        own.cri.RemoveImage(image={"image": REGISTRY + "/test/big:1"})
        until("the helper is killed", lambda: killed(own))
        until("the daemon says so", lambda: "the trash: krun remove" in log_of(own))
        own.pull(BUSYBOX)
        check(glob.glob(own.root + "/trash/*"), "nothing is left of it: this shows nothing")
        own.environment = {}
        own.restart()
        until("all is removed", lambda: clean(own))
