"""A Wacom PenPartner tablet on the guest's serial line as a back end: `wctablet`.

Wacom's serial Protocol IV, as the company's interface documents of the time have it: commands are text, most of them
ended by a carriage return; reports have seven bytes, only the first of which has bit 7 set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.chardev.base import Buffer
from pyvm.chardev.input_peer import InputPeer
from pyvm.input import POSITION_MAX, ButtonInput, InputEvent, InputKind, PositionInput

if TYPE_CHECKING:
    from pyvm.input import InputRouter
    from pyvm.mainloop import MainLoop

MODEL = b"~#CT-0045R,V1.3-5,\r"
COORDINATES = b"~C%05d,%05d\r"
SETTINGS = b"~RE202C900,000,02,1270,1270\r"
WIDTH, HEIGHT = 5103, 3711
"""The greatest coordinates."""

SYNC, NEAR, STYLUS, PRESSED = 0x80, 0x40, 0x20, 0x08
BUTTON_SHIFT = 3
TIP, SIDE, UPPER = 1, 2, 4
_BUTTONS = {"left": TIP, "right": SIDE, "middle": UPPER}
_PRESSURE_DOWN = 0x3F
_COMMAND_LIMIT = 64
"""Most bytes of a command: what is longer is none."""
QUEUE_LIMIT = 70
"""Most bytes of reports that wait for the guest."""


class WctabletChardev(InputPeer):
    """The tablet at the far end of the guest's line; an input handler as :mod:`pyvm.input` says."""

    name = "QEMU Wacom Pen Tablet"
    kinds = frozenset({InputKind.BUTTON, InputKind.ABSOLUTE})

    def __init__(self, label: str, loop: MainLoop, router: InputRouter | None) -> None:
        """`router` tells what the person does."""
        super().__init__(label, loop, router)
        self._reporting = False
        self._command = bytearray()
        self._position = {"x": 0, "y": 0}
        self._pressed = 0
        self._changed = False

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "wctablet"

    # ---- Commands

    def _write(self, data: Buffer) -> int:
        """Take bytes from the guest."""
        for byte in bytes(data):
            if byte in b"\r\n":
                self._execute(bytes(self._command).strip())
                self._command.clear()
            elif len(self._command) < _COMMAND_LIMIT:
                self._command.append(byte)
                if bytes(self._command) in (b"#", b"~#", b"~C", b"~R"):  # these need no end
                    self._execute(bytes(self._command))
                    self._command.clear()
        return len(data)

    def _execute(self, command: bytes) -> None:
        match command:
            case b"~#":
                self._send(MODEL)
            case b"~C":
                self._send(COORDINATES % (WIDTH, HEIGHT))
            case b"~R":
                self._send(SETTINGS)
            case b"ST":
                self._reporting = True
                if self._router is not None:
                    self._router.activate(self)
            case b"SP":
                self._reporting = False
            case b"#" | b"RE" | b"$":  # back to what it is when it is switched on
                self._reporting = False
                self._queue.clear()

    def _send(self, data: bytes) -> None:
        if len(self._queue) + len(data) <= QUEUE_LIMIT:
            self._queue += data
            self.accept_input()

    # ---- Input

    def input(self, event: InputEvent) -> None:
        """Take a position or a button."""
        if isinstance(event, PositionInput):
            self._position[event.axis] = max(0, min(event.value, POSITION_MAX))
            self._changed = True
        elif isinstance(event, ButtonInput) and event.button in _BUTTONS:
            bit = _BUTTONS[event.button]
            self._pressed = self._pressed | bit if event.down else self._pressed & ~bit
            self._changed = True

    def sync(self) -> None:
        """Report what was collected."""
        if self._changed and self._reporting:
            self._send(self._report())
        self._changed = False

    def _report(self) -> bytes:
        x = self._position["x"] * WIDTH // POSITION_MAX
        y = self._position["y"] * HEIGHT // POSITION_MAX
        first = SYNC | NEAR | STYLUS | (PRESSED if self._pressed else 0) | x >> 14
        buttons = self._pressed << BUTTON_SHIFT | y >> 14
        pressure = _PRESSURE_DOWN if self._pressed & TIP else 0
        return bytes((first, x >> 7 & 0x7F, x & 0x7F, buttons, y >> 7 & 0x7F, y & 0x7F, pressure))
