"""Direct boot of ELF kernels that have a PVH entry point.

Xen `docs/misc/pvh.pandoc` and `xen/include/public/arch-x86/hvm/start_info.h` (version 1), and the ELF note
XEN_ELFNOTE_PHYS32_ENTRY of `xen/include/public/elfnote.h`.  The kernel is entered in 32-bit protected mode with
paging off and EBX at the start info.
"""

from __future__ import annotations

import struct

from pyvm.firmware import bootstate, elf
from pyvm.firmware.bootstate import BOOT_LISTS, BOOT_PARAMS, COMMAND_LINE, LOW_MEMORY_END, BootState
from pyvm.firmware.e820 import E820Entry, highest_fit
from pyvm.firmware.elf import ElfImage, ReadAt
from pyvm.firmware.errors import BootError
from pyvm.firmware.files import HostFile
from pyvm.memory import FOUR_GIB, GuestMemory

XEN_NOTE_NAME = b"Xen"
XEN_ELFNOTE_PHYS32_ENTRY = 18

START_INFO = struct.Struct("<IIIIQQQQII")
START_INFO_MAGIC = 0x336EC578
START_INFO_VERSION = 1
MODULE_ENTRY = struct.Struct("<QQQQ")  # address, size, command line, reserved
MEMMAP_ENTRY = struct.Struct("<QQII")  # address, size, E820 type, reserved

MODULE_LIST = BOOT_PARAMS + 0x100
MEMORY_MAP = BOOT_LISTS
_MAX_MAP_ENTRIES = (COMMAND_LINE - BOOT_LISTS) // MEMMAP_ENTRY.size


def entry_point(image: ElfImage, read_at: ReadAt) -> int | None:
    """Return the physical address of the PVH entry point, or None where the kernel has none."""
    for name, kind, descriptor in elf.notes(image, read_at):
        if name == XEN_NOTE_NAME and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(descriptor) in (4, 8):
            return int.from_bytes(descriptor, "little")
    return None


def load(
    memory: GuestMemory,
    kernel: HostFile,
    initrd: HostFile | None,
    cmdline: bytes,
    e820: list[E820Entry],
    rsdp: int,
) -> BootState:
    """Load an ELF kernel and what it is started with; return the state to enter it in."""
    image = elf.parse(kernel.read_at)
    entry = entry_point(image, kernel.read_at)
    if entry is None:
        raise BootError("ELF kernel has no PVH entry point")
    if not any(header.physical <= entry < header.physical_end for header in image.loads):
        raise BootError(f"PVH entry point {entry:#x} lies in none of the segments")
    elf.load_file(memory, e820, kernel.read_at, image)
    ramdisk = _load_initrd(memory, initrd, e820, image.physical_end)
    _write_start_info(memory, ramdisk, cmdline, e820, rsdp)
    return bootstate.flat_protected(memory, {"rip": entry, "rbx": BOOT_PARAMS}, f"PVH kernel, entry at {entry:#x}")


def _load_initrd(memory: GuestMemory, initrd: HostFile | None, e820: list[E820Entry], floor: int) -> tuple[int, int]:
    if initrd is None or not initrd.size:
        return 0, 0
    address = highest_fit(e820, initrd.size, floor=floor, ceiling=FOUR_GIB)
    if address is None:
        raise BootError(f"initrd of {initrd.size} bytes does not fit in memory")
    initrd.read_into(memory, address)
    return address, initrd.size


def _write_start_info(
    memory: GuestMemory, ramdisk: tuple[int, int], cmdline: bytes, e820: list[E820Entry], rsdp: int
) -> None:
    if len(e820) > _MAX_MAP_ENTRIES:
        raise BootError(f"memory map has {len(e820)} entries, there is room for {_MAX_MAP_ENTRIES}")
    room = LOW_MEMORY_END - COMMAND_LINE - 1
    if len(cmdline) > room:
        raise BootError(f"kernel command line has {len(cmdline)} characters, there is room for {room}")
    modules = [MODULE_ENTRY.pack(*ramdisk, 0, 0)] if ramdisk[1] else []
    info = START_INFO.pack(
        START_INFO_MAGIC,
        START_INFO_VERSION,
        0,
        len(modules),
        MODULE_LIST if modules else 0,
        COMMAND_LINE,
        rsdp,
        MEMORY_MAP,
        len(e820),
        0,
    )
    memory.write(BOOT_PARAMS, info)
    memory.write(MODULE_LIST, b"".join(modules))
    memory.write(MEMORY_MAP, b"".join(MEMMAP_ENTRY.pack(entry.start, entry.length, entry.type, 0) for entry in e820))
    memory.write(COMMAND_LINE, cmdline + b"\0")
