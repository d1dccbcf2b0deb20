"""Memory modules (`pc-dimm`) that come and go, and the ACPI registers that tell the guest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyvm.devices.acpi.memory_hotplug import BLOCK_SIZE, GPE, MAX_SLOTS, AcpiMemoryHotplug, Module
from pyvm.errors import ConfigError, MissingError
from pyvm.firmware.e820 import HYPERTRANSPORT_START, high_ram_end
from pyvm.firmware.machine_info import MEMORY_HOTPLUG_BASE
from pyvm.machine.memory_backends import MemoryBackend
from pyvm.machine.plug.sockets import memory_room, window_start
from pyvm.memory import RamBlock
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.config import DeviceConfig
    from pyvm.cpu.vcpu import Overlay
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.plugging import PluggedDevice

_ALIGN = 2 << 20
_ANY_SLOT = -1
_PHYSICAL_END = 1 << 40
_END_FILE = "etc/reserved-memory-end"
"""From where on firmware may map what PCI devices have."""
_HIGH_WINDOW = 2 << 30
"""What PCI gets behind the modules."""


@record(eq=False)
class MemoryModule:
    """One module in its slot."""

    identifier: str | None
    slot: int
    node: int
    backend: MemoryBackend
    block: RamBlock


class MemorySockets:
    """The slots for memory modules.  Errors of the user's are ConfigErrors."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        memory = pc.config.memory
        self._count = memory.slots
        self._room = memory_room(memory)
        self._start = window_start(high_ram_end(pc.memory.blocks))
        self.modules: list[MemoryModule] = []
        """By address."""
        self._overlays: dict[tuple[int, int], Overlay] = {}
        """What shows modules to the CPU, by GPA and size: these are made once and never given back."""
        if self._count > MAX_SLOTS:
            raise ConfigError(f"unsupported amount of memory slots: {self._count}")
        self._check_addresses()
        board = pc.board
        self.registers = AcpiMemoryHotplug(self._count, self, lambda: board.acpi.raise_gpe(GPE))
        board.components["memory_hotplug"] = self.registers
        end = window_start(self._start + self._room)
        board.fw_cfg.add_file(_END_FILE, end.to_bytes(8, "little"))
        read, write = self.registers.read, self.registers.write
        board.ports.add(MEMORY_HOTPLUG_BASE, BLOCK_SIZE, read, write, "acpi-mem-hotplug", max_access=4)

    def _check_addresses(self) -> None:
        end = window_start(self._start + self._room) + _HIGH_WINDOW
        if end > HYPERTRANSPORT_START:
            # An AMD processor, which this machine presents, has no memory there: all of it would lie above.
            last = end - self._start + (self._start - (4 << 30)) + _PHYSICAL_END - 1
            raise ConfigError(f"Address space limit {_PHYSICAL_END - 1:#x} < {last:#x} phys-bits too low (40)")

    # ---- In

    def plug(self, device: DeviceConfig, values: Mapping[str, Any]) -> MemoryModule:
        """Put a module into a slot."""
        backend = self._backend(values)
        slot = self._slot(values["slot"])
        if backend is None:
            raise ConfigError("'memdev' property must be set")
        gpa = self._address(backend.size, values["addr"])
        if backend.mapped:
            raise ConfigError(f"can't use already busy memdev: {backend.id}")
        nodes = len(self._pc.model.numa.nodes) or 1
        if values["node"] >= nodes:
            raise ConfigError(
                f"'DIMM property node has value {values['node']}' which exceeds the number of numa nodes: {nodes}"
            )
        block = RamBlock(gpa, backend.size, self._pc.memory.size + gpa - self._start)
        module = MemoryModule(device.id, slot, values["node"], backend, block)
        self._show(module)
        self.modules = sorted([*self.modules, module], key=lambda item: item.block.gpa)
        backend.mapped = True
        return module

    def _backend(self, values: Mapping[str, Any]) -> MemoryBackend | None:
        name = values["memdev"]
        if name is None:
            return None
        found = self._pc.model.objects.find(name)
        if found is None:
            raise MissingError(f"Device '{name}' not found")
        if not isinstance(found, MemoryBackend):
            raise ConfigError(f"Invalid parameter type for 'memdev', expected: {MEMORY_KIND}")
        return found

    def _slot(self, wanted: int) -> int:
        if wanted != _ANY_SLOT and not 0 <= wanted < self._count:
            last = (self._count - 1) & 0xFFFF_FFFF_FFFF_FFFF
            raise ConfigError(f"invalid slot number {wanted}, valid range is [0-{last}]")
        if not self._count:
            raise ConfigError("no slots where allocated, please specify the 'slots' option")
        taken = {module.slot for module in self.modules}
        if wanted == _ANY_SLOT:
            free = next((slot for slot in range(self._count) if slot not in taken), None)
            if free is None:
                raise ConfigError("no free slots available")
            return free
        if wanted in taken:
            raise ConfigError(f"slot {wanted} is busy")
        return wanted

    def _address(self, size: int, wanted: int) -> int:
        """Return the GPA of a new module: what is `wanted`, or the lowest place that is large enough."""
        memory = self._pc.config.memory
        used = sum(module.block.size for module in self.modules)
        if used + size > memory.max_size - memory.size:
            raise ConfigError(
                f"not enough space, currently {used:#x} in use of total space for memory devices"
                f" {memory.max_size - memory.size:#x}"
            )
        if wanted % _ALIGN:
            raise ConfigError(f"address must be aligned to {_ALIGN:#x} bytes")
        if size % _ALIGN:
            raise ConfigError(f"backend memory size must be multiple of {_ALIGN:#x}")
        end = self._start + self._room
        gpa = wanted or self._start
        if not self._start <= gpa < gpa + size <= end:
            raise ConfigError(
                f"can't add memory device [{gpa:#x}:{size:#x}], usable range for memory devices"
                f" [{self._start:#x}:{self._room:#x}]"
            )
        for module in self.modules:
            if gpa < module.block.end and module.block.gpa < gpa + size:
                if wanted:
                    raise ConfigError(f"address range conflicts with memory device id='{module.identifier or ''}'")
                gpa = (module.block.end + _ALIGN - 1) & -_ALIGN
        if gpa + size > end:
            raise ConfigError(
                "could not find position in guest address space for memory device - memory fragmented due to alignments"
            )
        return gpa

    def _show(self, module: MemoryModule) -> None:
        """Let the CPU and devices use a module."""
        pc, block = self._pc, module.block
        assert pc.model.window is not None, "there is room where there are slots"
        try:
            pc.model.window.place(module.backend, block.offset)
        except OSError as error:
            raise ConfigError(f"cannot set up guest memory '{module.backend.id}': {error.strerror}") from None
        pc.memory.plug(block)
        try:
            with pc.cpus.paused():
                self._show_to_cpu(block)
        except RuntimeError as error:
            pc.memory.unplug(block)
            pc.model.window.vacate(block.offset, block.size)
            raise ConfigError(f"cannot map memory '{module.backend.id}': {error}") from None
        pc.memory.written(block.gpa, block.size)

    def _show_to_cpu(self, block: RamBlock) -> None:
        overlay = self._overlays.get((block.gpa, block.size))
        if overlay is not None:
            overlay.show(block.gpa)
        else:
            self._overlays[block.gpa, block.size] = self._pc.cpus.overlay(block.gpa, block.size, self._pc.memory)

    def announce(self, device: PluggedDevice) -> None:
        """Tell the guest of a new module."""
        self.registers.plugged(_module_of(device).slot)

    # ---- Out

    def request_eject(self, device: PluggedDevice) -> None:
        """Ask the guest to let a module go."""
        self.registers.request_eject(_module_of(device).slot)

    def _in_slot(self, slot: int) -> MemoryModule | None:
        return next((module for module in self.modules if module.slot == slot), None)

    def module(self, slot: int) -> Module | None:
        """Return what is in a slot."""
        found = self._in_slot(slot)
        return None if found is None else Module(found.block.gpa, found.block.size, found.node)

    def eject(self, slot: int) -> None:
        """The guest lets go of what is in a slot: nobody can use it any more."""
        found = self._in_slot(slot)
        if found is None:
            return
        self._overlays[found.block.gpa, found.block.size].hide()
        self._pc.memory.unplug(found.block)
        self.modules.remove(found)
        self._pc.mainloop.call_soon(self._pc.model.hotplug.module_gone, found)

    def unplug(self, device: PluggedDevice) -> None:
        """Give back the memory of a module that the guest has let go."""
        module = _module_of(device)
        assert self._pc.model.window is not None
        self._pc.model.window.vacate(module.block.offset, module.block.size)
        module.backend.mapped = False

    # ---- What the guest says

    def reported(self, slot: int) -> None:
        """The guest has said what became of a request."""
        self._pc.events.emit("ACPI_DEVICE_OST", {"info": self._info(slot)})

    def status(self) -> list[dict[str, Any]]:
        """Return the ACPIOSTInfo of each slot."""
        return [self._info(slot) for slot in range(self._count)]

    def _info(self, slot: int) -> dict[str, Any]:
        state, module = self.registers.slots[slot], self._in_slot(slot)
        info: dict[str, Any] = {"slot-type": "DIMM", "slot": str(slot)}
        if module is not None and module.identifier is not None:
            info["device"] = module.identifier
        return {**info, "source": state.ost_event, "status": state.ost_status}


def _module_of(device: PluggedDevice) -> MemoryModule:
    assert isinstance(device.made, MemoryModule)
    return device.made


MEMORY_KIND = "link<memory-backend>"
