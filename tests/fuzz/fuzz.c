/* Fuzz targets: each gives bytes that nobody has checked to one of krun's readers, and then looks
 * whether what must hold for any bytes does hold; a crash is only the loudest thing that can be
 * wrong. Where a reader gets its input in pieces, it reads the same bytes in other pieces and must
 * say the same.
 *
 * Built two ways (see the Makefile):
 *   tests/fuzz/fuzz-clang   libFuzzer, which looks for inputs that reach new code. The target is
 *                           named by FUZZ_TARGET, all else is libFuzzer's own command line
 *   tests/fuzz/fuzz-gcc     our own driver, at the end of this file, which changes seeds blindly:
 *                           fuzz-gcc TARGET SECONDS CRASH-FILE SEED-FILE-OR-DIRECTORY...
 *                           With 0 seconds it only runs the files it is given, to repeat a crash. */
#define KRUN_NO_MAIN
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <unistd.h>

/* Everything in krun.c that is called "read" gets another name: members alike on both sides of
 * their dot, and read(2) becomes the function below. So a connection can be made of memory. */
#define read fuzz_read
static ssize_t fuzz_read(int fd, void *p, size_t n);
#include "../../krun.c"
#undef read

enum { FUZZ_FD = 1000000 }; /* no descriptor that the kernel would give us */

/* How the bytes of an input are cut into reads. 0: all that is asked for. */
typedef struct { slice left; size_t piece; uint32_t noise; } fuzz_feed;

static fuzz_feed fuzz_conn; /* what FUZZ_FD gives */

static size_t fuzz_piece(fuzz_feed *f, size_t n)
{
    size_t most = f->piece;
    f->noise = f->noise * 1664525 + 1013904223;
    if (f->piece == SIZE_MAX) most = 1 + (f->noise >> 16) % 700; /* another number every time */
    return MIN(MIN(n, f->left.n), most ? most : n);
}

static ssize_t fuzz_take(fuzz_feed *f, void *p, size_t n)
{
    slice head;
    slice_take(&f->left, fuzz_piece(f, n), &head);
    if (head.n) memcpy(p, head.p, head.n);
    return (ssize_t)head.n;
}

static ssize_t fuzz_read(int fd, void *p, size_t n)
{
    return fd == FUZZ_FD ? fuzz_take(&fuzz_conn, p, n) : syscall(SYS_read, fd, p, n);
}

typedef struct { source source; fuzz_feed feed; } fuzz_source;

static ssize_t fuzz_source_read(source *s, uint8_t *p, size_t n, error *e)
{
    (void)e;
    return fuzz_take(&OWNER(s, fuzz_source, source)->feed, p, n);
}

static source *fuzz_source_open(fuzz_source *f, fuzz_feed feed)
{
    *f = (fuzz_source){ { fuzz_source_read }, feed };
    return &f->source;
}

/* Stops the program, which is how both drivers learn that something is wrong. */
#define MUST(condition)                                                                  \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "fuzz.c:%d: %s: not true: %s\n", __LINE__, __func__, #condition); \
            abort();                                                                     \
        }                                                                                \
    } while (0)

static const size_t fuzz_pieces[] = { 0, 1, SIZE_MAX, 512 };

/* What an error says, or nothing; for a transcript of what a reader made of its input. */
static void fuzz_tell(buf *out, int failed, const error *e)
{
    if (failed) buf_printf(out, "\nfailed %d %s", e->code, e->text);
}

/* -- inflate, zstd --------------------------------------------------------------------------------
 *
 * The output depends neither on how the input comes nor on how much is asked for at once. What was
 * given out before an error may differ in length, as the error is found earlier or later. */

enum { FUZZ_OUT_MAX = 768 * KIB }; /* more than either decoder keeps */

/* Unpacks into *out, at most FUZZ_OUT_MAX bytes. 0 at the end, 1 if it was stopped, -1 and *e. */
static int fuzz_unpack(fuzz_feed feed, size_t step, buf *out, error *e)
{
    fuzz_source in;
    decompressor d;
    ssize_t got = 1;
    source *plain = decompress_open(&d, fuzz_source_open(&in, feed), e);
    if (!plain) return -1;
    while (got > 0 && out->n < FUZZ_OUT_MAX) {
        if (!buf_reserve(out, step)) abort();
        got = plain->fuzz_read(plain, out->p + out->n, step, e);
        MUST(got <= (ssize_t)step);
        out->n += (size_t)MAX(got, 0);
    }
    if (got == 0) MUST(plain->fuzz_read(plain, out->p, 1, e) == 0); /* the end stays the end */
    decompress_close(&d);
    return got < 0 ? -1 : got > 0;
}

static void fuzz_decompress(slice input)
{
    static const struct { size_t piece, step; } ways[] = {
        { 0, 64 * KIB }, { 1, 5000 }, { SIZE_MAX, 256 * KIB }, { 0, 1 },
    };
    OWNED_BUF first = { 0 };
    error e1 = { 0 };
    int end = fuzz_unpack((fuzz_feed){ input, ways[0].piece, 1 }, ways[0].step, &first, &e1);
    MUST(end >= 0 || (e1.code && e1.text[0]));
    for (size_t i = 1; i < COUNT(ways); i++) {
        OWNED_BUF again = { 0 };
        error e2 = { 0 };
        if (ways[i].step == 1 && first.n > 3000) continue; /* slow, and it finds no more */
        int same = fuzz_unpack((fuzz_feed){ input, ways[i].piece, 7 }, ways[i].step, &again, &e2);
        size_t n = MIN(first.n, again.n);
        MUST(!n || !memcmp(first.p, again.p, n));
        if (end > 0 || same > 0) continue; /* a bomb, stopped somewhere */
        MUST(same == end);
        MUST(end || first.n == again.n);
        MUST(e1.code == e2.code && !strcmp(e1.text, e2.text));
    }
}

/* -- tar ------------------------------------------------------------------------------------------
 *
 * A change to a header makes its sum wrong, and nothing behind it would ever be reached. So what
 * looks like a header gets its sum, in a copy; the input as it is is read too. */

static void fuzz_tar_sum(uint8_t *block)
{
    unsigned sum = 0;
    tar_header *h = (void *)block;
    memset(h->sum, ' ', sizeof h->sum);
    for (size_t i = 0; i < TAR_BLOCK; i++) sum += block[i];
    snprintf(h->sum, sizeof h->sum, "%06o", sum);
}

/* What tar_split makes of a name never leads out of where it is used. */
static void fuzz_tar_name(slice name, buf *out)
{
    error e = { 0 };
    static tar_path path;
    MUST(!slice_has(name, '\0') && (!name.n || !name.p[name.n]));
    if (tar_split(name, &path, &e) < 0) { fuzz_tell(out, 1, &e); return; }
    MUST(path.directory[0] != '/' && !strchr(path.name, '/') && strlen(path.name) <= NAME_MAX);
    MUST(strcmp(path.name, "..") && strcmp(path.name, "."));
    size_t depth = 0;
    for (slice rest = slice_of(path.directory); rest.n; depth++) {
        slice part = slice_cut(&rest, '/');
        MUST(part.n && part.n <= NAME_MAX && !slice_is(part, "..") && !slice_is(part, "."));
    }
    MUST(depth <= TAR_DEPTH_MAX);
    buf_printf(out, "\n%s|%s", path.directory, path.name);
}

static void fuzz_tar_entry(const tar_entry *t, uint64_t data, buf *out)
{
    uint64_t end = 0, sum = 0;
    MUST(t->type >= '0' && t->type <= '6');
    MUST(t->size <= INT64_MAX && t->mode <= 07777 && t->uid < UINT32_MAX && t->gid < UINT32_MAX);
    MUST(t->mtime.tv_nsec >= 0 && t->mtime.tv_nsec < NS_PER_SEC);
    for (size_t i = 0; i < t->npieces; i++) {
        MUST(t->pieces[i].at >= end && t->pieces[i].n <= t->size - t->pieces[i].at);
        end = t->pieces[i].at + t->pieces[i].n;
        sum += t->pieces[i].n;
    }
    MUST(end <= t->size && (t->pieces ? sum : t->size) == data);
    for (size_t i = 0; i < t->nxattrs; i++) {
        slice name = t->xattrs[i].name;
        MUST(name.n && name.n <= TAR_XATTR_NAME && !name.p[name.n] && !slice_has(name, '\0'));
        MUST(t->xattrs[i].value.n <= TAR_XATTR_MAX);
        MUST(!slice_starts(name, "trusted.") && !slice_starts(name, "user.overlay."));
        buf_slice(out, name);
    }
    buf_printf(out, "\n%c %" PRIu64 " %o %u %u %u %u %lld.%ld %zu", t->type, t->size, t->mode,
               t->uid, t->gid, t->major, t->minor, (long long)t->mtime.tv_sec, t->mtime.tv_nsec,
               t->npieces);
    fuzz_tar_name(t->name, out);
    fuzz_tar_name(t->link, out);
}

static void fuzz_tar_read(slice input, size_t piece, buf *out)
{
    fuzz_source in;
    tar_reader t;
    tar_entry entry;
    error e = { 0 };
    slice bytes;
    sha256 hash;
    uint8_t digest[32];
    uint64_t seen = 0;
    sha256_init(&hash);
    int got = tar_open(&t, fuzz_source_open(&in, (fuzz_feed){ input, piece, 3 }), &e);
    while (got >= 0 && (got = tar_next(&t, &entry, &e)) > 0) {
        fuzz_tar_entry(&entry, t.left, out);
        if (slice_ends(entry.name, "x")) continue; /* some are stepped over */
        while ((got = tar_data(&t, 4000, &bytes, &e)) > 0) {
            seen += bytes.n;
            sha256_add(&hash, bytes.p, bytes.n);
        }
    }
    MUST(seen <= input.n);
    fuzz_tell(out, got < 0, &e);
    sha256_end(&hash, digest);
    buf_add(out, digest, sizeof digest);
    tar_close(&t);
}

static void fuzz_tar_all(slice input)
{
    OWNED_BUF first = { 0 };
    for (size_t i = 0; i < COUNT(fuzz_pieces); i++) {
        OWNED_BUF again = { 0 };
        fuzz_tar_read(input, fuzz_pieces[i], i ? &again : &first);
        if (i) MUST(slice_eq(buf_view(&first), buf_view(&again)));
    }
}

static void fuzz_tar(slice input)
{
    OWNED_BUF mended = { 0 };
    buf_slice(&mended, input);
    for (size_t at = 0; at + TAR_BLOCK <= mended.n; at += TAR_BLOCK)
        if (!memcmp(mended.p + at + 257, "ustar", 5)) fuzz_tar_sum(mended.p + at);
    fuzz_tar_all(input);
    if (!slice_eq(input, buf_view(&mended))) fuzz_tar_all(buf_view(&mended));
}

/* -- JSON, TOML -----------------------------------------------------------------------------------
 *
 * A tree that is written and read again is the same tree, and all its texts are UTF-8. */

static void fuzz_write(const json *v, bool as_member, int depth, buf *out)
{
    MUST(depth <= TEXT_DEPTH && utf8_valid(v->key) && utf8_valid(v->text));
    if (as_member) json_string(out, v->key), buf_byte(out, ':');
    switch (v->kind) {
    case JSON_NULL: buf_str(out, "null"); return;
    case JSON_BOOL: buf_str(out, v->boolean ? "true" : "false"); return;
    case JSON_NUMBER: buf_slice(out, v->text); return;
    case JSON_STRING: json_string(out, v->text); return;
    case JSON_ARRAY:
    case JSON_OBJECT: break;
    }
    bool object = v->kind == JSON_OBJECT;
    buf_byte(out, object ? '{' : '[');
    for (size_t i = 0; i < v->n; i++) {
        if (i) buf_byte(out, ',');
        fuzz_write(&v->items[i], object, depth + 1, out);
    }
    buf_byte(out, object ? '}' : ']');
}

static void fuzz_same_tree(const json *tree)
{
    error e = { 0 };
    OWNED_ARENA a = arena_make(64 * MIB);
    OWNED_BUF first = { 0 }, again = { 0 };
    fuzz_write(tree, false, 0, &first);
    const json *copy = json_parse(buf_view(&first), &a, &e);
    if (!copy) fprintf(stderr, "%s\n", e.text);
    MUST(copy);
    fuzz_write(copy, false, 0, &again);
    MUST(slice_eq(buf_view(&first), buf_view(&again)));
}

static void fuzz_json(slice input)
{
    error e = { 0 };
    OWNED_ARENA a = arena_make(64 * MIB);
    const json *tree = json_parse(input, &a, &e);
    if (tree) fuzz_same_tree(tree);
    else MUST(e.code == GRPC_INVALID_ARGUMENT && slice_starts(slice_of(e.text), "JSON: byte "));
}

static void fuzz_toml(slice input)
{
    error e = { 0 };
    OWNED_ARENA a = arena_make(64 * MIB);
    const json *tree = toml_parse(input, "f.toml", &a, &e);
    if (tree) fuzz_same_tree(tree);
    else MUST(e.code && slice_starts(slice_of(e.text), "f.toml:"));
}

/* -- protobuf -------------------------------------------------------------------------------------
 *
 * What was decoded is encoded to bytes that decode to the same, also by way of JSON. The first byte
 * chooses the message. */

static const pb_message *const fuzz_messages[] = {
    &CreateContainerRequest_msg, &RunPodSandboxRequest_msg, &FetchSetup_msg, &ReadAnswer_msg,
    &ImageConfig_msg, &ArchiveIndex_msg, &UnpackAnswer_msg, &ReadRequest_msg,
};

static void fuzz_protobuf(slice input)
{
    _Alignas(max_align_t) static char message[4096], copy[4096], third[4096];
    error e = { 0 };
    OWNED_ARENA a = arena_make(64 * MIB);
    OWNED_BUF first = { 0 }, again = { 0 }, text = { 0 };
    if (!input.n) return;
    const pb_message *m = fuzz_messages[input.p[0] % COUNT(fuzz_messages)];
    MUST(m->size <= sizeof message);
    if (pb_decode(m, (slice){ input.p + 1, input.n - 1 }, &a, message, &e) < 0) {
        MUST(e.code && e.text[0]);
        return;
    }
    MUST(pb_encode(m, message, &first) == 0);
    MUST(pb_decode(m, buf_view(&first), &a, copy, &e) == 0);
    MUST(pb_encode(m, copy, &again) == 0);
    MUST(slice_eq(buf_view(&first), buf_view(&again)));
    pb_write_json(m, message, 0, &text);
    if (pb_read_json(m, buf_view(&text), &a, third, &e) < 0) {
        fprintf(stderr, "%s: %s in %.*s\n", m->name, e.text, PR(buf_view(&text)));
        abort();
    }
    again.n = 0;
    MUST(pb_encode(m, third, &again) == 0);
    MUST(slice_eq(buf_view(&first), buf_view(&again)));
}

/* -- manifests, indexes, configs ------------------------------------------------------------------
 *
 * A document is of one kind only, whatever the server calls it, and what is handed on is as the
 * daemon expects it. */

static void fuzz_descriptor(const Descriptor *d)
{
    MUST(d && digest_valid(d->digest) && d->size <= INT64_MAX);
}

static void fuzz_texts_have_no_nul(const slice *p, size_t n)
{
    for (size_t i = 0; i < n; i++) MUST(!slice_has(p[i], '\0'));
}

static void fuzz_document(const ReadRequest *q, ReadAnswer *out, arena *a)
{
    error e = { 0 };
    OWNED_BUF wire = { 0 };
    *out = (ReadAnswer){ 0 };
    if (doc_read(q, a, out, &e) < 0) {
        MUST(e.code && e.text[0]);
        *out = (ReadAnswer){ .code = e.code };
        return;
    }
    MUST(!!out->chosen + !!out->config + !!out->image == 1);
    if (out->chosen) fuzz_descriptor(out->chosen);
    if (out->config) {
        fuzz_descriptor(out->config);
        MUST(out->layers.n >= 1 && out->layers.n <= LAYERS_MAX);
    }
    for (size_t i = 0; i < out->layers.n; i++) fuzz_descriptor(&out->layers.p[i]);
    for (size_t i = 0; i < out->diff_ids.n; i++) MUST(digest_valid(out->diff_ids.p[i]));
    const ImageConfig *c = out->image;
    if (c) {
        fuzz_texts_have_no_nul(c->env.p, c->env.n);
        fuzz_texts_have_no_nul(c->entrypoint.p, c->entrypoint.n);
        fuzz_texts_have_no_nul(c->cmd.p, c->cmd.n);
        fuzz_texts_have_no_nul(c->volumes.p, c->volumes.n);
        fuzz_texts_have_no_nul((slice[]){ c->user, c->working_dir, c->stop_signal }, 3);
    }
    ReadAnswer copy; /* the daemon can take it */
    MUST(pb_encode(&ReadAnswer_msg, out, &wire) == 0);
    MUST(pb_decode(&ReadAnswer_msg, buf_view(&wire), a, &copy, &e) == 0);
}

static void fuzz_manifest(slice input)
{
    static const char *const types[] = {
        "", "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json", "text/html",
    };
    OWNED_ARENA a = arena_make(64 * MIB);
    ReadAnswer answer;
    bool index = false, manifest = false;
    for (size_t i = 0; i < COUNT(types); i++) {
        ReadRequest q = { .media_type = slice_of(types[i]), .body = input };
        q.platform = SLICE("linux/arm/v7");
        fuzz_document(&q, &answer, &a);
        index = index || answer.chosen;
        manifest = manifest || answer.config;
        MUST(!answer.image && !(index && manifest));
        MUST(!(i == 1 && answer.config) && !(i == 2 && answer.chosen));
    }
    fuzz_document(&(ReadRequest){ .is_config = true, .body = input }, &answer, &a);
    MUST(answer.code || answer.image);
}

/* -- HTTP replies ---------------------------------------------------------------------------------
 *
 * A connection's replies one after the other, as long as it lives. */

static void fuzz_http_reply(http_conn *c, http_reply *r, arena *a, buf *out, error *e)
{
    uint8_t chunk[300];
    ssize_t got = -1;
    size_t head, body;
    if (http_read_head(c, a, r, e) < 0) { fuzz_tell(out, 1, e); http_close(c); return; }
    MUST(r->status >= 200 && r->status <= 999 && r->nfields <= HTTP_FIELDS);
    MUST(!(r->chunked && r->left) && !(r->ended && r->left));
    buf_printf(out, "\n%d", r->status);
    for (size_t i = 0; i < r->nfields; i++) {
        MUST(r->fields[i].key.n && !slice_has(r->fields[i].key, '\n'));
        MUST(!slice_has(r->fields[i].value, '\n'));
        buf_printf(out, "\n%.*s|%.*s", PR(r->fields[i].key), PR(r->fields[i].value));
    }
    for (head = out->n; (got = http_body(c, r, chunk, sizeof chunk, e)) > 0;) {
        MUST(got <= (ssize_t)sizeof chunk);
        buf_add(out, chunk, (size_t)got);
    }
    body = out->n - head;
    if (got < 0) out->n = head; /* how much came before that is chance */
    fuzz_tell(out, got < 0, e);
    if (got == 0) MUST(r->ended && http_body(c, r, chunk, sizeof chunk, e) == 0);
    buf_printf(out, "\n%zu", got < 0 ? 0 : body);
    /* http_done closes too when more lies in the buffer already, which is chance. */
    if (got < 0 || r->last) http_close(c);
}

static void fuzz_http(slice input)
{
    static http_conn c;
    static http_reply r;
    OWNED_BUF first = { 0 };
    for (size_t i = 0; i < COUNT(fuzz_pieces); i++) {
        OWNED_BUF again = { 0 };
        OWNED_ARENA a = arena_make(16 * MIB);
        buf *out = i ? &again : &first;
        error e = { 0 };
        c = (http_conn){ .fd = FUZZ_FD, .carrier = -1, .says = -1 };
        fuzz_conn = (fuzz_feed){ input, fuzz_pieces[i], 5 };
        for (int replies = 0; replies < 50 && c.fd == FUZZ_FD; replies++) {
            if (c.start == c.end && !fuzz_conn.left.n) break;
            fuzz_http_reply(&c, &r, &a, out, &e);
        }
        if (i) MUST(slice_eq(buf_view(&first), buf_view(&again)));
    }
}

/* -- HTTP/2 and gRPC ------------------------------------------------------------------------------
 *
 * What a client sends to the server, whose socket takes some of what is written each time. Whatever
 * it is: the connection stays within its bounds, and when it is closed nothing of its calls is left. */

static int fuzz_grpc_echo(grpc_call *c, const void *in, void *out, error *e)
{
    const VersionRequest *ask = in;
    VersionResponse *reply = out;
    size_t n = MIN(ask->version.n * 500, (size_t)40 * KIB);
    uint8_t *text = arena_alloc(&c->caller.arena, n + 1);
    if (!text || slice_is(ask->version, "no")) return fail(e, GRPC_UNAVAILABLE, "%%\n\xFF");
    memset(text, 'x', n);
    reply->runtime_name = (slice){ text, n };
    return 0;
}

static void fuzz_grpc_check(const grpc_conn *k)
{
    MUST(k->h2.nstreams <= H2_STREAMS && k->calls <= H2_STREAMS && k->h2.nstreams <= k->calls);
    MUST(k->h2.block.n <= H2_BLOCK_MAX && k->h2.table.size <= HPACK_TABLE);
    MUST(k->h2.out.n <= H2_OUT_STOP + 64 * KIB);
    MUST(k->server->buffered <= k->server->o.max_buffered + GRPC_SPARE + MIB);
}

static void fuzz_grpc_feed(grpc_conn *k, fuzz_feed feed, size_t taken_at_once)
{
    uint8_t bytes[GRPC_READ];
    size_t n = 0;
    while (!k->h2.failed && feed.left.n) {
        n += (size_t)fuzz_take(&feed, bytes + n, MIN(sizeof bytes - n, (size_t)16 * KIB));
        size_t used = h2_feed(&k->h2, (slice){ bytes, n });
        MUST(used <= n && n - used < H2_HEAD + H2_FRAME_MAX);
        memmove(bytes, bytes + used, n -= used);
        do {
            h2_pump(&k->h2);
            fuzz_grpc_check(k);
            buf_drop(&k->h2.out, MIN(k->h2.out.n, taken_at_once));
        } while (k->h2.out.n >= H2_OUT_STOP);
    }
    h2_expire(&k->h2, k->h2.now + (int64_t)(feed.noise & 1));
}

static void fuzz_http2(slice input)
{
    static const char greeting[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";
    static const grpc_method methods[] = {
        { .path = "/t.v1.S/Echo", .in = &VersionRequest_msg, .out = &VersionResponse_msg,
          .run = fuzz_grpc_echo },
        { .path = "/t.v1.S/None", .in = &VersionRequest_msg, .out = &VersionResponse_msg },
    };
    static loop l;
    static grpc_server s;
    static grpc_conn k;
    error e;
    OWNED_BUF all = { 0 };
    if (!l.epoll) MUST(loop_open(&l, &e) == 0);
    log_least = LOG_ERROR;
    if (!slice_starts(input, "PRI")) buf_add(&all, greeting, sizeof greeting);
    buf_slice(&all, input);
    for (size_t i = 0; i < COUNT(fuzz_pieces); i++) {
        s = (grpc_server){ .loop = &l, .o = { .methods = methods, .nmethods = COUNT(methods),
                                              .alias = "/t.a.", .alias_of = "/t.v1.",
                                              .max_message = MIB, .max_buffered = 2 * MIB } };
        s.thrift.due = grpc_thrift;
        k = (grpc_conn){ .server = &s };
        h2_init(&k.h2, false, &grpc_server_events, &k);
        k.h2.now = clock_mono();
        fuzz_grpc_feed(&k, (fuzz_feed){ buf_view(&all), fuzz_pieces[i], 5 }, i == 1 ? 100 : 30 * KIB);
        h2_free(&k.h2);
        loop_disarm(&l, &s.thrift);
        MUST(!s.ncalls && !s.buffered && !k.calls && !l.ntimers);
    }
}

/* -- image references, URLs -----------------------------------------------------------------------
 *
 * The full name of what was parsed means the same once more, and no part of it can be taken for
 * another file, host or header line. */

static void fuzz_image_ref(slice input, arena *a)
{
    error e = { 0 };
    image_ref r, again;
    if (image_ref_parse(input, a, &r, &e) < 0) { MUST(e.code && e.text[0]); return; }
    MUST(r.domain.n && r.path.n && (r.tag.n || r.digest.n) && r.name.n <= REF_NAME_MAX);
    MUST(!slice_starts(r.path, "/") && !slice_ends(r.path, "/"));
    MUST(!memmem(r.full.p, r.full.n, "..", 2) || memmem(r.tag.p, r.tag.n, "..", 2));
    MUST(!r.digest.n || digest_valid(r.digest));
    for (size_t i = 0; i < r.full.n; i++) MUST(r.full.p[i] > ' ' && r.full.p[i] < 127);
    MUST(image_ref_parse(r.full, a, &again, &e) == 0);
    MUST(slice_eq(r.full, again.full) && slice_eq(r.name, again.name));
    MUST(slice_eq(r.domain, again.domain) && slice_eq(r.path, again.path));
    MUST(slice_eq(r.digest, again.digest) && (r.digest.n || slice_eq(r.tag, again.tag)));
}

static void fuzz_url_holds(const url_parts *u, arena *a)
{
    char authority[AUTHORITY_TEXT];
    error e = { 0 };
    url_parts again;
    MUST(u->host[0] && u->port && u->path[0] == '/' && host_valid(slice_of(u->host), true));
    for (const char *p = u->path; *p; p++) MUST(*p > ' ' && *p < 127 && *p != '#');
    slice text = slice_of(arena_printf(a, "%s://%s%s", u->tls ? "https" : "http",
                                       url_authority(u, authority), u->path));
    if (text.n > 8 * KIB) return; /* a port or a slash more than what came */
    MUST(url_parse(text, a, &again, &e) == 0);
    MUST(url_same_server(u, &again) && !strcmp(u->path, again.path));
}

static void fuzz_reference(slice input)
{
    error e = { 0 };
    OWNED_ARENA a = arena_make(MIB);
    url_parts u, base = { .tls = true, .host = "registry.test", .port = 5000, .path = "/v2/x?y" };
    if (input.n > 16 * KIB) return;
    fuzz_image_ref(input, &a);
    if (url_parse(input, &a, &u, &e) == 0) fuzz_url_holds(&u, &a);
    else MUST(e.code == GRPC_INVALID_ARGUMENT);
    if (url_follow(&base, input, &a, &u, &e) < 0) { MUST(e.code == GRPC_INVALID_ARGUMENT); return; }
    fuzz_url_holds(&u, &a);
    if (slice_starts(input, "/") && !slice_starts(input, "//")) MUST(url_same_server(&u, &base));
}

/* -- DNS ------------------------------------------------------------------------------------------
 *
 * The input as a reply (with the id and the question that we wait for put in, and without), as
 * resolv.conf and as the hosts file. */

static void fuzz_addresses(const ip_addresses *list)
{
    MUST(list->n >= 0 && list->n <= DNS_ADDRESSES);
    for (int i = 0; i < list->n; i++) {
        const ip_address *one = &list->list[i];
        MUST(one->any.sa_family == AF_INET || one->any.sa_family == AF_INET6);
        MUST((one->any.sa_family == AF_INET ? one->v4.sin_port : one->v6.sin6_port) == htons(443));
    }
}

static void fuzz_dns_reply(slice input)
{
    dns_question q;
    ip_addresses found = { 0 };
    OWNED_BUF reply = { 0 };
    MUST(dns_ask("registry.test", DNS_A, &q));
    q.packet[0] = 1, q.packet[1] = 2;
    dns_question asked = q;
    if (!dns_take_reply(input, &q, 443, &found)) MUST(!q.answered && !found.n);
    fuzz_addresses(&found);
    if (input.n < q.n) return;
    q = asked;
    found.n = 0;
    buf_slice(&reply, input);
    memcpy(reply.p, q.packet, 2);
    reply.p[2] |= 0x80, reply.p[4] = 0, reply.p[5] = 1;
    memcpy(reply.p + 12, q.packet + 12, q.n - 12);
    MUST(dns_take_reply(buf_view(&reply), &q, 443, &found));
    MUST(q.answered || !found.n);
    fuzz_addresses(&found);
}

static void fuzz_dns(slice input)
{
    ip_addresses found = { 0 };
    dns_question q;
    if (input.n > 64 * KIB) return;
    fuzz_dns_reply(input);
    dns_config c = dns_config_parse(input);
    MUST(c.nservers >= 1 && c.nservers <= DNS_SERVERS && c.nsearch >= 0 && c.nsearch <= DNS_SEARCH);
    MUST(c.tries >= 1 && c.tries <= 5 && c.ndots >= 0 && c.wait >= NS_PER_SEC &&
         c.wait <= 30 * NS_PER_SEC);
    for (int i = 0; i < c.nsearch; i++) {
        MUST(host_valid(slice_of(c.search[i]), true));
        if (!strchr(c.search[i], ':')) MUST(dns_ask(c.search[i], DNS_AAAA, &q));
    }
    hosts_find(input, "registry.test", 443, &found);
    fuzz_addresses(&found);
}

/* -- the two ways to run them ------------------------------------------------------------------ */

typedef struct { const char *name; void (*run)(slice input); } fuzz_target;

static const fuzz_target fuzz_targets[] = {
    { "inflate", fuzz_decompress }, { "zstd", fuzz_decompress }, { "tar", fuzz_tar },
    { "json", fuzz_json }, { "toml", fuzz_toml }, { "manifest", fuzz_manifest },
    { "http", fuzz_http }, { "reference", fuzz_reference }, { "dns", fuzz_dns },
    { "protobuf", fuzz_protobuf }, { "http2", fuzz_http2 },
};

static const fuzz_target *fuzz_find(const char *name)
{
    for (size_t i = 0; name && i < COUNT(fuzz_targets); i++)
        if (!strcmp(name, fuzz_targets[i].name)) return &fuzz_targets[i];
    fprintf(stderr, "fuzz: no target \"%s\"; there are", name ? name : "");
    for (size_t i = 0; i < COUNT(fuzz_targets); i++)
        fprintf(stderr, " %s", fuzz_targets[i].name);
    fprintf(stderr, "\n");
    exit(2);
}

#ifdef FUZZ_WITH_LIBFUZZER

static const fuzz_target *fuzz_chosen;

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    fuzz_chosen = fuzz_find(getenv("FUZZ_TARGET"));
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    fuzz_chosen->run((slice){ p, n });
    return 0;
}

#else

enum { FUZZ_INPUT_MAX = 64 * KIB, FUZZ_SEEDS = 4096, FUZZ_ONE_MAX_S = 30 };

/* Shared with the child that runs the target, so that the input outlives what it does to it. */
typedef struct { uint64_t runs; size_t n; uint8_t input[FUZZ_INPUT_MAX]; } fuzz_shared;

static slice fuzz_seeds[FUZZ_SEEDS];
static size_t fuzz_nseeds;
static arena fuzz_memory;
static uint64_t fuzz_random_state;

static uint32_t fuzz_random(uint32_t below) /* splitmix64 */
{
    uint64_t z = fuzz_random_state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return (uint32_t)((z ^ (z >> 31)) >> 33) % below;
}

/* Takes a seed, or those in a directory (not those below it). */
static void fuzz_add_seeds(const char *path)
{
    error e;
    DIR *d = opendir(path);
    for (struct dirent *entry; d && (entry = readdir(d));)
        if (entry->d_name[0] != '.')
            fuzz_add_seeds(arena_printf(&fuzz_memory, "%s/%s", path, entry->d_name));
    if (d) { closedir(d); return; }
    slice text = file_read(AT_FDCWD, path, FUZZ_INPUT_MAX, &fuzz_memory, &e);
    if (text.p && fuzz_nseeds < FUZZ_SEEDS) fuzz_seeds[fuzz_nseeds++] = text;
}

/* One change: a bit, a byte, a number that is a limit somewhere, bytes taken out, doubled, or taken
 * from another seed; or the end cut off. */
static size_t fuzz_change(uint8_t *p, size_t n)
{
    static const uint8_t edges[] = { 0, 1, 0x7F, 0x80, 0xFF, '\n', '"', '0', '9', '/', ' ' };
    if (!n) return p[0] = (uint8_t)fuzz_random(256), 1;
    size_t at = fuzz_random((uint32_t)n), span = 1 + fuzz_random((uint32_t)MIN(n - at, 64U));
    slice other = fuzz_seeds[fuzz_random((uint32_t)fuzz_nseeds)], piece;
    switch (fuzz_random(8)) {
    case 0: p[at] ^= (uint8_t)(1U << fuzz_random(8)); return n;
    case 1: p[at] = (uint8_t)fuzz_random(256); return n;
    case 2: p[at] = edges[fuzz_random(COUNT(edges))]; return n;
    case 3: memset(p + at, edges[fuzz_random(COUNT(edges))], MIN(span, 8U)); return n;
    case 4: memmove(p + at, p + at + span, n - at - span); return n - span;
    case 5:
        if (n + span > FUZZ_INPUT_MAX) return n;
        memmove(p + at + span, p + at, n - at);
        return n + span;
    case 6:
        if (other.n) slice_take(&other, fuzz_random((uint32_t)other.n), &piece);
        if (!other.n || other.n > FUZZ_INPUT_MAX - at) return n;
        memcpy(p + at, other.p, other.n);
        return at + other.n;
    default: return fuzz_random(4) ? n : at;
    }
}

/* Runs the seeds as they are, then changed ones, until the time is over. Never returns. */
static void fuzz_child(const fuzz_target *t, fuzz_shared *shared, int64_t end)
{
    while (shared->runs < fuzz_nseeds || clock_mono() < end) {
        bool as_it_is = shared->runs < fuzz_nseeds;
        slice seed = fuzz_seeds[as_it_is ? shared->runs : fuzz_random((uint32_t)fuzz_nseeds)];
        shared->n = seed.n;
        if (seed.n) memcpy(shared->input, seed.p, seed.n);
        for (uint32_t i = as_it_is ? 0 : 1 + fuzz_random(6); i; i--)
            shared->n = fuzz_change(shared->input, shared->n);
        uint8_t *exact = malloc(shared->n + !shared->n); /* one byte too far is found */
        if (!exact) abort();
        memcpy(exact, shared->input, shared->n);
        alarm(FUZZ_ONE_MAX_S);
        t->run((slice){ exact, shared->n });
        free(exact);
        shared->runs++;
    }
    exit(0); /* not _exit: the leak checker wants to look */
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: fuzz-gcc TARGET SECONDS CRASH-FILE SEEDS...\n");
        return 2;
    }
    const fuzz_target *t = fuzz_find(argv[1]);
    int status = 0;
    error e;
    fuzz_memory = arena_make(512 * MIB);
    const char *start = getenv("FUZZ_SEED"); /* to do the same once more */
    fuzz_random_state = start ? strtoull(start, NULL, 10) : (uint64_t)clock_wall();
    uint64_t begun = fuzz_random_state;
    for (int i = 4; i < argc; i++) fuzz_add_seeds(argv[i]);
    if (!fuzz_nseeds) { fprintf(stderr, "fuzz: no seeds\n"); return 2; }
    fuzz_shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return 2;
    pid_t child = fork();
    if (child == 0) fuzz_child(t, shared, clock_mono() + atoi(argv[2]) * NS_PER_SEC);
    if (child < 0 || waitpid(child, &status, 0) < 0) return 2;
    printf("%s: %" PRIu64 " executions, %zu seeds, FUZZ_SEED=%" PRIu64 "\n", t->name,
           shared->runs, fuzz_nseeds, begun);
    if (!status) return 0;
    if (WIFSIGNALED(status)) printf("%s: signal %d\n", t->name, WTERMSIG(status));
    OWNED_FD out = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (out < 0 || write_all(out, shared->input, shared->n) < 0) perror(argv[3]);
    else printf("%s: the input is in %s\n", t->name, argv[3]);
    (void)e;
    return 1;
}

#endif
