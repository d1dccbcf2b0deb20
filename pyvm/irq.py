"""Interrupt lines: the wires between a device and whatever listens to it.

A device is handed an :class:`IrqLine` and drives its level; the listener (an interrupt controller input, a PCI INTx
router) is told of changes only.  The level belongs to the device that drives the line: after a load the device sets
it again from its own state, so lines themselves have nothing to save.
"""

from __future__ import annotations

from collections.abc import Callable

LevelSink = Callable[[bool], None]
"""Told the new level of a line each time it changes."""


class IrqLine:
    """One wire with two levels; active is True whatever the electrical polarity."""

    __slots__ = ("_sink", "level")

    def __init__(self, sink: LevelSink) -> None:
        self._sink = sink
        self.level = False

    def set(self, level: bool) -> None:
        """Drive the line to `level`; the listener hears of it if that is a change."""
        if level != self.level:
            self.level = level
            self._sink(level)

    def pulse(self) -> None:
        """Make one rising edge and return to inactive."""
        self.set(True)
        self.set(False)


def unconnected() -> IrqLine:
    """Return a line that nobody listens to."""
    return IrqLine(lambda level: None)


class SharedIrq:
    """A wired-OR input: any number of drivers, active while at least one of them is."""

    def __init__(self, sink: LevelSink) -> None:
        self._output = IrqLine(sink)
        self._active = 0

    def driver(self) -> IrqLine:
        """Return a new line into this input."""
        return IrqLine(self._driven)

    def _driven(self, level: bool) -> None:
        self._active += 1 if level else -1
        self._output.set(self._active > 0)
