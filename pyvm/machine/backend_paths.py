"""What clients call the drives of devices without an ID: the device's path in the tree of objects."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice

_BACKEND = "virtio-backend"


def name_backends(pc: Pc) -> None:
    """Give each drive that a device uses the device's path, where it has no name for the device yet."""
    unnamed = [backend for backend in pc.storage.backends() if backend.device is not None and not backend.device_id]
    if not unnamed:
        return
    for plugged in pc.plugger.plugged.devices:
        for backend in unnamed:
            if _uses(plugged.made, backend):
                # The tree of objects is made when somebody asks: most machines start without.
                backend.device_id = partial(_path, pc, plugged)


def _path(pc: Pc, plugged: PluggedDevice) -> str:
    path = pc.model.qom.device_path(plugged.made)
    # The drive of a virtio device belongs to what is behind the transport.
    return f"{path}/{_BACKEND}" if plugged.model.name.startswith("virtio-") else path


def _uses(made: object, backend: BlockBackend) -> bool:
    """Return whether a plugged device, or the device behind its transport, uses a drive."""
    users = (made, getattr(made, "device", None))
    return made is backend or any(user is backend.device or getattr(user, "backend", None) is backend for user in users)
