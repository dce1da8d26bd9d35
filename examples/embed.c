/* A program with a container runtime inside: it serves the CRI from a thread, runs a pod of its own,
 * asks for its state as a kubelet would, and removes it. Build with `make embed`; run as root:
 *
 *     examples/embed /tmp/embed-state
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "../krun.h"

static int failed(const char *step, const krun_error *e)
{
    fprintf(stderr, "%s: %s (gRPC code %d)\n", step, e->text, e->code);
    return 1;
}

static void *serve(void *k)
{
    krun_error e;
    if (krun_serve(k, &e) < 0) failed("serve", &e);
    return NULL;
}

/* Runs one pod and shows that it is there. */
static int use(krun *k)
{
    char id[65], *reply;
    const char *args[] = { "sleep", "60", NULL };
    krun_error e;
    krun_pod nap = { .name = "nap", .image = "localhost/krun:self", .args = args, .network = "none" };
    if (krun_run_pod(k, &nap, id, &e) < 0) return failed("run a pod", &e);
    printf("pod %s runs\n", id);
    if (krun_call(k, "ListContainers", "{}", &reply, &e) < 0) return failed("list containers", &e);
    puts(reply);
    free(reply);
    if (krun_remove_pod(k, id, &e) < 0) return failed("remove the pod", &e);
    printf("pod %s is gone\n", id);
    return 0;
}

int main(int argc, char **argv)
{
    char run[4096];
    pthread_t thread;
    krun_error e;
    krun_main_role(argc, argv); /* first: krun starts this program again to keep a pod */
    if (argc != 2) return fprintf(stderr, "usage: %s STATE-DIRECTORY\n", argv[0]), 2;
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    snprintf(run, sizeof run, "%s/run", argv[1]);
    krun_options options = { .root = argv[1], .run = run, .log_level = "warn",
                             .missing_controllers = "ignore" };
    krun *k = krun_open(&options, &e);
    if (!k) return failed("open", &e);
    if (pthread_create(&thread, NULL, serve, k)) return perror("pthread_create"), 1;
    int code = use(k);
    krun_stop(k);
    pthread_join(thread, NULL);
    krun_close(k);
    return code;
}
