"""Going to the background, and the pidfile: what ``-daemonize`` and ``-pidfile`` do to the process."""

from __future__ import annotations

import atexit
import fcntl
import os
import sys
from collections.abc import Callable

from pyvm.errors import ConfigError


def detach() -> Callable[[], None]:
    """Go on in a child process that has left the terminal; call before any thread is started.

    The parent stays until the child calls the returned function, and then exits with status 0; where the child ends
    without that, after saying why, the parent exits with status 1.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(tell)
        _wait(told)
    os.close(told)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.umask(0o027)

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        os.chdir("/")
        os.write(tell, b"\0")
        os.close(tell)

    return ready


def _wait(told: int) -> None:
    """Wait for the child to be ready or gone, and exit."""
    sys.stdout.flush()
    os._exit(0 if os.read(told, 1) else 1)


def write_pidfile(path: str) -> None:
    """Write this process's ID to `path`, lock it, and remove it when the process exits; raises ConfigError."""
    path = os.path.abspath(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise ConfigError(f"cannot create PID file: Could not create '{path}': {reason}") from None
    try:
        # A lock of fcntl's kind is what QEMU and its clients use: the file of a process that died does not matter.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"cannot create PID file: '{path}' is in use by another process") from None
    # The descriptor stays open: closing it would give up the lock.
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    atexit.register(_remove, path, os.getpid())


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:
        try:
            os.unlink(path)
        except OSError:
            pass  # somebody removed it before us
