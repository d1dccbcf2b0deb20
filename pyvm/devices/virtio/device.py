"""Base of all virtio devices (virtio 1.2, chapters 2 and 3): status, feature negotiation, configuration space, queues.

A device does not know its transport.  The transport (pci.py) gives it guest RAM and two interrupts by
:meth:`VirtioDevice.attach`, and calls it for what the driver does.  Everything runs with the machine lock held:
queue notifications on the vCPU thread, the rest on the main loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar

from pyvm.devices.properties import Properties
from pyvm.devices.virtio.constants import (
    F_VERSION_1,
    LEGACY_ONLY_FEATURES,
    MAX_QUEUES,
    STATUS_DRIVER_OK,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
)
from pyvm.devices.virtio.queue import QueueState, VirtQueue
from pyvm.memory import GuestMemory
from pyvm.state import State, StateError, flag, record, sequence, uint


class VirtioState(State):
    """Migratable state that every virtio device has; devices derive theirs from it."""

    status: int = uint(8)
    driver_features: int = uint(64)
    features: int = uint(64)
    generation: int = uint(8)
    broken: bool = flag()
    legacy_started: bool = flag()
    queues: list[QueueState] = sequence(record(QueueState), MAX_QUEUES)


S = TypeVar("S", bound=VirtioState)


class VirtioDevice(Generic[S]):
    """A virtio device; subclasses give `device_id`, queues, features, configuration space and queue handling."""

    device_id: ClassVar[int]
    name: ClassVar[str]
    PROPERTIES: ClassVar[Properties] = {}
    state_type: type[S]
    """Class of the records of :meth:`save`."""

    def __init__(self, queue_sizes: Sequence[int], features: int, config_size: int) -> None:
        self.config_size = config_size
        self.offered_features = features
        self.status = 0
        self.driver_features = 0
        """What the driver has written so far."""
        self.features = 0
        """What was negotiated: settled by FEATURES_OK, or at once by a legacy driver, which knows no such thing."""
        self.generation = 0
        self.broken = False
        self.failure = ""
        """Why the device is broken, for people."""
        self.running = False
        """Whether the device may use its queues now."""
        self.on_error: Callable[[str], None] = lambda reason: None
        """Told why, when the driver broke the device."""
        self._legacy_started = False
        self._dma = True
        self._paused = False
        self._queue_interrupt: Callable[[int], None] = lambda index: None
        self._config_interrupt: Callable[[], None] = lambda: None
        self.queues = [VirtQueue(index, size, self._interrupt, self.fail) for index, size in enumerate(queue_sizes)]

    def attach(
        self,
        memory: GuestMemory,
        common_features: int,
        queue_interrupt: Callable[[int], None],
        config_interrupt: Callable[[], None],
    ) -> None:
        """Connect to a transport; once, before all else.

        `common_features` are the ring and transport features to offer beside the device's own.
        """
        self.memory = memory
        self.offered_features |= common_features
        self._queue_interrupt = queue_interrupt
        self._config_interrupt = config_interrupt
        for queue in self.queues:
            queue.attach(memory)

    def _interrupt(self, index: int) -> None:
        self._queue_interrupt(index)

    # What subclasses override

    def handle_queue(self, queue: VirtQueue) -> None:
        """Work on what the driver made available in `queue`; called only while running."""
        raise NotImplementedError

    def config(self) -> bytes:
        """Return the configuration space, `config_size` bytes."""
        return bytes(self.config_size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take a write of the driver, which lies within the configuration space."""

    def features_changed(self) -> None:
        """Follow the features that the driver accepted."""

    def driver_ready(self, ready: bool) -> None:
        """Hear that the driver set DRIVER_OK, or took it back, by a reset too."""

    def reset_device(self) -> None:
        """Return what is the subclass's own to the state after power-on."""

    def reset_queue(self, queue: VirtQueue) -> None:
        """Forget chains of `queue`, which is about to be reset alone."""

    def save_device(self) -> S:
        """Return a record with the subclass's own fields set; rewind chains that are held."""
        return self.state_type()

    def check_device(self, state: S) -> None:
        """Verify the subclass's own fields against each other; raise :class:`StateError`."""

    def load_device(self, state: S) -> None:
        """Take over the subclass's own fields."""

    # Status and features, called by the transport

    def has(self, feature: int) -> bool:
        """Return whether the driver accepted `feature`, given as a mask."""
        return bool(self.features & feature)

    @property
    def modern_features(self) -> int:
        """Return what the modern interface offers."""
        return self.offered_features & ~LEGACY_ONLY_FEATURES

    def write_features(self, features: int, *, legacy: bool) -> None:
        """Take what the driver accepts, through the legacy interface or the modern one; no effect after FEATURES_OK."""
        if self.status & STATUS_FEATURES_OK:
            return
        self.driver_features = features
        if legacy:
            self._settle_features(features & self.offered_features & ~F_VERSION_1)

    def _settle_features(self, features: int) -> None:
        self.features = features
        for queue in self.queues:
            queue.set_features(self.features)
        self.features_changed()

    def set_status(self, value: int) -> None:
        """Take a write of the status register by the driver; 0 resets."""
        if not value:
            self.reset()
            return
        if self.status & STATUS_NEEDS_RESET:
            value |= STATUS_NEEDS_RESET
        if value & STATUS_FEATURES_OK and not self.status & STATUS_FEATURES_OK:
            if self.driver_features & F_VERSION_1 and not self.driver_features & ~self.modern_features:
                self._settle_features(self.driver_features)
            else:
                value &= ~STATUS_FEATURES_OK
        changed = (value ^ self.status) & STATUS_DRIVER_OK
        self.status = value & 0xFF
        if changed:
            self.driver_ready(bool(value & STATUS_DRIVER_OK))
        self._update_running()

    def reset(self) -> None:
        """Return to the state after power-on, as after a write of 0 to the status register."""
        self.running = False
        was_ready = self.status & STATUS_DRIVER_OK or self._legacy_started
        self.status = 0
        self.driver_features = 0
        self.generation = 0
        self.broken = False
        self.failure = ""
        self._legacy_started = False
        if was_ready:
            self.driver_ready(False)
        self.reset_device()
        for queue in self.queues:
            queue.reset()
        self._settle_features(0)

    def fail(self, reason: str) -> None:
        """Stop because the driver broke the rules; only a reset brings the device back (2.1.2)."""
        if self.broken:
            return
        self.broken = True
        self.failure = reason
        self.running = False
        for queue in self.queues:
            queue.disable()
        if self.has(F_VERSION_1):
            self.status |= STATUS_NEEDS_RESET
            if self.status & STATUS_DRIVER_OK:
                self._config_interrupt()
        self.on_error(f"{self.name}: {reason}")

    # Whether it runs

    def _may_run(self) -> bool:
        ready = self.status & STATUS_DRIVER_OK or self._legacy_started
        return bool(ready) and self._dma and not (self._paused or self.broken)

    def _update_running(self) -> None:
        """Begin or cease to use the queues; what the driver made available before is worked on when it begins."""
        running = self._may_run()
        if running != self.running:
            self.running = running
            if running:
                for queue in self.queues:
                    if queue.ready:
                        self.handle_queue(queue)

    def set_dma(self, allowed: bool) -> None:
        """Say whether the transport lets the device access RAM (PCI: bus master)."""
        if allowed != self._dma:
            self._dma = allowed
            self._update_running()

    def adopt_dma(self, allowed: bool) -> None:
        """Take over, with a loaded state, whether RAM may be accessed; nothing is worked on before :meth:`resume`."""
        self._dma = allowed
        self.running = self._may_run()

    def pause(self) -> None:
        """Leave RAM alone: the machine is stopped."""
        self._paused = True
        self._update_running()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._paused = False
        self._update_running()

    # Queues, called by the transport

    def queue_notify(self, index: int) -> None:
        """Take the driver's notification that it made buffers available in queue `index`."""
        if self.running:
            if index < len(self.queues):
                self.handle_queue(self.queues[index])
        elif index < len(self.queues) and not self.has(F_VERSION_1) and self.queues[index].ready:
            # Old drivers use the device before they set DRIVER_OK.
            self._legacy_started = True
            self._update_running()

    def enable_queue(self, index: int) -> None:
        """Begin to use a queue whose size and addresses the driver has set."""
        queue = self.queues[index]
        if not self.broken and queue.enable() and self.running:
            self.handle_queue(queue)

    def disable_queue(self, index: int) -> None:
        """Reset one queue (VIRTIO_F_RING_RESET, 2.6.1; legacy: address 0)."""
        queue = self.queues[index]
        self.reset_queue(queue)
        queue.reset()

    # Configuration space

    def config_read(self, offset: int, size: int) -> int:
        """Read `size` bytes of configuration space; what lies behind its end reads as ones."""
        data = self.config()[offset : offset + size] if offset < self.config_size else b""
        return int.from_bytes(data.ljust(size, b"\xff"), "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes of configuration space; a write that does not lie within it is ignored."""
        if offset + size <= self.config_size:
            self.write_config(offset, (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little"))

    def config_changed(self) -> None:
        """Tell the driver that the device changed its configuration space."""
        self.generation = (self.generation + 1) & 0xFF
        if self.status & STATUS_DRIVER_OK:
            self._config_interrupt()

    # State

    def save(self) -> S:
        """Return all migratable state."""
        state = self.save_device()
        state.status = self.status
        state.driver_features = self.driver_features
        state.features = self.features
        state.generation = self.generation
        state.broken = self.broken
        state.legacy_started = self._legacy_started
        state.queues = [queue.save() for queue in self.queues]
        return state

    def load(self, state: S) -> None:
        """Take over a state; raise :class:`StateError` where this device cannot be in it."""
        state.check()
        if state.features & ~self.offered_features:
            raise StateError(f"{self.name}: features {state.features & ~self.offered_features:#x} are not offered")
        if len(state.queues) != len(self.queues):
            raise StateError(f"{self.name}: {len(state.queues)} queues, but the device has {len(self.queues)}")
        if state.broken and any(queue.ready for queue in state.queues):
            raise StateError(f"{self.name}: broken with a queue enabled")
        for queue, queue_state in zip(self.queues, state.queues, strict=True):
            queue.check(queue_state, state.features)
        self.check_device(state)
        self.running = False
        self.reset_device()
        self.status = state.status
        self.driver_features = state.driver_features
        self.features = state.features
        self.generation = state.generation
        self.broken = state.broken
        self._legacy_started = state.legacy_started
        for queue, queue_state in zip(self.queues, state.queues, strict=True):
            queue.load(queue_state, state.features)
        self.features_changed()
        self.load_device(state)
        self.running = self._may_run()
