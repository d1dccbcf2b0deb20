"""A machine's parts as commands of the monitor show them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.hash_order import HashOrder
from pyvm.machine.memory_backends import MemoryBackend
from pyvm.monitor.errors import QmpError
from pyvm.qom.types import CPU_SUFFIX
from pyvm.runstate import RunState

if TYPE_CHECKING:
    from pyvm.devices.pci.function import PciFunction
    from pyvm.devices.virtio.pci import VirtioPci
    from pyvm.machine.numa import Numa
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.hotplug import Hotplug
    from pyvm.machine.plug.plugging import PluggedDevice
    from pyvm.machine.qom.tree import MachineTree
    from pyvm.machine.user_objects import UserObjects
    from pyvm.memory import RamBlock

_BACKEND = "virtio-backend"


class Descriptions:
    """What can be asked about the parts of a machine."""

    hotplug: Hotplug
    numa: Numa
    objects: UserObjects

    def __init__(self, pc: Pc) -> None:
        self._pc = pc

    @cached_property
    def qom(self) -> MachineTree:
        """The tree of all objects, made when somebody first looks at it."""
        from pyvm.machine.qom.tree import MachineTree

        return MachineTree(self._pc, self.objects)

    @property
    def _is_pc(self) -> bool:
        return self._pc.config.board.type != "none"

    @property
    def generation_id(self) -> str | None:
        """The identifier that changes when the machine goes on from a saved state, where it has a device for it."""
        device = self._pc.plugger.plugged.generation_id if self._pc.initialized else None
        return None if device is None else str(device.guid)

    # ---- CPUs

    def cpu_path(self, index: int) -> str:
        """Return the path of a vCPU in the tree of objects."""
        device = self.plugged_cpu(index)
        if device is not None:
            return self.qom.plugged.object_of(device).path
        from pyvm.machine.qom.tree import cpu_number

        return f"/machine/unattached/device[{cpu_number(index)}]"

    def plugged_cpu(self, index: int) -> PluggedDevice | None:
        """Return the device that is the CPU in a place, None for one that the board came with."""
        from pyvm.machine.plug.cpu import PluggedCpu

        for device in self._pc.plugger.plugged.devices if self._pc.initialized else ():
            if isinstance(device.made, PluggedCpu) and device.made.index == index:
                return device
        return None

    def cpu_place(self, index: int) -> dict[str, int]:
        """Return where a CPU sits."""
        place, node = self.numa.place_of(index), self.numa.node_of(index)
        return place if node is None else {"node-id": node, **place}

    def hotpluggable_cpus(self) -> list[dict[str, Any]]:
        """Return a HotpluggableCPU for each place that a CPU can be in, the last place first; raises QmpError."""
        if not self._is_pc:
            raise QmpError("The feature 'query-hotpluggable-cpus' is not enabled")
        return list(self._cpu_slots())[::-1]

    def _cpu_slots(self) -> Iterator[dict[str, Any]]:
        pc = self._pc
        for index in range(pc.config.smp.max_cpus):
            slot: dict[str, Any] = {
                "type": f"{pc.cpus.model.name}{CPU_SUFFIX}",
                "vcpus-count": 1,
                "props": self.cpu_place(index),
            }
            if pc.initialized and index in pc.cpus.present:
                slot["qom-path"] = self.cpu_path(index)
            yield slot

    def add_cpu(self, index: int) -> None:
        """Plug a CPU in; raises QmpError."""
        smp = self._pc.config.smp
        if not 0 <= index < smp.max_cpus:
            raise QmpError(f"Unable to add CPU: {index}, max allowed: {smp.max_cpus - 1}")
        if index in self._pc.cpus.present:
            raise QmpError(f"Unable to add CPU: {index}, it already exists")
        driver = f"{self._pc.cpus.model.name}{CPU_SUFFIX}"
        self.hotplug.add({"driver": driver, **self.numa.place_of(index)})

    def vcpu_states(self) -> list[dict[str, Any]]:
        """Return program counter and whether it is halted of each vCPU."""
        cpus = self._pc.cpus
        with cpus.paused():
            found = [cpus.registers(index) for index in cpus.present]
        return [{"pc": item["rip"] + item["cs"][1], "halted": item["activity"] != "running"} for item in found]

    # ---- Memory

    def memory_backends(self) -> list[dict[str, Any]]:
        """Return the Memdev of each memory backend, in the order in which QEMU lists them."""
        found = {item.id: item for item in self.objects if isinstance(item, MemoryBackend)}
        order = [name for name in HashOrder(item.id for item in self.objects) if name in found]
        return [found[name].info() for name in reversed(order)]

    def memory_sizes(self) -> dict[str, int]:
        """Return a MemoryInfo."""
        base = self._pc.config.memory.size if self._is_pc else 0
        return {"base-memory": base, "plugged-memory": sum(module.size for module in self._modules())}

    def _modules(self) -> list[RamBlock]:
        return [module.block for module in self._pc.model.sockets.modules] if self._pc.initialized else []

    def memory_devices(self) -> list[dict[str, Any]]:
        """Return a MemoryDeviceInfo for each memory module, by address."""
        found = []
        devices = {id(device.made): device for device in self._pc.plugger.plugged.devices}
        for module in self._pc.model.sockets.modules:
            data: dict[str, Any] = {} if module.identifier is None else {"id": module.identifier}
            data |= {
                "memdev": f"/objects/{module.backend.id}",
                "hotplugged": devices[id(module)].hotplugged,
                "addr": module.block.gpa,
                "hotpluggable": True,
                "size": module.block.size,
                "slot": module.slot,
                "node": module.node,
            }
            found.append({"type": "dimm", "data": data})
        return found

    def ospm_status(self) -> list[dict[str, Any]]:
        """Return the ACPIOSTInfo of each place for memory and CPUs; raises QmpError where there is no ACPI."""
        if not self._is_pc:
            raise QmpError("command is not supported, missing ACPI device")
        return self._pc.model.sockets.status()

    # ---- PCI and virtio

    def pci_buses(self) -> list[dict[str, Any]]:
        """Return a PciInfo for each bus below a host bridge."""
        if not self._is_pc:
            return []
        from pyvm.machine.pci_description import describe_bus

        return [describe_bus(self._pc.board.pci, self._identifier)]

    def _identifier(self, function: PciFunction) -> str:
        for device in self._pc.plugger.plugged.devices:
            if device.made is function:
                return device.config.id or ""
        return ""

    def virtio_devices(self) -> list[dict[str, Any]]:
        """Return the VirtioInfo of each virtio device, the newest first."""
        from pyvm.devices.virtio.pci import VirtioPci

        found = [device.made for device in self._pc.plugger.plugged.devices if isinstance(device.made, VirtioPci)]
        return [
            {"path": f"{self.qom.device_path(function)}/{_BACKEND}", "name": function.device.name}
            for function in reversed(found)
        ]

    def _virtio(self, path: str, what: str = "VirtIODevice") -> VirtioPci:
        """Return the transport of the device at a path; raises QmpError where that is not `what` it should be."""
        from pyvm.devices.virtio.pci import VirtioPci

        for device in self._pc.plugger.plugged.devices:
            function = device.made
            if isinstance(function, VirtioPci) and f"{self.qom.device_path(function)}/{_BACKEND}" == path:
                return function
        raise QmpError(f"Path {path} is not a {what}")

    def virtio_status(self, path: str) -> dict[str, Any]:
        """Return the VirtioStatus of the device at a path; raises QmpError."""
        from pyvm.machine.virtio_status import device_status

        function = self._virtio(path)
        state = function.save()
        running = self._pc.run_state is RunState.RUNNING
        return device_status(function.device, running=running, isr=state.isr, selected=state.queue_select)

    def virtio_queue(self, path: str, queue: int) -> dict[str, Any]:
        """Return the VirtQueueStatus of a queue; raises QmpError."""
        from pyvm.machine.virtio_status import find_queue, queue_status

        device = self._virtio(path).device
        return queue_status(device, find_queue(device, queue))

    def virtio_element(self, path: str, queue: int, index: int | None) -> dict[str, Any]:
        """Return what is in a queue at a place, by default the next to be used; raises QmpError."""
        from pyvm.machine.virtio_status import find_queue, queue_element

        device = self._virtio(path, "VirtIO device").device
        return queue_element(device, self._pc.memory, find_queue(device, queue), index)
