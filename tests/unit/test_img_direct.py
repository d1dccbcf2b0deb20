"""pyvm-img convert from file to file: what native code copies, and what the target's tables say of it then."""

from __future__ import annotations

import itertools
import os
import random
import resource
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.block.node import Node
from pyvm.block.open import open_image
from pyvm.native import copy_pieces
from pyvm.tools.img import direct
from pyvm.tools.img.cli import main
from pyvm.tools.img.direct import Batch, Direct, find_way
from pyvm.tools.img.runs import Content, Disks, Layout, Run

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> None:
    assert main(arguments) == 0


def content(path: str, image_format: str) -> bytes:
    node = open_image(path, format=image_format, read_only=True)
    try:
        return bytes(node.read(0, node.size))
    finally:
        node.close()


def sparse(path: str, size: int, pieces: list[tuple[int, bytes]]) -> bytes:
    """Make a sparse file; return what is in it."""
    data = bytearray(size)
    with Path(path).open("wb") as file:
        file.truncate(size)
        for start, piece in pieces:
            file.seek(start)
            file.write(piece)
            data[start : start + len(piece)] = piece
    return bytes(data)


# ---- In native code


@contextmanager
def files(data: bytes) -> Iterator[tuple[int, int]]:
    """Give the descriptors of a file with `data`, and of an empty one."""
    Path("source").write_bytes(data)
    source, target = os.open("source", os.O_RDONLY), os.open("target", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        yield source, target
    finally:
        os.close(source)
        os.close(target)


UNITS = st.lists(st.sampled_from((b"\0" * 64, b"a" * 64, b"\0" * 63 + b"b")), min_size=1, max_size=24)


@settings(max_examples=40)
@given(UNITS, st.lists(st.integers(1, 24 * 64), max_size=8, unique=True), st.integers(1, 4), st.integers(1, 26))
def test_units_of_zeros_are_left_out(units: list[bytes], cuts: list[int], buffer: int, room: int) -> None:
    disk = b"".join(units)
    # Every second piece is in the source; it has the others as holes.
    edges = [0, *sorted(cut for cut in cuts if cut < len(disk)), len(disk)]
    there = list(itertools.pairwise(edges))[::2]
    expected = bytearray(len(disk))
    for start, end in there:
        expected[start:end] = disk[start:end]
    with files(b"head" + disk) as (source, target):
        words = array("Q", [word for start, end in there for word in (start, end, source, 4 + start)])
        assert copy_pieces(words, 0, target, 7, 0, 64, bytearray(64 * buffer)) == (None, [], None)
        assert os.pread(target, 9999, 7).ljust(len(disk), b"\0") == expected
        os.ftruncate(target, 0)
        position: int | None = 0
        packed: list[tuple[int, int]] = []
        while position is not None:
            place = 128 + sum(length for _, length in packed)
            position, runs, failure = copy_pieces(words, position, target, place, 64 * room, 64, bytearray(64 * buffer))
            assert failure is None
            assert sum(length for _, length in runs) <= 64 * room
            packed += runs
        found = bytearray(len(disk))
        place = 128
        for start, length in packed:
            assert start % 64 == length % 64 == 0
            found[start : start + length] = os.pread(target, length, place)
            place += length
        assert found == expected
        wanted = [it for it in range(0, len(disk), 64) if any(expected[it : it + 64])]
        assert [it for start, length in packed for it in range(start, start + length, 64)] == wanted


def test_what_is_behind_the_end_of_a_file_is_zeros() -> None:
    with files(b"a" * 100) as (source, target):
        words = array("Q", (0, 256, source, 0))
        assert copy_pieces(words, 0, target, 0, 1024, 64, bytearray(128)) == (None, [(0, 128)], None)
        assert os.pread(target, 999, 0) == b"a" * 100 + bytes(28)


def test_failures_say_where_and_what() -> None:
    with files(b"a" * 256) as (source, target):
        words = array("Q", (0, 128, source, 0, 128, 256, 1 << 20, 0))
        assert copy_pieces(words, 0, target, 0, 0, 64, bytearray(128)) == (128, [], (False, 9))
        assert os.pread(target, 999, 0) == b"a" * 128
        words = array("Q", (64, 256, source, 64))
        assert copy_pieces(words, 0, source, 0, 0, 64, bytearray(128)) == (64, [], (True, 9))


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ((0, 64, 0), (0, 0, 64)),
        ((64, 64, 0, 0), (0, 0, 64)),
        ((64, 128, 0, 0, 127, 192, 0, 0), (0, 0, 64)),
        ((0, 1 << 63, 0, 0), (0, 0, 64)),
        ((0, 64, 0, 1 << 63), (0, 0, 64)),
        ((0, 64, 1 << 31, 0), (0, 0, 64)),
        ((0, 64, 0, 0), (1 << 63, 0, 64)),
        ((0, 64, 0, 0), (0, 65, 64)),
        ((0, 64, 0, 0), (0, 1 << 63, 64)),
        ((0, 64, 0, 0), (0, 0, 0)),
        ((0, 64, 0, 0), (0, 0, 96)),
        ((0, 64, 0, 0), (0, 0, 256)),
    ],
)
def test_numbers_that_cannot_be_are_refused(words: tuple[int, ...], numbers: tuple[int, int, int]) -> None:
    place, room, unit = numbers
    with pytest.raises(ValueError, match="out of"):
        copy_pieces(array("Q", words), 0, 1, place, room, unit, bytearray(128))


# ---- In batches


def test_no_two_batches_share_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_BATCH", 256 * KIB)
    sparse("a.raw", MIB, [])
    file = open_image("a.raw", format="raw", read_only=True).file
    run("create", "-q", "-f", "qcow2", "b", "1M")
    target = open_image("b", format="qcow2")
    assert file is not None
    assert target.file is not None
    source = Disks([file])
    found = find_way(source, target, 64 * KIB)
    assert isinstance(found, Direct)
    chance = random.Random(1)
    edges = sorted(chance.sample(range(1, 8 * MIB // 512), 100))
    runs = [
        Run(start * 512, end * 512, chance.choice((Content.DATA, Content.ZERO)), file, start)
        for start, end in itertools.pairwise(edges)
    ]
    batches = list(found.batches(iter(runs)))
    assert found.rest is None
    last = -1
    for batch in batches:
        assert batch.start // (64 * KIB) > last
        last = (batch.pieces[-1][1] - 1) // (64 * KIB)
        assert batch.room >= sum(end - start for start, end, _, _ in batch.pieces)
        assert batch.room <= 256 * KIB + 64 * KIB
    assert sum(batch.length for batch in batches) == sum(it.end - it.start for it in runs if it.content is Content.DATA)
    target.close()
    source.close()


# ---- As a whole


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Return a list that gets all batches, of less data than usual."""
    batches: list[Batch] = []
    settle = Direct.settle

    def noting(self: Direct, batch: Batch) -> None:
        batches.append(batch)
        settle(self, batch)

    monkeypatch.setattr(Direct, "settle", noting)
    monkeypatch.setattr(direct, "_BATCH", 256 * KIB)
    monkeypatch.setattr(direct, "_BUFFER", 128 * KIB)
    return batches


def scattered(seed: int, size: int = 4 * MIB + 512) -> bytes:
    chance = random.Random(seed)
    pieces = []
    for _ in range(12):
        length = chance.choice((512, 4 * KIB, 60 * KIB, 300 * KIB))
        start = chance.randrange((size - length) // 512) * 512
        pieces.append((start, bytes(length // 2) + chance.randbytes(length - length // 2)))
    return sparse("a.raw", size, pieces)


@pytest.mark.parametrize("cluster", ["4k", "64k", "2M"])
def test_there_and_back(cluster: str, used: list[Batch]) -> None:
    data = scattered(len(cluster))
    run("convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}", "a.raw", "b")
    assert used
    run("check", "-q", "b")
    assert content("b", "qcow2") == data
    del used[:]
    run("convert", "-f", "qcow2", "-O", "raw", "b", "c")
    assert used
    assert Path("c").read_bytes() == data
    run("convert", "-f", "raw", "-O", "raw", "a.raw", "d")
    assert Path("d").read_bytes() == data


def test_what_the_backing_file_has_is_copied_too(used: list[Batch]) -> None:
    data = bytearray(scattered(5))
    run("convert", "-f", "raw", "-O", "qcow2", "a.raw", "base")
    run("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    node = open_image("top", format="qcow2")
    node.write(100 * KIB, b"new" * 50_000)
    node.close()
    data[100 * KIB : 100 * KIB + 150_000] = b"new" * 50_000
    del used[:]
    run("convert", "-f", "qcow2", "-O", "qcow2", "top", "b")
    assert len({file for batch in used for _, _, file, _ in batch.pieces}) == 2
    run("check", "-q", "b")
    assert content("b", "qcow2") == data


def test_the_rest_is_copied_where_something_is_compressed(used: list[Batch]) -> None:
    data = scattered(6)
    run("convert", "-f", "raw", "-O", "qcow2", "a.raw", "b")
    node = open_image("b", format="qcow2")
    last = data.rindex(bytes(64 * KIB), 0, 4 * MIB) // (64 * KIB) * 64 * KIB
    write_compressed = getattr(node, "write_compressed")  # noqa: B009 - of the one format that has it
    write_compressed(last, b"text" * (16 * KIB))
    node.close()
    data = data[:last] + b"text" * (16 * KIB) + data[last + 64 * KIB :]
    del used[:]
    run("convert", "-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=256k", "b", "c")
    assert used
    assert used[-1].pieces[-1][1] <= last
    run("check", "-q", "c")
    assert content("c", "qcow2") == data


def test_images_one_after_the_other_share_a_cluster(used: list[Batch]) -> None:
    first, second = scattered(7, MIB + 512), os.urandom(70 * KIB)
    Path("b.raw").write_bytes(second)
    run("convert", "-f", "raw", "-O", "qcow2", "a.raw", "b.raw", "c")
    assert used
    run("check", "-q", "c")
    assert content("c", "qcow2") == first + second


@pytest.mark.parametrize(
    "options",
    [("-S", "0"), ("-S", "96k"), ("-r", "1G"), ("--salvage",), ("-t", "writethrough"), ("-c",), ("-T", "none")],
)
def test_what_native_code_does_not_know_is_done_as_ever(options: tuple[str, ...], used: list[Batch]) -> None:
    data = scattered(8, MIB)
    run("convert", *options, "-f", "raw", "-O", "qcow2", "a.raw", "b")
    assert not used
    assert content("b", "qcow2") == data


def test_filters_of_the_source_are_not_passed_by(used: list[Batch]) -> None:
    scattered(9, MIB)
    filtered = "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=a.raw"
    run("convert", "--image-opts", "-O", "raw", filtered, "b")
    assert not used


@contextmanager
def longest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("threads", ["1", "8"])
def test_a_write_error_leaves_nothing_allocated(
    threads: str, used: list[Batch], capsys: pytest.CaptureFixture[str]
) -> None:
    sparse("a.raw", 16 * MIB, [(MIB, os.urandom(3 * MIB))])
    with longest_file(2 * MIB):
        assert main(["convert", "-m", threads, "-f", "raw", "-O", "qcow2", "a.raw", "b"]) == 1
    place = capsys.readouterr().err.removeprefix("pyvm-img: error while writing at byte ")
    assert 2 * MIB < int(place.removesuffix(": File too large\n")) < 4 * MIB
    assert used
    run("check", "-q", "b")


def test_a_source_that_gets_shorter_ends_in_zeros(used: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    sparse("a.raw", 2 * MIB, [(0, b"a" * 2 * MIB)])
    take = Disks.runs

    def shortened(self: Disks, layout: Layout) -> Iterator[Run]:
        yield from list(take(self, layout))
        os.truncate("a.raw", MIB)

    def after(self: Disks, layout: Layout) -> Iterator[Run]:
        runs = list(shortened(self, layout))
        return iter(runs)

    monkeypatch.setattr(Disks, "runs", after)
    run("convert", "-f", "raw", "-O", "raw", "a.raw", "b")
    assert used
    assert Path("b").read_bytes() == b"a" * MIB + bytes(MIB)


def test_a_node_that_is_no_file_has_no_way() -> None:
    run("create", "-q", "-f", "qcow2", "b", "1M")
    sparse("a.raw", MIB, [])
    source: Node = open_image("a.raw", format="raw", read_only=True)
    target = open_image("b", format="qcow2")
    assert find_way(Disks([source]), target, 64 * KIB) is not None
    assert find_way(Disks([source]), target, 128 * KIB) is None
    target.write(0, b"a" * 512)
    assert find_way(Disks([source]), target, 64 * KIB) is None
    target.close()
    source.close()
