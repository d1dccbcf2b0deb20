"""Register layout of virtio over PCI (virtio 1.2, section 4.1.4), for pci.py."""

from __future__ import annotations

import struct

# Structures of BAR 4 and the configuration types of their capabilities (4.1.4)
MODERN_BAR = 4
MODERN_BAR_SIZE = 0x4000
COMMON = 0x0000
ISR = 0x1000
DEVICE = 0x2000
NOTIFY = 0x3000
STRUCTURE_SIZE = 0x1000
NOTIFY_MULTIPLIER = 4
CAP_COMMON_CFG = 1
CAP_NOTIFY_CFG = 2
CAP_ISR_CFG = 3
CAP_DEVICE_CFG = 4
CAP_PCI_CFG = 5
CAP = struct.Struct("<BBBBxxII")
"""What follows the capability header: length, configuration type, BAR, ID, offset, length of the structure."""
CAP_HEADER = 2
PCI_CFG_BAR = 4
PCI_CFG_OFFSET = 8
PCI_CFG_LENGTH = 12
PCI_CFG_DATA = 16

# Common configuration (4.1.4.3)
DEVICE_FEATURE_SELECT = 0x00
DEVICE_FEATURE = 0x04  # read-only
DRIVER_FEATURE_SELECT = 0x08
DRIVER_FEATURE = 0x0C
CONFIG_VECTOR = 0x10
NUM_QUEUES = 0x12  # read-only
DEVICE_STATUS = 0x14
CONFIG_GENERATION = 0x15  # read-only
QUEUE_SELECT = 0x16
QUEUE_SIZE = 0x18
QUEUE_VECTOR = 0x1A
QUEUE_ENABLE = 0x1C
QUEUE_NOTIFY_OFF = 0x1E  # read-only
QUEUE_DESC = 0x20
QUEUE_DRIVER = 0x28
QUEUE_DEVICE = 0x30
QUEUE_NOTIFY_DATA = 0x38  # read-only
QUEUE_RESET = 0x3A
COMMON_WIDTHS = {
    DEVICE_FEATURE_SELECT: 4,
    DEVICE_FEATURE: 4,
    DRIVER_FEATURE_SELECT: 4,
    DRIVER_FEATURE: 4,
    CONFIG_VECTOR: 2,
    NUM_QUEUES: 2,
    DEVICE_STATUS: 1,
    CONFIG_GENERATION: 1,
    QUEUE_SELECT: 2,
    QUEUE_SIZE: 2,
    QUEUE_VECTOR: 2,
    QUEUE_ENABLE: 2,
    QUEUE_NOTIFY_OFF: 2,
    QUEUE_DESC: 4,
    QUEUE_DESC + 4: 4,
    QUEUE_DRIVER: 4,
    QUEUE_DRIVER + 4: 4,
    QUEUE_DEVICE: 4,
    QUEUE_DEVICE + 4: 4,
    QUEUE_NOTIFY_DATA: 2,
    QUEUE_RESET: 2,
}
COMMON_STARTS = [max(start for start in COMMON_WIDTHS if start <= offset) for offset in range(0x3C)]
"""Offset of the field that holds each byte; the fields leave no gaps."""

# Legacy registers (4.1.4.10)
LEGACY_DEVICE_FEATURES = 0  # read-only
LEGACY_DRIVER_FEATURES = 4
LEGACY_QUEUE_PFN = 8
LEGACY_QUEUE_SIZE = 12  # read-only
LEGACY_QUEUE_SELECT = 14
LEGACY_QUEUE_NOTIFY = 16
LEGACY_STATUS = 18
LEGACY_ISR = 19  # read-only, reading clears
LEGACY_CONFIG_VECTOR = 20  # with MSI-X enabled
LEGACY_QUEUE_VECTOR = 22
LEGACY_SIZE = 20
LEGACY_SIZE_MSIX = 24
LEGACY_PAGE_SHIFT = 12
