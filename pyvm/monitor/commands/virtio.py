"""Commands that show what virtio devices and their queues are doing."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from pyvm.monitor.errors import QmpError, unsupported
from pyvm.monitor.registry import CommandTable, Context

COMMANDS = CommandTable()


class VirtioModel(Protocol):
    """The virtio devices of a machine; paths are those of the tree of objects.  All raise QmpError."""

    def virtio_devices(self) -> list[dict[str, Any]]:
        """Return the VirtioInfo of each device."""

    def virtio_status(self, path: str) -> dict[str, Any]:
        """Return the VirtioStatus of a device."""

    def virtio_queue(self, path: str, queue: int) -> dict[str, Any]:
        """Return the VirtQueueStatus of a queue."""

    def virtio_element(self, path: str, queue: int, index: int | None) -> dict[str, Any]:
        """Return a VirtioQueueElement."""


@runtime_checkable
class VirtioOwner(Protocol):
    """A machine that may have virtio devices."""

    @property
    def model(self) -> VirtioModel:
        """Its parts."""


def _model(context: Context) -> VirtioModel:
    if not isinstance(context.machine, VirtioOwner):
        raise unsupported()
    return context.machine.model


@COMMANDS.command("x-query-virtio")
def query_virtio(context: Context) -> list[dict[str, Any]]:
    """Return the virtio devices."""
    return _model(context).virtio_devices()


@COMMANDS.command("x-query-virtio-status")
def query_virtio_status(context: Context, path: str) -> dict[str, Any]:
    """Return what a virtio device is doing."""
    return _model(context).virtio_status(path)


@COMMANDS.command("x-query-virtio-queue-status")
def query_virtio_queue_status(context: Context, path: str, queue: int) -> dict[str, Any]:
    """Return where the rings of a queue are, and how far they are used."""
    return _model(context).virtio_queue(path, queue)


@COMMANDS.command("x-query-virtio-vhost-queue-status")
def query_virtio_vhost_queue_status(context: Context, path: str, queue: int) -> dict[str, Any]:
    """No device is served by the host's kernel."""
    _model(context).virtio_status(path)
    raise QmpError("Error: vhost device has not started yet")


@COMMANDS.command("x-query-virtio-queue-element")
def query_virtio_queue_element(context: Context, path: str, queue: int, index: int | None) -> dict[str, Any]:
    """Return a request in a queue."""
    return _model(context).virtio_element(path, queue, index)
