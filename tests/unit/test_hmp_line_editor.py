"""The line editor: keys in, line and terminal output out.  Echoes are those of QEMU 7.2 for the same keys."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.monitor.hmp.line_editor import MAX_HISTORY, MAX_LINE, LineEditor, columns, in_columns

WORDS = ["cont", "cpu", "info", "stop", "system_powerdown", "system_reset"]
LEFT, ERASE = "\x1b[D", "\x1b[K"
UP, DOWN, RIGHT = b"\x1b[A", b"\x1b[B", b"\x1b[C"


class Terminal:
    """An editor, what it wrote, and a screen that knows the sequences that it may use."""

    def __init__(self) -> None:
        self.output = ""
        self.entered: list[str] = []
        self.editor = LineEditor("> ", self._write, self._complete)

    def _write(self, text: str) -> None:
        self.output += text

    @staticmethod
    def _complete(text: str) -> tuple[int, list[str]]:
        word = text.rpartition(" ")[2]
        return len(word), [name for name in WORDS if name.startswith(word)]

    def type(self, *keys: bytes) -> str:
        """Feed keys; return what is written for them."""
        start = len(self.output)
        for byte in b"".join(keys):
            line = self.editor.feed(byte)
            if line is not None:
                self.entered.append(line)
        return self.output[start:]

    def screen(self) -> tuple[str, int]:
        """Return the last row of the screen, and the column of the cursor."""
        row: list[str] = []
        column = 0
        for token in re.findall(r"\x1b\[[0-9;]*[A-Z]|.|\n", self.output, re.DOTALL):
            match token:
                case "\n" | "\x1b[1;1H":
                    row, column = [], 0
                case "\x1b[2J":
                    pass
                case "\x1b[D":
                    assert column > 0
                    column -= 1
                case "\x1b[C":
                    column += 1
                case "\x1b[K":
                    del row[column:]
                case _:
                    assert not token.startswith("\x1b"), token
                    row[column : column + 1] = [token]
                    column += 1
        return "".join(row), column


@pytest.mark.parametrize(
    ("keys", "echo"),
    [
        (b"ab", f"a{ERASE}{LEFT}ab{ERASE}"),
        (b"\x1b[D\x01", ""),
        (b"ab\x1b[DX", f"a{ERASE}{LEFT}ab{ERASE}{LEFT}{LEFT}aXb{ERASE}{LEFT}"),
        (b"ab\x01\x05", f"a{ERASE}{LEFT}ab{ERASE}{LEFT}{LEFT}\x1b[C\x1b[C"),
        (b"ab\x7f", f"a{ERASE}{LEFT}ab{ERASE}{LEFT}{LEFT}a{ERASE}"),
        (b"ab\x01\x1b[3~", f"a{ERASE}{LEFT}ab{ERASE}{LEFT}{LEFT}b{ERASE}{LEFT}"),
        (b"a\x0c", f"a{ERASE}\x1b[2J\x1b[1;1H> a{ERASE}"),
        (b"\x00\x1f\x03\x12", ""),
        ("é\x7f".encode(), f"é{ERASE}{LEFT}{ERASE}"),
        (b"\xff", f"\udcff{ERASE}"),
    ],
)
def test_echo(keys: bytes, echo: str) -> None:
    assert Terminal().type(keys) == echo


@pytest.mark.parametrize(
    ("keys", "line", "cursor"),
    [
        (b"abc\x1b[HX", "Xabc", 1),
        (b"abc\x1bOHX", "Xabc", 1),
        (b"abc\x1b[1~X", "Xabc", 1),
        (b"abc\x1b[7~X", "Xabc", 1),
        (b"abc\x01\x1b[F", "abc", 3),
        (b"abc\x01\x1b[4~", "abc", 3),
        (b"abc\x01\x06", "abc", 1),
        (b"abc\x02", "abc", 2),
        (b"abc\x9bDX", "abXc", 3),
        (b"abc\x1b[1;5DX", "abXc", 3),
        (b"abc\x1b[99z\x1b[5~\x1bx\x1bOz", "abc", 3),
        (b"abc\x1b\x1b[DX", "abXc", 3),
        (b"abc\x1b[3\x01X", "Xabc", 1),
        (b"abcd\x02\x02\x0b", "ab", 2),
        (b"abcd\x02\x15", "d", 0),
        (b"foo bar  \x17", "foo ", 4),
        (b"foo\x17\x17", "", 0),
        (b"abc\x04\x01\x04", "bc", 0),
        (b"abc\x01\x08", "abc", 0),
        ("ae\u0301\x08".encode(), "a", 1),
        ("日本\x02x".encode(), "日x本", 2),
        (b"\xe6\x97\x61", "\udce6\udc97a", 3),
        (b"inf\t", "info ", 5),
        (b"sys\t", "system_", 7),
        (b"stop c\x01\x06\x06\t", "stop op c", 5),
        (b"zz\t", "zz", 2),
    ],
)
def test_keys(keys: bytes, line: str, cursor: int) -> None:
    terminal = Terminal()
    terminal.type(keys)
    assert (terminal.editor.line, terminal.editor.cursor) == (line, cursor)
    if keys.isascii():
        assert terminal.screen() == (line, cursor) or terminal.screen() == ("> " + line, cursor + 2)


def test_lines_end_with_either_key_and_are_remembered() -> None:
    terminal = Terminal()
    assert terminal.type(b"one\r").endswith(f"one{ERASE}\n")
    terminal.type(b"two\n\n")
    assert terminal.entered == ["one", "two", ""]
    assert terminal.editor.history.lines == ["one", "two"]
    terminal.type(b"one\r")
    assert terminal.editor.history.lines == ["two", "one"]


def test_history_keeps_the_new_line() -> None:
    terminal = Terminal()
    assert terminal.type(UP, DOWN) == ""
    terminal.type(b"one\rtwo\rdraft")
    assert terminal.type(UP) == LEFT * 5 + "two" + ERASE
    terminal.type(UP, UP)
    assert terminal.editor.line == "one"
    terminal.type(DOWN, DOWN)
    assert terminal.editor.line == "draft"
    assert terminal.type(DOWN) == ""
    terminal.type(UP, b"!\r")
    assert terminal.entered[-1] == "two!"
    terminal.type(b"\x10\x10\x0e\r")
    assert terminal.entered[-1] == "two!"


def test_bounds() -> None:
    terminal = Terminal()
    for byte in b"x" * (MAX_LINE + 10):
        terminal.editor.feed(byte)
        terminal.output = ""
    assert terminal.editor.line == "x" * MAX_LINE
    terminal.type(b"\t")
    assert len(terminal.editor.line) == MAX_LINE
    terminal.editor.reset()
    for number in range(MAX_HISTORY + 5):
        terminal.type(f"{number}\r".encode())
    assert terminal.editor.history.lines == [str(number) for number in range(5, MAX_HISTORY + 5)]
    terminal.editor.feed(0x1B)
    terminal.type(b"[" + b"1" * 100_000 + b"Dz")
    assert terminal.editor.line == "z"


def test_completions_are_listed_under_the_line() -> None:
    terminal = Terminal()
    echo = terminal.type(b"c\t")
    assert echo == f"c{ERASE}\ncont      cpu       \n> c{ERASE}"
    terminal.editor.reset()
    assert terminal.type(b"\t").endswith("\n> ")


def test_columns() -> None:
    assert in_columns([]) == []
    assert in_columns(["a" * 90, "b"]) == ["a" * 90, "b" + " " * 79]
    assert in_columns(["stop", "stopcapture"]) == ["stop         stopcapture  "]
    assert columns("aé日e\u0301") == 5


def test_reset_drops_half_a_sequence() -> None:
    for half in (b"\x1b", b"\x1b[1", b"\x1bO", "é".encode()[:1]):
        terminal = Terminal()
        terminal.type(b"abc", half)
        terminal.editor.reset()
        terminal.editor.start()
        terminal.type(b"D")
        assert terminal.editor.line == "D"
        assert terminal.output.endswith(f"> D{ERASE}")


KEYS = st.one_of(
    st.sampled_from([b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b[3~", b"\x1b[H", b"\x1bOF", b"\t", b"\r", b" "]),
    st.sampled_from([bytes((code,)) for code in range(0x20)]),
    st.text(alphabet="abcistop_ ", min_size=1, max_size=5).map(str.encode),
)


@settings(max_examples=200)
@given(st.lists(KEYS, max_size=40))
def test_the_screen_always_shows_the_line(keys: list[bytes]) -> None:
    terminal = Terminal()
    terminal.editor.start()
    for key in keys:
        terminal.type(key)
        if key == b"\r" or terminal.entered:
            terminal.entered.clear()
            terminal.editor.start()
        editor = terminal.editor
        assert terminal.screen() == ("> " + editor.line, 2 + editor.cursor)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_hostile_bytes(data: bytes) -> None:
    terminal = Terminal()
    terminal.type(data)
    editor = terminal.editor
    assert 0 <= editor.cursor <= len(editor.line)
    shown = [*terminal.entered, editor.line]
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for line in shown for character in line)
    terminal.output.encode("utf-8", "surrogateescape")


@settings(max_examples=100)
@given(st.text(st.characters(min_codepoint=0xA0, exclude_categories=["Cs"]), max_size=30))
def test_text_is_kept_whatever_the_script(text: str) -> None:
    terminal = Terminal()
    terminal.type(text.encode(), b"\r")
    assert terminal.entered == [text]
