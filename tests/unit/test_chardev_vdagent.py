"""The host's side of the SPICE agent, and a Wacom tablet: back ends that take the person's input."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev import vdagent as va
from pyvm.chardev.vdagent import VdagentChardev
from pyvm.chardev.wctablet import HEIGHT, MODEL, WIDTH, WctabletChardev
from pyvm.clock import ManualClock
from pyvm.input import POSITION_MAX, ButtonInput, InputRouter, PositionInput
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, running_loop, settle


class Desk:
    """A back end and a guest at its other end."""

    def __init__(self, loop: MainLoop) -> None:
        self.loop = loop
        self.router = InputRouter(ManualClock(), lambda: True)

    def tablet(self) -> WctabletChardev:
        made = WctabletChardev("w", self.loop, self.router)
        self.guest = Recorder().attach(made)
        return made

    def agent(self, **options: bool) -> VdagentChardev:
        made = VdagentChardev("v", self.loop, self.router, **options, screen_size=lambda: (800, 600))
        self.guest = Recorder().attach(made)
        return made

    def heard(self) -> bytes:
        settle(self.loop)
        data = bytes(self.guest.data)
        self.guest.data.clear()
        return data


@pytest.fixture
def desk() -> Iterator[Desk]:
    with running_loop() as loop:
        yield Desk(loop)


def position(x: int, y: int) -> list[PositionInput]:
    return [PositionInput("x", x), PositionInput("y", y)]


# ---- The tablet


def test_the_tablet_answers_and_reports(desk: Desk) -> None:
    tablet = desk.tablet()
    assert tablet.filename == "wctablet"
    tablet.write(b"\r#~#")
    assert desk.heard() == MODEL
    tablet.write(b"~C\r")
    assert desk.heard() == f"~C{WIDTH:05},{HEIGHT:05}\r".encode()
    tablet.write(b"~R\r")
    assert desk.heard().startswith(b"~R")
    desk.router.send(position(1, 1))
    assert desk.heard() == b""
    tablet.write(b"ST\r")
    desk.router.send([*position(POSITION_MAX, 0), ButtonInput("left", True)])
    report = desk.heard()
    assert len(report) == 7
    assert report[0] & 0xF8 == 0xE8
    assert all(byte < 0x80 for byte in report[1:])
    assert (report[0] & 3) << 14 | report[1] << 7 | report[2] == WIDTH
    assert report[3] >> 3 == 1
    assert report[6]
    desk.router.send([ButtonInput("left", False)])
    assert desk.heard()[3] >> 3 == 0
    tablet.write(b"SP\r")
    desk.router.send(position(5, 5))
    assert desk.heard() == b""


def test_the_tablet_is_in_use_once_the_guest_starts_it(desk: Desk) -> None:
    tablet = desk.tablet()
    assert [(mouse.name, mouse.absolute) for mouse in desk.router.mice()] == [("QEMU Wacom Pen Tablet", True)]
    tablet.close()
    assert desk.router.mice() == []
    tablet.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_command_is_survived(commands: list[bytes]) -> None:
    with running_loop() as loop:
        desk = Desk(loop)
        tablet = desk.tablet()
        for command in commands:
            assert tablet.write(command) == len(command)
        desk.heard()


# ---- The agent


def message(kind: int, body: bytes, *, port: int = va.CLIENT_PORT) -> bytes:
    text = va.MESSAGE.pack(va.PROTOCOL, kind, 0, len(body)) + body
    return va.CHUNK.pack(port, len(text)) + text


def announcement(wants_answer: int, capabilities: int) -> bytes:
    return message(va.ANNOUNCE_CAPABILITIES, struct.pack("<II", wants_answer, capabilities))


OURS = va.CAN_REPLY | va.CAN_MOUSE_STATE


def test_both_sides_say_what_they_can(desk: Desk) -> None:
    agent = desk.agent()
    assert agent.filename == "qemu-vdagent"
    agent.set_open(True)
    assert desk.heard() == announcement(1, OURS)
    agent.write(announcement(1, va.CAN_MOUSE_STATE))
    assert desk.heard() == announcement(0, OURS)
    agent.write(announcement(0, va.CAN_MOUSE_STATE))
    assert desk.heard() == b""


def test_clipboards_and_mice_are_announced_where_they_are_wanted(desk: Desk) -> None:
    agent = desk.agent(mouse=False, clipboard=True)
    agent.set_open(True)
    clipboards = va.CAN_CLIPBOARD_BY_DEMAND | va.CAN_CLIPBOARD_SELECTION
    assert desk.heard() == announcement(1, va.CAN_REPLY | clipboards)
    assert desk.router.mice() == []


def test_the_pointer_goes_where_the_person_points(desk: Desk) -> None:
    agent = desk.agent()
    agent.set_open(True)
    desk.router.send(position(0, 0))
    desk.heard()
    wire = announcement(0, va.CAN_MOUSE_STATE)
    for place in range(len(wire)):
        agent.write(wire[place : place + 1])
    desk.router.send([*position(POSITION_MAX, POSITION_MAX), ButtonInput("right", True)])
    assert desk.heard() == message(va.MOUSE_STATE, va.MOUSE.pack(799, 599, 1 << 3, 0))
    agent.set_open(False)
    desk.router.send(position(1, 1))
    assert desk.heard() == b""
    agent.close()
    assert desk.router.mice() == []


def test_a_guest_that_does_not_read_is_not_waited_for(desk: Desk) -> None:
    agent = desk.agent()
    agent.set_open(True)
    agent.write(announcement(0, va.CAN_MOUSE_STATE))
    desk.guest.room = 0
    for x in range(1000):
        desk.router.send(position(x, x))
    desk.guest.room = 1 << 20
    agent.accept_input()
    assert len(desk.heard()) <= va.QUEUE_LIMIT


def test_other_messages_and_ports_are_left_alone(desk: Desk) -> None:
    agent = desk.agent()
    agent.set_open(True)
    desk.heard()
    agent.write(message(va.ANNOUNCE_CAPABILITIES, struct.pack("<II", 1, 1), port=2))
    agent.write(message(4, bytes(100)))
    agent.write(message(va.ANNOUNCE_CAPABILITIES, b"short"))
    assert desk.heard() == b""
    agent.write(announcement(1, 1))
    assert desk.heard() == announcement(0, OURS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_message_is_survived(pieces: list[bytes]) -> None:
    with running_loop() as loop:
        desk = Desk(loop)
        agent = desk.agent()
        for piece in pieces:
            assert agent.write(piece) == len(piece)
        desk.heard()
