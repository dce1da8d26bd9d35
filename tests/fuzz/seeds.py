#!/usr/bin/env python3
"""Makes the inputs that fuzzing starts from: DIRECTORY/<target>/<name>, for each target of fuzz.c.

    tests/fuzz/seeds.py DIRECTORY

Own examples of every form that a reader knows, the small ones of tests/vectors, and, where KRUN_TESTDATA
names them, of the public test vectors. Nothing of it is kept in the repository: it is made in a second.
"""
import gzip
import io
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib

MOST = 48 * 1024  # a larger seed makes every execution slow
DIGEST = 'sha256:' + '0123456789abcdef' * 4


def texts():
    """Bytes of several natures: none, one letter, words, noise, something with far repeats."""
    rng = random.Random(1)
    words = ' '.join(rng.choice(['layer', 'image', 'pod', 'etc', 'usr', 'bin']) for _ in range(600)).encode()
    noise = rng.randbytes(3000)
    return {'empty': b'', 'one': b'a', 'run': b'a' * 5000, 'words': words, 'noise': noise,
            'mixed': words[:900] + noise[:300] + words, 'far': noise[:2000] + bytes(9000) + noise[:2000]}


def inflate():
    for name, data in texts().items():
        for level in (0, 1, 6, 9):
            yield f'{name}-{level}', gzip.compress(data, level, mtime=0)
        deflate = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_FIXED)
        yield f'{name}-fixed', deflate.compress(data) + deflate.flush()
        deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        middle = len(data) // 2
        yield f'{name}-flushed', (deflate.compress(data[:middle]) + deflate.flush(zlib.Z_FULL_FLUSH) +
                                  deflate.compress(data[middle:]) + deflate.flush())
    yield 'members', gzip.compress(b'one', mtime=0) + gzip.compress(b'two', mtime=0) + bytes(20)
    body = gzip.compress(b'fields', mtime=0)[10:]
    head = b'\x1f\x8b\x08\x1e\0\0\0\0\0\x03' + b'\x05\0extra' + b'name\0' + b'comment\0'
    yield 'fields', head + struct.pack('<H', zlib.crc32(head) & 0xFFFF) + body


def zstd():
    if not shutil.which('zstd'):
        return
    for name, data in texts().items():
        for options in (['-1'], ['-19'], ['-3', '--no-check'], ['-12', '--long=20'],
                        ['-5', '--no-content-size']):
            run = subprocess.run(['zstd', '-q', '-c', *options], input=data, capture_output=True)
            if run.returncode == 0:
                yield name + ''.join(options), run.stdout
    frame = subprocess.run(['zstd', '-q', '-c'], input=b'frame', capture_output=True, check=True).stdout
    yield 'skippable', b'\x53\x2a\x4d\x18\x05\0\0\0skip!' + frame + frame


def tar():
    kinds = [tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
             tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
    formats = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}
    for form, number in formats.items():
        for kind in kinds:
            yield f'{form}-{kind.decode()}', archive(number, [entry('dir/./name', kind)])
        yield f'{form}-all', archive(number, [entry(f'd/n{i}', kind) for i, kind in enumerate(kinds)])
        yield f'{form}-whiteout', archive(number, [entry('d/.wh.gone'), entry('d/.wh..wh..opq')])
    for form in ('gnu', 'pax'):
        long = entry('long/' * 60 + 'name', tarfile.SYMTYPE, link='../' * 70 + 'x')
        long.uid, long.gid, long.mtime = 3000000, 1 << 31, 1.5
        yield f'{form}-long', archive(formats[form], [long])
    pax = {'SCHILY.xattr.security.capability': 'x', 'SCHILY.xattr.user.a': 'b' * 200, 'comment': 'c',
           'path': 'other/path', 'mtime': '-12.25', 'size': '10'}
    yield 'pax-records', archive(tarfile.PAX_FORMAT, [entry('x', records=pax)])
    sparse = {'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.name': 'sparse',
              'GNU.sparse.realsize': '8192'}
    data = b'2\n0\n5\n4096\n5\n'.ljust(512, b'\0') + b'firstother'
    yield 'sparse-1.0', archive(tarfile.PAX_FORMAT, [entry('s', records=sparse, data=data)])
    sparse = {'GNU.sparse.map': '0,5,4096,5', 'GNU.sparse.size': '8192', 'GNU.sparse.name': 'sparse'}
    yield 'sparse-0.1', archive(tarfile.PAX_FORMAT, [entry('s', records=sparse, data=b'firstother')])
    yield 'global', archive(tarfile.PAX_FORMAT, [entry('x')], {'comment': 'all of it'})


class Entry(tarfile.TarInfo):
    data = b'' # what follows the header


def entry(name, kind=tarfile.REGTYPE, link='target', records=None, data=b'some bytes'):
    info = Entry(name)
    info.type, info.pax_headers = kind, records or {}
    if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        info.linkname = link
    if kind in (tarfile.REGTYPE, tarfile.CONTTYPE):
        info.size, info.data = len(data), data
    info.devmajor, info.devminor = 1, 3
    return info


def archive(form, entries, everywhere=None):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=form, pax_headers=everywhere) as t:
        for info in entries:
            t.addfile(info, io.BytesIO(info.data))
    return out.getvalue()


def json_texts():
    yield 'kinds', b'{"a":[1,-2.5e+10,true,false,null,"x\\u00e9\\ud83d\\ude00\\n"],"b":{"c":{}},"":[]}'
    yield 'deep', b'[' * 64 + b']' * 64
    yield 'too-deep', b'[' * 70
    yield 'numbers', b'[0,-0,0.0,1e5,1E-5,123456789012345678901234567890]'
    yield 'escapes', rb'["\"\\\/\b\f\n\r\t\u0000\u001f\u007f\uFFFF"]'
    yield 'space', b' \t\r\n{ "a" : [ 1 , 2 ] }\n'
    yield 'equal-keys', b'{"a":1,"a":2}'


def toml():
    yield 'config', b'''# krun
root = "/var/lib/krun" # where
run = '/run/krun'
number = 1_000
hex = 0xDEAD_beef
oct = 0o17
bin = 0b1010
minus = -5
yes = true
[image]
tls_helper = "openssl s_client"
list = [ "a", 'b', """c
d""", [1, 2], ]
inline = { a = 1, b.c = "x", "quoted key" = \'\'\'raw\'\'\' }
[a.b."c.d"]
x.y.z = "\\u00e9\\U0001F600\\t\\"\\\\"
[[many]]
n = 1
[[many]]
n = 2
[many.sub]
'''
    yield 'hosts', b'''server = "https://registry.example"
[host."http://127.0.0.1:5000"]
  capabilities = ["pull", "resolve"]
  override_path = true
  [host."http://127.0.0.1:5000".header]
    x-a = ["b"]
'''
    yield 'lines', b'\xef\xbb\xbfa = """\\\n   b"""\r\n\r\nc = """""" # end'


def manifest():
    descriptor = {'mediaType': 'application/vnd.oci.image.layer.v1.tar+gzip', 'digest': DIGEST, 'size': 10}
    oci = 'application/vnd.oci.image.'
    docker = 'application/vnd.docker.distribution.manifest.'
    config = dict(descriptor, mediaType=oci + 'config.v1+json')
    one = {'schemaVersion': 2, 'mediaType': oci + 'manifest.v1+json', 'config': config, 'layers': [descriptor] * 2}
    platforms = [('linux', 'amd64', ''), ('linux', 'arm', 'v6'), ('linux', 'arm', 'v7'), ('linux', 'arm64', 'v8')]
    entries = [dict(descriptor, platform={'os': o, 'architecture': a, 'variant': v}) for o, a, v in platforms]
    index = {'schemaVersion': 2, 'mediaType': oci + 'index.v1+json', 'manifests': entries}
    run = {'User': '1:2', 'Env': ['A=b'], 'Entrypoint': ['/x'], 'Cmd': ['y'], 'WorkingDir': '/w',
           'Volumes': {'/v': {}}, 'StopSignal': 'SIGTERM', 'Labels': {'a': 'b'}}
    yield 'manifest', one
    yield 'index', index
    yield 'docker', {'schemaVersion': 2, 'mediaType': docker + 'v2+json',
                     'config': dict(config, mediaType='application/vnd.docker.container.image.v1+json'),
                     'layers': [dict(descriptor, mediaType='application/vnd.docker.image.rootfs.diff.tar.gzip')]}
    yield 'list', dict(index, mediaType=docker + 'list.v2+json')
    yield 'schema1', {'schemaVersion': 1, 'fsLayers': [], 'history': []}
    yield 'both', dict(one, manifests=entries)
    yield 'foreign', dict(one, layers=[dict(descriptor, urls=['http://x'])])
    yield 'config', {'os': 'linux', 'architecture': 'amd64', 'config': run,
                     'rootfs': {'type': 'layers', 'diff_ids': [DIGEST, DIGEST]}}
    yield 'empty', {'schemaVersion': 2, 'manifests': []}


def http():
    ok = b'HTTP/1.1 200 OK\r\n'
    yield 'length', ok + b'Content-Length: 5\r\nContent-Type: text/plain; a=b\r\n\r\nhello' * 1
    yield 'two', (ok + b'Content-Length: 2\r\n\r\nhi') * 2
    yield 'chunked', ok + b'Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1a\r\n' + b'z' * 26 + b'\r\n0\r\nT: r\r\n\r\n'
    yield 'chunked-two', (ok + b'Transfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n') * 2
    yield 'until-close', b'HTTP/1.0 200 OK\r\nA: b\r\n\r\nall that comes'
    yield 'close', ok + b'Connection: close\r\nContent-Length: 3\r\n\r\nend'
    yield 'interim', b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n' + ok + b'Content-Length: 0\r\n\r\n'
    yield 'challenge', (b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm="https://a/t",service="s",'
                        b'scope="repository:x:pull"\r\nContent-Length: 2\r\n\r\n{}')
    yield 'redirect', b'HTTP/1.1 307 T\r\nLocation: https://cdn.example/x?y=z\r\nContent-Length: 0\r\n\r\n'
    yield 'range', b'HTTP/1.1 206 P\r\nContent-Range: bytes 2-4/5\r\nContent-Length: 3\r\n\r\nllo'
    yield 'smuggled', ok + b'Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc'
    yield 'both', ok + b'Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'
    yield 'many', ok + b''.join(b'F%d: v\r\n' % i for i in range(101)) + b'\r\n'


def http2():
    def frame(kind, flags, stream, body=b''):
        return struct.pack('>I', len(body))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + body

    def text(value):
        return bytes([len(value)]) + value

    def call(stream, path=b'/t.v1.S/Echo', more=b'', message=b'\x0a\x05hello'):
        fields = (b'\x83\x86\x44' + text(path) + b'\x5f' + text(b'application/grpc') +
                  b'\x40' + text(b'te') + text(b'trailers') + more)
        return (frame(1, 4, stream, fields) +
                frame(0, 1, stream, b'\0' + struct.pack('>I', len(message)) + message))

    settings = frame(4, 0, 0)
    yield 'call', call(1)
    yield 'calls', call(1) + call(3, b'/t.a.S/Echo') + call(5, b'/t.v1.S/None') + call(7, b'/nothing')
    yield 'long', call(1, message=b'\x0a\x60' + b'a' * 96) + frame(8, 0, 0, b'\0\1\0\0') + call(3)
    yield 'refused', call(1, message=b'\x0a\x02no') + call(3, message=b'\xff')
    yield 'deadline', call(1, more=b'\x40' + text(b'grpc-timeout') + text(b'1S'))
    yield 'half', frame(1, 4, 1, b'\x83\x86\x84') + frame(0, 0, 1, b'\0\0\0\0\x09part')
    yield 'parts', frame(1, 0, 1, b'\x83\x86') + frame(9, 0, 1, b'\x84') + frame(9, 4, 1)
    yield 'small-window', frame(4, 0, 0, b'\0\4\0\0\0\x0a') + call(1) + frame(8, 0, 1, b'\0\0\0\x63')
    yield 'table', frame(4, 0, 0, b'\0\1\0\0\0\0') + call(1) + call(3)
    yield 'reset', call(1) + frame(3, 0, 1, bytes(4)) + frame(6, 0, 0, b'ping ping'[:8]) + frame(7, 0, 0, bytes(8))
    yield 'padded', frame(1, 0x2c, 1, b'\2' + bytes(4) + b'\1' + b'\x83\x86\x84' + bytes(2)) + settings


def reference():
    for i, text in enumerate((
            'busybox', 'busybox:1.36', 'docker.io/library/busybox@' + DIGEST, 'localhost:5000/a/b__c.d-e:tag',
            '[::1]:5000/x:y', 'registry.example/a/b:t@' + DIGEST, 'index.docker.io/x', 'a..b', 'A/b',
            '0123456789abcdef' * 4, 'https://registry.example:5000/v2/?a=b#c', 'http://[fe80::1]/', '/v2/x?y',
            '//other.example/p', 'https://user:pw@host/', 'http://a:0/', 'http://a:65536/', 'x' * 255)):
        yield f'{i:02}', text.encode()


def dns():
    question = b'\x08registry\x04test\0\0\1\0\1'
    head = struct.pack('>HHHHHH', 258, 0x8180, 1, 3, 0, 0)
    a = b'\xc0\x0c' + struct.pack('>HHIH', 1, 1, 60, 4) + bytes([127, 0, 0, 1])
    aaaa = b'\xc0\x0c' + struct.pack('>HHIH', 28, 1, 60, 16) + bytes(15) + b'\1'
    cname = b'\xc0\x0c' + struct.pack('>HHIH', 5, 1, 60, 6) + b'\3cdn\xc0\x15'
    yield 'reply', head + question + cname + a + aaaa
    yield 'no-name', struct.pack('>HHHHHH', 258, 0x8183, 1, 0, 0, 0) + question
    yield 'truncated', struct.pack('>HHHHHH', 258, 0x8380, 1, 0, 0, 0) + question
    yield 'many', struct.pack('>HHHHHH', 258, 0x8180, 1, 40, 0, 0) + question + a * 40
    yield 'resolv', b'''# of this machine
nameserver 127.0.0.53
nameserver ::1
search a.example b.example
domain c.example
options ndots:5 timeout:1 attempts:3 edns0
'''
    yield 'hosts', b'127.0.0.1 localhost\n::1\tregistry.test other # me\n10.0.0.1 Registry.TEST\n'


def protobuf():
    """Field by field, as protoc would write them, for the first message of the list in fuzz.c."""
    def field(number, value):
        if isinstance(value, int):
            return bytes([number << 3]) + varint(value)
        return bytes([number << 3 | 2]) + varint(len(value)) + value

    def varint(n):
        out = b''
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    pair = field(1, b'key') + field(2, b'value')
    inside = b''.join(field(n, b'text') for n in (2,)) + field(3, field(1, b'/bin/x')) + field(9, pair)
    container = field(1, field(1, b'name') + field(2, 7)) + inside
    for i in range(8):
        yield f'message-{i}', bytes([i]) + field(1, b'pod') + field(2, container)
        yield f'texts-{i}', bytes([i]) + b''.join(field(n, b'sha256:ab') for n in range(1, 8))
        yield f'numbers-{i}', bytes([i]) + b''.join(field(n, n * 1000) for n in range(1, 8))
        yield f'nested-{i}', bytes([i]) + b''.join(field(n, field(1, b'a') + field(2, field(1, b'b'))) for n in range(1, 15))


MAKERS = {'inflate': inflate, 'zstd': zstd, 'tar': tar, 'json': json_texts, 'toml': toml, 'manifest': manifest,
          'http': http, 'http2': http2, 'reference': reference, 'dns': dns, 'protobuf': protobuf}
# Directories of vectors and what their files are called.
VECTORS = {'inflate': [('gzip-cases', '*.gz')], 'zstd': [('zstd', '**/*.zst'), ('zstd-klauspost', '**/*.zst')],
           'tar': [('tar-hostile', '**/*.tar'), ('tar-go', '**/*.tar'), ('tar-libarchive', '**/*.tar')],
           'json': [('jsontestsuite', '**/*.json')], 'http2': [('http2-frames', '*__*')],
           'manifest': [('oci', '**/*.json')]}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    places = [pathlib.Path(__file__).parent.parent / 'vectors']
    places += [pathlib.Path(os.environ['KRUN_TESTDATA'])] if os.environ.get('KRUN_TESTDATA') else []
    for target, maker in MAKERS.items():
        directory = pathlib.Path(sys.argv[1], target)
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in maker():
            if isinstance(data, dict):
                data = json.dumps(data).encode()
            (directory / name).write_bytes(data)
        for where, pattern in VECTORS.get(target, []):
            found = sorted(path for place in places for path in (place / where).glob(pattern))
            for i, path in enumerate(found):
                if path.is_file() and path.stat().st_size <= MOST:
                    (directory / f'{where}-{i}').write_bytes(path.read_bytes())


if __name__ == '__main__':
    main()
