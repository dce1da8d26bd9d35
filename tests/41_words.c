/* Chapter 41: what is printed, what a word means, the progress of a pull. */
#ifndef KRUN_NO_CLI

TEST(cli_count_prefers_a_name_and_finds_the_beginning_of_an_id)
{
    cli_thing things[] = {
        { CLI_CONTAINER, SLICE("ab12"), SLICE("web"), true }, { CLI_POD, SLICE("ab99"), SLICE("web"), true },
        { CLI_CONTAINER, SLICE("cd34"), SLICE("ab"), true },
    };
    cli_things all = { things, COUNT(things), COUNT(things) };
    cli_thing got;
    CHECK_INT(cli_count(&all, CLI_POD, "web", CLI_BY_NAME, &got), 1);
    CHECK_TEXT(got.id, "ab99");
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "web", CLI_BY_NAME, &got), 2);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab", CLI_BY_NAME, &got), 1);
    CHECK_TEXT(got.id, "cd34");
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab", CLI_BY_PREFIX, &got), 2);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab1", CLI_BY_PREFIX, &got), 1);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab1", CLI_BY_ID, &got), 0);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab12", CLI_BY_ID, &got), 1);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "", CLI_BY_PREFIX, &got), 0);
}

TEST(cli_ago_uses_the_largest_unit_that_is_there_twice)
{
    static const struct { int64_t seconds; const char *want; } rows[] = {
        { 0, "1 second ago" }, { 1, "1 second ago" }, { 2, "2 seconds ago" }, { 119, "119 seconds ago" },
        { 120, "2 minutes ago" }, { 7200, "2 hours ago" }, { 172800, "2 days ago" }, { 1209600, "2 weeks ago" },
        { 63072000, "2 years ago" }, { -5, "1 second ago" },
    };
    cli c = { .client.arena = arena_make(MIB) };
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_TEXT(slice_of(cli_ago(&c, clock_wall() - rows[i].seconds * NS_PER_SEC - NS_PER_MS)), rows[i].want);
    CHECK_TEXT(slice_of(cli_ago(&c, 0)), "never");
    CHECK_TEXT(slice_of(cli_ago(&c, 20 * NS_PER_SEC)), "unknown");
    CHECK_TEXT(slice_of(cli_size(&c, 999)), "999B");
    CHECK_TEXT(slice_of(cli_size(&c, 4261550)), "4.26MB");
    CHECK_TEXT(slice_of(cli_size(&c, UINT64_MAX)), "18.4EB");
    arena_free(&c.client.arena);
}

TEST(cli_json_tree_indents_and_writes_dates)
{
    OWNED_ARENA a = arena_make(MIB);
    OWNED_BUF out = { 0 };
    error e;
    json *v = json_parse(SLICE("{\"createdAt\":\"1500000000\",\"a\":[],\"b\":[1,{\"c\":null}],\"d\":true}"), &a, &e);
    cli_json_tree(v, 0, &out);
    CHECK_TEXT(buf_view(&out), "{\n  \"createdAt\": \"1970-01-01T00:00:01.500000000Z\",\n  \"a\": [],\n"
                               "  \"b\": [\n    1,\n    {\n      \"c\": null\n    }\n  ],\n  \"d\": true\n}");
}

TEST(cli_socket_strips_the_scheme)
{
    CHECK_TEXT(slice_of(cli_socket("unix:///a.sock")), "/a.sock");
    CHECK_TEXT(slice_of(cli_socket("/b.sock")), "/b.sock");
}

TEST(cli_cell_makes_a_hostile_name_harmless)
{
    cli c = { .client.arena = arena_make(MIB) };
    cli_table t = cli_heading(&c, "A|B");
    CHECK_INT(t.columns, 2);
    cli_cell(&t, "%s", "x\033[2Jy\n");
    CHECK_TEXT(slice_of(t.cells[0]), "A");
    CHECK_TEXT(slice_of(t.cells[2]), "x\\x1b[2Jy\\x0a");
    arena_free(&c.client.arena);
}

TEST(cli_put_layer_fits_any_width_and_drops_the_least_first)
{
    static const cli_layer half = { "0123456789abc", 100000000, 50000000, KrunLayerState_DOWNLOADING, 12500000, false };
    static const struct { size_t columns; const char *want; } rows[] = {
        { 79, "0123456789abc  [============>           ]    50MB/ 100MB  12.5MB/s      4s left" },
        { 65, "0123456789abc  [=====>    ]    50MB/ 100MB  12.5MB/s      4s left" },
        { 64, "0123456789abc  [===========>          ]    50MB/ 100MB  12.5MB/s" },
        { 52, "0123456789abc  [=====>    ]    50MB/ 100MB  12.5MB/s" },
        { 51, "0123456789abc  [=========>         ]    50MB/ 100MB" },
        { 42, "0123456789abc  [=====>    ]    50MB/ 100MB" },
        { 41, "0123456789abc   50%    50MB/ 100MB" }, { 34, "0123456789abc   50%    50MB/ 100MB" },
        { 33, "0123456789abc   50%" }, { 19, "0123456789abc   50%" }, { 18, "0123456789abc   50" }, { 3, "012" }, { 0, "" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF out = { 0 };
        cli_put_layer(&out, &half, rows[i].columns);
        CHECK_TEXT(buf_view(&out), rows[i].want);
    }
    for (size_t columns = 0; columns < 200; columns++) {
        OWNED_BUF out = { 0 };
        cli_put_layer(&out, &half, columns);
        CHECK(out.n <= columns);
    }
}

TEST(cli_put_layer_says_what_a_layer_is_at)
{
    static const struct { cli_layer layer; const char *want; } rows[] = {
        { { "a", 0, 0, KrunLayerState_WAITING, 0, false }, "a  waiting" },
        { { "a", 4261550, 4261550, KrunLayerState_EXTRACTING, 1, false }, "a  extracting 4.26MB" },
        { { "a", 999, 999, KrunLayerState_DONE, 1, false }, "a  done 999B" },
        { { "a", 999, 999, KrunLayerState_EXISTS, 0, false }, "a  exists" },
        { { "a", 0, 0, KrunLayerState_DOWNLOADING, 0, false }, "a  [>         ]      0B/    0B      0B/s             " },
        { { "a", 10, 10, KrunLayerState_DOWNLOADING, 5, false }, "a  [==========]     10B/   10B      5B/s      0s left" },
        { { "a", 10, 99, KrunLayerState_DOWNLOADING, 5, false }, "a  [==========]     99B/   10B      5B/s      0s left" },
        { { "a", 1000, 0, KrunLayerState_DOWNLOADING, 5, false }, "a  [>         ]      0B/   1kB      5B/s   3m20s left" },
        { { "a", 3599, 0, KrunLayerState_DOWNLOADING, 1, false }, "a  [>         ]      0B/ 3.6kB      1B/s  59m59s left" },
        { { "a", 7260, 0, KrunLayerState_DOWNLOADING, 1, false }, "a  [>         ]      0B/7.26kB      1B/s   2h01m left" },
        { { "a", 360000, 0, KrunLayerState_DOWNLOADING, 1, false }, "a  [>         ]      0B/ 360kB      1B/s             " },
        { { "a", UINT64_MAX, 1, KrunLayerState_DOWNLOADING, 1e-9, false }, "a  [>         ]      1B/18.4EB  1e-09B/s             " },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF out = { 0 };
        cli_put_layer(&out, &rows[i].layer, 53);
        CHECK_TEXT(buf_view(&out), rows[i].want);
    }
}

TEST(cli_hear_layer_measures_from_the_second_message_on)
{
    const cli_progress p = { .terminal = true };
    cli_layer l = { .name = "a" };
    KrunLayerProgress news = { .total = 10000, .done = 5000, .state = KrunLayerState_DOWNLOADING };
    cli_hear_layer(&p, &l, &news, 0.2); /* who joins a pull late has seen none of these bytes come */
    CHECK(l.rate <= 0 && l.done == 5000);
    news.done = 6000;
    cli_hear_layer(&p, &l, &news, 0.5);
    CHECK_INT(l.rate, 2000);
    cli_hear_layer(&p, &l, &news, 1.5); /* nothing came: half of the last 3 s */
    CHECK_INT(l.rate, 1000);
    news.done = 0; /* it began again */
    cli_hear_layer(&p, &l, &news, 9);
    CHECK_INT(l.rate, 0);
    news.state = 77; /* of a newer daemon */
    cli_hear_layer(&p, &l, &news, 1);
    CHECK_INT(l.state, KrunLayerState_WAITING);
}

TEST(cli_size_text_has_three_digits_at_most)
{
    static const struct { double bytes; const char *want; } rows[] = {
        { 0, "0B" }, { 999, "999B" }, { 1000, "1kB" }, { 999499, "999kB" }, { 999500, "1MB" }, { 999999, "1MB" }, { 12345678, "12.3MB" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char text[CLI_SIZE_TEXT];
        CHECK_TEXT(slice_of(cli_size_text(text, rows[i].bytes)), rows[i].want);
    }
}
#endif
