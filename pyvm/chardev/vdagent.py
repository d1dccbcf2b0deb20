"""The host's side of the agent that SPICE guests run, as a back end: `qemu-vdagent`.

The protocol is that of spice-protocol's `vd_agent.h`: chunks with a port and a size carry pieces of messages, each with
a header of its own.  Both sides begin by announcing what they can.  This side tells the guest where the pointer is; no
other program of the host shares a clipboard through pyvm, so there is nothing to be said about clipboards but that the
capability is there where it was asked for: what the guest offers is never requested.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pyvm.chardev.base import Buffer
from pyvm.chardev.input_peer import InputPeer
from pyvm.input import POSITION_MAX, ButtonInput, InputEvent, InputKind, PositionInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvm.input import InputRouter
    from pyvm.mainloop import MainLoop

CHUNK = struct.Struct("<II")
"""Port and size."""
MESSAGE = struct.Struct("<IIQI")
"""Protocol, type, opaque, size."""
MOUSE = struct.Struct("<IIIB")
"""X, y, buttons, display."""

CLIENT_PORT = 1
PROTOCOL = 1
MOUSE_STATE, ANNOUNCE_CAPABILITIES = 1, 6
CAN_MOUSE_STATE, CAN_REPLY, CAN_CLIPBOARD_BY_DEMAND, CAN_CLIPBOARD_SELECTION = 1 << 0, 1 << 2, 1 << 5, 1 << 6

_BUTTONS = {"left": 1 << 1, "middle": 1 << 2, "right": 1 << 3, "wheel-up": 1 << 4, "wheel-down": 1 << 5}
_MESSAGE_LIMIT = 1 << 20
"""Most bytes of a message that is looked at: what is longer is dropped as it comes."""
QUEUE_LIMIT = 4096
"""Most bytes that wait for the guest; the newest position matters, not each."""


class VdagentChardev(InputPeer):
    """The agent's peer; an input handler as :mod:`pyvm.input` says."""

    name = "vdagent mouse"
    kinds = frozenset({InputKind.BUTTON, InputKind.ABSOLUTE})

    def __init__(
        self,
        label: str,
        loop: MainLoop,
        router: InputRouter | None,
        *,
        mouse: bool = True,
        clipboard: bool = False,
        screen_size: Callable[[], tuple[int, int]] = lambda: (640, 480),
    ) -> None:
        """`router` tells what the person does, `screen_size` returns width and height of the guest's screen."""
        super().__init__(label, loop, router if mouse else None)
        self._screen_size = screen_size
        self._capabilities = CAN_REPLY | (CAN_MOUSE_STATE if mouse else 0)
        self._capabilities |= CAN_CLIPBOARD_BY_DEMAND | CAN_CLIPBOARD_SELECTION if clipboard else 0
        self._guest = 0
        """What the guest's agent can, 0 while there is none."""
        self._position = {"x": 0, "y": 0}
        self._pressed = 0
        self._changed = False
        self._forget()

    def _forget(self) -> None:
        """Begin anew: the guest's agent has come or gone."""
        self._guest = 0
        self._chunk = bytearray()
        self._chunk_left = 0
        self._skipped = False
        self._message = bytearray()
        self._message_left = -1

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "qemu-vdagent"

    # ---- From the guest

    def set_open(self, is_open: bool) -> None:
        """The guest's agent has come, and is asked what it can; or it has gone."""
        super().set_open(is_open)
        self._forget()
        self._queue.clear()
        if is_open:
            self._announce(wants_answer=True)

    def _announce(self, *, wants_answer: bool) -> None:
        self._send(ANNOUNCE_CAPABILITIES, struct.pack("<II", wants_answer, self._capabilities))

    def _write(self, data: Buffer) -> int:
        """Take bytes from the guest's agent."""
        rest = bytes(data)
        while rest:
            if not self._chunk_left:
                wanted = CHUNK.size - len(self._chunk)
                self._chunk += rest[:wanted]
                rest = rest[wanted:]
                if len(self._chunk) == CHUNK.size:
                    port, self._chunk_left = CHUNK.unpack(self._chunk)
                    self._skipped = port != CLIENT_PORT
                    self._chunk.clear()
                continue
            piece, rest = rest[: self._chunk_left], rest[self._chunk_left :]
            self._chunk_left -= len(piece)
            if not self._skipped:
                self._take(piece)
        return len(data)

    def _take(self, piece: bytes) -> None:
        """Put messages together."""
        while piece:
            if self._message_left < 0:
                wanted = MESSAGE.size - len(self._message)
                self._message += piece[:wanted]
                piece = piece[wanted:]
                if len(self._message) < MESSAGE.size:
                    return
                self._message_left = MESSAGE.unpack(self._message)[3]
            else:
                body, piece = piece[: self._message_left], piece[self._message_left :]
                self._message_left -= len(body)
                if len(self._message) < _MESSAGE_LIMIT:
                    self._message += body
            if not self._message_left:
                self._handle(bytes(self._message))
                self._message.clear()
                self._message_left = -1

    def _handle(self, message: bytes) -> None:
        protocol, kind, _, size = MESSAGE.unpack_from(message)
        body = message[MESSAGE.size :]
        if protocol != PROTOCOL or kind != ANNOUNCE_CAPABILITIES or len(body) != size or size < 8:
            return
        wants_answer, capabilities = struct.unpack_from("<II", body)
        if wants_answer:
            self._announce(wants_answer=False)
        self._guest = capabilities
        if self._unregister is not None and self._router is not None and capabilities & CAN_MOUSE_STATE:
            self._router.activate(self)

    # ---- To the guest

    def _send(self, kind: int, body: bytes) -> None:
        message = MESSAGE.pack(PROTOCOL, kind, 0, len(body)) + body
        if len(self._queue) + CHUNK.size + len(message) <= QUEUE_LIMIT:
            self._queue += CHUNK.pack(CLIENT_PORT, len(message)) + message
            self.accept_input()

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
        """Tell the guest what was collected."""
        if self._changed and self._guest & CAN_MOUSE_STATE:
            width, height = self._screen_size()
            x = self._position["x"] * (width - 1) // POSITION_MAX
            y = self._position["y"] * (height - 1) // POSITION_MAX
            self._send(MOUSE_STATE, MOUSE.pack(x, y, self._pressed, 0))
        self._changed = False
