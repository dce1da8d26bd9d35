/* Tests of chapters 2 and 3: paths inside a root, records, removal, processes, the event loop. */

static void write_file(int at, const char *name, const char *text)
{
    error e;
    if (file_replace(at, name, slice_of(text), ATOMIC, &e) < 0) fprintf(stderr, "write_file: %s\n", e.text);
}

static int count_entries(int at) /* of a directory, without . and .. */
{
    DIR *d = fdopendir(openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    int n = 0;
    for (struct dirent *entry; (entry = readdir(d));) n += strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
    closedir(d);
    return n;
}

static int count_fds(void)
{
    OWNED_FD fds = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return count_entries(fds);
}

TEST(open_inside_never_leaves_the_root_whatever_links_say) /* T50 */
{
    char path[PATH_MAX];
    error e;
    OWNED_FD dir = temp_dir(path);
    mkdirat(dir, "root", 0755);
    write_file(dir, "secret", "outside");
    OWNED_FD root = openat(dir, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    symlinkat("../secret", root, "up");
    symlinkat("/secret", root, "absolute");
    symlinkat("loop", root, "loop");
    symlinkat("/proc/self/root", root, "magic");
    static const char *const out[] = { "up", "absolute", "../secret", "/../secret", "a/../../secret" };
    for (size_t i = 0; i < COUNT(out); i++) {
        CHECK_INT(open_inside(root, out[i], O_RDONLY, &e), -1);
        CHECK_INT(e.code, GRPC_NOT_FOUND);
    }
    CHECK_INT(open_inside(root, "loop", O_RDONLY, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    write_file(root, "secret", "inside");
    OWNED_FD fd = open_inside(root, "absolute", O_RDONLY, &e); /* "/" is the root now */
    char text[8] = "";
    CHECK_INT(read_all(fd, text, sizeof text), 6);
    CHECK(!memcmp(text, "inside", 6));
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(open_inside_follows_no_magic_link) /* they lead out of any root: proc_pid_fd(5), CVE-2024-21626 */
{
    static const char *const paths[] = { "/proc/self/exe", "/proc/self/root", "/proc/self/cwd", "/proc/self/fd/0" };
    OWNED_FD root = open("/", O_PATH | O_DIRECTORY);
    for (size_t i = 0; i < COUNT(paths); i++) {
        error e = { 0 };
        OWNED_FD fd = open_inside(root, paths[i], O_PATH, &e);
        CHECK_INT(fd, -1);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    }
}

TEST(make_dir_inside_makes_parents_and_stays_inside_over_planted_links)
{
    char path[PATH_MAX];
    error e;
    OWNED_FD dir = temp_dir(path);
    mkdirat(dir, "root", 0755);
    mkdirat(dir, "victim", 0755);
    OWNED_FD root = openat(dir, "root", O_RDONLY | O_DIRECTORY | O_CLOEXEC), victim = openat(dir, "victim", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    symlinkat("../victim", root, "link");
    OWNED_FD made = make_dir_inside(root, "/a//b/./c", 0700, &e), again = make_dir_inside(root, "a/b/c", 0700, &e);
    CHECK(made >= 0 && again >= 0);
    CHECK_INT(make_dir_inside(root, "link/x", 0700, &e), -1); /* a link to nothing, seen from inside */
    CHECK_INT(count_entries(victim), 0);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(file_replace_leaves_the_new_bytes_and_no_temporary_file)
{
    char path[PATH_MAX];
    error e;
    OWNED_ARENA a = arena_make(MIB);
    OWNED_FD dir = temp_dir(path);
    slice got;
    CHECK_INT(file_replace(dir, "r", SLICE("one"), ATOMIC, &e), 0);
    CHECK_INT(file_replace(dir, "r", SLICE("two"), DURABLE, &e), 0);
    CHECK((got = file_read(dir, "r", 3, &a, &e)).p);
    CHECK_TEXT(got, "two");
    CHECK_INT(count_entries(dir), 1);
    CHECK(!(got = file_read(dir, "r", 2, &a, &e)).p);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK(!(got = file_read(dir, "none", 9, &a, &e)).p);
    CHECK_INT(e.code, GRPC_NOT_FOUND);
    mkfifoat(dir, "fifo", 0600); /* would hang a plain open(2) for ever */
    CHECK(!(got = file_read(dir, "fifo", 9, &a, &e)).p);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    mkdirat(dir, "d", 0700);
    CHECK_INT(file_replace(dir, "d", SLICE("x"), ATOMIC, &e), -1); /* rename over a directory fails */
    CHECK_INT(count_entries(dir), 3);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* Directories below each other, each with `files` files and one empty directory beside the next. */
static void make_deep(int dir, const char *name, int depth, int files)
{
    char text[16];
    mkdirat(dir, name, 0700);
    int at = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < depth; i++) {
        for (int f = 0; f < files; f++) {
            snprintf(text, sizeof text, "f%d", f);
            mknodat(at, text, S_IFREG | 0600, 0);
        }
        if (files) mkdirat(at, "side", 0700);
        mkdirat(at, "down", 0700);
        int next = openat(at, "down", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        close_fd(&at);
        at = next;
    }
    close_fd(&at);
}

TEST(tree_remove_goes_on_in_a_tree_deeper_than_it_remembers)
{
    char path[PATH_MAX];
    error e;
    OWNED_FD dir = temp_dir(path);
    make_deep(dir, "deep", REMOVE_DEPTH + REMOVE_DEPTH / 2 + 100, 0); /* three passes */
    CHECK_INT(tree_remove(dir, "deep", &e), 0);
    CHECK_INT(count_entries(dir), 0);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* Each directory has two that are deeper than what is kept open, so that all are opened again. */
TEST(tree_remove_comes_back_to_a_directory_that_it_had_to_close)
{
    char path[PATH_MAX], name[16];
    error e;
    OWNED_FD dir = temp_dir(path);
    mkdirat(dir, "top", 0700);
    OWNED_FD top = openat(dir, "top", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "%d", i);
        make_deep(top, name, WALK_OPEN + 8, 1);
    }
    int fds = count_fds();
    CHECK_INT(tree_remove(dir, "top", &e), 0);
    CHECK_INT(count_entries(dir), 0);
    CHECK_INT(count_fds(), fds);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* What an earlier krun called directories while it removed, at each depth and with content. */
TEST(tree_remove_meets_any_name_and_renames_nothing)
{
    static const char *const names[] = { ".krun-remove-0", ".krun-remove-1", "a\nb", "\033[2J", "-rf", " " };
    char path[PATH_MAX], longest[NAME_MAX + 1];
    error e;
    OWNED_FD dir = temp_dir(path);
    memset(longest, 'n', NAME_MAX);
    longest[NAME_MAX] = '\0';
    make_deep(dir, "tree", 3, 1);
    OWNED_FD at = openat(dir, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < COUNT(names); i++) make_deep(at, names[i], 3, 2);
    for (int i = 0; i < 3; i++) {
        make_deep(at, longest, 1, 1);
        make_deep(at, ".krun-remove-0", 3, 2);
        int next = openat(at, i ? ".krun-remove-0" : longest, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        close_fd(&at);
        at = next;
    }
    CHECK_INT(tree_remove(dir, "tree", &e), 0);
    CHECK_INT(count_entries(dir), 0);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tree_remove_some_stops_after_so_many_entries_and_goes_on_later)
{
    char path[PATH_MAX];
    error e;
    int calls = 1;
    OWNED_FD dir = temp_dir(path);
    make_deep(dir, "tree", 10, 3); /* 51 entries below it: 5 a level, and the last "down" has none */
    while (tree_remove_some(dir, "tree", 10, &e) == 1) calls++;
    CHECK_INT(calls, 6);
    CHECK_INT(count_entries(dir), 0);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(a_temporary_file_of_another_life_is_in_nobodys_way_and_is_swept)
{
    char path[PATH_MAX], name[64];
    error e;
    OWNED_FD dir = temp_dir(path);
    for (int i = 0; i < 50; i++) { /* the names of a process of our number */
        snprintf(name, sizeof name, ".r.%d.%d.tmp", (int)getpid(), i);
        write_file(dir, name, "cut");
    }
    CHECK_INT(file_replace(dir, "r", SLICE("whole"), ATOMIC, &e), 0);
    temps_sweep(dir);
    CHECK_INT(count_entries(dir), 1);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

TEST(tree_remove_takes_a_tree_of_any_depth_and_follows_no_link) /* T70 */
{
    char path[PATH_MAX];
    error e;
    OWNED_FD dir = temp_dir(path);
    mkdirat(dir, "victim", 0700);
    OWNED_FD victim = openat(dir, "victim", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    write_file(victim, "keep", "me");
    mkdirat(dir, "tree", 0700);
    OWNED_FD at = openat(dir, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < 3000; i++) { /* deeper than PATH_MAX and than the descriptors we may have */
        symlinkat("../victim", at, "link");
        write_file(at, "file", "x");
        mkdirat(at, "side", 0700);
        mkdirat(at, "down", 0700);
        int next = openat(at, "down", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        close_fd(&at);
        at = next;
    }
    CHECK_INT(tree_remove(dir, "tree", &e), 0);
    CHECK_INT(tree_remove(dir, "tree", &e), 0); /* gone already: no error */
    CHECK_INT(count_entries(dir), 1);
    CHECK_INT(count_entries(victim), 1);
    symlinkat("victim", dir, "tolink");
    CHECK_INT(tree_remove(dir, "tolink", &e), 0);
    CHECK_INT(count_entries(victim), 1);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}

/* Runs `script` in sh with `fd` as its standard output; its exit code. */
static int run_sh(const char *script, int out)
{
    error e;
    char *argv[] = { "sh", "-c", (char *)(uintptr_t)script, NULL }, *envp[] = { "PATH=/bin:/usr/bin", NULL };
    int fds[] = { -1, out, out };
    OWNED_FD child = spawn(&(spawn_args){ .exec_fd = -1, .path = "/bin/sh", .argv = argv, .envp = envp, .fds = fds, .nfds = 3 }, NULL, &e);
    CHECK(child >= 0);
    return child < 0 ? -1 : reap(child, 0);
}

TEST(spawn_gives_a_child_its_descriptors_and_nothing_else)
{
    int pipes[2];
    char text[256] = "";
    if (pipe2(pipes, O_CLOEXEC) < 0) abort();
    OWNED_FD leaked = dup(pipes[0]); /* no CLOEXEC: spawn must close it all the same */
    CHECK(leaked >= 0);
    CHECK_INT(run_sh("ls /proc/self/fd | tr '\\n' ' '; pwd; env | sort", pipes[1]), 0);
    close(pipes[1]);
    CHECK(read_all(pipes[0], text, sizeof text - 1) > 0);
    close(pipes[0]);
    CHECK(strstr(text, "0 1 2 3 /\n")); /* 3 is ls's own directory */
    CHECK(strstr(text, "PATH=/bin:/usr/bin\nPWD=/\n"));
    CHECK(!strstr(text, "HOME="));
}

TEST(reap_tells_exit_codes_as_shells_do)
{
    CHECK_INT(run_sh("exit 7", -1), 7);
    CHECK_INT(run_sh("kill -9 $$", -1), 137);
    CHECK_INT(run_sh("kill -TERM $$", -1), 143);
}

TEST(spawn_gives_a_child_signals_and_files_as_it_expects_them)
{
    static const int odd[] = { SIGPIPE, SIGXFSZ, SIGHUP, SIGINT, SIGUSR2, 34 };
    int pipes[2];
    char text[512] = "";
    struct rlimit mine;
    if (pipe2(pipes, O_CLOEXEC) < 0 || getrlimit(RLIMIT_NOFILE, &mine) < 0) abort();
    for (size_t i = 0; i < COUNT(odd); i++) signal(odd[i], SIG_IGN);
    struct rlimit low = { 100, mine.rlim_max };
    setrlimit(RLIMIT_NOFILE, &low);
    files_raise();
    struct rlimit raised;
    CHECK(getrlimit(RLIMIT_NOFILE, &raised) == 0 && raised.rlim_cur == mine.rlim_max);
    CHECK_INT(run_sh("grep -E '^Sig(Ign|Blk)' /proc/self/status; ulimit -Sn", pipes[1]), 0);
    for (size_t i = 0; i < COUNT(odd); i++) signal(odd[i], SIG_DFL);
    setrlimit(RLIMIT_NOFILE, &mine);
    files_before = (struct rlimit){ 0, 0 };
    close(pipes[1]);
    CHECK(read_all(pipes[0], text, sizeof text - 1) > 0);
    close(pipes[0]);
    CHECK(strstr(text, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n100\n"));
}

TEST(only_what_nobody_can_change_counts_as_sealed)
{
    enum { ALL = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE };
    static const struct { int seals; bool sealed; } rows[] = {
        { 0, false }, { F_SEAL_WRITE, false }, { F_SEAL_SEAL, false },
        { ALL & ~F_SEAL_WRITE, false }, { ALL & ~F_SEAL_SEAL, false }, { ALL, true },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_FD fd = memory_program();
        CHECK(fd >= 0 && (!rows[i].seals || fcntl(fd, F_ADD_SEALS, rows[i].seals) == 0));
        CHECK_INT(is_sealed(fd), rows[i].sealed);
    }
    OWNED_FD plain = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); /* a tmpfs */
    CHECK(plain < 0 || !is_sealed(plain));
    OWNED_FD elsewhere = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    CHECK(!is_sealed(elsewhere));
}

TEST(spawn_of_a_missing_program_fails_with_its_errno)
{
    error e;
    char *argv[] = { "nothing", NULL }, *envp[] = { NULL };
    CHECK_INT(spawn(&(spawn_args){ .exec_fd = -1, .path = "/no/such/program", .argv = argv, .envp = envp }, NULL, &e), -1);
    CHECK_INT(e.sys, ENOENT);
    CHECK(strstr(e.text, "execute nothing"));
}

TEST(self_program_cannot_be_written_to) /* CVE-2019-5736 */
{
    error e;
    int program = self_program(&e);
    CHECK(program >= 0);
    CHECK(write(program, "x", 1) < 0);
    CHECK(ftruncate(program, 1) < 0);
    CHECK_INT(self_program(&e), program);
}

/* -- the loop ---- */

typedef struct { loop *l; timer t; int order; watch w; watch *other; job j; } loop_probe;
static int loop_count;

static void probe_due(timer *t)
{
    loop_probe *p = OWNER(t, loop_probe, t);
    p->order = ++loop_count;
    if (p->order == 3) loop_stop(p->l);
}

TEST(loop_timers_come_in_the_order_of_their_times)
{
    error e;
    loop l;
    loop_probe a = { .l = &l, .t.due = probe_due }, b = a, c = a, never = a;
    CHECK_INT(loop_open(&l, &e), 0);
    int64_t now = clock_mono();
    loop_count = 0;
    CHECK(loop_arm(&l, &a.t, now + 3 * NS_PER_MS, &e) == 0 && loop_arm(&l, &b.t, now + 9, &e) == 0 && loop_arm(&l, &never.t, now + 10, &e) == 0);
    CHECK(loop_arm(&l, &c.t, now + NS_PER_SEC, &e) == 0 && loop_arm(&l, &c.t, now + 2 * NS_PER_MS, &e) == 0); /* moved */
    loop_disarm(&l, &never.t);
    loop_run(&l);
    CHECK_INT(b.order, 1);
    CHECK_INT(c.order, 2);
    CHECK_INT(a.order, 3);
    CHECK_INT(never.order, 0);
    loop_close(&l);
}

TEST(loop_heap_stays_in_order_under_random_arming)
{
    error e;
    loop l;
    static timer timers[500];
    CHECK_INT(loop_open(&l, &e), 0);
    srand(1);
    for (int i = 0; i < 20000; i++) {
        timer *t = &timers[rand() % 500];
        if (rand() % 3) CHECK_INT(loop_arm(&l, t, rand(), &e), 0);
        else loop_disarm(&l, t);
        for (size_t k = 2; k <= l.ntimers && i % 100 == 0; k++) {
            CHECK(l.heap[k / 2]->at <= l.heap[k]->at);
            CHECK_INT(l.heap[k]->slot, k);
        }
    }
    loop_close(&l);
}

static void probe_ready(watch *w, uint32_t events)
{
    loop_probe *p = OWNER(w, loop_probe, w);
    (void)events;
    loop_count++;
    loop_forget(p->l, p->other); /* its event is in the same batch and must not be told */
    loop_stop(p->l);
}

TEST(loop_forgets_a_watch_even_when_its_event_has_come)
{
    error e;
    loop l;
    CHECK_INT(loop_open(&l, &e), 0);
    loop_probe a = { .l = &l, .w = { .fd = eventfd(1, EFD_CLOEXEC), .ready = probe_ready } };
    loop_probe b = { .l = &l, .w = { .fd = eventfd(1, EFD_CLOEXEC), .ready = probe_ready } };
    a.other = &b.w;
    b.other = &a.w;
    CHECK(loop_watch(&l, &a.w, EPOLLIN, &e) == 0 && loop_watch(&l, &b.w, EPOLLIN, &e) == 0);
    loop_count = 0;
    loop_run(&l);
    CHECK_INT(loop_count, 1);
    close(a.w.fd);
    close(b.w.fd);
    loop_close(&l);
}

static void probe_letter(job *j)
{
    loop_probe *p = OWNER(j, loop_probe, j);
    p->order = ++loop_count;
    if (loop_count == 2) loop_stop(p->l);
}

static void *probe_post(void *arg)
{
    loop_probe *both = arg;
    loop_post(both[0].l, &both[0].j);
    loop_post(both[1].l, &both[1].j);
    return NULL;
}

TEST(loop_runs_what_another_thread_posts_in_its_order)
{
    error e;
    loop l;
    pthread_t thread;
    CHECK_INT(loop_open(&l, &e), 0);
    loop_probe both[2] = { { .l = &l, .j.run = probe_letter }, { .l = &l, .j.run = probe_letter } };
    loop_count = 0;
    pthread_create(&thread, NULL, probe_post, both);
    loop_run(&l);
    pthread_join(thread, NULL);
    CHECK_INT(both[0].order, 1);
    CHECK_INT(both[1].order, 2);
    loop_close(&l);
}
