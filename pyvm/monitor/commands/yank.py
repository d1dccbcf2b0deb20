"""Commands that tear down connections whose peers hang.

They are executed out of band: whoever waits for such a peer may be a command of the same client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pyvm.monitor.errors import DEVICE_NOT_FOUND, QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

if TYPE_CHECKING:
    from pyvm.chardev.registry import ChardevSet

COMMANDS = CommandTable()

_Instance = dict[str, Any]


@runtime_checkable
class _ChardevOwner(Protocol):
    chardev_set: ChardevSet


@runtime_checkable
class YankProvider(Protocol):
    """A machine with more connections than those of its character devices."""

    def yank_instances(self) -> list[tuple[_Instance, Callable[[], None]]]:
        """Return each of them as a YankInstance, and what tears it down."""


def _instances(context: Context) -> Iterator[tuple[_Instance, Callable[[], None]]]:
    machine = context.machine
    if isinstance(machine, _ChardevOwner):
        from pyvm.chardev.socket import SocketChardev

        for chardev in machine.chardev_set:
            if isinstance(chardev, SocketChardev):
                yield {"type": "chardev", "id": chardev.label}, chardev.shut_down
    if isinstance(machine, YankProvider):
        yield from machine.yank_instances()


def _as_wire(record: Record) -> _Instance:
    names = {"block-node": ("node-name", "node_name"), "chardev": ("id", "id")}
    if record.type not in names:
        return {"type": record.type}
    name, attribute = names[record.type]
    return {"type": record.type, name: getattr(record, attribute)}


@COMMANDS.command("query-yank")
def query_yank(context: Context) -> list[_Instance]:
    """Return the connections that can be torn down."""
    return [instance for instance, _ in _instances(context)]


@COMMANDS.command("yank")
def yank(context: Context, instances: list[Record]) -> None:
    """Tear down connections; none of them where one does not exist."""
    found = list(_instances(context))
    wanted = [_as_wire(record) for record in instances]
    if any(all(instance != known for known, _ in found) for instance in wanted):
        raise QmpError("Instance not found", DEVICE_NOT_FOUND)
    for known, tear_down in found:
        if known in wanted:
            tear_down()
