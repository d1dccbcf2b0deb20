"""Looking for damage, and repairing it: the refcounts have to say what the tables do.

A refcount that is too high leaks room; one that is too low lets data be overwritten.  Where a cluster that is used is
not counted at all, the whole refcount structure is made anew behind the end of the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.block.drivers.qcow2 import walk
from pyvm.block.drivers.qcow2.disk import Disk
from pyvm.block.drivers.qcow2.rebuild import plan_repair, write_structure
from pyvm.block.drivers.qcow2.refcounts import Refcounts
from pyvm.block.drivers.qcow2.references import CheckResult, References, Report
from pyvm.block.drivers.qcow2.structures import COMPRESSED, COPIED, OFFSET_MASK, Incompatible
from pyvm.block.drivers.qcow2.tally import Tally
from pyvm.block.errors import BlockError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.uint64]

__all__ = ["CheckResult", "Report", "check", "repair_dirty"]

ALL = frozenset({"leaks", "errors"})
_LEAST_EXTRA = 16
"""Extra data of a snapshot that version 3 demands."""


def _silent(text: str) -> None:
    """Take a line that nobody wants to read."""


def check(disk: Disk, repair: frozenset[str] | set[str] = frozenset(), report: Report | None = None) -> CheckResult:
    """Check an image; `repair` says what to put right: ``leaks``, ``errors``.

    `report` is given a line for each thing found.  Tables in memory must have been written; what is repaired changes
    behind their back.  Raises OSError where the file cannot be read or written, BlockError where tables are missing.
    """
    return _Check(disk, frozenset(repair), report or _silent).run()


def repair_dirty(disk: Disk) -> None:
    """Repair an image that was not closed cleanly.  Raises BlockError."""
    try:
        result = check(disk, ALL, disk.warn)
    except OSError as error:
        raise BlockError(f"Could not repair dirty image: {error.strerror or error}") from None
    if result.corruptions or result.check_errors:
        raise BlockError("Could not repair dirty image: Input/output error")
    header = disk.header
    disk.image.l1 = disk.image.read_table("L1 table", header.l1_table_offset, header.l1_size)
    disk.mapping.cache.clear()


class _Check:
    def __init__(self, disk: Disk, repair: frozenset[str], report: Report) -> None:
        self._disk = disk
        self._repair = repair
        self._report = report
        self._fix_errors = "errors" in repair
        self.result = CheckResult()
        self._highest = 0

    def run(self) -> CheckResult:
        disk, result, header = self._disk, self.result, self._disk.header
        if not hasattr(disk, "refcounts"):
            disk.refcounts = Refcounts(disk.image, disk.options.refcount_cache)
        else:
            disk.refcounts.reload()
        disk.read_directories()
        self._check_snapshots()
        result.total_clusters = disk.image.clusters(header.size)
        references = References(disk, result, self._report, fix=self._fix_errors)
        references.collect()
        self._compare_all(references)
        self._check_flags()
        result.image_end_offset = (self._highest + 1) << header.cluster_bits
        if self._repair and not result.check_errors and not result.corruptions:
            self._mark_good()
        return result

    def _mark_good(self) -> None:
        header = self._disk.header
        marks = int(Incompatible.DIRTY | Incompatible.CORRUPT)
        if header.version >= 3 and header.incompatible_features & marks:
            header.incompatible_features &= ~marks
            self._disk.image.commit_fields()

    def _check_snapshots(self) -> None:
        disk = self._disk
        if disk.header.version < 3:
            return
        short = [number for number, it in enumerate(disk.snapshots) if it.extra_size < _LEAST_EXTRA]
        for number in short:
            self._report(f"{'Repairing' if self._fix_errors else 'ERROR'} snapshot table entry {number} is incomplete")
        if not self._fix_errors:
            self.result.corruptions += len(short)
        elif short:
            # A new table in a new place: whether its refcounts are right is seen below.
            disk.put_snapshots(disk.snapshots)
            disk.refcounts.write_blocks()
            disk.refcounts.settle()
            disk.refcounts.write_blocks()
            self.result.corruptions_fixed += len(short)

    # ---- Refcounts

    def _compare_all(self, references: References) -> None:
        result = self.result
        numbers, counts = self._sum(references)
        before = CheckResult(**vars(result))
        rebuild = self._compare(numbers, counts, frozenset()) or references.rebuild
        if rebuild and self._fix_errors:
            self._report("Rebuilding refcount structure")
            found, leaked = result.corruptions, result.leaks
            self._rebuild(references)
            if "leaks" in self._repair:
                self._tell_of_old_structure(references)
            again = References(self._disk, result, _silent, fix=False)
            result.corruptions = result.leaks = 0
            stats = result.allocated_clusters, result.fragmented_clusters, result.compressed_clusters
            again.collect()
            result.allocated_clusters, result.fragmented_clusters, result.compressed_clusters = stats
            numbers, counts = self._sum(again)
            self._compare(numbers, counts, frozenset())
            result.corruptions_fixed += max(found - result.corruptions, 0)
            result.leaks_fixed += max(leaked - result.leaks, 0)
        elif self._repair and (result.leaks or result.corruptions):
            vars(result).update(vars(before))
            self._compare(numbers, counts, self._repair)
            self._disk.refcounts.write_blocks()
            self._disk.file.flush()

    def _sum(self, references: References) -> tuple[Numbers, Numbers]:
        """Return all clusters that are referred to, in order, and how often, as far as can be counted."""
        import numpy as np

        total = Tally()
        for part in (references.tally, references.structure):
            total.add(*part.totals())
        numbers, counts = total.totals()
        most = np.uint64(self._disk.refcounts.max_count)
        for cluster in numbers[counts > most].tolist():
            self.result.corruptions += 1
            references.report(
                f"ERROR: overflow cluster offset={cluster << self._disk.header.cluster_bits:#x}\n"
                "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if"
                " the image cannot be opened for writing"
            )
        return numbers, np.minimum(counts, most)

    def _rebuild(self, references: References) -> None:
        """Make a new refcount table and blocks where there is room, and let the header name them."""
        disk, header, image = self._disk, self._disk.header, self._disk.image
        import numpy as np

        numbers, counts = references.tally.totals()
        counts = np.minimum(counts, np.uint64(disk.refcounts.max_count))
        plan = plan_repair(header.cluster_bits, header.refcount_order, numbers, references.structure.totals()[0])
        offset, clusters = write_structure(image, numbers, counts, header.refcount_order, plan)
        header.refcount_table_offset, header.refcount_table_clusters = offset, clusters
        image.commit_fields()
        disk.refcounts.reload()

    def _tell_of_old_structure(self, references: References) -> None:
        """Say which clusters the old refcount table and its blocks do not take any more."""
        left = dict(zip(*(it.tolist() for it in references.tally.totals()), strict=True))
        for cluster, count in zip(*(it.tolist() for it in references.structure.totals()), strict=True):
            wanted = left.get(cluster, 0)
            self._report(f"Repairing cluster {cluster} refcount={wanted + count} reference={wanted}")

    def _compare(self, numbers: Numbers, counts: Numbers, repair: frozenset[str]) -> bool:
        """Compare refcounts with references; return whether a used cluster is not counted at all."""
        rebuild = False
        self._highest = 0
        for cluster, refcount, wanted in self._differences(numbers, counts):
            if not refcount:
                rebuild = True
            too_high = refcount > wanted
            fixed = refcount > 0 and ("leaks" if too_high else "errors") in repair
            word = "Repairing" if fixed else "Leaked" if too_high else "ERROR"
            self._report(f"{word} cluster {cluster} refcount={refcount} reference={wanted}")
            if fixed:
                self._disk.refcounts.set_count(cluster, wanted)
                if too_high:
                    self.result.leaks_fixed += 1
                    continue
                self.result.corruptions_fixed += 1
                continue
            if too_high:
                self.result.leaks += 1
            else:
                self.result.corruptions += 1
        return rebuild

    def _differences(self, numbers: Numbers, counts: Numbers) -> Iterator[tuple[int, int, int]]:
        """Yield clusters with their refcount and their number of references, where they differ."""
        import numpy as np

        refcounts = self._disk.refcounts
        end = self._disk.image.clusters(self._disk.file.length())
        if len(numbers):
            end = max(end, int(numbers[-1]) + 1)
            self._highest = int(numbers[-1])
        cluster = 0
        while cluster < end:
            stop, present = refcounts.part(cluster)
            stop = min(stop, end)
            # Of the same type: else all numbers would be converted each time.
            first, last = np.searchsorted(numbers, np.array((cluster, stop), np.uint64)).tolist()
            if present is None and first == last:
                cluster = stop
                continue
            wanted = np.zeros(stop - cluster, np.uint64)
            wanted[(numbers[first:last] - np.uint64(cluster)).astype(np.intp)] = counts[first:last]
            there = np.zeros(stop - cluster, np.uint64)
            if present is not None:
                there[:] = present[: stop - cluster]
                used = np.flatnonzero(there)
                if len(used):
                    self._highest = max(self._highest, cluster + int(used[-1]))
            for index in np.flatnonzero(there != wanted).tolist():
                yield cluster + index, int(there[index]), int(wanted[index])
            cluster = stop

    # ---- Flags

    def _check_flags(self) -> None:
        """Compare the "copied" flags of the active tables with the refcounts."""
        import numpy as np

        disk, image, header = self._disk, self._disk.image, self._disk.header
        fixed_l1 = False
        known: dict[int, int] = {}
        """How many flags of a table are wrong: a broken L1 table may name one many times."""
        for index, refcount in self._suspects():
            entry = image.l1[index]
            offset = entry & OFFSET_MASK
            if (refcount == 1) != bool(entry & COPIED):
                self._flag(f"L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}")
                image.l1[index] = entry ^ COPIED if self._fix_errors else entry
                fixed_l1 = fixed_l1 or self._fix_errors
            if offset in known:
                self.result.corruptions += known[offset]
            else:
                wrong = self._check_l2_flags(offset)
                known[offset] = 0 if self._fix_errors else wrong
        if fixed_l1:
            disk.file.write(header.l1_table_offset, walk.encode_table(np.frombuffer(image.l1, np.uint64)))
        if self._fix_errors:
            disk.file.flush()

    def _suspects(self) -> list[tuple[int, int]]:
        """Return which entries of the L1 table have a wrong flag or one in their table; and their tables' refcounts."""
        import numpy as np

        disk, header = self._disk, self._disk.header
        l1 = np.array(disk.image.l1, np.uint64)
        places = l1 & np.uint64(OFFSET_MASK)
        sound = (places != 0) & (places & np.uint64(header.cluster_size - 1) == 0)
        sound &= places.astype(np.int64) < disk.file.length()
        indexes = np.flatnonzero(sound)
        offsets, inverse = np.unique(places[indexes], return_inverse=True)
        counts = disk.refcounts.counts(offsets >> np.uint64(header.cluster_bits))
        damaged = np.zeros(len(offsets), bool)
        for run in walk.runs(offsets, header.cluster_size):
            damaged[run] = self._wrong_flags(walk.read_run(disk.image, offsets[run]))[0].any(axis=-1)
        counts = counts[inverse]
        wrong = damaged[inverse] | ((counts == 1) != (l1[indexes] & np.uint64(COPIED) != 0))
        return list(zip(indexes[wrong].tolist(), counts[wrong].tolist(), strict=True))

    def _wrong_flags(self, words: Numbers) -> tuple[npt.NDArray[np.bool_], Numbers]:
        """Return, of the entries of one table or of several in rows, which flags are wrong, and refcounts."""
        import numpy as np

        header = self._disk.header
        entries = walk.entries(words, header)
        plain = (entries & np.uint64(COMPRESSED) == 0) & (entries & np.uint64(OFFSET_MASK) != 0)
        plain &= entries & np.uint64(OFFSET_MASK & (header.cluster_size - 1)) == 0
        counts = np.zeros(entries.shape, np.uint64)
        if header.external_data:
            return np.zeros(entries.shape, bool), counts
        hosts = (entries[plain] & np.uint64(OFFSET_MASK)) >> np.uint64(header.cluster_bits)
        unique, inverse = np.unique(hosts, return_inverse=True)
        counts[plain] = self._disk.refcounts.counts(unique)[inverse]
        return plain & ((counts == 1) != (entries & np.uint64(COPIED) != 0)), counts

    def _check_l2_flags(self, offset: int) -> int:
        """Check a table, put it right if asked to; return how many flags were wrong."""
        import numpy as np

        header = self._disk.header
        words = np.frombuffer(self._disk.file.read(offset, header.cluster_size), ">u8").astype(np.uint64)
        entries = walk.entries(words, header)
        found, counts = self._wrong_flags(words)
        wrong = np.flatnonzero(found)
        for index in wrong.tolist():
            self._flag(f"data cluster: l2_entry={int(entries[index]):x} refcount={int(counts[index])}")
        if self._fix_errors and len(wrong):
            entries[wrong] ^= np.uint64(COPIED)
            self._disk.file.write(offset, walk.encode_table(words))
        return len(wrong)

    def _flag(self, text: str) -> None:
        self._report(f"{'Repairing' if self._fix_errors else 'ERROR'} OFLAG_COPIED {text}")
        if self._fix_errors:
            self.result.corruptions_fixed += 1
        else:
            self.result.corruptions += 1
