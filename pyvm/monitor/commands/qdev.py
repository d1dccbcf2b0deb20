"""Commands about devices: their properties, plugging and unplugging."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, device_not_found, unsupported
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


class Plugging(Protocol):
    """What plugs devices in and out."""

    def add(self, arguments: Mapping[str, Any]) -> None:
        """Plug in what the arguments of `device_add` describe; raises QmpError."""

    def remove(self, name: str) -> None:
        """Take out the device with an ID or at a path; DEVICE_DELETED is sent when it is gone.  Raises QmpError."""


class PluggingModel(Protocol):
    """Where a machine has it."""

    @property
    def hotplug(self) -> Plugging:
        """What plugs devices in and out."""


@runtime_checkable
class PluggingOwner(Protocol):
    """A machine that devices can be plugged into."""

    @property
    def model(self) -> PluggingModel:
        """Its parts."""


def _plugging(context: Context) -> Plugging:
    if not isinstance(context.machine, PluggingOwner):
        raise unsupported()
    return context.machine.model.hotplug


@COMMANDS.command("device-list-properties")
def device_list_properties(context: Context, typename: str) -> list[dict[str, Any]]:
    """Return the properties that devices of a model have."""
    from pyvm.qom.types import load

    kind = load().get(typename)
    if kind is None:
        raise device_not_found(typename)
    if kind.abstract or not kind.implements("device"):
        raise QmpError("Parameter 'typename' expects a non-abstract device type")
    return [item.as_info(with_default=True) for item in kind.device_properties]


@COMMANDS.command("device_add")
def device_add(context: Context, arguments: dict[str, Any]) -> None:
    """Plug a device in; an `id` that is no string names nothing, as in QEMU."""
    given = {name: value for name, value in arguments.items() if name != "id" or isinstance(value, str)}
    _plugging(context).add(given)


@COMMANDS.command("device_del")
def device_del(context: Context, id: str) -> None:  # noqa: A002 - the name that the schema gives it
    """Take a device out."""
    _plugging(context).remove(id)
