"""What goes over the wire between an NBD client and server: numbers and structures.

Specification: "The NBD protocol" (doc/proto.md of the NetworkBlockDevice project), chapters "Handshake phase",
"Transmission phase", "Values" and "Structured reply types".  All integers are big-endian.
"""

from __future__ import annotations

import errno
from enum import IntEnum, IntFlag
from struct import Struct

# ---- Handshake

INIT_MAGIC = 0x4E42444D41474943
"""``NBDMAGIC``: the first 8 bytes of a server."""
OPTION_MAGIC = 0x49484156454F5054
"""``IHAVEOPT``: newstyle; also before each option that a client sends."""
OLDSTYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x3E889045565A9

GREETING = Struct(">QQ")
"""INIT_MAGIC, then which handshake follows."""
HANDSHAKE_FLAGS = Struct(">H")
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")
"""OPTION_MAGIC, option, length of its data."""
OPTION_REPLY = Struct(">QIII")
"""OPTION_REPLY_MAGIC, option, kind of reply, length of its data."""
LENGTH = Struct(">I")
COUNT = Struct(">H")
INFO_EXPORT = Struct(">HQH")
"""Info.EXPORT, size of the export, TransmissionFlag."""
INFO_BLOCK_SIZE = Struct(">HIII")
"""Info.BLOCK_SIZE; least, preferred and largest size of a request's data."""
EXPORT_NAME_REPLY = Struct(">QH")
"""Size of the export, TransmissionFlag; 124 zeros behind it unless both sides do without."""
OLDSTYLE_REPLY = Struct(">QHH")
"""Size of the export, handshake flags, TransmissionFlag; always 124 zeros behind it."""
EXPORT_NAME_PADDING = 124

MAX_STRING = 4096
"""Longest name or text, in bytes."""
MAX_OPTION_REPLY = 64 << 10
"""Longest option reply that is read: export descriptions are a name and a text."""


class HandshakeFlag(IntFlag):
    """What a server can do in the handshake; a client answers with the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class OptionType(IntEnum):
    """What a client asks for in the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


OPTION_NAMES = {
    OptionType.EXPORT_NAME: "export name",
    OptionType.ABORT: "abort",
    OptionType.LIST: "list",
    OptionType.STARTTLS: "starttls",
    OptionType.INFO: "info",
    OptionType.GO: "go",
    OptionType.STRUCTURED_REPLY: "structured reply",
    OptionType.LIST_META_CONTEXT: "list meta context",
    OptionType.SET_META_CONTEXT: "set meta context",
}
"""What errors call them."""

REPLY_ERROR = 1 << 31
"""Set in the kind of an option reply that refuses the option."""


class OptionReply(IntEnum):
    """Kinds of option replies."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = REPLY_ERROR | 1
    ERR_POLICY = REPLY_ERROR | 2
    ERR_INVALID = REPLY_ERROR | 3
    ERR_PLATFORM = REPLY_ERROR | 4
    ERR_TLS_REQD = REPLY_ERROR | 5
    ERR_UNKNOWN = REPLY_ERROR | 6
    ERR_SHUTDOWN = REPLY_ERROR | 7
    ERR_BLOCK_SIZE_REQD = REPLY_ERROR | 8
    ERR_TOO_BIG = REPLY_ERROR | 9


class Info(IntEnum):
    """What an INFO reply is about."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


# ---- Transmission

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

REQUEST = Struct(">IHHQQI")
"""REQUEST_MAGIC, CommandFlag, Command, cookie, offset, length."""
SIMPLE_REPLY = Struct(">IIQ")
"""SIMPLE_REPLY_MAGIC, error, cookie."""
STRUCTURED_REPLY = Struct(">IHHQI")
"""STRUCTURED_REPLY_MAGIC, ReplyFlag, ReplyType, cookie, length of the payload."""
CHUNK_OFFSET = Struct(">Q")
CHUNK_HOLE = Struct(">QI")
"""Offset and length of a run of zeros."""
CHUNK_ERROR = Struct(">IH")
"""Error, length of the text behind it."""
EXTENT = Struct(">II")
"""Length, flags that depend on the context."""

MAX_PAYLOAD = 32 << 20
"""Most data of one request, where a server says nothing about it."""
MAX_ERROR_CHUNK = CHUNK_ERROR.size + MAX_STRING + CHUNK_OFFSET.size
MAX_EXTENTS = 1 << 10
"""Most runs that one block status reply may have here; one is asked for."""


class Command(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """How a request is to be done."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


class ReplyFlag(IntFlag):
    """Flags of a structured reply's chunk."""

    DONE = 1


CHUNK_IS_ERROR = 1 << 15
"""Set in the type of each chunk that tells of an error."""


class ReplyType(IntEnum):
    """What is in a chunk."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = CHUNK_IS_ERROR | 1
    ERROR_OFFSET = CHUNK_IS_ERROR | 2


BASE_ALLOCATION = "base:allocation"
"""The context that tells holes and zeros."""
STATE_HOLE = 1
STATE_ZERO = 2

_ERRORS = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    75: errno.EOVERFLOW,
    95: errno.ENOTSUP,
    108: errno.ESHUTDOWN,
}


def to_errno(error: int) -> int:
    """Return the host's errno for an error of the protocol; EINVAL for one that it does not know."""
    return _ERRORS.get(error, errno.EINVAL)


_NUMBERS = {
    **{number: error for error, number in _ERRORS.items()},
    errno.EROFS: 1,
    errno.EFBIG: 28,
    errno.EDQUOT: 28,
}


def from_errno(number: int) -> int:
    """Return the error of the protocol for one of the host's; EINVAL where there is none."""
    return _NUMBERS.get(number, 22)
