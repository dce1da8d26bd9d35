/* Chapter 29: what is typed, and what is printed. */
#ifndef KRUN_NO_CLI

/* Parses a line for a command with stderr away, since a refused one explains itself there. */
static int cli_test_parse(cli *c, enum cli_command which, const char *const *words)
{
    static char *argv[16];
    int argc = 0;
    for (; words[argc]; argc++) argv[argc] = (char *)words[argc];
    *c = (cli){ .client.arena = arena_make(MIB), .tail = -1 };
    int kept = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(null, STDERR_FILENO);
    int code = cli_parse(c, (cli_line){ argv, argc, 0, 1U << which }, cli_commands[which].flags & CLI_REST);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(null);
    return code;
}
#define CLI_LINE(...) ((const char *const[]){ __VA_ARGS__, NULL })

TEST(cli_parse_leaves_the_containers_own_options_alone)
{
    cli c;
    CHECK_INT(cli_test_parse(&c, CLI_RUN, CLI_LINE("--rm", "-e", "A=1", "-eB=2", "image", "-d", "--rm")), CLI_OK);
    CHECK(c.rm && !c.detach);
    CHECK_INT(c.nargs, 3);
    CHECK_INT(c.env.n, 2);
    CHECK(!strcmp(c.env.p[1], "B=2") && !c.env.p[2]);
    CHECK(!strcmp(c.args[1], "-d") && !c.args[3]);
    arena_free(&c.client.arena);
}

TEST(cli_parse_reads_every_form_of_an_option)
{
    static const struct { const char *words[5]; int64_t tail; bool follow; int nargs; } rows[] = {
        { { "-n5", "x" }, 5, false, 1 }, { { "-n", "5", "x" }, 5, false, 1 }, { { "--tail=5", "x" }, 5, false, 1 },
        { { "--tail", "5", "x" }, 5, false, 1 }, { { "-fn5", "x" }, 5, true, 1 }, { { "x", "-f" }, -1, true, 1 },
        { { "-f", "--", "-x" }, -1, true, 1 }, { { "-" }, -1, false, 1 }, { { "--", "--" }, -1, false, 1 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        cli c;
        CHECK_INT(cli_test_parse(&c, CLI_LOGS, rows[i].words), CLI_OK);
        CHECK_INT(c.tail, rows[i].tail);
        CHECK_INT(c.follow, rows[i].follow);
        CHECK_INT(c.nargs, rows[i].nargs);
        arena_free(&c.client.arena);
    }
}

TEST(cli_parse_refuses_what_no_option_means)
{
    static const struct { enum cli_command which; const char *words[4]; } rows[] = {
        { CLI_LOGS, { "--nope" } }, { CLI_LOGS, { "-z" } }, { CLI_LOGS, { "--follow=1" } }, { CLI_LOGS, { "--tail" } },
        { CLI_LOGS, { "--tail", "-1" } }, { CLI_LOGS, { "-n", "x" } }, { CLI_LOGS, { "-fz" } }, { CLI_LOGS, { "--=" } },
        { CLI_PS, { "-o", "yaml" } }, { CLI_RUN, { "--net", "bridge" } }, { CLI_RUN, { "--memory", "0" } },
        { CLI_RUN, { "--cpus", "1,5" } }, { CLI_PS, { "--rm" } }, { CLI_PODS, { "-a" } },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        cli c;
        CHECK_INT(cli_test_parse(&c, rows[i].which, rows[i].words), CLI_USAGE);
        arena_free(&c.client.arena);
    }
}

TEST(cli_options_do_not_contradict_each_other)
{
    for (size_t i = 0; i < COUNT(cli_options); i++)
        for (size_t k = 0; k < i; k++) {
            const cli_option *a = &cli_options[i], *b = &cli_options[k];
            if (!(a->commands & b->commands)) continue;
            CHECK(strcmp(a->name, b->name));
            CHECK(!a->letter || a->letter != b->letter);
        }
}

TEST(cli_commands_each_have_a_function_a_summary_and_an_example)
{
    for (int i = 0; i < CLI_COMMANDS; i++) {
        const cli_command *row = &cli_commands[i];
        CHECK(row->name && row->run && row->does && *row->does);
        CHECK(row->examples && strstr(row->examples, row->name) && slice_ends(slice_of(row->examples), "\n"));
        CHECK(row->least <= row->most);
        CHECK_INT(cli_find_command(row->name), i);
    }
    CHECK_INT(cli_find_command("nope"), CLI_COMMANDS);
}

TEST(cli_count_prefers_a_name_and_finds_the_beginning_of_an_id)
{
    cli_thing things[] = {
        { CLI_CONTAINER, SLICE("ab12"), SLICE("web"), true }, { CLI_POD, SLICE("ab99"), SLICE("web"), true },
        { CLI_CONTAINER, SLICE("cd34"), SLICE("ab"), true },
    };
    cli_things all = { things, COUNT(things), COUNT(things) };
    cli_thing got;
    CHECK_INT(cli_count(&all, CLI_POD, "web", true, &got), 1);
    CHECK_TEXT(got.id, "ab99");
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab", true, &got), 1);
    CHECK_TEXT(got.id, "cd34");
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab", false, &got), 2);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "ab1", false, &got), 1);
    CHECK_INT(cli_count(&all, CLI_CONTAINER | CLI_POD, "", false, &got), 0);
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
    CHECK_TEXT(slice_of(cli_size(&c, 999)), "999B");
    CHECK_TEXT(slice_of(cli_size(&c, 4261550)), "4.26MB");
    CHECK_TEXT(slice_of(cli_size(&c, UINT64_MAX)), "18.4EB");
    arena_free(&c.client.arena);
}

TEST(cli_not_run_tells_a_missing_program_from_one_that_cannot_run)
{
    static const struct { const char *text; int code; } rows[] = {
        { "exec /nope: No such file or directory", 127 }, { "exec /etc: Permission denied", 126 },
        { "exec /x: Exec format error", 126 }, { "exec: \"x\": executable file not found in $PATH", 127 },
        { "mount /x: No such file or directory", 125 }, { "no such image", 125 }, { "", 125 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e;
        fail(&e, GRPC_UNKNOWN, "%s", rows[i].text);
        CHECK_INT(cli_not_run(&e), rows[i].code);
    }
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
#endif
