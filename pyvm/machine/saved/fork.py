"""A second machine of one that runs: its state, its memory and its disks as they are at one moment.

The first machine stands still for some milliseconds.  Nothing is copied that is large: memory becomes layers that both
machines map copy-on-write (:mod:`pyvm.migration.fork_ram`), disks become images that both put overlays on
(:mod:`pyvm.machine.saved.disk_layers`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.block.errors import BlockError
from pyvm.machine.saved.disk_layers import DiskFamily, Frozen, freeze_disks
from pyvm.migration.components import (
    MAIN_RAM,
    check_machine,
    load_state,
    marks_of_machine,
    memory_of,
    ranges_of,
    state_of,
)
from pyvm.migration.fork_ram import LayeredRam, Layers
from pyvm.migration.state_file import SnapshotError
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc
    from pyvm.machine.storage import Storage


class ForkedMachine:
    """A machine at one moment, for another one to be made of, once.  Raises SnapshotError."""

    def __init__(self, pc: Pc) -> None:
        """Take it from a machine that is stopped, and goes on with what was its memory and its disks as layers."""
        storage: Storage = pc.storage
        if storage.jobs.blocks_migration:
            raise SnapshotError("block jobs are at work, and cannot be forked")
        if pc.model.sockets.modules:
            raise SnapshotError("a machine with memory modules plugged in cannot be forked")
        try:
            self.family = _family_of(pc)
            self.disks: dict[str, Frozen] = freeze_disks(pc, self.family)
            self._marks = marks_of_machine(pc)
            self._sections = state_of(pc)
            self._memory = _memory_of_devices(pc)
            self._layers: Layers | None = _freeze_memory(pc)
        except (OSError, BlockError) as error:
            raise SnapshotError(f"{getattr(error, 'strerror', None) or error}") from None

    def ram(self, size: int) -> LayeredRam:
        """Return the RAM of the machine, which has `size` bytes."""
        layers, self._layers = self._layers, None
        if layers is None or layers.size != size:
            raise SnapshotError(f"the machine does not have {size:#x} bytes of RAM")
        try:
            return LayeredRam(layers)
        except OSError as error:
            raise SnapshotError(f"the memory cannot be mapped: {error.strerror}") from None

    def load(self, pc: Pc) -> None:
        """Make `pc`, which has the RAM already and does not run, the machine that was forked."""
        try:
            check_machine(pc, self._marks, self._sections)
            blocks = memory_of(pc)
            for name, parts in self._memory.items():
                for offset, data in parts:
                    blocks[name][offset : offset + len(data)] = data
            load_state(pc, self._sections)
        except StateError as error:
            raise SnapshotError(str(error)) from None

    def close(self) -> None:
        """Give back what no machine took."""
        if self._layers is not None:
            self._layers.close()
            self._layers = None


def _family_of(pc: Pc) -> DiskFamily:
    if pc.disk_family is None:
        pc.join_family(DiskFamily())
    assert pc.disk_family is not None
    return pc.disk_family


def _freeze_memory(pc: Pc) -> Layers:
    """Let the machine's RAM be layers; return them for another machine.  Raises OSError."""
    model = pc.model
    if model.layered is None:
        layers = model.main_layers()
        model.rest_on(LayeredRam(layers, pc.memory.mapping))
        return layers.copy()
    return model.layered.freeze()


def _memory_of_devices(pc: Pc) -> dict[str, list[tuple[int, bytes]]]:
    """Return what the memory of devices holds, as offsets and bytes."""
    ranges = ranges_of(pc)
    memory: dict[str, Any] = {}
    for name, view in memory_of(pc).items():
        if name != MAIN_RAM:
            parts = ranges.get(name, [(0, len(view))])
            memory[name] = [(start, view[start:end].tobytes()) for start, end in parts]
    return memory
