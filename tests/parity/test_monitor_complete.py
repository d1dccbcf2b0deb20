"""What the monitor has, beside a QEMU: the schema, what may be asked before the machine is made, options, and HMP.

pyvm runs in this process and QEMU beside it; neither runs its guest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from pyvm.monitor.schema.introspect import introspect
from pyvm.monitor.schema.model import load
from tests.parity.test_qmp_objects import Qemu
from tests.system.machine_rig import Machine

QEMU = shutil.which("qemu-system-x86_64")

pytestmark = [pytest.mark.parity, pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")]

BASE = ("-nodefaults", "-display", "none", "-S", "-M", "pc", "-m", "128", "-smp", "1,maxcpus=2")
OLDER = {
    "block_passwd", "change", "cpu-add", "migrate-set-cache-size", "migrate_set_downtime", "migrate_set_speed",
    "query-cpus", "query-events", "query-migrate-cache-size", "x-blockdev-reopen",
}  # fmt: skip
"""Commands that QEMU had until some version before 7.2, and that pyvm has for clients of that time."""

Info = dict[str, Any]


# ---- The schema


class Comparison:
    """Two answers to `query-qmp-schema`, compared without looking at the numbers that hide the names of types."""

    def __init__(self, ours: list[Info], theirs: list[Info]) -> None:
        self._ours, self._theirs = self._index(ours), self._index(theirs)
        self._seen: set[tuple[str, str]] = set()
        self.differences: list[str] = []

    @staticmethod
    def _index(infos: list[Info]) -> dict[tuple[str, str], Info]:
        """Return all by whether they are commands, events or types, and name."""
        kinds = {"command": "command", "event": "event"}
        return {(kinds.get(info["meta-type"], "type"), info["name"]): info for info in infos}

    def run(self) -> list[str]:
        for key in sorted({*self._ours, *self._theirs}):
            if key[0] == "type":
                continue
            ours, theirs = self._ours.get(key), self._theirs.get(key)
            if ours is None or theirs is None:
                self.differences.append(f"{'only pyvm' if theirs is None else 'only QEMU'}: {key[0]} {key[1]}")
                continue
            self._same(ours, theirs, key[1], "features", "allow-oob")
            self._types(ours["arg-type"], theirs["arg-type"], f"{key[1]}()")
            if key[0] == "command":
                self._types(ours["ret-type"], theirs["ret-type"], f"{key[1]} ->")
        return self.differences

    def _same(self, ours: Info, theirs: Info, path: str, *names: str) -> None:
        for name in names:
            if ours.get(name) != theirs.get(name):
                self.differences.append(f"{path}: {name} {ours.get(name)} {theirs.get(name)}")

    def _types(self, our_name: str, their_name: str, path: str) -> None:
        if (our_name, their_name) in self._seen:
            return
        self._seen.add((our_name, their_name))
        ours, theirs = self._ours["type", our_name], self._theirs["type", their_name]
        self._same(ours, theirs, path, "meta-type", "features", "tag", "json-type")
        if ours["meta-type"] == theirs["meta-type"]:
            getattr(self, f"_{ours['meta-type']}")(ours, theirs, path)

    def _builtin(self, ours: Info, theirs: Info, path: str) -> None:
        self._same(ours, theirs, path, "name")

    def _array(self, ours: Info, theirs: Info, path: str) -> None:
        self._types(ours["element-type"], theirs["element-type"], f"{path}[]")

    def _enum(self, ours: Info, theirs: Info, path: str) -> None:
        for name, mine, other in self._pairs(ours["members"], theirs["members"], "name", path):
            self._same(mine, other, f"{path}={name}", "features")
        assert set(theirs["values"]) == {member["name"] for member in theirs["members"]}

    def _alternate(self, ours: Info, theirs: Info, path: str) -> None:
        mine = {self._json_type(self._ours, member["type"]): member["type"] for member in ours["members"]}
        other = {self._json_type(self._theirs, member["type"]): member["type"] for member in theirs["members"]}
        if set(mine) != set(other):
            self.differences.append(f"{path}: branches {sorted(mine)} {sorted(other)}")
        for kind in set(mine) & set(other):
            self._types(mine[kind], other[kind], f"{path}<{kind}>")

    @staticmethod
    def _json_type(index: dict[tuple[str, str], Info], name: str) -> str:
        info = index["type", name]
        return str(info.get("json-type", info["meta-type"]))

    def _object(self, ours: Info, theirs: Info, path: str) -> None:
        for name, mine, other in self._pairs(ours["members"], theirs["members"], "name", path):
            self._same(mine, other, f"{path}.{name}", "features", "default")
            self._types(mine["type"], other["type"], f"{path}.{name}")
        for case, mine, other in self._pairs(ours.get("variants", []), theirs.get("variants", []), "case", path):
            self._types(mine["type"], other["type"], f"{path}({case})")

    def _pairs(self, ours: list[Info], theirs: list[Info], key: str, path: str) -> Iterator[tuple[str, Info, Info]]:
        """Yield what both have by its name; what only one of them has is a difference."""
        mine, other = {item[key]: item for item in ours}, {item[key]: item for item in theirs}
        for name in sorted(set(mine) ^ set(other)):
            self.differences.append(f"{path}: {'only pyvm' if name in mine else 'only QEMU'}: {name}")
        for name in sorted(set(mine) & set(other)):
            yield name, mine[name], other[name]


@pytest.fixture(scope="module")
def qemu() -> Iterator[Qemu]:
    started = Qemu(*BASE)
    yield started
    started.close()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(*BASE, base=()) as made:
        yield made


def test_the_schema_is_the_same(qemu: Qemu) -> None:
    theirs = qemu.ask("query-qmp-schema")["return"]
    found = Comparison(introspect(load()), theirs).run()
    assert [
        difference for difference in found if difference not in {f"only pyvm: command {name}" for name in OLDER}
    ] == []


def test_the_comparison_sees_differences() -> None:
    ours = introspect(load())
    theirs = json.loads(json.dumps(ours))
    assert Comparison(ours, theirs).run() == []
    by_name = {info["name"]: info for info in theirs}
    by_name["query-status"]["features"] = ["deprecated"]
    member = next(info for info in theirs if any(m["name"] == "singlestep" for m in info.get("members", [])))
    member["members"] = [m for m in member["members"] if m["name"] != "singlestep"]
    found = Comparison(ours, theirs).run()
    assert "query-status: features None ['deprecated']" in found
    assert "query-status ->: only pyvm: singlestep" in found


# ---- Before the machine is made

ENDS = {"quit", "x-exit-preconfig"}


def test_the_same_commands_may_be_executed_before_the_machine_is_made() -> None:
    waiting = Qemu(*BASE, "-preconfig")
    try:
        names = {info["name"] for info in waiting.ask("query-commands")["return"]}
        refused = {
            name
            for name in names - ENDS
            if "permitted only after" in waiting.ask(name).get("error", {}).get("desc", "")
        }
    finally:
        waiting.close()
    schema = load()
    ours = {name for name in schema.command_names if not getattr(schema.command(name), "preconfig", False)}
    assert ours - OLDER == refused


# ---- Options


def plain(infos: list[Info]) -> dict[str, list[Info]]:
    """Return parameters by option, without the words of their help."""
    return {info["option"]: [{**item, "help": "help" in item} for item in info["parameters"]] for info in infos}


def test_options_have_the_same_parameters(machine: Machine, qemu: Qemu) -> None:
    ours = plain(machine.ask("query-command-line-options")["return"])
    theirs = plain(qemu.ask("query-command-line-options")["return"])
    assert ours == {name: theirs[name] for name in ours}
    assert [name for name in theirs if name in ours] == list(ours)


# ---- Migration, exports and others while nothing runs

CONVERSATION: list[tuple[str, dict[str, Any]]] = [
    ("query-migrate", {}),
    ("query-migrate-capabilities", {}),
    ("query-migrate-parameters", {}),
    ("migrate_cancel", {}),
    ("migrate-continue", {"state": "device"}),
    ("migrate-start-postcopy", {}),
    ("migrate-pause", {}),
    ("migrate-recover", {"uri": "x"}),
    ("migrate-incoming", {"uri": "x"}),
    ("migrate", {}),
    ("client_migrate_info", {"protocol": "spice", "hostname": "h"}),
    ("client_migrate_info", {"protocol": "zz", "hostname": "h"}),
    ("query-colo-status", {}),
    ("x-colo-lost-heartbeat", {}),
    ("query-spice", {}),
    ("query-display-options", {}),
    ("query-block-exports", {}),
    ("block-export-del", {"id": "x"}),
    ("block-export-add", {"type": "nbd", "id": "1 ", "node-name": "zz"}),
    ("block-export-add", {"type": "nbd", "id": "e", "node-name": "zz"}),
    ("nbd-server-add", {"device": "zz"}),
    ("nbd-server-remove", {"name": "zz"}),
    ("nbd-server-stop", {}),
    ("xen-load-devices-state", {"filename": "/none/x"}),
    *(
        ("migrate-set-parameters", {name: value})
        for name in ("compress-level", "announce-step", "xbzrle-cache-size", "max-cpu-throttle", "multifd-zlib-level")
        for value in (-1, 0, 10, 99, 100, 256, 4096, 1 << 32)
    ),
    ("migrate-set-parameters", {"tls-creds": None, "downtime-limit": 2000001}),
    ("migrate-set-parameters", {"block-bitmap-mapping": [{"node-name": "a", "alias": "1", "bitmaps": []}]}),
    ("query-migrate-parameters", {}),
]


@pytest.mark.parametrize("number", range(len(CONVERSATION)))
def test_answers_while_nothing_runs(machine: Machine, qemu: Qemu, number: int) -> None:
    command, arguments = CONVERSATION[number]
    assert machine.ask(command, arguments) == qemu.ask(command, arguments)


def test_capabilities_two_at_a_time(machine: Machine, qemu: Qemu) -> None:
    names = [item["capability"] for item in qemu.ask("query-migrate-capabilities")["return"]]
    off = {"capabilities": [{"capability": name, "state": False} for name in names]}
    for first in names:
        for second in names:
            pair = {"capabilities": [{"capability": name, "state": True} for name in (first, second)]}
            assert machine.ask("migrate-set-capabilities", pair) == qemu.ask("migrate-set-capabilities", pair), pair
            for each in (machine, qemu):
                each.ask("migrate-set-capabilities", off)


# ---- HMP

LINES = """
info mem
info tlb
info capture
info hotpluggable-cpus
info memdev
info memory-devices
info memory_size_summary
info numa
info opcount
info profile
info rdma
info sev
info sgx
info stats vm
info stats zz
info usb
info virtio
info virtio-status /x
info virtio-queue-status /x 0
info virtio-queue-element /x 0
info virtio-vhost-queue-status /x 0
info vm-generation-id
info block-jobs
info spice
info migrate
info migrate_capabilities
info migrate_parameters
info vcpu_dirty_limit
device_add
device_add zz
device_add virtio-rng-pci,zz=1
device_del zz
object_add rng-random,help
object_add rng-builtin,id=rng0
object_add rng-builtin,id=rng0
object_add rng-builtin
object_add zz,id=a
object_del rng0
object_del rng0
qom-list
qom-list /objects
qom-list /zz
qom-get /machine type
qom-get /machine boot
qom-get /machine zz
qom-set /objects/pc.ram share off
qom-set /objects/pc.ram dump zz
qom-set -j /objects/pc.ram dump "true"
qom-set -j /objects/pc.ram dump {
x /4xw 0x10000
xp /4xb 0x10000
xp /2xg 0x10000
xp /20xb 0x10000
xp /6dg 0x10000
xp /6oh 0x10000
xp /6uw 0x10000
xp /6cb 0x10000
xp 0xffffff00000
xp /3sw 0
xp /0xb 0
xp /3i 0x10000
gva2gpa 0x1234
migrate_set_parameter max-bandwidth zz
migrate_set_parameter compress-level 10
migrate_set_parameter multifd-compression zz
migrate_set_parameter block-incremental zz
migrate_set_capability zz on
migrate_continue zz
migrate_pause
client_migrate_info vnc h
nbd_server_stop
nbd_server_start zz
block_job_cancel zz
block_job_pause zz
block_stream zz
drive_mirror zz /none/x
snapshot_blkdev zz
snapshot_blkdev_internal zz a
calc_dirty_rate 0
cancel_vcpu_dirty_limit
dumpdtb /none/x
exit_preconfig
stopcapture 0
pcie_aer_inject_error zz 1
wavcapture /none/x zz
chardev-add wctablet,id=w
chardev-add spicevmc,id=s
chardev-add spicevmc,id=s,name=zz
chardev-add spiceport,id=p,name=a.b
chardev-add qemu-vdagent,id=v
info mice
chardev-remove w
chardev-remove v
""".strip().splitlines()


@pytest.mark.parametrize("line", LINES)
def test_lines_of_the_human_monitor(machine: Machine, qemu: Qemu, line: str) -> None:
    arguments = {"command-line": line}
    assert machine.ask("human-monitor-command", arguments) == qemu.ask("human-monitor-command", arguments)


def test_there_are_all_commands_but_few(machine: Machine, qemu: Qemu) -> None:
    missing = {"commit", "gpa2hpa", "gpa2hva", "mce"}
    missing_subjects = {"sync-profile"}

    def names(each: Machine | Qemu, line: str) -> set[str]:
        text = each.ask("human-monitor-command", {"command-line": line})["return"]
        return {
            row.split(" ")[0]
            for row in text.replace("\r", "").removeprefix("info ").split("\ninfo " if "info" in line else "\n")
            if row[:1].isalpha()
        }

    assert names(qemu, "help") - names(machine, "help") <= missing | {"sync-profile"}
    assert names(qemu, "help info") - names(machine, "help info") <= missing_subjects
    assert names(machine, "help") <= names(qemu, "help")
    assert names(machine, "help info") <= names(qemu, "help info") | {"jobs"}
