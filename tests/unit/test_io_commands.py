"""Commands of ``pyvm-io`` on nodes in RAM: what they print, what they do, and what they refuse."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.accounting import Operation
from pyvm.block.backend import BlockBackend
from pyvm.block.context import IoContext
from pyvm.block.drivers.null import NullNode
from pyvm.block.node import Extent, Node, Preallocation
from pyvm.sizes import read_number
from pyvm.tools.io import numbers
from pyvm.tools.io.numbers import CommandError, show_size, show_time, take_size
from pyvm.tools.io.table import make_table, run


class Ram(Node):
    """A disk in RAM that says what was asked of it, and fails on demand."""

    driver = "ram"

    def __init__(self, size: int = 1 << 20, *, read_only: bool = False) -> None:
        super().__init__("ram", read_only=read_only)
        self.data = bytearray(size)
        self.calls: list[tuple[object, ...]] = []
        self.error = 0
        self.allocated: list[tuple[int, bool]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def note(self, *call: object) -> None:
        self.calls.append(call)
        if self.error:
            raise OSError(self.error, "")

    def readv(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.note("read", offset, *map(len, buffers))
        for it in buffers:
            it[:] = self.data[offset : offset + len(it)]
            offset += len(it)

    def writev(self, offset: int, buffers: Sequence[memoryview]) -> None:
        self.note("write", offset, *map(len, buffers))
        for it in buffers:
            self.data[offset : offset + len(it)] = it
            offset += len(it)

    def flush(self) -> None:
        self.note("flush")

    def discard(self, offset: int, length: int) -> None:
        self.note("discard", offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.note("zero", offset, length, unmap)

    def truncate(self, size: int, *, preallocation: Preallocation = "off", exact: bool = True) -> None:
        self.note("truncate", size, preallocation, exact)

    def write_compressed(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.note("compressed", offset, len(data))

    @property
    def cluster_size(self) -> int | None:
        return 65536

    def block_status(self, offset: int, length: int) -> Extent:
        self.note("status", offset, length)
        for end, allocated in self.allocated:
            if offset < end:
                return Extent(min(length, end - offset), allocated, False, allocated)
        return Extent(length, True, False, True)


def on(target: Node | BlockBackend, line: str) -> tuple[bool, str]:
    out: list[str] = []
    good = run(target, line, out.append)
    return good, "".join(out)


def calls(line: str) -> list[tuple[object, ...]]:
    """Return what a command that must succeed asks of a node."""
    node = Ram()
    good, text = on(node, line)
    assert good, text
    return node.calls


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("read 512 1k", [("read", 512, 1024)]),
        ("readv 0 1 2 3", [("read", 0, 1, 2, 3)]),
        ("write 0x200 .001M", None),
        ("write 1.5k 512", [("write", 1536, 512)]),
        ("write -f 0 1", [("write", 0, 1), ("flush",)]),
        ("writev -f 0 1 2", [("write", 0, 1, 2), ("flush",)]),
        ("write -z 0 64k", [("zero", 0, 65536, False)]),
        ("write -z -u -f 0 64k", [("zero", 0, 65536, True), ("flush",)]),
        ("write -z -n 0 1M", [("zero", 0, 1 << 20, False)]),
        ("write -c 64k 128k", [("compressed", 65536, 65536), ("compressed", 131072, 65536)]),
        ("aio_read 0 1 2", [("read", 0, 1, 2)]),
        ("aio_write -f 0 1 2", [("write", 0, 1, 2), ("flush",)]),
        ("aio_write -z -u 0 512", [("zero", 0, 512, True)]),
        ("discard 0 512", [("discard", 0, 512)]),
        ("flush", [("flush",)]),
        ("truncate 2M", [("truncate", 2 << 20, "off", False)]),
        ("truncate -m full 2M", [("truncate", 2 << 20, "full", False)]),
        ("length", []),
        ("help", []),
        ("", []),
        ("   ", []),
    ],
)
def test_requests(line: str, expected: list[tuple[object, ...]] | None) -> None:
    if expected is None:
        assert not on(Ram(), line)[0]
    else:
        assert calls(line) == expected


def test_write_through() -> None:
    node = Ram()
    assert on(BlockBackend(node, write_cache=False), "write 0 1")[0]
    assert on(BlockBackend(node, write_cache=False), "aio_write -z 0 1")[0]
    assert node.calls == [("write", 0, 1), ("flush",), ("zero", 0, 1, False), ("flush",)]


def test_data_arrives() -> None:
    node = Ram()
    assert on(node, "write -P 0x5a 100 1000")[0]
    assert node.data[99:1101] == b"\0" + b"Z" * 1000 + b"\0"
    assert on(node, "read -P 90 100 1000")[0]
    good, text = on(node, "read -q -v 98 4")
    assert (good, text) == (True, "")
    good, text = on(node, "read -v 98 4")
    assert text.startswith("00000062:  00 00 5a 5a  ..ZZ\nread 4/4 bytes at offset 98\n4 bytes, 1 ops; 00.00 sec (")


def test_a_file_of_data_is_repeated(tmp_path: object) -> None:
    node = Ram()
    (tmp_path / "data").write_bytes(b"abc")  # type: ignore[operator]
    assert on(node, f"write -s {tmp_path}/data 0 8")[0]
    assert node.data[:9] == b"abcabcab\0"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("read 0 512", "read failed: Input/output error\n"),
        ("readv 0 512", "readv failed: Input/output error\n"),
        ("write 0 512", "write failed: Input/output error\n"),
        ("write -z 0 512", "write failed: Input/output error\n"),
        ("writev 0 512", "writev failed: Input/output error\n"),
        ("discard 0 512", "discard failed: Input/output error\n"),
        ("flush", "pyvm-io: Input/output error\n"),
        ("truncate 1", "pyvm-io: Input/output error\n"),
        ("alloc 0", "is_allocated failed: Input/output error\n"),
        ("map", "pyvm-io: Failed to get allocation status: Input/output error\n"),
    ],
)
def test_failures(line: str, text: str) -> None:
    node = Ram()
    node.error = errno.EIO
    assert on(node, line) == (False, text)


@pytest.mark.parametrize(
    "line", ["write 0 1", "writev 0 1", "aio_write 0 1", "discard 0 1", "truncate 0", "write -z 0 1"]
)
def test_read_only(line: str) -> None:
    node = Ram(read_only=True)
    assert on(node, line) == (False, "pyvm-io: Block node is read-only\n")
    assert node.calls == []


def test_no_medium() -> None:
    assert on(BlockBackend(), "read 0 512") == (False, "no file open, try 'help open'\n")


def test_maps() -> None:
    node = Ram()
    node.allocated = [(4096, False), (8192, True), (65536, True), (1 << 20, False)]
    assert on(node, "map")[1] == (
        "4 KiB (0x1000) bytes not allocated at offset 0 bytes (0x0)\n"
        "60 KiB (0xf000) bytes     allocated at offset 4 KiB (0x1000)\n"
        "960 KiB (0xf0000) bytes not allocated at offset 64 KiB (0x10000)\n"
    )
    assert on(node, "alloc 2k 70k")[1] == "61440/71680 bytes allocated at offset 2 KiB\n"


def test_commands_of_the_monitor_are_no_commands_of_a_program() -> None:
    for name in ("open x", "close", "quit"):
        assert on(Ram(), name) == (False, f'command "{name.split()[0]}" not found\n')
    assert set(make_table(tool=False)) < set(make_table(tool=True))
    good, text = on(Ram(), "reopen -r")
    assert (good, text) == (
        False,
        "pyvm-io: an image that is temporary, or a machine does not know, cannot be reopened\n",
    )


def test_breakpoints_are_refused() -> None:
    for line in ("break read_aio A", "resume A", "wait_break A", "remove_break A"):
        good, text = on(Ram(), line)
        assert not good
        assert text.endswith(": Operation not supported\n")


def test_every_command_has_help() -> None:
    for name, command in make_table(tool=True).items():
        good, text = on(Ram(), f"help {name}")
        if name in make_table(tool=False):
            assert good
            assert text.startswith(f"{name} ")
        assert command.summary


# ---- Requests that nobody waits for


def test_asynchronous_requests_are_accounted_for() -> None:
    backend = BlockBackend(Ram())
    for line in ("aio_read 0 512", "aio_write 0 1k", "aio_read 0 2M", "aio_read -i 0 1", "aio_write -i 0 1"):
        assert on(backend, line)[0]
    stats = backend.stats.report()
    assert (stats["rd_bytes"], stats["wr_bytes"]) == (512, 1024)
    assert (stats["failed_rd_operations"], stats["invalid_rd_operations"], stats["invalid_wr_operations"]) == (1, 1, 1)
    assert backend.in_flight == 0
    assert Operation.READ in list(Operation)


def test_asynchronous_failures() -> None:
    node = Ram()
    node.error = errno.ENOSPC
    assert on(node, "aio_write 0 512") == (True, "aio_write failed: No space left on device\n")
    assert on(node, "aio_read 0 512") == (True, "readv failed: No space left on device\n")
    assert on(Ram(), "aio_read -P 1 0 512")[1].startswith(
        "Pattern verification failed at offset 0, 512 bytes\nread 512/512"
    )


def test_in_a_thread_of_its_own() -> None:
    lock = threading.RLock()
    context = IoContext(lock)
    node = Ram()
    backend = BlockBackend(node, context)
    out: list[str] = []
    with lock:
        for line in ("aio_write -q -P 1 0 512", "aio_read -P 1 0 512", "read -q -P 1 0 512", "sleep 1", "aio_flush"):
            assert run(backend, line, out.append, lock)
        context.close()
    assert out[0] == "read 512/512 bytes at offset 0\n"
    assert backend.in_flight == 0


# ---- Numbers


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("0x10", 16),
        ("1k", 1024),
        ("1.5K", 1536),
        ("2M", 2 << 20),
        ("1g", 1 << 30),
        ("7E", 7 << 60),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert take_size(text) == size


@pytest.mark.parametrize("text", ["", "a", "-1", "1Z", ".5k", "1.5", "1 k", "0x", "8E", "99999999999999999999"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(CommandError, match="Parsing error"):
        take_size(text)


def test_integers() -> None:
    assert [read_number(it) for it in ("10", "010", "0x10", "-5", "+5", " 7")] == [10, 8, 16, -5, 5, 7]
    assert [read_number(it) for it in ("", "08", "1x", "0b1", "1_0", "7 ")] == [None] * 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"), (1, "1 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.500 KiB"), (1 << 20, "1 MiB"),
        (2.5 * (1 << 60), "2.500 EiB"), (4.160735, "4.160735 bytes"), (0.0001, "0 bytes"),
    ],
)  # fmt: skip
def test_shown_sizes(value: float, text: str) -> None:
    assert show_size(value) == text


def test_shown_times() -> None:
    assert show_time(0.004) == "00.00 sec"
    assert show_time(12.346) == "12.35 sec"
    assert show_time(59.999) == "01:00.00"
    assert show_time(75.5) == "01:15.50"
    assert show_time(3600 * 4 + 60 * 22 + 31.07) == "4:22:31.07"
    assert show_time(1.25, full=True) == "0:00:01.25"


NAMES = sorted(set(make_table(tool=False)) - {"sleep", "sigraise", "abort"})
WORDS = st.sampled_from(
    [
        *"-C -P -q -v -s -l -z -u -n -f -b -c -m -i 0 1 512 4k 64k 1M 2M 0xcd -1 a 3G 9E full off -- -x . é".split(),
        *NAMES,
    ]
)


@settings(max_examples=200)
@given(words=st.lists(WORDS, max_size=7), name=st.sampled_from(NAMES))
def test_any_line_ends_in_an_answer(words: list[str], name: str) -> None:
    good, text = on(NullNode(size=1 << 20, read_zeroes=True), " ".join([name, *words]))
    assert good or text


def test_largest_request_is_whole_sectors() -> None:
    assert numbers.MAX_REQUEST == (1 << 31) - 512
