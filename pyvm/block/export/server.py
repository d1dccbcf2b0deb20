"""The NBD server: sockets that listen, and a thread for each client.

A thread waits for the sockets and starts one for each client, in which the handshake and all requests are read.  They
take the machine lock where they look at exports.  Whoever is too slow with the handshake is sent away.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import POLLIN, poll
from typing import TYPE_CHECKING, Any

from pyvm.block.drivers.nbd_stream import ConnectionLost, Stream
from pyvm.block.errors import BlockError
from pyvm.block.export.exports import Client
from pyvm.block.export.handshake import Handshake
from pyvm.block.export.transmission import Transmission

if TYPE_CHECKING:
    import ssl

    from pyvm.block.export.nbd import NbdExport
    from pyvm.chardev.address import Listener

HANDSHAKE_SECONDS = 10.0
"""How long a client may take to choose an export."""
DEFAULT_CONNECTIONS = 100
"""How many clients there may be where nobody says."""
_BACKLOG = 128
_PAUSE = 0.02


class NbdServer:
    """A server on sockets that listen.  Methods are called with the machine lock held, which `lock` is, unless they
    say otherwise.

    `max_connections` is how many clients there may be at a time, 0: as many as is sensible.  With `tls`, exports can be
    had by encrypted connections only, and `is_allowed`, where it is given, is asked about the names of clients.
    """

    def __init__(
        self,
        lock: Any,
        listener: Listener,
        *,
        max_connections: int = 0,
        tls: ssl.SSLContext | None = None,
        is_allowed: Callable[[str], bool] | None = None,
        on_client_gone: Callable[[bool], None] = lambda served: None,
    ) -> None:
        self.exports: list[NbdExport] = []
        """What clients can have, the oldest first."""
        self.max_connections = max_connections
        self._limit = max_connections or DEFAULT_CONNECTIONS
        self._lock = lock
        self.tls = tls
        self.is_allowed = is_allowed
        self._on_client_gone = on_client_gone
        self._listener = listener
        self._clients: set[_Connection] = set()
        self._closing = False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        for sock in listener.sockets:
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        listening = {sock.fileno(): sock for sock in listener.sockets}
        threading.Thread(target=self._accept_all, args=(listening,), name="nbd-accept", daemon=True).start()

    @property
    def address(self) -> Any:
        """Where the first socket listens, as the socket says it."""
        return self._listener.sockets[0].getsockname()

    @property
    def client_count(self) -> int:
        """How many clients there are."""
        return len(self._clients)

    def find(self, name: bytes) -> NbdExport | None:
        """Return an export by its name."""
        return next((it for it in self.exports if it.name == name), None)

    # ---- Clients

    def _accept_all(self, listening: dict[int, socket.socket]) -> None:
        waits = poll()
        waits.register(self._woken, POLLIN)
        while not self._closing:
            # Whoever leaves after this look wakes the thread.
            full = len(self._clients) >= self._limit
            for descriptor in listening:
                waits.register(descriptor, 0 if full else POLLIN)
            for descriptor, _ in waits.poll():
                if descriptor == self._woken.fileno():
                    self._woken.recv(1024)
                elif descriptor in listening:
                    self._accept(listening[descriptor])
        self._woken.close()
        self._wake.close()

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except OSError:
            # It has gone already; or there are too many open files, and others have to end first.
            time.sleep(_PAUSE)
            return
        with self._lock:
            if self._closing:
                sock.close()
                return
            try:
                client = _Connection(self, self._lock, sock)
            except OSError:
                sock.close()  # it has gone already
                return
            self._clients.add(client)
        try:
            threading.Thread(target=client.run, name="nbd-client", daemon=True).start()
        except RuntimeError:
            client.end()  # there are too many threads

    def gone(self, client: _Connection, served: bool) -> None:
        """A client has left; `served` says whether it had an export."""
        self._clients.discard(client)
        self._on_client_gone(served)
        self._stir()

    def _stir(self) -> None:
        with suppress(OSError):
            self._wake.send(b"\0")

    # ---- The end

    def keep_file(self) -> None:
        """Leave the file of a Unix socket where it is in the end."""
        self._listener.unlink = None

    def stop_listening(self) -> None:
        """Take no more clients."""
        self._closing = True
        self._listener.close()
        self._stir()

    def close(self) -> None:
        """Send all clients away."""
        for client in self._clients:
            client.disconnect()


class _Connection(Client):
    """One client, from its connection to its end; all of it in a thread of its own."""

    def __init__(self, server: NbdServer, lock: Any, sock: socket.socket) -> None:
        self._server = server
        self._lock = lock
        self._export: NbdExport | None = None
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._stream = Stream(sock, None, "client")

    def disconnect(self) -> None:
        """End the connection soon."""
        self._stream.shut_down()

    def run(self) -> None:
        """Serve the client until one of both has enough."""
        try:
            self._stream.deadline = time.monotonic() + HANDSHAKE_SECONDS
            agreed = Handshake(self._stream, self).run()
            if agreed is not None:
                self._stream.end_deadline()
                Transmission(self._stream, agreed, self._lock).run()
        except (ConnectionLost, BlockError, OSError):
            pass  # the client's business
        finally:
            self.end()

    def end(self) -> None:
        """Nothing of the client is left."""
        self._stream.close()
        with self._lock:
            if self._export is not None:
                self._export.remove_client(self)
            self._server.gone(self, self._export is not None)

    # ---- For the handshake

    @property
    def encrypts(self) -> bool:
        """Whether exports can be had by TLS only."""
        return self._server.tls is not None

    def find_export(self, name: bytes) -> NbdExport | None:
        """Return an export by its name."""
        with self._lock:
            return self._server.find(name)

    def list_exports(self) -> Sequence[NbdExport]:
        """Return all exports."""
        with self._lock:
            return tuple(self._server.exports)

    def join(self, export: NbdExport) -> bool:
        """Use an export from now on; return False where it is about to go."""
        with self._lock:
            if export.add_client(self):
                self._export = export
        return self._export is not None

    def encrypt(self) -> None:
        """Speak TLS from now on.

        Raises ConnectionLost, and BlockError where the client cannot prove who it is or must not come in.
        """
        from pyvm.block.drivers.nbd_tls import TlsSocket

        server = self._server
        context = server.tls
        assert context is not None
        made: list[TlsSocket] = []

        def wrap(sock: socket.socket) -> TlsSocket:
            made.append(TlsSocket(sock, context))
            return made[0]

        self._stream.encrypt(wrap)
        if server.is_allowed is not None:
            identity = made[0].identity
            with self._lock:
                allowed = server.is_allowed(identity)
            if not allowed:
                raise BlockError(f"TLS x509 authz check for {identity} is denied")
