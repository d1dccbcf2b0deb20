"""What an ATA disk has to remember while a command is being carried out, and which of that cannot be.

The record may come from a file or from another host; a disk that took it as it is could be made to move data that the
guest never asked for.
"""

from __future__ import annotations

import enum
from typing import Final

from pyvm.devices.ide import constants as c
from pyvm.devices.ide import identify
from pyvm.devices.ide.drive import TaskFileState, TransferState, check_transfer
from pyvm.devices.ide.smart import SmartState
from pyvm.state import State, StateError, flag, integer, record, uint

MAX_LBA: Final = 1 << 48
MAX_TRIM_SECTORS: Final = 64
"""Most sectors of ranges that one DATA SET MANAGEMENT command may bring."""


class Activity(enum.IntEnum):
    """What a disk is doing between the writing of a command and its end."""

    NONE = 0
    READ = 1  # by PIO; `lba` and `remaining` are what the guest has not got yet
    WRITE = 2  # by PIO
    REPLY = 3  # the guest reads 512 bytes that are not of the disk
    READ_DMA = 4
    WRITE_DMA = 5
    TRIM = 6  # by DMA
    FLUSH = 7
    VERIFY = 8


BY_DMA: Final = (Activity.READ_DMA, Activity.WRITE_DMA, Activity.TRIM)
_WITH_SECTORS: Final = (Activity.READ, Activity.WRITE, *BY_DMA)


class DiskState(State):
    """What a disk keeps besides its task file.

    `block` are the sectors of a block of the present command, `multiple` those of SET MULTIPLE MODE, `heads` and
    `sectors` the geometry that software chose.
    """

    transfer: TransferState = record(TransferState)
    activity: int = integer(0, max(Activity))
    lba: int = uint(48)
    remaining: int = integer(0, 1 << 16)
    block: int = integer(1, c.MAX_MULTIPLE, 1)
    extended: bool = flag()
    durable: bool = flag()
    multiple: int = integer(0, c.MAX_MULTIPLE, c.MAX_MULTIPLE)
    mode: int = uint(8, identify.MODE_RESET)
    heads: int = integer(1, 16, 16)
    sectors: int = integer(1, 255, 63)
    standby: bool = flag()
    asleep: bool = flag()
    write_cache: bool = flag(True)
    smart: SmartState = record(SmartState)


def check_disk(state: DiskState, file: TaskFileState) -> None:
    """Raise StateError unless a disk can be in `state`, its task file being `file`."""
    transfer = state.transfer
    activity = Activity(state.activity)
    check_transfer(transfer)
    if state.multiple & (state.multiple - 1):
        raise StateError("DiskState.multiple: not a power of two")
    if not identify.valid_mode(state.mode):
        raise StateError("DiskState.mode: no transfer mode")
    if state.lba + state.remaining > MAX_LBA or (activity is Activity.TRIM and state.remaining > MAX_TRIM_SECTORS):
        raise StateError("DiskState.remaining: too much")
    if activity in _WITH_SECTORS and not state.remaining:
        raise StateError("DiskState.remaining: nothing is left")
    if (transfer.in_end | transfer.out_end | len(transfer.data) * (not transfer.out_end)) % c.SECTOR:
        raise StateError("TransferState: not whole sectors")
    if transfer.in_end and activity not in (Activity.READ, Activity.REPLY):
        raise StateError("TransferState.in_end: the command has no data to read")
    if transfer.out_end and activity is not Activity.WRITE:
        raise StateError("TransferState.out_end: the command has no data to write")
    if activity is Activity.READ and transfer.in_end - transfer.position > state.block * c.SECTOR:
        raise StateError("TransferState.in_end: more than a block")
    if activity is Activity.READ and len(transfer.data) > state.remaining * c.SECTOR + transfer.position:
        raise StateError("TransferState.data: more than the command reads")
    writes = max(transfer.out_end, len(transfer.data)) if activity is Activity.WRITE else 0
    if writes > min(state.block, state.remaining) * c.SECTOR:
        raise StateError("TransferState.out_end: more than the command writes")
    moving = bool(transfer.in_end or transfer.out_end)
    if moving != bool(file.status & c.DRQ) and activity not in BY_DMA:
        raise StateError("TaskFileState.status: a data phase that is none")
