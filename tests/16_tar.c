/* == 16. Tar and layers == */

/* The sorted names of a directory; musl has no scandirat(3). */
static int names_at(int directory, struct dirent ***names)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", directory);
    return scandir(path, names, NULL, alphasort);
}

/* Lists a tree: one line an inode, sorted, with all that an archive says about it. Times after
 * `since` are those of directories that no entry stood for. */
static void tree_list(int at, const char *prefix, time_t since, buf *out)
{
    struct dirent **names;
    int n = names_at(at, &names);
    for (int i = 0; i < n; i++) {
        struct stat st;
        char target[PATH_MAX] = "", path[2 * PATH_MAX], hex[65];
        const char *name = names[i]->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") ||
            fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
            free(names[i]);
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", prefix, name);
        if (S_ISLNK(st.st_mode) && readlinkat(at, name, target, sizeof target - 1) < 0) abort();
        buf_printf(out, "%s %o %u:%u n%ld s%lld d%llx t%lld.%09ld -> %s", path, st.st_mode,
                   st.st_uid, st.st_gid, S_ISDIR(st.st_mode) ? 0L : (long)st.st_nlink,
                   S_ISDIR(st.st_mode) ? 0LL : (long long)st.st_size,
                   (unsigned long long)st.st_rdev,
                   st.st_mtim.tv_sec >= since ? -1LL : (long long)st.st_mtim.tv_sec,
                   st.st_mtim.tv_sec >= since ? 0L : st.st_mtim.tv_nsec, target);
        int fd = S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)
                     ? openat(at, name, O_RDONLY | O_NOFOLLOW)
                     : -1;
        if (S_ISREG(st.st_mode) && st.st_size < 64 * MIB) {
            uint8_t bytes[4096], hash[32];
            sha256 s;
            sha256_init(&s);
            for (ssize_t got; (got = read(fd, bytes, sizeof bytes)) > 0;)
                sha256_add(&s, bytes, (size_t)got);
            sha256_end(&s, hash);
            hex_encode(hash, 32, hex);
            buf_str(out, hex);
        }
        buf_byte(out, '\n');
        if (S_ISDIR(st.st_mode)) tree_list(fd, path, since, out);
        close_fd(&fd);
        free(names[i]);
    }
    if (n >= 0) free(names);
}

static int tar_unpack_bytes(slice bytes, int root, size_t most, error *e)
{
    drip_source drip = { { drip_read }, bytes, most, 7 };
    decompressor d;
    tar_totals totals;
    tar_options options = { .allow_devices = true };
    source *s = decompress_open(&d, &drip.source, e);
    if (!s) return -1;
    int done = tar_unpack(s, root, &options, &totals, e);
    decompress_close(&d);
    return done;
}

/* What lies outside the root of an unpacking and must be as before: the directory beside it, files
 * that the archives' links point at, and what the host has there. */
static const char *const canaries[] = { "/tmp/krun-target", "/tmp/krun-chmod", "/tmp/krun-x",
                                        "/tmp/krun-escape/file" };

static void canaries_make(int base)
{
    mkdirat(base, "beside", 0751);
    close(openat(base, "canary", O_CREAT | O_WRONLY | O_EXCL, 0600));
    mkdir("/tmp/krun-escape", 0755);
    for (size_t i = 0; i < COUNT(canaries); i++) {
        int fd = open(canaries[i], O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (write(fd, "canary", 6) != 6) abort();
        close(fd);
    }
}

static void canaries_list(int base, buf *out)
{
    static const char *const others[] = {
        "/tmp/krun-escape", "/etc/passwd", "/etc/shadow", "/etc", "/", "/proc",
        "/tmp/evil",        "/etc/evil",   "/evil",       "/x"
    };
    struct stat st;
    for (size_t i = 0; i < COUNT(canaries) + COUNT(others) + 3; i++) {
        const char *const beside[] = { "beside", "canary", "." };
        bool ours = i >= COUNT(canaries) + COUNT(others);
        const char *path = i < COUNT(canaries) ? canaries[i]
                           : ours              ? beside[i - COUNT(canaries) - COUNT(others)]
                                               : others[i - COUNT(canaries)];
        if (fstatat(ours ? base : AT_FDCWD, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
            buf_printf(out, "%s is not there\n", path);
        else
            buf_printf(out, "%s %o %u %u %lld %lld\n", path, st.st_mode, st.st_uid, st.st_gid,
                       S_ISDIR(st.st_mode) ? 0 : (long long)st.st_size,
                       S_ISDIR(st.st_mode)
                           ? 0
                           : (long long)st.st_mtim.tv_nsec + st.st_mtim.tv_sec * 1000000000LL +
                                 (long long)st.st_nlink);
    }
    struct dirent **names;
    int n = names_at(base, &names);
    for (int i = 0; i < n; i++) buf_printf(out, "%s\n", names[i]->d_name), free(names[i]);
    free(names);
    if (stat("/tmp", &st) == 0) buf_printf(out, "/tmp %o\n", st.st_mode);
}

TEST(tar_hostile_archives_are_contained_and_judged_as_listed) /* T30, T32, T33 */
{
    OWNED_ARENA a = arena_make(256 * MIB);
    slice list, bytes;
    char base_path[PATH_MAX];
    if (geteuid() != 0) SKIP("needs root");
    OWNED_FD base = temp_dir(base_path);
    error e = { 0 };
    CHECK(read_vector("tar-hostile/EXPECTED.tsv", &a, &list));
    canaries_make(base);
    while (list.n) {
        slice line = slice_cut(&list, '\n'), file = slice_cut(&line, '\t'),
              verdict = slice_cut(&line, '\t');
        if (!file.n || file.p[0] == '#') continue;
        CHECK(read_vector(arena_printf(&a, "tar-hostile/%.*s", PR(file)), &a, &bytes));
        for (size_t most = 1; most < 1000000; most = most * 1000 + 1) {
            OWNED_BUF before = { 0 }, after = { 0 };
            if (most == 1 && bytes.n > MIB) continue;
            mkdirat(base, "root", 0755);
            canaries_list(base, &before);
            OWNED_FD root = openat(base, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            int done = tar_unpack_bytes(bytes, root, most, &e);
            canaries_list(base, &after);
            bool same = slice_eq(buf_view(&before), buf_view(&after));
            bool good = same && (slice_is(verdict, "contain") ||
                                 (done == 0) == slice_is(verdict, "accept"));
            if (!good)
                fprintf(stderr, "%.*s: %d, wanted %.*s, %s; %s\n", PR(file), done, PR(verdict),
                        done ? e.text : "", same ? "" : "NOT CONTAINED");
            CHECK(good);
            CHECK_INT(tree_remove(base, "root", &e), 0);
        }
    }
    for (size_t i = 0; i < COUNT(canaries); i++) unlink(canaries[i]);
    rmdir("/tmp/krun-escape");
    CHECK_INT(tree_remove(AT_FDCWD, base_path, &e), 0);
}

/* Unpacks a list of entries, given as rows; returns the root. */
typedef struct { char type; const char *name, *link; uint32_t mode; } tar_row;

static int tar_unpack_rows(const tar_row *rows, size_t n, int root, error *e)
{
    OWNED_BUF archive = { 0 };
    for (size_t i = 0; i < n; i++) {
        tar_entry entry = { .type = rows[i].type,
                            .name = slice_of(rows[i].name),
                            .link = slice_of(rows[i].link),
                            .mode = rows[i].mode,
                            .mtime = { 1000 + (time_t)i, 5 },
                            .size = rows[i].type == '0' ? 3 : 0 };
        tar_put_header(&archive, &entry);
        if (entry.size) buf_str(&archive, "abc"), tar_put_padding(&archive, 3);
    }
    tar_put_end(&archive);
    return tar_unpack_bytes(buf_view(&archive), root, 1000, e);
}

TEST(tar_unpack_makes_1024_levels_and_not_one_more)
{
    if (geteuid() != 0) SKIP("needs root");
    char path[PATH_MAX], name[2 * (TAR_DEPTH_MAX + 1) + 1];
    for (int levels = TAR_DEPTH_MAX; levels <= TAR_DEPTH_MAX + 1; levels++) {
        error e;
        for (int i = 0; i < levels; i++) memcpy(name + 2 * i, "d/", 3);
        const tar_row deep = { '5', name, "", 0755 };
        OWNED_FD root = temp_dir(path);
        CHECK_INT(tar_unpack_rows(&deep, 1, root, &e), levels > TAR_DEPTH_MAX ? -1 : 0);
        CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
    }
}

TEST(tar_unpack_gives_overlay_what_the_layer_says) /* T33 */
{
    if (geteuid() != 0) SKIP("needs root");
    static const tar_row rows[] = {
        { '5', "d/", "", 0700 },          { '0', "d/x", "", 0644 },
        { '0', "d/.wh..wh..opq", "", 0 }, { '0', ".wh.gone", "", 0 },
        { '0', ".wh.again", "", 0 },      { '5', "again", "", 0755 },
        { '0', "d/.wh.x", "", 0 },        { '5', "e", "", 0750 },
        { '0', ".wh.e", "", 0 },          { '0', ".wh..wh.plnk", "", 0 },
        { '0', ".wh..wh.plnk/1", "", 0 }, { '0', "file", "", 0644 },
        { '0', "file/.wh.x", "", 0 },     { '0', "file/sub/.wh..wh..opq", "", 0 },
        { '1', ".wh.linked", "in/a/layer/below", 0 }, { '2', ".wh.symbolic", "file", 0 }, /* as docker wrote them */
    };
    static const char *const white[] = { "gone", "linked", "symbolic" };
    char path[PATH_MAX], value[8];
    OWNED_FD root = temp_dir(path);
    error e = { 0 };
    struct stat st;
    int done = tar_unpack_rows(rows, COUNT(rows), root, &e);
    if (done < 0 && e.sys == EPERM) SKIP("needs CAP_SYS_ADMIN");
    CHECK_INT(done, 0);
    for (size_t i = 0; i < COUNT(white); i++)
        CHECK(fstatat(root, white[i], &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == 0);
    CHECK(fstatat(root, "d/x", &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
          st.st_size == 3);
    CHECK(fstatat(root, "d", &st, 0) == 0 && st.st_mtim.tv_sec == 1000 && st.st_mtim.tv_nsec == 5);
    CHECK(fstatat(root, ".wh..wh.plnk", &st, AT_SYMLINK_NOFOLLOW) < 0);
    CHECK(fstatat(root, "file", &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode));
    const char *const opaque[] = { "d", "again", "e" };
    for (size_t i = 0; i < COUNT(opaque); i++) {
        OWNED_FD fd = openat(root, opaque[i], O_RDONLY | O_DIRECTORY);
        CHECK(fgetxattr(fd, "trusted.overlay.opaque", value, sizeof value) == 1 && value[0] == 'y');
    }
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_unpack_refuses_names_that_could_mean_another_place)
{
    static const struct { tar_row row; const char *want; } rows[] = {
        { { '0', "../x", "", 0 }, "unpack ../x: tar: the name has \"..\" in it" },
        { { '0', "a/../x", "", 0 }, "unpack a/../x: tar: the name has \"..\" in it" },
        { { '5', "..", "", 0 }, "unpack ..: tar: the name has \"..\" in it" },
        { { '0', "/", "", 0 }, "unpack /: tar: the root is no directory" },
        { { '2', ".", "/etc", 0 }, "unpack .: tar: the root is no directory" },
        { { '0', "", "", 0 }, "unpack : tar: an entry without a name" },
        { { '0', "a/.wh.", "", 0 }, "unpack a/.wh.: tar: a whiteout of no name" },
        { { '0', ".wh...", "", 0 }, "unpack .wh...: tar: a whiteout of no name" },
        { { '1', "h", "../x", 0 }, "unpack h: tar: the name has \"..\" in it" },
        { { '1', "h", ".", 0 }, "unpack h: tar: a hard link to what is no file of this archive" },
        { { '0', "e\x1b[1m\n", "", 0 }, NULL },
    };
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e = { 0 };
        int done = tar_unpack_rows(&rows[i].row, 1, root, &e);
        CHECK_INT(done, rows[i].want ? -1 : 0);
        if (rows[i].want) CHECK_TEXT(slice_of(e.text), rows[i].want);
    }
    error e;
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_unpack_stops_at_its_limits)
{
    OWNED_BUF archive = { 0 };
    tar_entry entry = { .type = '0', .name = SLICE("f"), .size = 1000 };
    uint8_t bytes[1000] = { 0 };
    for (int i = 0; i < 10; i++)
        tar_put_header(&archive, &entry), buf_add(&archive, bytes, 1000),
            tar_put_padding(&archive, 1000);
    static const struct { tar_options o; bool good;
    } rows[] = {
        { { .max_bytes = 10000 }, true },
        { { .max_bytes = 9999 }, false },
        { { .max_entries = 10 }, true },
        { { .max_entries = 9 }, false },
    };
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    for (size_t i = 0; i < COUNT(rows); i++) {
        mem_source m;
        tar_totals t;
        error e = { 0 };
        int done = tar_unpack(mem_source_open(&m, buf_view(&archive)), root, &rows[i].o, &t, &e);
        CHECK_INT(done, rows[i].good ? 0 : -1);
        if (!rows[i].good) CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    }
    error e;
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* Gives the same bytes again and again, so many times. */
typedef struct { source source; slice bytes; size_t at, times; } echo_source;

static ssize_t echo_read(source *s, uint8_t *p, size_t n, error *e)
{
    echo_source *echo = OWNER(s, echo_source, source);
    (void)e;
    if (!echo->times) return 0;
    n = MIN(n, echo->bytes.n - echo->at);
    memcpy(p, echo->bytes.p + echo->at, n);
    echo->at += n;
    if (echo->at == echo->bytes.n) echo->at = 0, echo->times--;
    return (ssize_t)n;
}

/* T35: what is no content of a file has its limit too, wherever it stands. 2 GiB for each row, of
 * which little more than the limit is looked at. */
TEST(tar_unpack_stops_in_a_stream_that_only_costs_time)
{
    static const uint8_t zeros[TAR_BLOCK];
    OWNED_BUF unknown = { 0 }, global = { 0 }, orphans = { 0 };
    tar_put_header(&unknown, &(tar_entry){ .type = 'V', .name = SLICE("v"), .size = MIB });
    for (int i = 0; i < MIB / TAR_BLOCK; i++) buf_add(&unknown, zeros, TAR_BLOCK);
    tar_put_header(&global, &(tar_entry){ .type = 'g', .name = SLICE("g") });
    tar_put_header(&orphans, &(tar_entry){ .type = 'x', .name = SLICE("x") });
    const slice rows[] = { { zeros, TAR_BLOCK }, buf_view(&unknown), buf_view(&global),
                           buf_view(&orphans) };
    const tar_options limits = { .max_bytes = MIB, .max_entries = 256 };
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    for (size_t i = 0; i < COUNT(rows); i++) {
        echo_source echo = { { echo_read }, rows[i], 0, 2U * 1024 * MIB / rows[i].n };
        size_t all = echo.times;
        tar_totals t;
        error e = { 0 };
        CHECK_INT(tar_unpack(&echo.source, root, &limits, &t, &e), -1);
        CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
        CHECK((all - echo.times) * rows[i].n < 4 * MIB);
    }
    error e;
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* T35: 1 GiB of zeros, as a hundred members of 10 MiB, is stopped where a layer must end. */
TEST(tar_unpack_of_a_bomb_stops_at_the_limit)
{
    OWNED_ARENA a = arena_make(MIB);
    slice member;
    char path[PATH_MAX];
    OWNED_FD root = temp_dir(path);
    const tar_options limits = { .max_bytes = 16 * MIB, .max_entries = 1 };
    decompressor d;
    tar_totals t;
    error e = { 0 };
    CHECK(read_vector("gzip-cases/bomb-10m.gz", &a, &member));
    echo_source echo = { { echo_read }, member, 0, 100 };
    source *s = decompress_open(&d, &echo.source, &e);
    CHECK_INT(s ? tar_unpack(s, root, &limits, &t, &e) : 0, -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK(echo.times > 90);
    decompress_close(&d);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* T35: a million members without content take time that grows as their number does. */
TEST(tar_reader_takes_a_million_empty_members)
{
    OWNED_BUF member = { 0 };
    tar_reader t;
    tar_entry entry;
    error e = { 0 };
    tar_put_header(&member, &(tar_entry){ .type = '0', .name = SLICE("empty") });
    echo_source echo = { { echo_read }, buf_view(&member), 0, 1000000 };
    size_t n = 0;
    CHECK_INT(tar_open(&t, &echo.source, &e), 0);
    while (tar_next(&t, &entry, &e) > 0) n++;
    CHECK_INT(n, 1000000);
    tar_close(&t);
}

/* Who swaps what the unpacker is at work in: d is a directory, then a link that leads out of the
 * root, then again the directory. */
typedef struct { int root; _Atomic bool stop; _Atomic int rounds; } tar_racer;

static void *tar_race(void *arg)
{
    tar_racer *r = arg;
    for (; !r->stop; r->rounds++) {
        syscall(SYS_renameat2, r->root, "d", r->root, "link", 1 << 1); /* RENAME_EXCHANGE */
        sched_yield();
    }
    return NULL;
}

/* T34, CVE-2025-47290: 10,000 swaps beside an unpacking that may fail, but makes, changes and
 * removes nothing outside. Each name is an archive of its own, so that d is looked up anew. */
TEST(tar_unpack_loses_no_race_to_a_swapped_directory)
{
    static const tar_row rows[] = {
        { '0', "d/a", "", 04755 },          { '1', "d/b", "d/a", 0644 },
        { '2', "d/c", "/etc", 0777 },       { '6', "d/p", "", 0600 },
        { '5', "d/e/f", "", 0711 },         { '0', "d/.wh.gone", "", 0 },
        { '0', "d/.wh..wh..opq", "", 0 },   { '5', "d/p", "", 0755 },
    };
    char path[PATH_MAX];
    OWNED_FD base = temp_dir(path);
    struct stat before, after;
    error e = { 0 };
    pthread_t thread;
    if (geteuid() != 0) SKIP("needs root");
    CHECK(mkdirat(base, "root", 0755) == 0 && mkdirat(base, "outside", 0750) == 0);
    OWNED_FD root = openat(base, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(mkdirat(root, "d", 0755) == 0 && symlinkat("../outside", root, "link") == 0);
    CHECK_INT(fstatat(base, "outside", &before, 0), 0);
    tar_racer racer = { .root = root };
    CHECK_INT(pthread_create(&thread, NULL, tar_race, &racer), 0);
    int made = 0;
    for (int i = 0; i < 300 || racer.rounds < 10000; i++)
        for (size_t n = 0; n < COUNT(rows); n++)
            made += tar_unpack_rows(rows + n, 1, root, &e) == 0;
    racer.stop = true;
    pthread_join(thread, NULL);
    CHECK(made > 0); /* d was found, as the one or as the other */
    CHECK_INT(fstatat(base, "outside", &after, 0), 0);
    CHECK(after.st_ctim.tv_sec == before.st_ctim.tv_sec &&
          after.st_ctim.tv_nsec == before.st_ctim.tv_nsec);
    CHECK_INT(unlinkat(base, "outside", AT_REMOVEDIR), 0); /* still empty */
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_entries_read_back_as_they_were_written)
{
    char name[300];
    memset(name, 'n', sizeof name - 1), name[sizeof name - 1] = '\0';
    tar_xattr xattrs[] = { { SLICE("security.capability"), SLICE("c") },
                           { SLICE("user.a"), SLICE("1\0\n2") } };
    const tar_entry entries[] = {
        { .type = '0',
          .name = SLICE("a"),
          .mode = 04755,
          .uid = 1,
          .gid = 2,
          .size = 5,
          .mtime = { 1700000000, 0 } },
        { .type = '0',
          .name = slice_of(name),
          .uid = 4000000000,
          .gid = 3000000,
          .mtime = { -2, 500000000 } },
        { .type = '2', .name = SLICE("l"), .link = slice_of(name), .mtime = { -1, 900000000 } },
        { .type = '1', .name = SLICE("h"), .link = SLICE("a"), .mtime = { -7, 0 } },
        { .type = '3', .name = SLICE("dev"), .major = 4095, .minor = 1048575, .mtime = { 1, 1 } },
        { .type = '5', .name = SLICE("d/"), .mode = 01777, .nxattrs = 2, .xattrs = xattrs },
    };
    OWNED_BUF archive = { 0 };
    for (size_t i = 0; i < COUNT(entries); i++) {
        tar_put_header(&archive, &entries[i]);
        if (entries[i].size) buf_str(&archive, "12345"), tar_put_padding(&archive, 5);
    }
    tar_put_end(&archive);
    CHECK_INT(archive.n % 512, 0);
    mem_source m;
    tar_reader t;
    tar_entry got;
    slice bytes;
    error e = { 0 };
    CHECK_INT(tar_open(&t, mem_source_open(&m, at_page_end(archive.p, archive.n)), &e), 0);
    for (size_t i = 0; i < COUNT(entries); i++) {
        const tar_entry *want = &entries[i];
        CHECK_INT(tar_next(&t, &got, &e), 1);
        CHECK(got.type == want->type && slice_eq(got.name, want->name) &&
              slice_eq(got.link, want->link));
        CHECK(got.mode == want->mode && got.uid == want->uid && got.gid == want->gid &&
              got.size == want->size);
        CHECK(got.major == want->major && got.minor == want->minor && got.nxattrs == want->nxattrs);
        for (size_t k = 0; k < got.nxattrs; k++)
            CHECK(slice_eq(got.xattrs[k].name, xattrs[k].name) &&
                  slice_eq(got.xattrs[k].value, xattrs[k].value));
        CHECK_INT(got.mtime.tv_sec, want->mtime.tv_sec);
        CHECK_INT(got.mtime.tv_nsec, want->mtime.tv_nsec);
        if (want->size)
            CHECK(tar_data(&t, 3, &bytes, &e) == 1 && bytes.n == 3); /* the rest is stepped over */
    }
    CHECK_INT(tar_next(&t, &got, &e), 0);
    tar_close(&t);
}

/* How many comparisons it takes to read an entry with n attributes, each twice. */
static unsigned long compared_attributes(size_t n)
{
    OWNED_BUF records = { 0 }, archive = { 0 };
    char key[64], value[16];
    for (int turn = 0; turn < 2; turn++)
        for (size_t i = 0; i < n; i++) {
            snprintf(key, sizeof key, "SCHILY.xattr.user.%zu", i * 7919 % n);
            snprintf(value, sizeof value, "%d", turn);
            tar_put_pax(&records, key, slice_of(value));
        }
    tar_header pax = { .name = "pax", .type = 'x' }, file = { .name = "f", .type = '0' };
    tar_put_number(pax.size, sizeof pax.size, records.n);
    tar_put_block(&archive, &pax);
    buf_slice(&archive, buf_view(&records));
    tar_put_padding(&archive, records.n);
    tar_put_block(&archive, &file);
    mem_source m;
    tar_reader t;
    tar_entry got = { 0 };
    error e = { 0 };
    CHECK_INT(tar_open(&t, mem_source_open(&m, buf_view(&archive)), &e), 0);
    comparisons = 0;
    CHECK_INT(tar_next(&t, &got, &e), 1);
    unsigned long made = comparisons;
    CHECK_INT(got.nxattrs, n);
    for (size_t i = 0; i < got.nxattrs; i++) CHECK_TEXT(got.xattrs[i].value, "1"); /* the last */
    tar_close(&t);
    return made;
}

TEST(tar_attributes_of_a_file_are_not_compared_each_with_each)
{
    const size_t many = 10000;
    unsigned long made = compared_attributes(many);
    CHECK(made < many * 100); /* each with each: 150,000,000 */
    if (made >= many * 100) fprintf(stderr, "%lu comparisons for %zu attributes\n", made, many);
}

TEST(tar_archive_may_end_with_the_last_files_bytes)
{
    OWNED_BUF archive = { 0 };
    tar_put_header(&archive, &(tar_entry){ .type = '0', .name = SLICE("a"), .size = 5 });
    buf_str(&archive, "12345");
    size_t whole = archive.n;
    buf_byte(&archive, 0);
    for (size_t n = whole - 1; n < whole + 2; n++) { /* cut; whole; a part of the padding */
        mem_source m;
        tar_reader t;
        tar_entry got;
        error e = { 0 };
        CHECK_INT(tar_open(&t, mem_source_open(&m, at_page_end(archive.p, n)), &e), 0);
        CHECK_INT(tar_next(&t, &got, &e), 1);
        CHECK_INT(tar_next(&t, &got, &e), n < whole ? -1 : 0);
        tar_close(&t);
    }
}

TEST(tar_unpack_sets_owner_mode_and_attributes_but_not_the_overlays) /* R10 */
{
    /* struct vfs_cap_data, revision 2: effective, CAP_NET_RAW permitted (capabilities(7)). */
    static const char capability[20] = "\1\0\0\2\0\x20\0\0";
    tar_xattr xattrs[] = {
        { SLICE("security.capability"), { (const uint8_t *)capability, 20 } },
        { SLICE("user.a"), SLICE("1\0\n2") },
        { SLICE("trusted.overlay.opaque"), SLICE("y") },
        { SLICE("user.overlay.opaque"), SLICE("y") },
        { SLICE("trusted.x"), SLICE("y") },
        { SLICE("security.selinux"), SLICE("y") },
    };
    tar_entry entries[] = {
        { .type = '0',
          .name = SLICE("f"),
          .mode = 06755,
          .uid = 1000,
          .gid = 1001,
          .mtime = { 7, 8 },
          .nxattrs = COUNT(xattrs),
          .xattrs = xattrs },
        { .type = '3', .name = SLICE("null"), .mode = 0666, .major = 1, .minor = 3, .uid = 5 },
        { .type = '6', .name = SLICE("fifo"), .mode = 01620, .uid = 6 },
        { .type = '2',
          .name = SLICE("link"),
          .link = SLICE("/nowhere"),
          .uid = 7,
          .mtime = { 9, 0 },
          .nxattrs = 1,
          .xattrs = xattrs },
        { .type = '5', .name = SLICE("."), .mode = 0711, .uid = 8, .mtime = { 10, 11 } },
    };
    OWNED_BUF archive = { 0 };
    char path[PATH_MAX], list[256];
    struct stat st;
    error e = { 0 };
    if (geteuid() != 0) SKIP("needs root");
    for (size_t i = 0; i < COUNT(entries); i++) tar_put_header(&archive, &entries[i]);
    OWNED_FD root = temp_dir(path);
    int done = tar_unpack_bytes(buf_view(&archive), root, 100, &e);
    if (done < 0 && e.sys == EPERM) SKIP("needs CAP_SETFCAP and CAP_MKNOD");
    CHECK_INT(done, 0);
    CHECK(fstatat(root, "f", &st, 0) == 0 && st.st_mode == (S_IFREG | 06755) && st.st_uid == 1000 &&
          st.st_gid == 1001);
    CHECK(st.st_mtim.tv_sec == 7 && st.st_mtim.tv_nsec == 8);
    OWNED_FD fd = openat(root, "f", O_RDONLY);
    ssize_t n = flistxattr(fd, list, sizeof list);
    for (const char *name = list; name < list + MAX(n, 0); name += strlen(name) + 1)
        CHECK(!strcmp(name, "security.capability") || !strcmp(name, "user.a"));
    CHECK(fgetxattr(fd, "security.capability", list, sizeof list) == 20 &&
          !memcmp(list, capability, 20));
    CHECK(fstatat(root, "null", &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_mode == (S_IFCHR | 0666) &&
          st.st_rdev == makedev(1, 3) && st.st_uid == 5);
    CHECK(fstatat(root, "fifo", &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_mode == (S_IFIFO | 01620) &&
          st.st_uid == 6);
    CHECK(fstatat(root, "link", &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode) &&
          st.st_uid == 7 && st.st_mtim.tv_sec == 9);
    CHECK(fstat(root, &st) == 0 && st.st_mode == (S_IFDIR | 0711) && st.st_uid == 8 &&
          st.st_mtim.tv_sec == 10 && st.st_mtim.tv_nsec == 11);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_unpack_leaves_out_devices_that_are_not_allowed)
{
    OWNED_BUF archive = { 0 };
    tar_put_header(&archive, &(tar_entry){ .type = '4', .name = SLICE("sda"), .major = 8 });
    char path[PATH_MAX];
    struct stat st;
    mem_source m;
    tar_totals t;
    error e = { 0 };
    OWNED_FD root = temp_dir(path);
    CHECK_INT(tar_unpack(mem_source_open(&m, buf_view(&archive)), root,
                         &(tar_options){ .allow_devices = false }, &t, &e),
              0);
    CHECK(fstatat(root, "sda", &st, AT_SYMLINK_NOFOLLOW) < 0);
    CHECK_INT(t.entries, 1);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_unpack_keeps_a_directorys_time_whatever_comes_into_it_later)
{
    static const tar_row rows[] = {
        { '5', "d", "", 0755 },     { '0', "d/a", "", 0644 }, { '5', "d/e", "", 0755 },
        { '0', "d/e/b", "", 0644 }, { '0', "d/c", "", 0644 }, { '0', "x", "", 0644 },
        { '0', "d/a", "", 0644 },   { '2', "l", "d", 0777 },  { '0', "l/f", "", 0644 },
    };
    char path[PATH_MAX];
    struct stat st;
    error e = { 0 };
    OWNED_FD root = temp_dir(path);
    if (geteuid() != 0) SKIP("needs root");
    CHECK_INT(tar_unpack_rows(rows, COUNT(rows), root, &e), 0);
    CHECK(fstatat(root, "d", &st, 0) == 0 && st.st_mtim.tv_sec == 1000);
    CHECK(fstatat(root, "d/e", &st, 0) == 0 && st.st_mtim.tv_sec == 1002);
    CHECK(fstatat(root, "d/f", &st, 0) == 0 && st.st_mtim.tv_sec == 1008);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

static void tar_read_through(slice bytes)
{
    mem_source m;
    tar_reader t;
    tar_entry entry;
    slice piece;
    error e = { 0 };
    if (tar_open(&t, mem_source_open(&m, bytes), &e) < 0) return;
    while (tar_next(&t, &entry, &e) > 0) {
        CHECK(entry.name.p[entry.name.n] == 0 && entry.link.p[entry.link.n] == 0);
        while (tar_data(&t, UINT64_MAX, &piece, &e) > 0) {}
    }
    tar_close(&t);
}

/* Unpacks rows into a directory of its own. -1: it needs rights that we have not. */
static int layer_of_rows(const tar_row *rows, size_t n, char path[PATH_MAX], error *e)
{
    OWNED_FD root = temp_dir(path);
    if (tar_unpack_rows(rows, n, root, e) == 0) return give_fd(&root);
    CHECK_INT(e->sys, EPERM);
    return -1;
}

static bool marked(int root, const char *path)
{
    OWNED_FD fd = openat(root, path, O_RDONLY | O_DIRECTORY);
    return fd >= 0 && has_mark(fd, mark_implied);
}

TEST(tar_unpack_marks_what_the_archive_does_not_speak_of)
{
    if (geteuid() != 0) SKIP("needs root");
    static const tar_row rows[] = {
        { '5', "told/", "", 02700 },    { '0', "told/a/b/x", "", 0644 }, { '0', "told/a/y", "", 0644 },
        { '0', "later/x", "", 0644 },   { '5', "later", "", 0750 },      { '0', "gone/x", "", 0644 },
        { '0', ".wh.gone", "", 0 },     { '0', "emptied/x", "", 0644 },  { '0', "emptied/.wh..wh..opq", "", 0 },
        { '2', "link", "told", 0777 },  { '0', "link/c/z", "", 0644 },   { '0', "replaced/x", "", 0644 },
        { '0', "replaced", "", 0644 },  { '0', ".wh.hidden", "", 0 },    { '0', "hidden/in/x", "", 0644 },
        { '0', ".wh.hides", "", 0 },    { '0', "hides/.wh.x", "", 0 },
    };
    static const struct { const char *path; bool marked; } want[] = {
        { "hidden", false }, { "hidden/in", true },
        { ".", true }, { "told", false }, { "told/a", true }, { "told/a/b", true }, { "later", false },
        { "gone", false }, { "emptied", true }, { "told/c", true },
    };
    char path[PATH_MAX];
    error e = { 0 };
    struct stat st;
    OWNED_FD root = layer_of_rows(rows, COUNT(rows), path, &e);
    if (root < 0) SKIP("needs CAP_SYS_ADMIN");
    for (size_t i = 0; i < COUNT(want); i++)
        if (marked(root, want[i].path) != want[i].marked) CHECK_TEXT(slice_of(want[i].path), "marked or not");
    CHECK(fstatat(root, "told", &st, 0) == 0 && st.st_mtim.tv_sec == 1000 && st.st_mtim.tv_nsec == 5);
    CHECK(fstatat(root, "told/a/b", &st, 0) == 0 && (st.st_mode & 07777) == 0755);
    CHECK(fstatat(root, "told/a", &st, 0) == 0 && (st.st_mode & 07777) == 0755);
    CHECK(fstatat(root, "hides", &st, 0) == 0 && S_ISCHR(st.st_mode));
    OWNED_FD hidden = openat(root, "hidden", O_RDONLY | O_DIRECTORY);
    CHECK(has_mark(hidden, mark_opaque));
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* Notes how large a file was each time that it was told of. */
typedef struct { tar_watch watch; off_t sizes[8]; size_t n; } told_sizes;
static void told_size(tar_watch *w, int fd)
{
    struct stat st;
    told_sizes *t = OWNER(w, told_sizes, watch);
    if (t->n < COUNT(t->sizes) && fstat(fd, &st) == 0) t->sizes[t->n++] = st.st_size;
}

TEST(tar_unpack_tells_of_files_that_may_go_to_disk)
{
    static const uint64_t files[] = { 0, WATCH_LEAST - 1, WATCH_LEAST, 2 * WATCH_STRIDE + MIB, WATCH_STRIDE - 1 };
    static const uint64_t want[] = { WATCH_LEAST, WATCH_STRIDE, 2 * WATCH_STRIDE, 2 * WATCH_STRIDE + MIB, WATCH_STRIDE - 1 };
    OWNED_BUF archive = { 0 };
    char path[PATH_MAX], name[2] = "a";
    error e = { 0 };
    tar_totals totals;
    mem_source memory;
    told_sizes told = { .watch = { told_size } };
    OWNED_FD root = temp_dir(path);
    for (size_t i = 0; i < COUNT(files); i++, name[0]++) {
        tar_put_header(&archive, &(tar_entry){ .type = '0', .name = slice_of(name), .mode = 0644, .size = files[i] });
        for (uint64_t k = 0; k < files[i]; k++) buf_byte(&archive, 'x');
        tar_put_padding(&archive, files[i]);
    }
    tar_put_end(&archive);
    int done = tar_unpack(mem_source_open(&memory, buf_view(&archive)), root, &(tar_options){ .watch = &told.watch },
                          &totals, &e);
    if (done < 0 && e.sys == EPERM) SKIP("needs root");
    CHECK_INT(done, 0);
    CHECK_INT(told.n, COUNT(want));
    for (size_t i = 0; i < COUNT(want); i++) /* what is read at once is told of at once */
        CHECK((uint64_t)told.sizes[i] >= want[i] && (uint64_t)told.sizes[i] < want[i] + MIB);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_unpack_counts_directories_without_entries_too)
{
    OWNED_BUF archive = { 0 };
    char path[PATH_MAX], name[64];
    error e = { 0 };
    tar_totals totals;
    mem_source memory;
    OWNED_FD root = temp_dir(path);
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "%d/a/b/c/d/e/f/g/h", i);
        tar_put_header(&archive, &(tar_entry){ .type = '0', .name = slice_of(name), .mode = 0644 });
    }
    tar_put_end(&archive);
    int done = tar_unpack(mem_source_open(&memory, buf_view(&archive)), root, &(tar_options){ .max_entries = 100 },
                          &totals, &e);
    if (done < 0 && e.sys == EPERM) SKIP("needs root");
    CHECK_INT(done, -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK(totals.entries + totals.implied >= 100 && totals.entries + totals.implied < 120);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* Gathers what is written. */
typedef struct { tar_sink sink; buf all; } gather;
static int gather_write(tar_sink *to, slice bytes, error *e)
{
    (void)e;
    return buf_slice(&OWNER(to, gather, sink)->all, bytes), 0;
}

TEST(tar_inherit_gives_directories_what_the_topmost_entry_says)
{
    if (geteuid() != 0) SKIP("needs root");
    static const tar_row low[] = {
        { '5', ".", "", 0711 }, { '5', "d", "", 01777 }, { '5', "d/e", "", 0700 }, { '5', "o", "", 0700 },
        { '5', "o/in", "", 0700 }, { '5', "w", "", 0700 }, { '0', "f", "", 0644 }, { '5', "g", "", 0700 },
        { '5', "g/h", "", 0711 }, { '5', "e", "", 0711 },
    }, middle[] = {
        { '0', "d/e/x", "", 0644 }, { '0', ".wh.w", "", 0 }, { '0', "o/.wh..wh..opq", "", 0 }, { '0', "g", "", 0644 },
    }, top[] = {
        { '0', "g/h/x", "", 0644 }, { '0', "e/f/g/x", "", 0644 },
        { '0', "d/y", "", 0644 }, { '0', "w/x", "", 0644 }, { '0', "o/in/x", "", 0644 }, { '0', "f/x", "", 0644 },
        { '0', "new/x", "", 0644 },
    };
    static const struct { const char *name; uint32_t mode; } want[] = {
        { "./", 0711 }, { "d/", 01777 }, { "d/e/", 0700 }, { "e/", 0711 }, { "o/", 0700 },
    };
    char paths[3][PATH_MAX];
    error e = { 0 };
    int layers[3] = { layer_of_rows(low, COUNT(low), paths[0], &e), layer_of_rows(middle, COUNT(middle), paths[1], &e),
                      layer_of_rows(top, COUNT(top), paths[2], &e) };
    if (layers[2] < 0) SKIP("needs CAP_SYS_ADMIN");
    gather out = { .sink = { gather_write } }, packed = { .sink = { gather_write } };
    CHECK_INT(tar_inherit(layers, (bool[]){ false, true, true }, 3, &out.sink, &e), 0);
    tar_reader t;
    tar_entry entry;
    mem_source memory;
    size_t n = 0;
    CHECK_INT(tar_open(&t, mem_source_open(&memory, buf_view(&out.all)), &e), 0);
    for (; tar_next(&t, &entry, &e) > 0; n++) {
        CHECK(entry.type == '5' && n < COUNT(want));
        if (n >= COUNT(want)) break;
        CHECK_TEXT(entry.name, want[n].name);
        CHECK_INT(entry.mode, want[n].mode);
    }
    CHECK_INT(n, COUNT(want));
    tar_close(&t);
    out.all.n = 0;
    CHECK_INT(tar_inherit(layers, (bool[]){ false }, 1, &out.sink, &e), 0);
    CHECK_INT(out.all.n, 0); /* one layer: nothing to inherit from */
    CHECK_INT(tar_pack(layers[2], &packed.sink, &e), 0);
    CHECK(!memmem(packed.all.p, packed.all.n, "new/\0", 5) && memmem(packed.all.p, packed.all.n, "new/x", 5));
    for (size_t i = 0; i < COUNT(layers); i++) close_fd(&layers[i]), tree_remove(AT_FDCWD, paths[i], &e);
    buf_free(&out.all), buf_free(&packed.all);
}

TEST(tar_reader_survives_cuts_and_changed_bytes) /* T31 */
{
    static const char *const names[] = { "tar-go/pax.tar", "tar-go/sparse-formats.tar",
                                         "tar-go/gnu-multi-hdrs.tar", "tar-go/xattrs.tar" };
    OWNED_ARENA a = arena_make(64 * MIB);
    slice bytes;
    if (!vectors_dir) SKIP("no KRUN_TESTDATA");
    for (size_t i = 0; i < COUNT(names); i++) {
        if (!read_vector(names[i], &a, &bytes)) SKIP("no tar-go");
        for (size_t n = 0; n < bytes.n; n += 256) tar_read_through(at_page_end(bytes.p, n));
        slice copy = at_page_end(bytes.p, bytes.n);
        uint8_t *p = (uint8_t *)copy.p;
        for (size_t at = 0; at < bytes.n; at += 1) {
            if (!p[at]) continue;
            /* Keep the header's sum right: one byte up, another down. */
            size_t other = at / 512 * 512 + (at * 7 + 3) % 512;
            uint8_t old = p[at], old_other = p[other];
            p[at]++, p[other]--;
            tar_read_through(copy);
            p[other] = old_other, p[at] = old;
        }
    }
}

/* Unpacks with GNU tar; false if it complains or is not there. */
static bool tar_unpack_gnu(const char *file, const char *into)
{
    char *argv[] = { "tar", "--numeric-owner", "-xpf", (char *)file, "-C", (char *)into, NULL },
         *envp[] = { "PATH=/usr/bin:/bin", NULL };
    int fds[] = { -1, -1, -1 };
    error e;
    OWNED_FD pidfd = spawn(&(spawn_args){ .exec_fd = -1,
                                          .path = "/usr/bin/tar",
                                          .argv = argv,
                                          .envp = envp,
                                          .fds = fds,
                                          .nfds = 3 },
                           NULL, &e);
    return pidfd >= 0 && reap(pidfd, 0) == 0;
}

TEST(tar_archives_of_others_unpack_as_with_gnu_tar) /* T31 */
{
    /* What GNU tar takes and we refuse, or unpack another way, on purpose. */
    static const char *const others[] = {
        "pax-bad-mtime-file.tar",
        "test_read_format_tar_pax_timestamps.tar", /* a time that is no number */
        "pax-nul-path.tar",
        "pax-path-hdr.tar", /* T30's rules: NUL, orphan */
        "test_read_format_gtar_sparse_skip_entry.tar",
        "test_read_format_gtar_sparse_reuse.tar",     /* maps that lie */
        "test_read_format_tar_pax_large_attr.tar.gz", /* over the limit */
        "test_read_format_tar_empty_filename.tar",
        /* NULs before a number: as Go, which has 14 bytes here. */
        "test_read_format_tar_timestamp_overflow.tar",
    };
    static const char *const sets[] = { "tar-go", "tar-libarchive" };
    char base_path[PATH_MAX], file[PATH_MAX], gnu_path[PATH_MAX + 8];
    int compared = 0;
    if (!vectors_dir || geteuid() != 0 || access("/usr/bin/tar", X_OK) < 0)
        SKIP("needs KRUN_TESTDATA, root and GNU tar");
    OWNED_FD base = temp_dir(base_path);
    snprintf(gnu_path, sizeof gnu_path, "%s/gnu", base_path);
    time_t now = time(NULL);
    for (size_t set = 0; set < COUNT(sets); set++) {
        snprintf(file, sizeof file, "%s/%s", vectors_dir, sets[set]);
        DIR *d = opendir(file);
        if (!d) SKIP("no %s", file);
        for (struct dirent *entry; (entry = readdir(d));) {
            OWNED_ARENA a = arena_make(256 * MIB);
            OWNED_BUF ours = { 0 }, gnu = { 0 };
            slice bytes;
            error e = { 0 };
            snprintf(file, sizeof file, "%s/%s/%s", vectors_dir, sets[set], entry->d_name);
            if (!strstr(entry->d_name, ".tar") && !strstr(entry->d_name, ".tgz") &&
                !strstr(entry->d_name, ".pax"))
                continue;
            CHECK((bytes = file_read(AT_FDCWD, file, 64 * MIB, &a, &e)).p);
            mkdirat(base, "ours", 0755), mkdirat(base, "gnu", 0755);
            OWNED_FD ours_fd = openat(base, "ours", O_RDONLY | O_DIRECTORY),
                     gnu_fd = openat(base, "gnu", O_RDONLY | O_DIRECTORY);
            int done = tar_unpack_bytes(bytes, ours_fd, 1000, &e);
            bool gnu_done = tar_unpack_gnu(file, gnu_path);
            tree_list(ours_fd, "", now, &ours), tree_list(gnu_fd, "", now, &gnu);
            bool same = done == 0 && slice_eq(buf_view(&ours), buf_view(&gnu)), listed = false;
            for (size_t i = 0; i < COUNT(others); i++)
                listed = listed || !strcmp(others[i], entry->d_name);
            if (gnu_done && !same && !listed) {
                fprintf(stderr, "%s: %s\nours:\n%.*sgnu:\n%.*s", entry->d_name, done ? e.text : "",
                        PR(buf_view(&ours)), PR(buf_view(&gnu)));
                checks_failed++;
            }
            if (getenv("SHOW"))
                fprintf(stderr, "%s: gnu %d ours %d same %d %s\n", entry->d_name, gnu_done, done,
                        same, done ? e.text : "");
            compared += gnu_done && same;
            CHECK_INT(tree_remove(base, "ours", &e), 0);
            CHECK_INT(tree_remove(base, "gnu", &e), 0);
        }
        closedir(d);
    }
    CHECK(compared > 30);
    error e;
    CHECK_INT(tree_remove(AT_FDCWD, base_path, &e), 0);
}
