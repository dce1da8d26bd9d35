/* Chapters 8 and 27: whose files are read, what is mounted where. Nothing stays mounted. */

static bool tree_write(int at, const char *path, const char *text)
{
    OWNED_FD file = openat(at, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return file >= 0 && write_all(file, text, strlen(text)) == 0;
}

/* What a file below `at` holds; "" if it cannot be read. */
static slice tree_read(int at, const char *path, arena *a)
{
    slice text = { NULL, 0 };
    error e;
    if (!(text = file_read(at, path, MIB, a, &e)).p) return (slice){ NULL, 0 };
    return text;
}

/* A user of the image in `root`, as CreateContainer looks him up: by a helper. */
static int find_user(int root, const char *text, bool merge, UserAnswer *out, arena *a, error *e)
{
    UserRequest q = { slice_of(text), merge };
    return rootfs_ask_user(root, &q, out, a, e);
}

/* T39, CVE-2016-3697, CVE-2024-40635, CVE-2026-30892 */
TEST(rootfs_find_user_never_makes_a_root_by_surprise)
{
    static const char passwd[] =
        "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/:/bin/sh\napp:x:1001:1002:App:/home/app:/bin/"
        "sh\n"
        "big:x:4294967296:0::/:\nminus:x:-1:0::/:\nbare:x:5:6\n4294967296:x:0:0::/"
        ":\nhalf:x:7\nlast:x:8:9::/last:";
    static const struct {
        const char *user;
        int code;
        uint32_t uid, gid;
        const char *home;
    } rows[] = {
        { "", 0, 0, 0, "/root" },
        { "root", 0, 0, 0, "/root" },
        { "app", 0, 1001, 1002, "/home/app" },
        { "app:staff", 0, 1001, 50, "/home/app" },
        { "app:7", 0, 1001, 7, "/home/app" },
        { "1001", 0, 1001, 1002, "/home/app" },
        { "1000", 0, 1000, 0, "/" },
        { "1000:1000", 0, 1000, 1000, "/" },
        { "2147483647", 0, 2147483647, 0, "/" },
        { "last", 0, 8, 9, "/last" },
        { "bare", 0, 5, 6, "/" },
        { "2147483648", 3, 0, 0, "" },
        { "4294967296", 3, 0, 0, "" },
        { "99999999999999999999", 3, 0, 0, "" },
        { "1:4294967296", 3, 0, 0, "" },
        { "-1", 3, 0, 0, "" },
        { "+1", 3, 0, 0, "" },
        { " 1", 3, 0, 0, "" },
        { "1x", 3, 0, 0, "" },
        { "0x0", 3, 0, 0, "" },
        { ":0", 0, 0, 0, "/root" },
        { ":staff", 0, 0, 50, "/root" },
        { ":", 0, 0, 0, "/root" },
        { "1:", 0, 1, 0, "/" },
        { "app:", 0, 1001, 1002, "/home/app" },
        { "1001:", 0, 1001, 1002, "/home/app" },
        { "root:", 0, 0, 0, "/root" },
        { "::", 3, 0, 0, "" },
        { " ", 3, 0, 0, "" },
        { "1 :2", 3, 0, 0, "" },
        { "1:2:3", 3, 0, 0, "" },
        { "root:x:0", 3, 0, 0, "" },
        { "big", 3, 0, 0, "" },
        { "minus", 3, 0, 0, "" },
        { "half", 3, 0, 0, "" },
        { "nobody", 3, 0, 0, "" },
        { "app:nogroup", 3, 0, 0, "" },
        { "app:-1", 3, 0, 0, "" },
    };
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    mkdirat(root, "etc", 0755);
    CHECK(tree_write(root, "etc/passwd", passwd) &&
          tree_write(root, "etc/group", "root:x:0:\nstaff:x:50:app\n"));
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(4 * MIB);
        UserAnswer u;
        error e = { 0 };
        int done = find_user(root, rows[i].user, false, &u, &a, &e);
        if ((done < 0 ? e.code : 0) != rows[i].code)
            fprintf(stderr, "user \"%s\": %s\n", rows[i].user, e.text);
        CHECK_INT(done < 0 ? e.code : 0, rows[i].code);
        if (done < 0) continue;
        CHECK_INT(u.ids->uid, rows[i].uid);
        CHECK_INT(u.ids->gid, rows[i].gid);
        CHECK_TEXT(u.home, rows[i].home);
        CHECK(u.ids->groups.n == 1 && u.ids->groups.p[0] == rows[i].gid);
    }
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

TEST(rootfs_user_groups_are_those_that_list_the_name) /* CVE-2022-36109, CVE-2023-25173 */
{
    char path[PATH_MAX];
    OWNED_ARENA a = arena_make(4 * MIB);
    OWNED_FD root = temp_dir(path);
    UserAnswer u;
    error e;
    mkdirat(root, "etc", 0755);
    CHECK(tree_write(root, "etc/passwd", "app:x:1:2::/:\n"));
    CHECK(tree_write(root, "etc/group",
                     "a:x:10:app\nb:x:11:other,app,third\nc:x:12:appx,xapp\nd:x:2:app\ne:x:-3:"
                     "app\nf:x:13:app\ng:x:10:app\n"));
    CHECK_INT(find_user(root, "app", true, &u, &a, &e), 0);
    static const uint32_t want[] = { 2, 10, 11, 13 };
    CHECK_INT(u.ids->groups.n, COUNT(want));
    for (size_t i = 0; i < COUNT(want) && i < u.ids->groups.n; i++)
        CHECK_INT(u.ids->groups.p[i], want[i]);
    CHECK_INT(find_user(root, "app", false, &u, &a, &e), 0);
    CHECK_INT(u.ids->groups.n, 1);
    CHECK_INT(find_user(root, "77", true, &u, &a, &e), 0); /* nobody's number has no groups */
    CHECK_INT(u.ids->groups.n, 1);
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

/* How many comparisons it takes to find a user who is in n groups. */
TEST(rootfs_user_of_many_groups_costs_no_more_than_to_sort_them)
{
    OWNED_BUF group = { 0 };
    OWNED_ARENA a = arena_make(8 * MIB);
    rootfs_user u;
    error e = { 0 };
    const size_t many = 60000;
    for (size_t i = 0; i < many; i++) buf_printf(&group, "g:x:%zu:u\n", i * 7919 % many);
    UserRequest q = { SLICE("u"), true };
    account_files files = { SLICE("u:x:1:1::/:"), buf_view(&group) };
    comparisons = 0;
    CHECK_INT(rootfs_find_user(&files, &q, &u, &a, &e), 0);
    CHECK_INT(u.ids.groups.n, many);
    CHECK(comparisons < 20 * many); /* and sorting compares no bytes */
    for (size_t i = 0; i < 10000; i++) buf_printf(&group, "g:x:%zu:u\n", many + i);
    files.group = buf_view(&group);
    CHECK_INT(rootfs_find_user(&files, &q, &u, &a, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    CHECK_TEXT(slice_of(e.text), "the user is in 70000 groups, more than 65536");
}

TEST(rootfs_reads_only_small_regular_files_of_the_image) /* T40 */
{
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    UserAnswer u;
    error e;
    mkdirat(root, "etc", 0755);
    for (int i = 0; i < 6; i++) {
        OWNED_ARENA a = arena_make(4 * MIB);
        unlinkat(root, "etc/passwd", 0);
        int want = 0;
        if (i == 0) {
            OWNED_FD f = openat(root, "etc/passwd", O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
            CHECK_INT(ftruncate(f, INT64_C(2) << 30), 0);
            want = -1;
        }
        if (i == 1) { mkfifoat(root, "etc/passwd", 0644); want = -1; }
        static const char *const links[] = {
            [2] = "/proc/kcore", [3] = "/etc/passwd", [4] = "../real"
        };
        if (i >= 2 && i <= 4) CHECK_INT(symlinkat(links[i], root, "etc/passwd"), 0);
        if (i == 3) want = -1; /* a loop; while /proc/kcore is no file of the image: none */
        if (i == 4) CHECK(tree_write(root, "real", "root:x:0:0::/inside:\n"));
        int got = find_user(root, "0", false, &u, &a, &e);
        if (got != want) fprintf(stderr, "case %d: %s\n", i, e.text);
        CHECK_INT(got, want);
        if (i == 4) CHECK_TEXT(u.home, "/inside");
    }
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

/* T40, CVE-2026-47262: {file, a piece, how often, what follows, user, gRPC code}. What is larger than
 * a file may be is an error, at once; a file without a newline, with NULs or with lines too long is
 * read as far as it makes sense. */
TEST(rootfs_users_of_odd_and_endless_files)
{
    static const struct { const char *file, *piece; size_t n, times; const char *last, *user; int code; uint32_t uid; } rows[] = {
        { "etc/passwd", "x:x:1:1:::\n", 11, 10000000, "", "0", GRPC_INVALID_ARGUMENT, 0 },
        { "etc/passwd", "x:x:1:1:::\n", 11, 90000, "app:x:7:8::/:", "app", 0, 7 },
        { "etc/passwd", "", 0, 0, "app:x:7:8::/:", "app", 0, 7 },
        { "etc/passwd", "\0\0\0\0", 4, 1000, "\napp:x:7:8::/:\n", "app", 0, 7 },
        { "etc/passwd", "\0", 1, 100000, "", "app", GRPC_INVALID_ARGUMENT, 0 },
        { "etc/passwd", "y", 1, 1000000, "", "app", GRPC_INVALID_ARGUMENT, 0 },
        { "etc/passwd", "\n", 1, 1000000, "app:x:7:8::/:\n", "app", 0, 7 },
        { "etc/passwd", "::::\n", 5, 100000, "app:x:7:8::/:\n", "app", 0, 7 },
        { "etc/passwd", "\xFF\xFE\n", 3, 1000, "app:x:7:8::/:\n", "app", 0, 7 },
        { "etc/group", "member,", 7, 1000000, "\n", "app", GRPC_INVALID_ARGUMENT, 0 },
        { "etc/group", "g:x:5:", 6, 1, "app,", "app", 0, 7 },
        { "etc/group", "g:x:5:app\n", 10, 100000, "", "app", 0, 7 },
    };
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    mkdirat(root, "etc", 0755);
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(4 * MIB);
        OWNED_BUF text = { 0 };
        UserAnswer u = { 0 };
        error e = { 0 };
        for (size_t n = 0; n < rows[i].times; n++) buf_add(&text, rows[i].piece, rows[i].n);
        buf_str(&text, rows[i].last);
        unlinkat(root, "etc/group", 0);
        CHECK(tree_write(root, "etc/passwd", "app:x:7:8::/:\n"));
        OWNED_FD file = openat(root, rows[i].file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        CHECK_INT(write_all(file, text.p, text.n), 0);
        int done = find_user(root, rows[i].user, true, &u, &a, &e);
        if ((done < 0 ? e.code : 0) != rows[i].code) fprintf(stderr, "row %zu: %d %s\n", i, e.code, e.text);
        CHECK_INT(done < 0 ? e.code : 0, rows[i].code);
        if (done == 0) CHECK_INT(u.ids->uid, rows[i].uid);
        if (done == 0) CHECK(u.ids->groups.n < 65536);
    }
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

TEST(rootfs_target_stays_inside_and_makes_what_links_lead_to) /* T34, T50 */
{
    static const struct { const char *path; bool directory; int code; const char *made; } rows[] = {
        { "/a/b/c", true, 0, "a/b/c" },        { "/var/run/secrets", true, 0, "run/secrets" },
        { "/etc/resolv.conf", false, 0, "run/stub.conf" }, { "/out/x", true, 0, "escape/x" },
        { "/loop/x", true, 3, NULL },          { "/file/x", true, 13, NULL }, { "/", true, 0, "." },
        { "/rel/deep", true, 0, "a/rel/deep" },
    };
    char path[PATH_MAX], outside[PATH_MAX + 16];
    OWNED_FD root = temp_dir(path);
    error e;
    mkdirat(root, "var", 0755);
    mkdirat(root, "etc", 0755);
    CHECK(tree_write(root, "file", "") && symlinkat("/run", root, "var/run") == 0 &&
          symlinkat("../run/stub.conf", root, "etc/resolv.conf") == 0);
    CHECK(symlinkat("../../../../../../escape", root, "out") == 0 &&
          symlinkat("loop", root, "loop") == 0 && symlinkat("a/rel", root, "rel") == 0);
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_FD got =
            rootfs_target(root, rows[i].path, rows[i].directory, ROOTFS_TARGET_STEPS, &e);
        if ((got < 0 ? e.code : 0) != rows[i].code)
            fprintf(stderr, "%s: %s\n", rows[i].path, e.text);
        CHECK_INT(got < 0 ? e.code : 0, rows[i].code);
        struct stat at, want;
        if (got >= 0)
            CHECK(fstat(got, &at) == 0 && fstatat(root, rows[i].made, &want, 0) == 0 &&
                  at.st_ino == want.st_ino);
    }
    snprintf(outside, sizeof outside, "%s/../escape", path);
    CHECK(access(outside, F_OK) < 0);
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

static _Atomic bool racing;
static void *race_links(void *root) /* d is a directory, then a link out of the tree, then again */
{
    int at = *(int *)root;
    while (racing) {
        renameat(at, "d", at, "d.kept");
        symlinkat("../../../../../../../../../../tmp/krun-unit-canary", at, "d");
        unlinkat(at, "d", 0);
        renameat(at, "d.kept", at, "d");
    }
    return NULL;
}

TEST(rootfs_target_loses_no_race_to_a_swapped_directory) /* T34, CVE-2021-30465, CVE-2024-45310 */
{
    char path[PATH_MAX];
    pthread_t thread;
    error e;
    int root = temp_dir(path);
    mkdir("/tmp/krun-unit-canary", 0755);
    mkdirat(root, "d", 0755);
    racing = true;
    CHECK_INT(pthread_create(&thread, NULL, race_links, &root), 0);
    for (int i = 0; i < 3000; i++) {
        char name[32];
        snprintf(name, sizeof name, "/d/%d/x", i);
        int fd = rootfs_target(root, name, i & 1, ROOTFS_TARGET_STEPS, &e);
        if (fd >= 0) close(fd);
    }
    racing = false;
    pthread_join(thread, NULL);
    CHECK_INT(rmdir("/tmp/krun-unit-canary"), 0); /* still empty */
    close(root);
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

TEST(rootfs_places_of_krun_are_never_reached_through_links) /* CVE-2023-28642, CVE-2026-41579 */
{
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    error e;
    CHECK(symlinkat("/tmp", root, "dev") == 0 && mkdirat(root, "real", 0755) == 0 &&
          symlinkat("real", root, "proc") == 0);
    CHECK_INT(rootfs_plain_dir(root, "/dev", &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    CHECK_INT(rootfs_plain_dir(root, "/proc", &e), -1);
    CHECK_INT(rootfs_plain_dir(root, "/dev/pts", &e), -1);
    OWNED_FD made = rootfs_plain_dir(root, "/sys", &e);
    CHECK(made >= 0 && faccessat(root, "sys", F_OK, 0) == 0);
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

TEST(rootfs_layers_refuse_names_that_leave_the_directory) /* T37 */
{
    static const char *const rows[] = { "", ".", "..", "../x", "a/b", ".partial", "missing" };
    char path[PATH_MAX];
    OWNED_FD layers = temp_dir(path);
    error e;
    mkdirat(layers, "link-target", 0755);
    symlinkat("link-target", layers, "link");
    for (size_t i = 0; i < COUNT(rows); i++) {
        slice name = slice_of(rows[i]);
        CHECK_INT(rootfs_open_layers(layers, &name, 1, &e), -1);
    }
    slice link = SLICE("link");
    CHECK_INT(rootfs_open_layers(layers, &link, 1, &e), -1);
    CHECK_INT(rootfs_open_layers(layers, NULL, 0, &e), -1);
    tree_remove(AT_FDCWD, path, &(error){ 0 });
}

/* n layers, each with a file "who" that holds its number and one file of its own. */
static slice *layers_make(int dir, size_t n, arena *a)
{
    slice *names = arena_alloc(a, n * sizeof *names);
    for (size_t i = 0; i < n; i++) {
        char *name = arena_printf(a, "layer-%04zu", i);
        mkdirat(dir, name, 0755);
        tree_write(dir, arena_printf(a, "%s/who", name), name);
        tree_write(dir, arena_printf(a, "%s/own-%zu", name, i), name);
        names[i] = slice_of(name);
    }
    return names;
}

TEST(rootfs_open_layers_shows_the_top_layer_first_by_either_kernel_interface)
{
    char path[PATH_MAX];
    OWNED_ARENA a = arena_make(4 * MIB);
    error e;
    if (geteuid()) SKIP("needs root");
    OWNED_FD layers = temp_dir(path);
    slice *names = layers_make(layers, ROOTFS_LAYERS_MAX, &a);
    static const size_t counts[] = { 1, 2, 15, ROOTFS_LAYERS_MAX };
    for (size_t i = 0; i < COUNT(counts); i++)
        for (int old = 0; old < 2; old++) {
            size_t n = counts[i];
            OWNED_OVERLAY o;
            CHECK_INT(overlay_open_layers(&o, layers, names, n, &e), 0);
            if (n == 1 && old) continue;
            int fd = n == 1 ? rootfs_open_layers(layers, names, n, &e)
                     : old  ? overlay_old(&o, &e)
                            : overlay_mount(&o, &e);
            if (fd < 0) fprintf(stderr, "%zu layers, old %d: %s\n", n, old, e.text);
            CHECK(fd >= 0);
            if (fd < 0) continue;
            CHECK(slice_eq(tree_read(fd, "who", &a), names[n - 1]));
            CHECK_INT(faccessat(fd, "own-0", F_OK, 0), 0);
            CHECK_INT(faccessat(fd, arena_printf(&a, "own-%zu", n - 1), F_OK, 0), 0);
            if (n > 1) CHECK(mkdirat(fd, "new", 0755) < 0); /* read-only */
            close(fd);
        }
    CHECK_INT(rootfs_open_layers(layers, names, ROOTFS_LAYERS_MAX + 1, &e), -1);
    tree_remove(AT_FDCWD, path, &e);
}
