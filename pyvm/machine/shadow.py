"""What the CPU sees from 0xc0000 to 0xfffff: RAM or ROM, as the host bridge's PAM registers say.

Intel 82441FX, section 3.2.18.  RAM lies below; ROM, write-protected RAM and the mixture of both are laid over it.  A
firmware file is also seen, whole, below 4 GiB, where the processor starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyvm.errors import ConfigError
from pyvm.memory import FOUR_GIB, DeviceRam, IoRegion

if TYPE_CHECKING:
    from pyvm.cpu.vcpu import Overlay, VcpuSet
    from pyvm.devices.pci.i440fx import I440fx, PamSegment
    from pyvm.memory import GuestMemory, IoSpace

_START, _END = 0xC0000, 0x100000
_ROM_WINDOW = 0x20000
"""How much of a firmware file, at its end, shows below 1 MiB."""
_ROM_UNIT = 0x10000
_ROM_LIMIT = 16 << 20

_Mode = tuple[bool, bool]
_RAM: _Mode = (True, True)


def read_firmware(path: str) -> bytes:
    """Return the contents of a firmware file; raises ConfigError where it cannot be one."""
    try:
        with open(path, "rb") as file:
            image = file.read(_ROM_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"-bios {path}: {error.strerror}") from None
    if not image or len(image) % _ROM_UNIT or len(image) > _ROM_LIMIT:
        raise ConfigError(f"-bios {path}: firmware is 64 KiB or a multiple of that, up to 16 MiB")
    return image


class Shadow:
    """The segments between 0xc0000 and 1 MiB; `firmware` is the ROM's contents, where there is a ROM."""

    def __init__(
        self, vcpus: VcpuSet, memory: GuestMemory, mmio: IoSpace, bridge: I440fx, firmware: bytes | None
    ) -> None:
        self._vcpus = vcpus
        self._memory = memory
        self._mmio = mmio
        self._bridge = bridge
        self._deferred = False
        self._modes: dict[int, _Mode] = {}
        self._overlays: dict[tuple[int, _Mode], Overlay] = {}
        self._mixed: dict[int, IoRegion] = {}
        self._file: DeviceRam | None = None
        self._rom = DeviceRam(_END - _START)
        self._rom.view[:] = b"\xff" * self._rom.size
        if firmware is not None:
            window = firmware[-_ROM_WINDOW:]
            self._rom.view[self._rom.size - len(window) :] = window
            self._file = DeviceRam(len(firmware))
            self._file.view[:] = firmware
            vcpus.overlay(FOUR_GIB - self._file.size, self._file.size, self._file, writable=False)
        bridge.on_pam_change = self.update

    def close(self) -> None:
        """Give the ROM's memory back; the processors are gone."""
        self._rom.close()
        if self._file is not None:
            self._file.close()

    def rom_at(self, address: int) -> tuple[DeviceRam, int] | None:
        """Return the ROM that the guest reads at an address, and the offset in it; None where that is none."""
        if self._file is not None and 0 <= address - (FOUR_GIB - self._file.size) < self._file.size:
            return self._file, address - (FOUR_GIB - self._file.size)
        for segment in self._bridge.pam_segments():
            if segment.base <= address < segment.base + segment.size and not segment.readable:
                return self._rom, address - _START
        return None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Take up changes at the end only: while the machine is reset they come in great number."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self.update()

    def update(self) -> None:
        """Show what the registers say now; on the vCPU thread or while the machine is stopped."""
        if self._deferred:
            return
        for segment in self._bridge.pam_segments():
            mode = (segment.readable, segment.writable)
            before = self._modes.get(segment.base, _RAM)
            if mode == before:
                continue
            self._modes[segment.base] = mode
            if before != _RAM:
                self._overlays[segment.base, before].hide()
            if segment.base in self._mixed:
                self._mmio.remove(self._mixed.pop(segment.base))
            if mode != _RAM:
                self._lay_over(segment, mode)

    def _lay_over(self, segment: PamSegment, mode: _Mode) -> None:
        base, size = segment.base, segment.size
        if mode == (False, True):
            self._mixed[base] = self._mmio.add(
                base,
                size,
                lambda offset, width: self._rom.read(base - _START + offset, width),
                lambda offset, width, value: self._memory.write(base + offset, value.to_bytes(width, "little")),
                "shadow",
            )
        overlay = self._overlays.get((base, mode))
        if overlay is not None:
            overlay.show(base)
        elif mode == (False, True):
            self._overlays[base, mode] = self._vcpus.overlay(base, size, None)
        elif mode == (True, False):
            self._overlays[base, mode] = self._vcpus.overlay(base, size, self._memory, writable=False)
        else:
            rom = self._vcpus.overlay(base, size, self._rom, offset=base - _START, writable=False)
            self._overlays[base, mode] = rom
