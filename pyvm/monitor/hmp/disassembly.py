"""Instructions as text, a line for each, laid out as QEMU's monitor and log have them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from pyvm.cpu.paging import EFER_LMA

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState

LONGEST_INSTRUCTION = 15
_BYTES_SHOWN = 8
"""How many bytes of an instruction a line has room for."""
_CODE_LONG, _CODE_32 = 1 << 21, 1 << 22
"""Bits L and D of a code segment's descriptor."""


def code_bits(registers: RegisterState) -> int:
    """Return the operand size of code: 16, 32 or 64 bits."""
    flags = registers.cs.flags
    if registers.efer & EFER_LMA and flags & _CODE_LONG:
        return 64
    return 32 if flags & _CODE_32 else 16


@cache
def disassembler(bits: int) -> Any:
    """Return capstone's disassembler for code of this operand size."""
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    machine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    machine.syntax = capstone.CS_OPT_SYNTAX_ATT
    return machine


def instruction(machine: Any, code: bytes, address: int) -> tuple[str, int]:
    """Return the line of the instruction with which `code` begins, and its length: 1 where it is none."""
    found = next(machine.disasm_lite(code, address, 1), None)
    if found is None:
        return _line(address, code[:1], ".byte", f"0x{code[0]:02x}"), 1
    _, size, mnemonic, operands = found
    return _line(address, code[:size], mnemonic, operands), size


def instructions(code: bytes, address: int, bits: int) -> Iterator[str]:
    """Yield the lines of all instructions in `code`."""
    machine = disassembler(bits)
    position = 0
    while position < len(code):
        for _, size, mnemonic, operands in machine.disasm_lite(code[position:], address + position):
            yield _line(address + position, code[position : position + size], mnemonic, operands)
            position += size
        if position < len(code):
            yield instruction(machine, code[position:], address + position)[0]
            position += 1


def _line(address: int, code: bytes, mnemonic: str, operands: str) -> str:
    first, rest = code[:_BYTES_SHOWN], code[_BYTES_SHOWN:]
    # The mnemonic has its column even where nothing follows: what reads QEMU's lines finds them as they are there.
    text = f"0x{address:08x}:  {first.hex(' '):<{3 * _BYTES_SHOWN - 1}}  {mnemonic:<8} {operands}\n"
    if rest:
        text += f"0x{address + len(first):08x}:  {rest.hex(' ')}\n"
    return text
