#!/usr/bin/env python3
"""Makes web pages of krun.c, one a chapter, to be read from disk with any browser.

    tests/book.py [DIRECTORY]    writes them, into book/ if nothing else is said
    tests/book.py --check        writes nothing; says which links lead nowhere, and exits 1 then

A comment between two definitions becomes prose, a definition code. Each name in code leads to where it is
defined, and below a definition stands who uses it. Nothing is needed but Python's standard library; the
pages have no script.
"""
import collections
import html
import html.parser
import os
import re
import sys

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'krun.c')
KEYWORDS = set('''auto break case char const continue default do double else enum extern float for if
    inline int long register return short signed sizeof static struct switch typedef union unsigned void
    volatile while bool true false NULL'''.split())
TOKEN = re.compile(r'''(?P<comment>/\*(?s:.*?)\*/)|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<member>(?:\.|->)[A-Za-z_]\w*)|(?P<word>[A-Za-z_]\w*)
    |(?P<whole>^[ ]*\#[ ]*(?:include|error).*$)|(?P<directive>^[ ]*\#[ ]*\w+)
    |(?P<number>\d[\w.]*)''', re.X | re.M)
HIDDEN = re.compile(r'''/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*\'''', re.S)
CHAPTER = re.compile(r'^/\* == (\d+)\. ([^=]+?) =', re.M)
PART = re.compile(r'/\* ==+ Part (\w+)\. ([^=]+?) =')
SECTION = re.compile(r'/\* -- (.+?) -{3,}(?:\s*\*/)?')
DECLARED = re.compile(r'^\s*(?:for \()?(?:(?:const|static|struct|enum|union|unsigned|volatile) )*'
                      r'([A-Za-z_]\w*) \**[A-Za-z_]\w*\s*[=;,\[)]')
STYLE = '''
:root { color-scheme: light dark; --ink: #222; --paper: #fffdf8; --soft: #666; --line: #ddd;
        --link: #005a9c; --word: #7a2e8e; --text: #2e6e2e }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #181a1b; --soft: #999; --line: #3a3d3f;
        --link: #7ab8f5; --word: #d39be0; --text: #9bcf9b } }
body { font: 17px/1.5 Georgia, serif; color: var(--ink); background: var(--paper);
       max-width: 52em; margin: 0 auto; padding: 1em }
pre { font: 13px/1.4 ui-monospace, monospace; overflow-x: auto; margin: .8em 0 .2em; padding-left: .8em;
      border-left: 2px solid var(--line) }
pre.drawing { border: 0 }
code, samp { font-family: ui-monospace, monospace; font-size: .9em }
pre samp { font-size: 1em; color: var(--text) }
pre em { color: var(--soft) } pre b { font-weight: normal; color: var(--word) }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
pre a { color: inherit } :target { background: #fd08 }
details { font-size: .8em; color: var(--soft); padding-left: .8em } details p { margin: .2em 0 }
dt { font-weight: bold } dd { margin: 0 0 .3em 1.5em } td { padding: 0 1em 0 0; vertical-align: top }
th { text-align: left; padding-top: .8em }
nav { font-size: .9em } h2 { border-top: 1px solid var(--line); padding-top: .8em; margin-top: 2em }
'''


def hide(text):
    """The text with comments and quoted text turned into spaces; the lines stay the same."""
    return HIDDEN.sub(lambda m: re.sub(r'[^\n]', ' ', m[0]), text)


class Piece:
    """What stands between two empty lines outside of all braces: a comment, or code with its comment."""

    def __init__(self, text):
        self.prose, self.code = '', text
        while (m := re.match(r'\s*(/\*.*?\*/)[ ]*\n?', self.code, re.S)) and self.alone(m):
            self.prose += m[1] + '\n'
            self.code = self.code[m.end():]
        self.code = self.code.strip('\n')
        self.hidden = hide(self.code)
        self.names = defined_in(self.hidden)
        self.locals = locals_of(self.hidden)

    @staticmethod
    def alone(comment):
        """Whether nothing follows the comment in its line."""
        return comment[0].endswith('\n') or comment.end() == len(comment.string)


def pieces_of(text):
    """Cuts a chapter at the empty lines that stand outside of braces, comments and #if."""
    hidden, found, begin, depth, conditions = hide(text).split('\n'), [], 0, 0, 0
    lines, inside = text.split('\n'), False
    for i, line in enumerate(hidden):
        if not lines[i].strip() and depth == 0 and conditions == 0 and not inside:
            found.append('\n'.join(lines[begin:i]))
            begin = i + 1
        inside = lines[i].rfind('/*') > lines[i].rfind('*/') or inside and '*/' not in lines[i]
        depth += line.count('{') - line.count('}')
        whole = re.match(r'\s*#\s*ifndef KRUN_NO_|\s*#\s*(else|endif)', line) and conditions == 0
        if not whole:
            conditions += bool(re.match(r'\s*#\s*if', line)) - bool(re.match(r'\s*#\s*endif', line))
    found.append('\n'.join(lines[begin:]))
    return [Piece(piece) for piece in found if piece.strip()]


def defined_in(code):
    """The names that a piece of code defines, each with the place of the name in it."""
    names = {}

    def add(match, group=1):
        if match[group] not in KEYWORDS:
            names.setdefault(match[group], match.start(group))

    for m in re.finditer(r'^\s*#\s*define (\w+)', code, re.M):
        add(m)
    for m in re.finditer(r'^(?:typedef |static |const )*(?:struct|enum|union) (\w+)\s*\{', code, re.M):
        add(m)
    flat = re.sub(r'^[ \t]*#(?:.*\\\n)*.*$|__attribute__\(\((?:[^()]|\([^()]*\))*\)\)',
                  lambda m: re.sub(r'[^\n]', ' ', m[0]), code, flags=re.M)
    for m in re.finditer(r'\benum\b[^{};()]*\{([^}]*)\}', flat):
        for item in re.finditer(r'(?:^|,)\s*(\w+)', m[1]):
            names.setdefault(item[1], m.start(1) + item.start(1))
    depth, begin, function = 0, 0, False
    for m in re.finditer(r'[{};]', flat):
        text = flat[begin:m.start()]
        if depth == 0 and m[0] == '{':
            function = text.rstrip().endswith(')') and '=' not in text
        if depth == 0 and (m[0] == ';' or function):
            for found in named_by(without_braces(text), function):
                if found[1] not in KEYWORDS:
                    names.setdefault(found[1], begin + found.start(1))
        depth += (m[0] == '{') - (m[0] == '}')
        if depth == 0 and (m[0] == ';' or function):
            begin, function = m.end(), False
    return names


def without_braces(text):
    """The text with all that stands in braces, and they, turned into spaces."""
    count = 1
    while count:
        text, count = re.subn(r'\{[^{}]*\}', lambda m: ' ' * len(m[0]), text)
    return text


def named_by(text, function):
    """Where a definition gives names, in its text without what stands in braces."""
    if function: # name(...), or (*name(...))(...), which returns a pointer to a function
        return filter(None, [re.search(r'\(\*(\w+)\(', text) or re.search(r'\b(\w+)\s*\(', text)])
    if '(' in text and not re.search(r'=', text.split('(')[0]): # a pointer to a function, or its type
        pointer = re.match(r'\s*(?:typedef|static) [\w ]*[ *]*\(\*(?:const )?(\w+)', text)
        plain = re.match(r'\s*typedef [\w *]*?(\w+)\(', text)
        return filter(None, [pointer or plain])
    if not re.match(r'\s*(typedef|static|extern|const|_Thread_local)\b', text):
        return []
    text = re.sub(r'=[^,]*', lambda m: '=' + ' ' * (len(m[0]) - 1), text)
    return re.finditer(r'(?<=[ *])(\w+)\s*(?:\[[^]]*\]\s*)*(?=[,=]|\s*$)', text)


def locals_of(code):
    """Names that a function declares for itself: they hide those of the same name outside."""
    head, _, body = code.partition('{')
    if '(' not in head or code.lstrip().startswith('#'):
        return set()
    found = set(re.findall(r'\w \**(\w+)(?=\s*(?:\[[^]]*\])?\s*[,)])', head))
    for statement in re.split(r'[;{}]', body):
        if (m := DECLARED.match(statement.lstrip('\n') + ';')) and m[1] not in ('return', 'else', 'goto', 'case'):
            plain = without_braces(re.sub(r'\([^()]*\)', ' ', re.sub(r'\([^()]*\)', ' ', statement)))
            for part in plain.split(','):
                found.update(re.findall(r'(\w+)\s*(?:\[[^]]*\]\s*)*$', part.split('=')[0].rstrip()))
    return found


class Chapter:
    def __init__(self, number, title, text):
        self.number, self.title = number, title
        self.file = f'{number:02}-{re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")}.html'
        self.pieces = pieces_of(text)


class Book:
    def __init__(self, source):
        found = list(CHAPTER.finditer(source))
        starts = [self.with_part(source, m.start()) for m in found]
        self.first = Chapter(0, 'contents', source[:starts[0]])
        self.first.file = 'index.html'
        ends = starts[1:] + [len(source)]
        self.chapters = [Chapter(int(m[1]), m[2], source[a:b])
                         for m, a, b in zip(found, starts, ends)]
        self.numbers = {c.number: c for c in self.chapters}
        self.where, self.users = {}, {}
        for chapter in [self.first] + self.chapters:
            for piece in chapter.pieces:
                piece.names = {n: at for n, at in piece.names.items() if n not in self.where}
                self.where.update((name, chapter) for name in piece.names)
        for chapter in self.chapters:
            for piece in chapter.pieces:
                self.note_uses(piece)

    @staticmethod
    def with_part(source, start):
        """A part's page stands right before its first chapter, and belongs to it."""
        before = source.rfind('/* ==', 0, start)
        return before if before >= 0 and PART.match(source, before) else start

    def note_uses(self, piece):
        functions = [n for n in piece.names if re.search(rf'\b{n}\s*\(', piece.hidden)]
        owner = (functions or list(piece.names) or [None])[0]
        if owner:
            for word in set(re.findall(r'(?<![\w.])(?<!->)[A-Za-z_]\w*', piece.hidden)):
                if word in self.where and word not in piece.locals and word not in piece.names:
                    self.users.setdefault(word, []).append(owner)

    # -- one page

    def link(self, name, here, text=None):
        chapter = self.where[name]
        return f'<a href="{"" if chapter is here else chapter.file}#{name}">{html.escape(text or name)}</a>'

    def code(self, piece, here):
        """A piece of code with marks on keywords, comments and quoted text, and with links."""
        places = {at: name for name, at in piece.names.items()}
        members = re.search(r'\b(struct|union)\b', piece.hidden) and '(' not in piece.hidden.split('{')[0]
        out, at = [], 0
        for m in TOKEN.finditer(piece.code):
            out.append(html.escape(piece.code[at:m.start()], quote=False))
            at, text = m.end(), html.escape(m[0], quote=False)
            if m.start() in places:
                text = f'<a id="{m[0]}" href="#{m[0]}">{text}</a>'
            elif m['comment']:
                text = f'<em>{text}</em>'
            elif m['text']:
                text = f'<samp>{text}</samp>'
            elif m['whole']:
                pass
            elif m['directive'] or m[0] in KEYWORDS:
                text = f'<b>{text}</b>'
            elif members and re.match(r'[a-z]\w*\s*(\[[^]]*\])?\s*[;,:]', piece.code[m.start():]):
                pass
            elif m['word'] and m[0] in self.where and m[0] not in piece.locals:
                text = self.link(m[0], here)
            out.append(text)
        out.append(html.escape(piece.code[at:], quote=False))
        return f'<pre>{"".join(out)}</pre>\n'

    def uses(self, piece, here):
        used = {n: self.users[n] for n in piece.names if n in self.users}
        if not used:
            return ''
        lines = []
        for name, users in used.items():
            lead = f'<code>{name}</code>: ' if len(piece.names) > 1 else ''
            lines.append(f'<p>{lead}{self.listed(users, here)}</p>')
        count = len({u for users in used.values() for u in users})
        return f'<details><summary>used by {count}</summary>{"".join(lines)}</details>\n'

    def listed(self, users, here):
        """Those who use a name; of one that is used everywhere, how many there are in each chapter."""
        users = dict.fromkeys(users)
        if len(users) <= 60:
            return ', '.join(self.link(user, here) for user in users)
        counts = collections.Counter(self.where[user].number for user in users)
        return 'in chapters ' + ', '.join(
            f'<a href="{self.numbers[number].file}">{number}</a> ({count})' for number, count in counts.items())

    def words(self, text, here):
        """Prose: names of functions and of chapters become links."""
        def one(m):
            if m['chapter'] and int(m['number']) in self.numbers:
                chapter = self.numbers[int(m['number'])]
                return f'<a href="{chapter.file}">{m[0]}</a>' if chapter is not here else m[0]
            name = m['name']
            known = name and name in self.where and ('_' in name or name != name.lower())
            return f'<code>{self.link(name, here)}</code>' if known else m[0]
        return re.sub(r'(?P<chapter>[Cc]hapter (?P<number>\d+))|(?P<name>\b[A-Za-z_]\w*\b(?!&))', one,
                      html.escape(text, quote=False))

    def prose(self, comment, here):
        """A comment's text as paragraphs, lists, terms with their meaning, and drawings as they are."""
        text = re.sub(r'^\s*/\*+ ?|\s*\*/\s*$', '', comment.strip())
        lines = [re.sub(r'^ ?\*( |$)|^   (?=\S)', '', line.rstrip()) for line in text.split('\n')]
        text = re.sub(r'^(Uses .*\S) {3,}(Gives|Bounds) ', r'\1\n\2  ', '\n'.join(lines).strip('\n'), flags=re.M)
        return ''.join(self.block(block.split('\n'), here)
                       for block in re.split(r'\n\s*\n', text) if block.strip())

    def block(self, lines, here):
        lead = []
        while lines and not re.match(r'\s*[-*] |\s{2,}\S|.*\S {2,}\S', lines[0]):
            lead.append(lines.pop(0))
        out = f'<p>{self.words(" ".join(lead), here)}</p>\n' if lead else ''
        if not lines:
            return out
        if re.match(r'\s*[-*] ', lines[0]) and all(re.match(r'\s*[-*] |\s+\S', line) for line in lines):
            items = re.split(r'\n\s*[-*] ', '\n' + '\n'.join(lines))[1:]
            entries = (self.words(re.sub(r'\s+', ' ', item), here) for item in items)
            return out + '<ul>' + ''.join(f'<li>{entry}</li>\n' for entry in entries) + '</ul>\n'
        term = re.compile(r'([A-Za-z][\w. -]{0,16}?) {2,}(\S.*)')
        if term.match(lines[0]) and all(re.match(r'[A-Za-z][\w. -]{0,16}? {2,}\S| {6,}\S', l) for l in lines):
            pairs = []
            for line in lines:
                if m := term.match(line):
                    pairs.append([m[1], m[2]])
                else:
                    pairs[-1][1] += ' ' + line.strip()
            return out + '<dl>' + ''.join(f'<dt>{a}</dt><dd>{self.meaning(a, b, here)}</dd>\n'
                                          for a, b in pairs) + '</dl>\n'
        return out + f'<pre class="drawing">{html.escape(chr(10).join(lines), quote=False)}</pre>\n'

    def meaning(self, term, text, here):
        if term != 'Uses':
            return self.words(text, here)
        return re.sub(r'\b\d+\b', lambda m: f'<a href="{self.numbers[int(m[0])].file}">{m[0]}</a>'
                      if int(m[0]) in self.numbers else m[0], html.escape(text, quote=False))

    def page(self, title, body):
        return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
                f'<title>{html.escape(title)}</title>\n'
                '<meta name="viewport" content="width=device-width">\n<link rel="stylesheet" href="book.css">'
                f'</head>\n<body>\n{body}</body></html>\n')

    def chapter(self, here):
        at = self.chapters.index(here)
        around = [('index.html', 'contents')]
        around += [(c.file, f'{c.number}. {html.escape(c.title)}')
                   for c in self.chapters[max(at - 1, 0):at] + self.chapters[at + 1:at + 2]]
        nav = '<nav><p>' + ' · '.join(f'<a href="{file}">{text}</a>' for file, text in around) + '</p></nav>\n'
        body, sections = [], []
        for piece in here.pieces:
            for comment in re.findall(r'/\*.*?\*/', piece.prose, re.S):
                body.append(self.comment(comment, here, sections))
            if piece.code:
                body.append(self.code(piece, here) + self.uses(piece, here))
        listed = ''.join(f'<li><a href="#section-{i + 1}">{html.escape(s)}</a></li>'
                         for i, s in enumerate(sections))
        text = ''.join(body)
        if listed: # after the chapter's opening, before its first section
            text = text.replace('<h2 id="section-1"', f'<nav><ol>{listed}</ol></nav>\n<h2 id="section-1"', 1)
        return self.page(f'{here.number}. {here.title}', nav + text + nav)

    def comment(self, comment, here, sections):
        if m := PART.match(comment):
            return f'<h1>Part {m[1]}. {html.escape(m[2])}</h1>\n' + self.rest(comment, here)
        if m := CHAPTER.match(comment):
            return f'<h1>{m[1]}. {html.escape(m[2])}</h1>\n' + self.rest(comment, here)
        if m := SECTION.match(comment):
            sections.append(m[1])
            return (f'<h2 id="section-{len(sections)}">{html.escape(m[1])}</h2>\n' +
                    self.rest(comment, here))
        return self.prose(comment, here)

    def rest(self, comment, here):
        """What a headline's comment says below its first line."""
        first, _, rest = comment.partition('\n')
        return self.prose('/* ' + re.sub(r'^ \*', ' *', rest), here) if rest.strip(' */\n') else ''

    # -- the first page

    def index(self):
        comment = self.first.pieces[0].prose.strip()
        rows, out = [], []

        def flush():
            if rows:
                out.append('<table>' + ''.join(rows) + '</table>\n')
                rows.clear()

        text = []
        comment = re.sub(r'\n \*(?=\n \*\s+[IVX]+\.? )', '', comment)
        for line in comment.split('\n') + ['']:
            m = re.match(r' \*\s+(\d+)\s+(\S.*?)(?:\s{2,}(.*))?$', line)
            if m and int(m[1]) in self.numbers:
                if text:
                    out.append(self.prose('/* ' + '\n'.join(text).lstrip('/* '), self.first))
                    text = []
                chapter = self.numbers[int(m[1])]
                rows.append(f'<tr><td>{m[1]}</td><td><a href="{chapter.file}">{html.escape(m[2])}</a></td>'
                            f'<td>{html.escape(m[3] or "")}</td></tr>\n')
            elif (part := re.match(r' \*\s+([IVX]+)\.?\s+(\S.*)$', line)):
                rows.append(f'<tr><th colspan="3">{part[1]}. {html.escape(part[2])}</th></tr>\n')
            else:
                flush()
                text.append(line)
        out.append(self.prose('/* ' + '\n'.join(text), self.first))
        code = ''.join(self.code(piece, self.first) for piece in self.first.pieces if piece.code)
        return self.page('krun', '<h1>krun</h1>\n' + ''.join(out) + code)

    def pages(self):
        pages = {'index.html': self.index(), 'book.css': STYLE}
        pages.update((chapter.file, self.chapter(chapter)) for chapter in self.chapters)
        return pages


class Reader(html.parser.HTMLParser):
    """Collects what a page names and where it leads; complains of what is not closed."""
    VOID = {'meta', 'link', 'br'}

    def __init__(self, name, text):
        super().__init__()
        self.name, self.ids, self.links, self.open, self.wrong = name, set(), set(), [], []
        self.feed(text)
        if self.open:
            self.wrong.append(f'{name}: <{self.open[-1]}> is never closed')

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get('id') in self.ids:
            self.wrong.append(f'{self.name}: two are called {attrs["id"]}')
        self.ids.update([attrs['id']] if 'id' in attrs else [])
        self.links.update([attrs['href']] if 'href' in attrs else [])
        if tag in ('p', 'pre', 'ul', 'dl', 'h1', 'h2', 'table') and {'p', 'a', 'pre'} & set(self.open):
            self.wrong.append(f'{self.name}:{self.getpos()[0]}: <{tag}> inside of <{self.open[-1]}>')
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f'{self.name}:{self.getpos()[0]}: </{tag}> closes nothing')


def check(book, pages):
    read = {name: Reader(name, text) for name, text in pages.items() if name.endswith('.html')}
    wrong = [line for page in read.values() for line in page.wrong]
    count = 0
    for name, page in read.items():
        for link in page.links:
            file, _, anchor = link.partition('#')
            count += 1
            if (file or name) not in pages or anchor and anchor not in read[file or name].ids:
                wrong.append(f'{name}: the link {link} leads nowhere')
    for chapter in book.chapters:
        if chapter.file not in read['index.html'].links:
            wrong.append(f'index.html: the contents do not lead to chapter {chapter.number}')
    print(*wrong, sep='\n', end='\n' if wrong else '')
    print(f'book: {len(pages)} pages, {sum(map(len, pages.values())) // 1024} KiB, {len(book.where)} names, '
          f'{count} links, {len(wrong)} wrong')
    return 1 if wrong else 0


def main():
    if len(sys.argv) > 2 or sys.argv[1:] in (['-h'], ['--help']):
        sys.exit(__doc__)
    with open(SOURCE, encoding='utf-8') as file:
        book = Book(file.read())
    pages = book.pages()
    if sys.argv[1:] == ['--check']:
        return check(book, pages)
    directory = sys.argv[1] if len(sys.argv) > 1 else 'book'
    os.makedirs(directory, exist_ok=True)
    for name, text in pages.items():
        with open(os.path.join(directory, name), 'w', encoding='utf-8') as file:
            file.write(text)
    print(f'{directory}/index.html: {len(book.chapters)} chapters')
    return 0


if __name__ == '__main__':
    sys.exit(main())
