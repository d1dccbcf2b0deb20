"""Filters of back ends: what they show to programs, take from them and hold back; the objects that they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import Buffer, Chardev
from pyvm.clock import ManualClock
from pyvm.net.client import Offload
from pyvm.net.filters import BufferFilter, MirrorFilter, RedirectorFilter
from tests.system.machine_rig import Machine
from tests.unit.net_support import Peer

FRAME = bytes(range(60))
OTHER = bytes(60)
BOTH = {"sent": True, "received": True}


class Program(Chardev):
    """A program at the other end of a character device, which may be slow or away."""

    def __init__(self) -> None:
        super().__init__("program")
        self.room = 1 << 30
        self.there = True
        self.data = b""

    @property
    def filename(self) -> str:
        return "program"

    @property
    def connected(self) -> bool:
        return self.there

    def _write(self, data: Buffer) -> int:
        taken = bytes(data[: self.room])
        self.data += taken
        return len(taken)

    def accept_input(self) -> None:
        """It sends when a test says so."""

    def say(self, data: bytes) -> None:
        assert self.frontend is not None
        self.frontend.receive(data)


def pair() -> tuple[Peer, Peer]:
    """Return a back end and its peer."""
    client, peer = Peer("n0"), Peer("nic")
    client.connect(peer)
    return client, peer


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


@pytest.mark.parametrize(("sent", "received"), [(True, True), (True, False), (False, True)])
def test_a_mirror_shows_frames_of_its_directions(sent: bool, received: bool) -> None:
    client, peer = pair()
    program = Program()
    client.filters.append(MirrorFilter("f", client, program, sent=sent, received=received))
    client.send(FRAME)
    peer.send(OTHER)
    assert (client.frames, peer.frames) == ([OTHER], [FRAME])
    assert program.data == (framed(FRAME) if sent else b"") + (framed(OTHER) if received else b"")


def test_a_slow_program_gets_whole_frames_later() -> None:
    client, _ = pair()
    program = Program()
    mirror = MirrorFilter("f", client, program, **BOTH)
    client.filters.append(mirror)
    program.room = 10
    client.send(FRAME)
    program.room = 1000
    client.send(OTHER)
    assert program.data == framed(FRAME) + framed(OTHER)
    mirror.close()
    assert program.frontend is None


def test_a_redirector_takes_frames_while_there_is_a_program() -> None:
    client, peer = pair()
    program = Program()
    client.filters.append(RedirectorFilter("f", client, None, program, sent=False, received=True))
    peer.send(FRAME)
    client.send(OTHER)
    assert (client.frames, peer.frames) == ([], [OTHER])
    assert program.data == framed(FRAME)
    program.there = False
    peer.send(FRAME)
    assert client.frames == [FRAME]


def test_frames_of_a_program_go_on_behind_the_redirector() -> None:
    client, peer = pair()
    seen, program = Program(), Program()
    before = MirrorFilter("a", client, seen, sent=False, received=True)
    # Frames for the back end meet the filters in the opposite order.
    client.filters += [before, RedirectorFilter("b", client, program, None, sent=False, received=True)]
    stream = framed(FRAME) + framed(OTHER)
    for at in range(0, len(stream), 7):
        program.say(stream[at : at + 7])
    assert client.frames == [FRAME, OTHER]
    assert seen.data == stream
    assert peer.frames == []


def test_a_filter_before_one_that_takes_a_frame_has_seen_it() -> None:
    client, peer = pair()
    seen, unseen, taken = Program(), Program(), Program()
    client.filters += [
        MirrorFilter("a", client, seen, **BOTH),
        RedirectorFilter("b", client, None, taken, **BOTH),
        MirrorFilter("c", client, unseen, **BOTH),
    ]
    client.send(FRAME)
    assert (seen.data, taken.data, unseen.data, peer.frames) == (framed(FRAME), framed(FRAME), b"", [])


def test_a_buffer_lets_frames_go_together() -> None:
    client, peer = pair()
    clock = ManualClock()
    held = BufferFilter("f", client, clock, 1000, **BOTH)
    client.filters.append(held)
    offload = Offload(1, 0, 0, 0, 34, 16)
    client.send(FRAME, offload)
    peer.send(OTHER)
    assert (client.frames, peer.frames) == ([], [])
    clock.advance(1_000_000)
    assert (client.frames, peer.frames, peer.offload) == ([OTHER], [FRAME], [offload])
    assert peer.batches
    peer.room = False
    client.send(FRAME)
    clock.advance(1_000_000)
    peer.room = True
    held.enabled = False
    assert client.send(OTHER)
    held.close()
    assert peer.frames == [FRAME, OTHER, FRAME]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_no_program_does_harm(parts: list[bytes]) -> None:
    client, _ = pair()
    program = Program()
    redirector = RedirectorFilter("f", client, program, None, **BOTH)
    client.filters.append(redirector)
    for part in parts:
        program.say(part)
        assert redirector.can_receive() > 0


# ---- As objects


def test_filters_as_people_see_them() -> None:
    words = ["-netdev", "user,id=n"]
    for name in "cde":
        words += ["-chardev", f"null,id={name}"]
    for text in (
        "filter-mirror,id=f,netdev=n,outdev=c",
        "filter-buffer,id=g,netdev=n,interval=1000",
        "filter-redirector,id=h,netdev=n,outdev=d,queue=rx",
        "filter-redirector,id=i,netdev=n,indev=e",
    ):
        words += ["-object", text]
    common = "position=tail,status=on,insert=behind,netdev=n,queue"
    with Machine(*words) as machine:
        shown = machine.execute("human-monitor-command", command_line="info network")
        assert [line.strip() for line in shown.splitlines()[2:]] == [
            f"- f: type=filter-mirror,vnet_hdr_support=false,outdev=c,{common}=all",
            f"- g: type=filter-buffer,interval=1000,{common}=all",
            f"- h: type=filter-redirector,vnet_hdr_support=false,indev=,outdev=d,{common}=rx",
            f"- i: type=filter-redirector,vnet_hdr_support=false,indev=e,outdev=,{common}=all",
        ]
        machine.execute("qom-set", path="/objects/f", property="status", value="off")
        assert machine.execute("qom-get", path="/objects/f", property="status") == "off"
        machine.execute("object-del", id="f")
        assert machine.pc.chardev_set.find("c").frontend is None


@pytest.mark.parametrize(
    ("kind", "properties", "message"),
    [
        ("filter-mirror", {"outdev": "zz"}, "Device 'zz' not found"),
        ("filter-mirror", {"outdev": "c", "vnet_hdr_support": True}, "vnet_hdr_support is not supported by pyvm yet"),
        ("filter-redirector", {}, "filter redirector needs 'indev' or 'outdev' at least one property set"),
        ("filter-redirector", {"indev": "c", "outdev": "c"},
         "'indev' and 'outdev' could not be same for filter redirector"),
        ("filter-redirector", {"indev": "zz"}, "IN Device 'zz' not found"),
        ("filter-buffer", {"interval": 0}, "Property 'filter-buffer.interval' requires a positive value"),
        ("filter-replay", {}, "invalid object type: filter-replay"),
        ("filter-rewriter", {}, "invalid object type: filter-rewriter"),
    ],
)  # fmt: skip
def test_refused_filters(kind: str, properties: dict[str, Any], message: str) -> None:
    with Machine("-netdev", "user,id=n", "-chardev", "null,id=c") as machine:
        given = {"qom-type": kind, "id": "f", "netdev": "n", **properties}
        assert machine.ask("object-add", given)["error"]["desc"] == message
