/* Chapter 24, with the fixtures of 26_pulls.c: seals of layers, damage and what follows from it, records on disk. */

/* Many files at once: in memory if this machine has /dev/shm, where they cost next to nothing. */
static int memory_dir(char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "/dev/shm/krun-unit-XXXXXX");
    return mkdtemp(path) ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : temp_dir(path);
}

/* -- seals --------------------------------------------------------------------------------------- */

static const struct timespec seal_times[2] = { { 1, 0 }, { 1700000000, 123456789 } };

/* A small tree with every kind of entry; `backwards` makes it in another order. */
static void seal_tree_make(int at, bool backwards)
{
    static const char *const names[] = { "dir", "file", "link", "fifo", "dir/deep", "hard" };
    for (size_t i = 0; i < COUNT(names); i++) {
        const char *name = names[backwards && i < 4 ? 3 - i : i];
        int fd = -1, failed = 0;
        if (!strcmp(name, "dir")) failed = mkdirat(at, name, 0755);
        else if (!strcmp(name, "link")) failed = symlinkat("target", at, name);
        else if (!strcmp(name, "fifo")) failed = mknodat(at, name, S_IFIFO | 0600, 0);
        else if (!strcmp(name, "hard")) failed = linkat(at, "file", at, name, 0);
        else {
            fd = openat(at, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
            failed = write_all(fd, "content", 7);
        }
        close_fd(&fd);
        CHECK_INT(failed, 0);
    }
    for (size_t i = COUNT(names); i--;) utimensat(at, names[i], seal_times, AT_SYMLINK_NOFOLLOW);
    futimens(at, seal_times);
}

static void seal_put_back_time(int at, const char *name) { utimensat(at, name, seal_times, AT_SYMLINK_NOFOLLOW); }
static void seal_append(int at, const char *name, const char *text)
{
    OWNED_FD fd = openat(at, name, O_WRONLY | O_APPEND | O_CLOEXEC);
    CHECK_INT(write_all(fd, text, strlen(text)), 0);
}

/* What a row does to the tree, and whether the seal has to see it. */
static void seal_unlink(int at) { unlinkat(at, "dir/deep", 0), seal_put_back_time(at, "dir"); }
static void seal_rename(int at) { renameat(at, "dir/deep", at, "dir/diep"), seal_put_back_time(at, "dir"); }
static void seal_move(int at) { renameat(at, "dir/deep", at, "deep"), seal_put_back_time(at, "dir"), futimens(at, seal_times); }
static void seal_chmod(int at) { fchmodat(at, "file", 0600, 0); }
static void seal_chmod_root(int at) { fchmod(at, 0711); }
static void seal_chown(int at) { if (fchownat(at, "link", 7, 0, AT_SYMLINK_NOFOLLOW) < 0) fchmodat(at, "file", 0600, 0); }
static void seal_touch(int at) { utimensat(at, "dir/deep", NULL, 0); }
static void seal_grow(int at) { seal_append(at, "file", "x"), seal_put_back_time(at, "file"); }
static void seal_rewrite(int at)
{
    OWNED_FD fd = openat(at, "file", O_WRONLY | O_CLOEXEC);
    CHECK_INT(write_all(fd, "CONTENT", 7), 0);
}
static void seal_other_link(int at) { unlinkat(at, "link", 0), symlinkat("another target", at, "link"), seal_put_back_time(at, "link"), futimens(at, seal_times); }
static void seal_kind(int at) { unlinkat(at, "fifo", 0), mknodat(at, "fifo", S_IFSOCK | 0600, 0), seal_put_back_time(at, "fifo"), futimens(at, seal_times); }
static void seal_read(int at)
{
    char text[8];
    const struct timespec later[2] = { { 1800000000, 0 }, { 0, UTIME_OMIT } };
    OWNED_FD fd = openat(at, "file", O_RDONLY | O_CLOEXEC);
    CHECK_INT(read_all(fd, text, sizeof text), 7);
    utimensat(at, "file", later, 0), utimensat(at, "dir", later, 0);
}
static void seal_swell(int at) /* a directory may keep the size that it once had */
{
    char name[64];
    for (int i = 0; i < 300; i++) snprintf(name, sizeof name, "dir/a-file-that-comes-and-goes-%d", i), close(openat(at, name, O_CREAT | O_CLOEXEC, 0600));
    for (int i = 0; i < 300; i++) snprintf(name, sizeof name, "dir/a-file-that-comes-and-goes-%d", i), unlinkat(at, name, 0);
    seal_put_back_time(at, "dir");
}

TEST(tree_seal_sees_whatever_changes_a_tree_and_not_who_reads_it)
{
    static const struct { void (*change)(int); bool seen; } rows[] = {
        { seal_unlink, true }, { seal_rename, true }, { seal_move, true }, { seal_chmod, true }, { seal_chmod_root, true }, { seal_chown, true },
        { seal_touch, true }, { seal_grow, true }, { seal_rewrite, true }, { seal_other_link, true }, { seal_kind, true }, { seal_read, false }, { seal_swell, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char path[PATH_MAX];
        error e = { 0 };
        tree_sum before, after;
        OWNED_FD at = temp_dir(path);
        seal_tree_make(at, false);
        CHECK_INT(tree_seal(at, 100, &before, &e), 0);
        CHECK_INT(before.entries, 7);
        CHECK_INT(before.bytes, 21); /* of two names of one file, and of another */
        rows[i].change(at);
        CHECK_INT(tree_seal(at, 100, &after, &e), 0);
        if ((before.sum != after.sum) != rows[i].seen) fprintf(stderr, "row %zu: the sum %s\n", i, rows[i].seen ? "is the same" : "differs");
        CHECK((before.sum != after.sum) == rows[i].seen);
        tree_remove(AT_FDCWD, path, &e);
    }
}

TEST(tree_seal_is_the_same_in_whatever_order_a_tree_was_made)
{
    char paths[2][PATH_MAX];
    error e = { 0 };
    tree_sum sums[2];
    for (int i = 0; i < 2; i++) {
        OWNED_FD at = temp_dir(paths[i]);
        seal_tree_make(at, i);
        CHECK_INT(tree_seal(at, 100, &sums[i], &e), 0);
    }
    CHECK(sums[0].sum == sums[1].sum && sums[0].entries == sums[1].entries && sums[0].bytes == sums[1].bytes);
    for (int i = 0; i < 2; i++) tree_remove(AT_FDCWD, paths[i], &e);
}

TEST(tree_seal_counts_blocks_and_inodes_of_a_file_with_many_names_once)
{
    char path[PATH_MAX], name[16];
    error e = { 0 };
    struct stat st;
    tree_sum empty, one, many;
    OWNED_FD at = temp_dir(path);
    CHECK_INT(tree_seal(at, 100, &empty, &e), 0);
    CHECK_INT(empty.inodes, 1);
    OWNED_FD file = openat(at, "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    for (int i = 0; i < 64; i++) CHECK_INT(write_all(file, ZEROS ZEROS ZEROS ZEROS, 256), 0);
    CHECK_INT(fsync(file) | fstat(file, &st), 0);
    CHECK_INT(tree_seal(at, 100, &one, &e), 0);
    CHECK_INT(one.disk - empty.disk, st.st_blocks * 512);
    for (int i = 0; i < 30; i++) {
        snprintf(name, sizeof name, "name%d", i);
        CHECK_INT(linkat(at, "file", at, name, 0), 0);
    }
    CHECK_INT(tree_seal(at, 100, &many, &e), 0);
    CHECK_INT(many.disk, one.disk);
    CHECK_INT(many.inodes, 2);
    CHECK_INT(many.entries, 32);
    CHECK_INT(tree_seal(at, 10, &many, &e), -1); /* the bound */
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK_INT(many.entries, 10);
    tree_remove(AT_FDCWD, path, &e);
}

/* Covers T70 for walks: 10,000 levels, with a limit of descriptors that a stack of them would break. */
TEST(tree_seal_of_a_deep_and_a_wide_tree_takes_few_descriptors)
{
    char path[PATH_MAX], name[16];
    error e = { 0 };
    tree_sum sum;
    struct rlimit old, low;
    OWNED_FD at = memory_dir(path);
    OWNED_FD deep = dup(at);
    for (int i = 0; i < 10000; i++) {
        CHECK_INT(mkdirat(deep, "d", 0700), 0);
        int next = openat(deep, "d", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (i % 100 == 0) close(openat(deep, "before", O_CREAT | O_CLOEXEC, 0600)), close(openat(deep, "zzz", O_CREAT | O_CLOEXEC, 0600));
        close_fd(&deep);
        deep = next;
    }
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "w%d", i);
        CHECK_INT(mkdirat(at, name, 0700), 0);
        snprintf(name, sizeof name, "w%d/f", i);
        close(openat(at, name, O_CREAT | O_CLOEXEC, 0600));
    }
    getrlimit(RLIMIT_NOFILE, &old);
    int top = 0; /* the highest descriptor that this process has, from whatever test */
    for (int fd = 0; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0) top = fd;
    low = (struct rlimit){ (rlim_t)top + WALK_OPEN + 3, old.rlim_max };
    setrlimit(RLIMIT_NOFILE, &low);
    CHECK_INT(tree_seal(at, 100000, &sum, &e), 0);
    setrlimit(RLIMIT_NOFILE, &old);
    CHECK_INT(sum.entries, 1 + 10000 + 200 + 1000);
    close_fd(&deep);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* -- damage -------------------------------------------------------------------------------------- */

/* A store with the fake registry's image in it, opened again as after a restart: its layers are unchecked. */
typedef struct { store_fixture x; fake f; char name[64], layer[PATH_MAX + 128], *hex; } damage_fixture;

static void damage_up(damage_fixture *d)
{
    error e;
    store_up(&d->x);
    fake_up(&d->f, NULL, NULL);
    CHECK_INT(fake_pull(&d->f, &d->x, ":1", NULL, &e), 0);
    snprintf(d->name, sizeof d->name, "127.0.0.1:%d/x:1", d->f.port);
    d->hex = d->f.image.layer_digest + 7;
    snprintf(d->layer, sizeof d->layer, "%s/layers/%s", d->x.path, d->hex);
    store_again(&d->x);
}

static void damage_down(damage_fixture *d)
{
    fake_down(&d->f);
    store_down(&d->x);
}

static int damage_check(damage_fixture *d, error *e)
{
    const ImageRecord *r = image_hold(d->x.s, slice_of(d->name));
    *e = (error){ 0 };
    int failed = r ? image_check(d->x.s, r, slice_of(d->name), -1, e) : fail(e, GRPC_NOT_FOUND, "no image");
    image_drop(d->x.s, r);
    return failed;
}

/* What is done to a layer: `hello` is its one file. */
static void damage_unlink(const char *layer) { OWNED_FD at = open(layer, O_RDONLY | O_CLOEXEC); unlinkat(at, "hello", 0); }
static void damage_empty(const char *layer) { OWNED_FD at = open(layer, O_RDONLY | O_CLOEXEC); close(openat(at, "hello", O_WRONLY | O_TRUNC | O_CLOEXEC)); }
static void damage_write(const char *layer) { OWNED_FD at = open(layer, O_RDONLY | O_CLOEXEC); seal_append(at, "hello", "!"); }
static void damage_mode(const char *layer) { OWNED_FD at = open(layer, O_RDONLY | O_CLOEXEC); fchmodat(at, "hello", 04755, 0); }
static void damage_more(const char *layer) { OWNED_FD at = open(layer, O_RDONLY | O_CLOEXEC); mkdirat(at, "evil", 0755); }
static void damage_all(const char *layer) { error e; CHECK_INT(tree_remove(AT_FDCWD, layer, &e), 0); }
static void damage_link(const char *layer) { damage_all(layer); CHECK_INT(symlink("/etc", layer), 0); }
static void damage_file(const char *layer) { damage_all(layer); close(open(layer, O_CREAT | O_CLOEXEC, 0600)); }

static const struct { void (*run)(const char *layer); const char *text; } damages[] = {
    { damage_unlink, "1 entry is missing" }, { damage_empty, "its files have 0 bytes, not 12" }, { damage_write, "its files have 13 bytes, not 12" },
    { damage_mode, "mode or time of an entry has changed" }, { damage_more, "1 entry is too many" }, { damage_all, "its directory is missing" },
    { damage_link, "its directory is missing" }, { damage_file, "its directory is missing" },
};

static void damage_is_repaired(damage_fixture *d)
{
    error e;
    struct stat st;
    char file[PATH_MAX + 160];
    CHECK(!store_has(&d->x, d->name));
    CHECK_INT(fake_pull(&d->f, &d->x, ":1", NULL, &e), 0);
    CHECK_INT(damage_check(d, &e), 0);
    snprintf(file, sizeof file, "%s/hello", d->layer);
    CHECK(stat(file, &st) == 0 && st.st_size == 12 && (st.st_mode & 07777) == 0644);
    store_again(&d->x);
    CHECK_INT(damage_check(d, &e), 0);
    images_collect(d->x.s);
    for (int i = 0; i < 200 && files_in(&d->x, "layers") != 4; i++) sleep_ns(10 * NS_PER_MS);
    CHECK_INT(files_in(&d->x, "layers"), 4); /* nothing put aside is left */
    CHECK_INT(files_in(&d->x, "images"), 2);
}

TEST(image_check_finds_a_damaged_layer_and_the_next_pull_makes_it_anew)
{
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    for (size_t i = 0; i < COUNT(damages); i++) {
        damage_fixture d;
        error e;
        damage_up(&d);
        damages[i].run(d.layer);
        CHECK(store_has(&d.x, d.name)); /* nothing is walked that nobody uses */
        CHECK_INT(damage_check(&d, &e), -1);
        CHECK_INT(e.code, GRPC_DATA_LOSS);
        if (!strstr(e.text, damages[i].text) || !strstr(e.text, d.name)) fprintf(stderr, "row %zu: %s\n", i, e.text);
        CHECK(strstr(e.text, damages[i].text) && strstr(e.text, d.name));
        damage_is_repaired(&d);
        CHECK_INT(d.f.blobs, 2);
        damage_down(&d);
    }
}

TEST(image_pull_that_finds_a_damaged_layer_makes_it_anew)
{
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    for (size_t i = 0; i < COUNT(damages); i++) {
        damage_fixture d;
        error e;
        damage_up(&d);
        damages[i].run(d.layer);
        CHECK_INT(fake_pull(&d.f, &d.x, ":2", NULL, &e), 0);
        CHECK_INT(d.f.blobs, 2);
        CHECK_INT(damage_check(&d, &e), -1); /* of the forgotten name nothing is left */
        damage_is_repaired(&d);
        damage_down(&d);
    }
}

TEST(image_check_walks_once_and_krun_check_always)
{
    damage_fixture d;
    error e;
    OWNED_ARENA a = arena_make(MIB);
    KrunCheckImagesRequest all = { 0 };
    KrunCheckImagesResponse out = { 0 };
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    CHECK_INT(damage_check(&d, &e), 0);
    damage_mode(d.layer);
    CHECK_INT(damage_check(&d, &e), 0); /* only the first use looks */
    CHECK_INT(images_check(&(check_run){ .store = d.x.s, .cancel_fd = -1, .a = &a }, &all, &out, &e), 0);
    CHECK_INT(out.images.n, 2);
    for (size_t i = 0; i < out.images.n; i++) CHECK_INT(out.images.p[i].damage.n > 0, slice_is(out.images.p[i].name, d.name));
    damage_is_repaired(&d);
    CHECK_INT(images_check(&(check_run){ .store = d.x.s, .cancel_fd = -1, .a = &a }, &all, &out, &e), 0);
    for (size_t i = 0; i < out.images.n; i++) CHECK_INT(out.images.p[i].damage.n, 0);
    slice wrong = SLICE("no/such:1");
    KrunCheckImagesRequest one = { .images = { &wrong, 1 } };
    CHECK_INT(images_check(&(check_run){ .store = d.x.s, .cancel_fd = -1, .a = &a }, &one, &out, &e), -1);
    CHECK_INT(e.code, GRPC_NOT_FOUND);
    damage_down(&d);
}

TEST(a_layer_that_goes_after_its_check_is_missed_at_its_next_use)
{
    damage_fixture d;
    error e;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    CHECK_INT(damage_check(&d, &e), 0);
    damage_all(d.layer);
    CHECK_INT(damage_check(&d, &e), -1);
    CHECK_INT(e.code, GRPC_DATA_LOSS);
    damage_is_repaired(&d);
    damage_down(&d);
}

static int damaged_dirs(store_fixture *x)
{
    char path[PATH_MAX + 16];
    int n = 0;
    snprintf(path, sizeof path, "%s/layers", x->path);
    DIR *list = opendir(path);
    for (struct dirent *entry; list && (entry = readdir(list));) n += strstr(entry->d_name, ".damaged-") != NULL;
    if (list) closedir(list);
    return n;
}

/* Over a restart and a new pull: what a container has mounted stays as long as the container. */
TEST(a_damaged_layer_stays_aside_while_a_container_has_it_and_counts_stay_right)
{
    damage_fixture d;
    error e;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    slice layer_name = slice_of(d.hex);
    ContainerSpec spec = { .layers = { &layer_name, 1 } };
    ContainerRecord c = { .spec = &spec };
    image_layers_hold(d.x.s, &c);
    images_collect(d.x.s);
    damage_mode(d.layer);
    CHECK_INT(damage_check(&d, &e), -1);
    CHECK_INT(damaged_dirs(&d.x), 1);
    for (int round = 0; round < 2; round++) {
        store_again(&d.x);
        image_layers_hold(d.x.s, &c); /* of the container that was found at start */
        images_collect(d.x.s);
        if (round == 0) CHECK_INT(fake_pull(&d.f, &d.x, ":1", NULL, &e), 0);
        CHECK_INT(damage_check(&d, &e), 0);
        sleep_ns(50 * NS_PER_MS); /* time for a sweeper that is wrong */
        CHECK_INT(damaged_dirs(&d.x), 1);
    }
    image_layers_release(d.x.s, &c);
    for (int i = 0; i < 200 && damaged_dirs(&d.x); i++) sleep_ns(10 * NS_PER_MS);
    CHECK_INT(damaged_dirs(&d.x), 0);
    CHECK_INT(damage_check(&d, &e), 0); /* the image still has its layer */
    CHECK_INT(layers_on_disk(&d.x), 1);
    pthread_mutex_lock(&d.x.s->lock);
    const store_layer *l = *layer_slot(d.x.s, layer_name);
    CHECK(l && l->users == 1 && l->containers == 0);
    pthread_mutex_unlock(&d.x.s->lock);
    damage_down(&d);
}

TEST(the_built_in_image_is_made_anew_when_it_is_damaged)
{
    store_fixture x;
    error e;
    char path[PATH_MAX + 160];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    store_again(&x);
    images_collect(x.s);
    const ImageRecord *r = image_hold(x.s, slice_of(self_name));
    CHECK(r != NULL);
    snprintf(path, sizeof path, "%s/layers/%.*s/krun", x.path, PR(r->layers.p[0]));
    CHECK_INT(truncate(path, 5), 0);
    CHECK_INT(image_check(x.s, r, slice_of(self_name), -1, &e), -1);
    image_drop(x.s, r);
    r = image_hold(x.s, slice_of(self_name));
    CHECK(r && image_check(x.s, r, slice_of(self_name), -1, &e) == 0);
    image_drop(x.s, r);
    store_again(&x);
    r = image_hold(x.s, slice_of(self_name));
    CHECK(r && image_check(x.s, r, slice_of(self_name), -1, &e) == 0);
    image_drop(x.s, r);
    store_down(&x);
}

typedef struct { damage_fixture *d; int failed; error e; } check_thread;
static void *check_in_a_thread(void *arg)
{
    check_thread *t = arg;
    t->failed = damage_check(t->d, &t->e);
    return NULL;
}

/* While one looks, others wait for its flight: here the test itself is the first. */
TEST(image_check_of_many_at_once_waits_for_the_one_that_walks)
{
    enum { MANY = 8 };
    damage_fixture d;
    pthread_t threads[MANY];
    check_thread each[MANY];
    bool first;
    unsigned refs = 0;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    pthread_mutex_lock(&d.x.s->lock);
    flight *f = flight_join(d.x.s, d.hex, &first);
    pthread_mutex_unlock(&d.x.s->lock);
    for (int i = 0; i < MANY; i++) each[i] = (check_thread){ .d = &d }, pthread_create(&threads[i], NULL, check_in_a_thread, &each[i]);
    while (refs < MANY + 1) {
        pthread_mutex_lock(&d.x.s->lock);
        refs = f->refs;
        pthread_mutex_unlock(&d.x.s->lock);
        sleep_ns(NS_PER_MS);
    }
    pthread_mutex_lock(&d.x.s->lock);
    (*layer_slot(d.x.s, slice_of(d.hex)))->unchecked = false; /* as the walk would leave it */
    flight_land(d.x.s, f, NULL);
    flight_unref(f);
    pthread_mutex_unlock(&d.x.s->lock);
    damage_mode(d.layer); /* who walks again now would find this */
    for (int i = 0; i < MANY; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(each[i].failed, 0);
    }
    damage_down(&d);
}

/* -- records ------------------------------------------------------------------------------------- */

/* Writes a record again as the first krun did: without a sum. `r` is what has been read of it. */
static void record_make_old(store_fixture *x, const char *dir, record_file f, void *r)
{
    error e;
    OWNED_ARENA a = arena_make(MIB);
    OWNED_BUF text = { 0 };
    CHECK_INT(record_read(f, &a, r, &e), 0);
    if (f.type == &LayerRecord_msg) ((LayerRecord *)r)->seal = (tree_sum){ 0 };
    pb_write_json(f.type, r, PB_INDENT, &text);
    CHECK(!memmem(text.p, text.n, "seal", 4) && !memmem(text.p, text.n, "\"sum", 4));
    put_file(x, dir, f.name, buf_view(&text));
}

TEST(records_of_the_first_krun_are_used_unchecked)
{
    damage_fixture d;
    error e;
    char name[128];
    tree_sum none = { 0 };
    ImageFsInfoResponse info = { 0 };
    OWNED_ARENA a = arena_make(MIB);
    ImageRecord image;
    LayerRecord layer;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    snprintf(name, sizeof name, "%s.json", d.f.image.config_digest + 7);
    record_make_old(&d.x, "images", (record_file){ d.x.s->images_fd, name, &ImageRecord_msg }, &image);
    snprintf(name, sizeof name, "%s.json", d.hex);
    record_make_old(&d.x, "layers", (record_file){ d.x.s->layers_fd, name, &LayerRecord_msg }, &layer);
    store_again(&d.x);
    damage_mode(d.layer);
    CHECK(d.x.s && store_has(&d.x, d.name));
    CHECK_INT(damage_check(&d, &e), 0);
    CHECK_INT(images_fs_info(d.x.s, &none, &a, &info, &e), 0);
    CHECK(info.image_filesystems.p[0].used_bytes->value > 12);
    damage_all(d.layer);                /* but a directory that is not there is no layer */
    CHECK_INT(damage_check(&d, &e), -1);
    damage_is_repaired(&d);
    damage_down(&d);
}

/* The bytes of a record in the test's hands, and where it lies. */
typedef struct { const char *dir; char name[80]; slice good; } record_victim;

static void victim_take(store_fixture *x, record_victim *v, arena *a)
{
    error e;
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/%s", x->path, v->dir);
    OWNED_FD at = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    v->good = file_read(at, v->name, MIB, a, &e);
    CHECK(v->good.n > 0);
}

/* Opens the store on a damaged record. Whatever it was, the other image is there, the pull works. */
static void victim_open(damage_fixture *d, const record_victim *v, const char *how, size_t at)
{
    error e = { 0 };
    d->x.s = images_open(&d->x.o, &e);
    bool works = d->x.s && store_has(&d->x, self_name) && fake_pull(&d->f, &d->x, ":1", NULL, &e) == 0 && damage_check(d, &e) == 0;
    if (!works) fprintf(stderr, "%s/%s, %s at %zu: %s\n", v->dir, v->name, how, at, e.text);
    CHECK(works);
    const ImageRecord *r = works ? image_hold(d->x.s, slice_of(d->name)) : NULL;
    CHECK(r && slice_is(r->config->user, "7:8") && r->layers.n == 1 && slice_is(r->layers.p[0], d->hex));
    image_drop(d->x.s, r);
    images_close(d->x.s);
    d->x.s = NULL;
}

/* Covers T61 for images: cut at every byte, zeros, each bit flipped, another kind of file in its place. */
TEST(images_open_survives_any_damage_of_a_record)
{
    damage_fixture d;
    uint64_t random = 7;
    OWNED_ARENA a = arena_make(4 * MIB);
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    images_close(d.x.s);
    record_victim victims[] = { { .dir = "images" }, { .dir = "layers" } };
    snprintf(victims[0].name, sizeof victims[0].name, "%s.json", d.f.image.config_digest + 7);
    snprintf(victims[1].name, sizeof victims[1].name, "%s.json", d.hex);
    for (size_t v = 0; v < COUNT(victims); v++) {
        const record_victim *one = &victims[v];
        char path[PATH_MAX + 128];
        victim_take(&d.x, &victims[v], &a);
        slice good = one->good;
        snprintf(path, sizeof path, "%s/%s/%s", d.x.path, one->dir, one->name);
        uint8_t *bad = arena_alloc(&a, good.n);
        for (size_t n = 0; n < good.n; n += 1 + good.n / 16) {
            put_file(&d.x, one->dir, one->name, (slice){ good.p, n });
            victim_open(&d, one, "cut", n);
        }
        memset(bad, 0, good.n);
        put_file(&d.x, one->dir, one->name, (slice){ bad, good.n });
        victim_open(&d, one, "zeros", 0);
        for (int i = 0; i < 24; i++) {
            random = random * 6364136223846793005U + 1442695040888963407U;
            size_t at = (size_t)(random >> 33) % good.n;
            memcpy(bad, good.p, good.n);
            bad[at] ^= (uint8_t)(1 << (random >> 60 & 7));
            put_file(&d.x, one->dir, one->name, (slice){ bad, good.n });
            victim_open(&d, one, "a flipped bit", at);
        }
        CHECK(unlink(path) == 0 && mkdir(path, 0700) == 0);
        victim_open(&d, one, "a directory", 0);
        CHECK(unlink(path) == 0 && symlink("/dev/zero", path) == 0);
        victim_open(&d, one, "a link to /dev/zero", 0);
        CHECK(unlink(path) == 0 && symlink("nowhere", path) == 0);
        victim_open(&d, one, "a link to nothing", 0);
        CHECK(unlink(path) == 0 && mkfifo(path, 0600) == 0);
        victim_open(&d, one, "a FIFO", 0);
    }
    error e;
    d.x.s = images_open(&d.x.o, &e);
    damage_down(&d);
}

/* A flipped bit in a name or a command would leave good JSON and another image. */
TEST(a_record_with_a_flipped_bit_is_no_record)
{
    damage_fixture d;
    error e;
    OWNED_ARENA a = arena_make(4 * MIB);
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    damage_up(&d);
    record_victim v = { .dir = "images" };
    snprintf(v.name, sizeof v.name, "%s.json", d.f.image.config_digest + 7);
    victim_take(&d.x, &v, &a);
    images_close(d.x.s);
    uint8_t *user = memmem(v.good.p, v.good.n, "\"7:8\"", 5);
    CHECK(user != NULL);
    if (user) user[1] = '0'; /* root, by one damaged byte */
    put_file(&d.x, v.dir, v.name, v.good);
    d.x.s = images_open(&d.x.o, &e);
    CHECK(d.x.s && !store_has(&d.x, d.name));
    damage_down(&d);
}

TEST(ten_thousand_stale_records_do_not_keep_a_store_from_opening)
{
    store_fixture x;
    error e;
    char name[80], text[256], path[PATH_MAX + 16];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    x.o = (image_options){ .root_fd = memory_dir(x.path), .root_path = x.path, .no_sync = true };
    images_close(images_open(&x.o, &e));
    snprintf(path, sizeof path, "%s/images", x.path);
    OWNED_FD images = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < 10000; i++) {
        snprintf(name, sizeof name, "%064x.json", i + 1);
        snprintf(text, sizeof text, "{\"version\":1,\"id\":\"sha256:%064x\",\"layers\":[\"%064x\"]}", i + 1, i + 7);
        OWNED_FD fd = openat(images, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (write_all(fd, text, i % 3 ? strlen(text) : 20) < 0) abort();
    }
    x.s = images_open(&x.o, &e);
    CHECK(x.s && store_has(&x, self_name));
    CHECK_INT(files_in(&x, "images"), 1 + 3334); /* what is cut is put aside, what has no layers goes */
    store_down(&x);
}

static bool in_layers(const store_fixture *x, const char *name)
{
    char path[PATH_MAX + 128];
    snprintf(path, sizeof path, "%s/layers/%s", x->path, name);
    return access(path, F_OK) == 0;
}

/* No room for the new name, say, or another file system: then a start would have to unlink all of it. */
TEST(what_cannot_be_moved_to_the_trash_holds_up_no_start)
{
    store_fixture x;
    error e;
    char path[PATH_MAX + 128];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    images_close(x.s);
    x.s = images_open(&x.o, &e);
    CHECK(x.s != NULL);
    if (!x.s) return;
    close_fd(&x.s->trash_fd);
    snprintf(path, sizeof path, "%s/layers/big.partial", x.path);
    CHECK_INT(mkdir(path, 0700), 0);
    for (int i = 0; i < 2500; i++) {
        snprintf(path, sizeof path, "%s/layers/big.partial/%d", x.path, i);
        CHECK_INT(mkdir(path, 0700), 0);
    }
    put_file(&x, "layers", "small.partial", SLICE("x"));
    CHECK_INT(open_clean(x.s, "big.partial", &e), 0);
    CHECK_INT(open_clean(x.s, "small.partial", &e), 0);
    CHECK(in_layers(&x, "big.partial"));
    CHECK(!in_layers(&x, "small.partial"));
    images_collect(x.s);
    for (int i = 0; i < 6000 && in_layers(&x, "big.partial"); i++) usleep(10000);
    CHECK(!in_layers(&x, "big.partial"));
    store_down(&x);
}

/* The end of the daemon does not wait for the removal of a large layer; the next start ends it. */
TEST(a_layer_that_cannot_be_moved_to_the_trash_does_not_hold_up_the_end)
{
    store_fixture x;
    error e;
    char path[PATH_MAX + 128], name[LAYER_NAME];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    memset(name, 'a', sizeof name - 1), name[sizeof name - 1] = '\0';
    snprintf(path, sizeof path, "%s/layers/%s", x.path, name);
    CHECK_INT(mkdir(path, 0700), 0);
    for (int i = 0; i < 2500; i++) {
        snprintf(path, sizeof path, "%s/layers/%s/%d", x.path, name, i);
        CHECK_INT(mkdir(path, 0700), 0);
    }
    snprintf(path, sizeof path, "%s.json", name);
    put_file(&x, "layers", path, SLICE("{}"));
    close_fd(&x.s->trash_fd);
    store_layer gone = { .next = NULL };
    memcpy(gone.name, name, sizeof name);
    x.s->closing = true;
    layer_delete(x.s, &gone);
    x.s->closing = false;
    CHECK(in_layers(&x, name) && !in_layers(&x, path)); /* the record goes first */
    images_close(x.s);
    x.s = images_open(&x.o, &e);
    CHECK(x.s != NULL);
    if (!x.s) return;
    CHECK(!in_layers(&x, name));
    images_collect(x.s);
    for (int i = 0; i < 6000 && files_in(&x, "layers") > 2; i++) usleep(10000);
    CHECK_INT(files_in(&x, "layers"), 2); /* the built-in image's, and its record */
    store_down(&x);
}

/* -- work that grows no faster than what is sent ------------------------------------------------- */

/* A record of that number, with one tag; in the list of images only. */
static store_image *image_plant(store_fixture *x, int number, const char *tag, int64_t created)
{
    char id[DIGEST_TEXT];
    snprintf(id, sizeof id, "sha256:%064x", number);
    slice tags[] = { slice_of(tag) };
    ImageRecord r = { .version = RECORD_VERSION, .id = slice_of(id), .repo_tags = { tags, 1 }, .created_at = created };
    store_image *made = image_make(x->s, &r);
    made->next = x->s->images;
    return x->s->images = made;
}

TEST(tags_of_many_images_are_compared_in_little_more_than_linear_time)
{
    enum { MANY = 2000 };
    store_fixture x;
    char tag[64];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    for (int i = 0; i < MANY; i++) {
        snprintf(tag, sizeof tag, "example.test/%d:%d", i * 7919 % MANY, i);
        image_plant(&x, i, tag, i);
    }
    comparisons = 0;
    open_tags(x.s);
    if (comparisons > 60 * MANY) fprintf(stderr, "%lu comparisons\n", comparisons);
    CHECK(comparisons <= 60 * MANY);
    CHECK(store_has(&x, "example.test/0:0"));
    store_down(&x);
}

TEST(of_several_images_that_claim_a_tag_the_newest_has_it)
{
    store_fixture x;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    for (int i = 1; i < 10; i++) image_plant(&x, i, i % 2 ? "example.test/odd:1" : "example.test/even:1", i == 5 ? 100 : i);
    open_tags(x.s);
    for (const store_image *i = x.s->images; i; i = i->next) {
        bool keeps = slice_ends(i->record.id, "05") || slice_ends(i->record.id, "08") || image_has_name(&i->record, slice_of(self_name));
        CHECK_INT(i->record.repo_tags.n, keeps);
    }
    CHECK_INT(files_in(&x, "images"), 1 + 7); /* those that lost theirs are written anew */
    store_down(&x);
}

TEST(names_of_an_image_that_has_many_are_merged_in_linear_time)
{
    enum { MANY = 3000 };
    static slice old[MANY], more[] = { { (const uint8_t *)"n7:1", 4 }, { (const uint8_t *)"new:1", 5 }, { (const uint8_t *)"new:1", 5 } };
    OWNED_ARENA a = arena_make(4 * MIB);
    size_t n;
    for (int i = 0; i < MANY; i++) old[i] = slice_of(arena_printf(&a, "n%d:1", i));
    comparisons = 0;
    const slice *all = list_merge(&a, (slice_list){ old, MANY }, (slice_list){ more, COUNT(more) }, &n);
    CHECK(comparisons < COUNT(more) * (MANY + 4));
    CHECK_INT(n, MANY + 1);
    CHECK_TEXT(all[0], "n0:1");
    CHECK_TEXT(all[MANY], "new:1");
}

TEST(a_list_of_names_takes_memory_in_proportion)
{
    OWNED_ARENA a = arena_make(MIB);
    slice_list list = { NULL, 0 };
    slice two[] = { SLICE("a"), SLICE("b") };
    for (int i = 0; i < 5000; i++) CHECK(load_note(&a, &list, two, 1 + i % 2));
    CHECK_INT(list.n, 7500);
    for (size_t i = 0; i < list.n; i++) CHECK_TEXT(list.p[i], i % 3 == 2 ? "b" : "a");
}

TEST(layers_are_found_by_the_blob_that_is_kept)
{
    image_store s = { 0 };
    char names[3][LAYER_NAME], blobs[2][DIGEST_TEXT];
    store_layer gone;
    uint8_t from = 7;
    for (int i = 0; i < 3; i++) snprintf(names[i], sizeof names[i], "%064x", 0xa0 + i);
    for (int i = 0; i < 2; i++) snprintf(blobs[i], sizeof blobs[i], "sha256:ff%062x", i);
    for (int i = 0; i < 3; i++) /* two say that the first blob is theirs, as only a record that lies does */
        layer_add(&s, slice_of(names[i]), &(LayerRecord){ .blob = slice_of(blobs[i / 2]) }, i == 2);
    const store_layer *one = blob_next(&s, blobs[0] + 7, NULL), *two = one ? blob_next(&s, blobs[0] + 7, one) : NULL;
    CHECK(one && two && one != two && !blob_next(&s, blobs[0] + 7, two));
    CHECK(blob_has_layer(&s, blobs[0] + 7));
    layer_spoil(&s, *layer_slot(&s, slice_of(names[0])), "damage");
    CHECK(blob_has_layer(&s, blobs[0] + 7));
    layer_spoil(&s, *layer_slot(&s, slice_of(names[1])), "damage");
    CHECK(!blob_has_layer(&s, blobs[0] + 7));
    layer_add(&s, slice_of(names[0]), &(LayerRecord){ 0 }, 0); /* made anew, and its blob not kept */
    one = blob_next(&s, blobs[0] + 7, NULL);
    CHECK(one && !strcmp(one->name, names[1]) && !blob_next(&s, blobs[0] + 7, one));
    for (int i = 0; i < 2; i++) CHECK(layer_take_unused(&s, &from, &gone) && strcmp(gone.name, names[2]) != 0);
    CHECK(!layer_take_unused(&s, &from, &gone));
    CHECK(!blob_next(&s, blobs[0] + 7, NULL) && blob_has_layer(&s, blobs[1] + 7));
    layer_release(&s, slice_of(names[2]));
    CHECK(s.loose && layer_take_unused(&s, &from, &gone));
    CHECK(!blob_has_layer(&s, blobs[1] + 7));
}
