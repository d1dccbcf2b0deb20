"""Commands about input and passwords.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pyvm.clock import ManualClock
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.input import InputRouter, KeyboardInput, MouseInput
from pyvm.monitor.commands.ui import expiry
from pyvm.runstate import RunState
from tests.unit.monitor_support import Bench


class Desk:
    """A client of a machine with a keyboard and a mouse."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.clock = ManualClock()
        states = self.bench.machine.states
        self.router = InputRouter(self.clock, lambda: states.state is RunState.RUNNING)
        self.keyboard = Ps2Keyboard()
        self.router.register(KeyboardInput(self.keyboard, lambda: None))
        self.router.register(MouseInput(Ps2Mouse(), lambda: None))
        machine: Any = self.bench.machine
        machine.input = self.router
        self.client = self.bench.client()

    def run(self) -> None:
        self.bench.machine.states.set(RunState.RUNNING)

    def typed(self) -> bytes:
        return bytes(iter(self.keyboard.take, None))


def qcode(key: str) -> dict[str, Any]:
    return {"type": "qcode", "data": key}


def test_mice() -> None:
    mouse = {"index": 2, "name": "QEMU PS/2 Mouse", "current": True, "absolute": False}
    assert Desk().client.execute("query-mice") == [mouse]


def test_send_key() -> None:
    desk = Desk()
    client = desk.client
    client.execute("send-key", keys=[qcode("a")])
    desk.run()
    client.execute("send-key", keys=[])
    assert desk.typed() == b""
    client.execute("send-key", keys=[qcode("ctrl"), {"type": "number", "data": 83}], **{"hold-time": 10})
    desk.clock.advance(30_000_000)
    assert desk.typed() == bytes((0x14, 0x71, 0xF0, 0x71, 0xF0, 0x14))
    client.execute("send-key", keys=[{"type": "number", "data": -1}], **{"hold-time": -4})
    assert desk.typed() == b""


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "Invalid parameter type for 'keys', expected: array"),
        ([{"type": "qcode"}], "Parameter 'keys[0].data' is missing"),
        ([{"type": "zz", "data": "a"}], "Parameter 'type' does not accept value 'zz'"),
        ([{"type": "qcode", "data": "nokey"}], "Parameter 'data' does not accept value 'nokey'"),
        ([{"type": "qcode", "data": "a", "q": 1}], "Parameter 'keys[0].q' is unexpected"),
        ([{"type": "number", "data": "a"}], "Invalid parameter type for 'keys[0].data', expected: integer"),
    ],
)
def test_wrong_keys(keys: Any, problem: str) -> None:
    assert Desk().client.error("send-key", {"keys": keys}) == problem


def test_input_send_event() -> None:
    desk = Desk()
    client = desk.client
    key = {"type": "key", "data": {"down": True, "key": qcode("a")}}
    press = {"type": "btn", "data": {"down": True, "button": "left"}}
    move = {"type": "rel", "data": {"axis": "x", "value": -3}}
    place = {"type": "abs", "data": {"axis": "x", "value": 100}}
    assert client.error("input-send-event", {"events": []}) == "VM not running"
    desk.run()
    client.execute("input-send-event", events=[key, press, move])
    assert desk.typed() == bytes((0x1C,))
    client.execute("input-send-event", events=[], head=7)
    none = "Input handler not found for event type abs"
    assert client.error("input-send-event", {"events": [key, place]}) == none
    assert desk.typed() == b""
    assert client.error("input-send-event", {"device": "zz", "events": []}) == "DeviceNotFound: Device 'zz' not found"
    desk.bench.machine.identifiers["disk"] = object()
    unbound = "Device disk (head 0) is not bound to a QemuConsole"
    assert client.error("input-send-event", {"device": "disk", "events": []}) == unbound


def test_passwords() -> None:
    desk = Desk()
    client = desk.client
    for command, more in (("set_password", {"password": "x"}), ("expire_password", {"time": "now"})):
        assert client.error(command, {"protocol": "spice", **more}) == "DeviceNotActive: SPICE is not in use"
    assert client.error("set_password", {"protocol": "vnc", "password": "x"}) == "Could not set password"
    assert client.error("expire_password", {"protocol": "vnc", "time": "now"}) == "Could not set password expire time"
    arguments = {"protocol": "vnc", "password": "x", "connected": "fail"}
    assert client.error("set_password", arguments) == "Invalid parameter 'connected'"
    done: list[Any] = []
    machine: Any = desk.bench.machine
    machine.set_vnc_password = lambda display, password: done.append((display, password)) or True
    machine.expire_vnc_password = lambda display, when: done.append((display, when)) or True
    client.execute("set_password", protocol="vnc", password="x", connected="keep", display="v0")
    client.execute("expire_password", protocol="vnc", time="never")
    assert done == [("v0", "x"), (None, (1 << 63) - 1)]


def test_times_of_expiry() -> None:
    assert expiry("now") == 0
    assert expiry("never") == (1 << 63) - 1
    assert expiry("1335196800") == 1335196800
    assert expiry("12zz") == 12
    assert expiry("zz") == 0
    assert expiry("9" * 100) == (1 << 63) - 1
    before = int(time.time())
    assert before + 60 <= expiry("+60") <= int(time.time()) + 60


def test_without_input() -> None:
    assert Bench().client().error("query-mice") == "this feature or command is not currently supported"
