"""Bytes of a host file as a list of buffers: copied by the host unless somebody looks at them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.spans import FileSpan, HostPipe
from pyvm.block.vectors import Cursor, behind, copy_in, is_zero, pwritev, total
from pyvm.native import splice

DATA = os.urandom(100_000)


class Files:
    def __init__(self, folder: Path) -> None:
        self.source, self.target = (os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in "st")
        os.pwrite(self.source, DATA, 0)
        self.pipe = HostPipe()

    def span(self, start: int = 0, length: int = len(DATA)) -> FileSpan:
        return FileSpan(self.pipe, self.source, start, length)

    def write(self, span: FileSpan, offset: int) -> bytes:
        """Write all of a span; return what is in the target there."""
        rest, at = span, offset
        while rest:
            at += pwritev(self.target, rest, at)
            rest = behind(span, at - offset)  # type: ignore[assignment]
        return os.pread(self.target, span.nbytes, offset)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    made = Files(tmp_path_factory.mktemp("spans"))
    yield made
    made.pipe.close()
    os.close(made.source)
    os.close(made.target)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_part_is_what_the_file_has(files: Files, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(DATA)))
    length = data.draw(st.integers(0, 2 * len(DATA)))
    span = files.span(start, length)
    there = DATA[start : start + length].ljust(length, b"\0")
    assert (total(span), len(span), bool(span)) == (length, int(length > 0), length > 0)
    if data.draw(st.booleans()):
        assert b"".join(span) == there
    cut = data.draw(st.integers(0, length))
    cursor = Cursor(span)
    assert b"".join(cursor.take(cut)) + b"".join(cursor.take(length - cut)) == there
    assert files.write(span, data.draw(st.integers(0, 5000))) == there


def test_it_is_a_list_of_one_buffer(files: Files) -> None:
    span = files.span(7, 16)
    assert span[0] == span[-1] == DATA[7:23]
    assert list(span[:1024]) == [DATA[7:23]]
    assert not span[1:]
    with pytest.raises(IndexError):
        span[1]
    room = memoryview(bytearray(16))
    copy_in([room], span[0])
    assert room == DATA[7:23]
    assert not is_zero(span)
    assert is_zero(files.span(len(DATA), 4096))


def test_nothing_is_left_in_the_pipe_after_an_error(files: Files) -> None:
    read_only = os.open(f"/proc/self/fd/{files.target}", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.span(0, 5000).pwritev(read_only, 0)
    os.close(read_only)
    assert files.write(files.span(5000, 100), 0) == DATA[5000:5100]


@pytest.mark.parametrize("wrong", [(-1, 0, 1), (0, -1, 1), (0, 0, -1), (1 << 62, 0, 1 << 62), (0, (1 << 63) - 1, 1)])
def test_no_range_is_out_of_what_a_file_can_have(files: Files, wrong: tuple[int, int, int]) -> None:
    start, offset, length = wrong
    with pytest.raises(ValueError, match="out of range"):
        splice(-1, -1, files.source, start, files.target, offset, length)


def test_a_copy_ends_with_its_source(files: Files) -> None:
    assert files.pipe.copy(files.source, 60_000, files.target, 0, len(DATA)) == 40_000
    assert files.pipe.copy(files.source, len(DATA), files.target, 0, 1) == 0


def test_a_large_copy_takes_several_turns(files: Files) -> None:
    os.ftruncate(files.source, 3 << 20)
    assert files.write(files.span(0, 3 << 20), 1) == DATA.ljust(3 << 20, b"\0")
    os.ftruncate(files.source, len(DATA))
