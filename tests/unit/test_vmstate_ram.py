"""The stream of a machine in an image: RAM that is read straight to its place, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.errors import ConfigError
from pyvm.migration import ram_records
from pyvm.migration.page_scan import PAGE
from pyvm.migration.ram_records import RAM, read_ram, write_ram
from pyvm.migration.stream import DONE, StreamError, StreamWriter
from pyvm.migration.vmstate import VmstateReader, VmstateStream, VmstateWriter

COUNT = 48


def image(memory: bytes) -> bytearray:
    """Return a stream with one block of RAM as an image keeps it."""
    kept = bytearray()

    def write(offset: int, buffers: Sequence[memoryview]) -> None:
        assert offset == len(kept)
        kept.extend(b"".join(buffers))

    file = VmstateWriter(write)
    writer = StreamWriter(file, {"some": "machine"})
    write_ram(writer, {"ram": memoryview(memory)}, {})
    writer.end()
    file.flush()
    return kept


def reader_of(kept: bytearray) -> VmstateReader:
    def read(offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = kept[offset : offset + len(buffer)]
            offset += len(buffer)

    return VmstateReader(read, len(kept))


def memory_in(kept: bytearray, size: int) -> bytes:
    stream = VmstateStream(reader_of(kept))
    memory = bytearray(size)
    while (head := stream.head()).kind != DONE:
        assert head.kind == RAM
        read_ram(stream, head, {"ram": memoryview(memory)})
    stream.body(head)
    return bytes(memory)


def memory_of(pages: dict[int, int]) -> bytes:
    memory = bytearray(COUNT * PAGE)
    for page, value in pages.items():
        memory[page * PAGE : (page + 1) * PAGE] = bytes([value]) * PAGE
    return bytes(memory)


PAGES = st.dictionaries(st.integers(0, COUNT - 1), st.integers(0, 255), max_size=COUNT).map(memory_of)


@settings(max_examples=15, deadline=None)
@given(PAGES, st.sampled_from([PAGE, 3 * PAGE, 1 << 20]))
def test_what_is_written_is_read(memory: bytes, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ram_records, "_BATCH", batch)
        assert memory_in(image(memory), len(memory)) == memory


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_byte_that_is_wrong_is_found(data: st.DataObject) -> None:
    memory = memory_of({3: 1, 4: 2, 40: 3, 47: 4})
    kept = image(memory)
    end = len(kept.rstrip(b"\0"))
    place = data.draw(st.integers(0, end - 1))
    if data.draw(st.booleans()):
        kept[place] ^= data.draw(st.integers(1, 255))
    else:
        del kept[place:]
    with pytest.raises((ConfigError, AssertionError)):
        memory_in(kept, len(memory))


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 300_000), max_size=3)), max_size=6))
@settings(max_examples=20, deadline=None)
def test_large_and_small_reads_together(steps: list[tuple[bool, list[int]]]) -> None:
    kept = bytearray(bytes(range(251)) * 4000)
    reader, place = reader_of(kept), 0
    for at_once, sizes in steps:
        buffers = [bytearray(size) for size in sizes]
        if at_once:
            if place + sum(sizes) > len(kept):
                with pytest.raises(StreamError, match="cut off"):
                    reader.fill_each([memoryview(it) for it in buffers])
                return
            reader.fill_each([memoryview(it) for it in buffers])
            assert b"".join(buffers) == kept[place : place + sum(sizes)]
            place += sum(sizes)
        else:
            for buffer in buffers:
                count = reader.readinto(memoryview(buffer))
                assert buffer[:count] == kept[place : place + count]
                assert count or not buffer or place == len(kept)
                place += count
