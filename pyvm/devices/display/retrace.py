"""Where the beam is: blanking and vertical retrace, from the guest clock and the CRT controller's registers.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem", sections "CRT Controller Registers" and
"Input Status Register 1".
"""

from __future__ import annotations

from typing import Final

from pyvm.clock import NANOSECONDS
from pyvm.devices.display import registers as r
from pyvm.records import record

_CLOCK_25: Final = 25_175_000
_CLOCK_28: Final = 28_322_000
_FASTEST_FRAME: Final = NANOSECONDS // 500  # a shorter frame comes from registers that nobody has programmed


@record(frozen=True)
class Frame:
    """One picture: lengths in ns, and lines counted from the first one shown."""

    line: int
    shown: int
    """How long of each line is shown."""
    lines: int
    shown_lines: int
    retrace_start: int
    retrace_lines: int

    def status(self, now: int) -> int:
        """Return the bits of input status 1 at `now` ns."""
        line, position = divmod(now % (self.line * self.lines), self.line)
        value = 0
        if line >= self.shown_lines or position >= self.shown:
            value = r.STATUS1_NO_DISPLAY
        if self.retrace_start <= line < self.retrace_start + self.retrace_lines:
            value |= r.STATUS1_RETRACE
        return value


DEFAULT_FRAME: Final = Frame(31_778, 25_422, 525, 480, 490, 2)
"""640 x 480 at 60 Hz: what the display interface shows, whatever its size."""


def frame(misc: int, sequencer: bytes | bytearray, crtc: bytes | bytearray) -> Frame:
    """Return the frame that the registers describe."""
    rate = _CLOCK_28 if misc & r.MISC_CLOCK == r.MISC_CLOCK_28 else _CLOCK_25
    clock = sequencer[r.SEQ_CLOCK]
    dots = (8 if clock & r.CLOCK_8_DOT else 9) * (2 if clock & r.CLOCK_HALF else 1)
    overflow = crtc[r.CRTC_OVERFLOW]
    total = crtc[r.CRTC_V_TOTAL] | (overflow & 0x01) << 8 | (overflow & 0x20) << 4
    start = crtc[r.CRTC_V_RETRACE_START] | (overflow & 0x04) << 6 | (overflow & 0x80) << 2
    line = (crtc[r.CRTC_H_TOTAL] + 5) * dots * NANOSECONDS // rate
    lines = total + 2
    if line * lines < _FASTEST_FRAME:
        return DEFAULT_FRAME
    return Frame(
        line=line,
        shown=(crtc[r.CRTC_H_DISPLAY] + 1) * dots * NANOSECONDS // rate,
        lines=lines,
        shown_lines=shown_lines(crtc),
        retrace_start=start,
        retrace_lines=(crtc[r.CRTC_V_RETRACE_END] - start & 0xF) or 16,
    )


def shown_lines(crtc: bytes | bytearray) -> int:
    """Return how many lines the CRT controller shows."""
    overflow = crtc[r.CRTC_OVERFLOW]
    return (crtc[r.CRTC_V_DISPLAY] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
