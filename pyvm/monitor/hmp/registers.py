"""The registers of a vCPU as text, laid out as QEMU's `info registers`, which scripts read.

Names and bits: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3A, sections 2.3 (RFLAGS), 2.5
(control registers), 3.4.5 (segment descriptors) and 3.5 (types of system descriptors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState, SegmentState

GPR_NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))
"""The general registers in the order of their numbers."""

_SHOWN_64 = (*("RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP"), *GPR_NAMES[8:])
_SHOWN_32 = _SHOWN_64[:8]
_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR")
_FLAGS = ((10, "D"), (11, "O"), (7, "S"), (6, "Z"), (4, "A"), (2, "P"), (0, "C"))

_CR0_PE = 1
_EFER_LMA = 1 << 10
_RFLAGS_VM = 1 << 17
_A20_SHIFT = 20

# The second word of a descriptor.
_TYPE_SHIFT = 8
_ACCESSED = 1 << 8
_READ_WRITE = 1 << 9
_CONFORMING_OR_DOWN = 1 << 10
_CODE = 1 << 11
_NOT_SYSTEM = 1 << 12
_DPL_SHIFT = 13
_PRESENT = 1 << 15
_LONG = 1 << 21
_BIG = 1 << 22

_SHOWN_FLAGS = 0x00FFFF00
"""The rest of the word is a part of the base address."""

_SYSTEM_TYPES_32 = (
    *("Reserved", "TSS16-avl", "LDT", "TSS16-busy", "CALL16", "TASK", "INT16", "TRAP16"),
    *("Reserved", "TSS32-avl", "Reserved", "TSS32-busy", "CALL32", "Reserved", "INT32", "TRAP32"),
)
_SYSTEM_TYPES_64 = (
    *("<hiword>", "Reserved", "LDT", *["Reserved"] * 5),
    *("Reserved", "TSS64-avl", "Reserved", "TSS64-busy", "CALL64", "Reserved", "INT64", "TRAP64"),
)

_OPERATIONS = (
    *("DYNAMIC", "EFLAGS"),
    *(
        name + size
        for name in ("MUL", "ADD", "ADC", "SUB", "SBB", "LOGIC", "INC", "DEC", "SHL", "SAR", "BMILG")
        for size in "BWLQ"
    ),
    *("ADCX", "ADOX", "ADCOX", "CLR", "POPCNT"),
)
"""From what the translator works out flags, by its numbers."""

_FPU_TOP_SHIFT = 11
_FPU_TOP_MASK = 7 << _FPU_TOP_SHIFT
_FPU_STRIDE = 16
_XMM_SIZE = 16


def _letters(value: int, *bits: tuple[int, str]) -> str:
    return "".join(letter if value & mask else "-" for mask, letter in bits)


def _descriptor(flags: int, long_mode: bool) -> str:
    """Return what the flags of a present segment mean."""
    dpl = f" DPL={flags >> _DPL_SHIFT & 3} "
    accessed = (_ACCESSED, "A")
    if not flags & _NOT_SYSTEM:
        types = _SYSTEM_TYPES_64 if long_mode else _SYSTEM_TYPES_32
        return dpl + types[flags >> _TYPE_SHIFT & 15]
    if flags & _CODE:
        size = "CS64" if flags & _LONG else "CS32" if flags & _BIG else "CS16"
        return f"{dpl}{size} [{_letters(flags, (_CONFORMING_OR_DOWN, 'C'), (_READ_WRITE, 'R'), accessed)}]"
    size = "DS  " if flags & _BIG or long_mode else "DS16"
    return f"{dpl}{size} [{_letters(flags, (_CONFORMING_OR_DOWN, 'E'), (_READ_WRITE, 'W'), accessed)}]"


def _segment(name: str, segment: SegmentState, *, wide: bool, protected: bool, long_mode: bool) -> str:
    base = f"{segment.base:016x}" if wide else f"{segment.base & 0xFFFFFFFF:08x}"
    line = f"{name:<3}={segment.selector:04x} {base} {segment.limit:08x} {segment.flags & _SHOWN_FLAGS:08x}"
    if protected and segment.flags & _PRESENT:
        line += _descriptor(segment.flags, long_mode)
    return line


def _pairs(words: list[str]) -> list[str]:
    return [" ".join(words[start : start + 2]) for start in range(0, len(words), 2)]


def _general(state: RegisterState, wide: bool) -> list[str]:
    values = [int.from_bytes(state.gpr[start : start + 8], "little") for start in range(0, len(state.gpr), 8)]
    by_name = dict(zip(GPR_NAMES, values, strict=True))
    if wide:
        words = [f"{name:<3}={by_name[name]:016x}" for name in _SHOWN_64]
    else:
        words = [f"E{name[1:]}={by_name[name] & 0xFFFFFFFF:08x}" for name in _SHOWN_32]
    return [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)]


def _privilege(state: RegisterState) -> int:
    """Return the current privilege level."""
    if not state.cr0 & _CR0_PE:
        return 0
    return 3 if state.rflags & _RFLAGS_VM else state.ss.flags >> _DPL_SHIFT & 3


def _instruction_pointer(state: RegisterState, wide: bool) -> str:
    pointer = f"RIP={state.rip:016x} RFL" if wide else f"EIP={state.rip & 0xFFFFFFFF:08x} EFL"
    letters = _letters(state.rflags, *((1 << bit, letter) for bit, letter in _FLAGS))
    shadow, halted = int(state.interrupt_shadow), int(state.activity != "running")
    return (
        f"{pointer}={state.rflags & 0xFFFFFFFF:08x} [{letters}] CPL={_privilege(state)} II={shadow} "
        f"A20={state.a20_mask >> _A20_SHIFT & 1} SMM=0 HLT={halted}"
    )


def _flag_source(source: int, result: int, operation: int, wide: bool) -> str:
    """Return from what flags are worked out when somebody looks at them."""
    digits = 16 if wide else 8
    mask = (1 << 4 * digits) - 1
    name = _OPERATIONS[operation] if operation < len(_OPERATIONS) else f"[{operation}]"
    return f"CCS={source & mask:0{digits}x} CCD={result & mask:0{digits}x} CCO={name}"


def _system(state: RegisterState, long_mode: bool, pending: list[str]) -> list[str]:
    digits = 16 if long_mode else 8
    mask = (1 << 4 * digits) - 1
    lines = [
        f"{name}=     {segment.base & mask:0{digits}x} {segment.limit:08x}"
        for name, segment in (("GDT", state.gdt), ("IDT", state.idt))
    ]
    debug = (state.dr0, state.dr1, state.dr2, state.dr3)
    return [
        *lines,
        f"CR0={state.cr0:08x} CR2={state.cr2 & mask:0{digits}x} CR3={state.cr3 & mask:0{digits}x} CR4={state.cr4:08x}",
        "".join(f"DR{number}={value:016x} " for number, value in enumerate(debug)),
        f"DR6={state.dr6:016x} DR7={state.dr7:016x}",
        *pending,
        f"EFER={state.efer:016x}",
    ]


def _fpu(state: RegisterState) -> list[str]:
    status = state.fpu_status & ~_FPU_TOP_MASK | state.fpu_top << _FPU_TOP_SHIFT
    used = sum(1 << number for number, empty in enumerate(state.fpu_tags) if not empty)
    registers = []
    for number in range(8):
        image = state.fpu_registers[_FPU_STRIDE * number :]
        mantissa, exponent = int.from_bytes(image[:8], "little"), int.from_bytes(image[8:10], "little")
        registers.append(f"FPR{number}={mantissa:016x} {exponent:04x}")
    return [
        f"FCW={state.fpu_control:04x} FSW={status:04x} [ST={state.fpu_top}] FTW={used:02x} MXCSR={state.mxcsr:08x}",
        *_pairs(registers),
    ]


def _xmm(state: RegisterState, count: int) -> list[str]:
    words = []
    for number in range(count):
        image = state.xmm[_XMM_SIZE * number : _XMM_SIZE * (number + 1)]
        low, high = int.from_bytes(image[:8], "little"), int.from_bytes(image[8:], "little")
        words.append(f"XMM{number:02}={high:016x} {low:016x}")
    return _pairs(words)


def show(state: RegisterState, *, fpu: bool = True, pending_flags: tuple[int, int, int] | None = None) -> str:
    """Return the registers as lines of text; 64-bit ones where the vCPU executes 64-bit code.

    Those of the FPU and SSE are left out without `fpu`.  `pending_flags` are operand, result and number of the
    operation that the translator keeps in the place of flags.
    """
    long_mode = bool(state.efer & _EFER_LMA)
    wide = long_mode and bool(state.cs.flags & _LONG)
    protected = bool(state.cr0 & _CR0_PE)
    segments = [
        _segment(name, getattr(state, name.lower()), wide=wide, protected=protected, long_mode=long_mode)
        for name in _SEGMENTS
    ]
    lines = [
        *_general(state, wide),
        _instruction_pointer(state, wide),
        *segments,
        *_system(state, long_mode, [] if pending_flags is None else [_flag_source(*pending_flags, wide)]),
    ]
    if fpu:
        lines += [*_fpu(state), *_xmm(state, 16 if wide else 8)]
    return "".join(f"{line}\n" for line in lines)
