"""What there is to tell of nodes and drives: the BlockDeviceInfo, ImageInfo and BlockStats of QMP.

Names of members are those of the wire.  What a client did not ask for by name is left out where a drive is described:
filters that pyvm put in by itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyvm.block.accounting import BlockStats
from pyvm.block.filename import Namer, skip_implicit
from pyvm.block.node import Node

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend
    from pyvm.block.drivers.qcow2.records import Snapshot

Info = dict[str, Any]

_NS = 1_000_000_000
_CLEAN = ("raw", "file", "host_device")
"""Drivers that know of themselves that nothing is left to be repaired."""
_BUCKETS = {
    "bps": "bps-total",
    "bps_rd": "bps-read",
    "bps_wr": "bps-write",
    "iops": "iops-total",
    "iops_rd": "iops-read",
    "iops_wr": "iops-write",
}


def layer_below(node: Node) -> Node | None:
    """Return what a filter shows, or the backing file of an image."""
    below = node.file if node.is_filter else node.backing
    while below is not None and below.hidden:
        below = below.file
    return below


# ---- Images


def image_info(node: Node, namer: Namer) -> Info:
    """Return the ImageInfo of one node, without what is below it."""
    info: Info = {"filename": namer.name(node), "format": node.driver, "virtual-size": node.size}
    allocated = _allocated(node)
    if allocated is not None:
        info["actual-size"] = allocated
    specific = node.format_info()
    if is_encrypted(node):
        info["encrypted"] = True
    info.update(_state(node))
    if specific is not None:
        info["format-specific"] = specific
    header = getattr(node, "header", None)
    backing_file = getattr(header, "backing_file", None)
    if backing_file is not None:
        info["backing-filename"] = backing_file
        info["full-backing-filename"] = full_name(node, backing_file)
        backing_format = getattr(header, "backing_format", None)
        if backing_format is not None:
            info["backing-filename-format"] = backing_format
    snapshots = getattr(node, "snapshots", None)
    if snapshots:
        info["snapshots"] = [snapshot_info(snapshot) for snapshot in snapshots]
    return info


def is_encrypted(node: Node) -> bool:
    """Return whether the guest's data is encrypted."""
    specific = node.format_info()
    return node.driver == "luks" or (specific is not None and "encrypt" in specific.get("data", {}))


_KNOWS_NOTHING = ("blkdebug", "blkverify")
"""Filters that are opened as protocols are: QEMU does not look below them for what is allocated."""


def _allocated(node: Node) -> int | None:
    """Return what an image takes on the host; its external data file does not count."""
    if node.children and node.file is not None and node.driver not in _KNOWS_NOTHING:
        return _allocated(node.file)
    return None if node.driver in _KNOWS_NOTHING else node.allocated_bytes()


def _state(node: Node) -> Info:
    """Return the cluster size, and whether the image was closed cleanly, as far as the driver or those below know."""
    if node.is_filter or node.driver == "raw":
        return _state(node.file) if node.file is not None else {}
    state: Info = {}
    if node.cluster_size:
        state["cluster-size"] = node.cluster_size
    dirty = getattr(node, "is_dirty", False if node.driver in _CLEAN else None)
    if dirty is not None:
        state["dirty-flag"] = dirty
    return state


def full_name(node: Node, backing: str) -> str:
    """Return the name of a backing file as seen from where the image is named from."""
    protocol, colon, _ = backing.partition(":")
    if colon and "/" not in protocol:
        return backing
    leaf = node
    while leaf.file is not None:
        leaf = leaf.file
    return os.path.join(os.path.dirname(leaf.path), backing)


def snapshot_info(snapshot: Snapshot) -> Info:
    """Return the SnapshotInfo of an internal snapshot."""
    from pyvm.block.drivers.qcow2.records import NO_ICOUNT

    info = {
        "id": snapshot.identifier,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec // _NS,
        "vm-clock-nsec": snapshot.vm_clock_nsec % _NS,
    }
    if snapshot.icount != NO_ICOUNT:
        info["icount"] = snapshot.icount
    return info


# ---- Nodes and drives


def device_info(
    node: Node,
    namer: Namer,
    *,
    backend: BlockBackend | None = None,
    owner: BlockBackend | None = None,
    flat: bool = False,
) -> Info:
    """Return the BlockDeviceInfo of a node.

    `backend` is the drive that is described, None where the node itself is; `owner` is a drive that has the node as
    its medium.  With `flat`, nothing is said of what is below.
    """
    user = backend or owner
    writeback = backend.write_cache if backend is not None else True
    info: Info = {
        "file": namer.name(node),
        "node-name": node.name,
        "ro": node.read_only,
        "drv": node.driver,
        **_backing_file(node, namer),
        "backing_file_depth": 0,
        "encrypted": is_encrypted(node),
        "detect_zeroes": node.detect_zeroes if user is None else user.detect_zeroes,
        "write_threshold": node.write_threshold,
        "cache": {"writeback": writeback, "direct": node.direct, "no-flush": node.no_flush},
    }
    if node.dirty_bitmaps or node.other_bitmaps:
        info["dirty-bitmaps"] = [bitmap.describe() for bitmap in node.other_bitmaps]
        for bitmap in node.dirty_bitmaps:
            if bitmap.successor is not None:
                info["dirty-bitmaps"].append(bitmap.successor.describe())
            info["dirty-bitmaps"].append(bitmap.describe())
    info.update(_limits(backend))
    image = info["image"] = image_info(node, namer)
    below = None if flat else layer_below(node)
    while below is not None:
        info["backing_file_depth"] += 1
        if backend is not None:
            below = skip_implicit(below)
        image["backing-image"] = image = image_info(below, namer)
        below = layer_below(below)
    return info


def _backing_file(node: Node, namer: Namer) -> Info:
    return {"backing_file": namer.name(node.backing)} if not node.is_filter and node.backing is not None else {}


def _limits(backend: BlockBackend | None) -> Info:
    """Return the limits of a drive; all zero where it has none of its own."""
    if backend is None or backend.throttle is None:
        return dict.fromkeys(_BUCKETS, 0)
    group = backend.throttle.group
    limits = group.limits
    info: Info = {}
    for name, bucket in _BUCKETS.items():
        info[name] = limits.get(bucket)
        burst = limits.get(f"{bucket}-max")
        if burst:
            info[f"{name}_max"] = burst
            info[f"{name}_max_length"] = limits.get(f"{bucket}-max-length")
    if limits.get("iops-size"):
        info["iops_size"] = limits.get("iops-size")
    info["group"] = group.name
    return info


def drive_info(backend: BlockBackend, namer: Namer) -> Info:
    """Return the BlockInfo of a drive."""
    info: Info = {
        "device": backend.name,
        "type": "unknown",
        "removable": backend.has_removable_medium,
        "locked": backend.locked,
    }
    if backend.device_id:
        info["qdev"] = backend.device_id
    if backend.has_tray:
        info["tray_open"] = backend.tray_open
    if backend.shows_io_status:
        info["io-status"] = backend.io_status
    if backend.node is not None:
        info["inserted"] = device_info(backend.shown_node, namer, backend=backend)
    return info


# ---- Statistics


def node_stats(node: Node, *, of_drive: bool) -> Info:
    """Return the BlockStats of a node and of what is below it; `of_drive` leaves filters out that nobody asked for."""
    if of_drive:
        node = skip_implicit(node)
    stats = BlockStats(account_invalid=False, account_failed=False).report()
    stats["wr_highest_offset"] = node.highest_offset
    info: Info = {"node-name": node.name, "stats": stats}
    specific = node.driver_stats()
    if specific is not None:
        info["driver-specific"] = {"driver": node.driver, **specific}
    parent = node.file
    while parent is not None and parent.hidden:
        parent = parent.file
    if parent is not None:
        info["parent"] = node_stats(parent, of_drive=of_drive)
    below = layer_below(node)
    if of_drive and below is not None:
        info["backing"] = node_stats(below, of_drive=True)
    return info


def drive_stats(backend: BlockBackend) -> Info:
    """Return the BlockStats of a drive."""
    info: Info = {}
    stats = backend.stats.report()
    stats["wr_highest_offset"] = 0
    if backend.node is not None:
        info = node_stats(backend.node, of_drive=True)
        stats["wr_highest_offset"] = info["stats"]["wr_highest_offset"]
    info.update({"device": backend.name, "stats": stats})
    if backend.device_id:
        info["qdev"] = backend.device_id
    return info
