"""Tables of a qcow2 file in memory: conversion from and to the disk's form, and a cache of bounded size.

Tables are cached in slices of a few KiB, so that a single entry of a 2 MiB table costs no 2 MiB.  Changes stay in the
cache until :meth:`TableCache.write_dirty`; when that is safe is for :mod:`.image` to say.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

from pyvm.block.node import Node

SLICE_BYTES = 4096
_FEWEST_SLICES = 16
_LONGEST_RUN = 256
"""Most slices that are written at once."""

_TYPECODES = {8: "B", 16: "H", 32: "I", 64: "Q"}


def decode_entries(data: bytes | bytearray, width: int) -> array[int]:
    """Return the entries of `width` bits (1 to 64) that are in `data`."""
    if width < 8:
        return _unpack_bits(data, width)
    entries = array(_TYPECODES[width])
    entries.frombytes(data)
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def encode_entries(entries: array[int], width: int) -> bytes:
    """Return the disk's form of `entries`, each of `width` bits."""
    if width < 8:
        return _pack_bits(entries, width)
    if sys.byteorder == "little":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def _unpack_bits(data: bytes | bytearray, width: int) -> array[int]:
    """Spread each byte over several; all bytes at once, as one large number."""
    count = 8 // width
    mask = int.from_bytes(bytes([(1 << width) - 1]) * len(data), "little")
    number = int.from_bytes(data, "little")
    entries = array("B", bytes(len(data) * count))
    for part in range(count):
        spread = ((number >> (part * width)) & mask).to_bytes(len(data), "little")
        entries[part::count] = array("B", spread)
    return entries


def _pack_bits(entries: array[int], width: int) -> bytes:
    count = 8 // width
    number = 0
    for part in range(count):
        number |= int.from_bytes(entries[part::count].tobytes(), "little") << (part * width)
    return number.to_bytes(len(entries) // count, "little")


class TableCache:
    """Slices of tables by their offset in `file`; about `limit` bytes of them are kept.

    `missing` is called where a slice is not wholly in the file, and raises OSError.  `events` are what a test knows
    reading and writing by: see :meth:`pyvm.block.node.Node.debug_event`.
    """

    def __init__(
        self,
        file: Node,
        *,
        width: int,
        cluster_size: int,
        limit: int,
        missing: Callable[[int], None],
        slice_bytes: int = SLICE_BYTES,
        events: tuple[str, str] = ("", ""),
    ) -> None:
        self.slice_bytes = min(slice_bytes, cluster_size)
        self.per_slice = self.slice_bytes * 8 // width
        self._file = file
        self._width = width
        self._limit = max(limit // self.slice_bytes, _FEWEST_SLICES)
        self._missing = missing
        self._load_event, self._update_event = events
        self._idle: set[int] = set()
        """Slices that nobody has asked for since the last clean-up."""
        self._slices: dict[int, array[int]] = {}
        self._dirty: set[int] = set()

    def __len__(self) -> int:
        return len(self._slices)

    @property
    def dirty(self) -> bool:
        """Whether there is something to write."""
        return bool(self._dirty)

    @property
    def crowded(self) -> bool:
        """Whether so much is to be written that it should be done before more is changed."""
        return len(self._dirty) > self._limit // 2

    def get(self, offset: int) -> array[int]:
        """Return the slice at `offset`.  Raises OSError."""
        entries = self._slices.pop(offset, None)
        if self._idle:
            self._idle.discard(offset)
        if entries is None:
            data = bytearray(self.slice_bytes)
            if offset + self.slice_bytes > self._file.length():
                self._missing(offset)
            self._file.debug_event(self._load_event)
            self._file.readv(offset, (memoryview(data),))
            entries = decode_entries(data, self._width)
            self._make_room()
        # The newest is last.
        self._slices[offset] = entries
        return entries

    def peek(self, offset: int) -> array[int] | None:
        """Return the slice at `offset` if it is here."""
        return self._slices.get(offset)

    def put(self, offset: int, entries: array[int]) -> None:
        """Take a slice that is in no file yet, or whose content there does not matter; it is to be written."""
        self._slices.pop(offset, None)
        self._make_room()
        self._slices[offset] = entries
        self._dirty.add(offset)

    def changed(self, offset: int, entries: array[int]) -> None:
        """The slice at `offset`, got before, is to be written; it may have been dropped meanwhile, unchanged."""
        self._slices[offset] = entries
        self._dirty.add(offset)

    def write_dirty(self) -> None:
        """Write what has changed, runs of neighbours at once.  Raises OSError; what was not written stays dirty."""
        run: list[int] = []
        for offset in sorted(self._dirty):
            if run and (offset != run[-1] + self.slice_bytes or len(run) == _LONGEST_RUN):
                self._write_run(run)
                run = []
            run.append(offset)
        if run:
            self._write_run(run)

    def _write_run(self, run: list[int]) -> None:
        data = [memoryview(encode_entries(self._slices[offset], self._width)) for offset in run]
        self._file.debug_event(self._update_event)
        self._file.writev(run[0], data)
        self._dirty.difference_update(run)

    def clean_up(self) -> None:
        """Drop what was not asked for since the last time, and need not be written."""
        for offset in self._idle - self._dirty:
            self._slices.pop(offset, None)
        self._idle = set(self._slices)

    def clear(self) -> None:
        """Drop everything, also what was to be written: the tables on the disk have become others."""
        self._slices.clear()
        self._dirty.clear()

    def forget(self, offset: int, length: int) -> None:
        """Drop the slices of a table that is no longer used."""
        for start in range(offset, offset + length, self.slice_bytes):
            self._slices.pop(start, None)
            self._dirty.discard(start)

    def _make_room(self) -> None:
        if len(self._slices) < self._limit:
            return
        # Dirty slices have to stay; `crowded` keeps them from being most.
        clean = (offset for offset in self._slices if offset not in self._dirty)
        for offset in [offset for offset, _ in zip(clean, range(self._limit // 8), strict=False)]:
            del self._slices[offset]
