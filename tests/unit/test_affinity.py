"""The ACPI tables about NUMA, byte by byte."""

from __future__ import annotations

from pyvm.firmware import acpi
from pyvm.firmware.affinity import Affinity, slit, srat
from pyvm.firmware.machine_info import MachineInfo, Processor

NODES = Affinity(
    cpus=((3, 0), (300, 0x10203)),
    memory=((0x100000, 0x200000, 0), (1 << 32, 1 << 30, 1)),
    distances=((10, 20), (30, 10)),
)


def test_srat() -> None:
    body = srat(NODES)
    assert body[:12] == b"\1\0\0\0" + bytes(8)
    local, x2apic, low, high = body[12:28], body[28:52], body[52:92], body[92:]
    assert local == bytes((0, 16, 0, 3, 1, 0, 0, 0)) + bytes(8)
    assert x2apic == bytes((2, 24, 0, 0)) + b"\x03\x02\x01\0" + b"\x2c\1\0\0" + b"\1\0\0\0" + bytes(8)
    for entry, node, gpa, length in ((low, 0, 0x100000, 0x200000), (high, 1, 1 << 32, 1 << 30)):
        assert len(entry) == 40
        assert entry[:8] == bytes((1, 40, node, 0, 0, 0, 0, 0))
        assert int.from_bytes(entry[8:16], "little") == gpa
        assert int.from_bytes(entry[16:24], "little") == length
        assert entry[24:] == bytes(4) + b"\1\0\0\0" + bytes(8)


def test_slit() -> None:
    assert slit(NODES) == (2).to_bytes(8, "little") + bytes((10, 20, 30, 10))


def test_they_are_among_the_tables() -> None:
    def tables(affinity: Affinity) -> set[str]:
        info = MachineInfo(processors=(Processor(0),), low_ram_end=1 << 24, affinity=affinity)
        return set(acpi.build(info).offsets)

    plain = tables(Affinity())
    assert not {"SRAT", "SLIT"} & plain
    assert tables(NODES) == plain | {"SRAT", "SLIT"}
    assert tables(Affinity(NODES.cpus, NODES.memory)) == plain | {"SRAT"}
