"""Registries on this machine: Debian's docker-registry, and one of ours that misbehaves on request; and
a token server for the first."""
import base64
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
http:
  addr: "{address}"
{more}
"""


class Registry:
    """docker-registry with its blobs below `directory`, which several may share; ended by stop().
    `more` is what its configuration has beside: lines that follow "http:"."""

    def __init__(self, directory, port=5000, host="127.0.0.1", more=""):
        os.makedirs(directory, exist_ok=True)
        self.host, self.port = host, port
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        config = f"{directory}/config-{port}.yml"
        with open(config, "w") as f:
            f.write(CONFIG.format(directory=directory, address=self.address, more=more))
        self.log = open(f"{directory}/log-{port}", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", config], stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log)
        wait_for_port(self.host, self.port, self.process)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def wait_for_port(host, port, process):
    """Waits until somebody listens there: the process, unless it has ended."""
    for _ in range(3000):
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError:
            pass
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        signal.sigtimedwait([], 0.02)
    raise RuntimeError(f"{process.args} does not listen on {host} port {port}")


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """The server of docker-registry's `auth: token` (distribution's token specification): who knows
    `user` and `password`, or the identity token, gets a JWT to pull; anybody else one for nothing.
    `requests` lists (method, path, Authorization, form)."""

    def __init__(self, directory, port, user, password, identity):
        self.key, self.certificate = directory + "/token.key", directory + "/token.pem"
        self.port, self.requests, self.status = port, [], 200
        self.realm = f"http://127.0.0.1:{port}/token"
        basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        subprocess.check_call(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout",
                               self.key, "-out", self.certificate, "-days", "2", "-subj", "/CN=tokens"],
                              stderr=subprocess.DEVNULL)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, query, known):
                status = outer.status
                body = json.dumps({"errors": [{"code": "UNAVAILABLE"}]})
                if status == 200:
                    name = "access_token" if self.command == "POST" else "token"
                    body = json.dumps({name: outer.token(query.get("service", [""])[0],
                                                         query.get("scope", []), known)})
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self):
                proof = self.headers.get("Authorization")
                outer.requests.append(("GET", self.path, proof, {}))
                self.answer(urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query),
                            proof == basic)

            def do_POST(self):
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = urllib.parse.parse_qs(form)
                outer.requests.append(("POST", self.path, self.headers.get("Authorization"), form))
                self.answer(form, form.get("refresh_token") == [identity])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def config(self, service):
        """The lines of docker-registry's configuration."""
        return (f"auth:\n  token: {{realm: '{self.realm}', service: {service}, issuer: tests, "
                f"rootcertbundle: {self.certificate}}}")

    def token(self, service, scopes, known):
        """A JSON web token (RFC 7519), signed with RS256 by openssl, its certificate in x5c."""
        with open(self.certificate) as f:
            certificate = "".join(f.read().split("-----")[2].split())
        access = []
        for scope in scopes if known else []:
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {"iss": "tests", "sub": "u", "aud": service, "exp": now + 300, "nbf": now - 10,
                  "iat": now, "jti": "1", "access": access}
        head = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
        text = ".".join(base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.key],
                                   input=text.encode(), stdout=subprocess.PIPE, check=True).stdout
        return text + "." + base64url(signature)

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class FakeRegistry:
    """Serves images from memory. Blobs and manifests can be replaced by anything, answers can be
    held back until `gate` is set (with `halves`, ends of paths, only those, after half of them), and
    `requests` lists every path that was asked for, `headers` what came with each. A `trick` is given
    the handler first, and may answer in its place (True)."""

    def __init__(self, port=5001, host="127.0.0.1", tls=None):
        self.blobs, self.manifests, self.requests, self.headers = {}, {}, [], []
        self.trick = None
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

            def answer(self, status, body=b"", **fields):
                """For tricks. An underscore in a field's name is a hyphen."""
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **fields}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(body)
                return True

            def cut(self):
                """Ends the connection here."""
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                outer.requests.append((self.command, self.path))
                outer.headers.append(dict(self.headers))
                if outer.trick and outer.trick(self):
                    return
                status, kind, body = outer.find(self.path.split("?")[0])
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

        self.server = Server((host, port), Handler)
        if tls:  # an ssl.SSLContext
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.address = f"{host}:{port}"
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
