"""What the tests of disk interfaces share: images to look at from both sides, and a guest that knows its disks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from images import debian
from images.build import Image, cache_directory
from images.modules import _decompressed as decompressed
from pyvm import Machine
from tests.guest.support import SOON

MIB = 1 << 20
BLOCK = 64 << 10
"""What diskctl reads and writes at once."""
FILE_SYSTEM_TOOLS = ("mke2fs", "e2fsck")


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, which must be content, and return what it printed; skips the test where it is not installed."""
    program = shutil.which("qemu-img")
    if program is None:
        pytest.skip("qemu-img is not installed")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=SOON)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


def assert_consistent(path: Path) -> None:
    """Assert that qemu-img finds neither damage nor leaks in an image that nobody uses."""
    result = json.loads(qemu_img("check", "--output=json", path))
    assert not {"corruptions", "leaks", "check-errors"} & {key for key, value in result.items() if value}, result


def content(path: Path, directory: Path) -> bytes:
    """Return what is on the disk in an image, which may be in use; its format is in its name."""
    if path.suffix != ".qcow2":
        return path.read_bytes()
    raw = directory / "content.raw"
    qemu_img("convert", "-U", "-O", "raw", path, raw)
    data = raw.read_bytes()
    raw.unlink()
    return data


def pattern(seed: int, offset: int, length: int) -> bytes:
    """Return what diskctl fills a range with."""
    words = ((seed << 48) ^ (place * 0x9E3779B97F4A7C15 & (1 << 64) - 1) for place in range(offset, offset + length, 8))
    return b"".join(word.to_bytes(8, "little") for word in words)


def build_diskctl(directory: Path) -> Path:
    """Return the program diskctl for the guest."""
    program = directory / "diskctl"
    source = Path(__file__).with_name("diskctl.c")
    subprocess.run(["gcc", "-static", "-O2", "-s", str(source), "-o", str(program)], check=True)
    return program


def pack_file_system_tools(path: Path) -> None:
    """Make an archive of the host's ext4 tools and all that they need; skips the test where the host has none."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, dereference=True) as archive:
        for name in FILE_SYSTEM_TOOLS:
            program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            if program is None:
                pytest.skip(f"{name} is not installed")
            archive.add(program, name)
            linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
            for library in re.findall(r"(/\S+) \(0x", linked):
                if Path(library).name not in archive.getnames():
                    archive.add(library, Path(library).name)


def floppy_module(image: Image) -> bytes:
    """Return the floppy driver of a guest's kernel, which the guest does not have."""
    name, version = next(item for item in image.packages.items() if item[0].startswith("linux-image-"))
    package = debian.Apt(cache_directory()).fetch(debian.Package(name, version, ()))
    (found,) = debian.files(package, lambda path: "/floppy.ko" in path)
    return decompressed(found.path, found.data or b"")


@dataclass
class DiskGuest:
    """A guest, and commands for its disks."""

    vm: Machine

    def prepare(self, diskctl: Path) -> None:
        """Bring diskctl into the guest."""
        self.vm.write_file("/tmp/diskctl", diskctl.read_bytes())
        self.vm.run("chmod 755 /tmp/diskctl")

    def run(self, command: str, timeout: float = SOON) -> str:
        """Run a command of the shell; it must succeed."""
        return self.vm.run(command, timeout).text

    def block_devices(self) -> dict[str, str]:
        """Return the names of all disks by where they are: pci address (bus), or ata and SCSI addresses."""
        links = self.run("cd /sys/block; for d in *; do echo $d $(readlink $d); done").splitlines()
        return {link: name for name, link in (line.split() for line in links)}

    def disk_at(self, place: str) -> str:
        """Return the name of the one disk whose path in /sys matches an expression."""
        (name,) = [name for link, name in self.block_devices().items() if re.search(place, link)]
        return name

    def digest(self, name: str) -> str:
        """Return the MD5 sum of a whole disk, as it is on the disk."""
        return self.run(f"echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/{name}").split()[0]

    def queue(self, name: str, attribute: str) -> str:
        """Return what the guest's block layer thinks of a disk."""
        return self.run(f"cat /sys/block/{name}/queue/{attribute}")

    def diskctl(self, *words: object, timeout: float = SOON) -> str:
        """Run diskctl and return what it printed, whether it was successful or not."""
        return self.vm.run(f"/tmp/diskctl {' '.join(map(str, words))}", timeout, check=False).text.strip()

    def fill(self, name: str, seed: int, offset: int, length: int) -> None:
        """Write a range, blocks that say where they are; all must arrive."""
        assert self.diskctl("fill", f"/dev/{name}", seed, offset, length) == str(length // BLOCK)

    def verify(self, name: str, seed: int, offset: int, length: int) -> None:
        """Assert that a range reads as it was filled."""
        assert self.diskctl("verify", f"/dev/{name}", seed, offset, length) == str(length // BLOCK)
