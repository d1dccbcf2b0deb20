"""The machine's stub for GDB: where it is made, and put on another device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.chardev.base import ChardevError
from pyvm.chardev.uri import ChardevReference, parse_uri
from pyvm.monitor.gdb import CHARDEV, device_options
from pyvm.monitor.gdb.server import GdbServer

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc


class GdbStub:
    """At most one stub at a time."""

    def __init__(self, pc: Pc) -> None:
        self._pc = pc
        self._server: GdbServer | None = None
        self._own = False
        """Whether the device was made for the stub."""

    def open(self, identifier: str) -> None:
        """Serve a debugger on a character device that is there; raises ChardevError."""
        chardev = self._pc.chardev_set.find(identifier)
        if chardev is None:
            raise ChardevError(f'chardev "{identifier}" not found')
        try:
            self._server = GdbServer(chardev.port(), self._pc.debugger, self._pc.dispatcher, self._pc.mainloop)
        except ValueError as error:
            raise ChardevError(str(error)) from None
        self._own = identifier == CHARDEV

    def move(self, device: str) -> None:
        """Serve a debugger on `device`, as `-gdb` has it, instead of where it was; raises ChardevError."""
        if device == "none":
            self.close()
            return
        made = parse_uri(CHARDEV, device_options(device))
        if isinstance(made, ChardevReference):
            self.close()
            self.open(made.id)
            return
        self.close()
        self._pc.chardev_set.add(made)
        self.open(CHARDEV)

    def close(self) -> None:
        """Serve nobody any more."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._own:
                self._pc.chardev_set.remove(CHARDEV)
