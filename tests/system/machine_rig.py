"""A whole machine, not running, and a client that executes commands on it; what tests of its parts share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine, Iterable
from typing import Any, Self

from pyvm.commandline import parse_arguments
from pyvm.machine.pc import Pc
from pyvm.monitor.descriptors import NamedFds
from pyvm.monitor.dispatcher import Dispatcher
from pyvm.monitor.events import EventMessage
from pyvm.monitor.schema.model import load
from pyvm.monitor.schema.validate import Validator

BASE = ("-nodefaults", "-display", "none", "-S", "-m", "16")


class Session:
    """The client's side of a conversation without a wire."""

    negotiating = False
    oob_enabled = False

    def __init__(self) -> None:
        self.replies: list[dict[str, Any]] = []

    @property
    def named_fds(self) -> NamedFds:
        """No descriptors have names."""
        return NamedFds()

    def take_fd(self) -> int | None:
        """No descriptors are passed."""
        return None

    def reply(self, reply: dict[str, Any]) -> None:
        """Keep a reply."""
        self.replies.append(reply)

    def enable_capabilities(self, names: Iterable[str]) -> None:
        """There is nothing to be enabled."""


class Machine:
    """A machine made from options of the command line, and a client of it.  Closes itself at the end of a `with`."""

    def __init__(self, *options: str, base: tuple[str, ...] = BASE) -> None:
        self.pc = Pc(parse_arguments([*base, *options]))
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._session = Session()
        self._dispatcher = Dispatcher(self.pc, self._spawn)
        self._validator = Validator(load())
        self.pc.events.subscribe(self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.pc.close()

    def _event(self, event: EventMessage) -> None:
        name, data = event.message["event"], event.message.get("data", {})
        known = load().event(name)
        assert known is not None, name
        self._validator.check_event(known, data)
        self.events.append((name, data))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.run(asyncio.wait_for(work, 60))

    def run(self, work: Coroutine[Any, Any, Any] | None = None) -> None:
        """Let the main loop do `work`, or what is to be done soon."""
        with self.pc.lock:
            self.pc.mainloop.loop.run_until_complete(work if work is not None else self._soon())

    @staticmethod
    async def _soon() -> None:
        await asyncio.sleep(0.001)
        for _ in range(5):  # that time may be over before anything was done
            await asyncio.sleep(0)

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Execute a command; return the reply, whose value was checked against the schema."""
        with self.pc.lock:
            self._dispatcher.submit(self._session, {"execute": command, "arguments": arguments or {}})
        reply = self._session.replies.pop()
        if "return" in reply:
            kind = load().command(command)
            assert kind is not None
            self._validator.checker(kind.returns)(reply["return"], None)
        return reply

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command that succeeds; return its result.  Underscores in names stand for hyphens."""
        return self.ask(command, {name.replace("_", "-"): value for name, value in arguments.items()})["return"]

    def error(self, command: str, **arguments: Any) -> str:
        """Execute a command that fails; return what it says, after its class where that is not GenericError."""
        reply = self.ask(command, {name.replace("_", "-"): value for name, value in arguments.items()})
        error = reply["error"]
        text: str = error["desc"]
        return text if error["class"] == "GenericError" else f"{error['class']}: {text}"

    def get(self, path: str, name: str) -> Any:
        """Return a property of an object."""
        return self.execute("qom-get", path=path, property=name)

    def take_events(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events since the last time, those included that come soon."""
        self.run()
        events, self.events = self.events, []
        return events


@functools.cache
def shared() -> Machine:
    """Return one machine for all tests that only want to see that each command answers."""
    return Machine("-device", "virtio-rng-pci,id=r", "-device", "virtio-serial-pci,id=vs", "-object", "iothread,id=io0")


_VIRTIO = "/machine/peripheral/r/virtio-backend"
ARGUMENTS: dict[str, dict[str, Any]] = {
    "calc-dirty-rate": {"calc-time": 1},
    "cpu-add": {"id": 0},
    "device-list-properties": {"typename": "virtio-rng-pci"},
    "device_add": {"driver": "virtserialport", "id": "port"},
    "device_del": {"id": "port"},
    "dumpdtb": {"filename": "x"},
    "object-add": {"qom-type": "rng-builtin", "id": "rng"},
    "object-del": {"id": "rng"},
    "qom-get": {"path": "/machine", "property": "type"},
    "qom-list": {"path": "/machine"},
    "qom-list-properties": {"typename": "iothread"},
    "qom-set": {"path": "/objects/io0", "property": "poll-grow", "value": 2},
    "query-cpu-model-expansion": {"type": "full", "model": {"name": "qemu64"}},
    "query-sev-attestation-report": {"mnonce": "x"},
    "query-stats": {"target": "vm"},
    "set-numa-node": {"type": "node"},
    "set-vcpu-dirty-limit": {"dirty-rate": 1},
    "sev-inject-launch-secret": {"packet-header": "x", "secret": "x"},
    "x-query-virtio-queue-element": {"path": _VIRTIO, "queue": 0},
    "x-query-virtio-queue-status": {"path": _VIRTIO, "queue": 0},
    "x-query-virtio-status": {"path": _VIRTIO},
    "x-query-virtio-vhost-queue-status": {"path": _VIRTIO, "queue": 0},
}
"""What commands about the parts of a machine need to succeed with the shared machine."""
REFUSED = frozenset({
    "cpu-add", "dumpdtb", "query-sev-attestation-report", "query-sev-capabilities", "query-sev-launch-measure",
    "query-sgx", "query-sgx-capabilities", "query-vm-generation-id", "set-numa-node", "set-vcpu-dirty-limit",
    "sev-inject-launch-secret", "x-exit-preconfig", "x-query-profile", "x-query-usb", "x-query-virtio-queue-element",
    "x-query-virtio-vhost-queue-status",
})  # fmt: skip
"""Commands that a machine without what they are about refuses."""
