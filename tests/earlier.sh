#!/bin/sh
# earlier.sh: builds krun as it was at earlier commits of this repository, for the tests of an upgrade and
# of the way back, and prints the binaries' paths with colons between them. What cannot be built is left
# out, and standard error says why. They are kept in $KRUN_TEST_CACHE, ~/.cache/krun-tests by default.
set -eu
cd "$(dirname "$0")/.."
cache=${KRUN_TEST_CACHE:-${HOME:-/root}/.cache/krun-tests}

# One line for each: a version that somebody may still run.
# - 9932240: before the records of pods and their monitors were reworked
commits='
993224099713cba6b27e82807dfaa8bc2a5df434
'

# The clone may be another user's: git(1) asks to be told that this is meant (safe.directory).
git() { command git -c safe.directory='*' "$@"; }

# build COMMIT FILE: with the Makefile of that commit, and nothing of the make that runs us.
build()
{
    work=$(mktemp -d)
    status=0
    { git archive "$1" krun.c krun.h Makefile | tar -x -C "$work" &&
      env -u MAKEFLAGS -u MAKELEVEL make -s -C "$work" krun && mv "$work/krun" "$2.$$" && mv "$2.$$" "$2"; } >&2 || status=1
    rm -rf "$work"
    return $status
}

mkdir -p "$cache"
paths=
for commit in $commits; do
    binary=$cache/krun-$commit
    if [ ! -x "$binary" ]; then
        git cat-file -e "$commit:krun.c" 2>/dev/null ||
            { echo "earlier: $commit: this is no git clone, or a shallow one: it has no such commit" >&2; continue; }
        build "$commit" "$binary" || { echo "earlier: $commit: cannot be built" >&2; continue; }
    fi
    paths=$paths:$binary
done
echo "${paths#:}"
