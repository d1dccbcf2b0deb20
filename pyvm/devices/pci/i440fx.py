"""The i440FX host bridge: bus 0 slot 0, with the registers that shadow RAM over the BIOS area.

Intel 440FX PCIset: 82441FX PCI and Memory Controller (order number 290549), chapter 3.  DRAM is there and sized from
the start, so its timing registers are kept and have no effect.  What PAM and SMRAM mean for the memory map is the
machine's business: it hears of changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.devices.pci.function import PciFunction, PciFunctionState
from pyvm.records import record

VENDOR: Final = 0x8086
DEVICE: Final = 0x1237
REVISION: Final = 0x02
CLASS: Final = 0x060000

PMC_CONFIG: Final = 0x50  # 16 bits
DETURBO: Final = 0x52
DATA_BUFFER: Final = 0x53
AUXILIARY: Final = 0x54
DRAM_TIMING: Final = 0x55  # 16 bits
RAM_8MIB: Final = 0x57  # RAM in units of 8 MiB, at most 255: what firmware for virtual machines reads
PAM0: Final = 0x59  # 7 bytes to PAM6
PAM_COUNT: Final = 7
ROW_BOUNDARIES: Final = 0x60  # 8 bytes
FIXED_HOLE: Final = 0x68
LATENCY: Final = 0x70  # 16 bits: multi-transaction timer, CPU latency timer
SMRAM: Final = 0x72
ERROR_COMMAND: Final = 0x90
ERROR_STATUS: Final = 0x91
TURBO_RESET: Final = 0x93

PAM_READ: Final = 1 << 0  # reads of the segment go to RAM, otherwise to the ROM
PAM_WRITE: Final = 1 << 1  # writes of the segment go to RAM, otherwise nowhere

SMRAM_BASE: Final = 0b010  # bits 2:0, read-only: segment A
SMRAM_ENABLE: Final = 1 << 3
SMRAM_LOCK: Final = 1 << 4  # once set, cleared by reset only, and the register is read-only
SMRAM_CLOSED: Final = 1 << 5
SMRAM_OPEN: Final = 1 << 6
SMRAM_WRITABLE: Final = SMRAM_ENABLE | SMRAM_LOCK | SMRAM_CLOSED | SMRAM_OPEN

_KEPT: Final = (
    (PMC_CONFIG, 2, 0),
    (DETURBO, 1, 0),
    (DATA_BUFFER, 1, 0),
    (AUXILIARY, 1, 0),
    (DRAM_TIMING, 2, 0),
    (ROW_BOUNDARIES, 8, 0),
    (FIXED_HOLE, 1, 0),
    (LATENCY, 2, 0),
    (ERROR_COMMAND, 1, 0),
    (TURBO_RESET, 1, 0),
)


@record(frozen=True)
class PamSegment:
    """A part of 0xc0000-0xfffff: where reads come from (RAM or ROM) and whether writes reach RAM."""

    base: int
    size: int
    readable: bool
    writable: bool


class I440fx(PciFunction):
    """The host bridge of a machine with `ram_size` bytes of RAM.

    `on_pam_change` is called whenever a PAM or the SMRAM register may have changed, by a write, reset or load.
    """

    def __init__(self, ram_size: int) -> None:
        super().__init__("i440FX", vendor=VENDOR, device=DEVICE, class_code=CLASS, revision=REVISION)
        self.on_pam_change: Callable[[], None] = lambda: None
        for offset, size, reset in _KEPT:
            self.set_writable(offset, size, (1 << (8 * size)) - 1, reset)
        self.set_writable(RAM_8MIB, 1, 0xFF, min(ram_size >> 23, 0xFF))
        for offset in range(PAM0, PAM0 + PAM_COUNT):
            self.set_writable(offset, 1, 0x30 if offset == PAM0 else 0x33)
        self.config[SMRAM] = SMRAM_BASE
        self.set_writable(SMRAM, 1, SMRAM_WRITABLE)
        self.clear_mask[ERROR_STATUS] = 0x11

    def pam_segments(self) -> list[PamSegment]:
        """Return the 13 segments in order of address."""
        nibbles = [value for byte in self.config[PAM0 + 1 : PAM0 + PAM_COUNT] for value in (byte & 0xF, byte >> 4)]
        segments = [
            PamSegment(0xC0000 + index * 0x4000, 0x4000, bool(bits & PAM_READ), bool(bits & PAM_WRITE))
            for index, bits in enumerate(nibbles)
        ]
        bios = self.config[PAM0] >> 4
        return [*segments, PamSegment(0xF0000, 0x10000, bool(bios & PAM_READ), bool(bios & PAM_WRITE))]

    def pam(self) -> bytes:
        """Return the PAM registers."""
        return bytes(self.config[PAM0 : PAM0 + PAM_COUNT])

    def set_pam(self, registers: bytes) -> None:
        """Put back PAM registers that :meth:`pam` has returned."""
        self.config[PAM0 : PAM0 + PAM_COUNT] = registers
        self.on_pam_change()

    @property
    def smram_open(self) -> bool:
        """Whether 0xa0000-0xbffff shows RAM instead of the display adapter outside of system management mode."""
        wanted = SMRAM_ENABLE | SMRAM_OPEN
        return self.config[SMRAM] & wanted == wanted

    def on_config_write(self, offset: int, size: int) -> None:
        """Honour the SMRAM lock, and tell the machine of changed mappings."""
        if offset <= SMRAM < offset + size:
            self._apply_lock()
        if (offset < PAM0 + PAM_COUNT and offset + size > PAM0) or offset <= SMRAM < offset + size:
            self.on_pam_change()

    def _apply_lock(self) -> None:
        if self.config[SMRAM] & SMRAM_LOCK:
            self.config[SMRAM] &= ~SMRAM_OPEN
            self.write_mask[SMRAM] = 0

    def reset(self) -> None:
        """Return to the state after power-on: the ROM shows through everywhere."""
        self.write_mask[SMRAM] = SMRAM_WRITABLE
        super().reset()
        self.on_pam_change()

    def load(self, state: PciFunctionState) -> None:
        """Take over a saved state; raises StateError where it is of something else."""
        locked = self.write_mask[SMRAM]
        self.write_mask[SMRAM] = SMRAM_WRITABLE
        try:
            super().load(state)
        except ValueError:
            self.write_mask[SMRAM] = locked
            raise
        self._apply_lock()
        self.on_pam_change()
