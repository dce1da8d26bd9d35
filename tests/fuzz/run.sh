#!/bin/sh
# run.sh [SECONDS [TARGET...]]: fuzzes each target (all of fuzz.c's without one) for SECONDS, ten by
# default: with libFuzzer where clang has it, else with our own driver. FUZZ_DRIVER=gcc or clang
# chooses. The last line is `N passed, N failed, N skipped`. An input that breaks something is kept in
# FUZZ_OUT (default: a directory in TMPDIR, removed if nothing was found); what libFuzzer has learnt
# stays in FUZZ_CORPUS, if that is set.
set -u
cd "$(dirname "$0")/../.." || exit 1
seconds=${1:-10}
[ $# = 0 ] || shift
[ $# -gt 0 ] || set -- inflate zstd tar json toml manifest http http2 reference dns protobuf

driver=${FUZZ_DRIVER:-}
if [ -z "$driver" ]; then
    driver=gcc
    echo 'int LLVMFuzzerTestOneInput(const void *p, long n) { (void)p; return (int)(n & 0); }' |
        clang -x c -fsanitize=fuzzer,address -o /dev/null - 2>/dev/null && driver=clang
fi
make -s "tests/fuzz/fuzz-$driver" || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }

out=${FUZZ_OUT:-$(mktemp -d)}
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"; rmdir "$out" 2>/dev/null' EXIT
mkdir -p "$out"
tests/fuzz/seeds.py "$seeds" || { echo "0 passed, 1 failed, 0 skipped"; exit 1; }
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}quarantine_size_mb=16:allocator_may_return_null=1"

# libFuzzer puts what reaches new code into the first directory, and reads both. It says how far it
# has come in its last lines.
with_clang()
{
    corpus=${FUZZ_CORPUS:-$seeds/corpus}/$1
    mkdir -p "$corpus"
    FUZZ_TARGET=$1 tests/fuzz/fuzz-clang -max_total_time="$seconds" -max_len=65536 -timeout=30 \
        -rss_limit_mb=1500 -artifact_prefix="$out/$1-" -print_final_stats=1 -verbosity=1 \
        "$corpus" "$seeds/$1" >"$out/$1.log" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$1.log")
    reach=$(sed -n 's/.*cov: \([0-9]*\) ft: \([0-9]*\).*/\1 edges, \2 features/p' "$out/$1.log" | tail -n 1)
    echo "$1: ${runs:-?} executions in $seconds s, $reach"
}

with_gcc()
{
    tests/fuzz/fuzz-gcc "$1" "$seconds" "$out/$1-crash" "$seeds/$1" >"$out/$1.log" 2>&1
    status=$?
    grep "^$1: .* executions" "$out/$1.log"
}

# Targets run side by side, as many as there are processors; each says what it did when it is done.
passed=0 failed=0 started=0 batch=
for target; do
    { "with_$driver" "$target" >"$out/$target.said"; echo $status >"$out/$target.status"; } &
    batch="$batch $target" started=$((started + 1))
    [ $started = $# ] || [ $((started % $(nproc))) = 0 ] || continue
    wait
    for done in $batch; do
        cat "$out/$done.said"
        if [ "$(cat "$out/$done.status")" = 0 ]; then
            passed=$((passed + 1))
            rm -f "$out/$done.log"
        else
            failed=$((failed + 1))
            tail -n 40 "$out/$done.log"
            echo "FAILED $done: see $out"
        fi
        rm -f "$out/$done.said" "$out/$done.status"
    done
    batch=
done
echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
