"""CD-ROM and DVD-ROM drive: QEMU's scsi-cd by MMC-5, and the same drive behind ATAPI by INF-8090.

Both serve media of 2048-byte blocks.  The two differ in INQUIRY data, in how a new medium is announced, and in that
ATAPI keeps sense data for REQUEST SENSE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from pyvm.block.vectors import Buffers, Cursor, copy_in, total
from pyvm.devices.scsi import cd_sector, inquiry, mmc, mode
from pyvm.devices.scsi import constants as c
from pyvm.devices.scsi import sense as s
from pyvm.devices.scsi.mode import ModePage, ModeSense
from pyvm.devices.scsi.sense import Sense
from pyvm.devices.scsi.steps import Step
from pyvm.devices.scsi.target import (
    PRIMARY,
    UNIT,
    Direction,
    Identity,
    Operation,
    ScsiCommand,
    ScsiTarget,
    SenseError,
    clip,
    data_in,
    data_out,
)

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_RAW_PIECE = 16
"""Sectors built at a time for READ CD."""
_MSF = 0x02
_POLLED = 0x01
_SUB_CHANNEL_DATA = 0x40
_TOC_SHORT, _TOC_SESSIONS, _TOC_FULL = 0, 1, 2
_SECTOR_TYPES = (0, 2)
"""Expected sector types of READ CD that the medium has: any, mode 1."""
_FIRST_PERIOD_RETRIES = 0x20

# Steps by which ATAPI announces a change of medium: nobody home, then the unit attention
_CHANGE_DONE, _CHANGE_GONE, _CHANGE_ARRIVED = 0, 1, 2


class ScsiCd(ScsiTarget):
    """A drive for CD-ROM and DVD-ROM; `atapi` makes it one on an IDE channel."""

    device_type = c.TYPE_ROM
    name = "scsi-cd"
    operations: ClassVar[Mapping[int, Operation]]

    def __init__(self, backend: BlockBackend, *, identity: Identity | None = None, atapi: bool = False) -> None:
        identity = identity or Identity()
        identity.product = identity.product or ("QEMU DVD-ROM" if atapi else "QEMU CD-ROM")
        self.atapi = atapi
        super().__init__(backend, identity, mmc.BLOCK, removable=True, autosense=not atapi)

    @property
    def blocks(self) -> int:
        """Return the length of the medium in blocks; 0 without one."""
        return self.backend.size // mmc.BLOCK if self.ready else 0

    # What it is

    def inquiry(self, command: ScsiCommand) -> None:
        """INQUIRY."""
        cdb = command.cdb
        if cdb[1] & 1:
            page = inquiry.page(self.device_type, cdb[2], self.identity, None)
            if page is None:
                raise SenseError(s.INVALID_FIELD)
            self.reply(command, page)
            return
        if cdb[2]:
            raise SenseError(s.INVALID_FIELD)
        self.reply(command, inquiry.standard(self.device_type, self.identity, removable=True, atapi=self.atapi))

    def get_configuration(self, command: ScsiCommand) -> None:
        """GET CONFIGURATION (MMC-5, 6.5)."""
        cdb = command.cdb
        requested = cdb[1] & 3
        if requested > 2:
            raise SenseError(s.INVALID_FIELD)
        start = int.from_bytes(cdb[2:4], "big")
        self.reply(command, mmc.configuration(self.blocks, requested, start, atapi=self.atapi))

    def get_event_status(self, command: ScsiCommand) -> None:
        """GET EVENT STATUS NOTIFICATION (6.6): an event is told once."""
        cdb = command.cdb
        if not cdb[1] & _POLLED:
            raise SenseError(s.INVALID_FIELD)
        status, event = 0, mmc.EVENT_NO_CHANGE
        if self.tray_open:
            status = mmc.STATUS_TRAY_OPEN
        elif self.backend.inserted:
            status = mmc.STATUS_PRESENT
        if cdb[4] & 1 << mmc.EVENT_CLASS_MEDIA and self.length_of(cdb, self.operations[cdb[0]]) > 4:
            if self._medium_event and status == mmc.STATUS_PRESENT:
                event, self._medium_event = mmc.EVENT_NEW_MEDIA, False
            elif self._eject_request and not self.tray_open:
                event, self._eject_request = mmc.EVENT_EJECT_REQUEST, False
        self.reply(command, mmc.event_status(cdb[4], event, status))

    def mechanism_status(self, command: ScsiCommand) -> None:
        """MECHANISM STATUS (6.9)."""
        self.reply(command, mmc.mechanism_status(tray_open=self.tray_open))

    # The medium

    def read_capacity(self, command: ScsiCommand) -> None:
        """READ CAPACITY (6.17)."""
        self.reply(command, struct.pack(">II", max(self.blocks - 1, 0), mmc.BLOCK))

    def read_toc(self, command: ScsiCommand) -> None:
        """READ TOC/PMA/ATIP (6.26): table of contents, sessions, full table; a pressed disc has no PMA and no ATIP."""
        cdb = command.cdb
        kind = cdb[2] & 0xF or cdb[9] >> 6
        in_msf = bool(cdb[1] & _MSF)
        table: bytes | None = None
        if kind == _TOC_SHORT:
            table = mmc.toc(self.blocks, cdb[6], in_msf=in_msf)
        elif kind == _TOC_SESSIONS:
            table = mmc.sessions(in_msf=in_msf)
        elif kind == _TOC_FULL:
            table = mmc.full_toc(self.blocks)
        if table is None:
            raise SenseError(s.INVALID_FIELD)
        self.reply(command, table)

    def read_sub_channel(self, command: ScsiCommand) -> None:
        """READ SUB-CHANNEL (MMC-4, 6.31)."""
        cdb = command.cdb
        with_data = bool(cdb[2] & _SUB_CHANNEL_DATA)
        if with_data and cdb[3] not in (1, 2, 3):
            raise SenseError(s.INVALID_FIELD)
        self.reply(command, mmc.sub_channel(cdb[3], in_msf=bool(cdb[1] & _MSF), with_data=with_data))

    def read_disc_information(self, command: ScsiCommand) -> None:
        """READ DISC INFORMATION (6.22): types 1 and 2 are for media that can be written in ways this one cannot."""
        if command.cdb[1] & 7:
            raise SenseError(s.INVALID_FIELD)
        self.reply(command, mmc.disc_information())

    def read_dvd_structure(self, command: ScsiCommand) -> None:
        """READ DVD STRUCTURE (6.23)."""
        cdb = command.cdb
        layer, data_format = cdb[6], cdb[7]
        if cdb[1] & 0xF:
            raise SenseError(s.INVALID_FIELD)  # not for Blu-ray
        if data_format != mmc.DVD_LIST:
            if not self.ready:
                raise SenseError(s.NO_MEDIUM)
            if mmc.profile(self.blocks) != mmc.PROFILE_DVD_ROM:
                raise SenseError(s.INCOMPATIBLE_MEDIUM)
        structure = mmc.dvd_structure(data_format, self.blocks)
        if structure is None or layer:
            raise SenseError(s.INVALID_FIELD)
        self.reply(command, structure)

    # Reading

    def read(self, command: ScsiCommand) -> None:
        """READ (6), (10), (12) and (16)."""
        cdb = command.cdb
        operation = self.operations[cdb[0]]
        count = self.length_of(cdb, operation) // mmc.BLOCK
        if cdb[0] == c.READ_6:
            lba = (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3]
        else:
            lba = int.from_bytes(cdb[2:10] if cdb[0] == c.READ_16 else cdb[2:6], "big")
        self._read_blocks(command, lba, count)

    def _read_blocks(self, command: ScsiCommand, lba: int, count: int) -> None:
        if lba + count > self.blocks:
            raise SenseError(s.LBA_OUT_OF_RANGE)
        buffers = clip(command.data_in, count * mmc.BLOCK)
        length = total(buffers)
        if not length:
            self.finish(command)
            return
        self.backend.read(lba * mmc.BLOCK, buffers, lambda error: self.finish_io(command, error, length))

    def read_cd(self, command: ScsiCommand) -> None:
        """READ CD and READ CD MSF (6.19, 6.20): data, or any parts of the whole sectors; sub-channels are not read."""
        cdb = command.cdb
        lba, count = _cd_range(cdb)
        selection = cdb[9] & 0xF8
        if cdb[1] >> 2 & 7 not in _SECTOR_TYPES:
            raise SenseError(s.INVALID_FIELD)
        if cdb[9] & cd_sector.SELECT_ERRORS or cdb[10] & 7 or count < 0:
            raise SenseError(s.INVALID_FIELD)
        if lba < 0 or lba + count > self.blocks:
            raise SenseError(s.LBA_OUT_OF_RANGE)
        size = cd_sector.selected_length(selection)
        if not count or not size:
            self.finish(command)
        elif size == mmc.BLOCK and selection & cd_sector.SELECT_DATA:
            self._read_blocks(command, lba, count)
        else:
            buffers = clip(command.data_in, count * size)
            length = total(buffers)
            sectors = -(-length // size)
            self.run_steps(
                self._read_raw(buffers, lba, sectors, selection),
                lambda error: self.finish_io(command, error, length),
            )

    def _read_raw(self, buffers: Buffers, lba: int, count: int, selection: int) -> Iterator[Step]:
        """Read piece by piece and build sectors around the data."""
        room = total(buffers)
        cursor = Cursor(buffers)
        while count:
            blocks = min(count, _RAW_PIECE)
            data = memoryview(bytearray(blocks * mmc.BLOCK))
            start = lba * mmc.BLOCK
            yield lambda done, start=start, data=data: self.backend.read(start, (data,), done)  # type: ignore[misc]
            parts = b"".join(
                cd_sector.select(
                    cd_sector.whole(lba + index, data[index * mmc.BLOCK : (index + 1) * mmc.BLOCK]), selection
                )
                for index in range(blocks)
            )[:room]
            copy_in(cursor.take(len(parts)), parts)
            room -= len(parts)
            lba += blocks
            count -= blocks

    def seek(self, command: ScsiCommand) -> None:
        """SEEK."""
        if int.from_bytes(command.cdb[2:6], "big") >= self.blocks:
            raise SenseError(s.LBA_OUT_OF_RANGE)
        self.finish(command)

    def set_speed(self, command: ScsiCommand) -> None:
        """SET CD SPEED, SYNCHRONIZE CACHE, VERIFY without data: nothing to do."""
        self.finish(command)

    def length_of(self, cdb: bytes, operation: Operation) -> int:
        """Return the bytes of data; READ CD counts sectors of what is selected."""
        if cdb[0] in (c.READ_CD, c.READ_CD_MSF):
            return max(_cd_range(cdb)[1], 0) * cd_sector.selected_length(cdb[9])
        return super().length_of(cdb, operation)

    # Modes

    def mode_sense(self, command: ScsiCommand) -> None:
        """MODE SENSE (6) and (10): no block descriptor, no device-specific parameter (MMC-5, 7.2)."""
        asked = ModeSense.parse(command.cdb)
        self.reply(command, mode.answer(asked, self._mode_pages(), 0, None, mmc.BLOCK))

    def mode_select(self, command: ScsiCommand) -> None:
        """MODE SELECT (6) and (10): nothing can be changed, but what is may be set again."""
        mode.select(command.cdb, self.parameters(command), self._mode_pages(), lambda count, size: size == mmc.BLOCK)
        self.finish(command, None, self.length_of(command.cdb, self.operations[command.cdb[0]]))

    def _mode_pages(self) -> list[ModePage]:
        recovery = bytearray(6 if self.atapi else 10)
        recovery[1] = _FIRST_PERIOD_RETRIES
        audio = bytearray(14)
        audio[0] = 0x04  # operations end at once
        return [
            ModePage(c.PAGE_ERROR_RECOVERY, bytes(recovery)),
            ModePage(c.PAGE_AUDIO, bytes(audio)),
            ModePage(c.PAGE_CAPABILITIES, mmc.capabilities(locked=self.medium_locked, with_medium=self.ready)),
        ]

    # A new medium

    def attend_medium(self, loaded: bool) -> None:
        """ATAPI: the next command finds no medium, the one after it a unit attention, if there is a medium by then."""
        if self.atapi:
            self._change_step = _CHANGE_GONE
        else:
            super().attend_medium(loaded)

    def next_attention(self) -> Sense | None:
        """Take what is to be reported now."""
        if self._change_step == _CHANGE_DONE or not self.ready:
            return super().next_attention()
        if self._change_step == _CHANGE_GONE:
            self._change_step = _CHANGE_ARRIVED
            return s.NO_MEDIUM
        self._change_step = _CHANGE_DONE
        return s.MEDIUM_CHANGED

    def resized(self) -> None:
        """The medium is another one, as far as the guest can know."""
        self.attend_medium(True)


def _cd_range(cdb: bytes) -> tuple[int, int]:
    """Return first block and number of blocks of READ CD or READ CD MSF; both may be negative for the latter."""
    if cdb[0] == c.READ_CD:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:9], "big")
    first = mmc.from_msf(cdb[3:6])
    return first, mmc.from_msf(cdb[6:9]) - first


def _blocks_at(at: int, size: int, handler: object) -> Operation:
    return Operation(handler, Direction.IN, at, size, blocks=True, medium=True)  # type: ignore[arg-type]


ScsiCd.operations = {
    **PRIMARY,
    **UNIT,
    c.INQUIRY: data_in(ScsiCd.inquiry, 3, 2, before_attention=True),
    c.MODE_SENSE_6: data_in(ScsiCd.mode_sense, 4, 1),
    c.MODE_SENSE_10: data_in(ScsiCd.mode_sense, 7, 2),
    c.MODE_SELECT_6: data_out(ScsiCd.mode_select, 4, 1),
    c.MODE_SELECT_10: data_out(ScsiCd.mode_select, 7, 2),
    c.READ_6: _blocks_at(4, 1, ScsiCd.read),
    c.READ_10: _blocks_at(7, 2, ScsiCd.read),
    c.READ_12: _blocks_at(6, 4, ScsiCd.read),
    c.READ_16: _blocks_at(10, 4, ScsiCd.read),
    c.READ_CD: Operation(ScsiCd.read_cd, Direction.IN, medium=True),
    c.READ_CD_MSF: Operation(ScsiCd.read_cd, Direction.IN, medium=True),
    c.READ_CAPACITY_10: Operation(ScsiCd.read_capacity, Direction.IN, fixed=8, medium=True),
    c.SEEK_10: Operation(ScsiCd.seek, medium=True),
    c.SYNCHRONIZE_CACHE_10: Operation(ScsiCd.set_speed, medium=True),
    c.SET_CD_SPEED: Operation(ScsiCd.set_speed),
    c.READ_TOC: data_in(ScsiCd.read_toc, 7, 2, medium=True),
    c.READ_SUB_CHANNEL: data_in(ScsiCd.read_sub_channel, 7, 2, medium=True),
    c.READ_DISC_INFORMATION: data_in(ScsiCd.read_disc_information, 7, 2, medium=True),
    c.READ_DVD_STRUCTURE: data_in(ScsiCd.read_dvd_structure, 8, 2),
    c.GET_CONFIGURATION: data_in(ScsiCd.get_configuration, 7, 2, before_attention=True),
    c.GET_EVENT_STATUS: data_in(ScsiCd.get_event_status, 7, 2, before_attention=True),
    c.MECHANISM_STATUS: data_in(ScsiCd.mechanism_status, 8, 2),
}
