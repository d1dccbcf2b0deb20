"""Internal snapshots as they are shown."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyvm.tools.img.sizes import human

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.records import Snapshot

_NS = 1_000_000_000


def describe_snapshots(snapshots: Iterable[Snapshot]) -> list[dict[str, Any]]:
    """Return the SnapshotInfo of each snapshot, as QMP has it."""
    return [_describe(snapshot) for snapshot in snapshots]


def _describe(snapshot: Snapshot) -> dict[str, Any]:
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


def print_snapshots(snapshots: Sequence[Mapping[str, Any]]) -> None:
    """Print snapshots as a table."""
    print("Snapshot list:")
    print(f"{'ID':<9} {'TAG':<16} {'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}")
    for it in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(it["date-sec"]))
        seconds = it["vm-clock-sec"]
        clock = (
            f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{it['vm-clock-nsec'] // 1000000:03d}"
        )
        columns = f"{human(it['vm-state-size']):>8}{date:>20}{clock:>13}{it.get('icount', ''):>11}"
        print(f"{it['id']:<9} {it['name']:<16} {columns}")
