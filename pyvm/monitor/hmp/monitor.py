"""The human monitor on one character device: a prompt, a line editor, and the output of commands.

A person who does not read holds nobody up: while much output waits, input is not taken.  The monitor shows nothing of
its own accord, so what waits is bounded by the longest output of one command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.monitor.descriptors import NamedFds, first_fd
from pyvm.monitor.errors import QmpError
from pyvm.monitor.hmp.line_editor import LineEditor
from pyvm.monitor.hmp.shell import HumanState
from pyvm.monitor.version import EMULATED_VERSION

if TYPE_CHECKING:
    from pyvm.monitor.dispatcher import Dispatcher, Reply
    from pyvm.monitor.machine import MachineControl, Scheduler

PROMPT = "(qemu) "
"""Programs that drive a monitor wait for this very text."""
BANNER = f"QEMU {'.'.join(map(str, EMULATED_VERSION))} monitor - type 'help' for more information\n"
"""Programs that drive a monitor look for QEMU's, too; `info version` tells pyvm's own version."""

CHUNK = 64
"""Most bytes that are taken in one turn: each may lead to as much output as the line is long."""
OUTPUT_LIMIT = 256 << 10
"""Bytes of unread output beyond which input is not looked at any more."""


class DescriptorOwner(Protocol):
    """What keeps the descriptors that came with a conversation."""

    named_fds: NamedFds

    def take_fd(self) -> int | None:
        """Return the descriptor that the peer passed last, which the caller closes; None where there is none."""


class HumanClient:
    """A connection, as the dispatcher sees it: one line is executed at a time."""

    negotiating = False
    oob_enabled = False

    def __init__(self, human: HumanState, take_reply: Callable[[Reply], None], owner: DescriptorOwner) -> None:
        self.human = human
        self._owner = owner
        self._take_reply: Callable[[Reply], None] | None = take_reply

    def enable_capabilities(self, names: Iterable[str]) -> None:
        """Refuse: people negotiate nothing."""
        raise QmpError(f"no capabilities here: {', '.join(names)}")

    @property
    def named_fds(self) -> NamedFds:
        """The descriptors that got names in this monitor."""
        return self._owner.named_fds

    def take_fd(self) -> int | None:
        """Return the descriptor that the peer passed last, which the caller closes; None where there is none."""
        return self._owner.take_fd()

    def reply(self, reply: Reply) -> None:
        """Take the reply to the line that was submitted; nobody hears of it when the connection is closed."""
        if self._take_reply is not None:
            self._take_reply(reply)

    def close(self) -> None:
        """Drop replies from now on."""
        self._take_reply = None


class HumanMonitor:
    """A monitor for people; a front end as :class:`pyvm.chardev.base.Frontend` says.

    On a multiplexer it greets when it first gets the input, and shows nothing while another front end has it.
    """

    def __init__(self, chardev: Chardev, dispatcher: Dispatcher, machine: MachineControl, scheduler: Scheduler) -> None:
        """Serve whoever is on `chardev`.  Raises ValueError where another front end has the device."""
        self.named_fds = NamedFds()
        self._chardev = chardev
        self._dispatcher = dispatcher
        self._machine = machine
        self._scheduler = scheduler
        self._state = HumanState()
        self.editor = LineEditor(PROMPT, self._show, self._complete)
        self._state.history = self.editor.history.lines
        self._client: HumanClient | None = None
        self._greeted = False
        self._in_focus = True
        self._executing = False
        self._proceeding = False
        self._typed = bytearray()
        """Input that waits for the command before it to end."""
        self._output = bytearray()
        """What the terminal has not taken yet."""
        chardev.attach(self)

    def close(self) -> None:
        """End the conversation and let go of the device."""
        self._end()
        self._chardev.detach()
        self.named_fds.close()

    def take_fd(self) -> int | None:
        """Return the first of the descriptors that the peer passed last, and close the others."""
        return first_fd(self._chardev)

    # ---- The chardev's front end

    @property
    def _suspended(self) -> bool:
        return (
            not self._greeted
            or self._client is None
            or self._executing
            or not self._in_focus
            or len(self._output) > OUTPUT_LIMIT
        )

    def can_receive(self) -> int:
        """Return how many bytes :meth:`receive` can take now."""
        return 0 if self._suspended or self._typed else CHUNK

    def receive(self, data: bytes) -> None:
        """Take bytes from the keyboard."""
        if self._client is not None:
            self._typed += data
            self._proceed()

    def event(self, event: ChardevEvent) -> None:
        """Hear what happened to the connection."""
        match event:
            case ChardevEvent.OPENED:
                self._end()
                self._client = HumanClient(self._state, self._reply, self)
                self._dispatcher.attach(self._client)
                # Which front end of a multiplexer gets the input is settled only when all are there.
                self._scheduler.call_soon(self._greet)
            case ChardevEvent.CLOSED:
                self._end()
            case ChardevEvent.MUX_IN:
                self._enter_focus()
            case ChardevEvent.MUX_OUT:
                self._leave_focus()
            case ChardevEvent.BREAK:
                pass

    def writable(self) -> None:
        """The terminal takes more."""
        self._flush()
        self._resume()

    # ---- The conversation

    def _greet(self) -> None:
        if self._client is not None and self._in_focus and not self._greeted:
            self._greeted = True
            self._show(BANNER)
            self.editor.start()
            self._resume()

    def _end(self) -> None:
        """Forget the connection and all that came of it; the history stays."""
        if self._client is not None:
            self._client.close()
            self._dispatcher.withdraw(self._client)
            self._client = None
        self._greeted = self._executing = False
        self._typed.clear()
        self._output.clear()
        self.editor.reset()

    def _enter_focus(self) -> None:
        if self._in_focus:
            return
        self._in_focus = True
        if not self._greeted:
            self._scheduler.call_soon(self._greet)
            return
        if not self._executing:
            self.editor.reset()
            self.editor.start()
        self._flush()
        self._resume()

    def _leave_focus(self) -> None:
        if self._in_focus and self._greeted:
            self._show("\n")
        self._in_focus = False

    def _resume(self) -> None:
        """Look at input that waited, here first and then in the back end."""
        self._proceed()
        if self.can_receive():
            self._chardev.accept_input()

    def _proceed(self) -> None:
        """Look at the input until it is used up or the monitor is suspended."""
        if self._proceeding:
            return
        self._proceeding = True
        try:
            while self._typed and not self._suspended:
                line = self.editor.feed(self._typed.pop(0))
                if line is not None:
                    self._execute(line)
        finally:
            self._proceeding = False

    def _execute(self, line: str) -> None:
        assert self._client is not None, "input without a connection is dropped"
        self._executing = True
        request = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
        self._dispatcher.submit(self._client, request)

    def _reply(self, reply: Reply) -> None:
        """Show what a line led to, and the prompt for the next."""
        self._write(reply["return"] if "return" in reply else f"Error: {reply['error']['desc']}\r\n")
        if self._state.ended:
            return
        self._executing = False
        self.editor.start()
        if not self._proceeding:
            self._scheduler.call_soon(self._resume)

    def _complete(self, text: str) -> tuple[int, list[str]]:
        from pyvm.monitor.hmp.completion import complete
        from pyvm.monitor.hmp.shell import Shell

        if self._client is None:
            return 0, []
        return complete(Shell(self._dispatcher.context(self._client), self._state), text)

    # ---- Output

    def _show(self, text: str) -> None:
        self._write(text.replace("\n", "\r\n"))

    def _write(self, text: str) -> None:
        self._output += text.encode("utf-8", "surrogateescape")
        if self._in_focus:
            self._flush()

    def _flush(self) -> None:
        while self._output and (taken := self._chardev.write(bytes(self._output[:OUTPUT_LIMIT]))):
            del self._output[:taken]
