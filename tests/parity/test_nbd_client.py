"""The NBD client against the servers of others: qemu-nbd, and nbdkit with odd and slow exports."""

from __future__ import annotations

import errno
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.block.drivers.nbd import NbdNode
from pyvm.block.drivers.nbd_stream import ServerAddress
from pyvm.block.errors import BlockError
from pyvm.block.open import open_image

pytestmark = pytest.mark.parity
QEMU = pytest.mark.skipif(
    not (shutil.which("qemu-nbd") and shutil.which("qemu-img")), reason="qemu-nbd is not installed"
)
NBDKIT = pytest.mark.skipif(shutil.which("nbdkit") is None, reason="nbdkit is not installed")
SIZE = 4 << 20


class Servers:
    """Starts servers on the socket ``s`` of a folder, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "s"
        self.running: list[subprocess.Popen[bytes]] = []

    def qemu(self, *arguments: str) -> None:
        """Start qemu-nbd; it is ready once the command that started it ends."""
        pid = self.folder / "pid"
        command = ["qemu-nbd", "-t", "-e", "8", "-k", str(self.path), "--fork", "--pid-file", str(pid), *arguments]
        subprocess.run(command, cwd=self.folder, check=True, timeout=60)
        self.pid = int(pid.read_text())

    def nbdkit(self, *arguments: str) -> None:
        """Start nbdkit on a listening socket that it is given."""
        listener = socket.socket(socket.AF_UNIX)
        self.path.unlink(missing_ok=True)
        listener.bind(str(self.path))
        listener.listen()
        process = subprocess.Popen(
            [
                # It expects its socket to be descriptor 3, which may be anything here.
                *("bash", "-c", 'exec 3<&"$0"; LISTEN_FDS=1 LISTEN_PID=$$ exec nbdkit -f "$@"', str(listener.fileno())),
                *arguments,
            ],
            cwd=self.folder,
            pass_fds=[listener.fileno()],
        )
        listener.close()
        self.running.append(process)

    def open(self, export: str = "", **more: Any) -> NbdNode:
        return NbdNode(ServerAddress(path=str(self.path)), export, unmap=True, **more)

    def stop(self) -> None:
        if hasattr(self, "pid"):
            process = os.pidfd_open(self.pid)
            os.kill(self.pid, signal.SIGKILL)
            # It is no child of ours, and holds its image until it is gone.
            assert select.select([process], [], [], 60)[0]
            os.close(process)
            del self.pid
        while self.running:
            process = self.running.pop()
            process.kill()
            process.wait(60)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    it = Servers(tmp_path)
    yield it
    it.stop()


def exercise(node: NbdNode, *, seed: int, count: int = 200) -> bytearray:
    """Do random things, and compare with what they should lead to; return that."""
    chance = random.Random(seed)
    wanted = node.read(0, node.length())
    for _ in range(count):
        offset = chance.randrange(len(wanted))
        length = min(chance.choice((1, 511, 512, 4096, 70_000, 1 << 20)), len(wanted) - offset)
        what = chance.randrange(5)
        if what < 2:
            assert node.read(offset, length) == wanted[offset : offset + length]
        elif what == 2:
            data = chance.randbytes(length)
            view = memoryview(data)
            node.writev(offset, [view[: length // 3], view[length // 3 :]])
            wanted[offset : offset + length] = data
        elif what == 3:
            node.write_zeroes(offset, length, chance.random() < 0.5)
            wanted[offset : offset + length] = bytes(length)
        else:
            node.flush()
    assert node.read(0, len(wanted)) == wanted
    return wanted


def check_status(node: NbdNode, wanted: bytearray) -> None:
    """What is said to be zeros must be zeros, and runs must cover everything."""
    offset = 0
    while offset < len(wanted):
        extent = node.block_status(offset, len(wanted) - offset)
        assert extent.length > 0
        if extent.zero:
            assert not any(wanted[offset : offset + extent.length])
        offset += extent.length


@QEMU
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_random_operations_on_qemu_nbd(servers: Servers, form: str) -> None:
    image = servers.folder / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(image), str(SIZE)], check=True, timeout=60)
    servers.qemu("-f", form, "-x", "disk", "--discard=unmap", "image")
    node = servers.open("disk")
    assert node.size == SIZE
    assert node._info.structured
    assert node._info.context is not None
    wanted = exercise(node, seed=1)
    check_status(node, wanted)
    node.discard(0, SIZE)
    node.write(0, bytes(wanted))
    node.flush()
    node.close()
    servers.stop()
    copy = servers.folder / "copy"
    copy.write_bytes(wanted)
    compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", form, str(copy), str(image)]
    subprocess.run(compare, check=True, timeout=60)


@QEMU
def test_errors_of_qemu_nbd(servers: Servers) -> None:
    (servers.folder / "image").write_bytes(bytes(4096))
    servers.qemu("-f", "raw", "-x", "disk", "-r", "image")
    with pytest.raises(BlockError) as caught:
        servers.open("other")
    assert str(caught.value) == "Requested export not available\nserver reported: export 'other' not present"
    with pytest.raises(BlockError, match="read-only"):
        servers.open("disk")
    node = servers.open("disk", auto_read_only=True)
    assert node.read(0, 4096) == bytes(4096)
    node.close()


@QEMU
def test_image_format_over_nbd(servers: Servers) -> None:
    image = servers.folder / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True, timeout=60)
    os.truncate(image, 2 << 20)
    servers.qemu("-f", "raw", "image.qcow2")
    node = open_image(f"nbd:unix:{servers.path}", format="qcow2")
    node.write(1000, b"hello" * 1000)
    node.flush()
    assert node.read(1000, 5000) == b"hello" * 1000
    node.release()
    servers.stop()
    command = ["qemu-io", "-f", "qcow2", str(image), "-c", "read -P 0x68 1000 1"]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    subprocess.run(["qemu-img", "check", "-q", str(image)], check=True, timeout=60)


@QEMU
def test_restart_of_qemu_nbd_is_not_noticed_with_a_delay(servers: Servers) -> None:
    (servers.folder / "image").write_bytes(bytes(SIZE))
    servers.qemu("-f", "raw", "image")
    node = servers.open(reconnect_delay=60)
    node.write(0, b"before")
    servers.stop()
    servers.path.unlink()
    servers.qemu("-f", "raw", "image")
    assert node.read(0, 6) == b"before"
    node.write(0, b"behind")
    node.close()
    servers.stop()
    assert (servers.folder / "image").read_bytes()[:6] == b"behind"


@QEMU
def test_pyvm_io_says_what_qemu_io_says(servers: Servers) -> None:
    (servers.folder / "image").write_bytes(b"x" * 65536 + bytes(65536))
    servers.qemu("-f", "raw", "-x", "disk", "image")
    name = f"nbd+unix:///disk?socket={servers.path}"
    for arguments in (
        ["-f", "raw", name, "-c", "info", "-c", "length", "-c", "map", "-c", "alloc 0 128k", "-c", "truncate 10"],
        ["-f", "raw", f"nbd+unix:///none?socket={servers.path}", "-c", "length"],
        ["-f", "raw", "nbd:unix:/nowhere", "-c", "length"],
        ["--image-opts", f"driver=nbd,server.type=unix,server.path={servers.path},export=disk", "-c", "length"],
    ):
        ours, theirs = (
            subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60, check=False)
            for program in ((sys.executable, "-m", "pyvm.tools.io.cli"), ("qemu-io",))
        )
        assert ours.stdout == theirs.stdout
        assert ours.stderr == theirs.stderr.replace("qemu-io:", "pyvm-io:")
        assert ours.returncode == theirs.returncode


@NBDKIT
@pytest.mark.parametrize("least", [1, 512, 65536])
def test_random_operations_on_nbdkit(servers: Servers, least: int) -> None:
    sizes = (f"blocksize-minimum={least}", "blocksize-preferred=65536", "blocksize-maximum=262144")
    servers.nbdkit("--filter=blocksize-policy", "memory", str(SIZE), *sizes, "blocksize-error-policy=error")
    node = servers.open()
    assert (node._info.min_block, node._info.max_block) == (least, 262144)
    wanted = exercise(node, seed=least)
    check_status(node, wanted)
    node.close()


@NBDKIT
@pytest.mark.parametrize(
    "options",
    [
        ("--no-sr",),
        ("-n",),
        ("--filter=nozero",),
        ("--filter=noextents",),
        ("--filter=fua", "fuamode=emulate"),
        ("--mask-handshake=0",),
        ("--mask-handshake=1",),
    ],
)
def test_servers_that_can_less(servers: Servers, options: tuple[str, ...]) -> None:
    more = [it for it in options if not it.startswith("-")]
    servers.nbdkit(*(it for it in options if it.startswith("-")), "memory", str(SIZE), *more)
    node = servers.open()
    check_status(node, exercise(node, seed=3, count=60))
    node.write_durable(0, [memoryview(b"x")])
    node.discard(0, 65536)
    node.close()


@NBDKIT
def test_oldstyle_server(servers: Servers) -> None:
    """Only reads and writes: nbdkit announces more with this handshake, and then refuses it."""
    servers.nbdkit("-o", "memory", str(SIZE))
    node = servers.open()
    assert node.size == SIZE
    node.write(1000, b"hello" * 1000)
    assert node.read(1000, 5001) == b"hello" * 1000 + b"\0"
    node.close()


@NBDKIT
def test_export_that_is_not_whole_sectors(servers: Servers) -> None:
    servers.nbdkit("memory", "1000001")
    node = servers.open()
    assert (node.size, node.length()) == (1_000_448, 1_000_001)
    check_status(node, exercise(node, seed=4, count=60))
    assert node.read(1_000_000, 448) == bytes(448)
    node.close()


@NBDKIT
@pytest.mark.parametrize(("name", "number"), [("EIO", errno.EIO), ("ENOSPC", errno.ENOSPC), ("EPERM", errno.EPERM)])
def test_errors_of_nbdkit(servers: Servers, name: str, number: int) -> None:
    servers.nbdkit("--filter=error", "memory", str(SIZE), f"error={name}", "error-pwrite-rate=1")
    node = servers.open()
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            node.write(0, b"x")
        assert caught.value.errno == number
        assert node.read(0, 1) == b"\0"
    node.close()


@NBDKIT
def test_holes_inside_of_reads(servers: Servers) -> None:
    servers.nbdkit("pattern", "1M")
    node = servers.open(read_only=True)
    data = node.read(0, 1 << 20)
    assert all(int.from_bytes(data[it : it + 8]) == it for it in range(0, 1 << 20, 4096))
    node.close()


@NBDKIT
def test_server_that_is_killed(servers: Servers) -> None:
    servers.nbdkit("memory", str(SIZE))
    node = servers.open()
    node.write(0, b"x")
    servers.stop()
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            node.read(0, 512)
    node.close()
