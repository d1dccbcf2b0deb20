"""``-smbios``: fields of the tables that name the machine, strings for the guest, and whole structures from files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.commandline.files import read_file
from pyvm.firmware.smbios_fields import (
    FIELDS,
    OEM_STRINGS,
    ONBOARD_DEVICE,
    ONBOARD_KINDS,
    PORT,
    PROCESSOR,
    SYSTEM,
    SmbiosFields,
)
from pyvm.options import Options, parse_boolean, parse_number, parse_uuid

if TYPE_CHECKING:
    from pyvm.config import MachineConfig

_HEADER = 4
_LONGEST_FILE = 0xFFFF
_BYTE, _WORD = 0xFF, 0xFFFF
_LARGEST = {"connector_type": _BYTE, "port_type": _BYTE, "instance": _BYTE, "speed": _WORD}
_LARGEST_TYPE = 127


def configure_smbios(given: list[Options], config: MachineConfig) -> None:
    """Fill in what each ``-smbios`` asks for; a UUID there is the machine's.  Raises ConfigError."""
    if not given:
        return
    config.smbios = asked = SmbiosFields()
    for options in given:
        if "file" in options:
            _add_file(options, asked)
        elif "type" in options:
            _add_fields(options, asked)
        else:
            raise options.error("Must specify type= or file=")
    wanted = asked.of(SYSTEM).get("uuid")
    if wanted is not None:
        config.uuid = str(wanted)


def _add_file(options: Options, asked: SmbiosFields) -> None:
    path = options.required("file")
    for name, _ in options:
        if name != "file":
            raise options.error(f"Invalid parameter '{name}'")
    structure = _whole_structure(read_file(path, _LONGEST_FILE, f"{options.origin}: Cannot read SMBIOS file {path}"))
    if structure is None:
        raise options.error(f"SMBIOS file {path} is not one structure with its strings")
    kind = structure[0]
    if kind in asked.fields:
        raise options.error(f"SMBIOS type {kind} field already defined, cannot add table")
    asked.structures.append(structure)


def _whole_structure(content: bytes) -> bytes | None:
    """Return a structure with the end that its strings need; None where it is none."""
    if not _HEADER <= len(content) <= _LONGEST_FILE or not _HEADER <= content[1] <= len(content):
        return None
    if content[0] >= _LARGEST_TYPE:
        return None
    strings = content[content[1] :]
    if not strings.endswith(b"\0\0"):
        strings = strings.rstrip(b"\0") + b"\0\0"
    # What came behind the end of the strings would be read as another structure.
    return content[: content[1]] + strings if strings.index(b"\0\0") == len(strings) - 2 else None


def _add_fields(options: Options, asked: SmbiosFields) -> None:
    kind = options.number("type", high=_BYTE)
    if kind not in FIELDS:
        raise options.error(f"Don't know how to build fields for SMBIOS type {kind}")
    if any(structure[0] == kind for structure in asked.structures):
        raise options.error(f"SMBIOS type {kind} table already defined, cannot add fields")
    fields: dict[str, str | int] = {}
    for name, value in options:
        if name == "type":
            continue
        if kind == OEM_STRINGS and name in FIELDS[kind]:
            asked.oem_strings.append(_oem_string(options, name, str(value)))
        else:
            fields[name] = _field(options, kind, name, str(value))
    if kind == PORT:
        asked.ports.append(fields)
    elif kind == ONBOARD_DEVICE:
        asked.devices.append(fields)
    elif kind != OEM_STRINGS:
        asked.fields[kind] = {**asked.of(kind), **fields}


def _field(options: Options, kind: int, name: str, text: str) -> str | int:
    """Return the value of a field.  Raises ConfigError."""
    what = FIELDS[kind].get(name)
    if what is None:
        raise options.error(f"Invalid parameter '{name}'")
    if what == "boolean":
        return bool(options.checked(lambda: parse_boolean(name, text)))
    if what == "number":
        return _number(options, kind, name, text)
    if what == "release":
        return _release(options, text)
    if what == "uuid":
        return str(options.checked(lambda: parse_uuid(text)))
    if what == "device" and text not in ONBOARD_KINDS:
        raise options.error(f"invalid parameter value: {text}")
    return text


def _number(options: Options, kind: int, name: str, text: str) -> int:
    number = int(options.checked(lambda: parse_number(name, text)))
    if kind == PROCESSOR and name.endswith("speed") and number > _WORD:
        raise options.error(f"SMBIOS CPU speed is too large (> {_WORD})")
    if name in _LARGEST and number > _LARGEST[name]:
        raise options.error(f"Parameter '{name}' expects a number up to {_LARGEST[name]}")
    return number


def _release(options: Options, text: str) -> int:
    """Return a major and a minor number as they follow one another in the structure."""
    major, _, minor = text.partition(".")
    if not (major.isdecimal() and minor.isdecimal() and int(major) <= _BYTE and int(minor) <= _BYTE):
        raise options.error("Invalid release")
    return int(major) | int(minor) << 8


def _oem_string(options: Options, name: str, text: str) -> bytes:
    """Return a string for the guest: the text, or what a file has."""
    data = text.encode("utf-8", "surrogateescape")
    if name == "path":
        data = read_file(text, _LONGEST_FILE, f"{options.origin}: Unable to open {text}")
    if b"\0" in data:
        raise options.error(f"NUL in OEM strings value in {text}")
    if not data:
        raise options.error("an OEM string is not empty")
    return data
