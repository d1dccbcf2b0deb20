"""What viewers type and point at, on its way to the guest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.keycodes import key_names
from pyvm.devices.ps2_keyboard import LED_CAPS, LED_NUM
from pyvm.input import InputKind, InputRouter, KeyInput
from pyvm.vnc.input import Keyboard, Locks, Pointer, scaled
from pyvm.vnc.keysyms import key_of
from tests.unit.vnc_support import Taker


class Typing:
    """A keyboard whose keys are kept."""

    def __init__(self, *, sync: bool = True) -> None:
        self.log: list[str] = []
        self.locks = Locks()
        self.keyboard = Keyboard(self._take, self.locks if sync else None)

    def _take(self, event: KeyInput) -> None:
        self.log.append(("+" if event.down else "-") + event.key)

    def type(self, text: str) -> list[str]:
        """Press and release keys without looking after shift."""
        for symbol in text:
            self.keyboard.symbol(ord(symbol), True)
            self.keyboard.symbol(ord(symbol), False)
        return self.take()

    def take(self) -> list[str]:
        log, self.log = self.log, []
        return log


@pytest.mark.parametrize(
    ("keysym", "name"),
    [
        (ord("a"), "a"),
        (ord("A"), "a"),
        (ord("!"), "1"),
        (ord("~"), "grave_accent"),
        (ord("|"), "backslash"),
        (ord(" "), "spc"),
        (0xFF0D, "ret"),
        (0xFFBE, "f1"),
        (0xFFC9, "f12"),
        (0xFFB0, "kp_0"),
        (0xFFB9, "kp_9"),
        (0xFF95, "kp_7"),
        (0xFFE4, "ctrl_r"),
        (0xFFFF, "delete"),
        (0xE9, None),
        (0, None),
        (1 << 31, None),
    ],
)
def test_symbols(keysym: int, name: str | None) -> None:
    assert key_of(keysym) == name


def test_all_keys_that_symbols_are_on_exist() -> None:
    assert {name for name in map(key_of, range(1 << 16)) if name is not None} <= key_names()
    assert all(key_of(symbol) for symbol in range(0x20, 0x7F))


def test_a_key_is_released_once_and_repeats() -> None:
    typing = Typing()
    for down in (True, True, False, False):
        typing.keyboard.symbol(ord("x"), down)
    assert typing.take() == ["+x", "+x", "-x"]


def test_numbers_of_keys_come_first_and_symbols_where_they_say_nothing() -> None:
    typing = Typing()
    typing.keyboard.number(0x1E, ord("q"), True)
    typing.keyboard.number(0xC8, 0, True)
    typing.keyboard.number(0x1234, ord("q"), True)
    typing.keyboard.number((1 << 32) - 1, 0xE9, True)
    assert typing.take() == ["+a", "+up", "+q"]


def test_capital_letters_without_shift_press_caps_lock() -> None:
    typing = Typing()
    assert typing.type("aB") == ["+a", "-a", "+caps_lock", "-caps_lock", "+b", "-b"]
    assert typing.type("C1!") == ["+c", "-c", "+1", "-1", "+1", "-1"]
    assert typing.type("d") == ["+caps_lock", "-caps_lock", "+d", "-d"]
    typing.keyboard.symbol(0xFFE1, True)
    assert typing.type("E") == ["+shift", "+e", "-e"]
    assert typing.type("f") == ["+caps_lock", "-caps_lock", "+f", "-f"]


def test_lights_tell_what_is_locked() -> None:
    typing = Typing()
    typing.locks.lights(LED_CAPS)
    assert typing.type("A") == ["+a", "-a"]
    typing.locks.lights(LED_NUM)
    assert typing.type("a") == ["+a", "-a"]
    typing.keyboard.symbol(0xFFB1, True)
    assert typing.take() == ["+kp_1"]
    typing.keyboard.symbol(0xFF9C, True)
    assert typing.take() == ["+num_lock", "-num_lock", "+kp_1"]
    typing.keyboard.symbol(0xFFB2, True)
    assert typing.take() == ["+num_lock", "-num_lock", "+kp_2"]


def test_locks_may_be_left_alone() -> None:
    assert Typing(sync=False).type("aB") == ["+a", "-a", "+b", "-b"]


def test_who_leaves_lets_go_of_all_keys() -> None:
    typing = Typing()
    for keysym in (0xFFE3, 0xFFE9, 0xFFFF):
        typing.keyboard.symbol(keysym, True)
    typing.take()
    typing.keyboard.lift_all()
    assert typing.take() == ["-ctrl", "-alt", "-delete"]
    typing.keyboard.lift_all()
    assert typing.take() == []


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0xFE00, 0xFFFF) | st.integers(0, 0x100), st.booleans()), max_size=40))
def test_what_is_pressed_is_released_in_the_end(events: list[tuple[int, bool]]) -> None:
    typing = Typing()
    for keysym, down in events:
        typing.keyboard.symbol(keysym, down)
    typing.keyboard.lift_all()
    held = set()
    for entry in typing.take():
        if entry[0] == "+":
            held.add(entry[1:])
        else:
            held.remove(entry[1:])
    assert not held


# ---- The pointer


def pointer(*kinds: InputKind) -> tuple[Pointer, Taker]:
    router, taker = InputRouter(ManualClock(), lambda: True), Taker(kinds)
    router.register(taker)
    return Pointer(router), taker


def test_movements_for_a_mouse() -> None:
    mouse, taker = pointer(InputKind.RELATIVE, InputKind.BUTTON)
    mouse.point(0, 100, 100, 640, 480, relative=False)
    mouse.point(0, 90, 103, 640, 480, relative=False)
    assert taker.take() == ["sync", "axis x, value -10", "axis y, value 3", "sync"]
    mouse.point(0, 0x7FFF - 5, 0x7FFF + 6, 640, 480, relative=True)
    assert taker.take() == ["axis x, value -5", "axis y, value 6", "sync"]


def test_positions_for_a_tablet() -> None:
    tablet, taker = pointer(InputKind.ABSOLUTE, InputKind.BUTTON)
    assert tablet.absolute
    tablet.point(0, 639, 0, 640, 480, relative=True)
    assert taker.take() == ["axis x, value 0x7fff", "axis y, value 0x0", "sync"]
    tablet.point(0, 65535, 240, 640, 480, relative=False)
    assert taker.take() == ["axis x, value 0x7fff", f"axis y, value {240 * 0x7FFF // 479:#x}", "sync"]


def test_buttons_and_wheel() -> None:
    mouse, taker = pointer(InputKind.BUTTON)
    mouse.point(0b1101, 0, 0, 640, 480, relative=False)
    mouse.point(0b0100, 0, 0, 640, 480, relative=False)
    assert taker.take() == [
        *("button left, down 1", "button right, down 1", "button wheel-up, down 1", "sync"),
        *("button left, down 0", "button wheel-up, down 0", "sync"),
    ]
    mouse.lift_all()
    mouse.lift_all()
    assert taker.take() == ["button right, down 0", "sync"]


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_positions_are_on_the_axis(place: int, size: int) -> None:
    assert 0 <= scaled(place, size) <= 0x7FFF
