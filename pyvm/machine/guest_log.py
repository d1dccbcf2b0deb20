"""The log's items about what guest code does, which the processors tell of while somebody wants to know.

What is written is laid out as in QEMU's log, for the scripts and eyes that know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyvm.cpu.registers import RegisterState
from pyvm.machine.dump.dumper import PhysicalMemory
from pyvm.monitor.hmp.disassembly import code_bits, instructions
from pyvm.monitor.hmp.registers import show
from pyvm.monitor.log_items import BLOCKS, CODE, FPU, GUEST_ERRORS, INTERRUPTS, REGISTERS

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc

_CR0_PE = 1
_EXCEPTION_PF = 14
_EXCEPTION_DF = 8
_CONTRIBUTORY = frozenset({0, 8, 10, 11, 12, 13, 14})
"""Exceptions on top of which another may become a double fault (Intel SDM volume 3, table 6-5)."""
_NOT_DELIVERING = 0xFFFFFFFF
_RSP, _RAX = 4, 0
_RUNNING = {"activity": "running", "nmi_pending": False, "init_pending": False, "sipi_vector": -1}


class GuestLog:
    """What the processors of one machine tell, as text; called on their thread with the machine lock held."""

    def __init__(self, pc: Pc) -> None:
        self._log = pc.traces.log
        self._ranges = pc.traces.ranges
        self._items = pc.traces.items
        self._physical = PhysicalMemory(pc.memory, pc.mmio)
        self._paging = RegisterState()
        """Says where code is and of what kind: all that is looked at of most blocks."""
        self._interrupts = 0

    def _wanted(self, address: int) -> bool:
        return self._ranges is None or any(first <= address <= last for first, last in self._ranges)

    def block_translated(self, vcpu: int, values: Sequence[int], registers: dict[str, Any]) -> None:
        """A block of guest code was translated: where it is, and how long."""
        address, size = values[0], values[4]
        if CODE not in self._items or not self._wanted(address):
            return
        state = self._paging
        state.cr0, state.cr3, state.cr4, state.efer = (registers[name] for name in ("cr0", "cr3", "cr4", "efer"))
        state.cs.flags = registers["cs"][3]
        code = self._physical.read_linear(state, address, size)
        lines = ["OBJD-T: unable to read memory\n"] if code is None else instructions(code, address, code_bits(state))
        self._log(f"----------------\nIN: \n{''.join(lines)}\n")

    def block_entered(self, vcpu: int, values: Sequence[int], registers: dict[str, Any] | None) -> None:
        """A block is entered; `values` are what is compared to find it, its length, and its translation's address."""
        address, base, flags, how, _, host = values
        if not self._wanted(address):
            return
        text = ""
        if BLOCKS in self._items:
            text = f"Trace {vcpu}: {host:#x} [{base:016x}/{address:016x}/{flags:08x}/{how:08x}] \n"
        if registers is not None:
            text += _show(registers, fpu=FPU in self._items)
        self._log(text)

    def interrupt_taken(self, vcpu: int, values: Sequence[int], registers: dict[str, Any]) -> None:
        """An interrupt or an exception is about to be delivered."""
        vector, error, software, request, delivering = values
        if request and vector != 2:
            self._log(f"Servicing hardware INT=0x{vector:02x}\n")
        elif not request and not software:
            before = delivering if delivering in _CONTRIBUTORY else _NOT_DELIVERING
            if vector != _EXCEPTION_DF:  # else nobody knows any more what was the second one
                self._log(f"check_exception old: {before:#x} new {vector:#x}\n")
        if not registers["cr0"] & _CR0_PE:
            return
        state = _state(registers)
        general = [int.from_bytes(state.gpr[start : start + 8], "little") for start in range(0, len(state.gpr), 8)]
        number, self._interrupts = self._interrupts, self._interrupts + 1
        text = (
            f"{number:6}: v={vector:02x} e={error:04x} i={software} cpl={state.ss.flags >> 13 & 3} "
            f"IP={state.cs.selector:04x}:{state.rip:016x} pc={state.cs.base + state.rip:016x} "
            f"SP={state.ss.selector:04x}:{general[_RSP]:016x}"
        )
        more = f"CR2={state.cr2:016x}" if vector == _EXCEPTION_PF else f"env->regs[R_EAX]={general[_RAX]:016x}"
        self._log(f"{text} {more}\n{_show(registers, fpu=False)}")


def _state(registers: dict[str, Any]) -> RegisterState:
    plain = {name: value for name, value in registers.items() if not name.startswith("cc_")}
    return RegisterState.from_engine({**plain, **_RUNNING})


def _show(registers: dict[str, Any], *, fpu: bool) -> str:
    flags = registers["cc_src"], registers["cc_dst"], registers["cc_op"]
    return show(_state(registers), fpu=fpu, pending_flags=flags)


def follow(pc: Pc) -> None:
    """Have the processors tell what the log is to have from now on."""
    log, items = pc.traces.log, pc.traces.items

    def nothing_there(access: str, gpa: int, size: int) -> None:
        log(f"Invalid {access} at addr 0x{gpa:X}, size {size}, region '(null)', reason: rejected\n")

    pc.cpus.on_nothing = nothing_there if GUEST_ERRORS in items else None
    registers = REGISTERS in items
    pc.cpus.tell(
        GuestLog(pc),
        translations=CODE in items,
        blocks=registers or BLOCKS in items,
        registers=registers,
        interrupts=INTERRUPTS in items,
    )
