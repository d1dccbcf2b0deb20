"""An ATA disk: what it says of itself, its settings, and the table of its commands.

ATA/ATAPI-6 (T13/1410D), section 8.  How it moves data is in :mod:`pyvm.devices.ide.disk_transfer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from pyvm.devices.ide import constants as c
from pyvm.devices.ide import identify as ident
from pyvm.devices.ide import smart
from pyvm.devices.ide.disk_state import Activity, DiskState
from pyvm.devices.ide.disk_transfer import DiskTransfers
from pyvm.devices.ide.geometry import LIMITS, Geometry, by_size, guess
from pyvm.devices.properties import Properties, Property
from pyvm.records import replace

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_LBA28_LIMIT: Final = 1 << 28

DEFAULT_MODEL: Final = "QEMU HARDDISK"
DEFAULT_VERSION: Final = "2.5+"


class IdeDisk(DiskTransfers):
    """A disk with `backend` behind it.

    `serial` None is the back end's, or else one made of the drive's place.  `geometry` None is guessed.  Sizes are in
    bytes.  Raises ValueError for properties that cannot be, and BlockError where the back end has a device already.
    """

    kind = "disk"
    signature = c.SIGNATURE_DISK
    idle_status = c.READY
    PROPERTIES: ClassVar[Properties] = {
        "drive": Property("drive", None, "Node name or ID of a block device to use as a backend"),
        "unit": Property("uint32", 4294967295, "0: master, 1: slave"),
        "serial": Property("str", None, "serial number, at most 20 characters"),
        "ver": Property("str", None, "firmware version, at most 8 characters"),
        "model": Property("str", None, "model, at most 40 characters"),
        "wwn": Property("uint64", 0, "world wide name; 0: none"),
        "logical_block_size": Property("size", 0, "must be 512; 0: 512"),
        "physical_block_size": Property("size", 0, "A power of two between 512 B and 2 MiB; 0: 512"),
        "discard_granularity": Property("size", 4294967295, "0: no TRIM"),
        "rotation_rate": Property("uint16", 0, "rotations a minute; 1: solid state, 0: not told"),
        "write-cache": Property("OnOffAuto", "auto", "on/off/auto"),
        "cyls": Property("uint32", 0, "cylinders; 0: guessed"),
        "heads": Property("uint32", 0, "heads; 0: guessed"),
        "secs": Property("uint32", 0, "sectors of a track; 0: guessed"),
        "bios-chs-trans": Property("BiosAtaTranslation", "auto", "auto/none/lba/large/rechs"),
        "bootindex": Property("int32", None, "place in the order of boot devices"),
    }

    def __init__(
        self,
        backend: BlockBackend,
        *,
        serial: str | None = None,
        model: str | None = None,
        version: str | None = None,
        wwn: int = 0,
        geometry: Geometry | None = None,
        logical_block_size: int = 0,
        physical_block_size: int = 0,
        rotation_rate: int = 0,
        trim: bool = True,
    ) -> None:
        super().__init__()
        if logical_block_size not in (0, c.SECTOR):
            raise ValueError("logical_block_size must be 512 for IDE")
        physical_block_size = physical_block_size or c.SECTOR
        if physical_block_size & (physical_block_size - 1) or not c.SECTOR <= physical_block_size <= 2 << 20:
            raise ValueError(f"Property .physical_block_size doesn't take value '{physical_block_size}'")
        if backend.read_only:
            raise ValueError("Block node is read-only")
        self.backend = backend
        self.tray_open = False
        self.medium_locked = False
        self.names = ident.Names(
            backend.serial if serial is None else serial, version or DEFAULT_VERSION, model or DEFAULT_MODEL
        )
        self.offers_trim = trim
        self.identity = ident.DiskIdentity(self.names, wwn, physical_block_size, rotation_rate, trim)
        if geometry is not None:
            _check_geometry(geometry)
        self.geometry = geometry or self._guess_geometry()
        self._initial_write_cache = backend.write_cache
        self._set_state(self._power_on_state())
        backend.attach(self)
        backend.io_status_enabled = True

    def _guess_geometry(self) -> Geometry:
        sectors = self.backend.size // c.SECTOR
        try:
            return guess(bytes(self.backend.pread(0, c.SECTOR)), sectors) if sectors else by_size(0)
        except OSError:
            return by_size(sectors)

    def _power_on_state(self) -> DiskState:
        return DiskState(
            heads=self.geometry.heads, sectors=self.geometry.sectors, write_cache=self._initial_write_cache
        )

    # -- the back end's calls ---------------------------------------------------------------------------------------

    def media_changed(self, loaded: bool) -> None:
        """A disk's medium is not changed while the machine runs."""

    def eject_requested(self, force: bool) -> None:
        """A disk has no tray."""

    def resized(self) -> None:
        """The next IDENTIFY DEVICE tells the new size; ATA has no way to announce it."""

    # -- commands without data --------------------------------------------------------------------------------------

    def identify(self) -> None:
        """IDENTIFY DEVICE."""
        native = self.geometry
        tracks = self.total // (self._heads * self._sectors)
        own = (self._heads, self._sectors) == (native.heads, native.sectors)
        current = native if own else Geometry(min(tracks, 0xFFFF), self._heads, self._sectors)
        self._reply(
            ident.disk(
                replace(self.identity, names=self.names),
                self.total,
                native,
                current,
                multiple=self._multiple,
                mode=self._mode,
                cache=self.backend.write_cache,
            )
        )

    def set_multiple(self) -> None:
        """SET MULTIPLE MODE: how many sectors a block of READ and WRITE MULTIPLE has."""
        count = self.registers[c.COUNT]
        if count > c.MAX_MULTIPLE or count & (count - 1):
            self.fail(c.ABRT)
            return
        self._multiple = count
        self.succeed()

    def initialize_parameters(self) -> None:
        """INITIALIZE DEVICE PARAMETERS: the geometry that CHS addresses are counted in."""
        sectors = self.registers[c.COUNT]
        if not sectors:
            self.fail(c.ABRT)
            return
        self._heads = (self.registers[c.DEVICE] & c.DEVICE_HEAD) + 1
        self._sectors = sectors
        self.succeed()

    def read_native_max(self, extended: bool) -> None:
        """READ NATIVE MAX ADDRESS: the last sector."""
        last = max(self.total - 1, 0)
        if not extended and self.registers[c.DEVICE] & c.DEVICE_LBA:
            last = min(last, _LBA28_LIMIT - 1)
        self._show_address(last, extended)
        self.succeed()

    def seek(self) -> None:
        """SEEK: nothing moves, but the address is checked."""
        if 0 <= self._short_address() < self.total:
            self.succeed()
        else:
            self.fail(c.IDNF)

    def set_features(self) -> None:
        """SET FEATURES: write cache, transfer mode, and some that change nothing."""
        feature = self.registers[c.FEATURES]
        if feature == c.FEATURE_WRITE_CACHE_ON:
            self.backend.write_cache = True
            self.succeed()
        elif feature == c.FEATURE_WRITE_CACHE_OFF:
            self.backend.write_cache = False
            self.flush()
        else:
            super().set_features()

    def smart_command(self) -> None:
        """SMART."""
        registers = self.registers
        if registers[c.LBA_MID] != smart.KEY_MID or registers[c.LBA_HIGH] != smart.KEY_HIGH:
            self.fail(c.ABRT)
            return
        answer = self._smart.command(registers[c.FEATURES], registers[c.COUNT], registers[c.LBA_LOW])
        if answer is None:
            self.fail(c.ABRT)
        elif answer:
            self._reply(answer)
        else:
            self.succeed()

    # -- life -------------------------------------------------------------------------------------------------------

    def finish_reset(self) -> None:
        """Show the signature; settings that a software reset does not keep are those of power-on."""
        super().finish_reset()
        self._activity = Activity.NONE
        self._multiple = c.MAX_MULTIPLE

    def reset(self) -> None:
        """Return to the state after power-on."""
        super().reset()
        self._set_state(self._power_on_state())


def _check_geometry(geometry: Geometry) -> None:
    for name, value in (("cyls", geometry.cylinders), ("heads", geometry.heads), ("secs", geometry.sectors)):
        if not 1 <= value <= LIMITS[name]:
            raise ValueError(f"{name} must be between 1 and {LIMITS[name]}")


_Command = Callable[[IdeDisk], None]


def _read(**how: bool) -> _Command:
    return lambda disk: disk.start_pio(Activity.READ, **how)


def _write(**how: bool) -> _Command:
    return lambda disk: disk.start_pio(Activity.WRITE, **how)


def _read_dma(**how: bool) -> _Command:
    return lambda disk: disk.start_dma(Activity.READ_DMA, **how)


def _write_dma(**how: bool) -> _Command:
    return lambda disk: disk.start_dma(Activity.WRITE_DMA, **how)


IdeDisk.commands = {
    c.DATA_SET_MANAGEMENT: IdeDisk.data_set_management,
    **dict.fromkeys(range(c.RECALIBRATE, c.RECALIBRATE + 16), IdeDisk.succeed),
    c.READ_SECTORS: _read(),
    c.READ_SECTORS_NORETRY: _read(),
    c.READ_SECTORS_EXT: _read(extended=True),
    c.READ_MULTIPLE: _read(multiple=True),
    c.READ_MULTIPLE_EXT: _read(multiple=True, extended=True),
    c.WRITE_SECTORS: _write(),
    c.WRITE_SECTORS_NORETRY: _write(),
    c.WRITE_VERIFY: _write(),
    c.WRITE_SECTORS_EXT: _write(extended=True),
    c.WRITE_MULTIPLE: _write(multiple=True),
    c.WRITE_MULTIPLE_EXT: _write(multiple=True, extended=True),
    c.WRITE_MULTIPLE_FUA_EXT: _write(multiple=True, extended=True, durable=True),
    c.READ_DMA: _read_dma(),
    c.READ_DMA_NORETRY: _read_dma(),
    c.READ_DMA_EXT: _read_dma(extended=True),
    c.WRITE_DMA: _write_dma(),
    c.WRITE_DMA_NORETRY: _write_dma(),
    c.WRITE_DMA_EXT: _write_dma(extended=True),
    c.WRITE_DMA_FUA_EXT: _write_dma(extended=True, durable=True),
    c.VERIFY: lambda disk: disk.verify(extended=False),
    c.VERIFY_NORETRY: lambda disk: disk.verify(extended=False),
    c.VERIFY_EXT: lambda disk: disk.verify(extended=True),
    c.READ_NATIVE_MAX: lambda disk: disk.read_native_max(extended=False),
    c.READ_NATIVE_MAX_EXT: lambda disk: disk.read_native_max(extended=True),
    c.SEEK: IdeDisk.seek,
    c.INITIALIZE_PARAMETERS: IdeDisk.initialize_parameters,
    c.SMART: IdeDisk.smart_command,
    c.SET_MULTIPLE: IdeDisk.set_multiple,
    c.SET_FEATURES: IdeDisk.set_features,
    c.IDENTIFY: IdeDisk.identify,
    c.FLUSH: IdeDisk.flush,
    c.FLUSH_EXT: IdeDisk.flush,
    c.SECURITY_FREEZE: IdeDisk.succeed,
    **dict.fromkeys((c.STANDBY, c.STANDBY_IMMEDIATE, c.STANDBY_OLD, c.STANDBY_IMMEDIATE_OLD), IdeDisk.to_standby),
    **dict.fromkeys((c.IDLE, c.IDLE_IMMEDIATE, c.IDLE_OLD, c.IDLE_IMMEDIATE_OLD), IdeDisk.to_idle),
    **dict.fromkeys((c.CHECK_POWER, c.CHECK_POWER_OLD), IdeDisk.check_power),
    **dict.fromkeys((c.SLEEP, c.SLEEP_OLD), IdeDisk.to_sleep),
}
