"""The 8237 pair: registers as guests probe them, and the transfers that devices make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.dma8237 import DmaPair, DmaPairState
from pyvm.memory import GuestMemory, pc_ram_blocks
from pyvm.state import StateError

RAM = 16 << 20


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(RAM, pc_ram_blocks(RAM))
    yield memory
    memory.close()


@pytest.fixture
def dma(memory: GuestMemory) -> DmaPair:
    return DmaPair(memory)


def program(dma: DmaPair, channel: int, page: int, address: int, count: int, mode: int) -> None:
    """Program a channel as a driver does: mask, flip-flop, mode, address, count less one, page, unmask."""
    controller, shift = (dma.high, 1) if channel >= 4 else (dma.low, 0)
    index = channel & 3
    controller.write(0xA << shift, 1, 4 | index)
    controller.write(0xC << shift, 1, 0)
    controller.write(0xB << shift, 1, mode | index)
    for register, value in ((2 * index, address), (2 * index + 1, count - 1)):
        controller.write(register << shift, 1, value & 0xFF)
        controller.write(register << shift, 1, value >> 8)
    dma.page_write((0x7, 0x3, 0x1, 0x2, 0xF, 0xB, 0x9, 0xA)[channel], 1, page)
    controller.write(0xA << shift, 1, index)


def test_flip_flop(dma: DmaPair) -> None:
    for controller, shift in ((dma.low, 0), (dma.high, 1)):
        controller.write(0xC << shift, 1, 0)
        controller.write(4 << shift, 1, 0x34)
        controller.write(4 << shift, 1, 0x12)
        assert [controller.read(4 << shift, 1) for _ in range(3)] == [0x34, 0x12, 0x34]
        controller.write(0xC << shift, 1, 0)
        assert controller.read(4 << shift, 1) == 0x34


def test_masks_and_status(dma: DmaPair) -> None:
    assert dma.low.read(0xF, 1) == 0xFF
    dma.low.write(0xA, 1, 2)
    assert dma.low.read(0xF, 1) == 0xFB
    dma.low.write(0xE, 1, 0)
    assert dma.low.read(0xF, 1) == 0xF0
    dma.low.write(0xF, 1, 5)
    dma.low.write(0x9, 1, 5)
    assert dma.low.read(0x8, 1) == 0x20
    dma.low.write(0x9, 1, 1)
    assert dma.low.read(0x8, 1) == 0x00
    dma.low.write(0xD, 1, 0)
    assert (dma.low.read(0xF, 1), dma.low.read(0xD, 1)) == (0xFF, 0)


def test_page_registers(dma: DmaPair) -> None:
    for port in range(16):
        dma.page_write(port, 1, port * 3)
    assert [dma.page_read(port, 1) for port in range(16)] == [port * 3 for port in range(16)]


def test_device_to_memory(dma: DmaPair, memory: GuestMemory) -> None:
    program(dma, 2, 0x12, 0x3456, 6, 0x44)
    assert dma.ready(2)
    assert dma.remaining(2) == 6
    assert dma.to_memory(2, b"abcd") == 4
    assert not dma.terminal_count(2)
    assert dma.to_memory(2, b"efgh") == 2
    assert memory.read(0x123456, 8) == b"abcdef\0\0"
    assert dma.terminal_count(2)
    assert not dma.ready(2)
    assert dma.to_memory(2, b"more") == 0
    assert dma.low.read(8, 1) == 0x04
    assert dma.low.read(8, 1) == 0x00
    assert dma.from_memory(2, 4) == b""


def test_memory_to_device_auto_init(dma: DmaPair, memory: GuestMemory) -> None:
    memory.write(0x20000, b"0123")
    program(dma, 1, 0x02, 0, 4, 0x58)
    assert dma.from_memory(1, 100) == b"0123"
    assert dma.terminal_count(1)
    assert dma.from_memory(1, 2) == b"01"
    assert dma.to_memory(1, b"x") == 0


def test_decrement_and_wrap(dma: DmaPair, memory: GuestMemory) -> None:
    program(dma, 3, 0x05, 0x0002, 5, 0x64)
    assert dma.to_memory(3, b"abcde") == 5
    assert memory.read(0x50000, 3) == b"cba"
    assert memory.read(0x5FFFE, 2) == b"ed"
    program(dma, 3, 0x05, 0xFFFE, 4, 0x44)
    dma.to_memory(3, b"wxyz")
    assert memory.read(0x5FFFE, 2) + memory.read(0x50000, 2) == b"wxyz"


def test_words(dma: DmaPair, memory: GuestMemory) -> None:
    program(dma, 5, 0x13, 0x8001, 3, 0x44)  # bit 0 of the page is not used
    assert dma.remaining(5) == 6
    assert dma.to_memory(5, b"abcdefgh") == 6
    assert memory.read(0x130002, 6) == b"abcdef"


def test_cascade_and_disable(dma: DmaPair) -> None:
    program(dma, 2, 0x12, 0, 4, 0x40)
    assert dma.to_memory(2, b"ab") == 2  # verify: counted, not stored
    assert dma.from_memory(2, 1) == b"\0"
    dma.high.write(0x8 << 1, 1, 4)
    assert not dma.ready(2)
    dma.high.write(0x8 << 1, 1, 0)
    dma.low.write(0x8, 1, 4)
    assert not dma.ready(2)


def test_no_ram(dma: DmaPair) -> None:
    program(dma, 2, 0x0A, 0, 4, 0x44)
    assert dma.to_memory(2, b"abcd") == 4
    program(dma, 2, 0x0A, 0, 4, 0x48)
    assert dma.from_memory(2, 4) == b"\xff" * 4


def test_save_load_reset(dma: DmaPair, memory: GuestMemory) -> None:
    program(dma, 2, 0x12, 0x3456, 6, 0x44)
    state = DmaPairState.from_dict(dma.save().to_dict())
    other = DmaPair(memory)
    other.load(state)
    assert other.to_memory(2, b"ab") == 2
    assert memory.read(0x123456, 2) == b"ab"
    assert state == dma.save()
    other.reset()
    assert other.save() == DmaPairState()
    state.low.mask = 16
    with pytest.raises(StateError):
        other.load(state)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["low", "high", "page", "to", "from"]), st.integers(0, 31), st.integers(0, 255)),
        max_size=60,
    )
)
def test_hostile_programming(steps: list[tuple[str, int, int]]) -> None:
    memory = GuestMemory(1 << 20, pc_ram_blocks(1 << 20))
    try:
        dma = DmaPair(memory)
        for action, port, value in steps:
            if action == "low":
                dma.low.write(port & 15, 1, value)
                assert 0 <= dma.low.read(value & 15, 1) <= 0xFF
            elif action == "high":
                dma.high.write(port, 1, value)
                assert 0 <= dma.high.read(value & 31, 1) <= 0xFF
            elif action == "page":
                dma.page_write(port & 15, 1, value)
            elif action == "to":
                assert 0 <= dma.to_memory(port & 7, bytes(value * 100)) <= value * 100
            else:
                assert len(dma.from_memory(port & 7, value * 100)) <= value * 100
        dma.load(dma.save())
    finally:
        memory.close()
