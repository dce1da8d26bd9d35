# totals.sh: read by the scripts that run one suite after the other and add up what each says. Each suite
# ends with `N passed, N failed, N skipped`.
passed=0 failed=0 skipped=0 bad=
output=$(mktemp)
trap 'rm -f "$output" "$output.status"' EXIT

# step TITLE COMMAND...: runs it and adds up the totals that it prints. One that prints none counts as
# one test; one that fails without saying so in its totals counts as one failure. Half an hour is a
# hang, unless `limit` says otherwise.
step() { counted 100000 "$@"; }

# part TITLE COMMAND...: the same for a command that adds up for itself: its last totals count.
part() { counted 1 "$@"; }

counted()
{
    most=$1 title=$2 began=$(date +%s)
    shift 2
    echo "== $title"
    { timeout -k 10 "${limit:-1800}" "$@" 2>&1; echo $? >"$output.status"; } | tee "$output"
    read -r status <"$output.status"
    set -- $(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$output" |
        tail -n "$most" | awk '{ p += $1; f += $2; s += $3 } END { if (NR) print p, f, s }')
    [ $# = 3 ] || set -- $((status == 0)) 0 0
    [ "$status" = 0 ] || [ "$2" -gt 0 ] || set -- "$1" 1 "$3"
    passed=$((passed + $1)) failed=$((failed + $2)) skipped=$((skipped + $3))
    [ "$2" = 0 ] || bad="$bad
  $title"
    echo "-- $title: $(($(date +%s) - began)) s"
    return "$status"
}

# finish: what failed, and the totals in the last line. The exit status tells whether none failed.
finish()
{
    [ -z "$bad" ] || echo "failed:$bad"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}
