"""Property `drive` of a disk that works: which node it shows, and how another one takes the place of that.

The guest sees nothing of a change but other data, as with a filter that is put in front of the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.monitor.errors import QmpError

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice


def backend_of(device: PluggedDevice) -> BlockBackend | None:
    """Return the drive of a device, if it has one."""
    if "drive" not in device.values:
        return None
    inner: Any = getattr(device.made, "device", device.made)
    return getattr(inner, "backend", None)


def getter(backend: BlockBackend) -> Callable[[], str]:
    """Return what tells the name of the drive, or of the node that is shown."""
    return lambda: backend.name or ("" if backend.node is None else backend.node.name)


def setter(pc: Pc, backend: BlockBackend) -> Callable[[Any], None]:
    """Return what lets a drive show the node of a name; that raises QmpError."""

    def put(name: str) -> None:
        try:
            pc.storage.show_node(backend, name)
        except BlockError as error:
            raise QmpError(str(error).partition("\n")[0]) from None

    return put
