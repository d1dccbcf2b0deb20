"""A back end in memory that keeps the newest bytes: `ringbuf`, also called `memory`."""

from __future__ import annotations

from pyvm.chardev.base import Buffer, Chardev, ChardevError

DEFAULT_SIZE = 65536
MAX_SIZE = 1 << 30


class RingbufChardev(Chardev):
    """What the guest wrote last, for `ringbuf-read`; what nobody reads in time is overwritten."""

    def __init__(self, label: str, size: int = DEFAULT_SIZE, kind: str = "ringbuf") -> None:
        """Make a buffer of `size` bytes; raises ChardevError where that is no power of two."""
        if size <= 0 or size & (size - 1):
            raise ChardevError("size of ringbuf chardev must be power of two")
        if size > MAX_SIZE:
            raise ChardevError(f"size of ringbuf chardev must be at most {MAX_SIZE} bytes")
        super().__init__(label)
        self._kind = kind
        self._ring = bytearray(size)
        self._start = 0
        self.count = 0
        """Bytes that wait to be read."""

    @property
    def filename(self) -> str:
        """Return the name by which the back end was asked for."""
        return self._kind

    def _write(self, data: Buffer) -> int:
        size = len(self._ring)
        view = memoryview(data)
        taken = len(view)
        view = view[max(taken - size, 0) :]
        position = (self._start + self.count) % size
        first = view[: size - position]
        self._ring[position : position + len(first)] = first
        self._ring[: len(view) - len(first)] = view[len(first) :]
        overwritten = max(self.count + len(view) - size, 0)
        self._start = (self._start + overwritten) % size
        self.count += len(view) - overwritten
        return taken

    def read(self, limit: int) -> bytes:
        """Take out the oldest bytes, at most `limit`."""
        length = min(max(limit, 0), self.count)
        end = self._start + length
        data = bytes(self._ring[self._start : end]) + bytes(self._ring[: max(end - len(self._ring), 0)])
        self._start = end % len(self._ring)
        self.count -= length
        return data
