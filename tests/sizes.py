#!/usr/bin/env python3
"""Prints what krun.c costs: lines, comments and machine code of each chapter; the compiler's time and memory;
the program's size.

    tests/sizes.py COMPILER [OPTION...]      what make's line has before `-o krun krun.c`; make sizes says it

The bytes of a chapter are those of its functions and constants in an object file. A function that the compiler
has put into its caller counts for the caller. Text in quotes belongs to no chapter there: its sum stands
below. Needs nm (binutils).
"""
import os
import re
import resource
import subprocess
import sys
import tempfile

from structure import Book

UNITS = {'t': 'code', 'T': 'code', 'd': 'data', 'r': 'data', 'R': 'data', 'D': 'data', 'b': 'zeros', 'B': 'zeros'}


def run(command):
    """Runs the command; gives its processor seconds, and the most memory (KiB) that a child has had so far."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, after.ru_maxrss


def symbols_of(path):
    """Each symbol of krun.c: its line (0: not known), its kind and its bytes."""
    listed = subprocess.run(['nm', '-S', '-l', path], check=True, capture_output=True, text=True).stdout
    for line in listed.split('\n'):
        m = re.match(r'\w+ (\w+) (\w) \S+(?:\t\S+krun\.c:(\d+))?', line)
        if m and m[2] in UNITS:
            yield int(m[3] or 0), UNITS[m[2]], int(m[1], 16)


def strings_of(path):
    """The bytes of the sections that hold text in quotes."""
    listed = subprocess.run(['size', '-A', '-d', path], check=True, capture_output=True, text=True).stdout
    return sum(int(m[1]) for m in re.finditer(r'^\.rodata\S*\.str\S*\s+(\d+)', listed, re.M))


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
        sys.exit(__doc__)
    book = Book('krun.c')
    with tempfile.TemporaryDirectory() as place:
        program, unlinked = os.path.join(place, 'krun'), os.path.join(place, 'krun.o')
        seconds, memory = run(sys.argv[1:] + ['-o', program, 'krun.c', '-lpthread'])
        compiler = [word for word in sys.argv[1:] if not word.startswith('-Wl,') and word != '-static']
        run(compiler + ['-g', '-c', '-o', unlinked, 'krun.c'])
        sizes = {number: dict.fromkeys(UNITS.values(), 0) for number in [0] + [n for _, n, _ in book.starts]}
        for line, kind, size in symbols_of(unlinked):
            sizes[book.chapter(line)][kind] += size
        strings, binary = strings_of(unlinked), os.path.getsize(program)
    print(f'{"chapter":38}{"lines":>7}{"comment":>9}{"code":>9}{"data":>8}{"zeros":>8}')
    rows = [(f'{number:2} {title}', lines, share, sizes[number]) for number, title, lines, share in book.shares()]
    if any(sizes[0].values()):
        rows.append(('   (of no known line)', 0, 0, sizes[0]))
    for title, lines, share, size in rows:
        print(f'{title:38}{lines:7}{share:7} %{size["code"]:9}{size["data"]:8}{size["zeros"]:8}')
    total = {kind: sum(size[kind] for size in sizes.values()) for kind in UNITS.values()}
    print(f'{"   all":38}{len(book.raw) - 1:7}{book.share():7} %{total["code"]:9}{total["data"]:8}{total["zeros"]:8}')
    print(f'text in quotes: {strings} bytes')
    print(f'{" ".join(sys.argv[1:])}: {seconds:.1f} s of a processor, {memory / 1024:.0f} MiB at most, a program of {binary} bytes')


if __name__ == '__main__':
    main()
