/* == 4. Text == */

/* Parses a copy that ends at a page that cannot be read. */
static json *text_json(const void *text, size_t n, arena *a, error *e)
{
    return json_parse(at_page_end(text, n), a, e);
}

TEST(json_suite_is_judged_as_it_says) /* T27 */
{
    char path[PATH_MAX];
    int files = 0;
    if (!vectors_dir) SKIP("no KRUN_TESTDATA");
    snprintf(path, sizeof path, "%s/jsontestsuite/test_parsing", vectors_dir);
    DIR *d = opendir(path);
    if (!d) SKIP("no %s", path);
    for (struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.') continue;
        OWNED_ARENA a = arena_make(256 * MIB), texts = arena_make(16 * MIB);
        error e = { 0 };
        slice text;
        CHECK((text = file_read(dirfd(d), entry->d_name, 8 * MIB, &texts, &e)).p);
        bool taken = text_json(text.p, text.n, &a, &e);
        if (entry->d_name[0] != 'i' && taken != (entry->d_name[0] == 'y')) {
            fprintf(stderr, "%s: %s\n", entry->d_name, taken ? "accepted" : e.text);
            checks_failed++;
        }
        CHECK(taken || e.code == GRPC_INVALID_ARGUMENT);
        files++;
    }
    closedir(d);
    CHECK(files > 300);
}

TEST(json_tree_holds_what_the_text_says)
{
    OWNED_ARENA a = arena_make(MIB);
    error e = { 0 };
    static const char text[] =
        " {\"a\":[1,-2,\"x\\ny\\u20ac\\ud83d\\ude00\"], "
        "\"t\":true,\"n\":null,\"a2\":{},\"t\":false,\"big\":9223372036854775807}";
    json *v = text_json(text, sizeof text - 1, &a, &e);
    CHECK(v && v->kind == JSON_OBJECT && v->n == 6);
    if (!v) return;
    const json *list = json_get(v, "a");
    int64_t n = 0;
    CHECK_INT(list->n, 3);
    CHECK(json_int(&list->items[1], &n) && n == -2);
    CHECK_TEXT(json_text(&list->items[2]), "x\ny\xE2\x82\xAC\xF0\x9F\x98\x80");
    CHECK(!json_true(json_get(v, "t"))); /* the last of equal keys */
    CHECK(json_int(json_get(v, "big"), &n) && n == INT64_MAX);
    CHECK(!json_get(list, "a") && !json_get(NULL, "a") && !json_get(v, "none"));
    CHECK_INT(json_text(json_get(v, "n")).n, 0);
}

TEST(json_integers_outside_int64_are_no_integers)
{
    static const struct { const char *text; bool good; int64_t value; } rows[] = {
        { "0", true, 0 }, { "-0", true, 0 }, { "-9223372036854775808", true, INT64_MIN },
        { "9223372036854775808", false, 0 }, { "-9223372036854775809", false, 0 },
        { "1.0", false, 0 }, { "1e3", false, 0 }, { "\"1\"", false, 0 }, { "true", false, 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        int64_t got = 0;
        json *v = json_parse(slice_of(rows[i].text), &a, &e);
        CHECK(v && json_int(v, &got) == rows[i].good);
        CHECK_INT(got, rows[i].value);
    }
}

TEST(json_bad_text_is_refused_with_its_place)
{
    static const struct { const char *text, *want; } rows[] = {
        { "", "JSON: byte 0: not a value" },
        { "{\"a\":1,}", "JSON: byte 7: expected a key in quotes" },
        { "[1 2]", "JSON: byte 3: expected ',' or the end of the list" },
        { "\"\\ud800\"", "JSON: byte 7: half a surrogate pair" },
        { "\"\\udc00\"", "JSON: byte 7: half a surrogate pair" },
        { "\"\\ud800\\u0041\"", "JSON: byte 13: half a surrogate pair" },
        { "\"\\u12", "JSON: byte 1: the string does not end" },
        { "\"a\xFF\"", "JSON: byte 2: not UTF-8" },
        { "\"a\nb\"", "JSON: byte 2: a control character in a string" },
        { "\"\\", "JSON: byte 1: the string does not end" },
        { "01", "JSON: byte 2: not a value" },
        { "1 2", "JSON: byte 2: something follows the value" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        CHECK(!text_json(rows[i].text, strlen(rows[i].text), &a, &e));
        CHECK_TEXT(slice_of(e.text), rows[i].want);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    }
}

TEST(json_depth_and_memory_are_bounded) /* T27 */
{
    char text[2 * TEXT_DEPTH + 3];
    for (int depth = TEXT_DEPTH; depth <= TEXT_DEPTH + 1; depth++) {
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        CHECK((json_parse((slice){ (uint8_t *)text, 2 * (size_t)depth }, &a, &e) != NULL) ==
              (depth == TEXT_DEPTH));
    }
    OWNED_BUF many = { 0 };
    buf_byte(&many, '[');
    for (int i = 0; i < 100000; i++) buf_str(&many, "0,");
    buf_str(&many, "0]");
    OWNED_ARENA small = arena_make(MIB), large = arena_make(64 * MIB);
    error e = { 0 };
    CHECK(!json_parse(buf_view(&many), &small, &e));
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK(json_parse(buf_view(&many), &large, &e));
}

/* n bytes of `one`, of which only a megabyte is there: the rest are further views of it. */
static slice text_of_one_byte(char one, size_t n)
{
    OWNED_FD fd = memfd_create("text", MFD_CLOEXEC);
    uint8_t *p = mmap(NULL, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || ftruncate(fd, MIB) < 0) abort();
    for (size_t at = 0; at < n; at += MIB)
        if (mmap(p + at, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) abort();
    memset(p, one, MIB);
    return (slice){ p, n };
}

TEST(json_of_endless_depth_and_endless_numbers_costs_no_memory) /* T27 */
{
    const struct { const char *piece, *want; } deep[] = {
        { "[", "nested too deep" }, { "{\"a\":", "nested too deep" }, { "[{\"\":", "nested too deep" },
    };
    for (size_t i = 0; i < COUNT(deep); i++) {
        OWNED_ARENA a = arena_make(64 * KIB);
        OWNED_BUF text = { 0 };
        error e = { 0 };
        for (int n = 0; n < 100000; n++) buf_str(&text, deep[i].piece);
        CHECK(!text_json(text.p, text.n, &a, &e));
        CHECK(strstr(e.text, deep[i].want));
        if (!strstr(e.text, deep[i].want)) fprintf(stderr, "row %zu: %s\n", i, e.text);
    }
    OWNED_ARENA a = arena_make(64 * KIB);
    error e = { 0 };
    slice digits = text_of_one_byte('7', 1024U * MIB);
    CHECK(!json_parse(digits, &a, &e)); /* a number is kept as text, and has no room */
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    munmap((void *)(uintptr_t)digits.p, digits.n);
}

TEST(json_written_strings_read_back)
{
    static const char bytes[] = "a\"\\\b\f\n\r\t\x01\x7f\0/\xE2\x82\xAC";
    OWNED_ARENA a = arena_make(MIB);
    OWNED_BUF out = { 0 };
    error e = { 0 };
    json_string(&out, SLICE(bytes));
    json *v = json_parse(buf_view(&out), &a, &e);
    CHECK(v && slice_eq(json_text(v), SLICE(bytes)));
    out.n = 0;
    json_string(&out, SLICE("a\xFF"));
    CHECK_TEXT(buf_view(&out), "\"a\xEF\xBF\xBD\"");
}

/* A tree as compact JSON, to compare with. */
static void text_show(buf *out, const json *v)
{
    bool object = v->kind == JSON_OBJECT;
    if (v->kind == JSON_STRING) json_string(out, v->text);
    else if (v->kind == JSON_BOOL) buf_str(out, v->boolean ? "true" : "false");
    else if (v->kind == JSON_NUMBER) buf_slice(out, v->text);
    if (v->kind != JSON_ARRAY && !object) return;
    buf_byte(out, object ? '{' : '[');
    for (size_t i = 0; i < v->n; i++) {
        if (i) buf_byte(out, ',');
        if (object) json_string(out, v->items[i].key), buf_byte(out, ':');
        text_show(out, &v->items[i]);
    }
    buf_byte(out, object ? '}' : ']');
}

TEST(toml_reads_into_the_same_tree_as_json)
{
    static const struct { const char *toml, *want;
    } rows[] = {
        { "", "{}" },
        { "\xEF\xBB\xBF# x\r\na = 1\r\n\r\n", "{\"a\":1}" },
        { "server = \"https://r.example\"\n[host.\"http://1.2.3.4:5000\"]\n  capabilities = "
          "[\"pull\", 'resolve']\n"
          "  skip_verify = true\n  [host.\"http://1.2.3.4:5000\".header]\n    x-a = [\"b\", ]\n",
          "{\"server\":\"https://r.example\",\"host\":{\"http://"
          "1.2.3.4:5000\":{\"capabilities\":[\"pull\",\"resolve\"],"
          "\"skip_verify\":true,\"header\":{\"x-a\":[\"b\"]}}}}" },
        { "a . 'b c'.\"d\\u0041\" = 'x\\y'", "{\"a\":{\"b c\":{\"dA\":\"x\\\\y\"}}}" },
        { "a = \"\"\"\r\nx\\\n   \t\n  y\"\"\"\"\"\n", "{\"a\":\"xy\\\"\\\"\"}" },
        { "a = '''x\r\ny'z'''", "{\"a\":\"x\\ny'z\"}" },
        { "a = [ # c\n 1,\n -2, +3, 0x1F, 0o17, 0b11, 1_000, -0,\n]\n",
          "{\"a\":[1,-2,3,31,15,3,1000,0]}" },
        { "a = { b.c = 1, d = { }, \"\" = [[], {x = false}] }",
          "{\"a\":{\"b\":{\"c\":1},\"d\":{},\"\":[[],{\"x\":false}]}}" },
        { "[[p]]\nn=1\n[p.q]\nm=2\n[[p]]\nn=3\n[p.q]\nm=4",
          "{\"p\":[{\"n\":1,\"q\":{\"m\":2}},{\"n\":3,\"q\":{\"m\":4}}]}" },
        { "[a.b]\nx=1\n[a]\ny=2", "{\"a\":{\"b\":{\"x\":1},\"y\":2}}" },
        { "a=9223372036854775807\nb=-9223372036854775808",
          "{\"a\":9223372036854775807,\"b\":-9223372036854775808}" },
        { "1 = 'number'\nunder_score-d = ''", "{\"1\":\"number\",\"under_score-d\":\"\"}" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(MIB);
        OWNED_BUF out = { 0 };
        error e = { 0 };
        json *v = toml_parse(at_page_end(rows[i].toml, strlen(rows[i].toml)), "f", &a, &e);
        if (v) text_show(&out, v);
        CHECK_TEXT(v ? buf_view(&out) : slice_of(e.text), rows[i].want);
    }
}

TEST(toml_errors_name_file_and_line) /* T28 */
{
    static const struct { const char *toml, *want;
    } rows[] = {
        { "a = 1\na = 2", "f:2: this key is here twice" },
        { "[a]\n[b]\n[a]", "f:3: this table is here twice" },
        { "a.b = 1\n[a]", "f:2: this table is here twice" },
        { "a = {}\n[a.b]", "f:2: this key has a value already" },
        { "a = {}\na.b = 1", "f:2: this key is here twice" },
        { "[a.b]\n[a]\nb.c = 1", "f:3: this key is here twice" },
        { "a = []\n[[a]]", "f:2: this table is here twice" },
        { "a = \"x\nb = 1", "f:1: the string does not end" },
        { "\n\na = \"\"\"x\n\n", "f:5: the string does not end" },
        { "a = 'x", "f:1: the string does not end" },
        { "a = [1, 2", "f:1: expected ',' or ']'" },
        { "a = [1 2]", "f:1: expected ',' or ']'" },
        { "a = {b = 1", "f:1: expected ',' or '}'" },
        { "a = {b = 1,}", "f:1: expected a key" },
        { "a = 1 b = 2", "f:1: unexpected text at the end of the line" },
        { "a = 1\rb = 2", "f:1: unexpected text at the end of the line" },
        { "a", "f:1: expected '='" },
        { "a =", "f:1: not a value: expected a string, an integer, true, false, [ or {" },
        { "= 1", "f:1: expected a key" },
        { "[a", "f:1: expected '.' or ']'" },
        { "[]", "f:1: expected a key" },
        { "[[a]\n", "f:1: expected '.' or ']'" },
        { "a = 01", "f:1: not a value: expected a string, an integer, true, false, [ or {" },
        { "a = 1__0", "f:1: not a value: expected a string, an integer, true, false, [ or {" },
        { "a = 1.5", "f:1: not a value: expected a string, an integer, true, false, [ or {" },
        { "a = -0x1", "f:1: not a value: expected a string, an integer, true, false, [ or {" },
        { "a = 9223372036854775808",
          "f:1: not a value: expected a string, an integer, true, false, [ or {" },
        { "a = \"\\x\"", "f:1: unknown escape" },
        { "a = \"\\ud800\"", "f:1: not a Unicode character" },
        { "a = 1\nb = '\xFF'", "f:2: not UTF-8" },
        { "# \x01", "f:1: unexpected text at the end of the line" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_ARENA a = arena_make(MIB);
        error e = { 0 };
        CHECK(!toml_parse(at_page_end(rows[i].toml, strlen(rows[i].toml)), "f", &a, &e));
        CHECK_TEXT(slice_of(e.text), rows[i].want);
    }
}

TEST(toml_long_lines_and_deep_tables_are_bounded) /* T28 */
{
    OWNED_BUF text = { 0 };
    error e = { 0 };
    buf_str(&text, "a = '");
    for (int i = 0; i < 10 * MIB / 16; i++) buf_str(&text, "0123456789abcdef");
    buf_str(&text, "'\n");
    OWNED_ARENA a = arena_make(32 * MIB);
    json *v = toml_parse(buf_view(&text), "f", &a, &e);
    CHECK(v && json_text(json_get(v, "a")).n == 10 * MIB);
    const char *const deep[] = { "a.", "[", "{a=" };
    for (size_t row = 0; row < COUNT(deep); row++) {
        text.n = 0;
        if (row) buf_str(&text, "a = ");
        for (int i = 0; i < 100000; i++) buf_str(&text, deep[row]);
        CHECK(!toml_parse(buf_view(&text), "f", &a, &e));
        CHECK_TEXT(slice_of(e.text), "f:1: nested too deep");
    }
    text.n = 0;
    for (int i = 0; i <= TOML_KEYS; i++) buf_printf(&text, "k%d = 1\n", i);
    CHECK(!toml_parse(buf_view(&text), "f", &a, &e));
    CHECK_TEXT(slice_of(e.text), "f:4097: too many keys in one table");
}

/* Whoever wrote a good file must not be told that it is wrong. */
TEST(toml_without_memory_is_not_called_invalid)
{
    size_t budgets[] = { 0, 256, 1024, 4096 };
    for (size_t i = 0; i < COUNT(budgets); i++) {
        OWNED_ARENA a = arena_make(budgets[i]);
        OWNED_BUF text = { 0 };
        error e = { 0 };
        for (int k = 0; k < 200; k++) buf_printf(&text, "k%d = [\"\\u20ac\", 1, true]\n", k);
        CHECK(!toml_parse(buf_view(&text), "f", &a, &e));
        CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
        CHECK_TEXT(slice_of(e.text), "f: out of memory");
    }
}

TEST(guess_finds_the_nearest_word_and_no_far_one)
{
    static const char *const known[] = { "log-level", "log_path", "image", "images", "stop", "start", "run", "runp" };
    static const struct { const char *word, *want; } rows[] = {
        { "log_level", "log-level" }, { "logLevel", "log-level" }, { "loglevle", "log-level" }, { "logPth", "log_path" },
        { "imgae", "image" }, { "Image", "image" }, { "imagess", "images" }, { "sotp", "stop" }, { "strat", "start" },
        { "rn", "run" }, { "rnup", "runp" }, { "log-lev", "log-level" }, { "sta", "start" }, { "ru", "run" },
        { "frob", "" }, { "x", "" }, { "", "" }, { "level", "" }, { "---", "" },
        { "a-word-that-is-much-too-long-to-be-compared-with-any-other", "" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        guess g = { .word = slice_of(rows[i].word) };
        char text[GUESS_TEXT];
        for (size_t k = 0; k < COUNT(known); k++) guess_try(&g, slice_of(known[k]));
        CHECK_TEXT(g.best, rows[i].want);
        CHECK_INT(!*guess_text(&g, text), !*rows[i].want);
    }
}

TEST(values_know_the_line_where_they_begin)
{
    OWNED_ARENA a = arena_make(MIB);
    error e;
    uint32_t line;
    const json *v = json_parse_lines(SLICE("\n{ \"a\":\n 1,\n\n\"b\": [ {\n}, 3\n] }"), &a, &line, &e);
    CHECK_INT(json_get(v, "a")->line, 3);
    CHECK_INT(json_get(v, "b")->line, 5);
    CHECK_INT(json_get(v, "b")->items[1].line, 6);
    CHECK(!json_parse_lines(SLICE("{\n\"a\": 1\n\"b\": 2 }"), &a, &line, &e));
    CHECK_INT(line, 3);
    v = toml_parse(SLICE("# x\n\na = 1\n[b]\nc = [\n1,\n\n2 ]\n"), "f", &a, &e);
    CHECK_INT(json_get(v, "a")->line, 3);
    CHECK_INT(json_get(v, "b")->line, 4);
    CHECK_INT(json_get(json_get(v, "b"), "c")->line, 5);
    CHECK_INT(json_get(json_get(v, "b"), "c")->items[1].line, 8);
}
