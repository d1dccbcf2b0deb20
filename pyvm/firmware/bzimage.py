"""Linux kernels in bzImage form, and the zero page they are started with.

Linux `Documentation/arch/x86/boot.rst` (boot protocol 2.02 to 2.15) and `zero-page.rst`.

Where the host knows how the payload is packed it unpacks it straight to where the kernel is linked, and the kernel is
entered at its ELF entry point: no guest instruction is spent on unpacking, and none of its stores hits an executable
page.  The kernel is then not relocated, so it runs without KASLR.  Any other payload is left to the kernel's own
unpacker, entered by the 64-bit protocol where the kernel has it, and by the 32-bit one otherwise.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pyvm.firmware import bootstate, decompress, elf
from pyvm.firmware.bootstate import BOOT_PARAMS, COMMAND_LINE, HIGH_MEMORY, LOW_MEMORY_END, BootState
from pyvm.firmware.decompress import Compression
from pyvm.firmware.e820 import E820Entry, E820Type, highest_fit
from pyvm.firmware.errors import BootError
from pyvm.firmware.files import HostFile
from pyvm.memory import FOUR_GIB, GuestMemory

# Setup header: offsets in the file, which are those in the zero page too.
HEADER_START = 0x1F1
SETUP_SECTS = 0x1F1
SYSSIZE = 0x1F4
VID_MODE = 0x1FA
BOOT_FLAG = 0x1FE
JUMP_OFFSET = 0x201
HEADER_MAGIC = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
CMD_LINE_PTR = 0x228
INITRD_ADDR_MAX = 0x22C  # 2.03
KERNEL_ALIGNMENT = 0x230  # 2.05
RELOCATABLE_KERNEL = 0x234  # 2.05
XLOADFLAGS = 0x236  # 2.12
CMDLINE_SIZE = 0x238  # 2.06
PAYLOAD_OFFSET = 0x248  # 2.08
PAYLOAD_LENGTH = 0x24C  # 2.08
PREF_ADDRESS = 0x258  # 2.10
INIT_SIZE = 0x260  # 2.10

# The other fields of the zero page that are filled in.
SCREEN_INFO = 0x000
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
E820_MAX_ENTRIES = 128
HEADER_LIMIT = 0x290  # edd_mbr_sig_buffer follows
ZERO_PAGE_SIZE = 0x1000

BOOT_FLAG_VALUE = 0xAA55
HDRS = b"HdrS"
LOADED_HIGH = 1 << 0
KERNEL_64 = 1 << 0
LOADER_UNDEFINED = 0xFF
VIDEO_NORMAL = 0xFFFF
OLDEST_VERSION = 0x0202
ENTRY_64_OFFSET = 0x200

SECTOR = 512
DEFAULT_SETUP_SECTS = 4
DEFAULT_CMDLINE_SIZE = 255
DEFAULT_INITRD_MAX = 0x37FFFFFF
SIZE_TRAILER = 4  # the unpacked size, behind every payload but gzip's, which has it inside

# struct screen_info: mode and columns at 6, EGA memory at 10, lines, whether it is a VGA, and font height at 14
_TEXT_SCREEN = struct.Struct("<6xBBxxH2xBBH")
_TEXT_MODE, _TEXT_COLUMNS, _TEXT_LINES, _FONT_HEIGHT, _MEMORY_256K = 3, 80, 25, 16, 3

_MEM_OPTION = re.compile(r"(?:^|\s)mem=(0[xX][0-9a-fA-F]+|\d+)([kKmMgG]?)(?=\s|$)")
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


@dataclass(frozen=True)
class SetupHeader:
    """What the setup header of a bzImage says; fields that its version lacks have the protocol's defaults."""

    version: int
    setup_size: int
    """Bytes of boot sector and real-mode code before the protected-mode code."""
    loadflags: int
    xloadflags: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: bool
    cmdline_size: int
    payload_offset: int
    payload_length: int
    pref_address: int
    init_size: int
    raw: bytes
    """The header itself, from offset 0x1f1."""

    @property
    def has_64bit_entry(self) -> bool:
        """Whether the kernel can be entered in 64-bit mode."""
        return bool(self.xloadflags & KERNEL_64)


def is_bzimage(head: bytes) -> bool:
    """Say whether a file that starts with `head` has a Linux setup header."""
    return head[HEADER_MAGIC : HEADER_MAGIC + 4] == HDRS


def parse_header(head: bytes) -> SetupHeader:
    """Return the setup header in the first bytes of a file, or raise :class:`BootError`."""
    if not is_bzimage(head) or len(head) < HEADER_LIMIT:
        raise BootError("not a Linux kernel: no setup header")
    if _u16(head, BOOT_FLAG) != BOOT_FLAG_VALUE:
        raise BootError("damaged Linux kernel: the boot sector has no signature")
    version = _u16(head, VERSION)
    if version < OLDEST_VERSION:
        raise BootError(f"Linux boot protocol {version >> 8}.{version & 0xFF:02} is too old: 2.02 is needed")
    if not head[LOADFLAGS] & LOADED_HIGH:
        raise BootError("Linux zImage kernels are not supported: a bzImage is needed")

    def since(first: int, value: int, default: int) -> int:
        return value if version >= first else default

    end = min(HEADER_MAGIC + head[JUMP_OFFSET], HEADER_LIMIT)
    header = SetupHeader(
        version=version,
        setup_size=((head[SETUP_SECTS] or DEFAULT_SETUP_SECTS) + 1) * SECTOR,
        loadflags=head[LOADFLAGS],
        xloadflags=since(0x020C, _u16(head, XLOADFLAGS), 0),
        initrd_addr_max=since(0x0203, _u32(head, INITRD_ADDR_MAX), DEFAULT_INITRD_MAX),
        kernel_alignment=since(0x0205, _u32(head, KERNEL_ALIGNMENT), 0),
        relocatable=bool(since(0x0205, head[RELOCATABLE_KERNEL], 0)),
        cmdline_size=since(0x0206, _u32(head, CMDLINE_SIZE), DEFAULT_CMDLINE_SIZE),
        payload_offset=since(0x0208, _u32(head, PAYLOAD_OFFSET), 0),
        payload_length=since(0x0208, _u32(head, PAYLOAD_LENGTH), 0),
        pref_address=since(0x020A, _u64(head, PREF_ADDRESS), HIGH_MEMORY),
        init_size=since(0x020A, _u32(head, INIT_SIZE), 0),
        raw=head[HEADER_START : max(end, CMD_LINE_PTR + 4)],
    )
    alignment = header.kernel_alignment
    if header.relocatable and (not alignment or alignment & (alignment - 1)):
        raise BootError(f"damaged Linux kernel: kernel_alignment {alignment:#x} is not a power of two")
    return header


def load(
    memory: GuestMemory,
    kernel: HostFile,
    initrd: HostFile | None,
    cmdline: bytes,
    e820: list[E820Entry],
    rsdp: int,
    *,
    text_screen: bool = False,
) -> BootState:
    """Load a bzImage and what it is started with; return the state to enter it in.

    `text_screen` says that there is a VGA in text mode 3, which the kernel then takes over.
    """
    image = kernel.read_all()
    header = parse_header(bytes(image[:HEADER_LIMIT]))
    code = memoryview(image)[header.setup_size :]
    if not code:
        raise BootError("Linux kernel is cut short")
    payload = _payload(header, code)
    kind = decompress.identify(payload)
    if kind is None:
        entry, end, bits = _load_packed(memory, header, code, e820)
    else:
        entry, end, bits = _load_unpacked(memory, payload, kind, e820)
    ramdisk = _load_initrd(memory, header, initrd, cmdline, e820, end)
    _write_cmdline(memory, header, cmdline)
    _write_zero_page(memory, header, ramdisk, e820, rsdp, text_screen)
    how = f"Linux, {'packed' if kind is None else kind.value}, {bits}-bit entry at {entry:#x}"
    registers = {"rip": entry, "rsi": BOOT_PARAMS}
    make = bootstate.flat_long if bits == 64 else bootstate.flat_protected
    return make(memory, registers, how)


def _payload(header: SetupHeader, code: memoryview) -> memoryview:
    """Return the packed kernel, empty where the header does not say where it is."""
    end = header.payload_offset + header.payload_length
    if end > len(code):
        raise BootError("Linux kernel is cut short: its payload goes on behind the end of the file")
    return code[header.payload_offset : end]


def _load_unpacked(
    memory: GuestMemory, payload: memoryview, kind: Compression, e820: list[E820Entry]
) -> tuple[int, int, int]:
    """Unpack the kernel to where it is linked; return its entry point, its end, and 32 or 64."""
    if len(payload) < SIZE_TRAILER:
        raise BootError("Linux kernel is cut short")
    (size,) = struct.unpack("<I", payload[-SIZE_TRAILER:])
    packed = payload if kind == Compression.GZIP else payload[:-SIZE_TRAILER]
    total = 0

    def counted() -> Iterator[bytes]:
        nonlocal total
        for piece in decompress.expand(packed, kind, size):
            total += len(piece)
            yield piece

    image = elf.load_pieces(memory, e820, counted())
    if total != size:
        raise BootError(f"{kind.value} kernel payload is damaged: it unpacks to {total} bytes, not to {size}")
    return image.physical_entry(), image.physical_end, image.bits


def _load_packed(
    memory: GuestMemory, header: SetupHeader, code: memoryview, e820: list[E820Entry]
) -> tuple[int, int, int]:
    """Load the kernel as it is, to unpack itself; return its entry point, its end, and 32 or 64."""
    address = header.pref_address if header.relocatable else HIGH_MEMORY
    if header.relocatable:
        address = (address + header.kernel_alignment - 1) & -header.kernel_alignment
    size = max(len(code), header.init_size)
    elf.check_range(e820, address, size)
    memory.write(address, code)
    if header.has_64bit_entry:
        return address + ENTRY_64_OFFSET, address + size, 64
    return address, address + size, 32


def _load_initrd(
    memory: GuestMemory,
    header: SetupHeader,
    initrd: HostFile | None,
    cmdline: bytes,
    e820: list[E820Entry],
    kernel_end: int,
) -> tuple[int, int]:
    """Read the initrd to the top of low RAM; return its address and size."""
    if initrd is None or not initrd.size:
        return 0, 0
    ceiling = min(header.initrd_addr_max + 1, FOUR_GIB, _memory_limit(cmdline))
    address = highest_fit(e820, initrd.size, floor=kernel_end, ceiling=ceiling)
    if address is None:
        room = max(
            min(entry.end, ceiling) - max(entry.start, kernel_end) for entry in e820 if entry.type == E820Type.RAM
        )
        raise BootError(f"initrd is too large, cannot support (max: {max(room, 0)}, need {initrd.size})")
    initrd.read_into(memory, address)
    return address, initrd.size


def _memory_limit(cmdline: bytes) -> int:
    """Return the end of the memory the kernel will use, where the command line has `mem=`: boot.rst says to obey."""
    limit = FOUR_GIB
    for number, unit in _MEM_OPTION.findall(cmdline.decode("latin-1")):
        limit = min(limit, int(number, 0 if number[:2] in ("0x", "0X") else 10) << _UNITS[unit.lower()])
    return limit


def _write_cmdline(memory: GuestMemory, header: SetupHeader, cmdline: bytes) -> None:
    limit = min(header.cmdline_size, LOW_MEMORY_END - COMMAND_LINE - 1)
    if len(cmdline) > limit:
        raise BootError(f"kernel command line has {len(cmdline)} characters, but this kernel takes {limit} at most")
    memory.write(COMMAND_LINE, cmdline + b"\0")


def _write_zero_page(
    memory: GuestMemory,
    header: SetupHeader,
    ramdisk: tuple[int, int],
    e820: list[E820Entry],
    rsdp: int,
    text_screen: bool,
) -> None:
    """Write `struct boot_params`."""
    if len(e820) > E820_MAX_ENTRIES:
        raise BootError(f"memory map has {len(e820)} entries, Linux takes {E820_MAX_ENTRIES}")
    page = bytearray(ZERO_PAGE_SIZE)
    page[HEADER_START : HEADER_START + len(header.raw)] = header.raw
    if text_screen:
        screen = (_TEXT_MODE, _TEXT_COLUMNS, _MEMORY_256K, _TEXT_LINES, 1, _FONT_HEIGHT)
        _TEXT_SCREEN.pack_into(page, SCREEN_INFO, *screen)
    struct.pack_into("<H", page, VID_MODE, VIDEO_NORMAL)
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    struct.pack_into("<II", page, RAMDISK_IMAGE, *ramdisk)
    struct.pack_into("<I", page, CMD_LINE_PTR, COMMAND_LINE)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    page[E820_ENTRIES] = len(e820)
    table = b"".join(entry.pack() for entry in e820)
    page[E820_TABLE : E820_TABLE + len(table)] = table
    memory.write(BOOT_PARAMS, page)


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")
