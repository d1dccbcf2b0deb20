"""A driver for the 8254x made by hand: rings and buffers in a small RAM, and the other end of the link."""

from __future__ import annotations

import struct

from pyvm.clock import ManualClock
from pyvm.devices.e1000 import registers as r
from pyvm.devices.e1000.card import E1000, MODELS
from pyvm.irq import IrqLine
from pyvm.memory import GuestMemory, RamBlock
from pyvm.net.nic import NicClient
from tests.unit.net_support import Peer

RAM = 1 << 20
MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("020000000001")
TX_RING, RX_RING, BUFFERS = 0x1000, 0x2000, 0x10000
RING_SIZE = 16
BUFFER = 2048
DONE = r.TX_EOP | r.TX_RS


class Driver:
    """A card that is set up, with its driver and its peer."""

    def __init__(self, *, mitigation: bool = True, offloads: bool = False) -> None:
        self.memory = GuestMemory(RAM, [RamBlock(0, RAM, 0)])
        self.clock = ManualClock()
        self.peer = Peer()
        self.peer.offloads = offloads
        self.client = NicClient("nic0", "e1000", MAC)
        self.client.connect(self.peer)
        self.levels: list[bool] = []
        self.line = IrqLine(self.levels.append)
        self.card = E1000(
            MODELS["e1000"], self.clock, self.memory, self.client, self.line, mitigation=mitigation, negotiates=True
        )
        self.card.set_dma(True)
        self.tail = 0
        self.seen = 0

    def read(self, offset: int) -> int:
        return self.card.read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.card.write(offset, 4, value)

    def start(self, control: int = r.RCTL_EN | r.RCTL_BAM, causes: int = r.CAUSES) -> None:
        """Set up both rings, with all receive buffers but one given to the card."""
        for base, low in ((TX_RING, r.TDBAL), (RX_RING, r.RDBAL)):
            self.write(low, base)
            self.write(low + 8, RING_SIZE * r.DESCRIPTOR)
        for index in range(RING_SIZE):
            self.memory.write_u64(RX_RING + index * r.DESCRIPTOR, BUFFERS + index * BUFFER)
        self.write(r.RDT, RING_SIZE - 1)
        self.write(r.TCTL, r.TCTL_EN | r.TCTL_PSP)
        self.write(r.RCTL, control)
        self.write(r.IMS, causes)

    # ---- Sending

    def _put(self, raw: bytes) -> None:
        self.memory.write(TX_RING + self.tail * r.DESCRIPTOR, raw)
        self.tail = (self.tail + 1) % RING_SIZE

    def kick(self) -> None:
        self.write(r.TDT, self.tail)

    def legacy(self, data: bytes, command: int = DONE, *, offset: int = 0, start: int = 0, special: int = 0) -> None:
        place = 0x80000 + self.tail * 0x1000
        self.memory.write(place, data)
        self._put(struct.pack("<QHBBBBH", place, len(data), offset, command, 0, start, special))

    def data(self, data: bytes, command: int = DONE, options: int = 0) -> None:
        place = 0x80000 + self.tail * 0x4000
        self.memory.write(place, data)
        word = len(data) | r.TX_TYPE_DATA << r.TX_TYPE | (command | r.TX_DEXT) << 24
        self._put(struct.pack("<QIBBH", place, word, 0, options, 0))

    def context(self, fields: tuple[int, ...], payload: int, command: int, header: int = 0, mss: int = 0) -> None:
        word = payload | (command | r.TX_DEXT) << 24
        self._put(struct.pack("<BBHBBHIBBH", *fields, word, 0, header, mss))

    def sent(self) -> list[bytes]:
        return self.peer.take()

    # ---- Receiving

    def received(self) -> list[tuple[bytes, int, int, int]]:
        """Return data, status, errors and tag of what has come since the last time."""
        found = []
        while self.seen != self.read(r.RDH):
            place = RX_RING + self.seen * r.DESCRIPTOR
            address, length, _, status, errors, special = struct.unpack("<QHHBBH", self.memory.read(place, 16))
            found.append((self.memory.read(address, length), status, errors, special))
            self.seen = (self.seen + 1) % RING_SIZE
        return found

    def give_back(self) -> None:
        """Give all buffers but one to the card."""
        self.write(r.RDT, (self.read(r.RDH) - 1) % RING_SIZE)


def frame(target: bytes = MAC, size: int = 60, kind: bytes = b"\x08\x06") -> bytes:
    return (target + OTHER + kind).ljust(size, b"p")
