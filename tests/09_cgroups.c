/* Chapter 9: limits as numbers, and a real tree where there is one. */

TEST(cg_weight_is_what_runc_and_crun_make_of_shares)
{
    static const struct {
        int64_t shares;
        unsigned weight;
    } rows[] = {
        /* ceil(10^((l^2+125l)/612 - 7/34)) */
        { 1, 1 },
        { 2, 1 },
        { 3, 2 },
        { 10, 4 },
        { 100, 17 },
        { 102, 17 },
        { 256, 35 },
        { 512, 59 },
        { 1023, 100 },
        { 1024, 100 },
        { 1025, 101 },
        { 2048, 174 },
        { 4096, 303 },
        { 8277, 537 },
        { 262143, 10000 },
        { 262144, 10000 },
        { INT64_MAX, 10000 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) CHECK_INT(cg_weight(rows[i].shares), rows[i].weight);
    for (int64_t s = 2; s < 300000; s += 61) CHECK(cg_weight(s) <= cg_weight(s + 61));
}

TEST(cg_tree_is_found_by_its_type_in_the_mount_table)
{
    static const struct { const char *line, *point, *type;
    } rows[] = {
        { "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
          "/sys/fs/cgroup/unified", "cgroup2" },
        { "41 31 0:38 / /a\\040b\\134c rw shared:1 master:2 - cgroup2 none rw", "/a b\\c",
          "cgroup2" },
        { "41 31 0:38 / /x rw - tmpfs cgroup2 rw", "/x", "tmpfs" },
        { "41 31 0:38 / /cgroup2", "/cgroup2", "" },
        { "41", "", "" },
        { "41 31 0:38 / /x\\04 rw - a b c", "/x\\04", "a" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char point[PATH_MAX];
        mount_line m = mount_parse(at_page_end(rows[i].line, strlen(rows[i].line)));
        CHECK_TEXT(m.type, rows[i].type);
        CHECK_INT(mount_point_text(m, point), rows[i].point[0] != '\0');
        CHECK_TEXT(slice_of(point), rows[i].point);
    }
}

static const cg_tree full_tree = { .root = -1, .controllers = 63 }, bare_tree = { .root = -1 };

TEST(cg_check_refuses_bad_values_by_the_name_of_their_field)
{
    static HugepageLimit pages[] = { { SLICE("2MB"), 0 }, { SLICE("../x"), 1 } };
    static pb_pair unified[] = {
        { SLICE("memory.high"), SLICE("1") },   { SLICE("cgroup.procs"), SLICE("1") },
        { SLICE("memory/../x.y"), SLICE("1") }, { SLICE("memory"), SLICE("1") },
        { SLICE("memory.low"), SLICE("1\n2") }, { SLICE("x.max"), SLICE("1") },
        { SLICE("cpu.weight"), SLICE("7") },
    };
    static const struct { LinuxContainerResources r; const char *names;
    } rows[] = {
        { { .cpu_shares = 2,
            .cpu_quota = 1000,
            .cpu_period = 1000,
            .memory_limit_in_bytes = 1,
            .cpuset_cpus = SLICE("0-3,7") },
          NULL },
        { { .cpu_quota = -1, .memory_limit_in_bytes = -1, .memory_swap_limit_in_bytes = -1 },
          NULL },
        { { .hugepage_limits = { pages, 1 }, .unified = { unified, 1 } }, NULL },
        { { .unified = { unified + 6, 1 } }, NULL },
        { { .cpu_shares = -1 }, "cpu_shares" },
        { { .cpu_period = 999 }, "cpu_period" },
        { { .cpu_period = 1000001 }, "cpu_period" },
        { { .cpu_quota = 999 }, "cpu_quota" },
        { { .memory_limit_in_bytes = -2 }, "memory_limit_in_bytes" },
        { { .memory_swap_limit_in_bytes = -2 }, "memory_swap_limit_in_bytes" },
        { { .memory_limit_in_bytes = 10, .memory_swap_limit_in_bytes = 9 },
          "memory_swap_limit_in_bytes" },
        { { .cpuset_cpus = SLICE("0\n1") }, "cpuset_cpus" },
        { { .cpuset_mems = SLICE("x") }, "cpuset_mems" },
        { { .hugepage_limits = { pages + 1, 1 } }, "hugepage_limits" },
        { { .unified = { unified + 1, 1 } }, "unified" },
        { { .unified = { unified + 2, 1 } }, "unified" },
        { { .unified = { unified + 3, 1 } }, "unified" },
        { { .unified = { unified + 4, 1 } }, "unified" },
        { { .unified = { unified + 5, 1 } }, "unified" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e = { 0 };
        int done = cg_check(&full_tree, &rows[i].r, &e);
        if ((done == 0) != !rows[i].names) fprintf(stderr, "row %zu: %s\n", i, e.text);
        CHECK_INT(done, rows[i].names ? -1 : 0);
        if (!rows[i].names) continue;
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
        CHECK(strstr(e.text, rows[i].names) != NULL);
    }
    CHECK_INT(cg_check(&bare_tree, NULL, NULL), 0);
}

TEST(cg_check_refuses_hard_limits_that_no_controller_enforces) /* DESIGN section 7 */
{
    static pb_pair group[] = { { SLICE("memory.oom.group"), SLICE("1") },
                               { SLICE("memory.max"), SLICE("1") } };
    static HugepageLimit none[] = { { SLICE("2MB"), 0 } };
    static const struct { LinuxContainerResources r; bool hard;
    } rows[] = {
        { { .memory_limit_in_bytes = 1 }, true },   { { .cpu_quota = 1000 }, true },
        { { .cpuset_cpus = SLICE("0") }, true },    { { .unified = { group + 1, 1 } }, true },
        { { .cpu_shares = 100 }, false },           { { .cpu_quota = -1 }, false },
        { { .unified = { group, 1 } }, false },     { { .hugepage_limits = { none, 1 } }, false },
        { { .memory_limit_in_bytes = -1 }, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e = { 0 };
        CHECK_INT(cg_check(&bare_tree, &rows[i].r, &e), rows[i].hard ? -1 : 0);
        if (rows[i].hard) CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
        cg_tree lenient = bare_tree;
        lenient.ignore_missing = true;
        CHECK_INT(cg_check(&lenient, &rows[i].r, &e), 0);
    }
}

TEST(cg_make_makes_what_is_missing_and_remove_takes_all_away)
{
    cg_tree t;
    error e;
    char top[64], path[128];
    if (geteuid() || cg_tree_open(&t, &e) < 0) SKIP("needs root and a cgroup v2 file system");
    snprintf(top, sizeof top, "/krun-unit-%d", (int)getpid());
    snprintf(path, sizeof path, "%s/a//b/", top);
    int fd = cg_make(&t, path, &e), again = cg_make(&t, path, &e);
    if (fd < 0) fprintf(stderr, "%s\n", e.text);
    CHECK(fd >= 0 && again >= 0);
    CHECK_INT(cg_populated(fd), 0);
    CHECK_INT(cg_wait_empty(fd, 1, &e), 0);
    int below = cg_make_below(fd, "exec-1", &e);
    CHECK(below >= 0);
    CHECK_INT(cg_remove_empty(&t, path, &e), -1);
    CHECK_INT(cg_remove(&t, top, &e), 0);
    CHECK_INT(cg_remove(&t, top, &e), 0);
    CHECK_INT(cg_populated(fd), -1);
    CHECK_INT(cg_kill(fd, &e), 0); /* gone is as good as killed: T67 */
    CHECK_INT(cg_wait_empty(fd, 0, &e), 0);
    static const char *const bad[] = { "", "/", "..", "krun-unit/../..", "a/./b" };
    for (size_t i = 0; i < COUNT(bad); i++) CHECK_INT(cg_make(&t, bad[i], &e), -1);
    cg_remove(&t, "krun-unit", &e);
    cg_remove(&t, "a", &e);
    close(fd), close(again), close(below), close(t.root);
}

TEST(cg_kill_ends_a_tree_of_processes_and_wait_sees_it) /* T67 */
{
    cg_tree t;
    error e;
    char top[64];
    if (geteuid() || cg_tree_open(&t, &e) < 0) SKIP("needs root and a cgroup v2 file system");
    snprintf(top, sizeof top, "krun-unit-kill-%d", (int)getpid());
    OWNED_FD fd = cg_make(&t, top, &e);
    if (fd < 0) SKIP("%s", e.text);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK_INT(cg_set(fd, "cgroup.procs", "0", &e), 0);
        fork();
        for (;;) pause();
    }
    while (cg_populated(fd) == 0) {}
    CHECK_INT(cg_wait_empty(fd, clock_mono() + 20 * NS_PER_MS, &e), -1);
    CHECK_INT(e.code, GRPC_DEADLINE_EXCEEDED);
    CHECK_INT(cg_remove(&t, top, &e), -1);
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    CHECK_INT(cg_kill(fd, &e), 0);
    CHECK_INT(cg_wait_empty(fd, clock_mono() + 60 * NS_PER_SEC, &e), 0);
    CHECK_INT(waitpid(pid, NULL, 0), pid);
    CHECK_INT(cg_remove(&t, top, &e), 0);
    close(t.root);
}

TEST(cg_limit_writes_what_the_kernel_then_shows)
{
    cg_tree t;
    error e;
    char top[64], path[80], text[CG_TEXT_MAX];
    pb_pair unified[] = { { SLICE("memory.oom.group"), SLICE("1") },
                          { SLICE("memory.nothing"), SLICE("1") } };
    if (geteuid() || cg_tree_open(&t, &e) < 0) SKIP("needs root and a cgroup v2 file system");
    unsigned need = CG_CPU | CG_MEMORY | CG_CPUSET;
    if ((t.controllers & need) != need) {
        close(t.root);
        SKIP("this host's cgroup v2 tree has no cpu, memory or cpuset controller");
    }
    snprintf(top, sizeof top, "krun-unit-limit-%d", (int)getpid());
    snprintf(path, sizeof path, "%s/box", top);
    OWNED_FD fd = cg_make(&t, path, &e);
    LinuxContainerResources r = { .cpu_shares = 512,
                                  .cpu_quota = 50000,
                                  .memory_limit_in_bytes = 64 * MIB,
                                  .cpuset_cpus = SLICE("0"),
                                  .unified = { unified, 1 } };
    int done = cg_limit(&t, fd, &r, &e);
    if (done < 0) fprintf(stderr, "%s\n", e.text);
    CHECK_INT(done, 0);
    static const struct { const char *file, *value;
    } rows[] = {
        { "cpu.weight", "59\n" }, { "cpu.max", "50000 100000\n" }, { "memory.max", "67108864\n" },
        { "cpuset.cpus", "0\n" }, { "memory.oom.group", "1\n" },
    };
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK(cg_read(fd, rows[i].file, text) && !strcmp(text, rows[i].value));
    r = (LinuxContainerResources){ .unified = { unified + 1, 1 } };
    CHECK_INT(cg_limit(&t, fd, &r, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    r = (LinuxContainerResources){ .cpuset_cpus = SLICE("4000") };
    CHECK_INT(cg_limit(&t, fd, &r, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    CHECK_INT(cg_remove(&t, top, &e), 0);
    close(t.root);
}
