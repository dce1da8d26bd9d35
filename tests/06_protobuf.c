/* Chapter 6. T1 to T5 of the threat list: bytes that a broken or hostile client may send. The
 * messages are made for the tests: one with every kind of field, and one that holds itself. */

typedef struct pb_try {
    bool flag;
    int32_t i32, mode;
    uint32_t u32;
    int64_t i64;
    uint64_t u64;
    double real;
    slice text, raw;
    struct pb_try *sub;
    LIST(int64_t) numbers;
    LIST(slice) texts;
    LIST(struct pb_try) subs;
    LIST(pb_pair) map;
    LIST(double) reals;
    slice name_space;
} pb_try;

PB_NAMES(Mode, "OFF", "ON", "WAIT");
static const pb_message pb_try_msg;
PB_TABLE(pb_try,
    PB(1, BOOL, pb_try, flag),
    PB(2, INT32, pb_try, i32),
    PB_NAMED(3, Mode, pb_try, mode),
    PB(4, UINT32, pb_try, u32),
    PB(5, INT64, pb_try, i64),
    PB(6, UINT64, pb_try, u64),
    PB(7, DOUBLE, pb_try, real),
    PB(8, STRING, pb_try, text),
    PB(9, BYTES, pb_try, raw),
    PB_SUB(10, pb_try, pb_try, sub),
    PB_LIST(11, INT64, pb_try, numbers),
    PB_LIST(12, STRING, pb_try, texts),
    PB_SUBS(13, pb_try, pb_try, subs),
    PB_PAIRS(14, pb_try, map),
    PB_LIST(15, DOUBLE, pb_try, reals),
    PB(100, STRING, pb_try, name_space, .json = "namespace"));

static int pb_try_decode(slice wire, arena *a, pb_try *out, error *e)
{
    *a = arena_make(64 * MIB);
    *e = (error){ 0 };
    return pb_decode(&pb_try_msg, at_page_end(wire.p, wire.n), a, out, e);
}

TEST(pb_decode_refuses_what_is_not_protobuf) /* T1, T4 */
{
    static const struct { const char *what; slice wire; const char *text; } rows[] = {
#define ROW(what, bytes, text) { what, { (const uint8_t *)(bytes), sizeof(bytes) - 1 }, text }
        ROW("tag cut off", "\x88", "pb_try: a tag"),
        ROW("tag of 11 bytes", "\x88\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x01", "pb_try: a tag"),
        ROW("tag 0", "\x00\x00", "field number"),
        ROW("field 0 with a wire type", "\x02\x00", "field number"),
        ROW("field 2^29", "\x80\x80\x80\x80\x10\x00", "field number"),
        ROW("varint cut off", "\x08\xff", "varint"),
        ROW("varint absent", "\x08", "varint"),
        ROW("varint of 11 bytes", "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "varint"),
        ROW("varint of 65 bits", "\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "varint"),
        ROW("unknown varint cut off", "\xa0\x06\xff", "varint"),
        ROW("length 2^63", "\x42\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01" "a", "past the end"),
        ROW("length 2^64 - 1", "\x42\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" "a", "past the end"),
        ROW("length one too long", "\x42\x02" "a", "past the end"),
        ROW("length absent", "\x42", "length"),
        ROW("fixed64 cut off", "\x39\1\2\3\4\5\6\7", "past the end"),
        ROW("fixed32 cut off", "\x3d\1\2\3", "past the end"),
        ROW("group start", "\x0b\x0c", "wire type"),
        ROW("group end", "\x0c", "wire type"),
        ROW("wire type 6", "\x0e\x01", "wire type"),
        ROW("wire type 7", "\x0f\x01", "wire type"),
        ROW("packed number cut off", "\x5a\x02\x01\x80", "pb_try.numbers: a packed number"),
        ROW("packed doubles cut off", "\x7a\x09\0\0\0\0\0\0\0\0\1",
            "pb_try.reals: a packed number"),
        ROW("bad inside a sub-message", "\x52\x01\x08", "pb_try.sub: pb_try: a varint"),
        ROW("bad inside a list", "\x6a\0\x6a\x02\x08\x80", "pb_try.subs: pb_try: a varint"),
        ROW("text not UTF-8", "\x42\x02\xc3\x28", "pb_try.text: not UTF-8"),
        ROW("over-long UTF-8", "\x42\x02\xc0\x80", "pb_try.text: not UTF-8"),
        ROW("surrogate", "\x42\x03\xed\xa0\x80", "pb_try.text: not UTF-8"),
        ROW("text in a list", "\x62\0\x62\x01\xff", "pb_try.texts: not UTF-8"),
        ROW("text two levels down", "\x52\x04\xa2\x06\x01\xfe",
            "pb_try.sub: pb_try.namespace: not UTF-8"),
        ROW("key of a map", "\x72\x03\x0a\x01\xff", "pb_try.map: pb_pair.key: not UTF-8"),
        ROW("value of a map", "\x72\x03\x12\x01\xff", "pb_try.map: pb_pair.value: not UTF-8"),
#undef ROW
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a;
        error e;
        pb_try got;
        if (pb_try_decode(rows[i].wire, &a, &got, &e) == 0) e.code = 0;
        if (e.code != GRPC_INVALID_ARGUMENT || !strstr(e.text, rows[i].text))
            fprintf(stderr, "%s: code %d, \"%s\"\n", rows[i].what, e.code, e.text), checks_failed++;
    }
}

TEST(pb_decode_ends_at_32_levels) /* T2 */
{
    OWNED_BUF wire = { 0 };
    for (int level = 1; level <= 1000; level++) {
        uint8_t length[10], tag = 10 << 3 | PB_BYTE_RUN;
        OWNED_BUF outer = { 0 };
        buf_byte(&outer, tag);
        buf_add(&outer, length, pb_varint(wire.n, length));
        buf_slice(&outer, buf_view(&wire));
        buf_free(&wire);
        wire = outer;
        outer = (buf){ 0 };
        if (level != PB_DEPTH - 1 && level != PB_DEPTH && level != 1000) continue;
        OWNED_ARENA a;
        error e;
        pb_try got;
        CHECK_INT(pb_try_decode(buf_view(&wire), &a, &got, &e), level < PB_DEPTH ? 0 : -1);
        if (level >= PB_DEPTH) CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
        if (level >= PB_DEPTH) CHECK(strstr(e.text, "nested too deep"));
    }
}

TEST(pb_decode_refuses_what_is_longer_than_a_message) /* T7 */
{
    OWNED_ARENA a = arena_make(MIB);
    VersionRequest out;
    error e = { 0 };
    size_t n = PB_MESSAGE_MAX + 2; /* field 99, again and again: a field that nobody knows, of nothing */
    uint8_t *bytes = malloc(n);
    for (size_t i = 0; i < n; i++) bytes[i] = (const uint8_t[]){ 0x9a, 0x06, 0 }[i % 3];
    CHECK_INT(pb_decode(&VersionRequest_msg, (slice){ bytes, PB_MESSAGE_MAX - 1 }, &a, &out, &e), 0);
    CHECK_INT(pb_decode(&VersionRequest_msg, (slice){ bytes, PB_MESSAGE_MAX + 2 }, &a, &out, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    free(bytes);
}

TEST(pb_decode_takes_no_more_memory_than_its_budget) /* T2 */
{
    size_t n = PB_MESSAGE_MAX;
    uint8_t *bytes = calloc(1, n + 1);
    error e = { 0 };
    pb_try got;
    for (size_t i = 0; i < n; i += 2) bytes[i] = 13 << 3 | PB_BYTE_RUN; /* empty sub-messages */
    OWNED_ARENA a = arena_make(4 * n);
    CHECK_INT(pb_decode(&pb_try_msg, (slice){ bytes, n }, &a, &got, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK(strstr(e.text, "pb_try.subs: no memory for 8388608 elements"));
    CHECK(a.left > 3 * n); /* it was refused before anything was taken */
    CHECK_INT(pb_decode(&pb_try_msg, (slice){ bytes, n + 1 }, &a, &got, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    for (size_t i = 0; i < n; i += 2) bytes[i] = 10 << 3 | PB_BYTE_RUN; /* 8 million parts of one */
    CHECK_INT(pb_decode(&pb_try_msg, (slice){ bytes, n }, &a, &got, &e), 0);
    CHECK(got.sub && a.left > 3 * n);
    free(bytes);
}

TEST(pb_decode_fails_cleanly_at_each_allocation)
{
    slice wire = SLICE("\x52\x02\x08\x01\x5a\x02\x01\x02\x62\x01x\x6a\x02\x08\x01"
                       "\x72\x03\x0a\x01" "a\x72\x03\x0a\x01" "b");
    bool done = false;
    for (size_t budget = 0; !done && budget < 4096; budget += 16) {
        OWNED_ARENA a = arena_make(budget);
        error e = { 0 };
        pb_try got;
        done = pb_decode(&pb_try_msg, wire, &a, &got, &e) == 0;
        CHECK(done || e.code == GRPC_RESOURCE_EXHAUSTED);
    }
    CHECK(done);
}

TEST(pb_decode_steps_over_what_it_does_not_know) /* T3 */
{
    OWNED_ARENA a;
    error e;
    pb_try got;
    slice wire = SLICE("\xa0\x06\x80\x01"              /* field 100 is a text: here a varint */
                       "\xc1\x3e\1\2\3\4\5\6\7\x08"    /* 1000: fixed64 */
                       "\xc2\x3e\x02zz"                /* bytes that are no message */
                       "\xc5\x3e\1\2\3\4"              /* fixed32 */
                       "\xc8\x3e\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
                       "\xf8\xff\xff\xff\x0f\x01"      /* field 2^29 - 1 */
                       "\x0a\x01\x01"                  /* the bool as bytes: so unknown */
                       "\x10\x07");
    CHECK_INT(pb_try_decode(wire, &a, &got, &e), 0);
    CHECK_INT(got.i32, 7);
    CHECK(!got.flag && !got.name_space.n);
}

TEST(pb_decode_reads_lists_of_numbers_packed_and_not) /* T3 */
{
    OWNED_ARENA a;
    error e;
    pb_try got;
    slice wire =
        SLICE("\x58\x01\x5a\x03\x02\x80\x01\x5a\0\x58\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
              "\x79\0\0\0\0\0\0\xf0\x3f\x7a\x08\0\0\0\0\0\0\0\x40");
    static const int64_t want[] = { 1, 2, 128, -1 };
    CHECK_INT(pb_try_decode(wire, &a, &got, &e), 0);
    CHECK_INT(got.numbers.n, 4);
    for (size_t i = 0; i < COUNT(want) && i < got.numbers.n; i++)
        CHECK_INT(got.numbers.p[i], want[i]);
    CHECK(got.reals.n == 2 && got.reals.p[0] == 1 && got.reals.p[1] == 2);
}

TEST(pb_decode_lets_the_last_scalar_win_and_merges_messages) /* T3 */
{
    OWNED_ARENA a;
    error e;
    pb_try got;
    slice wire = SLICE("\x10\x01\x42\x01" "a\x10\x02\x42\x01" "b"
                       "\x52\x0a\x10\x05\x58\x01\x72\x04\x0a\x00\x12\x00"
                       "\x52\x0b\x20\x06\x58\x02\x42\x01z\x62\x02hi");
    CHECK_INT(pb_try_decode(wire, &a, &got, &e), 0);
    CHECK_INT(got.i32, 2);
    CHECK_TEXT(got.text, "b");
    CHECK_INT(got.sub->i32, 5); /* from the first, the rest from the second */
    CHECK_INT(got.sub->u32, 6);
    CHECK_TEXT(got.sub->text, "z");
    CHECK(got.sub->numbers.n == 2 && got.sub->numbers.p[0] == 1 && got.sub->numbers.p[1] == 2);
    CHECK(got.sub->map.n == 1 && got.sub->texts.n == 1);
}

TEST(pb_decode_cuts_numbers_to_their_kind)
{
    OWNED_ARENA a;
    error e;
    pb_try got;
    slice wire = SLICE("\x08\x80\x02\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x18\x09"
                       "\x20\x81\x80\x80\x80\x10\x28\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    CHECK_INT(pb_try_decode(wire, &a, &got, &e), 0);
    CHECK(got.flag);
    CHECK_INT(got.i32, -1);
    CHECK_INT(got.mode, 9); /* a value that we have no name for is kept: proto3's enums are open */
    CHECK_INT(got.u32, 1);
    CHECK_INT(got.i64, -2);
}

TEST(pb_map_keeps_the_last_of_equal_keys) /* T5 */
{
    OWNED_ARENA a;
    error e;
    pb_try got;
    slice wire = SLICE("\x72\x06\x0a\x01k\x12\x01" "1\x72\x06\x0a\x01" "a\x12\x01x"
                       "\x72\x06\x12\x01" "2\x0a\x01k" /* value before key */
                       "\x72\x00"                      /* neither: "" is "" */
                       "\x72\x03\x12\x01" "3"          /* no key */
                       "\x72\x03\x0a\x01" "b"          /* no value */
                       "\x72\x09\x0a\x01" "c\x1a\x02??\x20\x05");
    static const char *const want[][2] = {
        { "a", "x" }, { "k", "2" }, { "", "3" }, { "b", "" }, { "c", "" }
    };
    CHECK_INT(pb_try_decode(wire, &a, &got, &e), 0);
    CHECK_INT(got.map.n, COUNT(want));
    for (size_t i = 0; i < COUNT(want) && i < got.map.n; i++) {
        CHECK_TEXT(got.map.p[i].key, want[i][0]);
        CHECK_TEXT(got.map.p[i].value, want[i][1]);
    }
}

TEST(pb_map_of_100000_entries_takes_less_than_a_second) /* T5 */
{
    OWNED_BUF wire = { 0 };
    OWNED_ARENA a;
    error e;
    pb_try got;
    for (unsigned i = 0; i < 100000; i++) {
        char key[16];
        int n = snprintf(key, sizeof key, "%05u", i * 7919 % 50000); /* each key twice */
        uint8_t head[] = { 14 << 3 | PB_BYTE_RUN, (uint8_t)(n + 5), 0x0a, (uint8_t)n };
        buf_add(&wire, head, sizeof head);
        buf_add(&wire, key, (size_t)n);
        buf_add(&wire, i < 50000 ? "\x12\x01" "1" : "\x12\x01" "2", 3);
    }
    unsigned long before = comparisons;
    CHECK_INT(pb_try_decode(buf_view(&wire), &a, &got, &e), 0);
    CHECK(comparisons - before < 10 * 1000 * 1000);
    CHECK_INT(got.map.n, 50000);
    for (size_t i = 0; i < got.map.n; i++)
        if (!slice_is(got.map.p[i].value, "2")) { CHECK_TEXT(got.map.p[i].value, "2"); break; }
}

/* A message with something in every field, two levels deep. */
static void pb_try_fill(pb_try *t, pb_try *inner)
{
    static int64_t numbers[] = { 0, -1, INT64_MIN, 300 };
    static slice texts[2];
    static pb_pair pairs[2];
    static double reals[] = { 0.5, -0.0 };
    texts[0] = SLICE("");
    texts[1] = SLICE("\xc3\xa4\n\"");
    pairs[0] = (pb_pair){ SLICE("k"), SLICE("v") };
    pairs[1] = (pb_pair){ SLICE(""), SLICE("empty") };
    *t = (pb_try){ .flag = true, .i32 = -5, .mode = 1, .u32 = UINT32_MAX, .i64 = INT64_MIN,
                   .u64 = UINT64_MAX, .real = 0.1, .text = SLICE("te\\xt"), .raw = SLICE("\0\xff"),
                   .numbers = { numbers, 4 }, .texts = { texts, 2 }, .map = { pairs, 2 },
                   .reals = { reals, 2 }, .name_space = SLICE("ns") };
    if (!inner) return;
    pb_try_fill(inner, NULL);
    t->sub = inner;
    t->subs.p = inner;
    t->subs.n = 1;
}

static void pb_try_check(const pb_try *t, bool outer)
{
    CHECK(t->flag && t->i32 == -5 && t->mode == 1 && t->u32 == UINT32_MAX);
    CHECK(t->i64 == INT64_MIN && t->u64 == UINT64_MAX && t->real == 0.1);
    CHECK_TEXT(t->text, "te\\xt");
    CHECK(slice_eq(t->raw, SLICE("\0\xff")));
    CHECK_TEXT(t->name_space, "ns");
    CHECK(t->numbers.n == 4 && t->numbers.p[1] == -1 && t->numbers.p[2] == INT64_MIN &&
          t->numbers.p[3] == 300);
    CHECK(t->texts.n == 2 && t->texts.p[0].n == 0 && slice_is(t->texts.p[1], "\xc3\xa4\n\""));
    CHECK(t->map.n == 2 && slice_is(t->map.p[0].value, "v") &&
          slice_is(t->map.p[1].value, "empty"));
    CHECK(t->reals.n == 2 && t->reals.p[0] == 0.5 && t->reals.p[1] == 0);
    CHECK(!outer == !t->sub && t->subs.n == outer);
    if (outer && t->sub && t->subs.n) pb_try_check(t->sub, false), pb_try_check(t->subs.p, false);
}

TEST(pb_encode_writes_what_pb_decode_reads)
{
    pb_try in, inner, got;
    OWNED_BUF wire = { 0 };
    OWNED_ARENA a;
    error e;
    pb_try_fill(&in, &inner);
    CHECK_INT(pb_encode(&pb_try_msg, &in, &wire), 0);
    CHECK_INT(pb_size(&pb_try_msg, &in), wire.n);
    CHECK_INT(pb_try_decode(buf_view(&wire), &a, &got, &e), 0);
    pb_try_check(&got, true);
}

TEST(pb_encode_writes_the_bytes_of_the_specification)
{
    static int64_t numbers[] = { 3, 270, 86942 }; /* the examples of the encoding guide */
    static slice texts[] = { { NULL, 0 }, { (const uint8_t *)"hi", 2 } };
    pb_try empty = { 0 };
    pb_try in = { .i32 = 150, .text = SLICE("testing"), .sub = &empty,
                  .numbers = { numbers, 3 }, .texts = { texts, 2 } };
    OWNED_BUF wire = { 0 };
    CHECK_INT(pb_encode(&pb_try_msg, &empty, &wire), 0);
    CHECK_INT(wire.n, 0);
    CHECK_INT(pb_encode(&pb_try_msg, &in, &wire), 0);
    CHECK(slice_eq(buf_view(&wire),
                   SLICE("\x10\x96\x01\x42\x07testing\x52\x00\x5a\x06\x03\x8e\x02\x9e\xa7\x05"
                         "\x62\x00\x62\x02hi")));
}

TEST(pb_encode_puts_long_lengths_before_their_values)
{
    static const size_t sizes[] = {
        0, 1, 120, 124, 125, 126, 127, 128, 16380, 16384, 70000, 2097152
    };
    uint8_t *text = calloc(1, sizes[COUNT(sizes) - 1] + 1);
    memset(text, 'x', sizes[COUNT(sizes) - 1]);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        pb_try leaf = { .text = { text, sizes[i] }, .i32 = 1 }, inner = { .sub = &leaf, .i32 = 2 };
        pb_try in = { .sub = &inner, .i32 = 3 }, got;
        OWNED_BUF wire = { 0 };
        OWNED_ARENA a;
        error e;
        CHECK_INT(pb_encode(&pb_try_msg, &in, &wire), 0);
        CHECK_INT(pb_size(&pb_try_msg, &in), wire.n);
        CHECK_INT(pb_try_decode(buf_view(&wire), &a, &got, &e), 0);
        CHECK(got.i32 == 3 && got.sub && got.sub->i32 == 2 && got.sub->sub &&
              got.sub->sub->i32 == 1);
        CHECK(got.sub && got.sub->sub && slice_eq(got.sub->sub->text, leaf.text));
    }
    free(text);
}

TEST(pb_encode_sends_no_text_that_is_not_utf8)
{
    pb_try in = { .text = SLICE("a\xff") }, got;
    OWNED_BUF wire = { 0 };
    OWNED_ARENA a;
    error e;
    CHECK_INT(pb_encode(&pb_try_msg, &in, &wire), 0);
    CHECK_INT(pb_try_decode(buf_view(&wire), &a, &got, &e), 0);
    CHECK_TEXT(got.text, "a\\xff");
}

TEST(pb_copy_owes_nothing_to_what_it_copied)
{
    pb_try in, inner, got;
    char text[] = "te\\xt";
    OWNED_ARENA a = arena_make(MIB), none = arena_make(64);
    pb_try_fill(&in, &inner);
    in.text = slice_of(text);
    CHECK_INT(pb_copy(&pb_try_msg, &in, &a, &got), 0);
    memset(text, '#', sizeof text - 1);
    memset(&in, 0, sizeof in);
    memset(&inner, 0, sizeof inner);
    pb_try_check(&got, true);
    pb_try_fill(&in, &inner);
    CHECK_INT(pb_copy(&pb_try_msg, &in, &none, &got), -1);
}

TEST(pb_json_reads_back_what_it_wrote)
{
    for (unsigned flags = 0; flags < 4; flags++) {
        pb_try in, inner, got;
        OWNED_BUF text = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        pb_try_fill(&in, &inner);
        pb_write_json(&pb_try_msg, &in, flags, &text);
        CHECK_INT(pb_read_json(&pb_try_msg, buf_view(&text), &a, &got, &e), 0);
        CHECK_TEXT(slice_of(e.text), "");
        memset(text.p, '#', text.n);
        pb_try_check(&got, true);
    }
}

static void pb_json_is(const pb_try *in, unsigned flags, const char *want)
{
    OWNED_BUF text = { 0 };
    pb_write_json(&pb_try_msg, in, flags, &text);
    CHECK_TEXT(buf_view(&text), want);
}

TEST(pb_json_is_written_as_protobuf_wants_it)
{
    static pb_pair pair;
    static int64_t number = 7;
    pb_try sub = { .i64 = INT64_MIN, .u64 = UINT64_MAX, .real = 0.1, .raw = SLICE("\xfb\xff") };
    pair = (pb_pair){ SLICE("a/b"), SLICE("\"") };
    pb_try in = { .mode = 2, .sub = &sub, .map = { &pair, 1 }, .numbers = { &number, 1 },
                  .name_space = SLICE("x") };
    pb_json_is(&(pb_try){ 0 }, 0, "{}");
    pb_json_is(&(pb_try){ 0 }, PB_INDENT, "{}");
    pb_json_is(&in, 0,
               "{\"mode\":\"WAIT\",\"sub\":{\"i64\":\"-9223372036854775808\","
               "\"u64\":\"18446744073709551615\",\"real\":0.1,\"raw\":\"+/8=\"},"
               "\"numbers\":[\"7\"],\"map\":{\"a/b\":\"\\\"\"},\"namespace\":\"x\"}");
    in.sub = NULL;
    pb_json_is(&in, PB_INDENT,
               "{\n  \"mode\": \"WAIT\",\n  \"numbers\": [\n    \"7\"\n  ],\n  \"map\": {\n"
               "    \"a/b\": \"\\\"\"\n  },\n  \"namespace\": \"x\"\n}");
    pb_json_is(&(pb_try){ .mode = 9, .real = 1e300 * 1e10 }, 0,
               "{\"mode\":9,\"real\":\"Infinity\"}");
    pb_json_is(&(pb_try){ 0 }, PB_DEFAULTS,
               "{\"flag\":false,\"i32\":0,\"mode\":\"OFF\",\"u32\":0,\"i64\":\"0\","
               "\"u64\":\"0\",\"real\":0,\"text\":\"\",\"raw\":\"\",\"sub\":null,\"numbers\":[],"
               "\"texts\":[],"
               "\"subs\":[],\"map\":{},\"reals\":[],\"namespace\":\"\"}");
}

TEST(pb_json_names_are_lower_camel_case)
{
    static const char *const rows[][2] = { { "pod_sandbox_id", "podSandboxId" },
                                           { "CDI_devices", "CDIDevices" },
                                           { "uidMappings", "uidMappings" },
                                           { "Avg10", "Avg10" },
                                           { "memory_limit_in_bytes", "memoryLimitInBytes" } };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char name[PB_NAME_MAX];
        CHECK_TEXT(pb_json_name(&(pb_field){ .name = rows[i][0] }, name), rows[i][1]);
    }
}

TEST(pb_json_takes_both_spellings_numbers_in_quotes_and_null)
{
    pb_try got;
    OWNED_ARENA a = arena_make(MIB);
    error e = { 0 };
    slice text = SLICE("{\"i32\":\"-3\",\"i64\":9007199254740993,\"u64\":\"18446744073709551615\","
                       "\"mode\":1,\"real\":\"2.5\",\"sub\":null,\"numbers\":null,"
                       "\"subs\":[{},{\"mode\":\"WAIT\"}],\"raw\":\"-_8\","
                       "\"map\":{\"k\":\"1\",\"k\":\"2\"},\"namespace\":\"n\"}");
    CHECK_INT(pb_read_json(&pb_try_msg, text, &a, &got, &e), 0);
    CHECK_TEXT(slice_of(e.text), "");
    CHECK(got.i32 == -3 && got.i64 == INT64_C(9007199254740993) && got.u64 == UINT64_MAX &&
          got.real == 2.5);
    CHECK(got.mode == 1 && !got.sub && !got.numbers.n && got.subs.n == 2 &&
          got.subs.p[1].mode == 2);
    CHECK(got.map.n == 1 && slice_is(got.map.p[0].value, "2") &&
          slice_eq(got.raw, SLICE("\xfb\xff")));
    static const char *const spellings[] = { "{\"log_directory\":\"/l\"}",
                                             "{\"logDirectory\":\"/l\"}" };
    for (size_t i = 0; i < COUNT(spellings); i++) {
        PodSandboxConfig config;
        CHECK_INT(pb_read_json(&PodSandboxConfig_msg, slice_of(spellings[i]), &a, &config, &e), 0);
        CHECK_TEXT(config.log_directory, "/l");
    }
}

TEST(pb_json_says_which_field_is_wrong)
{
    static const struct { const char *text, *want; } rows[] = {
        { "", "JSON" },
        { "[]", "must be an object" },
        { "{\"other\":1}", "pb_try has no field \"other\"" },
        { "{\"sub\":{\"nope\":1}}", "pb_try.sub: pb_try has no field \"nope\"" },
        { "{\"i32\":1,\"i32\":2}", "pb_try.i32: must be given once" },
        { "{\"namespace\":\"\",\"namespace\":\"\"}", "pb_try.namespace: must be given once" },
        { "{\"name_space\":\"\"}", "no field" },
        { "{\"i32\":2147483648}", "pb_try.i32: must be a whole number that fits" },
        { "{\"i32\":-2147483649}", "pb_try.i32" },
        { "{\"i32\":1.5}", "pb_try.i32" },
        { "{\"i32\":true}", "pb_try.i32" },
        { "{\"i32\":\"\"}", "pb_try.i32" },
        { "{\"i32\":\"-\"}", "pb_try.i32" },
        { "{\"u32\":-1}", "pb_try.u32" },
        { "{\"u32\":4294967296}", "pb_try.u32" },
        { "{\"u64\":18446744073709551616}", "pb_try.u64" },
        { "{\"i64\":\"9223372036854775808\"}", "pb_try.i64" },
        { "{\"flag\":1}", "pb_try.flag: must be true or false" },
        { "{\"text\":1}", "pb_try.text: must be a string" },
        { "{\"raw\":\"?\"}", "pb_try.raw: must be a text in base64" },
        { "{\"real\":\"2.5x\"}", "pb_try.real: must be a number" },
        { "{\"real\":\"\"}", "pb_try.real: must be a number" },
        { "{\"mode\":\"LOUD\"}", "pb_try.mode: \"LOUD\" is no Mode" },
        { "{\"sub\":[]}", "pb_try.sub: must be an object" },
        { "{\"subs\":{}}", "pb_try.subs: must be a list" },
        { "{\"subs\":[null]}", "pb_try.subs: must be an object" },
        { "{\"map\":[]}", "pb_try.map: must be an object of strings" },
        { "{\"map\":{\"k\":1}}", "pb_try.map: must be an object of strings" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        pb_try got;
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        CHECK_INT(pb_read_json(&pb_try_msg, slice_of(rows[i].text), &a, &got, &e), -1);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
        if (!strstr(e.text, rows[i].want))
            fprintf(stderr, "%s: \"%s\"\n", rows[i].text, e.text), checks_failed++;
    }
}

TEST(pb_read_file_names_the_line_and_the_nearest_field)
{
    static const struct { const char *text, *want; } rows[] = {
        { "{\n\"i32\": 1,\n\"txet\": \"\"\n}", ":3: pb_try has no field \"txet\": did you mean \"text\"?" },
        { "{\n\"sub\": {\n  \"Flag\": true } }", ":3: pb_try.sub: pb_try has no field \"Flag\": did you mean \"flag\"?" },
        { "{\"zzzz\": 1}", ":1: pb_try has no field \"zzzz\"" },
        { "{\n\n\"flag\": 1}", ":3: pb_try.flag: must be true or false" },
        { "{\"subs\": [\n{},\n{\"i32\": true}]}", ":3: pb_try.subs: pb_try.i32: must be" },
        { "{\n\"i32\": 1\n\"flag\": true}", ":3: pb_try: JSON: byte 11: expected ','" },
        { "", ":1: pb_try: JSON" }, { "\n[]", ":2: must be an object" },
        { "{\"mode\":\"LOUD\"}", "is no Mode: must be " },
    };
    char path[] = "/tmp/krun-pb-XXXXXX";
    OWNED_FD fd = mkstemp(path);
    for (size_t i = 0; i < COUNT(rows); i++) {
        pb_try got;
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, rows[i].text, strlen(rows[i].text), 0) >= 0);
        CHECK_INT(pb_read_file(&pb_try_msg, path, &a, &got, &e), -1);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
        CHECK(slice_starts(slice_of(e.text), path));
        if (!strstr(e.text, rows[i].want))
            fprintf(stderr, "%s: \"%s\"\n", rows[i].text, e.text), checks_failed++;
    }
    unlink(path);
}

TEST(pb_same_finds_every_difference_and_no_order_of_a_map)
{
    static const char *const texts[] = {
        "{}", "{\"flag\":true}", "{\"i32\":1}", "{\"i32\":-1}", "{\"u64\":1}", "{\"text\":\"a\"}", "{\"text\":\"b\"}",
        "{\"raw\":\"YQ==\"}", "{\"real\":1.5}", "{\"sub\":{}}", "{\"sub\":{\"i32\":1}}", "{\"sub\":{\"sub\":{\"i32\":1}}}",
        "{\"subs\":[{}]}", "{\"subs\":[{},{}]}", "{\"subs\":[{\"i32\":1},{}]}", "{\"subs\":[{},{\"i32\":1}]}",
        "{\"map\":{\"a\":\"1\",\"b\":\"2\"}}", "{\"map\":{\"a\":\"1\",\"b\":\"3\"}}", "{\"map\":{\"a\":\"1\",\"c\":\"2\"}}",
        "{\"map\":{\"a\":\"1\"}}", "{\"sub\":{\"map\":{\"a\":\"1\"}}}",
    };
    for (size_t i = 0; i < COUNT(texts); i++)
        for (size_t k = 0; k < COUNT(texts); k++) {
            pb_try x, y;
            OWNED_ARENA a = arena_make(MIB);
            error e = { 0 };
            CHECK_INT(pb_read_json(&pb_try_msg, slice_of(texts[i]), &a, &x, &e), 0);
            CHECK_INT(pb_read_json(&pb_try_msg, slice_of(texts[k]), &a, &y, &e), 0);
            if (pb_same(&pb_try_msg, &x, &y, &a) != (i == k)) fprintf(stderr, "%s %s\n", texts[i], texts[k]), checks_failed++;
        }
    pb_try x, y;
    OWNED_ARENA a = arena_make(MIB);
    error e = { 0 };
    CHECK_INT(pb_read_json(&pb_try_msg, SLICE("{\"map\":{\"a\":\"1\",\"b\":\"2\",\"c\":\"3\"}}"), &a, &x, &e), 0);
    CHECK_INT(pb_read_json(&pb_try_msg, SLICE("{\"map\":{\"c\":\"3\",\"a\":\"1\",\"b\":\"2\"}}"), &a, &y, &e), 0);
    CHECK(pb_same(&pb_try_msg, &x, &y, &a));
}

TEST(pb_json_lax_steps_over_unknown_names)
{
    pb_try got;
    OWNED_ARENA a = arena_make(MIB), small = arena_make(256);
    error e = { 0 };
    slice text = SLICE("{\"later\":{\"a\":[1]},\"sub\":{\"more\":null,\"i32\":4},\"i32\":3}");
    CHECK_INT(pb_read_record(&pb_try_msg, text, &a, &got, &e), 0);
    CHECK(got.i32 == 3 && got.sub && got.sub->i32 == 4);
    CHECK_INT(pb_read_record(&pb_try_msg, text, &small, &got, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
}

/* Changes one to four places of `wire`: a bit, a byte, a cut, a piece said twice. */
static void pb_mutate(buf *wire, uint32_t *seed)
{
    for (unsigned times = 1 + (*seed >> 13) % 4; times > 0 && wire->n; times--) {
        *seed = *seed * 1664525 + 1013904223;
        size_t at = (*seed >> 8) % wire->n, n = MIN((*seed >> 5) % 16, wire->n - at);
        switch (*seed >> 29) {
        case 0: case 1: case 2: wire->p[at] ^= (uint8_t)(1 << (*seed >> 20) % 8); break;
        case 3: case 4: wire->p[at] = (uint8_t)(*seed >> 17); break;
        case 5: wire->n = at; break;
        default:
            if (!buf_reserve(wire, n)) return;
            memmove(wire->p + at + n, wire->p + at, wire->n - at);
            wire->n += n;
        }
    }
}

TEST(pb_decode_of_damaged_bytes_is_refused_or_stable)
{
    pb_try in, inner;
    OWNED_BUF whole = { 0 };
    uint32_t seed = 1;
    size_t good = 0, rounds = 0;
    int64_t end = clock_mono() + NS_PER_SEC / 2;
    pb_try_fill(&in, &inner);
    pb_encode(&pb_try_msg, &in, &whole);
    for (; rounds < 100000 && (rounds % 64 || clock_mono() < end); rounds++) {
        OWNED_BUF wire = { 0 }, once = { 0 }, twice = { 0 };
        OWNED_ARENA a = arena_make(MIB), b = arena_make(MIB);
        pb_try got, again;
        error e;
        buf_slice(&wire, buf_view(&whole));
        pb_mutate(&wire, &seed);
        uint8_t *exact = malloc(wire.n + !wire.n); /* a sanitizer sees its end */
        if (wire.n) memcpy(exact, wire.p, wire.n);
        if (pb_decode(&pb_try_msg, (slice){ exact, wire.n }, &a, &got, &e) == 0) {
            good++;
            pb_encode(&pb_try_msg, &got, &once);
            CHECK_INT(pb_decode(&pb_try_msg, buf_view(&once), &b, &again, &e), 0);
            pb_encode(&pb_try_msg, &again, &twice);
            CHECK(slice_eq(buf_view(&once), buf_view(&twice)));
        } else {
            CHECK(e.code == GRPC_INVALID_ARGUMENT || e.code == GRPC_RESOURCE_EXHAUSTED);
        }
        free(exact);
    }
    CHECK(good > 0 && good < rounds);
}

TEST(pb_json_of_damaged_text_is_refused_or_stable)
{
    pb_try in, inner;
    OWNED_BUF whole = { 0 };
    uint32_t seed = 7;
    int64_t end = clock_mono() + NS_PER_SEC / 2;
    pb_try_fill(&in, &inner);
    pb_write_json(&pb_try_msg, &in, 0, &whole);
    for (size_t rounds = 0; rounds < 50000 && (rounds % 64 || clock_mono() < end); rounds++) {
        OWNED_BUF text = { 0 }, once = { 0 }, twice = { 0 };
        OWNED_ARENA a = arena_make(MIB), b = arena_make(MIB);
        pb_try got, again;
        error e;
        buf_slice(&text, buf_view(&whole));
        pb_mutate(&text, &seed);
        if (pb_read_record(&pb_try_msg, buf_view(&text), &a, &got, &e) < 0) continue;
        pb_write_json(&pb_try_msg, &got, 0, &once);
        CHECK_INT(pb_read_json(&pb_try_msg, buf_view(&once), &b, &again, &e), 0);
        pb_write_json(&pb_try_msg, &again, 0, &twice);
        CHECK(slice_eq(buf_view(&once), buf_view(&twice)));
    }
}
