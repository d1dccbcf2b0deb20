"""Commands that open and close images: ``open``, ``close`` and ``reopen``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.block.backend import BlockBackend
from pyvm.block.bitmap_loading import load_bitmaps
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import ALL_PERMISSIONS, Access, disk_access
from pyvm.block.options import DRIVERS, GENERIC, Dialect, convert
from pyvm.block.reopen import Reopener
from pyvm.errors import ConfigError
from pyvm.records import replace
from pyvm.tools.io.command import ANY, PROGRAM, Arguments, Command
from pyvm.tools.io.numbers import Usage
from pyvm.tools.io.opening import find_cache, parse_tree
from pyvm.tools.io.session import Session, describe

if TYPE_CHECKING:
    from pyvm.block.graph import User
    from pyvm.block.node import Node
    from pyvm.tools.io.opening import HowOpened


def open_backend(session: Session, how: HowOpened) -> None:
    """Open an image for the session, whose it is.  Raises BlockError."""
    if session.backend is not None:
        raise BlockError("file open already, try 'help close'")
    from pyvm.block.context import InlineContext, IoContext

    graph = BlockGraph(secrets=how.secrets)
    node = how.open(graph)
    load_bitmaps(node)
    context = IoContext(session.lock) if session.lock is not None else InlineContext()
    session.backend = BlockBackend(node, context, write_cache=how.write_cache)
    session.opened = True
    if not how.snapshot:
        session.change_options = _Changer(session.backend, graph).change


class _Changer:
    """Gives the image of a session, and what it is made of, other options."""

    def __init__(self, backend: BlockBackend, graph: BlockGraph) -> None:
        self._backend = backend
        self._graph = graph
        self._user: User | None = None

    def change(self, node: Node, changes: dict[str, Any]) -> None:
        """Change some options, and leave the others as they are.  Raises BlockError."""
        reopener = Reopener(self._graph)
        reopener.add_node(node, changes)
        self._backend.drain()
        with self._backend.context.lock:
            # Whether it may be written to is known when it has been reopened.
            if self._user is None:
                self._user = self._graph.attach(node, "the disk", _access(read_only=True))
            else:
                self._graph.change(self._user, _access(read_only=True))
            try:
                reopener.run()
            except OSError as error:
                raise BlockError(str(error.strerror)) from None
            finally:
                self._graph.change(self._user, _access(read_only=node.read_only))


def _access(*, read_only: bool) -> Access:
    return Access(disk_access(read_only).used, ALL_PERMISSIONS)


def close_backend(session: Session) -> bool:
    """Close the image of the session, where there is one; return whether everything could be written."""
    backend = session.backend
    if backend is None:
        return True
    session.backend = session.change_options = None
    session.opened = False
    backend.drain()
    node = backend.node
    backend.context.close()
    if node is None:
        return True
    try:
        if not node.read_only:
            node.inactivate()
    except OSError as error:
        if node.driver != "qcow2":  # which has said so itself
            session.err(f"{PROGRAM}: {describe(error)}\n")
        return False
    finally:
        node.release()
    return True


def _open(session: Session, arguments: Arguments) -> None:
    from pyvm.tools.io.opening import HowOpened

    how = HowOpened(secrets=session.secrets)
    tree: dict[str, Any] = {}
    for letter, value in arguments.options:
        if letter == "o":
            tree.update(_parse(value))
        else:
            how = how.with_option(letter, value)
    if len(arguments.operands) > 1:
        raise Usage
    filename = arguments.operands[0] if arguments.operands else None
    open_backend(session, replace(how, filename=filename, tree=tree))


def _parse(text: str) -> dict[str, Any]:
    try:
        return dict(parse_tree(text))
    except ConfigError as error:
        raise BlockError(str(error)) from None


def _close(session: Session, arguments: Arguments) -> None:
    del arguments
    close_backend(session)


def _reopen(session: Session, arguments: Arguments) -> None:
    if "r" in arguments and "w" in arguments:
        raise BlockError("Only one -r/-w option may be given")
    if arguments.operands:
        raise Usage
    node = session.node
    if session.change_options is None or session.backend is None:
        raise BlockError("an image that is temporary, or a machine does not know, cannot be reopened")
    changes: dict[str, Any] = {}
    for text in (value for letter, value in arguments.options if letter == "o"):
        changes.update(_parse(text))
    changes = _typed(node, changes, "")
    if "r" in arguments or "w" in arguments:
        if "read-only" in changes:
            raise BlockError("Cannot set both -r/-w and 'read-only'")
        changes["read-only"] = "r" in arguments
    mode = arguments.get("c")
    cache = None
    if mode is not None:
        if "cache" in changes:
            raise BlockError("Cannot set both -c and the cache options")
        try:
            cache = find_cache(mode)
        except BlockError:
            raise BlockError(f"Invalid cache option: {mode}") from None
        changes["cache"] = {"direct": cache.direct, "no-flush": cache.no_flush}
    session.change_options(node, changes)
    if cache is not None:
        session.backend.write_cache = cache.writeback


def _typed(node: Node, given: dict[str, Any], path: str) -> dict[str, Any]:
    """Return options of a node that is there, and of those below it, of their types.  Raises BlockError."""
    own = DRIVERS[node.driver].options if node.driver in DRIVERS else {}
    children = {child.label: child.node for child in node.children}
    typed: dict[str, Any] = {}
    for key, value in given.items():
        option = GENERIC.get(key) or own.get(key)
        if key in children and isinstance(value, dict):
            typed[key] = _typed(children[key], value, f"{path}{key}.")
        elif option is None or option.kind.startswith("node"):
            typed[key] = value
        elif option.members and isinstance(value, dict):
            typed[key] = {
                name: convert(it, option.members[name], Dialect.DRIVE, f"{path}{key}.{name}", name)
                if name in option.members
                else it
                for name, it in value.items()
            }
        else:
            typed[key] = convert(value, option, Dialect.DRIVE, f"{path}{key}", key)
    return typed


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
