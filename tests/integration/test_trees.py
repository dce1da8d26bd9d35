"""Images that real tools made, and the root file systems that come out: each entry compared with what
was put in, and with what umoci and buildah make of the same image.

umoci, buildah and skopeo work in a directory of the group's; the registry is Debian's."""
import json
import os
import shutil
import subprocess

import images
import trees
from harness import DEADLINE, Failure, check, equal, holds, refused, skip, test, until
from images import Image, Tree

REAL = "127.0.0.1:5000/"


# -- the tools ------------------------------------------------------------------------------------

def tool(*command, **more):
    """What a tool prints; it must succeed. Skips the test where there is none."""
    if not shutil.which(command[0]):
        skip(f"no {command[0]}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
                          timeout=300, check=False, **more)
    if done.returncode:
        raise Failure(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode()[-500:]}")
    return done.stdout.decode().strip()


def buildah(k, *command):
    """With a storage of its own that needs no overlay and no kernel feature. It makes a name of an image from
    the path in `oci:PATH`, so that path must be fit for a name: give it relative to the work directory, for the
    random directories above it may end in an underscore."""
    return tool("buildah", "--storage-driver", "vfs", "--root", k.work + "/storage", "--runroot",
                k.work + "/storage-run", *command, cwd=k.work)


def skopeo(k, source, target, *options):
    policy = k.work + "/policy.json"
    with open(policy, "w") as f:
        f.write('{"default":[{"type":"insecureAcceptAnything"}]}')
    return tool("skopeo", "--policy", policy, "--tmpdir", k.work, "copy", "--quiet",
                "--src-tls-verify=false", "--dest-tls-verify=false", *options, source, target)


def setup(k):
    k.work = k.directory + "/work"
    os.makedirs(k.work)
    k.made = {}


def before_each(k):
    """A failed test's images would keep layers that another one waits for to go."""
    for image in k.cri.ListImages().images:
        if any("trees/" in tag for tag in image.repo_tags):
            k.cri.RemoveImage(image={"image": image.id})


def once(function):
    """An image is made by the first test that wants it."""
    def wrapped(k):
        if function.__name__ not in k.made:
            k.made[function.__name__] = function(k)
        return k.made[function.__name__]
    return wrapped


# -- what comes out -------------------------------------------------------------------------------

def record(k, name):
    image = k.cri.ImageStatus(image={"image": name}).image
    with open(f"{k.root}/images/{image.id[7:]}.json") as f:
        return json.load(f)


class Mounted:
    """krun's layers of an image under each other, as a container gets them, read-only."""

    def __init__(self, k, name):
        self.path, empty = k.work + "/root", k.work + "/empty"
        os.makedirs(self.path, exist_ok=True)
        os.makedirs(empty, exist_ok=True)  # overlay wants at least two
        lower = ":".join([f"{k.root}/layers/{n}" for n in reversed(record(k, name)["layers"])] + [empty])
        subprocess.check_call(["mount", "-t", "overlay", "-o", "ro,lowerdir=" + lower, "overlay", self.path])

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        subprocess.check_call(["umount", self.path])


def krun_makes(k, name):
    with Mounted(k, name) as root:
        return trees.listing(root), trees.hard_links(root)


def umoci_makes(k, image):
    bundle = k.work + "/bundle"
    tool("umoci", "unpack", "--image", image, bundle)
    try:
        return trees.listing(bundle + "/rootfs"), trees.hard_links(bundle + "/rootfs")
    finally:
        shutil.rmtree(bundle)


def buildah_makes(k, image):
    container = buildah(k, "from", "--pull-always", image)
    try:
        root = buildah(k, "mount", container)
        return trees.listing(root), trees.hard_links(root)
    finally:
        buildah(k, "rm", container)


def no_difference(what, got, want, leave_out=()):
    said = trees.differences(got[0], want[0], leave_out)
    if said:
        raise Failure(f"{what}: {len(said)} differences: " + "; ".join(s[-300:] for s in said[:8]))
    equal(got[1], want[1], f"{what}: names of one inode")


def in_seconds(made, up=5 * 10**8):
    """What an archive without fractions keeps of it: Go's writers round, buildah's cut (up=0)."""
    found, links = made
    return {p: dict(s, mtime=(s["mtime"] + up) // 10**9 * 10**9) for p, s in found.items()}, links


def without(made, *paths):
    links = [[n for n in names if n not in paths] for names in made[1]]
    return {p: s for p, s in made[0].items() if p not in paths}, [n for n in links if n]


def drop(k, name):
    layers = {n for n in record(k, name)["layers"]}
    k.cri.RemoveImage(image={"image": name})
    gone = layers | {n + ".partial" for n in layers}
    until("its layers are gone", lambda: not gone & set(os.listdir(k.root + "/layers")), 4 * DEADLINE)


# -- images of umoci ------------------------------------------------------------------------------

@once
def umoci_images(k):
    """The layout, and what its tags `one` and `two` were made from."""
    layout, bundle = k.work + "/umoci", k.work + "/umoci-bundle"
    tool("umoci", "init", "--layout", layout)
    tool("umoci", "new", "--image", layout + ":one")
    tool("umoci", "unpack", "--image", layout + ":one", bundle)
    found = {}
    for tag, make in (("one", trees.make_everything), ("two", trees.change_everything)):
        make(bundle + "/rootfs")
        found[tag] = trees.listing(bundle + "/rootfs"), trees.hard_links(bundle + "/rootfs")
        tool("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:{tag}", bundle)
    shutil.rmtree(bundle)
    return layout, found


# For each file of a directory that became a link umoci writes a whiteout below the link, and the link
# leads to another directory: these files of it are gone in every reader that follows links, umoci too.
LOST_BY_UMOCI = (b"change/kept/a", b"change/kept/sub", b"change/kept/sub/b")


@test
def an_image_of_umoci_comes_out_as_it_went_in(k):
    layout, found = umoci_images(k)
    for tag in ("one", "two"):
        name = f"{REAL}trees/umoci:{tag}"
        skopeo(k, f"oci:{layout}:{tag}", "docker://" + name)
        k.pull(name)
        got, lost = krun_makes(k, name), LOST_BY_UMOCI if tag == "two" else ()
        no_difference(f"umoci's {tag}, krun's tree and the source", got,
                      without(in_seconds(found[tag]), *lost))
        no_difference(f"umoci's {tag}, krun's tree and umoci's", got, umoci_makes(k, f"{layout}:{tag}"))
        drop(k, name)


@test
def what_umoci_inserts_lands_among_what_was_there(k):
    layout, _ = umoci_images(k)
    new = k.work + "/insert"
    os.makedirs(new + "/dir/sub")
    for path in ("file", "dir/a", "dir/sub/b"):
        with open(f"{new}/{path}", "w") as f:
            f.write(path)
    rows = (("file", (), "/change/kept/inserted"), ("dir", (), "/owned/dir"), ("dir", ("--opaque",), "/many"),
            ("file", (), "/tmp/file"), ("file", (), "/new-here/new/deep/file"), (None, ("--whiteout",), "/hard"))
    tool("umoci", "tag", "--image", layout + ":one", "inserted")
    for source, options, target in rows:
        source = [f"{new}/{source}"] if source else []
        tool("umoci", "insert", "--image", layout + ":inserted", *options, *source, target)
    name = REAL + "trees/inserted:1"
    skopeo(k, f"oci:{layout}:inserted", "docker://" + name)
    k.pull(name)
    got, want = krun_makes(k, name), umoci_makes(k, layout + ":inserted")
    # Nobody says of what time a new directory without an entry is, and "/" is the container's own;
    # what overlay hides is still a name of its inode.
    other = [(b"new-here" + more, "mtime") for more in (b"", b"/new", b"/new/deep")] + [(b".", "mtime")]
    other += [(p, "links") for p in (b"hard-a", b"hard-c", b"hard-fifo", b"hard-link")]
    no_difference("krun's tree and umoci's", got, want, other)
    equal(len(record(k, name)["layers"]), len(rows) + 2, "layers, with the one of attributes")
    drop(k, name)


@test
def directories_without_an_entry_look_as_the_layers_below_say(k):
    """Of each row the layers of an image, and what its directories are then: mode and owner."""
    low = Tree().directory(".", 0o711, (5, 6)).directory("d", 0o1777, (7, 8), pax={"SCHILY.xattr.user.a": "b"})
    low.directory("d/e", 0o2750, (9, 9)).file("d/e/low", "1").link("link", "d").file("f", "1")
    new = (0o755, (0, 0))
    d, e, root = (0o1777, (7, 8)), (0o2750, (9, 9)), (0o711, (5, 6))
    rows = {
        "as it was": ((low, Tree().file("d/e/x", "2")), {"": root, "d": d, "d/e": e}, True),
        "only the root": ((low, Tree().file("x", "2")), {"": root, "d": d}, True),
        "two above each other": ((low, Tree().file("d/x", "2"), Tree().file("d/e/y", "3")),
                                 {"d": d, "d/e": e}, True),
        "one that speaks of it later": ((low, Tree().file("d/x", "2"), Tree().directory("./").directory("d", 0o700)),
                                        {"": new, "d": (0o700, (0, 0))}, False),
        "the entry comes after": ((low, Tree().file("d/x", "2").directory("d", 0o700).directory(".")),
                                  {"d": (0o700, (0, 0))}, False),
        "removed in between": ((low, Tree().file(".wh.d"), Tree().file("d/e/x", "3")),
                               {"": root, "d": new, "d/e": new}, True),
        "removed by the same layer": ((low, Tree().file("d/x", "2").file(".wh.d")), {"d": new}, True),
        "emptied": ((low, Tree().file("d/.wh..wh..opq").file("d/x", "2")), {"d": d}, True),
        "emptied above": ((low, Tree().file("d/.wh..wh..opq").file("d/e/x", "2")), {"d": d, "d/e": new}, True),
        "in the place of a file": ((low, Tree().file("f/x", "2")), {"f": new}, True),
        "in the place of a link": ((low, Tree().file("link/x", "2")), {"link": new}, True),
        "nothing to inherit": ((Tree().file("a/b/c", "1"), Tree().file("a/b/d", "2")), {"a": new, "a/b": new}, False),
    }
    for title, (layers, want, more) in rows.items():
        name = images.push(Image(list(layers), {"Labels": {"t": title}}), REAL[:-1], "trees/implied", "1")
        k.pull(name)
        equal(len(record(k, name)["layers"]), len(layers) + more, f"{title}: layers")
        with Mounted(k, name) as top:
            for path, expected in want.items():
                st = os.stat(f"{top}/{path}")
                equal((st.st_mode & 0o7777, (st.st_uid, st.st_gid)), expected, f"{title}: /{path}")
            if title == "as it was":
                equal(os.getxattr(top + "/d", "user.a"), b"b", "its attributes")
                equal(os.listxattr(top + "/d"), ["user.a"], "and no other")
                equal(sorted(os.listdir(top + "/d/e")), ["low", "x"], "what is in it")
        drop(k, name)


@test
def the_layer_of_attributes_is_shared_checked_mended_and_never_saved(k):
    low = Tree().directory("d", 0o1777).file("d/low", "1")
    upper = Tree().file("d/x", "2")
    names = [images.push(Image([low, upper], {"Labels": {"n": n}}), REAL[:-1], "trees/heir", n) for n in "12"]
    for name in names:
        k.pull(name)
    layers = record(k, names[0])["layers"]
    equal((len(layers), record(k, names[1])["layers"]), (3, layers), "both have the same one")
    k.pull(names[0])
    equal(record(k, names[0])["layers"], layers, "pulled once more")
    info = json.loads(k.cri.ImageStatus(image={"image": names[0]}, verbose=True).info["info"])
    ids = info["imageSpec"]["rootfs"]["diff_ids"]
    equal(info["chainID"], images.digest(" ".join(ids).encode()), "the chain ID is of the image's own layers")
    k.cri.RemoveImage(image={"image": names[0]})
    os.chmod(f"{k.root}/layers/{layers[2]}/d", 0o700)
    equal(k.cli("check", check_status=False).returncode, 1, "krun check sees that it has changed")
    k.pull(names[1])
    with Mounted(k, names[1]) as top:
        equal(os.stat(top + "/d").st_mode & 0o7777, 0o1777, "mended")
    saved = k.work + "/heir.tar"
    k.cli("save", "-o", saved, names[1])
    drop(k, names[1])
    k.cli("load", saved)
    with Mounted(k, names[1]) as top:
        equal(os.stat(top + "/d").st_mode & 0o7777, 0o1777, "saved and loaded")
    skopeo(k, "oci-archive:" + saved + ":" + names[1].rsplit("/", 1)[1].split(":")[1], f"oci:{k.work}/heir:1")
    equal(len(tool("skopeo", "inspect", f"oci:{k.work}/heir:1", "--format", "{{range .Layers}}x{{end}}")), 2, "layers")
    drop(k, names[1])


# -- the same image in every form -----------------------------------------------------------------

class Pushable:
    """What skopeo's dir: holds, for images.push. It cannot itself push layers as they are."""

    def __init__(self, path):
        with open(path + "/manifest.json", "rb") as f:
            self.manifest = f.read()
        self.names = [n for n in os.listdir(path) if len(n) == 64]
        self.path = path  # umoci leaves out what the image-spec lets one leave out
        self.media_type = json.loads(self.manifest).get("mediaType", images.OCI + "manifest.v1+json")

    def blobs(self):
        return {"sha256:" + n: open(f"{self.path}/{n}", "rb").read() for n in self.names}


def media_types(path):
    with open(path) as f:
        manifest = json.load(f)
    return {d["mediaType"].rsplit(".", 1)[-1] for d in manifest["layers"]}


@test
def gzip_zstd_and_plain_layers_of_both_families_give_the_same_tree(k):
    layout, found = umoci_images(k)
    want = without(in_seconds(found["two"]), *LOST_BY_UMOCI)
    rows = {"gzip": ("--dest-compress-format", "gzip"), "zstd": ("--dest-compress-format", "zstd"),
            "v2s2": ("--format", "v2s2"), "v2s2-plain": ("--format", "v2s2", "--dest-decompress"),
            "plain": ("--dest-decompress",)}
    for title, options in rows.items():
        directory, name = k.work + "/form-" + title, f"{REAL}trees/forms:{title}"
        skopeo(k, f"oci:{layout}:two", "dir:" + directory, *options,
               *(("--dest-compress",) if title == "zstd" else ()))
        kinds = media_types(directory + "/manifest.json")
        equal(kinds, {{"gzip": "tar+gzip", "zstd": "tar+zstd", "v2s2": "gzip", "plain": "tar",
                       "v2s2-plain": "tar"}[title]}, f"media types of {title}")
        images.push(Pushable(directory), REAL[:-1], "trees/forms", title)
        k.pull(name)
        no_difference(title, krun_makes(k, name), want)
        drop(k, name)


@test
def archives_of_skopeo_give_the_same_tree_as_a_pull(k):
    layout, found = umoci_images(k)
    want = without(in_seconds(found["two"]), *LOST_BY_UMOCI)
    name = "example.test/trees/archive:1"
    rows = {"docker": f"docker-archive:{k.work}/docker.tar:{name}",
            "oci": f"oci-archive:{k.work}/oci.tar:{name}", "layout": f"oci:{k.work}/copied:{name}"}
    for title, target in rows.items():
        skopeo(k, f"oci:{layout}:two", target)
        path = target.split(":")[1]
        files = [path]
        if title != "layout":
            for compress in ("gzip", "zstd"):
                with open(f"{path}.{compress}", "wb") as f:
                    subprocess.run([compress, "-qc", path], stdout=f, check=True)
                files.append(f"{path}.{compress}")
        for file in files:
            holds(name, k.cli("load", file).stdout.decode(), f"what load prints of {file}")
            no_difference(os.path.basename(file), krun_makes(k, name), want)
            drop(k, name)


# -- images of buildah ----------------------------------------------------------------------------

# The archives of buildah's storage have no ACLs, and no entry for the root itself.
NOT_IN_BUILDAHS = ((b"acl", "xattrs"), (b".", "mode"), (b".", "mtime"))


# Nor does its own unpacking know times before 1970, or two names of a link or a FIFO.
LOST_BY_BUILDAH = (b"hard-fifo", b"hard/fifo", b"hard-link", b"hard/link", b"time-before", b"time-long-before",
                   b"time-dir-before", b"time-dir-long-before")


@once
def buildah_images(k):
    """A layout of three images, each a layer on the one before, and what they were made from."""
    layout, found = k.work + "/buildah", {}
    container = buildah(k, "from", "scratch")
    for tag, make in (("one", trees.make_everything), ("two", trees.change_everything)):
        root = buildah(k, "mount", container)
        make(root)
        found[tag] = trees.listing(root), trees.hard_links(root)
        buildah(k, "umount", container)
        buildah(k, "commit", "--quiet", container, f"oci:{layout}:{tag}")
        buildah(k, "rm", container)
        container = buildah(k, "from", f"oci:buildah:{tag}")
    for name in ("a", "b"):
        with open(f"{k.work}/copy-{name}", "w") as f:
            f.write(name)
    buildah(k, "copy", "--chown", "12:34", "--chmod", "4750", container, k.work + "/copy-a", "/tmp/copied")
    buildah(k, "add", container, k.work + "/copy-b", "/new/directory/")
    buildah(k, "config", "--user", "1:2", "--env", "A=b", "--label", "l=m", "--cmd", "/none", container)
    buildah(k, "commit", "--quiet", container, f"oci:{layout}:three")
    buildah(k, "commit", "--quiet", "--format", "docker", container,
            f"docker-archive:{k.work}/buildah.tar:example.test/trees/buildah:1")
    buildah(k, "rm", container)
    return layout, found


@test
def an_image_of_buildah_comes_out_as_it_went_in(k):
    layout, found = buildah_images(k)
    for tag in ("one", "two", "three"):
        name = f"{REAL}trees/buildah:{tag}"
        skopeo(k, f"oci:{layout}:{tag}", "docker://" + name)
        k.pull(name)
        equal(len(record(k, name)["layers"]), {"one": 1, "two": 2, "three": 3}[tag], "layers")
        got, lost = krun_makes(k, name), LOST_BY_BUILDAH if tag != "one" else ()
        if tag in found:
            no_difference(f"buildah's {tag}, krun's tree and the source", without(got, *lost),
                          without(in_seconds(found[tag], 0), *lost), NOT_IN_BUILDAHS)
        no_difference(f"buildah's {tag}, krun's tree and umoci's", got,
                      umoci_makes(k, f"{layout}:{tag}"), NOT_IN_BUILDAHS)
        no_difference(f"buildah's {tag}, krun's tree and buildah's", without(got, *LOST_BY_BUILDAH),
                      without(buildah_makes(k, f"oci:buildah:{tag}"), *LOST_BY_BUILDAH), NOT_IN_BUILDAHS)
        drop(k, name)


@test
def a_docker_archive_of_buildah_is_the_image_that_it_committed(k):
    layout, _ = buildah_images(k)
    name = "example.test/trees/buildah:1"
    holds(name, k.cli("load", k.work + "/buildah.tar").stdout.decode(), "what load prints")
    no_difference("krun's tree and umoci's", krun_makes(k, name), umoci_makes(k, layout + ":three"),
                  NOT_IN_BUILDAHS)
    config = record(k, name)["config"]
    equal((config["user"], config["cmd"]), ("1:2", ["/none"]), "its configuration")
    drop(k, name)


# -- layers of GNU tar ----------------------------------------------------------------------------

@test
def layers_of_GNU_tar_come_out_to_the_nanosecond(k):
    """pax keeps fractions, attributes and ACLs; GNU's own form whole seconds and neither of them."""
    top = k.work + "/tar"
    os.makedirs(top)
    trees.make_everything(top)
    os.unlink(top + "/hard/fifo")  # no tar writes two names of a FIFO as one
    found = trees.listing(top), trees.hard_links(top)
    plain = {p: dict(s, xattrs={}) for p, s in in_seconds(found, 0)[0].items()}, found[1]
    posix = ("--format=posix", "--xattrs", "--xattrs-include=*", "--acls")
    rows = {"posix": (posix, found), "sparse": (posix + ("--sparse",), found), "gnu": (("--format=gnu",), plain),
            "gnu-sparse": (("--format=gnu", "--sparse"), plain),
            "sparse-0.1": (posix + ("--sparse", "--sparse-version=0.1"), found),
            "sparse-0.0": (posix + ("--sparse", "--sparse-version=0.0"), found)}
    for title, (options, want) in rows.items():
        layer = k.work + "/layer.tar"
        tool("tar", "--numeric-owner", *options, "-C", top, "-cf", layer, ".")
        with open(layer, "rb") as f:
            name = images.push(Image([f.read()], {"Labels": {"t": title}}), REAL[:-1], "trees/tar", title)
        k.pull(name)
        no_difference(title, krun_makes(k, name), want)
        if "sparse" in title:
            with Mounted(k, name) as root:
                check(os.stat(root + "/sparse").st_blocks < 2048, f"{title}: the hole is a hole")
        drop(k, name)


@test
def layers_that_no_tool_writes_but_the_format_allows(k):
    layers = [Tree().directory("d", 0o700, (7, 8)).file("d/x", "1").directory("o").file("o/below", "1")
              .file("s", "1").directory("t", 0o1777),
              Tree().file("d/.wh..wh..opq").directory("d", 0o750, (9, 9)).file("d/y", "2")
              .directory("o").directory("t", 0o1777).file("o/above", "2").file("o/.wh..wh..opq").file("t/.wh.never-there").file(".wh.nor-this"),
              Tree().file("attributes", "3", pax={"SCHILY.xattr.user.a=b": "c", "SCHILY.xattr.user.none": "",
                                                  "mtime": "-0.000000001"}),
              Tree().file("s", "1" * 10).hard_link("s2", "s").directory("t", 0o1777).file("./t//x", "t")]
    layers.append(layers[0])
    for title, stack in {"three": layers[:3], "four": layers[:4], "the first once more": layers}.items():
        image = Image(stack, {"Labels": {"t": title}})
        name = images.push(image, REAL[:-1], "trees/odd", title.replace(" ", "-"))
        layout = k.work + "/odd-" + title.replace(" ", "-")
        skopeo(k, "docker://" + name, f"oci:{layout}:1")
        k.pull(name)
        got, want = krun_makes(k, name), umoci_makes(k, layout + ":1")
        # umoci takes an attribute without a value for one that is not to be set.
        no_difference(title, got, want, ((b"attributes", "xattrs"), (b".", "mtime"), (b"s2", "links")))
        if b"attributes" in got[0]:
            equal(got[0][b"attributes"]["mtime"], -1, "a time just before 1970")
        drop(k, name)


# -- indexes --------------------------------------------------------------------------------------

INDEX = images.OCI + "index.v1+json"
PLATFORMS = (("amd64", "v1"), ("amd64", "v2"), ("amd64", "v3"), ("arm", "v7"), ("arm64", "v8"), ("riscv64", ""))


class Index:
    """An index as images.push takes it: entries are its descriptors."""
    media_type = INDEX

    def __init__(self, entries):
        self.manifest = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()

    @staticmethod
    def blobs():
        return {}


def descriptor(image, **more):
    return dict({"mediaType": image.media_type, "digest": images.digest(image.manifest),
                 "size": len(image.manifest)}, **more)


def platform_image(architecture, variant):
    """An image that says which one it is, with an annotated manifest that refers to a subject."""
    image = Image([Tree().file("platform", f"{architecture}/{variant}")])
    config = json.loads(image.config)
    config.update(architecture=architecture, variant=variant)
    image.config = json.dumps(config).encode()
    manifest = image.manifest_object()
    manifest["subject"] = {"mediaType": image.media_type, "digest": "sha256:" + "5" * 64, "size": 5}
    image.manifest = json.dumps(manifest).encode()
    return image


def attestation(image):
    """BuildKit's, about an image: a manifest of its own whose layer is an in-toto statement."""
    other = Image([Tree().file("never", "chosen")], {"Labels": {"about": image.digest}})
    return other, descriptor(other, platform={"os": "unknown", "architecture": "unknown"}, annotations={
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.digest})


def push_index(repository):
    """Four architectures in six variants, each with its attestation before it."""
    entries = []
    for number, (architecture, variant) in enumerate(PLATFORMS):
        image = platform_image(architecture, variant)
        about, entry = attestation(image)
        for title, one in (("about", about), ("image", image)):
            images.push(one, REAL[:-1], repository, f"{title}-{number}")
        platform = {"os": "linux", "architecture": architecture, **({"variant": variant} if variant else {})}
        entries += [entry, descriptor(image, platform=platform)]
    index = Index(entries)
    images.push(index, REAL[:-1], repository, "1")
    return index


def chosen(k, name):
    k.pull(name)
    with Mounted(k, name) as root:
        with open(root + "/platform") as f:
            architecture = f.read().split("/")[0]
    drop(k, name)
    return architecture


@test
def of_an_index_the_image_for_this_machine_is_taken(k):  # T38
    index = push_index("trees/index")
    name = REAL + "trees/index:1"
    equal(chosen(k, name), images.architecture(), "the architecture")
    equal(chosen(k, f"{REAL}trees/index@{images.digest(index.manifest)}"), images.architecture(), "by digest")
    skopeo(k, "docker://" + name, "docker://" + REAL + "trees/copied:1", "--multi-arch", "all")
    equal(chosen(k, REAL + "trees/copied:1"), images.architecture(), "of skopeo's copy")
    name = "example.test/trees/index:1"
    skopeo(k, "docker://" + REAL + "trees/index:1", f"oci:{k.work}/index:{name}", "--multi-arch", "all")
    k.cli("load", k.work + "/index")
    with Mounted(k, name) as root:
        check(os.path.exists(root + "/platform"), "of a layout")
    drop(k, name)


@test
def an_index_may_lie_in_an_index_and_that_one_in_no_other(k):  # T38
    inner = push_index("trees/nested")
    outer = Index([descriptor(inner)])
    outermost = Index([descriptor(outer)])
    too_deep = Index([descriptor(outermost)])
    for tag, index in (("2", outer), ("3", outermost), ("4", too_deep)):
        images.push(index, REAL[:-1], "trees/nested", tag)
    equal(chosen(k, REAL + "trees/nested:2"), images.architecture(), "the architecture")
    holds("an index in an index in an index", refused("INVALID_ARGUMENT",
                                                      lambda: k.pull(REAL + "trees/nested:3")))
    refused("INVALID_ARGUMENT", lambda: k.pull(REAL + "trees/nested:4"))


# -- a machine's own files ------------------------------------------------------------------------

@test
def twenty_thousand_files_of_this_machine_come_out_and_are_counted_right(k):
    layout, bundle = k.work + "/machine", k.work + "/machine-bundle"
    tool("umoci", "init", "--layout", layout)
    tool("umoci", "new", "--image", layout + ":1")
    tool("umoci", "unpack", "--image", layout + ":1", bundle)
    top, entries = bundle + "/rootfs", 0
    for source in ("/usr/share/zoneinfo", "/etc/alternatives", "/usr/share/man", "/usr/share/doc", "/usr/include"):
        if os.path.isdir(source) and entries < 20000:
            os.makedirs(os.path.dirname(top + source), exist_ok=True)
            tool("cp", "-a", source, top + source)
            entries = sum(len(d) + len(f) for _, d, f in os.walk(top))
    found = trees.listing(top), trees.hard_links(top)
    tool("umoci", "repack", "--image", layout + ":1", bundle)
    name = REAL + "trees/machine:1"
    skopeo(k, f"oci:{layout}:1", "docker://" + name)
    before = k.cri.ImageFsInfo().image_filesystems[0]
    k.pull(name)
    no_difference("krun's tree and the source", krun_makes(k, name), in_seconds(found))
    with open(f"{k.root}/layers/{record(k, name)['layers'][0]}.json") as f:
        layer = json.load(f)
    first = {names[0] for names in found[1]} | set(found[0]) - {n for names in found[1] for n in names}
    total = sum(s["size"] for p, s in found[0].items() if "size" in s and p in first)
    equal(int(layer["entries"]), len(found[0]), "entries of the layer")
    equal(int(layer["bytes"]), total, "bytes of the layer")
    after = k.cri.ImageFsInfo().image_filesystems[0]
    check(after.used_bytes.value - before.used_bytes.value >= total, "ImageFsInfo counts its bytes")
    check(after.inodes_used.value - before.inodes_used.value >= len(first), "and its inodes")
    drop(k, name)
