"""Linux kernels: header, unpacking on the host, zero page, initrd, entry state."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.firmware import bzimage
from pyvm.firmware.bootstate import BootState, EntryMode
from pyvm.firmware.e820 import pc_memory_map
from pyvm.firmware.errors import BootError
from pyvm.firmware.loader import load_kernel
from pyvm.memory import GuestMemory, pc_ram_blocks
from tests.unit.firmware_images import MIB, BzImage, Elf, Segment, machine, outcome, save
from tests.unit.test_decompress import PACKERS

KERNEL_CODE = b"\x90\xf4" * 5000
RSDP = 0xF0000
ZERO_PAGE = 0x8000


def vmlinux(bits: int = 64, address: int = 2 * MIB) -> bytes:
    return Elf(address + 4, [Segment(address, KERNEL_CODE, 100_000)], bits).build()


def packed(data: bytes) -> bytes:
    """Pack as the kernel's build does with all formats but gzip: the unpacked size follows."""
    return lzma.compress(data) + struct.pack("<I", len(data))


def boot(
    directory: Path, image: bytes, cmdline: str = "", initrd: bytes | None = None, mib: int = 16
) -> tuple[GuestMemory, BootState]:
    memory, e820 = machine(mib)
    kernel = save(directory, "bzImage", image)
    ramdisk = None if initrd is None else save(directory, "initrd", initrd)
    return memory, load_kernel(memory, kernel, ramdisk, cmdline, e820, RSDP)


@pytest.mark.parametrize("kind", list(PACKERS))
def test_every_payload_is_unpacked_to_where_it_is_linked(tmp_path: Path, kind: object) -> None:
    from pyvm.firmware.decompress import Compression

    assert isinstance(kind, Compression)
    data = vmlinux()
    payload = data if kind is Compression.NONE else PACKERS[kind](data)
    if kind is not Compression.GZIP:
        payload += struct.pack("<I", len(data))
    memory, state = boot(tmp_path, BzImage(payload).build())
    assert memory.read(2 * MIB, 100_000) == KERNEL_CODE.ljust(100_000, b"\0")
    assert state.mode is EntryMode.LONG64
    assert state.registers["rip"] == 2 * MIB + 4
    assert state.registers["rsi"] == ZERO_PAGE


def test_64_bit_entry_state(tmp_path: Path) -> None:
    memory, state = boot(tmp_path, BzImage(packed(vmlinux())).build())
    assert (state.cr0, state.cr4, state.efer) == (0x80000011, 0x20, 0x500)
    assert state.registers["rflags"] == 2
    assert (state.cs.selector, state.data.selector) == (0x10, 0x18)
    gdt = struct.unpack("<5Q", memory.read(state.gdt_base, state.gdt_limit + 1))
    assert gdt[2] == 0x00AF9B000000FFFF  # 64-bit code, flat
    assert gdt[3] == 0x00CF93000000FFFF  # data, flat
    assert all(walk(memory, state.cr3, address) == address for address in (0, 0x8000, 2 * MIB + 5, 0xFFFFFFFF))


def walk(memory: GuestMemory, cr3: int, address: int) -> int:
    """Translate a linear address as the processor would."""
    table = cr3
    for shift in (39, 30, 21):
        entry = memory.read_u64(table + 8 * (address >> shift & 0x1FF))
        assert entry & 3 == 3
        if entry & 0x80:
            assert shift == 21
            return (entry & ~0x1FFFFF) | (address & 0x1FFFFF)
        table = entry & ~0xFFF
    raise AssertionError("no large page")


def test_32_bit_kernel_is_entered_in_32_bit_mode(tmp_path: Path) -> None:
    memory, state = boot(tmp_path, BzImage(packed(vmlinux(32)), xloadflags=0).build())
    assert state.mode is EntryMode.PROTECTED32
    assert (state.cr0, state.cr4, state.efer) == (0x11, 0, 0)
    assert state.registers["rip"] == 2 * MIB + 4
    assert state.registers["rsi"] == ZERO_PAGE
    assert memory.read_u64(state.gdt_base + 0x10) == 0x00CF9B000000FFFF


def test_unknown_payload_unpacks_itself_by_the_64_bit_entry(tmp_path: Path) -> None:
    image = BzImage(b"\x89LZO" + bytes(100), pref_address=3 * MIB)
    memory, state = boot(tmp_path, image.build())
    assert state.mode is EntryMode.LONG64
    assert state.registers["rip"] == 4 * MIB + 0x200  # rounded up to kernel_alignment
    assert memory.read(4 * MIB, 0x304) == image.unpacker + b"\x89LZO"


def test_old_kernel_is_entered_at_1_mib_in_32_bit_mode(tmp_path: Path) -> None:
    image = BzImage(bytes(100), version=0x0204, xloadflags=0xFFFF)
    memory, state = boot(tmp_path, image.build())
    assert state.mode is EntryMode.PROTECTED32
    assert state.registers["rip"] == MIB
    assert memory.read(MIB, 0x300) == image.unpacker


def test_zero_page(tmp_path: Path) -> None:
    memory, _ = boot(tmp_path, BzImage(packed(vmlinux())).build(), "console=ttyS0 quiet", b"i" * 5000)
    page = memory.read(ZERO_PAGE, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<Q", page, 0x70)[0] == RSDP
    (command,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(command, 20) == b"console=ttyS0 quiet\0"
    address, size = struct.unpack_from("<II", page, 0x218)
    assert size == 5000
    assert memory.read(address, size) == b"i" * 5000
    assert not any(page[:0x40])  # screen_info: no screen
    entries = pc_memory_map(memory.blocks)
    assert page[0x1E8] == len(entries)
    assert page[0x2D0 : 0x2D0 + 20 * len(entries)] == b"".join(entry.pack() for entry in entries)


def initrd_place(memory: GuestMemory) -> tuple[int, int]:
    return memory.read_u32(ZERO_PAGE + 0x218), memory.read_u32(ZERO_PAGE + 0x21C)


def test_initrd_lies_at_the_top_of_low_ram(tmp_path: Path) -> None:
    memory, _ = boot(tmp_path, BzImage(packed(vmlinux())).build(), "", bytes(5000))
    assert initrd_place(memory) == (16 * MIB - 0x23000 - 0x2000, 5000)


def test_initrd_stays_below_initrd_addr_max(tmp_path: Path) -> None:
    image = BzImage(packed(vmlinux()), initrd_addr_max=8 * MIB - 1)
    memory, _ = boot(tmp_path, image.build(), "", bytes(4096))
    assert initrd_place(memory) == (8 * MIB - 4096, 4096)


@pytest.mark.parametrize(
    ("option", "end"), [("mem=10M", 10 * MIB), ("a mem=0x800000 b", 8 * MIB), ("mem=9216k", 9 * MIB)]
)
def test_initrd_obeys_the_mem_option(tmp_path: Path, option: str, end: int) -> None:
    memory, _ = boot(tmp_path, BzImage(packed(vmlinux())).build(), option, bytes(4096))
    assert initrd_place(memory) == (end - 4096, 4096)


def test_initrd_does_not_reach_into_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"initrd is too large, cannot support \(max: \d+, need 14680064\)"):
        boot(tmp_path, BzImage(packed(vmlinux())).build(), "", bytes(14 * MIB))


def test_empty_initrd_is_none(tmp_path: Path) -> None:
    memory, _ = boot(tmp_path, BzImage(packed(vmlinux())).build(), "", b"")
    assert initrd_place(memory) == (0, 0)


def test_command_line_limit_is_the_kernels(tmp_path: Path) -> None:
    image = BzImage(packed(vmlinux()), cmdline_size=20).build()
    boot(tmp_path, image, "x" * 20)
    with pytest.raises(BootError, match="21 characters, but this kernel takes 20"):
        boot(tmp_path, image, "x" * 21)
    with pytest.raises(BootError, match="256 characters, but this kernel takes 255"):
        boot(tmp_path, BzImage(bytes(100), version=0x0205).build(), "x" * 256)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (BzImage(version=0x0201), "2.01 is too old"),
        (BzImage(loadflags=0), "zImage"),
        (BzImage(kernel_alignment=0x3000), "power of two"),
        (BzImage(kernel_alignment=0), "power of two"),
        (BzImage(bytes(50), pref_address=1 << 40), "does not fit in memory"),
        (BzImage(bytes(50), init_size=0xFFFFFFFF), "does not fit in memory"),
        (BzImage(packed(vmlinux(address=64 * MIB))), "does not fit in memory"),
        (BzImage(packed(b"\x7fELF" + bytes(100))), "ELF"),
        (BzImage(packed(b"no ELF file")), "not an ELF file"),
        (BzImage(lzma.compress(vmlinux()) + b"\0\0\0\1"), "unpacks to .* bytes, not to 16777216"),
        (BzImage(lzma.compress(vmlinux()) + b"\1\0\0\0"), "more than 1 bytes"),
        (BzImage(packed(vmlinux())[:-40]), "damaged|cut short"),
        (BzImage(gzip.compress(vmlinux())[:-6]), "damaged|more than"),
        (BzImage(b"\x1f\x8b"), "cut short"),
    ],
)
def test_broken_kernels(tmp_path: Path, image: BzImage, message: str) -> None:
    with pytest.raises(BootError, match=message):
        boot(tmp_path, image.build())


def test_truncated_file(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="cut short"):
        boot(tmp_path, BzImage(packed(vmlinux())).build()[:-10])
    with pytest.raises(BootError, match="cut short"):
        boot(tmp_path, BzImage().build()[: 4 * 512])


def test_boot_sector_without_signature(tmp_path: Path) -> None:
    image = bytearray(BzImage(packed(vmlinux())).build())
    image[0x1FE] = 0
    with pytest.raises(BootError, match="no signature"):
        boot(tmp_path, bytes(image))


def test_default_number_of_setup_sectors(tmp_path: Path) -> None:
    memory, _ = boot(tmp_path, BzImage(packed(vmlinux()), setup_sects=0).build())
    assert memory.read(2 * MIB, 4) == KERNEL_CODE[:4]


def test_missing_files_and_odd_ones(tmp_path: Path) -> None:
    memory, e820 = machine()
    kernel = save(tmp_path, "bzImage", BzImage(packed(vmlinux())).build())
    for path, initrd, message in (
        (str(tmp_path / "none"), None, "could not open kernel file '.*none': No such file or directory"),
        (str(tmp_path), None, "not a regular file|Is a directory"),
        ("/dev/zero", None, "not a regular file"),
        (kernel, str(tmp_path / "none"), "could not open initrd file '.*none': No such file or directory"),
        (save(tmp_path, "empty", b""), None, "is not a Linux bzImage, a Multiboot kernel or an ELF file with a PVH"),
        (save(tmp_path, "noise", b"noise" * 5000), None, "is not a Linux bzImage"),
        (save(tmp_path, "elf", vmlinux()), None, "is not a Linux bzImage"),
    ):
        with pytest.raises(BootError, match=message):
            load_kernel(memory, path, initrd, "", e820, 0)
    with pytest.raises(BootError, match="NUL"):
        load_kernel(memory, kernel, None, "a\0b", e820, 0)


def test_too_little_memory(tmp_path: Path) -> None:
    with pytest.raises(BootError, match="-m"):
        boot(tmp_path, BzImage(packed(vmlinux())).build(), mib=1)


def test_loading_again_gives_the_same_memory(tmp_path: Path) -> None:
    image = BzImage(packed(vmlinux())).build()
    memory, first = boot(tmp_path, image, "x", b"initrd")
    before = memory.read(0, 0x9F000), memory.read(MIB, 15 * MIB)
    memory.write(2 * MIB, b"\xcc" * 100_000)
    entries = pc_memory_map(pc_ram_blocks(16 * MIB))
    again = load_kernel(memory, str(tmp_path / "bzImage"), str(tmp_path / "initrd"), "x", entries, RSDP)
    assert again == first
    assert (memory.read(0, 0x9F000), memory.read(MIB, 15 * MIB)) == before


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_setup_header(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    payload = packed(vmlinux()) if data.draw(st.booleans()) else b"\x89LZO" + bytes(100)
    image = bytearray(BzImage(payload, setup_sects=1).build())
    for position in data.draw(st.lists(st.integers(0x1F1, 0x26C), min_size=1, max_size=5)):
        image[position] = data.draw(st.integers(0, 255))
    keep = data.draw(st.integers(0, len(image))) if data.draw(st.booleans()) else len(image)
    memory, e820 = machine(8)
    path = save(tmp_path_factory.getbasetemp(), "hostile", bytes(image[:keep]))
    assert "\n" not in outcome(lambda: load_kernel(memory, path, path, "console=ttyS0", e820, RSDP))


def test_header_parser_needs_the_whole_header() -> None:
    with pytest.raises(BootError):
        bzimage.parse_header(BzImage().build()[:0x260])
