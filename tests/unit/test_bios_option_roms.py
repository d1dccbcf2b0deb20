"""Option ROMs: which are run, in which order, what they are told, and what they get."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.pci.function import PciFunction
from pyvm.firmware.bios import pmm
from pyvm.firmware.bios.machine import BootConfig, OptionRom
from pyvm.firmware.bios.option_roms import FIRST_SEGMENT, STACK_TOP, pc_image, valid
from pyvm.firmware.bios.registers import Registers, linear
from pyvm.firmware.bios.rom import PMM, PNP, SEGMENT
from pyvm.firmware.errors import BootError
from tests.unit.bios_rig import STACK, MemoryDisk, Rig, boot_disk, hard_disk
from tests.unit.rom_support import BOOT, CONNECT, option_rom, sealed

BEV = option_rom(boot=b"\xcb", name=b"network")
BCV = option_rom(connect=b"\xcb", name=b"adapter")
LEGACY = option_rom(legacy=True)
NEXT_SEGMENT = FIRST_SEGMENT + 0x80
CARD = 0x1234_8086


def roms(*contents: bytes, indices: Sequence[int | None] = ()) -> list[OptionRom]:
    places = [*indices, *[None] * len(contents)]
    return [OptionRom(data, bootindex=places[number]) for number, data in enumerate(contents)]


def started(*contents: bytes, indices: Sequence[int | None] = (), **values: object) -> tuple[Rig, Registers]:
    """Return a machine that has been sent into its first ROM, or on to booting."""
    rig = Rig(option_roms=roms(*contents, indices=indices), start=False, **values)  # type: ignore[arg-type]
    return rig, rig.trap("post", esp=0)


def back(rig: Rig, registers: Registers) -> Registers:
    """Return from a ROM to where the stack says, and run the service there."""
    offset, segment = struct.unpack("<HH", rig.memory.read(linear(registers.ss, registers.sp), 4))
    assert segment == SEGMENT
    registers.sp += 4
    registers.cs, registers.eip = segment, offset
    return rig.resume(registers)


def place(registers: Registers) -> tuple[int, int]:
    return registers.cs, registers.eip


def test_what_a_rom_is_told() -> None:
    rig, registers = started(BEV)
    assert place(registers) == (FIRST_SEGMENT, 3)
    assert rig.memory.read(FIRST_SEGMENT << 4, len(BEV)) == BEV
    assert (registers.ax, registers.bx, registers.dx) == (0, 0xFFFF, 0xFFFF)
    assert (registers.es, registers.di) == (SEGMENT, PNP)
    check = rig.memory.read(linear(SEGMENT, PNP), 0x21)
    assert check[:4] == b"$PnP"
    assert sum(check) & 0xFF == 0
    assert back(rig, registers).goto == "start"


def test_those_with_a_wrong_sum_or_signature_or_without_room_are_left_out() -> None:
    wrong_sum, wrong_signature = bytearray(BEV), bytearray(BEV)
    wrong_sum[-1] ^= 1
    wrong_signature[0] = 0x56
    cut = BEV[:-1]
    large = option_rom(boot=b"\xcb", units=255)
    rig, registers = started(bytes(wrong_sum), bytes(sealed(wrong_signature)), cut, b"", large, large, BEV)
    assert place(registers) == (FIRST_SEGMENT, 3)
    registers = back(rig, registers)  # the second large one has no room
    assert place(registers) == (FIRST_SEGMENT + (0x20000 >> 4), 3)
    assert back(rig, registers).goto == "start"


def test_a_rom_shrinks_or_goes() -> None:
    big = option_rom(boot=b"\xcb", units=16)
    rig, registers = started(big, BEV, BEV)
    small = bytearray(big[:1024])
    small[2] = 2
    rig.memory.write(FIRST_SEGMENT << 4, sealed(small))
    registers = back(rig, registers)
    assert place(registers) == (NEXT_SEGMENT, 3)
    rig.memory.write((NEXT_SEGMENT << 4) + 2, b"\0")
    registers = back(rig, registers)
    assert place(registers) == (NEXT_SEGMENT, 3)
    assert back(rig, registers).goto == "start"
    assert len(rig.bios.option_roms.vectors()) == 2


class TestBooting:
    def ready(self, *contents: bytes, **values: object) -> Rig:
        rig, registers = started(*contents, **values)  # type: ignore[arg-type]
        while registers.goto != "start":
            registers = back(rig, registers) if registers.goto is None else rig.resume(registers)
        return rig

    def test_a_bootstrap_entry_is_the_last_choice(self) -> None:
        rig = self.ready(BEV, disks=[hard_disk(boot_disk())])
        assert rig.trap("int19_load").dl == 0x80
        registers = rig.trap("int18")
        assert place(registers) == (FIRST_SEGMENT, BOOT)
        assert (registers.es, registers.di) == (SEGMENT, PNP)
        assert rig.line.output.endswith(b"Booting from ROM...\r\n")
        assert back(rig, registers).goto == "halt"  # it returned: nothing else is left

    @pytest.mark.parametrize(("order", "first"), [("nc", BOOT), ("cn", 0x7C00), ("c", 0x7C00)])
    def test_letter_n(self, order: str, first: int) -> None:
        rig = self.ready(BEV, disks=[hard_disk(boot_disk())], boot=BootConfig(order=order))
        assert rig.trap("int19_load").eip == first

    def test_bootindex(self) -> None:
        rig = self.ready(BEV, indices=[2], disks=[hard_disk(boot_disk(), bootindex=3)])
        assert rig.trap("int19_load").eip == BOOT
        rig = self.ready(BEV, indices=[4], disks=[hard_disk(boot_disk(), bootindex=3)])
        assert rig.trap("int19_load").eip == 0x7C00

    def test_strict(self) -> None:
        rig = self.ready(BEV, disks=[hard_disk(boot_disk(), bootindex=1)], boot=BootConfig(strict=True))
        assert rig.trap("int19_load").dl == 0x80
        assert rig.trap("int18").goto == "halt"

    def test_all_headers_of_a_rom_count(self) -> None:
        data = bytearray(BEV)
        data[0x26:0x28] = struct.pack("<H", 0x100)
        data[0x100:0x120] = bytes(data[0x20:0x40])
        data[0x106:0x108] = struct.pack("<H", 0x100)  # in a circle
        rig = self.ready(sealed(data))
        assert 2 < len(rig.bios.option_roms.vectors()) < 40

    def test_menu(self) -> None:
        disks = [hard_disk(boot_disk())]
        rig, registers = started(BEV, disks=disks, boot=BootConfig(menu=True))
        registers = back(rig, registers)
        assert registers.goto == "menu_prompt"
        rig.press("esc")
        assert rig.resume(registers).goto == "menu_choice"
        assert "2. network" in rig.line.output.decode()
        rig.press("2")
        assert rig.resume(registers).goto == "start"
        assert place(rig.trap("int19_load")) == (FIRST_SEGMENT, BOOT)


class TestKernel:
    """A kernel is booted like a ROM that is the first in the order."""

    def test_it_comes_behind_the_roms_and_before_everything_else(self) -> None:
        loaded: list[str] = []
        disks = [hard_disk(boot_disk(), bootindex=0)]
        rig, registers = started(BEV, indices=[1], disks=disks, kernel=lambda: loaded.append("kernel"))
        assert place(registers) == (FIRST_SEGMENT, 3)
        assert back(rig, registers).goto == "start"
        assert loaded == []
        rig.trap("int19_load")
        assert loaded == ["kernel"]
        assert rig.line.output.endswith(b"Booting from ROM...\r\n")

    def test_one_that_cannot_be_loaded_any_more(self) -> None:
        def fail() -> None:
            raise BootError("kernel file is gone")

        rig, registers = started(BEV, disks=[hard_disk(boot_disk())], kernel=fail)
        back(rig, registers)
        assert rig.trap("int19_load").dl == 0x80
        assert b"Boot failed: kernel file is gone\r\n" in rig.line.output

    def test_strict(self) -> None:
        loaded: list[str] = []
        boot = BootConfig(strict=True)
        rig, registers = started(BEV, disks=[hard_disk(boot_disk())], boot=boot, kernel=lambda: loaded.append("kernel"))
        back(rig, registers)
        rig.trap("int19_load")
        assert loaded == ["kernel"]
        assert rig.trap("int18").goto == "halt"

    def test_menu(self) -> None:
        rig, registers = started(BEV, disks=[hard_disk(boot_disk())], boot=BootConfig(menu=True), kernel=lambda: None)
        back(rig, registers)
        rig.press("esc")
        rig.resume(registers)
        text = rig.line.output.decode()
        assert "1. Kernel" in text
        assert "2. Hard Disk" in text
        assert "3. network" in text
        rig.press("2")
        rig.resume(registers)
        assert rig.trap("int19_load").dl == 0x80


class TestDrives:
    def connected(self, *contents: bytes, **values: object) -> tuple[Rig, Registers]:
        rig, registers = started(*contents, **values)  # type: ignore[arg-type]
        while registers.goto != "connect":
            registers = back(rig, registers)
        return rig, rig.resume(registers)

    @pytest.mark.parametrize(("content", "entry"), [(BCV, CONNECT), (LEGACY, 3)])
    def test_the_drives_of_a_rom_come_behind(self, content: bytes, entry: int) -> None:
        rig, registers = self.connected(content, disks=[hard_disk(boot_disk())])
        assert place(registers) == (FIRST_SEGMENT, entry)
        assert rig.bda(0x75) == 1
        rig.memory.write(0x475, b"\2")
        registers = back(rig, registers)
        assert (registers.goto, registers.esp) == ("start", STACK_TOP)
        assert rig.call(0x13, eax=0x0800, edx=0x80).dl == 2
        assert rig.call(0x13, eax=0x1500, edx=0x81).ah != 0x03
        assert rig.trap("int19_load").dl == 0x80

    def test_the_drives_of_a_rom_come_first_and_boot(self) -> None:
        rig, registers = self.connected(BCV, indices=[1], disks=[hard_disk(boot_disk())])
        assert rig.bda(0x75) == 0
        assert rig.call(0x13, eax=0x1500, edx=0x80).ah != 0x03
        rig.memory.write(0x475, b"\1")
        rig.memory.write(4 * 0x13, struct.pack("<HH", 0x1234, FIRST_SEGMENT))
        registers = back(rig, registers)
        assert registers.goto == "start"
        assert rig.bda(0x75) == 2
        rig.memory.write(4 * 0x13, struct.pack("<HH", 0xE3FE, SEGMENT))
        assert rig.call(0x13, eax=0x1500, edx=0x81).ah == 0x03
        rig.memory.write(4 * 0x13, struct.pack("<HH", 0x1234, FIRST_SEGMENT))
        registers = rig.trap("int19_load")
        assert registers.goto == "boot_read"
        assert (registers.ax, registers.cx, registers.dx) == (0x0201, 1, 0x80)
        assert (registers.es, registers.bx) == (0, 0x7C00)
        rig.memory.write(0x7C00 + 510, b"\x55\xaa")
        registers.eflags &= ~1
        assert place(rig.resume(registers)) == (0, 0x7C00)
        assert registers.dl == 0x80

    def test_a_drive_of_a_rom_that_does_not_boot(self) -> None:
        rig, registers = self.connected(BCV)
        back(rig, registers)
        rig.memory.write(4 * 0x13, struct.pack("<HH", 0x1234, FIRST_SEGMENT))
        registers = rig.trap("int19_load")
        registers.eflags |= 1
        assert rig.resume(registers).goto == "halt"
        assert b"could not read the boot disk" in rig.line.output
        registers = rig.trap("int19_load")
        registers.eflags &= ~1
        assert rig.resume(registers).goto == "halt"
        assert b"not a bootable disk" in rig.line.output

    @pytest.mark.parametrize("count", [0x7F, 0xFE, 0xFF])
    def test_a_rom_counts_wrongly(self, count: int) -> None:
        rig, registers = self.connected(BCV, indices=[1], disks=[hard_disk(boot_disk()), hard_disk(boot_disk())])
        rig.memory.write(0x475, bytes((count,)))
        assert back(rig, registers).goto == "start"
        assert rig.call(0x13, eax=0x0800, edx=0x80).ah
        assert rig.trap("int19_load").goto == "halt"

    def test_strict_keeps_drives_but_does_not_hide_any(self) -> None:
        disks = [hard_disk(boot_disk(), bootindex=1), hard_disk(MemoryDisk(bytes(1 << 20)), name="other")]
        rig, registers = self.connected(BCV, disks=disks, boot=BootConfig(strict=True))
        assert back(rig, registers).goto == "start"
        assert [drive.number for drive in rig.bios.drives.disks] == [0x80, 0x81]


class TestCards:
    def card(self, content: bytes, class_code: int = 0x020000) -> PciFunction:
        card = PciFunction("card", vendor=CARD & 0xFFFF, device=CARD >> 16, class_code=class_code)
        card.add_rom(content)
        return card

    def test_the_rom_of_a_card(self) -> None:
        content = option_rom(boot=b"\xcb", pci=CARD)
        card = self.card(content)
        rig, registers = started(cards=[card], card_places={3 << 3: 1}, disks=[hard_disk(boot_disk(), bootindex=2)])
        assert (*place(registers), registers.ax) == (FIRST_SEGMENT, 3, 3 << 3)
        assert rig.memory.read(FIRST_SEGMENT << 4, len(content)) == content
        assert not card.config_read(0x30, 4) & 1
        assert not card.command & 2
        assert back(rig, registers).goto == "start"
        registers = rig.trap("int19_load")
        assert (*place(registers), registers.ax) == (FIRST_SEGMENT, BOOT, 3 << 3)

    def test_roms_that_are_for_others(self) -> None:
        for content, class_code in (
            (option_rom(boot=b"\xcb", pci=0x1235_8086), 0x020000),
            (option_rom(boot=b"\xcb"), 0x020000),
            (option_rom(boot=b"\xcb", pci=CARD), 0x030000),
        ):
            _, registers = started(cards=[self.card(content, class_code)])
            assert registers.goto == "start"

    def test_the_second_image_may_be_the_one(self) -> None:
        other = bytearray(option_rom(pci=CARD))
        other[0x60 + 0x14] = 3
        other[0x60 + 0x15] = 0
        wanted = option_rom(boot=b"\xcb", pci=CARD)
        assert pc_image(bytes(other) + wanted, CARD) == wanted
        assert pc_image(bytes(other), CARD) is None

    def test_one_image_for_several_devices(self) -> None:
        data = bytearray(option_rom(pci=0x1000_8086))
        data[0x68:0x6A] = struct.pack("<H", 0x20)
        data[0x80:0x86] = struct.pack("<HHH", 0x9999, 0x1234, 0)
        assert pc_image(bytes(data), CARD) == bytes(data)
        data[0x82:0x84] = bytes(2)
        assert pc_image(bytes(data), CARD) is None


class TestMemoryManager:
    def rig(self) -> Rig:
        return started(BEV)[0]

    def call(self, rig: Rig, function: int, *arguments: int, widths: str = "II") -> int:
        rig.memory.write(STACK, struct.pack("<HHH" + widths[: len(arguments)], 0, 0, function, *arguments))
        registers = rig.trap("pmm_entry", esp=STACK)
        return registers.dx << 16 | registers.ax

    def allocate(self, rig: Rig, paragraphs: int, handle: int = pmm.ANONYMOUS, flags: int = pmm.EXTENDED) -> int:
        return self.call(rig, pmm.ALLOCATE, paragraphs, handle, flags, widths="IIH")

    def test_how_it_is_found(self) -> None:
        rig, registers = started(BEV)
        structure = rig.memory.read(linear(SEGMENT, PMM), 16)
        assert structure[:4] == b"$PMM"
        assert (PMM % 16, sum(structure) & 0xFF) == (0, 0)
        assert struct.unpack_from("<HH", structure, 7) == (rig.bios.core.rom.labels["pmm_entry"], SEGMENT)
        back(rig, registers)
        assert not any(rig.memory.read(linear(SEGMENT, PMM), 16))
        assert self.allocate(rig, 1) == pmm.FAILED

    def test_blocks(self) -> None:
        rig = self.rig()
        most = self.allocate(rig, 0)
        first = self.allocate(rig, 0x1000, 77)
        assert (self.call(rig, pmm.FIND, 77), self.allocate(rig, 1, 77)) == (first, pmm.NO_BLOCK)
        assert self.allocate(rig, 0) == most - 0x1000
        second = self.allocate(rig, 0x801, flags=pmm.EXTENDED | pmm.ALIGNED)
        assert second % 16 == 0
        assert second + 0x8010 <= first
        low = self.allocate(rig, 0x100, flags=pmm.CONVENTIONAL)
        assert 0x20000 <= low < 0xA0000
        assert self.allocate(rig, 0x800, flags=pmm.CONVENTIONAL | pmm.ALIGNED) % 0x8000 == 0
        assert self.call(rig, pmm.FREE, first) == 0
        assert self.call(rig, pmm.FREE, first) == 1
        assert self.call(rig, pmm.FIND, 77) == pmm.NO_BLOCK
        assert self.allocate(rig, 0x1000) == first
        assert self.allocate(rig, 0xFFFFFFF) == pmm.NO_BLOCK
        assert self.allocate(rig, 1, flags=0) == pmm.NO_BLOCK
        assert self.call(rig, 9) == pmm.FAILED

    def test_there_is_an_end_to_blocks(self) -> None:
        rig = self.rig()
        found = [self.allocate(rig, 1) for _ in range(30)]
        assert len(set(found)) == 21
        assert found[-1] == pmm.NO_BLOCK


@settings(max_examples=25)
@given(data=st.binary(max_size=600), units=st.integers(0, 3))
def test_any_bytes_may_be_a_rom(data: bytes, units: int) -> None:
    content = bytearray(b"\x55\xaa" + bytes((units,)) + data).ljust(1024, b"\0")
    image = sealed(content)
    pc_image(image, CARD)
    if valid(image):
        rig, registers = started(image)
        for _ in range(4):
            if registers.goto in ("start", "halt"):
                break
            registers = back(rig, registers) if registers.goto is None else rig.resume(registers)
