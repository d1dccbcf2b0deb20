"""The AML assembler, against the encodings of the specification and, where it is installed, Intel's disassembler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvm.firmware import aml
from pyvm.firmware import aml_resources as res
from pyvm.firmware.acpi import HEADER, checksum
from pyvm.firmware.aml import Access, Space, Update


def decode_length(data: bytes) -> tuple[int, int]:
    """Return the length that a package length encodes and how many bytes it takes itself."""
    extra = data[0] >> 6
    if not extra:
        return data[0], 1
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + extra], "little") << 4, 1 + extra


@given(st.integers(0, 1 << 20))
def test_package_length_counts_itself(size: int) -> None:
    body = bytes(size)
    encoded = aml.package_length(body)
    length, width = decode_length(encoded)
    assert length == len(encoded) == width + size


@pytest.mark.parametrize("size", [0, 62, 63, 64, 4093, 4094, 4095, (1 << 20) - 4, (1 << 20) - 3])
def test_package_length_at_its_limits(size: int) -> None:
    encoded = aml.package_length(bytes(size))
    assert decode_length(encoded)[0] == len(encoded)


class Huge(bytes):
    """Says that it is longer than any AML block can be, without taking the memory."""

    def __len__(self) -> int:
        return (1 << 28) - 4


def test_package_length_too_long() -> None:
    with pytest.raises(ValueError, match="too long"):
        aml.package_length(Huge())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, b"\0"),
        (1, b"\1"),
        (2, b"\x0a\2"),
        (255, b"\x0a\xff"),
        (256, b"\x0b\0\1"),
        (0xFFFF, b"\x0b\xff\xff"),
        (0x10000, b"\x0c\0\0\1\0"),
        (0xFFFFFFFF, b"\x0c\xff\xff\xff\xff"),
        (1 << 32, b"\x0e\0\0\0\0\1\0\0\0"),
        ((1 << 64) - 1, b"\x0e" + b"\xff" * 8),
    ],
)
def test_integers(value: int, expected: bytes) -> None:
    assert aml.integer(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", b"A___"),
        ("_SB", b"_SB_"),
        ("\\", b"\\\0"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("A.B.C", b"\x2f\3A___B___C___"),
        ("^^AB", b"^^AB__"),
        ("^", b"^\0"),
        ("", b"\0"),
    ],
)
def test_names(text: str, expected: bytes) -> None:
    assert aml.path(text) == expected


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: aml.path("abc"), "not an ACPI name"),
        (lambda: aml.path("ABCDE"), "not an ACPI name"),
        (lambda: aml.path("1AB"), "not an ACPI name"),
        (lambda: aml.path("A..B"), "not an ACPI name"),
        (lambda: aml.path("A\n"), "not an ACPI name"),
        (lambda: aml.integer(-1), "unsigned"),
        (lambda: aml.integer(1 << 64), "unsigned"),
        (lambda: aml.string("a\0"), "ASCII"),
        (lambda: aml.string("\u00e9"), "ASCII"),
        (lambda: aml.eisa_id("PNP0A0"), "EISA"),
        (lambda: aml.package(*[aml.ZERO] * 256), "too long"),
        (lambda: aml.arg(7), "Arg7"),
        (lambda: aml.local(8), "Local8"),
        (lambda: aml.method("M", 8), "8 arguments"),
        (lambda: aml.field("R", [("F", 1 << 28)], Access.ANY), "too wide"),
    ],
)
def test_what_cannot_be_encoded(action: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action()


def test_eisa_id_is_the_big_endian_compressed_form() -> None:
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


def test_blocks() -> None:
    assert aml.name("X", aml.ONE) == b"\x08X___\1"
    assert aml.device("D", aml.name("X", aml.ZERO)) == b"\x5b\x82\x0bD___\x08X___\0"
    assert aml.method("M", 2, aml.return_(aml.arg(1)), serialized=True) == b"\x14\x08M___\x0a\xa4\x69"
    assert aml.buffer(b"abc") == b"\x11\x06\x0a\x03abc"
    assert aml.package(aml.ONE, aml.integer(5)) == b"\x12\x05\x02\x01\x0a\x05"
    assert aml.processor("C000", 3) == b"\x5b\x83\x0bC000\x03\0\0\0\0\0"
    assert aml.operation_region("R", Space.SYSTEM_IO, 0x600, 4) == b"\x5b\x80R___\x01\x0b\0\x06\x0a\x04"
    assert aml.field("R", [("A", 8), ("", 70), ("B", 1)], Access.BYTE, Update.ZEROS, lock=True) == (
        b"\x5b\x81\x13R___\x51A___\x08\x00\x46\x04B___\x01"
    )


def test_statements() -> None:
    assert aml.if_(aml.equal(aml.arg(0), aml.ONE), aml.BREAK) == b"\xa0\x05\x93\x68\x01\xa5"
    assert aml.store(aml.integer(7), aml.local(2)) == b"\x70\x0a\x07\x62"
    assert aml.or_(aml.path("A"), aml.integer(0x80), aml.path("A")) == b"\x7dA___\x0a\x80A___"
    assert aml.create_field(aml.arg(0), 5, 32, "PRRI") == b"\x8a\x68\x0a\x05PRRI"
    assert aml.acquire("L") == b"\x5b\x23L___\xff\xff"
    assert aml.notify(aml.path("\\_SB"), 0x80) == b"\x86\\_SB_\x0a\x80"


def test_resources() -> None:
    end = b"\x79\0"
    assert res.template() == aml.buffer(end)
    assert res.io(0x3F8, 8) == b"\x47\x01\xf8\x03\xf8\x03\x01\x08"
    assert res.irq(4) == b"\x22\x10\x00"
    assert res.irq(12, 1) == b"\x22\x02\x10"
    assert res.dma(2) == b"\x2a\x04\x00"
    assert res.memory32(0xFED00000, 0x400) == b"\x86\x09\0\0\0\0\xd0\xfe\0\x04\0\0"
    assert res.interrupt(10, 11) == b"\x89\x0a\0\x09\x02\x0a\0\0\0\x0b\0\0\0"
    assert res.bus_range(0, 255) == b"\x88\x0d\0\x02\x0c\0\0\0\0\0\xff\0\0\0\0\x01"
    assert res.io_window(0xD00, 0xFFFF) == b"\x88\x0d\0\x01\x0c\x03\0\0\0\x0d\xff\xff\0\0\0\xf3"
    assert res.memory_window32(0xA0000, 0xBFFFF)[:6] == b"\x87\x17\0\0\x0c\x01"
    assert res.memory_window64(1 << 32, (1 << 33) - 1)[-8:] == (1 << 32).to_bytes(8, "little")


EVERYTHING = b"".join(
    (
        aml.mutex("LOCK"),
        aml.operation_region("REGS", Space.SYSTEM_IO, 0xAE00, 0x14),
        aml.field("REGS", [("UPFL", 32), ("", 32), ("DOWN", 8), ("FLAG", 1), ("", 7)], Access.DWORD),
        aml.method(
            "TEST",
            2,
            aml.acquire("LOCK"),
            aml.store(aml.ZERO, aml.local(0)),
            aml.while_(
                aml.less(aml.local(0), aml.integer(16)),
                aml.if_(aml.logical_and(aml.path("FLAG"), aml.logical_not(aml.arg(0))), aml.increment(aml.local(0))),
                aml.else_(aml.add(aml.local(0), aml.integer(2), aml.local(0)), aml.BREAK),
                aml.if_(aml.logical_or(aml.arg(1), aml.greater(aml.local(0), aml.ONE)), aml.sleep(10)),
            ),
            aml.shift_left(aml.ONE, aml.local(0), aml.local(1)),
            aml.shift_right(aml.local(1), aml.ONE, aml.local(1)),
            aml.subtract(aml.local(1), aml.ONE, aml.local(1)),
            aml.multiply(aml.local(1), aml.integer(3), aml.local(1)),
            aml.and_(aml.local(1), aml.integer(0xFF), aml.local(1)),
            aml.xor(aml.local(1), aml.ONES, aml.local(1)),
            aml.not_(aml.local(1), aml.path("UPFL")),
            aml.decrement(aml.local(1)),
            aml.store(aml.buffer(b"\1\2\3\4"), aml.local(2)),
            aml.store(aml.deref_of(aml.index(aml.local(2), aml.ONE)), aml.path("DOWN")),
            aml.store(aml.size_of(aml.local(2)), aml.local(3)),
            aml.release("LOCK"),
            aml.notify(aml.path("\\_SB"), 1),
            aml.return_(aml.string("done")),
            serialized=True,
        ),
        aml.method("CALL", 0, aml.return_(aml.call("TEST", aml.ZERO, aml.ONE))),
    )
)

EXPECTED = """
    Mutex (LOCK, 0x00)
    OperationRegion (REGS, SystemIO, 0xAE00, 0x14)
    Field (REGS, DWordAcc, NoLock, Preserve)
    Offset (0x08),
    DOWN, 8,
    FLAG, 1,
    Method (TEST, 2, Serialized)
    Acquire (LOCK, 0xFFFF)
    While ((Local0 < 0x10))
    If ((FLAG && !Arg0))
    Local0++
    Local0 += 0x02
    Break
    If ((Arg1 || (Local0 > One)))
    Sleep (0x0A)
    Local1 = (One << Local0)
    Local1 >>= One
    Local1 -= One
    Local1 *= 0x03
    Local1 &= 0xFF
    Local1 ^= Ones
    UPFL = ~Local1
    Local1--
    DOWN = DerefOf (Local2 [One])
    Local3 = SizeOf (Local2)
    Release (LOCK)
    Notify (\\_SB, One)
    Return ("done")
    Return (TEST (Zero, One))
"""


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (package acpica-tools) is not installed")
def test_the_disassembler_reads_what_was_meant(tmp_path: Path) -> None:
    length = HEADER.size + len(EVERYTHING)
    table = bytearray(HEADER.pack(b"SSDT", length, 2, 0, b"PYVM  ", b"TEST    ", 1, b"PYVM", 1) + EVERYTHING)
    table[9] = checksum(table)
    (tmp_path / "test.aml").write_bytes(table)
    subprocess.run(["iasl", "-d", "test.aml"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    source = " ".join((tmp_path / "test.dsl").read_text().split())
    for line in EXPECTED.strip().splitlines():
        assert " ".join(line.split()) in source
