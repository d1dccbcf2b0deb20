"""A Microsoft mouse on a serial line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvm.chardev.msmouse import QUEUE_LIMIT, MsmouseChardev
from pyvm.clock import ManualClock
from pyvm.devices.serial import Uart16550
from pyvm.input import ButtonInput, InputRouter, MoveInput
from pyvm.irq import unconnected
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, running_loop, settle


class Desk:
    """The mouse and a guest at the other end of its cable."""

    def __init__(self, loop: MainLoop) -> None:
        self.loop = loop
        self.router = InputRouter(ManualClock(), lambda: True)
        self.mouse = MsmouseChardev("m", loop, self.router)
        self.guest = Recorder().attach(self.mouse)

    def heard(self) -> bytes:
        settle(self.loop)
        data = bytes(self.guest.data)
        self.guest.data.clear()
        return data

    def power(self, on: bool = True) -> None:
        self.mouse.set_modem_control(on, on)


@pytest.fixture
def desk() -> Iterator[Desk]:
    with running_loop() as loop:
        yield Desk(loop)


def test_it_says_what_it_is_when_it_gets_power(desk: Desk) -> None:
    desk.router.send([MoveInput("x", 5)])
    assert desk.heard() == b""
    desk.mouse.set_modem_control(True, False)
    assert desk.heard() == b""
    desk.power()
    assert desk.heard() == b"M3"
    desk.power()
    assert desk.heard() == b""
    desk.power(False)
    desk.power()
    assert desk.heard() == b"M3"


def test_packets(desk: Desk) -> None:
    desk.power()
    desk.heard()
    desk.router.send([MoveInput("x", 1), MoveInput("y", -1)])
    assert desk.heard() == bytes((0x40 | 3 << 2, 1, 0x3F))
    desk.router.send([MoveInput("x", -65)])
    assert desk.heard() == bytes((0x40 | 2, 0x3F, 0))
    desk.router.send([ButtonInput("left", True), ButtonInput("right", True)])
    assert desk.heard() == bytes((0x70, 0, 0))
    desk.router.send([ButtonInput("left", False), ButtonInput("middle", True)])
    assert desk.heard() == bytes((0x50, 0, 0, 0x20))
    desk.router.send([ButtonInput("middle", False), ButtonInput("wheel-up", True)])
    assert desk.heard() == bytes((0x50, 0, 0, 0))
    desk.router.send([MoveInput("x", 200)])
    desk.router.send([MoveInput("x", 0)])
    assert desk.heard() == bytes((0x51, 127 & 0x3F, 0, 0x51, 73 & 0x3F, 0))


def test_what_the_guest_does_not_take_is_bounded(desk: Desk) -> None:
    desk.power()
    desk.guest.room = 0
    for _ in range(1000):
        desk.router.send([MoveInput("x", 99999)])
    settle(desk.loop)
    desk.guest.grant(1 << 20)
    assert 0 < len(desk.heard()) <= QUEUE_LIMIT + 4


def test_the_guest_switches_it_on_by_its_uart(desk: Desk) -> None:
    mouse = MsmouseChardev("n", desk.loop, desk.router)
    uart = Uart16550(unconnected(), ManualClock(), mouse)
    uart.write(4, 1, 0x03)
    settle(desk.loop)
    assert uart.read(0, 1) == ord("M")


def test_it_leaves_when_it_is_closed(desk: Desk) -> None:
    assert [mouse.name for mouse in desk.router.mice()] == ["QEMU Microsoft Mouse"]
    desk.mouse.close()
    desk.mouse.close()
    assert desk.router.mice() == []
