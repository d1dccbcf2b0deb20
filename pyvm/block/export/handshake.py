"""The server's side of the NBD handshake: fixed newstyle, from a fresh connection to an export.

Specification: "The NBD protocol", chapter "Handshake phase".  A client may be hostile: it has a limited time for all of
this, lengths are checked before anything is kept, and an option that makes no sense is refused or ends the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from struct import error as struct_error
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pyvm.block.drivers.nbd_protocol import (
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
    MAX_PAYLOAD,
    MAX_STRING,
    OPTION,
    OPTION_MAGIC,
    OPTION_NAMES,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    HandshakeFlag,
    Info,
    OptionReply,
    OptionType,
    TransmissionFlag,
)
from pyvm.block.drivers.nbd_stream import ConnectionLost, Stream
from pyvm.block.export.nbd import DIRTY_BITMAP
from pyvm.printable import printable

if TYPE_CHECKING:
    from pyvm.block.export.nbd import NbdExport

PREFERRED_BLOCK = 4096
_MAX_OPTION = 256 << 10
"""Most data of one option that is looked at; more is skipped, and the option refused."""
_SKIP = 64 << 10
_SHOWN = 80
"""Longest part of a name in an error."""
_KNOWN_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


class Directory(Protocol):
    """What a handshake needs of the server; from the client's thread."""

    @property
    def encrypts(self) -> bool:
        """Whether exports can be had by TLS only."""

    def find_export(self, name: bytes) -> NbdExport | None:
        """Return an export by its name."""

    def list_exports(self) -> Sequence[NbdExport]:
        """Return all exports."""

    def encrypt(self) -> None:
        """Speak TLS from now on; raises ConnectionLost or BlockError where that fails."""

    def join(self, export: NbdExport) -> bool:
        """The client uses an export from now on; return False where that is about to go."""


class Agreement(NamedTuple):
    """What the two sides have agreed on."""

    export: NbdExport
    structured: bool
    contexts: tuple[int, ...]
    """The numbers of the kinds of block status that a reply has."""


class _Refused(Exception):  # noqa: N818 - it is what happens to an option
    """An option is refused."""

    def __init__(self, kind: OptionReply, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Data:
    """Takes the data of an option apart."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._at = 0
        self._name = name

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, layout: Struct) -> int:
        try:
            (value,) = layout.unpack_from(self._data, self._at)
        except struct_error:
            raise self._inconsistent() from None
        self._at += layout.size
        return int(value)

    def text(self, length: int) -> bytes:
        if length > self.left:
            raise self._inconsistent()
        self._at += length
        return self._data[self._at - length : self._at]

    def name(self) -> bytes:
        length = self.number(LENGTH)
        if length > MAX_STRING:
            raise _Refused(OptionReply.ERR_INVALID, f"Invalid name length: {length}")
        return self.text(length)

    def _inconsistent(self) -> _Refused:
        return _Refused(OptionReply.ERR_INVALID, f"Inconsistent lengths in option {self._name}")


class Handshake:
    """One client's handshake: :meth:`run` returns what was agreed on, None where the client leaves.

    Raises ConnectionLost where it goes away or breaks the protocol.
    """

    def __init__(self, stream: Stream, directory: Directory) -> None:
        self._stream = stream
        self._directory = directory
        self._fixed = False
        self._no_zeroes = False
        self._encrypted = False
        self._structured = False
        self._chosen: NbdExport | None = None
        """The export for which the client chose contexts."""
        self._contexts: tuple[int, ...] = ()
        self._option: int = 0
        self._handlers: dict[int, Callable[[_Data], Agreement | None]] = {
            OptionType.LIST: self._list,
            OptionType.INFO: self._info,
            OptionType.GO: self._info,
            OptionType.STARTTLS: self._starttls,
            OptionType.STRUCTURED_REPLY: self._structured_reply,
            OptionType.LIST_META_CONTEXT: self._meta_context,
            OptionType.SET_META_CONTEXT: self._meta_context,
        }

    def run(self) -> Agreement | None:
        """Shake hands."""
        self._stream.send(GREETING.pack(INIT_MAGIC, OPTION_MAGIC) + HANDSHAKE_FLAGS.pack(_KNOWN_FLAGS))
        (flags,) = CLIENT_FLAGS.unpack(self._stream.receive(CLIENT_FLAGS.size))
        if flags & ~_KNOWN_FLAGS:
            raise ConnectionLost(f"unknown client flags: 0x{flags:x}")
        self._fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        while True:
            magic, self._option, length = OPTION.unpack(self._stream.receive(OPTION.size))
            if magic != OPTION_MAGIC:
                raise ConnectionLost("bad magic of an option")
            if length > MAX_PAYLOAD:
                raise ConnectionLost(f"an option with {length} bytes of data")
            if self._option == OptionType.ABORT and self._fixed:
                self._reply(OptionReply.ACK)
                return None
            if self._option == OptionType.EXPORT_NAME:
                return self._export_name(length)
            if not self._fixed:
                raise ConnectionLost(f"option {self._option} of a client that cannot know it")
            agreed = self._take_option(length)
            if agreed is not None:
                return agreed

    def _reply(self, kind: OptionReply, data: bytes = b"") -> None:
        self._stream.send(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, self._option, kind, len(data)) + data)

    def _take_option(self, length: int) -> Agreement | None:
        name = OPTION_NAMES.get(self._option, "<unknown>")  # type: ignore[call-overload]
        try:
            if length > _MAX_OPTION:
                self._skip(length)
                raise _Refused(OptionReply.ERR_TOO_BIG, f"option '{name}' has too much data")
            data = _Data(self._stream.receive(length), name)
            if self._directory.encrypts and not self._encrypted and self._option != OptionType.STARTTLS:
                raise _Refused(OptionReply.ERR_TLS_REQD, f"Option 0x{self._option:x} not permitted before TLS")
            handler = self._handlers.get(self._option)
            if handler is None:
                raise _Refused(OptionReply.ERR_UNSUP, f"Unsupported option {self._option} ({name})")
            return handler(data)
        except _Refused as refusal:
            self._reply(refusal.kind, str(refusal).encode("utf-8", "surrogateescape")[:MAX_STRING])
            return None

    def _skip(self, length: int) -> None:
        while length:
            count = min(length, _SKIP)
            self._stream.receive(count)
            length -= count

    def _require_empty(self, data: _Data, what: str = "must have zero length") -> None:
        if data.left:
            name = OPTION_NAMES[OptionType(self._option)]
            raise _Refused(OptionReply.ERR_INVALID, f"option '{name}' {what}")

    # ---- Options

    def _starttls(self, data: _Data) -> None:
        self._require_empty(data)
        if self._encrypted:
            raise _Refused(OptionReply.ERR_INVALID, "TLS already enabled")
        if not self._directory.encrypts:
            raise _Refused(OptionReply.ERR_POLICY, "TLS not configured")
        self._reply(OptionReply.ACK)
        self._directory.encrypt()
        self._encrypted = True
        # What was said in plain text may have come from anybody.
        self._structured, self._chosen, self._contexts = False, None, ()

    def _structured_reply(self, data: _Data) -> None:
        self._require_empty(data)
        if self._structured:
            raise _Refused(OptionReply.ERR_INVALID, "structured reply already negotiated")
        self._reply(OptionReply.ACK)
        self._structured = True

    def _list(self, data: _Data) -> None:
        self._require_empty(data)
        for export in self._directory.list_exports():
            self._reply(OptionReply.SERVER, LENGTH.pack(len(export.name)) + export.name + (export.description or b""))
        self._reply(OptionReply.ACK)

    def _find(self, name: bytes) -> NbdExport:
        export = self._directory.find_export(name)
        if export is None:
            shown = printable(name[:_SHOWN])
            if len(name) >= _SHOWN:
                shown += "..."
            raise _Refused(OptionReply.ERR_UNKNOWN, f"export '{shown}' not present")
        return export

    def _info(self, data: _Data) -> Agreement | None:
        name = data.name()
        wanted = [data.number(COUNT) for _ in range(data.number(COUNT))]
        self._require_empty(data, "has too much data")
        export = self._find(name)
        if Info.NAME in wanted:
            self._reply(OptionReply.INFO, COUNT.pack(Info.NAME) + export.name)
        if export.description is not None:
            self._reply(OptionReply.INFO, COUNT.pack(Info.DESCRIPTION) + export.description)
        only_asks = self._option == OptionType.INFO
        sizes = Info.BLOCK_SIZE in wanted
        least = export.min_block if only_asks or sizes else 1
        block = INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, least, max(PREFERRED_BLOCK, least), MAX_PAYLOAD)
        self._reply(OptionReply.INFO, block)
        self._reply(OptionReply.INFO, INFO_EXPORT.pack(Info.EXPORT, export.size, self._flags(export)))
        if only_asks and not sizes and export.min_block > 1:
            raise _Refused(OptionReply.ERR_BLOCK_SIZE_REQD, "request NBD_INFO_BLOCK_SIZE to use this export")
        agreed = None if only_asks else self._agree(export)
        self._reply(OptionReply.ACK)
        return agreed

    def _flags(self, export: NbdExport) -> TransmissionFlag:
        return export.flags | (TransmissionFlag.SEND_DF if self._structured else TransmissionFlag(0))

    def _agree(self, export: NbdExport) -> Agreement:
        # The monitor knows of the client before the client knows that it has the export.
        if not self._directory.join(export):
            raise _Refused(OptionReply.ERR_SHUTDOWN, "the export is about to go")
        contexts = self._contexts if export is self._chosen else ()
        return Agreement(export, self._structured, contexts)

    def _export_name(self, length: int) -> Agreement:
        """Take the export that an old client asks for, which can only be refused by ending the connection."""
        if length > MAX_STRING:
            raise ConnectionLost(f"an export name of {length} bytes")
        name = self._stream.receive(length)
        if self._directory.encrypts and not self._encrypted:
            raise ConnectionLost("an export was asked for before TLS")
        export = self._directory.find_export(name)
        if export is None:
            raise ConnectionLost("an export was asked for that is not there")
        try:
            agreed = self._agree(export)
        except _Refused as refusal:
            raise ConnectionLost(str(refusal)) from None
        padding = b"" if self._no_zeroes else bytes(EXPORT_NAME_PADDING)
        self._stream.send(EXPORT_NAME_REPLY.pack(export.size, self._flags(export)) + padding)
        return agreed

    # ---- Block status

    def _meta_context(self, data: _Data) -> None:
        sets = self._option == OptionType.SET_META_CONTEXT
        if not self._structured:
            name = OPTION_NAMES[OptionType(self._option)]
            text = f"request option '{name}' when structured reply is not negotiated"
            raise _Refused(OptionReply.ERR_INVALID, text)
        if sets:
            self._chosen, self._contexts = None, ()
        export = self._find(data.name())
        count = data.number(LENGTH)
        queries: list[bytes] = []
        while len(queries) < count:
            # Each takes four bytes at least, so the data limits how many there are.
            queries.append(data.text(data.number(LENGTH)))
        self._require_empty(data, "has too much data")
        lists_all = not sets and not queries
        found = [it for it in export.contexts if lists_all or any(_matches(query, it[1], sets) for query in queries)]
        for number, name_of_context in found:
            self._reply(OptionReply.META_CONTEXT, LENGTH.pack(number if sets else 0) + name_of_context)
        self._reply(OptionReply.ACK)
        if sets:
            self._chosen, self._contexts = export, tuple(number for number, _ in found)


def _matches(query: bytes, context: bytes, exact: bool) -> bool:
    """Whether a query is for a context: its name, or when they are listed also the start of it up to a colon."""
    if query == context:
        return True
    starts = (b"base:", b"qemu:", DIRTY_BITMAP.encode())
    return not exact and query in starts and context.startswith(query)
