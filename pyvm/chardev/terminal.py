"""Terminal modes that the stdio, pty and serial back ends share.  See termios(3)."""

from __future__ import annotations

import termios

_INPUT_OFF = (
    termios.IGNBRK
    | termios.BRKINT
    | termios.PARMRK
    | termios.ISTRIP
    | termios.INLCR
    | termios.IGNCR
    | termios.ICRNL
    | termios.IXON
)
_LOCAL_OFF = termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN


def make_raw(fd: int, *, signals: bool, output_processing: bool = False) -> None:
    """Let every byte typed come through at once and unechoed.

    `signals` leaves Ctrl-C, Ctrl-Z and the like to the terminal; `output_processing` leaves it to turn a line feed into
    carriage return and line feed.  Raises termios.error.
    """
    attributes = termios.tcgetattr(fd)
    attributes[0] &= ~_INPUT_OFF
    if output_processing:
        attributes[1] |= termios.OPOST
    else:
        attributes[1] &= ~termios.OPOST
    attributes[2] = (attributes[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    attributes[3] &= ~(_LOCAL_OFF if signals else _LOCAL_OFF | termios.ISIG)
    attributes[6][termios.VMIN] = 1
    attributes[6][termios.VTIME] = 0
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
