/* Chapter 20: logins, hosts.toml. The fetch process itself is tested by chapter 26's tests, through the
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

/* "scheme(parameters)" of each challenge of a field. */
static void challenges_of(const char *field, buf *out)
{
    slice rest = slice_of(field), scheme, params;
    while (challenge_next(&rest, &scheme, &params))
        buf_printf(out, "%.*s(%.*s)", PR(scheme), PR(slice_trim(params)));
}

TEST(challenges_of_one_field_are_told_apart)
{
    static const struct { const char *field, *want; } rows[] = {
        { "Bearer realm=\"a\",service=\"b\"", "Bearer(realm=\"a\",service=\"b\")" },
        { "Basic realm=\"a\", Bearer realm=\"b\", service=c", "Basic(realm=\"a\")Bearer(realm=\"b\", service=c)" },
        { "bearer realm=\"a\",scope=\"x:y:pull,push\",BASIC realm=b", "bearer(realm=\"a\",scope=\"x:y:pull,push\")BASIC(realm=b)" },
        { "Negotiate, Basic realm=a", "Negotiate()Basic(realm=a)" },
        { "Basic,Bearer realm=a", "Basic()Bearer(realm=a)" },
        { "NTLM TlR/M+==, Bearer realm=a", "NTLM(TlR/M+==)Bearer(realm=a)" },
        { "Negotiate YII=, Digest nonce=\"x\", qop=\"auth, int\", Basic", "Negotiate(YII=)Digest(nonce=\"x\", qop=\"auth, int\")Basic()" },
        { "Basic realm=\"say \\\"hi\\\", Bearer realm=x\" , charset = \"UTF-8\"", "Basic(realm=\"say \\\"hi\\\", Bearer realm=x\" , charset = \"UTF-8\")" },
        { " ,, Basic realm=a ,, ,Bearer realm = \"b\",", "Basic(realm=a)Bearer(realm = \"b\")" },
        { "Bearer realm=\"no end, Basic realm=x", "Bearer(realm=\"no end, Basic realm=x)" },
        { "Bearer realm=\"a\\", "Bearer(realm=\"a\\)" },
        { "", "" }, { ",", "" }, { "=", "" }, { "\"Basic\"", "" }, { "Bearer", "Bearer()" }, { "Bearer =", "Bearer(=)" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF got = { 0 };
        challenges_of(rows[i].field, &got);
        CHECK_TEXT(buf_view(&got), rows[i].want);
    }
}

TEST(challenge_parameters_may_have_blanks_around_the_sign)
{
    OWNED_ARENA a = arena_make(64 * KIB);
    CHECK_TEXT(challenge_get(SLICE("realm = \"x y\" , service= z"), "realm", &a), "x y");
    CHECK_TEXT(challenge_get(SLICE("realm = \"x y\" , service= z"), "SERVICE", &a), "z");
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
        { "127.0.0.1.example/x", "https://127.0.0.1.example/v2rp* " }, /* somebody's name, not ours */
        { "registry.k8s.io/pause:1", "http://127.0.0.1:5000/v2rp https://registry.k8s.io/v2rp* " },
        { "gcr.io/x", "http://m1/v2r http://m2/pathp https://h3:9/v2rp http://127.0.0.1:7/v2rp* " },
        { "mixed.example/x", "http://m1/v2rp http://m2/v2p https://mixed.example/v2rp* " },
        { "ghcr.io:443/x", "http://underscored/v2rp https://ghcr.io:443/v2rp* " },
        { "own.example/x", "https://own.example:443/v2rp* http://own.example/v2rp https://own.example:1/v2rp https://own.example/v2rp* " },
    };
    error e;
    close(temp_dir(dir));
    put_hosts_toml(dir, "registry.k8s.io", "[host.\"http://127.0.0.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    put_hosts_toml(dir, "gcr.io", "server = \"http://127.0.0.1:7/\"\n[host.\"http://m1\"]\ncapabilities = [\"resolve\"]\n"
                   "[host.\"http://m2/path\"]\ncapabilities = [\"pull\"]\noverride_path = true\n[host.\"h3:9/v2\"]\ncapabilities = []\n");
    put_hosts_toml(dir, "own.example", "[host.\"https://own.example:443\"]\n[host.\"http://own.example\"]\n[host.\"https://own.example:1\"]\n");
    put_hosts_toml(dir, "mixed.example", "[host.\"http://m1\"]\ncapabilities = [\"Pull\", \"RESOLVE\"]\n" /* case: as containerd */
                   "[host.\"http://m2\"]\ncapabilities = [\"pull\", \"push\", \"resolv\"]\n");
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

/* What the settings of one host are after reading: all that has to do with TLS and time, in a line. */
static void host_settings(const FetchHost *h, buf *out)
{
    for (size_t i = 0; i < h->ca.n; i++) buf_printf(out, "ca=%.*s ", PR(h->ca.p[i]));
    if (h->cert.n) buf_printf(out, "cert=%.*s ", PR(h->cert));
    if (h->key.n) buf_printf(out, "key=%.*s ", PR(h->key));
    if (h->dir.n) buf_printf(out, "dir=%.*s ", PR(h->dir));
    if (h->skip_verify) buf_str(out, "skip ");
    if (h->dial_timeout) buf_printf(out, "dial=%" PRIu64 " ", h->dial_timeout);
    for (size_t i = 0; i < h->headers.n; i++)
        buf_printf(out, "%.*s=[%.*s] ", PR(h->headers.p[i].key), PR(h->headers.p[i].value));
}

TEST(hosts_toml_has_containerds_other_settings)
{
    static const struct { const char *toml, *want; } rows[] = {
        { "ca = \"/a.pem\"", "ca=/a.pem " },
        { "ca = [\"/a.pem\", \"b.pem\"]", "ca=/a.pem ca=b.pem dir=$ " },
        { "ca = \"@/b.pem\"", "ca=b.pem dir=$ " },
        { "ca = []", "" },
        { "client = \"/me.pem\"", "cert=/me.pem " },
        { "client = [\"me.pem\", \"/other.pem\"]", "cert=me.pem dir=$ " },
        { "client = [[\"/me.cert\", \"/me.key\"], [\"/x\", \"\"]]", "cert=/me.cert key=/me.key " },
        { "client = [[\"/me.pem\", \"\"]]", "cert=/me.pem " },
        { "skip_verify = true", "skip " },
        { "dial_timeout = \"5s\"", "dial=5000000000 " },
        { "dial_timeout = \"1m0.5s\"", "dial=60500000000 " },
        { "dial_timeout = \"500ms\"", "dial=500000000 " },
        { "header = { a = [\"1\", \"2\"], b = \"3\" }", "a=[1, 2] b=[3] " },
        { "some_key_of_tomorrow = 1", "" },
    };
    char dir[PATH_MAX];
    error e = { 0 };
    close(temp_dir(dir));
    for (size_t i = 0; i < COUNT(rows); i++) {
        image_ref ref;
        FetchSetup setup = { 0 };
        OWNED_BUF got = { 0 }, want = { 0 }, toml = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        buf_str(&toml, "[host.\"http://h\"]\n");
        for (const char *p = rows[i].toml; *p; p++)
            if (*p == '@') buf_printf(&toml, "%s/reg.example:5000", dir);
            else buf_byte(&toml, (uint8_t)*p);
        put_hosts_toml(dir, "reg.example:5000", arena_str(&a, buf_view(&toml)));
        CHECK_INT(image_ref_parse(SLICE("reg.example:5000/x"), &a, &ref, &e), 0);
        CHECK_INT(registry_hosts(dir, &ref, &a, &setup, &e), 0);
        host_settings(&setup.hosts.p[0], &got);
        for (const char *p = rows[i].want; *p; p++)
            if (*p == '$') buf_printf(&want, "%s/reg.example:5000", dir);
            else buf_byte(&want, (uint8_t)*p);
        buf_byte(&want, '\0');
        CHECK_TEXT(buf_view(&got), (char *)want.p);
        CHECK_INT(setup.hosts.n, 2);
    }
    tree_remove(AT_FDCWD, dir, &e);
}

TEST(hosts_toml_settings_that_are_wrong_are_named)
{
    static const struct { const char *toml, *text; } rows[] = {
        { "ca = 1", "ca: " }, { "ca = \"/a:/b\"", "/a:/b" }, { "client = [[\"/a\"]]", "client has 1 paths" },
        { "client = [[]]", "client has 0 paths" }, { "client = [1]", "client: " }, { "dial_timeout = \"soon\"", "dial_timeout \"soon\"" },
        { "dial_timeout = 5", "dial_timeout" }, { "dial_timeout = \"5\"", "dial_timeout" }, { "dial_timeout = \"99h\"", "dial_timeout" },
        { "dial_timeout = \"1s-\"", "dial_timeout" }, { "dial_timeout = \"\"", "dial_timeout" },
    };
    char dir[PATH_MAX];
    error e = { 0 };
    close(temp_dir(dir));
    for (size_t i = 0; i < COUNT(rows); i++) {
        OWNED_BUF got = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        put_hosts_toml(dir, "reg.example", arena_printf(&a, "[host.\"http://h\"]\n%s\n", rows[i].toml));
        CHECK_INT(hosts_for(dir, "reg.example/x", &got, &e), -1);
        CHECK(strstr(e.text, rows[i].text) && strstr(e.text, "reg.example/hosts.toml"));
    }
    tree_remove(AT_FDCWD, dir, &e);
}

TEST(hosts_toml_unknown_keys_are_told_once)
{
    CHECK(hosts_is_news("/certs.d/a", SLICE("colour")));
    CHECK(!hosts_is_news("/certs.d/a", SLICE("colour")));
    CHECK(hosts_is_news("/certs.d/b", SLICE("colour")));
}

TEST(retry_after_is_seconds_or_a_date)
{
    static const struct { const char *value; int64_t seconds; } rows[] = {
        { "0", 0 }, { "7", 7 }, { "1000000000", 1000000000 }, { "99999999999", 1000000000 },
        { "Wed, 21 Oct 2015 07:28:00 GMT", 20 }, { "Wed, 21 Oct 2015 07:27:00 GMT", 0 },
        { "", 0 }, { "soon", 0 }, { "-1", 0 }, { "Wed, 21 Oct 2015 07:28:00 GMT and more", 0 },
        { "Wed, 99 Oct 2015 07:28:00 GMT", 0 },
    };
    int64_t now = INT64_C(1445412460) * NS_PER_SEC; /* 07:27:40 of that day */
    for (size_t i = 0; i < COUNT(rows); i++)
        CHECK_INT(retry_wait(slice_of(rows[i].value), now), rows[i].seconds * NS_PER_SEC);
}

TEST(auth_file_has_the_longest_key_that_fits)
{
    static const char file[] =
        "{\"auths\":{\"reg.example\":{\"auth\":\"aDpw\"},\"reg.example/team\":{\"username\":\"t\",\"password\":\"p\"},"
        "\"reg.example/team/app\":{\"identitytoken\":\"i\"},\"https://old.example/v1/\":{\"auth\":\"bzpw\"},"
        "\"https://index.docker.io/v1/\":{\"auth\":\"ZDpw\"},\"docker.io/library/busybox\":{\"registrytoken\":\"r\"},"
        "\"localhost:5000\":{\"auth\":\"bDpw\"},\"empty.example\":{},\"UPPER.example\":{\"auth\":\"dTpw\"}},\"credsStore\":\"x\"}";
    static const struct { const char *image, *want; } rows[] = { /* want "": there are none */
        { "reg.example/x", "aDpw" }, { "reg.example/team/x", "t" }, { "reg.example/teams/x", "aDpw" },
        { "reg.example/team", "t" }, { "reg.example/team/app:1", "i" }, { "reg.example/team/app/sub", "i" },
        { "old.example/x", "bzpw" }, { "alpine", "ZDpw" }, { "busybox", "r" }, { "user/busybox", "ZDpw" },
        { "localhost:5000/x", "bDpw" }, { "localhost:5001/x", "" }, { "localhost/x", "" }, { "other.example/x", "" },
        { "sub.reg.example/x", "" }, { "empty.example/x", "" }, { "upper.example/x", "dTpw" },
    };
    OWNED_ARENA a = arena_make(MIB);
    error e = { 0 };
    const json *tree = json_parse(SLICE(file), &a, &e);
    for (size_t i = 0; i < COUNT(rows); i++) {
        image_ref ref;
        AuthConfig auth = { 0 };
        CHECK_INT(image_ref_parse(slice_of(rows[i].image), &a, &ref, &e), 0);
        CHECK_INT(auth_file_find(tree, &ref, &auth, &e), rows[i].want[0] ? 1 : 0);
        slice got = auth.auth.n ? auth.auth : auth.username.n ? auth.username : auth.identity_token.n ? auth.identity_token : auth.registry_token;
        CHECK_TEXT(got, rows[i].want);
    }
}

TEST(auth_file_that_is_broken_is_refused_and_not_shown)
{
    static const struct { const char *text; int code; } rows[] = {
        { "{\"auths\":{\"reg.example\":{\"auth\":\"!secret\"}}}", GRPC_INVALID_ARGUMENT },
        { "{\"auths\":{\"reg.example\":{\"auth\":\"c2VjcmV0\"}}}", GRPC_INVALID_ARGUMENT }, /* no colon */
        { "{\"auths\":[]}", GRPC_INVALID_ARGUMENT }, { "[\"secret\"]", GRPC_INVALID_ARGUMENT },
        { "secret", GRPC_INVALID_ARGUMENT }, { "", GRPC_INVALID_ARGUMENT }, { NULL, GRPC_NOT_FOUND },
    };
    char dir[PATH_MAX], path[PATH_MAX + 16];
    error e = { 0 };
    OWNED_FD at = temp_dir(dir);
    snprintf(path, sizeof path, "%s/auth.json", dir);
    for (size_t i = 0; i < COUNT(rows); i++) {
        image_ref ref;
        AuthConfig auth;
        OWNED_ARENA a = arena_make(MIB);
        unlink(path);
        if (rows[i].text) CHECK_INT(file_replace(at, "auth.json", slice_of(rows[i].text), ATOMIC, &e), 0);
        CHECK_INT(image_ref_parse(SLICE("reg.example/x"), &a, &ref, &e), 0);
        const json *tree = auth_file_load(path, &a, &e);
        if (tree) CHECK_INT(auth_file_find(tree, &ref, &auth, &e), -1);
        CHECK_INT(e.code, rows[i].code);
        CHECK(!strstr(e.text, "secret") && !strstr(e.text, "c2VjcmV0"));
    }
    tree_remove(AT_FDCWD, dir, &e);
}

TEST(auth_of_a_request_is_for_the_server_that_it_names)
{
    static const struct { const char *image, *server; bool is; } rows[] = {
        { "reg.example/x", "", true }, { "reg.example/x", "reg.example", true }, { "reg.example/x", "https://reg.example", true },
        { "reg.example/x", "https://reg.example/v2/", true }, { "reg.example/x", "https://REG.example/", true },
        { "reg.example/x", "other.example", false }, { "reg.example/x", "https://reg.example.evil.com", false },
        { "reg.example/x", "reg.example:5000", false }, { "reg.example:5000/x", "http://reg.example:5000", true },
        { "busybox", "https://index.docker.io/v1/", true }, { "busybox", "docker.io", true }, { "busybox", "registry-1.docker.io", true },
        { "reg.example/x", "https://index.docker.io/v1/", false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        image_ref ref;
        error e = { 0 };
        FetchSetup setup = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        AuthConfig auth = { .username = SLICE("u"), .server_address = slice_of(rows[i].server) };
        CHECK_INT(image_ref_parse(slice_of(rows[i].image), &a, &ref, &e), 0);
        CHECK_INT(registry_hosts(NULL, &ref, &a, &setup, &e), 0);
        if (auth_is_for(&auth, &setup) != rows[i].is) fprintf(stderr, "row %zu\n", i);
        CHECK(auth_is_for(&auth, &setup) == rows[i].is);
    }
}

static void request_of(http_request *q, const char *url, const http_proxy *via, arena *a, buf *out)
{
    error e;
    static url_parts u;
    CHECK_INT(url_parse(slice_of(url), a, &u, &e), 0);
    q->to = &u;
    out->n = 0;
    http_write_request(q, via, out);
    buf_byte(out, '\0');
}

/* A proxy's password is for the proxy: inside a tunnel nobody sees it. */
TEST(http_request_has_the_form_that_a_proxy_wants)
{
    OWNED_ARENA a = arena_make(64 * KIB);
    OWNED_BUF out = { 0 };
    http_proxy none = { .at.host = "" }, via;
    http_request q = { .authorization = "Bearer t", .offset = 7 };
    error e;
    CHECK_INT(proxy_parse(SLICE("http://u:p@proxy:3128"), &via, &e), 0);
    request_of(&q, "http://h:5000/v2/?a=b", &none, &a, &out);
    CHECK(slice_starts(buf_view(&out), "GET /v2/?a=b HTTP/1.1\r\nHost: h:5000\r\n"));
    CHECK(strstr((char *)out.p, "\r\nAuthorization: Bearer t\r\n") && strstr((char *)out.p, "\r\nRange: bytes=7-\r\n"));
    CHECK(!strstr((char *)out.p, "Proxy-"));
    request_of(&q, "http://h:5000/v2/?a=b", &via, &a, &out);
    CHECK(slice_starts(buf_view(&out), "GET http://h:5000/v2/?a=b HTTP/1.1\r\nHost: h:5000\r\n"));
    CHECK(strstr((char *)out.p, "\r\nProxy-Authorization: Basic dTpw\r\n"));
    request_of(&q, "https://h/v2/", &via, &a, &out);
    CHECK(slice_starts(buf_view(&out), "GET /v2/ HTTP/1.1\r\nHost: h\r\n"));
    CHECK(!strstr((char *)out.p, "Proxy-"));
}

TEST(tls_helper_is_told_host_and_port_where_it_wants_them)
{
    static const struct { const char *words, *host, *want; } rows[] = {
        { "/tls -v", "h", "/tls|-v|h|443|" }, { "/tls -connect %h:%p", "h", "/tls|-connect|h:443|" },
        { "/tls -connect %h:%p", "::1", "/tls|-connect|[::1]:443|" }, { "/tls %h %p", "::1", "/tls|::1|443|" },
        { "/tls --host=%h --pct=%%x%", "h", "/tls|--host=h|--pct=%%x%|" }, { "/tls", "::1", "/tls|::1|443|" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char *argv[TLS_WORDS + 3];
        slice words[4];
        error e;
        FetchSetup s = { .tls_helper.p = words };
        tls_peer to = { .host = rows[i].host, .port = 443 };
        OWNED_ARENA a = arena_make(64 * KIB);
        OWNED_BUF got = { 0 };
        for (slice rest = slice_of(rows[i].words); rest.n;) words[s.tls_helper.n++] = slice_cut(&rest, ' ');
        CHECK_INT(tls_arguments(&s, &to, &a, argv, &e), 0);
        for (char **p = argv; *p; p++) buf_printf(&got, "%s|", *p);
        CHECK_TEXT(buf_view(&got), rows[i].want);
    }
}

/* R11: a client certificate is shown to the host that it is for; what to believe holds for all. */
TEST(tls_helper_has_the_settings_of_hosts_toml)
{
    slice ca[] = { SLICE("/a.pem"), SLICE("/b.pem") };
    FetchHost h = { .ca = { ca, 2 }, .cert = SLICE("/c"), .key = SLICE("/k"), .skip_verify = true };
    FetchHost plain = { 0 };
    static const struct { bool plain, show, tunnel; const char *want; } rows[] = {
        { false, true, false, "KRUN_TLS_CA=/a.pem:/b.pem KRUN_TLS_CERT=/c KRUN_TLS_KEY=/k KRUN_TLS_SKIP_VERIFY=1 " },
        { false, false, true, "KRUN_TLS_FD=3 KRUN_TLS_CA=/a.pem:/b.pem KRUN_TLS_SKIP_VERIFY=1 " },
        { true, true, false, "" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char *env[8];
        tls_peer to = { "h", 443, rows[i].plain ? &plain : &h, rows[i].show };
        OWNED_ARENA a = arena_make(64 * KIB);
        OWNED_BUF got = { 0 };
        tls_environment(&to, rows[i].tunnel, &a, env);
        for (char **p = env + 1; *p; p++) buf_printf(&got, "%s ", *p);
        CHECK_TEXT(buf_view(&got), rows[i].want);
    }
}

TEST(hosts_directory_without_hosts_toml_may_have_dockers_files)
{
    static const char *const files[] = { "b.crt", "a.crt", "z.cert", "me.cert", "me.key", "x:y.crt", "readme" };
    char dir[PATH_MAX], path[PATH_MAX + 64];
    image_ref ref;
    FetchSetup setup = { 0 };
    error e = { 0 };
    OWNED_BUF got = { 0 };
    OWNED_ARENA a = arena_make(MIB);
    close(temp_dir(dir));
    put_hosts_toml(dir, "_default", "[host.\"http://all\"]\n");
    snprintf(path, sizeof path, "%s/reg.example:5000", dir);
    mkdir(path, 0700);
    CHECK_INT(image_ref_parse(SLICE("reg.example:5000/x"), &a, &ref, &e), 0);
    CHECK_INT(registry_hosts(dir, &ref, &a, &setup, &e), 0);
    CHECK_INT(setup.hosts.n, 2); /* an empty directory is none */
    OWNED_FD at = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; i < COUNT(files); i++) CHECK_INT(file_replace(at, files[i], SLICE("x"), ATOMIC, &e), 0);
    CHECK_INT(registry_hosts(dir, &ref, &a, &setup, &e), 0);
    CHECK_INT(setup.hosts.n, 1);
    CHECK_INT(setup.hosts.p[0].ca.n, 2);
    setup.hosts.p[0].ca.n = 0;
    host_settings(&setup.hosts.p[0], &got);
    CHECK_TEXT(buf_view(&got), arena_printf(&a, "cert=me.cert key=me.key dir=%s ", path));
    CHECK(setup.hosts.p[0].credentials && setup.hosts.p[0].pull && setup.hosts.p[0].resolve);
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
    const unsigned A = ROLE_ARCHIVE, U = ROLE_UNPACK, F = ROLE_FETCH, P = ROLE_PACK, S = ROLE_SEAL,
                   R = ROLE_REMOVE;
    const long bad = -1, thread = CLONE_VM | CLONE_THREAD; /* without CLONE_SIGHAND: EINVAL */
    const call_row rows[] = {
        CALL(read, ROLES_ALL, bad), CALL(write, ROLES_ALL, bad), CALL(close, ROLES_ALL, bad),
        CALL(getpid, ROLES_ALL, 0), CALL(mprotect, ROLES_ALL, 0, 0, PROT_READ),
        CALL(mprotect, 0, 0, 0, PROT_READ | PROT_EXEC),
        CALL(mmap, 0, 0, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS),
        CALL(openat2, A | U | P | R, bad), CALL(openat, U | F | S | R, bad, 0, O_RDONLY),
        CALL(openat, U, bad, 0, O_WRONLY), CALL(openat, U, bad, 0, O_RDONLY | O_CREAT),
        CALL(pread64, U | A, bad), CALL(fgetxattr, P, bad), CALL(getdents64, U | P | S | R, bad),
        CALL(fchmod, U, bad), CALL(mknodat, U, bad), CALL(unlinkat, U | R, bad),
        CALL(renameat2, 0, bad), CALL(linkat, U, bad), CALL(symlinkat, U, 0),
        CALL(fsetxattr, U, bad), CALL(fcntl, U | P | S | R, bad, F_GETFL), CALL(fcntl, 0, bad, F_SETOWN),
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

static void act_log(const void *arg)
{
    (void)arg;
    log_least = LOG_WARN; /* of this process only */
    log_warn("a line of a role");
}

TEST(role_filter_lets_a_role_write_to_the_log)
{
    if (!ROLE_ARCH) SKIP("no filter for this architecture");
    tzset(); /* as role_filter does */
    for (unsigned role = 1; role < ROLES_ALL; role <<= 1) {
        char said[200] = "";
        OWNED_FD file = memfd_create("stderr", MFD_CLOEXEC), kept = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
        dup2(file, STDERR_FILENO);
        int status = filtered(role, act_log, NULL);
        dup2(kept, STDERR_FILENO);
        CHECK_INT(status, 0);
        CHECK(pread(file, said, sizeof said - 1, 0) > 0 && strstr(said, "a line of a role\n"));
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
