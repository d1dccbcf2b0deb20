"""Filter *throttle*: what goes through it keeps to the limits of a throttle group.

Right under a disk, the disk itself lets its requests wait in the group (:mod:`pyvm.block.backend`), and they come here
only when they may go on.  Anywhere else in a graph a request waits here, and with it the I/O context.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, NodeOptions
from pyvm.block.throttling import ThrottleGroup
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_NANOSECONDS = 1_000_000_000


class ThrottleNode(FilterNode):
    """A filter in front of `file`."""

    driver: ClassVar[str] = "throttle"

    def __init__(self, file: Node, group: ThrottleGroup, *, name: str = "", read_only: bool | None = None) -> None:
        super().__init__(file, name=name, read_only=read_only)
        self.group = group
        group.filters += 1
        self.passed_on = False
        """Whether the disk above lets its requests wait, so that they need not wait here."""
        self._draining = 0
        self._drained = threading.Event()

    def reopen(self, graph: BlockGraph, new: NodeOptions) -> Callable[[], None]:
        """Be as `new` says; raises BlockError where there is no such group."""
        group = _find_group(graph, new.own)
        before, restore = self.group, super().reopen(graph, new)
        self._join(group)

        def back() -> None:
            restore()
            self._join(before)

        return back

    def _join(self, group: ThrottleGroup) -> None:
        self.group.filters -= 1
        self.group = group
        group.filters += 1

    def close(self) -> None:
        """Leave the group, and release what is below."""
        self.group.filters -= 1
        super().close()

    def _wait(self, is_write: bool, length: int) -> None:
        if self.passed_on:
            return
        while not self._draining and self.group.limits.enabled:
            wait = self.group.take(is_write, length)
            if not wait:
                return
            self._drained.wait(wait / _NANOSECONDS)

    def begin_drain(self) -> None:
        """Let everything pass until :meth:`end_drain`."""
        self._draining += 1
        self._drained.set()
        super().begin_drain()

    def end_drain(self) -> None:
        """The limits hold again."""
        super().end_drain()
        self._draining -= 1
        if not self._draining:
            self._drained.clear()

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        self._wait(False, total(buffers))
        super().readv(offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        self._wait(True, total(buffers))
        super().writev(offset, buffers)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster, compressed."""
        self._wait(True, len(data))
        super().write_compressed(offset, data)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back."""
        self._wait(True, length)
        super().discard(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros."""
        self._wait(True, length)
        super().write_zeroes(offset, length, unmap)


def _find_group(graph: BlockGraph, own: dict[str, Any]) -> ThrottleGroup:
    group = graph.throttle_groups.find(own["throttle-group"])
    if group is None:
        raise BlockError(f"Throttle group '{own['throttle-group']}' does not exist")
    return group


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> ThrottleNode:
    """Make the filter; see :mod:`pyvm.block.options`.  The group must be there."""
    return ThrottleNode(children["file"], _find_group(graph, own), name=settings.name, read_only=settings.read_only)
