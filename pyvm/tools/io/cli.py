"""The program ``pyvm-io``: its options, and its lines of commands."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pyvm.records import replace
from pyvm.tools.img.arguments import Arguments, scan
from pyvm.tools.img.errors import HelpAsked, ImgError, UsageError
from pyvm.tools.io.command import PROGRAM
from pyvm.tools.io.session import Session

if TYPE_CHECKING:
    from pyvm.tools.io.opening import HowOpened

PROMPT = "qemu-io> "
"""What programs that drive qemu-io through a pipe wait for."""
_LONG = {
    "version": "V",
    "cmd": "c=",
    "format": "f=",
    "read-only": "r",
    "snapshot": "s",
    "nocache": "n",
    "copy-on-read": "C",
    "misalign": "m",
    "native-aio": "k",
    "aio": "i=",
    "cache": "t=",
    "discard": "d=",
    "trace": "T=",
    "force-share": "U",
    "object": "object=",
    "image-opts": "image-opts",
}
_SHORT = "hVc:d:f:rsnCmki:t:T:U"
_USAGE = f"""\
usage: {PROGRAM} [OPTION]... [-c COMMAND]... [FILE]
Read and write disk images by commands

      --object OBJECT   create an object, as with pyvm's -object
      --image-opts      FILE is options: driver=qcow2,file.filename=...
  -c, --cmd COMMAND     run this command; without any, commands are read from the standard input
  -f, --format FMT      format of the image; found out where it is not given
  -r, --read-only       open it for reading only
  -s, --snapshot        what is written goes to a temporary file
  -n, --nocache         the same as -t none
  -C, --copy-on-read    copy what is read from backing files into the image
  -m, --misalign        use buffers at odd addresses
  -k, --native-aio      the same as -i native
  -i, --aio=MODE        how the host does I/O: threads, native or io_uring
  -t, --cache=MODE      none, writeback (default), writethrough, directsync or unsafe
  -d, --discard=MODE    what becomes of discards: ignore or unmap (default)
  -T, --trace PATTERN   accepted; there are no events to trace
  -U, --force-share     open it even though another program writes to it
  -h, --help            print this help
  -V, --version         print the version

'{PROGRAM} -c help' lists the commands.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyvm-io`` with the arguments `argv`, by default the process's; return the exit status."""
    from pyvm.tools.img.console import discard_output

    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _run(argv: list[str]) -> int:
    from pyvm.block.errors import BlockError
    from pyvm.errors import ConfigError

    try:
        arguments = scan(argv, _SHORT, _LONG)
        if len(arguments.operands) > 1:
            raise UsageError("more than one file")
    except HelpAsked:
        sys.stdout.write(_USAGE)
        return 0
    except UsageError as error:
        _complain(f"{error}")
        sys.stdout.write(_USAGE)
        return 1
    if "V" in arguments:
        from pyvm import __version__

        print(f"{PROGRAM} version {__version__}")
        return 0
    try:
        return _work(arguments)
    except (BlockError, ConfigError, ImgError) as error:
        _complain(str(error))
    return 1


def _complain(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{PROGRAM}: {text}\n")


def _out(text: str) -> None:
    sys.stdout.write(text)


def _err(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(text)


def _work(arguments: Arguments) -> int:
    """Open the image, and run all commands."""
    from pyvm.tools.io.files import close_backend, open_backend
    from pyvm.tools.io.table import make_table

    arguments.add_objects()
    how = _how_to_open(arguments)
    _warn_of_traces(arguments)
    lock = threading.RLock()
    with lock:
        session = Session(_out, _err, make_table(tool=True), lock=lock, misalign="m" in arguments)
        session.secrets = arguments.secrets
        if how is not None:
            open_backend(session, how)
        try:
            good = _run_lines(session, arguments.all("c"))
        finally:
            closed = close_backend(session)
    return 0 if good and closed else 1


def _how_to_open(arguments: Arguments) -> HowOpened | None:
    """Return how the image is to be opened, None where none is named."""
    from pyvm.block.errors import BlockError
    from pyvm.tools.io.opening import HowOpened, parse_tree

    how = HowOpened(secrets=arguments.secrets)
    for letter, value in arguments.options:
        if letter in "rsCnktdiU":
            how = how.with_option(letter, value)
    image_opts, form = "image-opts" in arguments, arguments.get("f")
    if image_opts and form is not None:
        raise BlockError("--image-opts and -f are mutually exclusive")
    if not arguments.operands:
        return None
    if image_opts:
        return replace(how, tree=parse_tree(arguments.operands[0]))
    return replace(how, filename=arguments.operands[0], tree={} if form is None else {"driver": form})


def _warn_of_traces(arguments: Arguments) -> None:
    """There are no events to trace: say so where one is named."""
    for text in arguments.all("T"):
        pattern = text.partition(",")[0].removeprefix("enable=")
        if "=" not in pattern and "*" not in pattern:
            _complain(f"warning: trace event '{pattern.lstrip('-')}' does not exist")


def _run_lines(session: Session, commands: Sequence[str]) -> bool:
    """Run the commands of the command line or, where there are none, of the standard input."""
    from pyvm.tools.io.table import execute

    good = True
    for line in commands or _read_lines(session):
        good &= execute(session, line)
        if session.ended:
            break
    session.drain()
    return good


def _read_lines(session: Session) -> Iterator[str]:
    """Yield what is typed at the prompt; requests that are on their way end meanwhile."""
    assert session.lock is not None
    if sys.stdin.isatty():
        # Lines can be edited and called back.
        import readline  # noqa: F401
    while True:
        sys.stdout.flush()
        session.lock.release()
        try:
            line = input(PROMPT) if sys.stdin.isatty() else _read_line()
        except EOFError:
            return
        finally:
            session.lock.acquire()
        yield line


def _read_line() -> str:
    sys.stdout.write(PROMPT)
    sys.stdout.flush()
    line = os.fsdecode(sys.stdin.buffer.readline())
    if not line:
        raise EOFError
    return line.rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
