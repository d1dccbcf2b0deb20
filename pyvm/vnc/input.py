"""What a viewer types and points at: RFC 6143, sections 7.5.4 (KeyEvent) and 7.5.5 (PointerEvent).

A viewer that knows no better names symbols, not keys.  So its lock keys may be set otherwise than the guest's: the lock
key is pressed first where that is the case, as the symbol tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pyvm.devices.ps2_keyboard import LED_CAPS, LED_NUM
from pyvm.input import (
    POSITION_MAX,
    ButtonInput,
    InputEvent,
    KeyInput,
    MoveInput,
    PositionInput,
    key_of_number,
)
from pyvm.vnc.keysyms import CURSOR_KEYPAD, NUMERIC_KEYPAD, key_of
from pyvm.vnc.protocol import RELATIVE_CENTRE

if TYPE_CHECKING:
    from pyvm.input import InputRouter

_SHIFTS: Final = frozenset({"shift", "shift_r"})
_BUTTONS: Final = ("left", "middle", "right", "wheel-up", "wheel-down", "wheel-left", "wheel-right")
"""What the bits of a pointer event's mask are, the lowest first."""


class Locks:
    """Which lock keys the guest has set: as its keyboard's lights say, and as keys were pressed since."""

    def __init__(self) -> None:
        self.caps = False
        self.num = False
        self.leds = 0
        """The lights of the keyboard, as the guest has set them."""

    def lights(self, leds: int) -> None:
        """The guest has set the lights of the keyboard."""
        self.leds = leds
        self.caps, self.num = bool(leds & LED_CAPS), bool(leds & LED_NUM)

    def pressed(self, key: str) -> None:
        """A key goes down."""
        self.caps ^= key == "caps_lock"
        self.num ^= key == "num_lock"


class Keyboard:
    """The keys of one viewer.  Without `locks` nothing is done about lock keys."""

    def __init__(self, send: Callable[[KeyInput], None], locks: Locks | None) -> None:
        self._send = send
        self._locks = locks
        self._held: dict[str, None] = {}
        self.sees_lights = False
        """Whether the viewer learns what the guest has locked, and presses lock keys itself."""

    def symbol(self, keysym: int, down: bool) -> None:
        """Press or release the key that a symbol is on."""
        key = key_of(keysym)
        if key is None:
            return
        if down and self._locks is not None and not self.sees_lights:
            self._agree(keysym, self._locks)
        self._key(key, down)

    def number(self, number: int, keysym: int, down: bool) -> None:
        """Press or release the key of a number; by its symbol where the number says nothing."""
        key = key_of_number(number)
        if key == "unmapped":
            self.symbol(keysym, down)
        else:
            self._key(key, down)

    def lift_all(self) -> None:
        """Release what is held: the viewer has gone."""
        for key in list(self._held):
            self._key(key, False)

    def _agree(self, keysym: int, locks: Locks) -> None:
        """Press a lock key where a symbol says that it is set otherwise than the guest's."""
        symbol = chr(keysym) if keysym < 0x80 else ""
        if symbol.isalpha():
            shifted = not _SHIFTS.isdisjoint(self._held)
            if symbol.isupper() != (shifted != locks.caps):
                self._tap("caps_lock")
        elif (keysym in NUMERIC_KEYPAD and not locks.num) or (keysym in CURSOR_KEYPAD and locks.num):
            self._tap("num_lock")

    def _tap(self, key: str) -> None:
        self._key(key, True)
        self._key(key, False)

    def _key(self, key: str, down: bool) -> None:
        if down:
            if key not in self._held and self._locks is not None:
                self._locks.pressed(key)
            self._held[key] = None
        elif key in self._held:
            del self._held[key]
        else:
            return
        self._send(KeyInput(key, down))


class Pointer:
    """The pointer of one viewer."""

    def __init__(self, router: InputRouter) -> None:
        self._router = router
        self._buttons = 0
        self._last: tuple[int, int] | None = None
        self.absolute = pointer_is_absolute(router)
        """Whether the guest takes positions."""

    def point(self, buttons: int, x: int, y: int, width: int, height: int, *, relative: bool) -> None:
        """Move the pointer to a place on a screen of this size, and press the buttons of a mask.

        `relative` says that the viewer has learnt to send movements, around :data:`RELATIVE_CENTRE`.
        """
        events = self._button_events(buttons)
        if self.absolute:
            events += [PositionInput("x", scaled(x, width)), PositionInput("y", scaled(y, height))]
        elif relative:
            events += [MoveInput("x", x - RELATIVE_CENTRE), MoveInput("y", y - RELATIVE_CENTRE)]
        else:
            if self._last is not None:
                events += [MoveInput("x", x - self._last[0]), MoveInput("y", y - self._last[1])]
            self._last = x, y
        self._router.send(events)

    def lift_all(self) -> None:
        """Release what is held: the viewer has gone."""
        if events := self._button_events(0):
            self._router.send(events)

    def _button_events(self, mask: int) -> list[InputEvent]:
        changed, self._buttons = self._buttons ^ mask, mask
        return [ButtonInput(name, bool(mask >> bit & 1)) for bit, name in enumerate(_BUTTONS) if changed >> bit & 1]


def scaled(place: int, size: int) -> int:
    """Return a place on an axis of `size` pixels as a position."""
    return min(place, size - 1) * POSITION_MAX // (size - 1) if size > 1 else 0


def pointer_is_absolute(router: InputRouter) -> bool:
    """Return whether the pointing device in use takes positions."""
    mice = router.mice()
    return bool(mice) and mice[0].absolute
