"""A virtio socket device with its side of the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyvm.chardev.base import ChardevError
from pyvm.clock import Clock
from pyvm.devices.virtio.vsock import VirtioVsock
from pyvm.errors import ConfigError
from pyvm.mainloop import MainLoop
from pyvm.net.vsock import VsockHost


def make_vsock(loop: MainLoop, clock: Clock, values: Mapping[str, Any]) -> tuple[VirtioVsock, VsockHost]:
    """Return a device with these properties, and what serves it.  Raises ConfigError, and ValueError for the CID."""
    device = VirtioVsock(clock, values["guest-cid"], lambda port: host.connect(port))
    if values["uds"] is None:
        raise ConfigError("uds property must be the path of a socket for programs on the host")
    try:
        host = VsockHost(loop, values["uds"], device)
    except ChardevError as error:
        raise ConfigError(str(error)) from None
    return device, host
