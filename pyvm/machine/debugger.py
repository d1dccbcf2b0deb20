"""What a debugger may do to a machine: stop it, look at and change registers and memory, and say where it stops.

The machine's life goes on as for everybody else: the guest runs after RESUME, and stops with the run state ``debug``.
A debugger's breakpoints are the guest's linear addresses, whichever program has them; all vCPUs stop there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING

from pyvm.cpu.paging import translate
from pyvm.cpu.registers import RegisterState
from pyvm.cpu.vcpu import MAX_BREAKPOINTS, MAX_WATCHPOINTS, WATCH_READ, WATCH_WRITE, Pace
from pyvm.machine.dump.dumper import PhysicalMemory
from pyvm.monitor.errors import QmpError
from pyvm.records import record
from pyvm.runstate import RunState
from pyvm.state import uint

if TYPE_CHECKING:
    from pyvm.cpu.vcpu import DebugStop
    from pyvm.machine.pc import Pc
    from pyvm.runstate import RunStateListener

_ADDRESSES = 1 << 64
_NOT_TO_BE_STARTED = (
    *(RunState.INMIGRATE, RunState.SUSPENDED, RunState.FINISH_MIGRATE),
    *(RunState.SAVE_VM, RunState.RESTORE_VM, RunState.COLO),
)
"""In these states something else starts the guest."""
_PAGE = 4096


class DebugRegisters(RegisterState):
    """The registers of a vCPU, and the one that its local APIC has."""

    cr8: int = uint(4)


ReadMemory = Callable[[int, int], bytes | None]
"""Returns so many bytes at a linear address, None where there is nothing."""

_CR0_PE = 1
_RFLAGS_VM = 1 << 17
_REAL_MODE_LIMIT = 0xFFFF
_REAL_MODE_FLAGS = 0x9300
"""Present, for data, writable, accessed; also of code."""
_DPL_3 = 3 << 13
_TABLE_LOCAL = 1 << 2
_DESCRIPTOR_SIZE = 8
_GRANULARITY = 1 << 23


def load_segment(state: DebugRegisters, name: str, selector: int, read: ReadMemory) -> None:
    """Load a segment register as MOV does, without its checks; what the tables do not say stays as it is.

    Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, 3.4.5.
    """
    segment = getattr(state, name)
    segment.selector = selector
    virtual = bool(state.rflags & _RFLAGS_VM)
    if virtual or not state.cr0 & _CR0_PE:
        segment.base, segment.limit = selector << 4, _REAL_MODE_LIMIT
        segment.flags = _REAL_MODE_FLAGS | (_DPL_3 if virtual else 0)
        return
    table = state.ldt if selector & _TABLE_LOCAL else state.gdt
    place = selector & -_DESCRIPTOR_SIZE
    if not selector & ~3:
        segment.base = segment.limit = segment.flags = 0
        return
    found = read(table.base + place, _DESCRIPTOR_SIZE) if place + _DESCRIPTOR_SIZE - 1 <= table.limit else None
    if found is None:
        return
    low, high = int.from_bytes(found[:4], "little"), int.from_bytes(found[4:], "little")
    limit = low & 0xFFFF | high & 0xF0000
    segment.limit = limit << 12 | 0xFFF if high & _GRANULARITY else limit
    segment.base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF00_0000
    segment.flags = high


class Access(Enum):
    """Which accesses a watchpoint answers to."""

    WRITE = WATCH_WRITE
    READ = WATCH_READ
    ANY = WATCH_READ | WATCH_WRITE


@record(frozen=True)
class Watchpoint:
    """A range of linear addresses, and the accesses to it behind which the guest stops."""

    address: int
    length: int
    access: Access


class Debugger:
    """The debugger's side of one machine.  Everything but :meth:`listen` is for a machine that is stopped."""

    def __init__(self, pc: Pc) -> None:
        self.last_stop: DebugStop | None = None
        """Why the guest stopped last, where that was for the debugger."""
        self.last_watchpoint: Watchpoint | None = None
        """The watchpoint that it was."""
        self._pc = pc
        self._breakpoints: list[int] = []
        """Their addresses; an address may be there several times."""
        self._watchpoints: list[Watchpoint] = []
        self._paced: set[int] = set()
        """The vCPUs that do not just run."""
        pc.lifecycle.states.listen(self._state_changed)

    # ---- Running

    @property
    def run_state(self) -> RunState:
        """The present run state."""
        return self._pc.run_state

    def listen(self, listener: RunStateListener) -> Callable[[], None]:
        """Have each change of the run state told, the old state and the new one; the returned function ends that."""
        return self._pc.lifecycle.states.listen(listener)

    def vcpus(self) -> list[int]:
        """Return the indexes of all vCPUs."""
        return sorted(self._pc.cpus.present)

    def stop(self) -> None:
        """Stop a guest that runs, as `stop` does."""
        self._pc.vm_stop(RunState.PAUSED)

    def resume(self, paces: Mapping[int, Pace], *, interrupts: bool = False) -> None:
        """Let the guest run, each vCPU at its pace, those that are not named not at all.

        A step enters an interrupt that waits only where `interrupts` is set.  Raises
        :class:`pyvm.monitor.errors.QmpError` where the machine cannot run.
        """
        self._check_may_run()
        self.last_stop = None
        for index in self.vcpus():
            pace = paces.get(index, Pace.HELD)
            self._pc.cpus.set_pace(index, pace, interrupts=interrupts)
            if pace is not Pace.FREE:
                self._paced.add(index)
        try:
            self._pc.vm_start()
        finally:
            if not self._pc.lifecycle.states.running:
                self._free_all()

    def _check_may_run(self) -> None:
        if self._pc.dump_in_progress:
            raise QmpError("There is a dump in process, please wait.")
        if self._pc.needs_reset:
            raise QmpError("Resetting the Virtual Machine is required")
        if self.run_state in _NOT_TO_BE_STARTED:
            raise QmpError(f"The guest cannot run in state {self.run_state}")

    def stopped(self, stop: DebugStop) -> None:
        """Guest code has come to where it is to stop."""
        self.last_stop = stop
        if stop.reason == "watchpoint":
            self.last_watchpoint = self._watchpoints[stop.watchpoint]
        self._pc.lifecycle.request_debug_stop()

    def _state_changed(self, old: RunState, new: RunState) -> None:
        if old is RunState.RUNNING:
            self._free_all()
        elif new is RunState.RUNNING and not self._paced:
            self.last_stop = None

    def _free_all(self) -> None:
        for index in self._paced:
            self._pc.cpus.set_pace(index, Pace.FREE)
        self._paced.clear()

    @property
    def exit_status(self) -> int:
        """The process's exit status, once it is about to end."""
        return self._pc.lifecycle.exit_status

    def end_machine(self) -> None:
        """End the process, as one that a debugger kills: nobody is told."""
        self._pc.lifecycle.end()

    # ---- Where the guest stops

    def add_breakpoint(self, address: int) -> bool:
        """Have the guest stop in front of an instruction; return whether there was room for another."""
        if len(self._breakpoints) == MAX_BREAKPOINTS:
            return False
        self._breakpoints.append(address)
        self._install_breakpoints()
        return True

    def remove_breakpoint(self, address: int) -> bool:
        """Take one breakpoint at an address away; return whether there was one."""
        if address not in self._breakpoints:
            return False
        self._breakpoints.remove(address)
        self._install_breakpoints()
        return True

    def _install_breakpoints(self) -> None:
        self._pc.cpus.set_breakpoints(sorted(set(self._breakpoints)))

    def add_watchpoint(self, watchpoint: Watchpoint) -> bool:
        """Have the guest stop behind accesses to a range; return whether that is one, and there was room."""
        inside = 0 < watchpoint.length <= _ADDRESSES - watchpoint.address
        if not inside or len(self._watchpoints) == MAX_WATCHPOINTS:
            return False
        self._watchpoints.append(watchpoint)
        self._install_watchpoints()
        return True

    def remove_watchpoint(self, watchpoint: Watchpoint) -> bool:
        """Take one such watchpoint away; return whether there was one."""
        if watchpoint not in self._watchpoints:
            return False
        self._watchpoints.remove(watchpoint)
        self._install_watchpoints()
        return True

    def _install_watchpoints(self) -> None:
        ranges = [(each.address, each.length, each.access.value) for each in self._watchpoints]
        self._pc.cpus.set_watchpoints(ranges)

    def clear(self) -> None:
        """Take all breakpoints and watchpoints away."""
        if self._breakpoints:
            self._breakpoints.clear()
            self._install_breakpoints()
        if self._watchpoints:
            self._watchpoints.clear()
            self._install_watchpoints()

    # ---- Registers and memory

    def registers(self, index: int) -> DebugRegisters:
        """Return the registers of a vCPU."""
        values = self._pc.cpus.registers(index)
        lapic = self._pc.board.lapics.get(index)
        return DebugRegisters.from_engine({**values, "cr8": 0 if lapic is None else lapic.read_cr8()})

    def set_registers(self, index: int, state: DebugRegisters) -> None:
        """Change the registers of a vCPU.  Raises :class:`pyvm.state.StateError` where a vCPU cannot have these."""
        state.check()
        self._pc.cpus.set_registers(index, state.to_engine())
        lapic = self._pc.board.lapics.get(index)
        if lapic is not None:
            lapic.write_cr8(state.cr8)

    def is_halted(self, index: int) -> bool:
        """Return whether a vCPU waits for an interrupt or for its start."""
        activity: str = self._pc.cpus.registers(index)["activity"]
        return activity != "running"

    def read(self, registers: RegisterState | None, address: int, length: int) -> bytes | None:
        """Return memory at a linear address as `registers` have it mapped, or at a physical one where they are None.

        None where there is nothing at one of the addresses.
        """
        memory = PhysicalMemory(self._pc.memory, self._pc.mmio)
        data = bytearray()
        for gpa, run in self._runs(registers, address, length):
            if gpa is None or not memory.has(gpa, run):
                return None
            data += memory.read(gpa, run)
        return bytes(data)

    def write(self, registers: RegisterState | None, address: int, data: bytes) -> bool:
        """Write memory at an address as :meth:`read` has it; return whether there is something at all of it.

        What is read-only for the guest is written as well; registers of devices are written in pieces of up to 4 bytes.
        """
        runs = list(self._runs(registers, address, len(data)))
        memory = PhysicalMemory(self._pc.memory, self._pc.mmio)
        if any(gpa is None or not memory.has(gpa, run) for gpa, run in runs):
            return False
        position = 0
        for gpa, run in runs:
            assert gpa is not None
            self._write_physical(gpa, data[position : position + run])
            position += run
        return True

    def _runs(self, registers: RegisterState | None, address: int, length: int) -> list[tuple[int | None, int]]:
        """Split a range at the ends of pages; return physical addresses, None where there is none, and lengths."""
        runs: list[tuple[int | None, int]] = []
        while length:
            run = min(length, _PAGE - address % _PAGE)
            address %= _ADDRESSES
            runs.append((address if registers is None else translate(self._pc.memory, registers, address), run))
            address, length = address + run, length - run
        return runs

    def _write_physical(self, gpa: int, data: bytes) -> None:
        if self._pc.mmio.find(gpa) is None:
            self._pc.memory.write(gpa, data)
        else:
            self._write_devices(gpa, data)

    def _write_devices(self, gpa: int, data: bytes) -> None:
        position = 0
        while position < len(data):
            size = 4 if len(data) - position >= 4 else 1
            self._pc.mmio.write(gpa + position, size, int.from_bytes(data[position : position + size], "little"))
            position += size
