"""The display adapter on this machine: its legacy ports and memory window, and text memory that needs no calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvm.devices.display import registers as r
from pyvm.devices.display.vga import Vga

if TYPE_CHECKING:
    from pyvm.cpu.vcpu import Overlay
    from pyvm.machine.board import Board

_TEXT_BASE = 0xB8000
_BLANK = b" \x07"


class Display:
    """A VGA and its legacy places on the board; there is room for one.  Raises OverlapError for a second."""

    def __init__(self, board: Board) -> None:
        self.vga = vga = Vga(board.clock, on_window=self._show_text)
        board.device_memory.callback(vga.close)
        self._vcpus = board.vcpus
        self._text: Overlay | None = None
        board.ports.add(r.PORT_BASE, r.PORT_COUNT, vga.port_read, vga.port_write, "vga", max_access=1)
        board.ports.add(
            r.DISPI_INDEX_PORT, r.DISPI_PORT_COUNT, vga.dispi_read, vga.dispi_write, "vga dispi", max_access=2
        )
        board.mmio.add(r.WINDOW_BASE, r.WINDOW_SIZE, vga.window_read, vga.window_write, "vga window")

    def _show_text(self, direct: bool) -> None:
        """Let the CPU write text memory without asking, as long as it is plain memory."""
        if not direct:
            if self._text is not None:
                self._text.hide()
        elif self._text is None:
            self._text = self._vcpus.overlay(_TEXT_BASE, r.TEXT_RAM_SIZE, self.vga.text_ram)
        else:
            self._text.show(_TEXT_BASE)

    def clear_text(self) -> None:
        """Fill text memory with blanks, in grey on black."""
        if self.vga.direct:
            self.vga.text_ram.view[:] = _BLANK * (self.vga.text_ram.size // len(_BLANK))
