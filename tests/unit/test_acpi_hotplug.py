"""The register blocks of ACPI hot-plugging: PCI slots, processors, memory slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.acpi import cpu_hotplug as cpu
from pyvm.devices.acpi import memory_hotplug as memory
from pyvm.devices.acpi import pci_hotplug as pci
from pyvm.state import State, StateError


class Machine:
    """What the registers act on; everything that they ask for is noted."""

    def __init__(self) -> None:
        self.events = 0
        self.ejected: list[object] = []
        self.told: list[int] = []
        self.present = {0, 2}
        self.modules = {1: memory.Module(0x1_2000_0000, 3 << 32 | 5, 7)}

    def raise_event(self) -> None:
        self.events += 1

    def reported(self, place: int) -> None:
        self.told.append(place)

    def is_present(self, index: int) -> bool:
        return index in self.present

    def module(self, slot: int) -> memory.Module | None:
        return self.modules.get(slot)

    def removable(self, bus: int) -> int:
        return 0xFFFF_FFF0 if bus == 0 else 0

    def acpi_index(self, bus: int, slot: int) -> int:
        return 100 * bus + slot


class Slots(Machine):
    def eject(self, bus: int, slot: int) -> None:
        self.ejected.append((bus, slot))


class Places(Machine):
    def eject(self, index: int) -> None:
        self.ejected.append(index)
        self.present.discard(index)
        self.modules.pop(index, None)


def pci_block() -> tuple[pci.AcpiPciHotplug, Slots]:
    machine = Slots()
    return pci.AcpiPciHotplug(machine, machine.raise_event), machine


def cpu_block() -> tuple[cpu.AcpiCpuHotplug, Places]:
    machine = Places()
    return cpu.AcpiCpuHotplug((0, 1, 8, 9), machine, machine.raise_event), machine


def memory_block() -> tuple[memory.AcpiMemoryHotplug, Places]:
    machine = Places()
    return memory.AcpiMemoryHotplug(3, machine, machine.raise_event), machine


# ---- PCI


def test_a_new_device_is_told_of_once() -> None:
    block, machine = pci_block()
    block.plugged(0, 5)
    block.plugged(3, 6)
    assert machine.events == 2
    assert block.read(pci.UP, 4) == 1 << 5
    assert block.read(pci.UP, 4) == 0
    block.write(pci.BUS_SELECT, 4, 3)
    assert block.read(pci.BUS_SELECT, 4) == 3
    assert block.read(pci.UP, 4) == 1 << 6


def test_a_device_goes_when_the_guest_lets_it_go() -> None:
    block, machine = pci_block()
    block.request_eject(1, 31)
    block.request_eject(1, 4)
    block.write(pci.BUS_SELECT, 4, 1)
    assert block.read(pci.DOWN, 4) == 1 << 31 | 1 << 4
    assert machine.ejected == []
    block.write(pci.EJECT, 4, 1 << 4 | 1 << 9)
    assert machine.ejected == [(1, 4), (1, 9)]
    assert block.read(pci.DOWN, 4) == 1 << 31
    block.finish()
    assert machine.ejected[2:] == [(1, 31)]
    assert block.read(pci.DOWN, 4) == 0


def test_the_guest_is_told_once_to_look_at_everything() -> None:
    block, machine = pci_block()
    assert block.read(pci.RESCAN, 4) == 0
    block.request_rescan()
    assert machine.events == 1
    block.write(pci.BUS_SELECT, 4, 0xFFFF_FFFF)
    block.write(pci.RESCAN, 4, 0)
    saved = block.save()
    assert [block.read(pci.RESCAN, 4), block.read(pci.RESCAN, 4)] == [1, 0]
    block.load(saved)
    assert block.read(pci.RESCAN, 4) == 1
    block.load(saved)
    block.reset()
    assert block.read(pci.RESCAN, 4) == 0


def test_what_can_go_and_what_a_device_is_called() -> None:
    block, _ = pci_block()
    assert block.read(pci.REMOVABLE, 4) == 0xFFFF_FFF0
    block.write(pci.BUS_SELECT, 4, 2)
    block.write(pci.ACPI_INDEX, 4, 1 << 7)
    assert block.read(pci.ACPI_INDEX, 4) == 207
    assert block.read(pci.ACPI_INDEX, 4) == 0


def test_a_bus_that_cannot_be() -> None:
    block, machine = pci_block()
    block.request_eject(0, 4)
    block.write(pci.BUS_SELECT, 4, pci.MAX_BUSES)
    assert block.read(pci.BUS_SELECT, 4) == 0xFFFF_FFFF
    assert block.read(pci.DOWN, 4) == block.read(pci.REMOVABLE, 4) == 0
    block.write(pci.EJECT, 4, 1 << 4)
    assert machine.ejected == []


# ---- Processors


def test_the_older_interface_until_the_selector_is_written() -> None:
    block, machine = cpu_block()
    assert block.read(0, 1) == 0b1
    assert block.read(1, 1) == 0b1  # APIC ID 8
    assert block.read(0, 4) == 0x101
    block.plugged(1)
    block.write(cpu.FLAGS, 1, cpu.EJECT)
    assert (machine.events, machine.ejected) == (1, [])
    block.write(cpu.SELECTOR, 4, 0)
    assert block.read(cpu.FLAGS, 1) == cpu.ENABLED
    block.reset()
    assert not block.legacy


def test_processors_come_and_go() -> None:
    block, machine = cpu_block()
    block.write(cpu.SELECTOR, 4, 0)
    machine.present.add(3)
    block.plugged(3)
    block.request_eject(2)
    found = []
    for _ in range(2):
        block.write(cpu.COMMAND, 1, cpu.NEXT_WITH_EVENT)
        flags = block.read(cpu.FLAGS, 1)
        found.append((block.read(cpu.COMMAND_DATA, 4), flags))
        block.write(cpu.FLAGS, 1, flags & (cpu.INSERTED | cpu.REMOVING))
    assert found == [(2, cpu.ENABLED | cpu.REMOVING), (3, cpu.ENABLED | cpu.INSERTED)]
    block.write(cpu.COMMAND, 1, cpu.NEXT_WITH_EVENT)
    assert not block.read(cpu.FLAGS, 1) & (cpu.INSERTED | cpu.REMOVING)
    block.write(cpu.SELECTOR, 4, 2)
    block.write(cpu.FLAGS, 1, cpu.EJECT)
    assert machine.ejected == [2]
    assert block.read(cpu.FLAGS, 1) == 0


def test_the_first_processor_stays() -> None:
    block, machine = cpu_block()
    block.write(cpu.SELECTOR, 4, 0)
    block.write(cpu.FLAGS, 1, cpu.EJECT)
    assert machine.ejected == []
    assert block.read(cpu.FLAGS, 1) == cpu.ENABLED


def test_what_the_guest_says_of_a_processor() -> None:
    block, machine = cpu_block()
    block.write(cpu.SELECTOR, 4, 3)
    for command, value in ((cpu.OST_EVENT, 0x103), (cpu.OST_STATUS, 0x84)):
        block.write(cpu.COMMAND, 1, command)
        block.write(cpu.COMMAND_DATA, 4, value)
    assert machine.told == [3]
    assert (block.slots[3].ost_event, block.slots[3].ost_status) == (0x103, 0x84)
    block.write(cpu.COMMAND, 1, cpu.ARCHITECTURE_ID)
    assert block.read(cpu.COMMAND_DATA, 4) == 9
    assert block.read(cpu.COMMAND_DATA_2, 4) == 0
    block.write(cpu.FLAGS, 1, cpu.FIRMWARE_EJECT)
    assert block.read(cpu.FLAGS, 1) == cpu.FIRMWARE_EJECT


# ---- Memory


def test_what_is_in_a_slot() -> None:
    block, _ = memory_block()
    assert block.read(memory.FLAGS, 1) == 0
    assert block.read(memory.SIZE_LOW, 4) == 0
    block.write(memory.SELECTOR, 4, 1)
    words = [block.read(offset, 4) for offset in range(0, memory.FLAGS, 4)]
    assert words == [0x2000_0000, 1, 5, 3, 7]
    assert block.read(memory.FLAGS, 1) == memory.ENABLED


def test_modules_come_and_go() -> None:
    block, machine = memory_block()
    block.write(memory.SELECTOR, 4, 1)
    block.plugged(1)
    assert block.read(memory.FLAGS, 1) == memory.ENABLED | memory.INSERTED
    block.write(memory.FLAGS, 1, memory.INSERTED)
    block.request_eject(1)
    assert machine.events == 2
    assert block.read(memory.FLAGS, 1) == memory.ENABLED | memory.REMOVING
    block.write(memory.FLAGS, 1, memory.REMOVING)
    block.write(memory.OST_EVENT, 4, 3)
    block.write(memory.OST_STATUS, 4, 0x84)
    assert (block.slots[1].ost_event, block.slots[1].ost_status, machine.told) == (3, 0x84, [1])
    block.write(memory.FLAGS, 1, memory.EJECT)
    assert machine.ejected == [1]
    block.write(memory.FLAGS, 1, memory.EJECT)
    assert machine.ejected == [1]
    assert block.read(memory.FLAGS, 1) == 0


def test_a_slot_that_is_not_there() -> None:
    block, machine = memory_block()
    block.write(memory.SELECTOR, 4, 3)
    assert [block.read(offset, 4) for offset in range(0, memory.BLOCK_SIZE, 4)] == [0] * 6
    block.write(memory.FLAGS, 1, memory.EJECT)
    block.write(memory.OST_STATUS, 4, 1)
    assert (machine.ejected, machine.told) == ([], [])


# ---- All of them

MAKERS: list[Callable[[], tuple[object, Machine]]] = [pci_block, cpu_block, memory_block]


@pytest.mark.parametrize("make", MAKERS)
@settings(max_examples=60, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.booleans(), st.integers(0, 0x20), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFF_FFFF)),
        max_size=40,
    )
)
def test_whatever_a_guest_does_leaves_a_state_that_can_be_loaded(
    make: Callable[[], tuple[pci.AcpiPciHotplug, Machine]], accesses: list[tuple[bool, int, int, int]]
) -> None:
    block, _ = make()
    for write, offset, size, value in accesses:
        if write:
            block.write(offset, size, value & ((1 << 8 * size) - 1))
        else:
            assert block.read(offset, size) >= 0
    state = block.save()
    kind: type[State] = type(state)
    other, _ = make()
    other.load(kind.from_dict(state.to_dict()))  # type: ignore[arg-type]
    assert other.save() == state
    block.reset()


def test_states_that_cannot_be() -> None:
    with pytest.raises(StateError, match="there is no bus 256"):
        pci_block()[0].load(pci.AcpiPciHotplugState(selected=256))
    with pytest.raises(StateError, match="1 places, not 4"):
        cpu_block()[0].load(cpu.AcpiCpuHotplugState([cpu.CpuSlotState()]))
    with pytest.raises(StateError, match="no command 9"):
        cpu_block()[0].load(cpu.AcpiCpuHotplugState([cpu.CpuSlotState() for _ in range(4)], command=9))
    with pytest.raises(StateError, match="0 slots, not 3"):
        memory_block()[0].load(memory.AcpiMemoryHotplugState())
