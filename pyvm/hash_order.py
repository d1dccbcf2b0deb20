"""The order in which QEMU walks a hash table of GLib that has strings as keys.

QEMU lists what it keeps in such tables (character devices, properties of objects) in their order, and there are clients
and test suites that compare text.  The table is open-addressed: a key's place depends on its hash, on the size of the
table, and on who was there before, so the order is found by keeping an equal table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_MIN_SHIFT = 3
_PRIMES = (1, 2, 3, 7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521)
"""For each power of two, the greatest prime below it: places are hashes modulo that."""
_GROWTH = 1.333
_SPREAD = 11
_GRAVE = ""
"""Marks the place of a key that was removed."""


def string_hash(text: str) -> int:
    """Return GLib's hash of a string: Bernstein's, with signed bytes, and never 0 or 1."""
    value = 5381
    for byte in text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80"):
        value = value * 33 + (byte if byte < 128 else byte - 256)
    return max(value % (1 << 32), 2)


class HashOrder:
    """A set of strings that is walked in a hash table's order."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._shift = _MIN_SHIFT
        self._slots: list[tuple[int, str] | str | None] = [None] * (1 << _MIN_SHIFT)
        self._count = 0
        self._occupied = 0
        """Slots that were ever used since the table was last made anew."""
        for key in keys:
            self.add(key)

    def __iter__(self) -> Iterator[str]:
        return iter([slot[1] for slot in self._slots if isinstance(slot, tuple)])

    def __contains__(self, key: str) -> bool:
        return isinstance(self._slots[self._find(string_hash(key), key)], tuple)

    def _home(self, value: int) -> int:
        return value * _SPREAD % (1 << 32) % _PRIMES[self._shift]

    def _find(self, value: int, key: str) -> int:
        """Return the slot that has `key`, or the one where it would go."""
        index, step, grave = self._home(value), 0, -1
        mask = len(self._slots) - 1
        while (slot := self._slots[index]) is not None:
            if slot == (value, key):
                return index
            if slot == _GRAVE and grave < 0:
                grave = index
            step += 1
            index = (index + step) & mask
        return index if grave < 0 else grave

    def add(self, key: str) -> None:
        """Insert a key; nothing happens where it is there."""
        value = string_hash(key)
        index = self._find(value, key)
        old = self._slots[index]
        if isinstance(old, tuple):
            return
        self._slots[index] = (value, key)
        self._count += 1
        if old is None:
            self._occupied += 1
            self._maybe_resize()

    def discard(self, key: str, *, shrink: bool = True) -> None:
        """Remove a key; `shrink` False leaves the table's size alone, as removal by an iterator does."""
        index = self._find(string_hash(key), key)
        if isinstance(self._slots[index], tuple):
            self._slots[index] = _GRAVE
            self._count -= 1
            if shrink:
                self._maybe_resize()

    def _maybe_resize(self) -> None:
        size = len(self._slots)
        sparse = size > self._count * 4 and size > 1 << _MIN_SHIFT
        if sparse or size <= self._occupied + self._occupied // 16:
            self._resize()

    def _resize(self) -> None:
        """Move all keys to where they belong in a table of the right size, in place, as they are met."""
        old = len(self._slots)
        self._shift = max(int(self._count * _GROWTH).bit_length(), _MIN_SHIFT)
        size = 1 << self._shift
        slots = self._slots
        slots.extend([None] * (size - old))
        settled = [False] * len(slots)
        for index in range(old):
            slot = slots[index]
            if settled[index]:
                continue
            slots[index] = None
            while isinstance(slot, tuple):
                place, step = self._home(slot[0]), 0
                while settled[place]:
                    step += 1
                    place = (place + step) & (size - 1)
                settled[place] = True
                slots[place], slot = slot, slots[place]
        del slots[size:]
        self._occupied = self._count
