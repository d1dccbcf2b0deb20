"""The client's side of the NBD handshake: from a fresh connection to an export.

Specification: "The NBD protocol", chapter "Handshake phase".  Fixed newstyle is what is hoped for; a server that knows
only newstyle or oldstyle is talked to as well.  Nothing that the server says is believed unseen.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from pyvm.block.drivers.nbd_protocol import (
    BASE_ALLOCATION,
    CLIENT_FLAGS,
    COUNT,
    EXPORT_NAME_PADDING,
    EXPORT_NAME_REPLY,
    GREETING,
    HANDSHAKE_FLAGS,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INIT_MAGIC,
    LENGTH,
    MAX_OPTION_REPLY,
    MAX_PAYLOAD,
    MAX_STRING,
    OLDSTYLE_MAGIC,
    OLDSTYLE_REPLY,
    OPTION,
    OPTION_MAGIC,
    OPTION_NAMES,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REPLY_ERROR,
    HandshakeFlag,
    Info,
    OptionReply,
    OptionType,
    TransmissionFlag,
)
from pyvm.block.drivers.nbd_stream import ConnectionLost, Socket, Stream
from pyvm.block.errors import BlockError
from pyvm.printable import printable

MAX_REPLIES = 256
"""Most replies to one option that are looked at."""
_MAX_ALIGNMENT = 64 << 10
_INT64_MAX = (1 << 63) - 1

_REFUSALS = {
    OptionReply.ERR_UNSUP: "Unsupported option type {}",
    OptionReply.ERR_POLICY: "Denied by server for option {}",
    OptionReply.ERR_INVALID: "Invalid parameters for option {}",
    OptionReply.ERR_PLATFORM: "Server lacks support for option {}",
    OptionReply.ERR_TLS_REQD: "Server requires TLS for option {}",
    OptionReply.ERR_UNKNOWN: "Requested export not available",
    OptionReply.ERR_SHUTDOWN: "Server shutting down before option {}",
    OptionReply.ERR_BLOCK_SIZE_REQD: "Server requires INFO_BLOCK_SIZE for option {}",
    OptionReply.ERR_TOO_BIG: "Server finds the data too big for option {}",
}


@dataclass
class ExportInfo:
    """What the handshake tells about an export."""

    size: int = 0
    flags: TransmissionFlag = field(default_factory=lambda: TransmissionFlag(0))
    min_block: int = 1
    """Offsets and lengths of requests are multiples of this."""
    max_block: int = MAX_PAYLOAD
    """Most data of one request."""
    structured: bool = False
    """Whether structured replies were agreed on."""
    context: int | None = None
    """The ID under which the server reports the block status that was asked for."""

    @property
    def read_only(self) -> bool:
        """Whether the server refuses writes."""
        return TransmissionFlag.READ_ONLY in self.flags


Wrap = Callable[[socket.socket], Socket]
"""Does the TLS handshake on a socket, and returns what takes its place."""


def negotiate(stream: Stream, export: str, context: str = BASE_ALLOCATION, *, wrap: Wrap | None = None) -> ExportInfo:
    """Agree with the server on `export` and how it is used; with `wrap`, encrypted or not at all.

    `context` is the name of the block status wanted.  Raises BlockError where the server refuses or breaks the
    protocol, ConnectionLost where it goes away.
    """
    return Handshake(stream, export, context, wrap).run()


class Handshake:
    """The handshake for one export; see :func:`negotiate`."""

    def __init__(self, stream: Stream, export: str, context: str, wrap: Wrap | None = None) -> None:
        self._stream = stream
        self._name = export.encode("utf-8", "surrogateescape")
        self._context = context.encode("utf-8", "surrogateescape")
        self._wrap = wrap
        self._no_zeroes = False
        self._info = ExportInfo()
        if max(len(self._name), len(self._context)) > MAX_STRING:
            raise BlockError("export name too long to send to server")

    def run(self) -> ExportInfo:
        """Shake hands; return what the server says about the export."""
        magic, style = GREETING.unpack(self._stream.receive(GREETING.size))
        if magic != INIT_MAGIC:
            raise BlockError("Bad initial magic received: 0x%016x" % magic)  # noqa: UP031 - shorter
        if style == OPTION_MAGIC:
            self._newstyle()
        elif style == OLDSTYLE_MAGIC:
            self._oldstyle()
        else:
            raise BlockError("Bad server magic received: 0x%016x" % style)  # noqa: UP031 - shorter
        self._check()
        return self._info

    def _oldstyle(self) -> None:
        self._require_plain()
        if self._name:
            raise BlockError("Server does not support non-empty export names")
        self._info.size, _, flags = OLDSTYLE_REPLY.unpack(self._stream.receive(OLDSTYLE_REPLY.size))
        self._info.flags = TransmissionFlag(flags)
        self._stream.receive(EXPORT_NAME_PADDING)

    def _newstyle(self) -> None:
        (flags,) = HANDSHAKE_FLAGS.unpack(self._stream.receive(HANDSHAKE_FLAGS.size))
        known = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        agreed = HandshakeFlag(flags & known)
        self._no_zeroes = HandshakeFlag.NO_ZEROES in agreed
        self._stream.send(CLIENT_FLAGS.pack(agreed))
        if HandshakeFlag.FIXED_NEWSTYLE not in agreed:
            self._require_plain()
        if HandshakeFlag.FIXED_NEWSTYLE in agreed:
            try:
                if self._fixed_newstyle():
                    return
            except BlockError:
                self._abort()
                raise
        self._export_name()

    def _fixed_newstyle(self) -> bool:
        """Return whether an export was agreed on; the server may not know how."""
        self._encrypt()
        self._info.structured = self._simple_option(OptionType.STRUCTURED_REPLY)
        if self._info.structured:
            self._choose_context()
        return self._go()

    def _require_plain(self) -> None:
        if self._wrap is not None:
            raise BlockError("Server does not support STARTTLS")

    def _encrypt(self) -> None:
        """Speak TLS from now on, where that is wanted."""
        if self._wrap is None:
            return
        option = OptionType.STARTTLS
        self._send_option(option)
        kind, data = self._reply(option)
        if kind != OptionReply.ACK:
            raise self._refused(option, kind, data)
        if data:
            raise BlockError("Start TLS response was not zero")
        self._stream.encrypt(self._wrap)

    def _check(self) -> None:
        info = self._info
        if info.size > _INT64_MAX:
            raise BlockError("export length is too large")
        if info.min_block > 1 and info.size % info.min_block:
            raise BlockError(f"export length {info.size} is not multiple of minimum block size {info.min_block}")
        if TransmissionFlag.HAS_FLAGS not in info.flags:
            info.flags = TransmissionFlag(0)

    # ---- Options

    def _send_option(self, option: OptionType, data: bytes = b"") -> None:
        self._stream.send(OPTION.pack(OPTION_MAGIC, option, len(data)), data)

    def _abort(self) -> None:
        """Say goodbye, as is polite."""
        try:
            self._send_option(OptionType.ABORT)
        except ConnectionLost:
            pass

    def _reply(self, option: OptionType) -> tuple[int, bytes]:
        """Return the kind and data of the next reply to `option`."""
        magic, answered, kind, length = OPTION_REPLY.unpack(self._stream.receive(OPTION_REPLY.size))
        if magic != OPTION_REPLY_MAGIC:
            raise BlockError("Unexpected option reply magic")
        if answered != option:
            raise BlockError(f"Unexpected option type {answered} ({_name(answered)}), expected {option}")
        if length > MAX_OPTION_REPLY:
            raise BlockError(f"option reply from server is too long: {length} bytes")
        return kind, self._stream.receive(length)

    def _refused(self, option: OptionType, kind: int, data: bytes) -> BlockError:
        template = _REFUSALS.get(kind, "Unknown error code when asking for option {}")  # type: ignore[call-overload]
        text = template.format(f"{int(option)} ({OPTION_NAMES[option]})")
        if kind == OptionReply.ERR_TLS_REQD:
            text += "\nDid you forget a valid tls-creds?"
        if data:
            text += f"\nserver reported: {printable(data[:MAX_STRING])}"
        return BlockError(text)

    def _simple_option(self, option: OptionType) -> bool:
        """Ask for something without parameters; return whether the server agrees."""
        self._send_option(option)
        kind, data = self._reply(option)
        if kind == OptionReply.ACK:
            if data:
                raise BlockError(f"unexpected data in the reply to option {option} ({_name(option)})")
            return True
        if kind == OptionReply.ERR_TLS_REQD:
            raise self._refused(option, kind, data)
        if kind & REPLY_ERROR:
            return False
        raise BlockError(f"Unexpected reply type {kind} to option {option} ({_name(option)})")

    def _choose_context(self) -> None:
        """Ask for the block status.  A server without it is fine."""
        option = OptionType.SET_META_CONTEXT
        data = LENGTH.pack(len(self._name)) + self._name
        data += LENGTH.pack(1) + LENGTH.pack(len(self._context)) + self._context
        self._send_option(option, data)
        for _ in range(MAX_REPLIES):
            kind, reply = self._reply(option)
            if kind == OptionReply.ACK:
                return
            if kind & REPLY_ERROR:
                self._info.context = None
                return
            if kind != OptionReply.META_CONTEXT or len(reply) < LENGTH.size:
                raise BlockError(f"Unexpected reply type {kind} to option {option} ({_name(option)})")
            if reply[LENGTH.size :] != self._context:
                raise BlockError("Failed to negotiate query for the block status: the server chose another one")
            if self._info.context is not None:
                raise BlockError("server reports the same block status twice")
            (self._info.context,) = LENGTH.unpack_from(reply)
        raise BlockError(f"too many replies to option {option} ({_name(option)})")

    def _go(self) -> bool:
        """Ask for the export; return whether the server knows this way of asking."""
        option = OptionType.GO
        wanted = COUNT.pack(1) + COUNT.pack(Info.BLOCK_SIZE)
        self._send_option(option, LENGTH.pack(len(self._name)) + self._name + wanted)
        described = False
        for _ in range(MAX_REPLIES):
            kind, data = self._reply(option)
            if kind == OptionReply.ACK:
                if not described:
                    raise BlockError("broken server omitted NBD_INFO_EXPORT")
                return True
            if kind == OptionReply.ERR_UNSUP:
                return False
            if kind & REPLY_ERROR:
                raise self._refused(option, kind, data)
            if kind != OptionReply.INFO or len(data) < COUNT.size:
                raise BlockError(f"Unexpected reply type {kind} to option {option} ({_name(option)})")
            described |= self._take_info(data)
        raise BlockError(f"too many replies to option {option} ({_name(option)})")

    def _take_info(self, data: bytes) -> bool:
        """Take one piece of information; return whether it is the export's description."""
        (about,) = COUNT.unpack_from(data)
        if about == Info.EXPORT:
            if len(data) != INFO_EXPORT.size:
                raise BlockError("the server's description of the export has a wrong length")
            _, self._info.size, flags = INFO_EXPORT.unpack(data)
            self._info.flags = TransmissionFlag(flags)
            return True
        if about == Info.BLOCK_SIZE:
            if len(data) != INFO_BLOCK_SIZE.size:
                raise BlockError("the server's block sizes have a wrong length")
            self._take_block_sizes(*INFO_BLOCK_SIZE.unpack(data)[1:])
        return False

    def _take_block_sizes(self, least: int, preferred: int, most: int) -> None:
        if not _is_power_of_two(least) or least > _MAX_ALIGNMENT:
            raise BlockError(f"server minimum block size {least} is not a power of two up to {_MAX_ALIGNMENT}")
        if not _is_power_of_two(preferred) or preferred < least:
            raise BlockError(f"server preferred block size {preferred} is not valid")
        if most < least:
            raise BlockError(f"server maximum block size {most} is not valid")
        self._info.min_block = least
        self._info.max_block = min(most, MAX_PAYLOAD) // least * least

    def _export_name(self) -> None:
        """Ask for the export the old way, to which there is no refusal but the end of the connection."""
        self._send_option(OptionType.EXPORT_NAME, self._name)
        try:
            self._info.size, flags = EXPORT_NAME_REPLY.unpack(self._stream.receive(EXPORT_NAME_REPLY.size))
            if not self._no_zeroes:
                self._stream.receive(EXPORT_NAME_PADDING)
        except ConnectionLost as error:
            raise BlockError(f"Failed to read export length: {error.reason}") from None
        self._info.flags = TransmissionFlag(flags)


def _name(option: int) -> str:
    return OPTION_NAMES.get(option, "<unknown>")  # type: ignore[call-overload,no-any-return]


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
