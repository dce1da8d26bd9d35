/* Chapter 7: every table of krun.c against the contract, cri.proto, and every message through both
 * of its forms and back. The files are looked for beside this directory, or in $KRUN_SOURCE. */

enum { CRI_MESSAGES = 175, CRI_FIELDS = 478, CRI_ENUMS = 11, CRI_VALUES = 95, CRI_CALLS = 43 };

static const pb_message *const cri_records[] = {
    &ProcessUser_msg, &ProcessRlimit_msg, &MountSpec_msg, &DeviceSpec_msg, &ContainerSpec_msg,
    &PodSpec_msg, &ExecSpec_msg, &ContainerExit_msg, &ContainerRun_msg, &MonitorRequest_msg,
    &MonitorReply_msg, &ImageConfig_msg, &ImageRecord_msg, &PodRecord_msg, &ContainerRecord_msg,
    &KrunLoadImageRequest_msg, &KrunLoadImageResponse_msg,
};

/* All tables that can be reached from a call, each once; the same of enums. */
static struct {
    const pb_message *messages[256];
    const pb_enum *enums[32];
    size_t nmessages, nenums;
} cri_all;

static void cri_add_enum(const pb_enum *names)
{
    for (size_t i = 0; i < cri_all.nenums; i++)
        if (cri_all.enums[i] == names) return;
    assert(cri_all.nenums < COUNT(cri_all.enums));
    cri_all.enums[cri_all.nenums++] = names;
}

static void cri_add(const pb_message *m)
{
    for (size_t i = 0; i < cri_all.nmessages; i++)
        if (cri_all.messages[i] == m) return;
    assert(cri_all.nmessages < COUNT(cri_all.messages));
    cri_all.messages[cri_all.nmessages++] = m;
    for (size_t i = 0; i < m->nfields; i++) {
        if (m->fields[i].kind == PB_MESSAGE) cri_add(m->fields[i].sub);
        if (m->fields[i].kind == PB_ENUM) cri_add_enum(m->fields[i].names);
    }
}

static void cri_collect(void)
{
    for (size_t i = 0; i < COUNT(cri_rpcs); i++) cri_add(cri_rpcs[i].in), cri_add(cri_rpcs[i].out);
}

/* -- a reader of proto files, as far as cri.proto needs one ------------------------------------ */

static slice cri_source(const char *name, arena *a)
{
    const char *root = getenv("KRUN_SOURCE"), *slash = strrchr(__FILE__, '/');
    int here = slash ? (int)(slash - __FILE__) : 0;
    slice text = { NULL, 0 };
    error e;
    char *path = root ? arena_printf(a, "%s/%s", root, name)
                      : arena_printf(a, "%.*s%s../%s", here, __FILE__, here ? "/" : "", name);
    return (text = file_read(AT_FDCWD, path, 16 * MIB, a, &e)).p ? text : (slice){ NULL, 0 };
}

static bool cri_word(uint8_t c) { return isalnum(c) || c == '_' || c == '.' || c == '"'; }

/* The next word or sign; empty at the end. */
static slice cri_next(slice *s)
{
    for (;;) {
        while (s->n && isspace(s->p[0])) *s = (slice){ s->p + 1, s->n - 1 };
        if (!slice_starts(*s, "//")) break;
        slice_cut(s, '\n');
    }
    slice word = { s->p, s->n ? 1 : 0 };
    while (word.n && word.n < s->n && cri_word(word.p[0]) && cri_word(word.p[word.n])) word.n++;
    *s = (slice){ s->p + word.n, s->n - word.n };
    return word;
}

static bool cri_expect(slice *s, const char *word)
{
    slice got = cri_next(s);
    if (slice_is(got, word)) return true;
    fprintf(stderr, "cri.proto: \"%.*s\", not \"%s\", before \"%.40s\"\n", PR(got), word,
            (const char *)s->p);
    checks_failed++;
    return false;
}

static int32_t cri_number(slice *s) /* "= 7 [options];" */
{
    uint64_t value = 0;
    cri_expect(s, "=");
    CHECK(parse_u64(cri_next(s), 10, INT32_MAX, &value));
    slice word = cri_next(s);
    while (word.n && !slice_is(word, ";")) word = cri_next(s);
    return (int32_t)value;
}

static const pb_message *cri_message_named(slice name)
{
    for (size_t i = 0; i < cri_all.nmessages; i++)
        if (slice_is(name, cri_all.messages[i]->name)) return cri_all.messages[i];
    return NULL;
}

static const pb_enum *cri_enum_named(slice name)
{
    for (size_t i = 0; i < cri_all.nenums; i++)
        if (slice_is(name, cri_all.enums[i]->name)) return cri_all.enums[i];
    return NULL;
}

/* Is `type` of the contract what the row says? */
static bool cri_type_is(const pb_field *f, slice type)
{
    static const struct { const char *name; enum pb_kind kind; } scalars[] = {
        { "bool", PB_BOOL },     { "int32", PB_INT32 },   { "uint32", PB_UINT32 },
        { "int64", PB_INT64 },   { "uint64", PB_UINT64 }, { "double", PB_DOUBLE },
        { "string", PB_STRING }, { "bytes", PB_BYTES },   { "map", PB_MAP },
    };
    for (size_t i = 0; i < COUNT(scalars); i++)
        if (slice_is(type, scalars[i].name)) return f->kind == scalars[i].kind;
    if (f->kind == PB_ENUM) return slice_is(type, f->names->name);
    return f->kind == PB_MESSAGE && slice_is(type, f->sub->name);
}

static size_t cri_read_enum(slice *s)
{
    slice name = cri_next(s);
    const pb_enum *names = cri_enum_named(name);
    size_t values = 0;
    cri_expect(s, "{");
    for (slice word = cri_next(s); word.n && !slice_is(word, "}"); word = cri_next(s), values++) {
        size_t number = (size_t)cri_number(s);
        bool same = names && number < names->n && slice_is(word, names->names[number]);
        if (!same)
            fprintf(stderr, "enum %.*s: %.*s = %zu\n", PR(name), PR(word), number), checks_failed++;
    }
    if (!names || names->n != values)
        fprintf(stderr, "enum %.*s: another length\n", PR(name)), checks_failed++;
    return values;
}

/* Reads one field, whose first word is `word`, and holds it against its row. */
static void cri_read_field(slice *s, slice word, const pb_message *m, size_t row)
{
    bool list = slice_is(word, "repeated"), map = slice_is(word, "map");
    slice type = list ? cri_next(s) : word;
    if (map && cri_expect(s, "<") && cri_expect(s, "string") && cri_expect(s, ",") &&
        cri_expect(s, "string"))
        cri_expect(s, ">");
    slice name = cri_next(s);
    int32_t number = cri_number(s);
    const pb_field *f = m && row < m->nfields ? &m->fields[row] : NULL;
    bool same = f && (int32_t)f->number == number && slice_is(name, pb_proto_name(f)) &&
                cri_type_is(f, type) && f->list == (list || map);
    if (!same)
        fprintf(stderr, "%s: %.*s %.*s = %d\n", m ? m->name : "?", PR(type), PR(name), number),
            checks_failed++;
}

typedef struct { size_t messages, fields, enums, values, calls; } cri_counts;

static void cri_read_message(slice *s, cri_counts *seen)
{
    slice name = cri_next(s);
    const pb_message *m = cri_message_named(name);
    size_t rows = 0;
    cri_expect(s, "{");
    for (slice word = cri_next(s); word.n && !slice_is(word, "}"); word = cri_next(s)) {
        if (slice_is(word, "enum")) seen->values += cri_read_enum(s), seen->enums++;
        else cri_read_field(s, word, m, rows++);
    }
    if (!m || m->nfields != rows)
        fprintf(stderr, "%.*s: other fields\n", PR(name)), checks_failed++;
    seen->messages++;
    seen->fields += rows;
}

static void cri_read_service(slice *s, cri_counts *seen)
{
    char service[64];
    slice first = cri_next(s);
    snprintf(service, sizeof service, "runtime.v1.%.*s", PR(first));
    cri_expect(s, "{");
    for (slice word = cri_next(s); slice_is(word, "rpc"); word = cri_next(s), seen->calls++) {
        const cri_rpc *call = seen->calls < COUNT(cri_rpcs) ? &cri_rpcs[seen->calls] : &cri_rpcs[0];
        slice name = cri_next(s);
        cri_expect(s, "(");
        slice in = cri_next(s);
        cri_expect(s, ")");
        cri_expect(s, "returns");
        cri_expect(s, "(");
        slice out = cri_next(s);
        bool streams = slice_is(out, "stream");
        if (streams) out = cri_next(s);
        cri_expect(s, ")");
        cri_expect(s, "{");
        cri_expect(s, "}");
        CHECK_TEXT(name, call->name);
        CHECK_TEXT(slice_of(service), call->service);
        CHECK_TEXT(in, call->in->name);
        CHECK_TEXT(out, call->out->name);
        CHECK_INT(call->streams, streams);
    }
}

TEST(cri_tables_are_those_of_cri_proto)
{
    OWNED_ARENA a = arena_make(MIB);
    cri_counts seen = { 0 };
    slice s = cri_source("cri.proto", &a);
    if (!s.n) SKIP("no cri.proto (set KRUN_SOURCE to the directory that has it)");
    cri_collect();
    for (slice word = cri_next(&s); word.n; word = cri_next(&s)) {
        if (slice_is(word, "message")) cri_read_message(&s, &seen);
        else if (slice_is(word, "enum")) seen.values += cri_read_enum(&s), seen.enums++;
        else if (slice_is(word, "service")) cri_read_service(&s, &seen);
        else while (word.n && !slice_is(word, ";")) word = cri_next(&s); /* syntax, package */
    }
    CHECK_INT(seen.messages, CRI_MESSAGES);
    CHECK_INT(seen.fields, CRI_FIELDS);
    CHECK_INT(seen.enums, CRI_ENUMS);
    CHECK_INT(seen.values, CRI_VALUES);
    CHECK_INT(seen.calls, CRI_CALLS);
    CHECK_INT(cri_all.nmessages, CRI_MESSAGES);
    CHECK_INT(cri_all.nenums, CRI_ENUMS);
    CHECK_INT(COUNT(cri_rpcs), CRI_CALLS);
}

TEST(cri_enums_have_their_names_in_the_same_order) /* a C enum and its name table are two lists */
{
    OWNED_ARENA a = arena_make(16 * MIB);
    slice file = cri_source("krun.c", &a);
    if (!file.n) SKIP("no krun.c (set KRUN_SOURCE to the directory that has it)");
    cri_collect();
    for (size_t i = 0; i < cri_all.nenums; i++) {
        const pb_enum *e = cri_all.enums[i];
        char text[128];
        snprintf(text, sizeof text, "\nenum %s {", e->name);
        const uint8_t *at = memmem(file.p, file.n, text, strlen(text));
        CHECK(at);
        if (!at) continue;
        slice s = { at + strlen(text), file.n - (size_t)(at - file.p) - strlen(text) };
        for (size_t value = 0; value < e->n; value++) {
            snprintf(text, sizeof text, "%s_%s", e->name, e->names[value]);
            CHECK_TEXT(cri_next(&s), text);
            CHECK_TEXT(cri_next(&s), value + 1 < e->n ? "," : "}");
        }
    }
}

/* -- every message through both of its forms --------------------------------------------------- */

static uint32_t cri_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void cri_fill(const pb_message *m, void *msg, arena *a, uint32_t *seed);

static void cri_fill_value(const pb_field *f, void *at, arena *a, uint32_t *seed)
{
    static const char *const texts[] = { "x", "", "/var/lib", "\xc3\xa4\xe2\x82\xac", "a \"b\"\n" };
    static const uint64_t numbers[] = { 0, 1, 127, 128, 65536, INT32_MAX, UINT32_MAX, INT64_MAX,
                                        UINT64_MAX };
    double real = (double)(cri_random(seed) % 1000) / 8;
    pb_pair *pair = at;
    switch (f->kind) {
    case PB_MESSAGE:
        cri_fill(f->sub, f->list ? at : pb_make_sub(f, at, a, &(error){ 0 }), a, seed);
        break;
    case PB_MAP:
        pair->key = slice_of(arena_printf(a, "k%u", cri_random(seed)));
        pair->value = slice_of(texts[cri_random(seed) % COUNT(texts)]);
        break;
    case PB_STRING:
    case PB_BYTES: *(slice *)at = slice_of(texts[cri_random(seed) % COUNT(texts)]); break;
    case PB_DOUBLE: memcpy(at, &real, sizeof real); break;
    case PB_ENUM: pb_store(f, at, cri_random(seed) % f->names->n); break;
    default: pb_store(f, at, numbers[cri_random(seed) % COUNT(numbers)]); break;
    }
}

/* Puts something into most fields. */
static void cri_fill(const pb_message *m, void *msg, arena *a, uint32_t *seed)
{
    for (const pb_field *f = m->fields; f < m->fields + m->nfields; f++) {
        size_t n = cri_random(seed) % 4;
        if (!f->list && n) cri_fill_value(f, pb_at(msg, f), a, seed);
        if (!f->list || !n || pb_grow(msg, f, n, a, &(error){ 0 }) < 0) continue;
        while (n-- > 0) cri_fill_value(f, pb_append(msg, f), a, seed);
    }
}

/* KRUN_DUMP=<directory> keeps both forms, to hold another implementation against them. */
static void cri_dump(const pb_message *m, const buf *wire, const buf *text)
{
    char path[PATH_MAX];
    const char *directory = getenv("KRUN_DUMP");
    for (int form = 0; directory && form < 2; form++) {
        snprintf(path, sizeof path, "%s/%s.%s", directory, m->name, form ? "json" : "pb");
        OWNED_FD fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        const buf *b = form ? text : wire;
        CHECK(write(fd, b->p, b->n) == (ssize_t)b->n);
    }
}

static void cri_round_trip(const pb_message *m, uint32_t seed)
{
    OWNED_ARENA a = arena_make(16 * MIB);
    OWNED_BUF wire = { 0 }, again = { 0 }, text = { 0 }, from_text = { 0 };
    error e = { 0 };
    void *in = arena_alloc(&a, m->size), *out = arena_alloc(&a, m->size);
    cri_fill(m, in, &a, &seed);
    CHECK_INT(pb_encode(m, in, &wire), 0);
    CHECK_INT(pb_size(m, in), wire.n);
    CHECK_INT(pb_decode(m, buf_view(&wire), &a, out, &e), 0);
    CHECK_INT(pb_encode(m, out, &again), 0);
    CHECK(slice_eq(buf_view(&wire), buf_view(&again)));
    pb_write_json(m, out, PB_INDENT | PB_DEFAULTS, &text);
    CHECK_INT(pb_read_json(m, buf_view(&text), &a, out, &e), 0);
    CHECK_INT(pb_encode(m, out, &from_text), 0);
    CHECK(slice_eq(buf_view(&wire), buf_view(&from_text)));
    if (e.code) fprintf(stderr, "%s: %s\n", m->name, e.text);
    cri_dump(m, &wire, &text);
}

TEST(cri_messages_come_back_from_both_forms)
{
    cri_collect();
    for (size_t i = 0; i < cri_all.nmessages; i++) cri_round_trip(cri_all.messages[i], (uint32_t)i);
    for (size_t i = 0; i < COUNT(cri_records); i++) cri_round_trip(cri_records[i], (uint32_t)i);
}

TEST(cri_tables_ascend_and_stay_inside_their_structs)
{
    cri_collect();
    for (size_t i = 0; i < COUNT(cri_records) + cri_all.nmessages; i++) {
        const pb_message *m =
            i < COUNT(cri_records) ? cri_records[i] : cri_all.messages[i - COUNT(cri_records)];
        size_t end = 0;
        CHECK(m->nfields <= PB_FIELDS);
        for (const pb_field *f = m->fields; f < m->fields + m->nfields; f++) {
            size_t size = f->list                 ? sizeof(pb_list)
                          : f->kind == PB_MESSAGE ? sizeof(void *)
                                                  : pb_element(f);
            CHECK(f == m->fields ? f->number > 0 : f->number > f[-1].number);
            CHECK(f->offset >= end && f->offset + size <= m->size); /* in order, so none overlap */
            CHECK(strlen(pb_proto_name(f)) < PB_NAME_MAX);
            end = f->offset + size;
        }
    }
}

TEST(cri_records_keep_their_numbers) /* they are on disk, and in monitors that are older than us */
{
    static const struct { const pb_message *m; uint32_t last; const char *name; } rows[] = {
        { &ProcessUser_msg, 3, "groups" },
        { &ProcessRlimit_msg, 3, "hard" },
        { &MountSpec_msg, 13, "file" },
        { &DeviceSpec_msg, 3, "permissions" },
        { &ContainerSpec_msg, 38, "selinux_label" },
        { &PodSpec_msg, 11, "cgroup_parent" },
        { &ExecSpec_msg, 5, "stdin" },
        { &ContainerExit_msg, 7, "message" },
        { &ContainerRun_msg, 5, "exit" },
        { &MonitorRequest_msg, 7, "signal" },
        { &MonitorReply_msg, 8, "pause_pid" },
        { &ImageConfig_msg, 8, "labels" },
        { &ImageRecord_msg, 11, "manifest_digest" },
        { &PodRecord_msg, 15, "was_ready" },
        { &ContainerRecord_msg, 9, "image_id" },
        { &KrunLoadImageRequest_msg, 1, "path" },
        { &KrunLoadImageResponse_msg, 1, "names" },
    };
    CHECK_INT(COUNT(rows), COUNT(cri_records));
    for (size_t i = 0; i < COUNT(rows); i++) {
        const pb_field *f = pb_find(rows[i].m, rows[i].last);
        CHECK(rows[i].m == cri_records[i] && f && !strcmp(f->name, rows[i].name));
        CHECK(rows[i].m->nfields >= rows[i].last); /* no number is left out, none given twice */
    }
    CHECK_INT(MONITOR_SETUP, 1);
    CHECK_INT(MONITOR_SHUTDOWN, 8);
}

TEST(cri_requests_survive_damage)
{
    static const pb_message *const targets[] = { &RunPodSandboxRequest_msg,
                                                 &CreateContainerRequest_msg, &MonitorRequest_msg };
    int64_t end = clock_mono() + NS_PER_SEC / 2;
    uint32_t seed = 3;
    for (size_t rounds = 0; rounds < 30000 && (rounds % 16 || clock_mono() < end); rounds++) {
        const pb_message *m = targets[rounds % COUNT(targets)];
        OWNED_ARENA a = arena_make(4 * MIB), b = arena_make(4 * MIB);
        OWNED_BUF wire = { 0 }, once = { 0 }, twice = { 0 };
        error e = { 0 };
        void *in = arena_alloc(&a, m->size), *out = arena_alloc(&a, m->size);
        cri_fill(m, in, &a, &seed);
        pb_encode(m, in, &wire);
        pb_mutate(&wire, &seed);
        if (pb_decode(m, buf_view(&wire), &a, out, &e) < 0) {
            CHECK(e.code && strstr(e.text, ":"));
            continue;
        }
        pb_encode(m, out, &once);
        CHECK_INT(pb_decode(m, buf_view(&once), &b, in, &e), 0);
        pb_encode(m, in, &twice);
        CHECK(slice_eq(buf_view(&once), buf_view(&twice)));
    }
}
