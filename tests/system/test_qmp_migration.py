"""Commands about migration, exports and SPICE while nothing of them runs.  Expected replies are QEMU 7.2's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvm.migration.settings import CAPABILITIES, DEFAULTS, MigrationSettings
from tests.system.machine_rig import Machine
from tests.unit.monitor_support import Bench, Client


def client() -> Client:
    bench = Bench()
    bench.machine.migration = MigrationSettings()  # type: ignore[attr-defined]
    return bench.client()


def switch(*names: str, state: bool = True) -> dict[str, Any]:
    return {"capabilities": [{"capability": name, "state": state} for name in names]}


def enabled(client: Client) -> set[str]:
    return {item["capability"] for item in client.execute("query-migrate-capabilities") if item["state"]}


def test_capabilities_are_off_and_can_be_switched() -> None:
    monitor = client()
    assert [item["capability"] for item in monitor.execute("query-migrate-capabilities")] == list(CAPABILITIES)
    assert enabled(monitor) == set()
    monitor.execute("migrate-set-capabilities", **switch("xbzrle", "events"))
    monitor.execute("migrate-set-capabilities", **switch("events", state=False))
    assert enabled(monitor) == {"xbzrle"}


ZERO_COPY = "Zero copy only available for non-compressed non-TLS multifd migration"


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["zero-copy-send"], ZERO_COPY),
        (["zero-copy-send", "multifd", "xbzrle"], ZERO_COPY),
        (["postcopy-preempt"], "Postcopy preempt requires postcopy-ram"),
        (["postcopy-preempt", "postcopy-ram", "compress"], "Postcopy preempt not compatible with compress"),
        (["compress", "multifd"], "Multifd is not compatible with compress"),
        (["postcopy-ram", "x-ignore-shared"], "Postcopy is not compatible with ignore-shared"),
        (["background-snapshot", "xbzrle", "return-path"], "Background-snapshot is not compatible with return-path"),
        (["zz"], "Parameter 'capability' does not accept value 'zz'"),
    ],
)
def test_capabilities_that_do_not_go_together(names: list[str], error: str) -> None:
    monitor = client()
    assert monitor.error("migrate-set-capabilities", switch("auto-converge", *names)) == error
    assert enabled(monitor) == set()


def test_parameters_have_defaults_and_can_be_set() -> None:
    monitor = client()
    assert monitor.execute("query-migrate-parameters") == DEFAULTS
    monitor.execute("migrate-set-parameters", **{"max-bandwidth": -1, "tls-hostname": "h", "downtime-limit": 0})
    monitor.execute("migrate-set-parameters", **{"tls-hostname": None, "multifd-compression": "zstd"})
    assert monitor.execute("query-migrate-parameters") == {
        **DEFAULTS,
        "max-bandwidth": (1 << 64) - 1,
        "downtime-limit": 0,
        "multifd-compression": "zstd",
    }
    assert monitor.error("migrate-set-capabilities", switch("multifd", "zero-copy-send")) == ZERO_COPY


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("compress-level", 10, "'compress_level' expects a value between 0 and 9"),
        ("compress-level", 256, "'compress-level' expects uint8_t"),
        ("decompress-threads", 0, "'decompress_threads' expects a value between 1 and 255"),
        ("throttle-trigger-threshold", 101, "'throttle_trigger_threshold' expects an integer in the range of 1 to 100"),
        ("downtime-limit", 2000001, "'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms"),
        ("announce-step", 0, "'announce_step' expects a value between 0 and 10000"),
        ("xbzrle-cache-size", 2048, "'xbzrle_cache_size' expects a power of two no less than the target page size"),
        ("xbzrle-cache-size", 5000, "'xbzrle_cache_size' expects a power of two no less than the target page size"),
        ("max-cpu-throttle", 19, "'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99"),
        ("x-checkpoint-delay", 1 << 32, "'x-checkpoint-delay' expects uint32_t"),
        ("zz", 1, "'zz' is unexpected"),
    ],
)
def test_parameters_out_of_range(name: str, value: int, error: str) -> None:
    monitor = client()
    assert monitor.error("migrate-set-parameters", {name: value}) == f"Parameter {error}"
    assert monitor.execute("query-migrate-parameters") == DEFAULTS


def alias(node: str, name: str, *bitmaps: tuple[str, str]) -> dict[str, Any]:
    return {"node-name": node, "alias": name, "bitmaps": [{"name": of, "alias": to} for of, to in bitmaps]}


@pytest.mark.parametrize(
    ("mapping", "error"),
    [
        ([alias("a", "b"), alias("a", "c")], "The node name 'a' is mapped twice"),
        ([alias("a", "b"), alias("c", "b")], "The node alias 'b' is used twice"),
        ([alias("a", "1 /")], "The node alias '1 /' is not well-formed"),
        ([alias("a", "b", ("x", "y"), ("x", "z"))], "The bitmap 'a'/'x' is mapped twice"),
        ([alias("a", "b", ("x", "y"), ("w", "y"))], "The bitmap alias 'b'/'y' is used twice"),
        ([alias("a", "b", ("x", "y" * 256))], f"The bitmap alias '{'y' * 256}' is longer than 255 bytes"),
    ],
)
def test_bitmap_mappings_that_are_wrong(mapping: list[Any], error: str) -> None:
    message = client().error("migrate-set-parameters", {"block-bitmap-mapping": mapping})
    assert message == f"Invalid mapping given for block-bitmap-mapping: {error}"


def test_a_bitmap_mapping_comes_back_as_it_was_given() -> None:
    monitor = client()
    mapping = [alias("a", "b", ("x", "y"))]
    mapping[0]["bitmaps"][0]["transform"] = {"persistent": True}
    monitor.execute("migrate-set-parameters", **{"block-bitmap-mapping": mapping})
    assert monitor.execute("query-migrate-parameters")["block-bitmap-mapping"] == mapping


def test_the_older_commands_set_the_same_parameters() -> None:
    monitor = client()
    monitor.execute("migrate_set_speed", value=7)
    monitor.execute("migrate_set_downtime", value=0.25)
    monitor.execute("migrate-set-cache-size", value=(1 << 21) + 5)
    parameters = monitor.execute("query-migrate-parameters")
    assert [parameters[name] for name in ("max-bandwidth", "downtime-limit")] == [7, 250]
    assert monitor.execute("query-migrate-cache-size") == parameters["xbzrle-cache-size"] == 1 << 21
    assert "0 to 2000 seconds" in monitor.error("migrate_set_downtime", {"value": -1})
    assert "power of two" in monitor.error("migrate-set-cache-size", {"value": 100})


def test_without_a_migration_there_is_nothing_to_do() -> None:
    monitor = client()
    assert monitor.execute("query-migrate") == {}
    assert monitor.execute("migrate_cancel") == {}
    assert monitor.error("migrate", {}) == "Parameter 'uri' is missing"
    assert monitor.execute("query-migrate") == {}
    for command, arguments, error in (
        ("migrate-continue", {"state": "pre-switchover"}, "Migration not in expected state: none"),
        ("migrate-pause", {}, "migrate-pause is currently only supported during postcopy-active state"),
        ("migrate-recover", {"uri": "x"}, "Migrate recover can only be run when postcopy is paused."),
        ("migrate-incoming", {"uri": "x"}, "'-incoming' was not specified on the command line"),
        ("client_migrate_info", {"protocol": "vnc", "hostname": "h"}, "Parameter 'protocol' expects 'spice'"),
        (
            "client_migrate_info",
            {"protocol": "spice", "hostname": "h"},
            "DeviceNotActive: SPICE is not in use",
        ),
        ("x-colo-lost-heartbeat", {}, "The feature 'colo' is not enabled"),
    ):
        assert monitor.error(command, arguments) == error
    assert monitor.execute("query-colo-status") == {"mode": "none", "last-mode": "none", "reason": "none"}


def test_postcopy_needs_its_capability_and_a_migration() -> None:
    monitor = client()
    first = monitor.error("migrate-start-postcopy")
    assert first == "Enable postcopy with migrate_set_capability before the start of migration"
    monitor.execute("migrate-set-capabilities", **switch("postcopy-ram"))
    assert monitor.error("migrate-start-postcopy") == "Postcopy must be started after migration has been started"


def test_the_state_of_devices_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    with Machine("-m", "16", "-device", "virtio-serial-pci") as machine:
        error = machine.error("xen-load-devices-state", filename=path)
        assert error == f"Unable to open {path}: No such file or directory"
        assert "Unable to open /no/x: " in machine.error("xen-save-devices-state", filename="/no/x")
        machine.execute("rtc-reset-reinjection")
        machine.pc.board.dma.low.write(8, 1, 0)
        before = {name: component.save() for name, component in machine.pc.board.components.items()}
        machine.execute("xen-save-devices-state", filename=path)
        machine.pc.board.rtc.write(0, 1, 0x34)
        machine.pc.board.pci.address_write(0, 4, 0x80001234)
        assert machine.pc.board.rtc.save() != before["rtc"]
        machine.execute("xen-load-devices-state", filename=path)
        assert {name: component.save() for name, component in machine.pc.board.components.items()} == before
        (tmp_path / "x").write_bytes(b"something else" * 10000)
        machine.execute("xen-save-devices-state", filename=path)
        machine.execute("xen-load-devices-state", filename=path)
        machine.execute("xen-save-devices-state", filename="/dev/null")
        assert Path("/dev/null").is_char_device()
        (tmp_path / "x").write_bytes(b"something else")
        assert "this is no saved machine" in machine.error("xen-load-devices-state", filename=path)
    with Machine("-m", "16") as machine:
        machine.execute("xen-save-devices-state", filename=path)
    with Machine("-m", "16", "-smp", "2") as machine:
        before = {name: component.save() for name, component in machine.pc.board.components.items()}
        assert "saved with cpus 1, not 2" in machine.error("xen-load-devices-state", filename=path)
        assert {name: component.save() for name, component in machine.pc.board.components.items()} == before


def test_nothing_is_exported() -> None:
    with Machine("-blockdev", "null-co,node-name=n", "-object", "iothread,id=io") as machine:
        assert machine.execute("query-block-exports") == []
        assert machine.error("nbd-server-stop") == "NBD server not running"
        assert machine.error("nbd-server-add", device="zz") == "Cannot find device='zz' nor node-name='zz'"
        assert machine.error("nbd-server-add", device="n") == "NBD server not running"
        assert machine.error("nbd-server-remove", name="n") == "Export 'n' is not found"
        assert machine.error("block-export-del", id="e") == "Export 'e' is not found"

        def export(**options: Any) -> str:
            return machine.error("block-export-add", **{"type": "nbd", "id": "e", "node-name": "n", **options})

        assert export() == "NBD server not running"
        assert export(id="1 ") == "Invalid block export id"
        assert export(node_name="zz") == "Cannot find device='' nor node-name='zz'"
        assert export(iothread="zz") == 'iothread "zz" not found'
        text = "Failed to stat '/nonexistent': No such file or directory"
        assert export(type="fuse", mountpoint="/nonexistent", iothread="io") == text


def test_spice_and_the_display_on_the_host() -> None:
    monitor = client()
    assert monitor.execute("query-spice") == {"enabled": False, "migrated": False, "mouse-mode": "client"}
    assert monitor.execute("query-display-options") == {"type": "none"}
