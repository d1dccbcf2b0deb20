"""An initiator for tests of SCSI units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyvm.block.backend import BackendEvents, BlockBackend
from pyvm.devices.scsi.target import ScsiCommand, ScsiResult, ScsiTarget
from tests.unit.disk_support import Disk, LateContext

NOT_READY, ILLEGAL, ATTENTION, PROTECT, ABORTED = 2, 5, 6, 7, 11


@dataclass
class Answer:
    """How a command ended, and the data it brought."""

    result: ScsiResult
    data: bytes

    @property
    def sense(self) -> tuple[int, int, int]:
        """Return key, ASC and ASCQ."""
        sense = self.result.sense
        assert self.result.status == 2
        assert len(sense) == 18
        assert sense[0] == 0x70
        return sense[2], sense[12], sense[13]


@dataclass
class Initiator:
    """Sends commands to one unit."""

    unit: ScsiTarget
    disk: Disk | None
    backend: BlockBackend
    context: LateContext | None = None
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def start(self, cdb: bytes, room: int = 0, data: bytes = b"") -> tuple[bytearray, list[ScsiResult]]:
        """Send a command; return where its data goes, and the list in which its result will be."""
        buffer = bytearray(room)
        results: list[ScsiResult] = []
        half = room // 2
        view, out = memoryview(buffer), memoryview(data)
        data_in = (view[:half], view[half:]) if room > 1 else (view,) if room else ()
        data_out = (out[: len(data) // 3], out[len(data) // 3 :]) if data else ()
        self.unit.execute(ScsiCommand(cdb, data_in, data_out, results.append))
        return buffer, results

    def send(self, cdb: bytes, room: int = 4096, data: bytes = b"") -> Answer:
        """Carry a command out."""
        buffer, results = self.start(cdb, room, data)
        if self.context is not None:
            self.context.settle(lambda: bool(results))
        (result,) = results
        if data:
            assert result.transferred <= max(len(data), room)
            return Answer(result, b"")
        return Answer(result, bytes(buffer[: result.transferred]))

    def good(self, cdb: bytes, room: int = 4096, data: bytes = b"") -> bytes:
        """Carry a command out that succeeds; return its data."""
        answer = self.send(cdb, room, data)
        assert answer.result.status == 0, answer.sense
        assert answer.result.sense == b""
        return answer.data


def make_backend(
    disk: Disk | None, *, late: bool = False, **options: Any
) -> tuple[BlockBackend, LateContext | None, list]:
    """Return a back end, its context where it is a late one, and the list of events that it tells."""
    events: list[tuple[str, dict[str, Any]]] = []
    context = LateContext() if late else None
    backend = BlockBackend(
        disk,
        context,  # type: ignore[arg-type]
        name="drive0",
        events=BackendEvents(emit=lambda name, data: events.append((name, data))),
        **options,
    )
    return backend, context, events


def cdb6(opcode: int, lba: int = 0, length: int = 0) -> bytes:
    """Return a 6-byte CDB."""
    return bytes((opcode,)) + lba.to_bytes(3, "big") + bytes((length, 0))


def cdb10(opcode: int, lba: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """Return a 10-byte CDB."""
    return bytes((opcode, flags)) + lba.to_bytes(4, "big") + b"\0" + length.to_bytes(2, "big") + b"\0"


def cdb12(opcode: int, lba: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """Return a 12-byte CDB."""
    return bytes((opcode, flags)) + lba.to_bytes(4, "big") + length.to_bytes(4, "big") + bytes(2)


def cdb16(opcode: int, lba: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """Return a 16-byte CDB."""
    return bytes((opcode, flags)) + lba.to_bytes(8, "big") + length.to_bytes(4, "big") + bytes(2)
