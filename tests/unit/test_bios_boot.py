"""POST, the boot order, the menu, and booting from floppy, hard disk and CD."""

from __future__ import annotations

import struct

import pytest

from pyvm.firmware.bios.cdrom_boot import CdBootError, find_entry
from pyvm.firmware.bios.drives import CD_SECTOR, Drive, Geometry
from pyvm.firmware.bios.machine import BiosDisk, BootConfig
from pyvm.firmware.bios.registers import Registers
from tests.unit.bios_rig import BUFFER, MemoryDisk, Rig, boot_disk, hard_disk

CATALOGUE = 20
IMAGE = 30


def cd(media: int = 0, segment: int = 0, sectors: int = 4, *, image: bytes = b"image") -> MemoryDisk:
    """Return a CD whose boot catalogue names one image."""
    data = bytearray(CD_SECTOR * 2000)
    record = b"\0CD001\1EL TORITO SPECIFICATION".ljust(0x47, b"\0") + CATALOGUE.to_bytes(4, "little")
    data[17 * CD_SECTOR : 17 * CD_SECTOR + len(record)] = record
    entry = b"\1".ljust(0x1E, b"\0") + b"\x55\xaa" + struct.pack("<BBHBBHI", 0x88, media, segment, 0, 0, sectors, IMAGE)
    data[CATALOGUE * CD_SECTOR : CATALOGUE * CD_SECTOR + len(entry)] = entry
    data[IMAGE * CD_SECTOR : IMAGE * CD_SECTOR + len(image)] = image
    return MemoryDisk(data, read_only=True)


def cd_drive(backend: MemoryDisk, **values: object) -> BiosDisk:
    return BiosDisk("cdrom", backend, "cd", interface="ide", **values)  # type: ignore[arg-type]


def floppy(backend: MemoryDisk) -> BiosDisk:
    return BiosDisk("floppy", backend, "floppy", interface="floppy")


def boot(rig: Rig) -> Registers:
    return rig.trap("int19_load")


def where(registers: Registers) -> tuple[int, int, int]:
    return registers.cs, registers.eip, registers.dl


def test_post_says_hello_and_boots() -> None:
    rig = Rig([hard_disk(boot_disk())], start=False)
    registers = rig.trap("post", esp=0, ss=0x1234)
    assert registers.goto == "start"
    assert (registers.ss, registers.esp) == (0, 0x7000)
    assert b"pyvm BIOS" in rig.line.output
    assert rig.ports.read(0x21, 1) & 3 == 0  # timer and keyboard may interrupt


def test_hard_disk() -> None:
    rig = Rig([hard_disk(boot_disk(code=b"code"))])
    registers = boot(rig)
    assert where(registers) == (0, 0x7C00, 0x80)
    assert rig.memory.read(0x7C00, 4) == b"code"
    assert rig.line.output.endswith(b"Booting from Hard Disk...\r\n")


def test_nothing_to_boot() -> None:
    rig = Rig([hard_disk(MemoryDisk(bytes(1 << 20)))])
    registers = boot(rig)
    assert registers.goto == "halt"
    text = rig.line.output.decode()
    assert "Boot failed: not a bootable disk\r\n" in text
    assert text.endswith("No bootable device.\r\n")


def test_an_unreadable_disk_is_passed_over() -> None:
    disk = boot_disk()
    rig = Rig([hard_disk(disk), floppy(boot_disk(1440 * 1024))])
    disk.broken = True
    assert boot(rig).dl == 0
    assert b"could not read the boot disk" in rig.line.output


def test_floppies_without_a_signature() -> None:
    small, large = boot_disk(1440 * 1024), boot_disk()
    small.data[510:512] = large.data[510:512] = bytes(2)
    disks = (floppy(small), hard_disk(large))
    rig = Rig(disks, boot=BootConfig(order="a"))
    assert boot(rig).goto == "halt"
    rig = Rig(disks, boot=BootConfig(order="a", check_floppies=False))
    assert where(boot(rig)) == (0, 0x7C00, 0)
    assert rig.trap("int18").goto == "halt"  # a hard disk needs one


def test_retry_after_a_time() -> None:
    rig = Rig(boot=BootConfig(reboot_timeout=5000))
    registers = boot(rig)
    assert registers.goto == "retry"
    assert b"Retrying in 5 seconds." in rig.line.output
    rig.clock.advance(4_999_000_000)
    assert rig.resume(registers).goto == "retry"
    assert rig.resets == 0
    rig.clock.advance(1_000_000)
    assert rig.resume(registers).goto == "halt"
    assert rig.resets == 1


def test_int_18_goes_on_with_the_list() -> None:
    rig = Rig([hard_disk(boot_disk()), floppy(boot_disk(1440 * 1024)), cd_drive(cd())])
    found = [boot(rig).dl, rig.trap("int18").dl, rig.trap("int18").dl]
    assert found == [0x80, 0x00, 0xE0]
    assert rig.trap("int18").goto == "halt"


class TestOrder:
    DISKS = (hard_disk(boot_disk()), floppy(boot_disk(1440 * 1024)), cd_drive(cd()))

    @pytest.mark.parametrize(("order", "first"), [("cad", 0x80), ("dc", 0xE0), ("a", 0), ("n", 0), ("nc", 0x80)])
    def test_letters(self, order: str, first: int) -> None:
        assert boot(Rig(self.DISKS, boot=BootConfig(order=order))).dl == first

    def test_once(self) -> None:
        rig = Rig(self.DISKS, boot=BootConfig(order="c", once="d"))
        assert boot(rig).dl == 0xE0
        rig.bios.install()
        assert boot(rig).dl == 0x80

    def test_bootindex_comes_first(self) -> None:
        disks = (*self.DISKS[:2], cd_drive(cd(), bootindex=3))
        assert boot(Rig(disks, boot=BootConfig(order="a"))).dl == 0xE0

    def test_strict(self) -> None:
        disks = (hard_disk(MemoryDisk(bytes(1 << 20)), bootindex=1), self.DISKS[1])
        assert boot(Rig(disks, boot=BootConfig(strict=True))).goto == "halt"
        assert boot(Rig(disks)).dl == 0


class TestMenu:
    def rig(self, **values: object) -> tuple[Rig, Registers]:
        disks = (
            hard_disk(boot_disk(code=b"one")),
            hard_disk(boot_disk(code=b"two"), name="other"),
            floppy(boot_disk()),
        )
        rig = Rig(disks, boot=BootConfig(menu=True, **values), start=False)  # type: ignore[arg-type]
        return rig, rig.trap("post", esp=0)

    def test_nobody_is_there(self) -> None:
        rig, registers = self.rig(splash_time=100)
        assert registers.goto == "menu_prompt"
        assert rig.resume(registers).goto == "menu_prompt"
        rig.clock.advance(100_000_000)
        assert rig.resume(registers).goto == "start"
        assert registers.esp == 0x7000

    def test_a_choice(self) -> None:
        rig, registers = self.rig()
        rig.press("esc")
        assert rig.resume(registers).goto == "menu_choice"
        text = rig.line.output.decode()
        assert "Press ESC for boot menu." in text
        assert "1. Hard Disk [disk]" in text
        assert "2. Hard Disk [other]" in text
        assert "3. Floppy [Drive A]" in text
        rig.press("9")  # there is no such entry
        assert rig.resume(registers).goto == "menu_choice"
        rig.press("2")
        assert rig.resume(registers).goto == "start"
        assert registers.esp == 0x7000
        assert where(boot(rig)) == (0, 0x7C00, 0x80)
        assert rig.memory.read(0x7C00, 3) == b"two"
        # Only the first hard disk is tried, then what is behind it.
        assert rig.trap("int18").dl == 0

    def test_a_choice_from_the_console(self) -> None:
        rig, registers = self.rig()
        rig.line.type(b"\x1b")
        rig.resume(registers)
        for _ in range(3):
            rig.trap("int08")  # a lone Esc is known as one after some ticks
        assert rig.resume(registers).goto == "menu_choice"
        rig.line.type(b"3")
        assert rig.resume(registers).goto == "start"
        assert boot(rig).dl == 0

    def test_escape_again_keeps_the_order(self) -> None:
        rig, registers = self.rig()
        rig.press("esc")
        rig.resume(registers)
        rig.press("esc")
        assert rig.resume(registers).goto == "start"
        assert boot(rig).dl == 0x80


class TestCd:
    def test_no_emulation(self) -> None:
        rig = Rig([cd_drive(cd(segment=0x2000, sectors=8, image=b"loader"))])
        assert where(boot(rig)) == (0x2000, 0, 0xE0)
        assert rig.memory.read(0x20000, 6) == b"loader"
        registers = rig.call(0x13, eax=0x4B01, esi=BUFFER, edx=0xE0)
        assert (registers.ah, rig.carry) == (0, False)
        assert rig.memory.read(BUFFER, 8) == struct.pack("<BBBBI", 19, 0, 0xE0, 0, IMAGE)
        # Sectors of a CD have 2048 bytes.
        rig.memory.write(0x8000, struct.pack("<BBHHHQ", 16, 0, 1, BUFFER, 0, IMAGE))
        assert rig.call(0x13, eax=0x4200, esi=0x8000, edx=0xE0).ah == 0
        assert rig.memory.read(BUFFER, 6) == b"loader"
        rig.memory.write(BUFFER, struct.pack("<H", 30))
        assert rig.call(0x13, eax=0x4800, esi=BUFFER, edx=0xE0).ah == 0
        assert rig.memory.read_u16(BUFFER + 24) == 2048
        assert rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=0xE0).ah == 1
        assert rig.call(0x13, eax=0x4300, esi=0x8000, edx=0xE0).ah == 3

    def test_floppy_emulation(self) -> None:
        real = MemoryDisk(b"real".ljust(1440 * 1024, b"\0"))
        image = b"virtual".ljust(17 * 512, b"\0") + b"sector 18".ljust(512, b"\0")
        rig = Rig([cd_drive(cd(media=2, sectors=1, image=image)), floppy(real)], boot=BootConfig(order="d"))
        assert where(boot(rig)) == (0, 0x7C00, 0x00)
        assert rig.memory.read(0x7C00, 7) == b"virtual"
        assert rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=18).ax == 1
        assert rig.memory.read(BUFFER, 9) == b"sector 18"
        assert rig.call(0x13, eax=0x0301, ebx=BUFFER, ecx=18).ah == 3
        registers = rig.call(0x13, eax=0x0800)
        assert (registers.cl, registers.ch, registers.dh, registers.dl) == (18, 79, 1, 2)
        # The real drive has become B.
        rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=1)
        assert rig.memory.read(BUFFER, 4) == b"real"
        # Until the emulation is ended.
        assert rig.call(0x13, eax=0x4B00, esi=BUFFER, edx=0).ah == 0
        rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=0)
        assert rig.memory.read(BUFFER, 4) == b"real"
        assert rig.call(0x13, eax=0x4B01, esi=BUFFER, edx=0).ah == 1

    def test_hard_disk_emulation(self) -> None:
        mbr = bytearray(512)
        mbr[0x1BE : 0x1BE + 8] = bytes((0x80, 1, 1, 0, 6, 7, 32, 9))
        disks = [cd_drive(cd(media=4, sectors=1, image=bytes(mbr))), hard_disk(boot_disk(code=b"real"))]
        rig = Rig(disks, boot=BootConfig(order="d"))
        assert boot(rig).dl == 0x80
        registers = rig.call(0x13, eax=0x0800, edx=0x80)
        assert (registers.cl, registers.ch, registers.dh, registers.dl) == (32, 8, 7, 2)
        rig.call(0x13, eax=0x0201, ebx=BUFFER, ecx=1, edx=0x81)
        assert rig.memory.read(BUFFER, 4) == b"real"

    @pytest.mark.parametrize(
        ("place", "data", "code"),
        [
            (17 * CD_SECTOR, b"\1", 4),
            (17 * CD_SECTOR + 1, b"X", 5),
            (17 * CD_SECTOR + 0x47, b"\xff\xff\xff\xff", 7),
            (CATALOGUE * CD_SECTOR, b"\2", 8),
            (CATALOGUE * CD_SECTOR + 1, b"\2", 9),
            (CATALOGUE * CD_SECTOR + 0x1E, b"\0", 10),
            (CATALOGUE * CD_SECTOR + 0x20, b"\0", 11),
            (CATALOGUE * CD_SECTOR + 0x21, b"\5", 11),
        ],
    )
    def test_damage(self, place: int, data: bytes, code: int) -> None:
        disk = cd()
        disk.data[place : place + len(data)] = data
        none = Geometry(0, 0, 0)
        with pytest.raises(CdBootError) as caught:
            find_entry(Drive(0xE0, cd_drive(disk), CD_SECTOR, none, none))
        assert caught.value.code == code
        rig = Rig([cd_drive(disk)])
        assert boot(rig).goto == "halt"
        assert f"Could not read from CDROM (code {code:04x})".encode() in rig.line.output

    @pytest.mark.parametrize("entry", [(0x9000, 0xFFFF), (0, 0xFFFF), (0xA000, 4)])
    def test_images_that_do_not_fit(self, entry: tuple[int, int]) -> None:
        assert boot(Rig([cd_drive(cd(segment=entry[0], sectors=entry[1]))])).goto == "halt"

    def test_an_image_behind_the_end(self) -> None:
        disk = cd()
        disk.data[CATALOGUE * CD_SECTOR + 0x28 : CATALOGUE * CD_SECTOR + 0x2C] = b"\xff\xff\xff\xff"
        assert boot(Rig([cd_drive(disk)])).goto == "halt"

    def test_an_empty_drive(self) -> None:
        rig = Rig([cd_drive(MemoryDisk(b"")), hard_disk(boot_disk())], boot=BootConfig(order="d"))
        assert boot(rig).dl == 0x80


def test_a_jump_to_the_reset_vector_resets_the_machine() -> None:
    rig = Rig()
    assert rig.trap("post").goto == "halt"
    assert rig.resets > 0


def test_reset_makes_everything_anew() -> None:
    rig = Rig([hard_disk(boot_disk())])
    rig.memory.write(0, bytes(0x500))
    rig.memory.write(0xF8000, bytes(0x8000))
    rig.bios.install()
    assert rig.trap("post", esp=0).goto == "start"
    assert boot(rig).dl == 0x80
    assert rig.call(0x12).ax == 639
