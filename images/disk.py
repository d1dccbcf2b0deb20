"""Builds the disk guest: an ordinary Debian 12 on a qcow2 image that boots as a PC does.

    python -m images.build disk     build (or find in the cache) and print the paths as JSON

The disk has a partition table, GRUB 2, a root file system (ext4) and a swap area; in it are systemd, Debian's cloud
kernel with the initramfs that Debian makes, and qemu-guest-agent.  Its console is ttyS0, where root logs in with
the password `pyvm`.  It boots from any controller, since all is found by UUID.

Packages come by apt-get download and are configured by their own dpkg in a chroot, which takes root; loop devices and
mounts are not needed.  The image lies in the cache under a name made from this recipe and the versions of all packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from images import build, debian, disk_layout, disk_qcow2, disk_root, disk_settings
from images.disk_layout import MIB, SECTOR, Partition
from images.progress import Progress, progress

NAME = "disk"
ROOT = Partition(disk_layout.LINUX, 1 * MIB, 1535 * MIB, active=True)
SWAP = Partition(disk_layout.LINUX_SWAP, 1536 * MIB, 512 * MIB)
SIZE = SWAP.start + SWAP.size
SOURCES = ("disk.py", "disk_layout.py", "disk_qcow2.py", "disk_root.py", "disk_settings.py", "debian.py")


@dataclass(frozen=True)
class DiskImage:
    """A built disk, and what it takes to boot its system without its boot loader."""

    name: str
    disk: Path
    kernel: Path
    initrd: Path
    append: str
    release: str
    """The kernel's release, as uname -r says in the guest."""
    password: str
    """Of root."""
    packages: dict[str, str]

    def to_json(self) -> str:
        """Return the disk's description as JSON."""
        return json.dumps(asdict(self), default=str, indent=2)


def _recipe_digest() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((build.HERE / name).read_bytes())
    return digest.hexdigest()[:12]


def _versions(packages: list[debian.Package]) -> dict[str, str]:
    return {package.name: package.version for package in packages}


def _read(directory: Path) -> DiskImage | None:
    paths = {"disk": directory / "disk.qcow2", "kernel": directory / "vmlinuz", "initrd": directory / "initrd"}
    try:
        record: dict[str, Any] = json.loads((directory / "image.json").read_text())
        image = DiskImage(**{**record, **paths})
    except (OSError, ValueError, TypeError):
        return None
    return image if all(path.exists() for path in paths.values()) else None


def _identity(digest: str) -> disk_settings.Identity:
    parts = (uuid5(NAMESPACE_URL, f"pyvm:images/disk/{digest}/{part}") for part in ("root", "swap", "machine"))
    return disk_settings.Identity(*parts)


def _write_disk(raw: Path, root: disk_root.Root, identity: disk_settings.Identity, core_image: bytes) -> None:
    core = disk_layout.grub_core(core_image, sector=1)
    if SECTOR + len(core) > ROOT.start:
        raise disk_layout.LayoutError("GRUB's core.img does not fit before the first partition")
    boot_image = (root.path / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    code = disk_layout.grub_boot_code(boot_image, core_sector=1)
    with raw.open("wb") as file:
        file.truncate(SIZE)
    disk_layout.make_ext4(raw, ROOT, root.path, identity.root, root.date)
    with raw.open("r+b") as file:
        file.write(disk_layout.master_boot_record(code, [ROOT, SWAP], identity.root.time_low))
        file.write(core)
        file.seek(SWAP.start)
        file.write(disk_layout.swap_header(SWAP.size, identity.swap))


def _make(apt: debian.Apt, packages: list[debian.Package], target: Path, show: Progress) -> None:
    """Build the image in the directory `target`."""
    with show.phase("packages", 1):
        show.step(f"{len(packages)} packages")
        files = apt.fetch_all(packages)
        essential = [package.name for package in apt.closure(disk_root.ESSENTIAL)]
    identity = _identity(target.name.partition(".")[0])
    root = disk_root.Root(target / "root", max(debian.date(path) for path in files.values()))
    root.path.mkdir(mode=0o755)
    with show.phase("system", 5):
        disk_settings.before_packages(root, identity)
        disk_root.install(root, essential, files, show)
        disk_settings.after_packages(root, identity)
    with show.phase("disk", 3):
        core_image = disk_settings.install_grub(root, identity)
        disk_settings.settle(root)
        show.step("file system")
        _write_disk(target / "raw", root, identity, core_image)
        show.step("qcow2 image")
        disk_qcow2.write_qcow2(target / "raw", target / "disk.qcow2")
    release = disk_settings.release(root)
    shutil.copy(root.path / f"boot/vmlinuz-{release}", target / "vmlinuz")
    shutil.copy(root.path / f"boot/initrd.img-{release}", target / "initrd")
    (target / "raw").unlink()
    shutil.rmtree(root.path)
    record = {
        "name": NAME,
        "append": disk_settings.kernel_arguments(identity),
        "release": release,
        "password": disk_settings.PASSWORD,
        "packages": _versions(packages),
    }
    (target / "image.json").write_text(json.dumps(record, indent=2) + "\n")


def _build(apt: debian.Apt, packages: list[debian.Package], target: Path, *, quiet: bool) -> None:
    if os.geteuid() != 0:
        raise build.BuildError("the disk guest is installed in a chroot: run this as root; any user can use it then")
    work = target.with_name(f"{target.name}.{os.getpid()}")
    with progress(f"building guest {NAME}", quiet=quiet) as show:
        try:
            work.mkdir()
            _make(apt, packages, work, show)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        except (disk_root.RootError, disk_layout.LayoutError) as error:
            raise build.BuildError(str(error)) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _current(apt: debian.Apt, directory: Path, prefix: str, *, quiet: bool) -> DiskImage:
    """Return the image of the packages that the lists offer now."""

    def wanted() -> tuple[list[debian.Package], Path]:
        packages = apt.closure(disk_root.PACKAGES)
        digest = hashlib.sha256(json.dumps(_versions(packages), sort_keys=True).encode()).hexdigest()[:12]
        return packages, directory / f"{prefix}-{digest}"

    try:
        packages, target = wanted()
        if (image := _read(target)) is not None:
            return image
        apt.fetch_all(packages)
    except debian.PackageError:
        # The lists may be older than the mirror: once more with new ones.
        apt.update()
        packages, target = wanted()
    if (image := _read(target)) is None:
        _build(apt, packages, target, quiet=quiet)
        image = _read(target)
    assert image is not None
    return image


def build_disk(*, quiet: bool = False) -> DiskImage:
    """Return the disk guest, building it unless the cache has a current one.

    Raises build.BuildError or debian.PackageError, with a message for a person.
    """
    directory = build.cache_directory() / "images"
    prefix = f"{NAME}-{_recipe_digest()}"
    with build.locked(directory):
        try:
            image = _current(debian.Apt(build.cache_directory()), directory, prefix, quiet=quiet)
        except debian.PackageError as error:
            found = sorted(directory.glob(f"{prefix}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
            if not (before := [built for path in found if (built := _read(path)) is not None]):
                raise
            print(f"guest {NAME}: using the one built before, since {error}", file=sys.stderr)
            image = before[0]
        with suppress(OSError):
            build.forget_others(directory, NAME, keep=image.disk.parent)
        return image
