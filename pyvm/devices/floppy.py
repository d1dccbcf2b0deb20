"""The floppy disk controller of a PC.

Intel 82077AA CHMOS Single-Chip Floppy Disk Controller (order number 290166), in PC AT mode: registers in section 2.1,
commands in section 5.  Mechanics take no time: heads arrive at once, and interrupts come before the guest looks.
Ports 0x3f0 to 0x3f5 are the register block, port 0x3f7 is DIR and CCR; 0x3f6 between them is the IDE controller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from pyvm.clock import Clock
from pyvm.devices.dma8237 import DmaPair
from pyvm.devices.floppy_media import SIZE_CODE, DriveType, FloppyDrive
from pyvm.devices.floppy_registers import (
    CONFIG_IMPLIED_SEEK,
    CONFIG_NO_POLL,
    CONFIG_RESET,
    CONFIG_WRITABLE,
    DIR_CHANGED,
    DOR,
    DOR_DMA_GATE,
    DOR_DRIVE,
    DOR_MOTORS_SHIFT,
    DOR_NOT_RESET,
    DRIVES,
    DSR,
    DSR_RESET,
    FIFO,
    FLAG_MULTI_TRACK,
    FLAG_SKIP,
    HLT_NOT_DMA,
    LOCK_FLAG,
    MSR,
    MSR_BUSY,
    MSR_NOT_DMA,
    MSR_READY,
    MSR_TO_HOST,
    PERPENDICULAR_DRIVES,
    PERPENDICULAR_MODE,
    PERPENDICULAR_OVERWRITE,
    RATE_MASK,
    RELATIVE_IN,
    SELECT_DRIVE,
    SELECT_HEAD,
    SELECTABLE,
    SRB,
    SRB_DRIVE_0,
    SRB_MOTORS,
    SRB_ONES,
    ST0_EQUIPMENT_CHECK,
    ST0_INVALID,
    ST0_READY_CHANGED,
    ST0_SEEK_END,
    ST3_ONES,
    ST3_TRACK_0,
    ST3_WRITE_PROTECT,
    TDR,
    TDR_WRITABLE,
    VERIFY_COUNT,
    VERSION_ENHANCED,
    FloppyState,
    Phase,
)
from pyvm.devices.floppy_transfer import (
    ST0_ABNORMAL,
    ST1_MISSING_ADDRESS,
    FloppyTransfer,
    FloppyTransferState,
    Kind,
)
from pyvm.devices.properties import Properties, Property
from pyvm.irq import IrqLine
from pyvm.records import record
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_RECALIBRATE_STEPS: Final = 79
_ROTATION_NS: Final = 200_000_000


@record(frozen=True)
class _Command:
    mask: int
    code: int
    length: int
    """Bytes of the command phase, the command itself among them."""
    handler: Callable[[FloppyController], None]


class FloppyController:
    """The controller and its drives A and B.

    `irq` is ISA interrupt 6; data moves over channel 2 of `dma`.  `drives` are the back ends, None where there is no
    drive; `types` what kind they are, None to tell by the disk, or `fallback` without one.
    """

    PROPERTIES: ClassVar[Properties] = {
        "fdtypeA": Property("FdcDriveType", "auto", "FDC drive type, 144/288/120/none/auto"),
        "fdtypeB": Property("FdcDriveType", "auto", "FDC drive type, 144/288/120/none/auto"),
        "fallback": Property("FdcDriveType", "288", "FDC drive type, 144/288/120/none/auto"),
        "bootindexA": Property("int32", None, "place of drive A in the order of boot devices"),
        "bootindexB": Property("int32", None, "place of drive B in the order of boot devices"),
    }
    DRIVE_PROPERTIES: ClassVar[Properties] = {
        "drive": Property("drive", None, "Node name or ID of a block device to use as a backend"),
        "drive-type": Property("FdcDriveType", "auto", "FDC drive type, 144/288/120/none/auto"),
        "unit": Property("uint32", 4294967295, "0: drive A, 1: drive B"),
    }

    def __init__(
        self,
        irq: IrqLine,
        dma: DmaPair,
        clock: Clock,
        drives: Sequence[BlockBackend | None],
        *,
        types: Sequence[DriveType | None] = (None, None),
        fallback: DriveType = DriveType.D288,
    ) -> None:
        self._irq = irq
        self._dma = dma
        self._clock = clock
        self.drives: list[FloppyDrive | None] = [
            None if backend is None or kind is DriveType.NONE else FloppyDrive(backend, kind, fallback)
            for backend, kind in zip(drives, types, strict=True)
        ]
        self._state = FloppyState()
        self._transfer: FloppyTransfer | None = None

    # -- ports ------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Read one of the ports 0x3f0 to 0x3f5; accesses of one byte."""
        state = self._state
        if offset == SRB:
            motors = state.dor >> DOR_MOTORS_SHIFT & SRB_MOTORS
            return SRB_ONES | motors | (SRB_DRIVE_0 if state.dor & 1 else 0)
        if offset == DOR:
            return state.dor
        if offset == TDR:
            return state.tdr
        if offset == MSR:
            return self._main_status()
        if offset == FIFO:
            return self._read_fifo()
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Write one of the ports 0x3f0 to 0x3f5; accesses of one byte."""
        value &= 0xFF
        if offset == DOR:
            self._write_dor(value)
        elif offset == TDR:
            self._state.tdr = value & TDR_WRITABLE
        elif offset == DSR:
            self._state.rate = value & RATE_MASK
            if value & DSR_RESET:
                self._software_reset()
                self._leave_reset()
        elif offset == FIFO:
            self._write_fifo(value)

    def dir_read(self, offset: int, size: int) -> int:
        """Read port 0x3f7: the disk change line of the selected drive."""
        drive = self._drive(self._state.dor & DOR_DRIVE)
        return DIR_CHANGED if drive is not None and drive.changed else 0

    def ccr_write(self, offset: int, size: int, value: int) -> None:
        """Write port 0x3f7: the data rate."""
        self._state.rate = value & RATE_MASK

    def _main_status(self) -> int:
        state = self._state
        if not state.dor & DOR_NOT_RESET:
            return 0
        if state.phase == Phase.COMMAND:
            return MSR_READY | (MSR_BUSY if state.fifo else 0)
        if state.phase == Phase.RESULT:
            return MSR_READY | MSR_TO_HOST | MSR_BUSY
        transfer = self._transfer
        if transfer is None or transfer.state.dma:
            return MSR_BUSY
        waiting = MSR_READY | (MSR_TO_HOST if transfer.to_host else 0) if transfer.state.waiting else 0
        return MSR_BUSY | MSR_NOT_DMA | waiting

    def _write_dor(self, value: int) -> None:
        changed = self._state.dor ^ value
        self._state.dor = value
        if changed & DOR_NOT_RESET:
            if value & DOR_NOT_RESET:
                self._leave_reset()
            else:
                self._software_reset()
        self._update_irq()

    def _drive(self, number: int) -> FloppyDrive | None:
        return self.drives[number] if number < DRIVES else None

    def _set_interrupt(self, level: bool) -> None:
        self._state.interrupt = level
        self._update_irq()

    def _update_irq(self) -> None:
        enabled = DOR_NOT_RESET | DOR_DMA_GATE
        self._irq.set(self._state.interrupt and self._state.dor & enabled == enabled)

    # -- phases -----------------------------------------------------------------------------------------------------

    def _write_fifo(self, value: int) -> None:
        state = self._state
        if not state.dor & DOR_NOT_RESET:
            return
        if state.phase == Phase.EXECUTION:
            self._put_data(value)
        elif state.phase == Phase.COMMAND:
            state.fifo += bytes((value,))
            command = _find(state.fifo[0])
            if command is None:
                self._result(ST0_INVALID)
            elif len(state.fifo) >= command.length:
                command.handler(self)

    def _put_data(self, value: int) -> None:
        transfer = self._transfer
        if transfer is not None and transfer.state.waiting and not transfer.to_host:
            self._set_interrupt(False)
            transfer.put_byte(value)
            self._next_byte(transfer)

    def _read_fifo(self) -> int:
        state = self._state
        if state.phase == Phase.RESULT:
            value = state.fifo[state.position]
            if not state.position:
                self._set_interrupt(False)
            state.position += 1
            if state.position == len(state.fifo):
                self._idle()
            return value
        transfer = self._transfer
        if transfer is not None and transfer.state.waiting and transfer.to_host:
            self._set_interrupt(False)
            value = transfer.take_byte()
            self._next_byte(transfer)
            return value
        return 0

    def _next_byte(self, transfer: FloppyTransfer) -> None:
        """Ask for the next sector where the guest has moved one."""
        if self._transfer is transfer and transfer.state.waiting and transfer.at_sector:
            self._set_interrupt(True)

    def _idle(self) -> None:
        self._state.phase = Phase.COMMAND
        self._state.fifo = b""
        self._state.position = 0

    def _result(self, *values: int) -> None:
        """Enter the result phase."""
        self._state.phase = Phase.RESULT
        self._state.fifo = bytes(values)
        self._state.position = 0

    # -- resets -----------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        """Forget the command that is being executed; what it has begun ends first."""
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            transfer.cancelled = True
            for drive in self.drives:
                if drive is not None:
                    drive.backend.drain(cancel=True)

    def _software_reset(self) -> None:
        self._cancel()
        state = self._state
        self._idle()
        state.pending = []
        state.perpendicular &= ~PERPENDICULAR_MODE
        if not state.lock:
            state.config = CONFIG_RESET
            state.precompensation = 0
        self._set_interrupt(False)

    def _leave_reset(self) -> None:
        """Poll the drives: all four are reported as changed (section 3.2)."""
        if not self._state.config & CONFIG_NO_POLL:
            self._state.pending = [ST0_READY_CHANGED | number for number in range(SELECTABLE)]
            self._set_interrupt(True)

    # -- commands that move no data ---------------------------------------------------------------------------------

    def specify(self) -> None:
        """SPECIFY: step rate and head times, and whether data moves by DMA."""
        self._state.timing = list(self._state.fifo[1:3])
        self._idle()

    def sense_drive_status(self) -> None:
        """SENSE DRIVE STATUS."""
        select = self._state.fifo[1] & (SELECT_DRIVE | SELECT_HEAD)
        drive = self._drive(select & SELECT_DRIVE)
        status = ST3_ONES | select
        if drive is not None:
            status |= ST3_WRITE_PROTECT if drive.write_protected else 0
            status |= ST3_TRACK_0 if not drive.track else 0
        self._result(status)

    def sense_interrupt(self) -> None:
        """SENSE INTERRUPT STATUS: why the controller interrupted without a result phase."""
        state = self._state
        if not state.pending:
            self._result(ST0_INVALID)
            return
        st0, state.pending = state.pending[0], state.pending[1:]
        after_reset = st0 & ST0_READY_CHANGED == ST0_READY_CHANGED
        self._set_interrupt(bool(state.pending) and not after_reset)
        self._result(st0, state.cylinders[st0 & SELECT_DRIVE])

    def recalibrate(self) -> None:
        """RECALIBRATE: step out until track 0 is found."""
        number = self._state.fifo[1] & SELECT_DRIVE
        drive = self._drive(number)
        if drive is not None:
            drive.step(-min(drive.track, _RECALIBRATE_STEPS))
        found = drive is not None and not drive.track
        self._state.cylinders[number] = 0
        self._seek_ended(ST0_SEEK_END | number if found else ST0_SEEK_END | ST0_EQUIPMENT_CHECK | ST0_ABNORMAL | number)

    def seek(self) -> None:
        """SEEK."""
        fifo = self._state.fifo
        self._move(fifo[1] & SELECT_DRIVE, fifo[2])
        self._seek_ended(ST0_SEEK_END | fifo[1] & (SELECT_DRIVE | SELECT_HEAD))

    def relative_seek(self) -> None:
        """RELATIVE SEEK: by a number of tracks, in or out."""
        fifo = self._state.fifo
        number = fifo[1] & SELECT_DRIVE
        distance = fifo[2] if fifo[0] & RELATIVE_IN else -fifo[2]
        self._move(number, (self._state.cylinders[number] + distance) & 0xFF, distance)
        self._seek_ended(ST0_SEEK_END | fifo[1] & (SELECT_DRIVE | SELECT_HEAD))

    def _move(self, number: int, cylinder: int, distance: int | None = None) -> None:
        """Step by what lies between two cylinder numbers, as the controller believes them."""
        state = self._state
        if distance is None:
            distance = cylinder - state.cylinders[number]
        state.cylinders[number] = cylinder
        drive = self._drive(number)
        if drive is not None:
            drive.step(distance)

    def _seek_ended(self, st0: int) -> None:
        state = self._state
        others = [value for value in state.pending if (value ^ st0) & SELECT_DRIVE]
        state.pending = [*others, st0]
        self._idle()
        self._set_interrupt(True)

    def configure(self) -> None:
        """CONFIGURE."""
        state = self._state
        state.config = state.fifo[2] & CONFIG_WRITABLE
        state.precompensation = state.fifo[3]
        self._idle()

    def perpendicular_mode(self) -> None:
        """PERPENDICULAR MODE: for disks of 2.88 MB; kept, as no bit of an image stands up."""
        state = self._state
        value = state.fifo[1]
        drives = value if value & PERPENDICULAR_OVERWRITE else state.perpendicular
        state.perpendicular = drives & PERPENDICULAR_DRIVES | value & PERPENDICULAR_MODE
        self._idle()

    def lock(self) -> None:
        """LOCK and UNLOCK: whether software resets keep what CONFIGURE has set."""
        self._state.lock = bool(self._state.fifo[0] & LOCK_FLAG)
        self._result(self._state.lock << 4)

    def dump_registers(self) -> None:
        """DUMPREG."""
        state = self._state
        mode = self._state.lock << 7 | state.perpendicular
        self._result(*state.cylinders, *state.timing, state.end, mode, state.config, state.precompensation)

    def version(self) -> None:
        """VERSION."""
        self._result(VERSION_ENHANCED)

    def read_id(self) -> None:
        """READ ID: the first ID field that comes by."""
        select = self._state.fifo[1]
        side = int(bool(select & SELECT_HEAD))
        number = select & SELECT_DRIVE
        drive = self._drive(number)
        st0 = select & (SELECT_DRIVE | SELECT_HEAD)
        cylinder = self._state.cylinders[number]
        if drive is None or not drive.loaded or self._state.rate not in drive.format.rates:
            readable = None
        else:
            readable = drive.format if side < drive.format.heads and drive.track < drive.format.tracks else None
        if drive is None or readable is None:
            self._result(st0 | ST0_ABNORMAL, ST1_MISSING_ADDRESS, 0, cylinder, side, 1, SIZE_CODE)
        else:
            turn = self._clock.now() % _ROTATION_NS
            sector = turn * readable.sectors // _ROTATION_NS + 1
            self._result(st0, 0, 0, drive.track, side, sector, SIZE_CODE)
        self._set_interrupt(True)

    # -- commands that move data ------------------------------------------------------------------------------------

    def start_transfer(self, kind: Kind) -> None:
        """Begin a command that reads, writes, verifies, scans or formats."""
        state = self._state
        fifo = state.fifo
        select = fifo[1]
        request = FloppyTransferState(
            kind=int(kind),
            drive=select & 1,
            side=int(bool(select & SELECT_HEAD)),
            multi_track=bool(fifo[0] & FLAG_MULTI_TRACK) and kind not in (Kind.FORMAT, Kind.READ_TRACK),
            skip=bool(fifo[0] & FLAG_SKIP),
            dma=not state.timing[1] & HLT_NOT_DMA or kind is Kind.VERIFY,
        )
        if kind is Kind.FORMAT:
            request.size_code, request.end, request.fill = fifo[2], fifo[3], fifo[5]
            request.head_id = request.side
        else:
            request.cylinder, request.head_id, request.sector, request.size_code, request.end = fifo[2:7]
            request.step = fifo[8]
            _count_sectors(request, counted=bool(select & VERIFY_COUNT))
        state.end = request.end
        state.phase = Phase.EXECUTION
        state.fifo = b""
        drive = self._drive(select & SELECT_DRIVE)
        if drive is None:
            self._result(ST0_ABNORMAL | select & 7, ST1_MISSING_ADDRESS, 0, *fifo[2:6])
            self._set_interrupt(True)
            return
        if state.config & CONFIG_IMPLIED_SEEK and kind is not Kind.FORMAT:
            self._move(select & SELECT_DRIVE, request.cylinder)
        if kind is Kind.FORMAT:
            request.cylinder = drive.track
        self._transfer = FloppyTransfer(self, drive, self._dma, request)
        self._transfer.start(state.rate)

    def wants_data(self) -> None:
        """The guest is to move bytes by the FIFO."""
        self._set_interrupt(True)

    def transfer_ended(self, st0: int, st1: int, st2: int) -> None:
        """Show the result of a command that moved data."""
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            self._result(st0, st1, st2, *transfer.result_address())
            self._set_interrupt(True)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._cancel()
        for drive in self.drives:
            if drive is not None:
                drive.reset()
        self._state = FloppyState()
        self._update_irq()

    def save(self) -> FloppyState:
        """Return registers and drives, and the command on its way."""
        state = self._state.copy()
        state.drives = [None if drive is None else drive.save() for drive in self.drives]
        state.transfer = None if self._transfer is None else self._transfer.save()
        return state

    def load(self, state: FloppyState) -> None:
        """Take over a state; a command on its way goes on.  Raises StateError."""
        state.check()
        _check(state)
        if any((drive is None) != (saved is None) for drive, saved in zip(self.drives, state.drives, strict=True)):
            raise StateError("FloppyState.drives: the drives are others")
        transfer = self._loaded_transfer(state)
        self._cancel()
        for drive, saved in zip(self.drives, state.drives, strict=True):
            if drive is not None and saved is not None:
                drive.load(saved)
        self._state = state.copy()
        self._transfer = transfer
        self._update_irq()
        if transfer is not None:
            transfer.restart()

    def _loaded_transfer(self, state: FloppyState) -> FloppyTransfer | None:
        """Return the command that a state has on its way.  Raises StateError."""
        if state.transfer is None:
            return None
        drive, saved = self._drive(state.transfer.drive), state.drives[state.transfer.drive]
        if drive is None or saved is None:
            raise StateError("FloppyState.transfer: there is no such drive")
        transfer = FloppyTransfer(self, drive, self._dma, state.transfer.copy())
        transfer.check(saved.track)
        return transfer


def _check(state: FloppyState) -> None:
    """Raise StateError unless the fields fit to each other."""
    if state.phase == Phase.COMMAND and state.fifo:
        command = _find(state.fifo[0])
        if command is None or len(state.fifo) >= command.length:
            raise StateError("FloppyState.fifo: not the start of a command")
    if state.phase == Phase.RESULT and state.position >= len(state.fifo):
        raise StateError("FloppyState.position: behind the result")
    if (state.phase == Phase.EXECUTION) != (state.transfer is not None):
        raise StateError("FloppyState.transfer: not a command on its way")


def _count_sectors(request: FloppyTransferState, *, counted: bool) -> None:
    """Set how many sectors a command deals with that does not end by terminal count (section 5.1.6)."""
    if request.kind == Kind.READ_TRACK:
        request.left, request.sector, request.end = request.end or 255, 1, 0
    elif request.kind == Kind.VERIFY:
        sides = 2 if request.multi_track and not request.side else 1
        until_end = max(request.end - request.sector + 1, 1) + (request.end if sides == 2 else 0)
        request.left = (request.step or 256) if counted else until_end


def _transfer(kind: Kind) -> Callable[[FloppyController], None]:
    return lambda controller: controller.start_transfer(kind)


_COMMANDS: Final = (
    _Command(0x1F, 0x06, 9, _transfer(Kind.READ)),
    _Command(0x3F, 0x05, 9, _transfer(Kind.WRITE)),
    _Command(0xFF, 0x08, 1, FloppyController.sense_interrupt),
    _Command(0xFF, 0x0F, 3, FloppyController.seek),
    _Command(0xFF, 0x07, 2, FloppyController.recalibrate),
    _Command(0xBF, 0x0A, 2, FloppyController.read_id),
    _Command(0x1F, 0x0C, 9, _transfer(Kind.READ_DELETED)),
    _Command(0x3F, 0x09, 9, _transfer(Kind.WRITE)),  # WRITE DELETED DATA: images keep no marks
    _Command(0xBF, 0x0D, 6, _transfer(Kind.FORMAT)),
    _Command(0x9F, 0x02, 9, _transfer(Kind.READ_TRACK)),
    _Command(0x1F, 0x16, 9, _transfer(Kind.VERIFY)),
    _Command(0x1F, 0x11, 9, _transfer(Kind.SCAN_EQUAL)),
    _Command(0x1F, 0x19, 9, _transfer(Kind.SCAN_LOW)),
    _Command(0x1F, 0x1D, 9, _transfer(Kind.SCAN_HIGH)),
    _Command(0xFF, 0x03, 3, FloppyController.specify),
    _Command(0xFF, 0x04, 2, FloppyController.sense_drive_status),
    _Command(0xFF, 0x13, 4, FloppyController.configure),
    _Command(0xFF, 0x0E, 1, FloppyController.dump_registers),
    _Command(0xFF, 0x10, 1, FloppyController.version),
    _Command(0xFF, 0x12, 2, FloppyController.perpendicular_mode),
    _Command(0x7F, 0x14, 1, FloppyController.lock),
    _Command(0xBF, 0x8F, 3, FloppyController.relative_seek),
)


def _find(code: int) -> _Command | None:
    return next((command for command in _COMMANDS if code & command.mask == command.code), None)
