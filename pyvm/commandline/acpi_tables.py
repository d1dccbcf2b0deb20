"""``-acpitable``: ACPI tables of the user's, in files with their headers or without."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Sequence

from pyvm.options import Options
from pyvm.sizes import UINT64_MAX, read_number

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
"""Signature, length, revision, checksum, OEM ID and table ID, OEM revision, compiler's ID and revision (ACPI 5.2.6)."""
_LENGTH_FIELD, _CHECKSUM_FIELD = 1, 3
_DEFAULTS = (b"QEMU", 0, 1, 0, b"QEMUQE", b"QEMUQEMU", 1, b"QEMU", 1)
_FIELDS = {
    "sig": 0, "rev": 2, "oem_id": 4, "oem_table_id": 5, "oem_rev": 6, "asl_compiler_id": 7, "asl_compiler_rev": 8,
}  # fmt: skip
_NUMBERS = {"rev": 8, "oem_rev": 32, "asl_compiler_rev": 32}
"""Fields that are numbers, and how many bits each has."""
_LARGEST = 0xFFFF
_MOST = 16 << 20
"""How much of a file is read, to say how much too large it is."""


def configure_acpi_tables(given: Sequence[Options]) -> list[bytes]:
    """Return the tables, finished; raises ConfigError."""
    return [_table(options) for options in given]


def _table(options: Options) -> bytes:
    whole, body = options.string("file"), options.string("data")
    if (whole is None) == (body is None):
        raise options.error("'-acpitable' requires one of 'data' or 'file'")
    changes = {_FIELDS[name]: _value(options, name) for name in _FIELDS if name in options}
    content = _read(options, whole if whole is not None else body or "")
    fields = list(_DEFAULTS)
    if whole is not None:
        if len(content) < _HEADER.size:
            sizes = f"available: {len(content)}, expected: {_HEADER.size}"
            raise options.error(f"ACPI table claiming to have header is too short, {sizes}")
        fields, content = list(_HEADER.unpack_from(content)), content[_HEADER.size :]
    size = _HEADER.size + len(content)
    if size > _LARGEST:
        raise options.error(f"ACPI table too big, requested: {size}, max: {_LARGEST}")
    if whole is not None and fields[_LENGTH_FIELD] != size:
        said = f"header says {fields[_LENGTH_FIELD]}, actual size {size} bytes"
        print(f"pyvm: {options.origin}: warning: ACPI table has wrong length, {said}", file=sys.stderr)
    for place, value in changes.items():
        fields[place] = value
    fields[_LENGTH_FIELD], fields[_CHECKSUM_FIELD] = size, 0
    fields[_CHECKSUM_FIELD] = -sum(_HEADER.pack(*fields) + content) & 0xFF
    return _HEADER.pack(*fields) + content


def _value(options: Options, name: str) -> bytes | int:
    """Return what a field is to be; text that is too long is cut, as the field has room for so much."""
    text = options.required(name)
    bits = _NUMBERS.get(name)
    if bits is None:
        return os.fsencode(text)
    number = read_number(text)
    if number is None or not 0 <= number <= UINT64_MAX:
        raise options.error(f"Parameter '{name}' expects a uint64 value")
    if number >> bits:
        raise options.error(f"Parameter '{name}' expects uint{bits}_t")
    return number


def _read(options: Options, text: str) -> bytes:
    """Return what is in all files of a list; an empty name between colons is a file that is not there."""
    if not text:
        raise options.error("'-acpitable' requires at least one pathname")
    content = b""
    for path in text.split(":"):
        try:
            file = open(path, "rb")  # noqa: SIM115 - a directory is opened by QEMU, too, and fails when it is read
        except IsADirectoryError:
            raise options.error(f"can't read file {path}: Is a directory") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a file name"
            raise options.error(f"can't open file {path}: {reason}") from None
        with file:
            try:
                content += file.read(_MOST)
            except OSError as error:
                raise options.error(f"can't read file {path}: {error.strerror}") from None
    return content
