"""Commands that write guest memory to files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState
    from pyvm.machine.dump.dumper import Dumper, PhysicalMemory
    from pyvm.memory import GuestMemory, IoSpace

COMMANDS = CommandTable()

_PAGE = 4096
_STEP = 1 << 20
"""Bytes that are copied before others get their turn."""
_UINT64 = 1 << 64


@runtime_checkable
class DumpOwner(Protocol):
    """A machine whose memory can be written to files."""

    dumper: Dumper
    memory: GuestMemory
    mmio: IoSpace

    def register_states(self) -> list[RegisterState]:
        """Return the registers of all vCPUs."""


def _owner(context: Context) -> DumpOwner:
    machine = context.machine
    if not isinstance(machine, DumpOwner):
        raise unsupported()
    return machine


def open_file(context: Context, path: str, mode: int = 0o666) -> int:
    """Open a file to write to it; raises QmpError."""
    from pyvm.monitor.dispatcher import FdSetOwner

    machine = context.machine
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        if isinstance(machine, FdSetOwner):
            return machine.fdsets.open(path, flags, mode)
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "Invalid argument"
        raise QmpError(f"Could not open '{path}': {reason}") from None


# ---- Dumps


def _check_format(context: Context, dumper: Dumper, form: str, paging: bool, ranged: tuple[bool, bool]) -> None:
    if context.machine.run_state is RunState.INMIGRATE:
        raise QmpError("Dump not allowed during incoming migration.")
    if dumper.active:
        raise QmpError("There is a dump in process, please wait.")
    if form.startswith("kdump") and (paging or any(ranged)):
        raise QmpError("kdump-compressed format doesn't support paging or filter")
    if ranged == (True, False):
        raise QmpError("Parameter 'length' is missing")
    if ranged == (False, True):
        raise QmpError("Parameter 'begin' is missing")
    from pyvm.machine.dump.dumper import FORMATS

    if form not in FORMATS:
        raise QmpError(f"{form} is not available now")


def _open_protocol(context: Context, protocol: str) -> int:
    if protocol.startswith("fd:"):
        return context.session.named_fds.require(protocol.removeprefix("fd:"))
    if protocol.startswith("file:"):
        return open_file(context, protocol.removeprefix("file:"), 0o400)
    raise QmpError("Invalid parameter 'protocol'")


@COMMANDS.command("dump-guest-memory")
async def dump_guest_memory(
    context: Context,
    paging: bool,
    protocol: str,
    detach: bool | None = None,
    begin: int | None = None,
    length: int | None = None,
    format: str | None = None,  # noqa: A002 - the name that the schema gives it
) -> None:
    """Write a core file of the guest, and wait for the end unless `detach` is set."""
    from pyvm.machine.dump.dumper import DumpRequest

    dumper = _owner(context).dumper
    form = format or "elf"
    _check_format(context, dumper, form, paging, (begin is not None, length is not None))
    fd = _open_protocol(context, protocol)
    rest: Coroutine[Any, Any, None] = dumper.begin(DumpRequest(fd, form, paging, begin, length))()
    if detach:
        context.spawn(_quietly(rest))
    else:
        await rest


async def _quietly(dump: Coroutine[Any, Any, None]) -> None:
    """Carry out a dump for whose end nobody waits: an event tells of it."""
    try:
        await dump
    except QmpError:
        pass


@COMMANDS.command("query-dump")
def query_dump(context: Context) -> dict[str, Any]:
    """Return how the last dump fares."""
    return _owner(context).dumper.query()


@COMMANDS.command("query-dump-guest-memory-capability")
def query_dump_guest_memory_capability(context: Context) -> dict[str, Any]:
    """Return the formats that can be asked for."""
    from pyvm.machine.dump.dumper import FORMATS

    return {"formats": list(FORMATS)}


# ---- Copies


def _physical(context: Context) -> PhysicalMemory:
    from pyvm.machine.dump.dumper import PhysicalMemory

    owner = _owner(context)
    return PhysicalMemory(owner.memory, owner.mmio)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


async def _copy(context: Context, filename: str, pieces: Iterator[bytes]) -> None:
    """Write pieces to a file in another thread; each is read when the one before is written."""
    fd = open_file(context, filename)
    loop = asyncio.get_running_loop()
    try:
        for data in pieces:
            try:
                await loop.run_in_executor(None, _write_all, fd, data)
            except OSError:
                raise QmpError("An IO error has occurred") from None
    finally:
        os.close(fd)


def _check_size(size: int) -> None:
    if size < 0:
        raise QmpError("Invalid parameter 'size'")


@COMMANDS.command("pmemsave")
async def pmemsave(context: Context, val: int, size: int, filename: str) -> None:
    """Copy memory at a physical address to a file."""
    _check_size(size)
    physical = _physical(context)

    def pieces() -> Iterator[bytes]:
        for offset in range(0, size, _STEP):
            yield physical.read((val + offset) % _UINT64, min(_STEP, size - offset))

    await _copy(context, filename, pieces())


@COMMANDS.command("memsave")
async def memsave(context: Context, val: int, size: int, filename: str, cpu_index: int | None = None) -> None:
    """Copy memory at a linear address of a vCPU to a file."""
    states = _owner(context).register_states()
    index = cpu_index or 0
    if not 0 <= index < len(states):
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    _check_size(size)
    read = _physical(context).read_linear

    def pieces() -> Iterator[bytes]:
        linear, end = val, val + size
        while linear < end:
            stop = min(end, linear + _STEP)
            yield b"".join(_pages(lambda at, length: read(states[index], at, length), linear, stop, (val, size)))
            linear = stop

    await _copy(context, filename, pieces())


def _pages(read: Callable[[int, int], bytes | None], linear: int, stop: int, asked: tuple[int, int]) -> Iterator[bytes]:
    while linear < stop:
        length = min(stop, (linear | _PAGE - 1) + 1) - linear
        data = read(linear % _UINT64, length)
        if data is None:
            raise QmpError(f"Invalid addr 0x{asked[0] % _UINT64:016x}/size {asked[1]} specified")
        yield data
        linear += length
