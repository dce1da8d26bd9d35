#!/bin/sh
# run.sh [CRITEST-FLAG...]: the Kubernetes project's critest v1.36.0, unmodified, against this krun; what
# `sudo make conformance` runs. Needs the network only to install what is missing (a Go to build critest
# with, Debian packages); the test itself sees nothing but loopback. The last line is
# `N passed, N failed, N skipped`. For a part of it: run.sh --ginkgo.focus='NamespaceOption'
#
#   KRUN=FILE            the binary (krun at the top of the repository)
#   KRUN_CRITEST=FILE    a critest that is already built
#   KRUN_NO_INSTALL=1    refuses to install what is missing
#   KRUN_TEST_KEEP=1     keeps the directories, with the daemon's log
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$PATH:/usr/sbin:/sbin"
[ "$(id -u)" = 0 ] || { echo "conformance: containers need root: sudo make conformance" >&2; exit 1; }
cache=${KRUN_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/krun-tests}
export KRUN_TEST_CACHE="$cache"
[ -x "${KRUN_CRITEST:-}" ] || { "$here/../install.sh" conformance; KRUN_CRITEST=$cache/critest-1.36.0; }

# fetch PACKAGE PROGRAM: unpacks a Debian package below the cache. It is not installed: no web server must
# be left running, and busybox is an alternative to busybox-static, which other tests want.
fetch()
{
    [ ! -x "$cache/$1/$2" ] || return 0
    [ "${KRUN_NO_INSTALL:-0}" != 1 ] || { echo "conformance: no $1, and not allowed to fetch it" >&2; exit 1; }
    echo "conformance: $1, unpacked below $cache"
    work=$(mktemp -d)
    chmod 755 "$work"
    (cd "$work" && { apt-get -q download "$1" || { apt-get -q update && apt-get -q download "$1"; }; } \
        >apt.log 2>&1) || { tail -n 5 "$work/apt.log" >&2; exit 1; }
    dpkg-deb -x "$work/$1"_*.deb "$cache/$1"
    rm -rf "$work"
}
fetch nginx usr/sbin/nginx
fetch busybox bin/busybox
export KRUN_CRITEST KRUN_NGINX="$cache/nginx/usr/sbin/nginx" KRUN_BUSYBOX="$cache/busybox/bin/busybox"
exec /usr/bin/python3 "$here/../sandbox.py" /usr/bin/python3 "$here/conformance.py" "$@"
