"""Any sequence of commands of the block layer: each succeeds or is refused, and nothing is left open in the end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.block_rig import SIZE, Device, Disks

NODES = st.sampled_from(["a", "b", "c", "a-file", "b-file", "cor", "new", "zz"])
DEVICES = st.sampled_from(["dev-cd", "dev-fd", "dev-h", "dev-a", "zz"])
DRIVES = st.sampled_from(["cd", "fd", "h", "zz"])
FLAG = st.booleans()


def command(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(name), st.fixed_dictionaries({key.replace("_", "-"): it for key, it in arguments.items()}))


def options(driver: str, **rest: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    members = {"driver": st.just(driver), "node-name": NODES, "read-only": FLAG}
    return st.fixed_dictionaries({**members, **{key.replace("_", "-"): it for key, it in rest.items()}})


TREES = st.one_of(
    options("null-co"),
    options("raw", file=NODES),
    options("copy-on-read", file=NODES),
    options("qcow2", file=NODES, backing=st.none() | NODES),
    options("raw", file=NODES, offset=st.sampled_from([0, 512, 2 * SIZE])),
)
HUMAN = st.one_of(
    st.builds("drive_del {}".format, st.one_of(DRIVES, NODES)),
    st.builds("eject -f {}".format, DRIVES),
    st.builds('qemu-io {} "write 0 {}"'.format, st.one_of(DRIVES, NODES), st.sampled_from(["512", "64k", "2M"])),
    st.builds("block_resize {} {}".format, DRIVES, st.sampled_from(["1", "3", "512b"])),
)
QUERIES = ("query-block", "query-blockstats", "query-named-block-nodes", "x-debug-query-block-graph")
COMMANDS = st.one_of(
    TREES.map(lambda tree: ("blockdev-add", tree)),
    st.lists(TREES, max_size=2).map(lambda trees: ("blockdev-reopen", {"options": trees})),
    command("blockdev-del", node_name=NODES),
    command("blockdev-open-tray", id=DEVICES, force=FLAG),
    command("blockdev-close-tray", id=DEVICES),
    command("blockdev-remove-medium", id=DEVICES),
    command("blockdev-insert-medium", id=DEVICES, node_name=NODES),
    command("eject", device=DRIVES, force=FLAG),
    command("blockdev-snapshot", node=NODES, overlay=NODES),
    command("change-backing-file", device=NODES, image_node_name=NODES, backing_file=st.just("x")),
    command("block_resize", node_name=NODES, size=st.sampled_from([-1, 0, 512, 513, SIZE, 2 * SIZE])),
    command("block-set-write-threshold", node_name=NODES, write_threshold=st.integers(0, 2 * SIZE)),
    command("block-latency-histogram-set", id=DEVICES, boundaries=st.lists(st.integers(0, 100), max_size=3)),
    command("x-blockdev-set-iothread", node_name=NODES, iothread=st.sampled_from([None, "io0", "zz"]), force=FLAG),
    HUMAN.map(lambda line: ("human-monitor-command", {"command-line": line})),
    st.sampled_from([(name, {}) for name in QUERIES]),
)


def prepare(disks: Disks) -> None:
    base = disks.qcow2("base.qcow2")
    disks.add("a", disks.qcow2("a.qcow2", base), "qcow2")
    disks.add("b", disks.qcow2("b.qcow2"), "qcow2")
    disks.node_disk("a", Device(), "dev-a")
    disks.drive("cd", disks.raw("cd.iso"), Device(tray=True), readonly=True)
    disks.drive("fd", "", Device())
    disks.drive("h", disks.raw("h.img"), Device())


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(COMMANDS, max_size=25))
def test_any_sequence(capfd: pytest.CaptureFixture[str], commands: list[tuple[str, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        disks = Disks(Path(folder))
        prepare(disks)
        for name, arguments in commands:
            *_, reply = disks.client.ask({"execute": name, "arguments": arguments})
            text = reply["error"]["desc"] if "error" in reply else str(reply["return"])
            assert "Internal error" not in text, (name, arguments)
        disks.storage.drain()
        disks.run("x-debug-query-block-graph")
        disks.close()
    capfd.readouterr()
