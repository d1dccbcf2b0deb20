"""Client of qemu-ga: every command as a method, and what people do with several of them together."""

from __future__ import annotations

import base64
import binascii
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pyvm.agent import records
from pyvm.agent.address import Address
from pyvm.agent.commands import COMMANDS
from pyvm.agent.connection import AgentConnection, wait_until_connected
from pyvm.agent.errors import AgentFailure, AgentProtocolError, ExecError, ExecTimeout
from pyvm.records import record

DEFAULT_TIMEOUT = 30.0
_SILENCE = 1.0
"""How long, in seconds, a command that answers only failure is given to fail."""
_CHUNK = 1 << 18
_FIRST_POLL = 0.002
_LONGEST_POLL = 0.25


@record(frozen=True)
class ExecResult:
    """What became of a program in the guest."""

    argv: tuple[str, ...]
    exit_code: int | None
    """None where a signal ended it."""
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool
    """Whether the agent kept only the first part of the output."""

    @property
    def ok(self) -> bool:
        """Whether the program ended with status 0."""
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """The standard output as text, without the last end of line."""
        return self.stdout.decode(errors="replace").removesuffix("\n")

    def check(self) -> ExecResult:
        """Return the result itself; raises ExecError unless the program ended with status 0."""
        if self.ok:
            return self
        end = f"signal {self.signal}" if self.exit_code is None else f"exit status {self.exit_code}"
        message = self.stderr.decode(errors="replace").strip()
        raise ExecError(f"{' '.join(self.argv)}: {end}" + (f": {message}" if message else ""))


class AgentClient:
    """A guest agent, reached over a socket; may be used from several threads.

    `address` is a path (``/tmp/ga.sock``), ``tcp:HOST:PORT``, a (host, port) pair, ``vsock:PATH:PORT``, or a connected
    socket.  The client connects when it is first used, and again after the connection has ended.  `timeout`, in
    seconds, is for each command that is not given one of its own.  With `probe`, an agent that does not answer for so
    many seconds is asked whether it is the same still; AgentRestarted says that it is not, without waiting longer.

    Every command may raise AgentError (the agent refuses), AgentTimeout, AgentDisconnected and AgentProtocolError.
    """

    def __init__(self, address: Address, timeout: float = DEFAULT_TIMEOUT, *, probe: float | None = None) -> None:
        self._connection = AgentConnection(address, probe)
        self.timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up for good."""
        self._connection.close()

    def reconnect(self) -> None:
        """Give the connection up; the next command makes a new one."""
        self._connection.drop()

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the agent answers, also where its socket is not there yet."""
        wait_until_connected(self._connection, timeout)
        return self

    def command(self, name: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Carry out any command by its name on the wire, and return what it returns.

        Underscores in the names of `arguments` become dashes; those that are None are left out.
        """
        known = COMMANDS.get(name)
        silent = _SILENCE if known is not None and not known.answers else None
        return self._request(name, arguments, timeout, silent)

    def execute(self, name: str, arguments: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """As :meth:`command`, with arguments just as they stand on the wire."""
        known = COMMANDS.get(name)
        silent = _SILENCE if known is not None and not known.answers else None
        given = dict(arguments)
        return self._connection.request(name, given, self.timeout if timeout is None else timeout, silent=silent)

    def _request(self, name: str, arguments: Mapping[str, Any], timeout: float | None, silent: float | None) -> Any:
        given = {key.replace("_", "-"): value for key, value in arguments.items() if value is not None}
        return self._connection.request(name, given, self.timeout if timeout is None else timeout, silent=silent)

    def _record(self, kind: Any, name: str, **arguments: Any) -> Any:
        return records.decode(kind, self.command(name, **arguments), name)

    # The agent itself

    def sync_delimited(self, id: int) -> int:  # noqa: A002 - the manual's name
        """Return `id` as the agent echoes it, after a 0xFF byte.  The client synchronises by itself where it has to."""
        return int(self._record(int, "guest-sync-delimited", id=id))

    def sync(self, id: int) -> int:  # noqa: A002 - the manual's name
        """Return `id` as the agent echoes it."""
        return int(self._record(int, "guest-sync", id=id))

    def synchronise(self, timeout: float | None = None) -> None:
        """Drop all that the agent still sends of earlier conversations."""
        self._connection.synchronise(self.timeout if timeout is None else timeout)

    def ping(self, timeout: float | None = None) -> None:
        """Return once the agent has answered."""
        self.command("guest-ping", timeout=timeout)

    def info(self) -> records.GuestAgentInfo:
        """Return the agent's version, and which commands it knows and may carry out."""
        result: records.GuestAgentInfo = self._record(records.GuestAgentInfo, "guest-info")
        return result

    # The whole guest

    def get_time(self) -> int:
        """Return the guest's time in ns since the epoch."""
        return int(self._record(int, "guest-get-time"))

    def set_time(self, time: int | None = None) -> None:
        """Set the guest's clock to `time` ns since the epoch, or from its RTC."""
        self.command("guest-set-time", time=time)

    def get_timezone(self) -> records.GuestTimezone:
        """Return the guest's time zone."""
        result: records.GuestTimezone = self._record(records.GuestTimezone, "guest-get-timezone")
        return result

    def get_osinfo(self) -> records.GuestOSInfo:
        """Return what operating system the guest runs."""
        result: records.GuestOSInfo = self._record(records.GuestOSInfo, "guest-get-osinfo")
        return result

    def get_host_name(self) -> str:
        """Return the guest's host name."""
        result: records.GuestHostName = self._record(records.GuestHostName, "guest-get-host-name")
        return result.host_name

    def get_users(self) -> list[records.GuestUser]:
        """Return who is logged in."""
        result: list[records.GuestUser] = self._record(list[records.GuestUser], "guest-get-users")
        return result

    def shutdown(self, mode: str | None = None, *, silence: float = _SILENCE) -> None:
        """Ask the guest for ``powerdown``, the default, ``halt`` or ``reboot``.

        Success has no answer: the method returns after `silence` seconds without a failure.
        """
        self._request("guest-shutdown", {"mode": mode}, None, silence)

    def suspend_disk(self, *, silence: float = _SILENCE) -> None:
        """Let the guest hibernate; success has no answer, as for :meth:`shutdown`."""
        self._request("guest-suspend-disk", {}, None, silence)

    def suspend_ram(self, *, silence: float = _SILENCE) -> None:
        """Let the guest sleep; success has no answer, as for :meth:`shutdown`."""
        self._request("guest-suspend-ram", {}, None, silence)

    def suspend_hybrid(self, *, silence: float = _SILENCE) -> None:
        """Let the guest write its hibernation image and sleep; success has no answer, as for :meth:`shutdown`."""
        self._request("guest-suspend-hybrid", {}, None, silence)

    # Programs

    def exec(
        self,
        path: str,
        arg: Sequence[str] | None = None,
        env: Sequence[str] | None = None,
        input_data: bytes | None = None,
        capture_output: bool | str | None = None,
    ) -> int:
        """Start a program and return its process ID; :meth:`run` also waits for it.

        `env` holds ``NAME=value`` and replaces the agent's environment; `capture_output` may be ``stdout``, ``stderr``,
        ``separated`` or ``merged`` where the agent is of version 8.0 or later.
        """
        result: records.GuestExec = self._record(
            records.GuestExec,
            "guest-exec",
            path=path,
            arg=None if arg is None else list(arg),
            env=None if env is None else list(env),
            input_data=None if input_data is None else _encode(input_data),
            capture_output=capture_output,
        )
        return result.pid

    def exec_status(self, pid: int) -> records.GuestExecStatus:
        """Return how a program is doing; the agent forgets one that has ended after saying so."""
        result: records.GuestExecStatus = self._record(records.GuestExecStatus, "guest-exec-status", pid=pid)
        return result

    @staticmethod
    def outputs(status: records.GuestExecStatus) -> tuple[bytes, bytes]:
        """Return what a program has written, as its status has it: standard output, and standard error."""
        return _decode(status.out_data), _decode(status.err_data)

    def run(
        self,
        argv: str | Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        check: bool = False,
    ) -> ExecResult:
        """Run a program in the guest to its end and return its status and output.

        A string is a command line for the guest's ``/bin/sh``; a sequence is a program and its arguments.  With `env`
        the program has these variables only.  Raises ExecTimeout after `timeout` seconds, while the program goes on;
        with `check` ExecError where it fails.
        """
        words = ("/bin/sh", "-c", argv) if isinstance(argv, str) else tuple(argv)
        if not words:
            raise ValueError("no program was given")
        variables = None if env is None else [f"{name}={value}" for name, value in env.items()]
        end = time.monotonic() + timeout
        pid = self.exec(words[0], words[1:], variables, input, capture_output=True)
        poll = _FIRST_POLL
        while True:
            status = self.exec_status(pid)
            if status.exited:
                break
            left = end - time.monotonic()
            if left <= 0:
                raise ExecTimeout(f"{' '.join(words)}: still running after {timeout} s", pid)
            time.sleep(min(poll, left))
            poll = min(2 * poll, _LONGEST_POLL)
        truncated = bool(status.out_truncated or status.err_truncated)
        stdout, stderr = self.outputs(status)
        result = ExecResult(words, status.exitcode, status.signal, stdout, stderr, truncated)
        return result.check() if check else result

    # Files

    def file_open(self, path: str, mode: str | None = None) -> int:
        """Open a file as fopen(3) does, by default for reading, and return a handle."""
        return int(self._record(int, "guest-file-open", path=path, mode=mode))

    def file_close(self, handle: int) -> None:
        """Close a file."""
        self.command("guest-file-close", handle=handle)

    def file_read(self, handle: int, count: int | None = None) -> tuple[bytes, bool]:
        """Return up to `count` bytes (by default 4096), and whether the end of the file was met."""
        result: records.GuestFileRead = self._record(
            records.GuestFileRead, "guest-file-read", handle=handle, count=count
        )
        return _decode(result.buf_b64), result.eof

    def file_write(self, handle: int, data: bytes, count: int | None = None) -> int:
        """Write `data`, or its first `count` bytes, and return how many bytes were written."""
        result: records.GuestFileWrite = self._record(
            records.GuestFileWrite, "guest-file-write", handle=handle, buf_b64=_encode(data), count=count
        )
        return result.count

    def file_seek(self, handle: int, offset: int, whence: int | str = "set") -> records.GuestFileSeek:
        """Move to `offset` from ``set`` (the start), ``cur`` or ``end``, and return where that is."""
        result: records.GuestFileSeek = self._record(
            records.GuestFileSeek, "guest-file-seek", handle=handle, offset=offset, whence=whence
        )
        return result

    def file_flush(self, handle: int) -> None:
        """Hand what was written to the guest's kernel."""
        self.command("guest-file-flush", handle=handle)

    @contextlib.contextmanager
    def opened(self, path: str, mode: str = "r") -> Iterator[int]:
        """Open a file for the length of a ``with`` block, and give its handle."""
        handle = self.file_open(path, mode)
        try:
            yield handle
        except BaseException:
            # The first error is the one to tell.
            with contextlib.suppress(AgentFailure):
                self.file_close(handle)
            raise
        self.file_close(handle)

    def read_file(self, path: str, limit: int | None = None) -> bytes:
        """Return the content of a file, or its first `limit` bytes."""
        content = bytearray()
        with self.opened(path) as handle:
            while limit is None or len(content) < limit:
                count = _CHUNK if limit is None else min(_CHUNK, limit - len(content))
                data, eof = self.file_read(handle, count)
                content += data
                if eof or not data:
                    break
        return bytes(content)

    def write_file(self, path: str, data: bytes, mode: str = "w") -> None:
        """Make `data` the content of a file, or with mode ``a`` add it at its end."""
        with self.opened(path, mode) as handle:
            position = 0
            while position < len(data):
                written = self.file_write(handle, data[position : position + _CHUNK])
                if written <= 0:
                    raise AgentProtocolError(f"{path}: the agent wrote nothing")
                position += written
            self.file_flush(handle)

    # File systems and disks

    def fsfreeze_status(self) -> str:
        """Return ``frozen`` or ``thawed``."""
        return str(self._record(str, "guest-fsfreeze-status"))

    def fsfreeze_freeze(self) -> int:
        """Write all file systems out and hold them; return how many.  Most commands are refused until the thaw."""
        return int(self._record(int, "guest-fsfreeze-freeze"))

    def fsfreeze_freeze_list(self, mountpoints: Sequence[str] | None = None) -> int:
        """Freeze the file systems mounted at `mountpoints`, or all; return how many."""
        points = None if mountpoints is None else list(mountpoints)
        return int(self._record(int, "guest-fsfreeze-freeze-list", mountpoints=points))

    def fsfreeze_thaw(self) -> int:
        """Let frozen file systems go on; return how many."""
        return int(self._record(int, "guest-fsfreeze-thaw"))

    @contextlib.contextmanager
    def frozen(self, mountpoints: Sequence[str] | None = None) -> Iterator[int]:
        """Keep file systems frozen for the length of a ``with`` block; gives how many there are."""
        count = self.fsfreeze_freeze() if mountpoints is None else self.fsfreeze_freeze_list(mountpoints)
        try:
            yield count
        finally:
            self.fsfreeze_thaw()

    def fstrim(self, minimum: int | None = None) -> list[records.GuestFilesystemTrimResult]:
        """Let all file systems discard free ranges of at least `minimum` bytes."""
        result: records.GuestFilesystemTrimResponse = self._record(
            records.GuestFilesystemTrimResponse, "guest-fstrim", minimum=minimum
        )
        return result.paths

    def get_fsinfo(self) -> list[records.GuestFilesystemInfo]:
        """Return the mounted file systems that lie on disks."""
        kind = list[records.GuestFilesystemInfo]
        result: list[records.GuestFilesystemInfo] = self._record(kind, "guest-get-fsinfo")
        return result

    def get_disks(self) -> list[records.GuestDiskInfo]:
        """Return disks and partitions."""
        result: list[records.GuestDiskInfo] = self._record(list[records.GuestDiskInfo], "guest-get-disks")
        return result

    def get_diskstats(self) -> list[records.GuestDiskStatsInfo]:
        """Return the counters of each disk."""
        kind = list[records.GuestDiskStatsInfo]
        result: list[records.GuestDiskStatsInfo] = self._record(kind, "guest-get-diskstats")
        return result

    # CPUs, memory, devices, network

    def get_vcpus(self) -> list[records.GuestLogicalProcessor]:
        """Return the CPUs that the guest knows, online or not."""
        kind = list[records.GuestLogicalProcessor]
        result: list[records.GuestLogicalProcessor] = self._record(kind, "guest-get-vcpus")
        return result

    def set_vcpus(self, vcpus: Sequence[records.GuestLogicalProcessor]) -> int:
        """Switch CPUs on and off one after the other; return how many went well before the first that did not."""
        return int(self._record(int, "guest-set-vcpus", vcpus=[vcpu.to_json() for vcpu in vcpus]))

    def get_cpustats(self) -> list[records.GuestCpuStats]:
        """Return what each CPU did with its time."""
        result: list[records.GuestCpuStats] = self._record(list[records.GuestCpuStats], "guest-get-cpustats")
        return result

    def get_memory_blocks(self) -> list[records.GuestMemoryBlock]:
        """Return the blocks of memory that the guest knows, online or not."""
        result: list[records.GuestMemoryBlock] = self._record(list[records.GuestMemoryBlock], "guest-get-memory-blocks")
        return result

    def set_memory_blocks(self, mem_blks: Sequence[records.GuestMemoryBlock]) -> list[records.GuestMemoryBlockResponse]:
        """Switch blocks of memory on and off; return what became of each."""
        kind = list[records.GuestMemoryBlockResponse]
        blocks = [block.to_json() for block in mem_blks]
        result: list[records.GuestMemoryBlockResponse] = self._record(kind, "guest-set-memory-blocks", mem_blks=blocks)
        return result

    def get_memory_block_info(self) -> records.GuestMemoryBlockInfo:
        """Return how large a block of memory is."""
        kind = records.GuestMemoryBlockInfo
        result: records.GuestMemoryBlockInfo = self._record(kind, "guest-get-memory-block-info")
        return result

    def get_devices(self) -> list[records.GuestDeviceInfo]:
        """Return device drivers; only Windows guests know the command."""
        result: list[records.GuestDeviceInfo] = self._record(list[records.GuestDeviceInfo], "guest-get-devices")
        return result

    def network_get_interfaces(self) -> list[records.GuestNetworkInterface]:
        """Return network interfaces with their addresses and counters."""
        kind = list[records.GuestNetworkInterface]
        result: list[records.GuestNetworkInterface] = self._record(kind, "guest-network-get-interfaces")
        return result

    # Accounts

    def set_user_password(self, username: str, password: str, crypted: bool = False) -> None:
        """Set the password of an account; `crypted` says that `password` went through crypt(3) already."""
        encoded = _encode(password.encode())
        self.command("guest-set-user-password", username=username, password=encoded, crypted=crypted)

    def ssh_get_authorized_keys(self, username: str) -> list[str]:
        """Return the public keys that may log in to an account."""
        kind = records.GuestAuthorizedKeys
        result: records.GuestAuthorizedKeys = self._record(kind, "guest-ssh-get-authorized-keys", username=username)
        return result.keys

    def ssh_add_authorized_keys(self, username: str, keys: Sequence[str], reset: bool | None = None) -> None:
        """Let public keys log in to an account; with `reset` no others."""
        self.command("guest-ssh-add-authorized-keys", username=username, keys=list(keys), reset=reset)

    def ssh_remove_authorized_keys(self, username: str, keys: Sequence[str]) -> None:
        """Let public keys no longer log in to an account."""
        self.command("guest-ssh-remove-authorized-keys", username=username, keys=list(keys))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decode(text: str | None) -> bytes:
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        raise AgentProtocolError("the agent sent bad base64") from None
