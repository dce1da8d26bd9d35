"""The images of the benchmark: a busybox with a file of log lines, one big layer (gzip and zstd), and
the same files in five layers.

The files are this machine's own from /usr/lib (real files compress as real files do). What was made is
kept in the cache, for compressing takes longer than all that is measured.
"""
import os
import subprocess
import tarfile

import images

LINES = 80000  # of 129 bytes
BIG_BYTES = 266_000_000
# Of one file. The largest: so that the sum comes out near BIG_BYTES on every machine. The smallest: ext4
# makes files slowly where many were removed just now, and the pulls before this one were removed.
SMALLEST, LARGEST = 100_000, 20_000_000
GZIP, ZSTD = ["gzip", "-6", "-n", "-c"], ["zstd", "-3", "-q", "-c"]
# Of each image: how many layers, and what packs them.
BIG = {"gzip": (1, GZIP), "zstd": (1, ZSTD), "five": (5, GZIP)}


def log_lines():
    """What a web server might log: lines of one length, no two alike."""
    form = "%08d 2024-01-01T00:00:00.000Z INFO  handler=items method=GET path=/api/v1/items/%05d " \
           "status=200 bytes=%06d duration=%02dms peer=10.0.0.%03d"
    lines = (form % (i, i * 7919 % 100000, i * 31 % 1000000, i % 97, i % 250) for i in range(LINES))
    return "".join(line[:128].ljust(128, ".") + "\n" for line in lines).encode()


def files():
    """Regular files of /usr/lib with their sizes, in the order of their names, until there are enough."""
    left = BIG_BYTES
    for directory, below, names in os.walk("/usr/lib"):
        below.sort()
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            size = os.path.getsize(path)
            if SMALLEST <= size <= min(LARGEST, left):
                left -= size
                yield path, size


def big_tars(cache, count):
    """The files spread over `count` archives of about one size; gives the archives' paths."""
    paths = [f"{cache}/bench-{count}-{i}.tar" for i in range(count)]
    if all(map(os.path.exists, paths)):
        return paths
    tars = [tarfile.open(p + ".new", "w", format=tarfile.PAX_FORMAT) for p in paths]
    sizes = [0] * count
    for path, size in files():
        i = sizes.index(min(sizes))
        tars[i].add(path, "big" + path, recursive=False)
        sizes[i] += size
    for tar, path in zip(tars, paths):
        tar.close()
        os.rename(path + ".new", path)
    return paths


def read(path):
    with open(path, "rb") as f:
        return f.read()


def packed(tar, command):
    path = f"{tar}.{command[0]}"
    if not os.path.exists(path):
        with open(tar, "rb") as source, open(path + ".new", "wb") as out:
            subprocess.check_call(command, stdin=source, stdout=out)
        os.rename(path + ".new", path)
    return read(path)


def big(cache, kind):
    count, command = BIG[kind]
    tars = big_tars(cache, count)
    layers = iter([packed(tar, command) for tar in tars])
    return images.Image([read(tar) for tar in tars], compress=lambda _: next(layers))


def push_all(address, cache, kinds=tuple(BIG)):
    """Gives the compressed sizes of the big layers, in bytes."""
    def lines(tree):
        tree.file("lines", log_lines())
    images.push(images.busybox(extra=lines), address, "bench/busybox", "1")
    sizes = {}
    for kind in kinds:
        image = big(cache, kind)
        sizes[kind] = sum(map(len, image.layers))
        images.push(image, address, "bench/big-" + kind, "1")
    return sizes
