"""Datagrams as a back end: `udp`.  What the guest writes at once is one datagram, if it fits into one."""

from __future__ import annotations

import socket

from pyvm.chardev.address import InetAddress, Resolved, connect_failed, resolve
from pyvm.chardev.base import Buffer, ChardevError, ChardevEvent, report
from pyvm.chardev.options import UdpOptions
from pyvm.chardev.stream import READ_SIZE, StreamChardev
from pyvm.mainloop import MainLoop

MAX_DATAGRAM = 65507
"""Most bytes in one UDP datagram over IPv4 (RFC 768: 16-bit length, less the headers)."""

_SKIP_LIMIT = 64
"""Empty datagrams and errors passed over at once; a flood of them must not hold the main loop."""


class UdpChardev(StreamChardev):
    """A connected datagram socket; nobody knows whether a peer is there, so one always is."""

    def __init__(self, options: UdpOptions, loop: MainLoop) -> None:
        """Bind the local and connect the remote address; raises ChardevError."""
        super().__init__(options.id, loop)
        self._socket = _open(options)
        self._socket.setblocking(False)
        self._in_fd = self._out_fd = self._socket.fileno()
        self._rest = b""

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "udp"

    def _receive(self, size: int) -> bytes:
        """Return what is left of a datagram, or the next one; a front end may take one in several pieces."""
        for _ in range(_SKIP_LIMIT):
            if self._rest:
                break
            try:
                self._rest = self._socket.recv(READ_SIZE)
            except ConnectionRefusedError:
                pass  # nobody was there for an earlier datagram of ours; that ends nothing
        if not self._rest:
            raise BlockingIOError
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def accept_input(self) -> None:
        """Read on: first what is left of the last datagram."""
        paused = not self._reading
        super().accept_input()
        if self._rest and paused:
            self._loop.call_soon(self._readable)  # no descriptor tells of what is in memory

    def _readable(self) -> None:
        super()._readable()
        if self._rest and self._reading:
            self._loop.call_soon(self._readable)

    def _end_of_input(self) -> None:
        self._stop()
        report(f"chardev {self.label}: the socket failed")
        self._notify(ChardevEvent.CLOSED)

    def _send(self, data: Buffer) -> int:
        view = memoryview(data)
        sent = 0
        while sent < len(view):
            try:
                sent += self._socket.send(view[sent : sent + MAX_DATAGRAM])
            except BlockingIOError:
                break
            except ConnectionRefusedError:
                continue  # reported for an earlier datagram; this one was not sent yet
        return sent

    def close(self) -> None:
        """Close the socket."""
        self._stop()
        self._socket.close()
        super().close()


def _open(options: UdpOptions) -> socket.socket:
    remote = InetAddress(options.host or "localhost", options.port, ipv4=options.ipv4, ipv6=options.ipv6)
    failure: OSError | None = None
    for family, name in resolve(remote, socket.SOCK_DGRAM):
        opened = socket.socket(family, socket.SOCK_DGRAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(_local(options, family)[1])
            opened.connect(name)
        except OSError as error:
            opened.close()
            failure = failure or error
        except ChardevError:
            opened.close()
            raise
        else:
            return opened
    raise connect_failed(remote, failure)


def _local(options: UdpOptions, family: socket.AddressFamily) -> Resolved:
    """Return the address to bind: by default every local address and a port that the kernel chooses."""
    local = InetAddress(
        options.local_host,
        options.local_port or "0",
        ipv4=family == socket.AF_INET,
        ipv6=family == socket.AF_INET6,
    )
    return resolve(local, socket.SOCK_DGRAM, passive=True)[0]
