/* == 5. Decompression == */

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

static bool read_vector(const char *path, arena *a, slice *out)
{
    char full[PATH_MAX];
    error e = { 0 };
    snprintf(full, sizeof full, "%s/%s", vectors_dir, path);
    if (file_read(AT_FDCWD, full, 64 * MIB, a, out, &e) == 0) return true;
    fprintf(stderr, "%s\n", e.text);
    return false;
}

TEST(gzip_cases_come_out_as_listed) /* T35 */
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice list, packed;
    if (!vectors_dir || !read_vector("gzip-cases/EXPECTED.tsv", &a, &list)) SKIP("no gzip-cases");
    while (list.n) {
        slice line = slice_cut(&list, '\n'), file = slice_cut(&line, '\t'), verdict = slice_cut(&line, '\t');
        if (!file.n || file.p[0] == '#') continue;
        CHECK(read_vector(arena_printf(&a, "gzip-cases/%.*s", PR(file)), &a, &packed));
        packed = at_page_end(packed.p, packed.n);
        for (size_t most = 1; most <= 100000; most = most * 3 + 1) {
            unpacked u = unpack_bytes(packed, most, UINT64_MAX);
            bool good = slice_is(verdict, "either") || (u.result == 0) == slice_is(verdict, "ok");
            if (slice_is(verdict, "ok")) good = good && slice_is((slice){ line.p, 64 }, u.sha256);
            if (u.result == -1) good = good && u.e.code == GRPC_INVALID_ARGUMENT;
            if (!good) fprintf(stderr, "%.*s by %zu: %d %s %s\n", PR(file), most, u.result, u.sha256, u.e.text);
            CHECK(good);
        }
    }
}

TEST(gzip_stream_may_be_cut_anywhere_and_says_so)
{
    OWNED_ARENA a = arena_make(64 * MIB);
    slice packed;
    static const char *const names[] = { "gzip-cases/ok.gz", "gzip-cases/ok-fixed.gz", "gzip-cases/ok-stored.gz", "gzip-cases/ok-hcrc.gz" };
    if (!vectors_dir) SKIP("no KRUN_TESTDATA");
    for (size_t i = 0; i < COUNT(names); i++) {
        if (!read_vector(names[i], &a, &packed)) SKIP("no gzip-cases");
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
    if (!vectors_dir || !read_vector("gzip-cases/bomb-10m.gz", &a, &packed)) SKIP("no gzip-cases");
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
    if (!vectors_dir || !read_vector("gzip-cases/ok.gz", &a, &packed)) SKIP("no gzip-cases");
    slice copy = at_page_end(packed.p, packed.n);
    for (size_t bit = 0; bit < packed.n * 8; bit++) {
        ((uint8_t *)copy.p)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        unpacked u = unpack_bytes(copy, 1 + bit % 200, MIB);
        CHECK(u.result < 0 || bit / 8 == 3 || (bit / 8 >= 4 && bit / 8 < 10)); /* FTEXT, time, OS say nothing */
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
