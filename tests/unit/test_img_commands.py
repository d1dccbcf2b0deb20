"""pyvm-img: all subcommands on small images."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyvm.block.open import open_image
from pyvm.tools.img.cli import main

MIB = 1 << 20


@dataclass
class Shell:
    """Runs pyvm-img in a directory."""

    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, status: int = 0) -> str:
        assert main(arguments) == status, self.capsys.readouterr()
        captured = self.capsys.readouterr()
        return captured.out if not status else captured.err

    def fails(self, *arguments: str, status: int = 1) -> str:
        text = self.run(*arguments, status=status)
        assert text.startswith("pyvm-img: ")
        return text.removeprefix("pyvm-img: ").rstrip("\n")

    def json(self, *arguments: str) -> object:
        return json.loads(self.run(*arguments))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


def write(path: str, *pieces: tuple[int, bytes], image_format: str = "qcow2") -> None:
    node = open_image(path, format=image_format)
    for offset, data in pieces:
        node.write(offset, data)
    node.flush()
    node.close()


def content(path: str, image_format: str = "qcow2") -> bytes:
    node = open_image(path, format=image_format, read_only=True)
    try:
        return bytes(node.read(0, node.size))
    finally:
        node.close()


@pytest.fixture
def disk(shell: Shell) -> str:
    """An image of 2 MiB with data in the first and at the end of the second half."""
    shell.run("create", "-q", "-f", "qcow2", "disk.qcow2", "2M")
    write("disk.qcow2", (0, b"a" * 100_000), (MIB + 65536, os.urandom(70_000)))
    return "disk.qcow2"


@pytest.fixture
def overlay(shell: Shell, disk: str) -> str:
    shell.run("create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", "top.qcow2", "3M")
    write("top.qcow2", (65536, b"b" * 65536), (5 * MIB // 2, b"c" * 512))
    return "top.qcow2"


# ---- create, info, map, check


def test_create_says_what_it_makes(shell: Shell) -> None:
    assert shell.run("create", "a.raw", "1.5k") == "Formatting 'a.raw', fmt=raw size=1536\n"
    assert Path("a.raw").stat().st_size == 1536
    assert shell.run("create", "-f", "qcow2", "-o", "cluster_size=4k,compat=0.10", "b", "1M") == (
        "Formatting 'b', fmt=qcow2 cluster_size=4096 extended_l2=off compression_type=zlib size=1048576 compat=0.10"
        " lazy_refcounts=off refcount_bits=16\n"
    )
    assert shell.fails("create", "c") == "c: Image creation needs a size parameter"
    assert shell.fails("create", "-f", "foo", "c", "1M") == "c: Unknown file format 'foo'"
    assert shell.fails("create", "-f", "qcow2", "-o", "size=1M", "c", "2M").endswith("must be specified only once")
    assert not Path("c").exists()


def test_creation_options_are_listed(shell: Shell) -> None:
    assert "  cluster_size=<size>    - " in shell.run("create", "-f", "qcow2", "-o", "help")
    assert shell.run("create", "-o", "help").startswith("Supported raw options:\n  size=<size>            - ")
    assert "preallocation" in shell.run("convert", "-o", "?", "a", "b")
    assert "Amend options for 'qcow2':\n  backing_file=<str>     - " in shell.run("amend", "-f", "qcow2", "-o", "help")


def test_info(shell: Shell, overlay: str, disk: str) -> None:
    shown = shell.run("info", overlay)
    assert shown.startswith("image: top.qcow2\nfile format: qcow2\nvirtual size: 3 MiB (3145728 bytes)\ndisk size: ")
    assert (
        "backing file: disk.qcow2\nbacking file format: qcow2\nFormat specific information:\n    compat: 1.1\n" in shown
    )
    top, below = shell.json("info", "--output=json", "--backing-chain", overlay)  # type: ignore[misc]
    assert (top["backing-filename"], top["full-backing-filename"]) == (disk, disk)
    assert below["virtual-size"] == 2 * MIB
    assert "backing-filename" not in below
    Path(disk).unlink()
    assert "backing file: disk.qcow2\n" in shell.run("info", overlay)
    assert shell.fails("info", "--backing-chain", overlay).startswith("Could not open 'disk.qcow2': ")
    assert shell.fails("info", "--output=xml", overlay) == "--output must be used with human or json as argument."


def test_info_finds_a_loop_of_backing_files(shell: Shell, overlay: str, disk: str) -> None:
    shell.run("rebase", "-u", "-b", overlay, "-F", "qcow2", disk)
    assert shell.fails("info", "--backing-chain", overlay) == "Backing file 'top.qcow2' creates an infinite loop."


def test_info_by_options(shell: Shell, disk: str) -> None:
    by_name = shell.run("info", disk)
    assert shell.run("info", "--image-opts", f"driver=qcow2,file.filename={disk}") == by_name
    assert shell.run("info", f'json:{{"driver": "qcow2", "file.driver": "file", "file.filename": "{disk}"}}') == by_name
    assert shell.fails("info", "--image-opts", "-f", "raw", disk) == (
        "--image-opts and --format are mutually exclusive"
    )


def test_map(shell: Shell, overlay: str) -> None:
    lines = shell.run("map", overlay).splitlines()
    assert lines[0] == "Offset          Length          Mapped to       File"
    assert [line.split()[0::3] for line in lines[1:]] == [
        ["0", "disk.qcow2"],
        ["0x10000", "top.qcow2"],
        ["0x110000", "disk.qcow2"],
        ["0x280000", "top.qcow2"],
    ]
    entries = shell.json("map", "--output=json", overlay)
    assert isinstance(entries, list)
    assert sum(it["length"] for it in entries) == 3 * MIB
    assert [(it["start"], it["depth"]) for it in entries if it["data"]] == [
        (0, 1),
        (65536, 0),
        (0x110000, 1),
        (0x280000, 0),
    ]
    assert shell.json("map", "--output=json", "-s", "64k", "-l", "512", overlay) == [
        {**entries[1], "length": 512},
    ]


def test_map_has_no_place_for_compressed_data(shell: Shell, disk: str) -> None:
    shell.run("convert", "-c", "-O", "qcow2", disk, "packed")
    assert shell.fails("map", "packed") == "File contains external, encrypted or compressed clusters."


def test_check_and_repair(shell: Shell, disk: str) -> None:
    assert shell.run("check", disk).startswith(
        "No errors were found on the image.\n4/32 = 12.50% allocated, 0.00% fragmented, 0.00% compressed clusters\n"
    )
    # One more cluster, which is counted and not used.
    end = Path(disk).stat().st_size // 65536
    os.truncate(disk, (end + 1) * 65536)
    with open(disk, "r+b") as file:
        file.seek(2 * 65536 + end * 2)
        file.write(b"\0\1")
    assert f"Leaked cluster {end} refcount=1 reference=0" in shell.run("check", disk, status=3)
    assert json.loads(_output(shell, "check", "--output=json", disk, status=3))["leaks"] == 1
    assert "The following inconsistencies were found and repaired:\n\n    1 leaked clusters\n" in shell.run(
        "check", "-r", "leaks", disk
    )
    assert "No errors" in shell.run("check", disk)
    with open(disk, "r+b") as file:
        file.seek(2 * 65536 + (end - 1) * 2)
        file.write(b"\0\0")
    shell.run("check", disk, status=2)
    shell.run("check", "-r", "leaks", disk, status=2)
    shell.run("check", "-r", "all", disk)
    shell.run("check", "-q", disk)


def _output(shell: Shell, *arguments: str, status: int) -> str:
    assert main(arguments) == status
    return shell.capsys.readouterr().out


def test_check_knows_what_it_cannot_check(shell: Shell) -> None:
    shell.run("create", "-q", "a.raw", "1M")
    assert shell.fails("check", "a.raw", status=63) == "This image format does not support checks"
    assert shell.fails("check", "-r", "foo", "a.raw").startswith("Unknown option value for -r (expecting 'leaks' or")


# ---- compare


def test_compare(shell: Shell, disk: str, overlay: str) -> None:
    shell.run("convert", disk, "a.raw")
    assert shell.run("compare", disk, "a.raw") == "Images are identical.\n"
    assert main(["compare", disk, overlay]) == 1
    assert shell.capsys.readouterr().out == "Content mismatch at offset 65536!\n"
    assert main(["compare", "-s", disk, overlay]) == 1
    assert shell.capsys.readouterr().out == "Strict mode: Image size mismatch!\n"
    shell.run("resize", "-q", "-f", "raw", "a.raw", "4M")
    assert shell.run("compare", "a.raw", disk) == "Warning: Image size mismatch!\nImages are identical.\n"
    write("a.raw", (3 * MIB + 1024, b"x"), image_format="raw")
    assert main(["compare", "-q", "a.raw", disk]) == 1
    assert not shell.capsys.readouterr().out
    assert main(["compare", disk, "a.raw"]) == 1
    assert shell.capsys.readouterr().out.endswith(f"Content mismatch at offset {3 * MIB + 1024}!\n")
    shell.fails("compare", disk, "nothing", status=2)
    shell.fails("compare", disk, status=1)


# ---- Snapshots


def test_snapshots(shell: Shell, disk: str) -> None:
    before = content(disk)
    assert not shell.run("snapshot", "-l", disk)
    shell.run("snapshot", "-c", "one", disk)
    write(disk, (0, b"new" * 1000))
    shell.run("snapshot", "-c", "two", disk)
    lines = shell.run("snapshot", disk).splitlines()
    assert lines[:2] == [
        "Snapshot list:",
        "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT",
    ]
    assert [line.split()[:4] for line in lines[2:]] == [["1", "one", "0", "B"], ["2", "two", "0", "B"]]
    shell.run("convert", "-l", "one", disk, "one.raw")
    assert content("one.raw", "raw") == before
    shell.run("convert", "-l", "snapshot.id=2,snapshot.name=two", disk, "two.raw")
    assert content("two.raw", "raw") == content(disk) != before
    assert shell.fails("convert", "-l", "snapshot.id=1,snapshot.name=two", disk, "x").startswith("Failed to load snap")
    shell.run("snapshot", "-a", "one", disk)
    assert content(disk) == before
    shell.run("snapshot", "-d", "one", disk)
    assert shell.fails("snapshot", "-d", "one", disk) == "Could not delete snapshot 'one': snapshot not found"
    assert shell.fails("snapshot", "-a", "one", disk).startswith("Could not apply snapshot 'one': Failed to load")
    assert shell.fails("snapshot", "-c", "a", "-d", "b", disk).startswith("Cannot mix '-l', '-a', '-c', '-d'\n")
    assert "No errors" in shell.run("check", disk)


# ---- commit, rebase


def test_commit_empties_the_image(shell: Shell, overlay: str, disk: str) -> None:
    before = content(overlay)
    assert shell.run("commit", overlay) == "Image committed.\n"
    assert content(disk) == content(overlay) == before
    entries = shell.json("map", "--output=json", overlay)
    assert isinstance(entries, list)
    assert {it["depth"] for it in entries} == {1}
    assert "No errors" in shell.run("check", disk)
    assert shell.fails("commit", disk) == "Image does not have a backing file"
    assert shell.fails("commit", "-b", "nothing", overlay) == (
        "Did not find 'nothing' in the backing chain of 'top.qcow2'"
    )


def test_commit_through_several_layers(shell: Shell, overlay: str, disk: str) -> None:
    shell.run("create", "-q", "-f", "qcow2", "-b", overlay, "-F", "qcow2", "over", "4M")
    write("over", (0, b"d" * 1000), (7 * MIB // 2, b"e" * 1000))
    node = open_image("over", format="qcow2")
    node.write_zeroes(MIB, MIB // 2, False)
    node.close()
    before = content("over")
    size = Path("over").stat().st_size
    shell.run("commit", "-q", "-b", disk, "over")
    assert content(disk) == before
    assert Path("over").stat().st_size == size
    assert content("over") == before


def test_commit_without_emptying(shell: Shell, overlay: str) -> None:
    before = shell.run("map", overlay)
    shell.run("commit", "-d", overlay)
    assert shell.run("map", overlay) == before


def test_rebase_keeps_the_content(shell: Shell, overlay: str, disk: str) -> None:
    before = content(overlay)
    shell.run("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "other", "1M")
    write("other", (0, b"a" * 50_000), (500_000, b"z" * 5000))
    shell.run("rebase", "-b", "other", "-F", "qcow2", overlay)
    assert content(overlay) == before
    assert "backing file: other\n" in shell.run("info", overlay)
    shell.run("rebase", "-b", disk, "-F", "qcow2", overlay)
    assert content(overlay) == before
    shell.run("rebase", "-b", "", overlay)
    assert content(overlay) == before
    assert "backing file" not in shell.run("info", overlay)
    assert "No errors" in shell.run("check", overlay)


def test_rebase_onto_a_layer_of_the_chain_copies_only_what_is_in_between(shell: Shell, overlay: str, disk: str) -> None:
    shell.run("create", "-q", "-f", "qcow2", "-b", overlay, "-F", "qcow2", "over")
    before = content("over")
    shell.run("rebase", "-b", disk, "-F", "qcow2", "over")
    assert content("over") == before
    own = [line.split()[0] for line in shell.run("map", "over").splitlines() if line.endswith("over")]
    assert own == ["0x10000", "0x280000"]


def test_rebase_by_name_only(shell: Shell, overlay: str) -> None:
    shell.run("rebase", "-u", "-b", "missing", "-F", "raw", overlay)
    assert "backing file: missing\nbacking file format: raw\n" in shell.run("info", overlay)
    assert "Could not open backing file" in shell.fails("rebase", "-b", "x", "-F", "raw", overlay)
    assert shell.fails("rebase", "-u", "-b", "x", "-F", "foo", overlay) == "Invalid format name: 'foo'"
    assert shell.fails("rebase", "-u", "-b", "x", overlay).endswith("': backing format must be specified")
    assert shell.fails("rebase", overlay).startswith("Must specify backing file (-b) or use unsafe mode (-u)\n")


# ---- resize, amend, measure


def test_resize(shell: Shell, disk: str) -> None:
    assert shell.run("resize", disk, "+1M") == "Image resized.\n"
    assert len(content(disk)) == 3 * MIB
    message = shell.run("resize", disk, "-2M", status=1)
    assert message.startswith("pyvm-img: Use the --shrink option to perform a shrink operation.\npyvm-img: warning: ")
    shell.run("resize", "-q", "--shrink", disk, "-2M")
    assert content(disk) == b"a" * 100_000 + bytes(MIB - 100_000)
    assert shell.fails("resize", disk, "-5M") == "New image size must be positive"
    assert shell.fails("resize", "--preallocation=bad", disk, "9M") == "Invalid preallocation mode 'bad'"
    assert shell.fails("resize", disk, "x").startswith("Parameter 'size' expects a non-negative number below 2^64\n")
    assert "No errors" in shell.run("check", disk)


def test_amend(shell: Shell, disk: str) -> None:
    before = content(disk)
    shell.run("amend", "-o", "compat=0.10", disk)
    assert "    compat: 0.10\n" in shell.run("info", disk)
    shell.run("amend", "-o", "compat=1.1,refcount_bits=32,lazy_refcounts=on", disk)
    assert "    refcount bits: 32\n" in shell.run("info", disk)
    assert content(disk) == before
    assert shell.fails("amend", "-o", "cluster_size=4k", disk) == (
        "Invalid parameter 'cluster_size'\nThis option is only supported for image creation"
    )
    assert shell.fails("amend", "-o", "bogus=1", disk) == "Invalid parameter 'bogus'"
    assert shell.fails("amend", "-o", "backing_file=x", disk).startswith("Cannot amend the backing file\n")
    assert shell.fails("amend", disk).startswith("Must specify options (-o)\n")


@pytest.mark.parametrize("options", ["", "cluster_size=4k", "extended_l2=on", "compat=0.10", "preallocation=full"])
def test_measure_is_what_convert_makes(shell: Shell, disk: str, options: str) -> None:
    extra = ["-o", options] if options else []
    sizes = shell.json("measure", "--output=json", "-O", "qcow2", *extra, disk)
    assert isinstance(sizes, dict)
    shell.run("convert", "-O", "qcow2", *extra, disk, "copy")
    size = Path("copy").stat().st_size
    # L2 tables are counted in whole rounds.
    assert size <= sizes["required"] <= size + 3 * 65536
    assert sizes["fully-allocated"] >= 2 * MIB
    assert sizes.get("bitmaps") == (None if "compat" in options else 0)


def test_measure_of_a_size(shell: Shell) -> None:
    assert shell.run("measure", "--size", "1G", "-O", "qcow2") == (
        "required size: 393216\nfully allocated size: 1074135040\n"
    )
    assert shell.fails("measure") == "Either --size N or one filename must be specified."
    assert shell.fails("measure", "--size", "1", "x") == "--size N cannot be used together with a filename."


# ---- dd, bench, bitmap


@pytest.mark.parametrize(
    ("operands", "start", "end"), [((), 0, None), (("bs=3000", "skip=5", "count=7"), 15000, 36000)]
)
def test_dd(shell: Shell, disk: str, operands: tuple[str, ...], start: int, end: int | None) -> None:
    shell.run("dd", *operands, f"if={disk}", "of=out.raw")
    wanted = content(disk)[start:end]
    copied = Path("out.raw").read_bytes()
    assert copied[: len(wanted)] == wanted
    assert len(copied) == -(-len(wanted) // 512) * 512


def test_dd_into_another_format_and_wrong_operands(shell: Shell, disk: str) -> None:
    shell.run("dd", "-O", "qcow2", "bs=1M", f"if={disk}", "of=out")
    assert content("out") == content(disk)
    assert shell.fails("dd", f"if={disk}") == "Must specify both input and output files"
    assert shell.fails("dd", "seek=1", f"if={disk}", "of=x") == "unrecognized operand seek"
    main(["dd", "bs=1M", "skip=9", f"if={disk}", "of=out"])
    assert shell.capsys.readouterr().err == f"pyvm-img: {disk}: cannot skip to specified offset\n"
    assert Path("out").stat().st_size == 0


def test_bench(shell: Shell, disk: str) -> None:
    shown = shell.run("bench", "-w", "--pattern=65", "-c", "7", "-d", "2", "--flush-interval=3", "-S", "8k", disk)
    assert shown.startswith(
        "Sending 7 write requests, 4096 bytes each, 2 in parallel (starting at offset 0, step size 8192)\n"
        "Sending flush every 3 requests\nRun completed in "
    )
    data = content(disk)
    assert [data[offset] == 65 for offset in (0, 4096, 8192, 6 * 8192, 7 * 8192)] == [True, False, True, True, False]
    assert shell.fails("bench", "-o", "9M", "-c", "1", disk) == "Failed request: Input/output error"
    assert shell.fails("bench", "-w", "--flush-interval=3", disk) == "Flush interval can't be smaller than depth"


def test_bitmaps(shell: Shell, disk: str) -> None:
    assert not shell.run("bitmap", "--add", "-g", "32k", disk, "b0")
    assert not shell.run("bitmap", "--add", "--disable", disk, "b1")
    assert shell.fails("bitmap", "--add", disk, "b0").endswith("Bitmap already exists: b0")
    assert not shell.run("convert", "--bitmaps", "-O", "qcow2", disk, "copy.qcow2")
    assert not shell.run("bitmap", "--remove", disk, "b1")
    shell.run("bitmap", "--merge", "b1", "-b", "copy.qcow2", "-F", "qcow2", disk, "b0")
    shown = shell.run("info", "copy.qcow2")
    assert "name: b0\n            granularity: 32768" in shown
    assert "name: b1" not in shell.run("info", disk)
    assert shell.fails("bitmap", "--clear", disk, "b1") == (
        "Operation clear on bitmap b1 failed: Dirty bitmap 'b1' not found"
    )
    assert shell.fails("bitmap", disk, "b0").startswith("Need at least one of --add, --remove,")
    assert shell.fails("bitmap", "--add", disk) == "Expecting filename and bitmap name"


# ---- All of them


@pytest.mark.parametrize(
    "arguments",
    [
        ("amend", "-o", "compat=1.1", "IMAGE"),
        ("bench", "-c", "1", "IMAGE"),
        ("check", "IMAGE"),
        ("commit", "IMAGE"),
        ("compare", "IMAGE", "IMAGE"),
        ("convert", "IMAGE", "out"),
        ("dd", "if=IMAGE", "of=out"),
        ("info", "IMAGE"),
        ("map", "IMAGE"),
        ("measure", "-O", "qcow2", "IMAGE"),
        ("rebase", "-b", "", "IMAGE"),
        ("resize", "IMAGE", "8M"),
        ("snapshot", "-c", "x", "IMAGE"),
    ],
)
def test_missing_and_broken_images_are_one_line(shell: Shell, arguments: tuple[str, ...]) -> None:
    status = 2 if arguments[0] == "compare" else 1
    for name, breakage in (("missing", None), ("broken", b"QFI\xfb\0\0\0\3" + b"\xff" * 200)):
        if breakage is not None:
            Path(name).write_bytes(breakage)
        message = shell.fails(*(it.replace("IMAGE", name) for it in arguments), status=status)
        assert message.startswith(f"Could not open '{name}': ")
        assert "\n" not in message
        assert not Path("out").exists()


def test_imports_of_info_are_few() -> None:
    import subprocess
    import sys

    code = "import sys; from pyvm.tools.img.cli import main; main(['info', '/nonexistent']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"numpy", "rich", "rich.progress", "asyncio", "argparse", "zstandard", "unicorn", "json"}


def test_what_is_behind_the_end_of_a_shorter_backing_file(shell: Shell, disk: str) -> None:
    shell.run("create", "-f", "qcow2", "-b", disk, "-F", "qcow2", "long.qcow2", "8M")
    entries = shell.json("map", "--output=json", "long.qcow2")
    assert isinstance(entries, list)
    last = entries[-1]
    assert (last["start"] + last["length"], last["depth"], last["present"], last["zero"]) == (8 * MIB, 0, False, True)


def test_the_base_of_a_commit_is_named_as_in_headers(shell: Shell, disk: str) -> None:
    Path("below").mkdir()
    Path("below/base.qcow2").write_bytes(Path(disk).read_bytes())
    for name, backing in (("mid", "base"), ("top", "mid")):
        shell.run("create", "-f", "qcow2", "-b", f"{backing}.qcow2", "-F", "qcow2", f"below/{name}.qcow2")
    assert shell.run("commit", "-b", "mid.qcow2", "below/top.qcow2") == "Image committed.\n"
    assert "Did not find 'below/mid.qcow2' in" in shell.fails("commit", "-b", "below/mid.qcow2", "below/top.qcow2")
    whole = str(Path("below/mid.qcow2").absolute())
    assert shell.run("commit", "-b", whole, "below/top.qcow2") == "Image committed.\n"
