"""The files of a saved machine: what is written is read again, and nothing that is wrong is believed."""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.create import create_image
from pyvm.block.open import open_image
from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.firmware.tables import FW_CFG_FILES
from pyvm.machine import Pc
from pyvm.memory import GuestMemory, RamBlock
from pyvm.migration.page_scan import touched
from pyvm.migration.ram_file import RamPart, SavedRam, write_ram
from pyvm.migration.snapshot import Snapshot
from pyvm.migration.state_file import SnapshotError, read_state, write_state
from tests.unit.firmware_images import BzImage, save

PAGE = mmap.PAGESIZE

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.text(max_size=20) | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc-/", min_size=1), inner, max_size=4),
    max_leaves=20,
)

relaxed = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@relaxed
@given(header=st.dictionaries(st.sampled_from("abc"), plain), sections=st.dictionaries(st.text(max_size=9), plain))
def test_what_is_written_is_read(tmp_path: Path, header: dict[str, Any], sections: dict[str, Any]) -> None:
    path = tmp_path / "state"
    path.unlink(missing_ok=True)
    write_state(str(path), header, sections)
    assert read_state(str(path)) == (header, sections)
    assert path.stat().st_mode & 0o777 == 0o600


@relaxed
@given(data=st.data())
def test_a_byte_that_is_wrong_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    path.unlink(missing_ok=True)
    write_state(str(path), {"a": 1}, {"one": {"x": b"bytes"}, "two": [1, 2, 3]})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    path.write_bytes(content)
    with pytest.raises(SnapshotError):
        read_state(str(path))


@relaxed
@given(data=st.binary(max_size=300))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any"
    for content in (data, b"pyvmstat" + data):
        path.write_bytes(content)
        with pytest.raises(SnapshotError):
            read_state(str(path))


def test_where_the_tables_are_is_found_when_somebody_asks(tmp_path: Path) -> None:
    options = ("-S", "-nodefaults", "-m", "16", "-kernel", save(tmp_path, "kernel", BzImage().build()))
    made = Pc(parse_arguments(options))
    made.save_snapshot(str(tmp_path / "saved"), [])
    restored = Pc(parse_arguments([*options, "-incoming", f"file:{tmp_path / 'saved'}"]))
    try:
        assert "acpi" not in vars(restored.tables)
        assert restored._boot.installed == made._boot.installed is not None
        for name in FW_CFG_FILES:
            assert restored.board.fw_cfg.file_data(name) == made.board.fw_cfg.file_data(name)
        restored.reset_hardware()
        assert restored._boot.installed == made._boot.installed
    finally:
        restored.close()
        made.close()


def with_header(path: Path, header: object, rest: bytes = b"", version: int = 1) -> str:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<8sIII", b"pyvmstat", version, len(head), zlib.crc32(head)) + head + rest)
    return str(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "lists no sections"),
        ({}, "lists no sections"),
        ({"sections": [["a", -1, 0]]}, "no section"),
        ({"sections": [["a", True, 0]]}, "no section"),
        ({"sections": [["a", 1]]}, "no section"),
        ({"sections": [[1, 1, 1]]}, "no section"),
        ({"sections": [["a", 1 << 70, 0]]}, "cut off"),
        ({"sections": [["a", 5, 0]]}, "cut off"),
        ({"sections": [["a", 4, 0]]}, "checksum"),
        ({"sections": []}, "behind the last"),
        (b"{", "header"),
        (b"[" * 100000, "header"),
        ({"sections": [], "x": {"base64": 5}}, "bytes that are none"),
        ({"sections": [], "x": {"base64": "?"}}, "header"),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        read_state(with_header(tmp_path / "state", header, b"null"))


def test_versions(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="version 2"):
        read_state(with_header(tmp_path / "state", {"sections": []}, version=2))
    with pytest.raises(SnapshotError, match="No such file"):
        read_state(str(tmp_path / "none"))


# ---- Memory


def test_memory_with_holes(tmp_path: Path) -> None:
    memory = GuestMemory(1 << 20, [RamBlock(0, 1 << 20, 0)])
    try:
        for gpa in (0, 3 * PAGE + 5, 100 * PAGE - 1, (1 << 20) - 1):
            memory.write(gpa, b"x")
        with memoryview(memory.mapping) as first, memoryview(bytes(3 * PAGE) + b"y" * PAGE) as second:
            path = str(tmp_path / "ram")
            parts = write_ram(path, {"first": first, "second": second}, {"first": touched(memory.fd, memory.size)})
            assert parts == [RamPart("first", 0, 1 << 20), RamPart("second", 1 << 20, 4 * PAGE)]
            with open(path, "rb") as file:
                assert file.read() == bytes(first) + bytes(second)
            assert os.stat(path).st_blocks * 512 == 5 * PAGE
        saved = SavedRam(path, parts[0])
        assert saved.mapping[:] == memory.mapping[:]
        saved.mapping[3 * PAGE] = 7
        assert SavedRam(path, parts[0]).mapping[3 * PAGE] == 0, "changes stay where they are made"
        saved.discard(3 * PAGE, PAGE)
        assert saved.mapping[3 * PAGE : 4 * PAGE] == bytes(PAGE)
        assert saved.mapping[0] == ord("x")
        saved.mapping[3 * PAGE] = 9
        assert SavedRam(path, parts[0]).mapping[3 * PAGE + 5] == ord("x")
    finally:
        memory.close()


@pytest.mark.parametrize(
    "parts",
    [[["pc.ram", 0, 1 << 40]], [["pc.ram", -PAGE, PAGE]], [["pc.ram", 0, 0]], [["pc.ram", "0", PAGE]], [[]]],
)
def test_memory_that_is_not_there(tmp_path: Path, parts: list[Any]) -> None:
    (tmp_path / "ram").write_bytes(bytes(PAGE))
    write_state(str(tmp_path / "state"), {"arguments": [], "ram": parts}, {})
    with pytest.raises(ConfigError, match="cut off"):
        Snapshot(str(tmp_path))


@pytest.mark.parametrize("arguments", [None, "x", [1]])
def test_no_command_line(tmp_path: Path, arguments: Any) -> None:
    (tmp_path / "ram").write_bytes(b"")
    write_state(str(tmp_path / "state"), {"arguments": arguments, "ram": []}, {})
    with pytest.raises(ConfigError, match="no command line"):
        Snapshot(str(tmp_path))


@pytest.mark.parametrize("durable", [True, False])
def test_an_image_that_is_temporary_waits_for_no_disk(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fdatasync", waited.append)
    create_image(str(tmp_path / "image"), "qcow2", 1 << 20, durable=durable)
    assert bool(waited) == durable
    node = open_image(str(tmp_path / "image"))
    assert node.size == 1 << 20
    assert not any(node.read(0, 512))
    node.release()
