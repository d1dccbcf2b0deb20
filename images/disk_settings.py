"""The settings of the disk's Debian: what an installer would have asked, and what makes each boot like the last."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from images.disk_root import Root

PASSWORD = "pyvm"
"""Of root, on a disk that holds nothing."""
PASSWORD_HASH = "$6$pyvm.disk$gokORJPhNNQDTab9jM0TEm1Wbk5GGXMJwAdUE0YVGgo4DNAm2tQeU.Am9sKfbOBs96BDFN2pvwJ1eJ.AgbFh20"

CONSOLE = "console=tty0 console=ttyS0,115200"
MENU_SECONDS = 1

NETWORK = """\
[Match]
Type=ether

[Network]
DHCP=ipv4
"""

QUIET_UNITS = (
    "timers.target.wants/apt-daily.timer",
    "timers.target.wants/apt-daily-upgrade.timer",
    "timers.target.wants/dpkg-db-backup.timer",
    "timers.target.wants/e2scrub_all.timer",
    "timers.target.wants/fstrim.timer",
    "multi-user.target.wants/e2scrub_reap.service",
)
"""Work that would begin by itself at some time after a boot."""

TRACES = (
    *("var/log/dpkg.log", "var/log/alternatives.log", "var/log/apt/*", "var/cache/ldconfig/aux-cache"),
    *("var/cache/debconf/*-old", "var/lib/dpkg/*-old", "var/backups/*", "etc/*-"),
)
"""What tells of the installation, or is kept from before."""

SERVICES = {
    "multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "sockets.target.wants/systemd-networkd.socket": "/lib/systemd/system/systemd-networkd.socket",
    "dbus-org.freedesktop.network1.service": "/lib/systemd/system/systemd-networkd.service",
}
"""The network comes up by DHCP, where there is one; nothing waits for it."""


@dataclass(frozen=True)
class Identity:
    """What is otherwise drawn at random as a system is installed."""

    root: UUID
    swap: UUID
    machine: UUID


def kernel_arguments(identity: Identity) -> str:
    """Return the kernel's command line."""
    return f"root=UUID={identity.root} ro {CONSOLE}"


def before_packages(root: Root, identity: Identity) -> None:
    """Write what packages look at as they are configured: the initramfs is made then, with what resumes."""
    root.write("etc/initramfs-tools/conf.d/resume", f"RESUME=UUID={identity.swap}\n")
    root.write("etc/machine-id", f"{identity.machine.hex}\n", 0o444)


def after_packages(root: Root, identity: Identity) -> None:
    """Make an installed system one that boots."""
    root.write("etc/hostname", "pyvm-disk\n")
    root.write("etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tpyvm-disk\n::1\tlocalhost ip6-localhost ip6-loopback\n")
    root.write(
        "etc/fstab",
        f"UUID={identity.root} / ext4 errors=remount-ro 0 1\nUUID={identity.swap} none swap sw 0 0\n",
    )
    root.write("etc/resolv.conf", "nameserver 10.0.2.3\n")
    root.write("etc/systemd/network/80-dhcp.network", NETWORK)
    root.run("usermod", "--password", PASSWORD_HASH, "root")
    units = root.path / "etc/systemd/system"
    for name in QUIET_UNITS:
        (units / name).unlink(missing_ok=True)
    for name, target in SERVICES.items():
        (units / name).parent.mkdir(exist_ok=True)
        root.link(f"etc/systemd/system/{name}", target)


def release(root: Root) -> str:
    """Return the release of the system's kernel."""
    return next((root.path / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")


def install_grub(root: Root, identity: Identity) -> bytes:
    """Put GRUB's files and its configuration into /boot/grub as grub-install does, and return core.img."""
    modules = sorted((root.path / "usr/lib/grub/i386-pc").iterdir())
    target = root.path / "boot/grub/i386-pc"
    target.mkdir(parents=True)
    for path in modules:
        if path.suffix in (".mod", ".lst") or path.name == "boot.img":
            (target / path.name).write_bytes(path.read_bytes())
    # The drive is the one that the BIOS booted from; the modules are what it takes to read the others.
    root.run(
        *("grub-mkimage", "--format=i386-pc", "--prefix=(,msdos1)/boot/grub"),
        *("--output=/boot/grub/i386-pc/core.img", "biosdisk", "part_msdos", "ext2"),
    )
    root.run("grub-editenv", "/boot/grub/grubenv", "create")
    root.write("etc/default/grub", _grub_defaults())
    root.write("boot/grub/grub.cfg", _grub_configuration(identity, release(root)), 0o444)
    return (target / "core.img").read_bytes()


def _grub_defaults() -> str:
    return f"""\
GRUB_DEFAULT=0
GRUB_TIMEOUT={MENU_SECONDS}
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{CONSOLE}"
GRUB_TERMINAL="console serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
"""


def _grub_configuration(identity: Identity, release: str) -> str:
    """Return what update-grub would write, had it disks to look at; in the guest, it does."""
    return f"""\
set default=0
set timeout_style=menu
set timeout={MENU_SECONDS}
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
insmod part_msdos
insmod ext2
search --no-floppy --fs-uuid --set=root {identity.root}
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class os {{
	echo 'Loading Linux {release} ...'
	linux /boot/vmlinuz-{release} {kernel_arguments(identity)}
	echo 'Loading initial ramdisk ...'
	initrd /boot/initrd.img-{release}
}}
menuentry 'Debian GNU/Linux (recovery mode)' --class debian --class gnu-linux --class os {{
	linux /boot/vmlinuz-{release} {kernel_arguments(identity)} single
	initrd /boot/initrd.img-{release}
}}
"""


def settle(root: Root) -> None:
    """Remove the traces of the installation: logs, device nodes, and dates later than the system's."""
    for pattern in TRACES:
        for path in root.path.glob(pattern):
            path.unlink()
    for path in (root.path / "dev").iterdir():
        if path.name not in ("null", "console"):
            path.unlink()
    # Nothing is left to update at the first boot.
    root.write("etc/.updated", "")
    root.write("var/.updated", "")
    _limit_dates(root.path, root.date)


def _limit_dates(top: Path, date: int) -> None:
    for directory, directories, names in os.walk(top):
        for name in [*directories, *names]:
            path = os.path.join(directory, name)
            if os.lstat(path).st_mtime > date:
                os.utime(path, (date, date), follow_symlinks=False)
    os.utime(top, (date, date))
