"""Mode parameters (SPC-4, section 7.5): headers, block descriptor, pages; and the check of what MODE SELECT sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyvm.devices.scsi import constants as c
from pyvm.devices.scsi import sense as s
from pyvm.devices.scsi.target import SenseError
from pyvm.records import record

_DESCRIPTOR_LENGTH = 8
_LONG_DESCRIPTOR_LENGTH = 16
WCE = 0x04
"""Write cache enable, in byte 2 of the caching page."""


@record(frozen=True)
class ModePage:
    """One mode page: its code, what it holds now, and which of its bits MODE SELECT may change."""

    code: int
    body: bytes
    """Without the two bytes of code and length."""
    changeable: bytes = b""
    """As long as `body`, or empty where nothing may be changed."""

    def packed(self, control: int) -> bytes:
        """Return the page for MODE SENSE with this page control."""
        body = self.body
        if control == c.PC_CHANGEABLE:
            body = self.changeable or bytes(len(body))
        return bytes((self.code, len(body))) + body


@record(frozen=True)
class ModeSense:
    """What a MODE SENSE command asks for."""

    long: bool
    """Whether it is MODE SENSE (10)."""
    control: int
    code: int
    subpage: int
    no_descriptor: bool
    long_lba: bool

    @classmethod
    def parse(cls, cdb: bytes) -> ModeSense:
        """Return what `cdb` asks for."""
        long = cdb[0] == c.MODE_SENSE_10
        flags = cdb[1]
        return cls(long, cdb[2] >> 6, cdb[2] & 0x3F, cdb[3], bool(flags & 8), long and bool(flags & 0x10))


def answer(asked: ModeSense, pages: Sequence[ModePage], specific: int, blocks: int | None, block_size: int) -> bytes:
    """Return mode parameters; raise :class:`SenseError` where the unit has no such page.

    `specific` is the device-specific parameter, `blocks` the length of the medium; None: no block descriptor.
    """
    if asked.control == c.PC_SAVED:
        raise SenseError(s.SAVING_NOT_SUPPORTED)
    chosen = [page for page in pages if asked.code in (page.code, c.PAGE_ALL)]
    if not chosen or asked.subpage not in (0, 0xFF) or (asked.subpage and asked.code != c.PAGE_ALL):
        raise SenseError(s.INVALID_FIELD)
    descriptor = b""
    if blocks is not None and not asked.no_descriptor:
        if asked.long_lba:
            descriptor = blocks.to_bytes(8, "big") + bytes(4) + block_size.to_bytes(4, "big")
        else:
            shown = blocks if blocks <= 0xFFFFFF else 0
            descriptor = shown.to_bytes(4, "big") + block_size.to_bytes(4, "big")
    body = descriptor + b"".join(page.packed(asked.control) for page in chosen)
    if asked.long:
        length = len(body) + 6
        return (
            bytes((length >> 8, length & 0xFF, 0, specific, int(asked.long_lba and bool(descriptor)), 0))
            + bytes((0, len(descriptor)))
            + body
        )
    return bytes((len(body) + 3, 0, specific, len(descriptor))) + body


def select(
    cdb: bytes, data: bytes, pages: Sequence[ModePage], check_blocks: Callable[[int, int], bool]
) -> list[ModePage]:
    """Return the pages that MODE SELECT sets, checked against what may change; raises :class:`SenseError`.

    `check_blocks` says whether a block descriptor (blocks or 0, block size) is what the unit has anyway.
    """
    if cdb[1] & 1:
        raise SenseError(s.INVALID_FIELD)  # save pages
    if not data:
        return []
    long = cdb[0] == c.MODE_SELECT_10
    header = 8 if long else 4
    if len(data) < header:
        raise SenseError(s.PARAMETER_LIST_LENGTH)
    descriptor = int.from_bytes(data[6:8], "big") if long else data[3]
    long_lba = long and bool(data[4] & 1)
    if descriptor not in (0, _LONG_DESCRIPTOR_LENGTH if long_lba else _DESCRIPTOR_LENGTH):
        raise SenseError(s.INVALID_PARAMETER)
    if len(data) < header + descriptor:
        raise SenseError(s.PARAMETER_LIST_LENGTH)
    if descriptor:
        fields = data[header : header + descriptor]
        half = 8 if long_lba else 4
        size = int.from_bytes(fields[12:16] if long_lba else fields[5:8], "big")
        if not check_blocks(int.from_bytes(fields[:half], "big"), size):
            raise SenseError(s.INVALID_PARAMETER)
    return _selected_pages(data[header + descriptor :], {page.code: page for page in pages})


def _selected_pages(data: bytes, known: dict[int, ModePage]) -> list[ModePage]:
    chosen = []
    while data:
        if data[0] & 0x40:
            raise SenseError(s.INVALID_PARAMETER)  # subpage format
        if len(data) < 2:
            raise SenseError(s.PARAMETER_LIST_LENGTH)
        page = known.get(data[0] & 0x3F)
        length = data[1]
        if page is None or length != len(page.body):
            raise SenseError(s.INVALID_PARAMETER)
        body = data[2 : 2 + length]
        if len(body) < length:
            raise SenseError(s.PARAMETER_LIST_LENGTH)
        mask = page.changeable or bytes(length)
        if any((new ^ old) & ~may for new, old, may in zip(body, page.body, mask, strict=True)):
            raise SenseError(s.INVALID_PARAMETER)
        chosen.append(ModePage(page.code, body, page.changeable))
        data = data[2 + length :]
    return chosen
