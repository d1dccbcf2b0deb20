"""A viewer's conversation with a VNC display, by plain calls."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.vnc.des import respond
from pyvm.vnc.protocol import ProtocolError, Security
from pyvm.vnc.session import Session, SessionState
from tests.unit.vnc_support import (
    HEXTILE,
    RAW,
    ZLIB,
    ZRLE,
    Desk,
    Viewer,
    drain,
    extended_key,
    greet,
    key,
    point,
    request,
    running,
    set_encodings,
    set_format,
)

VERSION = b"RFB 003.008\n"
FAILED = b"\0\0\0\1\0\0\0\x16Authentication failed\0"
INIT = struct.pack(">HH", 70, 40) + bytes((32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0))
INIT += struct.pack(">I", 11) + b"QEMU (test)"
SIZE, MOTION, KEYS, LIGHTS, EXTENDED_SIZE, XVP = -223, -257, -258, -261, -308, -309


def asked(session: Session, data: bytes) -> bytes:
    session.receive(data)
    return drain(session)


# ---- Becoming acquainted


@pytest.mark.parametrize(
    ("version", "kinds", "result"),
    [
        (b"RFB 003.008\n", b"\1\1", b"\0\0\0\0"),
        (b"RFB 003.007\n", b"\1\1", b""),
        (b"RFB 003.003\n", b"\0\0\0\1", None),
        (b"RFB 003.005\n", b"\0\0\0\1", None),
        (b"RFB 003.004\n", b"\0\0\0\1", None),
    ],
)
def test_versions_without_password(version: bytes, kinds: bytes, result: bytes | None) -> None:
    desk = Desk()
    session = desk.session()
    assert drain(session) == VERSION
    assert asked(session, version) == kinds
    if result is not None:
        assert asked(session, b"\1") == result
    assert asked(session, b"\1") == INIT
    assert desk.admitted == [True]
    assert session.state is SessionState.RUNNING


@pytest.mark.parametrize("version", [b"RFB 003.006\n", b"RFB 003.009\n", b"RFB 004.008\n", b"RFB 999.999\n"])
def test_other_versions_are_refused(version: bytes) -> None:
    session = Desk().session()
    drain(session)
    assert asked(session, version) == bytes(4)
    assert session.over


@pytest.mark.parametrize("text", [b"xRFB 003.008", b"RFB 003,008\n", b"RFB 00x.008\n", b"RFB 003.008 "])
def test_what_is_no_version_ends_the_connection(text: bytes) -> None:
    session = Desk().session()
    with pytest.raises(ProtocolError):
        session.receive(text)


@pytest.mark.parametrize("version", [b"RFB 003.008\n", b"RFB 003.007\n", b"RFB 003.003\n"])
@pytest.mark.parametrize("right", [True, False])
def test_password(version: bytes, right: bool) -> None:
    desk = Desk(security=Security.VNC)
    desk.secret = b"sesame, and more"
    session = desk.session()
    drain(session)
    answer = asked(session, version)
    if version != b"RFB 003.003\n":
        assert answer == b"\1\2"
        challenge = asked(session, b"\2")
    else:
        assert answer[:4] == b"\0\0\0\2"
        challenge = answer[4:]
    assert len(challenge) == 16
    answer = asked(session, respond(b"sesame, " if right else b"sesame", challenge))
    if right:
        assert answer == bytes(4)
        assert asked(session, b"\0") == INIT
        assert desk.admitted == [False]
    else:
        assert answer == (FAILED if version == b"RFB 003.008\n" else FAILED[:4])
        assert session.over
        assert asked(session, b"\1" * 100) == b""
        assert desk.admitted == []


def test_challenges_differ_and_without_a_password_nobody_gets_in() -> None:
    challenges = set()
    for _ in range(3):
        desk = Desk(security=Security.VNC)
        session = desk.session()
        drain(session)
        asked(session, VERSION)
        challenge = asked(session, b"\2")
        challenges.add(challenge)
        assert asked(session, respond(b"", challenge)) == FAILED
    assert len(challenges) == 3


def test_another_kind_of_security_than_the_one_offered_is_refused() -> None:
    for security, choice in ((Security.VNC, b"\1"), (Security.NONE, b"\2"), (Security.NONE, b"\0")):
        session = Desk(security=security).session()
        drain(session)
        asked(session, VERSION)
        assert asked(session, choice) == FAILED
        assert session.over


def test_who_is_trusted_needs_no_password() -> None:
    session = Desk(security=Security.VNC).session(trusted=True)
    assert greet(session) == INIT


def test_who_is_not_welcome_hears_nothing() -> None:
    desk = Desk()
    desk.welcome = False
    session = desk.session()
    assert greet(session) == b""
    assert session.over


def test_messages_may_come_byte_by_byte() -> None:
    session, seen = Desk().session(), b""
    for byte in VERSION + b"\1\1" + set_encodings(RAW) + request(0, 0, 70, 40):
        session.receive(bytes((byte,)))
        seen += drain(session)
    session.serve()
    viewer = Viewer(70, 40)
    viewer.take(drain(session))
    assert viewer.updates == 1


# ---- Updates


@pytest.mark.parametrize("encoding", [RAW, HEXTILE, ZLIB, ZRLE])
def test_an_update_answers_a_request(encoding: int) -> None:
    desk = Desk()
    image = np.random.default_rng(1).integers(0, 1 << 24, (40, 70))
    session = running(desk, (77, encoding, RAW))
    desk.paint(session, image)
    viewer = Viewer(70, 40)
    session.serve()
    assert drain(session) == b""
    session.receive(request(0, 0, 70, 40))
    assert session.wants_update
    assert drain(session) == b""  # not before the screen was looked at
    session.serve()
    viewer.take(drain(session))
    assert not session.wants_update
    assert np.array_equal(viewer.image, image)
    # Nothing new: the next one waits.
    session.receive(request(0, 0, 70, 40, incremental=True))
    session.serve()
    assert drain(session) == b""
    assert session.wants_update
    image = image.copy()
    image[20, 69] ^= 1
    desk.paint(session, image)
    session.serve()
    before = viewer.rectangles
    viewer.take(drain(session))
    assert viewer.rectangles == before + 1
    assert np.array_equal(viewer.image, image)


def test_only_what_changed_is_sent() -> None:
    desk = Desk(320, 160)
    session = running(desk)
    session.receive(request(0, 0, 320, 160))
    session.serve()
    viewer = Viewer(320, 160)
    viewer.take(drain(session))
    image = np.zeros((160, 320), np.uint32)
    image[0, 0] = image[159, 319] = 5
    desk.paint(session, image)
    session.receive(request(0, 0, 320, 160, incremental=True))
    session.serve()
    data = drain(session)
    assert len(data) == 4 + 2 * (12 + 16 * 32 * 4)
    viewer.take(data)
    assert np.array_equal(viewer.image, image)


def test_what_changes_outside_of_the_request_waits_for_one() -> None:
    desk = Desk(320, 160)
    session = running(desk)
    session.receive(request(0, 0, 320, 160))
    session.serve()
    drain(session)
    image = np.zeros((160, 320), np.uint32)
    image[100, 200] = 5
    desk.paint(session, image)
    session.receive(request(0, 0, 64, 64, incremental=True))
    session.serve()
    assert drain(session) == b""
    session.receive(request(200, 100, 1, 1, incremental=True))
    session.serve()
    viewer = Viewer(320, 160)
    viewer.take(drain(session))
    assert np.array_equal(viewer.image, image)


@pytest.mark.parametrize("area", [(0, 0, 0, 0), (70, 40, 5, 5), (65535, 65535, 65535, 65535), (5, 5, 0, 9)])
def test_a_request_for_nothing_is_answered_with_nothing(area: tuple[int, int, int, int]) -> None:
    session = running(Desk())
    session.receive(request(*area, incremental=True))
    session.serve()
    assert drain(session) == b""
    session = running(Desk())
    session.receive(request(*area))
    session.serve()
    assert drain(session) == bytes(4)


def test_a_part_of_the_screen_again() -> None:
    desk = Desk()
    session = running(desk)
    image = np.arange(70 * 40).reshape(40, 70)
    desk.paint(session, image)
    session.receive(request(3, 5, 7, 9))
    session.serve()
    viewer = Viewer(70, 40)
    viewer.take(drain(session))
    assert np.array_equal(viewer.image[5:14, 3:10], image[5:14, 3:10])
    session.receive(request(60, 30, 65535, 65535))
    session.serve()
    viewer.take(drain(session))
    assert np.array_equal(viewer.image[30:, 60:], image[30:, 60:])


def test_large_updates_come_in_pieces_of_one_picture() -> None:
    desk = Desk(800, 600)
    session = running(desk, (RAW,))
    image = np.random.default_rng(2).integers(0, 1 << 24, (600, 800))
    desk.paint(session, image)
    session.receive(request(0, 0, 800, 600))
    session.serve()
    pieces = [session.output()]
    desk.paint(session, np.zeros((600, 800)))  # while it is being sent
    session.receive(set_encodings(ZRLE) + set_format(8, 8, most=(7, 7, 3), shifts=(0, 3, 6)))
    pieces += iter(session.output, b"")
    assert max(map(len, pieces)) < 140_000
    viewer = Viewer(800, 600)
    viewer.take(b"".join(pieces))
    assert np.array_equal(viewer.image, image)
    session.receive(request(0, 0, 800, 600, incremental=True))
    session.serve()
    viewer = Viewer(800, 600, "u1", None)
    viewer.image[:] = 1
    viewer.take(drain(session))
    assert not viewer.image.any()


def test_a_viewer_that_asks_without_reading_costs_nothing() -> None:
    desk = Desk(800, 600)
    session = running(desk)
    for _ in range(50):
        session.receive(request(0, 0, 800, 600) * 20)
        session.receive(set_format(8, 8, true=0) * 20)
        session.receive(set_encodings(RAW, KEYS, MOTION, EXTENDED_SIZE, XVP) * 20)
        session.serve()
    total = drain(session)
    assert len(total) < 2 * 800 * 600
    assert session.over is False


# ---- Formats, sizes and what else is told


def test_numbers_of_colours() -> None:
    desk = Desk()
    session = running(desk)
    desk.paint(session, np.full((40, 70), 0xFFFFFF))
    session.receive(set_format(8, 8, true=0) + request(0, 0, 70, 40))
    viewer = Viewer(70, 40, "u1", None)
    viewer.take(drain(session))
    assert viewer.colours[255] == (65535, 65535, 65535)
    session.serve()
    viewer.take(drain(session))
    assert (viewer.image == 255).all()


def test_another_format_makes_all_new() -> None:
    desk = Desk()
    session = running(desk)
    session.receive(request(0, 0, 70, 40))
    session.serve()
    drain(session)
    session.receive(set_format(16, 16, 1, most=(31, 63, 31), shifts=(11, 5, 0)))
    session.receive(request(0, 0, 70, 40, incremental=True))
    session.serve()
    assert len(drain(session)) > 70 * 40 * 2
    with pytest.raises(ProtocolError):
        session.receive(set_format(24, 24))


@pytest.mark.parametrize("encoding", [SIZE, EXTENDED_SIZE])
def test_another_size(encoding: int) -> None:
    desk = Desk()
    session = running(desk, (RAW, encoding))
    viewer = Viewer(70, 40)
    viewer.take(drain(session))
    session.receive(request(0, 0, 70, 40))
    session.serve()
    viewer.take(drain(session))
    viewer.notices.clear()
    image = np.random.default_rng(3).integers(0, 1 << 24, (100, 50))
    desk.paint(session, image)
    viewer.take(drain(session))
    assert viewer.notices == [(0, 0, 50, 100, encoding)]
    session.receive(request(0, 0, 50, 100, incremental=True))
    session.serve()
    viewer.take(drain(session))
    assert np.array_equal(viewer.image, image)


def test_another_size_for_a_viewer_that_cannot_hear_of_it() -> None:
    desk = Desk()
    session = running(desk)
    viewer = Viewer(70, 40)
    image = np.random.default_rng(3).integers(1, 1 << 24, (30, 90))
    desk.paint(session, image)
    session.receive(request(0, 0, 70, 40))
    session.serve()
    viewer.take(drain(session))
    assert np.array_equal(viewer.image[:30], image[:, :70])
    assert not viewer.image[30:].any()
    image = image.copy()
    image[7, 7] ^= 3
    desk.paint(session, image)
    session.receive(request(0, 0, 70, 40, incremental=True))
    session.serve()
    viewer.take(drain(session))
    assert np.array_equal(viewer.image[:30], image[:, :70])


def test_what_is_told_of_extensions() -> None:
    desk = Desk()
    desk.power_control = True
    session = desk.session()
    greet(session)
    viewer = Viewer(70, 40)
    viewer.take(asked(session, set_encodings(RAW, KEYS, MOTION, EXTENDED_SIZE, XVP)))
    assert sorted(viewer.notices) == [(0, 0, 70, 40, KEYS), (0, 0, 70, 40, MOTION)]
    assert viewer.power == [1]
    viewer.notices.clear()
    viewer.take(asked(session, request(0, 0, 1, 1)))
    assert viewer.notices == [(0, 0, 70, 40, EXTENDED_SIZE)]
    viewer.notices.clear()
    viewer.take(asked(session, struct.pack(">BxHHBxIHHHHI", 251, 800, 600, 1, 0, 0, 0, 800, 600, 0)))
    assert viewer.notices == [(1, 3, 70, 40, EXTENDED_SIZE)]
    viewer.notices.clear()
    session.pointer_changed(True)
    viewer.take(drain(session))
    session.pointer_changed(True)
    viewer.take(drain(session))
    assert viewer.notices == [(1, 0, 70, 40, MOTION)]


def test_lights() -> None:
    desk = Desk()
    desk.locks.lights(2)
    session = desk.session()
    greet(session)
    viewer = Viewer(70, 40)
    viewer.take(asked(session, set_encodings(RAW)))
    session.lights_changed()
    assert drain(session) == b""
    viewer.take(asked(session, set_encodings(RAW, LIGHTS)))
    assert viewer.notices == [(0, 0, 1, 1, LIGHTS)]
    assert viewer.lights == 2
    desk.locks.lights(5)
    session.lights_changed()
    viewer.take(drain(session))
    assert viewer.lights == 5
    # A viewer that sees the lights looks after lock keys itself.
    session.receive(key(ord("a"), True))
    assert desk.taker.take() == ["key qcode a, down 1", "sync"]


def test_power_control() -> None:
    desk = Desk()
    session = running(desk, (XVP,))
    assert drain(session) == b""
    with pytest.raises(ProtocolError):
        session.receive(struct.pack(">BxBB", 250, 1, 2))
    desk.power_control = True
    session = running(desk, (XVP,))
    assert drain(session) == b"\xfa\0\1\1"
    assert asked(session, struct.pack(">BxBB", 250, 1, 2) + struct.pack(">BxBB", 250, 1, 4)) == b""
    assert asked(session, struct.pack(">BxBB", 250, 1, 3)) == b"\xfa\0\1\0"
    assert asked(session, struct.pack(">BxBB", 250, 9, 2)) == b"\xfa\0\1\0"
    assert desk.powers == [2, 4, 3]


# ---- Input


def test_keys_and_pointer() -> None:
    desk = Desk()
    session = running(desk)
    session.receive(key(ord("a"), True) + key(ord("a"), False) + extended_key(0, 0x1C, True))
    assert desk.taker.take() == [
        *("key qcode a, down 1", "sync", "key qcode a, down 0", "sync", "key qcode ret, down 1", "sync")
    ]
    session.receive(point(0, 10, 10) + point(1, 13, 8))
    assert desk.taker.take() == ["sync", "button left, down 1", "axis x, value 3", "axis y, value -2", "sync"]
    assert desk.touches == 5


def test_texts_for_a_clipboard_are_skipped() -> None:
    desk = Desk()
    session = running(desk)
    text = struct.pack(">B3xI", 6, 300) + b"\4" * 300
    for size in (1, 7, 400):
        data = text + key(ord("b"), True)
        for start in range(0, len(data), size):
            session.receive(data[start : start + size])
        assert desk.taker.take() == ["key qcode b, down 1", "sync"]
    session.receive(struct.pack(">B3xI", 6, 1 << 20))
    for _ in range(16):
        session.receive(bytes(1 << 16))
        assert len(session._input) == 0
    session.receive(key(ord("c"), True))
    assert desk.taker.take() == ["key qcode c, down 1", "sync"]
    for length in ((1 << 20) + 1, -5, -(1 << 31)):
        with pytest.raises(ProtocolError):
            running(desk).receive(struct.pack(">B3xi", 6, length))


@pytest.mark.parametrize("data", [b"\x01", b"\x07", b"\xfe", b"\xff\x01", b"\xff\xff"])
def test_unknown_messages_end_the_connection(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        running(Desk()).receive(data)


MESSAGES = st.one_of(
    st.binary(max_size=40),
    st.builds(request, *[st.integers(0, 65535)] * 4, incremental=st.booleans()),
    st.builds(key, st.integers(0, (1 << 32) - 1), st.booleans()),
    st.builds(extended_key, st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.booleans()),
    st.builds(point, st.integers(0, 255), st.integers(0, 65535), st.integers(0, 65535)),
    st.lists(
        st.sampled_from([RAW, HEXTILE, ZLIB, ZRLE, SIZE, MOTION, KEYS, LIGHTS, EXTENDED_SIZE, XVP, -256, -247, 7])
    ).map(lambda numbers: set_encodings(*numbers)),
    st.sampled_from([set_format(8, 8, true=0), set_format(16, 16, 1, most=(31, 63, 31), shifts=(11, 5, 0))]),
    st.integers(0, 30).map(lambda length: struct.pack(">B3xI", 6, length) + bytes(length)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(MESSAGES, st.booleans()), max_size=12), st.booleans())
def test_hostile_viewers(messages: list[tuple[bytes, bool]], acquainted: bool) -> None:
    desk = Desk()
    desk.power_control = True
    session = desk.session()
    if acquainted:
        greet(session)
    try:
        for number, (data, reads) in enumerate(messages):
            session.receive(data)
            if number % 3 == 2:
                desk.paint(session, np.full((40 + number, 70), number))
            session.serve()
            if reads:
                drain(session)
    except ProtocolError:
        pass
    assert len(drain(session)) < 200_000
    session.keyboard.lift_all()
    session.pointer.lift_all()
