"""What `-incoming file:FOLDER` says behind the folder: ``disks=images|overlay`` and ``clock=keep|step``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.config import MachineConfig

_OPTION = re.compile(r"^(.*),(disks|clock)=([^,=]*)$", re.DOTALL)
_VALUES = {"disks": ("images", "overlay"), "clock": ("keep", "step")}


def configure(config: MachineConfig) -> None:
    """Take the options off the name of the folder that a machine is restored from.  Raises ConfigError."""
    while config.restore is not None and (match := _OPTION.match(config.restore)):
        config.restore, name, value = match.groups()
        if value not in _VALUES[name]:
            raise ConfigError(f"-incoming file:: {name}={value}: it is one of {', '.join(_VALUES[name])}")
        setattr(config, f"restore_{name}", value)
