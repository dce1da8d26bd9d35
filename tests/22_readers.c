/* == 22. Readers of images == and the end of chapter 17, which packs what it unpacks */

typedef struct { tar_sink sink; buf all; size_t stop; } pack_memory; /* stop: fail after so many bytes */

static int pack_memory_write(tar_sink *to, slice bytes, error *e)
{
    pack_memory *m = OWNER(to, pack_memory, sink);
    buf_slice(&m->all, bytes);
    return m->stop && m->all.n > m->stop ? fail(e, GRPC_CANCELLED, "enough") : 0;
}

/* The attributes of a tree's files and directories, trusted ones too: what tree_list leaves out. */
static void xattrs_list(int at, const char *prefix, buf *out)
{
    struct dirent **names;
    int n = names_at(at, &names);
    for (int i = 0; i < n; i++) {
        char list[4096], value[1024], path[PATH_MAX];
        struct stat st;
        const char *name = names[i]->d_name;
        bool known = strcmp(name, "..") && fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0;
        OWNED_FD fd = known && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))
                          ? openat(at, name, O_RDONLY | O_NOFOLLOW) : -1;
        snprintf(path, sizeof path, "%s/%s", prefix, name);
        ssize_t size = fd < 0 ? 0 : flistxattr(fd, list, sizeof list);
        const char *sorted[64];
        size_t count = 0;
        for (const char *x = list; x < list + MAX(size, 0); x += strlen(x) + 1) sorted[count++] = x;
        qsort(sorted, count, sizeof *sorted, pack_compare);
        for (size_t k = 0; k < count; k++) {
            ssize_t got = fgetxattr(fd, sorted[k], value, sizeof value);
            buf_printf(out, "%s %s ", path, sorted[k]);
            buf_add(out, value, (size_t)MAX(got, 0));
            buf_byte(out, '\n');
        }
        if (fd >= 0 && S_ISDIR(st.st_mode) && strcmp(name, ".")) xattrs_list(fd, path, out);
        free(names[i]);
    }
    if (n >= 0) free(names);
}

static void pack_tree_text(int root, buf *out)
{
    struct stat st;
    fstat(root, &st);
    buf_printf(out, ". %o %u:%u %lld.%09ld\n", st.st_mode, st.st_uid, st.st_gid,
               (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    tree_list(root, "", time(NULL) - 3600, out); /* a whiteout's time is that of its making */
    xattrs_list(root, "", out);
}

/* An archive with everything that a layer can have. */
static void pack_everything(buf *out)
{
    static const char capability[20] = "\1\0\0\2\0\x20\0\0", bytes[70000] = "first";
    static char longest[256], deep[160];
    memset(longest, 'n', 255);
    for (size_t i = 0; i + 3 < sizeof deep; i += 2) memcpy(deep + i, "d/", 2);
    tar_xattr file[] = { { SLICE("user.b"), SLICE("1\0\n2") }, { SLICE("user.a"), SLICE("") },
                         { SLICE("security.capability"), { (const uint8_t *)capability, 20 } } };
    tar_xattr directory[] = { { SLICE("user.d"), SLICE("of a directory") } };
    const tar_entry entries[] = {
        { .type = '5', .name = SLICE("./"), .mode = 0711, .uid = 8, .gid = 9, .mtime = { 10, 11 } },
        { .type = '0', .name = SLICE("z-first"), .mode = 0644, .size = sizeof bytes, .mtime = { 5, 999999999 } },
        { .type = '1', .name = SLICE("a-second"), .link = SLICE("z-first") },
        { .type = '5', .name = SLICE("dir"), .mode = 01777, .nxattrs = 1, .xattrs = directory, .mtime = { 3, 4 } },
        { .type = '1', .name = SLICE("dir/third"), .link = SLICE("z-first") },
        { .type = '0', .name = SLICE("dir/.wh..wh..opq") },
        { .type = '0', .name = SLICE("dir/.wh.gone") },
        { .type = '0', .name = SLICE(".wh.at-the-top") },
        { .type = '5', .name = SLICE("again"), .mode = 0755 },
        { .type = '0', .name = SLICE(".wh.again") },
        { .type = '0', .name = SLICE("su"), .mode = 04755, .uid = 4000000000, .gid = 3000000, .nxattrs = 3,
          .xattrs = file, .mtime = { -2, 500000000 } },
        { .type = '2', .name = SLICE("link"), .link = slice_of(deep), .uid = 7, .mtime = { 9, 1 } },
        { .type = '1', .name = SLICE("link-2"), .link = SLICE("link") },
        { .type = '3', .name = SLICE("null"), .mode = 0666, .major = 1, .minor = 3, .uid = 5 },
        { .type = '4', .name = SLICE("disk"), .mode = 0600, .major = 4095, .minor = 1048575 },
        { .type = '6', .name = SLICE("fifo"), .mode = 01620, .uid = 6 },
        { .type = '0', .name = slice_of(longest), .mode = 0 },
        { .type = '5', .name = slice_of(deep), .mode = 0700, .mtime = { 1, 0 } },
        { .type = '0', .name = SLICE("\xff\xfe\n not text"), .mode = 0600 },
        { .type = '5', .name = SLICE("dir-x"), .mode = 0755 }, { .type = '0', .name = SLICE("dir-x/f"), .mode = 0644 },
        { .type = '0', .name = SLICE("dir.x"), .mode = 0644 },
    };
    for (size_t i = 0; i < COUNT(entries); i++) {
        tar_put_header(out, &entries[i]);
        buf_add(out, bytes, (size_t)entries[i].size);
        tar_put_padding(out, entries[i].size);
    }
    tar_put_end(out);
}

TEST(tar_pack_of_what_was_unpacked_unpacks_to_the_same_tree)
{
    char paths[2][PATH_MAX];
    error e = { 0 };
    pack_memory packed[2] = { { .sink = { pack_memory_write } }, { .sink = { pack_memory_write } } };
    OWNED_BUF archive = { 0 }, first = { 0 }, second = { 0 };
    if (geteuid() != 0) SKIP("needs root");
    pack_everything(&archive);
    OWNED_FD one = temp_dir(paths[0]), two = temp_dir(paths[1]);
    int done = tar_unpack_bytes(buf_view(&archive), one, 1000, &e);
    if (done < 0 && e.sys == EPERM) SKIP("needs CAP_SYS_ADMIN and others");
    CHECK_INT(done, 0);
    pack_tree_text(one, &first);
    CHECK_INT(tar_pack(one, &packed[0].sink, &e), 0);
    CHECK_INT(packed[0].all.n % 512, 0);
    CHECK_INT(tar_unpack_bytes(buf_view(&packed[0].all), two, 1000, &e), 0);
    pack_tree_text(two, &second);
    CHECK(slice_eq(buf_view(&second), buf_view(&first)));
    CHECK(memmem(first.p, first.n, "dir trusted.overlay.opaque y", 28));
    CHECK(memmem(first.p, first.n, "/z-first 100644 0:0 n3 s70000", 29));
    CHECK_INT(tar_pack(two, &packed[1].sink, &e), 0);
    CHECK(slice_eq(buf_view(&packed[0].all), buf_view(&packed[1].all)));
    buf_free(&packed[0].all), buf_free(&packed[1].all);
    CHECK(tree_remove(AT_FDCWD, paths[0], &e) == 0 && tree_remove(AT_FDCWD, paths[1], &e) == 0);
}

/* What stands in a packed archive, one line an entry. */
static void pack_names(slice archive, buf *out)
{
    mem_source m;
    tar_reader t;
    tar_entry entry;
    error e = { 0 };
    CHECK_INT(tar_open(&t, mem_source_open(&m, archive), &e), 0);
    while (tar_next(&t, &entry, &e) == 1)
        buf_printf(out, "%c %.*s %.*s\n", entry.type, PR(entry.name), PR(entry.link));
    tar_close(&t);
}

TEST(tar_pack_sorts_names_and_writes_whiteouts_as_the_archive_has_them)
{
    char path[PATH_MAX];
    error e = { 0 };
    OWNED_BUF names = { 0 };
    pack_memory packed = { .sink = { pack_memory_write } };
    if (geteuid() != 0) SKIP("needs root");
    OWNED_FD root = temp_dir(path);
    CHECK_INT(mknodat(root, "zz", S_IFCHR, 0), 0);
    mkdirat(root, "b", 0755), mkdirat(root, "b/e", 0700);
    close(openat(root, "a", O_CREAT | O_WRONLY, 0644));
    close(openat(root, "b/c", O_CREAT | O_WRONLY, 0644));
    close(openat(root, "b-d", O_CREAT | O_WRONLY, 0644));
    CHECK_INT(linkat(root, "a", root, "z", 0), 0);
    CHECK_INT(mknodat(root, "b/gone", S_IFCHR, 0), 0);
    OWNED_FD b = openat(root, "b", O_RDONLY | O_DIRECTORY);
    if (fsetxattr(b, "trusted.overlay.opaque", "y", 1, 0) < 0) SKIP("needs CAP_SYS_ADMIN");
    CHECK_INT(tar_pack(root, &packed.sink, &e), 0);
    pack_names(buf_view(&packed.all), &names);
    /* The order is that of a walk with sorted names: a directory's content comes right after it. */
    CHECK_TEXT(buf_view(&names), "5 ./ \n0 a \n5 b/ \n0 b/.wh..wh..opq \n0 b/c \n5 b/e/ \n0 b/.wh.gone \n0 b-d \n"
                                 "1 z a\n0 .wh.zz \n");
    buf_free(&packed.all);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tar_pack_ends_when_nobody_wants_more_and_names_what_it_cannot_read)
{
    char path[PATH_MAX];
    error e = { 0 };
    pack_memory packed = { .sink = { pack_memory_write }, .stop = 100000 };
    OWNED_FD root = temp_dir(path);
    for (int i = 0; i < 40; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", i);
        OWNED_FD fd = openat(root, name, O_CREAT | O_WRONLY, 0644);
        CHECK_INT(ftruncate(fd, 50000), 0);
    }
    CHECK(tar_pack(root, &packed.sink, &e) < 0 && e.code == GRPC_CANCELLED);
    CHECK(packed.all.n < 100000 + 2 * PACK_CHUNK + 512);
    CHECK(strstr(e.text, "pack f"));
    buf_free(&packed.all);
    packed = (pack_memory){ .sink = { pack_memory_write } };
    CHECK(tar_pack(-1, &packed.sink, &e) < 0 && e.sys == EBADF);
    buf_free(&packed.all);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

#define NEW_ID "sha256:1111111111111111111111111111111111111111111111111111111111111111"
#define OLD_ID "sha256:2222222222222222222222222222222222222222222222222222222222222222"

TEST(doc_rewrite_changes_the_diff_ids_and_no_other_byte)
{
    static const struct { const char *before, *after; } rows[] = {
        { "{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"" OLD_ID "\"]}}",
          "{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"" NEW_ID "\"]}}" },
        { " {\n\"a\" : 1.50e3, \"x\":\"}],\\\"rootfs\\\":\\\\\", \"rootfs\" : { \"diff_ids\" : [ \"" OLD_ID "\" ,\"" OLD_ID
          "\" ] , \"type\":\"layers\" } , \"diff_ids\": [\"x\"], \"\\u0062\":[{},{\"rootfs\":[[]]}] } ",
          " {\n\"a\" : 1.50e3, \"x\":\"}],\\\"rootfs\\\":\\\\\", \"rootfs\" : { \"diff_ids\" : [\"" NEW_ID
          "\"] , \"type\":\"layers\" } , \"diff_ids\": [\"x\"], \"\\u0062\":[{},{\"rootfs\":[[]]}] } " },
        { "{\"rootfs\":{\"diff_ids\":[1]},\"rootfs\":{\"diff_ids\":[]}}",
          NULL },
        { "{}", NULL }, { "[]", NULL }, { "1", NULL }, { "\"rootfs\"", NULL }, { "{\"rootfs\":{}}", NULL },
        { "{\"rootfs\":[]}", NULL }, { "{\"rootfs\":{\"diff_id\":[]}}", NULL },
        { "{\"root\\u0066s\":{\"diff_ids\":[\"" OLD_ID "\"]}}", NULL },
        { "{\"rootfs\":{\"diff_ids\":[]},\"root\\u0066s\":{\"diff_ids\":[\"" OLD_ID "\"]}}", NULL },
        { "{\"rootfs\":{\"diff_ids\":[]}", NULL },
    };
    slice id = SLICE(NEW_ID);
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        ReadAnswer out = { 0 };
        ReadRequest q = { .is_config = true, .body = at_page_end(rows[i].before, strlen(rows[i].before)) };
        q.diff_ids.p = &id, q.diff_ids.n = 1;
        int done = doc_read(&q, &a, &out, &e);
        CHECK_INT(done, rows[i].after ? 0 : -1);
        if (rows[i].after) CHECK_TEXT(out.body, rows[i].after);
        else CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    }
}

/* An archive of n files with names of one length, open for reading. */
static void archive_of(archive_view *ar, size_t n)
{
    char path[PATH_MAX], name[32];
    OWNED_BUF tar = { 0 };
    error e = { 0 };
    int dir = temp_dir(path);
    for (size_t i = 0; i < n; i++) {
        snprintf(name, sizeof name, "file-%06zu", i * 7919 % n);
        tar_put_header(&tar, &(tar_entry){ .type = i % 2 ? '1' : '0', .name = slice_of(name),
                                           .link = SLICE("file-000000"), .mode = 0644 });
    }
    tar_put_end(&tar);
    *ar = (archive_view){ .a = arena_make(64 * MIB) };
    ar->fd = openat(dir, "tar", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK_INT(write_all(ar->fd, tar.p, tar.n), 0);
    CHECK_INT(lseek(ar->fd, 0, SEEK_SET), 0);
    CHECK_INT(archive_index_tar(ar, &e), 0);
    CHECK_INT(ar->nfiles, n);
    close(dir);
    tree_remove(AT_FDCWD, path, &e);
}

TEST(archive_finds_a_file_without_looking_at_all_of_them)
{
    archive_view ar;
    part_source part;
    int opened;
    error e = { 0 };
    char name[32];
    archive_of(&ar, 20000);
    comparisons = 0;
    for (size_t i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "./file-%06zu", i * 19);
        CHECK_INT(archive_open(&ar, slice_of(name), &part, &opened, &e), 0);
    }
    CHECK(comparisons < 1000 * 100); /* one after the other: some 10,000,000 */
    CHECK_INT(archive_open(&ar, SLICE("file-"), &part, &opened, &e), -1);
    CHECK_INT(e.code, GRPC_NOT_FOUND);
    close(ar.fd);
    arena_free(&ar.a);
}

TEST(archive_hashes_a_file_once_however_often_it_is_named)
{
    archive_view ar;
    error e = { 0 };
    archive_of(&ar, 1000);
    ar.blobs = arena_alloc(&ar.a, ARCHIVE_BLOBS * sizeof *ar.blobs);
    OWNED_BUF text = { 0 };
    buf_str(&text, "{\"Config\":\"file-000000\",\"Layers\":[\"file-000000\"");
    for (size_t i = 1; i < 128; i++) buf_printf(&text, ",\"%sfile-%06zu\"", i % 3 ? "./" : "", i * 2 % 3 ? i : 0);
    buf_str(&text, "]}");
    const json *doc = doc_parse(buf_view(&text), &ar.a, &e);
    ArchiveImage image = { 0 };
    size_t files = 0;
    CHECK_INT(archive_docker_image(&ar, doc, &image, &e), 0);
    for (size_t i = 0; i < ar.nblobs; i++)
        for (size_t k = 0; k < i; k++)
            CHECK(!ar.blobs[i].name.n || !ar.blobs[k].name.n || ar.blobs[i].at != ar.blobs[k].at);
    for (size_t i = 0; i < ar.nblobs; i++) files += ar.blobs[i].name.n > 0;
    CHECK(files < 128);
    close(ar.fd);
    arena_free(&ar.a);
}
