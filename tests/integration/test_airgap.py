"""Images without a registry: krun save, the import directory, pins. What save writes is read back by
skopeo, podman and umoci; what the directory takes was made by them or by images.py."""
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile

import images
from harness import (Failure, check, equal, holds, processes, refused, restarts, test, until)
from images import Image, Tree

REAL = "127.0.0.1:5000/"


def setup(k):
    k.work = k.directory + "/work"
    os.makedirs(k.work)


def status(k, name):
    return k.cri.ImageStatus(image={"image": name}).image


def drop(k, *wanted):
    for name in wanted:
        k.cri.RemoveImage(image={"image": name})


def layers(k):
    return set(os.listdir(k.root + "/layers"))


def rich(title):
    """Two layers with everything that a layer can have."""
    base = images.busybox_tree().file("title", title).directory("d", 0o2750, (1, 2))
    base.file("d/suid", "x", 0o4755, (1000, 1001)).hard_link("d/again", "d/suid")
    base.file("d/gone", "1").directory("o").file("o/below", "1").link("d/link", "../title")
    base.file("d/" + "long" * 40, "long name").file("empty", "")
    top = Tree().directory("d", 0o2750, (1, 2)).file("d/.wh.gone").directory("o")
    top.file("o/.wh..wh..opq").file("o/above", "2" * 70000).file(".wh.title").directory("swap").file(".wh.empty")
    return Image([base, top], {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "Labels": {"t": title}})


def big(title):
    """An image that takes a moment to save."""
    content = os.urandom(1 << 20) * 48 + title.encode()
    return Image([Tree().file("big", content)], {"Cmd": ["/none"]}, compress=lambda b: b)


def pulled(k, image, repository, tag="1"):
    name = images.push(image, "127.0.0.1:5000", repository, tag)
    equal(k.pull(name), image.id, "the pull")
    return name


def run(*command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode()[-800:]}")
    return done.stdout.decode()


def members(data):
    """The regular files of an archive, by name."""
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        return {m.name: t.extractfile(m).read() for m in t if m.isfile()}


def tree_of(top):
    """A line for each entry of a tree with all that an image says about it. Directories that no
    archive has named have the time of their making, so the root's own is left out."""
    lines, inodes = [], {}
    for path, directories, files in os.walk(top):
        for name in files:
            st = os.lstat(os.path.join(path, name))
            inodes.setdefault(st.st_ino, []).append(os.path.relpath(os.path.join(path, name), top))
    for path, directories, files in os.walk(top):
        for name in directories + files + ([""] if path == top else []):
            full = os.path.join(path, name)
            st = os.lstat(full)
            inside = os.path.relpath(full, top)
            what = os.readlink(full) if os.path.islink(full) else ""
            if os.path.isfile(full) and not os.path.islink(full):
                with open(full, "rb") as f:
                    what = hashlib.sha256(f.read()).hexdigest()
            xattrs = {x: os.getxattr(full, x, follow_symlinks=False)
                      for x in os.listxattr(full, follow_symlinks=False)}
            links = sorted(inodes.get(st.st_ino, []))
            time = 0 if inside == "." else st.st_mtime_ns
            lines.append(f"{inside} {st.st_mode:o} {st.st_uid}:{st.st_gid} {st.st_rdev:x} {time} {what} "
                         f"{sorted(xattrs.items())} {links if len(links) > 1 else ''}")
    return sorted(lines)


def unpacked(layout, tag, to):
    run("umoci", "raw", "unpack", "--image", f"{layout}:{tag}", to)
    return tree_of(to)


# -- krun save ------------------------------------------------------------------------------------

@test
def what_save_writes_umoci_unpacks_to_the_tree_that_the_registry_has(k):
    name = pulled(k, rich("umoci"), "save/umoci")
    k.cli("save", "-o", k.work + "/umoci.tar", name)
    for source, layout in ((f"docker://{name}", "original"), (f"oci-archive:{k.work}/umoci.tar", "saved")):
        run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", source,
            f"oci:{k.work}/{layout}:1")
    want = unpacked(k.work + "/original", "1", k.work + "/tree-original")
    got = unpacked(k.work + "/saved", "1", k.work + "/tree-saved")
    equal([line for line in got if line not in want], [line for line in want if line not in got],
          "what differs in the tree")
    check(any("['d/again', 'd/suid']" in line for line in got), "hard links are there")
    equal(json.loads(run("skopeo", "inspect", "--config", f"oci:{k.work}/saved:1"))["config"],
          json.loads(run("skopeo", "inspect", "--config", f"oci:{k.work}/original:1"))["config"],
          "the config")
    drop(k, name)


def podman(k):
    """podman's command with a store of its own."""
    run_root = tempfile.mkdtemp(prefix="p-")  # podman wants a short path
    return ["podman", "--root", k.work + "/podman-" + os.path.basename(run_root), "--runroot", run_root,
            "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]


@test
def podman_loads_what_save_writes_under_its_name(k):
    name = pulled(k, rich("podman"), "save/podman")
    k.cli("save", "--output", k.work + "/podman.tar", name)
    command = podman(k)
    holds(name, run(*command, "load", "-i", k.work + "/podman.tar"), "what podman says")
    shown = json.loads(run(*command, "image", "inspect", name))[0]
    equal((shown["Config"]["Cmd"], shown["Labels"]), (["/bin/sh"], {"t": "podman"}), "the config")
    drop(k, name)


@test
def podman_loads_all_images_of_one_archive(k):
    names = [pulled(k, rich(f"podman {i}"), f"save/podman-{i}") for i in range(2)]
    k.cli("save", "-o", k.work + "/two.tar", *names)
    command = podman(k)
    run(*command, "load", "-i", k.work + "/two.tar")
    for i, name in enumerate(names):
        equal(json.loads(run(*command, "image", "inspect", name))[0]["Labels"], {"t": f"podman {i}"}, name)
    drop(k, *names)


@test
def krun_loads_what_it_saved_as_an_image_that_runs(k):
    name = pulled(k, rich("load"), "save/load")
    old = status(k, name).id
    data = k.cli("save", name).stdout
    drop(k, name)
    equal(k.cli("load", "-", stdin=data).stdout.decode(), name + "\n", "what load prints")
    check(status(k, name).id not in ("", old), "it is there, under an ID of its own")
    container = k.pod().start(image={"image": name})
    for command, wanted in (("ls -A /d | sort | head -2", "again\nlink\n"), ("ls /o", "above\n"),
                            ("test -e /title || echo gone", "gone\n"), ("stat -c %a /d/suid", "4755\n")):
        equal(container.sh(command), wanted, command)
    k.remove_all()
    equal(k.cli("save", name).stdout, data, "saved again, it is the same to the byte")
    drop(k, name)


@test
def several_images_go_into_one_archive_with_each_blob_once(k):
    one = pulled(k, images.busybox({"Labels": {"n": "1"}}), "save/one")
    two = pulled(k, images.busybox({"Labels": {"n": "2"}}), "save/two")
    images.push(images.busybox({"Labels": {"n": "1"}}), "127.0.0.1:5000", "save/one", "other")
    k.pull(REAL + "save/one:other")
    data = k.cli("save", one, two, one, REAL + "save/one:other").stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        names = t.getnames()
    equal(len(names), len(set(names)), "members with a name of their own")
    index = json.loads(members(data)["index.json"])
    equal([m["annotations"] for m in index["manifests"]],
          [{"io.containerd.image.name": n, "org.opencontainers.image.ref.name": n.rsplit(":", 1)[1]}
           for n in (one, two, one, REAL + "save/one:other")], "names")
    for file, content in members(data).items():
        if file.startswith("blobs/sha256/"):
            equal(hashlib.sha256(content).hexdigest(), file[13:], "a blob's name")
    drop(k, one, two)
    k.cli("load", "-", stdin=data)
    check(status(k, one).id and status(k, two).id and status(k, REAL + "save/one:other").id, "all are there")
    drop(k, one, two)


@test
def an_image_asked_for_by_its_ID_has_all_its_tags_and_one_without_has_none(k):
    image = rich("by id")
    name, other = pulled(k, image, "save/id"), pulled(k, image, "save/id", "2")
    index = json.loads(members(k.cli("save", image.id).stdout)["index.json"])
    equal(sorted(m["annotations"]["io.containerd.image.name"] for m in index["manifests"]), [name, other],
          "names")
    drop(k, name)
    digest = f"{REAL}save/id@{image.digest}"
    k.pull(digest)
    index = json.loads(members(k.cli("save", digest).stdout)["index.json"])
    check("annotations" not in index["manifests"][0], str(index))
    drop(k, digest)


@test
def the_built_in_image_can_be_saved(k):
    k.cli("save", "-o", k.work + "/self.tar", "localhost/krun:self")
    run("skopeo", "inspect", "--raw", f"oci-archive:{k.work}/self.tar:self")


@restarts
@test
def with_all_blobs_kept_the_image_is_saved_as_it_was(k):
    k.flags.append("--keep-blobs")
    k.restart()
    image = rich("kept")
    name = pulled(k, image, "save/kept")
    equal(sorted(os.listdir(k.root + "/blobs")),
          sorted(hashlib.sha256(blob).hexdigest() for blob in image.layers), "what is kept")
    try:
        files = members(k.cli("save", name).stdout)
        entry = json.loads(files["index.json"])["manifests"][0]
        equal((entry["digest"], entry["mediaType"], files["blobs/sha256/" + image.digest[7:]]),
              (image.digest, image.media_type, image.manifest), "the manifest")
        equal(files["blobs/sha256/" + image.id[7:]], image.config, "the config")
        # One of two: that layer goes out as it is, with its diff-id; the other is packed.
        first = hashlib.sha256(image.layers[0]).hexdigest()
        os.unlink(f"{k.root}/blobs/{hashlib.sha256(image.layers[1]).hexdigest()}")
        data = k.cli("save", name).stdout
        entry = json.loads(members(data)["index.json"])["manifests"][0]
        manifest = json.loads(members(data)["blobs/sha256/" + entry["digest"][7:]])
        equal(manifest["layers"][0]["digest"], "sha256:" + first, "the kept layer")
        drop(k, name)
        k.cli("load", "-", stdin=data)
        check(status(k, name).id not in ("", image.id), "it loads")
        drop(k, name)
        # And a damaged one is found.
        k.pull(name)
        with open(f"{k.root}/blobs/{first}", "r+b") as f:
            f.write(b"XX")
        done = k.cli("save", "-o", k.work + "/damaged.tar", name, check_status=False)
        holds("damaged", done.stderr.decode(), "the message")
        drop(k, name)
    finally:
        k.flags.remove("--keep-blobs")
        k.restart()
    until("the blobs went with their layers", lambda: not os.listdir(k.root + "/blobs"))


@test
def an_image_that_is_not_there_fails_the_whole_and_keeps_the_old_archive(k):
    with open(k.work + "/old.tar", "w") as f:
        f.write("old")
    done = k.cli("save", "-o", k.work + "/old.tar", k.image, "no.example/such:1", check_status=False)
    equal(done.returncode, 1, "the exit code")
    holds("no.example/such:1", done.stderr.decode(), "the message")
    with open(k.work + "/old.tar") as f:
        equal(f.read(), "old", "the file")
    equal([n for n in os.listdir(k.work) if n.startswith(".")], [], "temporary files")
    equal(k.cli("save", k.image, "no.example/such:1", check_status=False).stdout, b"", "bytes before")


@test
def save_writes_to_no_terminal(k):
    ours, theirs = os.openpty()
    done = subprocess.run([os.environ.get("KRUN", k.command()[0]), "save", "--socket", k.socket, k.image],
                          stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(ours)
    os.close(theirs)
    equal(done.returncode, 2, "the exit code")
    holds("-o FILE", done.stderr.decode(), "the message")


@test
def a_client_that_goes_away_ends_the_save(k):
    name = pulled(k, big("gone"), "save/big")
    client = subprocess.Popen([k.command()[0], "save", "--socket", k.socket, name], stdout=subprocess.PIPE)
    check(client.stdout.read(100000), "it has begun")
    check([p for p in processes().values() if p.startswith("krun pack")], "the layer is being packed")
    client.kill()
    client.stdout.close()
    client.wait()
    until("nothing of it runs", lambda: not [p for p in processes().values()
                                             if p.startswith(("krun pack", "krun read"))])
    drop(k, name)
    until("the layer is free", lambda: len(layers(k)) and not status(k, name).id)


@test
def what_packs_a_layer_may_only_read(k):
    image = big("who")
    name = pulled(k, image, "save/who")
    client = subprocess.Popen([k.command()[0], "save", "--socket", k.socket, name], stdout=subprocess.PIPE)
    try:
        check(client.stdout.read(100000), "it has begun")
        pid = next(p for p, line in processes().items() if line.startswith("krun pack"))
        with open(f"/proc/{pid}/status") as f:
            text = f.read()
        holds("CapEff:\t0000000000200004\n", text, "DAC_READ_SEARCH and SYS_ADMIN")
        holds("NoNewPrivs:\t1\n", text, "its status")
        holds("Seccomp:\t2\n", text, "its status")
        layer = os.stat(f"{k.root}/layers/{hashlib.sha256(image.tars[0]).hexdigest()}")
        root = os.stat(f"/proc/{pid}/root/")
        equal((root.st_dev, root.st_ino), (layer.st_dev, layer.st_ino), "its root")
    finally:
        client.kill()
        client.stdout.close()
        client.wait()
    drop(k, name)


# -- pins -----------------------------------------------------------------------------------------

@restarts
@test
def krun_pin_lasts_until_krun_unpin(k):
    name = pulled(k, rich("pin"), "pin/me")
    check(not status(k, name).pinned, "before")
    k.cli("pin", name)
    check(status(k, name).pinned, "after krun pin")
    k.pull(name)
    k.restart()
    check(status(k, name).pinned, "after a second pull and a restart")
    check([i.pinned for i in k.cri.ListImages(filter={"image": {"image": name}}).images] == [True], "listed")
    k.cli("unpin", name)
    check(not status(k, name).pinned, "after krun unpin")
    equal(k.cli("pin", "no.example/such:1", check_status=False).returncode, 1, "of none")
    holds("built in", k.cli("unpin", "localhost/krun:self", check_status=False).stderr.decode(), "of krun:self")
    k.cli("pin", name)
    drop(k, name)
    check(not status(k, name).id, "a removal by name does not mind")


@restarts
@test
def image_pinned_names_images_and_patterns(k):
    name = pulled(k, rich("settings"), "pin/settings", "7")
    rows = {name: True, REAL + "pin/settings": False, REAL + "pin/*": True, "*settings:7": True, "*/settings:*": True,
            "*:8": False, "busybox,  " + name + " ,x": True, "NOT A NAME": False, "*": True, "": False,
            REAL + "pin/settings:7*": True, "*" + "x" * 300: False}
    flags = list(k.flags)
    try:
        for pattern, wanted in rows.items():
            k.flags = [*flags, "--image-pinned", pattern] if pattern else flags
            k.restart()
            equal(status(k, name).pinned, wanted, f"pinned with \"{pattern}\"")
    finally:
        k.flags = flags
        k.restart()
    drop(k, name)


# -- the import directory -------------------------------------------------------------------------

class Import:
    """Restarts the daemon with an import directory, and without it at the end."""

    def __init__(self, k, make=True):
        self.k, self.flags = k, list(k.flags)
        self.path = tempfile.mkdtemp(prefix="import-", dir=k.work)
        if not make:
            os.rmdir(self.path)
        k.flags = [*self.flags, "--image-import", self.path]

    def __enter__(self):
        open(self.k.directory + "/daemon.log", "w").close()
        self.k.restart()
        return self

    def __exit__(self, *_):
        self.k.flags = self.flags
        self.k.environment = {}
        self.k.restart()
        shutil.rmtree(self.path, ignore_errors=True)

    def aside(self, name):
        """A path on the same file system, outside."""
        return f"{self.k.work}/{os.path.basename(self.path)}-{name}"

    def move(self, name, source):
        os.rename(source, f"{self.path}/{name}")

    def log(self):
        return self.k.log_end(10000)

    def restart_and_look(self):
        """A start with an empty log; comes back when every name has had its turn, the last in the alphabet
        being no archive."""
        self.k.end(9)
        open(self.k.directory + "/daemon.log", "w").close()
        with open(self.path + "/zz", "w") as f:
            f.write("no archive")
        self.k.start()
        self.tells("import zz: ")
        os.unlink(self.path + "/zz")

    def tells(self, text, times=1):
        until(f"{times} times \"{text}\" in the log", lambda: self.log().count(text) >= times)


def is_pinned(k, name, wanted_id=None):
    found = status(k, name)
    return found.pinned and (wanted_id is None or found.id == wanted_id)


def archive(path, image, *names):
    return images.write_tar(images.docker_files(image, list(names)), path)


def tagged(title):
    return Image([Tree().file("title", title)], {"Cmd": ["/none"], "Labels": {"t": title}})


@restarts
@test
def archives_of_every_kind_become_pinned_images_until_they_are_removed(k):
    with Import(k) as d:
        made, plain = {}, {}
        for form in ("docker.tar", "oci.tar", "x.tar.gz", "x.tar.zst"):
            name = f"import.test/{form.replace('.', '-')}:1"
            image = plain[form] = tagged(form)
            files = (images.oci_files(image, name) if form == "oci.tar"
                     else images.docker_files(image, [name]))
            images.write_tar(files, d.aside(form))
            if form.endswith(("gz", "zst")):
                program = ["gzip", "-f"] if form.endswith("gz") else ["zstd", "-q", "-f"]
                with open(d.aside(form), "rb") as source, open(d.aside("c"), "wb") as to:
                    subprocess.check_call([*program, "-c"], stdin=source, stdout=to)
                os.rename(d.aside("c"), d.aside(form))
            made[form] = name
        d.move("docker.tar", d.aside("docker.tar"))  # moved in
        shutil.copy(d.aside("oci.tar"), d.path + "/oci.tar")  # written there
        os.symlink(d.aside("x.tar.gz"), d.path + "/x.tar.gz")
        os.link(d.aside("x.tar.zst"), d.path + "/x.tar.zst")
        for form, name in made.items():
            until(f"{form} is imported", lambda name=name: is_pinned(k, name))
            equal(status(k, name).id, plain[form].id, f"id of {form}")
        for form in made:
            os.unlink(f"{d.path}/{form}")
        for form, name in made.items():
            until(f"{form} is not pinned", lambda name=name: not status(k, name).pinned)
            check(status(k, name).id, f"{form} is still there")
        drop(k, *made.values())


@restarts
@test
def OCI_layouts_become_pinned_images_however_they_come(k):
    with Import(k) as d:
        def layout(title, tag="1"):
            image = tagged(title)
            path = images.write_directory(images.oci_files(image, f"import.test/{title}:{tag}"), d.aside(title))
            return image, path
        image, path = layout("moved")
        d.move("moved", path)
        until("one moved in", lambda: is_pinned(k, "import.test/moved:1", image.id))
        # Copied, the index first and the blobs after it, with a stop where a blob is half there.
        image, path = layout("copied")
        os.makedirs(d.path + "/copied/blobs/sha256")
        shutil.copy(path + "/index.json", d.path + "/copied")
        d.tells("import copied: ")
        with open(d.path + "/copied/blobs/sha256/other", "w") as f:
            f.write("not what it waits for")
        with open(d.path + "/then.txt", "w") as f:
            f.write("this is looked at after that")
        d.tells("import then.txt: ")
        equal(d.log().count("import copied: "), 1, "times that the same reason is told")
        blobs = sorted(os.listdir(path + "/blobs/sha256"))
        for blob in blobs:
            shutil.copy(f"{path}/blobs/sha256/{blob}", d.path + "/copied/blobs/sha256")
        shutil.copy(path + "/oci-layout", d.path + "/copied")
        until("one copied", lambda: is_pinned(k, "import.test/copied:1", image.id))
        # Made in place by a tool.
        name = pulled(k, tagged("by skopeo"), "import/skopeo")
        drop(k, name)
        run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", f"docker://{name}",
            f"oci:{d.path}/by-skopeo:v1")
        until("one by skopeo", lambda: is_pinned(k, "localhost/by-skopeo:v1"))
        # The index changes: the old image is not pinned any more, the new one is.
        newer, path = layout("newer")
        for blob in os.listdir(path + "/blobs/sha256"):
            shutil.copy(f"{path}/blobs/sha256/{blob}", d.path + "/moved/blobs/sha256")
        os.rename(path + "/index.json", d.path + "/moved/index.json")
        until("the newer one", lambda: is_pinned(k, "import.test/newer:1", newer.id))
        until("the old one", lambda: not is_pinned(k, "import.test/moved:1"))
        os.unlink(d.path + "/moved/index.json")
        until("without an index", lambda: not is_pinned(k, "import.test/newer:1"))
        os.rename(d.path + "/copied", d.path + "/renamed")
        d.tells("imported " + d.path + "/renamed")
        check(is_pinned(k, "import.test/copied:1"), "renamed, it is pinned")
        shutil.rmtree(d.path + "/renamed")
        until("removed", lambda: not is_pinned(k, "import.test/copied:1"))
        os.rename(d.path + "/by-skopeo", d.aside("away"))
        until("moved away", lambda: not is_pinned(k, "localhost/by-skopeo:v1"))
        drop(k, "import.test/moved:1", "import.test/copied:1", "import.test/newer:1", "localhost/by-skopeo:v1")


@restarts
@test
def a_file_counts_when_it_is_whole_and_a_broken_one_is_one_warning(k):
    with Import(k) as d:
        image = tagged("slow")
        with open(archive(d.aside("slow"), image, "import.test/slow:1"), "rb") as f:
            data = f.read()
        for name in (".hidden.tar", "x.tmp", "x.part"):
            shutil.copy(d.aside("slow"), f"{d.path}/{name}")
        with open(d.path + "/slow.tar", "wb") as to:
            to.write(data[:3000])
            to.flush()
            for name in ("broken.tar", "text.txt"):
                with open(f"{d.path}/{name}", "wb") as f:
                    f.write(data[:3000] if name == "broken.tar" else b"no archive\n")
                d.tells(f"import {name}: ")  # so its turn has come, and that of what came before it
            check(not status(k, "import.test/slow:1").id, "nothing is loaded yet")
            equal(d.log().count("import slow.tar"), 0, "warnings of what is being written")
            to.write(data[3000:])
        until("it is whole", lambda: is_pinned(k, "import.test/slow:1", image.id))
        log = d.log()
        for name in ("broken.tar", "text.txt"):
            equal(log.count(f"import {name}: "), 1, f"warnings of {name}")
        os.rename(d.path + "/text.txt", os.fsencode(d.path) + b"/\xff.tar")
        d.tells("the name is not UTF-8")
        for name in (".hidden.tar", "x.tmp", "x.part"):
            check(name not in log, f"{name} is ignored")
        os.rename(d.path + "/x.part", d.path + "/x.tar")
        d.tells("imported " + d.path + "/x.tar")
        os.unlink(d.path + "/slow.tar")
        d.tells(d.path + "/slow.tar is gone")
        check(is_pinned(k, "import.test/slow:1"), "two files had it, one has it still")
        # The broken one is made whole.
        shutil.copy(archive(d.aside("mended"), tagged("mended"), "import.test/mended:1"), d.path + "/broken.tar")
        until("it is mended", lambda: is_pinned(k, "import.test/mended:1"))
        drop(k, "import.test/slow:1", "import.test/mended:1")


@restarts
@test
def a_file_replaced_by_a_newer_one_hands_its_pin_on(k):
    with Import(k) as d:
        one, two = tagged("version 1"), tagged("version 2")
        d.move("app.tar", archive(d.aside("1"), one, "import.test/app:1", "import.test/app:old"))
        until("the first", lambda: is_pinned(k, "import.test/app:1", one.id))
        d.move("app.tar", archive(d.aside("2"), two, "import.test/app:1"))
        until("the second", lambda: is_pinned(k, "import.test/app:1", two.id))
        until("the first is let go", lambda: not is_pinned(k, one.id))
        equal(list(status(k, one.id).repo_tags), ["import.test/app:old"], "its names")
        # Written over in place by a broken one: what is there stays as it is.
        with open(d.path + "/app.tar", "r+b") as f:
            f.truncate(700)
        d.tells("import app.tar: ")
        check(is_pinned(k, "import.test/app:1", two.id), "the second is still pinned")
        os.unlink(d.path + "/app.tar")
        until("and gone with the file", lambda: not is_pinned(k, "import.test/app:1"))
        drop(k, one.id, two.id)


@restarts
@test
def what_happened_while_the_daemon_was_down_is_seen_at_its_start(k):
    with Import(k) as d:
        for name in ("stays", "goes", "changes"):
            d.move(name + ".tar", archive(d.aside(name), tagged(name), f"import.test/{name}:1"))
        for name in ("stays", "goes", "changes"):
            until(name, lambda name=name: is_pinned(k, f"import.test/{name}:1"))
        changed = tagged("changed")
        k.stop()
        os.unlink(d.path + "/goes.tar")
        d.move("changes.tar", archive(d.aside("changed"), changed, "import.test/changes:1"))
        d.move("comes.tar", archive(d.aside("comes"), tagged("comes"), "import.test/comes:1"))
        d.restart_and_look()
        until("the new one", lambda: is_pinned(k, "import.test/comes:1"))
        until("the changed one", lambda: is_pinned(k, "import.test/changes:1", changed.id))
        until("the one that is gone", lambda: not is_pinned(k, "import.test/goes:1"))
        check(status(k, "import.test/goes:1").id, "which is still there")
        check(is_pinned(k, "import.test/stays:1"), "the one that stays")
        equal(d.log().count("stays.tar"), 0, "times that the unchanged one is in the log")
        # Without the setting, what was imported is not pinned.
        k.flags = d.flags
        k.restart()
        check(not is_pinned(k, "import.test/stays:1"), "the setting is gone")
        drop(k, *(f"import.test/{n}:1" for n in ("stays", "goes", "changes", "comes")))


@restarts
@test
def killed_in_the_middle_of_an_import_krun_finishes_it_at_the_next_start(k):
    names = [f"import.test/killed:{i}" for i in range(3)]
    made = [tagged(n) for n in names]
    files = {}
    for image, name in zip(made, names):
        part = images.docker_files(image, [name])
        entries = json.loads(files.get("manifest.json", b"[]")) + json.loads(part["manifest.json"])
        files.update(part)
        files["manifest.json"] = json.dumps(entries).encode()
    with Import(k) as d:
        images.write_tar(files, d.aside("all"))
        for step in ("pull.layer:2", "pull.record:2", "pull.tags:2", "import.settle:1", "record:4", "record:5"):
            k.end(9)
            k.environment = {"KRUN_FAULT": step}
            k.spawn()
            shutil.copy(d.aside("all"), d.path + "/all.tar")
            until(f"it is killed at {step}", lambda: k.process.poll() is not None)
            k.environment = {}
            k.start()
            for image, name in zip(made, names):
                until(f"{name} after {step}", lambda i=image, n=name: is_pinned(k, n, i.id))
            d.tells("imported " + d.path + "/all.tar")
            d.restart_and_look()
            equal(d.log().count("all.tar"), 0, f"the next start has nothing to do after {step}")
            os.unlink(d.path + "/all.tar")
            for name in names:
                until("it is let go", lambda n=name: not is_pinned(k, n))
            drop(k, *names)


@restarts
@test
def an_import_that_goes_on_does_not_delay_the_daemons_end(k):
    with Import(k) as d:
        d.move("big.tar", archive(d.aside("big"), big("end"), "import.test/big:1"))
        pid = until("it has begun",
                    lambda: [p for p, line in processes().items() if line.startswith("krun archive")])[0]
        os.kill(pid, signal.SIGSTOP)  # it would take for ever
        equal(k.stop(), 0, "the exit status")
        equal([p for p in processes().values() if p.startswith(("krun archive", "krun unpack"))], [], "helpers")
        check("import big.tar" not in d.log(), "no warning: it was us")
        k.start()
        until("it comes at the next start", lambda: is_pinned(k, "import.test/big:1"))
        drop(k, "import.test/big:1")


@restarts
@test
def a_directory_that_is_not_there_is_made_and_made_again(k):
    with Import(k, make=False) as d:
        d.tells("there is no directory " + d.path)
        until("it is made", lambda: os.path.isdir(d.path))
        d.move("a.tar", archive(d.aside("a"), tagged("a"), "import.test/a:1"))
        until("it is watched", lambda: is_pinned(k, "import.test/a:1"))
        os.rename(d.path, d.aside("renamed"))
        until("another is made", lambda: os.path.isdir(d.path))
        until("what was in it is not pinned", lambda: not is_pinned(k, "import.test/a:1"))
        d.move("b.tar", archive(d.aside("b"), tagged("b"), "import.test/b:1"))
        until("that one is watched", lambda: is_pinned(k, "import.test/b:1"))
        shutil.rmtree(d.path)
        until("b is not pinned", lambda: not is_pinned(k, "import.test/b:1"))
        until("again", lambda: os.path.isdir(d.path))
        d.move("a.tar", archive(d.aside("a"), tagged("a"), "import.test/a:1"))
        until("and watched", lambda: is_pinned(k, "import.test/a:1"))
        drop(k, "import.test/a:1", "import.test/b:1")
    k.stop()
    done = subprocess.run([*k.command(), "--image-import", "not/absolute"], stderr=subprocess.PIPE, check=False)
    holds("image-import must be an absolute path", done.stderr.decode(), "what a relative one gets")
    k.start()


@restarts
@test
def an_imported_image_goes_when_it_is_removed_by_name(k):
    with Import(k) as d:
        d.move("a.tar", archive(d.aside("a"), tagged("rm"), "import.test/rm:1"))
        until("it is there", lambda: is_pinned(k, "import.test/rm:1"))
        holds("stays pinned", k.cli("unpin", "import.test/rm:1").stderr.decode(), "what unpin says")
        drop(k, "import.test/rm:1")
        check(not status(k, "import.test/rm:1").id, "it is gone")
        k.restart()
        until("it is back at the next start", lambda: is_pinned(k, "import.test/rm:1"))
        drop(k, "import.test/rm:1")
