/* == 14. Decompression == */

/* A source that gives its bytes in pieces of 1 to `most`, from a page that ends with them. */
typedef struct { source source; slice left; size_t most; uint32_t random; } drip_source;

static ssize_t drip_read(source *s, uint8_t *p, size_t n, error *e)
{
    drip_source *d = OWNER(s, drip_source, source);
    (void)e;
    d->random = d->random * 1103515245 + 12345;
    n = MIN(MIN(n, d->left.n), 1 + (d->random >> 8) % d->most);
    if (n) memcpy(p, d->left.p, n);
    d->left = (slice){ d->left.p + n, d->left.n - n };
    return (ssize_t)n;
}

typedef struct { int result; uint64_t bytes; char sha256[65]; error e; } unpacked;

/* Decompresses all; reads in pieces as odd as those that it is given. Stops after `max` bytes. */
static unpacked unpack_bytes(slice packed, size_t most, uint64_t max)
{
    unpacked u = { 0 };
    drip_source drip = { { drip_read }, packed, most, 1 };
    decompressor d;
    hash_source h;
    uint8_t hash[32];
    source *s = decompress_open(&d, &drip.source, &u.e);
    if (!s) return u.result = -1, u;
    s = hash_source_open(&h, s);
    size_t room = most < 100 ? 1 + most * 7 : 64 * KIB;
    uint8_t *p = malloc(room);
    ssize_t n = 1;
    while (n > 0 && h.bytes < max) n = s->read(s, p, room, &u.e);
    u.result = n < 0 ? -1 : d.kind == PLAIN ? -2 : 0;
    u.bytes = h.bytes;
    sha256_end(&h.hash, hash);
    hex_encode(hash, 32, u.sha256);
    decompress_close(&d);
    free(p);
    return u;
}

/* A file of a set of test vectors: our own lie in vectors/ beside this program, what others have
 * published in KRUN_TESTDATA. */
static bool read_vector(const char *path, arena *a, slice *out)
{
    char full[PATH_MAX];
    error e = { 0 };
    bool own = strstr(path, "gzip-cases/") == path || strstr(path, "tar-hostile/") == path;
    if (!own && !vectors_dir) return false;
    snprintf(full, sizeof full, "%s/%s", own ? own_vectors_dir : vectors_dir, path);
    if ((*out = file_read(AT_FDCWD, full, 64 * MIB, a, &e)).p) return true;
    fprintf(stderr, "%s\n", e.text);
    return false;
}

TEST(gzip_cases_come_out_as_listed) /* T35 */
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice list, packed;
    CHECK(read_vector("gzip-cases/EXPECTED.tsv", &a, &list));
    while (list.n) {
        slice line = slice_cut(&list, '\n'), file = slice_cut(&line, '\t'),
              verdict = slice_cut(&line, '\t');
        if (!file.n || file.p[0] == '#') continue;
        CHECK(read_vector(arena_printf(&a, "gzip-cases/%.*s", PR(file)), &a, &packed));
        packed = at_page_end(packed.p, packed.n);
        for (size_t most = 1; most <= 100000; most = most * 3 + 1) {
            unpacked u = unpack_bytes(packed, most, UINT64_MAX);
            bool good = slice_is(verdict, "either") || (u.result == 0) == slice_is(verdict, "ok");
            if (slice_is(verdict, "ok")) good = good && slice_is((slice){ line.p, 64 }, u.sha256);
            if (u.result == -1) good = good && u.e.code == GRPC_INVALID_ARGUMENT;
            if (!good)
                fprintf(stderr, "%.*s by %zu: %d %s %s\n", PR(file), most, u.result, u.sha256,
                        u.e.text);
            CHECK(good);
        }
    }
}

TEST(gzip_errors_say_what_is_wrong)
{
    static const char *const rows[][2] = {
        { "dist-too-far.gz", "gzip: a distance that goes back before the start" },
        { "dist-code-30.gz", "gzip: a code that does not exist" },
        { "len-code-286.gz", "gzip: a code that does not exist" },
        { "dyn-clen-over.gz", "gzip: the code of the code lengths is no code" },
        { "dyn-clen-empty.gz", "gzip: the code of the code lengths is no code" },
        { "dyn-hlit-288.gz", "gzip: too many codes" },
        { "bad-crc.gz", "gzip: the checksum is wrong" },
        { "bad-isize.gz", "gzip: the size is wrong" },
        { "trailing-garbage.gz", "gzip: something else follows the stream" },
    };
    OWNED_ARENA a = arena_make(64 * MIB);
    slice packed;
    for (size_t i = 0; i < COUNT(rows); i++) {
        CHECK(read_vector(arena_printf(&a, "gzip-cases/%s", rows[i][0]), &a, &packed));
        for (size_t most = 1; most < 10000; most *= 1000) /* the slow way and the fast one */
            CHECK_TEXT(slice_of(unpack_bytes(packed, most, UINT64_MAX).e.text), rows[i][1]);
    }
}

TEST(gzip_members_do_not_see_each_other)
{
    /* "abc" stored, and "abc" as a copy of three bytes from three bytes back: in the first member
     * that follows "abc" in the second, it would be right. */
#define ABC_END "\xC2\x41\x24\x35\x03\0\0\0"
#define GZ_HEAD "\x1F\x8B\x08\0\0\0\0\0\0\x03"
    unpacked u = unpack_bytes(SLICE(GZ_HEAD "\x01\x03\x00\xFC\xFF" "abc" ABC_END), 1, UINT64_MAX);
    CHECK(u.result == 0 && u.bytes == 3);
    u = unpack_bytes(SLICE(GZ_HEAD "\x01\x03\x00\xFC\xFF"
                                   "abc" ABC_END GZ_HEAD "\x03\x22\x00" ABC_END),
                     100, UINT64_MAX);
    CHECK_TEXT(slice_of(u.e.text), "gzip: a distance that goes back before the start");
    /* With more behind it, the loop that does not look at each byte meets the same. */
    u = unpack_bytes(
        SLICE(GZ_HEAD "\x03\x22\x00" ABC_END "0123456789012345678901234567890123456789"), 100,
        UINT64_MAX);
    CHECK_TEXT(slice_of(u.e.text), "gzip: a distance that goes back before the start");
}

TEST(gzip_codes_that_are_no_codes_are_refused)
{
    static const struct {
        uint8_t lengths[4];
        unsigned n;
        huff_symbol *entry;
        bool good;
    } rows[] = {
        { { 1, 1 }, 2, litlen_symbol, true },     { { 2, 2, 2, 2 }, 4, litlen_symbol, true },
        { { 1, 2, 3, 3 }, 4, dist_symbol, true }, { { 0, 1 }, 2, litlen_symbol, true },
        { { 0, 1 }, 2, dist_symbol, true },       { { 0, 1 }, 2, clen_symbol, false },
        { { 0 }, 1, dist_symbol, true },          { { 0 }, 1, litlen_symbol, false },
        { { 0 }, 1, clen_symbol, false },         { { 2 }, 1, dist_symbol, false },
        { { 1, 2 }, 2, dist_symbol, false },      { { 2, 2, 2 }, 3, litlen_symbol, false },
        { { 1, 1, 1 }, 3, litlen_symbol, false }, { { 1, 1, 2 }, 3, dist_symbol, false },
    };
    static uint32_t table[LITLEN_TABLE];
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_INT(
            huff_build(table, &(huff_code){ rows[i].lengths, rows[i].n, CLEN_BITS, rows[i].entry }),
            rows[i].good);
}

TEST(gzip_stream_may_be_cut_anywhere_and_says_so)
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice packed;
    static const char *const names[] = { "gzip-cases/ok.gz", "gzip-cases/ok-fixed.gz",
                                         "gzip-cases/ok-stored.gz", "gzip-cases/ok-hcrc.gz" };
    for (size_t i = 0; i < COUNT(names); i++) {
        CHECK(read_vector(names[i], &a, &packed));
        for (size_t n = 2; n < packed.n; n++) {
            unpacked u = unpack_bytes(at_page_end(packed.p, n), 1000, UINT64_MAX);
            CHECK_INT(u.result, -1);
            CHECK_TEXT(slice_of(u.e.text), "gzip: the stream is cut off");
        }
    }
}

TEST(gzip_output_stops_where_the_reader_stops) /* T35: a bomb costs what is read of it */
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice packed;
    CHECK(read_vector("gzip-cases/bomb-10m.gz", &a, &packed));
    unpacked u = unpack_bytes(packed, 100000, 100000);
    CHECK(u.result == 0 && u.bytes >= 100000 && u.bytes < 400000);
}

TEST(gzip_a_million_empty_members_take_linear_time) /* T35 */
{
    static const char member[] = "\x1F\x8B\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0";
    OWNED_BUF all = { 0 };
    for (int i = 0; i < 1000000; i++) buf_add(&all, member, sizeof member - 1);
    int64_t start = clock_mono();
    unpacked u = unpack_bytes(buf_view(&all), 1000000, UINT64_MAX);
    CHECK(u.result == 0 && u.bytes == 0);
    CHECK(clock_mono() - start < 20 * NS_PER_SEC);
}

TEST(gzip_survives_every_flipped_bit)
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice packed;
    CHECK(read_vector("gzip-cases/ok.gz", &a, &packed));
    slice copy = at_page_end(packed.p, packed.n);
    for (size_t bit = 0; bit < packed.n * 8; bit++) {
        ((uint8_t *)copy.p)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        unpacked u = unpack_bytes(copy, 1 + bit % 200, MIB);
        CHECK(u.result < 0 || bit / 8 == 3 ||
              (bit / 8 >= 4 && bit / 8 < 10)); /* FTEXT, time, OS say nothing */
        ((uint8_t *)copy.p)[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

TEST(decompress_hands_plain_bytes_on)
{
    static const char *const texts[] = { "", "a", "\x1F", "\x28\xB5\x2F", "a plain text" };
    for (size_t i = 0; i < COUNT(texts); i++) {
        unpacked u = unpack_bytes(slice_of(texts[i]), 2, UINT64_MAX);
        CHECK_INT(u.result, -2);
        CHECK_INT(u.bytes, strlen(texts[i]));
    }
}

/* Calls `check` with each file of a directory of vectors; their number, -1 if it is not there. */
static int each_vector(const char *directory, void (*check)(const char *name, slice bytes))
{
    char path[PATH_MAX];
    int n = 0;
    snprintf(path, sizeof path, "%s/%s", vectors_dir ? vectors_dir : "", directory);
    DIR *d = opendir(path);
    if (!d) return -1;
    for (struct dirent *entry; (entry = readdir(d)); n++) {
        OWNED_ARENA a = arena_make(64 * MIB);
        slice bytes;
        error e;
        if (entry->d_name[0] == '.' ||
            !(bytes = file_read(dirfd(d), entry->d_name, 32 * MIB, &a, &e)).p)
            continue;
        check(entry->d_name, bytes);
    }
    closedir(d);
    return n;
}

TEST(zstd_corpus_comes_out_as_listed) /* T36 */
{
    OWNED_ARENA a = arena_make(256 * MIB);
    slice list, packed;
    if (!vectors_dir || !read_vector("zstd/decodecorpus/EXPECTED.tsv", &a, &list))
        SKIP("no zstd/decodecorpus");
    while (list.n) {
        slice line = slice_cut(&list, '\n'), file = slice_cut(&line, '\t'),
              hash = slice_cut(&line, '\t');
        if (!file.n || file.p[0] == '#') continue;
        CHECK(read_vector(arena_printf(&a, "zstd/decodecorpus/%.*s", PR(file)), &a, &packed));
        packed = at_page_end(packed.p, packed.n);
        for (size_t most = packed.n > 20000 ? 1000 : 1; most <= 100000; most = most * 30 + 1) {
            unpacked u = unpack_bytes(packed, most, UINT64_MAX);
            CHECK_INT(u.result, 0);
            CHECK_TEXT(hash, u.sha256);
            if (u.result) fprintf(stderr, "%.*s: %s\n", PR(file), u.e.text);
        }
    }
}

static void zstd_good(const char *name, slice packed)
{
    if (!slice_ends(slice_of(name), ".zst")) return;
    OWNED_ARENA a = arena_make(64 * MIB);
    slice plain;
    unpacked u = unpack_bytes(packed, 100000, UINT64_MAX);
    CHECK_INT(u.result, 0);
    if (u.result) fprintf(stderr, "%s: %s\n", name, u.e.text);
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/zstd-klauspost/good/%.*s", vectors_dir, (int)strlen(name) - 4,
             name);
    error e;
    if (!(plain = file_read(AT_FDCWD, path, 32 * MIB, &a, &e)).p) return;
    sha256 s;
    uint8_t hash[32];
    char hex[65];
    sha256_init(&s);
    sha256_add(&s, plain.p, plain.n);
    sha256_end(&s, hash);
    hex_encode(hash, 32, hex);
    CHECK_TEXT(slice_of(hex), u.sha256);
}

static void zstd_bad(const char *name, slice packed)
{
    for (size_t most = 7; most < 1000000; most *= 100000) {
        unpacked u = unpack_bytes(at_page_end(packed.p, packed.n), most, 256 * MIB);
        bool either = strstr(name, "76671405"); /* zstd 1.5 takes it */
        CHECK(u.result != 0 || either);
        if (u.result == 0 && !either) fprintf(stderr, "%s: accepted\n", name);
    }
}

TEST(zstd_golden_and_fuzzed_streams_are_judged_as_they_should) /* T36 */
{
    if (each_vector("zstd-klauspost/good", zstd_good) < 0) SKIP("no zstd vectors");
    CHECK(each_vector("zstd/golden-decompression", zstd_good) > 0);
    CHECK(each_vector("zstd-klauspost/bad", zstd_bad) > 0);
    CHECK(each_vector("zstd/golden-decompression-errors", zstd_bad) > 0);
    CHECK(each_vector("zstd/gzip", zstd_bad) > 0);
}

/* T36, CVE-2019-11922: output into exactly the room that it needs, before a page that cannot be
 * written, whole and in two parts. */
static void zstd_exact(const char *name, slice packed)
{
    uint64_t size = unpack_bytes(packed, 100000, 64 * MIB).bytes;
    if (!slice_ends(slice_of(name), ".zst") || size > 4 * MIB) return;
    for (size_t parts = 1; parts <= 2; parts++) {
        drip_source drip = { { drip_read }, packed, 100000, 1 };
        decompressor d;
        error e = { 0 };
        OWNED_BUF plain = { 0 };
        source *s = decompress_open(&d, &drip.source, &e);
        ssize_t n = 1;
        while (s && n > 0 && plain.n < size) {
            size_t want = MIN((size - 1) / parts + 1, size - plain.n);
            uint8_t *zeros = calloc(1, want);
            slice room = at_page_end(zeros, want);
            n = s->read(s, (uint8_t *)room.p, want, &e);
            if (n > 0) buf_add(&plain, room.p, (size_t)n);
            free_newest_page();
            free(zeros);
        }
        CHECK_INT(plain.n, size);
        CHECK_INT(s ? s->read(s, (uint8_t *)at_page_end("x", 1).p, 1, &e) : -1, 0);
        decompress_close(&d);
    }
}

TEST(zstd_output_keeps_to_the_room_it_is_given) /* T36 */
{
    if (each_vector("zstd/decodecorpus", zstd_exact) < 0) SKIP("no zstd/decodecorpus");
    CHECK(each_vector("zstd/golden-decompression", zstd_exact) > 0);
}

TEST(zstd_says_what_it_will_not_do) /* T36 */
{
    static const struct { const char *bytes; size_t n; int code; const char *want;
    } rows[] = {
        { "\x28\xB5\x2F\xFD\x00\xA8", 6, GRPC_RESOURCE_EXHAUSTED,
          "zstd: unpacking needs a window of 2147483648 bytes, more than the 134217728 allowed" },
        { "\x28\xB5\x2F\xFD\x21\x07\x01", 7, GRPC_UNIMPLEMENTED,
          "zstd: the stream needs dictionary 7" },
        { "\x28\xB5\x2F\xFD\x08\x58", 6, GRPC_INVALID_ARGUMENT, "zstd: a reserved bit is set" },
        { "\x28\xB5\x2F\xFD\x20\x01\x01\x00\x00", 9, GRPC_INVALID_ARGUMENT,
          "zstd: the size is wrong" },
        { "\x28\xB5\x2F\xFD\x24\x01\x09\x00\x00"
          "a"
          "1234",
          14, GRPC_INVALID_ARGUMENT, "zstd: the checksum is wrong" },
        { "\x28\xB5\x2F\xFD\x20\x01\x09\x00\x00"
          "aXXXX",
          14, GRPC_INVALID_ARGUMENT, "zstd: something else follows the stream" },
        { "\x28\xB5\x2F\xFD\x20\x01\x07\x00\x00", 9, GRPC_INVALID_ARGUMENT,
          "zstd: a block is too long or of unknown type" },
        { "\x50\x2A\x4D\x18\xFF\xFF\xFF\xFF"
          "abc",
          11, GRPC_INVALID_ARGUMENT, "zstd: the stream is cut off" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        unpacked u = unpack_bytes(at_page_end(rows[i].bytes, rows[i].n), 3, UINT64_MAX);
        CHECK_INT(u.result, -1);
        CHECK_INT(u.e.code, rows[i].code);
        CHECK_TEXT(slice_of(u.e.text), rows[i].want);
    }
}

/* Found by fuzzing: before the first frame there is no window to read from. Fails under clang's
 * -fsanitize=undefined. */
TEST(zstd_of_skippable_frames_alone_is_empty)
{
    unpacked u = unpack_bytes(at_page_end("\x5D\x2A\x4D\x18\x04\0\0\0skip", 12), 100, MIB);
    CHECK(u.result == 0 && u.bytes == 0);
}

TEST(zstd_a_million_empty_frames_take_linear_time) /* T36 */
{
    static const char frame[] = "\x28\xB5\x2F\xFD\x20\x00\x01\x00\x00",
                      skippable[] = "\x53\x2A\x4D\x18\x02\x00\x00\x00zz";
    OWNED_BUF all = { 0 };
    for (int i = 0; i < 500000; i++) buf_add(&all, frame, 9), buf_add(&all, skippable, 10);
    int64_t start = clock_mono();
    unpacked u = unpack_bytes(buf_view(&all), 1000000, UINT64_MAX);
    CHECK(u.result == 0 && u.bytes == 0);
    CHECK(clock_mono() - start < 20 * NS_PER_SEC);
}

TEST(zstd_survives_cuts_and_flipped_bits)
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice packed;
    static const char *const names[] = { "zstd/decodecorpus/a-z000001.zst",
                                         "zstd/decodecorpus/a-z000002.zst",
                                         "zstd-klauspost/good/block_comp_manyseqs.zst" };
    for (size_t i = 0; i < COUNT(names); i++) {
        if (!vectors_dir || !read_vector(names[i], &a, &packed)) SKIP("no zstd vectors");
        slice copy = at_page_end(packed.p, packed.n);
        for (size_t n = 4; n < packed.n; n += 1 + packed.n / 500)
            CHECK_INT(unpack_bytes(at_page_end(packed.p, n), 1000, MIB).result, -1);
        for (size_t bit = 0; bit < packed.n * 8; bit += 1 + packed.n / 400) {
            ((uint8_t *)copy.p)[bit / 8] ^= (uint8_t)(1 << bit % 8);
            unpack_bytes(copy, 1 + bit % 2000, MIB);
            ((uint8_t *)copy.p)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    }
}

/* A frame of one block, made by hand: "a", then one sequence; each code has one symbol. */
TEST(zstd_sequences_must_fit_and_use_all_their_bits)
{
#define ZSTD_HEAD "\x28\xB5\x2F\xFD\x20\x04"
    static const struct { slice frame; const char *want;
    } rows[] = {
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x01\x02\x00"
                          "\x04"),
          "" }, /* 3 bytes from 1 back */
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x01\x02\x00"
                          "\x05"),
          "zstd: a block makes no sense" }, /* 2 back */
        { SLICE(ZSTD_HEAD "\x4D\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x01\x02\x00"
                          "\xFF\x04"),
          "zstd: a block makes no sense" }, /* 8 bits left */
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x01\x02\x00"
                          "\x02"),
          "zstd: a block makes no sense" }, /* 1 too few */
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x02\x02\x00"
                          "\x04"),
          "zstd: a block makes no sense" }, /* 2 literals */
        { SLICE("\x28\xB5\x2F\xFD\x20\x08"
                "\x45\0\0"
                "\x08"
                "a"
                "\x01\x54\x02\x02\x00"
                "\x04"),
          "zstd: a block makes no sense" },
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x01\x02\x01"
                          "\x04"),
          "zstd: a block makes no sense" }, /* 4 bytes */
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x54\x01\x20\x00"
                          "\x04"),
          "zstd: a block makes no sense" }, /* no such symbol */
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\xFC\x01\x02\x00"
                          "\x04"),
          "zstd: a block makes no sense" }, /* nothing to repeat */
        { SLICE(ZSTD_HEAD "\x45\0\0"
                          "\x08"
                          "a"
                          "\x01\x55\x01\x02\x00"
                          "\x04"),
          "zstd: a block makes no sense" }, /* reserved bits */
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        unpacked u = unpack_bytes(at_page_end(rows[i].frame.p, rows[i].frame.n), 5, UINT64_MAX);
        CHECK_TEXT(slice_of(u.e.text), rows[i].want);
        if (!*rows[i].want)
            CHECK_TEXT(slice_of(u.sha256),
                       "61be55a8e2f6b4e172338bddf184d6dbee29c98853e0a0485ecee7f27b9af0b4");
    }
}

/* Appends a block of one sequence: no literals, `length` (131..258) bytes from `offset` back. */
static void zstd_put_match(buf *out, uint32_t offset, uint32_t length)
{
    uint32_t value = offset + 3, code = 31 - (uint32_t)__builtin_clz(value);
    uint64_t bits =
        (UINT64_C(1) << (code + 7)) | (uint64_t)(value - (1U << code)) << 7 | (length - 131);
    size_t n = (size_t)(63 - __builtin_clzll(bits)) / 8 + 1;
    uint32_t header = (uint32_t)(6 + n) << 3 | 2 << 1;
    for (int i = 0; i < 3; i++) buf_byte(out, (uint8_t)(header >> (8 * i)));
    buf_add(out, "\x00\x01\x54\x00", 4);
    buf_byte(out, (uint8_t)code);
    buf_byte(out, 43);
    for (size_t i = 0; i < n; i++) buf_byte(out, (uint8_t)(bits >> (8 * i)));
}

/* Adds n bytes of noise as blocks that are not packed, and matches from `reach` bytes back. */
static void zstd_put_noise(buf *frame, buf *plain, size_t n, uint32_t reach)
{
    uint32_t random = 12345;
    for (size_t end = plain->n + n; plain->n < end;) {
        uint8_t bytes[64 * KIB];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)((random = random * 1103515245 + 12345) >> 16);
        uint32_t header = sizeof bytes << 3;
        for (int i = 0; i < 3; i++) buf_byte(frame, (uint8_t)(header >> (8 * i)));
        buf_add(frame, bytes, sizeof bytes), buf_add(plain, bytes, sizeof bytes);
        if (plain->n < reach) continue;
        zstd_put_match(frame, reach, 200);
        for (uint32_t i = 0; i < 200; i++) buf_byte(plain, plain->p[plain->n - reach]);
    }
}

TEST(zstd_window_grows_with_the_data_and_not_with_what_a_header_says) /* T36 */
{
    static const struct { uint8_t window; size_t mib; uint32_t reach; int code; } rows[] = {
        { 0x88, 1, 100000, 0 },            /* 128 MiB, for 1 */
        { 0x88, 40, 33 * MIB + 7, 0 },     /* 128 MiB, and matches reach far back */
        { 0x68, 40, 5 * MIB, 0 },          /* 8 MiB: the ring goes round */
        { 0x70, 40, 16 * MIB, 0 },         /* 16 MiB: all of it */
        { 0x89, 1, 100000, GRPC_RESOURCE_EXHAUSTED }, /* 144 MiB */
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF frame = { 0 }, plain = { 0 };
        buf_add(&frame, "\x28\xB5\x2F\xFD\x00", 5);
        buf_byte(&frame, rows[i].window);
        zstd_put_noise(&frame, &plain, rows[i].mib * MIB, rows[i].reach);
        buf_add(&frame, "\x01\0\0", 3); /* the last block, empty */
        mem_source m;
        decompressor d;
        error e = { 0 };
        uint8_t piece[64 * KIB];
        size_t done = 0, most = 0;
        bool same = true;
        source *s = decompress_open(&d, mem_source_open(&m, buf_view(&frame)), &e);
        ssize_t n = s ? 1 : -1;
        while (n > 0 && (n = s->read(s, piece, sizeof piece, &e)) > 0) {
            same = same && done + (size_t)n <= plain.n && memcmp(plain.p + done, piece, (size_t)n) == 0;
            done += (size_t)n;
            if (d.zstd->ring_size > 3 * done + 2 * MIB) most = d.zstd->ring_size;
        }
        CHECK_INT(e.code, rows[i].code);
        CHECK(rows[i].code || (same && done == plain.n));
        CHECK_INT(most, 0); /* it was never larger than that */
        if (s) decompress_close(&d);
    }
}

TEST(zstd_matches_reach_round_the_end_of_the_ring)
{
    OWNED_BUF frame = { 0 }, plain = { 0 };
    uint32_t random = 12345;
    buf_add(&frame, "\x28\xB5\x2F\xFD\x00\x00", 6); /* a window of 1 KiB */
    while (plain.n < 4 * MIB) {
        uint8_t bytes[1024];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)((random = random * 1103515245 + 12345) >> 16);
        uint32_t n = 1 + random % 1024, header = n << 3;
        for (int i = 0; i < 3; i++) buf_byte(&frame, (uint8_t)(header >> (8 * i)));
        buf_add(&frame, bytes, n), buf_add(&plain, bytes, n);
        if (plain.n < 1024) continue;
        uint32_t offset = 1 + (random >> 8) % 1024, length = 131 + (random >> 4) % 128;
        zstd_put_match(&frame, offset, length);
        for (uint32_t i = 0; i < length; i++) buf_byte(&plain, plain.p[plain.n - offset]);
    }
    buf_add(&frame, "\x01\0\0", 3); /* the last block, empty */
    sha256 s;
    uint8_t hash[32];
    char hex[65];
    sha256_init(&s);
    sha256_add(&s, plain.p, plain.n);
    sha256_end(&s, hash);
    hex_encode(hash, 32, hex);
    unpacked u = unpack_bytes(buf_view(&frame), 100000, UINT64_MAX);
    CHECK_TEXT(slice_of(u.e.text), "");
    CHECK_TEXT(slice_of(u.sha256), hex);
}
