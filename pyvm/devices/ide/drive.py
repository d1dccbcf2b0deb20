"""What all ATA drives have in common: the task file, the data register and the ends of commands.

ATA/ATAPI-6 (T13/1410D), sections 7 and 9.  A drive belongs to a :class:`pyvm.devices.ide.channel.Channel`, which
passes register accesses on to it.  Data for the data register lies in a buffer of fixed size: `position` is where the
guest is, `in_end` or `out_end` where the present block ends, 0 while no data goes that way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal, Protocol, TypeVar

from pyvm.devices.ide import constants as c
from pyvm.devices.ide.busmaster import DmaClient
from pyvm.state import State, StateError, blob, flag, integer, uint

BUFFER_SIZE: Final = 64 << 10

T = TypeVar("T")


class Host(Protocol):
    """What a drive needs of its channel."""

    def irq_changed(self) -> None:
        """The drive's interrupt was raised or lowered."""

    def dma_request(self, client: DmaClient, length: int, *, to_memory: bool) -> None:
        """Move `length` bytes by DMA once the guest has started the engine."""

    def dma_complete(self, moved: int | None = None) -> None:
        """The data of the request has been moved: `moved` bytes, None for all."""

    def dma_abort(self) -> None:
        """The drive has given up."""

    def dma_withdraw(self, client: DmaClient) -> None:
        """The drive was reset."""


class TaskFileState(State):
    """Registers of one drive, or of the place of one: `registers` as written, `previous` what was there before."""

    registers: bytes = blob(c.COMMAND_PORTS, exact=True)
    previous: bytes = blob(c.COMMAND_PORTS, exact=True)
    error: int = uint(8)
    status: int = uint(8)
    interrupt: bool = flag()


class TransferState(State):
    """Where the data register is.  `data` is what the buffer holds up to the end of the transfer."""

    data: bytes = blob(BUFFER_SIZE)
    position: int = integer(0, BUFFER_SIZE)
    in_end: int = integer(0, BUFFER_SIZE)
    out_end: int = integer(0, BUFFER_SIZE)


class Drive:
    """The place of a drive on a channel; by itself, the place is empty.

    It keeps registers as an absent drive of QEMU's does, so that software finds no status there and no drive.
    """

    kind: ClassVar[Literal["none", "disk", "cd"]] = "none"
    signature: ClassVar[tuple[int, int, int, int]] = c.SIGNATURE_NONE
    present: ClassVar[bool] = False
    idle_status: ClassVar[int] = 0
    """Status after a reset."""
    commands: ClassVar[Mapping[int, Callable[[Any], None]]] = {}

    def __init__(self) -> None:
        self.host: Host | None = None
        self.registers = bytearray(c.COMMAND_PORTS)
        self.previous = bytearray(c.COMMAND_PORTS)
        self.error = 0
        self.status = 0
        self.interrupt = False
        size = BUFFER_SIZE if self.present else 0
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.words = self.view.cast("H")
        self.dwords = self.view.cast("I")
        self.position = 0
        self.in_end = 0
        self.out_end = 0
        self.filled = 0
        self._serial = 0
        self._sign()

    @property
    def bus(self) -> Host:
        """The channel, of a drive that is on one."""
        assert self.host is not None, "a drive without a channel was given a command"
        return self.host

    # -- registers --------------------------------------------------------------------------------------------------

    def write_register(self, offset: int, value: int) -> None:
        """Take a byte for a register of the task file; not while a command is being carried out."""
        if not self.status & (c.BSY | c.DRQ):
            self.previous[offset] = self.registers[offset]
            self.registers[offset] = value

    def read_register(self, offset: int, high: bool) -> int:
        """Return a register of the task file; with `high` what it was before it was last written."""
        if offset == c.ERROR:
            return self.error
        return self.previous[offset] if high else self.registers[offset]

    def write_command(self, value: int) -> None:
        """Carry out command `value`, unless one is being carried out."""
        if not self.present or self.status & (c.BSY | c.DRQ):
            return
        self.set_interrupt(False)
        self.error = 0
        handler = self.commands.get(value)
        if handler is None:
            self.fail(c.ABRT)
            return
        handler(self)

    def set_interrupt(self, level: bool) -> None:
        """Raise or lower the drive's interrupt."""
        if level != self.interrupt:
            self.interrupt = level
            self.bus.irq_changed()

    # -- data register ----------------------------------------------------------------------------------------------

    def read_data(self, size: int) -> int:
        """Read `size` bytes (2, 4) of the data register: the slow way, which also ends a block."""
        if not self.in_end:
            return 0
        end = min(self.position + size, self.in_end)
        value = int.from_bytes(self.view[self.position : end], "little")
        self.position = end
        if end == self.in_end:
            self.in_end = 0
            self.status &= ~c.DRQ
            self.block_read()
        return value

    def write_data(self, size: int, value: int) -> None:
        """Write `size` bytes (2, 4) of the data register: the slow way, which also ends a block."""
        if not self.out_end:
            return
        end = min(self.position + size, self.out_end)
        self.view[self.position : end] = value.to_bytes(size, "little")[: end - self.position]
        self.position = end
        if end == self.out_end:
            self.out_end = 0
            self.status &= ~c.DRQ
            self.block_written()

    def offer(self, start: int, length: int) -> None:
        """Let the guest read `length` bytes of the buffer from `start` on, and interrupt."""
        self.position = start
        self.in_end = start + length
        self.filled = max(self.filled, self.in_end)
        self.status = c.READY | c.DRQ
        self.set_interrupt(True)

    def expect(self, length: int, *, interrupt: bool, start: int = 0) -> None:
        """Let the guest write `length` bytes to the buffer from `start` on."""
        self.position = start
        self.out_end = start + length
        self.status = c.READY | c.DRQ
        if interrupt:
            self.set_interrupt(True)

    def block_read(self) -> None:
        """Overridable: the guest has read all of the block."""
        self.status = c.READY

    def block_written(self) -> None:
        """Overridable: the guest has written all of the block."""
        self.status = c.READY

    # -- ends of commands -------------------------------------------------------------------------------------------

    def succeed(self) -> None:
        """End a command well."""
        self.status = c.READY
        self.set_interrupt(True)

    def fail(self, error: int) -> None:
        """End a command with `error`."""
        self.error = error
        self.status = c.FAILED
        self.set_interrupt(True)

    def guarded(self, then: Callable[[T], None]) -> Callable[[T], None]:
        """Return `then` for a back end to call: nothing happens where the drive was reset meanwhile."""
        serial = self._serial

        def done(result: T) -> None:
            if serial == self._serial:
                then(result)

        return done

    def still(self) -> Callable[[], bool]:
        """Return what tells whether the drive has not been reset since."""
        serial = self._serial
        return lambda: serial == self._serial

    # -- DMA --------------------------------------------------------------------------------------------------------

    def dma_start(self, buffers: list[memoryview]) -> None:
        """Overridable: the bus-master engine is ready to move what the drive has asked for."""

    def dma_failed(self) -> None:
        """End the command: the engine met memory that is not there."""
        self.fail(c.ABRT)

    def dma_stop(self) -> None:
        """Let what has been started end: the engine is being stopped."""
        self.drain()

    # -- life -------------------------------------------------------------------------------------------------------

    def attached(self, host: Host, number: int) -> None:
        """The drive is on a channel now, at place `number` of the controller, from 1."""
        self.host = host

    def drain(self) -> None:
        """Overridable: return when the back end works on nothing any more."""

    def abort(self) -> None:
        """Forget the command that is being carried out, and be busy until the reset is over."""
        self._serial += 1
        self.drain()
        self.position = self.in_end = self.out_end = self.filled = 0
        if self.host is not None:
            self.host.dma_withdraw(self)
            self.set_interrupt(False)
        if self.present:
            self.status = c.BSY

    def finish_reset(self) -> None:
        """Show the signature: after a reset, or a diagnosis."""
        self._sign()
        self.error = c.DIAGNOSTIC_PASSED if self.present else 0

    def _sign(self) -> None:
        self.registers[c.COUNT : c.LBA_HIGH + 1] = bytes(self.signature)
        self.registers[c.FEATURES] = 0
        self.registers[c.DEVICE] = c.DEVICE_ONES
        self.previous[:] = bytes(c.COMMAND_PORTS)
        self.status = self.idle_status

    def reset(self) -> None:
        """Return to the state after power-on."""
        self.abort()
        self.finish_reset()

    def save_registers(self) -> TaskFileState:
        """Return the task file."""
        return TaskFileState(bytes(self.registers), bytes(self.previous), self.error, self.status, self.interrupt)

    def check_registers(self, state: TaskFileState) -> None:
        """Raise StateError unless `state` is one that this place can be in."""
        if not self.present and (state.status or state.error or state.interrupt):
            raise StateError("TaskFileState.status: there is no drive")

    def load_registers(self, state: TaskFileState) -> None:
        """Take over the task file; the channel drives its interrupt line afterwards."""
        self._serial += 1
        self.drain()
        self.registers[:] = state.registers
        self.previous[:] = state.previous
        self.error = state.error
        self.status = state.status
        self.interrupt = state.interrupt

    def save(self) -> State | None:
        """Return what a drive keeps besides its task file; an empty place keeps nothing."""
        return None

    def check(self, state: Any, file: TaskFileState) -> None:
        """Raise StateError unless the drive can be in `state`, which is of its kind, and have these registers."""

    def load(self, state: Any) -> None:
        """Take over a state that :meth:`check` has passed; the drive starts again what it was doing."""

    def save_transfer(self) -> TransferState:
        """Return the data register's state, with as much of the buffer as matters."""
        length = self.filled if self.in_end else self.position if self.out_end else 0
        return TransferState(bytes(self.view[:length]), self.position, self.in_end, self.out_end)

    def load_transfer(self, state: TransferState) -> None:
        """Take over the data register's state."""
        self.data[: len(state.data)] = state.data
        self.filled = len(state.data)
        self.position, self.in_end, self.out_end = state.position, state.in_end, state.out_end


def check_transfer(state: TransferState) -> None:
    """Raise StateError unless `state` is one that the data register can be in."""
    if state.in_end and state.out_end:
        raise StateError("TransferState: data goes both ways")
    end = state.in_end or state.out_end
    if end and state.position >= end:
        raise StateError("TransferState.position: behind the end")
    if max(state.in_end, state.position if state.out_end else 0) > len(state.data):
        raise StateError("TransferState.data: too short")
    if (state.position | state.in_end | state.out_end) & 1:
        raise StateError("TransferState.position: the bus moves words")
