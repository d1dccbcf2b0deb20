"""Starting the NBD server as options say: where it listens, and whom it lets in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.block.export.server import NbdServer
from pyvm.chardev.address import FdAddress, FindFd, Listener, SocketAddress, inherited_socket, listen
from pyvm.chardev.base import ChardevError
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.block.export.exports import Exports

FindObject = Callable[[str], Any]
"""Returns what `-object` made under an ID, None without."""


@record(frozen=True)
class ServerOptions:
    """Who may connect, and how."""

    max_connections: int = 0
    """How many at a time; 0: as many as is sensible."""
    tls_creds: str | None = None
    tls_authz: str | None = None


def open_listener(address: SocketAddress, find_fd: FindFd | None = None) -> Listener:
    """Return sockets that listen.  Raises BlockError."""
    try:
        if isinstance(address, FdAddress):
            return Listener([inherited_socket(address, find_fd)])
        return listen(address)
    except ChardevError as error:
        raise BlockError(str(error)) from None


def start_server(
    exports: Exports,
    open_address: Callable[[], Listener],
    options: ServerOptions,
    find_object: FindObject,
    on_client_gone: Callable[[bool], None] = lambda served: None,
) -> NbdServer:
    """Start the server of a machine.  Called with the machine lock held.  Raises BlockError."""
    if exports.server is not None:
        raise BlockError("NBD server already running")
    listener = open_address()
    try:
        tls, is_allowed = _security(exports, options, find_object)
        exports.server = NbdServer(
            exports.storage.lock,
            listener,
            max_connections=options.max_connections,
            tls=tls,
            is_allowed=is_allowed,
            on_client_gone=on_client_gone,
        )
    except OSError as error:
        listener.close()
        raise BlockError(f"Failed to start NBD server: {error.strerror or error}") from None
    except BaseException:
        listener.close()
        raise
    return exports.server


def _security(exports: Exports, options: ServerOptions, find_object: FindObject) -> tuple[Any, Any]:
    """Return what TLS is spoken with, and who is asked about clients' names; None for what is not wanted."""
    tls = None
    if options.tls_creds is not None:
        from pyvm.block.drivers.nbd_tls import check_credentials, make_context

        credentials = check_credentials(find_object(options.tls_creds), options.tls_creds, "server")
        tls = make_context(credentials, exports.storage.graph.secrets)
    if options.tls_authz is None:
        return tls, None
    name = options.tls_authz

    def is_allowed(identity: str) -> bool:
        # The object may be made or changed at any time.
        ask = getattr(find_object(name), "is_allowed", None)
        return ask is not None and bool(ask(identity))

    return tls, is_allowed
