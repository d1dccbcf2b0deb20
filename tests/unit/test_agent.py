"""The agent's client: against a scripted peer, and against the real qemu-ga where it is installed."""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.agent import (
    AgentAbsent,
    AgentClient,
    AgentDisconnected,
    AgentError,
    AgentFailure,
    AgentProtocolError,
    AgentRestarted,
    AgentTimeout,
    ExecError,
    ExecTimeout,
    records,
)
from pyvm.agent.commands import COMMANDS
from pyvm.agent.connection import AgentConnection, ConnectionState

Handler = Callable[[dict[str, Any]], Any]


class Peer:
    """The guest's side: a thread that answers requests from a script, and synchronises as qemu-ga does."""

    def __init__(self, connection: socket.socket, handlers: dict[str, Handler]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.handlers = handlers
        self._connection = connection
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def close(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        buffer = b""
        while data := self._connection.recv(65536):
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        if b"\xff" in line:
            self.send(b'{"error": {"class": "GenericError", "desc": "JSON parse error, stray"}}\n')
        request = json.loads(line.rpartition(b"\xff")[2])
        self.requests.append(request)
        name, arguments = request["execute"], request.get("arguments", {})
        if name == "guest-sync-delimited":
            self.send(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
            return
        handler = self.handlers.get(name)
        if handler is None:
            error = {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}
            self.send(json.dumps({"error": error}).encode() + b"\n")
            return
        answer = handler(arguments)
        if isinstance(answer, bytes):
            self.send(answer)
        elif answer is not None:
            self.send(json.dumps({"return": answer}).encode() + b"\n")


@pytest.fixture
def pair() -> Iterator[Callable[..., tuple[AgentClient, Peer]]]:
    """Return a function that makes a client and its peer from handlers by command."""
    made: list[tuple[AgentClient, Peer]] = []

    def make(handlers: dict[str, Handler] | None = None, timeout: float = 10.0) -> tuple[AgentClient, Peer]:
        ours, theirs = socket.socketpair()
        made.append((AgentClient(ours, timeout), Peer(theirs, handlers or {})))
        return made[-1]

    yield make
    for client, peer in made:
        client.close()
        peer.close()


Pair = Callable[..., tuple[AgentClient, Peer]]


# Synchronisation


def test_the_first_command_synchronises(pair: Pair) -> None:
    client, peer = pair({"guest-ping": lambda arguments: {}})
    client.ping()
    client.ping()
    assert [request["execute"] for request in peer.requests] == ["guest-sync-delimited", "guest-ping", "guest-ping"]


def test_remains_of_an_earlier_conversation_are_dropped(pair: Pair) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: 42})
    peer.send(b'{"return": 1}\n{"return": {"half')
    assert client.get_time() == 42


def test_answers_to_another_clients_synchronisation_are_dropped(pair: Pair) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: 42})
    peer.send(b'\xff{"return": 12345}\n\xffnonsense\n\xff')
    assert client.get_time() == 42


def test_a_late_answer_is_not_taken_for_the_next(pair: Pair) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: None, "guest-sync": lambda arguments: arguments["id"]})
    with pytest.raises(AgentTimeout):
        client.command("guest-get-time", timeout=0.05)
    peer.send(b'{"return": 99}\n')
    assert client.sync(7) == 7
    assert [request["execute"] for request in peer.requests].count("guest-sync-delimited") == 2


def test_a_late_answer_in_pieces_is_dropped_too(pair: Pair) -> None:
    client, peer = pair({"guest-get-time": lambda arguments: b'{"ret', "guest-sync": lambda arguments: arguments["id"]})
    with pytest.raises(AgentTimeout):
        client.command("guest-get-time", timeout=0.05)
    peer.send(b'urn": 99}\n')
    assert client.sync(7) == 7


def test_an_agent_that_is_not_there_times_out() -> None:
    ours, theirs = socket.socketpair()
    with theirs, AgentClient(ours) as client:
        with pytest.raises(AgentTimeout):
            client.ping(timeout=0.05)
        with pytest.raises(AgentTimeout, match=r"did not answer within 0\.05 s"):
            client.wait(0.05)


def test_a_request_that_nobody_takes_times_out() -> None:
    ours, theirs = socket.socketpair()
    with theirs, AgentClient(ours) as client, pytest.raises(AgentTimeout):
        client.command("guest-file-write", timeout=0.1, handle=1, buf_b64="A" * (8 << 20))


def test_waiting_for_another_threads_command_times_out(pair: Pair) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(arguments: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        leave.wait(10)
        return {}

    client, _ = pair({"guest-ping": slow})
    other = threading.Thread(target=client.ping)
    other.start()
    entered.wait(10)
    with pytest.raises(AgentTimeout, match="another thread"):
        client.ping(timeout=0.01)
    leave.set()
    other.join()


def test_threads_take_turns(pair: Pair) -> None:
    client, _ = pair({"guest-sync": lambda arguments: arguments["id"]})
    wrong: list[int] = []

    def work(first: int) -> None:
        wrong.extend(number for number in range(first, first + 50) if client.sync(number) != number)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Connections


def test_a_given_socket_that_ends_stays_ended(pair: Pair) -> None:
    client, peer = pair({"guest-ping": lambda arguments: {}})
    client.ping()
    peer.close()
    for _ in range(2):
        with pytest.raises(AgentDisconnected):
            client.ping()


def test_an_address_is_connected_to_again(tmp_path: Path) -> None:
    path = str(tmp_path / "ga.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        with AgentClient(f"unix:{path}", timeout=10) as client:
            for _ in range(3):
                accepted: list[Peer] = []

                def accept(peers: list[Peer] = accepted) -> None:
                    peers.append(Peer(listening.accept()[0], {"guest-ping": lambda arguments: {}}))

                thread = threading.Thread(target=accept)
                thread.start()
                client.ping()
                thread.join()
                accepted[0].close()
                with pytest.raises(AgentDisconnected):
                    client.ping()


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    client = AgentClient(str(tmp_path / "none"))
    with pytest.raises(AgentDisconnected, match=r"cannot connect to the agent at .*none: No such file or directory"):
        client.ping()
    with pytest.raises(AgentFailure):
        client.wait(0.1)


def test_tcp_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        for address in (f"tcp:127.0.0.1:{port}", ("127.0.0.1", port)):
            with AgentClient(address, timeout=10) as client:
                thread = threading.Thread(target=client.ping)
                thread.start()
                peer = Peer(listening.accept()[0], {"guest-ping": lambda arguments: {}})
                thread.join()
                assert peer.requests[-1]["execute"] == "guest-ping"
            peer.close()


def test_a_closed_client_says_so(pair: Pair) -> None:
    client, _ = pair()
    client.close()
    with pytest.raises(AgentDisconnected, match="closed"):
        client.ping()


def test_states(pair: Pair) -> None:
    ours, theirs = socket.socketpair()
    connection = AgentConnection(ours)
    peer = Peer(theirs, {})
    assert connection.state is ConnectionState.UNSYNCHRONISED
    connection.synchronise(10)
    assert connection.state is ConnectionState.READY
    connection.drop()
    assert connection.state is ConnectionState.DISCONNECTED
    connection.close()
    assert connection.state is ConnectionState.CLOSED
    peer.close()


# Answers


def test_errors_have_class_and_description(pair: Pair) -> None:
    client, _ = pair()
    with pytest.raises(AgentError) as caught:
        client.command("no-such-command")
    assert caught.value.error_class == "CommandNotFound"
    assert caught.value.desc == "The command no-such-command has not been found"
    assert str(caught.value) == "no-such-command: The command no-such-command has not been found"


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[1]\n", b"{}\n", b'{"error": 5}\n', b'{"error": {"desc": 1}}\n'])
def test_nonsense_is_refused_and_recovered_from(pair: Pair, answer: bytes) -> None:
    client, peer = pair({"guest-ping": lambda arguments: answer})
    with pytest.raises(AgentProtocolError):
        client.ping()
    peer.handlers["guest-ping"] = lambda arguments: {}
    client.ping()


def test_answers_of_the_wrong_type_are_refused(pair: Pair) -> None:
    client, _ = pair(
        {
            "guest-get-time": lambda arguments: "now",
            "guest-get-vcpus": lambda arguments: [{"logical-id": 0}],
            "guest-get-users": lambda arguments: {},
            "guest-get-host-name": lambda arguments: {"host-name": 7},
            "guest-file-read": lambda arguments: {"count": 1, "buf-b64": "!", "eof": False},
        }
    )
    for call, complaint in (
        (client.get_time, "guest-get-time: expected int, got str"),
        (client.get_vcpus, r"guest-get-vcpus\[0\].online is missing"),
        (client.get_users, "guest-get-users: expected a list"),
        (client.get_host_name, "guest-get-host-name.host-name: expected str, got int"),
        (lambda: client.file_read(1), "bad base64"),
    ):
        with pytest.raises(AgentProtocolError, match=complaint):
            call()


def test_silence_after_a_shutdown_is_success(pair: Pair) -> None:
    client, peer = pair({"guest-shutdown": lambda arguments: None, "guest-ping": lambda arguments: {}})
    client.shutdown("reboot", silence=0.02)
    assert peer.requests[-1] == {"execute": "guest-shutdown", "arguments": {"mode": "reboot"}}
    client.ping()
    with pytest.raises(AgentError, match="suspend-ram has not been found"):
        client.suspend_ram(silence=10)


def test_the_end_of_the_machine_after_a_shutdown_is_success(pair: Pair) -> None:
    client, peer = pair()
    peer.handlers["guest-shutdown"] = lambda arguments: peer._connection.shutdown(socket.SHUT_RDWR)
    client.shutdown(silence=10)


def test_records_keep_what_they_do_not_know() -> None:
    record = records.GuestTimezone.from_json({"offset": 3600, "zone": "CET", "dst": True})
    assert (record.offset, record.zone, record.raw["dst"]) == (3600, "CET", True)
    assert record == records.GuestTimezone(3600, "CET")


def test_records_go_back_as_they_came() -> None:
    wire = {"logical-id": 1, "online": False}
    assert records.GuestLogicalProcessor.from_json(wire).to_json() == wire


MEMBERS = st.sampled_from(["name", "online", "keys", "disk", "type", "mountpoint"])
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4),
)


@given(ANSWERS)
@settings(max_examples=150)
def test_any_answer_becomes_a_record_or_is_refused(value: Any) -> None:
    for kind in (records.GuestFilesystemInfo, records.GuestAuthorizedKeys, list[records.GuestUser], int, float):
        try:
            records.decode(kind, value, "x")
        except AgentProtocolError:
            pass


@given(st.lists(st.binary(max_size=30), max_size=5))
@settings(max_examples=40, deadline=None)
def test_any_bytes_from_the_guest_are_survived(chunks: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    with AgentClient(ours, timeout=5) as client:
        peer = Peer(theirs, {"guest-ping": lambda arguments: {}})
        peer.send(b"".join(chunks))
        client.ping()
        peer.close()


# Programs and files


def test_run_polls_until_the_program_has_ended(pair: Pair) -> None:
    states = iter([{"exited": False}, {"exited": True, "exitcode": 3, "out-data": "aGkK", "err-data": "b2g="}])
    client, peer = pair(
        {"guest-exec": lambda arguments: {"pid": 5}, "guest-exec-status": lambda arguments: next(states)}
    )
    result = client.run(["/bin/x", "a b"], input=b"in", env={"A": "1"})
    assert (result.exit_code, result.stdout, result.stderr, result.text, result.ok) == (3, b"hi\n", b"oh", "hi", False)
    assert peer.requests[1]["arguments"] == {
        "path": "/bin/x", "arg": ["a b"], "env": ["A=1"], "input-data": "aW4=", "capture-output": True,
    }  # fmt: skip
    with pytest.raises(ExecError, match=r"^/bin/x a b: exit status 3: oh$"):
        result.check()


def test_run_gives_a_string_to_the_shell(pair: Pair) -> None:
    client, peer = pair(
        {
            "guest-exec": lambda arguments: {"pid": 5},
            "guest-exec-status": lambda arguments: {"exited": True, "signal": 9},
        }
    )
    result = client.run("echo $X; kill -9 $$")
    assert peer.requests[1]["arguments"]["path"] == "/bin/sh"
    assert peer.requests[1]["arguments"]["arg"] == ["-c", "echo $X; kill -9 $$"]
    assert (result.exit_code, result.signal) == (None, 9)
    with pytest.raises(ExecError, match="signal 9"):
        result.check()


def test_a_program_that_does_not_end(pair: Pair) -> None:
    client, _ = pair(
        {"guest-exec": lambda arguments: {"pid": 77}, "guest-exec-status": lambda arguments: {"exited": False}}
    )
    with pytest.raises(ExecTimeout) as caught:
        client.run("sleep 1000", timeout=0.02)
    assert caught.value.pid == 77


class GuestFiles:
    """Files of a guest, written in the small pieces that an agent may choose."""

    def __init__(self) -> None:
        self.content = b""
        self.position = 0
        self.open = 0

    def handlers(self) -> dict[str, Handler]:
        return {
            "guest-file-open": self._open,
            "guest-file-close": self._close,
            "guest-file-read": self._read,
            "guest-file-write": self._write,
            "guest-file-flush": lambda arguments: {},
        }

    def _open(self, arguments: dict[str, Any]) -> int:
        self.open += 1
        self.position = 0
        if arguments["mode"] == "w":
            self.content = b""
        return 1000

    def _close(self, arguments: dict[str, Any]) -> dict[str, Any]:
        assert arguments == {"handle": 1000}
        self.open -= 1
        return {}

    def _read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        data = self.content[self.position : self.position + min(arguments["count"], 700_000)]
        self.position += len(data)
        encoded = base64.b64encode(data).decode()
        return {"count": len(data), "buf-b64": encoded, "eof": len(data) < arguments["count"]}

    def _write(self, arguments: dict[str, Any]) -> dict[str, Any]:
        data = base64.b64decode(arguments["buf-b64"])[:100_001]
        self.content += data
        return {"count": len(data), "eof": False}


def test_whole_files(pair: Pair) -> None:
    files = GuestFiles()
    client, _ = pair(files.handlers())
    content = os.urandom(1_000_000)
    client.write_file("/f", content)
    assert files.content == content
    assert client.read_file("/f") == content
    assert client.read_file("/f", 300_000) == content[:300_000]
    assert files.open == 0


def test_a_file_is_closed_after_an_error(pair: Pair) -> None:
    files = GuestFiles()
    client, peer = pair(files.handlers())
    del peer.handlers["guest-file-write"]
    with pytest.raises(AgentError):
        client.write_file("/f", b"x")
    peer.handlers["guest-file-write"] = lambda arguments: {"count": 0, "eof": False}
    with pytest.raises(AgentProtocolError, match="wrote nothing"):
        client.write_file("/f", b"x")
    assert files.open == 0


def test_passwords_and_blocks_are_encoded(pair: Pair) -> None:
    client, peer = pair(
        {
            "guest-set-user-password": lambda arguments: {},
            "guest-set-memory-blocks": lambda arguments: [{"phys-index": 1, "response": "success"}],
            "guest-set-vcpus": lambda arguments: len(arguments["vcpus"]),
        }
    )
    client.set_user_password("u", "geheim")
    assert peer.requests[-1]["arguments"] == {"username": "u", "password": "Z2VoZWlt", "crypted": False}
    responses = client.set_memory_blocks([records.GuestMemoryBlock(1, False)])
    assert peer.requests[-1]["arguments"] == {"mem-blks": [{"phys-index": 1, "online": False}]}
    assert responses[0].response == "success"
    assert client.set_vcpus([records.GuestLogicalProcessor(1, True)]) == 1


def test_frozen_thaws_whatever_happens(pair: Pair) -> None:
    client, peer = pair({"guest-fsfreeze-freeze": lambda arguments: 2, "guest-fsfreeze-thaw": lambda arguments: 2})
    counts: list[int] = []

    def fail() -> None:
        with client.frozen() as count:
            counts.append(count)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert counts == [2]
    assert peer.requests[-1]["execute"] == "guest-fsfreeze-thaw"


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
    with AgentClient(qemu_ga.path, timeout=20) as client:
        yield client.wait(20)


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


# Addresses, and agents that are not the same any more


def serve_vsock(path: Path, answer: bytes) -> tuple[socket.socket, threading.Thread, list[bytes]]:
    """Answer the first line of one client at `path`; what it was ends up in the list."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    lines: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            lines.append(stream.readline())
            connection.sendall(answer)
            for line in stream:
                request = json.loads(line.lstrip(b"\xff"))
                answer_line = json.dumps({"return": request.get("arguments", {}).get("id", {})}).encode() + b"\n"
                connection.sendall((b"\xff" if b"delimited" in line else b"") + answer_line)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listener, thread, lines


def test_agent_at_a_port_of_a_virtio_socket(tmp_path: Path) -> None:
    listener, thread, lines = serve_vsock(tmp_path / "vsock", b"OK 1073741824\n")
    with listener, AgentClient(f"vsock:{tmp_path}/vsock:1234", 10) as client:
        assert client.sync(3) == 3
        assert lines == [b"CONNECT 1234\n"]
    thread.join()


@pytest.mark.parametrize("answer", [b"x" * 100, b"NO 5\n"])
def test_nothing_at_the_port(tmp_path: Path, answer: bytes) -> None:
    listener, thread, _ = serve_vsock(tmp_path / "vsock", answer)
    address = f"vsock:{tmp_path}/vsock:99"
    with listener, AgentClient(address, 10) as client, pytest.raises(AgentAbsent, match="nothing listens at port 99"):
        client.ping()
    thread.join()


@pytest.mark.parametrize("address", ["tcp:host:nonsense", "vsock:/tmp/x", "vsock:/tmp/x:y"])
def test_addresses_that_are_none(address: str) -> None:
    with AgentClient(address, 5) as client, pytest.raises(AgentAbsent, match="that is no address"):
        client.ping()


def test_answer_of_another_agent_says_that_the_first_has_gone() -> None:
    ours, theirs = socket.socketpair()
    client, peer = AgentClient(ours, 30, probe=0.02), Peer(theirs, {"guest-get-time": lambda arguments: None})
    with client, pytest.raises(AgentRestarted, match="started anew"):
        client.get_time()
    peer.close()


def test_slow_agent_is_the_same_still() -> None:
    ours, theirs = socket.socketpair()

    def slow(arguments: dict[str, Any]) -> int:
        peer_waits.wait(0.2)
        return 7

    peer_waits = threading.Event()
    client, peer = AgentClient(ours, 30, probe=0.02), Peer(theirs, {"guest-get-time": slow})
    with client:
        assert [client.get_time() for _ in range(3)] == [7, 7, 7]
    peer.close()


def test_arguments_as_they_stand(pair: Pair) -> None:
    client, peer = pair({"guest-ping": lambda arguments: {}})
    client.execute("guest-ping", {"a_b": None, "c-d": [1]})
    assert peer.requests[-1] == {"execute": "guest-ping", "arguments": {"a_b": None, "c-d": [1]}}
