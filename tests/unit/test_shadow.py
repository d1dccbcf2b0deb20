"""Shadow RAM: what a processor reads and writes between 0xc0000 and 1 MiB."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pyvm.config import BootConfig, MachineConfig
from pyvm.errors import ConfigError
from pyvm.machine.pc import Pc
from pyvm.machine.shadow import read_firmware

PAM0, PAM1 = 0x59, 0x5A
HLT = 0xF4
RESET_OFFSET = 0xFFF0


def _firmware(tmp_path: Path, code: bytes) -> str:
    """Return a file whose reset vector jumps to `code` at its end less 64 KiB."""
    image = bytearray(b"\xf4" * 0x20000)
    image[0x10000 : 0x10000 + len(code)] = code
    image[0x10000 + RESET_OFFSET : 0x10000 + RESET_OFFSET + 5] = b"\xea\x00\x00\x00\xf0"  # jmp f000:0000
    path = tmp_path / "firmware"
    path.write_bytes(image)
    return str(path)


def _pam(register: int, value: int) -> bytes:
    """Return 16-bit code that writes a register of the host bridge."""
    address = 0x80000000 | register & ~3
    return (
        b"\x66\xb8" + address.to_bytes(4, "little") + b"\xba\xf8\x0c\x66\xef"  # mov eax, address; mov dx, 0xcf8; out
        b"\xb0" + bytes([value]) + b"\xba" + (0xCFC + (register & 3)).to_bytes(2, "little") + b"\xee"  # mov al; out
    )


def _run(tmp_path: Path, code: bytes) -> Pc:
    """Run firmware to its halt; return the machine, stopped."""
    pc = Pc(MachineConfig(boot=BootConfig(bios=_firmware(tmp_path, code + b"\xf4"))))
    with pc.lock:
        pc.vm_start()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with pc.lock:
            pc.cpus.stop()
            halted = pc.cpus.registers(0)["activity"] == "halted"
            if halted:
                return pc
            pc.cpus.start(0)
        time.sleep(0.001)
    raise AssertionError(f"the firmware did not halt: {pc.cpus.registers(0)}")


READ_C8000 = b"\xb8\x00\xc8\x8e\xd8\xa0\x00\x00"  # mov ax, 0xc800; mov ds, ax; mov al, [0]
WRITE_C8000 = b"\xc6\x06\x00\x00\x5a"  # mov byte [0], 0x5a


@pytest.mark.parametrize(
    ("bits", "reads", "stored"),
    [(0, 0xFF, 0x11), (1, 0x11, 0x11), (2, 0xFF, 0x5A), (3, 0x5A, 0x5A)],
    ids=["rom", "write-protected", "reads rom, writes ram", "ram"],
)
def test_each_mode_of_a_segment(tmp_path: Path, bits: int, reads: int, stored: int) -> None:
    """RAM is filled first; then a byte is written and read back in the mode."""
    fill = _pam(PAM1 + 1, 0x33) + READ_C8000 + b"\xc6\x06\x00\x00\x11"
    check = _pam(PAM1 + 1, bits) + WRITE_C8000 + b"\xa0\x00\x00"
    pc = _run(tmp_path, fill + check)
    try:
        assert pc.cpus.registers(0)["gpr"][0] == reads
        assert pc.memory.read(0xC8000, 1)[0] == stored
    finally:
        pc.close()


def test_firmware_copies_itself_into_ram_and_goes_on_there(tmp_path: Path) -> None:
    """The classical way: writes to RAM, reads from ROM; a copy onto itself; then RAM alone."""
    copy = b"\xb8\x00\xf0\x8e\xd8\x8e\xc0\x31\xf6\x31\xff\xb9\x00\x80\xfc\xf3\xa5"  # ds = es = f000; rep movsw
    code = _pam(PAM0, 0x20) + copy + _pam(PAM0, 0x30) + b"\xc6\x06\x00\x90\x77\xa0\x00\x90"
    pc = _run(tmp_path, code)
    try:
        assert pc.cpus.registers(0)["gpr"][0] == 0x77
        assert pc.memory.read(0xF0000, len(code)) == code
        assert pc.memory.read(0xF9000, 1) == b"\x77"
    finally:
        pc.close()


def test_a_reset_shows_the_rom_again(tmp_path: Path) -> None:
    """And so does every segment."""
    pc = _run(tmp_path, _pam(PAM0, 0x30) + READ_C8000)
    try:
        with pc.lock:
            pc.reset_hardware()
        assert not any(segment.readable or segment.writable for segment in pc.board.host_bridge.pam_segments())
        assert pc.cpus.registers(0)["rip"] == RESET_OFFSET
    finally:
        pc.close()


@pytest.mark.parametrize("size", [0, 1000, (16 << 20) + 0x10000])
def test_files_that_cannot_be_firmware(tmp_path: Path, size: int) -> None:
    """Empty, odd, and too large ones."""
    path = tmp_path / "firmware"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(ConfigError, match="64 KiB"):
        read_firmware(str(path))
