"""The image recipes' own parts: archives, ELF, module indexes, package lists.  Nothing is downloaded."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import build, cpio, debian, elf, modules


def read_archive(data: bytes) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Read a newc archive back: fields and contents of each entry, by name."""
    found = {}
    offset = 0
    while True:
        assert data[offset : offset + 6] == b"070701"
        fields = tuple(int(data[offset + 6 + 8 * index : offset + 14 + 8 * index], 16) for index in range(13))
        name = data[offset + 110 : offset + 109 + fields[11]].decode()
        start = (offset + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert start == len(data)
            return found
        found[name] = (fields, data[start : start + fields[6]])
        offset = (start + fields[6] + 3) & ~3


class TestArchive:
    def test_files_links_and_devices(self) -> None:
        archive = cpio.Archive()
        archive.file("/etc/deep/name", b"hello", 0o640)
        archive.symlink("bin/sh", "busybox")
        archive.character_device("dev/console", 5, 1)
        found = read_archive(archive.to_bytes())
        assert found["etc/deep/name"][1] == b"hello"
        assert found["etc/deep/name"][0][1] == 0o100640
        assert found["bin/sh"] == (found["bin/sh"][0], b"busybox")
        assert found["bin/sh"][0][1] == 0o120777
        assert found["dev/console"][0][1] == 0o020600
        assert found["dev/console"][0][9:11] == (5, 1)

    def test_parents_come_before_their_children(self) -> None:
        archive = cpio.Archive()
        archive.file("a/b/c", b"")
        assert list(read_archive(archive.to_bytes())) == ["a", "a/b", "a/b/c"]

    def test_a_parent_keeps_the_mode_it_was_given(self) -> None:
        archive = cpio.Archive()
        archive.directory("root", 0o700)
        archive.file("root/x", b"")
        assert read_archive(archive.to_bytes())["root"][0][1] == 0o040700

    def test_owner_and_time_are_fixed(self) -> None:
        archive = cpio.Archive()
        archive.file("x", b"1")
        fields = read_archive(archive.to_bytes())["x"][0]
        assert fields[2:4] == (0, 0)
        assert fields[5] == 0

    @given(st.dictionaries(st.text("abcdef", min_size=1, max_size=9), st.binary(max_size=40), max_size=8))
    def test_contents_survive_in_any_order(self, contents: dict[str, bytes]) -> None:
        archives = [cpio.Archive(), cpio.Archive()]
        for name, data in contents.items():
            archives[0].file(f"d/{name}", data)
        for name, data in reversed(contents.items()):
            archives[1].file(f"d/{name}", data)
        assert archives[0].to_bytes() == archives[1].to_bytes()
        found = read_archive(archives[0].to_bytes())
        assert {name.removeprefix("d/"): data for name, (_, data) in found.items() if "/" in name} == contents


def make_module(information: bytes) -> bytes:
    """Make an ELF file with a .modinfo section and nothing else."""
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [(0, 0, b""), (1, 1, information), (10, 3, names)]
    offset = 64
    contents, headers = b"", b""
    for name, kind, data in sections:
        headers += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset + len(contents), len(data), 0, 0, 1, 0)
        contents += data
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, offset + len(contents), 0, 64, 0, 0, 64, 3, 2)
    return header + contents + headers


class TestElf:
    def test_module_information(self) -> None:
        data = make_module(b"license=GPL\0alias=pci:v1*\0alias=pci:v2*\0depends=a,b-c\0")
        assert elf.module_information(data) == [
            ("license", "GPL"),
            ("alias", "pci:v1*"),
            ("alias", "pci:v2*"),
            ("depends", "a,b-c"),
        ]

    def test_the_interpreter_of_this_test_needs_libc(self) -> None:
        if platform.machine() != "x86_64":
            pytest.skip("an x86-64 program is wanted")
        data = Path(sys.executable).resolve().read_bytes()
        assert "libc.so.6" in elf.needed(data)
        assert (elf.interpreter(data) or "").startswith("/lib")

    def test_other_files_are_refused(self) -> None:
        assert not elf.is_elf(b"#!/bin/sh\n")
        with pytest.raises(elf.ElfError):
            elf.needed(b"#!/bin/sh\n")


FILES_OF_A_KERNEL = {
    "drivers/virtio/virtio.ko": make_module(b"name=virtio\0"),
    "drivers/virtio/virtio_ring.ko": make_module(b"depends=virtio\0"),
    "drivers/virtio/virtio_pci.ko": make_module(b"depends=virtio,virtio_ring\0alias=pci:v00001AF4*\0"),
    "fs/ext4/ext4.ko": make_module(b"depends=\0softdep=pre: crc32c-generic\0"),
    "crypto/crc32c-generic.ko": make_module(b"alias=crc32c\0"),
    "unwanted.ko": make_module(b""),
}


class TestModules:
    def choose(self, *wanted: str) -> list[modules.Module]:
        return modules.choose(wanted, FILES_OF_A_KERNEL, FILES_OF_A_KERNEL.__getitem__)

    def test_dependencies_come_first(self) -> None:
        assert [module.name for module in self.choose("virtio-pci")] == ["virtio", "virtio_ring", "virtio_pci"]

    def test_soft_dependencies_come_along(self) -> None:
        assert [module.name for module in self.choose("ext4")] == ["crc32c_generic", "ext4"]

    def test_what_is_not_there_is_passed_over(self) -> None:
        assert self.choose("built_in_driver") == []

    def test_index_files(self) -> None:
        tables = modules.index_files(self.choose("virtio_pci"), "kernel")
        base = "kernel/drivers/virtio"
        assert tables["modules.dep"].decode().splitlines() == [
            f"{base}/virtio.ko:",
            f"{base}/virtio_ring.ko: {base}/virtio.ko",
            f"{base}/virtio_pci.ko: {base}/virtio_ring.ko {base}/virtio.ko",
        ]
        assert tables["modules.alias"] == b"alias pci:v00001AF4* virtio_pci\n"
        assert tables["modules.softdep"] == b""

    def test_compressed_modules_are_stored_plain(self) -> None:
        import lzma

        data = make_module(b"depends=\0")
        (module,) = modules.choose(["x"], ["a/x.ko.xz"], lambda path: lzma.compress(data))
        assert module.path == "a/x.ko"
        assert module.data == data


LISTED = """Package: tool
Version: 1:2.0-3+b1
Architecture: amd64
Pre-Depends: libc6 (>= 2.34)
Depends: liba1 (>= 1) | liba0, python3:any, libb2
Description: a tool
 with more lines

Package: tool
Version: 1:1.9
"""


class TestPackages:
    def test_what_the_lists_say(self) -> None:
        first, second = debian._parse(LISTED)
        assert first.version == "1:2.0-3+b1"
        assert first.depends == (("libc6",), ("liba1", "liba0"), ("python3",), ("libb2",))
        assert first.file_name == "tool_1%3a2.0-3+b1_amd64.deb"
        assert second.depends == ()

    def test_files_of_a_package(self, tmp_path: Path) -> None:
        if not Path("/usr/bin/dpkg-deb").exists():
            pytest.skip("dpkg-deb is not installed")
        tree = tmp_path / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: nobody <x@example.org>\nDescription: x\n"
        )
        (tree / "usr/lib").mkdir(parents=True)
        (tree / "usr/lib/libx.so.1.0").write_bytes(b"contents")
        (tree / "usr/lib/libx.so.1").symlink_to("libx.so.1.0")
        package = tmp_path / "x.deb"
        command = ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(package)]
        subprocess.run(command, check=True, capture_output=True)
        found = {file.path: file for file in debian.files(package, lambda path: ".so" in path)}
        assert found["usr/lib/libx.so.1.0"].data == b"contents"
        assert found["usr/lib/libx.so.1"].data is None
        assert found["usr/lib/libx.so.1"].target == "libx.so.1.0"

    def test_a_damaged_package_is_removed(self, tmp_path: Path) -> None:
        if not Path("/usr/bin/dpkg-deb").exists():
            pytest.skip("dpkg-deb is not installed")
        package = tmp_path / "broken.deb"
        package.write_bytes(b"no package")
        with pytest.raises(debian.PackageError, match=r"broken\.deb is damaged"):
            list(debian.files(package, lambda path: True))
        assert not package.exists()


class TestBuild:
    def test_an_unknown_guest_is_refused(self) -> None:
        with pytest.raises(build.BuildError, match="no guest named other"):
            build.build("other")

    def test_applets_come_from_the_program(self) -> None:
        assert build._applets(b"code\0[\0[[\0acpid\0zcat\0\0more") == ["[", "[[", "acpid", "zcat"]

    def test_the_time_zone_file_is_read_as_utc(self) -> None:
        import datetime
        import io
        import zoneinfo

        zone = zoneinfo.ZoneInfo.from_file(io.BytesIO(build._utc_zone()))
        assert datetime.datetime(2024, 7, 1, tzinfo=zone).utcoffset() == datetime.timedelta(0)

    def test_the_recipe_has_a_name_of_its_own_for_each_guest(self) -> None:
        digests = {build._recipe_digest(recipe) for recipe in build.RECIPES.values()}
        assert len(digests) == len(build.RECIPES)
