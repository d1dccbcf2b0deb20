"""Numbers and packets of the virtio socket device (virtio 1.2, section 5.10)."""

from __future__ import annotations

import struct
from typing import NamedTuple

# Feature bits (5.10.3)
F_STREAM = 1 << 0
F_SEQPACKET = 1 << 1

# Configuration space (5.10.4): guest_cid
CONFIG = struct.Struct("<Q")

HOST_CID = 2
"""The host's address; the guest's is the user's choice."""
LOWEST_GUEST_CID = 3
"""Lower ones are reserved."""
ANY_CID = 0xFFFFFFFF

# Socket types (5.10.6)
TYPE_STREAM = 1
TYPE_SEQPACKET = 2

# Operations (5.10.6)
OP_INVALID, OP_REQUEST, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST = range(8)

# Flags of OP_SHUTDOWN (5.10.6.4): what its sender does no longer
SHUTDOWN_RECEIVE = 1
SHUTDOWN_SEND = 2
SHUTDOWN_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND

# Events (5.10.6.7)
EVENT = struct.Struct("<I")
EVENT_TRANSPORT_RESET = 0

HEADER = struct.Struct("<QQIIIHHIII")
"""src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt."""
U32 = 0xFFFFFFFF


class Header(NamedTuple):
    """The header of a packet."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    """Of the data behind the header, in bytes."""
    type: int
    op: int
    flags: int
    buf_alloc: int
    """How many bytes the sender has room for in this connection."""
    fwd_cnt: int
    """How many bytes of this connection the sender has passed on so far, modulo 2^32."""
