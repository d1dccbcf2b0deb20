"""Reading and writing what is encrypted in another node, at any offset and length.

The whole sectors around a request are decrypted, or encrypted again.
"""

from __future__ import annotations

import errno
import os

from pyvm.annotations import TYPE_CHECKING, ClassVar
from pyvm.block.drivers.file import SECTOR
from pyvm.block.drivers.filter import FilterNode
from pyvm.block.node import Extent, Node
from pyvm.block.vectors import Buffers, Cursor, copy_in, total

if TYPE_CHECKING:
    from pyvm.block.sector_ciphers import SectorCipher

_MOST = 2 << 20
"""Bytes that are encrypted before they are written."""


class EncryptedData(FilterNode):
    """The data in `file` that is encrypted with `cipher`; part of the node that keeps it, and not in the graph.

    Without a cipher it is locked: nothing can be read or written, which fails with EPERM.
    Offsets are those in the file, and so are the numbers of sectors, less `base` bytes: where the data starts.
    Discarding and zeroing happen in the file: what is there afterwards is not what the cipher makes of zeros.
    """

    driver: ClassVar[str] = "encrypted-data"

    def __init__(self, file: Node, cipher: SectorCipher | None, *, base: int = 0) -> None:
        super().__init__(file)
        self._cipher = cipher
        self._base = base

    @property
    def stored_in(self) -> Node:
        """The node with the encrypted data."""
        return self._below

    @property
    def cipher(self) -> SectorCipher:
        """The cipher.  Raises OSError where there is none yet."""
        if self._cipher is None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self._cipher

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        self.read_as(offset, offset - self._base, buffers)

    def read_as(self, offset: int, number: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on; the sectors are numbered as if that was `number` of a disk, in bytes."""
        length = total(buffers)
        before = offset % SECTOR
        cipher = self.cipher
        if not before and not any(len(buffer) % SECTOR for buffer in buffers):
            self._below.readv(offset, buffers)
            for buffer in buffers:
                cipher.decrypt(number // SECTOR, buffer, buffer)
                number += len(buffer)
            return
        data = memoryview(bytearray(before + length + -(offset + length) % SECTOR))
        self._below.readv(offset - before, (data,))
        cipher.decrypt((number - before) // SECTOR, data, data)
        copy_in(buffers, data[before : before + length])

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        self.write_as(offset, offset - self._base, buffers)

    def write_as(self, offset: int, number: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on; the sectors are numbered as if that was `number` of a disk, in bytes."""
        cursor = Cursor(buffers)
        shift = number - offset
        end = offset + total(buffers)
        while offset < end:
            before = offset % SECTOR
            count = min(end - offset, _MOST - before)
            self._write_some(offset - before, shift, before, count, cursor)
            offset += count

    def _write_some(self, start: int, shift: int, before: int, count: int, cursor: Cursor) -> None:
        """Write the next `count` bytes, `before` bytes behind `start`, where a sector starts."""
        after = -(before + count) % SECTOR
        data = memoryview(bytearray(before + count + after))
        if before or (after and len(data) == SECTOR):
            self.read_as(start, start + shift, (data[:SECTOR],))
        if after and len(data) > SECTOR:
            last = start + len(data) - SECTOR
            self.read_as(last, last + shift, (data[-SECTOR:],))
        place = before
        for part in cursor.take(count):
            data[place : place + len(part)] = part
            place += len(part)
        self.cipher.encrypt((start + shift) // SECTOR, data, data)
        self._below.writev(start, (data,))

    def block_status(self, offset: int, length: int) -> Extent:
        """Return that there is data: what it is does not show in the file."""
        return Extent(length, True, False, True)
