"""What firmware does to PCI."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import BarKind, PciFunction
from pyvm.devices.pci.i440fx import I440fx
from pyvm.devices.pci.piix3 import Piix3
from pyvm.firmware import pci_setup
from pyvm.firmware.machine_info import MachineInfo, Processor
from pyvm.irq import unconnected
from pyvm.memory import IoSpace

MIB = 1 << 20
GIB = 1 << 30
INFO = MachineInfo((Processor(0),), low_ram_end=512 * MIB)


class Board:
    """A bus with the chip set's bridges and a record of the ports written."""

    def __init__(self) -> None:
        self.ports, self.mmio = IoSpace("io"), IoSpace("mmio")
        self.bus = PciBus(self.ports, self.mmio, lambda slot, pin, level: None, lambda address, data: None)
        self.host = I440fx(512 * MIB)
        self.isa = Piix3([unconnected() for _ in range(16)])
        self.bus.attach(self.host, 0)
        self.bus.attach(self.isa, 1)
        self.written: dict[int, int] = {}

    def add(self, slot: int, pin: int = 1, fn: int = 0, ids: tuple[int, int] = (0x1AF4, 0x1000)) -> PciFunction:
        vendor, device = ids
        name = f"{slot}.{fn}"
        function = PciFunction(name, vendor=vendor, device=device, class_code=0xFF0000, interrupt_pin=pin)
        self.bus.attach(function, slot, fn)
        return function

    def setup(self, info: MachineInfo = INFO) -> None:
        pci_setup.setup(self.bus, info, lambda port, size, value: self.written.update({port: value}))


def bar(function: PciFunction, index: int, size: int, kind: BarKind, prefetchable: bool = False) -> None:
    function.add_bar(
        index,
        size,
        kind,
        prefetchable=prefetchable,
        read=lambda offset, length: 0,
        write=lambda offset, length, value: None,
        name=f"{function.name} bar {index}",
    )


def virtio(board: Board, slot: int, ports: int, msix: bool = True) -> PciFunction:
    function = board.add(slot)
    bar(function, 0, ports, BarKind.IO)
    if msix:
        bar(function, 1, 4096, BarKind.MEMORY)
    bar(function, 4, 0x4000, BarKind.MEMORY64, True)
    return function


def test_addresses_are_those_that_linux_sees_on_an_i440fx_machine() -> None:
    """The devices of the observed guest, but for its IDE function and the two expansion ROMs."""
    board = Board()
    vga = board.add(2, 0)
    bar(vga, 0, 16 * MIB, BarKind.MEMORY, True)
    bar(vga, 2, 4096, BarKind.MEMORY)
    net, balloon = virtio(board, 3, 32), virtio(board, 4, 64, msix=False)
    console, block = virtio(board, 5, 64), virtio(board, 6, 128)
    board.setup()
    assert vga.bar_address(0) == 0xFD000000
    assert [function.bar_address(4) for function in (net, balloon, console, block)] == [
        0xFE000000,
        0xFE004000,
        0xFE008000,
        0xFE00C000,
    ]
    assert [function.bar_address(0) for function in (block, balloon, console, net)] == [0xC000, 0xC080, 0xC0C0, 0xC100]
    memory = [function.bar_address(index) for function, index in ((vga, 2), (net, 1), (console, 1), (block, 1))]
    assert memory == [0xFEBFC000, 0xFEBFD000, 0xFEBFE000, 0xFEBFF000]


def test_interrupt_lines_follow_the_routing() -> None:
    board = Board()
    functions = [board.add(slot) for slot in range(2, 8)] + [board.add(8, 3), board.add(9, 0)]
    board.setup()
    lines = [function.config_read(0x3C, 1) for function in functions]
    assert lines == [10, 11, 11, 10, 10, 11, 10, 0]
    assert [board.isa.irq_of(pirq) for pirq in range(4)] == [10, 10, 11, 11]
    assert (board.written[0x4D0], board.written[0x4D1]) == (0, 0b1100)


def test_decoding_is_on_and_bus_mastering_is_left_to_the_system() -> None:
    board = Board()
    function = virtio(board, 3, 32)
    board.setup()
    assert function.config_read(4, 2) & 0b111 == 0b011
    assert [region.base for region in board.ports.regions()] == [0xC000]


def test_shadow_ram_is_on() -> None:
    board = Board()
    board.setup()
    assert all(segment.readable and segment.writable for segment in board.host.pam_segments())


def test_power_management_function() -> None:
    board = Board()
    function = board.add(1, 1, 3, (0x8086, 0x7113))
    for offset, size, mask in ((0x40, 4, 0xFFC0), (0x80, 1, 1), (0x90, 4, 0xFFF0), (0xD2, 1, 0xF)):
        function.set_writable(offset, size, mask)
    board.setup()
    assert function.config_read(0x3C, 1) == 9
    assert function.config_read(0x40, 4) == 0x600
    assert function.config_read(0x80, 1) == 1
    assert function.config_read(0x90, 4) == 0x700
    assert function.config_read(0xD2, 1) == 9


def test_ide_function() -> None:
    board = Board()
    function = board.add(1, 0, 1, (0x8086, 0x7010))
    function.set_writable(0x40, 4, 0xFFFFFFFF)
    board.setup()
    assert function.config_read(0x40, 4) == 0x80008000


def test_expansion_rom_gets_a_place_but_stays_off() -> None:
    board = Board()
    function = board.add(3)
    function.set_writable(0x30, 4, -0x40000 & 0xFFFFFFFF | 1)
    bar(function, 1, 4096, BarKind.MEMORY)
    board.setup()
    assert function.config_read(0x30, 4) == 0xFEB80000
    assert function.bar_address(1) == 0xFEBC0000


def test_large_64_bit_bars_move_above_4_gib() -> None:
    board = Board()
    small, large = board.add(3), board.add(4)
    bar(small, 2, MIB, BarKind.MEMORY64)
    bar(small, 1, 4096, BarKind.MEMORY)
    bar(large, 0, 16 * GIB, BarKind.MEMORY64, True)
    board.setup(MachineInfo((Processor(0),), 512 * MIB, 6 * GIB, pci_hole64_size=64 * GIB))
    assert large.bar_address(0) == 16 * GIB
    assert small.bar_address(2) == 32 * GIB
    assert small.bar_address(1) == 0xFEBFF000


def test_what_fits_nowhere_stays_without_an_address() -> None:
    board = Board()
    huge, fine = board.add(3), board.add(4)
    bar(huge, 0, 2 * GIB, BarKind.MEMORY)
    bar(huge, 1, 2 * GIB, BarKind.MEMORY)
    bar(fine, 0, 4096, BarKind.MEMORY)
    board.setup(MachineInfo((Processor(0),), 3 * GIB))
    assert fine.bar_address(0) == 0xFEBFF000
    assert [region.name for region in board.mmio.regions()] == ["4.0 bar 0"]


BARS = st.lists(st.tuples(st.sampled_from(list(BarKind)), st.integers(4, 34), st.booleans()), max_size=3)


@settings(max_examples=80, deadline=None)
@given(st.lists(BARS, max_size=12), st.sampled_from([16 * MIB, 512 * MIB, 3 * GIB]))
def test_assigned_ranges_are_aligned_apart_and_in_their_windows(
    wanted: list[list[tuple[BarKind, int, bool]]], low: int
) -> None:
    board = Board()
    for slot, bars in enumerate(wanted, start=2):
        function = board.add(slot)
        for index, (kind, order, prefetchable) in enumerate(bars):
            limit = {BarKind.IO: 8, BarKind.MEMORY: 31, BarKind.MEMORY64: 34}[kind]
            bar(function, 2 * index, 1 << min(order, limit), kind, prefetchable)
    info = MachineInfo((Processor(0),), low, pci_hole64_size=128 * GIB)
    board.setup(info)
    start64, end64 = info.pci_hole64
    taken: list[tuple[int, int]] = []
    for function in board.bus.functions():
        for declared in function.bars.values():
            address, size = function.bar_address(declared.index), declared.size
            if declared.kind is BarKind.IO:
                assert address is not None
                assert address >= 0xC000
                assert address + size <= 0x10000
            elif address:
                below = low <= address and address + size <= 0xFEC00000
                above = start64 <= address and address + size <= end64
                assert below or (above and declared.kind is BarKind.MEMORY64)
                taken.append((address, address + size))
            if address:
                assert address % size == 0
    taken.sort()
    assert all(first[1] <= second[0] for first, second in pairwise(taken))


def test_setup_can_be_done_again_after_a_reset() -> None:
    board = Board()
    function = virtio(board, 3, 32)
    board.setup()
    before = bytes(function.config)
    board.bus.reset()
    assert function.bar_address(4) is None
    board.setup()
    assert bytes(function.config) == before
