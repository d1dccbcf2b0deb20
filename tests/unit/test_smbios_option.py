"""``-smbios``: what is asked for is in the tables, and what cannot be is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvm.commandline.groups import GROUPS
from pyvm.commandline.smbios import configure_smbios
from pyvm.config import MachineConfig
from pyvm.errors import ConfigError
from pyvm.firmware import smbios
from pyvm.firmware.smbios_fields import SmbiosFields
from pyvm.options import parse
from pyvm.records import replace
from tests.unit.test_smbios import machine_info
from tests.unit.test_smbios import parse as parse_structures


def asked(*texts: str) -> MachineConfig:
    config = MachineConfig()
    configure_smbios([parse(GROUPS["smbios"], text, f"-smbios {text}") for text in texts], config)
    return config


def structures(*texts: str) -> dict[int, list[tuple[bytes, list[str]]]]:
    """Return the structures of a small machine by type: area and strings of each."""
    fields = asked(*texts).smbios or SmbiosFields()
    found: dict[int, list[tuple[bytes, list[str]]]] = {}
    for kind, _, area, strings in parse_structures(smbios.build(replace(machine_info(1), smbios=fields)).structures):
        found.setdefault(kind, []).append((area, strings))
    return found


def test_without_it_nothing_is_asked_for() -> None:
    assert asked().smbios is None
    assert 2 not in structures()


@pytest.mark.parametrize(
    ("text", "kind", "strings"),
    [
        ("type=0,vendor=v,version=w,date=01/02/2003", 0, ["v", "w", "01/02/2003"]),
        ("type=1,serial=ds=nocloud;s=http://10.0.2.2/,,x,product=p,sku=k,family=f", 1,
         ["QEMU", "p", "pc-i440fx-7.2", "ds=nocloud;s=http://10.0.2.2/,x", "k", "f"]),
        ("type=2,asset=a,location=l", 2, ["QEMU", "Standard PC (i440FX + PIIX, 1996)", "pc-i440fx-7.2", "a", "l"]),
        ("type=3,manufacturer=m,version=v,serial=s,asset=a,sku=k", 3, ["m", "v", "s", "a", "k"]),
        ("type=4,sock_pfx=S,manufacturer=m,version=v,serial=s,asset=a,part=p", 4, ["S 0", "m", "v", "s", "a", "p"]),
        ("type=8,internal_reference=i,external_reference=e", 8, ["i", "e"]),
        ("type=17,loc_pfx=L,bank=b,manufacturer=m,serial=s,asset=a,part=p", 17, ["L 0", "b", "m", "s", "a", "p"]),
        ("type=41,designation=d", 41, ["d"]),
    ],
)  # fmt: skip
def test_strings(text: str, kind: int, strings: list[str]) -> None:
    assert [found for _, found in structures(text)[kind]] == [strings]


def test_numbers() -> None:
    found = structures(
        "type=0,release=3.14,uefi=on", "type=4,max-speed=3000,current-speed=65535,processor-id=0x1122334455667788",
        "type=8,connector_type=1,port_type=255", "type=17,speed=1600", "type=41,kind=ethernet,instance=7",
    )  # fmt: skip
    (bios, _), (processor, _), (port, _) = found[0][0], found[4][0], found[8][0]
    assert bios[19:22] == bytes((0x18, 3, 14))
    assert struct.unpack_from("<Q", processor, 8) == (0x1122334455667788,)
    assert struct.unpack_from("<HH", processor, 20) == (3000, 65535)
    assert (port[7], port[8]) == (1, 255)
    memory, device = found[17][0][0], found[41][0][0]
    assert struct.unpack_from("<H", memory, 21) == struct.unpack_from("<H", memory, 32) == (1600,)
    assert (device[5], device[6]) == (0x85, 7)


def test_fields_of_a_type_come_together_and_the_last_one_counts() -> None:
    ((_, strings),) = structures("type=1,serial=1,family=f", "type=1,serial=2")[1]
    assert strings[-2:] == ["2", "f"]


def test_strings_for_the_guest(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("from a file")
    text = f"type=11,value=io.systemd.credential:a=b,,c,value=second,path={path}"
    ((area, strings),) = structures(text, "type=11,value=last")[11]
    assert strings == ["io.systemd.credential:a=b,c", "second", "from a file", "last"]
    assert area[4] == 4


def test_ports_and_devices_are_as_many_as_asked_for() -> None:
    found = structures("type=8", "type=8", "type=41", "type=41,designation=x")
    assert (len(found[8]), len(found[41])) == (2, 2)


def test_the_uuid_is_the_machines() -> None:
    assert asked("type=1,uuid=00112233-4455-6677-8899-AABBCCDDEEFF").uuid == "00112233-4455-6677-8899-aabbccddeeff"


def test_a_file_replaces_what_the_machine_says(tmp_path: Path) -> None:
    path = tmp_path / "chassis"
    for end in (b"mine", b"mine\0", b"mine\0\0"):
        path.write_bytes(bytes((3, 5, 0x99, 0, 1)) + end)
        assert structures(f"file={path}")[3] == [(bytes((3, 5, 0x99, 0, 1)), ["mine"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=1", "Must specify type= or file="),
        ("type=99", "Don't know how to build fields for SMBIOS type 99"),
        ("type=1,foo=1", "Invalid parameter 'foo'"),
        ("type=0,release=x", "Invalid release"),
        ("type=0,release=1.256", "Invalid release"),
        ("type=0,uefi=x", "Parameter 'uefi' expects 'on' or 'off'"),
        ("type=1,uuid=x", "Invalid UUID"),
        ("type=4,max-speed=70000", "SMBIOS CPU speed is too large (> 65535)"),
        ("type=8,port_type=256", "Parameter 'port_type' expects a number up to 255"),
        ("type=41,kind=foo", "invalid parameter value: foo"),
        ("type=11,path=/nowhere", "Unable to open /nowhere: No such file or directory"),
        ("type=11,value=", "an OEM string is not empty"),
        ("file=/nowhere", "Cannot read SMBIOS file /nowhere: No such file or directory"),
        ("file=/nowhere,type=1", "Invalid parameter 'type'"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(text)
    assert str(caught.value) == f"-smbios {text}: {message}"


@pytest.mark.parametrize("content", [b"", b"\x01\x04\x00", b"\x01\x03\x00\x00", b"\x01\x09\x00\x00a", b"\x7f\x04\0\0",
                                     b"\x01\x04\x00\x00a\0\0\x7f\x04\0\0\0\0"])  # fmt: skip
def test_files_that_are_no_structure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not one structure with its strings"):
        asked(f"file={path}")


def test_a_type_is_a_file_or_fields(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes((3, 5, 0, 3, 1)) + b"x\0\0")
    with pytest.raises(ConfigError, match="SMBIOS type 3 field already defined, cannot add table"):
        asked("type=3,asset=a", f"file={path}")
    with pytest.raises(ConfigError, match="SMBIOS type 3 table already defined, cannot add fields"):
        asked(f"file={path}", "type=3,asset=a")
