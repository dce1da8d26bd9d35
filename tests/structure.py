#!/usr/bin/env python3
"""Shows that krun.c is the book that it says it is. Prints figures, then what is wrong; exits 1 if
anything is.

    tests/structure.py [krun.c]      needs universal-ctags

 - chapters stand in order, the table of contents names each, each opens with what it is about, none has more
   than 1500 lines but flat tables (and those of LONG_CHAPTERS, a list that can only become shorter)
 - a function over 25 lines has comments inside that lead through it (but for UNGUIDED ones, a number that can
   only fall)
 - no function, and no macro, uses a name that is defined below it, in its chapter or a later one.
   One exception: a function that is declared ahead because data recurses, that is, both are in one
   chapter and each can reach the other
 - no preprocessor conditional inside a function, no goto, no // comment, no tab, no line over 100
   columns, no blank at a line's end, no note of work left to do
 - half of the functions have under 15 lines, 95 in 100 under 60, none over 120 but a flat table of
   cases; none has more than five parameters; none is visible outside but main and krun_*
"""
import json
import re
import statistics
import subprocess
import sys

WORD = re.compile(r'(?<![\w.])(?<!->)[A-Za-z_]\w*')
TOKEN = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
# The macros behind which ctags cannot see a function.
IGNORED = 'OWNED_FD,OWNED_BUF,OWNED_ARENA'

MAX_CHAPTER = 1500  # lines
# Chapters that are tables and nothing else, which may be as long as they must.
FLAT_TABLES = {"The CRI's messages"}
# Chapters of two subjects that are too long still. Nothing is added here; what has been split goes.
LONG_CHAPTERS = set()
GUIDED_BODY = 25    # lines of a function, from which on comments must lead through it
# How many such functions have none still. It only falls: whoever mends one lowers it.
UNGUIDED = 53


def blank(text):
    """The text with everything but its line ends turned into spaces."""
    return re.sub(r'[^\n]', ' ', text)


def code_of(source):
    """The source without comments and without what stands in quotes; the lines stay the same."""
    def hide(m):
        return blank(m[0]) if m[0][0] == '/' else m[0][0] + blank(m[0][1:-1]) + m[0][-1]
    return TOKEN.sub(hide, source)


def tags_of(path):
    run = subprocess.run(['ctags', '--output-format=json', '--fields=+neSk', '--kinds-C=fpdtvlz',
                          '--language-force=C', '-I', IGNORED, '-f', '-', path],
                         capture_output=True, text=True, check=True)
    tags = [json.loads(line) for line in run.stdout.splitlines()]
    return [t for t in tags if t.get('_type') == 'tag']


class Function:
    def __init__(self, tag, code):
        self.name, self.first = tag['name'], tag['line']
        self.last = self.end_of(code)
        self.lines = self.last - self.first + 1
        self.parameters = parameters_of(tag.get('signature', '()'))
        self.text = '\n'.join(code[self.first - 1:self.last])
        self.locals = set()

    def end_of(self, code):
        """The line of the closing brace (ctags is misled by some macros)."""
        depth, opened = 0, False
        for number in range(self.first - 1, len(code)):
            for character in code[number]:
                depth += (character == '{') - (character == '}')
                opened = opened or character == '{'
            if opened and depth <= 0:
                return number + 1
        return len(code)


def parameters_of(signature):
    depth, count = 0, 0
    for character in signature[1:-1]:
        depth += (character == '(') - (character == ')')
        count += character == ',' and depth == 0
    return 0 if signature in ('()', '(void)') else count + 1


class Book:
    def __init__(self, path):
        self.source = open(path, encoding='utf-8').read()
        self.raw = self.source.split('\n')
        self.code = code_of(self.source).split('\n')
        self.wrong = []
        tags = tags_of(path)
        self.functions = [Function(t, self.code) for t in tags if t['kind'] == 'function']
        self.by_name = {}
        for function in self.functions: # of two stubs for one name, the first counts
            self.by_name.setdefault(function.name, function)
        self.defined = {}
        for t in tags:
            if t['kind'] in ('function', 'macro', 'typedef', 'variable'):
                self.defined.setdefault(t['name'], t['line'])
        for t in tags:
            if t['kind'] in ('local', 'parameter'):
                for function in self.functions:
                    if function.first <= t['line'] <= function.last:
                        function.locals.add(t['name'])
        self.starts = [(i + 1, int(m[1]), m[2]) for i, line in enumerate(self.raw)
                       if (m := re.match(r'/\* == (\d+)\. ([^=]+?) =', line))]

    def chapter(self, line):
        inside = [number for start, number, _ in self.starts if start <= line]
        return inside[-1] if inside else 0

    def complain(self, line, text):
        self.wrong.append(f'krun.c:{line}: {text}')

    def uses(self, function):
        """The functions of this book that a function names."""
        return {self.by_name[w] for w in set(WORD.findall(function.text))
                if w in self.by_name and w not in function.locals and w != function.name}

    def reaches(self, start, goal):
        seen, left = set(), [start]
        while left:
            now = left.pop()
            if now is goal:
                return True
            if now not in seen:
                seen.add(now)
                left.extend(self.uses(now))
        return False

    def check_order(self):
        upward = downward = recursive = 0
        for f in self.functions:
            for g in self.uses(f):
                if g.first < f.first:
                    upward += 1
                elif self.chapter(f.first) == self.chapter(g.first) and self.reaches(g, f):
                    recursive += 1
                else:
                    downward += 1
                    self.complain(f.first, f'{f.name} uses {g.name}, which stands below it (line {g.first})')
        for number, line in self.macros():
            for word in set(WORD.findall(line)):
                if self.defined.get(word, 0) > number and word in self.by_name:
                    downward += 1
                    self.complain(number, f'a macro uses {word}, which stands below it')
        print(f'uses between functions: {upward} upward, {recursive} where data recurses, {downward} downward')

    def macros(self):
        """The lines of macro bodies, each with its number."""
        inside = False
        for i, line in enumerate(self.code):
            inside = inside or bool(re.match(r'\s*#\s*define', line))
            if inside:
                yield i + 1, line
            inside = inside and line.rstrip().endswith('\\')

    def check_chapters(self):
        numbers = [number for _, number, _ in self.starts]
        if numbers != sorted(set(numbers)):
            self.complain(1, f'the chapters stand in the order {numbers}')
        head = '\n'.join(self.raw[:self.starts[0][0] - 1])
        sizes = []
        for (start, number, title), (_, _, size, _) in zip(self.starts, self.shares()):
            sizes.append(size)
            if not re.search(rf'^ \*\s+{number}\s+{re.escape(title)}\b', head, re.M):
                self.complain(start, f'the table of contents does not name chapter {number} "{title}"')
            self.check_head(start, number)
            if size > MAX_CHAPTER and title not in FLAT_TABLES:
                print(f'to be split: chapter {number} has {size} lines, more than one subject should')
                if title not in LONG_CHAPTERS:
                    self.complain(start, f'chapter {number} "{title}" has {size} lines')
            elif title in LONG_CHAPTERS:
                print(f'"{title}" need not stand in LONG_CHAPTERS of tests/structure.py any more')
        for title in LONG_CHAPTERS | FLAT_TABLES:
            if title not in [t for _, _, t in self.starts]:
                self.complain(1, f'no chapter is called "{title}", which tests/structure.py excepts')
        print(f'{len(self.raw)} lines, {len(sizes)} chapters: median {statistics.median(sizes):.0f}, '
              f'longest {max(sizes)} lines')

    def check_head(self, start, number):
        """A chapter opens with what it is about, where that is defined and what it gives."""
        comment = self.source[sum(len(line) + 1 for line in self.raw[:start - 1]):].split('*/', 1)[0]
        text = [line for line in comment.split('\n')[1:] if re.search(r'\w', line)]
        if len(text) < 3 or not re.search(r'\bGives\b|\bDefined by\b', comment):
            self.complain(start, f'chapter {number} opens without saying what it is about and what it gives')

    def check_guides(self):
        """A function that is more than a glance long has comments that lead through it."""
        without = [f for f in self.functions if f.lines > GUIDED_BODY and
                   not any('/*' in line for line in self.raw[f.first:f.last])
                   and f.text.count('case ') < f.lines / 2]
        print(f'functions over {GUIDED_BODY} lines without a comment inside: {len(without)}')
        if len(without) > UNGUIDED:
            for f in without:
                print(f'krun.c:{f.first}: {f.name} has {f.lines} lines and no comment inside')
            self.complain(1, f'{len(without)} long functions have no comment inside; {UNGUIDED} are allowed')
        elif len(without) < UNGUIDED:
            print(f'UNGUIDED in tests/structure.py can be {len(without)} now')

    def check_lines(self):
        inside = set()
        for f in self.functions:
            inside.update(range(f.first, f.last + 1))
        comments = TOKEN.findall(self.source)
        for i, (raw, code) in enumerate(zip(self.raw, self.code)):
            number = i + 1
            if len(raw) > 100:
                self.complain(number, f'{len(raw)} columns')
            if '\t' in raw or raw != raw.rstrip():
                self.complain(number, 'a tab, or a blank at the end')
            if re.match(r'\s*#\s*(if|el|end)', code) and number in inside:
                self.complain(number, 'a preprocessor conditional inside a function')
            if re.search(r'\bgoto\b', code):
                self.complain(number, 'a goto')
            if re.search(r'\b(TODO|FIXME|XXX|HACK)\b', raw):
                self.complain(number, 'work left to do')
        at = 0
        for token in comments:
            at = self.source.index(token, at)
            if token.startswith('//'):
                self.complain(self.source.count('\n', 0, at) + 1, 'a // comment')
            at += len(token)
        print(f'comment: {self.share()} % of the lines that are not empty hold nothing else')

    def share(self, first=1, last=None):
        """How many lines in a hundred are comment alone; empty ones are not counted."""
        pairs = list(zip(self.raw, self.code))[first - 1:last]
        words = sum(1 for raw, code in pairs if raw.strip() and not code.strip())
        return 100 * words // max(sum(1 for raw, _ in pairs if raw.strip()), 1)

    def shares(self):
        """Of each chapter: number, title, lines, share of comment."""
        ends = [start for start, _, _ in self.starts[1:]] + [len(self.raw)]
        return [(number, title, end - start, self.share(start, end - 1))
                for (start, number, title), end in zip(self.starts, ends)]

    def check_functions(self):
        lengths = sorted(f.lines for f in self.functions)
        long = sum(n > 60 for n in lengths)
        print(f'{len(lengths)} functions: median {statistics.median(lengths):.0f} lines, '
              f'{100 - 100 * long / len(lengths):.1f} % up to 60, longest {lengths[-1]}')
        if statistics.median(lengths) >= 15 or long > len(lengths) / 20:
            self.complain(1, 'the functions are too long on the whole')
        for f in self.functions:
            if f.lines > 120 and f.text.count('case ') < f.lines / 2:
                self.complain(f.first, f'{f.name} has {f.lines} lines')
            if f.parameters > 5 and '...' not in f.text.split('{')[0]:
                self.complain(f.first, f'{f.name} has {f.parameters} parameters')
            begin = f.first - 1
            while begin and not re.search(r'^\s*(#.*)?$|[;}]\s*$', self.code[begin - 1]):
                begin -= 1
            before = ' '.join(self.code[begin:f.first])
            public = f.name == 'main' or f.name.startswith('krun_')
            if 'static' not in before and not public:
                self.complain(f.first, f'{f.name} is visible outside')


def main():
    if len(sys.argv) > 2 or sys.argv[1:] in (['-h'], ['--help']):
        sys.exit(__doc__)
    book = Book(sys.argv[1] if len(sys.argv) > 1 else 'krun.c')
    book.check_chapters()
    book.check_order()
    book.check_lines()
    book.check_functions()
    book.check_guides()
    for line in book.wrong:
        print(line)
    print(f'structure: {len(book.wrong)} complaints' if book.wrong else 'structure: as it should be')
    return 1 if book.wrong else 0


if __name__ == '__main__':
    sys.exit(main())
