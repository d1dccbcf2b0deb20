"""Debian packages by the ordinary package client, as any user: apt-cache and apt-get download, dpkg-deb to read them.

The host's own package lists are used where they are there and good.  Where not (no lists, another architecture, lists
so old that a file is gone from the mirror), lists of our own are fetched into a private state directory, from the
host's sources and checked with its keys; nothing of the host's is changed and no privilege is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURE = "amd64"
LISTS_GOOD_FOR = 7 * 24 * 3600
"""How long lists of our own are used before they are fetched again, in seconds."""

DOWNLOADS_AT_A_TIME = 64


class PackageError(RuntimeError):
    """A package cannot be found, fetched or read; the message is for the person at the prompt."""


@dataclass(frozen=True)
class Package:
    """What the package lists say of one package: the version to install, and what it depends on."""

    name: str
    version: str
    depends: tuple[tuple[str, ...], ...]
    """Each a choice of package names, the preferred one first."""

    @property
    def file_name(self) -> str:
        """The name that apt-get download gives the file."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{ARCHITECTURE}.deb"


def _parse_depends(value: str) -> tuple[tuple[str, ...], ...]:
    names = [tuple(re.split(r"[\s(:]", item.strip())[0] for item in group.split("|")) for group in value.split(",")]
    return tuple(choice for choice in names if choice[0])


def _parse(text: str) -> Iterator[Package]:
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if "Package" in fields and "Version" in fields:
            depends = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
            yield Package(fields["Package"], fields["Version"], _parse_depends(depends))


class Apt:
    """The package client, with the host's lists or with private ones under `directory`."""

    def __init__(self, directory: Path) -> None:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise PackageError(f"{program} is not installed: guests are built from Debian packages")
        self._state = directory / "apt"
        self._files = directory / "packages"
        self._known: dict[str, Package] = {}
        self._private = self._age() < LISTS_GOOD_FOR

    def _age(self) -> float:
        stamp = self._state / "updated"
        return time.time() - stamp.stat().st_mtime if stamp.exists() else float("inf")

    def _options(self) -> list[str]:
        options = [f"APT::Architecture={ARCHITECTURE}", f"APT::Architectures={ARCHITECTURE}"]
        # A download as root would otherwise be tried as another user, which may not write here, and complain.
        options += ["APT::Sandbox::User=root", "Acquire::Languages=none", "Acquire::Retries=3"]
        if self._private:
            options += [f"Dir::State={self._state}/state", f"Dir::Cache={self._state}/cache"]
            options += [f"Dir::State::status={self._state}/status"]
        return [word for option in options for word in ("-o", option)]

    def closure(self, names: Iterable[str]) -> list[Package]:
        """Return what apt-get would install of these packages, and all they depend on, on a machine with none.

        A name may be a pattern of apt, such as ?essential.
        """
        self._state.mkdir(parents=True, exist_ok=True)
        nothing = self._state / "nothing-installed"
        nothing.touch()
        options = ("-o", f"Dir::State::status={nothing}", "-o", "APT::Install-Recommends=false")
        done = self._run("apt-get", "--quiet", "--simulate", *options, "install", *names)
        if done.returncode != 0:
            raise PackageError(f"cannot tell which packages to install: {_last_line(done.stderr)}")
        found = re.findall(r"^Inst (\S+) \((\S+) ", done.stdout, re.MULTILINE)
        return [Package(name, version, ()) for name, version in sorted(found)]

    def _run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        full = [command[0], *self._options(), *command[1:]]
        return subprocess.run(full, capture_output=True, text=True, cwd=cwd, env=environment, check=False)

    def update(self) -> None:
        """Fetch lists of our own and use them from now on."""
        self._private = True
        self._known.clear()
        for part in ("state/lists/partial", "cache/archives/partial"):
            (self._state / part).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        done = self._run("apt-get", "--quiet", "update")
        # A source that fails is no harm as long as what is wanted comes from another: look_up() finds that out.
        lists = [path for path in (self._state / "state" / "lists").glob("*Packages*") if path.is_file()]
        if not lists:
            raise PackageError(f"cannot fetch package lists: {_last_line(done.stderr)}")
        (self._state / "updated").touch()

    def look_up(self, names: Iterable[str]) -> dict[str, Package]:
        """Return what the lists say of these packages; names they do not know are left out."""
        wanted = [name for name in dict.fromkeys(names) if name not in self._known]
        if wanted:
            done = self._run("apt-cache", "show", "--no-all-versions", *wanted)
            for package in _parse(done.stdout):
                self._known.setdefault(package.name, package)
        return {name: self._known[name] for name in names if name in self._known}

    def find(self, name: str) -> Package:
        """Return what the lists say of a package, after fetching them where they do not know it."""
        found = self.look_up([name]).get(name)
        if found is None:
            self.update()
            found = self.look_up([name]).get(name)
        if found is None:
            raise PackageError(f"no Debian package named {name} in the sources of this machine")
        return found

    def fetch(self, package: Package) -> Path:
        """Return the package's file, downloading it unless it is there."""
        path = self._files / package.file_name
        if path.exists():
            return path
        self._download([package])
        return path

    def fetch_all(self, packages: Iterable[Package]) -> dict[str, Path]:
        """Return the packages' files by name, downloading those that are not there, many at a time."""
        wanted = {package.name: package for package in packages}
        missing = [package for package in wanted.values() if not (self._files / package.file_name).exists()]
        for first in range(0, len(missing), DOWNLOADS_AT_A_TIME):
            self._download(missing[first : first + DOWNLOADS_AT_A_TIME])
        return {name: self._files / package.file_name for name, package in wanted.items()}

    def _download(self, packages: list[Package]) -> None:
        work = self._files / f"partial.{os.getpid()}"
        work.mkdir(parents=True, exist_ok=True)
        try:
            wanted = [f"{package.name}={package.version}" for package in packages]
            done = self._run("apt-get", "--quiet", "download", *wanted, cwd=work)
            for package in packages:
                # Packages for all architectures are kept under the name of ours.
                downloaded = next(iter(work.glob(f"{package.file_name.rpartition('_')[0]}_*.deb")), None)
                if done.returncode != 0 or downloaded is None:
                    raise PackageError(f"cannot download {package.name} {package.version}: {_last_line(done.stderr)}")
                downloaded.rename(self._files / package.file_name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("E:")] or text.splitlines()
    return lines[-1].removeprefix("E: ") if lines else "no reason given"


@contextmanager
def _contents(path: Path) -> Iterator[tarfile.TarFile]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
        finally:
            # A reader that has what it wanted may leave early.
            process.stdout.close()
            process.terminate()


def date(path: Path) -> int:
    """Return when the package at `path` was built, in seconds since 1970."""
    # An ar archive (deb(5)): a magic of 8 bytes, then a header, of which a name has 16 bytes and the date 12.
    with path.open("rb") as file:
        header = file.read(36)
    if not header.startswith(b"!<arch>\n") or not header[24:].strip().isdigit():
        path.unlink(missing_ok=True)
        raise PackageError(f"{path.name} is damaged and has been removed: it is not a Debian package")
    return int(header[24:])


@dataclass(frozen=True)
class PackageFile:
    """A regular file or a symbolic link of a package; `data` is None for a link."""

    path: str
    mode: int
    data: bytes | None
    target: str


def files(path: Path, wanted: Callable[[str], bool]) -> Iterator[PackageFile]:
    """Yield those files of the package at `path` whose path, without leading slash, is `wanted`."""
    try:
        with _contents(path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if not wanted(name):
                    continue
                if member.issym():
                    yield PackageFile(name, member.mode, None, member.linkname)
                elif member.isreg():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield PackageFile(name, member.mode, stream.read(), "")
    except tarfile.TarError as error:
        path.unlink(missing_ok=True)
        raise PackageError(f"{path.name} is damaged and has been removed: {error}") from error
