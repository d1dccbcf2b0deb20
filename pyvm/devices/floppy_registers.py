"""Registers of the 82077AA floppy disk controller, and the record of its state.

Intel 82077AA CHMOS Single-Chip Floppy Disk Controller (order number 290166), sections 2.1 (registers), 4 (status
registers) and 5 (command parameters).
"""

from __future__ import annotations

import enum
from typing import Final

from pyvm.devices.floppy_media import RATE_500K, FloppyDriveState
from pyvm.devices.floppy_transfer import FloppyTransferState
from pyvm.state import State, array, blob, flag, integer, optional, record, sequence, uint

# Registers, offsets in ports
SRA: Final = 0  # read-only; not driven in AT mode
SRB: Final = 1  # read-only
DOR: Final = 2
TDR: Final = 3
MSR: Final = 4  # read-only
DSR: Final = 4  # write-only
FIFO: Final = 5
PORTS: Final = 6

SRB_ONES: Final = 0xC0
SRB_DRIVE_0: Final = 1 << 5
SRB_MOTORS: Final = 0x03
DOR_DRIVE: Final = 0x03
DOR_NOT_RESET: Final = 1 << 2
DOR_DMA_GATE: Final = 1 << 3  # interrupts and DMA requests reach the bus
DOR_MOTORS_SHIFT: Final = 4
DOR_POWER_ON: Final = DOR_NOT_RESET | DOR_DMA_GATE
TDR_WRITABLE: Final = 0x03
MSR_READY: Final = 1 << 7  # RQM
MSR_TO_HOST: Final = 1 << 6  # DIO
MSR_NOT_DMA: Final = 1 << 5
MSR_BUSY: Final = 1 << 4
DSR_RESET: Final = 1 << 7  # clears itself
RATE_MASK: Final = 0x03  # of DSR and CCR
DIR_CHANGED: Final = 1 << 7

# Status registers 0 and 3
ST0_SEEK_END: Final = 0x20
ST0_EQUIPMENT_CHECK: Final = 0x10
ST0_INVALID: Final = 0x80
ST0_READY_CHANGED: Final = 0xC0
ST3_WRITE_PROTECT: Final = 0x40
ST3_ONES: Final = 0x28
ST3_TRACK_0: Final = 0x10

# CONFIGURE, second byte
CONFIG_IMPLIED_SEEK: Final = 1 << 6
CONFIG_NO_FIFO: Final = 1 << 5
CONFIG_NO_POLL: Final = 1 << 4
CONFIG_RESET: Final = CONFIG_NO_FIFO
CONFIG_WRITABLE: Final = 0x7F
PERPENDICULAR_OVERWRITE: Final = 1 << 7
PERPENDICULAR_DRIVES: Final = 0x3C
PERPENDICULAR_MODE: Final = 0x03
HLT_NOT_DMA: Final = 1 << 0
VERSION_ENHANCED: Final = 0x90

FLAG_MULTI_TRACK: Final = 1 << 7
FLAG_SKIP: Final = 1 << 5
LOCK_FLAG: Final = 1 << 7
RELATIVE_IN: Final = 1 << 6
VERIFY_COUNT: Final = 1 << 7  # EC, in the drive byte
SELECT_DRIVE: Final = 0x03
SELECT_HEAD: Final = 1 << 2

DRIVES: Final = 2
SELECTABLE: Final = 4
MAX_FIFO: Final = 16


class Phase(enum.IntEnum):
    """Where the controller is in a command."""

    COMMAND = 0
    EXECUTION = 1
    RESULT = 2


class FloppyState(State):
    """Registers, the bytes of the present phase, and the drives.

    `pending` are values of ST0 for SENSE INTERRUPT STATUS, `cylinders` where the controller believes the heads to be.
    """

    dor: int = uint(8, DOR_POWER_ON)
    tdr: int = uint(2)
    rate: int = uint(2, RATE_500K)
    phase: int = integer(0, max(Phase))
    fifo: bytes = blob(MAX_FIFO)
    position: int = integer(0, MAX_FIFO)
    interrupt: bool = flag()
    pending: list[int] = sequence(uint(8), SELECTABLE)
    cylinders: list[int] = array(uint(8), SELECTABLE)
    timing: list[int] = array(uint(8), 2)
    config: int = uint(7, CONFIG_RESET)
    precompensation: int = uint(8)
    perpendicular: int = uint(6)
    lock: bool = flag()
    end: int = uint(8)
    drives: list[FloppyDriveState | None] = array(optional(record(FloppyDriveState)), DRIVES)
    transfer: FloppyTransferState | None = optional(record(FloppyTransferState))
