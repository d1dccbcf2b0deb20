"""The machine: the only place where parts are wired together.

:mod:`board` wires the chips, :mod:`plug.plugging` what is plugged into them, :mod:`lifecycle` says what running, reset
and shutdown mean, :mod:`boot` does what firmware does, and :mod:`pc` makes one machine of it all.  In :mod:`plug`
devices come and go, in :mod:`saved` whole machines do; :mod:`qom` shows the machine as a tree of objects, and
:mod:`dump` writes its memory to files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc, run
    from pyvm.machine.plug.models import DEVICE_MODELS

__all__ = ["DEVICE_MODELS", "Pc", "run"]


def __getattr__(name: str) -> Any:
    """Import on first use: help on devices needs no machine, and a machine needs no help."""
    if name == "DEVICE_MODELS":
        from pyvm.machine.plug.models import DEVICE_MODELS

        return DEVICE_MODELS
    if name in ("Pc", "run"):
        from pyvm.machine import pc

        return getattr(pc, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
