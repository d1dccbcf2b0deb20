"""Format driver *luks*: a LUKS volume (version 1) in another node."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pyvm.block.drivers.encrypted import EncryptedData
from pyvm.block.errors import BlockError
from pyvm.block.luks import Area, Volume, find_passphrase
from pyvm.block.node import Child, Extent, Node, Preallocation, Role
from pyvm.block.sector_ciphers import SECTOR
from pyvm.block.vectors import Buffers, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings
    from pyvm.secrets import Secrets

_MOST_ZEROS = 1 << 20


class LuksNode(Node):
    """A LUKS volume in `file`, which it closes in the end.

    Without `passphrase` it can be looked at, but its data neither read nor written.  Raises BlockError, and OSError.
    """

    driver: ClassVar[str] = "luks"

    def __init__(
        self,
        file: Node,
        passphrase: bytes | None,
        *,
        name: str = "",
        read_only: bool | None = None,
        unmap: bool | None = None,
    ) -> None:
        super().__init__(
            name,
            read_only=file.read_only if read_only is None else read_only,
            unmap=file.unmap if unmap is None else unmap,
        )
        self._file = file
        self.volume = Volume(Area(file))
        """The volume itself."""
        self._start = self.volume.payload_offset
        if file.length() < self._start:
            raise BlockError("LUKS payload is behind the end of the file")
        cipher = None if passphrase is None else self.volume.unlock(passphrase)
        self._data = EncryptedData(file, cipher, base=self._start)
        self._size = self._whole_size()
        self.children.append(Child(Role.STORAGE, file))

    def _whole_size(self) -> int:
        return (self._file.length() - self._start) // SECTOR * SECTOR

    def replace_child(self, old: Node, new: Node) -> None:
        """Put `new` in the place of the child `old`."""
        super().replace_child(old, new)
        if self._file is old:
            self._file = new
            self.volume.area.node = new
            self._data.replace_child(old, new)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    @property
    def encrypted(self) -> bool:
        """Whether the data is encrypted in what it is stored in."""
        return True

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on."""
        self.check_range(offset, total(buffers))
        self._data.readv(self._start + offset, buffers)

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on."""
        self.check_write(offset, total(buffers))
        self._data.writev(self._start + offset, buffers)

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        self._file.flush()

    def discard(self, offset: int, length: int) -> None:
        """Do nothing: what is given back would not read as zeros, and show where there is no data."""
        self.check_write(offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros, encrypted."""
        del unmap
        self.check_write(offset, length)
        zeros = memoryview(bytes(min(length, _MOST_ZEROS)))
        end = offset + length
        while offset < end:
            count = min(len(zeros), end - offset)
            self._data.writev(self._start + offset, (zeros[:count],))
            offset += count

    def block_status(self, offset: int, length: int) -> Extent:
        """Return that there is data everywhere: what it is does not show in the file."""
        return Extent(min(length, self._size - offset), True, False, True)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Change the length of the file; new room reads as anything.  Raises OSError, or BlockError."""
        self._file.truncate(self._start + size, preallocation=preallocation, exact=exact)
        self._size = self._whole_size()

    def format_info(self) -> dict[str, Any]:
        """Return the `format-specific` of query-block."""
        return {"type": "luks", "data": self.volume.info()}

    def amend(self, options: Mapping[str, Any], secrets: Secrets, *, force: bool = False) -> None:
        """Change key slots; values as for creation.  Raises OSError, or BlockError."""
        from pyvm.block.create import normalise_amendment

        given = dict(options)
        unlocking = given.pop("secret", None)
        found = normalise_amendment("luks", given)
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.volume.amend(found, secrets, force=force, unlocking=unlocking)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> LuksNode:
    """Make the node; see :mod:`pyvm.block.options`.  The passphrase is a secret of the graph."""
    passphrase = None
    if not settings.no_io:
        passphrase = find_passphrase(graph.secrets, own.get("key-secret"))
    return LuksNode(
        children["file"], passphrase, name=settings.name, read_only=settings.read_only, unmap=settings.unmap
    )
