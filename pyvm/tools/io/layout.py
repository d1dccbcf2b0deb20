"""Commands about the image as a whole, and about what is where in it."""

from __future__ import annotations

from typing import cast

from pyvm.block.errors import BlockError
from pyvm.block.node import Node, Preallocation
from pyvm.block.options import DRIVERS
from pyvm.tools.io.command import ANY, Arguments, Command
from pyvm.tools.io.numbers import MAX_REQUEST, CommandError, Usage, show_size, take_size
from pyvm.tools.io.reading import SECTOR, Failed
from pyvm.tools.io.session import Session, Stopwatch, describe
from pyvm.tools.io.vmstate import find_qcow2

_PREALLOCATION = ("off", "metadata", "falloc", "full")
_WITH_INFO = ("file", "host_device", "host_cdrom")
"""Protocol drivers that say how they keep things: in no clusters."""


def _flush(session: Session, arguments: Arguments) -> None:
    del arguments
    session.call(lambda node: node.flush())


def _truncate(session: Session, arguments: Arguments) -> None:
    mode = arguments.get("m") or "off"
    if mode not in _PREALLOCATION:
        raise BlockError(f"Invalid preallocation mode '{mode}'")
    if len(arguments.operands) != 1:
        raise Usage
    size = take_size(arguments.operands[0])
    session.call(lambda node: node.truncate(size, preallocation=cast(Preallocation, mode), exact=False))
    backend = session.backend
    if backend is not None and backend.device is not None:
        backend.device.resized()


def _length(session: Session, arguments: Arguments) -> None:
    del arguments
    session.out(f"{show_size(session.node.size)}\n")


def _info(session: Session, arguments: Arguments) -> None:
    del arguments
    node = session.node
    session.out(f"format name: {node.driver}\n")
    if node.driver in DRIVERS and DRIVERS[node.driver].prefixes:
        session.out(f"format name: {node.driver}\n")  # once more as that of a protocol
    image = find_qcow2(node)
    if image is not None:
        from pyvm.block.drivers.qcow2.vmstate import start

        state = session.call(lambda _: start(image.disk))
        session.out(f"cluster size: {show_size(image.cluster_size)}\nvm state offset: {show_size(state)}\n")
    elif _bottom(node).driver in _WITH_INFO:
        session.out("cluster size: 0 bytes\nvm state offset: 0 bytes\n")
    else:
        # Nothing more is known, which qemu-io counts as a failure.
        raise Failed
    specific = node.format_info()
    if specific is not None:
        from pyvm.block.info_text import member_lines

        session.out("Format specific information:\n")
        for line in member_lines(specific["data"], 1):
            session.out(f"{line}\n")


def _bottom(node: Node) -> Node:
    while node.file is not None:
        node = node.file
    return node


def _discard(session: Session, arguments: Arguments) -> None:
    offset = take_size(arguments.operands[0])
    count = take_size(arguments.operands[1])
    if count > MAX_REQUEST:
        raise CommandError(f"length cannot exceed {MAX_REQUEST}, given {arguments.operands[1]}")
    watch = Stopwatch(session)

    def request(node: Node) -> None:
        node.check_write(offset, count)
        node.discard(offset, count)

    try:
        session.call(request)
    except OSError as error:
        raise CommandError(f"discard failed: {describe(error)}") from None
    watch.stop()
    if "q" not in arguments:
        watch.report("discard", offset, count, machine="C" in arguments)


def _allocated(session: Session, offset: int, length: int) -> tuple[bool, int]:
    """Return whether this layer has what is at `offset`, and for how many bytes that is so; 0 behind the end."""

    def request(node: Node) -> tuple[bool, int]:
        there = min(length, node.size - offset)
        if there <= 0:
            return False, 0
        extent = node.block_status(offset, there)
        return extent.allocated, extent.length

    return cast(tuple[bool, int], session.call(request))


def _alloc(session: Session, arguments: Arguments) -> None:
    start = take_size(arguments.operands[0])
    count = take_size(arguments.operands[1]) if len(arguments.operands) > 1 else SECTOR
    found = done = 0
    while done < count:
        try:
            allocated, length = _allocated(session, start + done, count - done)
        except OSError as error:
            raise CommandError(f"is_allocated failed: {describe(error)}") from None
        if not length:
            count = done
        done += length
        found += length if allocated else 0
    session.out(f"{found}/{count} bytes allocated at offset {show_size(start)}\n")


def _map(session: Session, arguments: Arguments) -> None:
    del arguments
    offset, size = 0, session.node.size
    while offset < size:
        first, length = _run(session, offset, size)
        if not length:
            raise BlockError("Unexpected end of image")
        state = "    allocated" if first else "not allocated"
        session.out(
            f"{show_size(length)} (0x{length:x}) bytes {state} at offset {show_size(offset)} (0x{offset:x})\n",
        )
        offset += length


def _run(session: Session, offset: int, size: int) -> tuple[bool, int]:
    """Return whether this layer has what is at `offset`, and how long it stays so."""
    total = 0
    state = False
    while offset + total < size:
        try:
            allocated, length = _allocated(session, offset + total, size - offset - total)
        except OSError as error:
            raise BlockError(f"Failed to get allocation status: {describe(error)}") from None
        if not length or (total and allocated != state):
            break
        state = allocated
        total += length
    return state, total


COMMANDS = (
    Command("flush", _flush, "", "flush all in-core file state to disk", alias="f"),
    Command(
        "truncate",
        _truncate,
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
        alias="t",
        least=1,
        most=3,
        letters="m:",
        writes=True,
    ),
    Command("length", _length, "", "gets the length of the current file", alias="l"),
    Command("info", _info, "", "prints information about the current file", alias="i"),
    Command(
        "discard",
        _discard,
        "[-Cq] off len",
        "discards a number of bytes at a specified offset",
        alias="d",
        least=2,
        most=ANY,
        letters="Cq",
        operands=(2, 2),
        writes=True,
        details="""\
 Says that a part of the image is of no more use.  'discard 512 1k' gives back the kilobyte at offset 512.

 -C, -- statistics for programs: bytes,operations,time,bytes/s,operations/s
 -q, -- no statistics
""",
    ),
    Command("alloc", _alloc, "offset [count]", "checks if offset is allocated in the file", alias="a", least=1, most=2),
    Command("map", _map, "", "prints the allocated areas of a file"),
)
