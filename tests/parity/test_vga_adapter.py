"""The same registers and memory in QEMU's standard VGA: the same pictures, the same memory, the same registers.

QEMU's CPU stands still: its test protocol accesses the adapter.  Its cursor is on in pictures after every other reset
only, so that both are right here where the cursor is not the question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.vga_support import (
    LFB,
    MMIO,
    MODES,
    QEMU,
    Adapter,
    Ours,
    Qemu,
    dispi_mode,
    load_font,
    set_colours,
    set_mode,
)

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]

GRAPHICS = sorted(set(MODES) - {"text", "text8", "text40", "mono"})


class Pair:
    """Both adapters, programmed alike."""

    def __init__(self, qemu: Qemu) -> None:
        self.ours, self.qemu = Ours(), qemu

    def __iter__(self) -> Iterator[Adapter]:
        return iter((self.ours, self.qemu))

    def outw(self, port: int, *values: int) -> None:
        for adapter in self:
            for value in values:
                adapter.outw(port, value)

    def fill(self, address: int, data: bytes) -> None:
        for adapter in self:
            adapter.fill(address, data)

    def assert_same_picture(self) -> NDArray[np.uint8]:
        ours, theirs = self.ours.screen(), self.qemu.screen()
        assert ours.shape == theirs.shape
        wrong = np.argwhere((ours != theirs).any(axis=2))
        assert not len(wrong), f"{len(wrong)} pixels differ, the first at {wrong[0]}"
        assert (ours != ours[0, 0]).any(), "nothing is to be seen"
        return ours

    def assert_same_memory(self, length: int = 0x40000) -> None:
        assert self.ours.dump(LFB, length) == self.qemu.dump(LFB, length)


@pytest.fixture(scope="module")
def qemu() -> Iterator[Qemu]:
    machine = Qemu()
    yield machine
    machine.close()


@pytest.fixture
def pair(qemu: Qemu) -> Pair:
    qemu.reset()
    qemu.fill(LFB, bytes(0x40000))
    return Pair(qemu)


def noise(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def prepare(pair: Pair, mode: str) -> None:
    colours = [value & 0x3F for value in noise(1, 768)]
    for adapter in pair:
        set_colours(adapter, colours)
        set_mode(adapter, mode)


@pytest.mark.parametrize("mode", ["text", "text8", "text40", "mono"])
def test_text(pair: Pair, mode: str) -> None:
    prepare(pair, mode)
    base = 0x3B4 if mode == "mono" else 0x3D4
    pair.outw(base, 0x200A)  # no cursor
    for block in (0, 4):
        for adapter in pair:
            load_font(adapter, noise(2 + block, 4096), 16, block)
    cells = bytearray(noise(3, 0x4000))
    if mode == "mono":
        pair.outw(0x3CE, 0x0A06)
        cells[1::2] = bytes(value | 2 for value in cells[1::2])  # QEMU does not underline
    pair.fill(0xB0000 if mode == "mono" else 0xB8000, bytes(cells))
    pair.assert_same_picture()
    pair.outw(base, 0x010C, 0x400D, 0x3C13)
    pair.assert_same_picture()
    pair.outw(0x3C4, 0x0403)
    pair.assert_same_picture()
    pair.outw(base, 0x9F18, 0x0F07, 0x0F09)
    assert pair.assert_same_picture().shape[0] == 400
    pair.assert_same_memory(0x10000)


def test_the_cursor(pair: Pair) -> None:
    shapes = [(13, 14), (0, 15), (5, 3), (2, 31), (16, 20)]
    for first, last in shapes:
        for _ in range(2):  # QEMU's shows in one of two
            pair.qemu.reset()
            prepare(pair, "text")
            for adapter in pair:
                load_font(adapter, noise(5, 4096), 16)
            pair.fill(0xB8000, noise(6, 4000))
            pair.outw(0x3D4, first << 8 | 0x0A, last << 8 | 0x0B, 0x010E, 0x230F)
            theirs = pair.qemu.screen()
            shown, pictures = pair.ours.screen(), [pair.ours.screen()]
            pair.outw(0x3D4, (0x20 | first) << 8 | 0x0A)
            hidden = pair.ours.screen()
            pictures.append(hidden)
            assert any(picture.tobytes() == theirs.tobytes() for picture in pictures)
            if theirs.tobytes() != hidden.tobytes():
                break
        else:
            assert shown.tobytes() == hidden.tobytes(), (first, last)


@pytest.mark.parametrize("mode", GRAPHICS)
def test_graphics(pair: Pair, mode: str) -> None:
    prepare(pair, mode)
    window = 0xB8000 if mode.startswith("cga") else 0xA0000
    for plane in range(4):
        if mode not in ("mode13", "cga4"):
            pair.outw(0x3C4, 0x0100 << plane | 2)
        pair.fill(window, noise(7 + plane, 0x4000))
    pair.assert_same_picture()
    pair.outw(0x3D4, 0x010C, 0x330D, 0x2013)
    pair.assert_same_picture()
    pair.outw(0x3D4, 0x7F18, 0x1F07)
    pair.assert_same_picture()
    pair.outw(0x3C4, (0x09 if mode in ("mode12", "cga2") else 0x01) << 8 | 1)
    pair.assert_same_picture()
    pair.assert_same_memory()


@pytest.mark.parametrize("mode", ["ega", "mode13"])
def test_the_palette(pair: Pair, mode: str) -> None:
    prepare(pair, mode)
    pair.fill(0xA0000, noise(8, 0x8000))
    for register, value in ((0x14, 0x06), (0x10, 0x81), (0x12, 0x0B), (0x03, 0x3E)):
        for adapter in pair:
            adapter.inb(0x3DA)
            adapter.outb(0x3C0, register | 0x20)
            adapter.outb(0x3C0, value)
        pair.assert_same_picture()


@pytest.mark.parametrize("depth", [4, 8, 15, 16, 24, 32])
def test_the_display_interface(pair: Pair, depth: int) -> None:
    prepare(pair, "mode12")
    for adapter in pair:
        dispi_mode(adapter, 648, 300, depth, virt_width=800, x=9, y=3)
    pair.fill(LFB, noise(9, 0x40000))
    pair.assert_same_picture()
    if depth == 8:
        pair.outw(0x1CE, 4)
        pair.outw(0x1CF, 0xE1)
        for adapter in pair:
            set_colours(adapter, noise(10, 768))
        pair.assert_same_picture()
    if depth >= 15:
        pair.ours.vga.mmio_write(0x604, 4, 0xBEBEBEBE)
        pair.qemu.fill(MMIO + 0x604, b"\xbe" * 4)
        pair.assert_same_picture()


def test_back_from_the_display_interface(pair: Pair) -> None:
    prepare(pair, "mode13")
    for adapter in pair:
        dispi_mode(adapter, 800, 600, 32)
        adapter.outw(0x1CE, 4)
        adapter.outw(0x1CF, 0)
    prepare(pair, "mode13")
    pair.fill(0xA0000, noise(11, 64000))
    assert pair.assert_same_picture().shape == (400, 640, 3)


REGISTERS = ((0x3C4, 5), (0x3CE, 9), (0x3D4, 25))


def everything(adapter: Adapter) -> dict[str, Any]:
    """Read all registers that show themselves."""
    values: dict[str, Any] = {}
    for port, count in REGISTERS:
        for index in range(count):
            adapter.outb(port, index)
            values[f"{port:x}/{index:x}"] = adapter.inb(port + 1)
    for index in range(21):
        adapter.inb(0x3DA)
        adapter.outb(0x3C0, index)
        values[f"attribute/{index:x}"] = adapter.inb(0x3C0), adapter.inb(0x3C1)
    unlike = {0x3C3, 0x3C6, 0x3C9, 0x3DA}  # QEMU has no enable register and no mask; data and time differ
    values["ports"] = [adapter.inb(port) for port in range(0x3B0, 0x3E0) if port not in unlike]
    return values


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", ["ega", "text", "mode13"])
def test_display_memory(pair: Pair, mode: str, seed: int) -> None:
    """A random sequence of accesses and register writes; outside of planar modes only what both adapters allow."""
    choose = random.Random(seed)
    prepare(pair, mode)
    planar = mode == "ega"
    for _ in range(250):
        action = choose.random()
        if action < 0.4:
            index = choose.choice((0, 1, 2, 3, 4, 5, 7, 8) if planar else (0, 2, 7))
            value = choose.choice((0, 1, 2, 3, 8, 9, 10, 11)) if index == 5 else choose.randrange(256)
            pair.outw(0x3CE, value << 8 | index)
        elif action < 0.5:
            value = choose.choice((1, 2, 3)) if mode == "text" else choose.randrange(16)
            pair.outw(0x3C4, value << 8 | 2)
        else:
            address = choose.choice((0xA0000, 0xB0000, 0xB8000)) + choose.choice((choose.randrange(16), 0x7FFF))
            if action < 0.75:
                value = choose.randrange(256)
                for adapter in pair:
                    adapter.writeb(address, value)
            else:
                assert pair.ours.readb(address) == pair.qemu.readb(address), hex(address)
    pair.assert_same_memory()
    assert everything(pair.ours) == everything(pair.qemu)


@pytest.mark.parametrize("seed", range(10))
def test_display_interface_registers(pair: Pair, seed: int) -> None:
    choose = random.Random(seed)
    for adapter in pair:
        adapter.outb(0x3C2, 3)
    for _ in range(30):
        index = choose.choice((0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10, 11))
        value = choose.choice((choose.randrange(65536), choose.randrange(2000), choose.choice((4, 8, 15, 16, 24, 32))))
        if index == 4:
            value = choose.choice((0, 1, 2, 3, 0x41, 0x61, 0xC1, 0xE1)) | 0x80
        pair.outw(0x1CE, index)
        pair.outw(0x1CF, value)
        seen = []
        for adapter in pair:
            registers = []
            for register in range(12):
                adapter.outw(0x1CE, register)
                registers.append(adapter.inw(0x1D0))
            seen.append((registers, adapter.dump(MMIO + 0x600, 8), adapter.readb(MMIO + 0x502)))
        assert seen[0] == seen[1], (index, value)
    assert everything(pair.ours) == everything(pair.qemu)


def test_configuration_space(pair: Pair) -> None:
    vga, qemu = pair.ours.vga, pair.qemu
    for register in range(0, 0x40, 4):
        if register in (0x04, 0x10, 0x18):
            continue  # programmed by the fixture; 0x30 reads 0 in both, as there is no address in it
        assert vga.config_read(register, 4) == qemu.config_read(register), hex(register)
