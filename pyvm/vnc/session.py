"""One viewer's conversation as a pure state machine: RFC 6143, sections 7.1 to 7.6.

Bytes of the viewer go in, bytes for it are asked for: nothing is made before there is room for it, and an update is
made piece by piece.  What the viewer is still to be told is kept as flags, not as messages.  So a viewer that sends
without reading costs no memory.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Protocol

from pyvm.vnc import protocol as p
from pyvm.vnc.des import respond
from pyvm.vnc.encodings import SUPPORTED
from pyvm.vnc.pixels import PixelFormat, colour_map
from pyvm.vnc.protocol import ClientMessage, Encoding, ProtocolError, Security
from pyvm.vnc.screen import Area
from pyvm.vnc.updates import Updates

if TYPE_CHECKING:
    from pyvm.vnc.input import Keyboard, Pointer
    from pyvm.vnc.screen import Screen, Tiles

_FAILURE: Final = b"Authentication failed\0"
_NUMBER_SIZE: Final = 4
_KNOWN: Final = frozenset(Encoding)
_COMPRESS_LEVELS: Final = range(p.COMPRESS_LEVEL_0, p.COMPRESS_LEVEL_0 + 10)


class SessionState(Enum):
    """What the viewer is to send next."""

    VERSION = auto()
    SECURITY = auto()
    RESPONSE = auto()
    INIT = auto()
    RUNNING = auto()
    OVER = auto()
    """Nothing more: what is still to be sent goes out, then the connection ends."""


class Desk(Protocol):
    """What a session needs of the display that the viewer is connected to."""

    screen: Screen

    @property
    def security(self) -> Security:
        """What a viewer has to show."""

    @property
    def title(self) -> str:
        """The name of the desktop."""

    @property
    def power_control(self) -> bool:
        """Whether viewers may switch the machine off and reset it."""

    @property
    def lights(self) -> int:
        """The lights of the keyboard: 1 Scroll Lock, 2 Num Lock, 4 Caps Lock."""

    def password(self) -> bytes | None:
        """Return the password, None where none is valid now."""

    def admit(self, session: Session, shared: bool) -> bool:
        """Return whether the viewer may come in; `shared` says that it lets others watch, too."""

    def touched(self) -> None:
        """The viewer types or points."""

    def power(self, action: int) -> bool:
        """Switch the machine off or reset it; return whether that is possible."""


class Session:
    """The conversation.  `trusted` says that the viewer needs no password."""

    def __init__(self, desk: Desk, keyboard: Keyboard, pointer: Pointer, *, trusted: bool = False) -> None:
        self.state = SessionState.VERSION
        self.keyboard = keyboard
        self.pointer = pointer
        self.shared: bool | None = None
        """Whether the viewer lets others watch, too; None before it said so."""
        self.updates = Updates(desk.screen)
        self._desk = desk
        self._security = Security.NONE if trusted else desk.security
        self._version = 0
        self._challenge = b""
        self._input = bytearray()
        self._skip = 0
        self._output = bytearray(p.VERSION)
        self._features: frozenset[Encoding] = frozenset()
        self._map_due = False
        self._xvp_replies: list[int] = []
        self._messages: dict[int, Callable[[], int]] = {
            ClientMessage.SET_PIXEL_FORMAT: self._set_pixel_format,
            ClientMessage.SET_ENCODINGS: self._set_encodings,
            ClientMessage.UPDATE_REQUEST: self._update_request,
            ClientMessage.KEY_EVENT: self._key_event,
            ClientMessage.POINTER_EVENT: self._pointer_event,
            ClientMessage.CUT_TEXT: self._cut_text,
            ClientMessage.XVP: self._xvp,
            ClientMessage.SET_DESKTOP_SIZE: self._set_desktop_size,
            ClientMessage.QEMU: self._qemu,
        }

    # ---- What goes in and out

    @property
    def over(self) -> bool:
        """Whether nothing more is to be read: the connection ends when all output has been sent."""
        return self.state is SessionState.OVER

    @property
    def wants_update(self) -> bool:
        """Whether the viewer waits for the screen to change."""
        return self.state is SessionState.RUNNING and self.updates.wanted

    def receive(self, data: bytes) -> None:
        """Take what the viewer sent.  Raises ProtocolError where the connection has to end at once."""
        if self.over:
            return
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._input += data[skipped:]
        while not self.over:
            used = self._step()
            if not used:
                return
            self._skip = max(used - len(self._input), 0)
            del self._input[:used]

    def output(self) -> bytes:
        """Return what is to be sent next, b"" where that is nothing for now."""
        if self._output:
            data = bytes(self._output)
            self._output.clear()
            return data
        if self.state is not SessionState.RUNNING:
            return b""
        if not self.updates.under_way:
            notices = self._notices()
            if notices:
                return notices
        return self.updates.next_piece()

    def serve(self) -> None:
        """The screen is as it is drawn: begin an update where the viewer waits for one."""
        if self.state is SessionState.RUNNING:
            self.updates.serve()

    def screen_changed(self, tiles: Tiles) -> None:
        """These tiles of the screen show something else than before."""
        self.updates.mark(tiles)

    def pointer_changed(self, absolute: bool) -> None:
        """The guest takes positions from now on, or movements."""
        if self.pointer.absolute is not absolute:
            self.pointer.absolute = absolute
            self._notice(Encoding.POINTER_MOTION_CHANGE)

    def lights_changed(self) -> None:
        """The guest has set the lights of the keyboard."""
        self._notice(Encoding.LED_STATE)

    def _notice(self, encoding: Encoding) -> None:
        if encoding in self._features:
            self.updates.notices.add(encoding)

    def _notices(self) -> bytes:
        """Return what the viewer is to be told beside pixels, and how it is told."""
        data = b""
        if self._map_due:
            self._map_due = False
            data += colour_map()
        for code in self._xvp_replies:
            data += p.XVP_REPLY.pack(ClientMessage.XVP, p.XVP_VERSION, code)
        self._xvp_replies.clear()
        return data + self.updates.take_notices(self.pointer.absolute, self._desk.lights)

    # ---- Becoming acquainted

    def _step(self) -> int:
        """Take one message from the input; return its size, 0 where it is not complete."""
        match self.state:
            case SessionState.VERSION:
                return self._take_version()
            case SessionState.SECURITY:
                return self._take_security()
            case SessionState.RESPONSE:
                return self._take_response()
            case SessionState.INIT:
                return self._take_init()
        if not self._input:
            return 0
        handler = self._messages.get(self._input[0])
        if handler is None:
            raise ProtocolError(f"message {self._input[0]}")
        return handler()

    def _take_version(self) -> int:
        if len(self._input) < p.VERSION_SIZE:
            return 0
        self._version = p.version_of(bytes(self._input[: p.VERSION_SIZE]))
        if not self._version:
            self._output += p.REFUSED
            self.state = SessionState.OVER
        elif self._version == 3:
            self._output += p.LENGTH.pack(self._security)
            self._begin_security()
        else:
            self._output += bytes((1, self._security))
            self.state = SessionState.SECURITY
        return p.VERSION_SIZE

    def _take_security(self) -> int:
        if not self._input:
            return 0
        if self._input[0] != self._security:
            self._refuse()
        else:
            self._begin_security()
        return 1

    def _begin_security(self) -> None:
        if self._security is Security.VNC:
            self._challenge = os.urandom(p.CHALLENGE_SIZE)
            self._output += self._challenge
            self.state = SessionState.RESPONSE
            return
        if self._version == 8:
            self._output += p.LENGTH.pack(p.RESULT_OK)
        self.state = SessionState.INIT

    def _take_response(self) -> int:
        if len(self._input) < p.CHALLENGE_SIZE:
            return 0
        password = self._desk.password()
        given = bytes(self._input[: p.CHALLENGE_SIZE])
        if password is None or not hmac.compare_digest(given, respond(password, self._challenge)):
            self._refuse()
        else:
            self._output += p.LENGTH.pack(p.RESULT_OK)
            self.state = SessionState.INIT
        return p.CHALLENGE_SIZE

    def _refuse(self) -> None:
        self._output += p.LENGTH.pack(p.RESULT_FAILED)
        if self._version == 8:
            self._output += p.LENGTH.pack(len(_FAILURE)) + _FAILURE
        self.state = SessionState.OVER

    def _take_init(self) -> int:
        if not self._input:
            return 0
        self.shared = bool(self._input[0])
        if not self._desk.admit(self, self.shared):
            self.state = SessionState.OVER
            return 1
        updates, title = self.updates, self._desk.title.encode("utf-8", "replace")
        updates.begin()
        self._output += p.SERVER_INIT.pack(updates.width, updates.height, updates.form.encode(), len(title)) + title
        self.state = SessionState.RUNNING
        return 1

    # ---- Messages

    def _fields(self, record: Any) -> tuple[Any, ...] | None:
        """Return what follows the type of a message, None where it is not complete."""
        if len(self._input) <= record.size:
            return None
        fields: tuple[Any, ...] = record.unpack_from(self._input, 1)
        return fields

    def _set_pixel_format(self) -> int:
        fields = self._fields(p.SET_PIXEL_FORMAT)
        if fields is None:
            return 0
        self.updates.form = PixelFormat.decode(fields[0])
        self._map_due = not self.updates.form.true_colour
        self.updates.mark_all()
        return 1 + p.SET_PIXEL_FORMAT.size

    def _set_encodings(self) -> int:
        fields = self._fields(p.SET_ENCODINGS)
        if fields is None:
            return 0
        start = 1 + p.SET_ENCODINGS.size
        size: int = start + fields[0] * _NUMBER_SIZE
        if len(self._input) < size:
            return 0
        numbers = struct.unpack_from(f">{fields[0]}i", self._input, start)
        self._features = _KNOWN.intersection(numbers)
        updates = self.updates
        updates.encoding = next((Encoding(number) for number in numbers if number in SUPPORTED), Encoding.RAW)
        updates.resizable = next(
            (name for name in (Encoding.EXTENDED_DESKTOP_SIZE, Encoding.DESKTOP_SIZE) if name in self._features), None
        )
        level = next((number for number in numbers if number in _COMPRESS_LEVELS), None)
        if level is not None:
            updates.encoder.level = level - p.COMPRESS_LEVEL_0
        self.keyboard.sees_lights = Encoding.LED_STATE in self._features
        for answer in (Encoding.EXTENDED_KEY_EVENT, Encoding.POINTER_MOTION_CHANGE, Encoding.LED_STATE):
            self._notice(answer)
        if self._power_control:
            self._xvp_reply(p.XVP_INIT)
        return size

    def _update_request(self) -> int:
        fields = self._fields(p.UPDATE_REQUEST)
        if fields is None:
            return 0
        incremental, x, y, width, height = fields
        if not incremental:
            self._notice(Encoding.EXTENDED_DESKTOP_SIZE)
        self.updates.request(Area(x, y, width, height), incremental=bool(incremental))
        return 1 + p.UPDATE_REQUEST.size

    def _key_event(self) -> int:
        fields = self._fields(p.KEY_EVENT)
        if fields is None:
            return 0
        self.keyboard.symbol(fields[1], bool(fields[0]))
        self._desk.touched()
        return 1 + p.KEY_EVENT.size

    def _pointer_event(self) -> int:
        fields = self._fields(p.POINTER_EVENT)
        if fields is None:
            return 0
        buttons, x, y = fields
        relative = Encoding.POINTER_MOTION_CHANGE in self._features
        self.pointer.point(buttons, x, y, self.updates.width, self.updates.height, relative=relative)
        self._desk.touched()
        return 1 + p.POINTER_EVENT.size

    def _cut_text(self) -> int:
        """Skip the text: there is no clipboard that it could be for."""
        fields = self._fields(p.CUT_TEXT)
        if fields is None:
            return 0
        if not 0 <= fields[0] <= p.CUT_TEXT_LIMIT:
            raise ProtocolError(f"a text of {fields[0]} characters")
        return 1 + p.CUT_TEXT.size + int(fields[0])

    @property
    def _power_control(self) -> bool:
        return self._desk.power_control and Encoding.XVP in self._features

    def _xvp_reply(self, code: int) -> None:
        if code not in self._xvp_replies:
            self._xvp_replies.append(code)

    def _xvp(self) -> int:
        fields = self._fields(p.XVP)
        if fields is None:
            return 0
        version, action = fields
        if not self._power_control:
            raise ProtocolError("power control that was not offered")
        if version != p.XVP_VERSION or not self._desk.power(action):
            self._xvp_reply(p.XVP_FAIL)
        return 1 + p.XVP.size

    def _set_desktop_size(self) -> int:
        """Refuse: how large the screen is only the guest decides."""
        fields = self._fields(p.SET_DESKTOP_SIZE)
        if fields is None:
            return 0
        self.updates.refuse_size = Encoding.EXTENDED_DESKTOP_SIZE in self._features
        return 1 + p.SET_DESKTOP_SIZE.size + int(fields[2]) * p.SCREEN_SIZE

    def _qemu(self) -> int:
        fields = self._fields(p.EXTENDED_KEY_EVENT)
        if len(self._input) > 1 and self._input[1] != p.QEMU_KEY_EVENT:
            raise ProtocolError(f"message 255, {self._input[1]}")
        if fields is None:
            return 0
        _, down, keysym, number = fields
        self.keyboard.number(number, keysym, bool(down))
        self._desk.touched()
        return 1 + p.EXTENDED_KEY_EVENT.size
