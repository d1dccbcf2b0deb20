"""Who refers to which cluster of a file: what a check compares the refcounts with."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyvm.block.drivers.qcow2 import bitmaps, walk
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.structures import (
    ALL_SUBCLUSTERS,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    SUBCLUSTERS,
    ZERO,
)
from pyvm.block.drivers.qcow2.tally import Tally
from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.uint64]

Report = Callable[[str], None]

L1_RESERVED = 0x7F00_0000_0000_01FF
L2_RESERVED = 0x3F00_0000_0000_01FE


@dataclass
class CheckResult:
    """What a check found."""

    corruptions: int = 0
    leaks: int = 0
    check_errors: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0


class References:
    """Goes through all that refers to clusters.  `result` counts what is wrong; `fix` repairs entries on the way."""

    def __init__(self, disk: Disk, result: CheckResult, report: Report, *, fix: bool) -> None:
        self.tally = Tally()
        """All but the refcount table and its blocks."""
        self.structure = Tally()
        """The refcount table and its blocks."""
        self.rebuild = False
        """Whether refcounts have to be made anew."""
        self._disk = disk
        self._header = disk.header
        self._bits = disk.header.cluster_bits
        self._result = result
        self.report = report
        self._fix = fix
        self._length = disk.file.length()

    def collect(self) -> None:
        """Go through everything.  Raises OSError where the file cannot be read or repaired."""
        header, disk = self._header, self._disk
        self._range(0, header.cluster_size)
        self._range(header.l1_table_offset, header.l1_size * 8)
        tables = [self._l1(disk.image.l1)]
        for snapshot in disk.snapshots:
            self._range(snapshot.l1_table_offset, snapshot.l1_size * 8)
            tables.append(self._l1(self._read_l1(snapshot.l1_table_offset, snapshot.l1_size)))
        self._all_l2(tables)
        if disk.snapshots_bytes:
            self._range(header.snapshots_offset, disk.snapshots_bytes)
        if header.crypto is not None:
            self._range(*header.crypto)
        for offset, length in bitmaps.regions(disk):
            self._range(offset, length)
        self._structure()

    def _read_l1(self, offset: int, size: int) -> array[int]:
        if offset + size * 8 > self._length:
            return array("Q")
        return self._disk.image.read_table("snapshot L1 table", offset, size)

    def _bad(self, text: str) -> None:
        self._result.corruptions += 1
        self.report(text)

    def _range(self, offset: int, length: int, times: int = 1, tally: Tally | None = None) -> None:
        if not length:
            return
        if offset + length - self._length >= self._header.cluster_size:
            self._beyond(offset, length)
            return
        first, last = offset >> self._bits, (offset + length - 1) >> self._bits
        (tally or self.tally).add_range(first, last - first + 1, times)

    def _beyond(self, offset: int, length: int) -> None:
        self._bad(
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset"
            f" {offset:#x} size {length:#x}"
        )

    # ---- L1 and L2 tables

    def _l1(self, l1: array[int]) -> tuple[Numbers, Numbers]:
        """Count the L2 tables of an L1 table; return where they are, in order, and how often each is named."""
        import numpy as np

        size = self._header.cluster_size
        entries = np.frombuffer(l1, np.uint64)
        for entry in entries[entries & np.uint64(L1_RESERVED) != 0].tolist():
            self._bad(f"ERROR found L1 entry with reserved bits set: {entry:x}")
        offsets, counts = np.unique(entries & np.uint64(OFFSET_MASK), return_counts=True)
        offsets, counts = offsets[offsets != 0], counts[offsets != 0].astype(np.uint64)
        sound = (offsets & np.uint64(size - 1) == 0) & (offsets < np.uint64(self._length))
        self.tally.add(offsets[sound] >> np.uint64(self._bits), counts[sound])
        for offset, count in zip(offsets[~sound].tolist(), counts[~sound].tolist(), strict=True):
            for _ in range(count if offset >= self._length else 1):
                self._range(offset, size, count)
            if offset & (size - 1):
                self._bad(f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted")
        return offsets, counts

    def _all_l2(self, tables: list[tuple[Numbers, Numbers]]) -> None:
        """Go through the L2 tables that L1 tables name, the active one first: each once, and neighbours together."""
        import numpy as np

        size = self._header.cluster_size
        named = np.concatenate([offsets for offsets, _ in tables])
        offsets, inverse = np.unique(named, return_inverse=True)
        times = np.zeros(len(offsets), np.uint64)
        np.add.at(times, inverse, np.concatenate([counts for _, counts in tables]))
        active = np.zeros(len(offsets), np.uint64)
        active[np.searchsorted(offsets, tables[0][0])] = tables[0][1]
        whole = (offsets & np.uint64(size - 1) == 0) & (offsets.astype(np.int64) <= self._length - size)
        apart = (times[1:] != times[:-1]) | (active[1:] != active[:-1]) | ~whole[1:] | ~whole[:-1]
        for run in walk.runs(offsets, size, apart):
            odd = offsets[run]
            if whole[run.start]:
                odd = odd[~self._sound_l2(odd, int(times[run.start]), int(active[run.start]))]
            for offset in odd.tolist():
                self._l2(offset, int(times[run.start]), int(active[run.start]))

    def _sound_l2(self, offsets: Numbers, times: int, active: int) -> npt.NDArray[np.bool_]:
        """Count what tables refer to that follow one another; return which were counted.

        The others have compressed clusters, subclusters or damage: they are for :meth:`_l2`.
        """
        import numpy as np

        header = self._header
        if header.extended_l2:
            return np.zeros(len(offsets), bool)
        words = walk.read_run(self._disk.image, offsets)
        hosts = words & np.uint64(OFFSET_MASK)
        odd = words & np.uint64(COMPRESSED | L2_RESERVED | (OFFSET_MASK & (header.cluster_size - 1))) != 0
        if not header.external_data:
            odd |= hosts >= np.uint64(self._length)
        sound: npt.NDArray[np.bool_] = ~odd.any(axis=1)
        rows, columns = np.nonzero(self._named(words) & sound[:, None])
        self._plain(hosts[rows, columns], times, active, rows)
        return sound

    def _named(self, entries: Numbers) -> npt.NDArray[np.bool_]:
        """Return which entries refer to a cluster, compressed ones aside."""
        import numpy as np

        named: npt.NDArray[np.bool_] = (entries & np.uint64(OFFSET_MASK)) != 0
        if self._header.external_data:
            # There, the first cluster may be in use.
            named |= (entries & np.uint64(COPIED)) != 0
        return named

    def _l2(self, offset: int, times: int, active: int) -> None:
        """Count what the table at `offset` refers to, which itself is referred to `times` times."""
        import numpy as np

        size = self._header.cluster_size
        if offset >= self._length:
            return
        words = np.frombuffer(self._disk.file.read(offset, size), ">u8").astype(np.uint64)
        entries = walk.entries(words, self._header)
        bitmaps_of = words[1::2] if self._header.extended_l2 else None
        packed = (entries & np.uint64(COMPRESSED)) != 0
        before = self._result.corruptions
        if packed.any():
            self._packed(entries, packed, bitmaps_of, times, active)
        bad = self._check_bits(entries, packed, bitmaps_of, offset)
        hosts = entries[self._named(entries) & ~packed & ~bad] & np.uint64(OFFSET_MASK)
        self._plain(hosts, times, active, np.zeros(len(hosts), np.intp))
        # Whoever else has this table sees the same damage.
        self._result.corruptions += (self._result.corruptions - before) * (times - 1)

    def _packed(
        self, entries: Numbers, packed: npt.NDArray[np.bool_], subclusters: Numbers | None, times: int, active: int
    ) -> None:
        import numpy as np

        chosen = entries[packed]
        for entry in chosen[chosen & np.uint64(COPIED) != 0].tolist():
            place = self._disk.compressed.place(entry & ~COPIED)[0]
            self._bad(f"ERROR: coffset={place:#x}: copied flag must never be set for compressed clusters")
        if self._header.external_data:
            for index in np.flatnonzero(packed).tolist():
                self._bad(f"ERROR compressed cluster {index} with data file, entry={int(entries[index]):#x}")
            return
        if subclusters is not None:
            for index in np.flatnonzero(packed & (subclusters != 0)).tolist():
                self._bad(
                    f"ERROR compressed cluster {index} with non-zero subcluster allocation bitmap,"
                    f" entry={int(entries[index]):#x}"
                )
        starts, ends = walk.compressed_places(chosen, self._header)
        beyond = ends.astype(np.int64) - self._length >= self._header.cluster_size
        for start, end in zip(starts[beyond].tolist(), ends[beyond].tolist(), strict=True):
            self._beyond(start, end - start)
        for clusters in walk.compressed_clusters(chosen[~beyond], self._header):
            self.tally.add(clusters, times)
        for name in ("allocated_clusters", "compressed_clusters", "fragmented_clusters"):
            setattr(self._result, name, getattr(self._result, name) + len(chosen) * active)

    def _check_bits(
        self, entries: Numbers, packed: npt.NDArray[np.bool_], subclusters: Numbers | None, table: int
    ) -> npt.NDArray[np.bool_]:
        """Report entries that cannot be; return which of them refer to nothing."""
        import numpy as np

        cluster = self._header.cluster_size
        for entry in entries[~packed & (entries & np.uint64(L2_RESERVED) != 0)].tolist():
            self._bad(f"ERROR found l2 entry with reserved bits set: {entry:x}")
        hosts = entries & np.uint64(OFFSET_MASK)
        bad = np.zeros(len(entries), bool)
        if subclusters is not None:
            both = (subclusters >> np.uint64(SUBCLUSTERS)) & subclusters & np.uint64(ALL_SUBCLUSTERS)
            for index in np.flatnonzero(~packed & (hosts != 0) & (both != 0)).tolist():
                bad[index] = True
                text = f"offset={int(hosts[index]):x}: Allocated cluster has corrupted subcluster allocation bitmap"
                self._broken_entry(text, table, index)
            lost = ~packed & (hosts == 0) & (subclusters & np.uint64(ALL_SUBCLUSTERS) != 0)
            if not self._header.external_data:
                for index in np.flatnonzero(lost).tolist():
                    self._broken_entry("Unallocated cluster has non-zero subcluster allocation map", table, index)
        unaligned = ~packed & ~bad & (hosts & np.uint64(cluster - 1) != 0)
        for index in np.flatnonzero(unaligned).tolist():
            host = int(hosts[index])
            has_data = not int(entries[index]) & ZERO
            if subclusters is not None:
                has_data = bool(int(subclusters[index]) & ALL_SUBCLUSTERS)
            if has_data:
                self._bad(f"ERROR offset={host:x}: Data cluster is not properly aligned; L2 entry corrupted.")
            else:
                text = f"offset={host:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
                self._broken_entry(text, table, index)
        return bad

    def _broken_entry(self, text: str, table: int, index: int) -> None:
        """Report an entry that can be repaired: the cluster reads as zeros then."""
        if not self._fix:
            self._bad(f"ERROR {text}")
            return
        self.report(f"Repairing {text}")
        zero = bytes(8) + b"\xff\xff\xff\xff\0\0\0\0" if self._header.extended_l2 else ZERO.to_bytes(8, "big")
        self._disk.file.write(table + index * len(zero), zero)
        self._result.corruptions_fixed += 1

    def _plain(self, hosts: Numbers, times: int, active: int, tables: npt.NDArray[np.intp]) -> None:
        """Count clusters; `tables` says of each which table names it: none goes on where the one before ended."""
        import numpy as np

        cluster = np.uint64(self._header.cluster_size)
        if active:
            apart = int(np.count_nonzero((hosts[1:] != hosts[:-1] + cluster) & (tables[1:] == tables[:-1])))
            self._result.allocated_clusters += len(hosts) * active
            self._result.fragmented_clusters += apart * active
        if self._header.external_data:
            return
        beyond = hosts.astype(np.int64) >= self._length
        for host in hosts[beyond].tolist():
            self._beyond(host, self._header.cluster_size)
        self.tally.add(hosts[~beyond] >> np.uint64(self._bits), times)
        unaligned = ~beyond & (hosts & (cluster - np.uint64(1)) != 0)
        if unaligned.any():
            self.tally.add((hosts[unaligned] >> np.uint64(self._bits)) + np.uint64(1), times)

    # ---- Refcounts

    def _structure(self) -> None:
        header = self._header
        self._range(
            header.refcount_table_offset,
            header.refcount_table_clusters * header.cluster_size,
            tally=self.structure,
        )
        seen: Counter[int] = Counter()
        """How often refcount blocks are named."""
        for index, entry in enumerate(self._disk.refcounts.table):
            offset = entry & ~511
            if entry & 511:
                self._bad(f"ERROR refcount table entry {index} has reserved bits set")
                self.rebuild = True
            if not offset:
                continue
            if offset & (header.cluster_size - 1):
                self._bad(f"ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted")
                self.rebuild = True
            elif offset >= self._length and not self._lengthen(index, offset):
                self.rebuild = True
            else:
                seen[offset] += 1
                if seen[offset] > 1:
                    self._bad(f"ERROR refcount block {index} refcount={seen[offset]}")
                    self.rebuild = True
                self.structure.add_range(offset >> self._bits, 1)

    def _lengthen(self, index: int, offset: int) -> bool:
        """Report a refcount block behind the end of the file; return whether the file has it now, with zeros."""
        if not self._fix:
            self._bad(f"ERROR refcount block {index} is outside image")
            return False
        self.report(f"Repairing refcount block {index} is outside image")
        size = self._header.cluster_size
        end = offset + size
        per_block = size * 8 >> self._header.refcount_order
        # Where no block of this table counts it, it cannot be.
        if end > len(self._disk.refcounts.table) * per_block * size:
            self._bad("ERROR could not resize image: Invalid argument")
            return False
        try:
            self._disk.file.truncate(end)
        except (OSError, BlockError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._bad(f"ERROR could not resize image: {reason}")
            return False
        self._length = self._disk.file.length()
        self._result.corruptions_fixed += 1
        return True
