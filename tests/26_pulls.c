/* Chapters 22 to 26: the image store and its helper processes. The helpers are started as this program
 * itself: called as `krun <role>` it plays the role and runs no tests. */

static int spin_main(int argc, char **argv) /* computes for ever */
{
    (void)argv;
    for (volatile unsigned x = (unsigned)argc;;) x++;
    return 0;
}

static void images_play_role(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(int, char **); } roles[] = {
        { "fetch", fetch_main }, { "read", read_main },
        { "archive", archive_main }, { "unpack", unpack_main },
        { "pack", pack_main }, { "seal", seal_main }, { "spin", spin_main },
        { "users", users_main }, { "remove", remove_main },
    };
    for (size_t i = 0; argc == 2 && !strcmp(argv[0], "krun") && i < COUNT(roles); i++)
        if (!strcmp(argv[1], roles[i].name)) _exit(roles[i].run(argc, argv)); /* no leak check */
}

/* `krun pull-into ROOT IMAGE`: one pull in a process that a fault point may kill. */
static void images_play_pull(int argc, char **argv)
{
    error e = { 0 };
    slice id;
    if (argc != 4 || strcmp(argv[0], "krun") || strcmp(argv[1], "pull-into")) return;
    arena a = arena_make(MIB);
    image_options o = { .root_fd = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC), .root_path = argv[2] };
    image_store *s = images_open(&o, &e);
    ImageSpec spec = { .image = slice_of(argv[3]) };
    int failed = !s || !(id = image_pull(s, &(PullImageRequest){ .image = &spec }, -1, &a, &e)).p;
    if (failed) fprintf(stderr, "%s\n", e.text);
    _exit(failed ? 1 : 0);
}

typedef struct { char path[PATH_MAX]; image_options o; image_store *s; } store_fixture;

static void store_up(store_fixture *x)
{
    error e = { 0 };
    x->o = (image_options){ .root_fd = temp_dir(x->path), .root_path = x->path, .no_sync = true };
    x->s = images_open(&x->o, &e);
    if (!x->s) fprintf(stderr, "images_open: %s\n", e.text);
}

static void store_again(store_fixture *x) /* as after a restart */
{
    error e = { 0 };
    images_close(x->s);
    x->s = images_open(&x->o, &e);
    if (!x->s) fprintf(stderr, "images_open: %s\n", e.text);
}

static void store_down(store_fixture *x)
{
    error e;
    images_close(x->s);
    close(x->o.root_fd);
    tree_remove(AT_FDCWD, x->path, &e);
}

static bool store_has(store_fixture *x, const char *name)
{
    const ImageRecord *r = image_hold(x->s, slice_of(name));
    image_drop(x->s, r);
    return r;
}

static int files_in(store_fixture *x, const char *dir)
{
    char path[PATH_MAX + 16];
    int n = 0;
    snprintf(path, sizeof path, "%s/%s", x->path, dir);
    DIR *d = opendir(path);
    for (struct dirent *entry; d && (entry = readdir(d));) n += entry->d_name[0] != '.';
    if (d) closedir(d);
    return n;
}

TEST(images_open_makes_the_built_in_image_once)
{
    store_fixture x;
    char id[DIGEST_TEXT] = "";
    struct stat st;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    const ImageRecord *r = x.s ? image_hold(x.s, SLICE("localhost/krun:self")) : NULL;
    CHECK(r && r->pinned && r->layers.n == 1);
    if (r) {
        char file[128];
        snprintf(id, sizeof id, "%.*s", PR(r->id));
        snprintf(file, sizeof file, "%.*s/krun", PR(r->layers.p[0]));
        CHECK(fstatat(x.s->layers_fd, file, &st, 0) == 0);
        CHECK_INT(st.st_mode & 07777, 0755);
    }
    image_drop(x.s, r);
    CHECK_INT(files_in(&x, "layers"), 2);
    store_again(&x);
    CHECK(store_has(&x, id));
    CHECK_INT(files_in(&x, "images"), 1);
    store_down(&x);
}

/* -- a registry that answers as it is told ------------------------------------------------------- */

/* An image of one file, "hello", and its documents; what a row says is put in the place of ours:
 * $L $l the layer's digest and size, $C $c the config's, $D the diff-id. */
typedef struct {
    buf layer, config, manifest;
    char layer_digest[DIGEST_TEXT], config_digest[DIGEST_TEXT], manifest_digest[DIGEST_TEXT];
} fake_image;

static const char fake_config[] =
    "{\"architecture\":\"any\",\"os\":\"linux\",\"config\":{\"User\":\"7:8\",\"Env\":[\"A=b\"],\"Cmd\":[\"/hello\"]},"
    "\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"$D\"]}}";
#define FAKE_CONFIG "\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"$C\",\"size\":$c}"
#define FAKE_LAYER "{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"$L\",\"size\":$l}"
static const char fake_manifest[] = "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[" FAKE_LAYER "]}";

static void fake_digest(const buf *b, char out[DIGEST_TEXT])
{
    sha256_text(buf_view(b), (slice){ NULL, 0 }, (slice){ NULL, 0 }, out);
}

static void fake_fill(const fake_image *f, const char *from, buf *out)
{
    for (; *from; from++) {
        if (*from != '$') { buf_byte(out, (uint8_t)*from); continue; }
        switch (*++from) {
        case 'L': case 'D': buf_str(out, f->layer_digest); break;
        case 'C': buf_str(out, f->config_digest); break;
        case 'l': buf_printf(out, "%zu", f->layer.n); break;
        case 'c': buf_printf(out, "%zu", f->config.n); break;
        default: abort();
        }
    }
}

static void fake_image_make(fake_image *f, const char *config, const char *manifest, const char *content)
{
    *f = (fake_image){ 0 };
    tar_entry file = { .type = '0', .name = SLICE("hello"), .link = SLICE(""), .size = strlen(content), .mode = 0644 };
    tar_put_header(&f->layer, &file);
    buf_str(&f->layer, content);
    tar_put_padding(&f->layer, file.size);
    tar_put_end(&f->layer);
    fake_digest(&f->layer, f->layer_digest);
    fake_fill(f, config ? config : fake_config, &f->config);
    fake_digest(&f->config, f->config_digest);
    fake_fill(f, manifest ? manifest : fake_manifest, &f->manifest);
    fake_digest(&f->manifest, f->manifest_digest);
}

static void fake_image_free(fake_image *f)
{
    buf_free(&f->layer);
    buf_free(&f->config);
    buf_free(&f->manifest);
}

typedef struct fake fake;
/* Answers a request itself (true) or leaves it to the registry. */
typedef bool fake_trick(fake *f, const char *request, int fd);
struct fake {
    int listener, port;
    fake_image image;
    fake_trick *trick;
    const char *manifest_type;
    _Atomic int requests, blobs, stop, trick_calls, secrets; /* secrets: requests with Authorization */
    pthread_t thread;
};

static void fake_send(int fd, const char *text, slice body)
{
    OWNED_BUF out = { 0 };
    buf_str(&out, text);
    buf_slice(&out, body);
    (void)!send(fd, out.p, out.n, MSG_NOSIGNAL);
}

static void fake_send_blob(int fd, const char *type, slice body)
{
    char head[256];
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", type, body.n);
    fake_send(fd, head, body);
}

static void fake_answer(fake *f, const char *request, int fd)
{
    f->requests++;
    if (strstr(request, "\nAuthorization: ")) f->secrets++;
    if (f->trick && f->trick(f, request, fd)) { f->trick_calls++; return; }
    if (strstr(request, "/manifests/")) fake_send_blob(fd, f->manifest_type, buf_view(&f->image.manifest));
    else if (strstr(request, f->image.config_digest)) fake_send_blob(fd, "application/octet-stream", buf_view(&f->image.config));
    else if (strstr(request, f->image.layer_digest)) { f->blobs++; fake_send_blob(fd, "application/octet-stream", buf_view(&f->image.layer)); }
    else fake_send(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 });
}

typedef struct { fake *f; int fd; } fake_conn;

static void *fake_serve_one(void *arg)
{
    fake_conn *c = arg;
    char request[16384];
    size_t n = 0;
    for (ssize_t got; (got = recv(c->fd, request + n, sizeof request - 1 - n, 0)) > 0;) {
        n += (size_t)got;
        request[n] = '\0';
        if (!strstr(request, "\r\n\r\n")) continue;
        fake_answer(c->f, request, c->fd);
        n = 0;
    }
    close(c->fd);
    free(c);
    return NULL;
}

static void *fake_serve(void *arg)
{
    fake *f = arg;
    for (;;) {
        int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0 || f->stop) return close_fd(&fd), NULL;
        fake_conn *c = malloc(sizeof *c);
        pthread_t t;
        *c = (fake_conn){ f, fd };
        if (pthread_create(&t, NULL, fake_serve_one, c) == 0) pthread_detach(t);
    }
}

static void fake_up(fake *f, const char *config, const char *manifest)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    *f = (fake){ .manifest_type = "application/vnd.oci.image.manifest.v1+json" };
    fake_image_make(&f->image, config, manifest, "hello, world");
    f->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(f->listener, (struct sockaddr *)&at, size) < 0 || listen(f->listener, 64) < 0) abort();
    getsockname(f->listener, (struct sockaddr *)&at, &size);
    f->port = ntohs(at.sin_port);
    pthread_create(&f->thread, NULL, fake_serve, f);
}

static void fake_down(fake *f)
{
    f->stop = 1;
    shutdown(f->listener, SHUT_RDWR);
    pthread_join(f->thread, NULL);
    close(f->listener);
    fake_image_free(&f->image);
}

static int fake_pull(fake *f, store_fixture *x, const char *suffix, const AuthConfig *auth, error *e)
{
    slice id;
    OWNED_ARENA a = arena_make(MIB);
    AuthConfig copy = auth ? *auth : (AuthConfig){ 0 };
    ImageSpec spec = { .image = slice_of(arena_printf(&a, "127.0.0.1:%d/x%s", f->port, suffix)) };
    PullImageRequest q = { .image = &spec, .auth = auth ? &copy : NULL };
    *e = (error){ 0 };
    return (id = image_pull(x->s, &q, -1, &a, e)).p ? 0 : -1;
}

static void put_file(store_fixture *x, const char *dir, const char *name, slice bytes)
{
    error e;
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/%s", x->path, dir);
    OWNED_FD at = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_INT(file_replace(at, name, bytes, ATOMIC, &e), 0);
}

static int layers_on_disk(store_fixture *x) { return (files_in(x, "layers") - 2) / 2; } /* less the built-in one */

TEST(image_pull_makes_the_image_that_the_registry_has)
{
    fake f;
    error e;
    store_fixture x;
    char path[PATH_MAX + 128], name[64];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    snprintf(name, sizeof name, "127.0.0.1:%d/x:1", f.port);
    const ImageRecord *r = image_hold(x.s, slice_of(name));
    CHECK(r != NULL);
    if (r) {
        CHECK_TEXT(r->id, f.image.config_digest);
        CHECK_TEXT(r->config->user, "7:8");
        CHECK_TEXT(r->config->cmd.p[0], "/hello");
        CHECK_INT(r->size, strlen("hello, world") + f.image.config.n);
        snprintf(path, sizeof path, "%s/layers/%.*s/hello", x.path, PR(r->layers.p[0]));
        CHECK_INT(access(path, R_OK), 0);
        CHECK(store_has(&x, f.image.config_digest));          /* its whole ID, */
        CHECK(store_has(&x, f.image.config_digest + 7));      /* without its prefix, */
        char prefix[13];
        snprintf(prefix, sizeof prefix, "%.12s", f.image.config_digest + 7);
        CHECK(store_has(&x, prefix));                         /* cut as crictl shows it, */
        snprintf(path, sizeof path, "127.0.0.1:%d/x@%s", f.port, f.image.manifest_digest);
        CHECK(store_has(&x, path));                           /* and by digest */
    }
    image_drop(x.s, r);
    CHECK(!store_has(&x, "127.0.0.1:1/x:1"));
    CHECK_INT(fake_pull(&f, &x, "", NULL, &e), 0);            /* another tag of the same */
    CHECK_INT(f.blobs, 1);
    CHECK_INT(files_in(&x, "images"), 2);
    store_again(&x);
    CHECK(store_has(&x, name));
    CHECK_INT(image_remove(x.s, slice_of(name), &e), 0);
    CHECK(!store_has(&x, f.image.config_digest));
    CHECK_INT(image_remove(x.s, slice_of(name), &e), 0);      /* again: no error */
    images_collect(x.s);
    for (int i = 0; i < 100 && layers_on_disk(&x); i++) sleep_ns(20 * NS_PER_MS);
    CHECK_INT(layers_on_disk(&x), 0);
    fake_down(&f);
    store_down(&x);
}

#define FAKE_INDEX(entries) "{\"schemaVersion\":2,\"manifests\":[" entries "]}"
#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"

/* Covers T37 and T38, and the documents of T41. `type` NULL is a manifest's. */
TEST(image_pull_refuses_documents_that_lie)
{
    static const struct { const char *type, *config, *manifest; int code; const char *text; } rows[] = {
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[]}", GRPC_INVALID_ARGUMENT, "0 layers" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG "}", GRPC_INVALID_ARGUMENT, "0 layers" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[" FAKE_LAYER "," FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "diff_ids has 1 entries for 2" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"manifests\":[],\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "both" },
        { NULL, NULL, "{\"schemaVersion\":2}", GRPC_INVALID_ARGUMENT, "neither `manifests`" },
        { NULL, NULL, "{\"schemaVersion\":1,\"fsLayers\":[]}", GRPC_INVALID_ARGUMENT, "schema 1" },
        { "application/vnd.docker.distribution.manifest.v1+prettyjws", NULL, NULL, GRPC_INVALID_ARGUMENT, "schema 1" },
        { "text/html", NULL, "<html>please log in</html>", GRPC_INVALID_ARGUMENT, "text/html" },
        { "application/vnd.oci.image.index.v1+json", NULL, NULL, GRPC_INVALID_ARGUMENT, "Content-Type" },
        { NULL, NULL, "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\"," FAKE_CONFIG ",\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "mediaType" },
        { NULL, NULL, "{\"schemaVersion\":2,\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "config: digest" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:../../x\",\"size\":1}]}", GRPC_INVALID_ARGUMENT, "digest" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"md5:00\",\"size\":1}]}", GRPC_INVALID_ARGUMENT, "digest" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"$L\",\"size\":-1}]}", GRPC_INVALID_ARGUMENT, "size" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"$L\",\"size\":1}]}", GRPC_UNKNOWN, "more than the 1 bytes" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"$L\",\"size\":9999}]}", GRPC_UNKNOWN, "of 9999" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"$L\",\"size\":$l,\"urls\":[\"http://x/\"]}]}", GRPC_INVALID_ARGUMENT, "urls" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip\",\"digest\":\"$L\",\"size\":$l}]}", GRPC_INVALID_ARGUMENT, "foreign" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.in-toto+json\",\"digest\":\"$L\",\"size\":$l}]}", GRPC_INVALID_ARGUMENT, "in-toto" },
        { NULL, NULL, "{\"schemaVersion\":2,\"config\":{\"mediaType\":\"application/vnd.unknown\",\"digest\":\"$C\",\"size\":$c},\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "vnd.unknown" },
        { NULL, NULL, "{\"schemaVersion\":2,\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"$C\",\"size\":99999999},\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "size is over" },
        { NULL, NULL, "{\"schemaVersion\":2,\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"$L\",\"size\":$l},\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "config" },
        { NULL, "{\"os\":\"windows\",\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_FAILED_PRECONDITION, "windows" },
        { NULL, "{\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[\"sha256:" ZEROS "\"]}}", NULL, GRPC_DATA_LOSS, "diff-id" },
        { NULL, "{\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[\"sha256:../../../etc\"]}}", NULL, GRPC_INVALID_ARGUMENT, "diff_ids[0]" },
        { NULL, "{\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[]}}", NULL, GRPC_INVALID_ARGUMENT, "0 entries" },
        { NULL, "{\"config\":{\"Env\":[\"A=\\u0000\"]},\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_INVALID_ARGUMENT, "Env" },
        { NULL, "{\"config\":{\"WorkingDir\":\"/a\\u0000/etc\"},\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_INVALID_ARGUMENT, "WorkingDir" }, /* T27: a NUL in a path */
        { NULL, "{\"config\":{\"Volumes\":{\"/a\\u0000\":{}}},\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_INVALID_ARGUMENT, "Volumes" },
        { NULL, "{\"config\":{\"User\":\"0\\u0000\"},\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_INVALID_ARGUMENT, "User" },
        { NULL, "{\"config\":{\"Entrypoint\":[\"/\\u0000\"]},\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_INVALID_ARGUMENT, "Entrypoint" },
        { NULL, "{\"rootfs\":{\"diff_ids\":[\"$D\\u0000\"]}}", NULL, GRPC_INVALID_ARGUMENT, "diff_ids" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"\",\"size\":1}]}", GRPC_INVALID_ARGUMENT, "digest" },
        { NULL, NULL, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"SHA256:" ZEROS "\",\"size\":1}]}", GRPC_INVALID_ARGUMENT, "digest" },
        { NULL, NULL, "{\"schemaVersion\":2,\"schemaVersion\":1," FAKE_CONFIG ",\"layers\":[" FAKE_LAYER "]}", GRPC_INVALID_ARGUMENT, "twice" },
        { NULL, "{\"config\":{\"Cmd\":\"sh\"},\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, GRPC_INVALID_ARGUMENT, "Cmd" },
        { NULL, "not json", NULL, GRPC_INVALID_ARGUMENT, "config" },
        { "application/vnd.oci.image.index.v1+json", NULL, FAKE_INDEX(""), GRPC_NOT_FOUND, "no manifest for linux/" },
        { "application/vnd.oci.image.index.v1+json", NULL, FAKE_INDEX("{\"digest\":\"$L\",\"size\":1,\"platform\":{\"os\":\"linux\",\"architecture\":\"none\"}}"), GRPC_NOT_FOUND, "linux/none" },
        { "application/vnd.oci.image.index.v1+json", NULL, FAKE_INDEX("{\"digest\":\"sha256:" ZEROS "\",\"size\":5}"), GRPC_DATA_LOSS, "digest" },
    };
    error e;
    fake f;
    store_fixture x;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    for (size_t i = 0; i < COUNT(rows); i++) {
        fake_up(&f, rows[i].config, rows[i].manifest);
        if (rows[i].type) f.manifest_type = rows[i].type;
        int before = checks_failed;
        CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), -1);
        CHECK_INT(e.code, rows[i].code);
        CHECK(strstr(e.text, rows[i].text));
        if (checks_failed > before) fprintf(stderr, "row %zu: %d %s\n", i, e.code, e.text);
        fake_down(&f);
    }
    CHECK_INT(files_in(&x, "images"), 1);
    CHECK_INT(layers_on_disk(&x), 0);
    CHECK_INT(files_in(&x, "layers"), 2); /* and nothing half made */
    store_down(&x);
}

/* Covers T37: the same layer many times is one layer on disk and one in the record. */
TEST(image_pull_takes_the_same_layer_many_times)
{
    fake f;
    error e;
    store_fixture x;
    OWNED_BUF config = { 0 }, manifest = { 0 };
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    buf_str(&config, "{\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[");
    buf_str(&manifest, "{\"schemaVersion\":2," FAKE_CONFIG ",\"layers\":[");
    for (int i = 0; i < 100; i++) {
        buf_printf(&config, "%s\"$D\"", i ? "," : "");
        buf_printf(&manifest, "%s%s", i ? "," : "", FAKE_LAYER);
    }
    buf_add(&config, "]}}", 4);
    buf_add(&manifest, "]}", 3);
    store_up(&x);
    fake_up(&f, (char *)config.p, (char *)manifest.p);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    const ImageRecord *r = image_hold(x.s, slice_of(f.image.config_digest));
    CHECK(r && r->layers.n == 1);
    image_drop(x.s, r);
    CHECK_INT(f.blobs, 1);
    fake_down(&f);
    store_down(&x);
}

/* Covers T37: of A, B, A the upper A counts, and the lower one is hidden by it whatever B says. */
TEST(image_record_keeps_the_topmost_of_equal_layers)
{
    slice ids[] = { SLICE("sha256:a"), SLICE("sha256:b"), SLICE("sha256:a"), SLICE("sha256:c") };
    pull_state p = { .config.diff_ids = { ids, COUNT(ids) } };
    ImageRecord r = { 0 };
    OWNED_ARENA a = arena_make(MIB);
    error e;
    CHECK_INT(record_layers(&p, &a, &r, &e), 0);
    CHECK(r.layers.n == 3 && slice_is(r.layers.p[0], "b") && slice_is(r.layers.p[1], "a") &&
          slice_is(r.layers.p[2], "c"));
}

static bool trick_500_twice(fake *f, const char *request, int fd)
{
    if (!strstr(request, "/manifests/") || f->trick_calls >= 2) return false;
    return fake_send(fd, "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}

static bool trick_cut_layer(fake *f, const char *request, int fd) /* half of it, then again from there */
{
    char head[256];
    slice whole = buf_view(&f->image.layer);
    size_t half = whole.n / 2;
    if (!strstr(request, f->image.layer_digest)) return false;
    bool again = strstr(request, "\nRange: bytes=");
    if (!again) snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", whole.n);
    else snprintf(head, sizeof head, "HTTP/1.1 206 Partial\r\nContent-Range: bytes %zu-%zu/%zu\r\nContent-Length: %zu\r\n\r\n", half, whole.n - 1, whole.n, whole.n - half);
    fake_send(fd, head, again ? (slice){ whole.p + half, whole.n - half } : (slice){ whole.p, half });
    if (!again) shutdown(fd, SHUT_RDWR);
    return true;
}

static bool trick_cut_no_ranges(fake *f, const char *request, int fd) /* the second time all of it */
{
    char head[256];
    slice whole = buf_view(&f->image.layer);
    if (!strstr(request, f->image.layer_digest) || f->trick_calls) return false;
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", whole.n);
    fake_send(fd, head, (slice){ whole.p, whole.n / 2 });
    return shutdown(fd, SHUT_RDWR), true;
}

static bool trick_chunked(fake *f, const char *request, int fd)
{
    char line[32];
    slice whole = buf_view(&f->image.layer);
    if (!strstr(request, f->image.layer_digest)) return false;
    fake_send(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", (slice){ NULL, 0 });
    for (slice part; whole.n;) {
        slice_take(&whole, MIN(whole.n, 700U), &part);
        snprintf(line, sizeof line, "%zx\r\n", part.n);
        fake_send(fd, line, part);
        fake_send(fd, "\r\n", (slice){ NULL, 0 });
    }
    return fake_send(fd, "0\r\n\r\n", (slice){ NULL, 0 }), true;
}

static bool trick_wants_basic(fake *f, const char *request, int fd)
{
    (void)f;
    if (strstr(request, "\nAuthorization: Basic dTpw\r\n")) return false;
    return fake_send(fd, "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}

static bool trick_wants_token(fake *f, const char *request, int fd)
{
    char head[256];
    if (strstr(request, "GET /token?service=me&scope=repository%3Ax%3Apull") && strstr(request, "Basic dTpw"))
        return fake_send_blob(fd, "application/json", SLICE("{\"token\":\"sesame\"}")), true;
    if (strstr(request, "\nAuthorization: Bearer sesame\r\n")) return false;
    snprintf(head, sizeof head, "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:%d/token\",service=\"me\"\r\nContent-Length: 0\r\n\r\n", f->port);
    return fake_send(fd, head, (slice){ NULL, 0 }), true;
}

static bool trick_no_length(fake *f, const char *request, int fd) /* the end of the connection is the end */
{
    if (!strstr(request, f->image.layer_digest)) return false;
    fake_send(fd, "HTTP/1.1 200 OK\r\n\r\n", buf_view(&f->image.layer));
    return shutdown(fd, SHUT_RDWR), true;
}

static bool trick_come_back_yesterday(fake *f, const char *request, int fd)
{
    if (!strstr(request, "/manifests/") || f->trick_calls) return false;
    return fake_send(fd, "HTTP/1.1 503 T\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}

static fake *elsewhere; /* the other server of a redirect */
static bool trick_redirects_blobs(fake *f, const char *request, int fd)
{
    char head[256];
    const char *digest = strstr(request, f->image.layer_digest) ? f->image.layer_digest : f->image.config_digest;
    if (!strstr(request, "/blobs/")) return trick_wants_basic(f, request, fd);
    snprintf(head, sizeof head, "HTTP/1.1 307 There\r\nLocation: http://localhost:%d/v2/x/blobs/%s\r\nContent-Length: 0\r\n\r\n", elsewhere->port, digest);
    return fake_send(fd, head, (slice){ NULL, 0 }), true;
}

/* Covers T41: what a good client gets through. */
TEST(image_pull_goes_on_where_it_can)
{
    static const struct { fake_trick *trick; const char *what; } rows[] = {
        { trick_500_twice, "two 500" }, { trick_cut_layer, "a cut" }, { trick_cut_no_ranges, "a cut without ranges" },
        { trick_chunked, "chunks" }, { trick_wants_basic, "Basic" }, { trick_wants_token, "Bearer" },
        { trick_redirects_blobs, "a redirect" }, { trick_no_length, "a layer without a length" },
        { trick_come_back_yesterday, "Retry-After a date that is past" },
    };
    AuthConfig auth = { .username = SLICE("u"), .password = SLICE("p") };
    fake other;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    fake_up(&other, NULL, NULL);
    elsewhere = &other;
    for (size_t i = 0; i < COUNT(rows); i++) {
        fake f;
        error e;
        store_fixture x;
        store_up(&x);
        fake_up(&f, NULL, NULL);
        f.trick = rows[i].trick;
        CHECK_INT(fake_pull(&f, &x, ":1", &auth, &e), 0);
        if (e.code) fprintf(stderr, "%s: %s\n", rows[i].what, e.text);
        CHECK(f.trick_calls > 0);
        fake_down(&f);
        store_down(&x);
    }
    CHECK(other.requests > 0);
    CHECK_INT(other.secrets, 0); /* R11: nobody else has seen the password */
    fake_down(&other);
}

static bool trick_cut_for_good(fake *f, const char *request, int fd) /* half of it, and no more */
{
    char head[256];
    slice whole = buf_view(&f->image.layer);
    if (!strstr(request, f->image.layer_digest)) return false;
    if (strstr(request, "\nRange: bytes=")) return fake_send(fd, "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
    snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", whole.n);
    fake_send(fd, head, (slice){ whole.p, whole.n / 2 });
    return shutdown(fd, SHUT_RDWR), true;
}

static bool trick_needs_range(fake *f, const char *request, int fd) /* refuses the first half */
{
    bool asks = strstr(request, f->image.layer_digest);
    if (!asks) return false;
    if (strstr(request, "\nRange: bytes=")) return trick_cut_layer(f, request, fd);
    return fake_send(fd, "HTTP/1.1 403 Once\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}

static void part_path(store_fixture *x, const fake *f, const char *end, char out[PATH_MAX + 128])
{
    snprintf(out, PATH_MAX + 128, "%s/blobs/%s%s", x->path, f->image.layer_digest + 7, end);
}

/* Removes the image, and waits until the sweeper has removed its layer. */
static void remove_swept(store_fixture *x, const fake *f)
{
    error e;
    images_collect(x->s);
    CHECK_INT(image_remove(x->s, slice_of(f->image.config_digest), &e), 0);
    pthread_mutex_lock(&x->s->lock);
    while (x->s->threads) pthread_cond_wait(&x->s->idle, &x->s->lock);
    pthread_mutex_unlock(&x->s->lock);
}

TEST(image_pull_goes_on_after_a_restart_where_the_network_cut_it)
{
    fake f;
    error e;
    store_fixture x;
    struct stat st;
    char part[PATH_MAX + 128];
    struct timespec old[2] = { { 0, UTIME_OMIT }, { time(NULL) - BLOB_PART_LIFE - 60, 0 } };
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    part_path(&x, &f, ".part", part);
    f.trick = trick_cut_for_good;
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), -1);
    CHECK(stat(part, &st) == 0 && (size_t)st.st_size == f.image.layer.n / 2);
    CHECK_INT(layers_on_disk(&x), 0);
    store_again(&x);
    f.trick = trick_needs_range;
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    CHECK_INT(files_in(&x, "blobs"), 0);
    remove_swept(&x, &f);
    /* What lies there is damaged: found by the digest, and all is asked for. */
    f.trick = trick_cut_for_good;
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), -1);
    int fd = open(part, O_WRONLY | O_CLOEXEC);
    CHECK(pwrite(fd, "damage", 6, 100) == 6);
    close(fd);
    f.trick = NULL;
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    CHECK_INT(files_in(&x, "blobs"), 0);
    remove_swept(&x, &f);
    /* A beginning that nobody wants for a day goes. */
    f.trick = trick_cut_for_good;
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), -1);
    CHECK_INT(utimensat(AT_FDCWD, part, old, 0), 0);
    store_again(&x);
    CHECK_INT(files_in(&x, "blobs"), 0);
    fake_down(&f);
    store_down(&x);
}

TEST(image_blobs_are_kept_with_their_layer_when_asked)
{
    fake f;
    error e;
    store_fixture x;
    struct stat st;
    char blob[PATH_MAX + 128];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    part_path(&x, &f, "", blob);
    images_close(x.s);
    x.o.keep_blobs = true;
    x.s = images_open(&x.o, &e);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    CHECK(stat(blob, &st) == 0 && (size_t)st.st_size == f.image.layer.n);
    put_file(&x, "blobs", ZEROS, SLICE("nobody's"));
    store_again(&x);
    images_collect(x.s);
    CHECK(stat(blob, &st) == 0);
    CHECK_INT(files_in(&x, "blobs"), 1);
    /* A config that gives the same blob another diff-id is refused, and takes the kept blob from nobody. */
    fake lying;
    fake_up(&lying, "{\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[\"sha256:" ZEROS "\"]}}", NULL);
    CHECK_INT(fake_pull(&lying, &x, ":1", NULL, &e), -1);
    CHECK_INT(e.code, GRPC_DATA_LOSS);
    CHECK(stat(blob, &st) == 0);
    fake_down(&lying);
    remove_swept(&x, &f);
    CHECK_INT(files_in(&x, "blobs"), 0);
    fake_down(&f);
    store_down(&x);
}

static bool trick_404(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 404 T\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}

TEST(image_pull_asks_the_mirrors_first_and_tells_them_no_secret)
{
    fake f;
    error e = { 0 };
    store_fixture x;
    char dir[PATH_MAX], text[256];
    slice id;
    OWNED_ARENA a = arena_make(MIB);
    AuthConfig auth = { .username = SLICE("u"), .password = SLICE("p") };
    ImageSpec spec = { .image = SLICE("registry.example/x:1") };
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    close(temp_dir(dir));
    snprintf(text, sizeof text, "[host.\"http://127.0.0.1:1\"]\n[host.\"http://127.0.0.1:%d\"]\n", f.port);
    put_hosts_toml(dir, "registry.example", text); /* nobody listens on port 1 */
    x.s->settings->o.hosts_dir = dir;
    CHECK((id = image_pull(x.s, &(PullImageRequest){ .image = &spec, .auth = &auth }, -1, &a, &e)).p);
    if (e.code) fprintf(stderr, "%s\n", e.text);
    CHECK(store_has(&x, "registry.example/x:1"));
    CHECK_INT(f.secrets, 0);
    spec.image = SLICE("registry.example/y:1"); /* the registry itself would need https */
    f.trick = trick_404;
    CHECK(!(id = image_pull(x.s, &(PullImageRequest){ .image = &spec }, -1, &a, &e)).p);
    CHECK(strstr(e.text, "404") && strstr(e.text, "https is not supported"));
    tree_remove(AT_FDCWD, dir, &e);
    fake_down(&f);
    store_down(&x);
}

static bool trick_always_401(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_realm_metadata(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://169.254.169.254/x\"\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_realm_file(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"file:///etc/passwd\"\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_realm_of_a_megabyte(fake *f, const char *request, int fd)
{
    char *long_one = malloc(MIB);
    (void)f, (void)request;
    memset(long_one, 'a', MIB);
    fake_send(fd, "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1/", (slice){ (uint8_t *)long_one, MIB });
    free(long_one);
    return fake_send(fd, "\"\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_redirect_to_metadata(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 307 T\r\nLocation: http://[fe80::1]/x?secret\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_token_is_html(fake *f, const char *request, int fd)
{
    char head[256];
    if (strstr(request, "GET /token")) return fake_send_blob(fd, "text/html", SLICE("<html>log in</html>")), true;
    snprintf(head, sizeof head, "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://127.0.0.1:%d/token?x=secret\"\r\nContent-Length: 0\r\n\r\n", f->port);
    return fake_send(fd, head, (slice){ NULL, 0 }), true;
}
static bool trick_wrong_digest_header(fake *f, const char *request, int fd)
{
    if (!strstr(request, "/manifests/")) return false;
    char head[512];
    snprintf(head, sizeof head, "HTTP/1.1 200 T\r\nContent-Type: %s\r\nDocker-Content-Digest: %s\r\nContent-Length: %zu\r\n\r\n",
             f->manifest_type, f->image.config_digest, f->image.manifest.n);
    return fake_send(fd, head, buf_view(&f->image.manifest)), true;
}
static bool trick_layer_without_end(fake *f, const char *request, int fd) /* no length, and more than the manifest says */
{
    if (!strstr(request, f->image.layer_digest)) return false;
    fake_send(fd, "HTTP/1.1 200 OK\r\n\r\n", buf_view(&f->image.layer));
    fake_send(fd, "more", (slice){ NULL, 0 });
    return shutdown(fd, SHUT_RDWR), true;
}
static bool trick_chunk_too_big(fake *f, const char *request, int fd)
{
    if (!strstr(request, f->image.layer_digest)) return false;
    return fake_send(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\nabc", (slice){ NULL, 0 }), true;
}
static bool trick_redirect_loop(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 307 T\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_retry_in_30_years(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 429 T\r\nRetry-After: 1000000000\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_always_503(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 503 T\r\nContent-Length: 0\r\n\r\n", (slice){ NULL, 0 }), true;
}
static bool trick_403(fake *f, const char *request, int fd)
{
    (void)f, (void)request;
    return fake_send(fd, "HTTP/1.1 403 T\r\nContent-Length: 59\r\n\r\n"
                     "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no \\u001b[31mway\"}]}", (slice){ NULL, 0 }), true;
}
static bool trick_endless_manifest(fake *f, const char *request, int fd)
{
    char block[4096];
    memset(block, ' ', sizeof block);
    (void)f, (void)request;
    fake_send(fd, "HTTP/1.1 200 T\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n\r\n", (slice){ NULL, 0 });
    for (int i = 0; i < 1200 && send(fd, block, sizeof block, MSG_NOSIGNAL) > 0; i++) {}
    return shutdown(fd, SHUT_RDWR), true;
}
static bool trick_wrong_range(fake *f, const char *request, int fd)
{
    if (!strstr(request, f->image.layer_digest)) return false;
    return fake_send(fd, "HTTP/1.1 206 T\r\nContent-Range: bytes 7-9/10\r\nContent-Length: 3\r\n\r\nabc", (slice){ NULL, 0 }), true;
}
static bool trick_wrong_bytes(fake *f, const char *request, int fd)
{
    if (!strstr(request, f->image.layer_digest)) return false;
    f->image.layer.p[600] ^= 1;
    fake_send_blob(fd, "x/y", buf_view(&f->image.layer));
    f->image.layer.p[600] ^= 1;
    return true;
}

/* Covers T41: what must end, soon, with words that say why and with nothing left behind. */
TEST(image_pull_ends_where_it_must)
{
    static const struct { fake_trick *trick; int code; const char *text; int most_requests; } rows[] = {
        { trick_always_401, GRPC_UNAUTHENTICATED, "401", 2 },
        { trick_realm_metadata, GRPC_PERMISSION_DENIED, "169.254.169.254 is a link-local address", 1 },
        { trick_realm_file, GRPC_INVALID_ARGUMENT, "file:///", 1 },
        { trick_redirect_loop, GRPC_UNKNOWN, "redirects", 12 },
        { trick_retry_in_30_years, GRPC_UNKNOWN, "RegistryUnavailable: ", 1 },
        { trick_always_503, GRPC_UNKNOWN, "RegistryUnavailable: ", 4 },
        { trick_403, GRPC_PERMISSION_DENIED, "(DENIED: no \\x1b[31mway)", 1 },
        { trick_404, GRPC_NOT_FOUND, "404", 1 },
        { trick_endless_manifest, GRPC_UNKNOWN, "more than the 4194304 bytes", 1 },
        { trick_wrong_range, GRPC_UNKNOWN, "range", 3 },
        { trick_wrong_bytes, GRPC_DATA_LOSS, "its digest is", 3 },
        { trick_realm_of_a_megabyte, GRPC_UNKNOWN, "longer than 32768 bytes", 1 },
        { trick_redirect_to_metadata, GRPC_PERMISSION_DENIED, "redirected to http://[fe80::1]/x: fe80::1 is a link-local address", 1 },
        { trick_token_is_html, GRPC_UNAUTHENTICATED, "/token: its reply holds no token", 2 },
        { trick_wrong_digest_header, GRPC_DATA_LOSS, "but the registry says sha256:", 1 },
        { trick_layer_without_end, GRPC_UNKNOWN, "more than the", 3 },
        { trick_chunk_too_big, GRPC_UNKNOWN, "a chunk's size is no number", 3 },
    };
    AuthConfig auth = { .username = SLICE("u"), .password = SLICE("p") };
    store_fixture x;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    for (size_t i = 0; i < COUNT(rows); i++) {
        fake f;
        error e;
        int64_t start = clock_mono();
        int before = checks_failed;
        fake_up(&f, NULL, NULL);
        f.trick = rows[i].trick;
        CHECK_INT(fake_pull(&f, &x, ":1", &auth, &e), -1);
        CHECK_INT(e.code, rows[i].code);
        CHECK(strstr(e.text, rows[i].text));
        CHECK(f.requests <= rows[i].most_requests);
        CHECK(!strstr(e.text, "secret"));
        CHECK(clock_mono() - start < 25 * NS_PER_SEC);
        if (checks_failed > before) fprintf(stderr, "row %zu: %d requests, %d %s\n", i, f.requests, e.code, e.text);
        fake_down(&f);
    }
    CHECK_INT(files_in(&x, "layers"), 2);
    store_down(&x);
}

typedef struct { fake *f; store_fixture *x; const char *tag; int cancel, failed; error e; pthread_t thread; } puller;

static void *puller_run(void *arg)
{
    puller *p = arg;
    slice id;
    OWNED_ARENA a = arena_make(MIB);
    ImageSpec spec = { .image = slice_of(arena_printf(&a, "127.0.0.1:%d/x%s", p->f->port, p->tag)) };
    id = image_pull(p->x->s, &(PullImageRequest){ .image = &spec }, p->cancel, &a, &p->e);
    p->failed = id.p ? 0 : -1;
    return NULL;
}

static bool trick_slow_layer(fake *f, const char *request, int fd)
{
    (void)fd;
    if (strstr(request, f->image.layer_digest)) sleep_ns(300 * NS_PER_MS);
    return false;
}

/* Covers T42: many want the same, half of them go away; it is downloaded once. */
TEST(image_pull_by_many_downloads_once)
{
    enum { MANY = 24 };
    fake f;
    store_fixture x;
    puller p[MANY];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    f.trick = trick_slow_layer;
    for (int i = 0; i < MANY; i++) {
        p[i] = (puller){ .f = &f, .x = &x, .tag = i % 3 ? ":1" : ":2", .cancel = eventfd(0, EFD_CLOEXEC) };
        pthread_create(&p[i].thread, NULL, puller_run, &p[i]);
    }
    sleep_ns(150 * NS_PER_MS);
    for (int i = 0; i < MANY; i += 2) event_set(p[i].cancel);
    for (int i = 0; i < MANY; i++) {
        pthread_join(p[i].thread, NULL);
        CHECK_INT(p[i].failed, i % 2 ? 0 : -1);
        if (p[i].failed) CHECK_INT(p[i].e.code, GRPC_CANCELLED);
        close(p[i].cancel);
    }
    CHECK_INT(f.blobs, 1);
    CHECK_INT(layers_on_disk(&x), 1);
    fake_down(&f);
    store_down(&x);
}

static int layer_gate; /* an eventfd: the layer is answered when it is readable */
static bool trick_gated_layer(fake *f, const char *request, int fd)
{
    struct pollfd p = { .fd = layer_gate, .events = POLLIN };
    (void)fd;
    if (strstr(request, f->image.layer_digest)) poll(&p, 1, -1);
    return false;
}

typedef struct { puller p; bool weary; unsigned told; int32_t last; uint64_t done, total; char id[DIGEST_TEXT]; } watcher;

enum { WATCHERS = 3 };
static _Atomic int watchers_told; /* the last of them to be told opens the gate */

static int watcher_told(void *arg, const KrunPullProgress *now, error *e)
{
    watcher *w = arg;
    CHECK_INT(now->layers.n, 1);
    CHECK_TEXT(now->layers.p[0].digest, w->p.f->image.layer_digest);
    bool first = !w->told++;
    if (first) CHECK(now->layers.p[0].state <= KrunLayerState_DOWNLOADING && !now->image_ref.n);
    if (first && ++watchers_told == WATCHERS) event_set(layer_gate);
    w->last = now->layers.p[0].state;
    w->done = now->layers.p[0].done, w->total = now->layers.p[0].total;
    snprintf(w->id, sizeof w->id, "%.*s", PR(now->image_ref));
    return w->weary ? fail(e, GRPC_ABORTED, "weary") : 0;
}

static void *watcher_run(void *arg)
{
    watcher *w = arg;
    OWNED_ARENA a = arena_make(MIB);
    pull_watcher told = { watcher_told, w };
    ImageSpec spec = { .image = slice_of(arena_printf(&a, "127.0.0.1:%d/x:1", w->p.f->port)) };
    w->p.failed = image_pull_watched(w->p.x->s, &(PullImageRequest){ .image = &spec }, w->p.cancel, &told, &w->p.e);
    return NULL;
}

TEST(image_pull_watched_tells_all_who_watch_of_the_one_pull)
{
    fake f;
    store_fixture x;
    watcher w[WATCHERS];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    layer_gate = eventfd(0, EFD_CLOEXEC);
    watchers_told = 0;
    f.trick = trick_gated_layer;
    for (int i = 0; i < WATCHERS; i++) {
        w[i] = (watcher){ .p = { .f = &f, .x = &x, .cancel = -1 }, .weary = i == 0 };
        pthread_create(&w[i].p.thread, NULL, watcher_run, &w[i]);
    }
    for (int i = 0; i < WATCHERS; i++) pthread_join(w[i].p.thread, NULL);
    CHECK_INT(w[0].p.e.code, GRPC_ABORTED);
    CHECK_INT(w[0].told, 1);
    for (int i = 1; i < WATCHERS; i++) {
        CHECK_INT(w[i].p.failed, 0);
        CHECK(w[i].told >= 2);
        CHECK_INT(w[i].last, KrunLayerState_DONE);
        CHECK_INT(w[i].done, f.image.layer.n);
        CHECK_INT(w[i].total, f.image.layer.n);
        CHECK_TEXT(slice_of(w[i].id), f.image.config_digest);
    }
    CHECK_INT(f.blobs, 1);
    close(layer_gate);
    fake_down(&f);
    store_down(&x);
}

/* Covers T42: all go away; nothing stays, and the next pull works. */
TEST(image_pull_that_nobody_wants_any_more_leaves_nothing)
{
    fake f;
    error e;
    store_fixture x;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    f.trick = trick_slow_layer;
    puller p = { .f = &f, .x = &x, .tag = ":1", .cancel = eventfd(0, EFD_CLOEXEC) };
    pthread_create(&p.thread, NULL, puller_run, &p);
    sleep_ns(100 * NS_PER_MS);
    event_set(p.cancel);
    pthread_join(p.thread, NULL);
    CHECK_INT(p.e.code, GRPC_CANCELLED);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    CHECK_INT(files_in(&x, "layers"), 4);
    fake_down(&f);
    store_down(&x);
    close(p.cancel);
}

TEST(image_tag_that_moved_names_the_new_image_only)
{
    fake f, g;
    error e;
    store_fixture x;
    char name[64];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    fake_image_make(&g.image, "{\"os\":\"linux\",\"rootfs\":{\"diff_ids\":[\"$D\"]}}", NULL, "another");
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    fake_image first = f.image;
    f.image = g.image;
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    snprintf(name, sizeof name, "127.0.0.1:%d/x:1", f.port);
    for (int round = 0; round < 2; round++) {
        const ImageRecord *r = image_hold(x.s, slice_of(name)), *old = image_hold(x.s, slice_of(first.config_digest));
        CHECK(r && slice_is(r->id, f.image.config_digest));
        CHECK(old && old->repo_tags.n == 0 && old->repo_digests.n == 1);
        image_drop(x.s, r);
        image_drop(x.s, old);
        store_again(&x);
    }
    fake_image_free(&first);
    fake_down(&f);
    store_down(&x);
}

TEST(image_layers_outlive_their_image_while_a_container_uses_them)
{
    fake f;
    error e;
    store_fixture x;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    images_collect(x.s);
    fake_up(&f, NULL, NULL);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    slice layer_name = slice_of(f.image.layer_digest + 7);
    ContainerSpec spec = { .layers = { &layer_name, 1 } };
    ContainerRecord c = { .spec = &spec };
    image_layers_hold(x.s, &c);
    CHECK_INT(image_remove(x.s, slice_of(f.image.config_digest), &e), 0);
    sleep_ns(50 * NS_PER_MS);
    CHECK_INT(layers_on_disk(&x), 1);
    image_layers_release(x.s, &c);
    for (int i = 0; i < 100 && layers_on_disk(&x); i++) sleep_ns(20 * NS_PER_MS);
    CHECK_INT(layers_on_disk(&x), 0);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0); /* and can come again */
    fake_down(&f);
    store_down(&x);
}

/* Covers T61 for images: damaged records are put aside, what is half made goes, the rest is there. */
TEST(images_open_survives_what_a_power_cut_leaves)
{
    fake f;
    error e;
    store_fixture x;
    char name[PATH_MAX + 512];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    images_close(x.s);
    put_file(&x, "images", ZEROS ".json", SLICE(""));
    put_file(&x, "images", "1" "000000000000000000000000000000000000000000000000000000000000000.json", SLICE("{\"version\":1,\"id\":\"sha256:12\"}"));
    put_file(&x, "images", ".x.json.1.2.tmp", SLICE("{"));
    put_file(&x, "layers", ZEROS ".json", SLICE("{\"version\":1,\"diffId\":\"sha256:" ZEROS "\"}")); /* no directory */
    snprintf(name, sizeof name, "%s/layers/%s.partial", x.path, "abc");
    mkdir(name, 0700);
    x.s = images_open(&x.o, &e);
    CHECK(x.s && store_has(&x, f.image.config_digest));
    CHECK_INT(files_in(&x, "images"), 4); /* two good, two put aside */
    CHECK_INT(files_in(&x, "layers"), 4);
    images_close(x.s);
    snprintf(name, sizeof name, "%s/layers/%s.json", x.path, f.image.layer_digest + 7);
    unlink(name);                         /* the layer's mark is gone: so is the image, until it is pulled */
    x.s = images_open(&x.o, &e);
    CHECK(x.s && !store_has(&x, f.image.config_digest));
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    fake_down(&f);
    store_down(&x);
}

static bool there(const store_fixture *x, const char *dir, const char *name, const char *end)
{
    char path[PATH_MAX + 512];
    snprintf(path, sizeof path, "%s/%s/%s%s", x->path, dir, name, end);
    return access(path, F_OK) == 0;
}

/* R22: what a newer krun has written keeps no start, and is there when that comes back. `layer`: the image's
 * record is ours, and only its layer's is not. */
static void newer_record(bool layer)
{
    fake f;
    error e;
    store_fixture x;
    char name[LAYER_NAME + 8];
    store_up(&x);
    fake_up(&f, NULL, NULL);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    images_close(x.s);
    const char *dir = layer ? "layers" : "images", *digest = layer ? f.image.layer_digest : f.image.config_digest;
    snprintf(name, sizeof name, "%s.json", digest + 7);
    put_file(&x, dir, name, SLICE("{\"version\": 9, \"id\": [], \"diffId\": 7}")); /* not even of the kind we know */
    put_file(&x, "blobs", ZEROS, SLICE("x"));
    x.s = images_open(&x.o, &e);
    CHECK(x.s);
    images_collect(x.s);
    CHECK(!store_has(&x, f.image.config_digest));
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), -1);
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    CHECK(strstr(e.text, "newer krun") && strstr(e.text, name));
    images_close(x.s);
    x.s = images_open(&x.o, &e);
    CHECK(x.s);
    CHECK(there(&x, "images", f.image.config_digest + 7, ".json"));
    CHECK(there(&x, "layers", f.image.layer_digest + 7, ".json"));
    CHECK(there(&x, "layers", f.image.layer_digest + 7, ""));
    CHECK(there(&x, "blobs", ZEROS, ""));
    OWNED_ARENA a = arena_make(MIB);
    slice text = file_read(layer ? x.s->layers_fd : x.s->images_fd, name, MIB, &a, &e);
    CHECK(slice_starts(text, "{\"version\": 9"));
    fake_down(&f);
    store_down(&x);
}

TEST(images_of_a_newer_krun_are_left_alone)
{
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    newer_record(false);
}

TEST(layers_of_a_newer_krun_are_left_alone_with_their_images)
{
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    newer_record(true);
}

/* A record's sum says that a bit has flipped in its version. */
TEST(images_whose_version_has_a_flipped_bit_are_damaged_and_not_newer)
{
    fake f;
    error e;
    store_fixture x;
    char name[LAYER_NAME + 8];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    fake_up(&f, NULL, NULL);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    snprintf(name, sizeof name, "%s.json", f.image.config_digest + 7);
    OWNED_ARENA a = arena_make(MIB);
    slice text = file_read(x.s->images_fd, name, MIB, &a, &e);
    uint8_t *version = text.p ? memmem(text.p, text.n, "\"version\": 1", 12) : NULL;
    CHECK(version);
    if (version) version[11] = '3';
    images_close(x.s);
    put_file(&x, "images", name, text);
    x.s = images_open(&x.o, &e);
    CHECK(x.s && !x.s->unsure);
    CHECK(!there(&x, "images", name, ""));
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    fake_down(&f);
    store_down(&x);
}

/* Covers T56 for pulls: killed between any two steps, the next start cleans up and the next pull works. */
TEST(image_pull_killed_at_any_step_can_be_pulled_again)
{
    static const char *const steps[] = { "pull.bytes:1", "pull.layer:1", "record:1", "pull.rename:1", "pull.record:1", "record:2", "pull.tags:1" };
    fake f;
    error e;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    fake_up(&f, NULL, NULL);
    for (size_t i = 0; i < COUNT(steps); i++) {
        store_fixture x;
        char name[64], fault[64], *argv[] = { "krun", "pull-into", x.path, name, NULL }, *envp[] = { fault, NULL };
        store_up(&x);
        images_close(x.s);
        snprintf(name, sizeof name, "127.0.0.1:%d/x:1", f.port);
        snprintf(fault, sizeof fault, "KRUN_FAULT=%s", steps[i]);
        OWNED_FD pidfd = spawn(&(spawn_args){ .exec_fd = self_program(&e), .argv = argv, .envp = envp, .fds = (int[]){ 0, 1, 2 }, .nfds = 3 }, NULL, &e);
        CHECK_INT(reap(pidfd, 0), 128 + SIGKILL);
        x.s = images_open(&x.o, &e);
        CHECK_INT(x.s ? fake_pull(&f, &x, ":1", NULL, &e) : -1, 0);
        CHECK_INT(files_in(&x, "layers"), 4);
        CHECK_INT(files_in(&x, "images"), 2);
        store_down(&x);
    }
    fake_down(&f);
}

TEST(image_messages_are_what_the_kubelet_expects)
{
    static const struct { const char *user; long long uid; const char *name; } rows[] = { /* uid -1: absent */
        { "", -1, "" }, { "7:8", 7, "" }, { "0", 0, "" }, { "www:grp", -1, "www" }, { "4294967296", 4294967296, "" },
        { "99999999999999999999", -1, "99999999999999999999" }, { "-1", -1, "-1" }, { "0x0", -1, "0x0" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        ImageConfig config = { .user = slice_of(rows[i].user) };
        ImageRecord r = { .config = &config };
        Image out = { 0 };
        Int64Value uid;
        image_user(&r, &out, &uid);
        CHECK_INT(out.uid ? out.uid->value : -1, rows[i].uid);
        CHECK_TEXT(out.username, rows[i].name);
    }
}

TEST(image_status_verbose_holds_the_chain_and_the_config)
{
    slice layers[] = { SLICE(ZEROS), SLICE(ZEROS) };
    ImageRecord r = { .layers = { layers, 2 }, .config_json = SLICE("{\"os\":\"linux\"}") };
    OWNED_ARENA a = arena_make(MIB);
    error e;
    const json *info = json_parse(image_info(&r, &a), &a, &e);
    /* printf 'sha256:000... sha256:000...' | sha256sum */
    CHECK_TEXT(json_text(json_get(json_get(info, "imageSpec"), "os")), "linux");
    CHECK_INT(json_text(json_get(info, "chainID")).n, 71);
    r.layers.n = 1;
    info = json_parse(image_info(&r, &a), &a, &e);
    CHECK_TEXT(json_text(json_get(info, "chainID")), "sha256:" ZEROS);
}

TEST(platform_choice_takes_the_best_that_this_machine_runs)
{
    static const struct { const char *ours, *index, *want; } rows[] = { /* want: the first digit of the digest */
        { "linux/amd64/v2", "amd64", "1" }, { "linux/arm/v7", "arm:v6 arm:v7 arm:v8", "2" },
        { "linux/arm/v6", "arm:v7 arm:v6 arm:v5", "2" }, { "linux/amd64/v3", "amd64 amd64:v2 amd64:v4 amd64:v3", "4" },
        { "linux/amd64/v1", "arm64 amd64:v2", NULL }, { "linux/arm64/v8", "amd64 arm64 arm64:v8", "2" },
        { "linux/riscv64", "arm64 - riscv64", "3" }, { "linux/riscv64", "arm64 -", "2" }, { "linux/amd64", "amd64:weird", NULL },
        { "linux/amd64/v3", "amd64:v1 amd64 amd64:v2", "3" }, { "linux/amd64/v1", "amd64:v3 amd64:v2 amd64:v1 amd64", "3" },
        { "linux/amd64/v2", "386 amd64", "2" }, { "linux/amd64/v2", "- 386 arm64", "2" }, { "linux/386", "amd64 386", "2" },
        { "linux/arm64/v8", "arm:v6 arm:v7 arm64:v8", "3" }, { "linux/arm64/v8", "arm:v6 arm:v7 amd64", "2" },
        { "linux/arm64/v8", "arm64:v9 arm64", "2" }, { "linux/arm/v7", "arm64 arm64:v8", NULL },
        { "linux/arm/v6", "arm", NULL }, { "linux/arm/v7", "arm arm:v7", "1" }, { "linux/riscv64", "riscv64 riscv64", "1" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e;
        ReadAnswer out = { 0 };
        OWNED_BUF text = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        int n = 0;
        buf_str(&text, "{\"manifests\":[");
        for (slice rest = slice_of(rows[i].index), one; rest.n; n++) {
            one = slice_cut(&rest, ' ');
            slice variant = one, arch = slice_cut(&variant, ':');
            buf_printf(&text, "%s{\"size\":1,\"digest\":\"sha256:%d%s\"", n ? "," : "", n + 1, &ZEROS[1]);
            if (!slice_is(arch, "-")) buf_printf(&text, ",\"platform\":{\"os\":\"linux\",\"architecture\":\"%.*s\",\"variant\":\"%.*s\"}", PR(arch), PR(variant));
            buf_str(&text, "}");
        }
        buf_str(&text, "]}");
        const json *doc = json_parse(buf_view(&text), &a, &e);
        int got = doc_choose(doc, slice_of(rows[i].ours), &a, &out, &e);
        CHECK_INT(got, rows[i].want ? 0 : -1);
        if (got == 0 && rows[i].want) CHECK_INT(out.chosen->digest.p[7], rows[i].want[0]);
    }
}

/* Covers T38. `entries` is an index's list; the digest's first digit tells who was chosen. */
TEST(platform_choice_never_takes_what_is_no_image)
{
#define ENTRY(n, more) "{\"size\":1,\"digest\":\"sha256:" n "00000000000000000000000000000000000000000000000000000000000000" "0\"" more "}"
#define LINUX ",\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"}"
#define UNKNOWN ",\"platform\":{\"os\":\"unknown\",\"architecture\":\"unknown\"}"
#define ABOUT ",\"annotations\":{\"vnd.docker.reference.type\":\"attestation-manifest\"}"
#define ARTIFACT ",\"artifactType\":\"application/vnd.example.sbom\""
    static const struct { const char *entries; char want; } rows[] = {
        { ENTRY("1", UNKNOWN ABOUT) "," ENTRY("2", LINUX), '2' },
        { ENTRY("1", LINUX) "," ENTRY("2", UNKNOWN ABOUT), '1' },
        { ENTRY("1", UNKNOWN ABOUT), 0 },
        { ENTRY("1", ABOUT), 0 },
        { ENTRY("1", ABOUT) "," ENTRY("2", ""), '2' },
        { ENTRY("1", LINUX ABOUT) "," ENTRY("2", LINUX), '2' },
        { ENTRY("1", ARTIFACT) "," ENTRY("2", ""), '2' },
        { ENTRY("1", LINUX ARTIFACT), 0 },
        { ENTRY("1", LINUX ",\"artifactType\":\"\""), '1' },
        { ENTRY("1", ",\"platform\":null"), '1' },
        { ENTRY("1", ",\"platform\":{\"os\":\"windows\",\"architecture\":\"amd64\"}"), 0 },
        { ENTRY("1", ",\"platform\":\"linux/amd64\""), 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e;
        ReadAnswer out = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        slice text = slice_of(arena_printf(&a, "{\"manifests\":[%s]}", rows[i].entries));
        const json *doc = json_parse(text, &a, &e);
        int got = doc_choose(doc, SLICE("linux/amd64/v2"), &a, &out, &e);
        if ((got == 0) != (rows[i].want != 0)) fprintf(stderr, "row %zu: %s\n", i, e.text);
        CHECK_INT(got, rows[i].want ? 0 : -1);
        if (got == 0 && rows[i].want) CHECK_INT(out.chosen->digest.p[7], rows[i].want);
    }
}

static int load_from(store_fixture *x, const char *path, arena *a, slice_list *names, error *e)
{
    load_state l = { .store = x->s, .path = path, .cancel_fd = -1, .from = helper_none, .a = a };
    int failed = image_load(&l, e);
    *names = l.names;
    return failed;
}

/* A layout directory and docker's form, as load takes them. */
TEST(image_load_takes_a_layout_and_refuses_what_lies)
{
    fake_image f;
    error e = { 0 };
    store_fixture x;
    char dir[PATH_MAX], path[PATH_MAX + 160];
    OWNED_ARENA a = arena_make(4 * MIB);
    OWNED_BUF index = { 0 };
    slice_list names;
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    int at = temp_dir(dir);
    fake_image_make(&f, NULL, NULL, "hello, world");
    CHECK(mkdirat(at, "blobs", 0755) == 0 && mkdirat(at, "blobs/sha256", 0755) == 0);
    snprintf(path, sizeof path, "%s/blobs/sha256", dir);
    OWNED_FD blobs = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_INT(file_replace(blobs, f.layer_digest + 7, buf_view(&f.layer), ATOMIC, &e), 0);
    CHECK_INT(file_replace(blobs, f.config_digest + 7, buf_view(&f.config), ATOMIC, &e), 0);
    CHECK_INT(file_replace(blobs, f.manifest_digest + 7, buf_view(&f.manifest), ATOMIC, &e), 0);
    buf_printf(&index, "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"%s\",\"size\":%zu,"
               "\"annotations\":{\"org.opencontainers.image.ref.name\":\"example.com/a/b:c\"}}]}", f.manifest_digest, f.manifest.n);
    CHECK_INT(file_replace(at, "index.json", buf_view(&index), ATOMIC, &e), 0);
    CHECK_INT(load_from(&x, dir, &a, &names, &e), 0);
    if (e.code) fprintf(stderr, "%s\n", e.text);
    CHECK(names.n == 1 && slice_is(names.p[0], "example.com/a/b:c"));
    CHECK(store_has(&x, "example.com/a/b:c"));
    unlinkat(blobs, f.config_digest + 7, 0);
    CHECK_INT(symlinkat("/etc/passwd", blobs, f.config_digest + 7), 0); /* no way out of the directory */
    CHECK_INT(load_from(&x, dir, &a, &names, &e), -1);
    CHECK_INT(load_from(&x, "/dev/null", &a, &names, &e), -1);
    CHECK_INT(load_from(&x, "relative", &a, &names, &e), -1);
    CHECK_INT(load_from(&x, "/nonexistent", &a, &names, &e), -1);
    CHECK_INT(e.code, GRPC_NOT_FOUND);
    close(at);
    tree_remove(AT_FDCWD, dir, &e);
    fake_image_free(&f);
    store_down(&x);
}

/* What an archive has shown it is not asked for again: not by an image that lists it for each layer. */
TEST(a_blob_that_an_archive_has_shown_is_not_read_again)
{
    error e = { 0 };
    store_fixture x;
    pull_state p;
    void *seen = NULL;
    char digest[DIGEST_TEXT], layer[DIGEST_TEXT], other[DIGEST_TEXT];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    memset(digest, 'a', sizeof digest), memset(layer, 'b', sizeof layer), memset(other, 'c', sizeof other);
    char *const all[] = { digest, layer, other };
    for (int i = 0; i < 3; i++) memcpy(all[i], "sha256:", 7), all[i][DIGEST_TEXT - 1] = '\0';
    Descriptor blob = { .digest = slice_of(digest), .size = 5 };
    layer_plan l = layer_plan_of(slice_of(layer), &blob), another = layer_plan_of(slice_of(other), &blob);
    pull_begin(&p, x.s, -1);
    p.here = true; /* so the layer is known to come from that blob */
    p.seen = &seen;
    CHECK_INT(layer_prove(&p, &p.source, &l, &e), -1); /* there is nobody to show it */
    layer_seen(&p, &l, true);
    CHECK_INT(layer_prove(&p, &p.source, &l, &e), 0);
    CHECK_INT(layer_prove(&p, &p.source, &another, &e), -1); /* the same blob as another layer */
    tdestroy(seen, free);
    pull_end(&p);
    store_down(&x);
}

TEST(archive_hash_reads_a_file_once_whatever_it_is_called)
{
    error e = { 0 };
    char dir[PATH_MAX], name[16];
    archive_view ar = { .is_directory = true, .a = arena_make(MIB) };
    OWNED_FD at = ar.fd = temp_dir(dir);
    ar.blobs = arena_alloc(&ar.a, 4 * sizeof *ar.blobs);
    CHECK_INT(file_replace(at, "layer.tar", SLICE("the same"), ATOMIC, &e), 0);
    CHECK_INT(file_replace(at, "copy.tar", SLICE("the same"), ATOMIC, &e), 0);
    const archive_blob *first = archive_hash(&ar, SLICE("layer.tar"), &e);
    CHECK(first != NULL);
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "n%d", i);
        CHECK_INT(i % 2 ? symlinkat("layer.tar", at, name) : linkat(at, "layer.tar", at, name, 0), 0);
        CHECK(archive_hash(&ar, slice_of(name), &e) == first);
    }
    CHECK_INT(ar.nblobs, 1);
    const archive_blob *copy = archive_hash(&ar, SLICE("copy.tar"), &e);
    CHECK(copy && copy != first && !strcmp(copy->digest, first->digest));
    arena_free(&ar.a);
    tree_remove(AT_FDCWD, dir, &e);
}

/* A verifier of these lines; its path is in *path. */
enum { VERIFIER_PATH = PATH_MAX + 16 };
static void verifier_make(char path[VERIFIER_PATH], const char *script)
{
    error e;
    OWNED_BUF text = { 0 };
    char dir[PATH_MAX];
    OWNED_FD at = temp_dir(dir);
    snprintf(path, VERIFIER_PATH, "%s/verify", dir);
    buf_printf(&text, "#!/bin/sh\n%s\n", script);
    CHECK_INT(file_replace(at, "verify", buf_view(&text), ATOMIC, &e), 0);
    CHECK_INT(fchmodat(at, "verify", 0700, 0), 0);
}

static void verifier_remove(char path[VERIFIER_PATH])
{
    error e;
    *strrchr(path, '/') = '\0';
    tree_remove(AT_FDCWD, path, &e);
}

TEST(verify_says_no_unless_the_program_says_yes)
{
    static const struct { const char *script, *says; int64_t patience; int code; } rows[] = {
        { "exit 0", NULL, VERIFY_TIME, 0 },
        { "test \"$1 $2 $KRUN_IMAGE $KRUN_DIGEST $KRUN_PLATFORM_DIGEST\" = 'x/y:z d x/y:z d p' && ! read line", NULL, VERIFY_TIME, 0 },
        { "echo out; echo err >&2; exit 3", "SignatureValidationFailed: x/y:z: ", VERIFY_TIME, GRPC_UNKNOWN },
        { "echo out; echo err >&2; exit 3", "exit status 3: out\\x0aerr", VERIFY_TIME, GRPC_UNKNOWN },
        { "kill -9 $$", "exit status 137", VERIFY_TIME, GRPC_UNKNOWN },
        { "sleep 1000", "has not ended within", NS_PER_MS, GRPC_UNKNOWN },
        { "sleep 1000 & exit 0", NULL, VERIFY_TIME, 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char path[VERIFIER_PATH];
        error e = { 0 };
        verifier_make(path, rows[i].script);
        verify_question q = { .program = path, .digest = "d", .platform = "p", .reference = SLICE("x/y:z"),
                              .cancel_fd = -1, .patience = rows[i].patience };
        CHECK_INT(verify_ask(&q, &e), rows[i].code ? -1 : 0);
        CHECK_INT(e.code, rows[i].code);
        if (rows[i].says && !strstr(e.text, rows[i].says)) fprintf(stderr, "%s\n", e.text);
        CHECK(!rows[i].says || strstr(e.text, rows[i].says));
        verifier_remove(path);
    }
    error e = { 0 };
    verify_question q = { .program = "/no/such/verifier", .digest = "d", .platform = "p", .reference = SLICE("x/y:z"),
                          .cancel_fd = eventfd(1, EFD_CLOEXEC), .patience = VERIFY_TIME };
    CHECK_INT(verify_ask(&q, &e), -1);
    CHECK_INT(e.code, GRPC_UNKNOWN);
    CHECK(slice_starts(slice_of(e.text), "SignatureValidationFailed: "));
    char path[VERIFIER_PATH];
    verifier_make(path, "sleep 1000");
    q.program = path;
    CHECK_INT(verify_ask(&q, &e), -1); /* its cancel_fd is readable */
    CHECK_INT(e.code, GRPC_CANCELLED);
    close(q.cancel_fd);
    verifier_remove(path);
}

TEST(verify_keeps_the_last_that_was_printed)
{
    int ends[2];
    char sent[3 * VERIFY_KEPT];
    CHECK_INT(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (char)('a' + i % 23);
    for (size_t n = 0, step = 1; n < sizeof sent; n += step, step = MIN(step * 3, sizeof sent - n)) {
        verify_output out = { .fd = ends[0] };
        CHECK_INT(write(ends[1], sent, n), n);
        for (size_t i = 0; i < 8; i++) CHECK(verify_read(&out));
        CHECK_INT(out.n, MIN(n, (size_t)VERIFY_KEPT));
        CHECK(!memcmp(out.kept, sent + n - out.n, out.n));
        if (step == 0) break;
    }
    verify_output out = { .fd = ends[0] };
    close(ends[1]);
    CHECK(!verify_read(&out));
    close(ends[0]);
}

/* -- the helpers' filters ------------------------------------------------------------------------ */

/* The number after `field` in a status file of /proc; -1 if it is not there. */
static int proc_number(const char *path, const char *field)
{
    error e;
    int value = -1;
    OWNED_ARENA a = arena_make(64 * KIB);
    slice text = file_read(AT_FDCWD, path, 16384, &a, &e);
    const char *at = text.p ? strstr((const char *)text.p, field) : NULL;
    if (at) sscanf(at + strlen(field), " %d", &value);
    return value;
}

static int helper_number(const helper *h, const char *field)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", h->pidfd);
    snprintf(path, sizeof path, "/proc/%d/status", proc_number(path, "Pid:"));
    return proc_number(path, field);
}

/* The filters that a helper has beside those that we may have ourselves. */
static int helper_filters(const helper *h)
{
    const char *field = "\nSeccomp_filters:";
    return helper_number(h, field) - proc_number("/proc/self/status", field);
}

static void check_filtered(helper *h)
{
    CHECK_INT(helper_filters(h), role_filter_works());
    if (role_filter_works()) CHECK_INT(helper_number(h, "\nSeccomp:"), 2);
    CHECK_INT(helper_number(h, "\nNoNewPrivs:"), 1);
    helper_stop(h);
}

/* A blob as the daemon gives it to unpack, and what it says of its size: all of it is there. */
static int blob_file(slice bytes)
{
    int fd = (int)syscall(SYS_memfd_create, "blob", 1U /* MFD_CLOEXEC */);
    if (fd < 0 || write_all(fd, bytes.p, bytes.n) < 0) abort();
    return fd;
}

TEST(helper_that_computes_for_longer_than_its_bytes_can_be_worth_is_ended)
{
    helper h;
    error e = { 0 };
    ReadAnswer answer;
    OWNED_ARENA a = arena_make(MIB);
    CHECK_INT(helper_cpu(0), 120);
    CHECK_INT(helper_cpu(64 * MIB), 120 + 2048);
    CHECK_INT(helper_cpu(UINT64_MAX), 120U + INT32_MAX);
    CHECK_INT(helper_start(&h, "spin", (int[]){ -1, -1 }, (helper_terms){ -1, 1 }, &e), 0);
    CHECK_INT(helper_receive(&h, &ReadAnswer_msg, &a, &answer, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK_TEXT(slice_of(e.text),
               "krun spin has taken the 1 s of processor time that so few bytes may cost");
    helper_stop(&h);
}

TEST(helpers_work_under_a_filter)
{
    fake f;
    helper h;
    error e = { 0 };
    char dir[PATH_MAX], base[64];
    ReadAnswer read_answer;
    ArchiveIndex index;
    OWNED_ARENA a = arena_make(MIB);
    OWNED_BUF body = { 0 };
    const int none[2] = { -1, -1 };
    if (geteuid() != 0) SKIP("chroot needs root");
    fake_up(&f, NULL, NULL);
    OWNED_FD at = temp_dir(dir);

    CHECK_INT(helper_start(&h, "read", none, (helper_terms){ -1, 0 }, &e), 0);
    ReadRequest q = { .body = buf_view(&f.image.manifest) };
    CHECK_INT(helper_send(&h, &ReadRequest_msg, &q, &e), 0);
    CHECK_INT(helper_receive(&h, &ReadAnswer_msg, &a, &read_answer, &e), 0);
    CHECK(read_answer.config != NULL);
    check_filtered(&h);

    snprintf(base, sizeof base, "http://127.0.0.1:%d/v2", f.port);
    FetchHost host = { .base = slice_of(base), .resolve = true, .pull = true };
    FetchSetup setup = { .domain = SLICE("x"), .path = SLICE("y"), .hosts = { &host, 1 } };
    FetchRequest get = { .reference = SLICE("latest"), .manifest = true, .size = MIB };
    blob_sink sink = { .memory = &body, .file = -1 };
    CHECK_INT(helper_start(&h, "fetch", none, (helper_terms){ -1, 0 }, &e), 0);
    CHECK_INT(helper_send(&h, &FetchSetup_msg, &setup, &e), 0);
    CHECK_INT(source_get(&h, &get, &sink, &a, &e), 0);
    if (e.code) fprintf(stderr, "%s\n", e.text);
    CHECK(slice_eq(buf_view(&body), buf_view(&f.image.manifest)));
    check_filtered(&h);

    CHECK_INT(helper_start(&h, "archive", (int[]){ at, -1 }, (helper_terms){ -1, 0 }, &e), 0);
    CHECK_INT(helper_receive(&h, &ArchiveIndex_msg, &a, &index, &e), 0);
    CHECK_INT(index.code, GRPC_NOT_FOUND); /* an empty directory */
    check_filtered(&h);

    OWNED_FD blob = blob_file(buf_view(&f.image.layer));
    CHECK_INT(helper_start(&h, "unpack", (int[]){ at, blob }, (helper_terms){ -1, 0 }, &e), 0);
    uint8_t size[8] = { 2, 2 }; /* the header and two bytes of "hello, world" */
    for (int i = 0; i < 3 * MIB / 8; i++) /* its pipe holds one: when we are rid of these, it has read */
        if (helper_write(&h, size, sizeof size, &e) < 0) CHECK(false);
    check_filtered(&h);

    CHECK_INT(helper_start(&h, "pack", (int[]){ at, -1 }, (helper_terms){ -1, 0 }, &e), 0);
    body.n = 0;
    sink = (blob_sink){ .memory = &body, .file = -1 };
    CHECK_INT(source_get(&h, &(FetchRequest){ .size = MIB }, &sink, &a, &e), 0);
    if (e.code) fprintf(stderr, "%s\n", e.text);
    CHECK(body.n >= 1024); /* a directory in which unpack has made a file, maybe */
    check_filtered(&h);

    tree_remove(AT_FDCWD, dir, &e);
    fake_down(&f);
}

static int vectors_answered;

/* Whatever is in an archive, unpack answers: it makes no call that its filter does not know. */
static void unpack_answers(const char *name, slice bytes)
{
    helper h;
    error e = { 0 };
    char dir[PATH_MAX];
    UnpackAnswer answer;
    OWNED_ARENA a = arena_make(MIB);
    OWNED_FD at = temp_dir(dir);
    OWNED_FD blob = blob_file(bytes);
    uint8_t size[8] = { 0 };
    for (int i = 0; i < 8; i++) size[i] = (uint8_t)((uint64_t)bytes.n >> (8 * i));
    CHECK_INT(helper_start(&h, "unpack", (int[]){ at, blob }, (helper_terms){ -1, 0 }, &e), 0);
    if (helper_write(&h, size, sizeof size, &e) < 0) CHECK_INT(e.sys, EPIPE);
    close_fd(&h.to);
    int got = helper_receive(&h, &UnpackAnswer_msg, &a, &answer, &e);
    if (got < 0) fprintf(stderr, "%s: %s\n", name, e.text);
    else vectors_answered++;
    CHECK_INT(got, 0);
    helper_stop(&h);
    tree_remove(AT_FDCWD, dir, &e);
}

TEST(unpack_answers_under_its_filter_whatever_the_archive)
{
    static const char *const sets[] = { "tar-hostile", "tar-go", "tar-libarchive", "gzip-cases",
                                        "zstd/decodecorpus" };
    if (geteuid() != 0) SKIP("chroot needs root");
    for (size_t i = 0; i < COUNT(sets); i++)
        if (each_vector(sets[i], unpack_answers) < 0) SKIP("no %s", sets[i]);
    CHECK(vectors_answered > 100);
}

/* A layer's device nodes are made, and of no use to who makes them. */
TEST(hide_devices_lets_no_device_be_opened)
{
    char dir[PATH_MAX];
    error e = { 0 };
    if (geteuid() != 0) SKIP("mounts need root");
    OWNED_FD at = temp_dir(dir);
    CHECK_INT(mknodat(at, "before", S_IFCHR | 0666, makedev(1, 3)), 0);
    OWNED_FD null = openat(at, "before", O_RDWR | O_CLOEXEC);
    if (null < 0) SKIP("no device can be opened in %s", dir);
    CHECK_INT(hide_devices(at, &e), 0);
    CHECK_INT(mknodat(at, "after", S_IFCHR | 0666, makedev(1, 3)), 0);
    CHECK(openat(at, "before", O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
    CHECK(openat(at, "after", O_RDWR | O_CLOEXEC) < 0 && errno == EACCES);
    OWNED_FD file = openat(at, "file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(file >= 0);
    CHECK_INT(linkat(at, "file", at, "link", 0), 0);
    tree_remove(AT_FDCWD, dir, &e);
}

/* With a tls_helper there is none: the program would inherit it. */
TEST(fetch_with_a_tls_helper_has_no_filter)
{
    helper h;
    error e = { 0 };
    OWNED_ARENA a = arena_make(MIB);
    slice program = SLICE("/bin/false");
    FetchSetup setup = { .domain = SLICE("x"), .path = SLICE("y"), .tls_helper = { &program, 1 } };
    FetchRequest get = { .reference = SLICE("latest"), .manifest = true, .size = MIB };
    CHECK_INT(helper_start(&h, "fetch", (int[]){ -1, -1 }, (helper_terms){ -1, 0 }, &e), 0);
    CHECK_INT(helper_send(&h, &FetchSetup_msg, &setup, &e), 0);
    CHECK_INT(source_get(&h, &get, &(blob_sink){ .file = -1 }, &a, &e), -1);
    CHECK_INT(helper_filters(&h), 0);
    helper_stop(&h);
}

TEST(helper_that_a_signal_ends_is_reported_with_it)
{
    static const struct { int sig; const char *want; } rows[] = {
        { SIGSYS, "krun read was killed by signal 31 (Bad system call)" },
        { SIGSEGV, "krun read was killed by signal 11 (Segmentation fault)" },
        { SIGKILL, "krun read ended before it answered" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        helper h;
        error e = { 0 };
        uint8_t byte;
        CHECK_INT(helper_start(&h, "read", (int[]){ -1, -1 }, (helper_terms){ -1, 0 }, &e), 0);
        sys_pidfd_kill(h.pidfd, rows[i].sig);
        CHECK_INT(helper_read(&h, &byte, 1, &e), -1);
        CHECK_TEXT(slice_of(e.text), rows[i].want);
        helper_stop(&h);
    }
}

/* Run by hand: KRUN_TEST_PULL="127.0.0.1:5000/x:1 /dir/archive.tar ..." KRUN_TEST_AUTH="user:password" */
TEST(images_pull_what_the_environment_names)
{
    store_fixture x;
    const char *names = getenv("KRUN_TEST_PULL");
    slice password = slice_of(getenv("KRUN_TEST_AUTH")), user = slice_cut(&password, ':');
    AuthConfig auth = { .username = user, .password = password };
    if (!names) SKIP("KRUN_TEST_PULL is not set");
    store_up(&x);
    for (slice rest = slice_of(names), one; rest.n;) {
        error e = { 0 };
        slice id;
        OWNED_ARENA a = arena_make(MIB);
        one = slice_cut(&rest, ' ');
        PullImageRequest q = { .image = &(ImageSpec){ .image = one }, .auth = user.n ? &auth : NULL };
        int64_t t = clock_mono();
        int failed = slice_starts(one, "/") || !(id = image_pull(x.s, &q, -1, &a, &e)).p;
        if (slice_starts(one, "/")) {
            slice_list got;
            failed = load_from(&x, arena_str(&a, one), &a, &got, &e);
            for (size_t i = 0; i < got.n; i++) printf("loaded %.*s\n", PR(got.p[i]));
        }
        printf("%.*s: %s (code %d) %.1f ms\n", PR(one), failed ? e.text : "ok", failed ? e.code : 0, (double)(clock_mono() - t) / 1e6);
        CHECK(!failed);
    }
    OWNED_ARENA a = arena_make(MIB);
    ListImagesResponse list = { 0 };
    error e;
    OWNED_BUF text = { 0 };
    images_list(x.s, (slice){ NULL, 0 }, &a, &list, &e);
    pb_write_json(&ListImagesResponse_msg, &list, PB_INDENT, &text);
    printf("%.*s\n", PR(buf_view(&text)));
    if (getenv("KRUN_TEST_KEEP")) printf("kept in %s\n", x.path);
    else store_down(&x);
}
