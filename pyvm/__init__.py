"""pyvm: a full-system x86-64 PC emulator."""

from __future__ import annotations

from pyvm.annotations import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyvm.api import Machine, MachineError

__all__ = ["Machine", "MachineError", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the scripting interface when it is first used: the command ``pyvm`` never does."""
    if name in ("Machine", "MachineError"):
        from pyvm import api

        return getattr(api, name)
    raise AttributeError(f"module 'pyvm' has no attribute '{name}'")
