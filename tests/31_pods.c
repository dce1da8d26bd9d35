/* Tests of chapters 31 to 34 without a kernel: the tables, the lookups, the states, the waiting. What runs
 * real pods is in tests/integration. */

TEST(sorted_finds_adds_and_removes_in_order)
{
    sorted s = { 0 };
    static char keys[1000][8];
    srand(2);
    for (int i = 0; i < 1000; i++) {
        snprintf(keys[i], sizeof keys[i], "%05d", (i * 7919) % 1000);
        CHECK(sorted_add(&s, slice_of(keys[i]), keys[i]));
    }
    for (size_t i = 1; i < s.n; i++) CHECK(slice_cmp(s.rows[i - 1].key, s.rows[i].key) < 0);
    for (int i = 0; i < 1000; i += 2) sorted_remove(&s, slice_of(keys[i]), keys[i]);
    for (int i = 0; i < 1000; i++) CHECK(sorted_find(&s, slice_of(keys[i])) == (i % 2 ? keys[i] : NULL));
    CHECK_INT(s.n, 500);
    free(s.rows);
}

TEST(ids_are_found_by_themselves_and_by_prefixes_that_fit_one)
{
    sorted s = { 0 };
    error e;
    int a, b, c;
    sorted_add(&s, SLICE("aa11"), &a);
    sorted_add(&s, SLICE("aa22"), &b);
    sorted_add(&s, SLICE("bb"), &c);
    CHECK(find_by_id(&s, SLICE("aa11"), "x", &e) == &a);
    CHECK(find_by_id(&s, SLICE("aa2"), "x", &e) == &b);
    CHECK(find_by_id(&s, SLICE("b"), "x", &e) == &c);
    CHECK(!find_by_id(&s, SLICE("a"), "x", &e));
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    static const char *const none[] = { "", "c", "aa111", "0", "bbb" };
    for (size_t i = 0; i < COUNT(none); i++) {
        CHECK(!find_by_id(&s, slice_of(none[i]), "x", &e));
        CHECK_INT(e.code, GRPC_NOT_FOUND);
    }
    free(s.rows);
}

/* What can happen to a container in each state; what is not here cannot, as the table's comment says. */
static const struct { uint8_t from, event, to; } box_moves[] = {
    { BOX_MAKING, BOX_MADE, BOX_CREATED },       { BOX_MAKING, BOX_REMOVE, BOX_REMOVING },
    { BOX_CREATED, BOX_START, BOX_STARTING },    { BOX_CREATED, BOX_RAN, BOX_RUNNING },
    { BOX_CREATED, BOX_EXIT, BOX_EXITED },       { BOX_CREATED, BOX_REMOVE, BOX_REMOVING },
    { BOX_CREATED, BOX_LEAVE, BOX_REMOVING },    { BOX_STARTING, BOX_RAN, BOX_RUNNING },
    { BOX_STARTING, BOX_EXIT, BOX_EXITED },      { BOX_RUNNING, BOX_RAN, BOX_RUNNING },
    { BOX_RUNNING, BOX_STOP, BOX_STOPPING },     { BOX_RUNNING, BOX_EXIT, BOX_EXITED },
    { BOX_RUNNING, BOX_LEAVE, BOX_REMOVING },    { BOX_STOPPING, BOX_RAN, BOX_STOPPING },
    { BOX_STOPPING, BOX_STOP, BOX_STOPPING },    { BOX_STOPPING, BOX_EXIT, BOX_EXITED },
    { BOX_EXITED, BOX_RAN, BOX_EXITED },         { BOX_EXITED, BOX_EXIT, BOX_EXITED },
    { BOX_EXITED, BOX_REMOVE, BOX_REMOVING },    { BOX_EXITED, BOX_LEAVE, BOX_REMOVING },
    { BOX_REMOVING, BOX_EXIT, BOX_REMOVING },
};

TEST(a_container_moves_by_its_table_and_never_back)
{
    int met = 0, possible = 0;
    ContainerSpec spec = { .umask = 0 };
    for (size_t i = 0; i < COUNT(box_moves); i++) {
        pod p = { .runtime = NULL };
        container c = { .pod = &p, .state = box_moves[i].from, .record = { .id = SLICE("c"), .spec = &spec } };
        container_move(&c, box_moves[i].event);
        CHECK_INT(c.state, box_moves[i].to);
        CHECK(box_moves[i].to >= box_moves[i].from);
        met |= 1 << box_moves[i].to;
    }
    for (int s = BOX_MAKING; s < BOX_STATES; s++)
        for (int event = 0; event < BOX_EVENTS; event++) possible += box_next[s][event] != BOX_ILLEGAL;
    CHECK_INT(possible, COUNT(box_moves));
    CHECK_INT(met, (1 << BOX_STATES) - (1 << BOX_CREATED));
}

TEST(what_is_told_late_of_a_container_changes_nothing)
{
    runtime r = { .lock = PTHREAD_MUTEX_INITIALIZER };
    pod p = { .runtime = &r };
    ContainerSpec spec = { .umask = 0 };
    container c = { .pod = &p, .state = BOX_STARTING, .record = { .id = SLICE("c"), .spec = &spec } };
    c.memory = arena_make(64 * KIB);
    sorted_add(&r.containers_by_id, c.record.id, &c);
    ContainerRun ran = { .id = c.record.id, .state = ContainerState_CONTAINER_RUNNING, .pid = 7, .started_at = 5 };
    container_heard(&p, &ran);
    CHECK(c.state == BOX_RUNNING && c.pid == 7 && c.started_at == 5);
    container_move(&c, BOX_STOP);
    container_heard(&p, &ran);
    CHECK_INT(c.state, BOX_STOPPING);
    CHECK(container_set_exit(&c, &(ContainerExit){ .id = c.record.id, .exit_code = 3, .started_at = 5 }));
    container_heard(&p, &ran); /* the answer to its start comes after the link has told of its end */
    CHECK(c.state == BOX_EXITED && c.pid == 0);
    CHECK(!container_set_exit(&c, &(ContainerExit){ .id = c.record.id, .exit_code = 255 }));
    CHECK_INT(c.exit.exit_code, 3);
    arena_free(&c.memory);
    free(r.containers_by_id.rows);
}

static const struct { uint8_t from, event, to; } pod_moves[] = {
    { POD_MAKING, POD_MADE, POD_READY },         { POD_MAKING, POD_FAIL, POD_FAILED },
    { POD_MAKING, POD_BREAK, POD_FAILED },       { POD_MAKING, POD_LOSE, POD_FAILED },
    { POD_MAKING, POD_LEAVE, POD_REMOVING },     { POD_FAILED, POD_FAIL, POD_FAILED },
    { POD_FAILED, POD_BREAK, POD_FAILED },       { POD_FAILED, POD_LOSE, POD_FAILED },
    { POD_FAILED, POD_END, POD_FAILED },         { POD_FAILED, POD_KEEP, POD_STOPPED },
    { POD_FAILED, POD_REMOVE, POD_REMOVING },    { POD_READY, POD_BREAK, POD_BROKEN },
    { POD_READY, POD_LOSE, POD_LOST },           { POD_READY, POD_STOP, POD_STOPPING },
    { POD_BROKEN, POD_BREAK, POD_BROKEN },       { POD_BROKEN, POD_LOSE, POD_LOST },
    { POD_BROKEN, POD_STOP, POD_STOPPING },      { POD_LOST, POD_STOP, POD_STOPPING },
    { POD_STOPPING, POD_BREAK, POD_STOPPING },   { POD_STOPPING, POD_LOSE, POD_STOPPING },
    { POD_STOPPING, POD_STOP, POD_STOPPING },    { POD_STOPPING, POD_END, POD_STOPPED },
    { POD_STOPPED, POD_BREAK, POD_STOPPED },     { POD_STOPPED, POD_LOSE, POD_STOPPED },
    { POD_STOPPED, POD_STOP, POD_STOPPED },      { POD_STOPPED, POD_REMOVE, POD_REMOVING },
    { POD_REMOVING, POD_BREAK, POD_REMOVING },   { POD_REMOVING, POD_LOSE, POD_REMOVING },
};

TEST(a_pod_moves_by_its_table_and_never_back)
{
    int met = 0, possible = 0;
    PodSpec spec = { .pid = NamespaceMode_POD };
    PodSandboxConfig config = { .metadata = NULL };
    for (size_t i = 0; i < COUNT(pod_moves); i++) {
        pod p = { .state = pod_moves[i].from, .link = { .fd = -1 }, .record = { .spec = &spec, .config = &config } };
        pod_move(&p, pod_moves[i].event);
        CHECK_INT(p.state, pod_moves[i].to);
        CHECK(pod_moves[i].to >= pod_moves[i].from);
        met |= 1 << pod_moves[i].to;
    }
    for (int s = POD_MAKING; s < POD_STATES; s++)
        for (int event = 0; event < POD_EVENTS; event++) possible += pod_next[s][event] != POD_ILLEGAL;
    CHECK_INT(possible, COUNT(pod_moves));
    CHECK_INT(met, (1 << POD_STATES) - (1 << POD_FAILED));
}

/* A stop that waits for its turn, and one that has it, end the pod: nobody buries it beside them. */
TEST(a_monitor_that_dies_while_its_pod_is_stopped_is_nobody_elses)
{
    runtime r = { .lock = PTHREAD_MUTEX_INITIALIZER };
    static const uint8_t rows[] = { POD_FAILED, POD_STOPPING, POD_STOPPED, POD_REMOVING };
    for (size_t i = 0; i < COUNT(rows); i++) {
        pod p = { .runtime = &r, .state = rows[i], .link = { .fd = -1 } };
        lock_state(&r);
        pod_lost_monitor(&p);
        unlock_state(&r);
        CHECK_INT(p.state, rows[i]);
        CHECK_INT(r.background, 0);
        CHECK_INT(p.holds, 0);
    }
}

TEST(a_node_that_owes_too_many_networks_makes_no_more_of_them)
{
    runtime r = { .lock = PTHREAD_MUTEX_INITIALIZER, .owed_threads = OWED_THREADS };
    NamespaceOption own = { .network = NamespaceMode_POD };
    LinuxSandboxSecurityContext security = { .namespace_options = &own };
    LinuxPodSandboxConfig sandbox = { .security_context = &security };
    PodSandboxConfig config = { .linux = &sandbox };
    pod p = { .runtime = &r, .record = { .config = &config, .cni_config = SLICE("no configuration") } };
    char id[65];
    error e;
    CHECK_INT(pod_plan_network(&p, &e), -1); /* for its configuration's sake */
    CHECK(e.code != GRPC_RESOURCE_EXHAUSTED);
    for (int i = 0; i < OWED_MAX; i++) {
        snprintf(id, sizeof id, "%064d", i);
        CHECK_INT(owed_add(&r, slice_of(id), 1, &e), 0);
    }
    CHECK_INT(pod_plan_network(&p, &e), -1);
    CHECK_INT(e.code, GRPC_RESOURCE_EXHAUSTED);
    while (r.owed) {
        owed *o = r.owed;
        r.owed = o->next;
        free(o);
    }
}

TEST(ids_that_name_directories_are_64_hex_digits)
{
    char id[65];
    CHECK(new_id(id));
    CHECK(id_valid(id));
    CHECK(!id_valid(".."));
    CHECK(!id_valid("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"));
    CHECK(!id_valid("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdeF"));
}

TEST(creation_times_strictly_increase)
{
    runtime r = { .last_created = INT64_MAX / 2 }; /* the clock was set back */
    int64_t first = next_created(&r);
    CHECK(next_created(&r) > first);
}

static void *wake_later(void *arg)
{
    runtime *r = ((void **)arg)[0];
    lock_state(r);
    wake(*(waiter **)((void **)arg)[1]);
    unlock_state(r);
    return NULL;
}

TEST(waiting_ends_by_a_change_a_cancellation_or_the_deadline)
{
    runtime r = { .lock = PTHREAD_MUTEX_INITIALIZER };
    waiter *list = NULL;
    error e;
    pthread_t thread;
    void *args[] = { &r, &list };
    OWNED_FD cancel = eventfd(0, EFD_CLOEXEC);
    lock_state(&r);
    pthread_create(&thread, NULL, wake_later, args); /* it gets the lock only once we wait */
    CHECK_INT(wait_change(&r, &list, cancel, 0, &e), 0);
    CHECK_INT(wait_change(&r, &list, cancel, clock_mono() + NS_PER_MS, &e), -1);
    CHECK_INT(e.code, GRPC_DEADLINE_EXCEEDED);
    uint64_t one = 1;
    CHECK(write(cancel, &one, sizeof one) > 0);
    CHECK_INT(wait_change(&r, &list, cancel, 0, &e), -1);
    CHECK_INT(e.code, GRPC_CANCELLED);
    CHECK(!list);
    unlock_state(&r);
    pthread_join(thread, NULL);
}

static void *background_ends(void *arg)
{
    runtime *r = arg;
    LOCKED(r);
    if (--r->background == 0) wake(r->quiet_waiters);
    return NULL;
}

TEST(the_end_of_the_daemon_waits_for_its_threads_and_not_for_ever)
{
    runtime r = { .lock = PTHREAD_MUTEX_INITIALIZER, .background = 1 };
    pthread_t thread;
    CHECK(!runtime_is_quiet(&r, clock_mono() + NS_PER_MS));
    CHECK_INT(r.background, 1);
    pthread_create(&thread, NULL, background_ends, &r);
    CHECK(runtime_is_quiet(&r, clock_mono() + 60 * NS_PER_SEC));
    pthread_join(thread, NULL);
    CHECK(!r.quiet_waiters);
    CHECK(runtime_is_quiet(&r, clock_mono()));
}

TEST(times_of_a_clock_that_was_set_later_are_put_right)
{
    const int64_t boot = clock_ns(CLOCK_BOOTTIME), wall = clock_wall(), minute = 60 * NS_PER_SEC;
    runtime r = { .boot_id = "this" };
    const struct { const char *boot_id; int64_t created_at, since_boot, want; } rows[] = {
        { "this", wall - minute, boot - minute, wall - minute },        /* the clock was right */
        { "this", wall - minute + NS_PER_MS, boot - minute, wall - minute + NS_PER_MS },
        { "this", 20 * NS_PER_SEC, boot - minute, wall - minute },      /* it said 1970 */
        { "this", wall + 1000 * minute, boot - minute, wall - minute }, /* or a time to come */
        { "last", 20 * NS_PER_SEC, boot - minute, 20 * NS_PER_SEC },    /* the machine was started again */
        { "this", 20 * NS_PER_SEC, 0, 20 * NS_PER_SEC },                /* by a krun that did not write it */
    };
    runtime_look_at_clock(&r);
    for (size_t i = 0; i < COUNT(rows); i++) {
        pod p = { .runtime = &r };
        p.record.boot_id = slice_of(rows[i].boot_id);
        container c = { .pod = &p };
        p.record.created_at = c.record.created_at = rows[i].created_at;
        p.record.since_boot = c.record.since_boot = rows[i].since_boot;
        CHECK(clock_near(pod_created(&p), rows[i].want) && clock_near(container_created(&c), rows[i].want));
        int64_t shift = rows[i].want - rows[i].created_at, after = rows[i].created_at + NS_PER_SEC;
        CHECK(clock_near(container_time(&c, after), clock_near(shift, 0) ? after : after + shift));
        CHECK_INT(container_time(&c, 0), 0);
        if (i == 2) CHECK_INT(container_time(&c, wall - NS_PER_SEC), wall - NS_PER_SEC); /* told after it was set */
    }
}

TEST(pods_made_after_the_clock_was_set_are_newer_than_those_before)
{
    runtime r = { .boot_id = "this" };
    int64_t first = next_created(&r);
    CHECK(clock_near(first, clock_wall()));
    CHECK(next_created(&r) > first);
    r.clock_offset += 1000 * NS_PER_SEC; /* as if the clock had been fast until now */
    r.last_created += 1000 * NS_PER_SEC;
    int64_t third = next_created(&r);
    CHECK(clock_near(third, clock_wall()) && third > first);
}

/* Each of them may hang for ever: a process that reads from a dead file system, a monitor that is stopped. */
TEST(what_does_not_end_shares_the_patience_of_a_start)
{
    runtime r = { .start_until = 0 };
    int64_t now = clock_mono();
    CHECK(timeout_until(&r, KILL_TIMEOUT) >= now + KILL_TIMEOUT);
    r.start_until = now + START_TIMEOUT;
    CHECK(timeout_until(&r, KILL_TIMEOUT) <= now + START_TIMEOUT || clock_mono() > r.start_until - WAIT_BLIND);
    r.start_until = now - 1; /* used up: just the time that it takes to end */
    CHECK(timeout_until(&r, KILL_TIMEOUT) < now + KILL_TIMEOUT || clock_mono() > now + NS_PER_SEC);
    CHECK(timeout_until(&r, KILL_TIMEOUT) >= now + WAIT_BLIND);
}

/* A large directory that cannot be moved goes in the background: no call waits for it, and no end of the daemon. */
TEST(state_that_cannot_be_moved_to_the_trash_is_not_waited_for)
{
    store_fixture x;
    error e;
    char path[PATH_MAX + 128], id[65];
    if (geteuid() != 0) SKIP("unpack needs root for chroot");
    store_up(&x);
    images_close(x.s);
    x.s = images_open(&x.o, &e);
    CHECK(x.s != NULL);
    if (!x.s) return;
    close_fd(&x.s->trash_fd);
    snprintf(path, sizeof path, "%s/pods", x.path);
    CHECK_INT(mkdir(path, 0700), 0);
    OWNED_FD pods = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    runtime r = { .images = x.s, .pods = pods };
    CHECK(new_id(id));
    CHECK_INT(mkdirat(pods, id, 0700), 0);
    for (int i = 0; i < 2500; i++) {
        snprintf(path, sizeof path, "%s/%d", id, i);
        CHECK_INT(mkdirat(pods, path, 0700), 0);
    }
    snprintf(path, sizeof path, "%s/pod.json", id);
    close(openat(pods, path, O_CREAT | O_CLOEXEC, 0600));
    CHECK_INT(state_remove(&r, id, "pod.json", &e), 0);
    CHECK(faccessat(pods, path, F_OK, 0) < 0);
    CHECK_INT(faccessat(pods, id, F_OK, 0), 0); /* nobody has begun with it */
    images_collect(x.s);
    for (int i = 0; i < 6000 && faccessat(pods, id, F_OK, 0) == 0; i++) usleep(10000);
    CHECK(faccessat(pods, id, F_OK, 0) < 0);
    store_down(&x);
}
