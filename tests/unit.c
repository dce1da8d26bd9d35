/* The unit tests: one program that includes krun.c, so that every static function is in reach, and
 * a file of tests for each chapter. `unit` runs all, `unit pb_` those whose name holds "pb_". With
 * KRUN_TEST_LOG=1 what krun logs is seen too. */
#define KRUN_NO_MAIN
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <string.h>

/* Comparisons of bytes that krun.c makes, counted: how work grows with what is sent can be told
 * without a clock. */
static _Thread_local unsigned long comparisons;
#define memcmp(a, b, n) (comparisons++, (memcmp)((a), (b), (n)))

#include "../krun.c"

typedef struct test { const char *name; void (*run)(void); struct test *next; } test;
static test *tests_all, **tests_end = &tests_all;
static int checks_failed, tests_skipped;
static const char *vectors_dir; /* where the public test vectors lie: KRUN_TESTDATA, or NULL */
static char own_vectors_dir[PATH_MAX]; /* and our own: vectors/ beside this program */

/* TEST registers itself before main; its name is a sentence that can be false. */
#define TEST(name_)                                                                      \
    static void test_##name_(void);                                                      \
    __attribute__((constructor)) static void register_##name_(void)                      \
    {                                                                                    \
        static test me = { .name = #name_, .run = test_##name_ };                        \
        *tests_end = &me;                                                                \
        tests_end = &me.next;                                                            \
    }                                                                                    \
    static void test_##name_(void)

#define CHECK(condition)                                                                 \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition); \
            checks_failed++;                                                             \
        }                                                                                \
    } while (0)

#define CHECK_INT(got, want)                                                             \
    do {                                                                                 \
        long long got_ = (long long)(got), want_ = (long long)(want);                    \
        if (got_ != want_) {                                                             \
            fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__, #got, got_, want_); \
            checks_failed++;                                                             \
        }                                                                                \
    } while (0)

/* Compares a slice with a C string. */
#define CHECK_TEXT(got, want)                                                            \
    do {                                                                                 \
        slice got_ = (got), want_ = slice_of(want);                                      \
        if (!slice_eq(got_, want_)) {                                                    \
            fprintf(stderr, "%s:%d: %s: %s is \"%.*s\", not \"%.*s\"\n", __FILE__, __LINE__, __func__, #got, PR(got_), PR(want_)); \
            checks_failed++;                                                             \
        }                                                                                \
    } while (0)

/* Says why the running test cannot run here; it is counted, and printed at the end. */
#define SKIP(...)                                                                        \
    do {                                                                                 \
        fprintf(stderr, "SKIP %s: ", __func__);                                          \
        fprintf(stderr, __VA_ARGS__);                                                    \
        fputc('\n', stderr);                                                             \
        tests_skipped++;                                                                 \
        return;                                                                          \
    } while (0)

/* The n bytes at the very end of a page that is followed by one that cannot be touched: reading or
 * writing one byte too far is a crash, even without a sanitizer. They are there until the test ends: a
 * process with many mappings takes long to fork. */
static struct { char *p; size_t n; } *pages;
static size_t npages;
static pthread_mutex_t pages_lock = PTHREAD_MUTEX_INITIALIZER;

static slice at_page_end(const void *bytes, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (n + page - 1) / page * page;
    char *p = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + room, page, PROT_NONE) < 0) abort();
    if (n) memcpy(p + room - n, bytes, n);
    pthread_mutex_lock(&pages_lock);
    if (npages % 1024 == 0) pages = realloc(pages, (npages + 1024) * sizeof *pages);
    if (!pages) abort();
    pages[npages].p = p, pages[npages++].n = room + page;
    pthread_mutex_unlock(&pages_lock);
    return (slice){ (uint8_t *)p + room - n, n };
}

/* Frees what at_page_end gave last. */
static void free_newest_page(void)
{
    npages--;
    munmap(pages[npages].p, pages[npages].n);
}

static void free_pages(void)
{
    while (npages) free_newest_page();
    free(pages);
    pages = NULL;
}

/* Where the tests' directories are: in TMPDIR; for root in a file system in memory that is mounted below
 * it, where nothing waits for a disk. One without attributes of users (Linux before 6.6) will not do. */
static char temp_base[PATH_MAX - 32];
static bool temp_mounted;

static void open_temp_base(void)
{
    const char *top = getenv("TMPDIR");
    snprintf(temp_base, sizeof temp_base, "%s/krun-unit-XXXXXX", top ? top : "/tmp");
    if (!mkdtemp(temp_base)) abort();
    if (geteuid() || unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("krun-unit", temp_base, "tmpfs", 0, "mode=700") < 0)
        return;
    temp_mounted = setxattr(temp_base, "user.krun", "", 0, 0) == 0;
    if (!temp_mounted) umount2(temp_base, MNT_DETACH);
}

static void close_temp_base(void)
{
    if (temp_mounted) umount2(temp_base, MNT_DETACH);
    rmdir(temp_base);
}

/* A new empty directory there; its descriptor, and its path in `path`. */
static int temp_dir(char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/XXXXXX", temp_base);
    if (!mkdtemp(path)) abort();
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

#include "01_foundations.c"
#include "02_kernel.c"
#include "04_text.c"
#include "05_hashes.c"
#include "06_protobuf.c"
#include "07_cri.c"
#include "08_rootfs.c"
#include "09_cgroups.c"
#include "10_rights.c"
#include "11_init.c"
#include "13_monitor.c"
#include "14_decompress.c"
#include "16_tar.c"
#include "18_names.c"
#include "20_registries.c"
#include "22_readers.c"
#include "26_pulls.c"
#include "24_store.c" /* stands on 26_pulls */
#include "29_cni.c"
#include "30_spec.c"
#include "31_pods.c"
#include "36_http2.c"
#include "37_grpc.c"
#include "39_client.c"
#include "41_words.c"
#include "42_cli.c"
#include "43_main.c"
static void find_vectors(void)
{
    char self[PATH_MAX - 16] = "";
    vectors_dir = getenv("KRUN_TESTDATA");
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) abort();
    *strrchr(self, '/') = '\0';
    snprintf(own_vectors_dir, sizeof own_vectors_dir, "%s/vectors", self);
}

/* What a machine has set for its own programs: their proxies, and who may read what they make. */
static void forget_environment(void)
{
    static const char *const names[] = { "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
                                         "http_proxy", "https_proxy", "all_proxy", "no_proxy" };
    for (size_t i = 0; i < COUNT(names); i++) unsetenv(names[i]);
    umask(022);
}

int main(int argc, char **argv)
{
    int ran = 0, failed = 0;
    /* What the tests provoke krun logs; with all of that a line that says what has failed is not seen. */
    if (!getenv("KRUN_TEST_LOG")) log_least = LOG_ERROR + 1;
    images_play_role(argc, argv);
    images_play_pull(argc, argv);
    if (!strcmp(argv[0], "krun")) return 125; /* some part that is not played here: no tests for it */
    if (argc == 2 && !strcmp(argv[1], "--session-keyring")) /* for init_finish_leaves_nothing_... */
        return printf("%ld", syscall(SYS_keyctl, 0 /* KEYCTL_GET_KEYRING_ID */, -3, 0)), 0;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_DFL); /* a shell ignores it for what it starts with `&` */
    signal(SIGQUIT, SIG_DFL);
    forget_environment();
    find_vectors();
    open_temp_base();
    for (test *t = tests_all; t; t = t->next) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted = wanted || strstr(t->name, argv[i]);
        if (!wanted) continue;
        int before = checks_failed;
        t->run();
        free_pages();
        ran++;
        if (checks_failed > before) {
            failed++;
            fprintf(stderr, "FAILED %s\n", t->name);
        }
    }
    close_temp_base();
    printf("%d passed, %d failed, %d skipped\n", ran - failed - tests_skipped, failed, tests_skipped);
    return failed != 0;
}
