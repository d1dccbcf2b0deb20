"""A PCI function: configuration space, BARs, capabilities and the INTx pin.

PCI Local Bus Specification 3.0, chapter 6.  Devices derive from or hold a :class:`PciFunction`; the
:class:`pyvm.devices.pci.bus.PciBus` routes configuration accesses to it and maps its BARs where the guest put them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Protocol

from pyvm import records
from pyvm.devices.pci import constants as c
from pyvm.devices.pci.msix import Msix, MsixState, default_pba_offset
from pyvm.irq import IrqLine
from pyvm.memory import DeviceRam, IoRegion, ReadHandler, WriteHandler
from pyvm.state import State, StateError, blob, flag, optional, record


class BarKind(enum.Enum):
    """The address space that a BAR lies in."""

    IO = "io"
    MEMORY = "memory"
    MEMORY64 = "memory64"


@records.record
class Window:
    """Registers of a function that the bus maps where `locate` says; None: not decoded now."""

    name: str
    size: int
    io: bool
    locate: Callable[[], int | None]
    read: ReadHandler
    write: WriteHandler
    min_access: int = 1
    max_access: int = 8
    ram: DeviceRam | None = None
    region: IoRegion | None = None
    """Where the bus has mapped it; the bus's own."""


@records.record(frozen=True)
class Bar:
    """What was declared of one base address register."""

    index: int
    size: int
    kind: BarKind
    window: Window

    @property
    def offset(self) -> int:
        """The offset of the register in configuration space."""
        return c.BAR0 + 4 * self.index


class Bus(Protocol):
    """What a function needs of the bus it is plugged into."""

    def update_mappings(self, function: PciFunction) -> None:
        """Addresses or decoding of the function's windows may have changed."""

    def intx_changed(self, function: PciFunction, level: bool) -> None:
        """The function's INTx pin changed as seen from outside."""

    def send_msi(self, address: int, data: int) -> None:
        """Deliver a message signalled interrupt."""


class PciFunctionState(State):
    """Configuration space, the level the device drives its INTx pin to, and MSI-X where there is one."""

    config: bytes = blob(c.CONFIG_SIZE, exact=True)
    intx: bool = flag()
    msix: MsixState | None = optional(record(MsixState))


class PciFunction:
    """Configuration space and interrupt pin of one function, and what hangs on them.

    `class_code` is base class, subclass and programming interface, 24 bits.  `interrupt_pin` is 0 for none, 1 for INTA.
    `config` may be filled in further while the device is built; `write_mask` has ones where software can write, and
    `reset_values` what those bits are after a reset.
    """

    def __init__(
        self,
        name: str,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem_vendor: int = 0x1AF4,
        subsystem: int = 0x1100,
        interrupt_pin: int = 0,
    ) -> None:
        self.name = name
        self.config = bytearray(c.CONFIG_SIZE)
        self.write_mask = bytearray(c.CONFIG_SIZE)
        self.reset_values = bytearray(c.CONFIG_SIZE)
        self.clear_mask = bytearray(c.CONFIG_SIZE)
        """Ones where writing a one clears the bit."""
        self.identifier = ""
        """The ID that the user gave the device, for messages."""
        self.bus: Bus | None = None
        self.slot = -1
        self.fn = 0
        self.bars: dict[int, Bar] = {}
        self.windows: list[Window] = []
        self.rom_size = 0
        """Bytes of the expansion ROM; 0 where there is none."""
        self.msix: Msix | None = None
        self._msix_control = 0
        self._claimed = bytearray(c.CONFIG_SIZE)
        self._intx_asserted = False
        self.intx = IrqLine(self._intx_driven)
        """The INTx pin as the device drives it: level triggered."""
        self._set(c.VENDOR_ID, 2, vendor)
        self._set(c.DEVICE_ID, 2, device)
        self._set(c.REVISION_ID, 1, revision)
        self._set(c.CLASS_CODE, 3, class_code)
        self._set(c.SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor)
        self._set(c.SUBSYSTEM_ID, 2, subsystem)
        self._set(c.INTERRUPT_PIN, 1, interrupt_pin)
        self.set_writable(c.COMMAND, 2, c.COMMAND_WRITABLE)
        self.set_writable(c.CACHE_LINE_SIZE, 1, 0xFF)
        self.set_writable(c.INTERRUPT_LINE, 1, 0xFF)
        self.clear_mask[c.STATUS : c.STATUS + 2] = c.STATUS_ERRORS.to_bytes(2, "little")

    # -- building ---------------------------------------------------------------------------------------------------

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self.config[offset : offset + size], "little")

    def _set(self, offset: int, size: int, value: int) -> None:
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def set_writable(self, offset: int, size: int, mask: int, reset: int = 0) -> None:
        """Let software write the bits of `mask` in the register of `size` bytes at `offset`; `reset` is its value."""
        self.write_mask[offset : offset + size] = mask.to_bytes(size, "little")
        self.reset_values[offset : offset + size] = reset.to_bytes(size, "little")
        self._set(offset, size, self._get(offset, size) & ~mask | reset)

    def add_bar(
        self,
        index: int,
        size: int,
        kind: BarKind,
        *,
        name: str,
        read: ReadHandler | None = None,
        write: WriteHandler | None = None,
        ram: DeviceRam | None = None,
        prefetchable: bool = False,
        min_access: int = 1,
        max_access: int = 8,
    ) -> Bar:
        """Declare BAR `index` of `size` bytes, a power of two.

        The handlers get offsets into it; a BAR that is all memory has `ram` instead.
        """
        if ram is not None:
            read, write = ram.read, ram.write
        if read is None or write is None:
            raise ValueError(f"{self.name}: BAR {index} has neither handlers nor memory")
        smallest = 4 if kind is BarKind.IO else 16
        last = c.BAR_COUNT - (2 if kind is BarKind.MEMORY64 else 1)
        taken = set(self.bars) | {bar.index + 1 for bar in self.bars.values() if bar.kind is BarKind.MEMORY64}
        wanted = {index, index + 1} if kind is BarKind.MEMORY64 else {index}
        if size < smallest or size & (size - 1) or not 0 <= index <= last or taken & wanted:
            raise ValueError(f"{self.name}: BAR {index} of {size} bytes is not possible")
        window = Window(
            name, size, kind is BarKind.IO, lambda: self.bar_address(index), read, write, min_access, max_access, ram
        )
        bar = Bar(index, size, kind, window)
        flags = c.BAR_SPACE_IO
        if kind is not BarKind.IO:
            flags = (c.BAR_PREFETCH if prefetchable else 0) | (c.BAR_TYPE_64 if kind is BarKind.MEMORY64 else 0)
        width = 8 if kind is BarKind.MEMORY64 else 4
        self._set(bar.offset, width, flags)
        self.set_writable(bar.offset, width, -size & ((1 << (8 * width)) - 1), flags)
        self.bars[index] = bar
        self.windows.append(window)
        return bar

    def add_window(self, window: Window) -> None:
        """Declare registers that are placed by other means than a BAR, as those of old chip sets are."""
        self.windows.append(window)

    def add_rom(self, content: bytes, size: int | None = None) -> None:
        """Give the function an expansion ROM, as firmware looks for one that runs on the processor.

        `size` is that of its BAR, a power of two; by default as much as the content needs.
        """
        self.rom_size = size = max(c.ROM_SMALLEST, size or 1 << (len(content) - 1).bit_length())
        rom = content.ljust(size, b"\xff")
        self.set_writable(c.ROM_BAR, 4, -size & 0xFFFFFFFF | c.ROM_ENABLE)

        def read(offset: int, size: int) -> int:
            return int.from_bytes(rom[offset : offset + size], "little")

        self.windows.append(Window(f"{self.name} rom", size, False, self.rom_address, read, lambda *_: None))
        self._config_changed()

    def add_capability(self, cap_id: int, body: bytes, writable: bytes | None = None) -> int:
        """Put a capability at the head of the list; return its offset in configuration space.

        `body` is what follows the two bytes of the header; `writable`, as long as `body`, has ones where software can
        write.  Raises ValueError where configuration space is full.
        """
        mask = bytes(len(body)) if writable is None else writable
        if len(mask) != len(body):
            raise ValueError(f"{self.name}: capability {cap_id:#x}: body and mask differ in length")
        length = -(-(len(body) + 2) // 4) * 4
        for offset in range(c.FIRST_CAPABILITY, c.CONFIG_SIZE - length + 1, 4):
            if not any(self._claimed[offset : offset + length]):
                break
        else:
            raise ValueError(f"{self.name}: no room for capability {cap_id:#x}")
        self._claimed[offset : offset + length] = b"\1" * length
        end = offset + 2 + len(body)
        self.config[offset:end] = bytes((cap_id, self.config[c.CAPABILITIES])) + body
        self.write_mask[offset:end] = b"\0\0" + mask
        self.reset_values[offset:end] = b"\0\0" + bytes(a & b for a, b in zip(body, mask, strict=True))
        self.config[c.CAPABILITIES] = offset
        self._set(c.STATUS, 2, self._get(c.STATUS, 2) | c.STATUS_CAPABILITIES)
        return offset

    def add_msix(self, vectors: int, bar: int, table_offset: int = 0, pba_offset: int | None = None) -> Msix:
        """Give the function MSI-X with its table in memory BAR `bar`.

        The BAR is made for the purpose unless it exists: then its handlers pass accesses to those two areas on to
        :meth:`Msix.read` and :meth:`Msix.write`.
        """
        if pba_offset is None:
            pba_offset = table_offset + default_pba_offset(vectors)
        msix = Msix(vectors, table_offset, pba_offset, self._msix_control_word, self._send_msi)
        if bar not in self.bars:
            self.add_bar(
                bar,
                msix.bar_size,
                BarKind.MEMORY,
                read=msix.read,
                write=msix.write,
                name=f"{self.name} msix",
                min_access=4,
                max_access=8,
            )
        body = (vectors - 1).to_bytes(2, "little") + (table_offset | bar).to_bytes(4, "little")
        body += (pba_offset | bar).to_bytes(4, "little")
        control = (c.MSIX_CONTROL_ENABLE | c.MSIX_CONTROL_MASK).to_bytes(2, "little")
        self._msix_control = self.add_capability(c.CAP_MSIX, body, control + bytes(8)) + c.MSIX_CONTROL
        self.msix = msix
        return msix

    def _msix_control_word(self) -> int:
        return self._get(self._msix_control, 2) if self._msix_control else 0

    # -- what the guest sees ----------------------------------------------------------------------------------------

    def config_read(self, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4) of configuration space; all ones outside of it."""
        if offset < 0 or offset + size > c.CONFIG_SIZE:
            return (1 << (8 * size)) - 1
        self.on_config_read(offset, size)
        return self._get(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4) of configuration space, as far as the bits can be written."""
        if offset < 0 or offset + size > c.CONFIG_SIZE:
            return
        for place in range(offset, offset + size):
            byte = value & 0xFF
            value >>= 8
            mask = self.write_mask[place]
            self.config[place] = (self.config[place] & ~mask | byte & mask) & ~(byte & self.clear_mask[place])
        self._config_changed()
        self.on_config_write(offset, size)

    def on_config_read(self, offset: int, size: int) -> None:
        """Overridable: software is about to read; the device may bring `config` up to date."""

    def on_config_write(self, offset: int, size: int) -> None:
        """Overridable: software has written; `config` holds the result."""

    def _config_changed(self) -> None:
        if self.msix is not None:
            self.msix.control_written()
        if self.bus is not None:
            self.bus.update_mappings(self)
        self._update_intx()

    @property
    def command(self) -> int:
        """The command register."""
        return self.config[c.COMMAND] | self.config[c.COMMAND + 1] << 8

    @property
    def bus_master(self) -> bool:
        """Whether the function may read and write guest memory and send messages."""
        return bool(self.config[c.COMMAND] & c.COMMAND_MASTER)

    def bar_address(self, index: int) -> int | None:
        """Return the address in BAR `index`, None where the function does not decode it.

        Address 0, and addresses that end at the top of the space as they do while software finds out the size, are
        never decoded.
        """
        bar = self.bars[index]
        if bar.kind is BarKind.IO:
            enabled, limit = self.command & c.COMMAND_IO, c.PORT_COUNT
            address = self._get(bar.offset, 4) & ~c.BAR_IO_FLAGS
        else:
            enabled, limit = self.command & c.COMMAND_MEMORY, 1 << 32
            wide = bar.kind is BarKind.MEMORY64
            address = self._get(bar.offset, 8 if wide else 4) & ~c.BAR_MEMORY_FLAGS
            if wide and address >> 32:
                limit = 1 << c.PHYSICAL_ADDRESS_BITS
        return address if enabled and address > 0 and address + bar.size < limit else None

    def rom_address(self) -> int | None:
        """Return where the expansion ROM is; None where the function does not decode it."""
        value = self._get(c.ROM_BAR, 4)
        address = value & -self.rom_size
        enabled = value & c.ROM_ENABLE and self.command & c.COMMAND_MEMORY
        return address if enabled and 0 < address < (1 << 32) - self.rom_size else None

    # -- interrupts -------------------------------------------------------------------------------------------------

    def _intx_driven(self, level: bool) -> None:
        if level:
            self.config[c.STATUS] |= c.STATUS_INTERRUPT
        else:
            self.config[c.STATUS] &= ~c.STATUS_INTERRUPT
        self._update_intx()

    def _update_intx(self) -> None:
        """Show the pin outside: not while software disabled it or chose MSI-X."""
        using_msix = self.msix is not None and self.msix.enabled
        level = self.intx.level and not using_msix and not self.command & c.COMMAND_INTX_DISABLE
        if level != self._intx_asserted:
            self._intx_asserted = level
            if self.bus is not None:
                self.bus.intx_changed(self, level)

    @property
    def intx_asserted(self) -> bool:
        """The level of the INTx pin as seen from outside."""
        return self._intx_asserted

    def _send_msi(self, address: int, data: int) -> None:
        if self.bus is not None and self.bus_master:
            self.bus.send_msi(address, data)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on: nothing decoded, no interrupt."""
        for offset, mask in enumerate(self.write_mask):
            kept = self.config[offset] & ~mask & ~self.clear_mask[offset]
            self.config[offset] = kept | self.reset_values[offset] & mask
        if self.msix is not None:
            self.msix.reset()
        self.intx.set(False)
        self._config_changed()

    def save(self) -> PciFunctionState:
        """Return what software made of configuration space, INTx and MSI-X."""
        msix = None if self.msix is None else self.msix.save()
        return PciFunctionState(bytes(self.config), self.intx.level, msix)

    def load(self, state: PciFunctionState) -> None:
        """Take over a saved state, map the BARs and drive INTx again.

        Raises StateError where the state is of another kind of function.
        """
        state.check()
        for offset, (ours, theirs) in enumerate(zip(self.config, state.config, strict=True)):
            fixed = ~self.write_mask[offset] & ~self.clear_mask[offset] & 0xFF
            if offset == c.STATUS:
                fixed &= ~c.STATUS_INTERRUPT
            if (ours ^ theirs) & fixed:
                raise StateError(f"{self.name}: configuration space differs at {offset:#x} in what cannot be written")
        if (state.msix is None) != (self.msix is None):
            raise StateError(f"{self.name}: only one of machine and state has MSI-X")
        if self.msix is not None and state.msix is not None:
            self.msix.check(state.msix)
        self.config[:] = state.config
        self.config[c.STATUS] = self.config[c.STATUS] & ~c.STATUS_INTERRUPT | (c.STATUS_INTERRUPT if state.intx else 0)
        if self.msix is not None and state.msix is not None:
            self.msix.load(state.msix)
        self.intx.set(state.intx)
        self._config_changed()
