"""What of the screen has changed, and when it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.clock import ManualClock
from pyvm.devices.display.screendump import picture
from pyvm.input import InputRouter
from pyvm.vnc.refresh import LONGEST, SHORTEST, Refresher
from pyvm.vnc.screen import TILE_HEIGHT, TILE_WIDTH, Area, Screen, areas_of, tiles_in, tiles_inside, tiles_of
from tests.unit.vnc_support import Desk, request, running, vga_screen


def pixels_of(picture: Any) -> Any:
    wide = picture.astype(np.uint32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


# ---- Areas and tiles


@settings(max_examples=100)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 1 << 20), st.floats(0, 1))
def test_areas_cover_their_tiles_once(width: int, height: int, seed: int, density: float) -> None:
    tiles = np.random.default_rng(seed).random(tiles_of(width, height).shape) < density
    seen = np.zeros((height, width), int)
    for area in areas_of(tiles, width, height):
        assert area.x + area.width <= width
        assert area.y + area.height <= height
        assert not area.empty
        seen[area.y : area.y + area.height, area.x : area.x + area.width] += 1
    wanted = np.kron(tiles, np.ones((TILE_HEIGHT, TILE_WIDTH), int))[:height, :width]
    assert np.array_equal(seen, wanted)


def test_tiles_below_each_other_become_one_area() -> None:
    assert list(areas_of(tiles_of(100, 100, True), 100, 100)) == [Area(0, 0, 100, 100)]
    tiles = tiles_of(100, 100)
    tiles[1:3, 1] = True
    assert list(areas_of(tiles, 100, 100)) == [Area(32, 16, 32, 32)]


@settings(max_examples=100)
@given(*[st.integers(0, 90)] * 4)
def test_tiles_of_an_area(x: int, y: int, width: int, height: int) -> None:
    area = Area(x, y, width, height).within(80, 70)
    assert area.x + area.width <= 80
    assert area.y + area.height <= 70
    if area.empty:
        return
    touched, covered = tiles_of(80, 70), tiles_of(80, 70)
    touched[tiles_in(area)] = True
    covered[tiles_inside(area, 80, 70)] = True
    inside = np.zeros((70, 80), bool)
    inside[area.y : area.y + area.height, area.x : area.x + area.width] = True
    for row in range(touched.shape[0]):
        for column in range(touched.shape[1]):
            part = inside[row * 16 : row * 16 + 16, column * 32 : column * 32 + 32]
            assert touched[row, column] == part.any()
            assert covered[row, column] == part.all()


def test_joined_areas() -> None:
    assert Area(5, 6, 7, 8).joined(Area(1, 20, 2, 3)) == Area(1, 6, 11, 17)


# ---- The screen


def test_the_screen_shows_what_a_screendump_shows() -> None:
    vga, screen = vga_screen()
    for mode in ((640, 480, 32), (800, 600, 8), (320, 200, 16)):
        for index, value in zip((4, 1, 2, 3, 4), (0, *mode, 0x41), strict=True):
            vga.dispi_write(0, 2, index)
            vga.dispi_write(1, 2, value)
        vga.port_read(0x1A + 0x10, 1)
        vga.port_write(0x10, 1, 0x20)
        vga.port_write(0x18, 1, 0)
        for value in range(3 * 256):
            vga.port_write(0x19, 1, value & 0x3F)
        memory = np.frombuffer(vga.vram.view, np.uint8)
        memory[: 1 << 20] = np.random.default_rng(mode[0]).integers(0, 256, 1 << 20)
        assert screen.refresh() is not None
        assert np.array_equal(screen.pixels, pixels_of(picture(vga)))
        assert (screen.width, screen.height) == mode[:2]
        assert screen.refresh() is None
        at = 4 * (100 * mode[0] + 50) * mode[2] // 32
        memory[at : at + 4] ^= 0xFF
        tiles = screen.refresh()
        assert tiles is not None
        assert 1 <= tiles.sum() <= 4
        assert np.array_equal(screen.pixels, pixels_of(picture(vga)))


def test_a_change_that_does_not_show_is_none() -> None:
    vga, screen = vga_screen()
    screen.refresh()
    np.frombuffer(vga.vram.view, np.uint8)[200_000] ^= 1
    assert screen.refresh() is None
    screen.forget()
    assert screen.refresh() is None


def test_a_machine_without_adapter_says_so() -> None:
    screen = Screen(lambda: None)
    assert screen.refresh() is not None
    assert (screen.width, screen.height) == (640, 480)
    assert screen.pixels.any()
    assert screen.refresh() is None


# ---- When it is looked at


class Time:
    """Time that passes by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Any:
        timer = Timer(self, self.now + seconds, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.due <= end + 1e-9]:
            timer = min(due, key=lambda timer: timer.due)
            self.timers.remove(timer)
            self.now = max(timer.due, self.now)
            timer.callback()
        self.now = end


class Timer:
    def __init__(self, time: Time, due: float, callback: Callable[..., object]) -> None:
        self.due = due
        self.callback = callback
        self._time = time

    def cancel(self) -> None:
        self._time.timers.remove(self)


class Looked:
    """A viewer, and how often its screen was looked at."""

    def __init__(self) -> None:
        self.time = Time()
        self.desk = desk = Desk()
        self.session = running(desk)
        self.looks: list[float] = []
        self.changes: list[Any] = []
        self.pumped = 0
        self.slow = 0.0
        router = InputRouter(ManualClock(), lambda: True)
        self.viewers: list[Any] = [self]
        self.refresher = Refresher(self.time, self, router, lambda: self.viewers, lambda: self.time.now)  # type: ignore[arg-type]
        self.forgotten = 0

    def refresh(self) -> Any:
        self.looks.append(self.time.now)
        self.time.now += self.slow
        return self.changes.pop(0) if self.changes else None

    def forget(self) -> None:
        self.forgotten += 1

    def pump(self) -> None:
        self.pumped += 1
        while self.session.output():
            pass
        if self.session.wants_update:
            self.refresher.wake(soon=self.session.updates.insistent)

    def ask(self, *, incremental: bool = True) -> None:
        self.session.receive(request(0, 0, 70, 40, incremental=incremental))
        self.pump()


def test_nobody_looks_unless_a_viewer_waits() -> None:
    looked = Looked()
    looked.refresher.nudge()
    looked.time.advance(10)
    assert looked.looks == []
    looked.ask()
    looked.time.advance(10)
    assert len(looked.looks) == 1  # it had seen nothing yet, so its request was answered at once
    assert looked.time.timers == []


def test_looks_become_rarer_and_input_makes_them_frequent() -> None:
    looked = Looked()
    looked.ask()
    looked.time.advance(1)
    looked.looks.clear()
    looked.ask()
    looked.time.advance(20)
    gaps = np.diff(looked.looks)
    assert gaps[0] <= 4 * SHORTEST
    assert (np.diff(gaps) > -1e-6).all()
    assert abs(gaps[-1] - LONGEST) < 1e-6
    looked.looks.clear()
    start = looked.time.now
    looked.refresher.nudge()
    looked.time.advance(0.2)
    assert looked.looks[0] - start <= SHORTEST + 1e-6
    looked.changes = [tiles_of(70, 40, True)]
    looked.time.advance(1)
    assert not looked.session.wants_update


def test_who_insists_does_not_wait() -> None:
    looked = Looked()
    looked.ask()
    looked.time.advance(20)
    looked.ask()
    looked.time.advance(20.2)
    looked.looks.clear()
    start = looked.time.now
    looked.ask(incremental=False)
    looked.time.advance(1)
    assert len(looked.looks) == 1
    assert looked.looks[0] - start <= SHORTEST


def test_a_screen_that_is_slow_to_draw_is_drawn_less_often() -> None:
    looked = Looked()
    looked.slow = 0.1
    for _ in range(20):
        looked.changes = [tiles_of(70, 40, True)] * 3
        looked.ask()
        looked.time.advance(0.2)
    assert min(np.diff(looked.looks)) >= 0.5


def test_when_all_have_gone_nothing_is_kept() -> None:
    looked = Looked()
    looked.ask()
    looked.time.advance(1)
    looked.ask()
    looked.viewers.clear()
    looked.time.advance(1)
    assert looked.forgotten == 1
    assert looked.time.timers == []
    looked.ask()
    looked.refresher.close()
    assert looked.time.timers == []
