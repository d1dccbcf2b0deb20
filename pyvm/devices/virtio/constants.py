"""Numbers of the Virtual I/O Device (VIRTIO) specification, version 1.2, that every device and transport shares.

Sections: 2.1 device status, 2.7 split virtqueues, 2.8 packed virtqueues, 4.1 virtio over PCI, 5 device types,
6 reserved feature bits.
"""

from __future__ import annotations

# Device types (section 5)
ID_NET = 1
ID_BLOCK = 2
ID_CONSOLE = 3
ID_ENTROPY = 4
ID_BALLOON = 5
ID_SCSI = 8
ID_VSOCK = 19

# Device status (2.1)
STATUS_ACKNOWLEDGE = 0x01
STATUS_DRIVER = 0x02
STATUS_DRIVER_OK = 0x04
STATUS_FEATURES_OK = 0x08
STATUS_NEEDS_RESET = 0x40
STATUS_FAILED = 0x80

# Feature bits that belong to no device type, as masks (6, 6.3)
F_NOTIFY_ON_EMPTY = 1 << 24
"""Legacy: interrupt when the device has used up all buffers, even where the driver asked for none."""
F_ANY_LAYOUT = 1 << 27
"""Legacy: the device accepts any split of a request into descriptors; with VERSION_1 it always does."""
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_BAD_FEATURE = 1 << 30
"""Legacy: offered, never to be accepted; a driver that takes it did not look at what it took."""
F_VERSION_1 = 1 << 32
F_RING_PACKED = 1 << 34
F_RING_RESET = 1 << 40

LEGACY_ONLY_FEATURES = F_NOTIFY_ON_EMPTY | F_ANY_LAYOUT | F_BAD_FEATURE
"""Not shown to a driver through the modern interface."""
LEGACY_FEATURES_MASK = 0xFFFFFFFF
"""A legacy driver sees the first 32 feature bits."""

# Descriptors of both ring formats are 16 bytes (2.7.5, 2.8.13)
DESC_SIZE = 16
DESC_F_NEXT = 0x01
DESC_F_WRITE = 0x02
DESC_F_INDIRECT = 0x04
PACKED_DESC_F_AVAIL = 0x80
PACKED_DESC_F_USED = 0x8000

# Split ring (2.7.6, 2.7.8)
AVAIL_F_NO_INTERRUPT = 0x01
LEGACY_RING_ALIGN = 4096

# Event suppression structures of the packed ring (2.8.14)
EVENT_FLAGS_ENABLE = 0x0
EVENT_FLAGS_DISABLE = 0x1
EVENT_FLAGS_DESC = 0x2
EVENT_WRAP_BIT = 0x8000

MAX_QUEUE_SIZE = 1024
"""Largest ring, and longest chain through an indirect table; a bound of this implementation (and of QEMU)."""
MAX_QUEUES = 1024

NO_VECTOR = 0xFFFF
"""In place of an MSI-X vector: no interrupt (4.1.5.1.2)."""

# PCI (4.1.2, 4.1.4)
PCI_VENDOR = 0x1AF4
PCI_MODERN_DEVICE_BASE = 0x1040
ISR_QUEUE = 0x01
ISR_CONFIG = 0x02
