/* Chapter 13: logins, hosts.toml. The fetch process itself is tested by chapter 16's tests, through the
 * daemon's side of it. */

TEST(challenge_parameters_are_found_in_any_order_and_quoting)
{
    OWNED_ARENA a = arena_make(64 * KIB);
    slice c = SLICE("realm=\"https://auth.example/token?a=b\",service=reg, scope=\"repository:x\\\"y:pull,push\"");
    CHECK_TEXT(challenge_get(c, "realm", &a), "https://auth.example/token?a=b");
    CHECK_TEXT(challenge_get(c, "service", &a), "reg");
    CHECK_TEXT(challenge_get(c, "scope", &a), "repository:x\"y:pull,push");
    CHECK_INT(challenge_get(c, "other", &a).n, 0);
    CHECK_INT(challenge_get(SLICE("realm=\"unterminated"), "service", &a).n, 0);
    CHECK_INT(challenge_get(SLICE("="), "realm", &a).n, 0);
}

TEST(auth_takes_both_forms_of_a_password)
{
    OWNED_ARENA a = arena_make(64 * KIB);
    AuthConfig pair = { .username = SLICE("u"), .password = SLICE("p") }, coded = { .auth = SLICE("dTpwAA==") };
    CHECK_TEXT(auth_basic(&pair, &a), "dTpw");
    CHECK_TEXT(auth_basic(&coded, &a), "dTpw"); /* the NUL padding of a kubelet is dropped */
    CHECK_INT(auth_basic(NULL, &a).n, 0);
}

/* Covers T41: where a password may go. */
TEST(realm_gets_the_password_only_where_the_registry_itself_would)
{
    static const struct { const char *registry, *realm; bool trusted; } rows[] = {
        { "https://reg.example/", "https://auth.example/t", true },
        { "http://reg.example/", "http://reg.example:81/t", true },
        { "http://reg.example/", "http://169.254.169.254/t", false },
        { "https://reg.example/", "http://reg.example/t", false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        url_parts registry, realm;
        error e;
        OWNED_ARENA a = arena_make(64 * KIB);
        CHECK_INT(url_parse(slice_of(rows[i].registry), &a, &registry, &e) + url_parse(slice_of(rows[i].realm), &a, &realm, &e), 0);
        CHECK(realm_trusted(&realm, &registry) == rows[i].trusted);
    }
}

static void put_hosts_toml(const char *dir, const char *host, const char *text)
{
    char path[PATH_MAX + 64];
    error e;
    snprintf(path, sizeof path, "%s/%s", dir, host);
    mkdir(path, 0700);
    OWNED_FD at = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK_INT(file_replace(at, "hosts.toml", slice_of(text), ATOMIC, &e), 0);
}

/* The bases that a reference leads to, with a space after each; '*' marks who gets the credentials. */
static int hosts_for(const char *dir, const char *name, buf *out, error *e)
{
    image_ref ref;
    FetchSetup setup = { 0 };
    OWNED_ARENA a = arena_make(MIB);
    if (image_ref_parse(slice_of(name), &a, &ref, e) < 0) return -1;
    if (registry_hosts(dir, &ref, &a, &setup, e) < 0) return -1;
    for (size_t i = 0; i < setup.hosts.n; i++)
        buf_printf(out, "%.*s%s%s%s ", PR(setup.hosts.p[i].base), setup.hosts.p[i].resolve ? "r" : "",
                   setup.hosts.p[i].pull ? "p" : "", setup.hosts.p[i].credentials ? "*" : "");
    return 0;
}

TEST(hosts_toml_says_whom_to_ask)
{
    char dir[PATH_MAX];
    static const struct { const char *image, *want; } rows[] = {
        { "busybox", "https://registry-1.docker.io/v2rp* " },
        { "localhost:5000/x", "http://localhost:5000/v2rp* " },
        { "127.0.0.1:5000/x", "http://127.0.0.1:5000/v2rp* " },
        { "[::1]:5000/x", "http://[::1]:5000/v2rp* " },
        { "registry.k8s.io/pause:1", "http://127.0.0.1:5000/v2rp https://registry.k8s.io/v2rp* " },
        { "gcr.io/x", "http://m1/v2r http://m2/pathp https://h3:9/v2rp http://127.0.0.1:7/v2rp* " },
        { "ghcr.io:443/x", "http://underscored/v2rp https://ghcr.io:443/v2rp* " },
    };
    error e;
    close(temp_dir(dir));
    put_hosts_toml(dir, "registry.k8s.io", "[host.\"http://127.0.0.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    put_hosts_toml(dir, "gcr.io", "server = \"http://127.0.0.1:7/\"\n[host.\"http://m1\"]\ncapabilities = [\"resolve\"]\n"
                   "[host.\"http://m2/path\"]\ncapabilities = [\"pull\"]\noverride_path = true\n[host.\"h3:9/v2\"]\n");
    put_hosts_toml(dir, "ghcr.io_443_", "[host.\"http://underscored\"]\n");
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF got = { 0 };
        CHECK_INT(hosts_for(dir, rows[i].image, &got, &e), 0);
        CHECK_TEXT(buf_view(&got), rows[i].want);
    }
    put_hosts_toml(dir, "_default", "[host.\"http://all\"]\n");
    OWNED_BUF got = { 0 };
    CHECK_INT(hosts_for(dir, "quay.io/x", &got, &e), 0);
    CHECK_TEXT(buf_view(&got), "http://all/v2rp https://quay.io/v2rp* ");
    CHECK_INT(hosts_for("/nonexistent", "quay.io/x", &got, &e), 0);
    tree_remove(AT_FDCWD, dir, &e);
}

/* Covers T28's part for this file: a broken one stops the pull and is named. */
TEST(hosts_toml_that_is_broken_stops_the_pull)
{
    static const char *const rows[] = { "server = ", "[host.\"ftp://x\"]\n", "[host.\"http://h/a b\"]\n",
                                        "[host.\"http://h\".header]\nx = \"a\\nb: c\"\n" };
    char dir[PATH_MAX];
    error e;
    close(temp_dir(dir));
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF got = { 0 };
        put_hosts_toml(dir, "reg.example", rows[i]);
        CHECK_INT(hosts_for(dir, "reg.example/x", &got, &e), -1);
        CHECK(strstr(e.text, "hosts.toml"));
    }
    tree_remove(AT_FDCWD, dir, &e);
}

/* -- the filter of system calls ------------------------------------------------------------------ */

/* What became of a child that filters itself as `role` and then does `act`: 0 if it came back, else
 * the signal that ended it. */
static int filtered(unsigned role, void (*act)(const void *), const void *arg)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        error e;
        struct rlimit none = { 0, 0 };
        setrlimit(RLIMIT_CORE, &none);
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (role_filter_set(role, &e) < 0) _exit(99);
        act(arg);
        syscall(SYS_exit_group, 0); /* before _exit(2) a sanitizer makes calls of its own */
    }
    if (pid < 0 || waitpid(pid, &status, 0) < 0) return -1;
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

typedef struct { const char *name; long number, args[4]; unsigned allowed; } call_row;

static void act_call(const void *arg)
{
    const call_row *c = arg;
    syscall(c->number, c->args[0], c->args[1], c->args[2], c->args[3], 0, 0);
}

/* The row of a call, and the roles that may make it with these arguments. */
#define CALL(name, allowed, ...) { #name, SYS_##name, { __VA_ARGS__ }, allowed }

/* What passes fails for its arguments, so that nothing happens. */
TEST(role_filter_kills_for_every_call_that_the_role_does_not_need)
{
    const unsigned R = ROLE_READ, A = ROLE_ARCHIVE, U = ROLE_UNPACK, F = ROLE_FETCH;
    const long bad = -1, thread = CLONE_VM | CLONE_THREAD; /* without CLONE_SIGHAND: EINVAL */
    const call_row rows[] = {
        CALL(read, R | A | U | F, bad), CALL(write, R | A | U | F, bad), CALL(close, R | A | U | F, bad),
        CALL(getpid, R | A | U | F, 0), CALL(mprotect, R | A | U | F, 0, 0, PROT_READ),
        CALL(mprotect, 0, 0, 0, PROT_READ | PROT_EXEC),
        CALL(mmap, 0, 0, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS),
        CALL(openat2, A | U, bad), CALL(openat, U | F, bad, 0, O_RDONLY),
        CALL(openat, U, bad, 0, O_WRONLY), CALL(openat, U, bad, 0, O_RDONLY | O_CREAT),
        CALL(pread64, A, bad), CALL(fchmod, U, bad), CALL(mknodat, U, bad), CALL(unlinkat, U, bad),
        CALL(fsetxattr, U, bad), CALL(fcntl, U, bad, F_GETFL), CALL(fcntl, 0, bad, F_SETOWN),
        CALL(socket, F, AF_INET, bad), CALL(socket, F, AF_INET6, bad), CALL(socket, 0, AF_UNIX, bad),
        CALL(socket, 0, AF_NETLINK, bad), CALL(socket, 0, 38 /* AF_ALG */, bad), CALL(connect, F, bad),
        CALL(bind, 0, bad), CALL(sendmsg, 0, bad), CALL(clone, U, thread),
        CALL(clone, 0, thread | CLONE_NEWNS), CALL(clone, 0, SIGCHLD), CALL(clone3, U, 0, 0),
        CALL(execve, 0, 0), CALL(execveat, 0, bad), CALL(mount, 0, 0), CALL(umount2, 0, 0),
        CALL(setns, 0, bad), CALL(unshare, 0, 0), CALL(chroot, 0, 0), CALL(pivot_root, 0, 0),
        CALL(fsopen, 0, 0), CALL(open_tree, 0, bad), CALL(move_mount, 0, bad), CALL(bpf, 0, bad),
        CALL(keyctl, 0, bad), CALL(ptrace, 0, bad), CALL(process_vm_writev, 0, bad),
        CALL(pidfd_open, 0, bad), CALL(pidfd_send_signal, 0, bad), CALL(kill, 0, 0x7FFFFFFF, 0),
        CALL(ioctl, 0, bad), CALL(prctl, 0, bad), CALL(seccomp, 0, bad), CALL(setuid, 0, 0),
        CALL(capset, 0, 0), CALL(perf_event_open, 0, 0), CALL(userfaultfd, 0, bad),
        CALL(open_by_handle_at, 0, bad), CALL(memfd_create, 0, 0), CALL(splice, 0, bad),
    };
    if (!ROLE_ARCH) SKIP("no filter for this architecture");
    for (size_t i = 0; i < COUNT(rows); i++)
        for (unsigned role = 1; role < ROLES_ALL; role <<= 1) {
            int want = rows[i].allowed & role ? 0 : SIGSYS, got = filtered(role, act_call, &rows[i]);
            if (got != want) fprintf(stderr, "role %u, row %zu, %s\n", role, i, rows[i].name);
            CHECK_INT(got, want);
        }
}

static void act_abort(const void *arg) { (void)arg; abort(); }
static void act_kill_parent(const void *arg)
{
    (void)arg;
    syscall(SYS_tgkill, 1, 1, 0);
}

TEST(role_filter_lets_a_role_abort_and_signal_nobody_else)
{
    if (!ROLE_ARCH) SKIP("no filter for this architecture");
    for (unsigned role = 1; role < ROLES_ALL; role <<= 1) {
        if (!ROLE_SANITIZED) CHECK_INT(filtered(role, act_abort, NULL), SIGABRT);
        CHECK_INT(filtered(role, act_kill_parent, NULL), SIGSYS);
    }
}

#ifdef __x86_64__
/* The call 20 of i386 is getpid, that of x86-64 writev, which is allowed. A kernel that knows no
 * i386 answers with SIGSEGV. */
static void act_as_i386(const void *arg)
{
    long number = 20;
    (void)arg;
    __asm__ volatile("int $0x80" : "+a"(number) : : "memory", "r8", "r9", "r10", "r11");
}
static void act_as_x32(const void *arg)
{
    (void)arg;
    syscall(0x40000000L | SYS_getpid);
}

TEST(role_filter_knows_only_the_calls_of_its_own_architecture)
{
    int got = filtered(ROLE_UNPACK, act_as_i386, NULL);
    CHECK(got == SIGSYS || got == SIGSEGV);
    CHECK_INT(filtered(ROLE_UNPACK, act_as_x32, NULL), SIGSYS);
}
#endif
