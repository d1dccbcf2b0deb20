"""What the VNC tests share: a display of nothing but a screen, a viewer at the other end, and decoders of its own.

The decoders are written from RFC 6143 and use nothing of pyvm.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvm.clock import ManualClock
from pyvm.devices.display.vga import Vga
from pyvm.input import InputEvent, InputKind, InputRouter
from pyvm.vnc.input import Keyboard, Locks, Pointer
from pyvm.vnc.protocol import Security
from pyvm.vnc.screen import Screen
from pyvm.vnc.session import Session

Image = NDArray[Any]
RAW, HEXTILE, ZLIB, ZRLE = 0, 5, 6, 16
PIXELS = {RAW, HEXTILE, ZLIB, ZRLE}


class Taker:
    """Takes all events and keeps them as text."""

    name = "taker"

    def __init__(self, kinds: Iterable[InputKind]) -> None:
        self.kinds = frozenset(kinds)
        self.log: list[str] = []

    def input(self, event: InputEvent) -> None:
        self.log.append(str(event))

    def sync(self) -> None:
        self.log.append("sync")

    def take(self) -> list[str]:
        """Return what came since the last time."""
        log, self.log = self.log, []
        return log


class Desk:
    """A display for one session.  `paint` changes what the screen shows."""

    def __init__(self, width: int = 70, height: int = 40, security: Security = Security.NONE) -> None:
        self.security = security
        self.title = "QEMU (test)"
        self.power_control = False
        self.secret: bytes | None = None
        self.admitted: list[bool] = []
        self.welcome = True
        self.touches = 0
        self.powers: list[int] = []
        self.screen = Screen(lambda: None)
        self.screen._pixels = np.zeros((height, width), np.uint32)
        self.router = InputRouter(ManualClock(), lambda: True)
        self.taker = Taker({InputKind.KEY, InputKind.BUTTON, InputKind.RELATIVE})
        self.router.register(self.taker)
        self.locks = Locks()

    @property
    def lights(self) -> int:
        return self.locks.leds

    def password(self) -> bytes | None:
        return self.secret

    def admit(self, session: Session, shared: bool) -> bool:
        self.admitted.append(shared)
        return self.welcome

    def touched(self) -> None:
        self.touches += 1

    def power(self, action: int) -> bool:
        self.powers.append(action)
        return action != 3

    def session(self, **options: Any) -> Session:
        keyboard = Keyboard(lambda event: self.router.type(event, 0), self.locks)
        return Session(self, keyboard, Pointer(self.router), **options)

    def paint(self, session: Session, image: Image) -> None:
        """Show another picture."""
        from pyvm.vnc.screen import _changed, tiles_of

        before = self.screen.pixels
        self.screen._pixels = image.astype(np.uint32)
        if before.shape == image.shape:
            session.screen_changed(_changed(before, self.screen.pixels))
        else:
            session.screen_changed(tiles_of(image.shape[1], image.shape[0], True))


def drain(session: Session) -> bytes:
    """Return all that the session has to send."""
    return b"".join(iter(session.output, b""))


def greet(session: Session, *, shared: bool = True) -> bytes:
    """Become acquainted with a session that needs no password; return what it said last."""
    session.receive(b"RFB 003.008\n")
    session.receive(b"\1")
    drain(session)
    session.receive(bytes([shared]))
    return drain(session)


def running(desk: Desk, encodings: Iterable[int] = (RAW,), **options: Any) -> Session:
    """Return a session whose viewer takes these encodings."""
    session = desk.session(**options)
    greet(session)
    session.receive(set_encodings(*encodings))
    return session


def set_encodings(*numbers: int) -> bytes:
    return struct.pack(">BxH", 2, len(numbers)) + struct.pack(f">{len(numbers)}i", *numbers)


def set_format(
    bits: int,
    depth: int,
    big: int = 0,
    true: int = 1,
    most: tuple[int, int, int] = (255, 255, 255),
    shifts: tuple[int, int, int] = (16, 8, 0),
) -> bytes:
    return struct.pack(">B3x4B3H3B3x", 0, bits, depth, big, true, *most, *shifts)


def request(x: int, y: int, width: int, height: int, *, incremental: bool = False) -> bytes:
    return struct.pack(">BBHHHH", 3, incremental, x, y, width, height)


def key(keysym: int, down: bool) -> bytes:
    return struct.pack(">BBxxI", 4, down, keysym)


def extended_key(keysym: int, number: int, down: bool) -> bytes:
    return struct.pack(">BBHII", 255, 0, down, keysym, number)


def point(buttons: int, x: int, y: int) -> bytes:
    return struct.pack(">BBHH", 5, buttons, x, y)


class Viewer:
    """Takes what a server sends apart, and keeps the picture that it comes to, in pixels as they are sent."""

    def __init__(
        self, width: int, height: int, dtype: str = "<u4", compact: tuple[int, int] | None = (0, 3), data: bytes = b""
    ) -> None:
        self.image: Image = np.zeros((height, width), dtype)
        self.notices: list[tuple[int, int, int, int, int]] = []
        self.updates = 0
        self.rectangles = 0
        self.colours: list[tuple[int, int, int]] = []
        self.power: list[int] = []
        self.lights: int | None = None
        self._compact = compact
        self._zlib = zlib.decompressobj()
        self._zrle = zlib.decompressobj()
        self._data = data
        self._at = 0

    def take(self, data: bytes) -> None:
        """Take whole messages."""
        self._data, self._at = data, 0
        while self._at < len(data):
            kind = self._read(">B")[0]
            if kind == 0:
                self._update()
            elif kind == 1:
                first, count = self._read(">xHH")
                assert first == 0
                self.colours = [self._read(">HHH") for _ in range(count)]  # type: ignore[misc]
            else:
                assert kind == 250, kind
                version, code = self._read(">xBB")
                assert version == 1
                self.power.append(code)

    def _bytes(self, length: int) -> bytes:
        part = self._data[self._at : self._at + length]
        assert len(part) == length
        self._at += length
        return part

    def _read(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))

    def _update(self) -> None:
        self.updates += 1
        for _ in range(self._read(">xH")[0]):
            x, y, width, height, encoding = self._read(">HHHHi")
            if encoding not in PIXELS:
                self.notices.append((x, y, width, height, encoding))
                if encoding in (-223, -308):
                    self.image = np.zeros((height, width), self.image.dtype)
                if encoding == -261:
                    self.lights = self._read(">B")[0]
                if encoding == -308:
                    assert self._read(">B3xIHHHHI") == (1, 0, 0, 0, width, height, 0)
                continue
            self.rectangles += 1
            assert x + width <= self.image.shape[1]
            assert y + height <= self.image.shape[0]
            target = self.image[y : y + height, x : x + width]
            decoders: dict[int, Callable[[Image], None]] = {
                RAW: self._raw,
                HEXTILE: self._hextile,
                ZLIB: self._inflate,
                ZRLE: self._zrle_rectangle,
            }
            decoders[encoding](target)

    def _raw(self, target: Image) -> None:
        data = self._bytes(target.size * target.itemsize)
        target[:] = np.frombuffer(data, target.dtype).reshape(target.shape)

    def _inflate(self, target: Image) -> None:
        data = self._zlib.decompress(self._bytes(self._read(">I")[0]))
        target[:] = np.frombuffer(data, target.dtype).reshape(target.shape)

    def _colour(self) -> Any:
        return np.frombuffer(self._bytes(self.image.itemsize), self.image.dtype)[0]

    def _hextile(self, target: Image) -> None:
        background = foreground = None
        for top in range(0, target.shape[0], 16):
            for left in range(0, target.shape[1], 16):
                tile = target[top : top + 16, left : left + 16]
                flags = self._read(">B")[0]
                if flags & 1:
                    self._raw(tile)
                    background = foreground = None
                    continue
                if flags & 2:
                    background = self._colour()
                if flags & 4:
                    foreground = self._colour()
                assert background is not None
                tile[:] = background
                for _ in range(self._read(">B")[0] if flags & 8 else 0):
                    colour = self._colour() if flags & 16 else foreground
                    place, size = self._read(">BB")
                    x, y, width, height = place >> 4, place & 15, (size >> 4) + 1, (size & 15) + 1
                    assert x + width <= tile.shape[1]
                    assert y + height <= tile.shape[0]
                    tile[y : y + height, x : x + width] = colour

    def _zrle_rectangle(self, target: Image) -> None:
        length = self._read(">I")[0]
        plain = self._zrle.decompress(self._bytes(length))
        rest, self._data, place, self._at = self._data, plain, self._at, 0
        for top in range(0, target.shape[0], 64):
            for left in range(0, target.shape[1], 64):
                self._zrle_tile(target[top : top + 64, left : left + 64])
        assert self._at == len(plain)
        self._data, self._at = rest, place

    def _cpixels(self, count: int) -> Image:
        if self._compact is None:
            return np.frombuffer(self._bytes(count * self.image.itemsize), self.image.dtype)
        wide = np.zeros((count, 4), np.uint8)
        first, last = self._compact
        wide[:, first:last] = np.frombuffer(self._bytes(3 * count), np.uint8).reshape(-1, 3)
        return wide.view(self.image.dtype)[:, 0]

    def _zrle_tile(self, tile: Image) -> None:
        kind = self._read(">B")[0]
        assert kind <= 16
        if kind == 0:
            tile[:] = self._cpixels(tile.size).reshape(tile.shape)
            return
        palette = self._cpixels(kind)
        if kind == 1:
            tile[:] = palette[0]
            return
        bits = 1 if kind == 2 else 2 if kind <= 4 else 4
        for row in tile:
            packed = self._bytes((len(row) * bits + 7) // 8)
            for column in range(len(row)):
                byte = packed[column * bits // 8]
                row[column] = palette[byte >> 8 - bits - column * bits % 8 & (1 << bits) - 1]


def vga_screen() -> tuple[Vga, Screen]:
    """Return an adapter, and its screen."""
    vga = Vga(ManualClock())
    return vga, Screen(lambda: vga)
