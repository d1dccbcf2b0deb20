"""Back ends over files, FIFOs, pseudo-terminals, serial lines, datagrams and memory."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.base import ChardevError, ChardevEvent, LineParameters
from pyvm.chardev.file import FileChardev, PipeChardev
from pyvm.chardev.null import NullChardev
from pyvm.chardev.options import UdpOptions
from pyvm.chardev.pty import PtyChardev
from pyvm.chardev.ringbuf import MAX_SIZE, RingbufChardev
from pyvm.chardev.serial import SerialChardev, nearest_speed
from pyvm.chardev.udp import MAX_DATAGRAM, UdpChardev
from pyvm.mainloop import MainLoop
from tests.unit.chardev_support import Recorder, is_quiet, run_until, running_loop, settle

OPENED, CLOSED = ChardevEvent.OPENED, ChardevEvent.CLOSED


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    with running_loop() as made:
        yield made


# file


def test_file_is_truncated_or_appended_to(loop: MainLoop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old ")
    for append, expected in ((True, b"old new"), (False, b"new")):
        device = FileChardev("f", loop, str(path), append=append)
        front = Recorder().attach(device)
        assert front.log == [OPENED]
        front.send(b"new")
        device.close()
        assert path.read_bytes() == expected
        assert device.filename == "file"
        assert device.write(b"late") == 4


def test_file_with_input(loop: MainLoop, tmp_path: Path) -> None:
    source = tmp_path / "in"
    content = os.urandom(300_000)
    source.write_bytes(content)
    device = FileChardev("f", loop, str(tmp_path / "out"), input_path=str(source))
    front = Recorder(room=10).attach(device)
    run_until(loop, lambda: len(front.data) == 10)
    settle(loop)
    front.grant(1 << 30)
    front.grant(0)
    run_until(loop, lambda: CLOSED in front.log)
    assert front.log == [OPENED, content, CLOSED]
    front.send(b"still writes")
    device.close()
    assert (tmp_path / "out").read_bytes() == b"still writes"


def test_file_errors(loop: MainLoop, tmp_path: Path) -> None:
    with pytest.raises(ChardevError, match=r"^Could not open '/nonexist/f': No such file or directory$"):
        FileChardev("f", loop, "/nonexist/f")
    with pytest.raises(ChardevError, match=r"^Could not open '': No such file or directory$"):
        FileChardev("f", loop, "")
    with pytest.raises(ChardevError, match="Invalid argument"):
        FileChardev("f", loop, "a\0b")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ChardevError, match=r"^Could not open '/nonexist/i'"):
        FileChardev("f", loop, str(tmp_path / "out"), input_path="/nonexist/i")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_told_once(loop: MainLoop, capsys: pytest.CaptureFixture[str]) -> None:
    device = FileChardev("f", loop, "/dev/full")
    front = Recorder().attach(device)
    for _ in range(3):
        front.send(b"x")
    assert not front.waiting, "output to nowhere does not hold the guest"
    assert capsys.readouterr().err == "pyvm: chardev f: output to '/dev/full' is lost: No space left on device\n"
    device.close()


# pipe


@pytest.fixture
def fifos(tmp_path: Path) -> str:
    for suffix in (".in", ".out"):
        os.mkfifo(tmp_path / f"p{suffix}")
    return str(tmp_path / "p")


def test_pipe_pair(loop: MainLoop, fifos: str) -> None:
    device = PipeChardev("p", loop, fifos)
    front = Recorder().attach(device)
    for number in range(3):  # the writer comes and goes; nobody sees an end of file
        with open(f"{fifos}.in", "wb", buffering=0) as writer:
            writer.write(b"in %d." % number)
        run_until(loop, lambda number=number: front.data.endswith(b"in %d." % number))
    front.send(b"before anybody reads")
    with open(f"{fifos}.out", "rb", buffering=0) as reader:
        assert reader.read(100) == b"before anybody reads"
    assert front.log == [OPENED, b"in 0.in 1.in 2."]
    device.close()


def test_pipe_holds_output_back(loop: MainLoop, fifos: str) -> None:
    device = PipeChardev("p", loop, fifos)
    front = Recorder().attach(device)
    sent = random.Random(1).randbytes(500_000)
    front.send(sent)
    assert front.waiting
    assert is_quiet(loop)
    result: list[bytes] = []

    def read() -> None:
        with open(f"{fifos}.out", "rb") as reader:
            result.append(reader.read(len(sent)))

    thread = threading.Thread(target=read)
    thread.start()
    run_until(loop, lambda: not thread.is_alive())
    thread.join()
    assert result == [sent]
    device.close()


def test_one_fifo_for_both_directions(loop: MainLoop, tmp_path: Path) -> None:
    path = str(tmp_path / "one")
    os.mkfifo(path)
    device = PipeChardev("p", loop, path)
    front = Recorder().attach(device)
    front.send(b"round")
    run_until(loop, lambda: front.data == b"round")
    assert device.filename == "pipe"
    device.close()


def test_pipe_errors(loop: MainLoop, tmp_path: Path) -> None:
    with pytest.raises(ChardevError, match=r"^Could not open '/nonexist': No such file or directory$"):
        PipeChardev("p", loop, "/nonexist")
    with pytest.raises(ChardevError, match=rf"^Could not open '{tmp_path}': Is a directory$"):
        PipeChardev("p", loop, str(tmp_path))


# pty


@pytest.fixture
def pty(loop: MainLoop, capsys: pytest.CaptureFixture[str]) -> Iterator[PtyChardev]:
    device = PtyChardev("serial0", loop)
    assert capsys.readouterr().out == f"char device redirected to {device.path} (label serial0)\n"
    yield device
    device.close()


@contextlib.contextmanager
def opened_slave(device: PtyChardev) -> Iterator[int]:
    fd = os.open(device.path, os.O_RDWR | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_pty_follows_who_has_it_open(loop: MainLoop, pty: PtyChardev) -> None:
    front = Recorder().attach(pty)
    assert front.log == []
    assert pty.filename == f"pty:{pty.path}"
    for _ in range(2):
        with opened_slave(pty) as slave:
            run_until(loop, lambda: pty.connected)
            os.write(slave, b"typed\x03\r")
            run_until(loop, lambda: front.data.endswith(b"typed\x03\r"))
            front.send(b"shown\n")
            assert os.read(slave, 100) == b"shown\n"
        run_until(loop, lambda: not pty.connected)
    assert front.log == [OPENED, b"typed\x03\r", CLOSED] * 2
    assert is_quiet(loop)


def test_pty_is_raw(pty: PtyChardev) -> None:
    with opened_slave(pty) as slave:
        _, output, _, local, *_ = termios.tcgetattr(slave)
        assert not output & termios.OPOST
        assert not local & (termios.ECHO | termios.ICANON | termios.ISIG)


def test_pty_hears_who_came_and_went_between_two_looks(loop: MainLoop, pty: PtyChardev) -> None:
    front = Recorder().attach(pty)
    with opened_slave(pty) as slave:
        os.write(slave, b"quick")
    run_until(loop, lambda: CLOSED in front.log)
    assert front.log == [OPENED, b"quick", CLOSED]


def test_pty_output_without_anybody_is_dropped(loop: MainLoop, pty: PtyChardev) -> None:
    front = Recorder().attach(pty)
    front.send(b"nobody" * 100_000)
    assert not front.waiting
    with opened_slave(pty) as slave:
        front.send(b"somebody")  # before the next look
        assert os.read(slave, 100) == b"somebody"


def test_pty_output_that_waits_is_dropped_when_the_last_leaves(loop: MainLoop, pty: PtyChardev) -> None:
    """Also while the front end takes no input, so that the end of input is not seen."""
    front = Recorder(room=0).attach(pty)
    with opened_slave(pty) as slave:
        run_until(loop, lambda: pty.connected)
        os.write(slave, b"unread")
        front.send(b"x" * 1_000_000)
        assert front.waiting
    run_until(loop, lambda: not front.waiting)
    assert is_quiet(loop)
    front.grant(100)
    run_until(loop, lambda: CLOSED in front.log)
    assert front.log == [OPENED, b"unread", CLOSED]


def test_pty_moves_a_lot(loop: MainLoop, pty: PtyChardev) -> None:
    front = Recorder().attach(pty)
    sent = random.Random(2).randbytes(200_000)
    got = bytearray()
    with opened_slave(pty) as slave:
        run_until(loop, lambda: pty.connected)

        def peer() -> None:
            left = memoryview(sent)
            os.set_blocking(slave, False)
            while len(got) < len(sent) or left:
                readable, writable, _ = select.select([slave], [slave] if left else [], [], 30)
                # Linux reports a terminal as ready for what it is about to have.
                if readable:
                    with contextlib.suppress(BlockingIOError):
                        got.extend(os.read(slave, 65536))
                if writable:
                    with contextlib.suppress(BlockingIOError):
                        left = left[os.write(slave, left[:4096]) :]

        thread = threading.Thread(target=peer)
        thread.start()
        loop.call_soon(front.send, sent)
        run_until(loop, lambda: not thread.is_alive() and len(front.data) == len(sent))
        thread.join()
    assert got == front.data == sent


# serial


def test_serial_line_settings_go_through(loop: MainLoop) -> None:
    master, slave = os.openpty()
    path = os.ttyname(slave)
    before = termios.tcgetattr(slave)
    device = SerialChardev("t", loop, path)
    front = Recorder().attach(device)
    assert device.filename == "serial"
    assert termios.tcgetattr(slave)[4] == termios.B115200
    device.set_line_parameters(LineParameters(9615, 7, "E", 2))
    control, speed = (termios.tcgetattr(slave)[index] for index in (2, 4))
    assert speed == termios.B9600
    assert control & termios.CSTOPB
    os.write(master, b"in\r")
    run_until(loop, lambda: front.data == b"in\r")
    front.send(b"out\n")
    assert os.read(master, 100) == b"out\n"
    device.set_break(True)
    device.set_break(False)
    device.set_modem_control(dtr=True, rts=False)
    assert device.modem_lines() is None, "a pseudo-terminal has none"
    device.set_line_parameters(LineParameters(0))
    device.close()
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def test_serial_errors_and_speeds(loop: MainLoop) -> None:
    with pytest.raises(ChardevError, match=r"^Could not open '/dev/nonexist': No such file or directory$"):
        SerialChardev("t", loop, "/dev/nonexist")
    device = SerialChardev("t", loop, "/dev/null")
    front = Recorder().attach(device)
    front.send(b"x")
    run_until(loop, lambda: CLOSED in front.log)
    device.close()
    assert nearest_speed(1) == termios.B50
    assert nearest_speed(115384) == termios.B115200
    assert nearest_speed(10**9) == max(
        (getattr(termios, name) for name in dir(termios) if name[0] == "B" and name[1:].isdigit()),
    )


# udp


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(60)
        yield made


def udp_to(loop: MainLoop, peer: socket.socket) -> UdpChardev:
    return UdpChardev(UdpOptions(id="u", host="127.0.0.1", port=str(peer.getsockname()[1])), loop)


def test_udp_both_ways(loop: MainLoop, peer: socket.socket) -> None:
    device = udp_to(loop, peer)
    front = Recorder().attach(device)
    assert front.log == [OPENED]
    front.send(b"one")
    data, source = peer.recvfrom(100)
    assert data == b"one"
    peer.sendto(b"", source)
    peer.sendto(b"two", source)
    run_until(loop, lambda: front.data == b"two")
    assert device.filename == "udp"
    device.close()


def test_udp_datagram_in_pieces(loop: MainLoop, peer: socket.socket) -> None:
    device = udp_to(loop, peer)
    front = Recorder(room=2).attach(device)
    front.send(b"x")
    _, source = peer.recvfrom(100)
    peer.sendto(b"abcdefg", source)
    peer.sendto(b"hij", source)
    run_until(loop, lambda: front.data == b"ab")
    assert is_quiet(loop)
    front.grant(3)
    run_until(loop, lambda: front.data == b"abcde")
    front.grant(100)
    run_until(loop, lambda: front.data == b"abcdefghij")
    device.close()


def test_udp_long_output_is_cut_into_datagrams(loop: MainLoop, peer: socket.socket) -> None:
    device = udp_to(loop, peer)
    Recorder().attach(device)
    sent = bytes(MAX_DATAGRAM + 5)
    assert device.write(sent) == len(sent)
    assert [len(peer.recv(1 << 17)) for _ in range(2)] == [MAX_DATAGRAM, 5]
    device.close()


def test_udp_survives_a_peer_that_is_not_there(loop: MainLoop, peer: socket.socket) -> None:
    device = udp_to(loop, peer)
    front = Recorder().attach(device)
    address = peer.getsockname()
    peer.close()
    for _ in range(5):
        front.send(b"nobody")
        settle(loop)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.settimeout(60)
        front.send(b"back")
        data, source = again.recvfrom(100)
        assert data == b"back"
        again.sendto(b"yes", source)
        run_until(loop, lambda: front.data == b"yes")
    assert front.events() == [OPENED]
    device.close()


def test_udp_local_address(loop: MainLoop, peer: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    remote = str(peer.getsockname()[1])
    options = UdpOptions(id="u", host="127.0.0.1", port=remote, local_host="127.0.0.1", local_port=str(port))
    device = UdpChardev(options, loop)
    device.write(b"x")
    assert peer.recvfrom(10) == (b"x", ("127.0.0.1", port))
    device.close()
    with pytest.raises(ChardevError, match=r"^address resolution failed for localhost:x: "):
        UdpChardev(UdpOptions(id="u", port="x"), loop)
    with pytest.raises(ChardevError, match=r"^address resolution failed for :y: "):
        UdpChardev(UdpOptions(id="u", port="1", local_port="y"), loop)


# memory


@settings(max_examples=200)
@given(
    st.integers(0, 6).map(lambda bits: 1 << bits),
    st.lists(st.one_of(st.binary(max_size=100), st.integers(-1, 100))),
)
def test_ringbuf_keeps_the_newest(size: int, steps: list[bytes | int]) -> None:
    device = RingbufChardev("r", size)
    expected = b""
    for step in steps:
        if isinstance(step, bytes):
            assert device.write(memoryview(step)) == len(step)
            expected = (expected + step)[-size:]
        else:
            length = max(step, 0)
            assert device.read(step) == expected[:length]
            expected = expected[length:]
        assert device.count == len(expected)


def test_ringbuf_sizes_and_names() -> None:
    for size in (0, -1, 3, 1000):
        with pytest.raises(ChardevError, match=r"^size of ringbuf chardev must be power of two$"):
            RingbufChardev("r", size)
    with pytest.raises(ChardevError, match="must be at most"):
        RingbufChardev("r", MAX_SIZE * 2)
    assert RingbufChardev("r", 2).filename == "ringbuf"
    assert RingbufChardev("r", 2, "memory").filename == "memory"


def test_null_and_vc() -> None:
    for kind in ("null", "vc"):
        device = NullChardev("n", kind)
        front = Recorder().attach(device)
        assert device.write(b"gone") == 4
        assert front.log == [OPENED]
        assert device.filename == kind
        assert device.frontend_open
        device.detach()
        assert not device.frontend_open
        device.close()
