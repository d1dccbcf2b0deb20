"""Where the guest's memory is in the host: addresses in this process, and in the host's own memory."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, NamedTuple

from pyvm.config import MAIN_MEMORY
from pyvm.cpu.vcpu import APIC_PAGE
from pyvm.memory import PAGE_SIZE

if TYPE_CHECKING:
    from mmap import mmap

    from pyvm.machine.pc import Pc

_PAGEMAP = "/proc/self/pagemap"
_ENTRY = 8
_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
VIDEO_MEMORY = "vga.vram"
FIRMWARE, OTHER_ROM = "pc.bios", "pc.rom"
_OTHER_ROM_ADDRESSES = range(0xC0000, 0xE0000)


class HostAddressError(Exception):
    """There is no such address; the message is one line."""


class HostPlace(NamedTuple):
    """A byte of guest memory: the name of the memory it is in, and the address in this process."""

    name: str
    address: int


def find(pc: Pc, gpa: int) -> HostPlace:
    """Return where the byte at a physical address is; raises HostAddressError."""
    rom = pc.board.shadow.rom_at(gpa)
    if rom is not None:
        return HostPlace(OTHER_ROM if gpa in _OTHER_ROM_ADDRESSES else FIRMWARE, _address(rom[0].mapping) + rom[1])
    memory = pc.memory
    for block in memory.all_blocks:
        if block.gpa <= gpa < block.gpa + block.size:
            return HostPlace(_name(pc, block), _address(memory.mapping) + block.offset + gpa - block.gpa)
    for region in pc.mmio.regions():
        if region.base <= gpa < region.base + region.size:
            if region.ram is None:
                raise HostAddressError(f"Memory at address {gpa:#x} is not RAM")
            return HostPlace(VIDEO_MEMORY, _address(region.ram.mapping) + gpa - region.base)
    if APIC_PAGE <= gpa < APIC_PAGE + PAGE_SIZE:
        raise HostAddressError(f"Memory at address {gpa:#x} is not RAM")
    raise HostAddressError(f"No memory is mapped at address {gpa:#x}")


def _name(pc: Pc, block: object) -> str:
    module = next((module for module in pc.model.sockets.modules if module.block is block), None)
    return module.backend.id if module is not None else pc.config.board.memory_backend or MAIN_MEMORY


def _address(mapping: mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def physical(address: int) -> int:
    """Return the host's physical address of an address in this process; raises HostAddressError.

    Without the capability CAP_SYS_ADMIN the kernel tells only that there is a page, as one at 0.
    """
    page_size = os.sysconf("SC_PAGE_SIZE")
    try:
        fd = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise HostAddressError(f"Cannot open {_PAGEMAP}") from None
    try:
        data = os.pread(fd, _ENTRY, address // page_size * _ENTRY)
    except OSError:
        data = b""
    finally:
        os.close(fd)
    if len(data) != _ENTRY:
        raise HostAddressError("Cannot read pagemap")
    entry = int.from_bytes(data, "little")
    if not entry & _PRESENT:
        raise HostAddressError("Page not present")
    return (entry & _FRAME) * page_size + address % page_size
