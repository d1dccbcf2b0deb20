"""Machines for scripts and tests: start one from the options of the command line, and talk to what runs in it.

>>> with Machine("-kernel", "bzImage", initrd="initrd", append="console=ttyS0", m=512) as vm:    # doctest: +SKIP
...     vm.wait_agent()
...     print(vm.run("uname -r").text)

The machine runs in this process, in threads of its own.  Its serial console, its guest agent and a QMP monitor are
connected to the object by sockets that exist in no file system.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pyvm.agent import AgentClient, AgentFailure, ExecResult
from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.options import escape
from pyvm.qmp_client import Event, QmpClient, QmpFailure, QmpTimeout

if TYPE_CHECKING:
    from pyvm.config import MachineConfig
    from pyvm.machine import Pc

DEFAULT_TIMEOUT = 60.0
AGENT_PORT = "org.qemu.guest_agent.0"
_TAIL_LINES = 25
_CONSOLE_LIMIT = 64 << 20
_CONTROLLERS = ("virtio-serial-pci", "virtio-serial", "virtio-serial-pci-non-transitional")
_ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[@-~]|[()][0-9A-Za-z]|[=>78cDEHM])")

OptionValue = str | int | bool | Mapping[str, Any] | Sequence[Any] | None

_END_CHECK_SECONDS = 0.5
_Result = TypeVar("_Result")


class MachineError(Exception):
    """Something that was waited for did not happen; the message ends with what the console showed last."""


class Console:
    """The guest's serial console: all that it has written, and a way to type."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._log = bytearray()
        self._dropped = 0
        self._position = 0
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="console", daemon=True)
        self._reader.start()

    @property
    def log(self) -> bytes:
        """All that the guest has written (the last 64 MiB of it)."""
        with self._changed:
            return bytes(self._log)

    @property
    def text(self) -> str:
        """The log as text, with plain line ends."""
        return self.log.decode(errors="replace").replace("\r\n", "\n")

    @property
    def tail(self) -> str:
        """The last lines of the log, without control sequences."""
        with self._changed:
            recent = bytes(self._log[-16384:])
        lines = _ESCAPES.sub("", recent.decode(errors="replace")).replace("\r", "").rstrip().split("\n")
        return "\n".join(lines[-_TAIL_LINES:])

    def write(self, data: str | bytes) -> None:
        """Type `data`; raises MachineError where the machine has ended."""
        try:
            self._socket.sendall(data.encode() if isinstance(data, str) else data)
        except OSError:
            raise MachineError("the machine has ended: nobody reads the console") from None

    def wait(self, pattern: str | bytes, timeout: float, *, rewind: bool = False) -> re.Match[bytes] | None:
        """Return the first match of a regular expression, or None after `timeout` s or at the end of the console.

        The search goes on where the last match ended, or with `rewind` begins at the start of the log.  `^` and `$`
        match at lines.
        """
        expression = re.compile(pattern.encode() if isinstance(pattern, str) else pattern, re.MULTILINE)
        end = time.monotonic() + timeout
        with self._changed:
            start = 0 if rewind else max(0, self._position - self._dropped)
            while True:
                if expression.search(self._log, start) is not None:
                    # Once more in a copy: the log goes on growing under the match.
                    match = expression.search(bytes(self._log), start)
                    assert match is not None
                    self._position = self._dropped + match.end()
                    return match
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        """Disconnect; the log stays."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._socket.close()

    @property
    def ended(self) -> bool:
        """Whether the machine has closed the console."""
        return self._ended

    def _read(self) -> None:
        try:
            while data := self._socket.recv(1 << 16):
                with self._changed:
                    self._log += data
                    surplus = len(self._log) - _CONSOLE_LIMIT
                    if surplus > 0:
                        del self._log[:surplus]
                        self._dropped += surplus
                    self._changed.notify_all()
        except OSError:
            pass  # as good as an end of file
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Machine:
    """One virtual machine.

    `arguments` are words of pyvm's command line.  Keywords are options too: ``kernel="bzImage"``, ``m=512``,
    ``S=True``, ``no_reboot=True``, ``device=["virtio-rng-pci", {"driver": "virtio-balloon-pci", "id": "b0"}]``.
    `agent` says whether the guest gets a port for its agent, unless the options give it one.  Raises ConfigError,
    with the message that ``pyvm`` would give, where the options make no sense.

    Used in a ``with`` statement, the machine is started at its beginning and has ended after it.
    """

    def __init__(self, *arguments: str, agent: bool = True, **options: OptionValue) -> None:
        self.arguments = [*arguments, *option_words(options)]
        self._with_agent = agent
        self._asked_for = parse_arguments(self.arguments)
        for name in ("daemonize", "pidfile"):
            if getattr(self._asked_for, name):
                raise ConfigError(f"-{name} is for the command pyvm, not for a machine within a script")
        self._more: dict[str, Any] = {}
        """Members of the configuration that no option can say."""
        self._pc: Pc | None = None
        self._console: Console | None = None
        self._agent: AgentClient | None = None
        self._qmp: QmpClient | None = None

    @property
    def command_line(self) -> str:
        """What to type to have this machine on a terminal."""
        words = ["pyvm", *self.arguments]
        return shlex.join(words if "-nographic" in words else [*words, "-nographic"])

    # Its life

    def start(self) -> Self:
        """Switch the machine on (with ``-S``: ready to be resumed); raises ConfigError where that cannot be."""
        if self._pc is not None:
            raise MachineError("the machine was started already")
        from pyvm.machine import Pc
        from pyvm.native import barrier

        barrier()  # the first one takes the kernel many milliseconds once the process has threads
        plugs = Plugs()
        try:
            config = self._plugged(plugs)
            for name, value in self._more.items():
                setattr(config, name, value)
            self._pc = Pc(config)
            self._pc.start()
            self._qmp = QmpClient(plugs.ours["qmp"])
        except BaseException:
            self.stop()
            plugs.close()
            raise
        if "console" in plugs.ours:
            self._console = Console(plugs.ours["console"])
        if "agent" in plugs.ours:
            self._agent = AgentClient(plugs.ours["agent"])
        return self

    def _plugged(self, plugs: Plugs) -> MachineConfig:
        """Return the machine asked for, with its console, agent port and a monitor connected to `plugs`."""
        given = self._asked_for
        words = [*self.arguments, "-mon", f"chardev={plugs.chardev_id('qmp')},mode=control"]
        words += plugs.add("qmp")
        has_serial = any(word in ("-serial", "--serial") for word in self.arguments)
        if not has_serial and given.board.type != "none":
            words += [*plugs.add("console"), "-serial", f"chardev:{plugs.chardev_id('console')}"]
        taken = any(device.properties.get("name") == AGENT_PORT for device in given.devices)
        if self._with_agent and not taken and given.board.type != "none":
            if not any(device.driver in _CONTROLLERS for device in given.devices):
                words += ["-device", "virtio-serial-pci"]
            words += plugs.add("agent")
            words += ["-device", f"virtserialport,chardev={plugs.chardev_id('agent')},name={AGENT_PORT}"]
        return parse_arguments(words)

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Save the machine, which goes on, in a new folder.  Raises MachineError.

        The folder has copies of the disks that the machine writes to, as far as their topmost images go; backing files,
        and images that are only read, must stay as they are.
        """
        self._held("saved", lambda pc: pc.save_snapshot(os.fspath(path), self._own_arguments()))

    def _held(self, what: str, action: Callable[[Pc], _Result]) -> _Result:
        """Return what `action` does in the machine's main loop; raises MachineError for whatever it raises."""
        pc, done = self._running(), threading.Event()
        results: list[_Result] = []
        failures: list[Exception] = []

        def act() -> None:
            try:
                results.append(action(pc))
            except Exception as error:  # noqa: BLE001 - whoever called is to have it
                failures.append(error)
            done.set()

        pc.mainloop.call_soon(act)
        while not done.wait(_END_CHECK_SECONDS):
            if pc.wait(0):
                raise MachineError(f"the machine has ended before it could be {what}")
        if failures:
            raise MachineError(f"the machine could not be {what}: {failures[0]}") from failures[0]
        return results[0]

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        *arguments: str,
        agent: bool = True,
        disks: Literal["overlay", "images"] = "overlay",
        clock: Literal["keep", "step"] = "keep",
        **options: OptionValue,
    ) -> Self:
        """Return the machine that was saved in a folder, to be started; any number can be made of one folder.

        The arguments are added to those that made the saved machine.  What the machine writes to its disks goes to
        temporary files, and is gone when it ends; with ``disks="images"`` it goes on with the images themselves, which
        must not have changed since.  Guest time goes on where it stood, or with ``clock="step"`` as if the machine had
        run meanwhile; the RTC shows the host's time in any case.  Raises MachineError.
        """
        from pyvm.migration.snapshot import Snapshot
        from pyvm.migration.state_file import SnapshotError

        try:
            saved = Snapshot(os.fspath(path))
        except SnapshotError as error:
            raise MachineError(str(error)) from None
        incoming = f"file:{os.fspath(path)},disks={disks},clock={clock}"
        machine = cls(*saved.arguments, *arguments, "-incoming", incoming, agent=agent, **options)
        machine._more["saved"] = saved
        return machine

    def fork(self, *arguments: str, **options: OptionValue) -> Self:
        """Return a second machine that goes on from where this one is, started, and running if this one runs.

        It takes some milliseconds.  Memory is shared until one of them writes to it.  Disks that can be written become
        read-only, and what either machine writes from now on goes to temporary files, which are gone when they end:
        this machine's image stays as it is at this moment.  The second machine has a console, an agent port and a
        monitor of its own; the arguments are added to this one's.  Raises MachineError, and ConfigError.
        """
        words = [*self._own_arguments(), *arguments]
        child = type(self)(*words, agent=self._with_agent, **options)
        was_running, forked = self._held("forked", lambda pc: (pc.lifecycle.states.running, pc.fork()))
        child._more = {"forked": forked, "start_paused": not was_running}
        try:
            return child.start()
        finally:
            forked.close()

    def _own_arguments(self) -> list[str]:
        """Return the words that make such a machine, wherever this one went on from."""
        words = []
        rest = iter(self.arguments)
        for word in rest:
            if word.lstrip("-") in ("incoming", "loadvm"):
                next(rest, None)
            else:
                words.append(word)
        return words

    def stop(self) -> None:
        """Switch the machine off and wait until it has ended; does nothing where it has."""
        if self._pc is not None and not self._pc.wait(0):
            self._pc.stop()
        for end in (self._agent, self._qmp, self._console):
            if end is not None:
                end.close()

    def wait(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until the machine has ended by itself, as after a shutdown in the guest."""
        if not self._running().wait(timeout):
            raise self._error(f"the machine has not ended within {timeout} s")

    def __enter__(self) -> Self:
        return self.start() if self._pc is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> Pc:
        if self._pc is None:
            raise MachineError("the machine has not been started")
        return self._pc

    def _error(self, message: str) -> MachineError:
        tail = self._console.tail if self._console is not None else ""
        if tail:
            message += "\n--- the console's last lines:\n" + tail
        return MachineError(message)

    # Its console

    @property
    def console(self) -> Console:
        """The serial console; raises MachineError where the options put it somewhere else."""
        self._running()
        if self._console is None:
            raise MachineError("the options give the serial port to somebody else")
        return self._console

    @property
    def console_text(self) -> str:
        """All that the serial console has shown."""
        return self._console.text if self._console is not None else ""

    @property
    def console_tail(self) -> str:
        """The last lines that the serial console has shown."""
        return self._console.tail if self._console is not None else ""

    def wait_console(
        self, pattern: str | bytes, timeout: float = DEFAULT_TIMEOUT, *, rewind: bool = False
    ) -> re.Match[bytes]:
        """Wait until the console shows something that matches a regular expression, and return the match.

        What was matched before is not looked at again, so one can wait for the same prompt twice; with `rewind` all
        that was ever shown counts.
        """
        match = self.console.wait(pattern, timeout, rewind=rewind)
        if match is None and self.console.ended:
            raise self._error(f"the machine ended and the console never showed {pattern!r}")
        if match is None:
            raise self._error(f"the console has not shown {pattern!r} within {timeout} s")
        return match

    def console_write(self, data: str | bytes) -> None:
        """Type on the serial console."""
        self.console.write(data)

    # Its agent

    @property
    def agent(self) -> AgentClient:
        """The client of the agent in the guest; raises MachineError where the machine has no port for it."""
        self._running()
        if self._agent is None:
            raise MachineError("the machine has no port for its agent, or the options give it to somebody else")
        return self._agent

    def wait_agent(self, timeout: float = DEFAULT_TIMEOUT) -> AgentClient:
        """Wait until the agent in the guest answers, and return its client."""
        try:
            return self.agent.wait(timeout)
        except AgentFailure as error:
            raise self._error(f"waited for the guest agent: {error}") from None

    def run(
        self,
        argv: str | Sequence[str],
        timeout: float = DEFAULT_TIMEOUT,
        *,
        input: bytes | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> ExecResult:
        """Run a program in the guest, or a shell command line, and return its status and output.

        Raises ExecError where it fails, unless `check` is false, and what the agent's client raises.
        """
        return self.agent.run(argv, input=input, env=env, timeout=timeout, check=check)

    def read_file(self, path: str) -> bytes:
        """Return the content of a file in the guest."""
        return self.agent.read_file(path)

    def write_file(self, path: str, data: bytes) -> None:
        """Make `data` the content of a file in the guest."""
        self.agent.write_file(path, data)

    def copy_in(self, source: str | os.PathLike[str], target: str) -> None:
        """Copy a file of the host to the guest."""
        with open(source, "rb") as file:
            self.write_file(target, file.read())

    def copy_out(self, source: str, target: str | os.PathLike[str]) -> None:
        """Copy a file of the guest to the host."""
        data = self.read_file(source)
        with open(target, "wb") as file:
            file.write(data)

    # Its screen

    def screenshot(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """Return what the screen shows as a PNG image, and write that to a file where `path` names one."""
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            name = os.path.abspath(path) if path is not None else os.path.join(directory, "screen.png")
            self.qmp("screendump", filename=name, format="png")
            with open(name, "rb") as file:
                return file.read()

    def send_keys(self, *keys: str) -> None:
        """Press keys together on the keyboard, by QEMU's names for them: ``send_keys("ctrl", "alt", "delete")``."""
        self.qmp("send-key", keys=[{"type": "qcode", "data": key} for key in keys])

    # Its monitor

    @property
    def monitor(self) -> QmpClient:
        """The QMP client of the machine's monitor."""
        self._running()
        if self._qmp is None:
            raise MachineError("the machine could not be started")
        return self._qmp

    @property
    def qmp_log(self) -> list[str]:
        """The last lines of the QMP conversation."""
        return list(self._qmp.log) if self._qmp is not None else []

    def qmp(self, command: str, /, **arguments: Any) -> Any:
        """Carry out a QMP command and return what it returns; raises QmpError where the machine refuses.

        Underscores in the names of `arguments` become dashes.
        """
        return self.monitor.command(command, **arguments)

    def wait_event(self, name: str, timeout: float = DEFAULT_TIMEOUT) -> Event:
        """Wait for a QMP event, or take one that has come already, and return it."""
        try:
            return self.monitor.wait_event(name, timeout=timeout)
        except QmpTimeout:
            raise self._error(f"the event {name} has not come within {timeout} s") from None
        except QmpFailure as error:
            raise self._error(str(error)) from None

    def pause(self) -> None:
        """Hold the guest still."""
        self.qmp("stop")

    def resume(self) -> None:
        """Let the guest go on."""
        self.qmp("cont")

    def reset(self) -> None:
        """Press the reset button."""
        self.qmp("system_reset")

    def powerdown(self) -> None:
        """Press the power button: the guest may shut down, and :meth:`wait` tells when it has."""
        self.qmp("system_powerdown")

    def quit(self) -> None:
        """End the machine at once."""
        with contextlib.suppress(QmpFailure):
            self.qmp("quit")
        self.stop()


class Plugs:
    """Socket pairs between a machine's back ends and this process."""

    def __init__(self) -> None:
        self.ours: dict[str, socket.socket] = {}
        self._lent: list[tuple[int, int]] = []
        """Descriptor and inode of each side that a machine is to take over."""

    @staticmethod
    def chardev_id(name: str) -> str:
        """Return the ID of the back end for `name`."""
        return f"pyvm-{name}"

    def add(self, name: str) -> list[str]:
        """Make a pair, and return the words that connect a back end to its other side."""
        ours, theirs = socket.socketpair()
        self.ours[name] = ours
        fd = theirs.detach()
        self._lent.append((fd, os.fstat(fd).st_ino))
        return ["-chardev", f"socket,id={self.chardev_id(name)},fd={fd}"]

    def close(self) -> None:
        """Give everything back after a failed start, also the sides that the machine did not come to take over."""
        for ours in self.ours.values():
            ours.close()
        for fd, inode in self._lent:
            with contextlib.suppress(OSError):
                # The machine may have closed it, and the number may be another file's by now.
                if os.fstat(fd).st_ino == inode:
                    os.close(fd)


def option_words(options: Mapping[str, OptionValue]) -> list[str]:
    """Return keyword options as words of a command line.

    Underscores become dashes; True is an option without argument, None and False leave it out; a list repeats the
    option; a mapping is ``key=value,...`` with booleans as ``on`` and ``off``.
    """
    words: list[str] = []
    for name, value in options.items():
        option = "-" + (name if name == "fw_cfg" else name.replace("_", "-"))
        several = isinstance(value, Sequence) and not isinstance(value, str)
        for item in value if several and isinstance(value, Sequence) else [value]:
            if item is True:
                words.append(option)
            elif isinstance(item, Mapping):
                words += [option, ",".join(f"{key}={escape(_option_text(part))}" for key, part in item.items())]
            elif item is not None and item is not False:
                words += [option, str(item)]
    return words


def _option_text(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
