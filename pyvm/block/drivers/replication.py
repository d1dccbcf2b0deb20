"""Filter *replication*, on the side that sends: its disk can be used for as long as it is replicated.

What is written reaches the other side by what is below, a quorum of the disk here and there.  The side that receives
is not supported.
"""

from __future__ import annotations

import errno
import os
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.vectors import Buffers

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings


class _Stage(Enum):
    NOT_BEGUN = auto()
    RUNNING = auto()
    OVER = auto()


class ReplicationNode(FilterNode):
    """A filter in front of `file`; requests fail with EIO before replication begins, and after its end."""

    driver: ClassVar[str] = "replication"

    def __init__(self, file: Node, *, name: str = "", read_only: bool | None = None) -> None:
        super().__init__(file, name=name, read_only=read_only)
        self._stage = _Stage.NOT_BEGUN

    def start(self, *, is_primary: bool) -> None:
        """Begin; raises BlockError where that is not possible, or the other side was meant."""
        if self._stage is not _Stage.NOT_BEGUN:
            raise BlockError("Block replication is running or done")
        if not is_primary:
            raise BlockError("The parameter mode's value is invalid, needs 0, but got 1")
        self._stage = _Stage.RUNNING

    def stop(self, *, failover: bool) -> None:
        """End; raises BlockError where it has not begun, which does not matter with `failover`."""
        if self._stage is _Stage.RUNNING:
            self._stage = _Stage.OVER
        elif self._stage is _Stage.NOT_BEGUN and not failover:
            raise BlockError("Block replication is not running")

    def _check(self) -> None:
        if self._stage is not _Stage.RUNNING:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError."""
        self._check()
        super().readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on.  Raises OSError."""
        self._check()
        super().writev(offset, buffers)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster.  Raises OSError."""
        self._check()
        super().write_compressed(offset, data)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros.  Raises OSError."""
        self._check()
        super().write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back.  Raises OSError."""
        self._check()
        super().discard(offset, length)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> ReplicationNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    del graph
    if own["mode"] == "secondary":
        if "top-id" not in own:
            raise BlockError("Missing the option top-id")
        raise BlockError("'mode=secondary' is not supported by pyvm yet")
    if "top-id" in own:
        raise BlockError("The primary side does not support option top-id")
    return ReplicationNode(children["file"], name=settings.name, read_only=settings.read_only)
