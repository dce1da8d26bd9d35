/* Tests of chapter 25 without a kernel: the tables, the lookups, the states, the waiting. What runs
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

TEST(container_states_never_go_back)
{
    static const int rank[BOX_STATES] = { 0, 1, 2, 3, 4, 5, 6 };
    for (int s = BOX_MAKING; s < BOX_STATES; s++)
        for (int event = 0; event < BOX_EVENTS; event++)
            CHECK(box_next[s][event] == BOX_ILLEGAL || rank[box_next[s][event]] >= rank[s]);
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
