"""What people type and point at, on its way to the guest's devices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.keycodes import key_names
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.input import (
    QUEUE_LIMIT,
    ButtonInput,
    InputEvent,
    InputKind,
    InputRouter,
    KeyboardInput,
    KeyInput,
    MouseInput,
    MoveInput,
    PositionInput,
    key_of_number,
)

MS = 1_000_000
ENABLE, SET_RATE, IDENTIFY = 0xF4, 0xF3, 0xF2


class Tablet:
    """A handler that records."""

    name = "Tablet"
    kinds = frozenset({InputKind.ABSOLUTE, InputKind.BUTTON})

    def __init__(self) -> None:
        self.log: list[InputEvent | str] = []

    def input(self, event: InputEvent) -> None:
        self.log.append(event)

    def sync(self) -> None:
        self.log.append("sync")


class Desk:
    """A keyboard and a mouse in front of a guest."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.running = True
        self.woken = 0
        self.traces: list[str] = []
        self.router = InputRouter(
            self.clock, lambda: self.running, trace=lambda name, text: self.traces.append(f"{name} {text}".rstrip())
        )
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        self.router.register(KeyboardInput(self.keyboard, self.wake))
        self.router.register(MouseInput(self.mouse, self.wake))
        self.mouse.write(ENABLE)
        self.mouse.take()

    def wake(self) -> None:
        self.woken += 1

    def typed(self) -> bytes:
        return bytes(iter(self.keyboard.take, None))

    def moved(self) -> bytes:
        return bytes(iter(self.mouse.take, None))


def test_keys_reach_the_keyboard_and_wake_the_guest() -> None:
    desk = Desk()
    desk.router.send([KeyInput("a", True)])
    desk.router.send([KeyInput("a", False)])
    assert desk.typed() == bytes((0x1C, 0xF0, 0x1C))
    assert desk.woken == 2
    assert desk.traces == [
        "input_event_key_qcode con -1, key qcode a, down 1",
        "input_event_sync",
        "input_event_key_qcode con -1, key qcode a, down 0",
        "input_event_sync",
    ]


def test_movement_that_belongs_together_is_one_packet() -> None:
    desk = Desk()
    desk.router.send([MoveInput("x", 5), MoveInput("y", 3), MoveInput("x", 1)])
    assert desk.moved() == bytes((0x28, 6, 0xFD))
    assert desk.woken == 0
    desk.router.send([ButtonInput("left", True)])
    assert desk.moved() == bytes((0x09, 0, 0))
    assert desk.woken == 1
    desk.router.send([ButtonInput("wheel-left", True), ButtonInput("wheel-left", False)])
    assert desk.moved() == b""


def test_a_mouse_nobody_listens_to_wakes_nobody() -> None:
    desk = Desk()
    desk.mouse.write(0xF5)
    desk.router.send([ButtonInput("left", True)])
    assert desk.woken == 0


def test_mouse_with_wheel_and_buttons_by_number() -> None:
    desk = Desk()
    for rate in (200, 100, 80):
        desk.mouse.write(SET_RATE)
        desk.mouse.write(rate)
    desk.moved()
    desk.router.move(1, 2, 3)
    assert desk.moved() == bytes((0x28, 1, 0xFE, 0, 0x08, 0, 0, 0xFF))
    desk.router.move(0, 0, -1)
    assert desk.moved() == bytes((0x08, 0, 0, 1))
    desk.router.set_buttons(1 | 4)
    assert desk.moved()[-4:] == bytes((0x0D, 0, 0, 0))
    desk.router.set_buttons(2)
    assert desk.moved()[-4:] == bytes((0x0A, 0, 0, 0))


def test_nothing_is_sent_to_a_guest_that_stands_still() -> None:
    desk = Desk()
    desk.running = False
    desk.router.send([KeyInput("a", True)])
    desk.router.press(["b"])
    desk.running = True
    desk.clock.advance(1000 * MS)
    assert desk.typed() == b""
    assert desk.traces == []


def test_keys_are_held_in_guest_time() -> None:
    desk = Desk()
    desk.router.press(["ctrl", "c"], 100)
    assert desk.typed() == bytes((0x14,))
    desk.clock.advance(99 * MS)
    assert desk.typed() == b""
    desk.clock.advance(1 * MS)
    assert desk.typed() == bytes((0x21,))
    desk.clock.advance(100 * MS)
    assert desk.typed() == bytes((0xF0, 0x21))
    desk.router.press(["x"])
    desk.clock.advance(100 * MS)
    assert desk.typed() == bytes((0xF0, 0x14))
    desk.clock.advance(100 * MS)
    assert desk.typed() == bytes((0x22,))
    desk.clock.advance(10 * MS)
    assert desk.typed() == bytes((0xF0, 0x22))


def test_what_waits_is_bounded() -> None:
    desk = Desk()
    desk.router.press(["a"] * 5000, 1)
    desk.clock.advance(QUEUE_LIMIT * 2 * MS)
    assert desk.traces.count("input_event_key_qcode con -1, key qcode a, down 1") <= QUEUE_LIMIT // 2
    desk.typed()
    desk.router.press(["b"], 1)
    assert desk.typed() == bytes((0x32,))


def test_handlers_are_found_and_chosen() -> None:
    desk = Desk()
    router = desk.router
    assert not router.accepts(InputKind.ABSOLUTE)
    tablet = Tablet()
    remove = router.register(tablet)
    assert router.accepts(InputKind.ABSOLUTE)
    assert [(mouse.name, mouse.index, mouse.current, mouse.absolute) for mouse in router.mice()] == [
        ("QEMU PS/2 Mouse", 2, True, False),
        ("Tablet", 3, False, True),
    ]
    router.send([PositionInput("x", 100), ButtonInput("left", True)])
    assert tablet.log == [PositionInput("x", 100), "sync"]
    assert not router.choose_mouse(1)
    assert router.choose_mouse(3)
    assert [mouse.index for mouse in router.mice()] == [3, 2]
    router.send([ButtonInput("left", False)])
    assert tablet.log[2:] == [ButtonInput("left", False), "sync"]
    remove()
    assert [mouse.index for mouse in router.mice()] == [2]


@pytest.mark.parametrize(
    ("number", "key"),
    [(0x53, "kp_decimal"), (0xD3, "delete"), (0x1E, "a"), (0x54, "sysrq"), (0xC6, "pause"), (0, "unmapped")],
)
def test_keys_by_number(number: int, key: str) -> None:
    assert key_of_number(number) == key
    assert key_of_number(number + 0x100) == "unmapped"


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.builds(KeyInput, st.sampled_from(sorted(key_names())), st.booleans()),
            st.builds(
                ButtonInput,
                st.sampled_from(["left", "right", "middle", "side", "extra", "wheel-up", "wheel-down", "wheel-right"]),
                st.booleans(),
            ),
            st.builds(MoveInput, st.sampled_from("xy"), st.integers(-(1 << 63), 1 << 63)),
            st.builds(PositionInput, st.sampled_from("xy"), st.integers()),
        )
    )
)
def test_any_events_are_taken(events: list[InputEvent]) -> None:
    desk = Desk()
    desk.router.send(events)
    assert len(desk.typed()) <= 16
