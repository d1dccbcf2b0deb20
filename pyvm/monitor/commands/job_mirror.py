"""Commands that copy a disk and keep the copy up to date."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyvm.block.jobs.mirror import MirrorJob, MirrorOptions
from pyvm.block.node import Node
from pyvm.block.options import Dialect, Tree
from pyvm.block.replacing import can_replace
from pyvm.block.status import backing_of
from pyvm.monitor.commands.block_common import block_errors, storage_of
from pyvm.monitor.commands.job_common import job_options, lookup, lookup_root, skip_implicit
from pyvm.monitor.errors import QmpError
from pyvm.monitor.registry import CommandTable, Context

if TYPE_CHECKING:
    from pyvm.machine.storage import Storage

COMMANDS = CommandTable()

_MIN_GRANULARITY, _MAX_GRANULARITY = 512, 64 << 20


@COMMANDS.command("blockdev-mirror")
def blockdev_mirror(context: Context, arguments: Any) -> None:
    """Copy a disk to a node."""
    storage = storage_of(context.machine)
    wanted = SimpleNamespace(**{name: getattr(arguments, name) for name in arguments.__slots__}, unmap=True)
    source = lookup_root(storage, wanted.device)
    target = lookup(storage, wanted.target)
    with block_errors():
        _start(storage, wanted, source, target, backing="leave", zero_target=wanted.sync == "full")


@COMMANDS.command("drive-mirror")
def drive_mirror(context: Context, arguments: Any) -> None:
    """Copy a disk to an image file, which is made unless it is there."""
    storage = storage_of(context.machine)
    wanted = arguments
    source = lookup_root(storage, wanted.device)
    with block_errors():
        storage.graph.check_unblocked(source)
        existing = wanted.mode == "existing"
        base = backing_of(source)
        sync = "full" if wanted.sync == "top" and base is None else wanted.sync
        if wanted.replaces is not None and wanted.node_name is None:
            raise QmpError("a node-name must be provided when replacing a named node of the graph")
        image_format = wanted.format
        if image_format is None and not existing:
            image_format = source.driver
        if not existing:
            below = {"full": None, "top": base, "none": skip_implicit(source)}.get(sync)
            create_target(storage, wanted.target, image_format, source.size, below)
        target = _open_target(storage, wanted, image_format, source, keep_backing=False)
        try:
            backing = "open" if existing else "source"
            zero = sync == "full" and (existing or not target.has_zero_init)
            _start(storage, wanted, source, target, backing=backing, zero_target=zero)
        finally:
            storage.release(target)  # the job holds it


def create_target(storage: Storage, filename: str, image_format: str, size: int, backing: Node | None) -> None:
    """Make an image for a copy that stands on `backing`."""
    from pyvm.block.create import create_image
    from pyvm.block.filename import name_of
    from pyvm.machine.overlays import _announce

    names = (None, None) if backing is None else (name_of(backing), backing.driver)
    with storage.quiet():
        create_image(filename, image_format, size, {}, *names, check_backing=False, announce=_announce)


def _open_target(storage: Storage, wanted: Any, image_format: str | None, source: Node, *, keep_backing: bool) -> Node:
    """Open an image for a copy, with the options of the disk."""
    tree: Tree = {
        "discard": "unmap" if source.unmap else "ignore",
        "cache": {"direct": source.direct, "no-flush": source.no_flush},
        "read-only": False,
    }
    if image_format is not None:
        tree["driver"] = image_format
    name = getattr(wanted, "node_name", None)
    if name is not None:
        tree["node-name"] = name
    if not keep_backing and _takes_backing(image_format, wanted.target):
        tree["backing"] = None
    return storage.open(wanted.target, tree, Dialect.DRIVE)


def _takes_backing(image_format: str | None, path: str) -> bool:
    from pyvm.block.options import DRIVERS
    from pyvm.block.probe import PROBE_SIZE, probe_format

    if image_format is None:
        try:
            with open(os.fsencode(path), "rb") as file:
                image_format = probe_format(file.read(PROBE_SIZE), path)
        except OSError:
            return False
    driver = DRIVERS.get(image_format)
    return driver is not None and "backing" in driver.options


def _start(storage: Storage, wanted: Any, source: Node, target: Node, *, backing: Any, zero_target: bool) -> None:
    _check_granularity(wanted.granularity)
    graph = storage.graph
    graph.check_unblocked(source)
    graph.check_unblocked(target)
    base = backing_of(source)
    sync: Any = "full" if wanted.sync == "top" and base is None else wanted.sync
    replaces = wanted.replaces
    if replaces is None and skip_implicit(source) is not source:
        replaces = skip_implicit(source).name
    if replaces is not None:
        _check_replaced(storage, source, replaces)
    if sync in ("incremental", "bitmap"):
        raise QmpError(f"Sync mode '{sync}' not supported")
    if source is target:
        raise QmpError("Can't mirror node into itself")
    if (wanted.buf_size or 0) < 0:
        raise QmpError("Invalid parameter 'buf-size'")
    options = MirrorOptions(
        sync,
        base=base if sync == "top" else None,
        granularity=wanted.granularity or 0,
        buffer=wanted.buf_size or 0,
        on_source_error=wanted.on_source_error or "report",
        on_target_error=wanted.on_target_error or "report",
        unmap=wanted.unmap is not False,
        write_blocking=wanted.copy_mode == "write-blocking",
        replaces=replaces,
        backing=backing,
        zero_target=zero_target,
    )
    filter_name = getattr(wanted, "filter_node_name", None)
    MirrorJob(
        storage.jobs, job_options(storage, wanted, source, filter_name=filter_name), source, target, options
    ).start()


def _check_granularity(granularity: int | None) -> None:
    if not granularity:
        return
    if not _MIN_GRANULARITY <= granularity <= _MAX_GRANULARITY:
        raise QmpError("Parameter 'granularity' expects a value in range [512B, 64MB]")
    if granularity & (granularity - 1):
        raise QmpError("Parameter 'granularity' expects a power of 2")


def _check_replaced(storage: Storage, source: Node, name: str) -> None:
    """Raise QmpError or BlockError where the copy cannot take the place of a node."""
    node = storage.graph.nodes.get(name)
    if node is None:
        raise QmpError(f"Failed to find node with node-name='{name}'")
    storage.graph.check_unblocked(node)
    if not can_replace(storage.graph, source, node):
        raise QmpError(
            f"Cannot replace '{name}' by a node mirrored from '{source.name}', because it cannot be guaranteed that "
            "doing so would not lead to an abrupt change of visible data"
        )
    if node.size != source.size:
        raise QmpError("cannot replace image with a mirror image of different size")
