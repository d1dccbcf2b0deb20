"""Opening images as the program's options, or those of ``open``, say."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.errors import ConfigError
from pyvm.records import field, record, replace
from pyvm.secrets import Secrets

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.node import Node
    from pyvm.tools.img.arguments import Cache

_TEMPORARY = "/var/tmp"
"""Where a big file may be."""
_AIO_MODES = ("threads", "native", "io_uring")
_DISCARD_MODES = {"ignore": False, "off": False, "unmap": True, "on": True}


def find_cache(mode: str) -> Cache:
    """Return a cache mode.  Raises BlockError."""
    from pyvm.tools.img.arguments import Arguments
    from pyvm.tools.img.errors import ImgError

    try:
        return Arguments([("t", mode)]).cache("t", "writeback", "Invalid cache option: {}")
    except ImgError as error:
        raise BlockError(str(error)) from None


class OptionConflictError(BlockError):
    """Options of the program and of the image that exclude one another."""


@record(frozen=True)
class HowOpened:
    """How an image is opened; it can be opened once more in another way."""

    filename: str | None = None
    tree: dict[str, Any] = field(default_factory=dict)
    """Options of the node."""
    read_only: bool = False
    snapshot: bool = False
    """Whether what is written goes to a temporary file, and is gone in the end."""
    copy_on_read: bool = False
    force_share: bool = False
    cache: str = "writeback"
    discard: bool = True
    aio: str | None = None
    secrets: Secrets = field(default_factory=Secrets)

    def with_option(self, letter: str, value: str) -> HowOpened:
        """Return this with one of the options that the program and ``open`` have in common.  Raises BlockError."""
        if letter in _FLAGS:
            return replace(self, **_FLAGS[letter])
        if letter == "t":
            find_cache(value)
            return replace(self, cache=value)
        if letter == "d":
            if value not in _DISCARD_MODES:
                raise BlockError(f"Invalid discard option: {value}")
            return replace(self, discard=_DISCARD_MODES[value])
        if letter == "i":
            if value not in _AIO_MODES:
                raise BlockError(f"Invalid aio option: {value}")
            return replace(self, aio=value)
        raise KeyError(letter)

    @property
    def write_cache(self) -> bool:
        """Whether writes may wait in a cache."""
        return find_cache(self.cache).writeback

    def open(self, graph: BlockGraph) -> Node:
        """Open the image into `graph`; it belongs to the caller.  Raises BlockError: what was asked, what is wrong."""
        complaint = "can't open" if self.filename is None else f"can't open device {self.filename}"
        try:
            return self._open(graph)
        except OptionConflictError:
            raise
        except (BlockError, ConfigError) as error:
            raise BlockError(f"{complaint}: {error}") from None
        except OSError as error:
            raise BlockError(f"{complaint}: {error.strerror}") from None

    def _open(self, graph: BlockGraph) -> Node:
        from pyvm.block.node import ALL_PERMISSIONS, Access, disk_access
        from pyvm.block.open import Opener
        from pyvm.block.options import Dialect

        cache = find_cache(self.cache)
        tree = {**self.tree}
        if self.force_share and tree.get("force-share", "on") not in (True, "on"):
            raise OptionConflictError("-U conflicts with image options")
        read_only = self.read_only or self.snapshot
        tree.setdefault("read-only", read_only)
        tree.setdefault("discard", "unmap" if self.discard else "ignore")
        if self.force_share:
            tree["force-share"] = True
        caching = tree["cache"] = {**tree.get("cache", {})}
        caching.setdefault("direct", cache.direct)
        caching.setdefault("no-flush", cache.no_flush)
        access = Access(disk_access(read_only).used, ALL_PERMISSIONS)
        node = Opener(graph, Dialect.DRIVE).open(self.filename, tree, access=access, aio=self.aio)
        try:
            if self.snapshot and not self.read_only:
                node = self._overlay(node, graph)
            return self._filtered(node, graph)
        except BaseException:
            node.release()
            raise

    def _overlay(self, node: Node, graph: BlockGraph) -> Node:
        """Put a temporary image in front of `node`, which it takes over."""
        from pyvm.block.create import create_image
        from pyvm.block.open import Opener
        from pyvm.block.options import Dialect

        try:
            descriptor, path = tempfile.mkstemp(prefix="vl.", dir=os.environ.get("TMPDIR") or _TEMPORARY)
        except OSError as error:
            raise BlockError(f"Could not get temporary filename: {error.strerror}") from None
        os.close(descriptor)
        try:
            create_image(path, "qcow2", node.size, {})
            tree: dict[str, Any] = {
                "driver": "qcow2",
                "file": {"driver": "file", "filename": path, "locking": "off"},
                "backing": node.name,
                "cache": {"no-flush": True},
                "discard": "unmap" if self.discard else "ignore",
            }
            overlay = Opener(graph, Dialect.JSON).open(None, tree)
        finally:
            with suppress(OSError):
                os.unlink(path)
        node.release()
        return overlay

    def _filtered(self, node: Node, graph: BlockGraph) -> Node:
        if not self.copy_on_read:
            return node
        if node.read_only:
            raise BlockError("Can't use copy-on-read on read-only device")
        from pyvm.block.drivers.copy_on_read import CopyOnReadNode

        top = CopyOnReadNode(node, name=graph.make_name())
        graph.add(top)
        return top


_FLAGS: dict[str, dict[str, Any]] = {
    "r": {"read_only": True},
    "s": {"snapshot": True},
    "C": {"copy_on_read": True},
    "n": {"cache": "none"},
    "k": {"aio": "native"},
    "U": {"force_share": True},
}


def parse_tree(text: str) -> dict[str, Any]:
    """Return options typed as ``key=value,...`` as the options of a node.  Raises ConfigError or BlockError."""
    from pyvm.block.options import unflatten
    from pyvm.options import Group, parse

    options = parse(Group("", None), text)
    return unflatten(dict(options.pairs))
