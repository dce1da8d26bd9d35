#!/bin/sh
# full.sh: everything there is; what `sudo make full` runs. Some hours. KRUN_NO_INSTALL=1 refuses to install
# what is missing. The last line is `N passed, N failed, N skipped`.
set -u
cd "$(dirname "$0")/.." || exit 1
[ "$(id -u)" = 0 ] || { echo "full: containers need root: sudo make full" >&2; exit 1; }
. tests/totals.sh
limit=14400 # four hours are a hang

part "make check" make check
step "In a virtual machine" env KRUN_VM_TIMEOUT=7200 tests/vm/run
part "Conformance" make conformance
part "Kubernetes' node suite" make node-e2e
part "Three hundred rounds of kills" make crash ROUNDS=300
part "Each protection has a test" make protections
part "Fuzzing, five minutes a target" make fuzz FUZZ=300
step "What the other architectures need" tests/install.sh cross && {
    step "Each architecture builds" make cross
    step "No cross compiler warns" env CROSS=1 tests/warnings.sh
}
step "Benchmarks" make bench
finish
