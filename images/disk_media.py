"""Makes small boot media: a disk with a boot sector that reports, a floppy with syslinux, a CD with GRUB and Linux.

    python -m images.disk_media DIRECTORY       make disk.img, floppy.img and cdrom.iso there

Each says on the first serial line that it was booted, and powers off.  They take a second or two to make, so they are
not cached.  The programs used are Debian's (syslinux, mtools, grub-mkrescue, xorriso), installed by apt-get where they
are missing and the user is root.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from images import build, cpio, debian
from images.disk_layout import BOOT_CODE_END, LINUX, MIB, SECTOR, LayoutError, Partition, master_boot_record, tool

SOURCES = Path(__file__).parent / "disk_guest"
SIGNATURE = 0x70795649
DISK_SIZE = 4 * MIB
FLOPPY_KIB = 1440
BY_CHS = b"pyvm: read by cylinder, head and sector\r\n"
BY_NUMBER = b"pyvm: read by number\r\n"
CD_TEXT = "pyvm: GRUB on the CD"

SYSLINUX_CONFIGURATION = """\
SERIAL 0 9600
PROMPT 1
TIMEOUT 5
DEFAULT report
LABEL report
  BOOT report.bss
"""
GRUB_CONFIGURATION = f"""\
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
echo '{CD_TEXT}'
linux /boot/vmlinuz {build.APPEND} media=cdrom
initrd /boot/initrd
boot
"""
GRUB_MODULES = "normal linux serial terminal echo iso9660 biosdisk test"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LayoutError(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def boot_sector() -> bytes:
    """Return the boot sector that reports what it finds, without a partition table."""
    return build.compile_boot_sector(SOURCES / "boot.S")


def make_disk(path: Path) -> None:
    """Make a disk of which nothing but the first three sectors is used."""
    partition = Partition(LINUX, MIB, DISK_SIZE - MIB, active=True)
    first = master_boot_record(boot_sector()[:BOOT_CODE_END], [partition], SIGNATURE)
    with path.open("wb") as file:
        file.truncate(DISK_SIZE)
        for sector in (first, BY_CHS, BY_NUMBER):
            file.write(sector.ljust(SECTOR, b"\0"))


def make_floppy(path: Path) -> None:
    """Make a floppy of 1440 KiB, FAT, with syslinux, which starts the boot sector that reports."""
    mtools = {name: tool(name, "mtools") for name in ("mformat", "mcopy")}
    syslinux = tool("syslinux", "syslinux")
    with tempfile.TemporaryDirectory() as name:
        files = {"syslinux.cfg": SYSLINUX_CONFIGURATION.encode(), "report.bss": boot_sector()}
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        path.unlink(missing_ok=True)
        serial = f"{SIGNATURE:08x}"
        _run(mtools["mformat"], "-C", "-f", str(FLOPPY_KIB), "-v", "PYVM", "-N", serial, "-i", str(path), "::")
        _run(mtools["mcopy"], "-i", str(path), *(str(Path(name) / file) for file in files), "::/")
        _run(syslinux, "--install", str(path))


def make_cdrom(path: Path, image: build.Image) -> None:
    """Make a CD that boots without emulation (El Torito) into GRUB, and from there the kernel of `image`."""
    rescue = tool("grub-mkrescue", "grub-common")
    tool("xorriso", "xorriso")
    tool("mformat", "mtools")
    platform = Path(tool("/usr/lib/grub/i386-pc/cdboot.img", "grub-pc-bin")).parent
    initramfs = cpio.Archive()
    initramfs.file("init", build.compile_static(SOURCES / "init.c"), 0o755)
    initramfs.character_device("dev/console", 5, 1)
    with tempfile.TemporaryDirectory() as name:
        boot = Path(name) / "boot"
        (boot / "grub").mkdir(parents=True)
        (boot / "vmlinuz").write_bytes(image.kernel.read_bytes())
        (boot / "initrd").write_bytes(initramfs.to_bytes())
        (boot / "grub" / "grub.cfg").write_text(GRUB_CONFIGURATION)
        _run(
            *(rescue, f"--directory={platform}", f"--install-modules={GRUB_MODULES}", f"--modules={GRUB_MODULES}"),
            *("--fonts=", "--locales=", "--themes=", f"--output={path}", name),
        )


def main(arguments: list[str]) -> int:
    """Make all media in the directory named."""
    if len(arguments) != 1:
        print("usage: python -m images.disk_media DIRECTORY", file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    try:
        os.makedirs(directory, exist_ok=True)
        make_disk(directory / "disk.img")
        make_floppy(directory / "floppy.img")
        make_cdrom(directory / "cdrom.iso", build.build("demo"))
    except (LayoutError, build.BuildError, debian.PackageError, OSError) as error:
        print(f"images.disk_media: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
