"""What the log has of a guest, beside QEMU's: a program on the bare machine does the same in both."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from tests.baremetal import programs
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


FIRST = 0x100020
NO_OP, HALT = b"\x90", b"\xf4"
COUNT = b"\xb9\x03\x00\x00\x00" + NO_OP + b"\xe2\xfd"  # mov ecx, 3; nop; loop to the nop


def blocks(lines: list[str]) -> list[int]:
    """Return where the blocks begin that were entered, without the one in which the emulator leaves the program."""
    return [int(line.split("/")[1], 16) for line in lines if line.startswith("Trace 0: 0x")]


def both(folder: Path, code: bytes, *options: str) -> list[list[str]]:
    """Return the lines of pyvm's log, and of QEMU's where there is one."""
    emulators = [PYVM] if QEMU is None else [PYVM, [QEMU]]
    return [logged(emulator, folder, code, *options) for emulator in emulators]


def test_translated_code(tmp_path: Path) -> None:
    expected = [
        "----------------",
        "IN: ",
        "0x00100020:  b9 03 00 00 00           movl     $3, %ecx",
        "0x00100025:  90                       nop      ",
        "0x00100026:  e2 fd                    loop     0x100025",
        "",
        "----------------",
        "IN: ",
        "0x00100025:  90                       nop      ",
        "0x00100026:  e2 fd                    loop     0x100025",
        "",
        "----------------",
        "IN: ",
        "0x00100028:  b0 00                    movb     $0, %al",
        "0x0010002a:  e6 f4                    outb     %al, $0xf4",
    ]
    for lines in both(tmp_path, COUNT + EXIT, "-d", "in_asm", "-dfilter", f"{FIRST:#x}+0x100"):
        assert lines[: len(expected)] == expected


@pytest.mark.parametrize("single", [False, True])
def test_blocks_that_are_entered(single: bool, tmp_path: Path) -> None:
    begin = FIRST + 5
    expected = [FIRST, begin, begin, FIRST + 8]
    if single:
        expected = [FIRST, *[begin, begin + 1] * 3, FIRST + 8]
    options = ["-d", "exec,nochain", "-dfilter", f"{FIRST:#x}..{FIRST + 8:#x}", *["-singlestep"] * single]
    for lines in both(tmp_path, COUNT + EXIT, *options):
        # Before a block's first instruction an interrupt may come: then it is entered again.
        entered = blocks(lines)
        assert [address for address, _ in groupby(entered)] == [address for address, _ in groupby(expected)]
        assert len(entered) >= len(expected)


def test_registers_of_blocks(tmp_path: Path) -> None:
    load = b"\xb8\x44\x33\x22\x11\x01\xc0\xeb\x00"  # mov eax, 11223344h; add eax, eax; jmp to the next
    for lines in both(tmp_path, load + EXIT, "-d", "cpu,exec,nochain", "-dfilter", f"{FIRST + len(load):#x}+1"):
        assert lines[0].startswith("Trace 0: ")
        assert lines[1].startswith("EAX=22446688 ")
        assert lines[3].startswith(f"EIP={FIRST + len(load):08x} EFL=00000006 [-----P-] CPL=0 ")
        assert "CCS=11223344 CCD=22446688 CCO=ADDL" in lines
        assert not any(line.startswith("FCW=") for line in lines)
    with_fpu = logged(PYVM, tmp_path, load + EXIT, "-d", "cpu,fpu", "-dfilter", f"{FIRST + len(load):#x}+1")
    assert any(line.startswith("FCW=037f ") for line in with_fpu)


def interrupts(lines: list[str]) -> list[str]:
    """Return the lines about interrupts, but those that tell of what became a double fault."""
    found = [line for line in lines if " v=" in line or line.startswith("check_exception")]
    return [line for line, after in pairwise([*found, ""]) if line[0] != "c" or " v=08 " not in after]


@pytest.mark.skipif(QEMU is None or programs.compiler() is None, reason="QEMU or a C compiler for x86-64 is missing")
def test_interrupts(tmp_path: Path) -> None:
    program = next(program for program in programs.all_programs() if program.name == "exceptions64")
    told = []
    for emulator in (PYVM, [QEMU or ""]):
        log = tmp_path / "log"
        outcome = programs.run(
            emulator, replace(program, options=(*program.options, "-d", "int", "-D", str(log))), tmp_path
        )
        assert outcome.status == program.status
        told.append(interrupts(log.read_text().splitlines()))
    assert len(told[0]) > 50
    assert told[0] == told[1]
