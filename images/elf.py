"""Reads what a recipe must know of ELF files: which libraries a program needs, what a kernel module says of itself.

Only 64-bit little-endian files are read (System V ABI, chapters 4 and 5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_SHT_DYNAMIC = 6
_DT_NULL = 0
_DT_NEEDED = 1
_PT_INTERP = 3


class ElfError(ValueError):
    """The file is not a 64-bit little-endian ELF file, or it is damaged."""


def is_elf(data: bytes) -> bool:
    """Whether `data` begins as a 64-bit little-endian ELF file does."""
    return data[:6] == b"\x7fELF\x02\x01"


def _sections(data: bytes) -> Iterator[tuple[str, int, bytes, int]]:
    """Yield name, type, contents and link of each section."""
    if not is_elf(data):
        raise ElfError("not a 64-bit little-endian ELF file")
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQII", data, offset + size * index) for index in range(count)]
    names = _contents(data, headers[names_index])
    for header in headers:
        yield _string(names, header[0]), header[1], _contents(data, header), header[6]


def _contents(data: bytes, header: tuple[int, ...]) -> bytes:
    return b"" if header[1] == 8 else data[header[4] : header[4] + header[5]]


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


def needed(data: bytes) -> list[str]:
    """Return the sonames that the program or library `data` is linked with."""
    sections = list(_sections(data))
    found = []
    for _, kind, contents, link in sections:
        if kind != _SHT_DYNAMIC:
            continue
        for tag, value in struct.iter_unpack("<qQ", contents):
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                found.append(_string(sections[link][2], value))
    return found


def interpreter(data: bytes) -> str | None:
    """Return the path of the dynamic linker that the program `data` asks for, or None."""
    if not is_elf(data):
        raise ElfError("not a 64-bit little-endian ELF file")
    (offset,) = struct.unpack_from("<Q", data, 0x20)
    size, count = struct.unpack_from("<HH", data, 0x36)
    for index in range(count):
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", data, offset + size * index)
        if kind == _PT_INTERP:
            return data[start : start + length].rstrip(b"\0").decode()
    return None


def module_information(data: bytes) -> list[tuple[str, str]]:
    """Return the key=value pairs of a kernel module's .modinfo section, in their order."""
    for name, _, contents, _ in _sections(data):
        if name == ".modinfo":
            pairs = (item.partition("=") for item in contents.decode(errors="replace").split("\0") if item)
            return [(key, value) for key, _, value in pairs]
    return []
