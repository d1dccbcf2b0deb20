"""The NBD server's handshake, byte by byte, with clients good and bad."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.bitmaps import DirtyBitmap, attach
from tests.unit import nbd_server_rig as nbd
from tests.unit.nbd_server_rig import ACK, GO, INFO, LIST, SIZE, STRUCTURED, Serving, text


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    made.disk("a", tmp_path)
    made.disk("b", tmp_path, size=64 << 10)
    made.export("a", "a")
    made.export("second", "b", writable=False, description="what it is", allocation_depth=True)
    yield made
    made.close()


def test_greeting(serving: Serving) -> None:
    with serving.client() as client:
        assert client.greeting == b"NBDMAGICIHAVEOPT\0\3"


def test_list(serving: Serving) -> None:
    with serving.client() as client:
        assert client.ask(LIST) == [(2, text("a")), (2, text("second") + b"what it is"), (ACK, b"")]
        assert client.ask(LIST, b"x") == [(nbd.ERR_INVALID, b"option 'list' must have zero length")]


def test_go_says_what_the_export_is(serving: Serving) -> None:
    with serving.client() as client:
        told = client.go("a", structured=False)
        assert told == {0: struct.pack(">QH", SIZE, 0xD6D), 3: struct.pack(">III", 1, 4096, 32 << 20)}
    with serving.client() as client:
        told = client.go("second")
        # Read-only, and chunks can be had in one piece as replies are structured.
        assert told[0] == struct.pack(">QH", 64 << 10, 0x58F)
        assert told[2] == b"what it is"


def test_info_leaves_the_choice(serving: Serving) -> None:
    with serving.client() as client:
        replies = client.ask(INFO, text("a") + struct.pack(">HHH", 2, 1, 3))
        assert [(kind, data[:2]) for kind, data in replies] == [(3, b"\0\1"), (3, b"\0\3"), (3, b"\0\0"), (ACK, b"")]
        assert replies[0][1] == b"\0\1a"
        assert client.ask(INFO, text("zz") + b"\0\0") == [(nbd.ERR_UNKNOWN, b"export 'zz' not present")]
        client.go("a")
        assert client.read(0, 4) == bytes(4)


def test_the_old_way_to_ask(serving: Serving) -> None:
    for flags, zeros in ((3, 0), (1, 124), (2, 0), (0, 124)):
        with serving.client(flags=flags) as client:
            client.option(1, b"a")
            assert client.receive(10 + zeros) == struct.pack(">QH", SIZE, 0xD6D) + bytes(zeros)
            assert client.read(0, 4) == bytes(4)
    with serving.client() as client:
        client.option(1, b"zz")
        assert client.is_closed()


def test_abort(serving: Serving) -> None:
    with serving.client() as client:
        assert client.ask(2) == [(ACK, b"")]
        assert client.is_closed()
    serving.wait(lambda: serving.left == [False])


def test_options_that_are_refused(serving: Serving) -> None:
    with serving.client() as client:
        assert client.ask(99) == [(nbd.ERR_UNSUP, b"Unsupported option 99 (<unknown>)")]
        assert client.ask(nbd.STARTTLS) == [(nbd.ERR_POLICY, b"TLS not configured")]
        assert client.ask(STRUCTURED, b"1") == [(nbd.ERR_INVALID, b"option 'structured reply' must have zero length")]
        assert client.ask(STRUCTURED) == [(ACK, b"")]
        assert client.ask(STRUCTURED) == [(nbd.ERR_INVALID, b"structured reply already negotiated")]
        for data in (b"", text("a"), text("a") + b"\0\2\0\1", struct.pack(">I", 9) + b"a"):
            assert client.ask(GO, data) == [(nbd.ERR_INVALID, b"Inconsistent lengths in option go")]
        assert client.ask(GO, text("a") + b"\0\0\0")[0][0] == nbd.ERR_INVALID
        assert client.ask(GO, text("x" * 5000)) == [(nbd.ERR_INVALID, b"Invalid name length: 5000")]
        assert client.ask(99, bytes(1 << 20))[0][0] == nbd.ERR_TOO_BIG
        client.go("a", structured=False)


@pytest.mark.parametrize(
    "said", [b"\0\0\0\4", b"\0\0\0\3" + bytes(16), b"\0\0\0\3IHAVEOPT" + struct.pack(">II", 7, 64 << 20)]
)
def test_nonsense_ends_the_connection(serving: Serving, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(serving.path))
        client.recv(18)
        client.sendall(said)
        client.settimeout(60)
        assert client.recv(1) == b""


# ---- Block status


def test_kinds_of_block_status(serving: Serving, tmp_path: Path) -> None:
    with serving.client() as client:
        data = text("second") + struct.pack(">I", 0)
        refusal = b"request option 'list meta context' when structured reply is not negotiated"
        assert client.ask(nbd.LIST_META, data) == [(nbd.ERR_INVALID, refusal)]
        client.ask(STRUCTURED)
        both = [("base:allocation", 0), ("qemu:allocation-depth", 0)]
        assert client.meta(nbd.LIST_META, "second") == both
        assert client.meta(nbd.LIST_META, "second", "base:", "qemu:") == both
        assert client.meta(nbd.LIST_META, "second", "qemu:dirty-bitmap:", "other:thing") == []
        assert client.meta(nbd.LIST_META, "a") == both[:1]
        assert client.meta(nbd.SET_META, "second", "qemu:") == []
        assert client.meta(nbd.SET_META, "second", "qemu:allocation-depth") == [("qemu:allocation-depth", 1)]
        assert client.ask(nbd.SET_META, text("zz") + bytes(4))[0][0] == nbd.ERR_UNKNOWN
        assert client.ask(nbd.SET_META, text("a") + struct.pack(">I", 1 << 31))[0][0] == nbd.ERR_INVALID


def test_bitmaps_have_their_own_kinds(serving: Serving, tmp_path: Path) -> None:
    node = serving.disk("c", tmp_path)
    for name in ("one", "two"):
        attach(node, DirtyBitmap(SIZE, 65536, name)).enabled = False
    serving.export("c", "c", bitmaps=("two", ("c", "one")), writable=False)
    with serving.client() as client:
        client.ask(STRUCTURED)
        names = ["base:allocation", "qemu:dirty-bitmap:two", "qemu:dirty-bitmap:one"]
        assert [name for name, _ in client.meta(nbd.LIST_META, "c", "qemu:dirty-bitmap:", "base:")] == names
        assert client.meta(nbd.SET_META, "c", names[2], names[0]) == [(names[0], 0), (names[2], 3)]


def test_status_is_of_the_export_that_it_was_asked_for(serving: Serving) -> None:
    with serving.client() as client:
        client.ask(STRUCTURED)
        client.meta(nbd.SET_META, "second", "base:allocation")
        client.go("a", structured=False)
        client.structured = True
        assert client.do(nbd.STATUS, 0, 512) == 22
        assert client.told == "CMD_BLOCK_STATUS not negotiated"


# ---- Strangers


_OPTION = st.tuples(st.sampled_from([2, 3, 5, 6, 8, 9, 10, 77]), st.binary(max_size=40))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.binary(max_size=30), _OPTION), max_size=6))
def test_whatever_a_stranger_says_others_are_served(serving: Serving, said: list[bytes | tuple[int, bytes]]) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(serving.path))
        try:
            stranger.sendall(b"\0\0\0\3")
            for it in said:
                if isinstance(it, bytes):
                    stranger.sendall(it)
                else:
                    stranger.sendall(b"IHAVEOPT" + struct.pack(">II", it[0], len(it[1])) + it[1])
        except ConnectionError:
            pass
    with serving.ready("a") as client:
        assert client.read(0, 16) == bytes(16)


def test_as_many_clients_as_were_allowed(tmp_path: Path) -> None:
    serving = Serving(tmp_path, max_connections=1)
    try:
        serving.disk("a", tmp_path)
        assert not serving.export("a", "a").flags & 1 << 8
        first = serving.ready("a")
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(str(serving.path))
        waiting.settimeout(0.05)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        first.socket.close()
        waiting.settimeout(60)
        assert waiting.recv(4) == b"NBDM"
        waiting.close()
    finally:
        serving.close()
