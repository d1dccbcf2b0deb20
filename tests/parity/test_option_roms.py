"""Option ROMs run by the built-in BIOS, by SeaBIOS on pyvm, and by QEMU: the same ones, in the same order."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.rom_support import RETURN, multiboot, option_rom, say

QEMU = shutil.which("qemu-system-x86_64")
SEABIOS = Path("/usr/share/seabios/bios-256k.bin")
IPXE = Path("/usr/lib/ipxe/qemu/pxe-e1000.rom")
PYVM = [sys.executable, "-m", "pyvm"]
EMULATORS = {
    "built-in": PYVM,
    "seabios": [*PYVM, "-bios", str(SEABIOS)],
    "qemu": [QEMU or ""],
}
E1000 = 0x100E_8086
EXIT = b"\xb0\x00\xe6\xf4"
PATIENCE = 120


@pytest.fixture(params=EMULATORS)
def emulator(request: pytest.FixtureRequest) -> list[str]:
    """The words that start a machine."""
    if request.param == "qemu" and QEMU is None:
        pytest.skip("QEMU is not installed")
    if request.param == "seabios" and not SEABIOS.is_file():
        pytest.skip("SeaBIOS is not installed")
    return EMULATORS[request.param]


def run(emulator: list[str], folder: Path, *options: str) -> bytes:
    """Return what the ROMs of a machine wrote, up to the exit that one of them asked for."""
    log = folder / "log"
    words = [*emulator, "-nodefaults", "-display", "none", "-m", "16"]
    words += ["-chardev", f"file,id=log,path={log}", "-device", "isa-debugcon,iobase=0xe9,chardev=log"]
    words += ["-device", "isa-debug-exit,iobase=0xf4"]
    done = subprocess.run([*words, *options], cwd=folder, timeout=PATIENCE, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    return log.read_bytes()


def talkative(name: str, pci: int | None = None) -> bytes:
    """Return a ROM that says who it is at each of its entries."""
    text = name.encode()
    init, boot = say(b"<%s starts>" % text) + RETURN, say(b"<%s boots>" % text) + RETURN
    return option_rom(init, boot=boot, name=text, pci=pci)


def test_roms_of_every_kind(emulator: list[str], tmp_path: Path) -> None:
    connecting = option_rom(say(b"<adapter starts>") + RETURN, connect=say(b"<adapter connects>") + RETURN)
    files = {
        "first": talkative("first"),
        "old": option_rom(say(b"<old>") + RETURN, legacy=True),
        "adapter": connecting,
        "card": talkative("card", pci=E1000),
        "broken": talkative("broken")[:-1] + b"\0",
        "last": option_rom(say(b"<last starts>") + RETURN, boot=say(b"<last boots>") + EXIT),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.rom").write_bytes(content)
    options = ["-device", "e1000,romfile=card.rom,bootindex=2,addr=5"]
    for name, place in (("first", 3), ("old", None), ("adapter", None), ("broken", 0), ("last", 9)):
        options += ["-option-rom", f"{name}.rom" + ("" if place is None else f",bootindex={place}")]
    written = run(emulator, tmp_path, *options)
    # SeaBIOS takes the files of fw_cfg in the order of their names, and the built-in BIOS as they were given.
    said = written[1:-1].decode().split("><")
    assert sorted(said[:4]) == ["adapter starts", "card starts", "first starts", "last starts"]
    assert sorted(said[4:6]) == ["adapter connects", "old"]
    assert said[6:] == ["card boots", "first boots", "last boots"]


@pytest.mark.parametrize("place", ["", ",bootindex=1"])
def test_a_kernel_comes_behind_the_roms(place: str, tmp_path: Path) -> None:
    """And before what else has a place in the order of booting."""
    for name, content in (("user", talkative("user")), ("card", talkative("card", pci=E1000))):
        (tmp_path / f"{name}.rom").write_bytes(content)
    (tmp_path / "kernel").write_bytes(multiboot(say(b"<kernel>") + EXIT))
    options = ("-option-rom", f"user.rom{place}", "-device", "e1000,romfile=card.rom,bootindex=2", "-kernel", "kernel")
    expected = b"<card starts><user starts><kernel>"
    assert run(PYVM, tmp_path, *options) == expected
    if QEMU is not None:
        assert run([QEMU], tmp_path, *options) == expected


def test_a_drive_of_a_rom_boots(emulator: list[str], tmp_path: Path) -> None:
    """A ROM that answers int 13h for a drive of its own, which becomes drive 80h since it is first in the order."""
    sector = (say(b"<sector of the ROM>") + EXIT).ljust(510, b"\0") + b"\x55\xaa"
    handler = (
        b"\x80\xfa\x80\x75\x1c"  # cmp dl, its number; jne other
        b"\x80\xfc\x02\x75\x11"  # cmp ah, 2; jne done
        b"\x60\x1e\x0e\x1f\xbe\x00\x04\x89\xdf\xb9\x00\x02\xfc\xf3\xa4\x1f\x61"  # 512 bytes from cs:400h to es:bx
        b"\xb4\x00\xf8\xca\x02\x00"  # done: mov ah, 0; clc; retf 2
        b"\x2e\xff\x2e\xf0\x03"  # other: jmp far cs:[3f0h]
    )
    connect = (
        say(b"<connects>")
        + b"\x1e\x31\xc0\x8e\xd8\xa0\x75\x04\x04\x80\x2e\xa2\x82\x03"  # push ds; ds = 0; its number is the next
        + b"\x66\xa1\x4c\x00\x2e\x66\xa3\xf0\x03"  # keep the vector of int 13h
        + b"\xc7\x06\x4c\x00\x80\x03\x8c\x0e\x4e\x00"  # which is cs:380h from now on
        + b"\xfe\x06\x75\x04\x1f\xcb"  # one more drive; pop ds; retf
    )
    data = bytearray(option_rom(RETURN, connect=connect, units=4))
    data[0x380 : 0x380 + len(handler)] = handler
    data[0x400:0x600] = sector
    data[-1] = 0
    data[-1] = -sum(data) & 0xFF
    (tmp_path / "drive.rom").write_bytes(data)
    disk = (say(b"<sector of the disk>") + EXIT).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20)
    (tmp_path / "disk").write_bytes(disk)
    options = ["-drive", "file=disk,format=raw,if=none,id=d", "-device", "ide-hd,drive=d,bootindex=4"]
    written = run(emulator, tmp_path, *options, "-option-rom", "drive.rom,bootindex=1")
    assert written == b"<connects><sector of the ROM>"
    written = run(emulator, tmp_path, *options, "-option-rom", "drive.rom,bootindex=7")
    assert written == b"<connects><sector of the disk>"


@pytest.mark.skipif(not IPXE.is_file(), reason="iPXE is not installed")
def test_the_network_boots_by_ipxe(tmp_path: Path) -> None:
    """A ROM of more than 64 KiB, which needs memory for itself, protected mode, timers and its card."""
    (tmp_path / "program").write_bytes(say(b"<from the network>") + EXIT)
    network = f"user,id=n,tftp={tmp_path},bootfile=program"
    card = f"e1000,netdev=n,bootindex=0,romfile={IPXE}"
    assert run(PYVM, tmp_path, "-m", "64", "-netdev", network, "-device", card) == b"<from the network>"
