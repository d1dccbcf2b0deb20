"""Virtio over PCI (virtio 1.2, section 4.1): the transport between a virtio device and the PCI bus.

A transitional function shows the legacy registers in I/O BAR 0 and the modern structures in BAR 4; each of the two can
be switched off.  The layout is QEMU's, so guests see what they know:

BAR 0  I/O, 2^n bytes  legacy registers, device configuration behind them (4.1.4.10)
BAR 1  memory, 4 KiB   MSI-X table at 0, pending bits at 0x800
BAR 4  memory, 16 KiB  64-bit, prefetchable: common configuration at 0, ISR at 0x1000, device configuration at 0x2000,
                       notifications at 0x3000, four bytes a queue
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyvm.devices.pci.constants import CAP_VENDOR, COMMAND, COMMAND_MASTER
from pyvm.devices.pci.function import BarKind, PciFunction, PciFunctionState
from pyvm.devices.properties import Properties, Property
from pyvm.devices.virtio import pci_registers as r
from pyvm.devices.virtio.constants import (
    F_ANY_LAYOUT,
    F_BAD_FEATURE,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_NOTIFY_ON_EMPTY,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    ID_BALLOON,
    ID_BLOCK,
    ID_CONSOLE,
    ID_ENTROPY,
    ID_NET,
    ID_SCSI,
    ID_VSOCK,
    ISR_CONFIG,
    ISR_QUEUE,
    LEGACY_FEATURES_MASK,
    MAX_QUEUES,
    NO_VECTOR,
    PCI_MODERN_DEVICE_BASE,
    PCI_VENDOR,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
)
from pyvm.devices.virtio.device import VirtioDevice
from pyvm.devices.virtio.queue import VirtQueue
from pyvm.devices.virtio.split import legacy_layout
from pyvm.memory import GuestMemory
from pyvm.records import record
from pyvm.state import StateError, sequence, uint

AnyVirtioDevice = VirtioDevice[Any]


@record(frozen=True)
class _Identity:
    """How a device type appears on PCI: transitional device ID, class code, default number of MSI-X vectors."""

    device: int
    class_code: int
    vectors: int | None
    """None: one for each queue and one for configuration changes."""


_IDENTITIES = {
    ID_NET: _Identity(0x1000, 0x020000, None),
    ID_BLOCK: _Identity(0x1001, 0x010000, None),
    ID_BALLOON: _Identity(0x1002, 0x00FF00, 0),
    ID_CONSOLE: _Identity(0x1003, 0x078000, 2),
    ID_SCSI: _Identity(0x1004, 0x010000, None),
    ID_ENTROPY: _Identity(0x1005, 0x00FF00, None),
    ID_VSOCK: _Identity(0x1012, 0x078000, None),
}

PCI_PROPERTIES: Properties = {
    "vectors": Property("uint32", None, "MSI-X vectors; 0: no MSI-X"),
    "disable-legacy": Property("OnOffAuto", "auto", "leave out the legacy interface"),
    "disable-modern": Property("bool", False, "leave out the modern interface"),
    "packed": Property("bool", False, "offer packed virtqueues"),
    "event_idx": Property("bool", True, "offer notification suppression by index"),
    "indirect_desc": Property("bool", True, "offer indirect descriptors"),
    "any_layout": Property("bool", True, "legacy: tell the driver that any split of a request will do"),
    "notify_on_empty": Property("bool", True, "legacy: offer an interrupt when all buffers are used"),
    "queue_reset": Property("bool", True, "offer the reset of a single queue"),
}


def properties(device: type[AnyVirtioDevice]) -> Properties:
    """Return all properties of a device type on PCI, its own and those of the transport."""
    table = {**PCI_PROPERTIES, **device.PROPERTIES}
    if _IDENTITIES[device.device_id].vectors == 0:
        del table["vectors"]
    return table


class VirtioPciState(PciFunctionState):
    """Migratable state of function and transport; the virtio device has its own record."""

    isr: int = uint(8)
    device_feature_select: int = uint(32)
    driver_feature_select: int = uint(32)
    queue_select: int = uint(16)
    config_vector: int = uint(16, NO_VECTOR)
    queue_vectors: list[int] = sequence(uint(16, NO_VECTOR), MAX_QUEUES)


class VirtioPci(PciFunction):
    """A PCI function with a virtio device behind it.

    The keywords are QEMU's properties; `vectors` None is the default of the device type.  Raises ValueError where
    they allow no interface at all, or more vectors than there can be.
    """

    def __init__(
        self,
        name: str,
        device: AnyVirtioDevice,
        memory: GuestMemory,
        *,
        vectors: int | None = None,
        disable_legacy: bool = False,
        disable_modern: bool = False,
        packed: bool = False,
        event_idx: bool = True,
        indirect_desc: bool = True,
        any_layout: bool = True,
        notify_on_empty: bool = True,
        queue_reset: bool = True,
    ) -> None:
        if disable_legacy and disable_modern:
            raise ValueError("device cannot work as neither modern nor legacy mode is enabled")
        identity = _IDENTITIES[device.device_id]
        super().__init__(
            name,
            vendor=PCI_VENDOR,
            device=PCI_MODERN_DEVICE_BASE + device.device_id if disable_legacy else identity.device,
            class_code=identity.class_code,
            revision=1 if disable_legacy else 0,
            subsystem=0x1100 if disable_legacy else device.device_id,
            interrupt_pin=1,
        )
        self.device = device
        self.isr = 0
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._queue_select = 0
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(device.queues)
        self._pci_cfg = 0
        features = F_INDIRECT_DESC if indirect_desc else 0
        features |= F_EVENT_IDX if event_idx else 0
        if not disable_modern:
            features |= F_VERSION_1 | (F_RING_PACKED if packed else 0) | (F_RING_RESET if queue_reset else 0)
            self._add_modern()
        if not disable_legacy:
            features |= F_BAD_FEATURE
            features |= (F_ANY_LAYOUT if any_layout else 0) | (F_NOTIFY_ON_EMPTY if notify_on_empty else 0)
        usual = len(device.queues) + 1 if identity.vectors is None else identity.vectors
        if found := usual if vectors is None else vectors:
            self.add_msix(found, 1)
        if not disable_legacy:
            self._add_legacy()
        device.attach(memory, features, self._queue_interrupt, self._config_interrupt)
        device.set_dma(self.bus_master)

    def _add_modern(self) -> None:
        self.add_bar(
            r.MODERN_BAR,
            r.MODERN_BAR_SIZE,
            BarKind.MEMORY64,
            prefetchable=True,
            read=self.modern_read,
            write=self.modern_write,
            name=f"{self.name} modern",
        )
        self._add_virtio_capability(r.CAP_COMMON_CFG, r.COMMON, r.STRUCTURE_SIZE)
        self._add_virtio_capability(r.CAP_ISR_CFG, r.ISR, r.STRUCTURE_SIZE)
        self._add_virtio_capability(r.CAP_DEVICE_CFG, r.DEVICE, r.STRUCTURE_SIZE)
        multiplier = r.NOTIFY_MULTIPLIER.to_bytes(4, "little")
        self._add_virtio_capability(r.CAP_NOTIFY_CFG, r.NOTIFY, r.STRUCTURE_SIZE, multiplier)
        # The window onto the BARs: software writes BAR, offset and length, then reads or writes the data.
        body = r.CAP.pack(r.CAP_HEADER + r.CAP.size + 4, r.CAP_PCI_CFG, 0, 0, 0, 0) + bytes(4)
        writable = bytes((0, 0, 0xFF, 0, 0, 0)) + b"\xff" * 12
        self._pci_cfg = self.add_capability(CAP_VENDOR, body, writable)

    def _add_virtio_capability(self, kind: int, offset: int, length: int, extra: bytes = b"") -> None:
        total = r.CAP_HEADER + r.CAP.size + len(extra)
        self.add_capability(CAP_VENDOR, r.CAP.pack(total, kind, r.MODERN_BAR, 0, offset, length) + extra)

    def _add_legacy(self) -> None:
        size = (r.LEGACY_SIZE_MSIX if self.msix is not None else r.LEGACY_SIZE) + self.device.config_size
        self.add_bar(
            0,
            1 << (size - 1).bit_length(),
            BarKind.IO,
            read=self.legacy_read,
            write=self.legacy_write,
            name=f"{self.name} legacy",
            max_access=4,
        )

    # Interrupts

    def _queue_interrupt(self, index: int) -> None:
        msix = self.msix
        if msix is not None and msix.enabled:
            vector = self._queue_vectors[index]
            if vector != NO_VECTOR:
                msix.notify(vector)
        else:
            self.isr |= ISR_QUEUE
            self.intx.set(True)

    def _config_interrupt(self) -> None:
        msix = self.msix
        if msix is not None and msix.enabled:
            if self._config_vector != NO_VECTOR:
                msix.notify(self._config_vector)
        else:
            self.isr |= ISR_CONFIG
            self.intx.set(True)

    def _read_isr(self) -> int:
        """Return what the interrupt was for; reading it ends the interrupt."""
        isr, self.isr = self.isr, 0
        self.intx.set(False)
        return isr

    def _vector(self, value: int) -> int:
        """Return the vector as the driver reads it back: NO_VECTOR where there is none of that number."""
        return value if self.msix is not None and value < self.msix.vectors else NO_VECTOR

    # Modern interface

    def modern_read(self, offset: int, size: int) -> int:
        """Read BAR 4."""
        if offset < r.ISR:
            return self._common_read(offset, size)
        if offset < r.DEVICE:
            return self._read_isr() if offset == r.ISR else 0
        if offset < r.NOTIFY:
            return self.device.config_read(offset - r.DEVICE, size)
        return 0

    def modern_write(self, offset: int, size: int, value: int) -> None:
        """Write BAR 4."""
        if offset >= r.NOTIFY:
            self.device.queue_notify((offset - r.NOTIFY) // r.NOTIFY_MULTIPLIER)
        elif offset >= r.DEVICE:
            self.device.config_write(offset - r.DEVICE, size, value)
        elif offset < r.ISR:
            self._common_write(offset, size, value)

    def _common_read(self, offset: int, size: int) -> int:
        """Read any bytes of the common configuration; behind it, zeros."""
        value = shift = 0
        while shift < 8 * size and offset < len(r.COMMON_STARTS):
            start = r.COMMON_STARTS[offset]
            inside = offset - start
            width = r.COMMON_WIDTHS[start] - inside
            value |= (self._common_field(start) >> (8 * inside)) << shift
            offset += width
            shift += 8 * width
        return value & ((1 << (8 * size)) - 1)

    def _selected(self) -> VirtQueue | None:
        queues = self.device.queues
        return queues[self._queue_select] if self._queue_select < len(queues) else None

    def _common_field(self, field: int) -> int:
        if field >= r.QUEUE_SIZE:
            queue = self._selected()
            return 0 if queue is None else self._queue_field(field, queue)
        readers: dict[int, Callable[[], int]] = {
            r.DEVICE_FEATURE_SELECT: lambda: self._device_feature_select,
            r.DEVICE_FEATURE: lambda: _word(self.device.modern_features, self._device_feature_select),
            r.DRIVER_FEATURE_SELECT: lambda: self._driver_feature_select,
            r.DRIVER_FEATURE: lambda: _word(self.device.driver_features, self._driver_feature_select),
            r.CONFIG_VECTOR: lambda: self._config_vector,
            r.NUM_QUEUES: lambda: len(self.device.queues),
            r.DEVICE_STATUS: lambda: self.device.status,
            r.CONFIG_GENERATION: lambda: self.device.generation,
            r.QUEUE_SELECT: lambda: self._queue_select,
        }
        return readers[field]()

    def _queue_field(self, field: int, queue: VirtQueue) -> int:
        values = {
            r.QUEUE_SIZE: queue.size,
            r.QUEUE_VECTOR: self._queue_vectors[queue.index],
            r.QUEUE_ENABLE: int(queue.ready),
            r.QUEUE_NOTIFY_OFF: queue.index,
            r.QUEUE_DESC: queue.desc & 0xFFFFFFFF,
            r.QUEUE_DESC + 4: queue.desc >> 32,
            r.QUEUE_DRIVER: queue.driver & 0xFFFFFFFF,
            r.QUEUE_DRIVER + 4: queue.driver >> 32,
            r.QUEUE_DEVICE: queue.device & 0xFFFFFFFF,
            r.QUEUE_DEVICE + 4: queue.device >> 32,
            r.QUEUE_NOTIFY_DATA: queue.index,
            r.QUEUE_RESET: 0,
        }
        return values[field]

    def _common_write(self, offset: int, size: int, value: int) -> None:
        """Write a field, or several whole ones; an access that begins inside of a field is not one a driver makes."""
        while size > 0 and offset < len(r.COMMON_STARTS):
            width = r.COMMON_WIDTHS.get(offset)
            if width is None:
                return
            self._write_common_field(offset, value & ((1 << (8 * min(width, size))) - 1))
            value >>= 8 * width
            offset += width
            size -= width

    def _write_common_field(self, field: int, value: int) -> None:
        if field >= r.QUEUE_SIZE:
            queue = self._selected()
            if queue is not None:
                self._write_queue_field(field, value, queue)
        elif field == r.DEVICE_FEATURE_SELECT:
            self._device_feature_select = value
        elif field == r.DRIVER_FEATURE_SELECT:
            self._driver_feature_select = value
        elif field == r.DRIVER_FEATURE:
            if self._driver_feature_select < 2:
                shift = 32 * self._driver_feature_select
                kept = self.device.driver_features & ~(0xFFFFFFFF << shift)
                self.device.write_features(kept | value << shift, legacy=False)
        elif field == r.CONFIG_VECTOR:
            self._config_vector = self._vector(value)
        elif field == r.DEVICE_STATUS:
            self._write_status(value)
        elif field == r.QUEUE_SELECT:
            self._queue_select = value

    def _write_queue_field(self, field: int, value: int, queue: VirtQueue) -> None:
        if field == r.QUEUE_VECTOR:
            self._queue_vectors[queue.index] = self._vector(value)
        elif field == r.QUEUE_RESET:
            if value == 1 and self.device.has(F_RING_RESET):
                self.device.disable_queue(queue.index)
                self._queue_vectors[queue.index] = NO_VECTOR
        elif queue.ready:
            # The driver may not change an enabled queue, nor disable it otherwise than by a reset.
            return
        elif field == r.QUEUE_SIZE:
            queue.set_size(value)
        elif field == r.QUEUE_ENABLE:
            if value == 1:
                self.device.enable_queue(queue.index)
        elif r.QUEUE_DESC <= field < r.QUEUE_DRIVER:
            queue.desc = _replace_half(queue.desc, field, value)
        elif r.QUEUE_DRIVER <= field < r.QUEUE_DEVICE:
            queue.driver = _replace_half(queue.driver, field, value)
        elif r.QUEUE_DEVICE <= field < r.QUEUE_NOTIFY_DATA:
            queue.device = _replace_half(queue.device, field, value)

    def _write_status(self, value: int) -> None:
        if value:
            self.device.set_status(value)
        else:
            self._reset_transport()

    # Legacy interface

    def _legacy_config_offset(self) -> int:
        return r.LEGACY_SIZE_MSIX if self.msix is not None and self.msix.enabled else r.LEGACY_SIZE

    def legacy_read(self, offset: int, size: int) -> int:
        """Read I/O BAR 0."""
        config = self._legacy_config_offset()
        if offset >= config:
            return self.device.config_read(offset - config, size)
        queue = self._selected()
        if offset == r.LEGACY_ISR:
            return self._read_isr()
        values = {
            r.LEGACY_DEVICE_FEATURES: self.device.offered_features & LEGACY_FEATURES_MASK,
            r.LEGACY_DRIVER_FEATURES: self.device.driver_features & LEGACY_FEATURES_MASK,
            r.LEGACY_QUEUE_PFN: queue.desc >> r.LEGACY_PAGE_SHIFT if queue is not None else 0,
            r.LEGACY_QUEUE_SIZE: queue.size if queue is not None else 0,
            r.LEGACY_QUEUE_SELECT: self._queue_select,
            r.LEGACY_STATUS: self.device.status,
            r.LEGACY_CONFIG_VECTOR: self._config_vector,
            r.LEGACY_QUEUE_VECTOR: self._queue_vectors[queue.index] if queue is not None else NO_VECTOR,
        }
        return values.get(offset, (1 << (8 * size)) - 1)

    def legacy_write(self, offset: int, size: int, value: int) -> None:
        """Write I/O BAR 0."""
        config = self._legacy_config_offset()
        queue = self._selected()
        if offset == r.LEGACY_QUEUE_NOTIFY:
            self.device.queue_notify(value & 0xFFFF)
        elif offset >= config:
            self.device.config_write(offset - config, size, value)
        elif offset == r.LEGACY_DRIVER_FEATURES:
            # Who accepts this bit accepts anything, and can be told nothing.
            self.device.write_features(0 if value & F_BAD_FEATURE else value & LEGACY_FEATURES_MASK, legacy=True)
        elif offset == r.LEGACY_QUEUE_SELECT:
            self._queue_select = value & 0xFFFF
        elif offset == r.LEGACY_STATUS:
            self._write_legacy_status(value & 0xFF)
        elif offset == r.LEGACY_CONFIG_VECTOR:
            self._config_vector = self._vector(value & 0xFFFF)
        elif queue is not None and offset == r.LEGACY_QUEUE_PFN:
            self._write_pfn(queue, value & 0xFFFFFFFF)
        elif queue is not None and offset == r.LEGACY_QUEUE_VECTOR:
            self._queue_vectors[queue.index] = self._vector(value & 0xFFFF)

    def _write_pfn(self, queue: VirtQueue, pfn: int) -> None:
        """Place a queue and enable it; page 0 disables it."""
        if queue.ready or not pfn:
            self.device.disable_queue(queue.index)
        if pfn:
            queue.desc, queue.driver, queue.device = legacy_layout(pfn << r.LEGACY_PAGE_SHIFT, queue.size)
            self.device.enable_queue(queue.index)

    def _write_legacy_status(self, value: int) -> None:
        if value == STATUS_ACKNOWLEDGE | STATUS_DRIVER and not self.bus_master:
            # Linux before 2.6.34 never sets the bus master bit.
            self.config[COMMAND] |= COMMAND_MASTER
            self.device.set_dma(True)
        self._write_status(value)

    # Configuration space

    def on_config_write(self, offset: int, size: int) -> None:
        """Follow the bus master bit, and do the access asked for through the PCI configuration access capability."""
        self.device.set_dma(self.bus_master)
        window = self._pci_cfg_window(offset, size)
        if window is not None:
            place, length = window
            data = self._pci_cfg + r.PCI_CFG_DATA
            self.modern_write(place, length, int.from_bytes(self.config[data : data + length], "little"))

    def on_config_read(self, offset: int, size: int) -> None:
        """Fetch what software is about to read through the PCI configuration access capability."""
        window = self._pci_cfg_window(offset, size)
        if window is not None:
            place, length = window
            data = self._pci_cfg + r.PCI_CFG_DATA
            self.config[data : data + length] = self.modern_read(place, length).to_bytes(length, "little")

    def _pci_cfg_window(self, offset: int, size: int) -> tuple[int, int] | None:
        """Return offset in BAR 4 and length of the access, where configuration access `offset` asks for one."""
        base = self._pci_cfg
        data = base + r.PCI_CFG_DATA
        if not base or offset >= data + 4 or offset + size <= data:
            return None
        place = int.from_bytes(self.config[base + r.PCI_CFG_OFFSET : base + r.PCI_CFG_LENGTH], "little")
        length = int.from_bytes(self.config[base + r.PCI_CFG_LENGTH : data], "little")
        bar = self.config[base + r.PCI_CFG_BAR]
        if bar != r.MODERN_BAR or length not in (1, 2, 4) or place % length or place + length > r.MODERN_BAR_SIZE:
            return None
        return place, length

    # Life

    def _reset_transport(self) -> None:
        """Reset the device and everything of the transport that the driver has set."""
        self.device.reset()
        self._device_feature_select = 0
        self._driver_feature_select = 0
        self._queue_select = 0
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(self.device.queues)
        self._read_isr()

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._reset_transport()
        super().reset()
        self.device.set_dma(self.bus_master)

    def save(self) -> VirtioPciState:
        """Return the state of function and transport; the device is saved for itself."""
        function = super().save()
        return VirtioPciState(
            config=function.config,
            intx=function.intx,
            msix=function.msix,
            isr=self.isr,
            device_feature_select=self._device_feature_select,
            driver_feature_select=self._driver_feature_select,
            queue_select=self._queue_select,
            config_vector=self._config_vector,
            queue_vectors=list(self._queue_vectors),
        )

    def load(self, state: PciFunctionState) -> None:
        """Take over a saved state; raises StateError where it is none of this function."""
        state.check()
        if not isinstance(state, VirtioPciState):
            raise StateError(f"{self.name}: the state is not that of a virtio function")
        if len(state.queue_vectors) != len(self._queue_vectors):
            raise StateError(f"{self.name}: vectors for {len(state.queue_vectors)} queues")
        vectors = [state.config_vector, *state.queue_vectors]
        if any(self._vector(vector) != vector for vector in vectors):
            raise StateError(f"{self.name}: an interrupt vector that the function does not have")
        if state.isr & ~(ISR_QUEUE | ISR_CONFIG) or bool(state.isr) != state.intx:
            raise StateError(f"{self.name}: interrupt status and interrupt line disagree")
        super().load(state)
        self.isr = state.isr
        self._device_feature_select = state.device_feature_select
        self._driver_feature_select = state.driver_feature_select
        self._queue_select = state.queue_select
        self._config_vector = state.config_vector
        self._queue_vectors = list(state.queue_vectors)
        self.device.adopt_dma(self.bus_master)


def _word(features: int, select: int) -> int:
    """Return 32 feature bits; there are two words of them."""
    return (features >> (32 * select)) & 0xFFFFFFFF if select < 2 else 0


def _replace_half(address: int, field: int, value: int) -> int:
    """Return a 64-bit address with the half that lies at `field` replaced."""
    shift = 8 * (field & 4)
    return address & ~(0xFFFFFFFF << shift) | value << shift
