"""What all SCSI logical units have in common (SPC-4): commands in, results out, sense data and unit attentions.

A transport (virtio-scsi, ATAPI) makes a :class:`ScsiCommand` and hands it to :meth:`ScsiTarget.execute`; the unit
answers by calling `command.done` once, at once or when its back end is ready.  Data moves straight between the back
end and the buffers of the command, which are views of guest RAM in most cases.

A class of units is a table of :class:`Operation` records by operation code.  The table also says how much data a CDB
asks for, so that a transport can know before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pyvm.block.vectors import Buffers, Cursor, total
from pyvm.devices.scsi import constants as c
from pyvm.devices.scsi import sense as s
from pyvm.devices.scsi.sense import Sense
from pyvm.devices.scsi.steps import Step, Steps
from pyvm.records import record
from pyvm.state import State, StateError, array, flag, sequence, uint

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_ATTENTIONS = 8
"""Most unit attentions that wait to be reported; there are not that many kinds."""
_REPORT_LUNS_MINIMUM = 16


class ScsiResult(NamedTuple):
    """How a command ended."""

    status: int
    sense: bytes = b""
    """Fixed format, 18 bytes; empty where there is none."""
    transferred: int = 0
    """Bytes moved to `data_in` or taken from `data_out`."""


class ScsiCommand:
    """One command: `data_in` is room for what the unit returns, `data_out` what is sent to it.

    `done` is called once, with the machine lock held, possibly before `execute` returns.
    """

    __slots__ = ("cdb", "data_in", "data_out", "done")

    def __init__(self, cdb: bytes, data_in: Buffers, data_out: Buffers, done: Callable[[ScsiResult], None]) -> None:
        self.cdb = cdb
        self.data_in = data_in
        self.data_out = data_out
        self.done = done


class Direction(Enum):
    """Which way the data of a command goes."""

    NONE = "none"
    IN = "in"
    OUT = "out"


@record(frozen=True)
class Operation:
    """One operation code of a class of units."""

    handler: Callable[..., None]
    """Called as a method, with the command."""
    direction: Direction = Direction.NONE
    length_at: int = 0
    """Where in the CDB the length of the data is."""
    length_bytes: int = 0
    """How many bytes it takes there; 0: the CDB does not say it."""
    fixed: int = 0
    """The length where the CDB does not say it."""
    blocks: bool = False
    """Whether it counts blocks."""
    before_attention: bool = False
    """Whether it is carried out although a unit attention waits to be reported."""
    medium: bool = False
    """Whether it takes a medium."""


def data_in(
    handler: Callable[..., None], at: int, size: int, *, before_attention: bool = False, medium: bool = False
) -> Operation:
    """Return an operation with an allocation length of `size` bytes at CDB offset `at`."""
    return Operation(handler, Direction.IN, at, size, before_attention=before_attention, medium=medium)


def data_out(handler: Callable[..., None], at: int, size: int, *, medium: bool = False) -> Operation:
    """Return an operation with a parameter list length of `size` bytes at CDB offset `at`."""
    return Operation(handler, Direction.OUT, at, size, medium=medium)


class SenseError(Exception):
    """A command ends with CHECK CONDITION and this sense code."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(sense)
        self.sense = sense


@record
class Identity:
    """What a unit says that it is; the names are those of QEMU's properties."""

    vendor: str = "QEMU"
    product: str = ""
    version: str = "2.5+"
    serial: str = ""
    device_id: str = ""
    wwn: int = 0
    port_wwn: int = 0
    port_index: int = 0
    scsi_version: int = 5
    """As in INQUIRY data: 5 is SPC-3."""

    def check(self, *, kind: str) -> None:
        """Raise ValueError where a name has no room."""
        for name, value, limit in (("vendor", self.vendor, 8), ("product", self.product, 16), ("ver", self.version, 4)):
            if len(value) > limit:
                raise ValueError(f"{kind}: '{name}' is longer than {limit} bytes")


class ScsiState(State):
    """Migratable state that every unit has: the sense code kept, unit attentions, medium and tray."""

    sense: list[int] = array(uint(8), 3)
    attentions: list[int] = sequence(uint(32), _ATTENTIONS)
    tray_open: bool = flag()
    medium_locked: bool = flag()
    medium_event: bool = flag()
    eject_request: bool = flag()
    change_step: int = uint(2)
    write_cache: bool = flag(True)


def _pack(sense: Sense) -> int:
    return sense.key << 16 | sense.asc << 8 | sense.ascq


def clip(buffers: Buffers, length: int) -> Buffers:
    """Return the first `length` bytes of `buffers`, or all where there are fewer."""
    if len(buffers) == 1:
        first = buffers[0]
        return buffers if len(first) <= length else (first[:length],)
    available = total(buffers)
    return buffers if available <= length else Cursor(buffers).take(length)


def gather(buffers: Buffers, length: int) -> bytes:
    """Return a copy of the first `length` bytes of `buffers`, or of all where there are fewer."""
    return b"".join(clip(buffers, length))


class ScsiTarget:
    """A logical unit with a medium.

    `autosense` says that the transport delivers sense data with the status: then it is not kept for REQUEST SENSE.
    """

    device_type: ClassVar[int]
    name: ClassVar[str]
    operations: ClassVar[Mapping[int, Operation]]

    def __init__(
        self, backend: BlockBackend, identity: Identity, block_size: int, *, removable: bool, autosense: bool = True
    ) -> None:
        identity.check(kind=self.name)
        self.backend = backend
        self.identity = identity
        self.block_size = block_size
        """Bytes in a logical block."""
        self.removable = removable
        self.tray_open = False
        self.medium_locked = False
        self.luns: Callable[[], list[int]] = lambda: [0]
        """Returns the numbers of the units of the same target, for REPORT LUNS."""
        self.on_change: Callable[[Sense], None] = lambda sense: None
        """Told of a changed parameter that is reported by a unit attention as well."""
        self._autosense = autosense
        self._sense = s.NO_SENSE
        self._attentions: list[Sense] = []
        self._medium_event = False
        self._eject_request = False
        self._change_step = 0
        self._resets = 0
        self._initial_write_cache = backend.write_cache
        self._attach()

    def _attach(self) -> None:
        self.backend.attach(self)
        self.backend.removable = self.removable
        self.backend.io_status_enabled = True

    # Commands

    def demand(self, cdb: bytes) -> tuple[Direction, int]:
        """Return which way data goes in the command `cdb`, and the most bytes that it may ask for."""
        operation = self.operations.get(cdb[0]) if cdb else None
        if operation is None or len(cdb) < c.cdb_length(cdb[0]):
            return Direction.NONE, 0
        length = self.length_of(cdb, operation)
        return operation.direction if length else Direction.NONE, length

    def length_of(self, cdb: bytes, operation: Operation) -> int:
        """Return the bytes of data that `cdb`, of full length, asks for."""
        at = operation.length_at
        if not operation.length_bytes:
            return operation.fixed
        length = int.from_bytes(cdb[at : at + operation.length_bytes], "big")
        if not operation.blocks:
            return length
        if operation.length_bytes == 1 and not length:
            length = 256  # READ (6) and WRITE (6)
        return length * self.block_size

    def execute(self, command: ScsiCommand) -> None:
        """Carry out `command`; it ends with a call of its `done`."""
        cdb = command.cdb
        operation = self.operations.get(cdb[0]) if cdb else None
        try:
            if operation is None or len(cdb) < c.cdb_length(cdb[0]):
                raise SenseError(s.INVALID_OPCODE)
            if not operation.before_attention:
                if self._attentions or self._change_step:
                    attention = self.next_attention()
                    if attention is not None:
                        raise SenseError(attention)
                self._sense = s.NO_SENSE
            if operation.medium and not self.ready:
                raise SenseError(s.NO_MEDIUM)
            operation.handler(self, command)
        except SenseError as refused:
            self.finish(command, refused.sense)

    def next_attention(self) -> Sense | None:
        """Take the unit attention that is to be reported now; None where there is none."""
        return self._attentions.pop(0) if self._attentions else None

    def finish(self, command: ScsiCommand, sense: Sense | None = None, transferred: int = 0) -> None:
        """End `command`: well, or with CHECK CONDITION and `sense`."""
        if sense is None:
            command.done(ScsiResult(c.STATUS_GOOD, b"", transferred))
            return
        if not self._autosense:
            self._sense = sense
        command.done(ScsiResult(c.STATUS_CHECK_CONDITION, sense.fixed(), transferred))

    def finish_io(self, command: ScsiCommand, error: int, transferred: int = 0) -> None:
        """End `command` after the back end answered with `error`, an errno or 0."""
        if error:
            self.finish(command, s.from_errno(error))
        else:
            command.done(ScsiResult(c.STATUS_GOOD, b"", transferred))

    def reply(self, command: ScsiCommand, data: bytes | bytearray) -> None:
        """End `command` well with `data`, as much as it asked for and there is room."""
        length = min(self.length_of(command.cdb, self.operations[command.cdb[0]]), len(data))
        done = 0
        for buffer in command.data_in:
            if done >= length:
                break
            part = data[done : min(done + len(buffer), length)]
            buffer[: len(part)] = part
            done += len(part)
        command.done(ScsiResult(c.STATUS_GOOD, b"", done))

    def parameters(self, command: ScsiCommand) -> bytes:
        """Return the parameter list of `command`; refuse one that is shorter than the CDB says."""
        length = self.length_of(command.cdb, self.operations[command.cdb[0]])
        data = gather(command.data_out, length)
        if len(data) < length:
            raise SenseError(s.PARAMETER_LIST_LENGTH)
        return data

    def run_steps(self, steps: Iterator[Step], done: Callable[[int], None]) -> None:
        """Carry out `steps` one after another; a reset ends them."""
        resets = self._resets
        Steps(steps, done, lambda: self._resets == resets).run()

    @property
    def ready(self) -> bool:
        """Return whether there is a medium that can be used."""
        return self.backend.inserted and not self.tray_open

    # What all units know

    def test_unit_ready(self, command: ScsiCommand) -> None:
        """TEST UNIT READY, and others that do nothing but need a medium."""
        self.finish(command)

    def request_sense(self, command: ScsiCommand) -> None:
        """REQUEST SENSE (SPC-4, 6.39): the sense code kept, or else a unit attention, which is reported thereby."""
        sense = self._sense
        if sense == s.NO_SENSE and self._attentions:
            sense = self._attentions.pop(0)
        self._sense = s.NO_SENSE
        self.reply(command, sense.descriptor() if command.cdb[1] & 1 else sense.fixed())

    def report_luns(self, command: ScsiCommand) -> None:
        """REPORT LUNS (6.33)."""
        cdb = command.cdb
        if self.length_of(cdb, self.operations[cdb[0]]) < _REPORT_LUNS_MINIMUM or cdb[2] > 2:
            raise SenseError(s.INVALID_FIELD)
        # Report 1 is of well known logical units only, which there are none of.
        numbers = self.luns() if cdb[2] != 1 else []
        self.reply(command, lun_list(numbers))

    def send_diagnostic(self, command: ScsiCommand) -> None:
        """SEND DIAGNOSTIC (6.42): the default self-test, which succeeds."""
        if command.cdb[1] & 0xE0 or not command.cdb[1] & 4 or any(command.cdb[3:5]):
            raise SenseError(s.INVALID_FIELD)
        self.finish(command)

    def reserve(self, command: ScsiCommand) -> None:
        """RESERVE and RELEASE (SPC-2, 7.19 to 7.22): there is one initiator, which always gets the whole unit."""
        third_party_or_extent = 1 if command.cdb[0] in (c.RESERVE_6, c.RELEASE_6) else 3
        if command.cdb[1] & third_party_or_extent:
            raise SenseError(s.INVALID_FIELD)
        self.finish(command)

    def prevent_allow(self, command: ScsiCommand) -> None:
        """PREVENT ALLOW MEDIUM REMOVAL (SBC-3, 5.14)."""
        if not self.removable:
            raise SenseError(s.INVALID_OPCODE)
        self.medium_locked = bool(command.cdb[4] & 1)
        self.finish(command)

    def start_stop(self, command: ScsiCommand) -> None:
        """START STOP UNIT (SBC-3, 5.25): load or eject; motors and power conditions are not modelled."""
        control = command.cdb[4]
        if control & 0xF0 or not control & 2 or not self.removable:
            self.finish(command)
            return
        eject = not control & 1
        if eject and not self.tray_open and self.medium_locked:
            inserted = self.backend.inserted
            raise SenseError(s.REMOVAL_PREVENTED if inserted else s.NOT_READY_REMOVAL_PREVENTED)
        if self.tray_open != eject:
            self.tray_open = eject
            self.backend.eject(eject)
        self.finish(command)

    # Unit attentions and the medium; the second part is called by the back end

    def unit_attention(self, sense: Sense) -> None:
        """Report `sense` at the next command.  What is about to be reported already is not reported twice."""
        if sense not in self._attentions:
            self._attentions = [*self._attentions[1 - _ATTENTIONS :], sense]

    def media_changed(self, loaded: bool) -> None:
        """Follow the person at the machine, who opened the tray, or closed it."""
        self.tray_open = not loaded
        self._medium_event = True
        self._eject_request = False
        self.attend_medium(loaded)

    def attend_medium(self, loaded: bool) -> None:
        """Let the guest see first that the medium was taken out, then that there is another one."""
        self.unit_attention(s.MEDIUM_REMOVED)
        if loaded:
            self.unit_attention(s.MEDIUM_CHANGED)

    def eject_requested(self, force: bool) -> None:
        """Take a press of the eject button; with `force` the lock is broken."""
        self._eject_request = True
        if force:
            self.medium_locked = False

    def resized(self) -> None:
        """The back end has a new size."""
        self.unit_attention(s.CAPACITY_CHANGED)
        self.on_change(s.CAPACITY_CHANGED)

    # Life

    def reset(self) -> None:
        """Return to the state after power-on.  Commands in flight end, one way or the other, before this returns."""
        self._resets += 1
        self.backend.drain(cancel=True)
        self._sense = s.NO_SENSE
        self._attentions = [s.RESET_OCCURRED] if self._autosense else []
        self.tray_open = False
        self.medium_locked = False
        self._eject_request = False
        self._change_step = 0
        self.backend.write_cache = self._initial_write_cache

    def save(self) -> ScsiState:
        """Return all migratable state; commands in flight belong to the transport, which starts them again."""
        return ScsiState(
            sense=list(self._sense),
            attentions=[_pack(sense) for sense in self._attentions],
            tray_open=self.tray_open,
            medium_locked=self.medium_locked,
            medium_event=self._medium_event,
            eject_request=self._eject_request,
            change_step=self._change_step,
            write_cache=self.backend.write_cache,
        )

    def load(self, state: ScsiState) -> None:
        """Take over a state; raise :class:`StateError` where the unit cannot be in it."""
        state.check()
        if not self.removable and (state.tray_open or state.medium_locked):
            raise StateError(f"{self.name}: a tray or a locked medium, but the medium is not removable")
        if any(packed >> 16 != s.UNIT_ATTENTION_KEY for packed in state.attentions):
            raise StateError(f"{self.name}: a unit attention that is none")
        self._resets += 1
        self.backend.drain(cancel=True)
        self._sense = Sense(*state.sense)
        self._attentions = [Sense(packed >> 16, packed >> 8 & 0xFF, packed & 0xFF) for packed in state.attentions]
        self.tray_open = state.tray_open
        self.medium_locked = state.medium_locked
        self._medium_event = state.medium_event
        self._eject_request = state.eject_request
        self._change_step = state.change_step
        self.backend.write_cache = state.write_cache


def lun_list(numbers: list[int]) -> bytes:
    """Return the parameter data of REPORT LUNS (SPC-4, 6.33) for units of one level, numbers up to 16383."""
    entries = b"".join(encode_lun(number) for number in sorted(numbers))
    return len(entries).to_bytes(4, "big") + bytes(4) + entries


def encode_lun(number: int) -> bytes:
    """Return the 8-byte LUN (SAM-5, 4.7): peripheral addressing below 256, flat space above."""
    first = number >> 8 | 0x40 if number > 0xFF else 0
    return bytes((first, number & 0xFF)) + bytes(6)


PRIMARY: Mapping[int, Operation] = {
    c.TEST_UNIT_READY: Operation(ScsiTarget.test_unit_ready, medium=True),
    c.REQUEST_SENSE: data_in(ScsiTarget.request_sense, 4, 1, before_attention=True),
    c.SEND_DIAGNOSTIC: Operation(ScsiTarget.send_diagnostic),
    c.PREVENT_ALLOW: Operation(ScsiTarget.prevent_allow),
    c.START_STOP: Operation(ScsiTarget.start_stop),
}
"""Operations of all units."""

UNIT: Mapping[int, Operation] = {
    c.RESERVE_6: Operation(ScsiTarget.reserve),
    c.RELEASE_6: Operation(ScsiTarget.reserve),
    c.RESERVE_10: Operation(ScsiTarget.reserve),
    c.RELEASE_10: Operation(ScsiTarget.reserve),
    c.REPORT_LUNS: data_in(ScsiTarget.report_luns, 6, 4, before_attention=True),
}
"""Operations of units on a SCSI bus."""
