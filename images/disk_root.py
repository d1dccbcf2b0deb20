"""Installs Debian into a directory: packages unpacked and configured by their own dpkg, in a chroot.

This is what debootstrap does, with packages that are already there.  Nothing is mounted, so it works in a container;
only the chroot, the device nodes in it and the owners of files need root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from images.progress import Progress

ESSENTIAL = ["?essential", "usr-is-merged"]

PACKAGES = [
    *ESSENTIAL,
    *"""
apt ca-certificates systemd systemd-sysv udev dbus libpam-systemd kmod iproute2 procps login
passwd e2fsprogs fdisk initramfs-tools zstd linux-image-cloud-amd64 grub2-common grub-pc-bin qemu-guest-agent
""".split(),
]
"""What the system consists of, and with it all that these depend on; what they recommend is left out."""

MERGED = ("bin", "sbin", "lib", "lib64")
"""Directories of / that are links into /usr (Debian's usrmerge)."""

DEVICES = {
    "null": (1, 3, 0o666),
    "zero": (1, 5, 0o666),
    "full": (1, 7, 0o666),
    "random": (1, 8, 0o666),
    "urandom": (1, 9, 0o666),
    "tty": (5, 0, 0o666),
    "console": (5, 1, 0o600),
}

EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
"""Translations and manuals are a third of the files, and of no use to a guest."""
INCLUDED = "/usr/share/doc/*/copyright"

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
}


class RootError(RuntimeError):
    """The system cannot be installed; the message is for the person at the prompt."""


class Root:
    """A Debian system in the making, at `path`, an empty directory; `date` (s since 1970) is what its tools go by."""

    def __init__(self, path: Path, date: int) -> None:
        self.path = path
        self.date = date

    def run(self, *command: str) -> str:
        """Run a program of the system in it and return its output; raises RootError if it fails."""
        done = subprocess.run(
            ["chroot", str(self.path), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**ENVIRONMENT, "SOURCE_DATE_EPOCH": str(self.date)},
            check=False,
        )
        if done.returncode != 0:
            lines = done.stdout.strip().splitlines()[-12:]
            raise RootError(f"{command[0]} failed in the new system:\n  " + "\n  ".join(lines))
        return done.stdout

    def write(self, name: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the system."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def link(self, name: str, target: str) -> None:
        """Make a symbolic link in the system, replacing what was there."""
        path = self.path / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def _skeleton(root: Root) -> None:
    for name in MERGED:
        (root.path / "usr" / name).mkdir(parents=True)
        root.link(name, f"usr/{name}")
    for name in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "etc/dpkg/dpkg.cfg.d", "dev"):
        (root.path / name).mkdir(parents=True)
    for name in ("status", "available"):
        root.write(f"var/lib/dpkg/{name}", "")
    excludes = [*(f"path-exclude={pattern}" for pattern in EXCLUDED), f"path-include={INCLUDED}"]
    root.write("etc/dpkg/dpkg.cfg.d/excludes", "".join(f"{line}\n" for line in excludes))
    previous = os.umask(0)
    try:
        for name, (major, minor, mode) in DEVICES.items():
            os.mknod(root.path / "dev" / name, stat.S_IFCHR | mode, os.makedev(major, minor))
        (root.path / "dev" / "null").write_bytes(b"")
    except PermissionError as error:
        raise RootError(f"no device nodes can be made in {root.path}: {error.strerror}") from error
    finally:
        os.umask(previous)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        root.link(f"dev/{name}", f"/proc/self/{target}")


@contextlib.contextmanager
def _without_services(root: Root) -> Iterator[None]:
    """Keep packages from starting daemons: the system is not running."""
    policy = root.path / "usr/sbin/policy-rc.d"
    root.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    yield
    policy.unlink()


def _extract(package: Path, directory: Path) -> None:
    """Unpack the first programs, which then install themselves properly."""
    # dpkg-deb --extract would replace the links into /usr by directories.
    tar = ["tar", "--extract", "--keep-directory-symlink", "--numeric-owner", "-C", str(directory)]
    tar += [f"--exclude=.{pattern}" for pattern in EXCLUDED]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as contents:
        done = subprocess.run(tar, stdin=contents.stdout, capture_output=True, text=True, check=False)
    if done.returncode != 0 or contents.returncode != 0:
        raise RootError(f"cannot unpack {package.name}: {done.stderr.strip() or 'it is damaged'}")


def install(root: Root, essential: list[str], files: dict[str, Path], show: Progress) -> None:
    """Install the packages of `files`, by name, into `root`, those named in `essential` first.  Raises RootError."""
    _skeleton(root)
    for name in essential:
        _extract(files[name], root.path)
    show.step(f"{len(essential)} essential packages unpacked")
    archives = root.path / "var/cache/apt/archives"
    archives.mkdir(parents=True, exist_ok=True)
    for path in files.values():
        shutil.copy(path, archives / path.name)
    options = ("--force-unsafe-io", "--force-confold")

    def dpkg(*words: str) -> None:
        root.run("dpkg", *options, *words)

    def inside(names: list[str]) -> list[str]:
        return [f"/var/cache/apt/archives/{files[name].name}" for name in names]

    with _without_services(root):
        # Their dependencies on each other are a ring; all are there, so the order does not matter.
        dpkg("--force-depends", "--install", *inside(["base-passwd"]))
        dpkg("--force-depends", "--install", *inside(["base-files", "libc6", "perl-base"]))
        dpkg("--force-depends", "--install", *inside(essential))
        show.step("essential packages configured")
        others = [name for name in files if name not in essential]
        dpkg("--force-depends", "--unpack", *inside(others))
        show.step(f"{len(others)} other packages unpacked")
        dpkg("--configure", "--pending")
        show.step("other packages configured")
    shutil.rmtree(archives)
    archives.mkdir()
