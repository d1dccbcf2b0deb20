"""Driver *quorum*: several copies of a disk, which vote about what is right.

Reads compare all copies (pattern *quorum*), or take the first that answers (*fifo*); writes go to all.  A copy that
fails, or that is outvoted, is reported; where fewer agree than the threshold wants, the request fails.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.errors import BlockError
from pyvm.block.node import Access, Child, Extent, Node, Permission, Preallocation, Role
from pyvm.block.status import chain_status
from pyvm.block.vectors import Buffers, Cursor, copy_in, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

_SECTOR = 512
_MIN_BLKVERIFY = 2


class QuorumNode(Node):
    """Copies that agree, or vote; `threshold` of them must."""

    driver: ClassVar[str] = "quorum"

    def __init__(
        self,
        copies: list[Node],
        threshold: int,
        *,
        name: str = "",
        read_only: bool = False,
        fifo: bool = False,
        verify: bool = False,
        rewrite: bool = False,
    ) -> None:
        super().__init__(name, read_only=read_only)
        self.threshold = threshold
        self.fifo = fifo
        self.verify = verify
        self.rewrite = rewrite
        self.on_report: Callable[[str, dict[str, Any]], None] = lambda name, data: None
        """Takes an event and its data; called on any thread."""
        for number, copy in enumerate(copies):
            self.children.append(Child(Role.DATA_FILE, copy, f"children.{number}"))
        self._next = len(copies)

    @property
    def copies(self) -> list[Node]:
        """The copies, in their order."""
        return [child.node for child in self.children]

    def child_access(self, child: Child, used: Permission, shared: Permission) -> Access:
        """Return what is done with a copy: it must stay as the others are."""
        if used & Permission.WRITE and self.rewrite:
            used |= Permission.WRITE
        shared &= ~(Permission.WRITE | Permission.RESIZE) if used else shared
        return Access(used, shared)

    @property
    def size(self) -> int:
        """Length in bytes, the same for all copies."""
        return self.copies[0].size

    @property
    def filename(self) -> str:
        """There is no plain name."""
        return ""

    # ---- Copies that come and go

    def add_child(self, node: Node) -> None:
        """Take in another copy, which is held.  Raises BlockError."""
        if self.verify:
            raise BlockError("Cannot add a child to a quorum in blkverify mode")
        self.children.append(Child(Role.DATA_FILE, node.hold(), f"children.{self._next}"))
        self._next += 1

    def remove_child(self, label: str) -> None:
        """Let a copy go.  Raises BlockError."""
        if len(self.children) <= self.threshold:
            raise BlockError(f"The number of children cannot be lower than the vote threshold {self.threshold}")
        child = next(it for it in self.children if it.label == label)
        self.children.remove(child)
        if label == f"children.{self._next - 1}":
            self._next -= 1
        child.node.release()

    # ---- Votes

    def _failed(self, offset: int, length: int) -> None:
        start = offset // _SECTOR
        count = -(-(offset + length) // _SECTOR) - start
        self.on_report("QUORUM_FAILURE", {"reference": self.name, "sector-num": start, "sectors-count": count})

    def _bad(self, kind: str, offset: int, length: int, copy: Node, error: OSError | None = None) -> None:
        start = offset // _SECTOR
        count = -(-(offset + length) // _SECTOR) - start
        data: dict[str, Any] = {"type": kind}
        if error is not None:
            data["error"] = error.strerror or str(error)
        data.update({"node-name": copy.name, "sector-num": start, "sectors-count": count})
        self.on_report("QUORUM_REPORT_BAD", data)

    def _all(self, kind: str, offset: int, length: int, change: Callable[[Node], None]) -> None:
        """Do something with every copy; raises OSError where too few take it."""
        good, errors = 0, []
        for copy in self.copies:
            try:
                change(copy)
            except OSError as error:
                errors.append(error)
                self._bad(kind, offset, length, copy, error)
            else:
                good += 1
        if good >= self.threshold:
            return
        if kind != "flush":
            self._failed(offset, length)
        raise errors[0] if errors else OSError(errno.EIO, os.strerror(errno.EIO))

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers with what most copies have.  Raises OSError where too few agree."""
        length = total(buffers)
        self.check_range(offset, length)
        if self.fifo:
            self._read_first(offset, length, buffers)
            return
        found: list[tuple[Node, bytearray]] = []
        last: OSError | None = None
        for copy in self.copies:
            try:
                found.append((copy, copy.read(offset, length)))
            except OSError as error:
                last = error
                self._bad("read", offset, length, copy, error)
        if len(found) < self.threshold:
            self._failed(offset, length)
            raise last or OSError(errno.EIO, os.strerror(errno.EIO))
        copy_in(buffers, memoryview(self._vote(offset, length, found)))

    def block_status(self, offset: int, length: int) -> Extent:
        """Return zeros where all copies have them, and data where any may have some."""
        length = min(length, self.size - offset)
        data = 0
        for copy in self.copies:
            try:
                extent = chain_status(copy, offset, length)
            except OSError:
                return Extent(length, True, False, True)
            if not extent.zero:
                data = max(data, extent.length)
            elif not data:
                length = extent.length
        return Extent(data, True, False, True) if data else Extent(length, False, True, True)

    def _read_first(self, offset: int, length: int, buffers: Buffers) -> None:
        last: OSError | None = None
        for copy in self.copies:
            try:
                copy.readv(offset, buffers)
            except OSError as error:
                last = error
                self._bad("read", offset, length, copy, error)
            else:
                return
        assert last is not None
        raise last

    def _vote(self, offset: int, length: int, found: list[tuple[Node, bytearray]]) -> bytearray:
        data = found[0][1]
        if all(other == data for _, other in found[1:]):
            return data
        if self.verify:
            raise OSError(errno.EIO, "contents mismatch between copies")
        digests = [sha256(content).digest() for _, content in found]
        winner, votes = Counter(digests).most_common(1)[0]
        for (copy, _), digest in zip(found, digests, strict=True):
            if digest != winner:
                self._bad("read", offset, length, copy)
        if votes < self.threshold:
            self._failed(offset, length)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        right = found[digests.index(winner)][1]
        if self.rewrite and not self.read_only:
            for (copy, _), digest in zip(found, digests, strict=True):
                if digest != winner:
                    copy.write(offset, right)
        return right

    # ---- Writes

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write to all copies.  Raises OSError where too few take it."""
        length = total(buffers)
        self.check_write(offset, length)
        self.note_write(offset + length)
        self._all("write", offset, length, lambda copy: copy.writev(offset, Cursor(buffers).take(length)))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros in all copies."""
        self.check_write(offset, length)
        self.note_write(offset + length)
        self._all("write", offset, length, lambda copy: copy.write_zeroes(offset, length, unmap))

    def discard(self, offset: int, length: int) -> None:
        """Do nothing: copies need not read the same afterwards."""
        self.check_write(offset, length)

    def flush(self) -> None:
        """Make all copies safe."""
        if not self.read_only:
            self._all("flush", 0, self.size, lambda copy: copy.flush())

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Refuse: copies would not have the same size for a while."""
        raise BlockError("Image format driver does not support resize")


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> QuorumNode:
    """Make the node; see :mod:`pyvm.block.options`."""
    del graph
    copies = list(children.values())
    if not copies:
        raise BlockError("Number of provided children must be 1 or more")
    threshold = int(own.get("vote-threshold", 0))
    if threshold < 1:
        raise BlockError("Parameter 'vote-threshold' expects a value >= 1")
    if threshold > len(copies):
        raise BlockError("threshold may not exceed children count")
    verify, rewrite = bool(own.get("blkverify")), bool(own.get("rewrite-corrupted"))
    fifo = own.get("read-pattern", "quorum") == "fifo"
    if not fifo and verify and (len(copies) != _MIN_BLKVERIFY or threshold != _MIN_BLKVERIFY):
        raise BlockError("blkverify=on can only be set if there are exactly two files and vote-threshold is 2")
    if not fifo and rewrite and verify:
        raise BlockError("rewrite-corrupted=on cannot be used with blkverify=on")
    return QuorumNode(
        copies,
        threshold,
        name=settings.name,
        read_only=settings.read_only,
        fifo=fifo,
        verify=verify,
        rewrite=rewrite,
    )
