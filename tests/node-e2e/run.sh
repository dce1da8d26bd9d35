#!/bin/sh
# run.sh [GINKGO-FLAG...]: the node end-to-end suite of Kubernetes v1.36.3, unmodified, with its kubelet, against
# this krun; what `sudo make node-e2e` runs. Needs the network only to install what is missing (four Go programs,
# 230 MB, Debian packages); the suite itself sees nothing but the links of its sandbox. The last line is
# `N passed, N failed, N skipped`. For a part of it: run.sh --focus='Containers Lifecycle'
#
#   KRUN=FILE                the binary (krun at the top of the repository)
#   KRUN_NODE_E2E=DIR        the four programs, already built (e2e_node-1.36.3.test, kubelet-1.36.3, ...)
#   KRUN_NODE_E2E_PROCS=N    how many specs side by side (16)
#   KRUN_NO_INSTALL=1        refuses to install what is missing
#   KRUN_TEST_KEEP=1         keeps the directories, with the logs of all
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export PATH="$PATH:/usr/sbin:/sbin"
[ "$(id -u)" = 0 ] || { echo "node-e2e: containers need root: sudo make node-e2e" >&2; exit 1; }
cache=${KRUN_TEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/krun-tests}
export KRUN_TEST_CACHE="$cache"
[ "${KRUN_NODE_E2E:-}" ] || { "$here/../install.sh" node-e2e; KRUN_NODE_E2E=$cache; }
export KRUN_NODE_E2E
exec /usr/bin/python3 "$here/node_e2e.py" "$@"
