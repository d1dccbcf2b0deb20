"""The agent's client: the table of commands, and the real qemu-ga where it is installed."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pyvm.agent import AgentClient, AgentError, AgentTimeout
from pyvm.agent.commands import COMMANDS

# The table of commands


def test_every_command_has_its_method_with_its_arguments() -> None:
    assert len(COMMANDS) == 42
    for command in COMMANDS.values():
        signature = inspect.signature(getattr(AgentClient, command.method))
        names = {name.replace("_", "-") for name in signature.parameters} - {"self", "timeout", "silence"}
        wire = {{"data": "buf-b64"}.get(name, name) for name in names} if "buf-b64" in command.arguments else names
        assert wire == set(command.arguments), command.name
        for name, parameter in signature.parameters.items():
            if name.replace("_", "-") in command.optional:
                assert parameter.default is not inspect.Parameter.empty, command.name


def manual() -> str:
    """Return the protocol's manual, from where the project's reference material lies."""
    places = [os.environ.get("PYVM_REFERENCE", ""), str(Path(__file__).parents[3] / "shared/reference")]
    for place in filter(None, places):
        path = Path(place) / "qemu-ga-ref-8.2.txt"
        if path.exists():
            return path.read_text()
    pytest.skip("the manual is not here: set PYVM_REFERENCE to the directory of qemu-ga-ref-8.2.txt")


def test_the_table_is_the_manuals() -> None:
    """Every command, argument, optional mark and version, as section by section of the manual gives them."""
    sections = re.split(r"^(guest-[a-z-]+) \(Command\)¶$", manual(), flags=re.MULTILINE)
    assert set(sections[1::2]) == set(COMMANDS)
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        # What follows the command's own "Since" are types, up to the next command.
        own, _, rest = text.partition("Since¶\n")
        command = COMMANDS[name]
        if rest:
            assert rest.split("\n", 1)[0] == command.since, name
        arguments = own.partition("Arguments¶\n")[2].partition("Returns¶\n")[0]
        found = re.findall(r"^- ([\w-]+): (.+?)( \(optional\))?$", arguments, re.MULTILINE)
        assert {key: kind for key, kind, _ in found} == command.arguments, name
        assert {key for key, _, optional in found if optional} == command.optional, name
        assert ("does NOT return a response on success" in own) is not command.answers, name


# The real agent


class RealAgent(NamedTuple):
    """A running qemu-ga."""

    path: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def qemu_ga(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAgent]:
    """Run the real qemu-ga as an ordinary process of this machine."""
    program = os.environ.get("PYVM_QEMU_GA") or shutil.which(
        "qemu-ga", path=f"{os.environ.get('PATH')}:/usr/sbin:/sbin"
    )
    if program is None:
        pytest.skip("qemu-ga is not installed: PYVM_QEMU_GA may name one")
    directory = tmp_path_factory.mktemp("qga")
    path = str(directory / "ga.sock")
    process = subprocess.Popen(
        [program, "-m", "unix-listen", "-p", path, "-t", str(directory)], stderr=subprocess.DEVNULL
    )
    try:
        yield RealAgent(path, process)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def real(qemu_ga: RealAgent) -> Iterator[AgentClient]:
    with AgentClient(qemu_ga.path, timeout=60) as client:
        yield client.wait(60)


def test_the_real_agent_knows_the_commands_of_the_table(real: AgentClient) -> None:
    info = real.info()
    known = {command.name: command for command in info.supported_commands}
    assert set(known) <= set(COMMANDS) or info.version >= "8"
    for name, command in COMMANDS.items():
        assert known[name].success_response is command.answers


def test_the_real_agent_about_its_machine(real: AgentClient) -> None:
    assert real.get_osinfo().kernel_release == os.uname().release
    assert real.get_host_name()
    assert abs(real.get_timezone().offset) <= 14 * 3600
    assert real.get_time() > 1_600_000_000 * 10**9
    assert any(vcpu.online for vcpu in real.get_vcpus())
    assert {stats.cpu for stats in real.get_cpustats()}
    assert "lo" in {interface.name for interface in real.network_get_interfaces()}
    assert real.fsfreeze_status() == "thawed"
    assert isinstance(real.get_users(), list)
    assert isinstance(real.get_diskstats(), list)


def test_the_real_agent_runs_programs(real: AgentClient) -> None:
    result = real.run("cat; echo $X >&2; exit 3", input=b"a\0b", env={"X": "y"})
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"a\0b", b"y\n")
    assert real.run(["/bin/sh", "-c", "kill -9 $$"]).signal == 9
    with pytest.raises(AgentError, match="No such file"):
        real.run(["/nonexistent"])


def test_the_real_agents_files(real: AgentClient, tmp_path: Path) -> None:
    path, content = tmp_path / "f", os.urandom(600_000)
    real.write_file(str(path), content)
    assert path.read_bytes() == content
    assert real.read_file(str(path)) == content
    with real.opened(str(path)) as handle:
        assert real.file_seek(handle, -4, "end").position == len(content) - 4
        assert real.file_read(handle) == (content[-4:], True)


def test_the_real_agent_is_synchronised_after_a_timeout(qemu_ga: RealAgent, real: AgentClient) -> None:
    for number in range(5):
        qemu_ga.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(AgentTimeout):
                real.command("guest-info", timeout=0.02)
        finally:
            qemu_ga.process.send_signal(signal.SIGCONT)
        assert real.sync(number) == number


def test_the_real_agent_after_half_a_request(qemu_ga: RealAgent, real: AgentClient) -> None:
    real.reconnect()
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(qemu_ga.path)
        rude.sendall(b'{"execute": "guest-file-open", "arguments": {"path": "/x')
    real.ping()
