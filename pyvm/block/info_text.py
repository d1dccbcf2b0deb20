"""What there is to tell of an image, for people to read; :mod:`pyvm.block.info` has it for programs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyvm.sizes import human
from pyvm.wire_order import wire_order

Info = Mapping[str, Any]


def image_lines(info: Info) -> Iterator[str]:
    """Return an ImageInfo in lines."""
    size = info["virtual-size"]
    yield f"image: {info['filename']}"
    yield f"file format: {info['format']}"
    yield f"virtual size: {human(size)} ({size} bytes)"
    yield f"disk size: {human(info['actual-size']) if 'actual-size' in info else 'unavailable'}"
    if info.get("encrypted"):
        yield "encrypted: yes"
    if "cluster-size" in info:
        yield f"cluster_size: {info['cluster-size']}"
    if info.get("dirty-flag"):
        yield "cleanly shut down: no"
    if "backing-filename" in info:
        full = info["full-backing-filename"]
        actual = f" (actual path: {full})" if full != info["backing-filename"] else ""
        yield f"backing file: {info['backing-filename']}{actual}"
        if "backing-filename-format" in info:
            yield f"backing file format: {info['backing-filename-format']}"
    if "snapshots" in info:
        yield from snapshot_lines(info["snapshots"])
    if "format-specific" in info:
        yield "Format specific information:"
        yield from member_lines(info["format-specific"]["data"], 1)


def snapshot_lines(snapshots: Iterable[Info]) -> Iterator[str]:
    """Return SnapshotInfos as the lines of a table."""
    yield "Snapshot list:"
    yield f"{'ID':<9} {'TAG':<16} {'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"
    for it in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(it["date-sec"]))
        seconds = it["vm-clock-sec"]
        clock = (
            f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{it['vm-clock-nsec'] // 1000000:03d}"
        )
        columns = f"{human(it['vm-state-size']):>8}{date:>20}{clock:>13}{it.get('icount', ''):>11}"
        yield f"{it['id']:<9} {it['name']:<16} {columns}"


def member_lines(members: Info, depth: int) -> Iterator[str]:
    """Return the members of a structure, those of the structures in it further to the right."""
    for key in wire_order(members):
        yield from _member(key.replace("-", " "), members[key], depth)


def _member(name: str, value: Any, depth: int) -> Iterator[str]:
    indent = "    " * depth
    if isinstance(value, Mapping):
        yield f"{indent}{name}:"
        yield from member_lines(value, depth + 1)
    elif isinstance(value, list):
        yield f"{indent}{name}:"
        for index, item in enumerate(value):
            yield from _member(f"[{index}]", item, depth + 1)
    elif isinstance(value, bool):
        yield f"{indent}{name}: {'true' if value else 'false'}"
    else:
        yield f"{indent}{name}: {value}"
