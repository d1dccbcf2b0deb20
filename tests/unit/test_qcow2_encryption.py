"""Encrypted qcow2 images: everything an image can do, with nothing of the guest's in the file."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from pyvm.block.create import create_image
from pyvm.block.drivers.filter import ReadOnlyView
from pyvm.block.drivers.qcow2.driver import Qcow2Node
from pyvm.block.drivers.qcow2.structures import parse_header
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import disk_access
from pyvm.block.open import Opener, open_node
from pyvm.block.options import Dialect
from pyvm.clock import ManualClock
from pyvm.commandline import parse_arguments
from pyvm.errors import ConfigError
from pyvm.machine.storage import Storage, StorageEvents
from pyvm.secrets import Secrets

FAST = {"encrypt.format": "luks", "encrypt.key-secret": "s", "encrypt.iter-time": 0}
MIB = 1 << 20
EXTENSION_OFFSET = 112


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def secrets() -> Secrets:
    found = Secrets()
    for name, text in (("s", "hello"), ("t", "other"), ("long", "0123456789abcdefXYZ")):
        found.add(name, {"data": text})
    return found


def make(secrets, size=4 * MIB, path="disk", **options):
    create_image(
        path, "qcow2", size, {**FAST, **{name: str(value) for name, value in options.items()}}, secrets=secrets
    )


def open_disk(secrets, path="disk", secret="s", read_only=False, **tree) -> Qcow2Node:
    opener = Opener(BlockGraph(secrets=secrets), Dialect.DRIVE, warn=lambda text: None)
    tree = {"driver": "qcow2", "encrypt": {"key-secret": secret}, "read-only": read_only, "discard": "unmap", **tree}
    node = opener.open(path, tree, access=disk_access(read_only))
    assert isinstance(node, Qcow2Node)
    return node


@contextmanager
def using(node: Qcow2Node) -> Iterator[Qcow2Node]:
    yield node
    node.release()


def find_errors(path="disk") -> int:
    from pyvm.block.drivers.file import FileNode
    from pyvm.block.drivers.qcow2.driver import read_header

    file = FileNode(path)
    node = Qcow2Node(file, read_header(file), warn=lambda text: None, for_check=True)
    result = node.check()
    node.close()
    return result.corruptions + result.leaks + result.check_errors


KINDS = [
    {},
    {"cluster_size": 512},
    {"cluster_size": 2 * MIB},
    {"extended_l2": "on"},
    {"compat": "0.10"},
    {"lazy_refcounts": "on"},
    {"data_file": "data"},
    {"data_file": "data", "data_file_raw": "on"},
    {"preallocation": "metadata"},
    {"preallocation": "full", "extended_l2": "on"},
    {"preallocation": "falloc", "compat": "0.10"},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_random_operations(secrets, options):
    """The disk behaves as a plain one; a snapshot in between keeps what it had."""
    chance = random.Random(str(options))
    make(secrets, **options)
    assert find_errors() == 0
    node = open_disk(secrets)
    assert node.read(0, node.size) == bytes(node.size)
    expected = bytearray(node.size)
    kept = None
    for step in range(60):
        offset, length = chance.randrange(node.size), chance.choice((1, 512, 4096, 70000))
        length = min(length, node.size - offset)
        action = chance.random()
        if step == 30 and "data_file" not in options:
            node.create_snapshot("kept")
            kept = bytes(expected)
        if action < 0.6:
            data = chance.randbytes(length)
            node.write(offset, data)
        elif action < 0.9:
            data = bytes(length)
            node.write_zeroes(offset, length, chance.random() < 0.5)
        else:
            node.flush()
            continue
        expected[offset : offset + length] = data
    assert node.read(0, node.size) == expected
    node.release()
    assert find_errors() == 0
    node = open_disk(secrets)
    assert node.read(0, node.size) == expected
    if kept is not None:
        view = node.open_snapshot("kept")
        assert view.read(0, view.size) == kept
        view.close()
        node.apply_snapshot("kept")
        assert node.read(0, node.size) == kept
    node.release()


def test_nothing_of_the_guest_is_in_the_file(secrets):
    make(secrets)
    node = open_disk(secrets)
    text = b"a secret of the guest, in 32 b.." * 16
    node.write(0, text * 300)
    node.write_vmstate(0, [memoryview(text)])
    node.release()
    assert b"secret of the guest" not in Path("disk").read_bytes()
    node = open_disk(secrets)
    assert node.read(0, 32) == text[:32]
    state = memoryview(bytearray(len(text)))
    node.read_vmstate(0, [state])
    assert state == text
    extent = node.block_status(0, 65536)
    assert (extent.data, extent.offset, extent.node) == (True, None, None)
    node.release()


def test_the_header_names_the_volume(secrets):
    make(secrets)
    header = parse_header(Path("disk").read_bytes()[:65536])
    assert header.crypt_method == 2
    assert header.crypto is not None
    assert header.crypto[1] == 2068480
    assert Path("disk").read_bytes()[header.crypto[0] :][:6] == b"LUKS\xba\xbe"
    node = open_disk(secrets)
    encrypt = node.format_info()["data"]["encrypt"]
    assert (encrypt["format"], encrypt["cipher-alg"], encrypt["payload-offset"]) == ("luks", "aes-256", 2068480)
    assert node.encrypted
    node.amend({"lazy_refcounts": "on"})
    node.change_backing(None, None)
    node.release()
    assert parse_header(Path("disk").read_bytes()[:65536]).crypto == header.crypto
    assert find_errors() == 0


def test_compressed_clusters_are_impossible(secrets):
    make(secrets)
    node = open_disk(secrets)
    with pytest.raises(OSError, match="not supported"):
        node.write_compressed(0, bytes(65536))
    node.release()


def test_backing_files_and_resizing(secrets):
    make(secrets, path="base", size=MIB)
    node = open_disk(secrets, "base")
    node.write(MIB - 4096, b"b" * 4096)
    node.release()
    options = {**FAST, "encrypt.key-secret": "t"}
    create_image("top", "qcow2", 2 * MIB, options, "base", "qcow2", check_backing=False, secrets=secrets)
    node = open_disk(secrets, "top", "t", backing={"driver": "qcow2", "encrypt": {"key-secret": "s"}})
    node.write(MIB - 1000, b"t" * 10)
    assert node.read(MIB - 4096, 8192) == b"b" * 3096 + b"t" * 10 + b"b" * 990 + bytes(4096)
    node.truncate(3 * MIB)
    node.truncate(MIB + 512)
    node.truncate(2 * MIB, preallocation="metadata")
    assert node.read(MIB, MIB) == bytes(MIB)
    node.release()
    assert find_errors("top") == 0


def test_downgrading_with_zero_clusters_in_a_snapshot(secrets):
    make(secrets, path="base", size=MIB)
    node = open_disk(secrets, "base")
    node.write(0, b"b" * MIB)
    node.release()
    options = {**FAST, "compat": "1.1"}
    create_image("disk", "qcow2", MIB, options, "base", "qcow2", check_backing=False, secrets=secrets)
    backing = {"driver": "qcow2", "encrypt": {"key-secret": "s"}}
    node = open_disk(secrets, backing=backing)
    node.write_zeroes(0, 128 << 10, True)
    node.create_snapshot("s")
    node.write(0, b"new")
    node.amend({"compat": "0.10"})
    node.release()
    node = open_disk(secrets, backing=backing)
    assert node.read(0, 5) == b"new\0\0"
    view = node.open_snapshot("s")
    assert view.read(0, 128 << 10) == bytes(128 << 10)
    assert view.read(128 << 10, 3) == b"bbb"
    view.close()
    node.release()
    assert find_errors() == 0


def test_key_slots(secrets):
    make(secrets)
    node = open_disk(secrets)
    node.write(0, b"data")
    node.amend({"encrypt.state": "active", "encrypt.new-secret": "t", "encrypt.iter-time": "0"}, secrets=secrets)
    node.amend({"encrypt.state": "inactive", "encrypt.old-secret": "s"}, secrets=secrets)
    with pytest.raises(BlockError, match="Attempt to erase the only active keyslot 1"):
        node.amend({"encrypt.state": "inactive", "encrypt.keyslot": "1"}, secrets=secrets)
    node.release()
    with pytest.raises(BlockError, match="Invalid password, cannot unlock any keyslot"):
        open_disk(secrets)
    node = open_disk(secrets, secret="t")
    assert node.read(0, 4) == b"data"
    node.release()
    assert find_errors() == 0
    create_image("plain", "qcow2", MIB, {})
    node = open_disk(secrets, "plain")
    with pytest.raises(BlockError, match="Can't amend encryption options - encryption not present"):
        node.amend({"encrypt.state": "active", "encrypt.new-secret": "t"}, secrets=secrets)
    node.release()


def refused(secrets, encrypt, path="disk") -> str:
    with pytest.raises(BlockError) as caught:
        open_disk(secrets, path, encrypt=encrypt)
    return str(caught.value)


def test_options_that_are_refused(secrets):
    make(secrets)
    create_image("plain", "qcow2", MIB, {})
    assert refused(secrets, {}) == "Parameter 'encrypt.key-secret' is required for cipher"
    assert refused(secrets, {"key-secret": "u"}) == "No secret with id 'u'"
    assert refused(secrets, {"key-secret": "t"}) == "Invalid password, cannot unlock any keyslot"
    assert refused(secrets, {"key-secret": "s", "x": "y"}) == "Parameter 'x' is unexpected"
    assert (
        refused(secrets, {"format": "aes", "key-secret": "s"})
        == "Header reported 'luks' encryption format but options specify 'aes'"
    )
    assert (
        refused(secrets, {"format": "luks"}, "plain")
        == "No encryption in image header, but options specified format 'luks'"
    )
    assert refused(secrets, "s") == "Invalid parameter type for 'encrypt', expected: object"
    graph = BlockGraph(secrets=secrets)
    tree = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "disk"}}
    for encrypt, message in (
        ({"key-secret": "s"}, "Parameter 'encrypt.format' is missing"),
        ({"format": "rot13"}, "Parameter 'format' does not accept value 'rot13'"),
        ({"format": "luks", "y": 1}, "Parameter 'encrypt.y' is unexpected"),
    ):
        with pytest.raises(BlockError) as caught:
            open_node({**tree, "encrypt": encrypt}, graph)
        assert str(caught.value) == message
    node = open_node({**tree, "encrypt": {"format": "luks", "key-secret": "s"}}, graph)
    node.release()


def test_only_looked_at(secrets):
    make(secrets)
    opener = Opener(BlockGraph(), Dialect.DRIVE, no_io=True)
    node = opener.open("disk", {"read-only": True}, access=disk_access(True))
    assert node.format_info()["data"]["encrypt"]["slots"][0]["active"]
    # Where nothing was written, there is nothing to decrypt.
    assert node.read(0, 512) == bytes(512)
    node.release()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encrypt.format": None}, "Parameter 'encrypt.format' is missing"),
        ({"encrypt.format": "des"}, "Parameter 'format' does not accept value 'des'"),
        ({"encrypt.key-secret": None}, "Parameter 'encrypt.key-secret' is required for cipher"),
        ({"encrypt.key-secret": "u"}, "No secret with id 'u'"),
        ({"encrypt.cipher-mode": "x"}, "Parameter 'cipher-mode' does not accept value 'x'"),
        ({"encryption": "on"}, "'encrypt.format' and its alias 'encryption' can't be used at the same time"),
        ({"encrypt.format": "aes"}, "Parameter 'encrypt.iter-time' is unexpected"),
    ],
)
def test_creations_that_are_refused(secrets, options, message):
    chosen = {name: value for name, value in {**FAST, **options}.items() if value is not None}
    with pytest.raises(BlockError) as caught:
        create_image("disk", "qcow2", MIB, chosen, secrets=secrets)
    assert str(caught.value) == message
    assert not Path("disk").exists()


# ---- Broken images


def patched(at: int, content: bytes) -> str:
    data = bytearray(Path("disk").read_bytes())
    data[at : at + len(content)] = content
    Path("broken").write_bytes(data)
    return "broken"


def test_broken_encryption_headers(secrets):
    make(secrets, cluster_size=65536)
    encrypt = {"key-secret": "s"}
    for at, content, message in (
        (32, struct.pack(">I", 3), "Unsupported encryption method 3"),
        (32, struct.pack(">I", 0), "CRYPTO header extension only expected with LUKS encryption method"),
        (32, struct.pack(">I", 1), "CRYPTO header extension only expected with LUKS encryption method"),
        (EXTENSION_OFFSET, bytes(4), "Missing CRYPTO header for crypt method 2"),
        (EXTENSION_OFFSET + 4, struct.pack(">I", 8), "CRYPTO header extension size 8, but expected size 16"),
        (
            EXTENSION_OFFSET + 8,
            struct.pack(">Q", 512),
            "Encryption header offset '512' is not a multiple of cluster size '65536'",
        ),
        (EXTENSION_OFFSET + 8, struct.pack(">Q", 1 << 40), "The encryption header is not wholly there"),
        (EXTENSION_OFFSET + 16, struct.pack(">Q", 1 << 40), "Encryption header too large"),
        (EXTENSION_OFFSET + 16, struct.pack(">Q", 100), "The encryption header is not wholly there"),
        (EXTENSION_OFFSET + 16, struct.pack(">Q", 5000), "The encryption header is not wholly there"),
        (EXTENSION_OFFSET + 8, bytes(8), "Volume is not in LUKS format"),
    ):
        assert refused(secrets, encrypt, patched(at, content)) == message


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(96, 144), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_extension_is_taken_or_refused(secrets, tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    if not path.exists():
        make(secrets, path=str(path), size=MIB)
    data = bytearray(path.read_bytes()[:65536])
    for at, value in changes:
        data[at] = value
    try:
        parse_header(bytes(data))
    except BlockError:
        return


# ---- The old method


def make_aes_image(path: str, key: bytes, content: bytes) -> None:
    """Put an image with the AES method together: one cluster of data, encrypted by its place on the disk."""
    from cryptography.hazmat.primitives.ciphers import Cipher, modes
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

    create_image(path, "qcow2", MIB, {"cluster_size": 4096})
    node = Opener(BlockGraph(), Dialect.DRIVE).open(path, {}, access=disk_access(False))
    packed = b""
    first = 8192 // 512
    for start in range(0, len(content), 512):
        vector = (first + start // 512).to_bytes(16, "little")
        packed += Cipher(AES(key), modes.CBC(vector)).encryptor().update(content[start : start + 512])
    node.write(8192, packed)
    node.release()
    data = bytearray(Path(path).read_bytes())
    data[32:36] = struct.pack(">I", 1)
    Path(path).write_bytes(data)


@pytest.mark.parametrize(("secret", "key"), [("s", b"hello".ljust(16, b"\0")), ("long", b"0123456789abcdef")])
def test_images_with_the_old_aes_method(secrets, secret, key):
    content = bytearray(range(256)) * 16
    make_aes_image("old", key, content)
    with using(open_disk(secrets, "old", secret)) as node:
        node.write(8192 + 1000, b"in the middle of two sectors" * 3)
        content[1000:1084] = b"in the middle of two sectors" * 3
        node.create_snapshot("kept")
        node.write(8192 + 2048, b"after that")
    shown = content[:2048] + b"after that" + content[2058:]
    node = open_disk(secrets, "old", secret, read_only=True)
    assert node.read(8192, 4096) == shown
    assert key_finds(node, key, 8192, shown[:512])
    node.release()
    with using(open_disk(secrets, "old", secret)) as node:
        node.apply_snapshot("kept")
    node = open_disk(secrets, "old", secret, read_only=True)
    assert node.read(8192, 4096) == content
    assert node.read(8192 + 700, 100) == content[700:800]
    assert node.read(4096, 4096) == bytes(4096)
    assert node.format_info()["data"]["encrypt"] == {"format": "aes"}
    assert isinstance(node.file, ReadOnlyView) or node.file.read_only
    node.release()


def key_finds(node: Qcow2Node, key: bytes, offset: int, sector: bytes) -> bool:
    """Whether a sector is in the file as the key and its place on the disk make it."""
    from cryptography.hazmat.primitives.ciphers import Cipher, modes
    from cryptography.hazmat.primitives.ciphers.algorithms import AES

    vector = (offset // 512).to_bytes(16, "little")
    return Cipher(AES(key), modes.CBC(vector)).encryptor().update(sector) in Path(node.file.filename).read_bytes()


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_a_new_image_with_the_old_method_reads_as_zeros(secrets, version):
    options = {"encrypt.format": "aes", "encrypt.key-secret": "s", "compat": version, "preallocation": "metadata"}
    create_image("new", "qcow2", MIB, options, secrets=secrets)
    with using(open_disk(secrets, "new")) as node:
        assert node.read(0, MIB) == bytes(MIB)
        node.write(MIB - 700, b"x" * 700)
    with using(open_disk(secrets, "new")) as node:
        assert node.read(MIB - 1024, 1024) == bytes(324) + b"x" * 700


# ---- The command line


def storage_of(*arguments: str) -> Storage:
    events = StorageEvents(lambda name, data: None, lambda: None, lambda function, *rest: function(*rest))
    config = parse_arguments(["-nodefaults", *arguments])
    return Storage(config, threading.RLock(), ManualClock(), events, warn=lambda text: None)


def test_drives_and_blockdevs_name_their_secret(secrets):
    make(secrets, size=MIB)
    create_image("volume", "luks", MIB, {"key-secret": "t", "iter-time": 0}, secrets=secrets)
    Path("key").write_text("aGVsbG8=\n")
    objects = ("-object", "secret,id=a,file=key,format=base64", "-object", "secret,id=b,data=other")
    qcow2 = "file=disk,format=qcow2,if=none,id=one"
    luks = "driver=luks,node-name=two,file.driver=file,file.filename=volume"
    storage = storage_of(*objects, "-drive", f"{qcow2},encrypt.key-secret=a", "-blockdev", f"{luks},key-secret=b")
    try:
        backend = storage.drives["one"].backend
        backend.pwritev(0, [memoryview(b"x" * 512)])
        assert backend.pread(0, 600) == b"x" * 512 + bytes(88)
        assert storage.graph.find("two").size == MIB
    finally:
        storage.close()
    for arguments, message in (
        (("-drive", qcow2), "Parameter 'encrypt.key-secret' is required for cipher"),
        (("-drive", f"{qcow2},encrypt.key-secret=c"), "No secret with id 'c'"),
        (("-blockdev", f"{luks},key-secret=a"), "Invalid password, cannot unlock any keyslot"),
        (("-object", "secret,id=c"), "Either 'file' or 'data' must be provided"),
    ):
        with pytest.raises(ConfigError) as caught:
            storage_of(*objects, *arguments)
        assert str(caught.value).endswith(f": {message}")
