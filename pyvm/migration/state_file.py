"""The file with the state of a machine but its memory: a header and sections, each with a checksum.

Layout, little-endian::

    magic "pyvmstat", u32 version, u32 length of the header, u32 CRC-32 of the header
    header: JSON; its member "sections" is a list of [name, length, CRC-32]
    the sections, one after the other: JSON, in which bytes are {"base64": "..."}

Nothing in it is believed: lengths are checked before anything is read, sums before anything is parsed, and the records
that are made of sections check each field themselves (:mod:`pyvm.state`).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from pyvm.errors import ConfigError
from pyvm.migration.values import decode_value, encode_value

_FIXED = struct.Struct("<8sIII")
_MAGIC = b"pyvmstat"
_VERSION = 1
_HEADER_LIMIT = 4 << 20
_FILE_LIMIT = 256 << 20


class SnapshotError(ConfigError):
    """A saved machine cannot be read, or not be loaded into this one."""


def write_state(path: str, header: Mapping[str, Any], sections: Mapping[str, Any], *, new: bool = True) -> None:
    """Write a file, which must not be there yet if it is to be `new`.  Raises OSError."""
    bodies = {name: encode_value(value) for name, value in sections.items()}
    table = [[name, len(body), zlib.crc32(body)] for name, body in bodies.items()]
    head = encode_value({**header, "sections": table})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if new else os.O_TRUNC) | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(_FIXED.pack(_MAGIC, _VERSION, len(head), zlib.crc32(head)))
        file.write(head)
        file.writelines(bodies.values())


def read_state(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the sections of a file.  Raises SnapshotError."""
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror}") from None
    try:
        return _parse(memoryview(data))
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None


def _parse(data: memoryview) -> tuple[dict[str, Any], dict[str, Any]]:
    if len(data) < _FIXED.size or len(data) > _FILE_LIMIT:
        raise SnapshotError("this is no saved machine")
    magic, version, length, checksum = _FIXED.unpack_from(data)
    if magic != _MAGIC:
        raise SnapshotError("this is no saved machine")
    if version != _VERSION:
        raise SnapshotError(f"the machine was saved in version {version} of the format; only {_VERSION} is known")
    head = data[_FIXED.size : _FIXED.size + length]
    if length > _HEADER_LIMIT or len(head) < length:
        raise SnapshotError("the header is cut off")
    header = _decode(head, checksum, "header")
    place = _FIXED.size + length
    sections: dict[str, Any] = {}
    for name, size, crc in _table(header):
        body = data[place : place + size]
        if len(body) < size:
            raise SnapshotError(f"section '{name}' is cut off")
        sections[name] = _decode(body, crc, f"section '{name}'")
        place += size
    if place != len(data):
        raise SnapshotError("there is something behind the last section")
    return header, sections


def _table(header: Any) -> list[tuple[str, int, int]]:
    table = header.pop("sections", None) if isinstance(header, dict) else None
    if not isinstance(table, list):
        raise SnapshotError("the header lists no sections")
    entries: list[tuple[str, int, int]] = []
    for entry in table:
        match entry:
            case [str(name), int(size), int(crc)] if size >= 0 and not isinstance(size, bool):
                entries.append((name, size, crc))
            case _:
                raise SnapshotError("the header lists something that is no section")
    return entries


def _decode(body: memoryview, checksum: int, what: str) -> Any:
    data = bytes(body)
    if zlib.crc32(data) != checksum:
        raise SnapshotError(f"{what}: the checksum is wrong")
    try:
        return decode_value(data)
    except ValueError as error:
        raise SnapshotError(f"{what}: {error}") from None
