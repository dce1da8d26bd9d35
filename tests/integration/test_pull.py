"""How an image comes: who may say no to it, and what is seen of it meanwhile.

The daemon of this group asks a program about every image (image-verify); it is a shell script that a
test rewrites, and allows everything at the beginning of each."""
import os
import stat

import images
import registry
from harness import check, equal, holds, processes, refused, restarts, test, until
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


def before_each(k):
    verify(k)
    k.fake.gate.set()
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
