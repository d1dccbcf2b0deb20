"""The NBD server beside qemu-nbd: the same bytes to both, and other programs as clients of ours."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.certificates import Authority
from tests.unit.nbd_server_rig import (
    CACHE,
    DF,
    FAST_ZERO,
    FLUSH,
    FUA,
    GO,
    INFO,
    LIST,
    LIST_META,
    NO_HOLE,
    READ,
    REQ_ONE,
    SET_META,
    STATUS,
    STRUCTURED,
    TRIM,
    WRITE,
    ZEROES,
    NbdClient,
    text,
    wait_until_listening,
)

pytestmark = pytest.mark.parity
QEMU = pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-nbd", "qemu-img", "qemu-io"))), reason="QEMU's image tools are not installed"
)
LIBNBD = pytest.mark.skipif(
    not all(map(shutil.which, ("nbdinfo", "nbdcopy"))), reason="libnbd's programs are not installed"
)
SIZE = 8 << 20
PROGRAMS = {"pyvm": [sys.executable, "-m", "pyvm.tools.nbd.cli"], "qemu": ["qemu-nbd"]}
CONTEXTS = ("base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b")


class Servers:
    """Servers of both kinds, each with a copy of the same images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, kind: str, *arguments: str) -> Path:
        """Start a server in its own copy of the folder; return its socket."""
        home = self.folder / kind
        if not home.exists():
            shutil.copytree(self.folder / "images", home)
        path = home / "s"
        path.unlink(missing_ok=True)
        process = subprocess.Popen([*PROGRAMS[kind], "-t", "-e", "0", "-k", str(path), *arguments], cwd=home)
        self.running.append(process)
        wait_until_listening(path, process)
        return path

    def stop(self) -> None:
        """End all servers, which write back what they have."""
        for process in self.running:
            process.terminate()
            process.wait(60)
        self.running.clear()


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    images = tmp_path / "images"
    images.mkdir()
    (images / "raw").write_bytes(b"raw data" * 65536 + bytes(SIZE - (512 << 10)))
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", str(SIZE), cwd=images)
    run("qemu-io", "-c", "write -P 1 0 1M", "-c", "write -P 2 4M 100k", "base", cwd=images)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", cwd=images)
    run("qemu-img", "bitmap", "--add", "top", "b", cwd=images)
    run("qemu-io", "-c", "write -P 3 512k 64k", "-c", "write -z 2M 64k", "top", cwd=images)
    made = Servers(tmp_path)
    yield made
    made.stop()


# ---- The same bytes to both


def handshake(client: NbdClient, export: str) -> list[Any]:
    """Ask for all that there is; return what was answered."""
    said: list[Any] = [client.greeting]
    name = text(export)
    asked = [
        (LIST, b""), (LIST, b"1"), (77, b"abc"), (5, b""), (5, b"1"),
        (SET_META, name + struct.pack(">I", 0)), (STRUCTURED, b"1"), (STRUCTURED, b""), (STRUCTURED, b""),
        (INFO, name + b"\0\0"), (INFO, name + struct.pack(">HHHH", 3, 1, 2, 3)), (INFO, text("zz") + b"\0\0"),
        (INFO, b""), (INFO, name), (INFO, struct.pack(">I", 99) + b"a"), (INFO, name + b"\0\1"),
        (GO, text("zz") + b"\0\0"), (GO, text("x" * 4097) + b"\0\0"),
    ]  # fmt: skip
    for queries in ((), ("base:",), ("qemu:",), ("qemu:dirty-bitmap:", "x"), CONTEXTS, ("base:allocatio", "")):
        for option in (LIST_META, SET_META):
            asked.append((option, name + struct.pack(">I", len(queries)) + b"".join(map(text, queries))))
    asked += [(LIST_META, text("zz") + bytes(4)), (SET_META, name + struct.pack(">I", 9))]
    for option, data in asked:
        answers = client.ask(option, data)
        # What errors say is for people.
        said.append((option, data, [(kind, b"" if kind & 1 << 31 else told) for kind, told in answers]))
    return said


@QEMU
@pytest.mark.parametrize("options", ["-f raw raw", "-r -x name -D text -A -B b -f qcow2 top"])
def test_handshakes(servers: Servers, options: str) -> None:
    export = "name" if "name" in options else ""
    said = {}
    for kind in PROGRAMS:
        with NbdClient(servers.start(kind, *options.split())) as client:
            said[kind] = handshake(client, export)
    assert len(said["pyvm"]) == len(said["qemu"])
    for ours, theirs in zip(said["pyvm"], said["qemu"], strict=True):
        assert ours == theirs


def requests() -> list[tuple[int, int, int, int]]:
    """Return requests of all kinds, sensible and not: command, offset, length, flags."""
    choose = random.Random(3)
    asked = [(READ, SIZE - 1, 2, 0), (WRITE, SIZE - 1, 2, 0), (77, 0, 0, 0), (READ, 1 << 63, 1, 0), (FLUSH, 0, 0, 0)]
    asked += [(READ, 0, 0, 0), (WRITE, 0, 0, 0), (TRIM, 0, 0, 0), (ZEROES, 0, 0, 0), (STATUS, 0, 0, 0)]
    for _ in range(150):
        command = choose.choice([READ, READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS, STATUS])
        flags = choose.choice([0, 0, 0, FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, FUA | NO_HOLE, 1 << 9])
        unit = choose.choice([1, 512, 4096, 65536])
        offset = choose.randrange(SIZE // unit) * unit
        length = choose.choice([1, 2, 16, 40]) * unit
        asked.append((command, offset, length, flags))
    return asked


def answers(client: NbdClient, asked: list[tuple[int, int, int, int]]) -> list[Any]:
    """Make all requests; return the errors, or the data and status."""
    said: list[Any] = []
    for command, offset, length, flags in asked:
        data = bytes([offset & 0xFF]) * length if command == WRITE else b""
        cookie = client.request(command, offset, length, flags, data)
        if client.receive_peek() == 0x67446698:
            error, answered, got = client.simple(length if command == READ else 0)
            said.append((command, offset, length, flags, _error(error), got))
        else:
            answered, chunks = client.chunks()
            said.append((command, offset, length, flags, normal(chunks)))
        assert answered == cookie
    return said


def _error(number: int) -> int:
    """Return an error; the specification wants EPERM and ENOSPC for some for which QEMU has EINVAL."""
    return 22 if number in (1, 28) else number


def normal(chunks: list[tuple[int, bytes]]) -> list[Any]:
    """Return chunks without the texts of errors, and data as it reads: what is told as a hole is a matter of taste."""
    found: list[Any] = []
    data: dict[int, bytes] = {}
    for kind, payload in chunks:
        if kind & 1 << 15:
            found.append((kind, _error(*struct.unpack(">I", payload[:4]))))
        elif kind == 1:
            data[struct.unpack(">Q", payload[:8])[0]] = payload[8:]
        elif kind == 2:
            start, count = struct.unpack(">QI", payload)
            data[start] = bytes(count)
        else:
            found.append((kind, payload))
    return [*found, b"".join(data[start] for start in sorted(data))]


@QEMU
@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("options", ["-f raw --discard=unmap raw", "-r -A -B b -f qcow2 top", "-f qcow2 -A top"])
def test_requests(servers: Servers, options: str, structured: bool) -> None:
    said = {}
    for kind in PROGRAMS:
        with NbdClient(servers.start(kind, *options.split())) as client:
            contexts = CONTEXTS if "-B" in options else CONTEXTS[: 2 if "-A" in options else 1]
            client.go("", structured=structured, contexts=contexts if structured else ())
            # To cache, QEMU changes an image even where it must not; what becomes a hole is a matter of taste.
            left_out = CACHE if "-r" in options else STATUS if "top" in options else None
            asked = [it for it in requests() if it[0] != left_out]
            said[kind] = answers(client, asked)
    for ours, theirs in zip(said["pyvm"], said["qemu"], strict=True):
        assert ours == theirs
    servers.stop()
    image = options.rpartition(" ")[2]
    paths = [str(servers.folder / kind / image) for kind in PROGRAMS]
    assert "Images are identical" in run("qemu-img", "compare", *paths)
    if image == "top":
        run("qemu-img", "check", paths[0])


# ---- Other programs


def uri(path: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={path}"


@QEMU
@LIBNBD
def test_what_nbdinfo_and_qemu_nbd_say(servers: Servers) -> None:
    told = {}
    for kind in PROGRAMS:
        path = servers.start(kind, *"-r -x name -D text -A -B b -f qcow2 top".split())
        listed = json.loads(run("nbdinfo", "--json", "--list", "--no-content", uri(path)))
        for export in listed["exports"]:
            del export["uri"]
        maps = [run("nbdinfo", f"--map={context}", uri(path, "name")) for context in CONTEXTS]
        told[kind] = (
            listed,
            maps,
            run("qemu-nbd", "-L", "-k", str(path)),
            run(*PROGRAMS["pyvm"], "-L", "-k", str(path)),
        )
    assert told["pyvm"] == told["qemu"]
    assert told["pyvm"][2] == told["pyvm"][3]


@QEMU
@LIBNBD
def test_nbdcopy_and_qemu_img_copy_to_and_from(servers: Servers) -> None:
    path = servers.start("pyvm", "-f", "qcow2", "top")
    copy, image = servers.folder / "copy", servers.folder / "image"
    run("nbdcopy", uri(path), str(copy))
    run("qemu-img", "convert", "-O", "qcow2", "-f", "raw", uri(path), str(image))
    data = random.Random(5).randbytes(1 << 20) + bytes(SIZE - (1 << 20))
    copy_of = servers.folder / "pyvm" / "top"
    servers.stop()
    for made in (copy, image):
        assert "Images are identical" in run("qemu-img", "compare", str(made), str(copy_of))
    path = servers.start("pyvm", "-f", "qcow2", "top")
    copy.write_bytes(data)
    run("nbdcopy", "--flush", str(copy), uri(path))
    assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(copy), uri(path))
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", str(image), uri(path))
    servers.stop()
    assert "Images are identical" in run("qemu-img", "compare", str(image), str(copy_of))
    run("qemu-img", "check", str(copy_of))


@QEMU
def test_qemu_comes_in_by_tls(servers: Servers, tmp_path: Path) -> None:
    authority = Authority()
    server = authority.issue(tmp_path / "server", "server", "server", ("localhost",))
    client = authority.issue(tmp_path / "client", "client", "client")
    for kind, peer in (("pyvm", "qemu-img"), ("qemu", "pyvm")):
        objects = f"tls-creds-x509,id=t,dir={server},endpoint=server"
        allowed = "authz-simple,id=z,identity=C=DE,,O=Tests\\,, Inc,,CN=client"
        secure = ["--object", objects, "--object", allowed, "--tls-creds", "t", "--tls-authz", "z"]
        path = servers.start(kind, *secure, "-f", "raw", "raw")
        objects = f"tls-creds-x509,id=t,dir={client},endpoint=client"
        where = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={path},file.tls-creds=t"
        where += ",file.tls-hostname=localhost"
        program = [sys.executable, "-m", "pyvm.tools.img.cli"] if peer == "pyvm" else [peer]
        said = run(*program, "info", "--output=json", "--object", objects, "--image-opts", where)
        assert json.loads(said)["virtual-size"] == SIZE
