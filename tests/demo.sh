#!/bin/sh
# `make demo`: the life of a pod from beginning to end, on directories of its own, with nothing but
# the krun that was built. Says what it does, does it, and at the end proves that nothing is left.
# As root, on any Linux with overlayfs and user space as small as you like.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "demo: containers need root: sudo make demo" >&2; exit 1; }

dir=$(mktemp -d /var/tmp/krun-demo.XXXXXX)
export KRUN_SOCKET="$dir/run/krun.sock"
daemon=
PATH="$PWD:$PATH"
[ -t 1 ] && bold=$(printf '\033[1m') plain=$(printf '\033[0m') || bold='' plain=''

say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }
die() { echo "demo: $*" >&2; exit 1; }

# All that a container runtime could leave behind on a machine, one thing a line.
traces() {
    cut -d' ' -f2,3 /proc/mounts | sort | sed 's/^/mount /'
    ls /run/netns 2>/dev/null | sed 's/^/network namespace /'
    ls /sys/class/net | sed 's/^/link /'
    find /sys/fs/cgroup -type d -path '*krun*' 2>/dev/null | sort | sed 's/^/cgroup /'
    for name in /proc/[0-9]*/comm; do
        read -r comm < "$name" 2>/dev/null || continue
        case $comm in krun) echo "process $comm ${name%/comm}" ;; esac
    done
    find "$dir/root/pods" "$dir/root/logs" "$dir/run" -mindepth 1 ! -path "$dir/run/pods" \
        ! -path "$dir/run/lock" ! -path "$dir/run/root.json" 2>/dev/null |
        sed 's/^/file /'
    return 0
}

cleanup() {
    status=$?
    trap - EXIT
    if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
        krun rm --force --all >/dev/null 2>&1 || true
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    [ $status = 0 ] || { echo "demo: FAILED; the daemon's log:" >&2; tail -n 20 "$dir/log" >&2; }
    rm -rf "$dir"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

start_daemon() {
    printf '%s$ %s%s\n' "$bold" "krun serve --config $dir/krun.toml &" "$plain"
    krun serve --config "$dir/krun.toml" >>"$dir/log" 2>&1 &
    daemon=$!
    tries=0
    until krun version >/dev/null 2>&1; do
        kill -0 "$daemon" 2>/dev/null || die "the daemon has ended: $(tail -n 1 "$dir/log")"
        tries=$((tries + 1)); [ $tries -lt 100 ] || die "the daemon does not answer"
        sleep 0.1
    done
}

lines() { krun logs greeter | wc -l; }
# Waits until the container has written more than $1 lines.
wait_for_lines() {
    tries=0
    while [ "$(lines)" -le "$1" ]; do
        tries=$((tries + 1)); [ $tries -lt 100 ] || die "the container has stopped writing"
        sleep 0.1
    done
}

traces > "$dir/before"
cat > "$dir/krun.toml" <<END
root = "$dir/root"
run = "$dir/run"
cni-conf-dir = "$dir/none"
missing-controllers = "ignore"
END
# The example as it is, but with its logs in our directory.
sed "s|/var/log/pods|$dir/log-of-pods|" examples/pod.json > "$dir/pod.json"

say "1. krun serve is the daemon: it waits for calls on a unix socket. Its state goes to $dir"
run cat "$dir/krun.toml"
start_daemon
run krun version

say "2. No registry is needed: krun's own program is an image, a root file system of one file"
run krun images

say "3. A pod is a set of namespaces. This one is made from a file, as a kubelet would ask for it"
run cat "$dir/pod.json"
run krun runp "$dir/pod.json"
run krun pods

say "4. A container is made in it (nothing runs yet), and then started"
run krun create hello examples/hello.json "$dir/pod.json"
run krun start greeter
wait_for_lines 2
run krun ps

{ echo "$dir"; krun pods -q; krun ps -q; } > "$dir/ids"

say "5. What it writes is in a log file, in the kubelet's format; krun logs reads it"
run krun logs greeter
run cat "$dir"/log-of-pods/hello/greeter.log

say "6. A second program runs in the same container: it sees the container's world, not ours"
run krun exec greeter /krun self env
run krun exec greeter /krun self print "an exit code comes back too:" && echo "exit code $?"

say "7. Its status, as a kubelet sees it"
printf '%s$ krun inspect greeter%s\n' "$bold" "$plain"
krun inspect greeter | sed -n '1,/"exitCode"/p'

say "8. The daemon is killed. The container does not notice: a monitor of the pod's own keeps it"
before=$(lines)
run kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
run krun ps || echo "(no daemon: no answer)"
log="$dir/log-of-pods/hello/greeter.log"
tries=0
while [ "$(wc -l < "$log")" -le $((before + 2)) ]; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || die "the container died with the daemon"
    sleep 0.1
done
echo "lines in the log: $before when it was killed, $(wc -l < "$log") now"

say "9. A new daemon finds everything as it is"
start_daemon
run krun ps
run krun logs --tail 3 greeter
[ "$(krun logs greeter | awk '{ if ($NF != NR) gaps++ } END { print gaps + 0 }')" = 0 ] || die "lines are missing"
echo "(the numbers have no gap)"

say "10. krun run does all these steps at once, and its exit code is the program's"
run krun run --rm --net none localhost/krun:self exit 7 && die "exit 7 came back as 0" || echo "exit code $?"

say "11. A memory limit"
if grep -qs memory /sys/fs/cgroup/cgroup.controllers; then
    run krun run --rm --net none --memory 32m localhost/krun:self memory 64m && die "the limit did not bite" \
        || echo "exit code $? (137 is 128 + SIGKILL: the kernel's OOM killer)"
else
    echo "(not here: this machine's cgroup v2 tree has no memory controller)"
fi

say "12. The container is stopped and all is removed"
run krun stop greeter
run krun ps --all
run krun rm --force hello
run krun pods
run kill "$daemon"
wait "$daemon" || true
daemon=

say "13. What is left of it: mounts, network namespaces, links, cgroups, processes, files of pods"
traces > "$dir/after"
left=$(grep -vxF -f "$dir/before" "$dir/after" || true)
if grep -q '^process krun\|^cgroup' "$dir/before"; then
    echo "(another krun works on this machine: only what bears the names of this demo is looked at)"
    left=$(echo "$left" | grep -F -f "$dir/ids" || true)
fi
[ -z "$left" ] || { echo "$left"; die "this is left behind"; }
echo "nothing"
