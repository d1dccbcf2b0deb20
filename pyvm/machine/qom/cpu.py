"""A vCPU as an object of the tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.cpu.cpuid import PHYSICAL_ADDRESS_BITS
from pyvm.machine.cpu_models import feature_word_infos, value_of
from pyvm.machine.qom.devices import DeviceObject
from pyvm.monitor.errors import QmpError
from pyvm.qom.types import CPU_SUFFIX, load

if TYPE_CHECKING:
    from pyvm.cpu.vcpu import VcpuSet
    from pyvm.machine.pc import Pc

_MEMORY_KIND = "link<memory-region>"


def vcpus_of(pc: Pc) -> VcpuSet:
    """Return the vCPUs of a machine."""
    return pc.cpus


class CpuObject(DeviceObject):
    """A vCPU: its features are those of the guest's CPU model."""

    def __init__(self, pc: Pc, index: int, identifier: str | None = None, *, hotplugged: bool = False) -> None:
        self._pc = pc
        cpus = vcpus_of(pc)
        kind = cpus.model.name + CPU_SUFFIX
        kind = kind if load().get(kind) else f"qemu64{CPU_SUFFIX}"
        super().__init__(kind, identifier=identifier, hotplugged=hotplugged, hotpluggable=True)
        self.index = index
        self.add("lapic", DeviceObject("apic", hotpluggable=True, getters={"id": lambda: cpus.apic_ids[index]}))

    def _value(self, name: str) -> Any:
        model = self._pc.cpus.model
        if name in self._getters:
            return self._getters[name]()
        if name in ("feature-words", "filtered-features"):
            return feature_word_infos(model, name == "filtered-features")
        if name == "unavailable-features":
            return list(model.missing)
        if name == "crash-information":
            raise QmpError("No crash occurred")
        if name == "apic-id":
            return self._pc.cpus.apic_ids[self.index]
        if name == "phys-bits":
            return PHYSICAL_ADDRESS_BITS
        place = self._pc.model.cpu_place(self.index)
        if name in place:
            return place[name]
        if name == "die-id":
            return 0
        return value_of(model, name)


def cpu_object(pc: Pc, index: int) -> CpuObject:
    """Return the object of a vCPU."""
    return CpuObject(pc, index)
