"""What happens between reset and int 19h: the ROM, the interrupt vectors, the data areas and the chips.

IBM Personal Computer AT Technical Reference, "ROM BIOS": which vectors point where, and how the interrupt controllers,
the timer and the keyboard controller are set up for the system to come.
"""

from __future__ import annotations

import struct
from typing import Final

from pyvm import __version__
from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios import rtc
from pyvm.firmware.bios.boot import Boot
from pyvm.firmware.bios.clock import Clock
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.drives import FIRST_DISK, Drive, Drives
from pyvm.firmware.bios.hardware import (
    ACKNOWLEDGE,
    COMMAND_KEYBOARD_IRQ,
    COMMAND_MOUSE_OFF,
    KEYBOARD_DATA,
    READ_COMMAND_BYTE,
    Hardware,
)
from pyvm.firmware.bios.keyboard import Keyboard
from pyvm.firmware.bios.option_roms import OptionRoms
from pyvm.firmware.bios.printer import Printer
from pyvm.firmware.bios.registers import FLAG_FIXED, Registers
from pyvm.firmware.bios.rom import ROM_START, SEGMENT
from pyvm.firmware.bios.video import TEXT_80X25, Video
from pyvm.firmware.pic_setup import pic_setup

STACK_TOP: Final = 0x7000
_VECTORS: Final = 256
# Let through: timer, keyboard, cascade and floppy controller; clock, mouse and first IDE channel.
_MASTER_MASK: Final = 0xB8
_SLAVE_MASK: Final = 0xAE

# Timer: channel 0 counts 65536, 18.2 times a second; channel 1 refreshes memory; channel 2 is silent.
_PIT_SETUP: Final = ((0x43, 0x34), (0x40, 0x00), (0x40, 0x00), (0x43, 0x54), (0x41, 0x12))
# DMA: both controllers cleared, channel 4 passes on the first controller.
_DMA_SETUP: Final = ((0x0D, 0x00), (0xDA, 0x00), (0xD6, 0xC0), (0xD4, 0x00))
_COMMAND_SYSTEM: Final = 1 << 2
_COMMAND_TRANSLATE: Final = 1 << 6
_KEYBOARD_ENABLE: Final = 0xF4
_RTC_RATE: Final = 0x26  # 32768 Hz time base, 1024 periodic interrupts a second

_LPT_TIMEOUT: Final = 20
_COM_TIMEOUT: Final = 10
_MAX_COM_PORTS: Final = 4
_MAX_LPT_PORTS: Final = 3
_MASTER_IRQS: Final = range(0x0A, 0x10)
_SLAVE_IRQS: Final = range(0x70, 0x78)
_USER_VECTORS: Final = range(0x60, 0x68)
_HANDLERS: Final = {
    0x02: "nmi", 0x05: "int05", 0x08: "int08", 0x09: "int09", 0x0E: "int0e", 0x10: "int10", 0x11: "int11",
    0x12: "int12", 0x13: "int13", 0x14: "int14", 0x15: "int15", 0x16: "int16", 0x17: "int17", 0x18: "int18",
    0x19: "int19", 0x1A: "int1a", 0x1D: "video_parameters", 0x1E: "diskette_table", 0x40: "int40", 0x43: "font_8x16",
    0x70: "int70", 0x71: "int71", 0x74: "int74", 0x75: "int75",
}  # fmt: skip
_DRIVE_TABLES: Final = ((0x41, area.DISK_TABLE_0), (0x46, area.DISK_TABLE_1))
_TABLE: Final = struct.Struct("<HBBBHBBHBHB")
_TRANSLATED: Final = 0xA0


class Post:
    """The power-on self-test, which tests nothing."""

    def __init__(
        self,
        core: Core,
        video: Video,
        drives: Drives,
        printer: Printer,
        clock: Clock,
        boot: Boot,
        hardware: Hardware,
        keyboard: Keyboard,
        option_roms: OptionRoms,
    ) -> None:
        self._core = core
        self._video = video
        self._drives = drives
        self._printer = printer
        self._clock = clock
        self._boot = boot
        self._hardware = hardware
        self._keyboard = keyboard
        self._option_roms = option_roms
        self._fresh = False

    # -- memory -----------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Fill in what the guest's memory holds before the first instruction."""
        core = self._core
        core.memory.write(ROM_START, core.rom.data)
        core.memory.write(0, self._vector_table())
        core.bda.clear()
        core.ebda.clear()
        core.ebda.set_byte(area.EBDA_LENGTH, area.EBDA_KIB)
        core.bda.set_word(area.EBDA_POINTER, area.EBDA_SEGMENT)
        core.bda.set_word(area.MEMORY_KIB, area.EBDA >> 10)
        core.bda.set_block(area.LPT_TIMEOUTS, bytes((_LPT_TIMEOUT,) * 4))
        core.bda.set_block(area.COM_TIMEOUTS, bytes((_COM_TIMEOUT,) * 4))
        self._keyboard.initialise()
        self._boot.initialise()
        self._fresh = True

    def _vector_table(self) -> bytes:
        labels = self._core.rom.labels
        vectors = [(SEGMENT, labels["iret"])] * _VECTORS
        for vector in _MASTER_IRQS:
            vectors[vector] = (SEGMENT, labels["irq_master"])
        for vector in _SLAVE_IRQS:
            vectors[vector] = (SEGMENT, labels["irq_slave"])
        for vector in _USER_VECTORS:
            vectors[vector] = (0, 0)
        for vector, name in _HANDLERS.items():
            vectors[vector] = (SEGMENT, labels[name])
        vectors[0x1F] = (SEGMENT, labels["font_8x8"] + 128 * 8)
        for vector, table in _DRIVE_TABLES:
            vectors[vector] = (area.EBDA_SEGMENT, table)
        return b"".join(struct.pack("<HH", offset, segment) for segment, offset in vectors)

    # -- the trap at the first instruction --------------------------------------------------------------------------

    def start(self, registers: Registers) -> None:
        """Set up the chips, say hello and go on to booting.

        A program that jumps here to restart the machine gets a reset of all of it.
        """
        if not self._fresh:
            self._core.reset_machine()
            registers.goto = "halt"
            return
        self._fresh = False
        registers.ss, registers.esp = 0, STACK_TOP
        registers.ds = registers.es = 0
        registers.eflags = FLAG_FIXED
        self._set_up_chips()
        self._describe_ports()
        self._describe_drives()
        self._video.find_adapter()
        self._video.console.initialise()
        self._video.set_mode(TEXT_80X25)
        self._video.print(f"pyvm BIOS {__version__}\n\n")
        self._clock.initialise()
        if not self._option_roms.run(registers):
            self._boot.start(registers)

    def rom_returned(self, registers: Registers) -> None:
        """An option ROM is initialised: go on with the next, and then to booting."""
        if not self._option_roms.returned(registers):
            registers.ss, registers.esp = 0, STACK_TOP
            self._boot.start(registers)

    def connect(self, registers: Registers) -> None:
        """Let option ROMs add their drives, which may give others of the drives new numbers."""
        if self._boot.connect(registers):
            registers.ss, registers.esp = 0, STACK_TOP
            self._describe_disks()

    def _set_up_chips(self) -> None:
        core = self._core
        for port, value in (*_PIT_SETUP, *_DMA_SETUP):
            core.outb(port, value)
        core.set_cmos(rtc.STATUS_A, _RTC_RATE)
        core.set_cmos(rtc.STATUS_B, rtc.B_24_HOURS)
        core.cmos(rtc.STATUS_C)
        self._hardware.controller_command(READ_COMMAND_BYTE)
        self._hardware.set_command_byte(_COMMAND_SYSTEM | _COMMAND_TRANSLATE | COMMAND_MOUSE_OFF)
        core.outb(KEYBOARD_DATA, _KEYBOARD_ENABLE)
        if self._hardware.receive() != ACKNOWLEDGE:
            core.bda.set_byte(area.KEYBOARD_LEDS, 0x80)  # no keyboard answers
        command = _COMMAND_SYSTEM | _COMMAND_TRANSLATE | COMMAND_MOUSE_OFF | COMMAND_KEYBOARD_IRQ
        self._hardware.set_command_byte(command)
        for port, value in pic_setup(_MASTER_MASK, _SLAVE_MASK):  # the last: what the others caused is forgotten
            core.outb(port, value)

    def _describe_ports(self) -> None:
        bda = self._core.bda
        serial = list(self._core.machine.serial_ports[:_MAX_COM_PORTS])
        for index, port in enumerate(serial):
            bda.set_word(area.COM_PORTS + 2 * index, port)
        parallel = self._printer.find_ports()[:_MAX_LPT_PORTS]
        for index, port in enumerate(parallel):
            bda.set_word(area.LPT_PORTS + 2 * index, port)
        equipment = area.EQUIPMENT_FPU | area.EQUIPMENT_MOUSE
        equipment |= sum(port != 0 for port in serial) << area.EQUIPMENT_SERIAL_SHIFT
        equipment |= len(parallel) << area.EQUIPMENT_PARALLEL_SHIFT
        bda.set_word(area.EQUIPMENT, equipment)

    def _describe_drives(self) -> None:
        bda, drives = self._core.bda, self._drives
        floppies = len(drives.floppies)
        if floppies:
            flags = area.EQUIPMENT_FLOPPY | floppies - 1 << area.EQUIPMENT_FLOPPIES_SHIFT
            bda.set_word(area.EQUIPMENT, bda.word(area.EQUIPMENT) | flags)
        bda.set_byte(area.DISK_COUNT, len(drives.disks))
        self._describe_disks()

    def _describe_disks(self) -> None:
        for drive in self._drives.disks:
            if 0 <= drive.number - FIRST_DISK < len(_DRIVE_TABLES):
                self._core.ebda.set_block(_DRIVE_TABLES[drive.number - FIRST_DISK][1], _drive_table(drive))


def _drive_table(drive: Drive) -> bytes:
    """Return the fixed disk parameter table, in its form for translated geometries where this is one."""
    shown, own = drive.geometry, drive.physical
    translated = shown != own
    control = 0xC0 | (0x08 if own.heads > 8 else 0)
    data = _TABLE.pack(
        shown.cylinders,
        shown.heads & 0xFF,
        _TRANSLATED if translated else 0,
        own.sectors & 0xFF if translated else 0,
        0xFFFF,
        0,
        control,
        min(own.cylinders, 0xFFFF) if translated else 0,
        own.heads & 0xFF if translated else 0,
        min(own.cylinders, 0xFFFF),
        shown.sectors & 0xFF,
    )
    return data + bytes((-sum(data) & 0xFF,))
