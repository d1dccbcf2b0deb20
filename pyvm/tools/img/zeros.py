"""Finding runs of zeros in a buffer, fast and without a copy."""

from __future__ import annotations

from collections.abc import Iterator

_STEP = 1 << 16
_ZEROS = bytes(_STEP)


def find_runs(buffer: bytearray, length: int, unit: int, least: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the runs of the first `length` bytes of `buffer`: start, end, whether all of it is zero.

    Looks at whole units of `unit` bytes; a run of zeros is at least `least` bytes, unless `length` ends it.
    """
    # A look at the first byte of each unit leaves few of those that hold data.
    first_bytes = buffer[:length:unit]
    start = 0
    data_start = 0
    while start < length:
        at = first_bytes.find(0, start // unit)
        if at < 0:
            break
        start = at * unit
        end = zero_end(buffer, start, length, unit)
        if end == start:
            start += unit
        elif end - start < least and end < length:
            start = end
        else:
            if data_start < start:
                yield data_start, start, False
            yield start, end, True
            data_start = start = end
    if data_start < length:
        yield data_start, length, False


def zero_end(buffer: bytearray, start: int, length: int, unit: int) -> int:
    """Return how far the bytes from `start` on are zeros, in whole units and at most to `length`."""
    zeros = bytes(unit)
    while start < length:
        # Zeros often come in large numbers.
        if start + _STEP <= length and not _STEP % unit and buffer.startswith(_ZEROS, start):
            start += _STEP
            continue
        stop = min(start + _STEP, length)
        while start < stop:
            if start + unit > length:
                return length if buffer.startswith(zeros[: length - start], start) else start
            if not buffer.startswith(zeros, start):
                return start
            start += unit
    return length


def is_zero(buffer: bytearray, start: int, end: int) -> bool:
    """Whether all bytes of a range are zero."""
    return zero_end(buffer, start, end, 512) == end
