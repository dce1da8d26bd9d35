#!/bin/sh
# check.sh: all tests of this machine, one after the other; what `sudo make check` runs. The last line
# is `N passed, N failed, N skipped`, and the exit status tells whether none failed.
#
#   KRUN_NO_INSTALL=1   refuses to install what is missing
#   KRUN_TESTDATA=DIR   public test vectors, which are not part of the repository
set -u
cd "$(dirname "$0")/.." || exit 1
export PATH="$PATH:/usr/sbin:/sbin"
cache=${KRUN_TEST_CACHE:-${HOME:-/root}/.cache/krun-tests}
export KRUN_TEST_CACHE="$cache"
[ "$(id -u)" = 0 ] || { echo "check: containers need root: sudo make check" >&2; exit 1; }
if [ -z "${KRUN_TESTDATA:-}" ] && [ -d ../shared/testdata ]; then
    KRUN_TESTDATA=$(cd ../shared/testdata && pwd)
    export KRUN_TESTDATA
fi

passed=0 failed=0 skipped=0 bad=
output=$(mktemp)
trap 'rm -f "$output" "$output.status"' EXIT

# step TITLE COMMAND...: runs it and adds up the totals that it prints. One that prints none counts as
# one test; one that fails without saying so in its totals counts as one failure. Half an hour is a
# hang.
step()
{
    title=$1
    shift
    echo "== $title"
    { timeout -k 10 1800 "$@" 2>&1; echo $? >"$output.status"; } | tee "$output"
    read -r status <"$output.status"
    set -- $(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$output" |
        awk '{ p += $1; f += $2; s += $3 } END { if (NR) print p, f, s }')
    [ $# = 3 ] || set -- $((status == 0)) 0 0
    [ "$status" = 0 ] || [ "$2" -gt 0 ] || set -- "$1" 1 "$3"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    [ "$2" = 0 ] || bad="$bad
  $title"
    return "$status"
}

step "What the tests need" tests/install.sh check || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
step "krun is built" make krun || { echo "$passed passed, $failed failed, $skipped skipped"; exit 1; }
step "The book's structure" make structure
step "No compiler warns" make warnings
step "Unit tests, plain and under sanitizers" make unit
step "Fuzzing, six seconds a target" tests/fuzz/run.sh 6
step "The demo" tests/demo.sh
step "Integration tests" env KRUN_CRICTL="$cache/crictl-1.36.0" tests/integration/run.py
[ -z "$bad" ] || echo "failed:$bad"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
