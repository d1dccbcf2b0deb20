"""`-option-rom` and the ROMs of PCI devices: what is accepted, and what firmware in the guest finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvm.commandline import parse_arguments
from pyvm.config import OptionRomConfig
from pyvm.errors import ConfigError
from tests.system.machine_rig import Machine

CONTENT = b"\x55\xaa\x02" + bytes(997)


@pytest.fixture
def rom(tmp_path: Path) -> str:
    path = tmp_path / "a.rom"
    path.write_bytes(CONTENT)
    return str(path)


def test_the_option(rom: str) -> None:
    config = parse_arguments(["-option-rom", f"{rom},bootindex=3"])
    assert config.option_roms == [OptionRomConfig("a.rom", CONTENT, 3)]
    assert parse_arguments(["-option-rom", f"romfile={rom},bootindex=-1"]).option_roms[0].bootindex is None


def test_mistakes(rom: str, tmp_path: Path) -> None:
    for text, complaint in (
        ("bootindex=1", "Option ROM file is not specified"),
        ("/none/x", "Could not open option rom '/none/x': No such file or directory"),
        (f"{rom},bootindex=x", "Parameter 'bootindex' expects a number"),
        (f"{rom},size=1", "Invalid parameter 'size'"),
        (str(tmp_path), "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            parse_arguments(["-option-rom", text])
    with pytest.raises(ConfigError, match=r"duplicate fw_cfg file name: genroms/a\.rom"):
        parse_arguments(["-option-rom", rom, "-option-rom", rom])
    with pytest.raises(ConfigError, match="too many option ROMs"):
        parse_arguments(["-option-rom", rom] * 17)
    with pytest.raises(ConfigError, match="Two devices with same boot index 0"):
        parse_arguments(["-option-rom", f"{rom},bootindex=0", "-kernel", os.devnull])


def test_what_is_wrong_with_a_kernel_is_said_at_once(rom: str) -> None:
    with pytest.raises(ConfigError, match="could not open kernel file"):
        Machine("-option-rom", rom, "-kernel", os.devnull)


def test_what_firmware_finds(rom: str) -> None:
    options = ("-option-rom", f"{rom},bootindex=5", "-device", "virtio-net-pci,bootindex=7,addr=6")
    with Machine(*options, "-device", "e1000,bootindex=2,addr=4.0") as machine:
        fw_cfg = machine.pc.board.fw_cfg
        assert fw_cfg.file_data("genroms/a.rom") == CONTENT
        order = fw_cfg.file_data("bootorder").rstrip(b"\0").decode().split("\n")
        assert order == [
            "/pci@i0cf8/ethernet@4/ethernet-phy@0",
            "/rom@genroms/a.rom",
            "/pci@i0cf8/ethernet@6/ethernet-phy@0",
        ]
        assert machine.pc.plugger.card_places() == {4 << 3: 2, 6 << 3: 7}


def test_a_bootindex_is_somebody_s() -> None:
    with pytest.raises(ConfigError, match="The bootindex 1 has already been used"):
        Machine("-device", "e1000,bootindex=1", "-device", "virtio-net-pci,bootindex=1")


def test_the_rom_of_a_device(rom: str) -> None:
    options = ("-device", f"virtio-rng-pci,romfile={rom},addr=5", "-device", "virtio-rng-pci,rombar=0,addr=6")
    with Machine(*options) as machine:
        bus = machine.pc.board.pci
        function, bare = bus.function_at(5), bus.function_at(6)
        assert function is not None
        assert bare is not None
        assert (function.rom_size, bare.rom_size) == (2048, 0)
        function.config_write(0x30, 4, 0xF0000001)
        function.config_write(4, 2, 2)
        assert machine.pc.board.mmio.read(0xF0000000, 4) == int.from_bytes(CONTENT[:4], "little")
        assert machine.execute("qom-get", path="/machine/peripheral-anon/device[0]", property="romfile") == rom


def test_the_size_of_its_window(rom: str) -> None:
    with Machine("-device", f"e1000,romfile={rom},romsize=65536,addr=5") as machine:
        function = machine.pc.board.pci.function_at(5)
        assert function is not None
        assert function.rom_size == 65536


def test_roms_that_a_device_cannot_have(rom: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for properties, complaint in (
        ("romfile=/none/x", 'failed to find romfile "/none/x"'),
        (f"romfile={empty}", f'romfile "{empty}" is empty'),
        (f"romfile={tmp_path}", "size cannot exceed 2 GiB"),
        (f"romfile={rom},romsize=100", "ROM size 100 is not a power of two"),
        (f"romfile={rom},romsize=512", r"\(1000 bytes\) is too large for ROM size 512"),
        (f"romfile={rom},rombar=0", "rombar=1"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            Machine("-device", f"virtio-rng-pci,{properties}")
