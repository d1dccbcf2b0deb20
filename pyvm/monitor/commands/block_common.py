"""What the commands of the block layer share: finding what they name, and errors in the form of the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pyvm.block.errors import BlockError
from pyvm.errors import ConfigError
from pyvm.monitor.errors import QmpError, device_not_found, unsupported

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage
    from pyvm.monitor.machine import MachineControl
    from pyvm.monitor.registry import Context

_PERIPHERAL = "/machine/peripheral/"


@runtime_checkable
class HasStorage(Protocol):
    """A machine with disks."""

    storage: Storage | None


def storage_of(machine: MachineControl) -> Storage:
    """Return the machine's disks; raises QmpError where it can have none."""
    if not isinstance(machine, HasStorage) or machine.storage is None:
        raise unsupported()
    return machine.storage


@contextmanager
def block_errors() -> Iterator[None]:
    """Let errors of the block layer be those of a command."""
    try:
        yield
    except (BlockError, ConfigError) as error:
        # A second line is advice for a person, which is not for the wire.
        raise QmpError(str(error).partition("\n")[0]) from None
    except OSError as error:
        raise QmpError(error.strerror or str(error)) from None


def find_backend(context: Context, device: str | None, identifier: str | None) -> BlockBackend:
    """Return a drive by its own name, or by the ID or QOM path of the device that has it.  Raises QmpError."""
    if (device is None) == (identifier is None):
        raise QmpError("Need exactly one of 'device' and 'id'")
    storage = storage_of(context.machine)
    if device is not None:
        drive = storage.drives.get(device)
        if drive is None:
            raise device_not_found(device)
        return drive.backend
    assert identifier is not None
    return backend_of_device(context.machine, identifier)


def backend_of_device(machine: MachineControl, identifier: str) -> BlockBackend:
    """Return the drive of a device, by the ID of that or its QOM path.  Raises QmpError."""
    for backend in storage_of(machine).backends():
        name = backend.device_id
        if backend.device is not None and name and _names(identifier, name):
            return backend
    find_device = getattr(machine, "find_device", None)
    if find_device is not None and find_device(identifier.removeprefix(_PERIPHERAL)) is not None:
        raise QmpError("Device does not have a block device backend")
    _refuse_other_objects(machine, identifier)
    raise device_not_found(identifier)


def _refuse_other_objects(machine: MachineControl, identifier: str) -> None:
    """Raise QmpError where `identifier` is the path of an object, with what a client is told of that."""
    model = getattr(machine, "model", None)
    if model is None or not (identifier == "" or identifier.startswith("/")):
        return
    try:
        found = model.qom.resolve(identifier or _PERIPHERAL)
    except QmpError:
        return
    from pyvm.qom.types import load

    kind = load().get(found.type)
    if kind is None or not kind.implements("device"):
        raise QmpError(f"{identifier} is not a hotpluggable device")
    raise QmpError("Device does not have a block device backend")


def _names(identifier: str, device: str) -> bool:
    """Whether `identifier` is a device: its ID, its path, or the end of its path."""
    path = device if device.startswith("/") else _PERIPHERAL + device
    return identifier in (device, path) or ("/" in identifier and path.endswith(f"/{identifier.lstrip('/')}"))


def find_node(storage: Storage, device: str | None, node_name: str | None) -> Node:
    """Return the medium of a drive by the drive's name, or else a node by its own.  Raises QmpError."""
    if device is not None and device in storage.drives:
        backend = storage.drives[device].backend
        if backend.node is None:
            raise QmpError(f"Device '{device}' has no medium")
        return backend.shown_node
    node = storage.graph.nodes.get(node_name) if node_name is not None else None
    if node is None:
        raise QmpError(f"Cannot find device='{device or ''}' nor node-name='{node_name or ''}'")
    return node
