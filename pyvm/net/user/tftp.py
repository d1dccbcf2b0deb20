"""The TFTP server (RFC 1350, options of RFC 2347 to 2349): files below one directory of the host, for reading."""

from __future__ import annotations

import os
import stat

from pyvm.clock import NANOSECONDS
from pyvm.net.user.stack import UserNet
from pyvm.net.user.udp import Guest, UdpService
from pyvm.records import record

PORT = 69

_READ, _WRITE, _DATA, _ACK, _ERROR, _OPTIONS = range(1, 7)
_ACCESS, _ILLEGAL, _NOT_FOUND = 2, 4, 1
_BLOCK = 512
_BLOCK_RANGE = range(8, 1429)
"""What block sizes may be agreed on; the largest fills a frame."""
_SESSIONS_LIMIT = 20
_LIFETIME = 60 * NANOSECONDS


@record
class _Transfer:
    """A file that a guest reads."""

    fd: int
    block: int
    deadline: int
    destination: bytes
    size: int


class TftpServer:
    """The transfers of one network."""

    def __init__(self, net: UserNet, udp: UdpService, root: str) -> None:
        self._net = net
        self._udp = udp
        self._root = root
        self._transfers: dict[Guest, _Transfer] = {}
        udp.handlers[PORT] = self.receive
        net.add_closer(self.close)

    def close(self) -> None:
        """Close all files."""
        for guest in list(self._transfers):
            self._end(guest)

    def _end(self, guest: Guest) -> None:
        found = self._transfers.pop(guest, None)
        if found is not None:
            os.close(found.fd)

    def receive(self, source: bytes, port: int, destination: bytes, data: bytes) -> None:
        """Take a message of a guest; one that was sent to all is for somebody else."""
        if destination not in self._net.addresses:
            return
        guest = (source, port)
        kind = int.from_bytes(data[:2], "big") if len(data) >= 4 else 0
        if kind == _READ:
            self._read_request(guest, destination, data[2:])
        elif kind == _WRITE:
            self._refuse(guest, destination, _ACCESS, "access violation")
        elif kind == _ACK:
            self._send_block(guest, int.from_bytes(data[2:4], "big"))
        elif kind == _ERROR:
            self._end(guest)

    def _refuse(self, guest: Guest, source: bytes, code: int, text: str) -> None:
        message = _ERROR.to_bytes(2, "big") + code.to_bytes(2, "big") + text.encode() + b"\0"
        self._udp.send(source, PORT, guest, message)

    def _read_request(self, guest: Guest, destination: bytes, data: bytes) -> None:
        self._end(guest)
        name, *words = data.split(b"\0")[:-1] or [b""]
        if not words or words[0].lower() != b"octet":
            self._refuse(guest, destination, _ILLEGAL, "unsupported transfer mode")
            return
        fd = self._open(name)
        if fd is None:
            self._refuse(guest, destination, _NOT_FOUND, "file not found")
            return
        size = os.fstat(fd).st_size
        self._make_room()
        transfer = _Transfer(fd, _BLOCK, self._net.clock.now() + _LIFETIME, destination, size)
        self._transfers[guest] = transfer
        agreed = _agree(transfer, words[1:])
        if agreed:
            self._udp.send(destination, PORT, guest, _OPTIONS.to_bytes(2, "big") + agreed)
        else:
            self._send_block(guest, 0)

    def _make_room(self) -> None:
        now = self._net.clock.now()
        for guest in [guest for guest, found in self._transfers.items() if found.deadline <= now]:
            self._end(guest)
        while len(self._transfers) >= _SESSIONS_LIMIT:
            self._end(next(iter(self._transfers)))

    def _open(self, name: bytes) -> int | None:
        """Open a file below the root; None where it is none, or is elsewhere by way of ``..`` or a link."""
        root = os.path.realpath(os.fsencode(self._root))
        path = os.path.realpath(os.path.join(root, name.lstrip(b"/")))
        if os.path.commonpath((root, path)) != root:
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd

    def _send_block(self, guest: Guest, acknowledged: int) -> None:
        """Send the block behind the one that was acknowledged."""
        transfer = self._transfers.get(guest)
        if transfer is None:
            return
        # Numbers have 16 bits: of the blocks that have this number the one that the last was near to is meant.
        last = os.lseek(transfer.fd, 0, os.SEEK_CUR) // transfer.block
        number = last + ((acknowledged - last + 0x8000) & 0xFFFF) - 0x8000
        offset = number * transfer.block
        if number < 0 or offset > transfer.size:
            self._end(guest)
            return
        transfer.deadline = self._net.clock.now() + _LIFETIME
        try:
            os.lseek(transfer.fd, offset + transfer.block, os.SEEK_SET)
            data = os.pread(transfer.fd, transfer.block, offset)
        except OSError:
            self._refuse(guest, transfer.destination, 0, "read error")
            self._end(guest)
            return
        head = _DATA.to_bytes(2, "big") + ((number + 1) & 0xFFFF).to_bytes(2, "big")
        self._udp.send(transfer.destination, PORT, guest, head + data)


def _agree(transfer: _Transfer, words: list[bytes]) -> bytes:
    """Take up the options that a guest asks for; return those that are agreed on."""
    agreed = b""
    for name, value in zip(words[::2], words[1::2], strict=False):
        number = int(value) if value.isdigit() and len(value) < 10 else -1
        if name.lower() == b"tsize" and number >= 0:
            agreed += b"tsize\0%d\0" % transfer.size
        elif name.lower() == b"blksize" and number >= _BLOCK_RANGE.start:
            transfer.block = min(number, _BLOCK_RANGE.stop - 1)
            agreed += b"blksize\0%d\0" % transfer.block
        elif name.lower() == b"timeout" and 1 <= number <= 255:
            agreed += b"timeout\0%d\0" % number
    return agreed
