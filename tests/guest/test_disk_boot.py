"""An ordinary Debian disk (GRUB, ext4, systemd) boots: with either firmware, from each controller, on any image."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from images import debian, disk_media
from images.build import Image, cache_directory
from images.disk import DiskImage, build_disk
from tests.guest.conftest import ProcessFactory
from tests.guest.disk_support import (
    GRUB_LINES,
    LOGIN,
    PROMPT,
    DiskGuest,
    Line,
    assert_clean,
    booted,
    digest,
    make_overlay,
    virtual_size,
)
from tests.guest.support import SOON, Process, complaints, until

TWO_BOOTS = 2 * LOGIN + 2 * SOON


@pytest.fixture(scope="session")
def disk() -> DiskImage:
    """The disk guest: Debian 12 on a qcow2 image."""
    return build_disk(quiet=True)


@pytest.fixture(scope="session")
def seabios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SeaBIOS as Debian packages it."""
    apt = debian.Apt(cache_directory())
    package = apt.fetch(apt.find("seabios"))
    directory = tmp_path_factory.mktemp("firmware")
    names = {f"usr/share/seabios/{name}" for name in ("bios-256k.bin", "vgabios-stdvga.bin")}
    for file in debian.files(package, lambda path: path in names):
        (directory / Path(file.path).name).write_bytes(file.data or b"")
    return directory / "bios-256k.bin"


@pytest.fixture(params=["builtin", "seabios"])
def firmware(request: pytest.FixtureRequest) -> list[str]:
    """The options that choose a firmware."""
    return [] if request.param == "builtin" else ["-bios", str(request.getfixturevalue("seabios"))]


@pytest.fixture
def copy(disk: DiskImage, tmp_path: Path) -> Iterator[Path]:
    """A copy of the disk's image, to be written to; what was written must be in order in the end."""
    path = tmp_path / "copy.qcow2"
    shutil.copyfile(disk.disk, path)
    yield path
    assert_clean(path)


def assert_healthy(guest: DiskGuest, root: str) -> None:
    """Assert that all of the system has come up, from the device `root`."""
    assert guest.run("systemctl is-system-running --wait || systemctl --failed") == "running"
    assert guest.root_device == root
    assert complaints(guest.run("dmesg")) == []
    assert guest.run("swapon --noheadings --show=NAME") == f"{root[:-1]}2"


def assert_grub_was_here(guest: DiskGuest) -> None:
    for line in GRUB_LINES:
        assert line in guest.process.console_text


@pytest.mark.slow
@pytest.mark.timeout(TWO_BOOTS)
def test_a_backing_chain_boots_with_either_firmware(
    pyvm: ProcessFactory, disk: DiskImage, seabios: Path, tmp_path: Path
) -> None:
    """-drive without if= is virtio-blk.  What one boot writes, the next one reads; layers below stay as they are."""
    size = virtual_size(disk.disk)
    middle = make_overlay(tmp_path / "middle.qcow2", disk.disk, size)
    top = make_overlay(tmp_path / "top.qcow2", middle, size)
    before = digest(disk.disk), digest(middle)
    with booted(pyvm, tmp_path, "-drive", f"file={top}") as guest:
        assert_grub_was_here(guest)
        assert_healthy(guest, "/dev/vda1")
        guest.run("seq 1 500000 > /root/numbers && sync && rm /usr/share/common-licenses/GPL-1")
        expected = guest.run("md5sum /root/numbers /bin/bash /boot/vmlinuz-*")
        guest.power_off()
    assert_clean(top)
    assert (digest(disk.disk), digest(middle)) == before
    with booted(pyvm, tmp_path, "-bios", str(seabios), "-drive", f"file={top},if=virtio") as guest:
        assert_grub_was_here(guest)
        assert "recovering journal" not in guest.process.console_text
        assert guest.run("md5sum /root/numbers /bin/bash /boot/vmlinuz-*") == expected
        assert guest.run("test -e /usr/share/common-licenses/GPL-1 || echo gone") == "gone"
        assert_healthy(guest, "/dev/vda1")
        guest.power_off()
    assert_clean(top)
    assert (digest(disk.disk), digest(middle)) == before


@pytest.mark.slow
def test_ide_disk_with_snapshot_leaves_the_image_alone(pyvm: ProcessFactory, disk: DiskImage, tmp_path: Path) -> None:
    before = digest(disk.disk)
    with booted(pyvm, tmp_path, "-snapshot", "-hda", str(disk.disk)) as guest:
        assert_grub_was_here(guest)
        assert_healthy(guest, "/dev/sda1")
        assert "/ata" in guest.run("readlink -f /sys/block/sda")
        written = guest.run(
            "dd if=/dev/urandom of=/root/noise bs=1M count=8 conv=fsync status=none; md5sum /root/noise"
        )
        assert guest.run("echo 3 > /proc/sys/vm/drop_caches; md5sum /root/noise") == written
        guest.power_off()
    assert digest(disk.disk) == before


@pytest.mark.slow
def test_ide_disk_with_seabios_and_a_person_at_the_console(
    pyvm: ProcessFactory, disk: DiskImage, copy: Path, seabios: Path, tmp_path: Path
) -> None:
    line_path = tmp_path / "line.sock"
    options = ["-display", "none", "-serial", f"unix:{line_path},server=on,wait=off", "-m", "512"]
    process = pyvm(*options, "-bios", str(seabios), "-hda", str(copy), console=False)
    with closing(Line(line_path)) as line:
        for text in GRUB_LINES:
            line.expect(text, LOGIN)
        line.expect(PROMPT, LOGIN)
        line.type("root\r")
        line.expect("Password: ", LOGIN)
        line.type(f"{disk.password}\r")
        line.expect("root@pyvm-disk:~# ", LOGIN)
        line.type("findmnt -nro SO''URCE,FSTYPE /; echo $((6 * 7)) > /root/answer; poweroff\r")
        line.expect("/dev/sda1 ext4", SOON)
        line.expect("reboot: Power down", SOON)
        assert process.end() == (0, "", "")


@pytest.mark.slow
def test_scsi_disk(pyvm: ProcessFactory, copy: Path, tmp_path: Path) -> None:
    drive = ["-drive", f"file={copy},if=none,id=d0", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=d0"]
    with booted(pyvm, tmp_path, *drive) as guest:
        assert_grub_was_here(guest)
        assert_healthy(guest, "/dev/sda1")
        assert "/virtio" in guest.run("readlink -f /sys/block/sda")
        guest.power_off()


@pytest.mark.slow
def test_kernel_of_the_disk_without_its_boot_loader(
    pyvm: ProcessFactory, disk: DiskImage, copy: Path, tmp_path: Path
) -> None:
    kernel = ["-kernel", str(disk.kernel), "-initrd", str(disk.initrd), "-append", disk.append]
    with booted(pyvm, tmp_path, *kernel, "-drive", f"file={copy},if=virtio") as guest:
        assert_healthy(guest, "/dev/vda1")
        assert guest.run("uname -r") == disk.release
        assert GRUB_LINES[0] not in guest.process.console_text
        guest.run("fstrim / && sync")
        guest.power_off()


@pytest.fixture(scope="session")
def media(demo: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small media that report on the first serial line and power off."""
    directory = tmp_path_factory.mktemp("media")
    disk_media.make_disk(directory / "disk.img")
    disk_media.make_floppy(directory / "floppy.img")
    disk_media.make_cdrom(directory / "cdrom.iso", demo)
    return directory


class TestSmallMedia:
    """Each says what it has read, and powers off."""

    REPORT = ("pyvm: boot drive 80", disk_media.BY_CHS.decode().strip(), disk_media.BY_NUMBER.decode().strip())

    @pytest.mark.parametrize("interface", ["ide", "virtio"])
    def test_master_boot_record(self, pyvm: ProcessFactory, firmware: list[str], media: Path, interface: str) -> None:
        process = pyvm(*firmware, "-drive", f"file={media / 'disk.img'},format=raw,if={interface}")
        assert process.end() == (0, "", "")
        assert tuple(process.console_text.splitlines()[-3:]) == self.REPORT

    def test_floppy_with_syslinux(self, pyvm: ProcessFactory, firmware: list[str], media: Path) -> None:
        process = pyvm(*firmware, "-drive", f"file={media / 'floppy.img'},format=raw,if=floppy")
        assert process.end() == (0, "", "")
        assert "SYSLINUX" in process.console_text
        assert process.console_text.splitlines()[-1] == "pyvm: boot drive 00"

    def test_cdrom_with_grub_and_linux(self, pyvm: ProcessFactory, firmware: list[str], media: Path) -> None:
        process = pyvm(*firmware, "-m", "512", "-cdrom", str(media / "cdrom.iso"))
        assert process.end() == (0, "", "")
        assert disk_media.CD_TEXT in process.console_text
        assert "pyvm: init of the CD, command line" in process.console_text
        assert "media=cdrom" in process.console_text.rpartition("init of the CD")[2]

    @pytest.mark.parametrize(("order", "expected"), [("c", "boot drive 80"), ("d", disk_media.CD_TEXT)])
    def test_boot_order(
        self, pyvm: ProcessFactory, firmware: list[str], media: Path, order: str, expected: str
    ) -> None:
        drives = ["-drive", f"file={media / 'disk.img'},format=raw,if=ide", "-cdrom", str(media / "cdrom.iso")]
        process = pyvm(*firmware, "-m", "512", *drives, "-boot", f"order={order}")
        assert process.end() == (0, "", "")
        assert [text for text in ("boot drive 80", disk_media.CD_TEXT) if text in process.console_text] == [expected]

    def test_menu(self, pyvm: ProcessFactory, firmware: list[str], media: Path) -> None:
        """A script presses Esc and chooses what is not first in the order."""
        drives = ["-drive", f"file={media / 'disk.img'},format=raw,if=ide", "-cdrom", str(media / "cdrom.iso")]
        process = pyvm(*firmware, "-m", "512", *drives, "-boot", "order=c,menu=on,splash-time=60000")
        until(lambda: "for boot menu" in screen_text(process), "what to press for the menu")
        press(process, "esc")
        (choice,) = until(lambda: [line.strip()[0] for line in screen_lines(process) if "DVD" in line], "the menu")
        press(process, choice)
        assert process.end() == (0, "", "")
        assert disk_media.CD_TEXT in process.console_text
        assert "boot drive 80" not in process.console_text

    def test_picture_at_the_menu(self, pyvm: ProcessFactory, seabios: Path, tmp_path: Path) -> None:
        picture = tmp_path / "picture.bmp"
        picture.write_bytes(bmp(640, 480, (0x20, 0x40, 0xE0)))
        process = pyvm("-bios", str(seabios), "-boot", f"menu=on,splash={picture},splash-time=60000")

        def colours() -> set[bytes]:
            shot = tmp_path / "shot.ppm"
            process.qmp.command("screendump", filename=str(shot))
            header, pixels = shot.read_bytes().split(b"255\n", 1)
            return {pixels[at : at + 3] for at in range(0, len(pixels), 3)} if b"640 480" in header else set()

        # 16 bits for a pixel: the lowest of each colour are gone.
        until(
            lambda: {bytes(part & 0xF8 for part in colour) for colour in colours()} == {b"\x20\x40\xe0"}, "the picture"
        )


TEXT_MEMORY, LINE_BYTES, LINES = 0xB8000, 160, 25


def screen_lines(process: Process) -> list[str]:
    """Return what is on the screen in text mode, by line."""
    path = process.directory / "text"
    process.qmp.command("pmemsave", val=TEXT_MEMORY, size=LINE_BYTES * LINES, filename=str(path))
    memory = path.read_bytes()
    return [memory[at : at + LINE_BYTES : 2].decode("cp437") for at in range(0, len(memory), LINE_BYTES)]


def screen_text(process: Process) -> str:
    return "\n".join(screen_lines(process))


def press(process: Process, key: str) -> None:
    process.qmp.command("send-key", keys=[{"type": "qcode", "data": key}])


def bmp(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """Return a picture in one colour (red, green, blue), 24 bits for a pixel."""
    pixels = bytes(reversed(colour)) * (width * height)
    size = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(size) + len(pixels), 0, 0, 14 + len(size)) + size + pixels
