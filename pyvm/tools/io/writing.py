"""Commands that write: ``write`` and ``writev``."""

from __future__ import annotations

import errno
import os

from pyvm.block.node import Node
from pyvm.block.vectors import Buffers
from pyvm.tools.io.command import ANY, Arguments, Command
from pyvm.tools.io.numbers import MAX_REQUEST, CommandError, Usage, take_pattern, take_size
from pyvm.tools.io.reading import check_sectors, make_buffers, take_lengths
from pyvm.tools.io.session import Session, Stopwatch, describe

DEFAULT_PATTERN = 0xCD


def write_checked(node: Node, offset: int, buffers: Buffers, *, durable: bool) -> None:
    """Write what must be on the disk.  Raises OSError."""
    node.check_write(offset, sum(map(len, buffers)))
    node.writev(offset, buffers)
    if durable:
        node.flush()


def zero_checked(node: Node, offset: int, length: int, *, unmap: bool, durable: bool) -> None:
    """Zero what must be on the disk.  Raises OSError."""
    node.check_write(offset, length)
    node.write_zeroes(offset, length, unmap)
    if durable:
        node.flush()


def is_durable(session: Session, arguments: Arguments) -> bool:
    """Whether a write has to be on stable storage when it is done."""
    return "f" in arguments or (session.backend is not None and not session.backend.write_cache)


def check_zero_options(arguments: Arguments) -> None:
    """Raise CommandError for options that need ``-z``."""
    for letter in "nu":
        if letter in arguments and "z" not in arguments:
            raise CommandError(f"-{letter} requires -z to be specified")


def _write(session: Session, arguments: Arguments) -> None:
    pattern = take_pattern(arguments.get("P") or "") if "P" in arguments else DEFAULT_PATTERN
    _check_options(arguments)
    offset = take_size(arguments.operands[0])
    count = take_size(arguments.operands[1])
    if count > MAX_REQUEST and "n" not in arguments:
        raise CommandError(f"length cannot exceed {MAX_REQUEST} without -n, given {arguments.operands[1]}")
    if "b" in arguments or "c" in arguments:
        check_sectors(offset, count)
    data = _take_data(session, arguments, count, pattern)
    durable = is_durable(session, arguments)
    watch = Stopwatch(session)

    def request(node: Node) -> None:
        if "z" in arguments:
            zero_checked(node, offset, count, unmap="u" in arguments, durable=durable)
        elif "b" in arguments:
            _write_state(node, offset, data)
        elif "c" in arguments:
            _write_compressed(node, offset, data)
        else:
            write_checked(node, offset, (data,), durable=durable)

    try:
        session.call(request)
    except OSError as error:
        raise CommandError(f"write failed: {describe(error)}") from None
    watch.stop()
    if "q" not in arguments:
        watch.report("wrote", offset, count, machine="C" in arguments)


def _check_options(arguments: Arguments) -> None:
    if "b" in arguments and "z" in arguments:
        raise CommandError("-b and -z cannot be specified at the same time")
    if "f" in arguments and ("b" in arguments or "c" in arguments):
        raise CommandError("-f and -b or -c cannot be specified at the same time")
    check_zero_options(arguments)
    if sum(letter in arguments for letter in "zPs") > 1:
        raise CommandError("Only one of -z, -P, and -s can be specified at the same time")


def _take_data(session: Session, arguments: Arguments, count: int, pattern: int) -> memoryview:
    """Return what is to be written; nothing for zeros."""
    if "z" in arguments:
        return memoryview(b"")
    name = arguments.get("s")
    if name is None:
        return session.buffer(count, pattern)
    try:
        with open(name, "rb") as file:
            content = file.read(count)
    except OSError as error:
        session.err(f"{name}: {error.strerror}\n")
        raise CommandError("") from None
    if not content:
        session.err(f"{name}: file is empty\n")
        raise CommandError("")
    data = session.buffer(count, 0)
    for start in range(0, count, len(content)):
        part = data[start : start + len(content)]
        part[:] = content[: len(part)]
    return data


def _write_state(node: Node, offset: int, data: memoryview) -> None:
    """Write the state of a VM, where the format keeps one.  Raises OSError."""
    from pyvm.tools.io.vmstate import holder

    holder(node).write_vmstate(offset, (data,))


def _write_compressed(node: Node, offset: int, data: memoryview) -> None:
    """Write clusters, compressed.  Raises OSError."""
    node.check_write(offset, len(data))
    cluster = node.cluster_size or max(1, len(data))
    end = offset + len(data)
    if offset % cluster or (end % cluster and end != node.size):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    for start in range(0, len(data), cluster):
        node.write_compressed(offset + start, data[start : start + cluster])


def _writev(session: Session, arguments: Arguments) -> None:
    pattern = take_pattern(arguments.get("P") or "") if "P" in arguments else DEFAULT_PATTERN
    if len(arguments.operands) < 2:
        raise Usage
    offset = take_size(arguments.operands[0])
    data, parts = make_buffers(session, take_lengths(arguments.operands[1:]), pattern)
    durable = is_durable(session, arguments)
    watch = Stopwatch(session)
    try:
        session.call(lambda node: write_checked(node, offset, parts, durable=durable))
    except OSError as error:
        raise CommandError(f"writev failed: {describe(error)}") from None
    watch.stop()
    if "q" not in arguments:
        watch.report("wrote", offset, len(data), machine="C" in arguments)


COMMANDS = (
    Command(
        "write",
        _write,
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
        alias="w",
        least=2,
        most=ANY,
        letters="bcCfnpP:qs:uz",
        operands=(2, 2),
        writes=True,
        details="""\
 Writes a part of the image.  'write -P 0x41 512 1k' fills the kilobyte at offset 512 with the letter A; without
 another source the byte is 0xcd.

 -b, -- write the state of a VM kept in the image instead of its disk
 -c, -- compress what is written
 -C, -- statistics for programs: bytes,operations,time,bytes/s,operations/s
 -f, -- let it be on stable storage when it is done
 -n, -- with -z, whatever the length: the image is told to zero it by itself
 -p, -- accepted for old scripts, and without effect
 -P, -- fill with this byte
 -q, -- no statistics
 -s, -- take the data from this file, again and again where it is shorter
 -u, -- with -z, the zeros need take no room
 -z, -- write zeros without sending any
""",
    ),
    Command(
        "writev",
        _writev,
        "[-Cfq] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
        least=2,
        most=ANY,
        letters="CfP:q",
        writes=True,
        details="""\
 Writes a part of the image from several buffers by one request.  'writev 512 1k 1k' writes two kilobytes.

 -C, -- statistics for programs
 -f, -- let it be on stable storage when it is done
 -P, -- fill with this byte
 -q, -- no statistics
""",
    ),
)
