"""HTTP/2 and gRPC as a hostile or odd client speaks them: raw bytes on krun's socket.

Each test ends with a well-formed call on a new connection: whatever was sent, others are served.
"""
import functools
import os
import pathlib
import select
import socket
import struct
import threading
import time

from harness import DEADLINE, TOP, Cri, check, equal, holds, pb, restarts, skip, test, until

VERSION = "/runtime.v1.RuntimeService/Version"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 1, 1, 4, 8, 32
(NO_ERROR, PROTOCOL, INTERNAL, FLOW, _, CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION, _,
 CALM) = range(12)
STATIC = {8: (":status", "200"), 31: ("content-type", "")}


def u32(n):
    return struct.pack(">I", n)


def settings(*pairs):
    return b"".join(struct.pack(">HI", *p) for p in pairs)


def frame(kind, flags, stream, payload=b""):
    return u32(len(payload))[1:] + bytes([kind, flags]) + u32(stream) + payload


def literal(name, value):
    """A field without indexing, both texts as they are; texts below 127 bytes, or of any length."""
    def text(s):
        s = s if isinstance(s, bytes) else s.encode()
        if len(s) < 127:
            return bytes([len(s)]) + s
        n, out = len(s) - 127, b"\x7f"
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n]) + s
    return b"\0" + text(name) + text(value)


def request(path=VERSION, method="POST", content_type="application/grpc", extra=()):
    fields = [(":method", method), (":scheme", "http"), (":path", path),
              (":authority", "localhost"), ("te", "trailers")]
    if content_type is not None:
        fields.append(("content-type", content_type))
    return b"".join(literal(*f) for f in fields + list(extra))


def message(body=b"", compressed=0, claim=None):
    return struct.pack(">BI", compressed, len(body) if claim is None else claim) + body


def opening(stream, **how):
    return frame(HEADERS, END_HEADERS, stream, request(**how))


def call(stream=1, body=message(), **how):
    return opening(stream, **how) + frame(DATA, END_STREAM, stream, body)


def decode(block):
    """What krun writes: static indexes and plain literals, nothing else."""
    fields = []
    while block:
        if block[0] & 0x80:
            fields.append(STATIC[block[0] & 0x7F])
            block = block[1:]
            continue
        if block[0] == 0x20:
            block = block[1:]
            continue
        index, block = block[0] & 15, block[1:]
        if index == 15:
            index, block = 15 + block[0], block[1:]
        texts = []
        for _ in range(1 if index else 2):
            n, block = block[0], block[1:]
            if n == 127:
                shift = 0
                while True:
                    n, more, block = n + ((block[0] & 127) << shift), block[0] & 128, block[1:]
                    shift += 7
                    if not more:
                        break
            texts.append(block[:n].decode())
            block = block[n:]
        fields.append((STATIC[index][0], texts[0]) if index else tuple(texts))
    return dict(fields)


class Conn:
    """One connection, and what has come back on it."""

    def __init__(self, path, greet=True, settings=b""):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(DEADLINE)
        self.s.connect(path)
        self.rest, self.frames, self.open = b"", [], True
        if greet:
            self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data):
        try:
            self.s.sendall(data)
        except OSError:  # the server has hung up; what it said is still to be read
            pass

    def read(self):
        """One more frame, or None when the server has closed the connection."""
        while True:
            if len(self.rest) >= 9:
                n = int.from_bytes(self.rest[:3], "big")
                if len(self.rest) >= 9 + n:
                    kind, flags = self.rest[3], self.rest[4]
                    stream = int.from_bytes(self.rest[5:9], "big")
                    got = (kind, flags, stream, self.rest[9:9 + n])
                    self.rest = self.rest[9 + n:]
                    self.frames.append(got)
                    return got
            try:
                more = self.s.recv(65536)
            except ConnectionError:
                more = b""
            if not more:
                self.open = False
                return None
            self.rest += more

    def until(self, wanted):
        while (got := self.read()) is not None:
            if wanted(got):
                return got
        return None

    def end_of(self, stream):
        """Reads until a stream has ended: its fields, its data, the code of a reset or None."""
        fields, data = {}, b""
        while True:
            got = self.read()
            check(got is not None, "the connection was closed")
            kind, flags, which, payload = got
            if which != stream:
                continue
            if kind == RST:
                return fields, data, int.from_bytes(payload, "big")
            if kind == HEADERS:
                fields.update(decode(payload))
            if kind == DATA:
                data += payload
            if flags & END_STREAM and kind in (HEADERS, DATA):
                return fields, data, None

    def goaway(self):
        """Reads until the server hangs up: the code of its GOAWAY, or None if there was none."""
        code = None
        while (got := self.read()) is not None:
            if got[0] == GOAWAY:
                code = int.from_bytes(got[3][4:8], "big")
        return code

    def close(self):
        self.s.close()

def served(path):
    """A well-formed call on a new connection is answered."""
    c = Conn(path)
    c.send(call())
    fields, data, _ = c.end_of(1)
    c.close()
    equal(fields.get("grpc-status"), "0", "status of a good call afterwards")
    equal(int.from_bytes(data[1:5], "big"), len(data) - 5, "length in the prefix")


def attack(function):
    """A test that is given the socket's path, and after which others must be served."""
    @functools.wraps(function)
    def run(k):
        function(k.socket)
        served(k.socket)
    return test(run)


# -- calls ---------------------------------------------------------------------------------------

@attack
def a_call_is_answered_and_unknown_metadata_ignored(path):
    c = Conn(path)
    c.send(call(extra=[("traceparent", "00-1-2-03"), ("x-bin", "AAAA"), ("user-agent", "x")]))
    fields, _, reset = c.end_of(1)
    equal((fields[":status"], fields["content-type"], fields["grpc-status"], reset),
          ("200", "application/grpc", "0", None), "answer")


@attack
def metadata_of_15_KiB_passes_in_several_frames(path):
    block = request(extra=[("x-big", "v" * 15 * 1024)])
    c = Conn(path)
    c.send(frame(HEADERS, 0, 1, block[:5000]) + frame(CONTINUATION, 0, 1, block[5000:9000])
           + frame(CONTINUATION, END_HEADERS, 1, block[9000:])
           + frame(DATA, END_STREAM, 1, message()))
    equal(c.end_of(1)[0]["grpc-status"], "0", "status")


@attack
def a_frame_may_come_byte_by_byte(path):
    c = Conn(path, greet=False)
    for byte in PREFACE + frame(SETTINGS, 0, 0) + call():
        c.send(bytes([byte]))
    equal(c.end_of(1)[0]["grpc-status"], "0", "status")


@attack
def padding_priority_and_unknown_frames_are_stepped_over(path):
    c = Conn(path)
    c.send(frame(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, 1,
                 b"\x07" + u32(0) + b"\x10" + request() + b"\0" * 7)
           + frame(PRIORITY, 0, 1, u32(5) + b"\x01") + frame(99, 255, 1, b"what is this")
           + frame(DATA, PADDED, 1, b"\x03" + message()[:2] + b"\0" * 3)
           + frame(DATA, END_STREAM | PADDED, 1, b"\xff" + message()[2:] + b"\0" * 255))
    equal(c.end_of(1)[0]["grpc-status"], "0", "status")


@attack
def a_broken_body_ends_its_call_only(path):  # T6
    for body, status in [
            (b"", "13"), (b"\0", "13"), (b"\0\0\0\0", "13"), (message(claim=5), "13"),
            (message(b"abc", claim=4), "13"), (message(claim=2**32 - 1), "8"),
            (message(claim=16 * 2**20 + 1), "8"), (message(compressed=1), "13"),
            (message(compressed=255), "13"), (message() + message(), "12"),
            (message() + b"\0", "12"), (message(b"\xff" * 11), "3"), (message(b"\x0a\x7fx"), "3")]:
        c = Conn(path)
        c.send(call(body=body) + call(stream=3))
        fields, data, _ = c.end_of(1)
        equal((fields["grpc-status"], data), (status, b""), f"answer to {body!r}")
        check(fields["grpc-message"], f"{body!r} is answered with a reason")
        equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")
        c.close()


@attack
def a_path_that_is_no_method_is_UNIMPLEMENTED(path):  # T8
    for where in (
            VERSION[1:], "/" + VERSION, VERSION + "/", VERSION.replace("/V", "%2FV"),
            VERSION.lower(), VERSION.upper(), "/", "*", "/runtime.v1.RuntimeService",
            "/runtime.v1.RuntimeService/", "/runtime.v2.RuntimeService/Version",
            "/runtime.v1alpha2." + VERSION, VERSION + "\x7f", VERSION + "?x", "/../" + VERSION,
            "/" + "a" * 8000):
        c = Conn(path)
        c.send(call(path=where))
        equal(c.end_of(1)[0]["grpc-status"], "12", f"status for {where[:60]}")
        c.close()


@attack
def what_is_not_gRPC_gets_an_HTTP_status(path):  # T8
    for how, http in [
            ({"method": "GET"}, "405"), ({"method": "post"}, "405"),
            ({"content_type": "text/html"}, "415"), ({"content_type": None}, "415"),
            ({"content_type": "application/grpcx"}, "415"), ({"content_type": ""}, "415"),
            ({"content_type": "application/grpc+json"}, "415")]:
        c = Conn(path)
        c.send(call(**how) + call(stream=3, content_type="application/grpc+proto"))
        equal(c.end_of(1)[0][":status"], http, f"HTTP status for {how}")
        equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")
        c.close()


@attack
def a_timeout_is_kept_or_refused(path):  # T9
    for timeout, status in [
            ("0n", "4"), ("1n", "4"), ("99999999H", "0"), ("10S", "0"), ("5M", "0"),
            ("99999999u", "0"), ("1x", "3"), ("-1S", "3"), ("", "3"), ("S", "3"),
            ("123456789S", "3"), ("1.5S", "3"), (" 1S", "3"), ("1s", "3")]:
        c = Conn(path)
        c.send(opening(1, extra=[("grpc-timeout", timeout)]))
        if status == "0":
            c.send(frame(DATA, END_STREAM, 1, message()))
        equal(c.end_of(1)[0]["grpc-status"], status, f"status for {timeout!r}")
        c.close()


@attack
def compression_is_refused_with_what_is_accepted(path):
    c = Conn(path)
    c.send(call(extra=[("grpc-encoding", "gzip")], body=message(b"x", compressed=1)))
    fields, _, _ = c.end_of(1)
    equal((fields["grpc-status"], fields["grpc-accept-encoding"]), ("12", "identity"), "answer")


@attack
def an_early_answer_tells_the_client_to_stop_sending(path):
    c = Conn(path)
    c.send(opening(1, path="/no/such"))
    equal(c.end_of(1)[0]["grpc-status"], "12", "status")
    equal(c.read(), (RST, 0, 1, u32(NO_ERROR)), "the next frame")
    c.send(frame(DATA, 0, 1, b"x" * 16384) * 4 + call(stream=3))  # was under way: no crime
    equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")


@attack
def two_hundred_and_fifty_streams_are_served_and_more_refused(path):
    c = Conn(path)
    ids = range(1, 601, 2)
    c.send(b"".join(opening(i) for i in ids))
    refused = {c.until(lambda f: f[0] == RST)[2] for _ in range(50)}
    equal(refused, set(ids[250:]), "streams refused")
    c.send(b"".join(frame(DATA, END_STREAM, i, message()) for i in ids[:250]))
    done = set()
    while len(done) < 250:
        kind, flags, stream, _ = c.read()
        if kind == HEADERS and flags & END_STREAM:
            done.add(stream)
    equal(done, set(ids[:250]), "streams answered")


@attack
def a_megabyte_for_a_call_that_waits_is_taken(path):
    c = Conn(path)
    c.send(opening(1) + frame(DATA, 0, 1, message(claim=16 * 2**20)) + opening(3))
    for _ in range(70):  # more than the stream's first window: it must have been given back
        c.send(frame(DATA, 0, 1, b"x" * 16384))
    c.send(frame(DATA, END_STREAM, 3, message()))
    equal(c.end_of(3)[0]["grpc-status"], "0", "status of the other call")


# -- windows (T16) -------------------------------------------------------------------------------

@attack
def a_reply_passes_through_a_window_of_one_byte(path):
    c = Conn(path)
    c.send(call())
    whole = c.end_of(1)[1]
    c.send(frame(SETTINGS, 0, 0, settings((4, 0))) + call(stream=3) + frame(WINDOW, 0, 3, u32(1)))
    data, ended = b"", False
    while not ended:
        kind, flags, stream, payload = c.read()
        if stream != 3 or kind not in (HEADERS, DATA):
            continue
        if kind == DATA:
            equal(len(payload), 1, "bytes in a frame")
            data += payload
            c.send(frame(WINDOW, 0, 3, u32(1)))
        ended = flags & END_STREAM
    equal(data, whole, "reply")


@attack
def a_window_can_become_negative_in_flight(path):
    c = Conn(path, settings=settings((4, 10)))
    c.send(call())
    equal(len(c.until(lambda f: f[0] == DATA)[3]), 10, "bytes through a window of 10")
    c.send(frame(SETTINGS, 0, 0, settings((4, 0))) + frame(WINDOW, 0, 1, u32(10))
           + frame(PING, 0, 0, b"12345678"))
    before = len(c.frames)
    c.until(lambda f: f[0] == PING)
    check(all(f[0] != DATA for f in c.frames[before:]), "-10 and 10 more are still no window")
    c.send(frame(SETTINGS, 0, 0, settings((4, 65535))))
    equal(c.end_of(1)[0]["grpc-status"], "0", "status")


@attack
def a_window_beyond_its_limit_ends_the_connection(path):
    for sent, code in [
            (frame(SETTINGS, 0, 0, settings((4, 2**31))), FLOW),
            (frame(WINDOW, 0, 0, u32(0)), PROTOCOL),
            (frame(WINDOW, 0, 0, u32(2**31 - 1)), FLOW),
            (frame(SETTINGS, 0, 0, settings((4, 0))) + opening(1)
             + frame(WINDOW, 0, 1, u32(2**31 - 1))
             + frame(SETTINGS, 0, 0, settings((4, 1))), FLOW)]:
        c = Conn(path)
        c.send(sent)
        equal(c.goaway(), code, f"GOAWAY for {sent!r}")


# -- frames that break a rule (T11, T18, T19) ----------------------------------------------------

ON_CONNECTION = {
    "even stream": (frame(HEADERS, 5, 2, request()), PROTOCOL),
    "stream 0": (frame(HEADERS, 5, 0, request()), PROTOCOL),
    "data on stream 0": (frame(DATA, 0, 0, b"x"), PROTOCOL),
    "data on an idle stream": (frame(DATA, 0, 1, b"x"), PROTOCOL),
    "reset of an idle stream": (frame(RST, 0, 1, u32(8)), PROTOCOL),
    "window of an idle stream": (frame(WINDOW, 0, 1, u32(8)), PROTOCOL),
    "decreasing stream": (call(stream=9) + call(stream=3), CLOSED),
    "after the last stream": (call(stream=2**31 - 1) + call(stream=1), CLOSED),
    "push": (frame(PUSH, 4, 1, u32(2) + request()), PROTOCOL),
    "padding longer than DATA": (opening(1) + frame(DATA, PADDED, 1, b"\x05abcd"), PROTOCOL),
    "padding longer than HEADERS": (frame(HEADERS, 4 | PADDED, 1, b"\xff" + b"x" * 9), PROTOCOL),
    "padded and empty": (opening(1) + frame(DATA, PADDED, 1, b""), PROTOCOL),
    "priority flag, 4 bytes": (frame(HEADERS, 5 | HAS_PRIORITY, 1, b"1234"), PROTOCOL),
    "PRIORITY of 4 bytes": (frame(PRIORITY, 0, 1, b"1234"), FRAME_SIZE),
    "PRIORITY of stream 0": (frame(PRIORITY, 0, 0, b"12345"), PROTOCOL),
    "RST_STREAM of 5 bytes": (frame(RST, 0, 1, b"12345"), FRAME_SIZE),
    "SETTINGS of 5 bytes": (frame(SETTINGS, 0, 0, b"12345"), FRAME_SIZE),
    "SETTINGS ack with bytes": (frame(SETTINGS, ACK, 0, settings((4, 1))), FRAME_SIZE),
    "SETTINGS of a stream": (frame(SETTINGS, 0, 1, settings((4, 1))), PROTOCOL),
    "push 2": (frame(SETTINGS, 0, 0, settings((2, 2))), PROTOCOL),
    "frame size 16383": (frame(SETTINGS, 0, 0, settings((5, 16383))), PROTOCOL),
    "PING of 7 bytes": (frame(PING, 0, 0, b"1234567"), FRAME_SIZE),
    "PING of a stream": (frame(PING, 0, 1, b"12345678"), PROTOCOL),
    "GOAWAY of 7 bytes": (frame(GOAWAY, 0, 0, b"1234567"), FRAME_SIZE),
    "GOAWAY of a stream": (frame(GOAWAY, 0, 1, b"12345678"), PROTOCOL),
    "WINDOW_UPDATE of 3 bytes": (frame(WINDOW, 0, 0, b"123"), FRAME_SIZE),
    "frame of 16385 bytes": (frame(DATA, 0, 1, b"x" * 16385), FRAME_SIZE),
    "CONTINUATION of nothing": (frame(CONTINUATION, 4, 1, request()), PROTOCOL),
    "CONTINUATION of another": (frame(HEADERS, 0, 1) + frame(CONTINUATION, 4, 3), PROTOCOL),
    "DATA inside a block": (frame(HEADERS, 0, 1, request()) + frame(DATA, 0, 1, b""), PROTOCOL),
    "index 0": (frame(HEADERS, 5, 1, b"\x80"), COMPRESSION),
    "index past the table": (frame(HEADERS, 5, 1, b"\xbe"), COMPRESSION),
    "integer without end": (frame(HEADERS, 5, 1, b"\xff" * 11 + b"\x01"), COMPRESSION),
    "table of 4097": (frame(HEADERS, 5, 1, b"\x3f\xe2\x1f" + request()), COMPRESSION),
    "table size after a field": (frame(HEADERS, 5, 1, request() + b"\x20"), COMPRESSION),
    "string past the end": (frame(HEADERS, 5, 1, b"\x00\x05ab"), COMPRESSION),
    "Huffman EOS": (frame(HEADERS, 5, 1, b"\x00\x01a\x84\xff\xff\xff\xff"), COMPRESSION),
    "Huffman padding of 11 bits": (frame(HEADERS, 5, 1, b"\x00\x01a\x82\x1f\xff"), COMPRESSION),
    "Huffman padding of zeros": (frame(HEADERS, 5, 1, b"\x00\x01a\x81\x18"), COMPRESSION),
}


@attack
def a_broken_frame_ends_the_connection_with_its_code(path):
    for what, (sent, code) in ON_CONNECTION.items():
        c = Conn(path)
        c.send(sent)
        equal(c.goaway(), code, f"GOAWAY for {what}")
        served(path)


@attack
def a_stream_cannot_be_used_again(path):
    c = Conn(path)
    c.send(call())
    c.end_of(1)
    c.send(frame(HEADERS, 5, 1, request()))
    equal(c.goaway(), CLOSED, "GOAWAY")


FIELDS = [(":method", "POST"), (":scheme", "http"), (":path", VERSION),
          ("content-type", "application/grpc")]
MALFORMED = {
    "upper case": FIELDS + [("Te", "trailers")],
    "empty name": FIELDS + [("", "x")],
    "colon inside": FIELDS + [("a:b", "x")],
    "space in a name": FIELDS + [("a b", "x")],
    "newline in a value": FIELDS + [("x", "a\nb")],
    "NUL in a value": FIELDS + [("x", "a\0b")],
    "pseudo after a field": FIELDS + [(":authority", "x")],
    "unknown pseudo": [(":what", "x")] + FIELDS,
    "response pseudo": [(":status", "200")] + FIELDS,
    "pseudo twice": [(":method", "POST")] + FIELDS,
    "no method": FIELDS[1:],
    "no scheme": FIELDS[:1] + FIELDS[2:],
    "no path": FIELDS[:2] + FIELDS[3:],
    "empty path": FIELDS[:2] + [(":path", "")] + FIELDS[3:],
    "connection": FIELDS + [("connection", "close")],
    "transfer-encoding": FIELDS + [("transfer-encoding", "chunked")],
    "te gzip": FIELDS + [("te", "gzip")],
    "a content-length of no DATA": FIELDS + [("content-length", "5")],
    "two content-lengths": FIELDS + [("content-length", "0"), ("content-length", "5")],
    "content-length without a number": FIELDS + [("content-length", "+0")],
}


@attack
def a_malformed_header_list_ends_the_stream(path):
    for what, fields in MALFORMED.items():
        c = Conn(path)
        c.send(frame(HEADERS, 5, 1, b"".join(literal(*f) for f in fields)) + call(stream=3))
        equal(c.end_of(1), ({}, b"", PROTOCOL), f"answer to {what}")
        equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")
        c.close()


@attack
def a_new_size_of_the_table_may_come_twice_in_a_block(path):
    c = Conn(path)
    c.send(frame(HEADERS, END_HEADERS, 1, b"\x20\x3f\xe1\x1f" + request())
           + frame(DATA, END_STREAM, 1, message()))
    equal(c.end_of(1)[0]["grpc-status"], "0", "status")


@attack
def a_content_length_is_held_to(path):
    for said, sent, code in ((5, message(), None), (4, message(), PROTOCOL), (6, message(), PROTOCOL)):
        c = Conn(path)
        c.send(opening(1, extra=[("content-length", str(said))]) + frame(DATA, 0, 1, sent[:2])
               + frame(DATA, END_STREAM, 1, sent[2:]) + call(stream=3))
        fields, _, reset = c.end_of(1)
        equal((fields.get("grpc-status"), reset), (None if code else "0", code), f"{said} of 5 bytes")
        equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")
        c.close()


@attack
def a_broken_rule_on_an_open_stream_resets_it(path):
    for sent, code in [
            (frame(HEADERS, END_HEADERS, 1, literal("x", "y")), PROTOCOL),  # trailers, but no end
            (frame(HEADERS, 5, 1, literal(":path", "/x")), PROTOCOL),
            (frame(WINDOW, 0, 1, u32(0)), PROTOCOL),
            (frame(WINDOW, 0, 1, u32(2**31 - 1)), FLOW),
            (frame(PRIORITY, 0, 1, u32(1) + b"\0"), PROTOCOL)]:
        c = Conn(path)
        c.send(opening(1) + sent + call(stream=3))
        equal(c.end_of(1), ({}, b"", code), f"answer to {sent!r}")
        equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")
        c.close()


@attack
def recorded_bad_clients_do_no_harm(path):  # T11
    data = os.environ.get("KRUN_TESTDATA", os.path.join(TOP, "../shared/testdata"))
    corpus = pathlib.Path(data) / "http2-frames"
    if not corpus.is_dir():
        skip(f"there is no {corpus}")
    for case in sorted(corpus.iterdir()):
        c = Conn(path, greet=False)
        c.send(case.read_bytes())
        c.s.shutdown(socket.SHUT_WR)
        c.goaway()
        c.close()
        served(path)


# -- floods (T12 to T15, T17) --------------------------------------------------------------------

@attack
def a_header_block_without_end_is_cut_off(path):  # T12
    for part in (b"", b"\0", b"\x20" * 16384):
        c = Conn(path)
        c.send(frame(HEADERS, 0, 1, request()) + frame(CONTINUATION, 0, 1, part) * 9)
        equal(c.goaway(), CALM, f"GOAWAY for parts of {len(part)} bytes")


EXEC = "/runtime.v1.RuntimeService/ExecSync"
FLOODS = {  # T13, T14, T15: what round i sends on stream n; only the first may have opened stream 1
    "HEADERS and RST_STREAM": lambda i, n: opening(n) + frame(RST, 0, n, u32(CANCEL)),
    "ExecSync and RST_STREAM": lambda i, n: call(n, path=EXEC) + frame(RST, 0, n, u32(CANCEL)),
    "HEADERS and WINDOW_UPDATE of 0": lambda i, n: opening(n) + frame(WINDOW, 0, n, u32(0)),
    "HEADERS and overflow": lambda i, n: opening(n) + frame(WINDOW, 0, n, u32(2**31 - 1)),
    "HEADERS and self-dependency": lambda i, n: opening(n) + frame(PRIORITY, 0, n, u32(n) + b"\0"),
    "DATA after the end": lambda i, n: call(n) + frame(DATA, 0, n, b"x"),
    "malformed request": lambda i, n: frame(HEADERS, 5, n, literal("A", "b")),
    "PING": lambda i, n: frame(PING, 0, 0, b"12345678"),
    "PING ack": lambda i, n: frame(PING, ACK, 0, b"12345678"),
    "SETTINGS": lambda i, n: frame(SETTINGS, 0, 0, settings((4, i))),
    "SETTINGS ack": lambda i, n: frame(SETTINGS, ACK, 0),
    "empty DATA": lambda i, n: (opening(1) if i == 0 else b"") + frame(DATA, 0, 1),
    "PRIORITY": lambda i, n: frame(PRIORITY, 0, n, u32(0) + b"\0"),
    "unknown type": lambda i, n: frame(200, 0, i, b"x"),
    "WINDOW_UPDATE": lambda i, n: frame(WINDOW, 0, 0, u32(1)),
    "GOAWAY": lambda i, n: frame(GOAWAY, 0, 0, u32(0) + u32(0)),
    "RST_STREAM of a closed stream":
        lambda i, n: (call(1) if i == 0 else b"") + frame(RST, 0, 1, u32(8)),
}


@attack
def a_flood_is_told_to_calm_down(path):
    for what, flood in FLOODS.items():
        c = Conn(path)
        for i in range(0, 3000, 50):
            c.send(b"".join(flood(k, 2 * k + 1) for k in range(i, i + 50)))
        equal(c.goaway(), CALM, f"GOAWAY for {what}")
        served(path)


@attack
def a_client_that_never_reads_is_not_read_either(path):  # T15
    c = Conn(path)
    c.s.settimeout(3)
    sent = 0
    try:
        for i in range(200000):  # each asks for a reply of its own
            c.s.sendall(call(stream=2 * i + 1))
            sent += 1
    except OSError:
        pass
    check(sent < 20000, f"after {sent} calls without a reader the server still reads")
    served(path)
    c.close()


@attack
def an_HPACK_bomb_is_refused_and_the_connection_lives(path):  # T17
    for bomb in (b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 10000,  # one entry of 4 KiB
                 b"\x40\x01a\x01b" + b"\xbe" * 16000):  # a small one: the number of fields
        block = request() + bomb
        parts = [block[i:i + 16384] for i in range(0, len(block), 16384)]
        sent = frame(HEADERS, END_STREAM | (len(parts) == 1) * END_HEADERS, 1, parts[0])
        for n, part in enumerate(parts[1:], 2):
            sent += frame(CONTINUATION, (n == len(parts)) * END_HEADERS, 1, part)
        c = Conn(path)
        c.send(sent + call(stream=3))
        equal(c.end_of(1)[0]["grpc-status"], "8", "status of the bomb")
        equal(c.end_of(3)[0]["grpc-status"], "0", "status of the next call")
        c.close()


# -- silence (T10) -------------------------------------------------------------------------------

@attack
def HTTP_1_is_hung_up_on_at_once(path):
    c = Conn(path, greet=False)
    c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    start = time.monotonic()
    equal(c.goaway(), PROTOCOL, "GOAWAY")
    check(time.monotonic() - start < 9, "not only when its time for a greeting, ten seconds, has run out")


@attack
def a_thousand_silent_clients_keep_nobody_out(path):
    crowd = []
    for _ in range(1000):
        crowd.append(Conn(path, greet=False))
        if len(crowd) % 100 == 0:
            served(path)
    for c in crowd:
        c.close()


@attack
def silent_and_slow_clients_are_hung_up_on(path):
    silent, slow, half = (Conn(path, greet=False) for _ in range(3))
    half.send(PREFACE)
    gone = False
    for byte in PREFACE[:-1]:  # it is given up before it has sent all: its bytes win it no time
        slow.send(bytes([byte]))
        if select.select([slow.s], [], [], 0.8)[0]:
            gone = True
            break
    check(gone, "the slow one was hung up on while it still sent")
    for c in (silent, slow, half):
        c.goaway()
        check(not c.open, "the server has hung up")


# -- many at once ----------------------------------------------------------------------------------

STOP = "/runtime.v1.RuntimeService/StopContainer"
PULL = "/runtime.v1.ImageService/PullImage"


def stops(k, container, n, timeout=3600):
    """So many clients that wait for a container which does not end: a connection each."""
    ask = pb.StopContainerRequest(container_id=container.id, timeout=timeout).SerializeToString()
    crowd = [Conn(k.socket) for _ in range(n)]
    for c in crowd:
        c.send(call(path=STOP, body=message(ask)))
    return crowd


@test
def two_hundred_stops_that_wait_leave_room_for_the_one_that_ends_them(k):
    container = k.pod().start()
    crowd = stops(k, container, 200)
    until("the first of them has come", lambda: container.status().state == pb.CONTAINER_RUNNING)
    for _ in range(30):  # each a client of its own
        served(k.socket)
    other = Cri(k.socket)
    check(other.Status(_timeout=DEADLINE).status.conditions, "Status")
    equal([c.id for c in other.ListContainers().containers], [container.id], "ListContainers")
    holds(container.id[:12], k.cli("ps").stdout.decode(), "krun ps")
    equal(container.run("echo", "in").stdout, b"in\n", "what an ExecSync beside them prints")
    Conn(k.socket, greet=False)  # one that says nothing
    other.StopContainer(container_id=container.id, timeout=0)
    equal(container.status().exit_code, 137, "exit code")
    for c in crowd:
        equal(c.end_of(1)[0]["grpc-status"], "0", "what a stop that waited is told")
        c.close()
    other.close()


@test
def six_hundred_stops_on_three_connections_leave_room_for_the_one_that_ends_them(k):
    container = k.pod().start()
    ask = pb.StopContainerRequest(container_id=container.id, timeout=3600).SerializeToString()
    crowd = [Conn(k.socket) for _ in range(3)]
    for c in crowd:
        c.send(b"".join(call(stream, path=STOP, body=message(ask)) for stream in range(1, 401, 2)))
        c.send(frame(PING, 0, 0, b"all read"))
        c.until(lambda f: f[0] == PING)
    other = Cri(k.socket)
    other.StopContainer(container_id=container.id, timeout=0)
    equal(container.status().exit_code, 137, "exit code")
    for c in crowd:
        ended = {}
        while len(ended) < 200:
            kind, _, stream, payload = c.read()
            if kind == HEADERS:
                ended.setdefault(stream, {}).update(decode(payload))
                if "grpc-status" not in ended[stream]:
                    del ended[stream]
        equal({f["grpc-status"] for f in ended.values()}, {"0"}, "what the others are told")
        c.close()
    other.close()


@test
def a_thousand_pulls_and_ten_thousand_stops_that_hang_leave_room_for_each_other_and_for_an_exec(k):
    mute = socket.create_server(("127.0.0.1", 0))  # a registry that never says anything
    pull = pb.PullImageRequest(image=pb.ImageSpec(image=f"127.0.0.1:{mute.getsockname()[1]}/hangs:1"))
    pod = k.pod()
    container, other = pod.start(), pod.start()
    stop = pb.StopContainerRequest(container_id=container.id, timeout=3600)
    crowd = []
    for method, ask, n in ((PULL, pull, 4), (STOP, stop, 48)):
        sent = b"".join(call(stream, path=method, body=message(ask.SerializeToString()))
                        for stream in range(1, 501, 2))
        for _ in range(n):
            c = Conn(k.socket)
            c.send(sent + frame(PING, 0, 0, b"all read"))
            c.until(lambda f: f[0] == PING)
            crowd.append(c)
    for _ in range(5):  # each a client of its own
        cri = Cri(k.socket)
        done = cri.ExecSync(container_id=other.id, cmd=["echo", "in"], timeout=20, _timeout=DEADLINE)
        equal(done.stdout, b"in\n", "what an ExecSync beside them prints")
        gone = cri.begin("PullImage", image={"image": "127.0.0.1:1/none:1"}, _timeout=DEADLINE).exception()
        check(gone.code().name != "DEADLINE_EXCEEDED", "a pull beside them is answered")
        cri.close()
    other.stop(timeout=1)
    equal(other.status().state, pb.CONTAINER_EXITED, "state of one that is stopped beside them")
    for c in crowd:
        c.close()
    container.stop(timeout=0)
    mute.close()


def resident_MiB(k):
    with open(f"/proc/{k.process.pid}/statm") as f:
        return int(f.read().split()[1]) * 4 // 1024


@test
@restarts
def fifty_thousand_half_calls_take_little_memory_and_leave_room_for_others(k):
    """Their heads are sent, and no more of them: only their number is a bound."""
    k.restart()  # its memory is compared: that of the tests before is not part of it
    container, before, crowd = k.pod().start(), resident_MiB(k), []
    for _ in range(200):
        c = Conn(k.socket)
        c.send(b"".join(opening(stream, path=STOP) for stream in range(1, 501, 2))
               + frame(PING, 0, 0, b"all read"))
        c.until(lambda f: f[0] == PING)
        crowd.append(c)
    check(resident_MiB(k) < before + 24, f"{resident_MiB(k) - before} MiB for half calls are too much")
    served(k.socket)
    holds(container.id[:12], k.cli("ps").stdout.decode(), "krun ps")
    other = Cri(k.socket)
    other.StopContainer(container_id=container.id, timeout=0)
    equal(container.status().exit_code, 137, "exit code")
    refused = [f[2] for f in crowd[-1].frames if f[0] == RST and f[3] == u32(REFUSED)]
    check(len(refused) > 200, "what is refused may be asked again")
    crowd[-1].send(frame(RST, 0, 1, u32(CANCEL)) + call(501))
    equal(crowd[-1].end_of(501)[0]["grpc-status"], "0", "status of a call of one that has made room")
    for c in crowd:
        c.close()
    other.close()
    until("the memory goes back", lambda: resident_MiB(k) < before + 8, DEADLINE / 3)


@test
@restarts
def memory_of_64_MiB_of_half_sent_messages_goes_back(k):
    """In any sizes, and although a connection that came last goes on."""
    k.restart()  # what the tests before have left free would be used first, and nothing seen to grow
    before, stay = resident_MiB(k), []
    for conns, streams, size in ((16, 4, 1000000), (50, 16, 60000), (50, 200, 5000), (50, 60, 16000)):
        open_now, most = [Conn(k.socket) for _ in range(conns)], 0
        for c in open_now:
            body = message(b"\0" * size, claim=15 << 20)
            for n in range(1, 2 * streams, 2):
                c.send(opening(n, path="/runtime.v1.RuntimeService/RunPodSandbox"))
                for at in range(0, len(body), 16384):
                    c.send(frame(DATA, 0, n, body[at:at + 16384]))
            c.send(frame(PING, 0, 0, b"all read"))
            check(c.until(lambda f: f[0] == PING), "a connection of half sent messages is kept")
            most = max(most, resident_MiB(k))
        check(most > before + 30, f"{most - before} MiB for {conns} x {streams} x {size} are too few")
        last = Conn(k.socket)
        last.send(opening(1) + frame(DATA, 0, 1, message(b"x" * 100, claim=15 << 20)))
        last.send(frame(PING, 0, 0, b"12345678"))
        last.until(lambda f: f[0] == PING)
        stay.append(last)
        for c in open_now:
            c.s.close()
        until(f"the memory goes back after {conns} x {streams} x {size}",
              lambda: resident_MiB(k) < before + 8, DEADLINE / 3)
    for c in stay:
        c.s.close()


@test
def large_lists_are_whole_while_what_they_list_is_removed(k):
    pod, note = k.pod(), "ж" * 20000
    made = [pod.create(annotations={"note": note}) for _ in range(100)]
    names = {c.id: c.config["metadata"]["name"] for c in made}
    lists, wrong = [], []

    def look(name):
        own = Cri(k.socket)
        while pod:
            found = getattr(own, name)()
            rows = found.containers if name == "ListContainers" else [r for m in found for r in m.containers]
            wrong.extend(r.id for r in rows
                         if r.annotations["note"] != note or r.metadata.name != names.get(r.id))
            lists.append(len(rows))
        own.close()
    lookers = [threading.Thread(target=look, args=(n,)) for n in ("ListContainers", "StreamContainers") * 2]
    for t in lookers:
        t.start()
    until("there is a list of all", lambda: 100 in lists)
    for c in made:
        c.remove()
    k.cri.RemovePodSandbox(pod_sandbox_id=pod.id)
    until("a list has nothing any more", lambda: lists[-1] == 0)
    pod = None
    for t in lookers:
        t.join()
    equal(wrong, [], "containers that were listed with other texts than their own")
