"""Option ROMs, and kernels as small, for tests."""

from __future__ import annotations

import struct

INIT, BOOT, CONNECT = 0x80, 0x180, 0x280
"""Where the code of a ROM is."""
_HEADER, _NAME, _PCI = 0x20, 0x40, 0x60
RETURN = b"\xcb"
DEBUG_PORT = 0xE9


def say(text: bytes) -> bytes:
    """Return code that writes to the debug console."""
    return b"".join(bytes((0xB0, byte, 0xE6, DEBUG_PORT)) for byte in text)


def sealed(data: bytearray) -> bytes:
    """Return a ROM whose bytes sum to zero."""
    data[-1] = 0
    data[-1] = -sum(data) & 0xFF
    return bytes(data)


def option_rom(
    init: bytes = RETURN,
    *,
    boot: bytes = b"",
    connect: bytes = b"",
    name: bytes = b"",
    legacy: bool = False,
    pci: int | None = None,
    units: int = 2,
) -> bytes:
    """Return a ROM with code for each of its entries; `pci` is the device (upper half) and vendor that it is for."""
    data = bytearray(512 * units)
    data[:3] = bytes((0x55, 0xAA, units))
    data[3:6] = b"\xe9" + struct.pack("<h", INIT - 6)
    for place, code in ((INIT, init), (BOOT, boot), (CONNECT, connect)):
        data[place : place + len(code)] = code
    if not legacy:
        entries = struct.pack("<HHHHH", CONNECT if connect else 0, 0, BOOT if boot else 0, 0, 0)
        header = b"$PnP\1\2" + bytes(4) + bytes(4) + struct.pack("<HH", 0, _NAME if name else 0) + bytes(4) + entries
        data[_HEADER : _HEADER + len(header)] = header
        data[0x1A:0x1C] = struct.pack("<H", _HEADER)
        data[_NAME : _NAME + len(name)] = name
    if pci is not None:
        data[0x18:0x1A] = struct.pack("<H", _PCI)
        fields = (pci & 0xFFFF, pci >> 16, 0, 24, 3, b"\0\0\2", units, 0, 0, 0x80)
        data[_PCI : _PCI + 24] = struct.pack("<4sHHHHB3sHHBB2x", b"PCIR", *fields)
    return sealed(data)


def multiboot(code: bytes) -> bytes:
    """Return a kernel of 32-bit code, which is loaded at 1 MiB."""
    magic, flags, base = 0x1BADB002, 0x10000, 0x100000
    header = (magic, flags, -(magic + flags) & 0xFFFFFFFF, base, base, base + 0x200, base + 0x200, base + 0x20)
    return (struct.pack("<8I", *header) + code).ljust(0x200, b"\0")
