"""Direct boot of Multiboot kernels.

Multiboot Specification 0.6.96.  A kernel is an ELF file or says itself where it is loaded (the "a.out kludge").  It is
entered in flat 32-bit protected mode with the magic in EAX and EBX at the information structure.

`-initrd` names the modules: "file1 arguments,file2"; a doubled comma stands for a comma.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from pyvm.firmware import bootstate, elf
from pyvm.firmware.bootstate import BOOT_LISTS, BOOT_PARAMS, COMMAND_LINE, HIGH_MEMORY, LOW_MEMORY_END, BootState
from pyvm.firmware.e820 import E820Entry, E820Type, lowest_fit
from pyvm.firmware.errors import BootError
from pyvm.firmware.files import HostFile
from pyvm.memory import FOUR_GIB, GuestMemory

HEADER_MAGIC = 0x1BADB002
LOADER_MAGIC = 0x2BADB002
SEARCH_LENGTH = 8192
_HEADER = struct.Struct("<III")
_ADDRESSES = struct.Struct("<IIIII")

# Header flags.
PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2  # a wish, and there is no screen: the information structure then describes none
AOUT_KLUDGE = 1 << 16
_MANDATORY = 0xFFFF
_KNOWN = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE

# Information structure: flags and field offsets.
INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODULES = 1 << 3
INFO_MEMORY_MAP = 1 << 6
INFO_LOADER_NAME = 1 << 9
INFO_SIZE = 0x74
MEM_LOWER = 4
MEM_UPPER = 8
CMDLINE = 16
MODS_COUNT = 20
MODS_ADDR = 24
MMAP_LENGTH = 44
MMAP_ADDR = 48
LOADER_NAME = 64

MODULE = struct.Struct("<IIII")  # start, end, string, reserved
MMAP_ENTRY = struct.Struct("<IQQI")  # size of the rest, start, length, type

LOADER_NAME_ADDRESS = BOOT_PARAMS + 0x100
MODULE_LIST = BOOT_PARAMS + 0x200
MEMORY_MAP = BOOT_LISTS
_MAX_MODULES = (BOOT_LISTS - MODULE_LIST) // MODULE.size
_MAX_MAP_ENTRIES = (COMMAND_LINE - BOOT_LISTS) // MMAP_ENTRY.size
_LOADER = b"pyvm\0"


@dataclass(frozen=True)
class AoutAddresses:
    """The address fields of the header: where the file is to be loaded and entered, without ELF's help."""

    header: int
    load: int
    load_end: int
    bss_end: int
    entry: int


@dataclass(frozen=True)
class MultibootHeader:
    """What a kernel's Multiboot header asks for."""

    offset: int
    flags: int
    addresses: AoutAddresses | None


def find_header(head: bytes) -> MultibootHeader | None:
    """Return the header in the first 8 KiB of a file, or None."""
    magic = struct.pack("<I", HEADER_MAGIC)
    window = head[:SEARCH_LENGTH]
    offset = window.find(magic)
    while offset >= 0:
        if offset % 4 == 0 and offset + _HEADER.size <= len(window):
            _, flags, checksum = _HEADER.unpack_from(window, offset)
            if (HEADER_MAGIC + flags + checksum) & 0xFFFFFFFF == 0:
                return MultibootHeader(offset, flags, _addresses(head, offset, flags))
        offset = window.find(magic, offset + 1)
    return None


def _addresses(head: bytes, offset: int, flags: int) -> AoutAddresses | None:
    start = offset + _HEADER.size
    if not flags & AOUT_KLUDGE:
        return None
    if start + _ADDRESSES.size > len(head):
        raise BootError("Multiboot header is cut short")
    return AoutAddresses(*_ADDRESSES.unpack_from(head, start))


def load(
    memory: GuestMemory,
    kernel: HostFile,
    modules: str | None,
    cmdline: bytes,
    e820: list[E820Entry],
) -> BootState:
    """Load a Multiboot kernel and its modules; return the state to enter it in."""
    header = find_header(kernel.read_at(0, SEARCH_LENGTH + _ADDRESSES.size))
    if header is None:
        raise BootError("no Multiboot header")
    unknown = header.flags & _MANDATORY & ~_KNOWN
    if unknown:
        raise BootError(f"Multiboot kernel needs features that are not known here: {unknown:#x}")
    if header.addresses is not None:
        entry, end = _load_by_addresses(memory, kernel, header, header.addresses, e820)
    else:
        entry, end = _load_elf(memory, kernel, e820)
    _write_info(memory, kernel.path, modules, cmdline, e820, end)
    registers = {"rip": entry, "rax": LOADER_MAGIC, "rbx": BOOT_PARAMS}
    return bootstate.flat_protected(memory, registers, f"Multiboot kernel, entry at {entry:#x}")


def _load_elf(memory: GuestMemory, kernel: HostFile, e820: list[E820Entry]) -> tuple[int, int]:
    image = elf.parse(kernel.read_at)
    elf.load_file(memory, e820, kernel.read_at, image)
    return image.physical_entry(), image.physical_end


def _load_by_addresses(
    memory: GuestMemory, kernel: HostFile, header: MultibootHeader, addresses: AoutAddresses, e820: list[E820Entry]
) -> tuple[int, int]:
    """Load the file by the header's address fields; return the entry point and the end."""
    start = header.offset - (addresses.header - addresses.load)
    if addresses.load > addresses.header or start < 0:
        raise BootError("Multiboot header: load_addr does not fit header_addr")
    length = (addresses.load_end - addresses.load) if addresses.load_end else kernel.size - start
    if length <= 0 or start + length > kernel.size:
        raise BootError("Multiboot header: load_end_addr does not fit the file")
    end = max(addresses.load + length, addresses.bss_end)
    if not addresses.load <= addresses.entry < end:
        raise BootError(f"Multiboot header: entry_addr {addresses.entry:#x} lies outside the kernel")
    elf.check_range(e820, addresses.load, end - addresses.load)
    elf.clear(memory, addresses.load, end - addresses.load)
    data = kernel.read_at(start, length)
    if len(data) < length:
        raise BootError("Multiboot kernel is cut short")
    memory.write(addresses.load, data)
    return addresses.entry, end


class _Strings:
    """Allocates NUL-terminated strings in low memory."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._next = COMMAND_LINE

    def add(self, text: bytes) -> int:
        """Store `text` and return its address."""
        address, self._next = self._next, self._next + len(text) + 1
        if self._next > LOW_MEMORY_END:
            raise BootError("kernel command line and module arguments are too long")
        self._memory.write(address, text + b"\0")
        return address


def _write_info(
    memory: GuestMemory, path: str, modules: str | None, cmdline: bytes, e820: list[E820Entry], end: int
) -> None:
    strings = _Strings(memory)
    entries = _load_modules(memory, modules, strings, e820, end)
    if len(e820) > _MAX_MAP_ENTRIES:
        raise BootError(f"memory map has {len(e820)} entries, there is room for {_MAX_MAP_ENTRIES}")
    info = bytearray(INFO_SIZE)
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
    struct.pack_into("<I", info, 0, flags)
    struct.pack_into("<I", info, MEM_LOWER, _ram_from(e820, 0) >> 10)
    struct.pack_into("<I", info, MEM_UPPER, _ram_from(e820, HIGH_MEMORY) >> 10)
    command = b" ".join(part for part in (os.fsencode(path), cmdline) if part)
    struct.pack_into("<I", info, CMDLINE, strings.add(command))
    struct.pack_into("<II", info, MODS_COUNT, len(entries), MODULE_LIST)
    struct.pack_into("<II", info, MMAP_LENGTH, MMAP_ENTRY.size * len(e820), MEMORY_MAP)
    struct.pack_into("<I", info, LOADER_NAME, LOADER_NAME_ADDRESS)
    memory.write(BOOT_PARAMS, info)
    memory.write(LOADER_NAME_ADDRESS, _LOADER)
    memory.write(MODULE_LIST, b"".join(entries))
    rest = MMAP_ENTRY.size - 4
    memory.write(MEMORY_MAP, b"".join(MMAP_ENTRY.pack(rest, item.start, item.length, item.type) for item in e820))


def _ram_from(e820: list[E820Entry], start: int) -> int:
    """Return how many bytes of RAM there are without a gap from `start` up."""
    return next((entry.end - start for entry in e820 if entry.type == E820Type.RAM and entry.start == start), 0)


def split_modules(text: str) -> list[str]:
    """Split "file1 args,file2 args" at its commas; a doubled comma stands for one comma and splits nothing."""
    parts = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    return [part for part in parts if part]


def _load_modules(
    memory: GuestMemory, modules: str | None, strings: _Strings, e820: list[E820Entry], kernel_end: int
) -> list[bytes]:
    """Read the modules to whole pages above the kernel; return their list entries."""
    entries: list[bytes] = []
    floor = kernel_end
    for text in split_modules(modules or ""):
        if len(entries) == _MAX_MODULES:
            raise BootError(f"there are more than {_MAX_MODULES} Multiboot modules")
        with HostFile(text.split(" ", 1)[0], "module") as module:
            address = lowest_fit(e820, module.size, floor=floor, ceiling=FOUR_GIB)
            if address is None:
                raise BootError(f"module '{module.path}' of {module.size} bytes does not fit in memory")
            module.read_into(memory, address)
            floor = address + module.size
        entries.append(MODULE.pack(address, floor, strings.add(os.fsencode(text)), 0))
    return entries
