#!/bin/sh
# run.sh [OPTION...]: the benchmark; what `sudo make bench` runs. Starts a registry, makes images, starts
# krun on temporary directories in a sandbox, measures, and prints a table; the figures are also left
# in bench.json (--out FILE). Options go to bench.py: see its head. --compare FILE... only prints.
#
#   KRUN=FILE   the binary to measure (krun at the top of the repository)
#   KRUN_PEER=FILE  with --peer containerd: its program (Debian's)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$PATH:/usr/sbin:/sbin"
if [ "${1:-}" = --compare ]; then exec /usr/bin/python3 "$here/bench.py" "$@"; fi
[ "$(id -u)" = 0 ] || { echo "bench: containers need root: sudo make bench" >&2; exit 1; }
cache=${KRUN_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/krun-tests}
export KRUN_TEST_CACHE="$cache"
"$here/../install.sh" bench
${CC:-cc} -O2 -Wall -Wextra -o "$cache/limit" "$here/limit.c" -lz
exec /usr/bin/python3 "$here/../sandbox.py" /usr/bin/python3 "$here/bench.py" --limit "$cache/limit" "$@"
