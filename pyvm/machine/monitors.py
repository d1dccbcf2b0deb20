"""The monitors that the command line asks for; a machine that has none does without all of this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.errors import ConfigError
from pyvm.monitor.qmp import QmpMonitor

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev
    from pyvm.config import MonitorConfig
    from pyvm.machine.pc import Pc
    from pyvm.monitor.hmp.monitor import HumanMonitor


def make_monitor(pc: Pc, config: MonitorConfig, port: Chardev) -> QmpMonitor | HumanMonitor:
    """Return a monitor on a character device.  Raises ConfigError."""
    try:
        if config.mode == "control":
            return QmpMonitor(port, pc.dispatcher, pc.events, pc.mainloop, pretty=config.pretty)
        from pyvm.monitor.hmp.monitor import HumanMonitor

        return HumanMonitor(port, pc.dispatcher, pc, pc.mainloop)
    except ValueError as error:
        raise ConfigError(f"{config.origin}: {error}" if config.origin else str(error)) from None
