"""Commands that limit what drives do, and that count it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvm.monitor.commands.block_common import block_errors, find_backend, storage_of
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

if TYPE_CHECKING:
    from pyvm.block.accounting import BlockStats

COMMANDS = CommandTable()

_BUCKETS = {
    "bps": "bps-total",
    "bps_rd": "bps-read",
    "bps_wr": "bps-write",
    "iops": "iops-total",
    "iops_rd": "iops-read",
    "iops_wr": "iops-write",
}


@COMMANDS.command("block_set_io_throttle")
def block_set_io_throttle(context: Context, arguments: Record) -> None:
    """Limit what a drive does in a second."""
    from pyvm.block.throttling import Limits

    backend = find_backend(context, arguments.device, arguments.id)
    if backend.node is None:
        raise QmpError("Device has no medium")
    values: dict[str, int] = {}
    for name, bucket in _BUCKETS.items():
        for suffix, ending in (("", ""), ("_max", "-max"), ("_max_length", "-max-length")):
            value = getattr(arguments, name + suffix)
            if value is not None:
                values[bucket + ending] = value
    if arguments.iops_size is not None:
        values["iops-size"] = arguments.iops_size
    with block_errors():
        group = arguments.group
        if group is None and backend.throttle is None:
            group = arguments.device or arguments.id
        storage_of(context.machine).set_limits(backend, Limits(values), group)


@COMMANDS.command("block-latency-histogram-set")
def block_latency_histogram_set(
    context: Context,
    id: str,  # noqa: A002
    boundaries: list[int] | None,
    boundaries_read: list[int] | None,
    boundaries_write: list[int] | None,
    boundaries_flush: list[int] | None,
) -> None:
    """Count requests of a drive by how long they take; without boundaries, do so no longer."""
    from pyvm.block.accounting import Operation

    stats = find_backend(context, None, id).stats
    given = {"read": boundaries_read, "write": boundaries_write, "flush": boundaries_flush}
    operations = {"read": Operation.READ, "write": Operation.WRITE, "flush": Operation.FLUSH}
    if boundaries is None and all(value is None for value in given.values()):
        for operation in operations.values():
            stats.set_histogram(operation, None)
        return
    for name, own in given.items():
        wanted = own if own is not None else boundaries
        if wanted is not None:
            _set_histogram(stats, operations[name], wanted, f"Device '{id}' set {name} boundaries fail")


def _set_histogram(stats: BlockStats, operation: int, boundaries: Sequence[int], complaint: str) -> None:
    from pyvm.block.accounting import Operation

    if any(later <= earlier for earlier, later in zip((0, *boundaries), boundaries, strict=False)):
        raise QmpError(complaint)
    stats.set_histogram(Operation(operation), boundaries)
