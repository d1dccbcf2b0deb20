"""The commands of a floppy controller that find sectors and move their data.

Intel 82077AA CHMOS Single-Chip Floppy Disk Controller (order number 290166), section 5.1.  A command goes over its
sectors in runs that lie next to each other on the disk.  Where the guest uses DMA, a run is moved at once; otherwise
it lies in `data` while the guest moves it by the FIFO, byte by byte.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from pyvm.devices.dma8237 import DmaPair
from pyvm.devices.floppy_media import SECTOR, SIZE_CODE, FloppyDrive
from pyvm.devices.scsi.steps import Step, Steps
from pyvm.state import State, StateError, blob, flag, integer, uint

DMA_CHANNEL: Final = 2
MAX_SECTORS: Final = 48
MAX_RUN: Final = MAX_SECTORS * SECTOR
FORMAT_ENTRY: Final = 4  # C, H, R, N of a sector
MAX_FORMAT: Final = 256 * FORMAT_ENTRY

# Status register 0 (section 4.1)
ST0_ABNORMAL: Final = 0x40
ST0_HEAD: Final = 0x04
# Status register 1
ST1_END_OF_CYLINDER: Final = 0x80
ST1_DATA_ERROR: Final = 0x20
ST1_OVERRUN: Final = 0x10
ST1_NO_DATA: Final = 0x04
ST1_NOT_WRITABLE: Final = 0x02
ST1_MISSING_ADDRESS: Final = 0x01
# Status register 2
ST2_CONTROL_MARK: Final = 0x40
ST2_WRONG_CYLINDER: Final = 0x10
ST2_SCAN_EQUAL: Final = 0x08
ST2_SCAN_NOT_SATISFIED: Final = 0x04

_ANY_BYTE: Final = 0xFF  # of scan data: matches everything
_LAST_SECTOR: Final = 255


class Kind(enum.IntEnum):
    """What a command does with each sector."""

    READ = 0
    WRITE = 1
    READ_DELETED = 2
    READ_TRACK = 3
    VERIFY = 4
    FORMAT = 5
    SCAN_EQUAL = 6
    SCAN_LOW = 7
    SCAN_HIGH = 8


_SCANS: Final = (Kind.SCAN_EQUAL, Kind.SCAN_LOW, Kind.SCAN_HIGH)
_TO_HOST: Final = (Kind.READ, Kind.READ_DELETED, Kind.READ_TRACK)


class FloppyTransferState(State):
    """A command on its way.

    `cylinder`, `head_id` and `sector` are the address of the next sector, `end` the last of a track, `left` how many
    sectors remain to be verified (or of the track to be read; for writes and scans, 1 once the terminal count has
    come), `data` the bytes that lie between disk and guest and
    `position` how far the guest is; `waiting` says that it is the guest's turn.
    """

    kind: int = integer(0, max(Kind))
    drive: int = uint(1)
    side: int = uint(1)
    cylinder: int = uint(8)
    head_id: int = uint(8)
    sector: int = integer(0, 256)
    size_code: int = uint(8)
    end: int = uint(8)
    multi_track: bool = flag()
    skip: bool = flag()
    dma: bool = flag()
    step: int = uint(8, 1)
    left: int = integer(0, 1024)
    fill: int = uint(8)
    data: bytes = blob(MAX_RUN)
    position: int = integer(0, MAX_RUN)
    waiting: bool = flag()


class Controller(Protocol):
    """What a transfer needs of its controller."""

    def wants_data(self) -> None:
        """It is the guest's turn to move bytes by the FIFO."""

    def transfer_ended(self, st0: int, st1: int, st2: int) -> None:
        """The command is over: enter the result phase."""


class FloppyTransfer:
    """One command on its way; `state` is all of it."""

    def __init__(self, controller: Controller, drive: FloppyDrive, dma: DmaPair, state: FloppyTransferState) -> None:
        self._controller = controller
        self._drive = drive
        self._dma = dma
        self.state = state
        self.cancelled = False
        self._buffer = bytearray(state.data)

    @property
    def kind(self) -> Kind:
        """What the command does."""
        return Kind(self.state.kind)

    @property
    def to_host(self) -> bool:
        """Whether data goes from the disk to the guest."""
        return self.kind in _TO_HOST

    # -- finding sectors --------------------------------------------------------------------------------------------

    def start(self, rate: int) -> None:
        """Begin; `rate` is the data rate that the guest has set."""
        state, drive = self.state, self._drive
        layout = drive.format
        if not drive.loaded or rate not in layout.rates or state.side >= layout.heads or drive.track >= layout.tracks:
            self._fail(ST1_MISSING_ADDRESS)
        elif self.kind in (Kind.WRITE, Kind.FORMAT) and drive.write_protected:
            self._fail(ST1_NOT_WRITABLE)
        elif self.kind is Kind.FORMAT:
            self._next_format()
        elif state.cylinder != drive.track:
            self._fail(ST1_NO_DATA, ST2_WRONG_CYLINDER)
        elif state.size_code != SIZE_CODE or (self.kind is Kind.READ_DELETED and state.skip):
            self._fail(ST1_NO_DATA)
        else:
            self._next_run()

    def _run_length(self) -> int:
        """Return how many sectors from the next one on lie in a row on this side and belong to the command."""
        state = self.state
        last = state.end if state.end >= state.sector else _LAST_SECTOR
        count = min(last, self._drive.format.sectors) - state.sector + 1
        if self.kind in (Kind.READ_DELETED, *_SCANS):
            return 1
        if self.kind in (Kind.VERIFY, Kind.READ_TRACK):
            return min(count, state.left)
        if state.dma:
            return min(count, -(-self._dma.remaining(DMA_CHANNEL) // SECTOR))
        return count

    def _next_run(self) -> None:
        state = self.state
        if not 1 <= state.sector <= self._drive.format.sectors:
            self._fail(ST1_NO_DATA)
            return
        count = self._run_length()
        self._buffer = bytearray(count * SECTOR)
        state.position = 0
        if self.kind is Kind.WRITE or self.kind in _SCANS:
            self._ask_guest(count * SECTOR)
        else:
            self._read(self._have_read)

    def _read(self, then: Callable[[int], None]) -> None:
        offset = self._drive.offset(self.state.side, self.state.sector)
        self._drive.backend.read(offset, (memoryview(self._buffer),), self._guarded(then))

    def _guarded(self, then: Callable[[int], None]) -> Callable[[int], None]:
        return lambda error: None if self.cancelled else then(error)

    def _advance(self, sectors: int, *, done: bool) -> None:
        """Go on behind `sectors` sectors that were dealt with; `done` says that nothing more is wanted."""
        state = self.state
        state.sector += sectors
        if self.kind in (Kind.VERIFY, Kind.READ_TRACK):
            state.left -= sectors
            done = done or not state.left
        if done:
            self._end()
        elif state.sector <= (state.end or _LAST_SECTOR):
            self._next_run()
        elif state.multi_track and not state.side and self._drive.format.heads > 1:
            state.side = 1
            state.head_id ^= 1
            state.sector = 1
            self._next_run()
        elif self.kind in _SCANS:
            self._end(0, ST2_SCAN_NOT_SATISFIED)
        else:
            self._fail(ST1_END_OF_CYLINDER)

    # -- ends -------------------------------------------------------------------------------------------------------

    def _fail(self, st1: int, st2: int = 0) -> None:
        self._finish(ST0_ABNORMAL, st1, st2)

    def _end(self, st1: int = 0, st2: int = 0) -> None:
        self._finish(0, st1, st2)

    def _finish(self, st0: int, st1: int, st2: int) -> None:
        side = self.state.side
        self.cancelled = True
        self._controller.transfer_ended(st0 | ST0_HEAD * side | self.state.drive, st1, st2)

    def result_address(self) -> bytes:
        """Return C, H, R and N of the result phase: the sector behind the last one (table 5-5)."""
        state = self.state
        cylinder, head, sector = state.cylinder, state.head_id, state.sector
        if sector > (state.end or _LAST_SECTOR):
            sector = 1
            if not state.multi_track:
                cylinder += 1
            else:
                cylinder += state.side
                head ^= 1
        return bytes((cylinder & 0xFF, head, sector & 0xFF, state.size_code))

    # -- from the disk to the guest ---------------------------------------------------------------------------------

    def _have_read(self, error: int) -> None:
        if error:
            self._fail(ST1_DATA_ERROR, ST1_DATA_ERROR)
        elif self.kind is Kind.VERIFY:
            self._advance(len(self._buffer) // SECTOR, done=False)
        elif self.state.dma:
            self._to_memory()
        else:
            self.state.waiting = True
            self._controller.wants_data()

    def _to_memory(self) -> None:
        wanted = self._dma.remaining(DMA_CHANNEL)
        moved = self._dma.to_memory(DMA_CHANNEL, bytes(self._buffer))
        if moved < len(self._buffer) and moved < wanted:
            self._fail(ST1_OVERRUN)
        else:
            self._moved(moved, terminal=moved >= wanted)

    def _moved(self, length: int, *, terminal: bool) -> None:
        sectors = -(-length // SECTOR)
        if self.kind is Kind.READ_DELETED:
            self._end(0, ST2_CONTROL_MARK)
        else:
            self._advance(sectors, done=terminal)

    # -- from the guest to the disk ---------------------------------------------------------------------------------

    def _ask_guest(self, length: int) -> None:
        """Get `length` bytes from the guest."""
        if not self.state.dma:
            self._buffer = bytearray(length)
            self.state.waiting = True
            self._controller.wants_data()
            return
        wanted = self._dma.remaining(DMA_CHANNEL)
        data = self._dma.from_memory(DMA_CHANNEL, length)
        if len(data) < min(length, wanted):
            self._fail(ST1_OVERRUN)
            return
        if self.kind is Kind.FORMAT:
            self._buffer = bytearray(data[: len(data) // FORMAT_ENTRY * FORMAT_ENTRY])
        else:
            # What a sector lacks when the terminal count comes is filled with zeros.
            self._buffer = bytearray(data) + bytes(-len(data) % SECTOR)
            self.state.left = int(len(data) >= wanted)
        self._have_data()

    def _have_data(self) -> None:
        """The guest's data is in the buffer."""
        if self.kind is Kind.FORMAT:
            self._format_sectors()
        elif self.kind is Kind.WRITE:
            self._write()
        else:
            self._compare()

    def _write(self) -> None:
        offset = self._drive.offset(self.state.side, self.state.sector)
        self._drive.backend.write(offset, (memoryview(self._buffer),), self._guarded(self._have_written))

    def _have_written(self, error: int) -> None:
        if error:
            self._fail(ST1_DATA_ERROR, ST1_DATA_ERROR)
        else:
            self._advance(len(self._buffer) // SECTOR, done=bool(self.state.left))

    def _compare(self) -> None:
        host = bytes(self._buffer)
        self.state.position = SECTOR
        self._read(lambda error: self._have_compared(error, host))

    def _have_compared(self, error: int, host: bytes) -> None:
        if error:
            self._fail(ST1_DATA_ERROR, ST1_DATA_ERROR)
            return
        pairs = [(disk, wanted) for disk, wanted in zip(self._buffer, host, strict=True) if wanted != _ANY_BYTE]
        found, sought = [disk for disk, _ in pairs], [wanted for _, wanted in pairs]
        if found == sought:
            self._end(0, ST2_SCAN_EQUAL)
        elif (self.kind is Kind.SCAN_LOW and found < sought) or (self.kind is Kind.SCAN_HIGH and found > sought):
            self._end()
        elif self.state.left:
            self._end(0, ST2_SCAN_NOT_SATISFIED)
        else:
            self._advance(2 if self.state.step == 2 else 1, done=False)

    def _next_format(self) -> None:
        """Get the ID fields of all sectors of the track."""
        count = self.state.end
        if not count:
            self._end()
        else:
            self._ask_guest(count * FORMAT_ENTRY)

    def _format_sectors(self) -> None:
        """Fill the sectors whose ID fields the guest gave; an image cannot hold others than it has."""
        drive = self._drive
        entries = [self._buffer[start : start + FORMAT_ENTRY] for start in range(0, len(self._buffer), FORMAT_ENTRY)]
        sectors = sorted({entry[2] for entry in entries})
        for entry in entries:
            fits = entry[0] == drive.track and entry[3] == SIZE_CODE and 1 <= entry[2] <= drive.format.sectors
            if not fits:
                self._fail(ST1_NO_DATA)
                return
        done = self._guarded(self._have_formatted)
        Steps(self._format_steps(sectors), done, lambda: not self.cancelled).run()

    def _format_steps(self, sectors: list[int]) -> Iterator[Step]:
        while sectors:
            count = next((n for n in range(1, len(sectors)) if sectors[n] != sectors[0] + n), len(sectors))
            offset = self._drive.offset(self.state.side, sectors[0])
            data = memoryview(bytes((self.state.fill,)) * (count * SECTOR))
            sectors = sectors[count:]

            def step(done: Callable[[int], None], offset: int = offset, data: memoryview = data) -> None:
                self._drive.backend.write(offset, (data,), done)

            yield step

    def _have_formatted(self, error: int) -> None:
        if error:
            self._fail(ST1_DATA_ERROR, ST1_DATA_ERROR)
        else:
            self._end()

    # -- byte by byte -----------------------------------------------------------------------------------------------

    def take_byte(self) -> int:
        """Return the next byte for the guest; the state is `waiting`."""
        state = self.state
        value = self._buffer[state.position]
        state.position += 1
        if state.position == len(self._buffer):
            state.waiting = False
            self._moved(state.position, terminal=False)
        return value

    def put_byte(self, value: int) -> None:
        """Take the next byte from the guest; the state is `waiting`."""
        state = self.state
        self._buffer[state.position] = value
        state.position += 1
        if state.position == len(self._buffer):
            state.waiting = False
            self._have_data()

    @property
    def at_sector(self) -> bool:
        """Whether the guest is at the start of a sector."""
        return not self.state.position % SECTOR

    # -- life -------------------------------------------------------------------------------------------------------

    def save(self) -> FloppyTransferState:
        """Return all of it."""
        state = self.state.copy()
        state.data = bytes(self._buffer)
        return state

    def check(self, track: int) -> None:
        """Raise StateError unless this is a command that can be on its way, the heads being at `track`."""
        state = self.state
        length = len(state.data)
        if state.waiting and (state.dma or state.position >= length):
            raise StateError("FloppyTransferState.position: nothing is left to move")
        if self.kind is Kind.FORMAT:
            if length % FORMAT_ENTRY or length > MAX_FORMAT:
                raise StateError("FloppyTransferState.data: not ID fields")
            return
        if length % SECTOR or not length:
            raise StateError("FloppyTransferState.data: not whole sectors")
        if self.kind in _SCANS and length != SECTOR:
            raise StateError("FloppyTransferState.data: a scan compares one sector at a time")
        if not 1 <= state.sector <= self._drive.format.sectors - length // SECTOR + 1:
            raise StateError("FloppyTransferState.sector: not on the disk")
        if self.kind in (Kind.VERIFY, Kind.READ_TRACK) and state.left < length // SECTOR:
            raise StateError("FloppyTransferState.left: less than is being read")
        if state.side >= self._drive.format.heads or track >= self._drive.format.tracks:
            raise StateError("FloppyTransferState.side: not on the disk")

    def restart(self) -> None:
        """Start again what the back end was doing."""
        if self.state.waiting:
            return
        if self.kind is Kind.FORMAT:
            self._format_sectors()
        elif self.kind is Kind.WRITE:
            self._write()
        elif self.kind in _SCANS:
            self._compare()
        else:
            self._read(self._have_read)
