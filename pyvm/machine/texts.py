"""A machine's parts described for people, in the form that QEMU gives such texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvm.config import MAIN_MEMORY

if TYPE_CHECKING:
    from pyvm.machine.numa import Numa
    from pyvm.machine.pc import Pc

_MIB = 1 << 20
_FIRMWARE_END = 1 << 32
_PAGE = "4 KiB"


class Texts:
    """What can be told of the parts of a machine."""

    _pc: Pc
    numa: Numa

    def irq_text(self) -> str:
        """Return how often each interrupt came, at the two kinds of interrupt controller."""
        counts = self._pc.board.irq_counts
        lines = "".join(f"{irq:2}: {count}\n" for irq, count in enumerate(counts) if count)
        return f"IRQ statistics for ioapic:\n{lines}IRQ statistics for isa-i8259:\n{lines}"

    def jit_text(self) -> str:
        """Return why guest code left the translator, and how often."""
        counters = self._pc.cpus.counters()
        width = max(map(len, counters), default=0) + 1
        lines = "".join(f"{name.replace('_', ' '):<{width}} {count}\n" for name, count in counters.items())
        return f"Translation buffer state:\n{lines}"

    def numa_text(self) -> str:
        """Return the CPUs and the memory of each NUMA node."""
        memory = self._pc.config.memory
        sizes = {number: node.size for number, node in sorted(self.numa.nodes.items())}
        if not sizes and memory.slots:
            sizes = {0: memory.size}
        plugged = dict.fromkeys(sizes, 0)
        for module in self._pc.model.sockets.modules:
            plugged[module.node] += module.block.size
        text = f"{len(sizes)} nodes\n"
        for number, size in sizes.items():
            cpus = [str(index) for index in self._pc.cpus.present if self.numa.node_of(index) == number]
            text += " ".join([f"node {number} cpus:", *cpus]) + "\n"
            more = plugged[number]
            text += f"node {number} size: {(size + more) // _MIB} MB\nnode {number} plugged: {more // _MIB} MB\n"
        return text

    def ram_text(self) -> str:
        """Return the blocks of memory that the machine has."""
        text = f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18}\n"
        offset = 0
        for name, size in self._blocks():
            text += f"{name:>24} {_PAGE:>8}  {offset:#018x} {size:#018x} {size:#018x}\n"
            offset += size
        return text

    def _blocks(self) -> Iterator[tuple[str, int]]:
        pc = self._pc
        yield pc.config.board.memory_backend or MAIN_MEMORY, pc.memory.size
        for module in pc.model.sockets.modules:
            yield module.backend.id, module.block.size
        for display in pc.displays():
            yield "vga.vram", display.vram.size

    def rom_text(self) -> str:
        """Return what firmware gets: its own file, and the tables that it hands to the guest."""
        pc, text = self._pc, ""
        if pc.config.boot.bios is not None:
            size = os.path.getsize(pc.config.boot.bios)
            text += f'addr={_FIRMWARE_END - size:016x} size={size:#08x} mem=rom name="{pc.config.boot.bios}"\n'
        for name, content in pc.tables.fw_cfg_files().items():
            text += f'/rom@{name} size={len(content):#08x} name="{name}"\n'
        return text
