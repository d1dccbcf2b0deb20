"""pyvm-ga: against an agent in this process, which runs programs and opens files on this host."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvm.agent.records import GuestExecStatus
from pyvm.tools.ga import cli
from pyvm.tools.ga.failures import ABSENT, BLOCKED, RESTARTED, SILENT, UNKNOWN
from pyvm.tools.ga.program import _exit_status
from tests.system.agent_double import AgentDouble, RefusedError

Capture = pytest.CaptureFixture[str]

PCI = {"domain": 0, "bus": 0, "slot": 6, "function": 0}
DISK = {
    "pci-controller": PCI,
    "bus-type": "virtio",
    "bus": 0,
    "target": 0,
    "unit": 0,
    "serial": "S1",
    "dev": "/dev/vda",
}
ANSWERS: dict[str, Any] = {
    "guest-ping": {},
    "guest-info": {
        "version": "7.2.22",
        "supported_commands": [
            {"name": "guest-ping", "enabled": True, "success-response": True},
            {"name": "guest-get-devices", "enabled": False, "success-response": True},
        ],
    },
    "guest-get-osinfo": {"pretty-name": "Example 1", "kernel-release": "6.1.0", "machine": "x86_64"},
    "guest-get-timezone": {"offset": -12600, "zone": "NST"},
    "guest-get-host-name": {"host-name": "box\x1b[2J"},
    "guest-get-users": [{"user": "root", "login-time": 0.5}],
    "guest-get-fsinfo": [
        {"name": "vda1", "mountpoint": "/", "type": "ext4", "disk": [DISK], "total-bytes": 3 << 30, "used-bytes": 512}
    ],
    "guest-get-disks": [
        {"name": "/dev/vda1", "partition": True, "dependencies": ["/dev/vda"]},
        {"name": "/dev/vda", "partition": False, "address": DISK},
    ],
    "guest-network-get-interfaces": [
        {"name": "lo", "ip-addresses": [
            {"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8},
            {"ip-address": "::1", "ip-address-type": "ipv6", "prefix": 128},
        ]},
        {"name": "eth0", "hardware-address": "52:54:00:12:34:56"},
    ],
    "guest-get-vcpus": [
        {"logical-id": 0, "online": True, "can-offline": False},
        {"logical-id": 1, "online": False, "can-offline": True},
    ],
    "guest-get-memory-blocks": [{"phys-index": 1, "online": True}, {"phys-index": 0, "online": True}],
    "guest-get-memory-block-info": {"size": 128 << 20},
    "guest-set-vcpus": lambda vcpus: min(len(vcpus), 2),
    "guest-set-memory-blocks": lambda mem_blks: [
        {"phys-index": block["phys-index"], "response": "success" if block["online"] else "operation-failed"}
        for block in mem_blks
    ],
    "guest-fsfreeze-status": "thawed",
    "guest-fsfreeze-freeze": 3,
    "guest-fsfreeze-freeze-list": lambda mountpoints: len(mountpoints),
    "guest-fsfreeze-thaw": 3,
    "guest-fstrim": {"paths": [{"path": "/", "trimmed": 4096, "minimum": 0}]},
    "guest-ssh-get-authorized-keys": {"keys": ["ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"]},
}  # fmt: skip


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentDouble]:
    double = AgentDouble(tmp_path / "ga.sock", dict(ANSWERS))
    yield double
    double.close()


def ga(agent: AgentDouble, *words: str, timeout: float = 60) -> int:
    return cli.main(["-s", str(agent.path), "--timeout", str(timeout), *words])


def program(agent: AgentDouble, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run pyvm-ga as a program of its own, for what concerns its standard streams and signals."""
    command = [sys.executable, "-m", "pyvm.tools.ga.cli", "-s", str(agent.path), *words]
    options = {"capture_output": True, "timeout": 60, **options}
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(command, check=False, **options)


class TestQueries:
    @pytest.mark.parametrize(
        ("words", "lines"),
        [
            (["ping"], []),
            (["sync"], []),
            (["info"], ["version   7.2.22", "commands  2", "disabled  guest-get-devices"]),
            (
                ["osinfo"],
                [
                    "system     Example 1",
                    "kernel     6.1.0",
                    "machine    x86_64",
                    "host name  box?[2J",
                    "time zone  NST UTC-03:30",
                ],
            ),
            (["users"], ["USER  DOMAIN                    SINCE", "root       -  1970-01-01 00:00:00 UTC"]),
            (
                ["fsinfo"],
                [
                    "NAME  MOUNTED AT  TYPE     SIZE   USED  DISK",
                    "vda1  /           ext4  3.0 GiB  512 B  virtio 0000:00:06.0",
                ],
            ),
            (
                ["disks"],
                [
                    "NAME       KIND       ON        ALIAS  DISK                 SERIAL",
                    "/dev/vda1  partition  /dev/vda      -  -                    -",
                    "/dev/vda   disk       -             -  virtio 0000:00:06.0  S1",
                ],
            ),
            (
                ["network"],
                [
                    "NAME  HARDWARE           ADDRESS      RECEIVED  SENT",
                    "lo    -                  127.0.0.1/8  -         -",
                    "                         ::1/128",
                    "eth0  52:54:00:12:34:56  -            -         -",
                ],
            ),
            (["vcpus"], ["CPU  STATE    MAY GO OFFLINE", "  0  online   no", "  1  offline  yes"]),
            (
                ["memory-blocks"],
                [
                    "block size  128.0 MiB",
                    "BLOCK    ADDRESS  STATE   MAY GO OFFLINE",
                    "    0        0x0  online               -",
                    "    1  0x8000000  online               -",
                ],
            ),
            (["freeze-status"], ["thawed"]),
            (["freeze"], ["3 file systems are frozen"]),
            (["freeze", "/", "/home"], ["2 file systems are frozen"]),
            (["thaw"], ["3 file systems go on"]),
            (["trim"], ["MOUNTED AT  DISCARDED  MINIMUM  ERROR", "/             4.0 KiB      0 B      -"]),
            (["ssh-keys", "demo"], ["ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"]),
        ],
    )
    def test_tables(self, agent: AgentDouble, capsys: Capture, words: list[str], lines: list[str]) -> None:
        assert ga(agent, *words) == 0
        assert capsys.readouterr().out.splitlines() == lines

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("info", "guest-info"),
            ("osinfo", "guest-get-osinfo"),
            ("fsinfo", "guest-get-fsinfo"),
            ("disks", "guest-get-disks"),
            ("network", "guest-network-get-interfaces"),
            ("users", "guest-get-users"),
            ("vcpus", "guest-get-vcpus"),
            ("memory-blocks", "guest-get-memory-blocks"),
            ("trim", "guest-fstrim"),
        ],
    )
    @pytest.mark.parametrize("last", [False, True])
    def test_json(self, agent: AgentDouble, capsys: Capture, name: str, command: str, last: bool) -> None:
        assert ga(agent, *([name, "--json"] if last else ["--json", name])) == 0
        assert json.loads(capsys.readouterr().out) == ANSWERS[command]

    def test_time(self, agent: AgentDouble, capsys: Capture) -> None:
        agent.answers["guest-get-time"] = 1_700_000_000 * 10**9
        assert ga(agent, "time") == 0
        assert capsys.readouterr().out.startswith("time             2023-11-14 22:13:20 UTC\n")
        assert ga(agent, "time", "--set", "12.5") == 0
        assert agent.requests[-1]["arguments"] == {"time": 12_500_000_000}
        assert ga(agent, "time", "--set", "rtc") == 0
        assert "arguments" not in agent.requests[-1]
        assert ga(agent, "time", "--set", "soon") == 2


class TestActions:
    def test_cpus(self, agent: AgentDouble, capsys: Capture) -> None:
        assert ga(agent, "vcpus", "--online", "1", "--offline", "3") == 0
        wanted = [{"logical-id": 1, "online": True}, {"logical-id": 3, "online": False}]
        assert agent.requests[-1]["arguments"] == {"vcpus": wanted}
        assert ga(agent, "vcpus", "--offline", "1-3") == 1
        assert "CPU 3 could not be switched; 2 of 3 were" in capsys.readouterr().err
        assert ga(agent, "vcpus", "--offline", "x") == 2

    def test_memory(self, agent: AgentDouble, capsys: Capture) -> None:
        assert ga(agent, "memory-blocks", "--online", "4,6") == 0
        assert [item["phys-index"] for item in agent.requests[-1]["arguments"]["mem-blks"]] == [4, 6]
        assert ga(agent, "memory-blocks", "--offline", "4") == 1
        assert "operation-failed" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "command", "arguments"),
        [
            (["suspend", "ram"], "guest-suspend-ram", None),
            (["suspend", "disk"], "guest-suspend-disk", None),
            (["suspend", "hybrid"], "guest-suspend-hybrid", None),
            (["shutdown"], "guest-shutdown", {"mode": "powerdown"}),
            (["reboot"], "guest-shutdown", {"mode": "reboot"}),
            (["halt"], "guest-shutdown", {"mode": "halt"}),
        ],
    )
    def test_power(
        self, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch, words: list[str], command: str, arguments: Any
    ) -> None:
        monkeypatch.setattr("pyvm.agent.client._SILENCE", 60)  # the end of the connection comes first
        agent.before = lambda name: agent.hang_up() if name == command else None
        assert ga(agent, *words) == 0
        assert agent.requests[-1] == {"execute": command, **({"arguments": arguments} if arguments else {})}

    def test_password(self, agent: AgentDouble) -> None:
        assert program(agent, "passwd", "demo", input=b"sec ret\nmore").returncode == 0
        arguments = agent.requests[-1]["arguments"]
        assert arguments == {"username": "demo", "password": base64.b64encode(b"sec ret").decode(), "crypted": False}

    def test_keys(self, agent: AgentDouble, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text("# mine\nssh-rsa A a\n\nssh-rsa B b\n")
        assert ga(agent, "ssh-keys", "demo", "--add", f"@{tmp_path}/keys", "--add", "ssh-rsa C c", "--reset") == 0
        keys = ["ssh-rsa A a", "ssh-rsa B b", "ssh-rsa C c"]
        assert agent.requests[-1]["arguments"] == {"username": "demo", "keys": keys, "reset": True}
        assert ga(agent, "ssh-keys", "demo", "--remove", "ssh-rsa A a") == 0
        assert agent.requests[-1]["execute"] == "guest-ssh-remove-authorized-keys"


class TestExec:
    def test_streams_and_status(self, agent: AgentDouble) -> None:
        done = program(agent, "exec", "--", "sh", "-c", "cat; echo error >&2; exit 7", input=b"in\0put")
        assert (done.returncode, done.stdout, done.stderr) == (7, b"in\0put", b"error\n")
        assert not agent.files
        assert not agent.processes

    def test_nothing_is_left_in_the_guest(self, agent: AgentDouble) -> None:
        before = {name for name in os.listdir("/tmp") if name.startswith(".pyvm-ga")}
        assert program(agent, "exec", "true").returncode == 0
        assert program(agent, "exec", "/no/such").returncode == 127
        assert {name for name in os.listdir("/tmp") if name.startswith(".pyvm-ga")} == before

    @pytest.mark.parametrize("plain", [False, True])
    def test_ends_like_the_program(self, agent: AgentDouble, tmp_path: Path, plain: bool) -> None:
        how = ["--plain"] if plain else []
        assert program(agent, "exec", *how, "sh", "-c", "kill -9 $$").returncode == 128 + 9
        missing = program(agent, "exec", *how, "no-such-program")
        assert missing.returncode == 127
        assert b"no-such-program" in missing.stderr
        (tmp_path / "file").touch()
        assert program(agent, "exec", *how, str(tmp_path / "file")).returncode == 126

    def test_output_comes_while_the_program_runs(self, agent: AgentDouble, tmp_path: Path) -> None:
        go = tmp_path / "go"
        command = [sys.executable, "-m", "pyvm.tools.ga.cli", "-s", str(agent.path), "exec", "sh", "-c"]
        script = f"echo first; until [ -e {go} ]; do sleep 0.01; done; echo second"
        with subprocess.Popen([*command, script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"first\n"
            go.touch()
            assert process.stdout.readline() == b"second\n"
            assert process.wait(60) == 0

    def test_variables_and_directory(self, agent: AgentDouble, tmp_path: Path) -> None:
        done = program(
            agent, "exec", "-e", "A=one two", "-C", str(tmp_path), "--", "sh", "-c", 'echo "$A"; pwd; echo "$HOME"'
        )
        assert done.stdout.decode().splitlines() == ["one two", str(tmp_path), os.environ["HOME"]]
        done = program(agent, "exec", "--clear-env", "-e", "A=1", "--", "/usr/bin/env")
        assert [line for line in done.stdout.decode().splitlines() if not line.startswith(("PWD=", "_="))] == ["A=1"]
        assert program(agent, "exec", "-C", "/nowhere", "pwd").returncode == 126
        assert program(agent, "exec", "-e", "A", "pwd").returncode == 2

    def test_a_lot_of_output_and_input(self, agent: AgentDouble) -> None:
        data = bytes(range(256)) * 34_000
        done = program(agent, "exec", "cat", input=data)
        assert done.stdout == data

    def test_guest_without_a_shell(self, agent: AgentDouble, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyvm.tools.ga.program.SHELL", "/no/shell")
        outputs: list[int] = []
        monkeypatch.setattr("pyvm.tools.ga.execute.writer", lambda number: lambda data: outputs.append(number))
        assert ga(agent, "exec", "-i", os.devnull, "--", "sh", "-c", "echo a; exit 3") == 3
        assert outputs[0] == 1
        assert "guest-file-open" not in agent.commands

    def test_agent_that_may_open_no_files(self, agent: AgentDouble) -> None:
        agent.disabled.add("guest-file-open")
        before = {name for name in os.listdir("/tmp") if name.startswith(".pyvm-ga")}
        done = program(agent, "exec", "sh", "-c", "echo a; exit 3")
        assert (done.returncode, done.stdout) == (3, b"a\n")
        assert {name for name in os.listdir("/tmp") if name.startswith(".pyvm-ga")} == before

    def test_signals_reach_the_program(self, agent: AgentDouble) -> None:
        command = [sys.executable, "-m", "pyvm.tools.ga.cli", "-s", str(agent.path), "exec", "sh", "-c"]
        script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.02; done"
        with subprocess.Popen([*command, script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"caught\n"
            assert process.wait(60) == 5

    def test_json_and_detached(self, agent: AgentDouble, capsys: Capture) -> None:
        assert ga(agent, "--json", "exec", "-i", os.devnull, "--", "sh", "-c", "echo a; echo b >&2; exit 4") == 4
        assert json.loads(capsys.readouterr().out) == {"status": 4, "stdout": "a\n", "stderr": "b\n"}
        assert ga(agent, "exec", "-i", os.devnull, "-d", "--", "sleep", "60") == 0
        assert int(capsys.readouterr().out) in agent.processes

    def test_no_program(self, agent: AgentDouble) -> None:
        assert ga(agent, "exec", "-i", os.devnull) == 2


class TestCopying:
    def test_both_ways(self, agent: AgentDouble, tmp_path: Path) -> None:
        data = os.urandom(3 << 20)
        source, there, back = tmp_path / "source", tmp_path / "there", tmp_path / "back"
        source.write_bytes(data)
        source.chmod(0o750)
        assert ga(agent, "cp", str(source), f":{there}") == 0
        assert there.read_bytes() == data
        assert there.stat().st_mode & 0o7777 == 0o750
        assert ga(agent, "cp", f":{there}", str(back)) == 0
        assert back.read_bytes() == data
        assert back.stat().st_mode & 0o7777 == 0o750
        assert not agent.files

    def test_into_directories(self, agent: AgentDouble, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).write_text(name)
        for name in ("guest", "host"):
            (tmp_path / name).mkdir()
        assert ga(agent, "cp", str(tmp_path / "a"), str(tmp_path / "b"), f":{tmp_path}/guest") == 0
        assert sorted(os.listdir(tmp_path / "guest")) == ["a", "b"]
        assert ga(agent, "cp", f":{tmp_path}/guest/a", f":{tmp_path}/guest/b", str(tmp_path / "host")) == 0
        assert (tmp_path / "host" / "b").read_text() == "b"

    def test_streams(self, agent: AgentDouble, tmp_path: Path) -> None:
        assert program(agent, "cp", "-", f":{tmp_path}/new", input=b"from here").returncode == 0
        done = program(agent, "cp", f":{tmp_path}/new", "-")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"from here", b"")

    def test_what_cannot_be_copied(self, agent: AgentDouble, tmp_path: Path, capsys: Capture) -> None:
        assert ga(agent, "cp", "a", "b") == 2
        assert ga(agent, "cp", ":a", ":b") == 2
        assert ga(agent, "cp", str(tmp_path / "none"), ":/tmp/x") == 1
        assert ga(agent, "cp", f":{tmp_path}/none", str(tmp_path / "new")) == 1
        assert not (tmp_path / "new").exists()
        assert ga(agent, "cp", f":{tmp_path}/none", str(tmp_path) + "/none/") == 1
        assert "failed to open file" in capsys.readouterr().err

    def test_no_file_of_the_guest_stays_open(self, agent: AgentDouble, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "there").write_bytes(b"x")
        assert ga(agent, "cp", f":{tmp_path}/there", str(tmp_path / "missing" / "here")) == 1
        assert "No such file" in capsys.readouterr().err
        assert agent.files == {}

    def test_progress_is_for_terminals(
        self, agent: AgentDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        (tmp_path / "big").write_bytes(bytes(5 << 20))
        assert ga(agent, "cp", str(tmp_path / "big"), f":{tmp_path}/copy") == 0
        assert "copy" in terminal.getvalue()
        assert ga(agent, "cp", "-q", f":{tmp_path}/copy", str(tmp_path / "third")) == 0
        assert "third" not in terminal.getvalue()


class TestShellAndRaw:
    def test_what_a_line_leaves_is_there_for_the_next(self, agent: AgentDouble, tmp_path: Path) -> None:
        place = tmp_path / "it's a place"
        place.mkdir()
        lines = f'cd "{place}"\nexport A="x\'y"\npwd\necho "$A" >&2\nfalse\n'
        done = program(agent, "shell", input=lines.encode())
        assert (done.returncode, done.stdout.decode(), done.stderr) == (1, f"{place}\n", b"x'y\n")
        done = program(agent, "shell", input=b"echo a\nexit 9\necho b\n")
        assert (done.returncode, done.stdout) == (9, b"a\n")
        assert not [name for name in os.listdir("/tmp") if name.endswith(".state") and "pyvm-ga" in name]

    def test_on_a_terminal(self, agent: AgentDouble, tmp_path: Path) -> None:
        ours, theirs = os.openpty()
        command = [sys.executable, "-m", "pyvm.tools.ga.cli", "-s", str(agent.path), "shell"]
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "dumb"}
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            shown = b""

            def until(text: bytes) -> None:
                nonlocal shown
                while text not in shown:
                    shown += os.read(ours, 4096)
                shown = shown.partition(text)[2]

            until(b"@")
            os.write(ours, f"cd {tmp_path}\n".encode())
            until(f":{tmp_path}".encode())
            os.write(ours, b"no-such-command\n")
            until(b"not found")
            until(b"@")
            os.write(ours, b"exit 5\n")
            assert process.wait(60) == 5
            os.close(ours)
        assert f"cd {tmp_path}\n" in (tmp_path / "state" / "pyvm-ga-history").read_text()

    def test_raw(self, agent: AgentDouble, capsys: Capture) -> None:
        assert ga(agent, "raw", "guest-ping") == 0
        assert ga(agent, "raw", '{"execute": "guest-fsfreeze-freeze-list", "arguments": {"mountpoints": ["/"]}}') == 0
        assert ga(agent, "raw", "guest-fsfreeze-freeze-list", '{"mountpoints": []}') == 0
        assert ga(agent, "raw", "no-such") == 1
        error = {"class": "CommandNotFound", "desc": "The command no-such has not been found"}
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert found == [{"return": {}}, {"return": 1}, {"return": 0}, {"error": error}]
        for bad in ("{", '{"execute": 5}', '{"execute": "a", "arguments": []}'):
            assert ga(agent, "raw", bad) == 2
        assert ga(agent, "raw", "guest-ping", "[]") == 2


class TestFailures:
    def test_no_socket(self, tmp_path: Path, capsys: Capture) -> None:
        assert cli.main(["-s", str(tmp_path / "none"), "ping"]) == ABSENT
        found = capsys.readouterr().err
        assert found == f"pyvm-ga: cannot connect to the agent at {tmp_path}/none: No such file or directory\n"

    def test_refused(self, tmp_path: Path, capsys: Capture) -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(tmp_path / "dead"))
            assert cli.main(["-s", str(tmp_path / "dead"), "ping"]) == ABSENT
        assert "Connection refused" in capsys.readouterr().err

    def test_which_agent(self, monkeypatch: pytest.MonkeyPatch, agent: AgentDouble) -> None:
        monkeypatch.delenv("PYVM_GA_SOCKET", raising=False)
        assert cli.main(["ping"]) == 2
        monkeypatch.setenv("PYVM_GA_SOCKET", str(agent.path))
        assert cli.main(["ping"]) == 0

    def test_agent_comes_later(self, tmp_path: Path) -> None:
        made: list[AgentDouble] = []
        timer = threading.Timer(0.2, lambda: made.append(AgentDouble(tmp_path / "ga.sock")))
        timer.start()
        assert cli.main(["-s", str(tmp_path / "ga.sock"), "--wait", "60", "ping"]) == 0
        timer.join()
        made[0].close()

    def test_silent(self, agent: AgentDouble, capsys: Capture) -> None:
        agent.silent.update({"guest-ping", "guest-sync-delimited"})
        assert ga(agent, "ping", timeout=0.2) == SILENT
        assert len(capsys.readouterr().err.splitlines()) == 1

    def test_old(self, agent: AgentDouble, capsys: Capture) -> None:
        agent.unknown.add("guest-get-disks")
        assert ga(agent, "disks") == UNKNOWN
        assert "too old" in capsys.readouterr().err

    def test_blocked(self, agent: AgentDouble, capsys: Capture) -> None:
        agent.disabled.update({"guest-exec", "guest-file-open"})
        assert ga(agent, "exec", "-i", os.devnull, "true") == BLOCKED
        assert "frozen" in capsys.readouterr().err
        assert ga(agent, "cp", ":/etc/hostname", "-") == BLOCKED

    def test_refusal(self, agent: AgentDouble, capsys: Capture) -> None:
        agent.answers["guest-fsfreeze-thaw"] = RefusedError("no, thanks")
        assert ga(agent, "thaw") == 1
        assert capsys.readouterr().err == "pyvm-ga: guest-fsfreeze-thaw: no, thanks\n"

    def test_connection_ends_in_a_call(self, agent: AgentDouble) -> None:
        agent.before = lambda name: agent.hang_up() if name == "guest-get-disks" else None
        assert ga(agent, "disks") == RESTARTED

    def test_answer_is_lost_with_the_agent(
        self, agent: AgentDouble, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cli, "_PROBE_SECONDS", 0.05)
        agent.silent.add("guest-get-disks")
        begin = time.monotonic()
        assert ga(agent, "disks", timeout=60) == RESTARTED
        assert time.monotonic() - begin < 30
        assert "reset" in capsys.readouterr().err

    def test_program_is_lost_with_the_agent(self, agent: AgentDouble, capsys: Capture) -> None:
        seen: list[str] = []

        def reset(name: str) -> None:
            seen.append(name)
            if seen.count("guest-exec") == 2 and name == "guest-exec-status":
                agent.restart()

        agent.before = reset
        assert ga(agent, "exec", "-i", os.devnull, "sleep", "60") == RESTARTED
        assert "no longer knows the program" in capsys.readouterr().err

    def test_help_names_the_statuses(self, capsys: Capture) -> None:
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        found = capsys.readouterr().out
        assert all(f"\n  {status}  " in found for status in (115, 116, 117, 118, 119))


def test_starts_with_little_code() -> None:
    program = "import sys; from pyvm.tools.ga import cli; cli.main(['-s', '/none', 'ping']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    slow = {
        "asyncio",
        "dataclasses",
        "inspect",
        "pyvm.api",
        "pyvm.machine",
        "readline",
        "rich",
        "subprocess",
        "unicorn",
    }
    assert not loaded & slow


def test_what_the_guest_says_does_not_move_the_cursor(agent: AgentDouble, capsys: Capture) -> None:
    def refuse() -> object:
        raise RefusedError("no\x1b[2J\x9b5A")

    agent.answers["guest-fsfreeze-thaw"] = refuse
    assert ga(agent, "thaw") == 1
    said = capsys.readouterr().err
    assert "no?[2J?5A" in said
    assert said.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("answer", "status"),
    [({"exitcode": 7}, 7), ({"exitcode": 1 << 70}, 0), ({"exitcode": -1}, 255), ({"signal": 9}, 137),
     ({"signal": 1 << 70}, 128), ({}, 0)],
)  # fmt: skip
def test_exit_statuses(answer: dict[str, int], status: int) -> None:
    assert _exit_status(GuestExecStatus.from_json({"exited": True, **answer})) == status
