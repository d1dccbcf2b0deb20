"""What the log has of a guest, beside QEMU's: a program on the bare machine does the same in both."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.rom_support import multiboot

QEMU = shutil.which("qemu-system-x86_64")
PYVM = [sys.executable, "-m", "pyvm"]
EXIT = b"\xb0\x00\xe6\xf4\xfa\xf4"
NOWHERE = 0xE000_0000
PATIENCE = 60

pytestmark = pytest.mark.parity


def logged(emulator: list[str], folder: Path, code: bytes, *options: str) -> list[str]:
    """Return the lines of the log that a machine writes while a kernel runs, up to the exit that it asks for."""
    kernel, log = folder / "kernel", folder / "log"
    kernel.write_bytes(multiboot(code))
    words = [*emulator, "-nodefaults", "-display", "none", "-m", "16", "-device", "isa-debug-exit,iobase=0xf4"]
    words += ["-D", str(log), "-kernel", str(kernel), *options]
    done = subprocess.run(words, timeout=PATIENCE, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    return log.read_text().splitlines()


def test_accesses_to_nothing(tmp_path: Path) -> None:
    read = b"\xa1" + struct.pack("<I", NOWHERE)  # mov eax, [address]
    write = b"\xa2" + struct.pack("<I", NOWHERE + 1) + b"\x66\xa3" + struct.pack("<I", NOWHERE + 2)  # al, then ax
    expected = [
        f"Invalid {access} at addr 0x{address:X}, size {size}, region '(null)', reason: rejected"
        for access, address, size in (("read", NOWHERE, 4), ("write", NOWHERE + 1, 1), ("write", NOWHERE + 2, 2))
    ]
    assert logged(PYVM, tmp_path, read + write + EXIT, "-d", "guest_errors") == expected
    if QEMU is not None:
        found = logged([QEMU], tmp_path, read + write + EXIT, "-d", "guest_errors")
        assert [line for line in found if f"{NOWHERE:X}"[:7] in line] == expected
