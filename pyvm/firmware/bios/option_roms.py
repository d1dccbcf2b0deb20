"""Option ROMs: programs of add-in cards, and of the user, that run between POST and booting.

Plug and Play BIOS Specification 1.0A, section 3 (the ROM's header, expansion headers, how a ROM is entered); BIOS Boot
Specification 1.01, section 3 and appendix C (boot connection and bootstrap entry vectors); PCI Local Bus Specification
3.0, section 6.3 (ROMs with several images, of which one is for a PC).

A ROM is copied into the memory that adapters have below the BIOS.  One with an expansion header is initialised there,
and may then offer to boot (BEV) or to add drives to int 13h (BCV).  An older one has its only entry called as a BCV.
Video ROMs are left alone: this BIOS has video services of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.machine import OptionRom
from pyvm.firmware.bios.pci import CLASS_REVISION, HEADER_TYPE, VENDOR_ID, Pci
from pyvm.firmware.bios.pmm import MemoryManager
from pyvm.firmware.bios.registers import FLAG_FIXED, FLAG_INTERRUPTS, Registers
from pyvm.firmware.bios.rom import PNP, SEGMENT
from pyvm.records import record

FIRST_SEGMENT: Final = 0xC800
END_SEGMENT: Final = 0xF000
STACK_TOP: Final = 0x7000
MOST: Final = 32
UNIT: Final = 512
ALIGNMENT: Final = 2048

# The ROM's header
SIGNATURE: Final = b"\x55\xaa"
_HEADER_SIZE: Final = 0x1C
_LENGTH: Final = 0x02  # in units of 512 bytes
_ENTRY: Final = 0x03
_PCI_POINTER: Final = 0x18  # word
_PNP_POINTER: Final = 0x1A  # word

# The expansion header
_PNP_SIGNATURE: Final = b"$PnP"
_PNP_HEADER: Final = struct.Struct("<4sBBHBBIHH3sBHHH")
_NAME_LIMIT: Final = 60
_MOST_HEADERS: Final = 16

# PCI data structure
_PCI_SIGNATURE: Final = b"PCIR"
_PCI_DATA: Final = struct.Struct("<4sHHHHB3sHHBB")
_CODE_OF_A_PC: Final = 0
_WITH_DEVICE_LIST: Final = 3
_MOST_DEVICES: Final = 256
_LAST_IMAGE: Final = 0x80
_MOST_IMAGES: Final = 16

# Configuration space
_COMMAND: Final = 0x04
_COMMAND_MEMORY: Final = 1 << 1
_ROM_BAR: Final = 0x30
_ROM_ADDRESS: Final = 0xFFFFF800
_ROM_ENABLE: Final = 1 << 0
_DISPLAY_CLASS: Final = 0x03

NO_CARD: Final = 0xFFFF
"""What BX and DX say on entry: no ISA card by Plug and Play, and no port to ask one."""


@record(frozen=True)
class Vector:
    """What an initialised ROM offers."""

    segment: int
    offset: int
    title: str
    drives: bool
    """Whether it adds drives to int 13h (BCV); else it boots (BEV)."""
    address: int
    bootindex: int | None


def valid(data: bytes) -> bool:
    """Return whether `data` begins with a ROM whose bytes sum to zero."""
    if len(data) < _HEADER_SIZE or data[:2] != SIGNATURE:
        return False
    size = data[_LENGTH] * UNIT
    return 0 < size <= len(data) and sum(data[:size]) & 0xFF == 0


def _word(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _device_list(data: bytes) -> list[int]:
    """Return further devices that an image is for; a zero ends them."""
    words = [_word(data, offset) for offset in range(0, min(len(data) - 1, 2 * _MOST_DEVICES), 2)]
    return words[: words.index(0)] if 0 in words else words


def pc_image(data: bytes, identity: int) -> bytes | None:
    """Return the image for a PC in the ROM of a PCI device; `identity` is what the device's first register holds."""
    offset = 0
    for _ in range(_MOST_IMAGES):
        image = data[offset:]
        if len(image) < _HEADER_SIZE or image[:2] != SIGNATURE:
            return None
        pointer = _word(image, _PCI_POINTER)
        if pointer + _PCI_DATA.size > len(image):
            return None
        signature, vendor, device, others, _, revision, _, length, _, code, last = _PCI_DATA.unpack_from(image, pointer)
        if signature != _PCI_SIGNATURE:
            return None
        devices = [device]
        if revision >= _WITH_DEVICE_LIST and others:
            devices += _device_list(image[pointer + others :])
        if code == _CODE_OF_A_PC and vendor == identity & 0xFFFF and identity >> 16 in devices:
            return image[: image[_LENGTH] * UNIT]
        if last & _LAST_IMAGE or not length:
            return None
        offset += length * UNIT
    return None


def _headers(data: bytes) -> list[tuple[int, int, str]]:
    """Return connection vector, bootstrap vector and product name of each expansion header."""
    found = []
    pointer = _word(data, _PNP_POINTER)
    for _ in range(_MOST_HEADERS):
        if not pointer or pointer + _PNP_HEADER.size > len(data):
            break
        fields = _PNP_HEADER.unpack_from(data, pointer)
        if fields[0] != _PNP_SIGNATURE:
            break
        following, product, connect, boot = fields[3], fields[8], fields[11], fields[13]
        name = data[product : product + _NAME_LIMIT].split(b"\0")[0] if product else b""
        found.append((connect, boot, name.decode("cp437")))
        pointer = following
    return found


class OptionRoms:
    """The ROMs of one machine; which of them has had its turn is in the extended data area."""

    def __init__(self, core: Core, pci: Pci) -> None:
        self._core = core
        self._pci = pci
        self.memory_manager = MemoryManager(core)
        self._found: list[OptionRom] | None = None

    def initialise(self) -> None:
        """Forget all ROMs; at each reset."""
        self._found = None
        self._core.ebda.set_word(area.ROM_END, FIRST_SEGMENT)

    # -- where they come from ---------------------------------------------------------------------------------------

    @property
    def _sources(self) -> list[OptionRom]:
        if self._found is None:
            self._found = [*self._cards(), *self._core.machine.option_roms][:MOST]
        return self._found

    def _cards(self) -> Iterator[OptionRom]:
        places = self._core.machine.card_places
        for address in list(self._pci.functions()):
            if self._pci.read(address, HEADER_TYPE, 1) & 0x7F:
                continue
            if self._pci.read(address, CLASS_REVISION, 4) >> 24 == _DISPLAY_CLASS:
                continue
            bar = self._pci.read(address, _ROM_BAR, 4)
            if bar & _ROM_ADDRESS:
                image = pc_image(self._read_rom(address, bar), self._pci.read(address, VENDOR_ID, 4))
                if image is not None:
                    yield OptionRom(image, address, places.get(address))

    def _read_rom(self, address: int, bar: int) -> bytes:
        """Return what is in a device's ROM, which is switched on for that long."""
        pci, load = self._pci, self._core.machine.mmio.read
        pci.write(address, _ROM_BAR, 4, 0xFFFFFFFF)
        size = -(pci.read(address, _ROM_BAR, 4) & _ROM_ADDRESS) & 0xFFFFFFFF
        command = pci.read(address, _COMMAND, 2)
        pci.write(address, _ROM_BAR, 4, bar | _ROM_ENABLE)
        pci.write(address, _COMMAND, 2, command | _COMMAND_MEMORY)
        base = bar & _ROM_ADDRESS
        data = b"".join(load(base + offset, 8).to_bytes(8, "little") for offset in range(0, size, 8))
        pci.write(address, _COMMAND, 2, command)
        pci.write(address, _ROM_BAR, 4, bar)
        return data

    # -- initialisation ---------------------------------------------------------------------------------------------

    def run(self, registers: Registers) -> bool:
        """Send the processor into the next ROM; return False when there is none left."""
        ebda = self._core.ebda
        while (index := ebda.byte(area.ROM_NEXT)) < len(self._sources):
            ebda.set_byte(area.ROM_NEXT, index + 1)
            source, segment = self._sources[index], ebda.word(area.ROM_END)
            data = source.data
            if not valid(data) or (segment << 4) + data[_LENGTH] * UNIT > END_SEGMENT << 4:
                continue
            data = data[: data[_LENGTH] * UNIT]
            self._core.memory.write(segment << 4, data)
            if _headers(data):
                self.memory_manager.open()
                self.call(registers, segment, _ENTRY, source.address, "rom_returned")
                return True
            self._keep(index, segment, len(data))
        return False

    def returned(self, registers: Registers) -> bool:
        """A ROM has come back from its initialisation; go on as :meth:`run` does."""
        ebda = self._core.ebda
        index, segment = ebda.byte(area.ROM_NEXT) - 1, ebda.word(area.ROM_END)
        if 0 <= index < len(self._sources) and FIRST_SEGMENT <= segment < END_SEGMENT:
            # It may need less memory from now on, or none at all.
            header = self._core.memory.read(segment << 4, _HEADER_SIZE)
            size = header[_LENGTH] * UNIT
            if header[:2] == SIGNATURE and 0 < size <= self._sources[index].data[_LENGTH] * UNIT:
                self._keep(index, segment, size)
        return self.run(registers)

    def _keep(self, index: int, segment: int, size: int) -> None:
        ebda = self._core.ebda
        ebda.set_word(area.ROM_SEGMENTS + 2 * index, segment)
        ebda.set_word(area.ROM_END, segment + (-(-size // ALIGNMENT) * ALIGNMENT >> 4))

    def call(self, registers: Registers, segment: int, offset: int, address: int, back: str) -> None:
        """Enter a ROM, from where it returns to a place in this BIOS."""
        for name in ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "ds", "es", "ss"):
            setattr(registers, name, 0)
        registers.ax, registers.bx, registers.dx = address, NO_CARD, NO_CARD
        registers.es, registers.di = SEGMENT, PNP
        registers.esp = STACK_TOP
        registers.eflags = FLAG_FIXED | FLAG_INTERRUPTS
        self._core.push(registers, struct.pack("<HH", self._core.rom.labels[back], SEGMENT))
        registers.cs, registers.eip = segment, offset

    # -- what they offer --------------------------------------------------------------------------------------------

    def vectors(self) -> list[Vector]:
        """Return what all ROMs offer, in the order in which they were initialised."""
        found = []
        for index, source in enumerate(self._sources):
            segment = self._core.ebda.word(area.ROM_SEGMENTS + 2 * index)
            if not FIRST_SEGMENT <= segment < END_SEGMENT:
                continue
            size = self._core.memory.read((segment << 4) + _LENGTH, 1)[0] * UNIT
            data = self._core.memory.read(segment << 4, size)
            if not valid(data):
                continue
            headers = _headers(data)
            for connect, boot, name in headers:
                if boot:
                    found.append(Vector(segment, boot, name or "Unknown", False, source.address, source.bootindex))
                elif connect:
                    found.append(Vector(segment, connect, name, True, source.address, source.bootindex))
            if not headers:
                found.append(Vector(segment, _ENTRY, "Legacy option rom", True, source.address, source.bootindex))
        return found
