"""Registries as a node meets them: that want to know who asks, behind proxies and TLS, with mirrors that
fail, with lines that break. Real ones: docker-registry with htpasswd and with a token server, tinyproxy,
squid. 10.99.0.1 is this machine by an address that is not loopback, so that proxies are used for it."""
import base64
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile

import images
import registry
from harness import DEADLINE, check, equal, holds, processes, refused, restarts, test, until
from images import Image, Tree

FAR = "10.99.0.1"
USER, PASSWORD, IDENTITY = "anna", "s3cret:with-colon", "identity-of-anna"
AUTH = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
BASIC, TOKEN, SIX, PLAIN = "127.0.0.1:5011", "127.0.0.1:5012", "[::1]:5013", f"{FAR}:5014"
TLS, MUTUAL, FAKE, OTHER = f"{FAR}:5015", f"{FAR}:5016", "127.0.0.1:5031", "127.0.0.1:5032"
TINY, SQUID = 8881, 8882
HELPER = tempfile.gettempdir() + "/krun-test-tls/helper"


# -- what the group starts ------------------------------------------------------------------------

def openssl(*words, text=None):
    subprocess.run(["openssl", *words], input=text, check=True, stderr=subprocess.DEVNULL)


def certificates(at):
    """A CA, a server's certificate for FAR and one for a client, where nobody (65534) can read them."""
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", at + "/ca.key", "-out",
            at + "/ca.pem", "-days", "2", "-subj", "/CN=test CA")
    for name, extra in (("server", f"subjectAltName=IP:{FAR}"),
                        ("client", "extendedKeyUsage=clientAuth")):
        openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{at}/{name}.key", "-out",
                f"{at}/{name}.csr", "-subj", f"/CN={name}")
        with open(f"{at}/{name}.ext", "w") as f:
            f.write(extra + "\n")
        openssl("x509", "-req", "-in", f"{at}/{name}.csr", "-CA", at + "/ca.pem", "-CAkey",
                at + "/ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{at}/{name}.ext",
                "-out", f"{at}/{name}.pem")
    for name in os.listdir(at):
        os.chmod(f"{at}/{name}", 0o644)


def start(k, port, *command):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    k.servers.append(process)
    registry.wait_for_port("127.0.0.1", port, process)


def start_tinyproxy(k):
    k.tiny_log = k.tls + "/tinyproxy.log"
    with open(k.tls + "/tinyproxy.conf", "w") as f:
        f.write(f'Port {TINY}\nListen 127.0.0.1\nLogFile "{k.tiny_log}"\nLogLevel Connect\n'
                f"BasicAuth proxyuser proxypass\nTimeout 600\n")
    start(k, TINY, "tinyproxy", "-d", "-c", k.tls + "/tinyproxy.conf")


def start_squid(k):
    """Squid asks nobody who he is. It runs as the user proxy, who has to be able to write its logs."""
    at = k.tls + "/squid"
    os.mkdir(at)
    shutil.chown(at, "proxy")
    k.squid_log = at + "/access.log"
    with open(at + "/squid.conf", "w") as f:
        f.write(f"http_port 127.0.0.1:{SQUID}\nvisible_hostname tests\ncache deny all\npinger_enable off\n"
                f"pid_filename {at}/pid\ncache_log {at}/cache.log\naccess_log stdio:{k.squid_log}\n"
                f"coredump_dir {at}\nnetdb_filename none\nshutdown_lifetime 0 seconds\n"
                f"acl far dst {FAR}\nhttp_access allow far\nhttp_access deny all\n")
    start(k, SQUID, "squid", "-N", "-f", at + "/squid.conf")


def setup(k):
    k.tls = os.path.dirname(HELPER)  # certificates and the helper, for a process that is nobody
    os.makedirs(k.tls)
    os.chmod(tempfile.gettempdir(), 0o711)
    certificates(k.tls)
    shutil.copy(os.path.join(os.path.dirname(images.__file__), "tls_helper.py"), HELPER)
    os.chmod(HELPER, 0o755)
    k.flags += ["--tls-helper", HELPER]
    k.restart(signal.SIGTERM)
    subprocess.check_call(["ip", "address", "add", FAR + "/32", "dev", "lo"])
    k.servers, k.fake, k.other = [], registry.FakeRegistry(5031), registry.FakeRegistry(5032)
    blobs = k.directory + "/blobs"
    k.registry = registry.Registry(blobs, 5014, FAR)  # takes pushes; all the others share its files
    with open(k.directory + "/htpasswd", "wb") as f:
        subprocess.run(["htpasswd", "-inB", "-C", "4", USER], input=PASSWORD.encode(), stdout=f, check=True)
    k.tokens = registry.TokenServer(k.directory, 5020, USER, PASSWORD, IDENTITY)
    server = f"  tls: {{certificate: {k.tls}/server.pem, key: {k.tls}/server.key"
    k.registries = [k.registry] + [registry.Registry(blobs, int(address.rsplit(":", 1)[1]), host, more) for
                                   address, host, more in (
        (BASIC, "127.0.0.1", f"auth: {{htpasswd: {{realm: tests, path: {k.directory}/htpasswd}}}}"),
        (TOKEN, "127.0.0.1", k.tokens.config("the-registry")), (SIX, "::1", ""),
        (TLS, FAR, server + "}"), (MUTUAL, FAR, server + f", clientcas: [{k.tls}/ca.pem]}}"))]
    start_tinyproxy(k)
    start_squid(k)
    k.flags_of_group = list(k.flags)


def teardown(k):
    for process in k.servers:
        process.send_signal(signal.SIGTERM)
        process.wait()
    for server in [*k.registries, k.tokens, k.fake, k.other]:
        server.stop()
    subprocess.check_call(["ip", "address", "del", FAR + "/32", "dev", "lo"])
    shutil.rmtree(k.tls)


def before_each(k):
    """The settings that a test has changed become again what they were."""
    k.fake.trick = k.other.trick = None
    k.tokens.status = 200
    for name in os.listdir(k.certs):
        shutil.rmtree(f"{k.certs}/{name}")
    k.allow_http("127.0.0.1:5000", FAKE, OTHER, PLAIN)
    for address in (TLS, MUTUAL):
        hosts(k, address, f'server = "https://{address}"\nca = "{k.tls}/ca.pem"\n')
    if k.environment or k.flags != k.flags_of_group:
        daemon(k)
    for listed in (k.fake, k.other, k.tokens):
        listed.requests.clear()
    k.fake.headers.clear(), k.other.headers.clear()


def daemon(k, *flags, **environment):
    """The daemon with other settings, from here to the end of the test."""
    k.flags, k.environment = k.flags_of_group + list(flags), environment
    k.restart(signal.SIGTERM)


def hosts(k, name, text):
    os.makedirs(f"{k.certs}/{name}", exist_ok=True)
    with open(f"{k.certs}/{name}/hosts.toml", "w") as f:
        f.write(text)


def pushed(k, title, *trees):
    """An image that no other test has, in docker-registry. Gives its name without the registry's."""
    image = Image(trees or [Tree().file("title", title)], {"Cmd": ["/none"], "Labels": {"t": title}})
    images.push(image, k.registry.address, "reg/" + title, "1")
    return f"/reg/{title}:1", image


def pull(k, name, **auth):
    fields = {"image": {"image": name}, **({"auth": auth} if auth else {})}
    return k.cri.PullImage(**fields).image_ref


def faked(k, title, where=None):
    image = Image([Tree().file("title", title)], {"Cmd": ["/none"], "Labels": {"t": title}})
    return (where or k.fake).put(image, title), image


def read(path):
    with open(path, errors="replace") as f:
        return f.read()


def drop(k):
    for image in k.cri.ListImages().images:
        if not image.pinned and k.image not in image.repo_tags:
            k.cri.RemoveImage(image={"image": image.id})


# -- who asks -------------------------------------------------------------------------------------

@test
def htpasswd_lets_in_who_knows_the_password(k):
    name, image = pushed(k, "basic")
    good = ({"username": USER, "password": PASSWORD}, {"auth": AUTH},
            {"username": USER, "password": PASSWORD, "server_address": BASIC},
            {"auth": AUTH, "server_address": f"http://{BASIC}/v2/"})
    bad = ({}, {"username": USER, "password": "wrong"}, {"auth": AUTH, "server_address": "elsewhere"},
           {"identity_token": IDENTITY})
    for auth in good:
        equal(pull(k, BASIC + name, **auth), image.id, f"the answer with {auth}")
        drop(k)
    for auth in bad:
        text = refused("UNAUTHENTICATED", lambda auth=auth: pull(k, BASIC + name, **auth), "HTTP status 401")
        holds(f"GET http://{BASIC}/v2/reg/basic/manifests/1", text, "the error")
        check("wrong" not in text and PASSWORD not in text, text)
    equal(k.cri.ImageStatus(image={"image": image.id}).image.id, "", "the image after that")


@test
def a_token_server_is_asked_in_both_ways(k):
    name, image = pushed(k, "token")
    for auth in ({"username": USER, "password": PASSWORD}, {"auth": AUTH}):
        equal(pull(k, TOKEN + name, **auth), image.id, f"the answer with {auth}")
        drop(k)
    method, path, proof, _ = k.tokens.requests[-1]
    equal((method, proof), ("GET", "Basic " + AUTH), "how the server was asked")
    holds("service=the-registry", path, "the query")
    holds("scope=repository%3Areg%2Ftoken%3Apull", path, "the query")
    equal(pull(k, TOKEN + name, identity_token=IDENTITY), image.id, "the answer with an identity token")
    drop(k)
    method, _, proof, form = k.tokens.requests[-1]
    equal((method, proof, form["grant_type"]), ("POST", None, ["refresh_token"]), "how it was asked then")
    asked = len(k.tokens.requests)
    token = k.tokens.token("the-registry", ["repository:reg/token:pull"], True)
    equal(pull(k, TOKEN + name, registry_token=token), image.id, "the answer with a registry token")
    equal(len(k.tokens.requests), asked, "requests to the token server with a token in hand")


@test
def a_token_server_may_lead_elsewhere(k):
    """The credentials go to the server that the challenge names, and to no other."""
    name, image = faked(k, "led")
    hosts(k, FAKE, f'server = "http://{FAKE}"\n')
    other = registry.FakeRegistry(5033)
    seen = []

    def trick(h):
        if h.path.startswith("/token"):
            step = int(h.path[6].replace("?", "0"))
            seen.append(h.headers.get("Authorization"))
            if step == 2:
                return h.answer(201, b'{"token": "t"}')
            return h.answer(302, Location=("/token1", "http://127.0.0.1:5033/token2")[step])
        if h.headers.get("Authorization") == "Bearer t":
            return False
        return h.answer(401, WWW_Authenticate=f'Bearer realm="http://{FAKE}/token",service="s"')
    k.fake.trick = other.trick = trick
    try:
        equal(pull(k, name, auth=AUTH), image.id, "the answer")
        equal(seen, ["Basic " + AUTH] * 2 + [None], "credentials")
        k.fake.trick = lambda h: h.answer(302, Location="/token?") if h.path.startswith("/token") else trick(h)
        drop(k)
        refused("UNKNOWN", lambda: pull(k, name), "more than 10 redirects")
    finally:
        other.stop()


@test
def a_token_server_that_refuses_is_named(k):
    name, _ = pushed(k, "token-refused")
    refused("UNAUTHENTICATED", lambda: pull(k, TOKEN + name), "HTTP status 401 (UNAUTHORIZED: ")
    for status, code in ((401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED"), (500, "UNKNOWN")):
        k.tokens.status = status
        text = refused(code, lambda: pull(k, TOKEN + name, auth=AUTH),
                       f"token server {k.tokens.realm}: HTTP status {status}")
        check(("RegistryUnavailable: " in text) == (status == 500), text)
        check("scope=" not in text, "the query is not shown: " + text)


@test
def a_token_that_ends_in_the_middle_of_a_pull_is_asked_for_anew(k):
    name, image = faked(k, "expiry")
    hosts(k, FAKE, f'server = "http://{FAKE}"\n')
    given = []

    def trick(h):
        if h.path.startswith("/token"):
            given.append(f"token-{len(given)}")
            return h.answer(200, json.dumps({"token": given[-1]}).encode())
        good = given and h.headers.get("Authorization") == f"Bearer {given[-1]}"
        if good and h.path.endswith(image.manifest_object()["layers"][0]["digest"]) and len(given) < 2:
            good = False  # it has expired, just before the layer
        if good:
            return False
        return h.answer(401, WWW_Authenticate=f'Bearer realm="http://{FAKE}/token",service="s"')
    k.fake.trick = trick
    equal(pull(k, name), image.id, "the answer")
    equal(len(given), 2, f"tokens that were given; requests: {k.fake.requests}")


# -- IPv6, mirrors, lines that break --------------------------------------------------------------

@test
def a_registry_is_reached_over_ipv6(k):
    name, image = pushed(k, "six")
    equal(pull(k, SIX + name), image.id, "the answer")
    check(SIX + name in k.cri.ImageStatus(image={"image": image.id}).image.repo_tags, "its name")


@test
def a_mirror_that_fails_is_passed_over(k):
    name, image = pushed(k, "mirrored", Tree().file("a", "1"), Tree().file("b", "2"))
    hosts(k, PLAIN, f'server = "http://{PLAIN}"\n[host."http://{FAKE}"]\n')
    k.fake.trick = lambda h: h.answer(500)
    equal(pull(k, PLAIN + name), image.id, "the answer")
    check(0 < len(k.fake.requests) <= 3 * 4, f"a host that was given up: {k.fake.requests}")
    check(all(path.endswith(f"?ns={PLAIN}") for _, path in k.fake.requests), str(k.fake.requests))
    drop(k)
    text = refused("NOT_FOUND", lambda: pull(k, PLAIN + "/reg/none:1"), "HTTP status 404")
    holds(f"http://{PLAIN}/v2/reg/none/manifests/1", text, "the error")
    holds(f"http://{FAKE}/v2/reg/none/manifests/1: HTTP status 500", text, "the error about the mirror")
    shutil.rmtree(f"{k.certs}/{PLAIN}")
    k.allow_http(PLAIN)  # names it twice
    equal(refused("NOT_FOUND", lambda: pull(k, PLAIN + "/reg/none:1")).count("404"), 1, "times it is said")


@test
def hosts_toml_may_have_keys_of_another_time(k):
    name, image = pushed(k, "keys")
    hosts(k, PLAIN, f'server = "http://{PLAIN}"\ncolour = "red"\n[host."http://{FAKE}"]\n'
          'capabilities = ["resolve"]\ndial_timeout = "2s"\nshape = "round"\n')
    for _ in range(2):
        equal(pull(k, PLAIN + name), image.id, "the answer")
        drop(k)
    log = read(k.directory + "/daemon.log")
    for key in ("colour", "shape"):
        equal(log.count(f'"{key}" is not known'), 1, f"times that the log speaks of {key}")
    hosts(k, PLAIN, f'\n\nservr = "http://{FAKE}"\nserver = "http://{PLAIN}"\n[host."http://{FAKE}"]\n'
          'capabilites = ["resolve"]\ncapabilities = ["Resolve", "push", "referrers", "pul"]\n[hosts."http://x"]\n')
    equal(pull(k, PLAIN + name), image.id, "the answer")
    log = read(k.directory + "/daemon.log")
    for line, key, near in ((3, "servr", "server"), (6, "capabilites", "capabilities"),
                            (7, "pul", "pull"), (8, "hosts", "host")):
        holds(f'{PLAIN}/hosts.toml:{line}: "{key}" is not known and ignored: did you mean "{near}"?',
              log, "the log")
    hosts(k, PLAIN, f'server = "http://{PLAIN}"\ndial_timeout = "soon"\n')
    refused("INVALID_ARGUMENT", lambda: pull(k, PLAIN + name), f"{PLAIN}/hosts.toml: dial_timeout")


@test
def a_layer_that_breaks_off_goes_on_where_it_was(k):
    tree = Tree().file("big", os.urandom(3 << 20))
    image = Image([tree], {"Cmd": ["/none"]}, compress=lambda b: b)
    name = k.fake.put(image, "cut")
    layer = image.manifest_object()["layers"][0]
    body, ranges = image.blobs()[layer["digest"]], []

    def trick(h):
        if not h.path.endswith(layer["digest"]):
            return False
        field = h.headers.get("Range")
        ranges.append(field)
        at = int(field[6:-1]) if field else 0
        end = len(body) if len(ranges) > 2 else at + (1 << 20)
        h.send_response(206 if field else 200)
        h.send_header("Content-Length", str(len(body) - at))
        if field:
            h.send_header("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")
        h.end_headers()
        h.wfile.write(body[at:end])
        if end < len(body):
            h.cut()
        return True
    k.fake.trick = trick
    equal(pull(k, name), image.id, "the answer")
    equal(len(ranges), 3, "requests for the layer")
    check(ranges[0] is None and all(r and r.startswith("bytes=") for r in ranges[1:]), str(ranges))
    check(0 < int(ranges[1][6:-1]) <= 1 << 20, str(ranges))


def one_layer(k, name, size=300000):
    """An image of one layer as it is: (what to pull, the image, the layer's digest, its bytes)."""
    image = Image([Tree().file("big", os.urandom(size))], {"Cmd": ["/none"]}, compress=lambda b: b)
    layer = image.manifest_object()["layers"][0]["digest"]
    return k.fake.put(image, name), image, layer, image.blobs()[layer]


def asked_for(k, digest):
    """The Range of each request for a blob."""
    return [h.get("Range") for (_, path), h in zip(k.fake.requests, k.fake.headers) if path.endswith(digest)]


def chunks(h, body, end=b"0\r\n\r\n"):
    """A reply in two chunks, which ends as one likes."""
    h.send_response(200)
    h.send_header("Transfer-Encoding", "chunked")
    h.end_headers()
    for part in (body[:70000], body[70000:]):
        h.wfile.write(b"%x\r\n" % len(part) + part + b"\r\n")
    h.wfile.write(end)
    if end != b"0\r\n\r\n":
        h.cut()
    return True


@test
def a_blob_that_has_come_whole_needs_no_end_of_its_reply(k):
    for lost, end in enumerate((b"", b"0", b"0\r\n", b"0\r\n\r")):
        name, image, layer, body = one_layer(k, f"whole{lost}")
        k.fake.requests.clear(), k.fake.headers.clear()
        k.fake.trick = lambda h, d=layer, b=body, e=end: h.path.endswith(d) and chunks(h, b, e)
        equal(pull(k, name), image.id, f"the answer when the reply ends in {end!r}")
        equal(asked_for(k, layer), [None], "requests for the layer")


@test
def a_reply_of_chunks_that_is_cut_off_anywhere_goes_on(k):
    for cut, where in enumerate((1, 69999, 70000, 70001, 299000)):
        name, image, layer, body = one_layer(k, f"chunks{cut}")

        def trick(h, layer=layer, body=body, where=where):
            field = h.headers.get("Range")
            if not h.path.endswith(layer):
                return False
            if field:
                at = int(field[6:-1])
                return h.answer(206, body[at:], Content_Range=f"bytes {at}-{len(body) - 1}/{len(body)}")
            h.send_response(200)
            h.send_header("Transfer-Encoding", "chunked")
            h.end_headers()
            first = min(where, 70000)
            h.wfile.write(b"11170\r\n" + body[:first])  # a chunk of 70000
            if where >= 70000:
                h.wfile.write(b"\r\n" + (b"" if where == 70000 else b"fffff\r\n" + body[70000:where]))
            h.cut()
            return True
        k.fake.requests.clear(), k.fake.headers.clear()
        k.fake.trick = trick
        equal(pull(k, name), image.id, f"the answer when byte {where} is the last")
        equal(asked_for(k, layer), [None, f"bytes={where}-"], "requests for the layer")


@test
def a_range_that_cannot_be_used_is_asked_for_whole(k):
    """A 206 that does not say where it begins, one of another place, and refusals."""
    def whole(h, body, at):
        return h.answer(200, body)
    odd = {
        "no place, but the length": (lambda h, b, at: h.answer(206, b[at:]), 2),
        "no place and chunks": (lambda h, b, at: no_place(h, b[at:]), 3),
        "a place before": (lambda h, b, at: h.answer(206, b[at - 9:], Content_Range=f"bytes {at - 9}-9/*"), 2),
        "a place behind": (lambda h, b, at: h.answer(206, b[at + 9:], Content_Range=f"bytes {at + 9}-9/*"), 3),
        "no place of bytes": (lambda h, b, at: h.answer(206, b[at:], Content_Range=f"lines {at}-9/*"), 3),
        "416": (lambda h, b, at: h.answer(416, b"", Content_Range=f"bytes */{len(b)}"), 3),
        "all again": (whole, 2),
        **{f"{status}": (lambda h, b, at, status=status: h.answer(status, b"<Error/>"), 3)
           for status in (400, 403, 404)},
    }

    def no_place(h, rest):
        h.send_response(206)
        h.send_header("Transfer-Encoding", "chunked")
        h.end_headers()
        h.wfile.write(b"%x\r\n" % len(rest) + rest + b"\r\n0\r\n\r\n")
        return True
    for n, (what, (answer, requests)) in enumerate(odd.items()):
        name, image, layer, body = one_layer(k, f"odd{n}")
        k.fake.requests.clear(), k.fake.headers.clear()

        def trick(h, layer=layer, body=body, answer=answer):
            if not h.path.endswith(layer):
                return False
            field = h.headers.get("Range")
            if field:
                return answer(h, body, int(field[6:-1]))
            if len(asked_for(k, layer)) > 1:
                return whole(h, body, 0)
            h.send_response(200)
            h.send_header("Content-Length", str(len(body)))
            h.end_headers()
            h.wfile.write(body[:100000])
            h.cut()
            return True
        k.fake.trick = trick
        equal(pull(k, name), image.id, f"the answer to {what}")
        equal(len(asked_for(k, layer)), requests, f"requests, with {what}")


@test
def a_server_of_HTTP_1_0_that_breaks_off_is_asked_again(k):
    name, image, layer, body = one_layer(k, "old")
    k.fake.requests.clear(), k.fake.headers.clear()

    def trick(h):
        if not h.path.endswith(layer):
            return False
        first = len(asked_for(k, layer)) == 1
        h.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + (body[:150000] if first else body))
        h.cut()
        return True
    k.fake.trick = trick
    equal(pull(k, name), image.id, "the answer")
    equal(asked_for(k, layer), [None, "bytes=150000-"], "requests for the layer")


@test
def a_tag_that_moves_while_its_manifest_comes_is_one_manifest(k):
    old, new = (Image([Tree().file("of", which)], {"Cmd": ["/none"], "Labels": {"pad": which * 4000}})
                for which in ("old", "new"))
    k.fake.put(old, "moves")
    cut = []

    def trick(h):
        if not h.path.endswith("/manifests/latest") or cut:
            return False
        cut.append(h.path)
        h.send_response(200)
        h.send_header("Content-Length", str(len(old.manifest)))
        h.end_headers()
        h.wfile.write(old.manifest[:len(old.manifest) // 2])
        k.fake.put(new, "moves")
        h.cut()
        return True
    k.fake.trick = trick
    k.fake.requests.clear(), k.fake.headers.clear()
    equal(pull(k, k.fake.address + "/moves:latest"), new.id, "the image")
    equal(asked_for(k, "/manifests/latest"), [None, None], "ranges that were asked for")


@test
def several_challenges_in_one_field_are_told_apart(k):
    base = "http://" + k.fake.address
    bearer = f'bearer Realm="{base}/token?a=b,c",service = "s, Basic realm=x",scope="repository:ch:pull"'
    for n, fields in enumerate(([f"Negotiate, Basic realm=\"a, b\", {bearer}"], [f"{bearer}, BASIC realm=a"],
                                ["NTLM TlR/M+==", f"Basic realm=a,{bearer}"], ["Bearer", bearer])):
        name, image, layer, _ = one_layer(k, f"ch{n}")
        k.fake.requests.clear(), k.fake.headers.clear()

        def trick(h, fields=fields):
            if h.path.startswith("/token?"):
                return h.answer(200, b'{"token": "good"}')
            if h.headers.get("Authorization") == "Bearer good":
                return False
            h.send_response(401)
            for field in fields:
                h.send_header("WWW-Authenticate", field)
            h.send_header("Content-Length", "0")
            h.end_headers()
            return True
        k.fake.trick = trick
        equal(pull(k, name), image.id, f"the answer after {fields}")
        token = next(p for _, p in k.fake.requests if p.startswith("/token"))
        holds("/token?a=b,c&service=s%2C%20Basic%20realm%3Dx&scope=repository%3Ach%3Apull", token, "the request")


# -- redirects ------------------------------------------------------------------------------------

@test
def a_redirect_takes_no_credentials_and_its_query_is_no_ones_business(k):
    name, image = faked(k, "redirected")
    k.other.put(image, "redirected")

    def trick(h):
        if h.headers.get("Authorization") != "Basic " + AUTH:
            return h.answer(401, WWW_Authenticate='Basic realm="x"')
        if "/blobs/" not in h.path:
            return False
        return h.answer(307, Location=f"http://{OTHER}{h.path}?signature=SECRET")
    k.fake.trick = trick
    hosts(k, FAKE, f'server = "http://{FAKE}"\nheader = {{ x-key = "ours" }}\n')
    equal(pull(k, name, auth=AUTH), image.id, "the answer")
    check(k.other.requests, "the other host was asked")
    for headers in k.other.headers:
        check(not {"Authorization", "x-key"} & set(headers), str(headers))
    check(all(h.get("x-key") == "ours" for h in k.fake.headers), str(k.fake.headers))
    drop(k)
    k.other.trick = lambda h: h.answer(403)
    text = refused("PERMISSION_DENIED", lambda: pull(k, name, auth=AUTH), "HTTP status 403")
    holds(f"redirected to http://{OTHER}/v2/redirected/blobs/", text, "the error")
    holds(f"GET http://{FAKE}/v2/redirected/blobs/", text, "the error")
    check("SECRET" not in text and "SECRET" not in read(k.directory + "/daemon.log"), "the signature shows")
    k.other.trick = lambda h: h.answer(401, WWW_Authenticate='Basic realm="give me your password"')
    refused("UNAUTHENTICATED", lambda: pull(k, name, auth=AUTH), "HTTP status 401")
    check(all("Authorization" not in h for h in k.other.headers), "it got no password when it asked")


@test
def nothing_from_the_network_leads_to_a_link_local_address(k):
    """Not by a name either: 169.254.0.0/16 is where clouds serve a machine its own secrets."""
    name, _ = faked(k, "metadata")
    path = k.directory + "/hosts"
    with open(path, "w") as f:
        f.write("127.0.0.1 localhost\n169.254.1.1 metadata.example\n")
    subprocess.check_call(["mount", "--bind", path, "/etc/hosts"])
    try:
        k.fake.trick = lambda h: h.answer(307, Location="http://metadata.example/latest?x=y")
        refused("PERMISSION_DENIED", lambda: pull(k, name),
                "redirected to http://metadata.example/latest: no address of metadata.example may be used")
        k.fake.trick = lambda h: h.answer(401, WWW_Authenticate='Bearer realm="http://169.254.1.1/t"')
        refused("PERMISSION_DENIED", lambda: pull(k, name, auth=AUTH), "169.254.1.1 is a link-local")
    finally:
        subprocess.check_call(["umount", "/etc/hosts"])


# -- proxies --------------------------------------------------------------------------------------

def proxy_url(port=TINY, user="proxyuser:proxypass@"):
    return f"http://{user}127.0.0.1:{port}"


@restarts
@test
def plain_http_goes_through_tinyproxy(k):
    name, image = pushed(k, "by-proxy")
    daemon(k, HTTP_PROXY=proxy_url())
    equal(pull(k, PLAIN + name), image.id, "the answer")
    holds(f"GET http://{PLAIN}/v2/reg/by-proxy/manifests/1", read(k.tiny_log), "the proxy's log")
    name, image = faked(k, "loopback")
    equal(pull(k, name), image.id, "the answer of loopback")
    check(FAKE not in read(k.tiny_log), "loopback is asked directly")
    text = refused("NOT_FOUND", lambda: pull(k, PLAIN + "/reg/none:1"), "HTTP status 404")
    holds(f"proxy http://127.0.0.1:{TINY}: ", text, "the error")
    check("proxypass" not in text + read(k.directory + "/daemon.log"), "the proxy's password shows")


@restarts
@test
def the_proxys_password_stays_with_the_proxy(k):
    """A registry that is asked directly, and one that a proxy asks, see nothing of it."""
    name, image = faked(k, "proxy-password")
    far = f"{FAR}:5033"
    k.allow_http(far)
    relay = registry.FakeRegistry(5033, FAR)
    try:
        relay.put(image, "proxy-password")
        daemon(k, http_proxy=proxy_url())
        equal(pull(k, far + "/proxy-password"), image.id, "the answer")
        check(relay.requests and all(not p.startswith("http") for _, p in relay.requests), "by tinyproxy")
        check(all("Proxy-Authorization" not in h for h in relay.headers), str(relay.headers))
    finally:
        relay.stop()
    equal(pull(k, name), image.id, "the answer of the registry on loopback")
    check(all("Proxy-Authorization" not in h for h in k.fake.headers), str(k.fake.headers))


@restarts
@test
def no_proxy_names_those_who_are_asked_directly(k):
    name, image = pushed(k, "no-proxy")
    daemon(k, HTTP_PROXY=proxy_url(1), NO_PROXY="example.com, 10.99.0.0/16")
    equal(pull(k, PLAIN + name), image.id, "the answer")
    drop(k)
    daemon(k, HTTP_PROXY=proxy_url(1), NO_PROXY="10.98.0.0/16,.0.1")
    refused("UNKNOWN", lambda: pull(k, PLAIN + name), "RegistryUnavailable: ")


@restarts
@test
def a_proxy_that_refuses_is_named_with_its_status(k):
    name, _ = pushed(k, "refused")
    rows = ((proxy_url(user="proxyuser:wrongpass@"), "UNAUTHENTICATED", f"{TINY}: HTTP status 401"),
            (proxy_url(1), "UNKNOWN", "proxy http://127.0.0.1:1: connect to 127.0.0.1 port 1"),
            ("socks5://u:wrongpass@127.0.0.1", "INVALID_ARGUMENT", "only http:// proxies are supported"))
    for url, code, text in rows:
        daemon(k, HTTP_PROXY=url, HTTPS_PROXY=url)
        found = refused(code, lambda: pull(k, PLAIN + name), text)
        check("wrongpass" not in found, found)
        found = refused(code, lambda: pull(k, TLS + name),
                        text.replace("HTTP", f"CONNECT {TLS}: HTTP") if "status" in text else text)
        check("wrongpass" not in found + read(k.directory + "/daemon.log"), found)


# -- TLS ------------------------------------------------------------------------------------------

def helpers():
    return [line for line in processes().values() if f"python3 {HELPER}" in line]


@test
def https_is_spoken_by_the_helper(k):
    name, image = pushed(k, "tls", *[Tree().file("f", str(i)) for i in range(4)])
    equal(pull(k, TLS + name), image.id, "the answer")
    until("the helpers have ended", lambda: not helpers())
    drop(k)
    hosts(k, TLS, f'server = "https://{TLS}"\n')
    text = refused("UNKNOWN", lambda: pull(k, TLS + name), "the TLS helper ended with status 1")
    holds(f"RegistryUnavailable: ", text, "the error")
    holds("CERTIFICATE_VERIFY_FAILED", text, "the error: the helper's last line")
    hosts(k, TLS, f'server = "https://{TLS}"\nskip_verify = true\n')
    equal(pull(k, TLS + name), image.id, "the answer when nothing is verified")


@test
def a_registry_that_wants_a_certificate_is_shown_one(k):
    name, image = pushed(k, "mutual")
    refused("UNKNOWN", lambda: pull(k, MUTUAL + name), "RegistryUnavailable: ")
    shutil.copy(k.tls + "/ca.pem", f"{k.certs}/{MUTUAL}/ca.pem")
    os.chmod(k.directory, 0o711)
    hosts(k, MUTUAL, f'server = "https://{MUTUAL}"\nca = ["ca.pem"]\n'
          f'client = [["{k.tls}/client.pem", "{k.tls}/client.key"]]\n')
    equal(pull(k, MUTUAL + name), image.id, "the answer")
    drop(k)
    os.unlink(f"{k.certs}/{MUTUAL}/hosts.toml")  # docker's names for the same
    os.rename(f"{k.certs}/{MUTUAL}/ca.pem", f"{k.certs}/{MUTUAL}/ca.crt")
    for kind, named in (("pem", "cert"), ("key", "key")):
        shutil.copy(f"{k.tls}/client.{kind}", f"{k.certs}/{MUTUAL}/me.{named}")
    equal(pull(k, MUTUAL + name), image.id, "the answer with docker's files")


@restarts
@test
def https_goes_through_a_tunnel_of_tinyproxy(k):
    name, image = pushed(k, "tunnel")
    daemon(k, HTTPS_PROXY=proxy_url())
    equal(pull(k, TLS + name), image.id, "the answer")
    holds(f"CONNECT {TLS} HTTP/1.1", read(k.tiny_log), "the proxy's log")


@restarts
@test
def https_goes_through_a_tunnel_of_squid(k):
    name, image = pushed(k, "squid", *[Tree().file("f", f"squid {i}") for i in range(3)])
    daemon(k, https_proxy=proxy_url(SQUID, ""), http_proxy=proxy_url(SQUID, ""))
    equal(pull(k, TLS + name), image.id, "the answer")
    until("squid writes its log", lambda: f"CONNECT {TLS}" in read(k.squid_log))
    drop(k)
    equal(pull(k, PLAIN + name), image.id, "the answer in clear")
    until("squid writes its log", lambda: f"GET http://{PLAIN}/v2/reg/squid/" in read(k.squid_log))
    hosts(k, "192.0.2.1:443", 'server = "https://192.0.2.1:443"\n')
    refused("PERMISSION_DENIED", lambda: pull(k, "192.0.2.1:443/x:1"),
            f"proxy http://127.0.0.1:{SQUID}: CONNECT 192.0.2.1:443: HTTP status 403")


@test
def no_redirect_leads_from_https_to_http(k):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(k.tls + "/server.pem", k.tls + "/server.key")
    safe = registry.FakeRegistry(5017, FAR, context)
    try:
        name, image = faked(k, "downgrade", safe)
        hosts(k, safe.address, f'server = "https://{safe.address}"\nca = "{k.tls}/ca.pem"\n')
        equal(pull(k, name), image.id, "the answer")
        drop(k)
        k.fake.put(image, "downgrade")
        safe.trick = lambda h: h.answer(307, Location=f"http://{FAKE}{h.path}")
        refused("PERMISSION_DENIED", lambda: pull(k, name), "redirect from https to http://127.0.0.1")
        safe.trick = lambda h: h.answer(401, WWW_Authenticate=f'Bearer realm="http://{FAKE}/token"')
        refused("PERMISSION_DENIED", lambda: pull(k, name, auth=AUTH), "is not https as its registry is")
        equal(k.fake.requests, [], "what was asked in clear")
    finally:
        safe.stop()


@restarts
@test
def a_daemon_that_is_killed_leaves_no_helper(k):
    """Its helper waits for a server that takes the connection and says nothing."""
    with socket.create_server((FAR, 5018)):
        hosts(k, f"{FAR}:5018", f'server = "https://{FAR}:5018"\n')
        call = k.cri.begin("PullImage", image={"image": f"{FAR}:5018/x:1"})
        until("a helper runs", helpers)
        k.kill()
        until("it is gone", lambda: not helpers())
    check(not call.done() or call.exception(), "the call has no answer")
    k.start()


# -- credentials of the node and of the user ------------------------------------------------------

def auth_file(path, **auths):
    with open(path, "w") as f:
        json.dump({"auths": {name.replace("__", ":"): entry for name, entry in auths.items()}}, f)
    return path


@restarts
@test
def the_nodes_own_file_has_the_credentials_that_a_request_lacks(k):
    name, image = pushed(k, "node-file")
    path = k.directory + "/auth.json"
    with open(path, "w") as f:
        json.dump({"auths": {BASIC: {"auth": base64.b64encode(b"anna:wrong").decode()},
                             BASIC + "/reg": {"auth": AUTH}, "http://" + TOKEN: {"identitytoken": IDENTITY}}}, f)
    daemon(k, "--image-auth-file", path)
    for address in (BASIC, TOKEN):
        equal(pull(k, address + name), image.id, f"the answer of {address}")
        drop(k)
    equal(pull(k, BASIC + name, auth=AUTH, server_address="elsewhere"), image.id, "the answer with others")
    drop(k)
    refused("UNAUTHENTICATED", lambda: pull(k, BASIC + name, username=USER, password="no"), "401")
    for text, why in (('{"auths":{"' + BASIC + '":{"auth":"SECRET"}}}', f'auths "{BASIC}": auth is not'),
                      ("{SECRET", "JSON: "), (None, "No such file")):
        os.unlink(path)
        if text:
            with open(path, "w") as f:  # the file is read at each pull
                f.write(text)
        found = refused("FAILED_PRECONDITION", lambda: pull(k, BASIC + name), f"image-auth-file {path}: ")
        holds(why, found, "the error")
        check("SECRET" not in found, found)
        equal(pull(k, BASIC + name, auth=AUTH), image.id, "the answer when the request has its own")
        drop(k)
    with open(path, "w"):
        pass


def cli(k, *words, **environment):
    """krun's command line with an environment of its own: (exit code, output, complaint)."""
    from harness import KRUN
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment}
    done = subprocess.run([KRUN, words[0], "--socket", k.socket, *words[1:]], env=environment,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=4 * DEADLINE)
    return done.returncode, done.stdout.decode().strip(), done.stderr.decode()


@test
def krun_pull_takes_credentials_from_the_line_that_was_typed(k):
    name, image = pushed(k, "typed")
    path = auth_file(k.directory + "/typed.json", **{BASIC.replace(":", "__"): {"auth": AUTH}})
    for words in (["--creds", f"{USER}:{PASSWORD}"], ["--auth", AUTH], ["--authfile", path]):
        code, out, err = cli(k, "pull", *words, BASIC + name)
        equal((code, out), (0, image.id), f"krun pull {words}: {err}")
        drop(k)
    for words, why in ((["--creds", f"{USER}:no"], "401"), ([], "401"), (["--creds", ""], "--creds"),
                       (["--auth", "!"], "--auth is not"), (["--authfile", "/none"], "/none"),
                       (["--creds", "a:b", "--auth", AUTH], "more than one")):
        code, out, err = cli(k, "pull", *words, BASIC + name)
        equal((code, out), (1, ""), f"krun pull {words}")
        holds(why, err, f"the complaint of krun pull {words}")


@test
def krun_pull_reads_the_files_that_docker_and_podman_write(k):
    name, image = pushed(k, "files")
    home = tempfile.mkdtemp(dir=k.directory)
    os.mkdir(home + "/.docker")
    good = {BASIC.replace(":", "__"): {"username": USER, "password": PASSWORD}}
    auth_file(home + "/.docker/config.json", **good)
    auth_file(home + "/config.json", **good)
    auth_file(home + "/other.json", elsewhere={"auth": AUTH})
    for environment in ({"HOME": home}, {"DOCKER_CONFIG": home}, {"REGISTRY_AUTH_FILE": home + "/config.json"},
                        {"REGISTRY_AUTH_FILE": home + "/other.json", "HOME": home}):
        code, out, err = cli(k, "pull", BASIC + name, **environment)
        equal((code, out), (0, image.id), f"krun pull with {environment}: {err}")
        drop(k)
    with open(home + "/config.json", "w") as f:
        f.write("{SECRET")
    code, _, err = cli(k, "pull", BASIC + name, DOCKER_CONFIG=home)
    equal(code, 1, "exit code with a broken file")
    holds(f"credentials file {home}/config.json: JSON: ", err, "the complaint")
    check("SECRET" not in err, err)


@test
def krun_pull_asks_dockers_credential_helpers(k):
    name, image = pushed(k, "helped")
    home = tempfile.mkdtemp(dir=k.directory)
    program = home + "/docker-credential-test"
    with open(program, "w") as f:
        f.write("#!/bin/sh\n"
                'read -r host; echo "$1 $host $MARK" >>' + home + "/asked\n"
                f'case $host in {BASIC}) echo \'{{"ServerURL":"x","Username":"{USER}","Secret":"{PASSWORD}"}}\' ;;\n'
                f'{TOKEN}) echo \'{{"Username":"<token>","Secret":"{IDENTITY}"}}\' ;;\n'
                "*broken*) exit 3 ;;\n"
                "*) echo credentials not found in native keychain; exit 1 ;; esac\n")
    os.chmod(program, stat.S_IRWXU)
    path = home + "/config.json"
    environment = {"DOCKER_CONFIG": home, "PATH": home + ":/usr/bin:/bin", "MARK": "ours"}
    for config, address in (({"credHelpers": {BASIC: "test"}}, BASIC), ({"credsStore": "test"}, BASIC),
                            ({"credsStore": "test", "auths": {BASIC: {}}}, BASIC),
                            ({"credHelpers": {TOKEN: "test"}}, TOKEN), ({"credsStore": "test"}, PLAIN)):
        with open(path, "w") as f:
            json.dump(config, f)
        code, out, err = cli(k, "pull", address + name, **environment)
        equal((code, out), (0, image.id), f"krun pull with {config}: {err}")
        drop(k)
    equal(read(home + "/asked").splitlines()[0], f"get {BASIC} ours", "what the helper was asked")
    for config, why in (({"credHelpers": {BASIC: "none"}}, "docker-credential-none: there is no such program"),
                        ({"credHelpers": {"broken.example": "test"}}, "docker-credential-test: exit status 3")):
        with open(path, "w") as f:
            json.dump(config, f)
        code, _, err = cli(k, "pull", ("broken.example" if "broken.example" in str(config) else BASIC) + name,
                           **environment)
        equal(code, 1, f"exit code with {config}")
        holds(why, err, "the complaint")


# -- names ----------------------------------------------------------------------------------------

@test
def a_name_that_is_none_touches_neither_disk_nor_network(k):
    before = sorted(os.listdir(k.root + "/layers")), sorted(os.listdir(k.root + "/images"))
    for name in ("x" * (1 << 20), FAKE + "/../x", FAKE + "/x@sha256:ab", FAKE.upper() + "X/x", "127.0.0.1:99999/x",
                 FAKE + "/a//b", FAKE + "/x:" + "t" * 129, FAKE + "/x:tag@", FAKE + "/X", "http://" + FAKE + "/x",
                 FAKE + "/x\n", "127.0.0.1:0/x", ""):
        text = refused("INVALID_ARGUMENT", lambda name=name: pull(k, name))
        check(len(text) < 600, f"{len(text)} bytes of complaint")
    equal(k.fake.requests, [], "requests")
    equal((sorted(os.listdir(k.root + "/layers")), sorted(os.listdir(k.root + "/images"))), before, "the store")
