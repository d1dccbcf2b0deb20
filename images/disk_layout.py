"""Lays out a bootable PC disk in a file: partition table, GRUB in the gap behind it, ext4 from a directory, swap.

No loop device and no mount is needed: mke2fs fills the file system as it makes it, and GRUB is put where grub-install
puts it.  Sources: the MBR's partition table; GRUB 2, "BIOS installation" in the manual, include/grub/i386/pc/boot.h;
Linux, the header of a swap area (mm/swapfile.c).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

SECTOR = 512
MIB = 1 << 20
PAGE = 4096
SUPERBLOCK = 1024
"""Where ext4 keeps it, with the numbers of all and of the free inodes at 0 and 16."""

LINUX, LINUX_SWAP = 0x83, 0x82
"""Partition types."""
DISK_SIGNATURE = 0x1B8
PARTITION_TABLE = 0x1BE
BOOT_SIGNATURE = b"\x55\xaa"
ACTIVE = 0x80
BEYOND_CHS = b"\xfe\xff\xff"
"""The cylinder, head and sector of what only LBA reaches."""

# boot.img, the MBR's code.
BOOT_KERNEL_SECTOR = 0x5C
BOOT_DRIVE = 0x64
BOOT_DRIVE_CHECK = 0x66
BOOT_CODE_END = DISK_SIGNATURE
DRIVE_OF_THE_BIOS = 0xFF
NO_CHECK = b"\x90\x90"
# diskboot.img, the first sector of core.img: the first (and here only) entry of its list of blocks, at the end.
BLOCK_LIST = struct.Struct("<QHH")
BLOCK_LIST_START = SECTOR - BLOCK_LIST.size


class LayoutError(RuntimeError):
    """The disk cannot be made; the message is for the person at the prompt."""


@dataclass(frozen=True)
class Partition:
    """A primary partition; start and size are in bytes."""

    kind: int
    start: int
    size: int
    active: bool = False

    def entry(self) -> bytes:
        """Return the partition's 16 bytes in the partition table."""
        flag = ACTIVE if self.active else 0
        chs = BEYOND_CHS
        return struct.pack("<B3sB3sII", flag, chs, self.kind, chs, self.start // SECTOR, self.size // SECTOR)


def master_boot_record(code: bytes, partitions: list[Partition], signature: int) -> bytes:
    """Return a first sector: `code`, the disk's signature and the partition table.

    Raises LayoutError if the code does not fit, or partitions overlap.
    """
    if len(code) > BOOT_CODE_END:
        raise LayoutError(f"the boot code has {len(code)} bytes; there is room for {BOOT_CODE_END}")
    if len(partitions) > 4:
        raise LayoutError("a partition table has four entries")
    end = SECTOR
    for partition in partitions:
        if partition.start < end or partition.start % SECTOR or partition.size % SECTOR:
            raise LayoutError(f"the partition at {partition.start} overlaps another, or is not of whole sectors")
        end = partition.start + partition.size
    table = b"".join(partition.entry() for partition in partitions).ljust(64, b"\0")
    return code.ljust(DISK_SIGNATURE, b"\0") + struct.pack("<IH", signature, 0) + table + BOOT_SIGNATURE


def grub_boot_code(boot_image: bytes, core_sector: int) -> bytes:
    """Return the code of GRUB's boot.img, told where core.img begins."""
    if len(boot_image) != SECTOR or boot_image[-2:] != BOOT_SIGNATURE:
        raise LayoutError("GRUB's boot.img is not a boot sector")
    code = bytearray(boot_image[:BOOT_CODE_END])
    struct.pack_into("<Q", code, BOOT_KERNEL_SECTOR, core_sector)
    code[BOOT_DRIVE] = DRIVE_OF_THE_BIOS
    # boot.img distrusts drive numbers below 80h, as for a floppy; grub-install switches that on for hard disks.
    code[BOOT_DRIVE_CHECK : BOOT_DRIVE_CHECK + 2] = NO_CHECK
    return bytes(code)


def grub_core(core_image: bytes, sector: int) -> bytes:
    """Return GRUB's core.img as it lies on the disk from `sector` on: its first sector loads the others."""
    core = bytearray(core_image.ljust(-(-len(core_image) // SECTOR) * SECTOR, b"\0"))
    _, _, segment = BLOCK_LIST.unpack_from(core, BLOCK_LIST_START)
    count = len(core) // SECTOR - 1
    if count < 1 or segment == 0:
        raise LayoutError("GRUB's core.img does not begin with diskboot.img")
    BLOCK_LIST.pack_into(core, BLOCK_LIST_START, sector + 1, count, segment)
    return bytes(core)


def swap_header(size: int, uuid: UUID) -> bytes:
    """Return the first page of an empty swap area of `size` bytes."""
    # Version 1, the last page, no bad pages; in the last ten bytes the magic.
    page = bytearray(PAGE)
    struct.pack_into("<III16s", page, 1024, 1, size // PAGE - 1, 0, uuid.bytes)
    page[-10:] = b"SWAPSPACE2"
    return bytes(page)


def tool(name: str, package: str) -> str:
    """Return the path of a program, or of a file that is named by its path; its Debian package brings it.

    The package is installed where that is missing and the user is root.  Raises LayoutError where it stays missing.
    """
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

    def find() -> str | None:
        return shutil.which(name, mode=os.F_OK if name.startswith("/") else os.F_OK | os.X_OK, path=search)

    found = find()
    if found is None and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "--yes", "--no-install-recommends", package]
        subprocess.run(command, capture_output=True, env=environment, check=False)
        found = find()
    if found is None:
        raise LayoutError(f"{name} is needed: apt-get install {package}, as root")
    return found


def _run(environment: dict[str, str], *command: str, stdin: str = "") -> None:
    environment = {**os.environ, **environment}
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        name = Path(command[0]).name
        raise LayoutError(f"{name} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")


def make_ext4(file: Path, partition: Partition, contents: Path, uuid: UUID, date: int) -> None:
    """Make an ext4 file system in a partition of `file`, with the files of the directory `contents`.

    Its dates are `date`, in seconds since 1970, but for those that files were last written.  Raises LayoutError.
    """
    extended = f"offset={partition.start},hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    _run(
        # The features are those of Debian 12, whatever the host is: GRUB must know them.
        {"MKE2FS_CONFIG": str(contents / "etc/mke2fs.conf"), "E2FSPROGS_FAKE_TIME": str(date)},
        *(tool("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", "-L", "root", "-m", "1", "-U", str(uuid)),
        *("-E", extended, "-J", "size=32", "-d", str(contents), str(file), f"{partition.size // 1024}k"),
    )
    # mke2fs takes over when the files were made and last read, which is now.
    commands = (
        f"set_inode_field <{inode}> {field} @{date}\n"
        for inode in range(1, _inodes_in_use(file, partition) + 1)
        for field in ("atime", "ctime")
    )
    debugfs = tool("debugfs", "e2fsprogs")
    _run({"E2FSPROGS_FAKE_TIME": str(date)}, debugfs, "-w", f"{file}?offset={partition.start}", stdin="".join(commands))


def _inodes_in_use(file: Path, partition: Partition) -> int:
    """Return how many inodes of a new file system are used, which are the first ones."""
    with file.open("rb") as disk:
        disk.seek(partition.start + SUPERBLOCK)
        count, free = struct.unpack("<I12xI", disk.read(20))
    return int(count - free)
