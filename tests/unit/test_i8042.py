"""The keyboard controller with its keyboard and mouse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.i8042 import I8042, I8042State
from pyvm.devices.keycodes import PAUSE, PRINT_SCREEN, SCAN_CODES, SET2_TO_SET1, key_names
from pyvm.devices.ps2_keyboard import KeyboardState, Ps2Keyboard
from pyvm.devices.ps2_mouse import BUTTONS, MouseState, Ps2Mouse
from pyvm.irq import IrqLine
from pyvm.state import StateError


class Board:
    """The controller, with interrupts and outputs recorded."""

    def __init__(self) -> None:
        self.edges = {1: 0, 12: 0}
        self.a20: list[bool] = []
        self.resets = 0
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        self.lines = {irq: IrqLine(lambda level, irq=irq: self._edge(irq, level)) for irq in (1, 12)}
        self.i8042 = I8042(
            self.lines[1], self.lines[12], self.keyboard, self.mouse, on_a20=self.a20.append, on_reset=self._reset
        )

    def _edge(self, irq: int, level: bool) -> None:
        self.edges[irq] += level

    def _reset(self) -> None:
        self.resets += 1

    def command(self, value: int, *data: int) -> None:
        self.i8042.command_write(0, 1, value)
        for byte in data:
            self.i8042.data_write(0, 1, byte)

    def data(self, *values: int) -> None:
        for value in values:
            self.i8042.data_write(0, 1, value)

    def to_mouse(self, *values: int) -> list[int]:
        replies = []
        for value in values:
            self.command(0xD4, value)
            replies += self.drain()
        return replies

    def to_keyboard(self, *values: int) -> list[int]:
        replies = []
        for value in values:
            self.data(value)
            replies += self.drain()
        return replies

    def drain(self) -> list[int]:
        out = []
        while self.i8042.status_read(0, 1) & 1 and len(out) < 1000:
            out.append(self.i8042.data_read(0, 1))
        return out

    def type(self, name: str) -> tuple[list[int], list[int]]:
        self.keyboard.key(name, True)
        down = self.drain()
        self.keyboard.key(name, False)
        return down, self.drain()


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def translated() -> Board:
    board = Board()
    board.command(0x60, 0x47)
    return board


def test_reset_values(board: Board) -> None:
    assert board.i8042.status_read(0, 1) == 0x18
    board.command(0x20)
    assert board.drain() == [0x03]
    board.command(0xD0)
    assert board.drain() == [0xCF]


def test_self_tests(board: Board) -> None:
    for command, reply in ((0xAA, 0x55), (0xAB, 0), (0xA9, 0), (0xA4, 0xF1), (0xC0, 0x80), (0xE0, 3)):
        board.command(command)
        assert board.drain() == [reply]
    assert board.i8042.status_read(0, 1) & 4
    board.data(0)
    assert not board.i8042.status_read(0, 1) & 8


def test_ram(board: Board) -> None:
    board.command(0x65, 0x77)
    board.command(0x25)
    assert board.drain() == [0x77]
    board.command(0x60, 0x74)
    board.command(0x20)
    assert board.drain() == [0x74]
    assert board.i8042.status_read(0, 1) & 4
    board.command(0x60, 0)
    assert not board.i8042.status_read(0, 1) & 4


def test_interrupts_and_enables(board: Board) -> None:
    board.keyboard.key("a", True)
    board.keyboard.key("a", False)
    assert board.edges == {1: 1, 12: 0}
    assert board.drain() == [0x1C, 0xF0, 0x1C]
    assert board.edges == {1: 3, 12: 0}
    assert not board.lines[1].level
    board.command(0xAD)
    board.keyboard.key("b", True)
    assert board.drain() == []
    board.command(0xAE)
    assert board.drain() == [0x32]
    board.command(0x60, 0x00)
    edges = board.edges[1]
    board.keyboard.key("b", False)
    assert board.edges[1] == edges
    board.command(0x60, 0x01)
    assert board.edges[1] == edges + 1


def test_mouse_bytes_are_marked(board: Board) -> None:
    board.command(0xD4, 0xF4)
    assert board.i8042.status_read(0, 1) & 0x21 == 0x21
    assert board.lines[12].level
    assert not board.lines[1].level
    board.command(0xD0)
    assert board.drain() == [0xFA, 0xEF]
    board.command(0xA7)
    board.mouse.move(1, 1)
    assert board.drain() == []
    board.command(0xA8)
    assert len(board.drain()) == 3


def test_buffers_written_by_software(board: Board) -> None:
    board.command(0xD2, 0x11)
    assert board.i8042.status_read(0, 1) & 0x21 == 0x01
    assert board.drain() == [0x11]
    board.command(0xD3, 0x22)
    assert board.i8042.status_read(0, 1) & 0x21 == 0x21
    assert board.drain() == [0x22]


def test_output_port(board: Board) -> None:
    board.command(0xD1, 0xDD)
    board.command(0xDF)
    board.command(0xDD)
    assert board.a20 == [True, False, True, False]
    assert not board.i8042.a20
    board.command(0xD1, 0xDE)
    assert board.resets == 1
    assert board.a20[-1] is True
    board.command(0xFE)
    board.command(0xFF)
    assert board.resets == 2
    board.command(0xDD)
    board.i8042.reset()
    assert board.a20[-1] is True


@pytest.mark.parametrize("name", sorted(SCAN_CODES))
def test_each_key_in_each_set(translated: Board, name: str) -> None:
    set1, set2, set3 = SCAN_CODES[name]

    def expect(code: int, plain: list[int], tail: list[int]) -> tuple[list[int], list[int]]:
        prefix = [0xE0] if code >> 8 else []
        return ([*prefix, *plain], [*prefix, *tail]) if code else ([], [])

    assert translated.type(name) == expect(set1, [set1 & 0xFF], [set1 & 0xFF | 0x80])
    translated.command(0x60, 0x07)
    assert translated.type(name) == expect(set2, [set2 & 0xFF], [0xF0, set2 & 0xFF])
    translated.to_keyboard(0xF0, 1)
    assert translated.type(name) == expect(set1, [set1 & 0xFF], [set1 & 0xFF | 0x80])
    translated.to_keyboard(0xF0, 3)
    assert translated.type(name) == expect(set3, [set3], [0xF0, set3])


def test_print_screen_and_pause(translated: Board) -> None:
    assert translated.type("print") == ([0xE0, 0x2A, 0xE0, 0x37], [0xE0, 0xB7, 0xE0, 0xAA])
    assert translated.type("pause") == ([0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5], [])
    translated.type("alt")
    translated.keyboard.key("alt", True)
    translated.drain()
    assert translated.type("sysrq") == ([0x54], [0xD4])
    translated.keyboard.key("alt", False)
    translated.keyboard.key("ctrl", True)
    translated.drain()
    assert translated.type("pause") == ([0xE0, 0x46, 0xE0, 0xC6], [])
    assert translated.type("print") == ([0xE0, 0x37], [0xE0, 0xB7])
    translated.keyboard.key("ctrl", False)
    translated.command(0x60, 0x03)
    translated.drain()
    assert translated.type("print") == ([0xE0, 0x12, 0xE0, 0x7C], [0xE0, 0xF0, 0x7C, 0xE0, 0xF0, 0x12])
    assert translated.type("pause") == ([0xE1, 0x14, 0x77, 0xE1, 0xF0, 0x14, 0xF0, 0x77], [])


def test_names() -> None:
    names = key_names()
    assert len(names) == 150
    assert PRINT_SCREEN | {PAUSE, "ret", "grave_accent", "lang1"} <= names
    assert len(SET2_TO_SET1) == 256
    board = Board()
    board.keyboard.key("unmapped", True)
    assert board.drain() == []
    with pytest.raises(ValueError, match="no key 'nonsense'"):
        board.keyboard.key("nonsense", True)


def test_keyboard_commands(board: Board) -> None:
    leds: list[int] = []
    board.keyboard.on_leds = leds.append
    assert board.to_keyboard(0xEE) == [0xEE]
    assert board.to_keyboard(0xF2) == [0xFA, 0xAB, 0x83]
    assert board.to_keyboard(0xFE) == [0x83]
    assert board.to_keyboard(0xED, 0x06) == [0xFA, 0xFA]
    assert leds == [6]
    assert board.to_keyboard(0xF3, 0x20) == [0xFA, 0xFA]
    assert board.to_keyboard(0xF0, 0) == [0xFA, 0xFA, 2]
    assert board.to_keyboard(0xF0, 4) == [0xFA, 0xFE]
    assert board.to_keyboard(0xED, 0xF2) == [0xFA, 0xFA, 0xAB, 0x83]  # a command instead of an argument
    assert board.to_keyboard(0x12) == [0xFE]
    assert board.to_keyboard(0xF5) == [0xFA]
    board.keyboard.key("a", True)
    assert board.drain() == []
    assert board.to_keyboard(0xF4) == [0xFA]
    board.keyboard.key("a", False)
    assert board.drain() == [0xF0, 0x1C]
    assert board.to_keyboard(0xF0, 1, 0xF6, 0xF0, 0) == [0xFA, 0xFA, 0xFA, 0xFA, 0xFA, 2]
    assert board.to_keyboard(0xFF) == [0xFA, 0xAA]
    assert leds == [6, 0]


def test_identity_is_translated(translated: Board) -> None:
    assert translated.to_keyboard(0xF2) == [0xFA, 0xAB, 0x41]
    assert translated.to_keyboard(0xF0, 0) == [0xFA, 0xFA, 0x41]


def test_make_only_keys_of_set_3(board: Board) -> None:
    board.to_keyboard(0xF0, 3)
    assert board.to_keyboard(0xFD, 0x1C, 0x1B, 0xF4) == [0xFA] * 4
    assert board.type("a") == ([0x1C], [])
    assert board.type("d") == ([0x23], [0xF0, 0x23])
    board.to_keyboard(0xFC, 0x1C, 0xF4)
    assert board.type("a") == ([0x1C], [0xF0, 0x1C])
    board.to_keyboard(0xF9)
    assert board.type("d") == ([0x23], [])
    board.to_keyboard(0xF8)
    assert board.type("d") == ([0x23], [0xF0, 0x23])


def test_keyboard_queue_is_bounded(board: Board) -> None:
    for _ in range(100):
        board.keyboard.key("a", True)
        board.keyboard.key("a", False)
    data = board.drain()
    assert len(data) <= 17
    assert data[:3] == [0x1C, 0xF0, 0x1C]


def test_mouse_commands(board: Board) -> None:
    assert board.to_mouse(0xFF) == [0xFA, 0xAA, 0x00]
    assert board.to_mouse(0xF2) == [0xFA, 0x00]
    assert board.to_mouse(0xE9) == [0xFA, 0x00, 0x02, 0x64]
    assert board.to_mouse(0xE8, 3, 0xF3, 40, 0xE7, 0xF0, 0xF4) == [0xFA] * 7
    board.mouse.button("left", True)
    assert board.to_mouse(0xE9) == [0xFA, 0x74, 0x03, 40]
    assert board.to_mouse(0xE8, 4) == [0xFA, 0xFE]
    assert board.to_mouse(0x01) == [0xFE]
    assert board.to_mouse(0xFE) == [0xFE]
    assert board.to_mouse(0xF6, 0xE9) == [0xFA, 0xFA, 0x04, 0x02, 0x64]


def test_mouse_stream(board: Board) -> None:
    board.mouse.move(5, 5)
    assert board.drain() == []
    board.to_mouse(0xF4)
    board.mouse.move(5, 3)
    assert board.drain() == [0x28, 5, 0xFD]
    board.mouse.move(-5, -3, 1)
    assert board.drain() == [0x18, 0xFB, 3]
    board.mouse.button("right", True)
    board.mouse.button("middle", True)
    assert board.drain() == [0x0A, 0, 0, 0x0E, 0, 0]
    board.mouse.button("middle", True)
    assert board.drain() == []
    board.mouse.move(600, 0)
    assert board.drain() == [0x0E, 255, 0, 0x0E, 255, 0, 0x0E, 90, 0]
    with pytest.raises(ValueError, match="no mouse button 'nose'"):
        board.mouse.button("nose", True)


def test_wheel_and_explorer(board: Board) -> None:
    assert board.to_mouse(0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2) == [0xFA] * 7 + [3]
    board.to_mouse(0xF4)
    board.mouse.button("wheel-up", True)
    board.mouse.button("wheel-up", False)
    assert board.drain() == [0x08, 0, 0, 0xFF]
    assert board.to_mouse(0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF2) == [0xFA] * 7 + [4]
    board.mouse.button("side", True)
    board.mouse.button("extra", True)
    board.mouse.move(0, 0, 9)
    assert board.drain() == [0x08, 0, 0, 0x10, 0x08, 0, 0, 0x37, 0x08, 0, 0, 0x32]


def test_scaling(board: Board) -> None:
    board.to_mouse(0xE7, 0xF4)
    for step, scaled in ((1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12), (200, 255), (-4, -6)):
        board.mouse.move(step, 0)
        assert board.drain()[1] == scaled & 0xFF


def test_remote_and_wrap(board: Board) -> None:
    board.to_mouse(0xF4, 0xF0)
    board.mouse.move(7, 0)
    assert board.drain() == []
    assert board.to_mouse(0xEB) == [0xFA, 0x08, 7, 0]
    assert board.to_mouse(0xEE, 0xF4, 0xFE, 0x42, 0xEC) == [0xFA, 0xF4, 0xFE, 0x42, 0xFA]
    assert board.to_mouse(0xEA) == [0xFA]
    board.mouse.move(1, 0)
    assert board.drain() == [0x08, 1, 0]
    assert board.to_mouse(0xEE, 0xFF) == [0xFA, 0xFA, 0xAA, 0x00]


def test_save_and_load(translated: Board) -> None:
    translated.to_mouse(0xF4)
    translated.command(0x60, 0x45)  # no mouse interrupt
    translated.keyboard.key("up", True)
    translated.keyboard.key("up", False)
    translated.mouse.move(3, 0)
    translated.command(0xDD)
    translated.i8042.data_read(0, 1)
    twin = Board()
    twin.keyboard.load(KeyboardState.from_dict(translated.keyboard.save().to_dict()))
    twin.mouse.load(MouseState.from_dict(translated.mouse.save().to_dict()))
    twin.i8042.load(I8042State.from_dict(translated.i8042.save().to_dict()))
    assert twin.lines[1].level
    assert twin.a20 == [True, False]
    assert twin.drain() == translated.drain() == [0x48, 0xE0, 0xC8, 0x08, 3, 0]
    for bad in (I8042State(ram=[1]), I8042State(queue=[0] * 17)):
        with pytest.raises(StateError):
            twin.i8042.load(bad)
    for wrong in (KeyboardState(breaks=b""), KeyboardState(breaks=bytes(32), pending=1)):
        with pytest.raises(StateError):
            twin.keyboard.load(wrong)
    for odd in (MouseState(identity=1), MouseState(pending=1)):
        with pytest.raises(StateError):
            twin.mouse.load(odd)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data", "command", "mouse", "read", "key", "move", "button"]),
            st.integers(0, 255),
            st.integers(-(1 << 40), 1 << 40),
        ),
        max_size=80,
    )
)
def test_hostile_guest_and_clumsy_person(steps: list[tuple[str, int, int]]) -> None:
    board = Board()
    names, buttons = sorted(key_names()), sorted([*BUTTONS, "wheel-up"])
    for action, value, number in steps:
        if action == "data":
            board.data(value)
        elif action == "command":
            board.command(value)
        elif action == "mouse":
            board.command(0xD4, value)
        elif action == "read":
            assert 0 <= board.i8042.data_read(0, 1) <= 0xFF
        elif action == "key":
            board.keyboard.key(names[value % len(names)], bool(number & 1))
        elif action == "move":
            board.mouse.move(number, -number, number)
        else:
            board.mouse.button(buttons[value % len(buttons)], bool(number & 1))
        assert 0 <= board.i8042.status_read(0, 1) <= 0xFF
    board.keyboard.load(board.keyboard.save())
    board.mouse.load(board.mouse.save())
    board.i8042.load(board.i8042.save())
    board.i8042.reset()
    assert not board.lines[1].level
    assert not board.lines[12].level
