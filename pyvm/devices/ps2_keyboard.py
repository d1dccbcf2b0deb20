"""A PS/2 keyboard.

IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-key)": commands, replies and scan
code sets 1, 2 and 3.  Keys do not repeat by themselves: the host's own keyboard does that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from pyvm.devices.keycodes import PAUSE, PRINT_SCREEN, SCAN_CODES, SILENT
from pyvm.devices.ps2 import ACK, EVENT_LIMIT, REPLY_LIMIT, RESEND, SELF_TEST_PASSED, Ps2Device
from pyvm.state import State, StateError, blob, flag, integer, sequence, uint

# Commands; those marked * take an argument.
SET_LEDS: Final = 0xED  # *
ECHO: Final = 0xEE
SCAN_CODE_SET: Final = 0xF0  # *: 0 asks for the set, 1 to 3 choose it
IDENTIFY: Final = 0xF2
SET_TYPEMATIC: Final = 0xF3  # *
ENABLE: Final = 0xF4
DISABLE: Final = 0xF5  # and set defaults
DEFAULTS: Final = 0xF6
ALL_TYPEMATIC: Final = 0xF7  # 0xf7 to 0xfd matter in set 3 only
ALL_MAKE_BREAK: Final = 0xF8
ALL_MAKE: Final = 0xF9
ALL_TYPEMATIC_MAKE_BREAK: Final = 0xFA
KEY_TYPEMATIC: Final = 0xFB  # *: keys follow until the next command
KEY_MAKE_BREAK: Final = 0xFC  # *
KEY_MAKE: Final = 0xFD  # *
RESEND_LAST: Final = 0xFE
RESET: Final = 0xFF
FIRST_COMMAND: Final = 0xED
_WITH_ARGUMENT: Final = frozenset({SET_LEDS, SCAN_CODE_SET, SET_TYPEMATIC, KEY_TYPEMATIC, KEY_MAKE_BREAK, KEY_MAKE})

IDENTITY: Final = (0xAB, 0x83)
LED_SCROLL: Final = 1 << 0
LED_NUM: Final = 1 << 1
LED_CAPS: Final = 1 << 2
LED_ALL: Final = 0x07
TYPEMATIC_RESET: Final = 0x2B  # 10.9 characters a second after half a second

_PREFIX: Final = 0xE0
_BREAK_PREFIX: Final = 0xF0  # sets 2 and 3
_BREAK_BIT: Final = 0x80  # set 1
_ALL_KEYS: Final = b"\xff" * 32

_MODIFIERS: Final = {"alt": 1, "alt_r": 2, "ctrl": 4, "ctrl_r": 8}
_ALT: Final = 3
_CTRL: Final = 12

_PRINT_SET3: Final = 0x57
_PAUSE_SET3: Final = 0x62


class KeyboardState(State):
    """Queues, modes, and which modifiers are held; `breaks` has a bit for each code of set 3 that sends breaks."""

    replies: list[int] = sequence(uint(8), REPLY_LIMIT)
    events: list[int] = sequence(uint(8), EVENT_LIMIT)
    last: int = uint(8)
    pending: int = uint(8)
    scanning: bool = flag(True)
    code_set: int = integer(1, 3, 2)
    leds: int = uint(3)
    typematic: int = uint(8, TYPEMATIC_RESET)
    breaks: bytes = blob(32)
    modifiers: int = uint(4)


class Ps2Keyboard(Ps2Device):
    """The keyboard.  `on_leds` hears the LED bits when software sets them."""

    def __init__(self) -> None:
        super().__init__()
        self.on_leds: Callable[[int], None] = lambda leds: None
        self.leds = 0
        self._modifiers = 0
        self._pending = 0
        self._set_defaults()
        self._scanning = True

    def _set_defaults(self) -> None:
        self._code_set = 2
        self._typematic = TYPEMATIC_RESET
        self._breaks = bytearray(_ALL_KEYS)

    # -- the host's side --------------------------------------------------------------------------------------------

    def key(self, name: str, down: bool) -> None:
        """Press or release the key called `name`, a QKeyCode.

        Events are lost, as on the device, while scanning is disabled or when the guest does not take them.
        Raises ValueError for a name that no key has.
        """
        if name not in SCAN_CODES and name not in PRINT_SCREEN and name != PAUSE and name not in SILENT:
            raise ValueError(f"there is no key {name!r}")
        bit = _MODIFIERS.get(name, 0)
        self._modifiers = self._modifiers | bit if down else self._modifiers & ~bit
        if not self._scanning:
            return
        data = self._sequence(name, down)
        if data:
            self._event(data)

    def _sequence(self, name: str, down: bool) -> list[int]:
        if self._code_set == 3:
            return self._set3(name, down)
        if name in PRINT_SCREEN:
            return self._print_screen(down)
        if name == PAUSE:
            return self._pause(down)
        code = SCAN_CODES[name][self._code_set - 1] if name in SCAN_CODES else 0
        return self._code(code, down) if code else []

    def _code(self, code: int, down: bool) -> list[int]:
        """Return the bytes for a make code of set 1 or 2, or for its break."""
        data = [_PREFIX] if code >> 8 else []
        if self._code_set == 1:
            return [*data, code & 0xFF | (0 if down else _BREAK_BIT)]
        return [*data, code & 0xFF] if down else [*data, _BREAK_PREFIX, code & 0xFF]

    def _set3(self, name: str, down: bool) -> list[int]:
        code = _PRINT_SET3 if name in PRINT_SCREEN else _PAUSE_SET3 if name == PAUSE else 0
        if name in SCAN_CODES:
            code = SCAN_CODES[name][2]
        if not code:
            return []
        if down:
            return [code]
        return [_BREAK_PREFIX, code] if self._breaks[code >> 3] >> (code & 7) & 1 else []

    def _print_screen(self, down: bool) -> list[int]:
        first = self._code_set == 1
        if self._modifiers & _ALT:  # the system request key
            return self._code(0x54 if first else 0x84, down)
        shift, key = (0xE02A, 0xE037) if first else (0xE012, 0xE07C)
        if self._modifiers & _CTRL:
            return self._code(key, down)
        order = (shift, key) if down else (key, shift)
        return self._code(order[0], down) + self._code(order[1], down)

    def _pause(self, down: bool) -> list[int]:
        if not down:  # all of it is sent when the key goes down
            return []
        if self._modifiers & _CTRL:
            code = 0xE046 if self._code_set == 1 else 0xE07E
            return self._code(code, True) + self._code(code, False)
        if self._code_set == 1:
            return [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]
        return [0xE1, 0x14, 0x77, 0xE1, 0xF0, 0x14, 0xF0, 0x77]

    # -- the guest's side -------------------------------------------------------------------------------------------

    def write(self, value: int) -> None:
        """Take a command or an argument from the guest."""
        self._replies.clear()
        if value == RESEND_LAST:
            self._reply(self._last)
            return
        pending, self._pending = self._pending, 0
        if pending and value < FIRST_COMMAND:
            self._argument(pending, value)
        else:
            self._command(value)

    def _command(self, value: int) -> None:
        if value == ECHO:
            self._reply(ECHO)
        elif value in _WITH_ARGUMENT:
            self._pending = value
            self._reply(ACK)
        elif value == IDENTIFY:
            self._reply(ACK, *IDENTITY)
        elif value in (ENABLE, DISABLE, DEFAULTS):
            self._events.clear()
            if value != ENABLE:
                self._set_defaults()
            self._scanning = value != DISABLE
            self._reply(ACK)
        elif value in (ALL_TYPEMATIC, ALL_MAKE, ALL_MAKE_BREAK, ALL_TYPEMATIC_MAKE_BREAK):
            with_breaks = value in (ALL_MAKE_BREAK, ALL_TYPEMATIC_MAKE_BREAK)
            self._breaks = bytearray(_ALL_KEYS) if with_breaks else bytearray(32)
            self._reply(ACK)
        elif value == RESET:
            self._to_power_on()
            self._reply(ACK, SELF_TEST_PASSED)
        else:
            self._reply(RESEND)

    def _argument(self, command: int, value: int) -> None:
        if command == SET_LEDS:
            self._set_leds(value & LED_ALL)
        elif command == SET_TYPEMATIC:
            self._typematic = value
        elif command == SCAN_CODE_SET:
            if value > 3:
                self._reply(RESEND)
                return
            if value == 0:
                self._reply(ACK, self._code_set)
                return
            self._events.clear()
            self._code_set = value
        else:  # one more key of a list that ends with the next command
            if command == KEY_MAKE_BREAK:
                self._breaks[value >> 3] |= 1 << (value & 7)
            else:
                self._breaks[value >> 3] &= ~(1 << (value & 7))
            self._pending = command
        self._reply(ACK)

    def _set_leds(self, leds: int) -> None:
        if leds != self.leds:
            self.leds = leds
            self.on_leds(leds)

    # -- life -------------------------------------------------------------------------------------------------------

    def _to_power_on(self) -> None:
        self._replies.clear()
        self._events.clear()
        self._pending = 0
        self._scanning = True
        self._set_defaults()
        self._set_leds(0)

    def reset(self) -> None:
        """Return to the state after power-on; keys that a person holds stay held."""
        self._last = 0
        self._to_power_on()

    def save(self) -> KeyboardState:
        """Return queues and modes."""
        return KeyboardState(
            replies=list(self._replies),
            events=list(self._events),
            last=self._last,
            pending=self._pending,
            scanning=self._scanning,
            code_set=self._code_set,
            leds=self.leds,
            typematic=self._typematic,
            breaks=bytes(self._breaks),
            modifiers=self._modifiers,
        )

    def load(self, state: KeyboardState) -> None:
        """Take over queues and modes; the controller must be loaded, too."""
        state.check()
        if len(state.breaks) != 32 or (
            state.pending
            and state.pending
            not in (
                SET_LEDS,
                SCAN_CODE_SET,
                SET_TYPEMATIC,
                KEY_TYPEMATIC,
                KEY_MAKE_BREAK,
                KEY_MAKE,
            )
        ):
            raise StateError("KeyboardState: no state of a keyboard")
        self._replies = deque(state.replies)
        self._events = deque(state.events)
        self._last = state.last
        self._pending = state.pending
        self._scanning = state.scanning
        self._code_set = state.code_set
        self._typematic = state.typematic
        self._breaks = bytearray(state.breaks)
        self._modifiers = state.modifiers
        self._set_leds(state.leds)
