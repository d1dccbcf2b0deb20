"""Int 16h, the keyboard's interrupt, and keys from the serial console."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware.bios.keyboard import standard_code
from pyvm.firmware.bios.scancodes import CHARACTERS
from tests.unit.bios_rig import Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("a",), 0x1E61),
        (("shift", "a"), 0x1E41),
        (("ctrl", "a"), 0x1E01),
        (("alt", "a"), 0x1E00),
        (("1",), 0x0231),
        (("shift_r", "1"), 0x0221),
        (("alt", "1"), 0x7800),
        (("ctrl", "2"), 0x0300),
        (("f1",), 0x3B00),
        (("shift", "f10"), 0x5D00),
        (("f12",), 0x8600),
        (("up",), 0x48E0),
        (("ctrl", "left"), 0x73E0),
        (("alt", "delete"), 0xA300),
        (("kp_7",), 0x4700),
        (("shift", "kp_7"), 0x4737),
        (("kp_enter",), 0xE00D),
        (("ret",), 0x1C0D),
        (("ctrl", "ret"), 0x1C0A),
        (("esc",), 0x011B),
        (("shift", "tab"), 0x0F00),
        (("less",), 0x565C),
    ],
)
def test_keys(rig: Rig, names: tuple[str, ...], code: int) -> None:
    ends = rig.press(*names)
    assert "key_stored" in [end.goto for end in ends]
    assert rig.typed() == [code]


def test_a_key_without_a_code_is_dropped(rig: Rig) -> None:
    rig.press("ctrl", "1")
    assert rig.typed() == []


@pytest.mark.parametrize(
    ("code", "standard"), [(0x48E0, 0x4800), (0xE00D, 0x1C0D), (0xE02F, 0x352F), (0x8500, None), (0x1E61, 0x1E61)]
)
def test_codes_for_old_programs(code: int, standard: int | None) -> None:
    assert standard_code(code) == standard


def test_old_functions_skip_what_they_do_not_know(rig: Rig) -> None:
    rig.press("f11")
    rig.press("b")
    assert rig.call(0x16, eax=0x0100).ax == 0x3062
    assert not rig.zero
    assert rig.call(0x16, eax=0x0000).ax == 0x3062
    rig.call(0x16, eax=0x0100)
    assert rig.zero


def test_reading_waits(rig: Rig) -> None:
    registers = rig.call(0x16, eax=0x1000)
    assert registers.goto == "key_wait"
    assert (registers.cs, registers.eip) == (0xF000, rig.bios.core.rom.labels["key_wait"])
    assert rig.memory.read(0xF0000 + registers.eip, 2) == b"\xfb\xf4"  # sti; hlt
    rig.press("c")
    # The loop ends in the same trap again, with the caller's registers.
    registers = rig.call(0x16, eax=registers.eax)
    assert registers.ax == 0x2E63


def test_locks_and_lamps(rig: Rig) -> None:
    lamps: list[int] = []
    rig.keyboard.on_leds = lamps.append
    rig.press("caps_lock")
    rig.press("a")
    rig.press("shift", "b")
    rig.press("num_lock")
    rig.press("kp_7")
    rig.press("caps_lock")
    assert [code & 0xFF for code in rig.typed()] == [ord("A"), ord("b"), ord("7")]
    assert lamps == [4, 6, 2]
    assert rig.call(0x16, eax=0x0200).al == 0x20
    assert rig.bda(0x97) & 7 == 2


def test_shift_states(rig: Rig) -> None:
    for name, first, high in (
        ("shift", 0x02, 0x00), ("shift_r", 0x01, 0x00), ("ctrl", 0x04, 0x01), ("ctrl_r", 0x04, 0x04),
        ("alt", 0x08, 0x02), ("alt_r", 0x08, 0x08),
    ):  # fmt: skip
        rig.keyboard.key(name, True)
        rig.keyboard_interrupts()
        registers = rig.call(0x16, eax=0x1200)
        assert (registers.al, registers.ah) == (first, high), name
        rig.keyboard.key(name, False)
        rig.keyboard_interrupts()
        assert rig.call(0x16, eax=0x1200).ax == 0


def test_both_ctrl_keys(rig: Rig) -> None:
    for name, down, held in (("ctrl", True, 4), ("ctrl_r", True, 4), ("ctrl", False, 4), ("ctrl_r", False, 0)):
        rig.keyboard.key(name, down)
        rig.keyboard_interrupts()
        assert rig.call(0x16, eax=0x0200).al == held


def test_a_character_by_number(rig: Rig) -> None:
    for name, down in (("alt", True), ("kp_6", True), ("kp_6", False), ("kp_5", True), ("kp_5", False), ("alt", False)):
        rig.keyboard.key(name, down)
        rig.keyboard_interrupts()
    assert rig.typed() == [65]


def test_full_buffer(rig: Rig) -> None:
    for _ in range(20):
        rig.press("x")
    assert len(rig.typed()) == 15


def test_insert_toggles(rig: Rig) -> None:
    rig.press("insert")
    assert rig.call(0x16, eax=0x0200).al == 0x80
    assert rig.typed() == [0x52E0]


def test_keys_that_call_interrupts(rig: Rig) -> None:
    def gotos(*names: str) -> list[str | None]:
        return [end.goto for end in rig.press(*names) if end.goto]

    assert "key_print" in gotos("print")
    assert "key_break" in gotos("ctrl", "scroll_lock")
    assert rig.bda(0x71) == 0x80
    assert rig.typed() == [0]
    assert gotos("alt", "sysrq") == ["key_request_down", "key_request_up"]
    assert gotos("ctrl", "alt", "delete")[0] == "halt"
    assert rig.resets > 0
    assert rig.bda(0x72, 2) == 0x1234


def test_pause_waits_for_another_key(rig: Rig) -> None:
    ends = rig.press("pause")
    assert [end.goto for end in ends if end.goto] == ["key_pause"]
    paused = rig.trap("key_paused")
    assert paused.goto == "key_paused"
    rig.press("q")
    assert rig.trap("key_paused").goto is None
    assert rig.typed() == []


def test_programs_can_push_keys(rig: Rig) -> None:
    assert rig.call(0x16, eax=0x0500, ecx=0x1234).al == 0
    assert rig.call(0x16, eax=0x1100).ax == 0x1234
    assert [rig.call(0x16, eax=0x0500, ecx=1).al for _ in range(15)][-1] == 1


def test_other_functions(rig: Rig) -> None:
    assert rig.call(0x16, eax=0x0900).al == 0x30
    assert rig.call(0x16, eax=0x0A00).bx == 0x41AB
    assert rig.call(0x16, eax=0x7700, ebx=5).eax == 0x7700
    rig.call(0x16, eax=0x0305, ebx=0x0107)
    assert rig.keyboard.save().typematic == 0x27


def test_an_interrupt_without_a_byte(rig: Rig) -> None:
    assert rig.trap("int09").eflags & 1


class TestConsole:
    def test_characters(self, rig: Rig) -> None:
        rig.line.type(b"aB\r\x7f\t")
        assert [code & 0xFF for code in rig.typed()] == [ord("a"), ord("B"), 13, 8, 9]
        assert CHARACTERS[ord("B")] == 0x3042

    @pytest.mark.parametrize(
        ("sequence", "code"), [(b"[A", 0x48E0), (b"OB", 0x50E0), (b"[3~", 0x53E0), (b"[15~", 0x3F00), (b"[Z", 0x0F00)]
    )
    def test_sequences(self, rig: Rig, sequence: bytes, code: int) -> None:
        rig.line.type(b"\x1b" + sequence + b"x")
        assert rig.typed() == [code, 0x2D78]

    def test_a_sequence_may_come_in_pieces(self, rig: Rig) -> None:
        rig.line.type(b"\x1b[")
        assert rig.typed() == []
        rig.line.type(b"5~")
        assert rig.typed() == [0x49E0]

    def test_a_lone_escape(self, rig: Rig) -> None:
        rig.line.type(b"\x1b")
        assert rig.typed() == []
        rig.trap("int08")
        rig.trap("int08")
        rig.trap("int08")
        assert rig.typed() == [0x011B]

    def test_what_is_no_sequence_is_keys(self, rig: Rig) -> None:
        rig.line.type(b"\x1b[x\x1b\x1b[C")
        assert rig.typed() == [0x011B, 0x1A5B, 0x2D78, 0x011B, 0x4DE0]

    def test_input_waits_for_room(self, rig: Rig) -> None:
        rig.line.type(bytes(range(0x61, 0x7B)))
        assert rig.call(0x16, eax=0x1100).al == 0x61
        assert len(rig.line.input) == 26 - 15
        assert [code & 0xFF for code in rig.typed()] == list(range(0x61, 0x7B))

    def test_cursor_follows_when_a_key_is_awaited(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0200, edx=0x0405)
        assert rig.line.output == b""
        rig.call(0x16, eax=0x1000)
        assert rig.line.output == b"\x1b[5;6H"

    def test_colours_and_characters(self, rig: Rig) -> None:
        rig.call(0x10, eax=0x0200, edx=0)
        rig.line.output.clear()
        rig.call(0x10, eax=0x09C4, ebx=0x1E, ecx=2)
        assert rig.line.output == "\x1b[1;1H\x1b[0;1;33;44m──".encode()

    def test_no_console_no_output(self) -> None:
        rig = Rig(console=False)
        rig.call(0x10, eax=0x0E41)
        assert rig.line.output == b""
        rig.line.type(b"x")
        assert rig.typed() == []


RIG_FOR_FUZZ = Rig()


@given(
    st.binary(max_size=24),
    st.binary(max_size=24),
    st.binary(min_size=39, max_size=39),
    st.binary(min_size=16, max_size=16),
)
@settings(max_examples=100, deadline=None)
def test_any_input(scan_codes: bytes, typed: bytes, data_area: bytes, console: bytes) -> None:
    rig = RIG_FOR_FUZZ
    rig.memory.write(0x417, data_area)
    rig.memory.write(0x9FC00 + 0xA0, console)
    rig.line.input.clear()
    rig.line.type(typed)
    for value in scan_codes:
        rig.trap("key_break", eax=0)
        registers = rig.trap("int09")
        registers.eax = value
        rig.resume(registers)
    for function in (0x00, 0x01, 0x02, 0x05, 0x10, 0x11, 0x12):
        rig.call(0x16, eax=function << 8, ecx=0x1234)
    rig.bios.install()
