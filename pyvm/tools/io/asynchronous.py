"""Commands that start requests and do not wait for them: ``aio_read``, ``aio_write``; and ``aio_flush``, which does.

Such a command has succeeded once the request is on its way.  What became of it is printed when it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pyvm.block.accounting import Operation
from pyvm.block.node import Node
from pyvm.tools.io.command import ANY, Arguments, Command
from pyvm.tools.io.numbers import CommandError, Usage, take_pattern, take_size
from pyvm.tools.io.reading import make_buffers, read_checked, take_lengths, verify
from pyvm.tools.io.session import Session, Stopwatch, dump
from pyvm.tools.io.writing import DEFAULT_PATTERN, check_zero_options, is_durable, write_checked, zero_checked

_UNTOUCHED = 0xAB


def _refuse(session: Session, operation: Operation, name: str) -> None:
    """Count a request as one that the device should not have made."""
    if session.backend is not None:
        session.backend.stats.refuse(operation)
    session.out(f"injecting invalid {name} request\n")


def _start(
    session: Session,
    operation: Operation,
    length: int,
    request: Callable[[Node], None],
    ended: Callable[[int], None],
) -> None:
    """Start a request that is accounted for as one of a device."""
    backend = session.backend
    assert backend is not None
    stats = backend.stats
    started = stats.start()

    def completed(error: int) -> None:
        if error:
            stats.fail(operation, started)
        else:
            stats.done(operation, length, started)
        ended(error)

    session.submit(request, completed)


def _aio_read(session: Session, arguments: Arguments) -> None:
    pattern = take_pattern(arguments.get("P") or "") if "P" in arguments else None
    if "i" in arguments:
        _refuse(session, Operation.READ, "read")
        return
    if len(arguments.operands) < 2:
        raise Usage
    offset = take_size(arguments.operands[0])
    data, parts = make_buffers(session, take_lengths(arguments.operands[1:]), _UNTOUCHED)
    watch = Stopwatch(session)

    def ended(error: int) -> None:
        watch.stop()
        if error:
            session.out(f"readv failed: {os.strerror(error)}\n")
            return
        if pattern is not None:
            verify(session, data, pattern, offset)
        if "q" in arguments:
            return
        if "v" in arguments:
            dump(session, data, offset)
        watch.report("read", offset, len(data), machine="C" in arguments)

    _start(session, Operation.READ, len(data), lambda node: read_checked(node, offset, parts), ended)


def _aio_write(session: Session, arguments: Arguments) -> None:
    pattern = take_pattern(arguments.get("P") or "") if "P" in arguments else DEFAULT_PATTERN
    if "i" in arguments:
        _refuse(session, Operation.WRITE, "write")
        return
    if len(arguments.operands) < 2:
        raise Usage
    zeros = "z" in arguments
    if zeros and len(arguments.operands) != 2:
        raise CommandError("-z supports only a single length parameter")
    check_zero_options(arguments)
    offset = take_size(arguments.operands[0])
    lengths = [take_size(arguments.operands[1])] if zeros else take_lengths(arguments.operands[1:])
    count = sum(lengths)
    _, parts = make_buffers(session, () if zeros else lengths, pattern)
    durable, unmap = is_durable(session, arguments), "u" in arguments
    watch = Stopwatch(session)

    def request(node: Node) -> None:
        if zeros:
            zero_checked(node, offset, count, unmap=unmap, durable=durable)
        else:
            write_checked(node, offset, parts, durable=durable)

    def ended(error: int) -> None:
        watch.stop()
        if error:
            session.out(f"aio_write failed: {os.strerror(error)}\n")
        elif "q" not in arguments:
            watch.report("wrote", offset, count, machine="C" in arguments)

    _start(session, Operation.WRITE, count, request, ended)


def _aio_flush(session: Session, arguments: Arguments) -> None:
    del arguments
    session.drain()


COMMANDS = (
    Command(
        "aio_read",
        _aio_read,
        "[-Ciqv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
        least=2,
        most=ANY,
        letters="CiP:qv",
        details="""\
 Starts to read a part of the image; 'aio_flush' waits until that is done.  The command succeeds whatever becomes of
 the request.

 -C, -- statistics for programs: bytes,operations,time,bytes/s,operations/s
 -i, -- only count a request that was not valid
 -P, -- compare the data with this byte
 -q, -- no statistics
 -v, -- show the data
""",
    ),
    Command(
        "aio_write",
        _aio_write,
        "[-Cfiquz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
        least=2,
        most=ANY,
        letters="CfiP:quz",
        writes=True,
        details="""\
 Starts to write a part of the image; 'aio_flush' waits until that is done.  The command succeeds whatever becomes of
 the request.

 -C, -- statistics for programs: bytes,operations,time,bytes/s,operations/s
 -f, -- let it be on stable storage when it is done
 -i, -- only count a request that was not valid
 -P, -- fill with this byte instead of 0xcd
 -q, -- no statistics
 -u, -- with -z, the zeros need take no room
 -z, -- write zeros without sending any
""",
    ),
    Command("aio_flush", _aio_flush, "", "completes all outstanding aio requests"),
)
