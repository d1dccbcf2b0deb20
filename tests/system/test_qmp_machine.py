"""Commands about the parts of a machine: CPUs, memory, NUMA nodes, PCI, virtio, and the time before it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvm.config import MACHINE_TYPES
from pyvm.errors import ConfigError
from pyvm.runstate import RunState
from tests.system.machine_rig import Machine, shared

# ---- Machines, CPUs and their models


def test_machines() -> None:
    found = {item["name"]: item for item in shared().execute("query-machines")}
    assert set(found) == set(MACHINE_TYPES)
    assert found["pc-i440fx-7.2"] == {
        "name": "pc-i440fx-7.2",
        "alias": "pc",
        "is-default": True,
        "cpu-max": 255,
        "hotpluggable-cpus": True,
        "numa-mem-supported": False,
        "deprecated": False,
        "default-cpu-type": "qemu64-x86_64-cpu",
        "default-ram-id": "pc.ram",
    }
    assert "default-cpu-type" not in found["none"]


def test_places_for_cpus() -> None:
    with Machine("-smp", "2,maxcpus=3,cores=3") as machine:
        slots = machine.execute("query-hotpluggable-cpus")
        assert [(slot["props"]["core-id"], slot.get("qom-path")) for slot in slots] == [
            (2, None),
            (1, "/machine/unattached/device[2]"),
            (0, "/machine/unattached/device[0]"),
        ]
        cpus = machine.execute("query-cpus")
        assert [(cpu["CPU"], cpu["current"], cpu["halted"], cpu["arch"]) for cpu in cpus] == [
            (0, True, False, "x86"),
            (1, False, True, "x86"),
        ]
        for number, error in (
            (1, "Unable to add CPU: 1, it already exists"),
            (3, "Unable to add CPU: 3, max allowed: 2"),
        ):
            assert machine.error("cpu-add", id=number) == error
        machine.execute("cpu-add", id=2)
        assert [cpu["CPU"] for cpu in machine.execute("query-cpus")] == [0, 1, 2]


def test_the_machine_that_is_none() -> None:
    with Machine("-machine", "none", base=("-nodefaults", "-display", "none", "-S")) as machine:
        assert machine.execute("query-cpus-fast") == []
        assert machine.execute("query-pci") == []
        assert machine.execute("query-memdev") == []
        assert machine.execute("query-memory-size-summary") == {"base-memory": 0, "plugged-memory": 0}
        assert machine.error("query-hotpluggable-cpus") == "The feature 'query-hotpluggable-cpus' is not enabled"
        assert machine.error("query-acpi-ospm-status") == "command is not supported, missing ACPI device"
        assert {item["name"] for item in machine.execute("qom-list", path="/")} == {
            "type", "machine", "objects", "chardevs",
        }  # fmt: skip
        assert machine.get("/machine", "type") == "none-machine"


def test_cpu_models() -> None:
    found = {item["name"]: item for item in shared().execute("query-cpu-definitions")}
    assert found["Nehalem"]["alias-of"] == "Nehalem-v1"
    assert found["Nehalem-IBRS"]["alias-of"] == "Nehalem-v2"
    assert "alias-of" not in found["Nehalem-v1"]
    assert found["base"]["static"]
    assert not found["max"]["migration-safe"]
    assert "spec-ctrl" in found["Nehalem-IBRS"]["unavailable-features"]
    assert found["host"]["unavailable-features"] == ["kvm"]


def test_expanding_a_cpu_model() -> None:
    def expand(kind: str, name: str, **props: Any) -> Any:
        return shared().execute("query-cpu-model-expansion", type=kind, model={"name": name, "props": props})["model"]

    static = expand("static", "Nehalem")
    assert static["name"] == "base"
    assert (static["props"]["sse4.2"], static["props"]["avx"], static["props"]["model"]) == (True, False, 26)
    full = expand("full", "Nehalem", popcnt=False, family=7)
    assert full["name"] == "Nehalem"
    assert (full["props"]["popcnt"], full["props"]["family"], full["props"]["xd"]) == (False, 7, True)
    assert set(static["props"]) < set(full["props"])
    assert expand("full", "qemu64", avx512f=True)["props"]["avx512f"] is False


@pytest.mark.parametrize(
    ("name", "props", "error"),
    [
        ("nope", {}, "CPU model 'nope' not found"),
        ("qemu64", {"zz": True}, "Property 'qemu64-x86_64-cpu.zz' not found"),
        ("qemu64", {"avx": 1}, "Invalid parameter type for 'avx', expected: boolean"),
        ("qemu64", {"family": "x"}, "Invalid parameter type for 'family', expected: integer"),
        ("qemu64", {"family": 1000}, "Property .family doesn't take value 1000 (minimum: 0, maximum: 270)"),
        ("qemu64", {"vendor": "x"}, "Property '.vendor' doesn't take value 'x'"),
        ("qemu64", {"vendor": 1}, "Invalid parameter type for 'vendor', expected: string"),
    ],
)
def test_cpu_models_that_cannot_be(name: str, props: dict[str, Any], error: str) -> None:
    model = {"name": name, "props": props}
    assert shared().error("query-cpu-model-expansion", type="full", model=model) == error


# ---- Memory


def test_memory() -> None:
    options = ["-object", "memory-backend-memfd,id=m,size=2M,merge=off", "-m", "16,slots=2,maxmem=64M"]
    with Machine(*options) as machine:
        found = {item["id"]: item for item in machine.execute("query-memdev")}
        assert found["m"] == {
            "id": "m", "size": 2 << 20, "merge": False, "dump": True, "prealloc": False, "share": True,
            "reserve": True, "host-nodes": [], "policy": "default",
        }  # fmt: skip
        assert found["pc.ram"]["size"] == 16 << 20
        assert machine.execute("query-memory-size-summary") == {"base-memory": 16 << 20, "plugged-memory": 0}
        assert machine.execute("query-memory-devices") == []
        assert [slot["slot"] for slot in machine.execute("query-acpi-ospm-status")] == ["0", "1"]
        assert machine.get("/machine", "memory") == {"size": 16 << 20, "max-size": 64 << 20, "slots": 2}
        assert machine.execute("query-cpus-fast")[0]["props"]["node-id"] == 0
        assert machine.execute("x-query-numa")["human-readable-text"].startswith("1 nodes\nnode 0 cpus: 0\n")


def test_the_name_of_the_main_memory_is_taken() -> None:
    with pytest.raises(ConfigError, match=r"object name 'pc.ram' is reserved for the default RAM backend"):
        Machine("-object", "memory-backend-ram,id=pc.ram,size=1M")


def test_how_fast_the_guest_writes() -> None:
    with Machine() as machine:
        assert machine.execute("query-dirty-rate") == {
            "status": "unstarted", "start-time": 0, "calc-time": 0, "sample-pages": 0, "mode": "page-sampling",
        }  # fmt: skip
        meter, memory = machine.pc.model.dirty_rate, machine.pc.memory
        for arguments, error in (
            ({"calc_time": 0}, "calc-time is out of range[1, 60]."),
            ({"calc_time": 61}, "calc-time is out of range[1, 60]."),
            ({"calc_time": 1, "sample_pages": 5}, "sample-pages is out of range[128, 16384]."),
            ({"calc_time": 1, "mode": "dirty-bitmap", "sample_pages": 512},
             "sample-pages is used only in page-sampling mode"),
            ({"calc_time": 1, "mode": "dirty-ring"},
             "dirty ring is disabled, use sample-pages method or remeasure later."),
        ):  # fmt: skip
            assert machine.error("calc-dirty-rate", **arguments) == error
        later: list[tuple[Any, ...]] = []
        meter._scheduler = _Now(later)
        machine.execute("calc-dirty-rate", calc_time=2, mode="dirty-bitmap")
        assert machine.execute("query-dirty-rate")["status"] == "measuring"
        assert machine.error("calc-dirty-rate", calc_time=1) == "the dirty rate is already being measured."
        memory.write(0x200000, b"\xff" * (8 << 20))
        ((seconds, callback, arguments_of_it),) = later
        assert seconds == 2
        callback(*arguments_of_it)
        info = machine.execute("query-dirty-rate")
        assert (info["status"], info["dirty-rate"], info["mode"]) == ("measured", 4, "dirty-bitmap")
        machine.execute("calc-dirty-rate", calc_time=1, sample_pages=16384)
        _, callback, arguments_of_it = later[-1]
        callback(*arguments_of_it)
        assert machine.execute("query-dirty-rate")["dirty-rate"] == 0


class _Now:
    """A scheduler that does at once what is to be done soon, and keeps what is to be done later."""

    def __init__(self, later: list[tuple[Any, ...]]) -> None:
        self._later = later

    def call_soon(self, callback: Any, *args: Any) -> None:
        callback(*args)

    def call_later(self, seconds: float, callback: Any, *args: Any) -> None:
        self._later.append((seconds, callback, args))


# ---- Before the machine is made


def test_waiting_to_be_made() -> None:
    with Machine("-preconfig", "-smp", "1,maxcpus=2") as machine:
        assert machine.execute("query-status")["status"] == "prelaunch"
        refused = "The command 'query-cpus-fast' is permitted only after machine initialization has completed"
        assert machine.error("query-cpus-fast") == refused
        assert all("qom-path" not in slot for slot in machine.execute("query-hotpluggable-cpus"))
        assert {item["name"] for item in machine.execute("qom-list", path="/machine")} >= {"kernel", "peripheral"}
        machine.ask("object-add", {"qom-type": "iothread", "id": "io"})
        assert machine.execute("query-memdev") == []
        with machine.pc.lock:
            assert machine.pc.model.finish() is None
        assert machine.execute("query-hotpluggable-cpus")[1]["qom-path"] == "/machine/unattached/device[0]"
        assert [item["id"] for item in machine.execute("query-memdev")] == ["pc.ram"]
        assert machine.execute("query-iothreads")[0]["id"] == "io"
        error = "The command is permitted only before the machine has been created"
        assert machine.error("set-numa-node", type="node") == error


def numa(machine: Machine, kind: str, **options: Any) -> str:
    """Describe NUMA; return what is wrong, or nothing."""
    arguments = {"type": kind, **{name.replace("_", "-"): value for name, value in options.items()}}
    reply = machine.ask("set-numa-node", arguments)
    return reply["error"]["desc"] if "error" in reply else ""


NODES = ("-object", "memory-backend-ram,id=m0,size=10M", "-object", "memory-backend-ram,id=m1,size=6M")


def test_numa_nodes() -> None:
    with Machine("-preconfig", "-smp", "2,maxcpus=4", *NODES) as machine:
        for kind, options, error in (
            ("node", {"nodeid": 128}, "Max number of NUMA nodes reached: 128"),
            ("node", {"memdev": "zz"}, "memdev=zz is ambiguous"),
            ("node", {"mem": 1 << 20}, "Parameter -numa node,mem is not supported by this machine type"),
            ("node", {"cpus": [9]}, "CPU index (9) should be smaller than maxcpus (4)"),
            ("node", {"nodeid": 0, "memdev": "m0"}, ""),
            ("node", {"nodeid": 0}, "Duplicate NUMA nodeid: 0"),
            ("node", {"memdev": "m1"}, ""),
            ("cpu", {"socket_id": 0}, "Missing mandatory node-id property"),
            ("cpu", {"node_id": 0, "socket_id": 7}, "no match found"),
            ("cpu", {"node_id": 0, "die_id": 0}, "die-id is not supported"),
            ("cpu", {"node_id": 1, "core_id": 1}, ""),
            ("cpu", {"node_id": 0, "core_id": 1}, "CPU is already assigned to node-id: 1"),
            ("cpu", {"node_id": 0, "core_id": 0}, ""),
            ("dist", {"src": 0, "dst": 1, "val": 5}, "NUMA distance (5) is invalid, it shouldn't be less than 10."),
            ("dist", {"src": 0, "dst": 0, "val": 11}, "Local distance of node 0 should be 10."),
            ("dist", {"src": 200, "dst": 0, "val": 11}, "Parameter 'src' expects an integer between 0 and 127"),
            ("dist", {"src": 0, "dst": 1, "val": 20}, ""),
        ):
            assert numa(machine, kind, **options) == error
        assert numa(machine, "cpu", node_id=5).startswith("Invalid node-id=5, NUMA node must be defined")
        assert numa(machine, "dist", src=0, dst=77, val=20).startswith("Source/Destination NUMA node is missing.")
        assert numa(machine, "node", initiator=0).startswith("ACPI Heterogeneous Memory Attribute Table (HMAT)")
        with machine.pc.lock:
            assert machine.pc.model.finish() is None
        assert [cpu["props"]["node-id"] for cpu in machine.execute("query-cpus-fast")] == [0, 1]
        assert {item["id"] for item in machine.execute("query-memdev")} == {"m0", "m1"}
        assert machine.execute("x-query-numa")["human-readable-text"] == (
            "2 nodes\nnode 0 cpus: 0\nnode 0 size: 10 MB\nnode 0 plugged: 0 MB\n"
            "node 1 cpus: 1\nnode 1 size: 6 MB\nnode 1 plugged: 0 MB\n"
        )
        info = machine.pc.tables.info.affinity
        assert info.cpus == ((0, 0), (1, 1), (2, 0), (3, 0))
        assert info.memory == ((0, 0xA0000, 0), (0xC0000, 0xA00000 - 0xC0000, 0), (0xA00000, 0x600000, 1))
        assert info.distances == ((10, 20), (20, 10))
        assert {"SRAT", "SLIT"} <= set(machine.pc.tables.acpi.offsets)
        # What the guest writes is in the memory of the nodes.
        machine.pc.memory.write(0x9FFFFE, b"edge")
        first, second = (machine.pc.model.objects.find(name) for name in ("m0", "m1"))
        assert (first.mapping[-2:], second.mapping[:2]) == (b"ed", b"ge")  # type: ignore[union-attr]
        machine.pc.memory.discard(0x9FF000, 0x2000)
        assert (first.mapping[-2:], second.mapping[:2]) == (bytes(2), bytes(2))  # type: ignore[union-attr]
        assert machine.error("object-del", id="m0") == "object 'm0' is in use, can not be deleted"


@pytest.mark.parametrize(
    ("nodes", "error"),
    [
        ([{}], "total memory for NUMA nodes (0x0) should equal RAM size (0x1000000)"),
        ([{"nodeid": 1}], "numa: Node ID missing: 0"),
        ([{"memdev": "m0"}, {"memdev": "m0"}], "memory backend m0 can't be used multiple times."),
    ],
)
def test_a_machine_that_cannot_be_made_ends(
    nodes: list[dict[str, Any]], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Machine("-preconfig", *NODES) as machine:
        for options in nodes:
            assert numa(machine, "node", **options) == ""
        with machine.pc.lock:
            assert machine.pc.model.finish() == error
        assert capsys.readouterr().err == f"pyvm: {error}\n"
        assert (machine.pc.lifecycle.ended, machine.pc.lifecycle.exit_status) == (True, 1)


def test_a_distance_that_is_missing() -> None:
    with Machine("-preconfig", *NODES) as machine:
        for options in ({"memdev": "m0"}, {"memdev": "m1"}, {}):
            assert numa(machine, "node", **options) == ""
        assert numa(machine, "dist", src=0, dst=1, val=20) == ""
        with machine.pc.lock:
            assert str(machine.pc.model.finish()).startswith("The distance between node 0 and 2 is missing")


def test_leaving_the_waiting_state_by_the_monitor() -> None:
    with Machine("-preconfig") as machine:
        machine.execute("x-exit-preconfig")
        assert machine.execute("query-cpus-fast")[0]["cpu-index"] == 0
        error = machine.error("x-exit-preconfig")
        assert error == "The command is permitted only before machine initialization"


# ---- PCI and virtio


def test_the_pci_bus() -> None:
    (bus,) = shared().execute("query-pci")
    devices = {(device["slot"], device["function"]): device for device in bus["devices"]}
    assert devices[0, 0]["class_info"] == {"class": 0x600, "desc": "Host bridge"}
    assert devices[0, 0]["regions"] == []
    assert devices[1, 1]["class_info"]["desc"] == "IDE controller"
    rng = devices[2, 0]
    assert rng["qdev_id"] == "r"
    assert rng["id"] == {"vendor": 0x1AF4, "device": 0x1005, "subsystem-vendor": 0x1AF4, "subsystem": 4}
    assert (rng["irq_pin"], rng["irq"]) == (1, 10)
    assert [(region["bar"], region["type"], region["size"]) for region in rng["regions"]] == [
        (0, "io", 32),
        (1, "memory", 4096),
        (4, "memory", 16384),
    ]
    assert rng["regions"][2]["prefetch"]
    assert rng["regions"][2]["mem_type_64"]


def test_virtio_devices() -> None:
    machine = shared()
    path = "/machine/peripheral/r/virtio-backend"
    assert {"path": path, "name": "virtio-rng"} in machine.execute("x-query-virtio")
    status = machine.execute("x-query-virtio-status", path=path)
    assert (status["name"], status["device-id"], status["num-vqs"], status["started"]) == ("virtio-rng", 4, 1, False)
    assert any(text.startswith("VIRTIO_F_VERSION_1:") for text in status["host-features"]["transports"])
    assert status["guest-features"] == {"transports": [], "dev-features": []}
    queue = machine.execute("x-query-virtio-queue-status", path=path, queue=0)
    assert (queue["queue-index"], queue["vring-num"], queue["vring-desc"], queue["inuse"]) == (0, 8, 0, 0)
    for command, arguments, error in (
        ("x-query-virtio-status", {"path": "/nope"}, "Path /nope is not a VirtIODevice"),
        ("x-query-virtio-queue-status", {"path": path, "queue": 1}, "Invalid virtqueue number 1"),
        ("x-query-virtio-queue-element", {"path": path, "queue": 0}, "Region caches not initialized"),
        ("x-query-virtio-vhost-queue-status", {"path": path, "queue": 0}, "Error: vhost device has not started yet"),
    ):
        assert machine.error(command, **arguments) == error


def test_a_request_in_a_queue() -> None:
    machine = shared()
    (device,) = (found for found in machine.pc.plugger.plugged.devices if found.config.id == "r")
    inner: Any = device.made.device  # type: ignore[attr-defined]
    memory = machine.pc.memory
    queue = inner.queues[0]
    queue.desc, queue.driver, queue.device = 0x200000, 0x201000, 0x202000
    memory.write(0x200000, (0x300000).to_bytes(8, "little") + b"\x40\0\0\0" + b"\1\0" + b"\2\0")
    memory.write(0x200020, (0x400000).to_bytes(8, "little") + b"\x20\0\0\0" + b"\2\0" + b"\0\0")
    memory.write(0x201000, b"\1\0" + b"\1\0" + b"\0\0")
    assert queue.enable()
    path = "/machine/peripheral/r/virtio-backend"
    element = machine.execute("x-query-virtio-queue-element", path=path, queue=0, index=0)
    assert element == {
        "name": "virtio-rng",
        "index": 0,
        "descs": [
            {"addr": 0x300000, "len": 0x40, "flags": ["next"]},
            {"addr": 0x400000, "len": 0x20, "flags": ["write"]},
        ],
        "avail": {"flags": 1, "idx": 1, "ring": 0},
        "used": {"flags": 0, "idx": 0},
    }
    assert machine.execute("x-query-virtio-queue-status", path=path, queue=0)["vring-desc"] == 0x200000
    queue.disable()


# ---- What there is not, and texts


@pytest.mark.parametrize(
    ("command", "arguments", "answer"),
    [
        ("query-vm-generation-id", {}, "VM Generation ID device not found"),
        ("query-sev-capabilities", {}, "KVM not enabled"),
        ("query-sev-launch-measure", {}, "SEV launch measurement is not available"),
        ("query-sev-attestation-report", {"mnonce": "x"}, "SEV is not enabled"),
        ("sev-inject-launch-secret", {"packet_header": "x", "secret": "y"}, "SEV not enabled for guest"),
        ("query-sgx", {}, "No EPC regions defined, SGX not available"),
        ("query-sgx-capabilities", {}, "SGX is not enabled in KVM"),
        ("query-rx-filter", {"name": "zz"}, "invalid net client name: zz"),
        ("dumpdtb", {"filename": "x"}, "This machine doesn't have a FDT"),
        ("x-query-usb", {}, "USB support not enabled"),
        ("x-query-profile", {}, "Internal profiler not compiled"),
        (
            "set-vcpu-dirty-limit",
            {"dirty_rate": 1},
            "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'",
        ),
    ],
)
def test_what_is_not_there(command: str, arguments: dict[str, Any], answer: str) -> None:
    assert shared().error(command, **arguments) == answer


def test_empty_answers() -> None:
    machine = shared()
    for command in ("query-rx-filter", "query-vcpu-dirty-limit", "query-stats-schemas", "query-acpi-ospm-status"):
        assert machine.execute(command) == []
    assert machine.execute("query-stats", target="vcpu") == []
    assert machine.execute("cancel-vcpu-dirty-limit") == {}
    assert machine.execute("query-sev")["enabled"] is False


def test_texts(tmp_path: Path) -> None:
    with Machine("-vga", "std") as machine:
        machine.pc.board.isa_irqs[4].driver().set(True)

        def text(command: str) -> str:
            return str(machine.execute(command)["human-readable-text"])

        assert text("x-query-irq").count(" 4: 1\n") == 2
        assert text("x-query-jit").startswith("Translation buffer state:\n")
        assert text("x-query-numa") == "0 nodes\n"
        assert text("x-query-ramblock").splitlines() == [
            "              Block Name    PSize              Offset               Used              Total",
            "                  pc.ram    4 KiB  0x0000000000000000 0x0000000001000000 0x0000000001000000",
            "                vga.vram    4 KiB  0x0000000001000000 0x0000000001000000 0x0000000001000000",
        ]
        assert "/rom@etc/acpi/tables size=0x" in text("x-query-roms")
        assert text("x-query-rdma") == ""
        assert machine.get("/backend/console[0]", "device") == "/machine/unattached/device[8]"
        assert machine.get("/machine/unattached/device[8]", "type") == "VGA"


def test_options_of_the_command_line() -> None:
    machine = shared()
    everything = {item["option"]: item["parameters"] for item in machine.execute("query-command-line-options")}
    assert {"machine", "memory", "smp-opts", "drive", "device", "object", "chardev", "mon"} <= set(everything)
    assert {"name": "maxmem", "type": "size"} in everything["memory"]
    assert everything["device"] == []
    (one,) = machine.execute("query-command-line-options", option="smp-opts")
    assert {item["name"] for item in one["parameters"]} == {
        "cpus", "maxcpus", "sockets", "dies", "clusters", "cores", "threads",
    }  # fmt: skip
    assert machine.error("query-command-line-options", option="zz") == "invalid option name: zz"


def test_each_listed_parameter_is_taken() -> None:
    from pyvm.commandline.board import _FIXED_PROPERTIES
    from pyvm.commandline.drives import _ALIASES, _OF_THE_DRIVE

    everything = {item["option"]: item["parameters"] for item in shared().execute("query-command-line-options")}
    for_nodes = {"node-name", "auto-read-only", "force-share"}
    assert {item["name"] for item in everything["drive"]} <= _OF_THE_DRIVE | set(_ALIASES) | for_nodes
    known = {"type", "accel", "kernel", "initrd", "append", "firmware", "kernel_irqchip"}
    of_others = {"loadparm", "iommu", "dt_compatible", "phandle_start", "dumpdtb", "dtb", "kvm_shadow_mem"}
    assert {item["name"] for item in everything["machine"]} <= known | of_others | set(_FIXED_PROPERTIES)


def test_the_parameters_of_limits_are_those_of_drives() -> None:
    from pyvm.block.limit_names import LIMIT_NAMES
    from pyvm.commandline.introspect import LIMIT_ORDER

    assert set(LIMIT_ORDER) == set(LIMIT_NAMES)
    assert len(LIMIT_ORDER) == len(LIMIT_NAMES)


def test_the_run_state_before_and_after(tmp_path: Path) -> None:
    with Machine("-preconfig") as machine:
        assert machine.pc.run_state is RunState.PRELAUNCH
        assert not machine.pc.initialized


# ---- New defaults for chips


def test_sleeping_states_can_be_left_out() -> None:
    with Machine("-global", "PIIX4_PM.disable_s3=1", "-global", "PIIX4_PM.s4_val=2") as machine:
        assert (machine.pc.tables.info.sleep_s3, machine.pc.tables.info.sleep_s4) == (False, True)
        path = machine.get("/machine", "acpi-device")
        assert (machine.get(path, "disable_s3"), machine.get(path, "disable_s4")) == (1, 0)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("PIIX4_PM.foo=1", "can't apply global PIIX4_PM.foo=1: Property 'PIIX4_PM.foo' not found"),
        ("PIIX4_PM.disable_s4=x", "can't apply global PIIX4_PM.disable_s4=x: Parameter 'disable_s4' expects a number"),
        (
            "hpet.timers=8",
            "can't apply global hpet.timers=8: timers=8 is not supported by pyvm yet (only '3')",
        ),
    ],
)
def test_chips_that_cannot_be_had(setting: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Machine("-global", setting)
    assert str(caught.value) == error


def test_a_default_for_what_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with Machine("-global", "nope.x=1"):
        assert capsys.readouterr().err == "pyvm: warning: global nope.x has invalid class name\n"


def test_paths_of_objects_that_have_no_drive() -> None:
    with Machine("-object", "iothread,id=io", "-device", "virtio-rng-pci,id=r") as machine:

        def complaint(path: str) -> str:
            error = machine.ask("block-latency-histogram-set", {"id": path})["error"]
            assert (error["class"] == "DeviceNotFound") == ("not found" in error["desc"])
            return str(error["desc"])

        for path in ("", "/", "/machine", "/objects/io"):
            assert complaint(path) == f"{path} is not a hotpluggable device"
        for path in ("machine", "/none"):
            assert complaint(path) == f"Device '{path}' not found"
        for path in ("r", "/machine/peripheral/r", "/machine/unattached/device[0]"):
            assert complaint(path) == "Device does not have a block device backend"
