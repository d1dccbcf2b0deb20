"""What firmware does to the processors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvm.firmware.cpu_setup import memory_types, virtual_wire
from pyvm.firmware.machine_info import MachineInfo, Processor
from pyvm.memory import pc_ram_blocks

MIB = 1 << 20


def type_of(msrs: dict[int, int], address: int, physical_bits: int) -> int:
    """Return the memory type of an address as a processor with these MTRRs sees it."""
    if address < 0x80000:
        return msrs[0x250] >> 8 * (address >> 16) & 0xFF
    if address < 0xC0000:
        return msrs[0x258 + (address - 0x80000 >> 17)] >> 8 * (address >> 14 & 7) & 0xFF
    if address < 0x100000:
        return msrs[0x268 + (address - 0xC0000 >> 15)] >> 8 * (address >> 12 & 7) & 0xFF
    mask = msrs[0x201] & ~0xFFF
    assert mask < 1 << physical_bits
    if msrs[0x201] & 0x800 and address & mask == msrs[0x200] & mask:
        return msrs[0x200] & 0xFF
    return msrs[0x2FF] & 0xFF


@given(st.integers(2, 1 << 16), st.integers(36, 48), st.data())
def test_ram_is_cacheable_and_devices_are_not(mib: int, bits: int, data: st.DataObject) -> None:
    blocks = pc_ram_blocks(mib * MIB)
    low = max(block.end for block in blocks if block.gpa < 1 << 32)
    msrs = dict(memory_types(MachineInfo((Processor(0),), low), bits))
    assert msrs[0x2FF] == 0xC06
    block = data.draw(st.sampled_from([block for block in blocks if block.gpa != 0xC0000] or blocks[:1]))
    address = data.draw(st.integers(block.gpa, block.end - 1))
    assert type_of(msrs, address, bits) == 6
    assert type_of(msrs, low - 1, bits) == 6
    for device in (0xA0000, 0xBFFFF, 0xFEB00000, 0xFEC00000, 0xFED00000, 0xFEE00000, 0xFFFFFFFF):
        assert type_of(msrs, device, bits) == 0
    assert type_of(msrs, 0xF0000, bits) == 5


@pytest.mark.parametrize(("low", "base"), [(512 * MIB, 0x80000000), (3 << 30, 0xC0000000), (3100 * MIB, 0xE0000000)])
def test_the_hole(low: int, base: int) -> None:
    msrs = dict(memory_types(MachineInfo((Processor(0),), low), 40))
    assert msrs[0x200] == base
    assert msrs[0x201] == (1 << 40) - (1 << 32) + base + 0x800


def test_virtual_wire() -> None:
    written: dict[int, int] = {}
    virtual_wire(lambda offset, size, value: written.update({offset: value}))
    assert written == {0xF0: 0x1FF, 0x350: 0x700, 0x360: 0x400}
