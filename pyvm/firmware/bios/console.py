"""A serial line as the console: the text of the screen goes out as a terminal takes it, and what comes in is keys.

ECMA-48 (control functions) as VT100 and xterm understand it, characters in UTF-8.  The terminal's cursor is moved only
when there is something to show at another place, so that plain output stays plain text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.scancodes import CHARACTERS

# 16550 registers
_DATA: Final = 0
_INTERRUPTS: Final = 1
_FIFO: Final = 2
_LINE_CONTROL: Final = 3
_MODEM_CONTROL: Final = 4
_LINE_STATUS: Final = 5
_EIGHT_BITS: Final = 0x03
_DIVISOR_LATCH: Final = 0x80
_DATA_READY: Final = 1 << 0
_READY_LINES: Final = 0x03  # DTR and RTS
_FIFO_ON: Final = 0x07

UNKNOWN: Final = 0xFF
_PLAIN: Final = 0x07
_ESCAPE: Final = 0x1B
_ESCAPE_ROOM: Final = 8
_ESCAPE_TICKS: Final = 2
"""Ticks after which an Esc that nothing follows is the key itself."""
_COLOURS: Final = (0, 4, 2, 6, 1, 5, 3, 7)  # of a display adapter, as the terminal numbers them

_SEQUENCES: Final = {
    b"[A": 0x48E0, b"[B": 0x50E0, b"[C": 0x4DE0, b"[D": 0x4BE0, b"OA": 0x48E0, b"OB": 0x50E0, b"OC": 0x4DE0,
    b"OD": 0x4BE0, b"[H": 0x47E0, b"[F": 0x4FE0, b"OH": 0x47E0, b"OF": 0x4FE0, b"[1~": 0x47E0, b"[2~": 0x52E0,
    b"[3~": 0x53E0, b"[4~": 0x4FE0, b"[5~": 0x49E0, b"[6~": 0x51E0, b"[7~": 0x47E0, b"[8~": 0x4FE0,
    b"OP": 0x3B00, b"OQ": 0x3C00, b"OR": 0x3D00, b"OS": 0x3E00, b"[11~": 0x3B00, b"[12~": 0x3C00, b"[13~": 0x3D00,
    b"[14~": 0x3E00, b"[15~": 0x3F00, b"[17~": 0x4000, b"[18~": 0x4100, b"[19~": 0x4200, b"[20~": 0x4300,
    b"[21~": 0x4400, b"[23~": 0x8500, b"[24~": 0x8600, b"[Z": 0x0F00,
}  # fmt: skip
_PREFIXES: Final = frozenset(sequence[:length] for sequence in _SEQUENCES for length in range(len(sequence)))
_BACKSPACE, _DELETE, _LINE_FEED = 0x08, 0x7F, 0x0A
_ENTER_CODE, _BACKSPACE_CODE, _ESCAPE_CODE = 0x1C0D, 0x0E08, 0x011B

# What code page 437 shows for the codes that are control characters elsewhere.
_GRAPHICS: Final = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"


def terminal_text(code: int) -> bytes:
    """Return the character that the screen shows for a code, in UTF-8."""
    if code < len(_GRAPHICS):
        return _GRAPHICS[code].encode()
    return "⌂".encode() if code == _DELETE else bytes((code,)).decode("cp437").encode()


class SerialConsole:
    """COM1 as a console, where the machine wants that.

    The screen tells it what appears where; rows and columns count from 0.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        ports = core.machine.serial_ports
        self._port = ports[0] if core.machine.console_on_serial and ports else 0

    @property
    def active(self) -> bool:
        """Whether there is a console."""
        return self._port != 0

    def initialise(self) -> None:
        """Set the line up; at POST."""
        ebda = self._core.ebda
        ebda.set_block(area.CONSOLE_ROW, bytes((UNKNOWN, UNKNOWN, _PLAIN)))
        ebda.set_byte(area.CONSOLE_ESCAPE_LENGTH, 0)
        if self._port:
            outb = self._core.outb
            outb(self._port + _LINE_CONTROL, _DIVISOR_LATCH | _EIGHT_BITS)
            outb(self._port + _DATA, 1)
            outb(self._port + _INTERRUPTS, 0)
            outb(self._port + _LINE_CONTROL, _EIGHT_BITS)
            outb(self._port + _INTERRUPTS, 0)
            outb(self._port + _FIFO, _FIFO_ON)
            outb(self._port + _MODEM_CONTROL, _READY_LINES)

    # -- output -----------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        for value in data:
            self._core.outb(self._port + _DATA, value)

    def _place(self, row: int, column: int) -> None:
        ebda = self._core.ebda
        known = ebda.byte(area.CONSOLE_ROW), ebda.byte(area.CONSOLE_COLUMN)
        if known != (row, column):
            if known[0] == row and column == 0:
                self._send(b"\r")
            else:
                self._send(b"\x1b[%d;%dH" % (row + 1, column + 1))
            self._note(row, column)

    def _note(self, row: int, column: int) -> None:
        """Remember where the terminal's cursor is."""
        self._core.ebda.set_byte(area.CONSOLE_ROW, row)
        self._core.ebda.set_byte(area.CONSOLE_COLUMN, column)

    def _paint(self, attribute: int) -> None:
        if attribute == self._core.ebda.byte(area.CONSOLE_ATTRIBUTE):
            return
        self._core.ebda.set_byte(area.CONSOLE_ATTRIBUTE, attribute)
        if attribute == _PLAIN:
            self._send(b"\x1b[0m")
            return
        text = b"\x1b[0;%s%d;%dm" % (
            b"1;" if attribute & 8 else b"",
            30 + _COLOURS[attribute & 7],
            40 + _COLOURS[attribute >> 4 & 7],
        )
        self._send(text)

    def character(self, row: int, column: int, code: int, attribute: int, columns: int) -> None:
        """Show a character."""
        if not self._port:
            return
        self._place(row, column)
        self._paint(attribute)
        self._send(terminal_text(code))
        # At the right margin a terminal's cursor may be in either of two places.
        self._note(row, column + 1 if column + 1 < columns else UNKNOWN)

    def line_feed(self, row: int, rows: int) -> None:
        """Go to the start of the line below `row`, scrolling at the bottom of the `rows`."""
        if not self._port:
            return
        if self._core.ebda.byte(area.CONSOLE_ROW) != row:
            self._place(row, 0)
        self._paint(_PLAIN)
        self._send(b"\r\n")
        self._note(min(row + 1, rows - 1), 0)

    def bell(self) -> None:
        """Ring."""
        if self._port:
            self._send(b"\a")

    def clear(self) -> None:
        """Clear the terminal; the cursor is at its top left corner then."""
        if self._port:
            self._paint(_PLAIN)
            self._send(b"\x1b[2J\x1b[H")
            self._note(0, 0)

    def show_cursor(self) -> None:
        """Put the terminal's cursor where the screen's is: somebody waits for a key."""
        if self._port:
            position = self._core.bda.word(area.CURSOR_POSITIONS + 2 * (self._core.bda.byte(area.VIDEO_PAGE) & 7))
            self._place(position >> 8, position & 0xFF)

    # -- input ------------------------------------------------------------------------------------------------------

    def input(self, room: int) -> Iterator[int]:
        """Yield the keys that came in, at most `room`, as int 16h codes."""
        if not self._port:
            return
        if self._escape_expired():
            for code in self._flush():
                yield code
                room -= 1
        while room > 0 and self._core.inb(self._port + _LINE_STATUS) & _DATA_READY:
            for code in self._received(self._core.inb(self._port + _DATA)):
                yield code
                room -= 1

    def _escape(self) -> bytes | None:
        """Return what followed the Esc that is being waited on, or None."""
        length = min(self._core.ebda.byte(area.CONSOLE_ESCAPE_LENGTH), _ESCAPE_ROOM)
        return self._core.ebda.block(area.CONSOLE_ESCAPE, length)[1:] if length else None

    def _keep(self, sequence: bytes) -> None:
        ebda = self._core.ebda
        data = bytes((_ESCAPE,)) + sequence
        ebda.set_byte(area.CONSOLE_ESCAPE_LENGTH, len(data))
        ebda.set_block(area.CONSOLE_ESCAPE, data)
        ebda.set_byte(area.CONSOLE_ESCAPE_TICK, self._core.bda.byte(area.TICKS))

    def _escape_expired(self) -> bool:
        if self._core.ebda.byte(area.CONSOLE_ESCAPE_LENGTH) == 0:
            return False
        waited = self._core.bda.byte(area.TICKS) - self._core.ebda.byte(area.CONSOLE_ESCAPE_TICK)
        return waited & 0xFF >= _ESCAPE_TICKS

    def _flush(self) -> list[int]:
        """Return the keys of an escape sequence that was none."""
        sequence = self._escape() or b""
        self._core.ebda.set_byte(area.CONSOLE_ESCAPE_LENGTH, 0)
        return [_ESCAPE_CODE, *(_key(value) for value in sequence)]

    def _received(self, value: int) -> list[int]:
        sequence = self._escape()
        if sequence is None:
            if value == _ESCAPE:
                self._keep(b"")
                return []
            return [_key(value)]
        sequence += bytes((value,))
        if sequence in _SEQUENCES:
            self._core.ebda.set_byte(area.CONSOLE_ESCAPE_LENGTH, 0)
            return [_SEQUENCES[sequence]]
        if sequence in _PREFIXES and len(sequence) < _ESCAPE_ROOM:
            self._keep(sequence)
            return []
        keys = self._flush()
        if value == _ESCAPE:
            self._keep(b"")
            return keys
        return [*keys, _key(value)]


def _key(value: int) -> int:
    """Return the code of the key that sends a byte."""
    if value == _LINE_FEED:
        return _ENTER_CODE
    if value in (_BACKSPACE, _DELETE):
        return _BACKSPACE_CODE
    return CHARACTERS.get(value, value)
