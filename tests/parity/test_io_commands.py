"""``pyvm-io`` and qemu-io given the same lines on equal images: the same output, errors, exit status and contents."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-io is not installed"),
]

PYVM_IO = (sys.executable, "-m", "pyvm.tools.io.cli")
TREE = Path(__file__).resolve().parents[2]
_TIME = re.compile(r"; (?:\d+:)*\d\d\.\d\d(?: sec)? \([^)]*\)")
_MACHINE_TIME = re.compile(r"^(\d+),(\d+),\d+:\d\d:\d\d\.\d\d,[0-9.]+,[0-9.]+$", re.MULTILINE)


def mask(text: str) -> str:
    """Take out what differs by nature: times, the program's name, and an option in a usage that qemu-io refuses."""
    text = _TIME.sub("; TIME", text)
    text = _MACHINE_TIME.sub(r"\1,\2,TIME", text)
    return text.replace("qemu-io: ", "pyvm-io: ").replace("read [-abCqv]", "read [-bCqv]")


def run(program: tuple[str, ...], arguments: list[str], folder: Path, typed: str | None) -> tuple[str, str, int]:
    done = subprocess.run(
        [*program, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TREE)},
        input=typed if typed is not None else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return mask(done.stdout), mask(done.stderr), done.returncode


class Pair:
    """Two folders with the same images: one for each program."""

    def __init__(self, folder: Path) -> None:
        self.folders = (folder / "pyvm", folder / "qemu")
        for it in self.folders:
            it.mkdir()
            with open(it / "a.raw", "wb") as file:
                file.truncate(1 << 20)
            (it / "data").write_bytes(b"0123456789")
            (it / "empty").write_bytes(b"")
            subprocess.run(["qemu-img", "create", "-q", "-f", "raw", "base.raw", "1M"], cwd=it, check=True, timeout=60)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M"], cwd=it, check=True, timeout=60)
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2"],
                cwd=it,
                check=True,
                timeout=60,
            )

    def same(self, *arguments: str, typed: str | None = None) -> str:
        """Run both programs; they must do the same.  Return what was printed."""
        ours = run(PYVM_IO, list(arguments), self.folders[0], typed)
        theirs = run(("qemu-io",), list(arguments), self.folders[1], typed)
        assert ours[0].splitlines() == theirs[0].splitlines()
        assert ours[1:] == theirs[1:]
        return ours[0]

    def lines(self, *lines: str, image: str = "a.raw", options: tuple[str, ...] = ()) -> str:
        """Let both programs run the same lines on the same image, and compare what is in it afterwards."""
        form = image.rpartition(".")[2]
        arguments = [word for line in lines for word in ("-c", line)]
        out = self.same(*options, "-f", form, image, *arguments)
        self.compare(image)
        return out

    def compare(self, image: str) -> None:
        form = image.rpartition(".")[2]
        subprocess.run(
            ["qemu-img", "compare", "-q", "-f", form, "-F", form, *(str(it / image) for it in self.folders)],
            check=True,
            timeout=60,
        )


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_reads(pair: Pair) -> None:
    out = pair.lines(
        "write -P 0x41 0 100",
        "read 0 512",
        "read -q 0 512",
        "read -C 0 512",
        "read -v 90 20",
        "read -C -v 0 1",
        "read 1 1",
        "read 0 1024k",
        "read 1.5k 1k",
        "read 0x10 0x10",
        "r 0 512",
        "read -p 0 1",
        "read 0 0",
        "read 0 512 -q",
        "read  0  512",
    )
    assert "0000005a:  41 41 41 41 41 41 41 41 41 41 00" in out


def test_verification(pair: Pair) -> None:
    out = pair.lines(
        "write -P 0x41 0 100",
        "read -P 0x41 0 100",
        "read -P 0x42 0 100",
        "read -P 0x41 0 200",
        "read -P 65 -s 10 -l 20 0 200",
        "read -P 65 -s 190 0 200",
        "read -P 0x0 -s 100 0 200",
        "read -q -P 1 0 1",
        "readv -P 65 0 10 10",
        "readv -P 65 0 10 512",
        "read -P 0101 -l 5 0 200",
        "read -v -P 1 0 1",
    )
    assert "Pattern verification failed at offset 190, 10 bytes" in out


def test_bad_reads(pair: Pair) -> None:
    pair.lines(
        "read",
        "read 0",
        "read -x 0 1",
        "read -P",
        "read 0 2M",
        "read 1Z 1",
        "read a 1",
        "read 0 -1",
        "read -- -1 1",
        "read 0 1 2",
        "read -s 1 0 1",
        "read -l 1 0 1",
        "read -P 256 0 1",
        "read -P x 0 1",
        "read -P -1 0 1",
        "read -P 08 0 1",
        "read -P 0b1 0 1",
        "read -P 65 -s 10 -l 200 0 200",
        "read 0 16E",
        "read 16E 1",
        "read 9E 1",
        "read 0 3G",
        "readv 0 3G",
        "readv 0 a",
        "readv 0 1G 1G 1G",
        "read 0 1.5",
        "read 0 .5k",
        "read -l a 0 1",
        "read -s a 0 1",
        "readv -x 0 1",
        "readv 0",
        'read "0" 512',
        "read -b 0 512",
        "read -b 1 512",
        "readv 2M 1",
    )


def test_writes(pair: Pair) -> None:
    pair.lines(
        "write -P 0x41 0 100",
        "write 1k 512",
        "write -C 4k 512",
        "write -q 8k 512",
        "write -f 12k 1k",
        "w 16k 1k",
        "write -s data 20k 25",
        "write -z 0 64k",
        "write -z -u 64k 64k",
        "write -z -n 128k 64k",
        "writev -P 1 200k 512 512",
        "writev -C -f 210k 1k 1k",
        "writev 220k 512",
        "writev -q 230k 1 2 3",
        "discard 0 64k",
        "discard -C 64k 64k",
        "discard -q 0 64k",
        "d 0 512",
        "discard 1 1",
        "flush",
        "f",
    )


def test_bad_writes(pair: Pair) -> None:
    pair.lines(
        "write",
        "write 0",
        "write -x 0 1",
        "write -u 0 64k",
        "write -n 0 1",
        "write -z -P 1 0 1",
        "write -b -z 0 1",
        "write -b -c 0 1",
        "write -z -c 0 1",
        "write -f -c 0 1",
        "write -b -f 0 1",
        "write -s nofile 0 10",
        "write -s empty 0 10",
        "write -P 1 -s a 0 1",
        "write -s a.raw -z 0 1",
        "write -c 0 64k",
        "write -b 0 512",
        "write 0 3G",
        "write -z 0 3G",
        "write 1023k 2k",
        "write -z 2M 1",
        "writev 0 1k a",
        "writev 0",
        "writev 1M 1",
        "discard 0",
        "discard -x 0 0",
        "discard 0 3G",
        "discard 2M 1",
        "discard 0 1 2",
        "write -P 300 0 1",
        "flush 1",
    )


def test_compression_and_state(pair: Pair) -> None:
    pair.lines(
        "write -c -P 3 0 64k",
        "read -P 3 0 64k",
        "write -c 64k 512",
        "write -c 0 100k",
        "write -c 960k 64k",
        "write -c 512 512",
        "write -b -P 5 0 512",
        "read -b -P 5 0 512",
        "read -b -P 0 512 512",
        "read -b 0 32",
        "write -b 3 512",
        image="a.qcow2",
    )


def test_layout_of_raw(pair: Pair) -> None:
    pair.lines("info", "length", "l", "i", "map", "alloc 0", "alloc 0 1M", "a 4k 8k", "alloc 2M", "alloc 0 0")
    pair.lines("alloc", "alloc 1 2 3", "alloc a", "alloc 0 a", "map 1", "length 1", "info 1")


def test_layout_of_qcow2(pair: Pair) -> None:
    lines = ("map", "alloc 0 1M", "alloc 0", "alloc 512k 512", "alloc 64k 128k", "info")
    pair.lines("write 64k 128k", "write 512k 128k", "write -z 520k 64k", *lines, image="a.qcow2")
    pair.lines("write 64k 128k", "discard 64k 64k", *lines, image="top.qcow2")


def test_truncate(pair: Pair) -> None:
    pair.lines(
        "truncate 2M",
        "length",
        "truncate -m off 3M",
        "truncate -m falloc 3200k",
        "truncate -m foo 3M",
        "t 1M",
        "length",
        "truncate",
        "truncate -m",
        "truncate -x 1",
        "truncate a",
    )
    pair.lines(
        "write 0 64k", "truncate 2M", "length", "truncate -m metadata 3M", "truncate 1M", "length", image="a.qcow2"
    )


def test_asynchronous_requests(pair: Pair) -> None:
    pair.lines(
        "aio_write -P 2 0 64k",
        "aio_flush",
        "aio_read -P 2 0 64k",
        "aio_flush",
        "aio_read -P 3 0 64k",
        "aio_flush",
        "aio_read -v 0 20",
        "aio_flush",
        "aio_read -C 0 512",
        "aio_flush",
        "aio_write -f 0 512 512",
        "aio_flush",
        "aio_write -q 0 1k",
        "aio_flush",
        "aio_write -C 0 512",
        "aio_flush",
        image="a.qcow2",
    )
    pair.lines(
        "aio_write -u 0 1",
        "aio_write -i 0 1",
        "aio_read -i 0 1",
        "aio_read 0 a",
        "aio_read a 1",
        "aio_write -z 0 1 2",
        "aio_read -x 0 1",
        "aio_read -P 900 0 1",
        "aio_read 0",
        "aio_write -P",
        "aio_flush 1",
        "aio_write -z -P 1 0 1",
    )


@pytest.mark.parametrize("line", ["aio_read 0 2M", "aio_write 0 2M", "aio_write 1M 1", "aio_write -z 2M 1"])
def test_asynchronous_failures_do_not_fail_the_command(pair: Pair, line: str) -> None:
    assert "failed: Input/output error" in pair.lines(line, "aio_flush")


def test_other_commands(pair: Pair) -> None:
    pair.lines(
        "sleep",
        "sleep a",
        "sleep -1",
        "sleep 1x",
        "sleep 1",
        "sigraise",
        "sigraise a",
        "sigraise 100",
        "break a b",
        "resume a",
        "remove_break a",
        "break",
        "wait_break",
        "foo bar",
        "help foo",
        "help quit",
        "help sleep",
        "help a",
        "? flush",
        "",
        "q",
        "read 0 1",
    )


def test_lines_are_split_at_spaces(pair: Pair) -> None:
    pair.lines("length ", "  length", "\tlength", "read\t0 1")


def test_files(pair: Pair) -> None:
    pair.lines(
        "close",
        "read 0 1",
        "close",
        "open -o driver=raw a.raw",
        "open a.raw",
        "length",
        "close",
        "open",
        "open -x",
        "o",
        "open -o driver=qcow2,file.filename=a.qcow2",
        "length",
        "c",
        "open nofile",
        "open a b",
        "open -t foo a.raw",
        "open -d foo a.raw",
        "open -i foo a.raw",
        "open -r -o driver=raw a.raw",
        "write 0 512",
        image="a.qcow2",
    )
    pair.same("-c", "read 0 512")


def test_reopen(pair: Pair) -> None:
    pair.lines(
        "reopen -r",
        "write 0 1",
        "reopen -w",
        "write -q 0 512",
        "reopen -c writethrough",
        "write -q 512 512",
        "reopen -c foo",
        "reopen -o lazy-refcounts=on",
        "reopen -o foo=1",
        "reopen -r -w",
        "reopen a",
        "reopen -r -o read-only=off",
        "reopen -c writeback -o cache.direct=on",
        "reopen -x",
        "read -P 0xcd 0 1k",
        image="a.qcow2",
    )


@pytest.mark.parametrize(
    "options",
    [
        ("-n",),
        ("-t", "writethrough"),
        ("-t", "none"),
        ("-m",),
        ("-n", "-m"),
        ("-d", "ignore"),
        ("-d", "unmap"),
        ("-i", "threads"),
        ("-T", "foo"),
    ],
)
def test_ways_of_opening(pair: Pair, options: tuple[str, ...]) -> None:
    pair.lines("write -P 7 512 1k", "read -P 7 512 1k", "discard 64k 64k", options=options)


@pytest.mark.parametrize(
    "options",
    [("-t", "foo"), ("-d", "foo"), ("-i", "foo"), ("-i", "native"), ("-k",), ("-U",), ("-C", "-r"), ("-f", "foo")],
)
def test_refused_options(pair: Pair, options: tuple[str, ...]) -> None:
    pair.same("-f", "raw", *options, "a.raw", "-c", "length")


def test_read_only(pair: Pair) -> None:
    lines = ("write 0 512", "truncate 0", "discard 0 512", "aio_write 0 512", "writev 0 512", "read 0 512")
    pair.lines(*lines, options=("-r",))
    pair.lines(*lines, options=("-r", "-U"))
    pair.lines(*lines, options=("-s", "-r"))


def test_snapshot_leaves_the_image_alone(pair: Pair) -> None:
    pair.lines("write 0 64k", "read -P 0xcd 0 64k", options=("-s",))
    assert not any((pair.folders[0] / "a.raw").read_bytes())


def test_copy_on_read(pair: Pair) -> None:
    pair.lines("read 0 512", "alloc 0 64k", options=("-C",), image="top.qcow2")
    pair.lines("map", image="top.qcow2")


def test_image_options(pair: Pair) -> None:
    pair.same("--image-opts", "driver=raw,file.filename=a.raw", "-c", "length")
    pair.same("--image-opts", "-f", "raw", "driver=raw,file.filename=a.raw", "-c", "length")
    pair.same("--image-opts", "driver=raw,file.filename=none", "-c", "length")
    pair.same("nofile", "-c", "length")


def test_commands_from_standard_input(pair: Pair) -> None:
    options = ("-f", "raw", "a.raw")
    pair.same(*options, typed="length\nread 0 512\n\nfoo\nquit\nlength\n")
    pair.same(*options, typed="length")
    pair.same(*options, typed="")
    pair.same(typed="length\nopen -r -o driver=raw a.raw\nlength\nclose\n")


def test_death_by_signal(pair: Pair) -> None:
    pair.same("-f", "raw", "a.raw", "-c", "length", "-c", "sigraise 15")


def test_death_by_abort(pair: Pair) -> None:
    pair.same("-f", "raw", "a.raw", "-c", "abort")
