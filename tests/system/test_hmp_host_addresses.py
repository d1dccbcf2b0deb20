"""Where guest memory is in the host: `gpa2hva` and `gpa2hpa`."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import pytest

from tests.system.machine_rig import Machine


def say(machine: Machine, line: str) -> str:
    return str(machine.execute("human-monitor-command", command_line=line)).replace("\r\n", "\n").rstrip("\n")


def address_of(text: str) -> int:
    found = re.search(r" is (0x[0-9a-f]+)$", text)
    assert found, text
    return int(found[1], 16)


def test_memory_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "bios").write_bytes(b"firmware".ljust(0x20000, b"\xff"))
    memory = ("-object", "memory-backend-ram,id=m1,size=16M", "-device", "pc-dimm,memdev=m1,id=d1")
    options = ("-m", "16,slots=1,maxmem=64M", "-bios", str(tmp_path / "bios"), "-device", "VGA,addr=2")
    with Machine(*options, *memory) as machine:
        pc = machine.pc
        pc.memory.write(0x1234, b"own memory")
        pc.memory.write(0x100000100, b"a module")
        found = pc.board.pci.function_at(2)
        assert found is not None
        found.config_write(0x10, 4, 0xE0000000)
        found.config_write(4, 2, 2)
        pc.mmio.write(0xE0000010, 4, 0x6F656476)
        for gpa, name, content in (
            (0x1234, "pc.ram", b"own memory"),
            (0x100000100, "m1", b"a module"),
            (0xE0000010, "vga.vram", b"vdeo"),
            (0xFFFE0000, "pc.bios", b"firmware"),
            (0xE0000, "pc.bios", b"firmware"),
        ):
            text = say(machine, f"gpa2hva {gpa:#x}")
            assert text.startswith(f"Host virtual address for {gpa:#x} ({name}) is 0x")
            assert ctypes.string_at(address_of(text), len(content)) == content
        assert "(pc.rom)" in say(machine, "gpa2hva 0xc0000")


def test_what_is_no_memory() -> None:
    with Machine() as machine:
        for command in ("gpa2hva", "gpa2hpa"):
            for address in ("0xfec00000", "0xfee00010"):
                assert say(machine, f"{command} {address}") == f"Memory at address {address} is not RAM"
            assert say(machine, f"{command} 0x10000000000") == "No memory is mapped at address 0x10000000000"
            help_line = f'unexpected end of expression\nTry "help {command}" for more information'
            assert say(machine, command) == help_line


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells frames to root")
def test_the_host_s_own_memory() -> None:
    with Machine() as machine:
        machine.pc.memory.write(0x3000, b"page")
        text = say(machine, "gpa2hpa 0x3010")
        assert text.startswith("Host physical address for 0x3010 (pc.ram) is 0x")
        assert address_of(text) % 4096 == 0x10
        assert say(machine, "gpa2hpa 0x900000") == "Page not present"
