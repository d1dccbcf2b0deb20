"""The ROM at 0xf8000-0xfffff: stubs that trap into this package, and the tables that programs find by address.

The entry points are where IBM's BIOS has them (Personal System/2 and Personal Computer BIOS Interface Technical
Reference, "Compatibility"), since programs jump there.  A stub is `out TRAP_PORT, al`, by whose address the engine's
trap knows the service, and the `iret` back to the caller.  Only what must be real code is: the frames of hardware
interrupts, which call other interrupts that programs hook, and the loops that wait for an interrupt.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios import tables
from pyvm.records import record

TRAP_PORT: Final = 0xB1
SEGMENT: Final = 0xF000
SEGMENT_BASE: Final = SEGMENT << 4
ROM_START: Final = 0xF8000
ROM_SIZE: Final = 0x8000
_FIRST_OFFSET: Final = ROM_START - SEGMENT_BASE

# Entry points, offsets in segment 0xf000.
PNP: Final = 0xB000
PMM: Final = 0xB030
POST: Final = 0xE05B
NMI: Final = 0xE2C3
INT13: Final = 0xE3FE
INT19: Final = 0xE6F2
CONFIGURATION: Final = 0xE6F5
BAUD_RATES: Final = 0xE729
INT14: Final = 0xE739
INT16: Final = 0xE82E
INT09: Final = 0xE987
INT40: Final = 0xEC59
INT0E: Final = 0xEF57
DISKETTE_TABLE: Final = 0xEFC7
INT17: Final = 0xEFD2
INT10: Final = 0xF065
VIDEO_PARAMETERS: Final = 0xF0A4
INT12: Final = 0xF841
INT11: Final = 0xF84D
INT15: Final = 0xF859
FONT_8X8: Final = 0xFA6E
INT1A: Final = 0xFE6E
INT08: Final = 0xFEA5
IRET_ENTRY: Final = 0xFF53
INT05: Final = 0xFF54
RESET: Final = 0xFFF0
DATE: Final = 0xFFF5
MODEL: Final = 0xFFFE
CHECKSUM: Final = 0xFFFF

# Instructions
STI: Final = b"\xfb"
CLI: Final = b"\xfa"
STC: Final = b"\xf9"
HLT: Final = b"\xf4"
NOP: Final = b"\x90"
IRET: Final = b"\xcf"
RETF: Final = b"\xcb"
PUSH_AX, POP_AX = b"\x50", b"\x58"
PUSH_ALL: Final = b"\x60\x1e\x06"  # pusha; push ds; push es
POP_ALL: Final = b"\x07\x1f\x61"
DROP_FOUR_WORDS: Final = b"\x83\xc4\x08"  # add sp, 8
EOI_MASTER: Final = b"\xb0\x20\xe6\x20"  # mov al, 20h; out 20h, al
EOI_BOTH: Final = b"\xb0\x20\xe6\xa0\xe6\x20"
INTERCEPT: Final = b"\xb4\x4f"  # mov ah, 4fh
CLEAR_FPU_BUSY: Final = b"\x30\xc0\xe6\xf0"  # xor al, al; out 0f0h, al


@record(frozen=True)
class Trap:
    """`out TRAP_PORT, al`: the service of that name."""

    service: str


@record(frozen=True)
class Jump:
    """A jump to a name: always, or with `condition` the opcode of a short conditional jump."""

    target: str
    condition: int | None = None


JC: Final = 0x72
JNC: Final = 0x73
Part = bytes | Trap | Jump


def interrupt(vector: int) -> bytes:
    """Return the instruction `int vector`."""
    return bytes((0xCD, vector))


def move_ax(value: int) -> bytes:
    """Return the instruction `mov ax, value`."""
    return bytes((0xB8, value & 0xFF, value >> 8))


def _size(part: Part) -> int:
    if isinstance(part, bytes):
        return len(part)
    return 2 if isinstance(part, Trap) or part.condition is not None else 3


@record(frozen=True)
class Rom:
    """The image; `labels` are offsets in segment 0xf000, `services` has what is behind each trap, by linear address."""

    data: bytes
    labels: dict[str, int]
    services: dict[int, str]


class _Assembler:
    """Collects routines and tables, gives those without an address one, and resolves names."""

    def __init__(self) -> None:
        self._image = bytearray(ROM_SIZE)
        self._used = bytearray(ROM_SIZE)
        self._routines: list[tuple[int, tuple[Part, ...]]] = []
        self._free = _FIRST_OFFSET
        self.labels: dict[str, int] = {}
        self.services: dict[int, str] = {}

    def _claim(self, offset: int, size: int, name: str) -> None:
        start = offset - _FIRST_OFFSET
        if any(self._used[start : start + size]) or start + size > ROM_SIZE:
            raise ValueError(f"{name} at {offset:#x} does not fit into the ROM")
        self._used[start : start + size] = b"\1" * size

    def table(self, name: str, data: bytes, at: int | None = None) -> None:
        """Place data."""
        offset = self._allocate(len(data)) if at is None else at
        self._claim(offset, len(data), name)
        self.labels[name] = offset
        self._image[offset - _FIRST_OFFSET : offset - _FIRST_OFFSET + len(data)] = data

    def code(self, name: str, *parts: Part, at: int | None = None) -> None:
        """Place a routine."""
        size = sum(map(_size, parts))
        offset = self._allocate(size) if at is None else at
        self._claim(offset, size, name)
        self.labels[name] = offset
        self._routines.append((offset, parts))

    def _allocate(self, size: int) -> int:
        offset = self._free
        self._free += size
        return offset

    def assemble(self) -> Rom:
        """Return the finished image, whose bytes sum to zero."""
        for start, parts in self._routines:
            offset = start
            for part in parts:
                code = self._encode(part, offset)
                self._image[offset - _FIRST_OFFSET : offset - _FIRST_OFFSET + len(code)] = code
                offset += len(code)
        self._image[CHECKSUM - _FIRST_OFFSET] = -sum(self._image) & 0xFF
        return Rom(bytes(self._image), self.labels, self.services)

    def _encode(self, part: Part, offset: int) -> bytes:
        if isinstance(part, bytes):
            return part
        behind = offset + _size(part)
        if isinstance(part, Trap):
            self.services[SEGMENT_BASE + behind] = part.service
            return bytes((0xE6, TRAP_PORT))
        distance = self.labels[part.target] - behind
        if part.condition is not None:
            return bytes((part.condition,)) + distance.to_bytes(1, "little", signed=True)
        return b"\xe9" + (distance & 0xFFFF).to_bytes(2, "little")


def build() -> Rom:
    """Build the ROM; it is the same for every machine."""
    rom = _Assembler()
    _software_interrupts(rom)
    _timer_and_clock(rom)
    _keyboard(rom)
    _other_hardware(rom)
    _start(rom)
    _tables(rom)
    _option_roms(rom)
    return rom.assemble()


def _software_interrupts(rom: _Assembler) -> None:
    for name, service, at in (
        ("int05", "print_screen", INT05),
        ("int10", "video", INT10),
        ("int11", "equipment", INT11),
        ("int12", "memory_size", INT12),
        ("int13", "disk", INT13),
        ("int14", "serial", INT14),
        ("int15", "system", INT15),
        ("int16", "keyboard", INT16),
        ("int17", "printer", INT17),
        ("int1a", "clock", INT1A),
        ("int40", "diskette", INT40),
    ):
        rom.code(name, Trap(service), IRET, at=at)
    rom.code("int18", Trap("boot_next"))
    rom.code("int19_load", Trap("boot"))
    rom.code("int19", Jump("int19_load"), at=INT19)
    rom.code("iret", IRET, at=IRET_ENTRY)
    rom.code("key_wait", STI, HLT, Jump("int16"))
    rom.code("serial_wait", STI, HLT, Trap("serial_again"), IRET)
    rom.code("delay_wait", STI, HLT, Trap("delay_again"), IRET)
    rom.code("delay_spin", STI, NOP, Trap("delay_again"), IRET)


def _timer_and_clock(rom: _Assembler) -> None:
    rom.code("int08", PUSH_AX, Trap("tick"), interrupt(0x1C), CLI, EOI_MASTER, POP_AX, IRET, at=INT08)
    rom.code("int70", PUSH_AX, Trap("clock_interrupt"), EOI_BOTH, POP_AX, IRET)
    rom.code("clock_alarm", interrupt(0x4A), CLI, EOI_BOTH, POP_AX, IRET)


def _keyboard(rom: _Assembler) -> None:
    """IRQ 1: fetch the code, offer it to int 15h AH=4F, which may drop it, and turn it into a key."""
    rom.code(
        "int09", PUSH_AX, Trap("key_fetch"), Jump("int09_done", JC), INTERCEPT, STC, interrupt(0x15),
        Jump("int09_done", JNC), Trap("key_scan"), Jump("int09_done"), at=INT09,
    )  # fmt: skip
    rom.code("int09_done", CLI, EOI_MASTER, POP_AX, IRET, at=INT09 + 0x20)
    rom.code("key_stored", move_ax(0x9102), interrupt(0x15), Jump("int09_done"))
    rom.code("key_break", interrupt(0x1B), Jump("int09_done"))
    rom.code("key_request_down", move_ax(0x8500), interrupt(0x15), Jump("int09_done"))
    rom.code("key_request_up", move_ax(0x8501), interrupt(0x15), Jump("int09_done"))
    rom.code("key_print", EOI_MASTER, STI, interrupt(0x05), POP_AX, IRET)
    rom.code("key_pause", EOI_MASTER, Jump("key_paused"))
    rom.code("key_paused", STI, HLT, Trap("key_paused"), POP_AX, IRET)


def _other_hardware(rom: _Assembler) -> None:
    rom.code("nmi", IRET, at=NMI)
    rom.code("int0e", Trap("irq_master"), IRET, at=INT0E)
    rom.code("irq_master", Trap("irq_master"), IRET)
    rom.code("irq_slave", Trap("irq_slave"), IRET)
    # IRQ 9 stands in for IRQ 2 of the PC, and the FPU's IRQ 13 for its NMI.
    rom.code("int71", PUSH_AX, b"\xb0\x20\xe6\xa0", POP_AX, interrupt(0x0A), IRET)
    rom.code("int75", PUSH_AX, CLEAR_FPU_BUSY, EOI_BOTH, POP_AX, interrupt(0x02), IRET)
    rom.code("int74", PUSH_ALL, Trap("mouse_interrupt"), Jump("int74_done"))
    rom.code("mouse_return", DROP_FOUR_WORDS, Jump("int74_done"))
    rom.code("int74_done", CLI, EOI_BOTH, POP_ALL, IRET)


def _start(rom: _Assembler) -> None:
    rom.code("post", Trap("post"), at=POST)
    rom.code("reset", b"\xea", POST.to_bytes(2, "little"), SEGMENT.to_bytes(2, "little"), at=RESET)
    rom.code("menu_prompt", STI, HLT, Trap("menu_prompt"))
    rom.code("menu_choice", STI, HLT, Trap("menu_choice"))
    rom.code("start", STI, interrupt(0x19))
    rom.code("retry", STI, HLT, Trap("retry"))
    rom.code("halt", STI, HLT, Jump("halt"))


def _tables(rom: _Assembler) -> None:
    from pyvm.firmware.bios import fonts

    rom.table("configuration", tables.CONFIGURATION, CONFIGURATION)
    rom.table("baud_rates", tables.BAUD_RATES, BAUD_RATES)
    rom.table("diskette_table", tables.DISKETTE, DISKETTE_TABLE)
    rom.table("video_parameters", tables.CGA_PARAMETERS, VIDEO_PARAMETERS)
    rom.table("video_abilities", tables.VIDEO_ABILITIES)
    rom.table("font_8x8_lower", fonts.font(8)[: len(fonts.font(8)) // 2], FONT_8X8)
    rom.table("font_8x8", fonts.font(8))
    rom.table("font_8x14", fonts.font(14))
    rom.table("font_8x16", fonts.font(16))
    rom.table("no_alternates", b"\0")
    rom.table("date", tables.DATE, DATE)
    rom.table("model", bytes((tables.MODEL,)), MODEL)


def _option_roms(rom: _Assembler) -> None:
    """What option ROMs find and where they return to; last, so that everything else stays where it is."""
    rom.code("rom_returned", Trap("rom_returned"))
    rom.code("connect", Trap("connect"))
    rom.code("boot_read", interrupt(0x13), Trap("boot_read"))
    rom.code("pmm_entry", Trap("pmm"), RETF)
    rom.table("pmm", bytes(16), PMM)
    rom.code("pnp_entry", move_ax(tables.PNP_UNSUPPORTED), RETF)
    rom.table("pnp", tables.plug_and_play(SEGMENT, rom.labels["pnp_entry"]), PNP)
