"""The MP table."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware import mptable
from pyvm.firmware.machine_info import MachineInfo, Processor
from pyvm.records import replace

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def machine_info(cpus: int) -> MachineInfo:
    return MachineInfo(tuple(Processor(number) for number in range(cpus)), low_ram_end=64 << 20)


def entries(table: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {kind: [] for kind in SIZES}
    position = 44
    while position < len(table):
        kind = table[position]
        found[kind].append(table[position : position + SIZES[kind]])
        position += SIZES[kind]
    assert position == len(table)
    return found


def test_floating_pointer() -> None:
    data = mptable.floating_pointer(0xF1230)
    assert data[:4] == b"_MP_"
    assert struct.unpack_from("<IBB", data, 4) == (0xF1230, 1, 4)
    assert sum(data) & 0xFF == 0
    assert len(data) == 16


@settings(max_examples=30)
@given(st.integers(1, 300))
def test_header(cpus: int) -> None:
    table = mptable.build(machine_info(cpus))
    assert table[:4] == b"PCMP"
    assert struct.unpack_from("<H", table, 4)[0] == len(table)
    assert sum(table) & 0xFF == 0
    assert struct.unpack_from("<HI", table, 34) == (sum(map(len, entries(table).values())), 0xFEE00000)


def test_processors() -> None:
    info = replace(machine_info(3), cpu_signature=0x663, cpu_features=0x1234)
    units = (Processor(0), Processor(1, present=False), Processor(4))
    found = entries(mptable.build(replace(info, processors=units)))[0]
    assert [struct.unpack_from("<BBBII", entry, 1) for entry in found] == [
        (0, 0x14, 3, 0x663, 0x1234),
        (4, 0x14, 1, 0x663, 0x1234),
    ]


def test_interrupts_agree_with_the_board() -> None:
    table = entries(mptable.build(machine_info(1)))
    routes = {}
    for entry in table[3]:
        _, kind, flags, bus, source, apic, pin = struct.unpack("<BBHBBBB", entry)
        assert (kind, apic) == (0, 0)
        routes[bus, source] = (pin, flags)
    assert routes[1, 0] == (2, 0)
    assert routes[1, 9] == (9, 0xD)
    assert [source for bus, source in routes if bus == 1] == [0, 1, 3, 4, 6, 7, 8, 9, 12, 13, 14, 15]
    assert routes[0, 1 << 2] == (9, 0xD)  # the power management function's INTA
    assert routes[0, 1 << 2 | 3] == (11, 0xD)
    assert [routes[0, 3 << 2 | pin][0] for pin in range(4)] == [11, 11, 10, 10]
    assert [routes[0, 4 << 2 | pin][0] for pin in range(4)] == [11, 10, 10, 11]


def test_local_interrupts() -> None:
    found = entries(mptable.build(machine_info(1)))[4]
    assert [struct.unpack("<BBHBBBB", entry) for entry in found] == [(4, 3, 0, 1, 0, 0, 0), (4, 1, 0, 1, 0, 0xFF, 1)]
