"""Virtio over PCI: what the function looks like, both interfaces, and interrupts."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.virtio.balloon import VirtioBalloon
from pyvm.devices.virtio.blk import VirtioBlk
from pyvm.devices.virtio.console import VirtioConsole
from pyvm.devices.virtio.console_port import ConsolePort
from pyvm.devices.virtio.constants import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_RING_RESET, F_VERSION_1
from pyvm.devices.virtio.device import VirtioDevice
from pyvm.devices.virtio.pci import VirtioPci, VirtioPciState, properties
from pyvm.devices.virtio.rng import RngState, VirtioRng
from pyvm.memory import GuestMemory, IoSpace
from pyvm.state import StateError
from tests.unit.test_virtio_blk import Disk
from tests.unit.virtio_driver import Arena, PackedDriver, SplitDriver, make_memory

BAR0 = 0xC000
BAR1 = 0xE0000000
BAR4 = 0xE0004000
SLOT = 2
COMMON, ISR, DEVICE, NOTIFY = BAR4, BAR4 + 0x1000, BAR4 + 0x2000, BAR4 + 0x3000
MSI_ADDRESS = 0xFEE00000


def make_rng() -> VirtioRng:
    return VirtioRng(ManualClock(), lambda count: b"\x5a" * count)


def make_blk(**options: Any) -> VirtioBlk:
    return VirtioBlk(Disk(16384), **options)


def make_balloon() -> VirtioBalloon:
    return VirtioBalloon(ManualClock(), free_page_reporting=True)


class Board:
    """A bus with one virtio function, mapped as firmware would."""

    def __init__(self, device: VirtioDevice[Any], memory: GuestMemory | None = None, **options: Any) -> None:
        self.memory = memory or make_memory()
        self.arena = Arena(self.memory)
        self.ports = IoSpace("ports")
        self.mmio = IoSpace("mmio")
        self.level = False
        self.messages: list[int] = []
        self.bus = PciBus(self.ports, self.mmio, self._intx, self._msi)
        self.function = VirtioPci(device.name, device, self.memory, **options)
        self.device = device
        self.bus.attach(self.function, SLOT)

    def _intx(self, slot: int, pin: int, level: bool) -> None:
        assert (slot, pin) == (SLOT, 0)
        self.level = level

    def _msi(self, address: int, data: int) -> None:
        assert address == MSI_ADDRESS
        self.messages.append(data)

    def dword(self, offset: int) -> int:
        return self.function.config_read(offset, 4)

    def map(self, command: int = 7) -> None:
        self.function.config_write(0x10, 4, BAR0)
        self.function.config_write(0x14, 4, BAR1)
        self.function.config_write(0x20, 4, BAR4)
        self.function.config_write(0x04, 2, command)

    def enable_msix(self) -> None:
        assert self.function.msix is not None
        for vector in range(self.function.msix.vectors):
            for place, value in enumerate((MSI_ADDRESS, 0, 0x40 + vector, 0)):
                self.mmio.write(BAR1 + 16 * vector + 4 * place, 4, value)
        offset = self.dword(0x34)
        self.function.config_write(offset + 2, 2, 0x8000)

    def features(self) -> int:
        words = []
        for select in (0, 1, 2):
            self.mmio.write(COMMON, 4, select)
            words.append(self.mmio.read(COMMON + 4, 4))
        assert words[2] == 0
        return words[0] | words[1] << 32

    def accept(self, features: int) -> bool:
        self.mmio.write(COMMON + 0x14, 1, 0)
        self.mmio.write(COMMON + 0x14, 1, 3)
        for select in (0, 1):
            self.mmio.write(COMMON + 8, 4, select)
            self.mmio.write(COMMON + 12, 4, (features >> (32 * select)) & 0xFFFFFFFF)
        self.mmio.write(COMMON + 0x14, 1, 11)
        return bool(self.mmio.read(COMMON + 0x14, 1) & 8)

    def add_queue(self, index: int = 0, *, size: int = 8, packed: bool = False, vector: int | None = None) -> Any:
        ring = PackedDriver(self.arena, size) if packed else SplitDriver(self.arena, size)
        self.mmio.write(COMMON + 0x16, 2, index)
        assert self.mmio.read(COMMON + 0x1E, 2) == index
        self.mmio.write(COMMON + 0x18, 2, size)
        assert self.mmio.read(COMMON + 0x18, 2) == size
        if vector is not None:
            self.mmio.write(COMMON + 0x1A, 2, vector)
        for offset, gpa in zip((0x20, 0x28, 0x30), ring.addresses, strict=True):
            self.mmio.write(COMMON + offset, 4, gpa)
            self.mmio.write(COMMON + offset + 4, 4, 0)
        self.mmio.write(COMMON + 0x1C, 2, 1)
        assert self.mmio.read(COMMON + 0x1C, 2) == 1
        return ring

    def drive(self, features: int = F_VERSION_1, **options: Any) -> Any:
        """Bring the device up through the modern interface with one queue."""
        self.map()
        assert self.accept(features)
        ring = self.add_queue(**options)
        self.mmio.write(COMMON + 0x14, 1, 15)
        return ring

    def kick(self, index: int = 0) -> None:
        self.mmio.write(NOTIFY + 4 * index, 2, index)


# Configuration space, as QEMU 7.2 shows it with default properties

CAPABILITIES = {
    0x40: (0x01100009, 0x00000004, 0x00000000, 0x00001000),
    0x50: (0x03104009, 0x00000004, 0x00001000, 0x00001000),
    0x60: (0x04105009, 0x00000004, 0x00002000, 0x00001000),
    0x70: (0x02146009, 0x00000004, 0x00003000, 0x00001000, 0x00000004),
    0x84: (0x05147009, 0x00000000, 0x00000000, 0x00000000, 0x00000000),
}
DEVICES: list[tuple[Callable[[], Any], int, int, int, int, int, int]] = [
    # device, IDs, class and revision, subsystem, size of BAR 0, MSI-X vectors, features
    (VirtioConsole, 0x10031AF4, 0x07800000, 0x00031AF4, 64, 2, 0x101_30000006),
    (make_balloon, 0x10021AF4, 0x00FF0000, 0x00051AF4, 64, 0, 0x101_30000032),
    (make_rng, 0x10051AF4, 0x00FF0000, 0x00041AF4, 32, 2, 0x101_30000000),
    (make_blk, 0x10011AF4, 0x01000000, 0x00021AF4, 128, 2, 0x101_30006E54),
]


@pytest.mark.parametrize(("make", "ids", "kind", "subsystem", "bar0", "vectors", "features"), DEVICES)
def test_function_looks_as_in_qemu(
    make: Callable[[], Any], ids: int, kind: int, subsystem: int, bar0: int, vectors: int, features: int
) -> None:
    board = Board(make())
    assert board.dword(0x00) == ids
    assert board.dword(0x04) == 0x00100000
    assert board.dword(0x08) == kind
    assert board.dword(0x2C) == subsystem
    assert board.dword(0x3C) == 0x00000100
    for offset, words in CAPABILITIES.items():
        assert tuple(board.dword(offset + 4 * place) for place in range(len(words))) == words
    if vectors:
        assert board.dword(0x34) == 0x98
        assert [board.dword(offset) for offset in (0x98, 0x9C, 0xA0)] == [(vectors - 1) << 16 | 0x8411, 1, 0x801]
    else:
        assert board.dword(0x34) == 0x84
    for index, expected in ((0, -bar0 & 0xFFFFFFFF | 1), (1, 0xFFFFF000 if vectors else 0), (4, 0xFFFFC00C)):
        board.function.config_write(0x10 + 4 * index, 4, 0xFFFFFFFF)
        assert board.dword(0x10 + 4 * index) == expected
    board.map()
    assert board.features() == features
    assert board.ports.read(BAR0, 4) == features & 0xFFFFFFFF | 0x49000000
    assert board.mmio.read(COMMON + 0x12, 2) == len(board.device.queues)


def test_modern_only() -> None:
    board = Board(make_blk(), disable_legacy=True)
    assert [board.dword(offset) for offset in (0x00, 0x08, 0x2C)] == [0x10421AF4, 0x01000001, 0x11001AF4]
    assert 0 not in board.function.bars
    board.map()
    assert board.ports.read(BAR0, 4) == 0xFFFFFFFF


def test_legacy_only() -> None:
    board = Board(VirtioConsole(), disable_modern=True)
    assert [board.dword(offset) for offset in (0x00, 0x08, 0x34)] == [0x10031AF4, 0x07800000, 0x40]
    assert [board.dword(offset) for offset in (0x40, 0x44, 0x48)] == [0x00010011, 1, 0x801]
    assert 4 not in board.function.bars
    assert not board.device.offered_features & F_VERSION_1


def test_neither_interface_is_refused() -> None:
    with pytest.raises(ValueError, match="neither modern nor legacy mode is enabled"):
        Board(make_rng(), disable_legacy=True, disable_modern=True)


def test_properties() -> None:
    assert "vectors" in properties(VirtioBlk)
    assert "vectors" not in properties(VirtioBalloon)
    assert properties(VirtioRng)["max-bytes"].default == (1 << 63) - 1
    board = Board(make_rng(), packed=True, event_idx=False, indirect_desc=False, queue_reset=False)
    board.map()
    assert board.features() == F_VERSION_1 | F_RING_PACKED
    assert board.ports.read(BAR0, 4) == 0x49000000
    board = Board(make_rng(), any_layout=False, notify_on_empty=False, vectors=5)
    board.map()
    assert board.ports.read(BAR0, 4) == 0x70000000
    assert board.dword(0x98) >> 16 == 4
    assert board.features() == F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_RING_RESET


# Modern interface


@pytest.mark.parametrize("packed", [False, True])
def test_modern_driver_with_intx(packed: bool) -> None:
    board = Board(make_rng(), packed=True)
    ring = board.drive(F_VERSION_1 | (F_RING_PACKED if packed else 0), packed=packed)
    buffer = ring.add(writable=[4])
    board.kick()
    assert ring.collect() == [buffer]
    assert board.level
    assert board.mmio.read(ISR, 1) == 1
    assert not board.level
    assert board.mmio.read(ISR, 1) == 0


def test_modern_driver_with_msix() -> None:
    board = Board(make_rng())
    board.map()
    board.enable_msix()
    ring = board.drive(vector=1)
    assert board.mmio.read(COMMON + 0x1A, 2) == 1
    ring.add(writable=[4])
    board.kick()
    assert board.messages == [0x41]
    assert not board.level
    assert board.mmio.read(ISR, 1) == 0


def test_vectors_that_do_not_exist_read_back_as_none() -> None:
    board = Board(make_rng())
    board.drive(vector=1)
    board.mmio.write(COMMON + 0x1A, 2, 2)
    assert board.mmio.read(COMMON + 0x1A, 2) == 0xFFFF
    board.mmio.write(COMMON + 0x10, 2, 0)
    assert board.mmio.read(COMMON + 0x10, 2) == 0
    board.mmio.write(COMMON + 0x10, 2, 7)
    assert board.mmio.read(COMMON + 0x10, 2) == 0xFFFF


def test_config_change_interrupt() -> None:
    for msix in (False, True):
        device = VirtioConsole(size=(80, 25))
        board = Board(device)
        port = ConsolePort(console=True)
        device.add_port(port)
        board.map()
        if msix:
            board.enable_msix()
        board.drive()
        board.mmio.write(COMMON + 0x10, 2, 0)
        generation = board.mmio.read(COMMON + 0x15, 1)
        device.resize(port, 100, 50)
        assert board.mmio.read(COMMON + 0x15, 1) != generation
        assert board.mmio.read(DEVICE, 2) == 100
        assert board.messages == ([0x40] if msix else [])
        assert board.mmio.read(ISR, 1) == (0 if msix else 2)


def test_hostile_ring_asks_for_a_reset() -> None:
    board = Board(make_rng())
    ring = board.drive()
    ring.make_available(77)
    board.kick()
    assert board.mmio.read(COMMON + 0x14, 1) == 0x4F
    assert board.mmio.read(ISR, 1) == 2
    board.mmio.write(COMMON + 0x14, 1, 0xF)
    assert board.mmio.read(COMMON + 0x14, 1) == 0x4F
    ring = board.drive()
    assert board.mmio.read(COMMON + 0x14, 1) == 0xF
    ring.add(writable=[1])
    board.kick()
    assert len(ring.collect()) == 1


def test_status_0_resets_all_the_driver_has_set() -> None:
    board = Board(make_rng())
    ring = board.drive(vector=1)
    board.mmio.write(COMMON + 0x10, 2, 1)
    ring.add(writable=[1])
    board.kick()
    assert board.level
    board.mmio.write(COMMON + 0x14, 1, 0)
    assert not board.level
    assert board.mmio.read(COMMON + 0x10, 2) == 0xFFFF
    assert board.mmio.read(COMMON + 0x18, 8) == 0x0000_0000_FFFF_0008
    assert board.mmio.read(COMMON + 0x20, 8) == 0


def test_registers_can_be_read_in_any_width() -> None:
    board = Board(make_rng())
    ring = board.drive()
    desc = ring.addresses[0]
    assert board.mmio.read(COMMON + 0x20, 8) == desc
    assert board.mmio.read(COMMON + 0x21, 1) == desc >> 8 & 0xFF
    assert board.mmio.read(COMMON + 0x12, 4) == 0x000F_0001
    assert board.mmio.read(COMMON + 0x14, 2) == 0xF
    assert board.mmio.read(COMMON + 0x100, 4) == 0
    assert board.mmio.read(NOTIFY, 4) == 0


def test_addresses_can_be_written_whole() -> None:
    board = Board(make_rng())
    board.map()
    board.accept(F_VERSION_1)
    board.mmio.write(COMMON + 0x16, 2, 0)
    board.mmio.write(COMMON + 0x20, 8, 0x1234_5678_9ABC_DEF0)
    assert board.mmio.read(COMMON + 0x20, 8) == 0x1234_5678_9ABC_DEF0
    board.mmio.write(COMMON + 0x22, 2, 0xFFFF)
    assert board.mmio.read(COMMON + 0x20, 8) == 0x1234_5678_9ABC_DEF0, "not how a driver writes"


def test_enabled_queue_cannot_be_changed() -> None:
    board = Board(make_rng())
    ring = board.drive()
    board.mmio.write(COMMON + 0x18, 2, 4)
    board.mmio.write(COMMON + 0x20, 4, 0x9000)
    board.mmio.write(COMMON + 0x1C, 2, 0)
    assert board.mmio.read(COMMON + 0x18, 2) == 8
    assert board.mmio.read(COMMON + 0x20, 8) == ring.addresses[0]
    assert board.mmio.read(COMMON + 0x1C, 2) == 1


def test_queues_that_do_not_exist() -> None:
    board = Board(make_rng())
    board.drive()
    board.mmio.write(COMMON + 0x16, 2, 1)
    assert board.mmio.read(COMMON + 0x18, 2) == 0
    board.mmio.write(COMMON + 0x18, 2, 8)
    board.mmio.write(COMMON + 0x1C, 2, 1)
    board.kick(1)
    board.kick(1000)
    assert board.mmio.read(COMMON + 0x14, 1) == 0xF


def test_single_queue_reset() -> None:
    board = Board(make_rng())
    board.drive(F_VERSION_1 | F_RING_RESET, vector=1)
    board.mmio.write(COMMON + 0x3A, 2, 1)
    assert board.mmio.read(COMMON + 0x3A, 2) == 0
    assert board.mmio.read(COMMON + 0x1C, 2) == 0
    ring = board.add_queue()
    ring.add(writable=[1])
    board.kick()
    assert len(ring.collect()) == 1


def test_features_that_are_not_offered_are_refused() -> None:
    board = Board(make_rng())
    board.map()
    assert not board.accept(F_VERSION_1 | 1)
    assert not board.accept(F_INDIRECT_DESC)
    assert not board.accept(F_VERSION_1 | 1 << 24), "offered to legacy drivers only"
    assert board.accept(F_VERSION_1)
    board.mmio.write(COMMON + 8, 4, 0)
    board.mmio.write(COMMON + 12, 4, 0xFFFFFFFF)
    assert board.device.features == F_VERSION_1


def test_bus_master_bit_gates_access_to_ram() -> None:
    board = Board(make_rng())
    ring = board.drive()
    board.function.config_write(4, 2, 3)
    ring.add(writable=[4])
    board.kick()
    assert ring.collect() == []
    board.function.config_write(4, 2, 7)
    assert len(ring.collect()) == 1


def test_pci_configuration_access_capability() -> None:
    board = Board(make_rng())
    board.map()
    window = 0x84

    def access(bar: int, offset: int, length: int) -> None:
        board.function.config_write(window + 4, 1, bar)
        board.function.config_write(window + 8, 4, offset)
        board.function.config_write(window + 12, 4, length)

    access(4, 0x14, 1)
    board.function.config_write(window + 16, 1, 3)
    assert board.device.status == 3
    assert board.function.config_read(window + 16, 1) == 3
    access(4, 0x12, 2)
    assert board.function.config_read(window + 16, 4) & 0xFFFF == 1
    for bar, offset, length in (
        (0, 0x14, 1),
        (4, 0x3FFF, 2),
        (4, 0xFFFFFFFC, 4),
        (4, 0x14, 3),
        (4, 0x15, 2),
        (4, 0, 0),
    ):
        access(bar, offset, length)
        board.function.config_write(window + 16, 4, 0)
        board.function.config_read(window + 16, 4)
        assert board.device.status == 3


# Legacy interface


def legacy_ring(board: Board, index: int = 0) -> SplitDriver:
    board.ports.write(BAR0 + 14, 2, index)
    size = board.ports.read(BAR0 + 12, 2)
    ring = SplitDriver(board.arena, size, legacy=True)
    board.ports.write(BAR0 + 8, 4, ring.desc >> 12)
    assert board.ports.read(BAR0 + 8, 4) == ring.desc >> 12
    return ring


def test_legacy_driver_with_intx() -> None:
    board = Board(make_rng())
    board.map()
    board.ports.write(BAR0 + 18, 1, 3)
    board.ports.write(BAR0 + 4, 4, 0xFFFFFFFF & ~(1 << 30))
    assert board.device.features == board.device.offered_features & 0x3FFFFFFF
    ring = legacy_ring(board)
    board.ports.write(BAR0 + 18, 1, 7)
    ring.interrupt_at(0)
    ring.add(writable=[4])
    board.ports.write(BAR0 + 16, 2, 0)
    assert len(ring.collect()) == 1
    assert board.level
    assert board.ports.read(BAR0 + 19, 1) == 1
    assert not board.level
    board.ports.write(BAR0 + 8, 4, 0)
    assert not board.device.queues[0].ready
    board.ports.write(BAR0 + 18, 1, 0)
    assert board.ports.read(BAR0 + 18, 1) == 0


def test_legacy_driver_with_msix() -> None:
    board = Board(make_blk())
    board.map()
    assert board.ports.read(BAR0 + 20, 4) == 16384, "capacity right behind the registers"
    board.enable_msix()
    assert board.ports.read(BAR0 + 24, 4) == 16384, "behind the vectors"
    board.ports.write(BAR0 + 18, 1, 3)
    board.ports.write(BAR0 + 20, 2, 0)
    assert board.ports.read(BAR0 + 20, 2) == 0
    ring = legacy_ring(board)
    board.ports.write(BAR0 + 22, 2, 1)
    assert board.ports.read(BAR0 + 22, 2) == 1
    board.ports.write(BAR0 + 22, 2, 9)
    assert board.ports.read(BAR0 + 22, 2) == 0xFFFF
    board.ports.write(BAR0 + 22, 2, 1)
    board.ports.write(BAR0 + 18, 1, 7)
    request = ring.add([struct.pack("<IIQ", 0, 0, 0)], [512, 1])
    board.ports.write(BAR0 + 16, 2, 0)
    assert ring.collect() == [request]
    assert request.data(board.memory)[:512] == board.device.backend.node.data[:512]  # type: ignore[attr-defined]
    assert board.messages == [0x41]


def test_legacy_driver_that_takes_the_bad_feature_gets_none() -> None:
    board = Board(make_rng())
    board.map()
    board.ports.write(BAR0 + 4, 4, 0xFFFFFFFF)
    assert board.device.features == 0


def test_old_linux_never_sets_bus_master() -> None:
    board = Board(make_rng())
    board.map(command=3)
    board.ports.write(BAR0 + 18, 1, 1)
    board.ports.write(BAR0 + 18, 1, 3)
    ring = legacy_ring(board)
    board.ports.write(BAR0 + 18, 1, 7)
    ring.add(writable=[4])
    board.ports.write(BAR0 + 16, 2, 0)
    assert len(ring.collect()) == 1
    assert board.function.bus_master


def test_legacy_configuration_space_of_the_device() -> None:
    device = VirtioConsole()
    board = Board(device)
    board.map()
    assert [board.ports.read(BAR0 + 20 + offset, 1) for offset in range(4, 14)] == [31, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]
    board.ports.write(BAR0 + 14, 2, 64)
    assert board.ports.read(BAR0 + 12, 2) == 0
    assert board.ports.read(BAR0 + 8, 4) == 0


# State


def test_state_moves_to_another_board() -> None:
    board = Board(make_rng())
    ring = board.drive()
    ring.add(writable=[4])
    board.kick()
    late = ring.add(writable=[4])
    function = VirtioPciState.from_dict(board.function.save().to_dict())
    device = RngState.from_dict(board.device.save().to_dict())
    other = Board(make_rng(), board.memory)
    other.device.pause()
    other.function.load(function)
    other.device.load(device)
    assert other.level
    assert other.mmio.read(COMMON + 0x20, 8) == ring.addresses[0]
    assert other.mmio.read(ISR, 1) == 1
    assert len(ring.collect()) == 1
    other.device.resume()
    assert ring.collect() == [late]


def test_bad_states_are_refused() -> None:
    board = Board(make_rng())
    board.drive()

    def refused(**fields: Any) -> None:
        state = board.function.save()
        for name, value in fields.items():
            setattr(state, name, value)
        with pytest.raises(StateError):
            board.function.load(state)

    refused(isr=1)
    refused(isr=4, intx=True)
    refused(queue_vectors=[])
    refused(queue_vectors=[2])
    refused(config_vector=2)
    refused(config=bytes(256))
    refused(msix=None)


def test_reset_by_the_bus() -> None:
    board = Board(make_rng())
    ring = board.drive()
    ring.add(writable=[4])
    board.kick()
    board.bus.reset()
    assert not board.level
    assert board.device.status == 0
    assert not board.device.running
    assert board.mmio.read(COMMON, 4) == 0xFFFFFFFF
    ring = board.drive()
    ring.add(writable=[4])
    board.kick()
    assert len(ring.collect()) == 1


accesses = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 0x3C) | st.sampled_from([0x1000, 0x2000, 0x2004, 0x3000, 0x3004, 0x3FFC]),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([0, 1, 2, 3, 8, 11, 15, 0xFFFF, 0x1000, 0x40, 0xFFFFFFFF]) | st.integers(0, (1 << 64) - 1),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(accesses, st.booleans())
def test_hostile_register_accesses(steps: list[tuple[bool, int, int, int]], drive_first: bool) -> None:
    board = Board(VirtioConsole(max_ports=2))
    board.device.add_port(ConsolePort(name="p"))
    board.memory.write(0x1000, os.urandom(256) * 4)
    board.map()
    if drive_first:
        board.drive()
    for legacy, offset, size, wide in steps:
        value = wide & ((1 << (8 * size)) - 1)
        if legacy and size <= 4:
            board.ports.write(BAR0 + offset % 64, size, value)
            assert 0 <= board.ports.read(BAR0 + offset % 64, size) < 1 << (8 * size)
        else:
            board.mmio.write(BAR4 + offset, size, value)
            assert 0 <= board.mmio.read(BAR4 + offset, size) < 1 << (8 * size)
