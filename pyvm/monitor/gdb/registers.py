"""The registers that a debugger sees: their order and sizes, what GDB is told of them, and how they are read and set.

The order is that of QEMU's stub, which debuggers without a description rely on; the names are those that GDB's feature
``org.gnu.gdb.i386.core`` knows (GDB manual, appendix G.5).  Bits: Intel 64 and IA-32 Architectures Software Developer's
Manual, volume 1, 3.4.3 (RFLAGS), 8.1 (x87) and 10.2.3 (MXCSR), and volume 3A, 2.2.1 (EFER) and 2.5 (control registers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyvm.machine.debugger import DebugRegisters, ReadMemory, load_segment

ARCHITECTURE = "i386:x86-64"
MAIN_ANNEX, REGISTERS_ANNEX = "target.xml", "x86-64.xml"

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
_ENCODING = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr"}

_FLAGS = {
    "eflags": "CF:0 :1 PF:2 AF:4 ZF:6 SF:7 TF:8 IF:9 DF:10 OF:11 IOPL:12-13 NT:14 RF:16 VM:17 AC:18 VIF:19 "
    "VIP:20 ID:21",
    "cr0": "PE:0 MP:1 EM:2 TS:3 ET:4 NE:5 WP:16 AM:18 NW:29 CD:30 PG:31",
    "cr3": "PCID:0-11 PDBR:12-63",
    "cr4": "VME:0 PVI:1 TSD:2 DE:3 PSE:4 PAE:5 MCE:6 PGE:7 PCE:8 OSFXSR:9 OSXMMEXCPT:10 UMIP:11 LA57:12 VMXE:13 "
    "SMXE:14 FSGSBASE:16 PCIDE:17 OSXSAVE:18 SMEP:20 SMAP:21 PKE:22",
    "efer": "SCE:0 LME:8 LMA:10 NXE:11 SVME:12 LMSLE:13 FFXSR:14 TCE:15",
    "mxcsr": "IE:0 DE:1 ZE:2 OE:3 UE:4 PE:5 DAZ:6 IM:7 DM:8 ZM:9 OM:10 UM:11 PM:12 RC:13-14 FZ:15",
}
"""The bits of registers that GDB shows by name."""
_FLAGS_SIZES = {"eflags": 4, "mxcsr": 4}

_VECTORS = (
    ("v4_float", "ieee_single", 4),
    ("v2_double", "ieee_double", 2),
    ("v16_int8", "int8", 16),
    ("v8_int16", "int16", 8),
    ("v4_int32", "int32", 4),
    ("v2_int64", "int64", 2),
)

_EFER_LMA = 1 << 10
_CODE_LONG = 1 << 21
_RFLAGS_FIXED = 1 << 1
_FPU_TOP_SHIFT = 11
_FPU_TOP_MASK = 7 << _FPU_TOP_SHIFT
_FPU_STRIDE = 16
_FPU_SIZE = 10
_XMM_SIZE = 16
_MAX_EXPONENT = 0x7FFF
_INTEGER_BIT = 1 << 63


class Register(NamedTuple):
    """One register.  `write` changes a state that is then handed back as a whole."""

    name: str
    bits: int
    type: str
    read: Callable[[DebugRegisters], int]
    write: Callable[[DebugRegisters, int], None]
    group: str = ""


def is_64_bit(state: DebugRegisters) -> bool:
    """Return whether the vCPU executes 64-bit code."""
    return bool(state.efer & _EFER_LMA and state.cs.flags & _CODE_LONG)


# ---- General registers, flags and segments


def _general(name: str) -> Register:
    place = 8 * _ENCODING.index(name)
    span = slice(place, place + 8)

    def read(state: DebugRegisters) -> int:
        return int.from_bytes(state.gpr[span], "little")

    def write(state: DebugRegisters, value: int) -> None:
        state.gpr = state.gpr[:place] + value.to_bytes(8, "little") + state.gpr[place + 8 :]

    return Register(name, 64, _POINTERS.get(name, "int64"), read, write)


def _plain(name: str, bits: int, kind: str, attribute: str, width: int = 64, fixed: int = 0) -> Register:
    """Return a register that is an attribute of the state, of `width` bits of which `fixed` are always set."""
    mask = (1 << width) - 1
    return Register(
        name,
        bits,
        kind,
        lambda state: int(getattr(state, attribute)),
        lambda state, value: setattr(state, attribute, value & mask | fixed),
    )


def _selector(name: str) -> Register:
    def write(state: DebugRegisters, value: int) -> None:
        getattr(state, name).selector = value

    return Register(name, 32, "int32", lambda state: int(getattr(state, name).selector), write)


def _base(name: str) -> Register:
    def write(state: DebugRegisters, value: int) -> None:
        getattr(state, name).base = value

    return Register(f"{name}_base", 64, "int64", lambda state: int(getattr(state, name).base), write)


# ---- x87 and SSE


def _stack(number: int) -> Register:
    """Return a register of the x87 stack; their numbers count from its top."""

    def place(state: DebugRegisters) -> int:
        return _FPU_STRIDE * ((state.fpu_top + number) % 8)

    def read(state: DebugRegisters) -> int:
        start = place(state)
        return int.from_bytes(state.fpu_registers[start : start + _FPU_SIZE], "little")

    def write(state: DebugRegisters, value: int) -> None:
        start, data = place(state), value.to_bytes(_FPU_SIZE, "little")
        state.fpu_registers = state.fpu_registers[:start] + data + state.fpu_registers[start + _FPU_SIZE :]

    return Register(f"st{number}", 80, "i387_ext", read, write)


def _read_status(state: DebugRegisters) -> int:
    return state.fpu_status & ~_FPU_TOP_MASK | state.fpu_top << _FPU_TOP_SHIFT


def _write_status(state: DebugRegisters, value: int) -> None:
    state.fpu_status = value & 0xFFFF & ~_FPU_TOP_MASK
    state.fpu_top = value >> _FPU_TOP_SHIFT & 7


def _tag(state: DebugRegisters, number: int) -> int:
    """Return what the tag word says of one register: 0 valid, 1 zero, 2 special, 3 empty."""
    if state.fpu_tags[number]:
        return 3
    start = _FPU_STRIDE * number
    mantissa = int.from_bytes(state.fpu_registers[start : start + 8], "little")
    exponent = int.from_bytes(state.fpu_registers[start + 8 : start + _FPU_SIZE], "little") & _MAX_EXPONENT
    if not exponent and not mantissa:
        return 1
    return 0 if 0 < exponent < _MAX_EXPONENT and mantissa & _INTEGER_BIT else 2


def _read_tags(state: DebugRegisters) -> int:
    return sum(_tag(state, number) << 2 * number for number in range(8))


def _write_tags(state: DebugRegisters, value: int) -> None:
    state.fpu_tags = bytes((value >> 2 * number & 3) == 3 for number in range(8))


def _half(name: str, attribute: str, shift: int, bits: int) -> Register:
    """Return a part of a pointer that the x87 keeps: the offset, or the selector above it."""
    mask = (1 << bits) - 1

    def write(state: DebugRegisters, value: int) -> None:
        whole = getattr(state, attribute) & ~(mask << shift)
        setattr(state, attribute, whole | (value & mask) << shift)

    return Register(name, 32, "int", lambda state: getattr(state, attribute) >> shift & mask, write, "float")


def _xmm(number: int) -> Register:
    start, end = _XMM_SIZE * number, _XMM_SIZE * (number + 1)

    def write(state: DebugRegisters, value: int) -> None:
        state.xmm = state.xmm[:start] + value.to_bytes(_XMM_SIZE, "little") + state.xmm[end:]

    return Register(
        f"xmm{number}", 128, "vec128", lambda state: int.from_bytes(state.xmm[start:end], "little"), write, "vector"
    )


def _table() -> tuple[Register, ...]:
    return (
        *(_general(name) for name in _GENERAL),
        _plain("rip", 64, "code_ptr", "rip"),
        _plain("eflags", 32, "eflags", "rflags", 32, _RFLAGS_FIXED),
        *(_selector(name) for name in SEGMENTS),
        _base("fs"),
        _base("gs"),
        _plain("k_gs_base", 64, "int64", "kernel_gs_base"),
        _plain("cr0", 64, "cr0", "cr0", 32),
        _plain("cr2", 64, "int64", "cr2"),
        _plain("cr3", 64, "cr3", "cr3"),
        _plain("cr4", 64, "cr4", "cr4", 32),
        _plain("cr8", 64, "int64", "cr8", 4),
        _plain("efer", 64, "efer", "efer"),
        *(_stack(number) for number in range(8)),
        _plain("fctrl", 32, "int", "fpu_control", 16)._replace(group="float"),
        Register("fstat", 32, "int", _read_status, _write_status, "float"),
        Register("ftag", 32, "int", _read_tags, _write_tags, "float"),
        _half("fiseg", "fpu_ip", 32, 16),
        _half("fioff", "fpu_ip", 0, 32),
        _half("foseg", "fpu_dp", 32, 16),
        _half("fooff", "fpu_dp", 0, 32),
        _plain("fop", 32, "int", "fpu_opcode", 11)._replace(group="float"),
        *(_xmm(number) for number in range(16)),
        _plain("mxcsr", 32, "mxcsr", "mxcsr", 16)._replace(group="vector"),
    )


REGISTERS = _table()
"""All registers in the order of their numbers."""


_NUMBERS = {register.name: number for number, register in enumerate(REGISTERS)}
_LAST_WIDE = _NUMBERS["rip"]
"""The registers up to here have 32 bits where the vCPU executes no 64-bit code."""
_LOW_HALF = 0xFFFF_FFFF


def read_register(state: DebugRegisters, number: int) -> bytes:
    """Return the bytes of a register."""
    register = REGISTERS[number]
    value = register.read(state)
    if number <= _LAST_WIDE and not is_64_bit(state):
        value &= _LOW_HALF
    return value.to_bytes(register.bits // 8, "little")


def write_register(state: DebugRegisters, number: int, data: bytes, read: ReadMemory) -> None:
    """Set a register to bytes, of which too many are ignored; `read` is for the guest's descriptor tables."""
    register = REGISTERS[number]
    value = int.from_bytes(data[: register.bits // 8], "little")
    if number <= _LAST_WIDE and not is_64_bit(state):
        value &= _LOW_HALF
    if register.name in SEGMENTS:
        if value & 0xFFFF != register.read(state):
            load_segment(state, register.name, value & 0xFFFF, read)
    else:
        register.write(state, value)


# ---- The description for GDB


def _main() -> str:
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
        f"<target><architecture>{ARCHITECTURE}</architecture>"
        f'<xi:include href="{REGISTERS_ANNEX}"/></target>'
    )


def _flags(name: str, fields: str) -> str:
    lines = [f'<flags id="{name}" size="{_FLAGS_SIZES.get(name, 8)}">']
    for field in reversed(fields.split()):
        label, _, bits = field.partition(":")
        first, _, last = bits.partition("-")
        lines.append(f'<field name="{label}" start="{first}" end="{last or first}"/>')
    return "\n".join([*lines, "</flags>"])


def _vector_types() -> list[str]:
    lines = [f'<vector id="{name}" type="{kind}" count="{count}"/>' for name, kind, count in _VECTORS]
    fields = (f'<field name="{name}" type="{name}"/>' for name in (*(name for name, _, _ in _VECTORS), "uint128"))
    return [*lines, '<union id="vec128">', *fields, "</union>"]


def _described() -> str:
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE feature SYSTEM "gdb-target.dtd">']
    lines.append('<feature name="org.gnu.gdb.i386.core">')
    lines += (_flags(name, fields) for name, fields in _FLAGS.items())
    lines += _vector_types()
    for number, register in enumerate(REGISTERS):
        group = f' group="{register.group}"' if register.group else ""
        lines.append(
            f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}" regnum="{number}"{group}/>'
        )
    return "\n".join([*lines, "</feature>", ""])


def annex(name: str) -> bytes | None:
    """Return a file of the target description; None where there is none of that name."""
    if name == MAIN_ANNEX:
        return _main().encode("ascii")
    return _described().encode("ascii") if name == REGISTERS_ANNEX else None
