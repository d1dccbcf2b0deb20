"""What disks and CD drives have in common: identity, power management and transfer mode.

ATA/ATAPI-6 (T13 1410D), sections 6.13 (power management) and 8.46 (SET FEATURES).  An empty place on a channel is a
:class:`pyvm.devices.ide.drive.Drive` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from pyvm.devices.ide import constants as c
from pyvm.devices.ide import identify as ident
from pyvm.devices.ide.drive import Drive, Host
from pyvm.records import replace

if TYPE_CHECKING:
    from pyvm.block.backend import BlockBackend

_POWER_ACTIVE: Final = 0xFF
_POWER_STANDBY: Final = 0x00


class RealDrive(Drive):
    """A drive with `backend` as what it reads and writes; its own state record has the mode and the power state."""

    present: ClassVar[bool] = True
    backend: BlockBackend
    names: ident.Names
    _mode: int
    _standby: bool
    _asleep: bool

    def attached(self, host: Host, number: int) -> None:
        """The drive is on a channel: its place gives it a serial number where it has none."""
        super().attached(host, number)
        if not self.names.serial:
            self.names = replace(self.names, serial=f"QM{number:05d}")

    def drain(self) -> None:
        """Return when the back end works on nothing any more."""
        if self.backend.in_flight or self.backend.held:
            self.backend.drain(cancel=True)

    def write_command(self, value: int) -> None:
        """Carry out command `value`; a drive that sleeps hears resets only."""
        if not self._asleep:
            super().write_command(value)

    def check_power(self) -> None:
        """CHECK POWER MODE."""
        self.registers[c.COUNT] = _POWER_STANDBY if self._standby else _POWER_ACTIVE
        self.succeed()

    def to_standby(self) -> None:
        """STANDBY and STANDBY IMMEDIATE: any access to the medium ends it."""
        self._standby = True
        self.succeed()

    def to_idle(self) -> None:
        """IDLE and IDLE IMMEDIATE."""
        self._standby = False
        self.succeed()

    def to_sleep(self) -> None:
        """SLEEP: only a reset wakes the drive."""
        self._standby = self._asleep = True
        self.succeed()

    def set_features(self) -> None:
        """SET FEATURES: transfer mode, and some that change nothing."""
        feature, count = self.registers[c.FEATURES], self.registers[c.COUNT]
        if feature == c.FEATURE_TRANSFER_MODE and ident.valid_mode(count):
            self._mode = count
            self.succeed()
        elif feature in c.FEATURES_WITHOUT_EFFECT:
            self.succeed()
        else:
            self.fail(c.ABRT)

    def finish_reset(self) -> None:
        """Show the signature, awake."""
        super().finish_reset()
        self._asleep = self._standby = False
