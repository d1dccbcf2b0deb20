"""LUKS volumes: header, key slots, data, and whatever an image may have instead of them."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from pyvm.block import luks_format
from pyvm.block.create import create_image
from pyvm.block.drivers.luks import LuksNode
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.luks import Area, Volume, find_passphrase, format_volume, read_options
from pyvm.block.luks_format import HEADER_BYTES, MAX_ITERATIONS, SLOTS, parse_header, slot_offset
from pyvm.block.node import disk_access
from pyvm.block.open import Opener, open_node
from pyvm.block.options import Dialect
from pyvm.block.sector_ciphers import CipherSpec
from pyvm.secrets import Secrets
from tests.unit.disk_support import Disk

FAST = {"key-secret": "s", "iter-time": 0}
MIB = 1 << 20


class MemoryDisk(Disk):
    """A disk of zeros that starts with what it is given."""

    def __init__(self, content: bytes, length: int = 0) -> None:
        super().__init__(0)
        self.data = bytearray(content.ljust(length, b"\0"))

    def truncate(self, size, *, preallocation="off", exact=True):
        del preallocation, exact
        self.data = bytearray(self.data[:size].ljust(size, b"\0"))


def make_volume(passphrase: bytes = b"hello", extra: int = MIB, **options: object) -> MemoryDisk:
    content = format_volume(read_options({**FAST, **options}), passphrase)
    return MemoryDisk(content, len(content) + extra)


@pytest.fixture(scope="module")
def volume_bytes() -> bytes:
    return bytes(make_volume().data)


@pytest.fixture
def disk(volume_bytes) -> MemoryDisk:
    return MemoryDisk(volume_bytes)


def refused(content: bytes) -> str:
    with pytest.raises(BlockError) as caught:
        parse_header(content)
    return str(caught.value)


# ---- Header


def test_a_new_header_is_as_qemu_lays_it_out(disk):
    header = parse_header(bytes(disk.data[:HEADER_BYTES]))
    assert (header.cipher_name, header.cipher_mode, header.hash_spec) == ("aes", "xts-plain64", "sha256")
    assert header.key_bytes == 64
    assert header.payload_offset * 512 == 2068480
    assert [slot.key_material_offset * 512 for slot in header.slots][:3] == [4096, 262144, 520192]
    assert [slot.active for slot in header.slots] == [True] + [False] * 7
    assert header.encode() == bytes(disk.data[:HEADER_BYTES])
    assert len(header.uuid) == 36


BROKEN = [
    (0, b"LUKS\xba\xbf", "Volume is not in LUKS format"),
    (6, b"\0\2", "LUKS version 2 is not supported"),
    (8, b"x" * 32, "LUKS header cipher name is not NUL terminated"),
    (8, b"a\n\0", "LUKS header cipher name is not a name"),
    (40, b"x" * 32, "LUKS header cipher mode is not NUL terminated"),
    (72, b"x" * 32, "LUKS header hash spec is not NUL terminated"),
    (104, b"\0\0\0\1", "LUKS payload is overlapping with the header"),
    (104, b"\0\0\0\x09", "Keyslot 0 is overlapping with the encrypted payload"),
    (108, bytes(4), "LUKS key length 0 is not between 1 and 64"),
    (108, b"\xff" * 4, "LUKS key length 4294967295 is not between 1 and 64"),
    (164, bytes(4), "LUKS key iteration count is zero"),
    (164, b"\xff" * 4, f"LUKS key iteration count 4294967295 is larger than {MAX_ITERATIONS}"),
    (208, bytes(4), "Keyslot 0 state (active/disable) is corrupted"),
    (212, bytes(4), "Keyslot 0 iteration count is zero"),
    (212, b"\xff" * 4, f"Keyslot 0 iteration count 4294967295 is larger than {MAX_ITERATIONS}"),
    (slot_offset(3) + 44, b"\0\0\0\1", "Keyslot 3 is corrupted (stripes 1 != 4000)"),
    (slot_offset(3) + 40, b"\0\0\0\1", "Keyslot 3 is overlapping with the LUKS header"),
    (slot_offset(3) + 40, b"\xff" * 4, "Keyslot 3 is overlapping with the encrypted payload"),
    (slot_offset(3) + 40, b"\0\0\0\x09", "Keyslots 0 and 3 are overlapping in the header"),
]


@pytest.mark.parametrize(("at", "content", "message"), BROKEN)
def test_broken_headers(volume_bytes, at, content, message):
    data = bytearray(volume_bytes[:HEADER_BYTES])
    data[at : at + len(content)] = content
    assert refused(bytes(data)) == message


def test_a_header_that_is_cut_off(volume_bytes):
    assert refused(volume_bytes[: HEADER_BYTES - 1]) == "Volume is not in LUKS format"
    for length in (100, HEADER_BYTES):
        with pytest.raises(BlockError):
            LuksNode(MemoryDisk(volume_bytes[:length]), b"hello")
    with pytest.raises(BlockError, match="LUKS payload is behind the end of the file"):
        LuksNode(MemoryDisk(volume_bytes[:1000000]), b"hello")


@pytest.mark.parametrize(
    ("cipher", "mode", "hash_name", "message"),
    [
        ("serpent", "xts-plain64", "sha256", "Algorithm 'serpent' not supported"),
        ("aes", "xts-nonsense", "sha256", "Unsupported IV generator 'nonsense'"),
        ("aes", "xts", "sha256", "Unexpected cipher mode string format 'xts'"),
        ("aes", "cbc-essiv", "sha256", "Unexpected cipher mode string format 'cbc-essiv'"),
        ("aes", "cbc-plain:sha256", "sha256", "Unexpected cipher mode string format 'cbc-plain:sha256'"),
        ("aes", "cbc-plain64", "sha256", "Algorithm 'aes' with key size 64 bytes not supported"),
        ("aes", "xts-plain64", "whirlpool9", "PBKDF does not support hash algorithm whirlpool9"),
    ],
)
def test_ciphers_and_hashes_that_are_not_there(disk, cipher, mode, hash_name, message):
    for at, text in ((8, cipher), (40, mode), (72, hash_name)):
        disk.data[at : at + 32] = text.encode().ljust(32, b"\0")
    with pytest.raises(BlockError) as caught:
        LuksNode(disk, b"hello")
    assert str(caught.value) == message


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, HEADER_BYTES - 4), st.binary(min_size=1, max_size=4)), max_size=4),
    words=st.lists(
        st.tuples(st.sampled_from([104, 108, 164, 208, 212, 248, 252, 256]), st.integers(0, (1 << 32) - 1)), max_size=3
    ),
)
def test_any_header_is_parsed_or_refused(volume_bytes, changes, words):
    data = bytearray(volume_bytes[:HEADER_BYTES])
    for at, content in changes:
        data[at : at + len(content)] = content
    for at, value in words:
        struct.pack_into(">I", data, at, value)
    try:
        header = parse_header(bytes(data))
        header.spec  # noqa: B018 - it is parsed now
    except BlockError:
        return
    assert header.payload_offset >= 2
    assert all(slot.iterations <= MAX_ITERATIONS for slot in header.slots if slot.active)
    assert header.material_sectors <= 500


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=700))
def test_anything_else_is_refused(data):
    if data[:6] != luks_format.MAGIC:
        assert refused(data) == "Volume is not in LUKS format"


# ---- Keys


@settings(max_examples=20, deadline=None)
@given(key=st.binary(min_size=1, max_size=64), hash_name=st.sampled_from(["sha1", "sha256", "sha512"]))
def test_splitting_a_key(key, hash_name):
    material = luks_format.split_key(hash_name, key, 20)
    assert len(material) == 20 * len(key)
    assert luks_format.merge_key(hash_name, material, len(key), 20) == key
    if len(key) > 8:
        spoilt = bytearray(material)
        spoilt[3] ^= 1
        assert luks_format.merge_key(hash_name, bytes(spoilt), len(key), 20) != key


def test_calibration_grows_with_the_time_asked_for():
    short, long = (luks_format.calibrate("sha256", 64, time) for time in (100, 1000))
    assert luks_format.MIN_ITERATIONS <= short < long
    assert luks_format.calibrate("sha256", 32, 1000) >= 2 * long - 1
    assert luks_format.calibrate("sha256", 64, 0) == luks_format.MIN_ITERATIONS
    with pytest.raises(BlockError, match=r"PBKDF iterations \d+ larger than"):
        luks_format.calibrate("sha256", 64, 1 << 40)


@pytest.mark.parametrize(
    "options",
    [
        {"cipher-alg": "aes-128"},
        {"cipher-alg": "aes-192"},
        {"cipher-alg": "aes-192", "cipher-mode": "cbc"},
        {"cipher-alg": "aes-256", "cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha1"},
        {"cipher-mode": "cbc", "ivgen-alg": "essiv", "ivgen-hash-alg": "md5", "hash-alg": "sha512"},
        {"cipher-alg": "aes-128", "cipher-mode": "ctr", "ivgen-alg": "plain"},
        {"cipher-mode": "ecb"},
    ],
    ids=str,
)
def test_ciphers(options):
    disk = make_volume(extra=8192, **options)
    node = LuksNode(disk, b"hello")
    node.write(512, b"text" * 300)
    again = LuksNode(disk, b"hello")
    assert again.read(512, 1200) == b"text" * 300
    info = again.format_info()["data"]
    assert info["cipher-alg"] == options.get("cipher-alg", "aes-256")
    assert info["cipher-mode"] == options.get("cipher-mode", "xts")
    assert info.get("ivgen-hash-alg") == (options.get("ivgen-hash-alg", "sha256") if "essiv" in str(options) else None)


def test_wrong_passphrase_and_none(disk):
    with pytest.raises(BlockError, match="Invalid password, cannot unlock any keyslot"):
        LuksNode(disk, b"Hello")
    locked = LuksNode(disk, None)
    assert locked.size == MIB
    assert locked.encrypted
    for action in (lambda: locked.read(0, 512), lambda: locked.write(0, bytes(512))):
        with pytest.raises(PermissionError):
            action()


def test_options_of_creation():
    cases = {
        "cipher-alg": ("rot13", "Parameter 'cipher-alg' does not accept value 'rot13'"),
        "hash-alg": ("crc", "Parameter 'hash-alg' does not accept value 'crc'"),
        "cipher-mode": ("gcm", "Parameter 'cipher-mode' does not accept value 'gcm'"),
        "ivgen-alg": ("x", "Parameter 'ivgen-alg' does not accept value 'x'"),
    }
    for name, (value, message) in cases.items():
        with pytest.raises(BlockError) as caught:
            read_options({**FAST, name: value})
        assert str(caught.value) == message
    with pytest.raises(BlockError, match="Algorithm 'serpent-256' not supported"):
        read_options({**FAST, "cipher-alg": "serpent-256"})
    with pytest.raises(BlockError, match=r"Parameter 'encrypt\.key-secret' is required for cipher"):
        read_options({}, "encrypt.")
    chosen = read_options(FAST)
    assert chosen.cipher == CipherSpec("aes", "xts", "plain64")
    assert chosen.payload_offset == 2068480


# ---- Key slots


def amend(disk: MemoryDisk, passphrase: bytes = b"hello", *, force: bool = False, **options: object) -> Volume:
    secrets = Secrets()
    for name in ("hello", "other", "third"):
        secrets.add(name, {"data": name})
    node = LuksNode(disk, passphrase)
    node.amend({name.replace("_", "-"): value for name, value in options.items()}, secrets, force=force)
    return node.volume


def unlocks(disk: MemoryDisk, passphrase: bytes) -> bool:
    try:
        LuksNode(disk, passphrase)
    except BlockError:
        return False
    return True


def test_adding_and_erasing_keys(disk):
    LuksNode(disk, b"hello").write(0, b"kept")
    amend(disk, state="active", new_secret="other", iter_time=0)
    amend(disk, b"other", state="active", new_secret="third", keyslot=6, iter_time="0")
    assert [slot.active for slot in Volume(Area(disk)).header.slots] == [True, True] + [False] * 4 + [True, False]
    assert unlocks(disk, b"other")
    material = bytes(disk.data[4096 : 4096 + 256000])
    amend(disk, b"third", state="inactive", old_secret="hello")
    assert not unlocks(disk, b"hello")
    now = bytes(disk.data[4096 : 4096 + 256000])
    assert sum(one == other for one, other in zip(material, now, strict=True)) < 3000
    assert disk.data[slot_offset(0) : slot_offset(0) + 40] == b"\0\0\xde\xad" + bytes(36)
    amend(disk, b"third", state="inactive", keyslot=1)
    assert [slot.active for slot in Volume(Area(disk)).header.slots] == [False] * 6 + [True, False]
    assert LuksNode(disk, b"third").read(0, 4) == b"kept"


def test_the_last_key_stays_unless_forced(disk):
    for options, message in (
        ({"keyslot": 0}, "Attempt to erase the only active keyslot 0"),
        ({"old_secret": "hello"}, "All the active keyslots match"),
    ):
        with pytest.raises(BlockError, match=message):
            amend(disk, state="inactive", **options)
    assert unlocks(disk, b"hello")
    amend(disk, force=True, state="inactive", old_secret="hello")
    assert not unlocks(disk, b"hello")


def test_slots_run_out_and_are_overwritten_by_force(disk):
    for _ in range(SLOTS - 1):
        amend(disk, state="active", new_secret="other", iter_time=0)
    with pytest.raises(BlockError, match="Can't add a keyslot - all keyslots are in use"):
        amend(disk, state="active", new_secret="third", iter_time=0)
    with pytest.raises(BlockError, match="Refusing to overwrite active keyslot 2 - please erase it first"):
        amend(disk, state="active", new_secret="third", keyslot=2, iter_time=0)
    amend(disk, force=True, state="active", new_secret="third", keyslot=2, iter_time=0)
    assert unlocks(disk, b"third")
    amend(disk, state="inactive", old_secret="other")
    assert [slot.active for slot in Volume(Area(disk)).header.slots] == [True, False, True] + [False] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"new_secret": "other"}, "Parameter 'state' is missing"),
        ({"state": "gone"}, "Parameter 'state' does not accept value 'gone'"),
        ({"state": "active"}, "'new-secret' is required to activate a keyslot"),
        (
            {"state": "active", "new_secret": "other", "old_secret": "hello"},
            "'old-secret' must not be given when activating keyslots",
        ),
        ({"state": "active", "new_secret": "nosuch"}, "No secret with id 'nosuch'"),
        (
            {"state": "active", "new_secret": "other", "keyslot": 8},
            "Invalid keyslot 8 specified, must be between 0 and 7",
        ),
        ({"state": "inactive", "keyslot": 9}, "Invalid keyslot 9 specified, must be between 0 and 7"),
        ({"state": "inactive", "keyslot": 3}, "Given keyslot 3 is already erased (inactive) "),
        ({"state": "inactive", "new_secret": "other"}, "'new-secret' must not be given when erasing keyslots"),
        ({"state": "inactive", "iter_time": 5}, "'iter-time' must not be given when erasing keyslots"),
        ({"state": "inactive", "old_secret": "other"}, "No keyslots match given (old) password for erase operation"),
        (
            {"state": "inactive", "old_secret": "other", "keyslot": 0},
            "Given keyslot 0 doesn't contain the given old password for erase operation",
        ),
        (
            {"state": "inactive"},
            (
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must"
                " be given"
            ),
        ),
        ({"keyslot": "many"}, "Parameter 'keyslot' expects a number"),
        ({"cipher_alg": "aes-128"}, "Invalid parameter 'cipher-alg'"),
    ],
)
def test_amendments_that_are_refused(volume_bytes, options, message):
    disk = MemoryDisk(volume_bytes)
    with pytest.raises(BlockError) as caught:
        amend(disk, **options)
    assert str(caught.value) == message
    assert disk.data == volume_bytes


def test_a_slot_counts_only_when_its_key_is_there(volume_bytes):
    """Cut off behind any write while a key is added or erased, the old key still works."""

    class Logged(MemoryDisk):
        def writev(self, offset, buffers):
            super().writev(offset, buffers)
            states.append(bytes(self.data[: len(volume_bytes)]))

    states: list[bytes] = []
    disk = Logged(volume_bytes)
    amend(disk, state="active", new_secret="other", iter_time=0)
    assert len(states) == 2
    for state in states:
        assert unlocks(MemoryDisk(state), b"hello")
    assert [unlocks(MemoryDisk(state), b"other") for state in states] == [False, True]
    states.clear()
    amend(disk, b"other", state="inactive", old_secret="hello")
    assert not unlocks(MemoryDisk(states[0]), b"hello")
    assert all(unlocks(MemoryDisk(state), b"other") for state in (states[0], states[-1]))


# ---- Data


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_reads_and_writes_of_any_place_and_length(volume_bytes, seed):
    chance = random.Random(seed)
    disk = MemoryDisk(volume_bytes)
    node = LuksNode(disk, b"hello")
    expected = bytearray(node.read(0, 40000))
    for _ in range(6):
        offset = chance.choice((0, 511, 512, 513, chance.randrange(20000)))
        length = chance.choice((0, 1, 511, 512, 513, 4096, chance.randrange(20000)))
        cut = sorted(chance.randrange(length + 1) for _ in range(chance.randrange(4)))
        if chance.random() < 0.3:
            node.write_zeroes(offset, length, chance.random() < 0.5)
            expected[offset : offset + length] = bytes(length)
        elif chance.random() < 0.7:
            data = memoryview(chance.randbytes(length))
            edges = [0, *cut, length]
            node.writev(offset, [data[start:end] for start, end in itertools.pairwise(edges)])
            expected[offset : offset + length] = data
        back = memoryview(bytearray(length))
        edges = [0, *cut, length]
        node.readv(offset, [back[start:end] for start, end in itertools.pairwise(edges)])
        assert back == expected[offset : offset + length]
    assert LuksNode(disk, b"hello").read(0, 40000) == expected
    assert disk.data[:2068480] == volume_bytes[:2068480]


def test_what_is_in_the_file_does_not_show(disk):
    node = LuksNode(disk, b"hello")
    node.write(0, bytes(4096))
    stored = disk.data[2068480 : 2068480 + 4096]
    assert len({bytes(stored[at : at + 16]) for at in range(0, 4096, 16)}) == 256
    extent = node.block_status(0, MIB)
    assert (extent.length, extent.data, extent.zero, extent.offset, extent.node) == (MIB, True, False, None, None)


def test_ends_and_sizes(disk):
    node = LuksNode(disk, b"hello")
    with pytest.raises(OSError, match="Input/output error"):
        node.read(MIB - 100, 101)
    with pytest.raises(OSError, match="Input/output error"):
        node.write(MIB, b"x")
    node.truncate(2 * MIB)
    assert node.size == 2 * MIB
    assert len(disk.data) == 2068480 + 2 * MIB
    node.write(2 * MIB - 512, b"end")
    assert not node.has_zero_init


# ---- Opening by options


@pytest.fixture
def secrets() -> Secrets:
    found = Secrets()
    found.add("s", {"data": "hello"})
    found.add("t", {"data": "wrong"})
    return found


def test_create_and_open_by_options(tmp_path, secrets):
    path = str(tmp_path / "disk")
    creation = create_image(path, "luks", 3 << 20, FAST, secrets=secrets)
    assert creation.describe() == f"Formatting '{path}', fmt=luks size=3145728 key-secret=s iter-time=0"
    graph = BlockGraph(secrets=secrets)
    node = Opener(graph, Dialect.DRIVE).open(path, {"key-secret": "s"}, access=disk_access(False))
    assert isinstance(node, LuksNode)
    node.write(MIB, b"data")
    node.flush()
    node.release()
    tree = {"driver": "luks", "node-name": "n", "file": {"driver": "file", "filename": path}}
    with pytest.raises(BlockError, match="Parameter 'key-secret' is required for cipher"):
        open_node(dict(tree), graph)
    with pytest.raises(BlockError, match="Invalid password, cannot unlock any keyslot"):
        open_node({**tree, "key-secret": "t"}, graph)
    with pytest.raises(BlockError, match="No secret with id 'u'"):
        open_node({**tree, "key-secret": "u"}, graph)
    node = open_node({**tree, "key-secret": "s", "read-only": True}, graph)
    assert node.size == 3 << 20
    assert node.read(MIB, 4) == b"data"
    with pytest.raises(PermissionError):
        node.write(0, b"x")
    node.release()
    assert not graph.nodes
    locked = Opener(graph, Dialect.DRIVE, no_io=True).open(path, {}, access=disk_access(True))
    assert locked.format_info()["data"]["slots"][0]["active"] is True
    locked.release()


def test_a_failed_creation_leaves_what_was_there(tmp_path, secrets):
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    for options in ({"iter-time": 0}, {**FAST, "key-secret": "no"}, {**FAST, "preallocation": "x"}):
        with pytest.raises(BlockError):
            create_image(str(path), "luks", MIB, options, secrets=secrets)
    assert path.read_bytes() == b"precious"


def test_find_passphrase(secrets):
    assert find_passphrase(secrets, "s") == b"hello"
    with pytest.raises(BlockError, match="Parameter 'key-secret' is required for cipher"):
        find_passphrase(secrets, None)
