"""The help of ``pyvm-img``."""

from __future__ import annotations

from pyvm.tools.img.console import PROGRAM

_SYNTAX = """\
  amend [--object OBJECT] [--image-opts] [-p] [-q] [-f FMT] [-t CACHE] [--force] -o OPTIONS FILE
  bench [-c COUNT] [-d DEPTH] [-f FMT] [--flush-interval=N] [-i AIO] [-n] [--no-drain] [-o OFFSET]
        [--pattern=BYTE] [-q] [-s BUFFER_SIZE] [-S STEP] [-t CACHE] [-w] [-U] [--image-opts] FILE
  bitmap (--add | --remove | --clear | --enable | --disable | --merge SOURCE)... [-b FILE [-F FMT]]
        [-g GRANULARITY] [--object OBJECT] [--image-opts | -f FMT] FILE BITMAP
  check [--object OBJECT] [--image-opts] [-q] [-f FMT] [--output=human|json] [-r leaks|all] [-T CACHE] [-U] FILE
  commit [--object OBJECT] [--image-opts] [-q] [-f FMT] [-t CACHE] [-b BASE] [-r RATE] [-d] [-p] FILE
  compare [--object OBJECT] [--image-opts] [-f FMT] [-F FMT] [-T CACHE] [-p] [-q] [-s] [-U] FILE1 FILE2
  convert [--object OBJECT] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps
        [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] [-f FMT] [-t CACHE] [-T CACHE] [-O FMT]
        [-B BACKING [-F FMT]] [-o OPTIONS] [-l SNAPSHOT] [-S SPARSE_SIZE] [-r RATE] [-m COUNT] [-W]
        [--salvage] FILE [FILE2 ...] TARGET
  create [--object OBJECT] [-q] [-f FMT] [-b BACKING [-F FMT]] [-u] [-o OPTIONS] FILE [SIZE]
  dd [--image-opts] [-U] [-f FMT] [-O FMT] [bs=SIZE] [count=N] [skip=N] if=FILE of=FILE
  info [--object OBJECT] [--image-opts] [-f FMT] [--output=human|json] [--backing-chain] [-U] FILE
  map [--object OBJECT] [--image-opts] [-f FMT] [-s OFFSET] [-l LENGTH] [--output=human|json] [-U] FILE
  measure [--output=human|json] [-O FMT] [-o OPTIONS] [--size N | [--object OBJECT] [--image-opts] [-f FMT]
        [-l SNAPSHOT] [-U] FILE]
  rebase [--object OBJECT] [--image-opts] [-U] [-q] [-f FMT] [-t CACHE] [-T CACHE] [-p] [-u] -b BACKING
        [-F FMT] FILE
  resize [--object OBJECT] [--image-opts] [-f FMT] [--preallocation=MODE] [-q] [--shrink] FILE [+|-]SIZE
  snapshot [--object OBJECT] [--image-opts] [-U] [-q] [-l | -a SNAPSHOT | -c SNAPSHOT | -d SNAPSHOT] FILE
"""

_MEANINGS = """\
  FMT       format of an image; found out where it is not given, except that a new image is raw
  OPTIONS   NAME=VALUE,... of the format; `-o help` lists them
  CACHE     none, writeback (default), writethrough, directsync or unsafe (default for the target of convert)
  SIZE, N   bytes, or with a suffix k, M, G, T, P or E powers of 1024
  SNAPSHOT  ID or name of an internal snapshot, or snapshot.id=ID,snapshot.name=NAME
  OBJECT    object to create, as with pyvm's -object

  -p        show progress                   -q        print errors only
  -U        open the image even though another program writes to it
  -u        create: do not open the backing file;  rebase: change only its name
  -c        convert: compress               -S        convert: shortest run of zeros that becomes a hole;
  -n        convert: do not create the target         0 writes everything
  -C        convert: let the host copy      -W        convert: allow writes out of order
  -m        convert: how many chunks at once (8)      -r  check: what to repair; convert, commit: bytes a second
  -s        compare: sizes and allocation count too; map: first offset
  -l        map: how many bytes; snapshot: list
  -d        commit: do not empty the image; snapshot: delete
  -a, -c    snapshot: apply, create
"""


def help_text() -> str:
    """Return the help with the formats that there are."""
    from pyvm.block.open import FORMATS

    return (
        f"usage: {PROGRAM} [standard options] command [command options]\n"
        "Create, examine and change disk images\n\n"
        "  -h, --help     print this help\n"
        "  -V, --version  print the version\n"
        "  -T, --trace    [[enable=]PATTERN][,events=FILE][,file=FILE]: accepted; there are no events to trace\n\n"
        f"Commands:\n{_SYNTAX}\n{_MEANINGS}\n"
        f"Supported formats: {' '.join(FORMATS)}\n"
    )
