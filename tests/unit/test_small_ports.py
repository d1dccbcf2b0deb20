"""Port 92, the debug console and isa-debug-exit."""

from __future__ import annotations

import pytest

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.devices.debugcon import BACKLOG_LIMIT, DebugConsole, DebugConsoleState
from pyvm.devices.isa_debug_exit import IsaDebugExit
from pyvm.devices.port92 import Port92, Port92State
from pyvm.memory import IoSpace
from pyvm.state import StateError


class Wire(Chardev):
    """A back end that can be held back."""

    filename = "test"

    def __init__(self) -> None:
        super().__init__("wire")
        self.sent = b""
        self.room: int | None = None

    def _write(self, data: Buffer) -> int:
        taken = bytes(data) if self.room is None else bytes(data)[: self.room]
        if self.room is not None:
            self.room -= len(taken)
        self.sent += taken
        return len(taken)


def test_port92() -> None:
    a20: list[bool] = []
    resets: list[bool] = []
    port = Port92(a20.append, lambda: resets.append(True))
    assert port.read(0, 1) == 0
    port.write(0, 1, 0x02)
    port.write(0, 1, 0x02)
    port.write(0, 1, 0xFC)
    assert a20 == [True, False]
    assert port.read(0, 1) == 0xFC
    port.write(0, 1, 0x03)
    assert port.a20
    assert resets == [True]
    assert port.read(0, 1) == 0x02
    state = Port92State.from_dict(port.save().to_dict())
    port.reset()
    assert a20[-1] is False
    port.load(state)
    assert a20[-1] is True
    with pytest.raises(StateError):
        port.load(Port92State(1))


def test_debug_console() -> None:
    wire = Wire()
    console = DebugConsole(wire)
    assert console.read(0, 1) == 0xE9
    for byte in b"ab":
        console.write(0, 1, byte)
    assert wire.sent == b"ab"
    wire.room = 1
    for byte in b"cdef":
        console.write(0, 1, byte)
    assert wire.sent == b"abc"
    assert console.can_receive() == 0
    console.event(ChardevEvent.OPENED)
    console.receive(b"ignored")
    state = DebugConsoleState.from_dict(console.save().to_dict())
    wire.room = None
    console.writable()
    assert wire.sent == b"abcdef"
    other_wire = Wire()
    other = DebugConsole(other_wire, readback=0x42)
    other.load(state)
    other.reset()
    assert (other_wire.sent, other.read(0, 1)) == (b"def", 0x42)


def test_debug_console_backlog_is_bounded() -> None:
    wire = Wire()
    wire.room = 0
    console = DebugConsole(wire)
    for _ in range(BACKLOG_LIMIT + 10):
        console.write(0, 1, 0x2E)
    wire.room = None
    console.writable()
    assert len(wire.sent) == BACKLOG_LIMIT


def test_isa_debug_exit() -> None:
    codes: list[int] = []
    device = IsaDebugExit(codes.append, iobase=0xF4, iosize=4)
    ports = IoSpace("ports")
    ports.add(device.iobase, device.iosize, device.read, device.write, "isa-debug-exit", max_access=4)
    ports.write(0xF4, 1, 0)
    ports.write(0xF4, 4, 0x10)
    ports.write(0xF4, 4, 0xFFFF_FFFF)
    assert codes == [1, 0x21, 0xFF]
    assert ports.read(0xF4, 4) == 0
    device.load(device.save())
    device.reset()
    assert IsaDebugExit(codes.append).iobase == 0x501
    with pytest.raises(ValueError, match="iosize 5"):
        IsaDebugExit(codes.append, iosize=5)
    with pytest.raises(ValueError, match="iobase 0xffff"):
        IsaDebugExit(codes.append, iobase=0xFFFF)
