"""The disk recipe's own parts: partition table, GRUB's sectors, swap, qcow2, package choice.  Nothing is built."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import build, debian, disk, disk_layout, disk_media, disk_qcow2, disk_root, disk_settings
from images.disk_layout import MIB, SECTOR, LayoutError, Partition

GRUB_BOOT = bytes(0x1FE) + b"\x55\xaa"
BLOCK_LIST = struct.pack("<QHH", 2, 0, 0x820)
UUID_OF_ROOT = UUID("12345678-9abc-4def-8123-456789abcdef")


class TestPartitionTable:
    def test_entries(self) -> None:
        sector = disk_layout.master_boot_record(b"\xeb\xfe", [disk.ROOT, disk.SWAP], 0x12345678)
        assert len(sector) == SECTOR
        assert sector[:2] == b"\xeb\xfe"
        assert sector[0x1B8:0x1BC] == b"\x78\x56\x34\x12"
        assert sector[510:] == b"\x55\xaa"
        first, second = sector[0x1BE:0x1CE], sector[0x1CE:0x1DE]
        assert (first[0], first[4]) == (0x80, 0x83)
        assert (second[0], second[4]) == (0, 0x82)
        assert struct.unpack("<II", first[8:]) == (2048, 1535 * 2048)
        assert struct.unpack("<II", second[8:]) == (1536 * 2048, 512 * 2048)
        assert sector[0x1DE:0x1FE] == bytes(32)

    @pytest.mark.parametrize(
        "partitions",
        [
            [Partition(0x83, 0, MIB)],
            [Partition(0x83, MIB, MIB), Partition(0x83, MIB + SECTOR, MIB)],
            [Partition(0x83, MIB + 1, MIB)],
            [Partition(0x83, MIB, MIB - 1)],
            [Partition(0x83, number * MIB, MIB) for number in range(1, 6)],
        ],
        ids=["on the first sector", "overlap", "start", "size", "five"],
    )
    def test_what_cannot_be(self, partitions: list[Partition]) -> None:
        with pytest.raises(LayoutError):
            disk_layout.master_boot_record(b"", partitions, 0)

    def test_code_must_fit(self) -> None:
        assert disk_layout.master_boot_record(bytes(440), [], 0)
        with pytest.raises(LayoutError, match="room for 440"):
            disk_layout.master_boot_record(bytes(441), [], 0)


class TestGrub:
    def test_boot_code_is_told_where_the_rest_is(self) -> None:
        code = disk_layout.grub_boot_code(GRUB_BOOT, core_sector=0x1122334455)
        assert len(code) == 440
        assert code[0x5C:0x64] == bytes.fromhex("5544332211000000")
        assert code[0x64] == 0xFF
        assert code[0x66:0x68] == b"\x90\x90"
        assert code[:0x5C] == GRUB_BOOT[:0x5C]

    def test_core_loads_its_other_sectors(self) -> None:
        image = bytes(500) + BLOCK_LIST + b"x" * 1500
        core = disk_layout.grub_core(image, sector=1)
        assert len(core) == 4 * SECTOR
        assert struct.unpack("<QHH", core[500:512]) == (2, 3, 0x820)
        assert core[512:2012] == b"x" * 1500

    @pytest.mark.parametrize("image", [b"", GRUB_BOOT[:-1], bytes(SECTOR)])
    def test_other_files_are_refused(self, image: bytes) -> None:
        with pytest.raises(LayoutError, match=r"boot\.img"):
            disk_layout.grub_boot_code(image, 1)
        with pytest.raises(LayoutError, match=r"core\.img"):
            disk_layout.grub_core(image.ljust(SECTOR, b"\0"), 1)

    def test_configuration_finds_the_root_by_its_uuid(self) -> None:
        identity = disk_settings.Identity(UUID_OF_ROOT, UUID(int=1), UUID(int=2))
        text = disk_settings._grub_configuration(identity, "6.1.0-1-cloud-amd64")
        assert f"search --no-floppy --fs-uuid --set=root {UUID_OF_ROOT}\n" in text
        assert f"linux /boot/vmlinuz-6.1.0-1-cloud-amd64 root=UUID={UUID_OF_ROOT} ro" in text
        assert text.count("{") == text.count("}")


class TestSwap:
    def test_header(self, tmp_path: Path) -> None:
        header = disk_layout.swap_header(MIB, UUID_OF_ROOT)
        assert len(header) == 4096
        assert struct.unpack_from("<III", header, 1024) == (1, 255, 0)
        if (swaplabel := shutil.which("swaplabel", path="/usr/sbin:/sbin")) is None:
            return
        path = tmp_path / "swap"
        path.write_bytes(header.ljust(MIB, b"\0"))
        shown = subprocess.run([swaplabel, str(path)], capture_output=True, text=True, check=True)
        assert str(UUID_OF_ROOT) in shown.stdout


def read_qcow2(image: bytes) -> bytearray:
    """Read an image of version 3 that has no backing file and no snapshots, and check its reference counts."""
    magic, version, _, _, bits, size, _, l1_size, l1, table, table_clusters = struct.unpack_from(">4sIQIIQIIQQI", image)
    assert (magic, version, bits) == (b"QFI\xfb", 3, 16)
    cluster = 1 << bits
    used = {0, *range(l1 // cluster, l1 // cluster + -(-l1_size * 8 // cluster))}
    used |= set(range(table // cluster, table // cluster + table_clusters))
    data = bytearray(-(-size // cluster) * cluster)
    for index, entry in enumerate(struct.unpack_from(f">{l1_size}Q", image, l1)):
        if entry:
            assert entry >> 63
            used.add((entry & ~(1 << 63)) // cluster)
            for number, where in enumerate(struct.unpack_from(">8192Q", image, entry & ~(1 << 63))):
                if where:
                    assert where >> 63
                    offset = where & ~(1 << 63)
                    assert offset // cluster not in used
                    used.add(offset // cluster)
                    start = (index * 8192 + number) * cluster
                    data[start : start + cluster] = image[offset : offset + cluster]
    blocks = [block for block in struct.unpack_from(f">{table_clusters * 8192}Q", image, table) if block]
    counts = [count for block in blocks for count in struct.unpack_from(">32768H", image, block)]
    used |= {block // cluster for block in blocks}
    assert {number for number, count in enumerate(counts) if count} == used
    assert set(counts) <= {0, 1}
    assert max(used) * cluster < len(image) <= (max(used) + 1) * cluster
    del data[size:]
    return data


class TestQcow2:
    @settings(max_examples=15, deadline=None)
    @given(
        st.integers(1, 40).map(lambda count: count * 32768 + 512),
        st.dictionaries(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9), max_size=5),
    )
    def test_contents_survive(
        self, tmp_path_factory: pytest.TempPathFactory, size: int, pieces: dict[int, bytes]
    ) -> None:
        directory = tmp_path_factory.mktemp("qcow2")
        raw, image = directory / "raw", directory / "image"
        with raw.open("wb") as file:
            file.truncate(size)
            for offset, data in pieces.items():
                file.seek(offset % (size - 9))
                file.write(data)
        disk_qcow2.write_qcow2(raw, image)
        assert read_qcow2(image.read_bytes()) == raw.read_bytes()

    def test_zeroes_take_no_room(self, tmp_path: Path) -> None:
        raw, image = tmp_path / "raw", tmp_path / "image"
        with raw.open("wb") as file:
            file.write(bytes(MIB))
            file.seek(600 * MIB)
            file.write(b"end")
        disk_qcow2.write_qcow2(raw, image)
        assert image.stat().st_size <= 6 * disk_qcow2.CLUSTER  # header, L1, one cluster and its L2, refcounts
        assert read_qcow2(image.read_bytes()).endswith(b"end")

    def test_qemu_img_agrees(self, tmp_path: Path) -> None:
        if (program := shutil.which("qemu-img")) is None:
            pytest.skip("qemu-img is not installed")
        raw, image = tmp_path / "raw", tmp_path / "image"
        with raw.open("wb") as file:
            for number in (0, 5, 700):
                file.seek(number * 100000)
                file.write(b"some text" * 9999)
            file.truncate(80 * MIB)
        disk_qcow2.write_qcow2(raw, image)
        subprocess.run([program, "check", str(image)], check=True, capture_output=True)
        subprocess.run([program, "compare", "-f", "raw", "-F", "qcow2", str(raw), str(image)], check=True)

    @given(st.integers(1, 1 << 34))
    def test_refcounts_cover_themselves(self, others: int) -> None:
        table, blocks = disk_qcow2._refcount_blocks(others)
        assert blocks * 32768 >= others + table + blocks > (blocks - 2) * 32768
        assert table * 8192 >= blocks > (table - 1) * 8192


SIMULATED = """\
Reading package lists...
Inst libc6 (2.36-9 Debian:12/stable [amd64])
Inst base-files (12.4 Debian:12/stable [amd64]) [bash:amd64 ]
Conf libc6 (2.36-9 Debian:12/stable [amd64])
"""


def make_program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> debian.Apt:
    """A package client that knows two packages, and writes down what it is asked."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "simulated").write_text(SIMULATED)
    script = f"""
        echo "$@" >> {tmp_path}/asked
        for word in "$@"; do case $word in
            --simulate) exec cat {tmp_path}/simulated;;
            *=2.36-9) echo one > libc6_2.36-9_amd64.deb;;
            *=12.4) echo two > base-files_12.4_all.deb;;
            broken*) echo "E: there is nothing" >&2; exit 100;;
        esac; done
    """
    make_program(programs, "apt-get", script)
    for name in ("apt-cache", "dpkg-deb"):
        make_program(programs, name, "exit 1")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return debian.Apt(tmp_path / "cache")


class TestPackages:
    def test_closure_is_that_of_an_empty_machine(self, apt: debian.Apt, tmp_path: Path) -> None:
        found = apt.closure(["?essential", "libc6"])
        assert [(package.name, package.version) for package in found] == [("base-files", "12.4"), ("libc6", "2.36-9")]
        asked = (tmp_path / "asked").read_text()
        status = next(word for word in asked.split() if word.startswith("Dir::State::status=")).partition("=")[2]
        assert Path(status).read_text() == ""

    def test_all_are_fetched_at_once_and_once(self, apt: debian.Apt, tmp_path: Path) -> None:
        packages = apt.closure(["libc6"])
        for _ in range(2):
            files = apt.fetch_all(packages)
            assert {name: path.read_text() for name, path in files.items()} == {"libc6": "one\n", "base-files": "two\n"}
        assert (tmp_path / "asked").read_text().count(" download ") == 1
        assert apt.fetch(packages[0]) == files["base-files"]

    def test_what_cannot_be_fetched_is_named(self, apt: debian.Apt) -> None:
        with pytest.raises(debian.PackageError, match="cannot download broken 1: there is nothing"):
            apt.fetch_all([debian.Package("broken", "1", ())])

    def test_date_of_a_package(self, tmp_path: Path) -> None:
        package = tmp_path / "x.deb"
        package.write_bytes(b"!<arch>\n" + b"debian-binary".ljust(16) + b"1700000000".ljust(12) + b"0 " * 20)
        assert debian.date(package) == 1700000000
        package.write_bytes(b"!<arch>\nshort")
        with pytest.raises(debian.PackageError, match=r"x\.deb is damaged"):
            debian.date(package)
        assert not package.exists()


class TestRecipe:
    def test_another_user_is_told_so(self, apt: debian.Apt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYVM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(build.BuildError, match="run this as root"):
            disk.build_disk(quiet=True)

    def test_missing_tool_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(LayoutError, match="no-such-tool is needed: apt-get install some-package, as root"):
            disk_layout.tool("no-such-tool", "some-package")

    def test_a_file_may_be_needed_as_well(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        path = tmp_path / "cdboot.img"
        with pytest.raises(LayoutError, match="apt-get install grub-pc-bin"):
            disk_layout.tool(str(path), "grub-pc-bin")
        path.write_bytes(b"not a program")
        assert disk_layout.tool(str(path), "grub-pc-bin") == str(path)

    def test_identity_depends_on_the_recipe_alone(self) -> None:
        first = disk._identity("disk-1-2")
        assert first == disk._identity("disk-1-2") != disk._identity("disk-1-3")
        assert len({first.root, first.swap, first.machine}) == 3

    def test_all_sources_count(self) -> None:
        modules = {path.name for path in build.HERE.glob("disk*.py")} - {"disk_media.py"}
        assert modules < set(disk.SOURCES)

    def test_dates_are_limited(self, tmp_path: Path) -> None:
        root = disk_root.Root(tmp_path, 1_600_000_000)
        for name in ("var/log/apt", "var/cache/debconf", "dev", "etc"):
            (tmp_path / name).mkdir(parents=True)
        for name in ("var/log/dpkg.log", "var/cache/debconf/config.dat-old", "etc/passwd-", "etc/old", "dev/tty"):
            root.write(name, "")
        root.link("etc/link", "nowhere")
        os.utime(tmp_path / "etc/old", (1, 1))
        disk_settings.settle(root)
        assert sorted(path.name for path in (tmp_path / "etc").iterdir()) == [".updated", "link", "old"]
        assert not list((tmp_path / "dev").iterdir())
        dates = {path.name: path.lstat().st_mtime for path in tmp_path.rglob("*")}
        assert dates["old"] == 1
        assert max(dates.values()) == 1_600_000_000 == dates["link"]


class TestMedia:
    def test_the_boot_sector_leaves_room_for_a_partition_table(self, tmp_path: Path) -> None:
        sector = disk_media.boot_sector()
        assert len(sector) == SECTOR
        assert sector[510:] == b"\x55\xaa"
        assert sector[0x1B8:0x1FE] == bytes(70)
        disk_media.make_disk(tmp_path / "disk.img")
        image = (tmp_path / "disk.img").read_bytes()
        assert image[:0x1B8] == sector[:0x1B8]
        assert image[512:].startswith(disk_media.BY_CHS)
        assert image[1024:].startswith(disk_media.BY_NUMBER)
        assert len(image) == disk_media.DISK_SIZE

    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert disk_media.main([]) == 2
        assert "usage" in capsys.readouterr().err
