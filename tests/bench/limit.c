/* limit DIRECTORY: what the kernel alone asks for the steps of a container's life.
 *
 * No runtime can be faster than these figures, for each does at least this: processes, namespaces,
 * mounts, pipes. As root, in a mount namespace of its own; DIRECTORY is on the disk to be measured.
 * Prints a line for each: NAME UNIT COUNT MINIMUM MEDIAN P95. cc -O2 -o limit limit.c -lz
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

enum { TIMES = 200, WARM_UP = 5, LINE = 129, BLOCK = 1 << 18 };

/* Namespaces of a container on the host's network, and of one with its own. */
enum {
    SPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS,
    SPACES_AND_NET = SPACES | CLONE_NEWNET,
};

typedef struct { double value[TIMES * 10]; int n; } series;

static const char *directory; /* holds lower, and upper, work and root of the container */
static int cgroup_fd = -1;    /* of the container; -1: there is no version 2 tree */

static void die(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void must(long result, const char *what)
{
    if (result < 0) die(what);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void note(series *s, double value)
{
    s->value[s->n++] = value;
}

static int order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(series *s, const char *name, const char *unit)
{
    qsort(s->value, (size_t)s->n, sizeof s->value[0], order);
    printf("%s %s %d %.4f %.4f %.4f\n", name, unit, s->n, s->value[0], s->value[s->n / 2],
           s->value[s->n * 95 / 100]);
    fflush(stdout);
    s->n = 0;
}

/* -- a message there and back ------------------------------------------------------------------- */

static void round_trips(series *s)
{
    int pair[2];
    char message[100] = { 0 };
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    pid_t peer = fork();
    must(peer, "fork");
    if (!peer) {
        close(pair[0]);
        while (read(pair[1], message, sizeof message) > 0)
            if (write(pair[1], message, sizeof message) < 0) break;
        _exit(0);
    }
    close(pair[1]);
    for (int i = 0; i < TIMES * 10; i++) {
        double began = now_ms();
        must(write(pair[0], message, sizeof message), "write");
        must(read(pair[0], message, sizeof message), "read");
        note(s, now_ms() - began);
    }
    close(pair[0]);
    waitpid(peer, NULL, 0);
    report(s, "round_trip", "ms");
}

/* -- a process ---------------------------------------------------------------------------------- */

static pid_t clone_with(uint64_t flags)
{
    struct clone_args a = { .flags = flags, .exit_signal = SIGCHLD };
    if (flags & CLONE_INTO_CGROUP) a.cgroup = (uint64_t)cgroup_fd;
    pid_t pid = (pid_t)syscall(SYS_clone3, &a, sizeof a);
    must(pid, "clone3");
    return pid;
}

static void empty_process(series *s, uint64_t flags, const char *name)
{
    for (int i = 0; i < TIMES; i++) {
        double began = now_ms();
        pid_t pid = clone_with(flags);
        if (!pid) _exit(0);
        waitpid(pid, NULL, 0);
        note(s, now_ms() - began);
    }
    report(s, name, "ms");
}

/* -- a container -------------------------------------------------------------------------------- */

static void mount_it(const char *type, const char *at, unsigned long flags, const char *options)
{
    must(mount(type, at, type, flags, options), at);
}

static void make_nodes(void)
{
    static const struct { const char *path; unsigned major, minor; } nodes[] = {
        { "dev/null", 1, 3 },   { "dev/zero", 1, 5 },    { "dev/full", 1, 7 },
        { "dev/random", 1, 8 }, { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 },
    };
    for (size_t i = 0; i < sizeof nodes / sizeof nodes[0]; i++)
        must(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)),
             nodes[i].path);
}

/* What every container has: its own root, /proc, /dev, /dev/pts, /dev/shm, /dev/mqueue, /sys. */
static void furnish(void)
{
    unsigned long quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "/");
    must(chdir(directory), directory);
    mount_it("overlay", "root", 0, "lowerdir=lower,upperdir=upper,workdir=work,volatile");
    must(chdir("root"), "root");
    mount_it("proc", "proc", quiet, NULL);
    mount_it("tmpfs", "dev", MS_NOSUID, "mode=755,size=64k");
    must(mkdir("dev/pts", 0755), "dev/pts");
    must(mkdir("dev/shm", 01777), "dev/shm");
    must(mkdir("dev/mqueue", 0755), "dev/mqueue");
    mount_it("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666");
    mount_it("tmpfs", "dev/shm", quiet, "size=64m");
    mount_it("mqueue", "dev/mqueue", quiet, NULL);
    mount_it("sysfs", "sys", quiet | MS_RDONLY, NULL);
    make_nodes();
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount");
    must(chdir("/"), "chdir");
}

static void become(const char *name, const char *argument)
{
    char *args[] = { (char *)name, (char *)argument, NULL }, *env[] = { NULL };
    execve("/bin/busybox", args, env);
    die("/bin/busybox");
}

/* Starts one; it runs when execve(2) has closed the pipe. */
static pid_t start(uint64_t spaces)
{
    int running[2];
    char byte;
    must(pipe2(running, O_CLOEXEC), "pipe");
    pid_t pid = clone_with(spaces | (cgroup_fd < 0 ? 0 : CLONE_INTO_CGROUP));
    if (!pid) {
        furnish();
        become("sleep", "98761");
    }
    close(running[1]);
    must(read(running[0], &byte, 1), "read");
    close(running[0]);
    return pid;
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* A container's own directories, relative to the working directory. */
static void make_directories(void)
{
    must(mkdir("upper", 0755), "upper");
    must(mkdir("work", 0755), "work");
    must(mkdir("root", 0755), "root");
}

static void remove_directories(void)
{
    must(unlink("work/work/incompat/volatile/dirty"), "dirty"); /* what `volatile` leaves behind */
    must(rmdir("work/work/incompat/volatile"), "volatile");
    must(rmdir("work/work/incompat"), "incompat");
    must(rmdir("work/work"), "work/work");
    must(rmdir("work"), "work");
    must(rmdir("upper"), "upper");
    must(rmdir("root"), "root");
}

static void containers(uint64_t spaces, const char *name, series *up, series *down)
{
    char title[100];
    for (int i = -WARM_UP; i < TIMES; i++) {
        double began = now_ms();
        make_directories();
        pid_t pid = start(spaces);
        double running = now_ms();
        stop(pid);
        remove_directories();
        if (i < 0) continue;
        note(up, running - began);
        note(down, now_ms() - running);
    }
    snprintf(title, sizeof title, "%s.to_running", name);
    report(up, title, "ms");
    snprintf(title, sizeof title, "%s.to_gone", name);
    report(down, title, "ms");
}

/* A second process in the same namespaces: what an exec is. */
static void execs(series *s)
{
    make_directories();
    pid_t container = start(SPACES);
    int pidfd = (int)syscall(SYS_pidfd_open, container, 0);
    must(pidfd, "pidfd_open");
    for (int i = 0; i < TIMES; i++) {
        int status;
        double began = now_ms();
        pid_t outer = fork();
        if (!outer) {
            must(setns(pidfd, SPACES), "setns");
            pid_t inner = vfork(); /* the PID namespace counts from the next process on */
            if (!inner) become("true", NULL);
            waitpid(inner, &status, 0);
            _exit(WEXITSTATUS(status));
        }
        waitpid(outer, &status, 0);
        if (WEXITSTATUS(status)) die("exec of true");
        note(s, now_ms() - began);
    }
    close(pidfd);
    stop(container);
    remove_directories();
    report(s, "exec", "ms");
}

/* -- a log -------------------------------------------------------------------------------------- */

enum { STAMP = 40, LOG_BYTES = 200 << 20 }; /* STAMP: time, stream and tag of a record */

static void print_lines(int out)
{
    static char lines[LINE * 500];
    memset(lines, 'x', sizeof lines);
    for (size_t i = LINE - 1; i < sizeof lines; i += LINE) lines[i] = '\n';
    for (size_t sent = 0; sent < LOG_BYTES; sent += sizeof lines)
        if (write(out, lines, sizeof lines) != sizeof lines) _exit(1);
    _exit(0);
}

/* Puts a stamp with the time before each whole line of `in`; gives how much of it is done. */
static size_t stamp_lines(const char *in, size_t n, int log)
{
    static char out[BLOCK * 2];
    size_t done = 0, filled = 0;
    for (const char *end; (end = memchr(in + done, '\n', n - done)); ) {
        size_t line = (size_t)(end + 1 - in) - done;
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        memset(out + filled, ' ', STAMP);
        memcpy(out + filled, &t, sizeof t); /* the digits are cheap: their buffer is not */
        memcpy(out + filled + STAMP, in + done, line);
        filled += STAMP + line;
        done += line;
    }
    must(write(log, out, filled), "write");
    return done;
}

static double cpu_seconds(void)
{
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static void copy_log(series *rate, series *cpu)
{
    static char in[BLOCK];
    int ends[2];
    size_t kept = 0;
    int log = open("log", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(log, "log");
    must(pipe2(ends, O_CLOEXEC), "pipe");
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
    double began = now_ms(), used = cpu_seconds();
    pid_t printer = fork();
    if (!printer) print_lines(ends[1]);
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], in + kept, BLOCK - kept)) > 0;) {
        size_t all = kept + (size_t)got, done = stamp_lines(in, all, log);
        kept = all - done;
        memmove(in, in + done, kept);
    }
    note(rate, LOG_BYTES / 1e3 / (now_ms() - began));
    note(cpu, (cpu_seconds() - used) / LOG_BYTES * 1e9);
    waitpid(printer, NULL, 0);
    close(ends[0]);
    close(log);
    must(unlink("log"), "log");
}

/* -- a layer ------------------------------------------------------------------------------------ */

/* zlib's inflate, of this machine's busybox many times over. */
static void inflate_rate(series *s)
{
    static uint8_t plain[32 << 20], packed[40 << 20];
    size_t n = 0;
    int fd = open("lower/bin/busybox", O_RDONLY);
    for (ssize_t got = 1; got > 0 && n < sizeof plain; n += (size_t)(got > 0 ? got : 0)) {
        got = read(fd, plain + n, sizeof plain - n);
        if (!got && lseek(fd, 0, SEEK_SET) == 0) got = read(fd, plain + n, sizeof plain - n);
    }
    close(fd);
    uLongf small = sizeof packed, big = sizeof plain;
    if (compress2(packed, &small, plain, n, 6) != Z_OK) die("compress2");
    for (int i = 0; i < 5; i++, big = sizeof plain) {
        double began = now_ms();
        if (uncompress(plain, &big, packed, small) != Z_OK) die("uncompress");
        note(s, (double)small / 1e3 / (now_ms() - began));
    }
    report(s, "inflate", "MB/s");
}

/* -- all of it ---------------------------------------------------------------------------------- */

static void make_lower(void)
{
    static const char *const names[] = { "lower", "lower/bin", "lower/proc", "lower/dev", "lower/sys" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) must(mkdir(names[i], 0755), names[i]);
    if (system("cp /bin/busybox lower/bin/busybox")) die("cp /bin/busybox");
}

/* A cgroup in the version 2 tree, wherever that is mounted. */
static char cgroup_path[200];
static void open_cgroup(void)
{
    static const char *const trees[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
    for (int i = 0; i < 2 && cgroup_fd < 0; i++) {
        snprintf(cgroup_path, sizeof cgroup_path, "%s/cgroup.controllers", trees[i]);
        if (access(cgroup_path, F_OK) < 0) continue;
        snprintf(cgroup_path, sizeof cgroup_path, "%s/limit-%d", trees[i], (int)getpid());
        must(mkdir(cgroup_path, 0755), cgroup_path);
        cgroup_fd = open(cgroup_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
}

int main(int argc, char **argv)
{
    static series a, b;
    directory = argc == 2 ? realpath(argv[1], NULL) : NULL;
    if (!directory) return fprintf(stderr, "usage: limit DIRECTORY\n"), 2;
    must(chdir(directory), directory);
    make_lower();
    open_cgroup();
    round_trips(&a);
    empty_process(&a, 0, "process");
    empty_process(&a, SPACES, "process_in_namespaces");
    empty_process(&a, SPACES_AND_NET, "process_in_namespaces_and_net");
    containers(SPACES, "container", &a, &b);
    containers(SPACES_AND_NET, "container_and_net", &a, &b);
    execs(&a);
    for (int i = 0; i < 5; i++) copy_log(&a, &b);
    report(&a, "log", "MB/s");
    report(&b, "log_cpu", "s/GB");
    inflate_rate(&a);
    if (cgroup_fd >= 0) rmdir(cgroup_path);
    return 0;
}
