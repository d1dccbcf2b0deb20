"""A libvirt daemon of the tests' own: it runs in session mode, keeps all its files in one folder, and ends with them.

The daemon of a session refuses to be root, so it runs in a user namespace in which whoever runs the tests has another
number; on the host it is the same user as before.  It does not see /dev/kvm: with that at hand, libvirt expects KVM of
every emulator, and asks one that has none all its questions again whenever it needs an answer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.guest.support import until
from tests.unit.listeners import listens

ROOT = Path(__file__).parents[2]
NEW_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
WITHOUT_KVM = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
"""A shell that runs these words with a name for a file and then a command."""
HIDE_KVM = 'if [ -e /dev/kvm ]; then mount --bind "$0" /dev/kvm; fi; exec "$@"'
PROGRAMS = {"libvirtd": "libvirt-daemon", "virsh": "libvirt-clients"}
DRIVER = "connection-driver/libvirt_driver_qemu.so"
TIMEOUT = 90.0


def why_not() -> str | None:
    """Return why libvirt cannot be used here, None where it can."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=path) is None:
            return f"{package} is not installed"
    if not any(Path("/usr").glob(f"lib*/libvirt/{DRIVER}")) and not any(Path("/usr/lib").glob(f"*/libvirt/{DRIVER}")):
        return "libvirt-daemon-driver-qemu is not installed"
    words = [*WITHOUT_KVM, HIDE_KVM, os.devnull, *NEW_USER, "true"]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        return "this host has no user namespaces"
    return None


class Libvirt:
    """A running daemon, and virsh connected to it."""

    def __init__(self, directory: Path, host: str = "") -> None:
        """With `host`, the daemon believes to be on a host of that name."""
        self.directory = directory
        self.log = directory / "libvirtd.log"
        places = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
        self.environment = os.environ | {name: str(directory / place) for name, place in places.items()}
        self.environment["PATH"] = f"{self.environment.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        self.environment["LIBVIRT_LOG_OUTPUTS"] = f"1:file:{self.log}"
        self.environment["LIBVIRT_LOG_FILTERS"] = "1:qemu_monitor 4:object 4:event 4:rpc 3:util"
        for place in places.values():
            (directory / place).mkdir(mode=0o700, exist_ok=True)
        start = [*WITHOUT_KVM, HIDE_KVM]
        if host:
            start = [start[0], "--uts", *start[1:-1], f"hostname {host}; {HIDE_KVM}"]
            self._become_another_host()
        self.emulator = directory / "pyvm"
        """pyvm as libvirt starts it: a program of this tree, in an environment that libvirt makes."""
        self.emulator.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m pyvm "$@"\n')
        self.emulator.chmod(0o755)
        no_kvm = directory / "no-kvm"
        no_kvm.touch(mode=0)
        with (directory / "output").open("wb") as output:
            self._daemon = subprocess.Popen(
                [*start, str(no_kvm), *NEW_USER, "libvirtd"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.socket = directory / "run" / "libvirt" / "libvirt-sock"
        until(lambda: listens(self.socket) or self._daemon.poll() is not None, "the daemon's socket")
        assert self._daemon.poll() is None, (directory / "output").read_text()

    def _become_another_host(self) -> None:
        """Let the daemon not know the host by its number: domains do not move to where they are."""
        settings = self.directory / "config" / "libvirt" / "libvirtd.conf"
        settings.parent.mkdir()
        settings.write_text(f'host_uuid = "{uuid.uuid4()}"\n')

    def command(self, *words: str) -> list[str]:
        """Return what runs a command of virsh."""
        return [*NEW_USER, "virsh", "--quiet", "--connect", "qemu:///session", *words]

    def virsh(self, *words: str) -> str:
        """Run a command of virsh, which must succeed, and return what it printed."""
        status, out, error = self.attempt(*words)
        assert status == 0, f"virsh {' '.join(words)}: {error}"
        return out

    def attempt(self, *words: str) -> tuple[int, str, str]:
        """Run a command of virsh, and return its status and what it printed."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    def errors(self) -> list[str]:
        """Return the errors that emulators answered with, as the daemon logged them."""
        lines = self.log.read_text(errors="replace").splitlines()
        replies = (line.partition(" reply=")[2] for line in lines if "QEMU_MONITOR_RECV_REPLY" in line)
        return [reply for reply in replies if '"error": {' in reply[:80]]

    def close(self) -> None:
        """End the domains that are left, and the daemon."""
        for name in self.attempt("list", "--name")[1].split():
            self.attempt("destroy", name)
        self._daemon.terminate()
        try:
            self._daemon.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()


@contextmanager
def running(host: str = "") -> Iterator[Libvirt]:
    """Yield a daemon; its folder has a short name, as sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="lv-") as directory:
        libvirt = Libvirt(Path(directory), host)
        try:
            yield libvirt
        finally:
            libvirt.close()
