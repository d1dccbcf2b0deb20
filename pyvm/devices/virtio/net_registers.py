"""Numbers of the virtio network device (virtio 1.2, section 5.1)."""

from __future__ import annotations

import struct

# Feature bits (5.1.3)
F_CSUM = 1 << 0
F_GUEST_CSUM = 1 << 1
F_CTRL_GUEST_OFFLOADS = 1 << 2
F_MTU = 1 << 3
F_MAC = 1 << 5
F_GSO = 1 << 6
"""Legacy: the device takes any kind of large frame."""
F_GUEST_TSO4 = 1 << 7
F_GUEST_TSO6 = 1 << 8
F_GUEST_ECN = 1 << 9
F_GUEST_UFO = 1 << 10
F_HOST_TSO4 = 1 << 11
F_HOST_TSO6 = 1 << 12
F_HOST_ECN = 1 << 13
F_HOST_UFO = 1 << 14
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
F_CTRL_VQ = 1 << 17
F_CTRL_RX = 1 << 18
F_CTRL_VLAN = 1 << 19
F_CTRL_RX_EXTRA = 1 << 20
F_GUEST_ANNOUNCE = 1 << 21
F_MQ = 1 << 22
F_CTRL_MAC_ADDR = 1 << 23
F_SPEED_DUPLEX = 1 << 63

GUEST_OFFLOADS = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_UFO
"""What the driver may switch off and on again while it works."""
HOST_OFFLOADS = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_HOST_UFO | F_GSO

# Configuration space (5.1.4): mac, status, max_virtqueue_pairs, mtu, speed, duplex; its end, by feature
CONFIG = struct.Struct("<6sHHHIB")
CONFIG_ENDS = ((F_SPEED_DUPLEX, 17), (F_MTU, 12), (F_MQ, 10), (F_STATUS, 8), (F_MAC, 6))
STATUS_LINK_UP = 1
STATUS_ANNOUNCE = 2

# Header of each frame (5.1.6): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; then num_buffers
HEADER = struct.Struct("<BBHHHH")
HEADER_WITH_COUNT = struct.Struct("<BBHHHHH")

# Control queue (5.1.6.5): class, command, data; the driver gets one byte back
CTRL_HEADER = 2
CTRL_OK = 0
CTRL_ERROR = 1
CTRL_RX, CTRL_MAC, CTRL_VLAN, CTRL_ANNOUNCE, CTRL_MQ, CTRL_GUEST_OFFLOADS = range(6)
RX_PROMISC, RX_ALLMULTI, RX_ALLUNI, RX_NOMULTI, RX_NOUNI, RX_NOBCAST = range(6)
MAC_TABLE_SET, MAC_ADDR_SET = range(2)
VLAN_ADD, VLAN_DEL = range(2)
ANNOUNCE_ACK = 0
MQ_VQ_PAIRS_SET = 0
GUEST_OFFLOADS_SET = 0

MIN_MTU = 68
