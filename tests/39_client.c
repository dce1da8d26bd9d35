/* Chapter 39: the configurations of a one-container pod, and the reading of logs. */

TEST(client_decimal_is_exact_and_refuses_the_rest)
{
    static const struct { const char *text; uint64_t unit; int64_t want; } rows[] = {
        { "1", 1000, 1000 }, { "0.5", 1000, 500 }, { "0.1", NS_PER_SEC, 100000000 }, { ".25", 100, 25 },
        { "2.", 10, 20 }, { "1.999999999", NS_PER_SEC, 1999999999 }, { "0.3", 3, 0 }, { "0", 5, 0 },
        { "9223372036854775807", 1, INT64_MAX }, { "9223372036854775808", 1, -1 },
        { "9223372036854775807.9", 1, INT64_MAX }, { "9223372037", NS_PER_SEC, -1 },
        { "", 1, -1 }, { ".", 1, -1 }, { "-1", 1, -1 }, { "1e3", 1, -1 }, { " 1", 1, -1 }, { "1.2.3", 1, -1 },
        { "1.0000000001", 1, -1 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        int64_t got = -1;
        CHECK_INT(client_decimal(slice_of(rows[i].text), rows[i].unit, &got), rows[i].want >= 0);
        CHECK_INT(got, rows[i].want);
    }
}

TEST(client_bytes_reads_units_of_1024)
{
    static const struct { const char *text; int64_t want; } rows[] = {
        { "1", 1 }, { "1b", 1 }, { "1k", 1024 }, { "64m", 64 << 20 }, { "64M", 64 << 20 }, { "1.5k", 1536 },
        { "2g", INT64_C(2) << 30 }, { "1t", INT64_C(1) << 40 }, { "m", -1 }, { "", -1 }, { "1x", -1 },
        { "1mb", -1 }, { "99999999999t", -1 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        int64_t got = -1;
        CHECK_INT(client_bytes(slice_of(rows[i].text), &got), rows[i].want >= 0);
        CHECK_INT(got, rows[i].want);
    }
}

TEST(client_uuid_is_random_and_version_4)
{
    char a[37], b[37];
    CHECK(client_uuid(a) && client_uuid(b));
    CHECK(strlen(a) == 36 && a[8] == '-' && a[14] == '4' && strchr("89ab", a[19]));
    CHECK(strcmp(a, b));
}

TEST(client_name_valid_takes_only_what_can_be_a_hostname_and_a_file)
{
    static const struct { const char *name; bool valid; } rows[] = {
        { "web", true }, { "a", true }, { "Web-1.x_y", true }, { "", false }, { "-web", false },
        { ".", false }, { "a/b", false }, { "a b", false }, { "a\n", false },
        { "123456789012345678901234567890123456789012345678901234567890123", true },
        { "1234567890123456789012345678901234567890123456789012345678901234", false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) CHECK_INT(client_name_valid(rows[i].name), rows[i].valid);
}

TEST(client_fill_user_tells_numbers_from_names)
{
    static const struct { const char *text; int64_t uid, gid; const char *name; } rows[] = {
        { "0", 0, -1, "" }, { "1000:100", 1000, 100, "" }, { "www", -1, -1, "www" },
        { "www:33", -1, 33, "www" }, { "12x", -1, -1, "12x" }, { "4294967296", -1, -1, "4294967296" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        client_pod p = { 0 };
        error e;
        CHECK_INT(client_fill_user(&p, rows[i].text, &e), 0);
        CHECK_INT(p.security.run_as_user ? p.security.run_as_user->value : -1, rows[i].uid);
        CHECK_INT(p.security.run_as_group ? p.security.run_as_group->value : -1, rows[i].gid);
        CHECK_TEXT(p.security.run_as_username, rows[i].name);
    }
    client_pod p = { 0 };
    error e;
    CHECK_INT(client_fill_user(&p, "0:wheel", &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
}

TEST(client_fill_env_takes_a_lone_name_from_our_environment)
{
    const char *env[] = { "A=1", "B=", "C=x=y", "KRUN_UNIT_SET", "KRUN_UNIT_UNSET", NULL };
    static const struct { const char *key, *value; } want[] = {
        { "A", "1" }, { "B", "" }, { "C", "x=y" }, { "KRUN_UNIT_SET", "ours" },
    };
    OWNED_ARENA a = arena_make(MIB);
    client_pod p = { 0 };
    error e;
    setenv("KRUN_UNIT_SET", "ours", 1);
    CHECK_INT(client_fill_env(&p, env, &a, &e), 0);
    CHECK_INT(p.container.envs.n, COUNT(want));
    for (size_t i = 0; i < COUNT(want) && i < p.container.envs.n; i++) {
        CHECK_TEXT(p.container.envs.p[i].key, want[i].key);
        CHECK_TEXT(p.container.envs.p[i].value, want[i].value);
    }
    const char *nameless[] = { "=1", NULL };
    CHECK_INT(client_fill_env(&p, nameless, &a, &e), -1);
}

TEST(client_fill_volumes_refuses_what_is_not_two_paths_and_a_mode)
{
    static const struct { const char *text, *from, *to; bool readonly; } rows[] = {
        { "/a:/b", "/a", "/b", false }, { "/a:/b:ro", "/a", "/b", true }, { "/a:/b:rw", "/a", "/b", false },
        { "/a", NULL, NULL, false }, { "/a:b", NULL, NULL, false }, { ":/b", NULL, NULL, false },
        { "/a:/b:rx", NULL, NULL, false }, { "", NULL, NULL, false }, { "/a:/b:ro:x", NULL, NULL, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(MIB);
        client_pod p = { 0 };
        error e;
        const char *volumes[] = { rows[i].text, NULL };
        CHECK_INT(client_fill_volumes(&p, volumes, &a, &e), rows[i].from ? 0 : -1);
        if (!rows[i].from || p.container.mounts.n != 1) continue;
        CHECK_TEXT(p.container.mounts.p[0].host_path, rows[i].from);
        CHECK_TEXT(p.container.mounts.p[0].container_path, rows[i].to);
        CHECK_INT(p.container.mounts.p[0].readonly, rows[i].readonly);
    }
}

TEST(client_fill_volumes_makes_a_relative_path_absolute)
{
    OWNED_ARENA a = arena_make(MIB);
    client_pod p = { 0 };
    error e;
    const char *volumes[] = { "./data:/data", NULL };
    char cwd[PATH_MAX], want[PATH_MAX + 16];
    CHECK(getcwd(cwd, sizeof cwd) != NULL);
    snprintf(want, sizeof want, "%s/./data", cwd);
    CHECK_INT(client_fill_volumes(&p, volumes, &a, &e), 0);
    CHECK_TEXT(p.container.mounts.p[0].host_path, want);
}

TEST(client_check_volumes_wants_them_on_the_host)
{
    static const struct { const char *text; int want; } rows[] = { { "/:/b", 0 }, { "/none/such:/b", -1 }, { "/dev/null:/b", 0 } };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(MIB);
        client_pod p = { 0 };
        error e = { 0 };
        CHECK_INT(client_fill_volumes(&p, (const char *[]){ rows[i].text, NULL }, &a, &e), 0);
        CHECK_INT(client_check_volumes(&p, &a, &e), rows[i].want);
        CHECK(!rows[i].want || strstr(e.text, "/none/such"));
    }
}

TEST(client_uuid_of_a_name_is_the_same_each_time)
{
    char a[37], b[37], c[37];
    client_uuid_of("web", a), client_uuid_of("web", b), client_uuid_of("wec", c);
    CHECK(!strcmp(a, b) && strcmp(a, c) && a[14] == '8' && strchr("89ab", a[19]));
}

TEST(client_remove_logs_takes_no_name_that_leaves_its_directory)
{
    static const char *const names[] = { "..", ".", "../x", "a/b", "x", "" };
    client c = { .socket = "/nonexistent" };
    for (size_t i = 0; i < COUNT(names); i++) {
        error e;
        CHECK_INT(client_remove_logs(&c, slice_of(names[i]), &e), 0);
        CHECK(!c.grpc); /* it did not even ask where the logs are */
    }
}

/* A log file with this content, opened. */
static void client_test_log(client_log *l, char dir[PATH_MAX], const char *text)
{
    error e;
    int at = temp_dir(dir);
    file_replace(at, "log", slice_of(text), ATOMIC, &e);
    close(at);
    *l = client_log_make(SLICE("x"), -1);
    static char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s/log", dir);
    l->path = path;
    CHECK_INT(client_log_open(l, true, &e), 0);
}

static void client_test_end(const char *dir)
{
    error e;
    CHECK_INT(tree_remove(AT_FDCWD, dir, &e), 0);
}

TEST(client_log_line_joins_partial_lines_and_keeps_spaces)
{
    OWNED_LOG l = client_log_make(SLICE("x"), -1);
    error e;
    l.timestamps = true;
    CHECK_INT(client_log_line(&l, SLICE("T1 stdout P one "), &e), 0);
    CHECK_INT(client_log_line(&l, SLICE("T2 stdout F  two"), &e), 0);
    CHECK_INT(client_log_line(&l, SLICE("T3 stdout F "), &e), 0);
    CHECK_INT(client_log_line(&l, SLICE("T4 stdout F:more x"), &e), 0);
    CHECK_TEXT(buf_view(&l.out), "T1 one  two\nT3 \nT4 x\n");
}

TEST(client_log_tail_finds_the_beginning_of_the_last_lines)
{
    static const struct { const char *text; int64_t lines; off_t at; } rows[] = {
        { "a\nb\nc\n", 1, 4 }, { "a\nb\nc\n", 2, 2 }, { "a\nb\nc\n", 3, 0 }, { "a\nb\nc\n", 9, 0 },
        { "a\nb\nc\n", 0, 6 }, { "", 1, 0 }, { "a\nb", 1, 2 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char dir[PATH_MAX];
        OWNED_LOG l;
        error e;
        client_test_log(&l, dir, rows[i].text);
        CHECK_INT(client_log_tail(&l, rows[i].lines, &e), 0);
        CHECK_INT(lseek(l.file, 0, SEEK_CUR), rows[i].at);
        client_test_end(dir);
    }
}

TEST(client_log_rotated_notices_another_file_under_the_name)
{
    char dir[PATH_MAX], old[PATH_MAX + 16];
    OWNED_LOG l;
    error e;
    client_test_log(&l, dir, "x\n");
    CHECK(!client_log_rotated(&l));
    snprintf(old, sizeof old, "%s/log.1", dir);
    CHECK_INT(rename(l.path, old), 0);
    CHECK(!client_log_rotated(&l)); /* the writer has not opened the new one yet */
    OWNED_FD at = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_INT(file_replace(at, "log", SLICE("y\n"), ATOMIC, &e), 0);
    CHECK(client_log_rotated(&l));
    client_test_end(dir);
}

TEST(client_log_rewind_notices_a_log_that_was_truncated_in_place)
{
    static const struct { const char *before, *after, *want; } rows[] = {
        { "2026-11-22T02:10:52.123456789Z stdout F one\n", "2026-11-22T02:10:52.123456789Z stdout F one\n", "one\n" },
        { "2026-11-22T02:10:52.123456789Z stdout F one\n", "", "one\n" },
        { "2026-11-22T02:10:52.123456789Z stdout F one\n", "2026-11-22T02:10:53.123456789Z stdout F b\n", "one\nb\n" },
        { "2026-11-22T02:10:52.123456789Z stdout F one\n", /* it has grown past what was read */
          "2026-11-22T02:10:53.123456789Z stdout F two\n2026-11-22T02:10:54.123456789Z stdout F three\n", "one\ntwo\nthree\n" },
        { "2026-11-22T02:10:52.123456789Z stdout F one\n2026-11-22T02:10:52.223456789Z stdout F cut o",
          "2026-11-22T02:10:53.123456789Z stdout F two\n", "one\ntwo\n" },
        { "", "2026-11-22T02:10:53.123456789Z stdout F two\n", "two\n" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char dir[PATH_MAX], shown[64] = "";
        client_log l;
        error e;
        client_test_log(&l, dir, rows[i].before);
        int shown_fd = memfd_create("shown", MFD_CLOEXEC), kept = dup(STDOUT_FILENO);
        dup2(shown_fd, STDOUT_FILENO);
        CHECK_INT(client_log_rewind(&l, &e) + client_log_drain(&l, &e), 0);
        int writer = open(l.path, O_WRONLY | O_TRUNC | O_CLOEXEC);
        CHECK(write(writer, rows[i].after, strlen(rows[i].after)) >= 0);
        close(writer);
        CHECK_INT(client_log_rewind(&l, &e) + client_log_drain(&l, &e), 0);
        CHECK_INT(client_log_rewind(&l, &e) + client_log_drain(&l, &e), 0);
        dup2(kept, STDOUT_FILENO);
        close(kept);
        CHECK(pread(shown_fd, shown, sizeof shown - 1, 0) >= 0);
        CHECK_TEXT(slice_of(shown), rows[i].want);
        close(shown_fd);
        client_log_close(&l);
        client_test_end(dir);
    }
}

TEST(client_log_wait_tells_a_closed_writer_from_a_written_line)
{
    char dir[PATH_MAX];
    OWNED_LOG l;
    int sig;
    client_test_log(&l, dir, "");
    int writer = open(l.path, O_WRONLY | O_APPEND | O_CLOEXEC);
    CHECK(write(writer, "x\n", 2) == 2);
    CHECK(!client_log_wait(&l, 1000, &sig));
    close(writer);
    CHECK(client_log_wait(&l, 1000, &sig));
    CHECK(!client_log_wait(&l, 0, &sig)); /* told once */
    client_test_end(dir);
}
