/* Tests of chapter 29. Plugins are shell scripts in a directory of their own; what they were told
 * they leave in files beside them. T45 is most of this file. */

typedef struct { char path[PATH_MAX]; int dir; arena a; cni_network net; cni_args args; } cni_bench;

static void cni_put(cni_bench *b, const char *name, const char *text, mode_t mode)
{
    OWNED_FD fd = openat(b->dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    if (fd < 0 || write_all(fd, text, strlen(text)) < 0 || fchmod(fd, mode) < 0) abort();
}

/* A plugin that records command, environment and stdin, then runs `body`. */
static void cni_put_plugin(cni_bench *b, const char *name, const char *body)
{
    const char *text = arena_printf(&b->a,
             "#!/bin/sh\ncd '%s'\necho \"%s $CNI_COMMAND\" >> calls\nenv | sort > %s.env\ncat > %s.$CNI_COMMAND.in\n%s\n",
             b->path, name, name, name, body);
    cni_put(b, name, text, 0755);
}

static void cni_bench_open(cni_bench *b)
{
    *b = (cni_bench){ .a = arena_make(64 * MIB) };
    b->dir = temp_dir(b->path);
    b->args = (cni_args){ .network = &b->net, .bin_dirs = b->path, .netns_path = "/run/netns/x", .container_id = "c0ffee",
                          .ifname = "eth0", .pod_name = SLICE("web-0"), .pod_namespace = SLICE("shop"), .pod_uid = SLICE("u-1"),
                          .cancel_fd = -1, .deadline = clock_mono() + 20 * NS_PER_SEC };
}

static void cni_bench_close(cni_bench *b)
{
    error e;
    arena_free(&b->a);
    close(b->dir);
    CHECK(tree_remove(AT_FDCWD, b->path, &e) == 0);
}

static slice cni_bench_read(cni_bench *b, const char *name)
{
    slice text = { NULL, 0 };
    error e;
    text = file_read(b->dir, name, 4 * MIB, &b->a, &e);
    return text;
}


static bool cni_says(slice text, const char *part)
{
    return memmem(text.p ? text.p : (uint8_t *)"", text.n, part, strlen(part));
}

/* Whether the process whose pid a plugin left in a file still runs; dead and not reaped is dead. */
static bool cni_alive(cni_bench *b, const char *name)
{
    slice stat = { NULL, 0 };
    error e;
    const char *path = arena_printf(&b->a, "/proc/%d/stat", atoi((const char *)cni_bench_read(b, name).p));
    return (stat = file_read(AT_FDCWD, path, MIB, &b->a, &e)).p && !cni_says(stat, ") Z") && !cni_says(stat, ") X");
}

#define CNI_LIST(plugins) "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[" plugins "]}"

TEST(cni_load_takes_the_first_file_and_says_what_is_wrong_with_it)
{
    static const struct { const char *name, *text, *error; } rows[] = {
        { NULL, NULL, "no networks found in " },
        { "README", CNI_LIST("{\"type\":\"a\"}"), "no networks found in " },
        { "10.conflist", "", "JSON: byte 0" },
        { "10.conflist", "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plug", "JSON: byte" },
        { "10.conflist", "[]", "no valid \"name\"" },
        { "10.conflist", "{\"name\":\"../x\",\"plugins\":[{\"type\":\"a\"}]}", "no valid \"name\"" },
        { "10.conflist", "{\"name\":\"net\",\"cniVersion\":\"1.0.0\"}", "0 plugins" },
        { "10.conflist", "{\"name\":\"net\",\"plugins\":[]}", "0 plugins" },
        { "10.conflist", "{\"name\":\"net\",\"plugins\":[{\"type\":\"../sh\"}]}", "plugin 1 has no valid \"type\"" },
        { "10.conflist", "{\"name\":\"net\",\"plugins\":[7]}", "plugin 1 has no valid \"type\"" },
        { "10.conf", "{\"name\":\"net\",\"type\":7}", "plugin 1 has no valid \"type\"" },
        { "10.conf", "{\"name\":\"net\",\"type\":\"a\",\"cniVersion\":\"9.0\"}", "unknown cniVersion \"9.0\"" },
        { "10.conf", "{\"name\":\"net\",\"type\":\"a\"}", NULL },
        { "10.json", "{\"name\":\"net\",\"type\":\"a\",\"cniVersion\":\"0.3.1\"}", NULL },
        { "10.conflist", CNI_LIST("{\"type\":\"a\"},{\"type\":\"b\"}"), NULL },
        { "10.conflist", "{\"cniVersions\":[\"0.4.0\",\"1.1.0\",\"2.0.0\"],\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}]}", NULL },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        cni_bench b;
        error e = { 0 };
        cni_bench_open(&b);
        cni_put(&b, "99-later.conflist", CNI_LIST("{\"type\":\"z\"}"), 0644);
        if (!rows[i].name || !strcmp(rows[i].name, "README")) unlinkat(b.dir, "99-later.conflist", 0);
        if (rows[i].name) cni_put(&b, rows[i].name, rows[i].text, 0644);
        int got = cni_load(b.path, &b.a, &b.net, &e);
        CHECK_INT(got, rows[i].error ? -1 : 0);
        if (rows[i].error) CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
        if (rows[i].error && !cni_says(slice_of(e.text), rows[i].error)) CHECK_TEXT(slice_of(e.text), rows[i].error);
        if (!rows[i].error) CHECK_TEXT(json_text(json_get(b.net.plugins, "type")), "a");
        if (i == COUNT(rows) - 1) CHECK_TEXT(b.net.version, "1.1.0");
        cni_bench_close(&b);
    }
}

TEST(cni_add_runs_the_chain_and_tells_each_plugin_what_it_may_know)
{
    cni_bench b;
    error e = { 0 };
    cni_result r;
    PortMapping ports[] = { { Protocol_UDP, 53, 5353, SLICE("127.0.0.1") }, { Protocol_TCP, 80, 0, { 0 } } };
    pb_pair notes[] = { { SLICE("kubernetes.io/ingress-bandwidth"), SLICE("10M") }, { SLICE("x"), SLICE("y") } };
    slice servers[] = { SLICE("10.96.0.10") };
    DNSConfig dns = { .servers = { servers, 1 } };
    PodSandboxConfig config = { .port_mappings = { ports, 2 }, .annotations = { notes, 2 }, .dns_config = &dns };
    cni_bench_open(&b);
    cni_put_plugin(&b, "first", "echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.1.2.3/24\"}],\"marker\":1}'");
    cni_put_plugin(&b, "second", "echo noise >&2; echo '{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"br0\"},{\"name\":\"eth0\",\"sandbox\":\"/n\"},{\"name\":\"net1\",\"sandbox\":\"/n\"}],"
                                 "\"ips\":[{\"address\":\"192.168.0.1/24\",\"interface\":0},{\"address\":\"10.9.9.9/24\",\"interface\":2},{\"address\":\"10.9.9.8/24\",\"interface\":7},{\"address\":\"fd00::5/64\",\"interface\":1},{\"address\":\"10.1.2.3/24\",\"interface\":1}]}'");
    cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"first\",\"mtu\":1400,\"q\":\"\\u0001\\\"\",\"o\":{\"a\":[null,true,1.5e3]}},"
            "{\"type\":\"second\",\"prevResult\":{},\"capabilities\":{\"portMappings\":true,\"bandwidth\":true,\"dns\":true,\"mac\":true}}"), 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    b.args.config = &config;
    CHECK_INT(cni_add(&b.args, &b.a, &r, &e), 0);
    CHECK_INT(r.ips.n, 2);
    CHECK_TEXT(r.ips.p[0], "fd00::5");
    CHECK_TEXT(r.ips.p[1], "10.1.2.3");
    CHECK_TEXT(cni_bench_read(&b, "calls"), "first ADD\nsecond ADD\n");
    CHECK_TEXT(cni_bench_read(&b, "first.ADD.in"),
               "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"type\":\"first\",\"mtu\":1400,\"q\":\"\\u0001\\\"\",\"o\":{\"a\":[null,true,1.5e3]}}");
    CHECK_TEXT(cni_bench_read(&b, "second.ADD.in"),
               "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"type\":\"second\","
               "\"capabilities\":{\"portMappings\":true,\"bandwidth\":true,\"dns\":true,\"mac\":true},"
               "\"runtimeConfig\":{\"portMappings\":[{\"hostPort\":5353,\"containerPort\":53,\"protocol\":\"udp\",\"hostIP\":\"127.0.0.1\"}],"
               "\"dns\":{\"servers\":[\"10.96.0.10\"],\"searches\":[],\"options\":[]},"
               "\"bandwidth\":{\"ingressRate\":10000000,\"ingressBurst\":2147483647}},"
               "\"prevResult\":{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.1.2.3/24\"}],\"marker\":1}}");
    slice env = cni_bench_read(&b, "first.env");
    CHECK(cni_says(env, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u-1\n"));
    CHECK(cni_says(env, "CNI_CONTAINERID=c0ffee\n") && cni_says(env, "CNI_NETNS=/run/netns/x\n") && cni_says(env, "CNI_IFNAME=eth0\n"));
    CHECK(!cni_says(env, "HOME="));
    CHECK_INT(cni_del(&b.args, r.result_json, &e), 0);
    CHECK_TEXT(cni_bench_read(&b, "calls"), "first ADD\nsecond ADD\nsecond DEL\nfirst DEL\n");
    CHECK(cni_says(cni_bench_read(&b, "first.DEL.in"), "\"prevResult\":{\"cniVersion\":\"1.0.0\",\"interfaces\":"));
    cni_bench_close(&b);
}

/* T45. Each row is the second plugin of a chain of two. */
TEST(cni_add_fails_within_bounds_and_undoes_the_chain)
{
    static const struct { const char *body, *text; int code; } rows[] = {
        { "yes 0123456789 | head -c 2000000", "printed more than 1048576 bytes", GRPC_INTERNAL },
        { "yes >&2 & yes 0123456789; true", "printed more than 1048576 bytes", GRPC_INTERNAL },
        { "echo '{\"cniVersion\":'", "CNI plugin bad, result: JSON: byte", GRPC_INTERNAL },
        { "echo '{\"cniVersion\":\"7.0.0\",\"ips\":[]}'", "CNI plugin bad, result: its result has an unknown cniVersion", GRPC_INTERNAL },
        { "echo '{\"cniVersion\":\"1.0.0\"}'", "gave no IP address to eth0", GRPC_INTERNAL },
        { "echo '[1]'", "its result is no object", GRPC_INTERNAL },
        { "echo '{\"ips\":[{\"address\":\"10.0.0.300/8\"}]}'", "no IP address in \"10.0.0.300/8\"", GRPC_INTERNAL },
        { "echo '{\"ips\":[{}]}'", "no IP address in \"\"", GRPC_INTERNAL },
        { "printf '{\"ips\":['; for i in $(seq 999); do printf '{\"address\":\"10.0.0.1/8\"},'; done; echo '{}]}'", "more than 32 addresses", GRPC_INTERNAL },
        { "true", "it printed no result", GRPC_INTERNAL },
        { "printf '%s' '{\"code\":11,\"msg\":\"try\\nagain\",\"details\":\"why\"}'; exit 1", "CNI plugin bad, ADD: try\\x0aagain; why (code 11)", GRPC_INTERNAL },
        { "echo 'no such device' >&2; exit 3", "CNI plugin bad, ADD: exit code 3: no such device", GRPC_INTERNAL },
        { "kill -9 $$", "exit code 137", GRPC_INTERNAL },
        { "sleep 30 & echo $! > child; wait", "did not end in time", GRPC_DEADLINE_EXCEEDED },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        cni_bench b;
        error e = { 0 };
        cni_result r;
        char body[1024];
        int64_t began = clock_mono();
        cni_bench_open(&b);
        snprintf(body, sizeof body, "if [ $CNI_COMMAND = DEL ]; then exit 0; fi\n%s", rows[i].body);
        cni_put_plugin(&b, "good", "[ $CNI_COMMAND = DEL ] || echo '{\"ips\":[{\"address\":\"10.1.2.3/24\"}]}'");
        cni_put_plugin(&b, "bad", body);
        cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"good\"},{\"type\":\"bad\"}"), 0644);
        CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
        b.args.deadline = clock_mono() + (rows[i].code == GRPC_DEADLINE_EXCEEDED ? 3 : 60) * NS_PER_SEC;
        CHECK_INT(cni_add(&b.args, &b.a, &r, &e), -1);
        CHECK_INT(e.code, rows[i].code);
        if (!cni_says(slice_of(e.text), rows[i].text)) CHECK_TEXT(slice_of(e.text), rows[i].text);
        CHECK_TEXT(cni_bench_read(&b, "calls"), "good ADD\nbad ADD\nbad DEL\ngood DEL\n");
        CHECK(clock_mono() - began < 25 * NS_PER_SEC);
        if (rows[i].code == GRPC_DEADLINE_EXCEEDED) CHECK(!cni_alive(&b, "child"));
        cni_bench_close(&b);
    }
}

TEST(cni_add_does_not_wait_for_a_child_that_holds_stdout)
{
    cni_bench b;
    error e = { 0 };
    cni_result r;
    cni_bench_open(&b);
    cni_put_plugin(&b, "forks", "sleep 60 & echo $! > child; echo '{\"ips\":[{\"address\":\"10.1.2.3/24\"}]}'");
    cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"forks\"}"), 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    int64_t began = clock_mono();
    CHECK_INT(cni_add(&b.args, &b.a, &r, &e), 0);
    CHECK(clock_mono() - began < 50 * NS_PER_SEC);
    CHECK_TEXT(r.ips.p[0], "10.1.2.3");
    kill(atoi((const char *)cni_bench_read(&b, "child").p), SIGKILL);
    cni_bench_close(&b);
}

TEST(cni_add_ends_when_it_is_cancelled_and_still_undoes)
{
    cni_bench b;
    error e = { 0 };
    cni_result r;
    cni_bench_open(&b);
    cni_put_plugin(&b, "hangs", "[ $CNI_COMMAND = DEL ] || exec sleep 30");
    cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"hangs\"}"), 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    OWNED_FD cancelled = eventfd(1, EFD_CLOEXEC);
    b.args.cancel_fd = cancelled;
    bound_divisor = 20;
    CHECK_INT(cni_add(&b.args, &b.a, &r, &e), -1);
    bound_divisor = 1;
    CHECK_INT(e.code, GRPC_CANCELLED);
    CHECK(slice_ends(cni_bench_read(&b, "calls"), "hangs DEL\n"));
    cni_bench_close(&b);
}

TEST(cni_del_goes_on_after_a_failure_and_reports_the_first)
{
    cni_bench b;
    error e = { 0 };
    cni_bench_open(&b);
    cni_put_plugin(&b, "one", "exit 1");
    cni_put_plugin(&b, "three", "echo '{\"code\":7,\"msg\":\"third\"}'; exit 1");
    cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"one\"},{\"type\":\"missing\"},{\"type\":\"three\"}"), 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    CHECK_INT(cni_del(&b.args, (slice){ 0 }, &e), -1);
    CHECK_TEXT(slice_of(e.text), "CNI plugin three, DEL: third (code 7)");
    CHECK_TEXT(cni_bench_read(&b, "calls"), "three DEL\none DEL\n");
    cni_bench_close(&b);
}

TEST(cni_del_that_is_left_to_the_next_daemon_begins_no_other_plugin)
{
    cni_bench b;
    error e = { 0 };
    cni_bench_open(&b);
    cni_put_plugin(&b, "one", "");
    cni_put_plugin(&b, "two", "");
    cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"one\"},{\"type\":\"two\"}"), 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    OWNED_FD ending = eventfd(1, EFD_CLOEXEC);
    b.args.cancel_fd = ending;
    b.args.let_go = true;
    CHECK_INT(cni_del(&b.args, (slice){ 0 }, &e), -1);
    CHECK_INT(e.code, GRPC_CANCELLED);
    while (waitpid(-1, NULL, __WALL) > 0) {} /* they go on without us */
    CHECK_TEXT(cni_bench_read(&b, "calls"), "two DEL\n");
    cni_bench_close(&b);
}

TEST(cni_add_names_a_plugin_that_is_missing)
{
    cni_bench b;
    error e = { 0 };
    cni_result r;
    char dirs[2 * PATH_MAX];
    cni_bench_open(&b);
    cni_put(&b, "n.conflist", CNI_LIST("{\"type\":\"nowhere\"}"), 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    CHECK_INT(cni_add(&b.args, &b.a, &r, &e), -1);
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    CHECK(cni_says(slice_of(e.text), "CNI plugin nowhere, ADD: it is not in /"));
    cni_put_plugin(&b, "nowhere", "echo '{\"ip4\":{\"ip\":\"10.9.8.7/16\"}}'"); /* a result of 0.2.0 */
    snprintf(dirs, sizeof dirs, "/nonexistent,%s", b.path);
    b.args.bin_dirs = dirs;
    CHECK_INT(cni_add(&b.args, &b.a, &r, &e), 0);
    CHECK_TEXT(r.ips.p[0], "10.9.8.7");
    b.args.pod_name = SLICE("a;K8S_POD_NAMESPACE=kube-system");
    CHECK_INT(cni_add(&b.args, &b.a, &r, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    cni_bench_close(&b);
}

TEST(cni_rate_reads_quantities)
{
    static const struct { const char *text; uint64_t rate; } rows[] = {
        { "10M", 10000000 }, { "1Ki", 1024 }, { "2Gi", UINT64_C(2) << 30 }, { "5", 5 }, { "3k", 3000 }, { "1G", 1000000000 },
        { "", 0 }, { "M", 0 }, { "-1M", 0 }, { "1.5M", 0 }, { "10m", 0 }, { "99999999999999999999", 0 }, { "9223372036854775807Gi", 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) CHECK_INT(cni_rate(slice_of(rows[i].text)), rows[i].rate);
}

static int cni_shell(cni_bench *b, const char *format, const char *value)
{
    char *command = arena_str(&b->a, slice_of(format)), *at = strstr(command, "%s");
    *at = '\0';
    return system(arena_printf(&b->a, "%s%s%s", command, value, at + 2));
}

/* The CNI project's own plugins: a bridge, addresses by host-local, a published port. */
TEST(cni_connects_a_namespace_with_the_real_plugins)
{
    cni_bench b;
    error e = { 0 };
    cni_result r;
    char name[64];
    static const char *const dirs[] = { "/opt/cni/bin", "/usr/lib/cni" };
    const char *bin = faccessat(AT_FDCWD, "/opt/cni/bin/bridge", X_OK, 0) == 0 ? dirs[0] : dirs[1];
    if (access(bin, X_OK) < 0 || geteuid() != 0) SKIP("no CNI plugins in /opt/cni/bin or /usr/lib/cni, or not root");
    cni_bench_open(&b);
    snprintf(name, sizeof name, "krunt%d", (int)getpid());
    const char *netns = arena_printf(&b.a, "%s/netns", b.path);
    cni_put(&b, "netns", "", 0600);
    if (cni_shell(&b, "unshare --net=%s true", netns) != 0) { /* pinned by a mount, as krun does */
        cni_bench_close(&b);
        SKIP("cannot make a network namespace");
    }
    const char *conf = arena_printf(&b.a, "{\"cniVersion\":\"0.4.0\",\"name\":\"%s\",\"plugins\":[{\"type\":\"bridge\",\"bridge\":\"%s\",\"isGateway\":true,"
             "\"ipam\":{\"type\":\"host-local\",\"dataDir\":\"%s/ipam\",\"ranges\":[[{\"subnet\":\"10.213.47.0/24\"}]]}},"
             "{\"type\":\"portmap\",\"snat\":false,\"capabilities\":{\"portMappings\":true}}]}", name, name, b.path);
    cni_put(&b, "n.conflist", conf, 0644);
    CHECK_INT(cni_load(b.path, &b.a, &b.net, &e), 0);
    PortMapping port = { Protocol_TCP, 80, 38080, { 0 } };
    PodSandboxConfig config = { .port_mappings = { &port, 1 } };
    b.args.config = &config;
    b.args.bin_dirs = bin;
    b.args.netns_path = netns;
    b.args.container_id = name;
    int added = cni_add(&b.args, &b.a, &r, &e);
    if (added < 0 && cni_says(slice_of(e.text), "iptables")) { /* a machine without netfilter: the rest can be tested */
        b.net.nplugins = 1;
        added = cni_add(&b.args, &b.a, &r, &e);
    }
    if (added < 0) CHECK_TEXT(slice_of(e.text), "");
    else {
        CHECK_TEXT(r.ips.p[0], "10.213.47.2");
        CHECK_INT(cni_shell(&b, "nsenter --net=%s ip -o addr show dev eth0 | grep -q 10.213.47.2/24", netns), 0);
        CHECK_INT(cni_del(&b.args, r.result_json, &e), 0);
        CHECK(cni_shell(&b, "nsenter --net=%s ip -o link show dev eth0 2>/dev/null", netns) != 0);
        CHECK_INT(cni_del(&b.args, r.result_json, &e), 0); /* again: harmless */
        b.args.netns_path = "";
        CHECK_INT(cni_del(&b.args, r.result_json, &e), 0);
    }
    umount2(netns, MNT_DETACH);
    CHECK_INT(cni_shell(&b, "ip link del %s 2>/dev/null", name), 0);
    cni_bench_close(&b);
}
