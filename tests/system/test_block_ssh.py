"""The SSH driver against OpenSSH's server, run without privileges on a port of its own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("asyncssh", reason="asyncssh, which the extra 'ssh' installs, is not there")

import asyncssh

from pyvm.block.drivers.ssh import SshNode
from pyvm.block.drivers.ssh_options import HostKeyCheck, RemoteFile, find_file, parse_filename
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.open import open_node

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
NO_CHECK = HostKeyCheck("none")
KNOWN_HOSTS = HostKeyCheck()
NO_SSHD = "sshd (Debian: openssh-server) is not installed"
CONTENT = os.urandom(100_001)

pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


class Server:
    """An sshd with keys of its own, for one user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        for name in ("host", "client"):
            self.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "client.pub", folder / "authorized_keys")
        self.path = folder / "disk.img"
        self.path.write_bytes(CONTENT)
        self.start()

    def run(self, *command: str) -> None:
        subprocess.run(command, check=True, timeout=60)

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            self.port = unused.getsockname()[1]
        config = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "yes",
            "PasswordAuthentication": "no",
            "Subsystem": "sftp internal-sftp",
        }
        text = "".join(f"{key} {value}\n" for key, value in config.items())
        (self.folder / "config").write_text(text)
        if os.getuid() == 0:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, self.user)
        assert SSHD is not None
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(self.folder / "config")],
            stderr=subprocess.PIPE,
            text=True,
            user=self.user if os.getuid() == 0 else None,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if "listening" not in line:
            self.stop()
            pytest.skip(f"sshd does not run here: {line.strip()}")

    def stop(self) -> None:
        for process in self.descendants(self.process.pid):
            with suppress(ProcessLookupError):  # it ends by itself when its client goes
                os.kill(process, signal.SIGKILL)
        self.process.kill()
        self.process.wait(60)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def descendants(self, process: int) -> Iterator[int]:
        """Yield the processes that serve connections."""
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
                yield from self.descendants(int(child))
                yield int(child)

    @property
    def host_key(self) -> str:
        return (self.folder / "host.pub").read_text()

    def file(self, check: HostKeyCheck = NO_CHECK, path: Path | None = None) -> RemoteFile:
        return RemoteFile("127.0.0.1", self.port, str(path or self.path), self.user, check)

    def login(self, **more: Any) -> dict[str, Any]:
        return {"client_keys": [str(self.folder / "client")], "agent_path": None, "config": [], **more}

    def open(self, check: HostKeyCheck = NO_CHECK, path: Path | None = None, **more: Any) -> SshNode:
        return SshNode(self.file(check, path), connect=self.login(), **more)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if SSHD is None:
        pytest.skip(NO_SSHD)
    with tempfile.TemporaryDirectory(prefix="pyvm-ssh-") as folder:
        os.chmod(folder, 0o755)
        it = Server(Path(folder))
        yield it
        it.stop()


@pytest.fixture
def node(server: Server) -> Iterator[SshNode]:
    server.path.write_bytes(CONTENT)
    it = server.open()
    yield it
    it.close()


def test_reading(node: SshNode, server: Server) -> None:
    assert (node.size, node.length()) == (100_352, len(CONTENT))
    assert node.read(0, node.size) == CONTENT + bytes(351)
    for offset, length in ((0, 1), (5, 70_000), (99_999, 353), (100_001, 10)):
        assert node.read(offset, length) == (CONTENT + bytes(351))[offset : offset + length]
    data = memoryview(bytearray(50_000))
    node.readv(1234, [data[:10], data[10:10], data[10:40_000], data[40_000:]])
    assert data == CONTENT[1234:51_234]
    assert node.filename == f"ssh://{server.user}@127.0.0.1:{server.port}{server.path}?host_key_check=no"


def test_writing(node: SshNode, server: Server) -> None:
    wanted = bytearray(CONTENT)
    for offset, length in ((0, 1), (5, 70_000), (4096, 4096)):
        data = os.urandom(length)
        view = memoryview(data)
        node.writev(offset, [view[: length // 3], view[length // 3 :]])
        wanted[offset : offset + length] = data
    node.write_zeroes(200, 3000, True)
    wanted[200:3200] = bytes(3000)
    node.flush()
    node.discard(0, 512)
    assert server.path.read_bytes() == wanted
    assert node.read(0, len(wanted)) == wanted


def test_transfers_of_several_pieces(server: Server) -> None:
    path = server.folder / "big"
    path.write_bytes(b"")
    shutil.chown(path, server.user)
    node = server.open(path=path)
    data = os.urandom((3 << 20) + 5)
    node.write(7, data)
    assert node.length() == len(data) + 7
    assert node.read(0, len(data) + 7) == bytes(7) + data
    node.close()
    assert path.read_bytes() == bytes(7) + data


def test_truncating(node: SshNode, server: Server) -> None:
    node.truncate(200_000)
    assert (node.size, node.length()) == (200_192, 200_000)
    assert server.path.read_bytes() == CONTENT + bytes(99_999)
    node.truncate(512)
    assert node.size == 512
    with pytest.raises(BlockError, match="Unsupported preallocation mode 'full'"):
        node.truncate(1024, preallocation="full")


def test_reading_only(server: Server) -> None:
    server.path.chmod(0o400)
    try:
        with pytest.raises(BlockError, match=f"failed to open remote file '{server.path}': Permission denied"):
            server.open()
        node = server.open(auto_read_only=True)
        assert node.read_only
        for change in (lambda: node.write(0, b"x"), lambda: node.truncate(0), lambda: node.write_zeroes(0, 512, False)):
            with pytest.raises(OSError, match="not permitted"):
                change()
        assert node.read(0, 1)
        node.close()
        server.open(read_only=True).close()
    finally:
        server.path.chmod(0o600)


def test_files_that_cannot_be_opened(server: Server) -> None:
    with pytest.raises(BlockError, match="No such file or directory"):
        server.open(path=server.folder / "none")
    with pytest.raises(BlockError, match="failed to open remote file"):
        server.open(path=server.folder, read_only=True)


def test_connection_that_breaks(server: Server, tmp_path: Path) -> None:
    node = server.open()
    server.stop()
    for change in (lambda: node.read(0, 512), lambda: node.write(0, b"x"), node.flush, lambda: node.truncate(512)):
        with pytest.raises(OSError, match="Input/output error"):
            change()
    node.close()
    with pytest.raises(BlockError, match=f"Failed to connect to '127.0.0.1:{server.port}': Connection refused"):
        server.open()
    server.start()


# ---- Host keys


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_hash_of_the_host_key(server: Server, kind: str) -> None:
    digest = hashlib.new(kind, b64decode(server.host_key.split()[1])).hexdigest()
    own = {"host": "h", "path": "p", "host_key_check": f"{kind}:{digest.upper()}"}
    node = server.open(find_file(own).check)
    assert node.read(0, 512)
    node.close()
    with pytest.raises(BlockError, match="remote host key fingerprint does not match host_key_check"):
        server.open(HostKeyCheck("hash", kind, "0" + digest[1:] if digest[0] != "0" else "1" + digest[1:]))


def test_known_hosts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BlockError, match="is not the one in known_hosts"):
        server.open(KNOWN_HOSTS)
    (tmp_path / ".ssh").mkdir()
    known = tmp_path / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}")
    server.open(KNOWN_HOSTS).close()
    with pytest.raises(BlockError, match="does not match host_key_check"):
        server.open(HostKeyCheck("hash", "sha256", "00"))
    other = (server.folder / "client.pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(BlockError, match="is not the one in known_hosts"):
        server.open(KNOWN_HOSTS)


def test_stranger(server: Server, tmp_path: Path) -> None:
    server.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key"))
    with pytest.raises(BlockError, match="failed to authenticate using publickey authentication"):
        SshNode(server.file(), connect=server.login(client_keys=[str(tmp_path / "key")]))


# ---- Servers that can less, or do not behave


class LibraryServer:
    """A server by the library itself, which gives files by a class of the test's."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def listen() -> Any:
            key = asyncssh.generate_private_key("ssh-ed25519")

            class Everybody(asyncssh.SSHServer):
                def begin_auth(self, username: str) -> bool:
                    return False

            return await asyncssh.listen(
                "127.0.0.1", 0, server_host_keys=[key], server_factory=Everybody, sftp_factory=make
            )

        self.listener = asyncio.run_coroutine_threadsafe(listen(), self.loop).result(60)
        self.port = self.listener.get_port()

    def open(self, path: Path, **more: Any) -> SshNode:
        connect = {"client_keys": None, "agent_path": None, "config": []}
        return SshNode(RemoteFile("127.0.0.1", self.port, str(path), "me", NO_CHECK), connect=connect, **more)

    def stop(self) -> None:
        async def close() -> None:
            self.listener.close()
            await self.listener.wait_closed()

        asyncio.run_coroutine_threadsafe(close(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], LibraryServer]]:
    servers = []

    def make(kind: Any) -> LibraryServer:
        servers.append(LibraryServer(kind))
        return servers[-1]

    yield make
    for it in servers:
        it.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


def test_server_without_fsync(serve: Callable[[Any], LibraryServer], path: Path) -> None:
    class NoSync(asyncssh.SFTPServer):
        def fsync(self, file_obj: object) -> None:
            raise asyncssh.SFTPOpUnsupported("no")

    said: list[str] = []
    server = serve(NoSync)
    node = server.open(path, warn=said.append)
    node.flush()
    assert said == []
    for _ in range(2):
        node.write(0, b"x")
        node.flush()
    assert said == [f"warning: ssh server 127.0.0.1:{server.port} does not support fsync"]
    node.close()


def test_flush_that_fails(serve: Callable[[Any], LibraryServer], path: Path) -> None:
    class BadSync(asyncssh.SFTPServer):
        def fsync(self, file_obj: object) -> None:
            raise asyncssh.SFTPFailure("the disk is on fire")

    node = serve(BadSync).open(path)
    node.write(0, b"x")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            node.flush()
    node.close()


def test_server_whose_disk_is_full(serve: Callable[[Any], LibraryServer], path: Path) -> None:
    class Full(asyncssh.SFTPServer):
        def write(self, file_obj: object, offset: int, data: bytes) -> int:
            raise asyncssh.SFTPQuotaExceeded("full")

    node = serve(Full).open(path)
    with pytest.raises(OSError, match="Input/output error"):
        node.write(0, b"x")
    node.close()


@pytest.mark.parametrize("answer", [b"", b"x" * 100_000], ids=["too little", "too much"])
def test_replies_of_a_wrong_length(serve: Callable[[Any], LibraryServer], path: Path, answer: bytes) -> None:
    class Odd(asyncssh.SFTPServer):
        def read(self, file_obj: object, offset: int, size: int) -> bytes:
            return answer

    node = serve(Odd).open(path)
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 4096)
    node.close()


def test_silent_server(serve: Callable[[Any], LibraryServer], path: Path) -> None:
    enough = threading.Event()

    class Silent(asyncssh.SFTPServer):
        async def read(self, file_obj: object, offset: int, size: int) -> bytes:
            await asyncio.get_running_loop().run_in_executor(None, enough.wait, 60)
            return b""

    node = serve(Silent).open(path, timeout=0.05)
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 4096)
    enough.set()
    node.close()


# ---- Options and names


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("ssh://h/x", {"host": "h", "port": "22", "path": "/x"}),
        ("ssh://me@h:7/a%20b", {"host": "h", "port": "7", "path": "/a b", "user": "me"}),
        ("ssh://[::1]/x?host_key_check=no", {"host": "::1", "port": "22", "path": "/x", "host_key_check": "no"}),
    ],
)
def test_names(name: str, own: dict[str, str]) -> None:
    assert parse_filename(name) == own
    assert parse_filename(find_file(own).filename) == own


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ssh://localhost", "missing remote path in URI"),
        ("ssh:/x", "missing hostname in URI"),
        ("ssh://h:x/y", "invalid URI"),
        ("sftp://h/y", "URI scheme must be 'ssh'"),
    ],
)
def test_bad_names(name: str, text: str) -> None:
    with pytest.raises(BlockError) as caught:
        parse_filename(name)
    assert str(caught.value) == text


SERVER = {"server": {"host": "h", "port": "22"}, "path": "/x"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Parameter 'server' is missing"),
        ({"host": "h"}, "Parameter 'path' is missing"),
        ({"host": "h", "path": "/x", "port": "0"}, "'0' is not a port number"),
        ({"host": "h", "path": "/x", "port": "ssh"}, "Parameter 'port' expects a number"),
        ({"server": {"host": "h"}, "path": "/x"}, "Parameter 'server.port' is missing"),
        ({"server": "h", "path": "/x"}, "Invalid parameter type for 'server', expected: object"),
        ({"server": {"host": "h", "port": "1", "foo": "1"}}, "Parameter 'foo' is unexpected"),
        ({**SERVER, "host": "h"}, "'server' and host/port cannot be used at the same time"),
        ({**SERVER, "host-key-check": {"mode": "foo"}}, "Parameter 'mode' does not accept value 'foo'"),
        ({**SERVER, "host-key-check": {}}, "Parameter 'host-key-check.mode' is missing"),
        ({**SERVER, "host-key-check": {"mode": "hash"}}, "Parameter 'host-key-check.type' is missing"),
        ({**SERVER, "host-key-check": {"mode": "hash", "type": "crc"}}, "Parameter 'type' does not accept value 'crc'"),
        ({**SERVER, "host_key_check": "foo"}, "unknown host_key_check setting (foo)"),
        ({**SERVER, "host_key_check": "md5:xy"}, "the hash of the host key has to be hexadecimal digits: 'xy'"),
        (
            {**SERVER, "host_key_check": "no", "host-key-check": {"mode": "none"}},
            "'host-key-check' and 'host_key_check' cannot be used at the same time",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BlockError) as caught:
        open_node({"driver": "ssh", "node-name": "a", **options}, BlockGraph())
    assert str(caught.value) == text


def test_options() -> None:
    check = {"mode": "hash", "type": "sha1", "hash": "AA:bb"}
    file = find_file({"server": {"host": "h", "port": "7", "ipv6": "off"}, "path": "/x", "host-key-check": check})
    assert file == RemoteFile("h", 7, "/x", None, HostKeyCheck("hash", "sha1", "aabb"), "ipv4")
    assert file.filename == "ssh://h:7/x?host_key_check=sha1:aabb"


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(
        BlockError, match=r"needs the library asyncssh, which is not installed: pip install 'pyvm\[ssh\]'"
    ):
        open_node({"driver": "ssh", "node-name": "a", **SERVER}, BlockGraph())
