"""A CD drive on an IDE channel: the packet commands of ATAPI as a transport for SCSI commands.

ATA/ATAPI-6 (T13/1410D), sections 8.25 (PACKET) and 9.8 to 9.10 (its protocols).  What the packets say is the business
of :class:`pyvm.devices.scsi.cdrom.ScsiCd`.  By PIO, long reads are carried out in pieces that fit the buffer.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, Final

from pyvm.devices.ide import constants as c
from pyvm.devices.ide import identify as ident
from pyvm.devices.ide.drive import BUFFER_SIZE, TaskFileState, TransferState, check_transfer
from pyvm.devices.ide.real_drive import RealDrive
from pyvm.devices.properties import Properties, Property
from pyvm.devices.scsi import constants as scsi
from pyvm.devices.scsi import mmc
from pyvm.devices.scsi.cdrom import ScsiCd
from pyvm.devices.scsi.target import Direction, Identity, ScsiCommand, ScsiResult, ScsiState
from pyvm.state import State, StateError, blob, flag, integer, record, uint

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

FEATURE_DMA: Final = 1 << 0
FEATURE_OVERLAP: Final = 1 << 1
MAX_BYTE_COUNT: Final = 0xFFFE

DEFAULT_MODEL: Final = "QEMU DVD-ROM"
DEFAULT_VERSION: Final = "2.5+"

_READS: Final = (scsi.READ_6, scsi.READ_10, scsi.READ_12)
_RAW_READS: Final = (scsi.READ_CD, scsi.READ_CD_MSF)


class Activity(enum.IntEnum):
    """What a drive is doing between the writing of a command and its end."""

    NONE = 0
    PACKET = 1  # the guest writes the packet
    REPLY = 2  # the guest reads IDENTIFY PACKET DEVICE
    PLAIN = 3  # a packet without data
    IN = 4  # data by PIO
    OUT = 5
    DMA_IN = 6
    DMA_OUT = 7


_BY_DMA: Final = (Activity.DMA_IN, Activity.DMA_OUT)


class AtapiState(State):
    """What a drive keeps besides its task file, and the state of the unit that carries out packets.

    `limit` is the most bytes of a block of data, `length` how many the buffer holds or is to hold, `fetched` how many
    blocks of a read were put there so far.
    """

    transfer: TransferState = record(TransferState)
    activity: int = integer(0, max(Activity))
    packet: bytes = blob(c.PACKET_SIZE, exact=True)
    dma: bool = flag()
    limit: int = uint(16)
    length: int = integer(0, BUFFER_SIZE)
    fetched: int = uint(32)
    mode: int = uint(8, ident.MODE_RESET)
    asleep: bool = flag()
    standby: bool = flag()
    unit: ScsiState = record(ScsiState)


class AtapiCd(RealDrive):
    """A CD or DVD drive with `backend` as its medium.

    `serial` None is the back end's, or else one made of the drive's place.  Raises ValueError for properties that
    cannot be, and BlockError where the back end has a device already.
    """

    kind = "cd"
    signature = c.SIGNATURE_PACKET
    PROPERTIES: ClassVar[Properties] = {
        "drive": Property("drive", None, "Node name or ID of a block device to use as a backend"),
        "unit": Property("uint32", 4294967295, "0: master, 1: slave"),
        "serial": Property("str", None, "serial number, at most 20 characters"),
        "ver": Property("str", None, "firmware version, at most 8 characters"),
        "model": Property("str", None, "model, at most 40 characters"),
        "wwn": Property("uint64", 0, "world wide name; 0: none"),
        "bootindex": Property("int32", None, "place in the order of boot devices"),
    }

    def __init__(
        self,
        backend: BlockBackend,
        *,
        serial: str | None = None,
        model: str | None = None,
        version: str | None = None,
        wwn: int = 0,
    ) -> None:
        super().__init__()
        version = version or DEFAULT_VERSION
        self.names = ident.Names(backend.serial if serial is None else serial, version, model or DEFAULT_MODEL)
        self._wwn = wwn
        backend.removable = True
        self.backend = backend
        self.unit = ScsiCd(backend, identity=Identity(version=version[:4], serial=self.names.serial), atapi=True)
        self._set_state(AtapiState())

    def _set_state(self, state: AtapiState) -> None:
        self._activity = Activity(state.activity)
        self._packet = state.packet
        self._dma = state.dma
        self._limit = state.limit
        self._length = state.length
        self._fetched = state.fetched
        self._piece = 0
        self._mode = state.mode
        self._asleep = state.asleep
        self._standby = state.standby

    # -- commands ---------------------------------------------------------------------------------------------------

    def write_command(self, value: int) -> None:
        """Carry out command `value`; DEVICE RESET is heard at any time."""
        if value == c.DEVICE_RESET:
            self._device_reset()
        else:
            super().write_command(value)

    def _device_reset(self) -> None:
        unit = self.registers[c.DEVICE] & c.DEVICE_1
        self.abort()
        self.finish_reset()
        self.registers[c.DEVICE] |= unit

    def start_packet(self) -> None:
        """PACKET: ask for the command packet."""
        features = self.registers[c.FEATURES]
        if features & FEATURE_OVERLAP:
            self.fail(c.ABRT)
            return
        self._dma = bool(features & FEATURE_DMA)
        self._limit = self.registers[c.LBA_MID] | self.registers[c.LBA_HIGH] << 8
        self._standby = False
        self._activity = Activity.PACKET
        self.registers[c.COUNT] = c.REASON_COMMAND
        self.expect(c.PACKET_SIZE, interrupt=False)

    def identify_packet(self) -> None:
        """IDENTIFY PACKET DEVICE."""
        self._activity = Activity.REPLY
        self.filled = 0
        self.data[: c.IDENTIFY_SIZE] = ident.packet(self.names, self._mode, self._wwn)
        self.offer(0, c.IDENTIFY_SIZE)

    def refuse_disk_command(self) -> None:
        """End a command by which software tries whether this is a disk: the signature says what it is."""
        self.registers[c.COUNT : c.DEVICE] = bytes(self.signature)
        self.fail(c.ABRT)

    # -- packets ----------------------------------------------------------------------------------------------------

    def block_written(self) -> None:
        """The guest has written the packet, or a block of its data."""
        if self._activity is Activity.PACKET:
            self._packet = bytes(self.view[: c.PACKET_SIZE])
            self._start()
        elif self.position < self._length:
            self._expect_block(self.position)
        else:
            self._send_out()

    def _start(self) -> None:
        """Carry out the packet."""
        direction, length = self.unit.demand(self._packet)
        self.status = c.BUSY
        self._fetched = self._length = 0
        if direction is Direction.NONE or not length:
            self._activity = Activity.PLAIN
            self._execute_plain()
        elif self._dma:
            self._activity = Activity.DMA_IN if direction is Direction.IN else Activity.DMA_OUT
            self._request_dma()
        elif not self._limit:
            self._activity = Activity.NONE
            self.fail(c.ABRT)
        elif direction is Direction.IN:
            self._activity = Activity.IN
            self._fetch()
        else:
            self._activity = Activity.OUT
            self._length = min(length, BUFFER_SIZE)
            self._expect_block(0)

    def _execute_plain(self) -> None:
        self.unit.execute(ScsiCommand(self._packet, (), (), self.guarded(self._ended)))

    def _ended(self, result: ScsiResult) -> None:
        """End the command as the unit says."""
        self._activity = Activity.NONE
        self.registers[c.COUNT] = c.REASON_COMMAND | c.REASON_IN
        if result.status == scsi.STATUS_GOOD:
            self.succeed()
        else:
            self.fail((result.sense[2] & 0xF) << 4 if len(result.sense) > 2 else c.ABRT)

    def _block_limit(self) -> int:
        """Return the most bytes of a block: only the last may be odd, so the limit is even."""
        return max(min(self._limit, MAX_BYTE_COUNT) & ~1, 2)

    # -- PIO --------------------------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        """Let the unit put data into the buffer: all, or of a long read the next piece."""
        self.status = c.BUSY
        packet, self._piece = self._next_piece()
        self.unit.execute(ScsiCommand(packet, (self.view,), (), self.guarded(self._have_data)))

    def _next_piece(self) -> tuple[bytes, int]:
        """Return the packet to carry out now and how many blocks it reads; 0 where it is the whole command."""
        packet = self._packet
        _, length = self.unit.demand(packet)
        if packet[0] not in _READS + _RAW_READS or length <= BUFFER_SIZE:
            return packet, 0
        lba, count = _read_range(packet)
        if not 0 <= lba <= lba + count <= self.unit.blocks or not count:
            return packet, 0  # which fails
        pieces = BUFFER_SIZE // (length // count)
        left = count - self._fetched
        return _read_packet(packet, lba + self._fetched, min(pieces, left)), min(pieces, left)

    def _have_data(self, result: ScsiResult) -> None:
        if result.status != scsi.STATUS_GOOD or not result.transferred:
            self._ended(result)
            return
        self._fetched += self._piece
        self._length = min(result.transferred, BUFFER_SIZE)
        self.filled = self._length
        if self._length & 1:
            self.data[self._length] = 0
            self.filled += 1
        self._offer_block(0)

    def _offer_block(self, start: int) -> None:
        """Let the guest read the next block of the buffer."""
        count = min(self._block_limit(), self._length - start)
        self.registers[c.LBA_MID : c.DEVICE] = count.to_bytes(2, "little")
        self.registers[c.COUNT] = c.REASON_IN
        self.offer(start, count + (count & 1))

    def block_read(self) -> None:
        """The guest has read a block: show the next one, fetch more, or end."""
        if self._activity is not Activity.IN:
            self._activity = Activity.NONE
            self.status = c.READY
        elif self.position < self._length:
            self._offer_block(self.position)
        elif self._fetched and self._fetched < _read_range(self._packet)[1]:
            self._fetch()
        else:
            self._ended(ScsiResult(scsi.STATUS_GOOD))

    def _expect_block(self, start: int) -> None:
        """Let the guest write the next block of data to the buffer."""
        count = min(self._block_limit(), self._length - start)
        self.registers[c.LBA_MID : c.DEVICE] = count.to_bytes(2, "little")
        self.registers[c.COUNT] = 0
        self.expect(count + (count & 1), interrupt=True, start=start)

    def _send_out(self) -> None:
        """Give the unit the data that the guest has written."""
        self.status = c.BUSY
        data = self.view[: self._length]
        self.unit.execute(ScsiCommand(self._packet, (), (data,), self.guarded(self._ended)))

    # -- DMA --------------------------------------------------------------------------------------------------------

    def _request_dma(self) -> None:
        _, length = self.unit.demand(self._packet)
        self.status = c.READY | c.DRQ
        self.registers[c.COUNT] = c.REASON_IN if self._activity is Activity.DMA_IN else 0
        self.bus.dma_request(self, length, to_memory=self._activity is Activity.DMA_IN)

    def dma_start(self, buffers: list[memoryview]) -> None:
        """Carry out the packet with guest memory as its buffers."""
        self.status = c.BUSY
        done = self.guarded(self._moved)
        if self._activity is Activity.DMA_IN:
            self.unit.execute(ScsiCommand(self._packet, buffers, (), done))
        else:
            self.unit.execute(ScsiCommand(self._packet, (), buffers, done))

    def _moved(self, result: ScsiResult) -> None:
        if result.status == scsi.STATUS_GOOD:
            self.bus.dma_complete(result.transferred)
        else:
            self.bus.dma_abort()
        self._ended(result)

    def dma_failed(self) -> None:
        """End the command: the engine met memory that is not there."""
        self._activity = Activity.NONE
        self.registers[c.COUNT] = c.REASON_COMMAND | c.REASON_IN
        self.fail(c.ABRT)

    # -- life -------------------------------------------------------------------------------------------------------

    def finish_reset(self) -> None:
        """Show the signature, and do nothing."""
        super().finish_reset()
        self._activity = Activity.NONE

    def reset(self) -> None:
        """Return to the state after power-on: the tray is closed, and not locked."""
        super().reset()
        self.unit.reset()
        self._set_state(AtapiState())

    def save(self) -> AtapiState:
        """Return what is not in the task file; a packet that waits for the back end is started again by a load."""
        transfer = self.save_transfer()
        if self._activity is Activity.OUT and self.status & c.BSY:
            transfer.data = bytes(self.view[: self._length + (self._length & 1)])
        return AtapiState(
            transfer=transfer,
            activity=int(self._activity),
            packet=self._packet,
            dma=self._dma,
            limit=self._limit,
            length=self._length,
            fetched=self._fetched,
            mode=self._mode,
            asleep=self._asleep,
            standby=self._standby,
            unit=self.unit.save(),
        )

    def check(self, state: AtapiState, file: TaskFileState) -> None:
        """Raise StateError unless the drive can be in `state`, its task file being `file`."""
        transfer = state.transfer
        activity = Activity(state.activity)
        check_transfer(transfer)
        if not ident.valid_mode(state.mode):
            raise StateError("AtapiState.mode: no transfer mode")
        if transfer.in_end and activity not in (Activity.IN, Activity.REPLY):
            raise StateError("TransferState.in_end: the command has no data to read")
        if transfer.out_end and activity not in (Activity.PACKET, Activity.OUT):
            raise StateError("TransferState.out_end: the command has no data to write")
        if activity is Activity.PACKET and transfer.out_end != c.PACKET_SIZE:
            raise StateError("TransferState.out_end: not a packet")
        room = state.length + (state.length & 1)
        if activity in (Activity.IN, Activity.OUT) and max(transfer.in_end, transfer.out_end) > room:
            raise StateError("TransferState: more than the buffer holds")
        if activity is Activity.IN and transfer.in_end and len(transfer.data) != room:
            raise StateError("TransferState.data: not what the buffer holds")
        moving = bool(transfer.in_end or transfer.out_end)
        if moving != bool(file.status & c.DRQ) and activity not in _BY_DMA:
            raise StateError("TaskFileState.status: a data phase that is none")
        direction, length = self.unit.demand(state.packet)
        wanted = _DIRECTIONS.get(activity)
        if wanted is not None and (direction is not wanted or not length):
            raise StateError("AtapiState.packet: a command with other data")
        reads = state.packet[0] in _READS + _RAW_READS
        if state.fetched > (max(_read_range(state.packet)[1], 0) if reads else 0):
            raise StateError("AtapiState.fetched: more than the command reads")
        if activity is Activity.OUT and state.length != min(length, BUFFER_SIZE):
            raise StateError("AtapiState.length: not what the command takes")

    def load(self, state: AtapiState) -> None:
        """Take over a state that :meth:`check` has passed, and go on with what the drive was doing."""
        self._set_state(state)
        self.unit.load(state.unit)
        self.load_transfer(state.transfer)
        activity = self._activity
        if activity in _BY_DMA:
            self._request_dma()
        elif not self.status & c.BSY:
            return
        elif activity is Activity.PLAIN:
            self._execute_plain()
        elif activity is Activity.OUT:
            self._send_out()
        elif activity is Activity.IN:
            self._fetch()


_DIRECTIONS: Final = {
    Activity.IN: Direction.IN,
    Activity.DMA_IN: Direction.IN,
    Activity.OUT: Direction.OUT,
    Activity.DMA_OUT: Direction.OUT,
}


def _read_range(packet: bytes) -> tuple[int, int]:
    """Return first block and number of blocks of a packet that reads."""
    kind = packet[0]
    if kind == scsi.READ_6:
        return int.from_bytes(packet[1:4], "big") & 0x1F_FFFF, packet[4] or 256
    if kind == scsi.READ_CD_MSF:
        first = mmc.from_msf(packet[3:6])
        return first, mmc.from_msf(packet[6:9]) - first
    first = int.from_bytes(packet[2:6], "big")
    if kind == scsi.READ_10:
        return first, int.from_bytes(packet[7:9], "big")
    if kind == scsi.READ_CD:
        return first, int.from_bytes(packet[6:9], "big")
    return first, int.from_bytes(packet[6:10], "big")


def _read_packet(packet: bytes, lba: int, count: int) -> bytes:
    """Return the packet that reads `count` blocks from `lba` on as `packet` does."""
    if packet[0] in _RAW_READS:
        head = bytes((scsi.READ_CD, packet[1])) + lba.to_bytes(4, "big") + count.to_bytes(3, "big")
        return head + packet[9:]
    return bytes((scsi.READ_12, 0)) + lba.to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(2)


AtapiCd.commands = {
    c.PACKET: AtapiCd.start_packet,
    c.IDENTIFY_PACKET: AtapiCd.identify_packet,
    c.IDENTIFY: AtapiCd.refuse_disk_command,
    c.READ_SECTORS: AtapiCd.refuse_disk_command,
    c.SET_FEATURES: AtapiCd.set_features,
    c.FLUSH: AtapiCd.succeed,
    c.CHECK_POWER: AtapiCd.check_power,
    c.STANDBY_IMMEDIATE: AtapiCd.to_standby,
    c.IDLE_IMMEDIATE: AtapiCd.to_idle,
    c.SLEEP: AtapiCd.to_sleep,
}
