"""NUMA nodes: which memory and CPUs are near to each other, and how far nodes are apart.

They are described before the machine is made (`set-numa-node`), checked when it is, and told to the guest in the ACPI
tables SRAT and SLIT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyvm.errors import ConfigError
from pyvm.firmware.affinity import Affinity
from pyvm.machine.memory_backends import MemoryBackend
from pyvm.monitor.errors import QmpError
from pyvm.records import field, record

if TYPE_CHECKING:
    from pyvm.config import MachineConfig
    from pyvm.machine.user_objects import UserObjects
    from pyvm.memory import RamBlock

MAX_NODES = 128
LOCAL_DISTANCE = 10
DEFAULT_DISTANCE = 20
_PLACE = ("socket-id", "core-id", "thread-id")
_UNSUPPORTED_PLACE = ("die-id", "cluster-id")
_NO_NODE = "Source/Destination NUMA node is missing. Please use '-numa node' option to declare it first."
_NO_HMAT = (
    "ACPI Heterogeneous Memory Attribute Table (HMAT) is disabled, enable it with -machine hmat=on before using any of"
    " hmat specific options"
)


@record
class Node:
    """One node; its memory is a backend of the user's."""

    memdev: str | None = None
    size: int = 0
    """Bytes of memory, known once the machine is made."""


@record
class Numa:
    """The nodes of a machine."""

    config: MachineConfig
    nodes: dict[int, Node] = field(default_factory=dict)
    cpus: dict[int, int] = field(default_factory=dict)
    """CPU index -> node."""
    distances: dict[tuple[int, int], int] = field(default_factory=dict)

    # ---- Describing

    def place_of(self, index: int) -> dict[str, int]:
        """Return where a CPU sits in sockets."""
        smp = self.config.smp
        core, thread = divmod(index, smp.threads)
        socket, core = divmod(core, smp.cores)
        return {"socket-id": socket, "core-id": core, "thread-id": thread}

    def node_of(self, index: int) -> int | None:
        """Return the node of a CPU, None where it is in none."""
        if not self.nodes:
            # Memory that can be plugged in belongs to a node, so there is one.
            return 0 if self.config.memory.slots else None
        return self.cpus.get(index)

    def add(self, kind: str, options: Mapping[str, Any], objects: UserObjects) -> None:
        """Take in one description: a node, a distance or where CPUs are.  Raises QmpError."""
        if self.config.board.type == "none":
            raise QmpError("NUMA is not supported by this machine-type")
        if kind == "node":
            memdev = options.get("memdev")
            if memdev is not None and objects.find(memdev) is None:
                raise QmpError(f"memdev={memdev} is ambiguous")
            self._add_node(options)
        elif kind == "cpu":
            self._add_cpus(options)
        elif kind == "dist":
            self._add_distance(options["src"], options["dst"], options["val"])
        else:
            raise QmpError(_NO_HMAT)

    def _add_node(self, options: Mapping[str, Any]) -> None:
        number = options.get("nodeid")
        if number is None:
            number = len(self.nodes)
        if number >= MAX_NODES:
            raise QmpError(f"Max number of NUMA nodes reached: {number}")
        if number in self.nodes:
            raise QmpError(f"Duplicate NUMA nodeid: {number}")
        if options.get("initiator") is not None:
            raise QmpError(_NO_HMAT)
        total = self.config.smp.max_cpus
        for index in options.get("cpus") or ():
            if index >= total:
                raise QmpError(f"CPU index ({index}) should be smaller than maxcpus ({total})")
        if options.get("mem") is not None:
            raise QmpError("Parameter -numa node,mem is not supported by this machine type")
        for index in options.get("cpus") or ():
            self._assign([index], number)
        self.nodes[number] = Node(options.get("memdev"))

    def _assign(self, indexes: Sequence[int], node: int) -> None:
        for index in indexes:
            if index in self.cpus:
                raise QmpError(f"CPU is already assigned to node-id: {self.cpus[index]}")
        self.cpus.update(dict.fromkeys(indexes, node))

    def _add_cpus(self, options: Mapping[str, Any]) -> None:
        node = options.get("node-id")
        if node is None:
            raise QmpError("Missing mandatory node-id property")
        if node not in self.nodes:
            raise QmpError(
                f"Invalid node-id={node}, NUMA node must be defined with -numa node,nodeid=ID before it's used with"
                " -numa cpu,node-id=ID"
            )
        for name in _UNSUPPORTED_PLACE:
            if options.get(name) is not None:
                raise QmpError(f"{name} is not supported")
        wanted = {name: options[name] for name in _PLACE if options.get(name) is not None}
        found = [index for index in range(self.config.smp.max_cpus) if wanted.items() <= self.place_of(index).items()]
        if not found:
            raise QmpError("no match found")
        self._assign(found, node)

    def _add_distance(self, source: int, target: int, distance: int) -> None:
        for name, node in (("src", source), ("dst", target)):
            if node >= MAX_NODES:
                raise QmpError(f"Parameter '{name}' expects an integer between 0 and {MAX_NODES - 1}")
        if source not in self.nodes or target not in self.nodes:
            raise QmpError(_NO_NODE)
        if distance < LOCAL_DISTANCE:
            raise QmpError(f"NUMA distance ({distance}) is invalid, it shouldn't be less than {LOCAL_DISTANCE}.")
        if source == target and distance != LOCAL_DISTANCE:
            raise QmpError(f"Local distance of node {source} should be {LOCAL_DISTANCE}.")
        self.distances[source, target] = distance

    # ---- Making the machine

    @property
    def has_memory(self) -> bool:
        """Whether any node has a memory backend of the user's."""
        return any(node.memdev is not None for node in self.nodes.values())

    def complete(self, objects: UserObjects) -> list[MemoryBackend]:
        """Check all nodes together; return the backends of their memory, in order.  Raises ConfigError."""
        if not self.nodes:
            return []
        for number in range(max(self.nodes)):
            if number not in self.nodes:
                raise ConfigError(f"numa: Node ID missing: {number}")
        backends = self._backends(objects)
        total, wanted = sum(backend.size for backend in backends), self.config.memory.size
        if total != wanted:
            raise ConfigError(f"total memory for NUMA nodes ({total:#x}) should equal RAM size ({wanted:#x})")
        self._complete_distances()
        self._complete_cpus()
        return backends

    def _backends(self, objects: UserObjects) -> list[MemoryBackend]:
        backends: list[MemoryBackend] = []
        for node in (self.nodes[number] for number in sorted(self.nodes)):
            if node.memdev is None:
                continue
            backend = objects.find(node.memdev)
            if not isinstance(backend, MemoryBackend):
                raise ConfigError(f"memory backend {node.memdev} does not exist")
            if backend in backends or backend.mapped:
                raise ConfigError(f"memory backend {node.memdev} can't be used multiple times.")
            node.size = backend.size
            backends.append(backend)
        return backends

    def _complete_distances(self) -> None:
        if not self.distances:
            return
        pairs = [(source, target) for source in self.nodes for target in self.nodes if source < target]
        for source, target in pairs:
            there, back = self.distances.get((source, target)), self.distances.get((target, source))
            if there is None and back is None:
                raise ConfigError(
                    f"The distance between node {source} and {target} is missing, at least one distance value between"
                    " each nodes should be provided."
                )
        asymmetric = any(
            self.distances.get(pair) is not None
            and self.distances.get(pair[::-1]) is not None
            and self.distances[pair] != self.distances[pair[::-1]]
            for pair in pairs
        )
        for source, target in pairs:
            for pair in ((source, target), (target, source)):
                if pair not in self.distances:
                    if asymmetric:
                        raise ConfigError(
                            "At least one asymmetrical pair of distances is given, please provide distances for both"
                            " directions of all node pairs."
                        )
                    self.distances[pair] = self.distances[pair[::-1]]

    def _complete_cpus(self) -> None:
        """Put the CPUs that nobody spoke of into a node: the first one, or by socket where nobody spoke of any."""
        indexes = range(self.config.smp.max_cpus)
        missing = [index for index in indexes if index not in self.cpus]
        if self.cpus and missing:
            names = ", ".join(
                f"CPU {index} [{', '.join(f'{name}: {value}' for name, value in self.place_of(index).items())}]"
                for index in missing
            )
            print(f"pyvm: warning: CPU(s) not present in any NUMA nodes: {names}", file=sys.stderr)
        by_socket = not self.cpus
        for index in missing:
            self.cpus[index] = self.place_of(index)["socket-id"] % len(self.nodes) if by_socket else 0

    def distance(self, source: int, target: int) -> int:
        """Return how far a node is from another."""
        if source == target:
            return LOCAL_DISTANCE
        return self.distances.get((source, target), DEFAULT_DISTANCE)

    def affinity(self, apic_ids: Sequence[int], blocks: Sequence[RamBlock]) -> Affinity:
        """Return the nodes as firmware tells the guest of them; `blocks` say where RAM is."""
        if not self.nodes:
            return Affinity()
        numbers = sorted(self.nodes)
        cpus = tuple((apic_id, self.cpus.get(index, 0)) for index, apic_id in enumerate(apic_ids))
        rows = tuple(tuple(self.distance(source, target) for target in numbers) for source in numbers)
        return Affinity(cpus, tuple(self._ranges(blocks)), rows if self.distances else ())

    def _ranges(self, blocks: Sequence[RamBlock]) -> Iterator[tuple[int, int, int]]:
        """Yield GPA, length and node of each range: nodes have RAM in the order of their numbers."""
        start = 0
        for number in sorted(self.nodes):
            end = start + self.nodes[number].size
            for block in blocks:
                low, high = max(start, block.offset), min(end, block.offset + block.size)
                if low < high:
                    yield block.gpa + low - block.offset, high - low, number
            start = end
