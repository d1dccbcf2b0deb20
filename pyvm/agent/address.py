"""Where an agent is, and how a program gets there."""

from __future__ import annotations

import errno
import os
import socket
import time

Address = str | tuple[str, int] | socket.socket
"""``/path``, ``unix:/path``, ``tcp:host:port``, (host, port), ``vsock:/path:port`` (the unix socket of a guest's
virtio-vsock device, and the port at which its agent listens), or a connected socket, which the client then owns."""

_GREETING_LIMIT = 32
_IN_LINE_SECONDS = 0.02


def connect(address: str | tuple[str, int], timeout: float | None) -> socket.socket:
    """Return a connection; raises OSError, of which TimeoutError is one, and ValueError for a port that is none."""
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout)
    if address.startswith("tcp:"):
        host, _, port = address[4:].rpartition(":")
        return socket.create_connection((host.strip("[]") or "localhost", int(port)), timeout)
    if address.startswith("vsock:"):
        path, _, port = address[6:].rpartition(":")
        return _connect_vsock(path, int(port), timeout)
    return _connect_unix(address.removeprefix("unix:"), timeout)


def _connect_unix(path: str, timeout: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        connection.settimeout(timeout)
        while True:
            try:
                connection.connect(path)
                return connection
            except BlockingIOError:  # others wait in line: a port serves one client after the other
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError from None
                time.sleep(_IN_LINE_SECONDS)
    except BaseException:
        connection.close()
        raise


def _connect_vsock(path: str, port: int, timeout: float | None) -> socket.socket:
    """Ask at a unix socket for a port of the guest; see :mod:`pyvm.net.vsock`."""
    connection = _connect_unix(path, timeout)
    try:
        connection.sendall(b"CONNECT %d\n" % port)
        line = b""
        while not line.endswith(b"\n"):
            byte = connection.recv(1)
            if not byte or len(line) > _GREETING_LIMIT:
                break
            line += byte
        if not line.startswith(b"OK ") or not line.endswith(b"\n"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nothing listens at port {port} of the guest")
    except BaseException:
        connection.close()
        raise
    return connection


def reason(error: OSError | ValueError) -> str:
    """Return why there is no connection, for a person."""
    if isinstance(error, OSError):
        return error.strerror or os.strerror(error.errno or errno.EIO)
    return "that is no address"
