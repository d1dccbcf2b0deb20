"""The command pyvm-nbd: its options, and an image that it serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvm.block.create import create_image
from pyvm.block.open import open_image
from pyvm.tools.nbd.cli import main
from tests.unit.certificates import Authority
from tests.unit.nbd_server_rig import NbdClient, Serving, wait_until_listening

COMMAND = [sys.executable, "-m", "pyvm.tools.nbd.cli"]
TRY = "Try `pyvm-nbd --help' for more information."


class Program:
    """A server that runs until the test ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "s"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it, and wait until it listens."""
        command = [*COMMAND, "-k", str(self.path), *arguments]
        self.process = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE)
        wait_until_listening(self.path, self.process)
        return self.process

    def finish(self) -> int:
        """Wait for its end; return the exit status."""
        assert self.process is not None
        self.process.communicate(timeout=60)
        return self.process.returncode

    def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            self.finish()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", f"Invalid number of arguments\n{TRY}"),
        ("a b", f"Invalid number of arguments\n{TRY}"),
        ("--zz", f"unrecognized option '--zz'\n{TRY}"),
        ("-e x a", "Invalid shared device number 'x'"),
        ("-e -1 a", "Invalid shared device number '-1'"),
        ("-k rel a", "socket path must be absolute"),
        ("-o x a", "Invalid offset 'x'"),
        ("-L a", "List mode is incompatible with a file name"),
        ("-L -x y", "List mode is incompatible with per-device settings"),
        ("-L --fork", "List mode is incompatible with forking"),
        ("-L -k /nonexistent", "Failed to connect to '/nonexistent': No such file or directory"),
        ("--cache=zz a", "Invalid cache mode `zz'"),
        ("--aio=zz a", "Invalid aio mode 'zz'"),
        ("--discard=zz a", "Invalid discard mode `zz'"),
        ("--detect-zeroes=zz a", "Failed to parse detect_zeroes mode: invalid parameter value: zz"),
        (
            "--detect-zeroes=unmap a",
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ),
        ("-n --cache=none a", "-n and --cache can only be specified once"),
        ("--tls-authz zz a", "--tls-authz is not permitted without --tls-creds"),
        ("--tls-hostname zz a", "--tls-hostname is not permitted without --tls-creds"),
        ("--image-opts -f raw a", "--image-opts and -f are mutually exclusive"),
        ("--object zz,id=x a", "Parameter 'qom-type' does not accept value 'zz'"),
        (
            "-k /nonexistent/s nofile",
            "Failed to blk_new_open 'nofile': Could not open 'nofile': No such file or directory",
        ),
        ("-f zz nofile", "Failed to blk_new_open 'nofile': Unknown driver 'zz'"),
        ("-c /dev/nbd0 a", "--connect: the NBD client of the kernel is not supported by pyvm"),
        ("-d /dev/nbd0", "--disconnect: the NBD client of the kernel is not supported by pyvm"),
        ("--selinux-label x a", "--selinux-label is not supported by pyvm"),
    ],
)
def test_what_is_refused(arguments: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 1
    assert capsys.readouterr().err == f"pyvm-nbd: {text}\n"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--export-name" in capsys.readouterr().out
    assert main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("pyvm-nbd 0")


def test_list_of_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving = Serving(tmp_path)
    serving.disk("a", tmp_path)
    serving.export("a", "a", description="a disk", allocation_depth=True, writable=False)
    assert main(["-L", "-k", str(serving.path)]) == 0
    assert capsys.readouterr().out == (
        "exports available: 1\n"
        " export: 'a'\n"
        "  description: a disk\n"
        "  size:  1048576\n"
        "  flags: 0x58f ( readonly flush fua df multi cache )\n"
        "  min block: 1\n"
        "  opt block: 4096\n"
        "  max block: 33554432\n"
        "  available meta contexts: 2\n"
        "   base:allocation\n"
        "   qemu:allocation-depth\n"
    )
    serving.close()


def test_an_image_is_served_until_the_last_client_leaves(program: Program, tmp_path: Path) -> None:
    create_image(str(tmp_path / "i"), "qcow2", 1 << 20, {})
    program.start("-f", "qcow2", "-x", "name", "-D", "text", "-v", "i")
    with NbdClient(program.path) as client:
        assert client.go("name")[2] == b"text"
        assert client.write(4096, b"hello") == 0
    assert program.finish() == 0
    assert not program.path.exists()
    node = open_image(str(tmp_path / "i"))
    assert node.read(4096, 5) == b"hello"
    node.release()


def test_a_part_of_an_image_and_what_is_written_nowhere(program: Program, tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(bytes(1 << 20) + b"part" * 1024)
    program.start("-f", "raw", "-o", str(1 << 20), "-s", "-t", "i")
    for _ in range(2):
        with NbdClient(program.path) as client:
            client.go("")
            assert client.read(0, 4) in (b"part", b"gone")
            assert client.write(0, b"gone") == 0
    assert program.process is not None
    program.process.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    assert (tmp_path / "i").read_bytes()[1 << 20 :] == b"part" * 1024


def test_a_snapshot_inside_of_an_image(program: Program, tmp_path: Path) -> None:
    create_image(str(tmp_path / "i"), "qcow2", 1 << 20, {})
    node = open_image(str(tmp_path / "i"))
    node.write(0, b"then")
    node.create_snapshot("before", icount=0)  # type: ignore[attr-defined]
    node.write(0, b"now!")
    node.release()
    program.start("-f", "qcow2", "-l", "before", "i")
    with NbdClient(program.path) as client:
        client.go("")
        assert client.read(0, 4) == b"then"
        assert client.write(0, b"x") == 1


def test_background_and_pid_file(program: Program, tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(b"data" * 1024)
    pid_file = tmp_path / "pid"
    options = ["--fork", "--pid-file", str(pid_file), "-k", str(program.path), "-f", "raw", "-r", "i"]
    subprocess.run([*COMMAND, *options], cwd=tmp_path, check=True, timeout=60)
    assert int(pid_file.read_text()) > 1
    with NbdClient(program.path) as client:
        client.go("")
        assert client.read(0, 4) == b"data"
    end = time.monotonic() + 60
    while pid_file.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not program.path.exists()


def test_a_socket_that_is_handed_over(program: Program, tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(b"data" * 1024)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(program.path))
        listener.listen()
        script = 'exec 3<&"$0"; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        command = ["bash", "-c", script, str(listener.fileno()), *COMMAND, "-f", "raw", "i"]
        program.process = subprocess.Popen(command, cwd=tmp_path, pass_fds=[listener.fileno()])
        with NbdClient(program.path) as client:
            client.socket.settimeout(60)
            client.go("")
            assert client.read(0, 4) == b"data"
    assert program.finish() == 0
    environment = {**os.environ, "LISTEN_FDS": "1"}
    script = 'export LISTEN_PID=$$; exec "$@"'
    command = ["bash", "-c", script, "sh", *COMMAND, "-k", "/x", "i"]
    refused = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert b"Unix socket can't be set when using socket activation" in refused.stderr


def test_certificates(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority()
    server = authority.issue(tmp_path / "server", "server", "server", ("localhost",))
    client = authority.issue(tmp_path / "client", "client", "client")
    (tmp_path / "i").write_bytes(b"data" * 1024)
    objects = f"tls-creds-x509,id=t,dir={server},endpoint=server"
    program.start("-t", "--object", objects, "--tls-creds", "t", "-f", "raw", "-r", "i")
    assert main(["-L", "-k", str(program.path)]) == 1
    assert "Server requires TLS" in capsys.readouterr().err
    objects = f"tls-creds-x509,id=t,dir={client},endpoint=client"
    secure = ["-L", "-k", str(program.path), "--object", objects, "--tls-creds", "t"]
    assert main([*secure, "--tls-hostname", "localhost"]) == 0
    assert "exports available: 1" in capsys.readouterr().out
    assert main([*secure, "--tls-hostname", "other"]) == 1
    assert capsys.readouterr().err == "pyvm-nbd: Certificate does not match the hostname other\n"
