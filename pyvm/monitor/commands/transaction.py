"""Command *transaction*, and internal snapshots of single disks.

Each action is carried out as far as it can be undone; once all are, they are ended one after the other.  Where one
fails, those before it are undone, the last one first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from pyvm.block import bitmap_actions
from pyvm.block.errors import BlockError
from pyvm.block.jobs.backup import BackupJob
from pyvm.block.jobs.job import Transaction
from pyvm.monitor.commands import dirty_bitmaps
from pyvm.monitor.commands.block_common import block_errors, find_node, storage_of
from pyvm.monitor.commands.job_backup import prepare_blockdev_backup, prepare_drive_backup
from pyvm.monitor.commands.job_common import lookup, lookup_root
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context
from pyvm.monitor.schema.record import Record

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.drivers.qcow2.records import Snapshot
    from pyvm.block.node import Node
    from pyvm.machine.storage import Storage

COMMANDS = CommandTable()

_T = TypeVar("_T")


class _Step:
    """An action that was carried out as far as it can be undone."""

    def __init__(
        self,
        undo: Callable[[], object],
        end: Callable[[], object] = lambda: None,
        clean: Callable[[], object] = lambda: None,
    ) -> None:
        self.undo = undo
        self.end = end
        self.clean = clean
        """Called once all are ended."""


_Action = Callable[["Storage", Any, Transaction | None], _Step]


def _abort(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    raise QmpError("Transaction aborted using Abort action")


def _bitmap_add(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    return _Step(dirty_bitmaps.add(storage, data))


def _bitmap_remove(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    return _Step(*bitmap_actions.remove(storage, data.node, data.name, keep=True))


def _bitmap_clear(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    return _Step(bitmap_actions.clear(storage, data.node, data.name))


def _bitmap_enable(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    return _Step(bitmap_actions.enable(storage, data.node, data.name, enabled=True))


def _bitmap_disable(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    return _Step(bitmap_actions.enable(storage, data.node, data.name, enabled=False))


def _bitmap_merge(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    return _Step(dirty_bitmaps.merge(storage, data))


def _blockdev_backup(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    source = lookup(storage, data.device)
    return _job_step(storage, source, lambda: prepare_blockdev_backup(storage, data, jobs))


def _drive_backup(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    source = lookup(storage, data.device)
    return _job_step(storage, source, lambda: prepare_drive_backup(storage, data, jobs))


def _job_step(storage: Storage, source: Node, prepare: Callable[[], BackupJob]) -> _Step:
    still = ExitStack()
    job = _while_still(storage, source, still, prepare)

    def undo() -> None:
        # One that fails takes those of its transaction along.
        if job in job.jobs:
            job.cancel(True)
        still.close()

    def clean() -> None:
        still.close()
        job.let_go()

    return _Step(undo, job.start, clean)


def _while_still(storage: Storage, node: Node, still: ExitStack, action: Callable[[], _T]) -> _T:
    """Do something while a node stands still, which goes on until `still` is closed: here, where this fails."""
    still.enter_context(storage.drained(node))
    try:
        return action()
    except BaseException:
        still.close()
        raise


def _snapshot_sync(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    from pyvm.machine.overlays import NewOverlay, make_overlay

    node = find_node(storage, data.device, data.node_name)
    if data.node_name is not None and data.snapshot_node_name is None:
        raise QmpError("New overlay node-name missing")
    wanted = NewOverlay(
        data.snapshot_file, data.format or "qcow2", data.snapshot_node_name, existing=data.mode == "existing"
    )
    return _overlay_step(storage, node, lambda: make_overlay(storage, node, wanted, freeze=False))


def _snapshot(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    from pyvm.machine.overlays import put_on_top

    node = find_node(storage, data.node, data.node)

    def put() -> Node:
        storage.graph.check_free(node)
        overlay = find_node(storage, data.overlay, data.overlay)
        put_on_top(storage, overlay, node, freeze=False)
        return overlay.hold()

    return _overlay_step(storage, node, put)


def _overlay_step(storage: Storage, node: Node, put: Callable[[], Node]) -> _Step:
    """Put something on top of a node, in a way that can be undone; `put` returns it, held."""
    from pyvm.block.jobs import surgery
    from pyvm.machine.overlays import freeze_below

    was_read_only = node.read_only
    still = ExitStack()
    node.hold()  # until all is done
    try:
        overlay = _while_still(storage, node, still, put)
    except BaseException:
        storage.release(node)
        raise

    def undo() -> None:
        storage.set_read_only(node, was_read_only)
        surgery.set_backing(storage, overlay, None)
        surgery.replace_node(storage, overlay, node)
        still.close()
        storage.release(overlay)
        storage.release(node)

    def clean() -> None:
        still.close()
        storage.release(node)
        storage.release(overlay)

    return _Step(undo, lambda: freeze_below(storage, node), clean)


def _snapshot_internal(storage: Storage, data: Any, jobs: Transaction | None) -> _Step:
    found = _snapshot_node(storage, data.device)
    still = ExitStack()
    node, snapshot = _while_still(storage, found, still, lambda: _create_snapshot(storage, data.device, data.name))

    def undo() -> None:
        with storage.quiet():
            node.delete_snapshot(snapshot.identifier, snapshot.name)
        still.close()

    return _Step(undo, clean=still.close)


_ACTIONS: dict[str, _Action] = {
    "abort": _abort,
    "block-dirty-bitmap-add": _bitmap_add,
    "block-dirty-bitmap-remove": _bitmap_remove,
    "block-dirty-bitmap-clear": _bitmap_clear,
    "block-dirty-bitmap-enable": _bitmap_enable,
    "block-dirty-bitmap-disable": _bitmap_disable,
    "block-dirty-bitmap-merge": _bitmap_merge,
    "blockdev-backup": _blockdev_backup,
    "drive-backup": _drive_backup,
    "blockdev-snapshot": _snapshot,
    "blockdev-snapshot-sync": _snapshot_sync,
    "blockdev-snapshot-internal-sync": _snapshot_internal,
}
_GROUPED = ("blockdev-backup", "drive-backup", "abort")
"""Actions that may be part of a transaction whose jobs succeed or fail together."""


@COMMANDS.command("transaction")
def transaction(context: Context, actions: list[Record], properties: Record | None) -> None:
    """Carry out actions: all, or none."""
    grouped = properties is not None and properties.completion_mode == "grouped"
    carry_out(storage_of(context.machine), [(action.type, action.data) for action in actions], grouped=grouped)


def carry_out(storage: Storage, actions: list[tuple[str, Any]], *, grouped: bool = False) -> None:
    """Carry out actions, each with its data: all, or none.  Raises QmpError."""
    jobs = Transaction() if grouped else None
    storage.drain()
    steps: list[_Step] = []
    try:
        for kind, data in actions:
            if grouped and kind not in _GROUPED:
                raise QmpError(f"Action '{kind}' does not support Transaction property completion-mode = grouped")
            with block_errors():
                steps.append(_ACTIONS[kind](storage, data, jobs))
    except QmpError:
        for step in reversed(steps):
            step.undo()
        raise
    for step in steps:
        step.end()
    for step in steps:
        step.clean()


# ---- Internal snapshots


def _snapshot_node(storage: Storage, device: str) -> Qcow2Node:
    node = lookup_root(storage, device)
    while node.is_filter and node.file is not None:
        node = node.file
    storage.graph.check_unblocked(node)
    if node.read_only:
        raise QmpError(f"Device '{device}' is read only")
    if not hasattr(node, "create_snapshot"):
        raise QmpError(f"Block format '{node.driver}' used by device '{device}' does not support internal snapshots")
    return node  # type: ignore[return-value]


def _create_snapshot(storage: Storage, device: str, name: str) -> tuple[Qcow2Node, Snapshot]:
    node = _snapshot_node(storage, device)
    if not name:
        raise QmpError("Name is empty")
    if any(it.name == name for it in node.snapshots):
        raise QmpError(f"Snapshot with name '{name}' already exists on device '{device}'")
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    storage.settle()
    try:
        with storage.quiet():
            now = storage.clock.now()
            snapshot = node.create_snapshot(name, date_sec=seconds, date_nsec=nanoseconds, vm_clock_nsec=now)
    except (OSError, BlockError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise QmpError(f"Failed to create snapshot '{name}' on device '{device}': {reason}") from None
    return node, snapshot


@COMMANDS.command("blockdev-snapshot-internal-sync")
def snapshot_internal(context: Context, arguments: Any) -> None:
    """Keep a disk as it is now in its image."""
    carry_out(storage_of(context.machine), [("blockdev-snapshot-internal-sync", arguments)])


@COMMANDS.command("blockdev-snapshot-delete-internal-sync")
def snapshot_delete(context: Context, device: str, id: str | None, name: str | None) -> dict[str, Any]:  # noqa: A002
    """Forget a snapshot in an image; return what it was."""
    from pyvm.block.info import snapshot_info

    storage = storage_of(context.machine)
    node = lookup_root(storage, device)
    if id is None and name is None:
        raise QmpError("Name or id must be provided")
    snapshots = getattr(node, "snapshots", [])
    found = [it for it in snapshots if id in (None, it.identifier) and name in (None, it.name)]
    if not found:
        raise QmpError(
            f"Snapshot with id '{'null' if id is None else id}' and name '{'null' if name is None else name}' does not "
            f"exist on device '{device}'"
        )
    info = snapshot_info(found[0])
    with block_errors(), storage.drained(node), storage.quiet():
        node.delete_snapshot(found[0].identifier, found[0].name)  # type: ignore[attr-defined]
    return info
