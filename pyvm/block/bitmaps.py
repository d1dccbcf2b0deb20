"""Dirty bitmaps: which parts of a disk were written since somebody asked.

A :class:`DirtyBitmap` has one bit for `granularity` bytes of a disk, the lowest of a byte first, as the qcow2 format
and QEMU's checksum have them.  Those of a node are in its list `dirty_bitmaps`; :func:`attach` puts one there, and has
every change of what the node shows recorded: writes, zeros, discards, compressed clusters, and changes of its size.

All of this happens in the node's I/O context, under its lock; monitors come with all locks held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.block.vectors import total

if TYPE_CHECKING:
    from pyvm.block.node import Node

MIN_GRANULARITY = 512
MAX_NAME = 1023
_DEFAULT_GRANULARITY = 64 << 10
_MIN_DEFAULT_GRANULARITY = 4 << 10
_WORD_BYTES = 8
"""The checksum covers whole words of the host QEMU runs on."""
_SCAN_BYTES = 4096
"""A search looks at so many bytes of the bitmap at a time: most of the time the next bit is near."""


def default_granularity(node: Node) -> int:
    """Return the granularity of a bitmap where nobody says one: the unit of allocation, within limits."""
    cluster = node.cluster_size
    return max(_MIN_DEFAULT_GRANULARITY, cluster) if cluster else _DEFAULT_GRANULARITY


class DirtyBitmap:
    """One bitmap of a disk of `size` bytes.  Without a name it is a job's own."""

    def __init__(self, size: int, granularity: int, name: str = "") -> None:
        self.size = size
        self.granularity = granularity
        self.name = name
        self.enabled = True
        """Whether changes of the disk are recorded."""
        self.persistent = False
        """Whether it is kept in the image."""
        self.inconsistent = False
        """Whether the image has it, but nobody kept it up to date: it can only be removed."""
        self.read_only = False
        """Whether the image that keeps it cannot be written to."""
        self.skip_store = False
        """Whether it is about to be removed, and not kept any more."""
        self.busy = False
        """Whether a job uses it: nobody may change it meanwhile."""
        self.successor: DirtyBitmap | None = None
        """Records in its place while a job reads it."""
        self._shift = granularity.bit_length() - 1
        self.bits = bytearray(self._length())

    def _length(self) -> int:
        return (self._count_bits() + 7) >> 3

    def _count_bits(self) -> int:
        return -(-self.size >> self._shift)

    @property
    def recording(self) -> bool:
        """Whether what is written now will be found in it."""
        return self.enabled or (self.successor is not None and self.successor.enabled)

    @property
    def count(self) -> int:
        """How many bytes are dirty, by whole units."""
        return int.from_bytes(self.bits, "little").bit_count() << self._shift

    @property
    def any(self) -> bool:
        """Whether anything is dirty."""
        return self.bits != bytes(len(self.bits))

    # ---- Changes

    def record(self, offset: int, length: int) -> None:
        """The disk was changed there."""
        target = self.successor or self
        if target.enabled and length > 0:
            target.set(offset, length)

    def set(self, offset: int, length: int) -> None:
        """Make all units dirty that the range touches."""
        first = offset >> self._shift
        self._put(first, min((offset + length - 1 >> self._shift) + 1, self._count_bits()), True)

    def clear(self, offset: int, length: int) -> None:
        """Make units clean that the range covers; one that is cut by the end of the disk counts as covered."""
        end = offset + length
        last = self._count_bits() if end >= self.size else end >> self._shift
        self._put(-(-offset >> self._shift), last, False)

    def set_all(self) -> None:
        """Make everything dirty."""
        self._put(0, self._count_bits(), True)

    def clear_all(self) -> None:
        """Make everything clean."""
        self.bits[:] = bytes(len(self.bits))

    def _put(self, first: int, end: int, value: bool) -> None:
        if first >= end:
            return
        low, high = first >> 3, (end - 1) >> 3
        head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (end - 1 & 7))
        if low == high:
            self._put_byte(low, head & tail, value)
            return
        self._put_byte(low, head, value)
        self.bits[low + 1 : high] = (b"\xff" if value else b"\0") * (high - low - 1)
        self._put_byte(high, tail, value)

    def _put_byte(self, index: int, mask: int, value: bool) -> None:
        self.bits[index] = self.bits[index] | mask if value else self.bits[index] & (~mask & 0xFF)

    def merge(self, other: DirtyBitmap) -> None:
        """Make dirty what is dirty in another bitmap of a disk of the same size."""
        if other.granularity == self.granularity:
            both = int.from_bytes(self.bits, "little") | int.from_bytes(other.bits, "little")
            self.bits[:] = both.to_bytes(len(self.bits), "little")
            return
        for offset, length in other.runs():
            self.set(offset, length)

    def resize(self, size: int) -> None:
        """The disk has another size; what is new is clean."""
        self.size = size
        length = self._length()
        self.bits = self.bits[:length].ljust(length, b"\0")
        self._clear_behind()
        if self.successor is not None:
            self.successor.resize(size)

    def _clear_behind(self) -> None:
        rest = self._count_bits() & 7
        if rest and len(self.bits):
            self.bits[-1] &= (1 << rest) - 1

    # ---- Looking

    def is_dirty(self, offset: int) -> bool:
        """Whether the unit at `offset` is dirty."""
        index = offset >> self._shift
        return bool(self.bits[index >> 3] >> (index & 7) & 1)

    def next(self, offset: int, dirty: bool = True) -> int | None:
        """Return where the first unit from `offset` on is dirty, or clean; None where there is none."""
        bit = offset >> self._shift
        count = self._count_bits()
        if bit >= count:
            return None
        skipped = b"\0" if dirty else b"\xff"
        index = bit >> 3
        piece = self.bits[index : index + _SCAN_BYTES]
        # The first byte may begin with bits that are in front of `offset`.
        ignored = (1 << (bit & 7)) - 1
        piece[0] = piece[0] & ~ignored if dirty else piece[0] | ignored
        while piece:
            rest = piece.lstrip(skipped) if piece != skipped * len(piece) else b""
            if rest:
                value = rest[0] if dirty else ~rest[0]
                bit = ((index + len(piece) - len(rest)) << 3) + (value & -value).bit_length() - 1
                return max(bit << self._shift, offset) if bit < count else None
            index += len(piece)
            piece = self.bits[index : index + _SCAN_BYTES]
        return None

    def run(self, offset: int, limit: int) -> tuple[int, int] | None:
        """Return offset and length of the first dirty run from `offset` on, at most `limit` bytes; None without."""
        start = self.next(offset)
        if start is None:
            return None
        end = self.next(start, dirty=False)
        end = self.size if end is None else min(end, self.size)
        return start, min(end - start, limit)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield all dirty runs."""
        offset = 0
        while offset < self.size and (found := self.run(offset, self.size)) is not None:
            yield found
            offset = sum(found)

    def content(self) -> bytes:
        """Return the bits as the qcow2 format has them."""
        return bytes(self.bits)

    def load(self, content: bytes | bytearray) -> None:
        """Take over bits."""
        length = self._length()
        self.bits = bytearray(content[:length]).ljust(length, b"\0")
        self._clear_behind()

    def sha256(self) -> str:
        """Return the checksum of the bits, as QEMU computes it."""
        from hashlib import sha256

        content = self.content()
        words = max(-(-len(content) // _WORD_BYTES), 1)
        return sha256(content.ljust(words * _WORD_BYTES, b"\0")).hexdigest()

    # ---- Use by a job

    def freeze(self) -> None:
        """Let it stay as it is; what is written from now on is recorded apart."""
        self.successor = DirtyBitmap(self.size, self.granularity)
        self.successor.enabled = self.enabled
        self.enabled = False
        self.busy = True

    def abdicate(self) -> None:
        """End :meth:`freeze`: only what was recorded meanwhile stays."""
        self._end_freeze(keep=False)

    def reclaim(self) -> None:
        """End :meth:`freeze`: what was recorded meanwhile comes on top of what was there."""
        self._end_freeze(keep=True)

    def _end_freeze(self, *, keep: bool) -> None:
        successor = self.successor
        assert successor is not None
        self.successor = None
        self.enabled = successor.enabled
        self.busy = False
        if keep:
            successor.merge(self)
        self.bits = successor.bits

    def describe(self) -> dict[str, Any]:
        """Return the BlockDirtyInfo of it."""
        info: dict[str, Any] = {"count": self.count, "granularity": self.granularity}
        if self.name:
            info["name"] = self.name
        info.update(recording=self.recording, busy=self.busy, persistent=self.persistent)
        if self.inconsistent:
            info["inconsistent"] = True
        return info


# ---- The bitmaps of a node


def find(node: Node, name: str) -> DirtyBitmap | None:
    """Return a bitmap of a node by its name."""
    return next((bitmap for bitmap in node.dirty_bitmaps if bitmap.name == name), None)


def attach(node: Node, bitmap: DirtyBitmap) -> DirtyBitmap:
    """Have all changes of `node` recorded in `bitmap`; raises BlockError where the name is taken."""
    if bitmap.name and find(node, bitmap.name) is not None:
        raise BlockError(f"Bitmap already exists: {bitmap.name}")
    if not node.dirty_bitmaps:
        _watch(node)
    node.dirty_bitmaps.insert(0, bitmap)
    return bitmap


def detach(node: Node, bitmap: DirtyBitmap) -> None:
    """Record nothing in it any more."""
    node.dirty_bitmaps.remove(bitmap)
    if not node.dirty_bitmaps:
        _unwatch(node)


_WATCHED = ("writev", "write_zeroes", "discard", "write_compressed", "truncate")


def _watch(node: Node) -> None:
    """Put a look at the bitmaps around what changes the node; a node without bitmaps does not pay for it."""
    for name, length_of in zip(_WATCHED, (_second_total, _second, _second, _second_length), strict=False):
        setattr(node, name, _recorder(node, getattr(node, name), length_of))
    node.truncate = _resizer(node, node.truncate)  # type: ignore[method-assign]


def _unwatch(node: Node) -> None:
    for name in _WATCHED:
        with suppress(KeyError):
            del node.__dict__[name]


def _second(value: Any) -> int:
    return int(value)


def _second_total(buffers: Any) -> int:
    return total(buffers)


def _second_length(data: Any) -> int:
    return len(data)


def _recorder(node: Node, change: Callable[..., None], length_of: Callable[[Any], int]) -> Callable[..., None]:
    def record(offset: int, what: Any, *arguments: Any, **options: Any) -> None:
        try:
            change(offset, what, *arguments, **options)
        finally:
            # Also after an error: nobody knows what was changed before.
            length = min(length_of(what), node.size - offset)
            for bitmap in node.dirty_bitmaps:
                bitmap.record(offset, length)

    return record


def _resizer(node: Node, truncate: Callable[..., None]) -> Callable[..., None]:
    def resize(size: int, **options: Any) -> None:
        truncate(size, **options)
        for bitmap in node.dirty_bitmaps:
            bitmap.resize(node.size)

    return resize
