"""What goes over the socket between a vhost-user front end and back end: numbers and structures.

Specification: "Vhost-user Protocol", chapters "Message Specification" and "Front-end message types".  Integers are in
the byte order of the host, which is little-endian here.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

HEADER = Struct("<III")
"""Request, flags, length of the payload."""
VERSION = 1
FLAG_VERSION_MASK = 3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3
MAX_PAYLOAD = 4096
MAX_FDS = 8

F_PROTOCOL_FEATURES = 1 << 30
"""Feature bit: there are protocol features, and rings are disabled until they are enabled."""

PROTOCOL_F_MQ = 1 << 0
PROTOCOL_F_REPLY_ACK = 1 << 3
PROTOCOL_F_CONFIG = 1 << 9

U64 = Struct("<Q")
RING = Struct("<II")
"""Index of a ring, and a number."""
RING_ADDRESS = Struct("<IIQQQQ")
"""Index, flags; addresses in the front end of descriptors, used ring, available ring; of a log."""
REGIONS = Struct("<II")
"""How many memory regions follow; padding."""
REGION = Struct("<QQQQ")
"""GPA, size, address in the front end, offset in the file."""
CONFIG = Struct("<III")
"""Offset, size, flags; the bytes follow."""

RING_INDEX_MASK = 0xFF
RING_NO_FD = 1 << 8
"""In messages that should have a descriptor: there is none."""


class Message(IntEnum):
    """What a front end asks for."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
