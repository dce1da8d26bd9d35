/* == 5. Hashes and encodings == */

static const struct { const char *text; int times; const char *sha256;
} hash_rows[] = {
    { "", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
    { "abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
    { "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmno"
      "pqrsmnopqrstnopqrstu",
      1, "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1" },
    { "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 20000,
      "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
};

TEST(sha256_gives_the_published_hashes) /* FIPS 180-4's examples */
{
    for (size_t i = 0; i < COUNT(hash_rows); i++) {
        sha256 s;
        uint8_t hash[32];
        char hex[65];
        sha256_init(&s);
        for (int k = 0; k < hash_rows[i].times; k++) {
            sha256_add(&s, hash_rows[i].text, strlen(hash_rows[i].text));
        }
        sha256_end(&s, hash);
        hex_encode(hash, 32, hex);
        CHECK_TEXT(slice_of(hex), hash_rows[i].sha256);
    }
}

TEST(sha256_does_not_depend_on_how_the_bytes_come)
{
    uint8_t bytes[400], whole[32], parts[32];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7);
    for (size_t n = 0; n < sizeof bytes; n++) {
        size_t cut = n * 5 % (n + 1);
        slice text = at_page_end(bytes, n);
        sha256 s, s2;
        sha256_init(&s), sha256_init(&s2);
        sha256_add(&s, text.p, n), sha256_add(&s2, text.p, cut),
            sha256_add(&s2, text.p + cut, n - cut);
        sha256_end(&s, whole), sha256_end(&s2, parts);
        CHECK(!memcmp(whole, parts, 32));
    }
}

TEST(sha256_by_the_processor_equals_sha256_by_hand)
{
    if (!sha256_cpu_helps()) SKIP("this processor has no instructions for SHA-256");
    uint8_t bytes[64 * 8];
    CHECK(random_bytes(bytes, sizeof bytes));
    for (size_t blocks = 0; blocks <= 8; blocks++) {
        uint32_t a[8], b[8];
        memcpy(a, sha256_h, sizeof a), memcpy(b, sha256_h, sizeof b);
        slice in = at_page_end(bytes, blocks * 64);
        sha256_blocks_cpu(a, in.p, blocks);
        sha256_blocks_portable(b, in.p, blocks);
        CHECK(!memcmp(a, b, sizeof a));
    }
}

TEST(crc32_is_the_same_by_instructions_and_by_table)
{
    uint8_t bytes[700];
    uint32_t x = 1;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
    if (!crc32_cpu_helps()) SKIP("this processor has no instructions for it");
    crc32_add(0, "", 0); /* fills the table */
    for (size_t n = 0; n < 300; n++)
        for (size_t from = 0; from < 3; from++) {
            slice s = at_page_end(bytes + from, n);
            CHECK_INT(crc32_bytes_cpu(x + (uint32_t)n, s.p, n), crc32_bytes_portable(x + (uint32_t)n, s.p, n));
        }
    CHECK_INT(crc32_bytes_cpu(~0U, bytes, sizeof bytes), crc32_bytes_portable(~0U, bytes, sizeof bytes));
}

TEST(crc32_gives_the_published_check_value)
{
    CHECK_INT(crc32_add(0, "123456789", 9), 0xCBF43926);
    CHECK_INT(crc32_add(0, "", 0), 0);
    uint8_t bytes[100];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 31);
    uint32_t whole = crc32_add(0, bytes, sizeof bytes);
    for (size_t cut = 0; cut <= sizeof bytes; cut++)
        CHECK_INT(crc32_add(crc32_add(0, bytes, cut), bytes + cut, sizeof bytes - cut), whole);
}

TEST(base64_reads_back_what_it_wrote_and_nothing_else)
{
    static const char *const good[][2] = { /* RFC 4648, section 10 */
        { "", "" }, { "f", "Zg==" }, { "fo", "Zm8=" }, { "foo", "Zm9v" }, { "foob", "Zm9vYg==" },
        { "fooba", "Zm9vYmE=" }, { "foobar", "Zm9vYmFy" }, { "\xFB\xEF\xFF", "++//" },
    };
    static const char *const bad[] = { "Z",      "Zg=",      "Zg===", "Zh==", "Zm9=",
                                       "Zm9v\n", "Zg==Zg==", "=",     "Zm!v", "Z===" };
    for (size_t i = 0; i < COUNT(good); i++) {
        OWNED_BUF out = { 0 }, back = { 0 };
        base64_encode(slice_of(good[i][0]), &out);
        CHECK_TEXT(buf_view(&out), good[i][1]);
        CHECK(base64_decode(buf_view(&out), &back));
        CHECK_TEXT(buf_view(&back), good[i][0]);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        OWNED_BUF out = { 0 };
        CHECK(!base64_decode(at_page_end(bad[i], strlen(bad[i])), &out));
    }
    OWNED_BUF unpadded = { 0 };
    CHECK(base64_decode(SLICE("-_-_Zg"), &unpadded) && unpadded.n == 4);
}

TEST(digest_valid_takes_only_lower_case_sha256)
{
    char text[DIGEST_TEXT];
    uint8_t hash[32];
    for (int i = 0; i < 32; i++) hash[i] = (uint8_t)(i * 9);
    digest_text(hash, text);
    CHECK(digest_valid(slice_of(text)));
    CHECK(!digest_valid((slice){ (uint8_t *)text, 70 }));
    CHECK(!digest_valid(SLICE("sha256:../../x")));
    CHECK(!digest_valid(SLICE("")));
    CHECK(!digest_valid(
        SLICE("sha512:0000000000000000000000000000000000000000000000000000000000000000")));
    text[70] = 'F';
    CHECK(!digest_valid(slice_of(text))); /* upper case */
    text[70] = 'g';
    CHECK(!digest_valid(slice_of(text)));
    CHECK(hex_decode(SLICE("00fFa5"), hash, 3) && hash[1] == 255 && hash[2] == 0xA5);
    CHECK(!hex_decode(SLICE("00f"), hash, 1) && !hex_decode(SLICE("0x"), hash, 1));
}
