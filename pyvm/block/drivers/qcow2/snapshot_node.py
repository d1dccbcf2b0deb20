"""The node of an internal snapshot, to read it while the disk goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyvm.block.drivers.file import SECTOR
from pyvm.block.errors import BlockError
from pyvm.block.node import Extent, Node
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.drivers.qcow2.driver import Qcow2Node
    from pyvm.block.drivers.qcow2.records import Snapshot


class SnapshotNode(Node):
    """An internal snapshot of an open image, read-only.  The image must stay open, and the snapshot must stay."""

    driver: ClassVar[str] = "qcow2"

    def __init__(self, image: Qcow2Node, snapshot: Snapshot) -> None:
        super().__init__(f"{image.name}@{snapshot.name}", read_only=True)
        disk = image.disk
        self._image = image
        l1 = disk.image.read_table("snapshot L1 table", snapshot.l1_table_offset, snapshot.l1_size)
        self._size = snapshot.disk_size if snapshot.disk_size is not None else image.header.size
        if disk.l1_entries(self._size) > len(l1):
            raise BlockError("Snapshot L1 table is too small")
        self._disk = disk
        self._reader = disk.view(l1)

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._size & -SECTOR

    @property
    def cluster_size(self) -> int:
        """The unit of allocation in bytes."""
        return self._disk.header.cluster_size

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may read it at the same time."""
        return self._image.takes_threads

    @property
    def backing(self) -> Node | None:
        """What shows where the snapshot has nothing."""
        return self._disk.backing

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        self._disk.image.check_usable()
        length = total(buffers)
        self.check_range(offset, length)
        self._reader.readv(offset, length, buffers)

    def read_vmstate(self, offset: int, buffers: Buffers) -> None:
        """Fill the buffers with the state of a VM that the snapshot keeps, which starts behind its disk."""
        disk = self._disk
        disk.image.check_usable()
        start = disk.l1_entries(self._size) * disk.mapping.table_span()
        self._reader.readv(start + offset, total(buffers), buffers)

    def block_status(self, offset: int, length: int) -> Extent:
        """Return the first run of bytes from `offset` on, at most `length`, as this layer alone has it."""
        length = min(length, self.size - offset)
        self.check_range(offset, length)
        return self._reader.status(offset, length)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Refuse: a snapshot does not change."""
        self.check_write(offset, total(buffers))

    def flush(self) -> None:
        """Do nothing: all is on stable storage."""

    def discard(self, offset: int, length: int) -> None:
        """Refuse: a snapshot does not change."""
        self.check_write(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Refuse: a snapshot does not change."""
        self.check_write(offset, length)
