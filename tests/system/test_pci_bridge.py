"""PCI-to-PCI bridges: configuration cycles and accesses that pass, interrupts, what firmware does, plugging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.pci import bridge as b
from pyvm.devices.pci.bridge import PciBridge
from pyvm.devices.pci.bus import PciBus
from pyvm.devices.pci.function import BarKind, PciFunction
from pyvm.errors import ConfigError
from pyvm.memory import IoSpace
from pyvm.state import StateError
from tests.system.machine_rig import Machine

COMMAND, BAR0 = 0x04, 0x10


class Bench:
    """A bus with a bridge in slot 3 and a card in slot 5 behind it."""

    def __init__(self) -> None:
        self.ports, self.mmio = IoSpace("I/O"), IoSpace("memory")
        self.pins: list[tuple[int, int, bool]] = []
        self.messages: list[tuple[int, int]] = []
        self.bus = PciBus(
            self.ports,
            self.mmio,
            lambda slot, pin, level: self.pins.append((slot, pin, level)),
            lambda address, data: self.messages.append((address, data)),
        )
        self.bridge = PciBridge("pci-bridge", self.ports, self.mmio, chassis=1)
        self.bus.attach(self.bridge, 3)
        self.card = PciFunction("card", vendor=1, device=2, class_code=0, interrupt_pin=2)
        for index, kind in enumerate((BarKind.MEMORY, BarKind.IO)):
            self.card.add_bar(
                index, 4096 if index == 0 else 16, kind, name="bar", read=lambda o, s: 0x5A, write=lambda o, s, v: None
            )
        self.bridge.secondary_bus.attach(self.card, 5)

    def write(self, bus: int, slot: int, offset: int, size: int, value: int) -> None:
        self.bus.address_write(0, 4, 0x80000000 | bus << 16 | slot << 11 | offset & 0xFC)
        self.bus.data_write(offset & 3, size, value)

    def read(self, bus: int, slot: int, offset: int, size: int) -> int:
        self.bus.address_write(0, 4, 0x80000000 | bus << 16 | slot << 11 | offset & 0xFC)
        return self.bus.data_read(offset & 3, size)

    def set_up(self) -> None:
        """Number the bus, open the windows, and place the card in them."""
        for register, value in ((b.SECONDARY_BUS, 7), (b.SUBORDINATE_BUS, 9)):
            self.write(0, 3, register, 1, value)
        self.write(0, 3, b.MEMORY_BASE, 2, 0xE000)
        self.write(0, 3, b.MEMORY_LIMIT, 2, 0xE010)
        self.write(0, 3, b.IO_BASE, 1, 0xC0)
        self.write(0, 3, b.IO_LIMIT, 1, 0xC0)
        self.write(0, 3, COMMAND, 2, 7)
        self.write(7, 5, BAR0, 4, 0xE0012000)
        self.write(7, 5, BAR0 + 4, 4, 0xC100)
        self.write(7, 5, COMMAND, 2, 7)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_bridge_is_what_it_says(bench: Bench) -> None:
    assert bench.read(0, 3, 0, 4) == 0x00011B36
    assert bench.read(0, 3, 0x08, 4) >> 8 == 0x060400
    assert bench.read(0, 3, 0x0E, 1) == 1
    assert bench.read(0, 3, 0x34, 1)
    capability = bench.read(0, 3, 0x34, 1)
    assert bench.read(0, 3, capability, 4) == 0x0120 << 16 | 0x0004
    with pytest.raises(ValueError, match="Bridge chassis not specified"):
        PciBridge("pci-bridge", bench.ports, bench.mmio, chassis=0)


def test_configuration_cycles_pass_by_the_number_of_the_bus(bench: Bench) -> None:
    assert bench.read(7, 5, 0, 4) == 0xFFFFFFFF
    bench.set_up()
    assert bench.read(7, 5, 0, 4) == 0x00020001
    assert bench.read(8, 5, 0, 4) == 0xFFFFFFFF
    assert bench.read(0, 5, 0, 4) == 0xFFFFFFFF


def test_accesses_pass_through_open_windows_only(bench: Bench) -> None:
    bench.set_up()
    assert bench.mmio.read(0xE0012000, 1) == 0x5A
    assert bench.ports.read(0xC100, 1) == 0x5A
    bench.write(0, 3, b.MEMORY_LIMIT, 2, 0xE000)
    assert bench.mmio.read(0xE0012000, 1) == 0x5A
    bench.write(0, 3, b.MEMORY_BASE, 2, 0xE010)
    assert bench.mmio.read(0xE0012000, 1) == 0xFF
    bench.write(0, 3, COMMAND, 2, 2)
    assert bench.ports.read(0xC100, 1) == 0xFF


def test_prefetchable_windows_reach_above_4_gib(bench: Bench) -> None:
    bench.set_up()
    for register, size, value in (
        (b.PREFETCH_BASE, 2, 0x1000),
        (b.PREFETCH_LIMIT, 2, 0x1000),
        (b.PREFETCH_BASE_UPPER, 4, 2),
        (b.PREFETCH_LIMIT_UPPER, 4, 2),
    ):
        bench.write(0, 3, register, size, value)
    assert bench.bridge.prefetchable_range() == (0x210000000, 0x2100FFFFF)
    assert bench.bridge.forwards(0x210000000, 4096, io=False)
    assert not bench.bridge.forwards(0x210100000, 4096, io=False)


def test_pins_are_turned_by_the_slot(bench: Bench) -> None:
    bench.card.intx.set(True)
    assert bench.pins == [(3, (5 + 1) % 4, True)]
    bench.card.intx.set(False)
    assert bench.pins[-1] == (3, 2, False)
    bench.bridge.secondary_bus.send_msi(0xFEE00000, 5)
    assert bench.messages == [(0xFEE00000, 5)]


def test_a_reset_of_the_secondary_bus_reaches_what_is_behind(bench: Bench) -> None:
    bench.set_up()
    bench.write(0, 3, b.BRIDGE_CONTROL, 2, b.CONTROL_RESET)
    assert bench.read(7, 5, COMMAND, 2) == 0
    bench.bus.reset()
    assert bench.bridge.numbers == (0, 0, 0)


def test_bridges_behind_bridges(bench: Bench) -> None:
    inner = PciBridge("pci-bridge", bench.ports, bench.mmio, chassis=2)
    bench.bridge.secondary_bus.attach(inner, 1)
    bench.set_up()
    bench.bridge.secondary_bus.detach(bench.card)
    inner.secondary_bus.attach(bench.card, 5)
    for register, value in ((b.SECONDARY_BUS, 8), (b.SUBORDINATE_BUS, 8)):
        bench.write(7, 1, register, 1, value)
    assert bench.read(8, 5, 0, 4) == 0x00020001
    assert bench.mmio.read(0xE0012000, 1) == 0xFF
    bench.write(7, 1, b.MEMORY_BASE, 2, 0xE000)
    bench.write(7, 1, b.MEMORY_LIMIT, 2, 0xE000)
    bench.write(7, 1, COMMAND, 2, 7)
    assert bench.mmio.read(0xE0012000, 1) == 0x5A
    bench.write(0, 3, COMMAND, 2, 0)
    assert bench.mmio.read(0xE0012000, 1) == 0xFF
    bench.card.intx.set(True)
    assert bench.pins[-1] == (3, (1 + 5 + 1) % 4, True)


def test_state_survives(bench: Bench) -> None:
    bench.set_up()
    state = bench.bridge.save()
    other = Bench()
    other.card.load(bench.card.save())
    other.bridge.load(state)
    assert other.mmio.read(0xE0012000, 1) == 0x5A
    with pytest.raises(StateError):
        other.card.load(state)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 31), st.integers(0, 255),
                          st.sampled_from([1, 2, 4]), st.integers(0, 0xFFFFFFFF)), max_size=30))  # fmt: skip
def test_no_configuration_write_does_harm(writes: list[tuple[int, int, int, int, int]]) -> None:
    bench = Bench()
    bench.set_up()
    for bus, slot, offset, size, value in writes:
        slot = (3, 5)[slot % 2]  # noqa: PLW2901 - where something is
        bench.write((0, 7, bus)[bus % 3], slot, offset & -size, size, value & ((1 << 8 * size) - 1))
        bench.read(bus, slot, offset & -size, size)


# ---- In a machine


@contextmanager
def machine(*options: str) -> Iterator[Machine]:
    with Machine("-device", "pci-bridge,id=br0,chassis_nr=1", *options) as made:
        yield made


def bridge_info(made: Machine) -> dict[str, Any]:
    (root,) = made.execute("query-pci")
    found: dict[str, Any] = next(item for item in root["devices"] if item["qdev_id"] == "br0")["pci_bridge"]
    return found


def test_firmware_opens_the_bridge_for_what_is_behind() -> None:
    with machine("-device", "virtio-rng-pci,id=r0,bus=br0,addr=3") as made:
        info = bridge_info(made)
        assert (info["bus"]["number"], info["bus"]["secondary"], info["bus"]["subordinate"]) == (0, 1, 1)
        (device,) = info["devices"]
        assert (device["bus"], device["slot"], device["qdev_id"]) == (1, 3, "r0")
        for region in device["regions"]:
            kind = "io" if region["type"] == "io" else "prefetchable" if region["prefetch"] else "memory"
            window = info["bus"][f"{kind}_range"]
            assert window["base"] <= region["address"]
            assert region["address"] + region["size"] - 1 <= window["limit"]


def test_an_empty_bridge_has_room_for_what_may_come() -> None:
    with machine() as made:
        ranges = bridge_info(made)["bus"]
        sizes = {name: ranges[name]["limit"] + 1 - ranges[name]["base"] for name in ranges if name.endswith("_range")}
        assert sizes == {"io_range": 4096, "memory_range": 2 << 20, "prefetchable_range": 2 << 20}


def test_devices_come_to_and_go_from_the_bus_behind() -> None:
    with machine() as made:
        made.execute("device_add", driver="virtio-rng-pci", id="r1", bus="br0", addr="4")
        assert made.get("/machine/peripheral/r1", "parent_bus") == "/machine/peripheral/br0/br0"
        for name in ("br0", "r1"):
            made.execute("device_del", id=name)
        made.execute("system_reset")
        assert [data.get("device") for name, data in made.take_events() if name == "DEVICE_DELETED"] == [None, "r1"]
        left = {item["name"] for item in made.execute("qom-list", path="/machine/peripheral")}
        assert left == {"type", "br0"}, "a bridge that the machine came with stays"


def test_a_bridge_that_came_later_goes_with_all_behind_it() -> None:
    with machine() as made:
        assert made.ask("device_add", {"driver": "pci-bridge", "id": "late", "chassis_nr": 2}) == {"return": {}}
        made.execute("device_add", driver="virtio-rng-pci", id="r1", bus="late", addr="4")
        made.execute("device_del", id="late")
        made.execute("system_reset")
        left = {item["name"] for item in made.execute("qom-list", path="/machine/peripheral")}
        assert left == {"type", "br0"}
        assert made.error("device_add", driver="virtio-rng-pci", bus="late") == "Bus 'late' not found"


def test_a_bridge_needs_a_number() -> None:
    with pytest.raises(ConfigError, match="Bridge chassis not specified"):
        Machine("-device", "pci-bridge,id=br0")
