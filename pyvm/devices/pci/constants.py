"""Registers of PCI configuration space.

PCI Local Bus Specification 3.0, chapter 6 (configuration space) and section 6.8 (MSI-X).  Offsets are in bytes.
"""

from __future__ import annotations

from typing import Final

CONFIG_SIZE: Final = 256

# Type 0 header (section 6.1).
VENDOR_ID: Final = 0x00  # 16 bits, read-only
DEVICE_ID: Final = 0x02  # 16 bits, read-only
COMMAND: Final = 0x04  # 16 bits
STATUS: Final = 0x06  # 16 bits, error bits are cleared by writing ones
REVISION_ID: Final = 0x08  # 8 bits, read-only
CLASS_CODE: Final = 0x09  # 24 bits, read-only
CACHE_LINE_SIZE: Final = 0x0C  # 8 bits, kept and without effect
HEADER_TYPE: Final = 0x0E  # 8 bits, read-only
BAR0: Final = 0x10  # six times 32 bits
BAR_COUNT: Final = 6
ROM_BAR: Final = 0x30  # 32 bits: where the expansion ROM is (section 6.2.5.2)
ROM_ENABLE: Final = 1 << 0
ROM_SMALLEST: Final = 2048
SUBSYSTEM_VENDOR_ID: Final = 0x2C  # 16 bits, read-only
SUBSYSTEM_ID: Final = 0x2E  # 16 bits, read-only
CAPABILITIES: Final = 0x34  # 8 bits, read-only: offset of the first capability
INTERRUPT_LINE: Final = 0x3C  # 8 bits, kept for software
INTERRUPT_PIN: Final = 0x3D  # 8 bits, read-only: 0 none, 1 INTA .. 4 INTD
FIRST_CAPABILITY: Final = 0x40  # the device-dependent region

# COMMAND
COMMAND_IO: Final = 1 << 0
COMMAND_MEMORY: Final = 1 << 1
COMMAND_MASTER: Final = 1 << 2
COMMAND_SERR: Final = 1 << 8
COMMAND_INTX_DISABLE: Final = 1 << 10
COMMAND_WRITABLE: Final = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_SERR | COMMAND_INTX_DISABLE

# STATUS
STATUS_INTERRUPT: Final = 1 << 3  # read-only: the INTx line as the device drives it
STATUS_CAPABILITIES: Final = 1 << 4
STATUS_FAST_BACK: Final = 1 << 7
STATUS_DEVSEL_MEDIUM: Final = 1 << 9
STATUS_ERRORS: Final = 0xF900  # cleared by writing ones

# HEADER_TYPE
HEADER_MULTIFUNCTION: Final = 0x80

# BARs (section 6.2.5)
BAR_SPACE_IO: Final = 1 << 0
BAR_TYPE_64: Final = 2 << 1
BAR_PREFETCH: Final = 1 << 3
BAR_IO_FLAGS: Final = 0x3
BAR_MEMORY_FLAGS: Final = 0xF

# Capability identifiers (appendix H)
CAP_VENDOR: Final = 0x09
CAP_MSIX: Final = 0x11

# MSI-X capability, offsets from its header (section 6.8.2)
MSIX_CONTROL: Final = 2  # 16 bits: table size less one in 10:0 (read-only), then the two bits below
MSIX_CONTROL_MASK: Final = 1 << 14
MSIX_CONTROL_ENABLE: Final = 1 << 15
MSIX_TABLE: Final = 4  # 32 bits, read-only: BAR in 2:0, offset in 31:3
MSIX_PBA: Final = 8  # 32 bits, read-only: likewise
MSIX_MAX_VECTORS: Final = 2048

# MSI-X table entry
MSIX_ENTRY_SIZE: Final = 16
MSIX_ENTRY_ADDRESS: Final = 0  # 64 bits
MSIX_ENTRY_DATA: Final = 8  # 32 bits
MSIX_ENTRY_CONTROL: Final = 12  # 32 bits: bit 0 masks the vector, 1 after reset
MSIX_ENTRY_MASKED: Final = 1 << 0

# Configuration mechanism #1 (section 3.2.2.3.2)
CONFIG_ENABLE: Final = 1 << 31
CONFIG_ADDRESS_WRITABLE: Final = 0x80FF_FFFC
SLOTS: Final = 32
FUNCTIONS: Final = 8

PHYSICAL_ADDRESS_BITS: Final = 52  # what an x86 page table can name; memory BARs beyond are not decoded
PORT_COUNT: Final = 1 << 16
