"""Protocol driver *ssh*: a file on another host, by SFTP (draft-ietf-secsh-filexfer-02, with OpenSSH's extensions).

The library is asyncssh, an optional extra: it keeps many requests of one transfer on their way at a time.  It runs in a
thread of the node's own.  A connection that is lost stays lost: all requests fail with EIO then.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pyvm.block.drivers.ssh_options import HostKeyCheck, RemoteFile, find_file, parse_filename
from pyvm.block.errors import BlockError
from pyvm.block.node import Node, Preallocation
from pyvm.block.vectors import Buffers, Cursor, behind, fill_zero, total

if TYPE_CHECKING:
    import asyncssh

    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

__all__ = ["SshNode", "make", "parse_filename"]

SECTOR = 512
CONNECT_TIMEOUT = 30.0
REQUEST_TIMEOUT = 120.0
"""How long a request may take, in seconds."""
_KEEPALIVE = 15
_MISSED_KEEPALIVES = 3
_CHUNK = 1 << 20
"""Most bytes of one transfer."""
_MISSING = "SSH needs the library asyncssh, which is not installed: pip install 'pyvm[ssh]'"

_T = TypeVar("_T")


class _Loop:
    """A thread in which coroutines run; others wait for them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ssh", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T:
        """Run a coroutine and return its result.  Raises what it raises, and TimeoutError."""

        async def limited() -> _T:
            return await asyncio.wait_for(work, timeout)

        return asyncio.run_coroutine_threadsafe(limited(), self._loop).result()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SshNode(Node):
    """A file on another host.  Its length is shown in whole sectors, the last one filled up with zeros.

    Raises BlockError where it cannot be opened.
    """

    driver: ClassVar[str] = "ssh"

    def __init__(
        self,
        file: RemoteFile,
        *,
        name: str = "",
        read_only: bool = False,
        auto_read_only: bool = False,
        warn: Callable[[str], None] = lambda text: None,
        connect: dict[str, Any] | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        super().__init__(name, read_only=read_only)
        self.auto_read_only = auto_read_only
        self.identity = ("ssh", file.host, file.port, file.path)
        self._remote = file
        self._warn = warn
        self._timeout = timeout
        self._connection: asyncssh.SSHClientConnection | None = None
        self._can_sync = True
        self._written = False
        self._loop: _Loop | None = _Loop()
        try:
            self._open(connect or {})
        except BaseException:
            self._end()
            raise

    # ---- Opening and closing

    def _open(self, more: dict[str, Any]) -> None:
        """Connect, and open the file.  `more` are further settings of the connection.  Raises BlockError."""
        import asyncssh

        where = f"{self._remote.host}:{self._remote.port}"
        try:
            self._call(self._connect(more), CONNECT_TIMEOUT)
        except asyncssh.HostKeyNotVerifiable as error:
            raise BlockError(_untrusted(self._remote, error)) from None
        except asyncssh.PermissionDenied:
            raise BlockError("failed to authenticate using publickey authentication") from None
        except TimeoutError:
            raise BlockError(f"Failed to connect to '{where}': Connection timed out") from None
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise BlockError(f"Failed to connect to '{where}': {reason}") from None
        except (asyncssh.Error, ValueError) as error:
            raise BlockError(f"failed to establish an SSH session with '{where}': {error}") from None
        try:
            self._length = self._call(self._open_file(), CONNECT_TIMEOUT)
        except (asyncssh.Error, OSError) as error:
            raise BlockError(f"failed to open remote file '{self._remote.path}': {_describe(error)}") from None
        self._size = -(-self._length // SECTOR) * SECTOR

    async def _connect(self, more: dict[str, Any]) -> None:
        import socket

        import asyncssh

        families = {"any": socket.AF_UNSPEC, "ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
        settings: dict[str, Any] = {
            "keepalive_interval": _KEEPALIVE,
            "keepalive_count_max": _MISSED_KEEPALIVES,
            "family": families[self._remote.family],
            "x509_trusted_certs": None,
            "client_factory": _make_client(self._remote.check),
        }
        if self._remote.user is not None:
            settings["username"] = self._remote.user
        if self._remote.check.mode == "none":
            settings["known_hosts"] = None
        elif self._remote.check.mode == "hash":
            # Nobody is known: an empty list would stand for the person's own.
            settings["known_hosts"] = lambda host, addr, port: ([], [], [])
        settings.update(more)
        self._connection = await asyncssh.connect(self._remote.host, self._remote.port, **settings)
        self._sftp = await self._connection.start_sftp_client()

    async def _open_file(self) -> int:
        """Open the file; return its length."""
        import asyncssh

        modes = asyncssh.FXF_READ | (0 if self.read_only else asyncssh.FXF_WRITE)
        try:
            self._file = await self._sftp.open(self._remote.path, modes, encoding=None)
        except asyncssh.SFTPPermissionDenied:
            if self.read_only or not self.auto_read_only:
                raise
            self.read_only = True
            self._file = await self._sftp.open(self._remote.path, asyncssh.FXF_READ, encoding=None)
        status = await self._file.stat()
        if status.size is None or (status.type == asyncssh.FILEXFER_TYPE_DIRECTORY):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return status.size

    def close(self) -> None:
        """Close the file and the connection.  What was not flushed may be lost."""
        self._end()

    def _end(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                loop.call(_disconnect(connection), CONNECT_TIMEOUT)
            except (OSError, TimeoutError):
                # There is nobody to say goodbye to.
                pass
        loop.close()

    def _call(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T:
        if self._loop is None:
            work.close()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._loop.call(work, timeout)

    def _request(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Make a request.  Raises OSError."""
        import asyncssh

        try:
            return self._call(work, self._timeout)
        except (asyncssh.Error, OSError, EOFError, ValueError) as error:
            number = _find_errno(error)
            raise OSError(number, os.strerror(number)) from None

    # ---- What it is

    @property
    def filename(self) -> str:
        """The name that opens the file."""
        return self._remote.filename

    @property
    def size(self) -> int:
        """Length in bytes, whole sectors."""
        return self._size

    def length(self) -> int:
        """Return how long the file is now, to the byte."""
        return self._length

    @property
    def has_zero_init(self) -> bool:
        """New room in a file reads as zeros."""
        return True

    # ---- Reading and writing

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError.  What is not in the file reads as zeros."""
        there = max(0, min(total(buffers), self._length - offset))
        fill_zero(behind(buffers, there))
        cursor = Cursor(buffers)
        while there:
            count = min(there, _CHUNK)
            self._request(self._read(offset, cursor.take(count), count))
            offset += count
            there -= count

    async def _read(self, offset: int, buffers: Buffers, length: int) -> None:
        left = length
        async for start, data in await self._file.read_parallel(length, offset):
            if start < offset or start + len(data) > offset + length:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            left -= len(data)
            _copy(behind(buffers, start - offset), memoryview(data))
        if left:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Write all buffers from `offset` on; the file may grow.  Raises OSError."""
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        cursor = Cursor(buffers)
        left = total(buffers)
        self._written = True
        while left:
            count = min(left, _CHUNK)
            self._request(self._write(offset, b"".join(cursor.take(count))))
            offset += count
            left -= count
            self._length = max(self._length, offset)

    async def _write(self, offset: int, data: bytes) -> None:
        await self._file.write(data, offset)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros.  Raises OSError."""
        zeros = memoryview(bytes(min(_CHUNK, length)))
        end = offset + length
        while offset < end:
            count = min(len(zeros), end - offset)
            self.writev(offset, (zeros[:count],))
            offset += count

    def discard(self, offset: int, length: int) -> None:
        """Nothing can be given back."""

    def flush(self) -> None:
        """Return when everything written is on stable storage, where the server can tell.  Raises OSError."""
        import asyncssh

        if not self._written or self.no_flush or not self._can_sync:
            return
        try:
            self._call(self._sync(), self._timeout)
        except asyncssh.SFTPOpUnsupported:
            self._can_sync = False
            self._warn(f"warning: ssh server {self._remote.host}:{self._remote.port} does not support fsync")
        except (asyncssh.Error, OSError, ValueError) as error:
            number = _find_errno(error)
            raise OSError(number, os.strerror(number)) from None
        self._written = False

    async def _sync(self) -> None:
        await self._file.fsync()

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        """Make the file `size` bytes long.  Raises OSError, or BlockError for what cannot be."""
        if preallocation != "off":
            raise BlockError(f"Unsupported preallocation mode '{preallocation}'")
        if self.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._request(self._set_length(size))
        self._written = True
        self._length = size
        self._size = -(-size // SECTOR) * SECTOR

    async def _set_length(self, size: int) -> None:
        await self._file.truncate(size)


async def _disconnect(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    await connection.wait_closed()


def _copy(buffers: Buffers, data: memoryview) -> None:
    for buffer in buffers:
        part = data[: len(buffer)]
        buffer[: len(part)] = part
        data = data[len(part) :]
        if not data:
            return


# ---- The server's key


def _make_client(check: HostKeyCheck) -> Callable[[], asyncssh.SSHClient]:
    """Return what makes the library's callbacks: they see the server's key where nothing else vouches for it."""
    import asyncssh

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            del host, addr, port
            return check.mode == "hash" and _digest(check.kind, key) == check.digest

    return Client


def _digest(kind: str, key: asyncssh.SSHKey) -> str:
    import hashlib

    return hashlib.new(kind, key.public_data, usedforsecurity=False).hexdigest()


def _untrusted(file: RemoteFile, error: Exception) -> str:
    if file.check.mode == "hash":
        return f"remote host key fingerprint does not match host_key_check '{file.check.text}'"
    return f"the key of host '{file.host}' is not the one in known_hosts: {error}"


# ---- Errors


def _find_errno(error: Exception) -> int:
    """Return the errno for an error of the library."""
    import asyncssh

    known: tuple[tuple[type[Exception], int], ...] = (
        (asyncssh.SFTPNoSuchFile, errno.ENOENT),
        (asyncssh.SFTPPermissionDenied, errno.EACCES),
        (asyncssh.SFTPWriteProtect, errno.EROFS),
        (asyncssh.SFTPNoSpaceOnFilesystem, errno.ENOSPC),
        (asyncssh.SFTPQuotaExceeded, errno.EDQUOT),
        (asyncssh.SFTPOpUnsupported, errno.ENOTSUP),
        (asyncssh.SFTPFileIsADirectory, errno.EISDIR),
    )
    for kind, number in known:
        if isinstance(error, kind):
            return number
    if isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EISDIR):
        return error.errno
    return errno.EIO


def _describe(error: Exception) -> str:
    number = _find_errno(error)
    return str(error) if number == errno.EIO and str(error) else os.strerror(number)


def make(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> SshNode:
    """Open a file; see :mod:`pyvm.block.options`."""
    from pyvm.block.open import print_warning

    del children, graph
    file = find_file(own)
    try:
        import asyncssh
    except ImportError:
        raise BlockError(_MISSING) from None
    del asyncssh
    return SshNode(
        file,
        name=settings.name,
        read_only=settings.read_only,
        auto_read_only=settings.auto_read_only,
        warn=print_warning,
    )
