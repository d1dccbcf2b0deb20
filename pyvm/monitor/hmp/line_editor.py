"""A terminal's line editor as a state machine: bytes from the keyboard in, lines and terminal output out.

The keys are those of a shell, and of QEMU's monitor: Ctrl-A/E, Home/End, arrows, Ctrl-B/F, Ctrl-P/N, Backspace, Delete,
Ctrl-D, Ctrl-W, Ctrl-K, Ctrl-U, Ctrl-L and Tab.  Escape sequences are those of ECMA-48 and xterm; unknown ones do
nothing.  Output uses only what every terminal since the VT100 has: cursor left and right, erase to the end of the line.

After each change the whole line is written anew, as QEMU does it: programs that drive a monitor find the complete line
last in the echo.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Sequence
from enum import Enum

MAX_LINE = 4095
"""Most characters of a line; the rest is not taken."""
MAX_HISTORY = 64
"""Most lines that are remembered."""
MAX_CANDIDATES = 256
"""Most completions that are listed."""
MAX_PARAMETERS = 16
"""Most parameter bytes of an escape sequence that are kept."""
SCREEN_COLUMNS = 80
_NARROWEST_COLUMN = 10

LEFT, RIGHT = "\x1b[D", "\x1b[C"
ERASE_TO_END = "\x1b[K"
CLEAR_SCREEN = "\x1b[2J\x1b[1;1H"

ESCAPE = "\x1b"
_CSI = "\x9b"
_RAW_CSI = "\udc9b"  # the 8-bit control as a byte of its own, which is no UTF-8


class _State(Enum):
    """Where in an escape sequence the input is."""

    TEXT = "text"
    ESCAPE = "escape"
    """Behind ESC."""
    CONTROL = "control"
    """Behind ESC [, in its parameters."""
    SINGLE_SHIFT = "single shift"
    """Behind ESC O, which some terminals send for keys."""


Completer = Callable[[str], tuple[int, Sequence[str]]]
"""The text before the cursor -> how many of its last characters are the word to be completed, and what it may become,
sorted."""


def width(character: str) -> int:
    """Return how many columns of the terminal a character takes."""
    if character < "\x7f":
        return 1
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def columns(text: str) -> int:
    """Return how many columns `text` takes."""
    return len(text) if text.isascii() else sum(map(width, text))


def in_columns(words: Sequence[str]) -> list[str]:
    """Arrange words in rows of as many equal columns as fit on the screen."""
    longest = max(map(columns, words), default=0)
    space = min(max(longest + 2, _NARROWEST_COLUMN), SCREEN_COLUMNS)
    per_row = SCREEN_COLUMNS // space
    padded = [word + " " * (space - columns(word)) for word in words]
    return ["".join(padded[start : start + per_row]) for start in range(0, len(padded), per_row)]


def common_prefix(words: Sequence[str]) -> str:
    """Return what all of some sorted words begin with."""
    first, last = words[0], words[-1]
    same = 0
    while same < min(len(first), len(last)) and first[same] == last[same]:
        same += 1
    return first[:same]


class History:
    """The lines that were entered, the oldest first; each only once, at its last place."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Remember a line."""
        if not line:
            return
        if line in self.lines:
            self.lines.remove(line)
        self.lines.append(line)
        del self.lines[:-MAX_HISTORY]


class LineEditor:
    """Edits one line at a time.

    Output goes to `write`, with a bare newline for the end of a line.  Bytes that are no UTF-8 are kept as lone
    surrogates, as ``surrogateescape`` makes them, and go back to the terminal as they came.
    """

    def __init__(self, prompt: str, write: Callable[[str], object], complete: Completer) -> None:
        self.prompt = prompt
        self.history = History()
        self._write = write
        self._complete = complete
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._state = _State.TEXT
        self._parameters = ""
        self._line = ""
        self._cursor = 0
        self._recalled: int | None = None
        """The place in the history of the line that is edited; None for a new one."""
        self._draft = ""
        """The new line, while one from the history is shown in its place."""
        self._controls: dict[str, Callable[[], None]] = {
            "\x01": self._home,
            "\x02": self._left,
            "\x04": self._delete,
            "\x05": self._end,
            "\x06": self._right,
            "\x08": self._backspace,
            "\x09": self._tab,
            "\x0b": self._delete_to_end,
            "\x0c": self._clear_screen,
            "\x0e": self._newer,
            "\x10": self._older,
            "\x15": self._delete_to_start,
            "\x17": self._delete_word,
            "\x7f": self._backspace,
        }
        self._finals: dict[str, Callable[[], None]] = {
            "A": self._older,
            "B": self._newer,
            "C": self._right,
            "D": self._left,
            "F": self._end,
            "H": self._home,
        }
        self._keypad: dict[str, Callable[[], None]] = {
            "1": self._home,
            "3": self._delete,
            "4": self._end,
            "7": self._home,
            "8": self._end,
        }

    @property
    def line(self) -> str:
        """The line as it is now."""
        return self._line

    @property
    def cursor(self) -> int:
        """The index in the line of the character under the cursor."""
        return self._cursor

    def start(self) -> None:
        """Show the prompt for a new line; what was typed of the last one is gone."""
        self._begin()
        self._write(self.prompt)

    def reset(self) -> None:
        """Forget the line and what came of an incomplete character or escape sequence; show nothing."""
        self._decoder.reset()
        self._state = _State.TEXT
        self._begin()

    def _begin(self) -> None:
        self._line, self._cursor = "", 0
        self._recalled, self._draft = None, ""

    # ---- Keys

    def feed(self, byte: int) -> str | None:
        """Take one byte; return the line when it is complete, for which :meth:`start` begins the next."""
        entered = None
        # A byte that ends an incomplete character comes behind what there was of that.
        for character in self._decoder.decode(bytes((byte,))):
            if self._state is not _State.TEXT:
                character = self._sequence(character)  # noqa: PLW2901 - what is left of it
            if character in ("\r", "\n"):
                entered = self._enter()
            elif character:
                self._key(character)
        return entered

    def _sequence(self, character: str) -> str:
        """Follow an escape sequence; return the character where it is none of it."""
        state = self._state
        if character < " " or character in (_CSI, _RAW_CSI):
            self._state = _State.TEXT  # a control character breaks the sequence off
            return character
        if state is _State.ESCAPE:
            following = {"[": _State.CONTROL, "O": _State.SINGLE_SHIFT}
            self._state = following.get(character, _State.TEXT)
            self._parameters = ""
        elif "\x20" <= character <= "\x3f":
            if len(self._parameters) < MAX_PARAMETERS:
                self._parameters += character
        else:
            self._state = _State.TEXT
            self._final(character)
        return ""

    def _final(self, character: str) -> None:
        """Do what a complete escape sequence asks for; modifiers such as Ctrl make no difference."""
        if character == "~":
            action = self._keypad.get(self._parameters.partition(";")[0])
        else:
            action = self._finals.get(character)
        if action is not None:
            action()

    def _key(self, character: str) -> None:
        if character == ESCAPE:
            self._state = _State.ESCAPE
        elif character in (_CSI, _RAW_CSI):
            self._state = _State.CONTROL
            self._parameters = ""
        elif action := self._controls.get(character):
            action()
        elif character >= " " and not "\x7f" <= character <= "\x9f":
            self._insert(character)

    def _enter(self) -> str:
        line = self._line
        self._write("\n")
        self.history.add(line)
        self._begin()
        return line

    # ---- Changes

    def _change(self, line: str, cursor: int) -> None:
        """Show another line in place of the present one."""
        behind = columns(self._line[: self._cursor])
        self._line, self._cursor = line, cursor
        self._write(LEFT * behind)
        self._show()

    def _show(self) -> None:
        """Write the line behind the prompt, and put the cursor in its place."""
        self._write(self._line + ERASE_TO_END + LEFT * columns(self._line[self._cursor :]))

    def _insert(self, text: str) -> None:
        if len(self._line) + len(text) <= MAX_LINE:
            at = self._cursor
            self._change(self._line[:at] + text + self._line[at:], at + len(text))

    def _cut(self, start: int, end: int) -> None:
        """Take the characters from `start` to `end` away."""
        if start < end:
            self._change(self._line[:start] + self._line[end:], start)

    def _backspace(self) -> None:
        start = self._cursor - 1
        while start > 0 and not width(self._line[start]):
            start -= 1  # an accent goes with its letter
        self._cut(max(start, 0), self._cursor)

    def _delete(self) -> None:
        self._cut(self._cursor, self._next())

    def _delete_to_end(self) -> None:
        self._cut(self._cursor, len(self._line))

    def _delete_to_start(self) -> None:
        self._cut(0, self._cursor)

    def _delete_word(self) -> None:
        before = self._line[: self._cursor].rstrip()
        words = before.rsplit(maxsplit=1)
        start = len(before) - len(words[-1]) if words else 0
        self._cut(start, self._cursor)

    # ---- Moves

    def _next(self) -> int:
        """Return the index behind the character under the cursor and its accents."""
        position = min(self._cursor + 1, len(self._line))
        while position < len(self._line) and not width(self._line[position]):
            position += 1
        return position

    def _move(self, cursor: int) -> None:
        if cursor < self._cursor:
            self._write(LEFT * columns(self._line[cursor : self._cursor]))
        else:
            self._write(RIGHT * columns(self._line[self._cursor : cursor]))
        self._cursor = cursor

    def _home(self) -> None:
        self._move(0)

    def _end(self) -> None:
        self._move(len(self._line))

    def _left(self) -> None:
        position = max(self._cursor - 1, 0)
        while position > 0 and not width(self._line[position]):
            position -= 1
        self._move(position)

    def _right(self) -> None:
        self._move(self._next())

    # ---- History

    def _older(self) -> None:
        lines = self.history.lines
        if self._recalled is None:
            if not lines:
                return
            self._draft = self._line
            self._recalled = len(lines)
        if self._recalled > 0:
            self._recalled -= 1
            self._recall(lines[self._recalled])

    def _newer(self) -> None:
        lines = self.history.lines
        if self._recalled is None:
            return
        if self._recalled < len(lines) - 1:
            self._recalled += 1
            self._recall(lines[self._recalled])
        else:
            self._recalled = None
            self._recall(self._draft)

    def _recall(self, line: str) -> None:
        self._change(line, len(line))

    # ---- The screen

    def _clear_screen(self) -> None:
        self._write(CLEAR_SCREEN + self.prompt)
        self._show()

    def _tab(self) -> None:
        """Complete the word before the cursor as far as that is certain; list what it may become."""
        length, candidates = self._complete(self._line[: self._cursor])
        if not candidates:
            return
        if len(candidates) == 1:
            candidate = candidates[0]
            self._insert(candidate[length:] + ("" if candidate.endswith("/") else " "))
            return
        rows = in_columns(candidates[:MAX_CANDIDATES])
        self._write("\n" + "".join(row + "\n" for row in rows) + self.prompt)
        rest = common_prefix(candidates)[length:]
        if len(self._line) + len(rest) <= MAX_LINE:
            at = self._cursor
            self._line = self._line[:at] + rest + self._line[at:]
            self._cursor = at + len(rest)
        if self._line:
            self._show()
