"""One IDE channel: the registers that two drives share, and their interrupt.

ATA/ATAPI-6 (T13/1410D), section 7.  Task file registers are written in both drives and read from the selected one.
The data register is the one path here that must be short: programs move data through it with one access for each word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pyvm.devices.ide import constants as c
from pyvm.devices.ide.busmaster import BusMaster, DmaClient
from pyvm.devices.ide.drive import Drive, TaskFileState
from pyvm.irq import IrqLine
from pyvm.state import State, StateError, array, optional_record, record, uint

if TYPE_CHECKING:
    from pyvm.devices.ide.atapi import AtapiCd, AtapiState
    from pyvm.devices.ide.disk import IdeDisk
    from pyvm.devices.ide.disk_state import DiskState

UNITS = 2


def _disk_state() -> type[DiskState]:
    from pyvm.devices.ide.disk_state import DiskState

    return DiskState


def _cd_state() -> type[AtapiState]:
    from pyvm.devices.ide.atapi import AtapiState

    return AtapiState


class ChannelState(State):
    """Device control, the selected drive, and the drives: each place has a task file, and what is in it besides."""

    control: int = uint(8)
    selected: int = uint(1)
    files: list[TaskFileState] = array(record(TaskFileState), UNITS)
    disks: list[DiskState | None] = array(optional_record(_disk_state), UNITS)
    cds: list[AtapiState | None] = array(optional_record(_cd_state), UNITS)


class Channel:
    """A channel whose drives are put in with :meth:`attach`.  `first` is the number of its first place, from 1."""

    def __init__(self, irq: IrqLine, bus_master: BusMaster, first: int) -> None:
        self._irq = irq
        self._bus_master = bus_master
        self._first = first
        self.drives: list[Drive] = [Drive(), Drive()]
        for drive in self.drives:
            drive.attached(self, 0)
        self._selected = self.drives[0]
        self._control = 0

    def attach(self, unit: int, drive: IdeDisk | AtapiCd) -> None:
        """Put `drive` in place 0 (master) or 1 (slave); raises ValueError where there is one."""
        if not 0 <= unit < UNITS:
            raise ValueError(f"Can't create IDE unit {unit}, bus supports only {UNITS} units")
        if self.drives[unit].present:
            raise ValueError(f"IDE unit {unit} is in use")
        was_selected = self._selected is self.drives[unit]
        self.drives[unit] = drive
        drive.attached(self, self._first + unit)
        drive.registers[c.DEVICE] = c.DEVICE_ONES | c.DEVICE_1 * unit
        if was_selected:
            self._selected = drive

    # -- command block ----------------------------------------------------------------------------------------------

    def command_read(self, offset: int, size: int) -> int:
        """Read the 8 ports of the command block; the data register (offset 0) by 2 or 4 bytes."""
        if not offset:
            drive = self._selected
            position = drive.position
            end = position + size
            if size > 1 and end < drive.in_end:
                drive.position = end
                if size == 2:
                    return drive.words[position >> 1]
                if not position & 3:
                    return drive.dwords[position >> 2]
                return int.from_bytes(drive.view[position:end], "little")
            return drive.read_data(size) if size > 1 else 0xFF
        if size == 1:
            return self._read_byte(offset)
        return sum(self._read_byte(offset + index) << (8 * index) for index in range(size))

    def peek(self, size: int) -> memoryview | None:
        """Return what the data register will read as next, but for the last item of the block; None without data.

        These are whole items: the last one may be cut short by the end of the block.
        """
        drive = self._selected
        whole = (drive.in_end - drive.position - 1) // size * size
        return drive.view[drive.position : drive.position + whole] if size > 1 and whole > 0 else None

    def consume(self, count: int) -> None:
        """Go on behind so many bytes of that."""
        drive = self._selected
        drive.position = min(drive.position + count, drive.in_end)

    def command_write(self, offset: int, size: int, value: int) -> None:
        """Write the 8 ports of the command block; the data register (offset 0) by 2 or 4 bytes."""
        if not offset:
            if size > 1:
                drive = self._selected
                position = drive.position
                end = position + size
                if end < drive.out_end:
                    drive.position = end
                    if size == 2:
                        drive.words[position >> 1] = value
                    else:
                        drive.view[position:end] = value.to_bytes(size, "little")
                else:
                    drive.write_data(size, value)
            return
        for index in range(size):
            self._write_byte(offset + index, value >> (8 * index) & 0xFF)

    def _read_byte(self, offset: int) -> int:
        drive = self._selected
        if offset == c.STATUS:
            status = drive.status
            drive.set_interrupt(False)
            return status
        if offset > c.STATUS or not (self.drives[0].present or self.drives[1].present):
            return 0
        if offset == c.DEVICE:
            return drive.registers[c.DEVICE] | c.DEVICE_ONES
        return drive.read_register(offset, bool(self._control & c.CONTROL_HOB))

    def _write_byte(self, offset: int, value: int) -> None:
        if offset > c.COMMAND or not (self.drives[0].present or self.drives[1].present):
            return
        self._control &= ~c.CONTROL_HOB
        if offset == c.COMMAND:
            self._command(value)
        elif offset == c.DEVICE:
            for unit, drive in enumerate(self.drives):
                drive.registers[c.DEVICE] = value & ~c.DEVICE_1 | c.DEVICE_ONES | c.DEVICE_1 * unit
            self._select(bool(value & c.DEVICE_1))
        else:
            for drive in self.drives:
                drive.write_register(offset, value)

    def _select(self, unit: int) -> None:
        self._selected = self.drives[unit]
        self.irq_changed()

    def _command(self, value: int) -> None:
        if self._control & c.CONTROL_SRST:
            return
        if value == c.DIAGNOSTIC:
            self._diagnose()
        else:
            self._selected.write_command(value)

    def _diagnose(self) -> None:
        """EXECUTE DEVICE DIAGNOSTIC goes to both drives; drive 0 interrupts where it is there."""
        if any(drive.status & (c.BSY | c.DRQ) for drive in self.drives):
            return
        for drive in self.drives:
            drive.set_interrupt(False)
            drive.finish_reset()
        self._after_reset()
        reporter = self.drives[0] if self.drives[0].present else self.drives[1]
        reporter.set_interrupt(True)

    # -- control block ----------------------------------------------------------------------------------------------

    def control_read(self, offset: int, size: int) -> int:
        """Read the alternate status: the interrupt stays as it is."""
        return self._selected.status

    def control_write(self, offset: int, size: int, value: int) -> None:
        """Write the device control register."""
        changed = self._control ^ value
        self._control = value & (c.CONTROL_HOB | c.CONTROL_SRST | c.CONTROL_NIEN)
        if changed & c.CONTROL_SRST:
            for drive in self.drives:
                if value & c.CONTROL_SRST:
                    drive.abort()
                else:
                    drive.finish_reset()
            self._after_reset()
        self.irq_changed()

    def _after_reset(self) -> None:
        """Drive 0 is selected; the device registers say whose they are."""
        self.drives[1].registers[c.DEVICE] |= c.DEVICE_1
        self._select(0)

    # -- for drives -------------------------------------------------------------------------------------------------

    def irq_changed(self) -> None:
        """Drive the line: only the selected drive does, and only while nIEN is 0."""
        level = self._interrupting()
        if level and not self._irq.level:
            self._bus_master.interrupt()
        self._irq.set(level)

    def _interrupting(self) -> bool:
        return self._selected.interrupt and not self._control & c.CONTROL_NIEN

    def dma_request(self, client: DmaClient, length: int, *, to_memory: bool) -> None:
        """Move `length` bytes by DMA once the guest has started the engine."""
        self._bus_master.request(client, length, to_memory=to_memory)

    def dma_complete(self, moved: int | None = None) -> None:
        """The data of the request has been moved: `moved` bytes, None for all."""
        self._bus_master.complete(moved)

    def dma_abort(self) -> None:
        """The drive has given up in the midst of a transfer."""
        self._bus_master.abort()

    def dma_withdraw(self, client: DmaClient) -> None:
        """The drive was reset: it wants nothing any more."""
        self._bus_master.withdraw(client)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._control = 0
        for drive in self.drives:
            drive.reset()
        self._after_reset()

    def save(self) -> ChannelState:
        """Return all registers and the states of the drives."""
        return ChannelState(
            control=self._control,
            selected=int(self._selected is self.drives[1]),
            files=[drive.save_registers() for drive in self.drives],
            disks=self._saved("disk"),
            cds=self._saved("cd"),
        )

    def _saved(self, kind: Literal["disk", "cd"]) -> list[Any]:
        return [drive.save() if drive.kind == kind else None for drive in self.drives]

    def check(self, state: ChannelState) -> None:
        """Raise StateError unless this channel, with its drives, can be in `state`."""
        state.check()
        if state.control & ~(c.CONTROL_HOB | c.CONTROL_SRST | c.CONTROL_NIEN):
            raise StateError("ChannelState.control: bits that are never set")
        for drive, file, disk, cd in zip(self.drives, state.files, state.disks, state.cds, strict=True):
            if (disk is not None) != (drive.kind == "disk") or (cd is not None) != (drive.kind == "cd"):
                raise StateError("ChannelState: the drives are others")
            drive.check_registers(file)
            drive.check(disk or cd, file)

    def load(self, state: ChannelState) -> None:
        """Take over a state that :meth:`check` has passed; drives start again what they were doing."""
        self._control = state.control
        self._selected = self.drives[state.selected]
        for drive, file in zip(self.drives, state.files, strict=True):
            drive.load_registers(file)
        # The engine's own state says whether it has seen this interrupt.
        self._irq.set(self._interrupting())
        for drive, disk, cd in zip(self.drives, state.disks, state.cds, strict=True):
            drive.load(disk or cd)
