"""Commands about user input and the passwords of remote displays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import DEVICE_NOT_ACTIVE, QmpError, device_not_found, unsupported
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

if TYPE_CHECKING:
    from pyvm.input import InputEvent, InputRouter

COMMANDS = CommandTable()

_NUMBER_LIMIT = 1 << 32
_TIME_LIMIT = (1 << 63) - 1


@runtime_checkable
class InputOwner(Protocol):
    """A machine that takes the person's input."""

    input: InputRouter


@runtime_checkable
class VncPasswords(Protocol):
    """A machine with VNC servers."""

    def set_vnc_password(self, display: str | None, password: str) -> bool:
        """Set the password of the server `display`, by default the first; return whether there is one to set."""

    def expire_vnc_password(self, display: str | None, when: int) -> bool:
        """Let the password end at `when`, in seconds since the epoch; return whether there is one."""


def input_of(context: Context) -> InputRouter:
    """Return what takes the person's input."""
    machine = context.machine
    if not isinstance(machine, InputOwner):
        raise unsupported()
    return machine.input


# ---- Passwords


def _no_spice() -> QmpError:
    return QmpError("SPICE is not in use", DEVICE_NOT_ACTIVE)


@COMMANDS.command("set_password")
def set_password(context: Context, arguments: Record) -> None:
    """Set the password of a remote display."""
    if arguments.protocol == "spice":
        raise _no_spice()
    if arguments.connected not in (None, "keep"):
        raise QmpError("Invalid parameter 'connected'")
    machine = context.machine
    if not isinstance(machine, VncPasswords) or not machine.set_vnc_password(arguments.display, arguments.password):
        raise QmpError("Could not set password")


def expiry(text: str) -> int:
    """Return the time that `text` means in seconds since the epoch: now, never, +SECONDS or SECONDS."""
    if text == "now":
        return 0
    if text == "never":
        return _TIME_LIMIT
    digits = text.removeprefix("+").strip()
    length = next((index for index, character in enumerate(digits) if character not in "0123456789"), len(digits))
    number = int(digits[:length] or "0") if length < 20 else _TIME_LIMIT
    return min(number + (int(time.time()) if text.startswith("+") else 0), _TIME_LIMIT)


@COMMANDS.command("expire_password")
def expire_password(context: Context, arguments: Record) -> None:
    """Let the password of a remote display end."""
    if arguments.protocol == "spice":
        raise _no_spice()
    machine = context.machine
    when = expiry(arguments.time)
    if not isinstance(machine, VncPasswords) or not machine.expire_vnc_password(arguments.display, when):
        raise QmpError("Could not set password expire time")


# ---- Input


@COMMANDS.command("query-mice")
def query_mice(context: Context) -> list[dict[str, Any]]:
    """Return the pointing devices, the one in use last."""
    return [
        {"name": mouse.name, "index": mouse.index, "current": mouse.current, "absolute": mouse.absolute}
        for mouse in reversed(input_of(context).mice())
    ]


def _key(value: Record) -> str:
    from pyvm.input import key_of_number

    return key_of_number(value.data % _NUMBER_LIMIT) if value.type == "number" else str(value.data)


@COMMANDS.command("send-key")
def send_key(context: Context, keys: list[Record], hold_time: int | None) -> None:
    """Press keys one after another, hold them, and release them."""
    hold = None if hold_time is None else hold_time % _NUMBER_LIMIT
    input_of(context).press([_key(key) for key in keys], hold)


def _event(record: Record) -> InputEvent:
    from pyvm.input import ButtonInput, KeyInput, MoveInput, PositionInput

    data = record.data
    match record.type:
        case "key":
            return KeyInput(_key(data.key), data.down)
        case "btn":
            return ButtonInput(data.button, data.down)
        case "rel":
            return MoveInput(data.axis, data.value)
    return PositionInput(data.axis, data.value)


@COMMANDS.command("input-send-event")
def input_send_event(context: Context, device: str | None, head: int | None, events: list[Record]) -> None:
    """Send input events that belong together."""
    router = input_of(context)
    if device is not None:
        _check_display(context, device, head or 0)
    if not router.listening():
        raise QmpError("VM not running")
    made = [_event(record) for record in events]
    for event in made:
        if not router.accepts(event.kind):
            raise QmpError(f"Input handler not found for event type {event.kind.value}")
    router.send(made)


def _check_display(context: Context, device: str, head: int) -> None:
    """Raise QmpError where `device` is no display: which one it is makes no difference to the board's devices."""
    from pyvm.monitor.commands.display import DisplayOwner

    machine = context.machine
    found = machine.find_device(device) if isinstance(machine, DisplayOwner) else None
    if found is None:
        raise device_not_found(device)
    if head or not isinstance(machine, DisplayOwner) or found not in machine.displays():
        raise QmpError(f"Device {device} (head {head}) is not bound to a QemuConsole")
