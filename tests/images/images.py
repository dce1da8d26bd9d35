"""Images for the tests, made from files of this machine (Debian's busybox-static above all).

An image is bytes in memory: layers, a config, a manifest. It can be written as an OCI layout or a
docker-archive, in a directory or a tar, and pushed to a registry over plain HTTP. Formats:
github.com/opencontainers/image-spec and, for the docker-archive, what `docker save` writes.
"""
import gzip
import hashlib
import http.client
import io
import json
import os
import subprocess
import tarfile

BUSYBOX = "/bin/busybox"
OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
CREATED = "2024-01-01T00:00:00Z"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


# -- layers ---------------------------------------------------------------------------------------

class Tree:
    """The entries of one layer, in the order in which they are added."""

    def __init__(self):
        self.entries = []

    def add(self, path, kind=tarfile.REGTYPE, data=b"", mode=0o644, owner=(0, 0), link="", **more):
        entry = tarfile.TarInfo(path)
        entry.type, entry.size, entry.mode, entry.linkname = kind, len(data), mode, link
        entry.uid, entry.gid = owner
        entry.mtime = 1700000000
        entry.pax_headers = more.get("pax", {})
        self.entries.append((entry, data))
        return self

    def file(self, path, data=b"", mode=0o644, owner=(0, 0), **more):
        return self.add(path, data=data.encode() if isinstance(data, str) else data, mode=mode,
                        owner=owner, **more)

    def copy(self, path, source):
        with open(source, "rb") as f:
            return self.file(path, f.read(), os.stat(source).st_mode & 0o777)

    def directory(self, path, mode=0o755, owner=(0, 0), **more):
        return self.add(path, tarfile.DIRTYPE, mode=mode, owner=owner, **more)

    def link(self, path, target):
        return self.add(path, tarfile.SYMTYPE, mode=0o777, link=target)

    def hard_link(self, path, target, mode=0o755):
        return self.add(path, tarfile.LNKTYPE, mode=mode, link=target)

    def tar(self):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as t:
            for entry, data in self.entries:
                t.addfile(entry, io.BytesIO(data))
        return out.getvalue()


def applets():
    """The names that busybox answers to."""
    names = subprocess.run([BUSYBOX, "--list"], stdout=subprocess.PIPE, check=True).stdout
    return [n for n in names.decode().split() if n != "busybox"]


PASSWD = """root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
alice:x:1000:1000::/home/alice:/bin/sh
bob:x:1001:1000::/home/bob:/bin/sh
1234:x:0:0:a name of digits:/:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = """root:x:0:
www-data:x:33:
alice:x:1000:
staff:x:50:alice,bob
audio:x:29:alice
nogroup:x:65534:
"""


def busybox_tree():
    """A small system: busybox under all its names, users and groups, the usual directories."""
    tree = Tree()
    for path, mode in (("bin", 0o755), ("etc", 0o755), ("dev", 0o755), ("proc", 0o555),
                       ("sys", 0o555), ("tmp", 0o1777), ("root", 0o700), ("home", 0o755),
                       ("usr", 0o755), ("var", 0o755), ("run", 0o755)):
        tree.directory(path, mode)
    tree.directory("home/alice", 0o755, (1000, 1000))
    tree.link("sbin", "bin").link("usr/bin", "../bin").link("usr/sbin", "../bin")
    tree.link("var/run", "../run").directory("var/www")
    tree.copy("bin/busybox", BUSYBOX)
    for name in applets():
        tree.hard_link("bin/" + name, "bin/busybox")
    tree.file("etc/passwd", PASSWD).file("etc/group", GROUP)
    return tree


# -- images ---------------------------------------------------------------------------------------

def architecture():
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return names.get(os.uname().machine, os.uname().machine)


class Image:
    """trees: bottom first. compress: a function from the tar's bytes to what is stored, by layer."""

    def __init__(self, trees, config=None, docker=False, compress=None):
        self.tars = [t.tar() if isinstance(t, Tree) else t for t in trees]
        compress = compress or (lambda data: gzip.compress(data, 1, mtime=0))
        self.layers = [compress(t) for t in self.tars]
        self.config = json.dumps({
            "architecture": architecture(), "os": "linux", "created": CREATED,
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(t) for t in self.tars]},
            "history": [{"created": CREATED, "created_by": "tests"} for _ in self.tars],
        }, sort_keys=True).encode()
        self.docker = docker
        self.manifest = json.dumps(self.manifest_object(), sort_keys=True).encode()

    def media(self, oci, docker):
        return DOCKER + docker if self.docker else OCI + oci

    @property
    def media_type(self):
        return self.media("manifest.v1+json", "distribution.manifest.v2+json")

    def layer_type(self, data):
        if data[:2] == b"\x1f\x8b":
            return self.media("layer.v1.tar+gzip", "image.rootfs.diff.tar.gzip")
        if data[:4] == b"\x28\xb5\x2f\xfd":
            return OCI + "layer.v1.tar+zstd"
        return self.media("layer.v1.tar", "image.rootfs.diff.tar")

    def manifest_object(self):
        def descriptor(media, data):
            return {"mediaType": media, "digest": digest(data), "size": len(data)}
        return {"schemaVersion": 2, "mediaType": self.media_type,
                "config": descriptor(self.media("config.v1+json", "container.image.v1+json"),
                                     self.config),
                "layers": [descriptor(self.layer_type(b), b) for b in self.layers]}

    @property
    def id(self):
        return digest(self.config)

    @property
    def digest(self):
        return digest(self.manifest)

    def blobs(self):
        return {digest(b): b for b in [self.config, *self.layers]}


def busybox(config=None, extra=None, **options):
    """The tests' everyday image."""
    tree = busybox_tree()
    if extra:
        extra(tree)
    defaults = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}
    return Image([tree], dict(defaults, **(config or {})), **options)


# -- on disk --------------------------------------------------------------------------------------

def oci_files(image, name):
    """Path to bytes of an OCI layout with this one image."""
    files = {f"blobs/sha256/{d[7:]}": b for d, b in image.blobs().items()}
    files[f"blobs/sha256/{image.digest[7:]}"] = image.manifest
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [{
        "mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": name}}]}).encode()
    return files


def docker_files(image, names):
    """Path to bytes of what `docker save` writes."""
    files = {image.id[7:] + ".json": image.config}
    layers = []
    for tar in image.tars:
        layers.append(hashlib.sha256(tar).hexdigest() + "/layer.tar")
        files[layers[-1]] = tar
    files["manifest.json"] = json.dumps([{"Config": image.id[7:] + ".json", "RepoTags": names,
                                          "Layers": layers}]).encode()
    return files


def write_directory(files, path):
    for name, data in files.items():
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as f:
            f.write(data)
    return path


def write_tar(files, path):
    tree = Tree()
    for name, data in files.items():
        tree.file(name, data)
    with open(path, "wb") as f:
        f.write(tree.tar())
    return path


# -- to a registry --------------------------------------------------------------------------------

def push(image, registry, repository, tag="latest"):
    """Pushes over plain HTTP (github.com/opencontainers/distribution-spec)."""
    connection = http.client.HTTPConnection(registry, timeout=60)

    def request(method, path, body=None, **headers):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 300 and method != "HEAD":
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:200]}")
        return answer

    for name, data in image.blobs().items():
        if request("HEAD", f"/v2/{repository}/blobs/{name}").status == 200:
            continue
        place = request("POST", f"/v2/{repository}/blobs/uploads/").headers["Location"]
        place = place[place.index("/v2/"):]
        request("PUT", place + ("&" if "?" in place else "?") + "digest=" + name, data,
                **{"Content-Type": "application/octet-stream"})
    request("PUT", f"/v2/{repository}/manifests/{tag}", image.manifest,
            **{"Content-Type": image.media_type})
    connection.close()
    return f"{registry}/{repository}:{tag}"
