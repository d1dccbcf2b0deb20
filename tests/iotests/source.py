"""Fetches `tests/qemu-iotests` with Debian's source package of QEMU 7.2; nothing of it is kept in this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from images.build import cache_directory

SOURCES = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n"
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
PACKAGE = "qemu"
_WANTED = ("tests/qemu-iotests", "python", "scripts/qmp", "scripts/render_block_graph.py")
_SUITE_PATH = Path("tests/qemu-iotests")


class SourceError(RuntimeError):
    """The suite cannot be had; the message is for the person at the prompt."""


def fetch() -> Path:
    """Return the directory of the suite, from the cache where it is there."""
    directory = cache_directory() / "iotests"
    tree = directory / "qemu"
    if not (tree / _SUITE_PATH / "check").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        archives = _archives(directory) or _download(directory)
        _unpack(archives, tree)
    return tree / _SUITE_PATH


def _archives(directory: Path) -> list[Path]:
    """Return the upstream archive, then Debian's; nothing where they are not both there."""
    found = [sorted(directory.glob(f"{PACKAGE}_*.{kind}.tar.xz")) for kind in ("orig", "debian")]
    return [files[-1] for files in found if files] if all(found) else []


def _download(directory: Path) -> list[Path]:
    """Fetch the package by apt-get, with lists of our own: the host's need no sources, and stay as they are."""
    if shutil.which("apt-get") is None:
        raise SourceError("apt-get is not installed: the suite comes with Debian's source package of QEMU")
    state = directory / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    sources = state / "sources.list"
    mirror = os.environ.get("PYVM_DEBIAN_MIRROR", MIRROR)
    sources.write_text(SOURCES.format(mirror=mirror, suite=SUITE))
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": 3,
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    for words in (["update"], ["source", "--download-only", PACKAGE]):
        done = subprocess.run(
            ["apt-get", "--quiet", *options, *words], cwd=directory, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise SourceError(f"apt-get {words[0]} failed: {lines[-1]}")
    archives = _archives(directory)
    if not archives:
        raise SourceError(f"apt-get brought no archives of {PACKAGE}")
    return archives


def _unpack(archives: list[Path], tree: Path) -> None:
    """Unpack the suite, and bring it to the state of Debian's package, whose patches are upstream's stable releases."""
    upstream, debian = archives
    fresh = tree.with_name("unpacking")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    wanted = [f"*/{name}" for name in _WANTED]
    strip = ["--strip-components=1", "--wildcards"]
    subprocess.run(["tar", "-xf", upstream, "-C", fresh, *strip, *wanted], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["tar", "-xf", debian, "-C", fresh], check=True)
    patches = fresh / "debian" / "patches"
    include = [f"--include={name}/*" for name in ("tests/qemu-iotests", "python")]
    # Without a repository around it, git would look for one in the directories above.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(fresh.parent)}
    for line in (patches / "series").read_text().splitlines():
        name = line.partition("#")[0].strip()
        if name:
            command = ["git", "apply", *include, str(patches / name)]
            subprocess.run(command, cwd=fresh, env=environment, stderr=subprocess.DEVNULL, check=False)
    if not (fresh / _SUITE_PATH / "check").is_file():
        raise SourceError(f"{upstream.name} has no {_SUITE_PATH}")
    shutil.rmtree(tree, ignore_errors=True)
    fresh.rename(tree)
