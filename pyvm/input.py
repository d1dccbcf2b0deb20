"""What people type and point at, on its way from monitors and remote displays to the guest's input devices.

An :class:`InputRouter` knows the handlers: the board's keyboard and mouse, and whatever else takes input.  Each kind of
event goes to the first handler that takes it.  Keys that are held for a time follow guest time, so nothing is released
while the guest stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Protocol

from pyvm.devices.keycodes import SCAN_CODES
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.clock import Clock
    from pyvm.devices.ps2_keyboard import Ps2Keyboard
    from pyvm.devices.ps2_mouse import Ps2Mouse

QUEUE_LIMIT = 1024
"""Most events, synchronisations and delays that wait to be sent."""
DEFAULT_HOLD_MS = 10
"""Milliseconds that a key is held where nobody says for how long."""
POSITION_MAX = 0x7FFF
"""The greatest absolute position; 0 is the left, or the top."""

_MILLISECOND = 1_000_000
_EXTENDED = 0x80


class InputKind(StrEnum):
    """What an event is about, by the name that QMP gives it."""

    KEY = "key"
    BUTTON = "btn"
    RELATIVE = "rel"
    ABSOLUTE = "abs"


@record(frozen=True)
class KeyInput:
    """A key, by its QKeyCode, goes down or up."""

    key: str
    down: bool
    kind = InputKind.KEY

    def __str__(self) -> str:
        return f"key qcode {self.key}, down {self.down:d}"


@record(frozen=True)
class ButtonInput:
    """A mouse button, by its InputButton, goes down or up."""

    button: str
    down: bool
    kind = InputKind.BUTTON

    def __str__(self) -> str:
        return f"button {self.button}, down {self.down:d}"


@record(frozen=True)
class MoveInput:
    """The pointer moves along an axis, ``x`` or ``y``, by some counts."""

    axis: str
    value: int
    kind = InputKind.RELATIVE

    def __str__(self) -> str:
        return f"axis {self.axis}, value {self.value}"


@record(frozen=True)
class PositionInput:
    """The pointer is at a place on an axis, 0 to :data:`POSITION_MAX`."""

    axis: str
    value: int
    kind = InputKind.ABSOLUTE

    def __str__(self) -> str:
        return f"axis {self.axis}, value {self.value:#x}"


InputEvent = KeyInput | ButtonInput | MoveInput | PositionInput
_TRACE_NAMES = {
    InputKind.KEY: "input_event_key_qcode",
    InputKind.BUTTON: "input_event_btn",
    InputKind.RELATIVE: "input_event_rel",
    InputKind.ABSOLUTE: "input_event_abs",
}


@cache
def _keys_by_number() -> dict[int, str]:
    numbers = {code & 0x7F | (_EXTENDED if code >> 8 else 0): name for name, (code, _, _) in SCAN_CODES.items() if code}
    return numbers | {0x54: "sysrq", 0xB7: "print", 0xC6: "pause"}


def key_of_number(number: int) -> str:
    """Return the QKeyCode of a key's number: its make code of set 1, with bit 7 set for the prefix e0."""
    return _keys_by_number().get(number, "unmapped")


class InputHandler(Protocol):
    """What takes events."""

    name: str
    kinds: frozenset[InputKind]

    def input(self, event: InputEvent) -> None:
        """Take an event of one of these kinds."""

    def sync(self) -> None:
        """All that belongs together has been sent."""


class KeyboardInput:
    """The board's keyboard."""

    name = "QEMU PS/2 Keyboard"
    kinds = frozenset({InputKind.KEY})

    def __init__(self, keyboard: Ps2Keyboard, wake: Callable[[], None]) -> None:
        """`wake` wakes the guest, where it sleeps: any key does."""
        self._keyboard = keyboard
        self._wake = wake

    def input(self, event: InputEvent) -> None:
        """Take a key.  The one that wakes the guest gets lost, as the keyboard is reset thereby."""
        assert isinstance(event, KeyInput)
        self._keyboard.key(event.key, event.down)
        self._wake()

    def sync(self) -> None:
        """The keyboard sends each key at once."""


class MouseInput:
    """The board's mouse."""

    name = "QEMU PS/2 Mouse"
    kinds = frozenset({InputKind.BUTTON, InputKind.RELATIVE})
    _WITHOUT = frozenset({"wheel-left", "wheel-right"})

    def __init__(self, mouse: Ps2Mouse, wake: Callable[[], None]) -> None:
        """`wake` wakes the guest, where it sleeps: a button does while the guest listens to the mouse."""
        self._mouse = mouse
        self._wake = wake
        self._travel = {"x": 0, "y": 0}
        self._buttons: list[ButtonInput] = []

    def input(self, event: InputEvent) -> None:
        """Take movement or a button."""
        if isinstance(event, MoveInput):
            self._travel[event.axis] += event.value
        elif isinstance(event, ButtonInput) and event.button not in self._WITHOUT:
            self._buttons.append(event)

    def sync(self) -> None:
        """Hand over what was collected."""
        if any(self._travel.values()):
            self._mouse.move(self._travel["x"], self._travel["y"])
            self._travel = dict.fromkeys(self._travel, 0)
        buttons, self._buttons = self._buttons, []
        for event in buttons:
            self._mouse.button(event.button, event.down)
        if any(event.down for event in buttons) and self._mouse.save().enabled:
            self._wake()


@record(frozen=True)
class MouseInfo:
    """A pointing device as `query-mice` shows it."""

    name: str
    index: int
    current: bool
    absolute: bool


class _Sync:
    """In the queue: synchronise."""


class InputRouter:
    """Sends each event to the handler that is to have it."""

    def __init__(
        self,
        clock: Clock,
        listening: Callable[[], bool],
        *,
        trace: Callable[[str, str], None] = lambda name, text: None,
    ) -> None:
        """`listening` says whether the guest runs or sleeps: what comes at other times is dropped."""
        self.listening = listening
        self._clock = clock
        self._trace = trace
        self._handlers: list[tuple[int, InputHandler]] = []
        self._count = 0
        self._queue: deque[InputEvent | _Sync | int] = deque()
        self._timer = clock.timer(self._delay_over)
        self._buttons = 0

    # ---- Handlers

    def register(self, handler: InputHandler) -> Callable[[], None]:
        """Add a handler behind all others; the returned function takes it away."""
        self._count += 1
        entry = (self._count, handler)
        self._handlers.append(entry)
        return lambda: self._handlers.remove(entry)

    def activate(self, handler: InputHandler) -> None:
        """Put a handler in front of all others: it has become ready for input."""
        self._handlers.sort(key=lambda entry: entry[1] is not handler)

    def accepts(self, kind: InputKind) -> bool:
        """Return whether there is a handler for such events."""
        return self._find(kind) is not None

    def _find(self, kind: InputKind) -> InputHandler | None:
        return next((handler for _, handler in self._handlers if kind in handler.kinds), None)

    def _pointers(self) -> list[tuple[int, InputHandler]]:
        pointing = {InputKind.RELATIVE, InputKind.ABSOLUTE}
        return [entry for entry in self._handlers if entry[1].kinds & pointing]

    def mice(self) -> list[MouseInfo]:
        """Describe the pointing devices, the one in use first."""
        pointers = self._pointers()
        return [
            MouseInfo(handler.name, index, place == 0, InputKind.ABSOLUTE in handler.kinds)
            for place, (index, handler) in enumerate(pointers)
        ]

    def choose_mouse(self, index: int) -> bool:
        """Have the pointing device of that index used; return whether there is one."""
        for number, handler in self._pointers():
            if number == index:
                self.activate(handler)
                return True
        return False

    # ---- Events

    def send(self, events: Iterable[InputEvent]) -> None:
        """Send events that belong together; they are lost where the guest does not listen."""
        for event in events:
            self._send(event)
        self._sync()

    def _send(self, event: InputEvent) -> None:
        if self.listening():
            self._trace(_TRACE_NAMES[event.kind], f"con -1, {event}")
            handler = self._find(event.kind)
            if handler is not None:
                handler.input(event)

    def _sync(self) -> None:
        if self.listening():
            self._trace("input_event_sync", "")
            for _, handler in list(self._handlers):
                handler.sync()

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """Move the pointer to the right and down; positive `dz` turns the wheel up by one notch, negative down."""
        events = [MoveInput(axis, value) for axis, value in (("x", dx), ("y", dy))]
        self.send(events)
        if dz:
            wheel = "wheel-up" if dz > 0 else "wheel-down"
            self.send([ButtonInput(wheel, True)])
            self.send([ButtonInput(wheel, False)])

    def set_buttons(self, state: int) -> None:
        """Press and release buttons until those of `state` are down: 1 left, 2 right, 4 middle."""
        changed = state ^ self._buttons
        self._buttons = state
        bits = (("left", 1), ("middle", 4), ("right", 2))
        self.send([ButtonInput(name, bool(state & bit)) for name, bit in bits if changed & bit])

    # ---- Keys that are held

    def press(self, keys: Iterable[str], hold_ms: int | None = None) -> None:
        """Press keys one after another, `hold_ms` apart in guest time, and release them in reverse order."""
        held: list[str] = []
        for key in keys:
            self._queue_key(KeyInput(key, True), hold_ms)
            held.append(key)
        for key in reversed(held):
            self._queue_key(KeyInput(key, False), hold_ms)

    def type(self, event: KeyInput, delay_ms: int) -> None:
        """Send a key behind all that wait; those that follow come `delay_ms` of guest time later."""
        if delay_ms:
            self._queue_key(event, delay_ms)
        elif not self._queue:
            self.send([event])
        elif self.listening() and len(self._queue) < QUEUE_LIMIT - 1:
            self._queue.extend((event, _Sync()))

    def _queue_key(self, event: KeyInput, hold_ms: int | None) -> None:
        if not self.listening():
            return
        if not self._queue:
            self.send([event])
        elif len(self._queue) < QUEUE_LIMIT - 1:
            self._queue.extend((event, _Sync()))
        delay = hold_ms or DEFAULT_HOLD_MS
        if not self._queue:
            self._queue.append(delay)
            self._wait(delay)
        elif len(self._queue) < QUEUE_LIMIT:
            self._queue.append(delay)

    def _wait(self, milliseconds: int) -> None:
        self._timer.arm(self._clock.now() + milliseconds * _MILLISECOND)

    def _delay_over(self) -> None:
        self._queue.popleft()
        while self._queue:
            entry = self._queue[0]
            if isinstance(entry, int):
                self._wait(entry)
                return
            self._queue.popleft()
            if isinstance(entry, _Sync):
                self._sync()
            else:
                self._send(entry)
