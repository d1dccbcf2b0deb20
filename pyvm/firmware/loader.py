"""Direct kernel boot: finds out what kind of kernel a file is and loads it.

The kinds are those of QEMU's `-kernel`, looked for in the same order: a Linux bzImage, a Multiboot kernel, an ELF
kernel with a PVH entry point.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from pyvm.firmware import bzimage, elf, multiboot, pvh
from pyvm.firmware.bootstate import HIGH_MEMORY, BootState
from pyvm.firmware.e820 import E820Entry, low_ram_end
from pyvm.firmware.errors import BootError
from pyvm.firmware.files import HostFile
from pyvm.memory import GuestMemory

_HEAD = multiboot.SEARCH_LENGTH + 0x20


def load_kernel(
    memory: GuestMemory,
    kernel: str,
    initrd: str | None,
    cmdline: str,
    e820: list[E820Entry],
    rsdp: int,
    *,
    text_screen: bool = False,
) -> BootState:
    """Load the kernel at path `kernel` into guest RAM; return the state in which the boot processor enters it.

    `initrd` is a path, or for a Multiboot kernel a list of modules.  `rsdp` is the address of ACPI's root pointer, 0
    for none, and `text_screen` says that there is a VGA in text mode.  Everything is read anew at each call, so a reset
    loads the kernel again.  Raises :class:`BootError`.
    """
    if low_ram_end(memory.blocks) <= HIGH_MEMORY:
        raise BootError("a kernel needs more than 1 MiB of memory (see -m)")
    arguments = os.fsencode(cmdline)
    if b"\0" in arguments:
        raise BootError("kernel command line has a NUL in it")
    with ExitStack() as files:
        file = files.enter_context(HostFile(kernel, "kernel"))
        head = file.read_at(0, _HEAD)
        if not bzimage.is_bzimage(head):
            if multiboot.find_header(head) is not None:
                return multiboot.load(memory, file, initrd, arguments, e820)
            if not _has_pvh_entry(file, head):
                raise BootError(
                    f"kernel file '{kernel}' is not a Linux bzImage, a Multiboot kernel or an ELF file with a PVH note"
                )
        ramdisk = files.enter_context(HostFile(initrd, "initrd")) if initrd else None
        if bzimage.is_bzimage(head):
            return bzimage.load(memory, file, ramdisk, arguments, e820, rsdp, text_screen=text_screen)
        return pvh.load(memory, file, ramdisk, arguments, e820, rsdp)


def _has_pvh_entry(file: HostFile, head: bytes) -> bool:
    """Say whether the file is an ELF executable with a PVH note; a damaged ELF file raises BootError."""
    if not head.startswith(elf.MAGIC):
        return False
    return pvh.entry_point(elf.parse(file.read_at), file.read_at) is not None
