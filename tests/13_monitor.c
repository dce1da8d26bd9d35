/* Tests of chapters 12 and 13: the log format byte for byte, and the role as a process of its own. */

/* -- records ------------------------------------------------------------------------------------- */

typedef struct { loop loop; output_room room; output out; char path[PATH_MAX]; int dir, writers[2]; arena a; } log_bench;

static void log_bench_ended(output *o) { loop_stop(o->room->loop); }

static void log_bench_open(log_bench *b)
{
    error e;
    *b = (log_bench){ .a = arena_make(256 * MIB) };
    b->dir = temp_dir(b->path);
    if (loop_open(&b->loop, &e) < 0 || output_room_open(&b->room, &b->loop, &e) < 0) abort();
    output_init(&b->out, &b->room, "c0ffee", log_bench_ended);
    b->out.log = output_open_log(slice_of(b->path), slice_of(arena_printf(&b->a, "%s/0.log", b->path)), &e);
    for (size_t i = 0; i < 2; i++) b->writers[i] = output_pipe(&b->out, i, &e);
    CHECK(b->out.log >= 0 && b->writers[0] >= 0 && b->writers[1] >= 0);
}

static void log_bench_end(log_bench *b) /* the writers hang up, the loop runs until all is in the log */
{
    for (size_t i = 0; i < 2; i++) close_fd(&b->writers[i]), b->writers[i] = -1;
    if (output_is_open(&b->out)) loop_run(&b->loop);
}

static slice log_bench_read(log_bench *b, const char *name)
{
    slice text = { NULL, 0 };
    error e;
    text = file_read(b->dir, name, 128 * MIB, &b->a, &e);
    return text;
}

static void log_bench_close(log_bench *b)
{
    error e;
    log_bench_end(b);
    output_finish(&b->out);
    loop_disarm(&b->loop, &b->room.idle);
    close_fd(&b->out.log);
    munmap(b->room.in, OUTPUT_ROOM);
    loop_close(&b->loop);
    arena_free(&b->a);
    close(b->dir);
    CHECK(tree_remove(AT_FDCWD, b->path, &e) == 0);
}

/* The records without their times, which are checked for form. */
static slice log_untimed(slice log, arena *a)
{
    uint8_t *out = arena_alloc(a, log.n + 1);
    size_t n = 0;
    while (log.n) {
        slice record = slice_cut(&log, '\n'), time;
        if (!slice_take(&record, TIME_TEXT, &time)) return SLICE("a record without a time");
        for (size_t i = 0; i < TIME_TEXT; i++) {
            static const char form[] = "dddd-dd-ddTdd:dd:dd.dddddddddZ ";
            if (form[i] == 'd' ? !isdigit(time.p[i]) : time.p[i] != form[i]) return SLICE("a record with a bad time");
        }
        memcpy(out + n, record.p, record.n);
        n += record.n;
        out[n++] = '\n';
    }
    return (slice){ out, n };
}

TEST(monitor_log_has_the_records_of_the_contract)
{
    static const struct { const char *printed, *records; } rows[] = {
        { "", "" },
        { "\n", "stdout F \n" },
        { "one\ntwo\n", "stdout F one\nstdout F two\n" },
        { "a\r\n\r\n\rb\r\r\n", "stdout F a\nstdout F \nstdout F \rb\r\n" },
        { " two  spaces \n", "stdout F  two  spaces \n" },
        { "no end", "stdout P no end\n" },
        { "x\nno end\r", "stdout F x\nstdout P no end\r\n" },
        { "\xff\x01\x7f\n", "stdout F \xff\x01\x7f\n" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        log_bench b;
        log_bench_open(&b);
        CHECK(write_all(b.writers[0], rows[i].printed, strlen(rows[i].printed)) == 0);
        log_bench_end(&b);
        CHECK_TEXT(log_untimed(log_bench_read(&b, "0.log"), &b.a), rows[i].records);
        log_bench_close(&b);
    }
}

TEST(monitor_log_names_the_stream_and_keeps_lines_whole)
{
    log_bench b;
    log_bench_open(&b);
    CHECK(write_all(b.writers[0], "begin ", 6) == 0);
    CHECK(write_all(b.writers[1], "error\nhalf", 10) == 0);
    b.loop.stop = false;
    output_ready(&b.out.streams[0].pipe, EPOLLIN);
    CHECK(write_all(b.writers[0], "end\n", 4) == 0);
    log_bench_end(&b);
    CHECK_TEXT(log_untimed(log_bench_read(&b, "0.log"), &b.a), "stderr F error\nstdout F begin end\nstderr P half\n");
    log_bench_close(&b);
}

/* Lines around the 16 KiB of a record: {bytes before the line end, line end, records}. */
TEST(monitor_log_splits_at_16_KiB_exactly)
{
    enum { P = OUTPUT_PART };
    static const struct { size_t n; const char *end; size_t parts[3]; const char *tags; } rows[] = {
        { P - 1, "\n", { P - 1 }, "F" },      { P, "\n", { P }, "F" },          { P, "\r\n", { P }, "F" },
        { P + 1, "\n", { P, 1 }, "PF" },      { P + 1, "\r\n", { P, 1 }, "PF" }, { P, "", { P }, "P" },
        { P + 1, "", { P, 1 }, "PP" },        { 2 * P, "\n", { P, P }, "PF" },  { 2 * P + 1, "\n", { P, P, 1 }, "PPF" },
        { P, "\r", { P, 1 }, "PP" },          { P, "\rx\n", { P, 2 }, "PF" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint8_t line[2 * P + 8];
        memset(line, 'x', sizeof line);
        memcpy(line + rows[i].n, rows[i].end, strlen(rows[i].end));
        slice all = { line, rows[i].n + strlen(rows[i].end) }, in = at_page_end(all.p, all.n), done;
        for (size_t part = 0; rows[i].tags[part]; part++) {
            size_t content = 0, used;
            bool whole;
            /* Nothing may be decided before it must be: one byte less, and no end, is not enough. */
            used = output_next(in, true, &content, &whole);
            CHECK_INT(content, rows[i].parts[part]);
            CHECK_INT(whole, rows[i].tags[part] == 'F');
            if (whole) CHECK_INT(output_next((slice){ in.p, used - 1 }, false, &content, &whole), 0);
            if (!used || !slice_take(&in, used, &done)) break;
        }
        CHECK_INT(in.n, 0);
    }
}

/* T55: no line end, then lines of any bytes in pieces of any size: what comes out is what went in. */
TEST(monitor_log_loses_nothing_of_a_long_or_binary_stream)
{
    log_bench b;
    log_bench_open(&b);
    enum { TOTAL = 6 * MIB };
    uint8_t *sent = arena_alloc(&b.a, TOTAL), *got = arena_alloc(&b.a, TOTAL + 1);
    uint32_t seed = 12345;
    for (size_t i = 0; i < TOTAL; i++) {
        seed = seed * 1664525 + 1013904223;
        sent[i] = i < 2 * MIB ? 'z' : (uint8_t)(seed >> 24);
        if (sent[i] == '\r') sent[i] = ' '; /* "\r\n" is shortened on purpose */
    }
    sent[TOTAL - 1] = '\n';
    for (size_t at = 0, n; at < TOTAL; at += n) {
        seed = seed * 1664525 + 1013904223;
        n = MIN((size_t)(seed >> 15), (size_t)TOTAL - at);
        CHECK(write_all(b.writers[0], sent + at, n) == 0);
        output_ready(&b.out.streams[0].pipe, EPOLLIN);
    }
    log_bench_end(&b);
    slice log = log_bench_read(&b, "0.log");
    size_t n = 0, longest = 0;
    while (log.n) {
        slice record = slice_cut(&log, '\n');
        if (record.n < OUTPUT_PREFIX) break;
        longest = MAX(longest, record.n - OUTPUT_PREFIX);
        if (n + record.n - OUTPUT_PREFIX + 1 > TOTAL + 1) break;
        memcpy(got + n, record.p + OUTPUT_PREFIX, record.n - OUTPUT_PREFIX);
        n += record.n - OUTPUT_PREFIX;
        if (record.p[OUTPUT_PREFIX - 2] == 'F') got[n++] = '\n';
    }
    CHECK_INT(n, TOTAL);
    CHECK(memcmp(sent, got, TOTAL) == 0);
    CHECK_INT(longest, OUTPUT_PART);
    log_bench_close(&b);
}

/* T55: the disk is full in the middle of a record, then has room again. */
TEST(monitor_log_drops_what_does_not_fit_and_goes_on_with_whole_records)
{
    log_bench b;
    struct rlimit before, small;
    log_bench_open(&b);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 100; /* two records of 46 bytes fit, a part of the third */
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    int stderr_fd = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(null, STDERR_FILENO); /* the complaint is not what we look at */
    setrlimit(RLIMIT_FSIZE, &small);
    for (int i = 0; i < 2; i++) {
        CHECK(write_all(b.writers[0], "11111\n22222\n33333\n44444\n", 24) == 0);
        output_ready(&b.out.streams[0].pipe, EPOLLIN);
    }
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    dup2(stderr_fd, STDERR_FILENO);
    close(stderr_fd);
    close(null);
    CHECK_INT(b.out.lost, 6 * 46);
    CHECK(write_all(b.writers[0], "later\n", 6) == 0);
    log_bench_end(&b);
    CHECK_TEXT(log_untimed(log_bench_read(&b, "0.log"), &b.a), "stdout F 11111\nstdout F 22222\nstdout F later\n");
    log_bench_close(&b);
}

/* T49, T55: {directory below the test's, path below it, gRPC code}. */
TEST(monitor_log_is_opened_only_as_a_file_below_its_directory)
{
    static const struct { const char *directory, *path; int code; } rows[] = {
        { "pod", "pod/0.log", 0 },
        { "pod/", "pod/0.log", 0 },
        { "pod", "pod/ctr/0.log", 0 },
        { "pod", "pod/ctr/../../outside", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/../outside", GRPC_INVALID_ARGUMENT },
        { "pod", "pod", GRPC_INVALID_ARGUMENT },
        { "pod", "podx/0.log", GRPC_INVALID_ARGUMENT },
        { "pod", "other/0.log", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/missing/0.log", GRPC_NOT_FOUND },
        { "missing", "missing/0.log", GRPC_NOT_FOUND },
        { "link", "link/0.log", GRPC_INVALID_ARGUMENT },
        { "link/", "link/0.log", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/dirlink/0.log", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/filelink", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/dangling", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/ctr", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/fifo", GRPC_INVALID_ARGUMENT },
        { "pod", "pod/read-fifo", GRPC_INVALID_ARGUMENT },
    };
    log_bench b;
    error e = { 0 };
    log_bench_open(&b);
    CHECK(mkdirat(b.dir, "pod", 0755) == 0 && mkdirat(b.dir, "pod/ctr", 0755) == 0 && mkfifoat(b.dir, "pod/fifo", 0600) == 0);
    CHECK(mkfifoat(b.dir, "pod/read-fifo", 0600) == 0);
    OWNED_FD reader = openat(b.dir, "pod/read-fifo", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    CHECK(symlinkat("pod", b.dir, "link") == 0 && symlinkat("ctr", b.dir, "pod/dirlink") == 0);
    CHECK(symlinkat("0.log", b.dir, "pod/filelink") == 0 && symlinkat("../outside", b.dir, "pod/dangling") == 0);
    for (size_t i = 0; i < COUNT(rows); i++) {
        slice directory = slice_of(arena_printf(&b.a, "%s/%s", b.path, rows[i].directory));
        OWNED_FD log = output_open_log(directory, slice_of(arena_printf(&b.a, "%s/%s", b.path, rows[i].path)), &e);
        CHECK_INT(log < 0 ? e.code : 0, rows[i].code);
    }
    CHECK(faccessat(b.dir, "outside", F_OK, AT_SYMLINK_NOFOLLOW) < 0);
    struct stat st;
    CHECK(fstatat(b.dir, "pod/0.log", &st, 0) == 0);
    CHECK_INT(st.st_mode & 0777, 0640);
    log_bench_close(&b);
}

/* -- the role ------------------------------------------------------------------------------------- */

/* A monitor in a process of its own, with directories as the daemon would make them. */
typedef struct {
    char path[PATH_MAX];
    const char *socket, *cgroup; /* cgroup: below the cgroup2 root, NULL on a machine without one */
    int dir, cgroup_root, watching;
    pid_t pid;
    arena a;
    error e;
} monitor_bench;

/* The cgroup2 tree of a pure or a hybrid host, if we may make cgroups there. */
static int monitor_cgroup_root(void)
{
    static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
    for (size_t i = 0; i < COUNT(roots); i++) {
        int fd = open(roots[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0 && fd_is_on(fd, 0x63677270 /* CGROUP2_SUPER_MAGIC */) && faccessat(fd, ".", W_OK, 0) == 0) return fd;
        close_fd(&fd);
    }
    return -1;
}

static const char *const monitor_host_dirs[] = { "bin", "lib", "lib64", "usr", "etc" };

static void monitor_bench_child(monitor_bench *b, int listener)
{
    int fds[] = { listener, openat(b->dir, "pod", O_RDONLY | O_DIRECTORY), openat(b->dir, "layers", O_RDONLY | O_DIRECTORY),
                  b->cgroup_root < 0 ? open("/dev/null", O_RDWR) : b->cgroup_root };
    for (int i = 0; i < 4; i++) fds[i] = fcntl(fds[i], F_DUPFD, 100);
    for (int i = 0; i < 4; i++) dup2(fds[i], MONITOR_LISTEN_FD + i);
    sys_close_range(MONITOR_CGROUP_FD + 1, ~0U, 0);
    device_usual = -1; /* was among them: a real monitor starts afresh */
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails half-way leaves no monitor */
    char *argv[] = { "krun", "monitor", "testpod", NULL };
    _exit(monitor_main(3, argv));
}

static int monitor_bench_call(monitor_bench *b, MonitorRequest r, MonitorReply *reply)
{
    r.version = MONITOR_VERSION;
    *reply = (MonitorReply){ 0 };
    return monitor_call(b->socket, &r, &b->a, reply, &b->e);
}

static void monitor_bench_open(monitor_bench *b, int32_t pid_mode)
{
    char name[64];
    MonitorReply reply;
    *b = (monitor_bench){ .a = arena_make(256 * MIB) };
    b->dir = temp_dir(b->path);
    CHECK(mkdirat(b->dir, "pod", 0755) == 0 && mkdirat(b->dir, "pod/containers", 0755) == 0 && mkdirat(b->dir, "logs", 0755) == 0);
    CHECK(mkdirat(b->dir, "layers", 0755) == 0 && mkdirat(b->dir, "layers/base", 0755) == 0);
    for (size_t i = 0; i < COUNT(monitor_host_dirs); i++) {
        snprintf(name, sizeof name, "layers/base/%s", monitor_host_dirs[i]);
        CHECK(mkdirat(b->dir, name, 0755) == 0);
    }
    b->cgroup_root = monitor_cgroup_root();
    b->cgroup = b->cgroup_root < 0 ? NULL : arena_printf(&b->a, "krun-unit-%d", (int)getpid());
    CHECK(!b->cgroup || mkdirat(b->cgroup_root, b->cgroup, 0755) == 0);
    /* Longer than a unix address: T56's deep --run. */
    CHECK(mkdirat(b->dir, "a-directory-with-a-name-of-more-than-sixty-four-bytes-in-it-for-the-run-files", 0755) == 0);
    b->socket = arena_printf(&b->a, "%s/a-directory-with-a-name-of-more-than-sixty-four-bytes-in-it-for-the-run-files/././././././monitor.sock", b->path);
    OWNED_FD listener = monitor_listen(b->socket, &b->e);
    CHECK(listener >= 0);
    b->pid = fork();
    if (b->pid == 0) monitor_bench_child(b, listener);
    PodSpec spec = { .id = SLICE("testpod"), .hostname = SLICE("web"), .pid = pid_mode, .ipc = pid_mode, .shm_size = MIB };
    if (b->cgroup) spec.cgroup = slice_of(arena_printf(&b->a, "%s/pause", b->cgroup));
    if (monitor_bench_call(b, (MonitorRequest){ .call = MONITOR_SETUP, .pod = &spec }, &reply) < 0) CHECK_TEXT(slice_of(b->e.text), "");
    b->watching = monitor_connect(b->socket, &b->e);
    MonitorRequest watch_pod = { .version = MONITOR_VERSION, .call = MONITOR_WATCH };
    CHECK(monitor_send(b->watching, &watch_pod, NULL, 0, &b->e) == 0);
    CHECK(monitor_receive(b->watching, &(monitor_wait){ -1, 0 }, &b->a, &reply, &b->e) == 0);
    CHECK_INT(reply.containers.n, 0);
}

static void monitor_bench_close(monitor_bench *b)
{
    MonitorReply reply;
    int status = 0;
    CHECK_INT(monitor_bench_call(b, (MonitorRequest){ .call = MONITOR_SHUTDOWN }, &reply), 0);
    for (size_t i = 0; i < reply.containers.n; i++) CHECK_INT(reply.containers.p[i].state, ContainerState_CONTAINER_EXITED);
    CHECK_INT(waitpid(b->pid, &status, 0), b->pid);
    CHECK_INT(status, 0);
    close(b->watching);
    CHECK(!b->cgroup || unlinkat(b->cgroup_root, b->cgroup, AT_REMOVEDIR) == 0); /* nothing was left in it */
    close_fd(&b->cgroup_root);
    arena_free(&b->a);
    close(b->dir);
    CHECK(tree_remove(AT_FDCWD, b->path, &b->e) == 0);
}

/* A container that runs a shell command, with the host's programs below an empty image. */
static ContainerSpec *monitor_bench_spec(monitor_bench *b, const char *id, const char *command)
{
    ContainerSpec *s = arena_alloc(&b->a, sizeof *s);
    MountSpec *mounts = arena_alloc(&b->a, COUNT(monitor_host_dirs) * sizeof *mounts);
    slice *args = arena_alloc(&b->a, 3 * sizeof *args), *layers = arena_alloc(&b->a, sizeof *layers), *env = arena_alloc(&b->a, sizeof *env);
    for (size_t i = 0; i < COUNT(monitor_host_dirs); i++)
        mounts[i] = (MountSpec){ .destination = slice_of(arena_printf(&b->a, "/%s", monitor_host_dirs[i])),
                                 .source = slice_of(arena_printf(&b->a, "/%s", monitor_host_dirs[i])), .readonly = true };
    args[0] = SLICE("/bin/sh"), args[1] = SLICE("-c"), args[2] = slice_of(command);
    layers[0] = SLICE("base");
    env[0] = SLICE("PATH=/bin:/usr/bin");
    *s = (ContainerSpec){ .id = slice_of(id), .pod_id = SLICE("testpod"), .name = slice_of(id), .args = { args, 3 }, .env = { env, 1 },
                          .cwd = SLICE("/"), .mounts = { mounts, COUNT(monitor_host_dirs) }, .layers = { layers, 1 },
                          .user = arena_alloc(&b->a, sizeof *s->user), .pid = NamespaceMode_CONTAINER, .stop_signal = SIGTERM,
                          .log_directory = slice_of(arena_printf(&b->a, "%s/logs", b->path)),
                          .log_path = slice_of(arena_printf(&b->a, "%s/logs/%s.log", b->path, id)), .umask = 022 };
    if (b->cgroup) s->cgroup = slice_of(arena_printf(&b->a, "%s/%s", b->cgroup, id));
    CHECK(mkdirat(b->dir, arena_printf(&b->a, "pod/containers/%s", id), 0700) == 0);
    return s;
}

static int monitor_bench_start(monitor_bench *b, ContainerSpec *s)
{
    MonitorReply reply;
    return monitor_bench_call(b, (MonitorRequest){ .call = MONITOR_START, .container = s }, &reply);
}

/* The next change that the watcher is told of. */
static ContainerRun monitor_bench_next(monitor_bench *b)
{
    MonitorReply reply = { 0 };
    if (monitor_receive(b->watching, &(monitor_wait){ -1, clock_mono() + 20 * NS_PER_SEC }, &b->a, &reply, &b->e) < 0) CHECK_TEXT(slice_of(b->e.text), "");
    CHECK_INT(reply.containers.n, 1);
    return reply.containers.n ? reply.containers.p[0] : (ContainerRun){ 0 };
}

/* Waits for the end of a container; the record on disk must be there by then and say the same. */
static ContainerExit monitor_bench_exit(monitor_bench *b, const char *id)
{
    ContainerRun run;
    ContainerExit on_disk = { 0 };
    slice text = { NULL, 0 };
    do run = monitor_bench_next(b); while (run.id.n && (!slice_is(run.id, id) || !run.exit));
    text = file_read(b->dir, arena_printf(&b->a, "pod/containers/%s/exit", id), MIB, &b->a, &b->e);
    CHECK(pb_read_record(&ContainerExit_msg, text, &b->a, &on_disk, &b->e) == 0);
    if (!run.exit) return on_disk;
    CHECK_INT(on_disk.exit_code, run.exit->exit_code);
    CHECK_INT(on_disk.finished_at, run.exit->finished_at);
    CHECK(slice_eq(on_disk.reason, run.exit->reason));
    return *run.exit;
}

static slice monitor_bench_log(monitor_bench *b, const char *name)
{
    slice text = { NULL, 0 };
    text = file_read(b->dir, arena_printf(&b->a, "logs/%s", name), 64 * MIB, &b->a, &b->e);
    return log_untimed(text, &b->a);
}

#define MONITOR_NEEDS_ROOT() if (geteuid() != 0) SKIP("not root")

TEST(monitor_reports_how_a_container_ended)
{
    static const struct { const char *command; int code; const char *reason; } rows[] = {
        { "exit 0", 0, "Completed" }, { "exit 3", 3, "Error" }, { "kill -9 $$; sleep 9", 137, "Error" }, { "echo out; echo err >&2; exit 255", 255, "Error" },
    };
    MONITOR_NEEDS_ROOT();
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    for (size_t i = 0; i < COUNT(rows); i++) {
        const char *id = arena_printf(&b.a, "c%zu", i);
        /* In a PID namespace the first process is deaf to its own kill -9 (pid_namespaces(7)). */
        const char *command = i == 2 ? "exec sleep 1000" : rows[i].command;
        if (monitor_bench_start(&b, monitor_bench_spec(&b, id, command)) < 0) CHECK_TEXT(slice_of(b.e.text), "");
        CHECK(faccessat(b.dir, arena_printf(&b.a, "logs/%s.log", id), F_OK, 0) == 0);
        MonitorReply reply;
        if (i == 2) CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_KILL, .container_id = slice_of(id) }, &reply), 0);
        ContainerExit x = monitor_bench_exit(&b, id);
        CHECK_INT(x.exit_code, rows[i].code);
        CHECK_TEXT(x.reason, rows[i].reason);
        CHECK(x.started_at > 0 && x.finished_at >= x.started_at);
        CHECK_INT(monitor_bench_start(&b, &(ContainerSpec){ .id = slice_of(id) }), -1);
        CHECK_INT(b.e.code, GRPC_FAILED_PRECONDITION);
    }
    slice log = monitor_bench_log(&b, "c3.log");
    CHECK(slice_is(log, "stdout F out\nstderr F err\n") || slice_is(log, "stderr F err\nstdout F out\n"));
    monitor_bench_close(&b);
}

TEST(monitor_reports_the_step_of_a_failed_start)
{
    MONITOR_NEEDS_ROOT();
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    ContainerSpec *s = monitor_bench_spec(&b, "bad", "");
    s->args.p[0] = SLICE("/no/such/program");
    CHECK_INT(monitor_bench_start(&b, s), -1);
    CHECK(memmem(b.e.text, strlen(b.e.text), "/no/such/program", 16));
    ContainerExit x = monitor_bench_exit(&b, "bad");
    CHECK_INT(x.exit_code, 128);
    CHECK_TEXT(x.reason, "StartError");
    CHECK(x.message.n > 0);
    CHECK(faccessat(b.dir, "logs/bad.log", F_OK, 0) == 0);
    s = monitor_bench_spec(&b, "nolog", "exit 0");
    s->log_path = slice_of(arena_printf(&b.a, "%s/logs/../x.log", b.path));
    CHECK_INT(monitor_bench_start(&b, s), -1);
    CHECK_INT(b.e.code, GRPC_INVALID_ARGUMENT);
    CHECK_TEXT(monitor_bench_exit(&b, "nolog").reason, "StartError");
    monitor_bench_close(&b);
}

TEST(monitor_signals_reopens_and_forgets)
{
    MONITOR_NEEDS_ROOT();
    MonitorReply reply;
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    ContainerSpec *s = monitor_bench_spec(&b, "c", "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.05; done");
    CHECK_INT(monitor_bench_start(&b, s), 0);
    while (!slice_is(monitor_bench_log(&b, "c.log"), "stdout F ready\n")) usleep(2000);
    CHECK(renameat(b.dir, "logs/c.log", b.dir, "logs/c.log.1") == 0);
    MonitorRequest reopen = { .call = MONITOR_REOPEN_LOG, .container_id = SLICE("c") };
    CHECK_INT(monitor_bench_call(&b, reopen, &reply), 0);
    CHECK(faccessat(b.dir, "logs/c.log", F_OK, 0) == 0);
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_SIGNAL, .container_id = SLICE("c"), .signal = SIGTERM }, &reply), 0);
    CHECK_INT(monitor_bench_exit(&b, "c").exit_code, 7);
    CHECK_TEXT(monitor_bench_log(&b, "c.log"), "stdout F got\n");
    CHECK_TEXT(monitor_bench_log(&b, "c.log.1"), "stdout F ready\n");
    CHECK(unlinkat(b.dir, "logs/c.log", 0) == 0);
    CHECK_INT(monitor_bench_call(&b, reopen, &reply), -1);
    CHECK_INT(b.e.code, GRPC_FAILED_PRECONDITION);
    CHECK(faccessat(b.dir, "logs/c.log", F_OK, 0) < 0);
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_SIGNAL, .container_id = SLICE("x"), .signal = 1 }, &reply), -1);
    CHECK_INT(b.e.code, GRPC_NOT_FOUND);
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = 99 }, &reply), -1);
    CHECK_INT(b.e.code, GRPC_UNIMPLEMENTED);
    CHECK(tree_remove(b.dir, "pod/containers/c", &b.e) == 0); /* RemoveContainer: the next START forgets it */
    CHECK_INT(monitor_bench_start(&b, monitor_bench_spec(&b, "d", "exit 0")), 0);
    monitor_bench_exit(&b, "d");
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_WATCH }, &reply), 0);
    CHECK_INT(reply.containers.n, 1);
    monitor_bench_close(&b);
}

/* Runs `command` in container "c" and returns its exit code; its output is in `out`. */
static int monitor_bench_exec(monitor_bench *b, const char *command, slice *out, int64_t cancel_after)
{
    int ends[2], code = -1;
    slice args[] = { SLICE("/bin/sh"), SLICE("-c"), slice_of(command) };
    ExecSpec x = { .container_id = SLICE("c"), .args = { args, 3 } };
    MonitorRequest r = { .version = MONITOR_VERSION, .call = MONITOR_EXEC, .exec = &x };
    MonitorReply reply = { 0 };
    uint8_t *text = arena_alloc(&b->a, MIB);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    OWNED_FD null = open("/dev/null", O_RDWR | O_CLOEXEC), conn = monitor_connect(b->socket, &b->e);
    int fds[] = { null, ends[1], null }; /* stderr: a sanitizer's remarks on the launcher's stack */
    CHECK(monitor_send(conn, &r, fds, 3, &b->e) == 0);
    close(ends[1]);
    monitor_wait w = { -1, cancel_after ? clock_mono() + cancel_after : 0 };
    if (cancel_after) {
        CHECK_INT(monitor_receive(conn, &w, &b->a, &reply, &b->e), -1);
        CHECK_INT(b->e.code, GRPC_DEADLINE_EXCEEDED);
        shutdown(conn, SHUT_WR);
        w.deadline = clock_mono() + 60 * NS_PER_SEC; /* only ends what never happens */
    }
    if (monitor_receive(conn, &w, &b->a, &reply, &b->e) == 0 && monitor_verdict(&reply, &b->e) == 0) code = reply.exit_code;
    ssize_t n = code < 0 ? 0 : read_all(ends[0], text, MIB);
    close(ends[0]);
    *out = (slice){ text, n < 0 ? 0 : (size_t)n };
    return code;
}

TEST(monitor_executes_in_a_container_and_kills_when_nobody_waits)
{
    MONITOR_NEEDS_ROOT();
    slice out;
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    CHECK_INT(monitor_bench_exec(&b, "true", &out, 0), -1);
    CHECK_INT(b.e.code, GRPC_NOT_FOUND);
    CHECK_INT(monitor_bench_start(&b, monitor_bench_spec(&b, "c", "exec sleep 1000")), 0);
    CHECK_INT(monitor_bench_exec(&b, "echo hello; exit 4", &out, 0), 4);
    CHECK_TEXT(out, "hello\n");
    CHECK_INT(monitor_bench_exec(&b, "exec sleep 1000", &out, 100 * NS_PER_MS), 137);
    MonitorReply reply;
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_KILL, .container_id = SLICE("c") }, &reply), 0);
    CHECK_INT(monitor_bench_exit(&b, "c").exit_code, 137);
    CHECK_INT(monitor_bench_exec(&b, "true", &out, 0), -1);
    CHECK_INT(b.e.code, GRPC_FAILED_PRECONDITION);
    monitor_bench_close(&b);
}

TEST(monitor_ends_all_of_a_container_with_its_first_process)
{
    MONITOR_NEEDS_ROOT();
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_POD); /* one PID namespace for the pod: the kernel kills nobody for us */
    if (!b.cgroup) {
        monitor_bench_close(&b);
        SKIP("no cgroup2 tree");
    }
    ContainerSpec *s = monitor_bench_spec(&b, "c", "sleep 1000 & echo started; wait $!; exit 5");
    s->pid = NamespaceMode_POD;
    if (monitor_bench_start(&b, s) < 0) CHECK_TEXT(slice_of(b.e.text), "");
    CHECK_TEXT(monitor_bench_next(&b).id, "c");
    while (!monitor_bench_log(&b, "c.log").n) usleep(2000);
    MonitorReply reply;
    int64_t began = clock_mono();
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_SIGNAL, .container_id = SLICE("c"), .signal = SIGKILL }, &reply), 0);
    CHECK_INT(monitor_bench_exit(&b, "c").exit_code, 137); /* the sleep held the pipe and the cgroup */
    CHECK(clock_mono() - began < MONITOR_DRAIN);
    CHECK(faccessat(b.cgroup_root, arena_printf(&b.a, "%s/c", b.cgroup), F_OK, 0) < 0);
    monitor_bench_close(&b);
}

TEST(monitor_removes_the_cgroups_of_execs_even_of_those_that_left_a_daemon)
{
    MONITOR_NEEDS_ROOT();
    slice out;
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    if (!b.cgroup) {
        monitor_bench_close(&b);
        SKIP("no cgroup2 tree");
    }
    CHECK_INT(monitor_bench_start(&b, monitor_bench_spec(&b, "c", "exec sleep 1000")), 0);
    const char *first = arena_printf(&b.a, "%s/c/exec-0", b.cgroup), *second = arena_printf(&b.a, "%s/c/exec-1", b.cgroup);
    CHECK_INT(monitor_bench_exec(&b, "sleep 1000 >/dev/null 2>&1 & echo $!", &out, 0), 0);
    CHECK(faccessat(b.cgroup_root, first, F_OK, 0) == 0);
    CHECK_INT(monitor_bench_exec(&b, arena_printf(&b.a, "kill -9 %d", atoi((const char *)out.p)), &out, 0), 0);
    CHECK(faccessat(b.cgroup_root, second, F_OK, 0) < 0);
    /* The killed one leaves its cgroup before the exec that killed it has ended, or a moment later: it
     * stays a zombie, which does not count. In the first case the cgroup has gone already. */
    OWNED_FD left = openat(b.cgroup_root, first, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (left < 0) CHECK_INT(errno, ENOENT);
    else CHECK_INT(cg_wait_empty(left, clock_mono() + 60 * NS_PER_SEC, &b.e), 0);
    CHECK_INT(monitor_bench_exec(&b, "exit 0", &out, 0), 0);
    CHECK(faccessat(b.cgroup_root, first, F_OK, 0) < 0);
    /* When the caller hangs up, what the exec has started goes, too. */
    CHECK_INT(monitor_bench_exec(&b, "sleep 1000 & echo $!; wait", &out, 2 * NS_PER_SEC), 137);
    CHECK_INT(monitor_bench_exec(&b, arena_printf(&b.a, "grep -q Z.*zombie /proc/%d/status", atoi((const char *)out.p)), &out, 0), 0);
    monitor_bench_close(&b);
}

TEST(monitor_gives_a_terminal_and_an_open_stdin)
{
    MONITOR_NEEDS_ROOT();
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    ContainerSpec *s = monitor_bench_spec(&b, "t", "test -t 0 && test -t 1 && test -t 2 && echo terminal; echo err >&2");
    s->tty = true;
    if (monitor_bench_start(&b, s) < 0) CHECK_TEXT(slice_of(b.e.text), "");
    CHECK_INT(monitor_bench_exit(&b, "t").exit_code, 0);
    CHECK_TEXT(monitor_bench_log(&b, "t.log"), "stdout F terminal\nstdout F err\n");
    s = monitor_bench_spec(&b, "i", "timeout 0.1 cat; echo $?"); /* 124: it waited for input until it was stopped */
    s->stdin = true;
    CHECK_INT(monitor_bench_start(&b, s), 0);
    CHECK_INT(monitor_bench_exit(&b, "i").exit_code, 0);
    CHECK_TEXT(monitor_bench_log(&b, "i.log"), "stdout F 124\n");
    CHECK_INT(monitor_bench_start(&b, monitor_bench_spec(&b, "n", "timeout 1 cat; echo $?")), 0);
    CHECK_INT(monitor_bench_exit(&b, "n").exit_code, 0);
    CHECK_TEXT(monitor_bench_log(&b, "n.log"), "stdout F 0\n");
    monitor_bench_close(&b);
}

TEST(monitor_shutdown_kills_everything_first)
{
    MONITOR_NEEDS_ROOT();
    MonitorReply reply;
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    CHECK_INT(monitor_bench_start(&b, monitor_bench_spec(&b, "c", "trap '' TERM; while :; do sleep 1; done")), 0);
    int pid = monitor_bench_next(&b).pid;
    kill(b.pid, SIGTERM); /* what stopping the daemon's service would send: it must not matter */
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_WATCH }, &reply), 0);
    CHECK_INT(reply.containers.n, 1);
    CHECK(reply.containers.n && reply.containers.p[0].pid == pid);
    monitor_bench_close(&b);
    CHECK(kill(pid, 0) < 0 && errno == ESRCH);
}

/* Bytes that are no request, and callers that vanish: the next one is served. */
TEST(monitor_survives_bad_requests)
{
    static const struct { const char *bytes; size_t n; } rows[] = {
        { "", 0 }, { "\1", 1 }, { "\xff\xff\xff\xff", 4 }, { "\1\0\0\1", 4 }, { "\0\0\0\0", 4 }, { "\2\0\0\0\xff\xff", 6 },
        { "\2\0\0\0\x10\x01", 6 }, { "\2\0\0\0\x10\x02", 6 }, { "\2\0\0\0\x10\x03", 6 }, { "\2\0\0\0\x10\x04", 6 }, { "\2\0\0\0\x10\x06", 6 },
    };
    MONITOR_NEEDS_ROOT();
    MonitorReply reply;
    monitor_bench b;
    monitor_bench_open(&b, NamespaceMode_CONTAINER);
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_FD conn = monitor_connect(b.socket, &b.e);
        CHECK(write_all(conn, rows[i].bytes, rows[i].n) == 0);
        if (rows[i].n > 4 || i == 4) {
            CHECK_INT(monitor_receive(conn, &(monitor_wait){ -1, clock_mono() + 60 * NS_PER_SEC }, &b.a, &reply, &b.e), 0);
            CHECK(reply.code != 0);
        }
    }
    CHECK_INT(monitor_bench_call(&b, (MonitorRequest){ .call = MONITOR_WATCH }, &reply), 0);
    monitor_bench_close(&b);
}

/* Who waits for the end of a pod may go before the answer has gone out, and another may ask. */
TEST(monitor_ends_when_nobody_waits_for_the_answer_to_SHUTDOWN)
{
    for (int again = 0; again < 2; again++) {
        monitor m = { .pause = { -1, NULL }, .cgroups.root = -1 };
        error e;
        CHECK(loop_open(&m.loop, &e) == 0);
        int peers[2] = { -1, -1 };
        for (int i = 0; i <= again; i++) {
            int ends[2];
            CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
            peers[i] = ends[1];
            static const char room[64 * KIB];
            while (send(ends[0], room, sizeof room, MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {} /* a reader that is slow */
            monitor_conn *c = calloc(1, sizeof *c);
            *c = (monitor_conn){ .socket = { ends[0], monitor_conn_ready }, .owner = &m, .next = m.conns, .busy = true };
            m.conns = c;
            CHECK(loop_watch(&m.loop, &c->socket, EPOLLIN | EPOLLRDHUP, &e) == 0);
            monitor_shutdown(c, &(MonitorRequest){ .call = MONITOR_SHUTDOWN });
            CHECK(m.over && m.closing == c && c->out.n && !m.loop.stop);
        }
        if (again) monitor_conn_drop(m.conns->next); /* the first, who was told that another has asked */
        CHECK(!m.loop.stop);
        monitor_conn_drop(m.conns);
        CHECK(m.loop.stop);
        for (int i = 0; i <= again; i++) close(peers[i]);
        loop_close(&m.loop);
    }
}
