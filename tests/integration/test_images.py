"""Images: pulled from docker-registry, loaded from archives, listed, run, removed; and images that lie.

The registry on 127.0.0.1:5000 is Debian's; the one on 5001 is ours and says what a test wants."""
import gzip
import hashlib
import json
import os
import signal
import subprocess

import images
import registry
from harness import (CANARY, DEADLINE, KRUN, Failure, check, equal, holds, processes, refused, restarts, test,
                     until)
from images import Image, Tree

REAL, FAKE = "127.0.0.1:5000/", "127.0.0.1:5001/"


def setup(k):
    k.fake = registry.FakeRegistry(5001)
    k.archives = k.directory + "/archives"
    os.makedirs(k.archives)


def teardown(k):
    k.fake.stop()


def status(k, name):
    return k.cri.ImageStatus(image={"image": name}).image


def names(k):
    return sorted(t for i in k.cri.ListImages().images for t in i.repo_tags)


def fails(call):
    """The call must fail; gives its message."""
    try:
        answer = call()
    except Exception as error:  # pylint: disable=broad-except
        return error.details()
    raise Failure(f"it succeeded: {answer}")


def layers(k):
    path = k.root + "/layers"
    return set(os.listdir(path)) if os.path.isdir(path) else set()


def drop(k, *wanted):
    for name in wanted:
        k.cri.RemoveImage(image={"image": name})


def small(title, *trees, **options):
    """An image without programs, unlike all others."""
    return Image(trees or [Tree().file("title", title)], {"Cmd": ["/none"], "Labels": {"t": title}},
                 **options)


# -- listing and names ----------------------------------------------------------------------------

@test
def the_built_in_image_is_there_and_pinned(k):
    image = status(k, "localhost/krun:self")
    check(image.id and image.pinned and image.size, str(image))
    check("localhost/krun:self" in names(k), "it is listed")


@test
def a_pulled_image_is_found_by_tag_id_and_digest_alike(k):
    reference = k.pull(REAL + "test/docker:1")
    image = status(k, REAL + "test/docker:1")
    equal(reference, image.id, "PullImage's answer")
    check(image.id.startswith("sha256:"), image.id)
    check(image.size > 0, "size")
    equal(list(image.repo_tags), [REAL + "test/docker:1"], "repo_tags")
    equal(len(image.repo_digests), 1, "repo_digests")
    for name in (image.id, image.id[7:], image.repo_digests[0], REAL + "test/docker:1"):
        equal(status(k, name).id, image.id, f"ImageStatus of {name}")
        equal([i.id for i in k.cri.ListImages(filter={"image": {"image": name}}).images], [image.id],
              f"ListImages with {name}")
    drop(k, image.id)
    check(not status(k, REAL + "test/docker:1").id, "it is gone by every name")


@test
def no_tag_means_latest(k):
    k.pull(REAL + "test/busybox")
    check(REAL + "test/busybox:latest" in status(k, REAL + "test/busybox").repo_tags,
          "the tag is shown")


@test
def an_image_pulled_by_digest_has_no_tag(k):
    image = small("by digest")
    name = f"{k.fake.address}/by-digest@{image.digest}"
    k.fake.put(image, "by-digest")
    equal(k.pull(name), image.id, "the answer")
    equal((list(status(k, name).repo_tags), list(status(k, name).repo_digests)), ([], [name]),
          "names")
    drop(k, name)


@test
def one_image_under_two_names_is_one_image(k):
    k.pull(REAL + "test/busybox:1")
    k.pull(REAL + "test/same:2")
    image = status(k, REAL + "test/same:2")
    equal(image.id, status(k, REAL + "test/busybox:1").id, "id")
    for name in (REAL + "test/busybox:1", REAL + "test/same:2"):
        check(name in image.repo_tags, f"{name} is among {image.repo_tags}")
    equal([i.id for i in k.cri.ListImages().images].count(image.id), 1, "times in the list")


@test
def a_tag_that_moves_names_the_new_image_only(k):
    one, two = small("moves 1"), small("moves 2")
    k.fake.put(one, "moves")
    k.pull(FAKE + "moves:latest")
    k.fake.put(two, "moves")
    equal(k.pull(FAKE + "moves:latest"), two.id, "the answer")
    equal(status(k, FAKE + "moves:latest").id, two.id, "the tag's image")
    equal([i for i in k.cri.ListImages().images if i.id == one.id and i.repo_tags], [], "old tags")
    drop(k, one.id, two.id)


@test
def what_is_not_there_is_an_empty_answer_and_removing_it_succeeds(k):
    for name in ("nothing.example/at/all:1", "sha256:" + "0" * 64, "0" * 64):
        check(not k.cri.ImageStatus(image={"image": name}).HasField("image"), f"image of {name}")
        k.cri.RemoveImage(image={"image": name})
    equal(len(k.cri.ListImages(filter={"image": {"image": "nothing:1"}}).images), 0, "listed")


@test
def RemoveImage_by_one_name_removes_all_and_its_layers(k):
    before = layers(k)
    image = small("many names")
    for tag in ("a", "b", "c"):
        k.fake.put(image, "many", tag)
        k.pull(FAKE + "many:" + tag)
    equal(len(status(k, FAKE + "many:a").repo_tags), 3, "tags")
    drop(k, FAKE + "many:b")
    for tag in ("a", "b", "c"):
        check(not status(k, FAKE + "many:" + tag).id, f"tag {tag} is gone")
    until("its layers are gone", lambda: layers(k) <= before)


@test
def a_layer_that_another_image_uses_stays(k):
    shared = Tree().file("shared", "x" * 1000)
    one, two = small("1", shared), small("2", shared, Tree().file("more", "y"))
    k.fake.put(one, "one")
    k.fake.put(two, "two")
    k.pull(FAKE + "one")
    have = layers(k)
    k.pull(FAKE + "two")
    drop(k, FAKE + "two")
    until("only the other's layer goes", lambda: layers(k) <= have)
    drop(k, FAKE + "one")


@test
def five_removals_at_once_all_succeed(k):
    k.fake.put(small("remove me"), "five")
    k.pull(FAKE + "five")
    calls = [k.cri.begin("RemoveImage", image={"image": FAKE + "five"}) for _ in range(5)]
    for call in calls:
        call.result()
    check(not status(k, FAKE + "five").id, "it is gone")


@test
def uid_or_username_come_from_the_images_user(k):
    rows = {"uid": (1234, ""), "uid-gid": (1234, ""), "name": (None, "alice"),
            "name-gid": (None, "alice")}
    for title, (uid, username) in rows.items():
        k.pull(REAL + f"test/user-{title}:1")
        image = status(k, REAL + f"test/user-{title}:1")
        got = (image.uid.value if image.HasField("uid") else None, image.username)
        equal(got, (uid, username), f"user-{title}")
    root = status(k, k.image)
    check((root.HasField("uid") and root.uid.value == 0) or not root.username, "no user means root")


@test
def verbose_status_has_JSON_and_terse_has_none(k):
    equal(dict(k.cri.ImageStatus(image={"image": k.image}).info), {}, "info")
    info = k.cri.ImageStatus(image={"image": k.image}, verbose=True).info
    check(info, "there is verbose information")
    for value in info.values():
        json.loads(value)


@test
def ImageFsInfo_names_a_directory_and_what_it_holds(k):
    usage = k.cri.ImageFsInfo().image_filesystems[0]
    check(os.path.isdir(usage.fs_id.mountpoint), usage.fs_id.mountpoint)
    check(usage.timestamp > 10**18 and usage.used_bytes.value > 2000000 and usage.inodes_used.value > 5,
          str(usage))


@test
def bad_names_are_refused_before_anything_is_asked(k):  # T29
    asked = len(k.fake.requests)
    host = k.fake.address
    for name in ("", "UPPER/case:1", "a//b", f"{host}/x:" + "t" * 129, f"{host}/x@sha256:short", "-a/b",
                 f"{host}/../x", "127.0.0.1:99999/x", f"{host}/a b", f"{host}/x\ny", "x" * 100000):
        refused("INVALID_ARGUMENT", lambda name=name: k.cri.PullImage(image={"image": name}))
    equal(len(k.fake.requests), asked, "requests")


@test
def a_missing_image_and_a_dead_registry_are_told_apart_in_words(k):
    holds("no/such", fails(lambda: k.pull(REAL + "no/such:1")), "the message")
    holds("127.0.0.1:5009", fails(lambda: k.pull("127.0.0.1:5009/x:1")), "the message")


# -- content --------------------------------------------------------------------------------------

@test
def gzip_plain_and_docker_images_run(k):
    for name in ("test/busybox:1", "test/plain-layer:1", "test/docker:1"):
        k.pull(REAL + name)
        equal(k.pod().prints("echo", "hello", image={"image": REAL + name}), "hello\n", name)


@test
def later_layers_hide_replace_and_empty_earlier_ones(k):  # T33
    k.pull(REAL + "test/layered:1")
    container = k.pod().start(image={"image": REAL + "test/layered:1"})
    rows = (("ls -A /d", "kept\nreplaced\n"), ("cat /d/replaced", "new"), ("ls -A /o", "above\n"),
            ("ls -A /gone", "again\n"), ("cat /swap", "now a file"), ("stat -c %a /suid", "4755\n"),
            ("stat -c %a /sticky", "1777\n"), ("ls -A / | grep -c ^.wh || true", "0\n"))
    for command, wanted in rows:
        equal(container.sh(command), wanted, command)


@test
def a_layer_that_writes_through_an_earlier_layers_link_stays_inside(k):  # T32
    os.makedirs(CANARY, exist_ok=True)
    base = images.busybox_tree().link("out", CANARY).link("up", "../../../.." + CANARY)
    evil = Image([base, Tree().file("out/a", "x").file("up/b", "x")], {"Env": ["PATH=/bin"]})
    k.fake.put(evil, "through-link")
    try:
        try:
            k.pull(FAKE + "through-link")
        except Exception:  # pylint: disable=broad-except
            pass  # refusing is as good
        equal(os.listdir(CANARY), [], "the canary directory")
        drop(k, FAKE + "through-link")
    finally:
        os.rmdir(CANARY)


@test
def entries_that_lead_out_of_the_layer_write_nothing_there(k):  # T30
    victim, target = CANARY + "-file", CANARY + "-target"
    rows = {"dotdot": lambda t: t.file("../../../../../../.." + victim, "x"),
            "absolute": lambda t: t.file(victim, "x"),
            "link": lambda t: t.link("l", os.path.dirname(victim)).file("l/krun-canary-file", "x"),
            "hard link": lambda t: t.hard_link("h", target).file("h", "x"),
            "hard link up": lambda t: t.hard_link("h", "../../../../../.." + target).file("h", "x")}
    with open(target, "w") as f:
        f.write("as it was")
    for title, change in rows.items():
        tree = Tree()
        change(tree)
        k.fake.put(small(title, tree), "out-of-layer")
        try:
            k.pull(FAKE + "out-of-layer")
        except Exception:  # pylint: disable=broad-except
            pass  # refusing is as good
        check(not os.path.exists(victim), f"{victim} after {title}")
        with open(target) as f:
            equal(f.read(), "as it was", f"the file that was there, after {title}")
        drop(k, FAKE + "out-of-layer")
    os.unlink(target)


# -- loading --------------------------------------------------------------------------------------

@test
def krun_load_takes_docker_archives_and_OCI_layouts(k):
    forms = {
        "docker.tar": lambda i, n, p: images.write_tar(images.docker_files(i, [n]), p),
        "oci.tar": lambda i, n, p: images.write_tar(images.oci_files(i, n), p),
        "oci-dir": lambda i, n, p: images.write_directory(images.oci_files(i, n), p),
    }
    for form, write in forms.items():
        name = f"example.test/loaded/{form.replace('.', '-')}:1"
        image = images.busybox({"Labels": {"form": form}})
        path = write(image, name, f"{k.archives}/{form}")
        holds(name, k.cli("load", path).stdout.decode(), "what load prints")
        equal(status(k, name).id, image.id, f"the id of {form}")
        equal(k.pod().prints("echo", form, image={"image": name}), form + "\n", "output")
        k.remove_all()
        drop(k, name)


@test
def krun_load_reads_its_standard_input(k):
    image = small("stdin")
    path = images.write_tar(images.docker_files(image, ["example.test/stdin:1"]),
                            k.archives + "/in.tar")
    with open(path, "rb") as f:
        k.cli("load", "-", stdin=f.read())
    equal(status(k, "example.test/stdin:1").id, image.id, "id")
    drop(k, "example.test/stdin:1")


def helpers():
    return [line for line in processes().values()
            if line.startswith(("krun archive", "krun read", "krun unpack"))]


def load_that_stands_still(k, title):
    """A load whose archive's reader is stopped: the client, and what lay in layers/ before."""
    before = layers(k)
    image = small(title, Tree().file("big", os.urandom(1 << 20) * 48), compress=lambda b: b)
    path = images.write_tar(images.docker_files(image, [f"example.test/{title}:1"]),
                            f"{k.archives}/{title}.tar")
    client = subprocess.Popen([KRUN, "load", "--socket", k.socket, path], stderr=subprocess.DEVNULL)
    pid = until("it has begun", lambda: [p for p, line in processes().items()
                                         if line.startswith("krun archive")])[0]
    os.kill(pid, signal.SIGSTOP)
    return client, before


@test
def a_load_ends_when_its_client_has_gone(k):
    client, before = load_that_stands_still(k, "left")
    client.send_signal(signal.SIGINT)
    client.wait()
    until("its helpers are gone", lambda: not helpers())
    until("nothing is left", lambda: layers(k) <= before and not os.listdir(k.root + "/trash"))
    check(not status(k, "example.test/left:1").id, "nothing is listed")


@restarts
@test
def a_load_ends_with_the_daemon(k):
    client, before = load_that_stands_still(k, "cut")
    equal(k.stop(), 0, "the daemon's exit status")
    equal(helpers(), [], "helpers of the load")
    equal(layers(k) - before, set(), "what is left in layers/")
    check(client.wait() != 0, "the client is told")
    k.start()


@test
def an_archive_with_a_wrong_layer_is_refused(k):
    image = small("wrong layer")
    files = images.docker_files(image, ["example.test/wrong:1"])
    layer = next(n for n in files if n.endswith("layer.tar"))
    files[layer] = Tree().file("other", "content").tar()
    path = images.write_tar(files, k.archives + "/wrong.tar")
    before = layers(k)
    done = k.cli("load", path, check_status=False)
    check(done.returncode != 0, "load fails")
    check(not status(k, "example.test/wrong:1").id, "nothing is listed")
    until("nothing is left", lambda: layers(k) <= before)


@test
def an_archive_that_leads_out_by_its_names_is_refused(k):
    image = small("names")
    files = images.docker_files(image, ["example.test/names:1"])
    manifest = json.loads(files["manifest.json"])
    manifest[0]["Layers"] = ["../../../../etc/passwd"]
    files["manifest.json"] = json.dumps(manifest).encode()
    path = images.write_tar(files, k.archives + "/names.tar")
    check(k.cli("load", path, check_status=False).returncode != 0, "load fails")


# -- pulls side by side ---------------------------------------------------------------------------

@test
def the_same_pull_asked_for_twenty_times_is_done_once(k):  # T42
    image = small("popular")
    k.fake.put(image, "popular")
    k.fake.requests.clear()
    k.fake.gate.clear()
    k.fake.asked.clear()
    calls = [k.cri.begin("PullImage", image={"image": FAKE + "popular"}) for _ in range(20)]
    until("a blob is asked for", k.fake.asked.is_set)
    k.fake.gate.set()
    equal({c.result().image_ref for c in calls}, {image.id}, "answers")
    blobs = [p for m, p in k.fake.requests if m == "GET" and "/blobs/" in p]
    equal(len(blobs), len(set(blobs)), "each blob is fetched once")
    drop(k, FAKE + "popular")


@test
def a_slow_pull_delays_no_other_call(k):
    k.fake.put(small("slow"), "slow")
    k.fake.gate.clear()
    k.fake.asked.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "slow"})
    until("it waits", k.fake.asked.is_set)
    k.cri.Status()
    k.pull(REAL + "test/docker:1")
    equal(k.pod().prints("echo", "hi"), "hi\n", "a container meanwhile")
    check(not call.done(), "it still waits")
    k.fake.gate.set()
    call.result()
    drop(k, FAKE + "slow")


@test
def what_fetches_and_what_unpacks_is_not_root_with_all_rights(k):
    k.fake.put(small("who"), "who")
    k.fake.gate.clear()
    k.fake.asked.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "who"})
    until("it waits", k.fake.asked.is_set)
    found = [p for p, line in processes().items() if line.startswith("krun fetch")]
    try:
        check(found, "a fetch process is there")
        for pid in found:
            with open(f"/proc/{pid}/status") as f:
                text = f.read()
            check("Uid:\t65534\t65534" in text, "it is nobody")
            check("CapEff:\t0000000000000000" in text, "it has no capability")
            check("NoNewPrivs:\t1" in text, "an exec gives it none")
    finally:
        k.fake.gate.set()
    call.result()
    drop(k, FAKE + "who")


@test
def what_unpacks_sees_one_directory_and_has_few_rights(k):
    image = small("confined", Tree().file("a", os.urandom(1 << 20)))
    k.fake.put(image, "confined")
    k.fake.halves = {images.digest(image.layers[0])}
    k.fake.gate.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "confined"})

    def unpacks():
        """Its pid, once it is in its chroot: the last thing before it is that rights are dropped."""
        found = [p for p, line in processes().items() if line.startswith("krun unpack")]
        with open(f"/proc/{found[0]}/status" if found else os.devnull) as f:
            return found[0] if "Seccomp:\t2\n" in f.read() else None
    try:
        pid = until("it is confined", unpacks)
        with open(f"/proc/{pid}/status") as f:
            text = f.read()
        holds("CapEff:\t000000008820001b\n", text, "what making files takes")
        holds("CapPrm:\t000000008820001b\n", text, "what making files takes")
        holds("NoNewPrivs:\t1\n", text, "its status")
        partial = [f"{k.root}/layers/{n}" for n in os.listdir(k.root + "/layers") if n.endswith(".partial")]
        own = os.stat(f"/proc/{pid}/root/")
        holds((own.st_dev, own.st_ino), [(s.st_dev, s.st_ino) for s in map(os.stat, partial)], "its root")
        outside = [n for n in (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
                   if n.startswith("/") and n != "/dev/null" and "memfd" not in n and ".partial" not in n
                   and n != "/"]
        equal([n for n in outside if os.path.isdir(n)], [], "directories that it has open")
    finally:
        k.fake.halves = set()
        k.fake.gate.set()
    call.result()
    drop(k, FAKE + "confined")


@test
def a_cancelled_pull_leaves_nothing_and_can_be_asked_for_again(k):  # T42
    before = layers(k)
    image = small("cancelled")
    k.fake.put(image, "cancelled")
    k.fake.gate.clear()
    k.fake.asked.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "cancelled"})
    until("it waits", k.fake.asked.is_set)
    call.cancel()
    until("nothing of krun fetches any more", lambda: not [
        line for line in processes().values() if line.startswith(("krun fetch", "krun unpack"))])
    k.fake.gate.set()
    until("nothing is left", lambda: layers(k) <= before)
    equal(k.pull(FAKE + "cancelled"), image.id, "the second try")
    drop(k, FAKE + "cancelled")


# -- images that lie ------------------------------------------------------------------------------

def damaged(change):
    """An image whose manifest was rewritten by change(object)."""
    image = small("damaged " + change.__name__)
    manifest = json.loads(image.manifest)
    change(manifest)
    image.manifest = json.dumps(manifest).encode()
    return image


def layer_size(m):
    m["layers"][0]["size"] += 1


def config_size(m):
    m["config"]["size"] += 1


def digest_path(m):
    m["layers"][0]["digest"] = "sha256:../../../../etc/passwd"


def digest_upper(m):
    m["layers"][0]["digest"] = m["layers"][0]["digest"].upper()


def digest_md5(m):
    m["layers"][0]["digest"] = "md5:" + "0" * 32


def no_layers(m):
    m["layers"] = []


def more_layers(m):
    m["layers"].append(m["layers"][0])


def many_layers(m):
    m["layers"] *= 129


def foreign_layer(m):
    m["layers"][0]["urls"] = ["http://127.0.0.1:5001/v2/"]


def schema_1(m):
    m["schemaVersion"] = 1


def both_kinds(m):
    m["manifests"] = []


def no_config(m):
    del m["config"]


@test
def manifests_that_lie_are_refused_and_nothing_is_kept(k):  # T37, T38
    before, listed = layers(k), len(k.cri.ListImages().images)
    for change in (layer_size, config_size, digest_path, digest_upper, digest_md5, no_layers,
                   more_layers, many_layers, foreign_layer, schema_1, both_kinds, no_config):
        k.fake.put(damaged(change), "damaged")
        fails(lambda: k.pull(FAKE + "damaged"))
        equal(len(k.cri.ListImages().images), listed, f"images after {change.__name__}")
        until(f"nothing is left of {change.__name__}", lambda: layers(k) <= before)


def index_of(image):
    """An index of this one manifest, as bytes."""
    return json.dumps({"schemaVersion": 2, "mediaType": images.OCI + "index.v1+json", "manifests": [
        {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest),
         "platform": {"os": "linux", "architecture": images.architecture()}}]})


@test
def sizes_that_do_not_match_their_descriptors_are_refused(k):  # T37
    before = layers(k)

    def refuses(what, call):
        text = fails(call)
        check("size is" in text or "it sen" in text, f"what is said of a {what}: {text}")
        check(not status(k, FAKE + "size").id, f"nothing is listed after a {what}")
        until(f"nothing is left of a {what}", lambda: layers(k) <= before)

    for place in ("config", "layer", "manifest"):
        for change in (1, -1):
            image = small(f"size {place} {change}")
            manifest = json.loads(image.manifest)
            if place != "manifest":
                (manifest["layers"][0] if place == "layer" else manifest["config"])["size"] += change
            image.manifest = json.dumps(manifest).encode()
            index = json.loads(index_of(image))
            index["manifests"][0]["size"] += change if place == "manifest" else 0
            k.fake.put(image, "size")
            k.fake.manifests["size", "latest"] = (index["mediaType"], json.dumps(index).encode())
            refuses(f"{place} of a registry, {change}", lambda: k.pull(FAKE + "size"))
            files = images.oci_files(image, FAKE + "size:latest")
            if place == "manifest":
                own = json.loads(files["index.json"])
                own["manifests"][0]["size"] += change
                files["index.json"] = json.dumps(own).encode()
            path = images.write_tar(files, k.directory + "/size.tar")
            done = k.cli("load", path, check_status=False)
            equal(done.returncode, 1, f"exit code of a load: {place}, {change}: {done.stderr}")
            check(not status(k, FAKE + "size").id, f"nothing is listed after a load: {place}, {change}")
            until("nothing is left", lambda: layers(k) <= before)


@test
def bytes_that_do_not_match_their_digests_are_refused(k):  # T37
    before = layers(k)

    def flipped(data):
        return data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:]
    image = small("content", Tree().file("a", os.urandom(100000)))
    layer = images.digest(image.layers[0])
    rows = {"layer flipped": (layer, flipped(image.layers[0])),
            "layer of another time": (layer, image.layers[0][:4] + b"1234" + image.layers[0][8:]),
            "layer cut": (layer, image.layers[0][:-1000]),
            "layer longer": (layer, image.layers[0] + b"more"),
            "layer other": (layer, gzip.compress(b"x" * 100)),
            "layer empty": (layer, b""),
            "config flipped": (image.id, flipped(image.config))}
    for title, (name, data) in rows.items():
        k.fake.put(image, "content")
        k.fake.blobs[name] = data
        fails(lambda: k.pull(FAKE + "content"))
        check(not status(k, FAKE + "content").id, f"nothing is listed after {title}")
        until(f"nothing is left of {title}", lambda: layers(k) <= before)
    k.fake.put(image, "content")
    equal(k.pull(FAKE + "content"), image.id, "the true one, afterwards")
    drop(k, FAKE + "content")


@test
def a_wrong_diff_id_is_refused(k):  # T37
    before = layers(k)
    image = small("diff id")
    config = json.loads(image.config)
    config["rootfs"]["diff_ids"] = ["sha256:" + hashlib.sha256(b"no").hexdigest()]
    image.config = json.dumps(config).encode()
    image.manifest = json.dumps(image.manifest_object()).encode()
    k.fake.put(image, "diff-id")
    fails(lambda: k.pull(FAKE + "diff-id"))
    until("nothing is left", lambda: layers(k) <= before)


@test
def manifests_that_are_none_are_refused(k):  # T38, T41
    rows = {"empty": b"", "html": b"<html>login</html>", "json": b"[]", "cut": b'{"schemaVersion": 2',
            "large": b'{"schemaVersion": 2, "x": "' + b"a" * (5 << 20) + b'"}'}
    for title, body in rows.items():
        k.fake.manifests["none", title] = (images.OCI + "manifest.v1+json", body)
        fails(lambda title=title: k.pull(FAKE + "none:" + title))
    image = small("by digest")
    k.fake.put(image, "none")
    wrong = "sha256:" + "1" * 64
    k.fake.manifests["none", wrong] = (image.media_type, image.manifest)
    fails(lambda: k.pull(FAKE + "none@" + wrong))
    equal([n for n in names(k) if "none" in n], [], "names")


@test
def an_index_leads_to_the_image_for_this_machine(k):  # T38
    mine, other = small("mine"), small("other")
    k.fake.put(mine, "multi", "mine")
    k.fake.put(other, "multi", "other")

    def entry(image, machine):
        return {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest),
                "platform": {"os": "linux", "architecture": machine}}

    def put_index(*entries):
        kind = images.OCI + "index.v1+json"
        body = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
        for reference in ("latest", images.digest(body)):
            k.fake.manifests["multi", reference] = (kind, body)
    put_index(entry(other, "s390x"), entry(mine, images.architecture()))
    equal(k.pull(FAKE + "multi"), mine.id, "the image")
    drop(k, FAKE + "multi")
    put_index(entry(other, "s390x"))
    fails(lambda: k.pull(FAKE + "multi"))


@test
def a_bomb_is_stopped_at_the_limit_of_its_kind(k):
    """A gzip stream of zeros that claims a small layer: the diff id cannot hold, and it is not kept."""
    before = layers(k)
    bomb = gzip.compress(b"\0" * (64 << 20), 9)
    image = small("bomb")
    image.layers = [bomb]
    image.manifest = json.dumps(image.manifest_object()).encode()
    k.fake.put(image, "bomb")
    fails(lambda: k.pull(FAKE + "bomb"))
    until("nothing is left", lambda: layers(k) <= before)


@restarts
@test
def images_are_there_after_a_restart(k):
    before = sorted((i.id, tuple(sorted(i.repo_tags)), i.size) for i in k.cri.ListImages().images)
    k.restart()
    after = sorted((i.id, tuple(sorted(i.repo_tags)), i.size) for i in k.cri.ListImages().images)
    equal(after, before, "the list")


@restarts
@test
def the_store_survives_a_daemon_killed_in_the_middle_of_a_pull(k):  # T56
    image = small("killed")
    before = layers(k)
    k.fake.put(image, "killed")
    k.fake.gate.clear()
    k.fake.asked.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "killed"}, _timeout=DEADLINE)
    until("it waits", k.fake.asked.is_set)
    k.kill()
    call.exception()
    k.fake.gate.set()
    until("its helpers are gone", lambda: not [
        line for line in processes().values() if line.startswith(("krun fetch", "krun unpack"))])
    k.start()
    until("nothing is left", lambda: layers(k) <= before)
    equal(k.pull(FAKE + "killed"), image.id, "the second try")
    drop(k, FAKE + "killed")


@restarts
@test
def a_pull_goes_on_after_kill_9_with_what_had_not_come(k):  # T41, T56
    image = Image([Tree().file("large", os.urandom(3 << 20))], {"Cmd": ["/none"]}, compress=lambda b: b)
    layer, body = images.digest(image.layers[0]), image.layers[0]
    part, asked = f"{k.root}/blobs/{layer[7:]}.part", []
    k.fake.put(image, "resumed")
    k.fake.halves = {layer}
    k.fake.gate.clear()
    call = k.cri.begin("PullImage", image={"image": FAKE + "resumed"}, _timeout=DEADLINE)
    until("half of it is here", lambda: os.path.exists(part) and os.path.getsize(part) == len(body) // 2)
    k.process.kill()  # first of all: who hangs up cancels the pull
    k.kill()
    call.exception()
    k.fake.halves = set()
    k.fake.gate.set()

    def second_half(handler):
        if not handler.path.endswith(layer):
            return False
        asked.append(handler.headers.get("Range"))
        begin = int(asked[-1][len("bytes="):-1])
        return handler.answer(206, body[begin:],
                              Content_Range=f"bytes {begin}-{len(body) - 1}/{len(body)}")
    k.fake.trick = second_half
    k.start()
    try:
        equal(k.pull(FAKE + "resumed"), image.id, "the answer")
    finally:
        k.fake.trick = None
    equal(asked, [f"bytes={len(body) // 2}-"], "what was asked for")
    equal(os.listdir(k.root + "/blobs"), [], "what is left of the download")
    drop(k, FAKE + "resumed")
