"""Panic devices, the generation identifier, and what a machine makes of them and of watchdogs."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from pyvm.devices.i6300esb import LOCK, LOCK_ENABLE, PRELOAD_1, PRELOAD_2, RELOAD, I6300Esb
from pyvm.devices.pvpanic import CRASH_LOADED, PANICKED, PvPanic, PvPanicPci, PvPanicState
from pyvm.devices.vmgenid import ADDRESS_FILE, GPE, VmGenId, VmGenIdState
from pyvm.errors import ConfigError
from pyvm.firmware import acpi, table_loader
from pyvm.firmware.machine_info import MachineInfo, Processor
from pyvm.memory import GuestMemory, pc_ram_blocks
from pyvm.state import StateError
from tests.system.machine_rig import Machine

MIB = 1 << 20
GUID = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


# ---- pvpanic


@pytest.mark.parametrize(
    ("value", "heard"),
    [(PANICKED, ["panic"]), (CRASH_LOADED, ["crash"]), (PANICKED | CRASH_LOADED, ["panic"]), (0, []), (0xFC, [])],
)
def test_panic_events(value: int, heard: list[str]) -> None:
    told: list[str] = []
    port = PvPanic(3, lambda: told.append("panic"), lambda: told.append("crash"))
    assert port.read(0, 1) == 3
    port.write(0, 1, value)
    assert told == heard
    function = PvPanicPci(1, lambda: told.append("panic"), lambda: told.append("crash"))
    assert function.config_read(0, 4) == 0x00111B36
    bar = function.bars[0].window
    assert [bar.read(offset, 1) for offset in range(3)] == [1, 0, 0]
    bar.write(1, 1, PANICKED)
    assert told == heard
    bar.write(0, 1, value)
    assert told == 2 * heard


def test_panic_state() -> None:
    port = PvPanic(3, lambda: None, lambda: None)
    port.reset()
    port.load(PvPanicState.from_dict(port.save().to_dict()))


# ---- vmgenid


def memory_of(size: int = MIB) -> GuestMemory:
    return GuestMemory(size, pc_ram_blocks(size))


def test_the_identifier_in_memory() -> None:
    notices: list[bool] = []
    memory = memory_of()
    try:
        device = VmGenId(memory, GUID, lambda: notices.append(True))
        device.put_at(0x1000)
        assert memory.read(0x1000, 16) == UUID(GUID).bytes_le
        assert notices == []
        device.regenerate()
        assert notices == [True]
        assert memory.read(0x1000, 16) == device.guid.bytes_le != UUID(GUID).bytes_le
        device.reset()
        device.regenerate(UUID(GUID))
        assert notices == [True], "nobody has said where it is to be"
        device.address_written(struct.pack("<Q", 0x2000))
        assert memory.read(0x2000, 16) == UUID(GUID).bytes_le
        for nonsense in (MIB - 8, 1 << 63, (1 << 64) - 1):
            device.address_written(struct.pack("<Q", nonsense))
            device.regenerate()
        assert notices == [True]
    finally:
        memory.close()


@pytest.mark.parametrize(("guid", "same"), [("auto", False), (GUID, True)])
def test_a_restored_machine_gets_another_identifier_unless_it_was_given_one(guid: str, same: bool) -> None:
    notices: list[bool] = []
    memory = memory_of()
    try:
        first = VmGenId(memory, guid, lambda: None)
        first.put_at(0x1000)
        second = VmGenId(memory, guid, lambda: notices.append(True))
        second.load(VmGenIdState.from_dict(first.save().to_dict()))
        assert (second.guid == first.guid) is same
        assert memory.read(0x1000, 16) == second.guid.bytes_le
        assert notices == [True]
        before = second.guid
        second.load(first.save())  # of the same process, too
        assert (second.guid == before) is same
        with pytest.raises(StateError):
            second.load(VmGenIdState(-1))
    finally:
        memory.close()


@pytest.mark.parametrize("guid", ["foo", "", GUID[:-1], f"{{{GUID}}}", GUID.replace("-", "")])
def test_what_is_no_identifier(guid: str) -> None:
    memory = memory_of()
    try:
        with pytest.raises(ValueError, match="is not a UUID"):
            VmGenId(memory, guid, lambda: None)
    finally:
        memory.close()


def test_tables_say_where_it_is() -> None:
    info = MachineInfo(processors=(Processor(0),), low_ram_end=64 * MIB, generation_id=True)
    built = acpi.build(info)
    place = built.offsets[acpi.GENERATION_ID]
    image = built.tables.at(0x3FE0000)
    start = built.offsets["SSDT"]
    table = image[start : start + struct.unpack_from("<I", image, start + 4)[0]]
    assert sum(table) & 0xFF == 0
    assert (0x3FE0000 + place).to_bytes(4, "little") in table
    assert b"VM_Gen_Counter" in table
    assert image[place : place + 64] == bytes(64)
    last = table_loader.script(built)[-128:]
    number, target, source, offset, where, size = struct.unpack_from("<I56s56sIIB", last)
    assert (number, offset, where, size) == (4, 0, place, 8)
    assert target.rstrip(b"\0").decode() == ADDRESS_FILE
    assert source.rstrip(b"\0").decode() == table_loader.TABLES_FILE


# ---- On a machine


ALL = (
    *("-device", "i6300esb,id=dog", "-device", "ib700", "-device", "pvpanic,events=1"),
    *("-device", "pvpanic-pci,id=panic", "-device", f"vmgenid,guid={GUID.upper()},id=life"),
)


def test_all_of_them_on_a_machine() -> None:
    with Machine(*ALL) as machine:
        pc = machine.pc
        assert machine.execute("query-vm-generation-id") == {"guid": GUID}
        installed = pc._boot.installed
        assert installed is not None
        assert pc.memory.read(installed.generation_id, 16) == UUID(GUID).bytes_le
        assert pc.ports.read(0x505, 1) == 1
        assert pc.board.fw_cfg.file_data("etc/pvpanic-port") == b"\x05\x05"
        names = pc.board.components
        assert {"dog", "ib700", "pvpanic", "panic", "life"} <= set(names)
        life = pc.find_device("life")
        assert isinstance(life, VmGenId)
        life.regenerate()
        assert pc.board.acpi.gpe_read(0, 2) == 1 << GPE
        assert machine.execute("query-vm-generation-id") != {"guid": GUID}
        assert machine.get("/machine/peripheral/life", "guid") == GUID.upper()
        assert machine.get("/machine/peripheral/panic", "events") == 3
        for component in names.values():
            component.load(component.save())


def test_the_identifier_moves_with_a_reset_and_is_kept_in_a_sleep() -> None:
    with Machine("-device", f"vmgenid,guid={GUID}") as machine:
        pc = machine.pc
        installed = pc._boot.installed
        assert installed is not None
        pc.memory.write(installed.generation_id, bytes(16))
        pc.reset_hardware()
        assert pc.memory.read(installed.generation_id, 16) == UUID(GUID).bytes_le


def test_watchdogs_and_panic_reach_the_machine() -> None:
    with Machine(*ALL) as machine:
        pc = machine.pc
        machine.execute("watchdog-set-action", action="none")
        machine.execute("set-action", panic="none")
        dog = pc.find_device("dog")
        assert isinstance(dog, I6300Esb)
        for value in (0x80, 0x86):
            dog.write(RELOAD, 1, value)
        dog.write(PRELOAD_1, 4, 1)
        for value in (0x80, 0x86):
            dog.write(RELOAD, 1, value)
        dog.write(PRELOAD_2, 4, 1)
        dog.config_write(LOCK, 1, LOCK_ENABLE)
        for _ in range(2):
            pc.clock.set(pc.clock.now() + 10**9)
            pc.clock.queue.run_expired(pc.clock.now())
        pc.ports.write(0x505, 1, 1)
        pc.ports.write(0x505, 1, 2)
        assert machine.take_events() == [
            ("WATCHDOG", {"action": "none"}),
            ("GUEST_PANICKED", {"action": "run"}),
            ("GUEST_CRASHLOADED", {"action": "run"}),
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("vmgenid", "vmgenid"), "-device vmgenid: at most one vmgenid device is permitted"),
        (("vmgenid,guid=foo",), "-device vmgenid,guid=foo: Property 'vmgenid.guid' doesn't take value 'foo'"),
        (("pvpanic", "pvpanic"), "-device pvpanic: duplicate fw_cfg file name: etc/pvpanic-port"),
        (("ib700,foo=1",), "-device ib700,foo=1: Property 'ib700.foo' not found"),
    ],
)
def test_what_cannot_be_had(options: tuple[str, ...], message: str) -> None:
    words = [word for option in options for word in ("-device", option)]
    with pytest.raises(ConfigError) as caught:
        Machine(*words)
    assert str(caught.value) == message


@pytest.mark.parametrize("model", ["i6300esb", "ib700", "pvpanic", "pvpanic-pci", "vmgenid"])
def test_models_are_known(model: str) -> None:
    with Machine() as machine:
        properties = {item["name"] for item in machine.execute("device-list-properties", typename=model)}
        wanted = {"pvpanic": {"ioport", "events"}, "pvpanic-pci": {"addr", "events"}, "vmgenid": {"guid"}}
        assert wanted.get(model, set()) <= properties
        assert machine.error("query-vm-generation-id") == "VM Generation ID device not found"


def test_the_script_for_firmware_in_the_guest_tells_the_device() -> None:
    with Machine("-device", f"vmgenid,guid={GUID}") as machine:
        pc = machine.pc
        key = pc.board.fw_cfg.file_key(ADDRESS_FILE)
        pc.memory.write(0x8000, struct.pack("<Q", 0x9000))
        pc.memory.write(0x7000, struct.pack(">IIQ", key << 16 | 0x18, 8, 0x8000))
        pc.board.fw_cfg.dma_write(0, 8, int.from_bytes((0x7000).to_bytes(8, "big"), "little"))
        assert pc.memory.read(0x9000, 16) == UUID(GUID).bytes_le


def test_plugging_in_and_out() -> None:
    with Machine("-device", "vmgenid,id=life") as machine:
        for model in ("i6300esb", "pvpanic-pci"):
            machine.execute("device_add", driver=model, id=model)
            assert model in machine.pc.board.components
            machine.execute("device_del", id=model)
            machine.execute("system_reset")
            assert model not in machine.pc.board.components
        for model in ("ib700", "pvpanic"):
            assert machine.error("device_add", driver=model) == "Bus 'isa.0' does not support hotplugging"
        pluggable = "Parameter 'driver' expects a pluggable device type"
        assert machine.error("device_add", driver="vmgenid") == pluggable
        assert machine.error("device_del", id="life") == "Device 'vmgenid' does not support hotplugging"
        life = machine.pc.find_device("life")
        assert isinstance(life, VmGenId)
        assert machine.execute("query-vm-generation-id") == {"guid": str(life.guid)}
