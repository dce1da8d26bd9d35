/* Chapter 43: the built-in programs and krun.h. */

TEST(self_main_passes_codes_and_names_what_it_lacks)
{
    char *exits[] = { "krun", "self", "exit", "7", NULL }, *bad[] = { "krun", "self", "exit", "x", NULL };
    int kept = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(null, STDERR_FILENO);
    CHECK_INT(self_main(4, exits), 7);
    CHECK_INT(self_main(4, bad), 2);
    CHECK_INT(self_main(3, (char *[]){ "krun", "self", "nope", NULL }), 127);
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(null);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
}

TEST(krun_main_role_returns_when_the_words_are_the_embedders_own)
{
    krun_main_role(1, (char *[]){ "krun", NULL });
    krun_main_role(2, (char *[]){ "appliance", "monitor", NULL });
    krun_main_role(2, (char *[]){ "krun", "status", NULL });
    CHECK(true); /* a role would have ended this process */
}

TEST(krun_connect_refuses_a_path_that_is_no_sockets)
{
    char path[200];
    krun_error e = { 0 };
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    CHECK(!krun_connect(path, &e));
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    CHECK(!krun_connect("", &e) && !krun_connect(NULL, &e));
    path[107] = '\0';
    krun *k = krun_connect(path, &e);
    CHECK(k != NULL);
    krun_close(k);
}

TEST(krun_call_needs_a_name_that_the_cri_has_and_a_daemon)
{
    krun_error e = { 0 };
    char *reply = NULL;
    krun *k = krun_connect("/nonexistent/krun.sock", &e);
    CHECK_INT(krun_call(k, "Nope", "{}", &reply, &e), -1);
    CHECK_INT(e.code, GRPC_UNIMPLEMENTED);
    CHECK_INT(krun_call(k, "Version", "{\"nope\": 1}", &reply, &e), -1);
    CHECK_INT(e.code, GRPC_INVALID_ARGUMENT);
    CHECK_INT(krun_call(k, "Version", "{}", &reply, &e), -1);
    CHECK_INT(e.code, GRPC_UNAVAILABLE);
    CHECK_INT(krun_pull(k, "x", NULL, &e), -1);
    CHECK_INT(krun_serve(k, &e), -1);
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    CHECK(!reply);
    krun_stop(k);
    krun_close(k);
    krun_close(NULL);
}

TEST(a_directory_is_claimed_once_even_by_one_process)
{
    char path[PATH_MAX], dotted[PATH_MAX + 4];
    error e = { 0 };
    OWNED_FD dir = temp_dir(path);
    snprintf(dotted, sizeof dotted, "%s/./", path);
    claim first = { .what = "root", .path = path, .dir = -1, .lock = -1 }, second = first;
    second.path = dotted;
    CHECK_INT(claim_open(&first, false, &e), 0);
    CHECK_INT(claim_open(&second, false, &e), -1);
    CHECK_INT(e.code, GRPC_FAILED_PRECONDITION);
    claim_drop(&second);
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    pid_t child = fork(); /* another process sees whether the first claim still holds */
    if (child == 0) {
        OWNED_FD file = openat(dir, "lock", O_RDWR | O_CLOEXEC);
        _exit(file >= 0 && fcntl(file, F_SETLK, &lock) < 0 ? 7 : 1);
    }
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_INT(WEXITSTATUS(status), 7);
    claim_drop(&first);
    CHECK_INT(claim_open(&second, false, &e), 0);
    claim_drop(&second);
    CHECK_INT(tree_remove(AT_FDCWD, path, &e), 0);
}
