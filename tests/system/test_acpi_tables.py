"""`-acpitable`: what is accepted, and what the guest finds."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.firmware.acpi import HEADER
from tests.system.machine_rig import Machine

BODY = bytes(range(64))


def header(table: bytes) -> tuple[object, ...]:
    """Return the fields of a table's header but its checksum, which is checked."""
    assert sum(table) & 0xFF == 0
    signature, length, revision, _, *rest = HEADER.unpack_from(table)
    assert length == len(table)
    return signature, revision, *rest


def table(body: bytes = BODY, *, signature: bytes = b"SLIC", length: int | None = None) -> bytes:
    """Return a table whose checksum is wrong, as is its length if one is given."""
    size = HEADER.size + len(body) if length is None else length
    return HEADER.pack(signature, size, 7, 0x55, b"MAKER ", b"MACHINE ", 3, b"COMP", 9) + body


def made(folder: Path, content: bytes, options: str) -> bytes:
    """Return the table that the option makes of a file."""
    (folder / "table").write_bytes(content)
    return parse_arguments(["-acpitable", options.replace("FILE", str(folder / "table"))]).acpi_tables[0]


def test_what_is_behind_a_header(tmp_path: Path) -> None:
    plain = made(tmp_path, BODY, "data=FILE")
    assert header(plain) == (b"QEMU", 1, b"QEMUQE", b"QEMUQEMU", 1, b"QEMU", 1)
    assert plain[HEADER.size :] == BODY
    assert made(tmp_path, BODY, "FILE") == plain
    fields = (
        "sig=AB,rev=2,oem_id=LONGER-THAN,oem_table_id=T,oem_rev=0x10,asl_compiler_id=CC,asl_compiler_rev=4294967295"
    )
    changed = made(tmp_path, BODY, f"data=FILE,{fields}")
    assert header(changed) == (*(b"AB\0\0", 2, b"LONGER", b"T".ljust(8, b"\0"), 16, b"CC\0\0", 0xFFFFFFFF),)
    assert made(tmp_path, BODY, "data=FILE:FILE")[HEADER.size :] == BODY + BODY


def test_whole_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = made(tmp_path, table(), "file=FILE")
    assert header(whole) == (b"SLIC", 7, b"MAKER ", b"MACHINE ", 3, b"COMP", 9)
    assert whole[HEADER.size :] == BODY
    assert header(made(tmp_path, table(), "file=FILE,oem_rev=5"))[4] == 5
    assert capsys.readouterr().err == ""
    made(tmp_path, table(length=9), "file=FILE")
    assert "warning: ACPI table has wrong length, header says 9, actual size 100 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("sig=ABCD", "requires one of 'data' or 'file'"),
        ("file=FILE,data=FILE", "requires one of 'data' or 'file'"),
        ("file=", "requires at least one pathname"),
        ("data=FILE:", "can't open file : No such file or directory"),
        ("data=/none/x", "can't open file /none/x: No such file or directory"),
        ("data=/", "can't read file /: Is a directory"),
        ("file=FILE", "too short, available: 3, expected: 36"),
        ("data=FILE,rev=256", "Parameter 'rev' expects uint8_t"),
        ("data=FILE,oem_rev=-1", "Parameter 'oem_rev' expects a uint64 value"),
        ("data=FILE,zz=1", "Invalid parameter 'zz'"),
    ],
)
def test_mistakes(options: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(tmp_path, b"abc", options)


def test_one_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ACPI table too big, requested: 65536, max: 65535"):
        made(tmp_path, bytes(0xFFFF - HEADER.size + 1), "data=FILE")
    assert len(made(tmp_path, bytes(0xFFFF - HEADER.size), "data=FILE")) == 0xFFFF


def test_what_the_guest_finds(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(table())
    (tmp_path / "two").write_bytes(bytes(60000))
    options = ("-acpitable", f"file={tmp_path}/one", "-acpitable", f"sig=MINE,data={tmp_path}/two")
    with Machine(*options) as machine:
        memory = machine.pc.memory
        installed = machine.pc._boot.installed
        assert installed is not None
        root = struct.unpack_from("<I", memory.read(installed.rsdp, 36), 16)[0]

        def read(address: int) -> bytes:
            return memory.read(address, struct.unpack("<4xI", memory.read(address, 8))[0])

        rsdt = read(root)
        tables = [read(address) for (address,) in struct.iter_unpack("<I", rsdt[HEADER.size :])]
        assert [one[:4] for one in tables[-2:]] == [b"SLIC", b"MINE"]
        assert tables[-2:] == machine.pc.config.acpi_tables
        assert all(sum(one) & 0xFF == 0 for one in (rsdt, *tables))
        # What has to have the SLIC's maker, and what has not.
        by_name = {one[:4]: HEADER.unpack_from(one)[4:6] for one in (rsdt, *tables)}
        assert by_name[b"RSDT"] == by_name[b"FACP"] == (b"MAKER ", b"MACHINE ")
        assert by_name[b"APIC"] == (b"BOCHS ", b"BXPC    ")
        listed = machine.execute("query-command-line-options", option="acpi")
        assert listed == [{"option": "acpi", "parameters": []}]
