"""The images that the integration tests expect in the registry on 127.0.0.1:5000."""
import images
from images import Image, Tree, busybox

CONFIGURED = {
    "User": "alice:staff", "Env": ["PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"],
    "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["from", "cmd"], "WorkingDir": "/home/alice",
    "StopSignal": "SIGUSR1", "Volumes": {"/data": {}}, "Labels": {"org.example.a": "b"},
}


def volume_content(tree):
    tree.directory("data", 0o755, (1000, 1000)).file("data/seed", "planted", owner=(1000, 1000))


def layered():
    """Three layers: the second hides, replaces and empties, the third puts back."""
    base = images.busybox_tree()
    base.directory("d").file("d/kept", "1").file("d/hidden", "1").file("d/replaced", "old")
    base.directory("o").file("o/below", "1").directory("o/sub").file("o/sub/deep", "1")
    base.directory("gone").file("gone/x", "1").directory("swap").file("swap/x", "1")
    second = Tree().directory("d").file("d/.wh.hidden").file("d/replaced", "new")
    second.directory("o").file("o/.wh..wh..opq").file("o/above", "2").file(".wh.gone")
    second.file(".wh.swap").file("swap", "now a file")
    third = Tree().directory("gone").file("gone/again", "3")
    third.file("suid", "#!/bin/sh\n", 0o4755).directory("sticky", 0o1777)
    return Image([base, second, third], {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})


def all_images():
    """(repository, tag) to image."""
    plain = busybox()
    made = {
        ("test/busybox", "1"): plain,
        ("test/busybox", "latest"): plain,
        ("test/same", "2"): plain,
        ("test/plain-layer", "1"): busybox({"Labels": {"layer": "tar"}}, compress=lambda b: b),
        ("test/docker", "1"): busybox({"Labels": {"schema": "docker"}}, docker=True),
        ("test/configured", "1"): busybox(CONFIGURED, extra=volume_content),
        ("test/layered", "1"): layered(),
        ("test/entry-only", "1"): busybox({"Entrypoint": ["/bin/echo", "entry"], "Cmd": []}),
    }
    users = {"uid": "1234", "uid-gid": "1234:555", "name": "alice", "name-gid": "alice:555",
             "name-group": "bob:audio", "unknown": "nosuchuser", "too-big": "4294967296",
             "negative": "-1"}
    for name, user in users.items():
        made["test/user-" + name, "1"] = busybox({"User": user})
    return made
