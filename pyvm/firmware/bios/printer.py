"""Int 17h: parallel printers; int 05h: the screen on the first of them.

Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 05h and 17h; IEEE 1284-1994, annex C,
for the registers of the port.
"""

from __future__ import annotations

from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.video import Video

PORTS: Final = (0x3BC, 0x378, 0x278)
DATA, STATUS, CONTROL = 0, 1, 2
STATUS_NOT_BUSY: Final = 1 << 7
STATUS_INVERTED: Final = 0x48  # acknowledge and error are low when active
STATUS_BITS: Final = 0xF8
CONTROL_STROBE: Final = 1 << 0
CONTROL_NO_RESET: Final = 1 << 2
CONTROL_SELECT: Final = 1 << 3
TIMED_OUT: Final = 1 << 0
PRINT, INITIALISE, QUERY = range(3)

_SCREEN_STATUS: Final = 0x500  # 0: done, 1: busy, 0xff: failed
_BUSY: Final = 1
_FAILED: Final = 0xFF
_MAX_PORTS: Final = 3
_TEST_PATTERNS: Final = (0xAA, 0x55)


class Printer:
    """The services."""

    def __init__(self, core: Core, video: Video) -> None:
        self._core = core
        self._video = video

    def find_ports(self) -> list[int]:
        """Return the parallel ports: those that keep what is written to them."""
        return [port for port in PORTS if all(self._keeps(port, value) for value in _TEST_PATTERNS)]

    def _keeps(self, port: int, value: int) -> bool:
        self._core.outb(port, value)
        return self._core.inb(port) == value

    def call(self, registers: Registers) -> None:
        """Serve int 17h; a port that is not there times out."""
        port = self._core.bda.word(area.LPT_PORTS + 2 * registers.dx) if registers.dx < _MAX_PORTS else 0
        function = registers.ah
        registers.carry = port == 0
        if port == 0:
            registers.ah = TIMED_OUT
        elif function == PRINT:
            registers.ah = self._print(port, registers.al)
        elif function == INITIALISE:
            self._core.outb(port + CONTROL, CONTROL_SELECT)
            self._core.outb(port + CONTROL, CONTROL_SELECT | CONTROL_NO_RESET)
            registers.ah = self._status(port)
        elif function == QUERY:
            registers.ah = self._status(port)

    def _status(self, port: int) -> int:
        return (self._core.inb(port + STATUS) ^ STATUS_INVERTED) & STATUS_BITS

    def _print(self, port: int, value: int) -> int:
        """Print a character; a printer that is busy now times out at once, for it has no buffer to empty."""
        status = self._status(port)
        if not status & STATUS_NOT_BUSY:
            return status | TIMED_OUT
        idle = CONTROL_SELECT | CONTROL_NO_RESET
        self._core.outb(port + DATA, value)
        self._core.outb(port + CONTROL, idle | CONTROL_STROBE)
        self._core.outb(port + CONTROL, idle)
        return self._status(port)

    def print_screen(self, registers: Registers) -> None:
        """Int 05h: print the characters of the page that is shown."""
        memory = self._core.memory
        if memory.read(_SCREEN_STATUS, 1)[0] == _BUSY:
            return
        memory.write(_SCREEN_STATUS, bytes((0 if self._print_all() else _FAILED,)))

    def _print_all(self) -> bool:
        port = self._core.bda.word(area.LPT_PORTS)
        if port == 0:
            return False
        screen, page = self._video.screen, self._core.bda.byte(area.VIDEO_PAGE)
        for row in range(screen.rows):
            line = bytes(screen.read(page, row, column)[0] or 0x20 for column in range(screen.columns))
            if any(self._print(port, value) & TIMED_OUT for value in line + b"\r\n"):
                return False
        return True
