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
