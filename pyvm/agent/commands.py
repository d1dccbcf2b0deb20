"""The agent's 42 commands as data: arguments, result, and the version of QEMU they came with.

Specification: QEMU Guest Agent Protocol Reference 8.2 (the commands are the same from 7.1 on).
"""

from __future__ import annotations

from pyvm.records import field, record


@record(frozen=True)
class Command:
    """One command: the kind of each argument by name, those that may be left out, and what comes back."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    result: str = "nothing"
    since: str = "0.15.0"
    answers: bool = True
    """Whether success is answered; otherwise only failure is."""

    @property
    def method(self) -> str:
        """The name of the client's method."""
        return self.name.removeprefix("guest-").replace("-", "_")


def _command(name: str, arguments: str, result: str, since: str, *, answers: bool = True) -> Command:
    """Make a command of arguments written ``name: kind, name?: kind``."""
    kinds: dict[str, str] = {}
    optional = set()
    for argument in filter(None, arguments.split(", ")):
        key, _, kind = argument.partition(": ")
        kinds[key.rstrip("?")] = kind
        if key.endswith("?"):
            optional.add(key[:-1])
    return Command(name, kinds, frozenset(optional), result, since, answers)


_EXEC = (
    "path: string, arg?: array of string, env?: array of string, input-data?: string, "
    "capture-output?: GuestExecCaptureOutput"
)
_SSH = "username: string, keys: array of string"

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        _command("guest-sync-delimited", "id: int", "int", "1.1"),
        _command("guest-sync", "id: int", "int", "0.15.0"),
        _command("guest-ping", "", "nothing", "0.15.0"),
        _command("guest-get-time", "", "int", "1.5"),
        _command("guest-set-time", "time?: int", "nothing", "1.5"),
        _command("guest-info", "", "GuestAgentInfo", "0.15.0"),
        _command("guest-shutdown", "mode?: string", "nothing", "0.15.0", answers=False),
        _command("guest-file-open", "path: string, mode?: string", "int", "0.15.0"),
        _command("guest-file-close", "handle: int", "nothing", "0.15.0"),
        _command("guest-file-read", "handle: int, count?: int", "GuestFileRead", "0.15.0"),
        _command("guest-file-write", "handle: int, buf-b64: string, count?: int", "GuestFileWrite", "0.15.0"),
        _command("guest-file-seek", "handle: int, offset: int, whence: GuestFileWhence", "GuestFileSeek", "0.15.0"),
        _command("guest-file-flush", "handle: int", "nothing", "0.15.0"),
        _command("guest-fsfreeze-status", "", "GuestFsfreezeStatus", "0.15.0"),
        _command("guest-fsfreeze-freeze", "", "int", "0.15.0"),
        _command("guest-fsfreeze-freeze-list", "mountpoints?: array of string", "int", "2.2"),
        _command("guest-fsfreeze-thaw", "", "int", "0.15.0"),
        _command("guest-fstrim", "minimum?: int", "GuestFilesystemTrimResponse", "1.2"),
        _command("guest-suspend-disk", "", "nothing", "1.1", answers=False),
        _command("guest-suspend-ram", "", "nothing", "1.1", answers=False),
        _command("guest-suspend-hybrid", "", "nothing", "1.1", answers=False),
        _command("guest-network-get-interfaces", "", "array of GuestNetworkInterface", "1.1"),
        _command("guest-get-vcpus", "", "array of GuestLogicalProcessor", "1.5"),
        _command("guest-set-vcpus", "vcpus: array of GuestLogicalProcessor", "int", "1.5"),
        _command("guest-get-disks", "", "array of GuestDiskInfo", "5.2"),
        _command("guest-get-fsinfo", "", "array of GuestFilesystemInfo", "2.2"),
        _command("guest-set-user-password", "username: string, password: string, crypted: boolean", "nothing", "2.3"),
        _command("guest-get-memory-blocks", "", "array of GuestMemoryBlock", "2.3"),
        _command(
            "guest-set-memory-blocks",
            "mem-blks: array of GuestMemoryBlock",
            "array of GuestMemoryBlockResponse",
            "2.3",
        ),
        _command("guest-get-memory-block-info", "", "GuestMemoryBlockInfo", "2.3"),
        _command("guest-exec-status", "pid: int", "GuestExecStatus", "2.5"),
        _command("guest-exec", _EXEC, "GuestExec", "2.5"),
        _command("guest-get-host-name", "", "GuestHostName", "2.10"),
        _command("guest-get-users", "", "array of GuestUser", "2.10"),
        _command("guest-get-timezone", "", "GuestTimezone", "2.10"),
        _command("guest-get-osinfo", "", "GuestOSInfo", "2.10"),
        _command("guest-get-devices", "", "array of GuestDeviceInfo", "5.2"),
        _command("guest-ssh-get-authorized-keys", "username: string", "GuestAuthorizedKeys", "5.2"),
        _command("guest-ssh-add-authorized-keys", f"{_SSH}, reset?: boolean", "nothing", "5.2"),
        _command("guest-ssh-remove-authorized-keys", _SSH, "nothing", "5.2"),
        _command("guest-get-diskstats", "", "array of GuestDiskStatsInfo", "7.1"),
        _command("guest-get-cpustats", "", "array of GuestCpuStats", "7.1"),
    )
}
