"""The host's own serial line as a back end: `serial`, formerly `tty`.  Line control by termios(3) and tty_ioctl(4)."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from typing import Any

from pyvm.chardev.base import LineParameters, ModemLines
from pyvm.chardev.file import FdChardev, open_path
from pyvm.chardev.terminal import make_raw
from pyvm.mainloop import MainLoop

_TIOCSBRK = 0x5427  # <asm-generic/ioctls.h>; the termios module has no names for these two
_TIOCCBRK = 0x5428

_DATA_BITS = {5: termios.CS5, 6: termios.CS6, 7: termios.CS7, 8: termios.CS8}
_PARITY = {"N": 0, "E": termios.PARENB, "O": termios.PARENB | termios.PARODD}
_SPEEDS: dict[int, int] = {
    int(name[1:]): getattr(termios, name)
    for name in dir(termios)
    if name[0] == "B" and name[1:].isdigit() and name != "B0"
}


def nearest_speed(baud: int) -> int:
    """Return the termios constant of the standard rate nearest to `baud`: a guest's divisor rounds."""
    return _SPEEDS[min(_SPEEDS, key=lambda rate: abs(rate - baud))]


class SerialChardev(FdChardev):
    """A terminal device; the guest's line settings, break and modem lines go through to it."""

    def __init__(self, label: str, loop: MainLoop, path: str) -> None:
        """Open the device at 115200 baud, 8N1; raises ChardevError."""
        fd = open_path(path, os.O_RDWR | os.O_NONBLOCK)
        super().__init__(label, loop, fd, fd)
        self._fd = fd
        self._saved: list[Any] | None = None
        if os.isatty(fd):
            self._saved = termios.tcgetattr(fd)
            make_raw(fd, signals=False)
            self.set_line_parameters(LineParameters(115200))

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return "serial"

    def set_line_parameters(self, parameters: LineParameters) -> None:
        """Set the line as the guest set its UART, at the nearest rate that the host has."""
        if self._saved is None or parameters.baud <= 0:
            return
        try:
            attributes = termios.tcgetattr(self._fd)
        except termios.error:
            return
        flags = attributes[2] & ~(termios.CSIZE | termios.CSTOPB | termios.PARENB | termios.PARODD)
        flags |= termios.CREAD | termios.CLOCAL | _DATA_BITS.get(parameters.data_bits, termios.CS8)
        flags |= _PARITY.get(parameters.parity, 0)
        flags |= termios.CSTOPB if parameters.stop_bits == 2 else 0
        attributes[2] = flags
        attributes[4] = attributes[5] = nearest_speed(parameters.baud)
        self._set(attributes)

    def set_break(self, on: bool) -> None:
        """Hold the line in the break condition, or let it go."""
        self._control(_TIOCSBRK if on else _TIOCCBRK)

    def modem_lines(self) -> ModemLines | None:
        """Return the modem inputs; None where the device has none."""
        try:
            (bits,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCMGET, struct.pack("i", 0)))
        except OSError:
            return None
        return ModemLines(
            cts=bool(bits & termios.TIOCM_CTS),
            dsr=bool(bits & termios.TIOCM_DSR),
            dcd=bool(bits & termios.TIOCM_CAR),
            ri=bool(bits & termios.TIOCM_RNG),
        )

    def set_modem_control(self, dtr: bool, rts: bool) -> None:
        """Drive the modem outputs."""
        for wanted, bit in ((dtr, termios.TIOCM_DTR), (rts, termios.TIOCM_RTS)):
            request = termios.TIOCMBIS if wanted else termios.TIOCMBIC
            self._control(request, struct.pack("i", bit))

    def _control(self, request: int, argument: bytes | int = 0) -> None:
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError:
            pass  # a pseudo-terminal or a USB adapter without this line: the guest gets what the host has

    def _set(self, attributes: list[Any]) -> None:
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        except termios.error:
            pass  # unplugged, or a rate that the port cannot do

    def close(self) -> None:
        """Restore the line settings and close the device."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            self._set(saved)
        super().close()
