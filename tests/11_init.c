/* Chapter 11: containers that really start. They need root, and busybox (static) as the image. */

/* A place for pods and layers, and a cgroup to put containers into. */
typedef struct {
    char path[PATH_MAX];
    int dir, layers, state, cgroup;
    cg_tree tree;
    char group[64];
    arena memory;
    ContainerSpec spec;
    ProcessUser user;
    int out; /* the reading end of what the container prints */
} box;

static bool box_copy(int to, const char *from, const char *name)
{
    OWNED_FD in = open(from, O_RDONLY | O_CLOEXEC),
             out = openat(to, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
    char chunk[16 * KIB];
    if (in < 0 || out < 0) return false;
    for (ssize_t n; (n = read(in, chunk, sizeof chunk)) != 0;)
        if (n < 0 || write_all(out, chunk, (size_t)n) < 0) return false;
    return true;
}

static bool box_write(int at, const char *path, const char *text)
{
    OWNED_FD file = openat(at, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return file >= 0 && write_all(file, text, strlen(text)) == 0;
}

/* False, with a reason printed, where no container can run. */
static bool box_open(box *b)
{
    error e;
    *b = (box){ .memory = arena_make(MIB), .out = -1, .cgroup = -1 };
    if (geteuid() || access("/bin/busybox", X_OK))
        return fprintf(stderr, "needs root and /bin/busybox\n"), false;
    b->dir = temp_dir(b->path);
    mkdirat(b->dir, "layers", 0700);
    mkdirat(b->dir, "pod", 0700);
    mkdirat(b->dir, "layers/one", 0755);
    mkdirat(b->dir, "layers/one/bin", 0755);
    mkdirat(b->dir, "layers/one/etc", 0755);
    mkdirat(b->dir, "layers/one/private", 0700);
    OWNED_FD bin = openat(b->dir, "layers/one/bin", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    box_copy(bin, "/bin/busybox", "busybox");
    symlinkat("busybox", bin, "sh");
    box_write(b->dir, "layers/one/etc/passwd",
              "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n");
    b->layers = openat(b->dir, "layers", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    b->state = openat(b->dir, "pod", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    snprintf(b->group, sizeof b->group, "krun-unit-%d/box", (int)getpid());
    if (cg_tree_open(&b->tree, &e) == 0) b->cgroup = cg_make(&b->tree, b->group, &e);
    if (b->cgroup < 0) return fprintf(stderr, "%s\n", e.text), false;
    security_caps caps;
    security_caps_from_names(NULL, false, &caps, &e);
    slice *layers = arena_alloc(&b->memory, sizeof *layers),
          *env = arena_alloc(&b->memory, sizeof *env);
    *layers = SLICE("one");
    *env = SLICE("PATH=/usr/bin:/bin");
    b->spec = (ContainerSpec){ .id = SLICE("box"),
                               .layers = { layers, 1 },
                               .env = { env, 1 },
                               .capabilities = caps.set,
                               .user = &b->user };
    return true;
}

static void box_close(box *b)
{
    error e;
    char *slash;
    cg_kill(b->cgroup, &e);
    cg_wait_empty(b->cgroup, clock_mono() + 60 * NS_PER_SEC, &e);
    if (cg_remove(&b->tree, b->group, &e) < 0) fprintf(stderr, "%s\n", e.text);
    if ((slash = strchr(b->group, '/'))) *slash = '\0';
    cg_remove(&b->tree, b->group, &e);
    if (tree_remove(AT_FDCWD, b->path, &e) < 0) fprintf(stderr, "%s\n", e.text);
    close(b->dir), close(b->layers), close(b->state), close(b->cgroup), close(b->tree.root);
    if (b->out >= 0) close(b->out);
    arena_free(&b->memory);
}

static void box_command(box *b, const char *const *words)
{
    size_t n = 0;
    while (words[n]) n++;
    b->spec.args.p = arena_alloc(&b->memory, n * sizeof(slice));
    b->spec.args.n = n;
    for (size_t i = 0; i < n; i++) b->spec.args.p[i] = slice_of(words[i]);
}
#define SH(script) ((const char *const[]){ "/bin/sh", "-c", script, NULL })

/* Waits for the report as the monitor does, only blocking. */
static int box_wait(init_started *s, int *terminal, error *e)
{
    struct pollfd p = { .fd = s->report, .events = POLLIN };
    int state = 0;
    while (state == 0 && poll(&p, 1, 10000) > 0) state = init_report(s, terminal, e);
    close(s->report);
    return state;
}

static int box_start(box *b, init_started *s, error *e)
{
    int ends[2], terminal = -1;
    close(b->cgroup); /* each container has a new one */
    cg_remove(&b->tree, b->group, e);
    b->cgroup = cg_make(&b->tree, b->group, e);
    if (pipe2(ends, O_CLOEXEC) < 0) abort();
    if (b->out >= 0) close(b->out);
    b->out = ends[0];
    init_args a = { .spec = &b->spec,
                    .layers_dir = b->layers,
                    .state_dir = b->state,
                    .stdio = { -1, ends[1], ends[1] },
                    .cgroup = b->cgroup,
                    .cgroups = -1,
                    .pidns = -1,
                    .shm_ns = -1 };
    int done = init_clone(&a, s, e);
    close(ends[1]);
    if (done < 0) return -1;
    return box_wait(s, &terminal, e);
}

/* Runs the command to its end: what it printed, its exit code in *code (-1 and *e: not started). */
static slice box_run(box *b, const char *const *words, int *code, error *e)
{
    init_started s;
    char *text = arena_alloc(&b->memory, 64 * KIB);
    box_command(b, words);
    *e = (error){ 0 };
    int started = box_start(b, &s, e);
    ssize_t n = started == 1 ? read_all(b->out, text, 64 * KIB) : 0;
    *code = s.pidfd < 0 ? -1 : reap(s.pidfd, clock_mono() + 60 * NS_PER_SEC);
    if (s.pidfd >= 0) close(s.pidfd);
    if (started != 1) *code = -1;
    tree_remove(b->state, "containers", &(error){ 0 });
    return slice_trim((slice){ (uint8_t *)text, n < 0 ? 0 : (size_t)n });
}


#define BOX(b)                                                                           \
    box b;                                                                               \
    error e = { 0 };                                                                     \
    int code = 0;                                                                        \
    if (!box_open(&b)) SKIP("no container can run here");                                \
    (void)code, (void)e

TEST(init_runs_a_program_and_gives_back_its_exit_code)
{
    BOX(b);
    slice env[] = { SLICE("PATH=/nowhere:/bin"), SLICE("WHO=me") };
    b.spec.env.p = env, b.spec.env.n = 2;
    CHECK_TEXT(box_run(&b, SH("echo $$ $WHO; exit 7"), &code, &e), "1 me");
    CHECK_INT(code, 7);
    CHECK_TEXT(box_run(&b, (const char *const[]){ "busybox", "echo", "by PATH", NULL }, &code, &e),
               "by PATH");
    CHECK_INT(code, 0);
    box_run(&b, SH("kill -9 $$; busybox sleep 1; kill -TERM $$; exit 3"), &code,
            &e); /* pid 1 is immune to itself */
    CHECK_INT(code, 3);
    box_close(&b);
}

TEST(init_leaves_the_hosts_mounts_as_they_were)
{
    BOX(b);
    OWNED_ARENA a = arena_make(8 * MIB);
    slice before, after;
    CHECK((before = file_read(AT_FDCWD, "/proc/self/mountinfo", MIB, &a, &e)).p);
    box_run(&b, SH("busybox touch /file"), &code, &e);
    CHECK_INT(code, 0);
    CHECK((after = file_read(AT_FDCWD, "/proc/self/mountinfo", MIB, &a, &e)).p);
    CHECK(slice_eq(before, after));
    CHECK_INT(faccessat(b.dir, "layers/one/file", F_OK, 0), -1);
    box_close(&b);
}

TEST(init_hands_no_descriptor_of_ours_to_the_program) /* T52, CVE-2024-21626 */
{
    BOX(b);
    __attribute__((unused)) OWNED_FD leaked =
        open("/", O_RDONLY | O_DIRECTORY); /* without O_CLOEXEC */
    CHECK_TEXT(box_run(&b, SH("busybox ls /proc/1/fd; true"), &code, &e), "0\n1\n2");
    box_close(&b);
}

TEST(init_working_directory_is_inside_the_container) /* T52, CVE-2024-21626 */
{
    static const struct { const char *cwd; bool works; const char *pwd;
    } rows[] = {
        { "/etc", true, "/etc" },
        { "", true, "/" },
        { "/made/here", true, "/made/here" },
        { "/etc/../bin/", true, "/bin" },
        { "/link", true, "/etc" },
        { "/private", true, "/private" },
        { "/out", true, "/etc" },
        { "/proc/self/fd/7", false, "" },
        { "/proc/self/fd/7/../../..", false, "" },
        { "/proc/self/cwd", false, "" },
        { "/proc/1/root/tmp", false, "" },
        { "/magic", false, "" },
        { "/bin/busybox", false, "" },
        { "etc", false, "" },
    };
    BOX(b);
    symlinkat("/etc", b.layers, "one/link");
    symlinkat("../../../../../../etc", b.layers, "one/out");
    symlinkat("/proc/self/fd/7", b.layers, "one/magic");
    for (size_t i = 0; i < COUNT(rows); i++) {
        b.user.uid = i & 1 ? 1000 : 0;
        b.spec.cwd = slice_of(rows[i].cwd);
        slice said = box_run(&b, (const char *const[]){ "/bin/busybox", "pwd", NULL }, &code, &e);
        if ((code == 0) != rows[i].works) fprintf(stderr, "%s: %s\n", rows[i].cwd, e.text);
        CHECK_INT(code, rows[i].works ? 0 : -1);
        if (rows[i].works) CHECK_TEXT(said, rows[i].pwd);
        else CHECK(strstr(e.text, "working directory") != NULL);
    }
    box_close(&b);
}

/* The value behind "name:" in a text of such lines, as /proc/PID/status has them. */
static slice box_status(slice text, const char *name)
{
    while (text.n) {
        slice line = slice_cut(&text, '\n');
        if (slice_is(slice_cut(&line, ':'), name)) return slice_trim(line);
    }
    return (slice){ NULL, 0 };
}

TEST(init_gives_exactly_the_rights_that_were_asked_for) /* T53, CVE-2022-29162, CVE-2022-24769 */
{
    static const struct {
        uint32_t uid;
        uint64_t set, ambient;
        bool no_new_privs;
        const char *inh, *prm, *bnd, *amb;
    } rows[] = {
        { 0, 0x2003, 0, false, "0000000000000000", "0000000000002003", "0000000000002003",
          "0000000000000000" },
        { 0, 0, 0, true, "0000000000000000", "0000000000000000", "0000000000000000",
          "0000000000000000" },
        { 1000, 0x2003, 0, false, "0000000000000000", "0000000000000000", "0000000000002003",
          "0000000000000000" },
        { 1000, 0x2003, 0x2000, true, "0000000000002000", "0000000000002000", "0000000000002003",
          "0000000000002000" },
        { 1000, 0x2003, 0x8000, false, "0000000000000000", "0000000000000000", "0000000000002003",
          "0000000000000000" },
    };
    BOX(b);
    uint32_t groups[] = { 5, 1001, 70000 };
    b.user.groups.p = groups, b.user.groups.n = 3, b.user.gid = 1001;
    for (size_t i = 0; i < COUNT(rows); i++) {
        b.user.uid = rows[i].uid;
        b.spec.capabilities = rows[i].set, b.spec.ambient = rows[i].ambient,
        b.spec.no_new_privs = rows[i].no_new_privs;
        slice said =
            box_run(&b, (const char *const[]){ "/bin/busybox", "cat", "/proc/self/status", NULL },
                    &code, &e);
        CHECK_INT(code, 0);
        CHECK_TEXT(box_status(said, "CapInh"), rows[i].inh);
        CHECK_TEXT(box_status(said, "CapPrm"), rows[i].prm);
        CHECK_TEXT(box_status(said, "CapEff"), rows[i].prm);
        CHECK_TEXT(box_status(said, "CapBnd"), rows[i].bnd);
        CHECK_TEXT(box_status(said, "CapAmb"), rows[i].amb);
        CHECK_TEXT(box_status(said, "NoNewPrivs"), rows[i].no_new_privs ? "1" : "0");
        CHECK_TEXT(box_status(said, "Groups"), "5 1001 70000");
        CHECK_TEXT(box_status(said, "Gid"), "1001\t1001\t1001\t1001");
        CHECK_TEXT(box_status(said, "Uid"), rows[i].uid ? "1000\t1000\t1000\t1000" : "0\t0\t0\t0");
        CHECK_TEXT(box_status(said, "SigIgn"), "0000000000000000");
        CHECK_TEXT(box_status(said, "SigBlk"), "0000000000000000");
    }
    box_close(&b);
}

TEST(init_sets_limits_umask_and_score)
{
    BOX(b);
    ProcessRlimit limits[] = { { RLIMIT_NOFILE, 100, 200 }, { RLIMIT_CORE, 0, UINT64_MAX } };
    b.spec.rlimits.p = limits, b.spec.rlimits.n = 2, b.spec.oom_score_adj = 500;
    CHECK_TEXT(
        box_run(&b,
                SH("ulimit -n; ulimit -Hn; ulimit -c; umask; busybox cat /proc/self/oom_score_adj"),
                &code, &e),
        "100\n200\n0\n0022\n500");
    limits[0].resource = 99;
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK_INT(code, -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    box_close(&b);
}

/* What `words` print when they are executed by init_finish in a child that has a descriptor without
 * O_CLOEXEC, ignores a signal and has a session keyring, whose number goes to *keyring. */
static slice finish_run(arena *a, const slice *words, size_t n, long *keyring)
{
    ContainerSpec spec = { .id = SLICE("box") };
    init_process p = { .spec = &spec, .args = words, .nargs = n, .report = -1, .dev = -1, .memory = a };
    int out[2], ring[2];
    error e;
    char *text = arena_alloc(a, 4 * KIB);
    if (pipe2(out, O_CLOEXEC) < 0 || pipe2(ring, O_CLOEXEC) < 0) abort();
    pid_t child = fork();
    if (child == 0) {
        signal(SIGUSR1, SIG_IGN);
        *keyring = syscall(SYS_keyctl, 1, "krun-unit");
        if (write(ring[1], keyring, sizeof *keyring) < 0 || dup2(out[1], 1) < 0 || dup2(0, 70) < 0) _exit(99);
        init_finish(&p, &e);
        fprintf(stderr, "%s\n", e.text);
        _exit(98);
    }
    close(out[1]), close(ring[1]);
    CHECK_INT(read_all(ring[0], keyring, sizeof *keyring), sizeof *keyring);
    ssize_t got = read_all(out[0], text, 4 * KIB);
    close(out[0]), close(ring[0]);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
    return slice_trim((slice){ (uint8_t *)text, got < 0 ? 0 : (size_t)got });
}

TEST(init_finish_leaves_nothing_of_the_monitors)
{
    if (geteuid()) SKIP("needs root");
    OWNED_ARENA a = arena_make(MIB);
    char self[PATH_MAX] = "", before[32];
    long keyring;
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) abort();
    const slice list[] = { SLICE("/bin/sh"), SLICE("-c"),
                           SLICE("for f in 0 1 2 70; do test -e /proc/$$/fd/$f && echo $f; done; "
                                 "while read k v; do test $k = SigIgn: && echo $v; done </proc/$$/status; :") };
    CHECK_TEXT(finish_run(&a, list, COUNT(list), &keyring), "0\n1\n2\n0000000000000000");
    const slice ring[] = { slice_of(self), SLICE("--session-keyring") };
    slice after = finish_run(&a, ring, COUNT(ring), &keyring);
    if (keyring < 0) SKIP("this kernel has no keyrings");
    snprintf(before, sizeof before, "%ld", keyring);
    CHECK(after.n > 0 && !slice_is(after, before) && !slice_is(after, "-1"));
}

TEST(init_working_directory_that_lies_outside_is_refused) /* CVE-2024-21626 */
{
    if (geteuid()) SKIP("needs root");
    char path[] = "/tmp/krun-unit-XXXXXX";
    int status = 0;
    if (!mkdtemp(path)) abort();
    pid_t child = fork();
    if (child == 0) {
        error e = { 0 };
        if (chdir(path) < 0 || chroot(".") < 0 || init_is_inside(&e) < 0) _exit(1);
        if (chdir("..") < 0 || init_is_inside(&e) < 0) _exit(2); /* ".." of "/" is "/" */
        OWNED_FD inner = mkdir("inner", 0700) < 0 ? -1 : open("/", O_PATH | O_DIRECTORY);
        if (chroot("inner") < 0 || fchdir(inner) < 0) _exit(3); /* the first root is outside of the second */
        _exit(init_is_inside(&e) < 0 && e.code == GRPC_INVALID_ARGUMENT ? 0 : 4);
    }
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

TEST(init_says_which_step_of_a_start_failed)
{
    static const struct { const char *words[3]; int sys; const char *text;
    } rows[] = {
        { { "nothere" }, ENOENT, "exec: \"nothere\": executable file not found in $PATH" },
        { { "/nothere" }, ENOENT, "exec /nothere: No such file or directory" },
        { { "/etc/passwd" }, EACCES, "exec /etc/passwd: Permission denied" },
        { { "/bin/lost" }, ENOENT, "exec /bin/lost, whose loader or #! program the container does not have: No such" },
        { { "lost" }, ENOENT, "exec /bin/lost, whose loader or #! program the container does not have: No such" },
        { { "noformat" }, ENOEXEC, "exec /bin/noformat: Exec format error" },
        { { "plain" }, EACCES, "exec plain: Permission denied" },
        { { "/etc" }, EACCES, "exec /etc: Permission denied" },
        { { "" }, 0, "there is no command" },
        { { "/proc/self/exe" },
          0,
          NULL }, /* the sealed program: whatever happens, it is no success */
    };
    BOX(b);
    OWNED_FD bin = openat(b.layers, "one/bin", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    box_write(bin, "noformat", "\x01\x02\x03"), fchmodat(bin, "noformat", 0755, 0);
    box_write(bin, "plain", "#!/bin/sh\n");
    box_write(bin, "lost", "#!/nothere\n"), fchmodat(bin, "lost", 0755, 0);
    for (size_t i = 0; i < COUNT(rows) - 1; i++) {
        box_run(&b, rows[i].words, &code, &e);
        CHECK_INT(code, -1);
        CHECK_INT(e.sys, rows[i].sys);
        if (!strstr(e.text, rows[i].text)) fprintf(stderr, "%s\n", e.text);
        CHECK(strstr(e.text, rows[i].text) != NULL);
    }
    b.spec.layers.p[0] = SLICE("gone");
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK(code == -1 && strstr(e.text, "open layer gone") != NULL);
    box_close(&b);
}

TEST(init_killed_before_exec_has_not_started) /* R18 */
{
    BOX(b);
    init_started s = { .pidfd = -1, .report = -1 };
    int ends[2], terminal = -1;
    CHECK_INT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
    s.report = ends[0];
    CHECK_INT(init_report(&s, &terminal, &e), 0);
    close(ends[1]);
    CHECK_INT(init_report(&s, &terminal, &e), -1);
    CHECK_INT(e.code, GRPC_ABORTED);
    close(ends[0]);
    box_close(&b);
}

/* Whatever the child sends is a text that can be shown and a code that there is, or no report. */
TEST(init_report_believes_nothing_of_what_a_child_sends)
{
    static const struct { size_t n; int code, sys; char fill; int want_code, want_sys; const char *text; } rows[] = {
        { sizeof(error), GRPC_NOT_FOUND, ENOENT, 'x', GRPC_NOT_FOUND, ENOENT, "xxx" },     /* no NUL at all */
        { sizeof(error), GRPC_NOT_FOUND, -7, '\xff', GRPC_NOT_FOUND, 0, "\\xff\\xff" },   /* no UTF-8 */
        { sizeof(error), GRPC_NOT_FOUND, 1 << 20, '\n', GRPC_NOT_FOUND, 0, "\\x0a" },
        { sizeof(error), 17, 0, 'x', GRPC_INTERNAL, 0, "no report" },
        { sizeof(error), -1, 0, 'x', GRPC_INTERNAL, 0, "no report" },
        { sizeof(error) - 1, GRPC_NOT_FOUND, 0, 'x', GRPC_INTERNAL, 0, "no report" },
        { 4, GRPC_NOT_FOUND, 0, 'x', GRPC_INTERNAL, 0, "no report" },
        { 1, 0, 0, 'x', GRPC_INTERNAL, 0, "no report" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        init_started s = { .pidfd = -1, .report = -1 };
        int ends[2], terminal = -1;
        error said = { .code = rows[i].code, .sys = rows[i].sys }, got = { 0 };
        memset(said.text, rows[i].fill, sizeof said.text);
        CHECK_INT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
        s.report = ends[0];
        CHECK_INT(send(ends[1], &said, rows[i].n, 0), rows[i].n);
        CHECK_INT(init_report(&s, &terminal, &got), -1);
        CHECK_INT(got.code, rows[i].want_code);
        CHECK_INT(got.sys, rows[i].want_sys);
        CHECK(memchr(got.text, 0, sizeof got.text) && strstr(got.text, rows[i].text));
        CHECK(utf8_valid(slice_of(got.text)));
        close(ends[0]);
        close(ends[1]);
    }
}

TEST(init_report_keeps_one_terminal)
{
    static const error none;
    init_started s = { .pidfd = -1, .report = -1 };
    int ends[2], terminal = -1;
    error e;
    CHECK_INT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    s.report = ends[0];
    int before = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int i = 0; i < 5; i++) init_tell(ends[1], &none, ends[1]);
    CHECK_INT(init_report(&s, &terminal, &e), 0);
    int after = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(terminal >= 0 && after <= before + 2);
    close(terminal);
    close(before);
    close(after);
    close(ends[0]);
    close(ends[1]);
}

/* T50, CVE-2023-28642, CVE-2026-41579 */
TEST(init_refuses_an_image_that_puts_links_where_krun_mounts)
{
    char up[PATH_MAX] = "../../../../../..", *canary = up + strlen(up), ptmx[PATH_MAX + 8];
    strcpy(canary, "/tmp/krun-canary-XXXXXX");
    const struct { const char *name, *to;
    } rows[] = {
        { "proc", "/tmp" },
        { "sys", "etc" },
        { "dev", canary },
        { "dev", up },
        { "dev", "/proc/self/fd/4" },
    };
    BOX(b);
    CHECK(mkdtemp(canary) != NULL);
    snprintf(ptmx, sizeof ptmx, "%s/ptmx", canary);
    close(open(ptmx, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    for (size_t i = 0; i < COUNT(rows); i++) {
        char path[32];
        snprintf(path, sizeof path, "one/%s", rows[i].name);
        CHECK_INT(symlinkat(rows[i].to, b.layers, path), 0);
        box_run(&b, SH("exit 0"), &code, &e);
        CHECK_INT(code, -1);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
        CHECK(strstr(e.text, rows[i].name) != NULL);
        unlinkat(b.layers, path, 0);
    }
    CHECK(unlink(ptmx) == 0 && rmdir(canary) == 0); /* and nothing else was in it */
    box_close(&b);
}

/* T50, CVE-2025-31133, CVE-2023-25809 */
TEST(init_hides_what_is_masked_and_freezes_what_is_read_only)
{
    BOX(b);
    slice masked[] = { SLICE("/proc/cpuinfo"), SLICE("/sys/firmware"), SLICE("/sys/kernel"),
                       SLICE("/nothere"), SLICE("/proc/timer_list") };
    slice readonly[] = { SLICE("/proc/sys"), SLICE("/proc/sysrq-trigger"), SLICE("/etc") };
    b.spec.masked_paths.p = masked, b.spec.masked_paths.n = COUNT(masked);
    b.spec.readonly_paths.p = readonly, b.spec.readonly_paths.n = COUNT(readonly);
    slice said = box_run(
        &b,
        SH("busybox cat /proc/cpuinfo | busybox wc -c; busybox ls /sys/firmware /sys/kernel | "
           "busybox wc -w;"
           "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /etc/passwd "
           "/sys/fs/cgroup/cgroup.procs; do (echo x >$f) 2>/dev/null && echo wrote $f; done;"
           "(echo x >/sys/kernel/x; busybox mkdir /sys/fs/cgroup/x) 2>/dev/null && echo wrote sys;"
            "echo ok >/new && busybox cat "
           "/new"),
        &code, &e);
    CHECK_TEXT(said, "0\n2\nok"); /* 2: the two names that ls prints as headings */
    b.spec.readonly_rootfs = true;
    CHECK_TEXT(box_run(&b,
                       SH("(echo x >/new) 2>/dev/null && echo wrote; echo y >/dev/null && echo ok"),
                       &code, &e),
               "ok");
    CHECK_INT(symlinkat("/proc/version", b.layers, "one/linked"), 0);
    masked[0] = SLICE("/linked");
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK(code == -1 && strstr(e.text, "link") != NULL);
    box_close(&b);
}

TEST(init_mounts_volumes_as_they_were_asked_for) /* T34, T50 */
{
    BOX(b);
    OWNED_ARENA a = arena_make(MIB);
    mkdirat(b.dir, "vol", 0755), mkdirat(b.dir, "vol/sub", 0755), mkdirat(b.layers, "img", 0755),
        mkdirat(b.layers, "img/part", 0755);
    box_write(b.dir, "vol/sub/f", "deep"), box_write(b.dir, "hosts", "names"),
        box_write(b.layers, "img/part/p", "part");
    symlinkat("/run", b.layers, "one/var-run");
    slice vol = slice_of(arena_printf(&a, "%s/vol", b.path)),
          hosts = slice_of(arena_printf(&a, "%s/hosts", b.path)),
          img[] = { SLICE("img"), SLICE("one") };
    const char *in = arena_printf(
        &a, "%s/vol/in", b.path); /* a mount below the volume's: only "recursive" reaches it */
    CHECK(mkdir(in, 0755) == 0 && mount("none", in, "tmpfs", 0, NULL) == 0);
    MountSpec mounts[] = {
        { .destination = SLICE("/v/w/frozen"),
          .source = vol,
          .readonly = true,
          .recursive_readonly = true },
        { .destination = SLICE("/etc/hosts"), .source = hosts, .readonly = true },
        { .destination = SLICE("/v"), .source = vol },
        { .destination = SLICE("/var-run/secrets/x"), .source = vol, .noexec = true },
        { .destination = SLICE("/img"), .layers = { img, 1 }, .sub_path = SLICE("part") },
        { .destination = SLICE("/img2"), .layers = { img, 2 }, .sub_path = SLICE("part") },
        { .destination = SLICE("/dev/shm"), .source = vol },
    };
    b.spec.mounts.p = mounts, b.spec.mounts.n = COUNT(mounts);
    slice said = box_run(&b,
                         SH("busybox cat /v/sub/f /etc/hosts /run/secrets/x/sub/f /img/p /img2/p "
                            "/dev/shm/sub/f; echo; echo new >/v/made && echo wrote v;"
                            "(echo x >/etc/hosts; echo x >/v/w/frozen/x; echo x >/img/x; echo x "
                            ">/img2/x) 2>/dev/null || echo not the others;"
                            "busybox grep -c ' /v/w/frozen[^ ]* ro' /proc/self/mountinfo; busybox "
                            "grep -c ' /v/in rw' /proc/self/mountinfo"),
                         &code, &e);
    if (code) fprintf(stderr, "%s\n", e.text);
    CHECK_TEXT(said, "deepnamesdeeppartpartdeep\nwrote v\nnot the others\n2\n1");
    umount2(in, MNT_DETACH);
    CHECK_INT(faccessat(b.dir, "vol/made", F_OK, 0), 0);
    CHECK_INT(faccessat(b.dir, "vol/w/frozen", F_OK, 0),
              0); /* a mount point inside a volume is made in it */
    box_close(&b);
}

TEST(init_refuses_volumes_in_proc) /* CVE-2019-16884, CVE-2019-19921, T50 */
{
    static const struct { const char *at; bool works;
    } rows[] = {
        { "/proc", false },           { "/proc/self", false },
        { "/proc/self/attr", false }, { "/into/sys/kernel", false },
        { "/proc/sys", false },       { "/", false },
        { "/a/../../x", false },      { "relative", false },
        { "/proc/made", false },      { "/procfs", true },
    };
    BOX(b);
    OWNED_ARENA a = arena_make(MIB);
    mkdirat(b.dir, "vol", 0755);
    symlinkat("/proc", b.layers, "one/into");
    MountSpec m = { .source = slice_of(arena_printf(&a, "%s/vol", b.path)) };
    b.spec.mounts.p = &m, b.spec.mounts.n = 1;
    for (size_t i = 0; i < COUNT(rows); i++) {
        m.destination = slice_of(rows[i].at);
        box_run(&b, SH("exit 0"), &code, &e);
        if ((code == 0) != rows[i].works) fprintf(stderr, "%s: %d %s\n", rows[i].at, code, e.text);
        CHECK_INT(code, rows[i].works ? 0 : -1);
    }
    m.source = SLICE("/proc"), m.destination = SLICE("/proc"); /* the host's own: as asked */
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK_INT(code, 0);
    m.source = SLICE("/nothere"), m.destination = SLICE("/v");
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK(code == -1 && strstr(e.text, "/nothere") != NULL);
    box_close(&b);
}

TEST(init_volumes_propagate_only_as_asked)
{
    static const char *const words[] = { "private", "slave", "shared" };
    BOX(b);
    OWNED_ARENA a = arena_make(MIB);
    mkdirat(b.dir, "vol", 0755), mkdirat(b.dir, "vol/in", 0755);
    char *vol = arena_printf(&a, "%s/vol", b.path), *in = arena_printf(&a, "%s/vol/in", b.path);
    CHECK(mount(vol, vol, NULL, MS_BIND, NULL) == 0 &&
          mount(NULL, vol, NULL, MS_SHARED, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        MountSpec m = { .source = slice_of(vol), .destination = SLICE("/v"), .propagation = i };
        b.spec.mounts.p = &m, b.spec.mounts.n = 1;
        b.spec.capabilities = security_caps_permitted();
        init_started s;
        box_command(&b, SH("busybox mkdir -p /v/out; busybox mount -t tmpfs none /v/out; echo; "
                           "while [ ! -e /v/stop ]; do busybox sleep 0.02; done;"
                           "busybox grep -q ' /v/in ' /proc/self/mountinfo && exit 1; exit 0"));
        char byte;
        CHECK_INT(box_start(&b, &s, &e), 1);
        CHECK_INT(read(b.out, &byte, 1), 1);
        CHECK_INT(mount("none", in, "tmpfs", 0, NULL), 0);
        CHECK(box_write(b.dir, "vol/stop", ""));
        int seen_inside = reap(s.pidfd, clock_mono() + 60 * NS_PER_SEC),
            seen_outside = umount2(arena_printf(&a, "%s/out", vol), MNT_DETACH) == 0;
        if (seen_inside != (i > 0) || seen_outside != (i == 2))
            fprintf(stderr, "propagation %s\n", words[i]);
        CHECK_INT(seen_inside, i > 0);
        CHECK_INT(seen_outside, i == 2);
        close(s.pidfd);
        umount2(in, MNT_DETACH);
        unlinkat(b.dir, "vol/stop", 0);
        tree_remove(b.state, "containers", &e);
    }
    umount2(vol, MNT_DETACH);
    box_close(&b);
}

TEST(init_privileged_sees_the_hosts_devices_and_may_write_sysfs)
{
    BOX(b);
    b.spec.privileged = true, b.spec.capabilities = security_caps_permitted();
    char *host = arena_alloc(&b.memory, 64);
    struct stat st;
    const char *names[] = { "/dev/kmsg", "/dev/vda",      "/dev/mem", "/dev/loop0",
                            "/dev/fuse", "/dev/vport0p1", NULL };
    for (int i = 0; names[i]; i++)
        if (stat(names[i], &st) == 0) snprintf(host, 64, "[ -e %s ] && ", names[i]);
    slice said = box_run(
        &b, SH(arena_printf(&b.memory, "%s busybox grep -c ' /sys rw' /proc/self/mountinfo", host)),
        &code, &e);
    CHECK_TEXT(said, "1");
    box_close(&b);
}

TEST(init_makes_the_devices_of_the_request)
{
    BOX(b);
    DeviceSpec devices[] = { { SLICE("/dev/sub/nil"), SLICE("/dev/null"), SLICE("rwm") },
                             { SLICE("/dev/z2"), SLICE("/dev/zero"), SLICE("r") } };
    b.spec.devices.p = devices, b.spec.devices.n = 2;
    CHECK_TEXT(box_run(&b,
                       SH("echo x >/dev/sub/nil; busybox head -c 3 /dev/z2 | busybox wc -c; [ -c "
                          "/dev/sub/nil ] && echo c"),
                       &code, &e),
               "3\nc");
    devices[1].host_path = SLICE("/etc/passwd");
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK(code == -1 && strstr(e.text, "not a device") != NULL);
    box_close(&b);
}

TEST(init_opens_no_device_that_was_not_asked_for)
{
    BOX(b);
    struct stat st;
    const char *disk = stat("/dev/vda", &st) == 0     ? "/dev/vda"
                       : stat("/dev/loop0", &st) == 0 ? "/dev/loop0"
                                                      : NULL;
    char *script = arena_printf(
        &b.memory,
        "busybox mknod /dev/disk b %u %u && echo made; busybox head -c 1 /dev/disk >/dev/null 2>&1 "
        "&& echo read;"
        "busybox mknod /dev/kmem c 1 1; busybox head -c 1 /dev/kmem >/dev/null 2>&1 && echo read; "
        "echo x >/dev/null && busybox head -c 2 /dev/zero | busybox wc -c;"
        "true",
        disk ? major(st.st_rdev) : 7, disk ? minor(st.st_rdev) : 0);
    DeviceSpec device = { SLICE("/dev/z2"), SLICE("/dev/kmsg"), SLICE("r") };
    CHECK_TEXT(box_run(&b,
                       SH("busybox mknod /dev/m c 1 11 && echo made; busybox head -c 1 /dev/m "
                          "2>/dev/null || echo denied"),
                       &code, &e),
               "made\ndenied");
    b.spec.devices.p = &device, b.spec.devices.n = 1;
    b.spec.capabilities |= security_cap_bit(SLICE("SYSLOG"));
    if (stat("/dev/kmsg", &st) == 0)
        CHECK_TEXT(box_run(&b,
                           SH("busybox head -n 1 /dev/z2 >/dev/null && echo read; (echo x "
                              ">/dev/z2) 2>/dev/null || echo denied"),
                           &code, &e),
                   "read\ndenied");
    b.spec.devices.n = 0;
    CHECK_TEXT(box_run(&b, SH(script), &code, &e), "made\n2");
    box_close(&b);
}

TEST(init_terminal_is_the_containers_own) /* T50, CVE-2025-52565 */
{
    BOX(b);
    init_started s;
    int terminal = -1;
    char text[512] = "";
    b.spec.tty = true, b.user.uid = 1000;
    symlinkat("/proc/sys/kernel/core_pattern", b.layers,
              "one/console"); /* never looked at: /dev is ours */
    box_command(&b, SH("busybox tty; busybox tty </dev/console; busybox stty size </dev/tty; [ -w "
                       "/dev/stdout ] && echo mine; read x; echo got $x"));
    init_args a = { .spec = &b.spec,
                    .layers_dir = b.layers,
                    .state_dir = b.state,
                    .stdio = { -1, -1, -1 },
                    .cgroup = b.cgroup,
                    .cgroups = -1,
                    .pidns = -1,
                    .shm_ns = -1 };
    CHECK_INT(init_clone(&a, &s, &e), 0);
    int state = box_wait(&s, &terminal, &e);
    if (state < 0) fprintf(stderr, "%s\n", e.text);
    CHECK_INT(state, 1);
    CHECK(terminal >= 0);
    struct winsize size = { .ws_row = 40, .ws_col = 100 };
    if (terminal >= 0)
        CHECK(ioctl(terminal, TIOCSWINSZ, &size) == 0 && write(terminal, "in\n", 3) == 3);
    for (size_t n = 0;
         terminal >= 0 && n < sizeof text - 1;) { /* EIO once the last slave is closed */
        ssize_t more = read(terminal, text + n, sizeof text - 1 - n);
        if (more <= 0) break;
        n += (size_t)more;
    }
    CHECK(strstr(text, "/dev/pts/0") && strstr(text, "/dev/console") && strstr(text, "mine") &&
          strstr(text, "got in"));
    CHECK_INT(reap(s.pidfd, clock_mono() + 60 * NS_PER_SEC), 0);
    close(s.pidfd), close(terminal);
    mkdirat(b.dir, "fake", 0755), box_write(b.dir, "fake/ptmx", "");
    MountSpec fake = { .destination = SLICE("/dev/pts"),
                       .source = slice_of(arena_printf(&b.memory, "%s/fake", b.path)) };
    b.spec.mounts.p = &fake, b.spec.mounts.n = 1;
    box_run(&b, SH("exit 0"), &code, &e);
    CHECK(code == -1 && strstr(e.text, "no devpts") != NULL);
    box_close(&b);
}

/* Runs a command in the running container `target`; what it printed, its exit code or -1. */
static slice box_exec(box *b, int target, const char *const *words, int *code, error *e)
{
    ExecSpec x = { 0 };
    slice args[8];
    for (x.args.p = args; words[x.args.n]; x.args.n++) args[x.args.n] = slice_of(words[x.args.n]);
    int ends[2], terminal = -1;
    char *text = arena_alloc(&b->memory, 64 * KIB);
    if (pipe2(ends, O_CLOEXEC) < 0) abort();
    OWNED_FD group = cg_make_below(b->cgroup, "exec-1", e);
    exec_args a = { .spec = &b->spec,
                    .exec = &x,
                    .target = target,
                    .cgroup = group,
                    .stdio = { -1, ends[1], -1 } }; /* sanitizers talk on stderr */
    init_started s;
    int started = exec_clone(&a, &s, e);
    close(ends[1]);
    started = started < 0 ? -1 : box_wait(&s, &terminal, e);
    ssize_t n = started == 1 ? read_all(ends[0], text, 64 * KIB) : 0;
    close(ends[0]);
    *code = s.pidfd < 0 ? -1 : reap(s.pidfd, clock_mono() + 60 * NS_PER_SEC);
    if (s.pidfd >= 0) close(s.pidfd);
    if (started != 1) *code = -1;
    return slice_trim((slice){ (uint8_t *)text, n < 0 ? 0 : (size_t)n });
}

TEST(init_exec_runs_inside_with_the_containers_rights) /* T52, T53, T54 */
{
    BOX(b);
    init_started s;
    b.user.uid = 1000, b.user.gid = 1001, b.spec.capabilities = 0x2003, b.spec.cwd = SLICE("/etc"),
    b.spec.no_new_privs = true;
    b.spec.oom_score_adj = 400;
    box_command(&b, SH("echo; busybox sleep 1000"));
    CHECK_INT(box_start(&b, &s, &e), 1);
    slice said = box_exec(&b, s.pidfd,
                          SH("[ $(busybox readlink /proc/self/ns/mnt) = $(busybox readlink "
                             "/proc/$$/ns/mnt) ] && echo 1; busybox pwd;"
                             "busybox ls /proc/$$/fd; busybox cat /proc/self/oom_score_adj "
                             "/proc/self/cgroup; busybox cat /proc/self/status; exit 9"),
                          &code, &e);
    CHECK_INT(code, 9);
    CHECK(slice_starts(said, "1\n/etc\n0\n1\n2\n400\n"));
    CHECK_TEXT(box_status(said, "CapBnd"), "0000000000002003");
    CHECK_TEXT(box_status(said, "CapInh"), "0000000000000000");
    CHECK_TEXT(box_status(said, "CapEff"), "0000000000000000");
    CHECK_TEXT(box_status(said, "NoNewPrivs"), "1");
    CHECK_TEXT(box_status(said, "Uid"), "1000\t1000\t1000\t1000");
    CHECK(memmem(said.p, said.n, "0::/exec-1", 10) != NULL);
    box_exec(&b, s.pidfd, (const char *const[]){ "missing", NULL }, &code, &e);
    CHECK(code == -1 && strstr(e.text, "executable file not found in $PATH") != NULL);
    b.spec.cwd = SLICE("/proc/self/fd/7");
    box_exec(&b, s.pidfd, SH("exit 0"), &code, &e);
    CHECK_INT(code, -1);
    sys_pidfd_kill(s.pidfd, SIGKILL);
    reap(s.pidfd, 0);
    box_exec(&b, s.pidfd, SH("exit 0"), &code, &e); /* too late */
    CHECK_INT(code, -1);
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    close(s.pidfd);
    box_close(&b);
}

/* What a child finds when it is born, told as the text of an error: only what it was given. */
static int child_looks_around(const child_spec *b, error *e)
{
    char seen[256] = "";
    size_t n = 0;
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (isdigit((unsigned char)entry->d_name[0]) && atoi(entry->d_name) != dirfd(d))
            n += (size_t)snprintf(seen + n, sizeof seen - n, "%s ", entry->d_name);
    return fail(e, GRPC_UNKNOWN, "report %d, dumpable %d, open %s", b->fds[CHILD_REPORT],
                prctl(PR_GET_DUMPABLE), seen);
}

TEST(init_child_is_born_with_nothing_of_the_monitors) /* T52, CVE-2016-9962 */
{
    if (geteuid()) SKIP("needs root");
    OWNED_FD kept = open("/", O_PATH | O_CLOEXEC), self = sys_pidfd_open(getpid());
    for (int launched = 0; launched < 2; launched++) {
        error e = { 0 };
        init_started s;
        int terminal = -1;
        static const int none[] = { -1, -1, -1 };
        child_spec b = { .stdio = none, .fds = { -1, -1, kept, -1, -1, -1 },
                    .pidns = launched ? self : -1,
                    .join = CLONE_NEWPID, .run = child_looks_around };
        CHECK_INT(child_start(&b, &s, &e), 0);
        CHECK_INT(box_wait(&s, &terminal, &e), -1);
        CHECK_TEXT(slice_of(e.text), "report 3, dumpable 0, open 0 1 2 3 5 ");
        CHECK_INT(reap(s.pidfd, 0), INIT_FAILED);
        close(s.pidfd);
    }
}

/* The child says whether its cgroup's descriptor leads up in the tree, and whether it can write
 * there. It asks a copy, for its own is closed when its code begins. */
static int child_climbs(const child_spec *b, error *e)
{
    int group = b->fds[CHILD_TARGET];
    struct stat here, above;
    bool up = fstat(group, &here) == 0 && fstatat(group, "..", &above, 0) == 0 &&
              here.st_ino != above.st_ino;
    bool wrote = mkdirat(group, "left", 0755) == 0;
    if (wrote) unlinkat(group, "left", AT_REMOVEDIR);
    return fail(e, GRPC_UNKNOWN, "up %d, wrote %d", up, wrote);
}

static int child_ends(child_spec *b, error *e)
{
    init_started s;
    int terminal = -1;
    if (child_start(b, &s, e) < 0) return -1;
    int said = box_wait(&s, &terminal, e);
    reap(s.pidfd, 0);
    close(s.pidfd);
    return said;
}

TEST(init_of_its_cgroup_a_child_is_born_with_a_view) /* T52, CVE-2016-9962 */
{
    BOX(b);
    static const int none[] = { -1, -1, -1 };
    OWNED_FD self = sys_pidfd_open(getpid());
    OWNED_FD view = init_view(b.cgroup, &e);
    child_spec child = { .stdio = none, .fds = { -1, view, view, -1, -1, -1 }, .pidns = self,
                         .join = CLONE_NEWPID, .run = child_climbs };
    CHECK_INT(child_ends(&child, &e), -1);
    CHECK_TEXT(slice_of(e.text), "up 0, wrote 0");
    box_close(&b);
}

TEST(init_is_born_also_where_no_view_of_its_cgroup_can_be_had)
{
    BOX(b);
    static const int none[] = { -1, -1, -1 };
    OWNED_FD self = sys_pidfd_open(getpid());
    CHECK_INT(unshare(CLONE_NEWNS), 0); /* the cgroup's mount is a foreign one now */
    e = (error){ 0 };
    OWNED_FD view = init_view(b.cgroup, &e);
    CHECK_INT(e.code, 0); /* else a start that goes well is answered as one that has failed */
    child_spec child = { .stdio = none, .fds = { -1, view, view, -1, -1, -1 }, .pidns = self,
                         .join = CLONE_NEWPID, .run = child_climbs };
    CHECK_INT(child_ends(&child, &e), -1);
    CHECK_TEXT(slice_of(e.text), "up 1, wrote 1");
    box_close(&b);
}

/* T52, CVE-2016-9962: no descriptor of the host is ever seen */
TEST(init_setup_cannot_be_watched_from_inside)
{
    BOX(b);
    prctl(PR_SET_DUMPABLE, 0); /* as the monitor is */
    uint64_t usual = b.spec.capabilities;
    for (int ptrace = 0; ptrace < 2; ptrace++) { /* CAP_SYS_PTRACE looks past "not dumpable" */
        init_started s;
        b.spec.capabilities = ptrace ? security_caps_permitted() : usual;
        box_command(
            &b,
            SH("echo; while [ ! -e /stop ]; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] && "
               "continue;"
               "for f in $p/fd/* $p/cwd $p/root; do l=$(busybox readlink $f); case $l in "
               "/tmp/*|/work*|*/layers*|*/pod*|*socket*) echo LEAK $l;; esac; done; done; done"));
        CHECK_INT(box_start(&b, &s, &e), 1);
        for (int i = 0; i < 100; i++)
            box_exec(&b, s.pidfd, (const char *const[]){ "/bin/busybox", "true", NULL }, &code, &e);
        box_exec(&b, s.pidfd, (const char *const[]){ "/bin/busybox", "touch", "/stop", NULL },
                 &code, &e);
        char text[KIB] = "";
        CHECK(read_all(b.out, text, sizeof text - 1) > 0);
        const char *leak = strstr(text, "LEAK");
        if (leak && !(ptrace && strstr(leak, "socket")))
            fprintf(stderr, "ptrace %d: %s\n", ptrace, text);
        CHECK(!leak || (ptrace && strstr(leak, "socket"))); /* the report's own end is no secret */
        reap(s.pidfd, 0);
        close(s.pidfd);
        tree_remove(b.state, "containers", &e);
    }
    prctl(PR_SET_DUMPABLE, 1);
    box_close(&b);
}

TEST(sysctl_check_lets_only_a_pods_own_through) /* T48, CVE-2022-0811, CVE-2022-0532 */
{
    static const struct { const char *name, *value; bool host_network, host_ipc, good;
    } rows[] = {
        { "net.ipv4.ip_forward", "1", false, false, true },
        { "kernel.shm_rmid_forced", "1", false, false, true },
        { "kernel.msgmax", "1", false, false, true },
        { "kernel.sem", "1 2 3 4", false, false, true },
        { "fs.mqueue.msg_max", "10", false, false, true },
        { "net.ipv4.ip_forward", "1", true, false, false },
        { "kernel.shmmax", "1", false, true, false },
        { "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x", false, false,
          true }, /* the kernel refuses the value */
        { "kernel.shm_rmid_forced", "1\nkernel.core_pattern=x", false, false, false },
        { "kernel.shm_rmid_forced+x", "1", false, false, false },
        { "kernel.core_pattern", "|/x", false, false, false },
        { "kernel.semx", "1", false, false, false },
        { "vm.swappiness", "1", false, false, false },
        { "net/ipv4/ip_forward", "1", false, false, false },
        { "net.ipv4/../x", "1", false, false, false },
        { "net..ipv4", "1", false, false, false },
        { "net.ipv4.", "1", false, false, false },
        { "kernel.shm/../core_pattern", "x", false, false, false },
        { "", "1", false, false, false },
        { "net.ipv4 .x", "1", false, false, false },
        { "kernel.hostname", "x", false, false, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        pb_pair one = { slice_of(rows[i].name), slice_of(rows[i].value) };
        PodSpec p = { .sysctls = { &one, 1 },
                      .network = rows[i].host_network ? NamespaceMode_NODE : 0,
                      .ipc = rows[i].host_ipc ? NamespaceMode_NODE : 0 };
        error e;
        if ((sysctl_check(&p, &e) == 0) != rows[i].good)
            fprintf(stderr, "%s=%s\n", rows[i].name, rows[i].value);
        CHECK_INT(sysctl_check(&p, &e), rows[i].good ? 0 : -1);
    }
}

/* A pod of its own, in a process of its own: what that checks counts here. */
static void pod_checks(box *b)
{
    pb_pair sysctls[] = { { SLICE("net.ipv4.ip_forward"), SLICE("1") },
                          { SLICE("kernel.msgmax"), SLICE("4096") } };
    char netns[64];
    snprintf(netns, sizeof netns, "/run/netns/krun-unit-%d", (int)getpid());
    PodSpec p = { .hostname = SLICE("pod-7"),
                  .sysctls = { sysctls, 2 },
                  .shm_size = 128 * KIB,
                  .netns = slice_of(netns) };
    pod_namespaces ns;
    error e = { 0 };
    int code, done = pod_unshare(&p, b->cgroup, &ns, &e);
    if (done < 0) fprintf(stderr, "%s\n", e.text);
    CHECK_INT(done, 0);
    if (done < 0) return;
    CHECK(ns.pause >= 0 && ns.shm_ns >= 0);
    struct stat pinned, ours;
    CHECK(stat(netns, &pinned) == 0 && stat("/proc/self/ns/net", &ours) == 0 &&
          pinned.st_ino == ours.st_ino);
    CHECK(umount2(netns, MNT_DETACH) == 0 && unlink(netns) == 0);
    for (int i = 0; i < 2; i++) { /* two containers: one world */
        init_started s;
        int terminal = -1, ends[2];
        char text[KIB] = "";
        b->spec.pid = NamespaceMode_POD;
        b->spec.capabilities = security_caps_permitted(); /* CAP_SYS_PTRACE sees /proc/1/root */
        b->spec.id = i ? SLICE("two") : SLICE("one");
        box_command(b, i ? SH("busybox cat /dev/shm/x; busybox dd if=/dev/zero of=/dev/shm/y bs=1k "
                              "count=200 2>/dev/null || echo full; busybox ls -A /dev/shm")
                         : SH("busybox hostname; busybox cat /proc/sys/net/ipv4/ip_forward "
                              "/proc/sys/kernel/msgmax "
                              "/proc/sys/net/ipv4/ip_unprivileged_port_start /proc/1/comm;"
                              "busybox ip addr show lo | busybox grep -c 127.0.0.1; echo shared "
                              ">/dev/shm/x; busybox ls /proc/1/root /proc/1/fd 2>&1; exit 0"));
        CHECK_INT(pipe2(ends, O_CLOEXEC), 0);
        init_args a = { .spec = &b->spec,
                        .layers_dir = b->layers,
                        .state_dir = b->state,
                        .stdio = { -1, ends[1], ends[1] },
                        .cgroup = cg_make_below(b->cgroup, i ? "two" : "one", &e),
                        .cgroups = -1,
                        .pidns = ns.pause,
                        .shm_ns = ns.shm_ns };
        CHECK_INT(init_clone(&a, &s, &e), 0);
        close(ends[1]);
        int state = box_wait(&s, &terminal, &e);
        if (state < 0) fprintf(stderr, "%s\n", e.text);
        CHECK_INT(state, 1);
        CHECK(read_all(ends[0], text, sizeof text - 1) > 0);
        CHECK_INT(reap(s.pidfd, clock_mono() + 60 * NS_PER_SEC), 0);
        const char *want = i ? "shared\nfull\nx\ny\n" : "pod-7\n1\n4096\n0\nkrun-pause\n1\n";
        if (strncmp(text, want, strlen(want))) fprintf(stderr, "%s", text);
        CHECK(!strncmp(text, want, strlen(want)));
        CHECK(!strstr(text, "usr") &&
              !strstr(text, "work")); /* pause shows nobody the host's tree */
        close(s.pidfd), close(ends[0]);
    }
    (void)code;
    sys_pidfd_kill(ns.pause, SIGKILL);
    reap(ns.pause, 0);
}

TEST(init_containers_of_a_pod_share_its_namespaces)
{
    BOX(b);
    pid_t pid = fork();
    if (pid == 0) {
        checks_failed = 0;
        pod_checks(&b);
        fflush(NULL);
        _exit(checks_failed > 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    box_close(&b);
}
