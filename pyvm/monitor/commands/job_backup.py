"""Commands that copy a disk as it is now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyvm.block import bitmaps
from pyvm.block.bitmap_checks import check_usable
from pyvm.block.bitmaps import DirtyBitmap
from pyvm.block.jobs.backup import BackupJob, BackupOptions
from pyvm.block.jobs.surgery import set_backing
from pyvm.block.node import Node
from pyvm.block.options import Dialect, Tree
from pyvm.block.status import backing_of
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.commands.job_common import job_options, lookup
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.block.jobs.job import Transaction
    from pyvm.machine.storage import Storage

COMMANDS = CommandTable()

_MAX_WORKERS = (1 << 31) - 1
_DEFAULT_WORKERS = 64


@COMMANDS.command("blockdev-backup")
def blockdev_backup(context: Context, arguments: Any) -> None:
    """Copy a disk to a node."""
    _carry_out(context, "blockdev-backup", arguments)


@COMMANDS.command("drive-backup")
def drive_backup(context: Context, arguments: Any) -> None:
    """Copy a disk to an image file, which is made unless it is there."""
    _carry_out(context, "drive-backup", arguments)


def _carry_out(context: Context, kind: str, arguments: Any) -> None:
    """Do what a transaction of this action alone does."""
    from pyvm.monitor.commands.transaction import carry_out

    carry_out(storage_of(context.machine), [(kind, arguments)])


def prepare_blockdev_backup(storage: Storage, wanted: Any, transaction: Transaction | None = None) -> BackupJob:
    """Return a job that is ready to be started.  Raises QmpError."""
    source = lookup(storage, wanted.device)
    target = lookup(storage, wanted.target)
    with block_errors():
        return _make(storage, wanted, source, target, transaction)


def prepare_drive_backup(storage: Storage, wanted: Any, transaction: Transaction | None = None) -> BackupJob:
    """Return a job that is ready to be started, with an image for it.  Raises QmpError."""
    source = lookup(storage, wanted.device)
    with block_errors():
        image_format = wanted.format
        existing = wanted.mode == "existing"
        if image_format is None and not existing:
            image_format = source.driver
        storage.graph.check_unblocked(source)
        sync = wanted.sync
        below = backing_of(source) if sync == "top" else source if sync == "none" else None
        if sync == "top" and below is None:
            sync = "full"
        wanted = SimpleNamespace(**{name: getattr(wanted, name) for name in wanted.__slots__})
        wanted.sync = sync
        if not existing:
            from pyvm.monitor.commands.job_mirror import create_target

            create_target(storage, wanted.target, image_format, source.size, below)
        tree: Tree = {
            "discard": "unmap" if source.unmap else "ignore",
            "cache": {"direct": source.direct, "no-flush": source.no_flush},
            "read-only": False,
        }
        if image_format is not None:
            tree["driver"] = image_format
        if sync == "none" and image_format == "qcow2":
            tree["backing"] = None
        target = storage.open(wanted.target, tree, Dialect.DRIVE)
        try:
            if sync == "none" and hasattr(target, "set_backing"):
                set_backing(storage, target, source)
            return _make(storage, wanted, source, target, transaction)
        finally:
            storage.release(target)  # the job holds it


def _make(storage: Storage, wanted: Any, source: Node, target: Node, transaction: Transaction | None) -> BackupJob:
    sync, mode = wanted.sync, wanted.bitmap_mode
    if sync in ("bitmap", "incremental") and wanted.bitmap is None:
        raise QmpError(f"must provide a valid bitmap name for '{sync}' sync mode")
    if sync == "incremental":
        if mode not in (None, "on-success"):
            raise QmpError(f"Bitmap sync mode must be 'on-success' when using sync mode '{sync}'")
        sync, mode = "bitmap", "on-success"
    bitmap = _find_bitmap(source, wanted.bitmap, sync, mode)
    if bitmap is None and mode is not None:
        raise QmpError("Cannot specify bitmap sync mode without a bitmap")
    if source is target:
        raise QmpError("Source and target cannot be the same")
    if wanted.compress and not _compresses(target):
        raise QmpError(f"Compression is not supported for this drive {target.name}")
    storage.graph.check_unblocked(source)
    storage.graph.check_unblocked(target)
    perf = _check_perf(wanted.x_perf)
    if bitmap is not None and mode != "never":
        check_usable(bitmap)
    if source.size != target.size:
        raise QmpError("Source and target image have different sizes")
    options = BackupOptions(
        sync,
        bitmap=bitmap,
        bitmap_mode=mode,
        compress=bool(wanted.compress),
        on_source_error=wanted.on_source_error or "report",
        on_target_error=wanted.on_target_error or "report",
        **perf,
    )
    common = job_options(storage, wanted, source, filter_name=wanted.filter_node_name, transaction=transaction)
    return BackupJob(storage.jobs, common, source, target, options)


def _find_bitmap(source: Node, name: str | None, sync: str, mode: str | None) -> DirtyBitmap | None:
    if name is None:
        return None
    bitmap = bitmaps.find(source, name)
    if bitmap is None:
        raise QmpError(f"Bitmap '{name}' could not be found")
    if mode is None:
        raise QmpError("Bitmap sync mode must be given when providing a bitmap")
    check_usable(bitmap)
    if sync == "none":
        raise QmpError(f"sync mode '{sync}' does not produce meaningful bitmap outputs")
    if mode == "never" and sync != "bitmap":
        raise QmpError(f"Bitmap sync mode '{mode}' has no meaningful effect when combined with sync mode '{sync}'")
    return bitmap


def _compresses(target: Node) -> bool:
    node: Node | None = target
    while node is not None and node.is_filter:
        node = node.file
    return node is not None and type(node).write_compressed is not Node.write_compressed


def _check_perf(perf: Any) -> dict[str, Any]:
    if perf is None:
        return {}
    if perf.max_workers is not None and not 1 <= perf.max_workers <= _MAX_WORKERS:
        raise QmpError(f"max-workers must be between 1 and {_MAX_WORKERS}")
    chunk: int = perf.max_chunk or 0
    if chunk < 0:
        raise QmpError("max-chunk must be zero (which means no limit) or positive")
    return {
        "max_chunk": chunk,
        "max_workers": perf.max_workers or _DEFAULT_WORKERS,
        "use_copy_range": bool(perf.use_copy_range),
    }
