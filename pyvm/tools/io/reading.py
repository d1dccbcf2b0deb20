"""Commands that read: ``read`` and ``readv``."""

from __future__ import annotations

from collections.abc import Sequence

from pyvm.block.node import Node
from pyvm.block.vectors import Buffers
from pyvm.tools.io.command import ANY, Arguments, Command
from pyvm.tools.io.numbers import MAX_REQUEST, CommandError, Usage, take_pattern, take_size
from pyvm.tools.io.session import Session, Stopwatch, describe, dump

SECTOR = 512
_UNTOUCHED = 0xAB
"""What buffers hold before a read."""


def take_lengths(texts: Sequence[str]) -> list[int]:
    """Return the lengths of several buffers of one request.  Raises CommandError."""
    lengths = []
    for text in texts:
        length = take_size(text)
        if length > MAX_REQUEST:
            raise CommandError(f"Argument '{text}' exceeds maximum size {MAX_REQUEST}")
        lengths.append(length)
    if sum(lengths) > MAX_REQUEST:
        raise CommandError(f"The total number of bytes exceed the maximum size {MAX_REQUEST}")
    return lengths


def make_buffers(session: Session, lengths: Sequence[int], value: int) -> tuple[memoryview, list[memoryview]]:
    """Return one buffer for everything, and its parts of these lengths."""
    whole = session.buffer(sum(lengths), value)
    parts = []
    start = 0
    for length in lengths:
        parts.append(whole[start : start + length])
        start += length
    return whole, parts


def check_sectors(offset: int, length: int) -> None:
    """Raise CommandError unless a range is whole sectors."""
    for name, value in (("offset", offset), ("count", length)):
        if value % SECTOR:
            raise CommandError(f"{value} is not a sector-aligned value for '{name}'")


def verify(session: Session, data: memoryview, pattern: int, offset: int) -> bool:
    """Compare all of `data`, which is at `offset` of the image, with a pattern; print a difference."""
    if bytes(data) == bytes((pattern,)) * len(data):
        return True
    session.out(f"Pattern verification failed at offset {offset}, {len(data)} bytes\n")
    return False


def read_checked(node: Node, offset: int, buffers: Buffers) -> None:
    """Read what must be on the disk.  Raises OSError."""
    node.check_range(offset, sum(map(len, buffers)))
    node.readv(offset, buffers)


def _read(session: Session, arguments: Arguments) -> None:
    start, length = _take_verification(arguments)
    pattern = take_pattern(arguments.get("P") or "") if "P" in arguments else None
    offset = take_size(arguments.operands[0])
    count = take_size(arguments.operands[1])
    if count > MAX_REQUEST:
        raise CommandError(f"length cannot exceed {MAX_REQUEST}, given {arguments.operands[1]}")
    if pattern is None and ("l" in arguments or "s" in arguments):
        raise Usage
    if length is None:
        length = count - start
    if length < 0 or start + length > count:
        raise CommandError("pattern verification range exceeds end of read data")
    from_state = "b" in arguments
    if from_state:
        check_sectors(offset, count)
    data = session.buffer(count, _UNTOUCHED)
    watch = Stopwatch(session)
    try:
        session.call(lambda node: (_read_state if from_state else read_checked)(node, offset, (data,)))
    except OSError as error:
        raise CommandError(f"read failed: {describe(error)}") from None
    watch.stop()
    good = pattern is None or verify(session, data[start : start + length], pattern, offset + start)
    _show(session, arguments, data, offset, watch)
    if not good:
        raise Failed


class Failed(CommandError):  # noqa: N818 - it is what happened
    """The command failed, and has said so."""


def _take_verification(arguments: Arguments) -> tuple[int, int | None]:
    """Return where verification starts, and the length; None: up to the end."""
    length, start = arguments.get("l"), arguments.get("s")
    return take_size(start) if start is not None else 0, take_size(length) if length is not None else None


def _read_state(node: Node, offset: int, buffers: Buffers) -> None:
    """Read the state of a VM, where the format keeps one.  Raises OSError."""
    from pyvm.tools.io.vmstate import holder

    holder(node).read_vmstate(offset, buffers)


def _show(session: Session, arguments: Arguments, data: memoryview, offset: int, watch: Stopwatch) -> None:
    if "q" in arguments:
        return
    if "v" in arguments:
        dump(session, data, offset)
    watch.report("read", offset, len(data), machine="C" in arguments)


def _readv(session: Session, arguments: Arguments) -> None:
    pattern = take_pattern(arguments.get("P") or "") if "P" in arguments else None
    if len(arguments.operands) < 2:
        raise Usage
    offset = take_size(arguments.operands[0])
    data, parts = make_buffers(session, take_lengths(arguments.operands[1:]), _UNTOUCHED)
    watch = Stopwatch(session)
    try:
        session.call(lambda node: read_checked(node, offset, parts))
    except OSError as error:
        raise CommandError(f"readv failed: {describe(error)}") from None
    watch.stop()
    good = pattern is None or verify(session, data, pattern, offset)
    _show(session, arguments, data, offset, watch)
    if not good:
        raise Failed


COMMANDS = (
    Command(
        "read",
        _read,
        "[-bCqv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
        alias="r",
        least=2,
        most=ANY,
        letters="bCl:pP:qs:v",
        operands=(2, 2),
        details="""\
 Reads a part of the image.  'read -v 512 1k' shows the kilobyte at offset 512.

 -b, -- read the state of a VM kept in the image instead of its disk
 -C, -- statistics for programs: bytes,operations,time,bytes/s,operations/s
 -l, -- how many bytes to compare, with -P
 -p, -- accepted for old scripts, and without effect
 -P, -- compare the data with this byte
 -q, -- no statistics
 -s, -- where in the data to begin comparing, with -P
 -v, -- show the data
""",
    ),
    Command(
        "readv",
        _readv,
        "[-Cqv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
        least=2,
        most=ANY,
        letters="CP:qv",
        details="""\
 Reads a part of the image into several buffers by one request.  'readv -v 512 1k 1k' shows two kilobytes.

 -C, -- statistics for programs
 -P, -- compare the data with this byte
 -q, -- no statistics
 -v, -- show the data
""",
    ),
)
