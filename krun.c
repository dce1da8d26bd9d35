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
 *   6  Tar and layers
 *   8  Protobuf
 *   9  The CRI's messages
 *  10  HPACK and HTTP/2
 *  11  gRPC, server and client
 *  12  Registries
 *  13  Image store
 *  14  Root filesystem and volumes
 *  15  cgroups
 *  16  Security
 *  17  Namespaces and container init
 *  18  Monitor
 *  19  CNI
 *  20  Specifications
 *  21  Pods and containers
 *  23  The CRI's services
 *  24  Client
 *  25  Daemon
 *  26  Command line
 *  27  main
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

static void close_fd(int *fd)
{
    if (*fd >= 0) close(*fd);
    *fd = -1;
}
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

/* == 6. Tar and layers =======================================================================
 *
 * A layer is a tar archive of what changed in a file system: blocks of 512 bytes, a header for each
 * file, then its bytes. What did not fit the header of 1988 came later as records before it (pax) or
 * as entries that are no files (GNU). A file that is gone is said by an empty file ".wh.NAME".
 *
 * Nobody we know wrote the archive, and we are root while we unpack it. So a name is never a path to
 * us: its directory is opened inside the root by openat2(2), which lets no link lead out, and what
 * is made in it is one name that must not exist yet. Names with ".." are refused.
 *
 * The layer directory becomes a lower directory of an overlay, which has its own words for what is
 * gone: a character device 0:0 hides a name, and a directory that is marked opaque hides all below.
 *
 * Defined by  POSIX.1-2024 pax(1), "ustar Interchange Format"; GNU tar manual, appendix "Tar
 *             Internals"; OCI image-spec, layer.md; kernel Documentation/filesystems/overlayfs.rst
 * Uses        1, 2 (open_inside, make_dir_inside, tree_remove), 4 (none), 5 (source, byte_reader)
 * Gives       tar_open, tar_next, tar_data, tar_unpack, tar_put_header
 * Bounds      names 4095 bytes, 1024 levels; pax header 1 MiB; xattr 64 KiB; 65,536 sparse pieces */

enum {
    TAR_BLOCK = 512, TAR_PAX_MAX = MIB, TAR_XATTR_MAX = 64 * KIB, TAR_PIECES_MAX = 64 * KIB,
    TAR_DEPTH_MAX = 1024, TAR_ENTRY_MEMORY = 4 * MIB
};

/* A file's header as it lies in the archive; numbers are octal text. */
typedef struct {
    char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100];
    char magic[8], uname[32], gname[32], major[8], minor[8], prefix[155], rest[12];
} tar_header;

typedef struct { slice name, value; } tar_xattr;
typedef struct { uint64_t at, n; } tar_piece;

/* What stands in an archive. Texts are followed by a NUL and have none inside. */
typedef struct {
    char type;       /* 0 file, 1 hard link, 2 symbolic link, 3 and 4 device, 5 directory, 6 FIFO */
    slice name, link;
    uint64_t size;   /* of the file when it is unpacked */
    uint32_t mode, uid, gid, major, minor;
    struct timespec mtime;
    const tar_xattr *xattrs;
    size_t nxattrs;
    const tar_piece *pieces; /* of a sparse file: where the archive's bytes go; NULL: all in a row */
    size_t npieces;
} tar_entry;

typedef struct {
    byte_reader in;
    uint64_t left;    /* bytes of this entry that are still to come */
    unsigned padding; /* and what fills the last block */
    arena a;          /* for one entry */
} tar_reader;

static int tar_fail(error *e, const char *what) { return fail(e, GRPC_INVALID_ARGUMENT, "tar: %s", what); }

/* -- reading: numbers and blocks --------------------------------------------------------------- */

/* Octal text, or (GNU, for what is too big for that) a big-endian number of two's complement whose
 * first bit is set. False: it is neither, or needs more than 63 bits. */
static bool tar_number(const char *field, size_t n, int64_t *out)
{
    const uint8_t *p = (const uint8_t *)field;
    uint64_t value = 0;
    if (p[0] & 0x80) {
        uint64_t sign = p[0] & 0x40 ? UINT64_MAX : 0;
        for (size_t i = 0; i < n; i++) {
            if (i && (value >> 55 != sign >> 55)) return false;
            value = i ? value << 8 | p[i] : (sign << 6) | (p[0] & 0x3F);
        }
        *out = (int64_t)value;
        return true;
    }
    while (n && (*p == ' ' || !*p)) p++, n--;
    for (; n && *p && *p != ' '; p++, n--) {
        if (*p < '0' || *p > '7') return false;
        value = value << 3 | (*p - '0'); /* at most 12 digits, 36 bits */
    }
    *out = (int64_t)value;
    return true;
}

/* The same where only 0..max makes sense. */
static bool tar_unsigned(const char *field, size_t n, uint64_t max, uint64_t *out)
{
    int64_t value;
    if (!tar_number(field, n, &value) || value < 0 || (uint64_t)value > max) return false;
    *out = (uint64_t)value;
    return true;
}

/* The sum of a header's bytes, its own field counted as spaces. Some old writers took bytes as
 * signed, so both sums are good. */
static bool tar_sum_holds(const tar_header *h)
{
    const uint8_t *p = (const uint8_t *)h;
    int64_t want, sum = 0, signed_sum = 0;
    for (size_t i = 0; i < sizeof *h; i++) {
        bool own = i >= offsetof(tar_header, sum) && i < offsetof(tar_header, type);
        sum += own ? ' ' : p[i];
        signed_sum += own ? ' ' : (int8_t)p[i];
    }
    return tar_number(h->sum, sizeof h->sum, &want) && (want == sum || want == signed_sum);
}

/* Steps over n bytes of the archive. */
static int tar_step(tar_reader *t, uint64_t n, error *e)
{
    while (n) {
        if (reader_fill(&t->in, 1, e) < 0) return -1;
        size_t have = (size_t)(t->in.end - t->in.p), some = (size_t)MIN(n, have);
        if (!have) return tar_fail(e, "the archive is cut off");
        t->in.p += some;
        n -= some;
    }
    return 0;
}

/* Takes the next block. 1; 0 at the end of the archive, said by a block of zeros or by nothing. */
static int tar_take_block(tar_reader *t, void *block, error *e)
{
    static const uint8_t zeros[TAR_BLOCK];
    if (reader_fill(&t->in, TAR_BLOCK, e) < 0) return -1;
    size_t have = (size_t)(t->in.end - t->in.p);
    if (!have) return 0;
    if (have < TAR_BLOCK) return tar_fail(e, "the archive is cut off");
    memcpy(block, t->in.p, TAR_BLOCK);
    t->in.p += TAR_BLOCK;
    return memcmp(block, zeros, TAR_BLOCK) != 0;
}

/* The next bytes of the current entry, at most `max`; borrowed until the reader is used again.
 * 1; 0 when there are none left. */
static int tar_data(tar_reader *t, uint64_t max, slice *out, error *e)
{
    if (!t->left || !max) return 0;
    if (reader_fill(&t->in, 1, e) < 0) return -1;
    size_t n = (size_t)MIN(MIN(t->left, max), (uint64_t)(t->in.end - t->in.p));
    if (!n) return tar_fail(e, "the archive is cut off");
    *out = (slice){ t->in.p, n };
    t->in.p += n;
    t->left -= n;
    return 1;
}

/* All bytes of the current entry, at most `max`; the arena's. */
static int tar_read_all(tar_reader *t, uint64_t max, arena *a, slice *out, error *e)
{
    slice piece;
    if (t->left > max) return tar_fail(e, "an entry is too long");
    uint8_t *p = arena_alloc(a, (size_t)t->left + 1);
    if (!p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "tar: out of memory");
    *out = (slice){ p, 0 };
    for (int got; (got = tar_data(t, UINT64_MAX, &piece, e)) != 0;) {
        if (got < 0) return -1;
        memcpy(p + out->n, piece.p, piece.n);
        out->n += piece.n;
    }
    return 0;
}

/* -- reading: what stands before an entry ------------------------------------------------------ */

typedef struct { bool set; uint64_t value; } tar_optional;

/* What pax records and GNU entries have said about the file whose header comes next. */
typedef struct {
    bool any;
    slice name, link, sparse_name;
    tar_optional size, uid, gid, sparse_major, sparse_minor, sparse_size;
    bool has_mtime;
    struct timespec mtime;
    buf map;    /* of a sparse file, as pax 0.0 and 0.1 have it: "offset,size,offset,size," */
    buf xattrs; /* tar_xattr */
} tar_extra;

static void tar_extra_free(tar_extra *x)
{
    buf_free(&x->map);
    buf_free(&x->xattrs);
}

static bool tar_pax_number(slice text, tar_optional *out)
{
    out->set = text.n > 0;
    return !text.n || parse_u64(text, 10, INT64_MAX, &out->value);
}

/* Seconds since 1970 with a sign and a fraction. What no file system can keep is cut to what it can. */
static bool tar_pax_time(slice text, struct timespec *out)
{
    bool minus = slice_starts(text, "-");
    if (minus) text = (slice){ text.p + 1, text.n - 1 };
    slice whole = slice_cut(&text, '.');
    uint64_t seconds = 0;
    long ns = 0, scale = 100000000;
    if (!whole.n) return false;
    for (size_t i = 0; i < whole.n; i++) {
        if (whole.p[i] < '0' || whole.p[i] > '9') return false;
        seconds = MIN(seconds * 10 + (whole.p[i] - '0'), UINT64_C(1) << 40);
    }
    for (size_t i = 0; i < text.n; i++, scale /= 10) {
        if (text.p[i] < '0' || text.p[i] > '9') return false;
        ns += (text.p[i] - '0') * scale;
    }
    out->tv_sec = minus ? -(time_t)seconds - (ns > 0) : (time_t)seconds;
    out->tv_nsec = minus && ns ? 1000000000 - ns : ns;
    return true;
}

/* The extended attributes that an image may set. The others are the kernel's or the host's own: an
 * image's trusted.overlay.* would steer the overlay that it becomes a part of. */
static bool tar_xattr_allowed(slice name)
{
    if (slice_starts(name, "user.overlay.")) return false;
    return slice_starts(name, "user.") || slice_is(name, "security.capability") ||
           slice_is(name, "system.posix_acl_access") || slice_is(name, "system.posix_acl_default");
}

static int tar_pax_xattr(tar_reader *t, tar_extra *x, slice name, slice value, error *e)
{
    tar_xattr attr = { arena_copy(&t->a, name), arena_copy(&t->a, value) };
    if (!tar_xattr_allowed(name)) return 0;
    if (name.n > XATTR_NAME_MAX) return tar_fail(e, "the name of an extended attribute is too long");
    if (value.n > TAR_XATTR_MAX) return tar_fail(e, "an extended attribute is too long");
    for (size_t i = 0; i < x->xattrs.n; i += sizeof attr)
        if (slice_eq(((tar_xattr *)(void *)(x->xattrs.p + i))->name, name))
            return ((tar_xattr *)(void *)(x->xattrs.p + i))->value = attr.value, 0;
    buf_add(&x->xattrs, &attr, sizeof attr);
    return 0;
}

enum tar_pax_kind { PAX_TEXT, PAX_NUMBER, PAX_TIME, PAX_MAP };
static const struct { const char *key; enum tar_pax_kind kind; size_t at; } tar_pax_keys[] = {
    { "path", PAX_TEXT, offsetof(tar_extra, name) },
    { "linkpath", PAX_TEXT, offsetof(tar_extra, link) },
    { "size", PAX_NUMBER, offsetof(tar_extra, size) },
    { "uid", PAX_NUMBER, offsetof(tar_extra, uid) },
    { "gid", PAX_NUMBER, offsetof(tar_extra, gid) },
    { "mtime", PAX_TIME, offsetof(tar_extra, mtime) },
    { "GNU.sparse.name", PAX_TEXT, offsetof(tar_extra, sparse_name) },
    { "GNU.sparse.major", PAX_NUMBER, offsetof(tar_extra, sparse_major) },
    { "GNU.sparse.minor", PAX_NUMBER, offsetof(tar_extra, sparse_minor) },
    { "GNU.sparse.size", PAX_NUMBER, offsetof(tar_extra, sparse_size) },
    { "GNU.sparse.realsize", PAX_NUMBER, offsetof(tar_extra, sparse_size) },
    { "GNU.sparse.map", PAX_MAP, offsetof(tar_extra, map) },
    { "GNU.sparse.offset", PAX_MAP, offsetof(tar_extra, map) },
    { "GNU.sparse.numbytes", PAX_MAP, offsetof(tar_extra, map) },
};

/* One record. Keys that are not in the table say nothing that we keep. */
static int tar_pax_record(tar_reader *t, tar_extra *x, slice key, slice value, error *e)
{
    static const char xattr[] = "SCHILY.xattr.";
    bool good = true;
    if (slice_starts(key, xattr)) {
        slice name = { key.p + sizeof xattr - 1, key.n - (sizeof xattr - 1) };
        return tar_pax_xattr(t, x, name, value, e);
    }
    for (size_t i = 0; i < COUNT(tar_pax_keys); i++) {
        if (!slice_is(key, tar_pax_keys[i].key)) continue;
        void *to = (char *)x + tar_pax_keys[i].at;
        if (slice_has(value, 0)) return tar_fail(e, "a NUL in a pax record");
        switch (tar_pax_keys[i].kind) {
        case PAX_TEXT: *(slice *)to = arena_copy(&t->a, value); break;
        case PAX_NUMBER: good = tar_pax_number(value, to); break;
        case PAX_TIME: x->has_mtime = value.n, good = !value.n || tar_pax_time(value, to); break;
        case PAX_MAP: buf_slice(to, value), buf_byte(to, ','); break;
        }
    }
    return good ? 0 : tar_fail(e, "a number of a pax record makes no sense");
}

/* "LENGTH KEY=VALUE\n", where the length counts the whole record: pax(1), "pax Extended Header". */
static int tar_read_pax(tar_reader *t, tar_extra *x, error *e)
{
    slice all, rest;
    if (tar_read_all(t, TAR_PAX_MAX, &t->a, &all, e) < 0) return -1;
    while (all.n) {
        uint64_t length;
        slice record, digits;
        rest = (slice){ all.p, MIN(all.n, 20) };
        if (!slice_has(rest, ' ')) return tar_fail(e, "a pax record without a length");
        digits = slice_cut(&rest, ' ');
        if (!parse_u64(digits, 10, all.n, &length) || length < digits.n + 2 || !slice_take(&all, (size_t)length, &record))
            return tar_fail(e, "the length of a pax record is wrong");
        if (record.p[record.n - 1] != '\n') return tar_fail(e, "a pax record does not end in a newline");
        rest = (slice){ record.p + digits.n + 1, record.n - digits.n - 2 };
        if (!slice_has(rest, '=')) return tar_fail(e, "a pax record without '='");
        slice key = slice_cut(&rest, '=');
        if (!key.n || slice_has(key, 0)) return tar_fail(e, "a pax record without a key");
        if (tar_pax_record(t, x, key, rest, e) < 0) return -1;
    }
    return t->a.oom || x->map.oom || x->xattrs.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "tar: out of memory") : 0;
}

/* -- reading: sparse files --------------------------------------------------------------------- */

static int tar_add_piece(buf *pieces, uint64_t at, uint64_t n, error *e)
{
    tar_piece piece = { at, n };
    if (pieces->n / sizeof piece >= TAR_PIECES_MAX) return tar_fail(e, "a sparse file has too many pieces");
    buf_add(pieces, &piece, sizeof piece);
    return 0;
}

/* GNU's old form: four pieces in the header, 21 in each block that may follow it. */
static int tar_sparse_old(tar_reader *t, const tar_header *h, buf *pieces, error *e)
{
    const char *p = (const char *)h + 386, *more = (const char *)h + 482;
    char block[TAR_BLOCK];
    for (int slots = 4;; slots = 21, p = block, more = block + 504) {
        for (int i = 0; i < slots && p[0]; i++, p += 24) {
            uint64_t at, n;
            if (!tar_unsigned(p, 12, INT64_MAX, &at) || !tar_unsigned(p + 12, 12, INT64_MAX, &n))
                return tar_fail(e, "the map of a sparse file is wrong");
            if (tar_add_piece(pieces, at, n, e) < 0) return -1;
        }
        if (!*more) return 0;
        int got = tar_take_block(t, block, e);
        if (got <= 0) return got < 0 ? -1 : tar_fail(e, "the map of a sparse file is cut off");
    }
}

static int tar_sparse_text(slice map, buf *pieces, error *e) /* pax 0.0 and 0.1 */
{
    while (map.n) {
        uint64_t at, n;
        slice first = slice_cut(&map, ','), second = slice_cut(&map, ',');
        if (!parse_u64(first, 10, INT64_MAX, &at) || !parse_u64(second, 10, INT64_MAX, &n))
            return tar_fail(e, "the map of a sparse file is wrong");
        if (tar_add_piece(pieces, at, n, e) < 0) return -1;
    }
    return 0;
}

/* A decimal number and a newline from the entry's bytes. */
static int tar_take_line(tar_reader *t, uint64_t *out, error *e)
{
    uint8_t digits[20];
    size_t n = 0;
    for (slice byte; n < sizeof digits; digits[n++] = byte.p[0]) {
        int got = tar_data(t, 1, &byte, e);
        if (got < 0) return -1;
        if (got == 0) break;
        if (byte.p[0] == '\n' && parse_u64((slice){ digits, n }, 10, INT64_MAX, out)) return 0;
    }
    return tar_fail(e, "the map of a sparse file is wrong");
}

/* pax 1.0: the map stands before the bytes, in whole blocks. */
static int tar_sparse_new(tar_reader *t, buf *pieces, error *e)
{
    uint64_t count, at, n, before = t->left;
    slice rest;
    if (tar_take_line(t, &count, e) < 0) return -1;
    if (count > TAR_PIECES_MAX) return tar_fail(e, "a sparse file has too many pieces");
    for (; count; count--)
        if (tar_take_line(t, &at, e) < 0 || tar_take_line(t, &n, e) < 0 || tar_add_piece(pieces, at, n, e) < 0) return -1;
    for (uint64_t fill = (TAR_BLOCK - (before - t->left) % TAR_BLOCK) % TAR_BLOCK; fill; fill -= rest.n) {
        int got = tar_data(t, fill, &rest, e);
        if (got <= 0) return got < 0 ? -1 : tar_fail(e, "the map of a sparse file is wrong");
    }
    return 0;
}

/* Reads the map, if this is a sparse file, and checks it: pieces in order, inside the file, and
 * together exactly as long as what the archive has. */
static int tar_read_sparse(tar_reader *t, const tar_header *h, tar_extra *x, tar_entry *out, error *e)
{
    OWNED_BUF pieces = { 0 };
    uint64_t size = x->sparse_size.value, end = 0, sum = 0;
    bool newest = x->sparse_major.set && x->sparse_major.value == 1 && x->sparse_minor.value == 0;
    int done = 0;
    if (h->type == 'S') {
        if (!tar_unsigned((const char *)h + 483, 12, INT64_MAX, &size)) return tar_fail(e, "the size of a sparse file is wrong");
        done = tar_sparse_old(t, h, &pieces, e);
    } else if (newest) {
        done = tar_sparse_new(t, &pieces, e);
    } else if (x->map.n || x->sparse_size.set) {
        done = tar_sparse_text(buf_view(&x->map), &pieces, e);
    } else {
        return 0;
    }
    if (done < 0) return -1;
    const tar_piece *p = (const void *)arena_copy(&t->a, buf_view(&pieces)).p;
    size_t n = pieces.n / sizeof *p;
    if (pieces.oom || t->a.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "tar: out of memory");
    for (size_t i = 0; i < n; i++) {
        if (p[i].at < end || p[i].n > size - MIN(size, p[i].at)) return tar_fail(e, "the map of a sparse file is wrong");
        end = p[i].at + p[i].n;
        sum += p[i].n;
    }
    if (sum != t->left || end > size) return tar_fail(e, "the map of a sparse file is wrong");
    out->size = size;
    out->pieces = p;
    out->npieces = n;
    if (x->sparse_name.n) out->name = x->sparse_name;
    return 0;
}

/* -- reading: entries -------------------------------------------------------------------------- */

static slice tar_text(const char *field, size_t n) { return (slice){ (const uint8_t *)field, strnlen(field, n) }; }

/* The name in the header. POSIX has a directory before it, in a field that GNU uses otherwise and of
 * which star uses the last bytes for times. */
static slice tar_header_name(const tar_header *h, arena *a)
{
    slice name = tar_text(h->name, sizeof h->name), prefix = { NULL, 0 };
    bool star = !memcmp(h->rest + 8, "tar", 4);
    if (!memcmp(h->magic, "ustar", 6)) prefix = tar_text(h->prefix, star ? 131 : sizeof h->prefix);
    return slice_of(arena_printf(a, "%.*s%s%.*s", PR(prefix), prefix.n ? "/" : "", PR(name)));
}

/* Fills *out from the header, and from what stood before it, which counts more. */
static int tar_read_entry(tar_reader *t, const tar_header *h, tar_extra *x, tar_entry *out, error *e)
{
    uint64_t mode, uid = x->uid.value, gid = x->gid.value, major = 0, minor = 0;
    int64_t mtime;
    bool device = h->type == '3' || h->type == '4';
    *out = (tar_entry){ .type = h->type, .name = x->name, .link = x->link, .size = t->left };
    if (!out->name.n) out->name = tar_header_name(h, &t->a);
    if (!out->link.n) out->link = arena_copy(&t->a, tar_text(h->link, sizeof h->link));
    if (h->type == '\0') out->type = slice_ends(out->name, "/") ? '5' : '0'; /* as in Unix version 7 */
    if (h->type == '7' || h->type == 'S') out->type = '0';
    if (h->type == 'D') out->type = '5'; /* GNU: a directory and a list of what was in it */
    if (!tar_unsigned(h->mode, sizeof h->mode, UINT32_MAX, &mode)) return tar_fail(e, "a mode is no number");
    /* (uid_t)-1 means "leave it" to chown(2), so it is nobody's number. */
    if (!x->uid.set && !tar_unsigned(h->uid, sizeof h->uid, INT64_MAX, &uid)) return tar_fail(e, "an owner is no number");
    if (!x->gid.set && !tar_unsigned(h->gid, sizeof h->gid, INT64_MAX, &gid)) return tar_fail(e, "a group is no number");
    if (uid >= UINT32_MAX || gid >= UINT32_MAX) return tar_fail(e, "an owner or group is out of range");
    if (!tar_number(h->mtime, sizeof h->mtime, &mtime)) return tar_fail(e, "a time is no number");
    if (device && (!tar_unsigned(h->major, sizeof h->major, 0xFFF, &major) ||
                   !tar_unsigned(h->minor, sizeof h->minor, 0xFFFFF, &minor))) return tar_fail(e, "no such device");
    mtime = MAX(MIN(mtime, INT64_C(1) << 40), -(INT64_C(1) << 40));
    out->mode = (uint32_t)mode & 07777;
    out->uid = (uint32_t)uid, out->gid = (uint32_t)gid;
    out->major = (uint32_t)major, out->minor = (uint32_t)minor;
    out->mtime = x->has_mtime ? x->mtime : (struct timespec){ .tv_sec = (time_t)mtime };
    out->nxattrs = x->xattrs.n / sizeof(tar_xattr);
    out->xattrs = (const void *)arena_copy(&t->a, buf_view(&x->xattrs)).p;
    if (t->a.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "tar: out of memory");
    return out->type == '0' ? tar_read_sparse(t, h, x, out, e) : 0;
}

/* Reads the size and gets ready for the bytes that follow. Links, directories and devices have none,
 * whatever their size says: GNU tar and Go's archive/tar, which write most layers, agree on it. */
static int tar_begin(tar_reader *t, const tar_header *h, const tar_extra *x, error *e)
{
    uint64_t size;
    bool helper = strchr("xXgLK", h->type) && h->type;
    if (!tar_unsigned(h->size, sizeof h->size, INT64_MAX, &size)) return tar_fail(e, "a size is no number");
    if (x->size.set && !helper) size = x->size.value;
    if (h->type >= '1' && h->type <= '6') size = 0;
    t->left = size;
    t->padding = (unsigned)(-size % TAR_BLOCK);
    return 0;
}

static int tar_finish(tar_reader *t, error *e) /* steps over what is left of the entry */
{
    uint64_t left = t->left, padding = t->padding;
    t->left = t->padding = 0;
    return tar_step(t, left, e) < 0 ? -1 : tar_step(t, padding, e);
}

static int tar_read_longname(tar_reader *t, slice *out, error *e) /* GNU L and K */
{
    if (tar_read_all(t, PATH_MAX, &t->a, out, e) < 0) return -1;
    *out = tar_text((const char *)out->p, out->n);
    return 0;
}

/* The entries before the file's own, up to it. 1 and its header; 0 at the end. */
static int tar_read_headers(tar_reader *t, tar_header *h, tar_extra *x, error *e)
{
    for (;;) {
        int got = tar_finish(t, e) < 0 ? -1 : tar_take_block(t, h, e);
        if (got == 0 && x->any) return tar_fail(e, "a header without the file that it is for");
        if (got <= 0) return got;
        if (!tar_sum_holds(h)) return tar_fail(e, "the checksum of a header is wrong");
        if (tar_begin(t, h, x, e) < 0) return -1;
        int done = 0;
        switch (h->type) {
        case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7':
        case '\0': case 'S': case 'D': return 1;
        case 'x': case 'X': done = tar_read_pax(t, x, e); break;
        case 'L': done = tar_read_longname(t, &x->name, e); break;
        case 'K': done = tar_read_longname(t, &x->link, e); break;
        case 'M': return tar_fail(e, "a file that goes on in another volume");
        case 'g': continue; /* for all that follows; nothing that is in use there concerns us */
        default: /* a volume's label, a vendor's own: stepped over, with what was said about it */
            tar_extra_free(x);
            *x = (tar_extra){ 0 };
            continue;
        }
        if (done < 0) return -1;
        x->any = true;
    }
}

static int tar_open(tar_reader *t, source *in, error *e) /* `in` must outlive *t */
{
    uint8_t *bytes = malloc(READER_BYTES);
    *t = (tar_reader){ .in = { in, bytes, bytes, bytes, false } };
    return bytes ? 0 : fail(e, GRPC_RESOURCE_EXHAUSTED, "tar: out of memory");
}

static void tar_close(tar_reader *t)
{
    arena_free(&t->a);
    free(t->in.bytes);
}

/* Goes to the next entry: 1 and *out, which lives until the next call; 0 at the end; -1 and *e. */
static int tar_next(tar_reader *t, tar_entry *out, error *e)
{
    tar_header h;
    tar_extra x = { 0 };
    arena_free(&t->a);
    t->a = arena_make(TAR_ENTRY_MEMORY);
    int got = tar_read_headers(t, &h, &x, e);
    if (got > 0 && tar_read_entry(t, &h, &x, out, e) < 0) got = -1;
    tar_extra_free(&x);
    return got;
}

/* -- unpacking --------------------------------------------------------------------------------- */

/* 0 stands for the default: 64 GiB and 4 million entries. Devices that are not allowed are left out. */
typedef struct { bool allow_devices; uint64_t max_bytes, max_entries; } tar_options;
typedef struct { uint64_t bytes, entries; } tar_totals;

/* The directory that was written to last stays open: most entries lie where the one before does.
 * When it is left, it gets back the time that it had, for what we made in it was not its change. */
typedef struct {
    int root;
    bool allow_devices;
    int parent;               /* -1: none */
    struct timespec parent_times[2];
    char parent_path[PATH_MAX];
    bool hides_lower;         /* the entry replaces a whiteout: what lies below must stay hidden */
} unpacker;

/* A path as its directory and its last name, both inside `text`. "" and "" is the root. */
typedef struct { char text[PATH_MAX]; const char *directory, *name; } tar_path;

/* Writes a name from an archive without "." and doubled slashes, split before its last part. */
static int tar_split(slice from, tar_path *out, error *e)
{
    size_t n = 0, last = 0, depth = 0;
    for (slice rest = from; rest.n;) {
        slice part = slice_cut(&rest, '/');
        if (!part.n || slice_is(part, ".")) continue;
        if (slice_is(part, "..")) return tar_fail(e, "the name has \"..\" in it");
        if (part.n > NAME_MAX || ++depth > TAR_DEPTH_MAX || part.n + 2 > sizeof out->text - n)
            return tar_fail(e, "the name is too long");
        if (n) out->text[n++] = '/';
        last = n;
        memcpy(out->text + n, part.p, part.n);
        n += part.n;
    }
    out->text[n] = '\0';
    out->name = out->text + last;
    out->directory = last ? out->text : "";
    if (last) out->text[last - 1] = '\0';
    return 0;
}

static void unpack_leave(unpacker *u)
{
    if (u->parent < 0) return;
    futimens(u->parent, u->parent_times); /* a time that cannot be set is no reason to give up */
    close(u->parent);
    u->parent = -1;
}

/* Opens a directory inside the root, and makes it (0755, root's) if the archive has not. Borrowed. */
static int unpack_enter(unpacker *u, const char *directory, error *e)
{
    struct stat st;
    if (u->parent >= 0 && !strcmp(u->parent_path, directory)) return u->parent;
    unpack_leave(u);
    const char *path = *directory ? directory : ".";
    u->parent = open_inside(u->root, path, O_RDONLY | O_DIRECTORY, e);
    if (u->parent < 0 && e->code == GRPC_NOT_FOUND) {
        OWNED_FD made = make_dir_inside(u->root, path, 0755, e);
        if (made < 0) return -1;
        u->parent = open_inside(u->root, path, O_RDONLY | O_DIRECTORY, e);
    }
    if (u->parent < 0) return -1;
    if (fstat(u->parent, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat %s", path);
    u->parent_times[0] = st.st_atim;
    u->parent_times[1] = st.st_mtim;
    snprintf(u->parent_path, sizeof u->parent_path, "%s", directory);
    return u->parent;
}

static int unpack_set_xattrs(int fd, const tar_entry *entry, error *e)
{
    for (size_t i = 0; i < entry->nxattrs; i++) {
        const tar_xattr *x = &entry->xattrs[i];
        const char *name = (const char *)x->name.p;
        if (fsetxattr(fd, name, x->value.p, x->value.n, 0) == 0 || errno == EOPNOTSUPP) continue;
        return fail_sys(e, GRPC_INTERNAL, "set extended attribute %s", name);
    }
    return 0;
}

/* Owner, mode, attributes, time; in this order, for chown(2) clears the set-user-ID bits and the
 * file's capabilities, and all of them change the time of change only. */
static int unpack_dress(int fd, const tar_entry *entry, error *e)
{
    struct timespec times[2] = { entry->mtime, entry->mtime };
    if (fchown(fd, entry->uid, entry->gid) < 0) return fail_sys(e, GRPC_INTERNAL, "chown");
    if (fchmod(fd, entry->mode) < 0) return fail_sys(e, GRPC_INTERNAL, "chmod");
    if (unpack_set_xattrs(fd, entry, e) < 0) return -1;
    return futimens(fd, times) < 0 ? fail_sys(e, GRPC_INTERNAL, "set times") : 0;
}

/* Makes place for an entry where something is already: the archive's later word counts. */
static int unpack_clear(unpacker *u, int parent, const char *name, error *e)
{
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0) return fail_sys(e, GRPC_INTERNAL, "stat");
    if (S_ISCHR(st.st_mode) && st.st_rdev == 0) u->hides_lower = true;
    if (tree_remove(parent, name, e) < 0) return -1;
    u->parent_path[0] = '/', u->parent_path[1] = '\0'; /* equals no directory: open it again next time */
    return 0;
}

/* The bytes of a file; a sparse one's pieces each to their place. */
static int unpack_bytes_to(int fd, tar_reader *t, const tar_entry *entry, error *e)
{
    const tar_piece whole = { 0, entry->size };
    const tar_piece *pieces = entry->pieces ? entry->pieces : &whole;
    size_t n = entry->pieces ? entry->npieces : 1;
    slice bytes;
    for (size_t i = 0; i < n; i++) {
        if (entry->pieces && lseek(fd, (off_t)pieces[i].at, SEEK_SET) < 0) return fail_sys(e, GRPC_INTERNAL, "seek");
        for (uint64_t left = pieces[i].n; left; left -= bytes.n) {
            int got = tar_data(t, left, &bytes, e);
            if (got <= 0) return got < 0 ? -1 : tar_fail(e, "the archive is cut off");
            if (write_all(fd, bytes.p, bytes.n) < 0) return fail_sys(e, GRPC_INTERNAL, "write");
        }
    }
    if (entry->pieces && ftruncate(fd, (off_t)entry->size) < 0) return fail_sys(e, GRPC_INTERNAL, "truncate");
    return 0;
}

/* Makes the last name of a file, a link or a node; -1 and errno. A file's descriptor, else 0. */
static int unpack_make(int parent, const char *name, const tar_entry *entry)
{
    static const mode_t kinds[] = { ['3'] = S_IFCHR, ['4'] = S_IFBLK, ['6'] = S_IFIFO };
    if (entry->type == '0') return openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (entry->type == '2') return symlinkat((const char *)entry->link.p, parent, name);
    dev_t device = entry->type == '6' ? 0 : makedev(entry->major, entry->minor);
    return mknodat(parent, name, kinds[(uint8_t)entry->type] | 0600, device);
}

static int unpack_file(unpacker *u, tar_reader *t, const tar_entry *entry, const tar_path *path, error *e)
{
    int parent = unpack_enter(u, path->directory, e);
    if (parent < 0) return -1;
    OWNED_FD fd = unpack_make(parent, path->name, entry);
    if (fd < 0 && errno == EEXIST) {
        if (unpack_clear(u, parent, path->name, e) < 0) return -1;
        fd = unpack_make(parent, path->name, entry);
    }
    if (fd < 0) return fail_sys(e, GRPC_INTERNAL, "create");
    if (entry->type == '0')
        return unpack_bytes_to(fd, t, entry, e) < 0 ? -1 : unpack_dress(fd, entry, e);
    fd = -1; /* 0 was no descriptor */
    struct timespec times[2] = { entry->mtime, entry->mtime };
    if (fchownat(parent, path->name, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) < 0) return fail_sys(e, GRPC_INTERNAL, "chown");
    /* This call follows links, but the name is the node that we have just made in our own directory. */
    if (entry->type != '2' && fchmodat(parent, path->name, entry->mode, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "chmod");
    if (utimensat(parent, path->name, times, AT_SYMLINK_NOFOLLOW) < 0) return fail_sys(e, GRPC_INTERNAL, "set times");
    return 0;
}

/* A second name for a file of this archive. Both names are opened by their directories; the link of
 * a link is the link. */
static int unpack_hard_link(unpacker *u, const tar_entry *entry, const tar_path *path, error *e)
{
    struct stat old, new;
    tar_path target;
    if (tar_split(entry->link, &target, e) < 0) return -1;
    int parent = unpack_enter(u, path->directory, e);
    if (parent < 0) return -1;
    OWNED_FD from = open_inside(u->root, *target.directory ? target.directory : ".", O_PATH | O_DIRECTORY, e);
    if (from < 0) return -1;
    if (!*target.name || fstatat(from, target.name, &old, AT_SYMLINK_NOFOLLOW) < 0 || S_ISDIR(old.st_mode))
        return tar_fail(e, "a hard link to what is no file of this archive");
    if (linkat(from, target.name, parent, path->name, 0) == 0) return 0;
    if (errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "link");
    if (fstatat(parent, path->name, &new, AT_SYMLINK_NOFOLLOW) < 0) return fail_sys(e, GRPC_INTERNAL, "stat");
    if (new.st_ino == old.st_ino && new.st_dev == old.st_dev) return 0; /* the same file already */
    if (unpack_clear(u, parent, path->name, e) < 0) return -1;
    return linkat(from, target.name, parent, path->name, 0) < 0 ? fail_sys(e, GRPC_INTERNAL, "link") : 0;
}

/* Marks a directory so that overlay shows nothing of the layers below in it (overlayfs.rst). */
static int unpack_set_opaque(int directory, error *e)
{
    if (fsetxattr(directory, "trusted.overlay.opaque", "y", 1, 0) == 0) return 0;
    return fail_sys(e, GRPC_INTERNAL, "set trusted.overlay.opaque");
}

static int unpack_directory(unpacker *u, const tar_entry *entry, const tar_path *path, error *e)
{
    if (!*path->name) { /* the root itself */
        unpack_leave(u);
        OWNED_FD root = open_inside(u->root, ".", O_RDONLY | O_DIRECTORY, e);
        return root < 0 ? -1 : unpack_dress(root, entry, e);
    }
    struct stat st;
    int parent = unpack_enter(u, path->directory, e);
    if (parent < 0) return -1;
    int made = mkdirat(parent, path->name, 0700);
    if (made < 0 && errno == EEXIST && fstatat(parent, path->name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(st.st_mode)) {
        if (unpack_clear(u, parent, path->name, e) < 0) return -1;
        made = mkdirat(parent, path->name, 0700);
    } else if (made < 0 && errno == EEXIST) {
        made = 0; /* what it holds stays */
    }
    if (made < 0) return fail_sys(e, GRPC_INTERNAL, "mkdir");
    OWNED_FD fd = openat(parent, path->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return fail_sys(e, GRPC_INTERNAL, "open");
    if (u->hides_lower && unpack_set_opaque(fd, e) < 0) return -1;
    return unpack_dress(fd, entry, e);
}

/* ".wh.NAME": NAME of the layers below is gone. What this layer itself has under that name stays,
 * wherever it stands in the archive (layer.md, "Whiteouts": they apply to lower layers only). */
static int unpack_whiteout(unpacker *u, const tar_path *path, error *e)
{
    struct stat st;
    const char *name = path->name + strlen(".wh.");
    if (!strcmp(name, ".wh..opq")) {
        int directory = unpack_enter(u, path->directory, e);
        return directory < 0 ? -1 : unpack_set_opaque(directory, e);
    }
    if (!strncmp(name, ".wh.", 4)) return 0; /* what aufs kept for itself */
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..")) return tar_fail(e, "a whiteout of no name");
    int parent = unpack_enter(u, path->directory, e);
    if (parent < 0) return -1;
    if (mknodat(parent, name, S_IFCHR, makedev(0, 0)) == 0) return 0;
    if (errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "make a whiteout");
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0) return fail_sys(e, GRPC_INTERNAL, "stat");
    if (!S_ISDIR(st.st_mode)) return 0;
    OWNED_FD fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? fail_sys(e, GRPC_INTERNAL, "open") : unpack_set_opaque(fd, e);
}

static int unpack_entry(unpacker *u, tar_reader *t, const tar_entry *entry, error *e)
{
    tar_path path;
    if (!entry->name.n) return tar_fail(e, "an entry without a name");
    if (tar_split(entry->name, &path, e) < 0) return -1;
    u->hides_lower = false;
    if (!strncmp(path.directory, ".wh..wh.", 8) || strstr(path.directory, "/.wh..wh.")) return 0; /* aufs */
    if (!strncmp(path.name, ".wh.", 4)) return unpack_whiteout(u, &path, e);
    if (entry->type == '5') return unpack_directory(u, entry, &path, e);
    if (!*path.name) return tar_fail(e, "the root is no directory");
    if (entry->type == '1') return unpack_hard_link(u, entry, &path, e);
    if ((entry->type == '3' || entry->type == '4') && !u->allow_devices) return 0;
    return unpack_file(u, t, entry, &path, e);
}

/* Puts the entry's name before an error; it came from outside. */
static int unpack_fail(error *e, const tar_entry *entry)
{
    OWNED_BUF name = { 0 };
    text_escape(&name, entry->name, 200);
    return fail_in(e, "unpack %.*s", PR(buf_view(&name)));
}

/* Unpacks a layer into the directory `root`, which should be empty, in the form that overlay takes
 * as a lower directory. Reads `in` to its end, so that a hash over it is complete.
 * in, root borrowed.   t   what was unpacked; also after a failure
 * Returns  0; -1: INVALID_ARGUMENT (the archive is bad), RESOURCE_EXHAUSTED (past a limit), INTERNAL.
 *          What is in the root then is to be thrown away
 * Needs    CAP_CHOWN, CAP_FOWNER, CAP_FSETID, CAP_DAC_OVERRIDE, CAP_SETFCAP, CAP_MKNOD, and for
 *          opaque directories CAP_SYS_ADMIN (capabilities(7), xattr(7)) */
static int tar_unpack(source *in, int root, const tar_options *o, tar_totals *t, error *e)
{
    tar_reader reader;
    tar_entry entry;
    unpacker u = { .root = root, .allow_devices = o->allow_devices, .parent = -1 };
    uint64_t max_bytes = o->max_bytes ? o->max_bytes : UINT64_C(64) << 30;
    uint64_t max_entries = o->max_entries ? o->max_entries : 4000000;
    int got;
    *t = (tar_totals){ 0 };
    if (tar_open(&reader, in, e) < 0) return -1;
    while ((got = tar_next(&reader, &entry, e)) > 0) {
        if (entry.size > max_bytes - t->bytes || t->entries >= max_entries) {
            got = fail(e, GRPC_RESOURCE_EXHAUSTED, "the layer is larger than %" PRIu64 " bytes or %" PRIu64 " entries",
                       max_bytes, max_entries);
        } else if (unpack_entry(&u, &reader, &entry, e) < 0) {
            got = unpack_fail(e, &entry);
        }
        if (got < 0) break;
        t->bytes += entry.size;
        t->entries++;
    }
    unpack_leave(&u);
    if (got == 0) got = source_drain(in, e);
    tar_close(&reader);
    return got;
}

/* -- writing ----------------------------------------------------------------------------------- */

/* Writes a number as octal text with a NUL. False if it does not fit. */
static bool tar_put_number(char *field, size_t n, uint64_t value)
{
    bool fits = value >> (3 * (n - 1)) == 0;
    for (size_t i = n - 1; i-- > 0; value >>= 3) field[i] = (char)('0' + (fits ? value & 7 : 0));
    return fits;
}

static void tar_put_pax(buf *records, const char *key, slice value)
{
    size_t rest = strlen(key) + value.n + 3, digits = 1; /* space, '=' and newline */
    for (size_t limit = 10; rest + digits >= limit; limit *= 10) digits++;
    buf_printf(records, "%zu %s=", rest + digits, key);
    buf_slice(records, value);
    buf_byte(records, '\n');
}

static void tar_put_text(buf *records, char *field, size_t n, slice text, const char *key)
{
    if (text.n) memcpy(field, text.p, MIN(n, text.n));
    if (text.n > n) tar_put_pax(records, key, text);
}

static void tar_put_padding(buf *out, uint64_t size) /* after an entry's bytes */
{
    static const uint8_t zeros[TAR_BLOCK];
    buf_add(out, zeros, (size_t)(-size % TAR_BLOCK));
}

static void tar_put_end(buf *out)
{
    static const uint8_t zeros[2 * TAR_BLOCK];
    buf_add(out, zeros, sizeof zeros);
}

static void tar_put_block(buf *out, tar_header *h)
{
    uint64_t sum = 0;
    memcpy(h->magic, "ustar\00000", 8);
    memset(h->sum, ' ', sizeof h->sum);
    for (size_t i = 0; i < sizeof *h; i++) sum += ((const uint8_t *)h)[i];
    tar_put_number(h->sum, 7, sum);
    buf_add(out, h, sizeof *h);
}

/* Appends an entry's header; its bytes and tar_put_padding come next. What ustar has no room for
 * (long names, large numbers, parts of seconds, attributes) goes into a pax header before it. */
static void tar_put_header(buf *out, const tar_entry *entry)
{
    tar_header h = { .type = entry->type }, pax = { .name = "pax", .type = 'x' };
    OWNED_BUF records = { 0 };
    char key[XATTR_NAME_MAX + 32], number[64];
    const struct timespec *m = &entry->mtime;
    tar_put_text(&records, h.name, sizeof h.name, entry->name, "path");
    tar_put_text(&records, h.link, sizeof h.link, entry->link, "linkpath");
    tar_put_number(h.mode, sizeof h.mode, entry->mode);
    tar_put_number(h.major, sizeof h.major, entry->major);
    tar_put_number(h.minor, sizeof h.minor, entry->minor);
    const struct { const char *key; char *field; size_t n; uint64_t value; } numbers[] = {
        { "uid", h.uid, sizeof h.uid, entry->uid }, { "gid", h.gid, sizeof h.gid, entry->gid },
        { "size", h.size, sizeof h.size, entry->size },
    };
    for (size_t i = 0; i < COUNT(numbers); i++) {
        snprintf(number, sizeof number, "%" PRIu64, numbers[i].value);
        if (!tar_put_number(numbers[i].field, numbers[i].n, numbers[i].value))
            tar_put_pax(&records, numbers[i].key, slice_of(number));
    }
    if (!tar_put_number(h.mtime, sizeof h.mtime, m->tv_sec < 0 ? UINT64_MAX : (uint64_t)m->tv_sec) || m->tv_nsec) {
        bool before = m->tv_sec < 0 && m->tv_nsec; /* -1 s and 0.9 s are written -0.1 */
        snprintf(number, sizeof number, "%s%" PRId64 ".%09ld", before && m->tv_sec == -1 ? "-" : "",
                 (int64_t)m->tv_sec + before, before ? 1000000000 - m->tv_nsec : m->tv_nsec);
        tar_put_pax(&records, "mtime", slice_of(number));
    }
    for (size_t i = 0; i < entry->nxattrs; i++) {
        snprintf(key, sizeof key, "SCHILY.xattr.%.*s", PR(entry->xattrs[i].name));
        tar_put_pax(&records, key, entry->xattrs[i].value);
    }
    if (records.n) {
        tar_put_number(pax.size, sizeof pax.size, records.n);
        tar_put_block(out, &pax);
        buf_slice(out, buf_view(&records));
        tar_put_padding(out, records.n);
    }
    tar_put_block(out, &h);
    out->oom |= records.oom;
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
/* The C type of each kind, so that a row names its kind once. */
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

/* T_msg: the table of struct T, from its rows. A message without fields, and its C type. E_enum:
 * the names of an enum's values, from 0 on. */
#define PB_MSG(T) static const pb_message T##_msg = { #T, sizeof(T), T##_fields, COUNT(T##_fields) }
#define PB_TABLE(T, ...) \
    static const pb_field T##_fields[] = { __VA_ARGS__ }; \
    PB_MSG(T)
#define PB_EMPTY(T) \
    typedef struct { char none; } T; \
    static const pb_message T##_msg = { #T, sizeof(T), NULL, 0 }
#define PB_NAMES(E, ...) \
    static const char *const E##_names[] = { __VA_ARGS__ }; \
    static const pb_enum E##_enum = { #E, E##_names, COUNT(E##_names) }

/* On the wire a map is a list of these messages. */
PB_TABLE(pb_pair, PB(1, STRING, pb_pair, key), PB(2, STRING, pb_pair, value));

/* -- what the walkers share -------------------------------------------------------------------- */

/* How a value's end is found: in itself, after eight bytes, after a length that precedes it, after
 * four bytes. */
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

/* The name in cri.proto, which errors use: the reader of an error has the contract, not krun.c. */
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

/* Stores what a varint carried, cut to its kind. */
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
    for (size_t i = 0; i < s->n; i++) {
        uint8_t byte = s->p[i];
        if (i == 9 && byte > 1) return false; /* the tenth byte has one bit left, and is the last */
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

/* Stores one value at `at`: a member, or an element of a list. Nothing is copied but the bytes of
 * numbers: a text stays where it came in. It is looked at here, once, because all later code prints
 * it, sends it on in JSON or makes a path of it, and takes for granted that it is UTF-8. */
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

/* pb_prepare has counted the numbers by their last bytes, so there is room for all of them. */
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

/* One value without its tag. A sub-message is the only one whose length is not known before it is
 * written; measuring it first would walk each level again for every level above it. */
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

/* Numbers go packed, in one run, as proto3 wants them; all else goes one by one, each with a tag.
 * An element is sent even if it is empty: its place counts. */
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

/* By name, as we write it, or by number, as crictl's older files have it. */
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

/* The counterpart of pb_take_value. A wrong kind of JSON value is an error, never a guess: a "true"
 * in quotes is no bool. */
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

/* null is the same as leaving the name out. A name that comes twice is refused, since two readers
 * of the same text could take different ones. */
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
/* == 9. The CRI's messages ===================================================================
 *
 * All that a kubelet can say to a runtime, and all that it can hear: a struct and a table for each
 * of the 175 messages of runtime.v1, in the order of cri.proto, which says what each field means.
 * A test holds every row against that file. After them the 43 calls, and what krun says to itself.
 *
 * Structs and members have the names of the contract, so that its documents and its other
 * implementations can be read beside this file: an ExecSyncRequest has a `cmd`. An enum's member is
 * an int32_t (a newer kubelet may send a value that we have no name for); CONTAINER_RUNNING of the
 * enum ContainerState is ContainerState_CONTAINER_RUNNING. X_msg is the table of struct X.
 *
 * Defined by  cri.proto; github.com/kubernetes/cri-api
 * Uses        8                       Gives  structs, X_msg tables, enums, cri_rpcs, records */

/* Members have these names, and C's headers (and gcc, for `linux`) make macros of them. */
#undef linux
#undef stdin
#undef stdout
#undef stderr

/* -- numbers that may be absent ---------------------------------------------------------------- */

/* The difference counts: run_as_user 0 is root, no run_as_user is the image's user. */

typedef struct { int64_t value; } Int64Value;
PB_TABLE(Int64Value, PB(1, INT64, Int64Value, value));

typedef struct { uint64_t value; } UInt64Value;
PB_TABLE(UInt64Value, PB(1, UINT64, UInt64Value, value));

/* -- the handshake ----------------------------------------------------------------------------- */

/* Asked before the kubelet trusts a runtime with a pod. Status comes back every 5 seconds. */

typedef struct { slice version; } VersionRequest;
PB_TABLE(VersionRequest, PB(1, STRING, VersionRequest, version));

typedef struct {
    slice version, runtime_name, runtime_version, runtime_api_version;
} VersionResponse;
PB_TABLE(VersionResponse,
    PB(1, STRING, VersionResponse, version),
    PB(2, STRING, VersionResponse, runtime_name),
    PB(3, STRING, VersionResponse, runtime_version),
    PB(4, STRING, VersionResponse, runtime_api_version));

typedef struct { bool verbose; } StatusRequest;
PB_TABLE(StatusRequest, PB(1, BOOL, StatusRequest, verbose));

typedef struct { slice type; bool status; slice reason, message; } RuntimeCondition;
PB_TABLE(RuntimeCondition,
    PB(1, STRING, RuntimeCondition, type),
    PB(2, BOOL, RuntimeCondition, status),
    PB(3, STRING, RuntimeCondition, reason),
    PB(4, STRING, RuntimeCondition, message));

typedef struct { LIST(RuntimeCondition) conditions; } RuntimeStatus;
PB_TABLE(RuntimeStatus, PB_SUBS(1, RuntimeCondition, RuntimeStatus, conditions));

typedef struct { bool recursive_read_only_mounts, user_namespaces; } RuntimeHandlerFeatures;
PB_TABLE(RuntimeHandlerFeatures,
    PB(1, BOOL, RuntimeHandlerFeatures, recursive_read_only_mounts),
    PB(2, BOOL, RuntimeHandlerFeatures, user_namespaces));

typedef struct { slice name; RuntimeHandlerFeatures *features; } RuntimeHandler;
PB_TABLE(RuntimeHandler,
    PB(1, STRING, RuntimeHandler, name),
    PB_SUB(2, RuntimeHandlerFeatures, RuntimeHandler, features));

typedef struct {
    bool supplemental_groups_policy, user_namespaces_host_network, mount_options;
} RuntimeFeatures;
PB_TABLE(RuntimeFeatures,
    PB(1, BOOL, RuntimeFeatures, supplemental_groups_policy),
    PB(2, BOOL, RuntimeFeatures, user_namespaces_host_network),
    PB(3, BOOL, RuntimeFeatures, mount_options));

typedef struct {
    RuntimeStatus *status; LIST(pb_pair) info; LIST(RuntimeHandler) runtime_handlers;
    RuntimeFeatures *features;
} StatusResponse;
PB_TABLE(StatusResponse,
    PB_SUB(1, RuntimeStatus, StatusResponse, status),
    PB_PAIRS(2, StatusResponse, info),
    PB_SUBS(3, RuntimeHandler, StatusResponse, runtime_handlers),
    PB_SUB(4, RuntimeFeatures, StatusResponse, features));

PB_EMPTY(RuntimeConfigRequest);

enum CgroupDriver { CgroupDriver_SYSTEMD, CgroupDriver_CGROUPFS };
PB_NAMES(CgroupDriver, "SYSTEMD", "CGROUPFS");

typedef struct { int32_t cgroup_driver; } LinuxRuntimeConfiguration;
PB_TABLE(LinuxRuntimeConfiguration,
    PB_NAMED(1, CgroupDriver, LinuxRuntimeConfiguration, cgroup_driver));

typedef struct { LinuxRuntimeConfiguration *linux; } RuntimeConfigResponse;
PB_TABLE(RuntimeConfigResponse, PB_SUB(1, LinuxRuntimeConfiguration, RuntimeConfigResponse, linux));

typedef struct { slice pod_cidr; } NetworkConfig;
PB_TABLE(NetworkConfig, PB(1, STRING, NetworkConfig, pod_cidr));

typedef struct { NetworkConfig *network_config; } RuntimeConfig;
PB_TABLE(RuntimeConfig, PB_SUB(1, NetworkConfig, RuntimeConfig, network_config));

typedef struct { RuntimeConfig *runtime_config; } UpdateRuntimeConfigRequest;
PB_TABLE(UpdateRuntimeConfigRequest,
    PB_SUB(1, RuntimeConfig, UpdateRuntimeConfigRequest, runtime_config));

PB_EMPTY(UpdateRuntimeConfigResponse);

/* -- what a process may do and see ------------------------------------------------------------- */

/* Chapters 16 and 17 make it so. What is absent here is the image's or krun's default. */

enum NamespaceMode {
    NamespaceMode_POD, NamespaceMode_CONTAINER, NamespaceMode_NODE, NamespaceMode_TARGET
};
PB_NAMES(NamespaceMode, "POD", "CONTAINER", "NODE", "TARGET");

typedef struct { uint32_t host_id, container_id, length; } IDMapping;
PB_TABLE(IDMapping,
    PB(1, UINT32, IDMapping, host_id),
    PB(2, UINT32, IDMapping, container_id),
    PB(3, UINT32, IDMapping, length));

typedef struct { int32_t mode; LIST(IDMapping) uids, gids; } UserNamespace;
PB_TABLE(UserNamespace,
    PB_NAMED(1, NamespaceMode, UserNamespace, mode),
    PB_SUBS(2, IDMapping, UserNamespace, uids),
    PB_SUBS(3, IDMapping, UserNamespace, gids));

typedef struct {
    int32_t network, pid, ipc; slice target_id; UserNamespace *userns_options;
} NamespaceOption;
PB_TABLE(NamespaceOption,
    PB_NAMED(1, NamespaceMode, NamespaceOption, network),
    PB_NAMED(2, NamespaceMode, NamespaceOption, pid),
    PB_NAMED(3, NamespaceMode, NamespaceOption, ipc),
    PB(4, STRING, NamespaceOption, target_id),
    PB_SUB(5, UserNamespace, NamespaceOption, userns_options));

enum SupplementalGroupsPolicy { SupplementalGroupsPolicy_Merge, SupplementalGroupsPolicy_Strict };
PB_NAMES(SupplementalGroupsPolicy, "Merge", "Strict");

enum ProfileType { ProfileType_RuntimeDefault, ProfileType_Unconfined, ProfileType_Localhost };
PB_NAMES(ProfileType, "RuntimeDefault", "Unconfined", "Localhost");

typedef struct { int32_t profile_type; slice localhost_ref; } SecurityProfile;
PB_TABLE(SecurityProfile,
    PB_NAMED(1, ProfileType, SecurityProfile, profile_type),
    PB(2, STRING, SecurityProfile, localhost_ref));

typedef struct { slice user, role, type, level; } SELinuxOption;
PB_TABLE(SELinuxOption,
    PB(1, STRING, SELinuxOption, user),
    PB(2, STRING, SELinuxOption, role),
    PB(3, STRING, SELinuxOption, type),
    PB(4, STRING, SELinuxOption, level));

typedef struct {
    LIST(slice) add_capabilities, drop_capabilities, add_ambient_capabilities;
} Capability;
PB_TABLE(Capability,
    PB_LIST(1, STRING, Capability, add_capabilities),
    PB_LIST(2, STRING, Capability, drop_capabilities),
    PB_LIST(3, STRING, Capability, add_ambient_capabilities));

/* -- what it may use --------------------------------------------------------------------------- */

/* Chapter 15 writes these into cgroup files. */

typedef struct { slice page_size; uint64_t limit; } HugepageLimit;
PB_TABLE(HugepageLimit,
    PB(1, STRING, HugepageLimit, page_size),
    PB(2, UINT64, HugepageLimit, limit));

typedef struct {
    int64_t cpu_period, cpu_quota, cpu_shares, memory_limit_in_bytes, oom_score_adj;
    slice cpuset_cpus, cpuset_mems; LIST(HugepageLimit) hugepage_limits; LIST(pb_pair) unified;
    int64_t memory_swap_limit_in_bytes;
} LinuxContainerResources;
PB_TABLE(LinuxContainerResources,
    PB(1, INT64, LinuxContainerResources, cpu_period),
    PB(2, INT64, LinuxContainerResources, cpu_quota),
    PB(3, INT64, LinuxContainerResources, cpu_shares),
    PB(4, INT64, LinuxContainerResources, memory_limit_in_bytes),
    PB(5, INT64, LinuxContainerResources, oom_score_adj),
    PB(6, STRING, LinuxContainerResources, cpuset_cpus),
    PB(7, STRING, LinuxContainerResources, cpuset_mems),
    PB_SUBS(8, HugepageLimit, LinuxContainerResources, hugepage_limits),
    PB_PAIRS(9, LinuxContainerResources, unified),
    PB(10, INT64, LinuxContainerResources, memory_swap_limit_in_bytes));

/* -- Windows ----------------------------------------------------------------------------------- */

/* krun reads none of these. They are here so that a request is kept and shown whole. */

typedef struct { int32_t network; } WindowsNamespaceOption;
PB_TABLE(WindowsNamespaceOption, PB_NAMED(1, NamespaceMode, WindowsNamespaceOption, network));

typedef struct {
    slice run_as_username, credential_spec; bool host_process;
    WindowsNamespaceOption *namespace_options;
} WindowsSandboxSecurityContext;
PB_TABLE(WindowsSandboxSecurityContext,
    PB(1, STRING, WindowsSandboxSecurityContext, run_as_username),
    PB(2, STRING, WindowsSandboxSecurityContext, credential_spec),
    PB(3, BOOL, WindowsSandboxSecurityContext, host_process),
    PB_SUB(4, WindowsNamespaceOption, WindowsSandboxSecurityContext, namespace_options));

typedef struct { WindowsSandboxSecurityContext *security_context; } WindowsPodSandboxConfig;
PB_TABLE(WindowsPodSandboxConfig,
    PB_SUB(1, WindowsSandboxSecurityContext, WindowsPodSandboxConfig, security_context));

typedef struct { uint64_t cpu_mask; uint32_t cpu_group; } WindowsCpuGroupAffinity;
PB_TABLE(WindowsCpuGroupAffinity,
    PB(1, UINT64, WindowsCpuGroupAffinity, cpu_mask),
    PB(2, UINT32, WindowsCpuGroupAffinity, cpu_group));

typedef struct {
    int64_t cpu_shares, cpu_count, cpu_maximum, memory_limit_in_bytes, rootfs_size_in_bytes;
    LIST(WindowsCpuGroupAffinity) affinity_cpus;
} WindowsContainerResources;
PB_TABLE(WindowsContainerResources,
    PB(1, INT64, WindowsContainerResources, cpu_shares),
    PB(2, INT64, WindowsContainerResources, cpu_count),
    PB(3, INT64, WindowsContainerResources, cpu_maximum),
    PB(4, INT64, WindowsContainerResources, memory_limit_in_bytes),
    PB(5, INT64, WindowsContainerResources, rootfs_size_in_bytes),
    PB_SUBS(6, WindowsCpuGroupAffinity, WindowsContainerResources, affinity_cpus));

typedef struct {
    slice run_as_username, credential_spec; bool host_process;
} WindowsContainerSecurityContext;
PB_TABLE(WindowsContainerSecurityContext,
    PB(1, STRING, WindowsContainerSecurityContext, run_as_username),
    PB(2, STRING, WindowsContainerSecurityContext, credential_spec),
    PB(3, BOOL, WindowsContainerSecurityContext, host_process));

typedef struct {
    WindowsContainerResources *resources; WindowsContainerSecurityContext *security_context;
} WindowsContainerConfig;
PB_TABLE(WindowsContainerConfig,
    PB_SUB(1, WindowsContainerResources, WindowsContainerConfig, resources),
    PB_SUB(2, WindowsContainerSecurityContext, WindowsContainerConfig, security_context));

/* -- a pod as it is asked for ------------------------------------------------------------------ */

/* Metadata is the key: the same four values again are a retry of the same pod, not a second one. */

typedef struct { slice name, uid, name_space; uint32_t attempt; } PodSandboxMetadata;
PB_TABLE(PodSandboxMetadata,
    PB(1, STRING, PodSandboxMetadata, name),
    PB(2, STRING, PodSandboxMetadata, uid),
    PB(3, STRING, PodSandboxMetadata, name_space, .json = "namespace"),
    PB(4, UINT32, PodSandboxMetadata, attempt));

typedef struct { LIST(slice) servers, searches, options; } DNSConfig;
PB_TABLE(DNSConfig,
    PB_LIST(1, STRING, DNSConfig, servers),
    PB_LIST(2, STRING, DNSConfig, searches),
    PB_LIST(3, STRING, DNSConfig, options));

enum Protocol { Protocol_TCP, Protocol_UDP, Protocol_SCTP };
PB_NAMES(Protocol, "TCP", "UDP", "SCTP");

typedef struct { int32_t protocol, container_port, host_port; slice host_ip; } PortMapping;
PB_TABLE(PortMapping,
    PB_NAMED(1, Protocol, PortMapping, protocol),
    PB(2, INT32, PortMapping, container_port),
    PB(3, INT32, PortMapping, host_port),
    PB(4, STRING, PortMapping, host_ip));

typedef struct {
    NamespaceOption *namespace_options; SELinuxOption *selinux_options; Int64Value *run_as_user;
    bool readonly_rootfs; LIST(int64_t) supplemental_groups; bool privileged;
    slice seccomp_profile_path; Int64Value *run_as_group; SecurityProfile *seccomp, *apparmor;
    int32_t supplemental_groups_policy;
} LinuxSandboxSecurityContext;
PB_TABLE(LinuxSandboxSecurityContext,
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
    PB_NAMED(11, SupplementalGroupsPolicy, LinuxSandboxSecurityContext,
             supplemental_groups_policy));

typedef struct {
    slice cgroup_parent; LinuxSandboxSecurityContext *security_context; LIST(pb_pair) sysctls;
    LinuxContainerResources *overhead, *resources;
} LinuxPodSandboxConfig;
PB_TABLE(LinuxPodSandboxConfig,
    PB(1, STRING, LinuxPodSandboxConfig, cgroup_parent),
    PB_SUB(2, LinuxSandboxSecurityContext, LinuxPodSandboxConfig, security_context),
    PB_PAIRS(3, LinuxPodSandboxConfig, sysctls),
    PB_SUB(4, LinuxContainerResources, LinuxPodSandboxConfig, overhead),
    PB_SUB(5, LinuxContainerResources, LinuxPodSandboxConfig, resources));

typedef struct {
    PodSandboxMetadata *metadata; slice hostname, log_directory; DNSConfig *dns_config;
    LIST(PortMapping) port_mappings; LIST(pb_pair) labels, annotations;
    LinuxPodSandboxConfig *linux; WindowsPodSandboxConfig *windows;
} PodSandboxConfig;
PB_TABLE(PodSandboxConfig,
    PB_SUB(1, PodSandboxMetadata, PodSandboxConfig, metadata),
    PB(2, STRING, PodSandboxConfig, hostname),
    PB(3, STRING, PodSandboxConfig, log_directory),
    PB_SUB(4, DNSConfig, PodSandboxConfig, dns_config),
    PB_SUBS(5, PortMapping, PodSandboxConfig, port_mappings),
    PB_PAIRS(6, PodSandboxConfig, labels),
    PB_PAIRS(7, PodSandboxConfig, annotations),
    PB_SUB(8, LinuxPodSandboxConfig, PodSandboxConfig, linux),
    PB_SUB(9, WindowsPodSandboxConfig, PodSandboxConfig, windows));

typedef struct { PodSandboxConfig *config; slice runtime_handler; } RunPodSandboxRequest;
PB_TABLE(RunPodSandboxRequest,
    PB_SUB(1, PodSandboxConfig, RunPodSandboxRequest, config),
    PB(2, STRING, RunPodSandboxRequest, runtime_handler));

typedef struct { slice pod_sandbox_id; } RunPodSandboxResponse;
PB_TABLE(RunPodSandboxResponse, PB(1, STRING, RunPodSandboxResponse, pod_sandbox_id));

typedef struct { slice pod_sandbox_id; } StopPodSandboxRequest;
PB_TABLE(StopPodSandboxRequest, PB(1, STRING, StopPodSandboxRequest, pod_sandbox_id));

PB_EMPTY(StopPodSandboxResponse);

typedef struct { slice pod_sandbox_id; } RemovePodSandboxRequest;
PB_TABLE(RemovePodSandboxRequest, PB(1, STRING, RemovePodSandboxRequest, pod_sandbox_id));

PB_EMPTY(RemovePodSandboxResponse);

typedef struct {
    slice pod_sandbox_id; LinuxContainerResources *overhead, *resources;
} UpdatePodSandboxResourcesRequest;
PB_TABLE(UpdatePodSandboxResourcesRequest,
    PB(1, STRING, UpdatePodSandboxResourcesRequest, pod_sandbox_id),
    PB_SUB(2, LinuxContainerResources, UpdatePodSandboxResourcesRequest, overhead),
    PB_SUB(3, LinuxContainerResources, UpdatePodSandboxResourcesRequest, resources));

PB_EMPTY(UpdatePodSandboxResourcesResponse);

/* -- an image as it is named, and a container as it is asked for ------------------------------- */

/* A value that cannot work is refused at CreateContainer, while the kubelet can still say which. */

typedef struct {
    slice image; LIST(pb_pair) annotations; slice user_specified_image, runtime_handler, image_ref;
} ImageSpec;
PB_TABLE(ImageSpec,
    PB(1, STRING, ImageSpec, image),
    PB_PAIRS(2, ImageSpec, annotations),
    PB(18, STRING, ImageSpec, user_specified_image),
    PB(19, STRING, ImageSpec, runtime_handler),
    PB(20, STRING, ImageSpec, image_ref));

typedef struct { slice name; uint32_t attempt; } ContainerMetadata;
PB_TABLE(ContainerMetadata,
    PB(1, STRING, ContainerMetadata, name),
    PB(2, UINT32, ContainerMetadata, attempt));

typedef struct { slice key, value; } KeyValue;
PB_TABLE(KeyValue, PB(1, STRING, KeyValue, key), PB(2, BYTES, KeyValue, value));

enum MountPropagation {
    MountPropagation_PROPAGATION_PRIVATE, MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
    MountPropagation_PROPAGATION_BIDIRECTIONAL
};
PB_NAMES(MountPropagation,
    "PROPAGATION_PRIVATE", "PROPAGATION_HOST_TO_CONTAINER", "PROPAGATION_BIDIRECTIONAL");

typedef struct {
    slice container_path, host_path; bool readonly, selinux_relabel; int32_t propagation;
    LIST(IDMapping) uidMappings, gidMappings; bool recursive_read_only; ImageSpec *image;
    slice image_sub_path; LIST(slice) mount_options;
} Mount;
PB_TABLE(Mount,
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
    PB_LIST(11, STRING, Mount, mount_options));

typedef struct { slice container_path, host_path, permissions; } Device;
PB_TABLE(Device,
    PB(1, STRING, Device, container_path),
    PB(2, STRING, Device, host_path),
    PB(3, STRING, Device, permissions));

typedef struct { slice name; } CDIDevice;
PB_TABLE(CDIDevice, PB(1, STRING, CDIDevice, name));

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
PB_NAMES(Signal,
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
    "SIGNAL_SIGRTMAXMINUS1", "SIGNAL_SIGRTMAX");

typedef struct {
    Capability *capabilities; bool privileged; NamespaceOption *namespace_options;
    SELinuxOption *selinux_options; Int64Value *run_as_user; slice run_as_username;
    bool readonly_rootfs; LIST(int64_t) supplemental_groups;
    slice apparmor_profile, seccomp_profile_path; bool no_new_privs; Int64Value *run_as_group;
    LIST(slice) masked_paths, readonly_paths; SecurityProfile *seccomp, *apparmor;
    int32_t supplemental_groups_policy;
} LinuxContainerSecurityContext;
PB_TABLE(LinuxContainerSecurityContext,
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
    PB_NAMED(17, SupplementalGroupsPolicy, LinuxContainerSecurityContext,
             supplemental_groups_policy));

typedef struct {
    LinuxContainerResources *resources; LinuxContainerSecurityContext *security_context;
} LinuxContainerConfig;
PB_TABLE(LinuxContainerConfig,
    PB_SUB(1, LinuxContainerResources, LinuxContainerConfig, resources),
    PB_SUB(2, LinuxContainerSecurityContext, LinuxContainerConfig, security_context));

typedef struct {
    ContainerMetadata *metadata; ImageSpec *image; LIST(slice) command, args; slice working_dir;
    LIST(KeyValue) envs; LIST(Mount) mounts; LIST(Device) devices;
    LIST(pb_pair) labels, annotations; slice log_path; bool stdin, stdin_once, tty;
    LinuxContainerConfig *linux; WindowsContainerConfig *windows; LIST(CDIDevice) CDI_devices;
    int32_t stop_signal;
} ContainerConfig;
PB_TABLE(ContainerConfig,
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
    PB_NAMED(18, Signal, ContainerConfig, stop_signal));

typedef struct {
    slice pod_sandbox_id; ContainerConfig *config; PodSandboxConfig *sandbox_config;
} CreateContainerRequest;
PB_TABLE(CreateContainerRequest,
    PB(1, STRING, CreateContainerRequest, pod_sandbox_id),
    PB_SUB(2, ContainerConfig, CreateContainerRequest, config),
    PB_SUB(3, PodSandboxConfig, CreateContainerRequest, sandbox_config));

typedef struct { slice container_id; } CreateContainerResponse;
PB_TABLE(CreateContainerResponse, PB(1, STRING, CreateContainerResponse, container_id));

typedef struct { slice container_id; } StartContainerRequest;
PB_TABLE(StartContainerRequest, PB(1, STRING, StartContainerRequest, container_id));

PB_EMPTY(StartContainerResponse);

typedef struct { slice container_id; int64_t timeout; } StopContainerRequest;
PB_TABLE(StopContainerRequest,
    PB(1, STRING, StopContainerRequest, container_id),
    PB(2, INT64, StopContainerRequest, timeout));

PB_EMPTY(StopContainerResponse);

typedef struct { slice container_id; } RemoveContainerRequest;
PB_TABLE(RemoveContainerRequest, PB(1, STRING, RemoveContainerRequest, container_id));

PB_EMPTY(RemoveContainerResponse);

typedef struct {
    slice container_id; LinuxContainerResources *linux; WindowsContainerResources *windows;
    LIST(pb_pair) annotations;
} UpdateContainerResourcesRequest;
PB_TABLE(UpdateContainerResourcesRequest,
    PB(1, STRING, UpdateContainerResourcesRequest, container_id),
    PB_SUB(2, LinuxContainerResources, UpdateContainerResourcesRequest, linux),
    PB_SUB(3, WindowsContainerResources, UpdateContainerResourcesRequest, windows),
    PB_PAIRS(4, UpdateContainerResourcesRequest, annotations));

PB_EMPTY(UpdateContainerResourcesResponse);

typedef struct { slice container_id; } ReopenContainerLogRequest;
PB_TABLE(ReopenContainerLogRequest, PB(1, STRING, ReopenContainerLogRequest, container_id));

PB_EMPTY(ReopenContainerLogResponse);

/* -- containers as they are -------------------------------------------------------------------- */

/* A filter's state is a message of its own: absent is "any", and 0 is CREATED. */

enum ContainerState {
    ContainerState_CONTAINER_CREATED, ContainerState_CONTAINER_RUNNING,
    ContainerState_CONTAINER_EXITED, ContainerState_CONTAINER_UNKNOWN
};
PB_NAMES(ContainerState,
    "CONTAINER_CREATED", "CONTAINER_RUNNING", "CONTAINER_EXITED", "CONTAINER_UNKNOWN");

typedef struct { int32_t state; } ContainerStateValue;
PB_TABLE(ContainerStateValue, PB_NAMED(1, ContainerState, ContainerStateValue, state));

typedef struct {
    slice id; ContainerStateValue *state; slice pod_sandbox_id; LIST(pb_pair) label_selector;
} ContainerFilter;
PB_TABLE(ContainerFilter,
    PB(1, STRING, ContainerFilter, id),
    PB_SUB(2, ContainerStateValue, ContainerFilter, state),
    PB(3, STRING, ContainerFilter, pod_sandbox_id),
    PB_PAIRS(4, ContainerFilter, label_selector));

typedef struct { ContainerFilter *filter; } ListContainersRequest;
PB_TABLE(ListContainersRequest, PB_SUB(1, ContainerFilter, ListContainersRequest, filter));

typedef struct {
    slice id, pod_sandbox_id; ContainerMetadata *metadata; ImageSpec *image; slice image_ref;
    int32_t state; int64_t created_at; LIST(pb_pair) labels, annotations; slice image_id;
} Container;
PB_TABLE(Container,
    PB(1, STRING, Container, id),
    PB(2, STRING, Container, pod_sandbox_id),
    PB_SUB(3, ContainerMetadata, Container, metadata),
    PB_SUB(4, ImageSpec, Container, image),
    PB(5, STRING, Container, image_ref),
    PB_NAMED(6, ContainerState, Container, state),
    PB(7, INT64, Container, created_at),
    PB_PAIRS(8, Container, labels),
    PB_PAIRS(9, Container, annotations),
    PB(10, STRING, Container, image_id));

typedef struct { LIST(Container) containers; } ListContainersResponse;
PB_TABLE(ListContainersResponse, PB_SUBS(1, Container, ListContainersResponse, containers));

typedef struct { ContainerFilter *filter; } StreamContainersRequest;
PB_TABLE(StreamContainersRequest, PB_SUB(1, ContainerFilter, StreamContainersRequest, filter));

typedef struct { LIST(Container) containers; } StreamContainersResponse;
PB_TABLE(StreamContainersResponse, PB_SUBS(1, Container, StreamContainersResponse, containers));

typedef struct {
    LinuxContainerResources *linux; WindowsContainerResources *windows;
} ContainerResources;
PB_TABLE(ContainerResources,
    PB_SUB(1, LinuxContainerResources, ContainerResources, linux),
    PB_SUB(2, WindowsContainerResources, ContainerResources, windows));

typedef struct { int64_t uid, gid; LIST(int64_t) supplemental_groups; } LinuxContainerUser;
PB_TABLE(LinuxContainerUser,
    PB(1, INT64, LinuxContainerUser, uid),
    PB(2, INT64, LinuxContainerUser, gid),
    PB_LIST(3, INT64, LinuxContainerUser, supplemental_groups));

typedef struct { LinuxContainerUser *linux; } ContainerUser;
PB_TABLE(ContainerUser, PB_SUB(1, LinuxContainerUser, ContainerUser, linux));

typedef struct { slice container_id; bool verbose; } ContainerStatusRequest;
PB_TABLE(ContainerStatusRequest,
    PB(1, STRING, ContainerStatusRequest, container_id),
    PB(2, BOOL, ContainerStatusRequest, verbose));

typedef struct {
    slice id; ContainerMetadata *metadata; int32_t state;
    int64_t created_at, started_at, finished_at; int32_t exit_code; ImageSpec *image;
    slice image_ref, reason, message; LIST(pb_pair) labels, annotations; LIST(Mount) mounts;
    slice log_path; ContainerResources *resources; slice image_id; ContainerUser *user;
    int32_t stop_signal;
} ContainerStatus;
PB_TABLE(ContainerStatus,
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
    PB_NAMED(19, Signal, ContainerStatus, stop_signal));

typedef struct { ContainerStatus *status; LIST(pb_pair) info; } ContainerStatusResponse;
PB_TABLE(ContainerStatusResponse,
    PB_SUB(1, ContainerStatus, ContainerStatusResponse, status),
    PB_PAIRS(2, ContainerStatusResponse, info));

/* -- pods as they are -------------------------------------------------------------------------- */

/* status.linux.namespaces echoes what was asked for; if it does not, the kubelet kills the pod. */

enum PodSandboxState { PodSandboxState_SANDBOX_READY, PodSandboxState_SANDBOX_NOTREADY };
PB_NAMES(PodSandboxState, "SANDBOX_READY", "SANDBOX_NOTREADY");

typedef struct { int32_t state; } PodSandboxStateValue;
PB_TABLE(PodSandboxStateValue, PB_NAMED(1, PodSandboxState, PodSandboxStateValue, state));

typedef struct {
    slice id; PodSandboxStateValue *state; LIST(pb_pair) label_selector;
} PodSandboxFilter;
PB_TABLE(PodSandboxFilter,
    PB(1, STRING, PodSandboxFilter, id),
    PB_SUB(2, PodSandboxStateValue, PodSandboxFilter, state),
    PB_PAIRS(3, PodSandboxFilter, label_selector));

typedef struct { PodSandboxFilter *filter; } ListPodSandboxRequest;
PB_TABLE(ListPodSandboxRequest, PB_SUB(1, PodSandboxFilter, ListPodSandboxRequest, filter));

typedef struct {
    slice id; PodSandboxMetadata *metadata; int32_t state; int64_t created_at;
    LIST(pb_pair) labels, annotations; slice runtime_handler;
} PodSandbox;
PB_TABLE(PodSandbox,
    PB(1, STRING, PodSandbox, id),
    PB_SUB(2, PodSandboxMetadata, PodSandbox, metadata),
    PB_NAMED(3, PodSandboxState, PodSandbox, state),
    PB(4, INT64, PodSandbox, created_at),
    PB_PAIRS(5, PodSandbox, labels),
    PB_PAIRS(6, PodSandbox, annotations),
    PB(7, STRING, PodSandbox, runtime_handler));

typedef struct { LIST(PodSandbox) items; } ListPodSandboxResponse;
PB_TABLE(ListPodSandboxResponse, PB_SUBS(1, PodSandbox, ListPodSandboxResponse, items));

typedef struct { PodSandboxFilter *filter; } StreamPodSandboxesRequest;
PB_TABLE(StreamPodSandboxesRequest, PB_SUB(1, PodSandboxFilter, StreamPodSandboxesRequest, filter));

typedef struct { LIST(PodSandbox) pod_sandboxes; } StreamPodSandboxesResponse;
PB_TABLE(StreamPodSandboxesResponse,
    PB_SUBS(1, PodSandbox, StreamPodSandboxesResponse, pod_sandboxes));

typedef struct { slice ip; } PodIP;
PB_TABLE(PodIP, PB(1, STRING, PodIP, ip));

typedef struct { slice ip; LIST(PodIP) additional_ips; } PodSandboxNetworkStatus;
PB_TABLE(PodSandboxNetworkStatus,
    PB(1, STRING, PodSandboxNetworkStatus, ip),
    PB_SUBS(2, PodIP, PodSandboxNetworkStatus, additional_ips));

typedef struct { NamespaceOption *options; } Namespace;
PB_TABLE(Namespace, PB_SUB(2, NamespaceOption, Namespace, options));

typedef struct { Namespace *namespaces; } LinuxPodSandboxStatus;
PB_TABLE(LinuxPodSandboxStatus, PB_SUB(1, Namespace, LinuxPodSandboxStatus, namespaces));

typedef struct { slice pod_sandbox_id; bool verbose; } PodSandboxStatusRequest;
PB_TABLE(PodSandboxStatusRequest,
    PB(1, STRING, PodSandboxStatusRequest, pod_sandbox_id),
    PB(2, BOOL, PodSandboxStatusRequest, verbose));

typedef struct {
    slice id; PodSandboxMetadata *metadata; int32_t state; int64_t created_at;
    PodSandboxNetworkStatus *network; LinuxPodSandboxStatus *linux;
    LIST(pb_pair) labels, annotations; slice runtime_handler;
} PodSandboxStatus;
PB_TABLE(PodSandboxStatus,
    PB(1, STRING, PodSandboxStatus, id),
    PB_SUB(2, PodSandboxMetadata, PodSandboxStatus, metadata),
    PB_NAMED(3, PodSandboxState, PodSandboxStatus, state),
    PB(4, INT64, PodSandboxStatus, created_at),
    PB_SUB(5, PodSandboxNetworkStatus, PodSandboxStatus, network),
    PB_SUB(6, LinuxPodSandboxStatus, PodSandboxStatus, linux),
    PB_PAIRS(7, PodSandboxStatus, labels),
    PB_PAIRS(8, PodSandboxStatus, annotations),
    PB(9, STRING, PodSandboxStatus, runtime_handler));

typedef struct {
    PodSandboxStatus *status; LIST(pb_pair) info; LIST(ContainerStatus) containers_statuses;
    int64_t timestamp;
} PodSandboxStatusResponse;
PB_TABLE(PodSandboxStatusResponse,
    PB_SUB(1, PodSandboxStatus, PodSandboxStatusResponse, status),
    PB_PAIRS(2, PodSandboxStatusResponse, info),
    PB_SUBS(3, ContainerStatus, PodSandboxStatusResponse, containers_statuses),
    PB(4, INT64, PodSandboxStatusResponse, timestamp));

/* -- events ------------------------------------------------------------------------------------ */

/* One open call instead of a list of everything each second. */

PB_EMPTY(GetEventsRequest);

enum ContainerEventType {
    ContainerEventType_CONTAINER_CREATED_EVENT, ContainerEventType_CONTAINER_STARTED_EVENT,
    ContainerEventType_CONTAINER_STOPPED_EVENT, ContainerEventType_CONTAINER_DELETED_EVENT
};
PB_NAMES(ContainerEventType,
    "CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT",
    "CONTAINER_DELETED_EVENT");

typedef struct {
    slice container_id; int32_t container_event_type; int64_t created_at;
    PodSandboxStatus *pod_sandbox_status; LIST(ContainerStatus) containers_statuses;
} ContainerEventResponse;
PB_TABLE(ContainerEventResponse,
    PB(1, STRING, ContainerEventResponse, container_id),
    PB_NAMED(2, ContainerEventType, ContainerEventResponse, container_event_type),
    PB(3, INT64, ContainerEventResponse, created_at),
    PB_SUB(4, PodSandboxStatus, ContainerEventResponse, pod_sandbox_status),
    PB_SUBS(5, ContainerStatus, ContainerEventResponse, containers_statuses));

/* -- into a container -------------------------------------------------------------------------- */

/* ExecSync's output comes in the reply; the other three answer with a URL (chapter 22). */

typedef struct { slice container_id; LIST(slice) cmd; int64_t timeout; } ExecSyncRequest;
PB_TABLE(ExecSyncRequest,
    PB(1, STRING, ExecSyncRequest, container_id),
    PB_LIST(2, STRING, ExecSyncRequest, cmd),
    PB(3, INT64, ExecSyncRequest, timeout));

typedef struct { slice stdout, stderr; int32_t exit_code; } ExecSyncResponse;
PB_TABLE(ExecSyncResponse,
    PB(1, BYTES, ExecSyncResponse, stdout),
    PB(2, BYTES, ExecSyncResponse, stderr),
    PB(3, INT32, ExecSyncResponse, exit_code));

typedef struct {
    slice container_id; LIST(slice) cmd; bool tty, stdin, stdout, stderr;
} ExecRequest;
PB_TABLE(ExecRequest,
    PB(1, STRING, ExecRequest, container_id),
    PB_LIST(2, STRING, ExecRequest, cmd),
    PB(3, BOOL, ExecRequest, tty),
    PB(4, BOOL, ExecRequest, stdin),
    PB(5, BOOL, ExecRequest, stdout),
    PB(6, BOOL, ExecRequest, stderr));

typedef struct { slice url; } ExecResponse;
PB_TABLE(ExecResponse, PB(1, STRING, ExecResponse, url));

typedef struct { slice container_id; bool stdin, tty, stdout, stderr; } AttachRequest;
PB_TABLE(AttachRequest,
    PB(1, STRING, AttachRequest, container_id),
    PB(2, BOOL, AttachRequest, stdin),
    PB(3, BOOL, AttachRequest, tty),
    PB(4, BOOL, AttachRequest, stdout),
    PB(5, BOOL, AttachRequest, stderr));

typedef struct { slice url; } AttachResponse;
PB_TABLE(AttachResponse, PB(1, STRING, AttachResponse, url));

typedef struct { slice pod_sandbox_id; LIST(int32_t) port; } PortForwardRequest;
PB_TABLE(PortForwardRequest,
    PB(1, STRING, PortForwardRequest, pod_sandbox_id),
    PB_LIST(2, INT32, PortForwardRequest, port));

typedef struct { slice url; } PortForwardResponse;
PB_TABLE(PortForwardResponse, PB(1, STRING, PortForwardResponse, url));

/* -- images ------------------------------------------------------------------------------------ */

/* Chapter 13. An ImageStatus without an image says that there is none: no error. */

typedef struct { ImageSpec *image; } ImageFilter;
PB_TABLE(ImageFilter, PB_SUB(1, ImageSpec, ImageFilter, image));

typedef struct { ImageFilter *filter; } ListImagesRequest;
PB_TABLE(ListImagesRequest, PB_SUB(1, ImageFilter, ListImagesRequest, filter));

typedef struct {
    slice id; LIST(slice) repo_tags, repo_digests; uint64_t size; Int64Value *uid; slice username;
    ImageSpec *spec; bool pinned;
} Image;
PB_TABLE(Image,
    PB(1, STRING, Image, id),
    PB_LIST(2, STRING, Image, repo_tags),
    PB_LIST(3, STRING, Image, repo_digests),
    PB(4, UINT64, Image, size),
    PB_SUB(5, Int64Value, Image, uid),
    PB(6, STRING, Image, username),
    PB_SUB(7, ImageSpec, Image, spec),
    PB(8, BOOL, Image, pinned));

typedef struct { LIST(Image) images; } ListImagesResponse;
PB_TABLE(ListImagesResponse, PB_SUBS(1, Image, ListImagesResponse, images));

typedef struct { ImageFilter *filter; } StreamImagesRequest;
PB_TABLE(StreamImagesRequest, PB_SUB(1, ImageFilter, StreamImagesRequest, filter));

typedef struct { LIST(Image) images; } StreamImagesResponse;
PB_TABLE(StreamImagesResponse, PB_SUBS(1, Image, StreamImagesResponse, images));

typedef struct { ImageSpec *image; bool verbose; } ImageStatusRequest;
PB_TABLE(ImageStatusRequest,
    PB_SUB(1, ImageSpec, ImageStatusRequest, image),
    PB(2, BOOL, ImageStatusRequest, verbose));

typedef struct { Image *image; LIST(pb_pair) info; } ImageStatusResponse;
PB_TABLE(ImageStatusResponse,
    PB_SUB(1, Image, ImageStatusResponse, image),
    PB_PAIRS(2, ImageStatusResponse, info));

typedef struct {
    slice username, password, auth, server_address, identity_token, registry_token;
} AuthConfig;
PB_TABLE(AuthConfig,
    PB(1, STRING, AuthConfig, username),
    PB(2, STRING, AuthConfig, password),
    PB(3, STRING, AuthConfig, auth),
    PB(4, STRING, AuthConfig, server_address),
    PB(5, STRING, AuthConfig, identity_token),
    PB(6, STRING, AuthConfig, registry_token));

typedef struct {
    ImageSpec *image; AuthConfig *auth; PodSandboxConfig *sandbox_config;
} PullImageRequest;
PB_TABLE(PullImageRequest,
    PB_SUB(1, ImageSpec, PullImageRequest, image),
    PB_SUB(2, AuthConfig, PullImageRequest, auth),
    PB_SUB(3, PodSandboxConfig, PullImageRequest, sandbox_config));

typedef struct { slice image_ref; } PullImageResponse;
PB_TABLE(PullImageResponse, PB(1, STRING, PullImageResponse, image_ref));

typedef struct { ImageSpec *image; } RemoveImageRequest;
PB_TABLE(RemoveImageRequest, PB_SUB(1, ImageSpec, RemoveImageRequest, image));

PB_EMPTY(RemoveImageResponse);

typedef struct { slice mountpoint; } FilesystemIdentifier;
PB_TABLE(FilesystemIdentifier, PB(1, STRING, FilesystemIdentifier, mountpoint));

typedef struct {
    int64_t timestamp; FilesystemIdentifier *fs_id; UInt64Value *used_bytes, *inodes_used;
} FilesystemUsage;
PB_TABLE(FilesystemUsage,
    PB(1, INT64, FilesystemUsage, timestamp),
    PB_SUB(2, FilesystemIdentifier, FilesystemUsage, fs_id),
    PB_SUB(3, UInt64Value, FilesystemUsage, used_bytes),
    PB_SUB(4, UInt64Value, FilesystemUsage, inodes_used));

PB_EMPTY(ImageFsInfoRequest);

typedef struct {
    LIST(FilesystemUsage) image_filesystems, container_filesystems;
} ImageFsInfoResponse;
PB_TABLE(ImageFsInfoResponse,
    PB_SUBS(1, FilesystemUsage, ImageFsInfoResponse, image_filesystems),
    PB_SUBS(2, FilesystemUsage, ImageFsInfoResponse, container_filesystems));

/* -- statistics -------------------------------------------------------------------------------- */

/* Chapter 21. Nearly all figures are in messages of their own, so that "not known" is not 0. */

typedef struct { uint64_t Total; double Avg10, Avg60, Avg300; } PsiData;
PB_TABLE(PsiData,
    PB(1, UINT64, PsiData, Total),
    PB(2, DOUBLE, PsiData, Avg10),
    PB(3, DOUBLE, PsiData, Avg60),
    PB(4, DOUBLE, PsiData, Avg300));

typedef struct { PsiData *Full, *Some; } PsiStats;
PB_TABLE(PsiStats, PB_SUB(1, PsiData, PsiStats, Full), PB_SUB(2, PsiData, PsiStats, Some));

typedef struct {
    int64_t timestamp; UInt64Value *usage_core_nano_seconds, *usage_nano_cores; PsiStats *psi;
} CpuUsage;
PB_TABLE(CpuUsage,
    PB(1, INT64, CpuUsage, timestamp),
    PB_SUB(2, UInt64Value, CpuUsage, usage_core_nano_seconds),
    PB_SUB(3, UInt64Value, CpuUsage, usage_nano_cores),
    PB_SUB(4, PsiStats, CpuUsage, psi));

typedef struct {
    int64_t timestamp;
    UInt64Value *working_set_bytes, *available_bytes, *usage_bytes, *rss_bytes, *page_faults,
        *major_page_faults; PsiStats *psi;
} MemoryUsage;
PB_TABLE(MemoryUsage,
    PB(1, INT64, MemoryUsage, timestamp),
    PB_SUB(2, UInt64Value, MemoryUsage, working_set_bytes),
    PB_SUB(3, UInt64Value, MemoryUsage, available_bytes),
    PB_SUB(4, UInt64Value, MemoryUsage, usage_bytes),
    PB_SUB(5, UInt64Value, MemoryUsage, rss_bytes),
    PB_SUB(6, UInt64Value, MemoryUsage, page_faults),
    PB_SUB(7, UInt64Value, MemoryUsage, major_page_faults),
    PB_SUB(8, PsiStats, MemoryUsage, psi));

typedef struct {
    int64_t timestamp; UInt64Value *swap_available_bytes, *swap_usage_bytes;
} SwapUsage;
PB_TABLE(SwapUsage,
    PB(1, INT64, SwapUsage, timestamp),
    PB_SUB(2, UInt64Value, SwapUsage, swap_available_bytes),
    PB_SUB(3, UInt64Value, SwapUsage, swap_usage_bytes));

typedef struct { int64_t timestamp; PsiStats *psi; } IoUsage;
PB_TABLE(IoUsage, PB(1, INT64, IoUsage, timestamp), PB_SUB(2, PsiStats, IoUsage, psi));

typedef struct {
    slice id; ContainerMetadata *metadata; LIST(pb_pair) labels, annotations;
} ContainerAttributes;
PB_TABLE(ContainerAttributes,
    PB(1, STRING, ContainerAttributes, id),
    PB_SUB(2, ContainerMetadata, ContainerAttributes, metadata),
    PB_PAIRS(3, ContainerAttributes, labels),
    PB_PAIRS(4, ContainerAttributes, annotations));

typedef struct {
    ContainerAttributes *attributes; CpuUsage *cpu; MemoryUsage *memory;
    FilesystemUsage *writable_layer; SwapUsage *swap; IoUsage *io;
} ContainerStats;
PB_TABLE(ContainerStats,
    PB_SUB(1, ContainerAttributes, ContainerStats, attributes),
    PB_SUB(2, CpuUsage, ContainerStats, cpu),
    PB_SUB(3, MemoryUsage, ContainerStats, memory),
    PB_SUB(4, FilesystemUsage, ContainerStats, writable_layer),
    PB_SUB(5, SwapUsage, ContainerStats, swap),
    PB_SUB(6, IoUsage, ContainerStats, io));

typedef struct { slice container_id; } ContainerStatsRequest;
PB_TABLE(ContainerStatsRequest, PB(1, STRING, ContainerStatsRequest, container_id));

typedef struct { ContainerStats *stats; } ContainerStatsResponse;
PB_TABLE(ContainerStatsResponse, PB_SUB(1, ContainerStats, ContainerStatsResponse, stats));

typedef struct { slice id, pod_sandbox_id; LIST(pb_pair) label_selector; } ContainerStatsFilter;
PB_TABLE(ContainerStatsFilter,
    PB(1, STRING, ContainerStatsFilter, id),
    PB(2, STRING, ContainerStatsFilter, pod_sandbox_id),
    PB_PAIRS(3, ContainerStatsFilter, label_selector));

typedef struct { ContainerStatsFilter *filter; } ListContainerStatsRequest;
PB_TABLE(ListContainerStatsRequest,
    PB_SUB(1, ContainerStatsFilter, ListContainerStatsRequest, filter));

typedef struct { LIST(ContainerStats) stats; } ListContainerStatsResponse;
PB_TABLE(ListContainerStatsResponse, PB_SUBS(1, ContainerStats, ListContainerStatsResponse, stats));

typedef struct { ContainerStatsFilter *filter; } StreamContainerStatsRequest;
PB_TABLE(StreamContainerStatsRequest,
    PB_SUB(1, ContainerStatsFilter, StreamContainerStatsRequest, filter));

typedef struct { LIST(ContainerStats) container_stats; } StreamContainerStatsResponse;
PB_TABLE(StreamContainerStatsResponse,
    PB_SUBS(1, ContainerStats, StreamContainerStatsResponse, container_stats));

typedef struct {
    slice name; UInt64Value *rx_bytes, *rx_errors, *tx_bytes, *tx_errors;
} NetworkInterfaceUsage;
PB_TABLE(NetworkInterfaceUsage,
    PB(1, STRING, NetworkInterfaceUsage, name),
    PB_SUB(2, UInt64Value, NetworkInterfaceUsage, rx_bytes),
    PB_SUB(3, UInt64Value, NetworkInterfaceUsage, rx_errors),
    PB_SUB(4, UInt64Value, NetworkInterfaceUsage, tx_bytes),
    PB_SUB(5, UInt64Value, NetworkInterfaceUsage, tx_errors));

typedef struct {
    int64_t timestamp; NetworkInterfaceUsage *default_interface;
    LIST(NetworkInterfaceUsage) interfaces;
} NetworkUsage;
PB_TABLE(NetworkUsage,
    PB(1, INT64, NetworkUsage, timestamp),
    PB_SUB(2, NetworkInterfaceUsage, NetworkUsage, default_interface),
    PB_SUBS(3, NetworkInterfaceUsage, NetworkUsage, interfaces));

typedef struct { int64_t timestamp; UInt64Value *process_count; } ProcessUsage;
PB_TABLE(ProcessUsage,
    PB(1, INT64, ProcessUsage, timestamp),
    PB_SUB(2, UInt64Value, ProcessUsage, process_count));

typedef struct {
    CpuUsage *cpu; MemoryUsage *memory; NetworkUsage *network; ProcessUsage *process;
    LIST(ContainerStats) containers; IoUsage *io;
} LinuxPodSandboxStats;
PB_TABLE(LinuxPodSandboxStats,
    PB_SUB(1, CpuUsage, LinuxPodSandboxStats, cpu),
    PB_SUB(2, MemoryUsage, LinuxPodSandboxStats, memory),
    PB_SUB(3, NetworkUsage, LinuxPodSandboxStats, network),
    PB_SUB(4, ProcessUsage, LinuxPodSandboxStats, process),
    PB_SUBS(5, ContainerStats, LinuxPodSandboxStats, containers),
    PB_SUB(6, IoUsage, LinuxPodSandboxStats, io));

typedef struct {
    slice id; PodSandboxMetadata *metadata; LIST(pb_pair) labels, annotations;
} PodSandboxAttributes;
PB_TABLE(PodSandboxAttributes,
    PB(1, STRING, PodSandboxAttributes, id),
    PB_SUB(2, PodSandboxMetadata, PodSandboxAttributes, metadata),
    PB_PAIRS(3, PodSandboxAttributes, labels),
    PB_PAIRS(4, PodSandboxAttributes, annotations));

/* -- Windows statistics ------------------------------------------------------------------------ */

/* Never filled. */

typedef struct {
    int64_t timestamp; UInt64Value *usage_core_nano_seconds, *usage_nano_cores;
} WindowsCpuUsage;
PB_TABLE(WindowsCpuUsage,
    PB(1, INT64, WindowsCpuUsage, timestamp),
    PB_SUB(2, UInt64Value, WindowsCpuUsage, usage_core_nano_seconds),
    PB_SUB(3, UInt64Value, WindowsCpuUsage, usage_nano_cores));

typedef struct {
    int64_t timestamp;
    UInt64Value *working_set_bytes, *available_bytes, *page_faults, *commit_memory_bytes;
} WindowsMemoryUsage;
PB_TABLE(WindowsMemoryUsage,
    PB(1, INT64, WindowsMemoryUsage, timestamp),
    PB_SUB(2, UInt64Value, WindowsMemoryUsage, working_set_bytes),
    PB_SUB(3, UInt64Value, WindowsMemoryUsage, available_bytes),
    PB_SUB(4, UInt64Value, WindowsMemoryUsage, page_faults),
    PB_SUB(5, UInt64Value, WindowsMemoryUsage, commit_memory_bytes));

typedef struct {
    int64_t timestamp; FilesystemIdentifier *fs_id; UInt64Value *used_bytes;
} WindowsFilesystemUsage;
PB_TABLE(WindowsFilesystemUsage,
    PB(1, INT64, WindowsFilesystemUsage, timestamp),
    PB_SUB(2, FilesystemIdentifier, WindowsFilesystemUsage, fs_id),
    PB_SUB(3, UInt64Value, WindowsFilesystemUsage, used_bytes));

typedef struct {
    ContainerAttributes *attributes; WindowsCpuUsage *cpu; WindowsMemoryUsage *memory;
    WindowsFilesystemUsage *writable_layer;
} WindowsContainerStats;
PB_TABLE(WindowsContainerStats,
    PB_SUB(1, ContainerAttributes, WindowsContainerStats, attributes),
    PB_SUB(2, WindowsCpuUsage, WindowsContainerStats, cpu),
    PB_SUB(3, WindowsMemoryUsage, WindowsContainerStats, memory),
    PB_SUB(4, WindowsFilesystemUsage, WindowsContainerStats, writable_layer));

typedef struct {
    slice name; UInt64Value *rx_bytes, *rx_packets_dropped, *tx_bytes, *tx_packets_dropped;
} WindowsNetworkInterfaceUsage;
PB_TABLE(WindowsNetworkInterfaceUsage,
    PB(1, STRING, WindowsNetworkInterfaceUsage, name),
    PB_SUB(2, UInt64Value, WindowsNetworkInterfaceUsage, rx_bytes),
    PB_SUB(3, UInt64Value, WindowsNetworkInterfaceUsage, rx_packets_dropped),
    PB_SUB(4, UInt64Value, WindowsNetworkInterfaceUsage, tx_bytes),
    PB_SUB(5, UInt64Value, WindowsNetworkInterfaceUsage, tx_packets_dropped));

typedef struct {
    int64_t timestamp; WindowsNetworkInterfaceUsage *default_interface;
    LIST(WindowsNetworkInterfaceUsage) interfaces;
} WindowsNetworkUsage;
PB_TABLE(WindowsNetworkUsage,
    PB(1, INT64, WindowsNetworkUsage, timestamp),
    PB_SUB(2, WindowsNetworkInterfaceUsage, WindowsNetworkUsage, default_interface),
    PB_SUBS(3, WindowsNetworkInterfaceUsage, WindowsNetworkUsage, interfaces));

typedef struct { int64_t timestamp; UInt64Value *process_count; } WindowsProcessUsage;
PB_TABLE(WindowsProcessUsage,
    PB(1, INT64, WindowsProcessUsage, timestamp),
    PB_SUB(2, UInt64Value, WindowsProcessUsage, process_count));

typedef struct {
    WindowsCpuUsage *cpu; WindowsMemoryUsage *memory; WindowsNetworkUsage *network;
    WindowsProcessUsage *process; LIST(WindowsContainerStats) containers;
} WindowsPodSandboxStats;
PB_TABLE(WindowsPodSandboxStats,
    PB_SUB(1, WindowsCpuUsage, WindowsPodSandboxStats, cpu),
    PB_SUB(2, WindowsMemoryUsage, WindowsPodSandboxStats, memory),
    PB_SUB(3, WindowsNetworkUsage, WindowsPodSandboxStats, network),
    PB_SUB(4, WindowsProcessUsage, WindowsPodSandboxStats, process),
    PB_SUBS(5, WindowsContainerStats, WindowsPodSandboxStats, containers));

/* -- statistics of pods ------------------------------------------------------------------------ */

typedef struct {
    PodSandboxAttributes *attributes; LinuxPodSandboxStats *linux; WindowsPodSandboxStats *windows;
} PodSandboxStats;
PB_TABLE(PodSandboxStats,
    PB_SUB(1, PodSandboxAttributes, PodSandboxStats, attributes),
    PB_SUB(2, LinuxPodSandboxStats, PodSandboxStats, linux),
    PB_SUB(3, WindowsPodSandboxStats, PodSandboxStats, windows));

typedef struct { slice pod_sandbox_id; } PodSandboxStatsRequest;
PB_TABLE(PodSandboxStatsRequest, PB(1, STRING, PodSandboxStatsRequest, pod_sandbox_id));

typedef struct { PodSandboxStats *stats; } PodSandboxStatsResponse;
PB_TABLE(PodSandboxStatsResponse, PB_SUB(1, PodSandboxStats, PodSandboxStatsResponse, stats));

typedef struct { slice id; LIST(pb_pair) label_selector; } PodSandboxStatsFilter;
PB_TABLE(PodSandboxStatsFilter,
    PB(1, STRING, PodSandboxStatsFilter, id),
    PB_PAIRS(2, PodSandboxStatsFilter, label_selector));

typedef struct { PodSandboxStatsFilter *filter; } ListPodSandboxStatsRequest;
PB_TABLE(ListPodSandboxStatsRequest,
    PB_SUB(1, PodSandboxStatsFilter, ListPodSandboxStatsRequest, filter));

typedef struct { LIST(PodSandboxStats) stats; } ListPodSandboxStatsResponse;
PB_TABLE(ListPodSandboxStatsResponse,
    PB_SUBS(1, PodSandboxStats, ListPodSandboxStatsResponse, stats));

typedef struct { PodSandboxStatsFilter *filter; } StreamPodSandboxStatsRequest;
PB_TABLE(StreamPodSandboxStatsRequest,
    PB_SUB(1, PodSandboxStatsFilter, StreamPodSandboxStatsRequest, filter));

typedef struct { LIST(PodSandboxStats) pod_sandbox_stats; } StreamPodSandboxStatsResponse;
PB_TABLE(StreamPodSandboxStatsResponse,
    PB_SUBS(1, PodSandboxStats, StreamPodSandboxStatsResponse, pod_sandbox_stats));

/* -- metrics ----------------------------------------------------------------------------------- */

/* Prometheus' form: a descriptor names the labels once, a metric has their values in that order. */

typedef struct { slice name, help; LIST(slice) label_keys; } MetricDescriptor;
PB_TABLE(MetricDescriptor,
    PB(1, STRING, MetricDescriptor, name),
    PB(2, STRING, MetricDescriptor, help),
    PB_LIST(3, STRING, MetricDescriptor, label_keys));

PB_EMPTY(ListMetricDescriptorsRequest);

typedef struct { LIST(MetricDescriptor) descriptors; } ListMetricDescriptorsResponse;
PB_TABLE(ListMetricDescriptorsResponse,
    PB_SUBS(1, MetricDescriptor, ListMetricDescriptorsResponse, descriptors));

enum MetricType { MetricType_COUNTER, MetricType_GAUGE };
PB_NAMES(MetricType, "COUNTER", "GAUGE");

typedef struct {
    slice name; int64_t timestamp; int32_t metric_type; LIST(slice) label_values;
    UInt64Value *value;
} Metric;
PB_TABLE(Metric,
    PB(1, STRING, Metric, name),
    PB(2, INT64, Metric, timestamp),
    PB_NAMED(3, MetricType, Metric, metric_type),
    PB_LIST(4, STRING, Metric, label_values),
    PB_SUB(5, UInt64Value, Metric, value));

typedef struct { slice container_id; LIST(Metric) metrics; } ContainerMetrics;
PB_TABLE(ContainerMetrics,
    PB(1, STRING, ContainerMetrics, container_id),
    PB_SUBS(2, Metric, ContainerMetrics, metrics));

typedef struct {
    slice pod_sandbox_id; LIST(Metric) metrics; LIST(ContainerMetrics) container_metrics;
} PodSandboxMetrics;
PB_TABLE(PodSandboxMetrics,
    PB(1, STRING, PodSandboxMetrics, pod_sandbox_id),
    PB_SUBS(2, Metric, PodSandboxMetrics, metrics),
    PB_SUBS(3, ContainerMetrics, PodSandboxMetrics, container_metrics));

PB_EMPTY(ListPodSandboxMetricsRequest);

typedef struct { LIST(PodSandboxMetrics) pod_metrics; } ListPodSandboxMetricsResponse;
PB_TABLE(ListPodSandboxMetricsResponse,
    PB_SUBS(1, PodSandboxMetrics, ListPodSandboxMetricsResponse, pod_metrics));

PB_EMPTY(StreamPodSandboxMetricsRequest);

typedef struct { LIST(PodSandboxMetrics) pod_sandbox_metrics; } StreamPodSandboxMetricsResponse;
PB_TABLE(StreamPodSandboxMetricsResponse,
    PB_SUBS(1, PodSandboxMetrics, StreamPodSandboxMetricsResponse, pod_sandbox_metrics));

/* -- checkpoints ------------------------------------------------------------------------------- */

typedef struct { slice container_id, location; int64_t timeout; } CheckpointContainerRequest;
PB_TABLE(CheckpointContainerRequest,
    PB(1, STRING, CheckpointContainerRequest, container_id),
    PB(2, STRING, CheckpointContainerRequest, location),
    PB(3, INT64, CheckpointContainerRequest, timeout));

PB_EMPTY(CheckpointContainerResponse);

typedef struct {
    slice pod_sandbox_id, output_path; LIST(slice) container_ids; LIST(pb_pair) options;
} CheckpointPodRequest;
PB_TABLE(CheckpointPodRequest,
    PB(1, STRING, CheckpointPodRequest, pod_sandbox_id),
    PB(2, STRING, CheckpointPodRequest, output_path),
    PB_LIST(3, STRING, CheckpointPodRequest, container_ids),
    PB_PAIRS(4, CheckpointPodRequest, options));

PB_EMPTY(CheckpointPodResponse);

typedef struct {
    slice checkpoint_path; PodSandboxConfig *config; slice runtime_handler; LIST(pb_pair) options;
    LIST(ContainerConfig) container_configs;
} RestorePodRequest;
PB_TABLE(RestorePodRequest,
    PB(1, STRING, RestorePodRequest, checkpoint_path),
    PB_SUB(2, PodSandboxConfig, RestorePodRequest, config),
    PB(3, STRING, RestorePodRequest, runtime_handler),
    PB_PAIRS(4, RestorePodRequest, options),
    PB_SUBS(5, ContainerConfig, RestorePodRequest, container_configs));

typedef struct { slice name, container_id; } RestoredContainer;
PB_TABLE(RestoredContainer,
    PB(1, STRING, RestoredContainer, name),
    PB(2, STRING, RestoredContainer, container_id));

typedef struct {
    slice pod_sandbox_id; LIST(RestoredContainer) restored_containers;
} RestorePodResponse;
PB_TABLE(RestorePodResponse,
    PB(1, STRING, RestorePodResponse, pod_sandbox_id),
    PB_SUBS(2, RestoredContainer, RestorePodResponse, restored_containers));

/* -- the calls --------------------------------------------------------------------------------- */

/* A call's path is /service/name; `streams`: any number of replies. */
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

/* The same tables serve where krun talks to itself: records on disk are their JSON, what daemon and
 * monitor say to each other is their protobuf. A number once used is never given to another field,
 * because a new daemon meets old records and old monitors. */

/* Who a process runs as; groups: all that count, the primary one too. */
typedef struct { uint32_t uid, gid; LIST(uint32_t) groups; } ProcessUser;
PB_TABLE(ProcessUser,
    PB(1, UINT32, ProcessUser, uid),
    PB(2, UINT32, ProcessUser, gid),
    PB_LIST(3, UINT32, ProcessUser, groups));

/* setrlimit(2); resource is the kernel's RLIMIT_ number, RLIM_INFINITY is 2^64 - 1. */
typedef struct { int32_t resource; uint64_t soft, hard; } ProcessRlimit;
PB_TABLE(ProcessRlimit,
    PB(1, INT32, ProcessRlimit, resource),
    PB(2, UINT64, ProcessRlimit, soft),
    PB(3, UINT64, ProcessRlimit, hard));

/* Something mounted into a container. */
typedef struct {
    slice destination, source;          /* in the container; on the host, links resolved */
    bool readonly, recursive_readonly;  /* itself; itself and all that is mounted below */
    int32_t propagation;                /* MountPropagation */
    LIST(slice) layers;                 /* of an image volume, bottom first; then no source */
    slice sub_path;                     /* only this part of the image */
    bool noexec, nosuid, nodev;
    bool internal;                      /* ours (/etc/hosts), not asked for */
    LIST(slice) mount_options;          /* as they were asked for */
    bool file;                          /* the source is no directory */
} MountSpec;
PB_TABLE(MountSpec,
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
    PB(13, BOOL, MountSpec, file));

typedef struct { slice path, host_path, permissions; } DeviceSpec; /* permissions: some of "rwm" */
PB_TABLE(DeviceSpec,
    PB(1, STRING, DeviceSpec, path),
    PB(2, STRING, DeviceSpec, host_path),
    PB(3, STRING, DeviceSpec, permissions));

/* A container as its monitor starts it: defaults filled in, names looked up, values checked. */
typedef struct {
    slice id, pod_id, name;
    uint32_t attempt;
    LIST(slice) args, env;              /* argv; NAME=value */
    slice cwd;
    ProcessUser *user;
    bool tty, stdin, stdin_once;
    slice log_path, log_directory;      /* absolute; "" for no log */
    LIST(MountSpec) mounts;
    LIST(slice) layers;                 /* names below root/layers, bottom first */
    bool readonly_rootfs, privileged;
    uint64_t capabilities, ambient;     /* bit n is capability n: bounding, permitted, effective */
    bool no_new_privs;
    LIST(slice) masked_paths, readonly_paths;
    LIST(ProcessRlimit) rlimits;
    int64_t oom_score_adj;
    int32_t pid, ipc, network;          /* NamespaceMode */
    slice pid_target;                   /* a container's id, with NamespaceMode_TARGET */
    slice cgroup;                       /* below the cgroup2 root, no '/' in front */
    LinuxContainerResources *resources;
    LIST(DeviceSpec) devices;
    int32_t stop_signal;                /* the kernel's number */
    int64_t shm_size;                   /* bytes */
    uint32_t umask;
    bool ignore_missing_controllers;    /* --missing-controllers=ignore */
    slice seccomp_profile, apparmor_profile, selinux_label;
} ContainerSpec;
PB_TABLE(ContainerSpec,
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
    PB(38, STRING, ContainerSpec, selinux_label));

/* A pod as its monitor sets it up. */
typedef struct {
    slice id, hostname;
    int32_t network, pid, ipc;          /* NamespaceMode */
    LIST(pb_pair) sysctls;
    int64_t shm_size;                   /* bytes */
    slice cgroup;                       /* of the pause process, as in ContainerSpec; may be "" */
    bool privileged;
    slice netns;                        /* the file to pin it at; "" with the host's network */
    slice cgroup_parent;                /* holds the pod's cgroups, side by side */
} PodSpec;
PB_TABLE(PodSpec,
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
    PB(11, STRING, PodSpec, cgroup_parent));

/* One more process in a container; env is added to the container's. */
typedef struct {
    slice container_id;
    LIST(slice) args;
    bool tty;
    LIST(slice) env;
    bool stdin;
} ExecSpec;
PB_TABLE(ExecSpec,
    PB(1, STRING, ExecSpec, container_id),
    PB_LIST(2, STRING, ExecSpec, args),
    PB(3, BOOL, ExecSpec, tty),
    PB_LIST(4, STRING, ExecSpec, env),
    PB(5, BOOL, ExecSpec, stdin));

/* How a container ended. It is on disk before anyone is told. */
typedef struct {
    slice id;
    int32_t exit_code;                  /* 128 + n when signal n ended it */
    bool oom_killed;
    int64_t started_at, finished_at;    /* nanoseconds since 1970 */
    slice reason, message;              /* as ContainerStatus has them */
} ContainerExit;
PB_TABLE(ContainerExit,
    PB(1, STRING, ContainerExit, id),
    PB(2, INT32, ContainerExit, exit_code),
    PB(3, BOOL, ContainerExit, oom_killed),
    PB(4, INT64, ContainerExit, started_at),
    PB(5, INT64, ContainerExit, finished_at),
    PB(6, STRING, ContainerExit, reason),
    PB(7, STRING, ContainerExit, message));

/* A container as its monitor knows it. */
typedef struct {
    slice id;
    int32_t state, pid;                 /* ContainerState; in the host's PID namespace */
    int64_t started_at;
    ContainerExit *exit;                /* once it has ended */
} ContainerRun;
PB_TABLE(ContainerRun,
    PB(1, STRING, ContainerRun, id),
    PB_NAMED(2, ContainerState, ContainerRun, state),
    PB(3, INT32, ContainerRun, pid),
    PB(4, INT64, ContainerRun, started_at),
    PB_SUB(5, ContainerExit, ContainerRun, exit));

/* What the daemon asks of a monitor: the call, and of the members those that it names. */
enum monitor_call {
    MONITOR_SETUP = 1,                  /* pod */
    MONITOR_START,                      /* container; answers when its program runs, or why not */
    MONITOR_EXEC,                       /* exec, with three descriptors; answers at its exit */
    MONITOR_SIGNAL,                     /* container_id, signal */
    MONITOR_KILL,                       /* container_id: all its processes */
    MONITOR_REOPEN_LOG,                 /* container_id */
    MONITOR_WATCH,                      /* a reply now with all containers, then one a change */
    MONITOR_SHUTDOWN                    /* kill all, reap all, answer, exit */
};

typedef struct {
    uint32_t version;                   /* of this protocol; a monitor outlives its daemon */
    int32_t call;
    PodSpec *pod;
    ContainerSpec *container;
    ExecSpec *exec;
    slice container_id;
    int32_t signal;                     /* the kernel's number */
} MonitorRequest;
PB_TABLE(MonitorRequest,
    PB(1, UINT32, MonitorRequest, version),
    PB(2, INT32, MonitorRequest, call),
    PB_SUB(3, PodSpec, MonitorRequest, pod),
    PB_SUB(4, ContainerSpec, MonitorRequest, container),
    PB_SUB(5, ExecSpec, MonitorRequest, exec),
    PB(6, STRING, MonitorRequest, container_id),
    PB(7, INT32, MonitorRequest, signal));

typedef struct {
    int32_t code, sys;                  /* an error: gRPC code (0: none), errno, sentence */
    slice message;
    LIST(ContainerRun) containers;      /* of WATCH; of START: the one */
    int32_t exit_code, pid;             /* of EXEC; of START */
    uint32_t version;
    int32_t pause_pid;                  /* of SETUP, when containers share a PID namespace */
} MonitorReply;
PB_TABLE(MonitorReply,
    PB(1, INT32, MonitorReply, code),
    PB(2, INT32, MonitorReply, sys),
    PB(3, STRING, MonitorReply, message),
    PB_SUBS(4, ContainerRun, MonitorReply, containers),
    PB(5, INT32, MonitorReply, exit_code),
    PB(6, INT32, MonitorReply, pid),
    PB(7, UINT32, MonitorReply, version),
    PB(8, INT32, MonitorReply, pause_pid));

/* Of an image's configuration what a container is started by (OCI image-spec, config.md). */
typedef struct {
    slice user;
    LIST(slice) env, entrypoint, cmd;
    slice working_dir, stop_signal;     /* stop_signal: "SIGTERM", "15" */
    LIST(slice) volumes;                /* paths */
    LIST(pb_pair) labels;
} ImageConfig;
PB_TABLE(ImageConfig,
    PB(1, STRING, ImageConfig, user),
    PB_LIST(2, STRING, ImageConfig, env),
    PB_LIST(3, STRING, ImageConfig, entrypoint),
    PB_LIST(4, STRING, ImageConfig, cmd),
    PB(5, STRING, ImageConfig, working_dir),
    PB(6, STRING, ImageConfig, stop_signal),
    PB_LIST(7, STRING, ImageConfig, volumes),
    PB_PAIRS(8, ImageConfig, labels));

/* An image that is there, with all its layers, on disk. */
typedef struct {
    uint32_t version;
    slice id;                           /* sha256:<digest of the configuration> */
    LIST(slice) repo_tags, repo_digests;
    LIST(slice) layers;                 /* names below root/layers, bottom first */
    uint64_t size;                      /* bytes unpacked */
    ImageConfig *config;
    bool pinned;                        /* not for garbage collection */
    int64_t created_at;                 /* nanoseconds since 1970 */
    slice config_json, manifest_digest; /* config_json: as the registry sent it */
} ImageRecord;
PB_TABLE(ImageRecord,
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
    PB(11, STRING, ImageRecord, manifest_digest));

/* What a daemon that comes back must know of a pod. */
typedef struct {
    uint32_t version;
    slice id;
    int64_t created_at;                 /* nanoseconds since 1970 */
    int32_t state;                      /* PodSandboxState */
    PodSandboxConfig *config;           /* as it was asked for */
    slice runtime_handler;
    PodSpec *spec;                      /* what became of it */
    LIST(slice) ips;
    slice cni_result;                   /* JSON; CNI DEL wants it back */
    slice boot_id;                      /* another one now: the machine was started anew */
    LIST(slice) cgroups_made;           /* by us, so to be removed by us */
    int32_t monitor_pid;
    uint64_t monitor_start;             /* its start in ticks: a pid may be used again, proc(5) */
    bool network_up;                    /* ADD was tried, DEL has not succeeded */
    bool was_ready;                     /* its client was told of it: not to be undone */
} PodRecord;
PB_TABLE(PodRecord,
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
    PB(15, BOOL, PodRecord, was_ready));

/* And of a container; how far it got its monitor knows, or its ContainerExit. */
typedef struct {
    uint32_t version;
    slice id, pod_id;
    int64_t created_at;                 /* nanoseconds since 1970 */
    ContainerConfig *config;            /* as it was asked for */
    ContainerSpec *spec;                /* what became of it */
    slice image_ref, image_name, image_id;
} ContainerRecord;
PB_TABLE(ContainerRecord,
    PB(1, UINT32, ContainerRecord, version),
    PB(2, STRING, ContainerRecord, id),
    PB(3, STRING, ContainerRecord, pod_id),
    PB(4, INT64, ContainerRecord, created_at),
    PB_SUB(5, ContainerConfig, ContainerRecord, config),
    PB_SUB(6, ContainerSpec, ContainerRecord, spec),
    PB(7, STRING, ContainerRecord, image_ref),
    PB(8, STRING, ContainerRecord, image_name),
    PB(9, STRING, ContainerRecord, image_id));

/* -- krun's own service, /krun.v1.Krun: what CRI has no call for --------------------------------- */

typedef struct { slice path; } KrunLoadImageRequest; /* absolute, as the daemon sees it */
PB_TABLE(KrunLoadImageRequest, PB(1, STRING, KrunLoadImageRequest, path));

typedef struct { LIST(slice) names; } KrunLoadImageResponse;
PB_TABLE(KrunLoadImageResponse, PB_LIST(1, STRING, KrunLoadImageResponse, names));

/* == 10. HPACK and HTTP/2 ====================================================================
 *
 * HTTP/2 carries many exchanges (streams) over one connection as frames: 9 bytes of head (length,
 * type, flags, stream), then the payload. Header fields are compressed by HPACK: numbers that point
 * into a table of known fields, of which the newer part grows and shrinks at both ends alike. Each
 * stream and the connection as a whole have a window, the bytes that the receiver is ready for.
 *
 * This chapter knows no socket. Bytes that were read go into h2_feed, which tells its owner what
 * they mean through a table of functions (h2_events); bytes to be written gather in h2.out. A bad
 * peer loses its stream (h2_blame) or its connection (h2_fail), never more.
 *
 * Defined by  RFC 9113 (HTTP/2), RFC 7541 (HPACK)
 * Uses        1                        Gives  h2_init, h2_feed, h2_pump, h2_headers, h2_send, h2_reset
 * Bounds      a frame 16 KiB; a header block 32 KiB, 8 CONTINUATIONs, 16 KiB and 100 fields decoded;
 *             250 streams; 200 resets and 1000 frames that bring nothing in 10 s (THREATS T10-T20) */

/* -- HPACK: the tables ------------------------------------------------------------------------- */

/* RFC 7541, appendix A. Index 1 is the first row. */
static const struct { const char *name, *value; } hpack_static[] = {
    { ":authority", "" },           { ":method", "GET" },           { ":method", "POST" },
    { ":path", "/" },               { ":path", "/index.html" },     { ":scheme", "http" },
    { ":scheme", "https" },         { ":status", "200" },           { ":status", "204" },
    { ":status", "206" },           { ":status", "304" },           { ":status", "400" },
    { ":status", "404" },           { ":status", "500" },           { "accept-charset", "" },
    { "accept-encoding", "gzip, deflate" },                         { "accept-language", "" },
    { "accept-ranges", "" },        { "accept", "" },               { "access-control-allow-origin", "" },
    { "age", "" },                  { "allow", "" },                { "authorization", "" },
    { "cache-control", "" },        { "content-disposition", "" },  { "content-encoding", "" },
    { "content-language", "" },     { "content-length", "" },       { "content-location", "" },
    { "content-range", "" },        { "content-type", "" },         { "cookie", "" },
    { "date", "" },                 { "etag", "" },                 { "expect", "" },
    { "expires", "" },              { "from", "" },                 { "host", "" },
    { "if-match", "" },             { "if-modified-since", "" },    { "if-none-match", "" },
    { "if-range", "" },             { "if-unmodified-since", "" },  { "last-modified", "" },
    { "link", "" },                 { "location", "" },             { "max-forwards", "" },
    { "proxy-authenticate", "" },   { "proxy-authorization", "" },  { "range", "" },
    { "referer", "" },              { "refresh", "" },              { "retry-after", "" },
    { "server", "" },               { "set-cookie", "" },           { "strict-transport-security", "" },
    { "transfer-encoding", "" },    { "user-agent", "" },           { "vary", "" },
    { "via", "" },                  { "www-authenticate", "" },
};
/* The rows that krun itself writes. */
enum { HPACK_AUTHORITY = 1, HPACK_POST = 3, HPACK_PATH = 4, HPACK_HTTP = 6, HPACK_STATUS = 8,
       HPACK_CONTENT_TYPE = 31 };

/* The Huffman code of RFC 7541, appendix B, is canonical: codes of one length are consecutive, and
 * a longer code is greater. So the symbols in the order of their codes, and how many there are of
 * each length, say all that the appendix's 257 rows say. EOS, the last code, is not a symbol. */
static const uint8_t hpack_symbols[] = {
    "012aceiost"                                                         /*  5 bits */
    " %-./3456789=A_bdfghlmnpru"                                         /*  6 */
    ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"                                   /*  7 */
    "&*,;XZ" "!\"()?" "'+|" "#>" "\0$@[]~" "^}" "<`{"                    /*  8, 10 to 15 */
    "\\\303\320" "\200\202\203\242\270\302\340\342"                      /* 19, 20 */
    "\231\241\247\254\260\261\263\321\330\331\343\345\346"               /* 21 */
    "\201\204\205\206\210\222\232\234\240\243\244\251\252\255\262\265\271\272\273\275\276\304\306\344"
    "\350\351"                                                           /* 22 */
    "\1\207\211\212\213\214\215\217\223\225\226\227\230\233\235\236\245\246\250\256\257\264\266\267"
    "\274\277\305\347\357"                                               /* 23 */
    "\11\216\220\221\224\237\253\316\327\341\354\355" "\307\317\352\353" /* 24, 25 */
    "\300\301\310\311\312\315\322\325\332\333\356\360\362\363\377"       /* 26 */
    "\313\314\323\324\326\335\336\337\361\364\365\366\367\370\372\373\374\375\376" /* 27 */
    "\2\3\4\5\6\7\10\13\14\16\17\20\21\22\23\24\25\27\30\31\32\33\34\35\36\37\177\334\371" /* 28 */
    "\12\15\26"                                                          /* 30 */
};
enum { HPACK_SHORTEST = 5, HPACK_LONGEST = 30 };
static const uint8_t hpack_lengths[HPACK_LONGEST + 1] = {
    [5] = 10, [6] = 26, [7] = 32, [8] = 6, [10] = 5, [11] = 3, [12] = 2, [13] = 6, [14] = 2, [15] = 3,
    [19] = 3, [20] = 8, [21] = 13, [22] = 26, [23] = 29, [24] = 12, [25] = 4, [26] = 15, [27] = 19,
    [28] = 29, [30] = 4
};

/* A dynamic table may be 4096 bytes, each field counted with 32 more (RFC 7541, section 4.1): at
 * most 128 fields. The arrays are twice as long: new fields go behind the others, and only when the
 * end is reached all that live are moved to the front, so a byte received moves O(1) bytes. */
enum { HPACK_TABLE = 4096, HPACK_OVERHEAD = 32, HPACK_ENTRIES = HPACK_TABLE / HPACK_OVERHEAD };
typedef struct {
    struct { uint16_t at, name, value; } entry[2 * HPACK_ENTRIES]; /* `at`: where in text; lengths */
    uint8_t text[2 * HPACK_TABLE];
    size_t first, end;  /* entry[first] is the oldest, entry[end - 1] the newest */
    size_t text_end;
    size_t size, limit; /* as the RFC counts; limit is what the peer chose, at most HPACK_TABLE */
} hpack_table;

static void hpack_init(hpack_table *t)
{
    t->first = t->end = t->text_end = t->size = 0;
    t->limit = HPACK_TABLE;
}

static void hpack_evict(hpack_table *t, size_t most) /* the oldest go until size <= most */
{
    for (; t->size > most; t->first++)
        t->size -= (size_t)t->entry[t->first].name + t->entry[t->first].value + HPACK_OVERHEAD;
}

static void hpack_compact(hpack_table *t)
{
    size_t n = t->end - t->first, from = n ? t->entry[t->first].at : t->text_end;
    memmove(t->text, t->text + from, t->text_end - from);
    memmove(t->entry, t->entry + t->first, n * sizeof t->entry[0]);
    for (size_t i = 0; i < n; i++) t->entry[i].at = (uint16_t)(t->entry[i].at - from);
    t->first = 0;
    t->end = n;
    t->text_end -= from;
}

/* Neither slice may lie in the table's own text. A field too large for the table empties it, which
 * is no error (RFC 7541, section 4.4). */
static void hpack_add(hpack_table *t, slice name, slice value)
{
    size_t need = name.n + value.n + HPACK_OVERHEAD;
    hpack_evict(t, need <= t->limit ? t->limit - need : 0);
    if (need > t->limit) return;
    if (t->end == COUNT(t->entry) || sizeof t->text - t->text_end < name.n + value.n) hpack_compact(t);
    t->entry[t->end].at = (uint16_t)t->text_end;
    t->entry[t->end].name = (uint16_t)name.n;
    t->entry[t->end++].value = (uint16_t)value.n;
    if (name.n) memcpy(t->text + t->text_end, name.p, name.n);
    if (value.n) memcpy(t->text + t->text_end + name.n, value.p, value.n);
    t->text_end += name.n + value.n;
    t->size += need;
}

/* The field of this index: first the static rows, then ours, newest first. */
static bool hpack_get(const hpack_table *t, size_t index, slice *name, slice *value)
{
    size_t back = index - COUNT(hpack_static);
    if (index == 0 || (index > COUNT(hpack_static) && back > t->end - t->first)) return false;
    if (index <= COUNT(hpack_static)) {
        *name = slice_of(hpack_static[index - 1].name);
        *value = slice_of(hpack_static[index - 1].value);
        return true;
    }
    size_t i = t->end - back;
    *name = (slice){ t->text + t->entry[i].at, t->entry[i].name };
    *value = (slice){ name->p + name->n, t->entry[i].value };
    return true;
}

/* -- HPACK: reading ---------------------------------------------------------------------------- */

/* An integer whose first `bits` bits are in the next byte (RFC 7541, section 5.1). Four more bytes
 * hold any number that can be right here; a fifth is refused, so nothing can overflow. */
static bool hpack_int(slice *in, unsigned bits, size_t *out)
{
    slice byte;
    size_t mask = ((size_t)1 << bits) - 1;
    if (!slice_take(in, 1, &byte)) return false;
    *out = byte.p[0] & mask;
    if (*out < mask) return true;
    for (unsigned shift = 0; shift < 28; shift += 7) {
        if (!slice_take(in, 1, &byte)) return false;
        *out += (size_t)(byte.p[0] & 0x7F) << shift;
        if (!(byte.p[0] & 0x80)) return true;
    }
    return false;
}

/* The symbol at the front of `window`, 32 bits of code, left-aligned; its length in *bits. -1: EOS,
 * which must not occur. `code` is the first code of each length, at that length. */
static int hpack_symbol(uint32_t window, unsigned *bits)
{
    uint32_t code = 0;
    size_t before = 0;
    for (unsigned n = HPACK_SHORTEST; n <= HPACK_LONGEST; n++, code <<= 1) {
        uint32_t nth = (window >> (32 - n)) - code;
        if (nth < hpack_lengths[n]) {
            *bits = n;
            return before + nth < 256 ? hpack_symbols[before + nth] : -1;
        }
        code += hpack_lengths[n];
        before += hpack_lengths[n];
    }
    return -1;
}

/* Decodes `in`, writes at most `cap` bytes and returns how many it would be, or -1: EOS, or an end
 * that is not the beginning of EOS (ones) of less than 8 bits (RFC 7541, section 5.2). */
static ssize_t hpack_huffman(slice in, uint8_t *out, size_t cap)
{
    uint64_t pending = 0; /* `have` bits of code, at the top */
    unsigned have = 0, bits = 0;
    ssize_t n = 0;
    for (;;) {
        for (; have <= 56 && in.n; have += 8, in = (slice){ in.p + 1, in.n - 1 })
            pending |= (uint64_t)in.p[0] << (56 - have);
        uint64_t padded = have < 64 ? pending | UINT64_MAX >> have : pending;
        if (have < 8 && padded == UINT64_MAX) return n; /* only padding is left */
        int symbol = hpack_symbol((uint32_t)(padded >> 32), &bits);
        if (symbol < 0 || bits > have) return -1;
        if ((size_t)n < cap) out[n] = (uint8_t)symbol;
        n++;
        pending <<= bits;
        have -= bits;
    }
}

/* A string (RFC 7541, section 5.2): as it stands it is borrowed from the input, a Huffman-coded one
 * is decoded into `room`. One longer than that is cut: it breaks the header list's limit anyhow. */
enum { HPACK_STRING = 16 * KIB };
static bool hpack_string(slice *in, uint8_t room[HPACK_STRING], slice *out)
{
    size_t n;
    bool huffman = in->n && in->p[0] & 0x80;
    if (!hpack_int(in, 7, &n) || !slice_take(in, n, out)) return false;
    if (!huffman) return true;
    ssize_t length = hpack_huffman(*out, room, HPACK_STRING);
    *out = (slice){ room, MIN((size_t)length, (size_t)HPACK_STRING) };
    return length >= 0;
}

/* Is given each field; both slices end with the call. */
typedef void hpack_sink(void *user, slice name, slice value);

/* A field that does not stand in a table, or only its name: 6 bits of index if it is to be added
 * to the table, else 4 (RFC 7541, section 6.2). */
static bool hpack_literal(hpack_table *t, slice *in, hpack_sink *sink, void *user)
{
    uint8_t name_room[HPACK_STRING], value_room[HPACK_STRING];
    bool add = in->p[0] & 0x40;
    size_t index;
    slice name = { 0 }, value = { 0 };
    if (!hpack_int(in, add ? 6 : 4, &index)) return false;
    if (index && !hpack_get(t, index, &name, &value)) return false;
    if (!index && !hpack_string(in, name_room, &name)) return false;
    if (index && add) { /* adding may drop the entry that the name stands in (section 4.4) */
        memcpy(name_room, name.p, name.n);
        name.p = name_room;
    }
    if (!hpack_string(in, value_room, &value)) return false;
    sink(user, name, value);
    if (add) hpack_add(t, name, value);
    return true;
}

/* Decodes a whole header block. False: it breaks RFC 7541; the two tables may differ from now on,
 * and the connection with them. */
static bool hpack_decode(hpack_table *t, slice in, hpack_sink *sink, void *user)
{
    slice name, value;
    size_t n;
    for (bool fields = false; in.n; fields = true) {
        uint8_t first = in.p[0];
        if (first & 0x80) {
            if (!hpack_int(&in, 7, &n) || !hpack_get(t, n, &name, &value)) return false;
            sink(user, name, value);
        } else if ((first & 0xE0) == 0x20) { /* a new size, only before the first field (4.2) */
            if (fields || !hpack_int(&in, 5, &n) || n > HPACK_TABLE) return false;
            hpack_evict(t, t->limit = n);
            fields = false;
            continue;
        } else if (!hpack_literal(t, &in, sink, user)) {
            return false;
        }
    }
    return true;
}

/* -- HPACK: writing ---------------------------------------------------------------------------- */

/* We point into the static table and send the rest as it is: replies are a few dozen bytes, and a
 * table that we never fill needs no bookkeeping when the peer shrinks it. */
static void hpack_put_int(buf *out, uint8_t first, unsigned bits, size_t value)
{
    size_t mask = ((size_t)1 << bits) - 1;
    buf_byte(out, (uint8_t)(first | MIN(value, mask)));
    if (value < mask) return;
    for (value -= mask; value > 0x7F; value >>= 7) buf_byte(out, (uint8_t)(value | 0x80));
    buf_byte(out, (uint8_t)value);
}

static void hpack_put_indexed(buf *out, size_t index) { hpack_put_int(out, 0x80, 7, index); }

static void hpack_put_string(buf *out, slice s)
{
    hpack_put_int(out, 0, 7, s.n);
    buf_slice(out, s);
}

static void hpack_put_named(buf *out, size_t name_index, slice value)
{
    hpack_put_int(out, 0, 4, name_index);
    hpack_put_string(out, value);
}

static void hpack_put(buf *out, const char *name, slice value)
{
    buf_byte(out, 0);
    hpack_put_string(out, slice_of(name));
    hpack_put_string(out, value);
}

/* -- HTTP/2: names and limits ------------------------------------------------------------------ */

enum h2_type { H2_DATA, H2_HEADERS_FRAME, H2_PRIORITY, H2_RST_STREAM, H2_SETTINGS, H2_PUSH_PROMISE,
               H2_PING, H2_GOAWAY, H2_WINDOW_UPDATE, H2_CONTINUATION };
enum { H2_END_STREAM = 1, H2_ACK = 1, H2_END_HEADERS = 4, H2_PADDED = 8, H2_HAS_PRIORITY = 32 };
/* RFC 9113, section 7. */
enum h2_code { H2_NO_ERROR, H2_PROTOCOL_ERROR, H2_INTERNAL_ERROR, H2_FLOW_CONTROL_ERROR,
               H2_SETTINGS_TIMEOUT, H2_STREAM_CLOSED, H2_FRAME_SIZE_ERROR, H2_REFUSED_STREAM,
               H2_CANCEL, H2_COMPRESSION_ERROR, H2_CONNECT_ERROR, H2_ENHANCE_YOUR_CALM };
/* RFC 9113, section 6.5.2. */
enum { H2_SET_TABLE_SIZE = 1, H2_SET_PUSH, H2_SET_STREAMS, H2_SET_WINDOW, H2_SET_FRAME, H2_SET_LIST };

enum {
    H2_HEAD = 9,
    H2_FRAME_MAX = 16384,         /* the least that may be a limit, and ours both ways */
    H2_STREAMS = 250,
    H2_FIRST_WINDOW = 65535,      /* before any SETTINGS and WINDOW_UPDATE */
    H2_STREAM_WINDOW = 1 * MIB,   /* what we let a peer send ahead: a unix socket's turn takes 50 us */
    H2_CONN_WINDOW = 4 * MIB,
    H2_BLOCK_MAX = 32 * KIB, H2_CONTINUATIONS = 8,
    H2_LIST_MAX = 16 * KIB, H2_FIELDS_MAX = 100,
    H2_OUT_FULL = 64 * KIB,       /* no more DATA is framed, and its owner stops reading */
    H2_RESETS_MAX = 200, H2_IDLE_FRAMES_MAX = 1000,
    H2_BUCKETS = 64, H2_FORGOTTEN = 32
};
#define H2_WINDOW_MAX INT64_C(0x7FFFFFFF)
#define H2_ID_MAX UINT32_C(0x7FFFFFFF)
#define H2_BUDGET_TIME (10 * NS_PER_SEC)
static const char h2_preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/* A stream's life as RFC 9113, section 5.1, figure 2 has it (nobody pushes here). HEADERS are those
 * that come from the peer, and for a client also its own that open the stream.
 *   IDLE --headers--> OPEN --their end--> THEY_ENDED --our end--> CLOSED
 *                       \---our end----> WE_ENDED --their end---/        a reset closes any */
enum h2_state { H2_ILLEGAL, H2_IDLE, H2_OPEN, H2_THEY_ENDED, H2_WE_ENDED, H2_CLOSED, H2_STATES };
enum h2_event { H2_HEADERS, H2_THEIR_END, H2_OUR_END, H2_RESET, H2_EVENTS };
static const uint8_t h2_next[H2_STATES][H2_EVENTS] = {
    /*                  HEADERS      THEIR_END      OUR_END      RESET */
    [H2_IDLE]       = { H2_OPEN,     H2_ILLEGAL,    H2_ILLEGAL,  H2_ILLEGAL },
    [H2_OPEN]       = { H2_OPEN,     H2_THEY_ENDED, H2_WE_ENDED, H2_CLOSED },
    [H2_THEY_ENDED] = { H2_ILLEGAL,  H2_ILLEGAL,    H2_CLOSED,   H2_CLOSED },
    [H2_WE_ENDED]   = { H2_WE_ENDED, H2_CLOSED,     H2_ILLEGAL,  H2_CLOSED },
    [H2_CLOSED]     = { H2_ILLEGAL,  H2_ILLEGAL,    H2_ILLEGAL,  H2_CLOSED },
};

/* One exchange. It belongs to its connection; `owner` is whoever answers or asks. */
typedef struct h2_stream {
    struct h2 *conn;
    void *owner;
    uint32_t id;
    uint8_t state;                     /* enum h2_state; only h2_move changes it */
    bool had_headers;                  /* the next header block is trailers */
    bool ending;                       /* the frame in hand is the peer's last */
    bool ends;                         /* the last byte of `out` is the last of ours */
    bool queued;                       /* in conn->sending: has bytes and a window for them */
    int64_t send_window, recv_window;  /* the first can be negative (RFC 9113, section 6.9.2) */
    buf out;                           /* DATA to be framed; the first `sent` bytes have been */
    size_t sent;
    int64_t progress;                  /* when bytes last went either way, monotonic ns */
    struct h2_stream *in_bucket;
    struct h2_stream *next, *prev;     /* in conn->sending; next also in conn->dead */
} h2_stream;

/* What the owner of a connection is told, in the order of the wire. Each may answer or reset the
 * stream at once; none may destroy the connection. */
typedef struct {
    bool (*open)(h2_stream *);    /* the peer opened it; false refuses it: next is `closed` */
    void (*field)(h2_stream *, slice name, slice value);
    void (*headers)(h2_stream *, bool too_large); /* all fields told (or not all: too large), all valid */
    void (*data)(h2_stream *, slice bytes);
    void (*end)(h2_stream *);     /* the peer has said all */
    void (*drained)(h2_stream *); /* all that h2_send was given has been framed */
    void (*closed)(h2_stream *, uint32_t code); /* last word; the code of a reset, else 0 */
    void (*ping_acked)(struct h2 *);
} h2_events;

/* How many events of a kind the peer has had in the running ten seconds. */
typedef struct { int64_t since; unsigned n; } h2_budget;

typedef struct h2 {
    const h2_events *events;
    void *owner;
    int64_t now;             /* monotonic ns; the owner sets it before h2_feed and h2_pump */
    bool client;
    bool greeted;            /* the preface (at a server) and the first SETTINGS are here */
    bool failed;             /* GOAWAY with an error is in `out`: write it, then close */
    bool shrink_table;       /* the next header block must begin with the table's new size */
    size_t preface;          /* how many of its bytes have come */
    uint32_t last_id;        /* the newest stream */
    uint32_t refuse_above;   /* we have announced that younger streams are not served */
    uint32_t peer_last_id;   /* and so has the peer, of ours */
    int64_t send_window, recv_window, first_window; /* the last: what the peer grants a new stream */
    size_t nstreams;
    h2_stream *bucket[H2_BUCKETS]; /* by id */
    h2_stream *sending;      /* a ring; each gets a frame in its turn */
    h2_stream *dead;         /* closed in this round, freed at its end */
    buf out;
    buf block;               /* a header block that goes on in CONTINUATION frames, of block_id */
    uint32_t block_id;
    uint8_t block_flags;
    unsigned block_parts;
    uint32_t forgotten[H2_FORGOTTEN]; /* streams that we reset: what is still under way is no crime */
    unsigned nforgotten;
    h2_budget resets, idle_frames;
    hpack_table table;
} h2;

typedef struct { uint8_t type, flags; uint32_t id; slice payload; } h2_frame;

/* -- HTTP/2: writing frames -------------------------------------------------------------------- */

static uint32_t h2_get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void h2_set32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void h2_put_head(h2 *h, size_t n, enum h2_type type, unsigned flags, uint32_t id)
{
    uint8_t head[H2_HEAD] = { (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n, (uint8_t)type, (uint8_t)flags };
    h2_set32(head + 5, id);
    buf_add(&h->out, head, sizeof head);
}

static void h2_put(h2 *h, enum h2_type type, unsigned flags, uint32_t id, slice payload)
{
    h2_put_head(h, payload.n, type, flags, id);
    buf_slice(&h->out, payload);
}

static void h2_put_u32(h2 *h, enum h2_type type, uint32_t id, uint32_t value)
{
    uint8_t bytes[4];
    h2_set32(bytes, value);
    h2_put(h, type, 0, id, (slice){ bytes, sizeof bytes });
}

static void h2_put_goaway(h2 *h, uint32_t last_id, enum h2_code code, const char *why)
{
    uint8_t bytes[8];
    h2_set32(bytes, last_id);
    h2_set32(bytes + 4, code);
    h2_put_head(h, sizeof bytes + strlen(why), H2_GOAWAY, 0, 0);
    buf_add(&h->out, bytes, sizeof bytes);
    buf_str(&h->out, why);
}

/* The connection is lost (RFC 9113, section 5.4.1): says why, and reads no more. */
static void h2_fail(h2 *h, enum h2_code code, const char *why)
{
    if (h->failed) return;
    log_debug("http2: connection error %d: %s", code, why);
    h2_put_goaway(h, h->last_id, code, why);
    h->failed = true;
}

/* Counts what a peer may do often, but not without end: rapid resets (CVE-2023-44487), resets that
 * it makes us send (CVE-2025-8671), floods of frames that cost it nothing (CVE-2019-9512 ff.). */
static void h2_spend(h2 *h, h2_budget *b, unsigned most, const char *what)
{
    if (h->now - b->since > H2_BUDGET_TIME) *b = (h2_budget){ h->now, 0 };
    if (++b->n > most) h2_fail(h, H2_ENHANCE_YOUR_CALM, what);
}

static void h2_spend_reset(h2 *h) { h2_spend(h, &h->resets, H2_RESETS_MAX, "too many resets"); }

static void h2_spend_idle(h2 *h)
{
    h2_spend(h, &h->idle_frames, H2_IDLE_FRAMES_MAX, "too many frames that bring nothing");
}

/* -- HTTP/2: streams --------------------------------------------------------------------------- */

static h2_stream *h2_find(const h2 *h, uint32_t id)
{
    h2_stream *s = h->bucket[id / 2 % H2_BUCKETS];
    while (s && s->id != id) s = s->in_bucket;
    return s;
}

/* What holds of a stream between any two calls. */
static void h2_check(const h2_stream *s)
{
    assert(s->state > H2_IDLE && s->state <= H2_CLOSED);
    assert(s->id % 2 == 1 && s->id <= s->conn->last_id);
    assert(s->send_window <= H2_WINDOW_MAX && s->recv_window <= H2_STREAM_WINDOW);
    assert(s->sent <= s->out.n);
    assert(!s->queued || (s->sent < s->out.n && s->send_window > 0));
    assert(s->state == H2_CLOSED ? !s->queued : h2_find(s->conn, s->id) == s);
    assert(s->sent == s->out.n || s->state == H2_OPEN || s->state == H2_THEY_ENDED || s->state == H2_CLOSED);
}

static void h2_unqueue(h2_stream *s)
{
    h2 *h = s->conn;
    if (!s->queued) return;
    s->queued = false;
    if (h->sending == s) h->sending = s->next == s ? NULL : s->next;
    s->prev->next = s->next;
    s->next->prev = s->prev;
}

static void h2_queue(h2_stream *s) /* at the end of the ring, if it has something that may go */
{
    h2 *h = s->conn;
    if (s->queued || s->sent == s->out.n || s->send_window <= 0) return;
    s->queued = true;
    if (!h->sending) h->sending = s->next = s->prev = s;
    s->next = h->sending;
    s->prev = h->sending->prev;
    s->prev->next = s;
    h->sending->prev = s;
}

static void h2_bury(h2_stream *s)
{
    h2 *h = s->conn;
    h2_unqueue(s);
    for (h2_stream **at = &h->bucket[s->id / 2 % H2_BUCKETS]; *at; at = &(*at)->in_bucket)
        if (*at == s) {
            *at = s->in_bucket;
            break;
        }
    h->nstreams--;
    s->next = h->dead;
    h->dead = s;
}

/* The one place where a stream changes its state. Callers have checked that the peer may do this,
 * so an illegal step is our own mistake. The memory of a closed stream lives until h2_sweep:
 * whoever is in the middle of one of its frames looks at `state` and stops. */
static void h2_move(h2_stream *s, enum h2_event event, uint32_t code)
{
    enum h2_state was = s->state, to = h2_next[was][event];
    assert(to != H2_ILLEGAL);
    s->state = (uint8_t)to;
    if (to == H2_CLOSED && was != H2_CLOSED) h2_bury(s);
    h2_check(s);
    if (to == H2_CLOSED && was != H2_CLOSED) s->conn->events->closed(s, code);
}

static void h2_sweep(h2 *h)
{
    for (h2_stream *s = h->dead, *next; s; s = next) {
        next = s->next;
        buf_free(&s->out);
        free(s);
    }
    h->dead = NULL;
}

static h2_stream *h2_new_stream(h2 *h, uint32_t id)
{
    h2_stream *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    *s = (h2_stream){ .conn = h, .id = id, .state = H2_IDLE, .send_window = h->first_window,
                      .recv_window = H2_STREAM_WINDOW, .progress = h->now };
    s->in_bucket = h->bucket[id / 2 % H2_BUCKETS];
    h->bucket[id / 2 % H2_BUCKETS] = s;
    h->nstreams++;
    return s;
}

static void h2_put_reset(h2 *h, uint32_t id, enum h2_code code)
{
    if (h->failed) return; /* GOAWAY is the last word */
    h2_put_u32(h, H2_RST_STREAM, id, code);
    h->forgotten[h->nforgotten++ % H2_FORGOTTEN] = id;
}

static bool h2_forgot(const h2 *h, uint32_t id)
{
    for (size_t i = 0; i < H2_FORGOTTEN; i++)
        if (h->forgotten[i] == id) return true;
    return false;
}

/* Ends a stream from our side, whatever it was doing. */
static void h2_reset(h2_stream *s, enum h2_code code)
{
    if (s->state == H2_CLOSED) return;
    h2_put_reset(s->conn, s->id, code);
    h2_move(s, H2_RESET, code);
}

/* The same when the peer has broken a rule: it counts like a reset of its own (CVE-2025-8671). */
static void h2_blame(h2_stream *s, enum h2_code code)
{
    h2_reset(s, code);
    h2_spend_reset(s->conn);
}

static bool h2_hears(const h2_stream *s) /* may the peer still send HEADERS or DATA on it? */
{
    return s->state == H2_OPEN || s->state == H2_WE_ENDED;
}

/* A stream of the right parity that has not been opened yet: nothing may come on it but HEADERS,
 * and PRIORITY, which means nothing any more. */
static bool h2_is_idle(const h2 *h, uint32_t id) { return id % 2 == 0 || id > h->last_id; }

/* -- HTTP/2: header blocks --------------------------------------------------------------------- */

/* What has been seen of one block. */
typedef struct { h2_stream *s; size_t bytes, count; unsigned pseudo; bool regular, bad, large; } h2_fields;

enum { H2_METHOD = 1, H2_SCHEME = 2, H2_PATH = 4, H2_AUTHORITY = 8, H2_STATUS = 16 };
static const struct { const char *name; unsigned bit; } h2_pseudo[] = {
    { ":method", H2_METHOD }, { ":scheme", H2_SCHEME }, { ":path", H2_PATH },
    { ":authority", H2_AUTHORITY }, { ":status", H2_STATUS },
};
/* Fields of HTTP/1's connections, which HTTP/2 forbids (RFC 9113, section 8.2.2). */
static const char *const h2_forbidden[] = { "connection", "keep-alive", "proxy-connection",
                                            "transfer-encoding", "upgrade" };

static unsigned h2_pseudo_bit(slice name)
{
    for (size_t i = 0; i < COUNT(h2_pseudo); i++)
        if (slice_is(name, h2_pseudo[i].name)) return h2_pseudo[i].bit;
    return 0;
}

/* RFC 9113, section 8.2.1: no upper case, no control or 8-bit character, a colon only in front. */
static bool h2_name_ok(slice name)
{
    for (size_t i = 0; i < name.n; i++) {
        uint8_t c = name.p[i];
        if (c <= ' ' || c >= 127 || (c >= 'A' && c <= 'Z') || (c == ':' && i > 0)) return false;
    }
    for (size_t i = 0; i < COUNT(h2_forbidden); i++)
        if (slice_is(name, h2_forbidden[i])) return false;
    return name.n > 0;
}

static bool h2_value_ok(slice name, slice value)
{
    if (slice_is(name, "te")) return slice_is(value, "trailers");
    return !slice_has(value, '\0') && !slice_has(value, '\r') && !slice_has(value, '\n');
}

static void h2_take_field(void *user, slice name, slice value)
{
    h2_fields *f = user;
    f->bytes += name.n + value.n + HPACK_OVERHEAD;
    f->count++;
    f->large = f->large || f->bytes > H2_LIST_MAX || f->count > H2_FIELDS_MAX;
    if (f->large || f->bad || !f->s) return; /* goes on only for the sake of the table */
    f->bad = !h2_name_ok(name) || !h2_value_ok(name, value);
    if (!f->bad && name.p[0] == ':') {
        unsigned bit = h2_pseudo_bit(name);
        f->bad = !bit || f->regular || f->pseudo & bit || (bit == H2_PATH && !value.n);
        f->pseudo |= bit;
    } else {
        f->regular = true;
    }
    if (!f->bad && f->s->state != H2_CLOSED) f->s->conn->events->field(f->s, name, value);
}

/* Whether the pseudo-fields are those of a request, a response or trailers (RFC 9113, 8.3). */
static bool h2_pseudo_ok(const h2_stream *s, unsigned seen)
{
    unsigned must = H2_METHOD | H2_SCHEME | H2_PATH;
    if (s->had_headers) return seen == 0;
    return s->conn->client ? seen == H2_STATUS : (seen & ~(unsigned)H2_AUTHORITY) == must;
}

/* A request: a new stream, or NULL if it is refused or not served any more. */
static h2_stream *h2_accept(h2 *h, uint32_t id)
{
    h->last_id = id;
    if (id > h->refuse_above) return NULL;
    h2_stream *s = h->nstreams < H2_STREAMS ? h2_new_stream(h, id) : NULL;
    if (s) h2_move(s, H2_HEADERS, 0);
    if (s && h->events->open(s)) return s;
    if (s) h2_reset(s, H2_REFUSED_STREAM); /* safe to try again: RFC 9113, section 8.7 */
    else h2_put_reset(h, id, H2_REFUSED_STREAM);
    h2_spend_idle(h);
    return NULL;
}

/* The stream that a header block is for. NULL: nobody, but it must still be decoded. */
static h2_stream *h2_block_stream(h2 *h, uint32_t id)
{
    h2_stream *s = h2_find(h, id);
    if (s && h2_hears(s)) return s;
    if (s) h2_blame(s, H2_STREAM_CLOSED);
    else if (!h->client && id > h->last_id) return h2_accept(h, id);
    else if (h2_forgot(h, id)) h2_spend_idle(h);
    else h2_fail(h, h2_is_idle(h, id) ? H2_PROTOCOL_ERROR : H2_STREAM_CLOSED, "HEADERS on a closed stream");
    return NULL;
}

static void h2_their_end(h2_stream *s, const h2_frame *f) /* after HEADERS or DATA have been told */
{
    if (!(f->flags & H2_END_STREAM) || s->state == H2_CLOSED) return;
    s->conn->events->end(s);
    if (s->state != H2_CLOSED) h2_move(s, H2_THEIR_END, 0);
}

/* A whole block; f->payload is nothing but that. */
static void h2_end_block(h2 *h, const h2_frame *f)
{
    h2_fields seen = { .s = h2_block_stream(h, f->id) };
    h2_stream *s = seen.s;
    if (s) s->ending = f->flags & H2_END_STREAM;
    if (!hpack_decode(&h->table, f->payload, h2_take_field, &seen)) {
        h2_fail(h, H2_COMPRESSION_ERROR, "header block");
        return;
    }
    if (!s || s->state == H2_CLOSED) return;
    bool pseudo_ok = seen.large || h2_pseudo_ok(s, seen.pseudo);
    if (seen.bad || !pseudo_ok || (s->had_headers && !s->ending)) {
        h2_blame(s, H2_PROTOCOL_ERROR);
        return;
    }
    s->progress = h->now;
    h->idle_frames.n = 0;
    bool trailers = s->had_headers;
    s->had_headers = true;
    if (!trailers || h->client) h->events->headers(s, seen.large);
    h2_their_end(s, f);
}

/* -- HTTP/2: a function for each type of frame ------------------------------------------------- */

/* Takes the padding off (RFC 9113, section 6.1). False: there is more of it than payload. */
static bool h2_unpad(const h2_frame *f, slice *data)
{
    slice length;
    *data = f->payload;
    if (!(f->flags & H2_PADDED)) return true;
    if (!slice_take(data, 1, &length) || length.p[0] > data->n) return false;
    data->n -= length.p[0];
    return true;
}

static void h2_window_room(h2 *h, h2_stream *s) /* gives back what has been used up, half a window at a time */
{
    if (h->recv_window < H2_CONN_WINDOW / 2) {
        h2_put_u32(h, H2_WINDOW_UPDATE, 0, (uint32_t)(H2_CONN_WINDOW - h->recv_window));
        h->recv_window = H2_CONN_WINDOW;
    }
    if (s && h2_hears(s) && !s->ending && s->recv_window < H2_STREAM_WINDOW / 2) {
        h2_put_u32(h, H2_WINDOW_UPDATE, s->id, (uint32_t)(H2_STREAM_WINDOW - s->recv_window));
        s->recv_window = H2_STREAM_WINDOW;
    }
}

/* DATA on a stream that cannot have any. */
static void h2_stray_data(h2 *h, h2_stream *s, uint32_t id)
{
    h2_window_room(h, NULL);
    if (s) {
        h2_blame(s, H2_STREAM_CLOSED);
    } else if (h2_forgot(h, id) || id > h->refuse_above) {
        h2_spend_idle(h);
    } else {
        h2_put_reset(h, id, H2_STREAM_CLOSED);
        h2_spend_reset(h);
    }
}

static void h2_take_data(h2 *h, const h2_frame *f)
{
    slice data;
    h2_stream *s = h2_find(h, f->id);
    if (h2_is_idle(h, f->id)) { h2_fail(h, H2_PROTOCOL_ERROR, "DATA on an idle stream"); return; }
    if (!h2_unpad(f, &data)) { h2_fail(h, H2_PROTOCOL_ERROR, "padding longer than its frame"); return; }
    h->recv_window -= (int64_t)f->payload.n; /* padding counts (RFC 9113, section 6.9.1) */
    if (h->recv_window < 0) { h2_fail(h, H2_FLOW_CONTROL_ERROR, "connection window"); return; }
    if (!s || !h2_hears(s)) { h2_stray_data(h, s, f->id); return; }
    s->recv_window -= (int64_t)f->payload.n;
    if (s->recv_window < 0) { h2_blame(s, H2_FLOW_CONTROL_ERROR); return; }
    s->ending = f->flags & H2_END_STREAM;
    if (data.n || s->ending) h->idle_frames.n = 0;
    else h2_spend_idle(h);
    if (data.n) {
        s->progress = h->now;
        h->events->data(s, data);
    }
    h2_window_room(h, s);
    h2_their_end(s, f);
}

static void h2_take_headers(h2 *h, const h2_frame *f)
{
    h2_frame block = *f;
    slice priority = { 0 };
    bool whole = h2_unpad(f, &block.payload);
    if (f->flags & H2_HAS_PRIORITY) whole = whole && slice_take(&block.payload, 5, &priority);
    if (!whole) { h2_fail(h, H2_PROTOCOL_ERROR, "HEADERS too short"); return; }
    if (f->id % 2 == 0) { h2_fail(h, H2_PROTOCOL_ERROR, "HEADERS on an even stream"); return; }
    if (f->flags & H2_END_HEADERS) {
        h2_end_block(h, &block);
    } else {
        buf_slice(&h->block, block.payload);
        h->block_id = f->id;
        h->block_flags = f->flags;
        h->block_parts = 0;
    }
    h2_stream *s = h2_find(h, f->id); /* depends on itself: RFC 7540, section 5.3.1 */
    if (s && priority.n && (h2_get32(priority.p) & H2_ID_MAX) == f->id) h2_blame(s, H2_PROTOCOL_ERROR);
}

/* Bounds are the number of frames and the bytes, not the peer's patience (CVE-2024-27316 ff.). */
static void h2_take_continuation(h2 *h, const h2_frame *f)
{
    if (!h->block_id) { h2_fail(h, H2_PROTOCOL_ERROR, "CONTINUATION of nothing"); return; }
    if (++h->block_parts > H2_CONTINUATIONS || h->block.n + f->payload.n > H2_BLOCK_MAX) {
        h2_fail(h, H2_ENHANCE_YOUR_CALM, "header block too long");
        return;
    }
    buf_slice(&h->block, f->payload);
    if (!(f->flags & H2_END_HEADERS)) return;
    h2_frame block = { H2_HEADERS_FRAME, h->block_flags, h->block_id, buf_view(&h->block) };
    if (h->block.oom) h2_fail(h, H2_INTERNAL_ERROR, "out of memory");
    else h2_end_block(h, &block);
    h->block_id = 0;
    buf_free(&h->block);
}

static void h2_take_priority(h2 *h, const h2_frame *f)
{
    h2_stream *s = h2_find(h, f->id);
    if (f->id == 0) { h2_fail(h, H2_PROTOCOL_ERROR, "PRIORITY of no stream"); return; }
    if (f->payload.n != 5) { h2_fail(h, H2_FRAME_SIZE_ERROR, "PRIORITY"); return; }
    h2_spend_idle(h);
    if (s && (h2_get32(f->payload.p) & H2_ID_MAX) == f->id) h2_blame(s, H2_PROTOCOL_ERROR);
}

static void h2_take_reset(h2 *h, const h2_frame *f)
{
    h2_stream *s = h2_find(h, f->id);
    if (f->payload.n != 4) { h2_fail(h, H2_FRAME_SIZE_ERROR, "RST_STREAM"); return; }
    if (h2_is_idle(h, f->id)) { h2_fail(h, H2_PROTOCOL_ERROR, "RST_STREAM of an idle stream"); return; }
    if (!s) { h2_spend_idle(h); return; }
    h2_spend_reset(h);
    h2_move(s, H2_RESET, h2_get32(f->payload.p));
}

/* A new first window moves those of all open streams, below zero too (RFC 9113, section 6.9.2). */
static void h2_move_windows(h2 *h, int64_t first_window)
{
    int64_t change = first_window - h->first_window;
    h->first_window = first_window;
    for (size_t i = 0; change && i < H2_BUCKETS; i++)
        for (h2_stream *s = h->bucket[i]; s; s = s->in_bucket) {
            if (s->send_window + change > H2_WINDOW_MAX) {
                h2_fail(h, H2_FLOW_CONTROL_ERROR, "SETTINGS overflow a window");
                return;
            }
            s->send_window += change;
            if (s->send_window <= 0) h2_unqueue(s);
            h2_queue(s);
            h2_check(s);
        }
}

static void h2_take_setting(h2 *h, unsigned name, uint32_t value, int64_t *first_window)
{
    if (name == H2_SET_PUSH && value > 1) h2_fail(h, H2_PROTOCOL_ERROR, "ENABLE_PUSH");
    if (name == H2_SET_FRAME && (value < H2_FRAME_MAX || value > 0xFFFFFF))
        h2_fail(h, H2_PROTOCOL_ERROR, "MAX_FRAME_SIZE");
    if (name == H2_SET_WINDOW && value > H2_WINDOW_MAX) h2_fail(h, H2_FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE");
    if (name == H2_SET_WINDOW) *first_window = value;
    if (name == H2_SET_TABLE_SIZE && value < HPACK_TABLE) h->shrink_table = true;
}

static void h2_take_settings(h2 *h, const h2_frame *f)
{
    slice rest = f->payload, row;
    bool ack = f->flags & H2_ACK;
    if (f->id) { h2_fail(h, H2_PROTOCOL_ERROR, "SETTINGS of a stream"); return; }
    if (rest.n % 6 || (ack && rest.n)) { h2_fail(h, H2_FRAME_SIZE_ERROR, "SETTINGS"); return; }
    int64_t first_window = h->first_window;
    while (slice_take(&rest, 6, &row) && !h->failed)
        h2_take_setting(h, (unsigned)(row.p[0] << 8 | row.p[1]), h2_get32(row.p + 2), &first_window);
    if (!h->failed) h2_move_windows(h, first_window);
    if (!h->failed && !ack) h2_put_head(h, 0, H2_SETTINGS, H2_ACK, 0);
    h2_spend_idle(h);
}

static void h2_take_push(h2 *h, const h2_frame *f)
{
    (void)f;
    h2_fail(h, H2_PROTOCOL_ERROR, "PUSH_PROMISE"); /* a client cannot, and to a server we forbid it */
}

static void h2_take_ping(h2 *h, const h2_frame *f)
{
    if (f->id) { h2_fail(h, H2_PROTOCOL_ERROR, "PING of a stream"); return; }
    if (f->payload.n != 8) { h2_fail(h, H2_FRAME_SIZE_ERROR, "PING"); return; }
    if (!(f->flags & H2_ACK)) h2_put(h, H2_PING, H2_ACK, 0, f->payload);
    else if (h->events->ping_acked) h->events->ping_acked(h);
    h2_spend_idle(h);
}

static void h2_take_goaway(h2 *h, const h2_frame *f)
{
    if (f->id) { h2_fail(h, H2_PROTOCOL_ERROR, "GOAWAY of a stream"); return; }
    if (f->payload.n < 8) { h2_fail(h, H2_FRAME_SIZE_ERROR, "GOAWAY"); return; }
    h2_spend_idle(h);
    h->peer_last_id = h2_get32(f->payload.p) & H2_ID_MAX;
    for (size_t i = 0; h->client && i < H2_BUCKETS; i++)
        for (h2_stream *s = h->bucket[i], *next; s; s = next) {
            next = s->in_bucket;
            if (s->id > h->peer_last_id) h2_move(s, H2_RESET, H2_REFUSED_STREAM);
        }
}

static void h2_take_window_update(h2 *h, const h2_frame *f)
{
    if (f->payload.n != 4) { h2_fail(h, H2_FRAME_SIZE_ERROR, "WINDOW_UPDATE"); return; }
    uint32_t more = h2_get32(f->payload.p) & H2_ID_MAX;
    h2_stream *s = h2_find(h, f->id);
    h2_spend_idle(h);
    if (f->id == 0) {
        h->send_window += more;
        if (!more) h2_fail(h, H2_PROTOCOL_ERROR, "WINDOW_UPDATE of 0");
        if (h->send_window > H2_WINDOW_MAX) h2_fail(h, H2_FLOW_CONTROL_ERROR, "connection window");
    } else if (h2_is_idle(h, f->id)) {
        h2_fail(h, H2_PROTOCOL_ERROR, "WINDOW_UPDATE of an idle stream");
    } else if (s && !more) {
        h2_blame(s, H2_PROTOCOL_ERROR);
    } else if (s && s->send_window + more > H2_WINDOW_MAX) {
        h2_blame(s, H2_FLOW_CONTROL_ERROR);
    } else if (s) {
        s->send_window += more;
        h2_queue(s);
        h2_check(s);
    }
}

static void (*const h2_take[])(h2 *, const h2_frame *) = {
    [H2_DATA] = h2_take_data,           [H2_HEADERS_FRAME] = h2_take_headers,
    [H2_PRIORITY] = h2_take_priority,   [H2_RST_STREAM] = h2_take_reset,
    [H2_SETTINGS] = h2_take_settings,   [H2_PUSH_PROMISE] = h2_take_push,
    [H2_PING] = h2_take_ping,           [H2_GOAWAY] = h2_take_goaway,
    [H2_WINDOW_UPDATE] = h2_take_window_update, [H2_CONTINUATION] = h2_take_continuation,
};

/* -- HTTP/2: what is given --------------------------------------------------------------------- */

/* A connection that has been opened; *h is the caller's. What we say first is in h->out. */
static void h2_init(h2 *h, bool client, const h2_events *events, void *owner)
{
    static const struct { uint16_t name; uint32_t value; } ours[] = {
        { H2_SET_STREAMS, H2_STREAMS }, { H2_SET_WINDOW, H2_STREAM_WINDOW }, { H2_SET_LIST, H2_LIST_MAX },
        { H2_SET_PUSH, 0 }, /* a client's only; last */
    };
    memset(h, 0, offsetof(h2, table)); /* the table is large, and says itself how much of it counts */
    h->events = events;
    h->owner = owner;
    h->client = client;
    h->refuse_above = h->peer_last_id = H2_ID_MAX;
    h->send_window = h->first_window = H2_FIRST_WINDOW;
    h->recv_window = H2_CONN_WINDOW;
    hpack_init(&h->table);
    if (client) buf_str(&h->out, h2_preface);
    size_t n = client ? COUNT(ours) : COUNT(ours) - 1;
    h2_put_head(h, 6 * n, H2_SETTINGS, 0, 0);
    for (size_t i = 0; i < n; i++) {
        uint8_t row[6] = { 0, (uint8_t)ours[i].name };
        h2_set32(row + 2, ours[i].value);
        buf_add(&h->out, row, sizeof row);
    }
    h2_put_u32(h, H2_WINDOW_UPDATE, 0, H2_CONN_WINDOW - H2_FIRST_WINDOW);
}

/* Closes all streams (their owners are told) and frees what the connection has; not *h. */
static void h2_free(h2 *h)
{
    for (size_t i = 0; i < H2_BUCKETS; i++)
        while (h->bucket[i]) h2_move(h->bucket[i], H2_RESET, H2_CANCEL);
    h2_sweep(h);
    buf_free(&h->out);
    buf_free(&h->block);
}

/* One frame off the front of *in. False, and *in untouched, if it is not all there. */
static bool h2_take_frame(h2 *h, slice *in)
{
    slice rest = *in, head;
    h2_frame f = { 0 };
    if (!slice_take(&rest, H2_HEAD, &head)) return false;
    size_t n = (size_t)head.p[0] << 16 | (size_t)head.p[1] << 8 | head.p[2];
    if (n > H2_FRAME_MAX) { h2_fail(h, H2_FRAME_SIZE_ERROR, "frame too long"); return false; }
    if (!slice_take(&rest, n, &f.payload)) return false;
    *in = rest;
    f.type = head.p[3];
    f.flags = head.p[4];
    f.id = h2_get32(head.p + 5) & H2_ID_MAX;
    bool first_ok = h->greeted || (f.type == H2_SETTINGS && !(f.flags & H2_ACK));
    bool block_ok = !h->block_id || (f.type == H2_CONTINUATION && f.id == h->block_id);
    h->greeted = true;
    if (!first_ok) h2_fail(h, H2_PROTOCOL_ERROR, "SETTINGS must come first");
    else if (!block_ok) h2_fail(h, H2_PROTOCOL_ERROR, "a header block is open");
    else if (f.type < COUNT(h2_take)) h2_take[f.type](h, &f);
    else h2_spend_idle(h);
    return true;
}

/* Takes all whole frames off the front of `in` and returns how many bytes that were; the caller
 * brings the rest again, with more. After h->failed all is taken and nothing looked at. */
static size_t h2_feed(h2 *h, slice in)
{
    slice rest = in, part;
    if (!h->client && h->preface < sizeof h2_preface - 1) {
        size_t n = MIN(sizeof h2_preface - 1 - h->preface, rest.n);
        slice_take(&rest, n, &part);
        if (n && memcmp(part.p, h2_preface + h->preface, n)) h2_fail(h, H2_PROTOCOL_ERROR, "this is HTTP/2 only");
        h->preface += n;
    }
    while (!h->failed && h2_take_frame(h, &rest)) {}
    h2_sweep(h);
    return h->failed ? in.n : in.n - rest.n;
}

static void h2_pump_stream(h2_stream *s) /* one DATA frame */
{
    h2 *h = s->conn;
    size_t n = MIN(s->out.n - s->sent, (size_t)H2_FRAME_MAX);
    n = (size_t)MIN((int64_t)n, MIN(s->send_window, h->send_window));
    bool last = s->sent + n == s->out.n;
    h2_put_head(h, n, H2_DATA, last && s->ends ? H2_END_STREAM : 0, s->id);
    buf_add(&h->out, s->out.p + s->sent, n);
    h2_unqueue(s);
    s->sent += n;
    s->send_window -= (int64_t)n;
    h->send_window -= (int64_t)n;
    s->progress = h->now;
    h->idle_frames.n = 0; /* the peer's WINDOW_UPDATEs and PINGs had a reason */
    h2_queue(s);
    if (!last) return;
    buf_free(&s->out);
    s->sent = 0;
    if (s->ends) h2_move(s, H2_OUR_END, 0);
    else h->events->drained(s);
}

/* Frames what streams have to say, in turns, as far as the windows and h->out have room. To be
 * called before h->out is written, and again when some of it has been. */
static void h2_pump(h2 *h)
{
    while (!h->failed && h->sending && h->send_window > 0 && h->out.n < H2_OUT_FULL)
        h2_pump_stream(h->sending);
    h2_sweep(h);
}

/* Sends a header block, the first or (`end`) the last that this side sends on the stream. All of
 * h2_send must have drained. A server that has answered before it has heard all the question says
 * that it need not hear the rest (RFC 9113, section 8.1). */
static void h2_headers(h2_stream *s, slice block, bool end)
{
    h2 *h = s->conn;
    size_t shrink = h->shrink_table ? 1 : 0; /* 0x20: size 0, all that we use (RFC 7541, section 4.2) */
    assert(s->sent == s->out.n && block.n + shrink <= H2_FRAME_MAX);
    h2_put_head(h, block.n + shrink, H2_HEADERS_FRAME, H2_END_HEADERS | (end ? H2_END_STREAM : 0), s->id);
    if (shrink) buf_byte(&h->out, 0x20);
    h->shrink_table = false;
    buf_slice(&h->out, block);
    if (!end) return;
    h2_move(s, H2_OUR_END, 0);
    if (s->state == H2_WE_ENDED && !h->client && !s->ending) h2_reset(s, H2_NO_ERROR);
}

/* Queues bytes as DATA and takes the buffer over; `ends` puts END_STREAM on the last frame. Only
 * one buffer at a time: the owner waits for `drained`. */
static void h2_send(h2_stream *s, buf *bytes, bool ends)
{
    assert(bytes->n && s->sent == s->out.n && !s->ends);
    buf_free(&s->out);
    s->out = *bytes;
    *bytes = (buf){ 0 };
    s->sent = 0;
    s->ends = ends;
    s->progress = s->conn->now;
    h2_queue(s);
    h2_check(s);
}

/* A client's next stream, or NULL: out of memory, out of numbers, or the peer takes no more. */
static h2_stream *h2_open(h2 *h)
{
    uint32_t id = h->last_id ? h->last_id + 2 : 1;
    if (id > h->peer_last_id || h->failed) return NULL;
    h2_stream *s = h2_new_stream(h, id);
    if (!s) return NULL;
    h->last_id = id;
    h2_move(s, H2_HEADERS, 0);
    return s;
}

/* Ends the streams on which one side has waited for the other since before `then`: half a request,
 * or a reply that the peer gives no window for (CVE-2019-9517). */
static void h2_expire(h2 *h, int64_t then)
{
    for (size_t i = 0; i < H2_BUCKETS; i++)
        for (h2_stream *s = h->bucket[i], *next; s; s = next) {
            next = s->in_bucket;
            bool waits = s->sent < s->out.n || (!h->client && s->state == H2_OPEN);
            if (waits && s->progress < then) h2_reset(s, H2_CANCEL);
        }
    h2_sweep(h);
}

/* Graceful end, first step: "open no more streams", while those under way to us still count. The
 * peer's answer to the PING proves that it has read this (RFC 9113, section 6.8). */
static void h2_going_away(h2 *h)
{
    static const uint8_t anything[8] = "krun bye";
    h2_put_goaway(h, H2_ID_MAX, H2_NO_ERROR, "shutting down");
    h2_put(h, H2_PING, 0, 0, (slice){ anything, sizeof anything });
}

/* Second step: nothing younger than what we have seen is served. */
static void h2_gone_away(h2 *h)
{
    h->refuse_above = h->last_id;
    h2_put_goaway(h, h->last_id, H2_NO_ERROR, "shutting down");
}

/* == 11. gRPC, server and client =============================================================
 *
 * A gRPC call is one HTTP/2 stream: a POST whose path names the method, the request as DATA (a byte
 * that says "not compressed", the length in 4 bytes, the message), the reply in the same form, and
 * trailers with the status. It can be given a deadline (grpc-timeout) and be cancelled (RST_STREAM).
 *
 * The server has one thread for the protocol, that of the event loop. A method is a row of a table
 * that also says where its handler runs: on the loop (it only looks at memory), on a short worker
 * or on a long one. Two pools, so that calls which wait for minutes can never use up the threads
 * that quick ones need. A handler is straight-line blocking code; it is asked to stop by
 * grpc_cancelled or grpc_cancel_fd, and its slot is free when it has ended, not when its client has
 * gone (CVE-2023-44487). The client at the end of the chapter is for krun's own command line.
 *
 * Defined by  github.com/grpc/grpc: doc/PROTOCOL-HTTP2.md, doc/statuscodes.md
 * Uses        1, 2 (loop), 8 (pb_decode, pb_encode), 10
 * Gives       grpc_method, grpc_call, grpc_serve, grpc_shutdown, grpc_send, grpc_invoke
 * Bounds      a message 16 MiB; 64 connections, 250 calls each; 64 MiB of messages in memory beside
 *             the handlers' own; 10 s for a greeting, 30 s for half a frame, request or reply */

enum {
    GRPC_MESSAGE_MAX = 16 * MIB,
    GRPC_BUFFERED_MAX = 64 * MIB, /* requests and replies that wait, of all connections */
    GRPC_ARENA_MAX = 64 * MIB,    /* what one call's request may decode to, and its handler take */
    GRPC_CONNS_MAX = 64,
    GRPC_SHORT_MAX = 32, GRPC_LONG_MAX = 512,
    GRPC_STACK = 256 * KIB,
    GRPC_READ = 128 * KIB,        /* one recv(2) */
    GRPC_PREFIX = 5               /* of a message: a flag, the length */
};
#define GRPC_GREETING_TIME (10 * NS_PER_SEC)
#define GRPC_STALL_TIME (30 * NS_PER_SEC)
#define GRPC_WORKER_IDLE (10 * NS_PER_SEC)
#define GRPC_ACCEPT_PAUSE (100 * NS_PER_MS)
#define GRPC_LONGEST_TIMEOUT (365 * 24 * 3600 * NS_PER_SEC)

typedef struct grpc_call grpc_call;
typedef struct grpc_server grpc_server;

/* Runs one call. `in` is decoded, *out is zeroed and encoded afterwards; what both point to lives in
 * call->arena. 0, or -1 and *e, whose code and text the client gets. */
typedef int grpc_handler(grpc_call *call, const void *in, void *out, error *e);

enum grpc_where { GRPC_ON_LOOP, GRPC_SHORT, GRPC_LONG };

/* One RPC. A method that `streams` is LONG, leaves *out alone and calls grpc_send for each reply. */
typedef struct {
    const char *path; /* "/runtime.v1.RuntimeService/Version" */
    const pb_message *in, *out;
    enum grpc_where where;
    bool streams;
    grpc_handler *run; /* NULL: answered with UNIMPLEMENTED */
} grpc_method;

typedef struct {
    const char *socket_path;
    const grpc_method *methods;
    size_t nmethods;
    const char *alias, *alias_of; /* a path that begins with the first is served as the second:
                                     "/runtime.v1alpha2." and "/runtime.v1."; or NULL */
    void *user;                   /* each call's */
    size_t max_message, max_buffered; /* 0: as above */
    unsigned short_workers, long_workers, max_conns;
} grpc_options;

/* -- a message on the wire --------------------------------------------------------------------- */

/* Appends prefix and message to *out, which is empty: nothing is copied afterwards, however large. */
static int grpc_encode(const pb_message *m, const void *msg, size_t max, buf *out, error *e)
{
    static const uint8_t prefix[GRPC_PREFIX];
    buf_add(out, prefix, sizeof prefix);
    if (pb_encode(m, msg, out) < 0 || out->oom) {
        buf_free(out);
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "%s: out of memory", m->name);
    }
    size_t n = out->n - sizeof prefix;
    if (n > max) {
        buf_free(out);
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "%s of %zu bytes is larger than %zu", m->name, n, max);
    }
    h2_set32(out->p + 1, (uint32_t)n);
    return 0;
}

/* A message as it comes in, in any number of pieces. */
typedef struct { uint8_t prefix[GRPC_PREFIX]; size_t have; bool full; buf body; } grpc_inbox;

/* Takes what belongs to the message off the front of *data; inbox->full when it is complete. Memory
 * grows with what has come, not with what the prefix claims. */
static int grpc_collect(grpc_inbox *in, slice *data, size_t max, error *e)
{
    slice part;
    slice_take(data, MIN(data->n, GRPC_PREFIX - in->have), &part);
    if (part.n) memcpy(in->prefix + in->have, part.p, part.n);
    in->have += part.n;
    if (in->have < GRPC_PREFIX) return 0;
    if (in->prefix[0]) return fail(e, GRPC_INTERNAL, "message has compressed flag %d", in->prefix[0]);
    size_t want = h2_get32(in->prefix + 1);
    if (want > max) return fail(e, GRPC_RESOURCE_EXHAUSTED, "message of %zu bytes is larger than %zu", want, max);
    slice_take(data, MIN(data->n, want - in->body.n), &part);
    buf_slice(&in->body, part);
    in->full = in->body.n == want;
    return in->body.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "message: out of memory") : 0;
}

/* grpc-message: printable ASCII as it is, the rest and '%' as %XX. */
static void grpc_put_message(buf *block, const char *text)
{
    OWNED_BUF harmless = { 0 }, quoted = { 0 };
    text_escape(&harmless, slice_of(text), KIB);
    for (size_t i = 0; i < harmless.n; i++) {
        uint8_t c = harmless.p[i];
        if (c >= ' ' && c <= '~' && c != '%') buf_byte(&quoted, c);
        else buf_printf(&quoted, "%%%02X", c);
    }
    hpack_put(block, "grpc-message", buf_view(&quoted));
}

/* -- the server's structures ------------------------------------------------------------------- */

enum grpc_phase { GRPC_READING, GRPC_HANDLED, GRPC_ENDED }; /* a call: request comes, is handled, was */

struct grpc_call {
    arena arena;      /* request, reply and whatever the handler wants: gone when it has ended */
    int64_t deadline; /* monotonic ns; 0: none */
    void *user;       /* grpc_options.user */
    const grpc_method *method;
    grpc_server *server; /* NULL: grpc_run_here */
    _Atomic bool cancelled;
    /* of the loop's thread; of the handler's while it runs: inbox, reply, status */
    struct grpc_conn *conn;
    h2_stream *stream; /* NULL when it is closed */
    enum grpc_phase phase;
    bool is_post, is_grpc, bad_timeout, compressed; /* what the header fields said */
    bool begun;                                     /* our first header block is out */
    timer due;
    size_t charged; /* to server->buffered */
    grpc_inbox inbox;
    buf reply;
    error status;
    job ended, message; /* letters to the loop: the handler has ended; `reply` is to be streamed */
    /* guarded by server->lock */
    bool queued, sending;
    int cancel_fd; /* -1 until it is asked for */
    pthread_cond_t sent;
    grpc_call *next, *prev; /* in the pool's queue */
};

/* Threads that come when there is work and go when there is none; guarded by server->lock. */
typedef struct {
    grpc_server *server;
    pthread_cond_t work;
    grpc_call *first, *last;
    unsigned queued, idle, threads, max;
} grpc_pool;

typedef struct grpc_conn {
    watch watch; /* the socket */
    uint32_t events; /* what of it is watched */
    timer tick;
    grpc_server *server;
    struct grpc_conn *next, *prev;
    int64_t since, part_since, out_since; /* accepted; `part` began; the socket last took bytes */
    buf part;         /* the beginning of a frame */
    unsigned calls;   /* that are not freed yet: this struct outlives them */
    bool leaving, gone; /* we have said that we end: first and second step */
    bool closed;
    h2 h2;
} grpc_conn;

struct grpc_server {
    loop *loop;
    grpc_options o;
    watch listener; /* fd -1: closed */
    struct stat socket;
    bool paused;
    timer retry;    /* accept(2) failed */
    grpc_conn *conns; /* newest first */
    unsigned nconns;
    size_t ncalls, buffered;
    uint8_t *scratch; /* GRPC_READ bytes, used within one event */
    int64_t stop_at;  /* shutting down: until then */
    timer stop;
    void (*stopped)(grpc_server *);
    pthread_mutex_t lock;
    pthread_cond_t thread_gone;
    bool ending;      /* guarded by lock: idle workers end */
    grpc_pool pool[2]; /* short, long */
};

/* -- worker threads ---------------------------------------------------------------------------- */

static void grpc_enqueue(grpc_pool *p, grpc_call *c)
{
    c->queued = true;
    c->next = NULL;
    c->prev = p->last;
    if (p->last) p->last->next = c;
    else p->first = c;
    p->last = c;
    p->queued++;
}

static void grpc_dequeue(grpc_pool *p, grpc_call *c)
{
    c->queued = false;
    if (c->prev) c->prev->next = c->next;
    else p->first = c->next;
    if (c->next) c->next->prev = c->prev;
    else p->last = c->prev;
    p->queued--;
}

static grpc_pool *grpc_pool_of(grpc_call *c) { return &c->server->pool[c->method->where == GRPC_LONG]; }

/* Decodes, handles, encodes; the outcome is in c->status and c->reply. On any thread. */
static void grpc_run(grpc_call *c)
{
    const grpc_method *m = c->method;
    error *e = &c->status;
    *e = (error){ 0 };
    void *in = arena_alloc(&c->arena, m->in->size), *out = arena_alloc(&c->arena, m->out->size);
    int done = in && out ? pb_decode(m->in, buf_view(&c->inbox.body), &c->arena, in, e)
                         : fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    if (done >= 0) done = m->run(c, in, out, e);
    if (done >= 0 && !m->streams) done = grpc_encode(m->out, out, c->server->o.max_message, &c->reply, e);
    if (done >= 0) e->code = GRPC_OK;
    else if (e->code == GRPC_OK) e->code = GRPC_UNKNOWN;
    arena_free(&c->arena);
    buf_free(&c->inbox.body);
}

/* The next call for this worker, or NULL if there was none for a while. server->lock is held. */
static grpc_call *grpc_next(grpc_pool *p)
{
    int64_t until = clock_mono() + GRPC_WORKER_IDLE;
    struct timespec t = { (time_t)(until / NS_PER_SEC), (long)(until % NS_PER_SEC) };
    p->idle++;
    for (int r = 0; !p->first && !p->server->ending && r != ETIMEDOUT;)
        r = pthread_cond_timedwait(&p->work, &p->server->lock, &t);
    p->idle--;
    grpc_call *c = p->first;
    if (c) grpc_dequeue(p, c);
    return c;
}

static void *grpc_worker(void *pool)
{
    grpc_pool *p = pool;
    grpc_server *s = p->server;
    pthread_mutex_lock(&s->lock);
    for (grpc_call *c; (c = grpc_next(p));) {
        pthread_mutex_unlock(&s->lock);
        grpc_run(c);
        loop_post(s->loop, &c->ended);
        pthread_mutex_lock(&s->lock);
    }
    p->threads--;
    pthread_cond_signal(&s->thread_gone);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Signals are the main thread's: a worker has them all blocked from its first instruction. */
static bool grpc_start_worker(grpc_pool *p)
{
    pthread_attr_t attr;
    pthread_t id;
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, GRPC_STACK);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(&id, &attr, grpc_worker, p) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (started) p->threads++;
    return started;
}

/* Hands a call to its pool. False if there is no thread at all and none can be made. */
static bool grpc_submit(grpc_call *c)
{
    grpc_pool *p = grpc_pool_of(c);
    pthread_mutex_lock(&c->server->lock);
    grpc_enqueue(p, c);
    if (p->queued > p->idle && p->threads < p->max) grpc_start_worker(p);
    bool served = p->threads > 0;
    if (!served) grpc_dequeue(p, c);
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&c->server->lock);
    return served;
}

/* -- a call's end ------------------------------------------------------------------------------ */

static void grpc_conn_drop(grpc_conn *k) /* one call less, or the connection itself is closed */
{
    if (!k->calls && k->closed) free(k);
}

/* All has been done when the last connection and the last call have gone. The timer, because
 * whoever is above us on the stack still uses the server. */
static void grpc_note_stopped(grpc_server *s)
{
    error e;
    if (!s->stop_at || s->conns || s->ncalls) return;
    if (loop_arm(s->loop, &s->stop, clock_mono(), &e) < 0) log_error("grpc: %s", e.text);
}

/* Frees the call if neither the stream nor a handler has it any more. */
static void grpc_release(grpc_call *c)
{
    grpc_server *s = c->server;
    if (c->stream || c->phase == GRPC_HANDLED) return;
    loop_disarm(s->loop, &c->due);
    s->buffered -= c->charged;
    s->ncalls--;
    c->conn->calls--;
    grpc_conn_drop(c->conn);
    arena_free(&c->arena);
    buf_free(&c->inbox.body);
    buf_free(&c->reply);
    close_fd(&c->cancel_fd);
    pthread_cond_destroy(&c->sent);
    free(c);
    grpc_note_stopped(s);
}

/* Tells the handler that nobody waits for it; one that has not begun will not. */
static void grpc_cancel(grpc_call *c)
{
    uint64_t one = 1;
    pthread_mutex_lock(&c->server->lock);
    c->cancelled = true;
    if (c->queued) {
        grpc_dequeue(grpc_pool_of(c), c);
        c->phase = GRPC_ENDED;
    }
    if (c->cancel_fd >= 0 && write(c->cancel_fd, &one, sizeof one) < 0) assert(errno == EAGAIN);
    pthread_cond_signal(&c->sent);
    pthread_mutex_unlock(&c->server->lock);
}

/* -- answering --------------------------------------------------------------------------------- */

static void grpc_put_start(buf *block, int http)
{
    char status[12];
    snprintf(status, sizeof status, "%d", http);
    if (http == 200) hpack_put_indexed(block, HPACK_STATUS);
    else hpack_put_named(block, HPACK_STATUS, slice_of(status));
    hpack_put_named(block, HPACK_CONTENT_TYPE, SLICE("application/grpc"));
}

/* Ends the call for the client, with the status alone or as the trailers of a reply. What is half
 * sent cannot be followed by a status, so the stream is reset then. */
static void grpc_answer(grpc_call *c, int http, const error *status)
{
    h2_stream *s = c->stream;
    OWNED_BUF block = { 0 };
    char code[12];
    if (!s) return;
    if (c->phase == GRPC_READING) c->phase = GRPC_ENDED;
    if (s->sent < s->out.n) { h2_reset(s, H2_CANCEL); return; }
    snprintf(code, sizeof code, "%d", status->code);
    if (!c->begun) grpc_put_start(&block, http);
    if (c->compressed) hpack_put(&block, "grpc-accept-encoding", SLICE("identity"));
    hpack_put(&block, "grpc-status", slice_of(code));
    if (status->code) grpc_put_message(&block, status->text);
    if (block.oom) h2_reset(s, H2_INTERNAL_ERROR);
    else h2_headers(s, buf_view(&block), true);
}

static bool grpc_charge(grpc_call *c, size_t n)
{
    c->charged += n;
    c->server->buffered += n;
    return c->server->buffered <= c->server->o.max_buffered;
}

/* Sends c->reply as one message; `drained` comes when it is out. */
static void grpc_send_reply(grpc_call *c)
{
    error e;
    OWNED_BUF block = { 0 };
    if (!grpc_charge(c, c->reply.n)) {
        fail(&e, GRPC_RESOURCE_EXHAUSTED, "too many messages wait to be sent");
        grpc_answer(c, 200, &e);
        return;
    }
    if (!c->begun) {
        grpc_put_start(&block, 200);
        h2_headers(c->stream, buf_view(&block), false);
        c->begun = true;
    }
    h2_send(c->stream, &c->reply, false);
}

/* The handler has returned. */
static void grpc_finish(grpc_call *c)
{
    c->phase = GRPC_ENDED;
    if (c->stream && (c->status.code || c->method->streams)) grpc_answer(c, 200, &c->status);
    else if (c->stream) grpc_send_reply(c);
    else grpc_release(c);
}

/* -- a connection's input and output ----------------------------------------------------------- */

static void grpc_conn_close(grpc_conn *k)
{
    grpc_server *s = k->server;
    loop_forget(s->loop, &k->watch);
    loop_disarm(s->loop, &k->tick);
    h2_free(&k->h2); /* its calls are cancelled by this */
    close_fd(&k->watch.fd);
    buf_free(&k->part);
    if (k->next) k->next->prev = k->prev;
    if (k->prev) k->prev->next = k->next;
    else s->conns = k->next;
    s->nconns--;
    k->closed = true;
    grpc_conn_drop(k);
    grpc_note_stopped(s);
}

/* Something may get stuck: looks again in a while. An idle connection has no timer. */
static void grpc_arm_tick(grpc_conn *k)
{
    error e;
    bool idle = k->h2.greeted && !k->part.n && !k->h2.block_id && !k->h2.out.n && !k->h2.nstreams;
    if (idle || k->tick.slot) return;
    if (loop_arm(k->server->loop, &k->tick, k->h2.now + GRPC_GREETING_TIME, &e) < 0) log_warn("grpc: %s", e.text);
}

/* What we wait for: not for more requests while the peer does not take our answers. */
static void grpc_rewatch(grpc_conn *k)
{
    bool read = !k->h2.failed && k->h2.out.n < H2_OUT_FULL;
    uint32_t events = (read ? EPOLLIN : 0U) | (k->h2.out.n ? EPOLLOUT : 0U);
    if (events != k->events) loop_rewatch(k->server->loop, &k->watch, k->events = events);
}

/* Writes what there is to write, as far as the socket takes it; closes the connection if that was
 * the last of it. Every way out of an event on the connection ends here, so that all that one event
 * has caused leaves in one send(2). */
static void grpc_flush(grpc_conn *k)
{
    h2 *h = &k->h2;
    for (ssize_t n = 1; n > 0;) {
        h2_pump(h);
        if (!h->out.n) break;
        n = send(k->watch.fd, h->out.p, h->out.n, MSG_NOSIGNAL | MSG_DONTWAIT);
        bool later = n < 0 && (errno == EAGAIN || errno == EINTR);
        if (h->out.oom || (n <= 0 && !later)) { grpc_conn_close(k); return; }
        if (n > 0) buf_drop(&h->out, (size_t)n);
        if (n > 0) k->out_since = h->now;
    }
    if (!h->out.n && h->out.cap > ARENA_BLOCK) buf_free(&h->out);
    if (!h->out.n && (h->failed || (k->gone && !h->nstreams))) { grpc_conn_close(k); return; }
    grpc_rewatch(k);
    grpc_arm_tick(k);
}

/* One recv(2), behind what was left of the last one. False: the connection is closed. */
static bool grpc_read(grpc_conn *k)
{
    uint8_t *scratch = k->server->scratch;
    size_t had = k->part.n;
    if (had) memcpy(scratch, k->part.p, had);
    ssize_t n = recv(k->watch.fd, scratch + had, GRPC_READ - had, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n <= 0) return grpc_conn_close(k), false;
    size_t all = had + (size_t)n, taken = h2_feed(&k->h2, (slice){ scratch, all });
    if (taken || !had) k->part_since = k->h2.now;
    k->part.n = 0;
    buf_add(&k->part, scratch + taken, all - taken);
    if (!k->part.n) buf_free(&k->part);
    if (k->part.oom) return grpc_conn_close(k), false;
    return true;
}

static void grpc_conn_ready(watch *w, uint32_t events)
{
    grpc_conn *k = OWNER(w, grpc_conn, watch);
    k->h2.now = clock_mono();
    bool wanted = k->events & EPOLLIN && events & (EPOLLIN | EPOLLHUP | EPOLLERR);
    if (!wanted || grpc_read(k)) grpc_flush(k);
}

static void grpc_conn_tick(timer *t)
{
    grpc_conn *k = OWNER(t, grpc_conn, tick);
    h2 *h = &k->h2;
    h->now = clock_mono();
    int64_t stalled = h->now - GRPC_STALL_TIME;
    if ((!h->greeted && k->since <= h->now - GRPC_GREETING_TIME) ||
        ((k->part.n || h->block_id) && k->part_since < stalled) || (h->out.n && k->out_since < stalled)) {
        log_debug("grpc: a silent connection is closed");
        grpc_conn_close(k);
        return;
    }
    h2_expire(h, stalled);
    grpc_flush(k);
}

/* -- header fields of a call ------------------------------------------------------------------- */

/* The method of this path. The name must be equal byte for byte: no decoding, no cleaning. */
static const grpc_method *grpc_route(const grpc_options *o, slice path)
{
    bool alias = o->alias && slice_starts(path, o->alias);
    const char *prefix = alias ? o->alias_of : "";
    slice rest = path, drop;
    if (alias) slice_take(&rest, strlen(o->alias), &drop);
    for (size_t i = 0; i < o->nmethods; i++) {
        slice name = slice_of(o->methods[i].path);
        if (name.n == strlen(prefix) + rest.n && slice_starts(name, prefix) &&
            slice_eq((slice){ name.p + strlen(prefix), rest.n }, rest))
            return &o->methods[i];
    }
    return NULL;
}

static void grpc_take_method(grpc_call *c, slice value) { c->is_post = slice_is(value, "POST"); }

static void grpc_take_path(grpc_call *c, slice value)
{
    c->method = grpc_route(&c->server->o, value);
    if (!c->method) fail(&c->status, GRPC_UNIMPLEMENTED, "unknown method %.*s", PR(value));
}

static void grpc_take_type(grpc_call *c, slice value)
{
    slice rest = value, grpc;
    if (!slice_starts(value, "application/grpc")) return;
    slice_take(&rest, strlen("application/grpc"), &grpc);
    c->is_grpc = !rest.n || rest.p[0] == ';' || slice_is(rest, "+proto") || slice_starts(rest, "+proto;");
}

/* "1500m": at most 8 digits and a unit. A deadline beyond all clocks is cut to a year. */
static void grpc_take_timeout(grpc_call *c, slice value)
{
    static const struct { char unit; int64_t ns; } units[] = {
        { 'n', 1 }, { 'u', 1000 }, { 'm', NS_PER_MS }, { 'S', NS_PER_SEC }, { 'M', 60 * NS_PER_SEC },
        { 'H', 3600 * NS_PER_SEC },
    };
    uint64_t n;
    c->bad_timeout = true;
    if (value.n < 2 || !parse_u64((slice){ value.p, value.n - 1 }, 10, 99999999, &n)) return;
    for (size_t i = 0; i < COUNT(units); i++) {
        if (value.p[value.n - 1] != units[i].unit) continue;
        c->bad_timeout = false;
        int64_t most = GRPC_LONGEST_TIMEOUT / units[i].ns;
        c->deadline = c->stream->conn->now + MIN((int64_t)n, most) * units[i].ns;
    }
}

static void grpc_take_encoding(grpc_call *c, slice value) { c->compressed = !slice_is(value, "identity"); }

/* All other metadata (tracing, the client's name) is of no use to us. */
static const struct { const char *name; void (*take)(grpc_call *, slice); } grpc_fields[] = {
    { ":method", grpc_take_method },      { ":path", grpc_take_path },
    { "content-type", grpc_take_type },   { "grpc-timeout", grpc_take_timeout },
    { "grpc-encoding", grpc_take_encoding },
};

/* -- events of HTTP/2 -------------------------------------------------------------------------- */

static void grpc_ended_job(job *j)
{
    grpc_call *c = OWNER(j, grpc_call, ended);
    grpc_conn *k = c->stream ? c->conn : NULL;
    if (k) k->h2.now = clock_mono();
    grpc_finish(c);
    if (k) grpc_flush(k);
}

/* A handler streams a message; it waits in grpc_send until `drained`. */
static void grpc_message_job(job *j)
{
    grpc_call *c = OWNER(j, grpc_call, message);
    if (!c->stream) { buf_free(&c->reply); return; }
    grpc_conn *k = c->conn;
    k->h2.now = clock_mono();
    grpc_send_reply(c);
    grpc_flush(k);
}

static void grpc_due(timer *t)
{
    grpc_call *c = OWNER(t, grpc_call, due);
    grpc_conn *k = c->conn;
    error e;
    if (!c->stream) return;
    k->h2.now = clock_mono();
    fail(&e, GRPC_DEADLINE_EXCEEDED, "the call's deadline has passed");
    grpc_answer(c, 200, &e);
    grpc_flush(k);
}

static bool grpc_on_open(h2_stream *s)
{
    grpc_conn *k = s->conn->owner;
    grpc_call *c = k->calls < H2_STREAMS ? malloc(sizeof *c) : NULL;
    if (!c) return false;
    *c = (grpc_call){ .arena = arena_make(GRPC_ARENA_MAX), .user = k->server->o.user, .server = k->server,
                      .conn = k, .stream = s, .cancel_fd = -1, .due.due = grpc_due,
                      .ended.run = grpc_ended_job, .message.run = grpc_message_job };
    pthread_cond_init(&c->sent, NULL);
    s->owner = c;
    k->calls++;
    k->server->ncalls++;
    return true;
}

static void grpc_on_field(h2_stream *s, slice name, slice value)
{
    grpc_call *c = s->owner;
    if (c->phase != GRPC_READING || s->had_headers) return;
    for (size_t i = 0; i < COUNT(grpc_fields); i++)
        if (slice_is(name, grpc_fields[i].name)) grpc_fields[i].take(c, value);
}

/* What is wrong with the call as its header fields describe it. Returns the HTTP status, and the
 * gRPC status in *e; code OK if all is well. */
static int grpc_refuse(const grpc_call *c, bool too_large, error *e)
{
    *e = (error){ 0 };
    if (too_large) fail(e, GRPC_RESOURCE_EXHAUSTED, "more than %d bytes or %d fields of metadata", H2_LIST_MAX, H2_FIELDS_MAX);
    else if (!c->is_post) return fail(e, GRPC_INTERNAL, "a gRPC call is a POST"), 405;
    else if (!c->is_grpc) return fail(e, GRPC_INVALID_ARGUMENT, "content-type must be application/grpc"), 415;
    else if (!c->method) *e = c->status;
    else if (!c->method->run) fail(e, GRPC_UNIMPLEMENTED, "%s is not implemented", strrchr(c->method->path, '/') + 1);
    else if (c->compressed) fail(e, GRPC_UNIMPLEMENTED, "grpc-encoding must be identity");
    else if (c->bad_timeout) fail(e, GRPC_INVALID_ARGUMENT, "malformed grpc-timeout");
    return 200;
}

static void grpc_on_headers(h2_stream *s, bool too_large)
{
    grpc_call *c = s->owner;
    error e;
    int http = grpc_refuse(c, too_large, &e);
    if (!e.code && c->deadline) loop_arm(c->server->loop, &c->due, c->deadline, &e);
    if (e.code) grpc_answer(c, http, &e);
}

static void grpc_on_data(h2_stream *s, slice data)
{
    grpc_call *c = s->owner;
    error *e = &c->status;
    if (c->phase != GRPC_READING) return;
    bool fits = grpc_charge(c, data.n);
    int done = c->inbox.full ? 0 : grpc_collect(&c->inbox, &data, c->server->o.max_message, e);
    if (done == 0 && !fits) done = fail(e, GRPC_RESOURCE_EXHAUSTED, "too many requests are being received");
    if (done == 0 && data.n) done = fail(e, GRPC_UNIMPLEMENTED, "more than one request message");
    if (done < 0) grpc_answer(c, 200, e);
}

static void grpc_on_end(h2_stream *s)
{
    grpc_call *c = s->owner;
    error *e = &c->status;
    if (c->phase != GRPC_READING) return;
    if (!c->inbox.full) {
        fail(e, GRPC_INTERNAL, c->inbox.have ? "the request message is cut short" : "no request message");
        grpc_answer(c, 200, e);
        return;
    }
    c->phase = GRPC_HANDLED;
    if (c->method->where == GRPC_ON_LOOP) {
        grpc_run(c);
        grpc_finish(c);
    } else if (!grpc_submit(c)) {
        fail(e, GRPC_RESOURCE_EXHAUSTED, "no thread can be made");
        grpc_finish(c);
    }
}

static void grpc_on_drained(h2_stream *s)
{
    grpc_call *c = s->owner;
    c->server->buffered -= c->charged;
    c->charged = 0;
    if (c->phase == GRPC_ENDED) {
        grpc_answer(c, 200, &c->status);
        return;
    }
    pthread_mutex_lock(&c->server->lock);
    c->sending = false;
    pthread_cond_signal(&c->sent);
    pthread_mutex_unlock(&c->server->lock);
}

static void grpc_on_closed(h2_stream *s, uint32_t code)
{
    grpc_call *c = s->owner;
    (void)code;
    if (!c) return;
    c->stream = NULL;
    loop_disarm(c->server->loop, &c->due);
    if (c->phase == GRPC_HANDLED) grpc_cancel(c);
    grpc_release(c);
}

static void grpc_on_ping_acked(h2 *h)
{
    grpc_conn *k = h->owner;
    if (k->leaving && !k->gone) h2_gone_away(h);
    k->gone = k->leaving;
}

static const h2_events grpc_server_events = {
    .open = grpc_on_open, .field = grpc_on_field, .headers = grpc_on_headers, .data = grpc_on_data,
    .end = grpc_on_end, .drained = grpc_on_drained, .closed = grpc_on_closed,
    .ping_acked = grpc_on_ping_acked,
};

/* -- accepting --------------------------------------------------------------------------------- */

/* Room for one more: at the limit the oldest connection that has not said anything useful goes. */
static bool grpc_make_room(grpc_server *s)
{
    grpc_conn *silent = NULL;
    if (s->nconns < s->o.max_conns) return true;
    for (grpc_conn *k = s->conns; k; k = k->next)
        if (!k->h2.greeted) silent = k;
    if (silent) grpc_conn_close(silent);
    return silent;
}

static int grpc_add_conn(grpc_server *s, int *fd, error *e)
{
    if (!grpc_make_room(s)) return fail(e, GRPC_RESOURCE_EXHAUSTED, "%u connections are open", s->nconns);
    grpc_conn *k = malloc(sizeof *k);
    if (!k) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    memset(k, 0, offsetof(grpc_conn, h2));
    k->watch = (watch){ *fd, grpc_conn_ready };
    k->events = EPOLLIN;
    k->tick.due = grpc_conn_tick;
    k->server = s;
    if (loop_watch(s->loop, &k->watch, k->events, e) < 0) return free(k), -1;
    *fd = -1;
    h2_init(&k->h2, false, &grpc_server_events, k);
    k->since = k->part_since = k->out_since = k->h2.now = clock_mono();
    k->next = s->conns;
    if (s->conns) s->conns->prev = k;
    s->conns = k;
    s->nconns++;
    grpc_flush(k);
    return 0;
}

/* Out of descriptors or memory is a state of the machine that passes: the listener rests a moment,
 * or it would be ready again at once, without end (accept(2); CVE-2023-4785). */
static void grpc_pause(grpc_server *s)
{
    error e;
    log_warn("grpc: accept: %s", strerror(errno));
    if (loop_arm(s->loop, &s->retry, clock_mono() + GRPC_ACCEPT_PAUSE, &e) < 0) return;
    loop_forget(s->loop, &s->listener);
}

static void grpc_retry(timer *t)
{
    grpc_server *s = OWNER(t, grpc_server, retry);
    error e;
    if (loop_watch(s->loop, &s->listener, EPOLLIN, &e) < 0)
        loop_arm(s->loop, &s->retry, clock_mono() + GRPC_ACCEPT_PAUSE, &e);
}

static void grpc_accept(watch *w, uint32_t events)
{
    grpc_server *s = OWNER(w, grpc_server, listener);
    error e;
    (void)events;
    OWNED_FD fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)) return;
    if (fd < 0) grpc_pause(s);
    else if (grpc_add_conn(s, &fd, &e) < 0) log_warn("grpc: a connection is refused: %s", e.text);
}

static int grpc_address(const char *path, struct sockaddr_un *a, error *e)
{
    *a = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (strlen(path) < sizeof a->sun_path) memcpy(a->sun_path, path, strlen(path));
    else return fail(e, GRPC_INVALID_ARGUMENT, "the path of a socket has at most %zu bytes: %s", sizeof a->sun_path - 1, path);
    return 0;
}

/* The listening socket, the caller's. It is made under another name, and gets its own by rename(2)
 * when it is ready and only root can open it: there is no moment at which a client finds it closed
 * or half made, and what a dead server left is replaced. fchmod(2) before bind(2) sets the mode
 * that bind gives the file. *st says later whether the name is still ours. */
static int grpc_listen(const char *path, struct stat *st, error *e)
{
    struct sockaddr_un address;
    char temp[sizeof address.sun_path + 8];
    snprintf(temp, sizeof temp, "%.*s.new", (int)sizeof address.sun_path, path);
    if (grpc_address(temp, &address, e) < 0) return -1;
    OWNED_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fail_sys(e, GRPC_INTERNAL, "socket");
    if (unlink(temp) < 0 && errno != ENOENT) return fail_sys(e, GRPC_INTERNAL, "remove %s", temp);
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return fail_sys(e, GRPC_INTERNAL, "bind %s", temp);
    if (chmod(temp, 0600) < 0 || listen(fd, 128) < 0 || lstat(temp, st) < 0 || rename(temp, path) < 0) {
        fail_sys(e, GRPC_INTERNAL, "listen at %s", path);
        unlink(temp);
        return -1;
    }
    return give_fd(&fd);
}

static void grpc_unlisten(grpc_server *s)
{
    struct stat now;
    if (s->listener.fd < 0) return;
    loop_disarm(s->loop, &s->retry);
    loop_forget(s->loop, &s->listener);
    close_fd(&s->listener.fd);
    s->listener.fd = -1;
    if (lstat(s->o.socket_path, &now) < 0 || now.st_ino != s->socket.st_ino || now.st_dev != s->socket.st_dev) return;
    unlink(s->o.socket_path);
}

/* -- what a handler may ask -------------------------------------------------------------------- */

/* Whether nobody waits for this call any more: the client has gone, or the deadline has passed. */
static bool grpc_cancelled(grpc_call *c)
{
    return c->cancelled || (c->deadline && clock_mono() >= c->deadline);
}

/* A descriptor that is readable once grpc_cancelled; the call's, not to be closed or read. */
static int grpc_cancel_fd(grpc_call *c, error *e)
{
    pthread_mutex_t *lock = c->server ? &c->server->lock : NULL;
    if (lock) pthread_mutex_lock(lock);
    if (c->cancel_fd < 0) c->cancel_fd = eventfd(c->cancelled, EFD_CLOEXEC | EFD_NONBLOCK);
    int fd = c->cancel_fd;
    if (lock) pthread_mutex_unlock(lock);
    return fd < 0 ? fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "eventfd") : fd;
}

/* Sends one message of a streaming reply, and returns when all of it has been framed: a client that
 * reads slowly slows its handler down. -1: CANCELLED, or the message is too large. */
static int grpc_send(grpc_call *c, const void *out, error *e)
{
    grpc_server *s = c->server;
    buf reply = { 0 };
    if (!s) return fail(e, GRPC_UNIMPLEMENTED, "this call cannot stream");
    assert(c->method->streams && c->method->where == GRPC_LONG);
    if (grpc_encode(c->method->out, out, s->o.max_message, &reply, e) < 0) return -1;
    pthread_mutex_lock(&s->lock);
    bool post = !c->cancelled;
    if (post) {
        c->reply = reply;
        c->sending = true;
        loop_post(s->loop, &c->message);
    }
    while (post && c->sending && !c->cancelled) pthread_cond_wait(&c->sent, &s->lock);
    bool cancelled = c->cancelled;
    pthread_mutex_unlock(&s->lock);
    if (!post) buf_free(&reply);
    return cancelled ? fail(e, GRPC_CANCELLED, "the client has gone") : 0;
}

/* A call without a server, to run a method's handler in the process itself: nobody can cancel it
 * and it cannot stream. grpc_local_end frees it and all that its reply points to. */
static grpc_call grpc_local(void *user)
{
    return (grpc_call){ .arena = arena_make(GRPC_ARENA_MAX), .user = user, .cancel_fd = -1 };
}

static void grpc_local_end(grpc_call *c)
{
    arena_free(&c->arena);
    close_fd(&c->cancel_fd);
}

/* -- what the daemon calls, on the loop's thread ----------------------------------------------- */

static void grpc_pool_open(grpc_pool *p, grpc_server *s, unsigned max)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    *p = (grpc_pool){ .server = s, .max = max };
    pthread_cond_init(&p->work, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

/* Frees a server that has stopped, or that nobody has called. A handler that still runs (it has not
 * listened to grpc_cancelled) keeps the memory: the process is about to end. */
static void grpc_server_free(grpc_server *s)
{
    if (!s) return;
    while (s->conns) grpc_conn_close(s->conns);
    grpc_unlisten(s);
    loop_disarm(s->loop, &s->stop);
    if (s->ncalls) { log_warn("grpc: %zu calls still run", s->ncalls); return; }
    pthread_mutex_lock(&s->lock);
    s->ending = true;
    for (size_t i = 0; i < COUNT(s->pool); i++) pthread_cond_broadcast(&s->pool[i].work);
    while (s->pool[0].threads || s->pool[1].threads) pthread_cond_wait(&s->thread_gone, &s->lock);
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < COUNT(s->pool); i++) pthread_cond_destroy(&s->pool[i].work);
    pthread_cond_destroy(&s->thread_gone);
    pthread_mutex_destroy(&s->lock);
    free(s->scratch);
    free(s);
}

/* What is left after the end of a server's time is cut off; until then calls run on. */
static void grpc_stop_tick(timer *t)
{
    grpc_server *s = OWNER(t, grpc_server, stop);
    error e;
    bool over = clock_mono() >= s->stop_at;
    for (grpc_conn *k = s->conns, *next; k; k = next) {
        next = k->next;
        k->h2.now = clock_mono();
        if (over) { grpc_conn_close(k); continue; }
        grpc_on_ping_acked(&k->h2); /* a client that does not answer our PING has had its second */
        grpc_flush(k);
    }
    if (over || (!s->conns && !s->ncalls)) {
        loop_disarm(s->loop, &s->stop);
        s->stop_at = 0;
        s->stopped(s);
        return;
    }
    if (loop_arm(s->loop, &s->stop, s->stop_at, &e) < 0) log_error("grpc: %s", e.text);
}

/* Stops taking connections and calls, and lets those that run finish until `deadline` (monotonic);
 * the loop must go on meanwhile. Then, or when all has ended before, calls stopped(s), once, which
 * may free the server. */
static void grpc_shutdown(grpc_server *s, int64_t deadline, void (*stopped)(grpc_server *))
{
    error e;
    int64_t now = clock_mono();
    grpc_unlisten(s);
    s->stop_at = MAX(deadline, now + 1);
    s->stopped = stopped;
    s->stop.due = grpc_stop_tick;
    int64_t first = s->conns || s->ncalls ? MIN(s->stop_at, now + NS_PER_SEC) : now;
    if (loop_arm(s->loop, &s->stop, first, &e) < 0) log_error("grpc: %s", e.text);
    for (grpc_conn *k = s->conns, *next; k; k = next) {
        next = k->next;
        k->h2.now = now;
        k->leaving = true;
        h2_going_away(&k->h2);
        grpc_flush(k);
    }
}

/* Starts serving o->methods at o->socket_path, on the loop `l`, whose thread calls this and all that
 * follows. *o is copied; what it points to must stay. The server, or NULL and *e. */
static grpc_server *grpc_serve(loop *l, const grpc_options *o, error *e)
{
    grpc_server *s = calloc(1, sizeof *s);
    uint8_t *scratch = malloc(GRPC_READ);
    if (!s || !scratch) {
        free(s);
        free(scratch);
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory"), NULL;
    }
    *s = (grpc_server){ .loop = l, .o = *o, .scratch = scratch, .retry.due = grpc_retry,
                        .listener = { -1, grpc_accept } };
    if (!s->o.max_message) s->o.max_message = GRPC_MESSAGE_MAX;
    if (!s->o.max_buffered) s->o.max_buffered = GRPC_BUFFERED_MAX;
    if (!s->o.max_conns) s->o.max_conns = GRPC_CONNS_MAX;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->thread_gone, NULL);
    grpc_pool_open(&s->pool[0], s, o->short_workers ? o->short_workers : GRPC_SHORT_MAX);
    grpc_pool_open(&s->pool[1], s, o->long_workers ? o->long_workers : GRPC_LONG_MAX);
    s->listener.fd = grpc_listen(o->socket_path, &s->socket, e);
    if (s->listener.fd >= 0 && loop_watch(l, &s->listener, EPOLLIN, e) == 0) return s;
    grpc_server_free(s);
    return NULL;
}

/* -- the client -------------------------------------------------------------------------------- */

/* One connection, used by one thread for one call at a time. */
typedef struct grpc_client {
    int fd;
    h2 h2;
    buf part; /* the beginning of a frame */
    /* the call under way */
    const struct grpc_request *request;
    grpc_inbox inbox;
    arena *arena;
    bool done, answered; /* its stream is closed; it got a grpc-status */
    int http;
    error status;
} grpc_client;

/* A call to be made. If `each` is set, the reply is a stream: it is given every message, which lives
 * until it returns, and ends the call with a -1 and *e. */
typedef struct grpc_request {
    const char *path;
    const pb_message *in_msg, *out_msg;
    const void *in;
    void *out;          /* zeroed by the caller; not used with `each` */
    int64_t timeout_ns; /* 0: none */
    int (*each)(void *user, const void *out, error *e);
    void *user;
} grpc_request;

/* Hangs up and frees. */
static void grpc_hangup(grpc_client *k)
{
    if (!k) return;
    close_fd(&k->fd);
    h2_free(&k->h2);
    buf_free(&k->part);
    buf_free(&k->inbox.body);
    free(k);
}

static slice grpc_unquote(slice text, char *out) /* %XX; *out has room for all of `text` */
{
    size_t n = 0;
    for (slice byte, hex; slice_take(&text, 1, &byte); n++) {
        uint64_t value = byte.p[0];
        hex = (slice){ text.p, 2 };
        if (value == '%' && text.n >= 2 && parse_u64(hex, 16, 255, &value)) slice_take(&text, 2, &hex);
        out[n] = (char)value;
    }
    return (slice){ (uint8_t *)out, n };
}

static void grpc_client_field(h2_stream *s, slice name, slice value)
{
    grpc_client *k = s->owner;
    uint64_t n;
    if (slice_is(name, ":status") && parse_u64(value, 10, 999, &n)) k->http = (int)n;
    if (slice_is(name, "grpc-status")) {
        k->answered = true;
        k->status.code = parse_u64(value, 10, GRPC_UNAUTHENTICATED, &n) ? (int)n : GRPC_UNKNOWN;
    }
    if (slice_is(name, "grpc-message")) {
        char text[H2_LIST_MAX];
        OWNED_BUF harmless = { 0 };
        text_escape(&harmless, grpc_unquote(value, text), sizeof k->status.text - 4);
        snprintf(k->status.text, sizeof k->status.text, "%.*s", PR(buf_view(&harmless)));
    }
}

static int grpc_client_message(grpc_client *k) /* a whole message is in the inbox */
{
    const grpc_request *r = k->request;
    error *e = &k->status;
    int done;
    if (r->each) {
        OWNED_ARENA mine = arena_make(GRPC_ARENA_MAX);
        void *out = arena_alloc(&mine, r->out_msg->size);
        done = !out ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory")
                    : pb_decode(r->out_msg, buf_view(&k->inbox.body), &mine, out, e);
        if (done >= 0) done = r->each(r->user, out, e);
    } else { /* what is decoded points into the bytes, so they become the caller's too */
        slice bytes = arena_copy(k->arena, buf_view(&k->inbox.body));
        done = k->arena->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory")
                             : pb_decode(r->out_msg, bytes, k->arena, r->out, e);
    }
    buf_free(&k->inbox.body);
    k->inbox = (grpc_inbox){ 0 };
    return done;
}

static void grpc_client_data(h2_stream *s, slice data)
{
    grpc_client *k = s->owner;
    while (data.n && !k->answered) {
        int done = grpc_collect(&k->inbox, &data, GRPC_MESSAGE_MAX, &k->status);
        if (done >= 0 && k->inbox.full) done = grpc_client_message(k);
        if (done >= 0) continue;
        k->answered = true;
        h2_reset(s, H2_CANCEL);
    }
}

static void grpc_client_headers(h2_stream *s, bool too_large) { (void)s, (void)too_large; }
static void grpc_client_nothing(h2_stream *s) { (void)s; }

static void grpc_client_closed(h2_stream *s, uint32_t code)
{
    grpc_client *k = s->owner;
    if (!k) return;
    k->done = true;
    if (k->answered) return;
    if (code) fail(&k->status, code == H2_REFUSED_STREAM ? GRPC_UNAVAILABLE : GRPC_INTERNAL, "the call was reset: HTTP/2 error %u", code);
    else fail(&k->status, GRPC_UNKNOWN, "the answer has no grpc-status: HTTP status %d", k->http);
}

static const h2_events grpc_client_events = {
    .field = grpc_client_field, .headers = grpc_client_headers, .data = grpc_client_data,
    .end = grpc_client_nothing, .drained = grpc_client_nothing, .closed = grpc_client_closed,
};

/* Connects to a gRPC server at a unix socket. The client, the caller's, or NULL and UNAVAILABLE. */
static grpc_client *grpc_dial(const char *socket_path, error *e)
{
    struct sockaddr_un address;
    if (grpc_address(socket_path, &address, e) < 0) return NULL;
    OWNED_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        fail_sys(e, GRPC_UNAVAILABLE, "cannot connect to %s", socket_path);
        size_t n = strlen(e->text);
        snprintf(e->text + n, sizeof e->text - n, ": is krun serve running?");
        return NULL;
    }
    grpc_client *k = calloc(1, sizeof *k);
    if (!k) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory"), NULL;
    k->fd = give_fd(&fd);
    h2_init(&k->h2, true, &grpc_client_events, k);
    return k;
}

/* Writes some of what is to be written, reads some of what has come; waits until one is possible. */
static int grpc_client_turn(grpc_client *k, int64_t deadline, error *e)
{
    uint8_t bytes[32 * KIB];
    h2 *h = &k->h2;
    h->now = clock_mono();
    h2_pump(h);
    struct pollfd p = { k->fd, (short)(POLLIN | (h->out.n ? POLLOUT : 0)), 0 };
    if (poll(&p, 1, clock_poll_ms(deadline)) < 0) return errno == EINTR ? 0 : fail_sys(e, GRPC_INTERNAL, "poll");
    if (deadline && clock_mono() >= deadline) return fail(e, GRPC_DEADLINE_EXCEEDED, "no answer in time");
    if (p.revents & POLLOUT) {
        ssize_t n = send(k->fd, h->out.p, h->out.n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN && errno != EINTR) return fail_sys(e, GRPC_UNAVAILABLE, "the connection was lost");
        if (n > 0) buf_drop(&h->out, (size_t)n);
    }
    if (!(p.revents & (POLLIN | POLLHUP | POLLERR))) return 0;
    ssize_t n = recv(k->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) return fail(e, GRPC_UNAVAILABLE, "the connection was lost%s%s", n ? ": " : "", n ? strerror(errno) : "");
    buf_add(&k->part, bytes, (size_t)n);
    if (k->part.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    buf_drop(&k->part, h2_feed(h, buf_view(&k->part)));
    return h->failed ? fail(e, GRPC_UNAVAILABLE, "the server breaks HTTP/2") : 0;
}

static h2_stream *grpc_client_begin(grpc_client *k, error *e)
{
    const grpc_request *r = k->request;
    OWNED_BUF block = { 0 }, message = { 0 };
    char timeout[24];
    if (grpc_encode(r->in_msg, r->in, GRPC_MESSAGE_MAX, &message, e) < 0) return NULL;
    k->h2.now = clock_mono();
    h2_stream *s = h2_open(&k->h2);
    if (!s) return fail(e, GRPC_UNAVAILABLE, "the server takes no more calls"), NULL;
    s->owner = k;
    hpack_put_indexed(&block, HPACK_POST);
    hpack_put_indexed(&block, HPACK_HTTP);
    hpack_put_named(&block, HPACK_PATH, slice_of(r->path));
    hpack_put_named(&block, HPACK_AUTHORITY, SLICE("localhost"));
    hpack_put_named(&block, HPACK_CONTENT_TYPE, SLICE("application/grpc"));
    hpack_put(&block, "te", SLICE("trailers"));
    snprintf(timeout, sizeof timeout, "%" PRId64 "m", MIN((r->timeout_ns + NS_PER_MS - 1) / NS_PER_MS, INT64_C(99999999)));
    if (r->timeout_ns) hpack_put(&block, "grpc-timeout", slice_of(timeout));
    h2_headers(s, buf_view(&block), false);
    h2_send(s, &message, true);
    return s;
}

/* Makes a call and waits for its end. *out and what it points to live as long as `a`. 0, or -1 and
 * *e: what the server said, UNAVAILABLE if the connection is lost, DEADLINE_EXCEEDED. */
static int grpc_invoke(grpc_client *k, const grpc_request *r, arena *a, error *e)
{
    k->request = r;
    k->arena = a;
    k->done = k->answered = false;
    k->status = (error){ 0 };
    k->inbox = (grpc_inbox){ 0 };
    int64_t deadline = r->timeout_ns ? clock_mono() + r->timeout_ns : 0;
    h2_stream *s = grpc_client_begin(k, e);
    if (!s) return -1;
    int going = 0;
    while (!k->done && going == 0) going = grpc_client_turn(k, deadline, e);
    bool lost = !k->done;
    if (lost) {
        k->answered = true;
        h2_reset(s, H2_CANCEL);
        h2_pump(&k->h2); /* sweeps; the reset goes out now if it can, or with the next call */
        ssize_t n = send(k->fd, k->h2.out.p, k->h2.out.n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) buf_drop(&k->h2.out, (size_t)n);
    }
    buf_free(&k->inbox.body);
    if (lost) return -1;
    *e = k->status;
    return e->code == GRPC_OK ? 0 : -1;
}

/* == 12. Registries ==========================================================================
 *
 * An image is a tree of blobs, each named by the SHA-256 of its bytes: an index (one entry a
 * platform) points at a manifest, the manifest at a config and at layers. A registry serves them
 * over HTTP: GET /v2/<repository>/manifests/<tag or digest>, GET /v2/<repository>/blobs/<digest>.
 *
 * All that a registry says is hostile, so the daemon never reads it: it starts `krun fetch`, which
 * runs as nobody, holds the sockets and the credentials of one pull, and hands on bytes; the daemon
 * hashes them; `krun read`, which runs as nobody too and has nothing at all, takes the JSON of
 * manifests and configs apart. A broken fetch can withhold bytes but not forge them, a broken read
 * can misread only the image that broke it.
 *
 *   daemon --FetchSetup, FetchRequest...--> fetch      fd 0: frames (4 bytes little-endian length,
 *   daemon <--bytes..., empty, FetchAnswer-- fetch     fd 1: then as many bytes)
 *
 * Defined by  OCI distribution-spec 1.1 and image-spec 1.1; RFC 9110 and 9112 (HTTP), RFC 6750 and
 *             7617 (Bearer, Basic), RFC 1035 (DNS), resolv.conf(5), containerd's hosts.toml
 * Uses        1, 2, 3 (JSON, TOML), 4 (digests, base64), 8
 * Gives       image_ref_parse, registry_hosts, frame_*, fetch_main, read_main
 * Bounds      reply header 32 KiB and 100 fields, 10 redirects, 4 tries a host, token 1 MiB,
 *             manifest 4 MiB, config 8 MiB, 128 layers; 16 KiB every 30 s or it has stalled */

/* -- image references -----------------------------------------------------------------------------
 *
 * What people type and what it means: "busybox" is docker.io/library/busybox:latest. The rules are
 * those of github.com/distribution/reference, less upper-case host names, which only serve to make
 * two names of one image. */

/* Slices of the arena it was parsed into. Of tag and digest one at least is set. */
typedef struct {
    slice domain, path, tag, digest;
    slice name; /* domain/path */
    slice full; /* name:tag, or name@digest if there is a digest: the tag beside it says nothing */
} image_ref;

enum {
    REF_NAME_MAX = 255,
    REF_TAG_MAX = 128,
    REF_MAX = REF_NAME_MAX + REF_TAG_MAX + DIGEST_TEXT + 2
};

static bool ref_is_alnum(uint8_t c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

/* One part of a path: runs of [a-z0-9], between them one ".", "_", "__" or any number of "-". */
static bool ref_component_valid(slice part)
{
    for (size_t i = 0;;) {
        size_t run = i, gap;
        while (i < part.n && ref_is_alnum(part.p[i])) i++;
        if (i == run) return false;
        if (i == part.n) return true;
        gap = i;
        while (i < part.n && part.p[i] == part.p[gap]) i++;
        size_t most = part.p[gap] == '.'   ? 1
                      : part.p[gap] == '_' ? 2
                      : part.p[gap] == '-' ? part.n
                                           : 0;
        if (i - gap > most) return false;
    }
}

static bool ref_path_valid(slice path)
{
    if (!path.n || path.p[path.n - 1] == '/') return false;
    while (path.n)
        if (!ref_component_valid(slice_cut(&path, '/'))) return false;
    return true;
}

/* Splits "host", "host:port", "[v6]" or "[v6]:port". False if it is none of them; *port is 0 when
 * there is none. The host comes back without its brackets. */
static bool host_split(slice text, slice *host, uint16_t *port)
{
    uint64_t number = 0;
    *port = 0;
    if (text.n && text.p[0] == '[') {
        const uint8_t *end = memchr(text.p, ']', text.n);
        if (!end) return false;
        *host = (slice){ text.p + 1, (size_t)(end - text.p) - 1 };
        text = (slice){ end + 1, text.n - host->n - 2 };
        if (text.n && text.p[0] != ':') return false;
        if (text.n) text = (slice){ text.p + 1, text.n - 1 };
        else return host->n > 0;
    } else {
        bool has_port = slice_has(text, ':');
        *host = slice_cut(&text, ':');
        if (!has_port) return host->n > 0;
    }
    if (!parse_u64(text, 10, 65535, &number) || number == 0) return false;
    *port = (uint16_t)number;
    return host->n > 0;
}

/* Whether `host` is a name (letters of both cases if `upper`) or an address that may stand in a
 * URL: nothing in it can end a header line or climb out of a directory. */
static bool host_valid(slice host, bool upper)
{
    struct in6_addr v6;
    char text[INET6_ADDRSTRLEN];
    if (slice_has(host, ':')) {
        snprintf(text, sizeof text, "%.*s", PR(host));
        return host.n < sizeof text && inet_pton(AF_INET6, text, &v6) == 1;
    }
    if (!host.n || host.n > 253) return false;
    for (slice rest = host; rest.n;) {
        slice label = slice_cut(&rest, '.');
        if (!label.n || label.n > 63 || label.p[0] == '-' || label.p[label.n - 1] == '-')
            return false;
        for (size_t i = 0; i < label.n; i++) {
            uint8_t c = label.p[i];
            bool big = c >= 'A' && c <= 'Z';
            if (!ref_is_alnum(c) && c != '-' && c != '_' && !(big && upper)) return false;
        }
    }
    return host.p[host.n - 1] != '.';
}

static bool ref_tag_valid(slice tag)
{
    if (!tag.n || tag.n > REF_TAG_MAX || tag.p[0] == '.' || tag.p[0] == '-') return false;
    for (size_t i = 0; i < tag.n; i++)
        if (!isalnum(tag.p[i]) && !strchr("_.-", tag.p[i])) return false;
    return true;
}

/* The part before the first slash is a host only if it cannot be a path: it has a dot or a colon,
 * or is "localhost". Takes it off *rest; docker.io if there is none. */
static slice ref_take_domain(slice *rest)
{
    slice after = *rest, head = slice_cut(&after, '/');
    bool is_host =
        after.n && (slice_has(head, '.') || slice_has(head, ':') || slice_is(head, "localhost"));
    if (!is_host) return SLICE("docker.io");
    *rest = after;
    return slice_is(head, "index.docker.io") ? SLICE("docker.io") : head;
}

/* Cuts "@digest" and ":tag" off *name. False if one is there and wrong. */
static bool ref_take_suffixes(slice *name, image_ref *out)
{
    const uint8_t *at = name->n ? memchr(name->p, '@', name->n) : NULL;
    if (at) {
        out->digest = (slice){ at + 1, name->n - (size_t)(at - name->p) - 1 };
        name->n = (size_t)(at - name->p);
        if (!digest_valid(out->digest)) return false;
    }
    const uint8_t *colon = name->n ? memrchr(name->p, ':', name->n) : NULL;
    const uint8_t *slash = name->n ? memrchr(name->p, '/', name->n) : NULL;
    if (!colon || (slash && slash > colon)) return true; /* that colon is a port's */
    out->tag = (slice){ colon + 1, name->n - (size_t)(colon - name->p) - 1 };
    name->n = (size_t)(colon - name->p);
    return ref_tag_valid(out->tag);
}

static bool ref_is_hex_id(slice s)
{
    uint8_t hash[32];
    return s.n == 64 && hex_decode(s, hash, sizeof hash);
}

/* Parses and normalises a reference. -1: INVALID_ARGUMENT, or RESOURCE_EXHAUSTED (memory). */
static int image_ref_parse(slice text, arena *a, image_ref *out, error *e)
{
    slice host, rest = text;
    uint16_t port;
    char shown[80];
    snprintf(shown, sizeof shown, "%.*s%s", (int)MIN(text.n, 70U),
             (const char *)(text.n ? text.p : (const uint8_t *)""), text.n > 70 ? "..." : "");
    *out = (image_ref){ 0 };
    if (!text.n) return fail(e, GRPC_INVALID_ARGUMENT, "image reference is empty");
    if (text.n > REF_MAX)
        return fail(e, GRPC_INVALID_ARGUMENT, "image reference \"%s\" is longer than %d bytes",
                    shown, REF_MAX);
    if (!ref_take_suffixes(&rest, out))
        return fail(e, GRPC_INVALID_ARGUMENT, "image reference \"%s\" has an invalid tag or digest",
                    shown);
    bool hex_id = ref_is_hex_id(rest);
    out->domain = ref_take_domain(&rest);
    if (hex_id || !host_split(out->domain, &host, &port) || !host_valid(host, false) ||
        !ref_path_valid(rest))
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "image reference \"%s\" is not [host[:port]/]name[:tag][@digest] in lower case",
                    shown);
    bool official = slice_is(out->domain, "docker.io") && !slice_has(rest, '/');
    if (!out->tag.n && !out->digest.n) out->tag = SLICE("latest");
    out->path = slice_of(arena_printf(a, "%s%.*s", official ? "library/" : "", PR(rest)));
    out->name = slice_of(arena_printf(a, "%.*s/%.*s", PR(out->domain), PR(out->path)));
    out->full = out->digest.n
                    ? slice_of(arena_printf(a, "%.*s@%.*s", PR(out->name), PR(out->digest)))
                    : slice_of(arena_printf(a, "%.*s:%.*s", PR(out->name), PR(out->tag)));
    out->domain = (slice){ out->name.p, out->domain.n }; /* in the arena, as all the rest */
    out->tag = arena_copy(a, out->tag);
    out->digest = arena_copy(a, out->digest);
    if (a->oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "image reference: out of memory");
    if (out->name.n > REF_NAME_MAX)
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "image reference \"%s\": its name is longer than %d bytes", shown,
                    REF_NAME_MAX);
    return 0;
}

/* -- URLs -------------------------------------------------------------------------------------- */

typedef struct {
    bool tls;
    char host[256];     /* without brackets */
    uint16_t port;
    const char *path;   /* starts with '/', has the query, no fragment; the arena's */
} url;

static bool url_same_server(const url *a, const url *b)
{
    return a->tls == b->tls && a->port == b->port && !strcasecmp(a->host, b->host);
}

/* "host" or "host:port" with the brackets that an IPv6 address wants: for Host and for errors. */
enum { AUTHORITY_TEXT = 300 };
static const char *url_authority(const url *u, char out[AUTHORITY_TEXT])
{
    bool v6 = strchr(u->host, ':'), usual = u->port == (u->tls ? 443 : 80);
    int n = snprintf(out, AUTHORITY_TEXT, v6 ? "[%s]" : "%s", u->host);
    if (!usual) snprintf(out + n, (size_t)(AUTHORITY_TEXT - n), ":%u", u->port);
    return out;
}

/* Parses an absolute http or https URL. Names with user or password, control characters or spaces
 * are refused: what is parsed here is later written into a request line. */
static int url_parse(slice text, arena *a, url *out, error *e)
{
    slice rest = text, host;
    bool tls = slice_starts(text, "https://");
    char shown[160];
    snprintf(shown, sizeof shown, "%.*s", (int)MIN(text.n, 150U),
             (const char *)(text.n ? text.p : (const uint8_t *)""));
    if (!tls && !slice_starts(text, "http://"))
        return fail(e, GRPC_INVALID_ARGUMENT, "URL \"%s\" starts neither with http:// nor https://",
                    shown);
    for (size_t i = 0; i < text.n; i++)
        if (text.p[i] <= ' ' || text.p[i] >= 127 || text.n > 8 * KIB)
            return fail(e, GRPC_INVALID_ARGUMENT,
                        "URL \"%s\" is too long or has a character that must be escaped", shown);
    slice_take(&rest, tls ? 8 : 7, &host);
    size_t n = 0;
    while (n < rest.n && !strchr("/?#", rest.p[n])) n++;
    slice path = { rest.p + n, rest.n - n }, authority = { rest.p, n };
    path = path.n ? slice_cut(&path, '#') : path;
    out->tls = tls;
    if (!host_split(authority, &host, &out->port) || !host_valid(host, true))
        return fail(e, GRPC_INVALID_ARGUMENT, "URL \"%s\" has no valid host and port", shown);
    if (!out->port) out->port = tls ? 443 : 80;
    snprintf(out->host, sizeof out->host, "%.*s", PR(host));
    out->path = arena_printf(a, "%s%.*s", path.n && path.p[0] == '/' ? "" : "/", PR(path));
    return a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "URL: out of memory") : 0;
}

/* What `location` of a reply from `base` means: absolute, "//host/path" or "/path" (RFC 3986, 5.2;
 * a path relative to the last one is used by no registry and refused). */
static int url_follow(const url *base, slice location, arena *a, url *out, error *e)
{
    char authority[AUTHORITY_TEXT];
    const char *scheme = base->tls ? "https" : "http";
    if (slice_starts(location, "//"))
        location = slice_of(arena_printf(a, "%s:%.*s", scheme, PR(location)));
    else if (slice_starts(location, "/"))
        location = slice_of(
            arena_printf(a, "%s://%s%.*s", scheme, url_authority(base, authority), PR(location)));
    return url_parse(location, a, out, e);
}

static void url_escape(buf *out, slice s) /* for a query or a form: RFC 3986, section 2.3 */
{
    for (size_t i = 0; i < s.n; i++) {
        if (isalnum(s.p[i]) || strchr("-._~", s.p[i])) buf_byte(out, s.p[i]);
        else buf_printf(out, "%%%02X", s.p[i]);
    }
}

/* -- names to addresses ---------------------------------------------------------------------------
 *
 * A static glibc has no getaddrinfo(3) to rely on (it loads NSS modules), so this is a stub
 * resolver of RFC 1035: the hosts file, then the servers of resolv.conf, over UDP, over TCP when
 * the answer did not fit. It asks recursive servers and follows nothing itself: what A and AAAA records stand
 * in the answer are the addresses, however many CNAMEs led there. */

enum {
    DNS_ADDRESSES = 16,
    DNS_SERVERS = 3,
    DNS_SEARCH = 6,
    DNS_A = 1,
    DNS_AAAA = 28,
    DNS_UDP_MAX = 4096
};

typedef union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; } address;
typedef struct { address list[DNS_ADDRESSES]; int n; } addresses;

typedef struct {
    address servers[DNS_SERVERS];
    int nservers, ndots, tries;
    int64_t wait; /* ns for one try */
    char search[DNS_SEARCH][256];
    int nsearch;
} dns_config;

static socklen_t address_size(const address *a)
{
    return a->any.sa_family == AF_INET6 ? sizeof a->v6 : sizeof a->v4;
}

/* Reads a literal address. False if `text` is none. */
static bool address_parse(const char *text, uint16_t port, address *out)
{
    *out = (address){ 0 };
    if (inet_pton(AF_INET, text, &out->v4.sin_addr) == 1) {
        out->v4.sin_family = AF_INET;
        out->v4.sin_port = htons(port);
        return true;
    }
    if (inet_pton(AF_INET6, text, &out->v6.sin6_addr) != 1) return false;
    out->v6.sin6_family = AF_INET6;
    out->v6.sin6_port = htons(port);
    return true;
}

/* 169.254/16 and fe80::/10: where clouds serve a machine's own secrets. Nothing that came from the
 * network may send us there. */
static bool address_is_link_local(const address *a)
{
    if (a->any.sa_family == AF_INET) return (ntohl(a->v4.sin_addr.s_addr) >> 16) == 0xA9FE;
    return IN6_IS_ADDR_LINKLOCAL(&a->v6.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr) && a->v6.sin6_addr.s6_addr[12] == 169 &&
            a->v6.sin6_addr.s6_addr[13] == 254);
}

static void addresses_add(addresses *to, const address *one)
{
    if (to->n < DNS_ADDRESSES) to->list[to->n++] = *one;
}

static slice next_word(slice *line)
{
    *line = slice_trim(*line);
    size_t n = 0;
    while (n < line->n && line->p[n] != ' ' && line->p[n] != '\t') n++;
    slice word = { line->p, n };
    *line = (slice){ line->p + n, line->n - n };
    return word;
}

static void dns_config_line(dns_config *c, slice line)
{
    char text[256];
    uint64_t number;
    slice key = next_word(&line), word;
    if (slice_is(key, "search") || slice_is(key, "domain"))
        c->nsearch = 0; /* the last one counts */
    for (; (word = next_word(&line)).n; ) {
        slice value = word, option = slice_cut(&value, ':');
        snprintf(text, sizeof text, "%.*s", PR(word));
        if (slice_is(key, "nameserver") && c->nservers < DNS_SERVERS) {
            if (address_parse(text, 53, &c->servers[c->nservers])) c->nservers++;
        } else if ((slice_is(key, "search") || slice_is(key, "domain")) &&
                   c->nsearch < DNS_SEARCH) {
            if (host_valid(word, true)) memcpy(c->search[c->nsearch++], text, sizeof text);
        } else if (slice_is(key, "options") && parse_u64(value, 10, 30, &number)) {
            if (slice_is(option, "ndots")) c->ndots = (int)number;
            if (slice_is(option, "timeout")) c->wait = (int64_t)MAX(number, 1U) * NS_PER_SEC;
            if (slice_is(option, "attempts")) c->tries = (int)MAX(MIN(number, 5U), 1U);
        }
    }
}

/* resolv.conf(5) as far as a client needs it; without a server in it, one on this machine. */
static dns_config dns_config_parse(slice text)
{
    dns_config c = { .ndots = 1, .tries = 2, .wait = 3 * NS_PER_SEC };
    while (text.n) {
        slice line = slice_cut(&text, '\n');
        if (line.n && line.p[0] != '#' && line.p[0] != ';') dns_config_line(&c, line);
    }
    if (!c.nservers) address_parse("127.0.0.1", 53, &c.servers[c.nservers++]);
    return c;
}

/* Adds the addresses that a hosts file gives for the name: hosts(5). */
static void hosts_find(slice text, const char *name, uint16_t port, addresses *out)
{
    char literal[64];
    while (text.n) {
        slice line = slice_cut(&text, '\n'), word;
        address one;
        line = slice_cut(&line, '#');
        slice ip = next_word(&line);
        snprintf(literal, sizeof literal, "%.*s", PR(ip));
        if (!address_parse(literal, port, &one)) continue;
        while ((word = next_word(&line)).n)
            if (word.n == strlen(name) && !strncasecmp((const char *)word.p, name, word.n)) {
                addresses_add(out, &one);
                break;
            }
    }
}

/* One question on the wire, and what became of it. */
typedef struct { uint8_t packet[300]; size_t n; bool answered, truncated; } dns_question;

/* Header (id, recursion desired, one question), name as labels, type, class IN: RFC 1035, 4.1. */
static bool dns_ask(const char *name, uint8_t type, dns_question *q)
{
    *q = (dns_question){ 0 };
    if (strlen(name) > 253 || !random_bytes(q->packet, 2))
        return false; /* the id: a guess must not pass */
    q->packet[2] = 1;
    q->packet[5] = 1;
    q->n = 12;
    for (slice rest = slice_of(name), label; rest.n; q->n += label.n) {
        label = slice_cut(&rest, '.');
        if (!label.n || label.n > 63) return false;
        q->packet[q->n++] = (uint8_t)label.n;
        memcpy(q->packet + q->n, label.p, label.n);
    }
    q->packet[q->n + 2] = type;
    q->packet[q->n + 4] = 1;
    q->n += 5;
    return true;
}

/* Steps over a name: labels up to an empty one or to a pointer, which is always the last part. */
static bool dns_skip_name(slice *s)
{
    slice skipped;
    while (s->n && s->p[0]) {
        bool pointer = s->p[0] >= 0xC0;
        if (!pointer && s->p[0] > 63) return false;
        if (!slice_take(s, pointer ? 2 : s->p[0] + 1U, &skipped)) return false;
        if (pointer) return true;
    }
    return slice_take(s, 1, &skipped);
}

static void dns_add_record(slice data, unsigned type, uint16_t port, addresses *out)
{
    address one = { 0 };
    if (type == DNS_A && data.n == 4) {
        one.v4.sin_family = AF_INET;
        one.v4.sin_port = htons(port);
        memcpy(&one.v4.sin_addr, data.p, 4);
        addresses_add(out, &one);
    } else if (type == DNS_AAAA && data.n == 16) {
        one.v6.sin6_family = AF_INET6;
        one.v6.sin6_port = htons(port);
        memcpy(&one.v6.sin6_addr, data.p, 16);
        addresses_add(out, &one);
    }
}

/* Takes the reply to *q. False if it is not one: another id, no reply, another question (compared
 * without case, as servers may change it). "No such name" is an answer too, with nothing in it. */
static bool dns_take_reply(slice reply, dns_question *q, uint16_t port, addresses *out)
{
    slice head, skipped;
    if (reply.n < q->n || memcmp(reply.p, q->packet, 2) || !(reply.p[2] & 0x80)) return false;
    if (reply.p[4] != 0 || reply.p[5] != 1) return false;
    if (strncasecmp((const char *)reply.p + 12, (const char *)q->packet + 12, q->n - 12))
        return false;
    unsigned records = reply.p[6] * 256U + reply.p[7], type;
    unsigned rcode = reply.p[3] & 15;
    q->truncated = reply.p[2] & 2;
    q->answered = !q->truncated && (rcode == 0 || rcode == 3);
    if (!q->answered) return true; /* a server that fails: the next one may not */
    slice_take(&reply, q->n, &skipped);
    for (; records; records--) {
        if (!dns_skip_name(&reply) || !slice_take(&reply, 10, &head)) break;
        type = head.p[0] * 256U + head.p[1];
        if (!slice_take(&reply, head.p[8] * 256U + head.p[9], &skipped)) break;
        dns_add_record(skipped, type, port, out);
    }
    return true;
}

/* Waits for `events` on fd until the deadline; false when time ran out. */
static bool wait_fd(int fd, short events, int64_t deadline)
{
    struct pollfd p = { .fd = fd, .events = events };
    for (;;) {
        int n = poll(&p, 1, clock_poll_ms(deadline));
        if (n > 0) return true;
        if (n == 0 || errno != EINTR) return false;
    }
}

/* Connects within the time given. Returns a non-blocking socket, or -1 and errno. */
static int connect_address(const address *to, int type, int64_t deadline)
{
    int why = 0;
    socklen_t size = sizeof why;
    OWNED_FD fd = socket(to->any.sa_family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (connect(fd, &to->any, address_size(to)) == 0) return give_fd(&fd);
    if (errno != EINPROGRESS) return -1;
    if (!wait_fd(fd, POLLOUT, deadline)) return errno = ETIMEDOUT, -1;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &size) < 0) return -1;
    return why ? (errno = why, -1) : give_fd(&fd);
}

/* Reads n bytes of a non-blocking socket before the deadline. */
static bool read_by(int fd, void *p, size_t n, int64_t deadline)
{
    for (uint8_t *at = p; n;) {
        ssize_t got = read(fd, at, n);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
        if (got < 0 && !wait_fd(fd, POLLIN, deadline)) return false;
        if (got < 0) continue;
        at += got;
        n -= (size_t)got;
    }
    return true;
}

/* The same question over TCP: each message after its length in two bytes (RFC 1035, 4.2.2). */
static void dns_over_tcp(const address *server, dns_question *q, uint16_t port, int64_t deadline,
                         addresses *out)
{
    uint8_t framed[sizeof q->packet + 2], size[2];
    OWNED_FD fd = connect_address(server, SOCK_STREAM, deadline);
    if (fd < 0) return;
    framed[0] = (uint8_t)(q->n >> 8);
    framed[1] = (uint8_t)q->n;
    memcpy(framed + 2, q->packet, q->n);
    if (write_all(fd, framed, q->n + 2) < 0 || !read_by(fd, size, 2, deadline)) return;
    size_t n = size[0] * 256U + size[1];
    uint8_t *reply = malloc(n + 1);
    if (reply && read_by(fd, reply, n, deadline)) dns_take_reply((slice){ reply, n }, q, port, out);
    free(reply);
}

/* Asks one server for both kinds of address at once. True when at least one kind was answered. */
static bool dns_ask_server(const address *server, dns_question q[2], int64_t wait, uint16_t port,
                           addresses *out)
{
    uint8_t reply[DNS_UDP_MAX];
    int64_t deadline = clock_mono() + wait;
    OWNED_FD fd =
        connect_address(server, SOCK_DGRAM, deadline); /* so that others' datagrams are dropped */
    if (fd < 0) return false;
    for (int i = 0; i < 2; i++)
        if (send(fd, q[i].packet, q[i].n, MSG_NOSIGNAL) < 0) return false;
    bool pending[2] = { true, true };
    while ((pending[0] || pending[1]) && wait_fd(fd, POLLIN, deadline)) {
        ssize_t n = recv(fd, reply, sizeof reply, 0);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            break; /* ECONNREFUSED: nobody serves there */
        for (int i = 0; n > 0 && i < 2; i++)
            if (pending[i] && dns_take_reply((slice){ reply, (size_t)n }, &q[i], port, out))
                pending[i] = false;
    }
    for (int i = 0; i < 2; i++)
        if (q[i].truncated) dns_over_tcp(server, &q[i], port, clock_mono() + wait, out);
    return q[0].answered || q[1].answered;
}

/* Asks the servers in turn for one full name. True when one of them knew whether it exists. */
static bool dns_query(const dns_config *c, const char *name, uint16_t port, addresses *out)
{
    dns_question q[2];
    for (int i = 0; i < c->tries * c->nservers; i++) {
        if (!dns_ask(name, DNS_A, &q[0]) || !dns_ask(name, DNS_AAAA, &q[1])) return false;
        if (dns_ask_server(&c->servers[i % c->nservers], q, c->wait, port, out)) return true;
    }
    return false;
}

/* A name with fewer dots than `ndots` is tried with each search domain first, else last. */
static int dns_resolve(const dns_config *c, const char *name, uint16_t port, addresses *out,
                       error *e)
{
    char full[520];
    int dots = 0;
    for (const char *p = name; *p; p++) dots += *p == '.';
    bool answered = dots >= c->ndots && dns_query(c, name, port, out);
    for (int i = 0; i < c->nsearch && !out->n; i++) {
        snprintf(full, sizeof full, "%s.%s", name, c->search[i]);
        answered = dns_query(c, full, port, out) || answered;
    }
    if (!out->n && dots < c->ndots) answered = dns_query(c, name, port, out) || answered;
    if (out->n) return 0;
    if (answered)
        return fail(e, GRPC_UNAVAILABLE, "host %s: no such name, or it has no address", name);
    return fail(e, GRPC_UNAVAILABLE, "host %s: no name server answered", name);
}

/* All addresses of a host: a literal, the hosts file, "localhost" (RFC 6761, 6.3), DNS. */
static int host_addresses(const url *u, addresses *out, error *e)
{
    error ignored;
    slice text = { NULL, 0 };
    address one;
    OWNED_ARENA a = arena_make(2 * MIB);
    *out = (addresses){ 0 };
    if (address_parse(u->host, u->port, &one)) return addresses_add(out, &one), 0;
    if (file_read(AT_FDCWD, "/etc/hosts", MIB, &a, &text, &ignored) == 0)
        hosts_find(text, u->host, u->port, out);
    if (!out->n && !strcasecmp(u->host, "localhost")) {
        address_parse("127.0.0.1", u->port, &one);
        addresses_add(out, &one);
        address_parse("::1", u->port, &one);
        addresses_add(out, &one);
    }
    if (out->n) return 0;
    text = (slice){ NULL, 0 };
    (void)file_read(AT_FDCWD, "/etc/resolv.conf", 64 * KIB, &a, &text,
                    &ignored); /* absent: the default server */
    dns_config c = dns_config_parse(text);
    return dns_resolve(&c, u->host, u->port, out, e);
}

/* -- messages between the daemon and its helpers ----------------------------------------------- */

/* A server to ask, best first. `base` is a URL up to and with "/v2". Credentials go only to those
 * that the administrator made the image's own registry, never to a mirror (R11). */
typedef struct { slice base; bool resolve, pull, credentials; LIST(pb_pair) headers; } FetchHost;
PB_TABLE(FetchHost,
    PB(1, STRING, FetchHost, base),
    PB(2, BOOL, FetchHost, resolve),
    PB(3, BOOL, FetchHost, pull),
    PB(4, BOOL, FetchHost, credentials),
    PB_PAIRS(5, FetchHost, headers));

/* What one fetch process is for: one repository, until its fd 0 ends. */
typedef struct {
    slice domain, path;
    LIST(FetchHost) hosts;
    AuthConfig *auth;
    LIST(slice) tls_helper;
} FetchSetup;
PB_TABLE(FetchSetup,
    PB(1, STRING, FetchSetup, domain),
    PB(2, STRING, FetchSetup, path),
    PB_SUBS(3, FetchHost, FetchSetup, hosts),
    PB_SUB(4, AuthConfig, FetchSetup, auth),
    PB_LIST(5, STRING, FetchSetup, tls_helper));

/* A manifest by tag or digest, or a blob by digest. `size` is the most that may come. */
typedef struct { slice reference; bool manifest; uint64_t size; } FetchRequest;
PB_TABLE(FetchRequest,
    PB(1, STRING, FetchRequest, reference),
    PB(2, BOOL, FetchRequest, manifest),
    PB(3, UINT64, FetchRequest, size));

typedef struct { int32_t code; slice message, media_type, digest; } FetchAnswer;
PB_TABLE(FetchAnswer,
    PB(1, INT32, FetchAnswer, code),
    PB(2, STRING, FetchAnswer, message),
    PB(3, STRING, FetchAnswer, media_type),
    PB(4, STRING, FetchAnswer, digest));

enum {
    MANIFEST_MAX = 4 * MIB,
    CONFIG_MAX = 8 * MIB,
    LAYERS_MAX = 128,
    FRAME_MAX = 16 * MIB,
    CHUNK = 64 * KIB
};

static bool frame_write(int fd, slice body)
{
    uint8_t size[4];
    for (int i = 0; i < 4; i++) size[i] = (uint8_t)(body.n >> (8 * i));
    return body.n <= FRAME_MAX && write_all(fd, size, 4) == 0 && write_all(fd, body.p, body.n) == 0;
}

static uint32_t frame_size(const uint8_t p[4])
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Reads one frame into the arena. 1, 0 at the end of the stream, -1. */
static int frame_read(int fd, arena *a, slice *out)
{
    uint8_t size[4];
    ssize_t got = read_all(fd, size, 4);
    if (got <= 0) return (int)got;
    uint8_t *p =
        got == 4 && frame_size(size) <= FRAME_MAX ? arena_alloc(a, frame_size(size) + 1U) : NULL;
    if (!p || read_all(fd, p, frame_size(size)) != (ssize_t)frame_size(size)) return -1;
    *out = (slice){ p, frame_size(size) };
    return 1;
}

static bool frame_write_message(int fd, const pb_message *m, const void *msg)
{
    OWNED_BUF wire = { 0 };
    return pb_encode(m, msg, &wire) == 0 && frame_write(fd, buf_view(&wire));
}

/* The first thing that a helper which reads hostile bytes does: nobody's ids, no capabilities (the
 * kernel clears them when the last root id goes: capabilities(7)), no way to get them back by an
 * exec, no core dump and no ptrace that would show credentials. Without root there is nothing to
 * give up. */
static int become_nobody(error *e)
{
    struct rlimit none = { 0, 0 };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (geteuid() == 0 && (setgroups(0, NULL) < 0 || setresgid(65534, 65534, 65534) < 0 ||
                           setresuid(65534, 65534, 65534) < 0))
        return fail_sys(e, GRPC_INTERNAL, "become nobody");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return fail_sys(e, GRPC_INTERNAL, "no_new_privs");
    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_CORE, &none);
    signal(SIGPIPE, SIG_IGN);
    return 0;
}

/* -- one HTTP/1.1 connection ------------------------------------------------------------------- */

enum {
    HTTP_HEAD_MAX = 32 * KIB, HTTP_FIELDS = 100, HTTP_REDIRECTS = 10, HTTP_CONNS = 4,
    HTTP_LITTLE = 16 * KIB /* bytes that count as progress */
};
#define HTTP_STALL (30 * NS_PER_SEC) /* how long we wait, in all, for each HTTP_LITTLE bytes */
#define HTTP_CONNECT (10 * NS_PER_SEC)

/* What came and was not yet used is in[start..end). `waited` counts only time spent waiting for
 * the peer: a slow disk on our side is not its fault. */
typedef struct {
    int fd;
    url to;
    int64_t waited;
    size_t little, start, end;
    uint8_t in[HTTP_HEAD_MAX];
} http_conn;

typedef struct {
    int status;
    pb_pair fields[HTTP_FIELDS]; /* names and values in the reply's arena */
    size_t nfields;
    bool chunked, until_close, ended, last; /* last: the connection does not live on */
    uint64_t left; /* of the body, or of the chunk that is being read */
} http_reply;

static void http_close(http_conn *c)
{
    close_fd(&c->fd);
    c->fd = -1;
}

/* read(2) that gives up on a slow peer: a byte a second is a way to hold us for ever. */
static ssize_t http_recv(http_conn *c, void *p, size_t n, error *e)
{
    for (;;) {
        ssize_t got = read(c->fd, p, n);
        if (got > 0) {
            c->little += (size_t)got;
            if (c->little >= HTTP_LITTLE) c->waited = 0, c->little = 0;
            return got;
        }
        if (got == 0) return 0;
        if (errno == EINTR) continue;
        if (errno != EAGAIN) return fail_sys(e, GRPC_UNAVAILABLE, "read");
        int64_t before = clock_mono();
        bool ready = wait_fd(c->fd, POLLIN, before + MAX(HTTP_STALL - c->waited, NS_PER_MS));
        c->waited += clock_mono() - before;
        if (!ready || c->waited >= HTTP_STALL)
            return fail(e, GRPC_UNAVAILABLE, "stalled: less than %d bytes in %d s", HTTP_LITTLE,
                        (int)(HTTP_STALL / NS_PER_SEC));
    }
}

/* Gets more bytes behind those in the buffer. -1 also when the peer has closed, or it is full. */
static int http_fill(http_conn *c, error *e)
{
    if (c->start) memmove(c->in, c->in + c->start, c->end - c->start);
    c->end -= c->start;
    c->start = 0;
    if (c->end == sizeof c->in)
        return fail(e, GRPC_UNKNOWN, "a header or line longer than %d bytes", HTTP_HEAD_MAX);
    ssize_t got = http_recv(c, c->in + c->end, sizeof c->in - c->end, e);
    if (got == 0) return fail(e, GRPC_UNAVAILABLE, "connection closed in mid-reply");
    if (got < 0) return -1;
    c->end += (size_t)got;
    return 0;
}

/* The buffer up to and without `mark`, which is stepped over; valid until the next read. */
static int http_until(http_conn *c, const char *mark, slice *out, error *e)
{
    for (;;) {
        uint8_t *at = memmem(c->in + c->start, c->end - c->start, mark, strlen(mark));
        if (at) {
            *out = (slice){ c->in + c->start, (size_t)(at - c->in) - c->start };
            c->start += out->n + strlen(mark);
            return 0;
        }
        if (http_fill(c, e) < 0) return -1;
    }
}

static slice http_field(const http_reply *r, const char *name)
{
    for (size_t i = 0; i < r->nfields; i++)
        if (r->fields[i].key.n == strlen(name) &&
            !strncasecmp((const char *)r->fields[i].key.p, name, r->fields[i].key.n))
            return r->fields[i].value;
    return (slice){ NULL, 0 };
}

static bool slice_same_word(slice s, const char *word)
{
    return s.n == strlen(word) && !strncasecmp((const char *)s.p, word, s.n);
}

/* How the body ends: RFC 9112, section 6.3. Two different lengths, or a length beside chunks, is
 * how replies are smuggled; both are refused. */
static int http_frame_body(http_reply *r, error *e)
{
    slice length = http_field(r, "content-length"), coding = http_field(r, "transfer-encoding");
    for (size_t i = 0; i < r->nfields; i++)
        if (slice_same_word(r->fields[i].key, "content-length") &&
            !slice_eq(r->fields[i].value, length))
            return fail(e, GRPC_UNKNOWN, "two different Content-Length fields");
    r->last = slice_same_word(http_field(r, "connection"), "close");
    if (r->status == 204 || r->status == 304) return r->ended = true, 0;
    if (coding.n) {
        if (!slice_same_word(coding, "chunked") || length.n)
            return fail(e, GRPC_UNKNOWN, "a Transfer-Encoding that is not chunked alone");
        return r->chunked = true, 0;
    }
    if (!length.n) return r->until_close = r->last = true, 0;
    if (!parse_u64(length, 10, INT64_MAX, &r->left))
        return fail(e, GRPC_UNKNOWN, "Content-Length is no number");
    r->ended = r->left == 0;
    return 0;
}

static int http_parse_head(slice head, arena *a, http_reply *r, error *e)
{
    uint64_t status;
    slice line = slice_cut(&head, '\n');
    *r = (http_reply){ 0 };
    bool ours = slice_starts(line, "HTTP/1.1 ") || slice_starts(line, "HTTP/1.0 ");
    if (!ours || line.n < 12 || !parse_u64((slice){ line.p + 9, 3 }, 10, 999, &status))
        return fail(e, GRPC_UNKNOWN, "the reply is not HTTP/1.1");
    r->status = (int)status;
    while (head.n) {
        slice value = slice_cut(&head, '\n'), name = slice_cut(&value, ':');
        if (!name.n || isspace(name.p[name.n - 1]) || isspace(name.p[0]) ||
            r->nfields == HTTP_FIELDS)
            return fail(e, GRPC_UNKNOWN, "a header field without a name, or more than %d",
                        HTTP_FIELDS);
        r->fields[r->nfields++] =
            (pb_pair){ arena_copy(a, name), arena_copy(a, slice_trim(value)) };
    }
    if (a->oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a reply's header");
    bool v10 = slice_starts(line, "HTTP/1.0");
    if (http_frame_body(r, e) < 0) return -1;
    r->last = r->last || v10;
    return 0;
}

/* Reads a reply's header, past interim ones (1xx). */
static int http_read_head(http_conn *c, arena *a, http_reply *r, error *e)
{
    slice head;
    for (int i = 0; i < 8; i++) {
        if (http_until(c, "\r\n\r\n", &head, e) < 0) return -1;
        if (http_parse_head(head, a, r, e) < 0) return -1;
        if (r->status >= 200) return 0;
    }
    return fail(e, GRPC_UNKNOWN, "interim replies without end");
}

/* The size line of the next chunk, or the end and what trails it: RFC 9112, section 7.1. */
static int http_next_chunk(http_conn *c, http_reply *r, error *e)
{
    slice line;
    if (http_until(c, "\r\n", &line, e) < 0) return -1;
    slice digits = slice_trim(slice_cut(&line, ';'));
    if (!parse_u64(digits, 16, INT64_MAX, &r->left))
        return fail(e, GRPC_UNKNOWN, "a chunk's size is no number");
    if (r->left) return 0;
    r->ended = true;
    for (int i = 0; i <= HTTP_FIELDS; i++) {
        if (http_until(c, "\r\n", &line, e) < 0) return -1;
        if (!line.n) return 0;
    }
    return fail(e, GRPC_UNKNOWN, "trailers without end");
}

/* Up to n bytes of the body; 0 at its end, -1 if it breaks off. */
static ssize_t http_body(http_conn *c, http_reply *r, uint8_t *p, size_t n, error *e)
{
    slice end;
    if (r->chunked && !r->ended && !r->left && http_next_chunk(c, r, e) < 0) return -1;
    if (r->ended) return 0;
    if (!r->until_close) n = (size_t)MIN((uint64_t)n, r->left);
    ssize_t got = (ssize_t)MIN(n, c->end - c->start);
    if (got) memcpy(p, c->in + c->start, (size_t)got);
    c->start += (size_t)got;
    if (!got) got = http_recv(c, p, n, e);
    if (got < 0) return -1;
    if (got == 0 && !r->until_close)
        return fail(e, GRPC_UNAVAILABLE, "connection closed in mid-body");
    if (r->until_close) return r->ended = got == 0, got;
    r->left -= (uint64_t)got;
    if (r->left) return got;
    if (!r->chunked) r->ended = true;
    else if (http_until(c, "\r\n", &end, e) < 0 || end.n)
        return end.n ? fail(e, GRPC_UNKNOWN, "a chunk longer than it said") : -1;
    return got;
}

/* The whole body, if it is at most `max` bytes. */
static int http_body_all(http_conn *c, http_reply *r, size_t max, buf *out, error *e)
{
    for (;;) {
        if (!buf_reserve(out, 4 * KIB))
            return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a reply");
        ssize_t got = http_body(c, r, out->p + out->n, 4 * KIB, e);
        if (got <= 0) return (int)got;
        out->n += (size_t)got;
        if (out->n > max) return fail(e, GRPC_UNKNOWN, "the reply is longer than %zu bytes", max);
    }
}

/* Puts the connection back for the next request, if the reply left it in a known state. */
static void http_done(http_conn *c, const http_reply *r)
{
    if (!r->ended || r->last) http_close(c);
}

/* -- a session with a registry ----------------------------------------------------------------- */

enum { FETCH_HOSTS = 8, FETCH_TRIES = 4, TOKEN_MAX = MIB };
#define FETCH_PATIENCE (30 * NS_PER_SEC) /* the longest Retry-After that is waited for */

/* A server, and what it wants to see in Authorization: "Bearer ..." or "Basic ...", NULL before it
 * has asked for something. */
typedef struct { const FetchHost *conf; char *authorization; } fetch_host;

/* The whole state of a fetch process: it serves one repository, one request at a time. */
typedef struct {
    FetchSetup setup;
    fetch_host hosts[FETCH_HOSTS];
    http_conn conns[HTTP_CONNS];
    size_t next_conn;            /* the one that is given up when a fifth is wanted */
    int64_t retry_after;         /* ns, as the last refusal said; 0 when it did not */
    arena *a;                    /* of the request that is being served */
    arena session;               /* of the setup and the tokens */
} fetch;

/* One request as it goes out. */
typedef struct {
    const url *to;
    const char *accept, *authorization;
    uint64_t offset;
    const FetchHost *host;
    slice form;
} http_request;

/* A TLS stream as a descriptor: the administrator's tls_helper, a program that is given host and
 * port as its last two arguments and whose stdin and stdout are the stream. */
static int fetch_tls(const fetch *f, const url *u, error *e)
{
    char port[8], *argv[16] = { NULL };
    int pair[2];
    size_t n = 0;
    if (!f->setup.tls_helper.n)
        return fail(
            e, GRPC_UNIMPLEMENTED,
            "https is not supported in this build yet: configure an http mirror in hosts.toml");
    for (; n < f->setup.tls_helper.n && n < 12; n++)
        argv[n] = arena_str(f->a, f->setup.tls_helper.p[n]);
    snprintf(port, sizeof port, "%u", u->port);
    argv[n++] = arena_str(f->a, slice_of(u->host));
    argv[n] = port;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "tls_helper");
    OWNED_FD ours = pair[0], theirs = pair[1];
    char *envp[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };
    spawn_args args = { .exec_fd = -1,
                        .path = argv[0],
                        .argv = argv,
                        .envp = envp,
                        .fds = (int[]){ theirs, theirs, 2 },
                        .nfds = 3 };
    OWNED_FD pidfd = spawn(
        &args, NULL, e); /* nobody waits for it: it ends with its stream, and its zombie with us */
    if (pidfd < 0) return fail_in(e, "tls_helper");
    if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0) return fail_sys(e, GRPC_INTERNAL, "tls_helper");
    return give_fd(&ours);
}

/* Connects to the first address that answers. What came from the network may not name a link-local
 * address: `trusted` says that a configuration did. */
static int fetch_connect(const fetch *f, const url *u, bool trusted, error *e)
{
    addresses list;
    if (u->tls) return fetch_tls(f, u, e);
    if (host_addresses(u, &list, e) < 0) return -1;
    fail(e, GRPC_UNAVAILABLE, "no address of %s may be used", u->host);
    for (int i = 0; i < list.n; i++) {
        if (!trusted && address_is_link_local(&list.list[i])) continue;
        int fd = connect_address(&list.list[i], SOCK_STREAM, clock_mono() + HTTP_CONNECT);
        if (fd >= 0) return fd;
        fail_sys(e, GRPC_UNAVAILABLE, "connect to %s port %u", u->host, u->port);
    }
    return -1;
}

/* A connection to u's server: one that is kept, or a new one. *fresh says which. */
static http_conn *fetch_open(fetch *f, const url *u, bool trusted, bool *fresh, error *e)
{
    *fresh = false;
    for (size_t i = 0; i < HTTP_CONNS; i++)
        if (f->conns[i].fd >= 0 && url_same_server(&f->conns[i].to, u)) return &f->conns[i];
    int one = 1, fd = fetch_connect(f, u, trusted, e);
    if (fd < 0) return NULL;
    http_conn *c = &f->conns[f->next_conn++ % HTTP_CONNS];
    http_close(c);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->fd = fd;
    c->to = *u;
    c->start = c->end = c->little = 0;
    c->waited = 0;
    *fresh = true;
    return c;
}

static void http_write_request(const http_request *q, buf *out)
{
    char authority[AUTHORITY_TEXT];
    buf_printf(
        out, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: krun/%s\r\nAccept-Encoding: identity\r\n",
        q->form.n ? "POST" : "GET", q->to->path, url_authority(q->to, authority), KRUN_VERSION);
    if (q->accept) buf_printf(out, "Accept: %s\r\n", q->accept);
    if (q->authorization) buf_printf(out, "Authorization: %s\r\n", q->authorization);
    if (q->offset) buf_printf(out, "Range: bytes=%" PRIu64 "-\r\n", q->offset);
    for (size_t i = 0; q->host && i < q->host->headers.n; i++)
        buf_printf(out, "%.*s: %.*s\r\n", PR(q->host->headers.p[i].key),
                   PR(q->host->headers.p[i].value));
    if (q->form.n)
        buf_printf(out,
                   "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %zu\r\n",
                   q->form.n);
    buf_str(out, "\r\n");
    buf_slice(out, q->form);
}

static int http_send(http_conn *c, slice bytes, error *e)
{
    while (bytes.n) {
        ssize_t n = send(c->fd, bytes.p, bytes.n, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN && wait_fd(c->fd, POLLOUT, clock_mono() + HTTP_STALL))
            continue;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_sys(e, GRPC_UNAVAILABLE, "send the request");
        bytes = (slice){ bytes.p + n, bytes.n - (size_t)n };
    }
    return 0;
}

/* Sends a request and reads the reply's header. A kept connection may have been closed by the
 * server just now: a failure on one is tried again on a fresh one (RFC 9112, 9.3.1). */
static http_conn *http_ask(fetch *f, const http_request *q, bool trusted, http_reply *r, error *e)
{
    for (;;) {
        bool fresh;
        OWNED_BUF out = { 0 };
        http_conn *c = fetch_open(f, q->to, trusted, &fresh, e);
        if (!c) return NULL;
        http_write_request(q, &out);
        c->waited = 0;
        if (!out.oom && http_send(c, buf_view(&out), e) == 0 && http_read_head(c, f->a, r, e) == 0)
            return c;
        http_close(c);
        if (fresh || e->code != GRPC_UNAVAILABLE) return NULL;
    }
}

/* -- proving who we are ------------------------------------------------------------------------ */

/* The value of a parameter of a challenge (RFC 9110, 11.2): name=token or name="quoted". */
static slice challenge_get(slice params, const char *wanted, arena *a)
{
    while (params.n) {
        slice name = slice_trim(slice_cut(&params, '='));
        while (name.n && (name.p[0] == ',' || name.p[0] == ' '))
            name = (slice){ name.p + 1, name.n - 1 };
        OWNED_BUF value = { 0 };
        size_t i = 0;
        bool quoted = params.n && params.p[0] == '"';
        for (i = quoted; i < params.n && params.p[i] != (quoted ? '"' : ','); i++) {
            if (quoted && params.p[i] == '\\' && i + 1 < params.n) i++;
            buf_byte(&value, params.p[i]);
        }
        i = MIN(i + 1, params.n);
        params = (slice){ params.p + i, params.n - i };
        if (slice_same_word(name, wanted)) return arena_copy(a, slice_trim(buf_view(&value)));
    }
    return (slice){ NULL, 0 };
}

/* "user:password" of the AuthConfig, in base64 as Basic wants it (RFC 7617); empty without one. The
 * kubelet may pad `auth` with NULs. */
static slice auth_basic(const AuthConfig *auth, arena *a)
{
    OWNED_BUF plain = { 0 }, coded = { 0 };
    if (!auth) return (slice){ NULL, 0 };
    if (auth->username.n || auth->password.n)
        buf_printf(&plain, "%.*s:%.*s", PR(auth->username), PR(auth->password));
    else if (!auth->auth.n || !base64_decode(slice_trim(auth->auth), &plain))
        return (slice){ NULL, 0 };
    while (plain.n && !plain.p[plain.n - 1]) plain.n--;
    base64_encode(buf_view(&plain), &coded);
    return coded.oom ? (slice){ NULL, 0 } : arena_copy(a, buf_view(&coded));
}

static bool token_valid(slice token) /* what may stand in a header without ending it */
{
    for (size_t i = 0; i < token.n; i++)
        if (token.p[i] <= ' ' || token.p[i] >= 127) return false;
    return token.n > 0;
}

/* The query (or the form, with an identity token: the OAuth2 way) that asks for a pull token. */
static void token_query(const fetch *f, slice challenge, slice identity, buf *out)
{
    slice service = challenge_get(challenge, "service", f->a),
          scope = challenge_get(challenge, "scope", f->a);
    if (!scope.n) scope = slice_of(arena_printf(f->a, "repository:%.*s:pull", PR(f->setup.path)));
    buf_str(out, "service=");
    url_escape(out, service);
    buf_str(out, "&scope=");
    url_escape(out, scope);
    if (!identity.n) return;
    buf_str(out, "&grant_type=refresh_token&client_id=krun&refresh_token=");
    url_escape(out, identity);
}

/* Whether the secret may go to the realm: over TLS wherever the registry says, since that is how a
 * token is asked for; in clear only to the registry's own host, and only if it is plain itself. */
static bool realm_trusted(const url *realm, const url *registry)
{
    return realm->tls || (!registry->tls && !strcasecmp(realm->host, registry->host));
}

static int token_parse(fetch *f, fetch_host *h, slice body, error *e)
{
    json *tree = json_parse(body, f->a, e);
    slice token = json_text(json_get(tree, "token"));
    if (!token.n) token = json_text(json_get(tree, "access_token"));
    if (!tree || !token_valid(token))
        return fail(e, GRPC_UNAUTHENTICATED, "the token server's reply holds no token");
    h->authorization = arena_printf(&f->session, "Bearer %.*s", PR(token));
    return f->session.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a token") : 0;
}

/* Gets a token for pulling from the server that the challenge names (distribution's token
 * authentication): GET with Basic, or POST with the identity token. */
static int token_fetch(fetch *f, fetch_host *h, const url *registry, slice challenge, error *e)
{
    url realm;
    http_reply r;
    OWNED_BUF query = { 0 }, body = { 0 };
    const AuthConfig *auth = h->conf->credentials ? f->setup.auth : NULL;
    if (url_parse(challenge_get(challenge, "realm", f->a), f->a, &realm, e) < 0)
        return fail_in(e, "token server");
    if (registry->tls && !realm.tls)
        return fail(e, GRPC_PERMISSION_DENIED, "token server %s is not https as its registry is",
                    realm.host);
    if (!realm_trusted(&realm, registry)) auth = NULL;
    slice identity = auth ? auth->identity_token : (slice){ NULL, 0 },
          basic = auth_basic(auth, f->a);
    token_query(f, challenge, identity, &query);
    http_request q = { .to = &realm, .accept = "application/json" };
    if (basic.n && !identity.n) q.authorization = arena_printf(f->a, "Basic %.*s", PR(basic));
    if (identity.n) q.form = buf_view(&query);
    else
        realm.path = arena_printf(f->a, "%s%c%.*s", realm.path, strchr(realm.path, '?') ? '&' : '?',
                                  PR(query));
    bool own = !strcasecmp(realm.host, registry->host);
    http_conn *c = http_ask(f, &q, own, &r, e);
    if (!c) return fail_in(e, "token server %s", realm.host);
    if (http_body_all(c, &r, TOKEN_MAX, &body, e) < 0)
        return http_close(c), fail_in(e, "token server %s", realm.host);
    http_done(c, &r);
    int refused = r.status == 429 || r.status >= 500 ? GRPC_UNAVAILABLE : GRPC_UNAUTHENTICATED;
    if (r.status != 200)
        return fail(e, refused, "token server %s: HTTP status %d", realm.host, r.status);
    return token_parse(f, h, buf_view(&body), e);
}

/* Answers a 401: finds the challenge that we can meet and makes the Authorization value for it. */
static int fetch_authorize(fetch *f, fetch_host *h, const url *registry, const http_reply *r,
                           error *e)
{
    slice bearer = { NULL, 0 },
          basic = auth_basic(h->conf->credentials ? f->setup.auth : NULL, f->a);
    bool basic_wanted = false;
    for (size_t i = 0; i < r->nfields; i++) {
        slice value = r->fields[i].value;
        if (!slice_same_word(r->fields[i].key, "www-authenticate")) continue;
        slice scheme = slice_cut(&value, ' ');
        if (slice_same_word(scheme, "bearer")) bearer = value;
        if (slice_same_word(scheme, "basic")) basic_wanted = true;
    }
    if (bearer.n) return token_fetch(f, h, registry, bearer, e);
    if (!basic_wanted || !basic.n)
        return fail(e, GRPC_UNAUTHENTICATED,
                    "HTTP status 401: it wants credentials, and there are none for it");
    h->authorization = arena_printf(&f->session, "Basic %.*s", PR(basic));
    return f->session.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for credentials") : 0;
}

/* -- asking a registry ------------------------------------------------------------------------- */

/* What a status that is no success means for the caller. UNAVAILABLE is what a retry may cure. */
static int status_code(int status)
{
    switch (status) {
    case 401: return GRPC_UNAUTHENTICATED;
    case 403: return GRPC_PERMISSION_DENIED;
    case 404: return GRPC_NOT_FOUND;
    case 408: case 429: return GRPC_UNAVAILABLE;
    default: return status >= 500 ? GRPC_UNAVAILABLE : GRPC_UNKNOWN;
    }
}

/* The registry's own words for a refusal: {"errors": [{"code": ..., "message": ...}]}. */
static const char *refusal_text(fetch *f, http_conn *c, http_reply *r)
{
    error ignored;
    OWNED_BUF body = { 0 }, shown = { 0 };
    if (http_body_all(c, r, 64 * KIB, &body, &ignored) < 0) return "";
    const json *errors = json_get(json_parse(buf_view(&body), f->a, &ignored), "errors");
    if (!errors || errors->kind != JSON_ARRAY || !errors->n) return "";
    buf_str(&shown, " (");
    text_escape(&shown, json_text(json_get(&errors->items[0], "code")), 64);
    buf_str(&shown, ": ");
    text_escape(&shown, json_text(json_get(&errors->items[0], "message")), 160);
    buf_str(&shown, ")");
    return shown.oom ? "" : arena_str(f->a, buf_view(&shown));
}

static int fetch_refused(fetch *f, http_conn *c, http_reply *r, error *e)
{
    uint64_t seconds;
    if (parse_u64(http_field(r, "retry-after"), 10, 1000000, &seconds))
        f->retry_after = (int64_t)seconds * NS_PER_SEC;
    else if (http_field(r, "retry-after").n)
        f->retry_after = INT64_MAX; /* a date, or past all patience */
    int status = r->status;
    const char *words = refusal_text(f, c, r);
    http_done(c, r);
    return fail(e, status_code(status), "HTTP status %d%s", status, words);
}

static bool status_redirects(int status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

/* Where a redirect leads. Never from https to http: what was private would be sent in clear. */
static int fetch_redirect(fetch *f, http_conn *c, http_reply *r, url *u, error *e)
{
    url next;
    OWNED_BUF ignored = { 0 };
    if (url_follow(u, http_field(r, "location"), f->a, &next, e) < 0) return fail_in(e, "redirect");
    if (u->tls && !next.tls)
        return fail(e, GRPC_PERMISSION_DENIED, "redirect from https to http://%s", next.host);
    if (http_body_all(c, r, 64 * KIB, &ignored, e) < 0) http_close(c);
    else http_done(c, r);
    *u = next;
    return 0;
}

/* GETs `q->to` with all that HTTP asks for on the way: a login once, redirects. Comes back with a
 * connection whose reply is 200 or 206 and whose body is to be read; or NULL. Credentials and the
 * host's own headers go to the server that we were told to ask, and nowhere else. */
static http_conn *fetch_get(fetch *f, fetch_host *h, const http_request *q, http_reply *r, error *e)
{
    url u = *q->to;
    bool logged_in = false;
    for (int hops = 0; hops <= HTTP_REDIRECTS;) {
        bool home = url_same_server(&u, q->to);
        http_request one = { .to = &u,
                             .accept = q->accept,
                             .offset = q->offset,
                             .authorization = home ? h->authorization : NULL,
                             .host = home ? h->conf : NULL };
        http_conn *c = http_ask(f, &one, home, r, e);
        if (!c) return NULL;
        if (r->status == 200 || r->status == 206) return c;
        if (r->status == 401 && home && !logged_in) {
            http_close(c);
            logged_in = true;
            if (fetch_authorize(f, h, &u, r, e) < 0) return NULL;
        } else if (status_redirects(r->status)) {
            hops++;
            if (fetch_redirect(f, c, r, &u, e) < 0) return http_close(c), NULL;
        } else return fetch_refused(f, c, r, e), NULL;
    }
    return fail(e, GRPC_UNKNOWN, "more than %d redirects", HTTP_REDIRECTS), NULL;
}

/* A request that is being served: how much of the body has gone to the daemon already, so that a
 * connection cut in the middle costs only what had not yet come. */
typedef struct {
    FetchRequest ask;
    uint64_t sent;
    slice media_type, digest;
    uint8_t chunk[CHUNK];
} fetch_task;

static const char fetch_accept[] =
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json, */*";

/* How many bytes at the front of this reply we have already: all that were sent if the server gives
 * the whole again, none if it gives the range we asked for, and no other range will do. */
static int fetch_skip(const fetch_task *task, const http_reply *r, uint64_t *skip, error *e)
{
    uint64_t from = 0;
    slice range = http_field(r, "content-range"), unit = slice_cut(&range, ' ');
    *skip = r->status == 206 ? 0 : task->sent;
    if (r->status != 206) return 0;
    bool right = slice_is(unit, "bytes") &&
                 parse_u64(slice_cut(&range, '-'), 10, UINT64_MAX, &from) && from == task->sent;
    return right && task->sent
               ? 0
               : fail(e, GRPC_UNKNOWN, "it answered with a range that was not asked for");
}

/* Hands the body on in frames. When the daemon is gone the process ends: nobody listens. */
static int fetch_copy(http_conn *c, http_reply *r, fetch_task *task, error *e)
{
    uint64_t skip;
    ssize_t got;
    if (fetch_skip(task, r, &skip, e) < 0) return -1;
    while ((got = http_body(c, r, task->chunk, CHUNK, e)) > 0) {
        slice body = { task->chunk, (size_t)got }, old;
        slice_take(&body, (size_t)MIN(skip, body.n), &old);
        skip -= old.n;
        if (body.n > task->ask.size - task->sent)
            return fail(e, GRPC_UNKNOWN,
                        "it sends more than the %" PRIu64 " bytes that there may be",
                        task->ask.size);
        if (body.n && !frame_write(STDOUT_FILENO, body)) _exit(1);
        task->sent += body.n;
    }
    if (got < 0) return -1;
    if (task->ask.manifest || task->sent == task->ask.size) return 0;
    return fail(e, GRPC_UNKNOWN, "it sent %" PRIu64 " bytes of %" PRIu64, task->sent,
                task->ask.size);
}

static int fetch_once(fetch *f, fetch_host *h, const url *u, fetch_task *task, error *e)
{
    http_reply r;
    http_request q = { .to = u,
                       .accept = task->ask.manifest ? fetch_accept : NULL,
                       .offset = task->sent };
    http_conn *c = fetch_get(f, h, &q, &r, e);
    if (!c) return -1;
    if (fetch_copy(c, &r, task, e) < 0) return http_close(c), -1;
    slice type = http_field(&r, "content-type");
    task->media_type = slice_trim(slice_cut(&type, ';'));
    task->digest = http_field(&r, "docker-content-digest");
    http_done(c, &r);
    return 0;
}

static void sleep_ns(int64_t ns)
{
    struct timespec t = { (time_t)(ns / NS_PER_SEC), (long)(ns % NS_PER_SEC) };
    while (nanosleep(&t, &t) < 0 && errno == EINTR) {}
}

/* Asks one host, again while there is hope: 0.1, 0.4, 1.6 s between the tries, or as long as the
 * server says. A try that brought a MiB starts the count anew, so a bad line ends a big layer late
 * but does end it. */
static int fetch_from(fetch *f, fetch_host *h, fetch_task *task, error *e)
{
    url u;
    slice ref = task->ask.reference;
    const char *mirror =
        h->conf->credentials ? "" : arena_printf(f->a, "?ns=%.*s", PR(f->setup.domain));
    char *text = arena_printf(f->a, "%.*s/%.*s/%s/%.*s%s", PR(h->conf->base), PR(f->setup.path),
                              task->ask.manifest ? "manifests" : "blobs", PR(ref), mirror);
    if (url_parse(slice_of(text), f->a, &u, e) < 0) return -1;
    for (int tries = 0;;) {
        uint64_t before = task->sent;
        f->retry_after = 0;
        if (fetch_once(f, h, &u, task, e) == 0) return 0;
        if (task->sent - before >= MIB) tries = 0;
        if (e->code != GRPC_UNAVAILABLE || ++tries >= FETCH_TRIES ||
            f->retry_after > FETCH_PATIENCE)
            break;
        sleep_ns(MAX(f->retry_after, 100 * NS_PER_MS << (2 * (tries - 1))));
    }
    return fail_in(e, "GET %s", text);
}

/* Asks the hosts in order until one has it. The last one's error counts, since it is the registry
 * itself; what its mirrors said stands in front. */
static int fetch_serve(fetch *f, fetch_task *task, error *e)
{
    error last;
    OWNED_BUF before = { 0 };
    fail(e, GRPC_FAILED_PRECONDITION, "no host of %.*s is configured for this",
         PR(f->setup.domain));
    for (size_t i = 0; i < f->setup.hosts.n; i++) {
        const FetchHost *conf = f->hosts[i].conf;
        if (!(task->ask.manifest ? conf->resolve : conf->pull)) continue;
        if (fetch_from(f, &f->hosts[i], task, &last) == 0) return 0;
        if (before.n) fail_with(e, last.code, 0, "%.*s; %s", PR(buf_view(&before)), last.text);
        else *e = last;
        before.n = 0;
        buf_str(&before, e->text);
    }
    return -1;
}

static int fetch_begin(fetch *f, error *e)
{
    slice wire;
    if (become_nobody(e) < 0) return -1;
    if (frame_read(STDIN_FILENO, &f->session, &wire) != 1)
        return fail(e, GRPC_INTERNAL, "fetch: no setup on descriptor 0");
    if (pb_decode(&FetchSetup_msg, wire, &f->session, &f->setup, e) < 0) return -1;
    f->setup.hosts.n = MIN(f->setup.hosts.n, (size_t)FETCH_HOSTS);
    for (size_t i = 0; i < HTTP_CONNS; i++) f->conns[i].fd = -1;
    for (size_t i = 0; i < f->setup.hosts.n; i++) {
        const AuthConfig *auth = f->setup.hosts.p[i].credentials ? f->setup.auth : NULL;
        f->hosts[i].conf = &f->setup.hosts.p[i];
        if (auth && token_valid(auth->registry_token))
            f->hosts[i].authorization =
                arena_printf(&f->session, "Bearer %.*s", PR(auth->registry_token));
    }
    return 0;
}

/* `krun fetch`: a setup, then requests, until fd 0 ends. Each is answered by the body in frames, an
 * empty frame, and a FetchAnswer, which alone says whether the body is whole. */
static int fetch_main(int argc, char **argv)
{
    static fetch f;
    static fetch_task task;
    error e = { 0 };
    slice wire;
    (void)argc, (void)argv;
    f.session = arena_make(4 * MIB);
    if (fetch_begin(&f, &e) < 0) return log_error("%s", e.text), 1;
    for (;;) {
        OWNED_ARENA a = arena_make(16 * MIB);
        FetchAnswer answer = { 0 };
        f.a = &a;
        task = (fetch_task){ 0 };
        if (frame_read(STDIN_FILENO, &a, &wire) != 1) return 0;
        if (pb_decode(&FetchRequest_msg, wire, &a, &task.ask, &e) == 0 &&
            fetch_serve(&f, &task, &e) == 0)
            answer = (FetchAnswer){ .media_type = task.media_type, .digest = task.digest };
        else answer = (FetchAnswer){ .code = e.code, .message = slice_of(e.text) };
        if (!frame_write(STDOUT_FILENO, (slice){ NULL, 0 }) ||
            !frame_write_message(STDOUT_FILENO, &FetchAnswer_msg, &answer))
            return 1;
    }
}

/* -- which servers to ask -------------------------------------------------------------------------
 *
 * The administrator says it in containerd's form, <dir>/<host>[:port]/hosts.toml (or
 * <dir>/_default), read at each pull, by the daemon: these files are its own, and may be readable
 * by root alone.
 *
 *   server = "https://registry.example"          the registry itself, asked last
 *   [host."http://127.0.0.1:5000"]               asked first, in the order of the file
 *     capabilities = ["pull", "resolve"]         all, when it is left out
 *     override_path = true                       the URL's path is used without "/v2" after it */

static bool host_is_loopback(slice authority)
{
    slice host;
    uint16_t port;
    if (!host_split(authority, &host, &port)) return false;
    return slice_is(host, "localhost") || slice_is(host, "::1") || slice_starts(host, "127.");
}

/* The base URL for what stands in hosts.toml: a URL with or without scheme and path. */
static int hosts_base(slice given, bool override_path, arena *a, slice *out, error *e)
{
    url ignored;
    slice text = given, authority = given;
    bool scheme = memmem(given.p ? given.p : (const uint8_t *)"", given.n, "://", 3) != NULL;
    while (text.n && text.p[text.n - 1] == '/') text.n--;
    if (!scheme)
        text = slice_of(arena_printf(
            a, "%s://%.*s", host_is_loopback(slice_cut(&authority, '/')) ? "http" : "https",
            PR(text)));
    if (url_parse(text, a, &ignored, e) < 0) return -1;
    bool whole = override_path || slice_ends(text, "/v2");
    *out = whole ? text : slice_of(arena_printf(a, "%.*s/v2", PR(text)));
    return a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "hosts.toml: out of memory") : 0;
}

static bool hosts_can(const json *capabilities, const char *what)
{
    bool can = !capabilities;
    for (size_t i = 0; capabilities && i < capabilities->n; i++)
        can = can || slice_is(json_text(&capabilities->items[i]), what);
    return can;
}

/* [host."...".header]: a value is a text or a list of them. A line end in one would be a second
 * header, so it is refused. */
static int hosts_headers(const json *table, arena *a, FetchHost *out, error *e)
{
    if (!table || !table->n) return 0;
    out->headers.p = arena_alloc(a, table->n * sizeof *out->headers.p);
    if (!out->headers.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "hosts.toml: out of memory");
    for (size_t i = 0; i < table->n; i++) {
        const json *value = &table->items[i];
        if (value->kind == JSON_ARRAY && value->n) value = &value->items[0];
        slice text = json_text(value), name = table->items[i].key;
        if (slice_has(text, '\n') || slice_has(text, '\r') || slice_has(name, '\n') ||
            slice_has(name, ':'))
            return fail(e, GRPC_INVALID_ARGUMENT, "hosts.toml: header \"%.*s\" is not one line",
                        PR(name));
        out->headers.p[out->headers.n++] = (pb_pair){ name, text };
    }
    return 0;
}

static int hosts_add(FetchSetup *setup, slice given, const json *table, arena *a, error *e)
{
    if (setup->hosts.n == FETCH_HOSTS)
        return fail(e, GRPC_INVALID_ARGUMENT, "hosts.toml: more than %d hosts", FETCH_HOSTS);
    FetchHost *h = &setup->hosts.p[setup->hosts.n++];
    const json *capabilities = json_get(table, "capabilities");
    *h = (FetchHost){ .resolve = hosts_can(capabilities, "resolve") };
    h->pull = hosts_can(capabilities, "pull");
    if (hosts_base(given, json_true(json_get(table, "override_path")), a, &h->base, e) < 0)
        return fail_in(e, "hosts.toml");
    return hosts_headers(json_get(table, "header"), a, h, e);
}

/* Reads the first hosts.toml that there is for a registry. NULL with e->code 0: there is none. */
static const json *hosts_read(const char *dir, slice domain, arena *a, error *e)
{
    slice text, host = domain, rest;
    uint16_t port;
    char *names[3] = { NULL, arena_str(a, domain), arena_str(a, SLICE("_default")) };
    *e = (error){ 0 };
    if (host_split(domain, &rest, &port) &&
        port) { /* containerd's own name for a directory without ':' */
        const uint8_t *colon = memrchr(host.p, ':', host.n);
        names[0] = arena_printf(a, "%.*s_%u_", (int)(colon - host.p), (const char *)host.p, port);
    }
    for (size_t i = 0; i < COUNT(names); i++) {
        char *path = names[i] ? arena_printf(a, "%s/%s/hosts.toml", dir, names[i]) : NULL;
        if (!path) continue;
        if (file_read(AT_FDCWD, path, MIB, a, &text, e) == 0) return toml_parse(text, path, a, e);
        if (e->code != GRPC_NOT_FOUND) return NULL;
        *e = (error){ 0 };
    }
    return NULL;
}

/* Fills out->domain, path and hosts for a reference. `dir` may be NULL; a file that cannot be read
 * or parsed fails the pull: going on without it could send it past the administrator's mirror. */
static int registry_hosts(const char *dir, const image_ref *ref, arena *a, FetchSetup *out,
                          error *e)
{
    const json *tree = dir ? hosts_read(dir, ref->domain, a, e) : NULL;
    if (dir && !tree && e->code) return -1;
    const json *hosts = json_get(tree, "host");
    slice server = json_text(json_get(tree, "server"));
    out->domain = ref->domain;
    out->path = ref->path;
    out->hosts.n = 0;
    out->hosts.p = arena_alloc(a, FETCH_HOSTS * sizeof *out->hosts.p);
    if (!out->hosts.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "hosts.toml: out of memory");
    for (size_t i = 0; hosts && hosts->kind == JSON_OBJECT && i < hosts->n; i++)
        if (hosts_add(out, hosts->items[i].key, &hosts->items[i], a, e) < 0) return -1;
    if (!server.n)
        server = slice_is(ref->domain, "docker.io") ? SLICE("registry-1.docker.io") : ref->domain;
    if (hosts_add(out, server, tree, a, e) < 0) return -1;
    out->hosts.p[out->hosts.n - 1].credentials = true;
    return 0;
}
/* == 13. Image store =========================================================================
 *
 * An image on this machine is a record, images/<config's SHA-256>.json, and a directory for each of
 * its layers, layers/<diff-id>/, in the form that overlay mounts. A layer's name is the SHA-256 of
 * its tar stream, so images share the layers that they have in common, and a directory that bears
 * its final name is whole: it is filled as <diff-id>.partial, by a process of its own, and renamed
 * when its digests hold. What a power cut or kill -9 leaves is removed at the next start.
 *
 * A pull, all from left to right at once, up to three layers side by side:
 *
 *   registry -> krun fetch -> daemon: SHA-256 of the blob -> krun unpack: inflate, SHA-256, untar
 *                                \-> krun read: what a manifest or a config says
 *
 * The daemon hashes and compares but parses nothing of it; the helpers parse but have no rights:
 *   fetch   (chapter 12) nobody; the network and one registry's credentials
 *   read    nobody; nothing but its two pipes
 *   archive `krun load`: as fetch, but reads an archive file or a layout directory
 *   unpack  chrooted into the one directory that it fills; the capabilities to make any file there
 *
 * Who keeps a layer: every image that lists it, known or still held (image_hold), and every
 * container made from it (image_layers_hold). When the last one goes, the directory goes. After a
 * start, the order is images_open, image_layers_hold for each container found, images_collect.
 *
 * Defined by  OCI image-spec 1.1 (manifest, index, config, layout), docker's image archive
 * Uses        1-6, 8, 9, 12     Gives  images_*, image_*, read_main, archive_main, unpack_main
 * Bounds      those of chapter 12; a layer 64 GiB and 4 M entries; archive entries 64 Ki */

/* -- messages between the daemon and its helpers ----------------------------------------------- */

typedef struct { slice media_type, digest; uint64_t size; } Descriptor;
PB_TABLE(Descriptor,
    PB(1, STRING, Descriptor, media_type),
    PB(2, STRING, Descriptor, digest),
    PB(3, UINT64, Descriptor, size));

/* A document to take apart. `platform` is what to choose from an index: "linux/arm/v7". */
typedef struct { bool is_config; slice media_type, body, platform; } ReadRequest;
PB_TABLE(ReadRequest,
    PB(1, BOOL, ReadRequest, is_config),
    PB(2, STRING, ReadRequest, media_type),
    PB(3, BYTES, ReadRequest, body),
    PB(4, STRING, ReadRequest, platform));

/* Of an index `chosen`; of a manifest `config` and `layers`; of a config `image` and `diff_ids`. */
typedef struct {
    int32_t code; slice message;
    Descriptor *chosen, *config; LIST(Descriptor) layers;
    ImageConfig *image; LIST(slice) diff_ids;
} ReadAnswer;
PB_TABLE(ReadAnswer,
    PB(1, INT32, ReadAnswer, code),
    PB(2, STRING, ReadAnswer, message),
    PB_SUB(3, Descriptor, ReadAnswer, chosen),
    PB_SUB(4, Descriptor, ReadAnswer, config),
    PB_SUBS(5, Descriptor, ReadAnswer, layers),
    PB_SUB(6, ImageConfig, ReadAnswer, image),
    PB_LIST(7, STRING, ReadAnswer, diff_ids));

/* What an archive or a layout holds: manifests, with the names that it gives them. */
typedef struct { Descriptor *manifest; LIST(slice) names; } ArchiveImage;
PB_TABLE(ArchiveImage,
    PB_SUB(1, Descriptor, ArchiveImage, manifest),
    PB_LIST(2, STRING, ArchiveImage, names));

typedef struct { int32_t code; slice message; LIST(ArchiveImage) images; } ArchiveIndex;
PB_TABLE(ArchiveIndex,
    PB(1, INT32, ArchiveIndex, code),
    PB(2, STRING, ArchiveIndex, message),
    PB_SUBS(3, ArchiveImage, ArchiveIndex, images));

/* How an unpack ended: the SHA-256 of the tar stream and what lies on disk. */
typedef struct { int32_t code; slice message, diff_id; uint64_t bytes, entries; } UnpackAnswer;
PB_TABLE(UnpackAnswer,
    PB(1, INT32, UnpackAnswer, code),
    PB(2, STRING, UnpackAnswer, message),
    PB(3, STRING, UnpackAnswer, diff_id),
    PB(4, UINT64, UnpackAnswer, bytes),
    PB(5, UINT64, UnpackAnswer, entries));

/* A layer's own record, layers/<diff-id>.json: what ImageFsInfo adds up instead of walking. */
typedef struct { uint32_t version; slice diff_id; uint64_t bytes, entries; } LayerRecord;
PB_TABLE(LayerRecord,
    PB(1, UINT32, LayerRecord, version),
    PB(2, STRING, LayerRecord, diff_id),
    PB(3, UINT64, LayerRecord, bytes),
    PB(4, UINT64, LayerRecord, entries));

/* The digits of "sha256:<hex>": what the store's files are called. */
static slice id_hex(slice id)
{
    return slice_starts(id, "sha256:") ? (slice){ id.p + 7, id.n - 7 } : id;
}

/* -- read: what manifests and configs say ------------------------------------------------------ */

enum doc_kind { DOC_UNKNOWN, DOC_INDEX, DOC_MANIFEST, DOC_SCHEMA1, DOC_OTHER };

static const struct { const char *media_type; enum doc_kind kind; } doc_kinds[] = {
    { "application/vnd.oci.image.index.v1+json", DOC_INDEX },
    { "application/vnd.docker.distribution.manifest.list.v2+json", DOC_INDEX },
    { "application/vnd.oci.image.manifest.v1+json", DOC_MANIFEST },
    { "application/vnd.docker.distribution.manifest.v2+json", DOC_MANIFEST },
    { "application/vnd.docker.distribution.manifest.v1+json", DOC_SCHEMA1 },
    { "application/vnd.docker.distribution.manifest.v1+prettyjws", DOC_SCHEMA1 },
    { "application/json", DOC_UNKNOWN },        /* from servers that do not know better: */
    { "application/octet-stream", DOC_UNKNOWN }, /* the document itself has to say it */
    { "text/plain", DOC_UNKNOWN },
};

static enum doc_kind doc_kind_of(slice media_type)
{
    if (!media_type.n) return DOC_UNKNOWN;
    for (size_t i = 0; i < COUNT(doc_kinds); i++)
        if (slice_is(media_type, doc_kinds[i].media_type)) return doc_kinds[i].kind;
    return DOC_OTHER;
}

/* Which of the two kinds a document is. Its own mediaType, that of the reply, and its content must
 * agree: one that can be read as both means two images to two readers (CVE-2021-41190). */
static int doc_classify(const json *doc, slice header, enum doc_kind *kind, error *e)
{
    int64_t schema = 0;
    enum doc_kind told = doc_kind_of(header),
                  own = doc_kind_of(json_text(json_get(doc, "mediaType")));
    bool index = json_get(doc, "manifests"),
         manifest = json_get(doc, "layers") || json_get(doc, "config");
    bool known = json_int(json_get(doc, "schemaVersion"), &schema);
    if (told == DOC_SCHEMA1 || own == DOC_SCHEMA1 || (known && schema == 1))
        return fail(
            e, GRPC_INVALID_ARGUMENT,
            "manifest: Docker schema 1 is not supported: push the image again with a current tool");
    if (told == DOC_OTHER && own == DOC_UNKNOWN)
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "manifest: the server sent %.*s, which is no manifest", PR(header));
    if (!doc || doc->kind != JSON_OBJECT || schema != 2 || own == DOC_OTHER)
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "manifest: neither an image index nor an image manifest");
    if (index == manifest)
        return fail(e, GRPC_INVALID_ARGUMENT, "manifest: it has %s",
                    index ? "both `manifests` and `layers` or `config`"
                          : "neither `manifests` nor `layers`");
    *kind = index ? DOC_INDEX : DOC_MANIFEST;
    if ((own == DOC_INDEX || own == DOC_MANIFEST) && own != *kind)
        return fail(e, GRPC_INVALID_ARGUMENT, "manifest: its mediaType contradicts its content");
    if ((told == DOC_INDEX || told == DOC_MANIFEST) && told != *kind)
        return fail(e, GRPC_INVALID_ARGUMENT, "manifest: its Content-Type contradicts its content");
    return 0;
}

static int doc_descriptor(const json *v, const char *what, Descriptor *out, error *e)
{
    int64_t size = -1;
    const json *urls = json_get(v, "urls");
    slice digest = json_text(json_get(v, "digest")), type = json_text(json_get(v, "mediaType"));
    if (!digest_valid(digest))
        return fail(e, GRPC_INVALID_ARGUMENT, "%s: digest is not sha256:<64 lower-case hex digits>",
                    what);
    if (!json_int(json_get(v, "size"), &size) || size < 0)
        return fail(e, GRPC_INVALID_ARGUMENT, "%s: no valid size", what);
    if ((urls && urls->n) || memmem(type.p ? type.p : (const uint8_t *)"", type.n, "foreign", 7) ||
        memmem(type.p ? type.p : (const uint8_t *)"", type.n, "nondistributable", 16))
        return fail(e, GRPC_INVALID_ARGUMENT, "%s: foreign layers and `urls` are refused", what);
    *out = (Descriptor){ type, digest, (uint64_t)size };
    return 0;
}

static uint64_t platform_level(slice variant,
                               slice architecture) /* "v7" is 7; what no variant means */
{
    uint64_t level;
    if (variant.n > 1 && variant.p[0] == 'v' &&
        parse_u64((slice){ variant.p + 1, variant.n - 1 }, 10, 99, &level))
        return level;
    return variant.n                         ? 99
           : slice_is(architecture, "arm64") ? 8
           : slice_is(architecture, "arm")   ? 7
                                             : 1;
}

/* How well an entry's platform fits ours ("linux/arm/v7"): 0 not at all; the higher the better. */
static uint64_t platform_rank(const json *platform, slice ours)
{
    slice os = slice_cut(&ours, '/'), arch = slice_cut(&ours, '/');
    slice their_arch = json_text(json_get(platform, "architecture"));
    if (!platform) return 1; /* an index of one image often leaves it out */
    if (!slice_eq(json_text(json_get(platform, "os")), os) || !slice_eq(their_arch, arch)) return 0;
    uint64_t level = platform_level(json_text(json_get(platform, "variant")), arch);
    return level > platform_level(ours, arch) ? 0 : 1 + level;
}

/* The entry of an index that this machine should run: the highest level of the architecture that it
 * has, the first of equals. */
static int doc_choose(const json *index, slice platform, arena *a, ReadAnswer *out, error *e)
{
    const json *entries = json_get(index, "manifests"), *best = NULL;
    uint64_t best_rank = 0;
    OWNED_BUF seen = { 0 };
    for (size_t i = 0; entries->kind == JSON_ARRAY && i < entries->n; i++) {
        const json *p = json_get(&entries->items[i], "platform");
        uint64_t rank = platform_rank(p, platform);
        if (rank > best_rank) best = &entries->items[i], best_rank = rank;
        if (seen.n < 160)
            buf_printf(&seen, "%s%.*s/%.*s", i ? ", " : "", PR(json_text(json_get(p, "os"))),
                       PR(json_text(json_get(p, "architecture"))));
    }
    if (!best)
        return fail(e, GRPC_NOT_FOUND, "index: no manifest for %.*s, only for %.*s", PR(platform),
                    PR(buf_view(&seen)));
    out->chosen = arena_alloc(a, sizeof *out->chosen);
    if (!out->chosen) return fail(e, GRPC_RESOURCE_EXHAUSTED, "index: out of memory");
    return doc_descriptor(best, "index entry", out->chosen, e);
}

static bool layer_type_known(slice type)
{
    static const char *const known[] = {
        "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    };
    for (size_t i = 0; i < COUNT(known); i++)
        if (slice_is(type, known[i])) return true;
    return false;
}

static int doc_manifest(const json *doc, arena *a, ReadAnswer *out, error *e)
{
    const json *layers = json_get(doc, "layers");
    char what[32];
    out->config = arena_alloc(a, sizeof *out->config);
    if (!layers || layers->kind != JSON_ARRAY || !layers->n || layers->n > LAYERS_MAX)
        return fail(e, GRPC_INVALID_ARGUMENT, "manifest: %zu layers, not 1 to %d",
                    layers ? layers->n : 0, LAYERS_MAX);
    out->layers.p = arena_alloc(a, layers->n * sizeof *out->layers.p);
    if (!out->config || !out->layers.p)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "manifest: out of memory");
    if (doc_descriptor(json_get(doc, "config"), "config", out->config, e) < 0)
        return fail_in(e, "manifest");
    bool image =
        slice_is(out->config->media_type, "application/vnd.oci.image.config.v1+json") ||
        slice_is(out->config->media_type, "application/vnd.docker.container.image.v1+json");
    if (!image)
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "manifest: a config of type %.*s is no container image's",
                    PR(out->config->media_type));
    if (out->config->size > CONFIG_MAX)
        return fail(e, GRPC_INVALID_ARGUMENT, "config: size is over %d bytes", CONFIG_MAX);
    for (size_t i = 0; i < layers->n; i++) {
        Descriptor *d = &out->layers.p[out->layers.n++];
        snprintf(what, sizeof what, "layer %zu", i);
        if (doc_descriptor(&layers->items[i], what, d, e) < 0) return fail_in(e, "manifest");
        if (!layer_type_known(d->media_type))
            return fail(e, GRPC_INVALID_ARGUMENT, "manifest: %s: media type %.*s is not supported",
                        what, PR(d->media_type));
    }
    return 0;
}

/* A list of texts, or of an object's keys. NULs are refused: no argument can hold one. */
typedef struct { slice *p; size_t n; } slice_list;
static int doc_texts(const json *v, const char *what, arena *a, slice_list *out, error *e)
{
    *out = (slice_list){ NULL, 0 };
    if (!v || v->kind == JSON_NULL || !v->n) return 0;
    if (v->kind != JSON_ARRAY && v->kind != JSON_OBJECT)
        return fail(e, GRPC_INVALID_ARGUMENT, "config: %s is not a list", what);
    out->p = arena_alloc(a, v->n * sizeof *out->p);
    if (!out->p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "config: out of memory");
    for (size_t i = 0; i < v->n; i++) {
        slice text = v->kind == JSON_OBJECT ? v->items[i].key : json_text(&v->items[i]);
        bool is_text = v->kind == JSON_OBJECT || v->items[i].kind == JSON_STRING;
        if (!is_text || slice_has(text, '\0'))
            return fail(e, GRPC_INVALID_ARGUMENT,
                        "config: %s has an element that is no text without NUL", what);
        out->p[out->n++] = text;
    }
    return 0;
}

static int doc_text(const json *config, const char *key, slice *out, error *e)
{
    *out = json_text(json_get(config, key));
    return slice_has(*out, '\0') ? fail(e, GRPC_INVALID_ARGUMENT, "config: %s has a NUL", key) : 0;
}

static int doc_labels(const json *labels, arena *a, ImageConfig *out, error *e)
{
    if (!labels || labels->kind != JSON_OBJECT || !labels->n) return 0;
    out->labels.p = arena_alloc(a, labels->n * sizeof *out->labels.p);
    if (!out->labels.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "config: out of memory");
    for (size_t i = 0; i < labels->n; i++)
        out->labels.p[out->labels.n++] =
            (pb_pair){ labels->items[i].key, json_text(&labels->items[i]) };
    return 0;
}

/* The image config (image-spec, config.md): how to run it, and the layers it was made from. */
static int doc_config(const json *doc, arena *a, ReadAnswer *out, error *e)
{
    slice_list env, entrypoint, cmd, volumes, diff_ids;
    const json *config = json_get(doc, "config"), *rootfs = json_get(doc, "rootfs");
    ImageConfig *c = out->image = arena_alloc(a, sizeof *c);
    slice os = json_text(json_get(doc, "os"));
    if (!c) return fail(e, GRPC_RESOURCE_EXHAUSTED, "config: out of memory");
    if (os.n && !slice_is(os, "linux"))
        return fail(e, GRPC_FAILED_PRECONDITION, "config: the image is for %.*s, not linux",
                    PR(os));
    if (doc_texts(json_get(rootfs, "diff_ids"), "rootfs.diff_ids", a, &diff_ids, e) < 0 ||
        doc_texts(json_get(config, "Env"), "Env", a, &env, e) < 0 ||
        doc_texts(json_get(config, "Entrypoint"), "Entrypoint", a, &entrypoint, e) < 0 ||
        doc_texts(json_get(config, "Cmd"), "Cmd", a, &cmd, e) < 0 ||
        doc_texts(json_get(config, "Volumes"), "Volumes", a, &volumes, e) < 0 ||
        doc_text(config, "User", &c->user, e) < 0 ||
        doc_text(config, "WorkingDir", &c->working_dir, e) < 0 ||
        doc_text(config, "StopSignal", &c->stop_signal, e) < 0)
        return -1;
    for (size_t i = 0; i < diff_ids.n; i++)
        if (!digest_valid(diff_ids.p[i]))
            return fail(e, GRPC_INVALID_ARGUMENT,
                        "config: rootfs.diff_ids[%zu] is not sha256:<64 lower-case hex digits>", i);
    out->diff_ids.p = diff_ids.p, out->diff_ids.n = diff_ids.n;
    c->env.p = env.p, c->env.n = env.n;
    c->entrypoint.p = entrypoint.p, c->entrypoint.n = entrypoint.n;
    c->cmd.p = cmd.p, c->cmd.n = cmd.n;
    c->volumes.p = volumes.p, c->volumes.n = volumes.n;
    return doc_labels(json_get(config, "Labels"), a, c, e);
}

static int doc_read(const ReadRequest *q, arena *a, ReadAnswer *out, error *e)
{
    enum doc_kind kind = DOC_UNKNOWN;
    const json *doc = json_parse(q->body, a, e);
    if (!doc && q->is_config) return fail_in(e, "config");
    if (!doc && doc_kind_of(q->media_type) == DOC_OTHER)
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "manifest: the server sent %.*s, which is no manifest", PR(q->media_type));
    if (!doc) return fail_in(e, "manifest");
    if (q->is_config) return doc_config(doc, a, out, e);
    if (doc_classify(doc, q->media_type, &kind, e) < 0) return -1;
    return kind == DOC_INDEX ? doc_choose(doc, q->platform, a, out, e)
                             : doc_manifest(doc, a, out, e);
}

/* `krun read`: a ReadRequest comes in a frame, a ReadAnswer goes back, until fd 0 ends. */
static int read_main(int argc, char **argv)
{
    error e = { 0 };
    (void)argc, (void)argv;
    if (become_nobody(&e) < 0) return log_error("%s", e.text), 1;
    for (;;) {
        slice wire;
        ReadRequest q;
        ReadAnswer answer = { 0 };
        OWNED_ARENA a = arena_make(128 * MIB);
        if (frame_read(STDIN_FILENO, &a, &wire) != 1) return 0;
        if (pb_decode(&ReadRequest_msg, wire, &a, &q, &e) < 0 || doc_read(&q, &a, &answer, &e) < 0)
            answer = (ReadAnswer){ .code = e.code, .message = slice_of(e.text) };
        if (!frame_write_message(STDOUT_FILENO, &ReadAnswer_msg, &answer)) return 1;
    }
}

/* -- unpack: a compressed tar stream into a directory ------------------------------------------ */

/* Bits of the capabilities that making any file of an image takes: capabilities(7). SYS_ADMIN is
 * what the kernel asks for to set trusted.overlay.opaque, overlay's mark of a directory that hides
 * those below it (its unprivileged twin, user.overlay.opaque, could be set by the container). */
enum {
    CAP_BIT_CHOWN = 1 << 0, CAP_BIT_DAC_OVERRIDE = 1 << 1, CAP_BIT_DAC_READ_SEARCH = 1 << 2,
    CAP_BIT_FOWNER = 1 << 3, CAP_BIT_FSETID = 1 << 4, CAP_BIT_SYS_ADMIN = 1 << 21,
    CAP_BIT_MKNOD = 1 << 27, CAP_BIT_SETFCAP = 1 << 31U
};

/* Keeps these capabilities and no other, and gives up the way to regain them by an exec. */
static int keep_capabilities(uint32_t low, error *e)
{
    struct {
        uint32_t version;
        int pid;
    } header = { 0x20080522, 0 }; /* _LINUX_CAPABILITY_VERSION_3 */
    struct {
        uint32_t effective, permitted, inheritable;
    } sets[2] = { { low, low, 0 }, { 0, 0, 0 } };
    if (syscall(SYS_capset, &header, sets) < 0)
        return fail_sys(e, GRPC_INTERNAL, "drop capabilities");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return fail_sys(e, GRPC_INTERNAL, "no_new_privs");
    return 0;
}

/* Makes the directory `fd` all that this process can name, then drops rights to `capabilities`. */
static int confine_to(int fd, uint32_t capabilities, error *e)
{
    struct rlimit none = { 0, 0 };
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_CORE, &none);
    signal(SIGPIPE, SIG_IGN);
    if (fchdir(fd) < 0 || chroot(".") < 0)
        return fail_sys(e, GRPC_INTERNAL, "chroot into the directory of descriptor %d", fd);
    return keep_capabilities(capabilities, e);
}

enum { UNPACK_ROOT = 3 };
static const tar_options unpack_limits = { .allow_devices = true,
                                           .max_bytes = UINT64_C(64) << 30,
                                           .max_entries = 4 * MIB };

/* The whole stream is hashed, also what follows the archive's end: the diff-id is of all bytes. */
static int unpack_stream(int in, int root, UnpackAnswer *answer, char diff_id[DIGEST_TEXT],
                         error *e)
{
    fd_source file;
    hash_source hash;
    decompressor d;
    tar_totals totals = { 0 };
    uint8_t digest[32];
    source *plain = decompress_open(&d, fd_source_open(&file, in), e);
    if (!plain) return -1;
    source *hashed = hash_source_open(&hash, plain);
    int failed =
        tar_unpack(hashed, root, &unpack_limits, &totals, e) < 0 || source_drain(hashed, e) < 0;
    decompress_close(&d);
    if (failed) return -1;
    sha256_end(&hash.hash, digest);
    digest_text(digest, diff_id);
    *answer = (UnpackAnswer){
        .diff_id = slice_of(diff_id), .bytes = totals.bytes, .entries = totals.entries };
    return 0;
}

/* `krun unpack`: fd 0 is the layer as the registry has it, fd 3 the directory to fill; one
 * UnpackAnswer goes to fd 1. */
static int unpack_main(int argc, char **argv)
{
    const uint32_t needed = CAP_BIT_CHOWN | CAP_BIT_DAC_OVERRIDE | CAP_BIT_FOWNER | CAP_BIT_FSETID |
                            CAP_BIT_SYS_ADMIN | CAP_BIT_MKNOD | (uint32_t)CAP_BIT_SETFCAP;
    error e = { 0 };
    UnpackAnswer answer = { 0 };
    char diff_id[DIGEST_TEXT];
    (void)argc, (void)argv;
    umask(0);
    if (confine_to(UNPACK_ROOT, needed, &e) < 0 ||
        unpack_stream(STDIN_FILENO, UNPACK_ROOT, &answer, diff_id, &e) < 0)
        answer = (UnpackAnswer){ .code = e.code, .message = slice_of(e.text) };
    return frame_write_message(STDOUT_FILENO, &UnpackAnswer_msg, &answer) ? 0 : 1;
}

/* -- archive: images in a file or a directory -----------------------------------------------------
 *
 * Two forms, both as a tar or, the second, also as a directory: docker's (manifest.json names a
 * config and layer tars) and the OCI layout (index.json names manifests, blobs/sha256/<hex> are the
 * blobs). The role offers either as what a registry offers: manifests and blobs by digest. For
 * docker's form it writes the manifests itself. It is believed no more than a registry is. */

/* A member of a tar; `link` is what a link in it points at, relative to its own directory. */
typedef struct { slice name, link; uint64_t at, size; } archive_file;

/* A blob: at `name` in the archive, or made by us: `made`. */
typedef struct { char digest[DIGEST_TEXT]; slice name, made; } archive_blob;

enum { ARCHIVE_FD = 3, ARCHIVE_SPOOL = 4, ARCHIVE_FILES = 64 * KIB, ARCHIVE_BLOBS = 4096 };

typedef struct {
    int fd;
    bool is_directory;
    arena a;
    archive_file *files;
    size_t nfiles;
    archive_blob *blobs;
    size_t nblobs;
} archive;

/* A file from `at` on, by pread(2): several may read it, and where a reader stands is known. */
typedef struct { source source; int fd; uint64_t at, left; } part_source;

static ssize_t part_read(source *s, uint8_t *p, size_t n, error *e)
{
    part_source *part = OWNER(s, part_source, source);
    ssize_t got = pread(part->fd, p, (size_t)MIN((uint64_t)n, part->left), (off_t)part->at);
    if (got < 0) return fail_sys(e, GRPC_INTERNAL, "read the archive");
    part->at += (uint64_t)got;
    part->left -= (uint64_t)got;
    return got;
}

static slice archive_clean(slice name) /* without "./" and "/" in front */
{
    while (slice_starts(name, "/") || slice_starts(name, "./")) {
        size_t n = name.p[0] == '/' ? 1 : 2;
        name = (slice){ name.p + n, name.n - n };
    }
    return name;
}

/* What a link `target` in the directory of `name` means: "a/b" + "../c" is "c". By text alone: the
 * result is looked up in a table and touches no file system. */
static slice archive_follow(slice name, slice target, arena *a)
{
    OWNED_BUF path = { 0 };
    const uint8_t *slash = name.n ? memrchr(name.p, '/', name.n) : NULL;
    if (slash) buf_add(&path, name.p, (size_t)(slash - name.p));
    while (target.n) {
        slice part = slice_cut(&target, '/');
        if (!part.n || slice_is(part, ".")) continue;
        if (slice_is(part, "..")) {
            while (path.n && path.p[path.n - 1] != '/') path.n--;
            if (path.n) path.n--;
            continue;
        }
        if (path.n) buf_byte(&path, '/');
        buf_slice(&path, part);
    }
    return arena_copy(a, buf_view(&path));
}

static int archive_index_tar(archive *ar, error *e)
{
    tar_reader t;
    tar_entry entry;
    part_source part = { .source = { part_read }, .fd = ar->fd, .left = UINT64_MAX };
    int more = tar_open(&t, &part.source, e);
    ar->files = arena_alloc(&ar->a, ARCHIVE_FILES * sizeof *ar->files);
    if (!ar->files) more = fail(e, GRPC_RESOURCE_EXHAUSTED, "archive: out of memory");
    while (more >= 0 && (more = tar_next(&t, &entry, e)) > 0) {
        archive_file f = { .name = arena_copy(&ar->a, archive_clean(entry.name)),
                           .size = entry.size };
        f.at = part.at -
               (uint64_t)(t.in.end - t.in.p); /* what the reader has read ahead is still to come */
        if (entry.type == '1') f.link = arena_copy(&ar->a, archive_clean(entry.link));
        if (entry.type == '2') f.link = archive_follow(f.name, entry.link, &ar->a);
        if (entry.type > '2') continue;
        if (ar->nfiles == ARCHIVE_FILES || ar->a.oom)
            more = fail(e, GRPC_RESOURCE_EXHAUSTED, "archive: more than %d files, or out of memory",
                        ARCHIVE_FILES);
        else ar->files[ar->nfiles++] = f;
    }
    tar_close(&t);
    return more;
}

/* Finds a file of the archive: a descriptor (*opened, the caller's, or -1) and a part of it. The
 * last of a name counts, as when it is unpacked. */
static int archive_open(archive *ar, slice name, part_source *out, int *opened, error *e)
{
    struct stat st;
    char path[PATH_MAX];
    *out = (part_source){ .source = { part_read }, .fd = ar->fd };
    *opened = -1;
    snprintf(path, sizeof path, "%.*s", PR(name));
    if (ar->is_directory) {
        *opened = out->fd = open_inside(ar->fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, e);
        if (out->fd < 0) return -1;
        if (fstat(out->fd, &st) < 0 || !S_ISREG(st.st_mode))
            return fail(e, GRPC_INVALID_ARGUMENT, "%s is not a regular file", path);
        out->left = (uint64_t)st.st_size;
        return 0;
    }
    name = archive_clean(name);
    for (int hops = 0; hops < 8; hops++) {
        size_t i = ar->nfiles;
        while (i && !slice_eq(ar->files[i - 1].name, name)) i--;
        if (!i) break;
        out->at = ar->files[i - 1].at;
        out->left = ar->files[i - 1].size;
        name = ar->files[i - 1].link;
        if (!name.n) return 0;
    }
    return fail(e, GRPC_NOT_FOUND, "the archive has no file %s", path);
}

static int archive_read(archive *ar, slice name, size_t max, slice *out, error *e)
{
    part_source part;
    OWNED_FD opened = -1;
    if (archive_open(ar, name, &part, &opened, e) < 0) return -1;
    size_t n = (size_t)MIN(part.left, (uint64_t)max + 1);
    if (n > max)
        return fail(e, GRPC_INVALID_ARGUMENT, "%.*s is larger than %zu bytes", PR(name), max);
    uint8_t *p = arena_alloc(&ar->a, n + 1);
    if (!p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "%.*s: out of memory", PR(name));
    *out = (slice){ p, 0 };
    for (ssize_t got; (got = part_read(&part.source, p + out->n, n - out->n, e)) != 0;
         out->n += (size_t)got)
        if (got < 0) return -1;
    return 0;
}

static archive_blob *archive_add_blob(archive *ar, const uint8_t hash[32])
{
    if (ar->nblobs == ARCHIVE_BLOBS) return NULL;
    archive_blob *b = &ar->blobs[ar->nblobs++];
    digest_text(hash, b->digest);
    return b;
}

/* Hashes a file that has no digest of its own yet, and offers it under it. */
static archive_blob *archive_hash(archive *ar, slice name, uint64_t *size, error *e)
{
    part_source part;
    hash_source hashed;
    uint8_t hash[32];
    OWNED_FD opened = -1;
    if (archive_open(ar, name, &part, &opened, e) < 0) return NULL;
    source *all = hash_source_open(&hashed, &part.source);
    if (source_drain(all, e) < 0) return NULL;
    *size = hashed.bytes;
    sha256_end(&hashed.hash, hash);
    archive_blob *b = archive_add_blob(ar, hash);
    if (!b) return fail(e, GRPC_RESOURCE_EXHAUSTED, "archive: too many blobs"), NULL;
    b->name = name;
    return b;
}

/* Writes the manifest that an image of docker's form would have in a registry. */
static int archive_docker_image(archive *ar, const json *image, ArchiveImage *out, error *e)
{
    uint64_t size;
    sha256 h;
    uint8_t hash[32];
    OWNED_BUF text = { 0 };
    const json *layers = json_get(image, "Layers"), *tags = json_get(image, "RepoTags");
    archive_blob *b = archive_hash(ar, json_text(json_get(image, "Config")), &size, e);
    if (!b || !layers || layers->kind != JSON_ARRAY)
        return b ? fail(e, GRPC_INVALID_ARGUMENT, "manifest.json: no Layers") : -1;
    buf_printf(&text,
               "{\"schemaVersion\":2,\"mediaType\":\"application/"
               "vnd.oci.image.manifest.v1+json\",\"config\":"
               "{\"mediaType\":\"application/"
               "vnd.oci.image.config.v1+json\",\"digest\":\"%s\",\"size\":%" PRIu64
               "},\"layers\":[",
               b->digest, size);
    for (size_t i = 0; i < layers->n; i++) {
        if (!(b = archive_hash(ar, json_text(&layers->items[i]), &size, e))) return -1;
        buf_printf(&text,
                   "%s{\"mediaType\":\"application/"
                   "vnd.oci.image.layer.v1.tar\",\"digest\":\"%s\",\"size\":%" PRIu64 "}",
                   i ? "," : "", b->digest, size);
    }
    buf_str(&text, "]}");
    sha256_init(&h);
    sha256_add(&h, text.p, text.n);
    sha256_end(&h, hash);
    b = archive_add_blob(ar, hash);
    out->manifest = arena_alloc(&ar->a, sizeof *out->manifest);
    out->names.p = arena_alloc(&ar->a, ((tags ? tags->n : 0) + 1) * sizeof *out->names.p);
    if (!b || text.oom || ar->a.oom)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "archive: out of memory");
    b->made = arena_copy(&ar->a, buf_view(&text));
    *out->manifest = (Descriptor){ .digest = slice_of(b->digest), .size = text.n };
    for (size_t i = 0; tags && tags->kind == JSON_ARRAY && i < tags->n; i++)
        out->names.p[out->names.n++] = json_text(&tags->items[i]);
    return 0;
}

/* One manifest of index.json. Its name stands in an annotation: containerd's has the whole name,
 * the OCI's own often only a tag. */
static int archive_layout_image(archive *ar, const json *entry, ArchiveImage *out, error *e)
{
    const json *notes = json_get(entry, "annotations");
    slice name = json_text(json_get(notes, "io.containerd.image.name"));
    if (!name.n) name = json_text(json_get(notes, "org.opencontainers.image.ref.name"));
    out->manifest = arena_alloc(&ar->a, sizeof *out->manifest);
    out->names.p = arena_alloc(&ar->a, sizeof *out->names.p);
    if (ar->a.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "archive: out of memory");
    if (name.n) out->names.p[out->names.n++] = name;
    return doc_descriptor(entry, "index.json", out->manifest, e);
}

static int archive_list(archive *ar, ArchiveIndex *out, error *e)
{
    slice text;
    bool layout = archive_read(ar, SLICE("index.json"), MANIFEST_MAX, &text, e) == 0;
    if (!layout && (e->code != GRPC_NOT_FOUND ||
                    archive_read(ar, SLICE("manifest.json"), MANIFEST_MAX, &text, e) < 0))
        return fail_in(e, "neither index.json (OCI layout) nor manifest.json (docker archive)");
    const json *doc = json_parse(text, &ar->a, e),
               *list = layout ? json_get(doc, "manifests") : doc;
    if (!doc) return fail_in(e, layout ? "index.json" : "manifest.json");
    if (!list || list->kind != JSON_ARRAY || !list->n || list->n > 256)
        return fail(e, GRPC_INVALID_ARGUMENT, "%s lists no image, or more than 256",
                    layout ? "index.json" : "manifest.json");
    out->images.p = arena_alloc(&ar->a, list->n * sizeof *out->images.p);
    ar->blobs = arena_alloc(&ar->a, ARCHIVE_BLOBS * sizeof *ar->blobs);
    if (ar->a.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "archive: out of memory");
    for (size_t i = 0; i < list->n; i++) {
        ArchiveImage *image = &out->images.p[out->images.n++];
        int failed = layout ? archive_layout_image(ar, &list->items[i], image, e)
                            : archive_docker_image(ar, &list->items[i], image, e);
        if (failed) return -1;
    }
    return 0;
}

/* Makes the archive one that can be read anywhere: a compressed one is written out to the spool. */
static int archive_begin(archive *ar, error *e)
{
    struct stat st;
    fd_source file;
    decompressor d;
    uint8_t chunk[CHUNK];
    ssize_t got = 0;
    if (fstat(ARCHIVE_FD, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "archive: no descriptor 3");
    *ar = (archive){ .fd = ARCHIVE_FD, .a = arena_make(64 * MIB) };
    ar->is_directory = S_ISDIR(st.st_mode);
    if (ar->is_directory) return confine_to(ARCHIVE_FD, CAP_BIT_DAC_READ_SEARCH, e);
    if (become_nobody(e) < 0) return -1;
    source *plain = decompress_open(&d, fd_source_open(&file, ARCHIVE_FD), e);
    if (!plain) return -1;
    while (d.kind != PLAIN && (got = plain->read(plain, chunk, sizeof chunk, e)) > 0)
        if (write_all(ARCHIVE_SPOOL, chunk, (size_t)got) < 0)
            got = fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "write the unpacked archive");
    if (d.kind != PLAIN) ar->fd = ARCHIVE_SPOOL;
    decompress_close(&d);
    return got < 0 ? -1 : archive_index_tar(ar, e);
}

/* Sends a blob as fetch does. */
static int archive_send(archive *ar, const FetchRequest *q, error *e)
{
    uint8_t chunk[CHUNK];
    char path[96];
    part_source part;
    mem_source memory;
    OWNED_FD opened = -1;
    const archive_blob *b = NULL;
    for (size_t i = 0; i < ar->nblobs; i++)
        if (slice_is(q->reference, ar->blobs[i].digest)) b = &ar->blobs[i];
    if (!digest_valid(q->reference))
        return fail(e, GRPC_INVALID_ARGUMENT, "archive: blobs have digests");
    snprintf(path, sizeof path, "blobs/sha256/%.*s", PR(id_hex(q->reference)));
    source *in = b && b->made.n ? mem_source_open(&memory, b->made) : &part.source;
    if (in == &part.source && archive_open(ar, b ? b->name : slice_of(path), &part, &opened, e) < 0)
        return -1;
    for (uint64_t sent = 0;;) {
        ssize_t got = in->read(in, chunk, sizeof chunk, e);
        if (got <= 0) return (int)got;
        sent += (uint64_t)got;
        if (sent > q->size)
            return fail(e, GRPC_DATA_LOSS,
                        "archive: %.*s is larger than the %" PRIu64 " bytes it should have",
                        PR(q->reference), q->size);
        if (!frame_write(STDOUT_FILENO, (slice){ chunk, (size_t)got })) _exit(1);
    }
}

/* `krun archive`: fd 3 is an archive or a layout directory, fd 4 an empty file to unpack a
 * compressed one into. An ArchiveIndex goes out, then requests are answered as by fetch. */
static int archive_main(int argc, char **argv)
{
    static archive ar;
    error e = { 0 };
    ArchiveIndex index = { 0 };
    (void)argc, (void)argv;
    if (archive_begin(&ar, &e) < 0 || archive_list(&ar, &index, &e) < 0)
        index = (ArchiveIndex){ .code = e.code, .message = slice_of(e.text) };
    if (!frame_write_message(STDOUT_FILENO, &ArchiveIndex_msg, &index)) return 1;
    for (;;) {
        slice wire;
        FetchRequest q;
        FetchAnswer answer = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        if (frame_read(STDIN_FILENO, &a, &wire) != 1) return 0;
        if (pb_decode(&FetchRequest_msg, wire, &a, &q, &e) < 0 || archive_send(&ar, &q, &e) < 0)
            answer = (FetchAnswer){ .code = e.code, .message = slice_of(e.text) };
        if (!frame_write(STDOUT_FILENO, (slice){ NULL, 0 }) ||
            !frame_write_message(STDOUT_FILENO, &FetchAnswer_msg, &answer))
            return 1;
    }
}

/* -- helper processes, as the daemon sees them ------------------------------------------------- */

/* A role of krun's that was started, and two pipes to it. Every wait on it also ends when cancel_fd
 * (borrowed; -1 for none) gets readable. */
typedef struct { const char *role; int pidfd, to, from, cancel_fd; } helper;

static const helper helper_none = { .pidfd = -1, .to = -1, .from = -1, .cancel_fd = -1 };

/* Ends the helper, whatever it is at: nothing that it holds needs a clean end. */
static void helper_stop(helper *h)
{
    close_fd(&h->to);
    close_fd(&h->from);
    if (h->pidfd >= 0) {
        sys_pidfd_kill(h->pidfd, SIGKILL);
        reap(h->pidfd, 0);
    }
    close_fd(&h->pidfd);
    *h = helper_none;
}

/* Starts `krun <role>`; `extra` become its descriptors 3 and 4, -1 for none. */
static int helper_start(helper *h, const char *role, const int extra[2], int cancel_fd, error *e)
{
    int in[2], out[2], program = self_program(e);
    if (program < 0) return -1;
    if (pipe2(in, O_CLOEXEC) < 0)
        return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "start %s: pipe", role);
    OWNED_FD their_in = in[0], our_in = in[1];
    if (pipe2(out, O_CLOEXEC) < 0)
        return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "start %s: pipe", role);
    OWNED_FD our_out = out[0], their_out = out[1];
    (void)fcntl(our_in, F_SETPIPE_SZ,
                MIB); /* fewer switches between the two; refused past a user's quota */
    if (fcntl(our_in, F_SETFL, O_NONBLOCK) < 0) return fail_sys(e, GRPC_INTERNAL, "start %s", role);
    int fds[5] = { their_in, their_out, STDERR_FILENO, extra[0], extra[1] };
    char *argv[] = { "krun", (char *)role, NULL }, *envp[] = { NULL };
    spawn_args args = { .exec_fd = program, .argv = argv, .envp = envp, .fds = fds,
                        .nfds = extra[0] < 0 ? 3 : extra[1] < 0 ? 4 : 5, .new_session = true };
    int pidfd = spawn(&args, NULL, e);
    if (pidfd < 0) return -1;
    *h = (helper){ role, pidfd, give_fd(&our_in), give_fd(&our_out), cancel_fd };
    return 0;
}

/* Waits until the helper can be read from or written to. -1 when the work was cancelled. */
static int helper_wait(const helper *h, int fd, short events, error *e)
{
    struct pollfd p[2] = { { .fd = fd, .events = events },
                           { .fd = h->cancel_fd, .events = POLLIN } };
    while (poll(p, 2, -1) < 0)
        if (errno != EINTR) return fail_sys(e, GRPC_INTERNAL, "wait for krun %s", h->role);
    return p[1].revents ? fail(e, GRPC_CANCELLED, "cancelled") : 0;
}

static int helper_read(const helper *h, void *p, size_t n, error *e)
{
    for (uint8_t *at = p; n;) {
        if (helper_wait(h, h->from, POLLIN, e) < 0) return -1;
        ssize_t got = read(h->from, at, n);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fail_sys(e, GRPC_INTERNAL, "read from krun %s", h->role);
        if (got == 0) return fail(e, GRPC_INTERNAL, "krun %s ended before it answered", h->role);
        at += got;
        n -= (size_t)got;
    }
    return 0;
}

/* -1 with e->sys EPIPE: it has closed its input, and its answer says why. */
static int helper_write(const helper *h, const void *p, size_t n, error *e)
{
    for (const uint8_t *at = p; n;) {
        ssize_t done = write(h->to, at, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno != EAGAIN)
            return fail_sys(e, GRPC_INTERNAL, "write to krun %s", h->role);
        if (done < 0 && helper_wait(h, h->to, POLLOUT, e) < 0) return -1;
        at += MAX(done, 0);
        n -= (size_t)MAX(done, 0);
    }
    return 0;
}

static int helper_send(const helper *h, const pb_message *m, const void *msg, error *e)
{
    uint8_t size[4];
    OWNED_BUF wire = { 0 };
    if (pb_encode(m, msg, &wire) < 0 || wire.n > FRAME_MAX)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "a request to krun %s of %zu bytes", h->role,
                    wire.n);
    for (int i = 0; i < 4; i++) size[i] = (uint8_t)(wire.n >> (8 * i));
    return helper_write(h, size, 4, e) < 0 ? -1 : helper_write(h, wire.p, wire.n, e);
}

static int helper_receive(const helper *h, const pb_message *m, arena *a, void *out, error *e)
{
    uint8_t size[4];
    if (helper_read(h, size, 4, e) < 0) return -1;
    size_t n = frame_size(size);
    uint8_t *p = n <= FRAME_MAX ? arena_alloc(a, n + 1) : NULL;
    if (!p)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "an answer of krun %s of %zu bytes", h->role, n);
    if (helper_read(h, p, n, e) < 0) return -1;
    return pb_decode(m, (slice){ p, n }, a, out, e);
}

/* Where the bytes of a blob go on their way through the daemon, which hashes them all; what the
 * source says their media type is. */
typedef struct {
    sha256 hash;
    uint64_t bytes;
    buf *memory;
    const helper *unpack;
    slice media_type;
} blob_sink;

static int sink_add(blob_sink *s, const uint8_t *p, size_t n, error *e)
{
    sha256_add(&s->hash, p, n);
    s->bytes += n;
    if (s->memory) buf_add(s->memory, p, n);
    if (s->memory && s->memory->oom)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a blob");
    return s->unpack ? helper_write(s->unpack, p, n, e) : 0;
}

/* Asks a source (fetch or archive) for a blob and hands on its bytes. `answer` is the arena's. */
static int source_get(const helper *from, const FetchRequest *q, blob_sink *to, arena *a, error *e)
{
    uint8_t size[4], *chunk = arena_alloc(a, CHUNK);
    FetchAnswer answer;
    sha256_init(&to->hash);
    if (!chunk) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a blob");
    if (helper_send(from, &FetchRequest_msg, q, e) < 0) return -1;
    for (;;) {
        if (helper_read(from, size, 4, e) < 0) return -1;
        size_t n = frame_size(size);
        if (n == 0) break;
        if (n > CHUNK || to->bytes + n > q->size)
            return fail(e, GRPC_INTERNAL, "krun %s sends more than was asked for", from->role);
        if (helper_read(from, chunk, n, e) < 0 || sink_add(to, chunk, n, e) < 0) return -1;
    }
    if (helper_receive(from, &FetchAnswer_msg, a, &answer, e) < 0) return -1;
    if (answer.code) return fail(e, answer.code, "%.*s", PR(answer.message));
    to->media_type = answer.media_type;
    return 0;
}

/* -- the store in memory ----------------------------------------------------------------------- */

/* What images_open is told; borrowed until images_close. */
typedef struct {
    int root_fd;                 /* --root, an open directory */
    const char *root_path;       /* the same as a path, for ImageFsInfo */
    const char *hosts_dir;       /* certs.d, or NULL */
    const char *const *tls_helper; /* program and arguments, NULL at the end; or NULL */
    bool no_sync;                /* do not make a pull survive a power cut */
} image_options;

enum { LAYER_NAME = 65, STORE_BUCKETS = 256, LAYERS_AT_ONCE = 3 };

/* A layer that is whole on disk. Guarded by the store's lock. */
typedef struct layer {
    struct layer *next;
    char name[LAYER_NAME];
    unsigned users;
    uint64_t bytes, entries;
} layer;

/* An image. Its record never changes: an image whose names change is replaced by another one, and
 * the old goes when nobody holds it any more. `refs` is guarded by the store's lock. */
typedef struct image { struct image *next; ImageRecord record; arena memory; unsigned refs; } image;

/* Work that several may want at once and one does: a pull of an image, the making or the removal of
 * a layer. `done` gets readable when it has landed; `cancel` when nobody wants it any more. All but
 * the key is guarded by the store's lock. */
typedef struct flight {
    struct flight *next;
    char *key;
    unsigned refs, waiters;
    bool landed;
    int done, cancel;
    error why; /* code 0: it went well */
    char id[DIGEST_TEXT];
} flight;

typedef struct image_store {
    image_options o;
    int images_fd, layers_fd;
    pthread_mutex_t writing; /* held while records on disk change; taken before `lock` */
    pthread_mutex_t lock;    /* guards all that follows; never held across what can block */
    pthread_cond_t idle;     /* `threads` has become 0 */
    image *images;
    layer *layers[STORE_BUCKETS];
    flight *flights;
    uint64_t bytes, entries; /* of all layers */
    unsigned threads;
    bool collecting, sweeping, closing;
} image_store;

static layer **layer_slot(image_store *s,
                          slice name) /* names are hashes: their first digits spread them */
{
    uint8_t bucket = 0;
    if (name.n >= 2) hex_decode((slice){ name.p, 2 }, &bucket, 1);
    layer **at = &s->layers[bucket];
    while (*at && !slice_is(name, (*at)->name)) at = &(*at)->next;
    return at;
}

static bool layer_add(image_store *s, slice name, const LayerRecord *r, unsigned users)
{
    layer *l = calloc(1, sizeof *l), **at = layer_slot(s, name);
    if (!l || *at) return free(l), false;
    snprintf(l->name, sizeof l->name, "%.*s", PR(name));
    l->bytes = r->bytes;
    l->entries = r->entries;
    l->users = users;
    s->bytes += l->bytes;
    s->entries += l->entries;
    *at = l;
    return true;
}

static bool layer_hold(image_store *s, slice name) /* false: no such layer */
{
    layer *l = *layer_slot(s, name);
    if (l) l->users++;
    return l != NULL;
}

static void layer_release(image_store *s, slice name)
{
    layer *l = *layer_slot(s, name);
    if (!l) return;
    assert(l->users > 0);
    l->users--;
}

/* Makes an image of a record (copied), holding its layers. NULL: out of memory. Under the lock. */
static image *image_make(image_store *s, const ImageRecord *record)
{
    image *i = calloc(1, sizeof *i);
    if (!i) return NULL;
    i->memory = arena_make(64 * MIB);
    i->refs = 1;
    if (pb_copy(&ImageRecord_msg, record, &i->memory, &i->record) < 0) {
        arena_free(&i->memory);
        return free(i), NULL;
    }
    for (size_t n = 0; n < i->record.layers.n; n++) layer_hold(s, i->record.layers.p[n]);
    return i;
}

static void image_unref(image_store *s, image *i) /* under the lock */
{
    assert(i->refs > 0);
    if (--i->refs) return;
    for (size_t n = 0; n < i->record.layers.n; n++) layer_release(s, i->record.layers.p[n]);
    arena_free(&i->memory);
    free(i);
}

static bool list_has(const slice *list, size_t n, slice wanted)
{
    for (size_t i = 0; i < n; i++)
        if (slice_eq(list[i], wanted)) return true;
    return false;
}

static bool image_has_name(const ImageRecord *r, slice full)
{
    return list_has(r->repo_tags.p, r->repo_tags.n, full) ||
           list_has(r->repo_digests.p, r->repo_digests.n, full);
}

/* Finds an image by its whole ID, by a name (`full` is `given` normalised, or empty), or by the
 * beginning of an ID if only one begins so. Under the lock. */
static image *image_find(image_store *s, slice given, slice full)
{
    image *by_name = NULL, *by_prefix = NULL;
    unsigned found = 0;
    slice hex = id_hex(given);
    for (image *i = s->images; i; i = i->next) {
        slice own = id_hex(i->record.id);
        if (slice_eq(own, hex)) return i;
        if (full.n && image_has_name(&i->record, full)) by_name = i;
        if (hex.n && hex.n < own.n && memcmp(own.p, hex.p, hex.n) == 0) by_prefix = i, found++;
    }
    return by_name ? by_name : found == 1 ? by_prefix : NULL;
}

/* `given` as the key of a name; empty if it cannot be one. */
static slice name_normalise(slice given, arena *a)
{
    image_ref ref;
    error ignored;
    return image_ref_parse(given, a, &ref, &ignored) == 0 ? ref.full : (slice){ NULL, 0 };
}

/* -- flights ----------------------------------------------------------------------------------- */

static void flight_unref(flight *f) /* under the lock */
{
    if (--f->refs) return;
    close_fd(&f->done);
    close_fd(&f->cancel);
    free(f->key);
    free(f);
}

/* Joins the flight of that key, or starts it: then *first is true, and who called must do the work
 * and land it. Either way the caller has a reference. NULL: out of memory or descriptors. */
static flight *flight_join(image_store *s, const char *key, bool *first)
{
    flight *f = s->flights;
    while (f && strcmp(f->key, key)) f = f->next;
    *first = !f;
    if (f) return f->refs++, f;
    f = calloc(1, sizeof *f);
    if (!f) return NULL;
    *f = (flight){ .key = strdup(key), .refs = 1 };
    f->done = eventfd(0, EFD_CLOEXEC);
    f->cancel = eventfd(0, EFD_CLOEXEC);
    if (!f->key || f->done < 0 || f->cancel < 0) return flight_unref(f), NULL;
    f->next = s->flights;
    s->flights = f;
    return f;
}

static void event_set(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) < 0) assert(errno == EAGAIN);
}

static void flight_unlist(image_store *s,
                          const flight *f) /* the next who joins its key starts anew */
{
    flight **at = &s->flights;
    while (*at && *at != f) at = &(*at)->next;
    if (*at) *at = f->next;
}

/* Tells all who wait. Under the lock. */
static void flight_land(image_store *s, flight *f, const error *why)
{
    flight_unlist(s, f);
    f->landed = true;
    if (why) f->why = *why;
    event_set(f->done);
}

/* Waits for the landing. -1: cancelled before. Not under the lock. */
static int flight_wait(const flight *f, int cancel_fd, error *e)
{
    struct pollfd p[2] = { { .fd = f->done, .events = POLLIN },
                           { .fd = cancel_fd, .events = POLLIN } };
    while (poll(p, 2, -1) < 0)
        if (errno != EINTR) return fail_sys(e, GRPC_INTERNAL, "wait for %s", f->key);
    return p[0].revents ? 0 : fail(e, GRPC_CANCELLED, "cancelled");
}

/* Starts a detached thread that the store counts. Under the lock. */
static bool store_thread(image_store *s, void *(*run)(void *), void *arg)
{
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 256 * KIB);
    bool started = pthread_create(&thread, &attr, run, arg) == 0;
    pthread_attr_destroy(&attr);
    s->threads += started;
    return started;
}

static void store_thread_ends(image_store *s) /* under the lock */
{
    if (--s->threads == 0) pthread_cond_broadcast(&s->idle);
}

/* -- layers that nobody needs ------------------------------------------------------------------ */

/* Takes a layer that has no user out of the table. False: there is none. Under the lock. */
static bool layer_take_unused(image_store *s, char name[LAYER_NAME])
{
    for (size_t b = 0; b < STORE_BUCKETS; b++)
        for (layer **at = &s->layers[b]; *at; at = &(*at)->next) {
            layer *l = *at;
            if (l->users) continue;
            memcpy(name, l->name, LAYER_NAME);
            s->bytes -= l->bytes;
            s->entries -= l->entries;
            *at = l->next;
            free(l);
            return true;
        }
    return false;
}

/* Removes a layer from disk: out of sight in one step, so that a kill leaves a .partial. */
static void layer_delete(image_store *s, const char *name)
{
    error e;
    char file[LAYER_NAME + 16], partial[LAYER_NAME + 16];
    snprintf(file, sizeof file, "%s.json", name);
    snprintf(partial, sizeof partial, "%s.partial", name);
    unlinkat(s->layers_fd, file, 0);
    fault_point("layer.remove");
    if (renameat(s->layers_fd, name, s->layers_fd, partial) < 0 && errno != ENOENT)
        log_warn("layer %s: rename: %s", name, strerror(errno));
    if (tree_remove(s->layers_fd, partial, &e) < 0) log_warn("layer %s: %s", name, e.text);
    else log_info("layer %.12s removed: nothing uses it", name);
}

/* The sweeper's thread. While a layer is being removed it has a flight under its name, so that a
 * pull that wants it waits and then makes it anew. */
static void *store_sweep(void *arg)
{
    image_store *s = arg;
    char name[LAYER_NAME];
    pthread_mutex_lock(&s->lock);
    while (!s->closing && layer_take_unused(s, name)) {
        bool first;
        flight *f = flight_join(s, name, &first);
        pthread_mutex_unlock(&s->lock);
        layer_delete(s, name);
        pthread_mutex_lock(&s->lock);
        if (!f) continue;
        flight_land(s, f, NULL);
        flight_unref(f);
    }
    s->sweeping = false;
    store_thread_ends(s);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Has unused layers removed in the background. Under the lock; after every release. */
static void store_collect(image_store *s)
{
    if (!s->collecting || s->sweeping || s->closing) return;
    for (size_t b = 0; b < STORE_BUCKETS; b++)
        for (layer *l = s->layers[b]; l; l = l->next)
            if (!l->users) {
                s->sweeping = store_thread(s, store_sweep, s);
                return;
            }
}

/* -- records on disk --------------------------------------------------------------------------- */

enum { RECORD_VERSION = 1, RECORD_MAX = 32 * MIB };

static int record_write(image_store *s, const ImageRecord *r, error *e)
{
    OWNED_BUF text = { 0 };
    char name[LAYER_NAME + 8];
    snprintf(name, sizeof name, "%.*s.json", PR(id_hex(r->id)));
    pb_write_json(&ImageRecord_msg, r, PB_INDENT, &text);
    if (text.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "image record: out of memory");
    return file_replace(s->images_fd, name, buf_view(&text), s->o.no_sync ? ATOMIC : DURABLE, e);
}

/* Puts `record` in the place of the image with that ID, or adds it. Under both locks. */
static int image_replace(image_store *s, const ImageRecord *record, error *e)
{
    image **at = &s->images, *made = image_make(s, record);
    if (!made) return fail(e, GRPC_RESOURCE_EXHAUSTED, "image %.*s: out of memory", PR(record->id));
    while (*at && !slice_eq((*at)->record.id, record->id)) at = &(*at)->next;
    image *old = *at;
    made->next = old ? old->next : NULL;
    *at = made;
    if (old) image_unref(s, old);
    return 0;
}

/* Adds to *list what of `more` is not in it. Its memory has room for both. */
static void list_merge(slice *list, size_t *n, const slice *more, size_t nmore)
{
    for (size_t i = 0; i < nmore; i++)
        if (!list_has(list, *n, more[i])) list[(*n)++] = more[i];
}

/* The record with the names of an older one of the same image added. */
static int record_merge(ImageRecord *r, const ImageRecord *old, arena *a, error *e)
{
    slice *tags = arena_alloc(a, (r->repo_tags.n + old->repo_tags.n + 1) * sizeof *tags);
    slice *digests =
        arena_alloc(a, (r->repo_digests.n + old->repo_digests.n + 1) * sizeof *digests);
    size_t ntags = 0, ndigests = 0;
    if (!tags || !digests) return fail(e, GRPC_RESOURCE_EXHAUSTED, "image record: out of memory");
    list_merge(tags, &ntags, old->repo_tags.p, old->repo_tags.n);
    list_merge(tags, &ntags, r->repo_tags.p, r->repo_tags.n);
    list_merge(digests, &ndigests, old->repo_digests.p, old->repo_digests.n);
    list_merge(digests, &ndigests, r->repo_digests.p, r->repo_digests.n);
    r->repo_tags.p = tags, r->repo_tags.n = ntags;
    r->repo_digests.p = digests, r->repo_digests.n = ndigests;
    r->pinned = r->pinned || old->pinned;
    return 0;
}

/* Takes the tags of `r` away from every other image: a tag names one. Under `writing`. */
static int store_move_tags(image_store *s, const ImageRecord *r, error *e)
{
    for (image *i = s->images; i; i = i->next) {
        ImageRecord less = i->record;
        OWNED_ARENA a = arena_make(MIB);
        if (slice_eq(less.id, r->id)) continue;
        less.repo_tags.p = arena_alloc(&a, (less.repo_tags.n + 1) * sizeof *less.repo_tags.p);
        less.repo_tags.n = 0;
        if (!less.repo_tags.p)
            return fail(e, GRPC_RESOURCE_EXHAUSTED, "image record: out of memory");
        for (size_t n = 0; n < i->record.repo_tags.n; n++)
            if (!image_has_name(r, i->record.repo_tags.p[n]))
                less.repo_tags.p[less.repo_tags.n++] = i->record.repo_tags.p[n];
        if (less.repo_tags.n == i->record.repo_tags.n) continue;
        if (record_write(s, &less, e) < 0) return -1;
        pthread_mutex_lock(&s->lock);
        int failed = image_replace(s, &less, e);
        pthread_mutex_unlock(&s->lock);
        return failed ? -1 : store_move_tags(s, r, e); /* the list has changed: look again */
    }
    return 0;
}

/* Makes an image known: on disk first, whole and named in one step, then in memory. What the layers
 * hold is synced before the record that names them is written, by one syncfs(2) for all: a layer
 * that a power cut damages has no record yet, and is removed at the next start. */
static int store_publish(image_store *s, ImageRecord *r, error *e)
{
    OWNED_ARENA a = arena_make(8 * MIB);
    if (!s->o.no_sync && syncfs(s->layers_fd) < 0)
        return fail_sys(e, GRPC_INTERNAL, "sync the layers to disk");
    fault_point("pull.record");
    pthread_mutex_lock(&s->writing);
    pthread_mutex_lock(&s->lock);
    image *old = s->images;
    while (old && !slice_eq(old->record.id, r->id)) old = old->next;
    int failed = old ? record_merge(r, &old->record, &a, e)
                     : 0; /* the old one lives while we hold `writing` */
    pthread_mutex_unlock(&s->lock);
    if (!failed) failed = record_write(s, r, e);
    fault_point("pull.tags");
    pthread_mutex_lock(&s->lock);
    if (!failed) failed = image_replace(s, r, e);
    pthread_mutex_unlock(&s->lock);
    if (!failed) failed = store_move_tags(s, r, e);
    pthread_mutex_unlock(&s->writing);
    return failed ? -1 : 0;
}

/* -- one pull or load -------------------------------------------------------------------------- */

/* What a pull knows and holds. The source is a fetch, or the archive of a load. The members below
 * `lock` are shared by the threads that get its layers. */
typedef struct {
    image_store *store;
    const FetchSetup *setup;   /* NULL: the source is an archive, and one for all */
    helper source, reader;
    int cancel_fd;
    arena a;
    char digest[DIGEST_TEXT];  /* of the index or manifest that was asked for */
    uint64_t size;             /* compressed bytes of all that is the image's */
    ReadAnswer manifest, config;
    slice config_json;
    pthread_mutex_t lock;
    size_t next;               /* the layer to get next */
    bool got[LAYERS_MAX];      /* those that we hold */
    bool failed;
    error why;                 /* of the first that failed */
} pull;

/* Starts a source of the pull's kind. */
static int pull_source(const pull *p, helper *h, error *e)
{
    if (helper_start(h, "fetch", (int[]){ -1, -1 }, p->cancel_fd, e) < 0) return -1;
    return helper_send(h, &FetchSetup_msg, p->setup, e);
}

static int pull_read(pull *p, const ReadRequest *q, ReadAnswer *out, error *e)
{
    if (helper_send(&p->reader, &ReadRequest_msg, q, e) < 0) return -1;
    if (helper_receive(&p->reader, &ReadAnswer_msg, &p->a, out, e) < 0) return -1;
    return out->code ? fail(e, out->code, "%.*s", PR(out->message)) : 0;
}

/* Gets a small blob into memory and holds it against its descriptor; without one (a tag) any digest
 * is right. Its digest goes to `digest`. */
static int pull_document(pull *p, const FetchRequest *q, const Descriptor *want, ReadRequest *out,
                         error *e)
{
    uint8_t hash[32];
    char digest[DIGEST_TEXT];
    OWNED_BUF body = { 0 };
    blob_sink sink = { .memory = &body };
    const char *what = q->manifest ? "manifest" : "config";
    if (source_get(&p->source, q, &sink, &p->a, e) < 0) return -1;
    sha256_end(&sink.hash, hash);
    digest_text(hash, digest);
    if (want && !slice_is(want->digest, digest))
        return fail(e, GRPC_DATA_LOSS, "%s: its digest is %s, not %.*s", what, digest,
                    PR(want->digest));
    if (want && want->size && want->size != sink.bytes)
        return fail(e, GRPC_DATA_LOSS, "%s: its size is %" PRIu64 ", not %" PRIu64, what,
                    sink.bytes, want->size);
    if (!p->digest[0]) memcpy(p->digest, digest, sizeof digest);
    p->size += sink.bytes;
    *out = (ReadRequest){ .is_config = !q->manifest, .media_type = sink.media_type };
    out->body = arena_copy(&p->a, buf_view(&body));
    return p->a.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "%s: out of memory", what) : 0;
}

/* The architectures that an index can name, as uname(2) and as the image-spec call them. */
static const struct { const char *machine, *platform; } platforms[] = {
    { "x86_64", "linux/amd64" }, { "aarch64", "linux/arm64/v8" }, { "riscv64", "linux/riscv64" },
    { "armv7l", "linux/arm/v7" }, { "armv6l", "linux/arm/v6" }, { "i686", "linux/386" },
    { "ppc64le", "linux/ppc64le" }, { "s390x", "linux/s390x" }, { "loongarch64", "linux/loong64" },
};

#ifdef __x86_64__
static const char *platform_variant(void) /* the psABI's levels, by what each added */
{
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("fma"))
        return "/v3";
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") ? "/v2" : "/v1";
}
#else
static const char *platform_variant(void) { return ""; }
#endif

static slice platform_ours(arena *a)
{
    struct utsname u;
    uname(&u);
    for (size_t i = 0; i < COUNT(platforms); i++)
        if (!strcmp(u.machine, platforms[i].machine))
            return slice_of(arena_printf(a, "%s%s", platforms[i].platform, platform_variant()));
    return slice_of(arena_printf(a, "linux/%s", u.machine));
}

enum { INDEX_DEPTH = 2 };

/* From what was asked for down to the manifest of this machine's platform. */
static int pull_manifest(pull *p, slice reference, const Descriptor *known, error *e)
{
    Descriptor want, *must = NULL;
    if (known) want = *known, must = &want;
    for (int depth = 0; depth <= INDEX_DEPTH; depth++) {
        ReadRequest q;
        FetchRequest get = { .reference = must ? must->digest : reference,
                             .manifest = true,
                             .size = MANIFEST_MAX };
        if (pull_document(p, &get, must, &q, e) < 0) return -1;
        q.platform = platform_ours(&p->a);
        if (must && must->media_type.n) q.media_type = must->media_type;
        if (pull_read(p, &q, &p->manifest, e) < 0) return -1;
        if (!p->manifest.chosen) return 0;
        want = *p->manifest.chosen;
        must = &want;
    }
    return fail(e, GRPC_INVALID_ARGUMENT, "an index in an index in an index");
}

static int pull_config(pull *p, error *e)
{
    ReadRequest q;
    const Descriptor *d = p->manifest.config;
    if (!d || !p->manifest.layers.n)
        return fail(e, GRPC_INTERNAL, "krun read: a manifest without config or layers");
    FetchRequest get = { .reference = d->digest, .size = d->size };
    if (pull_document(p, &get, d, &q, e) < 0) return -1;
    if (pull_read(p, &q, &p->config, e) < 0) return -1;
    p->config_json = q.body;
    size_t ids = p->config.diff_ids.n, layers = p->manifest.layers.n;
    if (ids != layers)
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "config: rootfs.diff_ids has %zu entries for %zu layers", ids, layers);
    for (size_t i = 0; i < ids;
         i++) /* the helper has checked; these become file names, so we do too */
        if (!digest_valid(p->config.diff_ids.p[i]) || !digest_valid(p->manifest.layers.p[i].digest))
            return fail(e, GRPC_INTERNAL, "krun read: an invalid digest");
    return 0;
}

/* -- one layer --------------------------------------------------------------------------------- */

/* A layer on its way: its final name, its blob, and the directory it is made in. */
typedef struct {
    char name[LAYER_NAME], partial[LAYER_NAME + 16];
    const Descriptor *blob;
    slice diff_id;
} layer_plan;

static layer_plan layer_plan_of(slice diff_id, const Descriptor *blob)
{
    layer_plan l = { .blob = blob, .diff_id = diff_id };
    snprintf(l.name, sizeof l.name, "%.*s", PR(id_hex(diff_id)));
    snprintf(l.partial, sizeof l.partial, "%s.partial", l.name);
    return l;
}

/* The bytes from the source through the hash into unpack, and both digests held against what the
 * manifest and the config promise. */
static int layer_stream(const helper *from, helper *unpack, const layer_plan *l, LayerRecord *out,
                        error *e)
{
    uint8_t hash[32];
    char digest[DIGEST_TEXT];
    UnpackAnswer answer;
    error late;
    blob_sink sink = { .unpack = unpack };
    FetchRequest get = { .reference = l->blob->digest, .size = l->blob->size };
    OWNED_ARENA a = arena_make(MIB);
    int got = source_get(from, &get, &sink, &a, e);
    bool it_stopped = got < 0 && e->sys == EPIPE; /* then its answer says why */
    close_fd(&unpack->to);
    unpack->to = -1;
    if (got < 0 && !it_stopped) return -1;
    if (helper_receive(unpack, &UnpackAnswer_msg, &a, &answer, &late) < 0) return *e = late, -1;
    if (answer.code) return fail(e, answer.code, "%.*s", PR(answer.message));
    if (it_stopped) return -1;
    sha256_end(&sink.hash, hash);
    digest_text(hash, digest);
    if (sink.bytes != l->blob->size)
        return fail(e, GRPC_DATA_LOSS, "its size is %" PRIu64 ", not %" PRIu64, sink.bytes,
                    l->blob->size);
    if (!slice_is(l->blob->digest, digest))
        return fail(e, GRPC_DATA_LOSS, "its digest is %s", digest);
    if (!slice_eq(answer.diff_id, l->diff_id))
        return fail(e, GRPC_DATA_LOSS, "its diff-id is %.*s, but the config says %.*s",
                    PR(answer.diff_id), PR(l->diff_id));
    *out = (LayerRecord){ RECORD_VERSION, l->diff_id, answer.bytes, answer.entries };
    return 0;
}

/* Makes the .partial directory and starts an unpack in it. Its root belongs to the image, so its
 * mode does not come from our umask. */
static int layer_begin(image_store *s, const layer_plan *l, int cancel_fd, helper *unpack, error *e)
{
    if (tree_remove(s->layers_fd, l->partial, e) < 0) return -1;
    if (mkdirat(s->layers_fd, l->partial, 0700) < 0)
        return fail_sys(e, GRPC_INTERNAL, "mkdir layers/%s", l->partial);
    OWNED_FD dir =
        openat(s->layers_fd, l->partial, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0 || fchmod(dir, 0755) < 0)
        return fail_sys(e, GRPC_INTERNAL, "open layers/%s", l->partial);
    return helper_start(unpack, "unpack", (int[]){ dir, -1 }, cancel_fd, e);
}

static int layer_fill(pull *p, const helper *from, const layer_plan *l, LayerRecord *out, error *e)
{
    helper unpack = helper_none;
    int failed = layer_begin(p->store, l, p->cancel_fd, &unpack, e);
    if (!failed) failed = layer_stream(from, &unpack, l, out, e);
    helper_stop(&unpack);
    return failed;
}

/* Names what was filled: its record first, then the rename, which is what makes the layer be. */
static int layer_commit(image_store *s, const layer_plan *l, const LayerRecord *r, error *e)
{
    char file[LAYER_NAME + 16];
    OWNED_BUF text = { 0 };
    snprintf(file, sizeof file, "%s.json", l->name);
    pb_write_json(&LayerRecord_msg, r, PB_INDENT, &text);
    if (text.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "layer record: out of memory");
    fault_point("pull.layer");
    if (file_replace(s->layers_fd, file, buf_view(&text), ATOMIC, e) < 0) return -1;
    fault_point("pull.rename");
    if (renameat(s->layers_fd, l->partial, s->layers_fd, l->name) < 0)
        return fail_sys(e, GRPC_INTERNAL, "rename layers/%s", l->partial);
    return 0;
}

static int layer_make(pull *p, helper *from, const layer_plan *l, error *e)
{
    LayerRecord r = { 0 };
    error ignored;
    int failed =
        from->pidfd < 0 ? pull_source(p, from, e) : 0; /* a source of its own for each thread */
    if (!failed) failed = layer_fill(p, from, l, &r, e);
    if (!failed) failed = layer_commit(p->store, l, &r, e);
    if (failed) {
        tree_remove(p->store->layers_fd, l->partial, &ignored);
        return fail_in(e, "layer %.*s", PR(l->blob->digest));
    }
    pthread_mutex_lock(&p->store->lock);
    bool added = layer_add(p->store, slice_of(l->name), &r, 1);
    pthread_mutex_unlock(&p->store->lock);
    return added ? 0 : fail(e, GRPC_RESOURCE_EXHAUSTED, "layer %s: out of memory", l->name);
}

/* Makes sure that layer i is there, and holds it. Who comes while another is making or removing it
 * waits for that, then looks again: should the other have failed, it is tried here, since this pull
 * may have better sources. */
static int layer_need(pull *p, helper *from, size_t i, error *e)
{
    image_store *s = p->store;
    layer_plan l = layer_plan_of(p->config.diff_ids.p[i], &p->manifest.layers.p[i]);
    for (;;) {
        bool first = false;
        pthread_mutex_lock(&s->lock);
        bool there = layer_hold(s, slice_of(l.name));
        flight *f = there ? NULL : flight_join(s, l.name, &first);
        pthread_mutex_unlock(&s->lock);
        if (there) return 0;
        if (!f)
            return fail(e, GRPC_RESOURCE_EXHAUSTED, "layer %s: out of memory or descriptors",
                        l.name);
        int failed = first ? layer_make(p, from, &l, e) : flight_wait(f, p->cancel_fd, e);
        pthread_mutex_lock(&s->lock);
        if (first) flight_land(s, f, NULL);
        flight_unref(f);
        pthread_mutex_unlock(&s->lock);
        if (failed || first) return failed;
    }
}

/* Gets one layer after the other until none is left or one has failed. */
static void pull_layers_from(pull *p, helper *from)
{
    error e;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        size_t i = p->failed ? p->manifest.layers.n : p->next++;
        pthread_mutex_unlock(&p->lock);
        if (i >= p->manifest.layers.n) return;
        int failed = layer_need(p, from, i, &e);
        pthread_mutex_lock(&p->lock);
        p->got[i] = !failed;
        if (failed && !p->failed) p->failed = true, p->why = e;
        pthread_mutex_unlock(&p->lock);
        if (failed && p->cancel_fd >= 0) event_set(p->cancel_fd); /* the others need not go on */
    }
}

static void *pull_layers_thread(void *arg)
{
    helper own = helper_none;
    pull_layers_from(arg, &own);
    helper_stop(&own);
    return NULL;
}

static int pull_layers(pull *p, error *e)
{
    pthread_t more[LAYERS_AT_ONCE - 1];
    size_t n = 0, wanted = p->setup ? MIN(p->manifest.layers.n - 1, COUNT(more)) : 0;
    while (n < wanted && pthread_create(&more[n], NULL, pull_layers_thread, p) == 0) n++;
    pull_layers_from(p, &p->source);
    while (n) pthread_join(more[--n], NULL);
    if (p->failed) *e = p->why;
    return p->failed ? -1 : 0;
}

/* The names of the layers, bottom first, each once: overlay refuses a directory given twice.
 * Only the topmost counts: it has all that the lower one has, and hides it. */
static int record_layers(const pull *p, arena *a, ImageRecord *r, error *e)
{
    size_t n = p->config.diff_ids.n;
    const slice *ids = p->config.diff_ids.p;
    r->layers.p = arena_alloc(a, n * sizeof *r->layers.p);
    if (!r->layers.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "image record: out of memory");
    for (size_t i = 0; i < n; i++)
        if (!list_has(ids + i + 1, n - i - 1, ids[i])) r->layers.p[r->layers.n++] = id_hex(ids[i]);
    return 0;
}

/* What a pull or a load wants: a tag or digest to ask for, or a manifest that is known; the names
 * that the image shall have. */
typedef struct {
    slice reference;
    const Descriptor *known;
    const slice *tags;
    size_t ntags;
    slice name;
    bool pinned;
} pull_wish;

static int pull_record(pull *p, const pull_wish *w, char id[DIGEST_TEXT], error *e)
{
    slice digest_name = slice_of(arena_printf(&p->a, "%.*s@%s", PR(w->name), p->digest));
    ImageRecord r = { .version = RECORD_VERSION,
                      .id = p->manifest.config->digest,
                      .size = p->size,
                      .config = p->config.image,
                      .created_at = clock_wall(),
                      .config_json = p->config_json,
                      .manifest_digest = slice_of(p->digest),
                      .pinned = w->pinned };
    slice tags[16], digests[1] = { digest_name };
    size_t ntags = MIN(w->ntags, COUNT(tags));
    for (size_t i = 0; i < ntags; i++) tags[i] = w->tags[i];
    r.repo_tags.p = tags, r.repo_tags.n = ntags;
    r.repo_digests.p = digests, r.repo_digests.n = w->name.n > 0;
    for (size_t i = 0; i < p->manifest.layers.n; i++) r.size += p->manifest.layers.p[i].size;
    if (record_layers(p, &p->a, &r, e) < 0) return -1;
    if (p->a.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "image record: out of memory");
    snprintf(id, DIGEST_TEXT, "%.*s", PR(r.id));
    return store_publish(p->store, &r, e);
}

static void pull_end(pull *p)
{
    helper_stop(&p->source);
    helper_stop(&p->reader);
    pthread_mutex_lock(&p->store->lock);
    for (size_t i = 0; i < p->config.diff_ids.n && i < LAYERS_MAX; i++)
        if (p->got[i]) layer_release(p->store, id_hex(p->config.diff_ids.p[i]));
    store_collect(p->store);
    pthread_mutex_unlock(&p->store->lock);
    arena_free(&p->a);
    pthread_mutex_destroy(&p->lock);
}

static void pull_begin(pull *p, image_store *s, int cancel_fd)
{
    *p = (pull){ .store = s, .source = helper_none, .reader = helper_none, .cancel_fd = cancel_fd };
    p->a = arena_make(64 * MIB);
    pthread_mutex_init(&p->lock, NULL);
}

/* The whole of a pull, once its source is there. */
static int pull_run(pull *p, const pull_wish *w, char id[DIGEST_TEXT], error *e)
{
    if (p->reader.pidfd < 0 &&
        helper_start(&p->reader, "read", (int[]){ -1, -1 }, p->cancel_fd, e) < 0)
        return -1;
    if (pull_manifest(p, w->reference, w->known, e) < 0 || pull_config(p, e) < 0) return -1;
    if (pull_layers(p, e) < 0) return -1;
    return pull_record(p, w, id, e);
}

/* -- PullImage --------------------------------------------------------------------------------- */

/* A pull on its own thread: it outlives the call that began it if others have joined. */
typedef struct { image_store *store; flight *f; arena a; PullImageRequest request; } pull_order;

/* The text that the kubelet reads. Only with code UNKNOWN it looks at the word in front, and
 * RegistryUnavailable makes it say that the registry and not the image is at fault. */
static void pull_explain(error *e, slice name)
{
    if (e->code == GRPC_CANCELLED) return;
    fail_in(e, "pull image \"%.*s\"", PR(name));
    if (e->code != GRPC_UNAVAILABLE) return;
    fail_in(e, "RegistryUnavailable");
    e->code = GRPC_UNKNOWN;
}

static int pull_order_run(pull_order *o, char id[DIGEST_TEXT], error *e)
{
    pull p;
    image_ref ref;
    FetchSetup setup = { .auth = o->request.auth };
    image_store *s = o->store;
    int64_t start = clock_mono();
    size_t nhelper = 0;
    if (image_ref_parse(o->request.image->image, &o->a, &ref, e) < 0) return -1;
    if (registry_hosts(s->o.hosts_dir, &ref, &o->a, &setup, e) < 0) return -1;
    while (s->o.tls_helper && s->o.tls_helper[nhelper]) nhelper++;
    setup.tls_helper.p = arena_alloc(&o->a, (nhelper + 1) * sizeof *setup.tls_helper.p);
    for (; setup.tls_helper.p && setup.tls_helper.n < nhelper; setup.tls_helper.n++)
        setup.tls_helper.p[setup.tls_helper.n] = slice_of(s->o.tls_helper[setup.tls_helper.n]);
    pull_wish wish = { .reference = ref.digest.n ? ref.digest : ref.tag,
                       .tags = &ref.full,
                       .ntags = !ref.digest.n,
                       .name = ref.name };
    Descriptor known = { .digest = ref.digest };
    if (ref.digest.n) wish.known = &known;
    pull_begin(&p, s, o->f->cancel);
    p.setup = &setup;
    int failed = pull_source(&p, &p.source, e) < 0 || pull_run(&p, &wish, id, e) < 0;
    double seconds = (double)(clock_mono() - start) / (double)NS_PER_SEC;
    if (!failed)
        log_info("pulled %.*s as %s: %zu layers in %.2f s", PR(ref.full), id, p.manifest.layers.n,
                 seconds);
    pull_end(&p);
    if (failed) pull_explain(e, ref.full);
    return failed ? -1 : 0;
}

static void *pull_thread(void *arg)
{
    pull_order *o = arg;
    image_store *s = o->store;
    error e = { 0 };
    char id[DIGEST_TEXT] = "";
    int failed = pull_order_run(o, id, &e);
    if (failed) log_warn("%s", e.text);
    pthread_mutex_lock(&s->lock);
    memcpy(o->f->id, id, sizeof id);
    flight_land(s, o->f, failed ? &e : NULL);
    flight_unref(o->f);
    store_thread_ends(s);
    pthread_mutex_unlock(&s->lock);
    arena_free(&o->a);
    free(o);
    return NULL;
}

/* The thread takes over the caller's reference to f. Under the lock. */
static bool pull_begin_thread(image_store *s, flight *f, const PullImageRequest *in)
{
    pull_order *o = calloc(1, sizeof *o);
    if (!o) return false;
    *o = (pull_order){ .store = s, .f = f, .a = arena_make(16 * MIB) };
    PullImageRequest less = { .image = in->image, .auth = in->auth };
    if (pb_copy(&PullImageRequest_msg, &less, &o->a, &o->request) == 0 && !s->closing &&
        store_thread(s, pull_thread, o))
        return f->refs++, true;
    arena_free(&o->a);
    return free(o), false;
}

/* Two pulls are the same one if they want the same name with the same credentials. */
static char *pull_key(const image_ref *ref, const AuthConfig *auth, arena *a)
{
    sha256 h;
    uint8_t hash[32];
    char hex[65];
    OWNED_BUF wire = { 0 };
    sha256_init(&h);
    if (auth && pb_encode(&AuthConfig_msg, auth, &wire) == 0) sha256_add(&h, wire.p, wire.n);
    sha256_end(&h, hash);
    hex_encode(hash, sizeof hash, hex);
    return arena_printf(a, "%.*s %s", PR(ref->full), hex);
}

/* Pulls what the request names; *id is the image's, in the arena. Who is cancelled leaves; the pull
 * itself ends early only when the last who wanted it has left. */
static int image_pull(image_store *s, const PullImageRequest *in, int cancel_fd, arena *a,
                      slice *id, error *e)
{
    image_ref ref;
    bool first;
    slice name = in->image ? in->image->image : (slice){ NULL, 0 };
    if (image_ref_parse(name, a, &ref, e) < 0) return -1;
    char *key = pull_key(&ref, in->auth, a);
    pthread_mutex_lock(&s->lock);
    flight *f = flight_join(s, key, &first);
    bool flies = f && (!first || pull_begin_thread(s, f, in));
    if (flies) f->waiters++;
    else if (f) flight_unlist(s, f), flight_unref(f);
    pthread_mutex_unlock(&s->lock);
    if (!flies)
        return fail(e, GRPC_RESOURCE_EXHAUSTED,
                    "pull image \"%.*s\": out of memory, threads or descriptors", PR(ref.full));
    int failed = flight_wait(f, cancel_fd, e);
    pthread_mutex_lock(&s->lock);
    if (--f->waiters == 0 && !f->landed) flight_unlist(s, f), event_set(f->cancel);
    if (!failed && f->why.code) failed = -1, *e = f->why;
    if (!failed) *id = arena_copy(a, slice_of(f->id));
    flight_unref(f);
    pthread_mutex_unlock(&s->lock);
    return failed;
}

/* -- krun load --------------------------------------------------------------------------------- */

/* The full name that a load gives for what the archive says: a reference as it is; a mere tag, or
 * nothing, becomes localhost/<the file's name>:<tag>. Empty when no name can be made of it. */
static slice load_name(const char *path, slice said, arena *a)
{
    slice file = slice_of(path);
    if (slice_has(said, '/') || slice_has(said, ':')) return name_normalise(said, a);
    while (file.n && file.p[file.n - 1] == '/') file.n--;
    const uint8_t *slash = file.n ? memrchr(file.p, '/', file.n) : NULL;
    if (slash) file = (slice){ slash + 1, file.n - (size_t)(slash - file.p) - 1 };
    slice stem = slice_cut(&file, '.');
    return name_normalise(slice_of(arena_printf(a, "localhost/%.*s:%.*s", PR(stem),
                                                PR(said.n ? said : SLICE("latest")))),
                          a);
}

/* A load that is going on: its archive's helper, and the names of what it has loaded. */
typedef struct {
    image_store *store;
    const char *path;
    helper from;
    arena *a;
    slice_list names;
} load;

/* One image. The helper is lent to its pull, and taken back. */
static int load_one(load *l, const ArchiveImage *given, error *e)
{
    pull p;
    char id[DIGEST_TEXT];
    slice tags[16], nameless = { NULL, 0 };
    pull_wish wish = { .known = given->manifest, .tags = tags };
    if (!given->manifest || !digest_valid(given->manifest->digest))
        return fail(e, GRPC_INVALID_ARGUMENT, "an image without a manifest");
    for (size_t i = 0; i < MAX(given->names.n, (size_t)1) && wish.ntags < COUNT(tags); i++) {
        slice full = load_name(l->path, given->names.n ? given->names.p[i] : nameless, l->a);
        if (full.n && !slice_has(full, '@')) tags[wish.ntags++] = full;
    }
    pull_begin(&p, l->store, -1);
    p.source = l->from;
    int failed = pull_run(&p, &wish, id, e);
    p.source = helper_none;
    pull_end(&p);
    size_t more = MAX(wish.ntags, (size_t)1);
    slice *grown = failed ? NULL : arena_alloc(l->a, (l->names.n + more) * sizeof *grown);
    if (failed || !grown)
        return failed ? -1 : fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for names");
    for (size_t i = 0; i < l->names.n; i++) grown[i] = l->names.p[i];
    for (size_t i = 0; i < wish.ntags; i++) grown[l->names.n + i] = tags[i];
    if (!wish.ntags) grown[l->names.n] = arena_copy(l->a, slice_of(id));
    l->names = (slice_list){ grown, l->names.n + more };
    return 0;
}

static int load_all(load *l, error *e)
{
    ArchiveIndex index;
    if (helper_receive(&l->from, &ArchiveIndex_msg, l->a, &index, e) < 0) return -1;
    if (index.code) return fail(e, index.code, "%.*s", PR(index.message));
    for (size_t i = 0; i < index.images.n; i++)
        if (load_one(l, &index.images.p[i], e) < 0) return -1;
    return 0;
}

/* Loads every image of an archive file (plain or compressed) or an OCI layout directory.
 * out->names, the arena's, get their tags; of one without a tag its ID. What came before a bad
 * image stays. */
static int image_load(image_store *s, const char *path, arena *a, KrunLoadImageResponse *out, error *e)
{
    load l = { .store = s, .path = path, .from = helper_none, .a = a };
    OWNED_FD archive_fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    if (path[0] != '/')
        return fail(e, GRPC_INVALID_ARGUMENT, "load %s: not an absolute path", path);
    if (archive_fd < 0 || fstat(archive_fd, &st) < 0)
        return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : GRPC_INVALID_ARGUMENT, "load %s",
                        path);
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return fail(e, GRPC_INVALID_ARGUMENT, "load %s: neither a file nor a directory", path);
    OWNED_FD spool = openat(s->o.root_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (spool < 0) return fail_sys(e, GRPC_INTERNAL, "load %s: temporary file", path);
    int failed = helper_start(&l.from, "archive", (int[]){ archive_fd, spool }, -1, e) < 0 ||
                 load_all(&l, e) < 0;
    helper_stop(&l.from);
    out->names.p = l.names.p, out->names.n = l.names.n;
    return failed ? fail_in(e, "load %s", path) : 0;
}

/* -- the built-in image ---------------------------------------------------------------------------
 *
 * localhost/krun:self: krun's own program as the only file of a root file system, so that a machine
 * without a registry has something to run. Its layer goes through unpack as any other does. */

static const char self_name[] = "localhost/krun:self";

/* The tar of it: what is before the program's bytes, and after them. */
typedef struct {
    buf head, tail;
    slice program;
    char diff_id[DIGEST_TEXT], id[DIGEST_TEXT];
    buf config;
} self_image;

static void sha256_text(slice a, slice b, slice c, char out[DIGEST_TEXT])
{
    sha256 h;
    uint8_t hash[32];
    sha256_init(&h);
    sha256_add(&h, a.p, a.n);
    sha256_add(&h, b.p, b.n);
    sha256_add(&h, c.p, c.n);
    sha256_end(&h, hash);
    digest_text(hash, out);
}

static bool self_describe(self_image *self, arena *a)
{
    slice none = { NULL, 0 }, ours = platform_ours(a);
    tar_entry entry = { .type = '0', .name = SLICE("krun"), .size = self->program.n, .mode = 0755 };
    slice os = slice_cut(&ours, '/');
    tar_put_header(&self->head, &entry);
    tar_put_padding(&self->tail, self->program.n);
    tar_put_end(&self->tail);
    sha256_text(buf_view(&self->head), self->program, buf_view(&self->tail), self->diff_id);
    buf_printf(&self->config,
               "{\"architecture\":\"%.*s\",\"os\":\"%.*s\",\"config\":{\"Entrypoint\":[\"/"
               "krun\",\"self\"],\"Cmd\":[\"help\"]},"
               "\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"%s\"]}}",
               PR(slice_cut(&ours, '/')), PR(os), self->diff_id);
    sha256_text(buf_view(&self->config), none, none, self->id);
    return !self->head.oom && !self->tail.oom && !self->config.oom;
}

/* Sends the tar to an unpack that is running, and takes its answer. */
static int self_unpack(const self_image *self, helper *unpack, LayerRecord *out, error *e)
{
    UnpackAnswer answer;
    OWNED_ARENA a = arena_make(MIB);
    if (helper_write(unpack, self->head.p, self->head.n, e) < 0 ||
        helper_write(unpack, self->program.p, self->program.n, e) < 0 ||
        helper_write(unpack, self->tail.p, self->tail.n, e) < 0)
        return -1;
    close_fd(&unpack->to);
    unpack->to = -1;
    if (helper_receive(unpack, &UnpackAnswer_msg, &a, &answer, e) < 0) return -1;
    if (answer.code) return fail(e, answer.code, "%.*s", PR(answer.message));
    if (!slice_is(answer.diff_id, self->diff_id))
        return fail(e, GRPC_DATA_LOSS, "its diff-id is %.*s", PR(answer.diff_id));
    *out = (LayerRecord){ RECORD_VERSION, slice_of(self->diff_id), answer.bytes, answer.entries };
    return 0;
}

static int self_layer(image_store *s, const self_image *self, error *e)
{
    error ignored;
    LayerRecord r = { 0 };
    helper unpack = helper_none;
    layer_plan l = layer_plan_of(slice_of(self->diff_id), NULL);
    if (*layer_slot(s, slice_of(l.name))) return 0;
    int failed = layer_begin(s, &l, -1, &unpack, e);
    if (!failed) failed = self_unpack(self, &unpack, &r, e);
    helper_stop(&unpack);
    if (!failed) failed = layer_commit(s, &l, &r, e);
    if (failed) tree_remove(s->layers_fd, l.partial, &ignored);
    if (failed) return -1;
    return layer_add(s, slice_of(l.name), &r, 0)
               ? 0
               : fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a layer");
}

static int self_publish(image_store *s, const self_image *self, error *e)
{
    slice tag = slice_of(self_name), layer_name = id_hex(slice_of(self->diff_id));
    slice entrypoint[] = { SLICE("/krun"), SLICE("self") }, cmd[] = { SLICE("help") };
    ImageConfig config = { .entrypoint = { entrypoint, COUNT(entrypoint) },
                           .cmd = { cmd, COUNT(cmd) } };
    ImageRecord r = { .version = RECORD_VERSION,
                      .id = slice_of(self->id),
                      .repo_tags = { &tag, 1 },
                      .layers = { &layer_name, 1 },
                      .size = self->head.n + self->program.n + self->tail.n + self->config.n,
                      .config = &config,
                      .pinned = true,
                      .created_at = clock_wall(),
                      .config_json = buf_view(&self->config) };
    return store_publish(s, &r, e);
}

/* Forgets an image and all its names. Under `writing`. */
static int store_forget(image_store *s, slice id, error *e)
{
    char name[LAYER_NAME + 8];
    snprintf(name, sizeof name, "%.*s.json", PR(id_hex(id)));
    if (unlinkat(s->images_fd, name, 0) < 0 && errno != ENOENT)
        return fail_sys(e, GRPC_INTERNAL, "remove images/%s", name);
    fault_point("image.remove");
    pthread_mutex_lock(&s->lock);
    image **at = &s->images;
    while (*at && !slice_eq((*at)->record.id, id)) at = &(*at)->next;
    image *gone = *at;
    if (gone) *at = gone->next;
    if (gone) image_unref(s, gone);
    store_collect(s);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* Makes the built-in image that of this program. That of another version goes; containers made from
 * it keep its layer. */
static int self_ensure(image_store *s, error *e)
{
    struct stat st;
    OWNED_ARENA a = arena_make(MIB);
    int fd = self_program(e), failed = 0;
    if (fd < 0) return -1;
    if (fstat(fd, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat krun's program");
    void *program = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (program == MAP_FAILED) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "map krun's program");
    self_image self = { .program = { program, (size_t)st.st_size } };
    image *old =
        image_find(s, (slice){ NULL, 0 }, slice_of(self_name)); /* no other thread is there yet */
    slice old_id = old ? arena_copy(&a, old->record.id) : (slice){ NULL, 0 };
    if (!self_describe(&self, &a)) failed = fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    else if (!slice_is(old_id, self.id)) {
        failed = self_layer(s, &self, e) < 0 || self_publish(s, &self, e) < 0;
        if (!failed && old_id.n) failed = store_forget(s, old_id, e);
    }
    munmap(program, (size_t)st.st_size);
    buf_free(&self.head), buf_free(&self.tail), buf_free(&self.config);
    return failed ? fail_in(e, "image %s", self_name) : 0;
}

/* -- opening the store ------------------------------------------------------------------------- */

static bool name_is_record(const char *name, slice *hex) /* <64 digits>.json */
{
    slice s = slice_of(name);
    uint8_t hash[32];
    *hex = (slice){ s.p, MIN(s.n, 64U) };
    return s.n == 69 && slice_ends(s, ".json") && hex_decode(*hex, hash, sizeof hash);
}

/* Calls `each` for every name in a directory but "." and "..". */
static int dir_each(image_store *s, int fd, int (*each)(image_store *, const char *, error *),
                    error *e)
{
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = 0;
    DIR *d = again < 0 ? NULL : fdopendir(again);
    if (!d) return close_fd(&again), fail_sys(e, GRPC_INTERNAL, "read the image store");
    for (struct dirent *entry; !failed && (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            failed = each(s, entry->d_name, e);
    closedir(d);
    return failed;
}

/* Puts a record that cannot be used out of the way, for whoever wants to look. */
static void quarantine(int dir, const char *name, const char *why)
{
    char bad[NAME_MAX + 1];
    snprintf(bad, sizeof bad, "bad-%" PRId64 "-%.80s", clock_wall() / NS_PER_SEC, name);
    log_warn("%s is put aside as %s: %s", name, bad, why);
    if (renameat(dir, name, dir, bad) < 0) log_warn("%s: rename: %s", name, strerror(errno));
}

/* What is in layers/: whole layers have a record and a directory. All else is left from a kill or a
 * power cut, and goes. */
static int open_layer(image_store *s, const char *name, error *e)
{
    slice hex, text;
    LayerRecord r;
    struct stat st;
    char dir[LAYER_NAME];
    OWNED_ARENA a = arena_make(MIB);
    if (!name_is_record(name, &hex)) return 0;
    snprintf(dir, sizeof dir, "%.*s", PR(hex));
    bool there = fstatat(s->layers_fd, dir, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
    bool good = there && file_read(s->layers_fd, name, 64 * KIB, &a, &text, e) == 0 &&
                pb_read_json_lax(&LayerRecord_msg, text, &a, &r, e) == 0;
    if (good && r.version > RECORD_VERSION)
        return fail(e, GRPC_FAILED_PRECONDITION, "layers/%s was written by a newer krun", name);
    if (!good || !slice_eq(id_hex(r.diff_id), hex))
        return unlinkat(s->layers_fd, name, 0), 0; /* its directory goes below */
    return layer_add(s, hex, &r, 0) ? 0
                                    : fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a layer");
}

static int open_clean(image_store *s, const char *name, error *e)
{
    slice hex;
    if (name_is_record(name, &hex) || *layer_slot(s, slice_of(name))) return 0;
    log_info("layers/%s is incomplete and removed", name);
    return tree_remove(s->layers_fd, name, e);
}

/* Why a record cannot be used; NULL when it can. */
static const char *record_fault(image_store *s, const ImageRecord *r, slice hex)
{
    if (!slice_eq(id_hex(r->id), hex)) return "it is another image's";
    for (size_t i = 0; i < r->layers.n; i++)
        if (!*layer_slot(s, r->layers.p[i])) return "a layer of it is missing: pull it again";
    return r->layers.n ? NULL : "it has no layers";
}

static int open_image(image_store *s, const char *name, error *e)
{
    slice hex, text;
    ImageRecord r;
    OWNED_ARENA a = arena_make(64 * MIB);
    if (name[0] == '.' && strstr(name, ".tmp"))
        return unlinkat(s->images_fd, name, 0), 0; /* a write that was cut */
    if (!name_is_record(name, &hex)) return 0;
    if (file_read(s->images_fd, name, RECORD_MAX, &a, &text, e) < 0 ||
        pb_read_json_lax(&ImageRecord_msg, text, &a, &r, e) < 0)
        return quarantine(s->images_fd, name, e->text), 0;
    if (r.version > RECORD_VERSION)
        return fail(e, GRPC_FAILED_PRECONDITION, "images/%s was written by a newer krun", name);
    const char *fault = record_fault(s, &r, hex);
    if (fault) return quarantine(s->images_fd, name, fault), 0;
    return image_replace(s, &r, e);
}

/* Two records claim a tag when a kill came between the new one's write and the old one's: the newer
 * one has it. */
static int open_tags(image_store *s, error *e)
{
    for (image *i = s->images; i; i = i->next)
        for (image *other = i->next; other; other = other->next)
            for (size_t n = 0; n < i->record.repo_tags.n; n++)
                if (image_has_name(&other->record, i->record.repo_tags.p[n])) {
                    const image *newer =
                        i->record.created_at >= other->record.created_at ? i : other;
                    if (store_move_tags(s, &newer->record, e) < 0) return -1;
                    return open_tags(s, e); /* the list has changed: look again */
                }
    return 0;
}

static int open_directory(int root, const char *name, error *e)
{
    if (mkdirat(root, name, 0700) < 0 && errno != EEXIST)
        return fail_sys(e, GRPC_INTERNAL, "mkdir %s", name);
    int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return fail_sys(e, GRPC_INTERNAL, "open %s", name);
    (void)fchmod(
        fd, 0700); /* images' own files may be set-uid: no user of this machine may reach them */
    return fd;
}

/* Ends all pulls and waits for them, then frees the store. */
static void images_close(image_store *s)
{
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    for (flight *f = s->flights; f; f = f->next) event_set(f->cancel);
    while (s->threads) pthread_cond_wait(&s->idle, &s->lock);
    for (image *next; s->images; s->images = next) {
        next = s->images->next;
        image_unref(s, s->images);
    }
    for (size_t b = 0; b < STORE_BUCKETS; b++)
        for (layer *next; s->layers[b]; s->layers[b] = next) {
            next = s->layers[b]->next;
            free(s->layers[b]);
        }
    pthread_mutex_unlock(&s->lock);
    close_fd(&s->images_fd);
    close_fd(&s->layers_fd);
    free(s);
}

/* Opens the store below o->root_fd, cleans up what a kill or a power cut left, and makes the
 * built-in image. No layer is removed before images_collect: containers have still to claim theirs.
 * NULL: FAILED_PRECONDITION for records of a newer krun (nothing was changed), INTERNAL. */
static image_store *images_open(const image_options *o, error *e)
{
    error self;
    image_store *s = calloc(1, sizeof *s);
    if (!s) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the image store"), NULL;
    s->o = *o;
    pthread_mutex_init(&s->writing, NULL);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->idle, NULL);
    s->layers_fd = -1;
    s->images_fd = open_directory(o->root_fd, "images", e);
    if (s->images_fd >= 0) s->layers_fd = open_directory(o->root_fd, "layers", e);
    bool good = s->layers_fd >= 0 && dir_each(s, s->layers_fd, open_layer, e) == 0 &&
                dir_each(s, s->images_fd, open_image, e) == 0 &&
                dir_each(s, s->layers_fd, open_clean, e) == 0 && open_tags(s, e) == 0;
    if (!good) return images_close(s), NULL;
    if (self_ensure(s, &self) < 0)
        log_warn("%s", self.text); /* a full disk must not stop the node */
    return s;
}

/* From now on layers that nobody needs are removed, in the background. */
static void images_collect(image_store *s)
{
    pthread_mutex_lock(&s->lock);
    s->collecting = true;
    store_collect(s);
    pthread_mutex_unlock(&s->lock);
}

/* -- what the services ask --------------------------------------------------------------------- */

/* Borrowed until images_close: the directory in which a layer is <its name>/. */
static int images_layers_fd(const image_store *s) { return s->layers_fd; }

/* The image of that name, ID or beginning of an ID, which cannot go (nor its layers) before
 * image_drop; NULL if there is none. Memory only, from any thread. */
static const ImageRecord *image_hold(image_store *s, slice name)
{
    OWNED_ARENA a = arena_make(64 * KIB);
    slice full = name_normalise(name, &a);
    pthread_mutex_lock(&s->lock);
    image *i = name.n ? image_find(s, name, full) : NULL;
    if (i) i->refs++;
    pthread_mutex_unlock(&s->lock);
    return i ? &i->record : NULL;
}

static void image_drop(image_store *s, const ImageRecord *record)
{
    if (!record) return;
    image *i = OWNER(record, image, record);
    pthread_mutex_lock(&s->lock);
    image_unref(s, i);
    store_collect(s);
    pthread_mutex_unlock(&s->lock);
}

/* Calls `each` (layer_hold or layer_release) for every layer that a container uses. */
static void container_layers(image_store *s, const ContainerRecord *c,
                             void (*each)(image_store *, slice))
{
    const ContainerSpec *spec = c->spec;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; spec && i < spec->layers.n; i++) each(s, spec->layers.p[i]);
    for (size_t m = 0; spec && m < spec->mounts.n; m++)
        for (size_t i = 0; i < spec->mounts.p[m].layers.n; i++)
            each(s, spec->mounts.p[m].layers.p[i]);
    store_collect(s);
    pthread_mutex_unlock(&s->lock);
}

static void layer_claim(image_store *s, slice name)
{
    if (!layer_hold(s, name)) log_warn("layer %.*s, which a container uses, is missing", PR(name));
}

/* A container has been made, or was found at start: its layers stay until it is released, whatever
 * becomes of its image. Each call of the first wants one of the second. */
static void image_layers_hold(image_store *s, const ContainerRecord *c)
{
    container_layers(s, c, layer_claim);
}
static void image_layers_release(image_store *s, const ContainerRecord *c)
{
    container_layers(s, c, layer_release);
}

/* The user of the config as CRI shows it: a number or a name, without the group. */
static void image_user(const ImageRecord *r, Image *out, Int64Value *uid)
{
    uint64_t number;
    slice user = r->config ? r->config->user : (slice){ NULL, 0 }, name = slice_cut(&user, ':');
    if (parse_u64(name, 10, INT64_MAX, &number)) {
        uid->value = (int64_t)number;
        out->uid = uid;
    } else out->username = name;
}

/* `size` is what the registry says: the compressed bytes, as containerd reports them. */
static int image_message(const ImageRecord *r, arena *a, Image *out, error *e)
{
    Int64Value uid;
    Image m = { .id = r->id, .size = r->size, .pinned = r->pinned };
    m.repo_tags.p = r->repo_tags.p, m.repo_tags.n = r->repo_tags.n;
    m.repo_digests.p = r->repo_digests.p, m.repo_digests.n = r->repo_digests.n;
    image_user(r, &m, &uid);
    return pb_copy(&Image_msg, &m, a, out) < 0
               ? fail(e, GRPC_RESOURCE_EXHAUSTED, "image %.*s: out of memory", PR(r->id))
               : 0;
}

/* All images, or the one that `filter` names. Memory only. */
static int images_list(image_store *s, slice filter, arena *a, ListImagesResponse *out, error *e)
{
    size_t n = 0;
    int failed = 0;
    slice full = filter.n ? name_normalise(filter, a) : (slice){ NULL, 0 };
    pthread_mutex_lock(&s->lock);
    const image *only = filter.n ? image_find(s, filter, full) : NULL;
    for (const image *i = s->images; i; i = i->next) n++;
    out->images.n = 0;
    out->images.p = arena_alloc(a, n * sizeof *out->images.p);
    if (!out->images.p && n)
        failed = fail(e, GRPC_RESOURCE_EXHAUSTED, "list of images: out of memory");
    for (const image *i = s->images; i && !failed; i = i->next)
        if (!filter.n || i == only)
            failed = image_message(&i->record, a, &out->images.p[out->images.n++], e);
    pthread_mutex_unlock(&s->lock);
    return failed;
}

/* {"chainID": ..., "imageSpec": <the config>}: what containerd's verbose status has. The chain ID
 * names a stack of layers: sha256(chain of those below + " " + diff-id), image-spec, config.md. */
static slice image_info(const ImageRecord *r, arena *a)
{
    char chain[DIGEST_TEXT] = "";
    OWNED_BUF text = { 0 };
    for (size_t i = 0; i < r->layers.n; i++) {
        char diff_id[DIGEST_TEXT], pair[2 * DIGEST_TEXT];
        snprintf(diff_id, sizeof diff_id, "sha256:%.*s", PR(r->layers.p[i]));
        snprintf(pair, sizeof pair, "%s %s", chain, diff_id);
        if (i) sha256_text(slice_of(pair), (slice){ NULL, 0 }, (slice){ NULL, 0 }, chain);
        else memcpy(chain, diff_id, sizeof chain);
    }
    buf_printf(&text, "{\"chainID\":\"%s\",\"imageSpec\":", chain);
    buf_slice(&text, slice_trim(r->config_json));
    buf_byte(&text, '}');
    if (text.oom) a->oom = true;
    return arena_copy(a, buf_view(&text));
}

/* OK with out->image absent when there is no such image: the kubelet then pulls it. */
static int image_status(image_store *s, const ImageStatusRequest *in, arena *a,
                        ImageStatusResponse *out, error *e)
{
    slice name = in->image ? in->image->image : (slice){ NULL, 0 };
    if (!name.n) return fail(e, GRPC_INVALID_ARGUMENT, "ImageStatus: image is empty");
    const ImageRecord *r = image_hold(s, name);
    if (!r) return 0;
    out->image = arena_alloc(a, sizeof *out->image);
    out->info.p = in->verbose ? arena_alloc(a, sizeof *out->info.p) : NULL;
    int failed = a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "ImageStatus: out of memory")
                        : image_message(r, a, out->image, e);
    if (!failed && out->info.p)
        out->info.p[out->info.n++] = (pb_pair){ SLICE("info"), image_info(r, a) };
    image_drop(s, r);
    return failed || !a->oom ? failed
                             : fail(e, GRPC_RESOURCE_EXHAUSTED, "ImageStatus: out of memory");
}

/* Removes the image with all its names, whichever of them was given; an unknown one is no error.
 * Containers made from it keep its layers. */
static int image_remove(image_store *s, slice name, error *e)
{
    OWNED_ARENA a = arena_make(64 * KIB);
    int failed = 0;
    if (!name.n) return fail(e, GRPC_INVALID_ARGUMENT, "RemoveImage: image is empty");
    pthread_mutex_lock(&s->writing);
    const ImageRecord *r = image_hold(s, name);
    if (r && image_has_name(r, slice_of(self_name)))
        failed = fail(e, GRPC_FAILED_PRECONDITION, "%s is built in", self_name);
    else if (r) failed = store_forget(s, r->id, e);
    pthread_mutex_unlock(&s->writing);
    image_drop(s, r);
    return failed;
}

static int usage_message(arena *a, const char *path, uint64_t bytes, uint64_t entries,
                         FilesystemUsage *out)
{
    *out = (FilesystemUsage){ .timestamp = clock_wall(),
                              .fs_id = arena_alloc(a, sizeof *out->fs_id),
                              .used_bytes = arena_alloc(a, sizeof *out->used_bytes),
                              .inodes_used = arena_alloc(a, sizeof *out->inodes_used) };
    if (a->oom) return -1;
    out->fs_id->mountpoint = arena_copy(a, slice_of(path));
    out->used_bytes->value = bytes;
    out->inodes_used->value = entries;
    return 0;
}

/* What the layers take, from their records: nothing is walked. Images and containers lie on one
 * file system, and must say the same mount point, or the kubelet takes it for two. */
static int images_fs_info(image_store *s, arena *a, ImageFsInfoResponse *out, error *e)
{
    pthread_mutex_lock(&s->lock);
    uint64_t bytes = s->bytes, entries = s->entries;
    pthread_mutex_unlock(&s->lock);
    out->image_filesystems.p = arena_alloc(a, sizeof *out->image_filesystems.p);
    out->container_filesystems.p = arena_alloc(a, sizeof *out->container_filesystems.p);
    bool good = !a->oom &&
                usage_message(a, s->o.root_path, bytes, entries, out->image_filesystems.p) == 0 &&
                usage_message(a, s->o.root_path, 0, 0, out->container_filesystems.p) == 0;
    out->image_filesystems.n = out->container_filesystems.n = good;
    return good ? 0 : fail(e, GRPC_RESOURCE_EXHAUSTED, "ImageFsInfo: out of memory");
}
/* == 14. Root filesystem and volumes =========================================================
 *
 * A container sees a tree that exists for it alone. Its bottom is the image's layers, read-only and
 * shared by all containers of that image; above them lies a directory of its own that takes every
 * change (overlayfs). On top come file systems that the kernel makes up (/proc, /sys), a /dev of
 * our own, and the volumes that the pod asked for.
 *
 * Everything is built as mounts that are attached nowhere (fsopen(2), open_tree(2)) and put on their
 * place by descriptor (move_mount(2)), in a mount namespace that nobody else sees. A place is always
 * a descriptor that open_inside gave: the image is hostile, and so may be another container that
 * has the same volume and swaps directories for links while we work (CVE-2021-30465).
 *
 * Defined by  mount_namespaces(7), fsopen(2), move_mount(2), mount_setattr(2), openat2(2),
 *             Documentation/filesystems/overlayfs.rst; passwd(5), group(5)
 * Uses        1, 2, 9        Gives  rootfs_open_layers, rootfs_find_user, rootfs_check_mount, rootfs_build
 * Bounds      128 layers; /etc/passwd and /etc/group 1 MiB, 4 KiB a line; 40 steps to make a mount point */

enum {
    ROOTFS_LAYERS_MAX = 128,
    ROOTFS_ACCOUNTS_MAX = MIB,     /* of /etc/passwd or /etc/group */
    ROOTFS_ACCOUNT_LINE = 4 * KIB,
    ROOTFS_TARGET_STEPS = 40,
    ROOTFS_EMPTY_PATH = K_MOVE_MOUNT_F_EMPTY_PATH | K_MOVE_MOUNT_T_EMPTY_PATH
};
#define ROOTFS_PROC_MAGIC 0x9fa0 /* PROC_SUPER_MAGIC, linux/magic.h */

/* -- the mount table --------------------------------------------------------------------------- */

/* One line of /proc/self/mountinfo, in part: proc_pid_mountinfo(5). */
typedef struct { slice id, point, tags, type; } mount_line;

static mount_line mount_parse(slice line)
{
    mount_line m = { .id = slice_cut(&line, ' ') };
    for (int i = 0; i < 3; i++) slice_cut(&line, ' '); /* parent, device, root */
    m.point = slice_cut(&line, ' ');
    slice_cut(&line, ' '); /* options */
    m.tags = line;
    while (line.n && !slice_starts(line, "- ")) slice_cut(&line, ' ');
    m.tags.n -= line.n;
    slice_cut(&line, ' ');
    m.type = slice_cut(&line, ' ');
    return m;
}

/* The mount point with its escapes undone: a space is written \040. False if it is too long. */
static bool mount_point_text(mount_line m, char out[PATH_MAX])
{
    size_t n = 0;
    for (slice s = m.point, octal; s.n && n < PATH_MAX - 1; n++) {
        uint64_t byte = s.p[0];
        bool escaped = s.n >= 4 && byte == '\\' && parse_u64((slice){ s.p + 1, 3 }, 8, 255, &byte);
        out[n] = (char)byte;
        slice_take(&s, escaped ? 4 : 1, &octal);
        if (n == PATH_MAX - 2 && s.n) return false;
    }
    out[n] = '\0';
    return n > 0;
}

/* The tags ("shared:7 master:3 ") of the mount on which `path` lies, in `a`. */
static int mount_tags(const char *path, arena *a, slice *tags, error *e)
{
    char info[64];
    slice text, want = { NULL, 0 }, table;
    OWNED_FD fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : GRPC_INTERNAL, "open %s", path);
    snprintf(info, sizeof info, "/proc/self/fdinfo/%d", fd);
    if (file_read(AT_FDCWD, info, 64 * KIB, a, &text, e) < 0) return -1;
    if (file_read(AT_FDCWD, "/proc/self/mountinfo", 16 * MIB, a, &table, e) < 0) return -1;
    while (text.n) {
        slice line = slice_cut(&text, '\n'), key = slice_cut(&line, ':');
        if (slice_is(key, "mnt_id")) want = slice_trim(line);
    }
    while (table.n) {
        mount_line m = mount_parse(slice_cut(&table, '\n'));
        if (slice_eq(m.id, want)) return *tags = m.tags, 0;
    }
    return fail(e, GRPC_INTERNAL, "%s lies on no mount of ours", path);
}

/* -- detached mounts --------------------------------------------------------------------------- */

/* Puts what the kernel has to say about a file system that it would not make behind the errno. */
static int mount_refused(int fs, const char *type, error *e)
{
    char why[128];
    fail_sys(e, GRPC_INTERNAL, "mount %s", type);
    ssize_t n = read(fs, why, sizeof why); /* "e overlay: ...": fsopen(2), one message a read */
    slice text = slice_trim((slice){ (uint8_t *)why, n > 2 ? (size_t)n : 0 });
    size_t used = strlen(e->text);
    if (text.n > 2) snprintf(e->text + used, sizeof e->text - used, " (%.*s)", (int)text.n - 2, why + 2);
    return -1;
}

/* A new file system, mounted nowhere yet. options: key, value, ..., NULL; a NULL value is a flag.
 * Returns a descriptor of the mount, the caller's. */
static int mount_new(const char *type, const char *const *options, unsigned attr, error *e)
{
    OWNED_FD fs = sys_fsopen(type);
    if (fs < 0) return fail_sys(e, GRPC_INTERNAL, "mount %s", type);
    for (; options && options[0]; options += 2)
        if (sys_fsconfig(fs, options[1] ? K_FSCONFIG_SET_STRING : K_FSCONFIG_SET_FLAG, options[0], options[1], 0) < 0)
            return mount_refused(fs, type, e);
    if (sys_fsconfig(fs, K_FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0) return mount_refused(fs, type, e);
    int mount = sys_fsmount(fs, attr);
    return mount < 0 ? fail_sys(e, GRPC_INTERNAL, "mount %s", type) : mount;
}

/* A detached copy of the mount at an open file or directory; with all that is mounted below it. */
static int mount_clone(int fd, error *e)
{
    int copy = sys_open_tree(fd, "", K_OPEN_TREE_CLONE | AT_EMPTY_PATH | K_AT_RECURSIVE);
    return copy < 0 ? fail_sys(e, GRPC_INTERNAL, "copy a mount") : copy;
}

/* Attaches a detached mount to the place that `target` is open at. */
static int mount_place(int mount, int target, const char *path, error *e)
{
    if (sys_move_mount(mount, "", target, "", ROOTFS_EMPTY_PATH) == 0) return 0;
    int code = errno == ENOTDIR || errno == EINVAL ? GRPC_INVALID_ARGUMENT : GRPC_INTERNAL;
    return fail_sys(e, code, "mount at %s", path);
}

static int mount_attributes(int mount, unsigned flags, const struct k_mount_attr *attr, error *e)
{
    if (sys_mount_setattr(mount, "", AT_EMPTY_PATH | flags, attr) == 0) return 0;
    return fail_sys(e, errno == EINVAL ? GRPC_INVALID_ARGUMENT : GRPC_INTERNAL, "change a mount");
}

/* Opens a directory again by its path, in the mount namespace that we are in now: to the kernel a
 * descriptor from another one lies on a foreign mount, which can be neither copied nor covered nor a
 * layer. Returns an O_PATH descriptor, the caller's. */
static int dir_again(int dir, error *e)
{
    char link[32], path[PATH_MAX];
    struct stat was, is;
    snprintf(link, sizeof link, "/proc/thread-self/fd/%d", dir);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return fail_sys(e, GRPC_INTERNAL, "read %s", link);
    path[n] = '\0';
    OWNED_FD again = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (again < 0 || fstat(dir, &was) < 0 || fstat(again, &is) < 0) return fail_sys(e, GRPC_INTERNAL, "open %s again", path);
    if (was.st_dev != is.st_dev || was.st_ino != is.st_ino) return fail(e, GRPC_INTERNAL, "%s has been replaced", path);
    return give_fd(&again);
}

/* -- the image's layers ------------------------------------------------------------------------ */

/* What an overlay is made of: open directories, the bottom layer first; upper and work are -1 in a
 * read-only view. */
typedef struct { int lower[ROOTFS_LAYERS_MAX]; size_t n; int upper, work; } overlay;

static void overlay_close(overlay *o)
{
    for (size_t i = 0; i < o->n; i++) close(o->lower[i]);
    close_fd(&o->upper);
    close_fd(&o->work);
}
#define OWNED_OVERLAY __attribute__((cleanup(overlay_close))) overlay

/* Opens the directories of the layers. INVALID_ARGUMENT: none, or more than we take (T37). */
static int overlay_open_layers(overlay *o, int layers_dir, const slice *layers, size_t n, error *e)
{
    char name[NAME_MAX + 1];
    *o = (overlay){ .upper = -1, .work = -1 };
    if (n == 0 || n > ROOTFS_LAYERS_MAX) return fail(e, GRPC_INVALID_ARGUMENT, "an image of %zu layers", n);
    for (; o->n < n; o->n++) {
        slice layer = layers[o->n];
        if (layer.n > NAME_MAX || slice_has(layer, '/') || slice_starts(layer, "."))
            return fail(e, GRPC_INVALID_ARGUMENT, "\"%.*s\" is no name of a layer", PR(layer));
        snprintf(name, sizeof name, "%.*s", PR(layer));
        o->lower[o->n] = openat(layers_dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (o->lower[o->n] < 0) return fail_sys(e, GRPC_FAILED_PRECONDITION, "open layer %s", name);
    }
    return 0;
}

/* By fsopen(2), a layer an option (Linux 6.8). Directories are named by our descriptors, so that the
 * container's /proc/mounts says nothing of the host's paths. "volatile": no fsync reaches the disk;
 * what a power cut leaves behind of a container is removed anyway (and removal is 20 times faster). */
static int overlay_new(const overlay *o, error *e)
{
    char paths[ROOTFS_LAYERS_MAX + 2][32];
    const char *options[2 * (ROOTFS_LAYERS_MAX + 3) + 1];
    size_t n = 0, k = 0;
    for (size_t i = o->n; i--; n++, k += 2) {
        snprintf(paths[n], sizeof paths[n], "/proc/self/fd/%d", o->lower[i]);
        memcpy(options + k, ((const char *[]){ "lowerdir+", paths[n] }), 2 * sizeof *options);
    }
    if (o->upper >= 0) {
        snprintf(paths[n], sizeof paths[n], "/proc/self/fd/%d", o->upper);
        snprintf(paths[n + 1], sizeof paths[n], "/proc/self/fd/%d", o->work);
        const char *rest[] = { "upperdir", paths[n], "workdir", paths[n + 1], "volatile", NULL };
        memcpy(options + k, rest, sizeof rest);
        k += COUNT(rest);
    }
    options[k] = NULL;
    return mount_new("overlay", options, 0, e);
}

/* Mounts the overlay at /proc of a mount namespace made for that, and returns a detached copy of it.
 * Named relative to /proc/thread-self/fd, 128 layers are 500 bytes: mount(2) takes a page. */
static int overlay_mount_here(overlay *o, error *e)
{
    OWNED_BUF text = { 0 };
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return fail_sys(e, GRPC_INTERNAL, "overlay: make mounts private");
    for (size_t i = 0; i < o->n + (o->upper < 0 ? 0 : 2); i++) {
        int *old = i < o->n ? &o->lower[i] : i == o->n ? &o->upper : &o->work, again = dir_again(*old, e);
        if (again < 0) return -1;
        close(*old);
        *old = again;
    }
    for (size_t i = o->n; i--;) buf_printf(&text, "%s%d", i + 1 == o->n ? "lowerdir=" : ":", o->lower[i]);
    if (o->upper >= 0) buf_printf(&text, ",upperdir=%d,workdir=%d,volatile", o->upper, o->work);
    buf_byte(&text, 0);
    if (text.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for an overlay");
    if (chdir("/proc/thread-self/fd") < 0 || mount("overlay", "/proc", "overlay", o->upper < 0 ? MS_RDONLY : 0, text.p) < 0)
        return fail_sys(e, GRPC_INTERNAL, "mount overlay of %zu layers", o->n);
    int made = sys_open_tree(AT_FDCWD, "/proc", K_OPEN_TREE_CLONE);
    return made < 0 ? fail_sys(e, GRPC_INTERNAL, "overlay: copy the mount") : made;
}

/* Before Linux 6.8 all layers go into one option, for which only mount(2) has room; and that needs a
 * place. So the thread takes a mount namespace of its own, mounts there, takes a detached copy and
 * comes home. Afterwards this thread has a root and a working directory of its own (both "/"). */
static int overlay_old(overlay *o, error *e)
{
    OWNED_FD home = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (home < 0 || unshare(CLONE_NEWNS) < 0) return fail_sys(e, GRPC_INTERNAL, "overlay: mount namespace");
    int made = overlay_mount_here(o, e), back = setns(home, CLONE_NEWNS);
    assert(back == 0); /* else this thread would see another world than all others */
    (void)back;
    return made;
}

static int overlay_mount(overlay *o, error *e)
{
    int made = overlay_new(o, e);
    return made < 0 && e->sys == EINVAL ? overlay_old(o, e) : made;
}

/* The image's tree as its layers make it, for reading: one layer is its directory, more are a
 * read-only overlay that is mounted nowhere. Returns a descriptor, the caller's. */
static int rootfs_open_layers(int layers_dir, const slice *layers, size_t n, error *e)
{
    OWNED_OVERLAY o;
    if (overlay_open_layers(&o, layers_dir, layers, n, e) < 0) return -1;
    return n == 1 ? give_fd(&o.lower[--o.n]) : overlay_mount(&o, e);
}

/* A directory at `at`, made as `mode` unless it is there. */
static int rootfs_open_dir(int at, const char *path, mode_t mode, error *e)
{
    if (mkdirat(at, path, mode) < 0 && errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "mkdir %s", path);
    int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? fail_sys(e, GRPC_INTERNAL, "open %s", path) : fd;
}

/* The container's own writable tree: containers/<id>/{upper,work} below the pod's directory over the
 * layers. A work directory that a failed start left says "volatile was here" and is refused by the
 * kernel, so it is made anew. "/" has the owner and mode that the top layer gives it. */
static int rootfs_mount(const ContainerSpec *spec, int layers_dir, int state_dir, error *e)
{
    OWNED_OVERLAY o;
    char path[NAME_MAX + 16];
    struct stat top;
    if (overlay_open_layers(&o, layers_dir, spec->layers.p, spec->layers.n, e) < 0) return -1;
    snprintf(path, sizeof path, "containers/%.*s", PR(spec->id));
    OWNED_FD above = rootfs_open_dir(state_dir, "containers", 0700, e);
    OWNED_FD dir = above < 0 ? -1 : rootfs_open_dir(state_dir, path, 0700, e);
    if (dir < 0 || tree_remove(dir, "work", e) < 0) return -1;
    if ((o.upper = rootfs_open_dir(dir, "upper", 0755, e)) < 0) return -1;
    if ((o.work = rootfs_open_dir(dir, "work", 0700, e)) < 0) return -1;
    if (fstat(o.lower[o.n - 1], &top) < 0 || fchown(o.upper, top.st_uid, top.st_gid) < 0 || fchmod(o.upper, top.st_mode & 07777) < 0)
        return fail_sys(e, GRPC_INTERNAL, "owner and mode of /");
    return overlay_mount(&o, e);
}

/* -- who a container runs as ------------------------------------------------------------------- */

/* name is empty when only a number is known. The slices live in the arena that was given. */
typedef struct { ProcessUser ids; slice name, home; } rootfs_user;

/* A file of the image that root reads: whatever its path leads to, it must be a regular file of at
 * most 1 MiB; O_PATH, so that a device or FIFO in its place is never opened (T40). A link inside the
 * image is followed, as images made by Nix have them. A missing file is an empty one. */
static int rootfs_read(int root, const char *path, arena *a, slice *out, error *e)
{
    char again[32];
    struct stat st;
    *out = (slice){ NULL, 0 };
    OWNED_FD found = open_inside(root, path, O_PATH, e);
    if (found < 0) return e->code == GRPC_NOT_FOUND || e->sys == ENOTDIR ? 0 : -1;
    if (fstat(found, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat %s", path);
    if (!S_ISREG(st.st_mode)) return fail(e, GRPC_INVALID_ARGUMENT, "the image's %s is not a regular file", path);
    if (st.st_size > ROOTFS_ACCOUNTS_MAX) return fail(e, GRPC_INVALID_ARGUMENT, "the image's %s is larger than 1 MiB", path);
    snprintf(again, sizeof again, "/proc/self/fd/%d", found);
    return file_read(AT_FDCWD, again, ROOTFS_ACCOUNTS_MAX, a, out, e);
}

/* Takes the next line of `*text` apart at its colons; missing fields are empty. A line with a NUL or
 * past 4 KiB is passed over. False at the end. */
static bool account_next(slice *text, slice fields[7])
{
    while (text->n) {
        slice line = slice_cut(text, '\n');
        if (line.n > ROOTFS_ACCOUNT_LINE || slice_has(line, 0)) continue;
        for (int i = 0; i < 7; i++) fields[i] = slice_cut(&line, ':');
        return true;
    }
    return false;
}

/* An id is 0 .. 2^31 - 1: past that, some part of the system takes it for negative, or wraps it to
 * root's 0 (CVE-2024-40635). */
static bool account_id(slice text, uint32_t *id)
{
    uint64_t value;
    if (!parse_u64(text, 10, INT32_MAX, &value)) return false;
    return *id = (uint32_t)value, true;
}

static bool all_digits(slice s)
{
    for (size_t i = 0; i < s.n; i++)
        if (!isdigit(s.p[i])) return false;
    return s.n > 0;
}

/* Fills in from /etc/passwd what belongs to `who`, a name, or else a number: then u->ids.uid is set.
 * False if it is not there. */
static bool rootfs_passwd(slice passwd, slice who, rootfs_user *u)
{
    slice f[7];
    bool by_number = all_digits(who);
    while (account_next(&passwd, f)) {
        uint32_t uid, gid;
        if (!account_id(f[2], &uid) || !account_id(f[3], &gid)) continue;
        if (by_number ? uid != u->ids.uid : !slice_eq(f[0], who)) continue;
        *u = (rootfs_user){ .ids = { .uid = uid, .gid = gid }, .name = f[0], .home = f[5].n ? f[5] : u->home };
        return true;
    }
    return false;
}

/* The group "1000" or "staff". A text of digits is a number and never a name to look up. */
static int rootfs_group(int root, slice group, uint32_t *gid, arena *a, error *e)
{
    slice text, f[7];
    if (all_digits(group))
        return account_id(group, gid) ? 0 : fail(e, GRPC_INVALID_ARGUMENT, "group %.*s is out of range", PR(group));
    if (rootfs_read(root, "/etc/group", a, &text, e) < 0) return -1;
    while (account_next(&text, f))
        if (slice_eq(f[0], group) && account_id(f[2], gid)) return 0;
    return fail(e, GRPC_INVALID_ARGUMENT, "no group \"%.*s\" in the image's /etc/group", PR(group));
}

static int rootfs_add_group(ProcessUser *ids, uint32_t gid, arena *a, error *e)
{
    for (size_t i = 0; i < ids->groups.n; i++)
        if (ids->groups.p[i] == gid) return 0;
    size_t n = ids->groups.n;
    if ((n & (n - 1)) == 0) { /* full at each power of two */
        uint32_t *more = arena_alloc(a, MAX(n * 2, (size_t)1) * sizeof *more);
        if (!more) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for groups");
        if (n) memcpy(more, ids->groups.p, n * sizeof *more);
        ids->groups.p = more;
    }
    ids->groups.p[ids->groups.n++] = gid;
    return 0;
}

/* Resolves a user as an image's USER or the CRI has it: "name", "uid", "name:group", "uid:gid", mixed;
 * "" is root. The group is that of /etc/passwd unless it is named, and 0 for a number that is not
 * in it. out->ids.groups is the group alone (dropping it from them is CVE-2022-36109).
 * root     what rootfs_open_layers gave
 * Returns  -1: INVALID_ARGUMENT, with the text that is wrong (T39) */
static int rootfs_find_user(int root, slice text, rootfs_user *out, arena *a, error *e)
{
    slice group = text, who = slice_cut(&group, ':'), passwd;
    bool with_group = slice_has(text, ':');
    *out = (rootfs_user){ .home = SLICE("/") };
    if (!text.n) who = SLICE("0");
    if (!who.n || slice_has(group, ':') || (with_group && !group.n))
        return fail(e, GRPC_INVALID_ARGUMENT, "user \"%.*s\" is not of the form user or user:group", PR(text));
    if (all_digits(who) && !account_id(who, &out->ids.uid))
        return fail(e, GRPC_INVALID_ARGUMENT, "user %.*s is out of range", PR(who));
    if (rootfs_read(root, "/etc/passwd", a, &passwd, e) < 0) return -1;
    if (!rootfs_passwd(passwd, who, out) && !all_digits(who))
        return fail(e, GRPC_INVALID_ARGUMENT, "no user \"%.*s\" in the image's /etc/passwd", PR(who));
    if (group.n && rootfs_group(root, group, &out->ids.gid, a, e) < 0) return -1;
    return rootfs_add_group(&out->ids, out->ids.gid, a, e);
}

/* Adds the groups that /etc/group puts the user into (the CRI's SupplementalGroupsPolicy Merge). */
static int rootfs_user_groups(int root, rootfs_user *u, arena *a, error *e)
{
    slice text, f[7];
    uint32_t gid;
    if (!u->name.n) return 0;
    if (rootfs_read(root, "/etc/group", a, &text, e) < 0) return -1;
    while (account_next(&text, f))
        for (slice members = f[3]; members.n;)
            if (slice_eq(slice_cut(&members, ','), u->name) && account_id(f[2], &gid) && rootfs_add_group(&u->ids, gid, a, e) < 0)
                return -1;
    return 0;
}

/* -- places inside the container's tree -------------------------------------------------------- */

/* Splits a path at its last slash, ends of "/" removed: "/a/b/" is "/a" and "b". False for "/". */
static bool path_split(const char *path, char parent[PATH_MAX], char name[NAME_MAX + 1])
{
    slice s = slice_of(path);
    while (s.n && s.p[s.n - 1] == '/') s.n--;
    size_t at = s.n;
    while (at && s.p[at - 1] != '/') at--;
    if (at == s.n || s.n - at > NAME_MAX || at >= PATH_MAX) return false;
    snprintf(parent, PATH_MAX, "%s%.*s", at ? "" : "/", (int)at, path);
    snprintf(name, NAME_MAX + 1, "%.*s", (int)(s.n - at), path + at);
    return true;
}

/* Opens the place `path` inside `root` to mount on it, and makes it if it is missing: a directory or
 * an empty file, with the directories above it. Links of the image are followed, but inside: where
 * one leads to nothing (/var/run -> /run in many images), what it leads to is made.
 * steps    how many more may be taken; the caller says ROOTFS_TARGET_STEPS
 * Returns  an O_PATH descriptor, the caller's; or -1 */
static int rootfs_target(int root, const char *path, bool directory, int steps, error *e)
{
    char parent[PATH_MAX], name[NAME_MAX + 1], link[PATH_MAX];
    int fd = open_inside(root, path, O_PATH, e);
    if (fd >= 0 || e->code != GRPC_NOT_FOUND) return fd;
    if (steps <= 0 || !path_split(path, parent, name))
        return fail(e, GRPC_INVALID_ARGUMENT, "cannot make a mount point at %.256s", path);
    OWNED_FD above = rootfs_target(root, parent, true, steps - 1, e);
    if (above < 0) return -1;
    OWNED_FD file = directory ? -1 : openat(above, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (directory ? mkdirat(above, name, 0755) == 0 : file >= 0) {
        fd = openat(above, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        return fd < 0 ? fail_sys(e, GRPC_INTERNAL, "open %.256s", path) : fd;
    }
    if (errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "make the mount point %.256s", path);
    ssize_t n = readlinkat(above, name, link, sizeof link - 1);
    if (n < 0) return rootfs_target(root, path, directory, steps - 1, e); /* someone else made it just now */
    link[n] = '\0';
    char next[PATH_MAX];
    if (snprintf(next, sizeof next, "%s%s%s", link[0] == '/' ? "" : parent, link[0] == '/' ? "" : "/", link) >= (int)sizeof next)
        return fail(e, GRPC_INVALID_ARGUMENT, "the link at %.256s is too long", path);
    return rootfs_target(root, next, directory, steps - 1, e);
}

/* Opens a directory that krun itself puts there (/proc, /dev/pts): no step of the way may be a link,
 * or the image would choose what we set up next (CVE-2023-28642, CVE-2026-41579). */
static int rootfs_plain_dir(int root, const char *path, error *e)
{
    char parent[PATH_MAX], name[NAME_MAX + 1];
    struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS };
    for (int tries = 0; tries < 2; tries++) {
        long fd = syscall(SYS_openat2, root, path, &how, sizeof how);
        if (fd >= 0) return (int)fd;
        if (errno != ENOENT || !path_split(path, parent, name)) break;
        OWNED_FD above = (int)syscall(SYS_openat2, root, parent, &how, sizeof how);
        if (above < 0 || (mkdirat(above, name, 0755) < 0 && errno != EEXIST)) break;
    }
    if (errno == ELOOP || errno == ENOTDIR) return fail_sys(e, GRPC_INVALID_ARGUMENT, "the container's %s is no directory", path);
    return fail_sys(e, GRPC_INTERNAL, "make %s", path);
}

/* -- volumes ----------------------------------------------------------------------------------- */

static const struct { const char *name; unsigned attr; } mount_options[] = {
    { "ro", K_ATTR_RDONLY }, { "noexec", K_ATTR_NOEXEC }, { "nosuid", K_ATTR_NOSUID },
    { "nodev", K_ATTR_NODEV }, { "noatime", K_ATTR_NOATIME }, { "rw", 0 },
};

/* The attributes that a volume's flags and options ask for. */
static int volume_attributes(const MountSpec *m, unsigned *attr, error *e)
{
    *attr = (m->noexec ? K_ATTR_NOEXEC : 0) | (m->nosuid ? K_ATTR_NOSUID : 0) | (m->nodev ? K_ATTR_NODEV : 0) |
            (m->readonly || m->layers.n ? K_ATTR_RDONLY : 0);
    for (size_t i = 0; i < m->mount_options.n; i++) {
        size_t k = 0;
        while (k < COUNT(mount_options) && !slice_is(m->mount_options.p[i], mount_options[k].name)) k++;
        if (k == COUNT(mount_options))
            return fail(e, GRPC_INVALID_ARGUMENT, "mount %.*s: unknown option \"%.*s\"", PR(m->destination), PR(m->mount_options.p[i]));
        *attr |= mount_options[k].attr;
    }
    return 0;
}

/* Whether a path from a request can be used: absolute, short enough, without NUL or "..". */
static bool volume_path_good(slice path)
{
    if (!slice_starts(path, "/") || path.n >= PATH_MAX || slice_has(path, 0)) return false;
    for (slice rest = path; rest.n;)
        if (slice_is(slice_cut(&rest, '/'), "..")) return false;
    return true;
}

/* Files of /proc that a volume may replace: what lxcfs serves to containers. */
static const char *const volume_proc_files[] = {
    "/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/slabinfo",
    "/proc/stat", "/proc/swaps", "/proc/uptime",
};

static bool volume_proc_file(slice path)
{
    for (size_t i = 0; i < COUNT(volume_proc_files); i++)
        if (slice_is(path, volume_proc_files[i])) return true;
    return false;
}

/* What can be said of a volume before its container starts. INVALID_ARGUMENT names the field;
 * FAILED_PRECONDITION: the host's mount does not propagate, so the container's cannot either. */
static int rootfs_check_mount(const MountSpec *m, error *e)
{
    OWNED_ARENA a = arena_make(64 * MIB);
    unsigned attr;
    slice tags;
    bool both_ways = m->propagation == MountPropagation_PROPAGATION_BIDIRECTIONAL;
    if (!volume_path_good(m->destination) || slice_is(m->destination, "/"))
        return fail(e, GRPC_INVALID_ARGUMENT, "mount: container_path \"%.*s\" cannot be mounted on", PR(m->destination));
    if (slice_starts(m->destination, "/proc/") && !volume_proc_file(m->destination))
        return fail(e, GRPC_INVALID_ARGUMENT, "mount: container_path %.*s is inside /proc", PR(m->destination));
    if (!m->layers.n && !volume_path_good(m->source))
        return fail(e, GRPC_INVALID_ARGUMENT, "mount %.*s: host_path \"%.*s\" is not absolute", PR(m->destination), PR(m->source));
    if (m->recursive_readonly && (!m->readonly || m->propagation))
        return fail(e, GRPC_INVALID_ARGUMENT, "mount %.*s: recursive_read_only needs readonly and private propagation", PR(m->destination));
    if (volume_attributes(m, &attr, e) < 0) return -1;
    if (m->layers.n || !m->propagation) return 0;
    if (mount_tags(arena_str(&a, m->source), &a, &tags, e) < 0) return fail_in(e, "mount %.*s", PR(m->destination));
    bool shared = memmem(tags.p, tags.n, "shared:", 7), slave = memmem(tags.p, tags.n, "master:", 7);
    if (shared || (slave && !both_ways)) return 0;
    return fail(e, GRPC_FAILED_PRECONDITION, "mount %.*s: %.*s is not on a %s mount of the host", PR(m->destination),
                PR(m->source), both_ways ? "shared" : "shared or slave");
}

/* Gives a detached volume its read-only bit, its other attributes and its propagation. */
static int volume_set(int volume, const MountSpec *m, error *e)
{
    static const unsigned propagation[] = { MS_PRIVATE, MS_SLAVE, MS_SHARED }; /* by MountPropagation */
    unsigned attr;
    if (volume_attributes(m, &attr, e) < 0) return -1;
    struct k_mount_attr all = { .propagation = propagation[m->propagation % 3U] }, top = { .attr_set = attr };
    if (m->recursive_readonly) all.attr_set = K_ATTR_RDONLY;
    if (mount_attributes(volume, K_AT_RECURSIVE, &all, e) < 0) return -1;
    return attr ? mount_attributes(volume, 0, &top, e) : 0;
}

/* A volume out of an image's layers. To take a part of it, older kernels (before 6.15) want it attached
 * somewhere: `parking` is a directory of the old tree, which goes away with it. */
static int volume_of_layers(const MountSpec *m, int layers_dir, int parking, error *e)
{
    char path[PATH_MAX];
    OWNED_FD whole = rootfs_open_layers(layers_dir, m->layers.p, m->layers.n, e);
    if (whole < 0) return -1;
    if (m->layers.n > 1 && mount_place(whole, parking, "a parking place", e) < 0) return -1;
    snprintf(path, sizeof path, "./%.*s", PR(m->sub_path));
    OWNED_FD part = open_inside(whole, path, O_PATH, e);
    return part < 0 ? fail_in(e, "image volume") : mount_clone(part, e);
}

/* -- /dev -------------------------------------------------------------------------------------- */

static const struct { const char *name; unsigned major, minor; } dev_nodes[] = {
    { "null", 1, 3 }, { "zero", 1, 5 }, { "full", 1, 7 }, { "random", 1, 8 }, { "urandom", 1, 9 }, { "tty", 5, 0 },
};
static const struct { const char *name, *to; } dev_links[] = {
    { "fd", "/proc/self/fd" }, { "stdin", "/proc/self/fd/0" }, { "stdout", "/proc/self/fd/1" },
    { "stderr", "/proc/self/fd/2" }, { "ptmx", "pts/ptmx" },
};
static const char *const dev_not_copied[] = { /* of the host's /dev: the container has its own */
    "console", "fd", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout",
};

/* Makes at `to` the device that `from` is open at (O_PATH). An existing one stays. */
static int dev_copy(int from, int to, const char *name, error *e)
{
    struct stat st;
    if (fstat(from, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat device %s", name);
    if (!S_ISCHR(st.st_mode) && !S_ISBLK(st.st_mode)) return fail(e, GRPC_INVALID_ARGUMENT, "%s is not a device", name);
    if (mknodat(to, name, st.st_mode, st.st_rdev) < 0) return errno == EEXIST ? 0 : fail_sys(e, GRPC_INTERNAL, "mknod %s", name);
    if (fchownat(to, name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) < 0) return fail_sys(e, GRPC_INTERNAL, "chown %s", name);
    return 0;
}

static bool dev_skipped(const char *name)
{
    for (size_t i = 0; i < COUNT(dev_not_copied); i++)
        if (!strcmp(name, dev_not_copied[i])) return true;
    return name[0] == '.';
}

/* Makes all devices below the host's directory `from` at `to`, at most `depth` levels down; nodes that
 * go away meanwhile and what is no device are left out. */
static int dev_copy_all(int from, int to, int depth, error *e)
{
    DIR *d = fdopendir(fcntl(from, F_DUPFD_CLOEXEC, 3));
    int done = d ? 0 : fail_sys(e, GRPC_INTERNAL, "read the host's /dev");
    for (struct dirent *entry; done == 0 && d && (entry = readdir(d));) {
        const char *name = entry->d_name;
        bool directory = entry->d_type == DT_DIR && depth > 0;
        if (dev_skipped(name) || (!directory && entry->d_type != DT_CHR && entry->d_type != DT_BLK)) continue;
        OWNED_FD found = openat(from, name, (directory ? O_RDONLY | O_DIRECTORY : O_PATH) | O_NOFOLLOW | O_CLOEXEC);
        if (found < 0) continue;
        OWNED_FD below = directory ? rootfs_open_dir(to, name, 0755, e) : -1;
        done = !directory ? dev_copy(found, to, name, e) : below < 0 ? -1 : dev_copy_all(found, below, depth - 1, e);
    }
    if (d) closedir(d);
    return done;
}

/* -- building the tree ------------------------------------------------------------------------- */

/* What the tree of one container is built from. */
typedef struct {
    const ContainerSpec *spec;
    int layers_dir, state_dir; /* root/layers; root/pods/<id> */
    int shm_ns;                /* the mount namespace whose root is the pod's /dev/shm, or -1 */
    arena *memory;
    int root, shm, null, dev;  /* while building: mounts, the host's /dev/null */
    int *volumes;              /* detached, in the order of spec->mounts */
} rootfs;

static int rootfs_make_proc(rootfs *r, error *e)
{
    (void)r;
    return mount_new("proc", NULL, K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC, e);
}

/* A /dev of our own, filled before anyone can see it. */
static int rootfs_make_dev(rootfs *r, error *e)
{
    static const char *const options[] = { "mode", "755", "size", "65536k", NULL };
    static const struct { const char *name; mode_t mode; } dirs[] = { { "pts", 0755 }, { "shm", 01777 }, { "mqueue", 0755 } };
    OWNED_FD dev = mount_new("tmpfs", options, K_ATTR_NOSUID, e);
    if (dev < 0) return -1;
    for (size_t i = 0; i < COUNT(dev_nodes); i++)
        if (mknodat(dev, dev_nodes[i].name, S_IFCHR | 0666, makedev(dev_nodes[i].major, dev_nodes[i].minor)) < 0)
            return fail_sys(e, GRPC_INTERNAL, "mknod /dev/%s", dev_nodes[i].name);
    for (size_t i = 0; i < COUNT(dev_links); i++)
        if (symlinkat(dev_links[i].to, dev, dev_links[i].name) < 0) return fail_sys(e, GRPC_INTERNAL, "link /dev/%s", dev_links[i].name);
    for (size_t i = 0; i < COUNT(dirs); i++)
        if (mkdirat(dev, dirs[i].name, dirs[i].mode) < 0) return fail_sys(e, GRPC_INTERNAL, "mkdir /dev/%s", dirs[i].name);
    if (r->spec->privileged) {
        OWNED_FD host = open("/dev", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (host < 0 || dev_copy_all(host, dev, 8, e) < 0) return host < 0 ? fail_sys(e, GRPC_INTERNAL, "open /dev") : -1;
    }
    r->dev = fcntl(dev, F_DUPFD_CLOEXEC, 3);
    return give_fd(&dev);
}

static int rootfs_make_pts(rootfs *r, error *e)
{
    static const char *const options[] = { "ptmxmode", "0666", "mode", "0620", "gid", "5", NULL };
    (void)r;
    return mount_new("devpts", options, K_ATTR_NOSUID | K_ATTR_NOEXEC, e);
}

static int rootfs_make_shm(rootfs *r, error *e)
{
    (void)e;
    return give_fd(&r->shm);
}

static int rootfs_make_mqueue(rootfs *r, error *e)
{
    (void)r;
    return mount_new("mqueue", NULL, K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC, e);
}

static int rootfs_make_sys(rootfs *r, error *e)
{
    unsigned readonly = r->spec->privileged ? 0 : K_ATTR_RDONLY;
    return mount_new("sysfs", NULL, K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC | readonly, e);
}

static int rootfs_make_cgroup(rootfs *r, error *e) /* read-only: CVE-2023-25809 */
{
    unsigned readonly = r->spec->privileged ? 0 : K_ATTR_RDONLY;
    return mount_new("cgroup2", NULL, K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC | readonly, e);
}

/* What every container finds mounted, unless a volume has that place; a deeper one comes later. */
static const struct { const char *path; int depth; bool optional; int (*make)(rootfs *, error *); } rootfs_defaults[] = {
    { "/proc", 1, false, rootfs_make_proc },
    { "/dev", 1, false, rootfs_make_dev },
    { "/sys", 1, false, rootfs_make_sys },
    { "/dev/pts", 2, false, rootfs_make_pts },
    { "/dev/shm", 2, false, rootfs_make_shm },
    { "/dev/mqueue", 2, true, rootfs_make_mqueue }, /* kernels may lack it (CONFIG_POSIX_MQUEUE) */
    { "/sys/fs/cgroup", 3, true, rootfs_make_cgroup },
};

static int path_depth(slice path)
{
    int depth = 0;
    while (path.n)
        if (slice_cut(&path, '/').n) depth++;
    return depth;
}

static bool rootfs_has_volume(const rootfs *r, const char *path)
{
    for (size_t i = 0; i < r->spec->mounts.n; i++) {
        slice at = r->spec->mounts.p[i].destination;
        while (at.n > 1 && at.p[at.n - 1] == '/') at.n--;
        if (slice_is(at, path)) return true;
    }
    return false;
}

static int rootfs_place_defaults(rootfs *r, int depth, error *e)
{
    for (size_t i = 0; i < COUNT(rootfs_defaults); i++) {
        const char *path = rootfs_defaults[i].path;
        if (rootfs_defaults[i].depth != depth || rootfs_has_volume(r, path)) continue;
        OWNED_FD mount = rootfs_defaults[i].make(r, e);
        if (mount < 0 && rootfs_defaults[i].optional) continue;
        if (mount < 0) return fail_in(e, "%s", path);
        OWNED_FD target = rootfs_plain_dir(r->root, path, e);
        if (target < 0 || mount_place(mount, target, path, e) < 0) return -1;
    }
    return 0;
}

/* Puts volume i on its place. In /proc a volume could feed false files to programs that trust them, and
 * to us: only procfs itself may go to /proc, and lxcfs' files into it (CVE-2019-16884, T50). */
static int rootfs_place_volume(rootfs *r, size_t i, error *e)
{
    const MountSpec *m = &r->spec->mounts.p[i];
    struct stat st;
    char path[PATH_MAX];
    if (!volume_path_good(m->destination)) return fail(e, GRPC_INVALID_ARGUMENT, "mount: \"%.*s\" is no place", PR(m->destination));
    snprintf(path, sizeof path, "%.*s", PR(m->destination));
    if (fstat(r->volumes[i], &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat the volume for %s", path);
    OWNED_FD target = rootfs_target(r->root, path, S_ISDIR(st.st_mode), ROOTFS_TARGET_STEPS, e);
    if (target < 0) return -1;
    bool at_proc = slice_is(m->destination, "/proc");
    if ((at_proc || fd_is_on(target, ROOTFS_PROC_MAGIC)) && !volume_proc_file(m->destination) &&
        !(at_proc && fd_is_on(r->volumes[i], ROOTFS_PROC_MAGIC)))
        return fail(e, GRPC_INVALID_ARGUMENT, "mount: %s is inside /proc", path);
    return mount_place(r->volumes[i], target, path, e);
}

/* Mounts everything, the shallow before the deep, so that nothing is hidden by what comes later; at one
 * depth in the order of the request. */
static int rootfs_place_all(rootfs *r, error *e)
{
    int deepest = 3;
    for (size_t i = 0; i < r->spec->mounts.n; i++) deepest = MAX(deepest, path_depth(r->spec->mounts.p[i].destination));
    for (int depth = 1; depth <= deepest; depth++) {
        if (rootfs_place_defaults(r, depth, e) < 0) return -1;
        for (size_t i = 0; i < r->spec->mounts.n; i++)
            if (path_depth(r->spec->mounts.p[i].destination) == depth && rootfs_place_volume(r, i, e) < 0) return -1;
    }
    return 0;
}

/* Makes the devices that were asked for by name. A directory stands for all devices in it. */
static int rootfs_make_devices(rootfs *r, error *e)
{
    for (size_t i = 0; i < r->spec->devices.n; i++) {
        const DeviceSpec *d = &r->spec->devices.p[i];
        char parent[PATH_MAX], name[NAME_MAX + 1];
        const char *path = arena_str(r->memory, d->path), *host = arena_str(r->memory, d->host_path);
        OWNED_FD from = open(host, O_PATH | O_CLOEXEC), again = -1;
        struct stat st;
        if (from < 0 || fstat(from, &st) < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "device %s", host);
        if (!volume_path_good(d->path) || !path_split(path, parent, name)) return fail(e, GRPC_INVALID_ARGUMENT, "device: bad path \"%s\"", path);
        bool directory = S_ISDIR(st.st_mode);
        OWNED_FD to = make_dir_inside(r->root, directory ? path : parent, 0755, e);
        if (to < 0) return -1;
        if (directory && (again = open(host, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) return fail_sys(e, GRPC_INTERNAL, "open %s", host);
        if (directory ? dev_copy_all(again, to, 8, e) < 0 : dev_copy(from, to, name, e) < 0) return -1;
    }
    return 0;
}

/* Covers one path: a directory with an empty one, a file with the host's /dev/null. What is not there
 * needs no cover. *empty is the covering tmpfs, made when first needed, or -1. */
static int rootfs_mask(rootfs *r, const char *path, int *empty, error *e)
{
    static const char *const tiny[] = { "mode", "555", "size", "4k", NULL };
    struct stat st;
    OWNED_FD target = open_inside(r->root, path, O_PATH | O_NOFOLLOW, e);
    if (target < 0) return e->code == GRPC_NOT_FOUND || e->sys == ENOTDIR ? 0 : -1;
    if (fstat(target, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "stat %s", path);
    if (S_ISLNK(st.st_mode)) return fail(e, GRPC_INVALID_ARGUMENT, "mask %s: it is a link", path);
    if (S_ISDIR(st.st_mode) && *empty < 0) {
        *empty = mount_new("tmpfs", tiny, K_ATTR_RDONLY | K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC, e);
        return *empty < 0 ? -1 : mount_place(*empty, target, path, e);
    }
    OWNED_FD cover = mount_clone(S_ISDIR(st.st_mode) ? *empty : r->null, e);
    return cover < 0 ? -1 : mount_place(cover, target, path, e);
}

/* Puts a read-only copy of the mount over itself at `path`. */
static int rootfs_freeze(rootfs *r, const char *path, error *e)
{
    static const struct k_mount_attr readonly = { .attr_set = K_ATTR_RDONLY };
    OWNED_FD target = open_inside(r->root, path, O_PATH | O_NOFOLLOW, e);
    if (target < 0) return e->code == GRPC_NOT_FOUND || e->sys == ENOTDIR ? 0 : -1;
    OWNED_FD copy = mount_clone(target, e);
    if (copy < 0 || mount_attributes(copy, K_AT_RECURSIVE, &readonly, e) < 0) return fail_in(e, "read-only %s", path);
    return mount_place(copy, target, path, e);
}

static int rootfs_hide(rootfs *r, error *e)
{
    OWNED_FD empty = -1;
    for (size_t i = 0; i < r->spec->readonly_paths.n; i++)
        if (rootfs_freeze(r, arena_str(r->memory, r->spec->readonly_paths.p[i]), e) < 0) return -1;
    for (size_t i = 0; i < r->spec->masked_paths.n; i++)
        if (rootfs_mask(r, arena_str(r->memory, r->spec->masked_paths.p[i]), &empty, e) < 0) return -1;
    return 0;
}

/* Takes copies of what comes from the host while we still see its mounts as it does: a copy of a shared
 * mount stays in its peer group, which is what propagation to and from the host is. */
static int rootfs_take_host(rootfs *r, error *e)
{
    size_t n = r->spec->mounts.n;
    struct stat st;
    r->volumes = arena_alloc(r->memory, MAX(n, (size_t)1) * sizeof *r->volumes);
    if (!r->volumes) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for %zu mounts", n);
    for (size_t i = 0; i < n; i++) {
        const MountSpec *m = &r->spec->mounts.p[i];
        if (m->layers.n) continue;
        const char *from = arena_str(r->memory, m->source);
        r->volumes[i] = sys_open_tree(AT_FDCWD, from, K_OPEN_TREE_CLONE | K_AT_RECURSIVE);
        if (r->volumes[i] < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "mount %.*s: open %s", PR(m->destination), from);
        if (volume_set(r->volumes[i], m, e) < 0) return fail_in(e, "mount %.*s", PR(m->destination));
    }
    if (r->spec->ipc == NamespaceMode_NODE)
        r->shm = sys_open_tree(AT_FDCWD, "/dev/shm", K_OPEN_TREE_CLONE | K_AT_RECURSIVE);
    r->null = open("/dev/null", O_PATH | O_CLOEXEC);
    if (r->null < 0 || fstat(r->null, &st) < 0) return fail_sys(e, GRPC_INTERNAL, "open /dev/null");
    return st.st_rdev == makedev(1, 3) ? 0 : fail(e, GRPC_INTERNAL, "the host's /dev/null is another device");
}

/* The pod's /dev/shm: a copy of the root of its mount namespace, taken from inside it. */
static int rootfs_take_shm(rootfs *r, error *e)
{
    static const char *const options[] = { "mode", "1777", "size", "65536k", NULL };
    if (r->shm >= 0) return 0;
    if (r->shm_ns < 0) return r->shm = mount_new("tmpfs", options, K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC, e);
    OWNED_FD home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (home < 0 || setns(r->shm_ns, CLONE_NEWNS) < 0) return fail_sys(e, GRPC_INTERNAL, "enter the pod's /dev/shm");
    r->shm = sys_open_tree(AT_FDCWD, "/", K_OPEN_TREE_CLONE);
    if (r->shm < 0 || setns(home, CLONE_NEWNS) < 0) return fail_sys(e, GRPC_INTERNAL, "copy the pod's /dev/shm");
    return 0;
}

/* Builds the container's tree, in a mount namespace that the caller has for it alone.
 * r        spec, layers_dir, state_dir, shm_ns and memory are given; r->dev is then the container's
 *          /dev, -1 where a volume has taken its place
 * Returns  its root as a mount at r->state_dir of this namespace, the caller's; or -1
 * The descriptors in *r stay open: this process will execute, or end. */
static int rootfs_build(rootfs *r, error *e)
{
    r->root = r->shm = r->null = r->dev = -1;
    r->layers_dir = dir_again(r->layers_dir, e);
    r->state_dir = r->layers_dir < 0 ? -1 : dir_again(r->state_dir, e);
    if (r->state_dir < 0) return -1;
    if (rootfs_take_host(r, e) < 0) return -1;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return fail_sys(e, GRPC_INTERNAL, "make all mounts private");
    if (rootfs_take_shm(r, e) < 0) return -1;
    for (size_t i = 0; i < r->spec->mounts.n; i++) {
        const MountSpec *m = &r->spec->mounts.p[i];
        if (m->layers.n && (r->volumes[i] = volume_of_layers(m, r->layers_dir, r->state_dir, e)) < 0) return fail_in(e, "mount %.*s", PR(m->destination));
        if (m->layers.n && volume_set(r->volumes[i], m, e) < 0) return -1;
    }
    r->root = rootfs_mount(r->spec, r->layers_dir, r->state_dir, e);
    if (r->root < 0 || mount_place(r->root, r->state_dir, "/", e) < 0) return fail_in(e, "root filesystem");
    if (rootfs_place_all(r, e) < 0 || rootfs_make_devices(r, e) < 0 || rootfs_hide(r, e) < 0) return -1;
    return r->root;
}

/* Makes the tree at `root` the process's "/", and the host's tree unreachable: pivot_root(2). With
 * both arguments "." the old root ends up on top of the new one, from where it is detached. */
static int rootfs_enter(int root, bool readonly, error *e)
{
    static const struct k_mount_attr frozen = { .attr_set = K_ATTR_RDONLY };
    if (fchdir(root) < 0 || sys_pivot_root(".", ".") < 0) return fail_sys(e, GRPC_INTERNAL, "pivot_root");
    if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) return fail_sys(e, GRPC_INTERNAL, "detach the host's tree");
    return readonly ? mount_attributes(root, 0, &frozen, e) : 0;
}

/* == 15. cgroups =============================================================================
 *
 * A cgroup is a directory. Making it makes the group, writing to its files limits what its
 * processes may use, and a file in it says whether any process is left: cgroup-v2.rst. Limits
 * exist only where the parent has handed the controller on (cgroup.subtree_control), and a parent
 * that hands controllers on can have no processes of its own but in the root.
 *
 * Hosts differ in what the v2 tree can do: on a "hybrid" one the controllers are bound to the old
 * v1 trees, and ours can only group, watch and kill. What then cannot be enforced is said: a hard
 * limit (memory, cpu quota, cpuset, pids) is refused unless the administrator chose to ignore that,
 * a weight is left out.
 *
 * Defined by  Documentation/admin-guide/cgroup-v2.rst; the CRI's LinuxContainerResources
 * Uses        1, 2, 9, 14 (mount_parse)         Gives  cg_tree_*, cg_make*, cg_check, cg_limit, cg_kill, ...
 * Bounds      64 levels a path; 256 settings a container; needs cgroup.kill (Linux 5.14) */

enum cg_controller { CG_CPU = 1, CG_CPUSET = 2, CG_MEMORY = 4, CG_PIDS = 8, CG_IO = 16, CG_HUGETLB = 32 };
static const struct { enum cg_controller bit; const char *name; } cg_controllers[] = {
    { CG_CPU, "cpu" }, { CG_CPUSET, "cpuset" }, { CG_MEMORY, "memory" },
    { CG_PIDS, "pids" }, { CG_IO, "io" }, { CG_HUGETLB, "hugetlb" },
};

/* The host's tree. ignore_missing: hard limits that no controller can enforce are left out too. */
typedef struct { int root; unsigned controllers; bool ignore_missing; } cg_tree;

enum { CG_TEXT_MAX = 4 * KIB, CG_LEVELS_MAX = 64, CG_SETTINGS_MAX = 256 };

/* -- files of a cgroup ------------------------------------------------------------------------- */

/* Reads a small file into `text`, NUL-terminated. False and errno: ENOENT, or ENODEV once the
 * cgroup has been removed. */
static bool cg_read(int cgroup, const char *file, char text[CG_TEXT_MAX])
{
    OWNED_FD fd = openat(cgroup, file, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read_all(fd, text, CG_TEXT_MAX - 1);
    if (n < 0) return false;
    text[n] = '\0';
    return true;
}

/* Sets a file of a cgroup, e.g. "pids.max", in one write(2): the kernel parses each write by itself.
 * INVALID_ARGUMENT: it refuses the value. FAILED_PRECONDITION (ENOENT): it has no such file. */
static int cg_set(int cgroup, const char *file, const char *value, error *e)
{
    OWNED_FD fd = openat(cgroup, file, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fail_sys(e, errno == ENOENT ? GRPC_FAILED_PRECONDITION : GRPC_INTERNAL, "cgroup: open %s", file);
    if (write(fd, value, strlen(value)) >= 0) return 0;
    int code = errno == EINVAL || errno == ERANGE ? GRPC_INVALID_ARGUMENT : GRPC_INTERNAL;
    return fail_sys(e, code, "cgroup: set %s to \"%s\"", file, value);
}

/* The number after `key` in a file of "key number" lines, such as cgroup.events; -1 without it. */
static int64_t cg_counter(int cgroup, const char *file, const char *key)
{
    char text[CG_TEXT_MAX];
    uint64_t value;
    if (!cg_read(cgroup, file, text)) return -1;
    for (slice rest = slice_of(text); rest.n;) {
        slice line = slice_cut(&rest, '\n'), name = slice_cut(&line, ' ');
        if (slice_is(name, key) && parse_u64(line, 10, INT64_MAX, &value)) return (int64_t)value;
    }
    return -1;
}

/* The controllers that a file such as cgroup.controllers lists. */
static unsigned cg_listed(int cgroup, const char *file)
{
    char text[CG_TEXT_MAX];
    unsigned found = 0;
    if (!cg_read(cgroup, file, text)) return 0;
    for (slice rest = slice_trim(slice_of(text)); rest.n;) {
        slice name = slice_cut(&rest, ' ');
        for (size_t i = 0; i < COUNT(cg_controllers); i++)
            if (slice_is(name, cg_controllers[i].name)) found |= cg_controllers[i].bit;
    }
    return found;
}

/* -- the tree ---------------------------------------------------------------------------------- */

/* Takes an open directory (borrowed; it must live as long as *t) for the root of the tree. */
static int cg_tree_adopt(cg_tree *t, int root, error *e)
{
    *t = (cg_tree){ .root = root };
    if (!fd_is_on(root, 0x63677270 /* CGROUP2_SUPER_MAGIC */))
        return fail(e, GRPC_FAILED_PRECONDITION, "there is no cgroup v2 file system");
    t->controllers = cg_listed(root, "cgroup.controllers");
    return 0;
}

/* Finds the cgroup2 file system in our mount table: at /sys/fs/cgroup, on hybrid hosts at
 * /sys/fs/cgroup/unified. t->root is the caller's to close. */
static int cg_tree_open(cg_tree *t, error *e)
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice table;
    *t = (cg_tree){ .root = -1 };
    if (file_read(AT_FDCWD, "/proc/self/mountinfo", 16 * MIB, &a, &table, e) < 0) return -1;
    while (table.n) {
        char point[PATH_MAX];
        mount_line line = mount_parse(slice_cut(&table, '\n'));
        if (!slice_is(line.type, "cgroup2") || !mount_point_text(line, point)) continue;
        OWNED_FD root = open(point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (root < 0) return fail_sys(e, GRPC_FAILED_PRECONDITION, "cgroup: open %s", point);
        if (cg_tree_adopt(t, root, e) < 0) return t->root = -1;
        return give_fd(&root), 0;
    }
    return fail(e, GRPC_FAILED_PRECONDITION, "no cgroup v2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup");
}

/* Hands the tree's controllers, as far as this level has them, on to its children. */
static int cg_hand_on(const cg_tree *t, int level, const char *path, error *e)
{
    char wish[128] = "";
    unsigned missing = t->controllers & ~cg_listed(level, "cgroup.subtree_control");
    if (missing) missing &= cg_listed(level, "cgroup.controllers");
    if (!missing) return 0;
    for (size_t i = 0, n = 0; i < COUNT(cg_controllers); i++)
        if (missing & cg_controllers[i].bit)
            n += (size_t)snprintf(wish + n, sizeof wish - n, "+%s ", cg_controllers[i].name);
    if (cg_set(level, "cgroup.subtree_control", wish, e) == 0) return 0;
    if (e->sys == EBUSY)
        return fail(e, GRPC_FAILED_PRECONDITION, "cgroup /%s has processes of its own, so the kernel hands no "
                    "controllers on to the cgroups below it: move them to a cgroup of their own", path);
    return fail_in(e, "cgroup /%s", path);
}

/* Appends a copy of `path` to the LIST(slice) at `list`, which has whatever C type its owner gave it. */
static int cg_report(void *list, const char *path, arena *a, error *e)
{
    LIST(slice) was, now;
    memcpy(&was, list, sizeof was);
    now.n = was.n + 1;
    now.p = arena_alloc(a, now.n * sizeof *now.p);
    if (now.p && was.n) memcpy(now.p, was.p, was.n * sizeof *was.p);
    if (now.p) now.p[was.n] = arena_copy(a, slice_of(path));
    if (a->oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for cgroup %s", path);
    memcpy(list, &now, sizeof now);
    return 0;
}

/* Makes one level, unless it is there. Returns its descriptor, the caller's; *fresh: it is ours. */
static int cg_make_level(int parent, slice name, bool *fresh, error *e)
{
    char text[NAME_MAX + 1];
    if (name.n > NAME_MAX || slice_has(name, 0) || slice_is(name, ".") || slice_is(name, ".."))
        return fail(e, GRPC_INVALID_ARGUMENT, "cgroup: \"%.*s\" cannot be a name", PR(name));
    snprintf(text, sizeof text, "%.*s", PR(name));
    *fresh = mkdirat(parent, text, 0755) == 0;
    if (!*fresh && errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "cgroup: mkdir %s", text);
    int fd = openat(parent, text, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? fail_sys(e, GRPC_INTERNAL, "cgroup: open %s", text) : fd;
}

/* Makes the cgroup `path` with all levels above it, each handing the controllers on to the next.
 * path     below the tree's root; a slash in front changes nothing
 * made     NULL, or a LIST(slice) in `a` to which the path of every level is added that was not
 *          there before, top first: also on failure, so that the caller can undo
 * Returns  a descriptor of its directory, the caller's; or -1: INVALID_ARGUMENT (".." or an overlong
 *          name), FAILED_PRECONDITION (a level has processes of its own), INTERNAL */
static int cg_make(const cg_tree *t, const char *path, void *made, arena *a, error *e)
{
    OWNED_FD at = fcntl(t->root, F_DUPFD_CLOEXEC, 3);
    char prefix[PATH_MAX] = "";
    size_t n = 0, levels = 0;
    if (at < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "cgroup %s", path);
    for (slice rest = slice_of(path); rest.n;) {
        bool fresh;
        slice name = slice_cut(&rest, '/');
        if (!name.n) continue;
        if (++levels > CG_LEVELS_MAX || n + name.n + 2 > sizeof prefix)
            return fail(e, GRPC_INVALID_ARGUMENT, "cgroup path %.64s... is too long", path);
        if (cg_hand_on(t, at, prefix, e) < 0) return -1;
        int next = cg_make_level(at, name, &fresh, e);
        if (next < 0) return -1;
        close_fd(&at);
        at = next;
        n += (size_t)snprintf(prefix + n, sizeof prefix - n, "%s%.*s", n ? "/" : "", PR(name));
        if (fresh) fault_point("cgroup.made");
        if (fresh && made && cg_report(made, prefix, a, e) < 0) return -1;
    }
    return levels ? give_fd(&at) : fail(e, GRPC_INVALID_ARGUMENT, "the path of a cgroup is empty");
}

/* Makes a cgroup below a container's, for what an exec starts: it can be killed alone, and counts to
 * the container. No controllers are handed on, since the container's has processes. Returns its
 * descriptor, the caller's. */
static int cg_make_below(int cgroup, const char *name, error *e)
{
    bool fresh;
    return cg_make_level(cgroup, slice_of(name), &fresh, e);
}

/* -- limits ------------------------------------------------------------------------------------ */

/* One write that a container asks for. hard: leaving it out would break a promise. */
typedef struct { const char *field, *file, *value; unsigned controller; bool hard; } cg_setting;
typedef struct { cg_setting *p; size_t n; arena *memory; } cg_plan;

__attribute__((format(printf, 3, 4))) static void cg_want(cg_plan *p, cg_setting s, const char *format, ...)
{
    char value[64];
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    s.value = arena_str(p->memory, slice_of(value));
    assert(p->n < CG_SETTINGS_MAX);
    p->p[p->n++] = s;
}

/* log2(n) with 24 bits after the point, for n >= 1: squaring a number in [1, 2) doubles its
 * logarithm, and whether the square is past 2 is the next bit. */
static uint64_t cg_log2(uint64_t n)
{
    unsigned whole = 63 - (unsigned)__builtin_clzll(n);
    uint64_t x = n << (63 - whole) >> 32, log = whole; /* x: 31 bits after the point */
    for (int bit = 0; bit < 24; bit++) {
        x = x * x >> 31;
        log = log << 1 | x >> 32;
        x >>= x >> 32;
    }
    return log;
}

/* cpu.weight (1..10000) for v1's cpu.shares (2..262144): ceil(10^((l^2 + 125 l) / 612 - 7 / 34)) with
 * l = log2(shares), as runc and crun have it since 2025, so that 1024 shares are the default weight
 * 100. Solved for the weight, 612 log2(weight) >= (l^2 + 125 l - 126) log2(10), it needs no
 * floating point; the slack hides the last bit's rounding at exact powers. */
static unsigned cg_weight(int64_t shares)
{
    const uint64_t log2_10 = 55732705, slack = (uint64_t)612 << 28;
    uint64_t l = cg_log2((uint64_t)MIN(MAX(shares, 2), 262144));
    uint64_t exponent = (l * l + (125 * l << 24) - ((uint64_t)126 << 48)) >> 24;
    unsigned low = 1, high = 10000;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if ((612 * cg_log2(middle) << 24) + slack >= exponent * log2_10) high = middle;
        else low = middle + 1;
    }
    return low;
}

static int cg_plan_cpu(const LinuxContainerResources *r, cg_plan *p, error *e)
{
    enum { PERIOD = 100000 }; /* microseconds; the kernel's default */
    int64_t period = r->cpu_period ? r->cpu_period : PERIOD;
    if (r->cpu_shares < 0) return fail(e, GRPC_INVALID_ARGUMENT, "cpu_shares is %" PRId64, r->cpu_shares);
    if (period < 1000 || period > 1000000)
        return fail(e, GRPC_INVALID_ARGUMENT, "cpu_period is %" PRId64 ", not 1000 to 1000000 (microseconds)", period);
    if (r->cpu_quota > 0 && r->cpu_quota < 1000)
        return fail(e, GRPC_INVALID_ARGUMENT, "cpu_quota is %" PRId64 ", less than 1000 (microseconds)", r->cpu_quota);
    if (r->cpu_shares) cg_want(p, (cg_setting){ "cpu_shares", "cpu.weight", NULL, CG_CPU, false }, "%u", cg_weight(r->cpu_shares));
    cg_setting quota = { "cpu_quota", "cpu.max", NULL, CG_CPU, r->cpu_quota > 0 };
    if (r->cpu_quota > 0) cg_want(p, quota, "%" PRId64 " %" PRId64, r->cpu_quota, period);
    else if (r->cpu_quota || r->cpu_period) cg_want(p, quota, "max %" PRId64, period);
    return 0;
}

/* A list of numbers as cpuset files take it: "0-3,7". The kernel says which numbers exist. */
static int cg_plan_cpuset(slice value, cg_setting s, cg_plan *p, error *e)
{
    if (!value.n) return 0;
    for (size_t i = 0; i < value.n; i++)
        if (!strchr("0123456789,-", value.p[i]) || !value.p[i] || value.n > 1024)
            return fail(e, GRPC_INVALID_ARGUMENT, "%s \"%.*s\" is no list of numbers like 0-3,7", s.field, PR(value));
    s.value = arena_str(p->memory, value);
    p->p[p->n++] = s;
    return 0;
}

/* The CRI's swap limit is memory and swap together, v2's is swap alone. 0 beside a memory limit means
 * none, as containerd has it. A kernel without swap accounting has no file: nothing to forbid then. */
static int cg_plan_memory(const LinuxContainerResources *r, cg_plan *p, error *e)
{
    int64_t memory = r->memory_limit_in_bytes, both = r->memory_swap_limit_in_bytes;
    cg_setting swap = { "memory_swap_limit_in_bytes", "memory.swap.max", NULL, CG_MEMORY, false };
    if (memory < -1 || both < -1)
        return fail(e, GRPC_INVALID_ARGUMENT, "%s is negative", memory < -1 ? "memory_limit_in_bytes" : swap.field);
    if (both > 0 && both < memory)
        return fail(e, GRPC_INVALID_ARGUMENT, "memory_swap_limit_in_bytes (%" PRId64 ") is memory and swap together, "
                    "so it cannot be less than memory_limit_in_bytes (%" PRId64 ")", both, memory);
    cg_setting limit = { "memory_limit_in_bytes", "memory.max", NULL, CG_MEMORY, memory > 0 };
    if (memory > 0) cg_want(p, limit, "%" PRId64, memory);
    else if (memory < 0) cg_want(p, limit, "max");
    if (both < 0) cg_want(p, swap, "max");
    else if (memory > 0) cg_want(p, swap, "%" PRId64, both ? both - memory : 0);
    return 0;
}

/* Huge pages are soft: the kubelet sends a 0 for every size that the machine has, asked for or not. */
static int cg_plan_hugetlb(const LinuxContainerResources *r, cg_plan *p, error *e)
{
    for (size_t i = 0; i < r->hugepage_limits.n; i++) {
        const HugepageLimit *h = &r->hugepage_limits.p[i];
        slice size = h->page_size;
        uint64_t number;
        bool good = size.n > 2 && slice_ends(size, "B") && strchr("KMG", size.p[size.n - 2]) &&
                    parse_u64((slice){ size.p, size.n - 2 }, 10, 1U << 20, &number);
        if (!good) return fail(e, GRPC_INVALID_ARGUMENT, "hugepage_limits: \"%.*s\" is no page size like 2MB", PR(size));
        const char *file = arena_printf(p->memory, "hugetlb.%.*s.max", PR(size));
        cg_want(p, (cg_setting){ "hugepage_limits", file, NULL, CG_HUGETLB, false }, "%" PRIu64, h->limit);
    }
    return 0;
}

/* The controller that a file of a cgroup belongs to by its name, 0 if to none that may be set: not to
 * "cgroup", whose files move processes, and nothing with a slash. */
static unsigned cg_owner(slice file)
{
    for (size_t i = 0; i < file.n; i++)
        if (!isalnum(file.p[i]) && file.p[i] != '.' && file.p[i] != '_') return 0;
    slice name = slice_cut(&file, '.');
    for (size_t i = 0; i < COUNT(cg_controllers) && file.n; i++)
        if (slice_is(name, cg_controllers[i].name)) return cg_controllers[i].bit;
    return 0;
}

/* "unified" names files and values of cgroup v2 itself. */
static int cg_plan_unified(const LinuxContainerResources *r, cg_plan *p, error *e)
{
    for (size_t i = 0; i < r->unified.n; i++) {
        slice key = r->unified.p[i].key, value = r->unified.p[i].value;
        cg_setting s = { .field = "unified", .controller = cg_owner(key) };
        if (!s.controller || key.n > NAME_MAX)
            return fail(e, GRPC_INVALID_ARGUMENT, "unified: \"%.*s\" is no file of a cgroup controller", PR(key));
        if (slice_has(value, '\n') || slice_has(value, 0) || value.n > 1024)
            return fail(e, GRPC_INVALID_ARGUMENT, "unified: the value of %.*s is not one line", PR(key));
        s.hard = slice_ends(key, ".max") || s.controller == CG_CPUSET;
        s.file = arena_str(p->memory, key);
        s.value = arena_str(p->memory, value);
        p->p[p->n++] = s;
    }
    return 0;
}

/* All writes that `r` asks for, in order; what "unified" says comes last and wins. */
static int cg_make_plan(const LinuxContainerResources *r, cg_plan *p, error *e)
{
    size_t most = 8 + r->hugepage_limits.n + r->unified.n;
    if (most > CG_SETTINGS_MAX) return fail(e, GRPC_INVALID_ARGUMENT, "resources: more than %d settings", CG_SETTINGS_MAX);
    p->p = arena_alloc(p->memory, most * sizeof *p->p);
    if (!p->p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for resources");
    if (cg_plan_cpu(r, p, e) < 0 || cg_plan_memory(r, p, e) < 0) return -1;
    if (cg_plan_cpuset(r->cpuset_cpus, (cg_setting){ "cpuset_cpus", "cpuset.cpus", NULL, CG_CPUSET, true }, p, e) < 0) return -1;
    if (cg_plan_cpuset(r->cpuset_mems, (cg_setting){ "cpuset_mems", "cpuset.mems", NULL, CG_CPUSET, true }, p, e) < 0) return -1;
    if (cg_plan_hugetlb(r, p, e) < 0 || cg_plan_unified(r, p, e) < 0) return -1;
    return p->memory->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for resources") : 0;
}

/* Whether a setting can be written on this host: 1; 0 it is left out; -1 it is refused. */
static int cg_enforceable(const cg_tree *t, const cg_setting *s, error *e)
{
    static _Atomic unsigned told;
    if (t->controllers & s->controller) return 1;
    if (s->hard && !t->ignore_missing)
        return fail(e, GRPC_FAILED_PRECONDITION, "%s cannot be enforced: this host's cgroup v2 tree lacks the controller of %s "
                    "(--missing-controllers=ignore runs the container without the limit)", s->field, s->file);
    if (!(told & s->controller)) log_warn("%s is left out: no cgroup v2 controller for %s", s->field, s->file);
    told |= s->controller;
    return 0;
}

enum { CG_PLAN_MEMORY = 512 * KIB };

/* Whether `r` can be asked for at all, before anything is made. INVALID_ARGUMENT names the field with
 * a bad value, FAILED_PRECONDITION a hard limit that this host cannot enforce. */
static int cg_check(const cg_tree *t, const LinuxContainerResources *r, error *e)
{
    OWNED_ARENA a = arena_make(CG_PLAN_MEMORY);
    cg_plan plan = { .memory = &a };
    if (!r) return 0;
    if (cg_make_plan(r, &plan, e) < 0) return -1;
    for (size_t i = 0; i < plan.n; i++)
        if (cg_enforceable(t, &plan.p[i], e) < 0) return -1;
    return 0;
}

/* Sets the limits of one cgroup. On failure some may be set: the caller removes it, or sets back. */
static int cg_limit(const cg_tree *t, int cgroup, const LinuxContainerResources *r, error *e)
{
    OWNED_ARENA a = arena_make(CG_PLAN_MEMORY);
    cg_plan plan = { .memory = &a };
    if (!r) return 0;
    if (cg_make_plan(r, &plan, e) < 0) return -1;
    for (size_t i = 0; i < plan.n; i++) {
        const cg_setting *s = &plan.p[i];
        int can = cg_enforceable(t, s, e);
        if (can < 0) return -1;
        if (!can || cg_set(cgroup, s->file, s->value, e) == 0) continue;
        bool asked_by_name = !strcmp(s->field, "unified");
        if (e->sys == ENOENT && !s->hard && !asked_by_name) continue; /* no such page size, no swap accounting */
        if (e->sys == ENOENT && asked_by_name) e->code = GRPC_INVALID_ARGUMENT;
        return fail_in(e, "%s", s->field);
    }
    return 0;
}

/* -- the end of a cgroup ----------------------------------------------------------------------- */

/* SIGKILLs every process in the cgroup and below it, also those that are just being forked. */
static int cg_kill(int cgroup, error *e)
{
    if (cg_set(cgroup, "cgroup.kill", "1", e) == 0 || e->sys == ENODEV) return 0;
    if (e->sys == ENOENT && faccessat(cgroup, "cgroup.events", F_OK, 0) < 0) return 0; /* removed meanwhile */
    return -1;
}

/* 1: the cgroup or one below it has a process. 0: none. -1: it has been removed. */
static int cg_populated(int cgroup) { return (int)cg_counter(cgroup, "cgroup.events", "populated"); }

/* Waits until no process is left, or the cgroup is gone. DEADLINE_EXCEEDED: `deadline` (monotonic,
 * 0 for none) has passed; a process in an uninterruptible wait can outlive its SIGKILL. The kernel
 * announces a change of cgroup.events by POLLPRI (cgroup-v2.rst, "[Un]populated Notification"). */
static int cg_wait_empty(int cgroup, int64_t deadline, error *e)
{
    OWNED_FD events = openat(cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
    char text[CG_TEXT_MAX];
    if (events < 0) return errno == ENOENT || errno == ENODEV ? 0 : fail_sys(e, GRPC_INTERNAL, "cgroup: open cgroup.events");
    for (;;) {
        ssize_t n = pread(events, text, sizeof text - 1, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == ENODEV ? 0 : fail_sys(e, GRPC_INTERNAL, "cgroup: read cgroup.events");
        text[n] = '\0';
        if (!strstr(text, "populated 1")) return 0;
        if (deadline && clock_mono() >= deadline) return fail(e, GRPC_DEADLINE_EXCEEDED, "cgroup: processes are still alive");
        struct pollfd p = { .fd = events, .events = POLLPRI };
        poll(&p, 1, clock_poll_ms(deadline));
    }
}

/* Removes one cgroup without processes or children. A missing one is success. */
static int cg_remove_empty(const cg_tree *t, const char *path, error *e)
{
    while (*path == '/') path++;
    if (unlinkat(t->root, path, AT_REMOVEDIR) == 0 || errno == ENOENT || errno == ENODEV) return 0;
    return fail_sys(e, errno == EBUSY ? GRPC_FAILED_PRECONDITION : GRPC_INTERNAL, "cgroup: remove %s", path);
}

/* Puts the name of some cgroup below `path` into `child`; false if there is none. */
static bool cg_first_child(int root, const char *path, char child[NAME_MAX + 1])
{
    int fd = openat(root, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    bool found = false;
    if (!d) return close_fd(&fd), false;
    for (struct dirent *entry; !found && (entry = readdir(d));) {
        found = entry->d_type == DT_DIR && strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
        if (found) snprintf(child, NAME_MAX + 1, "%s", entry->d_name);
    }
    closedir(d);
    return found;
}

/* Removes the cgroup `path` and all below it, the deepest first. FAILED_PRECONDITION: one of them
 * still has processes. cgroupfs has no links, and no rename in v2: paths are safe to use here. */
static int cg_remove(const cg_tree *t, const char *path, error *e)
{
    char at[PATH_MAX], child[NAME_MAX + 1];
    while (*path == '/') path++;
    size_t top = strlen(path), n = top;
    if (!top || top >= sizeof at) return fail(e, GRPC_INVALID_ARGUMENT, "cgroup: cannot remove \"%.64s\"", path);
    memcpy(at, path, top + 1);
    for (;;) {
        if (cg_remove_empty(t, at, e) == 0) {
            if (n == top) return 0;
            n = (size_t)(strrchr(at, '/') - at);
            at[n] = '\0';
            continue;
        }
        if (e->sys != EBUSY || !cg_first_child(t->root, at, child)) return -1;
        if (n + strlen(child) + 2 > sizeof at) return fail(e, GRPC_INTERNAL, "cgroup: too deep below %s", path);
        n += (size_t)snprintf(at + n, sizeof at - n, "/%s", child);
    }
}

/* How many processes of the cgroup and below it the kernel has killed for want of memory. */
static int64_t cg_oom_kills(int cgroup) { return MAX(cg_counter(cgroup, "memory.events", "oom_kill"), 0); }

/* == 16. Security ============================================================================
 *
 * Root in a container is not root: of the forty powers that root is made of (capabilities(7)) it
 * keeps those few that programs in containers need. A process has five sets of them; what counts
 * for a program that is about to be started is the bounding set (what exec can ever give it) and,
 * for a user who is not root, the ambient set (what survives exec). The inheritable set stays empty
 * unless ambient capabilities were asked for: filled, it gives files with capabilities more than
 * they should have (CVE-2022-24769).
 *
 * Defined by  capabilities(7), prctl(2), getrlimit(2), proc_pid_oom_score_adj(5); the lists of paths
 *             are those that containerd and Docker hide
 * Uses        1, 2, 9                          Gives  security_caps_from_names, security_become, ...
 * Bounds      64 capabilities; 65536 supplementary groups, the kernel's own limit */

static const char *const security_cap_names[] = { /* the place is the number: linux/capability.h */
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
};

/* What a container has unless it asks for more or less: Docker's fourteen, also containerd's. */
static const char *const security_cap_defaults[] = {
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
    "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
};

/* Files of /proc and /sys that tell about, or reach into, the host: hidden, or at least not written. */
static const char *const security_masked_paths[] = {
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
};
static const char *const security_readonly_paths[] = {
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
};

typedef struct { uint64_t set, ambient; } security_caps; /* bit n is capability n */

/* The bit of a capability by its name, with or without "CAP_", in any case; 0 if there is none. */
static uint64_t security_cap_bit(slice name)
{
    if (name.n > 4 && !strncasecmp((const char *)name.p, "CAP_", 4)) name = (slice){ name.p + 4, name.n - 4 };
    for (size_t i = 0; i < COUNT(security_cap_names); i++)
        if (name.n == strlen(security_cap_names[i]) && !strncasecmp((const char *)name.p, security_cap_names[i], name.n))
            return UINT64_C(1) << i;
    return 0;
}

/* The kernel's form of the three sets, low half first: capset(2), version 3. */
struct cap_header { uint32_t version; int pid; };
struct cap_half { uint32_t effective, permitted, inheritable; };
static const struct cap_header security_cap_version = { 0x20080522, 0 };

/* The permitted set of this process, which is all that it can hand on. */
static uint64_t security_caps_permitted(void)
{
    struct cap_header head = security_cap_version;
    struct cap_half have[2] = { { 0, 0, 0 }, { 0, 0, 0 } };
    if (syscall(SYS_capget, &head, have) < 0) return 0;
    return (uint64_t)have[1].permitted << 32 | have[0].permitted;
}

/* The capabilities that a list names one by one, and all of them if "ALL" is in it. */
typedef struct { uint64_t named, all; } security_names;

static int security_sum(const char *field, const slice *names, size_t n, security_names *sum, error *e)
{
    *sum = (security_names){ 0, 0 };
    for (size_t i = 0; i < n; i++) {
        bool all = names[i].n == 3 && !strncasecmp((const char *)names[i].p, "ALL", 3);
        uint64_t bit = security_cap_bit(names[i]);
        if (!bit && !all) return fail(e, GRPC_INVALID_ARGUMENT, "%s: there is no capability \"%.*s\"", field, PR(names[i]));
        sum->named |= bit;
        if (all) sum->all = UINT64_MAX;
    }
    return 0;
}

/* What a container gets. `ALL` counts before single names, and a dropped name wins over an added one.
 * asked    NULL: the default set
 * Returns  -1: INVALID_ARGUMENT, a name that is none. Capabilities that krun itself does not have are
 *          left out: nobody can give what he has not (T53). */
static int security_caps_from_names(const Capability *asked, bool privileged, security_caps *out, error *e)
{
    security_names add = { 0, 0 }, drop = { 0, 0 }, ambient = { 0, 0 };
    *out = (security_caps){ 0, 0 };
    for (size_t i = 0; i < COUNT(security_cap_defaults); i++) out->set |= security_cap_bit(slice_of(security_cap_defaults[i]));
    if (asked && (security_sum("add_capabilities", asked->add_capabilities.p, asked->add_capabilities.n, &add, e) < 0 ||
                  security_sum("drop_capabilities", asked->drop_capabilities.p, asked->drop_capabilities.n, &drop, e) < 0 ||
                  security_sum("add_ambient_capabilities", asked->add_ambient_capabilities.p, asked->add_ambient_capabilities.n, &ambient, e) < 0))
        return -1;
    out->ambient = (ambient.all | ambient.named) & ~drop.named;
    out->set = (((out->set | add.all) & ~drop.all) | add.named | out->ambient) & ~drop.named;
    if (privileged) out->set = UINT64_MAX;
    out->set &= security_caps_permitted();
    out->ambient &= out->set;
    return 0;
}

/* Says once, when the daemon starts, what a root with fewer rights than usual cannot do. */
static void security_note_limits(void)
{
    if (!(security_caps_permitted() & security_cap_bit(SLICE("SYS_RESOURCE"))))
        log_warn("no CAP_SYS_RESOURCE: oom_score_adj is not lowered and hard resource limits are not raised");
}

/* -- what a process does to itself before it becomes the user's -------------------------------- */

/* Sets the score by a descriptor of /proc/self/oom_score_adj that was opened in the host's /proc
 * (CVE-2019-16884). Lowering takes CAP_SYS_RESOURCE: without it the score stays as it is. */
static int security_oom_score(int file, int64_t score, error *e)
{
    char text[24];
    int n = snprintf(text, sizeof text, "%" PRId64, score);
    if (!fd_is_on(file, 0x9fa0 /* PROC_SUPER_MAGIC */)) return fail(e, GRPC_INTERNAL, "oom_score_adj is not in /proc");
    if (write(file, text, (size_t)n) >= 0 || errno == EACCES) return 0;
    return fail_sys(e, GRPC_INVALID_ARGUMENT, "set oom_score_adj to %s", text);
}

/* Resource limits; a hard limit that we may not raise stays where it is. */
static int security_rlimits(const ProcessRlimit *limits, size_t n, error *e)
{
    for (size_t i = 0; i < n; i++) {
        struct rlimit now, want = { limits[i].soft, limits[i].hard };
        if (prlimit(0, limits[i].resource, NULL, &now) < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "rlimit %d", limits[i].resource);
        if (prlimit(0, limits[i].resource, &want, NULL) == 0) continue;
        want = (struct rlimit){ MIN(want.rlim_cur, now.rlim_max), MIN(want.rlim_max, now.rlim_max) };
        if (errno != EPERM || prlimit(0, limits[i].resource, &want, NULL) < 0)
            return fail_sys(e, GRPC_INVALID_ARGUMENT, "set rlimit %d to %" PRIu64 ":%" PRIu64, limits[i].resource, limits[i].soft, limits[i].hard);
    }
    return 0;
}

/* Groups, group, user, in the one order in which the right to do the next step is still there. By
 * bare system calls: libc's wrappers tell all threads, and a cloned child has a wrong list of them. */
static int security_ids(const ProcessUser *user, error *e)
{
    if (syscall(SYS_setgroups, user->groups.n, user->groups.p) < 0) return fail_sys(e, GRPC_INTERNAL, "setgroups (%zu groups)", user->groups.n);
    if (syscall(SYS_setresgid, user->gid, user->gid, user->gid) < 0) return fail_sys(e, GRPC_INTERNAL, "setgid %u", user->gid);
    if (syscall(SYS_setresuid, user->uid, user->uid, user->uid) < 0) return fail_sys(e, GRPC_INTERNAL, "setuid %u", user->uid);
    return 0;
}

/* Leaves us the capabilities in `caps`, and a program that we execute no chance of more. */
static int security_set_caps(security_caps caps, error *e)
{
    struct cap_header head = security_cap_version;
    struct cap_half sets[2];
    for (unsigned half = 0; half < 2; half++) {
        uint32_t set = (uint32_t)(caps.set >> 32 * half), ambient = (uint32_t)(caps.ambient >> 32 * half);
        sets[half] = (struct cap_half){ .effective = set, .permitted = set, .inheritable = ambient };
    }
    if (syscall(SYS_capset, &head, sets) < 0) return fail_sys(e, GRPC_INTERNAL, "capset %" PRIx64, caps.set);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "clear the ambient capabilities");
    for (unsigned long cap = 0; cap < 64; cap++)
        if (caps.ambient >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
            return fail_sys(e, GRPC_INTERNAL, "raise ambient capability %lu", cap);
    return 0;
}

/* Becomes the user of a container, with its capabilities and no way back: what comes after this runs
 * with the rights of the program to be executed. */
static int security_become(const ContainerSpec *spec, error *e)
{
    static const ProcessUser root;
    uint64_t set = spec->capabilities & security_caps_permitted();
    security_caps caps = { set, spec->ambient & set };
    for (unsigned long cap = 0; cap < 64; cap++) {
        if (caps.set >> cap & 1 || prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0) continue;
        if (errno == EINVAL) break; /* the kernel knows no more of them */
        return fail_sys(e, GRPC_INTERNAL, "drop capability %lu", cap);
    }
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "keep capabilities");
    if (security_ids(spec->user ? spec->user : &root, e) < 0 || security_set_caps(caps, e) < 0) return -1;
    if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "keep capabilities");
    if (spec->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "no_new_privs");
    return 0;
}

/* == 17. Namespaces and container init =======================================================
 *
 * The kernel has no containers. It has namespaces, each of which gives the processes in it another
 * answer to one question: what is mounted, which network interfaces are there, who has pid 1. A pod
 * is a network, a host name and an IPC namespace that its containers share; a container is a mount,
 * a PID and a cgroup namespace, and a process that clone3(2) starts in them. That process is krun
 * still, with all rights. It builds its world, gives up one right after the other, and in its last
 * system call becomes the user's program.
 *
 *   monitor --clone3--> child: tree, pivot_root, terminal, limits, ids, capabilities --> execve
 *      ^                  |
 *      '-- report --------'   a struct error if a step failed; "ready", then end of file: executed
 *
 * Between clone3 and execve the child stands where others may look at it: it is not dumpable, so that
 * no one can trace it or open its descriptors, and it keeps only those that it needs
 * (CVE-2016-9962); its program is krun's sealed memfd, not the file on disk (CVE-2019-5736).
 *
 * Defined by  namespaces(7), clone(2), setns(2), pidfd_open(2), unix(7), pty(7), execve(2)
 * Uses        1, 2, 9, 14, 16          Gives  sysctl_check, pod_unshare, init_clone, exec_clone, init_report
 * Bounds      arguments and environment 8 MiB, of which the kernel takes what its ARG_MAX allows */

/* clone3(2)'s argument; linux/sched.h cannot be included beside every libc's sched.h. */
struct k_clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#define K_CLONE_PIDFD UINT64_C(0x1000)
#define K_CLONE_INTO_CGROUP UINT64_C(0x200000000)

enum { INIT_MEMORY = 8 * MIB, INIT_FAILED = 128 /* exit code of a child that never became the program */ };
#define INIT_DEVPTS_MAGIC 0x1cd1 /* DEVPTS_SUPER_MAGIC, linux/magic.h */

/* -- sysctls of a pod -------------------------------------------------------------------------- */

/* The only ones that belong to a namespace of the pod; all others would change the host. */
static const struct { const char *name; bool prefix, network; } sysctl_allowed[] = {
    { "kernel.shm", true, false }, { "kernel.msg", true, false }, { "kernel.sem", false, false },
    { "fs.mqueue.", true, false }, { "net.", true, true },
};

/* Set in every pod with a network of its own, unless it says otherwise: ports below 1024 and ping need
 * no rights where nobody else has ports. As containerd does. */
static const struct { const char *name, *value; } sysctl_defaults[] = {
    { "net.ipv4.ip_unprivileged_port_start", "0" }, { "net.ipv4.ping_group_range", "0 2147483647" },
};

/* T48: a name is dotted words and nothing that could lead elsewhere, a value is one line. */
static int sysctl_check_one(const PodSpec *p, slice name, slice value, error *e)
{
    bool plain = name.n > 0 && name.n < 256 && !slice_ends(name, ".");
    for (size_t i = 0; i < name.n; i++)
        plain = plain && (isalnum(name.p[i]) || strchr("._-", name.p[i])) && name.p[i] && !(name.p[i] == '.' && i && name.p[i - 1] == '.');
    if (!plain) return fail(e, GRPC_INVALID_ARGUMENT, "sysctl \"%.*s\" is not a name of words and dots", PR(name));
    if (slice_has(value, '\n') || slice_has(value, '\r') || slice_has(value, 0) || value.n > KIB)
        return fail(e, GRPC_INVALID_ARGUMENT, "sysctl %.*s: the value is not one line", PR(name));
    for (size_t i = 0; i < COUNT(sysctl_allowed); i++) {
        const char *known = sysctl_allowed[i].name;
        if (sysctl_allowed[i].prefix ? !slice_starts(name, known) : !slice_is(name, known)) continue;
        if ((sysctl_allowed[i].network ? p->network : p->ipc) != NamespaceMode_NODE) return 0;
        return fail(e, GRPC_INVALID_ARGUMENT, "sysctl %.*s would change the host: the pod uses the host's %s namespace",
                    PR(name), sysctl_allowed[i].network ? "network" : "IPC");
    }
    return fail(e, GRPC_INVALID_ARGUMENT, "sysctl %.*s belongs to no namespace, so a pod cannot have its own", PR(name));
}

/* Whether the pod may set what it asks for: INVALID_ARGUMENT says which name or value is bad. */
static int sysctl_check(const PodSpec *p, error *e)
{
    for (size_t i = 0; i < p->sysctls.n; i++)
        if (sysctl_check_one(p, p->sysctls.p[i].key, p->sysctls.p[i].value, e) < 0) return -1;
    return 0;
}

/* Writes one below `base`, an open /proc/sys, without leaving it or meeting a link. */
static int sysctl_write(int base, slice name, slice value, error *e)
{
    char path[256];
    struct open_how how = { .flags = O_WRONLY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV };
    snprintf(path, sizeof path, "%.*s", PR(name));
    for (char *c = path; *c; c++)
        if (*c == '.') *c = '/';
    OWNED_FD file = (int)syscall(SYS_openat2, base, path, &how, sizeof how);
    if (file < 0) return fail_sys(e, errno == ENOENT ? GRPC_INVALID_ARGUMENT : GRPC_INTERNAL, "sysctl %.*s", PR(name));
    if (write(file, value.p, value.n) < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "set sysctl %.*s to \"%.*s\"", PR(name), PR(value));
    return 0;
}

/* Sets the pod's sysctls, in its namespaces: /proc/sys shows those of the process that opens a file. */
static int sysctl_apply(const PodSpec *p, error *e)
{
    error ignored;
    OWNED_FD base = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (base < 0 || !fd_is_on(base, ROOTFS_PROC_MAGIC)) return fail(e, GRPC_INTERNAL, "/proc/sys is not there");
    if (sysctl_check(p, e) < 0) return -1;
    for (size_t i = 0; i < COUNT(sysctl_defaults) && p->network != NamespaceMode_NODE; i++) /* a kernel without IPv4 has none */
        sysctl_write(base, slice_of(sysctl_defaults[i].name), slice_of(sysctl_defaults[i].value), &ignored);
    for (size_t i = 0; i < p->sysctls.n; i++)
        if (sysctl_write(base, p->sysctls.p[i].key, p->sysctls.p[i].value, e) < 0) return -1;
    return 0;
}

/* -- starting a child that reports ------------------------------------------------------------- */

/* A child on its way to execve. report: readable when there is news, see init_report. All three are
 * the caller's. */
typedef struct { int pidfd; pid_t pid; int report; bool ready; } init_started;

/* Tells the monitor how far we are: a step that failed, "ready" (code 0), or, with a descriptor beside
 * it, the terminal's other end. Nobody listens any more: then nobody is missed. */
static void init_tell(int report, const error *e, int fd)
{
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec data = { (void *)(uintptr_t)e, sizeof *e };
    struct msghdr msg = { .msg_iov = &data, .msg_iovlen = 1 };
    memset(&control, 0, sizeof control);
    if (fd >= 0) {
        control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
        msg.msg_control = &control;
        msg.msg_controllen = sizeof control.room;
    }
    sendmsg(report, &msg, MSG_NOSIGNAL);
}

/* What the child has to say, without waiting. Call it when s->report is readable.
 * terminal  gets the master of the container's terminal when it comes, the caller's; else untouched
 * Returns   1: the program runs (or has ended since). 0: not yet; call again. -1: it could not be
 *           started, *e says which step failed; its exit is still to be reaped */
static int init_report(init_started *s, int *terminal, error *e)
{
    for (;;) {
        error said = { 0 };
        union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control;
        struct iovec data = { &said, sizeof said };
        struct msghdr msg = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
        ssize_t n = recvmsg(s->report, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return 0;
        if (n < 0) return fail_sys(e, GRPC_INTERNAL, "read the report of a starting process");
        if (n == 0 && s->ready) return 1;
        if (n == 0) return fail(e, GRPC_ABORTED, "the process was killed while it was being set up");
        const struct cmsghdr *beside = CMSG_FIRSTHDR(&msg);
        if (beside && beside->cmsg_type == SCM_RIGHTS) memcpy(terminal, CMSG_DATA(beside), sizeof *terminal);
        else if (said.code) return *e = said, -1;
        else s->ready = true;
    }
}

/* clone3(2): in the child it returns 0. pidns >= 0: the child is born into that process's PID namespace;
 * our own children-to-be are put back to where we live, before anything else can be started. */
static pid_t init_fork(struct k_clone_args *how, int pidns, error *e)
{
    OWNED_FD home = pidns < 0 ? -1 : open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    if (pidns >= 0 && (home < 0 || setns(pidns, CLONE_NEWPID) < 0))
        return fail_sys(e, GRPC_FAILED_PRECONDITION, "enter the PID namespace of a process that may have ended");
    pid_t pid = (pid_t)syscall(SYS_clone3, how, sizeof *how);
    if (pid == 0) return 0;
    int why = errno, back = pidns < 0 ? 0 : setns(home, CLONE_NEWPID);
    assert(back == 0); /* else all that we start later would land in a container */
    (void)back;
    return pid > 0 ? pid : (errno = why, fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "clone3"));
}

/* Starts a child that reports. Returns 1 in the monitor with *out filled, 0 in the child with its end of
 * the report in out->report, -1 in the monitor on failure. */
static int init_start(uint64_t flags, int cgroup, int pidns, init_started *out, error *e)
{
    int ends[2];
    *out = (init_started){ .pidfd = -1, .report = -1 };
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "socketpair");
    OWNED_FD ours = ends[0], theirs = ends[1];
    struct k_clone_args how = { .flags = flags | K_CLONE_PIDFD | (cgroup < 0 ? 0 : K_CLONE_INTO_CGROUP),
                                .pidfd = (uint64_t)(uintptr_t)&out->pidfd, .exit_signal = SIGCHLD,
                                .cgroup = cgroup < 0 ? 0 : (uint64_t)cgroup };
    out->pid = init_fork(&how, pidns, e);
    if (out->pid < 0) return -1;
    out->report = out->pid ? give_fd(&ours) : give_fd(&theirs);
    if (out->pid) fault_point("init.clone");
    return out->pid != 0;
}

/* Keeps 0, 1, 2 and the descriptors listed (-1: none), which move to 3, 4, ...; closes all others, so
 * that nobody finds one of the monitor's in us. */
static int init_keep(int *const *keep, int n, error *e)
{
    for (int i = 0; i < n; i++) {
        if (*keep[i] < 0) continue;
        *keep[i] = fcntl(*keep[i], F_DUPFD_CLOEXEC, 3 + n);
        if (*keep[i] < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "keep a descriptor");
    }
    for (int i = 0; i < n; i++) {
        if (*keep[i] < 0) close(3 + i);
        else if (dup3(*keep[i], 3 + i, O_CLOEXEC) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "keep a descriptor");
        else *keep[i] = 3 + i;
    }
    return sys_close_range(3 + (unsigned)n, ~0U, 0) < 0 ? fail_sys(e, GRPC_INTERNAL, "close_range") : 0;
}

/* -- from krun to the user's program ----------------------------------------------------------- */

/* What is common to a container's first process and one that is executed in it later. */
typedef struct {
    const ContainerSpec *spec;
    const slice *args, *env, *more_env;
    size_t nargs, nenv, nmore_env;
    bool tty, first;  /* first: it is the container's own, and may make its working directory */
    int report, oom;  /* oom: /proc/self/oom_score_adj of the host's /proc */
    int dev;          /* the container's /dev if it is ours and `first`, else -1 */
    arena *memory;
} init_process;

static int init_stdio(const int from[3], error *e)
{
    for (int i = 0; i < 3; i++) {
        OWNED_FD null = from[i] < 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
        assert(from[i] < 0 || from[i] > 2);
        if (dup2(from[i] < 0 ? null : from[i], i) < 0) return fail_sys(e, GRPC_INTERNAL, "standard stream %d", i);
    }
    return 0;
}

/* The container's user can open its streams again by /dev/stdout and the like, whoever made them; the
 * null device stays root's. What cannot change its owner is as usable as before. */
static void init_own_stdio(const ContainerSpec *spec)
{
    struct stat st;
    uint32_t uid = spec->user ? spec->user->uid : 0;
    for (int i = 0; i < 3; i++)
        if (fstat(i, &st) == 0 && st.st_uid != uid && st.st_rdev != makedev(1, 3) && fchown(i, uid, (gid_t)-1) < 0) continue;
}

/* Opens a new terminal of the container's own devpts, and checks that it is one: what lies at /dev/pts
 * may be the container's work. The slave comes from the master itself (TIOCGPTPEER), never by a
 * path (CVE-2025-52565). Sends the master to the monitor; the slave becomes 0, 1, 2. */
static int init_terminal(const init_process *p, error *e)
{
    static const error none;
    struct open_how how = { .flags = O_RDWR | O_NOCTTY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV };
    int unlock = 0;
    OWNED_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), console = -1;
    OWNED_FD pts = open_inside(root, "/dev/pts", O_PATH | O_DIRECTORY, e);
    if (pts < 0) return -1;
    if (!fd_is_on(pts, INIT_DEVPTS_MAGIC)) return fail(e, GRPC_FAILED_PRECONDITION, "terminal: the container's /dev/pts is no devpts");
    OWNED_FD master = (int)syscall(SYS_openat2, pts, "ptmx", &how, sizeof how);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) < 0) return fail_sys(e, GRPC_INTERNAL, "terminal: open /dev/pts/ptmx");
    OWNED_FD slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0) return fail_sys(e, GRPC_INTERNAL, "terminal: open its other end");
    if (p->dev >= 0) { /* /dev/console is this terminal */
        OWNED_FD target = openat(p->dev, "console", O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (target < 0) return fail_sys(e, GRPC_INTERNAL, "make /dev/console");
        if ((console = mount_clone(slave, e)) < 0 || mount_place(console, target, "/dev/console", e) < 0) return -1;
    }
    if (ioctl(slave, TIOCSCTTY, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "terminal: make it the controlling one");
    for (int i = 0; i < 3; i++)
        if (dup2(slave, i) < 0) return fail_sys(e, GRPC_INTERNAL, "standard stream %d", i);
    init_tell(p->report, &none, master);
    return 0;
}

/* Goes to the working directory, wherever links of the image lead, but inside and through no magic link
 * of /proc: /proc/self/fd/7 could be a directory of the host (CVE-2024-21626). */
static int init_directory(const init_process *p, error *e)
{
    const char *path = p->spec->cwd.n ? arena_str(p->memory, p->spec->cwd) : "/";
    OWNED_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    OWNED_FD dir = open_inside(root, path, O_PATH | O_DIRECTORY, e);
    if (dir < 0 && p->first && e->code == GRPC_NOT_FOUND) dir = make_dir_inside(root, path, 0755, e);
    if (dir < 0) return fail_in(e, "working directory");
    if (p->spec->cwd.n && p->spec->cwd.p[0] != '/') return fail(e, GRPC_INVALID_ARGUMENT, "working directory \"%s\" is not absolute", path);
    return fchdir(dir) < 0 ? fail_sys(e, GRPC_INTERNAL, "working directory %s", path) : 0;
}

/* Becomes the container's user. The directory is entered first as root, so that an image whose WORKDIR
 * is /root starts with another user too, and else (a network file system that does not know root)
 * as the user. At the end it must be one that has a path here: the kernel says "(unreachable)" in
 * front of what lies outside our "/". */
static int init_become_user(const init_process *p, error *e)
{
    char here[PATH_MAX];
    bool there = init_directory(p, e) == 0;
    if (!there && e->sys != EACCES) return -1;
    if (security_become(p->spec, e) < 0) return -1;
    if (!there && init_directory(p, e) < 0) return -1;
    if (syscall(SYS_getcwd, here, sizeof here) < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "working directory");
    return here[0] == '/' ? 0 : fail(e, GRPC_INVALID_ARGUMENT, "the working directory is outside the container");
}

/* NULL-terminated strings from one or two lists; NULL and *e if one has a NUL in it. */
static char **init_vector(const slice *a, size_t na, const slice *b, size_t nb, arena *memory)
{
    char **v = arena_alloc(memory, (na + nb + 1) * sizeof *v);
    for (size_t i = 0; v && i < na + nb; i++) {
        slice s = i < na ? a[i] : b[i - na];
        if (slice_has(s, 0)) return NULL;
        v[i] = arena_str(memory, s);
    }
    return memory->oom ? NULL : v;
}

/* execve(2) with a search of the container's PATH for a name without a slash, as execvp(3) does it.
 * Comes back only on failure. */
static int init_execute(char **args, char **env, error *e)
{
    const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    char file[PATH_MAX];
    bool denied = false;
    if (strchr(args[0], '/')) {
        execve(args[0], args, env);
        return fail_sys(e, GRPC_UNKNOWN, "exec %s", args[0]);
    }
    for (char **v = env; *v; v++)
        if (!strncmp(*v, "PATH=", 5)) { path = *v + 5; break; }
    for (slice rest = slice_of(path); rest.n;) {
        slice dir = slice_cut(&rest, ':');
        if (snprintf(file, sizeof file, "%.*s/%s", PR(dir.n ? dir : SLICE(".")), args[0]) >= (int)sizeof file) continue;
        execve(file, args, env);
        denied = denied || errno == EACCES;
        if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) return fail_sys(e, GRPC_UNKNOWN, "exec %s", file);
    }
    if (denied) return errno = EACCES, fail_sys(e, GRPC_UNKNOWN, "exec %s", args[0]);
    fail(e, GRPC_UNKNOWN, "exec: \"%s\": executable file not found in $PATH", args[0]);
    return e->sys = ENOENT, -1;
}

/* Signals as a new program expects them: all at their default, none blocked. */
static void init_signals(void)
{
    struct sigaction normal = { .sa_handler = SIG_DFL };
    sigset_t none;
    for (int sig = 1; sig < 65; sig++) sigaction(sig, &normal, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The way of every process from "inside the container, as krun" to the user's program. Comes back only
 * on failure. */
static int init_finish(const init_process *p, error *e)
{
    static const error ready;
    char **args = init_vector(p->args, p->nargs, NULL, 0, p->memory);
    char **env = init_vector(p->env, p->nenv, p->more_env, p->nmore_env, p->memory);
    if (!args || !env) return fail(e, GRPC_INVALID_ARGUMENT, "an argument or variable has a NUL in it, or all are longer than 8 MiB");
    if (!p->nargs || !args[0][0]) return fail(e, GRPC_INVALID_ARGUMENT, "there is no command to execute");
    if (setsid() < 0) return fail_sys(e, GRPC_INTERNAL, "setsid");
    if (p->tty && init_terminal(p, e) < 0) return -1;
    init_own_stdio(p->spec);
    if (security_oom_score(p->oom, p->spec->oom_score_adj, e) < 0) return -1;
    if (security_rlimits(p->spec->rlimits.p, p->spec->rlimits.n, e) < 0) return -1;
    syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL); /* not the monitor's keys; kernels may lack it */
    if (init_become_user(p, e) < 0) return -1;
    init_signals();
    umask(p->spec->umask ? (mode_t)p->spec->umask : 0022);
    if (sys_close_range(3, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */) < 0) return fail_sys(e, GRPC_INTERNAL, "close_range");
    init_tell(p->report, &ready, -1);
    return init_execute(args, env, e);
}

/* -- a container's first process --------------------------------------------------------------- */

/* All are borrowed. */
typedef struct {
    const ContainerSpec *spec;
    int layers_dir, state_dir; /* root/layers; root/pods/<id>: containers/<cid>/{upper,work} are made below it */
    int stdio[3];              /* each >= 3, or -1 for /dev/null; not looked at with spec->tty */
    int cgroup;                /* the container's, or -1 */
    int pidns;                 /* pidfd of a process whose PID namespace it joins (pause, target), or -1 */
    int shm_ns;                /* pod_namespaces.shm_ns */
} init_args;

/* The child's part: builds its world and becomes the program, or says in *e why not. */
static int init_main(const init_args *a, int *report, error *e)
{
    arena memory = arena_make(INIT_MEMORY);
    rootfs tree = { .spec = a->spec, .layers_dir = a->layers_dir, .state_dir = a->state_dir, .shm_ns = a->shm_ns, .memory = &memory };
    init_process p = { .spec = a->spec, .args = a->spec->args.p, .nargs = a->spec->args.n, .env = a->spec->env.p,
                       .nenv = a->spec->env.n, .tty = a->spec->tty, .first = true, .memory = &memory };
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    umask(0);
    p.oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (!p.tty && init_stdio(a->stdio, e) < 0) return -1;
    if (init_keep((int *const[]){ report, &p.oom, &tree.layers_dir, &tree.state_dir, &tree.shm_ns }, 5, e) < 0) return -1;
    p.report = *report;
    /* Not by clone3: that would make the monitor's cgroup the namespace's root. Privileged containers
     * manage the host, and see its tree. */
    if (!a->spec->privileged && unshare(CLONE_NEWCGROUP) < 0) return fail_sys(e, GRPC_INTERNAL, "cgroup namespace");
    int root = rootfs_build(&tree, e);
    if (root < 0) return -1;
    p.dev = tree.dev;
    return rootfs_enter(root, a->spec->readonly_rootfs, e) < 0 ? -1 : init_finish(&p, e);
}

/* Starts a container's first process, in the namespaces that the caller is in and a mount, a cgroup and
 * (unless the container shares one) a PID namespace of its own. Returns when it exists; whether its
 * program could be executed is what init_report says. */
static int init_clone(const init_args *a, init_started *out, error *e)
{
    bool shared_pids = a->pidns >= 0 || a->spec->pid == NamespaceMode_NODE;
    int who = init_start((uint64_t)CLONE_NEWNS | (shared_pids ? 0 : CLONE_NEWPID), a->cgroup, a->pidns, out, e);
    if (who) return who < 0 ? -1 : 0;
    error why = { 0 };
    init_main(a, &out->report, &why);
    init_tell(out->report, &why, -1);
    _exit(INIT_FAILED);
}

/* -- a process in a container that runs -------------------------------------------------------- */

/* All are borrowed. */
typedef struct {
    const ContainerSpec *spec;
    const ExecSpec *exec;
    int target;   /* pidfd of the container's first process */
    int cgroup;   /* the exec's own, or -1 */
    int stdio[3]; /* as in init_args; not looked at with exec->tty */
} exec_args;

/* The child's part. It was born into the container's PID namespace; the others it joins here. */
static int exec_main(const exec_args *a, int *report, error *e)
{
    arena memory = arena_make(INIT_MEMORY);
    int target = a->target;
    init_process p = { .spec = a->spec, .args = a->exec->args.p, .nargs = a->exec->args.n, .env = a->spec->env.p, .nenv = a->spec->env.n,
                       .more_env = a->exec->env.p, .nmore_env = a->exec->env.n, .tty = a->exec->tty, .dev = -1, .memory = &memory };
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    p.oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (!p.tty && init_stdio(a->stdio, e) < 0) return -1;
    if (init_keep((int *const[]){ report, &p.oom, &target }, 3, e) < 0) return -1;
    p.report = *report;
    if (setns(target, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP) < 0)
        return fail_sys(e, GRPC_FAILED_PRECONDITION, "enter the container's namespaces");
    close(target);
    return init_finish(&p, e);
}

/* Starts a process in a running container, as the container's user and with its rights. Returns as
 * init_clone does. */
static int exec_clone(const exec_args *a, init_started *out, error *e)
{
    int who = init_start(0, a->cgroup, a->target, out, e);
    if (who) return who < 0 ? -1 : 0;
    error why = { 0 };
    exec_main(a, &out->report, &why);
    init_tell(out->report, &why, -1);
    _exit(INIT_FAILED);
}

/* -- a pod's namespaces ------------------------------------------------------------------------ */

/* What keeps them: the monitor's own membership; a process, where a PID namespace is shared; and for
 * the pod's /dev/shm a mount namespace in which nothing else is mounted. -1 where there is none.
 * All are the monitor's. */
typedef struct { int pause; pid_t pause_pid; int shm_ns; } pod_namespaces;

/* Brings up "lo": a new network namespace has it, but down. Any kind of socket does: netdevice(7). */
static int pod_loopback(error *e)
{
    struct ifreq lo = { .ifr_name = "lo" };
    OWNED_FD s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0 || ioctl(s, SIOCGIFFLAGS, &lo) < 0) return fail_sys(e, GRPC_INTERNAL, "find the loopback interface");
    lo.ifr_flags = (short)(lo.ifr_flags | IFF_UP);
    return ioctl(s, SIOCSIFFLAGS, &lo) < 0 ? fail_sys(e, GRPC_INTERNAL, "bring up the loopback interface") : 0;
}

/* Gives the network namespace that we are in a name on the host, for CNI plugins and for `ip netns`:
 * a file in /run/netns with the namespace mounted over it. The daemon takes it away again. */
static int pod_pin_network(const char *path, error *e)
{
    char dir[PATH_MAX], name[NAME_MAX + 1];
    if (!path_split(path, dir, name)) return fail(e, GRPC_INVALID_ARGUMENT, "network namespace: bad path \"%s\"", path);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "mkdir %s", dir);
    OWNED_FD file = open(path, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0444);
    if (file < 0) return fail_sys(e, GRPC_INTERNAL, "create %s", path);
    fault_point("init.netns.file");
    if (mount("/proc/self/ns/net", path, NULL, MS_BIND, NULL) == 0) return fault_point("init.netns"), 0;
    fail_sys(e, GRPC_INTERNAL, "mount the network namespace at %s", path);
    unlink(path);
    return -1;
}

/* Moves us into a new mount namespace whose only mount is an empty tmpfs. */
static int pod_empty_tree(const char *mode, int64_t size, error *e)
{
    char bytes[32];
    snprintf(bytes, sizeof bytes, "%" PRId64, size);
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return fail_sys(e, GRPC_INTERNAL, "mount namespace");
    OWNED_FD tree = mount_new("tmpfs", (const char *const[]){ "mode", mode, "size", bytes, NULL }, K_ATTR_NOSUID | K_ATTR_NODEV | K_ATTR_NOEXEC, e);
    OWNED_FD top = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (tree < 0 || mount_place(tree, top, "/", e) < 0) return -1;
    return rootfs_enter(tree, false, e);
}

/* Makes the pod's /dev/shm; returns the mount namespace of which it is the root. We are back in our own
 * when this returns. */
static int pod_make_shm(const PodSpec *p, error *e)
{
    OWNED_FD home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (home < 0 || proc < 0) return fail_sys(e, GRPC_INTERNAL, "open /proc");
    int done = pod_empty_tree("1777", p->shm_size > 0 ? p->shm_size : 64 * MIB, e);
    OWNED_FD made = done < 0 ? -1 : openat(proc, "self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (done == 0 && made < 0) fail_sys(e, GRPC_INTERNAL, "open the namespace of /dev/shm");
    int back = setns(home, CLONE_NEWNS);
    assert(back == 0); /* else the monitor would see no mounts of the host for ever */
    (void)back;
    return give_fd(&made);
}

/* Pid 1 of a shared PID namespace: inherits orphans, and by ignoring SIGCHLD has the kernel reap them.
 * Others in the namespace may look at it (with CAP_SYS_PTRACE): so it has an empty tree, no
 * descriptors and no rights. It dies with the monitor, and all in the namespace with it. */
static int pause_main(int report, error *e)
{
    sigset_t all;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    prctl(PR_SET_NAME, "krun-pause", 0, 0, 0);
    init_signals();
    signal(SIGCHLD, SIG_IGN);
    if (pod_empty_tree("555", 4 * KIB, e) < 0 || security_set_caps((security_caps){ 0, 0 }, e) < 0) return -1;
    sigfillset(&all);
    sigdelset(&all, SIGCHLD);
    sigprocmask(SIG_SETMASK, &all, NULL);
    init_tell(report, &(error){ 0 }, -1);
    sys_close_range(0, ~0U, 0);
    for (;;) pause();
}

/* Starts the pause process and waits until it is one: a millisecond, once a pod. */
static int pod_start_pause(int cgroup, pod_namespaces *out, error *e)
{
    init_started s;
    int terminal = -1, state = 0, who = init_start(CLONE_NEWPID, cgroup, -1, &s, e);
    if (who < 0) return -1;
    if (who == 0) {
        error why = { 0 };
        pause_main(s.report, &why);
        init_tell(s.report, &why, -1);
        _exit(INIT_FAILED);
    }
    OWNED_FD report = s.report, pidfd = s.pidfd;
    struct pollfd p = { .fd = report, .events = POLLIN };
    while (state == 0)
        if (poll(&p, 1, -1) > 0) state = init_report(&s, &terminal, e);
    if (state < 0) return reap(pidfd, 0), fail_in(e, "pause process");
    out->pause = give_fd(&pidfd);
    out->pause_pid = s.pid;
    return 0;
}

/* Takes the calling process, the pod's monitor, into the pod's namespaces and makes what belongs to them.
 * cgroup   an open cgroup without children for the pause process, or -1
 * Returns  -1 after which the process can only be ended: its namespaces end with it */
static int pod_unshare(const PodSpec *p, int cgroup, pod_namespaces *out, error *e)
{
    OWNED_ARENA a = arena_make(16 * KIB);
    bool own_network = p->network != NamespaceMode_NODE, own_ipc = p->ipc != NamespaceMode_NODE;
    *out = (pod_namespaces){ .pause = -1, .shm_ns = -1 };
    if (unshare((own_network ? CLONE_NEWNET | CLONE_NEWUTS : 0) | (own_ipc ? CLONE_NEWIPC : 0)) < 0)
        return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "new namespaces for the pod");
    fault_point("init.unshare");
    if (own_network && pod_loopback(e) < 0) return -1;
    if (own_network && p->hostname.n && sethostname((const char *)p->hostname.p, p->hostname.n) < 0)
        return fail_sys(e, GRPC_INVALID_ARGUMENT, "hostname \"%.*s\"", PR(p->hostname));
    if (sysctl_apply(p, e) < 0) return -1;
    if (own_network && p->netns.n && pod_pin_network(arena_str(&a, p->netns), e) < 0) return -1;
    if (own_ipc && (out->shm_ns = pod_make_shm(p, e)) < 0) return -1;
    return p->pid == NamespaceMode_POD ? pod_start_pause(cgroup, out, e) : 0;
}

/* == 18. Monitor =============================================================================
 *
 * A container must not die with the daemon that started it, so somebody else has to be its parent:
 * the monitor, one small process a pod. It holds the pod's namespaces, starts containers, is told
 * by the kernel when they end, copies what they print into log files and writes every exit code to
 * disk before anyone hears of it. The daemon asks it over a unix socket; when the daemon is
 * killed, crashes or is replaced, nothing here changes: the next one connects to the same socket.
 *
 * It is one thread and one event loop. Whatever could wait (a process, a pipe, a slow reader) is a
 * descriptor in that loop, so nothing that one container does delays another. Only a write to a
 * log file on a disk that hangs can stop it: such writes have no form that does not wait.
 *
 *   a container    STARTING --exec--> RUNNING --init ends--> ENDING --record on disk--> EXITED
 *                      \----a step fails, or it is killed------/
 *
 * A message on the socket is 4 bytes of length (little-endian) and a MonitorRequest or MonitorReply
 * (chapter 9). Descriptors travel beside the first byte (unix(7), SCM_RIGHTS).
 *
 * Defined by  clone3(2), pidfd_open(2), unix(7), pipe(7), cgroup-v2.rst; the log format: the
 *             Kubernetes design proposal "CRI: log management for container stdout/stderr streams"
 * Uses        1, 2, 8, 9, 15 (cgroups), 17 (init)
 * Gives       monitor_spawn, monitor_listen, monitor_connect, monitor_send, monitor_receive,
 *             monitor_call for the daemon; monitor_main, the role
 * Bounds      16 MiB a message; 16 KiB a log record; 1 MiB waiting for a slow watcher; 10 s for
 *             what outlives a container's first process */

enum {
    MONITOR_VERSION = 1,
    MONITOR_MESSAGE_MAX = 16 * MIB,
    MONITOR_FDS_MAX = 3,     /* an exec's stdin, stdout, stderr */
    MONITOR_LISTEN_FD = 3,   /* what the role finds open when it starts */
    MONITOR_STATE_FD = 4,
    MONITOR_LAYERS_FD = 5,
    MONITOR_CGROUP_FD = 6
};
#define MONITOR_CALL_PATIENCE (120 * NS_PER_SEC)
#define MONITOR_SEND_PATIENCE 10 /* seconds that a stopped monitor can hold up a connect or send */

/* -- both ends: frames ------------------------------------------------------------------------- */

/* Appends `msg` as a frame. */
static int monitor_frame(const pb_message *m, const void *msg, buf *out, error *e)
{
    size_t start = out->n;
    buf_add(out, "\0\0\0\0", 4);
    if (pb_encode(m, msg, out) < 0 || out->oom)
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory for a message");
    size_t n = out->n - start - 4;
    if (n > MONITOR_MESSAGE_MAX) return fail(e, GRPC_RESOURCE_EXHAUSTED, "monitor: a message of %zu bytes", n);
    for (int i = 0; i < 4; i++) out->p[start + (size_t)i] = (uint8_t)(n >> 8 * i);
    return 0;
}

static size_t monitor_frame_length(const uint8_t head[4])
{
    return (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
}

/* -- the daemon's end: blocking, a connection a call, from any thread ---------------------------- */

/* A unix address has room for 107 bytes of path (unix(7)); a --run directory may be deeper. So the
 * directory is opened and the socket named through it. Returns the directory, the caller's. */
static int monitor_address(const char *path, struct sockaddr_un *to, error *e)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    snprintf(dir, sizeof dir, "%.*s", slash ? (int)MIN(slash - path, PATH_MAX - 2) + 1 : 1, slash ? path : ".");
    OWNED_FD at = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) return fail_sys(e, GRPC_UNAVAILABLE, "monitor: open %s", dir);
    *to = (struct sockaddr_un){ .sun_family = AF_UNIX };
    int n = snprintf(to->sun_path, sizeof to->sun_path, "/proc/self/fd/%d/%s", at, name);
    if (n >= (int)sizeof to->sun_path) return fail(e, GRPC_INVALID_ARGUMENT, "monitor: socket name %s is too long", name);
    return give_fd(&at);
}

/* A socket that listens at `path`, for its owner only; one that was there is replaced. It listens
 * before there is a monitor, so that the first connect cannot come too early. */
static int monitor_listen(const char *path, error *e)
{
    struct sockaddr_un to;
    OWNED_FD dir = monitor_address(path, &to, e);
    if (dir < 0) return -1;
    OWNED_FD s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "monitor: socket");
    unlinkat(dir, strrchr(to.sun_path, '/') + 1, 0);
    fchmod(s, 0600); /* bind(2) gives the file the socket's mode: it is never open to others */
    if (bind(s, (struct sockaddr *)&to, sizeof to) < 0) return fail_sys(e, GRPC_INTERNAL, "monitor: bind %s", path);
    if (listen(s, 64) < 0) return fail_sys(e, GRPC_INTERNAL, "monitor: listen at %s", path);
    return give_fd(&s);
}

/* Connects to a monitor. UNAVAILABLE: there is none, or it does not answer. */
static int monitor_connect(const char *socket_path, error *e)
{
    struct sockaddr_un to;
    struct timeval patience = { .tv_sec = MONITOR_SEND_PATIENCE };
    OWNED_FD dir = monitor_address(socket_path, &to, e);
    if (dir < 0) return -1;
    OWNED_FD s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "monitor: socket");
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    while (connect(s, (struct sockaddr *)&to, sizeof to) < 0)
        if (errno != EINTR) return fail_sys(e, GRPC_UNAVAILABLE, "monitor: connect to %s", socket_path);
    return give_fd(&s);
}

/* One sendmsg(2): bytes, and descriptors beside the first of them (none: nfds is 0). */
static ssize_t monitor_send_some(int conn, slice bytes, const int *fds, int nfds)
{
    union { struct cmsghdr head; char room[CMSG_SPACE(MONITOR_FDS_MAX * sizeof(int))]; } control;
    struct iovec data = { (void *)(uintptr_t)bytes.p, bytes.n };
    struct msghdr msg = { .msg_iov = &data, .msg_iovlen = 1 };
    memset(&control, 0, sizeof control);
    if (nfds > 0) {
        size_t n = (size_t)nfds * sizeof *fds;
        control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(n), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.head), fds, n);
        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(n);
    }
    return sendmsg(conn, &msg, MSG_NOSIGNAL);
}

/* Sends a request with copies of `fds` (at most MONITOR_FDS_MAX). */
static int monitor_send(int conn, const MonitorRequest *request, const int *fds, int nfds, error *e)
{
    OWNED_BUF frame = { 0 };
    assert(nfds <= MONITOR_FDS_MAX);
    if (monitor_frame(&MonitorRequest_msg, request, &frame, e) < 0) return -1;
    for (slice rest = buf_view(&frame), done; rest.n;) {
        ssize_t n = monitor_send_some(conn, rest, fds, nfds);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_sys(e, GRPC_UNAVAILABLE, "monitor: send");
        slice_take(&rest, (size_t)n, &done);
        nfds = 0;
    }
    return 0;
}

/* How long monitor_receive waits: until `deadline` (monotonic, 0 for ever) or until `cancel_fd`
 * (-1: none) can be read. */
typedef struct { int cancel_fd; int64_t deadline; } monitor_wait;

/* Waits for conn to have bytes. CANCELLED, DEADLINE_EXCEEDED. */
static int monitor_await(int conn, const monitor_wait *w, error *e)
{
    struct pollfd p[2] = { { .fd = conn, .events = POLLIN }, { .fd = w->cancel_fd, .events = POLLIN } };
    for (;;) {
        int n = poll(p, 2, clock_poll_ms(w->deadline));
        if (n > 0 && p[0].revents) return 0;
        if (n > 0) return fail(e, GRPC_CANCELLED, "the call was cancelled");
        if (n < 0 && errno != EINTR) return fail_sys(e, GRPC_INTERNAL, "monitor: poll");
        if (w->deadline && clock_mono() >= w->deadline)
            return fail(e, GRPC_DEADLINE_EXCEEDED, "the pod's monitor did not answer in time");
    }
}

static int monitor_read(int conn, const monitor_wait *w, uint8_t *p, size_t n, error *e)
{
    for (size_t got = 0; got < n;) {
        if (monitor_await(conn, w, e) < 0) return -1;
        ssize_t more = recv(conn, p + got, n - got, MSG_DONTWAIT);
        if (more < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (more < 0) return fail_sys(e, GRPC_UNAVAILABLE, "monitor: receive");
        if (more == 0) return fail(e, GRPC_UNAVAILABLE, "the pod's monitor hung up");
        got += (size_t)more;
    }
    return 0;
}

/* Receives one reply into the arena, whatever its code. After CANCELLED or DEADLINE_EXCEEDED the
 * connection can still be read: cancelling counts only until the first byte of a reply is there. */
static int monitor_receive(int conn, const monitor_wait *w, arena *a, MonitorReply *reply, error *e)
{
    uint8_t head[4];
    monitor_wait rest = { -1, clock_mono() + MONITOR_CALL_PATIENCE };
    if (monitor_await(conn, w, e) < 0 || monitor_read(conn, &rest, head, 4, e) < 0) return -1;
    size_t n = monitor_frame_length(head);
    if (n > MONITOR_MESSAGE_MAX) return fail(e, GRPC_INTERNAL, "monitor: a reply of %zu bytes", n);
    uint8_t *body = arena_alloc(a, n);
    if (!body) return fail(e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory for a reply");
    if (monitor_read(conn, &rest, body, n, e) < 0) return -1;
    return pb_decode(&MonitorReply_msg, (slice){ body, n }, a, reply, e);
}

/* What a reply says went wrong, as our own error. */
static int monitor_verdict(const MonitorReply *reply, error *e)
{
    if (!reply->code) return 0;
    fail(e, reply->code, "%.*s", PR(reply->message));
    e->sys = reply->sys;
    return -1;
}

/* Asks and waits for the answer; a reply that says no is an error here. */
static int monitor_call(const char *socket_path, const MonitorRequest *request, arena *a, MonitorReply *reply, error *e)
{
    OWNED_FD conn = monitor_connect(socket_path, e);
    if (conn < 0 || monitor_send(conn, request, NULL, 0, e) < 0) return -1;
    monitor_wait w = { -1, clock_mono() + MONITOR_CALL_PATIENCE };
    if (monitor_receive(conn, &w, a, reply, e) < 0) return -1;
    return monitor_verdict(reply, e);
}

typedef struct {
    const char *pod_id;
    int listen_fd;   /* from monitor_listen */
    int state_dir;   /* root/pods/<id> */
    int layers_dir;  /* root/layers */
    int cgroup_root; /* the cgroup2 tree, or -1 on a machine without one */
    int home_cgroup; /* a cgroup2 directory for the monitor itself, outside the pod's; -1: stay */
} monitor_args;

/* Starts a pod's monitor from the sealed copy of krun. Returns its pidfd. Its session is its own,
 * so a terminal's ^C reaches the daemon alone; its environment is empty but for a fault that a
 * test asks of a monitor. */
static int monitor_spawn(const monitor_args *a, pid_t *pid, error *e)
{
    char fault[128];
    const char *wanted = getenv("KRUN_FAULT");
    bool ours = wanted && !strncmp(wanted, "monitor", 7);
    snprintf(fault, sizeof fault, "KRUN_FAULT=%s", ours ? wanted : "");
    char *argv[] = { "krun", "monitor", (char *)(uintptr_t)a->pod_id, NULL };
    char *envp[] = { ours ? fault : NULL, NULL };
    int fds[] = { -1, -1, STDERR_FILENO, a->listen_fd, a->state_dir, a->layers_dir, a->cgroup_root };
    spawn_args s = { .exec_fd = self_program(e), .argv = argv, .envp = envp, .fds = fds,
                     .nfds = COUNT(fds), .new_session = true };
    if (s.exec_fd < 0) return -1;
    OWNED_FD pidfd = spawn(&s, pid, e);
    if (pidfd < 0) return fail_in(e, "monitor of pod %.12s", a->pod_id);
    if (a->home_cgroup < 0) return give_fd(&pidfd);
    OWNED_FD procs = openat(a->home_cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    char number[16];
    int n = snprintf(number, sizeof number, "%d", (int)*pid);
    if (procs < 0 || write(procs, number, (size_t)n) < 0) /* it then lives in the daemon's: soft */
        log_warn("monitor of pod %.12s: cannot move it to its cgroup: %s", a->pod_id, strerror(errno));
    return give_fd(&pidfd);
}

/* -- what containers print: from pipes into log files -------------------------------------------- */

/* A record is "<time> <stdout|stderr> <P|F> <bytes>\n"; F ends a line, P is a part of one that goes
 * on. Only whole lines and full parts are written: what follows the last line end is held back
 * until more comes or the stream ends. */
enum {
    OUTPUT_PART = 16 * KIB,            /* the most bytes of a record, as containerd has it */
    OUTPUT_PREFIX = TIME_TEXT - 1 + 10, /* " stdout F " after the time */
    OUTPUT_HELD = OUTPUT_PART + 2,     /* a full part whose line end may be "\r\n" */
    OUTPUT_READ = 128 * KIB,
    OUTPUT_BLOCK = 256 * KIB,          /* records collected for one write(2) */
    OUTPUT_PIPE = MIB                  /* what a container can print while we do something else */
};
/* A stream that trickles is read at most once in this time, so that a program that prints line by
 * line costs one wake-up for many lines. */
#define OUTPUT_REST (1 * NS_PER_MS)
#define OUTPUT_SILENCE (2 * NS_PER_SEC)     /* after which the room's pages go back */
#define OUTPUT_COMPLAINT (60 * NS_PER_SEC)  /* between two complaints about one log */

/* Where all containers' output passes through, one read at a time: held bytes and what is read,
 * then the records. Mapped once; its pages are there only while something prints. */
typedef struct { loop *loop; uint8_t *in, *out; timer idle; int64_t used; } output_room;

enum { OUTPUT_ROOM = OUTPUT_HELD + OUTPUT_READ + OUTPUT_BLOCK };

struct output;
typedef struct {
    watch pipe; /* fd -1: there is none, or it has ended */
    struct output *owner;
    const char *name;
    uint8_t *held; /* malloc'ed; NULL when nheld is 0 */
    size_t nheld;
} output_stream;

/* A container's streams and the log that they go to. */
typedef struct output {
    output_room *room;
    output_stream streams[2]; /* stdout (or the terminal) and stderr */
    int log;                  /* -1: nobody wants it; it is read and forgotten */
    const char *id;           /* the container's, for messages */
    uint64_t lost;            /* bytes that could not be written */
    int64_t complained, last; /* when: last message about that; last read */
    timer rest;
    bool resting;
    void (*ended)(struct output *); /* the last stream has ended */
} output;

static void output_room_idle(timer *t)
{
    output_room *r = OWNER(t, output_room, idle);
    error e;
    if (clock_mono() - r->used < OUTPUT_SILENCE && loop_arm(r->loop, t, r->used + OUTPUT_SILENCE, &e) == 0) return;
    madvise(r->in, OUTPUT_ROOM, MADV_DONTNEED);
}

static int output_room_open(output_room *r, loop *l, error *e)
{
    void *p = mmap(NULL, OUTPUT_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "monitor: memory for logs");
    *r = (output_room){ .loop = l, .in = p, .out = (uint8_t *)p + OUTPUT_HELD + OUTPUT_READ, .idle.due = output_room_idle };
    return 0;
}

static void output_room_use(output_room *r)
{
    error e;
    r->used = clock_mono();
    if (!r->idle.slot) loop_arm(r->loop, &r->idle, r->used + OUTPUT_SILENCE, &e);
}

/* Splits `directory`/name at the directory that the kubelet has given. */
static int output_log_name(slice directory, slice path, slice *name, error *e)
{
    while (directory.n > 1 && directory.p[directory.n - 1] == '/') directory.n--;
    slice rest = path, head;
    bool below = slice_take(&rest, directory.n, &head) && slice_eq(head, directory) && rest.n > 1 && rest.p[0] == '/';
    if (!below || directory.p[0] != '/' || slice_has(path, '\0'))
        return fail(e, GRPC_INVALID_ARGUMENT, "log path %.*s is not below the log directory %.*s", PR(path), PR(directory));
    *name = (slice){ rest.p + 1, rest.n - 1 };
    return 0;
}

/* Opens a log, making it if need be. Pods can write to /var/log of the host when they are given it,
 * so neither the log directory nor anything below it may be a link, no ".." leads out, and what is
 * there must be a file: O_NONBLOCK keeps a planted FIFO from hanging us (CVE-2025-0750). */
static int output_open_log(slice directory, slice path, error *e)
{
    slice name;
    char text[PATH_MAX];
    struct stat st;
    if (output_log_name(directory, path, &name, e) < 0) return -1;
    while (directory.n > 1 && directory.p[directory.n - 1] == '/') directory.n--; /* a link's "x/" is followed */
    snprintf(text, sizeof text, "%.*s", PR(directory));
    OWNED_FD top = open(text, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (top < 0) return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : GRPC_INTERNAL, "open log directory %s", text);
    snprintf(text, sizeof text, "./%.*s", PR(name));
    char *leaf = strrchr(text, '/');
    *leaf++ = '\0';
    struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS };
    OWNED_FD dir = (int)syscall(SYS_openat2, top, text, &how, sizeof how);
    if (dir < 0) return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : GRPC_INVALID_ARGUMENT, "open the directory of log %.*s", PR(path));
    OWNED_FD log = openat(dir, leaf, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0640);
    if (log < 0) return fail_sys(e, errno == ELOOP ? GRPC_INVALID_ARGUMENT : GRPC_INTERNAL, "open log %.*s", PR(path));
    if (fstat(log, &st) < 0 || !S_ISREG(st.st_mode)) return fail(e, GRPC_INVALID_ARGUMENT, "log %.*s is not a regular file", PR(path));
    return give_fd(&log);
}

/* How many bytes at the front of `in` make the next record; 0: more must come first. `end`: no more
 * will. A line end, also "\r\n", is not part of the content. */
static size_t output_next(slice in, bool end, size_t *content, bool *whole)
{
    const uint8_t *line = in.n ? memchr(in.p, '\n', MIN(in.n, (size_t)OUTPUT_HELD)) : NULL;
    if (line) {
        size_t n = (size_t)(line - in.p);
        *content = n && line[-1] == '\r' ? n - 1 : n;
        *whole = true;
        if (*content <= OUTPUT_PART) return n + 1;
    }
    *whole = false;
    *content = MIN(in.n, (size_t)OUTPUT_PART);
    bool may_end_here = in.n == OUTPUT_PART || (in.n == OUTPUT_PART + 1 && in.p[OUTPUT_PART] == '\r');
    if (end || (in.n > OUTPUT_PART && !may_end_here)) return *content;
    return 0;
}

/* Whether a line on stderr, which may be the daemon's full pipe, can be written without waiting. */
static bool monitor_can_log(void)
{
    struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };
    return poll(&p, 1, 0) == 1 && (p.revents & POLLOUT);
}
#define monitor_warn(...) (monitor_can_log() ? log_warn(__VA_ARGS__) : (void)0)

/* `done` bytes of a block are in the log, the rest did not fit. Takes the half record at the end
 * back out, so that what is written when there is room again starts on a line of its own. Returns
 * how many bytes are lost. */
static size_t output_untear(int log, slice block, size_t done)
{
    const uint8_t *line = done ? memrchr(block.p, '\n', done) : NULL;
    size_t kept = line ? (size_t)(line - block.p) + 1 : 0;
    struct stat st;
    if (kept < done && fstat(log, &st) == 0 && st.st_size >= (off_t)(done - kept)
        && ftruncate(log, st.st_size - (off_t)(done - kept)) < 0) kept = done;
    return block.n - kept;
}

/* Writes records to the log. A container is never stopped for the sake of its log: what the disk
 * does not take is dropped and counted, and the next block is tried again. */
static void output_write(output *o, slice block)
{
    size_t done = 0;
    while (done < block.n) {
        ssize_t n = write(o->log, block.p + done, block.n - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (done == block.n) return;
    int why = errno;
    o->lost += output_untear(o->log, block, done);
    if (o->complained && clock_mono() - o->complained < OUTPUT_COMPLAINT) return;
    o->complained = clock_mono();
    monitor_warn("container %.12s: its log cannot be written, %" PRIu64 " bytes are lost so far: %s", o->id, o->lost, strerror(why));
}

/* Writes the records of `in` and returns what is left of it for the next time. */
static slice output_records(output_stream *s, slice in, bool end)
{
    output *o = s->owner;
    uint8_t *out = o->room->out;
    char prefix[OUTPUT_PREFIX + 1];
    size_t n = 0, used, content;
    bool whole;
    clock_text(clock_wall(), prefix);
    snprintf(prefix + TIME_TEXT - 1, sizeof prefix - TIME_TEXT + 1, " %s F ", s->name);
    for (slice done; (used = output_next(in, end, &content, &whole));) {
        if (OUTPUT_BLOCK - n < OUTPUT_PREFIX + content + 1) {
            output_write(o, (slice){ out, n });
            n = 0;
        }
        memcpy(out + n, prefix, OUTPUT_PREFIX);
        if (!whole) out[n + OUTPUT_PREFIX - 2] = 'P';
        memcpy(out + n + OUTPUT_PREFIX, in.p, content);
        n += OUTPUT_PREFIX + content;
        out[n++] = '\n';
        slice_take(&in, used, &done);
    }
    if (n) output_write(o, (slice){ out, n });
    return in;
}

static void output_hold(output_stream *s, slice rest)
{
    uint8_t *held = rest.n ? malloc(rest.n) : NULL;
    if (held) memcpy(held, rest.p, rest.n);
    else s->owner->lost += rest.n;
    free(s->held);
    s->held = held;
    s->nheld = held ? rest.n : 0;
}

/* The stream has ended: an unfinished line is written as it is. */
static void output_end(output_stream *s)
{
    output *o = s->owner;
    if (s->pipe.fd < 0) return;
    loop_forget(o->room->loop, &s->pipe);
    close_fd(&s->pipe.fd);
    s->pipe.fd = -1;
    if (o->log >= 0 && s->nheld) output_records(s, (slice){ s->held, s->nheld }, true);
    output_hold(s, (slice){ NULL, 0 });
}

/* One read(2) of what is there. A terminal says EIO when its last user has gone: pty(7). */
static size_t output_read(output_stream *s)
{
    output_room *room = s->owner->room;
    if (s->pipe.fd < 0) return 0;
    if (s->nheld) memcpy(room->in, s->held, s->nheld);
    ssize_t n = read(s->pipe.fd, room->in + s->nheld, OUTPUT_READ);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) {
        output_end(s);
        return 0;
    }
    if (s->owner->log >= 0) output_hold(s, output_records(s, (slice){ room->in, s->nheld + (size_t)n }, false));
    return (size_t)n;
}

static bool output_is_open(const output *o) { return o->streams[0].pipe.fd >= 0 || o->streams[1].pipe.fd >= 0; }

static void output_watch(output *o, uint32_t events)
{
    for (size_t i = 0; i < COUNT(o->streams); i++)
        if (o->streams[i].pipe.fd >= 0) loop_rewatch(o->room->loop, &o->streams[i].pipe, events);
}

static void output_rested(timer *t)
{
    output *o = OWNER(t, output, rest);
    o->resting = false;
    output_watch(o, EPOLLIN);
}

/* Both streams are read whichever it was, so that their lines keep an order close to the true one;
 * records of one read have one time. */
static void output_ready(watch *w, uint32_t events)
{
    output *o = OWNER(w, output_stream, pipe)->owner;
    error e;
    (void)events;
    output_room_use(o->room);
    size_t got = output_read(&o->streams[0]) + output_read(&o->streams[1]);
    if (!output_is_open(o)) {
        o->ended(o);
        return;
    }
    bool trickles = got < OUTPUT_READ / 4 && o->room->used - o->last < 2 * OUTPUT_REST;
    o->last = o->room->used;
    if (!trickles || o->resting || loop_arm(o->room->loop, &o->rest, o->last + OUTPUT_REST, &e) < 0) return;
    o->resting = true;
    output_watch(o, 0);
}

static void output_init(output *o, output_room *room, const char *id, void (*ended)(output *))
{
    static const char *const names[] = { "stdout", "stderr" };
    *o = (output){ .room = room, .log = -1, .id = id, .rest.due = output_rested, .ended = ended };
    for (size_t i = 0; i < COUNT(o->streams); i++)
        o->streams[i] = (output_stream){ .pipe = { -1, output_ready }, .owner = o, .name = names[i] };
}

/* Begins to copy from `fd`, a pipe's or a terminal's end, which is the output's from now on. */
static int output_add(output *o, size_t which, int fd, error *e)
{
    output_stream *s = &o->streams[which];
    fcntl(fd, F_SETFL, O_NONBLOCK | fcntl(fd, F_GETFL));
    s->pipe.fd = fd;
    if (loop_watch(o->room->loop, &s->pipe, EPOLLIN, e) == 0) return 0;
    close_fd(&s->pipe.fd);
    return s->pipe.fd = -1;
}

/* A pipe from a container: its writing end comes back, the caller's. */
static int output_pipe(output *o, size_t which, error *e)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "pipe for a container's output");
    OWNED_FD writer = ends[1];
    fcntl(writer, F_SETPIPE_SZ, OUTPUT_PIPE); /* soft: the kernel bounds a user's pipe pages */
    return output_add(o, which, ends[0], e) < 0 ? -1 : give_fd(&writer);
}

/* Ends the streams, taking what is in the pipes now. The log stays open. */
static void output_finish(output *o)
{
    output_room_use(o->room);
    loop_disarm(o->room->loop, &o->rest);
    for (size_t i = 0; i < COUNT(o->streams); i++) {
        for (int reads = 0; reads < 8 && output_read(&o->streams[i]); reads++) {}
        output_end(&o->streams[i]);
    }
}

/* -- the role ------------------------------------------------------------------------------------ */

#define MONITOR_DRAIN (10 * NS_PER_SEC) /* what we wait for pipes and processes once init is gone */
#define MONITOR_BREATH (100 * NS_PER_MS)
enum { MONITOR_BACKLOG = MIB };         /* replies that a connection has not read */

enum monitored_phase { MONITORED_STARTING, MONITORED_RUNNING, MONITORED_ENDING, MONITORED_EXITED };

typedef struct monitor monitor;
typedef struct monitor_conn monitor_conn;

/* A container. Its texts lie in `memory`. */
typedef struct monitored {
    monitor *owner;
    struct monitored *next;
    enum monitored_phase phase;
    ContainerExit exit;       /* what is known of it so far */
    init_started init;        /* pid; the pipe that tells whether exec was reached */
    watch process, report, emptied; /* pidfd of its init; init.report; cgroup.events while ENDING */
    error failure;            /* of a start: code 0 if there was none */
    monitor_conn *asker;      /* waits for the answer to START */
    output output;
    timer patience;           /* while ENDING */
    int input;                /* what its stdin reads from, or -1 */
    int cgroup;
    slice cgroup_path, log_directory, log_path;
    buf spec;                 /* its ContainerSpec on the wire, for execs */
    unsigned execs;           /* how many there have been: the next one's number */
    buf lingering;            /* numbers (unsigned) of exec cgroups that still have processes */
    arena memory;
} monitored;

/* A program that runs in a container beside its own. */
typedef struct monitor_exec {
    monitor *owner;
    struct monitor_exec *next;
    monitored *container; /* NULL: ended before us */
    monitor_conn *asker;  /* NULL: hung up */
    init_started init;
    watch process, report;
    error failure;
    int cgroup;
    unsigned number;
} monitor_exec;

/* A connection. One request at a time: while it is busy nothing is read from it. */
struct monitor_conn {
    watch socket;
    monitor *owner;
    struct monitor_conn *next;
    buf in, out;
    int fds[MONITOR_FDS_MAX], nfds; /* that came with the request */
    bool busy, watching, ended;     /* ended: they send no more, but may still read */
};

struct monitor {
    loop loop;
    output_room room;
    watch listener, pause; /* pause: the pidfd of the pod's PID namespace's init, or -1 */
    int state_dir, layers_dir;
    cg_tree cgroups; /* root -1: none */
    pod_namespaces namespaces;
    slice pause_cgroup; /* malloc'ed, NUL-terminated */
    bool is_set_up;
    monitored *containers;
    monitor_exec *execs;
    monitor_conn *conns, *closing; /* closing: who asked for SHUTDOWN */
    bool shutting;
    timer breath; /* until we accept again */
};

static void monitor_forget(monitor *m, watch *w)
{
    if (w->fd < 0) return;
    loop_forget(&m->loop, w);
    close_fd(&w->fd);
    w->fd = -1;
}

/* Reaps a child that is known to have ended: 128 + n for signal n, as shells count. */
static int monitor_reap(int pidfd) { return reap(pidfd, 0); }

/* -- connections --------------------------------------------------------------------------------- */

static void monitor_conn_mood(monitor_conn *c) /* what we wait for on it now */
{
    uint32_t in = c->busy || c->ended ? 0 : EPOLLIN;
    loop_rewatch(&c->owner->loop, &c->socket, in | (c->ended ? 0 : EPOLLRDHUP) | (c->out.n ? EPOLLOUT : 0));
}

/* Sends what can be sent. A connection that is broken, or whose reader is too far behind, is shut
 * down here and dropped when the loop says so: nobody's pointer to it goes stale in between. */
static void monitor_conn_flush(monitor_conn *c)
{
    while (c->out.n) {
        ssize_t n = send(c->socket.fd, c->out.p, c->out.n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN && c->out.n <= MONITOR_BACKLOG && !c->out.oom) break;
        if (n < 0) shutdown(c->socket.fd, SHUT_RDWR);
        buf_drop(&c->out, n < 0 ? c->out.n : (size_t)n);
    }
    if (!c->out.n) buf_free(&c->out);
    if (!c->out.n && c == c->owner->closing) loop_stop(&c->owner->loop);
    monitor_conn_mood(c);
}

static void monitor_send_reply(monitor_conn *c, MonitorReply *reply)
{
    error e;
    if (!c) return;
    reply->version = MONITOR_VERSION;
    if (monitor_frame(&MonitorReply_msg, reply, &c->out, &e) < 0) shutdown(c->socket.fd, SHUT_RDWR);
    monitor_conn_flush(c);
}

/* Answers the request that the connection is busy with; c may be gone (NULL). */
static void monitor_answer(monitor_conn *c, MonitorReply *reply)
{
    if (c) c->busy = false;
    monitor_send_reply(c, reply);
}

static void monitor_refuse(monitor_conn *c, const error *e)
{
    monitor_answer(c, &(MonitorReply){ .code = e->code, .sys = e->sys, .message = slice_of(e->text) });
}

/* -- containers: what is known of them ------------------------------------------------------------ */

static monitored *monitored_find(monitor *m, slice id)
{
    monitored *k = m->containers;
    while (k && !slice_eq(k->exit.id, id)) k = k->next;
    return k;
}

static ContainerRun monitored_run(monitored *k)
{
    static const int32_t states[] = {
        [MONITORED_STARTING] = ContainerState_CONTAINER_CREATED,
        [MONITORED_RUNNING] = ContainerState_CONTAINER_RUNNING,
        [MONITORED_ENDING] = ContainerState_CONTAINER_RUNNING, /* until its record is on disk */
        [MONITORED_EXITED] = ContainerState_CONTAINER_EXITED,
    };
    bool exited = k->phase == MONITORED_EXITED, created = k->exit.started_at == 0 && !exited;
    return (ContainerRun){ .id = k->exit.id, .pid = exited ? 0 : k->init.pid, .started_at = k->exit.started_at,
                           .state = created ? ContainerState_CONTAINER_CREATED : states[k->phase],
                           .exit = exited ? &k->exit : NULL };
}

static void monitored_tell(monitored *k) /* all that watch the pod */
{
    ContainerRun run = monitored_run(k);
    for (monitor_conn *c = k->owner->conns; c; c = c->next)
        if (c->watching) monitor_send_reply(c, &(MonitorReply){ .containers = { &run, 1 } });
}

/* Answers with the state of every container. */
static void monitor_answer_all(monitor *m, monitor_conn *c)
{
    size_t n = 0;
    for (monitored *k = m->containers; k; k = k->next) n++;
    ContainerRun *runs = calloc(n + 1, sizeof *runs);
    error e;
    if (!runs) {
        fail(&e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory");
        monitor_refuse(c, &e);
        return;
    }
    n = 0;
    for (monitored *k = m->containers; k; k = k->next) runs[n++] = monitored_run(k);
    monitor_answer(c, &(MonitorReply){ .containers = { runs, n }, .pause_pid = m->namespaces.pause_pid });
    free(runs);
}

static void monitored_free(monitored *k)
{
    monitored **at = &k->owner->containers;
    while (*at != k) at = &(*at)->next;
    *at = k->next;
    buf_free(&k->lingering);
    arena_free(&k->memory);
    free(k);
}

/* Forgets containers whose directory the daemon has removed. Done at each START, so that a pod
 * whose container restarts for years does not grow. */
static void monitor_forget_removed(monitor *m)
{
    char path[96];
    for (monitored *k = m->containers, *next; k; k = next) {
        next = k->next;
        snprintf(path, sizeof path, "containers/%.*s", PR(k->exit.id));
        if (k->phase == MONITORED_EXITED && faccessat(m->state_dir, path, F_OK, 0) < 0 && errno == ENOENT) monitored_free(k);
    }
}

/* -- the end of a container ----------------------------------------------------------------------- */

static void monitored_kill(monitored *k)
{
    error e;
    if (k->cgroup >= 0 && cg_kill(k->cgroup, &e) < 0) monitor_warn("container %.12s: %s", k->output.id, e.text);
    if (k->process.fd >= 0) sys_pidfd_kill(k->process.fd, SIGKILL);
}

static void monitor_exec_kill(monitor_exec *x)
{
    error e;
    if (x->cgroup >= 0 && cg_kill(x->cgroup, &e) < 0) monitor_warn("exec: %s", e.text);
    if (x->process.fd >= 0) sys_pidfd_kill(x->process.fd, SIGKILL);
}

/* Ends the monitor once there is nothing left to watch: everything is dead and its record written,
 * the answer is sent, then the loop stops. */
static void monitor_try_close(monitor *m)
{
    char path[PATH_MAX];
    error e;
    if (!m->shutting || m->execs) return;
    for (monitored *k = m->containers; k; k = k->next)
        if (k->phase != MONITORED_EXITED) return;
    if (m->pause.fd >= 0) {
        sys_pidfd_kill(m->pause.fd, SIGKILL);
        reap(m->pause.fd, clock_mono() + MONITOR_DRAIN);
        monitor_forget(m, &m->pause);
    }
    snprintf(path, sizeof path, "%.*s", PR(m->pause_cgroup));
    if (path[0] && cg_remove(&m->cgroups, path, &e) < 0) monitor_warn("%s", e.text);
    if (m->closing) monitor_answer_all(m, m->closing);
    else loop_stop(&m->loop);
}

/* Writes the exit record: in the container's directory, as JSON that a person can read. When the
 * disk does not take it we tell what we know all the same: who asks again is told again. */
static void monitored_record(monitored *k)
{
    char path[96];
    error e;
    OWNED_BUF text = { 0 };
    snprintf(path, sizeof path, "containers/%.*s", PR(k->exit.id));
    pb_write_json(&ContainerExit_msg, &k->exit, true, &text);
    OWNED_FD dir = openat(k->owner->state_dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fault_point("monitor.exit");
    if (dir < 0 || text.oom) fail_sys(&e, GRPC_INTERNAL, "open %s", path);
    else if (file_replace(dir, "exit", buf_view(&text), ATOMIC, &e) == 0) return;
    monitor_warn("container %.12s: exit record: %s", k->output.id, e.text);
}

static void monitored_reason(monitored *k)
{
    ContainerExit *x = &k->exit;
    x->oom_killed = k->cgroup >= 0 && cg_oom_kills(k->cgroup) > 0 && x->exit_code != 0;
    x->reason = x->oom_killed ? SLICE("OOMKilled") : x->exit_code ? SLICE("Error") : SLICE("Completed");
    if (!k->failure.code) return;
    x->exit_code = 128; /* as containerd has it */
    x->reason = SLICE("StartError");
    x->message = arena_copy(&k->memory, slice_of(k->failure.text));
}

static void monitored_end_cgroup(monitored *k)
{
    error e;
    monitor_forget(k->owner, &k->emptied);
    if (k->cgroup < 0) return;
    close_fd(&k->cgroup);
    k->cgroup = -1;
    if (cg_remove(&k->owner->cgroups, (const char *)k->cgroup_path.p, &e) < 0)
        monitor_warn("container %.12s: %s", k->output.id, e.text);
}

/* ENDING -> EXITED. First the record, then the log's close (who follows the log asks for the state
 * when it is closed), then the answers. */
static void monitored_exit(monitored *k)
{
    monitor *m = k->owner;
    loop_disarm(&m->loop, &k->patience);
    output_finish(&k->output);
    monitored_reason(k);
    monitored_end_cgroup(k);
    close_fd(&k->input);
    k->input = -1;
    buf_free(&k->lingering);
    buf_free(&k->spec);
    for (monitor_exec *x = m->execs; x; x = x->next)
        if (x->container == k) x->container = NULL;
    monitored_record(k);
    fault_point("monitor.recorded");
    k->phase = MONITORED_EXITED;
    close_fd(&k->output.log);
    k->output.log = -1;
    monitored_tell(k);
    ContainerRun run = monitored_run(k);
    const error *why = &k->failure;
    if (k->asker)
        monitor_answer(k->asker, &(MonitorReply){ .code = why->code, .sys = why->sys, .message = slice_of(why->text),
                                                  .containers = { &run, 1 } });
    k->asker = NULL;
    monitor_try_close(m);
}

/* Goes on to EXITED as soon as nothing of the container is left: its pipes have been read to the
 * end and its cgroup is empty. What cannot die (a process in a hung disk access) or was given the
 * pipe by someone outside is not waited for longer than MONITOR_DRAIN. */
static void monitored_settle(monitored *k)
{
    bool over = clock_mono() >= k->patience.at, full = k->cgroup >= 0 && cg_populated(k->cgroup) == 1;
    if (k->phase != MONITORED_ENDING) return;
    if (over || (!full && !output_is_open(&k->output))) monitored_exit(k);
}

static void monitored_drained(output *o) { monitored_settle(OWNER(o, monitored, output)); }
static void monitored_impatient(timer *t) { monitored_settle(OWNER(t, monitored, patience)); }

/* cgroup.events has changed (cgroup-v2.rst, "populated"): reading it arms the next notice. */
static void monitored_emptied(watch *w, uint32_t events)
{
    char text[256];
    (void)events;
    ssize_t n = pread(w->fd, text, sizeof text, 0);
    (void)n;
    monitored_settle(OWNER(w, monitored, emptied));
}

/* -> ENDING: its first process has ended, or was never made. What else is in the cgroup goes now:
 * a container is its init, and in a PID namespace of its own the kernel has killed the rest. */
static void monitored_ending(monitored *k)
{
    error e;
    k->phase = MONITORED_ENDING;
    k->exit.finished_at = clock_wall();
    k->patience.at = clock_mono() + MONITOR_DRAIN;
    for (monitor_exec *x = k->owner->execs; x; x = x->next)
        if (x->container == k) monitor_exec_kill(x);
    if (k->cgroup >= 0 && cg_populated(k->cgroup) == 1) {
        monitored_kill(k);
        k->emptied.fd = openat(k->cgroup, "cgroup.events", O_RDONLY | O_CLOEXEC);
        if (k->emptied.fd >= 0 && loop_watch(&k->owner->loop, &k->emptied, EPOLLPRI, &e) < 0) k->patience.at = 0;
    }
    if (loop_arm(&k->owner->loop, &k->patience, k->patience.at, &e) < 0) k->patience.at = 0;
    monitored_settle(k);
}

/* -- the start of a container --------------------------------------------------------------------- */

/* STARTING -> RUNNING, or the failed step is noted; its process then ends by itself. */
static void monitored_reported(watch *w, uint32_t events)
{
    monitored *k = OWNER(w, monitored, report);
    int terminal = -1;
    error e;
    (void)events;
    int done = init_report(&k->init, &terminal, &k->failure);
    if (terminal >= 0 && output_add(&k->output, 0, terminal, &e) < 0) monitor_warn("container %.12s: terminal: %s", k->output.id, e.text);
    if (done == 0) return;
    monitor_forget(k->owner, &k->report);
    if (done < 0) return;
    k->phase = MONITORED_RUNNING;
    k->exit.started_at = clock_wall();
    monitored_tell(k);
    ContainerRun run = monitored_run(k); /* the asker hears it too, and need not wait for the watch */
    monitor_answer(k->asker, &(MonitorReply){ .pid = k->init.pid, .containers = { &run, 1 } });
    k->asker = NULL;
}

/* Its init has ended. What it reported before is in the pipe still. */
static void monitored_died(watch *w, uint32_t events)
{
    monitored *k = OWNER(w, monitored, process);
    if (k->report.fd >= 0) monitored_reported(&k->report, events);
    k->exit.exit_code = monitor_reap(k->process.fd);
    monitor_forget(k->owner, &k->process);
    if (k->report.fd >= 0) fail(&k->failure, GRPC_INTERNAL, "the container's first process was killed while it was set up");
    monitor_forget(k->owner, &k->report);
    monitored_ending(k);
}

static monitored *monitored_new(monitor *m, const ContainerSpec *s, error *e)
{
    monitored *k = calloc(1, sizeof *k);
    if (!k) return fail(e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory for a container"), NULL;
    *k = (monitored){ .owner = m, .next = m->containers, .input = -1, .cgroup = -1, .memory = arena_make(MIB),
                      .process = { -1, monitored_died }, .report = { -1, monitored_reported },
                      .emptied = { -1, monitored_emptied }, .patience.due = monitored_impatient };
    k->exit.id = arena_copy(&k->memory, s->id);
    k->cgroup_path = arena_copy(&k->memory, s->cgroup);
    k->log_directory = arena_copy(&k->memory, s->log_directory);
    k->log_path = arena_copy(&k->memory, s->log_path);
    if (k->memory.oom || pb_encode(&ContainerSpec_msg, s, &k->spec) < 0) {
        arena_free(&k->memory);
        buf_free(&k->spec);
        free(k);
        return fail(e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory for a container"), NULL;
    }
    output_init(&k->output, &m->room, (const char *)k->exit.id.p, monitored_drained);
    return m->containers = k;
}

static int monitored_enter_cgroup(monitored *k, const ContainerSpec *s, error *e)
{
    cg_tree *tree = &k->owner->cgroups;
    if (tree->root < 0 || !k->cgroup_path.n) return 0;
    tree->ignore_missing = s->ignore_missing_controllers;
    k->cgroup = cg_make(tree, (const char *)k->cgroup_path.p, NULL, NULL, e);
    return k->cgroup < 0 ? -1 : cg_limit(tree, k->cgroup, s->resources, e);
}

/* Where the container's stdin comes from: a pipe whose other end is kept for attach, so that a
 * program that reads waits instead of seeing the end of file; /dev/null (-1) if it asked for none. */
static int monitored_stdin(monitored *k, const ContainerSpec *s, int *reader, error *e)
{
    int ends[2];
    if (!s->stdin || s->tty) return 0;
    if (pipe2(ends, O_CLOEXEC) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "pipe for a container's input");
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    k->input = ends[1];
    *reader = ends[0];
    return 0;
}

/* The process whose PID namespace the container shares, -1 for one of its own or the host's. */
static int monitored_pidns(const monitored *k, const ContainerSpec *s, int *pidfd, error *e)
{
    monitor *m = k->owner;
    *pidfd = s->pid == NamespaceMode_POD ? m->pause.fd : -1;
    if (s->pid == NamespaceMode_POD && *pidfd < 0) return fail(e, GRPC_FAILED_PRECONDITION, "the pod's pause process is gone");
    if (s->pid != NamespaceMode_TARGET) return 0;
    const monitored *target = monitored_find(m, s->pid_target);
    if (!target || target->phase != MONITORED_RUNNING)
        return fail(e, GRPC_FAILED_PRECONDITION, "container %.*s, whose PID namespace is asked for, is not running", PR(s->pid_target));
    *pidfd = target->process.fd;
    return 0;
}

/* The steps of a start until the new process is on its own. The log comes first: it is there
 * whatever happens then. */
static int monitored_launch(monitored *k, const ContainerSpec *s, error *e)
{
    monitor *m = k->owner;
    OWNED_FD in = -1, out = -1, err = -1;
    int pidns;
    if (k->log_path.n && (k->output.log = output_open_log(k->log_directory, k->log_path, e)) < 0) return -1;
    if (monitored_enter_cgroup(k, s, e) < 0 || monitored_pidns(k, s, &pidns, e) < 0) return -1;
    if (monitored_stdin(k, s, &in, e) < 0) return -1;
    if (!s->tty && ((out = output_pipe(&k->output, 0, e)) < 0 || (err = output_pipe(&k->output, 1, e)) < 0)) return -1;
    init_args a = { .spec = s, .layers_dir = m->layers_dir, .state_dir = m->state_dir, .stdio = { in, out, err },
                    .cgroup = k->cgroup, .pidns = pidns, .shm_ns = m->namespaces.shm_ns };
    if (init_clone(&a, &k->init, e) < 0) return -1;
    fault_point("monitor.cloned");
    k->process.fd = k->init.pidfd;
    k->report.fd = k->init.report;
    if (loop_watch(&m->loop, &k->process, EPOLLIN, e) == 0 && loop_watch(&m->loop, &k->report, EPOLLIN, e) == 0) return 0;
    sys_pidfd_kill(k->process.fd, SIGKILL);
    monitor_reap(k->process.fd);
    monitor_forget(m, &k->process);
    monitor_forget(m, &k->report);
    return -1;
}

static void monitor_start(monitor_conn *c, const MonitorRequest *r)
{
    monitor *m = c->owner;
    const ContainerSpec *s = r->container;
    monitored *k = NULL;
    error e;
    monitor_forget_removed(m);
    if (!s || !s->id.n || s->id.n > 64 || slice_has(s->id, '/')) fail(&e, GRPC_INVALID_ARGUMENT, "START without a container");
    else if (!m->is_set_up || m->shutting) fail(&e, GRPC_FAILED_PRECONDITION, "the pod is %s", m->shutting ? "being stopped" : "not set up");
    else if (monitored_find(m, s->id)) fail(&e, GRPC_FAILED_PRECONDITION, "container %.*s was started before", PR(s->id));
    else k = monitored_new(m, s, &e);
    if (!k) {
        monitor_refuse(c, &e);
        return;
    }
    k->asker = c;
    if (monitored_launch(k, s, &k->failure) < 0) monitored_ending(k);
}

/* -- exec ----------------------------------------------------------------------------------------- */

static void monitor_exec_name(unsigned number, char out[24]) { snprintf(out, 24, "exec-%u", number); }

/* Removes the cgroups of execs that have ended. One that left processes behind (a daemon that it
 * started: it may stay, as with other runtimes) is tried again after the next exec. */
static void monitored_sweep(monitored *k, unsigned newest)
{
    char name[24];
    size_t kept = 0;
    buf_add(&k->lingering, &newest, sizeof newest);
    for (size_t i = 0; i < k->lingering.n; i += sizeof newest) {
        unsigned number;
        memcpy(&number, k->lingering.p + i, sizeof number);
        monitor_exec_name(number, name);
        if (unlinkat(k->cgroup, name, AT_REMOVEDIR) == 0 || errno == ENOENT) continue;
        memcpy(k->lingering.p + kept, &number, sizeof number);
        kept += sizeof number;
    }
    k->lingering.n = kept;
    if (!kept) buf_free(&k->lingering);
}

static void monitor_exec_end(monitor_exec *x, int status)
{
    monitor *m = x->owner;
    monitor_exec **at = &m->execs;
    while (*at != x) at = &(*at)->next;
    *at = x->next;
    monitor_forget(m, &x->process);
    monitor_forget(m, &x->report);
    close_fd(&x->cgroup);
    if (x->container && x->cgroup >= 0) monitored_sweep(x->container, x->number);
    if (x->asker && x->failure.code) monitor_refuse(x->asker, &x->failure);
    else monitor_answer(x->asker, &(MonitorReply){ .exit_code = status, .pid = x->init.pid });
    free(x);
    monitor_try_close(m);
}

static void monitor_exec_reported(watch *w, uint32_t events)
{
    monitor_exec *x = OWNER(w, monitor_exec, report);
    int terminal = -1;
    (void)events;
    int done = init_report(&x->init, &terminal, &x->failure);
    if (terminal >= 0) close(terminal);
    if (done != 0) monitor_forget(x->owner, &x->report);
}

static void monitor_exec_died(watch *w, uint32_t events)
{
    monitor_exec *x = OWNER(w, monitor_exec, process);
    if (x->report.fd >= 0) monitor_exec_reported(&x->report, events);
    monitor_exec_end(x, monitor_reap(x->process.fd));
}

static int monitor_exec_launch(monitor_exec *x, const ExecSpec *spec, const int stdio[MONITOR_FDS_MAX], error *e)
{
    monitored *k = x->container;
    OWNED_ARENA a = arena_make(4 * MONITOR_MESSAGE_MAX);
    ContainerSpec of = { 0 };
    char name[24];
    if (pb_decode(&ContainerSpec_msg, buf_view(&k->spec), &a, &of, e) < 0) return -1;
    monitor_exec_name(x->number, name);
    if (k->cgroup >= 0 && (x->cgroup = cg_make_below(k->cgroup, name, e)) < 0) return -1;
    exec_args args = { .spec = &of, .exec = spec, .target = k->process.fd, .cgroup = x->cgroup,
                       .stdio = { stdio[0], stdio[1], stdio[2] } };
    if (exec_clone(&args, &x->init, e) < 0) return -1;
    x->process.fd = x->init.pidfd;
    x->report.fd = x->init.report;
    if (loop_watch(&x->owner->loop, &x->process, EPOLLIN, e) == 0 && loop_watch(&x->owner->loop, &x->report, EPOLLIN, e) == 0) return 0;
    monitor_exec_kill(x);
    monitor_reap(x->process.fd);
    return -1;
}

/* Runs a program in a container with the descriptors that came with the request; the answer, with
 * its exit code, comes when it ends. */
static void monitor_exec_start(monitor_conn *c, const MonitorRequest *r)
{
    monitor *m = c->owner;
    monitored *k = r->exec ? monitored_find(m, r->exec->container_id) : NULL;
    monitor_exec *x = NULL;
    error e;
    if (!k) fail(&e, GRPC_NOT_FOUND, "no such container in this pod");
    else if (k->phase != MONITORED_RUNNING || m->shutting) fail(&e, GRPC_FAILED_PRECONDITION, "container %.*s is not running", PR(k->exit.id));
    else if (r->exec->tty || !r->exec->args.n) fail(&e, GRPC_UNIMPLEMENTED, "exec with a terminal or without a command");
    else if (!(x = calloc(1, sizeof *x))) fail(&e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory for an exec");
    if (!x) {
        monitor_refuse(c, &e);
        return;
    }
    *x = (monitor_exec){ .owner = m, .next = m->execs, .container = k, .asker = c, .cgroup = -1, .number = k->execs++,
                         .process = { -1, monitor_exec_died }, .report = { -1, monitor_exec_reported } };
    m->execs = x;
    int stdio[MONITOR_FDS_MAX] = { -1, -1, -1 };
    for (int i = 0; i < c->nfds; i++) stdio[i] = c->fds[i];
    if (monitor_exec_launch(x, r->exec, stdio, &x->failure) < 0) monitor_exec_end(x, 0);
}

/* -- the other calls ------------------------------------------------------------------------------ */

static void monitor_paused(watch *w, uint32_t events) /* the pause process has died: its namespace with it */
{
    monitor *m = OWNER(w, monitor, pause);
    (void)events;
    monitor_reap(w->fd);
    monitor_forget(m, w);
    monitor_warn("the pod's pause process was killed");
}

static int monitor_make_pod(monitor *m, const PodSpec *s, error *e)
{
    OWNED_FD cgroup = -1;
    bool leaf = s->pid == NamespaceMode_POD && s->cgroup.n && m->cgroups.root >= 0;
    if (leaf) {
        char *path = strndup((const char *)s->cgroup.p, s->cgroup.n);
        if (!path) return fail(e, GRPC_RESOURCE_EXHAUSTED, "monitor: out of memory");
        m->pause_cgroup = slice_of(path);
        if ((cgroup = cg_make(&m->cgroups, path, NULL, NULL, e)) < 0) return -1;
    }
    if (pod_unshare(s, cgroup, &m->namespaces, e) < 0) return -1;
    m->pause.fd = m->namespaces.pause;
    return m->pause.fd < 0 ? 0 : loop_watch(&m->loop, &m->pause, EPOLLIN, e);
}

/* Makes the pod's namespaces; a second time, after a daemon forgot that it had asked, is harmless. */
static void monitor_setup(monitor_conn *c, const MonitorRequest *r)
{
    monitor *m = c->owner;
    error e;
    int made = r->pod ? 0 : fail(&e, GRPC_INVALID_ARGUMENT, "SETUP without a pod");
    if (made == 0 && !m->is_set_up) made = monitor_make_pod(m, r->pod, &e);
    m->is_set_up = m->is_set_up || made == 0;
    if (made == 0) monitor_answer(c, &(MonitorReply){ .pause_pid = m->namespaces.pause_pid });
    else monitor_refuse(c, &e);
}

/* The running container that the request names; NULL when the asker has been told that it is not. */
static monitored *monitor_running(monitor_conn *c, const MonitorRequest *r)
{
    monitored *k = monitored_find(c->owner, r->container_id);
    error e;
    if (k && k->phase == MONITORED_RUNNING) return k;
    if (k) fail(&e, GRPC_FAILED_PRECONDITION, "container %.*s is not running", PR(k->exit.id));
    else fail(&e, GRPC_NOT_FOUND, "container %.*s was never started", PR(r->container_id));
    monitor_refuse(c, &e);
    return NULL;
}

static void monitor_signal(monitor_conn *c, const MonitorRequest *r)
{
    monitored *k = monitor_running(c, r);
    error e;
    if (!k) return;
    if (sys_pidfd_kill(k->process.fd, r->signal) == 0 || errno == ESRCH) { /* ESRCH: its end is in the loop */
        monitor_answer(c, &(MonitorReply){ 0 });
        return;
    }
    fail_sys(&e, GRPC_INVALID_ARGUMENT, "signal %d", r->signal);
    monitor_refuse(c, &e);
}

static void monitor_kill(monitor_conn *c, const MonitorRequest *r)
{
    monitored *k = monitored_find(c->owner, r->container_id);
    error e;
    if (k) {
        if (k->phase != MONITORED_EXITED) monitored_kill(k);
        monitor_answer(c, &(MonitorReply){ 0 });
        return;
    }
    fail(&e, GRPC_NOT_FOUND, "container %.*s was never started", PR(r->container_id));
    monitor_refuse(c, &e);
}

/* The kubelet has renamed the log: from the answer on, all goes to a new file at the old path. */
static void monitor_reopen(monitor_conn *c, const MonitorRequest *r)
{
    monitored *k = monitor_running(c, r);
    error e;
    if (!k) return;
    int log = k->log_path.n ? output_open_log(k->log_directory, k->log_path, &e) : -1;
    if (k->log_path.n && log < 0) {
        monitor_refuse(c, &e);
        return;
    }
    close_fd(&k->output.log);
    k->output.log = log;
    monitor_answer(c, &(MonitorReply){ 0 });
}

static void monitor_watch(monitor_conn *c, const MonitorRequest *r)
{
    (void)r;
    monitor_answer_all(c->owner, c);
    c->watching = true;
}

static void monitor_shutdown(monitor_conn *c, const MonitorRequest *r)
{
    monitor *m = c->owner;
    error e;
    (void)r;
    if (m->closing) {
        fail(&e, GRPC_FAILED_PRECONDITION, "the pod is being stopped");
        monitor_refuse(c, &e);
        return;
    }
    m->shutting = true;
    m->closing = c;
    for (monitored *k = m->containers; k; k = k->next)
        if (k->phase != MONITORED_EXITED) monitored_kill(k);
    for (monitor_exec *x = m->execs; x; x = x->next) monitor_exec_kill(x);
    monitor_try_close(m);
}

static void (*const monitor_calls[])(monitor_conn *, const MonitorRequest *) = {
    [MONITOR_SETUP] = monitor_setup,    [MONITOR_START] = monitor_start,       [MONITOR_EXEC] = monitor_exec_start,
    [MONITOR_SIGNAL] = monitor_signal,  [MONITOR_KILL] = monitor_kill,         [MONITOR_REOPEN_LOG] = monitor_reopen,
    [MONITOR_WATCH] = monitor_watch,    [MONITOR_SHUTDOWN] = monitor_shutdown,
};

/* -- requests come in ----------------------------------------------------------------------------- */

static void monitor_close_fds(monitor_conn *c)
{
    while (c->nfds > 0) close(c->fds[--c->nfds]);
}

/* A whole request lies in c->in. */
static void monitor_dispatch(monitor_conn *c)
{
    OWNED_BUF wire = c->in;
    OWNED_ARENA a = arena_make(4 * MONITOR_MESSAGE_MAX);
    MonitorRequest r = { 0 };
    error e;
    c->in = (buf){ 0 };
    c->busy = true;
    bool good = pb_decode(&MonitorRequest_msg, (slice){ wire.p + 4, wire.n - 4 }, &a, &r, &e) == 0;
    if (good && (r.call <= 0 || (size_t)r.call >= COUNT(monitor_calls)))
        good = fail(&e, GRPC_UNIMPLEMENTED, "this pod's monitor is of version %d and has no call %d", MONITOR_VERSION, r.call) == 0;
    if (good) monitor_calls[r.call](c, &r);
    else monitor_refuse(c, &e);
    monitor_close_fds(c);
    monitor_conn_mood(c);
}

static void monitor_conn_drop(monitor_conn *c)
{
    monitor *m = c->owner;
    monitor_conn **at = &m->conns;
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    for (monitored *k = m->containers; k; k = k->next)
        if (k->asker == c) k->asker = NULL;
    for (monitor_exec *x = m->execs; x; x = x->next) {
        if (x->asker != c) continue;
        x->asker = NULL;
        monitor_exec_kill(x);
    }
    if (m->closing == c) m->closing = NULL;
    monitor_forget(m, &c->socket);
    monitor_close_fds(c);
    buf_free(&c->in);
    buf_free(&c->out);
    free(c);
    monitor_try_close(m);
}

/* They will send no more. Of an exec this means that its caller has lost interest: it is killed,
 * and the answer still sent. An idle connection has served its purpose. */
static void monitor_conn_ended(monitor_conn *c)
{
    c->ended = true;
    for (monitor_exec *x = c->owner->execs; x; x = x->next)
        if (x->asker == c) monitor_exec_kill(x);
    if (c->busy || c->watching || c->out.n) monitor_conn_mood(c);
    else monitor_conn_drop(c);
}

/* Takes the descriptors that came with a message; those of an older one that nobody took are closed. */
static void monitor_take_fds(monitor_conn *c, struct msghdr *msg)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h; h = CMSG_NXTHDR(msg, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        monitor_close_fds(c);
        c->nfds = (int)MIN((h->cmsg_len - CMSG_LEN(0)) / sizeof(int), (size_t)MONITOR_FDS_MAX);
        memcpy(c->fds, CMSG_DATA(h), (size_t)c->nfds * sizeof(int));
    }
}

/* How many bytes the request in c->in lacks, as far as is known; SIZE_MAX: it is too long. */
static size_t monitor_conn_lacks(const monitor_conn *c)
{
    if (c->in.n < 4) return 4 - c->in.n;
    size_t n = monitor_frame_length(c->in.p);
    return n > MONITOR_MESSAGE_MAX ? SIZE_MAX : 4 + n - c->in.n;
}

static void monitor_conn_read(monitor_conn *c)
{
    union { struct cmsghdr head; char room[CMSG_SPACE(MONITOR_FDS_MAX * sizeof(int))]; } control;
    size_t lacks = monitor_conn_lacks(c);
    if (lacks == SIZE_MAX || !buf_reserve(&c->in, lacks)) {
        monitor_conn_drop(c);
        return;
    }
    struct iovec data = { c->in.p + c->in.n, lacks };
    struct msghdr msg = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                          .msg_controllen = CMSG_LEN(MONITOR_FDS_MAX * sizeof(int)) };
    ssize_t n = recvmsg(c->socket.fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) monitor_conn_drop(c);
    else if (n == 0) monitor_conn_ended(c);
    if (n <= 0) return;
    monitor_take_fds(c, &msg);
    c->in.n += (size_t)n;
    if (monitor_conn_lacks(c) == 0) monitor_dispatch(c);
}

static void monitor_conn_ready(watch *w, uint32_t events)
{
    monitor_conn *c = OWNER(w, monitor_conn, socket);
    if ((events & EPOLLIN) && !c->busy && !c->ended) monitor_conn_read(c);
    else if (events & (EPOLLHUP | EPOLLERR)) monitor_conn_drop(c);
    else if (events & EPOLLOUT) monitor_conn_flush(c);
    else if (events & EPOLLRDHUP) monitor_conn_ended(c);
}

static void monitor_breathed(timer *t)
{
    monitor *m = OWNER(t, monitor, breath);
    loop_rewatch(&m->loop, &m->listener, EPOLLIN);
}

static void monitor_accept(watch *w, uint32_t events)
{
    monitor *m = OWNER(w, monitor, listener);
    monitor_conn *c = NULL;
    error e;
    (void)events;
    OWNED_FD s = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (s < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED && loop_arm(&m->loop, &m->breath, clock_mono() + MONITOR_BREATH, &e) == 0)
        loop_rewatch(&m->loop, w, 0); /* out of descriptors: who waits stays in the queue */
    if (s >= 0) c = calloc(1, sizeof *c);
    if (!c) return;
    *c = (monitor_conn){ .socket = { s, monitor_conn_ready }, .owner = m, .next = m->conns };
    if (loop_watch(&m->loop, &c->socket, EPOLLIN | EPOLLRDHUP, &e) < 0) {
        free(c);
        return;
    }
    give_fd(&s);
    m->conns = c;
}

/* -- the role begins ------------------------------------------------------------------------------ */

/* Makes the process one that is hard to end by accident and impossible to look into: not chosen when
 * memory is short (R19), not debuggable by a container that shares its PID namespace, and deaf to
 * the signals that a service manager or terminal sends to the daemon and all its offspring. Only
 * SHUTDOWN and SIGKILL end it. */
static void monitor_harden(void)
{
    static const int deaf_to[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE, SIGXFSZ, SIGTSTP };
    for (size_t i = 0; i < COUNT(deaf_to); i++) signal(deaf_to[i], SIG_IGN);
    prctl(PR_SET_DUMPABLE, 0);
    prctl(PR_SET_NAME, "krun monitor");
    umask(022);
    OWNED_FD oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (oom < 0 || write(oom, "-999", 4) < 0) /* EACCES without CAP_SYS_RESOURCE: the daemon says so once */
        log_debug("monitor: oom_score_adj: %s", strerror(errno));
}

/* krun monitor <pod id>: with the descriptors MONITOR_LISTEN_FD ... from monitor_spawn. */
static int monitor_main(int argc, char **argv)
{
    error e;
    monitor m = { .listener = { MONITOR_LISTEN_FD, monitor_accept }, .pause = { -1, monitor_paused },
                  .breath.due = monitor_breathed, .state_dir = MONITOR_STATE_FD, .layers_dir = MONITOR_LAYERS_FD };
    if (argc != 3) return fputs("krun monitor is started by krun serve\n", stderr), 2;
    for (int fd = MONITOR_LISTEN_FD; fd <= MONITOR_CGROUP_FD; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
    monitor_harden();
    if (cg_tree_adopt(&m.cgroups, MONITOR_CGROUP_FD, &e) < 0) m.cgroups.root = -1;
    if (loop_open(&m.loop, &e) < 0 || output_room_open(&m.room, &m.loop, &e) < 0 || loop_watch(&m.loop, &m.listener, EPOLLIN, &e) < 0) {
        log_error("monitor of pod %.12s: %s", argv[2], e.text);
        return 1;
    }
    m.namespaces = (pod_namespaces){ .pause = -1, .shm_ns = -1 };
    loop_run(&m.loop);
    return 0;
}
/* == 19. CNI =================================================================================
 *
 * Who connects a pod's network namespace to what is the cluster's business, so it is done by
 * programs of the cluster: CNI plugins. A configuration in /etc/cni/net.d names a chain of them.
 * For ADD each is run in turn with its part of the configuration on stdin and the namespace's path
 * in its environment, and prints the network so far as JSON, which the next one gets as prevResult.
 * What the last one printed holds the pod's addresses, and is kept: DEL, the chain run backwards,
 * needs it again, maybe years and a reboot later.
 *
 * Plugins run as root on the host and are trusted to do so; what they print is not. They hang, they
 * print without end, they leave children that hold their stdout: so each has a deadline, a bounded
 * output and a session of its own that can be killed as a whole.
 *
 * Defined by  the CNI specification 1.1 (github.com/containernetworking/cni, SPEC.md), its runtime
 *             conventions (CONVENTIONS.md); the choice among files as libcni makes it
 * Uses        1, 2 (spawn), 3 (JSON), 9 (PodSandboxConfig)    Gives  cni_load, cni_add, cni_del
 * Bounds      1 MiB a configuration or result, 32 plugins, 32 addresses; args.deadline */

enum { CNI_TEXT_MAX = MIB, CNI_STDERR_MAX = 1 * KIB, CNI_PLUGINS_MAX = 32, CNI_IPS_MAX = 32, CNI_PIPE = 64 * KIB };
#define CNI_UNDO_PATIENCE (60 * NS_PER_SEC) /* a DEL after a failed ADD has a time of its own */
#define CNI_KILL_PATIENCE (5 * NS_PER_SEC)

/* A network: the chain of plugins of one configuration file. All of it is the arena's. */
typedef struct {
    slice name, version;
    const char *file;
    LIST(json) plugins; /* in the order of ADD */
} cni_network;

typedef struct {
    const cni_network *network;
    const char *bin_dirs;   /* where plugins are, with ':' or ',' between directories */
    const char *netns_path; /* NULL or "" in a DEL: the namespace is gone already */
    const char *container_id, *ifname;
    slice pod_name, pod_namespace, pod_uid;
    const PodSandboxConfig *config; /* ports, DNS, annotations; may be NULL */
    int64_t deadline;               /* monotonic ns, 0: none */
    int cancel_fd;                  /* can be read once the caller has lost interest; -1: never */
} cni_args;

typedef struct {
    LIST(slice) ips;   /* of the pod's interface, as text without prefix length; never empty */
    slice result_json; /* what the last plugin printed; cni_del wants it again */
} cni_result;

/* -- configuration ----------------------------------------------------------------------------- */

/* A result of any of these has its addresses at ips[].address, or before 0.3.0 at ip4 and ip6. */
static const char *const cni_versions[] = { "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0" };

/* The place of a version in the table, -1 if it is none of them; later is newer. */
static int cni_version(slice s)
{
    for (size_t i = 0; i < COUNT(cni_versions); i++)
        if (slice_is(s, cni_versions[i])) return (int)i;
    return -1;
}
static bool cni_before(slice version, const char *other) { return cni_version(version) < cni_version(slice_of(other)); }

static bool cni_is_conf(const char *name)
{
    slice s = slice_of(name);
    return slice_ends(s, ".conflist") || slice_ends(s, ".conf") || slice_ends(s, ".json");
}

/* The first configuration in the order of names: only that one counts, so that a file that is being
 * replaced never lets another network take its place. FAILED_PRECONDITION: there is none. */
static int cni_first_conf(const char *dir, char first[NAME_MAX + 1], error *e)
{
    DIR *d = opendir(dir);
    first[0] = '\0';
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (cni_is_conf(entry->d_name) && (!first[0] || strcmp(entry->d_name, first) < 0))
            snprintf(first, NAME_MAX + 1, "%s", entry->d_name);
    if (d) closedir(d);
    return first[0] ? 0 : fail(e, GRPC_FAILED_PRECONDITION, "no networks found in %s", dir);
}

/* Plugins make file names of the network's name. */
static bool cni_name_valid(slice name)
{
    if (!name.n || name.n > 255 || !isalnum(name.p[0])) return false;
    for (size_t i = 0; i < name.n; i++)
        if (!isalnum(name.p[i]) && !strchr("_.-", name.p[i])) return false;
    return true;
}

/* The newest version that the file offers and we know: cniVersions is a list of them, cniVersion
 * the one of older files. Without either the specification says 0.1.0. */
static slice cni_choose_version(const json *conf)
{
    slice chosen = json_text(json_get(conf, "cniVersion"));
    const json *offers = json_get(conf, "cniVersions");
    if (!chosen.n) chosen = slice_of(cni_versions[0]);
    for (size_t i = 0; offers && offers->kind == JSON_ARRAY && i < offers->n; i++)
        if (cni_version(json_text(&offers->items[i])) > cni_version(chosen)) chosen = json_text(&offers->items[i]);
    return chosen;
}

static int cni_read_conf(const json *conf, const char *file, cni_network *net, error *e)
{
    const json *plugins = json_get(conf, "plugins");
    slice one = slice_of(file);
    *net = (cni_network){ .name = json_text(json_get(conf, "name")), .version = cni_choose_version(conf), .file = file };
    if (plugins && plugins->kind == JSON_ARRAY) net->plugins.p = plugins->items, net->plugins.n = plugins->n;
    else if (!slice_ends(one, ".conflist")) net->plugins.p = (json *)(uintptr_t)conf, net->plugins.n = 1;
    if (!cni_name_valid(net->name)) return fail(e, GRPC_FAILED_PRECONDITION, "%s: no valid \"name\"", file);
    if (cni_version(net->version) < 0)
        return fail(e, GRPC_FAILED_PRECONDITION, "%s: unknown cniVersion \"%.*s\"", file, PR(net->version));
    if (!net->plugins.n || net->plugins.n > CNI_PLUGINS_MAX)
        return fail(e, GRPC_FAILED_PRECONDITION, "%s: %zu plugins; 1 to %d can be", file, net->plugins.n, CNI_PLUGINS_MAX);
    for (size_t i = 0; i < net->plugins.n; i++) {
        slice type = json_text(json_get(&net->plugins.p[i], "type"));
        if (!type.n || slice_has(type, '/') || slice_has(type, '\0'))
            return fail(e, GRPC_FAILED_PRECONDITION, "%s: plugin %zu has no valid \"type\"", file, i + 1);
    }
    return 0;
}

/* Loads the network that pods are connected to. FAILED_PRECONDITION, with the sentence that Status
 * shows for NetworkReady: there is none, or its file cannot be used (half-written, say). */
static int cni_load(const char *conf_dir, arena *a, cni_network *net, error *e)
{
    char first[NAME_MAX + 1];
    slice text;
    if (cni_first_conf(conf_dir, first, e) < 0) return -1;
    const char *file = arena_printf(a, "%s/%s", conf_dir, first);
    const json *conf = file_read(AT_FDCWD, file, CNI_TEXT_MAX, a, &text, e) < 0 ? NULL : json_parse(text, a, e);
    if (conf) return cni_read_conf(conf, file, net, e);
    e->code = GRPC_FAILED_PRECONDITION;
    return fail_in(e, "%s", file);
}

/* -- what a plugin is told --------------------------------------------------------------------- */

static void cni_write_json(buf *out, const json *v); /* a value in a value */

static void cni_write_items(buf *out, const json *v)
{
    bool object = v->kind == JSON_OBJECT;
    buf_byte(out, object ? '{' : '[');
    for (size_t i = 0; i < v->n; i++) {
        if (i) buf_byte(out, ',');
        if (object) json_string(out, v->items[i].key);
        if (object) buf_byte(out, ':');
        cni_write_json(out, &v->items[i]);
    }
    buf_byte(out, object ? '}' : ']');
}

static void cni_write_json(buf *out, const json *v) /* as deep as json_parse lets a text be */
{
    switch (v->kind) {
    case JSON_NULL: buf_str(out, "null"); break;
    case JSON_BOOL: buf_str(out, v->boolean ? "true" : "false"); break;
    case JSON_NUMBER: buf_slice(out, v->text); break;
    case JSON_STRING: json_string(out, v->text); break;
    case JSON_ARRAY:
    case JSON_OBJECT: cni_write_items(out, v); break;
    }
}

static void cni_key(buf *out, const char *key) /* starts a member of the object that is being written */
{
    if (out->n && out->p[out->n - 1] != '{') buf_byte(out, ',');
    json_string(out, slice_of(key));
    buf_byte(out, ':');
}

static void cni_texts(buf *out, const char *key, const slice *p, size_t n)
{
    cni_key(out, key);
    buf_byte(out, '[');
    for (size_t i = 0; i < n; i++) {
        if (i) buf_byte(out, ',');
        json_string(out, p[i]);
    }
    buf_byte(out, ']');
}

/* Only ports with a host_port are published; the kubelet sends all that a container has. */
static bool cni_write_ports(const PodSandboxConfig *c, buf *out)
{
    static const char *const names[] = { "tcp", "udp", "sctp" };
    bool any = false;
    buf_byte(out, '[');
    for (size_t i = 0; i < c->port_mappings.n; i++) {
        const PortMapping *m = &c->port_mappings.p[i];
        if (m->host_port <= 0 || (size_t)m->protocol >= COUNT(names)) continue;
        buf_printf(out, "%s{\"hostPort\":%d,\"containerPort\":%d,\"protocol\":\"%s\",\"hostIP\":",
                   any ? "," : "", m->host_port, m->container_port, names[m->protocol]);
        json_string(out, m->host_ip);
        buf_byte(out, '}');
        any = true;
    }
    buf_byte(out, ']');
    return any;
}

static bool cni_write_dns(const PodSandboxConfig *c, buf *out)
{
    if (!c->dns_config) return false;
    buf_byte(out, '{');
    cni_texts(out, "servers", c->dns_config->servers.p, c->dns_config->servers.n);
    cni_texts(out, "searches", c->dns_config->searches.p, c->dns_config->searches.n);
    cni_texts(out, "options", c->dns_config->options.p, c->dns_config->options.n);
    buf_byte(out, '}');
    return true;
}

static slice cni_annotation(const PodSandboxConfig *c, const char *key)
{
    for (size_t i = 0; i < c->annotations.n; i++)
        if (slice_is(c->annotations.p[i].key, key)) return c->annotations.p[i].value;
    return (slice){ NULL, 0 };
}

/* Reads a rate as Kubernetes writes quantities, e.g. "10M" or "512Ki"; 0 if it is none. */
static uint64_t cni_rate(slice s)
{
    static const struct { const char *suffix; uint64_t unit; } units[] = {
        { "Ki", 1 << 10 }, { "Mi", 1 << 20 }, { "Gi", 1 << 30 }, { "k", 1000 },
        { "M", 1000000 }, { "G", 1000000000 }, { "", 1 },
    };
    size_t i = 0;
    uint64_t value;
    while (i < COUNT(units) - 1 && !slice_ends(s, units[i].suffix)) i++;
    s.n -= strlen(units[i].suffix);
    return parse_u64(s, 10, INT64_MAX / units[i].unit, &value) ? value * units[i].unit : 0;
}

/* Traffic shaping is asked for by two annotations; a burst is whatever the plugin can hold. */
static bool cni_write_bandwidth(const PodSandboxConfig *c, buf *out)
{
    uint64_t in = cni_rate(cni_annotation(c, "kubernetes.io/ingress-bandwidth"));
    uint64_t eg = cni_rate(cni_annotation(c, "kubernetes.io/egress-bandwidth"));
    buf_byte(out, '{');
    if (in) buf_printf(out, "\"ingressRate\":%" PRIu64 ",\"ingressBurst\":%d", in, INT32_MAX);
    if (eg) buf_printf(out, "%s\"egressRate\":%" PRIu64 ",\"egressBurst\":%d", in ? "," : "", eg, INT32_MAX);
    buf_byte(out, '}');
    return in || eg;
}

static bool cni_write_cgroup(const PodSandboxConfig *c, buf *out)
{
    slice parent = c->linux ? c->linux->cgroup_parent : (slice){ NULL, 0 };
    json_string(out, parent);
    return parent.n > 0;
}

/* What a plugin may be told of the pod if its configuration says so (CONVENTIONS.md, "Dynamic
 * plugin specific fields"). Each writes its value; false: there is none for this pod. */
static const struct { const char *name; bool (*write)(const PodSandboxConfig *, buf *); } cni_capabilities[] = {
    { "portMappings", cni_write_ports },
    { "dns", cni_write_dns },
    { "bandwidth", cni_write_bandwidth },
    { "cgroupPath", cni_write_cgroup },
};

static void cni_write_runtime(const cni_args *args, const json *plugin, buf *out)
{
    const json *wanted = json_get(plugin, "capabilities");
    OWNED_BUF all = { 0 };
    buf_byte(&all, '{');
    for (size_t i = 0; args->config && i < COUNT(cni_capabilities); i++) {
        OWNED_BUF value = { 0 };
        if (!json_true(json_get(wanted, cni_capabilities[i].name))) continue;
        if (!cni_capabilities[i].write(args->config, &value)) continue;
        cni_key(&all, cni_capabilities[i].name);
        buf_slice(&all, buf_view(&value));
        all.oom = all.oom || value.oom;
    }
    buf_byte(&all, '}');
    out->oom = out->oom || all.oom;
    if (all.n <= 2) return;
    cni_key(out, "runtimeConfig");
    buf_slice(out, buf_view(&all));
}

/* A plugin's stdin: its own part of the configuration, and what the chain has in common. */
static void cni_write_input(const cni_args *args, const json *plugin, slice previous, buf *out)
{
    static const char *const ours[] = { "name", "cniVersion", "cniVersions", "plugins", "prevResult", "runtimeConfig" };
    buf_byte(out, '{');
    cni_key(out, "cniVersion");
    json_string(out, args->network->version);
    cni_key(out, "name");
    json_string(out, args->network->name);
    for (size_t i = 0; i < plugin->n; i++) {
        const json *member = &plugin->items[i];
        size_t own = 0;
        while (own < COUNT(ours) && !slice_is(member->key, ours[own])) own++;
        if (own < COUNT(ours)) continue;
        buf_byte(out, ',');
        json_string(out, member->key);
        buf_byte(out, ':');
        cni_write_json(out, member);
    }
    cni_write_runtime(args, plugin, out);
    if (previous.n) cni_key(out, "prevResult");
    buf_slice(out, previous);
    buf_byte(out, '}');
}

/* The environment, which is all ours: PATH because plugins call iptables and the like. CNI_ARGS has
 * the keys that containerd and CRI-O give. NULL: out of memory. */
static char **cni_environment(const cni_args *args, const char *command, arena *a)
{
    char *path = arena_str(a, slice_of(args->bin_dirs));
    for (char *c = path; *c; c++) *c = *c == ',' ? ':' : *c;
    char *const values[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        arena_printf(a, "CNI_COMMAND=%s", command),
        arena_printf(a, "CNI_CONTAINERID=%s", args->container_id),
        arena_printf(a, "CNI_NETNS=%s", args->netns_path ? args->netns_path : ""),
        arena_printf(a, "CNI_IFNAME=%s", args->ifname),
        arena_printf(a, "CNI_PATH=%s", path),
        arena_printf(a, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%.*s;K8S_POD_NAME=%.*s;"
                        "K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_UID=%.*s",
                     PR(args->pod_namespace), PR(args->pod_name), args->container_id, PR(args->pod_uid)),
        NULL,
    };
    char **env = arena_alloc(a, sizeof values);
    if (env) memcpy(env, values, sizeof values);
    return a->oom ? NULL : env;
}

/* -- running a plugin -------------------------------------------------------------------------- */

/* A plugin that runs. */
typedef struct {
    pid_t pid;
    int pidfd, out, err; /* the read ends of its stdout and stderr; -1 once ended */
    buf text, complaint; /* what came out of them */
} cni_process;

static void cni_process_end(cni_process *p)
{
    close_fd(&p->pidfd);
    close_fd(&p->out);
    close_fd(&p->err);
    buf_free(&p->text);
    buf_free(&p->complaint);
}

/* Finds the plugin `type` in the first directory that has it. FAILED_PRECONDITION: none has. */
static int cni_find(const cni_args *args, slice type, char path[PATH_MAX], error *e)
{
    struct stat st;
    for (slice dirs = slice_of(args->bin_dirs); dirs.n;) {
        slice dir = { dirs.p, strcspn((const char *)dirs.p, ":,") }; /* bin_dirs ends with a NUL */
        size_t skip = MIN(dir.n + 1, dirs.n);
        dirs = (slice){ dirs.p + skip, dirs.n - skip };
        bool fits = dir.n && snprintf(path, PATH_MAX, "%.*s/%.*s", PR(dir), PR(type)) < PATH_MAX;
        if (fits && stat(path, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111)) return 0;
    }
    return fail(e, GRPC_FAILED_PRECONDITION, "CNI: plugin %.*s is not in %s", PR(type), args->bin_dirs);
}

/* stdin as a file: a plugin that reads late or never cannot hold us up as with a pipe. */
static int cni_stdin(slice text, error *e)
{
    OWNED_FD fd = (int)syscall(SYS_memfd_create, "cni", 1U /* MFD_CLOEXEC */);
    if (fd < 0 || write_all(fd, text.p, text.n) < 0 || lseek(fd, 0, SEEK_SET) < 0)
        return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "CNI: write a plugin's configuration");
    return give_fd(&fd);
}

static int cni_start(const cni_args *args, slice type, char *const *env, int input, cni_process *p, error *e)
{
    int out[2], err[2];
    char path[PATH_MAX];
    if (cni_find(args, type, path, e) < 0) return -1;
    if (pipe2(out, O_CLOEXEC) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "CNI: pipe");
    p->out = out[0];
    OWNED_FD out_end = out[1];
    if (pipe2(err, O_CLOEXEC) < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "CNI: pipe");
    p->err = err[0];
    OWNED_FD err_end = err[1];
    fcntl(p->out, F_SETFL, O_NONBLOCK);
    fcntl(p->err, F_SETFL, O_NONBLOCK);
    char *argv[] = { path, NULL };
    int fds[] = { input, out_end, err_end };
    spawn_args s = { .exec_fd = -1, .path = path, .argv = argv, .envp = env, .fds = fds, .nfds = COUNT(fds), .new_session = true };
    p->pidfd = spawn(&s, &p->pid, e);
    return p->pidfd < 0 ? fail_in(e, "CNI") : 0;
}

/* Reads what is in the pipe now, keeping the first `keep` bytes; *fd becomes -1 at the end of file.
 * One pipe's worth at most: who prints without end must not keep us from looking at the clock. */
static void cni_drain(int *fd, buf *into, size_t keep)
{
    char chunk[4 * KIB];
    ssize_t n = 1;
    for (int i = 0; *fd >= 0 && i < CNI_PIPE / (4 * KIB) && (n = read(*fd, chunk, sizeof chunk)) > 0; i++)
        buf_add(into, chunk, MIN((size_t)n, keep - into->n));
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR))) return;
    close_fd(fd);
    *fd = -1;
}

/* Follows a plugin until it has exited. A child of it that still holds its stdout is not waited
 * for: what the plugin itself had to say is in the pipe by then. */
static int cni_follow(const cni_args *args, cni_process *p, error *e)
{
    for (;;) {
        struct pollfd events[] = { { .fd = p->pidfd, .events = POLLIN }, { .fd = args->cancel_fd, .events = POLLIN },
                                   { .fd = p->out, .events = POLLIN }, { .fd = p->err, .events = POLLIN } };
        int n = poll(events, COUNT(events), clock_poll_ms(args->deadline));
        if (n < 0 && errno != EINTR) return fail_sys(e, GRPC_INTERNAL, "poll");
        cni_drain(&p->out, &p->text, CNI_TEXT_MAX + 1);
        cni_drain(&p->err, &p->complaint, CNI_STDERR_MAX);
        if (p->text.n > CNI_TEXT_MAX) return fail(e, GRPC_INTERNAL, "it printed more than %d bytes", CNI_TEXT_MAX);
        if (p->text.oom || p->complaint.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
        if (n > 0 && events[0].revents) return 0;
        if (n > 0 && events[1].revents) return fail(e, GRPC_CANCELLED, "the call was cancelled");
        if (args->deadline && clock_mono() >= args->deadline)
            return fail(e, GRPC_DEADLINE_EXCEEDED, "it did not end in time and was killed");
    }
}

/* Why a plugin with this exit code has failed: its error object (SPEC.md, "Error"), or stderr. */
static int cni_explain(const cni_process *p, int status, error *e)
{
    OWNED_ARENA a = arena_make(4 * CNI_TEXT_MAX);
    OWNED_BUF text = { 0 };
    error ignored;
    int64_t code = 0;
    const json *said = json_parse(buf_view(&p->text), &a, &ignored);
    slice msg = json_text(json_get(said, "msg")), details = json_text(json_get(said, "details"));
    if (json_int(json_get(said, "code"), &code) || msg.n) {
        text_escape(&text, msg, 300);
        if (details.n) buf_str(&text, "; ");
        text_escape(&text, details, 120);
        buf_printf(&text, " (code %" PRId64 ")", code);
    } else {
        buf_printf(&text, "exit code %d", status);
        if (p->complaint.n) buf_str(&text, ": ");
        text_escape(&text, slice_trim(buf_view(&p->complaint)), 300);
    }
    return fail(e, GRPC_INTERNAL, "%.*s", PR(buf_view(&text)));
}

static int cni_run_process(const cni_args *args, cni_process *p, error *e)
{
    if (cni_follow(args, p, e) < 0) {
        kill(-p->pid, SIGKILL); /* its session's first group, while its pid cannot be another's */
        sys_pidfd_kill(p->pidfd, SIGKILL);
        reap(p->pidfd, clock_mono() + CNI_KILL_PATIENCE);
        return -1;
    }
    int status = reap(p->pidfd, 0);
    return status ? cni_explain(p, status, e) : 0;
}

/* Runs one plugin with `previous` as prevResult. What it printed comes back, trimmed, in *out. */
static int cni_run(const cni_args *args, const char *command, const json *plugin, arena *a, slice *out, error *e)
{
    __attribute__((cleanup(cni_process_end))) cni_process p = { .pidfd = -1, .out = -1, .err = -1 };
    slice type = json_text(json_get(plugin, "type"));
    OWNED_BUF input = { 0 };
    char **env = cni_environment(args, command, a);
    cni_write_input(args, plugin, *out, &input);
    if (!env || input.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "CNI: out of memory");
    OWNED_FD in = cni_stdin(buf_view(&input), e);
    if (in < 0 || cni_start(args, type, env, in, &p, e) < 0) return -1;
    if (cni_run_process(args, &p, e) < 0) return fail_in(e, "CNI plugin %.*s, %s", PR(type), command);
    *out = arena_copy(a, slice_trim(buf_view(&p.text)));
    return a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "CNI: out of memory") : 0;
}

/* -- results ----------------------------------------------------------------------------------- */

/* Whether an address belongs to the pod's interface. A result names interfaces of the host, too
 * (SPEC.md, "ADD Success"); an address without an index is the pod's. */
static bool cni_ip_is_ours(const json *result, const json *ip, const char *ifname)
{
    int64_t at;
    const json *all = json_get(result, "interfaces");
    if (!json_int(json_get(ip, "interface"), &at)) return true;
    if (!all || all->kind != JSON_ARRAY || at < 0 || (uint64_t)at >= all->n) return false;
    const json *one = &all->items[at];
    return slice_is(json_text(json_get(one, "name")), ifname) && json_text(json_get(one, "sandbox")).n;
}

static slice cni_head(slice s) { return (slice){ s.p, MIN(s.n, (size_t)64) }; } /* enough to recognize */

/* "10.1.2.3/24" -> "10.1.2.3", if that is an IPv4 or IPv6 address as inet_pton(3) knows them. */
static int cni_take_ip(slice cidr, cni_result *r, error *e)
{
    uint8_t binary[sizeof(struct in6_addr)];
    char text[INET6_ADDRSTRLEN];
    slice rest = cidr, ip = slice_cut(&rest, '/');
    bool fits = ip.n < sizeof text && !slice_has(ip, '\0');
    snprintf(text, sizeof text, "%.*s", PR(ip));
    if (!fits || (inet_pton(AF_INET, text, binary) != 1 && inet_pton(AF_INET6, text, binary) != 1))
        return fail(e, GRPC_INTERNAL, "CNI: the result has no IP address in \"%.*s\"", PR(cni_head(cidr)));
    if (r->ips.n == CNI_IPS_MAX) return fail(e, GRPC_INTERNAL, "CNI: the result has more than %d addresses", CNI_IPS_MAX);
    r->ips.p[r->ips.n++] = ip;
    return 0;
}

/* Checks a plugin's result and gives its tree. A result says its version and may leave it out. */
static const json *cni_parse_result(slice text, const cni_network *net, arena *a, error *e)
{
    if (!text.n) return fail(e, GRPC_INTERNAL, "CNI: a plugin of %s printed no result", net->file), NULL;
    const json *result = json_parse(text, a, e);
    if (!result) return e->code = GRPC_INTERNAL, fail_in(e, "CNI: a plugin of %s printed no valid result", net->file), NULL;
    const json *version = json_get(result, "cniVersion");
    bool good = result->kind == JSON_OBJECT && (!version || cni_version(json_text(version)) >= 0);
    if (!good) fail(e, GRPC_INTERNAL, "CNI: a result of unknown version \"%.*s\"", PR(cni_head(json_text(version))));
    return good ? result : NULL;
}

/* The addresses of the pod's interface, in the order of the result; the first is the pod's own. */
static int cni_take_ips(const json *result, const cni_args *args, arena *a, cni_result *r, error *e)
{
    const json *ips = json_get(result, "ips");
    r->ips.p = arena_alloc(a, CNI_IPS_MAX * sizeof *r->ips.p);
    if (!r->ips.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "CNI: out of memory");
    for (size_t i = 0; ips && ips->kind == JSON_ARRAY && i < ips->n; i++)
        if (cni_ip_is_ours(result, &ips->items[i], args->ifname) &&
            cni_take_ip(json_text(json_get(&ips->items[i], "address")), r, e) < 0) return -1;
    static const char *const old[] = { "ip4", "ip6" }; /* before 0.3.0 */
    for (size_t i = 0; !ips && i < COUNT(old); i++) {
        const json *one = json_get(result, old[i]);
        if (one && cni_take_ip(json_text(json_get(one, "ip")), r, e) < 0) return -1;
    }
    return r->ips.n ? 0 : fail(e, GRPC_INTERNAL, "CNI: %s gave %s no IP address", args->network->file, args->ifname);
}

/* -- the two commands -------------------------------------------------------------------------- */

/* These become one variable of the form key=value;key=value, which knows no escape. */
static int cni_check_args(const cni_args *args, error *e)
{
    const slice values[] = { args->pod_name, args->pod_namespace, args->pod_uid };
    for (size_t i = 0; i < COUNT(values); i++)
        if (slice_has(values[i], ';') || slice_has(values[i], '\0'))
            return fail(e, GRPC_INVALID_ARGUMENT, "CNI: \"%.*s\" cannot be given to a plugin", PR(cni_head(values[i])));
    return 0;
}

/* Undoes an ADD: the plugins backwards, each with what the last one of the ADD printed. All are
 * run, whatever one of them says; the first error comes back. Harmless when there is nothing. */
static int cni_del(const cni_args *args, slice cached, error *e)
{
    OWNED_ARENA a = arena_make(8 * CNI_TEXT_MAX);
    int result = cni_check_args(args, e);
    if (result < 0) return -1;
    if (cni_before(args->network->version, "0.4.0")) cached = (slice){ NULL, 0 }; /* they know no such thing */
    for (size_t i = args->network->plugins.n; i-- > 0;) {
        error other;
        slice text = cached;
        if (cni_run(args, "DEL", &args->network->plugins.p[i], &a, &text, result < 0 ? &other : e) == 0) continue;
        if (result < 0) log_warn("%s", other.text);
        result = -1;
    }
    return result;
}

static int cni_add_chain(const cni_args *args, arena *a, cni_result *r, error *e)
{
    const json *result = NULL;
    for (size_t i = 0; i < args->network->plugins.n; i++) {
        if (cni_run(args, "ADD", &args->network->plugins.p[i], a, &r->result_json, e) < 0) return -1;
        result = cni_parse_result(r->result_json, args->network, a, e);
        if (!result) return r->result_json.n = 0, -1;
    }
    return cni_take_ips(result, args, a, r, e);
}

/* Connects the namespace. When it fails, what was done has been undone: every plugin has had its
 * DEL, those too that were not reached (SPEC.md, "Lifecycle & Ordering"). */
static int cni_add(const cni_args *args, arena *a, cni_result *r, error *e)
{
    *r = (cni_result){ 0 };
    if (cni_check_args(args, e) < 0) return -1;
    if (cni_add_chain(args, a, r, e) == 0) return 0;
    cni_args undo = *args;
    error failed;
    undo.cancel_fd = -1;
    undo.deadline = clock_mono() + CNI_UNDO_PATIENCE;
    if (cni_del(&undo, r->result_json, &failed) < 0) log_warn("after a failed ADD: %s", failed.text);
    return -1;
}
/* == 20. Specifications ======================================================================
 *
 * A CRI request says what a pod author wants, in part, and leaves the rest to the image, to the pod
 * and to custom. This chapter makes whole specifications of requests (PodSpec, ContainerSpec of
 * chapter 9): every default filled in, every name resolved to a number, every path absolute. All that can be
 * known to be wrong is refused here, before anything exists, with the name of the field. What comes
 * out is all that a monitor needs to know.
 *
 * Defined by  the comments of cri.proto; where they are silent, by what containerd does
 * Uses        8, 9, 13 (image records), 14 (users in an image), 15 (limits), 16 (capabilities), 17 (sysctls)
 * Gives       runtime_options, spec_check_pod, spec_pod, spec_pod_file, spec_check_container, spec_container
 * Bounds      text that goes into a line-based file has no line end; paths up to 4095 bytes */

/* The daemon's settings, resolved: no member is NULL. Made by chapter 25, not changed while it runs. */
typedef struct {
    const char *root, *run, *socket, *config;
    const char *cni_conf_dir, *cni_bin_dir, *hosts_dir, *stream_address;
    bool ignore_missing_controllers;
} runtime_options;

/* -- checks of single fields ------------------------------------------------------------------- */

/* Text that ends up in a line of a file (hostname, hosts, resolv.conf, passwd lookups) or in a path:
 * a line end or a NUL in it would say something that its author may not say (CVE-2022-4318). */
static int check_text(slice s, const char *field, error *e)
{
    if (slice_has(s, '\n') || slice_has(s, '\r') || slice_has(s, '\0'))
        return fail(e, GRPC_INVALID_ARGUMENT, "%s must not hold a line end or NUL", field);
    return 0;
}

static int check_path(slice s, const char *field, error *e)
{
    if (check_text(s, field, e) < 0) return -1;
    if (s.n >= PATH_MAX) return fail(e, GRPC_INVALID_ARGUMENT, "%s is longer than %d bytes", field, PATH_MAX - 1);
    return 0;
}

static int check_absolute(slice s, const char *field, error *e)
{
    if (check_path(s, field, e) < 0) return -1;
    if (!s.n || s.p[0] != '/') return fail(e, GRPC_INVALID_ARGUMENT, "%s \"%.*s\" is not an absolute path", field, PR(s));
    return 0;
}

static bool path_goes_up(slice s) /* whether a component of it is ".." */
{
    while (s.n)
        if (slice_is(slice_cut(&s, '/'), "..")) return true;
    return false;
}

static int check_namespaces(const NamespaceOption *o, bool of_pod, error *e)
{
    if (!o) return 0;
    if (o->network != NamespaceMode_POD && o->network != NamespaceMode_NODE)
        return fail(e, GRPC_INVALID_ARGUMENT, "namespace_options.network must be POD or NODE");
    if (o->ipc != NamespaceMode_POD && o->ipc != NamespaceMode_NODE)
        return fail(e, GRPC_INVALID_ARGUMENT, "namespace_options.ipc must be POD or NODE");
    if (o->pid < NamespaceMode_POD || o->pid > NamespaceMode_TARGET || (of_pod && o->pid == NamespaceMode_TARGET))
        return fail(e, GRPC_INVALID_ARGUMENT, "namespace_options.pid %d is not known here", o->pid);
    int user = o->userns_options ? o->userns_options->mode : NamespaceMode_NODE;
    if (user == NamespaceMode_POD) return fail(e, GRPC_UNIMPLEMENTED, "user namespaces are not implemented");
    if (user != NamespaceMode_NODE) return fail(e, GRPC_INVALID_ARGUMENT, "userns_options.mode must be POD or NODE");
    return 0;
}

/* -- pods -------------------------------------------------------------------------------------- */

static const NamespaceOption *pod_namespaces_of(const PodSandboxConfig *c)
{
    static const NamespaceOption none;
    const LinuxSandboxSecurityContext *s = c->linux ? c->linux->security_context : NULL;
    return s && s->namespace_options ? s->namespace_options : &none;
}

static bool pod_is_privileged(const PodSandboxConfig *c)
{
    return c->linux && c->linux->security_context && c->linux->security_context->privileged;
}

static int check_metadata(const PodSandboxMetadata *m, error *e)
{
    if (!m || !m->name.n) return fail(e, GRPC_INVALID_ARGUMENT, "config.metadata.name is required");
    if (!m->uid.n) return fail(e, GRPC_INVALID_ARGUMENT, "config.metadata.uid is required");
    if (!m->name_space.n) return fail(e, GRPC_INVALID_ARGUMENT, "config.metadata.namespace is required");
    return check_text(m->name, "config.metadata.name", e) < 0 || check_text(m->uid, "config.metadata.uid", e) < 0 ||
           check_text(m->name_space, "config.metadata.namespace", e) < 0 ? -1 : 0;
}

static int check_dns(const DNSConfig *dns, error *e)
{
    for (size_t i = 0; dns && i < dns->servers.n; i++)
        if (check_text(dns->servers.p[i], "config.dns_config.servers", e) < 0) return -1;
    for (size_t i = 0; dns && i < dns->searches.n; i++)
        if (check_text(dns->searches.p[i], "config.dns_config.searches", e) < 0) return -1;
    for (size_t i = 0; dns && i < dns->options.n; i++)
        if (check_text(dns->options.p[i], "config.dns_config.options", e) < 0) return -1;
    return 0;
}

/* Refuses a RunPodSandbox request that cannot be meant. Changes nothing. */
static int spec_check_pod(const runtime_options *o, const RunPodSandboxRequest *in, error *e)
{
    (void)o;
    const PodSandboxConfig *c = in->config;
    if (!c) return fail(e, GRPC_INVALID_ARGUMENT, "config is required");
    if (check_metadata(c->metadata, e) < 0 || check_dns(c->dns_config, e) < 0) return -1;
    if (in->runtime_handler.n) return fail(e, GRPC_INVALID_ARGUMENT, "runtime_handler \"%.*s\" is not configured", PR(in->runtime_handler));
    if (check_text(c->hostname, "config.hostname", e) < 0) return -1;
    if (c->hostname.n > 64) return fail(e, GRPC_INVALID_ARGUMENT, "config.hostname is longer than 64 bytes");
    if (c->log_directory.n && check_absolute(c->log_directory, "config.log_directory", e) < 0) return -1;
    if (path_goes_up(c->log_directory)) return fail(e, GRPC_INVALID_ARGUMENT, "config.log_directory must not hold \"..\"");
    const LinuxPodSandboxConfig *l = c->linux;
    if (l && (check_path(l->cgroup_parent, "config.linux.cgroup_parent", e) < 0 || path_goes_up(l->cgroup_parent)))
        return fail(e, GRPC_INVALID_ARGUMENT, "config.linux.cgroup_parent \"%.*s\" is not a path below the cgroup root", PR(l->cgroup_parent));
    return check_namespaces(pod_namespaces_of(c), true, e);
}

/* The cgroup below which all of a pod's cgroups lie: what the kubelet asks for, else one of our own.
 * A systemd slice name ("a-b.slice") stands for nested directories: systemd.slice(5). */
static slice cgroup_of_parent(slice parent, slice pod_id, arena *a)
{
    while (parent.n && parent.p[0] == '/') parent = (slice){ parent.p + 1, parent.n - 1 };
    while (parent.n && parent.p[parent.n - 1] == '/') parent.n--;
    if (!parent.n) return slice_of(arena_printf(a, "krun/%.*s", PR(pod_id)));
    if (!slice_ends(parent, ".slice") || slice_has(parent, '/') || parent.p[0] == '-') return arena_copy(a, parent);
    OWNED_BUF path = { 0 };
    for (size_t i = 0; i < parent.n - strlen(".slice"); i++)
        if (parent.p[i] == '-') buf_printf(&path, "%.*s.slice/", (int)i, (const char *)parent.p);
    buf_slice(&path, parent);
    return arena_copy(a, buf_view(&path));
}

static bool annotation_is(const PodSandboxConfig *c, const char *key, const char *value)
{
    for (size_t i = 0; i < c->annotations.n; i++)
        if (slice_is(c->annotations.p[i].key, key)) return slice_is(c->annotations.p[i].value, value);
    return false;
}

/* Whether the pod's own network namespace is to be connected by CNI: not when the caller asks, by
 * our one annotation, for a pod with nothing but a loopback. CRI itself has no word for that. */
static bool spec_wants_cni(const PodSandboxConfig *c)
{
    return pod_namespaces_of(c)->network == NamespaceMode_POD && !annotation_is(c, "krun.network", "none");
}

/* Makes the pod's specification; rec->id and rec->config are set. Strings are `a`'s or the record's. */
static int spec_pod(const runtime_options *o, const PodRecord *rec, arena *a, PodSpec *out, error *e)
{
    const PodSandboxConfig *c = rec->config;
    const NamespaceOption *ns = pod_namespaces_of(c);
    (void)o;
    *out = (PodSpec){ .id = rec->id, .hostname = c->hostname, .network = ns->network, .pid = ns->pid, .ipc = ns->ipc,
                      .shm_size = 64 * MIB, .privileged = pod_is_privileged(c) };
    if (c->linux) {
        out->sysctls.p = c->linux->sysctls.p;
        out->sysctls.n = c->linux->sysctls.n;
    }
    out->cgroup_parent = cgroup_of_parent(c->linux ? c->linux->cgroup_parent : SLICE(""), rec->id, a);
    out->cgroup = slice_of(arena_printf(a, "%.*s/%.*s", PR(out->cgroup_parent), PR(rec->id)));
    if (ns->network == NamespaceMode_POD) out->netns = slice_of(arena_printf(a, "/run/netns/krun-%.*s", PR(rec->id)));
    return a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a pod") : 0;
}

/* Where one container of the pod has its cgroup: side by side right below the parent, as the kubelet
 * and cAdvisor expect. (The parent itself holds no process: cgroup-v2.rst, "No Internal Process".) */
static slice spec_cgroup(const PodRecord *pod, slice id, arena *a)
{
    return slice_of(arena_printf(a, "%.*s/%.*s", PR(pod->spec->cgroup_parent), PR(id)));
}

/* -- the files that krun gives to a pod -------------------------------------------------------- */

static int host_file(const char *path, arena *a, slice *out, error *e)
{
    if (file_read(AT_FDCWD, path, MIB, a, out, e) == 0 || e->code != GRPC_NOT_FOUND) return e->code && !out->p ? -1 : 0;
    *out = SLICE("");
    return 0;
}

static int hosts_file(const PodSandboxConfig *c, arena *a, slice *out, error *e)
{
    (void)c;
    return host_file("/etc/hosts", a, out, e);
}

static int hostname_file(const PodSandboxConfig *c, arena *a, slice *out, error *e)
{
    struct utsname host;
    (void)e;
    uname(&host);
    *out = c->hostname.n ? slice_of(arena_printf(a, "%.*s\n", PR(c->hostname))) : slice_of(arena_printf(a, "%s\n", host.nodename));
    return 0;
}

/* resolv.conf(5): without a DNS configuration the host's; with an empty one, an empty file. */
static int resolv_file(const PodSandboxConfig *c, arena *a, slice *out, error *e)
{
    const DNSConfig *dns = c->dns_config;
    if (!dns) return host_file("/etc/resolv.conf", a, out, e);
    OWNED_BUF text = { 0 };
    for (size_t i = 0; i < dns->searches.n; i++) buf_printf(&text, "%s%.*s", i ? " " : "search ", PR(dns->searches.p[i]));
    if (dns->searches.n) buf_byte(&text, '\n');
    for (size_t i = 0; i < dns->servers.n; i++) buf_printf(&text, "nameserver %.*s\n", PR(dns->servers.p[i]));
    for (size_t i = 0; i < dns->options.n; i++) buf_printf(&text, "%s%.*s", i ? " " : "options ", PR(dns->options.p[i]));
    if (dns->options.n) buf_byte(&text, '\n');
    *out = arena_copy(a, buf_view(&text));
    return text.oom || a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for resolv.conf") : 0;
}

static const struct {
    const char *name, *destination;
    int (*make)(const PodSandboxConfig *, arena *, slice *, error *);
} spec_pod_files[] = {
    { "hosts",       "/etc/hosts",       hosts_file },
    { "hostname",    "/etc/hostname",    hostname_file },
    { "resolv.conf", "/etc/resolv.conf", resolv_file },
};
enum { SPEC_POD_FILES = COUNT(spec_pod_files) };

static int spec_pod_file(const PodSandboxConfig *c, size_t i, arena *a, slice *out, error *e)
{
    *out = (slice){ NULL, 0 };
    return spec_pod_files[i].make(c, a, out, e);
}

/* -- containers: what can be seen to be wrong without looking anything up ---------------------- */

static int check_profile(const SecurityProfile *p, const char *what, error *e)
{
    if (!p || p->profile_type == ProfileType_Unconfined) return 0;
    if (p->profile_type == ProfileType_Localhost && !p->localhost_ref.n)
        return fail(e, GRPC_INVALID_ARGUMENT, "%s: localhost_ref is required with a Localhost profile", what);
    return fail(e, GRPC_UNIMPLEMENTED, "%s profiles are not implemented: only Unconfined is", what);
}

static int check_mount(const Mount *m, error *e)
{
    bool image = m->image && m->image->image.n;
    if (check_absolute(m->container_path, "mounts.container_path", e) < 0 || check_path(m->host_path, "mounts.host_path", e) < 0) return -1;
    if (image && m->host_path.n) return fail(e, GRPC_INVALID_ARGUMENT, "mounts: host_path and image are both set for \"%.*s\"", PR(m->container_path));
    if (!image && check_absolute(m->host_path, "mounts.host_path", e) < 0) return -1;
    if (!image && m->image_sub_path.n) return fail(e, GRPC_INVALID_ARGUMENT, "mounts.image_sub_path without mounts.image");
    if (m->propagation < MountPropagation_PROPAGATION_PRIVATE || m->propagation > MountPropagation_PROPAGATION_BIDIRECTIONAL)
        return fail(e, GRPC_INVALID_ARGUMENT, "mounts.propagation %d is not known", m->propagation);
    if (m->recursive_read_only && (!m->readonly || m->propagation != MountPropagation_PROPAGATION_PRIVATE))
        return fail(e, GRPC_INVALID_ARGUMENT, "mounts.recursive_read_only needs readonly and PROPAGATION_PRIVATE (\"%.*s\")", PR(m->container_path));
    if (m->uidMappings.n || m->gidMappings.n) return fail(e, GRPC_UNIMPLEMENTED, "mounts.uidMappings: id-mapped mounts are not implemented");
    return 0;
}

static int check_security(const LinuxContainerSecurityContext *s, error *e)
{
    if (!s) return 0;
    if (s->run_as_group && !s->run_as_user && !s->run_as_username.n)
        return fail(e, GRPC_INVALID_ARGUMENT, "run_as_group needs run_as_user or run_as_username");
    if (check_namespaces(s->namespace_options, false, e) < 0) return -1;
    return s->privileged ? 0 : check_profile(s->seccomp, "seccomp", e) < 0 ? -1 : check_profile(s->apparmor, "apparmor", e);
}

/* Refuses a CreateContainer request that cannot be meant. Changes nothing. */
static int spec_check_container(const CreateContainerRequest *in, error *e)
{
    const ContainerConfig *c = in->config;
    if (!c) return fail(e, GRPC_INVALID_ARGUMENT, "config is required");
    if (!c->metadata || !c->metadata->name.n) return fail(e, GRPC_INVALID_ARGUMENT, "config.metadata.name is required");
    if (check_text(c->metadata->name, "config.metadata.name", e) < 0) return -1;
    if (!c->image || !c->image->image.n) return fail(e, GRPC_INVALID_ARGUMENT, "config.image.image is required");
    if (check_path(c->log_path, "config.log_path", e) < 0) return -1;
    if (path_goes_up(c->log_path)) return fail(e, GRPC_INVALID_ARGUMENT, "config.log_path must not hold \"..\"");
    if (c->working_dir.n && check_absolute(c->working_dir, "config.working_dir", e) < 0) return -1;
    for (size_t i = 0; i < c->envs.n; i++)
        if (!c->envs.p[i].key.n || slice_has(c->envs.p[i].key, '=') || slice_has(c->envs.p[i].key, '\0') || slice_has(c->envs.p[i].value, '\0'))
            return fail(e, GRPC_INVALID_ARGUMENT, "config.envs: \"%.*s\" is not a name for a variable", PR(c->envs.p[i].key));
    for (size_t i = 0; i < c->mounts.n; i++)
        if (check_mount(&c->mounts.p[i], e) < 0) return -1;
    if (c->CDI_devices.n) return fail(e, GRPC_UNIMPLEMENTED, "CDI devices are not implemented");
    return check_security(c->linux ? c->linux->security_context : NULL, e);
}

/* -- containers: the whole specification ------------------------------------------------------- */

/* What a container's specification is made from. `a` gets all that is new in it. */
typedef struct {
    const runtime_options *options;
    const cg_tree *cgroups;
    image_store *images;
    int root;                 /* the --root directory */
    const PodRecord *pod;
    const ImageRecord *image;
    arena *a;
} spec_context;

static const LinuxContainerSecurityContext *security_of(const ContainerConfig *c)
{
    static const LinuxContainerSecurityContext none;
    return c->linux && c->linux->security_context ? c->linux->security_context : &none;
}

static slice *list_of(arena *a, size_t n) { return arena_alloc(a, MAX(n, (size_t)1) * sizeof(slice)); }

/* The command line: `command` replaces the image's entrypoint and with it its arguments, `args`
 * replaces the image's arguments alone. */
static int spec_args(const spec_context *x, const ContainerConfig *c, ContainerSpec *out, error *e)
{
    const ImageConfig *image = x->image->config;
    size_t from_image = !image ? 0 : image->entrypoint.n + image->cmd.n;
    slice *list = list_of(x->a, c->command.n + c->args.n + from_image);
    if (!list) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for arguments");
    size_t n = 0;
    bool image_args = !c->command.n && !c->args.n && image;
    for (size_t i = 0; !c->command.n && image && i < image->entrypoint.n; i++) list[n++] = arena_copy(x->a, image->entrypoint.p[i]);
    for (size_t i = 0; i < c->command.n; i++) list[n++] = c->command.p[i];
    for (size_t i = 0; i < c->args.n; i++) list[n++] = c->args.p[i];
    for (size_t i = 0; image_args && i < image->cmd.n; i++) list[n++] = arena_copy(x->a, image->cmd.p[i]);
    if (!n) return fail(e, GRPC_INVALID_ARGUMENT, "no command: neither config.command nor the image names one");
    for (size_t i = 0; i < n; i++)
        if (slice_has(list[i], '\0')) return fail(e, GRPC_INVALID_ARGUMENT, "config.command: argument %zu holds a NUL", i);
    out->args.p = list;
    out->args.n = n;
    return 0;
}

/* Sets NAME=value in the list, in place of an older one. The list has room. */
static void env_set(ContainerSpec *out, arena *a, slice name, slice value, bool replace)
{
    size_t i = 0;
    for (; i < out->env.n; i++)
        if (out->env.p[i].n > name.n && out->env.p[i].p[name.n] == '=' && !memcmp(out->env.p[i].p, name.p, name.n)) break;
    if (i < out->env.n && !replace) return;
    out->env.p[i] = slice_of(arena_printf(a, "%.*s=%.*s", PR(name), PR(value)));
    if (i == out->env.n) out->env.n++;
}

/* The environment: the image's, then the request's over it, then what every program may expect. */
static int spec_env(const spec_context *x, const ContainerConfig *c, ContainerSpec *out, error *e)
{
    const ImageConfig *image = x->image->config;
    struct utsname host;
    size_t from_image = image ? image->env.n : 0;
    uname(&host);
    out->env.p = list_of(x->a, from_image + c->envs.n + 4);
    if (!out->env.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the environment");
    slice hostname = x->pod->config->hostname.n ? x->pod->config->hostname : slice_of(host.nodename);
    env_set(out, x->a, SLICE("PATH"), SLICE("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), true);
    env_set(out, x->a, SLICE("HOSTNAME"), hostname, true);
    if (c->tty) env_set(out, x->a, SLICE("TERM"), SLICE("xterm"), true);
    for (size_t i = 0; i < from_image; i++) {
        slice value = image->env.p[i], name = slice_cut(&value, '=');
        if (name.n && value.p && !slice_has(value, '\0')) env_set(out, x->a, name, value, true);
    }
    for (size_t i = 0; i < c->envs.n; i++) env_set(out, x->a, c->envs.p[i].key, c->envs.p[i].value, true);
    return x->a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the environment") : 0;
}

/* Adds the request's supplemental groups to those that were looked up, each once. */
static int add_groups(const LinuxContainerSecurityContext *s, arena *a, ProcessUser *user, error *e)
{
    uint32_t *all = arena_alloc(a, (user->groups.n + s->supplemental_groups.n + 1) * sizeof *all);
    size_t n = user->groups.n;
    if (!all) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for groups");
    if (n) memcpy(all, user->groups.p, n * sizeof *all);
    for (size_t i = 0; i < s->supplemental_groups.n; i++) {
        int64_t id = s->supplemental_groups.p[i];
        if (id < 0 || id > INT32_MAX) return fail(e, GRPC_INVALID_ARGUMENT, "supplemental_groups: %" PRId64 " is not a group id", id);
        size_t k = 0;
        while (k < n && all[k] != (uint32_t)id) k++;
        if (k == n) all[n++] = (uint32_t)id;
    }
    user->groups.p = all;
    user->groups.n = n;
    return 0;
}

/* Who the process is. The request's numbers win over its name, and both over the image's USER; what
 * is a name is looked up in the image's own /etc/passwd and /etc/group. */
static int spec_user(const spec_context *x, const ContainerConfig *c, ContainerSpec *out, error *e)
{
    const LinuxContainerSecurityContext *s = security_of(c);
    slice user = x->image->config ? x->image->config->user : SLICE("");
    OWNED_FD layers = openat(x->root, "layers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    OWNED_FD root = rootfs_open_layers(layers, out->layers.p, out->layers.n, e);
    if (root < 0) return fail_in(e, "look up the user");
    if (s->run_as_username.n) user = s->run_as_username;
    if (s->run_as_user) user = slice_of(arena_printf(x->a, "%" PRId64, s->run_as_user->value));
    if (s->run_as_group) {
        slice group = user;
        user = slice_of(arena_printf(x->a, "%.*s:%" PRId64, PR(slice_cut(&group, ':')), s->run_as_group->value));
    }
    out->user = arena_alloc(x->a, sizeof *out->user);
    if (!out->user) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the user");
    rootfs_user found = { 0 };
    if (rootfs_find_user(root, user, &found, x->a, e) < 0) return -1;
    if (s->supplemental_groups_policy == SupplementalGroupsPolicy_Merge && rootfs_user_groups(root, &found, x->a, e) < 0) return -1;
    *out->user = found.ids;
    env_set(out, x->a, SLICE("HOME"), found.home.n ? found.home : SLICE("/"), false);
    return add_groups(s, x->a, out->user, e);
}

/* Whether the mount that holds `path` passes mounts on (proc(5), mountinfo: "shared:N" or "master:N"
 * among the optional fields): without that a propagation that was asked for could not happen. */
static int mount_passes_on(int fd, bool shared_only, bool *out, error *e)
{
    char path[64];
    OWNED_ARENA a = arena_make(16 * MIB);
    slice info, mounts, line;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    if (file_read(AT_FDCWD, path, 4 * KIB, &a, &info, e) < 0 ||
        file_read(AT_FDCWD, "/proc/self/mountinfo", 8 * MIB, &a, &mounts, e) < 0) return -1;
    slice id = SLICE("");
    while (info.n)
        if (slice_starts(line = slice_cut(&info, '\n'), "mnt_id:")) id = slice_trim((slice){ line.p + 7, line.n - 7 });
    *out = false;
    while (mounts.n) {
        line = slice_cut(&mounts, '\n');
        if (!slice_eq(slice_cut(&line, ' '), id)) continue;
        for (slice word; line.n && !slice_is(word = slice_cut(&line, ' '), "-");)
            if (slice_starts(word, "shared:") || (!shared_only && slice_starts(word, "master:"))) *out = true;
    }
    return 0;
}

/* A mount of a host path: resolved once, here. A path that is missing is made as a directory, as the
 * peers do (untyped hostPath volumes rely on it). */
static int spec_bind(const spec_context *x, const Mount *m, MountSpec *out, error *e)
{
    char resolved[PATH_MAX];
    const char *path = arena_str(x->a, m->host_path);
    struct stat st;
    OWNED_FD fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        OWNED_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close_fd(&fd);
        fd = make_dir_inside(root, path, 0755, e);
        if (fd < 0) return fail_in(e, "mounts.host_path \"%s\"", path);
    }
    if (fd < 0 || fstat(fd, &st) < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "mounts.host_path \"%s\"", path);
    if (!realpath(path, resolved)) return fail_sys(e, GRPC_INVALID_ARGUMENT, "mounts.host_path \"%s\"", path);
    bool passes = true;
    bool both = m->propagation == MountPropagation_PROPAGATION_BIDIRECTIONAL;
    if (m->propagation != MountPropagation_PROPAGATION_PRIVATE && mount_passes_on(fd, both, &passes, e) < 0) return -1;
    if (!passes) return fail(e, GRPC_INVALID_ARGUMENT, "mounts.host_path \"%s\" is not on a shared%s mount, which propagation %s needs",
                             path, both ? "" : " or slave", both ? "BIDIRECTIONAL" : "HOST_TO_CONTAINER");
    out->source = arena_copy(x->a, slice_of(resolved));
    out->file = !S_ISDIR(st.st_mode);
    return 0;
}

static int spec_image_volume(const spec_context *x, const Mount *m, MountSpec *out, error *e)
{
    const ImageRecord *image = image_hold(x->images, m->image->image);
    if (!image) return fail(e, GRPC_NOT_FOUND, "ImageVolumeMountFailed: image \"%.*s\" not found: pull it first", PR(m->image->image));
    out->layers.p = list_of(x->a, image->layers.n);
    for (size_t i = 0; out->layers.p && i < image->layers.n; i++) out->layers.p[out->layers.n++] = arena_copy(x->a, image->layers.p[i]);
    image_drop(x->images, image);
    out->sub_path = m->image_sub_path;
    out->readonly = true;
    return out->layers.p ? 0 : fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for mounts");
}

static bool mounts_hold(const ContainerSpec *s, const char *destination)
{
    for (size_t i = 0; i < s->mounts.n; i++)
        if (slice_is(s->mounts.p[i].destination, destination)) return true;
    return false;
}

static size_t mount_depth(slice path)
{
    size_t depth = 0;
    while (path.n) depth += slice_cut(&path, '/').n > 0;
    return depth;
}

/* Mounts, outer ones first, so that none hides another: by depth, and else in the order they came. */
static void sort_mounts(ContainerSpec *s)
{
    for (size_t i = 1; i < s->mounts.n; i++) {
        MountSpec m = s->mounts.p[i];
        size_t at = i;
        for (; at && mount_depth(s->mounts.p[at - 1].destination) > mount_depth(m.destination); at--) s->mounts.p[at] = s->mounts.p[at - 1];
        s->mounts.p[at] = m;
    }
}

/* The volumes of the image's config that nothing is mounted on get an empty directory each? No:
 * the peers keep such a volume below the container's state; ours is simply the writable layer. */
static int spec_mounts(const spec_context *x, const ContainerConfig *c, ContainerSpec *out, error *e)
{
    out->mounts.p = arena_alloc(x->a, (c->mounts.n + SPEC_POD_FILES) * sizeof *out->mounts.p);
    if (!out->mounts.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for mounts");
    for (size_t i = 0; i < c->mounts.n; i++) {
        const Mount *m = &c->mounts.p[i];
        MountSpec *spec = &out->mounts.p[i];
        *spec = (MountSpec){ .destination = m->container_path, .readonly = m->readonly,
                             .recursive_readonly = m->recursive_read_only, .propagation = m->propagation };
        spec->mount_options.p = m->mount_options.p;
        spec->mount_options.n = m->mount_options.n;
        if ((m->image && m->image->image.n ? spec_image_volume : spec_bind)(x, m, spec, e) < 0) return -1;
        out->mounts.n++;
    }
    for (size_t i = 0; i < SPEC_POD_FILES; i++) { /* read-only: a pod cannot fill the host's disk (CVE-2020-8557) */
        if (mounts_hold(out, spec_pod_files[i].destination)) continue;
        char *path = arena_printf(x->a, "%s/pods/%.*s/%s", x->options->root, PR(x->pod->id), spec_pod_files[i].name);
        out->mounts.p[out->mounts.n++] = (MountSpec){ .destination = slice_of(spec_pod_files[i].destination),
            .source = slice_of(path), .readonly = true, .internal = true, .file = true };
    }
    sort_mounts(out);
    return 0;
}

static int spec_devices(const spec_context *x, const ContainerConfig *c, ContainerSpec *out, error *e)
{
    out->devices.p = arena_alloc(x->a, MAX(c->devices.n, (size_t)1) * sizeof *out->devices.p);
    if (!out->devices.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for devices");
    for (size_t i = 0; i < c->devices.n; i++) {
        const Device *d = &c->devices.p[i];
        slice inside = d->container_path.n ? d->container_path : d->host_path;
        if (check_absolute(d->host_path, "devices.host_path", e) < 0 || check_absolute(inside, "devices.container_path", e) < 0) return -1;
        for (size_t k = 0; k < d->permissions.n; k++)
            if (!strchr("rwm", d->permissions.p[k])) return fail(e, GRPC_INVALID_ARGUMENT, "devices.permissions \"%.*s\"", PR(d->permissions));
        if (access(arena_str(x->a, d->host_path), F_OK) < 0) return fail_sys(e, GRPC_INVALID_ARGUMENT, "devices.host_path \"%.*s\"", PR(d->host_path));
        out->devices.p[out->devices.n++] = (DeviceSpec){ .path = inside, .host_path = d->host_path, .permissions = d->permissions };
    }
    return 0;
}

/* A request that names no paths gets the usual ones: protobuf cannot tell "none" from "not said". */
static int spec_default_paths(const spec_context *x, ContainerSpec *out, error *e)
{
    slice *masked = list_of(x->a, COUNT(security_masked_paths)), *readonly = list_of(x->a, COUNT(security_readonly_paths));
    if (!masked || !readonly) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for paths");
    for (size_t i = 0; i < COUNT(security_masked_paths); i++) masked[i] = slice_of(security_masked_paths[i]);
    for (size_t i = 0; i < COUNT(security_readonly_paths); i++) readonly[i] = slice_of(security_readonly_paths[i]);
    if (!out->masked_paths.n) out->masked_paths.p = masked, out->masked_paths.n = COUNT(security_masked_paths);
    if (!out->readonly_paths.n) out->readonly_paths.p = readonly, out->readonly_paths.n = COUNT(security_readonly_paths);
    return 0;
}

/* What a container may do and see; a privileged one may do and see everything. */
static int spec_security(const spec_context *x, const ContainerConfig *c, ContainerSpec *out, error *e)
{
    const LinuxContainerSecurityContext *s = security_of(c);
    const NamespaceOption *of_pod = pod_namespaces_of(x->pod->config);
    const NamespaceOption *ns = s->namespace_options;
    if (s->privileged && !x->pod->spec->privileged)
        return fail(e, GRPC_INVALID_ARGUMENT, "a privileged container needs a privileged pod sandbox");
    out->privileged = s->privileged;
    out->readonly_rootfs = s->readonly_rootfs;
    out->no_new_privs = s->no_new_privs;
    out->network = of_pod->network;
    out->ipc = of_pod->ipc;
    out->pid = ns ? ns->pid : of_pod->pid;
    out->pid_target = ns && ns->pid == NamespaceMode_TARGET ? ns->target_id : SLICE("");
    if (out->pid == NamespaceMode_POD && of_pod->pid != NamespaceMode_POD) out->pid = NamespaceMode_CONTAINER;
    security_caps caps;
    if (security_caps_from_names(s->capabilities, s->privileged, &caps, e) < 0) return -1;
    out->capabilities = caps.set;
    out->ambient = caps.ambient;
    if (s->privileged) return 0;
    out->masked_paths.p = s->masked_paths.p;
    out->masked_paths.n = s->masked_paths.n;
    out->readonly_paths.p = s->readonly_paths.p;
    out->readonly_paths.n = s->readonly_paths.n;
    return spec_default_paths(x, out, e);
}

/* Signals by CRI's names: SIGNAL_SIGTERM is "SIGTERM" in an image's config. */
static const struct { const char *name; int number; } spec_signals[] = {
    { "ABRT", SIGABRT }, { "ALRM", SIGALRM }, { "BUS", SIGBUS }, { "CHLD", SIGCHLD }, { "CLD", SIGCHLD }, { "CONT", SIGCONT },
    { "FPE", SIGFPE }, { "HUP", SIGHUP }, { "ILL", SIGILL }, { "INT", SIGINT }, { "IO", SIGIO }, { "IOT", SIGABRT },
    { "KILL", SIGKILL }, { "PIPE", SIGPIPE }, { "POLL", SIGIO }, { "PROF", SIGPROF }, { "PWR", SIGPWR }, { "QUIT", SIGQUIT },
    { "SEGV", SIGSEGV }, { "STKFLT", 16 }, { "STOP", SIGSTOP }, { "SYS", SIGSYS }, { "TERM", SIGTERM }, { "TRAP", SIGTRAP },
    { "TSTP", SIGTSTP }, { "TTIN", SIGTTIN }, { "TTOU", SIGTTOU }, { "URG", SIGURG }, { "USR1", SIGUSR1 }, { "USR2", SIGUSR2 },
    { "VTALRM", SIGVTALRM }, { "WINCH", SIGWINCH }, { "XCPU", SIGXCPU }, { "XFSZ", SIGXFSZ },
};
enum { SIGNAL_RTMIN = 34, SIGNAL_RTMAX = 64 }; /* as a program in the container counts: signal(7) */

/* "SIGTERM", "TERM", "15", "SIGRTMIN+3", "SIGRTMAX-1" (CRI writes PLUS and MINUS); 0 if it is none. */
static int signal_number(slice name)
{
    uint64_t n;
    if (parse_u64(name, 10, SIGNAL_RTMAX, &n)) return (int)n;
    if (slice_starts(name, "SIGNAL_")) name = (slice){ name.p + 7, name.n - 7 };
    if (slice_starts(name, "SIG")) name = (slice){ name.p + 3, name.n - 3 };
    for (size_t i = 0; i < COUNT(spec_signals); i++)
        if (slice_is(name, spec_signals[i].name)) return spec_signals[i].number;
    bool up = slice_starts(name, "RTMIN");
    if (!up && !slice_starts(name, "RTMAX")) return 0;
    name = (slice){ name.p + 5, name.n - 5 };
    size_t sign = slice_starts(name, up ? "PLUS" : "MINUS") ? (up ? 4U : 5U) : slice_starts(name, up ? "+" : "-") ? 1 : 0;
    if (!name.n) return up ? SIGNAL_RTMIN : SIGNAL_RTMAX;
    if (!sign || !parse_u64((slice){ name.p + sign, name.n - sign }, 10, SIGNAL_RTMAX - SIGNAL_RTMIN, &n)) return 0;
    return up ? SIGNAL_RTMIN + (int)n : SIGNAL_RTMAX - (int)n;
}

/* The stop signal: the request's, else the image's, else SIGTERM. */
static int spec_stop_signal(const spec_context *x, const ContainerConfig *c, error *e)
{
    slice image = x->image->config ? x->image->config->stop_signal : SLICE("");
    bool known = c->stop_signal > 0 && (size_t)c->stop_signal < Signal_enum.n;
    const char *asked = known ? Signal_enum.names[c->stop_signal] : NULL;
    if (c->stop_signal && !known) return fail(e, GRPC_INVALID_ARGUMENT, "config.stop_signal %d is not known", c->stop_signal);
    int signal = asked ? signal_number(slice_of(asked)) : image.n ? signal_number(image) : SIGTERM;
    return signal ? signal : fail(e, GRPC_INVALID_ARGUMENT, "stop signal \"%.*s\" is not known", asked ? (int)strlen(asked) : (int)image.n, asked ? asked : (const char *)image.p);
}

/* Fills rec->spec from rec->config, the image and the pod. rec's ids are set. */
static int spec_container(const spec_context *x, ContainerRecord *rec, error *e)
{
    const ContainerConfig *c = rec->config;
    ContainerSpec *out = rec->spec;
    *out = (ContainerSpec){ .id = rec->id, .pod_id = rec->pod_id, .name = c->metadata->name, .attempt = c->metadata->attempt,
        .tty = c->tty, .stdin = c->stdin, .stdin_once = c->stdin_once,
        .log_directory = x->pod->config->log_directory, .umask = 022,
        .shm_size = x->pod->spec->shm_size, .ignore_missing_controllers = x->options->ignore_missing_controllers };
    slice cwd = c->working_dir.n ? c->working_dir : x->image->config ? x->image->config->working_dir : SLICE("");
    if (cwd.n && check_absolute(cwd, "working directory of the image", e) < 0) return -1;
    out->cwd = arena_copy(x->a, cwd.n ? cwd : SLICE("/"));
    out->layers.p = list_of(x->a, x->image->layers.n);
    for (size_t i = 0; out->layers.p && i < x->image->layers.n; i++) out->layers.p[out->layers.n++] = arena_copy(x->a, x->image->layers.p[i]);
    out->cgroup = spec_cgroup(x->pod, rec->id, x->a);
    if (c->log_path.n && out->log_directory.n) out->log_path = slice_of(arena_printf(x->a, "%.*s/%.*s", PR(out->log_directory), PR(c->log_path)));
    if (c->linux && c->linux->resources) {
        out->resources = c->linux->resources;
        out->oom_score_adj = c->linux->resources->oom_score_adj;
        if (cg_check(x->cgroups, out->resources, e) < 0) return -1;
    }
    out->stop_signal = spec_stop_signal(x, c, e);
    if (out->stop_signal < 0 || spec_args(x, c, out, e) < 0 || spec_env(x, c, out, e) < 0) return -1;
    if (spec_user(x, c, out, e) < 0 || spec_mounts(x, c, out, e) < 0) return -1;
    if (spec_devices(x, c, out, e) < 0 || spec_security(x, c, out, e) < 0) return -1;
    return x->a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a container") : 0;
}

/* == 21. Pods and containers =================================================================
 *
 * The state that the daemon owns, and every change of it. A pod is a record on disk, a monitor
 * process (chapter 18) that holds its namespaces, a cgroup, a network; a container is a record, and
 * a process of the monitor's. What is in memory can always be made again from the records and the
 * monitors: that is what happens after `kill -9`, and it is the last part of this chapter.
 *
 * Who waits for whom. All of the state is behind one lock, which is held for memory operations
 * only: no system call that can block is made under it. What must not interleave is kept apart by
 * turns instead: run, stop and remove of one pod take the pod's turn; start and remove of one
 * container take the container's. A stop of a container takes no turn, so that a second, shorter
 * stop can overtake the first; lists and status take none and never wait.
 *
 * Undo is written next to do: each step of pod_build has its inverse in pod_tear_down, which does
 * not care how far the building came, and is run again for what a crash left half-built.
 *
 * Uses   8, 9, 13 (images), 15 (cgroups), 18 (monitor), 19 (CNI), 20 (specifications)
 * Gives  runtime_open, runtime_close, pod_*, container_*
 * Bounds a record 16 MiB; waits for a monitor 2 minutes, for a plugin 4 */

enum { STATE_MAX = 16 * MIB, STATE_VERSION = 1 };
#define MONITOR_PATIENCE (120 * NS_PER_SEC)
#define PLUGIN_PATIENCE (240 * NS_PER_SEC)
#define KILL_PATIENCE (60 * NS_PER_SEC)

/* -- objects in the order of a text ------------------------------------------------------------ */

/* Sorted by key, so that an exact id, a unique prefix and a name are all found in O(log n). The key
 * belongs to the object. */
typedef struct { slice key; void *object; } sorted_row;
typedef struct { sorted_row *rows; size_t n, cap; } sorted;

static size_t sorted_place(const sorted *s, slice key) /* of the first row that is not below key */
{
    size_t low = 0, high = s->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (slice_cmp(s->rows[middle].key, key) < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void *sorted_find(const sorted *s, slice key)
{
    size_t i = sorted_place(s, key);
    return i < s->n && slice_eq(s->rows[i].key, key) ? s->rows[i].object : NULL;
}

static bool sorted_reserve(sorted *s) /* room for one more row */
{
    if (s->n < s->cap) return true;
    size_t cap = MAX(s->cap * 2, (size_t)64);
    sorted_row *rows = realloc(s->rows, cap * sizeof *rows);
    if (!rows) return false;
    s->rows = rows;
    s->cap = cap;
    return true;
}

static bool sorted_add(sorted *s, slice key, void *object)
{
    if (!sorted_reserve(s)) return false;
    size_t i = sorted_place(s, key);
    memmove(s->rows + i + 1, s->rows + i, (s->n - i) * sizeof *s->rows);
    s->rows[i] = (sorted_row){ key, object };
    s->n++;
    return true;
}

static void sorted_remove(sorted *s, slice key, const void *object)
{
    size_t i = sorted_place(s, key);
    while (i < s->n && s->rows[i].object != object && slice_eq(s->rows[i].key, key)) i++;
    if (i >= s->n || s->rows[i].object != object) return;
    s->n--;
    memmove(s->rows + i, s->rows + i + 1, (s->n - i) * sizeof *s->rows);
}

/* -- the state --------------------------------------------------------------------------------- */

/* Someone who waits until an object changes: an eventfd, so that poll(2) can wait for it and for
 * the caller's cancellation at once. */
typedef struct waiter { int event; struct waiter *next; } waiter;

/*  MAKING --made--> CREATED --start--> STARTING --ran--> RUNNING --exit--> EXITED
 *                      |                  \--------------exit---------------/ |
 *                      \---remove--> REMOVING <-----------remove--------------/   */
enum box_state { BOX_ILLEGAL, BOX_MAKING, BOX_CREATED, BOX_STARTING, BOX_RUNNING, BOX_EXITED, BOX_REMOVING, BOX_STATES };
enum box_event { BOX_MADE, BOX_START, BOX_RAN, BOX_EXIT, BOX_REMOVE, BOX_EVENTS };
static const uint8_t box_next[BOX_STATES][BOX_EVENTS] = {
    /*                  MADE         START         RAN          EXIT        REMOVE */
    [BOX_MAKING]    = { BOX_CREATED, BOX_ILLEGAL,  BOX_ILLEGAL, BOX_EXITED, BOX_REMOVING },
    [BOX_CREATED]   = { BOX_ILLEGAL, BOX_STARTING, BOX_RUNNING, BOX_EXITED, BOX_REMOVING },
    [BOX_STARTING]  = { BOX_ILLEGAL, BOX_ILLEGAL,  BOX_RUNNING, BOX_EXITED, BOX_ILLEGAL },
    [BOX_RUNNING]   = { BOX_ILLEGAL, BOX_ILLEGAL,  BOX_RUNNING, BOX_EXITED, BOX_ILLEGAL },
    [BOX_EXITED]    = { BOX_ILLEGAL, BOX_ILLEGAL,  BOX_EXITED,  BOX_EXITED, BOX_REMOVING },
    [BOX_REMOVING]  = { BOX_ILLEGAL, BOX_ILLEGAL,  BOX_REMOVING, BOX_REMOVING, BOX_REMOVING },
};

typedef struct pod pod;
typedef struct runtime runtime;

typedef struct container {
    pod *pod;
    arena memory;            /* holds `record`; freed with the container, on the loop's thread */
    ContainerRecord record;  /* does not change once the state is CREATED */
    slice key;               /* pod id, name and attempt: what may exist once */
    struct container *next;  /* of the pod's */
    job release;
    /* guarded by the runtime's lock: */
    enum box_state state;
    ContainerExit exit;      /* its texts are in `memory` */
    int64_t started_at;
    int32_t pid;
    bool turn_taken, stop_sent;
    unsigned holds;          /* callers that have a pointer to it over an unlocked stretch */
    waiter *waiters;
    error failure;           /* why making it failed, for whoever joined */
} container;

/*  MAKING --> READY --> NOTREADY --> REMOVING;  a failed making goes to REMOVING at once */
enum pod_state { POD_MAKING, POD_READY, POD_NOTREADY, POD_REMOVING };

struct pod {
    runtime *runtime;
    arena memory;            /* holds `record`; freed with the pod, on the loop's thread */
    PodRecord record;        /* does not change once the pod is READY, but for state and network_up */
    slice key;               /* name, namespace, uid and attempt: what may exist once */
    job release, attend;
    int monitor;             /* pidfd of the monitor if it is our child, to be reaped; or -1 */
    watch link;              /* the connection on which the monitor tells of exits; fd -1: none */
    buf inbox;               /* what came over it and is no whole message yet */
    /* guarded by the runtime's lock: */
    enum pod_state state;
    container *containers;
    bool turn_taken, closing; /* closing: a stop is wanted, nothing new may begin */
    unsigned working;        /* creates and starts under way, which a stop waits for */
    unsigned holds;
    waiter *waiters;
    error failure;
};

struct runtime {
    loop *loop;
    image_store *images;
    cg_tree cgroups;
    const runtime_options *options; /* chapter 20 */
    int root, run, pods, run_pods;  /* open directories */
    int monitors;                   /* the cgroup that the monitors live in, or -1 */
    char boot_id[40];
    pthread_mutex_t lock;           /* guards all below, and what the objects say that it guards */
    sorted pods_by_id, pods_by_key, containers_by_id, containers_by_key;
    int64_t last_created;           /* creation times are strictly increasing: kubelets sort by them */
    char pod_cidr[128];
    unsigned background;            /* threads of our own that are still at work */
    pthread_cond_t quiet;           /* background has become 0 */
};

/* Moves the container through the table; an event that says nothing new leaves it where it is. */
static void box_move(container *c, enum box_event event)
{
    enum box_state next = box_next[c->state][event];
    assert(next != BOX_ILLEGAL);
    c->state = next;
    assert((c->state != BOX_RUNNING && c->state != BOX_EXITED) || c->record.id.n);
}

static void lock_state(runtime *r) { pthread_mutex_lock(&r->lock); }
static void unlock_state(runtime *r) { pthread_mutex_unlock(&r->lock); }
static void unlock_late(pthread_mutex_t **lock) { if (*lock) pthread_mutex_unlock(*lock); }
/* Holds the lock until the scope ends. */
#define LOCKED(r) __attribute__((cleanup(unlock_late), unused)) pthread_mutex_t *held_lock_ = (lock_state(r), &(r)->lock)

/* Wakes all who wait for a change of this object. Locked. */
static void wake(waiter *list)
{
    uint64_t one = 1;
    for (waiter *w = list; w; w = w->next)
        if (write(w->event, &one, sizeof one) < 0) assert(errno == EAGAIN);
}

/* Waits until the object changes, the caller goes away or time is up. Locked on entry and on
 * return, not in between: look at the state again.
 * cancel   readable when the caller has gone, or -1.   deadline  monotonic ns, 0 for none
 * Returns  0 after a change; -1: CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED */
static int wait_change(runtime *r, waiter **list, int cancel, int64_t deadline, error *e)
{
    OWNED_FD event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event < 0) return fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "wait for a change");
    waiter me = { event, *list };
    *list = &me;
    unlock_state(r);
    struct pollfd fds[] = { { .fd = event, .events = POLLIN }, { .fd = cancel, .events = POLLIN } };
    int ready;
    while ((ready = poll(fds, COUNT(fds), clock_poll_ms(deadline))) < 0 && errno == EINTR) {}
    lock_state(r);
    for (waiter **at = list; *at; at = &(*at)->next)
        if (*at == &me) { *at = me.next; break; }
    if (fds[0].revents) return 0;
    return ready == 0 ? fail(e, GRPC_DEADLINE_EXCEEDED, "timed out waiting")
                      : fail(e, GRPC_CANCELLED, "the caller went away");
}

static char *id_text(char out[65], slice id) { return snprintf(out, 65, "%.*s", PR(id)), out; }

/* -- looking up -------------------------------------------------------------------------------- */

/* What an id, or a prefix of one that fits no other object, names. NULL: NOT_FOUND, or
 * INVALID_ARGUMENT when several fit. Locked. */
static void *find_by_id(const sorted *s, slice id, const char *what, error *e)
{
    size_t i = sorted_place(s, id);
    bool fits = id.n && i < s->n && s->rows[i].key.n >= id.n && !memcmp(s->rows[i].key.p, id.p, id.n);
    if (!fits) return fail(e, GRPC_NOT_FOUND, "%s \"%.*s\" not found", what, PR(id)), NULL;
    bool next_fits = i + 1 < s->n && s->rows[i + 1].key.n >= id.n && !memcmp(s->rows[i + 1].key.p, id.p, id.n);
    if (s->rows[i].key.n == id.n || !next_fits) return s->rows[i].object;
    return fail(e, GRPC_INVALID_ARGUMENT, "%s \"%.*s\" is ambiguous: more than one id starts so", what, PR(id)), NULL;
}

/* Pods and containers that are still being made, or already being removed, are not seen. Locked. */
static pod *pod_find(runtime *r, slice id, error *e)
{
    pod *p = find_by_id(&r->pods_by_id, id, "pod sandbox", e);
    if (p && p->state != POD_READY && p->state != POD_NOTREADY)
        return fail(e, GRPC_NOT_FOUND, "pod sandbox \"%.*s\" not found", PR(id)), NULL;
    return p;
}

static container *container_find(runtime *r, slice id, error *e)
{
    container *c = find_by_id(&r->containers_by_id, id, "container", e);
    if (c && (c->state == BOX_MAKING || c->state == BOX_REMOVING))
        return fail(e, GRPC_NOT_FOUND, "container \"%.*s\" not found", PR(id)), NULL;
    return c;
}

static void pod_free(job *j) /* on the loop's thread: a reply that borrows from it has been sent */
{
    pod *p = OWNER(j, pod, release);
    assert(!p->containers);
    assert(!p->waiters);
    assert(p->link.fd < 0);
    assert(p->holds == 0);
    close_fd(&p->monitor);
    buf_free(&p->inbox);
    arena_free(&p->memory);
    free(p);
}

/* A hold keeps the object's memory while the lock is not held; the last one to let go of an object
 * that has been taken out of the tables frees it. Locked. */
static pod *pod_hold(pod *p) { return p->holds++, p; }
static void pod_drop(pod *p)
{
    wake(p->waiters);
    if (--p->holds == 0 && p->state == POD_REMOVING) loop_post(p->runtime->loop, &p->release);
}

static void container_free(job *j)
{
    container *c = OWNER(j, container, release);
    runtime *r = c->pod->runtime;
    lock_state(r);
    pod_drop(c->pod);
    unlock_state(r);
    arena_free(&c->memory);
    free(c);
}

static container *container_hold(container *c) { return c->holds++, c; }
static void container_drop(container *c)
{
    wake(c->waiters);
    if (--c->holds == 0 && c->state == BOX_REMOVING) loop_post(c->pod->runtime->loop, &c->release);
}

/* -- turns ------------------------------------------------------------------------------------- */

/* Waits for the pod's turn. 0 with the turn taken; -1 without. Locked, and the pod is held. */
static int pod_take_turn(pod *p, int cancel, error *e)
{
    while (p->turn_taken)
        if (wait_change(p->runtime, &p->waiters, cancel, 0, e) < 0) return fail_in(e, "pod sandbox is busy");
    p->turn_taken = true;
    return 0;
}

static void pod_give_turn(pod *p)
{
    assert(p->turn_taken);
    p->turn_taken = false;
    wake(p->waiters);
}

static int container_take_turn(container *c, int cancel, error *e)
{
    while (c->turn_taken)
        if (wait_change(c->pod->runtime, &c->waiters, cancel, 0, e) < 0) return fail_in(e, "container is busy");
    c->turn_taken = true;
    return 0;
}

static void container_give_turn(container *c)
{
    assert(c->turn_taken);
    c->turn_taken = false;
    wake(c->waiters);
}

/* Begins something new in the pod (a create, a start), which a stop of the pod then waits for. */
static int pod_begin_work(pod *p, error *e)
{
    if (p->state == POD_READY && !p->closing) return p->working++, 0;
    return fail(e, GRPC_FAILED_PRECONDITION, "pod sandbox \"%.*s\" is not ready", PR(p->record.id));
}

static void pod_end_work(pod *p)
{
    assert(p->working);
    p->working--;
    wake(p->waiters);
}

/* -- records ----------------------------------------------------------------------------------- */

/* Writes a message as the JSON file `name` of `dir`. A pod's records need no fsync: a power cut ends
 * the pod anyway, and what cannot be read after one is cleaned up. */
static int state_write(int dir, const char *name, const pb_message *type, const void *record, error *e)
{
    OWNED_BUF text = { 0 };
    pb_write_json(type, record, PB_INDENT, &text);
    if (text.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "write %s: out of memory", name);
    return file_replace(dir, name, buf_view(&text), ATOMIC, e);
}

static int state_read(int dir, const char *name, const pb_message *type, arena *a, void *record, error *e)
{
    slice text;
    if (file_read(dir, name, STATE_MAX, a, &text, e) < 0) return -1;
    return pb_read_json_lax(type, text, a, record, e) < 0 ? fail_in(e, "%s", name) : 0;
}

static int pod_write(pod *p, error *e)
{
    char id[65];
    OWNED_FD dir = openat(p->runtime->pods, id_text(id, p->record.id), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return fail_sys(e, GRPC_INTERNAL, "open the directory of pod %s", id);
    return state_write(dir, "pod.json", &PodRecord_msg, &p->record, e);
}

/* Opens (and makes, if `make`) the directory of a container's state below its pod's. */
static int container_dir(const container *c, bool make, error *e)
{
    char path[160];
    snprintf(path, sizeof path, "%.*s/containers/%.*s", PR(c->record.pod_id), PR(c->record.id));
    int pods = c->pod->runtime->pods;
    if (make && mkdirat(pods, path, 0700) < 0 && errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "mkdir %s", path);
    int dir = openat(pods, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dir < 0 ? fail_sys(e, GRPC_INTERNAL, "open %s", path) : dir;
}

static bool new_id(char out[65])
{
    uint8_t random[32];
    if (!random_bytes(random, sizeof random)) return false;
    hex_encode(random, sizeof random, out);
    return true;
}

static int64_t next_created(runtime *r) /* locked */
{
    return r->last_created = MAX(clock_wall(), r->last_created + 1);
}

/* -- what a monitor tells ---------------------------------------------------------------------- */

/* Copies an exit that came in a message that will be freed into the container's own memory. */
static void container_set_exit(container *c, const ContainerExit *exit)
{
    if (c->state == BOX_EXITED || c->state == BOX_REMOVING) return;
    pb_copy(&ContainerExit_msg, exit, &c->memory, &c->exit);
    c->started_at = c->exit.started_at ? c->exit.started_at : c->started_at;
    c->pid = 0;
    box_move(c, BOX_EXIT);
    wake(c->waiters);
    wake(c->pod->waiters);
}

/* Takes over what a monitor says of one of its containers. Locked. */
static void container_heard(pod *p, const ContainerRun *run)
{
    container *c = sorted_find(&p->runtime->containers_by_id, run->id);
    if (!c || c->pod != p || c->state == BOX_MAKING) return;
    if (run->exit) {
        container_set_exit(c, run->exit);
        return;
    }
    if (run->state != ContainerState_CONTAINER_RUNNING || c->state == BOX_EXITED || c->state == BOX_REMOVING) return;
    c->started_at = run->started_at;
    c->pid = run->pid;
    box_move(c, BOX_RAN);
    wake(c->waiters);
}

/* The exit of which nobody knows more than that it has happened. */
static void container_lost(container *c, const char *why)
{
    ContainerExit lost = { .id = c->record.id, .exit_code = 255, .started_at = c->started_at,
                           .finished_at = clock_wall(), .reason = SLICE("Unknown"), .message = slice_of(why) };
    container_set_exit(c, &lost);
}

/* Kills and removes what is left in a cgroup whose monitor is gone: no process stays unowned. */
static void cgroup_clear(runtime *r, slice path)
{
    char text[PATH_MAX];
    error e;
    if (!path.n || path.n >= sizeof text) return;
    snprintf(text, sizeof text, "%.*s", PR(path));
    OWNED_FD cgroup = openat(r->cgroups.root, text, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cgroup < 0) return;
    if (cg_kill(cgroup, &e) < 0 || cg_wait_empty(cgroup, clock_mono() + KILL_PATIENCE, &e) < 0 || cg_remove(&r->cgroups, text, &e) < 0)
        log_warn("cgroup %s: %s", text, e.text);
}

/* What is to be done when a pod's monitor has gone without being asked to, outside the lock: its
 * containers are killed, and have exited with 255. */
static void pod_orphaned(pod *p)
{
    runtime *r = p->runtime;
    for (;;) { /* one container at a time: the lock is not held while the kernel kills */
        container *c;
        lock_state(r);
        for (c = p->containers; c && (c->state == BOX_EXITED || c->state == BOX_MAKING || c->state == BOX_CREATED || c->state == BOX_REMOVING);) c = c->next;
        if (c) container_hold(c);
        unlock_state(r);
        if (!c) break;
        cgroup_clear(r, c->record.spec->cgroup);
        error e;
        lock_state(r);
        container_lost(c, "the pod's monitor died");
        unlock_state(r);
        OWNED_FD dir = container_dir(c, false, &e);
        if (dir < 0 || state_write(dir, "exit", &ContainerExit_msg, &c->exit, &e) < 0) log_warn("exit record: %s", e.text);
        lock_state(r);
        container_drop(c);
        unlock_state(r);
    }
    if (p->record.spec->pid == NamespaceMode_POD) cgroup_clear(r, p->record.spec->cgroup);
}

static void *pod_orphaned_thread(void *arg)
{
    pod *p = arg;
    runtime *r = p->runtime;
    log_warn("pod %.12s: its monitor died; its containers are killed", (const char *)p->record.id.p);
    pod_orphaned(p);
    LOCKED(r);
    if (p->state == POD_READY) p->state = POD_NOTREADY;
    p->record.state = PodSandboxState_SANDBOX_NOTREADY;
    pod_drop(p);
    if (--r->background == 0) pthread_cond_broadcast(&r->quiet);
    return NULL;
}

/* Takes the watch off the loop. On the loop's thread. */
static void pod_unlink(pod *p)
{
    if (p->link.fd < 0) return;
    loop_forget(p->runtime->loop, &p->link);
    close_fd(&p->link.fd);
    p->inbox.n = 0;
}

/* The monitor has hung up. If nobody asked it to (a stop closes the pod first), it has died. */
static void pod_monitor_gone(pod *p)
{
    runtime *r = p->runtime;
    pod_unlink(p);
    LOCKED(r);
    pthread_t thread;
    if (!p->closing && p->state == POD_READY) {
        pod_hold(p);
        r->background++;
        if (pthread_create(&thread, NULL, pod_orphaned_thread, p) == 0) pthread_detach(thread);
        else {
            r->background--;
            p->state = POD_NOTREADY;
            pod_drop(p);
        }
    }
    pod_drop(p); /* the link's hold */
}

/* Takes the whole messages off the front of p->inbox. False: the monitor talks nonsense. */
static bool pod_read_inbox(pod *p)
{
    for (;;) {
        slice rest = buf_view(&p->inbox), head, body;
        if (!slice_take(&rest, 4, &head)) return true;
        uint32_t n = (uint32_t)head.p[0] | (uint32_t)head.p[1] << 8 | (uint32_t)head.p[2] << 16 | (uint32_t)head.p[3] << 24;
        if (n > STATE_MAX) return false;
        if (!slice_take(&rest, n, &body)) return true;
        OWNED_ARENA a = arena_make(2 * STATE_MAX);
        MonitorReply reply = { 0 };
        error e;
        if (pb_decode(&MonitorReply_msg, body, &a, &reply, &e) < 0) return false;
        lock_state(p->runtime);
        for (size_t i = 0; i < reply.containers.n; i++) container_heard(p, &reply.containers.p[i]);
        unlock_state(p->runtime);
        buf_drop(&p->inbox, 4 + (size_t)n);
    }
}

static void pod_link_ready(watch *w, uint32_t events)
{
    pod *p = OWNER(w, pod, link);
    (void)events;
    if (!buf_reserve(&p->inbox, 4 * KIB)) {
        pod_monitor_gone(p);
        return;
    }
    ssize_t n = recv(w->fd, p->inbox.p + p->inbox.n, p->inbox.cap - p->inbox.n, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) p->inbox.n += (size_t)n;
    if (n <= 0 || !pod_read_inbox(p)) pod_monitor_gone(p);
}

/* On the loop's thread: begins to listen to p->link.fd, a connection on which WATCH was asked. */
static void pod_attend(job *j)
{
    pod *p = OWNER(j, pod, attend);
    error e;
    if (loop_watch(p->runtime->loop, &p->link, EPOLLIN | EPOLLRDHUP, &e) == 0) return;
    log_error("pod %.12s: %s", (const char *)p->record.id.p, e.text);
    close_fd(&p->link.fd);
    LOCKED(p->runtime);
    pod_drop(p);
}

static const char *pod_socket(const pod *p, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/pods/%.*s/monitor.sock", p->runtime->options->run, PR(p->record.id));
    return out;
}

/* Connects to the pod's monitor, learns the state of all its containers and goes on listening.
 * Not locked. -1: the monitor does not answer. */
static int pod_follow(pod *p, error *e)
{
    char path[PATH_MAX];
    OWNED_ARENA a = arena_make(2 * STATE_MAX);
    OWNED_FD conn = monitor_connect(pod_socket(p, path), e);
    MonitorRequest ask = { .version = STATE_VERSION, .call = MONITOR_WATCH };
    MonitorReply reply = { 0 };
    monitor_wait patience = { .cancel_fd = -1, .deadline = clock_mono() + MONITOR_PATIENCE };
    if (conn < 0 || monitor_send(conn, &ask, NULL, 0, e) < 0) return -1;
    if (monitor_receive(conn, &patience, &a, &reply, e) < 0 || monitor_verdict(&reply, e) < 0) return -1;
    LOCKED(p->runtime);
    for (size_t i = 0; i < reply.containers.n; i++) container_heard(p, &reply.containers.p[i]);
    p->link = (watch){ .fd = give_fd(&conn), .ready = pod_link_ready };
    p->attend.run = pod_attend;
    pod_hold(p);
    loop_post(p->runtime->loop, &p->attend);
    return 0;
}

/* One round trip to the pod's monitor. */
static int pod_ask(const pod *p, const MonitorRequest *ask, arena *a, MonitorReply *reply, error *e)
{
    char path[PATH_MAX];
    return monitor_call(pod_socket(p, path), ask, a, reply, e);
}

/* -- a pod comes and goes ---------------------------------------------------------------------- */

/* The CNI arguments of this pod; `net` must live as long as they are used. */
static cni_args pod_cni_args(const pod *p, const cni_network *net, int cancel, arena *a)
{
    const PodSandboxMetadata *m = p->record.config->metadata;
    return (cni_args){ .network = net, .bin_dirs = p->runtime->options->cni_bin_dir,
                       .netns_path = arena_str(a, p->record.spec->netns), .container_id = arena_str(a, p->record.id),
                       .ifname = "eth0", .pod_name = m->name, .pod_namespace = m->name_space, .pod_uid = m->uid,
                       .config = p->record.config, .deadline = clock_mono() + PLUGIN_PATIENCE, .cancel_fd = cancel };
}

static int pod_network_up(pod *p, int cancel, error *e)
{
    OWNED_ARENA a = arena_make(16 * MIB);
    cni_network net;
    cni_result result = { 0 };
    if (cni_load(p->runtime->options->cni_conf_dir, &a, &net, e) < 0) return fail_in(e, "set up the pod's network");
    fault_point("pod.network");
    cni_args args = pod_cni_args(p, &net, cancel, &a);
    if (cni_add(&args, &a, &result, e) < 0) return fail_in(e, "set up the pod's network");
    p->record.ips.p = arena_alloc(&p->memory, result.ips.n * sizeof *p->record.ips.p);
    p->record.ips.n = p->record.ips.p ? result.ips.n : 0;
    for (size_t i = 0; i < p->record.ips.n; i++) p->record.ips.p[i] = arena_copy(&p->memory, result.ips.p[i]);
    p->record.cni_result = arena_copy(&p->memory, result.result_json);
    return p->memory.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory") : 0;
}

/* CNI DEL. A plugin that fails is told of in the log and does not hold up the removal for ever. */
static void pod_network_down(pod *p)
{
    OWNED_ARENA a = arena_make(16 * MIB);
    cni_network net;
    error e;
    if (!p->record.network_up) return;
    if (cni_load(p->runtime->options->cni_conf_dir, &a, &net, &e) < 0) log_warn("pod %.12s: CNI DEL: %s", (const char *)p->record.id.p, e.text);
    else {
        cni_args args = pod_cni_args(p, &net, -1, &a);
        if (access(args.netns_path, F_OK) < 0) args.netns_path = ""; /* after a reboot: the addresses are still to be freed */
        if (cni_del(&args, p->record.cni_result, &e) < 0) log_warn("pod %.12s: CNI DEL: %s", (const char *)p->record.id.p, e.text);
    }
    p->record.network_up = false;
}

/* Makes one of the files that krun gives to a pod: /etc/hosts, /etc/hostname, /etc/resolv.conf. */
static int pod_write_files(pod *p, int dir, error *e)
{
    OWNED_ARENA a = arena_make(4 * MIB);
    OWNED_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    OWNED_FD logs = -1; /* the kubelet makes it; other clients leave that to us */
    if (p->record.config->log_directory.n) {
        logs = make_dir_inside(root, arena_str(&a, p->record.config->log_directory), 0755, e);
        if (logs < 0) return fail_in(e, "log_directory");
    }
    for (size_t i = 0; i < SPEC_POD_FILES; i++) {
        slice text;
        if (spec_pod_file(p->record.config, i, &a, &text, e) < 0) return -1;
        if (file_replace(dir, spec_pod_files[i].name, text, ATOMIC, e) < 0) return -1;
        if (fchmodat(dir, spec_pod_files[i].name, 0644, 0) < 0) return fail_sys(e, GRPC_INTERNAL, "chmod %s", spec_pod_files[i].name);
    }
    return 0;
}

/* Starts the monitor and has it make the namespaces. The socket listens before the monitor runs,
 * so there is no moment at which a connect could fail. */
static int pod_start_monitor(pod *p, int state_dir, error *e)
{
    runtime *r = p->runtime;
    char id[65], path[PATH_MAX];
    id_text(id, p->record.id);
    if (mkdirat(r->run_pods, id, 0700) < 0) return fail_sys(e, GRPC_INTERNAL, "mkdir %s/pods/%s", r->options->run, id);
    OWNED_FD listener = monitor_listen(pod_socket(p, path), e);
    if (listener < 0) return -1;
    fault_point("pod.listen");
    OWNED_FD layers = openat(r->root, "layers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    monitor_args args = { .pod_id = id, .listen_fd = listener, .state_dir = state_dir, .layers_dir = layers,
                          .cgroup_root = r->cgroups.root, .home_cgroup = r->monitors };
    pid_t pid;
    p->monitor = monitor_spawn(&args, &pid, e);
    if (p->monitor < 0) return -1;
    p->record.monitor_pid = pid;
    fault_point("pod.monitor");
    OWNED_ARENA a = arena_make(MIB);
    MonitorRequest ask = { .version = STATE_VERSION, .call = MONITOR_SETUP, .pod = p->record.spec };
    MonitorReply reply = { 0 };
    return pod_ask(p, &ask, &a, &reply, e);
}

/* Notes which levels of the pod's cgroup path are not there yet, so that they can be removed again
 * by a daemon that knows no more than the record. What a kubelet has made stays the kubelet's. */
static int pod_plan_cgroups(pod *p, const char *path, error *e)
{
    size_t levels = mount_depth(slice_of(path));
    char level[PATH_MAX];
    p->record.cgroups_made.p = arena_alloc(&p->memory, MAX(levels, (size_t)1) * sizeof *p->record.cgroups_made.p);
    if (!p->record.cgroups_made.p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a pod");
    for (const char *end = path; *end;) {
        end += strspn(end, "/");
        end += strcspn(end, "/");
        snprintf(level, sizeof level, "%.*s", (int)(end - path), path);
        if (faccessat(p->runtime->cgroups.root, level, F_OK, 0) < 0)
            p->record.cgroups_made.p[p->record.cgroups_made.n++] = arena_copy(&p->memory, slice_of(level));
    }
    return 0;
}

/* The steps of RunPodSandbox after the name is reserved. What they will do is on disk before they do
 * it: a crash between any two of them is undone by the next start. Whatever was done here,
 * pod_tear_down undoes. */
static int pod_build(pod *p, int cancel, error *e)
{
    runtime *r = p->runtime;
    char id[65], path[96], cgroup[PATH_MAX];
    snprintf(cgroup, sizeof cgroup, "%.*s", PR(p->record.spec->cgroup_parent));
    if (pod_plan_cgroups(p, cgroup, e) < 0) return -1;
    p->record.network_up = spec_wants_cni(p->record.config);
    if (mkdirat(r->pods, id_text(id, p->record.id), 0700) < 0) return fail_sys(e, GRPC_INTERNAL, "mkdir %s/pods/%s", r->options->root, id);
    fault_point("pod.directory");
    snprintf(path, sizeof path, "%s/containers", id);
    if (mkdirat(r->pods, path, 0700) < 0) return fail_sys(e, GRPC_INTERNAL, "mkdir %s/pods/%s", r->options->root, path);
    OWNED_FD dir = openat(r->pods, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return fail_sys(e, GRPC_INTERNAL, "open %s/pods/%s", r->options->root, id);
    if (state_write(dir, "pod.json", &PodRecord_msg, &p->record, e) < 0) return -1;
    fault_point("pod.reserved");
    OWNED_FD made = cg_make(&r->cgroups, cgroup, NULL, NULL, e);
    if (made < 0) return fail_in(e, "pod cgroup");
    fault_point("pod.cgroup");
    if (pod_write_files(p, dir, e) < 0 || pod_start_monitor(p, dir, e) < 0) return -1;
    fault_point("pod.namespaces");
    if (p->record.network_up && pod_network_up(p, cancel, e) < 0) return -1;
    fault_point("pod.connected");
    p->record.state = PodSandboxState_SANDBOX_READY;
    p->record.was_ready = true;
    if (state_write(dir, "pod.json", &PodRecord_msg, &p->record, e) < 0) return -1;
    return pod_follow(p, e);
}

/* Ends the pod's monitor, and with it its namespaces and all its processes. */
static void pod_stop_monitor(pod *p)
{
    OWNED_ARENA a = arena_make(2 * STATE_MAX);
    MonitorRequest ask = { .version = STATE_VERSION, .call = MONITOR_SHUTDOWN };
    MonitorReply reply = { 0 };
    error e;
    if (pod_ask(p, &ask, &a, &reply, &e) < 0) log_debug("pod %.12s: monitor: %s", (const char *)p->record.id.p, e.text);
    lock_state(p->runtime);
    for (size_t i = 0; i < reply.containers.n; i++) container_heard(p, &reply.containers.p[i]);
    unlock_state(p->runtime);
    pod_orphaned(p); /* finds nothing, unless the monitor could not do its work */
    if (p->monitor < 0) return;
    if (reap(p->monitor, clock_mono() + MONITOR_PATIENCE) < 0) log_warn("pod %.12s: its monitor does not end", (const char *)p->record.id.p);
    close_fd(&p->monitor);
}

static void netns_unpin(const pod *p)
{
    OWNED_ARENA a = arena_make(4 * KIB);
    if (!p->record.spec->netns.n) return;
    const char *path = arena_str(&a, p->record.spec->netns);
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL && errno != ENOENT) log_warn("unmount %s: %s", path, strerror(errno));
    if (unlink(path) < 0 && errno != ENOENT) log_warn("remove %s: %s", path, strerror(errno));
}

/* What ends a pod's life but keeps its record: everything that runs. Each part is harmless when
 * there is nothing to undo, so it does for a whole pod, a half-built one and one that a crash left. */
static void pod_halt(pod *p)
{
    char id[65];
    error e;
    pod_network_down(p);
    fault_point("pod.disconnected");
    pod_stop_monitor(p);
    fault_point("pod.stopped");
    netns_unpin(p);
    for (size_t i = p->record.cgroups_made.n; i--;) { /* the deepest was made last */
        OWNED_ARENA a = arena_make(8 * KIB);
        const char *path = arena_str(&a, p->record.cgroups_made.p[i]);
        if (cg_remove_empty(&p->runtime->cgroups, path, &e) < 0) break; /* others use it: they remove it */
    }
    if (tree_remove(p->runtime->run_pods, id_text(id, p->record.id), &e) < 0) log_warn("pod %.12s: %s", id, e.text);
}

/* Takes the pod and its containers out of the tables; whoever holds the last hold frees. Locked. */
static void pod_take_out(pod *p)
{
    runtime *r = p->runtime;
    p->state = POD_REMOVING;
    sorted_remove(&r->pods_by_id, p->record.id, p);
    sorted_remove(&r->pods_by_key, p->key, p);
    for (container *c = p->containers, *next; c; c = next) {
        next = c->next;
        sorted_remove(&r->containers_by_id, c->record.id, c);
        sorted_remove(&r->containers_by_key, c->key, c);
        container_hold(c);
        c->state = BOX_REMOVING;
        container_drop(c);
    }
    p->containers = NULL;
}

/* Undoes all of pod_build, whole or part. The record goes first: without it there is no pod, and
 * what is left is rubbish that the next start sweeps. */
static int pod_tear_down(pod *p, error *e)
{
    char id[65], path[96];
    pod_halt(p);
    snprintf(path, sizeof path, "%s/pod.json", id_text(id, p->record.id));
    if (unlinkat(p->runtime->pods, path, 0) < 0 && errno != ENOENT) return fail_sys(e, GRPC_INTERNAL, "remove %s", path);
    fault_point("pod.unrecorded");
    return tree_remove(p->runtime->pods, id, e);
}

/* A pod object with a new id, in no table yet. NULL: RESOURCE_EXHAUSTED. */
static pod *pod_new(runtime *r)
{
    pod *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->runtime = r;
    p->memory = arena_make(4 * STATE_MAX);
    p->link.fd = p->monitor = -1;
    p->release.run = pod_free;
    return p;
}

static slice pod_key(arena *a, const PodSandboxMetadata *m)
{
    return slice_of(arena_printf(a, "%.*s_%.*s_%.*s_%u", PR(m->name), PR(m->name_space), PR(m->uid), m->attempt));
}

static void *copy_of(const pb_message *type, const void *from, arena *a)
{
    void *to = arena_alloc(a, type->size);
    return to && pb_copy(type, from, a, to) == 0 ? to : NULL;
}

/* The pod that this metadata names already, if any: joins a creation that is under way, so that a
 * client that lost patience and asks again gets the same pod (never "name is reserved").
 * 1: *id is set; 0: there is none; -1: its creation failed, or it is no longer ready. Locked. */
static int pod_join(runtime *r, slice key, grpc_call *call, slice *id, error *e)
{
    pod *p = sorted_find(&r->pods_by_key, key);
    if (!p) return 0;
    pod_hold(p);
    int done = 0, cancel = grpc_cancel_fd(call, e);
    while (p->state == POD_MAKING && done == 0) done = wait_change(r, &p->waiters, cancel, 0, e);
    if (done == 0 && p->state == POD_READY) *id = arena_copy(&call->arena, p->record.id), done = 1;
    else if (done == 0 && p->state == POD_NOTREADY)
        done = fail(e, GRPC_ALREADY_EXISTS, "pod sandbox \"%.*s\" has this metadata and is stopped: remove it or raise the attempt", PR(p->record.id));
    else if (done == 0) *e = p->failure, done = -1;
    pod_drop(p);
    return done;
}

/* Fills a new pod's record from the request. Copies all: the request goes with its call. */
static int pod_describe(pod *p, const RunPodSandboxRequest *in, error *e)
{
    runtime *r = p->runtime;
    char id[65];
    PodRecord *rec = &p->record;
    if (!new_id(id)) return fail_sys(e, GRPC_INTERNAL, "getrandom");
    rec->version = STATE_VERSION;
    rec->id = arena_copy(&p->memory, slice_of(id));
    rec->state = PodSandboxState_SANDBOX_NOTREADY; /* until it is: see pod_build */
    rec->config = copy_of(&PodSandboxConfig_msg, in->config, &p->memory);
    rec->runtime_handler = arena_copy(&p->memory, in->runtime_handler);
    rec->boot_id = arena_copy(&p->memory, slice_of(r->boot_id));
    rec->spec = arena_alloc(&p->memory, sizeof *rec->spec);
    if (!rec->config || !rec->spec) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a pod");
    if (spec_pod(r->options, rec, &p->memory, rec->spec, e) < 0 || sysctl_check(rec->spec, e) < 0) return -1;
    p->key = pod_key(&p->memory, rec->config->metadata);
    return p->memory.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a pod") : 0;
}

/* Puts a described pod into the tables. Locked. */
static int pod_enter(pod *p, error *e)
{
    runtime *r = p->runtime;
    if (sorted_add(&r->pods_by_id, p->record.id, p)) {
        if (sorted_add(&r->pods_by_key, p->key, p)) return 0;
        sorted_remove(&r->pods_by_id, p->record.id, p);
    }
    return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a pod");
}

/* RunPodSandbox. *id is the call's. Fails with nothing left behind, or, when even the undo failed,
 * with a NOTREADY pod in the list that can be stopped and removed again. */
static int pod_run(runtime *r, const RunPodSandboxRequest *in, grpc_call *call, slice *id, error *e)
{
    if (spec_check_pod(r->options, in, e) < 0) return -1;
    pod *p = pod_new(r);
    if (!p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a pod");
    int described = pod_describe(p, in, e);
    lock_state(r);
    int joined = described < 0 ? -1 : pod_join(r, p->key, call, id, e);
    p->record.created_at = next_created(r);
    if (joined == 0 && pod_enter(p, e) < 0) joined = -1;
    if (joined != 0) {
        unlock_state(r);
        pod_free(&p->release);
        return joined < 0 ? -1 : 0;
    }
    pod_hold(p);
    p->turn_taken = true;
    unlock_state(r);
    int cancel = grpc_cancel_fd(call, e);
    int built = cancel < 0 ? -1 : pod_build(p, cancel, e);
    error undo;
    bool undone = built == 0 || pod_tear_down(p, &undo) == 0;
    if (!undone) log_error("pod %.12s: undo: %s", (const char *)p->record.id.p, undo.text);
    LOCKED(r);
    if (built == 0) log_info("pod %.12s: %.*s/%.*s is ready", (const char *)p->record.id.p, PR(p->record.config->metadata->name_space), PR(p->record.config->metadata->name));
    if (built == 0) p->state = POD_READY, *id = arena_copy(&call->arena, p->record.id);
    else if (!undone) p->state = POD_NOTREADY;
    else p->failure = *e, pod_take_out(p);
    pod_give_turn(p);
    pod_drop(p);
    return built;
}

/* Waits until no create or start is under way in a pod that is closing. Locked. */
static void pod_wait_idle(pod *p)
{
    error e;
    while (p->working && wait_change(p->runtime, &p->waiters, -1, 0, &e) == 0) {}
}

/* StopPodSandbox: success when it is stopped already, or unknown. */
static int pod_stop(runtime *r, slice id, grpc_call *call, error *e)
{
    lock_state(r);
    pod *p = pod_find(r, id, e);
    if (!p) {
        unlock_state(r);
        return e->code == GRPC_NOT_FOUND ? 0 : -1;
    }
    pod_hold(p);
    p->closing = true;
    int mine = pod_take_turn(p, grpc_cancel_fd(call, e), e);
    int done = mine;
    if (mine == 0) {
        pod_wait_idle(p);
        bool running = p->state == POD_READY || p->record.network_up;
        unlock_state(r);
        if (running) {
            pod_halt(p);
            p->record.state = PodSandboxState_SANDBOX_NOTREADY;
            done = pod_write(p, e);
        }
        lock_state(r);
        if (p->state == POD_READY) p->state = POD_NOTREADY;
        pod_give_turn(p);
    }
    pod_drop(p);
    unlock_state(r);
    return done;
}

/* RemovePodSandbox: stops it first if need be; its containers go with it. */
static int pod_remove(runtime *r, slice id, grpc_call *call, error *e)
{
    lock_state(r);
    pod *p = pod_find(r, id, e);
    if (!p) {
        unlock_state(r);
        return e->code == GRPC_NOT_FOUND ? 0 : -1;
    }
    pod_hold(p);
    p->closing = true;
    int done = pod_take_turn(p, grpc_cancel_fd(call, e), e);
    if (done == 0) {
        pod_wait_idle(p);
        bool here = p->state == POD_READY || p->state == POD_NOTREADY; /* or another remove was faster */
        unlock_state(r);
        if (here) done = pod_tear_down(p, e);
        lock_state(r);
        if (here && done == 0) {
            for (container *c = p->containers; c; c = c->next) image_layers_release(r->images, &c->record);
            pod_take_out(p);
        }
        pod_give_turn(p);
    }
    pod_drop(p);
    unlock_state(r);
    return done;
}

/* -- a container comes and goes ---------------------------------------------------------------- */

static slice container_key(arena *a, slice pod_id, const ContainerMetadata *m)
{
    return slice_of(arena_printf(a, "%.*s_%.*s_%u", PR(pod_id), PR(m->name), m->attempt));
}

/* As pod_join: 1 with *id of a container that was made for this very request already. Locked. */
static int container_join(runtime *r, slice key, grpc_call *call, slice *id, error *e)
{
    container *c = sorted_find(&r->containers_by_key, key);
    if (!c) return 0;
    container_hold(c);
    int done = 0, cancel = grpc_cancel_fd(call, e);
    while (c->state == BOX_MAKING && done == 0) done = wait_change(r, &c->waiters, cancel, 0, e);
    if (done == 0 && c->state == BOX_CREATED) *id = arena_copy(&call->arena, c->record.id), done = 1;
    else if (done == 0 && c->state == BOX_REMOVING && c->failure.code) *e = c->failure, done = -1;
    else if (done == 0)
        done = fail(e, GRPC_ALREADY_EXISTS, "container \"%.*s\" has this name and attempt and was started already", PR(c->record.id));
    container_drop(c);
    return done;
}

/* Fills the record: what the request says, and what follows from it, the image and the pod. */
static int container_describe(container *c, const CreateContainerRequest *in, const ImageRecord *image, error *e)
{
    runtime *r = c->pod->runtime;
    char id[65];
    ContainerRecord *rec = &c->record;
    if (!new_id(id)) return fail_sys(e, GRPC_INTERNAL, "getrandom");
    rec->version = STATE_VERSION;
    rec->id = arena_copy(&c->memory, slice_of(id));
    rec->pod_id = c->pod->record.id;
    rec->config = copy_of(&ContainerConfig_msg, in->config, &c->memory);
    rec->image_id = arena_copy(&c->memory, image->id);
    rec->image_ref = rec->image_id;
    rec->image_name = arena_copy(&c->memory, in->config->image->image);
    rec->spec = arena_alloc(&c->memory, sizeof *rec->spec);
    if (!rec->config || !rec->spec || c->memory.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a container");
    c->key = container_key(&c->memory, rec->pod_id, rec->config->metadata);
    spec_context context = { .options = r->options, .cgroups = &r->cgroups, .images = r->images, .root = r->root,
                             .pod = &c->pod->record, .image = image, .a = &c->memory };
    return spec_container(&context, rec, e);
}

static int container_write(container *c, error *e)
{
    OWNED_FD dir = container_dir(c, true, e);
    fault_point("container.directory");
    return dir < 0 ? -1 : state_write(dir, "container.json", &ContainerRecord_msg, &c->record, e);
}

/* Removes what container_write and the monitor have made. The record first: without it the rest is
 * rubbish that the next start sweeps. */
static int container_delete(container *c, error *e)
{
    char path[192];
    int pods = c->pod->runtime->pods;
    snprintf(path, sizeof path, "%.*s/containers/%.*s/container.json", PR(c->record.pod_id), PR(c->record.id));
    if (unlinkat(pods, path, 0) < 0 && errno != ENOENT) return fail_sys(e, GRPC_INTERNAL, "remove %s", path);
    fault_point("container.unrecorded");
    snprintf(path, sizeof path, "%.*s/containers/%.*s", PR(c->record.pod_id), PR(c->record.id));
    return tree_remove(pods, path, e);
}

static int container_enter(container *c, error *e) /* locked */
{
    runtime *r = c->pod->runtime;
    if (sorted_add(&r->containers_by_id, c->record.id, c)) {
        if (sorted_add(&r->containers_by_key, c->key, c)) {
            c->next = c->pod->containers;
            c->pod->containers = c;
            return 0;
        }
        sorted_remove(&r->containers_by_id, c->record.id, c);
    }
    return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a container");
}

static void container_take_out(container *c) /* locked */
{
    runtime *r = c->pod->runtime;
    container **at = &c->pod->containers;
    sorted_remove(&r->containers_by_id, c->record.id, c);
    sorted_remove(&r->containers_by_key, c->key, c);
    while (*at && *at != c) at = &(*at)->next;
    if (*at) *at = c->next;
    c->next = NULL;
    box_move(c, BOX_REMOVE);
}

static container *container_new(pod *p) /* locked: it holds the pod */
{
    container *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    c->pod = pod_hold(p);
    c->memory = arena_make(4 * STATE_MAX);
    c->state = BOX_MAKING;
    c->release.run = container_free;
    return c;
}

/* The part of CreateContainer that has the pod's leave (pod_begin_work). Not locked. */
static int container_make(pod *p, const CreateContainerRequest *in, grpc_call *call, slice *id, error *e)
{
    runtime *r = p->runtime;
    const ImageRecord *image = image_hold(r->images, in->config->image->image);
    if (!image) return fail(e, GRPC_NOT_FOUND, "image \"%.*s\" not found: pull it first", PR(in->config->image->image));
    lock_state(r);
    container *c = container_new(p);
    unlock_state(r);
    int done = !c ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a container") : container_describe(c, in, image, e);
    lock_state(r);
    if (done == 0) done = container_join(r, c->key, call, id, e);
    bool mine = done == 0;
    if (mine) c->record.created_at = next_created(r);
    if (mine && (done = container_enter(c, e)) < 0) mine = false;
    if (mine) container_hold(c);
    unlock_state(r);
    if (mine) {
        image_layers_hold(r->images, &c->record);
        done = container_write(c, e);
        fault_point("container.recorded");
        error undo;
        if (done < 0 && container_delete(c, &undo) < 0) log_error("container %.12s: undo: %s", (const char *)c->record.id.p, undo.text);
        if (done < 0) image_layers_release(r->images, &c->record);
        lock_state(r);
        if (done == 0) box_move(c, BOX_MADE), *id = arena_copy(&call->arena, c->record.id);
        else c->failure = *e, container_take_out(c);
        container_drop(c);
        unlock_state(r);
    } else if (c) container_free(&c->release);
    image_drop(r->images, image);
    return done < 0 ? -1 : 0;
}

/* CreateContainer. All that can be known now is checked now; nothing runs yet. */
static int container_create(runtime *r, const CreateContainerRequest *in, grpc_call *call, slice *id, error *e)
{
    if (spec_check_container(in, e) < 0) return -1;
    lock_state(r);
    pod *p = pod_find(r, in->pod_sandbox_id, e);
    int done = p ? pod_begin_work(p, e) : -1;
    if (done == 0) pod_hold(p);
    unlock_state(r);
    if (done < 0) return -1;
    done = container_make(p, in, call, id, e);
    LOCKED(r);
    pod_end_work(p);
    pod_drop(p);
    return done;
}

/* Has the monitor start it; when this returns, the program is running or the container EXITED. */
static int container_launch(container *c, error *e)
{
    OWNED_ARENA a = arena_make(STATE_MAX);
    MonitorRequest ask = { .version = STATE_VERSION, .call = MONITOR_START, .container = c->record.spec };
    MonitorReply reply = { 0 };
    fault_point("container.start");
    int done = pod_ask(c->pod, &ask, &a, &reply, e);
    fault_point("container.started");
    LOCKED(c->pod->runtime);
    for (size_t i = 0; i < reply.containers.n; i++) container_heard(c->pod, &reply.containers.p[i]);
    if (done == 0 || c->state == BOX_EXITED) return done;
    ContainerExit failed = { .id = c->record.id, .exit_code = 128, .finished_at = clock_wall(),
                             .reason = SLICE("StartError"), .message = slice_of(e->text) };
    container_set_exit(c, &failed);
    return done;
}

/* StartContainer. */
static int container_start(runtime *r, slice id, grpc_call *call, error *e)
{
    LOCKED(r);
    container *c = container_find(r, id, e);
    if (!c || pod_begin_work(c->pod, e) < 0) return -1;
    pod *p = pod_hold(c->pod);
    container_hold(c);
    int done = container_take_turn(c, grpc_cancel_fd(call, e), e);
    if (done == 0 && c->state != BOX_CREATED)
        done = fail(e, GRPC_FAILED_PRECONDITION, "container \"%.*s\" was started already", PR(c->record.id)), container_give_turn(c);
    else if (done == 0) {
        box_move(c, BOX_START);
        unlock_state(r);
        done = container_launch(c, e);
        lock_state(r);
        container_give_turn(c);
    }
    container_drop(c);
    pod_end_work(p);
    pod_drop(p);
    return done;
}

/* Sends a signal to the container's first process, or (sig 0) kills all that runs in it. */
static int container_signal(container *c, int sig, error *e)
{
    OWNED_ARENA a = arena_make(MIB);
    MonitorRequest ask = { .version = STATE_VERSION, .call = sig ? MONITOR_SIGNAL : MONITOR_KILL,
                           .container_id = c->record.id, .signal = sig };
    MonitorReply reply = { 0 };
    return pod_ask(c->pod, &ask, &a, &reply, e);
}

/* Waits, locked, until the container runs no more, the caller has gone or `deadline` has passed. */
static int container_wait_exit(container *c, int cancel, int64_t deadline, error *e)
{
    while (c->state == BOX_STARTING || c->state == BOX_RUNNING)
        if (wait_change(c->pod->runtime, &c->waiters, cancel, deadline, e) < 0) return -1;
    return 0;
}

/* Signal, grace, kill; locked on entry and return. The first signal is sent once, however many stops
 * there are; each of them has its own patience, and the shortest one kills. */
static int container_end(container *c, int64_t grace_ns, int cancel, error *e)
{
    runtime *r = c->pod->runtime;
    while (c->state == BOX_STARTING)
        if (wait_change(r, &c->waiters, cancel, 0, e) < 0) return -1;
    if (c->state != BOX_RUNNING) return 0;
    error lost; /* a monitor that cannot be asked has died: then the exit comes by another way */
    if (grace_ns > 0) {
        int64_t deadline = clock_mono() + grace_ns;
        bool first = !c->stop_sent;
        c->stop_sent = true;
        unlock_state(r);
        if (first && container_signal(c, c->record.spec->stop_signal, &lost) < 0) log_warn("container %.12s: %s", (const char *)c->record.id.p, lost.text);
        lock_state(r);
        int waited = container_wait_exit(c, cancel, deadline, e);
        if (waited == 0 || e->code != GRPC_DEADLINE_EXCEEDED) return waited;
    }
    unlock_state(r);
    if (container_signal(c, 0, &lost) < 0) log_warn("container %.12s: %s", (const char *)c->record.id.p, lost.text);
    lock_state(r);
    if (container_wait_exit(c, cancel, clock_mono() + KILL_PATIENCE, e) == 0) return 0;
    return fail_in(e, "container \"%.12s\" was killed and has not ended", (const char *)c->record.id.p);
}

/* StopContainer: success when it does not run, or is unknown. */
static int container_stop(runtime *r, slice id, int64_t timeout_s, grpc_call *call, error *e)
{
    LOCKED(r);
    container *c = container_find(r, id, e);
    if (!c) return e->code == GRPC_NOT_FOUND ? 0 : -1;
    container_hold(c);
    int64_t grace = timeout_s <= 0 ? 0 : MIN(timeout_s, INT64_C(1000000000)) * NS_PER_SEC;
    int done = container_end(c, grace, grpc_cancel_fd(call, e), e);
    container_drop(c);
    return done;
}

/* RemoveContainer: kills it first if it runs; success when it is unknown. */
static int container_remove(runtime *r, slice id, grpc_call *call, error *e)
{
    LOCKED(r);
    container *c = container_find(r, id, e);
    if (!c) return e->code == GRPC_NOT_FOUND ? 0 : -1;
    pod *p = pod_hold(c->pod);
    container_hold(c);
    int cancel = grpc_cancel_fd(call, e);
    int done = container_take_turn(c, cancel, e);
    if (done == 0) {
        done = container_end(c, 0, cancel, e);
        bool here = done == 0 && c->state != BOX_REMOVING; /* or another remove was faster */
        if (here) {
            unlock_state(r);
            done = container_delete(c, e);
            lock_state(r);
        }
        if (here && done == 0 && c->state != BOX_REMOVING) {
            image_layers_release(r->images, &c->record);
            container_take_out(c);
        }
        container_give_turn(c);
    }
    container_drop(c);
    pod_drop(p);
    return done;
}

/* ReopenContainerLog, and what else is one question to the monitor of a running container. */
static int container_reopen_log(runtime *r, slice id, error *e)
{
    OWNED_ARENA a = arena_make(MIB);
    MonitorReply reply = { 0 };
    lock_state(r);
    container *c = container_find(r, id, e);
    if (!c || (c->state != BOX_RUNNING && fail(e, GRPC_FAILED_PRECONDITION, "container \"%.*s\" is not running", PR(id)))) {
        unlock_state(r);
        return -1;
    }
    container_hold(c);
    unlock_state(r);
    MonitorRequest ask = { .version = STATE_VERSION, .call = MONITOR_REOPEN_LOG, .container_id = c->record.id };
    int done = pod_ask(c->pod, &ask, &a, &reply, e);
    LOCKED(r);
    container_drop(c);
    return done;
}

/* -- exec -------------------------------------------------------------------------------------- */

/* What a command in a container printed. The reply must fit a gRPC message as a whole, so the two
 * streams share the room; what comes after it is full is read and dropped, so that the command
 * never blocks on us. */
enum { EXEC_ROOM = 16 * MIB - 64 * KIB };
typedef struct { int fd; buf text; } exec_stream;

/* Reads what is there now. False at the end of the file. */
static bool exec_read(exec_stream *s, size_t room)
{
    uint8_t chunk[16 * KIB];
    for (;;) {
        ssize_t n = read(s->fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN;
        if (n == 0) return false;
        buf_add(&s->text, chunk, MIN((size_t)n, room > s->text.n ? room - s->text.n : 0));
    }
}

/* Copies output until the monitor answers. When the caller is gone or out of time, our end of the
 * connection is shut, which has the monitor kill all that the command started; it still answers. */
static int exec_follow(int conn, exec_stream out[2], int cancel, int64_t deadline)
{
    bool told = false, more[2] = { true, true };
    for (;;) {
        struct pollfd fds[] = { { .fd = conn, .events = POLLIN }, { .fd = told ? -1 : cancel, .events = POLLIN },
                                { .fd = more[0] ? out[0].fd : -1, .events = POLLIN }, { .fd = more[1] ? out[1].fd : -1, .events = POLLIN } };
        int n = poll(fds, COUNT(fds), told ? -1 : clock_poll_ms(deadline));
        if (n < 0 && errno != EINTR) return -1;
        for (int i = 0; i < 2; i++)
            if (n > 0 && fds[2 + i].revents) more[i] = exec_read(&out[i], EXEC_ROOM - out[!i].text.n);
        if (n > 0 && fds[0].revents) break;
        if (!told && ((n > 0 && fds[1].revents) || (deadline && clock_mono() >= deadline))) {
            shutdown(conn, SHUT_WR);
            told = true;
        }
    }
    /* All that the command itself wrote is in the pipes now. A child that it left behind may hold
     * them open for ever, so their end is not waited for. */
    for (int i = 0; i < 2; i++)
        if (more[i]) exec_read(&out[i], EXEC_ROOM - MIN(out[!i].text.n, (size_t)EXEC_ROOM));
    return told ? 1 : 0;
}

static void exec_close(exec_stream (*out)[2])
{
    for (int i = 0; i < 2; i++) {
        close_fd(&(*out)[i].fd);
        buf_free(&(*out)[i].text);
    }
}

/* Makes the pipes, sends the request with the command's ends of them; returns the connection. */
static int exec_begin(const pod *p, const ExecSpec *exec, exec_stream out[2], error *e)
{
    char path[PATH_MAX];
    int pair[2][2] = { { -1, -1 }, { -1, -1 } };
    MonitorRequest ask = { .version = STATE_VERSION, .call = MONITOR_EXEC, .exec = (ExecSpec *)exec, .container_id = exec->container_id };
    for (int i = 0; i < 2; i++) {
        if (pipe2(pair[i], O_CLOEXEC) < 0) fail_sys(e, GRPC_RESOURCE_EXHAUSTED, "pipe for a command's output");
        else if (fcntl(pair[i][0], F_SETFL, O_NONBLOCK) < 0) fail_sys(e, GRPC_INTERNAL, "pipe for a command's output");
        out[i].fd = pair[i][0];
    }
    OWNED_FD write_out = pair[0][1], write_err = pair[1][1];
    if (write_out < 0 || write_err < 0) return -1;
    OWNED_FD null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    OWNED_FD conn = null < 0 ? fail_sys(e, GRPC_INTERNAL, "open /dev/null") : monitor_connect(pod_socket(p, path), e);
    int fds[3] = { null, write_out, write_err };
    if (conn < 0 || monitor_send(conn, &ask, fds, 3, e) < 0) return -1;
    return give_fd(&conn);
}

static int container_exec_held(container *c, const ExecSyncRequest *in, grpc_call *call, ExecSyncResponse *reply, error *e)
{
    ExecSpec exec = { .container_id = c->record.id, .args.p = in->cmd.p, .args.n = in->cmd.n };
    __attribute__((cleanup(exec_close))) exec_stream out[2] = { { -1, { 0 } }, { -1, { 0 } } };
    int cancel = grpc_cancel_fd(call, e);
    OWNED_FD conn = cancel < 0 ? -1 : exec_begin(c->pod, &exec, out, e);
    if (conn < 0) return -1;
    int64_t deadline = in->timeout > 0 ? clock_mono() + MIN(in->timeout, INT64_C(1000000000)) * NS_PER_SEC : 0;
    int ended = exec_follow(conn, out, cancel, deadline);
    OWNED_ARENA a = arena_make(MIB);
    MonitorReply answer = { 0 };
    monitor_wait patience = { .cancel_fd = -1, .deadline = clock_mono() + MONITOR_PATIENCE };
    if (ended < 0) return fail_sys(e, GRPC_INTERNAL, "wait for the command");
    if (monitor_receive(conn, &patience, &a, &answer, e) < 0) return fail_in(e, "exec");
    if (ended == 1) return fail(e, GRPC_DEADLINE_EXCEEDED, "the command timed out and was killed");
    if (monitor_verdict(&answer, e) < 0) return -1;
    reply->exit_code = answer.exit_code;
    reply->stdout = arena_copy(&call->arena, buf_view(&out[0].text));
    reply->stderr = arena_copy(&call->arena, buf_view(&out[1].text));
    return out[0].text.oom || out[1].text.oom || call->arena.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the output") : 0;
}

/* ExecSync. The command's exit code is in the reply, with status OK; -1 is for a command that could
 * not be started or did not end in time. */
static int container_exec(runtime *r, const ExecSyncRequest *in, grpc_call *call, ExecSyncResponse *reply, error *e)
{
    if (!in->cmd.n) return fail(e, GRPC_INVALID_ARGUMENT, "cmd: a command is required");
    lock_state(r);
    container *c = container_find(r, in->container_id, e);
    int done = !c ? -1 : c->state != BOX_RUNNING
        ? fail(e, GRPC_FAILED_PRECONDITION, "container \"%.*s\" is not running", PR(in->container_id)) : 0;
    if (done == 0) container_hold(c);
    unlock_state(r);
    if (done < 0) return -1;
    done = container_exec_held(c, in, call, reply, e);
    LOCKED(r);
    container_drop(c);
    return done;
}

/* -- after a start ----------------------------------------------------------------------------- */

/* Puts what cannot be read aside, where a person can look at it, and goes on without it. */
static void state_quarantine(int dir, const char *name, const char *why)
{
    char aside[NAME_MAX + 1];
    snprintf(aside, sizeof aside, "bad-%.150s-%" PRId64, name, clock_wall() / NS_PER_SEC);
    log_warn("%s cannot be used and is put aside as %s: %s", name, aside, why);
    if (renameat(dir, name, dir, aside) < 0) log_error("rename %s: %s", name, strerror(errno));
}

static bool id_valid(const char *name) /* 64 lower-case hex digits: what we name our directories */
{
    return strlen(name) == 64 && strspn(name, "0123456789abcdef") == 64;
}

/* Reads one container back. Whether it had been started is seen by its upper directory, which the
 * monitor makes at the start; whether it has ended, by its exit record. */
static int container_recover(pod *p, const char *id, bool alive, error *e)
{
    runtime *r = p->runtime;
    lock_state(r);
    container *c = container_new(p);
    unlock_state(r);
    if (!c) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a container");
    c->record.id = arena_copy(&c->memory, slice_of(id));
    c->record.pod_id = p->record.id;
    OWNED_FD dir = container_dir(c, false, e);
    bool ok = dir >= 0 && state_read(dir, "container.json", &ContainerRecord_msg, &c->memory, &c->record, e) == 0;
    if (ok && (!slice_is(c->record.id, id) || !c->record.spec || !c->record.config || !c->record.config->metadata))
        ok = fail(e, GRPC_DATA_LOSS, "container.json is not whole") == 0;
    if (!ok) {
        container_free(&c->release);
        return -1;
    }
    c->key = container_key(&c->memory, p->record.id, c->record.config->metadata);
    error no_exit;
    ContainerExit exit = { 0 };
    bool ended = state_read(dir, "exit", &ContainerExit_msg, &c->memory, &exit, &no_exit) == 0;
    bool started = faccessat(dir, "upper", F_OK, 0) == 0;
    LOCKED(r);
    if (container_enter(c, e) < 0) return -1;
    c->state = BOX_CREATED;
    r->last_created = MAX(r->last_created, c->record.created_at);
    if (ended) container_set_exit(c, &exit);
    else if (started && !alive) container_lost(c, "krun was not there when it ended");
    image_layers_hold(r->images, &c->record);
    return 0;
}

static void pod_recover_containers(pod *p, bool alive)
{
    char path[96];
    error e;
    snprintf(path, sizeof path, "%.*s/containers", PR(p->record.id));
    OWNED_FD dir = openat(p->runtime->pods, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = dir < 0 ? NULL : fdopendir(dup(dir));
    if (!list) return;
    for (struct dirent *entry; (entry = readdir(list));) {
        if (!id_valid(entry->d_name)) continue;
        if (container_recover(p, entry->d_name, alive, &e) == 0) continue;
        if (e.code == GRPC_NOT_FOUND) tree_remove(dir, entry->d_name, &e); /* its making or removal was cut short */
        else state_quarantine(dir, entry->d_name, e.text);
    }
    closedir(list);
}

/* Whether the monitor of a pod of this boot answers. */
static bool pod_monitor_answers(pod *p)
{
    char path[PATH_MAX];
    error e;
    if (!slice_is(p->record.boot_id, p->runtime->boot_id)) return false;
    OWNED_FD conn = monitor_connect(pod_socket(p, path), &e);
    return conn >= 0;
}

/* Reads one pod back. -1 with NOT_FOUND: there is no record, the directory is rubbish. */
static pod *pod_recover(runtime *r, const char *id, error *e)
{
    pod *p = pod_new(r);
    OWNED_FD dir = openat(r->pods, id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = p && dir >= 0 && state_read(dir, "pod.json", &PodRecord_msg, &p->memory, &p->record, e) == 0;
    if (p && dir < 0) fail_sys(e, GRPC_INTERNAL, "open %s", id);
    if (ok && (!slice_is(p->record.id, id) || !p->record.spec || !p->record.config || !p->record.config->metadata))
        ok = fail(e, GRPC_DATA_LOSS, "pod.json is not whole") == 0;
    if (ok && p->record.version > STATE_VERSION)
        ok = fail(e, GRPC_FAILED_PRECONDITION, "pod.json is of a newer krun (version %u)", p->record.version) == 0;
    if (ok) return p->key = pod_key(&p->memory, p->record.config->metadata), p;
    if (p) pod_free(&p->release);
    return NULL;
}

/* One pod after a start: still running, ended meanwhile, or cut short in its making (its client was
 * never told of it, and asks again). */
static int pod_resume(runtime *r, const char *id, error *e)
{
    pod *p = pod_recover(r, id, e);
    if (!p) return -1;
    bool whole = p->record.state == PodSandboxState_SANDBOX_READY;
    bool alive = pod_monitor_answers(p);
    if (!p->record.was_ready) {
        int done = pod_tear_down(p, e);
        pod_free(&p->release);
        return done;
    }
    lock_state(r);
    int done = pod_enter(p, e);
    p->state = whole && alive ? POD_READY : POD_NOTREADY;
    r->last_created = MAX(r->last_created, p->record.created_at);
    unlock_state(r);
    if (done < 0) return -1;
    pod_recover_containers(p, alive);
    if (!alive) p->record.state = PodSandboxState_SANDBOX_NOTREADY;
    if (!alive || pod_follow(p, e) == 0) return 0;
    log_warn("pod %.12s: %s", id, e->text);
    pod_orphaned(p);
    LOCKED(r);
    p->state = POD_NOTREADY;
    return 0;
}

/* Ends what may still run of a pod whose record cannot be read: all that its id alone leads to. */
static void pod_abandon(runtime *r, const char *id)
{
    pod *p = pod_new(r);
    if (!p) return;
    p->record.id = slice_of(id);
    p->record.config = copy_of(&PodSandboxConfig_msg, &(PodSandboxConfig){ .metadata = &(PodSandboxMetadata){ .attempt = 0 } }, &p->memory);
    p->record.spec = arena_alloc(&p->memory, sizeof *p->record.spec);
    p->record.network_up = true;
    if (p->record.config && p->record.spec) {
        p->record.spec->netns = slice_of(arena_printf(&p->memory, "/run/netns/krun-%s", id));
        slice own = slice_of(arena_printf(&p->memory, "krun/%s", id));
        pod_halt(p);
        cgroup_clear(r, own);
    }
    pod_free(&p->release);
}

/* Reads all pods back and sweeps up what a crash left. A damaged pod harms no other. */
static int runtime_resume(runtime *r, error *e)
{
    DIR *list = fdopendir(openat(r->pods, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!list) return fail_sys(e, GRPC_INTERNAL, "read %s/pods", r->options->root);
    int done = 0;
    for (struct dirent *entry; done == 0 && (entry = readdir(list));) {
        if (!id_valid(entry->d_name) || pod_resume(r, entry->d_name, e) == 0) continue;
        if (e->code == GRPC_NOT_FOUND) tree_remove(r->pods, entry->d_name, e);
        else if (e->code == GRPC_FAILED_PRECONDITION) done = -1;
        else {
            pod_abandon(r, entry->d_name);
            state_quarantine(r->pods, entry->d_name, e->text);
        }
    }
    closedir(list);
    return done;
}

/* == 23. The CRI's services ==================================================================
 *
 * One function for each call that a kubelet can make, each a few lines: it takes the request, asks
 * the chapters above and fills the reply. The table at the end names all 43 calls and says where
 * each runs: what only reads memory is answered on the event loop itself; what waits for the
 * kernel, a disk or a program goes to a worker; what may wait long goes to workers of its own, so
 * that it never keeps a short call waiting. A row without a function answers UNIMPLEMENTED.
 *
 * A reply that is made on the loop borrows the texts of pods and containers as they lie in memory.
 * That is safe because their memory is freed on the loop's thread alone (chapter 21).
 *
 * Defined by  cri.proto; what the kubelet makes of the answers is told there, field by field
 * Uses        9, 11, 13, 20, 21                 Gives  services_methods */

static runtime *service_runtime(grpc_call *c) { return c->user; }

/* Memory of the call's; -1 and *e when there is none. */
static void *call_alloc(grpc_call *c, size_t n, error *e)
{
    void *p = arena_alloc(&c->arena, n);
    if (!p) fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the reply");
    return p;
}

/* -- the daemon itself ------------------------------------------------------------------------- */

static int service_version(grpc_call *c, const void *in, void *out, error *e)
{
    (void)c, (void)in, (void)e;
    *(VersionResponse *)out = (VersionResponse){
        .version = SLICE("0.1.0"), /* of the kubelet's runtime API: it refuses any other text */
        .runtime_name = SLICE("krun"), .runtime_version = SLICE(KRUN_VERSION), .runtime_api_version = SLICE("v1") };
    return 0;
}

/* The daemon's settings as JSON: verbose Status shows them, and critest looks up stateDir there. */
static slice settings_json(const runtime_options *o, arena *a)
{
    const struct { const char *key, *value; } rows[] = {
        { "root", o->root }, { "run", o->run }, { "stateDir", o->run }, { "socket", o->socket }, { "config", o->config },
        { "cni-conf-dir", o->cni_conf_dir }, { "cni-bin-dir", o->cni_bin_dir }, { "hosts-dir", o->hosts_dir },
        { "cgroup-driver", "cgroupfs" }, { "stream-address", o->stream_address },
        { "missing-controllers", o->ignore_missing_controllers ? "ignore" : "refuse" } };
    OWNED_BUF text = { 0 };
    for (size_t i = 0; i < COUNT(rows); i++) {
        buf_str(&text, i ? "," : "{");
        json_string(&text, slice_of(rows[i].key));
        buf_byte(&text, ':');
        json_string(&text, slice_of(rows[i].value));
    }
    buf_byte(&text, '}');
    return arena_copy(a, buf_view(&text));
}

/* RuntimeReady is true of whoever answers. NetworkReady says whether a pod could be connected: the
 * kubelet keeps its node NotReady until then. */
static int service_status(grpc_call *c, const void *in, void *out, error *e)
{
    const StatusRequest *ask = in;
    const runtime *r = service_runtime(c);
    StatusResponse *reply = out;
    RuntimeCondition *conditions = call_alloc(c, 2 * sizeof *conditions, e);
    RuntimeHandler *handler = call_alloc(c, sizeof *handler, e);
    reply->status = call_alloc(c, sizeof *reply->status, e);
    reply->features = call_alloc(c, sizeof *reply->features, e);
    if (!conditions || !handler || !reply->status || !reply->features) return -1;
    cni_network net;
    error network;
    bool ready = cni_load(r->options->cni_conf_dir, &c->arena, &net, &network) == 0;
    conditions[0] = (RuntimeCondition){ .type = SLICE("RuntimeReady"), .status = true };
    conditions[1] = (RuntimeCondition){ .type = SLICE("NetworkReady"), .status = ready };
    if (!ready) {
        conditions[1].reason = SLICE("NetworkPluginNotReady");
        conditions[1].message = arena_copy(&c->arena, slice_of(network.text));
    }
    reply->status->conditions.p = conditions;
    reply->status->conditions.n = 2;
    handler->features = call_alloc(c, sizeof *handler->features, e);
    if (!handler->features) return -1;
    handler->features->recursive_read_only_mounts = true;
    reply->runtime_handlers.p = handler;
    reply->runtime_handlers.n = 1;
    reply->features->supplemental_groups_policy = true;
    if (!ask->verbose) return 0;
    pb_pair *info = call_alloc(c, sizeof *info, e);
    if (!info) return -1;
    *info = (pb_pair){ SLICE("config"), settings_json(r->options, &c->arena) };
    reply->info.p = info;
    reply->info.n = 1;
    return 0;
}

static int service_runtime_config(grpc_call *c, const void *in, void *out, error *e)
{
    RuntimeConfigResponse *reply = out;
    (void)in;
    reply->linux = call_alloc(c, sizeof *reply->linux, e);
    if (!reply->linux) return -1;
    reply->linux->cgroup_driver = CgroupDriver_CGROUPFS;
    return 0;
}

/* The kubelet tells the node's range of pod addresses. A CNI configuration of its own file, as all
 * common plugins have, does not need it; it is kept for those who ask. */
static int service_update_runtime_config(grpc_call *c, const void *in, void *out, error *e)
{
    const UpdateRuntimeConfigRequest *ask = in;
    runtime *r = service_runtime(c);
    const NetworkConfig *network = ask->runtime_config ? ask->runtime_config->network_config : NULL;
    (void)out;
    if (!network) return 0;
    if (network->pod_cidr.n >= sizeof r->pod_cidr) return fail(e, GRPC_INVALID_ARGUMENT, "pod_cidr is longer than %zu bytes", sizeof r->pod_cidr - 1);
    LOCKED(r);
    snprintf(r->pod_cidr, sizeof r->pod_cidr, "%.*s", PR(network->pod_cidr));
    return 0;
}

/* -- pods -------------------------------------------------------------------------------------- */

static int service_run_pod(grpc_call *c, const void *in, void *out, error *e)
{
    return pod_run(service_runtime(c), in, c, &((RunPodSandboxResponse *)out)->pod_sandbox_id, e);
}

static int service_stop_pod(grpc_call *c, const void *in, void *out, error *e)
{
    (void)out;
    return pod_stop(service_runtime(c), ((const StopPodSandboxRequest *)in)->pod_sandbox_id, c, e);
}

static int service_remove_pod(grpc_call *c, const void *in, void *out, error *e)
{
    (void)out;
    return pod_remove(service_runtime(c), ((const RemovePodSandboxRequest *)in)->pod_sandbox_id, c, e);
}

static int32_t pod_cri_state(const pod *p)
{
    return p->state == POD_READY ? PodSandboxState_SANDBOX_READY : PodSandboxState_SANDBOX_NOTREADY;
}

/* Whether all pairs of the selector are among the labels, byte for byte. */
static bool labels_match(const pb_pair *labels, size_t n, const pb_pair *wanted, size_t nwanted)
{
    for (size_t i = 0; i < nwanted; i++) {
        bool found = false;
        for (size_t k = 0; k < n && !found; k++) found = slice_eq(labels[k].key, wanted[i].key) && slice_eq(labels[k].value, wanted[i].value);
        if (!found) return false;
    }
    return true;
}

static bool pod_matches(const pod *p, const PodSandboxFilter *f)
{
    const PodSandboxConfig *config = p->record.config;
    if (p->state != POD_READY && p->state != POD_NOTREADY) return false;
    return !f || ((!f->state || f->state->state == pod_cri_state(p)) &&
                  labels_match(config->labels.p, config->labels.n, f->label_selector.p, f->label_selector.n));
}

/* The rows of a table that an id filter leaves: all of them without one; one or none with a unique
 * prefix. An ambiguous prefix is an error, an unknown one an empty list. Locked. */
static int rows_of(const sorted *s, slice id, const char *what, size_t *first, size_t *end, error *e)
{
    *first = 0;
    *end = s->n;
    if (!id.n) return 0;
    if (find_by_id(s, id, what, e)) {
        *first = sorted_place(s, id);
        *end = *first + 1;
        return 0;
    }
    *end = 0;
    return e->code == GRPC_NOT_FOUND ? 0 : -1;
}

static int service_list_pods(grpc_call *c, const void *in, void *out, error *e)
{
    runtime *r = service_runtime(c);
    const PodSandboxFilter *f = ((const ListPodSandboxRequest *)in)->filter;
    ListPodSandboxResponse *reply = out;
    size_t i, end;
    LOCKED(r);
    if (rows_of(&r->pods_by_id, f ? f->id : SLICE(""), "pod sandbox", &i, &end, e) < 0) return -1;
    reply->items.p = call_alloc(c, MAX(end - i, (size_t)1) * sizeof *reply->items.p, e);
    if (!reply->items.p) return -1;
    for (; i < end; i++) {
        const pod *p = r->pods_by_id.rows[i].object;
        const PodRecord *rec = &p->record;
        if (!pod_matches(p, f)) continue;
        PodSandbox *item = &reply->items.p[reply->items.n++];
        *item = (PodSandbox){ .id = rec->id, .metadata = rec->config->metadata, .state = pod_cri_state(p),
                              .created_at = rec->created_at, .runtime_handler = rec->runtime_handler };
        item->labels.p = rec->config->labels.p;
        item->labels.n = rec->config->labels.n;
        item->annotations.p = rec->config->annotations.p;
        item->annotations.n = rec->config->annotations.n;
    }
    return 0;
}

static int pod_fill_network(const pod *p, grpc_call *c, PodSandboxStatus *out, error *e)
{
    out->network = call_alloc(c, sizeof *out->network, e);
    if (!out->network) return -1;
    size_t n = p->record.ips.n;
    if (!n) return 0;
    out->network->ip = p->record.ips.p[0];
    out->network->additional_ips.p = call_alloc(c, n * sizeof(PodIP), e);
    if (!out->network->additional_ips.p) return -1;
    for (size_t i = 1; i < n; i++) out->network->additional_ips.p[out->network->additional_ips.n++].ip = p->record.ips.p[i];
    return 0;
}

/* Locked. */
static int pod_fill_status(const pod *p, grpc_call *c, PodSandboxStatus *out, error *e)
{
    const PodRecord *rec = &p->record;
    *out = (PodSandboxStatus){ .id = rec->id, .metadata = rec->config->metadata, .state = pod_cri_state(p),
                               .created_at = rec->created_at, .runtime_handler = rec->runtime_handler };
    out->labels.p = rec->config->labels.p;
    out->labels.n = rec->config->labels.n;
    out->annotations.p = rec->config->annotations.p;
    out->annotations.n = rec->config->annotations.n;
    out->linux = call_alloc(c, sizeof *out->linux, e);
    Namespace *namespaces = call_alloc(c, sizeof *namespaces, e);
    if (!out->linux || !namespaces) return -1;
    namespaces->options = (NamespaceOption *)pod_namespaces_of(rec->config);
    out->linux->namespaces = namespaces;
    return pod_fill_network(p, c, out, e);
}

/* Verbose statuses carry one pair, "info": a JSON object that crictl prints as it is. */
static int fill_info(grpc_call *c, pb_pair **p, size_t *n, slice object, error *e)
{
    *p = call_alloc(c, sizeof **p, e);
    if (!*p) return -1;
    **p = (pb_pair){ SLICE("info"), object };
    *n = 1;
    return c->arena.oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the reply") : 0;
}

/* `head` (members and a comma, or nothing) and the record, as one JSON object. */
static slice info_json(grpc_call *c, const char *head, const pb_message *type, const void *record)
{
    OWNED_BUF text = { 0 };
    buf_printf(&text, "{%s\"record\":", head);
    pb_write_json(type, record, 0, &text);
    buf_byte(&text, '}');
    return text.oom ? (slice){ NULL, 0 } : arena_copy(&c->arena, buf_view(&text));
}

static int service_pod_status(grpc_call *c, const void *in, void *out, error *e)
{
    const PodSandboxStatusRequest *ask = in;
    PodSandboxStatusResponse *reply = out;
    runtime *r = service_runtime(c);
    LOCKED(r);
    const pod *p = pod_find(r, ask->pod_sandbox_id, e);
    reply->status = p ? call_alloc(c, sizeof *reply->status, e) : NULL;
    if (!reply->status || pod_fill_status(p, c, reply->status, e) < 0) return -1;
    if (!ask->verbose) return 0;
    char head[96];
    snprintf(head, sizeof head, "\"pid\":%d,", p->record.monitor_pid);
    return fill_info(c, &reply->info.p, &reply->info.n, info_json(c, head, &PodRecord_msg, &p->record), e);
}

/* -- containers -------------------------------------------------------------------------------- */

static int service_create(grpc_call *c, const void *in, void *out, error *e)
{
    return container_create(service_runtime(c), in, c, &((CreateContainerResponse *)out)->container_id, e);
}

static int service_start(grpc_call *c, const void *in, void *out, error *e)
{
    (void)out;
    return container_start(service_runtime(c), ((const StartContainerRequest *)in)->container_id, c, e);
}

static int service_stop(grpc_call *c, const void *in, void *out, error *e)
{
    const StopContainerRequest *ask = in;
    (void)out;
    return container_stop(service_runtime(c), ask->container_id, ask->timeout, c, e);
}

static int service_remove(grpc_call *c, const void *in, void *out, error *e)
{
    (void)out;
    return container_remove(service_runtime(c), ((const RemoveContainerRequest *)in)->container_id, c, e);
}

static int service_reopen_log(grpc_call *c, const void *in, void *out, error *e)
{
    (void)out;
    return container_reopen_log(service_runtime(c), ((const ReopenContainerLogRequest *)in)->container_id, e);
}

static int service_exec_sync(grpc_call *c, const void *in, void *out, error *e)
{
    return container_exec(service_runtime(c), in, c, out, e);
}

static int32_t container_cri_state(const container *c)
{
    static const int32_t states[BOX_STATES] = {
        [BOX_CREATED] = ContainerState_CONTAINER_CREATED, [BOX_STARTING] = ContainerState_CONTAINER_CREATED,
        [BOX_RUNNING] = ContainerState_CONTAINER_RUNNING, [BOX_EXITED] = ContainerState_CONTAINER_EXITED };
    return states[c->state];
}

static bool container_matches(const container *c, const ContainerFilter *f, slice pod_id)
{
    const ContainerConfig *config = c->record.config;
    if (c->state == BOX_MAKING || c->state == BOX_REMOVING) return false;
    if (!f) return true;
    if (f->pod_sandbox_id.n && !slice_eq(pod_id, c->record.pod_id)) return false;
    return (!f->state || f->state->state == container_cri_state(c)) &&
           labels_match(config->labels.p, config->labels.n, f->label_selector.p, f->label_selector.n);
}

/* The image as the user named it, and as it is known here. */
static ImageSpec *container_image(const container *c, grpc_call *call, error *e)
{
    ImageSpec *image = call_alloc(call, sizeof *image, e);
    if (!image) return NULL;
    *image = *c->record.config->image;
    if (!image->user_specified_image.n) image->user_specified_image = image->image;
    return image;
}

static int service_list_containers(grpc_call *call, const void *in, void *out, error *e)
{
    runtime *r = service_runtime(call);
    const ContainerFilter *f = ((const ListContainersRequest *)in)->filter;
    ListContainersResponse *reply = out;
    size_t i, end;
    LOCKED(r);
    slice pod_id = SLICE("");
    if (f && f->pod_sandbox_id.n) {
        const pod *p = pod_find(r, f->pod_sandbox_id, e);
        if (!p) return e->code == GRPC_NOT_FOUND ? 0 : -1;
        pod_id = p->record.id;
    }
    if (rows_of(&r->containers_by_id, f ? f->id : SLICE(""), "container", &i, &end, e) < 0) return -1;
    reply->containers.p = call_alloc(call, MAX(end - i, (size_t)1) * sizeof *reply->containers.p, e);
    if (!reply->containers.p) return -1;
    for (; i < end; i++) {
        const container *c = r->containers_by_id.rows[i].object;
        const ContainerRecord *rec = &c->record;
        if (!container_matches(c, f, pod_id)) continue;
        Container *item = &reply->containers.p[reply->containers.n++];
        *item = (Container){ .id = rec->id, .pod_sandbox_id = rec->pod_id, .metadata = rec->config->metadata,
                             .image_ref = rec->image_ref, .image_id = rec->image_id, .state = container_cri_state(c),
                             .created_at = rec->created_at, .image = container_image(c, call, e) };
        if (!item->image) return -1;
        item->labels.p = rec->config->labels.p;
        item->labels.n = rec->config->labels.n;
        item->annotations.p = rec->config->annotations.p;
        item->annotations.n = rec->config->annotations.n;
    }
    return 0;
}

/* Who the process is, and what it may use: as the request gave it, with what was looked up. */
static int container_fill_parts(const container *c, grpc_call *call, ContainerStatus *out, error *e)
{
    const ContainerSpec *spec = c->record.spec;
    out->user = call_alloc(call, sizeof *out->user, e);
    out->resources = call_alloc(call, sizeof *out->resources, e);
    LinuxContainerUser *user = call_alloc(call, sizeof *user, e);
    int64_t *groups = call_alloc(call, MAX(spec->user->groups.n, (size_t)1) * sizeof *groups, e);
    if (!out->user || !out->resources || !user || !groups) return -1;
    for (size_t i = 0; i < spec->user->groups.n; i++) groups[i] = spec->user->groups.p[i];
    *user = (LinuxContainerUser){ .uid = spec->user->uid, .gid = spec->user->gid,
                                  .supplemental_groups.p = groups, .supplemental_groups.n = spec->user->groups.n };
    out->user->linux = user;
    out->resources->linux = spec->resources;
    return 0;
}

/* Locked. */
static int container_fill_status(const container *c, grpc_call *call, ContainerStatus *out, error *e)
{
    const ContainerRecord *rec = &c->record;
    const ContainerConfig *config = rec->config;
    *out = (ContainerStatus){ .id = rec->id, .metadata = config->metadata, .state = container_cri_state(c),
        .created_at = rec->created_at, .started_at = c->started_at, .finished_at = c->exit.finished_at,
        .exit_code = c->exit.exit_code, .reason = c->exit.reason, .message = c->exit.message,
        .image = container_image(c, call, e), .image_ref = rec->image_ref, .image_id = rec->image_id,
        .stop_signal = config->stop_signal };
    out->labels.p = config->labels.p;
    out->labels.n = config->labels.n;
    out->annotations.p = config->annotations.p;
    out->annotations.n = config->annotations.n;
    out->mounts.p = config->mounts.p;
    out->mounts.n = config->mounts.n;
    slice dir = c->pod->record.config->log_directory;
    if (dir.n && config->log_path.n) out->log_path = slice_of(arena_printf(&call->arena, "%.*s/%.*s", PR(dir), PR(config->log_path)));
    return out->image && container_fill_parts(c, call, out, e) == 0 ? 0 : -1;
}

static int service_container_status(grpc_call *call, const void *in, void *out, error *e)
{
    const ContainerStatusRequest *ask = in;
    ContainerStatusResponse *reply = out;
    runtime *r = service_runtime(call);
    LOCKED(r);
    const container *c = container_find(r, ask->container_id, e);
    reply->status = c ? call_alloc(call, sizeof *reply->status, e) : NULL;
    if (!reply->status || container_fill_status(c, call, reply->status, e) < 0) return -1;
    if (!ask->verbose) return 0;
    char head[192];
    snprintf(head, sizeof head, "\"sandboxID\":\"%.*s\",\"pid\":%d,", PR(c->record.pod_id), c->pid);
    return fill_info(call, &reply->info.p, &reply->info.n, info_json(call, head, &ContainerRecord_msg, &c->record), e);
}

/* -- images ------------------------------------------------------------------------------------ */

static int service_list_images(grpc_call *c, const void *in, void *out, error *e)
{
    const ImageFilter *f = ((const ListImagesRequest *)in)->filter;
    slice name = f && f->image ? f->image->image : SLICE("");
    return images_list(service_runtime(c)->images, name, &c->arena, out, e);
}

static int service_image_status(grpc_call *c, const void *in, void *out, error *e)
{
    return image_status(service_runtime(c)->images, in, &c->arena, out, e);
}

static int service_pull(grpc_call *c, const void *in, void *out, error *e)
{
    int cancel = grpc_cancel_fd(c, e);
    if (cancel < 0) return -1;
    return image_pull(service_runtime(c)->images, in, cancel, &c->arena, &((PullImageResponse *)out)->image_ref, e);
}

static int service_remove_image(grpc_call *c, const void *in, void *out, error *e)
{
    const RemoveImageRequest *ask = in;
    (void)out;
    if (!ask->image || !ask->image->image.n) return fail(e, GRPC_INVALID_ARGUMENT, "image.image is required");
    return image_remove(service_runtime(c)->images, ask->image->image, e);
}

static int service_image_fs(grpc_call *c, const void *in, void *out, error *e)
{
    (void)in;
    return images_fs_info(service_runtime(c)->images, &c->arena, out, e);
}

static int service_load_image(grpc_call *c, const void *in, void *out, error *e)
{
    const KrunLoadImageRequest *ask = in;
    if (check_absolute(ask->path, "path", e) < 0) return -1;
    return image_load(service_runtime(c)->images, arena_str(&c->arena, ask->path), &c->arena, out, e);
}

/* -- the table --------------------------------------------------------------------------------- */

#define RPC(service, name, where_, run_) \
    { .path = "/runtime.v1." #service "/" #name, .in = &name##Request_msg, .out = &name##Response_msg, .where = GRPC_##where_, .run = (run_) }
#define RPC_NOT_YET(service, name) \
    { .path = "/runtime.v1." #service "/" #name, .in = &name##Request_msg, .out = &name##Response_msg, .where = GRPC_ON_LOOP }

static const grpc_method services_methods[] = {
    RPC(RuntimeService, Version,              ON_LOOP, service_version),
    RPC(RuntimeService, Status,               SHORT,   service_status),
    RPC(RuntimeService, RuntimeConfig,        ON_LOOP, service_runtime_config),
    RPC(RuntimeService, UpdateRuntimeConfig,  ON_LOOP, service_update_runtime_config),
    RPC(RuntimeService, RunPodSandbox,        LONG,    service_run_pod),
    RPC(RuntimeService, StopPodSandbox,       LONG,    service_stop_pod),
    RPC(RuntimeService, RemovePodSandbox,     LONG,    service_remove_pod),
    RPC(RuntimeService, PodSandboxStatus,     ON_LOOP, service_pod_status),
    RPC(RuntimeService, ListPodSandbox,       ON_LOOP, service_list_pods),
    RPC(RuntimeService, CreateContainer,      SHORT,   service_create),
    RPC(RuntimeService, StartContainer,       LONG,    service_start),
    RPC(RuntimeService, StopContainer,        LONG,    service_stop),
    RPC(RuntimeService, RemoveContainer,      LONG,    service_remove),
    RPC(RuntimeService, ListContainers,       ON_LOOP, service_list_containers),
    RPC(RuntimeService, ContainerStatus,      ON_LOOP, service_container_status),
    RPC(RuntimeService, ReopenContainerLog,   SHORT,   service_reopen_log),
    RPC(RuntimeService, ExecSync,             LONG,    service_exec_sync),
    RPC(ImageService,   ListImages,           ON_LOOP, service_list_images),
    RPC(ImageService,   ImageStatus,          ON_LOOP, service_image_status),
    RPC(ImageService,   PullImage,            LONG,    service_pull),
    RPC(ImageService,   RemoveImage,          LONG,    service_remove_image),
    RPC(ImageService,   ImageFsInfo,          SHORT,   service_image_fs),
    RPC_NOT_YET(RuntimeService, StreamPodSandboxes),
    RPC_NOT_YET(RuntimeService, StreamContainers),
    RPC_NOT_YET(RuntimeService, UpdateContainerResources),
    RPC_NOT_YET(RuntimeService, Exec),
    RPC_NOT_YET(RuntimeService, Attach),
    RPC_NOT_YET(RuntimeService, PortForward),
    RPC_NOT_YET(RuntimeService, ContainerStats),
    RPC_NOT_YET(RuntimeService, ListContainerStats),
    RPC_NOT_YET(RuntimeService, StreamContainerStats),
    RPC_NOT_YET(RuntimeService, PodSandboxStats),
    RPC_NOT_YET(RuntimeService, ListPodSandboxStats),
    RPC_NOT_YET(RuntimeService, StreamPodSandboxStats),
    RPC_NOT_YET(RuntimeService, CheckpointContainer),
    RPC_NOT_YET(RuntimeService, CheckpointPod),
    RPC_NOT_YET(RuntimeService, RestorePod),
    { .path = "/runtime.v1.RuntimeService/GetContainerEvents", .in = &GetEventsRequest_msg, .out = &ContainerEventResponse_msg },
    RPC_NOT_YET(RuntimeService, ListMetricDescriptors),
    RPC_NOT_YET(RuntimeService, ListPodSandboxMetrics),
    RPC_NOT_YET(RuntimeService, StreamPodSandboxMetrics),
    RPC_NOT_YET(RuntimeService, UpdatePodSandboxResources),
    RPC_NOT_YET(ImageService,   StreamImages),
    /* our own, for `krun load`: CRI has no call that brings an image from a file */
    { .path = "/krun.v1.Krun/LoadImage", .in = &KrunLoadImageRequest_msg, .out = &KrunLoadImageResponse_msg,
      .where = GRPC_LONG, .run = service_load_image },
};

/* == 24. Client ==============================================================================
 *
 * The other end of the socket: how chapter 26 (for a person) and krun.h (for a program) make pods,
 * with the calls that a kubelet makes. A CRI client does the kubelet's part of the work: it gives a
 * pod its uid, makes the directory of its logs and removes it, and reads the log files itself.
 *
 * Defined by  cri.proto; the form of a container's log: kubernetes/design-proposals-archive,
 *             node/kubelet-cri-logging.md
 * Uses        1, 2, 3, 4, 9, 11                Gives  client_call, client_pod_*, client_log_*
 * Bounds      a reply of 16 MiB (chapter 11); a log line of 1 MiB */

/* A caller of the CRI: one thread's. The replies' texts live in the arena. */
typedef struct {
    arena arena;
    const char *socket; /* borrowed */
    grpc_client *grpc;  /* NULL until the first call */
} client;

enum { CLIENT_MEMORY = 256 * MIB, CLIENT_SECONDS = 120 }; /* a kubelet waits 2 minutes too */

static void client_close(client *c)
{
    grpc_hangup(c->grpc);
    arena_free(&c->arena);
}
#define OWNED_CLIENT __attribute__((cleanup(client_close))) client

/* One call; connects at the first. */
static int client_call(client *c, const grpc_request *r, error *e)
{
    if (!c->grpc) c->grpc = grpc_dial(c->socket, e);
    return c->grpc ? grpc_invoke(c->grpc, r, &c->arena, e) : -1;
}

/* client_call by the names of service and call. WAIT is for what may take any time. */
#define CLIENT_FOR(c, service, rpc, in_, out_, seconds, e)                                         \
    client_call((c), &(grpc_request){ .path = "/runtime.v1." #service "/" #rpc,                    \
                                      .in_msg = &rpc##Request_msg, .in = (in_),                    \
                                      .out_msg = &rpc##Response_msg, .out = (out_),                \
                                      .timeout_ns = (seconds) * NS_PER_SEC }, (e))
#define CLIENT_CALL(c, service, rpc, in, out, e)                                                   \
    CLIENT_FOR(c, service, rpc, in, out, CLIENT_SECONDS, e)
#define CLIENT_WAIT(c, service, rpc, in, out, e) CLIENT_FOR(c, service, rpc, in, out, 0, e)

/* -- a pod of one container -------------------------------------------------------------------- */

/* The two configurations for a krun_pod (krun.h) and all that they point to. It points into itself,
 * so it stays where it was filled. */
typedef struct {
    char uid[37], made_up[16];
    slice name;
    const char *log_directory;
    bool no_network;
    PodSandboxConfig pod;
    PodSandboxMetadata pod_metadata;
    LinuxPodSandboxConfig pod_linux;
    LinuxSandboxSecurityContext pod_security;
    NamespaceOption namespaces;
    pb_pair labels[4], no_network_annotation;
    ContainerConfig container;
    ContainerMetadata metadata;
    ImageSpec image;
    LinuxContainerConfig container_linux;
    LinuxContainerResources resources;
    LinuxContainerSecurityContext security;
    Int64Value user, group;
} client_pod;

enum { CLIENT_CPU_PERIOD = 100000 }; /* microseconds, the kernel's own default for cpu.max */

/* A random UUID (RFC 9562, section 5.4), which is what a kubelet gives a pod as its uid. */
static bool client_uuid(char out[37])
{
    uint8_t b[16];
    char hex[33];
    if (!random_bytes(b, sizeof b)) return false;
    b[6] = (uint8_t)((b[6] & 0x0F) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3F) | 0x80);
    hex_encode(b, sizeof b, hex);
    snprintf(out, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
    return true;
}

/* A name becomes a hostname and a part of the log's path. */
static bool client_name_valid(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");
    return n && n <= 63 && !name[n] && isalnum((unsigned char)name[0]);
}

/* Whether the daemon can give a pod a network with CNI. */
static int client_network_ready(client *c, bool *ready, error *e)
{
    StatusRequest in = { 0 };
    StatusResponse out = { 0 };
    *ready = false;
    if (CLIENT_CALL(c, RuntimeService, Status, &in, &out, e) < 0) return -1;
    for (size_t i = 0; out.status && i < out.status->conditions.n; i++)
        if (slice_is(out.status->conditions.p[i].type, "NetworkReady"))
            *ready = out.status->conditions.p[i].status;
    return 0;
}

/* Where nothing is said: CNI if there is a network, else loopback alone. Never the host's network
 * unless it was asked for: that would open its ports and abstract sockets to the container. */
static int client_pod_network(client *c, client_pod *p, const char *network, error *e)
{
    bool ready = true;
    if (!network && client_network_ready(c, &ready, e) < 0) return -1;
    slice word = slice_of(network ? network : ready ? "cni" : "none");
    p->no_network = slice_is(word, "none");
    if (slice_is(word, "host")) p->namespaces.network = NamespaceMode_NODE;
    else if (!p->no_network && !slice_is(word, "cni"))
        return fail(e, GRPC_INVALID_ARGUMENT, "network \"%s\": want host, cni or none", network);
    return 0;
}

/* What the daemon says about its configuration under this name (a flag's), or "". */
static slice client_setting(client *c, const char *name)
{
    StatusRequest in = { .verbose = true };
    StatusResponse out = { 0 };
    error e;
    if (CLIENT_CALL(c, RuntimeService, Status, &in, &out, &e) < 0) return SLICE("");
    for (size_t i = 0; i < out.info.n; i++)
        if (slice_is(out.info.p[i].key, "config"))
            return json_text(json_get(json_parse(out.info.p[i].value, &c->arena, &e), name));
    return SLICE("");
}

/* The directory of the logs of our pods; a pod's is named by its uid in it. */
static const char *client_log_root(client *c)
{
    slice root = client_setting(c, "root");
    return root.n ? arena_printf(&c->arena, "%.*s/logs", PR(root)) : "/var/log/krun";
}

static void client_fill_pod(client_pod *p, const krun_pod *want)
{
    slice uid = slice_of(p->uid), name_space = SLICE("default");
    p->pod_metadata = (PodSandboxMetadata){ p->name, uid, name_space, 0 };
    /* The kubelet's labels: crictl and others take the pod's name from them. */
    p->labels[0] = (pb_pair){ SLICE("io.kubernetes.container.name"), p->name };
    p->labels[1] = (pb_pair){ SLICE("io.kubernetes.pod.name"), p->name };
    p->labels[2] = (pb_pair){ SLICE("io.kubernetes.pod.namespace"), name_space };
    p->labels[3] = (pb_pair){ SLICE("io.kubernetes.pod.uid"), uid };
    p->no_network_annotation = (pb_pair){ SLICE("krun.network"), SLICE("none") };
    p->namespaces.pid = NamespaceMode_CONTAINER;
    p->pod_security.namespace_options = &p->namespaces;
    p->pod_security.privileged = want->privileged;
    p->pod_linux.security_context = &p->pod_security;
    p->pod.metadata = &p->pod_metadata;
    if (p->namespaces.network != NamespaceMode_NODE) p->pod.hostname = p->name;
    p->pod.log_directory = slice_of(p->log_directory);
    p->pod.labels.p = p->labels + 1;
    p->pod.labels.n = COUNT(p->labels) - 1;
    p->pod.annotations.p = &p->no_network_annotation;
    p->pod.annotations.n = p->no_network;
    p->pod.linux = &p->pod_linux;
}

/* "UID", "NAME", "UID:GID" or "NAME:GID". The CRI has no group by name. */
static int client_fill_user(client_pod *p, const char *text, error *e)
{
    slice group = slice_of(text), user = slice_cut(&group, ':');
    uint64_t number;
    if (parse_u64(user, 10, INT32_MAX, &number)) {
        p->user.value = (int64_t)number;
        p->security.run_as_user = &p->user;
    } else {
        p->security.run_as_username = user;
    }
    if (!group.n) return 0;
    if (!parse_u64(group, 10, INT32_MAX, &number))
        return fail(e, GRPC_INVALID_ARGUMENT, "user \"%s\": the group must be a number", text);
    p->group.value = (int64_t)number;
    p->security.run_as_group = &p->group;
    return 0;
}

static size_t client_words(const char *const *words)
{
    size_t n = 0;
    while (words && words[n]) n++;
    return n;
}

/* Each "NAME=value", or "NAME" for the value that this process has. */
static int client_fill_env(client_pod *p, const char *const *env, arena *a, error *e)
{
    KeyValue *out = arena_alloc(a, (client_words(env) + 1) * sizeof *out);
    if (!out) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    p->container.envs.p = out;
    for (; env && *env; env++) {
        slice value = slice_of(*env), name = slice_cut(&value, '=');
        const char *ours = strchr(*env, '=') ? (const char *)*env + name.n + 1 : getenv(*env);
        if (!name.n) return fail(e, GRPC_INVALID_ARGUMENT, "environment \"%s\": no name", *env);
        if (ours) out[p->container.envs.n++] = (KeyValue){ name, slice_of(ours) };
    }
    return 0;
}

/* Each "HOST-PATH:/PATH" or "HOST-PATH:/PATH:ro". The daemon has another working directory, so a
 * host path goes to it absolute. */
static int client_fill_volumes(client_pod *p, const char *const *volumes, arena *a, error *e)
{
    Mount *out = arena_alloc(a, (client_words(volumes) + 1) * sizeof *out);
    char cwd[PATH_MAX];
    if (!out) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    if (!getcwd(cwd, sizeof cwd)) return fail_sys(e, GRPC_INTERNAL, "read the working directory");
    p->container.mounts.p = out;
    for (; volumes && *volumes; volumes++) {
        slice mode = slice_of(*volumes), from = slice_cut(&mode, ':'), to = slice_cut(&mode, ':');
        bool readonly = slice_is(mode, "ro");
        if (!from.n || !slice_starts(to, "/") || (mode.n && !readonly && !slice_is(mode, "rw")))
            return fail(e, GRPC_INVALID_ARGUMENT, "volume \"%s\": want HOST-PATH:/PATH[:ro]",
                        *volumes);
        if (from.p[0] != '/') from = slice_of(arena_printf(a, "%s/%.*s", cwd, PR(from)));
        out[p->container.mounts.n++] =
            (Mount){ .container_path = to, .host_path = from, .readonly = readonly };
    }
    return 0;
}

/* The entrypoint and the arguments. As with docker, arguments take the place of the image's CMD and
 * follow its ENTRYPOINT; the CRI calls the two `args` and `command`. */
static int client_fill_words(client_pod *p, const krun_pod *want, arena *a, error *e)
{
    size_t n = client_words(want->args);
    slice *words = arena_alloc(a, (n + 1) * sizeof *words);
    if (!words) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    words[0] = slice_of(want->entrypoint);
    for (size_t i = 0; i < n; i++) words[i + 1] = slice_of(want->args[i]);
    p->container.command.p = words;
    p->container.command.n = want->entrypoint != NULL;
    p->container.args.p = words + 1;
    p->container.args.n = n;
    return 0;
}

static int client_fill_container(client_pod *p, const krun_pod *want, arena *a, error *e)
{
    p->metadata.name = p->name;
    p->image.image = slice_of(want->image);
    p->container.metadata = &p->metadata;
    p->container.image = &p->image;
    p->container.log_path = slice_of(arena_printf(a, "%.*s.log", PR(p->name)));
    p->container.working_dir = slice_of(want->workdir);
    p->container.labels.p = p->labels;
    p->container.labels.n = COUNT(p->labels);
    p->resources.memory_limit_in_bytes = want->memory;
    p->resources.cpu_period = want->cpus ? CLIENT_CPU_PERIOD : 0;
    p->resources.cpu_quota = want->cpus * CLIENT_CPU_PERIOD / 1000;
    p->security.namespace_options = &p->namespaces;
    p->security.privileged = want->privileged;
    p->security.readonly_rootfs = want->read_only;
    p->container_linux.resources = &p->resources;
    p->container_linux.security_context = &p->security;
    p->container.linux = &p->container_linux;
    if (want->user && client_fill_user(p, want->user, e) < 0) return -1;
    if (client_fill_words(p, want, a, e) < 0 || client_fill_env(p, want->env, a, e) < 0) return -1;
    return client_fill_volumes(p, want->volumes, a, e);
}

/* Fills *p for `want`, which must live as long. INVALID_ARGUMENT names the member that is wrong. */
static int client_pod_fill(client *c, client_pod *p, const krun_pod *want, error *e)
{
    *p = (client_pod){ 0 };
    if (!want->image || !*want->image) return fail(e, GRPC_INVALID_ARGUMENT, "no image is given");
    if (want->name && !client_name_valid(want->name))
        return fail(e, GRPC_INVALID_ARGUMENT,
                    "name \"%s\": want 1 to 63 letters, digits, '-', '_' or '.', "
                    "the first no sign",
                    want->name);
    if (!client_uuid(p->uid)) return fail_sys(e, GRPC_INTERNAL, "random bytes for a pod's uid");
    snprintf(p->made_up, sizeof p->made_up, "run-%.8s", p->uid);
    p->name = slice_of(want->name ? want->name : p->made_up);
    if (client_pod_network(c, p, want->network, e) < 0) return -1;
    p->log_directory = want->log_directory;
    if (!p->log_directory)
        p->log_directory = arena_printf(&c->arena, "%s/%s", client_log_root(c), p->uid);
    client_fill_pod(p, want);
    return client_fill_container(p, want, &c->arena, e);
}

/* Makes a pod: first the directory of its logs, as a kubelet does. The pod's ID is in *id. */
static int client_make_pod(client *c, PodSandboxConfig *config, slice *id, error *e)
{
    RunPodSandboxRequest in = { .config = config };
    RunPodSandboxResponse out = { 0 };
    const char *logs = arena_str(&c->arena, config->log_directory);
    OWNED_FD slash = *logs ? open("/", O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    OWNED_FD made = *logs ? make_dir_inside(slash, logs, 0755, e) : -1;
    if (*logs && made < 0) return fail_in(e, "make the log directory");
    if (CLIENT_FOR(c, RuntimeService, RunPodSandbox, &in, &out, 2 * CLIENT_SECONDS, e) < 0)
        return -1;
    *id = out.pod_sandbox_id;
    return 0;
}

static int client_create(client *c, const CreateContainerRequest *in, slice *id, error *e)
{
    CreateContainerResponse out = { 0 };
    if (CLIENT_CALL(c, RuntimeService, CreateContainer, in, &out, e) < 0) return -1;
    *id = out.container_id;
    return 0;
}

static int client_start(client *c, slice id, error *e)
{
    StartContainerRequest in = { .container_id = id };
    StartContainerResponse out = { 0 };
    return CLIENT_CALL(c, RuntimeService, StartContainer, &in, &out, e);
}

static int client_stop_pod(client *c, slice id, error *e)
{
    StopPodSandboxRequest in = { .pod_sandbox_id = id };
    StopPodSandboxResponse out = { 0 };
    return CLIENT_WAIT(c, RuntimeService, StopPodSandbox, &in, &out, e);
}

/* Removes the log directory of a pod of ours. Its name is the pod's uid, which whoever makes a pod
 * can choose: nothing but hexadecimal digits and '-' is accepted as one. */
static int client_remove_logs(client *c, slice uid, error *e)
{
    for (size_t i = 0; i < uid.n; i++)
        if (!isxdigit(uid.p[i]) && uid.p[i] != '-') return 0;
    OWNED_FD root = uid.n ? open(client_log_root(c), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    return root < 0 ? 0 : tree_remove(root, arena_str(&c->arena, uid), e);
}

/* Stops and removes a pod, and its logs if they are where client_pod_fill puts them. */
static int client_remove_pod(client *c, slice id, error *e)
{
    PodSandboxStatusRequest ask = { .pod_sandbox_id = id };
    PodSandboxStatusResponse was = { 0 };
    RemovePodSandboxRequest in = { .pod_sandbox_id = id };
    RemovePodSandboxResponse out = { 0 };
    if (CLIENT_CALL(c, RuntimeService, PodSandboxStatus, &ask, &was, e) < 0) return -1;
    if (client_stop_pod(c, id, e) < 0) return -1;
    if (CLIENT_CALL(c, RuntimeService, RemovePodSandbox, &in, &out, e) < 0) return -1;
    return was.status && was.status->metadata ? client_remove_logs(c, was.status->metadata->uid, e)
                                              : 0;
}

/* Makes the pod and its container and starts it; the IDs of both. On failure nothing is left. */
static int client_pod_run(client *c, client_pod *p, slice *pod_id, slice *container_id, error *e)
{
    error undo;
    if (client_make_pod(c, &p->pod, pod_id, e) < 0)
        return client_remove_logs(c, slice_of(p->uid), &undo), -1;
    CreateContainerRequest in = { *pod_id, &p->container, &p->pod };
    if (client_create(c, &in, container_id, e) == 0 && client_start(c, *container_id, e) == 0)
        return 0;
    if (client_remove_pod(c, *pod_id, &undo) < 0) fail_in(e, "%s; then", undo.text);
    return -1;
}

static int client_write(const buf *out, int fd, error *e)
{
    if (out->oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the output");
    return write_all(fd, out->p, out->n) < 0 ? fail_sys(e, GRPC_INTERNAL, "write the output") : 0;
}

/* -- the log of a container -------------------------------------------------------------------- */

/* A container's log is a file that its path in ContainerStatus names; nothing of it goes through
 * the daemon, so that it can be read while the daemon is down. A line is
 *     2026-11-22T02:10:52.123456789Z stdout F what the program wrote
 * where P in the place of F means that the program's line goes on in the next. */
typedef struct {
    slice id;          /* whose log it is */
    const char *path;
    int file, notify;  /* the open file, and an inotify(7) descriptor that watches it; -1 */
    int signals;       /* a signalfd(2) for Ctrl-C, or -1; borrowed */
    bool timestamps, inside; /* inside: the line that is being printed has begun */
    buf text;          /* read, and without a line end yet */
    buf out;           /* to be printed on descriptor out_fd */
    int out_fd;
} client_log;

enum { CLIENT_LOG_LINE = MIB }; /* more than krun and its peers ever write in one line: 16 KiB */

static void client_log_close(client_log *l)
{
    close_fd(&l->file);
    close_fd(&l->notify);
    buf_free(&l->text);
    buf_free(&l->out);
}
#define OWNED_LOG __attribute__((cleanup(client_log_close))) client_log

static int client_log_flush(client_log *l, error *e)
{
    int done = client_write(&l->out, l->out_fd, e);
    l->out.n = 0;
    return done;
}

/* Takes a line of the file apart; what the program wrote goes to the stream that it wrote to. */
static int client_log_line(client_log *l, slice line, error *e)
{
    slice time = slice_cut(&line, ' '), stream = slice_cut(&line, ' '),
          tags = slice_cut(&line, ' ');
    int fd = slice_is(stream, "stderr") ? STDERR_FILENO : STDOUT_FILENO;
    bool whole = !slice_is(slice_cut(&tags, ':'), "P");
    if (fd != l->out_fd && client_log_flush(l, e) < 0) return -1;
    l->out_fd = fd;
    if (l->timestamps && !l->inside) buf_slice(&l->out, time), buf_byte(&l->out, ' ');
    buf_slice(&l->out, line);
    if (whole) buf_byte(&l->out, '\n');
    l->inside = !whole;
    return 0;
}

/* Prints what the file has more than before, up to its end. */
static int client_log_drain(client_log *l, error *e)
{
    for (;;) {
        if (l->text.n > CLIENT_LOG_LINE)
            return fail(e, GRPC_DATA_LOSS, "%s: a line without an end", l->path);
        if (!buf_reserve(&l->text, 64 * KIB))
            return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the log");
        ssize_t n = read(l->file, l->text.p + l->text.n, l->text.cap - l->text.n);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_sys(e, GRPC_INTERNAL, "read %s", l->path);
        if (n == 0) return client_log_flush(l, e);
        l->text.n += (size_t)n;
        slice rest = buf_view(&l->text);
        while (slice_has(rest, '\n'))
            if (client_log_line(l, slice_cut(&rest, '\n'), e) < 0) return -1;
        buf_drop(&l->text, l->text.n - rest.n);
        if (client_log_flush(l, e) < 0) return -1;
    }
}

/* Opens the file that has the log's name now and watches it. inotify(7) watches a file, not a name,
 * and the name may be another's a moment later; through /proc/self/fd it is the one we opened. */
static int client_log_open(client_log *l, bool follow, error *e)
{
    char self[64];
    close_fd(&l->file);
    close_fd(&l->notify);
    l->file = open(l->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (l->file < 0)
        return fail_sys(e, errno == ENOENT ? GRPC_NOT_FOUND : GRPC_INTERNAL, "open %s", l->path);
    if (!follow) return 0;
    snprintf(self, sizeof self, "/proc/self/fd/%d", l->file);
    l->notify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (l->notify < 0 || inotify_add_watch(l->notify, self, IN_MODIFY | IN_CLOSE_WRITE) < 0)
        return fail_sys(e, GRPC_INTERNAL, "watch %s", l->path);
    return 0;
}

/* Moves to the beginning of the last `lines` lines, reading backwards. */
static int client_log_tail(client_log *l, int64_t lines, error *e)
{
    char chunk[16 * KIB];
    off_t end = lseek(l->file, 0, SEEK_END), at = end;
    while (at > 0) {
        size_t n = (size_t)MIN(at, (off_t)sizeof chunk);
        at -= (off_t)n;
        if (pread(l->file, chunk, n, at) != (ssize_t)n)
            return fail_sys(e, GRPC_INTERNAL, "read %s", l->path);
        for (size_t i = n; i-- > 0;) {
            if (chunk[i] != '\n' || at + (off_t)i + 1 == end || --lines > 0) continue;
            return lseek(l->file, at + (off_t)i + 1, SEEK_SET) < 0
                       ? fail_sys(e, GRPC_INTERNAL, "seek")
                       : 0;
        }
    }
    return lseek(l->file, 0, SEEK_SET) < 0 ? fail_sys(e, GRPC_INTERNAL, "seek %s", l->path) : 0;
}

/* A log to be opened, with nothing to close yet. signals: a signalfd, borrowed, or -1. */
static client_log client_log_make(slice id, int signals)
{
    return (client_log){
        .id = id, .file = -1, .notify = -1, .signals = signals, .out_fd = STDOUT_FILENO
    };
}

/* Whether rotation has given the log's name to another file than the one we read. */
static bool client_log_rotated(const client_log *l)
{
    struct stat ours, named;
    return fstat(l->file, &ours) == 0 && stat(l->path, &named) == 0 &&
           (ours.st_ino != named.st_ino || ours.st_dev != named.st_dev);
}

/* Waits until the file has grown or its writer has closed it, a signal has come (its number is in
 * *sig), or `ms` have passed (-1 for ever). True if the writer has closed it. */
static bool client_log_wait(client_log *l, int ms, int *sig)
{
    struct pollfd wait[2] = { { .fd = l->notify, .events = POLLIN },
                              { .fd = l->signals, .events = POLLIN } };
    struct signalfd_siginfo info;
    union { struct inotify_event event; char bytes[4 * KIB]; } got;
    bool closed = false;
    *sig = 0;
    if (poll(wait, 2, ms) <= 0) return false;
    if (wait[1].revents && read(l->signals, &info, sizeof info) == (ssize_t)sizeof info)
        *sig = (int)info.ssi_signo;
    ssize_t n = wait[0].revents ? read(l->notify, &got, sizeof got) : 0;
    for (char *p = got.bytes; n > 0 && p < got.bytes + n;) {
        struct inotify_event one;
        memcpy(&one, p, sizeof one);
        closed = closed || (one.mask & (IN_CLOSE_WRITE | IN_Q_OVERFLOW));
        p += sizeof one + one.len;
    }
    return closed;
}

static const ContainerStatus *client_status(client *c, slice id, error *e)
{
    ContainerStatusRequest in = { .container_id = id };
    ContainerStatusResponse *out = arena_alloc(&c->arena, sizeof *out);
    if (!out) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory"), NULL;
    if (CLIENT_CALL(c, RuntimeService, ContainerStatus, &in, out, e) < 0) return NULL;
    if (!out->status)
        return fail(e, GRPC_INTERNAL, "the daemon sent no status of %.*s", PR(id)), NULL;
    return out->status;
}

enum { CLIENT_STOP_SECONDS = 10 };

/* Stops a container from a process of its own, so that this one can go on printing what the
 * container says to that. */
static void client_stop_aside(const client *c, slice id, int64_t seconds)
{
    if (fork()) return;
    client aside = { .arena = arena_make(MIB), .socket = c->socket };
    StopContainerRequest in = { .container_id = id, .timeout = seconds };
    StopContainerResponse out = { 0 };
    error e;
    if (CLIENT_WAIT(&aside, RuntimeService, StopContainer, &in, &out, &e) < 0)
        fprintf(stderr, "krun: %s\n", e.text);
    _exit(0);
}

/* Whether to ask the daemon if the container has ended. It need not be asked while the container's
 * monitor holds the log open for writing: the kernel tells when that is over. Then the log has been
 * rotated, or the container has ended and the daemon will know in a moment: CLIENT_ASK_AGAIN, at
 * growing intervals; also while a daemon that is being restarted cannot answer. */
enum client_ask { CLIENT_ASK_NOT, CLIENT_ASK_ONCE, CLIENT_ASK_AGAIN };
enum { CLIENT_ASK_FIRST_MS = 1, CLIENT_ASK_LAST_MS = 1000, CLIENT_AWAY_SECONDS = 60 };
typedef struct { enum client_ask ask; int next_ms; int64_t away_since; } client_ending;

/* Asks whether the container has ended. 1, and *exit_code; 0: not yet; -1 and *e. */
static int client_ended(client *c, const client_log *l, client_ending *end, int *exit_code,
                        error *e)
{
    const ContainerStatus *status = client_status(c, l->id, e);
    if (!status && e->code == GRPC_UNAVAILABLE) {
        if (c->grpc) grpc_hangup(c->grpc);
        c->grpc = NULL;
        if (!end->away_since) end->away_since = clock_mono();
        end->ask = CLIENT_ASK_AGAIN;
        return clock_mono() - end->away_since > CLIENT_AWAY_SECONDS * NS_PER_SEC ? -1 : 0;
    }
    if (!status) return -1;
    end->away_since = 0;
    if (end->ask == CLIENT_ASK_ONCE) end->ask = CLIENT_ASK_NOT;
    *exit_code = status->exit_code;
    return status->state == ContainerState_CONTAINER_EXITED;
}

/* Prints the log until the container has ended, through any number of rotations and restarts of the
 * daemon. The first Ctrl-C stops the container, the second kills it. */
static int client_log_follow(client *c, client_log *l, int *exit_code, error *e)
{
    client_ending end = { .ask = CLIENT_ASK_ONCE, .next_ms = CLIENT_ASK_FIRST_MS };
    for (int signals = 0, sig;;) {
        int ended = end.ask ? client_ended(c, l, &end, exit_code, e) : 0;
        if (ended < 0 || client_log_drain(l, e) < 0) return -1;
        if (ended) return 0;
        if (client_log_rotated(l)) { /* the old file still has what came since we read it */
            if (client_log_drain(l, e) < 0 || client_log_open(l, true, e) < 0) return -1;
            end = (client_ending){ .ask = CLIENT_ASK_ONCE, .next_ms = CLIENT_ASK_FIRST_MS };
            continue;
        }
        if (client_log_wait(l, end.ask ? end.next_ms : -1, &sig)) end.ask = CLIENT_ASK_AGAIN;
        else if (end.ask) end.next_ms = MIN(end.next_ms * 2, (int)CLIENT_ASK_LAST_MS);
        if (sig) client_stop_aside(c, l->id, signals++ ? 0 : CLIENT_STOP_SECONDS);
    }
}

/* == 25. Daemon ==============================================================================
 *
 * `krun serve`: reads its settings, takes the state directory for itself, brings back what an
 * earlier daemon left running, and then does nothing but wait for calls. It owns no container: a
 * SIGTERM, a crash or an upgrade ends this process and nothing else.
 *
 * Settings come from three places, the later one winning: the built-in defaults, the TOML files,
 * the flags. A flag and its key have the same name.
 *
 * Defined by  flock(2), signalfd(2), sd_notify(3) (the protocol, not the library)
 * Uses        3 (TOML), 11 (server), 21, 23      Gives  daemon_open, daemon_run, daemon_stop, daemon_close, daemon_main
 * Bounds      a configuration file 1 MiB; 10 s for calls under way at the end */

#define DAEMON_FAREWELL (10 * NS_PER_SEC)

/* -- settings ---------------------------------------------------------------------------------- */

/* Every setting: its name, where it lies in krun_options, its default, and what it is for. */
static const struct { const char *name; size_t offset; const char *initial, *help; } daemon_settings[] = {
    { "root", offsetof(krun_options, root), "/var/lib/krun", "what survives a reboot: images, pods" },
    { "run", offsetof(krun_options, run), "/run/krun", "what does not: sockets, namespaces" },
    { "socket", offsetof(krun_options, socket), "", "the CRI socket; <run>/krun.sock if not given" },
    { "config", offsetof(krun_options, config), "/etc/krun/krun.toml", "a file of settings; conf.d/*.toml beside it is read after it" },
    { "cgroup-driver", offsetof(krun_options, cgroup_driver), "cgroupfs", "cgroupfs" },
    { "cni-conf-dir", offsetof(krun_options, cni_conf_dir), "/etc/cni/net.d", "network configurations; the first by name counts" },
    { "cni-bin-dir", offsetof(krun_options, cni_bin_dir), "/opt/cni/bin:/usr/lib/cni", "directories of network plugins, split by ':'" },
    { "hosts-dir", offsetof(krun_options, hosts_dir), "/etc/krun/certs.d", "settings of registries: <host>/hosts.toml" },
    { "missing-controllers", offsetof(krun_options, missing_controllers), "refuse", "refuse or ignore limits that this machine cannot keep" },
    { "log-level", offsetof(krun_options, log_level), "info", "debug, info, warn or error" },
    { "stream-address", offsetof(krun_options, stream_address), "127.0.0.1:0", "where exec and attach streams will be served" },
};

/* The settings while they are gathered: each value is the arena's, in the order of daemon_settings. */
typedef struct { arena *a; const char *values[COUNT(daemon_settings)]; } daemon_values;

static int setting_find(slice name) /* also with '_' for '-'; -1 when there is none of that name */
{
    for (size_t i = 0; i < COUNT(daemon_settings); i++) {
        const char *known = daemon_settings[i].name;
        size_t n = strlen(known), k = 0;
        while (k < n && k < name.n && (known[k] == name.p[k] || (known[k] == '-' && name.p[k] == '_'))) k++;
        if (k == n && k == name.n) return (int)i;
    }
    return -1;
}

/* Takes over one file's settings. An unknown key is an error: a misspelt limit must not be silent. */
static int settings_from_file(daemon_values *v, int dir, const char *path, error *e)
{
    slice text;
    if (file_read(dir, path, MIB, v->a, &text, e) < 0) return e->code == GRPC_NOT_FOUND ? 0 : -1;
    const json *file = toml_parse(text, path, v->a, e);
    for (size_t i = 0; file && i < file->n; i++) {
        const json *item = &file->items[i];
        int which = setting_find(item->key);
        if (which < 0) return fail(e, GRPC_INVALID_ARGUMENT, "%s: unknown key \"%.*s\"", path, PR(item->key));
        if (item->kind != JSON_STRING) return fail(e, GRPC_INVALID_ARGUMENT, "%s: %.*s must be a string", path, PR(item->key));
        v->values[which] = arena_str(v->a, item->text);
    }
    return file ? 0 : -1;
}

static int is_toml(const struct dirent *entry) { return slice_ends(slice_of(entry->d_name), ".toml"); }

/* The file, then conf.d/ beside it in the order of the names. A file that is not there says nothing. */
static int settings_from_files(daemon_values *v, const char *config, error *e)
{
    struct dirent **list;
    const char *slash = strrchr(config, '/');
    const char *dir = arena_printf(v->a, "%.*s/conf.d", slash ? (int)(slash - config) : 1, slash ? config : ".");
    if (settings_from_file(v, AT_FDCWD, config, e) < 0) return -1;
    int n = scandir(dir, &list, is_toml, alphasort), done = 0;
    for (int i = 0; i < n; i++) {
        if (done == 0) done = settings_from_file(v, AT_FDCWD, arena_printf(v->a, "%s/%s", dir, list[i]->d_name), e);
        free(list[i]);
    }
    if (n >= 0) free(list);
    return done;
}

static int settings_choice(const char *name, const char *value, const char *const *choices, error *e)
{
    for (int i = 0; choices[i]; i++)
        if (!strcmp(value, choices[i])) return i;
    return fail(e, GRPC_INVALID_ARGUMENT, "%s: \"%s\" is not one of its values", name, value);
}

/* Resolves all settings. What `given` (flags, or an embedder's options) names wins over the files. */
static int settings_resolve(const krun_options *given, arena *a, runtime_options *out, error *e)
{
    static const char *const levels[] = { "debug", "info", "warn", "error", NULL };
    static const char *const missing[] = { "refuse", "ignore", NULL }, *const drivers[] = { "cgroupfs", NULL };
    daemon_values v = { .a = a };
    const char *from[COUNT(daemon_settings)];
    for (size_t i = 0; i < COUNT(daemon_settings); i++) {
        memcpy(&from[i], (const char *)given + daemon_settings[i].offset, sizeof from[i]);
        v.values[i] = daemon_settings[i].initial;
    }
    int config = setting_find(SLICE("config"));
    if (from[config]) v.values[config] = from[config];
    if (*v.values[config] && settings_from_files(&v, v.values[config], e) < 0) return -1;
    for (size_t i = 0; i < COUNT(daemon_settings); i++)
        if (from[i] && *from[i]) v.values[i] = arena_str(a, slice_of(from[i]));
    krun_options all;
    for (size_t i = 0; i < COUNT(daemon_settings); i++) memcpy((char *)&all + daemon_settings[i].offset, &v.values[i], sizeof v.values[i]);
    if (!*all.socket) all.socket = arena_printf(a, "%s/krun.sock", all.run);
    if (all.root[0] != '/' || all.run[0] != '/') return fail(e, GRPC_INVALID_ARGUMENT, "root and run must be absolute paths");
    int level = settings_choice("log-level", all.log_level, levels, e);
    int ignore = settings_choice("missing-controllers", all.missing_controllers, missing, e);
    if (level < 0 || ignore < 0 || settings_choice("cgroup-driver", all.cgroup_driver, drivers, e) < 0) return -1;
    log_least = (enum log_level)level;
    *out = (runtime_options){ .root = all.root, .run = all.run, .socket = all.socket, .config = all.config,
        .cni_conf_dir = all.cni_conf_dir, .cni_bin_dir = all.cni_bin_dir, .hosts_dir = all.hosts_dir,
        .stream_address = all.stream_address, .ignore_missing_controllers = ignore == 1 };
    return a->oom ? fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the settings") : 0;
}

/* -- opening ----------------------------------------------------------------------------------- */

typedef struct {
    arena memory;              /* the settings */
    runtime_options options;
    runtime runtime;
    loop loop;
    grpc_server *server;
    watch signals;             /* fd -1 when an embedding program has the signals */
    job stop;
    int lock;                  /* root/lock, held by flock: one daemon a state directory */
} krund;

/* Opens (and makes, with its parents) a directory of state, for root alone. */
static int state_dir(const char *path, error *e)
{
    OWNED_FD root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    OWNED_FD made = make_dir_inside(root, path, 0755, e);
    if (made < 0) return -1;
    OWNED_FD dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fchmod(dir, 0700) < 0) return fail_sys(e, GRPC_INTERNAL, "open %s", path);
    return give_fd(&dir);
}

static int state_subdir(int at, const char *name, error *e)
{
    if (mkdirat(at, name, 0700) < 0 && errno != EEXIST) return fail_sys(e, GRPC_INTERNAL, "mkdir %s", name);
    int dir = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dir < 0 ? fail_sys(e, GRPC_INTERNAL, "open %s", name) : dir;
}

/* The boot's id tells after a start whether the machine was started again too: then no pid, mount
 * or namespace that a record speaks of is there any more. KRUN_BOOT_ID lets a test say so. */
static int read_boot_id(char out[40], error *e)
{
    OWNED_ARENA a = arena_make(8 * KIB);
    const char *told = getenv("KRUN_BOOT_ID");
    slice text = slice_of(told);
    if (!told && file_read(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 64, &a, &text, e) < 0) return -1;
    snprintf(out, 40, "%.*s", PR(slice_trim(text)));
    return 0;
}

static int runtime_open_dirs(runtime *r, error *e)
{
    r->root = state_dir(r->options->root, e);
    r->run = r->root < 0 ? -1 : state_dir(r->options->run, e);
    if (r->run < 0) return -1;
    r->pods = state_subdir(r->root, "pods", e);
    r->run_pods = r->pods < 0 ? -1 : state_subdir(r->run, "pods", e);
    return r->run_pods < 0 ? -1 : 0;
}

/* The cgroup for the monitors: not the daemon's own, which a service manager kills as a whole, and
 * not a pod's, whose limits must not end the one who reports that they were hit. */
static void runtime_open_cgroups(runtime *r)
{
    error e;
    r->monitors = cg_make(&r->cgroups, "krun/monitors", NULL, NULL, &e);
    if (r->monitors < 0) log_warn("cgroup krun/monitors: %s", e.text);
}

static int daemon_lock(krund *d, error *e)
{
    d->lock = openat(d->runtime.root, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock < 0) return fail_sys(e, GRPC_INTERNAL, "open %s/lock", d->options.root);
    if (flock(d->lock, LOCK_EX | LOCK_NB) == 0) return 0;
    return fail(e, GRPC_FAILED_PRECONDITION, "another krun serve has %s", d->options.root);
}

static int daemon_open_state(krund *d, error *e)
{
    runtime *r = &d->runtime;
    r->options = &d->options;
    r->loop = &d->loop;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->quiet, NULL);
    if (self_program(e) < 0 || read_boot_id(r->boot_id, e) < 0) return -1;
    if (runtime_open_dirs(r, e) < 0 || daemon_lock(d, e) < 0) return -1;
    r->cgroups.ignore_missing = d->options.ignore_missing_controllers;
    if (cg_tree_open(&r->cgroups, e) < 0) return -1;
    runtime_open_cgroups(r);
    security_note_limits();
    image_options images = { .root_fd = r->root, .hosts_dir = d->options.hosts_dir, .root_path = d->options.root };
    r->images = images_open(&images, e);
    if (!r->images) return -1;
    return runtime_resume(r, e);
}

/* Frees what is in memory of pods and containers; on disk and in the kernel they stay as they are. */
static void runtime_forget(runtime *r)
{
    while (r->pods_by_id.n) {
        pod *p = r->pods_by_id.rows[0].object;
        pod_unlink(p);
        for (container *c = p->containers, *next; c; c = next) {
            next = c->next;
            arena_free(&c->memory);
            free(c);
        }
        sorted_remove(&r->pods_by_id, p->record.id, p);
        buf_free(&p->inbox);
        arena_free(&p->memory);
        close_fd(&p->monitor);
        free(p);
    }
    sorted *const tables[] = { &r->pods_by_id, &r->pods_by_key, &r->containers_by_id, &r->containers_by_key };
    for (size_t i = 0; i < COUNT(tables); i++) free(tables[i]->rows);
}

/* Closes what daemon_open opened, whole or part. No call may be under way. The pods go on. */
static void daemon_close(krund *d)
{
    error e;
    if (!d) return;
    runtime *r = &d->runtime;
    if (d->server) grpc_server_free(d->server);
    if (r->options) {
        lock_state(r);
        while (r->background) pthread_cond_wait(&r->quiet, &r->lock);
        unlock_state(r);
        runtime_forget(r);
        if (r->images) images_close(r->images);
    }
    if (r->monitors >= 0) { /* gone only when no pod is left: else rmdir(2) says EBUSY */
        cg_remove_empty(&r->cgroups, "krun/monitors", &e);
        cg_remove_empty(&r->cgroups, "krun", &e);
    }
    int *const fds[] = { &r->monitors, &r->run_pods, &r->pods, &r->run, &r->root, &r->cgroups.root, &d->signals.fd, &d->lock };
    for (size_t i = 0; i < COUNT(fds); i++) close_fd(fds[i]);
    loop_close(&d->loop);
    arena_free(&d->memory);
    free(d);
}

/* Everything up to the listening socket. NULL: FAILED_PRECONDITION when another daemon has the
 * root, INVALID_ARGUMENT for a bad setting, INTERNAL. The caller has no other threads yet. */
static krund *daemon_open(const krun_options *given, error *e)
{
    krund *d = calloc(1, sizeof *d);
    if (!d) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory"), NULL;
    d->memory = arena_make(4 * MIB);
    d->signals.fd = d->lock = d->loop.epoll = d->loop.wakeup = -1;
    d->runtime.root = d->runtime.run = d->runtime.pods = d->runtime.run_pods = d->runtime.monitors = d->runtime.cgroups.root = -1;
    grpc_options serve = { .methods = services_methods, .nmethods = COUNT(services_methods), .user = &d->runtime,
                           .alias = "/runtime.v1alpha2.", .alias_of = "/runtime.v1." };
    if (settings_resolve(given, &d->memory, &d->options, e) == 0 && loop_open(&d->loop, e) == 0 && daemon_open_state(d, e) == 0) {
        serve.socket_path = d->options.socket;
        d->server = grpc_serve(&d->loop, &serve, e);
    }
    if (d->server) return d;
    daemon_close(d);
    return NULL;
}

/* -- running ----------------------------------------------------------------------------------- */

static void daemon_served(grpc_server *s) { loop_stop(((runtime *)s->o.user)->loop); }

static void daemon_stop_job(job *j) /* on the loop's thread */
{
    krund *d = OWNER(j, krund, stop);
    grpc_shutdown(d->server, clock_mono() + DAEMON_FAREWELL, daemon_served);
}

/* Ends daemon_run once the calls under way are answered. From any thread, once. */
static void daemon_stop(krund *d)
{
    d->stop.run = daemon_stop_job;
    loop_post(&d->loop, &d->stop);
}

static void daemon_signal(watch *w, uint32_t events)
{
    krund *d = OWNER(w, krund, signals);
    struct signalfd_siginfo info;
    (void)events;
    if (read(w->fd, &info, sizeof info) != (ssize_t)sizeof info) return;
    log_info("%s: pods go on without this daemon", strsignal((int)info.ssi_signo));
    grpc_shutdown(d->server, clock_mono() + DAEMON_FAREWELL, daemon_served);
}

static const char *daemon_socket(const krund *d) { return d->options.socket; }

/* Serves until daemon_stop, or a signal if daemon_main asked for them. */
static void daemon_run(krund *d) { loop_run(&d->loop); }

/* Tells systemd that we answer (Type=notify): one datagram to the socket that it named. */
static void notify_ready(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    if (!path || strlen(path) >= sizeof to.sun_path) return;
    memcpy(to.sun_path, path, strlen(path));
    socklen_t n = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    if (path[0] == '@') to.sun_path[0] = '\0'; /* an abstract name: unix(7) */
    OWNED_FD s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (s < 0 || sendto(s, "READY=1", 7, MSG_NOSIGNAL, (struct sockaddr *)&to, n) < 0) log_warn("notify systemd: %s", strerror(errno));
}

static void daemon_usage(FILE *to)
{
    fputs("Usage: krun serve [FLAG]...\n\n"
          "Serves CRI on a unix socket until SIGTERM. Pods go on running without it.\n\n"
          "Flags (each is also a key of the configuration file, under the same name):\n", to);
    for (size_t i = 0; i < COUNT(daemon_settings); i++) {
        const char *initial = daemon_settings[i].initial;
        fprintf(to, "  --%-20s %s%s%s%s\n", daemon_settings[i].name, daemon_settings[i].help,
                *initial ? " (" : "", initial, *initial ? ")" : "");
    }
    fputs("  -h, --help             this text\n\nExample:\n  krun serve --root /data/krun --log-level debug\n", to);
}

/* "--name value" or "--name=value". 0; 1: help was asked; -1 with a usage error told. */
static int daemon_flags(int argc, char **argv, krun_options *out)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return 1;
        slice value = slice_of(argv[i]), name = slice_cut(&value, '=');
        int which = slice_starts(name, "--") ? setting_find((slice){ name.p + 2, name.n - 2 }) : -1;
        const char *text = value.p ? (const char *)value.p : which >= 0 && i + 1 < argc ? argv[++i] : NULL;
        if (which < 0 || !text) {
            fprintf(stderr, "krun serve: %s %.*s (see krun serve --help)\n", which < 0 ? "unknown flag" : "a value is missing after", PR(name));
            return -1;
        }
        memcpy((char *)out + daemon_settings[which].offset, &text, sizeof text);
    }
    return 0;
}

/* SIGTERM and SIGINT become an event of the loop; they are blocked in every thread that is to come. */
static int daemon_catch_signals(krund *d, const sigset_t *set, error *e)
{
    d->signals = (watch){ .fd = signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK), .ready = daemon_signal };
    return d->signals.fd < 0 ? fail_sys(e, GRPC_INTERNAL, "signalfd") : loop_watch(&d->loop, &d->signals, EPOLLIN, e);
}

/* `krun serve`; argv[0] is "serve". Returns the exit code: 0, 1 on failure, 2 for wrong usage. */
static int daemon_main(int argc, char **argv)
{
    krun_options given = { 0 };
    error e;
    sigset_t set;
    int parsed = daemon_flags(argc, argv, &given);
    if (parsed) return parsed > 0 ? daemon_usage(stdout), 0 : 2;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    krund *d = daemon_open(&given, &e);
    if (!d || daemon_catch_signals(d, &set, &e) < 0) {
        fprintf(stderr, "krun serve: %s\n", e.text);
        daemon_close(d);
        return 1;
    }
    log_info("krun %s serves %s: %zu pods, %zu containers", KRUN_VERSION, d->options.socket,
             d->runtime.pods_by_id.n, d->runtime.containers_by_id.n);
    notify_ready();
    daemon_run(d);
    daemon_close(d);
    return 0;
}

/* == 26. Command line ========================================================================
 *
 * What a person types. Every command but `serve` is a client of the CRI socket, with the calls that
 * a kubelet makes, so it is also an example of how they go together: `krun run` is PullImage,
 * RunPodSandbox, CreateContainer, StartContainer, the log file, StopPodSandbox, RemovePodSandbox.
 * Commands and options are two tables; the parser and every --help are made from them. At the
 * front are the small programs that are in the built-in image localhost/krun:self.
 *
 * Defined by  cri.proto; pod and container files: crictl's; exit codes 125 to 127: docker-run(1)
 * Uses        1, 2, 3, 8, 9, 24, 25            Gives  cli_main, self_main
 * Bounds      a file of 4 MiB; 256 MiB of memory for a command */
#ifndef KRUN_NO_CLI

/* Reads "1.5" as 1.5 * unit, exactly: no floating point that would turn 0.1 into something near it.
 * False unless all of `text` is a decimal number whose product fits. */
static bool cli_decimal(slice text, uint64_t unit, int64_t *out)
{
    slice whole = slice_cut(&text, '.');
    uint64_t value = 0, part = 0, scale = 1;
    if (!parse_u64(whole.n ? whole : SLICE("0"), 10, INT64_MAX / unit, &value)) return false;
    if (text.n > 9 || (text.n && !parse_u64(text, 10, 999999999, &part))) return false;
    for (size_t i = 0; i < text.n; i++) scale *= 10;
    if (!whole.n && !text.n) return false;
    uint64_t sum = value * unit + part * (unit / scale) + part * (unit % scale) / scale;
    if (sum > INT64_MAX) return false;
    *out = (int64_t)sum;
    return true;
}

/* "64m" is 64 MiB: b, k, m, g and t are powers of 1024 here, as in docker run --memory. */
static bool cli_bytes(slice text, int64_t *out)
{
    static const char units[] = "bkmgt";
    const char *unit = text.n ? strchr(units, text.p[text.n - 1] | 32) : NULL;
    if (unit) text.n--;
    return text.n && cli_decimal(text, UINT64_C(1) << (unit ? 10 * (unit - units) : 0), out);
}

/* -- the programs in localhost/krun:self ------------------------------------------------------- */

/* A container's first process is PID 1 of its namespace, and the kernel drops every signal for
 * which PID 1 has no handler, SIGTERM too (pid_namespaces(7)); so each program here has one. */
static void self_end(int sig) { _exit(128 + sig); }

static int self_usage(const char *text)
{
    fprintf(stderr, "usage: krun self %s\n", text);
    return 2;
}

static void self_nap(int64_t ns)
{
    struct timespec left = { (time_t)(ns / NS_PER_SEC), (long)(ns % NS_PER_SEC) };
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {}
}

static void self_words(int argc, char **argv, FILE *to)
{
    for (int i = 0; i < argc; i++) fprintf(to, "%s%s", i ? " " : "", argv[i]);
}

static int self_print(int argc, char **argv)
{
    int64_t every = 0;
    bool repeats = argc > 1 && !strcmp(argv[0], "--every");
    if (repeats && (!cli_decimal(slice_of(argv[1]), NS_PER_SEC, &every) || !every))
        return self_usage("print [--every SECONDS] TEXT...");
    if (repeats) argc -= 2, argv += 2;
    for (unsigned long n = 1;; n++) {
        self_words(argc, argv, stdout);
        if (repeats) printf(" %lu", n);
        if (putchar('\n') == EOF || fflush(stdout) == EOF) return 1;
        if (!repeats) return 0;
        self_nap(every);
    }
}

static int self_env(int argc, char **argv)
{
    (void)argc, (void)argv;
    for (char **e = environ; *e; e++) puts(*e);
    return 0;
}

static int self_sleep(int argc, char **argv)
{
    int64_t ns = 0;
    if (argc > 1 || (argc && !cli_decimal(slice_of(argv[0]), NS_PER_SEC, &ns)))
        return self_usage("sleep [SECONDS]");
    if (!argc)
        for (;;) pause();
    self_nap(ns);
    return 0;
}

/* A listening TCP socket for both families (ipv6(7), IPV6_V6ONLY), or IPv4 alone where a kernel has
 * no IPv6; -1 and errno. */
static int self_listen(uint16_t port)
{
    int on = 1, off = 0;
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
    struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool both = fd >= 0 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0;
    if (!both) close_fd(&fd);
    if (!both) fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const void *name = both ? (const void *)&six : (const void *)&four;
    if (bind(fd, name, both ? sizeof six : sizeof four) == 0 && listen(fd, 64) == 0) return fd;
    close_fd(&fd);
    return -1;
}

/* Answers one request with one page and hangs up: HTTP/1.0 needs no more (RFC 1945). */
static void self_answer(int fd, const char *text, unsigned long served)
{
    char request[2 * KIB] = "", host[256] = "";
    struct timeval limit = { .tv_sec = 5 };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    for (size_t n = 0; n < sizeof request - 1 && !strstr(request, "\r\n\r\n");) {
        ssize_t more = read(fd, request + n, sizeof request - 1 - n);
        if (more <= 0) return;
        n += (size_t)more;
    }
    gethostname(host, sizeof host - 1);
    OWNED_BUF page = { 0 };
    buf_printf(&page, "%s\nserved by %s, request %lu\n", text, host, served);
    OWNED_BUF reply = { 0 };
    buf_printf(&reply, "HTTP/1.0 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
                       "Content-Length: %zu\r\n\r\n", page.n);
    buf_slice(&reply, buf_view(&page));
    slice first = slice_of(request);
    OWNED_BUF shown = { 0 };
    text_escape(&shown, slice_trim(slice_cut(&first, '\n')), 200);
    printf("%.*s\n", PR(buf_view(&shown)));
    fflush(stdout);
    if (!reply.oom && write_all(fd, reply.p, reply.n) < 0) perror("krun self serve: reply");
}

static int self_serve(int argc, char **argv)
{
    uint64_t port = 8080;
    if (argc > 2 || (argc && !parse_u64(slice_of(argv[0]), 10, 65535, &port)))
        return self_usage("serve [PORT] [TEXT]");
    signal(SIGPIPE, SIG_IGN);
    OWNED_FD listener = self_listen((uint16_t)port);
    if (listener < 0) return perror("krun self serve: listen"), 1;
    printf("serving on port %d\n", (int)port);
    fflush(stdout);
    for (unsigned long served = 1;; served++) {
        OWNED_FD fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0) self_answer(fd, argc > 1 ? argv[1] : "krun serves this page", served);
        else if (errno != EINTR && errno != ECONNABORTED)
            return perror("krun self serve: accept"), 1;
    }
}

/* Takes memory and writes to every page of it, a mebibyte at a time, so that a limit is met at its
 * byte; then holds it. */
static int self_memory(int argc, char **argv)
{
    int64_t want;
    if (argc != 1 || !cli_bytes(slice_of(argv[0]), &want)) return self_usage("memory SIZE");
    for (int64_t have = 0; have < want; have += MIB) {
        char *p = malloc(MIB);
        if (!p) return perror("krun self memory"), 1;
        memset(p, 1, MIB);
    }
    printf("holding %" PRId64 " bytes\n", want);
    fflush(stdout);
    for (;;) pause();
}

static int self_exit(int argc, char **argv)
{
    uint64_t code;
    if (argc != 1 || !parse_u64(slice_of(argv[0]), 10, 255, &code)) return self_usage("exit CODE");
    return (int)code;
}

static int self_spin(int argc, char **argv)
{
    int64_t ns = INT64_MAX / 2;
    if (argc > 1 || (argc && !cli_decimal(slice_of(argv[0]), NS_PER_SEC, &ns)))
        return self_usage("spin [SECONDS]");
    for (int64_t start = clock_mono(); clock_mono() - start < ns;) {}
    return 0;
}

typedef struct { const char *name, *args, *does; int (*run)(int argc, char **argv); } self_row;
static const self_row self_rows[] = {
    { "print", "[--every SECONDS] TEXT...", "print a line, or one ever so often", self_print },
    { "env", "", "print the environment", self_env },
    { "sleep", "[SECONDS]", "wait; for ever without SECONDS", self_sleep },
    { "serve", "[PORT] [TEXT]", "serve a page over HTTP; port 8080", self_serve },
    { "memory", "SIZE", "use that much memory (64m) and hold it", self_memory },
    { "exit", "CODE", "end with that exit code", self_exit },
    { "spin", "[SECONDS]", "use one CPU; for ever without SECONDS", self_spin },
};

/* `krun self NAME [ARG...]`, argv[0] being "/krun" or "krun". Returns the exit code. */
static int self_main(int argc, char **argv)
{
    const char *name = argc > 2 ? argv[2] : "help";
    signal(SIGTERM, self_end);
    signal(SIGINT, self_end);
    for (size_t i = 0; i < COUNT(self_rows); i++)
        if (!strcmp(name, self_rows[i].name)) return self_rows[i].run(argc - 3, argv + 3);
    bool asked = !strcmp(name, "help") || !strcmp(name, "--help");
    FILE *to = asked ? stdout : stderr;
    if (!asked) fprintf(to, "krun self: there is no program \"%s\"\n", name);
    fprintf(to, "The programs in the image localhost/krun:self:\n\n");
    for (size_t i = 0; i < COUNT(self_rows); i++)
        fprintf(to, "  %-6s %-26s %s\n", self_rows[i].name, self_rows[i].args, self_rows[i].does);
    return asked ? 0 : 127;
}

/* -- one invocation ---------------------------------------------------------------------------- */

typedef struct { const char **p; size_t n; } cli_words; /* an option that may be given again */

/* Exit codes; the last three as docker and podman have them for a container that did not run. */
enum { CLI_OK = 0, CLI_ERROR = 1, CLI_USAGE = 2 };
enum { CLI_FAILED = 125, CLI_CANNOT_EXEC = 126, CLI_NOT_FOUND = 127 };

#define CLI_SOCKET "/run/krun/krun.sock"
enum { CLI_ID = 13 }; /* an ID's first characters, as many as crictl shows */

/* What was typed, and what a command works with. Options that were not given are zero or NULL. */
typedef struct {
    client client;       /* its arena has all that the invocation allocates */
    const char *command;
    char **args;         /* what is no option */
    int nargs;
    krun_pod pod;        /* of `run` */
    cli_words env, volumes;
    const char *socket, *output, *pull, *of_pod;
    int64_t timeout, tail;
    bool quiet, all, follow, timestamps, detach, rm, force, privileged, read_only, help, version;
} cli;

/* Says on stderr what is wrong with the line that was typed. */
__attribute__((format(printf, 2, 3))) static int cli_usage(const cli *c, const char *format, ...)
{
    const char *command = c->command ? c->command : "";
    va_list args;
    va_start(args, format);
    fputs("krun: ", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, " (see: krun %s%s--help)\n", command, *command ? " " : "");
    return CLI_USAGE;
}

/* The socket's path: --socket, KRUN_SOCKET, CONTAINER_RUNTIME_ENDPOINT (crictl's), the default. */
static const char *cli_socket(const char *option)
{
    const char *crictl = getenv("CONTAINER_RUNTIME_ENDPOINT");
    const char *from[] = { option, getenv("KRUN_SOCKET"), crictl, CLI_SOCKET };
    size_t i = 0;
    while (!from[i] || !*from[i]) i++;
    return strncmp(from[i], "unix://", 7) ? from[i] : from[i] + 7;
}

#define CLI_CALL(c, rpc, in, out, e) CLIENT_CALL(&(c)->client, RuntimeService, rpc, in, out, e)
#define CLI_IMAGE(c, rpc, in, out, e) CLIENT_CALL(&(c)->client, ImageService, rpc, in, out, e)

/* -- what people read -------------------------------------------------------------------------- */

/* Rows of cells; the first row is the heading. Cells are escaped: a pod's name is not ours. */
typedef struct { arena *a; const char **cells; size_t n, cap, columns; } cli_table;

__attribute__((format(printf, 2, 3))) static void cli_cell(cli_table *t, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (t->n == t->cap) {
        size_t cap = MAX(t->cap * 2, (size_t)128);
        const char **cells = arena_alloc(t->a, cap * sizeof *cells);
        if (!cells) return;
        if (t->n) memcpy(cells, t->cells, t->n * sizeof *cells);
        t->cells = cells;
        t->cap = cap;
    }
    OWNED_BUF safe = { 0 };
    text_escape(&safe, slice_of(text), sizeof text);
    t->cells[t->n++] = arena_str(t->a, buf_view(&safe));
}

/* Starts a table with its heading, the columns' names split by '|'. */
static cli_table cli_heading(cli *c, const char *columns)
{
    cli_table t = { .a = &c->client.arena };
    for (slice rest = slice_of(columns), name; rest.n;) {
        name = slice_cut(&rest, '|');
        cli_cell(&t, "%.*s", PR(name));
    }
    t.columns = t.n;
    return t;
}

enum { CLI_MAX_COLUMNS = 10 };

static void cli_print(const cli_table *t)
{
    size_t width[CLI_MAX_COLUMNS] = { 0 };
    assert(t->columns && t->columns <= CLI_MAX_COLUMNS && t->n % t->columns == 0);
    for (size_t i = 0; i < t->n; i++)
        width[i % t->columns] = MAX(width[i % t->columns], strlen(t->cells[i]));
    for (size_t i = 0; i < t->n; i++) {
        bool last = i % t->columns == t->columns - 1;
        printf("%-*s%s", last ? 0 : (int)width[i % t->columns] + 3, t->cells[i], last ? "\n" : "");
    }
}

/* "2 minutes ago": the largest unit of which there are at least two. */
static const char *cli_ago(cli *c, int64_t wall_ns)
{
    static const struct { int64_t seconds; const char *name; } units[] = {
        { 31536000, "years" }, { 2592000, "months" }, { 604800, "weeks" }, { 86400, "days" },
        { 3600, "hours" }, { 60, "minutes" }, { 1, "seconds" },
    };
    int64_t age = wall_ns ? (clock_wall() - wall_ns) / NS_PER_SEC : 0;
    if (!wall_ns) return "never";
    if (age < 2) return "1 second ago";
    size_t i = 0;
    while (age < 2 * units[i].seconds) i++;
    return arena_printf(&c->client.arena, "%" PRId64 " %s ago", age / units[i].seconds,
                        units[i].name);
}

static const char *cli_size(cli *c,
                            uint64_t bytes) /* "4.26MB", powers of 1000 as crictl has them */
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB", "EB" };
    double value = (double)bytes;
    size_t i = 0;
    for (; value >= 1000; i++) value /= 1000;
    return arena_printf(&c->client.arena, "%.3g%s", value, units[i]);
}

static slice cli_short(slice id)
{
    if (slice_starts(id, "sha256:")) id = (slice){ id.p + 7, id.n - 7 };
    return (slice){ id.p, MIN(id.n, (size_t)CLI_ID) };
}

/* A whole reply as JSON, as `crictl -o json` prints it. */
static int cli_json(const pb_message *m, const void *message, error *e)
{
    OWNED_BUF out = { 0 };
    pb_write_json(m, message, PB_INDENT | PB_DEFAULTS, &out);
    buf_byte(&out, '\n');
    return client_write(&out, STDOUT_FILENO, e) < 0 ? -1 : CLI_OK;
}

static bool cli_wants_json(const cli *c) { return c->output && !strcmp(c->output, "json"); }

/* A text as JSON; but a time, which protobuf's JSON has as a text of nanoseconds since 1970, as a
 * date (the fields createdAt, startedAt, finishedAt). */
static void cli_json_text(const json *v, buf *out)
{
    uint64_t ns = 0;
    char date[TIME_TEXT];
    bool time = slice_ends(v->key, "At") && parse_u64(v->text, 10, INT64_MAX, &ns) && ns;
    if (time) clock_text((int64_t)ns, date);
    json_string(out, time ? slice_of(date) : v->text);
}

/* Writes a JSON tree indented by two spaces a level. */
static void cli_json_tree(const json *v, int depth, buf *out)
{
    static const char *const words[] = { "false", "true" };
    bool object = v->kind == JSON_OBJECT;
    switch (v->kind) {
    case JSON_NULL: buf_str(out, "null"); return;
    case JSON_BOOL: buf_str(out, words[v->boolean]); return;
    case JSON_NUMBER: buf_slice(out, v->text); return;
    case JSON_STRING: cli_json_text(v, out); return;
    case JSON_ARRAY: case JSON_OBJECT: break;
    }
    buf_byte(out, object ? '{' : '[');
    for (size_t i = 0; i < v->n; i++) {
        buf_printf(out, "%s\n%*s", i ? "," : "", 2 * depth + 2, "");
        if (object) json_string(out, v->items[i].key), buf_str(out, ": ");
        cli_json_tree(&v->items[i], depth + 1, out);
    }
    if (v->n) buf_printf(out, "\n%*s", 2 * depth, "");
    buf_byte(out, object ? '}' : ']');
}

/* The pairs of a verbose reply. The CRI says that each value is JSON in a text; it is written as
 * what it is. A pair that is itself named "info" holds all there is. */
static void cli_info(cli *c, const pb_pair *info, size_t n, buf *out)
{
    error not_json;
    bool whole = n == 1 && slice_is(info->key, "info");
    if (!whole) buf_byte(out, '{');
    for (size_t i = 0; i < n; i++) {
        if (i) buf_byte(out, ',');
        if (!whole) json_string(out, info[i].key), buf_byte(out, ':');
        if (json_parse(info[i].value, &c->client.arena, &not_json)) buf_slice(out, info[i].value);
        else json_string(out, info[i].value);
    }
    if (!whole) buf_byte(out, '}');
}

/* Prints {"status": ..., "info": {...}}. */
static int cli_inspection(cli *c, const pb_message *m, const void *status, const pb_pair *info,
                          size_t ninfo, error *e)
{
    OWNED_BUF text = { 0 }, out = { 0 };
    buf_str(&text, "{\"status\":");
    pb_write_json(m, status, PB_DEFAULTS, &text);
    buf_str(&text, ",\"info\":");
    cli_info(c, info, ninfo, &text);
    buf_byte(&text, '}');
    if (text.oom) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for the output");
    const json *tree = json_parse(buf_view(&text), &c->client.arena, e);
    if (!tree) return -1;
    cli_json_tree(tree, 0, &out);
    buf_byte(&out, '\n');
    return client_write(&out, STDOUT_FILENO, e) < 0 ? -1 : CLI_OK;
}

/* -- which pod, container or image is meant ---------------------------------------------------- */

enum cli_what { CLI_CONTAINER = 1, CLI_POD = 2, CLI_AN_IMAGE = 4 }; /* bits, to ask for several */

/* A thing with an ID and a name. `active`: a container that is running, a pod that is ready. */
typedef struct { enum cli_what what; slice id, name; bool active; } cli_thing;
typedef struct { cli_thing *p; size_t n, cap; } cli_things;

static int cli_add(cli *c, cli_things *all, cli_thing one, error *e)
{
    if (all->n == all->cap) {
        size_t cap = MAX(all->cap * 2, (size_t)64);
        cli_thing *p = arena_alloc(&c->client.arena, cap * sizeof *p);
        if (!p) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory for a list");
        if (all->n) memcpy(p, all->p, all->n * sizeof *p);
        *all = (cli_things){ p, all->n, cap };
    }
    all->p[all->n++] = one;
    return 0;
}

static int cli_add_containers(cli *c, cli_things *all, error *e)
{
    ListContainersRequest in = { 0 };
    ListContainersResponse out = { 0 };
    if (CLI_CALL(c, ListContainers, &in, &out, e) < 0) return -1;
    for (size_t i = 0; i < out.containers.n; i++) {
        const Container *one = &out.containers.p[i];
        bool runs = one->state == ContainerState_CONTAINER_RUNNING;
        slice name = one->metadata ? one->metadata->name : SLICE("");
        if (cli_add(c, all, (cli_thing){ CLI_CONTAINER, one->id, name, runs }, e) < 0) return -1;
    }
    return 0;
}

static int cli_add_pods(cli *c, cli_things *all, error *e)
{
    ListPodSandboxRequest in = { 0 };
    ListPodSandboxResponse out = { 0 };
    if (CLI_CALL(c, ListPodSandbox, &in, &out, e) < 0) return -1;
    for (size_t i = 0; i < out.items.n; i++) {
        const PodSandbox *one = &out.items.p[i];
        bool ready = one->state == PodSandboxState_SANDBOX_READY;
        slice name = one->metadata ? one->metadata->name : SLICE("");
        if (cli_add(c, all, (cli_thing){ CLI_POD, one->id, name, ready }, e) < 0) return -1;
    }
    return 0;
}

/* An image is asked for by its name, which only the daemon can complete ("busybox" is
 * "docker.io/library/busybox:latest"). */
static int cli_add_image(cli *c, const char *word, cli_things *all, error *e)
{
    ImageSpec spec = { .image = slice_of(word) };
    ImageStatusRequest in = { .image = &spec };
    ImageStatusResponse out = { 0 };
    if (CLI_IMAGE(c, ImageStatus, &in, &out, e) < 0) return -1;
    if (!out.image) return 0;
    return cli_add(c, all, (cli_thing){ CLI_AN_IMAGE, out.image->id, slice_of(word), true }, e);
}

/* How many of `kinds` have `word` as their name, or as the beginning of their ID; *out is one. */
static size_t cli_count(const cli_things *all, unsigned kinds, const char *word, bool by_name,
                        cli_thing *out)
{
    size_t found = 0;
    for (size_t i = 0; i < all->n && *word; i++) {
        const cli_thing *one = &all->p[i];
        bool same = by_name ? slice_is(one->name, word) : slice_starts(one->id, word);
        if (!(one->what & kinds) || !same) continue;
        *out = *one;
        found++;
    }
    return found;
}

/* Everything of these kinds that the daemon has, but images. */
static int cli_list(cli *c, unsigned kinds, cli_things *all, error *e)
{
    if ((kinds & CLI_CONTAINER) && cli_add_containers(c, all, e) < 0) return -1;
    return (kinds & CLI_POD) ? cli_add_pods(c, all, e) : 0;
}

/* Finds the one thing that `word` means: by its name, one of kind `rather` before others, since
 * `krun run` gives a pod and its container the same; else by the beginning of its ID, whatever it
 * is. NOT_FOUND; INVALID_ARGUMENT if it means more than one. */
static int cli_find(cli *c, unsigned kinds, enum cli_what rather, const char *word, cli_thing *out,
                    error *e)
{
    cli_things all = { 0 };
    if (cli_list(c, kinds, &all, e) < 0) return -1;
    size_t found = cli_count(&all, rather, word, true, out);
    if (!found) found = cli_count(&all, kinds, word, true, out);
    if (!found) found = cli_count(&all, kinds, word, false, out);
    if (!found && (kinds & CLI_AN_IMAGE)) {
        if (cli_add_image(c, word, &all, e) < 0) return -1;
        found = cli_count(&all, CLI_AN_IMAGE, word, true, out);
    }
    if (found == 1) return 0;
    if (found)
        return fail(e, GRPC_INVALID_ARGUMENT, "\"%s\" means %zu things: give more of an ID", word,
                    found);
    return fail(e, GRPC_NOT_FOUND, "there is no %s%s%s \"%s\"",
                kinds & CLI_CONTAINER ? "container" : "",
                kinds == (kinds & CLI_CONTAINER) ? ""
                : kinds & CLI_CONTAINER          ? " or pod"
                                                 : "pod",
                kinds & CLI_AN_IMAGE ? " or image" : "", word);
}

/* The container that `word` means; a pod means its container if it has but one. */
static int cli_find_container(cli *c, const char *word, slice *id, error *e)
{
    cli_thing one;
    if (cli_find(c, CLI_CONTAINER | CLI_POD, CLI_CONTAINER, word, &one, e) < 0) return -1;
    *id = one.id;
    if (one.what == CLI_CONTAINER) return 0;
    ContainerFilter filter = { .pod_sandbox_id = one.id };
    ListContainersRequest in = { .filter = &filter };
    ListContainersResponse out = { 0 };
    if (CLI_CALL(c, ListContainers, &in, &out, e) < 0) return -1;
    if (out.containers.n != 1)
        return fail(e, GRPC_INVALID_ARGUMENT, "pod %s has %zu containers: say which", word,
                    out.containers.n);
    *id = out.containers.p[0].id;
    return 0;
}

/* -- lists ------------------------------------------------------------------------------------- */

static int cli_do_pods(cli *c, error *e)
{
    ListPodSandboxRequest in = { 0 };
    ListPodSandboxResponse out = { 0 };
    if (CLI_CALL(c, ListPodSandbox, &in, &out, e) < 0) return -1;
    if (cli_wants_json(c)) return cli_json(&ListPodSandboxResponse_msg, &out, e);
    cli_table t = cli_heading(c, "POD ID|CREATED|STATE|NAME|NAMESPACE|ATTEMPT");
    for (size_t i = 0; i < out.items.n; i++) {
        const PodSandbox *p = &out.items.p[i];
        const PodSandboxMetadata none = { 0 }, *m = p->metadata ? p->metadata : &none;
        if (c->quiet) { printf("%.*s\n", PR(p->id)); continue; }
        cli_cell(&t, "%.*s", PR(cli_short(p->id)));
        cli_cell(&t, "%s", cli_ago(c, p->created_at));
        cli_cell(&t, "%s", p->state == PodSandboxState_SANDBOX_READY ? "Ready" : "NotReady");
        cli_cell(&t, "%.*s", PR(m->name));
        cli_cell(&t, "%.*s", PR(m->name_space));
        cli_cell(&t, "%u", m->attempt);
    }
    if (!c->quiet) cli_print(&t);
    return CLI_OK;
}

static const char *cli_state(int32_t state)
{
    static const char *const names[] = { "Created", "Running", "Exited" };
    return state >= 0 && state < (int32_t)COUNT(names) ? names[state] : "Unknown";
}

/* The name of the pod with this ID in a list of pods. */
static slice cli_pod_name(const cli_things *pods, slice id)
{
    for (size_t i = 0; i < pods->n; i++)
        if (slice_eq(pods->p[i].id, id)) return pods->p[i].name;
    return SLICE("");
}

static int cli_do_ps(cli *c, error *e)
{
    ContainerStateValue running = { ContainerState_CONTAINER_RUNNING };
    ContainerFilter filter = { .state = c->all ? NULL : &running };
    ListContainersRequest in = { .filter = &filter };
    ListContainersResponse out = { 0 };
    cli_thing of;
    if (c->of_pod && cli_find(c, CLI_POD, CLI_POD, c->of_pod, &of, e) < 0) return -1;
    if (c->of_pod) filter.pod_sandbox_id = of.id;
    if (CLI_CALL(c, ListContainers, &in, &out, e) < 0) return -1;
    if (cli_wants_json(c)) return cli_json(&ListContainersResponse_msg, &out, e);
    cli_things pods = { 0 };
    if (!c->quiet && cli_add_pods(c, &pods, e) < 0) return -1;
    cli_table t = cli_heading(c, "CONTAINER ID|IMAGE|CREATED|STATE|NAME|ATTEMPT|POD ID|POD");
    for (size_t i = 0; i < out.containers.n; i++) {
        const Container *one = &out.containers.p[i];
        const ContainerMetadata none = { 0 }, *m = one->metadata ? one->metadata : &none;
        if (c->quiet) { printf("%.*s\n", PR(one->id)); continue; }
        cli_cell(&t, "%.*s", PR(cli_short(one->id)));
        cli_cell(&t, "%.*s", PR(one->image ? one->image->image : one->image_ref));
        cli_cell(&t, "%s", cli_ago(c, one->created_at));
        cli_cell(&t, "%s", cli_state(one->state));
        cli_cell(&t, "%.*s", PR(m->name));
        cli_cell(&t, "%u", m->attempt);
        cli_cell(&t, "%.*s", PR(cli_short(one->pod_sandbox_id)));
        cli_cell(&t, "%.*s", PR(cli_pod_name(&pods, one->pod_sandbox_id)));
    }
    if (!c->quiet) cli_print(&t);
    return CLI_OK;
}

/* One line of the images' table. `name` is repository:tag or repository@digest; the port in
 * "localhost:5000/app" is no tag, so the last ':' counts only after the last '/'. */
static void cli_image_row(cli *c, cli_table *t, const Image *one, slice name)
{
    const char *text = arena_str(&c->client.arena, name), *digest = strchr(text, '@'),
               *slash = strrchr(text, '/');
    const char *colon = digest ? NULL : strrchr(slash ? slash : text, ':');
    const char *end = digest ? digest : colon ? colon : text + strlen(text);
    cli_cell(t, "%.*s", (int)(end - text), text);
    cli_cell(t, "%s", colon ? colon + 1 : "<none>");
    cli_cell(t, "%.*s", PR(cli_short(one->id)));
    cli_cell(t, "%s", cli_size(c, one->size));
}

static int cli_do_images(cli *c, error *e)
{
    ListImagesRequest in = { 0 };
    ListImagesResponse out = { 0 };
    if (CLI_IMAGE(c, ListImages, &in, &out, e) < 0) return -1;
    if (cli_wants_json(c)) return cli_json(&ListImagesResponse_msg, &out, e);
    cli_table t = cli_heading(c, "IMAGE|TAG|IMAGE ID|SIZE");
    for (size_t i = 0; i < out.images.n; i++) {
        const Image *one = &out.images.p[i];
        if (c->quiet) { printf("%.*s\n", PR(one->id)); continue; }
        for (size_t k = 0; k < one->repo_tags.n; k++)
            cli_image_row(c, &t, one, one->repo_tags.p[k]);
        if (one->repo_tags.n) continue;
        cli_image_row(c, &t, one,
                      one->repo_digests.n ? one->repo_digests.p[0] : SLICE("<none>"));
    }
    if (!c->quiet) cli_print(&t);
    return CLI_OK;
}

/* -- images ------------------------------------------------------------------------------------ */

static int cli_pull_image(cli *c, const char *name, slice *id, error *e)
{
    ImageSpec spec = { .image = slice_of(name) };
    PullImageRequest in = { .image = &spec };
    PullImageResponse out = { 0 };
    if (CLIENT_WAIT(&c->client, ImageService, PullImage, &in, &out, e) < 0)
        return fail_in(e, "pull %s", name);
    *id = out.image_ref;
    return 0;
}

static int cli_do_pull(cli *c, error *e)
{
    for (int i = 0; i < c->nargs; i++) {
        slice id;
        if (cli_pull_image(c, c->args[i], &id, e) < 0) return -1;
        printf("%.*s\n", PR(id));
    }
    return CLI_OK;
}

/* Copies standard input into a file that has no name, so that nothing is left of it, whatever
 * happens: open(2), O_TMPFILE. An archive has to be a file because its index may come last. */
static int cli_spool(error *e)
{
    const char *dir = getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
    OWNED_FD fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) return fail_sys(e, GRPC_INTERNAL, "make a temporary file in %s", dir);
    char chunk[64 * KIB];
    for (ssize_t n; (n = read_all(STDIN_FILENO, chunk, sizeof chunk)) != 0;)
        if (n < 0 || write_all(fd, chunk, (size_t)n) < 0)
            return fail_sys(e, GRPC_INTERNAL, "copy standard input to a file in %s", dir);
    return give_fd(&fd);
}

/* `krun load FILE|DIR|-`. The daemon opens the path itself; what came through a pipe it reaches
 * through our own /proc/PID/fd. */
static int cli_do_load(cli *c, error *e)
{
    char path[PATH_MAX];
    OWNED_FD spooled = -1;
    bool pipe = !strcmp(c->args[0], "-");
    if (pipe && (spooled = cli_spool(e)) < 0) return -1;
    if (pipe) snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), spooled);
    else if (!realpath(c->args[0], path)) return fail_sys(e, GRPC_NOT_FOUND, "load %s", c->args[0]);
    KrunLoadImageRequest in = { .path = slice_of(path) };
    KrunLoadImageResponse out = { 0 };
    grpc_request r = { .path = "/krun.v1.Krun/LoadImage",
                       .in_msg = &KrunLoadImageRequest_msg,
                       .in = &in,
                       .out_msg = &KrunLoadImageResponse_msg,
                       .out = &out };
    if (client_call(&c->client, &r, e) < 0) return fail_in(e, "load %s", c->args[0]);
    for (size_t i = 0; i < out.names.n; i++) printf("%.*s\n", PR(out.names.p[i]));
    return CLI_OK;
}

/* The CRI's RemoveImage does not mind an image that is not there; a person wants to be told. */
static int cli_do_rmi(cli *c, error *e)
{
    for (int i = 0; i < c->nargs; i++) {
        cli_things found = { 0 };
        if (cli_add_image(c, c->args[i], &found, e) < 0) return -1;
        if (!found.n) return fail(e, GRPC_NOT_FOUND, "there is no image \"%s\"", c->args[i]);
        ImageSpec spec = { .image = slice_of(c->args[i]) };
        RemoveImageRequest in = { .image = &spec };
        RemoveImageResponse out = { 0 };
        if (CLI_IMAGE(c, RemoveImage, &in, &out, e) < 0)
            return fail_in(e, "remove image %s", c->args[i]);
        printf("%s\n", c->args[i]);
    }
    return CLI_OK;
}

static int cli_do_logs(cli *c, error *e)
{
    slice id;
    int exit_code;
    if (cli_find_container(c, c->args[0], &id, e) < 0) return -1;
    const ContainerStatus *status = client_status(&c->client, id, e);
    if (!status) return -1;
    if (!status->log_path.n)
        return fail(e, GRPC_FAILED_PRECONDITION, "container %s has no log", c->args[0]);
    OWNED_LOG l = client_log_make(id, -1);
    l.path = arena_str(&c->client.arena, status->log_path);
    l.timestamps = c->timestamps;
    if (client_log_open(&l, c->follow, e) < 0) return -1;
    if (c->tail >= 0 && client_log_tail(&l, c->tail, e) < 0) return -1;
    int done =
        c->follow ? client_log_follow(&c->client, &l, &exit_code, e) : client_log_drain(&l, e);
    return done < 0 ? -1 : CLI_OK;
}

/* -- one container or pod ---------------------------------------------------------------------- */

static int cli_do_exec(cli *c, error *e)
{
    slice id;
    if (cli_find_container(c, c->args[0], &id, e) < 0) return -1;
    slice *cmd = arena_alloc(&c->client.arena, (size_t)c->nargs * sizeof *cmd);
    if (!cmd) return fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    for (int i = 1; i < c->nargs; i++) cmd[i - 1] = slice_of(c->args[i]);
    ExecSyncRequest in = { .container_id = id, .timeout = c->timeout };
    in.cmd.p = cmd;
    in.cmd.n = (size_t)c->nargs - 1;
    ExecSyncResponse out = { 0 };
    if (CLIENT_WAIT(&c->client, RuntimeService, ExecSync, &in, &out, e) < 0) return -1;
    if (write_all(STDOUT_FILENO, out.stdout.p, out.stdout.n) < 0 ||
        write_all(STDERR_FILENO, out.stderr.p, out.stderr.n) < 0)
        return fail_sys(e, GRPC_INTERNAL, "write the output");
    return out.exit_code & 255;
}

static int cli_inspect_container(cli *c, slice id, error *e)
{
    ContainerStatusRequest in = { .container_id = id, .verbose = true };
    ContainerStatusResponse out = { 0 };
    if (CLI_CALL(c, ContainerStatus, &in, &out, e) < 0) return -1;
    return cli_inspection(c, &ContainerStatus_msg, out.status, out.info.p, out.info.n, e);
}

static int cli_inspect_pod(cli *c, slice id, error *e)
{
    PodSandboxStatusRequest in = { .pod_sandbox_id = id, .verbose = true };
    PodSandboxStatusResponse out = { 0 };
    if (CLI_CALL(c, PodSandboxStatus, &in, &out, e) < 0) return -1;
    return cli_inspection(c, &PodSandboxStatus_msg, out.status, out.info.p, out.info.n,
                          e);
}

static int cli_inspect_image(cli *c, slice id, error *e)
{
    ImageSpec spec = { .image = id };
    ImageStatusRequest in = { .image = &spec, .verbose = true };
    ImageStatusResponse out = { 0 };
    if (CLI_IMAGE(c, ImageStatus, &in, &out, e) < 0) return -1;
    return cli_inspection(c, &Image_msg, out.image, out.info.p, out.info.n, e);
}

static int cli_do_inspect(cli *c, error *e)
{
    for (int i = 0; i < c->nargs; i++) {
        cli_thing one;
        if (cli_find(c, CLI_CONTAINER | CLI_POD | CLI_AN_IMAGE, CLI_CONTAINER, c->args[i], &one,
                     e) < 0)
            return -1;
        int done = one.what == CLI_CONTAINER ? cli_inspect_container(c, one.id, e)
                   : one.what == CLI_POD     ? cli_inspect_pod(c, one.id, e)
                                             : cli_inspect_image(c, one.id, e);
        if (done < 0) return -1;
    }
    return CLI_OK;
}

static int cli_stop_container(cli *c, slice id, int64_t seconds, error *e)
{
    StopContainerRequest in = { .container_id = id, .timeout = seconds };
    StopContainerResponse out = { 0 };
    return CLIENT_WAIT(&c->client, RuntimeService, StopContainer, &in, &out, e);
}

/* A pod's containers get their grace one after the other; then the pod ends. */
static int cli_stop_gently(cli *c, const cli_thing *one, int64_t seconds, error *e)
{
    ContainerFilter filter = { .pod_sandbox_id = one->id };
    ListContainersRequest in = { .filter = &filter };
    ListContainersResponse out = { 0 };
    if (CLI_CALL(c, ListContainers, &in, &out, e) < 0) return -1;
    for (size_t i = 0; i < out.containers.n; i++)
        if (out.containers.p[i].state == ContainerState_CONTAINER_RUNNING &&
            cli_stop_container(c, out.containers.p[i].id, seconds, e) < 0) return -1;
    return client_stop_pod(&c->client, one->id, e);
}

static int cli_do_stop(cli *c, error *e)
{
    for (int i = 0; i < c->nargs; i++) {
        cli_thing one;
        if (cli_find(c, CLI_CONTAINER | CLI_POD, CLI_POD, c->args[i], &one, e) < 0) return -1;
        int done = one.what == CLI_POD ? cli_stop_gently(c, &one, c->timeout, e)
                                       : cli_stop_container(c, one.id, c->timeout, e);
        if (done < 0) return fail_in(e, "stop %s", c->args[i]);
        printf("%s\n", c->args[i]);
    }
    return CLI_OK;
}

static int cli_remove(cli *c, const cli_thing *one, error *e)
{
    const char *busy = one->what == CLI_POD ? "is ready" : "is running";
    if (one->active && !c->force)
        return fail(e, GRPC_FAILED_PRECONDITION, "%.*s %s: stop it first, or use --force",
                    PR(cli_short(one->id)), busy);
    if (one->what == CLI_POD) return client_remove_pod(&c->client, one->id, e);
    RemoveContainerRequest in = { .container_id = one->id };
    RemoveContainerResponse out = { 0 };
    return CLI_CALL(c, RemoveContainer, &in, &out, e);
}

static int cli_do_rm(cli *c, error *e)
{
    cli_things all = { 0 };
    if (!c->all && !c->nargs) return cli_usage(c, "give a pod or container, or --all");
    if (c->all && cli_add_pods(c, &all, e) < 0) return -1;
    for (int i = 0; i < c->nargs; i++) {
        cli_thing one;
        if (cli_find(c, CLI_CONTAINER | CLI_POD, CLI_POD, c->args[i], &one, e) < 0) return -1;
        if (cli_add(c, &all, one, e) < 0) return -1;
    }
    for (size_t i = 0; i < all.n; i++) {
        if (c->all && all.p[i].active && !c->force) continue;
        if (cli_remove(c, &all.p[i], e) < 0) return -1;
        printf("%.*s\n", PR(all.p[i].id));
    }
    return CLI_OK;
}

/* -- krun run: a pod of one container ---------------------------------------------------------- */

/* --pull always|missing|never */
static int cli_have_image(cli *c, const char *name, error *e)
{
    const char *when = c->pull ? c->pull : "missing";
    cli_things found = { 0 };
    slice id;
    if (strcmp(when, "always") && cli_add_image(c, name, &found, e) < 0) return -1;
    if (found.n) return 0;
    if (!strcmp(when, "never"))
        return fail(e, GRPC_NOT_FOUND, "there is no image \"%s\" and --pull is never", name);
    fprintf(stderr, "krun: pulling %s\n", name);
    return cli_pull_image(c, name, &id, e);
}

/* Ctrl-C and its like become readable from a descriptor, so that they stop the container and not
 * us: signalfd(2). */
static int cli_catch_signals(error *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN); /* who stops the container is not waited for: wait(2), NOTES */
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) return fail_sys(e, GRPC_INTERNAL, "block signals");
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? fail_sys(e, GRPC_INTERNAL, "catch signals") : fd;
}

/* Prints a started container's log until its end. Returns its exit code, or -1. */
static int cli_attend(cli *c, slice id, int signals, error *e)
{
    int exit_code = 0;
    OWNED_LOG l = client_log_make(id, signals);
    const ContainerStatus *status = client_status(&c->client, id, e);
    if (!status) return -1;
    l.path = arena_str(&c->client.arena, status->log_path);
    if (client_log_open(&l, true, e) < 0) return -1;
    return client_log_follow(&c->client, &l, &exit_code, e) < 0 ? -1 : exit_code & 255;
}

static int cli_do_run(cli *c, error *e)
{
    client_pod p;
    slice pod_id, container_id;
    error undo;
    if (c->detach && c->rm)
        return cli_usage(c, "--rm with --detach: nobody would wait to remove it");
    c->pod.image = c->args[0];
    c->pod.args = (const char *const *)c->args + 1;
    c->pod.env = c->env.p;
    c->pod.volumes = c->volumes.p;
    c->pod.privileged = c->privileged;
    c->pod.read_only = c->read_only;
    if (cli_have_image(c, c->pod.image, e) < 0) return -1;
    if (client_pod_fill(&c->client, &p, &c->pod, e) < 0) return -1;
    if (p.no_network && !c->pod.network)
        fprintf(stderr,
                "krun: no CNI network is configured, so the pod has loopback only (--net)\n");
    OWNED_FD signals = cli_catch_signals(e);
    if (signals < 0 || client_pod_run(&c->client, &p, &pod_id, &container_id, e) < 0) return -1;
    if (c->detach) return printf("%.*s\n", PR(pod_id)), CLI_OK;
    int code = cli_attend(c, container_id, signals, e);
    /* Without --rm the pod stays to be looked at, but its network is given back. */
    int done = c->rm ? client_remove_pod(&c->client, pod_id, &undo)
                     : client_stop_pod(&c->client, pod_id, &undo);
    if (done < 0) fprintf(stderr, "krun: after the end of %.*s: %s\n", PR(p.name), undo.text);
    return code;
}

/* -- the same by hand, from crictl's JSON files ------------------------------------------------ */

enum { CLI_CONFIG_MAX = 4 * MIB };

static int cli_read_config(cli *c, const char *path, const pb_message *m, void *out, error *e)
{
    slice text;
    if (file_read(AT_FDCWD, path, CLI_CONFIG_MAX, &c->client.arena, &text, e) < 0) return -1;
    return pb_read_json(m, text, &c->client.arena, out, e) < 0 ? fail_in(e, "%s", path) : 0;
}

static int cli_do_runp(cli *c, error *e)
{
    PodSandboxConfig config;
    slice id;
    if (cli_read_config(c, c->args[0], &PodSandboxConfig_msg, &config, e) < 0) return -1;
    if (client_make_pod(&c->client, &config, &id, e) < 0) return -1;
    printf("%.*s\n", PR(id));
    return CLI_OK;
}

static int cli_do_create(cli *c, error *e)
{
    PodSandboxConfig pod_config;
    ContainerConfig config;
    cli_thing in;
    slice id;
    if (cli_read_config(c, c->args[1], &ContainerConfig_msg, &config, e) < 0) return -1;
    if (cli_read_config(c, c->args[2], &PodSandboxConfig_msg, &pod_config, e) < 0) return -1;
    if (cli_find(c, CLI_POD, CLI_POD, c->args[0], &in, e) < 0) return -1;
    CreateContainerRequest request = { .pod_sandbox_id = in.id,
                                       .config = &config,
                                       .sandbox_config = &pod_config };
    if (client_create(&c->client, &request, &id, e) < 0) return -1;
    printf("%.*s\n", PR(id));
    return CLI_OK;
}

static int cli_do_start(cli *c, error *e)
{
    for (int i = 0; i < c->nargs; i++) {
        cli_thing one;
        if (cli_find(c, CLI_CONTAINER, CLI_CONTAINER, c->args[i], &one, e) < 0) return -1;
        if (client_start(&c->client, one.id, e) < 0) return fail_in(e, "start %s", c->args[i]);
        printf("%s\n", c->args[i]);
    }
    return CLI_OK;
}

/* -- the daemon -------------------------------------------------------------------------------- */

static int cli_do_version(cli *c, error *e)
{
    VersionRequest in = { .version = SLICE("v1") };
    VersionResponse out = { 0 };
    if (!cli_wants_json(c)) printf("Client:  krun %s\n", KRUN_VERSION);
    if (CLI_CALL(c, Version, &in, &out, e) < 0) return -1;
    if (cli_wants_json(c)) return cli_json(&VersionResponse_msg, &out, e);
    printf("Server:  %.*s %.*s\nCRI:     %.*s\n", PR(out.runtime_name), PR(out.runtime_version),
           PR(out.runtime_api_version));
    return CLI_OK;
}

static int cli_do_info(cli *c, error *e)
{
    StatusRequest in = { .verbose = true };
    StatusResponse out = { 0 };
    if (CLI_CALL(c, Status, &in, &out, e) < 0) return -1;
    if (cli_wants_json(c))
        return cli_inspection(c, &RuntimeStatus_msg, out.status, out.info.p, out.info.n,
                              e);
    cli_table t = cli_heading(c, "CONDITION|STATUS|REASON|MESSAGE");
    for (size_t i = 0; out.status && i < out.status->conditions.n; i++) {
        const RuntimeCondition *one = &out.status->conditions.p[i];
        cli_cell(&t, "%.*s", PR(one->type));
        cli_cell(&t, "%s", one->status ? "true" : "false");
        cli_cell(&t, "%.*s", PR(one->reason));
        cli_cell(&t, "%.*s", PR(one->message));
    }
    cli_print(&t);
    for (size_t i = 0; i < out.info.n; i++) {
        OWNED_BUF text = { 0 };
        json *tree = json_parse(out.info.p[i].value, &c->client.arena, e);
        if (tree) cli_json_tree(tree, 0, &text);
        printf("\n%.*s: %.*s\n", PR(out.info.p[i].key),
               PR(tree ? buf_view(&text) : out.info.p[i].value));
    }
    return CLI_OK;
}

/* -- commands and options, as tables ----------------------------------------------------------- */

enum cli_command {
    CLI_RUN,
    CLI_EXEC,
    CLI_LOGS,
    CLI_STOP,
    CLI_RM,
    CLI_PODS,
    CLI_PS,
    CLI_INSPECT,
    CLI_IMAGES,
    CLI_PULL,
    CLI_LOAD,
    CLI_RMI,
    CLI_RUNP,
    CLI_CREATE,
    CLI_START,
    CLI_VERSION,
    CLI_INFO,
    CLI_COMMANDS
};

/* OWN_CODE: the exit code is the container's program's, so that krun's own failure is 125. REST:
 * options end at the first word, for what follows is somebody else's command. */
enum { CLI_PLAIN = 0, CLI_OWN_CODE = 1, CLI_REST = 2 };

typedef struct {
    int (*run)(cli *c, error *e);
    const char *name, *args;
    int least, most; /* how many words that are no options */
    unsigned flags;
    const char *does, *examples;
} cli_command;

enum { CLI_ANY = INT_MAX };
static const cli_command cli_commands[CLI_COMMANDS] = {
    [CLI_RUN] = { cli_do_run, "run", "IMAGE [ARG...]", 1, CLI_ANY, CLI_OWN_CODE | CLI_REST,
        "run one container in a pod of its own",
        "  krun run --rm localhost/krun:self print hello\n"
        "  krun run -d --name web --net host localhost/krun:self serve 8080\n"
        "  krun run --rm --memory 64m --cpus 0.5 -v ./data:/data:ro busybox ls /data\n" },
    [CLI_EXEC] = { cli_do_exec, "exec", "ID COMMAND [ARG...]", 2, CLI_ANY, CLI_OWN_CODE | CLI_REST,
        "run a command in a container, without input",
        "  krun exec web /krun self env\n"
        "  krun exec --timeout 5 web cat /etc/hosts\n" },
    [CLI_LOGS] = { cli_do_logs, "logs", "ID", 1, 1, CLI_PLAIN,
        "print what a container has written",
        "  krun logs -f web\n"
        "  krun logs --tail 20 --timestamps web\n" },
    [CLI_STOP] = { cli_do_stop, "stop", "ID...", 1, CLI_ANY, CLI_PLAIN,
        "stop containers or pods",
        "  krun stop web\n"
        "  krun stop --timeout 0 3f2a\n" },
    [CLI_RM] = { cli_do_rm, "rm", "ID...", 0, CLI_ANY, CLI_PLAIN,
        "remove containers or pods",
        "  krun rm web\n"
        "  krun rm --force --all\n" },
    [CLI_PODS] = { cli_do_pods, "pods", "", 0, 0, CLI_PLAIN,
        "list pods",
        "  krun pods\n"
        "  krun pods -o json\n" },
    [CLI_PS] = { cli_do_ps, "ps", "", 0, 0, CLI_PLAIN,
        "list containers",
        "  krun ps --all\n"
        "  krun ps -q --pod web\n" },
    [CLI_INSPECT] = { cli_do_inspect, "inspect", "ID...", 1, CLI_ANY, CLI_PLAIN,
        "show all about a container, pod or image",
        "  krun inspect web\n"
        "  krun inspect localhost/krun:self\n" },
    [CLI_IMAGES] = { cli_do_images, "images", "", 0, 0, CLI_PLAIN,
        "list images",
        "  krun images\n" },
    [CLI_PULL] = { cli_do_pull, "pull", "IMAGE...", 1, CLI_ANY, CLI_PLAIN,
        "fetch images from a registry",
        "  krun pull localhost:5000/busybox:latest\n" },
    [CLI_LOAD] = { cli_do_load, "load", "FILE|DIRECTORY|-", 1, 1, CLI_PLAIN,
        "load images from an archive; - is standard input",
        "  krun load busybox.tar\n"
        "  docker save busybox | krun load -\n" },
    [CLI_RMI] = { cli_do_rmi, "rmi", "IMAGE...", 1, CLI_ANY, CLI_PLAIN,
        "remove images",
        "  krun rmi busybox\n" },
    [CLI_RUNP] = { cli_do_runp, "runp", "POD.json", 1, 1, CLI_PLAIN,
        "make a pod from a file",
        "  krun runp examples/pod.json\n" },
    [CLI_CREATE] = { cli_do_create, "create", "POD CONTAINER.json POD.json", 3, 3, CLI_PLAIN,
        "make a container in a pod from files",
        "  krun create hello examples/hello.json examples/pod.json\n" },
    [CLI_START] = { cli_do_start, "start", "ID...", 1, CLI_ANY, CLI_PLAIN,
        "start containers that have been made",
        "  krun start hello\n" },
    [CLI_VERSION] = { cli_do_version, "version", "", 0, 0, CLI_PLAIN,
        "show the versions of krun and of the daemon",
        "  krun version\n" },
    [CLI_INFO] = { cli_do_info, "info", "", 0, 0, CLI_PLAIN,
        "show the daemon's state and configuration",
        "  krun info -o json\n" },
};

/* How an option's value is read. A WORD whose `value` has a '|' must be one of those words. */
enum cli_kind { CLI_FLAG, CLI_WORD, CLI_WORDS, CLI_NUMBER, CLI_SIZE, CLI_DECIMAL };

#define ON(command) (1U << CLI_##command)
#define ON_EVERY (~0U)
#define ON_LISTS (ON(PODS) | ON(PS) | ON(IMAGES))

typedef struct {
    unsigned commands;        /* those that take it, a bit each */
    char letter;              /* or 0 */
    const char *name, *value; /* value: what --help calls it; NULL for a flag */
    enum cli_kind kind;
    size_t offset;            /* of its member in cli */
    const char *does;
} cli_option;

#define FLAG(on, letter, name, to, does)                                                           \
    {                                                                                              \
        on, letter, name, NULL, CLI_FLAG, offsetof(cli, to), does                                  \
    }
#define OPTION(on, letter, name, value, kind, to, does)                                            \
    { on, letter, name, value, CLI_##kind, offsetof(cli, to), does }
static const cli_option cli_options[] = {
    OPTION(ON(RUN), 0, "name", "NAME", WORD, pod.name,
           "of the pod and the container; run-XXXXXXXX"),
    FLAG(ON(RUN), 'd', "detach", detach, "print the pod's ID and return"),
    FLAG(ON(RUN), 0, "rm", rm, "remove the pod when the container has ended"),
    OPTION(ON(RUN), 0, "net", "host|cni|none", WORD, pod.network, "cni if it is ready, else none"),
    OPTION(ON(RUN), 'e', "env", "NAME[=VALUE]", WORDS, env, "set an environment variable"),
    OPTION(ON(RUN), 'v', "volume", "HOST:PATH[:ro]", WORDS, volumes, "mount a path of the host"),
    OPTION(ON(RUN), 'w', "workdir", "PATH", WORD, pod.workdir, "working directory"),
    OPTION(ON(RUN), 'u', "user", "USER[:GID]", WORD, pod.user, "run as this name or number"),
    OPTION(ON(RUN), 0, "entrypoint", "PROGRAM", WORD, pod.entrypoint, "instead of the image's"),
    OPTION(ON(RUN), 0, "memory", "SIZE", SIZE, pod.memory, "limit, such as 64m"),
    OPTION(ON(RUN), 0, "cpus", "NUMBER", DECIMAL, pod.cpus, "limit, such as 0.5"),
    FLAG(ON(RUN), 0, "privileged", privileged, "all capabilities, the host's devices"),
    FLAG(ON(RUN), 0, "read-only", read_only, "the root file system cannot be written"),
    OPTION(ON(RUN), 0, "pull", "always|missing|never", WORD, pull,
           "when to pull the image; missing"),
    OPTION(ON(EXEC), 't', "timeout", "SECONDS", NUMBER, timeout, "kill it after that; 0: never"),
    OPTION(ON(STOP), 't', "timeout", "SECONDS", NUMBER, timeout, "kill after that; 10"),
    FLAG(ON(LOGS), 'f', "follow", follow, "go on until the container ends"),
    OPTION(ON(LOGS), 'n', "tail", "LINES", NUMBER, tail, "only the last lines"),
    FLAG(ON(LOGS), 0, "timestamps", timestamps, "put its time before each line"),
    FLAG(ON(PS), 'a', "all", all, "also those that do not run"),
    OPTION(ON(PS), 'p', "pod", "POD", WORD, of_pod, "only those of this pod"),
    FLAG(ON(RM), 'a', "all", all, "all pods that have ended; with --force, all"),
    FLAG(ON(RM), 'f', "force", force, "stop what runs"),
    FLAG(ON_LISTS, 'q', "quiet", quiet, "print IDs only"),
    OPTION(ON_LISTS | ON(VERSION) | ON(INFO), 'o', "output", "table|json", WORD, output,
           "its form"),
    OPTION(ON_EVERY, 'r', "runtime-endpoint", "PATH", WORD, socket, "same as --socket"),
    OPTION(ON_EVERY, 0, "socket", "PATH", WORD, socket, "$KRUN_SOCKET, else " CLI_SOCKET),
    FLAG(ON(COMMANDS), 0, "version", version, "show krun's version"),
    FLAG(ON_EVERY, 'h', "help", help, "show this"),
};

/* -- help -------------------------------------------------------------------------------------- */

static void cli_help_option(const cli_option *o)
{
    char left[64];
    snprintf(left, sizeof left, "%c%c%s--%s%s%s", o->letter ? '-' : ' ',
             o->letter ? o->letter : ' ', o->letter ? ", " : "  ", o->name, o->value ? " " : "",
             o->value ? o->value : "");
    printf("  %-31s %s\n", left, o->does);
}

static int cli_help_command(enum cli_command which)
{
    const cli_command *row = &cli_commands[which];
    printf("usage: krun %s [OPTION...]%s%s\n\n%s\n\n", row->name, *row->args ? " " : "", row->args,
           row->does);
    for (size_t i = 0; i < COUNT(cli_options); i++)
        if (cli_options[i].commands & (1U << which)) cli_help_option(&cli_options[i]);
    printf("\nexamples:\n%s", row->examples);
    if (row->flags & CLI_OWN_CODE)
        printf("\nThe exit code is the program's; 125 if krun failed, 126 if the program cannot be "
               "executed,\n"
               "127 if there is no such program.\n");
    return CLI_OK;
}

static int cli_help(void)
{
    printf("usage: krun COMMAND [OPTION...] [ARG...]\n\n"
           "A Kubernetes container runtime. `krun serve` is the daemon; all other commands speak "
           "to it.\n\n");
    printf("  %-9s %-28s %s\n", "serve", "", "serve the CRI: the daemon (krun serve --help)");
    for (size_t i = 0; i < CLI_COMMANDS; i++)
        printf("  %-9s %-28s %s\n", cli_commands[i].name, cli_commands[i].args,
               cli_commands[i].does);
    printf("  %-9s %-28s %s\n\n", "self", "PROGRAM [ARG...]",
           "what the image localhost/krun:self runs (krun self help)");
    for (size_t i = 0; i < COUNT(cli_options); i++)
        if (cli_options[i].commands & ON(COMMANDS)) cli_help_option(&cli_options[i]);
    printf("\nexamples:\n  krun serve &\n  krun run --rm localhost/krun:self print hello\n  krun "
           "ps --help\n");
    return CLI_OK;
}

/* -- the line that was typed ------------------------------------------------------------------- */

static bool cli_is_choice(const char *value, const char *choices)
{
    for (slice rest = slice_of(choices); rest.n;)
        if (slice_is(slice_cut(&rest, '|'), value)) return true;
    return !strchr(choices, '|');
}

static bool cli_add_word(cli *c, cli_words *words, const char *value)
{
    const char **p = arena_alloc(&c->client.arena, (words->n + 2) * sizeof *p); /* a NULL after */
    if (!p) return false;
    if (words->n) memcpy(p, words->p, words->n * sizeof *p);
    p[words->n] = value;
    *words = (cli_words){ p, words->n + 1 };
    return true;
}

/* Puts an option's value into its member of *c. False if the value is none of that kind. */
static bool cli_set(cli *c, const cli_option *o, const char *value)
{
    void *to = (char *)c + o->offset;
    uint64_t number = 0;
    switch (o->kind) {
    case CLI_FLAG: return *(bool *)to = true;
    case CLI_WORD: return *(const char **)to = value, cli_is_choice(value, o->value);
    case CLI_WORDS: return cli_add_word(c, to, value);
    case CLI_SIZE: return cli_bytes(slice_of(value), to) && *(int64_t *)to > 0;
    case CLI_DECIMAL: return cli_decimal(slice_of(value), 1000, to) && *(int64_t *)to > 0;
    case CLI_NUMBER: break;
    }
    bool good = parse_u64(slice_of(value), 10, INT32_MAX, &number);
    *(int64_t *)to = (int64_t)number;
    return good;
}

/* The option that begins `word`: "--name", "--name=value", "-n" or "-nvalue". NULL if this command
 * has none. *rest is what comes after it in the same word, or NULL. */
static const cli_option *cli_option_of(const char *word, unsigned command, const char **rest)
{
    bool is_long = word[1] == '-';
    size_t n = is_long ? strcspn(word + 2, "=") : 1;
    for (size_t i = 0; i < COUNT(cli_options); i++) {
        const cli_option *o = &cli_options[i];
        bool same =
            is_long ? strlen(o->name) == n && !strncmp(word + 2, o->name, n) : o->letter == word[1];
        if (!same || !(o->commands & command)) continue;
        const char *end = is_long ? word + 2 + n : word + 2;
        *rest = !*end ? NULL : is_long ? end + 1 : end;
        return o;
    }
    return NULL;
}

/* A line of words, the one to look at next, and the bit of the command whose options it has. */
typedef struct { char **argv; int argc, at; unsigned command; } cli_line;

/* Takes the options in the word at line->at, and the next word if that is the last one's value:
 * -f, -fn5 (two of them), -n5, -n 5, --tail=5, --tail 5. */
static int cli_parse_option(cli *c, cli_line *line)
{
    for (const char *word = line->argv[line->at], *rest; word;) {
        const cli_option *o = cli_option_of(word, line->command, &rest);
        if (!o) return cli_usage(c, "unknown option %s", word);
        bool more = o->kind == CLI_FLAG && rest && word[1] != '-';
        const char *value = rest;
        if (o->kind != CLI_FLAG && !rest && line->at + 1 < line->argc)
            value = line->argv[++line->at];
        if (o->kind != CLI_FLAG && !value)
            return cli_usage(c, "--%s wants a value: %s", o->name, o->value);
        if (o->kind == CLI_FLAG && rest && !more)
            return cli_usage(c, "--%s takes no value", o->name);
        if (!cli_set(c, o, value))
            return cli_usage(c, "--%s %s: want %s", o->name, value, o->value);
        word = more ? arena_printf(&c->client.arena, "-%s", rest) : NULL;
    }
    return CLI_OK;
}

/* Sorts a line into options and c->args. "--" ends the options, and so does the first word if what
 * follows it is another's command (`rest`). */
static int cli_parse(cli *c, cli_line line, bool rest)
{
    bool words_only = false;
    c->args = arena_alloc(&c->client.arena, ((size_t)line.argc + 1) * sizeof *c->args);
    if (!c->args) return CLI_ERROR;
    for (c->nargs = 0; line.at < line.argc; line.at++) {
        char *word = line.argv[line.at];
        int bad = CLI_OK;
        if (words_only || word[0] != '-' || !word[1])
            c->args[c->nargs++] = word, words_only = words_only || rest;
        else if (!strcmp(word, "--")) words_only = true;
        else bad = cli_parse_option(c, &line);
        if (bad) return bad;
    }
    return CLI_OK;
}

static int cli_find_command(const char *name)
{
    int i = 0;
    while (i < CLI_COMMANDS && strcmp(name, cli_commands[i].name)) i++;
    return i;
}

/* The exit code for a program that did not run, as docker has it. Through gRPC comes only the
 * sentence of the failed execve(2), which ends in its errno's text. */
static int cli_not_run(const error *e)
{
    const struct { const char *text; int code; } rows[] = {
        { "executable file not found", CLI_NOT_FOUND }, { strerror(ENOENT), CLI_NOT_FOUND },
        { strerror(EACCES), CLI_CANNOT_EXEC }, { strerror(ENOEXEC), CLI_CANNOT_EXEC },
        { strerror(EISDIR), CLI_CANNOT_EXEC }, { strerror(ELOOP), CLI_CANNOT_EXEC },
    };
    const char *step = strstr(e->text, "exec");
    for (size_t i = 0; step && i < COUNT(rows); i++)
        if (strstr(step, rows[i].text)) return rows[i].code;
    return CLI_FAILED;
}

/* Runs a command whose options have been parsed. */
static int cli_do(cli *c, enum cli_command which)
{
    const cli_command *row = &cli_commands[which];
    error e;
    if (c->help) return cli_help_command(which);
    if (c->nargs < row->least || c->nargs > row->most)
        return cli_usage(c, "want %s", *row->args ? row->args : "no arguments");
    int code = row->run(c, &e);
    bool told = fflush(stdout) == 0;
    if (code < 0 || !told) {
        OWNED_BUF text = { 0 };
        text_escape(&text, code < 0 ? slice_of(e.text) : SLICE("the output could not be written"),
                    sizeof e.text);
        fprintf(stderr, "krun: %.*s\n", PR(buf_view(&text)));
    }
    if (code < 0) return row->flags & CLI_OWN_CODE ? cli_not_run(&e) : CLI_ERROR;
    return told ? code : CLI_ERROR;
}

/* The word after `krun` and the options before it. */
static int cli_begin(cli *c, int argc, char **argv)
{
    int bad = cli_parse(c, (cli_line){ argv, argc, 1, ON(COMMANDS) }, true);
    if (bad) return bad;
    if (c->version) return printf("krun %s\n", KRUN_VERSION), CLI_OK;
    bool help = c->help || (c->nargs && !strcmp(c->args[0], "help"));
    const char *word = c->nargs > 1 && help ? c->args[1] : c->nargs ? c->args[0] : "help";
    int which = cli_find_command(word);
    if (help && which < CLI_COMMANDS) return cli_help_command((enum cli_command)which);
    if (help) return cli_help();
    if (!c->nargs) return cli_help(), CLI_USAGE;
    if (!strcmp(word, "serve") && c->socket)
        return cli_usage(c, "the options of serve come after it");
    if (!strcmp(word, "serve")) return daemon_main(c->nargs, c->args);
    if (which == CLI_COMMANDS) return cli_usage(c, "there is no command \"%s\"", word);
    c->command = cli_commands[which].name;
    c->timeout = which == CLI_STOP ? CLIENT_STOP_SECONDS : 0;
    cli_line line = { c->args, c->nargs, 1, 1U << which };
    bad = cli_parse(c, line, cli_commands[which].flags & CLI_REST);
    c->client.socket = cli_socket(c->socket);
    return bad ? bad : cli_do(c, (enum cli_command)which);
}

/* All of `krun ...` that is no role: returns the exit code. */
static int cli_main(int argc, char **argv)
{
    cli c = { .client.arena = arena_make(CLIENT_MEMORY), .tail = -1 };
    log_least = LOG_ERROR; /* what the chapters below have to say, the command says itself */
    int code = cli_begin(&c, argc, argv);
    client_close(&c.client);
    return code;
}
#undef ON
#undef ON_EVERY
#undef ON_LISTS
#undef FLAG
#undef OPTION

#else /* KRUN_NO_CLI: the daemon and its parts alone */

static int cli_main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "serve")) return daemon_main(argc - 1, argv + 1);
    fprintf(stderr, "usage: krun serve [OPTION...]   (this build has no other commands)\n");
    return 2;
}

static int self_main(int argc, char **argv)
{
    (void)argc, (void)argv;
    fprintf(stderr, "krun self: this build has no built-in programs\n");
    return 127;
}

#endif
/* == 27. main ================================================================================
 *
 * Where every process of krun begins. One program plays all parts: the daemon starts its own
 * program again (chapter 2, self_program) with a part's name as the first argument. And the few
 * functions of krun.h, for a program that has krun inside.
 *
 * Uses        1, 8, 11, 12, 13, 18, 23, 24, 25, 26  Gives  krun.h, main */

/* The parts that krun plays when it has started itself. No user types one. */
typedef struct { const char *name; int (*run)(int argc, char **argv); } main_role;
static const main_role main_roles[] = {
    { "monitor", monitor_main }, /* chapter 18: keeps one pod */
    { "fetch", fetch_main },     /* chapter 12: speaks to registries, as nobody */
    { "read", read_main },       /* chapter 13: reads an archive for `krun load` */
    { "archive", archive_main },
    { "unpack", unpack_main },   /* chapter 13: fills one directory, chrooted into it */
};

/* argv[0] tells a role from a word that a user typed: spawn gives exactly "krun", and the built-in
 * image's entrypoint is "/krun self". */
void krun_main_role(int argc, char **argv)
{
    if (argc < 2) return;
    if (!strcmp(argv[0], "/krun") && !strcmp(argv[1], "self")) exit(self_main(argc, argv));
    for (size_t i = 0; i < COUNT(main_roles) && !strcmp(argv[0], "krun"); i++)
        if (!strcmp(argv[1], main_roles[i].name)) exit(main_roles[i].run(argc, argv));
}

int krun_main(int argc, char **argv)
{
    krun_main_role(argc, argv);
    if (argc > 1 && !strcmp(argv[1], "self")) return self_main(argc, argv);
    return cli_main(argc, argv);
}

#ifndef KRUN_NO_MAIN
int main(int argc, char **argv) { return krun_main(argc, argv); }
#endif

/* -- krun.h: a daemon inside another program --------------------------------------------------- */

struct krun {
    krund *served;    /* NULL for a connection to another process */
    char socket[108]; /* sun_path's size: unix(7) */
};

/* What the caller sees of an error of ours. Returns -1. */
static int main_report(const error *inner, krun_error *e)
{
    e->code = inner->code;
    e->sys = inner->sys;
    snprintf(e->text, sizeof e->text, "%s", inner->text);
    return -1;
}

static int main_fail(krun_error *e, int code, const char *text)
{
    error inner;
    fail(&inner, code, "%s", text);
    return main_report(&inner, e);
}

krun *krun_connect(const char *socket, krun_error *e)
{
    krun *k = calloc(1, sizeof *k);
    size_t n = socket ? strlen(socket) : 0;
    if (k && n && n < sizeof k->socket) return memcpy(k->socket, socket, n), k;
    if (!k) main_fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    else main_fail(e, GRPC_INVALID_ARGUMENT, "the path of a socket has 1 to 107 bytes");
    free(k);
    return NULL;
}

krun *krun_open(const krun_options *options, krun_error *e)
{
    error inner;
    krund *d = daemon_open(options, &inner);
    if (!d) return main_report(&inner, e), NULL;
    krun *k = krun_connect(d->options.socket, e);
    if (!k) daemon_close(d);
    else k->served = d;
    return k;
}

int krun_serve(krun *k, krun_error *e)
{
    if (!k->served) return main_fail(e, GRPC_FAILED_PRECONDITION, "this krun is a connection");
    daemon_run(k->served);
    return 0;
}

void krun_stop(krun *k)
{
    if (k->served) daemon_stop(k->served);
}

void krun_close(krun *k)
{
    if (k && k->served) daemon_close(k->served);
    free(k);
}

/* -- krun.h: calls ----------------------------------------------------------------------------- */

/* A caller of its own for each function call, so that any thread can make one at any time. */
static client main_client(krun *k)
{
    return (client){ .arena = arena_make(CLIENT_MEMORY), .socket = k->socket };
}

int krun_pull(krun *k, const char *name, char id[72], krun_error *e)
{
    OWNED_CLIENT c = main_client(k);
    error inner;
    ImageSpec spec = { .image = slice_of(name) };
    PullImageRequest in = { .image = &spec };
    PullImageResponse out = { 0 };
    if (CLIENT_WAIT(&c, ImageService, PullImage, &in, &out, &inner) < 0)
        return main_report(&inner, e);
    if (id) snprintf(id, 72, "%.*s", PR(out.image_ref));
    return 0;
}

int krun_run_pod(krun *k, const krun_pod *want, char pod_id[65], krun_error *e)
{
    OWNED_CLIENT c = main_client(k);
    error inner;
    client_pod p;
    slice id, container_id;
    if (client_pod_fill(&c, &p, want, &inner) < 0) return main_report(&inner, e);
    if (client_pod_run(&c, &p, &id, &container_id, &inner) < 0) return main_report(&inner, e);
    snprintf(pod_id, 65, "%.*s", PR(id));
    return 0;
}

int krun_remove_pod(krun *k, const char *pod_id, krun_error *e)
{
    OWNED_CLIENT c = main_client(k);
    error inner;
    int done = client_remove_pod(&c, slice_of(pod_id), &inner);
    return done < 0 ? main_report(&inner, e) : 0;
}

/* The row of a unary call that has this name, e.g. "ListPodSandbox". */
static const grpc_method *main_method(const char *name)
{
    for (size_t i = 0; i < COUNT(services_methods); i++) {
        const char *last = strrchr(services_methods[i].path, '/') + 1;
        if (!strcmp(last, name) && !services_methods[i].streams) return &services_methods[i];
    }
    return NULL;
}

int krun_call(krun *k, const char *method, const char *request, char **reply, krun_error *e)
{
    const grpc_method *m = main_method(method);
    if (!m) return main_fail(e, GRPC_UNIMPLEMENTED, "the CRI has no unary call of that name");
    OWNED_CLIENT c = main_client(k);
    error inner;
    void *in = arena_alloc(&c.arena, m->in->size), *out = arena_alloc(&c.arena, m->out->size);
    if (!in || !out) return main_fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
    grpc_request r = { .path = m->path, .in_msg = m->in, .in = in, .out_msg = m->out, .out = out };
    if (pb_read_json(m->in, slice_of(request), &c.arena, in, &inner) < 0 ||
        client_call(&c, &r, &inner) < 0)
        return main_report(&inner, e);
    buf text = { 0 };
    pb_write_json(m->out, out, 0, &text);
    buf_byte(&text, '\0');
    if (!text.oom) return *reply = (char *)text.p, 0;
    buf_free(&text);
    return main_fail(e, GRPC_RESOURCE_EXHAUSTED, "out of memory");
}
