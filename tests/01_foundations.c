/* Tests of chapter 1: slices, numbers, errors, arenas, buffers, text from outside, clocks. */

TEST(slice_take_leaves_a_short_slice_alone)
{
    slice s = at_page_end("ab", 2), got; /* one byte too far is a crash, even without ASan */
    CHECK(!slice_take(&s, 3, &got));
    CHECK_INT(s.n, 2);
    CHECK(slice_take(&s, 2, &got));
    CHECK_TEXT(got, "ab");
    CHECK_INT(s.n, 0);
    CHECK(!slice_take(&s, SIZE_MAX, &got)); /* a length that would wrap a pointer */
}

TEST(slice_cut_gives_the_parts_around_a_separator)
{
    slice s = SLICE("a,,b");
    CHECK_TEXT(slice_cut(&s, ','), "a");
    CHECK_TEXT(slice_cut(&s, ','), "");
    CHECK_TEXT(slice_cut(&s, ','), "b");
    CHECK_INT(s.n, 0);
}

TEST(slice_without_case_compares_every_byte)
{
    static const struct { slice a, b; bool same; } rows[] = {
        { SLICE("Registry-1.Docker.IO"), SLICE("registry-1.docker.io"), true },
        { SLICE(""), SLICE(""), true }, { SLICE("a"), SLICE("ab"), false },
        { SLICE("a\0b"), SLICE("A\0c"), false }, /* strncasecmp ends at the NUL */
        { SLICE("@["), SLICE("`{"), false },      /* the neighbours of the letters */
        { SLICE("\xC4"), SLICE("\xE4"), false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        CHECK_INT(slice_eq_nocase(rows[i].a, rows[i].b), rows[i].same);
        CHECK_INT(slice_eq_nocase(rows[i].b, rows[i].a), rows[i].same);
    }
}

TEST(numbers_in_bytes_have_the_order_that_their_name_says)
{
    static const uint8_t bytes[] = { 0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF };
    uint8_t out[8];
    CHECK(load_be16(bytes) == 0x0123 && load_be32(bytes) == 0x01234567);
    CHECK(load_le32(bytes + 4) == 0xEFCDAB89 && load_le64(bytes) == UINT64_C(0xEFCDAB8967452301));
    store_be16(out, load_be16(bytes)), store_be16(out + 2, load_be16(bytes + 2));
    store_le32(out + 4, load_le32(bytes + 4));
    CHECK(!memcmp(out, bytes, 8));
    store_be64(out, UINT64_C(0x0123456789ABCDEF));
    CHECK(!memcmp(out, bytes, 8));
}

TEST(slice_order_is_that_of_bytes_and_a_prefix_is_first)
{
    CHECK(slice_cmp(SLICE("a"), SLICE("ab")) < 0);
    CHECK(slice_cmp(SLICE("\xff"), SLICE("a")) > 0);
    CHECK(slice_cmp(SLICE(""), SLICE("")) == 0);
    CHECK(slice_eq((slice){ NULL, 0 }, SLICE("")));
    CHECK(slice_starts(SLICE("abc"), "ab") && !slice_starts(SLICE("a"), "ab"));
    CHECK(slice_ends(SLICE("x.toml"), ".toml") && !slice_ends(SLICE("toml"), ".toml"));
    CHECK_TEXT(slice_trim(SLICE(" \t a b\r\n")), "a b");
    CHECK_INT(slice_trim(SLICE(" \0a\0 ")).n, 3); /* a NUL is in no set */
}

TEST(parse_u64_takes_only_whole_numbers_in_range)
{
    static const struct { const char *text; unsigned base; uint64_t max, value; bool ok; } rows[] = {
        { "0", 10, 10, 0, true }, { "10", 10, 10, 10, true }, { "11", 10, 10, 0, false },
        { "18446744073709551615", 10, UINT64_MAX, UINT64_MAX, true },
        { "18446744073709551616", 10, UINT64_MAX, 0, false },
        { "99999999999999999999999", 10, UINT64_MAX, 0, false },
        { "ff", 16, 255, 255, true }, { "FF", 16, 255, 255, true }, { "100", 16, 255, 0, false }, { "fg", 16, 1000, 0, false },
        { "", 10, 10, 0, false }, { "-1", 10, 10, 0, false }, { "+1", 10, 10, 0, false }, { " 1", 10, 10, 0, false },
        { "1 ", 10, 10, 0, false }, { "8", 8, 100, 0, false }, { "777", 8, 511, 511, true }, { "5", 10, 3, 0, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t value = 0;
        slice text = at_page_end(rows[i].text, strlen(rows[i].text));
        CHECK_INT(parse_u64(text, rows[i].base, rows[i].max, &value), rows[i].ok);
        if (rows[i].ok) CHECK(value == rows[i].value);
    }
}

TEST(error_texts_name_the_step_and_the_errno_and_are_cut_not_overrun)
{
    error e;
    errno = ENOENT;
    CHECK_INT(fail_sys(&e, GRPC_NOT_FOUND, "open %s", "/x"), -1);
    CHECK_INT(e.code, GRPC_NOT_FOUND);
    CHECK_INT(e.sys, ENOENT);
    CHECK_TEXT(slice_of(e.text), "open /x: No such file or directory");
    fail_in(&e, "pod %d", 7);
    CHECK_TEXT(slice_of(e.text), "pod 7: open /x: No such file or directory");
    CHECK_INT(e.sys, ENOENT);
    char longer[2000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    fail(&e, GRPC_INTERNAL, "%s", longer);
    CHECK_INT(strlen(e.text), sizeof e.text - 1);
    fail_in(&e, "%s", longer);
    CHECK_INT(strlen(e.text), sizeof e.text - 1);
}

TEST(arena_refuses_past_its_budget_and_says_so_once)
{
    OWNED_ARENA a = arena_make(1000);
    CHECK(arena_alloc(&a, 500));
    CHECK(!a.oom);
    CHECK(!arena_alloc(&a, 600));
    CHECK(a.oom);
    CHECK(!arena_alloc(&a, SIZE_MAX - 3)); /* rounding up must not wrap */
    OWNED_ARENA b = arena_make(4);
    CHECK_TEXT(slice_of(arena_str(&b, SLICE("far too long for it"))), "");
    CHECK(b.oom);
}

TEST(arena_memory_is_zeroed_aligned_and_separate)
{
    OWNED_ARENA a = arena_make(MIB);
    for (size_t n = 1; n < 3000; n += 97) {
        uint8_t *p = arena_alloc(&a, n);
        CHECK((uintptr_t)p % _Alignof(max_align_t) == 0);
        for (size_t i = 0; i < n; i++) CHECK(!p[i]);
        memset(p, 0xff, n);
    }
    CHECK_TEXT(slice_of(arena_printf(&a, "%d-%s", 5, "x")), "5-x");
    CHECK_INT(arena_copy(&a, SLICE("a\0b")).n, 3); /* a NUL is a byte as others are */
}

TEST(buf_grows_drops_and_prints)
{
    OWNED_BUF b = { 0 };
    for (int i = 0; i < 1000; i++) buf_printf(&b, "%d,", i);
    CHECK(!b.oom);
    CHECK(slice_starts(buf_view(&b), "0,1,2,"));
    buf_drop(&b, 2);
    CHECK(slice_starts(buf_view(&b), "1,2,"));
    CHECK(!buf_reserve(&b, SIZE_MAX / 2));
    CHECK(b.oom);
    size_t n = b.n;
    buf_str(&b, "more");
    CHECK_INT(b.n, n); /* after a refusal nothing is added: half a message is worse than none */
}

TEST(utf8_takes_what_rfc_3629_allows)
{
    static const char *const good[] = { "", "abc", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xef\xbf\xbf" };
    static const char *const bad[] = { "\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
                                       "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xc3", "\xe2\x82", "\xf0\x9f\x98", "a\xff" };
    for (size_t i = 0; i < COUNT(good); i++) CHECK(utf8_valid(at_page_end(good[i], strlen(good[i]))));
    for (size_t i = 0; i < COUNT(bad); i++) CHECK(!utf8_valid(at_page_end(bad[i], strlen(bad[i]))));
}

/* The check takes eight bytes in one step, so a character may lie in any place of such a step. */
TEST(utf8_is_looked_at_wherever_it_lies_in_a_text)
{
    static const char *const good[] = { "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80" };
    static const char *const bad[] = { "\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xc3",
                                       "\xe2\x82", "\xf0\x9f\x98", "\xff", "\xc3\xc3" };
    for (size_t before = 0; before < 20; before++)
        for (size_t after = 0; after < 20; after++) {
            char text[64];
            for (size_t i = 0; i < COUNT(good); i++) {
                int n = snprintf(text, sizeof text, "%.*s%s%.*s", (int)before, "abcdefghijklmnopqrstu",
                                 good[i], (int)after, "abcdefghijklmnopqrstu");
                CHECK(utf8_valid(at_page_end(text, (size_t)n)));
            }
            for (size_t i = 0; i < COUNT(bad); i++) {
                int n = snprintf(text, sizeof text, "%.*s%s%.*s", (int)before, "abcdefghijklmnopqrstu",
                                 bad[i], (int)after, "abcdefghijklmnopqrstu");
                CHECK(!utf8_valid(at_page_end(text, (size_t)n)));
            }
        }
}

TEST(text_escape_leaves_nothing_a_terminal_would_obey)
{
    OWNED_BUF b = { 0 };
    text_escape(&b, SLICE("a\n\x1b[31m\xff\xc2\x9b\xc3\xa9\x7f"), 100);
    CHECK_TEXT(buf_view(&b), "a\\x0a\\x1b[31m\\xff\\xc2\\x9b\xc3\xa9\\x7f");
    b.n = 0;
    text_escape(&b, SLICE("abcdef"), 3);
    CHECK_TEXT(buf_view(&b), "abc...");
    b.n = 0;
    text_escape(&b, SLICE("abc"), 3);
    CHECK_TEXT(buf_view(&b), "abc");
}

TEST(clock_text_is_rfc_3339_with_nine_digits)
{
    char text[TIME_TEXT];
    clock_text(INT64_C(1732241452) * NS_PER_SEC + 123, text);
    CHECK_TEXT(slice_of(text), "2024-11-22T02:10:52.000000123Z");
    CHECK_INT(clock_poll_ms(0), -1);
    CHECK_INT(clock_poll_ms(1), 0); /* long past */
}

TEST(an_error_that_is_too_long_ends_with_a_whole_character)
{
    static const char *const characters[] = { "x", "\xc3\xbc", "\xe2\x82\xac", "\xf0\x9f\x98\x80" };
    for (size_t i = 0; i < COUNT(characters); i++)
        for (int shift = 0; shift < 4; shift++) {
            char text[1024];
            error e;
            size_t n = (size_t)shift;
            memset(text, '.', n);
            while (n < sizeof text - 5) n += (size_t)snprintf(text + n, sizeof text - n, "%s", characters[i]);
            fail(&e, GRPC_INTERNAL, "%s", text);
            CHECK(utf8_valid(slice_of(e.text)) && strlen(e.text) > sizeof e.text - 5);
            fail_in(&e, "%.*s", shift + 1, "step");
            CHECK(utf8_valid(slice_of(e.text)));
        }
}
