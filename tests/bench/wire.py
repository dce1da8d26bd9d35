"""A gRPC caller of its own, without gRPC's cost: one unary call at a time over HTTP/2 (RFC 9113) on a
unix socket. It measures the server, where python3-grpcio measures itself above all.
"""
import socket
import struct

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HUGE_WINDOW = 1 << 30


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def field(name, value):
    """A literal header field that is not to be indexed, without Huffman (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


class Wire:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.input = b""
        self.stream = 1
        window = struct.pack(">HI", 4, HUGE_WINDOW)  # SETTINGS_INITIAL_WINDOW_SIZE
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, window) +
                            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", HUGE_WINDOW)))

    def next_frame(self):
        while len(self.input) < 9 or len(self.input) < 9 + int.from_bytes(self.input[:3], "big"):
            more = self.socket.recv(1 << 18)
            if not more:
                raise ConnectionError("the server has closed the connection")
            self.input += more
        end = 9 + int.from_bytes(self.input[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self.input[3:9])
        payload, self.input = self.input[9:end], self.input[end:]
        return kind, flags, stream, payload

    def call(self, path, message=b""):
        """The reply's bytes. A reply without a message is an error, of which no more is told."""
        stream, self.stream = self.stream, self.stream + 2
        head = (field(":method", "POST") + field(":scheme", "http") + field(":path", path) +
                field(":authority", "localhost") + field("content-type", "application/grpc") +
                field("te", "trailers"))
        body = b"\0" + struct.pack(">I", len(message)) + message
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, head) +
                            frame(DATA, END_STREAM, stream, body))
        reply = b""
        while True:
            kind, flags, of, payload = self.next_frame()
            if kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == GOAWAY or (kind == RESET and of == stream):
                raise ConnectionError("the server has ended the call")
            elif of == stream and kind == DATA:
                reply += payload
                self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload) or 1)))
            if of == stream and kind in (DATA, HEADERS) and flags & END_STREAM:
                if not reply:
                    raise RuntimeError(f"{path} has failed")
                return reply[5:]

    def close(self):
        self.socket.close()
