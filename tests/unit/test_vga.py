"""The display adapter: registers, display memory in all its modes, the display interface, PCI, and state."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.display import registers as r
from pyvm.devices.display.vga import Vga, VgaState
from pyvm.devices.pci.function import PciFunctionState
from pyvm.state import StateError
from tests.unit.vga_support import LFB, MMIO, MODES, Ours, dispi_mode, load_font, set_colours, set_mode

FRAME_NS = 14_268_000  # of mode 3, nearly: 449 lines of 31.78 us


@pytest.fixture
def adapter() -> Ours:
    return Ours()


def registers_of(adapter: Ours, port: int, count: int) -> list[int]:
    values = []
    for index in range(count):
        adapter.outb(port, index)
        values.append(adapter.inb(port + 1))
    return values


# ---- Ports


@pytest.mark.parametrize(("port", "count"), [(0x3C4, 5), (0x3CE, 9)])
def test_indexed_registers_keep_the_bits_that_exist(adapter: Ours, port: int, count: int) -> None:
    masks = {0x3C4: r.SEQ_MASKS, 0x3CE: r.GC_MASKS}[port]
    for index in range(count):
        adapter.outb(port, index)
        adapter.outb(port + 1, 0xFF)
    assert registers_of(adapter, port, count) == list(masks[:count])
    adapter.outb(port, 0xFF)
    assert adapter.inb(port) == {0x3C4: 7, 0x3CE: 15}[port]


def test_crtc_protection_covers_the_timing_but_for_one_bit(adapter: Ours) -> None:
    adapter.outb(0x3C2, 1)
    adapter.outw(0x3D4, 0x8011)
    for index in range(r.CRTC_COUNT):
        if index != 0x11:
            adapter.outw(0x3D4, 0xFF00 | index)
    values = registers_of(adapter, 0x3D4, r.CRTC_COUNT)
    assert values[:8] == [0, 0, 0, 0, 0, 0, 0, 0x10]
    assert values[8:0x11] == [0xFF] * 9
    adapter.outw(0x3D4, 0x0011)
    adapter.outw(0x3D4, 0xFF07)
    assert registers_of(adapter, 0x3D4, 8)[7] == 0xFF
    adapter.outb(0x3D4, r.CRTC_COUNT)
    adapter.outb(0x3D5, 0x55)
    assert adapter.inb(0x3D5) == 0


def test_the_attribute_controller_takes_index_and_data_in_turns(adapter: Ours) -> None:
    adapter.outb(0x3C2, 1)
    adapter.inb(0x3DA)
    for index in range(r.ATC_COUNT):
        adapter.outb(0x3C0, index)
        assert adapter.inb(0x3C0) == 0  # data is due
        adapter.outb(0x3C0, 0xFF)
        assert adapter.inb(0x3C0) == index
        assert adapter.inb(0x3C1) == r.ATC_MASKS[index]
    adapter.outb(0x3C0, 0x21)
    adapter.inb(0x3DA)
    adapter.outb(0x3C0, 0x22)  # an index again
    assert (adapter.inb(0x3C0), adapter.inb(0x3C1)) == (0, 0x3F)
    adapter.inb(0x3DA)
    assert adapter.inb(0x3C0) == 0x22
    adapter.outb(0x3C0, 0x1F)
    adapter.outb(0x3C0, 0xFF)  # no such register
    assert adapter.inb(0x3C1) == 0


def test_the_monochrome_ports_answer_in_their_turn(adapter: Ours) -> None:
    for colour in (True, False):
        adapter.outb(0x3C2, colour)
        assert adapter.inb(0x3CC) == colour
        there, elsewhere = (0x3D4, 0x3B4) if colour else (0x3B4, 0x3D4)
        adapter.outb(there, 0x0E)
        adapter.outb(there + 1, 0x5A)
        adapter.outb(elsewhere, 0x0F)
        assert adapter.inb(there) == 0x0E
        assert adapter.inb(there + 1) == 0x5A
        assert adapter.inb(elsewhere) == adapter.inb(elsewhere + 1) == adapter.inb(elsewhere + 6) == 0xFF
        adapter.outb(there + 6, 0xFF)
        assert adapter.inb(0x3CA) == r.FEATURE_MASK
        adapter.outb(elsewhere + 6, 0)
        assert adapter.inb(0x3CA) == r.FEATURE_MASK
        adapter.outb(there + 6, 0)


def test_a_disabled_adapter_answers_at_one_port_only(adapter: Ours) -> None:
    set_mode(adapter, "mode13")
    adapter.outb(0x3C3, 0)
    assert [adapter.inb(port) for port in (0x3CC, 0x3C4, 0x3D4, 0x3C3)] == [0xFF, 0xFF, 0xFF, 0]
    adapter.writeb(0xA0000, 1)
    assert adapter.readb(0xA0000) == 0xFF
    adapter.outb(0x3C3, 1)
    assert adapter.inb(0x3CC) == 0x63
    assert adapter.readb(0xA0000) == 0


def test_memory_does_not_answer_unless_the_misc_register_says_so(adapter: Ours) -> None:
    set_mode(adapter, "mode13")
    adapter.writeb(0xA0000, 7)
    adapter.outb(0x3C2, 0x61)
    adapter.writeb(0xA0000, 8)
    assert adapter.readb(0xA0000) == 0xFF
    adapter.outb(0x3C2, 0x63)
    assert adapter.readb(0xA0000) == 7


def test_dac(adapter: Ours) -> None:
    colours = [index * 7 % 64 for index in range(768)]
    set_colours(adapter, colours)
    assert adapter.inb(0x3C7) == 0
    adapter.outb(0x3C7, 0)
    assert adapter.inb(0x3C7) == 3
    assert [adapter.inb(0x3C9) for _ in range(769)] == [*colours, colours[0]]
    adapter.outb(0x3C8, 255)
    for value in (0xFF, 0xC1, 0x40):
        adapter.outb(0x3C9, value)
    assert adapter.inb(0x3C8) == 0  # the index wraps
    adapter.outb(0x3C7, 255)
    assert [adapter.inb(0x3C9) for _ in range(3)] == [0x3F, 0x01, 0x00]
    adapter.outb(0x3C6, 0x5A)
    assert adapter.inb(0x3C6) == 0x5A


def test_an_unfinished_colour_changes_nothing(adapter: Ours) -> None:
    adapter.outb(0x3C8, 1)
    adapter.outb(0x3C9, 10)
    adapter.outb(0x3C9, 11)
    adapter.outb(0x3C8, 1)
    for value in (1, 2, 3):
        adapter.outb(0x3C9, value)
    adapter.outb(0x3C7, 0)
    assert [adapter.inb(0x3C9) for _ in range(9)] == [0, 0, 0, 1, 2, 3, 0, 0, 0]


# ---- Retrace


def sample(adapter: Ours, total: int, step: int) -> list[int]:
    values = []
    for _ in range(total // step):
        values.append(adapter.inb(0x3DA))
        adapter.clock.advance(step)
    return values


def test_retrace_follows_the_guest_clock(adapter: Ours) -> None:
    set_mode(adapter, "text")
    values = sample(adapter, 10 * FRAME_NS, 10_000)
    retrace = [bool(value & r.STATUS1_RETRACE) for value in values]
    edges = sum(after and not before for before, after in itertools.pairwise(retrace))
    assert edges == 10
    # Two of 449 lines are retrace, and 400 lines of 80 in 100 characters are shown.
    assert sum(retrace) / len(retrace) == pytest.approx(2 / 449, rel=0.1)
    shown = sum(not value & r.STATUS1_NO_DISPLAY for value in values) / len(values)
    assert shown == pytest.approx(400 / 449 * 0.8, rel=0.02)
    assert all(value & r.STATUS1_NO_DISPLAY for value in values if value & r.STATUS1_RETRACE)


@pytest.mark.parametrize(("mode", "rate"), [("text", 70), ("mode13", 70), ("mode12", 60), ("ega", 70), ("mono", 70)])
def test_frame_rates_are_those_of_the_monitor(adapter: Ours, mode: str, rate: int) -> None:
    set_mode(adapter, mode)
    values = []
    for _ in range(100_000):
        values.append(adapter.vga.port_read((0x3BA if mode == "mono" else 0x3DA) - 0x3B0, 1) & r.STATUS1_RETRACE)
        adapter.clock.advance(10_000)
    edges = sum(after > before for before, after in itertools.pairwise(values))
    assert abs(edges - rate) <= 1


def test_retrace_comes_even_where_no_mode_is_set(adapter: Ours) -> None:
    adapter.outb(0x3C2, 1)
    assert {value & r.STATUS1_RETRACE for value in sample(adapter, 50_000_000, 20_000)} == {0, r.STATUS1_RETRACE}


# ---- Display memory


def test_chain_4_is_one_array_of_bytes(adapter: Ours) -> None:
    set_mode(adapter, "mode13")
    data = bytes(index * 5 & 0xFF for index in range(1000))
    adapter.fill(0xA0123, data)
    assert adapter.dump(LFB + 0x123, 1000) == data
    assert adapter.vga.window_read(0x123, 8) == int.from_bytes(data[:8], "little")
    adapter.vga.window_write(0x200, 4, 0x44332211)
    assert adapter.dump(0xA0200, 4) == b"\x11\x22\x33\x44"
    adapter.outw(0x3C4, 0x0502)  # planes 0 and 2 only
    adapter.fill(0xA0000, b"\xff" * 4)
    assert adapter.dump(LFB, 4) == b"\xff\0\xff\0"


def test_odd_even_addresses_hold_characters_and_attributes(adapter: Ours) -> None:
    set_mode(adapter, "text")
    adapter.fill(0xB8000, b"A\x07B\x1f")
    assert adapter.dump(LFB, 8) == b"A\x07\0\0B\x1f\0\0"
    adapter.outw(0x3CE, 0x0A06)  # the window at 0xb0000
    assert adapter.dump(0xB0000, 4) == b"A\x07B\x1f"
    assert adapter.readb(0xB8000) == 0xFF


def test_windows(adapter: Ours) -> None:
    set_mode(adapter, "mode13")
    seen = {0xA0000: 0x04, 0xAFFFF: 0x04, 0xB0000: 0x08, 0xB7FFF: 0x08, 0xB8000: 0x0C, 0xBFFFF: 0x0C}
    for select in (0x00, 0x04, 0x08, 0x0C):
        adapter.outw(0x3CE, (select | 1) << 8 | 6)
        for address, at in seen.items():
            adapter.writeb(address, 0x5A)
            assert (adapter.readb(address) == 0x5A) == (select in (0, at)), (select, hex(address))


def test_an_access_across_the_end_of_the_window(adapter: Ours) -> None:
    set_mode(adapter, "mode13")
    adapter.vga.window_write(0xFFFE, 4, 0x04030201)
    assert adapter.vga.window_read(0xFFFE, 4) == 0xFFFF0201
    assert adapter.dump(LFB + 0xFFFE, 4) == b"\x01\x02\0\0"


def ega_write(adapter: Ours, latches: bytes, value: int, **graphics: int) -> bytes:
    """Load the latches, write one byte under the given registers, and return what the four planes hold then."""
    names = ("set", "enable", "compare", "rotate", "map", "mode", "misc", "care", "bits")
    adapter.outw(0x3C4, 0x0F02)
    adapter.fill(LFB + 4, latches)
    adapter.outw(0x3CE, 0x0005)
    adapter.readb(0xA0001)
    for name, register in graphics.items():
        if name != "planes":
            adapter.outw(0x3CE, register << 8 | names.index(name))
    adapter.outw(0x3C4, graphics.get("planes", 0xF) << 8 | 2)
    adapter.writeb(0xA0001, value)
    return adapter.dump(LFB + 4, 4)


L = b"\x0f\x33\x55\xff"


@pytest.mark.parametrize(
    ("registers", "value", "expected"),
    [
        ({}, 0x96, b"\x96\x96\x96\x96"),
        ({"planes": 0b0101}, 0x96, b"\x96\x33\x96\xff"),
        ({"rotate": 3}, 0x96, b"\xd2\xd2\xd2\xd2"),
        ({"set": 0b0110, "enable": 0b0011}, 0x96, b"\x00\xff\x96\x96"),
        ({"bits": 0xF0}, 0x96, b"\x9f\x93\x95\x9f"),
        ({"rotate": 0x08}, 0x96, b"\x06\x12\x14\x96"),
        ({"rotate": 0x10}, 0x96, b"\x9f\xb7\xd7\xff"),
        ({"rotate": 0x18}, 0x96, b"\x99\xa5\xc3\x69"),
        ({"mode": 1, "bits": 0, "set": 5, "enable": 15}, 0x96, L),
        ({"mode": 1, "planes": 8}, 0x96, L),
        ({"mode": 2}, 0xF5, b"\xff\x00\xff\x00"),
        ({"mode": 2, "bits": 0x0F, "rotate": 0x18}, 0x05, b"\x00\x33\x5a\xff"),
        ({"mode": 3, "set": 0b1001, "bits": 0x3C}, 0x96, b"\x1f\x23\x41\xff"),
        ({"mode": 3, "set": 0b1001, "rotate": 4, "bits": 0xFF}, 0x96, b"\x6f\x12\x14\xff"),
    ],
)
def test_write_modes(adapter: Ours, registers: dict[str, int], value: int, expected: bytes) -> None:
    set_mode(adapter, "mode12")
    assert ega_write(adapter, L, value, **registers) == expected


def test_read_modes(adapter: Ours) -> None:
    set_mode(adapter, "mode12")
    adapter.fill(LFB, L)
    for plane in range(4):
        adapter.outw(0x3CE, plane << 8 | 4)
        assert adapter.readb(0xA0000) == L[plane]
    adapter.outw(0x3CE, 0x0805)
    for colour, care, expected in (
        (0b1111, 0b1111, 0x01),
        (0b1011, 0b1111, 0x02),
        (0, 0, 0xFF),
        (0b0001, 0b0011, 0x0C),
    ):
        adapter.outw(0x3CE, colour << 8 | 2)
        adapter.outw(0x3CE, care << 8 | 7)
        assert adapter.readb(0xA0000) == expected


def test_planes_beyond_the_memory_are_not_there(adapter: Ours) -> None:
    set_mode(adapter, "mode12")
    adapter.outw(0x1CE, 5)
    adapter.outw(0x1CF, 255)
    adapter.writeb(0xA0000, 1)
    assert adapter.readb(0xA0000) == 0xFF


# ---- The text buffer as memory


def test_the_text_buffer_becomes_memory_and_back() -> None:
    heard: list[bool] = []
    adapter = Ours()
    adapter.vga.on_window = heard.append
    set_mode(adapter, "text")
    assert heard == [True]
    adapter.vga.text_ram.write(0, 4, 0x1F42_0741)  # as the CPU does
    assert adapter.vga.window_read(0x18000, 4) == 0x1F42_0741
    adapter.vga.window_write(0x18004, 2, 0x2043)
    assert adapter.vga.text_ram.read(4, 2) == 0x2043
    load_font(adapter, bytes(4096), 16)
    assert heard == [True, False, True]
    assert adapter.dump(0xB8000, 6) == b"A\x07B\x1fC\x20"
    assert adapter.dump(LFB, 10) == b"A\x07\0\0B\x1f\0\0C\x20"
    adapter.outw(0x3CE, 0x0F08)  # a bit mask needs the ALU
    assert heard[-1] is False
    adapter.vga.window_read(0x18000, 1)
    adapter.writeb(0xB8000, 0xFF)
    assert adapter.dump(LFB, 2) == b"\x4f\x07"
    adapter.outw(0x3CE, 0xFF08)
    assert adapter.vga.text_ram.read(0, 2) == 0x074F


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"text", "text8", "text40", "cga4"}))
def test_other_modes_need_the_adapter(adapter: Ours, mode: str) -> None:
    set_mode(adapter, mode)
    assert not adapter.vga.direct


# ---- The display interface


def dispi(adapter: Ours, index: int) -> int:
    adapter.outw(0x1CE, index)
    return adapter.inw(0x1D0)


def test_identity_and_limits(adapter: Ours) -> None:
    assert [dispi(adapter, index) for index in (0, 10, 11, 0xFFFF)] == [0xB0C5, 256, 0, 0]
    for version in (0xB0C0, 0xB0C5):
        adapter.outw(0x1CE, 0)
        adapter.outw(0x1D0, version)
        assert dispi(adapter, 0) == version
    adapter.outw(0x1D0, 0x1234)
    assert dispi(adapter, 0) == 0xB0C5
    adapter.outw(0x1CE, 4)
    adapter.outw(0x1CF, r.DISPI_GETCAPS)
    assert [dispi(adapter, index) for index in (1, 2, 3)] == [16000, 12000, 32]
    assert adapter.vga.dispi_read(0, 1) == 0xFF
    adapter.vga.dispi_write(0, 1, 3)
    assert adapter.inw(0x1CE) == 3


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        ((1024, 768, 32), (1024, 768, 32, 1024, 4096)),
        ((1027, 768, 24), (1024, 768, 24, 1024, 5461)),
        ((0, 0, 7), (8, 1, 8, 8, 2 << 20 & 0xFFFF)),
        ((65535, 65535, 32), (16000, 262, 32, 16000, 262)),
    ],
)
def test_modes_are_made_to_fit(adapter: Ours, wanted: tuple[int, int, int], got: tuple[int, ...]) -> None:
    dispi_mode(adapter, *wanted)
    assert tuple(dispi(adapter, index) for index in (1, 2, 3, 6, 7)) == got


def test_offsets_are_made_to_fit(adapter: Ours) -> None:
    dispi_mode(adapter, 800, 600, 32, virt_width=1600, x=700, y=1000)
    assert [dispi(adapter, index) for index in (6, 7, 8, 9)] == [1600, 2621, 700, 1000]
    adapter.outw(0x1CE, 9)
    adapter.outw(0x1CF, 2100)
    assert [dispi(adapter, index) for index in (8, 9)] == [700, 0]


def test_enabling_clears_what_is_shown_unless_asked_not_to(adapter: Ours) -> None:
    adapter.fill(LFB, b"\xff" * 0x10000)
    dispi_mode(adapter, 64, 64, 8, flags=0xC1)
    assert adapter.dump(LFB, 4) == b"\xff" * 4
    dispi_mode(adapter, 64, 64, 8)
    assert adapter.dump(LFB, 64 * 64 + 1) == bytes(64 * 64) + b"\xff"


def test_the_banked_window(adapter: Ours) -> None:
    dispi_mode(adapter, 640, 480, 32, bank=255)
    adapter.vga.window_write(0xFFFC, 4, 0xDDCCBBAA)
    assert adapter.dump(LFB + (16 << 20) - 4, 4) == b"\xaa\xbb\xcc\xdd"
    assert adapter.readb(0xB0000) == 0xFF
    dispi_mode(adapter, 640, 480, 32)
    adapter.writeb(0xA0000, 1)
    assert adapter.dump(LFB, 1) == b"\x01"


def test_the_eight_bit_dac(adapter: Ours) -> None:
    dispi_mode(adapter, 640, 480, 8, flags=0x61)
    set_colours(adapter, [0xFF, 0x81, 0x40])
    adapter.outb(0x3C7, 0)
    assert [adapter.inb(0x3C9) for _ in range(3)] == [0xFF, 0x81, 0x40]
    dispi_mode(adapter, 640, 480, 8)
    set_colours(adapter, [0xFF])
    assert adapter.vga.save().dac.colour[0] == 0x3F


# ---- PCI


def test_configuration_space_is_that_of_the_standard_vga(adapter: Ours) -> None:
    vga = adapter.vga
    assert vga.config_read(0, 4) == 0x11111234
    assert vga.config_read(8, 4) == 0x03000002
    assert vga.config_read(0x2C, 4) == 0x11001AF4
    for bar, flags, size in ((0x10, 8, 16 << 20), (0x18, 0, 4096)):
        vga.config_write(bar, 4, 0xFFFFFFFF)
        assert vga.config_read(bar, 4) == (-size & 0xFFFFFFFF) | flags
    assert vga.config_read(0x14, 4) == vga.config_read(0x1C, 4) == 0
    assert vga.bars[0].window.ram is vga.vram


def test_edid(adapter: Ours) -> None:
    block = adapter.dump(MMIO, 128)
    assert block[:8] == bytes.fromhex("00ffffffffffff00")
    assert sum(block) & 0xFF == 0
    timing = block[54:72]
    assert timing[2] | (timing[4] & 0xF0) << 4 == 1280
    assert timing[5] | (timing[7] & 0xF0) << 4 == 800
    total = (1280 + 160) * (800 + 23)
    assert int.from_bytes(timing[:2], "little") * 10_000 / total == pytest.approx(60, abs=0.5)
    assert b"pyvm Monitor\n" in block
    assert adapter.dump(MMIO + 128, 0x400 - 128) == bytes(0x400 - 128)


def test_registers_in_memory(adapter: Ours) -> None:
    vga = adapter.vga
    vga.mmio_write(0x402, 1, 0x67)
    assert vga.mmio_read(0x40C, 1) == 0x67
    vga.mmio_write(0x404, 2, 0x0302)
    assert adapter.inb(0x3C5) == 3
    assert vga.mmio_read(0x404, 2) == 0x0302
    for index, value in ((1, 800), (2, 600), (3, 16), (4, 0x41)):
        vga.mmio_write(0x500 + 2 * index, 2, value)
    assert [dispi(adapter, index) for index in range(1, 7)] == [800, 600, 16, 0x41, 0, 800]
    assert vga.mmio_read(0x502, 4) == 600 << 16 | 800
    assert vga.mmio_read(0x514, 2) == 256
    vga.mmio_write(0x502, 4, 480 << 16 | 640)
    assert vga.mmio_read(0x502, 4) == 480 << 16 | 640
    assert (vga.mmio_read(0x600, 4), vga.mmio_read(0x604, 4)) == (8, r.ENDIAN_LITTLE)
    vga.mmio_write(0x604, 4, r.ENDIAN_BIG)
    assert vga.mmio_read(0x604, 4) == r.ENDIAN_BIG
    vga.mmio_write(0x604, 4, 5)
    assert vga.mmio_read(0x604, 4) == r.ENDIAN_BIG
    assert vga.mmio_read(0x700, 4) == 0


# ---- State


def busy() -> Ours:
    adapter = Ours()
    set_mode(adapter, "text40")
    set_colours(adapter, [index & 63 for index in range(770)])
    adapter.fill(0xB8000, bytes(range(200)))
    adapter.outb(0x3D4, 0x0E)
    return adapter  # the attribute controller waits for data


def test_a_state_says_all() -> None:
    adapter = busy()
    state = VgaState.from_dict(adapter.vga.save().to_dict())
    heard: list[bool] = []
    other = Vga(ManualClock(), on_window=heard.append)
    other.vram.view[:] = adapter.vga.vram.view
    other.load(state)
    assert heard == [True]
    assert other.save() == state
    assert other.text_ram.view == adapter.vga.text_ram.view
    other.port_write(0x10, 1, 0x07)  # data for attribute register 0, as was due
    assert other.save().attribute[0] == 7


def test_loading_replaces_the_text_buffer() -> None:
    adapter = busy()
    state = adapter.vga.save()
    vram = bytes(adapter.vga.vram.view)
    adapter.fill(0xB8000, b"\xff" * 200)
    adapter.vga.vram.view[:] = vram
    adapter.vga.load(state)
    assert adapter.dump(0xB8000, 200) == bytes(range(200))


def test_reset_blanks_the_screen_and_keeps_the_memory() -> None:
    heard: list[bool] = []
    adapter = busy()
    adapter.vga.on_window = heard.append
    adapter.vga.reset()
    assert heard == [False]
    fresh = Vga(ManualClock()).save()
    assert adapter.vga.save() == fresh
    assert adapter.dump(LFB, 2) == b"\0\x01"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.sequencer.__setitem__(1, 0xFF), "sequencer"),
        (lambda state: state.graphics.__setitem__(0, 0xFF), "graphics"),
        (lambda state: state.attribute.__setitem__(0, 0xFF), "attribute"),
        (lambda state: setattr(state, "feature", 1), "feature"),
        (lambda state: setattr(state.dac, "wide", True), "width"),
        (lambda state: state.crtc.append(0), "crtc"),
        (lambda state: setattr(state.dispi, "bank_offset", 5), "fit"),
        (lambda state: setattr(state.dispi, "bank_offset", 1 << 24), "fit"),
        (lambda state: state.dispi.registers.__setitem__(0, 0), "version"),
        (lambda state: state.dispi.registers.__setitem__(slice(1, 5), [640, 480, 9, 1]), "fit"),
        (lambda state: state.dispi.registers.__setitem__(slice(1, 5), [16000, 12000, 32, 1]), "fit"),
    ],
)
def test_a_state_that_cannot_be_is_refused(change: object, message: str) -> None:
    state = busy().vga.save()
    assert callable(change)
    change(state)
    vga = Vga(ManualClock())
    before = vga.save()
    with pytest.raises(StateError, match=message):
        vga.load(state)
    assert vga.save() == before


def test_a_state_of_another_function_is_refused() -> None:
    vga = Vga(ManualClock())
    with pytest.raises(StateError, match="not that of a VGA"):
        vga.load(PciFunctionState(vga.save().config))


def test_close_gives_the_memory_back() -> None:
    vga = Vga(ManualClock())
    vga.close()
    assert vga.vram.mapping.closed
    assert vga.text_ram.mapping.closed


# ---- A hostile guest

BYTE = st.integers(0, 0xFF)
STEPS = st.one_of(
    st.tuples(st.just("port"), st.integers(0, 0x2F), BYTE),
    st.tuples(st.just("dispi"), st.integers(0, 12), st.integers(0, 0xFFFF)),
    st.tuples(st.just("mmio"), st.integers(0, 0xFFF), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("window"), st.integers(0, 0x1FFFF), st.integers(0, (1 << 64) - 1)),
)
SHARED = Vga(ManualClock())


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=60), st.randoms(use_true_random=False))
def test_whatever_a_guest_does_stays_within_the_adapter(
    steps: list[tuple[str, int, int]], choose: random.Random
) -> None:
    vga = SHARED
    vga.reset()
    for kind, place, value in steps:
        size = choose.choice((1, 2, 4))
        if kind == "port":
            vga.port_write(place, 1, value)
            assert 0 <= vga.port_read(place, 1) <= 0xFF
        elif kind == "dispi":
            vga.dispi_write(0, 2, place)
            vga.dispi_write(1, 2, value)
            assert 0 <= vga.dispi_read(2, 2) <= 0xFFFF
        elif kind == "mmio":
            size = min(size, 0x1000 - place)
            vga.mmio_write(place, size, value & (1 << 8 * size) - 1)
            assert 0 <= vga.mmio_read(place, size) < 1 << 8 * size
        else:
            size = min(choose.choice((1, 2, 4, 8)), 0x20000 - place)
            vga.window_write(place, size, value & (1 << 8 * size) - 1)
            assert 0 <= vga.window_read(place, size) < 1 << 8 * size
    state = vga.save()
    vga.load(VgaState.from_dict(state.to_dict()))
    assert vga.save() == state
