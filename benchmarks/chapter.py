"""What a chapter of the benchmarks is: figures that are measured together, and how each is shown and judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import Emulator
from images.build import Image, build

Sample = dict[str, float]
"""Figures by name, in the units that their functions name; a Metric scales them."""
Measure = Callable[[Emulator], Sample]
"""Returns all figures of a chapter for one run of one emulator."""


class SkippedError(Exception):
    """A chapter cannot be measured here; the message is the reason, for a person."""


@dataclass(frozen=True)
class Metric:
    """How one figure is shown and judged."""

    name: str
    title: str
    unit: str
    scale: float = 1.0
    more_is_better: bool = False
    relative: float | None = None
    """Target for this figure divided by that of QEMU: at most, or at least where more is better."""
    absolute: float | None = None
    """Target for the figure itself, in its unit."""


@dataclass(frozen=True)
class Setting:
    """What the chapters of one run have in common."""

    directory: Path
    """For what exists only while the benchmarks run.  Images lie here, so it needs some GiB of room."""
    guest: str = "demo"
    """The guest that is booted with -kernel."""
    seconds: float = 0.3
    """How long each benchmark of a guest's processor may take."""

    @functools.cached_property
    def image(self) -> Image:
        """The guest's files, which both emulators find in the host's cache."""
        image = build(self.guest)
        for path in (image.kernel, image.initrd):
            path.read_bytes()
        return image


@dataclass(frozen=True)
class Chapter:
    """Figures that are measured together, for one emulator and then for the other."""

    name: str
    about: str
    metrics: tuple[Metric, ...]
    prepare: Callable[[Setting], Measure]
    """Makes what the measure needs, once; raises SkippedError where the chapter cannot be measured."""
