"""Asking an NBD server what exports it has, and what these are like."""

from __future__ import annotations

import time

from pyvm.block.drivers.nbd_handshake import MAX_REPLIES, ExportInfo, Handshake, Wrap
from pyvm.block.drivers.nbd_protocol import (
    BASE_ALLOCATION,
    COUNT,
    LENGTH,
    REPLY_ERROR,
    Info,
    OptionReply,
    OptionType,
)
from pyvm.block.drivers.nbd_reconnect import HANDSHAKE_TIMEOUT
from pyvm.block.drivers.nbd_stream import ConnectionLost, ServerAddress, Stream
from pyvm.block.errors import BlockError
from pyvm.records import field, record


@record
class ListedExport:
    """An export of a server; `info` is None where the server only says that there is one."""

    name: bytes
    description: bytes = b""
    info: ExportInfo | None = None
    block_sizes: tuple[int, int, int] | None = None
    """Least, preferred and largest size of a request's data."""
    contexts: list[bytes] = field(default_factory=list)
    """The kinds of block status."""


def list_exports(address: ServerAddress, wrap: Wrap | None = None) -> list[ListedExport]:
    """Return the exports of a server, with `wrap` over an encrypted connection.  Raises BlockError."""
    stream = Stream(address.connect(HANDSHAKE_TIMEOUT), HANDSHAKE_TIMEOUT)
    try:
        stream.deadline = time.monotonic() + HANDSHAKE_TIMEOUT
        lister = _Lister(stream, "", BASE_ALLOCATION, wrap)
        lister.run()
        return lister.exports
    except ConnectionLost as error:
        raise BlockError(f"Failed to list the exports at '{address.text}': {error.reason}") from None
    finally:
        stream.close()


class _Lister(Handshake):
    """A handshake that looks at all exports and takes none."""

    exports: list[ListedExport]

    def _oldstyle(self) -> None:
        super()._oldstyle()
        self.exports = [ListedExport(b"", info=self._info)]

    def _check(self) -> None:
        """Nothing was agreed on."""

    def _fixed_newstyle(self) -> bool:
        self._encrypt()
        structured = self._simple_option(OptionType.STRUCTURED_REPLY)
        self.exports = self._list()
        for export in self.exports:
            self._describe(export)
            if structured:
                self._list_contexts(export)
        self._abort()
        return True

    def _export_name(self) -> None:
        raise BlockError("Server does not support listing exports")

    def _list(self) -> list[ListedExport]:
        option = OptionType.LIST
        self._send_option(option)
        found: list[ListedExport] = []
        while len(found) < MAX_REPLIES:
            kind, data = self._reply(option)
            if kind == OptionReply.ACK:
                return found
            if kind & REPLY_ERROR:
                raise self._refused(option, kind, data)
            (length,) = LENGTH.unpack_from(data) if len(data) >= LENGTH.size else (len(data),)
            if kind != OptionReply.SERVER or length > len(data) - LENGTH.size:
                raise BlockError("incorrect option name length")
            name = data[LENGTH.size :][:length]
            found.append(ListedExport(name, data[LENGTH.size + length :]))
        raise BlockError("the server has too many exports")

    def _describe(self, export: ListedExport) -> None:
        option = OptionType.INFO
        wanted = COUNT.pack(1) + COUNT.pack(Info.BLOCK_SIZE)
        self._send_option(option, LENGTH.pack(len(export.name)) + export.name + wanted)
        self._info = ExportInfo()
        for _ in range(MAX_REPLIES):
            kind, data = self._reply(option)
            if kind == OptionReply.ACK:
                return
            if kind & REPLY_ERROR:
                # It only says that there is one.
                export.info = None
                return
            if kind != OptionReply.INFO or len(data) < COUNT.size:
                raise BlockError(f"Unexpected reply type {kind} to option {int(option)} (info)")
            (about,) = COUNT.unpack_from(data)
            if self._take_info(data):
                export.info = self._info
            elif about == Info.DESCRIPTION:
                export.description = data[COUNT.size :]
            elif about == Info.BLOCK_SIZE:
                export.block_sizes = self._block_sizes
        raise BlockError("the server says too much about an export")

    def _take_block_sizes(self, least: int, preferred: int, most: int) -> None:
        super()._take_block_sizes(least, preferred, most)
        self._block_sizes = (least, preferred, most)

    def _list_contexts(self, export: ListedExport) -> None:
        option = OptionType.LIST_META_CONTEXT
        self._send_option(option, LENGTH.pack(len(export.name)) + export.name + LENGTH.pack(0))
        for _ in range(MAX_REPLIES):
            kind, data = self._reply(option)
            if kind == OptionReply.ACK or kind & REPLY_ERROR:
                return
            if kind != OptionReply.META_CONTEXT or len(data) < LENGTH.size:
                raise BlockError(f"Unexpected reply type {kind} to option {int(option)} (list meta context)")
            export.contexts.append(data[LENGTH.size :])
        raise BlockError("the server has too many kinds of block status")
