"""What the monitor tests share: a machine that only keeps a run state, a main loop stepped by hand, and a client."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from pyvm.chardev.base import Buffer, Chardev, ChardevEvent
from pyvm.chardev.registry import ChardevInfo
from pyvm.devices.display.vga import Vga
from pyvm.machine.storage import Storage
from pyvm.monitor.dispatcher import Dispatcher
from pyvm.monitor.errors import unsupported
from pyvm.monitor.events import EventBus
from pyvm.monitor.machine import VcpuInfo
from pyvm.monitor.qmp import QmpMonitor
from pyvm.monitor.schema.model import load
from pyvm.monitor.schema.validate import Validator
from pyvm.runstate import RunState, RunStateHolder, ShutdownCause

NO_UUID = "00000000-0000-0000-0000-000000000000"
WALL_CLOCK_NS = 1_700_000_000_123_456_789
STAMP = '"timestamp": {"seconds": 1700000000, "microseconds": 123456}'
"""The member of all events: what the clock above comes to."""


class ManualScheduler:
    """A main loop without a loop: callbacks run when the test says so, and time is what it says."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self._later: list[tuple[float, Callable[..., object], tuple[object, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self._soon.append((callback, args))

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> None:
        self._later.append((self.now + seconds, callback, args))

    def run(self) -> int:
        """Run what is due, and what that makes due; return how many callbacks ran."""
        count = 0
        while self._soon:
            callback, args = self._soon.pop(0)
            callback(*args)
            count += 1
        return count

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.run()
        end = self.now + seconds
        while due := [entry for entry in self._later if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self._later.remove(entry)
            self.now = entry[0]
            entry[1](*entry[2])
            self.run()
        self.now = end


class FakeBalloon:
    """A balloon that keeps the last target."""

    def __init__(self) -> None:
        self.actual = 128 << 20
        self.target: int | None = None

    def set_target(self, size: int) -> None:
        self.target = size


class FakeMachine:
    """A machine of nothing but its run state and what the test gives it."""

    def __init__(self, events: EventBus) -> None:
        self.states = RunStateHolder()
        self.events = events
        self.name: str | None = None
        self.uuid = NO_UUID
        self.initialized = True
        self.single_step = False
        self.autostart = True
        self.wakeup_supported = False
        self.balloon: FakeBalloon | None = None
        self.has_nmi = True
        self.nmis = 0
        self.ended: ShutdownCause | None = None
        self.cpus: list[VcpuInfo] = []
        self.devices: list[ChardevInfo] = []
        self.screens: list[Vga] = []
        self.identifiers: dict[str, object] = {}
        self.storage: Storage | None = None

    @property
    def run_state(self) -> RunState:
        return self.states.state

    @property
    def needs_reset(self) -> bool:
        return self.states.needs_reset

    def vm_stop(self, state: RunState) -> None:
        if self.states.running:
            self.states.set(state)
            self.events.emit("STOP")

    def vm_start(self) -> None:
        if not self.states.running:
            self.states.set(RunState.RUNNING)
            self.events.emit("RESUME")

    def reset(self, cause: ShutdownCause) -> None:
        if not self.states.running:
            self.states.set(RunState.PRELAUNCH)
        self.events.emit("RESET", {"guest": cause.by_guest, "reason": cause.value})

    def powerdown(self) -> None:
        self.events.emit("POWERDOWN")

    def quit(self, cause: ShutdownCause) -> None:
        self.ended = cause
        self.events.emit("SHUTDOWN", {"guest": cause.by_guest, "reason": cause.value})

    def wakeup(self) -> None:
        self.states.set(RunState.RUNNING)
        self.events.emit("WAKEUP")

    def inject_nmi(self) -> None:
        if not self.has_nmi:
            raise unsupported()
        self.nmis += 1

    def vcpus(self) -> list[VcpuInfo]:
        return self.cpus

    def chardevs(self) -> list[ChardevInfo]:
        return self.devices

    def displays(self) -> list[Vga]:
        return self.screens

    def find_device(self, name: str) -> object | None:
        return self.identifiers.get(name)


class Wire(Chardev):
    """A connection with a client that takes as much output as the test lets it."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__("qmp")
        self.output = bytearray()
        self.room = room
        self.waiting = bytearray()

    @property
    def filename(self) -> str:
        return "test"

    @property
    def connected(self) -> bool:
        return False

    def _write(self, data: Buffer) -> int:
        taken = len(data) if self.room is None else min(len(data), self.room)
        self.output += bytes(data[:taken])
        if self.room is not None:
            self.room -= taken
        return taken

    def accept_input(self) -> None:
        while self.waiting and self.frontend is not None and (room := self.frontend.can_receive()):
            data = bytes(self.waiting[:room])
            del self.waiting[:room]
            self.frontend.receive(data)

    def connect(self) -> None:
        assert self.frontend is not None
        self.frontend.event(ChardevEvent.OPENED)
        self.accept_input()

    def disconnect(self) -> None:
        assert self.frontend is not None
        self.waiting.clear()
        self.frontend.event(ChardevEvent.CLOSED)

    def read_all(self, room: int) -> None:
        """Let the client read up to `room` bytes more."""
        assert self.frontend is not None
        self.room = room
        self.frontend.writable()


class Bench:
    """A machine with a dispatcher and an event bus, for any number of clients."""

    def __init__(self) -> None:
        self.scheduler = ManualScheduler()
        validator = Validator(load())

        def check(name: str, data: dict[str, Any]) -> None:
            event = validator.schema.event(name)
            assert event is not None, name
            validator.check_event(event, data)

        self.events = EventBus(self.scheduler, now=lambda: WALL_CLOCK_NS, check=check)
        self.machine = FakeMachine(self.events)
        self.spawned: list[Coroutine[Any, Any, None]] = []
        self.dispatcher = Dispatcher(self.machine, self.spawned.append)

    def client(self, *, negotiate: bool = True, oob: bool = False, **options: Any) -> Client:
        """Connect a client to a monitor of its own."""
        client = Client(self, **options)
        if negotiate:
            enable = {"enable": ["oob"]} if oob else {}
            assert client.ask({"execute": "qmp_capabilities", "arguments": enable}) == [{"return": {}}]
        return client


class Client:
    """A client at its end of the wire."""

    def __init__(self, bench: Bench, room: int | None = None, **options: Any) -> None:
        self.bench = bench
        self.wire = Wire(room)
        self.monitor = QmpMonitor(self.wire, bench.dispatcher, bench.events, bench.scheduler, **options)
        self.wire.connect()
        self.greeting = self.take()

    def take(self) -> bytes:
        """Return what came since the last time."""
        data = bytes(self.wire.output)
        self.wire.output.clear()
        return data

    def messages(self) -> list[Any]:
        """Return the messages that came since the last time."""
        text = self.take().decode("ascii")
        decoder = json.JSONDecoder()
        messages, position = [], 0
        while position < len(text):
            message, end = decoder.raw_decode(text, position)
            messages.append(message)
            assert text.startswith("\r\n", end)
            position = end + 2
        return messages

    def send(self, data: bytes) -> None:
        """Send bytes; nothing happens yet but what the monitor does at once."""
        self.wire.waiting += data
        self.wire.accept_input()

    def raw(self, data: bytes) -> bytes:
        """Send bytes and return the output they lead to."""
        self.send(data)
        self.bench.scheduler.run()
        return self.take()

    def ask(self, request: Any) -> list[Any]:
        """Send a request and return all messages that follow."""
        self.send(json.dumps(request).encode() + b"\n")
        self.bench.scheduler.run()
        return self.messages()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command that succeeds without events; return its result."""
        (reply,) = self.ask({"execute": command, "arguments": arguments})
        return reply["return"]

    def error(self, command: str, arguments: Any = None) -> str:
        """Execute a command that fails; return its description, after its class where that is not GenericError."""
        request = {"execute": command} if arguments is None else {"execute": command, "arguments": arguments}
        (reply,) = self.ask(request)
        error = reply["error"]
        text: str = error["desc"]
        return text if error["class"] == "GenericError" else f"{error['class']}: {text}"
