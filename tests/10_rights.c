/* Chapter 10: which capabilities a list of names is. */

static slice cap_words[8];
static Capability cap_request(const char *add, const char *drop,
                              const char *ambient) /* words apart by a space */
{
    const char *lists[] = { add, drop, ambient };
    Capability c = { { NULL, 0 }, { NULL, 0 }, { NULL, 0 } };
    size_t n = 0;
    for (int i = 0; i < 3; i++) {
        size_t first = n;
        for (slice rest = slice_of(lists[i]); rest.n;) cap_words[n++] = slice_cut(&rest, ' ');
        if (i == 0) c.add_capabilities.p = cap_words + first, c.add_capabilities.n = n - first;
        if (i == 1) c.drop_capabilities.p = cap_words + first, c.drop_capabilities.n = n - first;
        if (i == 2)
            c.add_ambient_capabilities.p = cap_words + first,
            c.add_ambient_capabilities.n = n - first;
    }
    return c;
}

TEST(security_caps_follow_all_before_names_and_drop_before_add) /* T53 */
{
    uint64_t ours = security_caps_permitted(),
             standard = UINT64_C(0xa80425fb) & ours; /* Docker's fourteen */
    uint64_t net_admin = UINT64_C(1) << 12 & ours, chown_bit = 1 & ours,
             sys_admin = UINT64_C(1) << 21 & ours;
    const struct { const char *add, *drop, *ambient; uint64_t set, raised; } rows[] = {
        { "", "", "", standard, 0 },
        { "NET_ADMIN", "", "", standard | net_admin, 0 },
        { "cap_net_admin", "", "", standard | net_admin, 0 },
        { "CAP_NET_ADMIN", "NET_ADMIN", "", standard, 0 },
        { "", "ALL", "", 0, 0 },
        { "NET_ADMIN", "all", "", net_admin, 0 },
        { "ALL", "", "", ours, 0 },
        { "ALL", "SYS_ADMIN", "", ours & ~sys_admin, 0 },
        { "ALL", "ALL", "", 0, 0 },
        { "", "CHOWN", "", standard & ~chown_bit, 0 },
        { "", "", "NET_ADMIN", standard | net_admin, net_admin },
        { "", "NET_ADMIN", "NET_ADMIN", standard, 0 },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e = { 0 };
        security_caps caps;
        Capability c = cap_request(rows[i].add, rows[i].drop, rows[i].ambient);
        CHECK_INT(security_caps_from_names(&c, false, &caps, &e), 0);
        CHECK(caps.set == rows[i].set && caps.ambient == rows[i].raised);
        CHECK_INT(security_caps_from_names(&c, true, &caps, &e), 0);
        CHECK(caps.set == ours);
    }
}

TEST(security_caps_refuse_unknown_names)
{
    static const char *const rows[] = { "NET",  "CAP_",          "NET_ADMINX",
                                        "ALLX", "CAP_CAP_CHOWN", "CAP_ALL" };
    for (size_t i = 0; i < COUNT(rows); i++) {
        error e = { 0 };
        security_caps caps;
        Capability c = cap_request(rows[i], "", "");
        CHECK_INT(security_caps_from_names(&c, false, &caps, &e), -1);
        CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    }
}
