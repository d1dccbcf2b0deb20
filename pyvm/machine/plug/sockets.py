"""The board's places for what sits on no bus: CPUs and memory modules.  What is in them can come and go at any time."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.firmware.affinity import Affinity
from pyvm.machine.plug.cpu import CpuSockets, PluggedCpu
from pyvm.memory import FOUR_GIB
from pyvm.records import replace

if TYPE_CHECKING:
    from pyvm.config import DeviceConfig, MemoryConfig
    from pyvm.devices.properties import DeviceModel
    from pyvm.firmware.machine_info import MachineInfo
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.memory import MemoryModule, MemorySockets
    from pyvm.machine.plug.plugging import PluggedDevice

MODULE = "pc-dimm"
"""The model of memory modules."""
_GIB = 1 << 30


def memory_room(memory: MemoryConfig) -> int:
    """Return the size of where modules may be: all that may be added, and a GiB for each so that it can be aligned."""
    added = memory.max_size - memory.size
    return added + memory.slots * _GIB if added > 0 else 0


def window_start(high_ram_end: int) -> int:
    """Return the GPA from which on modules may be: behind all other RAM, on a whole GiB."""
    return (max(high_ram_end, FOUR_GIB) + _GIB - 1) & -_GIB


class Sockets:
    """The sockets of one machine."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        self.cpus = CpuSockets(pc)

    @cached_property
    def memory(self) -> MemorySockets:
        """The slots for memory modules."""
        from pyvm.machine.plug.memory import MemorySockets

        return MemorySockets(self._pc)

    @property
    def modules(self) -> list[MemoryModule]:
        """The memory modules, by address."""
        return self.memory.modules if "memory" in vars(self) else []

    def connect(self) -> None:
        """Connect the registers that tell the guest of memory modules, where there may be some."""
        if self._pc.config.memory.slots:
            assert self.memory.registers is not None

    def plug(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> object:
        """Put a CPU or a memory module where it belongs; raises ConfigError."""
        if model.name == MODULE:
            return self.memory.plug(device, values)
        return self.cpus.plug(model, values)

    def announce(self, device: PluggedDevice) -> None:
        """Tell the guest of what was plugged in while the machine existed."""
        if isinstance(device.made, PluggedCpu):
            self.cpus.announce(device.made.index)
        else:
            self.memory.announce(device)

    def request_eject(self, device: PluggedDevice) -> None:
        """Ask the guest to let something go; raises QmpError."""
        if isinstance(device.made, PluggedCpu):
            self.cpus.request_eject(device.made.index, device.model.name)
        else:
            self.memory.request_eject(device)

    def describe(self, info: MachineInfo) -> MachineInfo:
        """Return what firmware tells the guest of the machine, with what is in the sockets and may come."""
        present = self._pc.cpus.present
        units = tuple(replace(unit, present=index in present) for index, unit in enumerate(info.processors))
        info = replace(info, processors=units)
        memory = self._pc.config.memory
        if not memory_room(memory):
            return info
        window = (window_start(info.high_ram_end), memory_room(memory))
        affinity = replace(self._affinity(info), pluggable=((*window, max(self._pc.model.numa.nodes, default=0)),))
        return replace(info, memory_slots=memory.slots, memory_window=window, affinity=affinity)

    def _affinity(self, info: MachineInfo) -> Affinity:
        """Return the nodes; memory that is plugged in belongs to one, so there is one in any case."""
        if info.affinity.memory:
            return info.affinity
        cpus = tuple((unit.apic_id, 0) for unit in info.processors)
        return Affinity(cpus, tuple((block.gpa, block.size, 0) for block in self._pc.memory.blocks))

    def status(self) -> list[dict[str, Any]]:
        """Return the ACPIOSTInfo of all places."""
        found = self.memory.status() if self._pc.config.memory.slots else []
        return found + self.cpus.status()

    def unplug(self, device: PluggedDevice) -> None:
        """Finish taking something out that the guest has let go."""
        if not isinstance(device.made, PluggedCpu):
            self.memory.unplug(device)
