"""The images of the benchmark: a busybox with a file of log lines, and one big layer, gzip and zstd.

The big layer is made of this machine's own /usr/lib (real files compress as real files do) and kept in
the cache, for compressing takes longer than all that is measured.
"""
import os
import subprocess
import tarfile

import images

LINES = 80000  # of 129 bytes
BIG_BYTES = 266_000_000
BIG = {"gzip": ["gzip", "-6", "-n", "-c"], "zstd": ["zstd", "-3", "-q", "-c"]}


def log_lines():
    """What a web server might log: lines of one length, no two alike."""
    form = "%08d 2024-01-01T00:00:00.000Z INFO  handler=items method=GET path=/api/v1/items/%05d " \
           "status=200 bytes=%06d duration=%02dms peer=10.0.0.%03d"
    lines = (form % (i, i * 7919 % 100000, i * 31 % 1000000, i % 97, i % 250) for i in range(LINES))
    return "".join(line[:128].ljust(128, ".") + "\n" for line in lines).encode()


def big_tar(path):
    """Regular files of /usr/lib, in the order of their names, until there are enough bytes."""
    size = 0
    with tarfile.open(path + ".new", "w", format=tarfile.PAX_FORMAT) as tar:
        for directory, below, names in os.walk("/usr/lib"):
            below.sort()
            for name in sorted(names):
                source = os.path.join(directory, name)
                if os.path.islink(source) or not os.path.isfile(source) or size >= BIG_BYTES:
                    continue
                tar.add(source, "big" + source, recursive=False)
                size += os.path.getsize(source)
    os.rename(path + ".new", path)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def big(cache, kind):
    tar, packed = f"{cache}/bench-layer.tar", f"{cache}/bench-layer.{kind}"
    if not os.path.exists(tar):
        big_tar(tar)
    if not os.path.exists(packed):
        with open(tar, "rb") as source, open(packed + ".new", "wb") as out:
            subprocess.check_call(BIG[kind], stdin=source, stdout=out)
        os.rename(packed + ".new", packed)
    return images.Image([read(tar)], compress=lambda _: read(packed))


def push_all(address, cache, kinds=tuple(BIG)):
    """Gives the compressed sizes of the big layers, in bytes."""
    def lines(tree):
        tree.file("lines", log_lines())
    images.push(images.busybox(extra=lines), address, "bench/busybox", "1")
    sizes = {}
    for kind in kinds:
        image = big(cache, kind)
        sizes[kind] = len(image.layers[0])
        images.push(image, address, "bench/big-" + kind, "1")
    return sizes
