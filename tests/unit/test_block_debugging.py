"""Drivers for tests of others: blkdebug's breakpoints and limits; and the filters compress and preallocate."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.backend import BlockBackend
from pyvm.block.breakpoints import Breakpoints, Suspended, find_breakpoints
from pyvm.block.create import create_image
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import Node
from pyvm.block.open import open_node
from pyvm.tools.io.table import run

SIZE = 1 << 20
KIB = 1 << 10


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(b"o" * SIZE)
    return str(path)


def opened(tree: dict[str, Any]) -> Node:
    return open_node({"node-name": "top", **tree}, BlockGraph())


def debugged(path: str, **options: Any) -> Node:
    """Return a raw disk with blkdebug below it."""
    file = {"driver": "file", "filename": path, "discard": "unmap"}
    debug = {"driver": "blkdebug", "image": file, "discard": "unmap"}
    debug.update({name.replace("_", "-"): value for name, value in options.items()})
    return opened({"driver": "raw", "file": debug, "discard": "unmap"})


def commands(node: Node) -> Callable[..., list[str]]:
    """Return a function that runs lines of qemu-io on a node, and returns what they print."""
    backend = BlockBackend(node)

    def execute(*lines: str) -> list[str]:
        said: list[str] = []
        for line in lines:
            run(backend, line, said.append)
        return said

    return execute


def test_a_request_stops_at_a_breakpoint(image: str) -> None:
    node = debugged(image)
    execute = commands(node)
    assert execute("break write_aio A", "aio_write -q -P 0x61 0 4k", "wait_break A") == []
    assert node.read(0, 4) == b"oooo"
    assert execute("resume A") == []
    assert node.read(0, 4) == b"aaaa"
    # It is gone once a request has met it.
    assert execute("aio_write -q -P 0x62 0 4k") == []
    assert node.read(0, 4) == b"bbbb"
    node.release()


def test_a_breakpoint_that_is_removed_lets_all_go(image: str) -> None:
    node = debugged(image)
    execute = commands(node)
    execute("break read_aio A", "break read_aio A", "aio_read 0 512", "aio_read 0 512")
    found = find_breakpoints(node)
    assert found is not None
    assert len(found.parked) == 2
    lines = execute("remove_break A")
    assert not lines or all("read" in line or "KiB" in line or "bytes" in line for line in lines)
    assert not found.parked
    assert execute("resume A") == ["Could not resume request: No such file or directory\n"]
    assert execute("remove_break A") == ["Could not remove breakpoint A: No such file or directory\n"]
    assert execute("break nothing A") == ["Could not set breakpoint: No such file or directory\n"]
    node.release()


def test_nobody_could_let_a_request_go_that_is_waited_for(image: str) -> None:
    node = debugged(image)
    execute = commands(node)
    (line,) = execute("break read_aio A", "read 0 512")
    assert "the request is stopped at breakpoint A" in line
    assert execute("read -q 0 512") == []
    node.release()


def test_a_write_that_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    create_image(path, "qcow2", SIZE, {})
    file = {"driver": "blkdebug", "image": {"driver": "file", "filename": path}}
    node = opened({"driver": "qcow2", "file": file})
    found = find_breakpoints(node)
    assert found is not None
    found.add("write_aio", "A")
    with pytest.raises(Suspended):
        node.write(0, b"x" * 100)
    assert node.block_status(0, SIZE).length == SIZE
    node.write(0, b"x" * 100)
    assert node.read(0, 101) == b"x" * 100 + b"\0"
    node.release()


def test_where_there_are_no_breakpoints(image: str) -> None:
    node = opened({"driver": "raw", "file": {"driver": "file", "filename": image}})
    execute = commands(node)
    assert execute("break write_aio A") == ["Could not set breakpoint: Operation not supported\n"]
    assert execute("resume A") == ["Could not resume request: Operation not supported\n"]
    node.release()


def test_requests_are_of_whole_blocks(image: str) -> None:
    rule = {"event": "pwritev_rmw_head", "errno": 28, "once": True}
    node = debugged(image, align=4 * KIB, inject_error=[rule])
    with pytest.raises(OSError, match="No space left"):
        node.write(100, b"n" * 100)
    node.write(100, b"n" * 10000)
    assert node.read(99, 10002) == b"o" + b"n" * 10000 + b"o"
    node.release()


def test_long_requests_come_in_pieces(image: str) -> None:
    rule = {"event": "none", "sector": 2 * 64 * KIB // 512, "iotype": "write", "errno": 28}
    node = debugged(image, max_transfer=64 * KIB, inject_error=[rule])
    with pytest.raises(OSError, match="No space left"):
        node.write(0, b"n" * (256 * KIB))
    assert node.read(0, 256 * KIB) == b"n" * (128 * KIB) + b"o" * (128 * KIB)
    node.release()


def test_zeros_and_discards_of_parts_of_blocks(image: str) -> None:
    rule = {"event": "none", "iotype": "discard", "sector": 384 * KIB // 512, "errno": 95}
    node = debugged(image, align=4 * KIB, opt_write_zero=64 * KIB, max_write_zero=64 * KIB, opt_discard=128 * KIB,
                    inject_error=[rule])  # fmt: skip
    node.write_zeroes(1000, 200 * KIB, False)
    assert node.read(0, 210 * KIB).strip(b"o") == bytes(200 * KIB)
    used = os.stat(image).st_blocks
    node.discard(256 * KIB + 1, 4 * KIB)
    assert os.stat(image).st_blocks == used
    # What is before the whole blocks is another request than they are.
    with pytest.raises(OSError, match="Operation not supported"):
        node.discard(256 * KIB + 1, 300 * KIB)
    assert node.read(256 * KIB, 4 * KIB) == b"o" * (4 * KIB)
    assert node.read(260 * KIB, 124 * KIB) == bytes(124 * KIB)
    assert node.read(384 * KIB, 128 * KIB) == b"o" * (128 * KIB)
    node.release()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align": 3}, "Cannot meet constraints with align 3"),
        ({"align": 4096, "max_transfer": 512}, "Cannot meet constraints with max-transfer 512"),
        ({"opt_write_zero": 1024, "max_write_zero": 512}, "Cannot meet constraints with max-write-zero 512"),
        ({"opt_discard": 1 << 31}, "Cannot meet constraints with opt-discard 2147483648"),
        ({"inject_error": [{"event": "nothing"}]}, 'Invalid event name "nothing"'),
    ],
)
def test_what_cannot_be_debugged(image: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockError, match=message):
        debugged(image, **options)


def test_what_is_written_goes_compressed(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    create_image(path, "qcow2", SIZE, {})
    disk = {"driver": "qcow2", "file": {"driver": "file", "filename": path}}
    node = opened({"driver": "compress", "file": disk})
    node.write(1000, b"c" * (128 * KIB))
    assert node.read(0, 130 * KIB) == bytes(1000) + b"c" * (128 * KIB) + bytes(130 * KIB - 128 * KIB - 1000)
    assert node.block_status(0, 64 * KIB).compressed
    # Compressed clusters cannot be overwritten.
    node.release()
    raw = {"driver": "raw", "file": {"driver": "file", "filename": path}}
    with pytest.raises(BlockError, match="Compression is not supported for underlying format: raw"):
        opened({"driver": "compress", "file": raw})


def test_a_file_grows_in_large_steps(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    create_image(path, "qcow2", 64 << 20, {})
    before = os.path.getsize(path)
    file = {"driver": "file", "filename": path}
    filtered = {"driver": "preallocate", "file": file, "prealloc-align": 1 << 20, "prealloc-size": 8 << 20}
    node = opened({"driver": "qcow2", "file": filtered})
    node.write(0, b"x" * 512)
    assert os.path.getsize(path) >= 8 << 20
    assert os.path.getsize(path) % (1 << 20) == 0
    node.inactivate()
    node.release()
    assert before < os.path.getsize(path) < 8 << 20
    check = opened({"driver": "qcow2", "file": file})
    assert check.read(0, 513) == b"x" * 512 + b"\0"
    check.release()
    with pytest.raises(BlockError, match="prealloc-align parameter of preallocate filter is not aligned to 512"):
        opened({"driver": "preallocate", "file": file, "prealloc-align": 3})


def test_a_log_of_writes(tmp_path: Path, image: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"")
    tree = {
        "driver": "blklogwrites",
        "file": {"driver": "file", "filename": image, "discard": "unmap"},
        "log": {"driver": "file", "filename": str(log)},
    }
    node = opened(tree)
    node.write(1024, b"w" * 1024)
    node.write_zeroes(4096, 512, False)
    node.discard(8192, 4096)
    node.flush()
    node.release()
    data = log.read_bytes()
    assert struct.unpack_from("<QQQI", data) == (0x6A736677736872, 1, 4, 512)
    assert struct.unpack_from("<QQQQ", data, 512) == (2, 2, 0, 0)
    assert data[1024:2048] == b"w" * 1024
    assert struct.unpack_from("<QQQQ", data, 2048) == (8, 1, 0, 0)
    assert data[2560:3072] == bytes(512)
    assert struct.unpack_from("<QQQQ", data, 3072) == (16, 8, 4, 0)
    assert struct.unpack_from("<QQQQ", data, 3584) == (0, 0, 1, 0)
    # Another one goes on behind.
    node = opened({**tree, "log-append": True})
    node.write(0, b"v" * 512)
    node.release()
    data = log.read_bytes()
    assert struct.unpack_from("<QQQI", data) == (0x6A736677736872, 1, 5, 512)
    assert struct.unpack_from("<QQQQ", data, 4096) == (0, 1, 0, 0)
    assert data[4608:5120] == b"v" * 512
    with pytest.raises(BlockError, match="log-append and log-sector-size are mutually exclusive"):
        opened({**tree, "log-append": True, "log-sector-size": 512})
    with pytest.raises(BlockError, match="Invalid log sector size 1000"):
        opened({**tree, "log-sector-size": 1000})


@pytest.mark.parametrize("removal", ["tag", "all", "other"])
def test_a_breakpoint_may_be_removed_before_its_request_waits(removal: str) -> None:
    points = Breakpoints()
    points.add("read_aio", "a")
    with pytest.raises(Suspended) as caught:
        points.meet("read_aio")
    if removal == "all":
        points.clear()
    else:
        points.remove("a" if removal == "tag" else "b")
    gone_on: list[bool] = []
    caught.value.park(lambda: gone_on.append(True))
    assert gone_on == ([] if removal == "other" else [True])
    assert points.is_suspended("a") == (removal == "other")
    assert points.remove("a") == (removal == "other")
    assert gone_on == [True]
