"""NUMA nodes of the command line.  The complaints are QEMU 7.2's."""

from __future__ import annotations

import pytest

from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.machine.pc import Pc
from tests.system.machine_rig import Machine

TWO = (
    *("-object", "memory-backend-ram,id=m0,size=8M", "-object", "memory-backend-ram,id=m1,size=8M"),
    *("-smp", "2,maxcpus=2,sockets=1,cores=2"),
)


def options(*texts: str) -> list[str]:
    return [*TWO, *(word for text in texts for word in ("-numa", text))]


def hmp(machine: Machine, line: str) -> str:
    text: str = machine.execute("human-monitor-command", command_line=line)
    return text.replace("\r\n", "\n")


def test_nodes_have_memory_and_cpus() -> None:
    with Machine(
        *options("node,memdev=m0,cpus=1", "node,nodeid=1,memdev=m1,cpus=0", "dist,src=0,dst=1,val=31")
    ) as made:
        assert hmp(made, "info numa") == (
            "2 nodes\nnode 0 cpus: 1\nnode 0 size: 8 MB\nnode 0 plugged: 0 MB\n"
            "node 1 cpus: 0\nnode 1 size: 8 MB\nnode 1 plugged: 0 MB\n"
        )
        places = made.execute("query-hotpluggable-cpus")
        assert {(place["props"]["core-id"], place["props"]["node-id"]) for place in places} == {(0, 1), (1, 0)}
        assert made.pc.model.numa.distance(1, 0) == 31
        assert b"SRAT" in b"".join(made.pc.tables.fw_cfg_files().values())
        assert b"SLIT" in b"".join(made.pc.tables.fw_cfg_files().values())


def test_cpus_can_be_placed_by_what_they_are() -> None:
    nodes = ("node,memdev=m0", "node,memdev=m1", "cpu,node-id=0,core-id=1", "cpu,node-id=1,core-id=0")
    with Machine(*options(*nodes)) as made:
        assert [made.pc.model.numa.node_of(index) for index in range(2)] == [1, 0]


def test_lists_and_ranges() -> None:
    (first, second) = parse_arguments(options("node,memdev=m0,cpus=0,cpus=1", "node,cpus=3-5")).numa
    assert first.options == {"type": "node", "memdev": "m0", "cpus": [0, 1]}
    assert second.options == {"type": "node", "cpus": [3, 4, 5]}
    (typed,) = parse_arguments(["-numa", '{"type": "dist", "src": 0, "dst": 1, "val": 20}']).numa
    assert typed.options == {"type": "dist", "src": 0, "dst": 1, "val": 20}


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        (["zz"], "-numa zz: Parameter 'type' does not accept value 'zz'"),
        (["memdev=m0"], "-numa memdev=m0: Parameter 'type' is missing"),
        (["node,zz=1"], "-numa node,zz=1: Invalid parameter 'zz'"),
        (["node,cpus=x"], "-numa node,cpus=x: Parameter 'cpus' expects a uint64 value or range"),
        (["node,cpus=1-0"], "-numa node,cpus=1-0: Parameter 'cpus' expects a uint64 value or range"),
        (["node,nodeid=x"], "-numa node,nodeid=x: Parameter 'nodeid' expects a uint64 value"),
        (["dist,src=0,dst=1"], "-numa dist,src=0,dst=1: Parameter 'val' is missing"),
        (["dist,src=0,dst=1,val=300"], "-numa dist,src=0,dst=1,val=300: Parameter 'val' expects uint8_t"),
        (["node"], "total memory for NUMA nodes (0x0) should equal RAM size (0x1000000)"),
        (["node,memdev=zz"], "-numa node,memdev=zz: memdev=zz is ambiguous"),
        (["node,nodeid=200"], "-numa node,nodeid=200: Max number of NUMA nodes reached: 200"),
        (["node,nodeid=1", "node,nodeid=1"], "-numa node,nodeid=1: Duplicate NUMA nodeid: 1"),
        (["node,memdev=m0,cpus=9"], "-numa node,memdev=m0,cpus=9: CPU index (9) should be smaller than maxcpus (2)"),
        (["cpu,socket-id=0"], "-numa cpu,socket-id=0: Missing mandatory node-id property"),
    ],
)
def test_mistakes(texts: list[str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pc(parse_arguments(["-nodefaults", "-display", "none", "-S", "-m", "16", *options(*texts)]))
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-M", "none", "-numa", "node"], "-numa node: NUMA is not supported by this machine-type"),
        (
            [*TWO, "-m", "8", "-machine", "memory-backend=m0", "-numa", "node,memdev=m0"],
            "'-machine memory-backend' and '-numa memdev' properties are mutually exclusive",
        ),
    ],
)
def test_machines_that_cannot_have_nodes(words: list[str], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pc(parse_arguments(["-nodefaults", "-display", "none", "-S", *words]))
    assert str(caught.value) == error
