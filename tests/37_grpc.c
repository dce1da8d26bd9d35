/* Tests of chapter 37: a server with made-up methods on a thread of its own, and the client. */

typedef struct { slice text; uint32_t n; uint64_t size; } Probe;
static const pb_field Probe_fields[] = {
    PB(1, STRING, Probe, text), PB(2, UINT32, Probe, n), PB(3, UINT64, Probe, size),
};
PB_MSG(Probe);

static _Atomic int probes_alive, probes_peak, probes_cancelled, probes_sent;
static int probes_door; /* an eventfd: once it has a count, no stubborn handler waits */

/* Answers with what it got; with a text of `size` bytes if that is set. */
static int probe_echo(grpc_call *c, const void *in, void *out, error *e)
{
    const Probe *p = in;
    Probe *reply = out;
    (void)e;
    *reply = *p;
    if (!p->size) return 0;
    uint8_t *text = arena_alloc(&c->caller.arena, p->size);
    if (!text) return fail(e, GRPC_RESOURCE_EXHAUSTED, "no memory");
    memset(text, 'x', p->size);
    reply->text = (slice){ text, p->size };
    return 0;
}

/* The threads that ran the last handler of Thread, and that encoded its reply. */
static pthread_t probe_ran, probe_encoded;
static _Atomic int probes_let_go;

static void probe_let_go(caller *c)
{
    (void)c;
    probe_encoded = pthread_self();
    probes_let_go++;
}

static int probe_thread(grpc_call *c, const void *in, void *out, error *e)
{
    probe_ran = pthread_self();
    c->caller.let_go = probe_let_go;
    return ((const Probe *)in)->n ? fail(e, (int)((const Probe *)in)->n, "as you like")
                                  : probe_echo(c, in, out, e);
}

/* Waits n milliseconds, or until it is cancelled. */
static int probe_sleep(grpc_call *c, const void *in, void *out, error *e)
{
    const Probe *p = in;
    int alive = ++probes_alive;
    if (alive > probes_peak) probes_peak = alive;
    struct pollfd cancel = { grpc_cancel_fd(c, e), POLLIN, 0 };
    int woken = poll(&cancel, 1, (int)p->n);
    probes_alive--;
    if (woken) probes_cancelled++;
    ((Probe *)out)->n = p->n;
    return woken ? fail(e, GRPC_CANCELLED, "cancelled") : 0;
}

/* Does not listen when it is cancelled. */
/* Takes n milliseconds, cancelled or not; or until the test lets all of them go. */
static int probe_stubborn(grpc_call *c, const void *in, void *out, error *e)
{
    (void)c, (void)out, (void)e;
    probes_alive++;
    poll(&(struct pollfd){ .fd = probes_door, .events = POLLIN }, 1, (int)((const Probe *)in)->n);
    probes_alive--;
    return 0;
}

static int probe_fail(grpc_call *c, const void *in, void *out, error *e)
{
    const Probe *p = in;
    (void)c, (void)out;
    return fail(e, (int)p->n, "%.*s", PR(p->text));
}

/* Sends n messages of `size` bytes. */
static int probe_stream(grpc_call *c, const void *in, void *out, error *e)
{
    const Probe *p = in;
    (void)out;
    uint8_t *text = arena_alloc(&c->caller.arena, p->size + 1);
    memset(text, 'y', p->size);
    for (uint32_t i = 0; i < p->n; i++) {
        probes_sent++;
        Probe reply = { .n = i, .text = { text, p->size } };
        if (grpc_send(c, &reply, e) == 0) continue;
        probes_cancelled++;
        return -1;
    }
    return p->text.n ? fail(e, GRPC_ABORTED, "%.*s", PR(p->text)) : 0;
}

static enum grpc_where probe_place(const void *in)
{
    return ((const Probe *)in)->n ? GRPC_WAITING : GRPC_LONG;
}

static const grpc_method probe_methods[] = {
    { "/t.v1.T/Loop", &Probe_msg, &Probe_msg, GRPC_ON_LOOP, false, probe_echo, NULL },
    { "/t.v1.T/Short", &Probe_msg, &Probe_msg, GRPC_SHORT, false, probe_echo, NULL },
    { "/t.v1.T/Thread", &Probe_msg, &Probe_msg, GRPC_ON_LOOP, false, probe_thread, NULL },
    { "/t.v1.T/Long", &Probe_msg, &Probe_msg, GRPC_LONG, false, probe_echo, NULL },
    { "/t.v1.T/Sleep", &Probe_msg, &Probe_msg, GRPC_WAITING, false, probe_sleep, probe_place },
    { "/t.v1.T/Pull", &Probe_msg, &Probe_msg, GRPC_PULLING, false, probe_sleep, NULL },
    { "/t.v1.T/Stubborn", &Probe_msg, &Probe_msg, GRPC_LONG, false, probe_stubborn, NULL },
    { "/t.v1.T/Fail", &Probe_msg, &Probe_msg, GRPC_SHORT, false, probe_fail, NULL },
    { "/t.v1.T/Stream", &Probe_msg, &Probe_msg, GRPC_WAITING, true, probe_stream, NULL },
    { "/t.v1.T/Later", &Probe_msg, &Probe_msg, GRPC_LONG, false, NULL, NULL },
};

/* A server on a thread, and a client of it. */
typedef struct {
    char dir[PATH_MAX], path[PATH_MAX + 8];
    grpc_options options;
    loop loop;
    pthread_t thread;
    grpc_server *server;
    grpc_client *client;
    job shutdown;
    int64_t grace;
    bool stopping, stopped;
    arena arena;
    error e;
} grpc_test;

static grpc_test *grpc_tested; /* `stopped` is told nothing but the server */

static void *grpc_test_loop(void *t)
{
    loop_run(&((grpc_test *)t)->loop);
    return NULL;
}

static void grpc_test_stopped(grpc_server *s)
{
    grpc_tested->stopped = true;
    grpc_server_free(s);
    loop_stop(&grpc_tested->loop);
}

static void grpc_test_shutdown(job *j)
{
    grpc_test *t = OWNER(j, grpc_test, shutdown);
    grpc_shutdown(t->server, clock_mono() + t->grace, grpc_test_stopped);
}

static void grpc_test_start(grpc_test *t)
{
    close(temp_dir(t->dir));
    snprintf(t->path, sizeof t->path, "%s/s", t->dir);
    grpc_tested = t;
    probes_alive = probes_peak = probes_cancelled = probes_sent = probes_let_go = 0;
    probes_door = eventfd(0, EFD_CLOEXEC);
    t->options.socket_path = t->path;
    if (!t->options.methods) {
        t->options.methods = probe_methods;
        t->options.nmethods = COUNT(probe_methods);
    }
    t->options.alias = "/t.alpha.";
    t->options.alias_of = "/t.v1.";
    t->arena = arena_make(256 * MIB);
    t->grace = 5 * NS_PER_SEC;
    t->shutdown.run = grpc_test_shutdown;
    if (loop_open(&t->loop, &t->e) < 0) abort();
    t->server = grpc_serve(&t->loop, &t->options, &t->e);
    if (!t->server) abort();
    pthread_create(&t->thread, NULL, grpc_test_loop, t);
    t->client = grpc_dial(t->path, &t->e);
    CHECK(t->client != NULL);
}

static void grpc_test_stop(grpc_test *t)
{
    t->stopping = true;
    loop_post(&t->loop, &t->shutdown);
}

static void grpc_test_end(grpc_test *t)
{
    grpc_hangup(t->client);
    if (!t->stopping) grpc_test_stop(t);
    pthread_join(t->thread, NULL);
    close(probes_door);
    CHECK(t->stopped);
    CHECK(access(t->path, F_OK) < 0);
    loop_close(&t->loop);
    arena_free(&t->arena);
    rmdir(t->dir);
}
#define GRPC_TEST(t, ...) \
    __attribute__((cleanup(grpc_test_end))) grpc_test t = { .options = { __VA_ARGS__ } }; \
    grpc_test_start(&t)

/* Calls /t.v1.T/<method>: the gRPC code. */
static int ask(grpc_test *t, const char *method, Probe in, Probe *out, int64_t timeout)
{
    char path[64];
    snprintf(path, sizeof path, "/t.v1.T/%s", method);
    *out = (Probe){ 0 };
    grpc_request r = { .path = path, .in_msg = &Probe_msg, .in = &in, .out_msg = &Probe_msg,
                       .out = out, .timeout_ns = timeout };
    return grpc_invoke(t->client, &r, &t->arena, &t->e) < 0 ? t->e.code : GRPC_OK;
}

static bool soon(const _Atomic int *value, int wanted) /* the deadline only ends what never happens */
{
    for (int i = 0; i < 6000 && *value != wanted; i++) poll(NULL, 0, 5);
    return *value == wanted;
}

TEST(grpc_call_is_answered_wherever_its_handler_runs)
{
    static const char *const methods[] = { "Loop", "Short", "Long" };
    GRPC_TEST(t, 0);
    for (size_t i = 0; i < 30; i++) {
        Probe out, in = { SLICE("hello"), (uint32_t)i, 0 };
        CHECK_INT(ask(&t, methods[i % 3], in, &out, 0), GRPC_OK);
        CHECK_TEXT(out.text, "hello");
        CHECK_INT(out.n, i);
    }
}

TEST(grpc_reads_and_writes_large_messages_on_workers)
{
    GRPC_TEST(t, 0);
    Probe out, small = { SLICE("x"), 0, 0 }, big = { .size = 200 * KIB },
               wide = { { arena_alloc(&t.arena, 200 * KIB), 200 * KIB }, 0, 0 },
               huge = { .size = GRPC_MESSAGE_MAX };
    CHECK_INT(ask(&t, "Thread", small, &out, 0), GRPC_OK);
    CHECK(pthread_equal(probe_ran, t.thread) && pthread_equal(probe_encoded, t.thread));
    CHECK_INT(ask(&t, "Thread", big, &out, 0), GRPC_OK);
    CHECK_INT(out.text.n, 200 * KIB);
    CHECK(pthread_equal(probe_ran, t.thread) && !pthread_equal(probe_encoded, t.thread));
    CHECK_INT(ask(&t, "Thread", wide, &out, 0), GRPC_OK);
    CHECK(!pthread_equal(probe_ran, t.thread) && !pthread_equal(probe_encoded, t.thread));
    CHECK_INT(ask(&t, "Thread", huge, &out, 0), GRPC_RESOURCE_EXHAUSTED);
    CHECK_INT(ask(&t, "Thread", (Probe){ .n = GRPC_ABORTED }, &out, 0), GRPC_ABORTED);
    CHECK_INT(probes_let_go, 5); /* whatever became of the call */
    CHECK_INT(t.server->buffered, 0);
}

TEST(grpc_collect_refuses_a_long_message_by_its_prefix) /* before anything of it is kept: T7 */
{
    static uint8_t bytes[GRPC_PREFIX + 8] = { 0, 0, 0, 1, 1 }; /* not compressed, 257 bytes */
    error e = { 0 };
    grpc_inbox in = { .have = 0 };
    slice data = { bytes, sizeof bytes };
    CHECK_INT(grpc_collect(&in, &data, 257, &e), 0);
    CHECK_INT(in.body.n, 8);
    buf_free(&in.body);
    in = (grpc_inbox){ .have = 0 }, data = (slice){ bytes, sizeof bytes };
    CHECK_INT(grpc_collect(&in, &data, 256, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK_INT(in.body.n, 0);
    buf_free(&in.body);
}

TEST(grpc_passes_16_mib_both_ways_and_not_a_byte_more) /* T7 */
{
    GRPC_TEST(t, 0);
    size_t most = GRPC_MESSAGE_MAX - 5; /* the field's tag and length */
    Probe out, in = { { arena_alloc(&t.arena, most + 1), most }, 0, 0 };
    memset((uint8_t *)in.text.p, 'z', most + 1);
    CHECK_INT(ask(&t, "Loop", in, &out, 0), GRPC_OK);
    CHECK(slice_eq(out.text, in.text));
    CHECK_INT(ask(&t, "Long", in, &out, 0), GRPC_OK);
    CHECK(slice_eq(out.text, in.text));
    in.text.n++;
    CHECK_INT(ask(&t, "Long", in, &out, 0), GRPC_RESOURCE_EXHAUSTED);
    in = (Probe){ .size = most }; /* the reply holds that number and as many bytes */
    CHECK_INT(ask(&t, "Loop", in, &out, 0), GRPC_RESOURCE_EXHAUSTED);
    CHECK_INT(ask(&t, "Short", in, &out, 0), GRPC_RESOURCE_EXHAUSTED);
    in.size = most - 5;
    CHECK_INT(ask(&t, "Short", in, &out, 0), GRPC_OK);
    CHECK_INT(out.text.n, most - 5);
}

TEST(grpc_encodes_exactly_as_much_as_is_allowed)
{
    Probe p = { .text = SLICE("0123456789") }; /* 12 bytes */
    buf out = { 0 };
    error e;
    CHECK_INT(grpc_encode(&Probe_msg, &p, 11, &out, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    CHECK(!out.p);
    CHECK_INT(grpc_encode(&Probe_msg, &p, 12, &out, &e), 0);
    CHECK_INT(out.n, GRPC_PREFIX + 12);
    buf_free(&out);
}

TEST(grpc_status_and_text_arrive_as_they_were_given)
{
    static const struct { const char *text, *got; } texts[] = {
        { "plain", "plain" }, { "100% of \"it\"", "100% of \"it\"" }, { "%41", "%41" },
        { "\xC3\xA9\xE2\x82\xAC", "\xC3\xA9\xE2\x82\xAC" }, { "", "" },
        { "two\nlines\x1b[0m", "two\\x0alines\\x1b[0m" },
    };
    GRPC_TEST(t, 0);
    Probe out;
    for (size_t i = 0; i < COUNT(texts); i++) {
        Probe in = { slice_of(texts[i].text), GRPC_NOT_FOUND, 0 };
        CHECK_INT(ask(&t, "Fail", in, &out, 0), GRPC_NOT_FOUND);
        CHECK_TEXT(slice_of(t.e.text), texts[i].got);
    }
    CHECK_INT(ask(&t, "Fail", (Probe){ 0 }, &out, 0), GRPC_UNKNOWN); /* -1 without a code */
    CHECK_INT(ask(&t, "Later", (Probe){ 0 }, &out, 0), GRPC_UNIMPLEMENTED);
    CHECK_TEXT(slice_of(t.e.text), "t.v1.T/Later is not implemented");
    CHECK_INT(ask(&t, "loop", (Probe){ 0 }, &out, 0), GRPC_UNIMPLEMENTED);
}

TEST(grpc_routes_an_alias_and_nothing_like_it) /* T8 */
{
    static const struct { const char *path; bool known; } paths[] = {
        { "/t.v1.T/Loop", true }, { "/t.alpha.T/Loop", true }, { "/t.alpha.T/Loo", false },
        { "/t.alpha./Loop", false }, { "/t.alpha.t.v1.T/Loop", false }, { "t.v1.T/Loop", false },
        { "/t.v1.T/Loop/", false }, { "", false }, { "/t.v1.T/Loo", false },
        { "//t.v1.T/Loop", false }, { "/t.V1.T/Loop", false },
    };
    grpc_options o = { .methods = probe_methods, .nmethods = COUNT(probe_methods),
                       .alias = "/t.alpha.", .alias_of = "/t.v1." };
    for (size_t i = 0; i < COUNT(paths); i++)
        CHECK_INT(grpc_route(&o, slice_of(paths[i].path)) == &probe_methods[0], paths[i].known);
}

TEST(grpc_deadline_is_answered_while_the_handler_still_runs) /* T9 */
{
    GRPC_TEST(t, 0);
    Probe out, in = { .n = 60000 };
    CHECK_INT(ask(&t, "Stubborn", in, &out, 50 * NS_PER_MS), GRPC_DEADLINE_EXCEEDED);
    CHECK(soon(&probes_alive, 1));
    CHECK_INT(ask(&t, "Short", (Probe){ .n = 1 }, &out, 0), GRPC_OK);
    CHECK_INT(probes_alive, 1);
    CHECK_INT(eventfd_write(probes_door, 1), 0);
    CHECK(soon(&probes_alive, 0));
    CHECK_INT(ask(&t, "Sleep", (Probe){ .n = 5000 }, &out, 20 * NS_PER_MS), GRPC_DEADLINE_EXCEEDED);
    CHECK(soon(&probes_cancelled, 1));
}

/* -- a client of raw bytes --------------------------------------------------------------------- */

static void add_call(buf *b, uint32_t id, const char *method, const char *message_hex)
{
    OWNED_BUF block = { 0 };
    uint8_t message[64];
    hpack_put_indexed(&block, HPACK_POST);
    hpack_put_indexed(&block, HPACK_HTTP);
    hpack_put_named(&block, HPACK_PATH, slice_of(method));
    hpack_put_named(&block, HPACK_CONTENT_TYPE, SLICE("application/grpc"));
    add_frame(b, H2_HEADERS_FRAME, H2_END_HEADERS, id, buf_view(&block));
    add_frame(b, H2_DATA, H2_END_STREAM, id, from_hex(slice_of(message_hex), message));
}

static int raw_dial(const grpc_test *t)
{
    struct sockaddr_un a;
    error e;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (grpc_address(t->path, &a, &e) < 0) abort();
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) abort();
    return fd;
}

static bool raw_hung_up(int fd, int ms) /* the server closes the connection within that time */
{
    char bytes[4096];
    struct pollfd p = { fd, POLLIN, 0 };
    while (poll(&p, 1, ms) > 0)
        if (recv(fd, bytes, sizeof bytes, 0) <= 0) return true;
    return false;
}

TEST(grpc_handlers_of_reset_streams_keep_their_slots) /* T13 */
{
    GRPC_TEST(t, 0);
    OWNED_FD fd = raw_dial(&t);
    OWNED_BUF out = { 0 };
    buf_str(&out, h2_preface);
    add_frame(&out, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    for (uint32_t id = 1; id < 20001; id += 2) { /* Stubborn { n: 300 } */
        add_call(&out, id, "/t.v1.T/Stubborn", "000000000310ac02");
        add_u32(&out, H2_RST_STREAM, id, H2_CANCEL);
    }
    for (slice rest = buf_view(&out); rest.n;) {
        ssize_t n = send(fd, rest.p, rest.n, MSG_NOSIGNAL);
        if (n <= 0) break;
        rest = (slice){ rest.p + n, rest.n - (size_t)n };
    }
    CHECK(raw_hung_up(fd, 30000));
    CHECK(probes_alive <= 250);
    CHECK(soon(&probes_alive, 0));
    Probe p;
    CHECK_INT(ask(&t, "Loop", (Probe){ 0 }, &p, 0), GRPC_OK);
}

TEST(grpc_streams_that_are_reset_make_no_room_for_more_handlers) /* T13, below its budget */
{
    GRPC_TEST(t, 0);
    OWNED_FD fd = raw_dial(&t);
    OWNED_BUF out = { 0 };
    buf_str(&out, h2_preface);
    add_frame(&out, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    for (uint32_t id = 1; id < 399; id += 2) /* a minute */
        add_call(&out, id, "/t.v1.T/Stubborn", "000000000410e0d403");
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_alive, 199));
    out.n = 0;
    for (uint32_t id = 1; id < 399; id += 2) add_u32(&out, H2_RST_STREAM, id, H2_CANCEL);
    for (uint32_t id = 399; id < 601; id += 2)
        add_call(&out, id, "/t.v1.T/Stubborn", "000000000410e0d403");
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_alive, 250));
    poll(NULL, 0, 50);
    CHECK_INT(probes_alive, 250);
    CHECK_INT(eventfd_write(probes_door, 1), 0);
    CHECK(soon(&probes_alive, 0));
}

TEST(grpc_cancels_what_a_vanished_client_has_asked_for)
{
    GRPC_TEST(t, .workers = { 0, 0, 8 });
    OWNED_FD fd = raw_dial(&t);
    OWNED_BUF out = { 0 };
    buf_str(&out, h2_preface);
    add_frame(&out, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    for (uint32_t id = 1; id < 200; id += 2) /* a minute */
        add_call(&out, id, "/t.v1.T/Sleep", "000000000310e05d");
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_alive, 4));
    close_fd(&fd);
    fd = -1;
    CHECK(soon(&probes_alive, 0)); /* those that wait for a worker need not begin */
    CHECK(probes_cancelled >= 4);
    Probe p;
    CHECK_INT(ask(&t, "Long", (Probe){ 0 }, &p, 30 * NS_PER_SEC), GRPC_OK);
    CHECK_INT(probes_peak, 4);
}

/* -- time -------------------------------------------------------------------------------------- */

typedef struct { job job; grpc_server *server; _Atomic int done; } later;

static void age_stream(h2_stream *s, int64_t ns) { s->progress -= ns; }

/* Forty seconds later, as far as the server can see, on its own thread. */
static void make_later(job *j)
{
    later *l = OWNER(j, later, job);
    for (grpc_conn *k = l->server->conns, *next; k; k = next) {
        next = k->next;
        k->since -= 40 * NS_PER_SEC;
        k->part_since -= 40 * NS_PER_SEC;
        k->out_since -= 40 * NS_PER_SEC;
        h2_each(&k->h2, age_stream, 40 * NS_PER_SEC);
        grpc_conn_tick(&k->tick);
    }
    l->done = 1;
}

static void forty_seconds_later(grpc_test *t)
{
    later l = { .job.run = make_later, .server = t->server };
    poll(NULL, 0, 50); /* what has been sent is read */
    loop_post(&t->loop, &l.job);
    CHECK(soon(&l.done, 1));
}

static int greeted_dial(const grpc_test *t, buf *out)
{
    buf_str(out, h2_preface);
    add_setting(out, H2_SET_WINDOW, 10);
    int fd = raw_dial(t);
    CHECK_INT(write_all(fd, out->p, out->n), 0);
    out->n = 0;
    return fd;
}

/* 60 replies of 1 MiB at once, which nobody reads: what they take is bounded before it is made. */
TEST(grpc_large_replies_are_charged_before_they_are_written)
{
    GRPC_TEST(t, .max_buffered = 4 * MIB);
    OWNED_BUF out = { 0 };
    OWNED_FD fd = greeted_dial(&t, &out);
    for (uint32_t id = 1; id < 120; id += 2)
        add_call(&out, id, "/t.v1.T/Thread", "000000000418808040");
    probes_let_go = 0;
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_let_go, 60));
    CHECK(t.server->buffered <= 5 * MIB);
    CHECK(t.server->ncalls < 10);
}

TEST(grpc_hangs_up_on_half_a_frame_and_half_a_greeting) /* R15, T10 */
{
    GRPC_TEST(t, 0);
    OWNED_BUF out = { 0 };
    OWNED_FD silent = raw_dial(&t), half = greeted_dial(&t, &out), idle = greeted_dial(&t, &out);
    CHECK(write(half, "\0\0\x08\6\0\0\0\0\0PIN", 12) == 12);
    forty_seconds_later(&t);
    CHECK(raw_hung_up(silent, 30000));
    CHECK(raw_hung_up(half, 30000));
    CHECK(!raw_hung_up(idle, 100));
}

TEST(grpc_resets_half_a_request_and_a_reply_without_a_window) /* T16 */
{
    GRPC_TEST(t, 0);
    OWNED_BUF out = { 0 };
    char reply[4096];
    OWNED_FD fd = greeted_dial(&t, &out);
    add_call(&out, 1, "/t.v1.T/Loop", "000000000310e807");
    add_call(&out, 3, "/t.v1.T/Loop", "00000000031864"); /* its message is a byte short */
    out.p[out.n - 7 - H2_HEAD + 4] = 0;                  /* and there is more to come */
    add_call(&out, 5, "/t.v1.T/Loop", "0000000003186408"); /* a broken message: answered at once */
    add_call(&out, 7, "/t.v1.T/Loop", "00000000021864");   /* 100 bytes, a window of 10 */
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    forty_seconds_later(&t);
    poll(NULL, 0, 50);
    ssize_t n = recv(fd, reply, sizeof reply, MSG_DONTWAIT);
    CHECK(n > 0);
    CHECK(n > 0 && memmem(reply, (size_t)n, "\0\0\4\3\0\0\0\0\3\0\0\0\x8", 13));
    CHECK(n > 0 && memmem(reply, (size_t)n, "\0\0\4\3\0\0\0\0\7\0\0\0\x8", 13));
    CHECK(n > 0 && !memmem(reply, (size_t)n, "\0\0\4\3\0\0\0\0\5", 9));
    CHECK(!raw_hung_up(fd, 50));
    CHECK_INT(t.server->buffered, 0);
}

TEST(grpc_lets_the_longest_idle_connection_go_for_a_new_one)
{
    GRPC_TEST(t, .max_conns = 3);
    OWNED_BUF out = { 0 };
    Probe p;
    CHECK_INT(ask(&t, "Loop", (Probe){ 0 }, &p, 0), GRPC_OK); /* one, since */
    OWNED_FD busy = greeted_dial(&t, &out), idle = greeted_dial(&t, &out);
    add_call(&out, 1, "/t.v1.T/Sleep", "000000000310e05d");
    CHECK_INT(write_all(busy, out.p, out.n), 0);
    out.n = 0;
    CHECK(soon(&probes_alive, 1));
    CHECK_INT(ask(&t, "Loop", (Probe){ 0 }, &p, 0), GRPC_OK);
    for (int i = 0; i < 5; i++) {
        OWNED_FD newer = greeted_dial(&t, &out);
        CHECK(raw_hung_up(i ? newer : idle, i ? 0 : 30000) == (i == 0));
    }
    CHECK_INT(probes_alive, 1);
    CHECK(!raw_hung_up(busy, 50));
}

/* A connection with one call, of Sleep or Pull, for n milliseconds as protobuf has it in
 * hexadecimal. */
static int sleeping_dial(grpc_test *t, const char *method, const char *n)
{
    char message[32], path[32];
    OWNED_BUF out = { 0 };
    int fd = greeted_dial(t, &out);
    snprintf(message, sizeof message, "%010zx10%s", 1 + strlen(n) / 2, n);
    snprintf(path, sizeof path, "/t.v1.T/%s", method);
    add_call(&out, 1, path, message);
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    return fd;
}

TEST(grpc_connections_with_calls_that_wait_keep_nobody_out)
{
    int waiting[16];
    GRPC_TEST(t, .max_conns = 16, .workers = { 2, 2, 16 });
    Probe p;
    grpc_hangup(t.client);
    for (size_t i = 0; i < COUNT(waiting) - 2; i++) { /* of one kind at most 12 */
        waiting[i] = sleeping_dial(&t, "Sleep", "e0d403"); /* a minute */
        CHECK(soon(&probes_alive, (int)MIN(i + 1, (size_t)12)));
    }
    t.client = grpc_dial(t.path, &t.e);
    CHECK_INT(ask(&t, "Sleep", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_RESOURCE_EXHAUSTED);
    CHECK_INT(ask(&t, "Pull", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_OK);
    grpc_hangup(t.client);
    for (size_t i = COUNT(waiting) - 2; i < COUNT(waiting); i++) {
        waiting[i] = sleeping_dial(&t, "Pull", "e0d403");
        CHECK(soon(&probes_alive, (int)i - 1));
    }
    for (int i = 0; i < 50; i++) { /* each a client of its own, none of which hangs up */
        if (i < 12) CHECK(!raw_hung_up(waiting[i], 0));
        t.client = grpc_dial(t.path, &t.e);
        CHECK_INT(ask(&t, i % 2 ? "Long" : "Short", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_OK);
        CHECK_INT(ask(&t, "Sleep", (Probe){ 0 }, &p, 30 * NS_PER_SEC), GRPC_OK); /* a brief one */
        CHECK_INT(ask(&t, i % 4 < 2 ? "Sleep" : "Pull", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC),
                  GRPC_RESOURCE_EXHAUSTED);
        if (i < 49) grpc_hangup(t.client);
    }
    CHECK_INT(probes_alive, 14);
    close(waiting[3]);
    CHECK(soon(&probes_alive, 13));
    CHECK_INT(ask(&t, "Pull", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_OK);
    for (size_t i = 0; i < COUNT(waiting); i++)
        if (i != 3) close(waiting[i]);
    CHECK(soon(&probes_alive, 0));
    CHECK_INT(t.server->nwaiting, 0);
    for (size_t i = 0; i < GRPC_KINDS; i++) CHECK_INT(t.server->nkind[i], 0);
}

TEST(grpc_a_client_that_has_just_come_is_not_taken_for_a_silent_one)
{
    GRPC_TEST(t, .max_conns = 3);
    Probe p;
    OWNED_BUF out = { 0 };
    CHECK_INT(ask(&t, "Loop", (Probe){ 0 }, &p, 0), GRPC_OK);
    OWNED_FD idle = greeted_dial(&t, &out), fresh = raw_dial(&t);
    for (int i = 0; i < 400 && t.server->nconns < 3; i++) poll(NULL, 0, 5);
    OWNED_FD next = raw_dial(&t);
    bool gone = false; /* one of the two */
    for (int i = 0; i < 600 && !gone; i++) gone = raw_hung_up(idle, 25) || raw_hung_up(t.client->fd, 25);
    CHECK(gone);
    CHECK(!raw_hung_up(fresh, 50));
    CHECK(!raw_hung_up(next, 50));
}

TEST(grpc_small_messages_pass_when_large_ones_have_filled_the_room)
{
    GRPC_TEST(t, .max_buffered = 100 * KIB);
    Probe p;
    static uint8_t bytes[90 * KIB];
    OWNED_BUF out = { 0 };
    OWNED_FD fd = greeted_dial(&t, &out);
    add_call(&out, 1, "/t.v1.T/Loop", "0000020000"); /* 128 KiB are promised */
    out.p[out.n - 5 - H2_HEAD + 4] = 0;
    for (size_t at = 0; at < sizeof bytes; at += 10 * KIB)
        add_frame(&out, H2_DATA, 0, 1, (slice){ bytes + at, 10 * KIB });
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    for (int i = 0; i < 400 && t.server->buffered < sizeof bytes; i++) poll(NULL, 0, 5);
    Probe small = { { bytes, 20 * KIB }, 0, 0 }, large = { { bytes, 80 * KIB }, 0, 0 };
    CHECK_INT(ask(&t, "Loop", small, &p, 0), GRPC_OK);
    CHECK_INT(ask(&t, "Loop", large, &p, 0), GRPC_RESOURCE_EXHAUSTED);
}

TEST(grpc_calls_that_wait_never_use_up_the_workers_of_others)
{
    GRPC_TEST(t, .workers = { 2, 2, 8 });
    OWNED_FD fd = raw_dial(&t);
    OWNED_BUF out = { 0 };
    Probe p;
    buf_str(&out, h2_preface);
    add_frame(&out, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    for (uint32_t id = 1; id < 400; id += 2) /* a minute */
        add_call(&out, id, "/t.v1.T/Sleep", "000000000310e05d");
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_alive, 4)); /* the other workers are none of this connection's */
    for (int i = 0; i < 20; i++) {
        CHECK_INT(ask(&t, "Short", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_OK);
        CHECK_INT(ask(&t, "Long", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_OK);
        CHECK_INT(ask(&t, "Sleep", (Probe){ 0 }, &p, 30 * NS_PER_SEC), GRPC_OK); /* a brief one */
    }
    CHECK_INT(ask(&t, "Sleep", (Probe){ .n = 1 }, &p, NS_PER_SEC), GRPC_OK); /* another's */
    int others[4];
    for (size_t i = 0; i < COUNT(others); i++) others[i] = sleeping_dial(&t, "Sleep", "e0d403");
    CHECK(soon(&probes_alive, 8));
    CHECK_INT(ask(&t, "Sleep", (Probe){ .n = 1 }, &p, 50 * NS_PER_MS), GRPC_DEADLINE_EXCEEDED);
    CHECK_INT(ask(&t, "Pull", (Probe){ .n = 1 }, &p, NS_PER_SEC), GRPC_OK); /* of another kind */
    for (size_t i = 0; i < COUNT(others); i++) close(others[i]);
}

/* So many streams are opened with a head alone. Returns how many the server has, once it has read
 * them all: the PING behind them is answered. */
static size_t half_calls(grpc_test *t, int fd, unsigned n)
{
    OWNED_BUF out = { 0 };
    char reply[4096];
    size_t have = 0;
    for (uint32_t id = 1; id < 2 * n; id += 2) {
        OWNED_BUF call = { 0 };
        add_call(&call, id, "/t.v1.T/Sleep", "");
        buf_add(&out, call.p, call.n - H2_HEAD); /* without its DATA */
    }
    add_frame(&out, H2_PING, 0, 0, SLICE("all read"));
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    while (have < 8 || memcmp(reply + have - 8, "all read", 8) != 0) {
        ssize_t more = recv(fd, reply + have % 2048, 2048, 0);
        if (more <= 0) break;
        have = have % 2048 + (size_t)more;
    }
    return t->server->ncalls;
}

TEST(grpc_open_calls_are_bounded_for_all_together) /* half sent, they are charged nothing */
{
    GRPC_TEST(t, .max_calls = 100);
    OWNED_BUF out = { 0 };
    Probe p;
    OWNED_FD one = greeted_dial(&t, &out), two = greeted_dial(&t, &out), three = greeted_dial(&t, &out);
    CHECK_INT(half_calls(&t, one, 200), 80);
    CHECK_INT(half_calls(&t, two, 200), 96);
    CHECK_INT(half_calls(&t, three, 200), 100);
    int fds[5];
    for (size_t i = 0; i < COUNT(fds); i++) {
        fds[i] = greeted_dial(&t, &out);
        CHECK_INT(half_calls(&t, fds[i], 200), 104 + 4 * i);
    }
    for (int i = 0; i < 3; i++)
        CHECK_INT(ask(&t, i % 2 ? "Long" : "Loop", (Probe){ 0 }, &p, NS_PER_SEC), GRPC_OK);
    for (size_t i = 0; i < COUNT(fds); i++) close(fds[i]);
    close(one);
    one = greeted_dial(&t, &out);
    CHECK_INT(half_calls(&t, one, 10), 30);
}

/* One connection asks 200 times, then others once each: they have their turn before its next. */
TEST(grpc_connections_are_served_in_turns)
{
    GRPC_TEST(t, .workers = { 0, 0, 1 });
    OWNED_BUF out = { 0 };
    OWNED_FD fd = greeted_dial(&t, &out);
    Probe p;
    for (uint32_t id = 1; id < 400; id += 2) add_call(&out, id, "/t.v1.T/Sleep", "00000000021032");
    CHECK_INT(write_all(fd, out.p, out.n), 0); /* 50 ms each */
    CHECK(soon(&probes_alive, 1));
    for (int i = 0; i < 3; i++)
        CHECK_INT(ask(&t, "Sleep", (Probe){ .n = 1 }, &p, 5 * NS_PER_SEC), GRPC_OK);
}

/* Threads that a burst has made serve the next one, and all of them are used. */
TEST(grpc_every_worker_is_used)
{
    GRPC_TEST(t, .workers = { 0, 0, 32 });
    for (int round = 0; round < 3; round++) {
        int fds[32];
        for (size_t i = 0; i < COUNT(fds); i++) fds[i] = sleeping_dial(&t, "Sleep", "e0d403");
        CHECK(soon(&probes_alive, 32));
        for (size_t i = 0; i < COUNT(fds); i++) close(fds[i]);
        CHECK(soon(&probes_alive, 0));
    }
    for (size_t i = 0; i < GRPC_POOLS; i++) CHECK_INT(t.server->pool[i].running, 0);
    CHECK(t.server->pool[GRPC_WAITING - GRPC_SHORT].threads <= 32);
}

TEST(grpc_bytes_that_wait_are_bounded_for_all_together) /* R14 */
{
    GRPC_TEST(t, .max_buffered = 100 * KIB);
    Probe p;
    for (int i = 0; i < 3; i++) {
        Probe large = { { arena_alloc(&t.arena, 200 * KIB), 200 * KIB }, 0, 0 };
        CHECK_INT(ask(&t, "Loop", large, &p, 0), GRPC_RESOURCE_EXHAUSTED);
        CHECK_INT(ask(&t, "Loop", (Probe){ .size = 200 * KIB }, &p, 0), GRPC_RESOURCE_EXHAUSTED);
        CHECK_INT(ask(&t, "Loop", (Probe){ .size = 90 * KIB }, &p, 0), GRPC_OK);
    }
}

TEST(grpc_message_grows_with_what_came_not_with_what_is_claimed) /* T6 */
{
    grpc_inbox in = { 0 };
    error e;
    slice data = SLICE("\0\0\xff\xff\xff" "abc");
    CHECK_INT(grpc_collect(&in, &data, GRPC_MESSAGE_MAX, &e), 0);
    CHECK(!in.full && in.body.cap <= 256);
    buf_free(&in.body);
    static const struct { const char *bytes; int code; } bad[] = {
        { "00ffffffff", GRPC_RESOURCE_EXHAUSTED }, { "0001000001", GRPC_RESOURCE_EXHAUSTED },
        { "0100000000", GRPC_INTERNAL }, { "ff00000000", GRPC_INTERNAL },
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        uint8_t bytes[8];
        in = (grpc_inbox){ 0 };
        data = from_hex(slice_of(bad[i].bytes), bytes);
        CHECK_INT(grpc_collect(&in, &data, GRPC_MESSAGE_MAX, &e), -1);
        CHECK_INT(e.code, bad[i].code);
    }
}

/* -- streaming --------------------------------------------------------------------------------- */

typedef struct { unsigned n, stop_at; size_t bytes; int pause_ms; } heard;

static int hear(void *user, const void *out, error *e)
{
    heard *h = user;
    const Probe *p = out;
    CHECK_INT(p->n, h->n);
    h->bytes += p->text.n;
    if (h->pause_ms) poll(NULL, 0, h->pause_ms);
    return ++h->n == h->stop_at ? fail(e, GRPC_ABORTED, "enough") : 0;
}

static int ask_stream(grpc_test *t, Probe in, heard *h, int64_t timeout)
{
    grpc_request r = { .path = "/t.v1.T/Stream", .in_msg = &Probe_msg, .in = &in,
                       .out_msg = &Probe_msg, .each = hear, .user = h, .timeout_ns = timeout };
    return grpc_invoke(t->client, &r, &t->arena, &t->e) < 0 ? t->e.code : GRPC_OK;
}

TEST(grpc_streams_arrive_whole_and_end_with_their_status)
{
    GRPC_TEST(t, 0);
    heard h = { 0 };
    CHECK_INT(ask_stream(&t, (Probe){ .n = 500, .size = 3000 }, &h, 0), GRPC_OK);
    CHECK_INT(h.n, 500);
    CHECK_INT(h.bytes, 1500000);
    h = (heard){ 0 };
    CHECK_INT(ask_stream(&t, (Probe){ .n = 0 }, &h, 0), GRPC_OK);
    CHECK_INT(ask_stream(&t, (Probe){ .n = 3, .text = SLICE("why") }, &h, 0), GRPC_ABORTED);
    CHECK_INT(h.n, 3);
    CHECK_TEXT(slice_of(t.e.text), "why");
}

TEST(grpc_stream_waits_for_a_slow_reader_and_ends_with_it)
{
    GRPC_TEST(t, 0);
    heard h = { .pause_ms = 20, .stop_at = 10 };
    CHECK_INT(ask_stream(&t, (Probe){ .n = 100000, .size = 100000 }, &h, 0), GRPC_ABORTED);
    CHECK(soon(&probes_cancelled, 1));
    CHECK(probes_sent < 60); /* 1 MiB of window and what the socket holds, not 10 GB */
    Probe p;
    CHECK_INT(ask(&t, "Loop", (Probe){ .n = 4 }, &p, 0), GRPC_OK);
    h = (heard){ 0 };
    Probe endless = { .n = 100000000, .size = 10 };
    CHECK_INT(ask_stream(&t, endless, &h, 100 * NS_PER_MS), GRPC_DEADLINE_EXCEEDED);
    CHECK(soon(&probes_cancelled, 2));
}

/* -- start, stop, and the machine's limits ----------------------------------------------------- */

TEST(grpc_socket_is_private_and_replaces_a_stale_one) /* R23 */
{
    char dir[PATH_MAX], path[PATH_MAX + 8], temp[PATH_MAX + 16];
    struct stat st, now;
    error e;
    close(temp_dir(dir));
    snprintf(path, sizeof path, "%s/s", dir);
    snprintf(temp, sizeof temp, "%s.new", path);
    OWNED_FD dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un name;
    CHECK(grpc_address(path, &name, &e) == 0 &&
          bind(dead, (struct sockaddr *)&name, sizeof name) == 0);
    close(open(temp, O_CREAT | O_WRONLY, 0644));
    umask(0);
    OWNED_FD fd = grpc_listen(path, &st, &e);
    umask(022);
    CHECK(fd >= 0 && lstat(path, &now) == 0);
    CHECK_INT(now.st_mode, S_IFSOCK | 0600);
    CHECK_INT(now.st_ino, st.st_ino);
    CHECK(access(temp, F_OK) < 0);
    CHECK_INT(grpc_listen(path, &now, &e), -1); /* somebody listens */
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    CHECK(lstat(path, &now) == 0 && now.st_ino == st.st_ino);
    unlink(path);
    close(open(path, O_CREAT | O_WRONLY, 0644));
    CHECK_INT(grpc_listen(path, &now, &e), -1); /* no socket */
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    unlink(path);
    rmdir(dir);
    char longest[200];
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    CHECK_INT(grpc_listen(longest, &st, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
}

TEST(grpc_socket_is_made_although_a_stranger_has_locked_its_directory) /* R22 */
{
    char dir[PATH_MAX], path[PATH_MAX + 8];
    struct stat st;
    error e;
    OWNED_FD locked = temp_dir(dir);
    snprintf(path, sizeof path, "%s/s", dir);
    CHECK_INT(flock(locked, LOCK_EX), 0);
    OWNED_FD fd = grpc_listen(path, &st, &e);
    CHECK(fd >= 0);
    unlink(path);
    rmdir(dir);
}

TEST(grpc_shutdown_lets_a_running_call_finish)
{
    GRPC_TEST(t, 0);
    OWNED_FD fd = raw_dial(&t);
    OWNED_BUF out = { 0 };
    char reply[4096];
    buf_str(&out, h2_preface);
    add_frame(&out, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    add_call(&out, 1, "/t.v1.T/Sleep", "000000000310ac02"); /* 300 ms */
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_alive, 1));
    grpc_test_stop(&t);
    size_t n = 0;
    for (ssize_t more; (more = recv(fd, reply + n, sizeof reply - n, 0)) > 0;) n += (size_t)more;
    CHECK_INT(probes_cancelled, 0);
    CHECK(memmem(reply, n, "shutting down", 13) && memmem(reply, n, "grpc-status\0010", 13));
    grpc_client *late = grpc_dial(t.path, &t.e);
    CHECK(late == NULL);
    CHECK_INT(t.e.code, GRPC_UNAVAILABLE);
    CHECK(strstr(t.e.text, "is krun serve running?"));
}

/* Sends nothing, until nobody listens. */
static int probe_watch(grpc_call *c, const void *in, void *out, error *e)
{
    (void)in, (void)out;
    struct pollfd cancel = { grpc_cancel_fd(c, e), POLLIN, 0 };
    probes_alive++;
    poll(&cancel, 1, -1);
    probes_alive--;
    return fail(e, GRPC_CANCELLED, "nobody listens");
}

TEST(grpc_shutdown_does_not_wait_for_streams_without_end)
{
    static const grpc_method watch_only[] = {
        { "/t.v1.T/Watch", &Probe_msg, &Probe_msg, GRPC_LONG, true, probe_watch },
    };
    GRPC_TEST(t, .methods = watch_only, .nmethods = 1);
    OWNED_FD fd = raw_dial(&t);
    OWNED_BUF out = { 0 };
    buf_str(&out, h2_preface);
    add_frame(&out, H2_SETTINGS, 0, 0, (slice){ NULL, 0 });
    add_call(&out, 1, "/t.v1.T/Watch", "0000000000");
    CHECK_INT(write_all(fd, out.p, out.n), 0);
    CHECK(soon(&probes_alive, 1));
    int64_t start = clock_mono();
    t.grace = 60 * NS_PER_SEC;
    grpc_test_stop(&t);
    CHECK(raw_hung_up(fd, 30000));
    CHECK(clock_mono() - start < 30 * NS_PER_SEC);
    CHECK(soon(&probes_alive, 0));
}

TEST(grpc_server_outlives_a_lack_of_descriptors) /* T60 */
{
    GRPC_TEST(t, 0);
    struct rlimit was, none;
    Probe p;
    CHECK_INT(ask(&t, "Loop", (Probe){ 0 }, &p, 0), GRPC_OK);
    OWNED_FD fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un a;
    error e;
    getrlimit(RLIMIT_NOFILE, &was);
    none = (struct rlimit){ (rlim_t)fd + 1, was.rlim_max };
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
    CHECK_INT(grpc_address(t.path, &a, &e), 0);
    CHECK_INT(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_INT(ask(&t, "Loop", (Probe){ .n = 1 }, &p, 30 * NS_PER_SEC), GRPC_OK); /* old clients are */
    int64_t busy = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    poll(NULL, 0, 250);
    CHECK(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - busy < 100 * NS_PER_MS); /* it does not spin */
    CHECK_INT(ask(&t, "Loop", (Probe){ .n = 2 }, &p, 30 * NS_PER_SEC), GRPC_OK);
    setrlimit(RLIMIT_NOFILE, &was);
    struct pollfd greeting = { fd, POLLIN, 0 };
    CHECK_INT(poll(&greeting, 1, 2000), 1); /* the one that had to wait too */
}

TEST(grpc_client_says_what_is_wrong)
{
    char dir[PATH_MAX], path[PATH_MAX + 8];
    struct stat st;
    error e = { 0 };
    Probe in = { 0 }, out = { 0 };
    close(temp_dir(dir));
    snprintf(path, sizeof path, "%s/s", dir);
    CHECK(!grpc_dial(path, &e));
    CHECK_INT(e.code, GRPC_UNAVAILABLE);
    OWNED_FD listener = grpc_listen(path, &st, &e);
    grpc_client *k = grpc_dial(path, &e);
    OWNED_ARENA a = arena_make(MIB);
    grpc_request r = { .path = "/x/Y", .in_msg = &Probe_msg, .in = &in, .out_msg = &Probe_msg,
                       .out = &out, .timeout_ns = 20 * NS_PER_MS };
    CHECK_INT(grpc_invoke(k, &r, &a, &e), -1); /* nobody answers */
    CHECK_INT(e.code, GRPC_DEADLINE_EXCEEDED);
    r.timeout_ns = 0;
    OWNED_FD other = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(write(other, "HTTP/1.1 400 Bad Request\r\n", 26) == 26); /* not HTTP/2 */
    CHECK_INT(grpc_invoke(k, &r, &a, &e), -1);
    CHECK_INT(e.code, GRPC_UNAVAILABLE);
    grpc_hangup(k);
    k = grpc_dial(path, &e);
    close(accept(listener, NULL, NULL)); /* hangs up */
    CHECK_INT(grpc_invoke(k, &r, &a, &e), -1);
    CHECK_INT(e.code, GRPC_UNAVAILABLE);
    grpc_hangup(k);
    unlink(path);
    rmdir(dir);
}
