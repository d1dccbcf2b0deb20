"""Self-monitoring of a disk (SMART): ATA/ATAPI-6, section 8.55, and the layout of its data in SFF-8035i.

A disk in a machine like this does not wear.  The attributes say so in the way that tools expect, and self-tests pass.
"""

from __future__ import annotations

from typing import Final

from pyvm.state import State, flag, sequence, uint

READ_DATA: Final = 0xD0
READ_THRESHOLDS: Final = 0xD1
AUTOSAVE: Final = 0xD2
EXECUTE_OFFLINE: Final = 0xD4
READ_LOG: Final = 0xD5
ENABLE: Final = 0xD8
DISABLE: Final = 0xD9
RETURN_STATUS: Final = 0xDA

KEY_MID: Final = 0x4F
KEY_HIGH: Final = 0xC2

AUTOSAVE_OFF: Final = 0x00
AUTOSAVE_ON: Final = 0xF1
OFFLINE_TESTS: Final = (0, 1, 2)  # off-line collection, short and extended self-test
LOG_ERRORS: Final = 0x01
LOG_SELF_TESTS: Final = 0x06

_SIZE: Final = 512
_ENTRY: Final = 12
_TESTS: Final = 21
_TEST_ENTRY: Final = 24
_HOURS: Final = 1

_ATTRIBUTES: Final = (  # id, flags, value, raw, threshold
    (1, 0x03, 100, b"\0\0\0\0\0\0", 6),  # raw read error rate
    (3, 0x03, 100, b"\x10\0\0\0\0\0", 0),  # spin-up time
    (4, 0x02, 100, b"\x64\0\0\0\0\0", 20),  # starts and stops
    (5, 0x03, 100, b"\0\0\0\0\0\0", 36),  # reallocated sectors
    (9, 0x03, 100, b"\x01\0\0\0\0\0", 0),  # power-on hours
    (12, 0x03, 100, b"\0\0\0\0\0\0", 0),  # power cycles
    (190, 0x03, 69, b"\x1f\0\x1f\x1f\0\0", 50),  # air flow temperature
)


def _summed(data: bytearray) -> bytes:
    """Return the structure with its last byte such that all add up to zero."""
    data[-1] = -sum(data[:-1]) & 0xFF
    return bytes(data)


def attributes(*, autosave: bool) -> bytes:
    """Return the attribute data structure."""
    data = bytearray(_SIZE)
    data[0] = 1
    for index, (ident, flags, value, raw, _) in enumerate(_ATTRIBUTES):
        start = 2 + _ENTRY * index
        data[start : start + 11] = bytes((ident, flags, 0, value, value)) + raw
    data[362] = 0x02 | (0x80 if autosave else 0)  # off-line collection completed
    data[364:366] = (288).to_bytes(2, "little")  # seconds of an off-line collection
    data[367] = 0x19  # off-line immediate, self-tests
    data[368] = 0x03  # attributes survive power saving
    data[370] = 0x01  # errors are logged
    data[372] = 2  # minutes of a short self-test
    data[373] = 54  # of an extended one
    data[374] = 1  # of a conveyance one
    return _summed(data)


def thresholds() -> bytes:
    """Return the threshold data structure."""
    data = bytearray(_SIZE)
    data[0] = 1
    for index, (ident, _, _, _, threshold) in enumerate(_ATTRIBUTES):
        start = 2 + _ENTRY * index
        data[start : start + 2] = bytes((ident, threshold))
    return _summed(data)


def error_log() -> bytes:
    """Return the summary error log: it has no entries."""
    data = bytearray(_SIZE)
    data[0] = 1
    return _summed(data)


def self_test_log(tests: list[int]) -> bytes:
    """Return the self-test log; `tests` are the kinds of the tests made, the last one last, at most 21."""
    data = bytearray(_SIZE)
    data[0] = 1
    for index, kind in enumerate(tests[-_TESTS:]):
        start = 2 + _TEST_ENTRY * index
        data[start : start + 4] = bytes((kind, 0)) + _HOURS.to_bytes(2, "little")  # status 0: completed
    data[508] = len(tests[-_TESTS:])
    return _summed(data)


class SmartState(State):
    """Whether monitoring is on, whether it saves attributes by itself, and the self-tests made."""

    enabled: bool = flag(True)
    autosave: bool = flag(True)
    tests: list[int] = sequence(uint(8), _TESTS)


class Smart:
    """The monitor of one disk."""

    def __init__(self, state: SmartState) -> None:
        self._state = state.copy()

    def command(self, function: int, count: int, number: int) -> bytes | None:
        """Carry out a subcommand; return data for the guest, nothing where there is none, or None where refused.

        `count` and `number` are the sector count and LBA low registers.
        """
        state = self._state
        if not state.enabled and function != ENABLE:
            return None
        if function in (ENABLE, DISABLE):
            state.enabled = function == ENABLE
            return b""
        if function == READ_DATA:
            return attributes(autosave=state.autosave)
        if function == READ_THRESHOLDS:
            return thresholds()
        if function == RETURN_STATUS:
            return b""  # the key stays in the registers: no threshold is exceeded
        if function == READ_LOG:
            return self._log(count, number)
        if function == AUTOSAVE and count in (AUTOSAVE_ON, AUTOSAVE_OFF):
            state.autosave = count == AUTOSAVE_ON
            return b""
        if function == EXECUTE_OFFLINE and number in OFFLINE_TESTS:
            if number:
                state.tests = [*state.tests, number][-_TESTS:]
            return b""
        return None

    def _log(self, count: int, number: int) -> bytes | None:
        if count == 1 and number == LOG_ERRORS:
            return error_log()
        if count == 1 and number == LOG_SELF_TESTS:
            return self_test_log(self._state.tests)
        return None

    def save(self) -> SmartState:
        """Return all of it."""
        return self._state.copy()
