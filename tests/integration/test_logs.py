"""Container logs in the CRI format: `<RFC 3339 time> <stdout|stderr> <P|F> <bytes>`."""
import os
import re
import stat
import subprocess

from harness import DEADLINE, check, equal, holds, refused, test, until

RECORD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(Z|[+-]\d\d:\d\d) (stdout|stderr) [PF] [^\n]*\n")


@test
def the_file_is_there_when_StartContainer_answers(k):
    pod = k.pod()
    for _ in range(10):
        container = pod.start("sleep", "98765")
        check(os.path.isfile(container.log_path), container.log_path)
        equal(container.status().log_path, container.log_path, "log_path")


@test
def each_line_is_one_exact_record(k):
    container = k.pod().start("sh", "-c",
                              "echo one; echo two >&2; echo; echo '  a  b '; printf 'x\\ty\\n'")
    container.exited()
    with open(container.log_path, "rb") as f:
        data = f.read()
    check(re.fullmatch(b"(?:" + RECORD.pattern + b")*", data),
          f"every record is well formed: {data!r}")
    equal([(r.stream, r.tag, r.text) for r in container.log() if r.stream == "stdout"],
          [("stdout", "F", t) for t in (b"one", b"", b"  a  b ", b"x\ty")], "stdout")
    equal([r.text for r in container.log() if r.stream == "stderr"], [b"two"], "stderr")
    times = [r.time for r in container.log() if r.stream == "stdout"]
    equal(times, sorted(times), "times")


@test
def a_long_line_comes_in_parts_of_at_most_16_KiB(k):
    container = k.pod().start("sh", "-c", "head -c 100000 /dev/zero | tr '\\0' a; echo; echo end")
    container.exited()
    records = container.log()
    check(all(len(r.text) <= 16384 for r in records), "no part is longer")
    equal({r.tag for r in records[:-2]}, {"P"}, "tags of the parts but the last")
    equal((records[-1].tag, records[-1].text), ("F", b"end"), "the last record")
    equal(container.output(), "a" * 100000 + "\nend\n", "all parts together")


@test
def an_unterminated_end_is_kept(k):
    container = k.pod().start("printf", "no newline")
    container.exited()
    last = container.log()[-1]
    equal((last.tag, last.text), ("P", b"no newline"), "the last record")


@test
def bytes_that_are_no_text_are_kept(k):
    container = k.pod().start("sh", "-c", "printf '\\000\\001\\377\\376 \\033[1m\\n'")
    container.exited()
    equal(container.log()[0].text, b"\x00\x01\xff\xfe \x1b[1m", "the record")


@test
def a_ttys_carriage_returns_are_dropped(k):
    container = k.pod().start("sh", "-c", "echo one; echo two >&2", tty=True)
    container.exited()
    equal([(r.stream, r.text) for r in container.log()], [("stdout", b"one"), ("stdout", b"two")],
          "records")


@test
def much_output_arrives_whole_and_in_order(k):
    container = k.pod().start("sh", "-c", "seq 1 300000")
    container.exited()
    equal(container.output(), "".join(f"{n}\n" for n in range(1, 300001)), "the output")


@test
def the_last_line_of_a_container_that_ends_is_in_the_log_before_it_is_EXITED(k):
    pod = k.pod()
    for n in range(10):
        container = pod.start("echo", f"last words {n}")
        container.exited()
        equal(container.output(), f"last words {n}\n", "the output")


@test
def without_a_log_path_nothing_is_written_and_the_container_runs(k):
    pod = k.pod()
    container = pod.create("sh", "-c", "echo lost; exit 6", log_path="")
    container.start()
    equal(container.exited().exit_code, 6, "exit code")
    equal(os.listdir(pod.config["log_directory"]), [], "files")


@test
def a_log_path_cannot_leave_the_log_directory(k):  # T49, CVE-2025-0750
    pod = k.pod()
    for path in ("../escaped.log", "a/../../escaped.log", "x\ny.log"):
        refused("INVALID_ARGUMENT", lambda path=path: pod.create(log_path=path), "log_path")
    check(not os.path.exists(k.logs + "/escaped.log"), "no file was made")


@test
def a_planted_link_or_fifo_is_not_written_through(k):  # T49, T55, CVE-2026-53489
    pod = k.pod()
    victim = k.directory + "/victim"
    for plant in (lambda p: os.symlink(victim, p), os.mkfifo):
        container = pod.create("echo", "text")
        plant(container.log_path)
        try:
            container.start()
        except Exception:  # pylint: disable=broad-except
            pass  # refusing is as good
        else:
            container.exited()
        check(not os.path.exists(victim), "the link's target was not made")
        os.unlink(container.log_path)
        pod.start("echo", "more").exited()  # the monitor does not wait for a reader of the FIFO


@test
def the_file_is_a_plain_one_and_not_for_everybody(k):  # R7
    container = k.pod().start("echo", "x")
    info = os.stat(container.log_path)
    check(stat.S_ISREG(info.st_mode), "a regular file")
    equal(oct(info.st_mode & 0o777), "0o640", "mode")


COUNT = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.002; done"]


def numbers(*paths):
    out = []
    for path in paths:
        with open(path, "rb") as f:
            out += [int(line.split(b" ", 3)[3]) for line in f.read().splitlines()]
    return out


def whole(found):
    equal(found, list(range(1, len(found) + 1)), "the numbers")


@test
def after_ReopenContainerLog_nothing_reaches_the_old_file_and_nothing_is_lost(k):
    container = k.pod().start(*COUNT)
    until("it counts", lambda: len(numbers(container.log_path)) > 20)
    old = container.log_path + ".20240101-000000"
    os.rename(container.log_path, old)
    k.cri.ReopenContainerLog(container_id=container.id)
    check(os.path.isfile(container.log_path), "the new file is there when the call answers")
    size = os.path.getsize(old)
    until("it goes on counting", lambda: len(numbers(container.log_path)) > 20)
    equal(os.path.getsize(old), size, "size of the old file")
    container.stop()
    whole(numbers(old, container.log_path))


@test
def many_rotations_lose_nothing(k):  # T55
    container = k.pod().start(*COUNT)
    parts = []
    for n in range(30):
        before = os.path.getsize(container.log_path)
        until("it grows", lambda before=before: os.path.getsize(container.log_path) > before)
        parts.append(f"{container.log_path}.{n:03}")
        os.rename(container.log_path, parts[-1])
        k.cri.ReopenContainerLog(container_id=container.id)
    container.stop()
    whole(numbers(*parts, container.log_path))


@test
def ReopenContainerLog_appends_to_a_file_that_is_still_there(k):
    container = k.pod().start(*COUNT)
    until("it counts", lambda: len(numbers(container.log_path)) > 20)
    k.cri.ReopenContainerLog(container_id=container.id)
    size = os.path.getsize(container.log_path)
    until("it goes on", lambda: os.path.getsize(container.log_path) > size)
    container.stop()
    whole(numbers(container.log_path))


@test
def ReopenContainerLog_of_what_does_not_run_fails_and_makes_no_file(k):
    container = k.pod().start("true")
    container.exited()
    os.unlink(container.log_path)
    try:
        k.cri.ReopenContainerLog(container_id=container.id)
        check(False, "it succeeded")
    except Exception as error:  # pylint: disable=broad-except
        check(not isinstance(error, AssertionError), str(error))
        check(hasattr(error, "code") and error.code().name != "NOT_FOUND", str(error))
    check(not os.path.exists(container.log_path), "no file was made")


@test
def a_rotation_that_fails_is_undone_and_loses_nothing(k):
    """The kubelet renames the file, and renames it back when ReopenContainerLog fails."""
    container = k.pod().start("sh", "-c", "for i in 1 2; do until [ -e /tmp/$i ]; do sleep 0.05; done; echo $i; done; sleep 1000")
    os.rename(container.log_path, container.log_path + ".old")
    os.mkdir(container.log_path)
    refused("INVALID_ARGUMENT", lambda: k.cri.ReopenContainerLog(container_id=container.id), "is not a regular file")
    container.sh("touch /tmp/1")
    os.rmdir(container.log_path)
    os.rename(container.log_path + ".old", container.log_path)
    container.sh("touch /tmp/2")
    until("both lines are in the log", lambda: container.output() == "1\n2\n")


@test
def ReopenContainerLog_answers_while_the_container_is_being_stopped(k):
    container = k.pod().start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    until("it traps", lambda: "up" in container.output())
    stop = k.cri.begin("StopContainer", container_id=container.id, timeout=3600,
                       _timeout=20 * DEADLINE)
    k.cri.ReopenContainerLog(container_id=container.id)
    check(not stop.done(), "the stop still waits")
    k.cri.StopContainer(container_id=container.id, timeout=0)
    stop.result()


@test
def a_log_that_cannot_be_written_does_not_stop_the_container(k):  # T55, R19
    pod = k.pod()
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=64k", "small",
                           pod.config["log_directory"]])
    try:
        container = pod.start("sh", "-c", "seq 1 100000; exit 3")
        equal(container.exited().exit_code, 3, "exit code")
        holds("1\n2\n3\n", container.output(), "what did fit")
        k.remove_all()
    finally:
        subprocess.check_call(["umount", pod.config["log_directory"]])
