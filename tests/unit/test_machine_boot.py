"""What firmware leaves for the guest in a machine that was built from a command line."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.machine import Pc


@contextmanager
def machine(*arguments: str) -> Iterator[Pc]:
    pc = Pc(parse_arguments(["-S", "-nodefaults", "-display", "none", *arguments]))
    try:
        yield pc
    finally:
        pc.close()


def test_fw_cfg_describes_the_machine() -> None:
    with machine("-m", "256", "-smp", "3", "-fw_cfg", "name=opt/org.test,string=hello") as pc:
        fw_cfg = pc.board.fw_cfg
        assert fw_cfg.file_data("opt/org.test") == b"hello"
        entries = list(struct.iter_unpack("<QQI", fw_cfg.file_data("etc/e820")))
        assert sum(length for _, length, kind in entries if kind == 1) > 255 << 20
        tables = fw_cfg.file_data("etc/acpi/tables")
        assert tables.count(b"FACP") == 1
        fw_cfg.select(5)
        assert int.from_bytes(bytes(fw_cfg.read(1, 1) for _ in range(2)), "little") == 3


def test_a_file_of_the_user_does_not_replace_a_table() -> None:
    with (
        pytest.raises(ConfigError, match="duplicate fw_cfg file name: etc/acpi/rsdp"),
        machine("-fw_cfg", "name=etc/acpi/rsdp,string=x"),
    ):
        pass


def test_without_a_kernel_the_boot_processor_starts_in_the_bios() -> None:
    with machine() as pc:
        state = pc.cpus.registers(0)
        assert state["activity"] == "running"
        assert (state["cs"][0], state["rip"]) == (0xF000, 0xE05B)
        assert pc.memory.read(0xFFFF0, 1) == b"\xea"
        assert pc.memory.read_u32(4 * 0x13) == 0xF000E3FE
