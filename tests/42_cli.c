/* Chapter 42: what is typed. */
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
        { CLI_EXEC, { "-t", "5", "x" } }, { CLI_EXEC, { "-it", "x" } }, { CLI_RUN, { "-i", "x" } },
        { CLI_RUN, { "--interactive", "x" } }, { CLI_RUN, { "-ti", "x" } },
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

TEST(cli_not_run_tells_a_missing_program_from_one_that_cannot_run)
{
    static const struct { const char *text; int code; } rows[] = {
        { "exec /nope: No such file or directory", 127 }, { "exec /etc: Permission denied", 126 },
        { "exec /x: Exec format error", 126 }, { "exec: \"x\": executable file not found in $PATH", 127 },
        { "exec /x, whose loader or #! program the container does not have: No such file or directory", 127 },
        { "mount /x: No such file or directory", 125 }, { "no such image", 125 }, { "", 125 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e;
        fail(&e, GRPC_UNKNOWN, "%s", rows[i].text);
        CHECK_INT(cli_not_run(&e), rows[i].code);
    }
}
#endif
