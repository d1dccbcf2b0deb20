"""Errors that a QMP client sees: a class that programs may match, and a description for people."""

from __future__ import annotations

GENERIC_ERROR = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_ACTIVE = "DeviceNotActive"
DEVICE_NOT_FOUND = "DeviceNotFound"
KVM_MISSING_CAP = "KVMMissingCap"


class QmpError(Exception):
    """A command fails: `error_class` and `description` become the members of the reply's `error`."""

    def __init__(self, description: str, error_class: str = GENERIC_ERROR) -> None:
        super().__init__(description)
        self.description = description
        self.error_class = error_class


def device_not_found(name: str) -> QmpError:
    """Return the error for a device, node or network that does not exist under `name`."""
    return QmpError(f"Device '{name}' not found", DEVICE_NOT_FOUND)


def unsupported() -> QmpError:
    """Return the error for a command that this machine cannot carry out."""
    return QmpError("this feature or command is not currently supported")
