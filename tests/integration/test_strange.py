"""Images as strangers make them: odd but real ones, which docker and containerd take, and some that say
one thing to one reader and another to the next."""
import json
import os
import subprocess

import images
import registry
from harness import check, equal, holds, restarts, test
from images import Image, Tree, digest

FAKE = "127.0.0.1:5001/"


def setup(k):
    k.fake = registry.FakeRegistry(5001)
    k.base = images.busybox_tree()
    k.work = k.directory + "/work"
    os.makedirs(k.work)


def teardown(k):
    k.fake.stop()


def small(title, *trees, **options):
    """An image without programs, unlike all others."""
    return Image(trees or [Tree().file("title", title)], {"Cmd": ["/none"], "Labels": {"t": title}}, **options)


def again(image, manifest=None, config=None):
    """The image with another text of its config, or of its manifest; what is a function makes it."""
    if config:
        image.config = config(image.config)
        image.manifest = json.dumps(image.manifest_object()).encode()
    if manifest:
        image.manifest = manifest(image.manifest)
    return image


def of(change):
    """A function of a document from one of its object."""
    def make(text):
        value = json.loads(text)
        change(value)
        return json.dumps(value).encode()
    return make


def why_not(call):
    try:
        call()
    except Exception as error:  # pylint: disable=broad-except
        return error.details()
    return None


def pull(k, image, name):
    """What keeps the image from being pulled; None: nothing."""
    k.fake.put(image, name)
    return why_not(lambda: k.pull(FAKE + name))


def load(k, files):
    """What `krun load` says against an archive of these files; '' if nothing."""
    path = f"{k.work}/{k.name('archive')}.tar"
    done = k.cli("load", images.write_tar(files, path), check_status=False)
    os.unlink(path)
    return done.stderr.decode() if done.returncode else ""


def drop(k, *names):
    for name in names:
        k.cri.RemoveImage(image={"image": name})


def prints(k, name, *command):
    output = k.pod().prints(*command, image={"image": name})
    k.remove_all()
    return output


# -- documents ------------------------------------------------------------------------------------

@test
def a_key_that_two_readers_may_take_for_two_things_is_refused(k):
    """Of equal keys one reader takes the first, another the last; Go's takes a key in any case."""
    def with_first(key, value):  # puts it in front: json.dumps cannot say a key twice
        return lambda text: b"{" + json.dumps(key).encode() + b":" + value + b"," + text.lstrip()[1:]
    other = json.dumps(small("other").manifest_object()["layers"]).encode()
    rows = {
        "layers": ({"manifest": with_first("layers", other)}, "layers"),
        "layers in another case": ({"manifest": with_first("LAYERS", other)}, "ayers"),
        "layers in a letter that Go takes for s": ({"manifest": with_first("layer\u017f", other)}, "layer\u017f"),
        "config": ({"manifest": with_first("config", b"{}")}, "config"),
        "media type": ({"manifest": with_first("mediaType", b'"x"')}, "mediaType"),
        "an unknown key": ({"manifest": lambda t: with_first("x", b"1")(with_first("x", b"2")(t))}, "x"),
        "digest of a layer": ({"manifest": lambda t: t.replace(b'"digest"', b'"size": 1, "digest"', 2)}, "size"),
        "rootfs": ({"config": with_first("rootfs", b"{}")}, "rootfs"),
        "config's config": ({"config": with_first("Config", b'{"User":"0"}')}, "onfig"),
        "user": ({"config": lambda t: t.replace(b'"Cmd"', b'"User":"1","user":"0","Cmd"')}, "ser"),
        "label": ({"config": lambda t: t.replace(b'"t"', b'"t":"x","t"')}, "t"),
        "diff-ids": ({"config": lambda t: t.replace(b'"diff_ids"', b'"diff_ids":[],"diff_ids"')}, "diff_ids"),
    }
    for number, (title, (changes, key)) in enumerate(rows.items()):
        image = again(small(title), **changes)
        said = pull(k, image, f"twice-{number}")
        check(said, f"{title}: pulled")
        holds(f'{key}" is there twice', said)
        said = load(k, images.oci_files(image, "x/twice:1"))
        holds(f'{key}" is there twice', said)
    entry = json.loads(images.oci_files(small("a"), "x/a:1")["index.json"])["manifests"]
    index = b'{"schemaVersion":2,"manifests":[],"manifests":' + json.dumps(entry).encode() + b"}"
    holds('"manifests" is there twice', load(k, dict(images.oci_files(small("a"), "x/a:1"), **{"index.json": index})))
    k.fake.manifests["twice", "latest"] = ("application/vnd.oci.image.index.v1+json", index)
    holds('"manifests" is there twice', why_not(lambda: k.pull(FAKE + "twice")))
    docker = images.docker_files(small("a"), ["x/a:1"])
    docker["manifest.json"] = docker["manifest.json"].replace(b'"Layers"', b'"Layers": [], "Layers"')
    holds('"Layers" is there twice', load(k, docker))


@test
def a_key_in_another_case_means_what_it_means_to_docker_and_containerd(k):
    image = again(Image([k.base], {"Env": ["PATH=/bin"]}), config=lambda t: t.replace(
        b'"Env"', b'"user": "1000", "workingdir": "/tmp", "Labels": {"a": "1", "A": "2"}, "env"'))
    equal(pull(k, image, "case"), None, "the pull")
    equal(prints(k, FAKE + "case", "sh", "-c", "id -u; pwd"), "1000\n/tmp\n", "user and directory")
    drop(k, FAKE + "case")


@test
def a_config_is_known_by_its_digest_and_not_by_its_media_type(k):
    """Docker 1.10 and registries of its time called it by what the server had said of the bytes."""
    for number, media in enumerate(("application/octet-stream", "application/json", "text/html",
                                    "text/html; charset=utf-8", "text/plain", "", None)):
        def change(value, media=media):
            value["config"]["mediaType"] = media
            if media is None:
                del value["config"]["mediaType"]
        image = again(small(f"config {media}"), manifest=of(change))
        equal(pull(k, image, f"config-{number}"), None, f"a config of type {media!r}")
        equal(k.cri.ImageStatus(image={"image": FAKE + f"config-{number}"}).image.id, image.id, "its ID")
        equal(load(k, images.oci_files(image, "x/config:1")), "", f"the archive's, of type {media!r}")
        drop(k, image.id)
    for media in ("application/vnd.cncf.helm.config.v1+json", "application/vnd.oci.empty.v1+json"):
        image = again(small("artifact"), manifest=of(lambda m, media=media: m["config"].update(mediaType=media)))
        holds(f"a config of type {media} is no container image's", pull(k, image, "artifact"))


@test
def a_blob_of_another_kind_beside_the_layers_is_left_out(k):
    """A WASM module in a manifest whose diff_ids count the layers alone (containerd#9142)."""
    wasm = b"\0asm\1\0\0\0"
    extra = {"mediaType": "application/vnd.wasm.content.layer.v1+wasm", "digest": digest(wasm), "size": len(wasm)}
    for place in (0, 1, 2):  # wherever it stands
        image = again(Image([k.base, Tree().file("which", f"{place}\n")], {"Env": ["PATH=/bin"]}),
                      manifest=of(lambda m, at=place: m["layers"].insert(at, extra)))
        equal(pull(k, image, "wasm"), None, f"the pull with it at {place}")
        equal(prints(k, FAKE + "wasm", "cat", "/which"), f"{place}\n", "the file")
        path = k.work + "/saved.tar"
        k.cli("save", FAKE + "wasm", "-o", path)
        drop(k, FAKE + "wasm")
        k.cli("load", path)
        equal(prints(k, FAKE + "wasm", "cat", "/which"), f"{place}\n", "the file, saved and loaded")
        drop(k, FAKE + "wasm")
    counted = again(small("counted"), manifest=of(lambda m: m["layers"].append(extra)),
                    config=of(lambda c: c["rootfs"]["diff_ids"].append(digest(wasm))))
    holds("layers of type application/vnd.wasm.content.layer.v1+wasm are not supported", pull(k, counted, "counted"))
    alone = again(small("alone"), manifest=of(lambda m: m.update(layers=[extra])))
    holds("application/vnd.wasm.content.layer.v1+wasm and no container image", pull(k, alone, "alone"))


# -- compression ----------------------------------------------------------------------------------

def zstd(data, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


@test
def zstd_frames_that_declare_large_windows_unpack(k):
    """zstd:chunked declares 32 MiB whatever it holds, k3s's archives 32, --long=27 and --ultra -22 128."""
    noise = os.urandom(3 << 20)
    for title, options in (("long-24", ["--long=24"]), ("long-27", ["--long=27"]), ("ultra", ["--ultra", "-22"])):
        tree = Tree().file("a", title).file("noise", noise + b"between" * 9 + noise)
        image = small(title, tree, compress=lambda data, options=options: zstd(data, *options))
        equal(pull(k, image, title), None, f"an image of zstd {' '.join(options)}")
        drop(k, FAKE + title)
    whole = images.write_tar(images.docker_files(small("k3s"), ["x/k3s:1"]), k.work + "/k3s.tar")
    with open(whole, "rb") as plain, open(whole + ".zst", "wb") as packed:
        packed.write(zstd(plain.read(), "-T0", "-16", "--long=25"))
    k.cli("load", whole + ".zst")
    drop(k, "x/k3s:1")
    holds("needs a window of", pull(k, small("long-28", compress=lambda data: zstd(data, "--long=28")), "too-long"))


# -- layers that are there already ----------------------------------------------------------------

def asked_for(k, image):
    """How often the registry was asked for a layer of the image."""
    return sum(digest(b) in str(request) for request in k.fake.requests for b in image.layers)


def claiming(k, victim, title, *blobs):
    """An image whose config says that its layers are the victim's; its manifest names these blobs."""
    image = small(title, *victim.tars, compress=lambda data: data)
    image.layers = list(blobs)
    image.manifest = json.dumps(image.manifest_object()).encode()
    return image


@test
def an_archive_shows_no_layer_whose_bytes_it_has_not(k):
    victim = Image([k.base, Tree().file("secret", "of another")], {"Env": ["PATH=/bin"]})
    equal(pull(k, victim, "victim"), None, "the pull")
    thief = claiming(k, victim, "thief", *victim.layers)
    files = images.oci_files(thief, "x/thief:1")
    for layer in victim.layers:
        del files[f"blobs/sha256/{digest(layer)[7:]}"]
    holds("the archive has no file", load(k, files))
    lie = images.oci_files(thief, "x/thief:1")
    for layer in victim.layers:  # as long, and other bytes
        lie[f"blobs/sha256/{digest(layer)[7:]}"] = bytes(len(layer))
    holds("the archive has other bytes of it", load(k, lie))
    other = claiming(k, victim, "other", *(Tree().file("x", t).tar() for t in ("1", "2")))
    holds("its diff-id is", load(k, images.oci_files(other, "x/other:1")))
    docker = images.docker_files(other, ["x/other:1"])
    for name in json.loads(docker["manifest.json"])[0]["Layers"]:
        docker[name] = Tree().file("x", "3").tar()
    holds("its diff-id is", load(k, docker))
    names = [tag for image in k.cri.ListImages().images for tag in image.repo_tags]
    check(not any("thief" in n or "other" in n for n in names), f"images: {names}")
    equal(load(k, images.oci_files(claiming(k, victim, "owner", *victim.layers), "x/owner:1")), "", "with the bytes")
    equal(load(k, images.docker_files(victim, ["x/docker:1"])), "", "with the plain bytes")
    equal(prints(k, FAKE + "victim", "cat", "/secret"), "of another", "the victim's own")
    drop(k, FAKE + "victim", "x/owner:1", "x/docker:1")


@test
@restarts
def a_registry_shows_no_layer_that_its_blob_does_not_hold(k):
    victim = small("victim", Tree().file("secret", "of another, in a registry"))
    equal(pull(k, victim, "victim"), None, "the pull")
    other = claiming(k, victim, "other", Tree().file("x", "of mine").tar())
    holds("its diff-id is", pull(k, other, "other"))
    before = set(os.listdir(k.root + "/layers"))
    for packed, times in ((victim.tars[0], 0), (zstd(victim.tars[0]), 1), (zstd(victim.tars[0], "-9"), 1)):
        k.fake.requests.clear()
        for turn in range(2):  # the second finds what the first has seen
            image = claiming(k, victim, f"{turn} packed in {len(packed)} bytes", packed)
            equal(pull(k, image, f"packed-{turn}"), None, "the pull")
        equal(asked_for(k, image), times, "how often its layer was fetched")
        equal(set(os.listdir(k.root + "/layers")), before, "the layers")
    k.restart()
    k.fake.requests.clear()
    image = claiming(k, victim, "after a restart", zstd(victim.tars[0], "-9"))
    equal(pull(k, image, "packed"), None, "the pull")
    equal(asked_for(k, image), 0, "how often its layer was fetched")
    drop(k, FAKE + "victim", FAKE + "packed", *(FAKE + f"packed-{n}" for n in range(2)))


# -- layers of other makers ------------------------------------------------------------------------

@test
def layers_of_aufs_unpack_with_the_files_behind_their_hard_links(k):
    """docker on aufs kept files of several names in .wh..wh.plnk, and its layers link to that."""
    aufs = ".wh..wh.plnk/"
    layer = Tree().directory("d").file(".wh..wh.aufs").directory(".wh..wh.orph").directory(aufs[:-1])
    layer.file(aufs + "1.2", "shared\n", 0o640, (1, 2)).file(aufs + "3.4", "unused").file(".wh..wh.orph/x", "x")
    layer.hard_link("d/one", aufs + "1.2").hard_link("two", "/" + aufs + "1.2").hard_link("three", "d/one")
    image = Image([k.base, layer], {"Env": ["PATH=/bin"]})
    equal(pull(k, image, "aufs"), None, "the pull")
    equal(prints(k, FAKE + "aufs", "sh", "-c",
                 "cat /d/one /two; stat -c '%h %a %u:%g' /two /d/one /three; ls -A / | grep -c wh; true"),
          "shared\nshared\n" + "3 640 1:2\n" * 3 + "0\n", "the files")
    drop(k, FAKE + "aufs")
    missing = Image([k.base, Tree().hard_link("x", aufs + "9.9")])
    holds("unpack x", pull(k, missing, "aufs"))


@test
def what_a_layer_puts_behind_a_link_lands_where_the_link_leads(k):
    """A link of this layer to a directory that only a lower one has, or none; containerd writes there."""
    base = Tree().directory("usr").directory("usr/lib").file("usr/lib/old", "1").file("usr/lib/gone", "1")
    layer = Tree().link("lib", "usr/lib").file("lib/new", "2").file("lib/.wh.gone").link("far", "../../a/b")
    layer.file("far/deep/f", "3").file("far/.wh.nothing").link("loop", "loop").file("loop/.wh.x")
    layer.file("file", "4").file("file/.wh.x").file("file/d/.wh.y").hard_link("far/h", "lib/new").file(".wh.dir")
    layer.file("dir/.wh.x").file("dir/e/.wh.y").link("chain", "link2").link("link2", "c").file("chain/f", "5")
    image = Image([k.base, base, layer], {"Env": ["PATH=/bin"]})
    equal(pull(k, image, "links"), None, "the pull")
    equal(prints(k, FAKE + "links", "sh", "-c", "cat /lib/old /usr/lib/new /a/b/deep/f /a/b/h /c/f; echo; ls /usr/lib"),
          "12325\nnew\nold\n", "the files")
    drop(k, FAKE + "links")
    loop = Image([k.base, Tree().link("l1", "l2/x").link("l2", "l1/x").file("l1/f", "x")])
    check(pull(k, loop, "links"), "links in a circle unpacked")


# -- archives -------------------------------------------------------------------------------------

def side_by_side(rows):
    """An index.json that lists images for platforms: (architecture, image, name)."""
    return json.dumps({"schemaVersion": 2, "manifests": [
        {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest),
         **({"platform": {"architecture": machine, "os": "linux"}} if machine else {}),
         **({"annotations": {"org.opencontainers.image.ref.name": name}} if name else {})}
        for machine, image, name in rows]}).encode()


@test
def an_index_of_an_archive_may_list_platforms_side_by_side(k):
    mine, other = images.architecture(), "s390x"
    def made(which):
        return Image([k.base, Tree().file("which", which)], {"Env": ["PATH=/bin"]})
    ours, theirs, second = made("ours"), made("theirs"), made("second")
    name = "example.com/side:1"
    rows = {
        "the other's blobs are not there": ([(other, theirs, None), (mine, ours, name)], [ours], {name: "ours"}),
        "the other's is named too": ([(other, theirs, name), (mine, ours, name)], [ours], {name: "ours"}),
        "the other's comes last": ([(mine, ours, name), (other, theirs, name)], [ours, theirs], {name: "ours"}),
        "two for this machine": ([(mine, ours, name), (mine, second, name)], [ours, second], {name: "ours"}),
        "another name for the other": ([(other, theirs, "x/y:1"), (mine, ours, name)], [ours], {name: "ours"}),
        "nobody says for what": ([(None, ours, name), (None, second, "x/second:1")], [ours, second],
                                 {name: "ours", "x/second:1": "second"}),
        "one with two names": ([(mine, ours, name), (mine, ours, "x/again:1")], [ours],
                               {name: "ours", "x/again:1": "ours"}),
    }
    for title, (entries, there, wanted) in rows.items():
        files = {}
        for image in there:
            files.update(images.oci_files(image, "x"))
        files["index.json"] = side_by_side(entries)
        equal(load(k, files), "", title)
        for tag, which in wanted.items():
            equal(prints(k, tag, "cat", "/which"), which, f"{title}: {tag}")
        drop(k, *wanted)
        check(not k.cri.ImageStatus(image={"image": theirs.id}).image.id, f"{title}: the other's is not here")
    files["index.json"] = side_by_side([(other, theirs, name)])
    holds("index.json: no image for linux/", load(k, files))


@test
def an_archive_may_give_an_image_many_names(k):
    image = small("names")
    names = [f"x/many:{n}" for n in range(40)]
    files = images.oci_files(image, "x")
    files["index.json"] = side_by_side([(images.architecture(), image, name) for name in names])
    for form in (files, images.docker_files(image, names)):
        equal(load(k, form), "", "the load")
        tags = k.cri.ImageStatus(image={"image": image.id}).image.repo_tags
        equal(sorted(tags), sorted("docker.io/" + n for n in names), "the image's tags")
        drop(k, image.id)


@test
@restarts
def an_image_has_one_size_however_it_comes(k):
    tree = Tree().file("a", b"x" * 100000).hard_link("b", "a").file("c", os.urandom(5000))
    image = Image([tree, Tree().file("d", "y" * 1000)], {"Cmd": ["/none"], "Labels": {"t": "size"}})
    plain = Image([tree, Tree().file("d", "y" * 1000)], {"Cmd": ["/none"], "Labels": {"t": "size"}},
                  compress=lambda data: data)
    plain.config = image.config
    plain.manifest = json.dumps(plain.manifest_object()).encode()
    wanted = 100000 + 5000 + 1000 + len(image.config)

    def size():
        return k.cri.ImageStatus(image={"image": image.id}).image.size
    ways = {"pulled as gzip": lambda: equal(pull(k, image, "size"), None, "the pull"),
            "pulled as plain tars": lambda: equal(pull(k, plain, "size"), None, "the pull"),
            "loaded from a layout": lambda: equal(load(k, images.oci_files(image, "x/size:1")), "", "the load"),
            "loaded from docker's form": lambda: equal(load(k, images.docker_files(image, ["x/size:1"])), "", "the load"),
            "after a restart": k.restart}
    for title, way in ways.items():
        way()
        equal(size(), wanted, f"its size, {title}")
    for title, way in ways.items():
        if title != "after a restart":
            drop(k, image.id)
            way()
            equal(size(), wanted, f"its size, {title} anew")
    drop(k, image.id)
