"""Chooses kernel modules and writes the index files that modprobe reads (depmod's work, for the chosen ones only)."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from images import elf

Reader = Callable[[str], bytes]
"""Returns the contents of a module file by its path."""


@dataclass(frozen=True)
class Module:
    """A module as the guest gets it: decompressed, with what it says of itself."""

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    softdeps: tuple[str, ...]


def module_name(path: str) -> str:
    """Return the module's name by its file name: underscores for dashes, no suffix."""
    return PurePosixPath(path).name.split(".")[0].replace("-", "_")


def _decompressed(path: str, data: bytes) -> bytes:
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".zst"):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _load(path: str, data: bytes) -> Module:
    data = _decompressed(path, data)
    pairs = elf.module_information(data)
    depends = [value for key, value in pairs if key == "depends" and value]
    return Module(
        name=module_name(path),
        path=path[: path.index(".ko") + 3],
        data=data,
        depends=tuple(name.replace("-", "_") for value in depends for name in value.split(",")),
        aliases=tuple(value for key, value in pairs if key == "alias"),
        softdeps=tuple(value for key, value in pairs if key == "softdep"),
    )


def _soft(module: Module) -> list[str]:
    """Return the modules that `module` would rather have as well."""
    return [word.replace("-", "_") for line in module.softdeps for word in line.split() if not word.endswith(":")]


def choose(wanted: Iterable[str], paths: Iterable[str], read: Reader) -> list[Module]:
    """Return the modules named in `wanted` and those they depend on, in an order that loads.

    `paths` are all module files of the kernel.  A name that is not among them is built in, or not in this kernel: the
    guest's modprobe passes over it.
    """
    available = {module_name(path): path for path in paths}
    chosen: dict[str, Module] = {}

    def add(name: str) -> None:
        if name in chosen or name not in available:
            return
        module = _load(available[name], read(available[name]))
        for other in (*module.depends, *_soft(module)):
            add(other)
        chosen[name] = module

    for name in wanted:
        add(name.replace("-", "_"))
    return list(chosen.values())


def _closure(module: Module, by_name: dict[str, Module]) -> list[str]:
    """Return the names of all modules that must be loaded before `module`, the last to be loaded first."""
    order: list[str] = []

    def visit(name: str) -> None:
        for other in by_name[name].depends:
            if other in by_name and other not in order:
                visit(other)
                order.append(other)

    visit(module.name)
    return order[::-1]


def index_files(modules: list[Module], directory: str) -> dict[str, bytes]:
    """Return modules.dep, .alias and .softdep for modules that lie in `directory` of the release's own."""
    by_name = {module.name: module for module in modules}
    dep = []
    for module in modules:
        before = (by_name[name].path for name in _closure(module, by_name))
        dep.append(f"{directory}/{module.path}:" + "".join(f" {directory}/{path}" for path in before))
    alias = [f"alias {alias} {module.name}" for module in modules for alias in module.aliases]
    softdep = [f"softdep {module.name} {line}" for module in modules for line in module.softdeps]
    tables = {"modules.dep": dep, "modules.alias": alias, "modules.softdep": softdep}
    return {name: "".join(f"{line}\n" for line in lines).encode() for name, lines in tables.items()}
