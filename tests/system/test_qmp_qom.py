"""Commands about the object model, on a real machine: its tree, and objects that users create."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine_rig import Machine, shared

CHIPS = {
    "device[0]": "qemu64-x86_64-cpu",
    "device[2]": "i440FX",
    "device[3]": "PIIX3",
    "device[4]": "i8257",
    "device[5]": "i8257",
    "device[6]": "isa-i8259",
    "device[7]": "isa-i8259",
    "device[8]": "hpet",
    "device[9]": "mc146818rtc",
    "device[10]": "isa-pit",
    "device[12]": "isa-fdc",
    "device[13]": "i8042",
    "device[16]": "port92",
    "device[17]": "piix3-ide",
    "device[18]": "PIIX4_PM",
}
"""Where QEMU's `pc -nodefaults` has them."""


def children(machine: Machine, path: str) -> dict[str, str]:
    properties = machine.execute("qom-list", path=path)
    return {item["name"]: item["type"][6:-1] for item in properties if item["type"].startswith("child<")}


def test_the_tree_of_a_machine() -> None:
    machine = shared()
    assert set(children(machine, "/")) == {"machine", "objects", "chardevs"}
    assert children(machine, "/machine/unattached") == {
        **CHIPS,
        "sysbus": "System",
        **dict.fromkeys(("system[0]", "io[0]", "pci[0]"), "memory-region"),
    }
    assert children(machine, "/machine/i440fx") == {"pci.0": "PCI", "ioapic": "ioapic"}
    assert children(machine, "/machine/peripheral-anon") == {}
    assert machine.get("/machine", "rtc_state") == "/machine/unattached/device[9]"
    assert machine.get("/machine", "acpi-device") == "/machine/unattached/device[18]"
    assert machine.get("/machine/i440fx/pci.0", "hotplug-handler") == "/machine/unattached/device[18]"
    assert machine.get("/machine/unattached/device[8]", "type") == "hpet"
    assert machine.get("pc.ram", "size") == 16 << 20


def test_the_machine_itself() -> None:
    with Machine("-smp", "3,maxcpus=4,cores=2,threads=2", "-boot", "order=c,strict=on") as machine:
        assert machine.get("/machine", "type") == "pc-i440fx-7.2-machine"
        assert machine.get("/machine", "memory") == {"size": 16 << 20}
        assert machine.get("/machine", "boot") == {"order": "c", "strict": True}
        smp = {"cpus": 3, "maxcpus": 4, "sockets": 1, "dies": 1, "clusters": 1, "cores": 2, "threads": 2}
        assert machine.get("/machine", "smp") == smp
        time = machine.get("/machine", "rtc-time")
        assert (time["tm_year"] > 100, 0 <= time["tm_mon"] < 12, 0 < time["tm_mday"] < 32) == (True, True, True)
        assert children(machine, "/machine/unattached")["device[3]"] == "qemu64-x86_64-cpu"
        assert machine.execute("query-cpus-fast")[2]["qom-path"] == "/machine/unattached/device[3]"


def test_a_cpu() -> None:
    machine = shared()
    path = "/machine/unattached/device[0]"
    found = {name: machine.get(path, name) for name in ("family", "sse2", "sse3", "avx512f", "socket-id", "realized")}
    assert found == {"family": 15, "sse2": True, "sse3": True, "avx512f": False, "socket-id": 0, "realized": True}
    assert machine.get(path, "lapic") == f"{path}/lapic"
    assert machine.get(path, "unavailable-features") == machine.pc.cpus.model.missing
    words = {
        (word["cpuid-register"], word["cpuid-input-eax"]): word["features"]
        for word in machine.get(path, "feature-words")
    }
    assert words["EDX", 1] & (1 << 26)  # SSE2
    assert all(word["features"] == 0 for word in machine.get(path, "filtered-features") if word["cpuid-input-eax"] == 1)
    assert machine.error("qom-get", path=path, property="crash-information") == "No crash occurred"


def test_a_plugged_device_and_what_it_brings_along() -> None:
    machine = shared()
    path = "/machine/peripheral/r"
    found = children(machine, path)
    regions = {name for name, kind in found.items() if kind == "memory-region"}
    assert {name: kind for name, kind in found.items() if name not in regions} == {
        "virtio-backend": "virtio-rng-device",
        "virtio-bus": "virtio-pci-bus",
    }
    parts = {f"virtio-pci-{part}-virtio-rng[0]" for part in ("common", "isr", "device", "notify", "notify-pio")}
    assert regions == parts | {
        "bus master container[0]", "bus master[0]", "virtio-pci[0]", "virtio-pci[1]", "virtio-rng-pci-msix[0]",
        "msix-table[0]", "msix-pba[0]",
    }  # fmt: skip
    assert machine.get(path, "parent_bus") == "/machine/i440fx/pci.0"
    assert (machine.get(path, "addr"), machine.get(path, "legacy-addr")) == (16, "02.0")
    assert machine.get(f"{path}/virtio-backend", "parent_bus") == f"{path}/virtio-bus"
    assert machine.get(f"{path}/virtio-backend", "rng") == f"{path}/virtio-backend/default-backend"
    assert machine.get(f"{path}/virtio-bus", "child[0]") == f"{path}/virtio-backend"
    assert children(machine, "/machine/peripheral/vs/virtio-backend") == {"vs.0": "virtio-serial-bus"}
    for name, addr, size, container in (
        ("bus master[0]", 0, 2**64 - 1, "/bus master container[0]"),
        ("virtio-pci-notify-virtio-rng[0]", 0x3000, 0x1000, "/virtio-pci[0]"),
        ("msix-pba[0]", 0x800, 8, "/virtio-rng-pci-msix[0]"),
    ):
        region = [machine.get(f"{path}/{name}", it) for it in ("addr", "size", "priority", "container")]
        assert region == [addr, size, 0, path + container]
    (bar,) = [it for it in machine.execute("query-pci")[0]["devices"] if it["qdev_id"] == "r"]
    where = {it["bar"]: it["address"] for it in bar["regions"]}
    assert machine.get(f"{path}/virtio-pci[0]", "addr") == max(where[4], 0)
    assert machine.get(f"{path}/virtio-pci[1]", "container") == "/machine/unattached/io[0]"
    for name, value in (
        ("period", 65536),
        ("rombar", 1),
        ("romfile", ""),
        ("hotplugged", False),
        ("hotpluggable", True),
    ):
        assert machine.get(path, name) == value


def test_every_property_of_every_object_can_be_looked_at() -> None:
    machine = shared()
    seen = 0

    def walk(path: str) -> None:
        nonlocal seen
        for item in machine.execute("qom-list", path=path):
            reply = machine.ask("qom-get", {"path": path, "property": item["name"]})
            seen += 1
            if "error" in reply:
                own = f"Property '{machine.get(path, 'type')}.{item['name']}' is not readable"
                legacy = item["name"].startswith("legacy-")
                assert reply["error"]["desc"] == (own if legacy else "No crash occurred")
            elif item["type"].startswith("child<"):
                assert reply["return"] == f"{path.rstrip('/')}/{item['name']}"
                walk(reply["return"])
            elif item["type"].startswith("link<") and reply["return"]:
                machine.execute("qom-list", path=reply["return"])

    walk("/")
    assert seen > 700


@pytest.mark.parametrize(
    ("path", "name", "value", "error"),
    [
        ("/nope", "a", 1, "DeviceNotFound: Device '/nope' not found"),
        ("/objects/io0", "nope", 1, "Property 'iothread.nope' not found"),
        ("/objects/io0", "type", "x", "Property 'iothread.type' is not writable"),
        ("/objects/io0", "poll-max-ns", "x", "Invalid parameter type for 'poll-max-ns', expected: integer"),
        ("/objects/io0", "poll-max-ns", -1, "poll-max-ns value must be in range [0, 9223372036854775807]"),
        ("/objects/io0", "thread-pool-min", 100, "bad thread-pool-min/thread-pool-max values"),
        ("/objects/pc.ram", "size", 5, "cannot change property size of memory-backend-ram "),
        ("/objects/pc.ram", "policy", "x", "Parameter 'policy' does not accept value 'x'"),
        ("/machine", "type", "x", "Property 'pc-i440fx-7.2-machine.type' is not writable"),
        ("/machine/i440fx", "pci.0", "x", "Property 'i440FX-pcihost.pci.0' is not writable"),
        ("/machine/peripheral/r", "parent_bus", "x", "Property 'virtio-rng-pci.parent_bus' is not writable"),
        (
            "/machine/peripheral/r",
            "addr",
            3,
            "Attempt to set property 'addr' on device 'r' (type 'virtio-rng-pci') after it was realized",
        ),
        (
            "/machine/unattached/device[9]",
            "irq",
            3,
            "Attempt to set property 'irq' on anonymous device (type 'mc146818rtc') after it was realized",
        ),
    ],
)
def test_what_cannot_be_set(path: str, name: str, value: Any, error: str) -> None:
    assert shared().error("qom-set", path=path, property=name, value=value) == error


def test_setting_properties() -> None:
    machine = shared()
    machine.execute("qom-set", path="/objects/io0", property="poll-max-ns", value=5000)
    assert machine.get("/objects/io0", "poll-max-ns") == 5000
    assert machine.execute("query-iothreads")[0]["poll-max-ns"] == 5000
    machine.execute("qom-set", path="/machine/peripheral/r", property="realized", value=True)
    for value in (False, True):
        machine.execute("qom-set", path="/objects/pc.ram", property="merge", value=value)
        assert machine.get("/objects/pc.ram", "merge") is value


def test_the_balloon_can_be_polled() -> None:
    with Machine("-device", "virtio-balloon-pci,id=b") as machine:
        for path in ("/machine/peripheral/b", "/machine/peripheral/b/virtio-backend"):
            machine.execute("qom-set", path=path, property="guest-stats-polling-interval", value=3)
            assert machine.get("/machine/peripheral/b", "guest-stats-polling-interval") == 3
            stats = machine.get(path, "guest-stats")
            assert stats["last-update"] == 0
            assert stats["stats"]["stat-free-memory"] == (1 << 64) - 1
            error = machine.error("qom-set", path=path, property="guest-stats-polling-interval", value=-1)
            assert error == "timer value must be greater than zero"


# ---- Types


def test_types() -> None:
    machine = shared()
    plain = machine.execute("qom-list-types", implements="virtio-device")
    assert {"name": "virtio-rng-device", "parent": "virtio-device"} in plain
    assert all("abstract" not in item for item in plain)
    everything = machine.execute("qom-list-types", abstract=True)
    assert {"name": "virtio-device", "parent": "device", "abstract": True} in everything
    assert machine.execute("qom-list-types", implements="nope") == []
    assert machine.execute("qom-list-types", implements="") == []
    for typename, wanted in (
        ("max-x86_64-cpu", {"legacy-memory": "str", "legacy-cache": "bool"}),
        ("virtio-rng-device", {"legacy-rng": "str"}),
        ("virtio-rng-pci", {"legacy-addr": "str", "virtio-backend": "child<virtio-rng-device>"}),
        ("virtio-rng-pci-base", {"legacy-addr": "str"}),
    ):
        kinds = {item["name"]: item["type"] for item in machine.execute("qom-list-properties", typename=typename)}
        assert {name: kind for name, kind in kinds.items() if name.startswith(("legacy", "virtio-back"))} == wanted
        if not typename.endswith("base"):
            names = {item["name"] for item in machine.execute("device-list-properties", typename=typename)}
            assert not [name for name in names if name.startswith("legacy")]
    found = {item["name"]: item for item in machine.execute("qom-list-properties", typename="iothread")}
    assert set(found) == {
        "type", "aio-max-batch", "thread-pool-min", "thread-pool-max", "poll-max-ns", "poll-grow", "poll-shrink",
    }  # fmt: skip
    assert machine.error("qom-list-properties", typename="nope") == "DeviceNotFound: Class 'nope' not found"
    assert machine.error("qom-list", path="") == "Path '' is ambiguous"


# ---- Objects


@pytest.fixture
def machine() -> Any:
    with Machine() as made:
        yield made


def add(machine: Machine, kind: str, identifier: str, **properties: Any) -> str:
    """Create an object; return what is wrong, or nothing."""
    arguments = {"qom-type": kind, "id": identifier, **{k.replace("_", "-"): v for k, v in properties.items()}}
    reply = machine.ask("object-add", arguments)
    return reply["error"]["desc"] if "error" in reply else ""


def test_creating_and_deleting_objects(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "rules").write_text('{"policy": "allow"}')
    wanted: dict[str, dict[str, Any]] = {
        "iothread": {"poll-max-ns": 1},
        "secret": {"data": "123456"},
        "memory-backend-ram": {"size": 1 << 20},
        "memory-backend-memfd": {"size": 1 << 20},
        "memory-backend-file": {"size": 1 << 20, "mem-path": str(tmp_path / "memory")},
        "rng-random": {"filename": "/dev/urandom"},
        "rng-builtin": {},
        "throttle-group": {"limits": {"iops-total": 5}},
        "authz-simple": {"identity": "me"},
        "authz-list": {"rules": [{"match": "a*", "format": "glob", "policy": "allow"}]},
        "can-bus": {},
        "cryptodev-backend": {"queues": 2},
        "cryptodev-backend-builtin": {},
        "sev-guest": {"reduced-phys-bits": 1, "policy": 5},
        "tls-creds-anon": {"endpoint": "server"},
    }
    for number, (kind, properties) in enumerate(wanted.items()):
        assert add(machine, kind, f"o{number}", **properties) == ""
        assert machine.get(f"/objects/o{number}", "type") == kind
        for name, value in properties.items():
            if name not in ("limits", "rules"):
                assert machine.get(f"/objects/o{number}", name) == value
    assert machine.get("/objects/o7", "limits")["iops-total"] == 5
    assert machine.get("/objects/o7", "x-iops-total") == 5
    for number in range(len(wanted)):
        machine.execute("object-del", id=f"o{number}")
    assert set(children(machine, "/objects")) == {"pc.ram"}
    assert machine.pc.storage.iothreads == {}
    assert "o1" not in machine.pc.storage.graph.secrets


@pytest.mark.parametrize(
    ("kind", "properties", "error"),
    [
        ("nope", {}, "Parameter 'qom-type' does not accept value 'nope'"),
        ("iothread", {"foo": 1}, "Parameter 'foo' is unexpected"),
        ("iothread", {"poll_max_ns": -1}, "poll-max-ns value must be in range [0, 9223372036854775807]"),
        ("iothread", {"thread_pool_max": 0}, "bad thread-pool-min/thread-pool-max values"),
        ("cryptodev-vhost-user", {"chardev": "x"}, "invalid object type: cryptodev-vhost-user"),
        ("cryptodev-backend-builtin", {"queues": 2}, "Only support one queue in cryptdov-builtin backend"),
        ("cryptodev-backend", {"queues": 0}, "Property 'cryptodev-backend.queues' doesn't take value '0'"),
        ("authz-listfile", {"filename": "x"}, "invalid object type: authz-listfile"),
        ("secret", {}, "Either 'file' or 'data' must be provided"),
        ("secret", {"data": "!", "format": "base64"}, "Base64 data contains invalid characters"),
        ("memory-backend-ram", {}, "Parameter 'size' is missing"),
        ("memory-backend-ram", {"size": 0}, "property 'size' of memory-backend-ram doesn't take value '0'"),
        ("rng-egd", {"chardev": "zz"}, "Device 'zz' not found"),
        ("rng-random", {"filename": "/none"}, "Could not open '/none': No such file or directory"),
        ("rng-random", {"opened": True}, "Property 'rng-random.opened' is not writable"),
        ("tls-creds-psk", {}, "Missing 'dir' property value"),
        (
            "tls-creds-x509",
            {"dir": "/none", "endpoint": "server"},
            "Unable to access credentials /none/ca-cert.pem: No such file or directory",
        ),
        ("throttle-group", {"x_iops_total": -1}, "Property values cannot be negative"),
        (
            "throttle-group",
            {"limits": {"iops-total": 1, "iops-read": 1}},
            "bps/iops/max total values and read/write values cannot be used at the same time",
        ),
        ("secret_keyring", {"serial": 1}, "Unable to read serial key 00000001: Required key not available"),
    ],
)
def test_objects_that_cannot_be_created(kind: str, properties: dict[str, Any], error: str) -> None:
    found = add(shared(), kind, "bad", **properties)
    if kind == "secret_keyring":  # what the kernel says depends on how it was built
        assert found.startswith("Unable to read serial key 00000001: ")
    else:
        assert found == error
    assert "bad" not in children(shared(), "/objects")


def test_identifiers(machine: Machine) -> None:
    assert add(machine, "iothread", "bad id") == "Parameter 'id' expects an identifier"
    assert add(machine, "iothread", "io") == ""
    assert add(machine, "iothread", "io") == "attempt to add duplicate property 'io' to object (type 'container')"
    assert machine.error("object-del", id="zz") == "object 'zz' not found"


def test_objects_in_use_stay() -> None:
    node = "throttle,throttle-group=tg,file=n,node-name=t"
    options = ["-blockdev", "null-co,node-name=n,size=1048576", "-blockdev", node]
    with Machine("-object", "throttle-group,id=tg", "-object", "iothread,id=io", "-object", "rng-builtin,id=rng",
                 *options, "-device", "virtio-blk-pci,drive=t,iothread=io",
                 "-device", "virtio-rng-pci,rng=rng") as machine:  # fmt: skip
        for name in ("pc.ram", "tg"):
            assert machine.error("object-del", id=name) == f"object '{name}' is in use, can not be deleted"
        assert add(machine, "main-loop", "loop") == ""
        assert machine.error("object-del", id="loop") == "object 'loop' is in use, can not be deleted"
        # These go, and who has them keeps them.
        machine.execute("object-del", id="io")
        machine.execute("object-del", id="rng")
        assert machine.execute("query-iothreads") == []
        (rng,) = (device for device in machine.pc.plugger.plugged.devices if device.model.name == "virtio-rng-pci")
        assert rng.entropy is not None
        assert len(rng.entropy.read(8)) == 8


def test_changing_limits(machine: Machine) -> None:
    assert add(machine, "throttle-group", "tg", limits={"iops-total": 5}) == ""
    path = "/objects/tg"
    machine.execute("qom-set", path=path, property="limits", value={"bps-read": 7})
    assert (machine.get(path, "x-bps-read"), machine.get(path, "x-iops-total")) == (7, 5)
    error = machine.error("qom-set", path=path, property="x-bps-read", value=1)
    assert error == "Property cannot be set after initialization"
    error = machine.error("qom-set", path=path, property="limits", value={"iops-read": 1})
    assert error.startswith("bps/iops/max total values")


def test_random_bytes_from_a_daemon() -> None:
    with Machine("-chardev", "ringbuf,id=c,size=64", "-object", "rng-egd,id=e,chardev=c",
                 "-device", "virtio-rng-pci,rng=e") as machine:  # fmt: skip
        (device,) = machine.pc.plugger.plugged.devices
        assert device.entropy is not None
        assert device.entropy.read(300) == b""
        chardev = machine.pc.chardev_set.find("c")
        assert chardev is not None
        # Read with blocking: 255 bytes, then what is left.
        assert machine.execute("ringbuf-read", device="c", size=4, format="base64") == "Av8CLQ=="
        frontend = chardev.frontend
        assert frontend is not None
        assert frontend.can_receive() == 300
        frontend.receive(bytes(range(100)))
        assert device.entropy.read(300) == bytes(range(100))
        assert machine.error("object-del", id="zz") == "object 'zz' not found"
        assert add(machine, "rng-egd", "f", chardev="c") == "Device 'c' is in use"


def test_memory_in_a_file_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    backend = f"memory-backend-file,id=ram,size=16M,share=on,mem-path={path}"
    with Machine("-object", backend, "-machine", "memory-backend=ram") as machine:
        machine.pc.memory.write(0x200000, b"hello")
        assert os.path.getsize(path) == 16 << 20
        with path.open("rb") as file:
            file.seek(0x200000)
            assert file.read(5) == b"hello"
        assert machine.get("/machine", "memory-backend") == "/objects/ram"
        assert [item["id"] for item in machine.execute("query-memdev")] == ["ram"]
        assert machine.error("object-del", id="ram") == "object 'ram' is in use, can not be deleted"


def test_private_memory_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"\xee" * (16 << 20))
    backend = f"memory-backend-file,id=ram,size=16M,mem-path={path}"
    with Machine("-object", backend, "-machine", "memory-backend=ram") as machine:
        memory = machine.pc.memory
        assert memory.read(0x300000, 4) == b"\xee" * 4
        memory.write(0x200000, b"hello")
        memory.discard(0x200000, 4096)
        assert memory.read(0x200000, 5) == bytes(5)
    assert path.read_bytes() == b"\xee" * (16 << 20)
