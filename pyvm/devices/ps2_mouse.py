"""A PS/2 mouse with wheel and five buttons.

IBM Personal System/2 Hardware Interface Technical Reference, "Auxiliary device"; the wheel and the fourth and fifth
button are Microsoft's IntelliMouse and IntelliMouse Explorer extensions, switched on by a knock of three sample rates.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pyvm.devices.ps2 import ACK, EVENT_LIMIT, REPLY_LIMIT, RESEND, SELF_TEST_PASSED, Ps2Device
from pyvm.state import State, StateError, array, flag, integer, sequence, uint

# Commands; those marked * take an argument.
SCALE_1_1: Final = 0xE6
SCALE_2_1: Final = 0xE7
SET_RESOLUTION: Final = 0xE8  # *: 0 to 3
STATUS_REQUEST: Final = 0xE9
STREAM_MODE: Final = 0xEA
READ_DATA: Final = 0xEB
RESET_WRAP: Final = 0xEC
WRAP_MODE: Final = 0xEE
REMOTE_MODE: Final = 0xF0
IDENTIFY: Final = 0xF2
SET_RATE: Final = 0xF3  # *: samples a second
ENABLE: Final = 0xF4
DISABLE: Final = 0xF5
DEFAULTS: Final = 0xF6
RESEND_LAST: Final = 0xFE
RESET: Final = 0xFF

STATUS_REMOTE: Final = 1 << 6
STATUS_ENABLED: Final = 1 << 5
STATUS_SCALE_2_1: Final = 1 << 4

PACKET_ONE: Final = 1 << 3  # always set in a packet's first byte
PACKET_X_NEGATIVE: Final = 1 << 4
PACKET_Y_NEGATIVE: Final = 1 << 5

ID_STANDARD: Final = 0
ID_WHEEL: Final = 3
ID_EXPLORER: Final = 4

RATE_RESET: Final = 100
RESOLUTION_RESET: Final = 2
STEP_LIMIT: Final = 255  # counts in one packet
TRAVEL_LIMIT: Final = 32767  # counts that wait to be sent

BUTTONS: Final = {"left": 0x01, "right": 0x02, "middle": 0x04, "side": 0x08, "extra": 0x10}
WHEEL: Final = {"wheel-up": -1, "wheel-down": 1}
_KNOCKS: Final = {(200, 100, 80): ID_WHEEL, (200, 200, 80): ID_EXPLORER}
_SCALED: Final = (0, 1, 1, 3, 6, 9)


class MouseState(State):
    """Queues, modes, movement not yet sent; `changed` says that the buttons have not been sent yet."""

    replies: list[int] = sequence(uint(8), REPLY_LIMIT)
    events: list[int] = sequence(uint(8), EVENT_LIMIT)
    last: int = uint(8)
    pending: int = uint(8)
    enabled: bool = flag()
    remote: bool = flag()
    wrap: bool = flag()
    scale: bool = flag()
    resolution: int = uint(2, RESOLUTION_RESET)
    rate: int = uint(8, RATE_RESET)
    identity: int = integer(0, 4)
    knock: list[int] = array(uint(8), 3)
    buttons: int = uint(5)
    changed: bool = flag()
    travel: list[int] = array(integer(-TRAVEL_LIMIT, TRAVEL_LIMIT), 3)


class Ps2Mouse(Ps2Device):
    """The mouse."""

    def __init__(self) -> None:
        super().__init__()
        self._buttons = 0
        self._pending = 0
        self._wrap = False
        self._identity = ID_STANDARD
        self._knock = [0, 0, 0]
        self._set_defaults()

    # -- the host's side --------------------------------------------------------------------------------------------

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """Move by `dx` to the right, `dy` down, and turn the wheel by `dz` notches towards the person."""
        for axis, step in enumerate((dx, -dy, dz)):
            self._travel[axis] = max(-TRAVEL_LIMIT, min(TRAVEL_LIMIT, self._travel[axis] + step))
        self._stream()

    def button(self, name: str, down: bool) -> None:
        """Press or release the button `name`, an InputButton; wheel buttons turn the wheel as they go down.

        Raises ValueError for a name that no button has.
        """
        if name in WHEEL:
            if down:
                self.move(0, 0, WHEEL[name])
            return
        if name not in BUTTONS:
            raise ValueError(f"there is no mouse button {name!r}")
        bit = BUTTONS[name]
        buttons = self._buttons | bit if down else self._buttons & ~bit
        if buttons != self._buttons:
            self._buttons = buttons
            self._changed = True
            self._stream()

    # -- packets ----------------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """Return the next byte for the host; movement that waited becomes a packet when the one before is gone."""
        if self._due():
            self._events.extend(self._packet(scaled=True))
        return super().take()

    def _stream(self) -> None:
        if self._due():
            self._event(self._packet(scaled=True))

    def _due(self) -> bool:
        streaming = self._enabled and not self._remote and not self._wrap
        return streaming and not self._events and self._moved()

    def _moved(self) -> bool:
        axes = self._travel if self._identity else self._travel[:2]
        return self._changed or any(axes)

    def _packet(self, scaled: bool) -> list[int]:
        """Return a packet with as much of the movement as fits."""
        steps = [max(-STEP_LIMIT, min(STEP_LIMIT, travel)) for travel in self._travel[:2]]
        self._travel[0] -= steps[0]
        self._travel[1] -= steps[1]
        if scaled and self._scale:
            steps = [_scale_2_1(step) for step in steps]
        self._changed = False
        first = PACKET_ONE | self._buttons & 7
        first |= (PACKET_X_NEGATIVE if steps[0] < 0 else 0) | (PACKET_Y_NEGATIVE if steps[1] < 0 else 0)
        packet = [first, steps[0] & 0xFF, steps[1] & 0xFF]
        if self._identity == ID_STANDARD:
            self._travel[2] = 0
            return packet
        wheel = max(-8, min(7, self._travel[2]))
        self._travel[2] -= wheel
        if self._identity == ID_EXPLORER:
            return [*packet, wheel & 0xF | (self._buttons & 0x18) << 1]
        return [*packet, wheel & 0xFF]

    # -- the guest's side -------------------------------------------------------------------------------------------

    def write(self, value: int) -> None:
        """Take a command or an argument from the guest."""
        self._replies.clear()
        if value == RESEND_LAST and not self._wrap:
            self._reply(self._last)
            return
        pending, self._pending = self._pending, 0
        if self._wrap and value not in (RESET, RESET_WRAP):
            self._reply(value)
        elif pending:
            self._argument(pending, value)
        else:
            self._command(value)

    def _command(self, value: int) -> None:
        if value in (SCALE_1_1, SCALE_2_1):
            self._scale = value == SCALE_2_1
        elif value in (SET_RESOLUTION, SET_RATE):
            self._pending = value
        elif value in (STREAM_MODE, REMOTE_MODE):
            self._remote = value == REMOTE_MODE
            self._drop_movement()
        elif value in (WRAP_MODE, RESET_WRAP):
            self._wrap = value == WRAP_MODE
            self._drop_movement()
        elif value in (ENABLE, DISABLE):
            self._enabled = value == ENABLE
            self._drop_movement()
        elif value == DEFAULTS:
            self._set_defaults()
        elif not self._query(value):
            self._reply(RESEND)
            return
        else:
            return
        self._reply(ACK)

    def _query(self, value: int) -> bool:
        """Carry out a command that has more than an acknowledgement to reply; return whether it is one."""
        if value == STATUS_REQUEST:
            self._reply(ACK, self._status(), self._resolution, self._rate)
        elif value == READ_DATA:
            self._reply(ACK, *self._packet(scaled=False))
        elif value == IDENTIFY:
            self._reply(ACK, self._identity)
        elif value == RESET:
            self._to_power_on()
            self._reply(ACK, SELF_TEST_PASSED, self._identity)
        else:
            return False
        return True

    def _argument(self, command: int, value: int) -> None:
        if command == SET_RESOLUTION:
            if value > 3:
                self._reply(RESEND)
                return
            self._resolution = value
        else:
            self._rate = value
            self._knock = [*self._knock[1:], value]
            identity = _KNOCKS.get((self._knock[0], self._knock[1], self._knock[2]))
            if identity is not None:
                self._identity = identity
        self._reply(ACK)

    def _status(self) -> int:
        status = STATUS_REMOTE * self._remote | STATUS_ENABLED * self._enabled | STATUS_SCALE_2_1 * self._scale
        left, right, middle = (bool(self._buttons & BUTTONS[name]) for name in ("left", "right", "middle"))
        return status | left << 2 | middle << 1 | right

    # -- life -------------------------------------------------------------------------------------------------------

    def _drop_movement(self) -> None:
        self._events.clear()
        self._travel = [0, 0, 0]
        self._changed = False

    def _set_defaults(self) -> None:
        self._enabled = self._remote = self._scale = False
        self._resolution = RESOLUTION_RESET
        self._rate = RATE_RESET
        self._drop_movement()

    def _to_power_on(self) -> None:
        self._replies.clear()
        self._pending = 0
        self._wrap = False
        self._identity = ID_STANDARD
        self._knock = [0, 0, 0]
        self._set_defaults()

    def reset(self) -> None:
        """Return to the state after power-on; buttons that a person holds stay held."""
        self._last = 0
        self._to_power_on()

    def save(self) -> MouseState:
        """Return queues, modes and movement."""
        return MouseState(
            replies=list(self._replies),
            events=list(self._events),
            last=self._last,
            pending=self._pending,
            enabled=self._enabled,
            remote=self._remote,
            wrap=self._wrap,
            scale=self._scale,
            resolution=self._resolution,
            rate=self._rate,
            identity=self._identity,
            knock=list(self._knock),
            buttons=self._buttons,
            changed=self._changed,
            travel=list(self._travel),
        )

    def load(self, state: MouseState) -> None:
        """Take over queues, modes and movement; the controller must be loaded, too."""
        state.check()
        if state.identity not in (ID_STANDARD, ID_WHEEL, ID_EXPLORER):
            raise StateError(f"MouseState.identity: {state.identity} is no mouse")
        if state.pending not in (0, SET_RESOLUTION, SET_RATE):
            raise StateError("MouseState.pending: not a command with an argument")
        self._replies = deque(state.replies)
        self._events = deque(state.events)
        self._last = state.last
        self._pending = state.pending
        self._enabled = state.enabled
        self._remote = state.remote
        self._wrap = state.wrap
        self._scale = state.scale
        self._resolution = state.resolution
        self._rate = state.rate
        self._identity = state.identity
        self._knock = list(state.knock)
        self._buttons = state.buttons
        self._changed = state.changed
        self._travel = list(state.travel)


def _scale_2_1(step: int) -> int:
    size = abs(step)
    scaled = _SCALED[size] if size < len(_SCALED) else min(2 * size, STEP_LIMIT)
    return scaled if step >= 0 else -scaled
