"""pyvm-img convert: what is copied, what is left out, and what happens when it fails."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.node import Node
from pyvm.block.open import open_image
from pyvm.block.vectors import Buffers, total
from pyvm.tools.img.cli import main
from pyvm.tools.img.console import Progress
from pyvm.tools.img.copying import Copier, Settings
from pyvm.tools.img.errors import ImgError
from pyvm.tools.img.runs import Content, Disks, Layout, Run, aligned
from pyvm.tools.img.workers import Relay

MIB = 1 << 20


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> None:
    assert main(arguments) == 0


def content(path: str, image_format: str = "qcow2") -> bytes:
    node = open_image(path, format=image_format, read_only=True)
    try:
        return bytes(node.read(0, node.size))
    finally:
        node.close()


def some_disk(seed: int = 1, size: int = 5 * MIB + 1536) -> bytes:
    """Return data, zeros and what compresses well, in pieces of odd sizes."""
    chance = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        length = chance.choice([512, 4096, 5000, 65536, 300_000, MIB])
        kind = chance.randrange(3)
        data += bytes(length) if kind == 0 else chance.randbytes(length) if kind == 1 else b"text " * (length // 5)
    return bytes(data[:size])


@pytest.fixture
def raw() -> bytes:
    data = some_disk()
    Path("a.raw").write_bytes(data)
    return data


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-W", "-m", "3"),
        ("-m", "1"),
        ("-S", "0"),
        ("-S", "512"),
        ("-S", "1M"),
        ("-C",),
        ("-t", "writethrough", "-T", "none"),
        ("-O", "qcow2"),
        ("-O", "qcow2", "-S", "0"),
        ("-O", "qcow2", "-o", "cluster_size=512"),
        ("-O", "qcow2", "-o", "cluster_size=2M"),
        ("-O", "qcow2", "-o", "compat=0.10"),
        ("-O", "qcow2", "-o", "extended_l2=on"),
        ("-O", "qcow2", "-o", "preallocation=metadata"),
        ("-O", "qcow2", "-o", "data_file=data"),
        ("-O", "qcow2", "-c"),
        ("-O", "qcow2", "-c", "-S", "0"),
        ("-O", "qcow2", "-c", "-m", "1", "-o", "compression_type=zstd"),
        ("-O", "qcow2", "-c", "-o", "cluster_size=4k"),
        ("-O", "qcow2", "-c", "-W", "-o", "cluster_size=2M"),
    ],
    ids=" ".join,
)
def test_content_stays_the_same_there_and_back(raw: bytes, options: tuple[str, ...]) -> None:
    run("convert", "-f", "raw", *options, "a.raw", "b")
    image_format = "qcow2" if "-O" in options else "raw"
    assert content("b", image_format) == raw
    if image_format == "qcow2":
        run("check", "-q", "b")
        run("convert", "-f", "qcow2", "b", "c.raw")
        assert content("c.raw", "raw") == raw


def test_zeros_take_no_room_unless_they_are_wanted() -> None:
    Path("a.raw").write_bytes(b"x" * 65536 + bytes(8 * MIB) + b"y" * 512)
    for options, least, most in (((), 65536, MIB), (("-S", "0"), 8 * MIB, 9 * MIB)):
        run("convert", "-f", "raw", *options, "a.raw", "b.raw")
        assert least <= os.stat("b.raw").st_blocks * 512 <= most
        assert Path("b.raw").read_bytes() == Path("a.raw").read_bytes()


def test_images_are_put_one_after_the_other(raw: bytes) -> None:
    run("convert", "-f", "raw", "-O", "qcow2", "a.raw", "b")
    for options in ((), ("-O", "qcow2", "-c")):
        run("convert", "b", "a.raw", "b", *options, "c")
        assert content("c", "qcow2" if options else "raw") == raw * 3


def test_what_the_backing_file_has_is_left_out(raw: bytes) -> None:
    run("convert", "-f", "raw", "-O", "qcow2", "a.raw", "base")
    run("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "8M")
    node = open_image("top", format="qcow2")
    node.write(100_000, b"new" * 1000)
    node.write_zeroes(MIB, MIB, False)
    node.write(7 * MIB, b"end")
    node.close()
    for options in ((), ("-c",)):
        run("convert", "-O", "qcow2", "-B", "base", "-F", "qcow2", *options, "top", "copy")
        assert content("copy") == content("top")
        assert os.stat("copy").st_size < MIB
    run("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "there", "8M")
    run("convert", "-n", "-O", "qcow2", "-B", "base", "-F", "qcow2", "top", "there")
    assert content("there") == content("top")


def test_an_existing_target_is_overwritten(raw: bytes) -> None:
    Path("b.raw").write_bytes(b"old" * (3 * MIB))
    run("convert", "-n", "-f", "raw", "a.raw", "b.raw")
    assert Path("b.raw").read_bytes() == raw + bytes(9 * MIB - len(raw))
    run("create", "-q", "-f", "qcow2", "c", "9M")
    run("convert", "-f", "raw", "-n", "-O", "qcow2", "b.raw", "c")
    run("convert", "-f", "raw", "-n", "-c", "-O", "qcow2", "a.raw", "c")
    assert content("c")[: len(raw)] == raw
    run("check", "-q", "c")


def test_target_is_zero_is_believed(raw: bytes) -> None:
    Path("b.raw").write_bytes(b"x" * len(raw))
    run("convert", "-n", "--target-is-zero", "-f", "raw", "a.raw", "b.raw")
    copied = Path("b.raw").read_bytes()
    assert copied != raw
    assert all(new in (old, ord("x")) for new, old in zip(copied[::4096], raw[::4096], strict=True))


def test_target_by_options(raw: bytes) -> None:
    run("create", "-q", "-f", "qcow2", "b", "8M")
    run("convert", "-f", "raw", "-n", "--target-image-opts", "a.raw", "driver=qcow2,file.filename=b")
    assert content("b")[: len(raw)] == raw


def test_rate_limit(raw: bytes) -> None:
    began = time.monotonic()
    run("convert", "-f", "raw", "-S", "0", "-r", "20M", "a.raw", "b")
    assert time.monotonic() - began >= len(raw) / (20 * MIB) - 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.raw",), "Must specify image file name"),
        (("-n", "a.raw", "missing"), "Could not open 'missing': Could not open 'missing': No such file or directory"),
        (("-n", "-o", "size=1M", "a.raw", "b"), "-o has no effect when skipping image creation"),
        (("-c", "a.raw", "b"), "Compression not supported for this file format"),
        (("-C", "-c", "a.raw", "b"), "Cannot enable copy offloading when -c is used"),
        (("-C", "-S", "4k", "a.raw", "b"), "Cannot enable copy offloading when -S is used"),
        (("--target-is-zero", "a.raw", "b"), "--target-is-zero requires use of -n flag"),
        (("--target-image-opts", "a.raw", "b"), "--target-image-opts requires use of -n flag"),
        (("--skip-broken-bitmaps", "a.raw", "b"), "Use of --skip-broken-bitmaps requires --bitmaps"),
        (("--bitmaps", "a.raw", "b"), "Format driver 'raw' does not support bitmaps"),
        (("-B", "x", "a.raw", "b"), "Backing file not supported for file format 'raw'"),
        (("-B", "x", "-O", "qcow2", "a.raw", "b"), "Use of backing file requires explicit backing format"),
        (("-m", "17", "a.raw", "b"), "Invalid number of coroutines. Allowed number of coroutines is between 1 and 16"),
        (("-O", "foo", "a.raw", "b"), "Unknown file format 'foo'"),
        (("-o", "foo=1", "a.raw", "b"), "Invalid parameter 'foo'"),
        (("a.raw", "no/b"), "no/b: error while converting raw: Could not create 'no/b': No such file or directory"),
        (("-l", "x", "a.raw", "b"), "Failed to load snapshot: Can't find snapshot"),
    ],
)
@pytest.mark.usefixtures("raw")
def test_refusals(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "-f", "raw", *arguments]) == 1
    assert capsys.readouterr().err == f"pyvm-img: {message}\n"
    assert not Path("b").exists()


def test_a_target_that_is_too_small_is_refused(raw: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.raw").write_bytes(raw[:4096])
    assert main(["convert", "-n", "-f", "raw", "a.raw", "b.raw"]) == 1
    assert capsys.readouterr().err == "pyvm-img: output file is smaller than input file\n"
    assert Path("b.raw").read_bytes() == raw[:4096]


def test_a_source_is_not_its_own_target(raw: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "-f", "raw", "a.raw", "a.raw"]) == 1
    assert capsys.readouterr().err.startswith('pyvm-img: a.raw: error while converting raw: Failed to get "write" lock')
    assert Path("a.raw").read_bytes() == raw


def test_an_interrupt_ends_with_one_line(raw: bytes) -> None:
    # Who runs tests in the background may have them ignore the signal.
    python = ["env", "--default-signal=INT", sys.executable]
    command = [*python, "-m", "pyvm.tools.img.cli", "convert", "-p", "-r", "1M", "-f", "raw", "-O", "qcow2"]
    process = subprocess.Popen([*command, "a.raw", "b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.read(10) == "    (0.00/"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # Python ends by the signal itself where it came while a class was made; a shell sees no difference.
    assert process.returncode in (130, -signal.SIGINT)
    assert errors == "pyvm-img: interrupted\n"
    if Path("b").exists() and os.stat("b").st_size:
        assert len(raw) == 5 * MIB + 1536
        run("check", "-q", "b")


# ---- Faults of the host


class MemoryNode(Node):
    """Bytes in memory, of which some cannot be read or written."""

    driver: ClassVar[str] = "memory"

    def __init__(self, data: bytes, bad: range = range(0)) -> None:
        super().__init__("memory", read_only=False)
        self.data = bytearray(data)
        self.bad = bad

    @property
    def size(self) -> int:
        return len(self.data)

    def _check(self, offset: int, length: int) -> None:
        self.check_range(offset, length)
        if offset < self.bad.stop and offset + length > self.bad.start:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def readv(self, offset: int, buffers: Buffers) -> None:
        self._check(offset, total(buffers))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def writev(self, offset: int, buffers: Buffers) -> None:
        self._check(offset, total(buffers))
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.writev(offset, (memoryview(bytes(length)),))

    def flush(self) -> None:
        """Nothing is held back."""

    def discard(self, offset: int, length: int) -> None:
        """A hint."""


def copy(source: MemoryNode, target: MemoryNode, **layout: bool) -> None:
    def disks() -> Disks:
        return Disks([MemoryNode(source.data, source.bad)])

    settings_ = Settings(layout=Layout(**layout))  # type: ignore[arg-type]
    Copier(disks(), disks, target, settings_, Progress(False)).run()


def test_a_read_error_ends_the_copy() -> None:
    source = MemoryNode(b"a" * 5 * MIB, range(3 * MIB, 3 * MIB + 1))
    with pytest.raises(ImgError, match=r"^error while reading at byte 2097152: Input/output error$"):
        copy(source, MemoryNode(bytes(5 * MIB)))


def test_a_write_error_ends_the_copy() -> None:
    target = MemoryNode(bytes(5 * MIB), range(2 * MIB, 2 * MIB + 1))
    with pytest.raises(ImgError, match=r"^error while writing at byte 2097152: Input/output error$"):
        copy(MemoryNode(b"a" * 5 * MIB), target)


def test_salvage_copies_what_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    data = os.urandom(3 * MIB)
    target = MemoryNode(bytes(3 * MIB))
    copy(MemoryNode(data, range(MIB + 512, MIB + 1100)), target, salvage=True)
    assert target.data == data[: MIB + 512] + bytes(1024) + data[MIB + 1536 :]
    assert capsys.readouterr().err == "".join(
        f"pyvm-img: warning: error while reading offset {MIB + offset}: Input/output error\n" for offset in (512, 1024)
    )
    copy(MemoryNode(data, range(100)), target, salvage=True, quiet=True)
    assert not capsys.readouterr().err


def test_salvage_takes_for_data_what_cannot_be_looked_up(capsys: pytest.CaptureFixture[str]) -> None:
    data = os.urandom(MIB)
    Path("disk").write_bytes(data)
    run("convert", "-f", "raw", "-O", "qcow2", "disk", "a")
    failing = [
        {"event": "none", "iotype": kind, "errno": errno.EIO, "sector": sector}
        for kind, sector in (("block-status", 3), ("block-status", 900), ("read", 900), ("read", 1000))
    ]
    image = {"driver": "qcow2", "file": {"driver": "file", "filename": "a"}}
    source = "json:" + json.dumps({"driver": "blkdebug", "image": image, "inject-error": failing})
    assert main(("convert", "-O", "qcow2", source, "b")) == 1
    text = "error while reading block status at offset {}: Input/output error\n"
    assert capsys.readouterr().err == "pyvm-img: " + text.format(0)
    run("convert", "--salvage", "-O", "qcow2", source, "b")
    missing = ("error while reading offset {}: Input/output error\n").format
    first, second = text.format(3 * 512), text.format(900 * 512)
    said = first, second, first, second, missing(900 * 512), missing(1000 * 512)
    assert capsys.readouterr().err == "".join(f"pyvm-img: warning: {line}" for line in said)
    assert (
        content("b") == data[: 900 * 512] + bytes(512) + data[901 * 512 : 1000 * 512] + bytes(512) + data[1001 * 512 :]
    )


class Job:
    def __init__(self, number: int) -> None:
        self.number = number
        self.context: object = None


def relay(
    count: int,
    *,
    ahead: int = 8,
    begin: Callable[[], str] = lambda: "more",
    end: Callable[[str], None] = lambda context: None,
    prepare: Callable[[Job], None] = lambda job: None,
    finish: Callable[[Job], None] = lambda job: None,
) -> Relay[str, Job]:
    def set_context(context: str, job: Job) -> None:
        job.context = context
        prepare(job)

    return Relay(count, ahead, context="own", begin=begin, end=end, prepare=set_context, finish=finish)


@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (2, 1), (2, 8), (5, 3)])
def test_jobs_are_finished_in_order_and_one_at_a_time(count: int, ahead: int) -> None:
    finished: list[int] = []
    prepared: set[int] = set()
    most = 0
    inside = Lock()
    chance = random.Random(count)

    def prepare(job: Job) -> None:
        nonlocal most
        prepared.add(job.number)
        most = max(most, job.number - len(finished))
        # Let others come first now and then.
        if chance.random() < 0.2:
            time.sleep(0.0002)

    def finish(job: Job) -> None:
        assert inside.acquire(blocking=False)
        assert job.number in prepared
        finished.append(job.number)
        inside.release()

    relay(count, ahead=ahead, prepare=prepare, finish=finish).run(Job(number) for number in range(500))
    assert finished == list(range(500))
    assert most < 2 * max(count, ahead) + count


def test_one_job_needs_no_thread() -> None:
    begun: list[str] = []
    jobs = [Job(0)]
    relay(8, begin=lambda: begun.append("begun") or "more").run(iter(jobs))
    assert not begun
    assert jobs[0].context == "own"


def test_threads_give_up_what_they_began_with() -> None:
    begun: list[str] = []
    ended: list[str] = []
    relay(3, begin=lambda: begun.append("more") or "more", end=ended.append).run(Job(number) for number in range(50))
    assert ended == begun
    assert len(begun) <= 2


def test_what_the_first_half_raises_comes_when_it_is_its_turn() -> None:
    finished: list[int] = []

    def prepare(job: Job) -> None:
        if job.number >= 20:
            raise ZeroDivisionError(job.number)

    with pytest.raises(ZeroDivisionError, match=r"^20$"):
        relay(3, prepare=prepare, finish=lambda job: finished.append(job.number)).run(map(Job, itertools.count()))
    assert finished == list(range(20))


def test_nothing_is_done_after_an_error_of_the_second_half() -> None:
    finished: list[int] = []

    def finish(job: Job) -> None:
        finished.append(job.number)
        if job.number == 7:
            raise ImgError("no")

    with pytest.raises(ImgError, match=r"^no$"):
        relay(2, finish=finish).run(map(Job, itertools.count()))
    assert finished == list(range(8))


def test_a_thread_that_cannot_begin_ends_it() -> None:
    def begin() -> str:
        raise ImgError("no")

    with pytest.raises(ImgError, match=r"^no$"):
        relay(2, begin=begin).run(map(Job, itertools.count()))


def test_jobs_that_cannot_be_found_out_end_it() -> None:
    def jobs() -> Iterator[Job]:
        yield Job(0)
        raise ImgError("no")

    finished: list[int] = []
    with pytest.raises(ImgError, match=r"^no$"):
        relay(1, finish=lambda job: finished.append(job.number)).run(jobs())
    assert finished == [0]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from(Content)), max_size=15),
    st.sampled_from([1, 4, 16]),
    st.integers(1, 64),
)
@settings(max_examples=300)
def test_aligned_runs_lose_nothing(pieces: list[tuple[int, Content]], unit: int, most: int) -> None:
    def runs() -> Iterator[Run]:
        start = 0
        for length, content_ in pieces:
            yield Run(start, start + length, content_)
            start += length

    size = sum(length for length, _ in pieces)
    kinds = [content_ for length, content_ in pieces for _ in range(length)]
    position = 0
    for start, end, content_ in aligned(runs(), unit, size, most):
        assert start == position < end
        assert start % unit == 0
        assert end % unit == 0 or end == size
        if content_ is Content.DATA:
            # Each unit has data in it, or more than one kind of run.
            for first in range(start, end, unit):
                inside = kinds[first : min(first + unit, size)]
                assert Content.DATA in inside or unit > 1
        else:
            assert set(kinds[start:end]) == {content_}
        position = end
    assert position == size
