#!/bin/sh
# check.sh: all tests of this machine, one after the other; what `sudo make check` runs. The last line
# is `N passed, N failed, N skipped`, and the exit status tells whether none failed.
#
#   KRUN_NO_INSTALL=1   refuses to install what is missing
#   KRUN_TESTDATA=DIR   public test vectors, which are not part of the repository
set -u
cd "$(dirname "$0")/.." || exit 1
export PATH="$PATH:/usr/sbin:/sbin" HOME="${HOME:-/root}"
umask 022
cache=${KRUN_TEST_CACHE:-${HOME:-/root}/.cache/krun-tests}
export KRUN_TEST_CACHE="$cache"
[ "$(id -u)" = 0 ] || { echo "check: containers need root: sudo make check" >&2; exit 1; }
if [ -z "${KRUN_TESTDATA:-}" ] && [ -d ../shared/testdata ]; then
    KRUN_TESTDATA=$(cd ../shared/testdata && pwd)
    export KRUN_TESTDATA
fi

. tests/totals.sh

step "What the tests need" tests/install.sh check || finish
step "krun is built" make krun || finish
step "The book's structure" make structure
step "No compiler warns" make warnings
step "Unit tests, plain and under sanitizers" make unit
step "Fuzzing, six seconds a target" tests/fuzz/run.sh 6
step "The demo" tests/demo.sh
step "Integration tests" env KRUN_CRICTL="$cache/crictl-1.36.0" KRUN_TEST_LANES=2 tests/integration/run.py
finish
