"""The log of written pages: it names every page that differs, whoever wrote it and however."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine_rig import DONE_HLT, PAGE_TABLES, RAM, Rig, code

PAGE = 4096
PLACES = 0x100000
"""From here on there is room for stores."""

STORES = {
    "byte": "88 03",
    "word": "66 89 03",
    "double word": "89 03",
    "quad word": "48 89 03",
    "exchange": "48 87 03",
    "locked add": "f0 48 01 03",
    "exchange and add": "f0 48 0f c1 03",
    "compare and exchange": "48 31 c0 f0 48 0f b1 0b",
    "compare and exchange 16": "48 31 c0 48 31 d2 f0 48 0f c7 0b",
    "SSE": "0f 11 03",
    "aligned SSE": "0f 29 03",
    "x87": "d9 e8 dd 1b",
    "FXSAVE": "0f ae 03",
    "string": "48 89 df b9 00 12 00 00 48 b8 0102030405060708 f3 aa",
    "push": "48 89 e5 48 89 dc 50 48 89 ec",
    "bit": "48 0f ba 2b 05",
}


def taken(rig: Rig) -> set[int]:
    log = bytearray(RAM // PAGE // 8)
    count = rig.engine.dirty_take(log)
    pages = {page for page in range(RAM // PAGE) if log[page // 8] >> page % 8 & 1}
    assert count == len(pages)
    return pages


def changed(before: bytes, after: bytes) -> set[int]:
    return {
        page
        for page in range(RAM // PAGE)
        if before[page * PAGE : (page + 1) * PAGE] != after[page * PAGE : (page + 1) * PAGE]
    }


def content(rig: Rig) -> bytes:
    return bytes(rig.memory.mapping[:])


steps = st.tuples(st.sampled_from(sorted(STORES)), st.integers(0, 40), st.sampled_from([0, 16, 512, PAGE - 16]))


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(steps, max_size=8), min_size=1, max_size=4))
def test_all_pages_that_differ_are_in_the_log(shared: Rig, runs: list[list[tuple[str, int, int]]]) -> None:
    shared.long(code(DONE_HLT))
    shared.engine.dirty_start(shared.memory.mapping)
    for number, run in enumerate(runs):
        before = content(shared)
        program = b"".join(
            code("48 bb", (PLACES + page * PAGE + offset).to_bytes(8, "little"), "48 b9", bytes([number + 1] * 8))
            + code("48 b8", bytes([17 * number + 3] * 8), STORES[name])
            for name, page, offset in run
        )
        shared.long(code(program, DONE_HLT))
        shared.run_until_port()
        log = taken(shared)
        assert changed(before, content(shared)) <= log
        assert len(log) < 150  # not simply everything


def test_stores_across_pages_are_in_the_log_twice() -> None:
    with Rig() as rig:
        rig.long(code("48 89 03", DONE_HLT), rbx=PLACES + PAGE - 3, rax=0x1122334455667788)
        rig.engine.dirty_start(rig.memory.mapping)
        rig.run_until_port()
        assert {PLACES // PAGE, PLACES // PAGE + 1} <= taken(rig)


def test_reads_are_not_in_the_log_but_what_they_do_to_page_tables() -> None:
    with Rig() as rig:
        rig.long(code("48 8b 03", DONE_HLT), rbx=PLACES)
        rig.engine.dirty_start(rig.memory.mapping)
        rig.run_until_port()
        log = taken(rig)
        assert PLACES // PAGE not in log
        assert PAGE_TABLES // PAGE + 3 in log


def test_each_log_begins_anew_although_the_tlb_is_warm() -> None:
    """The same loop writes the same page again and again; each log has it, as long as the loop runs."""
    with Rig() as rig:
        rig.long(code("48 ff 03", "eb fb"), rbx=PLACES)
        rig.engine.dirty_start(rig.memory.mapping)
        for _ in range(3):
            run = rig.start()
            before = rig.memory.read_u64(PLACES)
            while rig.memory.read_u64(PLACES) < before + 1000:
                assert not run.ended(0.001)
            run.stop()
            assert PLACES // PAGE in taken(rig)
            assert taken(rig) == set()


def test_writes_of_devices_are_in_the_log() -> None:
    with Rig() as rig:
        rig.long(code(DONE_HLT))
        rig.engine.dirty_start(rig.memory.mapping)
        rig.memory.write(PLACES + PAGE - 1, b"12")
        rig.memory.write_u32(PLACES + 5 * PAGE, 1)
        assert taken(rig) == {PLACES // PAGE, PLACES // PAGE + 1, PLACES // PAGE + 5}
        rig.engine.dirty_stop()
        rig.memory.write(PLACES, b"1")
        rig.engine.dirty_start(rig.memory.mapping)
        assert taken(rig) == set()


def test_stores_to_pages_of_code_are_in_the_log() -> None:
    """mov [rip+place behind the code], rax: the page stays one whose stores are slow."""
    with Rig() as rig:
        rig.long(code("48 89 05 10000000", DONE_HLT), rax=1)
        rig.engine.dirty_start(rig.memory.mapping)
        rig.run_until_port()
        assert 7 in taken(rig)


def test_the_log_can_only_be_had_while_no_guest_code_runs() -> None:
    with Rig() as rig:
        rig.long(code("e6 80", "eb fe"))
        rig.engine.dirty_start(rig.memory.mapping)
        with pytest.raises(ValueError, match="a bit for each page"):
            rig.engine.dirty_take(bytearray(1))
        run = rig.start()
        while not rig.devices.log:
            assert not run.ended(0.001)
        with pytest.raises(RuntimeError, match="the engine is running"):
            rig.engine.dirty_take(bytearray(RAM // PAGE // 8))
        run.stop()
