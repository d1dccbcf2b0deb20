"""Filter *copy-before-write*: what is about to be overwritten is copied to another node first.

So the target shows, together with what it stands on, what the disk was when the filter came.  The job *backup* has one;
put in by hand it makes a disk's state readable while the guest goes on.
"""

from __future__ import annotations

import errno
import os
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pyvm.block import bitmaps
from pyvm.block.drivers.filter import FilterNode
from pyvm.block.errors import BlockError
from pyvm.block.jobs.copying import Copier
from pyvm.block.jobs.read_ahead import CopyError
from pyvm.block.node import ALL_PERMISSIONS, Access, Child, Node, Permission, Role
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_STEP = 1 << 20

OnCbwError = Literal["break-guest-write", "break-snapshot"]


class CopyBeforeWriteNode(FilterNode):
    """A filter in front of `file`; it closes `target` as well in the end."""

    driver: ClassVar[str] = "copy-before-write"

    def __init__(
        self,
        file: Node,
        target: Node,
        *,
        name: str = "",
        read_only: bool | None = None,
        on_error: OnCbwError = "break-guest-write",
        timeout: int = 0,
        graph: BlockGraph | None = None,
    ) -> None:
        super().__init__(file, name=name, read_only=read_only)
        self.children.append(Child(Role.DATA_FILE, target, "target"))
        self.target = target
        self.copier = Copier(file, target)
        self.copier.wanted.set_all()
        self.copier.wanted.enabled = False
        self._accessible = bitmaps.DirtyBitmap(file.size, self.copier.cluster)
        self._saved = bitmaps.DirtyBitmap(file.size, self.copier.cluster)
        for bitmap in (self._accessible, self._saved):
            bitmap.enabled = False
        self._accessible.set_all()
        self.other_bitmaps = [self._accessible, self._saved]
        file.other_bitmaps.insert(0, self.copier.wanted)
        self.broken = False
        """Whether the copy is of no use any more, as some of it could not be made."""
        self.stopped = False
        """Whether nothing is copied any more."""
        self._on_error = on_error
        self._timeout = timeout
        """Seconds that a guest's write may wait for the copy; 0: as long as it takes."""
        self._graph = graph

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self.copier.source is old:
            self.copier.source = new
            old.other_bitmaps[:] = [bitmap for bitmap in old.other_bitmaps if bitmap is not self.copier.wanted]
            new.other_bitmaps.insert(0, self.copier.wanted)
        if self.target is old:
            self.target = self.copier.target = new

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with the disk and with the copy."""
        if child.node is self.target and child.role is Role.DATA_FILE:
            # The copy may be below what the guest writes to.
            return Access(Permission.WRITE, ALL_PERMISSIONS & ~Permission.RESIZE)
        if self.stopped:
            return Access(used, shared)
        if used & Permission.WRITE:
            used |= Permission.CONSISTENT_READ
        if self._graph is None or self._graph.users(self) or any(True for _ in self._graph.parents(self)):
            shared &= ~(Permission.WRITE | Permission.RESIZE)
        return Access(used, shared)

    def close(self) -> None:
        """Keep nothing of the disk any more, and release it."""
        kept = self._below.other_bitmaps
        kept[:] = [bitmap for bitmap in kept if bitmap is not self.copier.wanted]
        super().close()

    def allocated_bytes(self) -> int | None:
        """Return what the disk takes on the host."""
        return self._below.allocated_bytes()

    def _copy(self, offset: int, length: int) -> None:
        """Copy what is about to be lost.  Raises OSError where that fails and the guest is to hear of it."""
        if self.stopped or self.broken or length <= 0:
            return
        try:
            self._copy_in_time(offset, length)
            self._saved.set(offset, length)
        except CopyError as failure:
            if self._on_error == "break-guest-write":
                raise failure.error from None
            self.broken = True

    def _copy_in_time(self, offset: int, length: int) -> None:
        """Copy a range, piece by piece.  A piece that is on its way when time runs out is waited for, and too late.

        Raises CopyError.
        """
        deadline = monotonic() + self._timeout
        while self.copier.copy(offset, offset + length, _STEP) is not None:
            if self._timeout and monotonic() > deadline:
                raise CopyError(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), of_read=False)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        self._copy(offset, total(buffers))
        super().writev(offset, buffers)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write one cluster, compressed."""
        self._copy(offset, len(data))
        super().write_compressed(offset, data)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros."""
        self._copy(offset, length)
        super().write_zeroes(offset, length, unmap)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back."""
        self._copy(offset, length)
        super().discard(offset, length)

    def limit_to(self, bitmap: bitmaps.DirtyBitmap) -> None:
        """Keep nothing but what a bitmap says: the rest of what there was cannot be read."""
        for own in (self.copier.wanted, self._accessible):
            own.clear_all()
            own.merge(bitmap)

    def read_snapshot(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers with what was there when the filter came.  Raises OSError."""
        length = total(buffers)
        self.check_range(offset, length)
        missing = self._accessible.next(offset, dirty=False) if length else None
        if self.broken or (missing is not None and missing < offset + length):
            raise OSError(errno.EACCES, "Permission denied")
        data = bytearray(length)
        view, cluster, position = memoryview(data), self.copier.cluster, offset
        while position < offset + length:
            count = min(cluster - position % cluster, offset + length - position)
            node = self._below if self.copier.wanted.is_dirty(position) else self.target
            node.readv(position, (view[position - offset : position - offset + count],))
            position += count
        start = 0
        for buffer in buffers:
            buffer[:] = view[start : start + len(buffer)]
            start += len(buffer)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> CopyBeforeWriteNode:
    """Make the filter; see :mod:`pyvm.block.options`."""
    file, target = children["file"], children["target"]
    bitmap = None
    if "bitmap" in own:
        wanted = own["bitmap"]
        node = graph.nodes.get(wanted["node"])
        if node is None:
            raise BlockError(f"Cannot find device='{wanted['node']}' nor node-name='{wanted['node']}'")
        bitmap = bitmaps.find(node, wanted["name"])
        if bitmap is None:
            raise BlockError(f"Dirty bitmap '{wanted['name']}' not found")
    made = CopyBeforeWriteNode(
        file,
        target,
        name=settings.name,
        read_only=settings.read_only,
        on_error=own.get("on-cbw-error", "break-guest-write"),
        timeout=int(own.get("cbw-timeout", 0)),
        graph=graph,
    )
    if bitmap is not None:
        made.limit_to(bitmap)
    return made
