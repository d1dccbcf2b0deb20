"""Commands that show guest memory: as values or instructions, and how it is mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvm.cpu.paging import CR0_PG, EFER_LMA, USER, WRITE, Page, TooManyTablesError, entries, translate
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.arguments import Format
from pyvm.monitor.hmp.disassembly import LONGEST_INSTRUCTION, code_bits, disassembler, instruction
from pyvm.monitor.hmp.shell import Shell
from pyvm.monitor.hmp.table import CommandTable

if TYPE_CHECKING:
    from pyvm.cpu.registers import RegisterState
    from pyvm.machine.dump.dumper import PhysicalMemory

COMMANDS = CommandTable()
INFORMATION = CommandTable()

_LIMIT = 1 << 20
"""Most bytes that one command shows."""
_PAGE = 4096
_UINT64 = (1 << 64) - 1
_UINT32 = (1 << 32) - 1
_PRINTABLE = range(32, 127)
_ESCAPES = {ord("'"): "\\'", ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r"}
_UNREADABLE = "Cannot access memory"
_NO_CPU = "No CPU available\n"
_MAP_LIMIT = 1 << 16
"""Most lines of a list of mappings."""


class _Reader:
    """Reads memory at physical addresses, or at linear ones as a vCPU sees them."""

    def __init__(self, physical: PhysicalMemory, registers: RegisterState | None) -> None:
        """`registers` are those of the vCPU, None for physical addresses."""
        self._physical = physical
        self._registers = registers

    def read(self, address: int, length: int) -> bytes | None:
        """Return `length` bytes, None where there is nothing at one of the addresses."""
        data = bytearray()
        while length:
            run = min(length, _PAGE - address % _PAGE)
            part = self._page(address & _UINT64, run)
            if part is None:
                return None
            data += part
            address, length = address + run, length - run
        return bytes(data)

    def _page(self, address: int, length: int) -> bytes | None:
        if self._registers is not None:
            return self._physical.read_linear(self._registers, address, length)
        return self._physical.read(address, length) if self._physical.has(address, length) else None


def _registers(shell: Shell) -> RegisterState | None:
    from pyvm.monitor.hmp.hardware import cpu_states

    return cpu_states(shell.machine, shell.state.cpu).get(shell.state.cpu)


def _reader(shell: Shell, registers: RegisterState | None) -> _Reader:
    from pyvm.machine.dump.dumper import PhysicalMemory

    return _Reader(PhysicalMemory(shell.machine_part("memory"), shell.machine_part("mmio")), registers)


# ---- Values


@COMMANDS.command(
    "x", "format:format address:int64", parameters="/fmt addr", description="virtual memory dump starting at 'addr'"
)
def examine(shell: Shell, format: Format, address: int) -> str:  # noqa: A002 - the name that its help has
    """Show memory at a linear address."""
    shell.state.format = format
    registers = _registers(shell)
    if registers is None:
        return _NO_CPU
    return _dump(_reader(shell, registers), registers, format, address & _UINT64)


@COMMANDS.command(
    "xp", "format:format address:int64", parameters="/fmt addr", description="physical memory dump starting at 'addr'"
)
def examine_physical(shell: Shell, format: Format, address: int) -> str:  # noqa: A002 - as above
    """Show memory at a physical address."""
    shell.state.format = format
    return _dump(_reader(shell, None), _registers(shell), format, address & _UINT64)


def _dump(reader: _Reader, registers: RegisterState | None, form: Format, address: int) -> str:
    size = LONGEST_INSTRUCTION if form.letter == "i" else form.size
    if form.count * size > _LIMIT:
        raise QmpError(f"This would show more than {_LIMIT >> 20} MiB of memory")
    if form.letter == "i":
        return "" if registers is None else "".join(_instructions(reader, registers, form.count, address))
    return "".join(_lines(reader, form, address))


def _lines(reader: _Reader, form: Format, address: int) -> Iterator[str]:
    left = form.count * form.size
    step = 8 if form.size == 1 else 16
    size = 1 if form.letter == "c" else form.size
    while left > 0:
        data = reader.read(address, min(left, step))
        if data is None:
            yield f"{address:016x}: {_UNREADABLE}\n"
            return
        values = (int.from_bytes(data[place : place + size], "little") for place in range(0, len(data), size))
        yield f"{address:016x}:" + "".join(f" {_value(value, form.letter, size)}" for value in values) + "\n"
        address, left = address + len(data) & _UINT64, left - len(data)


def _value(value: int, letter: str, size: int) -> str:
    bits = 8 * size
    decimal = -(-bits * 10 // 33)
    match letter:
        case "o":
            return f"{f'0{value:o}' if value else '0':>{-(-bits // 3)}}"
        case "u":
            return f"{value:>{decimal}}"
        case "d":
            sign = 1 << bits - 1
            return f"{(value ^ sign) - sign:>{decimal}}"
        case "c":
            return f"'{_ESCAPES.get(value) or _plain(value)}'"
    return f"0x{value:0{bits // 4}x}"


def _plain(value: int) -> str:
    return chr(value) if value in _PRINTABLE else f"\\x{value:02x}"


# ---- Instructions


def _instructions(reader: _Reader, registers: RegisterState, count: int, address: int) -> Iterator[str]:
    machine = disassembler(code_bits(registers))
    for _ in range(count):
        code = _code(reader, address)
        text, size = instruction(machine, code, address) if code else ("", 0)
        if size <= 1 and len(code) < LONGEST_INSTRUCTION and next(machine.disasm_lite(code, address, 1), None) is None:
            yield f"0x{address:08x}: unable to read memory\n"
            return
        yield text
        address += size


def _code(reader: _Reader, address: int) -> bytes:
    """Return the bytes of an instruction and what is behind it, as far as it can be read."""
    code = reader.read(address, LONGEST_INSTRUCTION)
    if code is not None:
        return code
    found = bytearray()
    while len(found) < LONGEST_INSTRUCTION and (byte := reader.read(address + len(found), 1)) is not None:
        found += byte
    return bytes(found)


# ---- Addresses


@COMMANDS.command(
    "gva2gpa",
    "address:int64",
    parameters="addr",
    description="print the guest physical address corresponding to a guest virtual address",
)
def gva2gpa(shell: Shell, address: int) -> str:
    """Show which physical address a linear one stands for."""
    registers = _registers(shell)
    if registers is None:
        return _NO_CPU
    found = translate(shell.machine_part("memory"), registers, address & _UINT64)
    return "Unmapped\n" if found is None else f"gpa: {found:#x}\n" if found else "gpa: 0\n"


# ---- Mappings


def _canonical(address: int, registers: RegisterState) -> str:
    return f"{address & (_UINT64 if registers.efer & EFER_LMA else _UINT32):016x}"


def _entries(shell: Shell) -> tuple[RegisterState, Iterator[Page]] | str:
    registers = _registers(shell)
    if registers is None:
        return _NO_CPU
    if not registers.cr0 & CR0_PG:
        return "PG disabled\n"
    return registers, entries(shell.machine_part("memory"), registers)


def _limited(lines: Iterator[str]) -> str:
    """Join lines, up to a limit: the guest's tables are what the guest makes of them."""
    taken: list[str] = []
    try:
        for line in lines:
            if len(taken) == _MAP_LIMIT:
                taken.append("...\n")
                break
            taken.append(line)
    except TooManyTablesError as error:
        taken.append(f"{error}\n")
    return "".join(taken)


_TLB_FLAGS = ((63, "X"), (8, "G"), (7, "P"), (6, "D"), (5, "A"), (4, "C"), (3, "T"), (2, "U"), (1, "W"))


@INFORMATION.command("tlb", description="show virtual to physical memory mappings")
def tlb(shell: Shell) -> str:
    """Show each page that is mapped."""
    found = _entries(shell)
    if isinstance(found, str):
        return found
    registers, pages = found

    def lines() -> Iterator[str]:
        for page in pages:
            flags = "".join(letter if page.entry >> bit & 1 else "-" for bit, letter in _TLB_FLAGS)
            yield f"{_canonical(page.linear, registers)}: {page.physical:016x} {flags}\n"

    return _limited(lines())


@INFORMATION.command("mem", description="show the active virtual memory mappings")
def mem(shell: Shell) -> str:
    """Show ranges of linear addresses that may be used in the same way."""
    found = _entries(shell)
    if isinstance(found, str):
        return found
    registers, pages = found

    def lines() -> Iterator[str]:
        start = end = rights = 0
        for page in pages:
            if end > start and (page.linear, page.rights) == (end, rights):
                end += page.size
                continue
            if end > start:
                yield _range(start, end, rights, registers)
            start, end, rights = page.linear, page.linear + page.size, page.rights
        if end > start:
            yield _range(start, end, rights, registers)

    return _limited(lines())


def _range(start: int, end: int, rights: int, registers: RegisterState) -> str:
    user, write = "u" if rights & USER else "-", "w" if rights & WRITE else "-"
    first, last = _canonical(start, registers), _canonical(end, registers)
    return f"{first}-{last} {end - start:016x} {user}r{write}\n"
