"""Exports as vhost-user-blk devices: another program's guest has the node as its virtio disk."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from select import POLLIN, poll
from typing import TYPE_CHECKING, ClassVar

from pyvm.block.errors import BlockError
from pyvm.block.export.exports import Client, Export, ExportOptions, Exports
from pyvm.block.export.vhost_user import VhostSession
from pyvm.devices.virtio.blk import VirtioBlk
from pyvm.devices.virtio.constants import MAX_QUEUE_SIZE, MAX_QUEUES

if TYPE_CHECKING:
    from pyvm.chardev.address import Listener

_SERIAL = "vhost_user_blk"
_MIN_BLOCK, _MAX_BLOCK = 512, 2 << 20
_PAUSE = 0.02


class VhostUserBlkExport(Export):
    """A node that front ends can have as a disk, one front end at a time.  Raises BlockError."""

    kind: ClassVar[str] = "vhost-user-blk"

    def __init__(
        self,
        exports: Exports,
        options: ExportOptions,
        open_listener: Callable[[], Listener],
        *,
        logical_block_size: int = 512,
        num_queues: int = 1,
    ) -> None:
        super().__init__(exports, options)
        self._device_options = {"num_queues": num_queues, "logical_block_size": logical_block_size}
        try:
            self._check(options.id, logical_block_size, num_queues)
            self._listener = open_listener()
            self._begin()
        except BaseException:
            self._drop(self.backend)
            raise

    def _begin(self) -> None:
        self._closing = False
        (listening,) = self._listener.sockets
        listening.setblocking(False)
        with ExitStack() as undo:
            undo.callback(self._listener.close)
            try:
                self._woken, self._wake = os.pipe()
                for fd in (self._woken, self._wake):
                    undo.callback(os.close, fd)
                threading.Thread(target=self._serve, args=(listening,), name="vhost-user-blk", daemon=True).start()
            except (OSError, RuntimeError) as error:
                raise BlockError(f"Failed to start vhost-user server: {error}") from None
            undo.pop_all()

    def _check(self, identifier: str, block: int, queues: int) -> None:
        if not _MIN_BLOCK <= block <= _MAX_BLOCK:
            limits = f"(minimum: {_MIN_BLOCK}, maximum: {_MAX_BLOCK})"
            raise BlockError(f"Property {identifier}.logical-block-size doesn't take value {block} {limits}")
        if block & (block - 1):
            text = f"Property {identifier}.logical-block-size doesn't take value '{block}', it's not a power of 2"
            raise BlockError(text)
        if not queues:
            raise BlockError("num-queues must be greater than 0")
        if queues > MAX_QUEUES:
            raise BlockError(f"num-queues must be at most {MAX_QUEUES}")

    def _serve(self, listening: socket.socket) -> None:
        waits = poll()
        waits.register(listening, POLLIN)
        waits.register(self._woken, POLLIN)
        while not self._closing:
            waits.poll()
            try:
                sock, _ = listening.accept()
            except BlockingIOError:
                continue
            except OSError:
                # It has gone already; or there are too many open files, and others have to end first.
                time.sleep(_PAUSE)
                continue
            sock.setblocking(True)
            _FrontEnd(self, sock).run()
        for fd in (self._wake, self._woken):
            os.close(fd)

    def make_device(self) -> VirtioBlk:
        """Return the disk for a front end."""
        return VirtioBlk(
            self.backend,
            serial=_SERIAL,
            queue_size=MAX_QUEUE_SIZE,
            seg_max_adjust=False,
            **self._device_options,
        )

    def hide(self) -> None:
        """Let no new front end connect."""
        # The thread closes the pipe once it sees that this is the end.
        os.write(self._wake, b"\0")
        self._listener.close()
        self._closing = True


class _FrontEnd(Client):
    """A front end that is connected."""

    def __init__(self, export: VhostUserBlkExport, sock: socket.socket) -> None:
        self._export = export
        self._socket = sock

    def disconnect(self) -> None:
        """End the connection soon."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """Serve it until it leaves."""
        export = self._export
        lock = export.exports.storage.lock
        with lock:
            if not export.add_client(self):
                self._socket.close()
                return
        try:
            with lock:
                session = VhostSession(self._socket, export.make_device(), export.backend.drain, lock)
            session.run()
        finally:
            with lock:
                export.remove_client(self)
