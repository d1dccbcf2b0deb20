"""Small kernels made by hand, for the tests of the boot loaders."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyvm.firmware.e820 import E820Entry, pc_memory_map
from pyvm.firmware.errors import BootError
from pyvm.memory import GuestMemory, pc_ram_blocks

MIB = 1 << 20


class ScratchMemory(GuestMemory):
    """Guest RAM that a test need not close."""

    def __del__(self) -> None:
        self.close()


def outcome(action: Callable[[], object]) -> str:
    """Run `action`; return the message of the BootError it raises, or nothing.  Other errors pass."""
    try:
        action()
    except BootError as error:
        return str(error)
    return ""


def machine(mib: int = 16) -> tuple[GuestMemory, list[E820Entry]]:
    """Return RAM of that size and its memory map."""
    memory = ScratchMemory(mib * MIB, pc_ram_blocks(mib * MIB))
    return memory, pc_memory_map(memory.blocks)


def save(directory: Path, name: str, data: bytes) -> str:
    """Write a file and return its path."""
    path = directory / name
    path.write_bytes(data)
    return str(path)


@dataclass
class Segment:
    """One program header and its data."""

    physical: int
    data: bytes = b""
    memory_size: int | None = None
    type: int = 1
    virtual: int | None = None


@dataclass
class Elf:
    """An executable in the making."""

    entry: int = 1 * MIB
    segments: list[Segment] = field(default_factory=list)
    bits: int = 64
    machine: int = 62

    def build(self) -> bytes:
        """Return the file."""
        wide = self.bits == 64
        header_size, phdr_size = (64, 56) if wide else (52, 32)
        ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
        layout = "<16sHHIQQQIHHHHHH" if wide else "<16sHHIIIIIHHHHHH"
        machine_id = self.machine if wide else 3
        counts = (header_size, phdr_size, len(self.segments), 0, 0, 0)
        head = struct.pack(layout, ident, 2, machine_id, 1, self.entry, header_size, 0, 0, *counts)
        offset = header_size + phdr_size * len(self.segments)
        body = b""
        for item in self.segments:
            size = len(item.data) if item.memory_size is None else item.memory_size
            virtual = item.physical if item.virtual is None else item.virtual
            place = offset + len(body)
            if wide:
                values = (item.type, 7, place, virtual, item.physical, len(item.data), size, 1)
                head += struct.pack("<IIQQQQQQ", *values)
            else:
                head += struct.pack("<IIIIIIII", item.type, place, virtual, item.physical, len(item.data), size, 7, 1)
            body += item.data
        return head + body


def pvh_note(entry: int, size: int = 4) -> bytes:
    """Return the note that names a PVH entry point."""
    return struct.pack("<III4s", 4, size, 18, b"Xen\0") + entry.to_bytes(size, "little")


@dataclass
class BzImage:
    """A bzImage in the making; `payload` is what lies behind the kernel's own unpacker."""

    payload: bytes = b""
    version: int = 0x020F
    setup_sects: int = 3
    loadflags: int = 1
    xloadflags: int = 1
    initrd_addr_max: int = 0x7FFFFFFF
    kernel_alignment: int = 0x200000
    relocatable: int = 1
    cmdline_size: int = 2047
    pref_address: int = 0x200000
    init_size: int = 0x100000
    unpacker: bytes = b"\xf4" * 0x300

    def build(self) -> bytes:
        """Return the file."""
        head = bytearray(((self.setup_sects or 4) + 1) * 512)
        code = self.unpacker + self.payload
        head[0x1F1] = self.setup_sects
        struct.pack_into("<I", head, 0x1F4, len(code) // 16)
        struct.pack_into("<H", head, 0x1FE, 0xAA55)
        head[0x200:0x202] = b"\xeb\x6a"
        struct.pack_into("<4sH", head, 0x202, b"HdrS", self.version)
        head[0x211] = self.loadflags
        struct.pack_into("<I", head, 0x214, 0x100000)
        struct.pack_into("<IIBBH", head, 0x22C, self.initrd_addr_max, self.kernel_alignment, self.relocatable, 21, 0)
        struct.pack_into("<H", head, 0x236, self.xloadflags)
        struct.pack_into("<I", head, 0x238, self.cmdline_size)
        struct.pack_into("<II", head, 0x248, len(self.unpacker), len(self.payload))
        struct.pack_into("<QI", head, 0x258, self.pref_address, self.init_size)
        return bytes(head) + code
