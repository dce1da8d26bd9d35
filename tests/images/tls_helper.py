#!/usr/bin/python3
"""A program for krun's setting tls-helper: standard input and output become a TLS stream to a server.
Called with host and port; the environment says the rest, as krun's chapter 20 has it."""
import os
import select
import socket
import ssl
import sys


def context():
    made = ssl.create_default_context()
    for path in filter(None, os.environ.get("KRUN_TLS_CA", "").split(":")):
        made.load_verify_locations(path)
    if os.environ.get("KRUN_TLS_SKIP_VERIFY") == "1":
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if "KRUN_TLS_CERT" in os.environ:
        made.load_cert_chain(os.environ["KRUN_TLS_CERT"], os.environ.get("KRUN_TLS_KEY"))
    return made


def read(stream):
    """What has come: bytes, b"" at the end, None if it is not yet a whole record."""
    try:
        return stream.recv(65536)
    except ssl.SSLWantReadError:
        return None


def main(host, port):
    if os.environ.get("KRUN_TLS_FD"):
        raw = socket.socket(fileno=int(os.environ["KRUN_TLS_FD"]))
    else:
        raw = socket.create_connection((host, int(port)))
    try:
        stream = context().wrap_socket(raw, server_hostname=host)
    except ssl.SSLError as error:
        sys.exit(f"tls_helper: {host}: {error}")
    while True:  # one thread: an SSL object may not be read and written at a time
        ready = [stream] if stream.pending() else select.select([0, stream], [], [])[0]
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            stream.setblocking(True)
            stream.sendall(data)
        stream.setblocking(False)
        data = read(stream) if stream in ready else None
        if data == b"":
            return
        while data:
            data = data[os.write(1, data):]


main(*sys.argv[-2:])
