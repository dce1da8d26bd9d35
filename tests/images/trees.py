"""Trees of files that have all that a layer can say about a file, and what can be seen of such a tree.

Works on bytes: a file's name need not be UTF-8. Needs root.
"""
import hashlib
import os
import stat
import struct

# struct vfs_cap_data, revision 2: effective, CAP_NET_RAW permitted (capabilities(7)).
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
# acl(5) as the kernel keeps it: user::rw-, user 1000:r--, group::r--, mask::r--, other::r--
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 0xFFFFFFFF, 2, 4, 1000, 4, 4, 0xFFFFFFFF,
                  0x10, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF)


# -- looking --------------------------------------------------------------------------------------

def fingerprint(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def attributes(path):
    """Extended attributes but overlay's own, which are how a layer is kept and not what it says."""
    names = [n for n in os.listxattr(path, follow_symlinks=False)
             if not n.startswith("trusted.overlay.")]
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in names}


def look(path):
    """All of one inode that an archive can keep."""
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    seen = {"type": oct(kind), "mode": oct(stat.S_IMODE(st.st_mode)), "owner": (st.st_uid, st.st_gid),
            "mtime": st.st_mtime_ns, "xattrs": attributes(path)}
    if kind != stat.S_IFDIR:
        seen["links"] = st.st_nlink
    if kind == stat.S_IFREG:
        seen.update(size=st.st_size, content=fingerprint(path))
    if kind == stat.S_IFLNK:
        seen["target"] = os.readlink(path)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        seen["device"] = (os.major(st.st_rdev), os.minor(st.st_rdev))
    return seen


def listing(top):
    """Path below `top` to what is seen there; b"." is the top itself. Depth first, without recursion:
    a tree may be deeper than Python's stack."""
    top, found, todo = os.fsencode(top), {}, [b"."]
    while todo:
        path = todo.pop()
        full = os.path.join(top, path)
        found[path] = look(full)
        if found[path]["type"] == oct(stat.S_IFDIR):
            todo += [n if path == b"." else os.path.join(path, n) for n in os.listdir(full)]
    return found


def hard_links(top):
    """The sets of names that are one inode, sorted."""
    same = {}
    for path in listing(top):
        st = os.lstat(os.path.join(os.fsencode(top), path))
        if not stat.S_ISDIR(st.st_mode):
            same.setdefault(st.st_ino, []).append(path)
    return sorted(sorted(names) for names in same.values() if len(names) > 1)


def differences(got, want, leave_out=()):
    """Sentences about where two listings differ. leave_out: (path or None, member) pairs."""
    said = []
    for path in sorted(set(got) | set(want)):
        if path not in got or path not in want:
            said.append(f"{path!r} is {'missing' if path in want else 'too much'}")
            continue
        for member in sorted(set(got[path]) | set(want[path])):
            one, other = got[path].get(member), want[path].get(member)
            if one != other and not {(path, member), (None, member)} & set(leave_out):
                said.append(f"{path!r}: {member} is {one!r}, not {other!r}")
    return said


# -- making ---------------------------------------------------------------------------------------

class Maker:
    """Makes files below `top`. Times come last, in settle(): what is made in a directory changes its."""

    def __init__(self, top):
        self.top, self.times = os.fsencode(top), {}

    def at(self, path):
        return os.path.join(self.top, path if isinstance(path, bytes) else os.fsencode(path))

    def dress(self, path, mode=None, owner=(0, 0), mtime=1600000000 * 10**9, xattrs=()):
        full = self.at(path)
        os.chown(full, *owner, follow_symlinks=False)
        if mode is not None:
            os.chmod(full, mode)
        for name, value in dict(xattrs).items():
            os.setxattr(full, name, value, follow_symlinks=False)
        self.times[full] = mtime
        return self

    def file(self, path, data=b"", mode=0o644, **more):
        with open(self.at(path), "wb") as f:
            f.write(data)
        return self.dress(path, mode, **more)

    def directory(self, path, mode=0o755, **more):
        os.makedirs(self.at(path), exist_ok=True)
        return self.dress(path, mode, **more)

    def link(self, path, target, **more):
        os.symlink(target, self.at(path))
        return self.dress(path, None, **more)

    def same(self, path, target):
        os.link(self.at(target), self.at(path), follow_symlinks=False)
        return self

    def node(self, path, mode, device=0, **more):
        os.mknod(self.at(path), mode, device)
        return self.dress(path, stat.S_IMODE(mode), **more)

    def settle(self):
        for full, mtime in self.times.items():
            if os.path.lexists(full):
                os.utime(full, ns=(mtime, mtime), follow_symlinks=False)


def make_modes(m):
    for mode in (0o000, 0o400, 0o644, 0o755, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777):
        m.file(f"mode-{mode:04o}", b"m", mode)
        m.directory(f"dir-{mode:04o}", mode)
    m.directory("read-only", 0o555).file("read-only/inside", b"in", 0o444)
    m.directory("read-only/deeper", 0o500, owner=(7, 8)).file("read-only/deeper/x", b"x", 0o400)
    m.directory("empty", 0o711).directory("tmp", 0o1777)


def make_owners(m):
    for n in (1, 1000, 65534, 2097151, 2097152, 4000000000, 4294967294):
        m.file(f"owner-{n}", b"o", owner=(n, 4294967294 - n if n < 4000000000 else n))
    m.directory("owned", owner=(123456789, 5)).link("owned/link", "nowhere", owner=(99, 2097153))


def make_times(m):
    for title, ns in (("epoch", 0), ("before", -1), ("long-before", -1500000000 * 10**9 + 250000000),
                      ("one", 1), ("fraction", 1234567890 * 10**9 + 123456789),
                      ("far", 8589934592 * 10**9), ("far-fraction", 9000000000 * 10**9 + 1)):
        m.file("time-" + title, b"t", mtime=ns)
        m.directory("time-dir-" + title, mtime=ns).file(f"time-dir-{title}/x", b"x", mtime=5)
        m.link("time-link-" + title, "x", mtime=ns)


def make_kinds(m):
    m.link("link-relative", "mode-0644").link("link-absolute", "/etc/passwd").link("link-self", "link-self")
    m.link("link-up", "../../../../../tmp").link("link-long", "t" * 255 + "/" + "u" * 200)
    m.node("fifo", stat.S_IFIFO | 0o620, owner=(3, 4)).node("fifo-sticky", stat.S_IFIFO | 0o1600)
    m.node("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)).node("loop", stat.S_IFBLK | 0o660,
                                                                os.makedev(7, 300))
    m.file("hard-a", b"one inode", 0o4711).directory("hard").same("hard/b", "hard-a").same("hard-c", "hard-a")
    m.link("hard-link", "hard-a").same("hard/link", "hard-link")
    m.node("hard-fifo", stat.S_IFIFO | 0o600).same("hard/fifo", "hard-fifo")
    m.file("capable", b"#!/bin/sh\n", 0o755, xattrs={"security.capability": NET_RAW})
    m.file("attributes", b"a", xattrs={"user.plain": b"text", "user.binary": b"\0\n=\xff",
                                       "user." + "n" * 200: b"v" * 1000})
    m.directory("attributes-dir", xattrs={"user.d": b"1"})
    m.file("acl", b"a", 0o644, xattrs={"system.posix_acl_access": ACL})


def make_names(m):
    for n in (99, 100, 101, 155, 156, 254, 255):
        m.file(f"{n}-".ljust(n, "n"), b"n").directory(f"d{n}-".ljust(n, "d"))
    deep = "/".join(["deep"] + ["p" * 50] * 19)
    m.directory(deep).file(deep + "/file", b"down here").link(deep + "/link", "q" * 300)
    m.same("same-as-deep", deep + "/file")
    for name in (b"\xc3\xa9t\xc3\xa9", "日本語".encode(), b"not\xffutf8", b"new\nline", b"esc\x1b[1m",
                 b"blank blank", b"-dash", b"back\\slash", b"...", b"..data", b"q'\"`$", b"=equals="):
        m.file(name, name)


def make_content(m):
    m.file("large", bytes(range(256)) * 16384).file("nothing").file("block", b"b" * 512)
    with open(m.at("sparse"), "wb") as f:
        f.seek(20 << 20)
        f.write(b"end")
        f.truncate(30 << 20)
    m.dress("sparse", 0o600)
    m.directory("many")
    for n in range(300):
        m.file(f"many/{n}", b"%d" % n)


def make_everything(top):
    """A first layer. All kinds, names, owners, times; and what a second one will change."""
    m = Maker(top)
    for make in (make_modes, make_owners, make_times, make_kinds, make_names, make_content):
        make(m)
    for name in ("goes", "swap-dir", "swap-link-dir", "anew", "mode-only", "kept"):
        m.directory(f"change/{name}/sub", 0o755).file(f"change/{name}/a", b"a").file(f"change/{name}/sub/b", b"b")
    m.file("change/file-goes", b"1").file("change/swap-file", b"1").file("change/grows", b"1")
    m.link("change/swap-link", "kept").file("change/one", b"1").same("change/two", "change/one")
    m.directory("change", 0o750).directory(".", 0o751, mtime=1500000000 * 10**9 + 7)
    m.settle()


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            remove(os.path.join(path, name))
        os.rmdir(path)
    else:
        os.unlink(path)


def change_everything(top):
    """A second layer: what it deletes, replaces, empties, and changes without touching content."""
    m = Maker(top)
    for gone in ("goes", "swap-dir", "swap-link-dir", "anew", "file-goes", "swap-file", "swap-link", "two"):
        remove(m.at("change/" + gone))
    m.file("change/swap-dir", b"now a file").link("change/swap-link-dir", "kept")
    m.directory("change/swap-file").file("change/swap-file/x", b"in what was a file")
    m.directory("change/swap-link", 0o700).file("change/swap-link/x", b"in what was a link")
    m.directory("change/anew", 0o711, owner=(5, 5)).file("change/anew/c", b"c")
    m.file("change/grows", b"1" * 100000).file("change/kept/new", b"n").dress("change/kept", 0o755)
    m.dress("change/mode-only", 0o700, owner=(42, 43)).dress("attributes-dir", 0o755, xattrs={"user.d": b"2"})
    m.dress("change/one", 0o600).file("one-more", b"2", 0o2750, owner=(1, 1))
    remove(m.at("many/7"))
    m.dress("many", 0o755, mtime=1700000001 * 10**9 + 3).dress("change", 0o750, mtime=77)
    m.dress(".", 0o751, mtime=1500000001 * 10**9 + 9)
    m.settle()
