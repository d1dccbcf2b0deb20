"""Diskettes and their drives: which formats there are, and what a drive knows of the disk in it.

An image holds the sectors of a disk track by track, both sides of a track next to each other; its size says what
format it has.  Formats are those that PCs have used (ECMA-66, -70, -78, -100, -125 and the usual denser ones).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from pyvm.records import record
from pyvm.state import State, flag, integer

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

SECTOR: Final = 512
SIZE_CODE: Final = 2
"""N of ID fields: 128 bytes, twice so many, and twice again."""
MAX_TRACK: Final = 84
"""How far the heads go."""

# Data rates as CCR and DSR name them
RATE_500K: Final = 0
RATE_300K: Final = 1
RATE_250K: Final = 2
RATE_1M: Final = 3


class DriveType(enum.Enum):
    """Kinds of drives, under the names of the `drive-type` property; `value` is the byte of CMOS register 0x10."""

    NONE = 0
    D120 = 2
    D144 = 4
    D288 = 5


TYPE_NAMES: Final = {"120": DriveType.D120, "144": DriveType.D144, "288": DriveType.D288, "none": DriveType.NONE}


@record(frozen=True)
class Format:
    """A way to lay out a disk.  `rates` are the data rates at which drives read it."""

    drive: DriveType
    tracks: int
    heads: int
    sectors: int
    rates: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of a disk."""
        return self.tracks * self.heads * self.sectors * SECTOR


def _formats(drive: DriveType, rates: tuple[int, ...], *layouts: tuple[int, int, int]) -> list[Format]:
    return [Format(drive, tracks, heads, sectors, rates) for tracks, heads, sectors in layouts]


FORMATS: Final = (
    *_formats(DriveType.D144, (RATE_500K,), (80, 2, 18), (80, 2, 20), (80, 2, 21), (82, 2, 21), (83, 2, 21)),
    *_formats(DriveType.D144, (RATE_500K,), (80, 2, 22), (80, 2, 23), (80, 2, 24)),
    *_formats(DriveType.D288, (RATE_1M,), (80, 2, 36), (80, 2, 39), (80, 2, 40), (80, 2, 44), (80, 2, 48)),
    *_formats(
        DriveType.D144, (RATE_250K,), (80, 2, 9), (80, 2, 10), (82, 2, 10), (83, 2, 10), (80, 2, 13), (80, 2, 14)
    ),
    *_formats(DriveType.D120, (RATE_500K,), (80, 2, 15)),
    *_formats(DriveType.D120, (RATE_300K, RATE_250K), (40, 2, 9), (40, 1, 9), (40, 2, 8), (40, 1, 8), (41, 2, 10)),
)
"""Known formats; of those of one size, the first is taken."""

_READABLE: Final = {
    DriveType.NONE: (),
    DriveType.D120: (DriveType.D120,),
    DriveType.D144: (DriveType.D144,),
    DriveType.D288: (DriveType.D288, DriveType.D144),
}


def type_of(size: int, fallback: DriveType = DriveType.D288) -> DriveType:
    """Return the drive for a disk of `size` bytes; `fallback` where no format is of that size."""
    return next((item.drive for item in FORMATS if item.size == size), fallback)


def format_of(size: int, drive: DriveType) -> Format:
    """Return how a drive sees a disk of `size` bytes: as its usual one, where no format that it knows has that size."""
    readable = [item for kind in _READABLE[drive] for item in FORMATS if item.drive is kind]
    if not readable:
        return FORMATS[0]
    return next((item for item in readable if item.size == size), readable[0])


class FloppyDriveState(State):
    """Where the heads are, and whether the disk was changed."""

    track: int = integer(0, MAX_TRACK)
    changed: bool = flag(True)


class FloppyDrive:
    """A drive and the disk in it.  `kind` None is taken from the disk, or `fallback` without one."""

    has_tray = False

    def __init__(
        self, backend: BlockBackend, kind: DriveType | None = None, fallback: DriveType = DriveType.D288
    ) -> None:
        self.backend = backend
        self.tray_open = False
        self.medium_locked = False
        self.kind = kind or (type_of(backend.size, fallback) if backend.inserted else fallback)
        self.track = 0
        self.changed = True
        backend.removable = True
        self.format = format_of(backend.size, self.kind)
        backend.attach(self)

    @property
    def loaded(self) -> bool:
        """Whether there is a disk."""
        return self.backend.inserted

    @property
    def write_protected(self) -> bool:
        """The write protect signal; without a disk it is there as well."""
        return self.backend.read_only

    def step(self, tracks: int) -> None:
        """Move the heads by so many tracks; a step with a disk in the drive resets the disk change line."""
        self.track = min(max(self.track + tracks, 0), MAX_TRACK)
        if tracks and self.loaded:
            self.changed = False

    def offset(self, head: int, sector: int) -> int:
        """Return the place in the image of a sector of the track below the heads."""
        layout = self.format
        return ((self.track * layout.heads + head) * layout.sectors + sector - 1) * SECTOR

    # -- the back end's calls ---------------------------------------------------------------------------------------

    def media_changed(self, loaded: bool) -> None:
        """There is another disk, or none."""
        self.changed = True
        self.format = format_of(self.backend.size, self.kind)

    def eject_requested(self, force: bool) -> None:
        """A floppy drive cannot be locked: nobody has to be asked."""

    def resized(self) -> None:
        """The disk has another format."""
        self.format = format_of(self.backend.size, self.kind)

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on."""
        self.backend.drain(cancel=True)
        self.track = 0
        self.changed = True

    def save(self) -> FloppyDriveState:
        """Return the drive's state; the disk is not part of it."""
        return FloppyDriveState(self.track, self.changed)

    def load(self, state: FloppyDriveState) -> None:
        """Take over a checked state."""
        self.backend.drain(cancel=True)
        self.track, self.changed = state.track, state.changed
        self.format = format_of(self.backend.size, self.kind)
