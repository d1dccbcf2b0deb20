"""fw_cfg: how firmware and guest kernels ask for the machine's configuration, kernel and tables.

QEMU Firmware Configuration (fw_cfg) Device, docs/specs/fw_cfg in QEMU's documentation: selector and data ports
(0x510, 0x511) and the DMA interface (0x514).  The selector is little-endian on a PC, everything of DMA big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from pyvm.memory import GuestMemory, GuestMemoryError
from pyvm.state import State, StateError, blob, record, sequence, text, uint

# Keys
SIGNATURE: Final = 0x00
ID: Final = 0x01
UUID: Final = 0x02
RAM_SIZE: Final = 0x03
NOGRAPHIC: Final = 0x04
CPU_COUNT: Final = 0x05
MACHINE_ID: Final = 0x06
KERNEL_ADDRESS: Final = 0x07
KERNEL_SIZE: Final = 0x08
KERNEL_COMMAND_LINE: Final = 0x09
INITRD_ADDRESS: Final = 0x0A
INITRD_SIZE: Final = 0x0B
BOOT_DEVICE: Final = 0x0C
NUMA: Final = 0x0D
BOOT_MENU: Final = 0x0E
MAX_CPU_COUNT: Final = 0x0F
KERNEL_ENTRY: Final = 0x10
KERNEL_DATA: Final = 0x11
INITRD_DATA: Final = 0x12
COMMAND_LINE_ADDRESS: Final = 0x13
COMMAND_LINE_SIZE: Final = 0x14
COMMAND_LINE_DATA: Final = 0x15
SETUP_ADDRESS: Final = 0x16
SETUP_SIZE: Final = 0x17
SETUP_DATA: Final = 0x18
FILE_DIRECTORY: Final = 0x19
FILE_FIRST: Final = 0x20
FILE_SLOTS: Final = 0x1000
ACPI_TABLES: Final = 0x8000  # 0x8000 upwards: of x86 only
SMBIOS_ENTRIES: Final = 0x8001
IRQ0_OVERRIDE: Final = 0x8002
E820_TABLE: Final = 0x8003
HPET: Final = 0x8004
WRITE_CHANNEL: Final = 0x4000  # a bit of keys, without effect since writing became a matter of DMA

# Ports
DATA_PORTS: Final = 2  # 0x510: selector, 16 bits; 0x511: data, 8 bits
DMA_PORTS: Final = 8  # 0x514: address of the DMA control structure, 64 bits, big-endian

FEATURE_TRADITIONAL: Final = 1 << 0
FEATURE_DMA: Final = 1 << 1
SIGNATURE_VALUE: Final = b"QEMU"
DMA_SIGNATURE: Final = b"QEMU CFG"

# DMA control structure: control and length 32 bits, address 64 bits
DMA_STRUCTURE: Final = struct.Struct(">IIQ")
DMA_ERROR: Final = 1 << 0
DMA_READ: Final = 1 << 1
DMA_SKIP: Final = 1 << 2
DMA_SELECT: Final = 1 << 3  # the key is in the upper 16 bits
DMA_WRITE: Final = 1 << 4

FILE_NAME_LIMIT: Final = 56  # bytes with the terminating zero
_ZEROS: Final = bytes(1 << 20)

Content = bytes | Callable[[], bytes]
"""What an item holds, or what makes it at each selection."""


class _Item:
    """One item; where it is `writable`, `content` is a bytearray that keeps its length."""

    def __init__(self, content: Content, writable: bool, on_write: Callable[[int, int], None] | None) -> None:
        self.make = content if callable(content) else None
        self.data: bytes | bytearray = b"" if callable(content) else content
        self.writable = writable
        self.on_write = on_write
        if writable:
            self.data = bytearray(content() if callable(content) else content)
            self.make = None

    def refresh(self) -> None:
        if self.make is not None:
            self.data = self.make()


class FwCfgFileState(State):
    """What a guest wrote to a file."""

    name: str = text(FILE_NAME_LIMIT)
    data: bytes = blob(1 << 24)


class FwCfgState(State):
    """The selected key, the offset in its item, the upper half of the DMA address, and writable files."""

    key: int = uint(16)
    offset: int = uint(32)
    dma_address: int = uint(32)
    files: list[FwCfgFileState] = sequence(record(FwCfgFileState), FILE_SLOTS)


class FwCfg:
    """The device.  Items are added while the machine is built; files get their keys by name."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._items: dict[int, _Item] = {}
        self._files: dict[str, _Item] = {}
        self._key = 0
        self._offset = 0
        self._dma_address = 0
        self._stale = False
        """Whether the selected item is still to be made: most guests that are loaded never read on."""
        self.add_bytes(SIGNATURE, SIGNATURE_VALUE)
        self.add_integer(ID, FEATURE_TRADITIONAL | FEATURE_DMA, 4)
        self._items[FILE_DIRECTORY] = _Item(self._directory, False, None)
        self.select(SIGNATURE)

    # -- building ---------------------------------------------------------------------------------------------------

    def add_bytes(self, key: int, data: Content) -> None:
        """Set the item of `key` to `data`."""
        if key & WRITE_CHANNEL or not 0 <= key <= 0xFFFF or key & 0x3FFF >= FILE_FIRST:
            raise ValueError(f"fw_cfg: {key:#x} is not a key for an item")
        self._items[key] = _Item(data, False, None)

    def add_integer(self, key: int, value: int, size: int) -> None:
        """Set the item of `key` to a little-endian integer of `size` bytes."""
        self.add_bytes(key, value.to_bytes(size, "little"))

    def add_string(self, key: int, value: str) -> None:
        """Set the item of `key` to a string with its terminating zero."""
        self.add_bytes(key, value.encode() + b"\0")

    def add_file(
        self,
        name: str,
        data: Content,
        *,
        writable: bool = False,
        on_write: Callable[[int, int], None] | None = None,
    ) -> None:
        """Add the file `name`.  `on_write(offset, length)` hears what the guest wrote to a writable one.

        Raises ValueError where the name is taken or too long.
        """
        if not name or len(name.encode()) >= FILE_NAME_LIMIT:
            raise ValueError(f"fw_cfg: {name!r} is not between 1 and {FILE_NAME_LIMIT - 1} bytes long")
        if name in self._files:
            raise ValueError(f"duplicate fw_cfg file name: {name}")
        if len(self._files) >= FILE_SLOTS:
            raise ValueError(f"fw_cfg: no slot for file {name}")
        self._files[name] = _Item(data, writable, on_write)
        for key, known in enumerate(sorted(self._files), FILE_FIRST):
            self._items[key] = self._files[known]

    def file_key(self, name: str) -> int:
        """Return the key of file `name` as long as no other file is added; KeyError where there is none."""
        if name not in self._files:
            raise KeyError(name)
        return FILE_FIRST + sorted(self._files).index(name)

    def file_data(self, name: str) -> bytes:
        """Return what file `name` holds now; KeyError where there is none."""
        item = self._files[name]
        item.refresh()
        return bytes(item.data)

    def add_machine(self, *, uuid: bytes, ram_size: int, cpus: int, max_cpus: int, boot_menu: bool) -> None:
        """Set the items that describe the machine; `uuid` is 16 bytes, `ram_size` in bytes."""
        self.add_bytes(UUID, uuid)
        self.add_integer(RAM_SIZE, ram_size, 8)
        self.add_integer(NOGRAPHIC, 0, 2)
        self.add_integer(CPU_COUNT, cpus, 2)
        self.add_integer(MACHINE_ID, 0, 4)
        self.add_integer(MAX_CPU_COUNT, max_cpus, 2)
        self.add_integer(BOOT_MENU, boot_menu, 2)
        self.add_integer(IRQ0_OVERRIDE, 1, 1)

    def add_kernel(
        self, kernel: bytes, *, address: int, entry: int, setup: bytes = b"", setup_address: int = 0
    ) -> None:
        """Set the items of a kernel and of its real-mode part, with the GPAs where firmware puts them."""
        self.add_integer(KERNEL_ADDRESS, address, 4)
        self.add_integer(KERNEL_SIZE, len(kernel), 4)
        self.add_bytes(KERNEL_DATA, kernel)
        self.add_integer(KERNEL_ENTRY, entry, 4)
        self.add_integer(SETUP_ADDRESS, setup_address, 4)
        self.add_integer(SETUP_SIZE, len(setup), 4)
        self.add_bytes(SETUP_DATA, setup)

    def add_initrd(self, initrd: bytes, address: int) -> None:
        """Set the items of an initial RAM disk that firmware puts at GPA `address`."""
        self.add_integer(INITRD_ADDRESS, address, 4)
        self.add_integer(INITRD_SIZE, len(initrd), 4)
        self.add_bytes(INITRD_DATA, initrd)

    def add_command_line(self, line: str, address: int) -> None:
        """Set the items of the kernel's command line that firmware puts at GPA `address`."""
        data = line.encode() + b"\0"
        self.add_integer(COMMAND_LINE_ADDRESS, address, 4)
        self.add_integer(COMMAND_LINE_SIZE, len(data), 4)
        self.add_bytes(COMMAND_LINE_DATA, data)

    def _directory(self) -> bytes:
        out = [len(self._files).to_bytes(4, "big")]
        for key, name in enumerate(sorted(self._files), FILE_FIRST):
            item = self._files[name]
            item.refresh()
            out.append(struct.pack(f">IHH{FILE_NAME_LIMIT}s", len(item.data), key, 0, name.encode()))
        return b"".join(out)

    # -- selector and data ------------------------------------------------------------------------------------------

    def select(self, key: int) -> None:
        """Choose the item that is read next, from its start."""
        self._key = key & 0xFFFF
        self._offset = 0
        self._stale = True
        self._item()

    def _item(self) -> _Item | None:
        item = self._items.get(self._key & ~WRITE_CHANNEL)
        if self._stale and item is not None:
            item.refresh()
        self._stale = False
        return item

    def read(self, offset: int, size: int) -> int:
        """Read the data port: the next byte of the item, 0 behind its end.  Accesses of one byte."""
        item = self._item()
        if item is None or self._offset >= len(item.data):
            return 0
        self._offset += 1
        return item.data[self._offset - 1]

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the selector with 16 bits at offset 0; writing the data port has no effect."""
        if offset == 0 and size == 2:
            self.select(value)

    # -- DMA --------------------------------------------------------------------------------------------------------

    def dma_read(self, offset: int, size: int) -> int:
        """Read the DMA address register: the signature of the interface."""
        return int.from_bytes(DMA_SIGNATURE[offset : offset + size], "little")

    def dma_write(self, offset: int, size: int, value: int) -> None:
        """Write the DMA address register as dwords; the lower one, at offset 4, starts the transfer."""
        if size == 8 and offset == 0:
            self._dma(int.from_bytes(value.to_bytes(8, "little"), "big"))
        elif size == 4:
            half = int.from_bytes(value.to_bytes(4, "little"), "big")
            if offset == 0:
                self._dma_address = half
            elif offset == 4:
                address, self._dma_address = self._dma_address << 32 | half, 0
                self._dma(address)

    def _dma(self, structure: int) -> None:
        try:
            control, length, address = DMA_STRUCTURE.unpack(self._memory.read(structure, DMA_STRUCTURE.size))
        except GuestMemoryError:
            return
        if control & DMA_SELECT:
            self.select(control >> 16)
        try:
            done = self._transfer(control, length, address)
        except GuestMemoryError:
            done = False
        self._memory.write(structure, (0 if done else DMA_ERROR).to_bytes(4, "big"))

    def _transfer(self, control: int, length: int, address: int) -> bool:
        """Carry out the one operation of highest precedence: read, write, skip.  Return whether that succeeded."""
        item = self._item()
        left = 0 if item is None else max(0, len(item.data) - self._offset)
        count = min(length, left)
        if control & DMA_READ:
            if item is not None and count:
                self._memory.write(address, memoryview(item.data)[self._offset : self._offset + count])
            self._fill_zeros(address + count, length - count)
        elif control & DMA_WRITE:
            if item is None or not item.writable or count != length or not isinstance(item.data, bytearray):
                return False
            item.data[self._offset : self._offset + count] = self._memory.read(address, count)
            if item.on_write is not None:
                item.on_write(self._offset, count)
        self._offset += count if control & (DMA_READ | DMA_WRITE | DMA_SKIP) else 0
        return True

    def _fill_zeros(self, address: int, length: int) -> None:
        while length > 0:
            count = min(length, len(_ZEROS))
            self._memory.write(address, memoryview(_ZEROS)[:count])
            address += count
            length -= count

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on; writable files keep what was written."""
        self._dma_address = 0
        self.select(SIGNATURE)

    def save(self) -> FwCfgState:
        """Return the selection and the writable files."""
        files = [FwCfgFileState(name, bytes(self._files[name].data)) for name in sorted(self._writable())]
        return FwCfgState(self._key, self._offset, self._dma_address, files)

    def _writable(self) -> list[str]:
        return [name for name, item in self._files.items() if item.writable]

    def load(self, state: FwCfgState) -> None:
        """Take over the selection and the writable files, which must be those of this machine."""
        state.check()
        names = [file.name for file in state.files]
        if names != sorted(self._writable()):
            raise StateError("FwCfgState.files: not the writable files of this machine")
        for file in state.files:
            if len(file.data) != len(self._files[file.name].data):
                raise StateError(f"FwCfgState.files: {file.name} has another length")
        for file in state.files:
            self._files[file.name].data = bytearray(file.data)
        self._key, self._offset, self._stale = state.key, state.offset, True
        self._dma_address = state.dma_address
