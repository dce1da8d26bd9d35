#!/bin/sh
# Compiles krun.c and the tests with every warning of the house as an error: with gcc and clang,
# under each C standard that it must live with, and in each form that a switch gives it. What
# compiler is not here is named and left out. CROSS=1 adds Debian's cross compilers. As many at a time as
# there are processors.
set -u
cd "$(dirname "$0")/.." || exit
common="-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wvla -Wimplicit-fallthrough -Werror"
relaxed=

# try COMPILER FLAG... FILE: one compilation, nothing kept; as a line for xargs(1). All that clang warns of
# it sees before it makes code.
try() {
    command -v "$1" >/dev/null || { echo "skipped, not here: $1" >&2; return; }
    kind=-c
    [ "$1" != clang ] || kind=-fsyntax-only
    echo "$* $common $relaxed $kind -o /dev/null"
}

all()
{
    for cc in gcc clang; do
        try $cc -std=gnu11 -O2 krun.c
        try $cc -std=gnu11 -O0 krun.c
        try $cc -std=gnu17 -O1 krun.c
        try $cc -std=gnu2x -O1 krun.c
        # Without main or a command line, some of the file's functions serve nobody.
        relaxed=-Wno-unused
        try $cc -std=gnu11 -O1 -DKRUN_NO_MAIN krun.c
        try $cc -std=gnu11 -O1 -DKRUN_NO_CLI krun.c
        relaxed=
        try $cc -std=gnu11 -O1 examples/embed.c
    done
    try musl-gcc -std=gnu11 -O1 krun.c # without a path to the kernel's headers
    # Machines of 32 bits, on which much has another size.
    try arm-linux-gnueabihf-gcc -std=gnu11 -O1 krun.c
    try i686-linux-gnu-gcc -std=gnu11 -O1 krun.c
    if [ "${CROSS:-}" ]; then
        try aarch64-linux-gnu-gcc -std=gnu11 -O2 krun.c
        try riscv64-linux-gnu-gcc -std=gnu11 -O2 krun.c
    fi
}

# by_hand COMPILER [FLAG]: compiles the file as a person would, and the program starts.
by_hand()
{
    command -v "$1" >/dev/null || { echo "skipped, not here: $1" >&2; return; }
    "$@" -o "$work/krun" krun.c -lpthread && "$work/krun" --help >/dev/null && echo "by hand: $*"
}

# What cannot compile the file must say so in a sentence, not somewhere in the middle of the book.
refused()
{
    command -v "$1" >/dev/null || { echo "skipped, not here: $1" >&2; return; }
    "$1" -c -o "$work/krun.o" krun.c 2>&1 | grep -q "needs gcc or clang" && echo "refused: $1"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
by_hand gcc && by_hand gcc -DKRUN_NO_CLI && by_hand clang && by_hand musl-gcc && refused tcc || exit 1

all | xargs -P "$(nproc)" -d '\n' -n 1 sh -c '$1 && echo "no warnings: ${1%% -Wall*}"' sh
