"""CPUs that come and go while the machine exists, and the ACPI registers that tell the guest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvm.devices.acpi.cpu_hotplug import GPE, LEGACY_SIZE, AcpiCpuHotplug
from pyvm.devices.fwcfg import CPU_COUNT
from pyvm.errors import ConfigError
from pyvm.firmware.machine_info import CPU_HOTPLUG_BASE
from pyvm.machine import cmos
from pyvm.monitor.errors import QmpError
from pyvm.qom.types import CPU_SUFFIX
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.devices.properties import DeviceModel
    from pyvm.machine.pc import Pc

_LEVELS = ("socket-id", "die-id", "core-id", "thread-id")
_UNSET = -1
_NO_APIC_ID = 0xFFFF_FFFF


@record(eq=False)
class PluggedCpu:
    """A CPU that was plugged in, by the number of its place."""

    index: int


class CpuSockets:
    """The places for CPUs.  Errors of the user's are ConfigErrors."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        board = pc.board
        self.registers = AcpiCpuHotplug(pc.cpus.apic_ids, self, lambda: board.acpi.raise_gpe(GPE))
        board.components["cpu_hotplug"] = self.registers
        board.ports.add(
            CPU_HOTPLUG_BASE, LEGACY_SIZE, self.registers.read, self.registers.write, "acpi-cpu-hotplug", max_access=4
        )

    # ---- In

    def plug(self, model: DeviceModel, values: Mapping[str, Any]) -> PluggedCpu:
        """Put a CPU into the place that its properties name, or into the first that is free on the command line."""
        pc = self._pc
        expected = f"{pc.cpus.model.name}{CPU_SUFFIX}"
        if model.name != expected:
            raise ConfigError(f"Invalid CPU type, expected cpu type: '{expected}'")
        index = self._place(values)
        if index in pc.cpus.present:
            raise ConfigError(f"CPU[{index}] with APIC ID {pc.cpus.apic_ids[index]} exists")
        node = values.get("node-id", _UNSET)
        if node != _UNSET and node != pc.model.numa.node_of(index):
            raise ConfigError(f"invalid node-id, must be {pc.model.numa.node_of(index)}")
        pc.cpus.plug(index)
        pc.board.add_lapic(index)
        self._count()
        return PluggedCpu(index)

    def _place(self, values: Mapping[str, Any]) -> int:
        smp, apic_ids = self._pc.config.smp, self._pc.cpus.apic_ids
        if values["apic-id"] != _NO_APIC_ID:
            if values["apic-id"] not in apic_ids:
                raise ConfigError(self._no_place(values["apic-id"]))
            return apic_ids.index(values["apic-id"])
        place = {name: values[name] for name in _LEVELS}
        if place["die-id"] == _UNSET:
            place["die-id"] = 0
        most = {"socket-id": smp.sockets, "die-id": smp.dies, "core-id": smp.cores, "thread-id": smp.threads}
        for name in _LEVELS:
            if place[name] == _UNSET:
                raise ConfigError(f"CPU {name} is not set")
            if not 0 <= place[name] < most[name]:
                raise ConfigError(f"Invalid CPU {name}: {place[name]} must be in range 0:{most[name] - 1}")
        index: int = (place["socket-id"] * smp.cores + place["core-id"]) * smp.threads + place["thread-id"]
        if index >= len(apic_ids):
            raise ConfigError(f"Invalid CPU {place}: the machine has places for {len(apic_ids)} CPUs")
        return index

    def _no_place(self, apic_id: int) -> str:
        smp = self._pc.config.smp
        thread_width, core_width = (smp.threads - 1).bit_length(), (smp.cores - 1).bit_length()
        rest, thread = apic_id >> thread_width, apic_id & ((1 << thread_width) - 1)
        socket, core = rest >> core_width, rest & ((1 << core_width) - 1)
        return (
            f"Invalid CPU [socket: {socket}, die: 0, core: {core}, thread: {thread}] with APIC ID {apic_id},"
            f" valid index range 0:{len(self._pc.cpus.apic_ids) - 1}"
        )

    def _count(self) -> None:
        """Tell firmware in the guest for how many CPUs it waits when it starts next."""
        board, count = self._pc.board, self._pc.cpus.count
        cmos.describe_cpus(board.rtc, count)
        board.fw_cfg.add_integer(CPU_COUNT, count, 2)

    def announce(self, index: int) -> None:
        """Tell the guest of a new CPU."""
        self.registers.plugged(index)

    # ---- Out

    def request_eject(self, index: int, kind: str) -> None:
        """Ask the guest to let a CPU go; raises QmpError."""
        if not index:
            raise QmpError("Boot CPU is unpluggable")
        if self.registers.legacy:
            raise QmpError(f"acpi: device unplug request for not supported device type: {kind}")
        self.registers.request_eject(index)

    def is_present(self, index: int) -> bool:
        """Whether there is a CPU in a place."""
        return index in self._pc.cpus.present

    def eject(self, index: int) -> None:
        """The guest lets a CPU go."""
        pc = self._pc
        if index not in pc.cpus.present:
            return
        pc.cpus.unplug(index)
        pc.board.remove_lapic(index)
        self._count()
        pc.mainloop.call_soon(pc.model.hotplug.cpu_gone, index)

    # ---- What the guest says

    def reported(self, index: int) -> None:
        """The guest has said what became of a request."""
        self._pc.events.emit("ACPI_DEVICE_OST", {"info": self._info(index)})

    def status(self) -> list[dict[str, Any]]:
        """Return the ACPIOSTInfo of each place, once the guest knows the registers."""
        return [] if self.registers.legacy else [self._info(index) for index in range(len(self.registers.slots))]

    def _info(self, index: int) -> dict[str, Any]:
        slot = self.registers.slots[index]
        info: dict[str, Any] = {"slot-type": "CPU", "slot": str(index)}
        identifier = self._pc.model.hotplug.cpu_identifier(index)
        if identifier is not None:
            info["device"] = identifier
        return {**info, "source": slot.ost_event, "status": slot.ost_status}
