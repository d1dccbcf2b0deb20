"""The display adapter: a VGA with the Bochs display interface, as a PCI function.

IBM Personal System/2 Hardware Interface Technical Reference, "Video Subsystem"; the Bochs VBE display API.  BAR 0 is
the linear frame buffer, which is all display memory; BAR 2 shows the registers in memory: EDID, VGA ports, DISPI
registers and the byte order of the frame buffer.  The board also maps the legacy ports and the window 0xa0000-0xbffff.

The adapter raises no interrupt.  What it shows is drawn by :mod:`pyvm.devices.display.render` from the saved state,
when somebody wants to look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvm.clock import Clock
from pyvm.devices.display import registers as r
from pyvm.devices.display.dac import Dac, DacState
from pyvm.devices.display.dispi import Dispi, DispiState
from pyvm.devices.display.edid import edid
from pyvm.devices.display.planes import PlaneWindow
from pyvm.devices.display.retrace import DEFAULT_FRAME, Frame, frame
from pyvm.devices.pci.function import BarKind, PciFunction, PciFunctionState
from pyvm.memory import DeviceRam
from pyvm.state import StateError, array, flag, record, uint

VENDOR: Final = 0x1234
DEVICE: Final = 0x1111
REVISION: Final = 0x02
CLASS: Final = 0x030000
FRAME_BUFFER_BAR: Final = 0
MMIO_BAR: Final = 2
VRAM_SIZE: Final = 16 << 20

_MONO_PORTS: Final = {
    r.CRTC_INDEX_MONO: r.CRTC_INDEX_COLOUR,
    r.CRTC_DATA_MONO: r.CRTC_DATA_COLOUR,
    r.STATUS1_MONO: r.STATUS1_COLOUR,
}
_COLOUR_PORTS: Final = frozenset(_MONO_PORTS.values())
_DAC_PORTS: Final = frozenset({r.PEL_MASK, r.PEL_READ_INDEX, r.PEL_WRITE_INDEX, r.PEL_DATA})
_DISPI_CRTC_OVERFLOW: Final = 0x42  # the bits of the height in the overflow register


class VgaState(PciFunctionState):
    """All registers.  Display memory is not among them: it is saved as memory, `vga.vram`."""

    sequencer_index: int = uint(3)
    sequencer: list[int] = array(uint(8), r.SEQ_COUNT)
    graphics_index: int = uint(4)
    graphics: list[int] = array(uint(8), r.GC_COUNT)
    attribute_index: int = uint(6)
    attribute_data_next: bool = flag()
    attribute: list[int] = array(uint(8), r.ATC_COUNT)
    crtc_index: int = uint(8)
    crtc: list[int] = array(uint(8), r.CRTC_COUNT)
    misc: int = uint(8)
    feature: int = uint(8)
    video_enable: bool = flag(True)
    latch: int = uint(32)
    big_endian: bool = flag()
    dac: DacState = record(DacState)
    dispi: DispiState = record(DispiState)


class Vga(PciFunction):
    """The adapter.

    `on_window(direct)` hears when the legacy text buffer 0xb8000-0xbffff becomes plain memory, `text_ram`, that the CPU
    may use without asking, and when it ceases to be; it may be set later, before the first register is written.
    """

    def __init__(self, clock: Clock, *, on_window: Callable[[bool], None] = lambda direct: None) -> None:
        super().__init__("VGA", vendor=VENDOR, device=DEVICE, class_code=CLASS, revision=REVISION)
        self._clock = clock
        self.on_window = on_window
        self.vram = DeviceRam(VRAM_SIZE)
        self.text_ram = DeviceRam(r.TEXT_RAM_SIZE)
        self.direct = False
        """Whether characters and attributes are in `text_ram` at present, not in `vram`."""
        self._sequencer = bytearray(r.SEQ_COUNT)
        self._graphics = bytearray(r.GC_COUNT)
        self._window = PlaneWindow(self.vram.view, self._sequencer, self._graphics)
        self._dac = Dac()
        self._dispi = Dispi(VRAM_SIZE, self._dispi_changed)
        self._edid = edid()
        self._frame: Frame | None = None
        self._set_registers(VgaState())
        self.add_bar(
            FRAME_BUFFER_BAR, VRAM_SIZE, BarKind.MEMORY, name="vga frame buffer", ram=self.vram, prefetchable=True
        )
        self.add_bar(
            MMIO_BAR,
            r.MMIO_SIZE,
            BarKind.MEMORY,
            name="vga registers",
            read=self.mmio_read,
            write=self.mmio_write,
            max_access=4,
        )

    def _set_registers(self, state: VgaState) -> None:
        """Take over registers but for those that have owners of their own."""
        self._sequencer_index = state.sequencer_index
        self._sequencer[:] = bytes(state.sequencer)
        self._graphics_index = state.graphics_index
        self._graphics[:] = bytes(state.graphics)
        self._attribute_index = state.attribute_index
        self._attribute_data_next = state.attribute_data_next
        self._attribute = bytearray(state.attribute)
        self._crtc_index = state.crtc_index
        self._crtc = bytearray(state.crtc)
        self._misc = state.misc
        self._feature = state.feature
        self._video_enable = state.video_enable
        self._window.latch = state.latch
        self._big_endian = state.big_endian
        self._frame = None

    # -- VGA ports --------------------------------------------------------------------------------------------------

    def port_read(self, offset: int, size: int) -> int:
        """Read one of the 48 ports from 0x3b0 on; accesses of one byte."""
        port = self._decode(r.PORT_BASE + offset)
        if port is None:
            return 0xFF
        if port in _DAC_PORTS:
            return self._dac.read(port)
        if port == r.STATUS1_COLOUR:
            return self._read_status1()
        if port == r.SEQ_DATA:
            return self._sequencer[self._sequencer_index]
        if port == r.GC_DATA:
            return self._graphics[self._graphics_index]
        if port == r.CRTC_DATA_COLOUR:
            return self._crtc[self._crtc_index] if self._crtc_index < r.CRTC_COUNT else 0
        if port == r.ATC_DATA:
            index = self._attribute_index & 0x1F
            return self._attribute[index] if index < r.ATC_COUNT else 0
        return self._read_plain(port)

    def _read_plain(self, port: int) -> int:
        """Read an index, or a register that stands alone; input status 0 has nothing to say."""
        values = {
            r.ATC_INDEX: 0 if self._attribute_data_next else self._attribute_index,
            r.VIDEO_ENABLE: int(self._video_enable),
            r.SEQ_INDEX: self._sequencer_index,
            r.GC_INDEX: self._graphics_index,
            r.CRTC_INDEX_COLOUR: self._crtc_index,
            r.FEATURE_READ: self._feature,
            r.MISC_READ: self._misc,
        }
        return values.get(port, 0)

    def _decode(self, port: int) -> int | None:
        """Return the port that stands for `port` in the colour set; None where the adapter does not answer."""
        if not self._video_enable and port != r.VIDEO_ENABLE:
            return None
        if port in _COLOUR_PORTS:
            return port if self._misc & r.MISC_COLOUR else None
        if port < r.ATC_INDEX:
            return None if self._misc & r.MISC_COLOUR else _MONO_PORTS.get(port)
        return port if port < r.ATC_INDEX + r.COMMON_PORT_COUNT else None

    def _read_status1(self) -> int:
        self._attribute_data_next = False
        if self._frame is None:
            self._frame = DEFAULT_FRAME if self._dispi.enabled else frame(self._misc, self._sequencer, self._crtc)
        return self._frame.status(self._clock.now())

    def port_write(self, offset: int, size: int, value: int) -> None:
        """Write one of the 48 ports from 0x3b0 on; accesses of one byte."""
        port = self._decode(r.PORT_BASE + offset)
        value &= 0xFF
        if port is None:
            return
        if port in _DAC_PORTS:
            self._dac.write(port, value)
        elif port == r.SEQ_INDEX:
            self._sequencer_index = value % r.SEQ_COUNT
        elif port == r.SEQ_DATA:
            self._write_sequencer(value)
        elif port == r.GC_INDEX:
            self._graphics_index = value % r.GC_COUNT
        elif port == r.GC_DATA:
            self._write_graphics(value)
        elif port == r.CRTC_INDEX_COLOUR:
            self._crtc_index = value
        elif port == r.CRTC_DATA_COLOUR:
            self._write_crtc(value)
        elif port == r.ATC_INDEX:
            self._write_attribute(value)
        else:
            self._write_plain(port, value)

    def _write_plain(self, port: int, value: int) -> None:
        if port == r.MISC_WRITE:
            self._misc = value
        elif port == r.STATUS1_COLOUR:
            self._feature = value & r.FEATURE_MASK
            return
        elif port == r.VIDEO_ENABLE:
            self._video_enable = bool(value & 1)
        else:
            return
        self._frame = None
        self._update_window()

    def _write_sequencer(self, value: int) -> None:
        index = self._sequencer_index
        value &= r.SEQ_MASKS[index]
        if self._sequencer[index] != value:
            self._sequencer[index] = value
            self._frame = None
            self._update_window()

    def _write_graphics(self, value: int) -> None:
        index = self._graphics_index
        value &= r.GC_MASKS[index]
        if self._graphics[index] != value:
            self._graphics[index] = value
            self._update_window()

    def _write_crtc(self, value: int) -> None:
        index = self._crtc_index
        if index >= r.CRTC_COUNT:
            return
        if index < r.CRTC_PROTECTED and self._crtc[r.CRTC_V_RETRACE_END] & r.V_RETRACE_END_PROTECT:
            if index != r.CRTC_OVERFLOW:
                return
            kept = self._crtc[index] & ~r.OVERFLOW_LINE_COMPARE
            value = kept | value & r.OVERFLOW_LINE_COMPARE
        self._crtc[index] = value
        self._frame = None

    def _write_attribute(self, value: int) -> None:
        """Take an index or data, in turns."""
        if not self._attribute_data_next:
            self._attribute_index = value & r.ATC_INDEX_MASK
        else:
            index = self._attribute_index & 0x1F
            if index < r.ATC_COUNT:
                self._attribute[index] = value & r.ATC_MASKS[index]
        self._attribute_data_next = not self._attribute_data_next

    # -- Bochs display interface ------------------------------------------------------------------------------------

    def dispi_read(self, offset: int, size: int) -> int:
        """Read one of the ports from 0x1ce on: the index, or data at 0x1cf and 0x1d0; accesses of two bytes."""
        if size != 2:
            return (1 << 8 * size) - 1
        return self._dispi.read_data() if offset else self._dispi.read_index()

    def dispi_write(self, offset: int, size: int, value: int) -> None:
        """Write one of the ports from 0x1ce on; accesses of two bytes."""
        if size == 2:
            (self._dispi.write_data if offset else self._dispi.write_index)(value)

    def _dispi_changed(self, clear: bool) -> None:
        """Show the mode of the display interface in the VGA's registers, where software may look."""
        dispi = self._dispi
        self._dac.wide = dispi.wide_dac
        self._frame = None
        if dispi.enabled:
            last = dispi.height - 1
            crtc, graphics = self._crtc, self._graphics
            graphics[r.GC_MISC] = graphics[r.GC_MISC] & ~r.MISC_MAP | r.MAP_BANKED << 2 | r.MISC_GRAPHICS
            crtc[r.CRTC_MODE] |= r.CRTC_MODE_A13 | r.CRTC_MODE_A14
            crtc[r.CRTC_OFFSET] = dispi.pitch >> 3 & 0xFF
            crtc[r.CRTC_H_DISPLAY] = (dispi.width >> 3) - 1 & 0xFF
            crtc[r.CRTC_V_DISPLAY] = last & 0xFF
            high = (last >> 7 & 0x02) | (last >> 3 & 0x40) | r.OVERFLOW_LINE_COMPARE
            crtc[r.CRTC_OVERFLOW] = crtc[r.CRTC_OVERFLOW] & ~_DISPI_CRTC_OVERFLOW | high
            crtc[r.CRTC_LINE_COMPARE] = 0xFF
            kept = ~(r.MAX_SCAN_DOUBLE | r.MAX_SCAN_ROWS) & 0xFF
            crtc[r.CRTC_MAX_SCAN] = (crtc[r.CRTC_MAX_SCAN] | r.MAX_SCAN_LINE_COMPARE) & kept
            shift = r.SHIFT_PLANAR if dispi.depth == 4 else r.SHIFT_256
            graphics[r.GC_MODE] = graphics[r.GC_MODE] & ~r.MODE_SHIFT | shift << 5
        self._update_window()
        if clear:
            length = dispi.height * dispi.pitch
            self.vram.view[:length] = bytes(length)

    # -- BAR 2 ------------------------------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        """Read BAR 2, `size` up to 4; what holds no register reads 0."""
        if offset < r.MMIO_EDID_SIZE:
            return int.from_bytes(self._edid[offset : offset + size], "little")
        return sum(self._mmio_byte(offset + index) << 8 * index for index in range(size))

    def _mmio_byte(self, offset: int) -> int:
        if 0 <= (place := offset - r.MMIO_VGA) < r.MMIO_VGA_SIZE:
            return self.port_read(place + r.ATC_INDEX - r.PORT_BASE, 1)
        if 0 <= (place := offset - r.MMIO_DISPI) < r.MMIO_DISPI_SIZE:
            return self._dispi.read(place // 2) >> 8 * (place & 1) & 0xFF
        if 0 <= (place := offset - r.MMIO_QEXT) < r.MMIO_QEXT_SIZE:
            endian = r.ENDIAN_BIG if self._big_endian else r.ENDIAN_LITTLE
            return (endian << 32 | r.MMIO_QEXT_SIZE) >> 8 * place & 0xFF
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write BAR 2, `size` up to 4; DISPI registers are written whole."""
        if r.MMIO_VGA <= offset < r.MMIO_VGA + r.MMIO_VGA_SIZE:
            for index in range(min(size, r.MMIO_VGA + r.MMIO_VGA_SIZE - offset)):
                self.port_write(offset - r.MMIO_VGA + r.ATC_INDEX - r.PORT_BASE + index, 1, value >> 8 * index)
        elif r.MMIO_DISPI <= offset < r.MMIO_DISPI + r.MMIO_DISPI_SIZE:
            for index in range((size + 1) // 2):
                self._dispi.write((offset - r.MMIO_DISPI) // 2 + index, value >> 16 * index)
        elif offset == r.MMIO_QEXT_ENDIAN and size == 4 and value in (r.ENDIAN_LITTLE, r.ENDIAN_BIG):
            self._big_endian = value == r.ENDIAN_BIG

    # -- the legacy window ------------------------------------------------------------------------------------------

    def window_read(self, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `offset` from 0xa0000."""
        if self.direct:
            place = offset - r.WINDOW_MAPS[r.MAP_COLOUR_TEXT][0]
            if place >= 0:
                return self.text_ram.read(place, size)
        return self._window.read(offset, size)

    def window_write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4 or 8) at `offset` from 0xa0000."""
        if self.direct:
            place = offset - r.WINDOW_MAPS[r.MAP_COLOUR_TEXT][0]
            if place >= 0:
                self.text_ram.write(place, size, value)
                return
        self._window.write(offset, size, value)

    def _update_window(self) -> None:
        dispi = self._dispi
        self._window.configure(
            answers=(bool(self._misc & r.MISC_RAM) and self._video_enable) or dispi.enabled,
            packed=dispi.enabled and dispi.depth != 4,
            display_interface=dispi.enabled,
            bank=dispi.bank_offset,
        )
        if self._window.text != self.direct:
            self._set_direct(self._window.text)

    def _set_direct(self, direct: bool) -> None:
        if direct:
            self._load_text()
            self.direct = True
            self.on_window(True)
        else:
            self.on_window(False)
            self.sync_text()
            self.direct = False

    def _load_text(self) -> None:
        """Bring characters and attributes from their planes to `text_ram`."""
        for plane in range(2):
            self.text_ram.view[plane::2] = self.vram.view[plane : 2 * r.TEXT_RAM_SIZE : 4]

    def sync_text(self) -> None:
        """Bring `vram` up to date where characters and attributes are in `text_ram`."""
        if self.direct:
            for plane in range(2):
                self.vram.view[plane : 2 * r.TEXT_RAM_SIZE : 4] = self.text_ram.view[plane::2]

    # -- life -------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the state after power-on: a blank screen.  Display memory keeps what it holds."""
        super().reset()
        self._set_registers(VgaState())
        self._dac.reset()
        self._dispi.reset()
        self._update_window()

    def save(self) -> VgaState:
        """Return all registers, and bring `vram` up to date."""
        self.sync_text()
        function = super().save()
        return VgaState(
            config=function.config,
            intx=function.intx,
            msix=function.msix,
            sequencer_index=self._sequencer_index,
            sequencer=list(self._sequencer),
            graphics_index=self._graphics_index,
            graphics=list(self._graphics),
            attribute_index=self._attribute_index,
            attribute_data_next=self._attribute_data_next,
            attribute=list(self._attribute),
            crtc_index=self._crtc_index,
            crtc=list(self._crtc),
            misc=self._misc,
            feature=self._feature,
            video_enable=self._video_enable,
            latch=self._window.latch,
            big_endian=self._big_endian,
            dac=self._dac.save(),
            dispi=self._dispi.save(),
        )

    def load(self, state: PciFunctionState) -> None:
        """Take over saved registers; `vram` must have been filled before.

        Raises StateError where the state is none of a VGA.
        """
        state.check()
        if not isinstance(state, VgaState):
            raise StateError(f"{self.name}: the state is not that of a VGA")
        for name, values, masks in (
            ("sequencer", state.sequencer, r.SEQ_MASKS),
            ("graphics", state.graphics, r.GC_MASKS),
            ("attribute", state.attribute, r.ATC_MASKS),
        ):
            if any(value & ~mask for value, mask in zip(values, masks, strict=True)):
                raise StateError(f"VgaState.{name}: bits that are never set")
        if state.feature & ~r.FEATURE_MASK:
            raise StateError("VgaState.feature: bits that are never set")
        self._dispi.check(state.dispi)
        if state.dac.wide != bool(state.dispi.registers[r.DISPI_ENABLE] & r.DISPI_8BIT_DAC):
            raise StateError("VgaState.dac: its width is not what the display interface says")
        super().load(state)
        if self.direct:
            self.on_window(False)
            self.direct = False  # what text_ram holds is of the state that ends
        self._set_registers(state)
        self._dac.load(state.dac)
        self._dispi.load(state.dispi)
        self._update_window()

    def close(self) -> None:
        """Give the memory back; nothing may use the adapter any more."""
        self._window.close()
        self.vram.close()
        self.text_ram.close()
