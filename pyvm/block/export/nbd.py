"""NBD exports: what clients are told of a node, and which requests they may make.

Specification: "The NBD protocol", chapters "Transmission flags" and "Metadata querying"; QEMU's contexts
``qemu:allocation-depth`` and ``qemu:dirty-bitmap:NAME`` are described in its document "QEMU NBD protocol support".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pyvm.block import bitmaps as dirty_bitmaps
from pyvm.block.bitmap_actions import find_bitmap
from pyvm.block.bitmap_checks import check_usable
from pyvm.block.drivers.nbd_protocol import BASE_ALLOCATION, MAX_STRING, TransmissionFlag
from pyvm.block.errors import BlockError
from pyvm.block.export.exports import Export, ExportOptions, Exports
from pyvm.block.status import backing_of
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.bitmaps import DirtyBitmap
    from pyvm.block.node import Node

SECTOR = 512
ALLOCATION_DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"
BASE_ID, DEPTH_ID, FIRST_BITMAP_ID = range(3)
"""The numbers under which contexts are reported."""

BitmapName = str | tuple[str, str]
"""A bitmap of the exported node or one below it, or a node's name and the bitmap's."""


@record(frozen=True)
class NbdOptions:
    """What an NBD export is told beyond what all are."""

    name: str
    description: str | None = None
    bitmaps: Sequence[BitmapName] = ()
    allocation_depth: bool = False


class NbdExport(Export):
    """A node that the NBD server exports.  Raises BlockError."""

    kind: ClassVar[str] = "nbd"

    def __init__(self, exports: Exports, options: ExportOptions, nbd: NbdOptions) -> None:
        super().__init__(exports, options)
        self.bitmaps: list[DirtyBitmap] = []
        try:
            self._set_up(nbd)
        except BaseException:
            self._drop(self.backend)
            raise

    def _set_up(self, nbd: NbdOptions) -> None:
        server, node = self.exports.server, self.node
        assert node is not None
        if server is None:
            raise BlockError("NBD server not running")
        self.name = nbd.name.encode("utf-8", "surrogateescape")
        self.description = None if nbd.description is None else nbd.description.encode("utf-8", "surrogateescape")
        if len(self.name) > MAX_STRING:
            raise BlockError(f"export name '{nbd.name}' too long")
        if self.description is not None and len(self.description) > MAX_STRING:
            raise BlockError(f"description '{nbd.description}' too long")
        if server.find(self.name) is not None:
            raise BlockError(f"NBD server already has export named '{nbd.name}'")
        self.backend.keep_size()
        self.size = node.size // SECTOR * SECTOR
        self.flags = _flags(self.writable, server.max_connections != 1)
        self.allocation_depth = nbd.allocation_depth
        found = [self._find_bitmap(node, wanted) for wanted in nbd.bitmaps]
        for bitmap in found:
            bitmap.busy = True
        self.bitmaps = found
        self.min_block = min_block(node)
        server.exports.append(self)

    def _find_bitmap(self, node: Node, wanted: BitmapName) -> DirtyBitmap:
        if isinstance(wanted, tuple):
            _, bitmap = find_bitmap(self.exports.storage, *wanted)
            check_usable(bitmap)
            return bitmap
        layer: Node | None = node
        found = None
        while layer is not None:
            found = dirty_bitmaps.find(layer, wanted)
            if found is not None:
                break
            layer = layer.file if layer.is_filter else backing_of(layer)
        if found is None or layer is None:
            raise BlockError(f"Bitmap '{wanted}' is not found")
        check_usable(found)
        if not self.writable and self._is_writable(layer) and found.enabled:
            raise BlockError(f"Enabled bitmap '{wanted}' incompatible with readonly export")
        return found

    def _is_writable(self, layer: Node) -> bool:
        return not layer.read_only

    @property
    def contexts(self) -> list[tuple[int, bytes]]:
        """The block status that clients can ask for: numbers and names."""
        found = [(BASE_ID, BASE_ALLOCATION.encode())]
        if self.allocation_depth:
            found.append((DEPTH_ID, ALLOCATION_DEPTH.encode()))
        for number, bitmap in enumerate(self.bitmaps, FIRST_BITMAP_ID):
            found.append((number, (DIRTY_BITMAP + bitmap.name).encode("utf-8", "surrogateescape")))
        return found

    def hide(self) -> None:
        """Let no new client find the export."""
        server = self.exports.server
        if server is not None and self in server.exports:
            server.exports.remove(self)

    def clean(self) -> None:
        """Let others use the bitmaps again."""
        for bitmap in self.bitmaps:
            bitmap.busy = False
        self.bitmaps = []


def _flags(writable: bool, several: bool) -> TransmissionFlag:
    flag = TransmissionFlag
    flags = flag.HAS_FLAGS | flag.SEND_FLUSH | flag.SEND_FUA | flag.SEND_CACHE
    if several:
        flags |= flag.CAN_MULTI_CONN
    if not writable:
        return flags | flag.READ_ONLY
    return flags | flag.SEND_TRIM | flag.SEND_WRITE_ZEROES | flag.SEND_FAST_ZERO


def min_block(node: Node) -> int:
    """Return what offsets and lengths of requests had better be multiples of.

    More than 1 where nothing is cached, or where the first sector is looked at as the format was only guessed.
    """
    while True:
        if (node.direct and not node.children) or getattr(node, "probed", False):
            return SECTOR
        if node.driver != "raw" and not node.is_filter:
            return 1
        below = node.file
        if below is None:
            return 1
        node = below
