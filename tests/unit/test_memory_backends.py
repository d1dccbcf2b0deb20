"""Memory backends: what they are made of, what cannot be had, and how they become guest RAM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyvm.machine.memory_backends import JoinedMemory, MemoryBackend
from pyvm.machine.user_objects import ObjectHost
from pyvm.memory import GuestMemory, RamBlock
from pyvm.monitor.errors import QmpError

MIB = 1 << 20
RAM, FILE, MEMFD = "memory-backend-ram", "memory-backend-file", "memory-backend-memfd"


def make(kind: str, **properties: Any) -> MemoryBackend:
    given = {name.replace("_", "-"): value for name, value in {"size": MIB, **properties}.items()}
    return MemoryBackend(ObjectHost(default_threads=2), kind, "m", given)


def refusal(kind: str, **properties: Any) -> str:
    with pytest.raises(QmpError) as caught:
        make(kind, **properties)
    return caught.value.description


@pytest.mark.parametrize("kind", [RAM, MEMFD])
def test_anonymous_memory(kind: str) -> None:
    backend = make(kind)
    assert (backend.size, backend.get("prealloc-threads"), backend.private) == (MIB, 2, False)
    assert backend.get("share") is (kind == MEMFD)
    backend.mapping[:4] = b"abcd"
    assert os.pread(backend.fd, 4, 0) == b"abcd"
    backend.discard(0, 4096)
    assert backend.mapping[:4] == bytes(4)
    backend.close()


def test_a_sealed_memfd_keeps_its_size() -> None:
    backend = make(MEMFD)
    with pytest.raises(PermissionError):
        os.ftruncate(backend.fd, 2 * MIB)
    backend.close()
    loose = make(MEMFD, seal=False)
    os.ftruncate(loose.fd, 2 * MIB)
    loose.close()


def test_a_file_is_made_or_used(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    shared = make(FILE, mem_path=str(path), share=True)
    shared.mapping[:4] = b"abcd"
    shared.close()
    assert path.stat().st_size == MIB
    private = make(FILE, mem_path=str(path))
    assert private.mapping[:4] == b"abcd"
    private.mapping[:4] = b"wxyz"
    private.discard(0, 4096)
    assert private.mapping[:4] == bytes(4)
    private.close()
    assert path.read_bytes()[:4] == b"abcd"
    in_folder = make(FILE, mem_path=str(tmp_path))
    assert os.listdir(tmp_path) == ["memory"]
    in_folder.close()
    only_read = make(FILE, mem_path=str(path), share=True, readonly=True)
    with pytest.raises(TypeError):
        only_read.mapping[:1] = b"x"
    only_read.close()


def test_memory_is_taken_at_once() -> None:
    backend = make(RAM, prealloc=True)
    assert os.fstat(backend.fd).st_blocks * 512 == MIB
    backend.close()
    later = make(RAM)
    assert os.fstat(later.fd).st_blocks == 0
    later.put("prealloc", True)
    assert later.get("prealloc") is True
    assert os.fstat(later.fd).st_blocks * 512 == MIB
    later.close()


@pytest.mark.parametrize(
    ("kind", "properties", "error"),
    [
        (RAM, {"size": 0}, "property 'size' of memory-backend-ram doesn't take value '0'"),
        (RAM, {"prealloc_threads": 0}, "property 'prealloc-threads' of memory-backend-ram doesn't take value '0'"),
        (RAM, {"prealloc_context": "x"}, "Device 'x' not found"),
        (RAM, {"prealloc": True, "reserve": False}, "'prealloc=on' and 'reserve=off' are incompatible"),
        (RAM, {"policy": "bind"}, "host-nodes must be set for policy bind"),
        (
            RAM,
            {"host_nodes": [0]},
            "host-nodes must be empty for policy default, or you should explicitly specify a policy other than default",
        ),
        (RAM, {"host_nodes": [128], "policy": "bind"}, "Invalid host-nodes value: 128"),
        (MEMFD, {"hugetlb": True, "hugetlbsize": 3 * MIB}, "Hugepage size must be a power of 2"),
        (
            FILE,
            {"mem_path": "/nonexistent/x"},
            "can't open backing store /nonexistent/x for guest RAM: No such file or directory",
        ),
        (FILE, {"mem_path": "/dev/null", "align": 3}, "alignment 0x3 must be multiples of page size 0x1000"),
    ],
)
def test_what_cannot_be_had(kind: str, properties: dict[str, Any], error: str) -> None:
    assert refusal(kind, **properties) == error


def test_more_refusals(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(MIB // 2))
    assert refusal(FILE, mem_path=str(path)) == "backing store size 0x80000 does not match 'size' option 0x100000"
    assert refusal(RAM, size=1 << 62).startswith("cannot set up guest memory 'm': ")
    assert refusal(FILE, mem_path=str(path), pmem=True).startswith("Lack of libpmem support")
    assert refusal(FILE, mem_path="/dev/null").startswith("cannot set up guest memory 'm': ")


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    refusal(RAM, size=1 << 62)
    refusal(FILE, mem_path="/dev/null")
    refusal(RAM, host_nodes=[127], policy="bind")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_can_be_changed() -> None:
    backend = make(RAM)
    for name in ("merge", "dump"):
        for value in (False, True):
            backend.put(name, value)
            assert backend.get(name) is value
    with pytest.raises(QmpError, match="cannot change property size of memory-backend-ram "):
        backend.put("size", 5)
    backend.close()


def test_memory_of_several_backends(tmp_path: Path) -> None:
    path = tmp_path / "second"
    first, second = make(RAM), make(FILE, mem_path=str(path))
    memory = GuestMemory(2 * MIB, [RamBlock(0, 2 * MIB, 0)])
    joined = JoinedMemory([first, second], memory.mapping)
    memory.rest_on(joined)
    memory.write(MIB - 2, b"edge")
    assert first.mapping[-2:] == b"ed"
    assert path.read_bytes()[:2] == bytes(2)  # private
    memory.discard(MIB - 4096, 8192)
    assert memory.read(MIB - 2, 4) == bytes(4)
    memory.close()
    first.close()
    second.close()
