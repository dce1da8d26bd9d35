/* Chapter 18: references, URLs, names, HTTP replies. */

/* Covers T29. */
TEST(image_ref_knows_good_names_from_bad)
{
    static const struct { const char *given, *full; } rows[] = { /* full NULL: refused */
        { "busybox", "docker.io/library/busybox:latest" },
        { "busybox:1.36", "docker.io/library/busybox:1.36" },
        { "library/busybox", "docker.io/library/busybox:latest" },
        { "index.docker.io/library/busybox", "docker.io/library/busybox:latest" },
        { "docker.io/busybox", "docker.io/library/busybox:latest" },
        { "user/app:v1", "docker.io/user/app:v1" },
        { "localhost/app", "localhost/app:latest" },
        { "localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x" },
        { "127.0.0.1:5000/app", "127.0.0.1:5000/app:latest" },
        { "[::1]:5000/app:1", "[::1]:5000/app:1" },
        { "[::1]/app:1", "[::1]/app:1" },
        { "registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10" },
        { "a.b/c__d/e-f---g.h:T_a.g-1", "a.b/c__d/e-f---g.h:T_a.g-1" },
        { "x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
          "docker.io/library/x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" },
        { "x:1@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
          "docker.io/library/x@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" },
        { "", NULL }, { ":tag", NULL }, { "x:", NULL }, { "x@", NULL }, { "x@sha256:ab", NULL },
        { "x@md5:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", NULL },
        { "x@sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", NULL },
        { "Upper", NULL }, { "HOST.io/x", NULL }, { "host:99999/x", NULL }, { "host:0/x", NULL },
        { "host:/x", NULL }, { "a//b", NULL }, { "a/", NULL }, { "/a", NULL }, { "../x", NULL },
        { "a/../b", NULL }, { "a..b", NULL }, { "a___b", NULL }, { "-a", NULL }, { "a-", NULL },
        { "a b", NULL }, { "a\nb", NULL }, { "http://host/x", NULL }, { "x:tag/y", NULL },
        { "host..io/x", NULL }, { "-host.io/x", NULL }, { "[::g]:1/x", NULL }, { "[::1/x", NULL },
        { "x:-tag", NULL }, { "x:t\x01", NULL }, { "\xff", NULL },
        { "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", NULL },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        image_ref ref;
        error e = { 0 };
        OWNED_ARENA a = arena_make(64 * KIB);
        slice given = at_page_end(rows[i].given, strlen(rows[i].given));
        int got = image_ref_parse(given, &a, &ref, &e);
        if ((got == 0) != (rows[i].full != NULL)) fprintf(stderr, "row %zu: %s\n", i, rows[i].given);
        CHECK_INT(got, rows[i].full ? 0 : -1);
        if (got == 0 && rows[i].full) CHECK_TEXT(ref.full, rows[i].full);
        if (got < 0) CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    }
}

static int ref_of(const char *prefix, size_t n, const char *suffix, image_ref *out, arena *a, error *e)
{
    char *text = malloc(n + 1);
    memset(text, 'a', n);
    text[n] = '\0';
    int got = image_ref_parse(slice_of(arena_printf(a, "%s%s%s", prefix, text, suffix)), a, out, e);
    free(text);
    return got;
}

/* Covers T29. */
TEST(image_ref_has_limits)
{
    image_ref ref;
    error e;
    OWNED_ARENA a = arena_make(8 * MIB);
    CHECK_INT(ref_of("h.io/", 250, "", &ref, &a, &e), 0);
    CHECK_INT(ref_of("h.io/", 251, "", &ref, &a, &e), -1);
    CHECK_INT(ref_of("x:", 128, "", &ref, &a, &e), 0);
    CHECK_INT(ref_of("x:", 129, "", &ref, &a, &e), -1);
    CHECK_INT(ref_of("x", MIB, "", &ref, &a, &e), -1);
    CHECK(strlen(e.text) < 200);
}

/* Found by fuzzing: strchr(3) takes a NUL for one of any set, and printf's %s ends at one. Covers
 * T29. */
TEST(names_have_no_nul_in_them)
{
    static const struct { const char *text; size_t n; } rows[] = {
        { "x:a\0b", 5 }, { "x:\0", 3 }, { "x\0", 2 }, { "h.io\0/x", 7 }, { "x\0:a", 4 },
        { "[::1\0]:50/x", 11 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        image_ref ref;
        error e = { 0 };
        OWNED_ARENA a = arena_make(64 * KIB);
        CHECK_INT(image_ref_parse(at_page_end(rows[i].text, rows[i].n), &a, &ref, &e), -1);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    }
    OWNED_BUF out = { 0 };
    url_escape(&out, SLICE("a\0~"));
    CHECK_TEXT(buf_view(&out), "a%00~");
    CHECK(!cni_name_valid(SLICE("net\0")));
}

TEST(url_refuses_what_could_end_a_request_line)
{
    static const struct { const char *given, *host, *path; int port; } rows[] = {
        { "http://a/b", "a", "/b", 80 },
        { "https://A.b:444/x?y=z#frag", "A.b", "/x?y=z", 444 },
        { "http://[::1]:5000", "::1", "/", 5000 },
        { "http://h?q", "h", "/?q", 80 },
        { "ftp://h/", NULL, NULL, 0 }, { "file:///etc/passwd", NULL, NULL, 0 }, { "http://", NULL, NULL, 0 },
        { "http://u:p@h/", NULL, NULL, 0 }, { "http://h/a b", NULL, NULL, 0 },
        { "http://h/a\r\nX: y", NULL, NULL, 0 }, { "http://h:70000/", NULL, NULL, 0 },
        { "http://h\\x/", NULL, NULL, 0 }, { "http://h:1:2/", NULL, NULL, 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        url_parts u;
        error e;
        OWNED_ARENA a = arena_make(64 * KIB);
        int got = url_parse(at_page_end(rows[i].given, strlen(rows[i].given)), &a, &u, &e);
        CHECK_INT(got, rows[i].host ? 0 : -1);
        if (got < 0 || !rows[i].host) continue;
        CHECK_TEXT(slice_of(u.host), rows[i].host);
        CHECK_TEXT(slice_of(u.path), rows[i].path);
        CHECK_INT(u.port, rows[i].port);
    }
}

TEST(url_follows_a_location_as_the_rfc_says)
{
    static const struct { const char *location, *host, *path; bool tls; } rows[] = {
        { "/new", "h", "/new", true }, { "//other/x", "other", "/x", true }, { "http://p/q", "p", "/q", false },
        { "relative", NULL, NULL, false }, { "", NULL, NULL, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        url_parts base, u;
        error e;
        OWNED_ARENA a = arena_make(64 * KIB);
        CHECK_INT(url_parse(SLICE("https://h/v2/"), &a, &base, &e), 0);
        int got = url_follow(&base, slice_of(rows[i].location), &a, &u, &e);
        CHECK_INT(got, rows[i].host ? 0 : -1);
        if (got < 0) continue;
        CHECK_TEXT(slice_of(u.host), rows[i].host);
        CHECK_TEXT(slice_of(u.path), rows[i].path);
        CHECK(u.tls == rows[i].tls);
    }
}

TEST(dns_config_reads_resolv_conf)
{
    dns_config c = dns_config_parse(SLICE("# a comment\nnameserver 10.0.0.1\nnameserver ::1\nnameserver bad\n"
                                          "search one.example two.example\noptions ndots:5 timeout:1 attempts:3 x:y\n"));
    CHECK_INT(c.nservers, 2);
    CHECK_INT(c.ndots, 5);
    CHECK_INT(c.tries, 3);
    CHECK_INT(c.nsearch, 2);
    CHECK_TEXT(slice_of(c.search[1]), "two.example");
    CHECK_INT(dns_config_parse((slice){ NULL, 0 }).nservers, 1);
}

TEST(hosts_file_gives_all_addresses_of_a_name)
{
    ip_addresses out = { 0 };
    hosts_find(SLICE("127.0.0.1 localhost\n10.1.2.3\treg.example  Reg # reg2\n::1 reg\nnonsense reg"), "reg", 80, &out);
    CHECK_INT(out.n, 2);
}

/* A reply to the question, with its answer section as given. */
static slice dns_reply_to(const dns_question *q, const char *answers, size_t n, unsigned count, uint8_t flags, buf *out)
{
    out->n = 0;
    buf_add(out, q->packet, q->n);
    out->p[2] = (uint8_t)(0x80 | flags);
    out->p[3] = 0x80;
    out->p[7] = (uint8_t)count;
    buf_add(out, answers, n);
    return at_page_end(out->p, out->n);
}

/* Covers T44. */
TEST(dns_takes_addresses_and_no_more_than_the_reply_holds)
{
    static const char cname_then_a[] = "\300\014\000\005\000\001\000\000\000\001\000\002\300\014"
                                       "\300\014\000\001\000\001\000\000\000\001\000\004\012\001\002\003";
    static const struct { const char *answers; size_t n; unsigned count; int addresses; } rows[] = {
        { cname_then_a, sizeof cname_then_a - 1, 2, 1 },
        { cname_then_a, sizeof cname_then_a - 2, 2, 0 },       /* cut in the address */
        { "\300", 1, 1, 0 }, { "\100", 1, 255, 0 }, { "", 0, 255, 0 },
        { "\077abc", 4, 1, 0 },                                /* a label longer than what follows */
        { "\000\000\001\000\001\000\000\000\001\377\377\001", 12, 1, 0 }, /* a length of 65535 */
        { "\000\000\001\000\001\000\000\000\001\000\003\001\002\003", 14, 1, 0 }, /* an A of 3 bytes */
    };
    dns_question q;
    OWNED_BUF reply = { 0 };
    CHECK(dns_ask("reg.example", DNS_A, &q));
    CHECK_INT(q.n, 12 + 13 + 4);
    for (size_t i = 0; i < COUNT(rows); i++) {
        ip_addresses out = { 0 };
        dns_question again = q;
        CHECK(dns_take_reply(dns_reply_to(&q, rows[i].answers, rows[i].n, rows[i].count, 0, &reply), &again, 80, &out));
        CHECK_INT(out.n, rows[i].addresses);
        CHECK(again.answered);
    }
    ip_addresses out = { 0 };
    dns_question other = q;
    other.packet[0] ^= 1;
    slice good = dns_reply_to(&q, cname_then_a, sizeof cname_then_a - 1, 2, 0, &reply);
    CHECK(!dns_take_reply(good, &other, 80, &out)); /* another id */
    other = q;
    other.packet[q.n - 3] = DNS_AAAA;
    CHECK(!dns_take_reply(good, &other, 80, &out)); /* another type of the same name */
    for (size_t n = 0; n < q.n; n++) CHECK(!dns_take_reply((slice){ good.p, n }, &q, 80, &out));
    dns_take_reply(dns_reply_to(&q, "", 0, 0, 2, &reply), &q, 80, &out);
    CHECK(q.truncated && !q.answered);
    CHECK(!dns_ask("a..b", DNS_A, &q));
}

/* Covers T44: nobody answers; bounded time. */
TEST(dns_gives_up_on_silent_servers)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    OWNED_FD silent = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(bind(silent, (struct sockaddr *)&at, size) == 0 && getsockname(silent, (struct sockaddr *)&at, &size) == 0);
    dns_config c = { .nservers = 1, .ndots = 1, .tries = 2, .wait = 50 * NS_PER_MS };
    ip_addresses out = { 0 };
    error e;
    memcpy(&c.servers[0].v4, &at, sizeof at);
    int64_t start = clock_mono();
    CHECK_INT(dns_resolve(&c, "no.example", 80, &out, &e), -1);
    CHECK_INT(e.code, GRPC_UNAVAILABLE);
    CHECK(strstr(e.text, "no.example"));
    CHECK(clock_mono() - start < 5 * NS_PER_SEC);
}

/* Parses one raw reply as if a server had sent it and closed. */
static int http_reply_of(slice raw, http_reply *r, buf *body, error *e)
{
    int pair[2];
    static http_conn c;
    OWNED_ARENA a = arena_make(MIB);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) abort();
    int big = 4 * MIB;
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
    if (raw.n && send(pair[1], raw.p, raw.n, 0) < 0) abort();
    close(pair[1]);
    c = (http_conn){ .fd = pair[0], .carrier = -1, .says = -1 };
    int got = http_read_head(&c, &a, r, e);
    if (got == 0) got = http_body_all(&c, r, 1000, body, e);
    close(pair[0]);
    return got;
}

/* Covers T41: what a reply may be. */
TEST(http_reply_is_strict_about_where_it_ends)
{
    static const struct { const char *raw; int want; const char *body; } rows[] = {
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore", 0, "ok" },
        { "HTTP/1.1 200 OK\r\ncontent-length:2\r\nConnection: close\r\n\r\nok", 0, "ok" },
        { "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0, "" },
        { "HTTP/1.0 200 OK\r\n\r\nuntil close", 0, "until close" },
        { "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 0, "x" },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n", 0, "abcde" },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok", 0, "ok" },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked ,\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 0, "" },
        { "HTTP/1.1 103 Early\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nHTTP/1.1 204 No\r\n\r\n", 0, "" },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0003 ; a=\"b;c\"\r\nabc\r\n0;x\r\nA: b\r\nC: d\r\n\r\n", 0, "abc" },
        { "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", -1, NULL },
        { "HTTP/1.1 2000\r\nContent-Length: 0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 020 OK\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2;3\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nA: b\r\n Content-Length: 2\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nA: b\rContent-Length: 2\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nA b: c\r\nContent-Length: 2\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n", -1, NULL },
        { "", -1, NULL },
        { "SSH-2.0-x\r\n\r\n", -1, NULL },
        { "HTTP/2 200 OK\r\n\r\n", -1, NULL },
        { "HTTP/1.1 abc\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", -1, NULL },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\nabc", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\n: x\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nA : x\r\n\r\n", -1, NULL },
        { "HTTP/1.1 200 OK\r\nA: x", -1, NULL },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        http_reply r;
        error e = { 0 };
        OWNED_BUF body = { 0 };
        int got = http_reply_of(slice_of(rows[i].raw), &r, &body, &e);
        if (got != rows[i].want) fprintf(stderr, "row %zu: %s\n", i, e.text);
        CHECK_INT(got, rows[i].want);
        if (got == 0 && rows[i].body) CHECK_TEXT(buf_view(&body), rows[i].body);
    }
}

/* Wherever a reply is cut off, it is the connection that failed, and not the peer that broke a rule. */
TEST(http_reply_that_is_cut_off_may_be_tried_again)
{
    static const char *const whole[] = {
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nA: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    };
    for (size_t i = 0; i < COUNT(whole); i++)
        for (size_t n = 0; n < strlen(whole[i]); n++) {
            http_reply r;
            error e = { 0 };
            OWNED_BUF body = { 0 };
            CHECK_INT(http_reply_of((slice){ (const uint8_t *)whole[i], n }, &r, &body, &e), -1);
            CHECK_INT(e.code, GRPC_UNAVAILABLE);
            CHECK(body.n <= 5 && !memcmp("abcde", body.n ? body.p : (uint8_t *)"", body.n));
        }
}

/* The bytes of a chunk are given before its end is looked for, which may be lost. */
TEST(http_body_gives_all_bytes_that_have_come)
{
    static const char cut[] = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc";
    http_reply r;
    error e = { 0 };
    OWNED_BUF body = { 0 };
    CHECK_INT(http_reply_of(SLICE(cut), &r, &body, &e), -1);
    CHECK_TEXT(buf_view(&body), "abc");
    CHECK_INT(e.code, GRPC_UNAVAILABLE);
}

TEST(http_connection_is_kept_only_when_nothing_follows_the_reply)
{
    static const struct { const char *raw; bool last, kept; } rows[] = {
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false, true },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", false, false },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive , CLOSE\r\n\r\nok", true, false },
        { "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x\r\nConnection: close\r\n\r\nok", true, false },
        { "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", true, false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        int pair[2];
        static http_conn c;
        http_reply r;
        error e = { 0 };
        OWNED_ARENA a = arena_make(MIB);
        OWNED_BUF body = { 0 };
        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
        CHECK(write(pair[1], rows[i].raw, strlen(rows[i].raw)) > 0);
        c = (http_conn){ .fd = pair[0], .carrier = -1, .says = -1 };
        CHECK_INT(http_read_head(&c, &a, &r, &e), 0);
        CHECK_INT(http_body_all(&c, &r, 10, &body, &e), 0);
        CHECK_INT(r.last, rows[i].last);
        http_done(&c, &r);
        CHECK_INT(c.fd >= 0, rows[i].kept);
        if (c.fd >= 0) {
            CHECK(http_is_quiet(&c));
            CHECK(write(pair[1], "HTTP/1.1 408 ", 13) == 13);
            CHECK(!http_is_quiet(&c));
        }
        http_close(&c);
        close(pair[1]);
    }
}

/* Covers T41: a header of 1 MB, more fields than there may be, a body past its bound. */
TEST(http_reply_is_bounded)
{
    http_reply r;
    error e;
    OWNED_BUF raw = { 0 }, body = { 0 };
    buf_str(&raw, "HTTP/1.1 200 OK\r\nX: ");
    for (int i = 0; i < MIB / 16; i++) buf_str(&raw, "aaaaaaaaaaaaaaaa");
    CHECK_INT(http_reply_of(buf_view(&raw), &r, &body, &e), -1);
    raw.n = 0;
    buf_str(&raw, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i < 101; i++) buf_str(&raw, "A: b\r\n");
    buf_str(&raw, "\r\n");
    CHECK_INT(http_reply_of(buf_view(&raw), &r, &body, &e), -1);
    raw.n = 0;
    buf_printf(&raw, "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n%01001d", 0);
    CHECK_INT(http_reply_of(buf_view(&raw), &r, &body, &e), -1);
}

TEST(url_shown_has_no_query_and_no_password)
{
    static const struct { const char *given, *want; } rows[] = {
        { "http://h:1/a/b?sig=secret", "http://h:1/a/b" }, { "https://u:secret@h/x", "https://h/x" },
        { "u:secret@h", "h" }, { "http://u:sec/ret@h/x?a=b", "http://h/x" }, { "", "" }, { "?secret", "" },
        { "http://u:p@", "http://" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        char shown[URL_SHOWN];
        CHECK_TEXT(slice_of(url_shown(at_page_end(rows[i].given, strlen(rows[i].given)), shown)), rows[i].want);
    }
    url_parts u;
    error e;
    OWNED_ARENA a = arena_make(64 * KIB);
    CHECK_INT(url_parse(SLICE("http://user:secret@h/x?key=secret"), &a, &u, &e), -1);
    CHECK(!strstr(e.text, "secret") && strstr(e.text, "h/x"));
}

/* The rules of golang.org/x/net/http/httpproxy, most of them rows of its own test. */
TEST(no_proxy_means_what_it_means_to_go)
{
    static const struct { const char *list, *url; bool direct; } rows[] = {
        { "", "http://example.com/", false },
        { "example.com", "http://example.com/", true },
        { "example.com", "http://www.example.com/", true },
        { "example.com", "http://notexample.com/", false },
        { "example.com", "http://EXAMPLE.com/", true },
        { "Example.COM", "http://example.com/", true },
        { ".example.com", "http://example.com/", false },
        { ".example.com", "http://www.example.com/", true },
        { "*.example.com", "http://www.example.com/", true },
        { "*.example.com", "http://example.com/", false },
        { "example.com:80", "http://example.com/", true },
        { "example.com:80", "https://example.com/", false },
        { "example.com:443", "https://www.example.com/", true },
        { "example.com:5000", "http://example.com:5000/", true },
        { " a.b , example.com ", "http://example.com/", true },
        { "*", "https://anything/", true },
        { "a,*,b", "https://[fd00::1]:5000/", true },
        { "", "http://localhost/", true },
        { "", "http://LOCALHOST:5000/", true },
        { "", "http://localhost.example/", false },
        { "", "http://127.0.0.1:5000/", true },
        { "", "http://127.8.9.1/", true },
        { "", "http://[::1]:5000/", true },
        { "", "http://[::ffff:127.0.0.1]/", true },
        { "", "http://[::2]/", false },
        { "192.168.1.1", "http://192.168.1.1/", true },
        { "192.168.1.1", "http://192.168.1.10/", false },
        { "192.168.1.1:80", "http://192.168.1.1/", true },
        { "192.168.1.1:81", "http://192.168.1.1/", false },
        { "10.0.0.0/8", "http://10.255.0.1:5000/", true },
        { "10.0.0.0/8", "http://11.0.0.1/", false },
        { "10.0.0.0/8", "http://[::ffff:10.0.0.1]/", true },
        { "192.168.4.0/22", "http://192.168.7.255/", true },
        { "192.168.4.0/22", "http://192.168.8.0/", false },
        { "0.0.0.0/0", "http://8.8.8.8/", true },
        { "0.0.0.0/0", "http://[fd00::1]/", false },
        { "0.0.0.0/0", "http://example.com/", false },
        { "10.0.0.0/33", "http://10.0.0.1/", false },
        { "10.0.0.0/", "http://10.0.0.1/", false },
        { "/8", "http://10.0.0.1/", false },
        { "fd00::/8", "http://[fd12::1]:5000/", true },
        { "fd00::/8", "http://[fe00::1]/", false },
        { "::/0", "http://10.0.0.1/", false },
        { "fd00::1", "http://[fd00::1]/", true },
        { "[fd00::1]", "http://[fd00::1]/", true },
        { "[fd00::1]:5000", "http://[fd00::1]:5000/", true },
        { "[fd00::1]:5000", "http://[fd00::1]/", false },
        { "1.1.1.1", "http://a.1.1.1.1.example/", false },
        { ",,:80,", "http://example.com/", false },
        { "[", "http://example.com/", false },
        { ".", "http://example.com/", false },
        { "*.", "http://example.com/", false },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        url_parts u;
        error e;
        OWNED_ARENA a = arena_make(64 * KIB);
        CHECK_INT(url_parse(slice_of(rows[i].url), &a, &u, &e), 0);
        bool direct = no_proxy_for(at_page_end(rows[i].list, strlen(rows[i].list)), &u);
        if (direct != rows[i].direct) fprintf(stderr, "row %zu: \"%s\" for %s\n", i, rows[i].list, rows[i].url);
        CHECK(direct == rows[i].direct);
    }
}

TEST(proxy_takes_every_form_of_its_variable)
{
    static const struct { const char *given, *host, *authorization; int port; } rows[] = { /* host NULL: refused */
        { "http://proxy:3128", "proxy", "", 3128 },
        { "http://proxy:3128/", "proxy", "", 3128 },
        { "proxy:3128", "proxy", "", 3128 },
        { "proxy", "proxy", "", 80 },
        { "http://[fd00::1]:3128", "fd00::1", "", 3128 },
        { " 10.0.0.1:8080 ", "10.0.0.1", "", 8080 },
        { "http://u:p@proxy:3128", "proxy", "Basic dTpw", 3128 },
        { "u:p@proxy", "proxy", "Basic dTpw", 80 },
        { "http://u@proxy", "proxy", "Basic dTo=", 80 },
        { "http://u:%70@proxy", "proxy", "Basic dTpw", 80 },
        { "http://u:p%40q@proxy", "proxy", "Basic dTpwQHE=", 80 },
        { "http://u:p@q@proxy", "proxy", "Basic dTpwQHE=", 80 },
        { "https://proxy", NULL, NULL, 0 }, { "socks5://u:secret@proxy", NULL, NULL, 0 },
        { "http://u:secret%zz@proxy", NULL, NULL, 0 }, { "http://u:secret%4@proxy", NULL, NULL, 0 },
        { "http://u:secret@", NULL, NULL, 0 }, { "http://u:secret@proxy:99999", NULL, NULL, 0 },
        { "http://u:sec/ret@pro xy", NULL, NULL, 0 }, { "http://", NULL, NULL, 0 },
        { "socks5://u:sec?ret@proxy", NULL, NULL, 0 }, { "http://u:sec?ret%zz@proxy", NULL, NULL, 0 },
        { "u:p://q@proxy", "proxy", "Basic dTpwOi8vcQ==", 80 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        url_parts u;
        http_proxy p;
        error e = { 0 };
        OWNED_ARENA a = arena_make(64 * KIB);
        proxy_settings both = { slice_of(rows[i].given), SLICE(""), SLICE("") };
        CHECK_INT(url_parse(SLICE("http://reg.example/"), &a, &u, &e), 0);
        int got = proxy_for(&both, &u, &p, &e);
        if (got != (rows[i].host ? 0 : -1)) fprintf(stderr, "row %zu: %s\n", i, e.text);
        CHECK_INT(got, rows[i].host ? 0 : -1);
        if (got < 0) { CHECK(strstr(e.text, "proxy") && !strstr(e.text, "sec")); continue; }
        if (!rows[i].host) continue;
        CHECK_TEXT(slice_of(p.at.host), rows[i].host);
        CHECK_TEXT(slice_of(p.authorization), rows[i].authorization);
        CHECK_INT(p.at.port, rows[i].port);
        u.tls = true; /* the other variable, which is empty */
        CHECK_INT(proxy_for(&both, &u, &p, &e), 0);
        CHECK(!proxy_there(&p));
    }
    char longer[1200] = "http://u:";
    http_proxy p;
    error e;
    memset(longer + 9, 'x', 1000);
    memcpy(longer + 1009, "@proxy", 7);
    CHECK_INT(proxy_parse(slice_of(longer), &p, &e), -1);
}

/* A name server on loopback for one question of each kind: over UDP it says that its answer is too
 * long, over TCP it sends what the test wants. */
typedef struct { int udp, tcp; size_t size; pthread_t thread; } dns_fake;

static void dns_fake_answer(int fd, const uint8_t *question, size_t n, size_t size)
{
    uint8_t *reply = calloc(1, size + 2);
    reply[0] = (uint8_t)(size >> 8), reply[1] = (uint8_t)size;
    memcpy(reply + 2, question, n);
    reply[4] |= 0x80;
    reply[8] = reply[9] = 0xFF; /* 65535 records: CNAMEs of "reg.example" to itself, then zeros */
    for (size_t at = 2 + n; at + 14 <= size + 2; at += 14)
        memcpy(reply + at, "\300\014\000\005\000\001\000\000\000\001\000\002\300\014", 14);
    (void)!send(fd, reply, size + 2, MSG_NOSIGNAL);
    free(reply);
}

static void *dns_fake_run(void *arg)
{
    dns_fake *d = arg;
    for (int i = 0; i < 2; i++) {
        uint8_t q[512];
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t n = recvfrom(d->udp, q, sizeof q, 0, (struct sockaddr *)&from, &size);
        q[2] |= 0x82;
        (void)!sendto(d->udp, q, (size_t)n, 0, (struct sockaddr *)&from, size);
    }
    for (int i = 0; i < 2; i++) {
        uint8_t q[512], length[2];
        OWNED_FD fd = accept4(d->tcp, NULL, NULL, SOCK_CLOEXEC);
        if (read_all(fd, length, 2) != 2 || read_all(fd, q, length[1]) != length[1]) return NULL;
        dns_fake_answer(fd, q, length[1], d->size);
    }
    return NULL;
}

/* Covers T44: a truncated answer, 64 KiB by TCP, a CNAME that leads to itself for ever. */
TEST(dns_reads_a_long_answer_by_tcp_and_follows_no_loop)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    dns_fake d = { socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), 65535, 0 };
    CHECK(bind(d.udp, (struct sockaddr *)&at, size) == 0 && getsockname(d.udp, (struct sockaddr *)&at, &size) == 0);
    CHECK(bind(d.tcp, (struct sockaddr *)&at, size) == 0 && listen(d.tcp, 8) == 0);
    pthread_create(&d.thread, NULL, dns_fake_run, &d);
    dns_config c = { .nservers = 1, .ndots = 1, .tries = 1, .wait = 20 * NS_PER_SEC };
    ip_addresses out = { 0 };
    error e;
    memcpy(&c.servers[0].v4, &at, sizeof at);
    CHECK_INT(dns_resolve(&c, "reg.example", 80, &out, &e), -1);
    CHECK(strstr(e.text, "reg.example: no such name, or it has no address"));
    pthread_join(d.thread, NULL);
    close(d.udp), close(d.tcp);
}

/* A server that sends a byte whenever it was waited for a moment. */
static void *http_drip(void *arg)
{
    int *fd = arg;
    while (send(*fd, "x", 1, MSG_NOSIGNAL) == 1) poll(NULL, 0, 2);
    return NULL;
}

/* Covers T41: a body that stops, and one that comes byte by byte. All but 100 ms of the wait has passed. */
TEST(http_body_that_stops_or_drips_is_given_up)
{
    for (int drips = 0; drips < 2; drips++) {
        int pair[2];
        static http_conn c;
        http_reply r = { .status = 200, .left = 1 << 30 };
        error e = { 0 };
        uint8_t got[16];
        pthread_t t;
        CHECK_INT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        c = (http_conn){ .fd = pair[0], .carrier = -1, .says = -1, .waited = HTTP_STALL - 100 * NS_PER_MS };
        if (drips) pthread_create(&t, NULL, http_drip, &pair[1]);
        while (http_body(&c, &r, got, sizeof got, &e) > 0) {}
        CHECK_INT(e.code, GRPC_UNAVAILABLE);
        CHECK(strstr(e.text, "stalled"));
        http_close(&c);
        if (drips) pthread_join(t, NULL);
        close(pair[1]);
    }
}
