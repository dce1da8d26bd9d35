# krun: one file, one compile line, no configure step, no generated file.
# CC, CPPFLAGS, CFLAGS, LDFLAGS are yours: make CC=clang; make CFLAGS='-O3 -g'; make LDFLAGS=

CC = gcc
CFLAGS = -O2
LDFLAGS = -static -Wl,--gc-sections -Wl,-s
PREFIX = /usr/local

# Every function and constant a section of its own, so that the linker can drop what nothing uses.
SECTIONS = -ffunction-sections -fdata-sections
COMPILE = $(CC) -std=gnu11 $(CPPFLAGS) $(SECTIONS) $(CFLAGS) $(LDFLAGS)

krun: krun.c krun.h Makefile
	$(COMPILE) -o $@ krun.c -lpthread

# Static binaries with Debian's cross compilers (gcc-aarch64-linux-gnu, gcc-riscv64-linux-gnu).
CROSS = krun-amd64 krun-arm64 krun-riscv64
cross: $(CROSS)
krun-amd64: CC = x86_64-linux-gnu-gcc
krun-arm64: CC = aarch64-linux-gnu-gcc
krun-riscv64: CC = riscv64-linux-gnu-gcc
$(CROSS): krun.c krun.h Makefile
	$(COMPILE) -o $@ krun.c -lpthread

# The unit tests, plain and under sanitizers: no root, no packages. UNIT='pb_ json_' runs a part.
SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
UNIT_SOURCES = tests/unit.c krun.c krun.h $(wildcard tests/[0-9][0-9]_*.c)
# A test program uses less than all of the file.
UNIT_COMPILE = $(CC) -std=gnu11 $(CPPFLAGS) -Wno-unused-function

tests/unit: $(UNIT_SOURCES)
	$(UNIT_COMPILE) -O1 -g -o $@ tests/unit.c -lpthread
tests/unit-sanitized: $(UNIT_SOURCES)
	$(UNIT_COMPILE) $(SANITIZE) -o $@ tests/unit.c -lpthread
unit:
	$(MAKE) -j2 tests/unit tests/unit-sanitized
	./tests/unit $(UNIT)
	./tests/unit-sanitized $(UNIT)

# Fuzz targets with libFuzzer, and with gcc and a driver of our own. FUZZ='60 inflate tar': a minute
# for each of these two; without it ten seconds for each of all.
FUZZ_SOURCES = tests/fuzz/fuzz.c krun.c krun.h
tests/fuzz/fuzz-clang: $(FUZZ_SOURCES)
	clang -std=gnu11 $(CPPFLAGS) -Wno-unused-function $(SANITIZE) -fsanitize=fuzzer \
		-DFUZZ_WITH_LIBFUZZER -o $@ tests/fuzz/fuzz.c -lpthread
tests/fuzz/fuzz-gcc: $(FUZZ_SOURCES)
	gcc -std=gnu11 $(CPPFLAGS) -Wno-unused-function $(SANITIZE) -o $@ tests/fuzz/fuzz.c -lpthread
fuzz:
	tests/fuzz/run.sh $(FUZZ)

# Everything: installs what the tests need and is missing (KRUN_NO_INSTALL=1 refuses). As root.
check:
	tests/check.sh

# The same and everything else: hours. As root.
full:
	tests/full.sh

# What can be seen without running anything: the chapters' order, #if, lengths, warnings.
structure:
	tests/structure.py krun.c
	tests/book.py --check
	tests/protections/protections.py --fits
warnings:
	tests/warnings.sh

# krun.c as web pages, one a chapter: book/index.html.
book:
	tests/book.py book

# Lines, comments and bytes of each chapter; what compiling takes; the program's size.
sizes:
	tests/sizes.py $(COMPILE)

# A pod's whole life, told step by step, on temporary directories. As root; nothing is left behind.
demo: krun
	tests/demo.sh

# Kubernetes' own validation suite, unmodified, against this krun. As root.
conformance: krun
	tests/conformance/run.sh
# Kubernetes' own node suite with its kubelet, unmodified, against this krun. As root.
node-e2e: krun
	tests/node-e2e/run.sh
bench: krun
	tests/bench/run.sh

# Random work and random kills; then all that was acknowledged must be there, and nothing else. ROUNDS=300,
# SEED=n; KRUN_NO_INSTALL=1 as above.
crash: krun
	tests/install.sh check
	tests/crash/crash.py

# Takes one protection after the other out of a copy of krun.c: a test must see it. As root.
protections:
	tests/install.sh check
	tests/protections/protections.py

# A program that has krun inside.
examples/embed: examples/embed.c krun.c krun.h Makefile
	$(COMPILE) -DKRUN_NO_MAIN -o $@ examples/embed.c krun.c -lpthread
embed: examples/embed

# Below $(DESTDIR)$(PREFIX); the unit names the files where they will be, at $(PREFIX).
UNIT_FILE = $(DESTDIR)$(PREFIX)/lib/systemd/system/krun.service
DOCUMENTS = $(DESTDIR)$(PREFIX)/share/doc/krun
install: krun
	install -D -m 755 krun $(DESTDIR)$(PREFIX)/bin/krun
	install -d $(DOCUMENTS)/examples $(dir $(UNIT_FILE))
	install -m 644 README.md CHANGELOG.md LICENSE $(DOCUMENTS)
	install -m 644 $(wildcard examples/*.*) $(DOCUMENTS)/examples
	sed 's|/usr/local/|$(PREFIX)/|' examples/krun.service >$(UNIT_FILE)
	chmod 644 $(UNIT_FILE)
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/krun $(UNIT_FILE)
	rm -rf $(DOCUMENTS)

clean:
	rm -f krun $(CROSS) tests/unit tests/unit-sanitized examples/embed
	rm -f tests/fuzz/fuzz-clang tests/fuzz/fuzz-gcc
	rm -rf book

.PHONY: cross unit fuzz check full book sizes structure warnings demo conformance node-e2e bench crash protections embed install uninstall clean
