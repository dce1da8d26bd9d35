#!/usr/bin/python3
"""run.py [GROUP|WORDS]...: the integration tests, in a sandbox; all of them, or those named.

A group is a file test_GROUP.py. WORDS pick tests by their names. Environment:
  KRUN               the binary (krun at the top of the repository)
  KRUN_CRICTL        crictl, for that group
  KRUN_TEST_SLOWNESS multiplies the deadlines (in a virtual machine)
  KRUN_TEST_KEEP=1   keeps the directories; KRUN_TEST_LOG=1 shows the daemon's log of a failed test
"""
import glob
import os
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ORDER = ["daemon", "http2", "images", "store", "registries", "pull", "airgap", "trees", "hostile", "pods", "network",
         "containers", "exec", "logs", "restart", "faults", "cli", "crictl", "limits"]


def push_images(registry):
    """The images that every group may use."""
    import images
    import testimages
    for (repository, tag), image in testimages.all_images().items():
        images.push(image, registry.address, repository, tag)


def main(arguments):
    sys.path.insert(0, HERE)
    import harness
    import registry
    names = [os.path.basename(p)[5:-3] for p in glob.glob(HERE + "/test_*.py")]
    names.sort(key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    groups = [n for n in names if n in arguments] or names
    words = [a for a in arguments if a not in names]
    score = harness.Score()
    with tempfile.TemporaryDirectory(prefix="krun-registry-") as directory:
        server = registry.Registry(directory)
        try:
            push_images(server)
            for name in groups:
                harness.run_group(__import__("test_" + name), score, words)
        finally:
            server.stop()
    print(score.line(), flush=True)
    return 1 if score.failed or not score.passed else 0


if __name__ == "__main__":
    if os.environ.get("KRUN_IN_SANDBOX") != "1":
        os.environ["KRUN_IN_SANDBOX"] = "1"
        sandbox = os.path.join(os.path.dirname(HERE), "sandbox.py")
        os.execv(sys.executable, [sys.executable, sandbox, sys.executable,
                                  os.path.abspath(__file__), *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
