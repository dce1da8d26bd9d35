#!/bin/sh
# install.sh [check|vm|conformance|node-e2e|bench|cross]...: installs what these need and this machine lacks, from
# Debian's packages, and says what. With KRUN_NO_INSTALL=1 it only says, and fails. Default: check.
#
# crictl, critest and the node suite are Go programs that want a newer Go than Debian's. Any Go can fetch that one:
# it is published as the module golang.org/toolchain, with a checksum like every module
# has. Built programs are kept in $KRUN_TEST_CACHE, ~/.cache/krun-tests by default.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${KRUN_TEST_CACHE:-${HOME:-/root}/.cache/krun-tests}
go_wanted=1.26.2 # what conformance/go.mod says
tools=sigs.k8s.io/cri-tools/cmd
export DEBIAN_FRONTEND=noninteractive HOME="${HOME:-/root}"
umask 022

say() { echo "install: $*"; }
die() { echo "install: $*" >&2; exit 1; }
have_command() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }
have_python() { /usr/bin/python3 -c "import $1" 2>/dev/null; }

# need PACKAGE CHECK...: notes the package unless the check succeeds.
missing=
need()
{
    package=$1
    shift
    case " $missing " in *" $package "*) return ;; esac
    "$@" || missing="$missing $package"
}

need_for_check()
{
    need universal-ctags have_command ctags
    need clang have_command clang
    need libclang-rt-14-dev has_libfuzzer
    need zstd have_command zstd
    need musl-tools have_command musl-gcc
    need python3 test -x /usr/bin/python3
    need python3-grpcio have_python grpc
    need python3-protobuf have_python google.protobuf
    need protobuf-compiler have_command protoc
    need docker-registry have_command docker-registry
    need apache2-utils have_command htpasswd
    need openssl have_command openssl
    need squid have_command squid
    need tinyproxy have_command tinyproxy
    need containernetworking-plugins test -x /usr/lib/cni/bridge
    need skopeo have_command skopeo
    need umoci have_command umoci
    need buildah have_command buildah
    need busybox-static static_busybox
    need iproute2 have_command ip
    need iptables have_command iptables
    need util-linux have_command unshare
    need mount have_command mount
    need podman have_command podman
}

# Debian 12's clang is 14; the package has its sanitizers too.
has_libfuzzer() { ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a >/dev/null 2>&1; }

# Debian's other package of that name needs libraries, which no container has.
static_busybox() { test -x /bin/busybox && ! ldd /bin/busybox >/dev/null 2>&1; }

need_for_vm()
{
    case $(uname -m) in
        aarch64) need qemu-system-arm have_command qemu-system-aarch64 ;;
        *) need qemu-system-x86 have_command qemu-system-x86_64 ;;
    esac
    need kmod have_command depmod
    need cpio have_command cpio
    need e2fsprogs have_command mke2fs
    need xz-utils have_command xz
}

need_for_conformance() { need_for_check; }

need_for_node_e2e()
{
    need_for_check
    need bash-static have_command bash-static
    need curl have_command curl
    need netcat-openbsd have_command nc.openbsd
    need hostname have_command hostname
}

need_for_bench() { need_for_check; need zstd have_command zstd; need zlib1g-dev test -e /usr/include/zlib.h; }

need_for_cross()
{
    need gcc-aarch64-linux-gnu have_command aarch64-linux-gnu-gcc
    need libc6-dev-arm64-cross test -e /usr/aarch64-linux-gnu/include/stdio.h
    need gcc-riscv64-linux-gnu have_command riscv64-linux-gnu-gcc
    need libc6-dev-riscv64-cross test -e /usr/riscv64-linux-gnu/include/stdio.h
}

# Installing docker-registry must not start one: policy-rc.d(5) is how Debian is told so.
without_services()
{
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] && { "$@"; return; }
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    status=0
    "$@" || status=$?
    rm -f $policy
    return $status
}

# A new machine may be busy with updates of its own, and a mirror may hang up: apt waits, and tries again.
apt() { apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

install_packages()
{
    [ "$missing" ] || return 0
    [ "${KRUN_NO_INSTALL:-0}" != 1 ] || die "missing, and KRUN_NO_INSTALL=1 forbids to install:$missing"
    [ "$(id -u)" = 0 ] || die "missing, and only root can install:$missing"
    have_command apt-get || die "missing, and this is no Debian:$missing"
    say "packages:$missing"
    # shellcheck disable=SC2086
    without_services apt -y install --no-install-recommends $missing >"$log" 2>&1 ||
        { apt update >"$log" 2>&1 &&
          without_services apt -y install --no-install-recommends $missing >"$log" 2>&1; } ||
        { tail -n 20 "$log" >&2; die "apt-get cannot install:$missing"; }
}

# True if version $1 is at least version $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Prints the path of a Go that is new enough; fetches it if there is none.
find_go()
{
    for go in "$cache/go/bin/go" go /usr/local/go/bin/go; do
        found=$("$go" env GOVERSION 2>/dev/null) || continue
        at_least "${found#go}" $go_wanted && { echo "$go"; return; }
    done
    # Debian's golang-go only recommends the certificates that https wants.
    missing=
    have_command go || missing=golang-go
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
    install_packages >&2
    case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
    module=golang.org/toolchain@v0.0.1-go$go_wanted.linux-$arch
    say "Go $go_wanted, as the module $module" >&2
    work=$(mktemp -d)
    (cd "$work" && echo 'module fetch' >go.mod &&
     GOFLAGS=-modcacherw GOTOOLCHAIN=local GOPATH="$work/path" go mod download "$module") >"$log" 2>&1 ||
        { cat "$log" >&2; die "cannot fetch $module"; }
    rm -rf "$cache/go"
    mv "$work/path/pkg/mod/$module" "$cache/go"
    rm -rf "$work"
    chmod -R u+rwX,go+rX "$cache/go"
    chmod 755 "$cache"/go/bin/* "$cache"/go/pkg/tool/*/* # a module's files have no execute bit
    echo "$cache/go/bin/go"
}

# build SUITE NAME PACKAGE GO-COMMAND...: a program of the Kubernetes project, unmodified, of the version that
# SUITE/go.mod names and with the sources whose hashes SUITE/go.sum has. cgo=1: with the C compiler, too.
cgo=0
build()
{
    suite=$1 name=$2 package=$3
    shift 3
    [ ! -x "$cache/$name" ] || return 0
    [ "${KRUN_NO_INSTALL:-0}" != 1 ] || die "missing, and KRUN_NO_INSTALL=1 forbids to build: $name"
    go=$(find_go)
    say "$name, built by $go"
    (cd "$here/$suite" && GOTOOLCHAIN=local GOFLAGS=-mod=readonly CGO_ENABLED=$cgo \
        "$go" "$@" -o "$cache/$name.new" "$package") >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; die "cannot build $name"; }
    mv "$cache/$name.new" "$cache/$name"
}

mkdir -p "$cache"
log=$cache/install.log
[ $# -gt 0 ] || set -- check
for part; do
    case $part in
        check) need_for_check ;;
        vm) need_for_vm ;;
        conformance) need_for_conformance ;;
        node-e2e) need_for_node_e2e ;;
        bench) need_for_bench ;;
        cross) need_for_cross ;;
        *) die "what is $part?" ;;
    esac
done
install_packages
for part; do
    case $part in
        check | conformance) build conformance crictl-1.36.0 $tools/crictl build -trimpath ;;
    esac
    case $part in
        conformance) build conformance critest-1.36.0 $tools/critest test -c -trimpath ;;
        node-e2e)
            # Without go vet: what it says of the suite is not ours to mend, and it reads all packages again.
            # A static agnhost runs in images that have no libraries.
            static="-s -w -linkmode external -extldflags -static"
            cgo=1
            build node-e2e e2e_node-1.36.3.test k8s.io/kubernetes/test/e2e_node test -c -vet=off -ldflags="-s -w"
            build node-e2e kubelet-1.36.3 k8s.io/kubernetes/cmd/kubelet build -ldflags="-s -w"
            build node-e2e agnhost-1.36.3 k8s.io/kubernetes/test/images/agnhost build -ldflags="$static"
            build node-e2e ginkgo-2.28.1 github.com/onsi/ginkgo/v2/ginkgo build -ldflags="-s -w"
            cgo=0
            ;;
    esac
done
