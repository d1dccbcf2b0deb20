"""fw_cfg: selector, data, directory and DMA."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices import fwcfg as f
from pyvm.devices.fwcfg import FwCfg, FwCfgFileState, FwCfgState
from pyvm.memory import GuestMemory, IoSpace, pc_ram_blocks
from pyvm.state import StateError

RAM = 4 << 20
STRUCTURE = 0x1000
BUFFER = 0x2000
READ, SKIP, SELECT, WRITE = 2, 4, 8, 16


class Board:
    """The device at its ports, and 4 MiB of RAM."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.device = FwCfg(memory)
        self.ports = IoSpace("ports")
        self.ports.add(0x510, 2, self.device.read, self.device.write, "fw_cfg", max_access=2)
        self.ports.add(0x514, 8, self.device.dma_read, self.device.dma_write, "fw_cfg dma", max_access=4)

    def item(self, key: int, length: int) -> bytes:
        self.ports.write(0x510, 2, key)
        return bytes(self.ports.read(0x511, 1) for _ in range(length))

    def dma(self, control: int, length: int, address: int, structure: int = STRUCTURE) -> int:
        self.memory.write(structure, struct.pack(">IIQ", control, length, address))
        self.ports.write(0x514, 4, int.from_bytes((structure >> 32).to_bytes(4, "little"), "big"))
        self.ports.write(0x518, 4, int.from_bytes((structure & 0xFFFF_FFFF).to_bytes(4, "little"), "big"))
        return int.from_bytes(self.memory.read(structure, 4), "big")

    def directory(self) -> list[tuple[str, int, int]]:
        count = int.from_bytes(self.item(f.FILE_DIRECTORY, 4), "big")
        data = self.item(f.FILE_DIRECTORY, 4 + 64 * count)[4:]
        entries = [struct.unpack_from(">IHH56s", data, 64 * index) for index in range(count)]
        return [(name.rstrip(b"\0").decode(), key, size) for size, key, _, name in entries]


@pytest.fixture
def board() -> Iterator[Board]:
    memory = GuestMemory(RAM, pc_ram_blocks(RAM))
    yield Board(memory)
    memory.close()


def test_signature_and_features(board: Board) -> None:
    assert board.item(0, 6) == b"QEMU\0\0"
    assert board.item(1, 4) == b"\3\0\0\0"
    assert board.item(0x777, 4) == bytes(4)
    assert board.item(0x4000, 4) == b"QEMU"
    assert (board.ports.read(0x514, 4), board.ports.read(0x518, 4)) == (0x554D4551, 0x47464320)
    board.ports.write(0x510, 2, 0)
    board.ports.write(0x511, 1, 0x41)
    assert board.ports.read(0x511, 1) == ord("Q")


def test_machine_items(board: Board) -> None:
    board.device.add_machine(uuid=bytes(range(16)), ram_size=1 << 30, cpus=2, max_cpus=4, boot_menu=True)
    assert board.item(2, 16) == bytes(range(16))
    assert board.item(3, 8) == (1 << 30).to_bytes(8, "little")
    assert (board.item(5, 2), board.item(0xF, 2), board.item(0xE, 2)) == (b"\2\0", b"\4\0", b"\1\0")
    assert board.item(0x8002, 1) == b"\1"


def test_kernel_items(board: Board) -> None:
    board.device.add_kernel(b"kernel", address=0x100000, entry=0x100000, setup=b"setup", setup_address=0x10000)
    board.device.add_initrd(b"initrd!", 0x300000)
    board.device.add_command_line("quiet", 0x20000)
    assert board.item(0x08, 4) == b"\6\0\0\0"
    assert board.item(0x11, 6) == b"kernel"
    assert board.item(0x07, 4) == board.item(0x10, 4) == (0x100000).to_bytes(4, "little")
    assert (board.item(0x17, 4), board.item(0x18, 5)) == (b"\5\0\0\0", b"setup")
    assert (board.item(0x0B, 4), board.item(0x12, 7)) == (b"\7\0\0\0", b"initrd!")
    assert (board.item(0x14, 4), board.item(0x15, 6)) == (b"\6\0\0\0", b"quiet\0")
    board.device.add_string(0x8001, "x")
    assert board.item(0x8001, 2) == b"x\0"


def test_directory_is_sorted(board: Board) -> None:
    for name, data in (("etc/e820", b"12"), ("bootorder", b""), ("opt/x", b"abc")):
        board.device.add_file(name, data)
    assert board.directory() == [("bootorder", 0x20, 0), ("etc/e820", 0x21, 2), ("opt/x", 0x22, 3)]
    assert board.item(0x22, 4) == b"abc\0"
    assert board.device.file_key("opt/x") == 0x22
    assert board.device.file_data("opt/x") == b"abc"
    with pytest.raises(KeyError):
        board.device.file_key("missing")


def test_made_files_are_made_at_selection(board: Board) -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(bytes([len(made)]))
        return made[-1] * 3

    board.device.add_file("etc/acpi/tables", make)
    assert made == []
    assert board.item(0x20, 4) == bytes(4)
    assert board.item(0x20, 3) == b"\1\1\1"
    assert board.directory() == [("etc/acpi/tables", 0x20, 3)]


@pytest.mark.parametrize("name", ["", "x" * 56, "taken"])
def test_refused_names(board: Board, name: str) -> None:
    board.device.add_file("taken", b"")
    with pytest.raises(ValueError, match="fw_cfg"):
        board.device.add_file(name, b"")


@pytest.mark.parametrize("key", [0x20, 0x4001, 0x10000, 0x8020])
def test_refused_keys(board: Board, key: int) -> None:
    with pytest.raises(ValueError, match="not a key"):
        board.device.add_bytes(key, b"")


def test_dma_read_and_skip(board: Board) -> None:
    board.device.add_file("data", bytes(range(100)))
    board.memory.write(BUFFER, b"\xff" * 32)
    assert board.dma(SELECT | READ | 0x20 << 16, 10, BUFFER) == 0
    assert board.memory.read(BUFFER, 11) == bytes(range(10)) + b"\xff"
    assert board.dma(SKIP, 80, 0) == 0
    assert board.dma(READ, 12, BUFFER) == 0
    assert board.memory.read(BUFFER, 13) == bytes(range(90, 100)) + b"\0\0\xff"  # zeros behind the end
    assert board.dma(SELECT, 0, 0) == 0
    assert board.ports.read(0x511, 1) == ord("Q")


def test_dma_write(board: Board) -> None:
    written: list[tuple[int, int]] = []
    board.device.add_file(
        "w", bytes(8), writable=True, on_write=lambda offset, length: written.append((offset, length))
    )
    board.device.add_file("r", bytes(8))
    board.memory.write(BUFFER, b"abcdefghij")
    assert board.dma(SELECT | SKIP | 0x21 << 16, 2, 0) == 0
    assert board.dma(WRITE, 3, BUFFER) == 0
    assert board.device.file_data("w") == b"\0\0abc\0\0\0"
    assert written == [(2, 3)]
    assert board.dma(WRITE, 4, BUFFER) == 1  # would go beyond the end
    assert board.dma(SELECT | WRITE | 0x20 << 16, 4, BUFFER) == 1  # read-only
    assert board.dma(SELECT | WRITE | 0x777 << 16, 4, BUFFER) == 1
    board.device.reset()
    assert board.device.file_data("w") == b"\0\0abc\0\0\0"


def test_dma_to_nowhere(board: Board) -> None:
    assert board.dma(SELECT | READ, 4, 0xFFFF_FFFF_FFFF_FFF0) == 1
    assert board.dma(SELECT | READ, 0xFFFF_FFFF, BUFFER) == 1
    assert board.dma(SELECT | WRITE, 4, 1 << 40) == 1
    before = board.memory.read(0, 64)
    board.ports.write(0x514, 4, 0xFFFF_FFFF)
    board.ports.write(0x518, 4, 0xFFFF_FFFF)
    assert board.memory.read(0, 64) == before


def test_dma_by_eight_bytes(board: Board) -> None:
    board.memory.write(STRUCTURE, struct.pack(">IIQ", SELECT | READ, 4, BUFFER))
    board.device.dma_write(0, 8, int.from_bytes(STRUCTURE.to_bytes(8, "little"), "big"))
    assert board.memory.read(BUFFER, 4) == b"QEMU"


def test_save_and_load(board: Board) -> None:
    board.device.add_file("w", b"12345678", writable=True)
    board.memory.write(BUFFER, b"ab")
    board.dma(SELECT | WRITE | 0x20 << 16, 2, BUFFER)
    state = FwCfgState.from_dict(board.device.save().to_dict())
    other = Board(board.memory)
    other.device.add_file("w", b"12345678", writable=True)
    other.device.load(state)
    assert other.ports.read(0x511, 1) == ord("3")
    assert other.device.file_data("w") == b"ab345678"
    for files in ([], [FwCfgFileState("w", b"1")], [FwCfgFileState("v", bytes(8))]):
        with pytest.raises(StateError):
            other.device.load(FwCfgState(files=files))
    other.device.load(FwCfgState(key=0x20, offset=0xFFFF_FFFF, files=state.files))
    assert other.ports.read(0x511, 1) == 0


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF_FFFF) | st.integers(0, 31).map(lambda c: c | 0x20 << 16),
            st.integers(0, 0xFFFF_FFFF) | st.integers(0, 64),
            st.integers(0, (1 << 64) - 1) | st.integers(0, RAM),
        ),
        max_size=10,
    )
)
def test_hostile_dma(steps: list[tuple[int, int, int]]) -> None:
    memory = GuestMemory(RAM, pc_ram_blocks(RAM))
    try:
        board = Board(memory)
        board.device.add_file("w", bytes(16), writable=True)
        for control, length, address in steps:
            board.dma(control, length, address)
            board.ports.write(0x510, 2, control & 0xFFFF)
            board.ports.read(0x511, 1)
        assert len(board.device.file_data("w")) == 16
        board.device.load(board.device.save())
    finally:
        memory.close()
