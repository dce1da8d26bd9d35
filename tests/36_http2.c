/* Tests of chapter 36: HPACK against the public stories, HTTP/2 as a machine without a socket. */

/* -- HPACK ------------------------------------------------------------------------------------- */

/* Fields as text, "name: value\n" each. */
static void note_field(void *text, slice name, slice value)
{
    buf_printf(text, "%.*s: %.*s\n", PR(name), PR(value));
}

static bool decode_block(hpack_table *t, slice block, buf *text)
{
    text->n = 0;
    return hpack_decode(t, block, note_field, text);
}

static slice from_hex(slice hex, uint8_t *out)
{
    return hex_decode(hex, out, hex.n / 2) ? (slice){ out, hex.n / 2 } : (slice){ NULL, 0 };
}

static void check_story(const char *path, const json *story) /* one dynamic table for all of it */
{
    static hpack_table t;
    static uint8_t wire[64 * KIB];
    OWNED_BUF got = { 0 }, want = { 0 };
    const json *cases = json_get(story, "cases");
    CHECK(cases && cases->n > 0);
    hpack_init(&t);
    for (size_t i = 0; cases && i < cases->n; i++) {
        const json *headers = json_get(&cases->items[i], "headers");
        want.n = 0;
        for (size_t k = 0; k < headers->n; k++) {
            const json *field = &headers->items[k].items[0];
            note_field(&want, field->key, json_text(field));
        }
        slice hex = json_text(json_get(&cases->items[i], "wire"));
        bool decoded = decode_block(&t, from_hex(hex, wire), &got);
        bool same = decoded && slice_eq(buf_view(&got), buf_view(&want));
        CHECK(same);
        if (same) continue;
        fprintf(stderr, "%s, case %zu\n", path, i);
        return;
    }
}

TEST(hpack_decodes_the_stories_of_eight_encoders) /* T20 */
{
    static const char *const encoders[] = {
        "go-hpack", "haskell-http2-linear-huffman", "haskell-http2-naive",
        "haskell-http2-static-huffman", "nghttp2-16384-4096", "nghttp2-change-table-size",
        "node-http2-hpack", "swift-nio-hpack-huffman",
    };
    int stories = 0;
    if (!vectors_dir) SKIP("KRUN_TESTDATA is not set");
    for (size_t i = 0; i < COUNT(encoders); i++)
        for (int n = 0; n < 32; n++) {
            OWNED_ARENA a = arena_make(64 * MIB);
            char path[PATH_MAX];
            slice text;
            error e;
            snprintf(path, sizeof path, "%s/hpack/%s/story_%02d.json", vectors_dir, encoders[i], n);
            if (!(text = file_read(AT_FDCWD, path, 16 * MIB, &a, &e)).p) continue;
            json *story = json_parse(text, &a, &e);
            CHECK(story != NULL);
            check_story(path, story);
            stories++;
        }
    CHECK_INT(stories, 96);
}

TEST(hpack_refuses_a_block_that_breaks_the_rules) /* T19 */
{
    static const char *const bad[] = {
        "80",                          /* index 0 */
        "be",                          /* the first dynamic entry of an empty table */
        "7e00",                        /* a name of an empty table */
        "ff",                          /* an integer that does not go on */
        "ffffffffff01",                /* one of five bytes more */
        "ff80808080808080808080",      /* ten that add nothing */
        "3fe21f",                      /* table size 4097 */
        "8220",                        /* a table size after a field */
        "822020",                      /* two of them */
        "2020203fe11f82",              /* a third one before it */
        "203fe21f82",                  /* 0, then 4097 */
        "00",      "0005616263",       /* a string that is not there, or short */
        "00016100ff", "000161",        /* (garbage after a field; no value) */
        "00016184ffffffff",            /* EOS */
        "000161821fff",                /* 'a' and 11 bits of padding */
        "00016181ff",                  /* 8 bits of padding and no symbol */
        "0001618118",                  /* padding of zeros */
        "0001618460ffffff",            /* '0' and EOS begun, 26 bits */
    };
    static hpack_table t;
    for (size_t i = 0; i < COUNT(bad); i++) {
        uint8_t bytes[64];
        OWNED_BUF text = { 0 };
        hpack_init(&t);
        slice block = from_hex(slice_of(bad[i]), bytes);
        bool refused = !decode_block(&t, at_page_end(block.p, block.n), &text);
        CHECK(refused);
        if (!refused) fprintf(stderr, "not refused: %s\n", bad[i]);
    }
}

TEST(hpack_takes_two_new_sizes_of_the_table_in_one_block) /* RFC 7541, section 4.2 */
{
    static hpack_table t;
    OWNED_BUF text = { 0 };
    uint8_t bytes[64];
    hpack_init(&t);
    CHECK(decode_block(&t, from_hex(SLICE("40016101624001630164"), bytes), &text)); /* a: b, c: d */
    CHECK(decode_block(&t, from_hex(SLICE("3f033fe11fbe"), bytes), &text)); /* 34, 4096: one stays */
    CHECK_TEXT(buf_view(&text), "c: d\n");
    CHECK_INT(t.end - t.first, 1);
    CHECK_INT(t.limit, HPACK_TABLE);
    CHECK(decode_block(&t, from_hex(SLICE("203fe11f82"), bytes), &text)); /* 0, 4096: none stays */
    CHECK_TEXT(buf_view(&text), ":method: GET\n");
    CHECK_INT(t.end - t.first, 0);
    CHECK(decode_block(&t, from_hex(SLICE("2020"), bytes), &text));
    CHECK_INT(t.limit, 0);
}

TEST(hpack_reads_every_beginning_of_a_block_without_a_step_too_far)
{
    static const char block[] = "\x82\x86\x44\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"
                                "\x3f\xe1\x1f";
    static hpack_table t;
    for (size_t n = 0; n < sizeof block; n++) {
        OWNED_BUF text = { 0 };
        hpack_init(&t);
        decode_block(&t, at_page_end(block, n), &text);
    }
}

/* The dynamic table as RFC 7541 describes it and nobody would build it: a list of strings. */
typedef struct { char *text[HPACK_ENTRIES]; size_t n, size, limit; } naive_table;

static void naive_evict(naive_table *t, size_t most)
{
    while (t->size > most) {
        t->size -= strlen(t->text[--t->n]) - 3 + HPACK_OVERHEAD; /* without ": " and newline */
        free(t->text[t->n]);
    }
}

static void naive_add(naive_table *t, const char *text)
{
    size_t need = strlen(text) - 3 + HPACK_OVERHEAD;
    naive_evict(t, need <= t->limit ? t->limit - need : 0);
    if (need > t->limit) return;
    memmove(t->text + 1, t->text, t->n * sizeof t->text[0]);
    t->text[0] = strdup(text);
    t->n++;
    t->size += need;
}

static void check_against_naive(hpack_table *t, naive_table *naive)
{
    OWNED_BUF got = { 0 }, all = { 0 };
    CHECK_INT(t->end - t->first, naive->n);
    CHECK_INT(t->size, naive->size);
    for (size_t i = 0; i < naive->n; i++) {
        slice name = { 0 }, value = { 0 };
        CHECK(hpack_get(t, COUNT(hpack_static) + 1 + i, &name, &value));
        note_field(&got, name, value);
        buf_str(&all, naive->text[i]);
    }
    CHECK(slice_eq(buf_view(&got), buf_view(&all)));
}

TEST(hpack_table_is_the_naive_one_whatever_is_added)
{
    static hpack_table t;
    static char value[5000];
    naive_table naive = { .limit = HPACK_TABLE };
    unsigned seed = 1;
    memset(value, 'v', sizeof value);
    hpack_init(&t);
    for (int round = 0; round < 3000; round++) {
        unsigned kind = (seed = seed * 1103515245 + 12345) >> 16 & 0x7FFF;
        size_t n = kind % 50 == 0 ? kind % sizeof value : kind % 3 ? kind % 8 : kind % 300;
        OWNED_BUF text = { 0 };
        note_field(&text, SLICE("n"), (slice){ (uint8_t *)value, n });
        buf_byte(&text, 0);
        hpack_add(&t, SLICE("n"), (slice){ (uint8_t *)value, n });
        naive_add(&naive, (char *)text.p);
        if (kind % 100 == 1) {
            naive.limit = t.limit = kind % (HPACK_TABLE + 1);
            hpack_evict(&t, t.limit);
            naive_evict(&naive, naive.limit);
        }
        if (round % 16 == 0) check_against_naive(&t, &naive);
    }
    naive_evict(&naive, 0);
}

/* The array of entries is full and its texts are few, so that adding moves all that live to where
 * the name was: 130 entries without text, the name, 125 entries with 53 bytes. */
TEST(hpack_adds_a_field_named_by_the_entry_that_it_pushes_out) /* RFC 7541, section 4.4 */
{
    static hpack_table t;
    OWNED_BUF block = { 0 }, text = { 0 };
    slice nothing = { 0 };
    hpack_init(&t);
    for (int i = 0; i < 130; i++) hpack_add(&t, nothing, nothing);
    hpack_add(&t, SLICE("the-name"), SLICE("old"));
    for (int i = 0; i < 125; i++) hpack_add(&t, nothing, i < 53 ? SLICE("x") : nothing);
    CHECK_INT(t.size, HPACK_TABLE);
    hpack_put_int(&block, 0x40, 6, COUNT(hpack_static) + 126);
    hpack_put_string(&block, SLICE("v"));
    hpack_put_indexed(&block, COUNT(hpack_static) + 1);
    CHECK(decode_block(&t, buf_view(&block), &text));
    CHECK_TEXT(buf_view(&text), "the-name: v\nthe-name: v\n");
}

TEST(hpack_reads_back_what_it_writes)
{
    static hpack_table t;
    static char longest[20000];
    OWNED_BUF block = { 0 }, text = { 0 };
    memset(longest, 'z', sizeof longest - 1);
    hpack_init(&t);
    hpack_put_indexed(&block, HPACK_STATUS);
    hpack_put_named(&block, HPACK_CONTENT_TYPE, SLICE("application/grpc"));
    hpack_put(&block, "grpc-status", SLICE(""));
    hpack_put(&block, "x", slice_of(longest));
    CHECK(decode_block(&t, buf_view(&block), &text));
    CHECK(slice_starts(buf_view(&text), ":status: 200\ncontent-type: application/grpc\n"
                                        "grpc-status: \nx: zzz"));
    CHECK(slice_ends(buf_view(&text), "zzz\n"));
}

/* -- HTTP/2: a server of which the test is the client ------------------------------------------ */

/* What its owner was told, and a connection to ask. */
typedef struct {
    h2 h;
    unsigned opened, headers, ended, drained, closed, live;
    bool large, answer; /* answer: with HEADERS that end, once the request has ended */
    size_t data;
    uint32_t code;
    buf sent; /* what the test sends, frame by frame */
} h2_test;

static h2_test *test_of(const h2_stream *s) { return s->conn->owner; }

static bool told_open(h2_stream *s)
{
    test_of(s)->live++;
    return ++test_of(s)->opened;
}
static void told_field(h2_stream *s, slice name, slice value) { (void)s, (void)name, (void)value; }
static void told_headers(h2_stream *s, bool large)
{
    test_of(s)->headers++;
    test_of(s)->large = large;
}
static void told_data(h2_stream *s, slice data) { test_of(s)->data += data.n; }
static void told_end(h2_stream *s)
{
    OWNED_BUF block = { 0 };
    test_of(s)->ended++;
    hpack_put_indexed(&block, HPACK_STATUS);
    if (test_of(s)->answer) h2_headers(s, buf_view(&block), true);
}
static void told_drained(h2_stream *s) { test_of(s)->drained++; }
static void told_closed(h2_stream *s, uint32_t code)
{
    test_of(s)->closed++;
    test_of(s)->live--;
    test_of(s)->code = code;
}
static const h2_events told = {
    .open = told_open, .field = told_field, .headers = told_headers, .data = told_data,
    .end = told_end, .drained = told_drained, .closed = told_closed,
};

static void add_frame(buf *b, unsigned type, unsigned flags, uint32_t id, slice payload)
{
    size_t n = payload.n;
    uint8_t head[H2_HEAD] = { (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n, (uint8_t)type,
                              (uint8_t)flags };
    h2_set32(head + 5, id);
    buf_add(b, head, sizeof head);
    buf_slice(b, payload);
}

static void add_u32(buf *b, unsigned type, uint32_t id, uint32_t value)
{
    uint8_t bytes[4];
    h2_set32(bytes, value);
    add_frame(b, type, 0, id, (slice){ bytes, 4 });
}

static void add_setting(buf *b, unsigned name, uint32_t value)
{
    uint8_t row[6] = { 0, (uint8_t)name };
    h2_set32(row + 2, value);
    add_frame(b, H2_SETTINGS, 0, 0, (slice){ row, 6 });
}

#define A_REQUEST SLICE("\x83\x86\x84") /* :method POST, :scheme http, :path / */

static void deliver(h2_test *t) /* all of t->sent, as a socket would bring it */
{
    size_t taken = h2_feed(&t->h, buf_view(&t->sent));
    buf_drop(&t->sent, taken);
    h2_pump(&t->h);
    for (size_t i = 0; i < H2_BUCKETS; i++)
        for (h2_stream *s = t->h.bucket[i]; s; s = s->in_bucket) h2_check(s);
}

static void test_greet(h2_test *t)
{
    h2_init(&t->h, false, &told, t);
    t->h.now = 1;
    buf_str(&t->sent, h2_preface);
    add_frame(&t->sent, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    deliver(t);
    t->h.out.n = 0;
}

static void test_bye(h2_test *t)
{
    h2_free(&t->h);
    buf_free(&t->sent);
    CHECK_INT(t->live, 0);
}
#define H2_TEST(t) __attribute__((cleanup(test_bye))) h2_test t = { 0 }; test_greet(&t)

/* The n-th frame (from 0) in what the server has written, or one of type 255. */
static h2_frame written(const h2_test *t, size_t n)
{
    slice rest = buf_view(&t->h.out), head;
    h2_frame f = { .type = 255 };
    for (size_t i = 0; slice_take(&rest, H2_HEAD, &head); i++) {
        f = (h2_frame){ .type = head.p[3], .flags = head.p[4], .id = load_be32(head.p + 5) };
        if (!slice_take(&rest, (size_t)head.p[1] << 8 | head.p[2], &f.payload)) break;
        if (i == n) return f;
    }
    return (h2_frame){ .type = 255 };
}

static h2_frame last_written(const h2_test *t)
{
    size_t n = 0;
    while (written(t, n + 1).type != 255) n++;
    return written(t, n);
}

static uint32_t goaway_code(const h2_test *t)
{
    h2_frame f = last_written(t);
    return f.type == H2_GOAWAY && f.payload.n >= 8 ? load_be32(f.payload.p + 4) : 0;
}

TEST(h2_takes_a_request_in_pieces_of_any_size)
{
    for (size_t piece = 1; piece < 40; piece++) {
        h2_test t = { .answer = true };
        OWNED_BUF all = { 0 };
        h2_init(&t.h, false, &told, &t);
        buf_str(&all, h2_preface);
        add_frame(&all, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
        add_frame(&all, H2_HEADERS_FRAME, H2_END_HEADERS, 1, A_REQUEST);
        add_frame(&all, H2_DATA, H2_END_STREAM, 1, SLICE("hello"));
        for (size_t at = 0; at < all.n; at += piece) {
            buf_add(&t.sent, all.p + at, MIN(piece, all.n - at));
            deliver(&t);
        }
        CHECK_INT(t.ended, 1);
        CHECK_INT(t.data, 5);
        CHECK_INT(t.closed, 1);
        CHECK_INT(t.h.nstreams, 0);
        test_bye(&t);
    }
}

TEST(h2_first_frames_must_be_preface_and_settings) /* T10, T11 */
{
    static const char *const bad[] = { "GET / HTTP/1.1\r\n\r\n", "\0",
                                       "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" };
    for (size_t i = 0; i < COUNT(bad); i++) {
        h2_test t = { 0 };
        h2_init(&t.h, false, &told, &t);
        buf_add(&t.sent, bad[i], strlen(bad[i]) + 1);
        deliver(&t);
        CHECK(t.h.failed);
        test_bye(&t);
    }
    h2_test t = { 0 };
    h2_init(&t.h, false, &told, &t);
    buf_str(&t.sent, h2_preface);
    add_frame(&t.sent, H2_PING, 0, 0, SLICE("12345678"));
    deliver(&t);
    CHECK_INT(goaway_code(&t), H2_PROTOCOL_ERROR);
    test_bye(&t);
}

/* Each row is one client: frames that are sent (with stream 1 open), what the server says last. */
TEST(h2_answers_a_broken_frame_with_the_code_of_the_rfc) /* T11, T18 */
{
    static const struct {
        uint8_t type, flags;
        uint32_t id;
        const char *bytes;
        size_t n;
        uint32_t goaway, reset;
    } bad[] = {
        { H2_DATA, 0, 0, "x", 1, H2_PROTOCOL_ERROR, 0 },
        { H2_DATA, 0, 5, "x", 1, H2_PROTOCOL_ERROR, 0 },
        { H2_DATA, H2_PADDED, 1, "\5abcd", 5, H2_PROTOCOL_ERROR, 0 },
        { H2_DATA, H2_PADDED, 1, "", 0, H2_PROTOCOL_ERROR, 0 },
        { H2_HEADERS_FRAME, 5, 2, "\x83\x86\x84", 3, H2_PROTOCOL_ERROR, 0 },
        { H2_HEADERS_FRAME, 5, 3, "\x83\x86", 2, 0, H2_PROTOCOL_ERROR },
        { H2_HEADERS_FRAME, 5, 3, "\x83\x86\x84\x84", 4, 0, H2_PROTOCOL_ERROR },
        { H2_HEADERS_FRAME, 5, 3, "\x83\x86\x84\x88", 4, 0, H2_PROTOCOL_ERROR },
        { H2_HEADERS_FRAME, 4, 1, "\x00\x01x\x01y", 5, 0, H2_PROTOCOL_ERROR },
        { H2_HEADERS_FRAME, 37 /* with priority */, 3, "1234", 4, H2_PROTOCOL_ERROR, 0 },
        { H2_HEADERS_FRAME, 37, 3, "\0\0\0\3\1\x83\x86\x84", 8, 0, H2_PROTOCOL_ERROR },
        { H2_HEADERS_FRAME, 5 | H2_PADDED, 3, "\3\x83\x86", 3, H2_PROTOCOL_ERROR, 0 },
        { H2_PRIORITY, 0, 1, "1234", 4, H2_FRAME_SIZE_ERROR, 0 },
        { H2_PRIORITY, 0, 1, "\0\0\0\1\1", 5, 0, H2_PROTOCOL_ERROR },
        { H2_RST_STREAM, 0, 1, "123", 3, H2_FRAME_SIZE_ERROR, 0 },
        { H2_RST_STREAM, 0, 5, "1234", 4, H2_PROTOCOL_ERROR, 0 },
        { H2_SETTINGS, 0, 0, "12345", 5, H2_FRAME_SIZE_ERROR, 0 },
        { H2_SETTINGS, 0, 1, "", 0, H2_PROTOCOL_ERROR, 0 },
        { H2_SETTINGS, H2_ACK, 0, "123456", 6, H2_FRAME_SIZE_ERROR, 0 },
        { H2_PUSH_PROMISE, 4, 1, "\0\0\0\2\x83\x86\x84", 7, H2_PROTOCOL_ERROR, 0 },
        { H2_PING, 0, 0, "1234567", 7, H2_FRAME_SIZE_ERROR, 0 },
        { H2_GOAWAY, 0, 0, "1234567", 7, H2_FRAME_SIZE_ERROR, 0 },
        { H2_WINDOW_UPDATE, 0, 1, "\0\0\0", 3, H2_FRAME_SIZE_ERROR, 0 },
        { H2_WINDOW_UPDATE, 0, 1, "\0\0\0\0", 4, 0, H2_PROTOCOL_ERROR },
        { H2_WINDOW_UPDATE, 0, 1, "\x80\0\0\0", 4, 0, H2_PROTOCOL_ERROR },
        { H2_WINDOW_UPDATE, 0, 1, "\x7f\xff\xff\xff", 4, 0, H2_FLOW_CONTROL_ERROR },
        { H2_WINDOW_UPDATE, 0, 0, "\x7f\xff\xff\xff", 4, H2_FLOW_CONTROL_ERROR, 0 },
        { H2_WINDOW_UPDATE, 0, 5, "\0\0\0\1", 4, H2_PROTOCOL_ERROR, 0 },
        { H2_CONTINUATION, 4, 1, "\x84", 1, H2_PROTOCOL_ERROR, 0 },
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        H2_TEST(t);
        add_frame(&t.sent, H2_HEADERS_FRAME, H2_END_HEADERS, 1, A_REQUEST);
        slice payload = { (const uint8_t *)bad[i].bytes, bad[i].n };
        add_frame(&t.sent, bad[i].type, bad[i].flags, bad[i].id, payload);
        slice whole = at_page_end(t.sent.p, t.sent.n);
        h2_feed(&t.h, whole);
        h2_frame said = last_written(&t);
        int before = checks_failed;
        CHECK_INT(goaway_code(&t), bad[i].goaway);
        CHECK_INT(said.type, bad[i].goaway ? H2_GOAWAY : H2_RST_STREAM);
        if (bad[i].reset) CHECK_INT(load_be32(said.payload.p), bad[i].reset);
        if (checks_failed > before) fprintf(stderr, "row %zu\n", i);
        t.sent.n = 0;
    }
}

TEST(h2_refuses_a_frame_that_is_too_long_by_its_head) /* RFC 9113, section 4.2 */
{
    H2_TEST(t);
    add_frame(&t.sent, H2_HEADERS_FRAME, H2_END_HEADERS, 1, A_REQUEST);
    static const uint8_t head[9] = { 0, 0x40, 1 /* 16385 bytes */, H2_DATA, 0, 0, 0, 0, 1 };
    buf_slice(&t.sent, (slice){ head, sizeof head });
    h2_feed(&t.h, buf_view(&t.sent));
    CHECK_INT(goaway_code(&t), H2_FRAME_SIZE_ERROR);
    test_bye(&t);
}

TEST(h2_gives_every_window_back)
{
    static uint8_t zeros[H2_FRAME_MAX];
    H2_TEST(t);
    size_t stream_room = 0, conn_room = 0;
    add_frame(&t.sent, H2_HEADERS_FRAME, H2_END_HEADERS, 1, A_REQUEST);
    for (int i = 0; i < 1024; i++) { /* 16 MiB */
        unsigned flags = i == 1023 ? H2_END_STREAM : 0;
        add_frame(&t.sent, H2_DATA, flags, 1, (slice){ zeros, sizeof zeros });
        deliver(&t);
    }
    for (size_t i = 0; written(&t, i).type != 255; i++) {
        h2_frame f = written(&t, i);
        CHECK_INT(f.type, H2_WINDOW_UPDATE);
        *(f.id ? &stream_room : &conn_room) += load_be32(f.payload.p);
    }
    CHECK_INT(t.data, 16 * MIB);
    CHECK(stream_room >= 15 * MIB && conn_room >= 13 * MIB);
}

TEST(h2_ends_a_stream_or_connection_that_sends_past_a_window)
{
    static uint8_t zeros[H2_FRAME_MAX];
    H2_TEST(t);
    add_frame(&t.sent, H2_HEADERS_FRAME, H2_END_HEADERS, 1, A_REQUEST);
    deliver(&t);
    h2_find(&t.h, 1)->recv_window = 100; /* as if no update had been sent */
    add_frame(&t.sent, H2_DATA, 0, 1, (slice){ zeros, 101 });
    deliver(&t);
    CHECK_INT(t.code, H2_FLOW_CONTROL_ERROR);
    CHECK(!t.h.failed);
    t.h.recv_window = 100;
    add_frame(&t.sent, H2_DATA, 0, 1, (slice){ zeros, 101 });
    deliver(&t);
    CHECK_INT(goaway_code(&t), H2_FLOW_CONTROL_ERROR);
}

static void answer_with(h2_test *t, uint32_t id, size_t n) /* HEADERS, then n bytes of DATA */
{
    buf body = { 0 };
    OWNED_BUF block = { 0 };
    h2_stream *s = h2_find(&t->h, id);
    hpack_put_indexed(&block, HPACK_STATUS);
    h2_headers(s, buf_view(&block), false);
    for (size_t i = 0; i < n; i++) buf_byte(&body, (uint8_t)i);
    h2_send(s, &body, false);
    h2_pump(&t->h);
}

static size_t data_written(h2_test *t, uint32_t id) /* of this stream; drops all that was written */
{
    size_t n = 0;
    for (size_t i = 0; written(t, i).type != 255; i++)
        if (written(t, i).type == H2_DATA && written(t, i).id == id) n += written(t, i).payload.n;
    t->h.out.n = 0;
    return n;
}

TEST(h2_sends_no_byte_more_than_the_windows_allow) /* T16 */
{
    H2_TEST(t);
    add_setting(&t.sent, H2_SET_WINDOW, 100);
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 1, A_REQUEST);
    deliver(&t);
    answer_with(&t, 1, 1000);
    CHECK_INT(data_written(&t, 1), 100);
    add_u32(&t.sent, H2_WINDOW_UPDATE, 1, 1);
    deliver(&t);
    CHECK_INT(data_written(&t, 1), 1);
    add_setting(&t.sent, H2_SET_WINDOW, 0); /* 100 less: the window is -100 now */
    add_u32(&t.sent, H2_WINDOW_UPDATE, 1, 100);
    deliver(&t);
    CHECK_INT(data_written(&t, 1), 0);
    CHECK_INT(h2_find(&t.h, 1)->send_window, 0);
    add_setting(&t.sent, H2_SET_WINDOW, 50);
    deliver(&t);
    CHECK_INT(data_written(&t, 1), 50);
    CHECK_INT(t.drained, 0);
    add_setting(&t.sent, H2_SET_WINDOW, 100000);
    deliver(&t);
    CHECK_INT(data_written(&t, 1), 849);
    CHECK_INT(t.drained, 1);
}

TEST(h2_takes_a_window_away_from_a_stream_that_waits_for_its_turn) /* T16 */
{
    H2_TEST(t);
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 1, A_REQUEST);
    deliver(&t);
    t.h.send_window = 0;
    answer_with(&t, 1, 100);
    add_setting(&t.sent, H2_SET_WINDOW, 0);
    add_u32(&t.sent, H2_WINDOW_UPDATE, 0, 1000);
    deliver(&t);
    CHECK_INT(data_written(&t, 1), 0);
    add_u32(&t.sent, H2_WINDOW_UPDATE, 1, 1000);
    deliver(&t);
    CHECK_INT(data_written(&t, 1), 100);
}

TEST(h2_shares_the_connection_window_and_goes_on_when_it_grows)
{
    H2_TEST(t);
    add_setting(&t.sent, H2_SET_WINDOW, 10 * MIB);
    add_u32(&t.sent, H2_WINDOW_UPDATE, 0, 100000 - H2_FIRST_WINDOW);
    for (uint32_t id = 1; id < 7; id += 2) add_frame(&t.sent, H2_HEADERS_FRAME, 5, id, A_REQUEST);
    deliver(&t);
    for (uint32_t id = 1; id < 7; id += 2) answer_with(&t, id, 40000);
    CHECK(t.h.send_window > 0 && t.h.out.n >= H2_OUT_FULL); /* first the output is full */
    size_t before = t.h.out.n;
    h2_pump(&t.h);
    CHECK_INT(t.h.out.n, before);
    t.h.out.n = 0;
    h2_pump(&t.h);
    CHECK_INT(t.h.send_window, 0);
    t.h.out.n = 0;
    add_u32(&t.sent, H2_WINDOW_UPDATE, 0, 60000);
    deliver(&t);
    CHECK_INT(t.drained, 3);
    CHECK_INT(t.h.send_window, 100000 + 60000 - 120000);
}

TEST(h2_gives_streams_their_turns)
{
    H2_TEST(t);
    for (uint32_t id = 1; id < 7; id += 2) add_frame(&t.sent, H2_HEADERS_FRAME, 5, id, A_REQUEST);
    deliver(&t);
    t.h.send_window = 0; /* nothing is framed yet */
    for (uint32_t id = 1; id < 7; id += 2) answer_with(&t, id, 20000);
    t.h.out.n = 0;
    t.h.send_window = H2_FIRST_WINDOW;
    h2_pump(&t.h);
    CHECK_INT(written(&t, 0).id, 1);
    CHECK_INT(written(&t, 1).id, 3);
    CHECK_INT(written(&t, 2).id, 5);
    CHECK_INT(written(&t, 3).id, 1);
}

TEST(h2_limits_fields_and_bytes_of_a_header_list) /* T17 */
{
    static const struct { size_t value, references; bool large; } lists[] = {
        { 4000, 10000, true }, { 1, 16000, true }, { 1, 98, true }, { 4000, 4, true },
        { 1, 90, false }, { 4000, 2, false },
    };
    for (size_t i = 0; i < COUNT(lists); i++) {
        H2_TEST(t);
        OWNED_BUF block = { 0 }, value = { 0 };
        buf_slice(&block, A_REQUEST);
        hpack_put_int(&block, 0x40, 6, 0);
        hpack_put_string(&block, SLICE("x"));
        for (size_t k = 0; k < lists[i].value; k++) buf_byte(&value, 'v');
        hpack_put_string(&block, buf_view(&value));
        for (size_t k = 0; k < lists[i].references; k++)
            hpack_put_indexed(&block, COUNT(hpack_static) + 1);
        slice rest = buf_view(&block), part;
        slice_take(&rest, MIN(rest.n, (size_t)H2_FRAME_MAX), &part);
        add_frame(&t.sent, H2_HEADERS_FRAME, H2_END_STREAM, 1, part);
        slice_take(&rest, MIN(rest.n, (size_t)H2_FRAME_MAX), &part);
        add_frame(&t.sent, H2_CONTINUATION, H2_END_HEADERS, 1, part);
        deliver(&t);
        CHECK(!t.h.failed);
        CHECK_INT(t.headers, 1);
        CHECK_INT(t.large, lists[i].large);
        CHECK(t.h.block.cap == 0);
    }
}

TEST(h2_cuts_off_a_header_block_without_end) /* T12 */
{
    static uint8_t zeros[H2_FRAME_MAX];
    static const size_t sizes[] = { 0, 1, H2_FRAME_MAX };
    for (size_t i = 0; i < COUNT(sizes); i++) {
        H2_TEST(t);
        add_frame(&t.sent, H2_HEADERS_FRAME, 0, 1, A_REQUEST);
        for (int k = 0; k < 9; k++)
            add_frame(&t.sent, H2_CONTINUATION, 0, 1, (slice){ zeros, sizes[i] });
        deliver(&t);
        CHECK_INT(goaway_code(&t), H2_ENHANCE_YOUR_CALM);
        CHECK(t.h.block.n <= H2_BLOCK_MAX);
    }
}

/* What one round of a flood sends on stream `id`, which is open if `open`. */
static void flood_rst(buf *b, uint32_t id) { add_u32(b, H2_RST_STREAM, id, H2_CANCEL); }
static void flood_window(buf *b, uint32_t id) { add_u32(b, H2_WINDOW_UPDATE, id, 0); }
static void flood_overflow(buf *b, uint32_t id) { add_u32(b, H2_WINDOW_UPDATE, id, 0x7FFFFFFF); }
static void flood_self(buf *b, uint32_t id)
{
    uint8_t bytes[5] = { 0 };
    h2_set32(bytes, id);
    add_frame(b, H2_PRIORITY, 0, id, (slice){ bytes, 5 });
}
static void flood_ping(buf *b, uint32_t id)
{
    (void)id;
    add_frame(b, H2_PING, 0, 0, SLICE("12345678"));
}
static void flood_settings(buf *b, uint32_t id) { add_setting(b, H2_SET_WINDOW, id); }
static void flood_empty(buf *b, uint32_t id)
{
    (void)id;
    add_frame(b, H2_DATA, 0, 1, (slice){ NULL, 0 });
}
static void flood_unknown(buf *b, uint32_t id) { add_frame(b, 77, 255, id, SLICE("x")); }

TEST(h2_tells_a_flood_to_calm_down_and_forgets_it_in_time) /* T13, T14, T15 */
{
    static const struct { void (*add)(buf *, uint32_t); bool open; unsigned most; } floods[] = {
        { flood_rst, true, H2_RESETS_MAX },      { flood_window, true, H2_RESETS_MAX },
        { flood_overflow, true, H2_RESETS_MAX }, { flood_self, true, H2_RESETS_MAX },
        { flood_ping, false, H2_IDLE_FRAMES_MAX - 1 }, /* the greeting was one */
        { flood_settings, false, H2_IDLE_FRAMES_MAX - 1 },
        { flood_unknown, false, H2_IDLE_FRAMES_MAX - 1 },
        { flood_empty, false, H2_IDLE_FRAMES_MAX },
    };
    for (size_t i = 0; i < COUNT(floods); i++)
        for (int slow = 0; slow < 2; slow++) { /* the same over 20 seconds is no flood */
            H2_TEST(t);
            if (floods[i].add == flood_empty) add_frame(&t.sent, H2_HEADERS_FRAME, 4, 1, A_REQUEST);
            unsigned rounds = floods[i].most + 1;
            for (unsigned k = 0; k < rounds; k++) {
                uint32_t id = 2 * k + 1;
                if (floods[i].open) add_frame(&t.sent, H2_HEADERS_FRAME, 4, id, A_REQUEST);
                floods[i].add(&t.sent, id);
                if (slow) t.h.now += 20 * NS_PER_SEC / rounds;
                if (k == rounds - 1) CHECK(!t.h.failed);
                deliver(&t);
                CHECK(t.h.out.n < H2_OUT_FULL);
            }
            CHECK_INT(goaway_code(&t), slow ? 0 : H2_ENHANCE_YOUR_CALM);
        }
}

TEST(h2_serves_250_streams_and_refuses_the_next)
{
    H2_TEST(t);
    for (uint32_t k = 0; k < 251; k++)
        add_frame(&t.sent, H2_HEADERS_FRAME, 4, 2 * k + 1, A_REQUEST);
    deliver(&t);
    CHECK_INT(t.live, 250);
    h2_frame f = last_written(&t);
    CHECK_INT(f.type, H2_RST_STREAM);
    CHECK_INT(f.id, 501);
    CHECK_INT(load_be32(f.payload.p), H2_REFUSED_STREAM);
    add_u32(&t.sent, H2_RST_STREAM, 1, H2_CANCEL);
    add_frame(&t.sent, H2_HEADERS_FRAME, 4, 503, A_REQUEST);
    deliver(&t);
    CHECK_INT(t.opened, 251);
}

TEST(h2_ignores_what_was_under_way_when_it_reset_a_stream_and_keeps_the_table_right)
{
    static const char more[] = "\x40\x01x\x01y"; /* adds to the table although nobody wants it */
    H2_TEST(t);
    add_frame(&t.sent, H2_HEADERS_FRAME, 4, 1, A_REQUEST);
    deliver(&t);
    h2_reset(h2_find(&t.h, 1), H2_CANCEL);
    h2_pump(&t.h);
    add_frame(&t.sent, H2_DATA, 0, 1, SLICE("data"));
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 1, (slice){ (const uint8_t *)more, 5 });
    deliver(&t);
    CHECK(!t.h.failed);
    CHECK_INT(t.h.table.end - t.h.table.first, 1);
    CHECK_INT(t.h.recv_window, H2_CONN_WINDOW - 4);
}

TEST(h2_says_size_0_after_the_peer_has_shrunk_its_table) /* RFC 7541, section 4.2 */
{
    H2_TEST(t);
    t.answer = true;
    add_setting(&t.sent, H2_SET_TABLE_SIZE, 0);
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 1, A_REQUEST);
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 3, A_REQUEST);
    deliver(&t);
    CHECK_TEXT(written(&t, 1).payload, "\x20\x88");
    CHECK_TEXT(written(&t, 2).payload, "\x88");
}

TEST(h2_goes_away_in_two_steps)
{
    H2_TEST(t);
    h2_going_away(&t.h);
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 1, A_REQUEST); /* was under way: still served */
    deliver(&t);
    CHECK_INT(t.opened, 1);
    h2_gone_away(&t.h);
    add_frame(&t.sent, H2_HEADERS_FRAME, 4, 3, A_REQUEST);
    add_frame(&t.sent, H2_DATA, H2_END_STREAM, 3, SLICE("x"));
    deliver(&t);
    CHECK_INT(t.opened, 1);
    CHECK(!t.h.failed);
}

TEST(h2_expires_what_waits_and_nothing_else)
{
    H2_TEST(t);
    add_setting(&t.sent, H2_SET_WINDOW, 10);
    add_frame(&t.sent, H2_HEADERS_FRAME, 4, 1, A_REQUEST); /* half a request */
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 3, A_REQUEST); /* is being handled */
    add_frame(&t.sent, H2_HEADERS_FRAME, 5, 5, A_REQUEST); /* its reply has no window */
    deliver(&t);
    answer_with(&t, 5, 100);
    h2_expire(&t.h, t.h.now);
    CHECK_INT(t.closed, 0);
    h2_expire(&t.h, t.h.now + 1);
    CHECK_INT(t.closed, 2);
    CHECK(h2_find(&t.h, 3) != NULL);
}

/* -- anything at all --------------------------------------------------------------------------- */

static unsigned next_random(unsigned *seed)
{
    return (*seed = *seed * 1103515245 + 12345) >> 8 & 0xFFFF;
}

static void feed_somehow(slice bytes, unsigned seed) /* in pieces; what can be answered, is */
{
    h2_test t = { .answer = true };
    h2_init(&t.h, false, &told, &t);
    while (bytes.n && !t.h.failed) {
        slice piece;
        size_t n = next_random(&seed) % 400 + 1;
        slice_take(&bytes, MIN(bytes.n, n), &piece);
        buf_slice(&t.sent, piece);
        deliver(&t);
        CHECK(t.h.out.n < 4 * H2_OUT_FULL);
        if (next_random(&seed) % 4 == 0) t.h.out.n = 0;
    }
    test_bye(&t);
}

TEST(h2_survives_the_recorded_bad_clients_and_their_mutations) /* T11 */
{
    if (!vectors_dir) SKIP("KRUN_TESTDATA is not set");
    OWNED_ARENA a = arena_make(64 * MIB);
    char path[PATH_MAX];
    slice corpus[200];
    size_t n = 0;
    error e;
    snprintf(path, sizeof path, "%s/http2-frames", vectors_dir);
    DIR *d = opendir(path);
    if (!d) SKIP("no %s", path);
    for (struct dirent *f; (f = readdir(d)) && n < COUNT(corpus);)
        if ((corpus[n] = file_read(dirfd(d), f->d_name, MIB, &a, &e)).p) n++;
    closedir(d);
    CHECK(n > 100);
    unsigned seed = 7, rounds = 0;
    int64_t end = clock_mono() + NS_PER_SEC;
    for (size_t i = 0; i < n; i++) feed_somehow(corpus[i], 1);
    for (; clock_mono() < end; rounds++) {
        slice c = corpus[next_random(&seed) % n];
        OWNED_BUF changed = { 0 };
        buf_slice(&changed, c);
        for (unsigned k = next_random(&seed) % 8; k-- && changed.n > 24;) {
            size_t at = 24 + next_random(&seed) % (changed.n - 24);
            if (next_random(&seed) % 4 == 0) buf_slice(&changed, corpus[next_random(&seed) % n]);
            else changed.p[at] = (uint8_t)next_random(&seed);
        }
        feed_somehow(buf_view(&changed), seed);
    }
    CHECK(rounds > 10);
}
