"""A Microsoft serial mouse as a back end: `msmouse`.

Microsoft's serial mouse protocol as Plug and Play External COM Device Specification 1.0 and contemporary driver guides
have it: 1200 baud, 7 data bits; a packet of three bytes, the first of which has bit 6 set, and a fourth byte for the
middle button.  The mouse is powered by DTR and RTS and says "M3" when it is switched on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.chardev.base import Buffer
from pyvm.chardev.input_peer import InputPeer
from pyvm.input import ButtonInput, InputEvent, InputKind, MoveInput

if TYPE_CHECKING:
    from pyvm.input import InputRouter
    from pyvm.mainloop import MainLoop

IDENTITY = b"M3"
FIRST = 1 << 6
LEFT, RIGHT = 1 << 5, 1 << 4
MIDDLE = 1 << 5
"""In the fourth byte."""
STEP_MAX = 127
TRAVEL_LIMIT = 32767
QUEUE_LIMIT = 64
"""Most bytes that wait for the guest."""


class MsmouseChardev(InputPeer):
    """The mouse at the far end of the guest's line; an input handler as :mod:`pyvm.input` says."""

    name = "QEMU Microsoft Mouse"
    kinds = frozenset({InputKind.BUTTON, InputKind.RELATIVE})

    def __init__(self, label: str, loop: MainLoop, router: InputRouter | None) -> None:
        """`router` tells what the person does."""
        super().__init__(label, loop, router)
        self._powered = False
        self._travel = {"x": 0, "y": 0}
        self._buttons: dict[str, bool] = {}
        self._changed: set[str] = set()

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "msmouse"

    def _write(self, data: Buffer) -> int:
        """Take bytes from the guest: the mouse has no ear for them."""
        return len(data)

    def set_modem_control(self, dtr: bool, rts: bool) -> None:
        """The guest switches the mouse on, with both lines, or off."""
        powered = dtr and rts
        if powered and not self._powered:
            self._queue[:] = IDENTITY
            self._travel = dict.fromkeys(self._travel, 0)
            self._buttons.clear()
            self._changed.clear()
            if self._router is not None:
                self._router.activate(self)
        elif not powered:
            self._queue.clear()
        self._powered = powered
        self.accept_input()

    # ---- Input

    def input(self, event: InputEvent) -> None:
        """Take movement or a button."""
        if not self._powered:
            return
        if isinstance(event, MoveInput):
            travel = self._travel[event.axis] + event.value
            self._travel[event.axis] = max(-TRAVEL_LIMIT, min(TRAVEL_LIMIT, travel))
        elif isinstance(event, ButtonInput) and event.button in ("left", "middle", "right"):
            self._buttons[event.button] = event.down
            self._changed.add(event.button)

    def sync(self) -> None:
        """Make a packet of what was collected."""
        if self._powered and len(self._queue) < QUEUE_LIMIT and (self._changed or any(self._travel.values())):
            self._queue += self._packet()
            self.accept_input()

    def _packet(self) -> bytes:
        dx, dy = (max(-STEP_MAX, min(STEP_MAX, step)) for step in self._travel.values())
        self._travel = {"x": self._travel["x"] - dx, "y": self._travel["y"] - dy}
        first = FIRST | (dy >> 6 & 3) << 2 | dx >> 6 & 3
        first |= (LEFT if self._buttons.get("left") else 0) | (RIGHT if self._buttons.get("right") else 0)
        packet = [first, dx & 0x3F, dy & 0x3F]
        if self._buttons.get("middle") or "middle" in self._changed:
            packet.append(MIDDLE if self._buttons.get("middle") else 0)
        self._changed.clear()
        return bytes(packet)
