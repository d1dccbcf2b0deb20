"""Protocol driver *nbd*: an export of a Network Block Device server.

A request that finds the connection broken fails with EIO, unless `reconnect-delay` lets it wait until the server is
back; then it is made again.  What the server had acknowledged but not flushed before it went away is its own business.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pyvm.block.drivers.nbd_connection import Connection, Flight
from pyvm.block.drivers.nbd_handshake import Wrap
from pyvm.block.drivers.nbd_options import find_address, make_filename, parse_filename
from pyvm.block.drivers.nbd_protocol import BASE_ALLOCATION, STATE_HOLE, STATE_ZERO, TransmissionFlag
from pyvm.block.drivers.nbd_reconnect import Reconnector, connect, connect_within
from pyvm.block.drivers.nbd_stream import ConnectionLost, ServerAddress
from pyvm.block.errors import BlockError
from pyvm.block.node import Extent, Node, Pending, Preallocation
from pyvm.block.vectors import Buffers, Cursor, behind, copy_in, fill_zero, is_zero, total

if TYPE_CHECKING:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

SECTOR = 512
REQUEST_TIMEOUT = 120.0
"""How long a server may be silent before its connection counts as broken, in seconds."""
_MAX_RANGE = 1 << 30
"""Longest range of a request without data."""
_ZERO_CHUNK = 1 << 20

__all__ = ["NbdNode", "make", "parse_filename"]

_F = TypeVar("_F", bound=Flight)


class _Request(Generic[_F]):
    """A request on its way to the server: made again while the connection breaks and may be waited for."""

    def __init__(self, node: NbdNode, begin: Callable[[Connection], _F]) -> None:
        """Send it; raises OSError."""
        self._node = node
        self._begin = begin
        self._send()

    def _send(self) -> None:
        while True:
            self._connection = self._node.connected()
            try:
                self._flight = self._begin(self._connection)
            except ConnectionLost:
                if not self._node.lost(self._connection):
                    raise
            else:
                return

    def wait(self) -> _F:
        """Return what came of it once it is done.  Raises OSError."""
        while True:
            try:
                self._flight.wait()
            except ConnectionLost:
                if not self._node.lost(self._connection):
                    raise
                self._send()
            else:
                return self._flight


class NbdNode(Node):
    """An export.  Its length is shown in whole sectors, the last one filled up with zeros.

    `reconnect_delay`: for how many seconds requests wait for a server that is gone; `open_timeout`: for how many
    seconds the first connection is tried; `context`: the block status to ask for; `timeout`: for how many seconds
    the server may be silent; `wrap`: what encrypts connections.  Raises BlockError.
    """

    driver: ClassVar[str] = "nbd"
    unallocated_is_zero: ClassVar[bool] = False

    def __init__(
        self,
        address: ServerAddress,
        export: str = "",
        *,
        name: str = "",
        read_only: bool = False,
        auto_read_only: bool = False,
        unmap: bool = False,
        reconnect_delay: int = 0,
        open_timeout: int = 0,
        context: str = BASE_ALLOCATION,
        timeout: float = REQUEST_TIMEOUT,
        wrap: Wrap | None = None,
    ) -> None:
        super().__init__(name, read_only=read_only, unmap=unmap)
        self.auto_read_only = auto_read_only
        self.identity = ("nbd", address, export)
        self._address = address
        self._export = export
        self._context = context
        self._timeout = timeout
        self._wrap = wrap
        self._reconnect_delay = reconnect_delay
        self._give_up = 0.0
        self._lock = threading.Lock()
        """Guards the connection, which several threads may use, and find lost."""
        self._reconnector: Reconnector | None = None
        self._connection: Connection | None = connect_within(
            lambda limit: connect(address, export, context, timeout, limit, wrap), open_timeout
        )
        info = self._info = self._connection.info
        if info.read_only and not read_only:
            if not auto_read_only:
                self._connection.close()
                raise BlockError(
                    f"Could not open '{self.filename}': Permission denied: the server's export is read-only"
                )
            self.read_only = True

    @property
    def filename(self) -> str:
        """The name that opens the export."""
        return make_filename(self._address, self._export)

    @property
    def size(self) -> int:
        """Length in bytes, whole sectors."""
        return -(-self._info.size // SECTOR) * SECTOR

    def length(self) -> int:
        """Return the length of the export, to the byte."""
        return self._info.size

    def allocated_bytes(self) -> int | None:
        """Return None: a server does not say."""
        return None

    def close(self) -> None:
        """End the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if self._reconnector is not None:
            self._reconnector.close()
            self._reconnector = None

    def cancel_in_flight(self) -> None:
        """Let requests fail that wait for the server to come back.  From any thread."""
        self._give_up = 0.0
        reconnector = self._reconnector
        if reconnector is not None:
            reconnector.hurry()

    # ---- The connection

    def _call(self, begin: Callable[[Connection], _F]) -> _F:
        """Make a request, and wait until it is done.  Raises OSError."""
        return _Request(self, begin).wait()

    def connected(self) -> Connection:
        """Return a connection; wait for one as long as the options say.  Raises OSError."""
        with self._lock:
            if self._connection is None:
                wait = self._give_up - time.monotonic()
                self._connection = self._reconnector.wait(wait) if self._reconnector is not None else None
                if self._connection is None:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._reconnector = None
                self._info = self._connection.info
            return self._connection

    def lost(self, connection: Connection) -> bool:
        """A connection is broken; return whether requests are to wait for another one."""
        connection.close(polite=False)
        with self._lock:
            if self._connection is connection:
                self._connection = None
                self._give_up = time.monotonic() + self._reconnect_delay
                self._reconnector = Reconnector(self._reconnect)
        return self._reconnect_delay > 0

    def _reconnect(self) -> Connection:
        """Connect again; what is there must be what was there.  Raises BlockError."""
        connection = connect(self._address, self._export, self._context, self._timeout, wrap=self._wrap)
        info, before = connection.info, self._info
        if info.size != before.size or (info.read_only and not self.read_only):
            connection.close()
            raise BlockError(f"the export at '{self._address.text}' is not what it was")
        return connection

    @property
    def takes_threads(self) -> bool:
        """Whether several threads may use it at the same time: the server has their requests at once."""
        return True

    @property
    def takes_several(self) -> bool:
        """Whether requests can be begun: the server carries them out."""
        return True

    # ---- Reading and writing

    def start_readv(self, offset: int, buffers: Buffers) -> Pending | None:
        """Begin to fill all buffers from `offset` on, where that is one request.  Raises OSError."""
        if not self._is_one_request(offset, total(buffers)):
            return None
        return _Request(self, lambda connection: connection.read(offset, buffers))

    def start_writev(self, offset: int, buffers: Buffers) -> Pending | None:
        """Begin to write all buffers from `offset` on, where that is one request.  Raises OSError."""
        length = total(buffers)
        if self.read_only or self.dirty_bitmaps or not self._is_one_request(offset, length):
            return None
        return _Request(self, lambda connection: connection.write(offset, buffers))

    def _is_one_request(self, offset: int, length: int) -> bool:
        info = self._info
        inside = offset >= 0 and 0 < length <= info.size - offset
        one = offset % info.max_block + length <= info.max_block
        return inside and one and self._align(offset, length) == (0, length)

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError."""
        length = total(buffers)
        self.check_range(offset, length)
        there = max(0, min(length, self._info.size - offset))
        if there < length:
            fill_zero(behind(buffers, there))
            buffers = Cursor(buffers).take(there)
        for start, part in self._split(offset, buffers, there):
            self._read(start, part)

    def _read(self, offset: int, buffers: Buffers) -> None:
        length = total(buffers)
        before, aligned = self._align(offset, length)
        if aligned == length:
            self._call(lambda connection: connection.read(offset, buffers))
            return
        bounce = memoryview(bytearray(aligned))
        self._call(lambda connection: connection.read(offset - before, [bounce]))
        copy_in(buffers, bounce[before : before + length])

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on.  Raises OSError."""
        self._write_all(offset, buffers, fua=False)

    def write_durable(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers; they are on stable storage on return.  Raises OSError."""
        fua = TransmissionFlag.SEND_FUA in self._info.flags
        self._write_all(offset, buffers, fua=fua)
        if not fua:
            self.flush()

    def _write_all(self, offset: int, buffers: Buffers, *, fua: bool) -> None:
        length = total(buffers)
        self.check_write(offset, length)
        there = max(0, min(length, self._info.size - offset))
        if there < length:
            # The export ends inside of its last sector, where there is nothing but zeros.
            if not is_zero(behind(buffers, there)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            buffers = Cursor(buffers).take(there)
        for start, part in self._split(offset, buffers, there):
            self._write(start, part, fua)

    def _write(self, offset: int, buffers: Buffers, fua: bool) -> None:
        length = total(buffers)
        before, aligned = self._align(offset, length)
        if aligned == length:
            self._call(lambda connection: connection.write(offset, buffers, fua))
            return
        bounce = memoryview(bytearray(aligned))
        self._call(lambda connection: connection.read(offset - before, [bounce]))
        position = before
        for buffer in buffers:
            bounce[position : position + len(buffer)] = buffer
            position += len(buffer)
        self._call(lambda connection: connection.write(offset - before, [bounce], fua))

    def _split(self, offset: int, buffers: Buffers, length: int) -> Iterator[tuple[int, Buffers]]:
        """Yield the parts of a request that the server takes, each with where it starts."""
        limit = self._info.max_block
        if offset % limit + length <= limit:
            if length:
                yield offset, buffers
            return
        cursor = Cursor(buffers)
        while length:
            count = min(length, limit - offset % limit)
            yield offset, cursor.take(count)
            offset += count
            length -= count

    def _align(self, offset: int, length: int) -> tuple[int, int]:
        """Return how much before `offset` a request must start, and how long it must be."""
        unit = self._info.min_block
        before = offset % unit
        return before, -(-(before + length) // unit) * unit

    def flush(self) -> None:
        """Return when everything written is on stable storage.  Raises OSError."""
        if not self.no_flush and TransmissionFlag.SEND_FLUSH in self._info.flags:
            self._call(lambda connection: connection.flush())

    # ---- Discarding and zeros

    def discard(self, offset: int, length: int) -> None:
        """Say that the range is of no more use, where that was asked for and the server wants to know."""
        if not self.unmap or self.read_only or TransmissionFlag.SEND_TRIM not in self._info.flags:
            return
        try:
            for start, count in self._whole_blocks(offset, length):
                self._call(lambda connection, start=start, count=count: connection.trim(start, count))  # type: ignore[misc]
        except ConnectionLost:
            raise
        except OSError:
            # A discard is a hint.
            return

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeros; with `unmap` it need take no room.  Raises OSError."""
        self.check_write(offset, length)
        end = min(offset + length, self._info.size)
        if TransmissionFlag.SEND_WRITE_ZEROES not in self._info.flags:
            self._write_zeros(offset, end)
            return
        give_back = unmap and self.unmap
        for start, count in self._whole_blocks(offset, end - offset):
            self._write_zeros(offset, start)
            self._call(
                lambda connection, start=start, count=count: connection.write_zeroes(start, count, give_back)  # type: ignore[misc]
            )
            offset = start + count
        self._write_zeros(offset, end)

    def _whole_blocks(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield requests for all blocks of the server that are whole in a range."""
        unit = self._info.min_block
        end = min(offset + length, self._info.size) // unit * unit
        start = -(-offset // unit) * unit
        while start < end:
            count = min(end - start, _MAX_RANGE)
            yield start, count
            start += count

    def _write_zeros(self, offset: int, end: int) -> None:
        zeros = memoryview(bytes(max(0, min(_ZERO_CHUNK, end - offset))))
        while offset < end:
            count = min(len(zeros), end - offset)
            self._write_all(offset, [zeros[:count]], fua=False)
            offset += count

    # ---- What is where

    def block_status(self, offset: int, length: int) -> Extent:
        """Return what the server says of the first run of bytes, where it tells such things.  Raises OSError."""
        there = min(length, self._info.size - offset)
        if there <= 0:
            return Extent(min(length, self.size - offset), False, True, True, offset, self)
        if self._info.context is None:
            return Extent(min(length, self.size - offset), True, False, True, offset, self)
        before, aligned = self._align(offset, min(there, _MAX_RANGE))
        status = self._call(lambda connection: connection.block_status(offset - before, aligned))
        count, flags = min(status.length - before, there), status.flags
        if offset + count == self._info.size and count < length:
            # Zeros fill up the last sector.
            count = min(length, self.size - offset)
        data, zero = not flags & STATE_HOLE, bool(flags & STATE_ZERO)
        if not data and not zero:
            return Extent(count, data, zero, False)  # nobody knows what is there, or where
        return Extent(count, data, zero, True, offset, self)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Refuse: the length of an export is the server's.  Raises BlockError."""
        if size != self._info.size and exact:
            raise BlockError("Cannot resize NBD nodes")
        if size > self._info.size:
            raise BlockError("Cannot grow NBD nodes")


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> NbdNode:
    """Open an export; see :mod:`pyvm.block.options`."""
    del children
    address = find_address(own, graph.find_fd)
    return NbdNode(
        address,
        own.get("export", ""),
        name=settings.name,
        read_only=settings.read_only,
        auto_read_only=settings.auto_read_only,
        unmap=settings.unmap,
        reconnect_delay=own.get("reconnect-delay", 0),
        open_timeout=own.get("open-timeout", 0),
        context=own.get("x-dirty-bitmap", BASE_ALLOCATION),
        wrap=_encryption(own, address, graph),
    )


def _encryption(own: dict[str, Any], address: ServerAddress, graph: BlockGraph) -> Wrap | None:
    """Return what encrypts connections as the options say.  Raises BlockError."""
    name, hostname = own.get("tls-creds"), own.get("tls-hostname")
    if name is None:
        return None
    from pyvm.block.drivers.nbd_tls import client_wrap

    return client_wrap(graph.find_object(name), name, graph.secrets, hostname or address.host or None)
