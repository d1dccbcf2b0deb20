"""The terminal or pipe that pyvm was started on, as a back end: `stdio`.

A terminal is in raw mode while pyvm has it: every key goes to the guest.  Its modes are restored when the device is
closed, when the process ends, and while the process is stopped by job control.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import stat
import termios
import threading
from types import FrameType
from typing import Any, ClassVar

from pyvm.chardev.base import ChardevError
from pyvm.chardev.stream import StreamChardev
from pyvm.chardev.terminal import make_raw
from pyvm.mainloop import MainLoop

_STDIN = 0
_STDOUT = 1


class StdioChardev(StreamChardev):
    """Standard input and output.  A process has them once, so only one such device can be."""

    _owner: ClassVar[StdioChardev | None] = None

    def __init__(self, label: str, loop: MainLoop, *, signals: bool = True) -> None:
        """Take over standard input and output; raises ChardevError.

        `signals` leaves Ctrl-C and the like to the terminal, which ends pyvm; else the guest gets them.
        """
        if StdioChardev._owner is not None:
            raise ChardevError("cannot use stdio by multiple character devices")
        super().__init__(label, loop)
        self._signals = signals
        self._opened: list[int] = []
        self._blocking_again: list[int] = []
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        try:
            self._in_fd = self._non_blocking(_STDIN, os.O_RDONLY)
            self._out_fd = self._non_blocking(_STDOUT, os.O_WRONLY)
        except OSError as error:
            self._give_back_fds()
            raise ChardevError(f"cannot use stdio: {error.strerror}") from error
        StdioChardev._owner = self
        if os.isatty(_STDIN):
            self._take_terminal()

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "stdio"

    def _non_blocking(self, fd: int, access: int) -> int:
        """Return a non-blocking descriptor of the file that `fd` is.

        The flag belongs to the open file, which other processes and our own messages share; so a terminal or pipe is
        opened anew.  A regular file never blocks, and its position must stay the shared one.
        """
        mode = os.fstat(fd).st_mode
        if not stat.S_IFMT(mode):
            # An epoll or the like of our own: the process was started with the number unused.
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if stat.S_ISREG(mode):
            return fd
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                opened = os.open(f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:
                pass  # another user's terminal, or a pipe whose other end is gone
            else:
                self._opened.append(opened)
                return opened
        if os.get_blocking(fd):
            os.set_blocking(fd, False)
            self._blocking_again.append(fd)
        return fd

    def _give_back_fds(self) -> None:
        for fd in self._opened:
            os.close(fd)
        for fd in self._blocking_again:
            try:
                os.set_blocking(fd, True)
            except OSError:
                pass  # closed by its owner
        self._opened.clear()
        self._blocking_again.clear()

    def _take_terminal(self) -> None:
        try:
            self._saved = termios.tcgetattr(_STDIN)
        except termios.error:
            return
        atexit.register(self._restore)
        if threading.current_thread() is threading.main_thread():
            for number, handler in ((signal.SIGTSTP, self._suspend), (signal.SIGCONT, self._resume)):
                self._handlers[number] = signal.signal(number, handler)
        self._make_raw()

    def _make_raw(self) -> None:
        """Set raw mode, but in the foreground only: a background job that touches the terminal is stopped."""
        try:
            if os.tcgetpgrp(_STDIN) == os.getpgrp():
                make_raw(_STDIN, signals=self._signals, output_processing=True)
        except termios.error:
            pass  # the terminal is gone
        except OSError as error:
            if error.errno == errno.ENOTTY:  # not our controlling terminal, so job control does not guard it
                make_raw(_STDIN, signals=self._signals, output_processing=True)

    def _restore(self) -> None:
        if self._saved is None:
            return
        try:
            if self._handlers and os.tcgetpgrp(_STDIN) != os.getpgrp():
                return  # in the background: the shell has its own modes set
        except OSError:
            pass
        try:
            termios.tcsetattr(_STDIN, termios.TCSANOW, self._saved)
        except termios.error:
            pass  # the terminal is gone

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)

    def _resume(self, number: int, frame: FrameType | None) -> None:
        if self._saved is None:
            return
        signal.signal(signal.SIGTSTP, self._suspend)
        self._make_raw()

    def close(self) -> None:
        """Give the terminal back as it was."""
        if StdioChardev._owner is self:
            StdioChardev._owner = None
            self._stop()
            self._restore()
            if threading.current_thread() is threading.main_thread():
                for number, handler in self._handlers.items():
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)
            atexit.unregister(self._restore)
            self._saved = None
            self._give_back_fds()
        super().close()
