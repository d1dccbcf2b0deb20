"""The PIIX4 power management function: bus 0 slot 1 function 3, which places the ACPI and SMBus registers.

Intel 82371AB PCI-to-ISA/IDE Xcelerator (PIIX4) (order number 290562), chapter 7.  The registers themselves are
:class:`pyvm.devices.acpi.pm.AcpiPm` and :class:`pyvm.devices.pci.piix4_smbus.SmbusHost`.  Firmware programs both base
addresses; until then neither block is decoded.
"""

from __future__ import annotations

from typing import Final

from pyvm.devices.acpi.pm import PM_BLOCK_SIZE, AcpiPm
from pyvm.devices.pci import constants as c
from pyvm.devices.pci.function import PciFunction, Window
from pyvm.devices.pci.piix4_smbus import SMBUS_BLOCK_SIZE, SmbusHost

VENDOR: Final = 0x8086
DEVICE: Final = 0x7113
REVISION: Final = 0x03
CLASS: Final = 0x068000

PM_BASE: Final = 0x40  # 32 bits: base in 15:6, bit 0 reads 1 (I/O space)
PM_BASE_MASK: Final = 0xFFC0
PM_MISC: Final = 0x80  # bit 0: the PM block is decoded
PM_MISC_DECODE: Final = 1 << 0
SMBUS_BASE: Final = 0x90  # 32 bits: base in 15:4, bit 0 reads 1
SMBUS_BASE_MASK: Final = 0xFFF0
SMBUS_BASE_RESET: Final = 0xB100
SMBUS_CONFIG: Final = 0xD2  # bit 0: the SMBus block is decoded, 3:1: interrupt selection
SMBUS_CONFIG_DECODE: Final = 1 << 0
SMBUS_CONFIG_RESET: Final = 0x09

_KEPT: Final = (  # offset, size, reset value: activity and resource registers, kept and without effect
    (0x44, 4, 0),  # count A
    (0x48, 4, 0),  # count B
    (0x4C, 4, 0),  # general purpose input control
    (0x50, 3, 0),  # device resource D
    (0x54, 4, 0),  # device activity A
    (0x58, 4, 1 << 25),  # device activity B; bit 25 set: firmware leaves SMM alone
    (0x5C, 4, 0x10000000),  # device resource A
    (0x60, 4, 0x60000000),  # device resource B
    (0x64, 4, 0),  # device resource C
    (0x68, 3, 0),  # device resource E
    (0x6C, 4, 0),  # device resource F
    (0x70, 3, 0),  # device resource G
    (0x74, 4, 0),  # device resource H
    (0x78, 4, 0),  # device resource I
    (0x7C, 4, 0),  # device resource J
    (0xD3, 3, 0),  # SMBus slave command, slave shadow 1 and 2
)


class Piix4Pm(PciFunction):
    """The function in front of `acpi` and `smbus`."""

    def __init__(self, acpi: AcpiPm, smbus: SmbusHost) -> None:
        super().__init__("PIIX4_PM", vendor=VENDOR, device=DEVICE, class_code=CLASS, revision=REVISION, interrupt_pin=1)
        self.config[c.STATUS : c.STATUS + 2] = (c.STATUS_DEVSEL_MEDIUM | c.STATUS_FAST_BACK).to_bytes(2, "little")
        for offset, size, reset in _KEPT:
            self.set_writable(offset, size, (1 << (8 * size)) - 1, reset)
        self.config[PM_BASE] = 1
        self.set_writable(PM_BASE, 4, PM_BASE_MASK)
        self.set_writable(PM_MISC, 1, PM_MISC_DECODE)
        self.config[SMBUS_BASE] = 1
        self.set_writable(SMBUS_BASE, 4, SMBUS_BASE_MASK, SMBUS_BASE_RESET)
        self.set_writable(SMBUS_CONFIG, 1, 0x0F, SMBUS_CONFIG_RESET)
        self.add_window(
            Window("acpi pm", PM_BLOCK_SIZE, True, self.pm_address, acpi.pm_read, acpi.pm_write, max_access=4)
        )
        self.add_window(
            Window("smbus", SMBUS_BLOCK_SIZE, True, self.smbus_address, smbus.read, smbus.write, max_access=1)
        )

    def pm_address(self) -> int | None:
        """Return the port of the PM block, None where it is not decoded."""
        base = int.from_bytes(self.config[PM_BASE : PM_BASE + 2], "little") & PM_BASE_MASK
        return base if base and self.config[PM_MISC] & PM_MISC_DECODE else None

    def smbus_address(self) -> int | None:
        """Return the port of the SMBus host registers, None where they are not decoded."""
        base = int.from_bytes(self.config[SMBUS_BASE : SMBUS_BASE + 2], "little") & SMBUS_BASE_MASK
        enabled = self.config[SMBUS_CONFIG] & SMBUS_CONFIG_DECODE and self.command & c.COMMAND_IO
        return base if base and enabled else None
