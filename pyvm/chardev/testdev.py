"""A back end that executes commands of guests that test things: `testdev`.

The only command is a number and the letter `q`: the process ends with the exit status 2 x number + 1.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvm.chardev.base import Buffer, Chardev

_SPACE = b" \t\n\v\f\r"
_DIGITS = b"0123456789"
_NUMBER_MASK = (1 << 31) - 1


class TestdevChardev(Chardev):
    """Takes commands, gives nothing."""

    def __init__(self, label: str, on_exit: Callable[[int], None]) -> None:
        """`on_exit` ends the process with a status."""
        super().__init__(label)
        self._on_exit = on_exit
        self._number = 0
        self._ended = False
        """The digits of the number are over."""

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "testdev"

    def _write(self, data: Buffer) -> int:
        for byte in data:
            self._take(byte)
        return len(data)

    def _take(self, byte: int) -> None:
        if byte in _SPACE:
            self._ended = self._ended or bool(self._number)
        elif byte in _DIGITS and not self._ended:
            self._number = (self._number * 10 + byte - _DIGITS[0]) & _NUMBER_MASK
        else:
            if byte == ord("q"):
                self._on_exit((self._number << 1 | 1) & 0xFF)
            self._number, self._ended = 0, False
