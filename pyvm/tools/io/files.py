"""Commands that open and close images: ``open``, ``close`` and ``reopen``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.block.backend import BlockBackend
from pyvm.block.bitmap_loading import load_bitmaps
from pyvm.block.errors import BlockError
from pyvm.errors import ConfigError
from pyvm.records import replace
from pyvm.tools.io.command import ANY, Arguments, Command
from pyvm.tools.io.numbers import Usage
from pyvm.tools.io.session import Session

if TYPE_CHECKING:
    from pyvm.tools.io.opening import HowOpened

_CACHE_OPTIONS = ("direct", "no-flush")


def open_backend(session: Session, how: HowOpened) -> None:
    """Open an image for the session, whose it is.  Raises BlockError."""
    if session.backend is not None:
        raise BlockError("file open already, try 'help close'")
    from pyvm.block.context import InlineContext, IoContext

    node = how.open()
    load_bitmaps(node)
    context = IoContext(session.lock) if session.lock is not None else InlineContext()
    session.backend = BlockBackend(node, context, write_cache=how.write_cache)
    session.opened = how


def close_backend(session: Session) -> None:
    """Close the image of the session, where there is one.  Raises OSError where something could not be written."""
    backend = session.backend
    if backend is None:
        return
    session.backend = session.opened = None
    backend.drain()
    node = backend.node
    backend.context.close()
    if node is not None:
        try:
            if not node.read_only:
                node.inactivate()
        finally:
            node.release()


def _open(session: Session, arguments: Arguments) -> None:
    from pyvm.tools.io.opening import HowOpened, parse_tree

    how = HowOpened(secrets=session.secrets)
    tree: dict[str, Any] = {}
    for letter, value in arguments.options:
        if letter == "o":
            tree.update(_parse(parse_tree, value))
        else:
            how = how.with_option(letter, value)
    if len(arguments.operands) > 1:
        raise Usage
    filename = arguments.operands[0] if arguments.operands else None
    open_backend(session, replace(how, filename=filename, tree=tree))


def _parse(parse_tree: Any, text: str) -> dict[str, Any]:
    try:
        return dict(parse_tree(text))
    except ConfigError as error:
        raise BlockError(str(error)) from None


def _close(session: Session, arguments: Arguments) -> None:
    del arguments
    close_backend(session)


def _reopen(session: Session, arguments: Arguments) -> None:
    how = session.opened
    if how is None or how.snapshot:
        raise BlockError("an image that was not opened here, or is temporary, cannot be reopened")
    wanted = _take_changes(session, how, arguments)
    close_backend(session)
    try:
        open_backend(session, wanted)
    except BlockError:
        open_backend(session, how)
        raise


def _take_changes(session: Session, how: HowOpened, arguments: Arguments) -> HowOpened:
    """Return how the image is to be opened from now on."""
    from pyvm.tools.io.opening import find_cache, parse_tree

    if "r" in arguments and "w" in arguments:
        raise BlockError("Only one -r/-w option may be given")
    if arguments.operands:
        raise Usage
    tree = {**how.tree}
    for text in (value for letter, value in arguments.options if letter == "o"):
        changes = _parse(parse_tree, text)
        _check_changes(session, changes, arguments)
        cache = changes.pop("cache", {})
        tree.update(changes)
        if cache:
            tree["cache"] = {**tree.get("cache", {}), **cache}
    mode = arguments.get("c")
    if mode is not None:
        try:
            find_cache(mode)
        except BlockError:
            raise BlockError(f"Invalid cache option: {mode}") from None
        tree.pop("cache", None)
        how = replace(how, cache=mode)
    if "r" in arguments or "w" in arguments:
        tree.pop("read-only", None)
        how = replace(how, read_only="r" in arguments)
    return replace(how, tree=tree)


def _check_changes(session: Session, changes: dict[str, Any], arguments: Arguments) -> None:
    """Refuse what cannot be changed of an open image."""
    from pyvm.block.options import GENERIC, find_driver

    changeable = {*GENERIC, *find_driver(session.node.driver).options} - {"driver", "node-name"}
    for key, value in changes.items():
        if key == "read-only" and ("r" in arguments or "w" in arguments):
            raise BlockError("Cannot set both -r/-w and 'read-only'")
        if key == "cache" and "c" in arguments:
            raise BlockError("Cannot set both -c and the cache options")
        known = key in changeable and (key == "cache" or not isinstance(value, dict))
        if key == "cache" and (not isinstance(value, dict) or not set(value) <= set(_CACHE_OPTIONS)):
            known = False
        if not known:
            raise BlockError(f"Cannot change the option '{key}'")


COMMANDS = (
    Command(
        "reopen",
        _reopen,
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
        most=ANY,
        letters="c:o:rw",
        details="""\
 Opens the image once more in another way.  'reopen -o lazy-refcounts=on' lets a qcow2 image be lazy.

 -c, -- cache mode: none, writeback, writethrough, directsync or unsafe
 -o, -- options of the image's driver
 -r, -- read only
 -w, -- read and write
""",
    ),
)
TOOL_COMMANDS = (
    Command(
        "open",
        _open,
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        "open the file specified by path",
        alias="o",
        least=1,
        most=ANY,
        letters="Cd:i:kno:rst:U",
        needs_file=False,
        details="""\
 Opens an image for the commands that follow.  'open -n -o driver=raw /tmp/data' goes around the host's cache.

 -C, -- copy what is read from backing files into the image
 -d, -- what becomes of discards: ignore or unmap
 -i, -- how the host does I/O: threads, native or io_uring
 -k, -- the same as -i native
 -n, -- the same as -t none
 -o, -- options of the image's driver
 -r, -- read only
 -s, -- what is written goes to a temporary file
 -t, -- cache mode: none, writeback, writethrough, directsync or unsafe
 -U, -- even though another program writes to it
""",
    ),
    Command("close", _close, "", "close the current open file", alias="c"),
)
