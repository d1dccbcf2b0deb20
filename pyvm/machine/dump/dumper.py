"""Dumps of guest memory into files: `dump-guest-memory`, and plain copies of memory ranges.

A dump stops the guest, and is written by a thread of its own, so that monitors and the host's side of devices go on.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from pyvm.cpu.paging import TooManyTablesError, mappings, translate
from pyvm.machine.dump.file import Dump, DumpWriteError, MemoryRun, Segment, write_elf, write_kdump
from pyvm.machine.dump.notes import long_mode, notes
from pyvm.memory import GuestMemoryError
from pyvm.monitor.errors import QmpError
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState
    from pyvm.memory import DeviceRam, GuestMemory, IoSpace

FORMATS = ("elf", "kdump-zlib", "win-dmp")
"""Formats that can be asked for; the last is for guests that left a note that none of pyvm's devices takes."""
PIECE = 1 << 20
"""Bytes of memory that are written at once."""
_PIPE_PIECE = 4096
"""What a pipe that says it has room takes without making anybody wait."""
_POLL_MS = 100
_NO_NOTE = "win-dump: invalid vmcoreinfo note size"


class DumpStatus(StrEnum):
    """How the last dump fares, as `query-dump` says it."""

    NONE = "none"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class DumpRequest:
    """What is to be dumped, and into which open descriptor."""

    fd: int
    format: str = "elf"
    paging: bool = False
    begin: int | None = None
    length: int | None = None


class DumpTarget(Protocol):
    """A machine, as far as it can be dumped."""

    memory: GuestMemory
    mmio: IoSpace

    @property
    def run_state(self) -> RunState:
        """The present run state."""

    def register_states(self) -> list[RegisterState]:
        """Return the registers of all vCPUs."""

    def vm_stop(self, state: RunState) -> None:
        """Stop the guest."""

    def vm_start(self) -> None:
        """Let the guest run."""


class _CancelledError(Exception):
    """The machine ends; nobody needs the rest of the dump."""


def memory_runs(memory: GuestMemory, mmio: IoSpace) -> list[MemoryRun]:
    """Return all memory that the guest sees, its own and that on devices, in order of address."""

    def own(gpa: int) -> Callable[[int, int], memoryview]:
        return lambda offset, length: memory.view(gpa + offset, length)

    def device(ram: DeviceRam) -> Callable[[int, int], memoryview]:
        return lambda offset, length: ram.view[offset : offset + length]

    runs = [MemoryRun(block.gpa, block.size, own(block.gpa)) for block in memory.all_blocks]
    runs += [MemoryRun(region.base, region.size, device(region.ram)) for region in mmio.regions() if region.ram]
    return sorted(runs, key=lambda run: run.gpa)


def _clipped(runs: Sequence[MemoryRun], begin: int, length: int) -> Iterator[MemoryRun]:
    for run in runs:
        first, last = max(run.gpa, begin), min(run.end, begin + length)
        if first < last:
            yield MemoryRun(first, last - first, _shifted(run.view, first - run.gpa))


def _shifted(view: Callable[[int, int], memoryview], by: int) -> Callable[[int, int], memoryview]:
    return lambda offset, length: view(offset + by, length)


def _linear_segments(
    memory: GuestMemory, states: Sequence[RegisterState], runs: Sequence[MemoryRun]
) -> Sequence[Segment]:
    """Return the segments of all linear addresses that stand for memory; none where no vCPU uses paging."""
    found: dict[tuple[int, int, int], None] = {}
    for state in states:
        for mapping in mappings(memory, state) or ():
            found[mapping.linear, mapping.physical, mapping.length] = None
    segments = []
    for linear, physical, length in sorted(found):
        offset = 0
        for run in runs:
            first, last = max(run.gpa, physical), min(run.end, physical + length)
            if first < last:
                segments.append(Segment(linear + first - physical, first, last - first, offset + first - run.gpa))
            offset += run.length
    return segments


class Dumper:
    """Dumps one machine, one dump at a time."""

    def __init__(self, target: DumpTarget, emit: Callable[[str, dict[str, Any]], None]) -> None:
        """`emit` sends events."""
        self.status = DumpStatus.NONE
        self.completed = 0
        self.total = 0
        self._target = target
        self._emit = emit
        self._cancelled = False
        self._idle = threading.Event()
        self._idle.set()

    @property
    def active(self) -> bool:
        """Whether a dump is under way."""
        return self.status is DumpStatus.ACTIVE

    def query(self) -> dict[str, Any]:
        """Return a DumpQueryResult."""
        return {"status": self.status.value, "completed": self.completed, "total": self.total}

    def begin(self, request: DumpRequest) -> Callable[[], Any]:
        """Stop the guest and prepare; return the coroutine function that does the rest.

        Raises QmpError where there is nothing to dump; then the guest goes on.  The descriptor is closed in any case.
        """
        target = self._target
        resume = target.run_state is RunState.RUNNING
        if resume:
            target.vm_stop(RunState.SAVE_VM)
        try:
            states = target.register_states()
            dump = self._prepare(request, states)
        except QmpError:
            os.close(request.fd)
            if resume:
                target.vm_start()
            raise
        self.status, self.completed, self.total = DumpStatus.ACTIVE, 0, dump.total

        async def rest() -> None:
            await self._carry_out(request, dump, states, resume)

        return rest

    def _prepare(self, request: DumpRequest, states: Sequence[RegisterState]) -> Dump:
        target = self._target
        runs = memory_runs(target.memory, target.mmio)
        if request.begin is not None and request.length is not None:
            if request.length <= 0:
                raise QmpError("Invalid parameter 'length'")
            if request.begin < 0:
                raise QmpError("Invalid parameter 'begin'")
            runs = list(_clipped(runs, request.begin, request.length))
        if not runs:
            raise QmpError("dump: no guest memory to dump")
        return Dump(runs, notes(states), len(states), long_mode(states))

    async def _carry_out(self, request: DumpRequest, dump: Dump, states: Sequence[RegisterState], resume: bool) -> None:
        """Write the dump, tell of its end, and let the guest go on; raises QmpError where it failed."""
        self._idle.clear()
        loop = asyncio.get_running_loop()
        problem = await loop.run_in_executor(None, self._write, request, dump, states)
        self.status = DumpStatus.COMPLETED if problem is None else DumpStatus.FAILED
        data: dict[str, Any] = {"result": self.query()}
        if problem is not None:
            data["error"] = problem
        self._emit("DUMP_COMPLETED", data)
        if resume:
            self._target.vm_start()
        if problem is not None:
            raise QmpError(problem)

    # ---- In the thread

    def _write(self, request: DumpRequest, dump: Dump, states: Sequence[RegisterState]) -> str | None:
        """Write the file; return what went wrong.  Runs without the machine lock: the guest is stopped."""
        try:
            write = _Writer(request.fd, lambda: self._cancelled).write
            if request.format == "win-dmp":
                return _NO_NOTE
            if request.format == "kdump-zlib":
                write_kdump(dump, write, self._advance)
            else:
                if request.paging:
                    dump.segments = _linear_segments(self._target.memory, states, dump.runs)
                write_elf(dump, write, self._advance, PIECE)
        except (DumpWriteError, TooManyTablesError) as error:
            return str(error)
        except _CancelledError:
            return "dump: cancelled"
        finally:
            os.close(request.fd)
            self._idle.set()
        return None

    def _advance(self, length: int) -> None:
        self.completed += length

    def close(self) -> None:
        """Give up what is being written, before the guest's memory goes."""
        self._cancelled = True
        self._idle.wait()


class _Writer:
    """Writes to a descriptor; can be interrupted while whoever reads takes his time."""

    def __init__(self, fd: int, cancelled: Callable[[], bool]) -> None:
        self._fd = fd
        self._cancelled = cancelled
        self._poll: select.poll | None = None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    def write(self, data: bytes | memoryview, what: str) -> None:
        """Write all of `data`, which is called `what`; raises DumpWriteError."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._some(view) :]
        except OSError as error:
            text = "dump: failed to save memory" if what == "memory" else f"dump: failed to write {what}"
            raise DumpWriteError(f"{text}: {error.strerror}") from None
        finally:
            view.release()

    def _some(self, view: memoryview) -> int:
        if self._cancelled():
            raise _CancelledError
        if self._poll is None:
            return os.write(self._fd, view[:PIECE])
        if not self._poll.poll(_POLL_MS):
            return 0
        try:
            return os.write(self._fd, view[:_PIPE_PIECE])
        except BlockingIOError:
            return 0


# ---- Plain copies


class PhysicalMemory:
    """The physical address space as `pmemsave` reads it: what nobody has is zeros."""

    def __init__(self, memory: GuestMemory, mmio: IoSpace) -> None:
        self._memory = memory
        self._mmio = mmio

    def read(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes at `gpa`."""
        data = bytearray(length)
        position = 0
        for run in self._runs(gpa, length):
            start = run.gpa - gpa
            position = max(position, start)
            data[start : start + run.length] = run.view(0, run.length)
        self._read_registers(gpa, data)
        return bytes(data)

    def _runs(self, gpa: int, length: int) -> Iterator[MemoryRun]:
        return _clipped(memory_runs(self._memory, self._mmio), gpa, length)

    def _read_registers(self, gpa: int, data: bytearray) -> None:
        for region in self._mmio.regions():
            first, last = max(region.base, gpa), min(region.base + region.size, gpa + len(data))
            if region.ram is None and first < last:
                for address in range(first & -4, last, 4):
                    word = region.load(address - region.base, 4).to_bytes(4, "little")
                    low, high = max(address, first), min(address + 4, last)
                    data[low - gpa : high - gpa] = word[low - address : high - address]

    def has(self, gpa: int, length: int) -> bool:
        """Return whether there is something at each of these addresses."""
        covered = sum(run.length for run in self._runs(gpa, length))
        for region in self._mmio.regions():
            if region.ram is None:
                covered += max(min(region.base + region.size, gpa + length) - max(region.base, gpa), 0)
        return covered == length

    def read_linear(self, registers: RegisterState, linear: int, length: int) -> bytes | None:
        """Return `length` bytes, which do not cross a page, at a linear address; None where nothing is mapped."""
        try:
            gpa = translate(self._memory, registers, linear)
        except GuestMemoryError:
            return None
        return self.read(gpa, length) if gpa is not None and self.has(gpa, length) else None
