"""The format of a migration's stream: what is written is read again, and what is damaged is refused."""

from __future__ import annotations

import io
import zlib
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.migration import delta
from pyvm.migration.checksum import crc32
from pyvm.migration.page_sender import Packing, PageSender
from pyvm.migration.pages import (
    DELTA,
    PLAIN,
    ZEROES,
    ZLIB,
    ZSTD,
    PageReader,
    Target,
    pack,
    pack_deltas,
    pack_pages,
    runs_of,
    unpack,
)
from pyvm.migration.stream import (
    DONE,
    PAGES,
    RecordReader,
    Section,
    StreamError,
    StreamReader,
    StreamWriter,
    pack_record,
    parse_section,
    section_of,
    state_from,
)
from pyvm.state import State, StateError, flag, uint

PAGE = 4096
BLOCK_PAGES = 16


def written(*sections: Section) -> bytes:
    file = io.BytesIO()
    writer = StreamWriter(file, {"board": "pc", "blob": b"\0\xff"})
    for section in sections:
        writer.section(section)
    writer.end()
    assert writer.written == len(file.getvalue())
    return file.getvalue()


def read(data: bytes) -> tuple[dict[str, Any], list[Section]]:
    reader = StreamReader(io.BytesIO(data))
    return reader.header, [parse_section(head, body) for head, body in reader.records()]


SECTIONS = [
    Section("clock", {"now": 5}),
    Section("device/x", {"bytes": b"123", "list": [1, None, True]}, version=2, subsections={"late": {"a": 1}}),
    Section("extra", {}, optional=True),
]


def test_what_is_written_is_read_again() -> None:
    assert read(written(*SECTIONS)) == ({"board": "pc", "blob": b"\0\xff"}, SECTIONS)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_stream_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    good = written(*SECTIONS)
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StreamError):
        read(bytes(bad))


@pytest.mark.parametrize("length", range(0, len(written()), 7))
def test_a_stream_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(StreamError, match="cut off"):
        read(written()[:length])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_records_of_any_bytes_are_refused_or_read(body: bytes) -> None:
    """Whatever a peer sends with a right checksum: nothing but the documented errors comes of it."""
    reader = RecordReader(io.BytesIO(pack_record(b"SECT", body) + body + pack_record(DONE)))
    for head, found in reader.records():
        assert found == body
        try:
            parse_section(head, found)
        except StreamError:
            pass


# ---- Compatibility


class Old(State):
    level: int = uint(8)


class New(State):
    SUBSECTIONS: ClassVar = {"polarity": ("inverted",)}
    level: int = uint(8)
    inverted: bool = flag()


def test_a_newer_record_that_says_nothing_new_is_read_by_who_does_not_know_it() -> None:
    assert state_from(section_of("pin", New(level=3)), Old) == Old(level=3)
    assert state_from(section_of("pin", Old(level=3)), New) == New(level=3)


def test_a_newer_record_that_says_something_new_is_refused_by_name() -> None:
    section = section_of("pin", New(level=3, inverted=True))
    assert section.fields == {"level": 3}
    assert state_from(section, New) == New(level=3, inverted=True)
    with pytest.raises(StateError, match="pin: unknown subsection 'polarity'"):
        state_from(section, Old)


def test_fields_of_subsections_are_checked() -> None:
    with pytest.raises(StateError, match="unknown field 'level'"):
        state_from(Section("pin", {}, subsections={"polarity": {"level": 1}}), New)
    with pytest.raises(StateError, match="expected a boolean"):
        state_from(Section("pin", {}, subsections={"polarity": {"inverted": 1}}), New)


# ---- Pages

pages_of_a_batch = st.lists(st.integers(0, BLOCK_PAGES - 1), unique=True, min_size=1).map(sorted)


def received(*records: list[Any], block: bytearray | None = None) -> bytearray:
    memory = bytearray(BLOCK_PAGES * PAGE) if block is None else block
    reader = RecordReader(io.BytesIO(b"".join(bytes(part) for record in records for part in record)))
    pages = PageReader([Target(memoryview(memory), zeros=block is None)])
    for _ in records:
        head = reader.head()
        assert head.kind == PAGES
        pages.read(head, reader)
    return memory


@settings(max_examples=40, deadline=None)
@given(pages_of_a_batch, st.sampled_from([PLAIN, ZLIB, ZSTD]), st.integers(0, 255))
def test_pages_come_to_where_they_belong(numbers: list[int], encoding: int, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, 4, (len(numbers), PAGE), dtype=np.uint8)
    data = content.tobytes() if encoding == PLAIN else pack(encoding, content.tobytes(), 1)
    memory = received(pack_pages(encoding, 0, runs_of(np.array(numbers)), data))
    for page in range(BLOCK_PAGES):
        wanted = content[numbers.index(page)].tobytes() if page in numbers else bytes(PAGE)
        assert memory[page * PAGE : (page + 1) * PAGE] == wanted


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, BLOCK_PAGES - 1), st.integers(0, PAGE - 1)), pages_of_a_batch)
def test_a_byte_anywhere_in_a_page_is_sent(bytes_of: dict[int, int], numbers: list[int]) -> None:
    """Pages that hold nothing but zeros go without their content."""
    memory = bytearray(BLOCK_PAGES * PAGE)
    for page, place in bytes_of.items():
        memory[page * PAGE + place] = 1 + place % 255
    file = io.BytesIO()
    sender = PageSender(cast("Any", file), [memoryview(memory)], Packing())
    sender.send(0, np.array(numbers))
    assert sender.counts.bytes == len(file.getvalue())
    assert sender.counts.normal == len(set(numbers) & bytes_of.keys())
    assert sender.counts.zero + sender.counts.normal == len(numbers)
    block = bytearray(b"\xff" * BLOCK_PAGES * PAGE)
    reader = RecordReader(io.BytesIO(file.getvalue()))
    pages = PageReader([Target(memoryview(block), zeros=False)])
    while pages.pages < len(numbers):
        pages.read(reader.head(), reader)
    for page in range(BLOCK_PAGES):
        bounds = slice(page * PAGE, (page + 1) * PAGE)
        assert block[bounds] == (memory[bounds] if page in numbers else b"\xff" * PAGE)


@given(st.binary(max_size=200), st.integers(0, (1 << 32) - 1))
def test_checksums_are_those_of_zlib(data: bytes, start: int) -> None:
    assert crc32(data, start) == zlib.crc32(data, start)
    assert crc32(memoryview(bytearray(data))) == zlib.crc32(data)


def test_zeroes_take_no_room() -> None:
    memory = bytearray(b"\xff" * BLOCK_PAGES * PAGE)
    received(pack_pages(ZEROES, 0, [(1, 3), (9, 1)]), block=memory)
    zero = {page for page in range(BLOCK_PAGES) if not any(memory[page * PAGE : (page + 1) * PAGE])}
    assert zero == {1, 2, 3, 9}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, PAGE - 1), st.binary(min_size=1, max_size=40)), max_size=20), st.booleans())
def test_deltas_make_the_old_page_the_new_one(changes: list[tuple[int, bytes]], zero: bool) -> None:
    old = bytes(PAGE) if zero else bytes(range(256)) * 16
    new = bytearray(old)
    for offset, value in changes:
        new[offset : offset + len(value)] = value[: PAGE - offset]
    found = delta.encode(old, bytes(new))
    assert found is not None
    page = bytearray(old)
    received(pack_pages(DELTA, 0, [(0, 1)], pack_deltas([found])), block=page.ljust(BLOCK_PAGES * PAGE, b"\0"))
    delta.apply(memoryview(found), memoryview(page))
    assert page == new


def test_a_page_that_is_another_one_is_no_delta() -> None:
    random = np.random.default_rng(1).integers(0, 256, (2, PAGE), dtype=np.uint8)
    assert delta.encode(random[0].tobytes(), random[1].tobytes()) is None


def test_the_cache_knows_what_was_sent_last() -> None:
    cache = delta.PageCache(2 * PAGE)
    first, second = memoryview(bytes(PAGE)), memoryview(b"\1" + bytes(PAGE - 1))
    assert cache.delta(0, 7, first) is None
    assert cache.delta(0, 7, second) == b"\0\0\1\0\1"
    cache.keep(0, 8, bytes(first))
    cache.keep(0, 9, bytes(first))  # makes room of the oldest
    assert cache.delta(0, 7, first) is None
    assert (cache.pages, cache.misses, cache.bytes) == (1, 2, 5)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (pack_pages(PLAIN, 1, [(0, 1)], bytes(PAGE)), "block 1"),
        (pack_pages(PLAIN, 0, [(BLOCK_PAGES - 1, 2)], bytes(2 * PAGE)), "not in their block"),
        (pack_pages(PLAIN, 0, [(0, 0)]), "not in their block"),
        (pack_pages(PLAIN, 0, [(0, 1)], bytes(PAGE - 1)), "as many bytes"),
        (pack_pages(9, 0, [(0, 1)], b"x"), "encoding 9"),
        (pack_pages(ZLIB, 0, [(0, 1)], b"xyz"), "cannot be unpacked"),
        (pack_pages(ZLIB, 0, [(0, 1)], pack(ZLIB, bytes(PAGE + 1)[:100], 1)), "another size"),
        (pack_pages(ZSTD, 0, [(0, 1)], pack(ZSTD, bytes(2 * PAGE), 1)), "another size"),
        (pack_pages(ZSTD, 0, [(0, 1)], b"x" * 20), "unpacked"),
        (pack_pages(DELTA, 0, [(0, 2)], pack_deltas([b""])), "cut off"),
        (pack_pages(DELTA, 0, [(0, 1)], pack_deltas([b"", b""])), "longer"),
        (pack_pages(DELTA, 0, [(0, 1)], pack_deltas([b"\xff\x0f\x02\x00ab"])), "beyond its page"),
        ([pack_record(PAGES, b"abc"), b"abc"], "cut off"),
        ([pack_record(PAGES, b"\0" * 4 + b"\xff" * 4), b"\0" * 4 + b"\xff" * 4], "cut off"),
    ],
)
def test_pages_that_make_no_sense_are_refused(record: list[Any], error: str) -> None:
    with pytest.raises(StreamError, match=error):
        received(record)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5), st.integers(0, 1), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4),
       st.binary(max_size=300))  # fmt: skip
def test_records_of_pages_with_any_content_are_refused_or_read(
    encoding: int, block: int, runs: list[tuple[int, int]], data: bytes
) -> None:
    try:
        received(pack_pages(encoding, block, runs, data))
    except StreamError:
        pass


def test_a_bomb_is_not_unpacked() -> None:
    with pytest.raises(StreamError, match="another size"):
        unpack(ZSTD, pack(ZSTD, bytes(1 << 24), 1), PAGE)
    with pytest.raises(StreamError, match="another size"):
        unpack(ZLIB, pack(ZLIB, bytes(1 << 24), 1), PAGE)
