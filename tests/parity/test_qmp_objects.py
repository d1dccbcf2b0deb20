"""Objects, types, devices and CPU models: pyvm's answers beside those of a QEMU with the same command line.

pyvm runs in this process and QEMU beside it; neither runs its guest.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from pyvm.devices.properties import shown_kind
from pyvm.machine.plug.models import DEVICE_MODELS
from pyvm.qmp_client import QmpClient
from pyvm.qmp_client import QmpError as QemuError
from pyvm.qom.types import UNSET, load
from tests.system.machine_rig import Machine

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]

OPTIONS = (
    "-nodefaults", "-display", "none", "-S", "-M", "pc", "-m", "128", "-smp", "2,maxcpus=4",
    "-object", "iothread,id=io0", "-object", "secret,id=sec,data=123456", "-object", "rng-builtin,id=rng0",
    "-object", "memory-backend-memfd,id=mem,size=1M", "-object", "throttle-group,id=tg,x-iops-total=7",
    "-chardev", "null,id=c0", "-blockdev", "null-co,node-name=n",
    "-device", "virtio-scsi-pci,id=scsi0", "-device", "virtio-serial-pci,id=vs", "-device", "virtio-rng-pci,rng=rng0",
    "-device", "virtio-balloon-pci,id=bal", "-device", "virtserialport,id=port,bus=vs.0,nr=3,chardev=c0,name=a.b",
    "-device", "virtio-blk-pci,id=vb,drive=n,iothread=io0",
)  # fmt: skip


class Qemu:
    """QEMU, asked as the machine of this process is."""

    def __init__(self, *options: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            monitor = ("-chardev", f"socket,id=q,fd={theirs.fileno()}", "-mon", "chardev=q,mode=control")
            command = [QEMU or "", *options, *monitor]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        self._client = QmpClient(ours, timeout=120)

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Execute a command; return the reply without its identifier."""
        try:
            return {"return": self._client.execute(command, arguments or {})}
        except QemuError as error:
            return {"error": {"class": error.error_class, "desc": error.desc}}

    def close(self) -> None:
        """End it."""
        self._client.close()
        self._process.kill()
        self._process.wait()


OWN = "virtio-vsock"
"""What QEMU has only with the host's kernel behind it, and under another name."""
OTHER_DEFAULTS = {("pci-bridge", "shpc")}
"""What is on in QEMU and absent here: the bridge has no hot-plug controller."""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Machine, Qemu]]:
    qemu = Qemu(*OPTIONS)
    with Machine(*OPTIONS, base=()) as machine:
        yield machine, qemu
    qemu.close()


Conversation = tuple[str, dict[str, Any]]


def agree(pair: tuple[Machine, Qemu], conversation: list[Conversation]) -> None:
    """Say the same to both; the answers have to be the same."""
    machine, qemu = pair
    for command, arguments in conversation:
        assert machine.ask(command, arguments) == qemu.ask(command, arguments), (command, arguments)


OURS_DIFFER = {
    # Hardware that one of the two does not have, or has elsewhere.
    "vmport", "firmware", "memory", "smm-enabled", "smb_io_base", "pm_io_base", "svm", "ht", "cmp-legacy",
    "cmp_legacy", "filtered-features", "feature-words", "unavailable-features", "ucode-rev", "hv-vendor-id",
    # What time it is, and what is chosen when the guest first asks.
    "rtc-time", "date", "heads", "cyls", "secs",
}  # fmt: skip
"""Properties whose values are not the same."""
BAR = re.compile(r"/(virtio-pci|[a-z-]+-msix)\[\d\]/(addr|container)$")
"""Where a BAR is: pyvm's own firmware has placed it before the first instruction, QEMU's does so afterwards."""


def test_the_trees_have_the_same_paths_and_values(pair: tuple[Machine, Qemu]) -> None:
    machine, qemu = pair
    compared = 0

    def walk(path: str) -> None:
        nonlocal compared
        ours = {item["name"]: item["type"] for item in machine.ask("qom-list", {"path": path})["return"]}
        reply = qemu.ask("qom-list", {"path": path})
        assert "return" in reply, path
        theirs = {item["name"]: item["type"] for item in reply["return"]}
        for name, kind in ours.items():
            assert name in theirs, (path, name)
            if not name.startswith("child["):
                assert kind == theirs[name], (path, name)
            if kind.startswith("child<"):
                walk(f"{path.rstrip('/')}/{name}")
            elif name not in OURS_DIFFER and not name.startswith("child[") and not BAR.search(f"{path}/{name}"):
                arguments = {"path": path, "property": name}
                assert machine.ask("qom-get", arguments) == qemu.ask("qom-get", arguments), (path, name)
                compared += 1

    walk("/machine")
    walk("/objects")
    assert compared > 1200


def test_the_types_have_the_same_parents_and_properties(pair: tuple[Machine, Qemu]) -> None:
    _, qemu = pair
    theirs = {item["name"]: item for item in qemu.ask("qom-list-types", {"abstract": True})["return"]}
    for kind in load():
        if kind.name.startswith(OWN):
            continue
        assert kind.name in theirs, kind.name
        assert theirs[kind.name].get("abstract", False) == kind.abstract
        assert theirs[kind.name].get("parent") == (kind.parent.name if kind.parent else None)
        if kind.abstract or (kind.name.endswith("-cpu") and kind.name not in ("max-x86_64-cpu", "486-x86_64-cpu")):
            continue
        found = qemu.ask("qom-list-properties", {"typename": kind.name})["return"]
        known = {item["name"]: item for item in found}
        for name, item in kind.properties.items():
            if kind.name != "qemu-console":
                assert known[name]["type"] == item.kind, (kind.name, name)
                assert ("description" in known[name]) == (item.description is not None), (kind.name, name)
        missing = {name for name, item in known.items() if name not in kind.properties and "[" not in name}
        # Left out: old spellings, what only shows QEMU's memory regions and lines, and drives for firmware.
        assert not {name for name in missing if not name.startswith(("legacy-", "system.flash"))}, kind.name


def test_device_models_have_the_same_properties(pair: tuple[Machine, Qemu]) -> None:
    _, qemu = pair
    for name in DEVICE_MODELS:
        if name.startswith(OWN):
            continue
        theirs = {item["name"]: item for item in qemu.ask("device-list-properties", {"typename": name})["return"]}
        for item in load()[name].device_properties:
            assert theirs[item.name]["type"] == item.kind
            if (name, item.name) not in OTHER_DEFAULTS:
                assert theirs[item.name].get("default-value", UNSET) == item.default, (name, item.name)
        for key, own in DEVICE_MODELS[name].properties.items():
            if key in theirs:
                assert theirs[key]["type"] == shown_kind(own)


def test_cpu_models(pair: tuple[Machine, Qemu]) -> None:
    machine, qemu = pair
    ours = {item["name"]: item for item in machine.ask("query-cpu-definitions")["return"]}
    theirs = {item["name"]: item for item in qemu.ask("query-cpu-definitions")["return"]}
    assert list(ours) == list(theirs)
    for name, item in ours.items():
        for info in (item, theirs[name]):
            info.pop("unavailable-features")  # two translators
        assert item == theirs[name]
    for kind in ("static", "full"):
        for name in ("Nehalem", "EPYC", "486", "max"):
            arguments = {"type": kind, "model": {"name": name}}
            found, expected = (it.ask("query-cpu-model-expansion", arguments)["return"] for it in (machine, qemu))
            assert set(found["model"]["props"]) == set(expected["model"]["props"])
            assert found["model"]["name"] == expected["model"]["name"]
            for key in ("family", "model", "stepping", "vendor", "model-id", "min-xlevel", "sse2"):
                assert found["model"]["props"][key] == expected["model"]["props"][key], (name, key)


def device(driver: Any, **properties: Any) -> Conversation:
    return "device_add", {"driver": driver, **{name.replace("_", "-"): value for name, value in properties.items()}}


def an_object(kind: str, identifier: str, **properties: Any) -> Conversation:
    given = {name.replace("_", "-"): value for name, value in properties.items()}
    return "object-add", {"qom-type": kind, "id": identifier, **given}


def test_mistakes_with_devices(pair: tuple[Machine, Qemu]) -> None:
    agree(pair, [
        ("device_add", {"id": "x"}),
        device("nope"), device(5), device("iothread"), device("device"), device("VGA"), device("PIIX4_PM"),
        device("i8042"), device("isa-serial"), device("floppy"), device("virtio-rng-device"), device("virtio-pci"),
        device("virtio-rng-pci", id="a/b"), device("virtio-rng-pci", id=""), device("virtio-rng-pci", id="vs"),
        device("virtio-rng-pci", foo=1), device("virtio-rng-pci", bus="zz"), device("virtio-rng-pci", bus="isa.0"),
        device("isa-serial", bus="pci.0"), device("virtio-rng-pci", addr="99"), device("virtio-rng-pci", rng="zz"),
        device("virtio-rng-pci", multifunction=1), device("virtio-rng-pci", addr="1f", vectors="x"),
        device("virtio-blk-pci"), device("virtio-blk-pci", drive="zz"), device("ide-hd", bus="ide.0"),
        device("ide-hd", bus="ide.9"), device("virtserialport", bus="zz"), device("virtserialport", nr=3),
        device("virtserialport", chardev="zz"), device("virtserialport", chardev="c0"),
        device("qemu64-x86_64-cpu"), device("max-x86_64-cpu"), device("qemu64-x86_64-cpu", socket_id=9),
        device("qemu64-x86_64-cpu", socket_id="x"), device("qemu64-x86_64-cpu", zz=1),
        device("qemu64-x86_64-cpu", socket_id=0, core_id=0, thread_id=0),
        device("qemu64-x86_64-cpu", socket_id=0, core_id=0, thread_id=4),
        ("device_del", {"id": "zz"}), ("device_del", {"id": "/machine"}), ("device_del", {"id": "/objects/io0"}),
        ("device_del", {"id": "/machine/i440fx"}), ("device_del", {"id": "/machine/unattached/device[5]"}),
        ("device-list-properties", {"typename": "zz"}), ("device-list-properties", {"typename": "device"}),
        ("qom-list-properties", {"typename": "zz"}),
    ])  # fmt: skip


def test_mistakes_with_objects(pair: tuple[Machine, Qemu]) -> None:
    agree(pair, [
        an_object("iothread", "io0"), an_object("iothread", "bad id"), an_object("nope", "x"),
        an_object("iothread", "x", foo=1), an_object("iothread", "x", poll_max_ns=-1),
        an_object("iothread", "x", thread_pool_max=0), an_object("iothread", "x", poll_grow="a"),
        an_object("secret", "x"), an_object("secret", "x", data="!", format="base64"),
        an_object("memory-backend-ram", "x"), an_object("memory-backend-ram", "x", size=0),
        an_object("memory-backend-ram", "x", size=4096, policy="bind"),
        an_object("memory-backend-ram", "x", size=4096, host_nodes=[0]),
        an_object("memory-backend-ram", "x", size=4096, policy="bind", host_nodes=[500]),
        an_object("memory-backend-ram", "x", size=4096, prealloc=True, reserve=False),
        an_object("memory-backend-file", "x", size=4096, mem_path="/nonexistent/x"),
        an_object("memory-backend-file", "x", size=4096, mem_path="/dev/null", align=3),
        an_object("rng-random", "x", filename="/none"), an_object("rng-egd", "x", chardev="zz"),
        an_object("rng-random", "x", opened=True), an_object("throttle-group", "x", x_iops_total=-1),
        an_object("throttle-group", "x", limits={"iops-total": 1, "iops-read": 1}),
        an_object("tls-creds-psk", "x"), an_object("tls-creds-x509", "x", dir="/none", endpoint="server"),
        an_object("authz-listfile", "x", filename="/none"), an_object("pef-guest", "x"),
        ("object-del", {"id": "zz"}), ("object-del", {"id": "pc.ram"}),
        ("qom-set", {"path": "/objects/io0", "property": "poll-max-ns", "value": "x"}),
        ("qom-set", {"path": "/objects/io0", "property": "poll-max-ns", "value": -1}),
        ("qom-set", {"path": "/objects/io0", "property": "nope", "value": 1}),
        ("qom-set", {"path": "/objects/io0", "property": "type", "value": "x"}),
        ("qom-set", {"path": "/objects/mem", "property": "size", "value": 5}),
        ("qom-set", {"path": "/objects/mem", "property": "policy", "value": "x"}),
        ("qom-set", {"path": "/objects/tg", "property": "x-iops-total", "value": 1}),
        ("qom-set", {"path": "/objects/tg", "property": "limits", "value": {"iops-total": -1}}),
        ("qom-set", {"path": "/machine/peripheral/vs", "property": "addr", "value": 1}),
        ("qom-set", {"path": "/machine/i440fx", "property": "pci.0", "value": "x"}),
        ("qom-set", {"path": "/machine/i440fx", "property": "hotplugged", "value": True}),
        ("qom-get", {"path": "", "property": "type"}), ("qom-get", {"path": "/nope", "property": "type"}),
        ("qom-get", {"path": "io0", "property": "type"}), ("qom-get", {"path": "pc.ram", "property": "size"}),
        ("qom-get", {"path": "/machine/unattached/device[0]", "property": "crash-information"}),
    ])  # fmt: skip


def test_queries(pair: tuple[Machine, Qemu]) -> None:
    agree(pair, [
        ("query-hotpluggable-cpus", {}), ("query-memory-size-summary", {}), ("query-memory-devices", {}),
        ("query-memdev", {}), ("query-acpi-ospm-status", {}), ("query-current-machine", {}), ("query-balloon", {}),
        ("query-sev", {}), ("query-sev-capabilities", {}), ("query-sev-launch-measure", {}), ("query-sgx", {}),
        ("query-sgx-capabilities", {}), ("query-vm-generation-id", {}), ("query-stats", {"target": "vm"}),
        ("query-stats-schemas", {}), ("query-rx-filter", {}), ("query-rx-filter", {"name": "zz"}),
        ("query-dirty-rate", {}), ("query-vcpu-dirty-limit", {}), ("x-query-virtio", {}),
        ("x-query-virtio-status", {"path": "/nope"}), ("x-query-usb", {}), ("x-query-numa", {}),
        ("set-numa-node", {"type": "node"}), ("x-exit-preconfig", {}), ("dumpdtb", {"filename": "x"}),
        ("query-cpu-model-expansion", {"type": "full", "model": {"name": "zz"}}),
        ("query-cpu-model-expansion", {"type": "full", "model": {"name": "qemu64", "props": {"avx": 1}}}),
        ("query-cpu-model-expansion", {"type": "full", "model": {"name": "qemu64", "props": {"zz": 1}}}),
        ("query-cpu-model-expansion", {"type": "full", "model": {"name": "qemu64", "props": {"family": 999}}}),
        ("query-cpu-model-expansion", {"type": "full", "model": {"name": "qemu64", "props": {"vendor": "x"}}}),
        ("x-query-virtio-queue-status", {"path": "/machine/peripheral/vb/virtio-backend", "queue": 7}),
        ("x-query-virtio-queue-element", {"path": "/machine/peripheral/vb/virtio-backend", "queue": 0}),
    ])  # fmt: skip


def test_numa() -> None:
    options = (
        *("-nodefaults", "-display", "none", "-S", "-M", "pc", "-m", "128", "-smp", "2,maxcpus=4", "-preconfig"),
        *("-object", "memory-backend-ram,id=m0,size=64M", "-object", "memory-backend-ram,id=m1,size=64M"),
    )
    qemu = Qemu(*options)
    with Machine(*options, base=()) as machine:
        said: list[dict[str, Any]] = [
            {"type": "zz"},
            {"type": "node", "nodeid": 200},
            {"type": "node", "nodeid": 0, "memdev": "m0"},
            {"type": "node", "nodeid": 0, "memdev": "m0"},
            {"type": "node", "memdev": "m1"},
            {"type": "cpu", "node-id": 0, "socket-id": 7},
            {"type": "cpu", "node-id": 7},
            {"type": "cpu", "socket-id": 0},
            {"type": "cpu", "node-id": 0, "die-id": 0},
            {"type": "cpu", "node-id": 1, "core-id": 1},
            {"type": "cpu", "node-id": 0, "core-id": 1},
            {"type": "cpu", "node-id": 0, "core-id": 0},
            {"type": "cpu", "node-id": 0, "core-id": 2},
            {"type": "cpu", "node-id": 1, "core-id": 3},
            {"type": "dist", "src": 0, "dst": 1, "val": 5},
            {"type": "dist", "src": 0, "dst": 0, "val": 11},
            {"type": "dist", "src": 0, "dst": 77, "val": 20},
            {"type": "dist", "src": 0, "dst": 1, "val": 20},
            {"type": "hmat-cache", "node-id": 0, "size": 1, "level": 1, "associativity": "none", "policy": "none",
             "line": 1},
        ]  # fmt: skip
        agree((machine, qemu), [("set-numa-node", arguments) for arguments in said])
        agree((machine, qemu), [("query-hotpluggable-cpus", {}), ("query-status", {}), ("query-cpus-fast", {})])
        for it in (machine, qemu):
            assert it.ask("x-exit-preconfig") == {"return": {}}
        agree((machine, qemu), [("query-hotpluggable-cpus", {}), ("query-memdev", {}), ("x-query-numa", {})])
    qemu.close()
