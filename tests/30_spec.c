/* Tests of chapter 30: what a request is refused for, and what becomes of one that is taken. */

static PodSandboxMetadata spec_metadata = { .name = SLICE("p"), .uid = SLICE("u"), .name_space = SLICE("n") };

TEST(spec_pod_refuses_what_cannot_be_meant_and_names_the_field) /* T4, T48, T49 */
{
    PodSandboxMetadata no_name = { .uid = SLICE("u"), .name_space = SLICE("n") }, no_uid = { .name = SLICE("p"), .name_space = SLICE("n") };
    NamespaceOption host = { .network = NamespaceMode_NODE };
    LinuxSandboxSecurityContext s_host = { .namespace_options = &host };
    LinuxPodSandboxConfig l_host = { .security_context = &s_host };
    PodSandboxMetadata lined = { .name = SLICE("p\nq"), .uid = SLICE("u"), .name_space = SLICE("n") };
    slice bad_search = SLICE("a\nnameserver 6.6.6.6");
    DNSConfig dns = { .searches.p = &bad_search, .searches.n = 1 };
    LinuxPodSandboxConfig up = { .cgroup_parent = SLICE("/kubepods/../x") };
    UserNamespace own = { .mode = NamespaceMode_POD };
    NamespaceOption user = { .userns_options = &own }, target = { .pid = NamespaceMode_TARGET }, net = { .network = NamespaceMode_CONTAINER };
    LinuxSandboxSecurityContext s_user = { .namespace_options = &user }, s_target = { .namespace_options = &target }, s_net = { .namespace_options = &net };
    LinuxPodSandboxConfig l_user = { .security_context = &s_user }, l_target = { .security_context = &s_target }, l_net = { .security_context = &s_net };
    const struct { PodSandboxConfig config; slice handler; int code; const char *says; } rows[] = {
        { { .metadata = NULL }, SLICE(""), GRPC_INVALID_ARGUMENT, "metadata" },
        { { .metadata = &no_name }, SLICE(""), GRPC_INVALID_ARGUMENT, "metadata.name" },
        { { .metadata = &spec_metadata, .linux = &l_host, .hostname = SLICE("h") }, SLICE(""), GRPC_INVALID_ARGUMENT, "hostname \"h\"" },
        { { .metadata = &lined }, SLICE(""), GRPC_INVALID_ARGUMENT, "metadata.name" },
        { { .metadata = &spec_metadata, .hostname = SLICE("a\nb") }, SLICE(""), GRPC_INVALID_ARGUMENT, "hostname" },
        { { .metadata = &spec_metadata, .log_directory = SLICE("var/log") }, SLICE(""), GRPC_INVALID_ARGUMENT, "log_directory" },
        { { .metadata = &spec_metadata, .log_directory = SLICE("/var/../etc") }, SLICE(""), GRPC_INVALID_ARGUMENT, "log_directory" },
        { { .metadata = &spec_metadata, .dns_config = &dns }, SLICE(""), GRPC_INVALID_ARGUMENT, "searches" },
        { { .metadata = &spec_metadata, .linux = &up }, SLICE(""), GRPC_INVALID_ARGUMENT, "cgroup_parent" },
        { { .metadata = &spec_metadata, .linux = &l_user }, SLICE(""), GRPC_UNIMPLEMENTED, "user namespaces" },
        { { .metadata = &spec_metadata, .linux = &l_target }, SLICE(""), GRPC_INVALID_ARGUMENT, "pid" },
        { { .metadata = &spec_metadata, .linux = &l_net }, SLICE(""), GRPC_INVALID_ARGUMENT, "network" },
        { { .metadata = &spec_metadata }, SLICE("kata"), GRPC_INVALID_ARGUMENT, "kata" },
    };
    error e;
    for (size_t i = 0; i < COUNT(rows); i++) {
        PodSandboxConfig config = rows[i].config;
        RunPodSandboxRequest in = { .config = &config, .runtime_handler = rows[i].handler };
        CHECK_INT(spec_check_pod(&in, &e), -1);
        CHECK_INT(e.code, rows[i].code);
        CHECK(strstr(e.text, rows[i].says));
    }
    PodSandboxConfig good = { .metadata = &spec_metadata, .hostname = SLICE("h"), .log_directory = SLICE("/var/log/pods/x") };
    CHECK_INT(spec_check_pod(&(RunPodSandboxRequest){ .config = &good }, &e), 0);
    PodSandboxConfig others[] = { { .metadata = &no_uid }, { .metadata = &spec_metadata, .linux = &l_host } };
    for (size_t i = 0; i < COUNT(others); i++) CHECK_INT(spec_check_pod(&(RunPodSandboxRequest){ .config = &others[i] }, &e), 0);
}

TEST(spec_container_refuses_what_cannot_be_meant_and_names_the_field)
{
    ContainerMetadata name = { .name = SLICE("c") };
    ImageSpec image = { .image = SLICE("i") };
    Int64Value group = { 5 };
    KeyValue equals = { .key = SLICE("A=B"), .value = SLICE("x") };
    Mount relative = { .container_path = SLICE("data"), .host_path = SLICE("/x") }, rro = { .container_path = SLICE("/d"), .host_path = SLICE("/x"), .recursive_read_only = true };
    Mount both = { .container_path = SLICE("/d"), .host_path = SLICE("/x"), .image = &image };
    Mount up = { .container_path = SLICE("/d"), .image = &image, .readonly = true, .image_sub_path = SLICE("a/../../etc") };
    Mount nul = { .container_path = SLICE("/d"), .image = &image, .readonly = true, .image_sub_path = SLICE("a\0b") };
    SecurityProfile runtime_default = { .profile_type = ProfileType_RuntimeDefault };
    LinuxContainerSecurityContext s_group = { .run_as_group = &group }, s_seccomp = { .seccomp = &runtime_default };
    LinuxContainerConfig l_group = { .security_context = &s_group }, l_seccomp = { .security_context = &s_seccomp };
    const struct { ContainerConfig config; int code; const char *says; } rows[] = {
        { { .image = &image }, GRPC_INVALID_ARGUMENT, "metadata.name" },
        { { .metadata = &name }, GRPC_INVALID_ARGUMENT, "image" },
        { { .metadata = &name, .image = &image, .log_path = SLICE("../../etc/x") }, GRPC_INVALID_ARGUMENT, "log_path" },
        { { .metadata = &name, .image = &image, .log_path = SLICE("a\nb") }, GRPC_INVALID_ARGUMENT, "log_path" },
        { { .metadata = &name, .image = &image, .working_dir = SLICE("tmp") }, GRPC_INVALID_ARGUMENT, "working_dir" },
        { { .metadata = &name, .image = &image, .envs = { &equals, 1 } }, GRPC_INVALID_ARGUMENT, "envs" },
        { { .metadata = &name, .image = &image, .mounts = { &relative, 1 } }, GRPC_INVALID_ARGUMENT, "container_path" },
        { { .metadata = &name, .image = &image, .mounts = { &rro, 1 } }, GRPC_INVALID_ARGUMENT, "recursive_read_only" },
        { { .metadata = &name, .image = &image, .mounts = { &both, 1 } }, GRPC_INVALID_ARGUMENT, "both" },
        { { .metadata = &name, .image = &image, .mounts = { &up, 1 } }, GRPC_INVALID_ARGUMENT, "image_sub_path" },
        { { .metadata = &name, .image = &image, .mounts = { &nul, 1 } }, GRPC_INVALID_ARGUMENT, "image_sub_path" },
        { { .metadata = &name, .image = &image, .linux = &l_group }, GRPC_INVALID_ARGUMENT, "run_as_group" },
        { { .metadata = &name, .image = &image, .linux = &l_seccomp }, GRPC_UNIMPLEMENTED, "seccomp" },
    };
    error e;
    for (size_t i = 0; i < COUNT(rows); i++) {
        ContainerConfig config = rows[i].config;
        CHECK_INT(spec_check_container(&(CreateContainerRequest){ .config = &config }, &e), -1);
        CHECK_INT(e.code, rows[i].code);
        CHECK(strstr(e.text, rows[i].says));
    }
}

TEST(spec_cgroup_parent_takes_paths_and_slice_names)
{
    OWNED_ARENA a = arena_make(MIB);
    static const struct { const char *parent, *path; } rows[] = {
        { "", "krun/ID" }, { "/", "krun/ID" }, { "/kubepods/burstable/podX", "kubepods/burstable/podX" }, { "/kubepods/", "kubepods" },
        { "kubepods.slice", "kubepods.slice" }, { "a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) CHECK_TEXT(cgroup_of_parent(slice_of(rows[i].parent), SLICE("ID"), &a), rows[i].path);
}

TEST(spec_places_in_a_container_are_cleaned_by_words_and_stay_inside)
{
    static const struct { const char *path, *clean; } rows[] = {
        { "/a/b", "/a/b" }, { "/a/../b", "/b" }, { "/../../etc", "/etc" }, { "/a//b/./c/", "/a/b/c" }, { "/", "/" }, { "", "/" },
        { "a", "/a" }, { "..", "/" }, { "/a/..", "/" }, { "/a/b/../../..", "/" }, { "/..a/b..", "/..a/b.." }, { "/aa/../b/../c", "/c" },
    };
    OWNED_ARENA a = arena_make(64 * KIB);
    for (size_t i = 0; i < COUNT(rows); i++) {
        slice path = at_page_end(rows[i].path, strlen(rows[i].path));
        CHECK_TEXT(clean_path(path, &a), rows[i].clean);
    }
}

TEST(spec_signals_are_known_by_all_their_names)
{
    static const struct { const char *name; int number; } rows[] = {
        { "SIGTERM", 15 }, { "TERM", 15 }, { "15", 15 }, { "SIGNAL_SIGTERM", 15 }, { "SIGNAL_SIGRTMINPLUS3", 37 }, { "SIGRTMIN+3", 37 },
        { "RTMAX-1", 63 }, { "SIGNAL_SIGRTMAXMINUS14", 50 }, { "SIGRTMIN", 34 }, { "SIGNAL_SIGRTMAX", 64 }, { "SIGKILL", 9 }, { "0", 0 },
        { "65", 0 }, { "SIGNONE", 0 }, { "", 0 }, { "SIGRTMIN+", 0 }, { "SIGRTMIN+99", 0 }, { "-1", 0 }, { "SIGRTMIN3", 0 },
        { "sigterm", 15 }, { "term", 15 }, { "SigUsr1", 10 }, { "usr2", 12 }, { "sigrtmin+3", 37 }, { "rtmax-1", 63 }, { "64", 64 },
        { "SIGSIGTERM", 0 }, { "sig", 0 }, { "SIGRTMINPLUSSOMETHINGTHATISFARTOOLONG", 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) CHECK_INT(signal_number(slice_of(rows[i].name)), rows[i].number);
    for (size_t i = 1; i < Signal_enum.n; i++) CHECK(signal_number(slice_of(Signal_enum.names[i])) > 0); /* every one that CRI knows */
}

TEST(spec_resolv_file_is_as_the_peers_write_it)
{
    OWNED_ARENA a = arena_make(MIB);
    error e;
    slice servers[] = { SLICE("10.0.0.1"), SLICE("10.0.0.2") }, searches[] = { SLICE("a.local"), SLICE("b") }, options[] = { SLICE("ndots:5") }, out;
    DNSConfig dns = { .servers = { servers, 2 }, .searches = { searches, 2 }, .options = { options, 1 } }, empty = { 0 };
    CHECK_INT(resolv_file(&(PodRecord){ .config = &(PodSandboxConfig){ .dns_config = &dns } }, &a, &out, &e), 0);
    CHECK_TEXT(out, "search a.local b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n");
    CHECK_INT(resolv_file(&(PodRecord){ .config = &(PodSandboxConfig){ .dns_config = &empty } }, &a, &out, &e), 0);
    CHECK_TEXT(out, "");
}

/* What the container of an image with ENTRYPOINT [/e], CMD [c] and ENV runs. */
static void spec_command(const ContainerConfig *config, ContainerSpec *out, arena *a)
{
    static slice entrypoint[] = { SLICE("/e") }, cmd[] = { SLICE("c") }, env[] = { SLICE("PATH=/image"), SLICE("A=1"), SLICE("BAD"), SLICE("E=") };
    static ImageConfig image_config = { .entrypoint = { entrypoint, 1 }, .cmd = { cmd, 1 }, .env = { env, 4 } };
    static const ImageRecord image = { .config = &image_config };
    static PodSandboxConfig pod_config = { .hostname = SLICE("h") };
    static const PodRecord record = { .config = &pod_config };
    spec_context x = { .image = &image, .pod = &record, .a = a };
    error e;
    *out = (ContainerSpec){ 0 };
    CHECK_INT(spec_args(&x, config, out, &e), 0);
    CHECK_INT(spec_env(&x, config, out, &e), 0);
}

TEST(spec_command_and_args_replace_the_images_as_kubernetes_says)
{
    OWNED_ARENA a = arena_make(MIB);
    slice command[] = { SLICE("/x") }, args[] = { SLICE("y"), SLICE("z") };
    const struct { ContainerConfig config; const char *argv[4]; } rows[] = {
        { { 0 }, { "/e", "c" } }, { { .command = { command, 1 } }, { "/x" } }, { { .args = { args, 2 } }, { "/e", "y", "z" } },
        { { .command = { command, 1 }, .args = { args, 2 } }, { "/x", "y", "z" } },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        ContainerSpec out;
        spec_command(&rows[i].config, &out, &a);
        size_t n = 0;
        while (n < 4 && rows[i].argv[n]) n++;
        CHECK_INT(out.args.n, n);
        for (size_t k = 0; k < n && k < out.args.n; k++) CHECK_TEXT(out.args.p[k], rows[i].argv[k]);
    }
}

TEST(spec_environment_is_the_images_under_the_requests)
{
    OWNED_ARENA a = arena_make(MIB);
    KeyValue envs[] = { { .key = SLICE("A"), .value = SLICE("2") }, { .key = SLICE("N"), .value = SLICE("x=y") } };
    ContainerConfig config = { .envs = { envs, 2 }, .tty = true };
    static const char *const want[] = { "PATH=/image", "HOSTNAME=h", "TERM=xterm", "A=2", "E=", "N=x=y" };
    ContainerSpec out;
    spec_command(&config, &out, &a);
    CHECK_INT(out.env.n, COUNT(want));
    for (size_t i = 0; i < COUNT(want) && i < out.env.n; i++) CHECK_TEXT(out.env.p[i], want[i]);
}

TEST(spec_mounts_are_in_the_order_in_which_they_can_be_made)
{
    MountSpec mounts[] = { { .destination = SLICE("/a/b/c") }, { .destination = SLICE("/a") }, { .destination = SLICE("/z") }, { .destination = SLICE("/a/b/") } };
    error e;
    ContainerSpec s = { .mounts = { mounts, 4 } };
    CHECK_INT(sort_mounts(&s, &e), 0);
    CHECK_TEXT(mounts[0].destination, "/a");
    CHECK_TEXT(mounts[1].destination, "/z");
    CHECK_TEXT(mounts[2].destination, "/a/b/");
    CHECK_TEXT(mounts[3].destination, "/a/b/c");
}

/* As many as a request has room for; in time that grows with their square this would take hours. */
TEST(spec_mounts_of_a_long_list_are_sorted_too)
{
    enum { MANY = 300000 };
    error e;
    OWNED_ARENA a = arena_make(256 * MIB);
    char deep[PATH_MAX] = "";
    while (strlen(deep) + 3 < sizeof deep) strcat(deep, "/d"); /* the deepest that there can be */
    MountSpec *mounts = arena_alloc(&a, MANY * sizeof *mounts);
    for (size_t i = 0; i < MANY; i++)
        mounts[i] = (MountSpec){ .destination = i < MANY / 2 ? SLICE("/a/b") : SLICE("/a"), .source = { NULL, i } };
    mounts[0].destination = slice_of(deep);
    ContainerSpec s = { .mounts = { mounts, MANY } };
    CHECK_INT(sort_mounts(&s, &e), 0);
    size_t wrong = 0;
    for (size_t i = 0; i + 1 < MANY; i++)
        wrong += mounts[i].source.n != (i < MANY / 2 ? i + MANY / 2 : i - MANY / 2 + 1);
    CHECK_INT(wrong, 0);
    CHECK_INT(mounts[MANY - 1].source.n, 0);
}

static unsigned layer_users(store_fixture *x, slice name)
{
    pthread_mutex_lock(&x->s->lock);
    const store_layer *layer = *layer_slot(x->s, name);
    unsigned users = layer ? layer->users : 0;
    pthread_mutex_unlock(&x->s->lock);
    return users;
}

/* A removal between a volume's resolution and the container's own claim must not take the layers. */
TEST(spec_image_volume_holds_its_image_until_the_container_does)
{
    fake f;
    error e;
    store_fixture x;
    OWNED_ARENA a = arena_make(MIB);
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    images_collect(x.s);
    fake_up(&f, NULL, NULL);
    CHECK_INT(fake_pull(&f, &x, ":1", NULL, &e), 0);
    const ImageRecord *kept[1];
    spec_images held = { kept, 0 };
    ImageSpec image = { .image = slice_of(f.image.config_digest) };
    Mount mount = { .container_path = SLICE("/v"), .image = &image };
    MountSpec got = { 0 };
    spec_context context = { .images = x.s, .root = x.o.root_fd, .held = &held, .a = &a };
    CHECK_INT(spec_image_volume(&context, &mount, &got, &e), 0);
    CHECK_TEXT(image.image_ref, f.image.config_digest);
    CHECK(got.readonly && got.nodev && got.layers.n == 1);
    CHECK_INT(image_remove(x.s, image.image, &e), 0);
    CHECK(!store_has(&x, f.image.config_digest));
    ContainerSpec spec = { .mounts = { &got, 1 } };
    ContainerRecord c = { .spec = &spec };
    CHECK_INT(layer_users(&x, got.layers.p[0]), 1); /* 0 would be the sweeper's at any moment */
    image_layers_hold(x.s, &c);
    CHECK_INT(layer_users(&x, got.layers.p[0]), 2);
    while (held.n) image_drop(x.s, held.p[--held.n]);
    CHECK_INT(layer_users(&x, got.layers.p[0]), 1);
    image_layers_release(x.s, &c);
    fake_down(&f);
    store_down(&x);
}

TEST(spec_image_volume_shows_only_a_part_that_is_there) /* T39, CVE-2022-23648 */
{
    static const struct { const char *part; bool there; } rows[] = {
        { "dir", true }, { "dir/file", true }, { "/dir", true }, { "dir/./file", true }, { "", true },
        { "absent", false }, { "dir/absent", false }, { "dir/file/below", false },
        { "etc-link/passwd", false }, /* the host's /etc/passwd, if links were followed from the host's root */
        { "up-link/etc/passwd", false }, { "loop", false }, { "dir-link/file", true },
    };
    char path[PATH_MAX];
    error e;
    OWNED_ARENA a = arena_make(MIB);
    OWNED_FD root = temp_dir(path);
    slice layer = SLICE("l");
    CHECK(mkdirat(root, "layers", 0755) == 0 && mkdirat(root, "layers/l", 0755) == 0 && mkdirat(root, "layers/l/dir", 0755) == 0);
    CHECK(tree_write(root, "layers/l/dir/file", "x"));
    CHECK(symlinkat("/etc", root, "layers/l/etc-link") == 0 && symlinkat("../../../../../../..", root, "layers/l/up-link") == 0);
    CHECK(symlinkat("loop", root, "layers/l/loop") == 0 && symlinkat("/dir", root, "layers/l/dir-link") == 0);
    for (size_t i = 0; i < COUNT(rows); i++) {
        MountSpec m = { .layers = { &layer, 1 }, .sub_path = slice_of(rows[i].part) };
        spec_context context = { .root = root, .a = &a };
        CHECK_INT(spec_sub_path(&context, &m, &e), rows[i].there ? 0 : -1);
    }
    tree_remove(AT_FDCWD, path, &e);
}
