"""Memory that comes late or is kept, by bare mappings: who waits for it, and what the other side may say."""

from __future__ import annotations

import array
import mmap
import os
import random
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.migration.multifd import greeting
from pyvm.migration.pages import PLAIN, ZEROES, pack_pages
from pyvm.migration.stream import RecordReader, pack_record
from pyvm.native import PageKeeper, PageServer, PageTaker, check_missing, check_protect

PAGE = 4096
PAGES = 256
ALL = b"\xff" * (PAGES // 8)
FEW = b"\xff" + bytes(PAGES // 8 - 1)
"""Some pages, which go into a socket whose other end nobody reads."""
TOKEN = bytes(range(16))
PATIENCE = 60.0
RESUMING = 0xFFFF_FFFF


@contextmanager
def memory() -> Iterator[memoryview]:
    """Yield memory of its own that can be shared."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, PAGES * PAGE)
    with mmap.mmap(fd, PAGES * PAGE) as mapping, memoryview(mapping) as view:
        os.close(fd)
        yield view


def allowed() -> bool:
    try:
        with memory() as view:
            check_missing(view)
            check_protect(view)
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not allowed(), reason="the host has no userfaultfd for this user")


def content(page: int) -> bytes:
    """Return what a page holds; some are zeros."""
    return bytes(PAGE) if page % 3 == 2 else struct.pack("<Q", page + 1) * (PAGE // 8)


CONTENT = b"".join(content(page) for page in range(PAGES))


class Taker:
    """A destination, and the end of the connection that a test has."""

    def __init__(self, view: memoryview, missing: bytes = ALL) -> None:
        self.wire, theirs = socket.socketpair()
        self.wire.settimeout(PATIENCE)
        with theirs:
            self.taker = PageTaker(view, missing, TOKEN, theirs.fileno())

    def send(self, kind: bytes, body: bytes = b"") -> None:
        self.wire.sendall(pack_record(kind, body) + body)

    def pages(self, first: int, count: int = 1) -> None:
        data = CONTENT[first * PAGE : (first + count) * PAGE]
        self.wire.sendall(b"".join(pack_pages(PLAIN, 0, [(first, count)], data)))

    def asked(self) -> int:
        """Return the page that is asked for next."""
        kind, body = said(self.wire)
        assert kind == b"WANT"
        block, page, count = struct.unpack("<III", body)
        assert (block, count) == (0, 1)
        return int(page)

    def becomes(self, state: str) -> str:
        """Wait until it is in a state; return the error."""
        for _ in range(6000):
            found, error = self.taker.look()
            if found == state:
                return error
            threading.Event().wait(0.01)
        raise AssertionError(f"it is {found}")

    def close(self) -> None:
        self.taker.close()
        self.wire.close()


class Reading:
    """Somebody who reads a page, in a thread."""

    def __init__(self, view: memoryview, page: int) -> None:
        self.found = b""
        self._place = view[page * PAGE : (page + 1) * PAGE]
        self._pipe = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        # The kernel reads it: a thread that waits holding the interpreter's lock would stop the test.
        os.writev(self._pipe[1], [self._place])
        self.found = os.read(self._pipe[0], PAGE)

    def result(self) -> bytes:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for end in self._pipe:
            os.close(end)
        self._place.release()
        return self.found


@contextmanager
def destination(missing: bytes = ALL) -> Iterator[tuple[memoryview, Taker]]:
    with memory() as view:
        taker = Taker(view, missing)
        try:
            yield view, taker
        finally:
            taker.close()


def test_who_reads_a_page_waits_until_it_is_there() -> None:
    with destination() as (view, taker):
        readers = [Reading(view, page) for page in (7, 40)]
        for page in sorted([taker.asked(), taker.asked()]):
            taker.pages(page)
        assert [reader.result() for reader in readers] == [content(7), content(40)]
        taker.send(b"STRT")
        taker.becomes("running")  # and has noted all that came before
        assert (taker.taker.missing, taker.taker.requests) == (PAGES - 2, 2)


def test_what_was_sent_before_is_dropped_where_it_comes_again() -> None:
    with memory() as view:
        view[:] = b"old." * (PAGES * PAGE // 4)
        taker = Taker(view, FEW)
        reader = Reading(view, 1)
        assert taker.asked() == 1
        taker.pages(1)
        assert reader.result() == content(1)
        assert Reading(view, 8).result() == b"old." * (PAGE // 4)
        taker.close()
        assert bytes(view[:PAGE]) == bytes(PAGE)


def test_a_page_that_does_not_come_is_zeros_at_once() -> None:
    with destination(b"\xfe" + ALL[1:]) as (view, taker):
        assert Reading(view, 0).result() == bytes(PAGE)
        taker.wire.sendall(b"".join(pack_pages(ZEROES, 0, [(1, PAGES - 1)])))
        assert Reading(view, 5).result() == bytes(PAGE)
        taker.becomes("loading")


def test_all_that_is_to_be_said() -> None:
    with destination() as (view, taker):
        taker.taker.send(pack_record(b"LOAD"))
        assert said(taker.wire) == (b"LOAD", b"")
        taker.send(b"STRT")
        taker.becomes("running")
        taker.pages(0, PAGES)
        taker.send(b"DONE")
        assert said(taker.wire) == (b"HERE", b"")
        taker.becomes("complete")
        assert bytes(view) == CONTENT


def said(wire: socket.socket) -> tuple[bytes, bytes]:
    reader = RecordReader(wire.makefile("rb", buffering=0))
    head = reader.head()
    return head.kind, bytes(reader.body(head))


def test_before_the_guest_runs_a_broken_connection_lets_everybody_go_on() -> None:
    with destination() as (view, taker):
        reader = Reading(view, 3)
        assert taker.asked() == 3
        taker.wire.close()
        assert reader.result() == bytes(PAGE)
        assert taker.becomes("failed") == "the stream is cut off"


def test_a_broken_connection_is_taken_up(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "s")
    with destination() as (view, taker), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(5)
        taker.taker.listen([listener.fileno()])
        taker.send(b"STRT")
        taker.becomes("running")
        taker.pages(0, 8)
        reader = Reading(view, 20)
        assert taker.asked() == 20
        taker.taker.interrupt()
        taker.becomes("paused")
        for stranger in (b"", b"x" * 28, greeting(bytes(16), RESUMING), greeting(TOKEN, 0)):
            with socket.socket(socket.AF_UNIX) as wire:
                wire.connect(path)
                wire.sendall(stranger)
        taker.wire.close()
        taker.wire = socket.socket(socket.AF_UNIX)
        taker.wire.settimeout(PATIENCE)
        taker.wire.connect(path)
        taker.wire.sendall(greeting(TOKEN, RESUMING))
        assert said(taker.wire) == (b"HAVE", b"\x00" + ALL[1:])
        assert taker.asked() == 20
        taker.pages(8, PAGES - 8)
        assert reader.result() == content(20)
        taker.send(b"DONE")
        assert said(taker.wire) == (b"HERE", b"")
        assert bytes(view) == CONTENT


PAGE_RECORDS = {
    "a page twice": b"".join(pack_pages(PLAIN, 0, [(3, 1)], bytes(PAGE))),
    "a block that is not there": b"".join(pack_pages(PLAIN, 1, [(5, 1)], bytes(PAGE))),
    "behind the end": b"".join(pack_pages(PLAIN, 0, [(PAGES, 1)], bytes(PAGE))),
    "far behind it": b"".join(pack_pages(ZEROES, 0, [(5, 0xFFFF_FFFF)])),
    "in the wrong order": b"".join(pack_pages(ZEROES, 0, [(9, 1), (5, 1)])),
    "twice in one record": b"".join(pack_pages(ZEROES, 0, [(5, 2), (6, 1)])),
    "none": b"".join(pack_pages(ZEROES, 0, [(5, 0)])),
    "too few bytes": b"".join(pack_pages(PLAIN, 0, [(5, 2)], bytes(PAGE))),
    "too many": b"".join(pack_pages(ZEROES, 0, [(5, 1)], bytes(8))),
    "another encoding": b"".join(pack_pages(2, 0, [(5, 1)], zlib.compress(bytes(PAGE)))),
    "cut off": pack_record(b"PAGE", b"\0") + b"\0",
    "too large": struct.pack("<4sIII", b"PAGE", 0, 1 << 30, 0),
    "damaged": b"".join(pack_pages(PLAIN, 0, [(5, 1)], bytes(PAGE)))[:-1] + b"x",
    "the end before all is there": pack_record(b"DONE"),
    "something else": pack_record(b"SECT", b"{}") + b"{}",
}


@pytest.mark.parametrize("what", PAGE_RECORDS)
def test_nothing_is_placed_that_should_not_be(what: str) -> None:
    with destination() as (view, taker):
        taker.send(b"STRT")
        taker.pages(3)
        taker.wire.sendall(PAGE_RECORDS[what])
        assert taker.becomes("paused") != ""
        assert taker.taker.missing == PAGES - 1
        assert Reading(view, 3).result() == content(3)


MUTATED = [
    pack_record(b"STRT"),
    b"".join(pack_pages(PLAIN, 0, [(3, 2), (9, 1)], CONTENT[: 3 * PAGE])),
    b"".join(pack_pages(ZEROES, 0, [(20, 10)])),
    pack_record(b"DONE"),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(MUTATED), max_size=6), st.integers(0), st.binary(max_size=64))
def test_a_hostile_source_breaks_nothing_but_its_connection(records: list[bytes], seed: int, noise: bytes) -> None:
    """What a stream says is done or refused; memory holds what was sent, or nothing."""
    chance, stream = random.Random(seed), bytearray(b"".join(records))
    for _ in range(chance.randrange(3)):
        if stream:
            stream[chance.randrange(len(stream))] ^= 1 << chance.randrange(8)
    with destination() as (view, taker):
        with suppress(OSError):
            taker.wire.sendall(bytes(stream) + noise)
            taker.wire.shutdown(socket.SHUT_WR)
        settle(taker)
        taker.taker.close()
        rest = bytes(view)
        for page in range(PAGES):
            assert rest[page * PAGE : (page + 1) * PAGE] in (bytes(PAGE), content(0), content(1), content(2))


def settle(taker: Taker) -> None:
    """Wait until a connection that has ended is noticed."""
    for _ in range(12000):
        if taker.taker.look()[0] in ("paused", "complete", "failed"):
            return
        threading.Event().wait(0.005)
    raise AssertionError("the end of the connection is not noticed")


# ---- The source


class Server:
    """A source, and the end of the connection that a test has."""

    def __init__(self, view: memoryview, wanted: bytes, pace: int) -> None:
        view[:] = CONTENT
        self.server = PageServer(view, wanted)
        self.server.pace(pace)
        self.wire, self._theirs = socket.socketpair()
        self.wire.settimeout(PATIENCE)
        self.result: object = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self.server.serve(self._theirs.fileno())
        except (OSError, ValueError) as error:
            self.result = error

    def want(self, page: int) -> bytes:
        body = struct.pack("<III", 0, page, 1)
        return pack_record(b"WANT", body) + body

    def close(self) -> None:
        self.wire.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._theirs.close()
        self.server.close()


@contextmanager
def source(wanted: bytes = ALL, pace: int = 0) -> Iterator[Server]:
    with memory() as view:
        server = Server(view, wanted, pace)
        try:
            yield server
        finally:
            server.close()


def test_the_source_sends_all_and_says_so() -> None:
    with memory() as view, source() as server:
        taker = PageTaker(view, ALL, TOKEN, server.wire.fileno())
        taker.send(pack_record(b"LOAD"))
        os.eventfd_read(server.server.fileno())
        assert (server.server.loaded, server.server.begun) == (True, False)
        server.server.begin()
        server._thread.join(PATIENCE)
        assert server.result == (b"HERE", b"")
        taker.close()
        assert bytes(view) == CONTENT
        assert (server.server.left, server.server.zero, server.server.normal) == (0, PAGES // 3, PAGES - PAGES // 3)


def test_what_is_asked_for_comes_first() -> None:
    with source(pace=1) as server:  # hardly anything else goes
        server.wire.sendall(server.want(133))
        pages: set[int] = set()
        while 133 not in pages:
            kind, data = said(server.wire)
            assert kind == b"PAGE"
            _, _, _, count = struct.unpack_from("<BBHI", data)
            for first, length in struct.iter_unpack("<II", data[8 : 8 + 8 * count]):
                pages.update(range(first, first + length))
        assert len(pages) < PAGES
        assert server.server.requests == 1


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (struct.pack("<III", 1, 0, 1), "the other side asked for pages that there are not"),
        (struct.pack("<III", 0, PAGES, 1), "the other side asked for pages that there are not"),
        (struct.pack("<III", 0, 0, 2), "the other side asked for pages that there are not"),
        (b"", "the other side asked for pages that there are not"),
        (bytes(5000), "the other side answered something that makes no sense"),
    ],
)
def test_requests_for_what_is_not_there(request_: bytes, error: str) -> None:
    with source(FEW) as server:
        server.wire.sendall(pack_record(b"WANT", request_) + request_)
        server._thread.join(PATIENCE)
        assert str(server.result) == error


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2 * PAGES), max_size=20), st.binary(max_size=40))
def test_a_hostile_destination_ends_the_connection_and_no_more(pages: list[int], noise: bytes) -> None:
    with source(FEW) as server:
        with suppress(OSError):
            server.wire.sendall(b"".join(server.want(page) for page in pages) + noise)
            server.wire.shutdown(socket.SHUT_WR)
        server._thread.join(PATIENCE)
        assert isinstance(server.result, (ValueError, OSError, tuple))


# ---- Memory as it was


def numbers(*pages: int) -> array.array[int]:
    return array.array("q", pages)


def test_memory_is_kept_as_it_was() -> None:
    with memory() as view:
        view[:] = CONTENT
        keeper = PageKeeper(view, ALL, PAGES)
        for page in range(0, PAGES, 2):
            view[page * PAGE : page * PAGE + 4] = b"new!"
        reading, writing = os.pipe()
        os.write(writing, b"kernel")
        os.readv(reading, [view[PAGE : PAGE + 6]])
        saved = numbers(*[0] * PAGES)
        assert keeper.saved(saved) == PAGES // 2 + 1
        assert list(saved[:3]) == [0, 1, 2]
        target = bytearray(PAGES * PAGE)
        keeper.take(numbers(*range(PAGES)), target)
        assert bytes(target) == CONTENT
        assert keeper.saved(saved) == 0
        view[3 * PAGE] = 1  # nobody keeps it any more
        assert keeper.saved(saved) == 0
        keeper.close()
        assert bytes(view[PAGE : PAGE + 6]) == b"kernel"
        os.close(reading)
        os.close(writing)


def test_pages_that_nobody_needs_are_not_kept_and_many_copies_hold_up() -> None:
    with memory() as view:
        keeper = PageKeeper(view, b"\x0f" + bytes(PAGES // 8 - 1), 1)
        view[0], view[PAGE], view[2 * PAGE], view[20 * PAGE] = 1, 1, 1, 1
        saved = numbers(0, 0, 0, 0, 0)
        assert (keeper.saved(saved), list(saved[:3])) == (3, [0, 1, 2])
        for wrong in ((PAGES,), (-1,), (3, 2)):
            with pytest.raises(ValueError, match="numbers of pages in order"):
                keeper.take(numbers(*wrong), bytearray(4 * PAGE))
        with pytest.raises(ValueError, match="room for the pages"):
            keeper.take(numbers(0, 1), bytearray(PAGE))
        keeper.close()
        keeper.close()
        with pytest.raises(ValueError, match="it is closed"):
            keeper.saved(saved)


def test_memory_of_a_kind_that_cannot_be_watched(tmp_path: os.PathLike[str]) -> None:
    with open("/proc/self/exe", "rb") as file, mmap.mmap(file.fileno(), PAGE, flags=mmap.MAP_PRIVATE) as mapping:
        for check in (check_missing, check_protect):
            with pytest.raises(OSError, match="Invalid argument"):
                check(memoryview(mapping))
