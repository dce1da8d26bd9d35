/* krun.h: a Kubernetes container runtime inside your program.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * Compile krun.c with -DKRUN_NO_MAIN into your program (cc -DKRUN_NO_MAIN you.c krun.c -lpthread)
 * and you have what `krun serve` is: a daemon that speaks CRI on a unix socket, so that a kubelet,
 * crictl and the functions below all work on the same pods. Linux, root. examples/embed.c is a
 * whole program. Only names that begin with krun_ are visible outside krun.c.
 *
 *     int main(int argc, char **argv)
 *     {
 *         krun_main_role(argc, argv);            (first of all: see there)
 *         krun_error e;
 *         krun *k = krun_open(&(krun_options){ .root = "/var/lib/me", .run = "/run/me" }, &e);
 *         ... krun_serve(k, &e) on a thread; krun_pull, krun_run_pod, krun_call; krun_stop ...
 *         krun_close(k);
 *     }
 *
 * Errors   are values: a function that fails returns -1 or NULL and fills *e, which you own. On
 *          success *e is not touched. No function prints, exits or raises a signal, but for
 *          krun_main and krun_main_role; the daemon writes its log to stderr.
 * Strings  go in as NUL-terminated UTF-8 that is only read during the call.
 * Threads  krun_open, krun_close: one thread, nothing else running on that krun. All others: any
 *          threads at once. krun_pull, krun_run_pod, krun_remove_pod and krun_call wait for an
 *          answer from the daemon, so krun_serve must be running on another thread (or, for a
 *          krun from krun_connect, in another process).
 * Signals  none is caught. Ignore SIGPIPE and SIGXFSZ. SIGCHLD must not be ignored: krun reaps its
 *          children, each by its pidfd, and no others.
 * Limits   krun holds some descriptors a pod: let RLIMIT_NOFILE have room. */
#ifndef KRUN_H
#define KRUN_H

#ifdef __cplusplus
extern "C" {
#endif

#include <stdint.h>

/* code is a gRPC code (google.golang.org/grpc/codes: 3 invalid argument, 5 not found, ...), sys an
 * errno or 0, text a sentence that names step, object and bad value. */
typedef struct { int code, sys; char text[512]; } krun_error;

/* What `krun serve` takes as flags and krun.toml as keys, under the same names. NULL or "" is the
 * default. krun_open copies what it needs. */
typedef struct {
    const char *root;                /* what survives a reboot; one daemon each; /var/lib/krun */
    const char *run;                 /* what does not: sockets, ...; one daemon each; /run/krun */
    const char *socket;              /* the CRI socket; <run>/krun.sock */
    const char *config;              /* /etc/krun/krun.toml; what is set here wins over the file */
    const char *cgroup_driver;       /* "cgroupfs" */
    const char *cni_conf_dir;        /* /etc/cni/net.d */
    const char *cni_bin_dir;         /* directories, split by ':'; /opt/cni/bin:/usr/lib/cni */
    const char *hosts_dir;           /* <host>/hosts.toml for registries; /etc/krun/certs.d */
    const char *tls_helper;          /* a program that makes a TLS stream, and its arguments; none */
    const char *image_auth_file;     /* the node's credentials for registries; none */
    const char *image_import;        /* a directory whose archives become images; none */
    const char *image_verify;        /* a program that is asked before an image is unpacked; none */
    const char *image_pinned;        /* images not to be collected, split by ','; none */
    const char *image_sync;          /* "true": a pull survives a power cut, or "false"; true */
    const char *keep_blobs;          /* "true": layers stay as they were sent, or "false"; false */
    const char *missing_controllers; /* "refuse" or "ignore" a limit that cannot be kept; refuse */
    const char *log_level;           /* "debug", "info", "warn" or "error"; info */
    const char *stream_address;      /* where exec and attach streams are served; 127.0.0.1:0 */
} krun_options;

typedef struct krun krun; /* an open daemon, or a connection's address */

/* Takes over when krun has started your program again to play one of its parts, and does not return
 * then; else does nothing. Call it first in main, before threads, output and parsing of arguments.
 *
 * Why  A pod is kept by a process of its own (the monitor), which must outlive the daemon; images
 *      are fetched and unpacked by processes with few rights. krun runs these parts from
 *      /proc/self/exe, and in your program that file is yours: as `argv[0] = "krun"` with a part's
 *      name in argv[1] ("monitor", "fetch", "unpack"), or as "/krun self ..." inside a container
 *      of the built-in image localhost/krun:self (which needs you to be linked statically).
 *
 *     int main(int argc, char **argv)
 *     {
 *         krun_main_role(argc, argv); */
void krun_main_role(int argc, char **argv);

/* All of the program krun: `krun_main(2, (char *[]){ "krun", "pods", NULL })` prints a table of pods.
 * Returns the exit code. May be called once, from the only thread: it sets signals, prints, and
 * leaves memory to exit(3).
 *
 *     if (argc > 1 && !strcmp(argv[1], "container"))
 *         return krun_main(argc - 1, argv + 1); */
int krun_main(int argc, char **argv);

/* Locks the root and the run directory, brings back every pod and container that lives there, and
 * listens on the socket; answers begin with krun_serve. Returns what krun_close frees, or NULL: 9
 * failed precondition if another daemon, also one in this process, has one of the directories or the
 * socket, or if living pods of another root are in run; 3 for a bad option, 13 for what the kernel
 * refused. Give both directories: the defaults may be those of a `krun serve`.
 *
 *     krun *k = krun_open(&(krun_options){ .root = "/data/krun", .run = "/run/krun-data" }, &e);
 *     if (!k)
 *         fprintf(stderr, "%s\n", e.text); */
krun *krun_open(const krun_options *options, krun_error *e);

/* A krun whose daemon runs in another process, for all functions but krun_serve.
 * Nothing is connected yet. NULL: a path that is no socket's (3), no memory (8). Freed by krun_close.
 *
 *     krun *k = krun_connect("/run/krun/krun.sock", &e);
 *     char *pods;
 *     if (k && krun_call(k, "ListPodSandbox", "{}", &pods, &e) == 0) puts(pods); */
krun *krun_connect(const char *socket, krun_error *e);

/* Serves until krun_stop. 0 then; -1 at once for a krun of krun_connect.
 *
 *     static void *serve(void *k) { krun_error e; krun_serve(k, &e); return NULL; }
 *     ...
 *     pthread_create(&thread, NULL, serve, k); */
int krun_serve(krun *k, krun_error *e);

/* Makes krun_serve return once the calls under way are answered. Pods go on running: the next
 * krun_open on the same root and run finds them. Not from a signal handler.
 *
 *     krun_stop(k);
 *     pthread_join(thread, NULL);
 *     krun_close(k); */
void krun_stop(krun *k);

/* Frees k and closes the socket; after krun_serve has returned. NULL is allowed.
 *
 *     krun *k = krun_open(&options, &e);
 *     ...
 *     krun_close(k); */
void krun_close(krun *k);

/* Pulls an image and waits until it is stored. id, 72 bytes of yours, gets "sha256:..."; or NULL.
 *
 *     char id[72];
 *     if (krun_pull(k, "docker.io/library/busybox:latest", id, &e) < 0)
 *         fprintf(stderr, "%s\n", e.text); */
int krun_pull(krun *k, const char *name, char id[72], krun_error *e);

/* A pod with one container. Only image is needed; what is zero is as the image or krun has it. Lists
 * end with NULL. */
typedef struct {
    const char *name;           /* of the pod and its container, and no other pod's; run-XXXXXXXX */
    const char *image;          /* already pulled, or localhost/krun:self */
    const char *const *args;    /* follow the image's entrypoint, in place of its CMD */
    const char *entrypoint;     /* in place of the image's */
    const char *const *env;     /* "NAME=value"; or "NAME" for the value that your process has */
    const char *const *volumes; /* "host-path:/path" or "host-path:/path:ro"; the first is there */
    const char *workdir, *user; /* user: "name", "uid", "name:gid" or "uid:gid" */
    const char *network;        /* "host", "cni" or "none" (loopback); cni if ready, else none */
    const char *log_directory;  /* of <name>.log; <root>/logs/<a name of its own> */
    int64_t memory, cpus;       /* limits: bytes; thousandths of a CPU */
    int privileged, read_only;  /* all rights; a root file system that cannot be written */
} krun_pod;

/* Makes the pod and starts its container; when it returns 0, the program runs. pod_id, 65 bytes of
 * yours, gets the pod's ID; what the program does later is asked with krun_call. On failure nothing
 * is left; 3 for a member that makes no sense, 5 for an image that is not there, 6 for a name that a
 * pod has.
 *
 *     char id[65];
 *     const char *args[] = { "sleep", "60", NULL };
 *     krun_run_pod(k, &(krun_pod){ .image = "localhost/krun:self", .args = args }, id, &e); */
int krun_run_pod(krun *k, const krun_pod *pod, char pod_id[65], krun_error *e);

/* Stops and removes a pod of krun_run_pod, with its containers and its log directory (but not one
 * that you named). 5 for an ID that is not there.
 *
 *     if (krun_remove_pod(k, id, &e) < 0)
 *         fprintf(stderr, "%s\n", e.text); */
int krun_remove_pod(krun *k, const char *pod_id, krun_error *e);

/* Any unary call of the CRI by its name, in protobuf's JSON form (field names as in cri.proto or in
 * lowerCamelCase). *reply is a new NUL-terminated string: free(3) it. 12 unimplemented for a name
 * that the CRI does not have; 14 unavailable if nobody serves.
 *
 *     char *reply;
 *     if (krun_call(k, "StopPodSandbox", "{\"pod_sandbox_id\": \"3f2a\"}", &reply, &e) == 0)
 *         free(reply); */
int krun_call(krun *k, const char *method, const char *request, char **reply, krun_error *e);

#ifdef __cplusplus
}
#endif

#endif
