"""Filling an empty image from outside: room in its file is given out, and goes into the tables once there is data."""

from __future__ import annotations

from array import array

from pyvm.annotations import TYPE_CHECKING
from pyvm.block.drivers.qcow2.structures import COPIED

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node


class Filler:
    """Puts clusters into an image that others write to its file.  One thread at a time uses it."""

    def __init__(self, image: Qcow2Node) -> None:
        self._disk = image.disk
        self._bits = image.header.cluster_bits

    @staticmethod
    def is_possible(image: Qcow2Node) -> bool:
        """Whether an image is empty, and its clusters are in its file as they are on the disk."""
        header = image.header
        unlike = header.external_data or header.extended_l2 or image.encrypted or image.backing is not None
        return not unlike and not image.dirty_bitmaps and not any(image.disk.mapping.l1)

    def reserve(self, start: int, length: int) -> tuple[int, int]:
        """Return where there is room for data, and for how much of `length`, in whole clusters.  Raises OSError.

        It begins at `start` on the disk, and the table of that is before it in the file.
        """
        disk = self._disk
        disk.changing_data()
        disk.make_room()
        disk.mapping.find_for_change(start >> self._bits, disk.refcounts)
        offset, clusters = disk.refcounts.allocate(length >> self._bits)
        return offset, clusters << self._bits

    def give_back(self, offset: int, length: int) -> None:
        """Room that was reserved is not needed.  Raises OSError."""
        self._disk.refcounts.undo(offset, length >> self._bits)

    def take(self, offset: int, host: int, length: int) -> None:
        """Let whole clusters of the disk, which have no data yet, be those at `host` in the file.  Raises OSError."""
        disk = self._disk
        size = 1 << self._bits
        while length:
            disk.make_room()
            place = disk.mapping.find_for_change(offset >> self._bits, disk.refcounts)
            count = min(length >> self._bits, place.clusters)
            part = count << self._bits
            entries = array("Q", range(host | COPIED, (host | COPIED) + part, size))
            place.entries[place.index : place.index + count] = entries
            disk.mapping.changed(place)
            offset, host, length = offset + part, host + part, length - part
