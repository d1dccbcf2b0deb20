"""Encrypted images between pyvm and QEMU's tools: each reads, checks and changes what the other made."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from pyvm.block.create import create_image
from pyvm.block.graph import BlockGraph
from pyvm.block.node import Node, disk_access
from pyvm.block.open import Opener
from pyvm.block.options import Dialect
from pyvm.secrets import Secrets
from pyvm.tools.img.cli import main

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not (shutil.which("qemu-img") and shutil.which("qemu-io")), reason="qemu-img is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = ("--object", "secret,id=s,data=hello", "--object", "secret,id=t,data=b3RoZXI=,format=base64")
MIB = 1 << 20
PREFIXES = {"luks": "", "qcow2": "encrypt."}
_FLAKY = "Unable to get accurate CPU usage"
"""What QEMU says now and then, and then gives up, on a machine on which nothing takes long enough to be measured."""


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def secrets() -> Secrets:
    found = Secrets()
    found.add("s", {"data": "hello"})
    found.add("t", {"data": "other"})
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if _FLAKY not in done.stderr:
            return done
    pytest.skip("QEMU cannot measure its CPU usage here")


def tool(*command: str) -> str:
    done = run(*command)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def pyvm_img(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def creation(image_format: str, secret: str = "s", **options: str) -> str:
    prefix = PREFIXES[image_format]
    chosen = {
        "key-secret": secret,
        "iter-time": "10",
        **{key.replace("_", "-"): value for key, value in options.items()},
    }
    words = [f"{prefix}{key}={value}" for key, value in chosen.items()]
    return ",".join((["encrypt.format=luks"] if prefix else []) + words)


def source(image_format: str, path: str = "disk", secret: str = "s") -> tuple[str, ...]:
    options = f"driver={image_format},{PREFIXES[image_format]}key-secret={secret},file.filename={path}"
    return (*OBJECTS, "--image-opts", options)


def open_disk(secrets: Secrets, image_format: str, path: str = "disk", secret: str = "s") -> Node:
    key = {"key-secret": secret}
    tree = {"driver": image_format, **({"encrypt": key} if image_format == "qcow2" else key)}
    return Opener(BlockGraph(secrets=secrets), Dialect.DRIVE).open(path, tree, access=disk_access(False))


CIPHERS = [
    {},
    {"cipher_alg": "aes-128", "hash_alg": "sha1"},
    {"cipher_alg": "aes-192"},
    {"cipher_alg": "aes-256", "cipher_mode": "cbc", "ivgen_alg": "essiv", "hash_alg": "sha512"},
    {"cipher_alg": "aes-128", "cipher_mode": "cbc", "ivgen_alg": "plain", "hash_alg": "sha384"},
    {"cipher_alg": "aes-128", "cipher_mode": "cbc", "ivgen_alg": "essiv", "ivgen_hash_alg": "md5"},
    {"cipher_alg": "aes-256", "cipher_mode": "ctr"},
    {"cipher_alg": "aes-128", "cipher_mode": "ecb"},
]


@pytest.mark.parametrize(
    ("image_format", "cipher"),
    [*(("luks", cipher) for cipher in CIPHERS), ("qcow2", CIPHERS[0]), ("qcow2", CIPHERS[3])],
    ids=str,
)
@pytest.mark.parametrize("maker", ["qemu", "pyvm"])
def test_one_writes_and_the_other_reads(secrets, image_format, cipher, maker):
    create = ("create", "-q", "-f", image_format, *OBJECTS, "-o", creation(image_format, **cipher), "disk", "3M")
    tool("qemu-img", *create) if maker == "qemu" else pyvm_img(*create)
    commands = ["write -P 1 0 64k", "write -P 2 70001 100", "write -P 3 1M 300k", "write -z 1100k 8k"]
    tool("qemu-io", *source(image_format), *(part for command in commands for part in ("-c", command)))
    node = open_disk(secrets, image_format)
    expected = bytearray(3 * MIB)
    expected[:65536] = b"\1" * 65536
    expected[70001:70101] = b"\2" * 100
    expected[MIB : MIB + (300 << 10)] = b"\3" * (300 << 10)
    expected[1100 << 10 : 1108 << 10] = bytes(8192)
    if image_format == "luks":
        # What was never written is whatever the cipher makes of zeros.
        node.write_zeroes(65536, 4465, False)
        node.write_zeroes(70101, MIB - 70101, False)
        node.write_zeroes(MIB + (300 << 10), 2 * MIB - (300 << 10), False)
    assert node.read(0, node.size) == expected
    node.write(2 * MIB - 5, b"from the other side")
    node.write(65530, b"x" * 20000)
    node.release()
    expected[2 * MIB - 5 : 2 * MIB + 14] = b"from the other side"
    expected[65530:85530] = b"x" * 20000
    Path("plain").write_bytes(expected)
    assert "identical" in tool("qemu-img", "compare", *source(image_format), "driver=raw,file.filename=plain")
    if image_format == "qcow2":
        tool("qemu-img", "check", *source(image_format))


@pytest.mark.parametrize("options", ["", "compat=0.10", "extended_l2=on", "cluster_size=512", "data_file=data"])
def test_the_same_operations_through_both(secrets, options):
    """One image is changed by both in turns, with snapshots; a plain file tells what it should be."""
    chance = random.Random(options)
    chosen = creation("qcow2") + (f",{options}" if options else "")
    tool("qemu-img", "create", "-q", "-f", "qcow2", *OBJECTS, "-o", chosen, "disk", "2M")
    expected = bytearray(2 * MIB)
    kept: dict[str, bytes] = {}
    for turn in range(4):
        operations = []
        for _ in range(12):
            offset, length = chance.randrange(0, 2 * MIB - 65536), chance.choice((1, 512, 5000, 65536))
            value = chance.randrange(256)
            operations.append((offset, length, value))
            expected[offset : offset + length] = bytes([value]) * length
        if turn % 2:
            commands = (
                f"write {'-z' if not value else f'-P {value}'} {at} {length}" for at, length, value in operations
            )
            tool("qemu-io", *source("qcow2"), *(part for command in commands for part in ("-c", command)))
            if not options.startswith("data"):
                tool("qemu-img", "snapshot", "-c", f"s{turn}", *source("qcow2"))
        else:
            node = open_disk(secrets, "qcow2")
            for at, length, value in operations:
                if value:
                    node.write(at, bytes([value]) * length)
                else:
                    node.write_zeroes(at, length, True)
            if not options.startswith("data"):
                node.create_snapshot(f"s{turn}")
            node.release()
        kept[f"s{turn}"] = bytes(expected)
        Path("plain").write_bytes(expected)
        assert "identical" in tool("qemu-img", "compare", *source("qcow2"), "driver=raw,file.filename=plain")
    tool("qemu-img", "check", *source("qcow2"))
    if options.startswith("data"):
        return
    node = open_disk(secrets, "qcow2")
    for name, content in kept.items():
        view = node.open_snapshot(name)
        assert view.read(0, view.size) == content
        view.close()
    node.release()
    for name, content in kept.items():
        tool("qemu-img", "convert", "-l", name, "-O", "raw", *source("qcow2"), "shown")
        assert Path("shown").read_bytes() == content


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_key_slots_of_the_other(secrets, image_format):
    prefix = PREFIXES[image_format]
    add = f"{prefix}state=active,{prefix}new-secret=t,{prefix}iter-time=10"
    erase = f"{prefix}state=inactive,{prefix}old-secret=s"
    for first, second in (("qemu", "pyvm"), ("pyvm", "qemu")):
        create = ("create", "-q", "-f", image_format, *OBJECTS, "-o", creation(image_format), "disk", "1M")
        tool("qemu-img", *create) if first == "qemu" else pyvm_img(*create)
        node = open_disk(secrets, image_format)
        node.write(0, b"kept" * 1000)
        node.release()
        for program, options in ((second, add), (first, erase)):
            arguments = ("amend", *source(image_format), "-o", options)
            tool("qemu-img", *arguments) if program == "qemu" else pyvm_img(*arguments)
        assert "Invalid password" in run("qemu-io", *source(image_format), "-c", "read 0 512").stderr
        tool("qemu-io", *source(image_format, secret="t"), "-c", "read 0 512")
        node = open_disk(secrets, image_format, secret="t")
        assert node.read(0, 4000) == b"kept" * 1000
        node.release()


def test_convert_and_info(secrets, capsys):
    Path("plain").write_bytes(random.Random(1).randbytes(MIB) + bytes(MIB) + b"end".ljust(512, b"."))
    for image_format in ("luks", "qcow2"):
        pyvm_img("convert", *OBJECTS, "-O", image_format, "-o", creation(image_format, "t"), "plain", "new")
        target = source(image_format, "new", "t")
        assert "identical" in tool("qemu-img", "compare", *target, "driver=raw,file.filename=plain")
        pyvm_img("convert", *target, "-O", "raw", "back")
        assert Path("back").read_bytes() == Path("plain").read_bytes()
        capsys.readouterr()
        for arguments in (("info", "new"), ("info", "--output=json", "new")):
            pyvm_img(*arguments)
            assert capsys.readouterr().out == tool("qemu-img", *arguments)
        assert json.loads(tool("qemu-img", "info", "--output=json", "new"))["encrypted"] is True


@pytest.mark.parametrize("more", ["", ",compat=0.10", ",extended_l2=on,cluster_size=128k", ",data_file=data"])
@pytest.mark.parametrize("maker", ["qemu", "pyvm"])
def test_images_with_the_old_aes_method(secrets, maker, more, capsys):
    create = ("create", "-q", "-f", "qcow2", *OBJECTS, "-o", f"encrypt.format=aes,encrypt.key-secret=t{more}")
    tool("qemu-img", *create, "disk", "2M") if maker == "qemu" else pyvm_img(*create, "disk", "2M")
    tool("qemu-io", *source("qcow2", secret="t"), "-c", "write -P 7 100k 70000")
    expected = bytearray(bytes(100 << 10) + b"\7" * 70000).ljust(2 * MIB, b"\0")
    chance = random.Random(more)
    node = open_disk(secrets, "qcow2", secret="t")
    for _ in range(20):
        start = chance.randrange(2 * MIB - 100000)
        data = chance.randbytes(chance.choice((1, 511, 512, 4096, 70001)))
        node.write(start, data)
        expected[start : start + len(data)] = data
    node.release()
    Path("plain").write_bytes(expected)
    assert "identical" in tool("qemu-img", "compare", *source("qcow2", secret="t"), "driver=raw,file.filename=plain")
    pyvm_img("convert", *source("qcow2", secret="t"), "-O", "raw", "back")
    assert Path("back").read_bytes() == expected
    capsys.readouterr()
    pyvm_img("info", "disk")
    assert capsys.readouterr().out == tool("qemu-img", "info", "disk")
    tool("qemu-img", "check", *source("qcow2", secret="t"))


def test_conversion_to_the_old_aes_method_and_back():
    Path("plain").write_bytes(random.Random(1).randbytes(MIB) + bytes(MIB) + b"end".ljust(512, b"."))
    pyvm_img("convert", *OBJECTS, "-O", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=t", "plain", "new")
    assert "identical" in tool("qemu-img", "compare", *source("qcow2", "new", "t"), "driver=raw,file.filename=plain")
    pyvm_img("amend", *source("qcow2", "new", "t"), "-o", "compat=0.10")
    assert "identical" in tool("qemu-img", "compare", *source("qcow2", "new", "t"), "driver=raw,file.filename=plain")


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed")
@pytest.mark.parametrize("more", ["", ",readonly=on"])
def test_a_machine_refuses_the_old_aes_method(more):
    options = "encrypt.format=aes,encrypt.key-secret=t"
    tool("qemu-img", "create", "-q", "-f", "qcow2", *OBJECTS, "-o", options, "old", "1M")
    drive = f"file=old,format=qcow2,encrypt.key-secret=t,if=none{more}"
    words = ("-nodefaults", "-display", "none", *(word.replace("--", "-") for word in OBJECTS), "-drive", drive)
    qemu, pyvm = run("qemu-system-x86_64", *words), run(sys.executable, "-m", "pyvm", *words)
    assert qemu.returncode == pyvm.returncode == 1
    told = qemu.stderr.replace("qemu-system-x86_64:", "pyvm:").replace("qemu-img", "pyvm-img")
    assert pyvm.stderr == told


COMMANDS = """
create -f luks b.luks 1M
create -f luks -o key-secret=q b.luks 1M
create -f luks -o key-secret=s,cipher-alg=foo b.luks 1M
create -f luks -o key-secret=s,hash-alg=foo b.luks 1M
create -f luks -o key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha1 b.luks 1M
create -f luks -o key-secret=s,iter-time=x b.luks 1M
create -f luks -o key-secret=s,iter-time=10,preallocation=foo b.luks 1M
create -f luks -o key-secret=s,backing_file=x b.luks 1M
create -f luks -b a.luks -o key-secret=s b.luks 1M
create -f luks -o key-secret=s,iter-time=10,hash-alg=sha512,cipher-alg=aes-128 b.luks 100K
create -f qcow2 -o encrypt.format=luks b.qcow2 1M
create -f qcow2 -o encrypt.key-secret=s b.qcow2 1M
create -f qcow2 -o encryption=on,encrypt.format=luks,encrypt.key-secret=s b.qcow2 1M
create -f qcow2 -o encrypt.format=foo b.qcow2 1M
create -f qcow2 -o encrypt.format=aes b.qcow2 1M
create -f qcow2 -o encryption=on b.qcow2 1M
create -f qcow2 -o encrypt.format=aes,encrypt.key-secret=q b.qcow2 1M
create -f qcow2 -o encrypt.format=aes,encrypt.cipher-alg=aes-256,encrypt.key-secret=s b.qcow2 1M
create -f qcow2 -o encryption=on,encrypt.key-secret=s b.qcow2 1M
measure -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s --size 10M
create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 b.qcow2 1M
create -f luks -o help
amend -f luks -o help
measure -O luks --size 10M
measure -O luks -o key-secret=s --size 10M
measure -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s --size 10M
measure -O qcow2 -o encrypt.format=luks --size 10M
convert -c -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s plain.qcow2 c.qcow2
convert -c -O luks -o key-secret=s plain.qcow2 c.luks
map --image-opts driver=luks,key-secret=s,file.filename=a.luks
map --image-opts driver=luks,key-secret=s,file.filename=a.luks --output=json
check --image-opts driver=luks,key-secret=s,file.filename=a.luks
resize --image-opts driver=luks,key-secret=s,file.filename=a.luks 2M
resize a.luks 2M
compare a.luks a.qcow2
snapshot -l a.qcow2
amend -o encrypt.state=active,encrypt.new-secret=t plain.qcow2
amend -f luks -o state=active,new-secret=t a.luks
info --object secret,id=x,data=!!,format=base64 a.luks
info --object secret,id=x,data=a,file=b a.luks
info --object secret,id=x a.luks
info --object secret,id=x,data=a,format=base65 a.luks
info --object secret,id=x,data=aGVsbG8=,keyid=k a.luks
"""
AMENDMENTS = """
{p}state=active
{p}state=active,{p}new-secret=t,{p}old-secret=s
{p}state=active,{p}new-secret=t,{p}keyslot=8
{p}state=active,{p}new-secret=t,{p}keyslot=0
{p}state=inactive
{p}state=inactive,{p}new-secret=t
{p}state=inactive,{p}iter-time=10
{p}state=inactive,{p}keyslot=3
{p}state=inactive,{p}keyslot=0
{p}state=inactive,{p}keyslot=x
{p}state=inactive,{p}old-secret=s
{p}state=inactive,{p}old-secret=t
{p}state=inactive,{p}old-secret=t,{p}keyslot=0
{p}state=foo
{p}new-secret=t
{p}state=active,{p}new-secret=t,{p}keyslot=2,{p}iter-time=10
{p}state=inactive,{p}old-secret=s,{p}keyslot=3
{p}state=inactive,{p}old-secret=t
{p}cipher-alg=aes-128
{p}key-secret=t
foo=1
"""


def test_the_same_words(capfd, tmp_path, monkeypatch):
    """Commands, with what goes wrong, in two directories of the same images."""
    lines = [f"{line}" for line in COMMANDS.strip().splitlines()]
    for image_format, prefix in PREFIXES.items():
        for options in AMENDMENTS.strip().format(p=prefix).splitlines():
            image = f"driver={image_format},{prefix}key-secret=s,file.filename=a.{image_format}"
            lines.append(f"amend --image-opts {image} -o {options}")
    directories = [tmp_path / name for name in ("qemu", "pyvm")]
    for directory in directories:
        directory.mkdir()
    monkeypatch.chdir(directories[0])
    for image_format in PREFIXES:
        words = creation(image_format)
        tool("qemu-img", "create", "-q", "-f", image_format, *OBJECTS, "-o", words, f"a.{image_format}", "1M")
    tool("qemu-img", "create", "-q", "-f", "qcow2", "plain.qcow2", "1M")
    for path in directories[0].iterdir():
        shutil.copy(path, directories[1])
    capfd.readouterr()
    for line in lines:
        command, *arguments = line.split()
        objects = () if "--object" in arguments else OBJECTS
        monkeypatch.chdir(directories[0])
        theirs = run("qemu-img", command, *objects, *arguments)
        monkeypatch.chdir(directories[1])
        status = main([command, *objects, *arguments])
        sys.stdout.flush()
        ours = capfd.readouterr()
        assert ours.out == theirs.stdout, line
        assert ours.err.replace("pyvm-img", "qemu-img") == theirs.stderr, line
        assert status == theirs.returncode, line


def test_a_qcow2_image_made_by_creation_alone_is_clean(secrets):
    for number, size in enumerate((512, 3 * MIB, 1 << 40)):
        for cluster in (512, 65536, 2 * MIB):
            if size // cluster > 1 << 22:
                continue
            options = {
                "encrypt.format": "luks",
                "encrypt.key-secret": "s",
                "encrypt.iter-time": 0,
                "cluster_size": cluster,
            }
            path = f"disk{number}-{cluster}"
            create_image(path, "qcow2", size, options, secrets=secrets)
            assert "No errors" in tool("qemu-img", "check", *source("qcow2", path))
