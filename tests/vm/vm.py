#!/usr/bin/python3
"""vm.py [OPTION]... [--] COMMAND [ARG]...: runs a command as root in a virtual machine with a real kernel.

The machine boots Debian's own kernel in QEMU (no KVM needed) with a pure cgroup v2 tree and all of
its controllers, which a test host may not have. It is made of Debian packages, once, and kept in a
cache; every run starts from the same disk, and what it changes is gone afterwards. It has no
network card. The command sees the shared directory as its working directory.

  --arch A      amd64 (default), arm64 or riscv64: another one runs emulated
  --share DIR   a copy of DIR is the working directory /share
  --with P,...  packages besides those that every machine has
  --env N=V     a variable for the command; may be repeated
  --timeout S   ends the machine after S seconds (600)
  --memory MB   (1024)
  --console F   keeps the kernel's messages in F

Standard output is the command's output and errors, and so is the exit status; 124 says that time ran
out, 125 that there was no answer. Cache: KRUN_VM_CACHE, else ~/.cache/krun-vm.
"""
import argparse
import fcntl
import glob
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

CACHE = os.environ.get("KRUN_VM_CACHE", os.path.expanduser("~/.cache/krun-vm"))
BASE = ["base-files", "base-passwd", "libc-bin", "busybox-static", "dash", "kmod", "iproute2",
        "iptables", "nftables", "containernetworking-plugins", "procps", "coreutils", "grep", "sed",
        "findutils", "mount", "util-linux", "mawk", "hostname", "gzip", "tar", "bash", "diffutils"]
# Debian's name, QEMU's program and machine, the serial console, the kernel package, the release.
ARCHES = {
    "amd64":   ("qemu-system-x86_64", "pc", "max", "ttyS0", "linux-image-cloud-amd64", None),
    "arm64":   ("qemu-system-aarch64", "virt", "max,pauth-impdef=on", "ttyAMA0", "linux-image-cloud-arm64", None),
    "riscv64": ("qemu-system-riscv64", "virt", "max", "ttyS0", "linux-image-riscv64", "trixie"),
}
# Modules of the kernel that pods need, or that the machine needs to come up (paths below kernel/).
NEEDED = re.compile(r"^kernel/(fs/(overlayfs|ext4|jbd2|fuse|nls|configfs)[/.]|net/(802|bridge|core|ipv4|ipv6|llc|netfilter"
                    r"|sched|unix|xfrm|packet)/|drivers/(net/(veth|tun|tap|dummy|macvlan|ipvlan|ifb)|block/(loop|virtio_blk)"
                    r"|virtio/|char/(virtio_console|hw_random/virtio-rng))|crypto/crc32c|arch/[^/]*/crypto/crc32c"
                    r"|lib/(libcrc32c|zstd|crc))")
LOADED = ("overlay veth bridge br_netfilter tun nf_tables nft_compat nft_chain_nat xt_MASQUERADE xt_conntrack "
          "xt_comment xt_addrtype xt_mark xt_nat").split()

# PID 1 of the initial memory disk: finds the real root and hands over to it.
FIRST_INIT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
modprobe -a virtio_pci virtio_blk virtio_console ext4 crc32c 2>/dev/null
tries=0
until mount -t ext4 -o noatime /dev/vda /root 2>/dev/null; do
    tries=$((tries + 1)); [ $tries -lt 200 ] || poweroff -f
    usleep 20000
done
cp /command /root/command
mount --move /dev /root/dev
umount /proc
exec switch_root /root /usr/sbin/init
"""

# PID 1 of the machine: mounts what a system manager would, runs the command, says how it ended.
INIT = """#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 KRUN_VM=1
mount -t proc -o nosuid,nodev,noexec proc /proc
mount --make-rshared /
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /tmp
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
ip link set lo up
hostname krun-vm
modprobe -a @LOADED@ 2>/dev/null
for p in /sys/class/virtio-ports/*; do
    case $(cat $p/name) in out) out=/dev/${p##*/};; status) status=/dev/${p##*/};; esac
done
cd /root
[ ! -b /dev/vdb ] || { mkdir -p /share; mount -t ext4 -o noatime /dev/vdb /share && cd /share; }
/bin/sh /command </dev/null >$out 2>&1
echo $? >$status
sync
poweroff -f
"""


def say(text):
    print(f"vm: {text}", file=sys.stderr, flush=True)


def run(*command, **how):
    how.setdefault("check", True)
    return subprocess.run(command, **how)


# -- the disk, from packages -----------------------------------------------------------------------

def sources(suite):
    """Lines for apt: what this machine's own apt uses, of another release if need be."""
    text = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)",
               "Created-By: Packages", stdout=subprocess.PIPE, text=True).stdout
    lines = []
    for origin, component, codename, uri in (line.split() for line in sorted(set(text.splitlines()))):
        if origin == "Debian" and component == "main":
            lines.append((codename, uri))
    if not lines:
        sys.exit("vm: apt knows no Debian packages: run apt-get update")
    if suite:
        plain = [uri for codename, uri in lines if "-" not in codename]
        lines = [(suite, plain[0])]
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    signed = f"[signed-by={key}] " if os.path.exists(key) else ""
    return "".join(f"deb {signed}{uri} {codename} main\n" for codename, uri in lines)


def fetch_packages(work, arch, names, suite):
    """Downloads the packages with all they depend on, as if for an empty machine; returns the files."""
    apt = os.path.join(work, "apt")
    for d in ("lists/partial", "archives/partial", "none"):
        os.makedirs(os.path.join(apt, d))
    open(os.path.join(apt, "status"), "w").close()
    with open(os.path.join(apt, "sources.list"), "w") as f:
        f.write(sources(suite))
    settings = {
        "APT::Architecture": arch, "APT::Install-Recommends": "false", "APT::Sandbox::User": "",
        "Acquire::Languages": "none", "Dir::State": apt, "Dir::State::lists": apt + "/lists",
        "Dir::State::status": apt + "/status", "Dir::Cache": apt, "Dir::Cache::archives": apt + "/archives",
        "Dir::Etc::sourcelist": apt + "/sources.list", "Dir::Etc::sourceparts": apt + "/none",
        "Dir::Etc::preferences": apt + "/none", "Dir::Etc::preferencesparts": apt + "/none", "Dir::Log": apt,
    }
    config = os.path.join(apt, "apt.conf")
    with open(config, "w") as f:
        f.write("".join(f'{k} "{v}";\n' for k, v in settings.items()))
        f.write(f'APT::Architectures {{ "{arch}"; }};\n')
    how = {"env": dict(os.environ, APT_CONFIG=config), "stdout": subprocess.DEVNULL}
    run("apt-get", "-q", "update", **how)
    kernel = ARCHES[arch][4]
    run("apt-get", "-q", "-y", "--download-only", "install", *names, **how)
    # The kernel itself, without the tools that make a boot disk for it: we make our own.
    how["stdout"] = subprocess.PIPE
    shown = run("apt-cache", "show", "--no-all-versions", kernel, text=True, **how).stdout
    real = re.search(r"^Depends:.*?(linux-image-[^ ,]+)", shown, re.M).group(1)
    how["stdout"] = subprocess.DEVNULL
    run("apt-get", "-q", "download", real, cwd=apt + "/archives", **how)
    return sorted(glob.glob(apt + "/archives/*.deb"))


def unpack(package, where):
    tar = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    run("tar", "-x", "-p", "-C", where, "--no-same-owner", "--keep-directory-symlink", "--exclude=./usr/share/doc/*",
        "--exclude=./usr/share/man/*", "--exclude=./usr/share/locale/*", "--exclude=./usr/share/info/*",
        stdin=tar.stdout)
    if tar.wait():
        sys.exit(f"vm: cannot unpack {package}")


def copy_modules(kernel, version, to, wanted):
    """Copies the modules whose path `wanted` accepts, and those that they depend on."""
    source, target = f"{kernel}/lib/modules/{version}", f"{to}/lib/modules/{version}"
    needed = set()
    with open(source + "/modules.dep") as f:
        for line in f:
            path, _, rest = line.partition(":")
            if wanted(path):
                needed.update([path, *rest.split()])
    for path in needed:
        os.makedirs(os.path.dirname(f"{target}/{path}"), exist_ok=True)
        shutil.copy(f"{source}/{path}", f"{target}/{path}")
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(f"{source}/{name}", target)
    for packed in glob.glob(target + "/**/*.ko.xz", recursive=True):
        run("xz", "-d", packed)
    run("depmod", "-b", to, version)


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)


def furnish(root):
    """What the packages' own scripts would have set up, as far as tests need it."""
    etc = os.path.join(root, "etc")
    for name in ("passwd", "group"):
        shutil.copy(f"{root}/usr/share/base-passwd/{name}.master", f"{etc}/{name}")
    write(etc + "/hostname", "krun-vm\n")
    write(etc + "/hosts", "127.0.0.1 localhost krun-vm\n::1 localhost\n")
    write(etc + "/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    write(etc + "/resolv.conf", "")
    os.makedirs(root + "/var/lib/cni", exist_ok=True)
    os.makedirs(root + "/opt/cni", exist_ok=True)
    os.symlink("/usr/lib/cni", root + "/opt/cni/bin")
    for name in ("iptables", "ip6tables"):
        for form in ("", "-save", "-restore"):
            if os.path.exists(f"{root}/usr/sbin/{name}-nft{form}"):
                os.symlink(f"{name}-nft{form}", f"{root}/usr/sbin/{name}{form}")
    for name, target in (("sh", "dash"), ("awk", "mawk")):
        if os.path.lexists(f"{root}/usr/bin/{name}"):
            os.unlink(f"{root}/usr/bin/{name}")
        os.symlink(target, f"{root}/usr/bin/{name}")
    for name in ("usleep", "poweroff", "unzip", "vi", "ping"):
        if not os.path.lexists(f"{root}/usr/bin/{name}"):
            os.symlink("busybox", f"{root}/usr/bin/{name}")
    write(root + "/usr/sbin/init", INIT.replace("@LOADED@", " ".join(LOADED)), 0o755)


def archive(tree, out):
    names = run("find", ".", cwd=tree, stdout=subprocess.PIPE).stdout
    with open(out, "wb") as f:
        run("cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet", cwd=tree, input=names, stdout=f)


def build(arch, extra, to):
    suite = ARCHES[arch][5]
    say(f"making the {arch} machine ({to})")
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        root, kernel, first = (os.path.join(work, n) for n in ("root", "kernel", "first"))
        for d in ("usr/bin", "usr/sbin", "usr/lib", "etc", "dev", "proc", "sys", "run", "tmp", "root", "var/lib", "var/tmp", "share"):
            os.makedirs(os.path.join(root, d))
        for link in ("bin", "sbin", "lib"):
            os.symlink("usr/" + link, os.path.join(root, link))
        if arch == "amd64":
            os.mkdir(root + "/usr/lib64")
            os.symlink("usr/lib64", root + "/lib64")
        os.mkdir(kernel)
        for package in fetch_packages(work, arch, BASE + extra, suite):
            unpack(package, kernel if "/linux-image-" in package else root)
        vmlinuz = glob.glob(kernel + "/boot/vmlinu[xz]-*")[0]
        version = os.path.basename(vmlinuz).split("-", 1)[1]
        if not os.path.exists(kernel + "/lib/modules"):
            os.symlink("usr/lib", kernel + "/lib")
        run("depmod", "-b", kernel, version)
        copy_modules(kernel, version, root, NEEDED.match)
        furnish(root)
        for d in ("bin", "proc", "dev", "root"):
            os.makedirs(os.path.join(first, d))
        shutil.copy(root + "/usr/bin/busybox", first + "/bin/busybox")
        boot = re.compile(r".*/(virtio_blk|virtio_pci\w*|virtio_console|ext4|crc32c\w*)\.ko")
        copy_modules(kernel, version, first, boot.match)
        write(first + "/init", FIRST_INIT, 0o755)
        os.makedirs(to + ".new", exist_ok=True)
        archive(first, to + ".new/initrd")
        shutil.copy(vmlinuz, to + ".new/vmlinuz")
        run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", root,
            to + ".new/root.ext4", "4G")
        shutil.rmtree(to, ignore_errors=True)
        os.rename(to + ".new", to)


def machine(arch, extra):
    """The directory with the machine's kernel, initial disk and root; built if it is not there."""
    with open(__file__, "rb") as f:
        recipe = hashlib.sha256(f.read() + " ".join([arch, *sorted(extra)]).encode()).hexdigest()[:12]
    os.makedirs(CACHE, exist_ok=True)
    to = os.path.join(CACHE, f"{arch}-{recipe}")
    with open(to + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(to):
            build(arch, extra, to)
    return to


# -- one run ---------------------------------------------------------------------------------------

def disk_of(directory, out):
    size = int(run("du", "-sm", directory, stdout=subprocess.PIPE, text=True).stdout.split()[0])
    run("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d", directory, out, f"{size * 5 // 4 + 1024}M")


def boot(options, kit, work):
    qemu, board, cpu, console, _, _ = ARCHES[options.arch]
    with open(work + "/add-command", "w") as f:
        f.write("".join(f"export {shlex.quote(v)}\n" for v in options.env))
        f.write("exec " + shlex.join(options.command) + "\n")
    os.mkdir(work + "/add")
    os.rename(work + "/add-command", work + "/add/command")
    archive(work + "/add", work + "/add.cpio")  # a second archive after the first is unpacked over it
    with open(work + "/initrd", "wb") as f:
        for part in (kit + "/initrd", work + "/add.cpio"):
            with open(part, "rb") as p:
                shutil.copyfileobj(p, f)
    command = [qemu, "-M", board, "-cpu", cpu, "-accel", os.environ.get("KRUN_VM_ACCEL", "tcg,thread=multi"), "-smp", "2",
               "-m", str(options.memory), "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
               "-no-reboot", "-nic", "none", "-kernel", kit + "/vmlinuz", "-initrd", work + "/initrd",
               "-append", f"console={console} panic=-1 quiet loglevel=4",
               "-serial", "file:" + (options.console or work + "/console"),
               "-drive", f"file={kit}/root.ext4,format=raw,if=none,id=root,snapshot=on,cache=unsafe",
               "-device", "virtio-blk-pci,drive=root,addr=5", "-device", "virtio-serial-pci",
               "-chardev", f"file,id=out,path={work}/out", "-device", "virtserialport,chardev=out,name=out",
               "-chardev", f"file,id=status,path={work}/status", "-device", "virtserialport,chardev=status,name=status"]
    if options.share:
        disk_of(options.share, work + "/share.ext4")
        command += ["-drive", f"file={work}/share.ext4,format=raw,if=none,id=share,cache=unsafe",
                    "-device", "virtio-blk-pci,drive=share,addr=6"]
    os.mkfifo(work + "/out")
    reader = subprocess.Popen(["cat", work + "/out"])
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=options.timeout)
    except subprocess.TimeoutExpired:
        say(f"no answer in {options.timeout} s")
        return 124
    finally:
        os.close(os.open(work + "/out", os.O_RDWR))  # lets the reader end even if QEMU never opened it
        reader.wait()
    try:
        with open(work + "/status") as f:
            return int(f.read())
    except (OSError, ValueError):
        with open(options.console or work + "/console", errors="replace") as f:
            say("the machine ended without an answer; its last words:\n" + f.read()[-4000:])
        return 125


def main():
    here = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHES, default=here)
    parser.add_argument("--share")
    parser.add_argument("--with", dest="extra", default="")
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--timeout", type=int, default=600)
    parser.add_argument("--memory", type=int, default=1024)
    parser.add_argument("--console")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command:
        parser.error("a command is required")
    kit = machine(options.arch, [p for p in options.extra.split(",") if p])
    with tempfile.TemporaryDirectory(prefix="krun-vm-") as work:
        return boot(options, kit, work)


if __name__ == "__main__":
    sys.exit(main())
