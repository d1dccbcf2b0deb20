"""virtio-scsi: requests, task management, events, and hostile queues."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.properties import DeviceModel, set_properties
from pyvm.devices.scsi import properties as models
from pyvm.devices.scsi.bus import Address, ScsiBus
from pyvm.devices.scsi.cdrom import ScsiCd
from pyvm.devices.scsi.disk import ScsiDisk
from pyvm.devices.scsi.target import ScsiState
from pyvm.devices.virtio import scsi_records as r
from pyvm.devices.virtio.pci import VirtioPci
from pyvm.devices.virtio.scsi import ScsiHostState, VirtioScsi, keywords
from pyvm.state import StateError
from tests.unit.disk_support import SECTORS, Disk, LateContext
from tests.unit.scsi_support import cdb10, cdb12, make_backend
from tests.unit.virtio_driver import ALL_COMMON, Buffer, Harness, make_memory, start

FEATURES = r.F_HOTPLUG | r.F_CHANGE
READY = bytes(6)


def lun(target: int, number: int = 0) -> bytes:
    return bytes((1, target, number >> 8 | 0x40, number & 0xFF, 0, 0, 0, 0))


class Response:
    """What came back for a command."""

    def __init__(self, raw: bytes, sense_size: int = 96) -> None:
        length, self.residual, _, self.status, self.response = r.RESPONSE.unpack_from(raw)
        self.sense = raw[12 : 12 + length]
        self.data = raw[12 + sense_size :]

    @property
    def code(self) -> tuple[int, int, int]:
        assert (self.status, self.response, len(self.sense)) == (2, 0, 18)
        return self.sense[2], self.sense[12], self.sense[13]


class Guest:
    """A driver with disks at targets 0 (units 0 and 2) and 1, and a CD at target 3; clear of unit attentions."""

    def __init__(self, *, packed: bool = False, late: bool = False, features: int = FEATURES, **options: Any) -> None:
        self.disks = [Disk(serial=""), Disk(), Disk(), Disk(read_only=True)]
        self.contexts: list[LateContext] = []
        self.device = VirtioScsi(**options)
        places = ((0, 0), (0, 2), (1, 0), (3, 0))
        self.units: list[ScsiDisk | ScsiCd] = []
        for disk, place in zip(self.disks, places, strict=True):
            backend, context, _ = make_backend(disk, late=late, werror="stop", rerror="stop")
            unit = ScsiCd(backend) if disk.read_only else ScsiDisk(backend)
            self.contexts.append(context)
            self.units.append(unit)
            self.device.bus.plug(unit, 0, *place)
        self.h: Harness = start(self.device, features & self.device.offered_features, packed=packed)
        self.next_tag = 0

    def add(
        self, place: bytes, cdb: bytes, data: bytes = b"", room: int = 0, *, tag: int | None = None, queue: int = 2
    ) -> Buffer:
        self.next_tag += 1
        header = r.COMMAND.pack(place, self.next_tag if tag is None else tag, 0, 0, 0) + cdb.ljust(32, b"\0")
        parts = [header, data] if data else [header]
        return self.h.rings[queue].add(parts, [108, room] if room else [108], indirect=True)

    def send(self, place: bytes, cdb: bytes, data: bytes = b"", room: int = 0, queue: int = 2) -> Response:
        buffer = self.add(place, cdb, data, room, queue=queue)
        self.h.kick(queue)
        assert self.h.rings[queue].collect() == [buffer]
        return self.response(buffer)

    def response(self, buffer: Buffer) -> Response:
        return Response(buffer.data(self.h.memory))

    def control(self, data: bytes, room: int = 1) -> Buffer:
        buffer = self.h.rings[0].add([data], [room])
        self.h.kick(0)
        return buffer

    def manage(self, function: int, place: bytes, tag: int = 0) -> int | None:
        """Do task management; return the response, None where there is none yet."""
        buffer = self.control(r.TMF.pack(r.T_TMF, function, place, tag))
        return buffer.data(self.h.memory)[0] if self.h.rings[0].collect() == [buffer] else None

    def events(self, count: int = 1) -> list[Buffer]:
        return [self.h.rings[1].add([], [16]) for _ in range(count)]

    def told(self) -> list[tuple[int, bytes, int]]:
        return [r.EVENT.unpack(buffer.data(self.h.memory)) for buffer in self.h.rings[1].collect()]


@pytest.mark.parametrize("packed", [False, True])
def test_read_and_write(packed: bool) -> None:
    guest = Guest(packed=packed)
    data = os.urandom(1024)
    written = guest.send(lun(1), cdb10(0x2A, 3, 2), data)
    assert (written.status, written.response, written.residual) == (0, 0, 0)
    assert guest.disks[2].data[1536:2560] == data
    read = guest.send(lun(1), cdb10(0x28, 3, 2), room=1024)
    assert (read.status, read.response, read.residual, read.data) == (0, 0, 0, data)
    assert guest.h.interrupts == [2, 2]


def test_framing_may_be_split_anywhere() -> None:
    guest = Guest()
    header = r.COMMAND.pack(lun(0), 7, 0, 0, 0) + cdb10(0x2A, 0, 1).ljust(32, b"\0")
    stream = header + b"d" * 512
    buffer = guest.h.rings[2].add([stream[:3], stream[3:30], stream[30:200], stream[200:]], [5, 8, 95])
    guest.h.kick(2)
    guest.h.rings[2].collect()
    assert guest.response(buffer).response == 0
    assert guest.disks[0].data[:512] == b"d" * 512
    header = r.COMMAND.pack(lun(0), 7, 0, 0, 0) + cdb10(0x28, 0, 1).ljust(32, b"\0")
    buffer = guest.h.rings[2].add([header], [50, 58 + 100, 412])
    guest.h.kick(2)
    guest.h.rings[2].collect()
    assert guest.response(buffer).data == b"d" * 512


def test_residuals_and_sense() -> None:
    guest = Guest()
    inquiry = guest.send(lun(0), bytes((0x12, 0, 0, 0, 255, 0)), room=255)
    assert (inquiry.status, inquiry.residual) == (0, 219)
    assert inquiry.data[8:16] == b"QEMU    "
    assert guest.send(lun(0), cdb10(0x28, SECTORS, 1), room=512).code == (5, 0x21, 0)
    assert guest.send(lun(0), READY).status == 0
    assert guest.send(lun(3), cdb10(0x25), room=8).data == struct.pack(">II", SECTORS // 4 - 1, 2048)


def test_data_without_room_is_an_overrun() -> None:
    guest = Guest()
    for answer in (
        guest.send(lun(0), cdb10(0x28, 0, 2), room=1023),
        guest.send(lun(0), cdb10(0x28, 0, 1), data=bytes(512)),
        guest.send(lun(0), cdb10(0x2A, 0, 1), room=512),
        guest.send(lun(0), cdb10(0x2A, 0, 2), data=bytes(512)),
        guest.send(lun(0), bytes((0x12, 0, 0, 0, 36, 0)), room=35),
    ):
        assert answer.response == r.S_OVERRUN
    both = guest.send(lun(0), cdb10(0x28, 0, 1), data=bytes(512), room=512)
    assert both.response == r.S_FAILURE
    assert all(not disk.calls for disk in guest.disks)


def test_addresses() -> None:
    guest = Guest()
    assert guest.send(lun(0, 2), READY).response == 0
    assert guest.send(bytes((1, 0, 0, 2, 0, 0, 0, 0)), READY).status == 0, "peripheral addressing"
    assert guest.send(lun(2), READY).response == r.S_BAD_TARGET
    for bad in (bytes((2, 0, 0x40, 0)), bytes((1, 0, 0x80, 0)), bytes((0xC1, 1, 0, 0)), bytes((1, 0, 3, 0))):
        assert guest.send(bad.ljust(8, b"\0"), READY).response == r.S_BAD_TARGET
    luns = guest.send(lun(0), cdb12(0xA0, 0, 256), room=256).data
    assert luns[:24] == (16).to_bytes(4, "big") + bytes(4) + bytes(8) + bytes((0, 2)) + bytes(6)


def test_absent_units_of_a_target() -> None:
    guest = Guest()
    absent = lun(0, 1)
    inquiry = guest.send(absent, bytes((0x12, 0, 0, 0, 36, 0)), room=36).data
    assert inquiry[0] == 0x7F
    assert guest.send(absent, READY).code == (5, 0x25, 0)
    assert guest.send(absent, bytes((0x12, 1, 0, 0, 36, 0)), room=36).code == (5, 0x24, 0)
    assert guest.send(absent, bytes((0x03, 0, 0, 0, 18, 0)), room=18).data[12] == 0x25
    assert guest.send(absent, bytes((0x03, 1, 0, 0, 8, 0)), room=8).data[2] == 0x25
    assert guest.send(absent, cdb12(0xA0, 0, 256), room=256).data[3] == 16
    assert guest.send(absent, cdb12(0xA0, 0, 8), room=8).code == (5, 0x24, 0)
    guest.device.bus.unplug(guest.units[0])
    first = guest.send(lun(0), bytes((0x12, 0, 0, 0, 36, 0)), room=36).data
    assert first[0] == 0x3F


def test_commands_end_in_any_order() -> None:
    guest = Guest(late=True, num_queues=2)
    buffers = [
        guest.add(lun(0), cdb10(0x28, 0, 1), room=512),
        guest.add(lun(1), cdb10(0x28, 1, 1), room=512),
        guest.add(lun(0), cdb10(0x28, 2, 1), room=512, queue=3),
    ]
    guest.h.kick(2)
    guest.h.kick(3)
    guest.contexts[0].finish(1)
    guest.contexts[2].finish()
    guest.contexts[0].finish()
    assert guest.h.interrupts == [3, 2, 2]
    assert guest.h.rings[2].collect() == [buffers[1], buffers[0]]
    assert guest.h.rings[3].collect() == [buffers[2]]
    assert guest.response(buffers[0]).data == guest.disks[0].data[:512]
    assert guest.response(buffers[1]).data == guest.disks[2].data[512:1024]
    assert guest.response(buffers[2]).data == guest.disks[0].data[1024:1536]


def test_abort_task() -> None:
    guest = Guest(late=True)
    victim = guest.add(lun(0), cdb10(0x28, 0, 1), room=512, tag=77)
    other = guest.add(lun(0), cdb10(0x28, 1, 1), room=512, tag=78)
    guest.h.kick(2)
    assert guest.manage(r.TMF_QUERY_TASK, lun(0), 77) == r.S_FUNCTION_SUCCEEDED
    assert guest.manage(r.TMF_QUERY_TASK, lun(1), 77) == r.S_FUNCTION_COMPLETE
    assert guest.manage(r.TMF_QUERY_TASK_SET, lun(0)) == r.S_FUNCTION_SUCCEEDED
    assert guest.manage(r.TMF_QUERY_TASK_SET, lun(1)) == r.S_FUNCTION_COMPLETE
    assert guest.manage(r.TMF_ABORT_TASK, lun(0), 77) is None, "not before the back end let go of the buffers"
    guest.contexts[0].finish()
    assert guest.h.rings[2].collect() == [victim]
    assert guest.response(victim).response == r.S_ABORTED
    assert len(guest.h.rings[0].collect()) == 1
    guest.contexts[0].finish()
    assert guest.h.rings[2].collect() == [other]
    assert guest.response(other).response == 0
    assert guest.manage(r.TMF_ABORT_TASK, lun(0), 77) == r.S_FUNCTION_COMPLETE


@pytest.mark.parametrize("function", [r.TMF_ABORT_TASK_SET, r.TMF_CLEAR_TASK_SET])
def test_abort_task_set(function: int) -> None:
    guest = Guest(late=True)
    for sector in range(2):
        guest.add(lun(0), cdb10(0x28, sector, 1), room=512)
    guest.h.kick(2)
    assert guest.manage(function, lun(0)) is None
    guest.contexts[0].finish()
    assert guest.h.rings[0].collect() == []
    guest.contexts[0].finish()
    (done,) = guest.h.rings[0].collect()
    assert done.data(guest.h.memory) == bytes((r.S_FUNCTION_COMPLETE,))
    assert [guest.response(item).response for item in guest.h.rings[2].collect()] == [r.S_ABORTED] * 2


@pytest.mark.parametrize("function", [r.TMF_LOGICAL_UNIT_RESET, r.TMF_I_T_NEXUS_RESET])
def test_reset_of_units(function: int) -> None:
    guest = Guest(late=True)
    buffers = [guest.add(place, cdb10(0x28, 0, 1), room=512) for place in (lun(0), lun(0, 2), lun(1))]
    guest.h.kick(2)
    assert guest.manage(function, lun(0)) == r.S_FUNCTION_COMPLETE
    done = guest.h.rings[2].collect()
    expected = buffers[:1] if function == r.TMF_LOGICAL_UNIT_RESET else buffers[:2]
    assert done == expected
    assert [guest.response(item).response for item in done] == [r.S_RESET] * len(expected)
    assert guest.send(lun(0), READY).code == (6, 0x29, 0)
    assert guest.send(lun(0), READY).status == 0


def test_other_control_requests() -> None:
    guest = Guest()
    assert guest.manage(r.TMF_CLEAR_ACA, lun(0)) == r.S_FUNCTION_REJECTED
    assert guest.manage(99, lun(0)) == r.S_FUNCTION_REJECTED
    assert guest.manage(r.TMF_ABORT_TASK, lun(0, 1)) == r.S_INCORRECT_LUN
    assert guest.manage(r.TMF_ABORT_TASK, lun(9)) == r.S_BAD_TARGET
    assert guest.manage(r.TMF_I_T_NEXUS_RESET, lun(9)) == r.S_BAD_TARGET
    for kind in (r.T_AN_QUERY, r.T_AN_SUBSCRIBE):
        buffer = guest.control(r.AN.pack(kind, lun(0), 0x7F), 5)
        assert guest.h.rings[0].collect() == [buffer]
        assert buffer.data(guest.h.memory) == bytes(5)
    strange = guest.control(struct.pack("<I", 9))
    assert guest.h.rings[0].collect() == [strange]
    assert strange.written == 0


@pytest.mark.parametrize("data", [r.TMF.pack(0, 0, lun(0), 0)[:-1], r.AN.pack(1, lun(0), 1)[:-1]])
def test_short_control_requests_break_the_device(data: bytes) -> None:
    guest = Guest()
    guest.control(data, 5)
    assert guest.device.broken


def test_events_of_hot_plug() -> None:
    guest = Guest()
    guest.events(2)
    backend, _, _ = make_backend(Disk())
    unit = ScsiDisk(backend)
    assert guest.device.bus.plug(unit, 0, 5, 300) == Address(0, 5, 300)
    assert guest.told() == [(r.TRANSPORT_RESET, bytes((1, 5, 0x41, 0x2C, 0, 0, 0, 0)), r.RESET_RESCAN)]
    assert guest.h.interrupts == [1]
    assert guest.send(lun(1), READY).code == (6, 0x3F, 0x0E)
    guest.device.bus.unplug(unit)
    assert guest.told() == [(r.TRANSPORT_RESET, bytes((1, 5, 0x41, 0x2C, 0, 0, 0, 0)), r.RESET_REMOVED)]
    assert backend.device is None


def test_missed_events() -> None:
    guest = Guest()
    guest.units[0].resized()
    guest.events()
    guest.h.kick(1)
    assert guest.told() == [(r.NO_EVENT | r.EVENTS_MISSED, bytes(8), 0)]
    guest.units[0].resized()
    state = ScsiHostState.from_dict(guest.device.save().to_dict())
    assert state.events_dropped
    guest.device.load(state)
    guest.events()
    guest.units[2].resized()
    assert guest.told() == [(r.PARAM_CHANGE | r.EVENTS_MISSED, bytes((1, 1, 0, 0, 0, 0, 0, 0)), 0x092A)]


def test_no_events_for_who_does_not_want_them() -> None:
    guest = Guest(features=0)
    guest.events(3)
    guest.units[0].resized()
    guest.device.bus.unplug(guest.units[1])
    assert guest.told() == []
    wanting = Guest()
    wanting.events()
    wanting.units[3].resized()
    assert wanting.told() == [], "a drive's medium is told by its unit attention"
    assert Guest(hotplug=False, param_change=False).device.offered_features & 7 == 0


def test_event_buffer_without_room_breaks_the_device() -> None:
    guest = Guest()
    guest.h.rings[1].add([], [15])
    guest.units[0].resized()
    assert guest.device.broken


def test_configuration_space() -> None:
    guest = Guest(num_queues=3, virtqueue_size=64)
    assert struct.unpack("<IIIIIIIHHI", guest.device.config()) == (3, 62, 0xFFFF, 128, 16, 96, 32, 0, 255, 16383)
    assert len(guest.device.queues) == 5
    guest.device.config_write(20, 4, 4)
    guest.device.config_write(24, 4, 16)
    header = r.COMMAND.pack(lun(0), 1, 0, 0, 0) + cdb10(0x28, SECTORS, 1).ljust(16, b"\0")
    buffer = guest.h.rings[2].add([header], [16, 512])
    guest.h.kick(2)
    guest.h.rings[2].collect()
    assert Response(buffer.data(guest.h.memory), 4).sense == bytes((0x70, 0, 5, 0))
    state = ScsiHostState.from_dict(guest.device.save().to_dict())
    guest.device.set_status(0)
    assert guest.device.config_read(20, 4) == 96
    guest.device.load(state)
    assert (guest.device.config_read(20, 4), guest.device.config_read(24, 4)) == (4, 16)
    guest.device.config_write(24, 4, 257)
    assert guest.device.broken
    assert VirtioScsi(seg_max_adjust=False).config_read(4, 4) == 126


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_queues": 0}, r"Invalid number of queues \(= 0\), must be a positive integer less than 1022"),
        ({"num_queues": 1023}, "Invalid number of queues"),
        ({"virtqueue_size": 2}, "invalid virtqueue_size property"),
        ({"virtqueue_size": 100}, "invalid virtqueue_size property"),
    ],
)
def test_impossible_properties(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VirtioScsi(**options)  # type: ignore[arg-type]


def successor(guest: Guest) -> Guest:
    """Return a machine that took over this one's state and memory."""
    other = Guest.__new__(Guest)
    other.disks, other.contexts, other.units = guest.disks, [], []
    other.device = VirtioScsi()
    for address, unit in guest.device.bus.units.items():
        backend, context, _ = make_backend(unit.backend.node, late=True)  # type: ignore[arg-type]
        twin = type(unit)(backend)  # type: ignore[call-arg]
        twin.load(ScsiState.from_dict(unit.save().to_dict()))
        other.contexts.append(context)
        other.units.append(twin)  # type: ignore[arg-type]
        other.device.bus.plug(twin, address.channel, address.target, address.lun)
    other.h = Harness(other.device, guest.h.memory, guest.h.arena, guest.h.rings)
    other.device.attach(guest.h.memory, ALL_COMMON, other.h.interrupts.append, lambda: None)
    other.device.pause()
    other.device.load(ScsiHostState.from_dict(guest.device.save().to_dict()))
    return other


@pytest.mark.parametrize("packed", [False, True])
def test_commands_in_flight_survive_a_save(packed: bool) -> None:
    guest = Guest(packed=packed, late=True)
    first = guest.add(lun(1), cdb10(0x28, 0, 1), room=512)
    write = guest.add(lun(0), cdb10(0x2A, 4, 1), data=b"w" * 512)
    aborted = guest.add(lun(0), cdb10(0x28, 4, 1), room=512, tag=9)
    guest.h.kick(2)
    assert guest.manage(r.TMF_ABORT_TASK, lun(0), 9) is None
    guest.contexts[2].finish()
    assert guest.h.rings[2].collect() == [first]
    other = successor(guest)
    assert other.device.save() == guest.device.save()
    assert not any(context.queue for context in other.contexts)
    other.device.resume()
    for context in other.contexts:
        context.settle(lambda: False)
    assert other.h.rings[2].collect() == [write, aborted]
    assert other.response(write).status == 0
    assert other.response(aborted).response == r.S_ABORTED
    assert len(other.h.rings[0].collect()) == 1
    assert other.disks[0].data[2048:2560] == b"w" * 512


def test_reset_forgets_commands() -> None:
    guest = Guest(late=True)
    guest.disks[0].error = OSError(28, "")
    guest.add(lun(0), cdb10(0x2A, 4, 1), data=b"w" * 512)
    guest.h.kick(2)
    guest.contexts[0].settle(lambda: False)
    assert len(guest.units[0].backend.held) == 1
    guest.add(lun(1), cdb10(0x28, 0, 1), room=512)
    guest.h.kick(2)
    guest.device.set_status(0)
    assert not guest.units[0].backend.held
    assert not guest.contexts[2].queue
    assert guest.h.rings[2].collect() == []
    assert guest.h.interrupts == []
    assert guest.device.save().requests == []
    assert guest.units[0].save().attentions == [0x062900]


def test_states_that_cannot_be() -> None:
    guest = Guest(late=True)
    guest.add(lun(0), cdb10(0x28, 0, 1), room=512)
    guest.h.kick(2)

    def refuse(change: Callable[[ScsiHostState], None], message: str) -> None:
        state = guest.device.save().copy()
        change(state)
        with pytest.raises(StateError, match=message):
            VirtioScsi.load(guest.device, state)

    refuse(lambda state: setattr(state, "cdb_size", 257), "cdb_size")
    refuse(lambda state: setattr(state.requests[0], "queue", 0), "entries in use")
    refuse(lambda state: state.requests.clear(), "1 entries in use, but the chains in flight are others")


def test_places_on_the_bus() -> None:
    bus = ScsiBus("scsi0.0")

    def plug(*place: int) -> Address:
        backend, _, _ = make_backend(Disk())
        return bus.plug(ScsiDisk(backend), *place)

    assert plug() == Address(0, 0, 0)
    assert plug() == Address(0, 1, 0)
    assert plug(0, 0) == Address(0, 0, 1)
    assert plug(0, 7, 16383) == Address(0, 7, 16383)
    for place, message in (
        ((1,), "bad scsi channel id: 1"),
        ((0, 256), "bad scsi device id: 256"),
        ((0, 0, 16384), "bad scsi device lun: 16384"),
        ((0, 1, 0), "lun already used by"),
    ):
        with pytest.raises(ValueError, match=message):
            plug(*place)


def test_models() -> None:
    disk_model = DeviceModel("scsi-hd", "SCSI", "Storage", models.DISK_PROPERTIES)
    backend, _, _ = make_backend(Disk(serial="S123"))
    values = set_properties(disk_model, {"drive": "d", "wwn": "0x5000c500a0000001", "write-cache": "off", "ver": "9"})
    disk = models.make_disk(backend, values)
    assert (disk.identity.serial, disk.identity.device_id, disk.identity.version) == ("S123", "S123", "9")
    assert (disk.identity.wwn, disk.block_size, disk.limits.discard_granularity) == (0x5000C500A0000001, 512, None)
    assert not backend.write_cache
    backend, _, _ = make_backend(Disk(serial=""))
    cd = models.make_cd(backend, set_properties(DeviceModel("scsi-cd", "SCSI", "Storage", models.CD_PROPERTIES), {}))
    assert (cd.identity.product, cd.identity.device_id) == ("QEMU CD-ROM", "drive0")
    assert backend.removable


def test_on_pci() -> None:
    model = DeviceModel("virtio-scsi-pci", "PCI", "Storage", VirtioScsi.PROPERTIES)
    options = keywords(set_properties(model, {"param_change": "off"}), cpus=2)
    function = VirtioPci("virtio-scsi-pci", VirtioScsi(**options), make_memory())
    assert function.device.offered_features & 7 == r.F_HOTPLUG
    assert function.config[2:4] == bytes((0x04, 0x10))
    assert function.config[9:12] == bytes((0, 0, 1))
    assert function.msix is not None
    assert function.msix.vectors == 5


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.binary(min_size=1, max_size=80), max_size=3),
            st.lists(st.integers(1, 700), max_size=3),
        ),
        max_size=5,
    ),
    st.booleans(),
)
def test_hostile_queues(chains: Sequence[tuple[int, Sequence[bytes], Sequence[int]]], packed: bool) -> None:
    guest = Guest(packed=packed, num_queues=2)
    for queue, readable, writable in chains:
        if readable or writable:
            guest.h.rings[queue].add(readable, writable, indirect=True)
            guest.h.kick(queue)
    guest.units[0].resized()


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([lun(0), lun(0, 1), lun(0, 2), lun(3), lun(8)]) | st.binary(min_size=8, max_size=8),
    st.binary(min_size=32, max_size=32)
    | st.sampled_from(sorted({*ScsiDisk.operations, *ScsiCd.operations})).map(
        lambda opcode: bytes((opcode,)) + bytes(31)
    ),
    st.binary(max_size=600),
    st.integers(0, 600),
)
def test_hostile_commands(place: bytes, cdb: bytes, data: bytes, room: int) -> None:
    guest = Guest()
    answer = guest.send(place, cdb, data, room)
    assert answer.status in (0, 2)
    assert answer.residual <= len(data) + room
    assert guest.device.running
