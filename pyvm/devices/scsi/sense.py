"""Sense data (SPC-4, section 4.5): why a command failed, as data.

A sense code is a key, an additional sense code (ASC) and its qualifier (ASCQ), as SPC-4 annex D lists them.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

# Sense keys (SPC-4, 4.5.6)
NO_SENSE_KEY = 0x0
NOT_READY_KEY = 0x2
MEDIUM_ERROR_KEY = 0x3
HARDWARE_ERROR_KEY = 0x4
ILLEGAL_REQUEST_KEY = 0x5
UNIT_ATTENTION_KEY = 0x6
DATA_PROTECT_KEY = 0x7
ABORTED_COMMAND_KEY = 0xB
MISCOMPARE_KEY = 0xE

FIXED_LENGTH = 18
_FIXED_CURRENT = 0x70
_DESCRIPTOR_CURRENT = 0x72
_DESCRIPTOR_LENGTH = 8


class Sense(NamedTuple):
    """One sense code."""

    key: int
    asc: int
    ascq: int

    def fixed(self) -> bytes:
        """Return fixed format sense data (4.5.3), 18 bytes."""
        data = bytearray(FIXED_LENGTH)
        data[0] = _FIXED_CURRENT
        data[2] = self.key
        data[7] = FIXED_LENGTH - 8
        data[12] = self.asc
        data[13] = self.ascq
        return bytes(data)

    def descriptor(self) -> bytes:
        """Return descriptor format sense data (4.5.2) without descriptors, 8 bytes."""
        data = bytearray(_DESCRIPTOR_LENGTH)
        data[:4] = (_DESCRIPTOR_CURRENT, self.key, self.asc, self.ascq)
        return bytes(data)


NO_SENSE = Sense(NO_SENSE_KEY, 0x00, 0x00)

NO_MEDIUM = Sense(NOT_READY_KEY, 0x3A, 0x00)
NOT_READY_REMOVAL_PREVENTED = Sense(NOT_READY_KEY, 0x53, 0x02)

TARGET_FAILURE = Sense(HARDWARE_ERROR_KEY, 0x44, 0x00)

PARAMETER_LIST_LENGTH = Sense(ILLEGAL_REQUEST_KEY, 0x1A, 0x00)
INVALID_OPCODE = Sense(ILLEGAL_REQUEST_KEY, 0x20, 0x00)
LBA_OUT_OF_RANGE = Sense(ILLEGAL_REQUEST_KEY, 0x21, 0x00)
INVALID_FIELD = Sense(ILLEGAL_REQUEST_KEY, 0x24, 0x00)
LUN_NOT_SUPPORTED = Sense(ILLEGAL_REQUEST_KEY, 0x25, 0x00)
INVALID_PARAMETER = Sense(ILLEGAL_REQUEST_KEY, 0x26, 0x00)
INCOMPATIBLE_MEDIUM = Sense(ILLEGAL_REQUEST_KEY, 0x30, 0x00)
SAVING_NOT_SUPPORTED = Sense(ILLEGAL_REQUEST_KEY, 0x39, 0x00)
REMOVAL_PREVENTED = Sense(ILLEGAL_REQUEST_KEY, 0x53, 0x02)

MEDIUM_CHANGED = Sense(UNIT_ATTENTION_KEY, 0x28, 0x00)
RESET_OCCURRED = Sense(UNIT_ATTENTION_KEY, 0x29, 0x00)
NEXUS_LOSS = Sense(UNIT_ATTENTION_KEY, 0x29, 0x07)
MODE_CHANGED = Sense(UNIT_ATTENTION_KEY, 0x2A, 0x01)
CAPACITY_CHANGED = Sense(UNIT_ATTENTION_KEY, 0x2A, 0x09)
MEDIUM_REMOVED = Sense(UNIT_ATTENTION_KEY, 0x3A, 0x00)
LUNS_CHANGED = Sense(UNIT_ATTENTION_KEY, 0x3F, 0x0E)

WRITE_PROTECTED = Sense(DATA_PROTECT_KEY, 0x27, 0x00)
SPACE_ALLOCATION_FAILED = Sense(DATA_PROTECT_KEY, 0x27, 0x07)

IO_PROCESS_TERMINATED = Sense(ABORTED_COMMAND_KEY, 0x00, 0x06)
COMMAND_TIMEOUT = Sense(ABORTED_COMMAND_KEY, 0x2E, 0x02)

MISCOMPARE = Sense(MISCOMPARE_KEY, 0x1D, 0x00)

_ERRNO_SENSE = {
    errno.ENOMEDIUM: NO_MEDIUM,
    errno.EILSEQ: MISCOMPARE,
    errno.ENOMEM: TARGET_FAILURE,
    errno.EINVAL: INVALID_FIELD,
    errno.ENOSPC: SPACE_ALLOCATION_FAILED,
    errno.ETIMEDOUT: COMMAND_TIMEOUT,
    errno.EPERM: WRITE_PROTECTED,
    errno.EACCES: WRITE_PROTECTED,
    errno.EROFS: WRITE_PROTECTED,
}


def from_errno(error: int) -> Sense:
    """Return the sense code for a failure of the back end."""
    return _ERRNO_SENSE.get(error, IO_PROCESS_TERMINATED)
