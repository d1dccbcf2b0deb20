"""Builds guests for tests, benchmarks and people: a Debian kernel and an initramfs with busybox and the real qemu-ga.

    python -m images.build [demo|generic|disk]...   build (or find in the cache) and print the paths as JSON

The disk is another matter: see images.disk.  For the others no privilege is needed: packages come by apt-get download,
are read in place, and the initramfs is written as an archive.  The result lies in the cache directory ($PYVM_CACHE, or
pyvm in the user's cache directory) under a name made from this recipe and the versions of the packages; it is built
anew when either changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from images import cpio, debian, elf, modules
from images.progress import Progress, progress

HERE = Path(__file__).parent
OVERLAY = HERE / "guest" / "overlay"
LIBRARIES = "lib/x86_64-linux-gnu"
AGENT = "usr/sbin/qemu-ga"
AGENT_FILES = (AGENT, "etc/qemu/fsfreeze-hook")

MODULES = """
virtio_pci virtio_console virtio_balloon virtio_rng virtio_blk virtio_net virtio_scsi virtio_input virtio_mem
virtio_pmem qemu_fw_cfg button evdev psmouse ata_piix ata_generic ahci sd_mod sr_mod sg nvme e1000 ne2k_pci
ext4 crc32c_generic vfat nls_cp437 nls_ascii isofs loop nbd virtiofs 9pnet_virtio 9p i6300esb
acpi_memhotplug i2c_piix4 rtc_cmos serio_raw vmw_vsock_virtio_transport
""".split()
"""What a pyvm machine may have; those built into a kernel, or absent from it, are passed over."""

# Self-tests of the kernel's ciphers are half of a boot's instructions, and of no use to a guest.
APPEND = "console=ttyS0 cryptomgr.notests"


@dataclass(frozen=True)
class Recipe:
    """What makes one guest differ from another."""

    name: str
    kernel_package: str


RECIPES = {
    recipe.name: recipe
    for recipe in (Recipe("demo", "linux-image-cloud-amd64"), Recipe("generic", "linux-image-amd64"))
}


@dataclass(frozen=True)
class Image:
    """A built guest: what to boot, and how."""

    name: str
    kernel: Path
    initrd: Path
    append: str
    release: str
    """The kernel's release, as uname -r says in the guest."""
    packages: dict[str, str]

    def to_json(self) -> str:
        """Return the image's description as JSON."""
        return json.dumps(asdict(self), default=str, indent=2)


class BuildError(RuntimeError):
    """The guest cannot be built; the message is for the person at the prompt."""


def cache_directory() -> Path:
    """Return the directory of all that is built or downloaded."""
    base = os.environ.get("PYVM_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvm"


def _recipe_digest(recipe: Recipe) -> str:
    digest = hashlib.sha256(repr(recipe).encode())
    for path in sorted(HERE.rglob("*")):
        other = path.name in ("demo.py", "progress.py") or path.relative_to(HERE).parts[0].startswith("disk")
        if path.is_file() and path.suffix != ".pyc" and not other:
            digest.update(f"{path.relative_to(HERE)} {path.stat().st_mode & 0o111}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------ the contents


class _Kernel:
    """The kernel's package: image, release, modules."""

    def __init__(self, path: Path, step: Callable[[], None]) -> None:
        self.image = b""
        self.release = ""
        self._files: dict[str, bytes] = {}
        self.other: dict[str, bytes] = {}
        for file in debian.files(path, self._wanted):
            data = file.data or b""
            base = PurePosixPath(file.path)
            if base.name.startswith("vmlinuz-"):
                self.image, self.release = data, base.name.removeprefix("vmlinuz-")
            elif ".ko" in base.name:
                self._files[file.path.partition("/kernel/")[2]] = data
            else:
                self.other[base.name] = data
            step()
        if not self.image:
            raise BuildError(f"{path.name} holds no kernel image")

    @staticmethod
    def _wanted(path: str) -> bool:
        name = path.rpartition("/")[2]
        # Contents are kept for a moment only: the modules of Debian's larger kernel come to some 300 MB.
        return name.startswith(("vmlinuz-", "modules.builtin")) or ".ko" in name

    def modules(self) -> list[modules.Module]:
        """Return the modules that the guest gets."""
        return modules.choose(MODULES, sorted(self._files), self._files.__getitem__)


def _kernel_package(apt: debian.Apt, recipe: Recipe) -> debian.Package:
    """Return the package behind the one that always depends on the newest kernel."""
    meta = apt.find(recipe.kernel_package)
    name = next((choice[0] for choice in meta.depends if choice[0].startswith("linux-image-")), None)
    if name is None:
        raise BuildError(f"{recipe.kernel_package} depends on no kernel")
    return apt.find(name)


class _Libraries:
    """Finds the shared libraries that programs need, in the packages that those of the programs depend on."""

    def __init__(self, apt: debian.Apt, fetch: Callable[[debian.Package], Path]) -> None:
        self._apt = apt
        self._fetch = fetch
        self._by_name: dict[str, tuple[bytes, debian.Package]] = {}
        self._seen: set[str] = set()
        self.used: dict[str, bytes] = {}
        self.packages: dict[str, str] = {}

    def _open(self, package: debian.Package) -> None:
        """Read all libraries of a package; links become names of what they lead to."""
        self._seen.add(package.name)
        links: dict[str, str] = {}
        for file in debian.files(self._fetch(package), lambda path: "/lib" in f"/{path}" and ".so" in path):
            name = PurePosixPath(file.path).name
            if file.data is None:
                links[name] = PurePosixPath(file.target).name
            elif elf.is_elf(file.data):
                self._by_name[name] = (file.data, package)
        for name, target in links.items():
            if target in self._by_name:
                self._by_name[name] = self._by_name[target]

    def _depended_on(self, packages: list[debian.Package]) -> list[debian.Package]:
        choices = [choice for package in packages for choice in package.depends]
        known = self._apt.look_up([name for choice in choices for name in choice])
        found = [next((known[name] for name in choice if name in known), None) for choice in choices]
        unseen = {package.name: package for package in found if package and package.name not in self._seen}
        return [package for package in unseen.values() if package.name.startswith(("lib", "zlib"))]

    def use(self, name: str) -> None:
        """Take a library by its name, needed or not; the packages read so far must have it."""
        if name not in self._by_name:
            raise BuildError(f"no package read has the library {name}")
        data, source = self._by_name[name]
        self.used[name] = data
        self.packages[source.name] = source.version

    def add(self, program: bytes, package: debian.Package) -> None:
        """Collect the libraries that `program` of `package` needs, and those that they need."""
        pending = elf.needed(program)
        sources = [package]
        while pending:
            name = pending.pop(0)
            if name in self.used:
                continue
            while name not in self._by_name:
                if not (more := self._depended_on(sources)):
                    raise BuildError(f"no package that {package.name} depends on has the library {name}")
                for other in more:
                    self._open(other)
                sources = more
            self.use(name)
            sources = [*sources, self._by_name[name][1]]
            pending += elf.needed(self.used[name])


def _applets(busybox: bytes) -> list[str]:
    """Return the names of busybox's applets, from the table in the program: it may be of another architecture."""
    start = busybox.index(b"\0[\0[[\0") + 1
    names = busybox[start : busybox.index(b"\0\0", start)].split(b"\0")
    return [name.decode() for name in names]


def _utc_zone() -> bytes:
    """Return a time zone file (RFC 8536, version 2) for UTC."""

    def part(version: bytes) -> bytes:
        header = b"TZif" + version + bytes(15)
        counts = b"".join(count.to_bytes(4, "big") for count in (0, 0, 0, 0, 1, 4))
        return header + counts + bytes(6) + b"UTC\0"

    return part(b"2") + part(b"2") + b"\nUTC0\n"


def compile_static(source: Path) -> bytes:
    """Return a static x86-64 program made from `source`."""
    return _compile(source, "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror")


def compile_boot_sector(source: Path) -> bytes:
    """Return what `source`, in assembler, makes at the address that a BIOS loads boot sectors to."""
    return _compile(source, "-nostdlib", "-static", "-Wl,--build-id=none,-Ttext=0x7c00,--oformat=binary")


def _compile(source: Path, *options: str) -> bytes:
    names = ["x86_64-linux-gnu-gcc", *(["gcc"] if platform.machine() == "x86_64" else [])]
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None:
        raise BuildError(f"no C compiler for x86-64: {' or '.join(names)} is needed")
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / source.stem
        command = [compiler, *options, str(source), "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{compiler} cannot compile {source.name}: {done.stderr.strip().splitlines()[-1]}")
        return program.read_bytes()


def _skeleton(archive: cpio.Archive) -> None:
    for path in ("proc", "sys", "dev", "run", "mnt", "home/demo", "var/log", "lib", LIBRARIES):
        archive.directory(path)
    archive.directory("root", 0o700)
    archive.directory("tmp", 0o1777)
    archive.directory("bin")
    for link, target in (("sbin", "bin"), ("lib64", "lib"), ("usr/bin", "../bin"), ("usr/lib", "../lib")):
        archive.symlink(link, target)
    archive.symlink("var/run", "../run")
    archive.symlink("etc/mtab", "../proc/mounts")
    archive.symlink("etc/localtime", "../usr/share/zoneinfo/UTC")
    archive.file("usr/share/zoneinfo/UTC", _utc_zone())
    # The kernel opens /dev/console for the first program, before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)


def _add_overlay(archive: cpio.Archive) -> None:
    for path in sorted(OVERLAY.rglob("*")):
        if path.is_file():
            mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
            name = path.relative_to(OVERLAY).as_posix()
            archive.file(name, path.read_bytes(), 0o600 if name == "etc/shadow" else mode)


def _add_modules(archive: cpio.Archive, kernel: _Kernel) -> None:
    base = f"lib/modules/{kernel.release}"
    chosen = kernel.modules()
    for module in chosen:
        archive.file(f"{base}/kernel/{module.path}", module.data)
    for name, data in modules.index_files(chosen, "kernel").items():
        archive.file(f"{base}/{name}", data)
    for name, data in kernel.other.items():
        archive.file(f"{base}/{name}", data)


def _initramfs(kernel: _Kernel, busybox: bytes, agent: dict[str, debian.PackageFile], libraries: _Libraries) -> bytes:
    archive = cpio.Archive()
    _skeleton(archive)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in _applets(busybox):
        if applet != "busybox":
            archive.symlink(f"bin/{applet}", "busybox")
    for path, file in agent.items():
        archive.file(path, file.data or b"", file.mode & 0o777)
    for name, data in libraries.used.items():
        archive.file(f"{LIBRARIES}/{name}", data, 0o755)
    linker = elf.interpreter(agent[AGENT].data or b"") or ""
    archive.symlink(f"lib/{PurePosixPath(linker).name}", f"{LIBRARIES.partition('/')[2]}/{PurePosixPath(linker).name}")
    archive.file("usr/local/bin/bench", compile_static(HERE / "guest" / "bench.c"), 0o755)
    _add_modules(archive, kernel)
    _add_overlay(archive)
    return archive.to_bytes()


# ------------------------------------------------------------------------------------------------------------ the cache


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the cache: a second build of the same guest waits, then finds it done."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(directory: Path) -> Image | None:
    try:
        record: dict[str, Any] = json.loads((directory / "image.json").read_text())
        image = Image(kernel=directory / "vmlinuz", initrd=directory / "initrd", **record)
    except (OSError, ValueError, TypeError):
        return None
    return image if image.kernel.exists() and image.initrd.exists() else None


def _cached(directory: Path, prefix: str) -> list[Image]:
    """Return the images made by this recipe, the newest first."""
    found = sorted(directory.glob(f"{prefix}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [image for path in found if (image := _read(path)) is not None]


def _is_current(apt: debian.Apt, recipe: Recipe, image: Image) -> bool:
    """Whether the package lists still offer just what the image was made from."""
    known = apt.look_up([recipe.kernel_package, *image.packages])
    if recipe.kernel_package not in known:
        return False
    newest = [choice[0] for choice in known[recipe.kernel_package].depends if choice[0].startswith("linux-image-")]
    return newest[0] in image.packages and all(
        name in known and known[name].version == version for name, version in image.packages.items()
    )


def _make(apt: debian.Apt, recipe: Recipe, directory: Path, prefix: str, show: Progress) -> Image:
    packages: dict[str, str] = {}

    def fetch(package: debian.Package) -> Path:
        show.step(f"{package.name} {package.version}")
        packages[package.name] = package.version
        return apt.fetch(package)

    with show.phase("packages", 16):
        kernel_package = _kernel_package(apt, recipe)
        kernel_file = fetch(kernel_package)
        busybox_package = apt.find("busybox-static")
        busybox_file = fetch(busybox_package)
        agent_package = apt.find("qemu-guest-agent")
        agent_file = fetch(agent_package)
        agent = {file.path: file for file in debian.files(agent_file, lambda path: path in AGENT_FILES)}
        if AGENT not in agent:
            raise BuildError(f"{agent_file.name} holds no {AGENT}")
        libraries = _Libraries(apt, fetch)
        libraries.add(agent[AGENT].data or b"", agent_package)
        linker = elf.interpreter(agent[AGENT].data or b"") or ""
        libraries.use(PurePosixPath(linker).name)
    busybox = next((file.data for file in debian.files(busybox_file, lambda path: path.endswith("bin/busybox"))), None)
    if not busybox:
        raise BuildError(f"{busybox_file.name} holds no busybox")
    with show.phase("kernel", 300 if "cloud" in kernel_package.name else 4000):
        kernel = _Kernel(kernel_file, lambda: show.step(""))
    with show.phase("initramfs", 1):
        initrd = _initramfs(kernel, busybox, agent, libraries)
        show.step("")
    used = {name: packages[name] for name in packages if name in libraries.packages}
    used |= {package.name: package.version for package in (kernel_package, busybox_package, agent_package)}
    digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:12]
    return _store(directory / f"{prefix}-{digest}", recipe, kernel, initrd, used)


def _made_from_good_lists(apt: debian.Apt, recipe: Recipe, directory: Path, prefix: str, quiet: bool) -> Image:
    """Build; where a package cannot be had, the lists may be older than the mirror: once more with new ones."""
    with progress(f"building guest {recipe.name}", quiet=quiet) as show:
        try:
            return _make(apt, recipe, directory, prefix, show)
        except debian.PackageError:
            apt.update()
            return _make(apt, recipe, directory, prefix, show)


def _store(target: Path, recipe: Recipe, kernel: _Kernel, initrd: bytes, packages: dict[str, str]) -> Image:
    work = target.with_name(f"{target.name}.{os.getpid()}")
    work.mkdir()
    (work / "vmlinuz").write_bytes(kernel.image)
    (work / "initrd").write_bytes(initrd)
    record = {"name": recipe.name, "append": APPEND, "release": kernel.release, "packages": packages}
    (work / "image.json").write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    image = _read(target)
    assert image is not None
    return image


def build(name: str = "demo", *, quiet: bool = False) -> Image:
    """Return the guest of that name, building it unless the cache has a current one.

    Raises BuildError or debian.PackageError, with a message for a person.
    """
    if name not in RECIPES:
        raise BuildError(f"no guest named {name}: there are {' and '.join(RECIPES)}")
    recipe = RECIPES[name]
    directory = cache_directory() / "images"
    prefix = f"{name}-{_recipe_digest(recipe)}"
    with locked(directory):
        cached = _cached(directory, prefix)
        apt = debian.Apt(cache_directory())
        try:
            current = next((image for image in cached if _is_current(apt, recipe, image)), None)
            if current is None:
                current = _made_from_good_lists(apt, recipe, directory, prefix, quiet)
        except debian.PackageError as error:
            if not cached:
                raise
            print(f"guest {name}: using the one built before, since {error}", file=sys.stderr)
            current = cached[0]
        forget_others(directory, name, keep=current.kernel.parent)
        return current


def forget_others(directory: Path, name: str, keep: Path) -> None:
    """Remove guests of earlier recipes and versions, but not those of the last day: somebody may be running one."""
    for path in directory.glob(f"{name}-*"):
        if path != keep and path.is_dir() and keep.stat().st_mtime - path.stat().st_mtime > 24 * 3600:
            shutil.rmtree(path, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Build the guests named and print their descriptions."""
    from images.disk import build_disk

    try:
        for name in arguments or ["demo"]:
            print((build_disk() if name == "disk" else build(name)).to_json())
    except (BuildError, debian.PackageError, elf.ElfError, OSError) as error:
        print(f"images.build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
