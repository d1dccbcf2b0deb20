"""Int 16h, and the interrupt of the keyboard (IRQ 1, int 09h), which fills the buffer that int 16h empties.

Personal System/2 and Personal Computer BIOS Interface Technical Reference, int 09h and 16h.  The handler asks int 15h
AH=4F before it uses a scan code; the ROM has that call, so the work is in two parts, :meth:`Keyboard.fetch` and
:meth:`Keyboard.scan`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.console import SerialConsole
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.hardware import KEYBOARD_DATA, KEYBOARD_STATUS, STATUS_MOUSE, STATUS_OUTPUT_FULL
from pyvm.firmware.bios.registers import FLAG_CARRY, Registers
from pyvm.firmware.bios.scancodes import GREY_KEYS, KEYPAD_DIGITS, KEYS, Key

# Shift flags, 40:17
RIGHT_SHIFT, LEFT_SHIFT, CTRL, ALT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SCROLL_LOCK, NUM_LOCK, CAPS_LOCK, INSERT = 1 << 4, 1 << 5, 1 << 6, 1 << 7
SHIFT: Final = RIGHT_SHIFT | LEFT_SHIFT
# More of them, 40:18
LEFT_CTRL, LEFT_ALT, SYSTEM_REQUEST, PAUSED = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SCROLL_DOWN, NUM_DOWN, CAPS_DOWN, INSERT_DOWN = 1 << 4, 1 << 5, 1 << 6, 1 << 7
# Keyboard mode, 40:96
PREFIX_E1, PREFIX_E0, MODE_RIGHT_CTRL, MODE_RIGHT_ALT, ENHANCED = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4

_BREAK: Final = 0x80
_LOCKS: Final = {0x3A: (CAPS_LOCK, CAPS_DOWN), 0x45: (NUM_LOCK, NUM_DOWN), 0x46: (SCROLL_LOCK, SCROLL_DOWN)}
_SCAN_CTRL, _SCAN_ALT, _SCAN_LEFT_SHIFT, _SCAN_RIGHT_SHIFT = 0x1D, 0x38, 0x2A, 0x36
_SCAN_NUM_LOCK, _SCAN_SCROLL_LOCK, _SCAN_DELETE, _SCAN_INSERT = 0x45, 0x46, 0x53, 0x52
_SCAN_PRINT, _SCAN_REQUEST = 0x37, 0x54
_REPLIES: Final = frozenset({0xFA, 0xFE, 0xFC, 0xFF, 0xEE, 0x00})

_SET_LEDS: Final = 0xED
_SET_TYPEMATIC: Final = 0xF3
_LED_MASK: Final = 0x07
_LED_SHIFT: Final = 4  # from the lock bits of 40:17
FUNCTIONS_SUPPORTED: Final = 0x30  # AH=09: typematic rates can be set and read, enhanced functions
KEYBOARD_ID: Final = 0x41AB  # translated
_LAST_84_KEY: Final = 0x84
_STANDARD_ENTER: Final = 0x1C
_STANDARD_SLASH: Final = 0x35


def standard_code(code: int) -> int | None:
    """Return what AH=00 gives for the code of an enhanced keyboard; None for keys that older ones do not have."""
    scan, character = code >> 8, code & 0xFF
    if scan == 0xE0:
        return (_STANDARD_SLASH if character == ord("/") else _STANDARD_ENTER) << 8 | character
    if scan > _LAST_84_KEY:
        return None
    return scan << 8 if character == 0xE0 and scan else code


class Keyboard:
    """The service and the interrupt handler."""

    def __init__(self, core: Core, console: SerialConsole) -> None:
        self._core = core
        self._bda = core.bda
        self._console = console
        self._functions: dict[int, Callable[[Registers], None]] = {
            0x00: lambda registers: self._read(registers, enhanced=False),
            0x01: lambda registers: self._peek(registers, enhanced=False),
            0x02: self._shift_flags,
            0x03: self._typematic,
            0x05: self._store,
            0x09: self._abilities,
            0x0A: self._identify,
            0x10: lambda registers: self._read(registers, enhanced=True),
            0x11: lambda registers: self._peek(registers, enhanced=True),
            0x12: self._all_shift_flags,
        }

    # -- the buffer -------------------------------------------------------------------------------------------------

    def initialise(self) -> None:
        """Empty the buffer; at POST."""
        bda = self._bda
        for offset in (area.KEY_HEAD, area.KEY_TAIL, area.KEY_BUFFER_START):
            bda.set_word(offset, area.KEY_BUFFER_FIRST)
        bda.set_word(area.KEY_BUFFER_END, area.KEY_BUFFER_LAST)
        bda.set_byte(area.KEYBOARD_MODE, ENHANCED)

    def _next(self, position: int) -> int:
        """Return the place behind `position` in the ring, which programs may move within the data area."""
        end = self._bda.word(area.KEY_BUFFER_END)
        return self._bda.word(area.KEY_BUFFER_START) if position + 2 >= end else position + 2

    def put(self, code: int) -> bool:
        """Append a code; say whether there was room."""
        tail = self._bda.word(area.KEY_TAIL)
        behind = self._next(tail)
        if behind == self._bda.word(area.KEY_HEAD):
            return False
        self._core.memory.write_u16(area.BDA + tail, code & 0xFFFF)
        self._bda.set_word(area.KEY_TAIL, behind)
        return True

    def _first(self) -> int | None:
        head = self._bda.word(area.KEY_HEAD)
        return None if head == self._bda.word(area.KEY_TAIL) else self._core.memory.read_u16(area.BDA + head)

    def _drop(self) -> None:
        self._bda.set_word(area.KEY_HEAD, self._next(self._bda.word(area.KEY_HEAD)))

    def poll(self) -> None:
        """Take what came in on the console's serial line into the buffer."""
        for code in self._console.input(self._room()):
            self.put(code)

    def _room(self) -> int:
        start, end = self._bda.word(area.KEY_BUFFER_START), self._bda.word(area.KEY_BUFFER_END)
        size = max((end - start) // 2, 1)
        used = (self._bda.word(area.KEY_TAIL) - self._bda.word(area.KEY_HEAD)) // 2 % size
        return size - 1 - used

    def take(self, enhanced: bool = True) -> int | None:
        """Remove and return the next code, or None where there is none."""
        code = self.look(enhanced)
        if code is not None:
            self._drop()
        return code

    def look(self, enhanced: bool = True) -> int | None:
        """Return the next code and leave it; those that the caller does not know are removed."""
        self.poll()
        for _ in range(area.BDA_SIZE):
            code = self._first()
            if code is None or enhanced:
                return code
            code = standard_code(code)
            if code is not None:
                return code
            self._drop()
        return None

    # -- int 16h ----------------------------------------------------------------------------------------------------

    def call(self, registers: Registers) -> None:
        """Serve int 16h; unknown functions change nothing."""
        function = self._functions.get(registers.ah)
        if function is not None:
            function(registers)

    def _read(self, registers: Registers, enhanced: bool) -> None:
        code = self.take(enhanced)
        if code is None:
            self._console.show_cursor()
            registers.goto = "key_wait"
        else:
            registers.ax = code

    def _peek(self, registers: Registers, enhanced: bool) -> None:
        code = self.look(enhanced)
        registers.zero = code is None
        if code is None:
            self._console.show_cursor()
        else:
            registers.ax = code

    def _shift_flags(self, registers: Registers) -> None:
        registers.al = self._bda.byte(area.SHIFT_FLAGS)

    def _all_shift_flags(self, registers: Registers) -> None:
        first, second = self._bda.byte(area.SHIFT_FLAGS), self._bda.byte(area.SHIFT_FLAGS_2)
        mode = self._bda.byte(area.KEYBOARD_MODE)
        registers.al = first
        registers.ah = second & 0x73 | mode & (MODE_RIGHT_CTRL | MODE_RIGHT_ALT) | (second & SYSTEM_REQUEST) << 5

    def _typematic(self, registers: Registers) -> None:
        """AH=03: set the repeat rate and delay (AL=05) or the default (AL=00)."""
        if registers.al == 0x05:
            self._send(_SET_TYPEMATIC, (registers.bh & 3) << 5 | registers.bl & 0x1F)
        elif registers.al == 0x00:
            self._send(_SET_TYPEMATIC, 0x20)

    def _store(self, registers: Registers) -> None:
        registers.al = 0 if self.put(registers.cx) else 1

    def _abilities(self, registers: Registers) -> None:
        registers.al = FUNCTIONS_SUPPORTED

    def _identify(self, registers: Registers) -> None:
        registers.bx = KEYBOARD_ID

    def _send(self, *values: int) -> None:
        """Send a command to the keyboard and take its acknowledgements."""
        core = self._core
        for value in values:
            core.outb(KEYBOARD_DATA, value)
            status = core.inb(KEYBOARD_STATUS)
            if status & (STATUS_OUTPUT_FULL | STATUS_MOUSE) == STATUS_OUTPUT_FULL:
                core.inb(KEYBOARD_DATA)

    def update_leds(self) -> None:
        """Let the lamps show the locks, where they do not yet."""
        wanted = self._bda.byte(area.SHIFT_FLAGS) >> _LED_SHIFT & _LED_MASK
        shown = self._bda.byte(area.KEYBOARD_LEDS)
        if shown & _LED_MASK != wanted:
            self._bda.set_byte(area.KEYBOARD_LEDS, shown & ~_LED_MASK | wanted)
            self._send(_SET_LEDS, wanted)

    # -- IRQ 1 ------------------------------------------------------------------------------------------------------

    def fetch(self, registers: Registers) -> None:
        """Read the byte that the keyboard has sent into AL; the carry flag itself says that there is none."""
        status = self._core.inb(KEYBOARD_STATUS)
        if status & (STATUS_OUTPUT_FULL | STATUS_MOUSE) == STATUS_OUTPUT_FULL:
            registers.al = self._core.inb(KEYBOARD_DATA)
            registers.eflags &= ~FLAG_CARRY
        else:
            registers.eflags |= FLAG_CARRY

    def scan(self, registers: Registers) -> None:
        """Use the scan code in AL."""
        registers.goto = self._scanned(registers.al)

    def _scanned(self, value: int) -> str | None:
        """Use a byte from the keyboard; return where the handler goes on when that is not its end."""
        mode = self._bda.byte(area.KEYBOARD_MODE)
        if value in (0xE0, 0xE1):
            self._bda.set_byte(area.KEYBOARD_MODE, mode | (PREFIX_E0 if value == 0xE0 else PREFIX_E1))
            return None
        if value in _REPLIES:
            return None
        scan, down = value & ~_BREAK, not value & _BREAK
        if mode & PREFIX_E1:  # Pause is E1 1D 45 E1 9D C5
            if scan != _SCAN_CTRL:
                self._bda.set_byte(area.KEYBOARD_MODE, mode & ~(PREFIX_E1 | PREFIX_E0))
                return self._pause() if scan == _SCAN_NUM_LOCK and down else None
            return None
        self._bda.set_byte(area.KEYBOARD_MODE, mode & ~PREFIX_E0)
        grey = bool(mode & PREFIX_E0)
        where = self._modifier(scan, down, grey)
        self.update_leds()
        if where is None:
            where = self._special(scan, down, grey)
        if where is None and down:
            where = self._key(scan, grey)
        return where or None

    def _pause(self) -> str | None:
        flags = self._bda.byte(area.SHIFT_FLAGS_2)
        self._bda.set_byte(area.SHIFT_FLAGS_2, flags | PAUSED)
        return "key_pause"

    def paused(self, registers: Registers) -> None:
        """Wait on while Pause has not been ended by another key."""
        if self._bda.byte(area.SHIFT_FLAGS_2) & PAUSED:
            registers.goto = "key_paused"

    def _set_flag(self, offset: int, mask: int, level: bool) -> None:
        value = self._bda.byte(offset)
        self._bda.set_byte(offset, value | mask if level else value & ~mask)

    def _modifier(self, scan: int, down: bool, grey: bool) -> str | None:
        """Follow the shift keys; an empty string says that the key was one, and is used up."""
        if scan in (_SCAN_LEFT_SHIFT, _SCAN_RIGHT_SHIFT):
            if not grey:  # those with the prefix belong to the codes of grey keys
                self._set_flag(area.SHIFT_FLAGS, LEFT_SHIFT if scan == _SCAN_LEFT_SHIFT else RIGHT_SHIFT, down)
            return ""
        if scan == _SCAN_CTRL:
            self._two_sided(down, grey, CTRL, LEFT_CTRL, MODE_RIGHT_CTRL)
            return ""
        if scan == _SCAN_ALT:
            self._two_sided(down, grey, ALT, LEFT_ALT, MODE_RIGHT_ALT)
            return self._end_of_alt() if not down else ""
        if scan in _LOCKS and not grey and not self._with_ctrl_only(scan):
            lock, held = _LOCKS[scan]
            flags, more = self._bda.byte(area.SHIFT_FLAGS), self._bda.byte(area.SHIFT_FLAGS_2)
            if down and not more & held:
                self._bda.set_byte(area.SHIFT_FLAGS, flags ^ lock)
            self._set_flag(area.SHIFT_FLAGS_2, held, down)
            return ""
        return None

    def _with_ctrl_only(self, scan: int) -> bool:
        """Whether the key is Ctrl-Scroll Lock or Ctrl-Num Lock: break and pause of the oldest keyboards."""
        return scan in (_SCAN_SCROLL_LOCK, _SCAN_NUM_LOCK) and bool(self._bda.byte(area.SHIFT_FLAGS) & CTRL)

    def _two_sided(self, down: bool, right: bool, both: int, left_bit: int, right_bit: int) -> None:
        self._set_flag(area.KEYBOARD_MODE if right else area.SHIFT_FLAGS_2, right_bit if right else left_bit, down)
        held = self._bda.byte(area.SHIFT_FLAGS_2) & left_bit or self._bda.byte(area.KEYBOARD_MODE) & right_bit
        self._set_flag(area.SHIFT_FLAGS, both, bool(held))

    def _end_of_alt(self) -> str:
        """Alt was released: what was typed on the keypad meanwhile is a character's number."""
        code = self._bda.byte(area.ALT_KEYPAD)
        self._bda.set_byte(area.ALT_KEYPAD, 0)
        return "key_stored" if code and self.put(code) else ""

    def _special(self, scan: int, down: bool, grey: bool) -> str | None:
        """Look for keys that do something at once."""
        flags = self._bda.byte(area.SHIFT_FLAGS)
        if scan == _SCAN_INSERT and not flags & (CTRL | ALT) and (grey or not self._numeric(flags)):
            if down and not self._bda.byte(area.SHIFT_FLAGS_2) & INSERT_DOWN:
                self._bda.set_byte(area.SHIFT_FLAGS, flags ^ INSERT)
            self._set_flag(area.SHIFT_FLAGS_2, INSERT_DOWN, down)
        if scan == _SCAN_REQUEST:
            self._set_flag(area.SHIFT_FLAGS_2, SYSTEM_REQUEST, down)
            return "key_request_down" if down else "key_request_up"
        if not down:
            return None
        if self._bda.byte(area.SHIFT_FLAGS_2) & PAUSED:
            self._set_flag(area.SHIFT_FLAGS_2, PAUSED, False)
            return ""
        if scan == _SCAN_DELETE and flags & CTRL and flags & ALT:
            self._bda.set_word(area.RESET_FLAG, area.WARM_START)
            self._core.reset_machine()
            return "halt"
        if scan == _SCAN_PRINT and (grey or flags & SHIFT) and not flags & (CTRL | ALT):
            return "key_print"
        if scan == _SCAN_SCROLL_LOCK and flags & CTRL:
            self._break()
            return "key_break"
        return self._pause() if scan == _SCAN_NUM_LOCK and flags & CTRL else None

    def _break(self) -> None:
        start = self._bda.word(area.KEY_BUFFER_START)
        self._bda.set_word(area.KEY_HEAD, start)
        self._bda.set_word(area.KEY_TAIL, start)
        self._bda.set_byte(area.BREAK_FLAG, 0x80)
        self.put(0)

    def _numeric(self, flags: int) -> bool:
        """Whether the keypad types digits now."""
        return bool(flags & NUM_LOCK) != bool(flags & SHIFT)

    def _key(self, scan: int, grey: bool) -> str | None:
        flags = self._bda.byte(area.SHIFT_FLAGS)
        if flags & ALT and not grey and scan in KEYPAD_DIGITS:
            typed = self._bda.byte(area.ALT_KEYPAD) * 10 + KEYPAD_DIGITS[scan]
            self._bda.set_byte(area.ALT_KEYPAD, typed)
            return None
        key = (GREY_KEYS if grey else KEYS).get(scan)
        code = None if key is None else self._code(key, flags)
        return "key_stored" if code is not None and self.put(code) else None

    def _code(self, key: Key, flags: int) -> int | None:
        if flags & ALT:
            return key.alt
        if flags & CTRL:
            return key.ctrl
        shifted = bool(flags & SHIFT)
        if (key.letter and flags & CAPS_LOCK) or (key.keypad and flags & NUM_LOCK):
            shifted = not shifted
        return key.shift if shifted else key.plain
