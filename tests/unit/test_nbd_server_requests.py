"""Requests to the NBD server and its replies, byte by byte; what exports do to nodes, and nodes to exports."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.bitmaps import DirtyBitmap, attach
from pyvm.block.errors import BlockError
from tests.unit import nbd_server_rig as nbd
from tests.unit.nbd_server_rig import CACHE, DF, FLUSH, FUA, READ, SIZE, STATUS, TRIM, WRITE, ZEROES, Serving

PERM, IO, INVALID, NOSPC, NOTSUP = 1, 5, 22, 28, 95


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    made.disk("a", tmp_path, b"data" * 16384)
    made.export("a", "a")
    yield made
    made.close()


def content(folder: Path, name: str = "a") -> bytes:
    return (folder / f"{name}.raw").read_bytes()


# ---- One request at a time


@pytest.mark.parametrize("structured", [False, True])
def test_reading_and_writing(serving: Serving, tmp_path: Path, structured: bool) -> None:
    with serving.ready("a", structured=structured) as client:
        assert client.read(2, 5) == b"tadat"
        assert client.read(0, 128 << 10) == b"data" * 16384 + bytes(64 << 10)
        assert client.write(100, b"hello") == 0
        assert client.read(98, 9) == b"tahelloat"
        assert client.write(SIZE - 1, b"!", FUA) == 0
        assert client.do(FLUSH) == 0
        assert client.read(3, 0) == b""
        assert client.write(0, b"") == 0
        assert client.do(CACHE, 0, SIZE) == 0
        assert client.read(0, 4, FUA) == b"data"
    assert content(tmp_path)[98:107] == b"tahelloat"
    assert content(tmp_path)[-1:] == b"!"


def test_zeros_are_told_not_sent(serving: Serving) -> None:
    with serving.ready("a") as client:
        cookie = client.request(READ, 0, SIZE)
        assert client.chunks() == (
            cookie,
            [
                (1, struct.pack(">Q", 0) + b"data" * 16384),
                (2, struct.pack(">QI", 64 << 10, SIZE - (64 << 10))),
            ],
        )
        cookie = client.request(READ, 0, SIZE, DF)
        answered, ((kind, payload),) = client.chunks()
        assert (answered, kind, len(payload)) == (cookie, 1, SIZE + 8)


def test_zeros_and_holes(serving: Serving, tmp_path: Path) -> None:
    with serving.ready("a") as client:
        assert client.do(ZEROES, 4096, 4096) == 0
        assert client.do(ZEROES, 3, 2, nbd.NO_HOLE | FUA) == 0
        assert client.do(TRIM, 8192, 8192, FUA) == 0
        assert client.do(ZEROES, 32768, 4096, nbd.FAST_ZERO) in (0, NOTSUP)
        expected = bytearray(b"data" * 2048)
        expected[4096:] = bytes(4096)
        expected[3:5] = bytes(2)
        assert client.read(0, 8192) == expected
    assert content(tmp_path)[:8192] == expected


def test_requests_that_make_no_sense(serving: Serving) -> None:
    with serving.ready("a") as client:
        for command, length, flags, data, error, told in (
            (READ, 2, 0, b"", INVALID, f"operation past EOF; From: {SIZE - 1}, Len: 2, Size: {SIZE}"),
            (WRITE, 2, 0, b"ab", NOSPC, None),
            (ZEROES, 2, 0, b"", NOSPC, None),
            (TRIM, 2, 0, b"", INVALID, None),
            (READ, 1, nbd.FAST_ZERO, b"", INVALID, "unsupported flags for command read (got 0x10)"),
            (WRITE, 1, DF, b"a", INVALID, "unsupported flags for command write (got 0x4)"),
            (77, 0, 0, b"", INVALID, "invalid request type (77) received"),
            (READ, 33 << 20, 0, b"", INVALID, f"len ({33 << 20}) is larger than max len ({32 << 20})"),
            (STATUS, 1, 0, b"", INVALID, "CMD_BLOCK_STATUS not negotiated"),
        ):
            assert client.do(command, SIZE - 1, length, flags, data) == error
            assert told in (None, client.told)
        assert client.do(READ, (1 << 64) - 1, 1) == INVALID
        assert client.read(0, 4) == b"data"
    with serving.ready("a", structured=False) as client:
        assert client.do(WRITE, SIZE, 1, 0, b"a") == NOSPC
        assert client.do(READ, 0, 1, DF) == INVALID
        # What follows cannot be told from data.
        assert client.do(WRITE, 0, 33 << 20) == INVALID
        assert client.is_closed()


def test_bad_magic_ends_the_connection(serving: Serving) -> None:
    with serving.ready("a") as client:
        client.send(bytes(28))
        assert client.is_closed()


def test_a_read_only_export(serving: Serving, tmp_path: Path) -> None:
    serving.disk("b", tmp_path)
    serving.export("b", "b", writable=False)
    with serving.ready("b") as client:
        for command, data in ((WRITE, b"a"), (TRIM, b""), (ZEROES, b"")):
            assert client.do(command, 0, 1, 0, data) == PERM
            assert client.told == "Export is read-only"
        assert client.do(FLUSH) == 0


def test_errors_of_the_node(serving: Serving) -> None:
    rules = [{"event": "none", "iotype": "read", "errno": 5}, {"event": "none", "iotype": "write", "errno": 28}]
    serving.node("bad", driver="blkdebug", image={"driver": "null-co", "size": SIZE}, **{"inject-error": rules})
    serving.export("bad", "bad")
    with serving.ready("bad") as client:
        assert client.do(READ, 0, 512) == IO
        assert client.told == "reading from file failed"
        assert client.write(0, bytes(512)) == NOSPC
        assert client.told == "writing to file failed"
    assert serving.events == []


# ---- Block status


def test_block_status(serving: Serving, tmp_path: Path) -> None:
    with serving.ready("a", contexts=("base:allocation",)) as client:
        half = 64 << 10
        assert client.status(0, SIZE) == {"base:allocation": [(half, 0), (SIZE - half, 3)]}
        assert client.status(0, SIZE, nbd.REQ_ONE) == {"base:allocation": [(half, 0)]}
        assert client.status(half - 512, 1024) == {"base:allocation": [(512, 0), (512, 3)]}
        assert client.do(STATUS, 0, 0) == INVALID
        assert client.told == "need non-zero length"


def test_block_status_of_chains_and_bitmaps(serving: Serving, tmp_path: Path) -> None:
    from pyvm.block.create import create_image

    for name in ("base", "top"):
        create_image(str(tmp_path / f"{name}.qcow2"), "qcow2", SIZE, {})
    file = {name: {"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")} for name in ("base", "top")}
    below = serving.node("base", driver="qcow2", file=file["base"])
    below.write(128 << 10, b"b" * (64 << 10))
    top = serving.node("top", driver="qcow2", file=file["top"], backing="base")
    top.write(0, b"t" * (64 << 10))
    bitmap = attach(top, DirtyBitmap(SIZE, 64 << 10, "dirty"))
    bitmap.set(256 << 10, 1)
    bitmap.enabled = False
    serving.export("top", "top", writable=False, allocation_depth=True, bitmaps=("dirty",))
    assert bitmap.busy
    kinds = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:dirty")
    with serving.ready("top", contexts=kinds) as client:
        step = 64 << 10
        assert client.status(0, SIZE) == {
            kinds[0]: [(step, 0), (step, 3), (step, 0), (SIZE - 3 * step, 3)],
            kinds[1]: [(step, 1), (step, 0), (step, 2), (SIZE - 3 * step, 0)],
            kinds[2]: [(4 * step, 0), (step, 1), (SIZE - 5 * step, 0)],
        }
        assert client.read(step - 1, 2) == b"t\0"
        serving.exports.remove("top", hard=True)
        assert client.is_closed()
    serving.wait(lambda: serving.exports.find("top") is None)
    assert not bitmap.busy


# ---- Many at a time


def test_requests_on_their_way_together(serving: Serving) -> None:
    with serving.ready("a", structured=False) as client:
        data = {client.request(WRITE, 8192 * index, 8192, 0, bytes([index]) * 8192): index for index in range(64)}
        for _ in range(64):
            error, cookie, _ = client.simple()
            assert error == 0
            del data[cookie]
        cookies = {client.request(READ, 8192 * index, 8192): index for index in range(64)}
        for _ in range(64):
            error, cookie, got = client.simple(8192)
            assert (error, got) == (0, bytes([cookies.pop(cookie)]) * 8192)


def test_whoever_takes_no_replies_is_not_read_from(serving: Serving, tmp_path: Path) -> None:
    serving.disk("big", tmp_path, size=256 << 20)
    serving.export("big", "big")
    greedy = serving.ready("big", structured=False)
    greedy.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        greedy.send(struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, 32 << 20) * 100_000)
    with serving.ready("big", structured=False) as client:
        assert client.read(0, 4) == bytes(4)
    greedy.socket.close()


def test_clients_share_an_export(serving: Serving) -> None:
    with serving.ready("a") as one, serving.ready("a") as other:
        assert one.write(4096, b"one") == 0
        assert other.read(4096, 3) == b"one"
        # Both said that they can: what one was told is written is there for the other's flush.
        assert other.do(FLUSH) == 0


# ---- The life of exports


def test_export_and_its_end(serving: Serving, tmp_path: Path) -> None:
    client = serving.ready("a")
    with serving.lock, pytest.raises(BlockError, match="export 'a' still in use"):
        serving.exports.remove("a")
    assert client.read(0, 4) == b"data"
    with serving.lock:
        serving.exports.remove("a", hard=True)
        assert serving.exports.find("a") is None or serving.exports.find("a").describe()["shutting-down"]
        assert serving.exports.server.find(b"a") is None
    assert client.is_closed()
    serving.wait(lambda: not list(serving.exports))
    assert serving.events == [("BLOCK_EXPORT_DELETED", {"id": "a"})]
    client.socket.close()
    with serving.lock:
        serving.storage.remove_node("a")


def test_the_node_is_pinned(serving: Serving, tmp_path: Path) -> None:
    with serving.lock:
        with pytest.raises(BlockError, match="Node a is in use"):
            serving.storage.remove_node("a")
        with pytest.raises(BlockError, match="permissions 'resize' are both required"):
            serving.storage.resize(serving.storage.graph.nodes["a"], 4096)


def test_a_server_that_stops_with_clients(serving: Serving) -> None:
    client = serving.ready("a")
    with serving.lock:
        server = serving.exports.server
        serving.exports.stop_server()
        assert list(serving.exports) == []
    assert serving.events == [("BLOCK_EXPORT_DELETED", {"id": "a"})]
    assert client.is_closed()
    client.socket.close()
    assert not serving.path.exists()
    serving.wait(lambda: not server.client_count)


def test_an_export_follows_its_node(serving: Serving, tmp_path: Path) -> None:
    """A filter that is put in front of a node is in front of the export as well."""
    from pyvm.block.drivers.copy_on_read import CopyOnReadNode
    from pyvm.block.jobs.surgery import drop_filter, insert_filter

    node = serving.storage.graph.nodes["a"]
    with serving.ready("a") as client:
        with serving.lock:
            made = CopyOnReadNode(node.hold(), name="")
            insert_filter(serving.storage, made, "front")
            assert serving.exports.find("a").node is made
        assert client.write(0, b"more") == 0
        assert client.read(0, 4) == b"more"
        with serving.lock:
            drop_filter(serving.storage, made)
            assert serving.exports.find("a").node is node
        assert client.read(0, 4) == b"more"


def test_what_exports_cannot_be(serving: Serving, tmp_path: Path) -> None:
    node = serving.disk("b", tmp_path, **{"read-only": True})
    attach(node, DirtyBitmap(SIZE, 65536, "busy")).busy = True

    def refused(name: str, node: str, **options: Any) -> str:
        before = list(serving.exports), len(serving.storage.graph.users(serving.storage.graph.nodes["b"]))
        with pytest.raises(BlockError) as caught:
            serving.export(name, node, **options)
        assert (list(serving.exports), len(serving.storage.graph.users(serving.storage.graph.nodes["b"]))) == before
        return str(caught.value)

    assert refused("b", "b") == "Cannot export read-only node as writable"
    assert refused("b", "zz") == "Cannot find device='' nor node-name='zz'"
    assert refused("a", "b", writable=False) == "NBD server already has export named 'a'"
    assert refused("x" * 5000, "b", writable=False).startswith("export name 'xxx")
    assert refused("b", "b", writable=False, description="x" * 5000).startswith("description 'xxx")
    assert refused("b", "b", writable=False, bitmaps=("zz",)) == "Bitmap 'zz' is not found"
    assert refused("b", "b", writable=False, bitmaps=("busy",)).startswith("Bitmap 'busy' is currently in use")
    attach(serving.storage.graph.nodes["a"], DirtyBitmap(SIZE, 65536, "on"))
    text = "Enabled bitmap 'on' incompatible with readonly export"
    assert refused("c", "a", writable=False, bitmaps=("on",)) == text


# ---- Strangers

_REQUEST = st.tuples(
    st.sampled_from([READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS, 9]),
    st.integers(0, 31) | st.just(1 << 15),
    st.sampled_from([0, 1, 511, 4096, SIZE - 1, SIZE, SIZE + 1, 1 << 63, (1 << 64) - 1]),
    st.sampled_from([0, 1, 512, 5000, 70_000, 1 << 20, (1 << 32) - 1]),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(_REQUEST, max_size=8), st.booleans(), st.booleans())
def test_whatever_a_stranger_asks_others_are_served(
    serving: Serving, requests: list[tuple[int, int, int, int]], structured: bool, waits: bool
) -> None:
    contexts = ("base:allocation",) if structured else ()
    stranger = serving.ready("a", structured=structured, contexts=contexts)
    try:
        for command, flags, offset, length in requests:
            data = b"x" * length if command == WRITE and length <= 1 << 20 else b""
            stranger.request(command, offset, length, flags, data)
        if waits:
            stranger.socket.shutdown(socket.SHUT_WR)
            while stranger.socket.recv(1 << 20):
                pass
    except ConnectionError:
        pass
    stranger.socket.close()
    server = serving.exports.server
    assert server is not None
    serving.wait(lambda: not server.client_count)  # what it asked for last may still be under way
    with serving.ready("a", structured=structured) as client:
        assert client.write(0, b"ours") == 0
        assert client.read(0, 4) == b"ours"


def test_random_requests_agree_with_a_model(serving: Serving) -> None:
    choose = random.Random(7)
    model = bytearray(b"data" * 16384 + bytes(SIZE - (64 << 10)))
    with serving.ready("a") as client:
        for _ in range(200):
            offset = choose.randrange(SIZE)
            length = min(choose.choice([1, 511, 4096, 65536, 200_000]), SIZE - offset)
            kind = choose.choice([READ, READ, WRITE, ZEROES])
            if kind == READ:
                assert client.read(offset, length, choose.choice([0, DF])) == model[offset : offset + length]
            elif kind == WRITE:
                data = choose.randbytes(length)
                assert client.write(offset, data) == 0
                model[offset : offset + length] = data
            else:
                assert client.do(ZEROES, offset, length, choose.choice([0, nbd.NO_HOLE])) == 0
                model[offset : offset + length] = bytes(length)
