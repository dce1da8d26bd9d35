"""Registries on 127.0.0.1: Debian's docker-registry, and one of ours that misbehaves on request."""
import http.client
import http.server
import json
import os
import re
import signal
import subprocess
import threading

CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
http: {{addr: 127.0.0.1:{port}}}
"""


class Registry:
    """docker-registry with its blobs below `directory`; ended by stop()."""

    def __init__(self, directory, port=5000):
        os.makedirs(directory, exist_ok=True)
        self.address = f"127.0.0.1:{port}"
        config = directory + "/config.yml"
        with open(config, "w") as f:
            f.write(CONFIG.format(directory=directory, port=port))
        self.log = open(directory + "/log", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", config], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        for _ in range(3000):
            try:
                connection = http.client.HTTPConnection(self.address, timeout=10)
                connection.request("GET", "/v2/")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"docker-registry ended: see {directory}/log")
            signal.sigtimedwait([], 0.02)
        raise RuntimeError("docker-registry does not answer")

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


class FakeRegistry:
    """Serves images from memory. Blobs and manifests can be replaced by anything, answers can be
    held back until `gate` is set (with `halves`, ends of paths, only those, after half of them), and
    `requests` lists every path that was asked for."""

    def __init__(self, port=5001):
        self.blobs, self.manifests, self.requests = {}, {}, []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()  # somebody wants a blob
        self.halves = set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # header and body in one segment

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                outer.requests.append((self.command, self.path))
                status, kind, body = outer.find(self.path)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    try:
                        if outer.halves and self.path.endswith(tuple(outer.halves)):
                            self.wfile.write(body[:len(body) // 2])
                            self.wfile.flush()
                            outer.gate.wait(60)
                            body = body[len(body) // 2:]
                        self.wfile.write(body)
                    except OSError:
                        pass  # the client was ended in the middle: a test's doing

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.address = f"127.0.0.1:{port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def find(self, path):
        if path == "/v2/":
            return 200, "application/json", b"{}"
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if found and found[2] == "manifests" and (found[1], found[3]) in self.manifests:
            kind, body = self.manifests[found[1], found[3]]
            return 200, kind, body
        if found and found[2] == "blobs" and found[3] in self.blobs:
            self.asked.set()
            if not self.halves:
                self.gate.wait(60)
            return 200, "application/octet-stream", self.blobs[found[3]]
        return 404, "application/json", json.dumps({"errors": [{"code": "NOT_FOUND"}]}).encode()

    def put(self, image, repository, tag="latest"):
        self.blobs.update(image.blobs())
        for reference in (tag, image.digest):
            self.manifests[repository, reference] = (image.media_type, image.manifest)
        return f"{self.address}/{repository}:{tag}"

    def stop(self):
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
