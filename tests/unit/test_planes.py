"""The window onto the planes: wide accesses are as many narrow ones."""

from __future__ import annotations

import random

import pytest

from pyvm.devices.display import registers as r
from pyvm.devices.display.planes import PlaneWindow

MEMORY = 256 << 10


def window(modes: dict[str, int]) -> tuple[PlaneWindow, memoryview]:
    sequencer, graphics, view = bytearray(8), bytearray(16), memoryview(bytearray(MEMORY))
    sequencer[r.SEQ_MEMORY], sequencer[r.SEQ_MAP_MASK] = modes["memory"], modes["mask"]
    graphics[r.GC_BIT_MASK], graphics[r.GC_MODE] = modes["bits"], modes["mode"]
    made = PlaneWindow(view, sequencer, graphics)
    made.configure(answers=True, packed=False, display_interface=False, bank=0)
    return made, view


@pytest.mark.parametrize("memory", [r.MEMORY_SEQUENTIAL, 0, r.MEMORY_SEQUENTIAL | r.MEMORY_CHAIN4])
@pytest.mark.parametrize(("mask", "bits", "mode"), [(0xF, 0xFF, 0), (0x5, 0xFF, 0), (0xF, 0x3C, 0), (0xF, 0xFF, 1)])
def test_a_wide_write_is_as_many_bytes(memory: int, mask: int, bits: int, mode: int) -> None:
    modes = {"memory": memory, "mask": mask, "bits": bits, "mode": mode}
    (wide, seen), (narrow, wanted) = window(modes), window(modes)
    wide.latch = narrow.latch = 0x11223344
    source = random.Random(1)
    for _ in range(200):
        size = source.choice((2, 4, 8))
        offset = source.choice((source.randrange(0x100), source.randrange(0xFFF0, 0x10010), source.randrange(0x20010)))
        value = source.getrandbits(8 * size)
        wide.write(offset, size, value)
        for index, byte in enumerate(value.to_bytes(size, "little")):
            narrow.write(offset + index, 1, byte)
    assert seen == wanted
    assert any(seen)
