"""The notes of a memory dump: the registers of each vCPU.

`CORE` notes are what Linux writes for a thread (<sys/procfs.h>, `struct elf_prstatus`), so that debuggers find the
general registers.  A second note for each vCPU, named `QEMU`, has segments and control registers, too; crash(8) and
gdb's scripts for kernels know it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState, SegmentState

NT_PRSTATUS = 1
EFER_LMA = 1 << 10

_NOTE = struct.Struct("<III")
_PRSTATUS_64 = struct.Struct("<32xI76x27Q8x")
_PRSTATUS_32 = struct.Struct("<24xI44x17I4x")
_SEGMENT = struct.Struct("<IIIIQ")
_CPU_STATE_VERSION = 1
_CPU_STATE_SIZE = 440
_CPU_STATE = struct.Struct("<II18Q240s6Q")

_RAX, _RCX, _RDX, _RBX, _RSP, _RBP, _RSI, _RDI = range(8)
_STATE_ORDER = (_RAX, _RBX, _RCX, _RDX, _RSI, _RDI, _RSP, _RBP, *range(8, 16))
_STATE_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")


def long_mode(states: Sequence[RegisterState]) -> bool:
    """Return whether the guest is a 64-bit one: the boot processor is in long mode."""
    return bool(states and states[0].efer & EFER_LMA)


def _gprs(state: RegisterState) -> tuple[int, ...]:
    return struct.unpack("<16Q", state.gpr)


def _prstatus_64(state: RegisterState, pid: int) -> bytes:
    gpr = _gprs(state)
    order = (15, 14, 13, 12, _RBP, _RBX, 11, 10, 9, 8, _RAX, _RCX, _RDX, _RSI, _RDI)
    segments = (state.ds.selector, state.es.selector, state.fs.selector, state.gs.selector)
    return _PRSTATUS_64.pack(
        pid,
        *(gpr[index] for index in order),
        0,
        state.rip,
        state.cs.selector,
        state.rflags,
        gpr[_RSP],
        state.ss.selector,
        state.fs.base,
        state.gs.base,
        *segments,
    )


def _prstatus_32(state: RegisterState, pid: int) -> bytes:
    gpr = _gprs(state)
    values = (
        *(gpr[index] for index in (_RBX, _RCX, _RDX, _RSI, _RDI, _RBP, _RAX)),
        *(segment.selector for segment in (state.ds, state.es, state.fs, state.gs)),
        0,
        state.rip,
        state.cs.selector,
        state.rflags,
        gpr[_RSP],
        state.ss.selector,
    )
    return _PRSTATUS_32.pack(pid, *(value & 0xFFFF_FFFF for value in values))


def _segment(segment: SegmentState) -> bytes:
    return _SEGMENT.pack(segment.selector, segment.limit, segment.flags, 0, segment.base)


def _cpu_state(state: RegisterState) -> bytes:
    gpr = _gprs(state)
    return _CPU_STATE.pack(
        _CPU_STATE_VERSION,
        _CPU_STATE_SIZE,
        *(gpr[index] for index in _STATE_ORDER),
        state.rip,
        state.rflags,
        b"".join(_segment(getattr(state, name)) for name in _STATE_SEGMENTS),
        *(state.cr0, 0, state.cr2, state.cr3, state.cr4),
        state.kernel_gs_base,
    )


def _note(name: bytes, kind: int, content: bytes) -> bytes:
    padded = (name + b"\0").ljust(8, b"\0")
    return _NOTE.pack(len(name) + 1, len(content), kind) + padded + content


def notes(states: Sequence[RegisterState]) -> bytes:
    """Return the notes of all vCPUs; they are numbered from 1, like threads."""
    prstatus = _prstatus_64 if long_mode(states) else _prstatus_32
    core = [_note(b"CORE", NT_PRSTATUS, prstatus(state, index + 1)) for index, state in enumerate(states)]
    return b"".join((*core, *(_note(b"QEMU", 0, _cpu_state(state)) for state in states)))
