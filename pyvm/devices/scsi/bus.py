"""A SCSI bus: which logical units are where, and what answers for those that are not there (SAM-5, SPC-4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvm.devices.scsi import constants as c
from pyvm.devices.scsi import inquiry
from pyvm.devices.scsi import sense as s
from pyvm.devices.scsi.sense import Sense
from pyvm.devices.scsi.target import Direction, ScsiCommand, ScsiResult, ScsiTarget, lun_list

AUTOMATIC = 0xFFFFFFFF
"""In place of a number: the next free one."""
_REPORT_LUNS_MINIMUM = 16


@dataclass(frozen=True, order=True)
class Address:
    """Where a unit is."""

    channel: int
    target: int
    lun: int


class ScsiBus:
    """The units of one host bus adapter; `name` is the bus's own, as in ``scsi0.0``."""

    def __init__(self, name: str = "", *, max_channel: int = 0, max_target: int = 255, max_lun: int = 16383) -> None:
        self.name = name
        self.max_channel = max_channel
        self.max_target = max_target
        self.max_lun = max_lun
        self.units: dict[Address, ScsiTarget] = {}
        self.on_plugged: Callable[[Address], None] = lambda address: None
        self.on_unplugged: Callable[[Address], None] = lambda address: None
        self.on_change: Callable[[Address, Sense], None] = lambda address, sense: None
        """Told of changed parameters of a unit."""

    def plug(self, unit: ScsiTarget, channel: int = 0, target: int = AUTOMATIC, lun: int = AUTOMATIC) -> Address:
        """Give a unit its place; return it.  Raises ValueError where it is taken or cannot be."""
        address = self._place(channel, target, lun)
        self.units[address] = unit
        unit.luns = lambda: self.luns(address.channel, address.target)
        unit.on_change = lambda sense: self.on_change(address, sense)
        self.on_plugged(address)
        return address

    def _place(self, channel: int, target: int, lun: int) -> Address:
        if channel > self.max_channel:
            raise ValueError(f"bad scsi channel id: {channel}")
        if target not in (AUTOMATIC, *range(self.max_target + 1)):
            raise ValueError(f"bad scsi device id: {target}")
        if lun != AUTOMATIC and lun > self.max_lun:
            raise ValueError(f"bad scsi device lun: {lun}")
        if target == AUTOMATIC:
            lun = 0 if lun == AUTOMATIC else lun
            for number in range(self.max_target + 1):
                if Address(channel, number, lun) not in self.units:
                    return Address(channel, number, lun)
            raise ValueError("no free target")
        if lun == AUTOMATIC:
            taken = set(self.luns(channel, target))
            for number in range(self.max_lun + 1):
                if number not in taken:
                    return Address(channel, target, number)
            raise ValueError("no free lun")
        address = Address(channel, target, lun)
        if address in self.units:
            raise ValueError(f"lun already used by '{self.units[address].backend.device_id}'")
        return address

    def unplug(self, unit: ScsiTarget) -> None:
        """Take a unit away; its back end is free then."""
        address = next(place for place, other in self.units.items() if other is unit)
        del self.units[address]
        self.on_unplugged(address)
        unit.backend.detach()

    def luns(self, channel: int, target: int) -> list[int]:
        """Return the numbers of the units of one target."""
        return sorted(place.lun for place in self.units if (place.channel, place.target) == (channel, target))

    def find(self, channel: int, target: int, lun: int) -> ScsiTarget | AbsentUnit | None:
        """Return who answers for a unit; None where there is not even the target."""
        unit = self.units.get(Address(channel, target, lun))
        if unit is not None:
            return unit
        luns = self.luns(channel, target)
        return AbsentUnit(lun, luns) if luns else None

    def of_target(self, channel: int, target: int) -> list[ScsiTarget]:
        """Return the units of one target."""
        return [unit for place, unit in self.units.items() if (place.channel, place.target) == (channel, target)]

    def unit_attention(self, sense: Sense) -> None:
        """Let all units report `sense`."""
        for unit in self.units.values():
            unit.unit_attention(sense)

    def reset(self) -> None:
        """Reset all units."""
        for unit in list(self.units.values()):
            unit.reset()


class AbsentUnit:
    """Answers for a logical unit that is not there, of a target that is (SPC-4, 6.6.2, 4.5; SAM-5, 4.7.4)."""

    def __init__(self, lun: int, luns: list[int]) -> None:
        self._lun = lun
        self._luns = luns

    def demand(self, cdb: bytes) -> tuple[Direction, int]:
        """Return which way data goes in the command `cdb`, and the most bytes that it may ask for."""
        length = self._length(cdb)
        return Direction.IN if length else Direction.NONE, length

    @staticmethod
    def _length(cdb: bytes) -> int:
        if not cdb or len(cdb) < c.cdb_length(cdb[0]):
            return 0
        if cdb[0] == c.INQUIRY:
            return cdb[3] << 8 | cdb[4]
        if cdb[0] == c.REPORT_LUNS:
            return int.from_bytes(cdb[6:10], "big")
        return cdb[4] if cdb[0] == c.REQUEST_SENSE else 0

    def execute(self, command: ScsiCommand) -> None:
        """Carry out `command`."""
        cdb = command.cdb
        opcode = cdb[0] if cdb and len(cdb) >= c.cdb_length(cdb[0]) else None
        if opcode == c.INQUIRY and not cdb[1] & 1 and not cdb[2]:
            self._reply(command, inquiry.no_unit(first=self._lun == 0))
        elif opcode == c.INQUIRY:
            self._refuse(command, s.INVALID_FIELD)
        elif opcode == c.REPORT_LUNS and self._length(cdb) >= _REPORT_LUNS_MINIMUM and cdb[2] in (0, 2):
            self._reply(command, lun_list(self._luns))
        elif opcode == c.REPORT_LUNS:
            self._refuse(command, s.INVALID_FIELD)
        elif opcode == c.REQUEST_SENSE:
            sense = s.LUN_NOT_SUPPORTED
            self._reply(command, sense.descriptor() if cdb[1] & 1 else sense.fixed())
        else:
            self._refuse(command, s.LUN_NOT_SUPPORTED)

    @staticmethod
    def _refuse(command: ScsiCommand, sense: Sense) -> None:
        command.done(ScsiResult(c.STATUS_CHECK_CONDITION, sense.fixed()))

    def _reply(self, command: ScsiCommand, data: bytes) -> None:
        rest = data[: self._length(command.cdb)]
        moved = 0
        for buffer in command.data_in:
            part = rest[: len(buffer)]
            buffer[: len(part)] = part
            rest = rest[len(part) :]
            moved += len(part)
        command.done(ScsiResult(c.STATUS_GOOD, b"", moved))
