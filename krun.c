/* krun: a Kubernetes container runtime in one file. Read it from the top.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * A kubelet, crictl or krun's own command line speaks CRI (gRPC over a unix socket) to `krun serve`.
 * krun pulls and unpacks images, makes namespaces, cgroups, mounts and networks with its own
 * system calls, runs the processes and keeps their logs and exit codes. One static binary plays
 * every part: daemon, monitor (one a pod), fetch and unpack (the parts that touch hostile bytes)
 * and command line.
 *
 *   1  Foundations
 *   2  Files, processes, events
 *   3  Text
 *   4  Hashes and encodings
 *   5  Decompression
 *   8  Protobuf
 *   9  The CRI's messages
 *
 * A chapter uses only the chapters above it. Search for "== 17." to go to one. */

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64

#include <arpa/inet.h>
#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/openat2.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "krun.h"

#define KRUN_VERSION "0.1.0"

/* == 1. Foundations ==========================================================================
 *
 * C gives a program bytes, pointers and errno. What all later pages are written in is made here:
 * a view of bytes that knows its length (slice), a buffer that grows (buf), memory that is freed
 * all at once when its request is answered (arena), an error that is a sentence (error), a file
 * descriptor that closes itself (OWNED_FD), a clock, and the log.
 *
 * Gives  slice_*, buf_*, arena_*, fail, fail_sys, OWNED_FD, clock_*, log_*, parse_u64, text_escape
 * Bounds a slice never owns; an arena never gives more than its budget; an error text is 511 bytes */

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
/* The struct of type T of which `p` is the member `m`: how a callback finds its owner. */
#define OWNER(p, T, m) ((T *)(void *)((char *)(p) - offsetof(T, m)))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

enum { KIB = 1024, MIB = 1024 * 1024 };
#define NS_PER_SEC INT64_C(1000000000)
#define NS_PER_MS INT64_C(1000000)

typedef struct { const uint8_t *p; size_t n; } slice; /* borrowed: no NUL, its owner lives longer */

#define SLICE(literal) ((slice){ (const uint8_t *)(literal), sizeof(literal) - 1 })
/* For printf's "%.*s", which stops at n bytes and needs no NUL. */
#define PR(s) (int)MIN((s).n, (size_t)INT_MAX), (const char *)((s).n ? (s).p : (const uint8_t *)"")

static slice slice_of(const char *text) /* borrows a NUL-terminated string; NULL is empty */
{
    return text ? (slice){ (const uint8_t *)text, strlen(text) } : (slice){ NULL, 0 };
}

static bool slice_eq(slice a, slice b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static bool slice_is(slice s, const char *text) { return slice_eq(s, slice_of(text)); }

static bool slice_starts(slice s, const char *prefix)
{
    size_t n = strlen(prefix);
    return s.n >= n && memcmp(s.p, prefix, n) == 0;
}

static bool slice_ends(slice s, const char *suffix)
{
    size_t n = strlen(suffix);
    return s.n >= n && memcmp(s.p + s.n - n, suffix, n) == 0;
}

/* Orders as strcmp does, by unsigned bytes; a prefix comes first. */
static int slice_cmp(slice a, slice b)
{
    size_t n = MIN(a.n, b.n);
    int c = n ? memcmp(a.p, b.p, n) : 0;
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

/* Takes n bytes off the front of *s. False, and *s untouched, if there are fewer. A length from
 * outside is compared with what is left; added to a pointer first, it could wrap. */
static bool slice_take(slice *s, size_t n, slice *out)
{
    if (n > s->n) return false;
    *out = (slice){ s->p, n };
    *s = (slice){ n ? s->p + n : s->p, s->n - n };
    return true;
}

/* Splits *s at the first `sep`: what is before it comes back, *s is what follows. Without a `sep`
 * all of *s comes back and *s is empty; call it while (s.n). */
static slice slice_cut(slice *s, uint8_t sep)
{
    const uint8_t *at = s->n ? memchr(s->p, sep, s->n) : NULL;
    slice head = { s->p, at ? (size_t)(at - s->p) : s->n };
    *s = at ? (slice){ at + 1, s->n - head.n - 1 } : (slice){ NULL, 0 };
    return head;
}

static slice slice_trim(slice s) /* without the spaces, tabs and line ends around it */
{
    while (s.n && strchr(" \t\r\n", s.p[0])) s = (slice){ s.p + 1, s.n - 1 };
    while (s.n && strchr(" \t\r\n", s.p[s.n - 1])) s.n--;
    return s;
}

static bool slice_has(slice s, uint8_t byte) { return s.n && memchr(s.p, byte, s.n); }

/* Reads all of `s` as an unsigned number. False on an empty text, a byte that is no digit of that
 * base (no sign, no space: strtoul would take both) or a value past `max`. */
static bool parse_u64(slice s, unsigned base, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;
    if (!s.n) return false;
    for (size_t i = 0; i < s.n; i++) {
        unsigned c = s.p[i], digit = c - '0' < 10 ? c - '0' : (c | 32) - 'a' < 26 ? (c | 32) - 'a' + 10 : 99;
        if (digit >= base || value > (max - digit) / base || digit > max) return false;
        value = value * base + digit;
    }
    *out = value;
    return true;
}

/* -- errors: a gRPC code for the caller, an errno for the machine, a sentence for a person ------ */

/* google.golang.org/grpc/codes; the numbers are part of the protocol. */
enum grpc_code {
    GRPC_OK = 0, GRPC_CANCELLED = 1, GRPC_UNKNOWN = 2, GRPC_INVALID_ARGUMENT = 3,
    GRPC_DEADLINE_EXCEEDED = 4, GRPC_NOT_FOUND = 5, GRPC_ALREADY_EXISTS = 6,
    GRPC_PERMISSION_DENIED = 7, GRPC_RESOURCE_EXHAUSTED = 8, GRPC_FAILED_PRECONDITION = 9,
    GRPC_ABORTED = 10, GRPC_OUT_OF_RANGE = 11, GRPC_UNIMPLEMENTED = 12, GRPC_INTERNAL = 13,
    GRPC_UNAVAILABLE = 14, GRPC_DATA_LOSS = 15, GRPC_UNAUTHENTICATED = 16
};

typedef struct { int code, sys; char text[512]; } error; /* gRPC code; errno or 0; a sentence */

/* Fills *e and returns -1. Takes errno at once: a cleanup's close() on the way out may change it. */
__attribute__((format(printf, 4, 5))) static int fail_with(error *e, int code, int sys,
                                                           const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    e->code = code;
    e->sys = sys;
    size_t used = n < 0 ? 0 : MIN((size_t)n, sizeof e->text - 1);
    if (sys) snprintf(e->text + used, sizeof e->text - used, ": %s", strerror(sys));
    return -1;
}
#define fail(e, code, ...) fail_with((e), (code), 0, __VA_ARGS__)
#define fail_sys(e, code, ...) fail_with((e), (code), errno, __VA_ARGS__)

/* Puts the step that was under way before the text of *e, and returns -1: a caller names what it
 * was doing, the callee has named what went wrong. Code and errno stay. */
__attribute__((format(printf, 2, 3))) static int fail_in(error *e, const char *format, ...)
{
    char inner[sizeof e->text];
    memcpy(inner, e->text, sizeof inner);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : MIN((size_t)n, sizeof e->text - 1);
    snprintf(e->text + used, sizeof e->text - used, ": %.*s", (int)(sizeof e->text - 3 - MIN(used, sizeof e->text - 3)), inner);
    return -1;
}

/* -- file descriptors that close themselves ---------------------------------------------------- */

static void close_fd(int *fd) { if (*fd >= 0) close(*fd); }
#define OWNED_FD __attribute__((cleanup(close_fd))) int

/* Hands a descriptor on: the caller owns it now, the scope that had it will not close it. */
static int give_fd(int *fd)
{
    int given = *fd;
    *fd = -1;
    return given;
}

/* -- memory ------------------------------------------------------------------------------------ */

/* The arena's unit: a run of bytes from malloc, handed out from the front. */
struct block { struct block *older; size_t size, used; max_align_t data[]; };

/* All that one request allocates; freed at once when it is answered, and nothing in it alone.
 * `left` is how many bytes more this caller can make us take; a refusal sets `oom`, which whoever
 * answers the request looks at once. One thread at a time. */
typedef struct { struct block *newest; size_t left; bool oom; } arena;

enum { ARENA_BLOCK = 4 * KIB };

static arena arena_make(size_t budget) { return (arena){ NULL, budget, false }; }

static void arena_free(arena *a)
{
    for (struct block *b = a->newest, *older; b; b = older) {
        older = b->older;
        free(b);
    }
    a->newest = NULL;
}
static void arena_free_late(arena *a) { arena_free(a); }
#define OWNED_ARENA __attribute__((cleanup(arena_free_late))) arena

/* n zeroed bytes that live as long as the arena; NULL (and a->oom) when malloc or the budget says
 * no. A request past half a block gets a block of its own, so that no tail is wasted. */
static void *arena_alloc(arena *a, size_t n)
{
    size_t need = (n + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    struct block *b = a->newest;
    bool fits = need >= n && need <= a->left;
    if (fits && (!b || b->size - b->used < need)) {
        size_t size = need > ARENA_BLOCK / 2 ? need : ARENA_BLOCK - sizeof(struct block);
        b = malloc(sizeof *b + size);
        if (b) *b = (struct block){ .older = a->newest, .size = size };
        if (b) a->newest = b;
    }
    if (!fits || !b) return a->oom = true, NULL;
    void *p = (char *)b->data + b->used;
    b->used += need;
    a->left -= need;
    return memset(p, 0, n);
}

/* A NUL-terminated copy of `s`; on refusal "" (with a->oom set), so that callers that only build
 * text need one look at the end, not one a line. */
static char *arena_str(arena *a, slice s)
{
    static char none[1];
    char *copy = s.n < SIZE_MAX ? arena_alloc(a, s.n + 1) : NULL;
    if (!copy) return none[0] = '\0', none;
    if (s.n) memcpy(copy, s.p, s.n);
    return copy;
}

static slice arena_copy(arena *a, slice s)
{
    char *copy = arena_str(a, s);
    return a->oom ? (slice){ NULL, 0 } : (slice){ (uint8_t *)copy, s.n };
}

__attribute__((format(printf, 2, 3))) static char *arena_printf(arena *a, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    char *text = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1);
    if (text) vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    return text ? text : arena_str(a, (slice){ NULL, 0 });
}

/* Bytes that grow at the end. A growth that fails sets `oom` and drops what was added; look at it
 * once, when the buffer is used. Zero-initialize; buf_free at the end. */
typedef struct { uint8_t *p; size_t n, cap; bool oom; } buf;

static bool buf_reserve(buf *b, size_t more) /* room for `more` bytes after b->n */
{
    if (more <= b->cap - b->n) return !b->oom;
    size_t want = b->cap ? b->cap : 256;
    while (want - b->n < more && want <= SIZE_MAX / 4) want *= 2;
    uint8_t *p = b->oom || want - b->n < more ? NULL : realloc(b->p, want);
    if (!p) return b->oom = true, false;
    b->p = p;
    b->cap = want;
    return true;
}

static void buf_add(buf *b, const void *p, size_t n)
{
    if (!n || !buf_reserve(b, n)) return;
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void buf_byte(buf *b, uint8_t byte) { buf_add(b, &byte, 1); }
static void buf_slice(buf *b, slice s) { buf_add(b, s.p, s.n); }
static void buf_str(buf *b, const char *text) { buf_add(b, text, strlen(text)); }
static slice buf_view(const buf *b) { return (slice){ b->p, b->n }; } /* until the next change */

__attribute__((format(printf, 2, 3))) static void buf_printf(buf *b, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n > 0 && buf_reserve(b, (size_t)n + 1)) {
        vsnprintf((char *)b->p + b->n, (size_t)n + 1, format, again);
        b->n += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

/* Drops n bytes from the front: what has been sent or parsed. */
static void buf_drop(buf *b, size_t n)
{
    assert(n <= b->n);
    b->n -= n;
    if (b->n && n) memmove(b->p, b->p + n, b->n);
}

static void buf_free(buf *b)
{
    free(b->p);
    *b = (buf){ 0 };
}
#define OWNED_BUF __attribute__((cleanup(buf_free))) buf

/* -- text that came from outside --------------------------------------------------------------- */

/* The length of the UTF-8 character at the front of `s`, 0 if there is none: no over-long form, no
 * surrogate, nothing past U+10FFFF (RFC 3629, section 4). */
static size_t utf8_char(slice s)
{
    if (!s.n) return 0;
    uint8_t c = s.p[0];
    if (c < 0x80) return 1;
    size_t n = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
    if (c < 0xC2 || c > 0xF4 || s.n < n) return 0;
    uint8_t low = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    uint8_t high = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    if (s.p[1] < low || s.p[1] > high) return 0;
    for (size_t i = 2; i < n; i++)
        if ((s.p[i] & 0xC0) != 0x80) return 0;
    return n;
}

static bool utf8_valid(slice s)
{
    for (size_t n; s.n; s = (slice){ s.p + n, s.n - n })
        if (!(n = utf8_char(s))) return false;
    return true;
}

/* Appends at most `max` bytes of `s`, made harmless for a terminal, a log line and a gRPC message:
 * control characters and bytes that are not UTF-8 become \xNN, a cut text ends in "...". */
static void text_escape(buf *b, slice s, size_t max)
{
    for (size_t n, used = 0; s.n; s = (slice){ s.p + n, s.n - n }, used += n) {
        n = utf8_char(s);
        if (used + MAX(n, 1) > max) { buf_str(b, "..."); return; }
        bool plain = n > 1 ? !(n == 2 && s.p[0] == 0xC2 && s.p[1] < 0xA0) : n && s.p[0] >= 32 && s.p[0] != 127;
        if (plain) buf_add(b, s.p, n);
        else for (size_t i = 0; i < MAX(n, 1); i++) buf_printf(b, "\\x%02x", s.p[i]);
        n = MAX(n, 1);
    }
}

/* -- clocks ------------------------------------------------------------------------------------ */

/* Nanoseconds. MONOTONIC for every wait and deadline (nobody can set it); REALTIME only for times
 * that are shown or stored: clock_gettime(2). */
static int64_t clock_ns(clockid_t which)
{
    struct timespec t = { 0, 0 };
    clock_gettime(which, &t);
    return (int64_t)t.tv_sec * NS_PER_SEC + t.tv_nsec;
}
static int64_t clock_mono(void) { return clock_ns(CLOCK_MONOTONIC); }
static int64_t clock_wall(void) { return clock_ns(CLOCK_REALTIME); }

/* "2026-11-22T02:10:52.123456789Z": RFC 3339 in UTC, always nine digits, as container logs have. */
enum { TIME_TEXT = 31 };
static void clock_text(int64_t wall_ns, char out[TIME_TEXT])
{
    time_t seconds = (time_t)(wall_ns / NS_PER_SEC);
    struct tm t;
    gmtime_r(&seconds, &t);
    size_t n = strftime(out, TIME_TEXT, "%Y-%m-%dT%H:%M:%S", &t);
    snprintf(out + n, TIME_TEXT - n, ".%09" PRId64 "Z", wall_ns % NS_PER_SEC);
}

/* How many milliseconds poll(2) may wait until `deadline` (monotonic; 0 is none): -1 is for ever. */
static int clock_poll_ms(int64_t deadline)
{
    if (!deadline) return -1;
    int64_t left = deadline - clock_mono();
    return left <= 0 ? 0 : (int)MIN((left + NS_PER_MS - 1) / NS_PER_MS, (int64_t)INT_MAX);
}

/* -- the log ----------------------------------------------------------------------------------- */

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
static enum log_level log_least = LOG_INFO; /* set once at start, before there are threads */

/* One line on stderr in one write(2), so that lines of threads and roles never mix. What came from
 * outside is escaped here, once, whoever logs it. */
__attribute__((format(printf, 2, 3))) static void log_line(enum log_level level, const char *format, ...)
{
    static const char *const names[] = { "DEBUG", "INFO", "WARN", "ERROR" };
    if (level < log_least) return;
    int saved = errno;
    char text[2048], time[TIME_TEXT];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    clock_text(clock_wall(), time);
    OWNED_BUF line = { 0 };
    buf_printf(&line, "%s %-5s ", time, names[level]);
    text_escape(&line, (slice){ (uint8_t *)text, n < 0 ? 0 : MIN((size_t)n, sizeof text - 1) }, sizeof text);
    buf_byte(&line, '\n');
    ssize_t done = line.oom ? 0 : write(STDERR_FILENO, line.p, line.n);
    (void)done; /* a full or closed log must not stop a container */
    errno = saved;
}
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)

/* -- faults on request ------------------------------------------------------------------------- */

/* Dies here, as by kill -9, when KRUN_FAULT is "step:n" and this is the n-th time that `step` is
 * passed. Tests use it to stop krun between any two lines that change the world, then look whether
 * the next start puts everything right. Costs one getenv in the life of a process else. */
static void fault_point(const char *step)
{
    static const char *wanted;
    static _Atomic int left = -1;
    if (left == 0) return;
    if (left < 0) {
        wanted = getenv("KRUN_FAULT");
        const char *colon = wanted ? strchr(wanted, ':') : NULL;
        left = !wanted ? 0 : colon ? atoi(colon + 1) : 1;
    }
    size_t n = strlen(step);
    if (left > 0 && !strncmp(wanted, step, n) && (wanted[n] == ':' || !wanted[n]) && --left == 0) {
        log_warn("KRUN_FAULT: killed at %s", step);
        kill(getpid(), SIGKILL);
    }
}

/* == 2. Files, processes, events =============================================================
 *
 * What krun asks of the kernel everywhere: open a path inside a tree that its owner may be changing
 * under us; write a record so that a reader sees the old one or the new one, never half; remove a
 * tree of any depth; start a process without fork; wait for many descriptors at once.
 *
 * Defined by  openat2(2), rename(2), mount_setattr(2), fsopen(2) and friends, clone(2) (CLONE_VFORK,
 *             CLONE_PIDFD), memfd_create(2), epoll(7)
 * Uses        1                                Gives  open_inside, file_*, tree_remove, sys_*, spawn, loop_*
 * Bounds      a record 64 MiB; a removal holds at most 64 open directories */

/* -- system calls that a libc may be too old to have ------------------------------------------- */

/* Numbers from 424 on are the same on every architecture (asm-generic/unistd.h). */
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

/* linux/mount.h and a libc's sys/mount.h cannot be included together everywhere, so the kernel's
 * numbers that we use stand here under our own names. */
enum {
    K_OPEN_TREE_CLONE = 1, K_MOVE_MOUNT_F_EMPTY_PATH = 4, K_MOVE_MOUNT_T_EMPTY_PATH = 0x40,
    K_FSOPEN_CLOEXEC = 1, K_FSMOUNT_CLOEXEC = 1,
    K_FSCONFIG_SET_FLAG = 0, K_FSCONFIG_SET_STRING = 1, K_FSCONFIG_SET_FD = 5, K_FSCONFIG_CMD_CREATE = 6,
    K_ATTR_RDONLY = 1, K_ATTR_NOSUID = 2, K_ATTR_NODEV = 4, K_ATTR_NOEXEC = 8,
    K_ATTR_NOATIME = 0x10, K_ATTR_IDMAP = 0x100000,
    K_AT_RECURSIVE = 0x8000
};
struct k_mount_attr { uint64_t attr_set, attr_clr, propagation, userns_fd; }; /* mount_setattr(2) */

/* Each takes and returns what its manual page says: a descriptor or 0, or -1 and errno. */
static int sys_open_tree(int at, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, at, path, flags | O_CLOEXEC);
}
static int sys_move_mount(int from, const char *from_path, int to, const char *to_path, unsigned flags)
{
    return (int)syscall(SYS_move_mount, from, from_path, to, to_path, flags);
}
static int sys_fsopen(const char *type) { return (int)syscall(SYS_fsopen, type, K_FSOPEN_CLOEXEC); }
static int sys_fsconfig(int fs, unsigned command, const char *key, const void *value, int aux)
{
    return (int)syscall(SYS_fsconfig, fs, command, key, value, aux);
}
static int sys_fsmount(int fs, unsigned attr) { return (int)syscall(SYS_fsmount, fs, K_FSMOUNT_CLOEXEC, attr); }
static int sys_mount_setattr(int at, const char *path, unsigned flags, const struct k_mount_attr *attr)
{
    return (int)syscall(SYS_mount_setattr, at, path, flags, attr, sizeof *attr);
}
static int sys_pidfd_open(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }
static int sys_pidfd_kill(int pidfd, int sig) { return (int)syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0); }
static int sys_close_range(unsigned first, unsigned last, unsigned flags)
{
    return (int)syscall(SYS_close_range, first, last, flags);
}
static int sys_pivot_root(const char *to, const char *old) { return (int)syscall(SYS_pivot_root, to, old); }

/* -- reading and writing ----------------------------------------------------------------------- */

/* Writes all n bytes, however many write(2) calls that takes. -1 and errno; some may be out then. */
static int write_all(int fd, const void *p, size_t n)
{
    for (const char *at = p; n;) {
        ssize_t done = write(fd, at, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        at += done;
        n -= (size_t)done;
    }
    return 0;
}

/* Reads until n bytes, end of file or an error: the count, or -1 and errno. */
static ssize_t read_all(int fd, void *p, size_t n)
{
    size_t got = 0;
    while (got < n) {
        ssize_t more = read(fd, (char *)p + got, n - got);
        if (more < 0 && errno == EINTR) continue;
        if (more < 0) return -1;
        if (more == 0) break;
        got += (size_t)more;
    }
    return (ssize_t)got;
}

/* -- paths inside a tree ----------------------------------------------------------------------- */

/* Opens `path` inside the tree `root` as if `root` were "/", whatever links are planted there.
 * root     an open directory, borrowed.   flags  as open(2), not O_CREAT; O_CLOEXEC is added
 * Returns  a descriptor, the caller's; or -1: NOT_FOUND (ENOENT), INVALID_ARGUMENT (ELOOP), INTERNAL
 * Why      a container owns its tree and can swap a directory for a link between our check and
 *          our open (CVE-2021-30465). openat2(2) does both in one step. */
static int open_inside(int root, const char *path, int flags, error *e)
{
    struct open_how how = { .flags = (uint64_t)(unsigned)flags | O_CLOEXEC,
                            .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
    for (int tries = 0; tries < 32; tries++) { /* EAGAIN: a rename ran beside us */
        long fd = syscall(SYS_openat2, root, path, &how, sizeof how);
        if (fd >= 0) return (int)fd;
        if (errno != EAGAIN && errno != EINTR) break;
    }
    int refused = errno == ELOOP ? GRPC_INVALID_ARGUMENT : GRPC_INTERNAL;
    return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : refused, "open %s", path);
}

/* Makes the directory `path` inside `root`, with its parents, each `mode`; what exists stays as it
 * is. Returns an O_PATH descriptor of it, the caller's. Each step is made by name under the opened
 * step before it and opened again through open_inside, so a link in it stays inside the root. */
static int make_dir_inside(int root, const char *path, mode_t mode, error *e)
{
    OWNED_FD at = open_inside(root, ".", O_PATH | O_DIRECTORY, e);
    slice rest = slice_of(path), done;
    char prefix[PATH_MAX], name[NAME_MAX + 1];
    while (at >= 0 && rest.n) {
        done = slice_cut(&rest, '/');
        if (!done.n || slice_is(done, ".")) continue;
        if (done.n > NAME_MAX) return errno = ENAMETOOLONG, fail_sys(e, GRPC_INVALID_ARGUMENT, "mkdir %s", path);
        snprintf(name, sizeof name, "%.*s", PR(done));
        if (!slice_is(done, "..") && mkdirat(at, name, mode) < 0 && errno != EEXIST)
            return fail_sys(e, GRPC_INTERNAL, "mkdir %s", path);
        snprintf(prefix, sizeof prefix, "%.*s", (int)(done.p + done.n - (const uint8_t *)path), path);
        int next = open_inside(root, prefix, O_PATH | O_DIRECTORY, e);
        close_fd(&at);
        at = next;
    }
    return give_fd(&at);
}

/* Whether `fd` lies on a file system of this kind, e.g. PROC_SUPER_MAGIC: statfs(2). Before writing
 * to what should be /proc, since a container may have mounted its own files there (CVE-2019-16884). */
static bool fd_is_on(int fd, long magic)
{
    struct statfs s;
    return fstatfs(fd, &s) == 0 && (long)s.f_type == magic;
}

/* -- records ----------------------------------------------------------------------------------- */

/* Reads a whole file of at most `max` bytes into the arena; it is followed by a NUL that out->n does
 * not count. -1: NOT_FOUND, RESOURCE_EXHAUSTED (longer than max), INVALID_ARGUMENT (no regular file;
 * O_NONBLOCK so that a FIFO in its place cannot hang us) or INTERNAL. */
static int file_read(int at, const char *path, size_t max, arena *a, slice *out, error *e)
{
    OWNED_FD fd = openat(at, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    if (fd < 0) return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : GRPC_INTERNAL, "open %s", path);
    if (fstat(fd, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat %s", path);
    if (!S_ISREG(st.st_mode)) return fail(e, GRPC_INVALID_ARGUMENT, "%s is not a regular file", path);
    OWNED_BUF text = { 0 };
    for (;;) { /* files of /proc say they are empty, so the end is where read(2) says it is */
        if (!buf_reserve(&text, 4 * KIB)) return fail(e, GRPC_RESOURCE_EXHAUSTED, "read %s: out of memory", path);
        ssize_t n = read(fd, text.p + text.n, MIN(text.cap - text.n, max + 1 - text.n));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_sys(e, GRPC_INTERNAL, "read %s", path);
        if (n == 0) break;
        text.n += (size_t)n;
        if (text.n > max) return fail(e, GRPC_RESOURCE_EXHAUSTED, "%s is larger than %zu bytes", path, max);
    }
    *out = arena_copy(a, buf_view(&text));
    return a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "read %s: out of memory", path) : 0;
}

/* ATOMIC: after a crash of krun a reader finds the old or the new bytes. DURABLE: also after a power
 * cut (fsync(2) of the file before the rename and of the directory after it). */
enum durability { ATOMIC, DURABLE };

/* Writes `bytes` as the file `name` (no slash) of the directory `at`, replacing what was there in
 * one step: temporary file, rename(2). A failed write leaves no temporary file. */
static int file_replace(int at, const char *name, slice bytes, enum durability how, error *e)
{
    char temp[NAME_MAX + 1];
    static _Atomic unsigned serial;
    snprintf(temp, sizeof temp, ".%.200s.%d.%u.tmp", name, (int)getpid(), serial++);
    OWNED_FD fd = openat(at, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return fail_sys(e, GRPC_INTERNAL, "create %s", temp);
    bool written = write_all(fd, bytes.p, bytes.n) == 0 && (how == ATOMIC || fsync(fd) == 0);
    fault_point("record");
    if (!written || renameat(at, temp, at, name) < 0) {
        fail_sys(e, GRPC_INTERNAL, "write %s", name);
        unlinkat(at, temp, 0);
        return -1;
    }
    if (how == DURABLE && fsync(at) < 0) return fail_sys(e, GRPC_INTERNAL, "sync the directory of %s", name);
    return 0;
}

/* -- removing a tree --------------------------------------------------------------------------- */

/* Empties one directory as far as it can go without a descent: unlinks what is no directory and
 * rmdirs what is empty. Returns the name of a child that still has content ("" if none is left),
 * or NULL with errno. `budget` is how many entries may fail before we give up. */
static const char *dir_drain(int fd, char child[NAME_MAX + 1])
{
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* an offset of its own */
    DIR *d = again < 0 ? NULL : fdopendir(again);
    if (!d) return close_fd(&again), NULL;
    child[0] = '\0';
    for (struct dirent *entry; (entry = readdir(d));) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
        if (unlinkat(fd, name, 0) == 0 || errno == ENOENT) continue;
        if (errno != EISDIR && errno != EPERM) { closedir(d); return NULL; }
        if (unlinkat(fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT) continue;
        if (errno != ENOTEMPTY && errno != EEXIST) { closedir(d); return NULL; }
        snprintf(child, NAME_MAX + 1, "%s", name);
        break;
    }
    closedir(d);
    return child;
}

/* Removes the file or the whole tree `name` of `at`, never following a link and never leaving the
 * file system's own tree. A missing name is success. Depth costs nothing: instead of a stack the
 * walk moves every directory that it finds below the top up to the top (rename(2) within one file
 * system), so two descriptors do for any tree (T70). */
static int tree_remove(int at, const char *name, error *e)
{
    static _Atomic unsigned serial;
    char child[NAME_MAX + 1], deeper[NAME_MAX + 1], lifted[64];
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT) return 0;
    if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
    OWNED_FD top = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (top < 0) return fail_sys(e, GRPC_INTERNAL, "remove %s", name);
    for (;;) {
        if (!dir_drain(top, child)) return fail_sys(e, GRPC_INTERNAL, "remove %s", name);
        if (!child[0]) break;
        OWNED_FD sub = openat(top, child, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub < 0) return fail_sys(e, GRPC_INTERNAL, "remove %s/%s", name, child);
        while (dir_drain(sub, deeper) && deeper[0]) {
            snprintf(lifted, sizeof lifted, ".krun-remove-%u", serial++);
            if (renameat(sub, deeper, top, lifted) < 0)
                return fail_sys(e, GRPC_INTERNAL, "remove %s/%s/%s", name, child, deeper);
        }
        if (unlinkat(top, child, AT_REMOVEDIR) < 0 && errno != ENOENT)
            return fail_sys(e, GRPC_INTERNAL, "remove %s/%s", name, child);
    }
    if (unlinkat(at, name, AT_REMOVEDIR) < 0 && errno != ENOENT) return fail_sys(e, GRPC_INTERNAL, "remove %s", name);
    return 0;
}

/* -- starting a process ------------------------------------------------------------------------ */

/* What a spawned process gets; everything else of the parent's is closed or reset. */
typedef struct {
    int exec_fd;              /* the program as a descriptor, or -1: then `path` */
    const char *path;
    char *const *argv, *const *envp; /* NULL-terminated; an envp of our own, never inherited */
    const int *fds;           /* become 0, 1, 2, ... in this order; -1 is /dev/null */
    int nfds;
    const char *dir;          /* working directory, or NULL for "/" */
    bool new_session;         /* setsid(2): signals for our terminal's group do not reach it */
} spawn_args;

struct spawn_child { const spawn_args *args; sigset_t mask; int failed; int *moved; };

/* Runs in the parent's memory (CLONE_VM) while the parent stands still (CLONE_VFORK): so it may
 * only make system calls, and what it writes to *c the parent sees. */
static int spawn_child_main(void *arg)
{
    struct spawn_child *c = arg;
    const spawn_args *s = c->args;
    struct sigaction normal = { .sa_handler = SIG_DFL };
    for (int sig = 1; sig < 65; sig++) sigaction(sig, &normal, NULL);
    /* Targets 0..n-1 may be sources of each other: first all go above them, then down again. */
    for (int i = 0; i < s->nfds; i++) {
        c->moved[i] = s->fds[i] < 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : s->fds[i];
        c->moved[i] = c->moved[i] < 0 ? -1 : fcntl(c->moved[i], F_DUPFD_CLOEXEC, MAX(s->nfds, 3));
        if (c->moved[i] < 0) { c->failed = errno; _exit(127); }
    }
    int program = s->exec_fd < 0 ? -1 : fcntl(s->exec_fd, F_DUPFD_CLOEXEC, MAX(s->nfds, 3));
    for (int i = 0; i < s->nfds; i++)
        if (dup2(c->moved[i], i) < 0) { c->failed = errno; _exit(127); }
    sys_close_range((unsigned)s->nfds, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */);
    if (s->new_session) setsid();
    if (chdir(s->dir ? s->dir : "/") < 0) { c->failed = errno; _exit(127); }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (program >= 0) syscall(SYS_execveat, program, "", s->argv, s->envp, AT_EMPTY_PATH);
    else execve(s->path, s->argv, s->envp);
    c->failed = errno;
    _exit(127);
}

enum { SPAWN_STACK = 64 * KIB, SPAWN_FDS = 16 };

/* Starts a program and returns its pidfd, the caller's, to wait on with reap(); *pid is for the log.
 * When it comes back, the program is running: execve has been done or its errno is in *e.
 * The parent's memory is not copied (clone(2), CLONE_VM | CLONE_VFORK), so a daemon with threads
 * can do this at any time and at the same price however large it is. */
static int spawn(const spawn_args *s, pid_t *pid, error *e)
{
    int moved[SPAWN_FDS], pidfd = -1;
    assert(s->nfds <= SPAWN_FDS);
    struct spawn_child c = { .args = s, .moved = moved };
    char *stack = mmap(NULL, SPAWN_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "spawn %s: stack", s->argv[0]);
    sigset_t all;
    sigfillset(&all); /* no handler of ours may run in the child's half of our memory */
    pthread_sigmask(SIG_SETMASK, &all, &c.mask);
    int child = clone(spawn_child_main, stack + SPAWN_STACK, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &c, &pidfd);
    int why = errno;
    pthread_sigmask(SIG_SETMASK, &c.mask, NULL);
    munmap(stack, SPAWN_STACK);
    if (child < 0) return errno = why, fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "spawn %s: clone", s->argv[0]);
    if (pid) *pid = child;
    if (!c.failed) return pidfd;
    while (waitid(P_PIDFD, (id_t)pidfd, NULL, WEXITED) < 0 && errno == EINTR) {}
    close(pidfd);
    return errno = c.failed, fail_sys(e, GRPC_INTERNAL, "execute %s", s->argv[0]);
}

/* Waits for a child by its pidfd until `deadline` (monotonic ns, 0 for ever) and reaps it.
 * Returns its exit code, 128 + n for death by signal n (as shells count), -1 if time ran out. */
static int reap(int pidfd, int64_t deadline)
{
    struct pollfd p = { .fd = pidfd, .events = POLLIN };
    while (poll(&p, 1, clock_poll_ms(deadline)) <= 0)
        if (deadline && clock_mono() >= deadline) return -1;
    siginfo_t info = { 0 };
    while (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) < 0)
        if (errno != EINTR) return 255;
    return info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
}

/* krun's own program as a sealed memfd, made once: nothing that runs from it can be written to
 * through /proc/PID/exe, not even by root in a container (CVE-2019-5736), and a file replaced on
 * disk under a running daemon cannot mix two versions. Borrowed; -1 and *e on failure.
 * Call it first before there are threads. */
static int self_program(error *e)
{
    static int sealed = -1;
    if (sealed >= 0) return sealed;
    OWNED_FD file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0) return fail_sys(e, GRPC_INTERNAL, "open /proc/self/exe");
    if (fcntl(file, F_GET_SEALS) >= 0) return sealed = give_fd(&file); /* we run from the memfd already */
    OWNED_FD copy = (int)syscall(SYS_memfd_create, "krun", 2U | 1U /* MFD_ALLOW_SEALING | MFD_CLOEXEC */);
    if (copy < 0) return fail_sys(e, GRPC_INTERNAL, "memfd_create krun");
    char chunk[16 * KIB];
    for (ssize_t n; (n = read_all(file, chunk, sizeof chunk)) != 0;)
        if (n < 0 || write_all(copy, chunk, (size_t)n) < 0) return fail_sys(e, GRPC_INTERNAL, "copy krun to memory");
    if (fcntl(copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        return fail_sys(e, GRPC_INTERNAL, "seal krun's program");
    return sealed = give_fd(&copy);
}

/* -- events ------------------------------------------------------------------------------------ */

/* One descriptor that someone waits for; embed it in its owner and use OWNER() in `ready`. */
typedef struct watch { int fd; void (*ready)(struct watch *, uint32_t events); } watch;
/* A moment (monotonic ns) that someone waits for; embed it. slot is its place in the heap, from 1. */
typedef struct timer { int64_t at; void (*due)(struct timer *); size_t slot; } timer;
/* Work that another thread hands to the loop's thread. */
typedef struct job { void (*run)(struct job *); struct job *next; } job;

enum { LOOP_BATCH = 64 };
/* One thread's event loop: epoll(7), a heap of timers, and a mailbox for the other threads. */
typedef struct {
    int epoll, wakeup;
    bool stop;
    struct epoll_event batch[LOOP_BATCH]; /* events of this round; a watch that goes away is struck out */
    int nbatch;
    timer **heap; /* heap[1] is the next to be due; heap[0] is not used */
    size_t ntimers, heap_cap;
    pthread_mutex_t mailbox; /* guards `posted` */
    job *posted;
} loop;

static int loop_open(loop *l, error *e)
{
    *l = (loop){ .epoll = epoll_create1(EPOLL_CLOEXEC), .wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
    pthread_mutex_init(&l->mailbox, NULL);
    struct epoll_event mail = { .events = EPOLLIN, .data.ptr = NULL };
    if (l->epoll >= 0 && l->wakeup >= 0 && epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->wakeup, &mail) == 0) return 0;
    return fail_sys(e, GRPC_INTERNAL, "event loop");
}

static void loop_close(loop *l)
{
    close_fd(&l->epoll);
    close_fd(&l->wakeup);
    free(l->heap);
    pthread_mutex_destroy(&l->mailbox);
}

/* `events` as epoll_ctl(2). The watch must stay where it is until loop_forget. */
static int loop_watch(loop *l, watch *w, uint32_t events, error *e)
{
    struct epoll_event want = { .events = events, .data.ptr = w };
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, w->fd, &want) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "watch a descriptor");
    return 0;
}

static void loop_rewatch(loop *l, watch *w, uint32_t events)
{
    struct epoll_event want = { .events = events, .data.ptr = w };
    int done = epoll_ctl(l->epoll, EPOLL_CTL_MOD, w->fd, &want);
    assert(done == 0); /* fails only for a descriptor that was never watched */
    (void)done;
}

/* Ends the watch, before its descriptor is closed: also for events of this round not yet told. */
static void loop_forget(loop *l, watch *w)
{
    epoll_ctl(l->epoll, EPOLL_CTL_DEL, w->fd, NULL);
    for (int i = 0; i < l->nbatch; i++)
        if (l->batch[i].data.ptr == w) l->batch[i].events = 0;
}

static void heap_put(loop *l, timer *t, size_t slot) { l->heap[t->slot = slot] = t; }

static void heap_settle(loop *l, timer *t, size_t slot) /* up, then down, until its place is right */
{
    for (; slot > 1 && l->heap[slot / 2]->at > t->at; slot /= 2) heap_put(l, l->heap[slot / 2], slot);
    for (size_t child; (child = slot * 2) <= l->ntimers; slot = child) {
        if (child < l->ntimers && l->heap[child + 1]->at < l->heap[child]->at) child++;
        if (l->heap[child]->at >= t->at) break;
        heap_put(l, l->heap[child], slot);
    }
    heap_put(l, t, slot);
}

/* Takes the timer out; nothing if it is not armed. */
static void loop_disarm(loop *l, timer *t)
{
    if (!t->slot) return;
    size_t slot = t->slot;
    t->slot = 0;
    timer *last = l->heap[l->ntimers--];
    if (last != t) heap_settle(l, last, slot);
}

/* Calls t->due once, at `at` or soon after. Armed again, it moves. O(log timers). */
static int loop_arm(loop *l, timer *t, int64_t at, error *e)
{
    loop_disarm(l, t);
    if (l->ntimers + 2 > l->heap_cap) {
        size_t cap = MAX(l->heap_cap * 2, (size_t)64);
        timer **heap = realloc(l->heap, cap * sizeof *heap);
        if (!heap) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a timer");
        l->heap = heap;
        l->heap_cap = cap;
    }
    t->at = at;
    heap_settle(l, t, ++l->ntimers);
    return 0;
}

/* From any thread: j->run is called on the loop's thread, in the order of posting. */
static void loop_post(loop *l, job *j)
{
    pthread_mutex_lock(&l->mailbox);
    bool first = !l->posted;
    j->next = l->posted;
    l->posted = j;
    pthread_mutex_unlock(&l->mailbox);
    uint64_t one = 1;
    if (first && write(l->wakeup, &one, sizeof one) < 0) assert(errno == EAGAIN); /* full: it is awake */
}

static void loop_mail(loop *l)
{
    uint64_t count;
    if (read(l->wakeup, &count, sizeof count) < 0) return;
    pthread_mutex_lock(&l->mailbox);
    job *newest = l->posted, *oldest = NULL;
    l->posted = NULL;
    pthread_mutex_unlock(&l->mailbox);
    for (job *next; newest; newest = next) {
        next = newest->next;
        newest->next = oldest;
        oldest = newest;
    }
    for (job *next; oldest; oldest = next) {
        next = oldest->next;
        oldest->run(oldest);
    }
}

/* Runs until loop_stop. Descriptors, then letters, then timers, one after the other, all on this
 * thread: what runs here must not block. */
static void loop_run(loop *l)
{
    for (l->stop = false; !l->stop;) {
        l->nbatch = epoll_wait(l->epoll, l->batch, LOOP_BATCH, l->ntimers ? clock_poll_ms(l->heap[1]->at) : -1);
        for (int i = 0; i < l->nbatch; i++) {
            watch *w = l->batch[i].data.ptr;
            if (!w) loop_mail(l);
            else if (l->batch[i].events) w->ready(w, l->batch[i].events);
        }
        l->nbatch = 0;
        for (int64_t now = clock_mono(); l->ntimers && l->heap[1]->at <= now;) {
            timer *t = l->heap[1];
            loop_disarm(l, t);
            t->due(t);
        }
    }
}

static void loop_stop(loop *l) { l->stop = true; } /* from the loop's own thread */

/* == 3. Text =================================================================================
 *
 * Two languages in which people and registries write data down. JSON comes from registries, CNI
 * plugins and krun's own records; TOML is what an administrator edits (krun.toml, and hosts.toml in
 * the form that containerd reads). Both become the same tree, so a reader of one reads the other.
 *
 * Two JSON parsers that disagree about a text are a security hole: one checks a value, the other
 * uses another one. So this one takes exactly what the RFC allows and says what it does where the
 * RFC is silent: the last of equal keys wins, and half a surrogate pair is an error.
 *
 * Defined by  RFC 8259 (JSON), RFC 3629 (UTF-8), toml.io/en/v1.0.0
 * Uses        1                       Gives  json_parse, json_get, json_string, toml_parse
 * Bounds      64 levels; memory is the arena's budget and as much again while parsing; linear time */

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_kind;

/* A value. All of it is the arena's; texts are copies, each followed by a NUL that `n` leaves out.
 * A string may hold a NUL of its own: whoever makes a path of it looks for that. */
typedef struct json {
    json_kind kind;
    bool boolean;
    slice text;         /* a string, decoded; a number as it was written */
    slice key;          /* this value's name, if it lies in an object */
    struct json *items; /* of an array or object, in the order of the text */
    size_t n;
} json;

enum { TEXT_DEPTH = 64 };

/* Writes a character as UTF-8 (RFC 3629, section 3); its length. `c` is no surrogate. */
static size_t utf8_put(uint32_t c, uint8_t to[4])
{
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = { 0, 0, 0xC0, 0xE0, 0xF0 };
    for (size_t i = n - 1; i > 0; i--, c >>= 6) to[i] = (uint8_t)(0x80 | (c & 0x3F));
    to[0] = (uint8_t)(lead[n] | c);
    return n;
}

/* -- JSON: reading ----------------------------------------------------------------------------- */

typedef struct {
    slice text;
    size_t at;
    arena *a;
    error *e;
    int depth;
    buf open; /* the items so far of all arrays and objects that have not ended */
} json_reader;

static bool json_fail(json_reader *r, const char *what)
{
    fail(r->e, GRPC_INVALID_ARGUMENT, "JSON: byte %zu: %s", r->at, what);
    return false;
}

static bool json_no_memory(json_reader *r)
{
    fail(r->e, GRPC_RESOURCE_EXHAUSTED, "JSON: byte %zu: the text takes too much memory", r->at);
    return false;
}

static int json_peek(const json_reader *r) /* the next byte, -1 at the end */
{
    return r->at < r->text.n ? r->text.p[r->at] : -1;
}

static bool json_take(json_reader *r, char wanted) /* steps over white space and then `wanted` */
{
    while (r->at < r->text.n && strchr(" \t\r\n", r->text.p[r->at]) && r->text.p[r->at]) r->at++;
    if (json_peek(r) != wanted) return false;
    r->at++;
    return true;
}

/* Reads n hexadecimal digits. */
static bool text_hex(slice text, size_t *at, size_t n, uint32_t *out)
{
    uint64_t value;
    slice rest = { text.p + *at, text.n - *at }, digits;
    if (!slice_take(&rest, n, &digits) || !parse_u64(digits, 16, UINT32_MAX, &value)) return false;
    *at += n;
    *out = (uint32_t)value;
    return true;
}

/* \uXXXX, and \uXXXX\uXXXX for what lies past U+FFFF (RFC 8259, section 7); `at` is after the u. */
static bool json_unicode(json_reader *r, uint8_t **to)
{
    uint32_t c, low;
    if (!text_hex(r->text, &r->at, 4, &c)) return json_fail(r, "\\u needs four hexadecimal digits");
    if (c >= 0xDC00 && c <= 0xDFFF) return json_fail(r, "half a surrogate pair");
    if (c >= 0xD800 && c <= 0xDBFF) {
        if (r->text.n - r->at < 2 || memcmp(r->text.p + r->at, "\\u", 2))
            return json_fail(r, "half a surrogate pair");
        r->at += 2;
        if (!text_hex(r->text, &r->at, 4, &low) || low < 0xDC00 || low > 0xDFFF)
            return json_fail(r, "half a surrogate pair");
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    *to += utf8_put(c, *to);
    return true;
}

static bool json_escape(json_reader *r, uint8_t **to) /* `at` is after the backslash */
{
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    int c = json_peek(r);
    const char *found = c > 0 ? strchr(from, c) : NULL;
    if (!found && c != 'u') return json_fail(r, "unknown escape");
    r->at++;
    if (!found) return json_unicode(r, to);
    *(*to)++ = (uint8_t)into[found - from];
    return true;
}

/* A string whose opening quote has been taken. No escape is shorter than what it stands for, so the
 * room that it takes as written is enough. */
static bool json_read_string(json_reader *r, slice *out)
{
    size_t end = r->at;
    while (end < r->text.n && r->text.p[end] != '"') end += r->text.p[end] == '\\' ? 2 : 1;
    if (end >= r->text.n) return json_fail(r, "the string does not end");
    uint8_t *start = arena_alloc(r->a, end - r->at + 1), *to = start;
    if (!start) return json_no_memory(r);
    while (r->text.p[r->at] != '"') {
        slice rest = { r->text.p + r->at, end - r->at };
        size_t n = utf8_char(rest);
        if (!n) return json_fail(r, "not UTF-8");
        if (rest.p[0] < 0x20) return json_fail(r, "a control character in a string");
        r->at += n;
        if (rest.p[0] != '\\') to = (uint8_t *)memcpy(to, rest.p, n) + n;
        else if (!json_escape(r, &to)) return false;
    }
    r->at++;
    *out = (slice){ start, (size_t)(to - start) };
    return true;
}

static size_t json_digits(json_reader *r)
{
    size_t from = r->at;
    while (json_peek(r) >= '0' && json_peek(r) <= '9') r->at++;
    return r->at - from;
}

static bool json_number(json_reader *r, json *v)
{
    size_t from = r->at;
    v->kind = JSON_NUMBER;
    if (json_peek(r) == '-') r->at++;
    bool zero = json_peek(r) == '0';
    size_t whole = json_digits(r);
    if (!whole || (zero && whole > 1)) return json_fail(r, "not a value");
    if (json_peek(r) == '.' && (r->at++, !json_digits(r))) return json_fail(r, "a digit must follow '.'");
    if ((json_peek(r) | 0x20) == 'e') {
        r->at++;
        if (json_peek(r) == '+' || json_peek(r) == '-') r->at++;
        if (!json_digits(r)) return json_fail(r, "an exponent needs digits");
    }
    v->text = arena_copy(r->a, (slice){ r->text.p + from, r->at - from });
    return r->a->oom ? json_no_memory(r) : true;
}

static bool json_word(json_reader *r, json *v)
{
    static const struct { const char *word; json_kind kind; bool boolean; } words[] = {
        { "true", JSON_BOOL, true }, { "false", JSON_BOOL, false }, { "null", JSON_NULL, false },
    };
    slice rest = { r->text.p + r->at, r->text.n - r->at };
    for (size_t i = 0; i < COUNT(words); i++) {
        if (!slice_starts(rest, words[i].word)) continue;
        r->at += strlen(words[i].word);
        v->kind = words[i].kind;
        v->boolean = words[i].boolean;
        return true;
    }
    return json_number(r, v);
}

static bool json_value(json_reader *r, json *v); /* a value in a value */

/* The items of an array or object up to `close`. They wait on one stack for all levels until their
 * number is known; so nothing is copied twice and the time is linear. */
static bool json_items(json_reader *r, json *v, char close)
{
    size_t from = r->open.n;
    if (++r->depth > TEXT_DEPTH) return json_fail(r, "nested too deep");
    for (bool first = true; !json_take(r, close); first = false) {
        json item = { 0 };
        if (!first && !json_take(r, ',')) return json_fail(r, "expected ',' or the end of the list");
        if (v->kind == JSON_OBJECT) {
            if (!json_take(r, '"')) return json_fail(r, "expected a key in quotes");
            if (!json_read_string(r, &item.key)) return false;
            if (!json_take(r, ':')) return json_fail(r, "expected ':'");
        }
        if (!json_value(r, &item)) return false;
        buf_add(&r->open, &item, sizeof item);
        if (r->open.oom || r->open.n > r->a->left) return json_no_memory(r);
    }
    r->depth--;
    v->n = (r->open.n - from) / sizeof *v;
    v->items = arena_alloc(r->a, r->open.n - from);
    if (!v->items) return json_no_memory(r);
    if (v->n) memcpy(v->items, r->open.p + from, r->open.n - from);
    r->open.n = from;
    return true;
}

static bool json_value(json_reader *r, json *v)
{
    if (json_take(r, '{')) return v->kind = JSON_OBJECT, json_items(r, v, '}');
    if (json_take(r, '[')) return v->kind = JSON_ARRAY, json_items(r, v, ']');
    if (json_take(r, '"')) return v->kind = JSON_STRING, json_read_string(r, &v->text);
    return json_word(r, v);
}

/* The tree of a whole JSON text; the arena's. NULL: INVALID_ARGUMENT with the place, or
 * RESOURCE_EXHAUSTED when the arena's budget is too small for it. */
static json *json_parse(slice text, arena *a, error *e)
{
    json_reader r = { .text = text, .a = a, .e = e };
    json *v = arena_alloc(a, sizeof *v);
    bool good = v ? json_value(&r, v) : json_no_memory(&r);
    if (good) json_take(&r, ' ');
    if (good && r.at < text.n) good = json_fail(&r, "something follows the value");
    buf_free(&r.open);
    return good ? v : NULL;
}

/* -- JSON: looking and writing ----------------------------------------------------------------- */

/* The value of `key`; NULL if there is none or `object` is no object. Of equal keys the last. */
static const json *json_get(const json *object, const char *key)
{
    if (!object || object->kind != JSON_OBJECT) return NULL;
    for (size_t i = object->n; i-- > 0;)
        if (slice_is(object->items[i].key, key)) return &object->items[i];
    return NULL;
}

static slice json_text(const json *v) /* a string's bytes; empty if it is NULL or no string */
{
    return v && v->kind == JSON_STRING ? v->text : (slice){ NULL, 0 };
}

/* A number without fraction and exponent that fits; false, and *out untouched, for all else. */
static bool json_int(const json *v, int64_t *out)
{
    if (!v || v->kind != JSON_NUMBER) return false;
    uint64_t size;
    bool minus = v->text.p[0] == '-';
    slice digits = { v->text.p + minus, v->text.n - minus };
    if (!parse_u64(digits, 10, (uint64_t)INT64_MAX + minus, &size)) return false;
    *out = minus ? (int64_t)(0 - size) : (int64_t)size;
    return true;
}

static bool json_true(const json *v) { return v && v->kind == JSON_BOOL && v->boolean; }

/* Writes `s` as a JSON string. What is not UTF-8 becomes U+FFFD, so that the text is JSON whatever
 * an image or a plugin has put into it. */
static void json_string(buf *out, slice s)
{
    static const char from[] = "\"\\\b\f\n\r\t", into[] = "\"\\bfnrt";
    buf_byte(out, '"');
    for (size_t n; s.n; s = (slice){ s.p + MAX(n, 1), s.n - MAX(n, 1) }) {
        n = utf8_char(s);
        const char *special = s.p[0] ? strchr(from, s.p[0]) : NULL;
        if (n == 0) buf_str(out, "\xEF\xBF\xBD");
        else if (special) buf_printf(out, "\\%c", into[special - from]);
        else if (s.p[0] < 0x20) buf_printf(out, "\\u%04x", s.p[0]);
        else buf_add(out, s.p, n);
    }
    buf_byte(out, '"');
}

/* -- TOML -------------------------------------------------------------------------------------- */

/* Who made a table decides who may add to it (toml.io, "Table" and "Keys"): a [header] may be
 * written once, a table made by dotted keys grows by dotted keys only, a value never grows. */
enum toml_maker { TOML_PREFIX, TOML_HEADER, TOML_DOTTED, TOML_HEADERS, TOML_VALUE };

/* A value while its siblings are still being read; toml_finish makes json items of the list. */
typedef struct toml_node {
    json value;
    enum toml_maker maker;
    int depth;
    struct toml_node *first, *last, *next;
} toml_node;

typedef struct { slice text; size_t at; const char *file; arena *a; error *e; } toml_reader;

enum { TOML_KEYS = 4096 }; /* in one table: they are compared one by one */

static bool toml_fail(toml_reader *r, const char *what)
{
    size_t line = 1;
    for (size_t i = 0; i < r->at && i < r->text.n; i++) line += r->text.p[i] == '\n';
    fail(r->e, GRPC_INVALID_ARGUMENT, "%s:%zu: %s", r->file, line, what);
    return false;
}

static bool toml_starts(const toml_reader *r, const char *word)
{
    return slice_starts((slice){ r->text.p + r->at, r->text.n - r->at }, word);
}

static bool toml_take(toml_reader *r, const char *word)
{
    if (!toml_starts(r, word)) return false;
    r->at += strlen(word);
    return true;
}

static void toml_blanks(toml_reader *r)
{
    while (toml_take(r, " ") || toml_take(r, "\t")) {}
}

/* The rest of a line that says no more: blanks, a comment, the line's end. */
static bool toml_line_end(toml_reader *r)
{
    toml_blanks(r);
    if (toml_starts(r, "#"))
        while (r->at < r->text.n && (r->text.p[r->at] >= 0x20 || r->text.p[r->at] == '\t') &&
               r->text.p[r->at] != 127) r->at++;
    if (r->at == r->text.n || toml_take(r, "\n") || toml_take(r, "\r\n")) return true;
    return toml_fail(r, "unexpected text at the end of the line");
}

/* Inside an array, where line ends and comments are white space. */
static bool toml_gap(toml_reader *r)
{
    for (toml_blanks(r); toml_starts(r, "#") || toml_starts(r, "\n") || toml_starts(r, "\r\n");
         toml_blanks(r))
        if (!toml_line_end(r)) return false;
    return true;
}

/* Adds a node at the end of `parent`; NULL and *e when there is no room for it. */
static toml_node *toml_add(toml_reader *r, toml_node *parent, json value, enum toml_maker maker)
{
    toml_node *node = arena_alloc(r->a, sizeof *node);
    bool crowded = parent->value.kind == JSON_OBJECT && parent->value.n >= TOML_KEYS;
    if (!node || crowded || parent->depth >= TEXT_DEPTH) {
        toml_fail(r, crowded ? "too many keys in one table" : node ? "nested too deep" : "out of memory");
        return NULL;
    }
    *node = (toml_node){ .value = value, .maker = maker, .depth = parent->depth + 1 };
    *(parent->last ? &parent->last->next : &parent->first) = node;
    parent->last = node;
    parent->value.n++;
    return node;
}

static toml_node *toml_child(const toml_node *table, slice key)
{
    for (toml_node *child = table->first; child; child = child->next)
        if (slice_eq(child->value.key, key)) return child;
    return NULL;
}

static bool toml_escape(toml_reader *r, buf *out, bool multiline) /* `at` is after the backslash */
{
    static const char from[] = "\"\\bfnrt", into[] = "\"\\\b\f\n\r\t";
    int c = r->at < r->text.n ? r->text.p[r->at] : 0;
    const char *found = c ? strchr(from, c) : NULL;
    uint32_t code;
    uint8_t bytes[4];
    if (found) return r->at++, buf_byte(out, (uint8_t)into[found - from]), true;
    if (c == 'u' || c == 'U') {
        r->at++;
        if (!text_hex(r->text, &r->at, c == 'u' ? 4 : 8, &code) || code > 0x10FFFF || (code & ~0x7FFU) == 0xD800)
            return toml_fail(r, "not a Unicode character");
        return buf_add(out, bytes, utf8_put(code, bytes)), true;
    }
    toml_blanks(r); /* a backslash at the end of a line joins it with the next text */
    if (!multiline || !(toml_starts(r, "\n") || toml_starts(r, "\r\n"))) return toml_fail(r, "unknown escape");
    while (toml_take(r, "\n") || toml_take(r, "\r\n")) toml_blanks(r);
    return true;
}

/* Steps over the closing quotes. Up to two quotes may stand before the three that end a multi-line
 * string, and belong to it. */
static bool toml_close(toml_reader *r, buf *out, const char *quotes)
{
    if (!toml_take(r, quotes)) return false;
    for (int extra = 0; quotes[1] && extra < 2 && toml_take(r, quotes + 2); extra++)
        buf_byte(out, (uint8_t)quotes[0]);
    return true;
}

/* The string after its opening `quotes`: one or three of " (with escapes) or ' (without). */
static bool toml_read_string(toml_reader *r, const char *quotes, slice *out)
{
    bool multiline = quotes[1], escapes = quotes[0] == '"';
    OWNED_BUF text = { 0 };
    if (multiline && !toml_take(r, "\n")) toml_take(r, "\r\n"); /* the first one is not part of it */
    while (!toml_close(r, &text, quotes)) {
        if (r->at >= r->text.n) return toml_fail(r, "the string does not end");
        uint8_t c = r->text.p[r->at];
        if (c == '\\' && escapes) {
            r->at++;
            if (!toml_escape(r, &text, multiline)) return false;
            continue;
        }
        bool line_end = multiline && (toml_starts(r, "\n") || toml_starts(r, "\r\n"));
        if ((c < 0x20 && c != '\t' && !line_end) || c == 127)
            return toml_fail(r, c == '\n' ? "the string does not end" : "a control character in a string");
        if (toml_take(r, "\r\n")) buf_byte(&text, '\n');
        else buf_byte(&text, c), r->at++;
    }
    *out = arena_copy(r->a, buf_view(&text));
    return r->a->oom || text.oom ? toml_fail(r, "out of memory") : true;
}

static bool toml_string(toml_reader *r, slice *out, bool multiline) /* false, *e empty: no quote here */
{
    static const char *const quotes[] = { "\"\"\"", "'''", "\"", "'" };
    for (size_t i = multiline ? 0 : 2; i < COUNT(quotes); i++)
        if (toml_take(r, quotes[i])) return toml_read_string(r, quotes[i], out);
    return toml_fail(r, "expected a string");
}

static slice toml_bare(toml_reader *r, const char *others) /* letters, digits and `others` */
{
    size_t from = r->at;
    for (; r->at < r->text.n; r->at++) {
        unsigned c = r->text.p[r->at];
        if (c - '0' > 9U && (c | 32U) - 'a' > 25U && (!c || !strchr(others, (int)c))) break;
    }
    return (slice){ r->text.p + from, r->at - from };
}

/* One part of a dotted key, with the blanks around it. */
static bool toml_key(toml_reader *r, slice *out)
{
    toml_blanks(r);
    if (toml_starts(r, "\"") || toml_starts(r, "'")) {
        if (!toml_string(r, out, false)) return false;
    } else {
        slice bare = toml_bare(r, "_-");
        if (!bare.n) return toml_fail(r, "expected a key");
        *out = arena_copy(r->a, bare);
    }
    toml_blanks(r);
    return r->a->oom ? toml_fail(r, "out of memory") : true;
}

/* Integers, true and false. What TOML has besides (floats, dates) no key of ours takes. */
static bool toml_word(toml_reader *r, json *v)
{
    slice word = toml_bare(r, "+-_.:");
    if (slice_is(word, "true") || slice_is(word, "false"))
        return v->kind = JSON_BOOL, v->boolean = word.n == 4, true;
    bool minus = slice_starts(word, "-");
    slice rest = minus || slice_starts(word, "+") ? (slice){ word.p + 1, word.n - 1 } : word;
    unsigned base = slice_starts(rest, "0x") ? 16 : slice_starts(rest, "0o") ? 8 : slice_starts(rest, "0b") ? 2 : 10;
    if (base != 10) rest = (slice){ rest.p + 2, rest.n - 2 };
    char digits[72] = "";
    size_t n = 0;
    bool good = rest.n > 0 && rest.n < sizeof digits && (base == 10 || rest.p == word.p + 2) &&
                !(base == 10 && rest.n > 1 && rest.p[0] == '0');
    for (size_t i = 0; good && i < rest.n; i++) { /* a '_' stands between two digits */
        if (rest.p[i] != '_') digits[n++] = (char)rest.p[i];
        else good = i > 0 && i + 1 < rest.n && rest.p[i - 1] != '_' && rest.p[i + 1] != '_';
    }
    uint64_t size;
    if (!good || !parse_u64(slice_of(digits), base, (uint64_t)INT64_MAX + minus, &size))
        return toml_fail(r, "not a value: expected a string, an integer, true, false, [ or {");
    v->kind = JSON_NUMBER;
    v->text = slice_of(arena_printf(r->a, "%s%" PRIu64, minus && size ? "-" : "", size));
    return r->a->oom ? toml_fail(r, "out of memory") : true;
}

static bool toml_value(toml_reader *r, toml_node *parent, slice key); /* a value in a value */

/* key = value, where the key may be dotted and then makes tables on its way. */
static bool toml_pair(toml_reader *r, toml_node *table)
{
    slice key;
    for (;;) {
        if (!toml_key(r, &key)) return false;
        toml_node *child = toml_child(table, key);
        if (!toml_take(r, ".")) {
            if (child) return toml_fail(r, "this key is here twice");
            break;
        }
        if (child && child->maker != TOML_DOTTED) return toml_fail(r, "this key is here twice");
        json made = { .kind = JSON_OBJECT, .key = key };
        table = child ? child : toml_add(r, table, made, TOML_DOTTED);
        if (!table) return false;
    }
    if (!toml_take(r, "=")) return toml_fail(r, "expected '='");
    toml_blanks(r);
    return toml_value(r, table, key);
}

static bool toml_array(toml_reader *r, toml_node *array)
{
    for (;;) {
        if (!toml_gap(r)) return false;
        if (toml_take(r, "]")) return true;
        if (!toml_value(r, array, (slice){ NULL, 0 }) || !toml_gap(r)) return false;
        if (!toml_take(r, ",") && !toml_starts(r, "]")) return toml_fail(r, "expected ',' or ']'");
    }
}

static bool toml_inline(toml_reader *r, toml_node *table)
{
    toml_blanks(r);
    if (toml_take(r, "}")) return true;
    for (;;) {
        if (!toml_pair(r, table)) return false;
        toml_blanks(r);
        if (toml_take(r, "}")) return true;
        if (!toml_take(r, ",")) return toml_fail(r, "expected ',' or '}'");
    }
}

static bool toml_value(toml_reader *r, toml_node *parent, slice key)
{
    json value = { .key = key };
    if (toml_starts(r, "[")) value.kind = JSON_ARRAY;
    else if (toml_starts(r, "{")) value.kind = JSON_OBJECT;
    else if (toml_starts(r, "\"") || toml_starts(r, "'")) value.kind = JSON_STRING;
    if (value.kind == JSON_STRING && !toml_string(r, &value.text, true)) return false;
    if (value.kind == JSON_NULL && !toml_word(r, &value)) return false;
    toml_node *node = toml_add(r, parent, value, TOML_VALUE);
    if (!node) return false;
    if (value.kind == JSON_ARRAY) return toml_take(r, "["), toml_array(r, node);
    if (value.kind == JSON_OBJECT) return toml_take(r, "{"), toml_inline(r, node);
    return true;
}

/* The table that a header's last key names: made, or found where it may still be written. */
static toml_node *toml_header_table(toml_reader *r, toml_node *parent, slice key, bool one_of_many)
{
    toml_node *child = toml_child(parent, key);
    json table = { .kind = JSON_OBJECT, .key = key }, list = { .kind = JSON_ARRAY, .key = key };
    if (!one_of_many) {
        if (!child) return toml_add(r, parent, table, TOML_HEADER);
        if (child->maker == TOML_PREFIX) return child->maker = TOML_HEADER, child;
    } else {
        if (!child) child = toml_add(r, parent, list, TOML_HEADERS);
        if (!child) return NULL;
        table.key = (slice){ NULL, 0 };
        if (child->maker == TOML_HEADERS) return toml_add(r, child, table, TOML_HEADER);
    }
    toml_fail(r, "this table is here twice");
    return NULL;
}

/* [a.b] or [[a.b]]: the table that the next pairs go into. NULL and *e on failure. */
static toml_node *toml_header(toml_reader *r, toml_node *root)
{
    bool one_of_many = toml_take(r, "[[");
    const char *close = one_of_many ? "]]" : "]";
    slice key;
    if (!one_of_many) toml_take(r, "[");
    for (toml_node *table = root, *child;; table = child) {
        if (!toml_key(r, &key)) return NULL;
        if (toml_take(r, close)) {
            child = toml_header_table(r, table, key, one_of_many);
            return child && toml_line_end(r) ? child : NULL;
        }
        if (!toml_take(r, ".")) return toml_fail(r, "expected '.' or ']'"), NULL;
        json prefix = { .kind = JSON_OBJECT, .key = key };
        child = toml_child(table, key);
        if (!child) child = toml_add(r, table, prefix, TOML_PREFIX);
        if (!child) return NULL;
        if (child->maker == TOML_VALUE) return toml_fail(r, "this key has a value already"), NULL;
        if (child->maker == TOML_HEADERS) child = child->last; /* of an array of tables: the last */
    }
}

static bool toml_finish(toml_node *node, arena *a) /* at most TEXT_DEPTH calls deep */
{
    size_t i = 0;
    if (!node->value.n) return true;
    node->value.items = arena_alloc(a, node->value.n * sizeof(json));
    for (toml_node *child = node->first; node->value.items && child; child = child->next) {
        if (!toml_finish(child, a)) return false;
        node->value.items[i++] = child->value;
    }
    return node->value.items;
}

/* The tree of a TOML text, an object; the arena's. NULL: INVALID_ARGUMENT, "file:line: ...". */
static json *toml_parse(slice text, const char *file, arena *a, error *e)
{
    toml_reader r = { .text = text, .file = file, .a = a, .e = e };
    toml_node *root = arena_alloc(a, sizeof *root), *table = root;
    if (!root) return fail(e, GRPC_RESOURCE_EXHAUSTED, "%s: out of memory", file), NULL;
    for (size_t n; r.at < text.n; r.at += n)
        if (!(n = utf8_char((slice){ text.p + r.at, text.n - r.at }))) return toml_fail(&r, "not UTF-8"), NULL;
    r.at = 0;
    root->value.kind = JSON_OBJECT;
    toml_take(&r, "\xEF\xBB\xBF"); /* some editors write a byte order mark */
    while (r.at < text.n) {
        toml_blanks(&r);
        if (r.at == text.n) break;
        if (toml_starts(&r, "[")) table = toml_header(&r, root);
        else if (!memchr("#\r\n", text.p[r.at], 3) && !toml_pair(&r, table)) return NULL;
        else if (!toml_line_end(&r)) return NULL;
        if (!table) return NULL;
    }
    if (!toml_finish(root, a)) return toml_fail(&r, "out of memory"), NULL;
    return &root->value;
}

/* == 4. Hashes and encodings =================================================================
 *
 * An image is named by the SHA-256 of its bytes, so every byte that is pulled goes through here
 * twice: as it came and as it unpacks. That makes SHA-256 the one piece of arithmetic whose speed
 * a pull feels, and most processors have instructions for it; which one we run on is found out once.
 *
 * Defined by  FIPS 180-4 (SHA-2), RFC 4648 (base64), RFC 1952 section 8 (CRC-32), getrandom(2);
 *             OCI image-spec, descriptor.md (digests)
 * Uses        1                       Gives  sha256_*, sha512_*, crc32_add, hex_*, base64_*, digest_*
 * Bounds      no state but tables that are filled once */

/* -- SHA-2 ------------------------------------------------------------------------------------- */

typedef struct { uint32_t h[8]; uint64_t bytes; uint8_t block[64]; } sha256;
typedef struct { uint64_t h[8]; uint64_t bytes; uint8_t block[128]; } sha512; /* below 2^61 bytes */

/* Fractions of the cube roots (K) and square roots (H) of the first primes: FIPS 180-4, 4.2.3 and
 * 5.3.5. SHA-256's constants are the upper halves of SHA-512's, so they are written down once. */
#define SHA_K(X) \
    X(0x428a2f98d728ae22) X(0x7137449123ef65cd) X(0xb5c0fbcfec4d3b2f) X(0xe9b5dba58189dbbc)      \
    X(0x3956c25bf348b538) X(0x59f111f1b605d019) X(0x923f82a4af194f9b) X(0xab1c5ed5da6d8118)      \
    X(0xd807aa98a3030242) X(0x12835b0145706fbe) X(0x243185be4ee4b28c) X(0x550c7dc3d5ffb4e2)      \
    X(0x72be5d74f27b896f) X(0x80deb1fe3b1696b1) X(0x9bdc06a725c71235) X(0xc19bf174cf692694)      \
    X(0xe49b69c19ef14ad2) X(0xefbe4786384f25e3) X(0x0fc19dc68b8cd5b5) X(0x240ca1cc77ac9c65)      \
    X(0x2de92c6f592b0275) X(0x4a7484aa6ea6e483) X(0x5cb0a9dcbd41fbd4) X(0x76f988da831153b5)      \
    X(0x983e5152ee66dfab) X(0xa831c66d2db43210) X(0xb00327c898fb213f) X(0xbf597fc7beef0ee4)      \
    X(0xc6e00bf33da88fc2) X(0xd5a79147930aa725) X(0x06ca6351e003826f) X(0x142929670a0e6e70)      \
    X(0x27b70a8546d22ffc) X(0x2e1b21385c26c926) X(0x4d2c6dfc5ac42aed) X(0x53380d139d95b3df)      \
    X(0x650a73548baf63de) X(0x766a0abb3c77b2a8) X(0x81c2c92e47edaee6) X(0x92722c851482353b)      \
    X(0xa2bfe8a14cf10364) X(0xa81a664bbc423001) X(0xc24b8b70d0f89791) X(0xc76c51a30654be30)      \
    X(0xd192e819d6ef5218) X(0xd69906245565a910) X(0xf40e35855771202a) X(0x106aa07032bbd1b8)      \
    X(0x19a4c116b8d2d0c8) X(0x1e376c085141ab53) X(0x2748774cdf8eeb99) X(0x34b0bcb5e19b48a8)      \
    X(0x391c0cb3c5c95a63) X(0x4ed8aa4ae3418acb) X(0x5b9cca4f7763e373) X(0x682e6ff3d6b2b8a3)      \
    X(0x748f82ee5defb2fc) X(0x78a5636f43172f60) X(0x84c87814a1f0ab72) X(0x8cc702081a6439ec)      \
    X(0x90befffa23631e28) X(0xa4506cebde82bde9) X(0xbef9a3f7b2c67915) X(0xc67178f2e372532b)      \
    X(0xca273eceea26619c) X(0xd186b8c721c0c207) X(0xeada7dd6cde0eb1e) X(0xf57d4f7fee6ed178)      \
    X(0x06f067aa72176fba) X(0x0a637dc5a2c898a6) X(0x113f9804bef90dae) X(0x1b710b35131c471b)      \
    X(0x28db77f523047d84) X(0x32caab7b40c72493) X(0x3c9ebe0a15c9bebc) X(0x431d67c49c100d4c)      \
    X(0x4cc5d4becb3e42b6) X(0x597f299cfc657e2a) X(0x5fcb6fab3ad6faec) X(0x6c44198c4a475817)
#define SHA_H(X) \
    X(0x6a09e667f3bcc908) X(0xbb67ae8584caa73b) X(0x3c6ef372fe94f82b) X(0xa54ff53a5f1d36f1)      \
    X(0x510e527fade682d1) X(0x9b05688c2b3e6c1f) X(0x1f83d9abfb41bd6b) X(0x5be0cd19137e2179)
#define SHA_WORD(k) UINT64_C(k),
#define SHA_UPPER_HALF(k) (uint32_t)(UINT64_C(k) >> 32),
static const uint64_t sha512_k[] = { SHA_K(SHA_WORD) };
static const uint64_t sha512_h[] = { SHA_H(SHA_WORD) };
static const uint32_t sha256_k[] = { SHA_K(SHA_UPPER_HALF) }; /* 64 of them are used */
static const uint32_t sha256_h[] = { SHA_H(SHA_UPPER_HALF) };

static uint32_t load_be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static uint64_t load_be64(const uint8_t *p) { return (uint64_t)load_be32(p) << 32 | load_be32(p + 4); }

static void store_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i));
}
static void store_be64(uint8_t *p, uint64_t v)
{
    store_be32(p, (uint32_t)(v >> 32));
    store_be32(p + 4, (uint32_t)v);
}

static uint32_t rotr32(uint32_t v, int n) { return v >> n | v << (32 - n); }
static uint64_t rotr64(uint64_t v, int n) { return v >> n | v << (64 - n); }

/* One round for words of either size: FIPS 180-4, 6.2.2 step 3. The eight variables do not move;
 * the caller's index says which is `a` now. `s` is the array of them, `i` the round. */
#define SHA_ROUND(s, i, kw, S1, S0)                                                          \
    do {                                                                                     \
        __typeof__((s)[0]) a = (s)[(0 - (i)) & 7], b = (s)[(1 - (i)) & 7], c = (s)[(2 - (i)) & 7], \
                           e = (s)[(4 - (i)) & 7], f = (s)[(5 - (i)) & 7], g = (s)[(6 - (i)) & 7]; \
        __typeof__(a) t = (s)[(7 - (i)) & 7] + S1(e) + ((e & f) ^ (~e & g)) + (kw);          \
        (s)[(3 - (i)) & 7] += t;                                                             \
        (s)[(7 - (i)) & 7] = t + S0(a) + ((a & b) ^ (a & c) ^ (b & c));                      \
    } while (0)

static uint32_t sha256_S0(uint32_t v) { return rotr32(v, 2) ^ rotr32(v, 13) ^ rotr32(v, 22); }
static uint32_t sha256_S1(uint32_t v) { return rotr32(v, 6) ^ rotr32(v, 11) ^ rotr32(v, 25); }
static uint32_t sha256_s0(uint32_t v) { return rotr32(v, 7) ^ rotr32(v, 18) ^ v >> 3; }
static uint32_t sha256_s1(uint32_t v) { return rotr32(v, 17) ^ rotr32(v, 19) ^ v >> 10; }

static void sha256_blocks_portable(uint32_t h[8], const uint8_t *p, size_t blocks)
{
    for (; blocks; blocks--, p += 64) {
        uint32_t s[8], w[16];
        memcpy(s, h, sizeof s);
        for (int i = 0; i < 64; i += 16) {
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) { /* unrolled, so that all indices are constants */
                if (i == 0) w[j] = load_be32(p + 4 * j);
                else w[j] += sha256_s1(w[(j + 14) & 15]) + w[(j + 9) & 15] + sha256_s0(w[(j + 1) & 15]);
                SHA_ROUND(s, j, sha256_k[i + j] + w[j], sha256_S1, sha256_S0);
            }
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static bool sha256_cpu_helps(void) /* CPUID leaf 7, EBX bit 29: SHA; leaf 1, ECX bit 19: SSE4.1 */
{
    unsigned a, b, c, d, b7;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c, &d) || !__get_cpuid(1, &a, &b, &c, &d)) return false;
    return (b7 >> 29 & 1) && (c >> 19 & 1) && (c >> 9 & 1);
}

/* Four rounds an instruction pair. The instructions want the state as two vectors, ABEF and CDGH:
 * Intel SDM, "SHA256RNDS2". m[] holds the last 16 words of the message schedule. */
__attribute__((target("sha,sse4.1,ssse3")))
static void sha256_blocks_cpu(uint32_t h[8], const uint8_t *p, size_t blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i lo = _mm_shuffle_epi32(_mm_loadu_si128((const void *)h), 0xB1);
    __m128i hi = _mm_shuffle_epi32(_mm_loadu_si128((const void *)(h + 4)), 0x1B);
    __m128i abef = _mm_alignr_epi8(lo, hi, 8), cdgh = _mm_blend_epi16(hi, lo, 0xF0);
    for (; blocks; blocks--, p += 64) {
        __m128i m[4], abef_before = abef, cdgh_before = cdgh;
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m128i *w = &m[i & 3];
            if (i < 4) {
                *w = _mm_shuffle_epi8(_mm_loadu_si128((const void *)(p + 16 * i)), swap);
            } else {
                __m128i last = m[(i + 3) & 3], older = m[(i + 2) & 3];
                *w = _mm_add_epi32(_mm_sha256msg1_epu32(*w, m[(i + 1) & 3]), _mm_alignr_epi8(last, older, 4));
                *w = _mm_sha256msg2_epu32(*w, last);
            }
            __m128i kw = _mm_add_epi32(*w, _mm_loadu_si128((const void *)(sha256_k + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, kw);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(kw, 0x0E));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    lo = _mm_shuffle_epi32(abef, 0x1B);
    hi = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((void *)h, _mm_blend_epi16(lo, hi, 0xF0));
    _mm_storeu_si128((void *)(h + 4), _mm_alignr_epi8(hi, lo, 8));
}
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#include <arm_neon.h>
#include <sys/auxv.h>

static bool sha256_cpu_helps(void) { return getauxval(AT_HWCAP) >> 6 & 1; /* HWCAP_SHA2 */ }

/* The four instructions by hand: compilers offer them only to a file built for such processors.
 * Arm ARM, C7.2, "SHA256H", "SHA256H2", "SHA256SU0", "SHA256SU1". */
#define SHA256_ARM(name, operands) ".arch_extension crypto\n\t" name " " operands
static uint32x4_t sha256_arm_h(uint32x4_t abcd, uint32x4_t efgh, uint32x4_t kw)
{
    __asm__(SHA256_ARM("sha256h", "%q0, %q1, %2.4s") : "+w"(abcd) : "w"(efgh), "w"(kw));
    return abcd;
}
static uint32x4_t sha256_arm_h2(uint32x4_t efgh, uint32x4_t abcd, uint32x4_t kw)
{
    __asm__(SHA256_ARM("sha256h2", "%q0, %q1, %2.4s") : "+w"(efgh) : "w"(abcd), "w"(kw));
    return efgh;
}
static uint32x4_t sha256_arm_schedule(uint32x4_t w0, uint32x4_t w4, uint32x4_t w8, uint32x4_t w12)
{
    __asm__(SHA256_ARM("sha256su0", "%0.4s, %1.4s") : "+w"(w0) : "w"(w4));
    __asm__(SHA256_ARM("sha256su1", "%0.4s, %1.4s, %2.4s") : "+w"(w0) : "w"(w8), "w"(w12));
    return w0;
}

static void sha256_blocks_cpu(uint32_t h[8], const uint8_t *p, size_t blocks)
{
    uint32x4_t abcd = vld1q_u32(h), efgh = vld1q_u32(h + 4);
    for (; blocks; blocks--, p += 64) {
        uint32x4_t m[4], abcd_before = abcd, efgh_before = efgh;
        for (int i = 0; i < 16; i++) {
            uint32x4_t *w = &m[i & 3];
            if (i < 4) *w = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p + 16 * i)));
            else *w = sha256_arm_schedule(*w, m[(i + 1) & 3], m[(i + 2) & 3], m[(i + 3) & 3]);
            uint32x4_t kw = vaddq_u32(*w, vld1q_u32(sha256_k + 4 * i)), abcd_old = abcd;
            abcd = sha256_arm_h(abcd, efgh, kw);
            efgh = sha256_arm_h2(efgh, abcd_old, kw);
        }
        abcd = vaddq_u32(abcd, abcd_before);
        efgh = vaddq_u32(efgh, efgh_before);
    }
    vst1q_u32(h, abcd);
    vst1q_u32(h + 4, efgh);
}
#else
static bool sha256_cpu_helps(void) { return false; }
static void sha256_blocks_cpu(uint32_t h[8], const uint8_t *p, size_t blocks)
{
    sha256_blocks_portable(h, p, blocks);
}
#endif

typedef void sha256_blocks_fn(uint32_t h[8], const uint8_t *p, size_t blocks);

static void sha256_blocks(uint32_t h[8], const uint8_t *p, size_t blocks)
{
    static sha256_blocks_fn *_Atomic chosen; /* threads that race here choose the same */
    sha256_blocks_fn *run = chosen;
    if (!run) chosen = run = sha256_cpu_helps() ? sha256_blocks_cpu : sha256_blocks_portable;
    run(h, p, blocks);
}

static uint64_t sha512_S0(uint64_t v) { return rotr64(v, 28) ^ rotr64(v, 34) ^ rotr64(v, 39); }
static uint64_t sha512_S1(uint64_t v) { return rotr64(v, 14) ^ rotr64(v, 18) ^ rotr64(v, 41); }
static uint64_t sha512_s0(uint64_t v) { return rotr64(v, 1) ^ rotr64(v, 8) ^ v >> 7; }
static uint64_t sha512_s1(uint64_t v) { return rotr64(v, 19) ^ rotr64(v, 61) ^ v >> 6; }

static void sha512_blocks(uint64_t h[8], const uint8_t *p, size_t blocks)
{
    for (; blocks; blocks--, p += 128) {
        uint64_t s[8], w[16];
        memcpy(s, h, sizeof s);
        for (int i = 0; i < 80; i += 16) {
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++) {
                if (i == 0) w[j] = load_be64(p + 8 * j);
                else w[j] += sha512_s1(w[(j + 14) & 15]) + w[(j + 9) & 15] + sha512_s0(w[(j + 1) & 15]);
                SHA_ROUND(s, j, sha512_k[i + j] + w[j], sha512_S1, sha512_S0);
            }
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
}

static void sha256_init(sha256 *s)
{
    *s = (sha256){ 0 };
    memcpy(s->h, sha256_h, sizeof s->h);
}

static void sha512_init(sha512 *s)
{
    *s = (sha512){ 0 };
    memcpy(s->h, sha512_h, sizeof s->h);
}

/* Fills the block that is under way; true when it is full and must go before more can be added. */
static bool sha_fill(uint8_t *block, size_t size, size_t used, slice *in)
{
    size_t n = MIN(size - used, in->n);
    if (n) memcpy(block + used, in->p, n);
    *in = (slice){ in->p + n, in->n - n };
    return used + n == size;
}

static void sha256_add(sha256 *s, const void *p, size_t n)
{
    slice in = { p, n };
    size_t used = s->bytes % 64;
    s->bytes += n;
    if (!n || (used && !sha_fill(s->block, 64, used, &in))) return;
    if (used) sha256_blocks(s->h, s->block, 1);
    sha256_blocks(s->h, in.p, in.n / 64);
    in = (slice){ in.p + in.n / 64 * 64, in.n % 64 };
    sha_fill(s->block, 64, 0, &in);
}

static void sha512_add(sha512 *s, const void *p, size_t n)
{
    slice in = { p, n };
    size_t used = s->bytes % 128;
    s->bytes += n;
    if (!n || (used && !sha_fill(s->block, 128, used, &in))) return;
    if (used) sha512_blocks(s->h, s->block, 1);
    sha512_blocks(s->h, in.p, in.n / 128);
    in = (slice){ in.p + in.n / 128 * 128, in.n % 128 };
    sha_fill(s->block, 128, 0, &in);
}

/* The end of a message: a one bit, zeros, its length in bits (FIPS 180-4, 5.1). The hash is used up
 * afterwards; to go on, end a copy of it. */
static void sha256_end(sha256 *s, uint8_t out[32])
{
    uint8_t end[72] = { 0x80 };
    size_t zeros = (119 - s->bytes % 64) % 64;
    store_be64(end + 1 + zeros, s->bytes * 8);
    sha256_add(s, end, 1 + zeros + 8);
    for (int i = 0; i < 8; i++) store_be32(out + 4 * i, s->h[i]);
}

static void sha512_end(sha512 *s, uint8_t out[64])
{
    uint8_t end[144] = { 0x80 };
    size_t zeros = 8 + (239 - s->bytes % 128) % 128; /* the length's upper 8 bytes are zero too */
    store_be64(end + 1 + zeros, s->bytes * 8);
    sha512_add(s, end, 1 + zeros + 8);
    for (int i = 0; i < 8; i++) store_be64(out + 8 * i, s->h[i]);
}

/* -- CRC-32 ------------------------------------------------------------------------------------ */

/* crc32_table[k][b]: what byte b does to the remainder k bytes later, so that eight bytes take one
 * step of eight independent look-ups. Polynomial 0xEDB88320, bits reflected (RFC 1952, section 8). */
static uint32_t crc32_table[8][256];
static pthread_once_t crc32_once = PTHREAD_ONCE_INIT;

static void crc32_fill(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
        crc32_table[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++) {
            uint32_t crc = crc32_table[k - 1][b];
            crc32_table[k][b] = crc >> 8 ^ crc32_table[0][crc & 255];
        }
}

/* The CRC of what `crc` is the CRC of, with n bytes more; starts from 0. */
static uint32_t crc32_add(uint32_t crc, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    pthread_once(&crc32_once, crc32_fill);
    crc = ~crc;
    for (; n >= 8; p += 8, n -= 8) {
        crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        crc = crc32_table[7][crc & 255] ^ crc32_table[6][crc >> 8 & 255] ^ crc32_table[5][crc >> 16 & 255] ^
              crc32_table[4][crc >> 24] ^ crc32_table[3][p[4]] ^ crc32_table[2][p[5]] ^
              crc32_table[1][p[6]] ^ crc32_table[0][p[7]];
    }
    for (; n; p++, n--) crc = crc >> 8 ^ crc32_table[0][(crc ^ *p) & 255];
    return ~crc;
}

/* -- text forms of bytes ----------------------------------------------------------------------- */

static void hex_encode(const void *bytes, size_t n, char *out) /* 2n characters and a NUL */
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < n; i++) {
        *out++ = "0123456789abcdef"[p[i] >> 4];
        *out++ = "0123456789abcdef"[p[i] & 15];
    }
    *out = '\0';
}

/* Reads exactly n bytes as 2n hexadecimal digits of either case; false, with *out undefined. */
static bool hex_decode(slice text, uint8_t *out, size_t n)
{
    if (text.n % 2 || text.n / 2 != n) return false;
    for (size_t i = 0; i < n; i++) {
        uint64_t byte;
        if (!parse_u64((slice){ text.p + 2 * i, 2 }, 16, 255, &byte)) return false;
        out[i] = (uint8_t)byte;
    }
    return true;
}

static const char base64_alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void base64_encode(slice s, buf *out)
{
    for (size_t n; s.n; s = (slice){ s.p + n, s.n - n }) {
        n = MIN(s.n, 3);
        uint32_t v = (uint32_t)s.p[0] << 16 | (n > 1 ? (uint32_t)s.p[1] << 8 : 0) | (n > 2 ? s.p[2] : 0);
        for (size_t i = 0; i < 4; i++)
            buf_byte(out, (uint8_t)(i > n ? '=' : base64_alphabet[v >> (18 - 6 * i) & 63]));
    }
}

static int base64_digit(uint8_t c)
{
    const char *at = c ? strchr(base64_alphabet, c) : NULL;
    return at ? (int)(at - base64_alphabet) : c == '-' ? 62 : c == '_' ? 63 : -1;
}

/* Takes both alphabets of RFC 4648, padded or not, as Protobuf's JSON form asks. False on any other
 * byte (line ends too), a wrong length or bits left over that are not zero: two texts that differ
 * are never the same bytes. What was added to *out before that stays there. */
static bool base64_decode(slice s, buf *out)
{
    size_t padding = 0, bits = 0;
    uint32_t v = 0;
    while (padding < 2 && s.n && s.p[s.n - 1] == '=') padding++, s.n--;
    if (s.n % 4 == 1 || (padding && (s.n + padding) % 4)) return false;
    for (size_t i = 0; i < s.n; i++) {
        int digit = base64_digit(s.p[i]);
        if (digit < 0) return false;
        v = v << 6 | (uint32_t)digit;
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        buf_byte(out, (uint8_t)(v >> bits));
    }
    return (v & ((1U << bits) - 1)) == 0 && !out->oom;
}

enum { DIGEST_TEXT = 72 }; /* "sha256:", 64 digits, NUL */

static void digest_text(const uint8_t hash[32], char out[DIGEST_TEXT])
{
    memcpy(out, "sha256:", 7);
    hex_encode(hash, 32, out + 7);
}

/* Whether `s` is a digest as we use it: only then may it become a part of a file's name. */
static bool digest_valid(slice s)
{
    uint8_t hash[32];
    if (!slice_starts(s, "sha256:") || !hex_decode((slice){ s.p + 7, s.n - 7 }, hash, 32)) return false;
    for (size_t i = 7; i < s.n; i++)
        if (s.p[i] >= 'A' && s.p[i] <= 'F') return false;
    return true;
}

/* n bytes that nobody can guess. False only where getrandom(2) does not work at all. */
static bool random_bytes(void *p, size_t n)
{
    for (uint8_t *at = p; n;) {
        ssize_t got = getrandom(at, n, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

/* == 5. Decompression ========================================================================
 *
 * A layer comes as tar, packed by gzip or zstd. Unpacking must keep pace with the network in little
 * memory, and what it reads was written by nobody we know. So everything here is a pull: whoever
 * wants bytes asks a `source`, which asks the source behind it. Nothing is ever held but a window of
 * what was written last, since both formats say "copy n bytes from d bytes ago".
 *
 * Both speak in Huffman codes, where a frequent symbol has few bits. A table indexed by the next 11
 * bits answers for most symbols at once; the few longer ones go through a second table.
 *
 * Defined by  RFC 1951 (deflate), RFC 1952 (gzip), RFC 8878 (zstd)
 * Uses        1, 4 (crc32_add, sha256)
 * Gives       source, fd_source, mem_source, hash_source, decompress_open
 * Bounds      gzip 350 KiB; zstd its window (8 MiB, or what the caller allows) and 1 MiB; linear time */

/* Something to read from. read: 1..n bytes into p; 0 at the end; -1 and *e, and nothing after that. */
typedef struct source { ssize_t (*read)(struct source *, uint8_t *p, size_t n, error *e); } source;

typedef struct { source source; int fd; } fd_source;      /* the descriptor stays its owner's */
typedef struct { source source; slice left; } mem_source; /* and so do the bytes */
/* Hands on what it reads from `in`, hashed and counted. */
typedef struct { source source, *in; sha256 hash; uint64_t bytes; } hash_source;

static ssize_t fd_source_read(source *s, uint8_t *p, size_t n, error *e)
{
    ssize_t got;
    do got = read(OWNER(s, fd_source, source)->fd, p, n);
    while (got < 0 && errno == EINTR);
    return got < 0 ? fail_sys(e, GRPC_INTERNAL, "read") : got;
}

static source *fd_source_open(fd_source *f, int fd)
{
    *f = (fd_source){ { fd_source_read }, fd };
    return &f->source;
}

static ssize_t mem_source_read(source *s, uint8_t *p, size_t n, error *e)
{
    slice *left = &OWNER(s, mem_source, source)->left, head;
    (void)e;
    slice_take(left, MIN(n, left->n), &head);
    if (head.n) memcpy(p, head.p, head.n);
    return (ssize_t)head.n;
}

static source *mem_source_open(mem_source *m, slice bytes)
{
    *m = (mem_source){ { mem_source_read }, bytes };
    return &m->source;
}

static ssize_t hash_source_read(source *s, uint8_t *p, size_t n, error *e)
{
    hash_source *h = OWNER(s, hash_source, source);
    ssize_t got = h->in->read(h->in, p, n, e);
    if (got <= 0) return got;
    sha256_add(&h->hash, p, (size_t)got);
    h->bytes += (uint64_t)got;
    return got;
}

static source *hash_source_open(hash_source *h, source *in)
{
    *h = (hash_source){ .source = { hash_source_read }, .in = in };
    sha256_init(&h->hash);
    return &h->source;
}

/* Reads to the end of `s`: what follows an archive's last entry belongs to its hash too. */
static int source_drain(source *s, error *e)
{
    uint8_t waste[16 * KIB];
    ssize_t n;
    while ((n = s->read(s, waste, sizeof waste, e)) > 0) {}
    return (int)n;
}

/* -- looking ahead ----------------------------------------------------------------------------- */

enum { ZSTD_BLOCK = 128 * KIB, READER_BYTES = ZSTD_BLOCK + 64 * KIB };

/* Bytes of `in` that have come but not been used: p to end. */
typedef struct { source *in; uint8_t *p, *end, *bytes; bool ended; } byte_reader;

/* Makes `need` (at most READER_BYTES) bytes lie at r->p, or as many as there are before the end of
 * the input. Reads no more often than it must. -1 and *e if reading fails. */
static int reader_fill(byte_reader *r, size_t need, error *e)
{
    size_t have = (size_t)(r->end - r->p);
    assert(need <= READER_BYTES);
    if (have >= need || r->ended) return 0;
    if (have) memmove(r->bytes, r->p, have);
    r->p = r->bytes;
    r->end = r->bytes + have;
    while ((size_t)(r->end - r->p) < need && !r->ended) {
        ssize_t n = r->in->read(r->in, r->end, READER_BYTES - (size_t)(r->end - r->p), e);
        if (n < 0) return -1;
        r->ended = n == 0;
        r->end += n;
    }
    return 0;
}

static uint64_t load_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? v : __builtin_bswap64(v);
}

enum { COPY_SLACK = 32 }; /* how far past its end a copy may write */

/* Writes n bytes that repeat what stands `distance` bytes before `to`; returns the end. Copies whole
 * words, so up to COPY_SLACK bytes past the end are overwritten with anything. */
static inline uint8_t *match_copy(uint8_t *to, size_t distance, size_t n)
{
    uint8_t *end = to + n;
    const uint8_t *from = to - distance;
    if (distance >= 16) {
        do {
            memcpy(to, from, 16);
            to += 16, from += 16;
        } while (to < end);
    } else if (distance == 1) {
        memset(to, *from, n);
    } else if (distance >= 8) {
        do {
            memcpy(to, from, 8);
            to += 8, from += 8;
        } while (to < end);
    } else {
        while (to < end) *to++ = *from++;
    }
    return end;
}

/* -- deflate: codes ---------------------------------------------------------------------------- */

/* A table entry, 32 bits. The table is indexed by the next bits of the stream.
 *    0..7   bits to take off the stream: the code's and its extra bits'
 *    8..11  the code's alone (of a SUB entry: width of the second table)
 *   13..15  BAD: no such code. END: of the block. SUB: go on in the second table, at `value`
 *   16..30  value: the literal, or the base that the extra bits are added to
 *   31      LITERAL */
enum { HUFF_BAD = 1 << 13, HUFF_END = 1 << 14, HUFF_SUB = 1 << 15 };
#define HUFF_LITERAL 0x80000000U

enum {
    HUFF_MAX = 15,                       /* bits of the longest code: RFC 1951, 3.2.7 */
    LITLEN_SYMBOLS = 288, LITLEN_BITS = 11,
    DIST_SYMBOLS = 32, DIST_BITS = 8,
    CLEN_SYMBOLS = 19, CLEN_BITS = 7,
    /* A second table holds two codes at least, so there are at most half as many as symbols. */
    LITLEN_TABLE = (1 << LITLEN_BITS) + LITLEN_SYMBOLS / 2 * (1 << (HUFF_MAX - LITLEN_BITS)),
    DIST_TABLE = (1 << DIST_BITS) + DIST_SYMBOLS / 2 * (1 << (HUFF_MAX - DIST_BITS))
};

/* Base and extra bits of the length codes 257.. and the distance codes 0..: RFC 1951, 3.2.5. */
static const struct { uint16_t base; uint8_t extra; } deflate_lengths[] = {
    { 3, 0 }, { 4, 0 }, { 5, 0 }, { 6, 0 }, { 7, 0 }, { 8, 0 }, { 9, 0 }, { 10, 0 },
    { 11, 1 }, { 13, 1 }, { 15, 1 }, { 17, 1 }, { 19, 2 }, { 23, 2 }, { 27, 2 }, { 31, 2 },
    { 35, 3 }, { 43, 3 }, { 51, 3 }, { 59, 3 }, { 67, 4 }, { 83, 4 }, { 99, 4 }, { 115, 4 },
    { 131, 5 }, { 163, 5 }, { 195, 5 }, { 227, 5 }, { 258, 0 },
};
static const struct { uint16_t base; uint8_t extra; } deflate_distances[] = {
    { 1, 0 }, { 2, 0 }, { 3, 0 }, { 4, 0 }, { 5, 1 }, { 7, 1 }, { 9, 2 }, { 13, 2 },
    { 17, 3 }, { 25, 3 }, { 33, 4 }, { 49, 4 }, { 65, 5 }, { 97, 5 }, { 129, 6 }, { 193, 6 },
    { 257, 7 }, { 385, 7 }, { 513, 8 }, { 769, 8 }, { 1025, 9 }, { 1537, 9 }, { 2049, 10 },
    { 3073, 10 }, { 4097, 11 }, { 6145, 11 }, { 8193, 12 }, { 12289, 12 }, { 16385, 13 }, { 24577, 13 },
};

typedef uint32_t huff_symbol(unsigned symbol); /* a symbol's entry, but for the code's bits */

static uint32_t litlen_symbol(unsigned s)
{
    if (s < 256) return HUFF_LITERAL | s << 16;
    if (s == 256) return HUFF_END;
    if (s - 257 >= COUNT(deflate_lengths)) return HUFF_BAD;
    return (uint32_t)deflate_lengths[s - 257].base << 16 | deflate_lengths[s - 257].extra;
}

static uint32_t dist_symbol(unsigned s)
{
    if (s >= COUNT(deflate_distances)) return HUFF_BAD;
    return (uint32_t)deflate_distances[s].base << 16 | deflate_distances[s].extra;
}

static uint32_t clen_symbol(unsigned s) { return s << 16; }

/* The codes of one block as lengths: RFC 1951, 3.2.2 makes the codes from these alone. */
typedef struct { const uint8_t *lengths; unsigned symbols, width; huff_symbol *entry; } huff_code;

/* The next code of the same length, with its first bit lowest as the stream has it: adds one from
 * the top. A longer code that follows needs no change, its new bits are zeros on top. */
static unsigned huff_next_code(unsigned code, unsigned length)
{
    unsigned bit = 1U << (length - 1);
    while (code & bit) bit >>= 1;
    return bit ? (code & (bit - 1)) | bit : 0;
}

/* Whether the lengths make a code in which every run of bits means something. zlib writes two that
 * leave bits over, and they are taken: one code of one bit, and (distances) no code at all. */
static bool huff_complete(const unsigned count[HUFF_MAX + 1], unsigned used, const huff_code *c)
{
    int left = 1;
    for (unsigned length = 1; length <= HUFF_MAX; length++) {
        left = 2 * left - (int)count[length];
        if (left < 0) return false;
    }
    if (left == 0) return true;
    return c->entry != clen_symbol && (used == count[1] && used == 1 ? true : !used && c->entry == dist_symbol);
}

/* Fills the table of a code. False if the lengths make none. */
static bool huff_build(uint32_t *table, const huff_code *c)
{
    unsigned count[HUFF_MAX + 1] = { 0 }, at[HUFF_MAX + 2] = { 0 };
    uint16_t sorted[LITLEN_SYMBOLS];
    for (unsigned s = 0; s < c->symbols; s++) count[c->lengths[s]]++;
    unsigned used = c->symbols - count[0], longest = HUFF_MAX;
    count[0] = 0;
    if (!huff_complete(count, used, c)) return false;
    for (unsigned l = 1; l <= HUFF_MAX; l++) at[l + 1] = at[l] + count[l];
    for (unsigned s = 0; s < c->symbols; s++)
        if (c->lengths[s]) sorted[at[c->lengths[s]]++] = (uint16_t)s;
    while (longest > c->width && !count[longest]) longest--;
    unsigned size = 1U << c->width, sub = longest - c->width, next = size, second = 0, code = 0, prefix = ~0U;
    if (used < 2)
        for (unsigned i = 0; i < size; i++) table[i] = HUFF_BAD | 1;
    for (unsigned i = 0; i < used; i++) {
        unsigned length = c->lengths[sorted[i]], skip = length > c->width ? c->width : 0;
        if (skip && (code & (size - 1)) != prefix) {
            prefix = code & (size - 1);
            table[prefix] = HUFF_SUB | next << 16 | sub << 8 | c->width;
            second = next;
            next += 1U << sub;
        }
        uint32_t entry = c->entry(sorted[i]) + (length - skip) * 0x101;
        unsigned from = skip ? second + (code >> skip) : code, end = skip ? second + (1U << sub) : size;
        for (unsigned k = from; k < end; k += 1U << (length - skip)) table[k] = entry;
        code = huff_next_code(code, length);
    }
    return true;
}

/* -- deflate: the stream ----------------------------------------------------------------------- */

/* Bits that have been read but not used, the next one lowest. Below zero, `count` is how many were
 * used that the input did not have. What stands above `count` is zero, or what comes next anyway. */
typedef struct { uint64_t bits; int count; } bitbuf;

enum { DEFLATE_WINDOW = 32 * KIB, DEFLATE_MATCH = 258, INFLATE_OUT = DEFLATE_WINDOW + 96 * KIB };

enum inflate_state { GZIP_MEMBER, DEFLATE_BLOCK, DEFLATE_STORED, DEFLATE_CODES, GZIP_TRAILER, GZIP_END };

typedef struct inflate {
    byte_reader in;
    bitbuf b;
    enum inflate_state state;
    bool last_block, fixed;         /* fixed: the tables are those of the fixed codes */
    unsigned stored;                /* bytes left of a stored block */
    uint32_t crc, size;             /* of this member, up to `summed` */
    uint8_t *low, *given, *summed, *out; /* what a match may reach; where reader, CRC, writer are */
    uint32_t litlen[LITLEN_TABLE], dist[DIST_TABLE];
    uint8_t window[INFLATE_OUT + DEFLATE_MATCH + COPY_SLACK]; /* written past INFLATE_OUT by one match */
} inflate;

static int inflate_fail(error *e, const char *what) { return fail(e, GRPC_INVALID_ARGUMENT, "gzip: %s", what); }

static inline void bits_drop(bitbuf *b, unsigned n)
{
    b->bits >>= n;
    b->count -= (int)n;
}

/* Tops up to 56 bits or more from *p, which must be followed by eight bytes. */
static inline void bits_refill(bitbuf *b, uint8_t **p)
{
    b->bits |= load_le64(*p) << b->count;
    *p += (63 - b->count) >> 3;
    b->count |= 56;
}

/* Tops up to `want` bits, one byte after the other, or to the end of the input. */
static int bits_fill(inflate *z, int want, error *e)
{
    while (z->b.count < want) {
        if (z->in.p == z->in.end && reader_fill(&z->in, 1, e) < 0) return -1;
        if (z->in.p == z->in.end) return 0;
        z->b.bits |= (uint64_t)*z->in.p++ << z->b.count;
        z->b.count += 8;
    }
    return 0;
}

/* Takes n (at most 32) bits as a number. -1 and *e if the input ends before. */
static int bits_take(inflate *z, unsigned n, uint32_t *out, error *e)
{
    if (bits_fill(z, (int)n, e) < 0) return -1;
    if (z->b.count < (int)n) return inflate_fail(e, "the stream is cut off");
    *out = (uint32_t)(z->b.bits & ((UINT64_C(1) << n) - 1));
    bits_drop(&z->b, n);
    return 0;
}

/* Takes the next symbol off the stream: its entry, and base plus extra bits in *value. */
static inline uint32_t huff_take(bitbuf *b, const uint32_t *table, unsigned width, uint32_t *value)
{
    uint32_t entry = table[b->bits & ((1U << width) - 1)];
    if (__builtin_expect(entry & HUFF_SUB, 0)) {
        bits_drop(b, entry & 0xFF);
        entry = table[(entry >> 16) + (b->bits & ((1U << (entry >> 8 & 15)) - 1))];
    }
    uint64_t taken = b->bits & ((UINT64_C(1) << (entry & 0xFF)) - 1);
    bits_drop(b, entry & 0xFF);
    *value = (entry >> 16 & 0x7FFF) + (uint32_t)(taken >> (entry >> 8 & 15));
    return entry;
}

/* The header of a dynamic block: RFC 1951, 3.2.7. The lengths of the two codes, themselves coded. */
static int inflate_read_lengths(inflate *z, uint8_t *lengths, unsigned n, error *e)
{
    static const struct { uint8_t bits, base; } repeats[] = { { 2, 3 }, { 3, 3 }, { 7, 11 } };
    uint32_t symbol, more;
    for (unsigned i = 0; i < n;) {
        if (bits_fill(z, CLEN_BITS, e) < 0) return -1;
        huff_take(&z->b, z->litlen, CLEN_BITS, &symbol);
        if (z->b.count < 0) return inflate_fail(e, "the stream is cut off");
        if (symbol < 16) {
            lengths[i++] = (uint8_t)symbol;
            continue;
        }
        if (bits_take(z, repeats[symbol - 16].bits, &more, e) < 0) return -1;
        more += repeats[symbol - 16].base;
        if (more > n - i || (symbol == 16 && !i)) return inflate_fail(e, "a repeated code length has no place");
        memset(lengths + i, symbol == 16 ? lengths[i - 1] : 0, more);
        i += more;
    }
    return 0;
}

static int inflate_dynamic(inflate *z, error *e)
{
    static const uint8_t order[CLEN_SYMBOLS] = { 16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15 };
    uint8_t lengths[LITLEN_SYMBOLS + DIST_SYMBOLS] = { 0 };
    uint32_t counts, length;
    if (bits_take(z, 14, &counts, e) < 0) return -1;
    z->fixed = false;
    unsigned nlitlen = 257 + (counts & 31), ndist = 1 + (counts >> 5 & 31), nclen = 4 + (counts >> 10);
    if (nlitlen > 286 || ndist > 30) return inflate_fail(e, "too many codes");
    for (unsigned i = 0; i < nclen; i++) {
        if (bits_take(z, 3, &length, e) < 0) return -1;
        lengths[order[i]] = (uint8_t)length;
    }
    if (!huff_build(z->litlen, &(huff_code){ lengths, CLEN_SYMBOLS, CLEN_BITS, clen_symbol }))
        return inflate_fail(e, "the code of the code lengths is no code");
    memset(lengths, 0, CLEN_SYMBOLS);
    if (inflate_read_lengths(z, lengths, nlitlen + ndist, e) < 0) return -1;
    if (!lengths[256]) return inflate_fail(e, "a block that cannot end");
    if (!huff_build(z->litlen, &(huff_code){ lengths, nlitlen, LITLEN_BITS, litlen_symbol }) ||
        !huff_build(z->dist, &(huff_code){ lengths + nlitlen, ndist, DIST_BITS, dist_symbol }))
        return inflate_fail(e, "the lengths of the codes make no code");
    z->state = DEFLATE_CODES;
    return 0;
}

static int inflate_fixed(inflate *z) /* RFC 1951, 3.2.6 */
{
    uint8_t lengths[LITLEN_SYMBOLS];
    z->state = DEFLATE_CODES;
    if (z->fixed) return 0; /* made once: else many tiny blocks would cost far more than their bytes */
    z->fixed = true;
    for (unsigned s = 0; s < LITLEN_SYMBOLS; s++) lengths[s] = s < 144 ? 8 : s < 256 ? 9 : s < 280 ? 7 : 8;
    huff_build(z->litlen, &(huff_code){ lengths, LITLEN_SYMBOLS, LITLEN_BITS, litlen_symbol });
    memset(lengths, 5, DIST_SYMBOLS);
    huff_build(z->dist, &(huff_code){ lengths, DIST_SYMBOLS, DIST_BITS, dist_symbol });
    return 0;
}

static int inflate_block(inflate *z, error *e)
{
    uint32_t header, length;
    if (z->last_block) return z->state = GZIP_TRAILER, 0;
    if (bits_take(z, 3, &header, e) < 0) return -1;
    z->last_block = header & 1;
    if (header >> 1 == 1) return inflate_fixed(z);
    if (header >> 1 == 2) return inflate_dynamic(z, e);
    if (header >> 1 == 3) return inflate_fail(e, "a block of unknown type");
    bits_drop(&z->b, (unsigned)z->b.count & 7);
    if (bits_take(z, 32, &length, e) < 0) return -1;
    z->stored = length & 0xFFFF;
    if ((length >> 16 ^ 0xFFFF) != z->stored) return inflate_fail(e, "a stored block whose lengths differ");
    z->state = DEFLATE_STORED;
    return 0;
}

static int inflate_stored(inflate *z, error *e)
{
    uint32_t byte;
    while (z->stored && z->out < z->window + INFLATE_OUT) {
        if (z->b.count > 0) { /* first what has become bits already */
            if (bits_take(z, 8, &byte, e) < 0) return -1;
            *z->out++ = (uint8_t)byte;
            z->stored--;
            continue;
        }
        if (reader_fill(&z->in, 1, e) < 0) return -1;
        size_t n = MIN((size_t)(z->in.end - z->in.p), (size_t)(z->window + INFLATE_OUT - z->out));
        n = MIN(n, z->stored);
        if (!n) return inflate_fail(e, "the stream is cut off");
        memcpy(z->out, z->in.p, n);
        z->in.p += n, z->out += n, z->stored -= (unsigned)n;
    }
    if (!z->stored) z->state = DEFLATE_BLOCK;
    return 0;
}

/* Why a symbol cannot be taken. */
static int inflate_bad_code(error *e, int bits_left)
{
    return inflate_fail(e, bits_left < 0 ? "the stream is cut off" : "a code that does not exist");
}

/* Decodes while there are eight bytes of input to load at once and room for a match, without a look
 * at either in between. 56 bits hold three symbols of which the last has extra bits (3 x 15 + 5),
 * or a distance (15 + 13). */
static int inflate_fast(inflate *z, error *e)
{
    bitbuf b = z->b;
    uint8_t *p = z->in.p, *out = z->out, *const low = z->low, *const out_end = z->window + INFLATE_OUT;
    const uint8_t *const p_end = z->in.end - 16;
    uint32_t length = 0, distance = 0, entry;
    int result = 0;
    while (p < p_end && out < out_end) {
        bits_refill(&b, &p);
        entry = huff_take(&b, z->litlen, LITLEN_BITS, &length);
        if (entry & HUFF_LITERAL) {
            *out++ = (uint8_t)(entry >> 16);
            entry = huff_take(&b, z->litlen, LITLEN_BITS, &length);
            if (entry & HUFF_LITERAL) {
                *out++ = (uint8_t)(entry >> 16);
                entry = huff_take(&b, z->litlen, LITLEN_BITS, &length);
                if (entry & HUFF_LITERAL) {
                    *out++ = (uint8_t)(entry >> 16);
                    continue;
                }
            }
        }
        if (entry & (HUFF_END | HUFF_BAD)) {
            if (entry & HUFF_BAD) result = inflate_bad_code(e, 0);
            else z->state = DEFLATE_BLOCK;
            break;
        }
        bits_refill(&b, &p);
        if (huff_take(&b, z->dist, DIST_BITS, &distance) & HUFF_BAD) {
            result = inflate_bad_code(e, 0);
            break;
        }
        if (distance > (size_t)(out - low)) {
            result = inflate_fail(e, "a distance that goes back before the start");
            break;
        }
        out = match_copy(out, distance, length);
    }
    b.bits &= (UINT64_C(1) << b.count) - 1;
    z->b = b;
    z->in.p = p;
    z->out = out;
    return result;
}

/* One symbol, and its distance, with an eye on the end of the input. */
static int inflate_slow(inflate *z, error *e)
{
    uint32_t length, distance;
    if (bits_fill(z, 48, e) < 0) return -1;
    uint32_t entry = huff_take(&z->b, z->litlen, LITLEN_BITS, &length);
    if (z->b.count < 0 || entry & HUFF_BAD) return inflate_bad_code(e, z->b.count);
    if (entry & HUFF_LITERAL) *z->out++ = (uint8_t)(entry >> 16);
    if (entry & HUFF_END) z->state = DEFLATE_BLOCK;
    if (entry & (HUFF_LITERAL | HUFF_END)) return 0;
    entry = huff_take(&z->b, z->dist, DIST_BITS, &distance);
    if (z->b.count < 0 || entry & HUFF_BAD) return inflate_bad_code(e, z->b.count);
    if (distance > (size_t)(z->out - z->low)) return inflate_fail(e, "a distance that goes back before the start");
    z->out = match_copy(z->out, distance, length);
    return 0;
}

static int inflate_codes(inflate *z, error *e)
{
    while (z->state == DEFLATE_CODES && z->out < z->window + INFLATE_OUT) {
        int done = z->in.end - z->in.p > 16 ? inflate_fast(z, e) : inflate_slow(z, e);
        if (done < 0) return -1;
    }
    return 0;
}

/* -- gzip: members ----------------------------------------------------------------------------- */

/* Takes a byte of the header, which its CRC (FHCRC) is over. */
static int gzip_byte(inflate *z, uint32_t *byte, error *e)
{
    if (bits_take(z, 8, byte, e) < 0) return -1;
    uint8_t b = (uint8_t)*byte;
    z->crc = crc32_add(z->crc, &b, 1);
    return 0;
}

static int gzip_skip(inflate *z, uint32_t n, error *e)
{
    for (uint32_t byte; n; n--)
        if (gzip_byte(z, &byte, e) < 0) return -1;
    return 0;
}

static int gzip_skip_text(inflate *z, error *e) /* up to a NUL */
{
    uint32_t byte = 1;
    while (byte)
        if (gzip_byte(z, &byte, e) < 0) return -1;
    return 0;
}

/* What follows the last member: nothing, or the zeros that fill a tape's block. */
static int gzip_padding(inflate *z, error *e)
{
    for (;;) {
        if (bits_fill(z, 8, e) < 0) return -1;
        if (z->b.count < 8) return z->state = GZIP_END, 0;
        if (z->b.bits & 0xFF) return inflate_fail(e, "something else follows the stream");
        bits_drop(&z->b, 8);
    }
}

/* A member's header, RFC 1952, 2.3; or the end. */
static int gzip_header(inflate *z, error *e)
{
    enum { FHCRC = 2, FEXTRA = 4, FNAME = 8, FCOMMENT = 16, FRESERVED = 0xE0 };
    uint32_t byte[10] = { 0 }, extra[2], crc;
    bool first = !z->low;
    if (bits_fill(z, 8, e) < 0) return -1;
    if (!first && (z->b.count < 8 || (z->b.bits & 0xFF) != 0x1F)) return gzip_padding(z, e);
    z->crc = z->size = 0;
    for (size_t i = 0; i < COUNT(byte); i++)
        if (gzip_byte(z, &byte[i], e) < 0) return -1;
    if (byte[0] != 0x1F || byte[1] != 0x8B) return inflate_fail(e, "this is no gzip stream");
    if (byte[2] != 8) return inflate_fail(e, "the compression method is not deflate");
    if (byte[3] & FRESERVED) return inflate_fail(e, "a flag of the header is not known");
    if (byte[3] & FEXTRA && (gzip_byte(z, &extra[0], e) < 0 || gzip_byte(z, &extra[1], e) < 0 ||
                             gzip_skip(z, extra[0] | extra[1] << 8, e) < 0)) return -1;
    if (byte[3] & FNAME && gzip_skip_text(z, e) < 0) return -1;
    if (byte[3] & FCOMMENT && gzip_skip_text(z, e) < 0) return -1;
    uint32_t want = z->crc & 0xFFFF;
    if (byte[3] & FHCRC) {
        if (bits_take(z, 16, &crc, e) < 0) return -1;
        if (crc != want) return inflate_fail(e, "the checksum of the header is wrong");
    }
    z->crc = 0;
    z->low = z->summed = z->out; /* no match reaches back into the member before */
    z->last_block = false;
    z->state = DEFLATE_BLOCK;
    return 0;
}

static void gzip_sum(inflate *z)
{
    z->crc = crc32_add(z->crc, z->summed, (size_t)(z->out - z->summed));
    z->size += (uint32_t)(z->out - z->summed);
    z->summed = z->out;
}

static int gzip_trailer(inflate *z, error *e)
{
    uint32_t crc, size;
    gzip_sum(z);
    bits_drop(&z->b, (unsigned)z->b.count & 7);
    if (bits_take(z, 32, &crc, e) < 0 || bits_take(z, 32, &size, e) < 0) return -1;
    if (crc != z->crc) return inflate_fail(e, "the checksum is wrong");
    if (size != z->size) return inflate_fail(e, "the size is wrong");
    z->state = GZIP_MEMBER;
    return 0;
}

static int inflate_step(inflate *z, error *e)
{
    switch (z->state) {
    case GZIP_MEMBER: return gzip_header(z, e);
    case DEFLATE_BLOCK: return inflate_block(z, e);
    case DEFLATE_STORED: return inflate_stored(z, e);
    case DEFLATE_CODES: return inflate_codes(z, e);
    case GZIP_TRAILER: return gzip_trailer(z, e);
    case GZIP_END: break;
    }
    return 0;
}

/* All has been given out: moves the last window's worth to the front, and writes behind it. */
static void inflate_slide(inflate *z)
{
    size_t shift = (size_t)(z->out - z->window);
    if (shift <= DEFLATE_WINDOW) return;
    shift -= DEFLATE_WINDOW;
    memmove(z->window, z->window + shift, DEFLATE_WINDOW);
    z->out -= shift;
    z->given = z->summed = z->out;
    z->low -= MIN(shift, (size_t)(z->low - z->window));
}

static ssize_t inflate_read(inflate *z, uint8_t *p, size_t n, error *e)
{
    if (z->given == z->out) {
        if (z->out >= z->window + INFLATE_OUT) inflate_slide(z);
        while (z->state != GZIP_END && z->out < z->window + INFLATE_OUT)
            if (inflate_step(z, e) < 0) return -1;
        gzip_sum(z);
    }
    n = MIN(n, (size_t)(z->out - z->given));
    if (n) memcpy(p, z->given, n);
    z->given += n;
    return (ssize_t)n;
}

/* -- choosing ---------------------------------------------------------------------------------- */

enum decompress_kind { PLAIN, GZIP, ZSTD };

/* Reads `in` and gives what was packed in it. */
typedef struct { source source; enum decompress_kind kind; byte_reader in; inflate *inflate; } decompressor;

static ssize_t plain_read(byte_reader *in, uint8_t *p, size_t n, error *e)
{
    size_t ahead = MIN(n, (size_t)(in->end - in->p));
    if (!ahead) return in->ended ? 0 : in->in->read(in->in, p, n, e);
    memcpy(p, in->p, ahead);
    in->p += ahead;
    return (ssize_t)ahead;
}

static ssize_t decompress_read(source *s, uint8_t *p, size_t n, error *e)
{
    decompressor *d = OWNER(s, decompressor, source);
    if (d->kind == GZIP) return inflate_read(d->inflate, p, n, e);
    return plain_read(&d->in, p, n, e);
}

static void decompress_close(decompressor *d)
{
    free(d->inflate);
    free(d->in.bytes);
    *d = (decompressor){ 0 };
}

/* Looks at the first bytes of `in`, which must outlive *d: gzip, zstd, or nothing packed. Media types
 * lie often enough that every puller does so. NULL and *e on failure. */
static source *decompress_open(decompressor *d, source *in, error *e)
{
    uint8_t *bytes = malloc(READER_BYTES);
    *d = (decompressor){ .source = { decompress_read }, .in = { in, bytes, bytes, bytes, false } };
    if (!bytes) return fail(e, GRPC_RESOURCE_EXHAUSTED, "decompress: out of memory"), NULL;
    if (reader_fill(&d->in, 4, e) < 0) return decompress_close(d), NULL;
    slice head = { d->in.p, (size_t)(d->in.end - d->in.p) };
    if (slice_starts(head, "\x28\xB5\x2F\xFD")) {
        decompress_close(d);
        return fail(e, GRPC_UNIMPLEMENTED, "zstd: not in this build"), NULL;
    }
    if (slice_starts(head, "\x1F\x8B")) {
        d->kind = GZIP;
        d->inflate = calloc(1, sizeof *d->inflate);
        if (!d->inflate) {
            decompress_close(d);
            return fail(e, GRPC_RESOURCE_EXHAUSTED, "decompress: out of memory"), NULL;
        }
        d->inflate->in = d->in;
        d->inflate->out = d->inflate->given = d->inflate->window;
    }
    return &d->source;
}

/* == 8. Protobuf =============================================================================
 *
 * A message is a run of fields: a tag (field number and wire type), then a value. The wire type
 * tells where the value ends even to a reader that has never heard of the field. That is how a
 * new kubelet can talk to an old krun: what we do not know we can still step over.
 *
 * Here a message is a C struct and a table with a row for each of its fields. One decoder, one
 * encoder, one JSON writer and one JSON reader walk the tables, so a message that is added to
 * chapter 9 can be sent, stored and printed without a line of code.
 *
 * Absent and zero are the same for a number or a text (proto3) and leave no bytes on the wire. A
 * sub-message is a pointer, NULL when absent; a repeated field is a LIST, with sub-messages by
 * value one after the other; a map is a list of pairs. What was decoded borrows: its texts point
 * into the wire (or JSON) bytes, all else lies in the arena, and both must outlive the message.
 *
 * Defined by  protobuf.dev/programming-guides/encoding and /json; the field numbers: cri.proto
 * Uses        1 (slice, buf, arena, error), 3 (JSON), 4 (base64)
 * Gives       LIST, PB rows, pb_decode, pb_encode, pb_copy, pb_write_json, pb_read_json
 * Bounds      16 MiB a message, 32 levels, 48 rows a table; memory: the budget of the arena */

enum { PB_MESSAGE_MAX = 16 * MIB, PB_DEPTH = 32, PB_FIELDS = 48 };

#define LIST(T) struct { T *p; size_t n; }

typedef struct { slice key, value; } pb_pair; /* of a map<string, string> */

/* What a field holds; in C: bool, int32_t, ..., slice for texts and bytes, int32_t for an enum. */
enum pb_kind {
    PB_BOOL, PB_INT32, PB_UINT32, PB_ENUM, PB_INT64, PB_UINT64, PB_DOUBLE,
    PB_STRING, PB_BYTES, PB_MESSAGE, PB_MAP
};

typedef struct { const char *name; const char *const *names; size_t n; } pb_enum; /* 0 .. n - 1 */

typedef struct pb_message pb_message;
typedef struct {
    uint32_t number;
    uint8_t kind, list; /* list: 1 when repeated (a map always is) */
    uint16_t offset;
    union { const pb_message *sub; const pb_enum *names; }; /* of a MESSAGE or MAP; of an ENUM */
    const char *name, *json; /* json: the field's name in cri.proto where C cannot have it */
} pb_field;

struct pb_message { const char *name; size_t size; const pb_field *fields; size_t nfields; };

/* The offset of member `m`, which must be a `C`: else the compiler stops at comparing a pointer to
 * one with a pointer to the other. So a row cannot disagree with its struct. */
#define PB_AT(T, m, C) (offsetof(T, m) + 0 * sizeof((C *)0 == &((T *)0)->m))
typedef bool pb_BOOL;
typedef int32_t pb_INT32;
typedef uint32_t pb_UINT32;
typedef int64_t pb_INT64;
typedef uint64_t pb_UINT64;
typedef double pb_DOUBLE;
typedef slice pb_STRING, pb_BYTES;

/* The rows of a table, ascending by number: a scalar, a list of scalars, a sub-message, a list of
 * them, an enum, a map. */
#define PB_ROW(number_, kind_, name_, ...) \
    { .number = (number_), .kind = (kind_), .name = (name_), __VA_ARGS__ }
#define PB(n, KIND, T, m, ...) \
    PB_ROW(n, PB_##KIND, #m, .offset = PB_AT(T, m, pb_##KIND), __VA_ARGS__)
#define PB_LIST(n, KIND, T, m, ...) \
    PB_ROW(n, PB_##KIND, #m, .list = 1, .offset = PB_AT(T, m.p, pb_##KIND *), __VA_ARGS__)
#define PB_SUB(n, S, T, m) \
    PB_ROW(n, PB_MESSAGE, #m, .offset = PB_AT(T, m, S *), .sub = &S##_msg)
#define PB_SUBS(n, S, T, m) \
    PB_ROW(n, PB_MESSAGE, #m, .list = 1, .offset = PB_AT(T, m.p, S *), .sub = &S##_msg)
#define PB_NAMED(n, E, T, m) \
    PB_ROW(n, PB_ENUM, #m, .offset = PB_AT(T, m, int32_t), .names = &E##_enum)
#define PB_PAIRS(n, T, m) \
    PB_ROW(n, PB_MAP, #m, .list = 1, .offset = PB_AT(T, m.p, pb_pair *), .sub = &pb_pair_msg)

/* T_msg from T and T_fields, E_enum from E_names; a message without fields and its C type. */
#define PB_MSG(T) static const pb_message T##_msg = { #T, sizeof(T), T##_fields, COUNT(T##_fields) }
#define PB_NAMES(E) static const pb_enum E##_enum = { #E, E##_names, COUNT(E##_names) }
#define PB_EMPTY(T) \
    typedef struct { char none; } T; \
    static const pb_message T##_msg = { #T, sizeof(T), NULL, 0 }

static const pb_field pb_pair_fields[] = { /* on the wire a map is a list of these messages */
    PB(1, STRING, pb_pair, key),
    PB(2, STRING, pb_pair, value),
};
PB_MSG(pb_pair);

/* -- what the walkers share -------------------------------------------------------------------- */

enum pb_wire { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTE_RUN = 2, PB_FIXED32 = 5 };

static const struct { uint8_t size, wire; } pb_kinds[] = { /* a message's size is in its table */
    [PB_BOOL]   = { sizeof(bool), PB_VARINT },
    [PB_INT32]  = { sizeof(int32_t), PB_VARINT },
    [PB_UINT32] = { sizeof(uint32_t), PB_VARINT },
    [PB_ENUM]   = { sizeof(int32_t), PB_VARINT },
    [PB_INT64]  = { sizeof(int64_t), PB_VARINT },
    [PB_UINT64] = { sizeof(uint64_t), PB_VARINT },
    [PB_DOUBLE] = { sizeof(double), PB_FIXED64 },
    [PB_STRING] = { sizeof(slice), PB_BYTE_RUN },
    [PB_BYTES]  = { sizeof(slice), PB_BYTE_RUN },
    [PB_MESSAGE] = { 0, PB_BYTE_RUN },
    [PB_MAP]    = { 0, PB_BYTE_RUN },
};

static void *pb_at(void *msg, const pb_field *f) { return (char *)msg + f->offset; }

/* Any LIST(T), any T *: moved by memcpy, because C lets no other pointer type look at one. */
typedef LIST(char) pb_list;

static pb_list pb_get_list(const void *msg, const pb_field *f)
{
    pb_list l;
    memcpy(&l, (const char *)msg + f->offset, sizeof l);
    return l;
}

static void pb_set_list(void *msg, const pb_field *f, pb_list l)
{
    memcpy(pb_at(msg, f), &l, sizeof l);
}

static void *pb_get_sub(const void *at)
{
    void *sub;
    memcpy(&sub, at, sizeof sub);
    return sub;
}

/* The bytes of one element of a list. */
static size_t pb_element(const pb_field *f)
{
    bool nested = f->kind == PB_MESSAGE || f->kind == PB_MAP;
    return nested ? f->sub->size : pb_kinds[f->kind].size;
}

static const char *pb_proto_name(const pb_field *f) { return f->json ? f->json : f->name; }

/* Puts the field in front of the error's text; an error deep inside gets its whole path so. */
static int pb_in(error *e, const pb_message *m, const pb_field *f)
{
    return fail_in(e, "%s.%s", m->name, pb_proto_name(f));
}

/* The row of a field number, NULL for an unknown one. Numbers ascend from 1, so row number - 1 is
 * the last that can have it, and in most tables does. */
static const pb_field *pb_find(const pb_message *m, uint32_t number)
{
    size_t i = MIN((size_t)number, m->nfields);
    while (i > 0 && m->fields[i - 1].number > number) i--;
    return i > 0 && m->fields[i - 1].number == number ? &m->fields[i - 1] : NULL;
}

/* Makes room for `more` elements in the list of field f, after those that it has. */
static int pb_grow(void *msg, const pb_field *f, size_t more, arena *a, error *e)
{
    pb_list l = pb_get_list(msg, f);
    size_t bytes, size = pb_element(f);
    bool fits = !__builtin_mul_overflow(l.n + more, size, &bytes); /* each took a byte of memory */
    char *p = fits ? arena_alloc(a, bytes) : NULL;
    if (!p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "no memory for %zu elements more", more);
    if (l.n) memcpy(p, l.p, l.n * size);
    pb_set_list(msg, f, (pb_list){ p, l.n });
    return 0;
}

/* The next element of a list that pb_grow made room for. */
static void *pb_append(void *msg, const pb_field *f)
{
    pb_list l = pb_get_list(msg, f);
    pb_set_list(msg, f, (pb_list){ l.p, l.n + 1 });
    return l.p + l.n * pb_element(f);
}

/* The sub-message whose pointer lies at `at`; made now if there is none. */
static void *pb_make_sub(const pb_field *f, void *at, arena *a, error *e)
{
    void *sub = pb_get_sub(at);
    if (!sub) sub = arena_alloc(a, f->sub->size);
    if (!sub) return fail(e, GRPC_RESOURCE_EXHAUSTED, "%s: no memory", f->sub->name), NULL;
    memcpy(at, &sub, sizeof sub);
    return sub;
}

static void pb_store(const pb_field *f, void *at, uint64_t value)
{
    bool truth = value != 0;
    uint32_t low = (uint32_t)value; /* an int32 < 0 comes as 64 bits, and is cut as protobuf says */
    size_t size = pb_kinds[f->kind].size;
    const void *from = size == sizeof low ? (void *)&low : &value;
    memcpy(at, f->kind == PB_BOOL ? &truth : from, size);
}

/* The value as a varint carries it: an int32 < 0 is widened with its sign. */
static uint64_t pb_load(const pb_field *f, const void *at)
{
    if (f->kind == PB_BOOL) return *(const bool *)at;
    if (f->kind == PB_UINT32) return *(const uint32_t *)at;
    if (f->kind == PB_INT32 || f->kind == PB_ENUM) return (uint64_t)(int64_t)*(const int32_t *)at;
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int pb_pair_order(const void *a, const void *b) /* equal keys: the later one first */
{
    const pb_pair *x = *(pb_pair *const *)a, *y = *(pb_pair *const *)b;
    int c = slice_cmp(x->key, y->key);
    return c ? c : (x < y) - (x > y);
}

/* Leaves one pair a key, the last that came; the order stays that of the wire. Sorts, because a
 * hundred thousand labels must not cost ten thousand million comparisons. */
static int pb_unique(void *msg, const pb_field *f, arena *a, error *e)
{
    pb_list l = pb_get_list(msg, f);
    pb_pair *pairs = (pb_pair *)(void *)l.p;
    size_t kept = 0;
    if (l.n < 2) return 0;
    pb_pair **order = arena_alloc(a, l.n * sizeof *order);
    if (!order) return fail(e, GRPC_RESOURCE_EXHAUSTED, "no memory for %zu pairs", l.n);
    for (size_t i = 0; i < l.n; i++) order[i] = &pairs[i];
    qsort(order, l.n, sizeof *order, pb_pair_order);
    for (size_t i = 1, winner = 0; i < l.n; i++) {
        if (!slice_eq(order[i]->key, order[winner]->key)) winner = i;
        else order[i]->key.n = SIZE_MAX; /* no key is so long: the mark of a pair to drop */
    }
    for (size_t i = 0; i < l.n; i++)
        if (pairs[i].key.n != SIZE_MAX) pairs[kept++] = pairs[i];
    pb_set_list(msg, f, (pb_list){ l.p, kept });
    return 0;
}

/* -- decoding ---------------------------------------------------------------------------------- */

/* Takes a number of seven bits a byte, low bits first, the top bit set on all but the last. */
static bool pb_take_varint(slice *s, uint64_t *out)
{
    uint64_t value = 0;
    for (size_t i = 0; i < s->n && i < 10; i++) {
        uint8_t byte = s->p[i];
        if (i == 9 && byte > 1) return false; /* past 64 bits */
        value |= (uint64_t)(byte & 0x7F) << (7 * i);
        if (byte >= 0x80) continue;
        *out = value;
        *s = (slice){ s->p + i + 1, s->n - i - 1 };
        return true;
    }
    return false;
}

/* One field as it lies on the wire: `value` of a varint, `bytes` of all else. */
typedef struct { uint32_t number; uint8_t wire; uint64_t value; slice bytes; } pb_item;

/* Takes the next field. NULL, or what is wrong with it. Wire types 3 and 4 (groups) are older than
 * proto3 and have no length; 6 and 7 are not assigned. */
static const char *pb_take_item(slice *s, pb_item *item)
{
    uint64_t tag, length = 8;
    if (!pb_take_varint(s, &tag)) return "a tag is cut off or past 64 bits";
    if (tag < 8 || tag > UINT32_MAX) return "a field number is not in 1 to 536870911";
    *item = (pb_item){ .number = (uint32_t)tag >> 3, .wire = tag & 7 };
    switch (item->wire) {
    case PB_VARINT:
        return pb_take_varint(s, &item->value) ? NULL : "a varint is cut off or past 64 bits";
    case PB_FIXED64: break;
    case PB_FIXED32: length = 4; break;
    case PB_BYTE_RUN:
        if (!pb_take_varint(s, &length)) return "a length is cut off or past 64 bits";
        break;
    default: return "a wire type is not one of 0, 1, 2, 5";
    }
    if (length > s->n) return "a value runs past the end";
    slice_take(s, (size_t)length, &item->bytes);
    return NULL;
}

/* A list of numbers may come as one run of them; proto3 sends it so, older senders one by one. */
static bool pb_packed(const pb_field *f, const pb_item *item)
{
    return f->list && item->wire == PB_BYTE_RUN && pb_kinds[f->kind].wire != PB_BYTE_RUN;
}

static size_t pb_count_packed(const pb_field *f, slice run)
{
    size_t n = 0;
    if (f->kind == PB_DOUBLE) return run.n / sizeof(double);
    for (size_t i = 0; i < run.n; i++) n += run.p[i] < 0x80;
    return n;
}

/* Reads `wire` once to see that all of it can be stepped over and how long each list gets, so that
 * each is allocated once. Lists that `msg` has already (its bytes came in two parts) are kept. */
static int pb_prepare(const pb_message *m, slice wire, arena *a, void *msg, error *e)
{
    size_t more[PB_FIELDS] = { 0 };
    pb_item item;
    assert(m->nfields <= PB_FIELDS);
    while (wire.n) {
        const char *wrong = pb_take_item(&wire, &item);
        if (wrong) return fail(e, GRPC_INVALID_ARGUMENT, "%s: %s", m->name, wrong);
        const pb_field *f = pb_find(m, item.number);
        if (!f || !f->list) continue;
        if (pb_packed(f, &item)) more[f - m->fields] += pb_count_packed(f, item.bytes);
        else more[f - m->fields] += item.wire == pb_kinds[f->kind].wire;
    }
    for (size_t i = 0; i < m->nfields; i++)
        if (more[i] && pb_grow(msg, &m->fields[i], more[i], a, e) < 0)
            return pb_in(e, m, &m->fields[i]);
    return 0;
}

/* What one decoding needs at every level. */
typedef struct { arena *a; error *e; int depth; bool lax; } pb_reader; /* lax: of JSON only */

static int pb_merge(pb_reader *r, const pb_message *m, slice wire, void *msg);

/* Stores one value at `at`: a member, or an element of a list. */
static int pb_take_value(pb_reader *r, const pb_field *f, const pb_item *item, void *at)
{
    if (f->kind == PB_MESSAGE && !f->list && !(at = pb_make_sub(f, at, r->a, r->e))) return -1;
    switch (f->kind) {
    case PB_MESSAGE:
    case PB_MAP: return pb_merge(r, f->sub, item->bytes, at);
    case PB_DOUBLE: memcpy(at, item->bytes.p, sizeof(double)); return 0;
    case PB_BYTES: *(slice *)at = item->bytes; return 0;
    case PB_STRING:
        *(slice *)at = item->bytes;
        return utf8_valid(item->bytes) ? 0 : fail(r->e, GRPC_INVALID_ARGUMENT, "not UTF-8");
    default: pb_store(f, at, item->value); return 0;
    }
}

static int pb_take_packed(pb_reader *r, const pb_field *f, slice run, void *msg)
{
    pb_item item = { .wire = pb_kinds[f->kind].wire };
    while (run.n) {
        bool whole = f->kind == PB_DOUBLE ? slice_take(&run, sizeof(double), &item.bytes)
                                          : pb_take_varint(&run, &item.value);
        if (!whole)
            return fail(r->e, GRPC_INVALID_ARGUMENT, "a packed number is cut off or past 64 bits");
        if (pb_take_value(r, f, &item, pb_append(msg, f)) < 0) return -1;
    }
    return 0;
}

/* Adds the fields in `wire` to *msg: the last value of a scalar counts, lists get longer, a
 * sub-message that is there already is merged into. */
static int pb_merge(pb_reader *r, const pb_message *m, slice wire, void *msg)
{
    pb_item item;
    if (++r->depth > PB_DEPTH)
        return fail(r->e, GRPC_INVALID_ARGUMENT, "%s: nested too deep", m->name);
    if (pb_prepare(m, wire, r->a, msg, r->e) < 0) return -1;
    while (wire.n && !pb_take_item(&wire, &item)) {
        const pb_field *f = pb_find(m, item.number);
        int failed = 0;
        if (!f) continue;
        if (pb_packed(f, &item)) failed = pb_take_packed(r, f, item.bytes, msg);
        else if (item.wire == pb_kinds[f->kind].wire)
            failed = pb_take_value(r, f, &item, f->list ? pb_append(msg, f) : pb_at(msg, f));
        if (failed) return pb_in(r->e, m, f);
    }
    for (size_t i = 0; i < m->nfields; i++)
        if (m->fields[i].kind == PB_MAP && pb_unique(msg, &m->fields[i], r->a, r->e) < 0)
            return pb_in(r->e, m, &m->fields[i]);
    r->depth--;
    return 0;
}

/* Decodes `wire` into *out, which is cleared first. INVALID_ARGUMENT names the message, and the
 * field where it is known; RESOURCE_EXHAUSTED: past 16 MiB, or past the arena's budget. */
static int pb_decode(const pb_message *m, slice wire, arena *a, void *out, error *e)
{
    pb_reader r = { .a = a, .e = e };
    memset(out, 0, m->size);
    if (wire.n > PB_MESSAGE_MAX)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "%s: %zu bytes, more than 16 MiB", m->name, wire.n);
    return pb_merge(&r, m, wire, out);
}

/* -- encoding ---------------------------------------------------------------------------------- */

static size_t pb_varint(uint64_t value, uint8_t bytes[10])
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) bytes[n++] = (uint8_t)(value | 0x80);
    bytes[n++] = (uint8_t)value;
    return n;
}

static void pb_put_varint(buf *out, uint64_t value)
{
    uint8_t bytes[10];
    buf_add(out, bytes, pb_varint(value, bytes));
}

static void pb_put_tag(buf *out, const pb_field *f, enum pb_wire wire)
{
    pb_put_varint(out, f->number << 3 | wire);
}

/* Begins a value whose length is known only when it is written; pb_end_run puts it in front. One
 * byte is left for it, which is enough for most; a longer length moves the value up. */
static size_t pb_begin_run(buf *out)
{
    buf_byte(out, 0);
    return out->n;
}

static void pb_end_run(buf *out, size_t start)
{
    uint8_t length[10];
    if (out->oom) return;
    size_t n = pb_varint(out->n - start, length);
    if (!buf_reserve(out, n)) return;
    if (n > 1) memmove(out->p + start - 1 + n, out->p + start, out->n - start);
    memcpy(out->p + start - 1, length, n);
    out->n += n - 1;
}

/* A Go client refuses a whole message for one byte that is not UTF-8 in one text. Ours are made of
 * what was checked on its way in; should one slip through, it is escaped. */
static void pb_put_string(buf *out, slice text)
{
    OWNED_BUF escaped = { 0 };
    if (!utf8_valid(text)) {
        text_escape(&escaped, text, text.n);
        text = buf_view(&escaped);
    }
    pb_put_varint(out, text.n);
    buf_slice(out, text);
}

static void pb_put_fields(const pb_message *m, const void *msg, buf *out);

/* One value without its tag. */
static void pb_put_value(const pb_field *f, const void *at, buf *out)
{
    size_t start;
    slice bytes;
    switch (f->kind) {
    case PB_MESSAGE:
    case PB_MAP:
        start = pb_begin_run(out);
        pb_put_fields(f->sub, f->list ? at : pb_get_sub(at), out);
        pb_end_run(out, start);
        break;
    case PB_STRING: pb_put_string(out, *(const slice *)at); break;
    case PB_BYTES:
        bytes = *(const slice *)at;
        pb_put_varint(out, bytes.n);
        buf_slice(out, bytes);
        break;
    case PB_DOUBLE: buf_add(out, at, sizeof(double)); break;
    default: pb_put_varint(out, pb_load(f, at)); break;
    }
}

static void pb_put_list(const pb_field *f, const void *msg, buf *out)
{
    pb_list l = pb_get_list(msg, f);
    bool packed = pb_kinds[f->kind].wire != PB_BYTE_RUN;
    size_t start = 0;
    if (!l.n) return;
    if (packed) {
        pb_put_tag(out, f, PB_BYTE_RUN);
        start = pb_begin_run(out);
    }
    for (size_t i = 0; i < l.n; i++) {
        if (!packed) pb_put_tag(out, f, PB_BYTE_RUN);
        pb_put_value(f, l.p + i * pb_element(f), out);
    }
    if (packed) pb_end_run(out, start);
}

/* Does the member at `at` hold what proto3 does not send: zero, no text, no sub-message? */
static bool pb_is_default(const pb_field *f, const void *at)
{
    if (f->kind == PB_MESSAGE) return !pb_get_sub(at);
    if (f->kind == PB_STRING || f->kind == PB_BYTES) return !((const slice *)at)->n;
    return !pb_load(f, at);
}

static void pb_put_fields(const pb_message *m, const void *msg, buf *out)
{
    for (const pb_field *f = m->fields; f < m->fields + m->nfields; f++) {
        const void *at = (const char *)msg + f->offset;
        if (f->list) {
            pb_put_list(f, msg, out);
        } else if (!pb_is_default(f, at)) {
            pb_put_tag(out, f, pb_kinds[f->kind].wire);
            pb_put_value(f, at, out);
        }
    }
}

/* Appends the message's bytes to *out, fields in the order of their numbers. -1: out of memory. */
static int pb_encode(const pb_message *m, const void *msg, buf *out)
{
    pb_put_fields(m, msg, out);
    return out->oom ? -1 : 0;
}

/* A copy that owes nothing to `from`: its bytes, and what they decode to, all in the arena. -1: out
 * of memory or budget. */
static int pb_copy(const pb_message *m, const void *from, arena *a, void *to)
{
    error e;
    OWNED_BUF wire = { 0 };
    if (pb_encode(m, from, &wire) < 0) return -1;
    slice kept = arena_copy(a, buf_view(&wire));
    return a->oom ? -1 : pb_decode(m, kept, a, to, &e);
}

/* -- as JSON: writing -------------------------------------------------------------------------- */

/* PB_INDENT: a line a value. PB_DEFAULTS: also what is zero, empty or absent (null), as crictl
 * does, so that a script finds every name. */
enum { PB_INDENT = 1, PB_DEFAULTS = 2 };

typedef struct { buf *out; unsigned flags; size_t depth; } pb_writer;

enum { PB_NAME_MAX = 64 };

/* The name of a field in JSON: container_port is "containerPort", CDI_devices "CDIDevices". */
static slice pb_json_name(const pb_field *f, char text[PB_NAME_MAX])
{
    size_t n = 0;
    bool raise = false;
    for (const char *c = pb_proto_name(f); *c; c++) {
        if (*c != '_') {
            assert(n < PB_NAME_MAX);
            text[n++] = raise && *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
        }
        raise = *c == '_';
    }
    return (slice){ (uint8_t *)text, n };
}

/* Before an item of a list or object, and before its end: a comma, a new line as flags have it. */
static void pb_write_gap(pb_writer *w, bool comma)
{
    if (comma) buf_byte(w->out, ',');
    if (!(w->flags & PB_INDENT)) return;
    buf_byte(w->out, '\n');
    for (size_t i = 0; i < w->depth; i++) buf_str(w->out, "  ");
}

static void pb_write_colon(pb_writer *w) { buf_str(w->out, w->flags & PB_INDENT ? ": " : ":"); }

/* The shortest digits that read back as the same number; what JSON has no number for, as text. */
static void pb_write_double(buf *out, double value)
{
    char text[32];
    if (value != value) { buf_str(out, "\"NaN\""); return; }
    if (value - value != 0) { buf_str(out, value > 0 ? "\"Infinity\"" : "\"-Infinity\""); return; }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    buf_str(out, text);
}

/* 64-bit numbers go in quotes: JavaScript's numbers end at 2^53. */
static void pb_write_scalar(const pb_field *f, const void *at, buf *out)
{
    uint64_t value = f->kind < PB_STRING ? pb_load(f, at) : 0;
    double real;
    switch (f->kind) {
    case PB_BOOL: buf_str(out, value ? "true" : "false"); break;
    case PB_INT32: buf_printf(out, "%" PRId64, (int64_t)value); break;
    case PB_UINT32: buf_printf(out, "%" PRIu64, value); break;
    case PB_INT64: buf_printf(out, "\"%" PRId64 "\"", (int64_t)value); break;
    case PB_UINT64: buf_printf(out, "\"%" PRIu64 "\"", value); break;
    case PB_ENUM:
        if (value < f->names->n) buf_printf(out, "\"%s\"", f->names->names[value]);
        else buf_printf(out, "%" PRId64, (int64_t)value);
        break;
    case PB_DOUBLE:
        memcpy(&real, at, sizeof real);
        pb_write_double(out, real);
        break;
    case PB_BYTES:
        buf_byte(out, '"');
        base64_encode(*(const slice *)at, out);
        buf_byte(out, '"');
        break;
    default: json_string(out, *(const slice *)at); break;
    }
}

static void pb_write_message(pb_writer *w, const pb_message *m, const void *msg);

static void pb_write_pair(pb_writer *w, const pb_pair *pair)
{
    json_string(w->out, pair->key);
    pb_write_colon(w);
    json_string(w->out, pair->value);
}

static void pb_write_list(pb_writer *w, const pb_field *f, pb_list l)
{
    buf_byte(w->out, f->kind == PB_MAP ? '{' : '[');
    w->depth++;
    for (size_t i = 0; i < l.n; i++) {
        const char *at = l.p + i * pb_element(f);
        pb_write_gap(w, i > 0);
        if (f->kind == PB_MAP) pb_write_pair(w, (const pb_pair *)(const void *)at);
        else if (f->kind == PB_MESSAGE) pb_write_message(w, f->sub, at);
        else pb_write_scalar(f, at, w->out);
    }
    w->depth--;
    if (l.n) pb_write_gap(w, false);
    buf_byte(w->out, f->kind == PB_MAP ? '}' : ']');
}

static void pb_write_field(pb_writer *w, const pb_field *f, const void *msg)
{
    const char *at = (const char *)msg + f->offset;
    const void *sub = f->kind == PB_MESSAGE && !f->list ? pb_get_sub(at) : NULL;
    if (f->list) pb_write_list(w, f, pb_get_list(msg, f));
    else if (sub) pb_write_message(w, f->sub, sub);
    else if (f->kind == PB_MESSAGE) buf_str(w->out, "null");
    else pb_write_scalar(f, at, w->out);
}

static void pb_write_message(pb_writer *w, const pb_message *m, const void *msg)
{
    char name[PB_NAME_MAX];
    size_t written = 0;
    buf_byte(w->out, '{');
    w->depth++;
    for (const pb_field *f = m->fields; f < m->fields + m->nfields; f++) {
        const char *at = (const char *)msg + f->offset;
        bool nothing = f->list ? !pb_get_list(msg, f).n : pb_is_default(f, at);
        if (nothing && !(w->flags & PB_DEFAULTS)) continue;
        pb_write_gap(w, written++ > 0);
        json_string(w->out, pb_json_name(f, name));
        pb_write_colon(w);
        pb_write_field(w, f, msg);
    }
    w->depth--;
    if (written) pb_write_gap(w, false);
    buf_byte(w->out, '}');
}

/* Appends the message as protobuf's JSON. Running out of memory shows in out->oom. */
static void pb_write_json(const pb_message *m, const void *msg, unsigned flags, buf *out)
{
    pb_writer w = { .out = out, .flags = flags };
    pb_write_message(&w, m, msg);
}

/* -- as JSON: reading -------------------------------------------------------------------------- */

/* The row of a name as JSON or as cri.proto has it: people write both in crictl's files. */
static const pb_field *pb_find_named(const pb_message *m, slice key)
{
    char name[PB_NAME_MAX];
    for (const pb_field *f = m->fields; f < m->fields + m->nfields; f++)
        if (slice_is(key, pb_proto_name(f)) || slice_eq(key, pb_json_name(f, name))) return f;
    return NULL;
}

static int pb_must_be(pb_reader *r, const char *what)
{
    return fail(r->e, GRPC_INVALID_ARGUMENT, "must be %s", what);
}

/* A whole number, in quotes or not, that fits its kind. */
static int pb_read_integer(pb_reader *r, const pb_field *f, const json *v, void *at)
{
    bool number = v->kind == JSON_NUMBER || v->kind == JSON_STRING;
    bool minus = number && slice_starts(v->text, "-");
    bool is_signed = f->kind == PB_INT32 || f->kind == PB_INT64 || f->kind == PB_ENUM;
    bool wide = f->kind == PB_INT64 || f->kind == PB_UINT64;
    uint64_t size, max = is_signed ? (wide ? INT64_MAX : INT32_MAX) + (uint64_t)minus
                                   : wide ? UINT64_MAX : UINT32_MAX;
    slice digits = number ? (slice){ v->text.p + minus, v->text.n - minus } : (slice){ NULL, 0 };
    if ((minus && !is_signed) || !parse_u64(digits, 10, max, &size))
        return pb_must_be(r, "a whole number that fits");
    pb_store(f, at, minus ? 0 - size : size);
    return 0;
}

static int pb_read_enum(pb_reader *r, const pb_field *f, const json *v, void *at)
{
    if (v->kind != JSON_STRING) return pb_read_integer(r, f, v, at);
    for (size_t i = 0; i < f->names->n; i++)
        if (slice_is(v->text, f->names->names[i])) return pb_store(f, at, i), 0;
    return fail(r->e, GRPC_INVALID_ARGUMENT, "\"%.*s\" is no %s", PR(v->text), f->names->name);
}

static int pb_read_double(pb_reader *r, const json *v, void *at) /* chapter 3 put a NUL after it */
{
    char *end = NULL;
    bool number = v->text.n && (v->kind == JSON_NUMBER || v->kind == JSON_STRING);
    double value = number ? strtod((const char *)v->text.p, &end) : 0;
    if (!number || end != (const char *)v->text.p + v->text.n) return pb_must_be(r, "a number");
    memcpy(at, &value, sizeof value);
    return 0;
}

static int pb_read_bytes(pb_reader *r, const json *v, slice *at)
{
    OWNED_BUF bytes = { 0 };
    if (v->kind != JSON_STRING || !base64_decode(v->text, &bytes))
        return pb_must_be(r, "a text in base64");
    *at = arena_copy(r->a, buf_view(&bytes));
    return r->a->oom ? fail(r->e, GRPC_RESOURCE_EXHAUSTED, "no memory") : 0;
}

static int pb_read_object(pb_reader *r, const pb_message *m, const json *v, void *msg);

static int pb_read_value(pb_reader *r, const pb_field *f, const json *v, void *at)
{
    if (f->kind == PB_MESSAGE && !f->list && !(at = pb_make_sub(f, at, r->a, r->e))) return -1;
    switch (f->kind) {
    case PB_MESSAGE: return pb_read_object(r, f->sub, v, at);
    case PB_ENUM: return pb_read_enum(r, f, v, at);
    case PB_DOUBLE: return pb_read_double(r, v, at);
    case PB_BYTES: return pb_read_bytes(r, v, at);
    case PB_BOOL:
        *(bool *)at = v->boolean;
        return v->kind == JSON_BOOL ? 0 : pb_must_be(r, "true or false");
    case PB_STRING:
        *(slice *)at = v->text;
        return v->kind == JSON_STRING ? 0 : pb_must_be(r, "a string");
    case PB_MAP:
        *(pb_pair *)at = (pb_pair){ v->key, v->text };
        return v->kind == JSON_STRING ? 0 : pb_must_be(r, "an object of strings");
    default: return pb_read_integer(r, f, v, at);
    }
}

static int pb_read_list(pb_reader *r, const pb_field *f, const json *v, void *msg)
{
    if (f->kind == PB_MAP && v->kind != JSON_OBJECT) return pb_must_be(r, "an object of strings");
    if (f->kind != PB_MAP && v->kind != JSON_ARRAY) return pb_must_be(r, "a list");
    if (v->n && pb_grow(msg, f, v->n, r->a, r->e) < 0) return -1;
    for (size_t i = 0; i < v->n; i++)
        if (pb_read_value(r, f, &v->items[i], pb_append(msg, f)) < 0) return -1;
    return f->kind == PB_MAP ? pb_unique(msg, f, r->a, r->e) : 0;
}

static int pb_unknown(pb_reader *r, const pb_message *m, slice key)
{
    return fail(r->e, GRPC_INVALID_ARGUMENT, "%s has no field \"%.*s\"", m->name, PR(key));
}

static int pb_read_object(pb_reader *r, const pb_message *m, const json *v, void *msg)
{
    bool seen[PB_FIELDS] = { 0 };
    assert(m->nfields <= PB_FIELDS);
    if (v->kind != JSON_OBJECT) return pb_must_be(r, "an object");
    for (const json *item = v->items; item < v->items + v->n; item++) {
        const pb_field *f = pb_find_named(m, item->key);
        if (!f && r->lax) continue;
        if (!f) return pb_unknown(r, m, item->key);
        if (seen[f - m->fields]) return pb_must_be(r, "given once"), pb_in(r->e, m, f);
        seen[f - m->fields] = true;
        if (item->kind == JSON_NULL) continue;
        int failed = f->list ? pb_read_list(r, f, item, msg)
                             : pb_read_value(r, f, item, pb_at(msg, f));
        if (failed) return pb_in(r->e, m, f);
    }
    return 0;
}

/* Reads into a scratch arena, because the tree of a JSON text is much larger than the message. */
static int pb_parse(pb_reader *r, const pb_message *m, slice text, void *out)
{
    arena *a = r->a;
    OWNED_ARENA scratch = arena_make(a->left);
    r->a = &scratch;
    memset(out, 0, m->size);
    const json *tree = json_parse(text, &scratch, r->e);
    void *msg = arena_alloc(&scratch, m->size);
    if (!tree) return fail_in(r->e, "%s", m->name);
    if (msg && pb_read_object(r, m, tree, msg) < 0) return -1;
    if (!msg || pb_copy(m, msg, a, out) < 0)
        return fail(r->e, GRPC_RESOURCE_EXHAUSTED, "%s: no memory", m->name);
    return 0;
}

/* Reads protobuf's JSON into *out, which is cleared first; nothing of `text` is kept. An unknown
 * name is an error: a person wrote it, and wants to know. */
static int pb_read_json(const pb_message *m, slice text, arena *a, void *out, error *e)
{
    return pb_parse(&(pb_reader){ .a = a, .e = e }, m, text, out);
}

/* As pb_read_json, but steps over unknown names: for a record that a newer krun may have written,
 * whose version is to be looked at. */
static int pb_read_json_lax(const pb_message *m, slice text, arena *a, void *out, error *e)
{
    return pb_parse(&(pb_reader){ .a = a, .e = e, .lax = true }, m, text, out);
}
/* == 9. The CRI's messages ======================================================================
 *
 * HEAD
 */
#undef linux
#undef stdin
#undef stdout
#undef stderr

/* -- numbers that may be absent ---------------------------------------------------------------- */

typedef struct { int64_t value; } Int64Value;
static const pb_field Int64Value_fields[] = { PB(1, INT64, Int64Value, value) };
PB_MSG(Int64Value);

typedef struct { uint64_t value; } UInt64Value;
static const pb_field UInt64Value_fields[] = { PB(1, UINT64, UInt64Value, value) };
PB_MSG(UInt64Value);

/* -- the handshake ----------------------------------------------------------------------------- */

typedef struct { slice version; } VersionRequest;
static const pb_field VersionRequest_fields[] = { PB(1, STRING, VersionRequest, version) };
PB_MSG(VersionRequest);

typedef struct {
    slice version, runtime_name, runtime_version, runtime_api_version;
} VersionResponse;
static const pb_field VersionResponse_fields[] = {
    PB(1, STRING, VersionResponse, version),
    PB(2, STRING, VersionResponse, runtime_name),
    PB(3, STRING, VersionResponse, runtime_version),
    PB(4, STRING, VersionResponse, runtime_api_version),
};
PB_MSG(VersionResponse);

typedef struct { bool verbose; } StatusRequest;
static const pb_field StatusRequest_fields[] = { PB(1, BOOL, StatusRequest, verbose) };
PB_MSG(StatusRequest);

typedef struct { slice type; bool status; slice reason, message; } RuntimeCondition;
static const pb_field RuntimeCondition_fields[] = {
    PB(1, STRING, RuntimeCondition, type),
    PB(2, BOOL, RuntimeCondition, status),
    PB(3, STRING, RuntimeCondition, reason),
    PB(4, STRING, RuntimeCondition, message),
};
PB_MSG(RuntimeCondition);

typedef struct { LIST(RuntimeCondition) conditions; } RuntimeStatus;
static const pb_field RuntimeStatus_fields[] = {
    PB_SUBS(1, RuntimeCondition, RuntimeStatus, conditions),
};
PB_MSG(RuntimeStatus);

typedef struct { bool recursive_read_only_mounts, user_namespaces; } RuntimeHandlerFeatures;
static const pb_field RuntimeHandlerFeatures_fields[] = {
    PB(1, BOOL, RuntimeHandlerFeatures, recursive_read_only_mounts),
    PB(2, BOOL, RuntimeHandlerFeatures, user_namespaces),
};
PB_MSG(RuntimeHandlerFeatures);

typedef struct { slice name; RuntimeHandlerFeatures *features; } RuntimeHandler;
static const pb_field RuntimeHandler_fields[] = {
    PB(1, STRING, RuntimeHandler, name),
    PB_SUB(2, RuntimeHandlerFeatures, RuntimeHandler, features),
};
PB_MSG(RuntimeHandler);

typedef struct {
    bool supplemental_groups_policy, user_namespaces_host_network, mount_options;
} RuntimeFeatures;
static const pb_field RuntimeFeatures_fields[] = {
    PB(1, BOOL, RuntimeFeatures, supplemental_groups_policy),
    PB(2, BOOL, RuntimeFeatures, user_namespaces_host_network),
    PB(3, BOOL, RuntimeFeatures, mount_options),
};
PB_MSG(RuntimeFeatures);

typedef struct {
    RuntimeStatus *status; LIST(pb_pair) info; LIST(RuntimeHandler) runtime_handlers;
    RuntimeFeatures *features;
} StatusResponse;
static const pb_field StatusResponse_fields[] = {
    PB_SUB(1, RuntimeStatus, StatusResponse, status),
    PB_PAIRS(2, StatusResponse, info),
    PB_SUBS(3, RuntimeHandler, StatusResponse, runtime_handlers),
    PB_SUB(4, RuntimeFeatures, StatusResponse, features),
};
PB_MSG(StatusResponse);

PB_EMPTY(RuntimeConfigRequest);

enum CgroupDriver { CgroupDriver_SYSTEMD, CgroupDriver_CGROUPFS };
static const char *const CgroupDriver_names[] = { "SYSTEMD", "CGROUPFS" };
PB_NAMES(CgroupDriver);

typedef struct { int32_t cgroup_driver; } LinuxRuntimeConfiguration;
static const pb_field LinuxRuntimeConfiguration_fields[] = {
    PB_NAMED(1, CgroupDriver, LinuxRuntimeConfiguration, cgroup_driver),
};
PB_MSG(LinuxRuntimeConfiguration);

typedef struct { LinuxRuntimeConfiguration *linux; } RuntimeConfigResponse;
static const pb_field RuntimeConfigResponse_fields[] = {
    PB_SUB(1, LinuxRuntimeConfiguration, RuntimeConfigResponse, linux),
};
PB_MSG(RuntimeConfigResponse);

typedef struct { slice pod_cidr; } NetworkConfig;
static const pb_field NetworkConfig_fields[] = { PB(1, STRING, NetworkConfig, pod_cidr) };
PB_MSG(NetworkConfig);

typedef struct { NetworkConfig *network_config; } RuntimeConfig;
static const pb_field RuntimeConfig_fields[] = {
    PB_SUB(1, NetworkConfig, RuntimeConfig, network_config),
};
PB_MSG(RuntimeConfig);

typedef struct { RuntimeConfig *runtime_config; } UpdateRuntimeConfigRequest;
static const pb_field UpdateRuntimeConfigRequest_fields[] = {
    PB_SUB(1, RuntimeConfig, UpdateRuntimeConfigRequest, runtime_config),
};
PB_MSG(UpdateRuntimeConfigRequest);

PB_EMPTY(UpdateRuntimeConfigResponse);

/* -- what a process may do and see ------------------------------------------------------------- */

enum NamespaceMode {
    NamespaceMode_POD, NamespaceMode_CONTAINER, NamespaceMode_NODE, NamespaceMode_TARGET
};
static const char *const NamespaceMode_names[] = { "POD", "CONTAINER", "NODE", "TARGET" };
PB_NAMES(NamespaceMode);

typedef struct { uint32_t host_id, container_id, length; } IDMapping;
static const pb_field IDMapping_fields[] = {
    PB(1, UINT32, IDMapping, host_id),
    PB(2, UINT32, IDMapping, container_id),
    PB(3, UINT32, IDMapping, length),
};
PB_MSG(IDMapping);

typedef struct { int32_t mode; LIST(IDMapping) uids, gids; } UserNamespace;
static const pb_field UserNamespace_fields[] = {
    PB_NAMED(1, NamespaceMode, UserNamespace, mode),
    PB_SUBS(2, IDMapping, UserNamespace, uids),
    PB_SUBS(3, IDMapping, UserNamespace, gids),
};
PB_MSG(UserNamespace);

typedef struct {
    int32_t network, pid, ipc; slice target_id; UserNamespace *userns_options;
} NamespaceOption;
static const pb_field NamespaceOption_fields[] = {
    PB_NAMED(1, NamespaceMode, NamespaceOption, network),
    PB_NAMED(2, NamespaceMode, NamespaceOption, pid),
    PB_NAMED(3, NamespaceMode, NamespaceOption, ipc),
    PB(4, STRING, NamespaceOption, target_id),
    PB_SUB(5, UserNamespace, NamespaceOption, userns_options),
};
PB_MSG(NamespaceOption);

enum SupplementalGroupsPolicy { SupplementalGroupsPolicy_Merge, SupplementalGroupsPolicy_Strict };
static const char *const SupplementalGroupsPolicy_names[] = { "Merge", "Strict" };
PB_NAMES(SupplementalGroupsPolicy);

enum ProfileType { ProfileType_RuntimeDefault, ProfileType_Unconfined, ProfileType_Localhost };
static const char *const ProfileType_names[] = { "RuntimeDefault", "Unconfined", "Localhost" };
PB_NAMES(ProfileType);

typedef struct { int32_t profile_type; slice localhost_ref; } SecurityProfile;
static const pb_field SecurityProfile_fields[] = {
    PB_NAMED(1, ProfileType, SecurityProfile, profile_type),
    PB(2, STRING, SecurityProfile, localhost_ref),
};
PB_MSG(SecurityProfile);

typedef struct { slice user, role, type, level; } SELinuxOption;
static const pb_field SELinuxOption_fields[] = {
    PB(1, STRING, SELinuxOption, user),
    PB(2, STRING, SELinuxOption, role),
    PB(3, STRING, SELinuxOption, type),
    PB(4, STRING, SELinuxOption, level),
};
PB_MSG(SELinuxOption);

typedef struct {
    LIST(slice) add_capabilities, drop_capabilities, add_ambient_capabilities;
} Capability;
static const pb_field Capability_fields[] = {
    PB_LIST(1, STRING, Capability, add_capabilities),
    PB_LIST(2, STRING, Capability, drop_capabilities),
    PB_LIST(3, STRING, Capability, add_ambient_capabilities),
};
PB_MSG(Capability);

/* -- what it may use --------------------------------------------------------------------------- */

typedef struct { slice page_size; uint64_t limit; } HugepageLimit;
static const pb_field HugepageLimit_fields[] = {
    PB(1, STRING, HugepageLimit, page_size),
    PB(2, UINT64, HugepageLimit, limit),
};
PB_MSG(HugepageLimit);

typedef struct {
    int64_t cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes, oom_score_adj;
    slice cpuset_cpus, cpuset_mems; LIST(HugepageLimit) hugepage_limits; LIST(pb_pair) unified;
    int64_t memory_swap_limit_in_bytes;
} LinuxContainerResources;
static const pb_field LinuxContainerResources_fields[] = {
    PB(1, INT64, LinuxContainerResources, cpu_period),
    PB(2, INT64, LinuxContainerResources, cpu_quota),
    PB(3, INT64, LinuxContainerResources, cpu_shares),
    PB(4, INT64, LinuxContainerResources, memory_limit_in_bytes),
    PB(5, INT64, LinuxContainerResources, oom_score_adj),
    PB(6, STRING, LinuxContainerResources, cpuset_cpus),
    PB(7, STRING, LinuxContainerResources, cpuset_mems),
    PB_SUBS(8, HugepageLimit, LinuxContainerResources, hugepage_limits),
    PB_PAIRS(9, LinuxContainerResources, unified),
    PB(10, INT64, LinuxContainerResources, memory_swap_limit_in_bytes),
};
PB_MSG(LinuxContainerResources);

/* -- Windows ----------------------------------------------------------------------------------- */

typedef struct { int32_t network; } WindowsNamespaceOption;
static const pb_field WindowsNamespaceOption_fields[] = {
    PB_NAMED(1, NamespaceMode, WindowsNamespaceOption, network),
};
PB_MSG(WindowsNamespaceOption);

typedef struct {
    slice run_as_username, credential_spec; bool host_process;
    WindowsNamespaceOption *namespace_options;
} WindowsSandboxSecurityContext;
static const pb_field WindowsSandboxSecurityContext_fields[] = {
    PB(1, STRING, WindowsSandboxSecurityContext, run_as_username),
    PB(2, STRING, WindowsSandboxSecurityContext, credential_spec),
    PB(3, BOOL, WindowsSandboxSecurityContext, host_process),
    PB_SUB(4, WindowsNamespaceOption, WindowsSandboxSecurityContext, namespace_options),
};
PB_MSG(WindowsSandboxSecurityContext);

typedef struct { WindowsSandboxSecurityContext *security_context; } WindowsPodSandboxConfig;
static const pb_field WindowsPodSandboxConfig_fields[] = {
    PB_SUB(1, WindowsSandboxSecurityContext, WindowsPodSandboxConfig, security_context),
};
PB_MSG(WindowsPodSandboxConfig);

typedef struct { uint64_t cpu_mask; uint32_t cpu_group; } WindowsCpuGroupAffinity;
static const pb_field WindowsCpuGroupAffinity_fields[] = {
    PB(1, UINT64, WindowsCpuGroupAffinity, cpu_mask),
    PB(2, UINT32, WindowsCpuGroupAffinity, cpu_group),
};
PB_MSG(WindowsCpuGroupAffinity);

typedef struct {
    int64_t cpu_shares, cpu_count, cpu_maximum, memory_limit_in_bytes, rootfs_size_in_bytes;
    LIST(WindowsCpuGroupAffinity) affinity_cpus;
} WindowsContainerResources;
static const pb_field WindowsContainerResources_fields[] = {
    PB(1, INT64, WindowsContainerResources, cpu_shares),
    PB(2, INT64, WindowsContainerResources, cpu_count),
    PB(3, INT64, WindowsContainerResources, cpu_maximum),
    PB(4, INT64, WindowsContainerResources, memory_limit_in_bytes),
    PB(5, INT64, WindowsContainerResources, rootfs_size_in_bytes),
    PB_SUBS(6, WindowsCpuGroupAffinity, WindowsContainerResources, affinity_cpus),
};
PB_MSG(WindowsContainerResources);

typedef struct {
    slice run_as_username, credential_spec; bool host_process;
} WindowsContainerSecurityContext;
static const pb_field WindowsContainerSecurityContext_fields[] = {
    PB(1, STRING, WindowsContainerSecurityContext, run_as_username),
    PB(2, STRING, WindowsContainerSecurityContext, credential_spec),
    PB(3, BOOL, WindowsContainerSecurityContext, host_process),
};
PB_MSG(WindowsContainerSecurityContext);

typedef struct {
    WindowsContainerResources *resources; WindowsContainerSecurityContext *security_context;
} WindowsContainerConfig;
static const pb_field WindowsContainerConfig_fields[] = {
    PB_SUB(1, WindowsContainerResources, WindowsContainerConfig, resources),
    PB_SUB(2, WindowsContainerSecurityContext, WindowsContainerConfig, security_context),
};
PB_MSG(WindowsContainerConfig);

/* -- a pod as it is asked for ------------------------------------------------------------------ */

typedef struct { slice name, uid, name_space; uint32_t attempt; } PodSandboxMetadata;
static const pb_field PodSandboxMetadata_fields[] = {
    PB(1, STRING, PodSandboxMetadata, name),
    PB(2, STRING, PodSandboxMetadata, uid),
    PB(3, STRING, PodSandboxMetadata, name_space, .json = "namespace"),
    PB(4, UINT32, PodSandboxMetadata, attempt),
};
PB_MSG(PodSandboxMetadata);

typedef struct { LIST(slice) servers, searches, options; } DNSConfig;
static const pb_field DNSConfig_fields[] = {
    PB_LIST(1, STRING, DNSConfig, servers),
    PB_LIST(2, STRING, DNSConfig, searches),
    PB_LIST(3, STRING, DNSConfig, options),
};
PB_MSG(DNSConfig);

enum Protocol { Protocol_TCP, Protocol_UDP, Protocol_SCTP };
static const char *const Protocol_names[] = { "TCP", "UDP", "SCTP" };
PB_NAMES(Protocol);

typedef struct { int32_t protocol, container_port, host_port; slice host_ip; } PortMapping;
static const pb_field PortMapping_fields[] = {
    PB_NAMED(1, Protocol, PortMapping, protocol),
    PB(2, INT32, PortMapping, container_port),
    PB(3, INT32, PortMapping, host_port),
    PB(4, STRING, PortMapping, host_ip),
};
PB_MSG(PortMapping);

typedef struct {
    NamespaceOption *namespace_options; SELinuxOption *selinux_options; Int64Value *run_as_user;
    bool readonly_rootfs; LIST(int64_t) supplemental_groups; bool privileged;
    slice seccomp_profile_path; Int64Value *run_as_group; SecurityProfile *seccomp, *apparmor;
    int32_t supplemental_groups_policy;
} LinuxSandboxSecurityContext;
static const pb_field LinuxSandboxSecurityContext_fields[] = {
    PB_SUB(1, NamespaceOption, LinuxSandboxSecurityContext, namespace_options),
    PB_SUB(2, SELinuxOption, LinuxSandboxSecurityContext, selinux_options),
    PB_SUB(3, Int64Value, LinuxSandboxSecurityContext, run_as_user),
    PB(4, BOOL, LinuxSandboxSecurityContext, readonly_rootfs),
    PB_LIST(5, INT64, LinuxSandboxSecurityContext, supplemental_groups),
    PB(6, BOOL, LinuxSandboxSecurityContext, privileged),
    PB(7, STRING, LinuxSandboxSecurityContext, seccomp_profile_path),
    PB_SUB(8, Int64Value, LinuxSandboxSecurityContext, run_as_group),
    PB_SUB(9, SecurityProfile, LinuxSandboxSecurityContext, seccomp),
    PB_SUB(10, SecurityProfile, LinuxSandboxSecurityContext, apparmor),
    PB_NAMED(11, SupplementalGroupsPolicy, LinuxSandboxSecurityContext, supplemental_groups_policy),
};
PB_MSG(LinuxSandboxSecurityContext);

typedef struct {
    slice cgroup_parent; LinuxSandboxSecurityContext *security_context; LIST(pb_pair) sysctls;
    LinuxContainerResources *overhead, *resources;
} LinuxPodSandboxConfig;
static const pb_field LinuxPodSandboxConfig_fields[] = {
    PB(1, STRING, LinuxPodSandboxConfig, cgroup_parent),
    PB_SUB(2, LinuxSandboxSecurityContext, LinuxPodSandboxConfig, security_context),
    PB_PAIRS(3, LinuxPodSandboxConfig, sysctls),
    PB_SUB(4, LinuxContainerResources, LinuxPodSandboxConfig, overhead),
    PB_SUB(5, LinuxContainerResources, LinuxPodSandboxConfig, resources),
};
PB_MSG(LinuxPodSandboxConfig);

typedef struct {
    PodSandboxMetadata *metadata; slice hostname, log_directory; DNSConfig *dns_config;
    LIST(PortMapping) port_mappings; LIST(pb_pair) labels, annotations;
    LinuxPodSandboxConfig *linux; WindowsPodSandboxConfig *windows;
} PodSandboxConfig;
static const pb_field PodSandboxConfig_fields[] = {
    PB_SUB(1, PodSandboxMetadata, PodSandboxConfig, metadata),
    PB(2, STRING, PodSandboxConfig, hostname),
    PB(3, STRING, PodSandboxConfig, log_directory),
    PB_SUB(4, DNSConfig, PodSandboxConfig, dns_config),
    PB_SUBS(5, PortMapping, PodSandboxConfig, port_mappings),
    PB_PAIRS(6, PodSandboxConfig, labels),
    PB_PAIRS(7, PodSandboxConfig, annotations),
    PB_SUB(8, LinuxPodSandboxConfig, PodSandboxConfig, linux),
    PB_SUB(9, WindowsPodSandboxConfig, PodSandboxConfig, windows),
};
PB_MSG(PodSandboxConfig);

typedef struct { PodSandboxConfig *config; slice runtime_handler; } RunPodSandboxRequest;
static const pb_field RunPodSandboxRequest_fields[] = {
    PB_SUB(1, PodSandboxConfig, RunPodSandboxRequest, config),
    PB(2, STRING, RunPodSandboxRequest, runtime_handler),
};
PB_MSG(RunPodSandboxRequest);

typedef struct { slice pod_sandbox_id; } RunPodSandboxResponse;
static const pb_field RunPodSandboxResponse_fields[] = {
    PB(1, STRING, RunPodSandboxResponse, pod_sandbox_id),
};
PB_MSG(RunPodSandboxResponse);

typedef struct { slice pod_sandbox_id; } StopPodSandboxRequest;
static const pb_field StopPodSandboxRequest_fields[] = {
    PB(1, STRING, StopPodSandboxRequest, pod_sandbox_id),
};
PB_MSG(StopPodSandboxRequest);

PB_EMPTY(StopPodSandboxResponse);

typedef struct { slice pod_sandbox_id; } RemovePodSandboxRequest;
static const pb_field RemovePodSandboxRequest_fields[] = {
    PB(1, STRING, RemovePodSandboxRequest, pod_sandbox_id),
};
PB_MSG(RemovePodSandboxRequest);

PB_EMPTY(RemovePodSandboxResponse);

typedef struct {
    slice pod_sandbox_id; LinuxContainerResources *overhead, *resources;
} UpdatePodSandboxResourcesRequest;
static const pb_field UpdatePodSandboxResourcesRequest_fields[] = {
    PB(1, STRING, UpdatePodSandboxResourcesRequest, pod_sandbox_id),
    PB_SUB(2, LinuxContainerResources, UpdatePodSandboxResourcesRequest, overhead),
    PB_SUB(3, LinuxContainerResources, UpdatePodSandboxResourcesRequest, resources),
};
PB_MSG(UpdatePodSandboxResourcesRequest);

PB_EMPTY(UpdatePodSandboxResourcesResponse);

/* -- an image as it is named, and a container as it is asked for ------------------------------- */

typedef struct {
    slice image; LIST(pb_pair) annotations; slice user_specified_image, runtime_handler, image_ref;
} ImageSpec;
static const pb_field ImageSpec_fields[] = {
    PB(1, STRING, ImageSpec, image),
    PB_PAIRS(2, ImageSpec, annotations),
    PB(18, STRING, ImageSpec, user_specified_image),
    PB(19, STRING, ImageSpec, runtime_handler),
    PB(20, STRING, ImageSpec, image_ref),
};
PB_MSG(ImageSpec);

typedef struct { slice name; uint32_t attempt; } ContainerMetadata;
static const pb_field ContainerMetadata_fields[] = {
    PB(1, STRING, ContainerMetadata, name),
    PB(2, UINT32, ContainerMetadata, attempt),
};
PB_MSG(ContainerMetadata);

typedef struct { slice key, value; } KeyValue;
static const pb_field KeyValue_fields[] = {
    PB(1, STRING, KeyValue, key),
    PB(2, BYTES, KeyValue, value),
};
PB_MSG(KeyValue);

enum MountPropagation {
    MountPropagation_PROPAGATION_PRIVATE, MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
    MountPropagation_PROPAGATION_BIDIRECTIONAL
};
static const char *const MountPropagation_names[] = {
    "PROPAGATION_PRIVATE", "PROPAGATION_HOST_TO_CONTAINER", "PROPAGATION_BIDIRECTIONAL"
};
PB_NAMES(MountPropagation);

typedef struct {
    slice container_path, host_path; bool readonly, selinux_relabel; int32_t propagation;
    LIST(IDMapping) uidMappings, gidMappings; bool recursive_read_only; ImageSpec *image;
    slice image_sub_path; LIST(slice) mount_options;
} Mount;
static const pb_field Mount_fields[] = {
    PB(1, STRING, Mount, container_path),
    PB(2, STRING, Mount, host_path),
    PB(3, BOOL, Mount, readonly),
    PB(4, BOOL, Mount, selinux_relabel),
    PB_NAMED(5, MountPropagation, Mount, propagation),
    PB_SUBS(6, IDMapping, Mount, uidMappings),
    PB_SUBS(7, IDMapping, Mount, gidMappings),
    PB(8, BOOL, Mount, recursive_read_only),
    PB_SUB(9, ImageSpec, Mount, image),
    PB(10, STRING, Mount, image_sub_path),
    PB_LIST(11, STRING, Mount, mount_options),
};
PB_MSG(Mount);

typedef struct { slice container_path, host_path, permissions; } Device;
static const pb_field Device_fields[] = {
    PB(1, STRING, Device, container_path),
    PB(2, STRING, Device, host_path),
    PB(3, STRING, Device, permissions),
};
PB_MSG(Device);

typedef struct { slice name; } CDIDevice;
static const pb_field CDIDevice_fields[] = { PB(1, STRING, CDIDevice, name) };
PB_MSG(CDIDevice);

enum Signal {
    Signal_SIGNAL_RUNTIME_DEFAULT, Signal_SIGNAL_SIGABRT, Signal_SIGNAL_SIGALRM,
    Signal_SIGNAL_SIGBUS, Signal_SIGNAL_SIGCHLD, Signal_SIGNAL_SIGCLD, Signal_SIGNAL_SIGCONT,
    Signal_SIGNAL_SIGFPE, Signal_SIGNAL_SIGHUP, Signal_SIGNAL_SIGILL, Signal_SIGNAL_SIGINT,
    Signal_SIGNAL_SIGIO, Signal_SIGNAL_SIGIOT, Signal_SIGNAL_SIGKILL, Signal_SIGNAL_SIGPIPE,
    Signal_SIGNAL_SIGPOLL, Signal_SIGNAL_SIGPROF, Signal_SIGNAL_SIGPWR, Signal_SIGNAL_SIGQUIT,
    Signal_SIGNAL_SIGSEGV, Signal_SIGNAL_SIGSTKFLT, Signal_SIGNAL_SIGSTOP, Signal_SIGNAL_SIGSYS,
    Signal_SIGNAL_SIGTERM, Signal_SIGNAL_SIGTRAP, Signal_SIGNAL_SIGTSTP, Signal_SIGNAL_SIGTTIN,
    Signal_SIGNAL_SIGTTOU, Signal_SIGNAL_SIGURG, Signal_SIGNAL_SIGUSR1, Signal_SIGNAL_SIGUSR2,
    Signal_SIGNAL_SIGVTALRM, Signal_SIGNAL_SIGWINCH, Signal_SIGNAL_SIGXCPU, Signal_SIGNAL_SIGXFSZ,
    Signal_SIGNAL_SIGRTMIN, Signal_SIGNAL_SIGRTMINPLUS1, Signal_SIGNAL_SIGRTMINPLUS2,
    Signal_SIGNAL_SIGRTMINPLUS3, Signal_SIGNAL_SIGRTMINPLUS4, Signal_SIGNAL_SIGRTMINPLUS5,
    Signal_SIGNAL_SIGRTMINPLUS6, Signal_SIGNAL_SIGRTMINPLUS7, Signal_SIGNAL_SIGRTMINPLUS8,
    Signal_SIGNAL_SIGRTMINPLUS9, Signal_SIGNAL_SIGRTMINPLUS10, Signal_SIGNAL_SIGRTMINPLUS11,
    Signal_SIGNAL_SIGRTMINPLUS12, Signal_SIGNAL_SIGRTMINPLUS13, Signal_SIGNAL_SIGRTMINPLUS14,
    Signal_SIGNAL_SIGRTMINPLUS15, Signal_SIGNAL_SIGRTMAXMINUS14, Signal_SIGNAL_SIGRTMAXMINUS13,
    Signal_SIGNAL_SIGRTMAXMINUS12, Signal_SIGNAL_SIGRTMAXMINUS11, Signal_SIGNAL_SIGRTMAXMINUS10,
    Signal_SIGNAL_SIGRTMAXMINUS9, Signal_SIGNAL_SIGRTMAXMINUS8, Signal_SIGNAL_SIGRTMAXMINUS7,
    Signal_SIGNAL_SIGRTMAXMINUS6, Signal_SIGNAL_SIGRTMAXMINUS5, Signal_SIGNAL_SIGRTMAXMINUS4,
    Signal_SIGNAL_SIGRTMAXMINUS3, Signal_SIGNAL_SIGRTMAXMINUS2, Signal_SIGNAL_SIGRTMAXMINUS1,
    Signal_SIGNAL_SIGRTMAX
};
static const char *const Signal_names[] = {
    "SIGNAL_RUNTIME_DEFAULT", "SIGNAL_SIGABRT", "SIGNAL_SIGALRM", "SIGNAL_SIGBUS", "SIGNAL_SIGCHLD",
    "SIGNAL_SIGCLD", "SIGNAL_SIGCONT", "SIGNAL_SIGFPE", "SIGNAL_SIGHUP", "SIGNAL_SIGILL",
    "SIGNAL_SIGINT", "SIGNAL_SIGIO", "SIGNAL_SIGIOT", "SIGNAL_SIGKILL", "SIGNAL_SIGPIPE",
    "SIGNAL_SIGPOLL", "SIGNAL_SIGPROF", "SIGNAL_SIGPWR", "SIGNAL_SIGQUIT", "SIGNAL_SIGSEGV",
    "SIGNAL_SIGSTKFLT", "SIGNAL_SIGSTOP", "SIGNAL_SIGSYS", "SIGNAL_SIGTERM", "SIGNAL_SIGTRAP",
    "SIGNAL_SIGTSTP", "SIGNAL_SIGTTIN", "SIGNAL_SIGTTOU", "SIGNAL_SIGURG", "SIGNAL_SIGUSR1",
    "SIGNAL_SIGUSR2", "SIGNAL_SIGVTALRM", "SIGNAL_SIGWINCH", "SIGNAL_SIGXCPU", "SIGNAL_SIGXFSZ",
    "SIGNAL_SIGRTMIN", "SIGNAL_SIGRTMINPLUS1", "SIGNAL_SIGRTMINPLUS2", "SIGNAL_SIGRTMINPLUS3",
    "SIGNAL_SIGRTMINPLUS4", "SIGNAL_SIGRTMINPLUS5", "SIGNAL_SIGRTMINPLUS6", "SIGNAL_SIGRTMINPLUS7",
    "SIGNAL_SIGRTMINPLUS8", "SIGNAL_SIGRTMINPLUS9", "SIGNAL_SIGRTMINPLUS10",
    "SIGNAL_SIGRTMINPLUS11", "SIGNAL_SIGRTMINPLUS12", "SIGNAL_SIGRTMINPLUS13",
    "SIGNAL_SIGRTMINPLUS14", "SIGNAL_SIGRTMINPLUS15", "SIGNAL_SIGRTMAXMINUS14",
    "SIGNAL_SIGRTMAXMINUS13", "SIGNAL_SIGRTMAXMINUS12", "SIGNAL_SIGRTMAXMINUS11",
    "SIGNAL_SIGRTMAXMINUS10", "SIGNAL_SIGRTMAXMINUS9", "SIGNAL_SIGRTMAXMINUS8",
    "SIGNAL_SIGRTMAXMINUS7", "SIGNAL_SIGRTMAXMINUS6", "SIGNAL_SIGRTMAXMINUS5",
    "SIGNAL_SIGRTMAXMINUS4", "SIGNAL_SIGRTMAXMINUS3", "SIGNAL_SIGRTMAXMINUS2",
    "SIGNAL_SIGRTMAXMINUS1", "SIGNAL_SIGRTMAX"
};
PB_NAMES(Signal);

typedef struct {
    Capability *capabilities; bool privileged; NamespaceOption *namespace_options;
    SELinuxOption *selinux_options; Int64Value *run_as_user; slice run_as_username;
    bool readonly_rootfs; LIST(int64_t) supplemental_groups;
    slice apparmor_profile, seccomp_profile_path; bool no_new_privs; Int64Value *run_as_group;
    LIST(slice) masked_paths, readonly_paths; SecurityProfile *seccomp, *apparmor;
    int32_t supplemental_groups_policy;
} LinuxContainerSecurityContext;
static const pb_field LinuxContainerSecurityContext_fields[] = {
    PB_SUB(1, Capability, LinuxContainerSecurityContext, capabilities),
    PB(2, BOOL, LinuxContainerSecurityContext, privileged),
    PB_SUB(3, NamespaceOption, LinuxContainerSecurityContext, namespace_options),
    PB_SUB(4, SELinuxOption, LinuxContainerSecurityContext, selinux_options),
    PB_SUB(5, Int64Value, LinuxContainerSecurityContext, run_as_user),
    PB(6, STRING, LinuxContainerSecurityContext, run_as_username),
    PB(7, BOOL, LinuxContainerSecurityContext, readonly_rootfs),
    PB_LIST(8, INT64, LinuxContainerSecurityContext, supplemental_groups),
    PB(9, STRING, LinuxContainerSecurityContext, apparmor_profile),
    PB(10, STRING, LinuxContainerSecurityContext, seccomp_profile_path),
    PB(11, BOOL, LinuxContainerSecurityContext, no_new_privs),
    PB_SUB(12, Int64Value, LinuxContainerSecurityContext, run_as_group),
    PB_LIST(13, STRING, LinuxContainerSecurityContext, masked_paths),
    PB_LIST(14, STRING, LinuxContainerSecurityContext, readonly_paths),
    PB_SUB(15, SecurityProfile, LinuxContainerSecurityContext, seccomp),
    PB_SUB(16, SecurityProfile, LinuxContainerSecurityContext, apparmor),
    PB_NAMED(17, SupplementalGroupsPolicy, LinuxContainerSecurityContext, supplemental_groups_policy),
};
PB_MSG(LinuxContainerSecurityContext);

typedef struct {
    LinuxContainerResources *resources; LinuxContainerSecurityContext *security_context;
} LinuxContainerConfig;
static const pb_field LinuxContainerConfig_fields[] = {
    PB_SUB(1, LinuxContainerResources, LinuxContainerConfig, resources),
    PB_SUB(2, LinuxContainerSecurityContext, LinuxContainerConfig, security_context),
};
PB_MSG(LinuxContainerConfig);

typedef struct {
    ContainerMetadata *metadata; ImageSpec *image; LIST(slice) command, args; slice working_dir;
    LIST(KeyValue) envs; LIST(Mount) mounts; LIST(Device) devices;
    LIST(pb_pair) labels, annotations; slice log_path; bool stdin, stdin_once, tty;
    LinuxContainerConfig *linux; WindowsContainerConfig *windows; LIST(CDIDevice) CDI_devices;
    int32_t stop_signal;
} ContainerConfig;
static const pb_field ContainerConfig_fields[] = {
    PB_SUB(1, ContainerMetadata, ContainerConfig, metadata),
    PB_SUB(2, ImageSpec, ContainerConfig, image),
    PB_LIST(3, STRING, ContainerConfig, command),
    PB_LIST(4, STRING, ContainerConfig, args),
    PB(5, STRING, ContainerConfig, working_dir),
    PB_SUBS(6, KeyValue, ContainerConfig, envs),
    PB_SUBS(7, Mount, ContainerConfig, mounts),
    PB_SUBS(8, Device, ContainerConfig, devices),
    PB_PAIRS(9, ContainerConfig, labels),
    PB_PAIRS(10, ContainerConfig, annotations),
    PB(11, STRING, ContainerConfig, log_path),
    PB(12, BOOL, ContainerConfig, stdin),
    PB(13, BOOL, ContainerConfig, stdin_once),
    PB(14, BOOL, ContainerConfig, tty),
    PB_SUB(15, LinuxContainerConfig, ContainerConfig, linux),
    PB_SUB(16, WindowsContainerConfig, ContainerConfig, windows),
    PB_SUBS(17, CDIDevice, ContainerConfig, CDI_devices),
    PB_NAMED(18, Signal, ContainerConfig, stop_signal),
};
PB_MSG(ContainerConfig);

typedef struct {
    slice pod_sandbox_id; ContainerConfig *config; PodSandboxConfig *sandbox_config;
} CreateContainerRequest;
static const pb_field CreateContainerRequest_fields[] = {
    PB(1, STRING, CreateContainerRequest, pod_sandbox_id),
    PB_SUB(2, ContainerConfig, CreateContainerRequest, config),
    PB_SUB(3, PodSandboxConfig, CreateContainerRequest, sandbox_config),
};
PB_MSG(CreateContainerRequest);

typedef struct { slice container_id; } CreateContainerResponse;
static const pb_field CreateContainerResponse_fields[] = {
    PB(1, STRING, CreateContainerResponse, container_id),
};
PB_MSG(CreateContainerResponse);

typedef struct { slice container_id; } StartContainerRequest;
static const pb_field StartContainerRequest_fields[] = {
    PB(1, STRING, StartContainerRequest, container_id),
};
PB_MSG(StartContainerRequest);

PB_EMPTY(StartContainerResponse);

typedef struct { slice container_id; int64_t timeout; } StopContainerRequest;
static const pb_field StopContainerRequest_fields[] = {
    PB(1, STRING, StopContainerRequest, container_id),
    PB(2, INT64, StopContainerRequest, timeout),
};
PB_MSG(StopContainerRequest);

PB_EMPTY(StopContainerResponse);

typedef struct { slice container_id; } RemoveContainerRequest;
static const pb_field RemoveContainerRequest_fields[] = {
    PB(1, STRING, RemoveContainerRequest, container_id),
};
PB_MSG(RemoveContainerRequest);

PB_EMPTY(RemoveContainerResponse);

typedef struct {
    slice container_id; LinuxContainerResources *linux; WindowsContainerResources *windows;
    LIST(pb_pair) annotations;
} UpdateContainerResourcesRequest;
static const pb_field UpdateContainerResourcesRequest_fields[] = {
    PB(1, STRING, UpdateContainerResourcesRequest, container_id),
    PB_SUB(2, LinuxContainerResources, UpdateContainerResourcesRequest, linux),
    PB_SUB(3, WindowsContainerResources, UpdateContainerResourcesRequest, windows),
    PB_PAIRS(4, UpdateContainerResourcesRequest, annotations),
};
PB_MSG(UpdateContainerResourcesRequest);

PB_EMPTY(UpdateContainerResourcesResponse);

typedef struct { slice container_id; } ReopenContainerLogRequest;
static const pb_field ReopenContainerLogRequest_fields[] = {
    PB(1, STRING, ReopenContainerLogRequest, container_id),
};
PB_MSG(ReopenContainerLogRequest);

PB_EMPTY(ReopenContainerLogResponse);

/* -- containers as they are -------------------------------------------------------------------- */

enum ContainerState {
    ContainerState_CONTAINER_CREATED, ContainerState_CONTAINER_RUNNING,
    ContainerState_CONTAINER_EXITED, ContainerState_CONTAINER_UNKNOWN
};
static const char *const ContainerState_names[] = {
    "CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED", "CONTAINER_UNKNOWN"
};
PB_NAMES(ContainerState);

typedef struct { int32_t state; } ContainerStateValue;
static const pb_field ContainerStateValue_fields[] = {
    PB_NAMED(1, ContainerState, ContainerStateValue, state),
};
PB_MSG(ContainerStateValue);

typedef struct {
    slice id; ContainerStateValue *state; slice pod_sandbox_id; LIST(pb_pair) label_selector;
} ContainerFilter;
static const pb_field ContainerFilter_fields[] = {
    PB(1, STRING, ContainerFilter, id),
    PB_SUB(2, ContainerStateValue, ContainerFilter, state),
    PB(3, STRING, ContainerFilter, pod_sandbox_id),
    PB_PAIRS(4, ContainerFilter, label_selector),
};
PB_MSG(ContainerFilter);

typedef struct { ContainerFilter *filter; } ListContainersRequest;
static const pb_field ListContainersRequest_fields[] = {
    PB_SUB(1, ContainerFilter, ListContainersRequest, filter),
};
PB_MSG(ListContainersRequest);

typedef struct {
    slice id, pod_sandbox_id; ContainerMetadata *metadata; ImageSpec *image; slice image_ref;
    int32_t state; int64_t created_at; LIST(pb_pair) labels, annotations; slice image_id;
} Container;
static const pb_field Container_fields[] = {
    PB(1, STRING, Container, id),
    PB(2, STRING, Container, pod_sandbox_id),
    PB_SUB(3, ContainerMetadata, Container, metadata),
    PB_SUB(4, ImageSpec, Container, image),
    PB(5, STRING, Container, image_ref),
    PB_NAMED(6, ContainerState, Container, state),
    PB(7, INT64, Container, created_at),
    PB_PAIRS(8, Container, labels),
    PB_PAIRS(9, Container, annotations),
    PB(10, STRING, Container, image_id),
};
PB_MSG(Container);

typedef struct { LIST(Container) containers; } ListContainersResponse;
static const pb_field ListContainersResponse_fields[] = {
    PB_SUBS(1, Container, ListContainersResponse, containers),
};
PB_MSG(ListContainersResponse);

typedef struct { ContainerFilter *filter; } StreamContainersRequest;
static const pb_field StreamContainersRequest_fields[] = {
    PB_SUB(1, ContainerFilter, StreamContainersRequest, filter),
};
PB_MSG(StreamContainersRequest);

typedef struct { LIST(Container) containers; } StreamContainersResponse;
static const pb_field StreamContainersResponse_fields[] = {
    PB_SUBS(1, Container, StreamContainersResponse, containers),
};
PB_MSG(StreamContainersResponse);

typedef struct {
    LinuxContainerResources *linux; WindowsContainerResources *windows;
} ContainerResources;
static const pb_field ContainerResources_fields[] = {
    PB_SUB(1, LinuxContainerResources, ContainerResources, linux),
    PB_SUB(2, WindowsContainerResources, ContainerResources, windows),
};
PB_MSG(ContainerResources);

typedef struct { int64_t uid, gid; LIST(int64_t) supplemental_groups; } LinuxContainerUser;
static const pb_field LinuxContainerUser_fields[] = {
    PB(1, INT64, LinuxContainerUser, uid),
    PB(2, INT64, LinuxContainerUser, gid),
    PB_LIST(3, INT64, LinuxContainerUser, supplemental_groups),
};
PB_MSG(LinuxContainerUser);

typedef struct { LinuxContainerUser *linux; } ContainerUser;
static const pb_field ContainerUser_fields[] = {
    PB_SUB(1, LinuxContainerUser, ContainerUser, linux),
};
PB_MSG(ContainerUser);

typedef struct { slice container_id; bool verbose; } ContainerStatusRequest;
static const pb_field ContainerStatusRequest_fields[] = {
    PB(1, STRING, ContainerStatusRequest, container_id),
    PB(2, BOOL, ContainerStatusRequest, verbose),
};
PB_MSG(ContainerStatusRequest);

typedef struct {
    slice id; ContainerMetadata *metadata; int32_t state;
    int64_t created_at, started_at, finished_at; int32_t exit_code; ImageSpec *image;
    slice image_ref, reason, message; LIST(pb_pair) labels, annotations; LIST(Mount) mounts;
    slice log_path; ContainerResources *resources; slice image_id; ContainerUser *user;
    int32_t stop_signal;
} ContainerStatus;
static const pb_field ContainerStatus_fields[] = {
    PB(1, STRING, ContainerStatus, id),
    PB_SUB(2, ContainerMetadata, ContainerStatus, metadata),
    PB_NAMED(3, ContainerState, ContainerStatus, state),
    PB(4, INT64, ContainerStatus, created_at),
    PB(5, INT64, ContainerStatus, started_at),
    PB(6, INT64, ContainerStatus, finished_at),
    PB(7, INT32, ContainerStatus, exit_code),
    PB_SUB(8, ImageSpec, ContainerStatus, image),
    PB(9, STRING, ContainerStatus, image_ref),
    PB(10, STRING, ContainerStatus, reason),
    PB(11, STRING, ContainerStatus, message),
    PB_PAIRS(12, ContainerStatus, labels),
    PB_PAIRS(13, ContainerStatus, annotations),
    PB_SUBS(14, Mount, ContainerStatus, mounts),
    PB(15, STRING, ContainerStatus, log_path),
    PB_SUB(16, ContainerResources, ContainerStatus, resources),
    PB(17, STRING, ContainerStatus, image_id),
    PB_SUB(18, ContainerUser, ContainerStatus, user),
    PB_NAMED(19, Signal, ContainerStatus, stop_signal),
};
PB_MSG(ContainerStatus);

typedef struct { ContainerStatus *status; LIST(pb_pair) info; } ContainerStatusResponse;
static const pb_field ContainerStatusResponse_fields[] = {
    PB_SUB(1, ContainerStatus, ContainerStatusResponse, status),
    PB_PAIRS(2, ContainerStatusResponse, info),
};
PB_MSG(ContainerStatusResponse);

/* -- pods as they are -------------------------------------------------------------------------- */

enum PodSandboxState { PodSandboxState_SANDBOX_READY, PodSandboxState_SANDBOX_NOTREADY };
static const char *const PodSandboxState_names[] = { "SANDBOX_READY", "SANDBOX_NOTREADY" };
PB_NAMES(PodSandboxState);

typedef struct { int32_t state; } PodSandboxStateValue;
static const pb_field PodSandboxStateValue_fields[] = {
    PB_NAMED(1, PodSandboxState, PodSandboxStateValue, state),
};
PB_MSG(PodSandboxStateValue);

typedef struct {
    slice id; PodSandboxStateValue *state; LIST(pb_pair) label_selector;
} PodSandboxFilter;
static const pb_field PodSandboxFilter_fields[] = {
    PB(1, STRING, PodSandboxFilter, id),
    PB_SUB(2, PodSandboxStateValue, PodSandboxFilter, state),
    PB_PAIRS(3, PodSandboxFilter, label_selector),
};
PB_MSG(PodSandboxFilter);

typedef struct { PodSandboxFilter *filter; } ListPodSandboxRequest;
static const pb_field ListPodSandboxRequest_fields[] = {
    PB_SUB(1, PodSandboxFilter, ListPodSandboxRequest, filter),
};
PB_MSG(ListPodSandboxRequest);

typedef struct {
    slice id; PodSandboxMetadata *metadata; int32_t state; int64_t created_at;
    LIST(pb_pair) labels, annotations; slice runtime_handler;
} PodSandbox;
static const pb_field PodSandbox_fields[] = {
    PB(1, STRING, PodSandbox, id),
    PB_SUB(2, PodSandboxMetadata, PodSandbox, metadata),
    PB_NAMED(3, PodSandboxState, PodSandbox, state),
    PB(4, INT64, PodSandbox, created_at),
    PB_PAIRS(5, PodSandbox, labels),
    PB_PAIRS(6, PodSandbox, annotations),
    PB(7, STRING, PodSandbox, runtime_handler),
};
PB_MSG(PodSandbox);

typedef struct { LIST(PodSandbox) items; } ListPodSandboxResponse;
static const pb_field ListPodSandboxResponse_fields[] = {
    PB_SUBS(1, PodSandbox, ListPodSandboxResponse, items),
};
PB_MSG(ListPodSandboxResponse);

typedef struct { PodSandboxFilter *filter; } StreamPodSandboxesRequest;
static const pb_field StreamPodSandboxesRequest_fields[] = {
    PB_SUB(1, PodSandboxFilter, StreamPodSandboxesRequest, filter),
};
PB_MSG(StreamPodSandboxesRequest);

typedef struct { LIST(PodSandbox) pod_sandboxes; } StreamPodSandboxesResponse;
static const pb_field StreamPodSandboxesResponse_fields[] = {
    PB_SUBS(1, PodSandbox, StreamPodSandboxesResponse, pod_sandboxes),
};
PB_MSG(StreamPodSandboxesResponse);

typedef struct { slice ip; } PodIP;
static const pb_field PodIP_fields[] = { PB(1, STRING, PodIP, ip) };
PB_MSG(PodIP);

typedef struct { slice ip; LIST(PodIP) additional_ips; } PodSandboxNetworkStatus;
static const pb_field PodSandboxNetworkStatus_fields[] = {
    PB(1, STRING, PodSandboxNetworkStatus, ip),
    PB_SUBS(2, PodIP, PodSandboxNetworkStatus, additional_ips),
};
PB_MSG(PodSandboxNetworkStatus);

typedef struct { NamespaceOption *options; } Namespace;
static const pb_field Namespace_fields[] = { PB_SUB(2, NamespaceOption, Namespace, options) };
PB_MSG(Namespace);

typedef struct { Namespace *namespaces; } LinuxPodSandboxStatus;
static const pb_field LinuxPodSandboxStatus_fields[] = {
    PB_SUB(1, Namespace, LinuxPodSandboxStatus, namespaces),
};
PB_MSG(LinuxPodSandboxStatus);

typedef struct { slice pod_sandbox_id; bool verbose; } PodSandboxStatusRequest;
static const pb_field PodSandboxStatusRequest_fields[] = {
    PB(1, STRING, PodSandboxStatusRequest, pod_sandbox_id),
    PB(2, BOOL, PodSandboxStatusRequest, verbose),
};
PB_MSG(PodSandboxStatusRequest);

typedef struct {
    slice id; PodSandboxMetadata *metadata; int32_t state; int64_t created_at;
    PodSandboxNetworkStatus *network; LinuxPodSandboxStatus *linux;
    LIST(pb_pair) labels, annotations; slice runtime_handler;
} PodSandboxStatus;
static const pb_field PodSandboxStatus_fields[] = {
    PB(1, STRING, PodSandboxStatus, id),
    PB_SUB(2, PodSandboxMetadata, PodSandboxStatus, metadata),
    PB_NAMED(3, PodSandboxState, PodSandboxStatus, state),
    PB(4, INT64, PodSandboxStatus, created_at),
    PB_SUB(5, PodSandboxNetworkStatus, PodSandboxStatus, network),
    PB_SUB(6, LinuxPodSandboxStatus, PodSandboxStatus, linux),
    PB_PAIRS(7, PodSandboxStatus, labels),
    PB_PAIRS(8, PodSandboxStatus, annotations),
    PB(9, STRING, PodSandboxStatus, runtime_handler),
};
PB_MSG(PodSandboxStatus);

typedef struct {
    PodSandboxStatus *status; LIST(pb_pair) info; LIST(ContainerStatus) containers_statuses;
    int64_t timestamp;
} PodSandboxStatusResponse;
static const pb_field PodSandboxStatusResponse_fields[] = {
    PB_SUB(1, PodSandboxStatus, PodSandboxStatusResponse, status),
    PB_PAIRS(2, PodSandboxStatusResponse, info),
    PB_SUBS(3, ContainerStatus, PodSandboxStatusResponse, containers_statuses),
    PB(4, INT64, PodSandboxStatusResponse, timestamp),
};
PB_MSG(PodSandboxStatusResponse);

/* -- events ------------------------------------------------------------------------------------ */

PB_EMPTY(GetEventsRequest);

enum ContainerEventType {
    ContainerEventType_CONTAINER_CREATED_EVENT, ContainerEventType_CONTAINER_STARTED_EVENT,
    ContainerEventType_CONTAINER_STOPPED_EVENT, ContainerEventType_CONTAINER_DELETED_EVENT
};
static const char *const ContainerEventType_names[] = {
    "CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT",
    "CONTAINER_DELETED_EVENT"
};
PB_NAMES(ContainerEventType);

typedef struct {
    slice container_id; int32_t container_event_type; int64_t created_at;
    PodSandboxStatus *pod_sandbox_status; LIST(ContainerStatus) containers_statuses;
} ContainerEventResponse;
static const pb_field ContainerEventResponse_fields[] = {
    PB(1, STRING, ContainerEventResponse, container_id),
    PB_NAMED(2, ContainerEventType, ContainerEventResponse, container_event_type),
    PB(3, INT64, ContainerEventResponse, created_at),
    PB_SUB(4, PodSandboxStatus, ContainerEventResponse, pod_sandbox_status),
    PB_SUBS(5, ContainerStatus, ContainerEventResponse, containers_statuses),
};
PB_MSG(ContainerEventResponse);

/* -- into a container -------------------------------------------------------------------------- */

typedef struct { slice container_id; LIST(slice) cmd; int64_t timeout; } ExecSyncRequest;
static const pb_field ExecSyncRequest_fields[] = {
    PB(1, STRING, ExecSyncRequest, container_id),
    PB_LIST(2, STRING, ExecSyncRequest, cmd),
    PB(3, INT64, ExecSyncRequest, timeout),
};
PB_MSG(ExecSyncRequest);

typedef struct { slice stdout, stderr; int32_t exit_code; } ExecSyncResponse;
static const pb_field ExecSyncResponse_fields[] = {
    PB(1, BYTES, ExecSyncResponse, stdout),
    PB(2, BYTES, ExecSyncResponse, stderr),
    PB(3, INT32, ExecSyncResponse, exit_code),
};
PB_MSG(ExecSyncResponse);

typedef struct {
    slice container_id; LIST(slice) cmd; bool tty, stdin, stdout, stderr;
} ExecRequest;
static const pb_field ExecRequest_fields[] = {
    PB(1, STRING, ExecRequest, container_id),
    PB_LIST(2, STRING, ExecRequest, cmd),
    PB(3, BOOL, ExecRequest, tty),
    PB(4, BOOL, ExecRequest, stdin),
    PB(5, BOOL, ExecRequest, stdout),
    PB(6, BOOL, ExecRequest, stderr),
};
PB_MSG(ExecRequest);

typedef struct { slice url; } ExecResponse;
static const pb_field ExecResponse_fields[] = { PB(1, STRING, ExecResponse, url) };
PB_MSG(ExecResponse);

typedef struct { slice container_id; bool stdin, tty, stdout, stderr; } AttachRequest;
static const pb_field AttachRequest_fields[] = {
    PB(1, STRING, AttachRequest, container_id),
    PB(2, BOOL, AttachRequest, stdin),
    PB(3, BOOL, AttachRequest, tty),
    PB(4, BOOL, AttachRequest, stdout),
    PB(5, BOOL, AttachRequest, stderr),
};
PB_MSG(AttachRequest);

typedef struct { slice url; } AttachResponse;
static const pb_field AttachResponse_fields[] = { PB(1, STRING, AttachResponse, url) };
PB_MSG(AttachResponse);

typedef struct { slice pod_sandbox_id; LIST(int32_t) port; } PortForwardRequest;
static const pb_field PortForwardRequest_fields[] = {
    PB(1, STRING, PortForwardRequest, pod_sandbox_id),
    PB_LIST(2, INT32, PortForwardRequest, port),
};
PB_MSG(PortForwardRequest);

typedef struct { slice url; } PortForwardResponse;
static const pb_field PortForwardResponse_fields[] = { PB(1, STRING, PortForwardResponse, url) };
PB_MSG(PortForwardResponse);

/* -- images ------------------------------------------------------------------------------------ */

typedef struct { ImageSpec *image; } ImageFilter;
static const pb_field ImageFilter_fields[] = { PB_SUB(1, ImageSpec, ImageFilter, image) };
PB_MSG(ImageFilter);

typedef struct { ImageFilter *filter; } ListImagesRequest;
static const pb_field ListImagesRequest_fields[] = {
    PB_SUB(1, ImageFilter, ListImagesRequest, filter),
};
PB_MSG(ListImagesRequest);

typedef struct {
    slice id; LIST(slice) repo_tags, repo_digests; uint64_t size; Int64Value *uid; slice username;
    ImageSpec *spec; bool pinned;
} Image;
static const pb_field Image_fields[] = {
    PB(1, STRING, Image, id),
    PB_LIST(2, STRING, Image, repo_tags),
    PB_LIST(3, STRING, Image, repo_digests),
    PB(4, UINT64, Image, size),
    PB_SUB(5, Int64Value, Image, uid),
    PB(6, STRING, Image, username),
    PB_SUB(7, ImageSpec, Image, spec),
    PB(8, BOOL, Image, pinned),
};
PB_MSG(Image);

typedef struct { LIST(Image) images; } ListImagesResponse;
static const pb_field ListImagesResponse_fields[] = {
    PB_SUBS(1, Image, ListImagesResponse, images),
};
PB_MSG(ListImagesResponse);

typedef struct { ImageFilter *filter; } StreamImagesRequest;
static const pb_field StreamImagesRequest_fields[] = {
    PB_SUB(1, ImageFilter, StreamImagesRequest, filter),
};
PB_MSG(StreamImagesRequest);

typedef struct { LIST(Image) images; } StreamImagesResponse;
static const pb_field StreamImagesResponse_fields[] = {
    PB_SUBS(1, Image, StreamImagesResponse, images),
};
PB_MSG(StreamImagesResponse);

typedef struct { ImageSpec *image; bool verbose; } ImageStatusRequest;
static const pb_field ImageStatusRequest_fields[] = {
    PB_SUB(1, ImageSpec, ImageStatusRequest, image),
    PB(2, BOOL, ImageStatusRequest, verbose),
};
PB_MSG(ImageStatusRequest);

typedef struct { Image *image; LIST(pb_pair) info; } ImageStatusResponse;
static const pb_field ImageStatusResponse_fields[] = {
    PB_SUB(1, Image, ImageStatusResponse, image),
    PB_PAIRS(2, ImageStatusResponse, info),
};
PB_MSG(ImageStatusResponse);

typedef struct {
    slice username, password, auth, server_address, identity_token, registry_token;
} AuthConfig;
static const pb_field AuthConfig_fields[] = {
    PB(1, STRING, AuthConfig, username),
    PB(2, STRING, AuthConfig, password),
    PB(3, STRING, AuthConfig, auth),
    PB(4, STRING, AuthConfig, server_address),
    PB(5, STRING, AuthConfig, identity_token),
    PB(6, STRING, AuthConfig, registry_token),
};
PB_MSG(AuthConfig);

typedef struct {
    ImageSpec *image; AuthConfig *auth; PodSandboxConfig *sandbox_config;
} PullImageRequest;
static const pb_field PullImageRequest_fields[] = {
    PB_SUB(1, ImageSpec, PullImageRequest, image),
    PB_SUB(2, AuthConfig, PullImageRequest, auth),
    PB_SUB(3, PodSandboxConfig, PullImageRequest, sandbox_config),
};
PB_MSG(PullImageRequest);

typedef struct { slice image_ref; } PullImageResponse;
static const pb_field PullImageResponse_fields[] = { PB(1, STRING, PullImageResponse, image_ref) };
PB_MSG(PullImageResponse);

typedef struct { ImageSpec *image; } RemoveImageRequest;
static const pb_field RemoveImageRequest_fields[] = {
    PB_SUB(1, ImageSpec, RemoveImageRequest, image),
};
PB_MSG(RemoveImageRequest);

PB_EMPTY(RemoveImageResponse);

typedef struct { slice mountpoint; } FilesystemIdentifier;
static const pb_field FilesystemIdentifier_fields[] = {
    PB(1, STRING, FilesystemIdentifier, mountpoint),
};
PB_MSG(FilesystemIdentifier);

typedef struct {
    int64_t timestamp; FilesystemIdentifier *fs_id; UInt64Value *used_bytes, *inodes_used;
} FilesystemUsage;
static const pb_field FilesystemUsage_fields[] = {
    PB(1, INT64, FilesystemUsage, timestamp),
    PB_SUB(2, FilesystemIdentifier, FilesystemUsage, fs_id),
    PB_SUB(3, UInt64Value, FilesystemUsage, used_bytes),
    PB_SUB(4, UInt64Value, FilesystemUsage, inodes_used),
};
PB_MSG(FilesystemUsage);

PB_EMPTY(ImageFsInfoRequest);

typedef struct {
    LIST(FilesystemUsage) image_filesystems, container_filesystems;
} ImageFsInfoResponse;
static const pb_field ImageFsInfoResponse_fields[] = {
    PB_SUBS(1, FilesystemUsage, ImageFsInfoResponse, image_filesystems),
    PB_SUBS(2, FilesystemUsage, ImageFsInfoResponse, container_filesystems),
};
PB_MSG(ImageFsInfoResponse);

/* -- statistics -------------------------------------------------------------------------------- */

typedef struct { uint64_t Total; double Avg10, Avg60, Avg300; } PsiData;
static const pb_field PsiData_fields[] = {
    PB(1, UINT64, PsiData, Total),
    PB(2, DOUBLE, PsiData, Avg10),
    PB(3, DOUBLE, PsiData, Avg60),
    PB(4, DOUBLE, PsiData, Avg300),
};
PB_MSG(PsiData);

typedef struct { PsiData *Full, *Some; } PsiStats;
static const pb_field PsiStats_fields[] = {
    PB_SUB(1, PsiData, PsiStats, Full),
    PB_SUB(2, PsiData, PsiStats, Some),
};
PB_MSG(PsiStats);

typedef struct {
    int64_t timestamp; UInt64Value *usage_core_nano_seconds, *usage_nano_cores; PsiStats *psi;
} CpuUsage;
static const pb_field CpuUsage_fields[] = {
    PB(1, INT64, CpuUsage, timestamp),
    PB_SUB(2, UInt64Value, CpuUsage, usage_core_nano_seconds),
    PB_SUB(3, UInt64Value, CpuUsage, usage_nano_cores),
    PB_SUB(4, PsiStats, CpuUsage, psi),
};
PB_MSG(CpuUsage);

typedef struct {
    int64_t timestamp;
    UInt64Value *working_set_bytes, *available_bytes, *usage_bytes, *rss_bytes, *page_faults,
        *major_page_faults; PsiStats *psi;
} MemoryUsage;
static const pb_field MemoryUsage_fields[] = {
    PB(1, INT64, MemoryUsage, timestamp),
    PB_SUB(2, UInt64Value, MemoryUsage, working_set_bytes),
    PB_SUB(3, UInt64Value, MemoryUsage, available_bytes),
    PB_SUB(4, UInt64Value, MemoryUsage, usage_bytes),
    PB_SUB(5, UInt64Value, MemoryUsage, rss_bytes),
    PB_SUB(6, UInt64Value, MemoryUsage, page_faults),
    PB_SUB(7, UInt64Value, MemoryUsage, major_page_faults),
    PB_SUB(8, PsiStats, MemoryUsage, psi),
};
PB_MSG(MemoryUsage);

typedef struct {
    int64_t timestamp; UInt64Value *swap_available_bytes, *swap_usage_bytes;
} SwapUsage;
static const pb_field SwapUsage_fields[] = {
    PB(1, INT64, SwapUsage, timestamp),
    PB_SUB(2, UInt64Value, SwapUsage, swap_available_bytes),
    PB_SUB(3, UInt64Value, SwapUsage, swap_usage_bytes),
};
PB_MSG(SwapUsage);

typedef struct { int64_t timestamp; PsiStats *psi; } IoUsage;
static const pb_field IoUsage_fields[] = {
    PB(1, INT64, IoUsage, timestamp),
    PB_SUB(2, PsiStats, IoUsage, psi),
};
PB_MSG(IoUsage);

typedef struct {
    slice id; ContainerMetadata *metadata; LIST(pb_pair) labels, annotations;
} ContainerAttributes;
static const pb_field ContainerAttributes_fields[] = {
    PB(1, STRING, ContainerAttributes, id),
    PB_SUB(2, ContainerMetadata, ContainerAttributes, metadata),
    PB_PAIRS(3, ContainerAttributes, labels),
    PB_PAIRS(4, ContainerAttributes, annotations),
};
PB_MSG(ContainerAttributes);

typedef struct {
    ContainerAttributes *attributes; CpuUsage *cpu; MemoryUsage *memory;
    FilesystemUsage *writable_layer; SwapUsage *swap; IoUsage *io;
} ContainerStats;
static const pb_field ContainerStats_fields[] = {
    PB_SUB(1, ContainerAttributes, ContainerStats, attributes),
    PB_SUB(2, CpuUsage, ContainerStats, cpu),
    PB_SUB(3, MemoryUsage, ContainerStats, memory),
    PB_SUB(4, FilesystemUsage, ContainerStats, writable_layer),
    PB_SUB(5, SwapUsage, ContainerStats, swap),
    PB_SUB(6, IoUsage, ContainerStats, io),
};
PB_MSG(ContainerStats);

typedef struct { slice container_id; } ContainerStatsRequest;
static const pb_field ContainerStatsRequest_fields[] = {
    PB(1, STRING, ContainerStatsRequest, container_id),
};
PB_MSG(ContainerStatsRequest);

typedef struct { ContainerStats *stats; } ContainerStatsResponse;
static const pb_field ContainerStatsResponse_fields[] = {
    PB_SUB(1, ContainerStats, ContainerStatsResponse, stats),
};
PB_MSG(ContainerStatsResponse);

typedef struct { slice id, pod_sandbox_id; LIST(pb_pair) label_selector; } ContainerStatsFilter;
static const pb_field ContainerStatsFilter_fields[] = {
    PB(1, STRING, ContainerStatsFilter, id),
    PB(2, STRING, ContainerStatsFilter, pod_sandbox_id),
    PB_PAIRS(3, ContainerStatsFilter, label_selector),
};
PB_MSG(ContainerStatsFilter);

typedef struct { ContainerStatsFilter *filter; } ListContainerStatsRequest;
static const pb_field ListContainerStatsRequest_fields[] = {
    PB_SUB(1, ContainerStatsFilter, ListContainerStatsRequest, filter),
};
PB_MSG(ListContainerStatsRequest);

typedef struct { LIST(ContainerStats) stats; } ListContainerStatsResponse;
static const pb_field ListContainerStatsResponse_fields[] = {
    PB_SUBS(1, ContainerStats, ListContainerStatsResponse, stats),
};
PB_MSG(ListContainerStatsResponse);

typedef struct { ContainerStatsFilter *filter; } StreamContainerStatsRequest;
static const pb_field StreamContainerStatsRequest_fields[] = {
    PB_SUB(1, ContainerStatsFilter, StreamContainerStatsRequest, filter),
};
PB_MSG(StreamContainerStatsRequest);

typedef struct { LIST(ContainerStats) container_stats; } StreamContainerStatsResponse;
static const pb_field StreamContainerStatsResponse_fields[] = {
    PB_SUBS(1, ContainerStats, StreamContainerStatsResponse, container_stats),
};
PB_MSG(StreamContainerStatsResponse);

typedef struct {
    slice name; UInt64Value *rx_bytes, *rx_errors, *tx_bytes, *tx_errors;
} NetworkInterfaceUsage;
static const pb_field NetworkInterfaceUsage_fields[] = {
    PB(1, STRING, NetworkInterfaceUsage, name),
    PB_SUB(2, UInt64Value, NetworkInterfaceUsage, rx_bytes),
    PB_SUB(3, UInt64Value, NetworkInterfaceUsage, rx_errors),
    PB_SUB(4, UInt64Value, NetworkInterfaceUsage, tx_bytes),
    PB_SUB(5, UInt64Value, NetworkInterfaceUsage, tx_errors),
};
PB_MSG(NetworkInterfaceUsage);

typedef struct {
    int64_t timestamp; NetworkInterfaceUsage *default_interface;
    LIST(NetworkInterfaceUsage) interfaces;
} NetworkUsage;
static const pb_field NetworkUsage_fields[] = {
    PB(1, INT64, NetworkUsage, timestamp),
    PB_SUB(2, NetworkInterfaceUsage, NetworkUsage, default_interface),
    PB_SUBS(3, NetworkInterfaceUsage, NetworkUsage, interfaces),
};
PB_MSG(NetworkUsage);

typedef struct { int64_t timestamp; UInt64Value *process_count; } ProcessUsage;
static const pb_field ProcessUsage_fields[] = {
    PB(1, INT64, ProcessUsage, timestamp),
    PB_SUB(2, UInt64Value, ProcessUsage, process_count),
};
PB_MSG(ProcessUsage);

typedef struct {
    CpuUsage *cpu; MemoryUsage *memory; NetworkUsage *network; ProcessUsage *process;
    LIST(ContainerStats) containers; IoUsage *io;
} LinuxPodSandboxStats;
static const pb_field LinuxPodSandboxStats_fields[] = {
    PB_SUB(1, CpuUsage, LinuxPodSandboxStats, cpu),
    PB_SUB(2, MemoryUsage, LinuxPodSandboxStats, memory),
    PB_SUB(3, NetworkUsage, LinuxPodSandboxStats, network),
    PB_SUB(4, ProcessUsage, LinuxPodSandboxStats, process),
    PB_SUBS(5, ContainerStats, LinuxPodSandboxStats, containers),
    PB_SUB(6, IoUsage, LinuxPodSandboxStats, io),
};
PB_MSG(LinuxPodSandboxStats);

typedef struct {
    slice id; PodSandboxMetadata *metadata; LIST(pb_pair) labels, annotations;
} PodSandboxAttributes;
static const pb_field PodSandboxAttributes_fields[] = {
    PB(1, STRING, PodSandboxAttributes, id),
    PB_SUB(2, PodSandboxMetadata, PodSandboxAttributes, metadata),
    PB_PAIRS(3, PodSandboxAttributes, labels),
    PB_PAIRS(4, PodSandboxAttributes, annotations),
};
PB_MSG(PodSandboxAttributes);

/* -- Windows statistics ------------------------------------------------------------------------ */

typedef struct {
    int64_t timestamp; UInt64Value *usage_core_nano_seconds, *usage_nano_cores;
} WindowsCpuUsage;
static const pb_field WindowsCpuUsage_fields[] = {
    PB(1, INT64, WindowsCpuUsage, timestamp),
    PB_SUB(2, UInt64Value, WindowsCpuUsage, usage_core_nano_seconds),
    PB_SUB(3, UInt64Value, WindowsCpuUsage, usage_nano_cores),
};
PB_MSG(WindowsCpuUsage);

typedef struct {
    int64_t timestamp;
    UInt64Value *working_set_bytes, *available_bytes, *page_faults, *commit_memory_bytes;
} WindowsMemoryUsage;
static const pb_field WindowsMemoryUsage_fields[] = {
    PB(1, INT64, WindowsMemoryUsage, timestamp),
    PB_SUB(2, UInt64Value, WindowsMemoryUsage, working_set_bytes),
    PB_SUB(3, UInt64Value, WindowsMemoryUsage, available_bytes),
    PB_SUB(4, UInt64Value, WindowsMemoryUsage, page_faults),
    PB_SUB(5, UInt64Value, WindowsMemoryUsage, commit_memory_bytes),
};
PB_MSG(WindowsMemoryUsage);

typedef struct {
    int64_t timestamp; FilesystemIdentifier *fs_id; UInt64Value *used_bytes;
} WindowsFilesystemUsage;
static const pb_field WindowsFilesystemUsage_fields[] = {
    PB(1, INT64, WindowsFilesystemUsage, timestamp),
    PB_SUB(2, FilesystemIdentifier, WindowsFilesystemUsage, fs_id),
    PB_SUB(3, UInt64Value, WindowsFilesystemUsage, used_bytes),
};
PB_MSG(WindowsFilesystemUsage);

typedef struct {
    ContainerAttributes *attributes; WindowsCpuUsage *cpu; WindowsMemoryUsage *memory;
    WindowsFilesystemUsage *writable_layer;
} WindowsContainerStats;
static const pb_field WindowsContainerStats_fields[] = {
    PB_SUB(1, ContainerAttributes, WindowsContainerStats, attributes),
    PB_SUB(2, WindowsCpuUsage, WindowsContainerStats, cpu),
    PB_SUB(3, WindowsMemoryUsage, WindowsContainerStats, memory),
    PB_SUB(4, WindowsFilesystemUsage, WindowsContainerStats, writable_layer),
};
PB_MSG(WindowsContainerStats);

typedef struct {
    slice name; UInt64Value *rx_bytes, *rx_packets_dropped, *tx_bytes, *tx_packets_dropped;
} WindowsNetworkInterfaceUsage;
static const pb_field WindowsNetworkInterfaceUsage_fields[] = {
    PB(1, STRING, WindowsNetworkInterfaceUsage, name),
    PB_SUB(2, UInt64Value, WindowsNetworkInterfaceUsage, rx_bytes),
    PB_SUB(3, UInt64Value, WindowsNetworkInterfaceUsage, rx_packets_dropped),
    PB_SUB(4, UInt64Value, WindowsNetworkInterfaceUsage, tx_bytes),
    PB_SUB(5, UInt64Value, WindowsNetworkInterfaceUsage, tx_packets_dropped),
};
PB_MSG(WindowsNetworkInterfaceUsage);

typedef struct {
    int64_t timestamp; WindowsNetworkInterfaceUsage *default_interface;
    LIST(WindowsNetworkInterfaceUsage) interfaces;
} WindowsNetworkUsage;
static const pb_field WindowsNetworkUsage_fields[] = {
    PB(1, INT64, WindowsNetworkUsage, timestamp),
    PB_SUB(2, WindowsNetworkInterfaceUsage, WindowsNetworkUsage, default_interface),
    PB_SUBS(3, WindowsNetworkInterfaceUsage, WindowsNetworkUsage, interfaces),
};
PB_MSG(WindowsNetworkUsage);

typedef struct { int64_t timestamp; UInt64Value *process_count; } WindowsProcessUsage;
static const pb_field WindowsProcessUsage_fields[] = {
    PB(1, INT64, WindowsProcessUsage, timestamp),
    PB_SUB(2, UInt64Value, WindowsProcessUsage, process_count),
};
PB_MSG(WindowsProcessUsage);

typedef struct {
    WindowsCpuUsage *cpu; WindowsMemoryUsage *memory; WindowsNetworkUsage *network;
    WindowsProcessUsage *process; LIST(WindowsContainerStats) containers;
} WindowsPodSandboxStats;
static const pb_field WindowsPodSandboxStats_fields[] = {
    PB_SUB(1, WindowsCpuUsage, WindowsPodSandboxStats, cpu),
    PB_SUB(2, WindowsMemoryUsage, WindowsPodSandboxStats, memory),
    PB_SUB(3, WindowsNetworkUsage, WindowsPodSandboxStats, network),
    PB_SUB(4, WindowsProcessUsage, WindowsPodSandboxStats, process),
    PB_SUBS(5, WindowsContainerStats, WindowsPodSandboxStats, containers),
};
PB_MSG(WindowsPodSandboxStats);

/* -- statistics of pods ------------------------------------------------------------------------ */

typedef struct {
    PodSandboxAttributes *attributes; LinuxPodSandboxStats *linux; WindowsPodSandboxStats *windows;
} PodSandboxStats;
static const pb_field PodSandboxStats_fields[] = {
    PB_SUB(1, PodSandboxAttributes, PodSandboxStats, attributes),
    PB_SUB(2, LinuxPodSandboxStats, PodSandboxStats, linux),
    PB_SUB(3, WindowsPodSandboxStats, PodSandboxStats, windows),
};
PB_MSG(PodSandboxStats);

typedef struct { slice pod_sandbox_id; } PodSandboxStatsRequest;
static const pb_field PodSandboxStatsRequest_fields[] = {
    PB(1, STRING, PodSandboxStatsRequest, pod_sandbox_id),
};
PB_MSG(PodSandboxStatsRequest);

typedef struct { PodSandboxStats *stats; } PodSandboxStatsResponse;
static const pb_field PodSandboxStatsResponse_fields[] = {
    PB_SUB(1, PodSandboxStats, PodSandboxStatsResponse, stats),
};
PB_MSG(PodSandboxStatsResponse);

typedef struct { slice id; LIST(pb_pair) label_selector; } PodSandboxStatsFilter;
static const pb_field PodSandboxStatsFilter_fields[] = {
    PB(1, STRING, PodSandboxStatsFilter, id),
    PB_PAIRS(2, PodSandboxStatsFilter, label_selector),
};
PB_MSG(PodSandboxStatsFilter);

typedef struct { PodSandboxStatsFilter *filter; } ListPodSandboxStatsRequest;
static const pb_field ListPodSandboxStatsRequest_fields[] = {
    PB_SUB(1, PodSandboxStatsFilter, ListPodSandboxStatsRequest, filter),
};
PB_MSG(ListPodSandboxStatsRequest);

typedef struct { LIST(PodSandboxStats) stats; } ListPodSandboxStatsResponse;
static const pb_field ListPodSandboxStatsResponse_fields[] = {
    PB_SUBS(1, PodSandboxStats, ListPodSandboxStatsResponse, stats),
};
PB_MSG(ListPodSandboxStatsResponse);

typedef struct { PodSandboxStatsFilter *filter; } StreamPodSandboxStatsRequest;
static const pb_field StreamPodSandboxStatsRequest_fields[] = {
    PB_SUB(1, PodSandboxStatsFilter, StreamPodSandboxStatsRequest, filter),
};
PB_MSG(StreamPodSandboxStatsRequest);

typedef struct { LIST(PodSandboxStats) pod_sandbox_stats; } StreamPodSandboxStatsResponse;
static const pb_field StreamPodSandboxStatsResponse_fields[] = {
    PB_SUBS(1, PodSandboxStats, StreamPodSandboxStatsResponse, pod_sandbox_stats),
};
PB_MSG(StreamPodSandboxStatsResponse);

/* -- metrics ----------------------------------------------------------------------------------- */

typedef struct { slice name, help; LIST(slice) label_keys; } MetricDescriptor;
static const pb_field MetricDescriptor_fields[] = {
    PB(1, STRING, MetricDescriptor, name),
    PB(2, STRING, MetricDescriptor, help),
    PB_LIST(3, STRING, MetricDescriptor, label_keys),
};
PB_MSG(MetricDescriptor);

PB_EMPTY(ListMetricDescriptorsRequest);

typedef struct { LIST(MetricDescriptor) descriptors; } ListMetricDescriptorsResponse;
static const pb_field ListMetricDescriptorsResponse_fields[] = {
    PB_SUBS(1, MetricDescriptor, ListMetricDescriptorsResponse, descriptors),
};
PB_MSG(ListMetricDescriptorsResponse);

enum MetricType { MetricType_COUNTER, MetricType_GAUGE };
static const char *const MetricType_names[] = { "COUNTER", "GAUGE" };
PB_NAMES(MetricType);

typedef struct {
    slice name; int64_t timestamp; int32_t metric_type; LIST(slice) label_values;
    UInt64Value *value;
} Metric;
static const pb_field Metric_fields[] = {
    PB(1, STRING, Metric, name),
    PB(2, INT64, Metric, timestamp),
    PB_NAMED(3, MetricType, Metric, metric_type),
    PB_LIST(4, STRING, Metric, label_values),
    PB_SUB(5, UInt64Value, Metric, value),
};
PB_MSG(Metric);

typedef struct { slice container_id; LIST(Metric) metrics; } ContainerMetrics;
static const pb_field ContainerMetrics_fields[] = {
    PB(1, STRING, ContainerMetrics, container_id),
    PB_SUBS(2, Metric, ContainerMetrics, metrics),
};
PB_MSG(ContainerMetrics);

typedef struct {
    slice pod_sandbox_id; LIST(Metric) metrics; LIST(ContainerMetrics) container_metrics;
} PodSandboxMetrics;
static const pb_field PodSandboxMetrics_fields[] = {
    PB(1, STRING, PodSandboxMetrics, pod_sandbox_id),
    PB_SUBS(2, Metric, PodSandboxMetrics, metrics),
    PB_SUBS(3, ContainerMetrics, PodSandboxMetrics, container_metrics),
};
PB_MSG(PodSandboxMetrics);

PB_EMPTY(ListPodSandboxMetricsRequest);

typedef struct { LIST(PodSandboxMetrics) pod_metrics; } ListPodSandboxMetricsResponse;
static const pb_field ListPodSandboxMetricsResponse_fields[] = {
    PB_SUBS(1, PodSandboxMetrics, ListPodSandboxMetricsResponse, pod_metrics),
};
PB_MSG(ListPodSandboxMetricsResponse);

PB_EMPTY(StreamPodSandboxMetricsRequest);

typedef struct { LIST(PodSandboxMetrics) pod_sandbox_metrics; } StreamPodSandboxMetricsResponse;
static const pb_field StreamPodSandboxMetricsResponse_fields[] = {
    PB_SUBS(1, PodSandboxMetrics, StreamPodSandboxMetricsResponse, pod_sandbox_metrics),
};
PB_MSG(StreamPodSandboxMetricsResponse);

/* -- checkpoints ------------------------------------------------------------------------------- */

typedef struct { slice container_id, location; int64_t timeout; } CheckpointContainerRequest;
static const pb_field CheckpointContainerRequest_fields[] = {
    PB(1, STRING, CheckpointContainerRequest, container_id),
    PB(2, STRING, CheckpointContainerRequest, location),
    PB(3, INT64, CheckpointContainerRequest, timeout),
};
PB_MSG(CheckpointContainerRequest);

PB_EMPTY(CheckpointContainerResponse);

typedef struct {
    slice pod_sandbox_id, output_path; LIST(slice) container_ids; LIST(pb_pair) options;
} CheckpointPodRequest;
static const pb_field CheckpointPodRequest_fields[] = {
    PB(1, STRING, CheckpointPodRequest, pod_sandbox_id),
    PB(2, STRING, CheckpointPodRequest, output_path),
    PB_LIST(3, STRING, CheckpointPodRequest, container_ids),
    PB_PAIRS(4, CheckpointPodRequest, options),
};
PB_MSG(CheckpointPodRequest);

PB_EMPTY(CheckpointPodResponse);

typedef struct {
    slice checkpoint_path; PodSandboxConfig *config; slice runtime_handler; LIST(pb_pair) options;
    LIST(ContainerConfig) container_configs;
} RestorePodRequest;
static const pb_field RestorePodRequest_fields[] = {
    PB(1, STRING, RestorePodRequest, checkpoint_path),
    PB_SUB(2, PodSandboxConfig, RestorePodRequest, config),
    PB(3, STRING, RestorePodRequest, runtime_handler),
    PB_PAIRS(4, RestorePodRequest, options),
    PB_SUBS(5, ContainerConfig, RestorePodRequest, container_configs),
};
PB_MSG(RestorePodRequest);

typedef struct { slice name, container_id; } RestoredContainer;
static const pb_field RestoredContainer_fields[] = {
    PB(1, STRING, RestoredContainer, name),
    PB(2, STRING, RestoredContainer, container_id),
};
PB_MSG(RestoredContainer);

typedef struct {
    slice pod_sandbox_id; LIST(RestoredContainer) restored_containers;
} RestorePodResponse;
static const pb_field RestorePodResponse_fields[] = {
    PB(1, STRING, RestorePodResponse, pod_sandbox_id),
    PB_SUBS(2, RestoredContainer, RestorePodResponse, restored_containers),
};
PB_MSG(RestorePodResponse);

/* -- the calls --------------------------------------------------------------------------------- */

typedef struct { const char *service, *name; const pb_message *in, *out; bool streams; } cri_rpc;
#define CRI_CALL(S, N) { "runtime.v1." #S, #N, &N##Request_msg, &N##Response_msg, false }
#define CRI_STREAM(S, N) { "runtime.v1." #S, #N, &N##Request_msg, &N##Response_msg, true }
static const cri_rpc cri_rpcs[] = {
    CRI_CALL(RuntimeService, Version),
    CRI_CALL(RuntimeService, RunPodSandbox),
    CRI_CALL(RuntimeService, StopPodSandbox),
    CRI_CALL(RuntimeService, RemovePodSandbox),
    CRI_CALL(RuntimeService, PodSandboxStatus),
    CRI_CALL(RuntimeService, ListPodSandbox),
    CRI_STREAM(RuntimeService, StreamPodSandboxes),
    CRI_CALL(RuntimeService, CreateContainer),
    CRI_CALL(RuntimeService, StartContainer),
    CRI_CALL(RuntimeService, StopContainer),
    CRI_CALL(RuntimeService, RemoveContainer),
    CRI_CALL(RuntimeService, ListContainers),
    CRI_STREAM(RuntimeService, StreamContainers),
    CRI_CALL(RuntimeService, ContainerStatus),
    CRI_CALL(RuntimeService, UpdateContainerResources),
    CRI_CALL(RuntimeService, ReopenContainerLog),
    CRI_CALL(RuntimeService, ExecSync),
    CRI_CALL(RuntimeService, Exec),
    CRI_CALL(RuntimeService, Attach),
    CRI_CALL(RuntimeService, PortForward),
    CRI_CALL(RuntimeService, ContainerStats),
    CRI_CALL(RuntimeService, ListContainerStats),
    CRI_STREAM(RuntimeService, StreamContainerStats),
    CRI_CALL(RuntimeService, PodSandboxStats),
    CRI_CALL(RuntimeService, ListPodSandboxStats),
    CRI_STREAM(RuntimeService, StreamPodSandboxStats),
    CRI_CALL(RuntimeService, UpdateRuntimeConfig),
    CRI_CALL(RuntimeService, Status),
    CRI_CALL(RuntimeService, CheckpointContainer),
    CRI_CALL(RuntimeService, CheckpointPod),
    CRI_CALL(RuntimeService, RestorePod),
    { "runtime.v1.RuntimeService", "GetContainerEvents", &GetEventsRequest_msg,
      &ContainerEventResponse_msg, true },
    CRI_CALL(RuntimeService, ListMetricDescriptors),
    CRI_CALL(RuntimeService, ListPodSandboxMetrics),
    CRI_STREAM(RuntimeService, StreamPodSandboxMetrics),
    CRI_CALL(RuntimeService, RuntimeConfig),
    CRI_CALL(RuntimeService, UpdatePodSandboxResources),
    CRI_CALL(ImageService, ListImages),
    CRI_STREAM(ImageService, StreamImages),
    CRI_CALL(ImageService, ImageStatus),
    CRI_CALL(ImageService, PullImage),
    CRI_CALL(ImageService, RemoveImage),
    CRI_CALL(ImageService, ImageFsInfo),
};

/* -- krun's own records ------------------------------------------------------------------------ */

typedef struct { uint32_t uid, gid; LIST(uint32_t) groups; } ProcessUser;
static const pb_field ProcessUser_fields[] = {
    PB(1, UINT32, ProcessUser, uid),
    PB(2, UINT32, ProcessUser, gid),
    PB_LIST(3, UINT32, ProcessUser, groups),
};
PB_MSG(ProcessUser);

typedef struct { int32_t resource; uint64_t soft, hard; } ProcessRlimit;
static const pb_field ProcessRlimit_fields[] = {
    PB(1, INT32, ProcessRlimit, resource),
    PB(2, UINT64, ProcessRlimit, soft),
    PB(3, UINT64, ProcessRlimit, hard),
};
PB_MSG(ProcessRlimit);

typedef struct {
    slice destination, source; bool readonly, recursive_readonly; int32_t propagation;
    LIST(slice) layers; slice sub_path; bool noexec, nosuid, nodev, internal;
    LIST(slice) mount_options; bool file;
} MountSpec;
static const pb_field MountSpec_fields[] = {
    PB(1, STRING, MountSpec, destination),
    PB(2, STRING, MountSpec, source),
    PB(3, BOOL, MountSpec, readonly),
    PB(4, BOOL, MountSpec, recursive_readonly),
    PB_NAMED(5, MountPropagation, MountSpec, propagation),
    PB_LIST(6, STRING, MountSpec, layers),
    PB(7, STRING, MountSpec, sub_path),
    PB(8, BOOL, MountSpec, noexec),
    PB(9, BOOL, MountSpec, nosuid),
    PB(10, BOOL, MountSpec, nodev),
    PB(11, BOOL, MountSpec, internal),
    PB_LIST(12, STRING, MountSpec, mount_options),
    PB(13, BOOL, MountSpec, file),
};
PB_MSG(MountSpec);

typedef struct { slice path, host_path, permissions; } DeviceSpec;
static const pb_field DeviceSpec_fields[] = {
    PB(1, STRING, DeviceSpec, path),
    PB(2, STRING, DeviceSpec, host_path),
    PB(3, STRING, DeviceSpec, permissions),
};
PB_MSG(DeviceSpec);

typedef struct {
    slice id, pod_id, name; uint32_t attempt; LIST(slice) args, env; slice cwd; ProcessUser *user;
    bool tty, stdin, stdin_once; slice log_path, log_directory; LIST(MountSpec) mounts;
    LIST(slice) layers; bool readonly_rootfs, privileged; uint64_t capabilities, ambient;
    bool no_new_privs; LIST(slice) masked_paths, readonly_paths; LIST(ProcessRlimit) rlimits;
    int64_t oom_score_adj; int32_t pid, ipc, network; slice pid_target, cgroup;
    LinuxContainerResources *resources; LIST(DeviceSpec) devices; int32_t stop_signal;
    int64_t shm_size; uint32_t umask; bool ignore_missing_controllers;
    slice seccomp_profile, apparmor_profile, selinux_label;
} ContainerSpec;
static const pb_field ContainerSpec_fields[] = {
    PB(1, STRING, ContainerSpec, id),
    PB(2, STRING, ContainerSpec, pod_id),
    PB(3, STRING, ContainerSpec, name),
    PB(4, UINT32, ContainerSpec, attempt),
    PB_LIST(5, STRING, ContainerSpec, args),
    PB_LIST(6, STRING, ContainerSpec, env),
    PB(7, STRING, ContainerSpec, cwd),
    PB_SUB(8, ProcessUser, ContainerSpec, user),
    PB(9, BOOL, ContainerSpec, tty),
    PB(10, BOOL, ContainerSpec, stdin),
    PB(11, BOOL, ContainerSpec, stdin_once),
    PB(12, STRING, ContainerSpec, log_path),
    PB(13, STRING, ContainerSpec, log_directory),
    PB_SUBS(14, MountSpec, ContainerSpec, mounts),
    PB_LIST(15, STRING, ContainerSpec, layers),
    PB(16, BOOL, ContainerSpec, readonly_rootfs),
    PB(17, BOOL, ContainerSpec, privileged),
    PB(18, UINT64, ContainerSpec, capabilities),
    PB(19, UINT64, ContainerSpec, ambient),
    PB(20, BOOL, ContainerSpec, no_new_privs),
    PB_LIST(21, STRING, ContainerSpec, masked_paths),
    PB_LIST(22, STRING, ContainerSpec, readonly_paths),
    PB_SUBS(23, ProcessRlimit, ContainerSpec, rlimits),
    PB(24, INT64, ContainerSpec, oom_score_adj),
    PB_NAMED(25, NamespaceMode, ContainerSpec, pid),
    PB_NAMED(26, NamespaceMode, ContainerSpec, ipc),
    PB_NAMED(27, NamespaceMode, ContainerSpec, network),
    PB(28, STRING, ContainerSpec, pid_target),
    PB(29, STRING, ContainerSpec, cgroup),
    PB_SUB(30, LinuxContainerResources, ContainerSpec, resources),
    PB_SUBS(31, DeviceSpec, ContainerSpec, devices),
    PB(32, INT32, ContainerSpec, stop_signal),
    PB(33, INT64, ContainerSpec, shm_size),
    PB(34, UINT32, ContainerSpec, umask),
    PB(35, BOOL, ContainerSpec, ignore_missing_controllers),
    PB(36, STRING, ContainerSpec, seccomp_profile),
    PB(37, STRING, ContainerSpec, apparmor_profile),
    PB(38, STRING, ContainerSpec, selinux_label),
};
PB_MSG(ContainerSpec);

typedef struct {
    slice id, hostname; int32_t network, pid, ipc; LIST(pb_pair) sysctls; int64_t shm_size;
    slice cgroup; bool privileged; slice netns;
} PodSpec;
static const pb_field PodSpec_fields[] = {
    PB(1, STRING, PodSpec, id),
    PB(2, STRING, PodSpec, hostname),
    PB_NAMED(3, NamespaceMode, PodSpec, network),
    PB_NAMED(4, NamespaceMode, PodSpec, pid),
    PB_NAMED(5, NamespaceMode, PodSpec, ipc),
    PB_PAIRS(6, PodSpec, sysctls),
    PB(7, INT64, PodSpec, shm_size),
    PB(8, STRING, PodSpec, cgroup),
    PB(9, BOOL, PodSpec, privileged),
    PB(10, STRING, PodSpec, netns),
};
PB_MSG(PodSpec);

typedef struct {
    slice container_id; LIST(slice) args; bool tty; LIST(slice) env; bool stdin;
} ExecSpec;
static const pb_field ExecSpec_fields[] = {
    PB(1, STRING, ExecSpec, container_id),
    PB_LIST(2, STRING, ExecSpec, args),
    PB(3, BOOL, ExecSpec, tty),
    PB_LIST(4, STRING, ExecSpec, env),
    PB(5, BOOL, ExecSpec, stdin),
};
PB_MSG(ExecSpec);

typedef struct {
    slice id; int32_t exit_code; bool oom_killed; int64_t started_at, finished_at;
    slice reason, message;
} ContainerExit;
static const pb_field ContainerExit_fields[] = {
    PB(1, STRING, ContainerExit, id),
    PB(2, INT32, ContainerExit, exit_code),
    PB(3, BOOL, ContainerExit, oom_killed),
    PB(4, INT64, ContainerExit, started_at),
    PB(5, INT64, ContainerExit, finished_at),
    PB(6, STRING, ContainerExit, reason),
    PB(7, STRING, ContainerExit, message),
};
PB_MSG(ContainerExit);

typedef struct {
    slice id; int32_t state, pid; int64_t started_at; ContainerExit *exit;
} ContainerRun;
static const pb_field ContainerRun_fields[] = {
    PB(1, STRING, ContainerRun, id),
    PB_NAMED(2, ContainerState, ContainerRun, state),
    PB(3, INT32, ContainerRun, pid),
    PB(4, INT64, ContainerRun, started_at),
    PB_SUB(5, ContainerExit, ContainerRun, exit),
};
PB_MSG(ContainerRun);

enum monitor_call {
    MONITOR_SETUP = 1, MONITOR_START, MONITOR_EXEC, MONITOR_SIGNAL, MONITOR_KILL, MONITOR_REOPEN_LOG,
    MONITOR_WATCH, MONITOR_SHUTDOWN
};

typedef struct {
    uint32_t version; int32_t call; PodSpec *pod; ContainerSpec *container; ExecSpec *exec;
    slice container_id; int32_t signal;
} MonitorRequest;
static const pb_field MonitorRequest_fields[] = {
    PB(1, UINT32, MonitorRequest, version),
    PB(2, INT32, MonitorRequest, call),
    PB_SUB(3, PodSpec, MonitorRequest, pod),
    PB_SUB(4, ContainerSpec, MonitorRequest, container),
    PB_SUB(5, ExecSpec, MonitorRequest, exec),
    PB(6, STRING, MonitorRequest, container_id),
    PB(7, INT32, MonitorRequest, signal),
};
PB_MSG(MonitorRequest);

typedef struct {
    int32_t code, sys; slice message; LIST(ContainerRun) containers; int32_t exit_code, pid;
    uint32_t version; int32_t pause_pid;
} MonitorReply;
static const pb_field MonitorReply_fields[] = {
    PB(1, INT32, MonitorReply, code),
    PB(2, INT32, MonitorReply, sys),
    PB(3, STRING, MonitorReply, message),
    PB_SUBS(4, ContainerRun, MonitorReply, containers),
    PB(5, INT32, MonitorReply, exit_code),
    PB(6, INT32, MonitorReply, pid),
    PB(7, UINT32, MonitorReply, version),
    PB(8, INT32, MonitorReply, pause_pid),
};
PB_MSG(MonitorReply);

typedef struct {
    slice user; LIST(slice) env, entrypoint, cmd; slice working_dir, stop_signal;
    LIST(slice) volumes; LIST(pb_pair) labels;
} ImageConfig;
static const pb_field ImageConfig_fields[] = {
    PB(1, STRING, ImageConfig, user),
    PB_LIST(2, STRING, ImageConfig, env),
    PB_LIST(3, STRING, ImageConfig, entrypoint),
    PB_LIST(4, STRING, ImageConfig, cmd),
    PB(5, STRING, ImageConfig, working_dir),
    PB(6, STRING, ImageConfig, stop_signal),
    PB_LIST(7, STRING, ImageConfig, volumes),
    PB_PAIRS(8, ImageConfig, labels),
};
PB_MSG(ImageConfig);

typedef struct {
    uint32_t version; slice id; LIST(slice) repo_tags, repo_digests, layers; uint64_t size;
    ImageConfig *config; bool pinned; int64_t created_at; slice config_json, manifest_digest;
} ImageRecord;
static const pb_field ImageRecord_fields[] = {
    PB(1, UINT32, ImageRecord, version),
    PB(2, STRING, ImageRecord, id),
    PB_LIST(3, STRING, ImageRecord, repo_tags),
    PB_LIST(4, STRING, ImageRecord, repo_digests),
    PB_LIST(5, STRING, ImageRecord, layers),
    PB(6, UINT64, ImageRecord, size),
    PB_SUB(7, ImageConfig, ImageRecord, config),
    PB(8, BOOL, ImageRecord, pinned),
    PB(9, INT64, ImageRecord, created_at),
    PB(10, STRING, ImageRecord, config_json),
    PB(11, STRING, ImageRecord, manifest_digest),
};
PB_MSG(ImageRecord);

typedef struct {
    uint32_t version; slice id; int64_t created_at; int32_t state; PodSandboxConfig *config;
    slice runtime_handler; PodSpec *spec; LIST(slice) ips; slice cni_result, boot_id;
    LIST(slice) cgroups_made; int32_t monitor_pid; uint64_t monitor_start; bool network_up;
} PodRecord;
static const pb_field PodRecord_fields[] = {
    PB(1, UINT32, PodRecord, version),
    PB(2, STRING, PodRecord, id),
    PB(3, INT64, PodRecord, created_at),
    PB_NAMED(4, PodSandboxState, PodRecord, state),
    PB_SUB(5, PodSandboxConfig, PodRecord, config),
    PB(6, STRING, PodRecord, runtime_handler),
    PB_SUB(7, PodSpec, PodRecord, spec),
    PB_LIST(8, STRING, PodRecord, ips),
    PB(9, STRING, PodRecord, cni_result),
    PB(10, STRING, PodRecord, boot_id),
    PB_LIST(11, STRING, PodRecord, cgroups_made),
    PB(12, INT32, PodRecord, monitor_pid),
    PB(13, UINT64, PodRecord, monitor_start),
    PB(14, BOOL, PodRecord, network_up),
};
PB_MSG(PodRecord);

typedef struct {
    uint32_t version; slice id, pod_id; int64_t created_at; ContainerConfig *config;
    ContainerSpec *spec; slice image_ref, image_name, image_id;
} ContainerRecord;
static const pb_field ContainerRecord_fields[] = {
    PB(1, UINT32, ContainerRecord, version),
    PB(2, STRING, ContainerRecord, id),
    PB(3, STRING, ContainerRecord, pod_id),
    PB(4, INT64, ContainerRecord, created_at),
    PB_SUB(5, ContainerConfig, ContainerRecord, config),
    PB_SUB(6, ContainerSpec, ContainerRecord, spec),
    PB(7, STRING, ContainerRecord, image_ref),
    PB(8, STRING, ContainerRecord, image_name),
    PB(9, STRING, ContainerRecord, image_id),
};
PB_MSG(ContainerRecord);

