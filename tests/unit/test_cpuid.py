"""CPU models and the CPUID tables made of them."""

from __future__ import annotations

import itertools
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.cpu import features, models
from pyvm.cpu.cpuid import (
    ANY_SUBLEAF,
    CpuModel,
    CpuModelError,
    Topology,
    available_features,
    build_model,
    cpuid_table,
    feature_words,
    model_names,
    signature,
)
from pyvm.cpu.vcpu import apic_ids
from tests.unit.engine_rig import DATA32, Rig

MODELS = [name for name in model_names() if name != "host"]
ONE = Topology()
MAX_ENTRIES = 128


class Table:
    """A CPUID table as a processor looks it up."""

    def __init__(self, option: str, topology: Topology = ONE) -> None:
        self.model = build_model(option, topology)
        self.entries = cpuid_table(self.model, topology)

    def __call__(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX; zeros where the table has nothing."""
        for at, sub, *values in self.entries:
            if at == leaf and sub in (subleaf, ANY_SUBLEAF):
                return tuple(values)  # type: ignore[return-value]
        return (0, 0, 0, 0)

    def has(self, name: str) -> bool:
        """Say whether the table shows a feature."""
        index, bit = features.FEATURES[name]
        word = features.WORDS[index]
        return bool(self(word.leaf, word.subleaf)[word.register] >> bit & 1)


# ---- Every model


@pytest.mark.parametrize("name", MODELS)
def test_every_model_makes_a_consistent_table(name: str) -> None:
    table = Table(name)
    assert len(table.entries) <= MAX_ENTRIES
    for entry in table.entries:
        assert all(0 <= value < 1 << 32 for value in entry), entry
    keys = [entry[:2] for entry in table.entries]
    assert len(set(keys)) == len(keys)
    # A leaf with single subleaves lists the entry for any other one last.
    for leaf, group in itertools.groupby(keys, key=lambda key: key[0]):
        subleaves = [subleaf for _, subleaf in group]
        assert ANY_SUBLEAF not in subleaves[:-1], hex(leaf)
    assert [leaf for leaf, _ in itertools.groupby(key[0] for key in keys)] == list(
        dict.fromkeys(key[0] for key in keys)
    )
    assert table(0)[0] == table.model.level
    assert table(1)[0] == signature(table.model)
    if table.model.xlevel:
        assert table(0x80000000)[0] == table.model.xlevel
        brand = b"".join(struct.pack("<4I", *table(leaf)) for leaf in (0x80000002, 0x80000003, 0x80000004))
        assert brand.rstrip(b"\0").decode("latin-1") == table.model.brand
    for feature in table.model.features:
        leaf = features.WORDS[features.FEATURES[feature][0]].leaf
        limit = table.model.xlevel if leaf >= 0x80000000 else table.model.level
        assert table.has(feature) or leaf > limit, feature


@pytest.mark.parametrize("name", MODELS)
def test_a_model_shows_only_what_works(name: str) -> None:
    model = build_model(name, ONE)
    assert model.features <= available_features()
    assert not set(model.missing) & available_features()
    for feature in ("avx", "svm", "vmx", "mpx", "rtm", "avx2", "f16c", "xsavec"):
        assert feature not in model.features


def test_what_is_available_has_a_place() -> None:
    assert available_features() <= set(features.FEATURES)
    for word in features.WORDS:
        assert len(word.bits.split()) <= 32
    assert len({(word.leaf, word.subleaf, word.register) for word in features.WORDS}) == len(features.WORDS)
    assert len({word.engine_word for word in features.WORDS}) == len(features.WORDS)
    names = [name for word in features.WORDS for name in word.bits.split() if name != "-"]
    assert len(set(names)) == len(names)
    for alias, name in features.ALIASES.items():
        assert alias not in features.FEATURES
        assert name in features.FEATURES
    for family, data in models.FAMILIES.items():
        used = set(data.features.split()) | {change[1:] for _, changes in data.versions for change in changes.split()}
        assert used <= set(features.FEATURES), family


@pytest.mark.parametrize(
    ("feature", "leaf", "register", "bit"),
    [
        ("fpu", 1, 3, 0), ("apic", 1, 3, 9), ("sse2", 1, 3, 26), ("pni", 1, 2, 0), ("cx16", 1, 2, 13),
        ("x2apic", 1, 2, 21), ("tsc-deadline", 1, 2, 24), ("aes", 1, 2, 25), ("xsave", 1, 2, 26),
        ("hypervisor", 1, 2, 31), ("fsgsbase", 7, 1, 0), ("smep", 7, 1, 7), ("smap", 7, 1, 20), ("pku", 7, 2, 3),
        ("la57", 7, 2, 16), ("syscall", 0x80000001, 3, 11), ("nx", 0x80000001, 3, 20), ("rdtscp", 0x80000001, 3, 27),
        ("lm", 0x80000001, 3, 29), ("lahf-lm", 0x80000001, 2, 0), ("abm", 0x80000001, 2, 5),
        ("invtsc", 0x80000007, 3, 8), ("svm", 0x80000001, 2, 2), ("pdpe1gb", 0x80000001, 3, 26),
    ],
)  # fmt: skip
def test_bits_are_where_the_manuals_have_them(feature: str, leaf: int, register: int, bit: int) -> None:
    index, number = features.FEATURES[feature]
    word = features.WORDS[index]
    assert (word.leaf, word.register, number) == (leaf, register, bit)


def test_the_guest_knows_that_its_tsc_is_steady_and_clients_see_what_was_asked_for() -> None:
    for option, told, shown in (("qemu64", 1, False), ("qemu64,+invtsc", 1, True), ("max,invtsc=off", 0, False)):
        assert Table(option)(0x80000007)[3] == told << 8
        assert Table(option)(7)[1] & 2 == told << 1
        assert ("invtsc" in build_model(option, Topology()).features) is shown


def test_known_models() -> None:
    """What QEMU 7.2 shows: vendor, signature, brand."""
    qemu64 = Table("qemu64")
    assert struct.pack("<3I", *(qemu64(0)[register] for register in (1, 3, 2))) == b"AuthenticAMD"
    assert qemu64(1)[0] == 0x60FB1
    assert qemu64.model.brand == "QEMU Virtual CPU version 2.5+"
    nehalem = Table("Nehalem")
    assert struct.pack("<3I", *(nehalem(0)[register] for register in (1, 3, 2))) == b"GenuineIntel"
    assert nehalem(1)[0] == 0x106A3
    assert nehalem.model.brand == "Intel Core i7 9xx (Nehalem Class Core i7)"
    assert Table("Nehalem-v2").model.brand != nehalem.model.brand
    assert Table("486")(0x80000000) == (0, 0, 0, 0)
    assert Table("base")(0)[0] == 0


def test_versions_and_their_names() -> None:
    for alias, target in models.VERSION_NAMES.items():
        assert build_model(alias, ONE).features == build_model(target, ONE).features
    assert build_model("Nehalem", ONE).features == build_model("Nehalem-v1", ONE).features


@pytest.mark.parametrize("value", [(5, 4, 3), (6, 0x1A, 3), (15, 107, 1), (25, 1, 1), (270, 255, 15)])
def test_signature(value: tuple[int, int, int]) -> None:
    """Family and model split into base and extended parts as CPUID defines it."""
    eax = signature(CpuModel("x", "", *value))
    family, number = eax >> 8 & 15, eax >> 4 & 15
    if family == 15:
        family += eax >> 20 & 0xFF
    assert (family, number | (eax >> 16 & 15) << 4, eax & 15) == value


# ---- Options


@pytest.mark.parametrize(
    ("option", "name", "shown"),
    [
        ("qemu64,+aes", "aes", True),
        ("qemu64,-sse3", "pni", False),
        ("qemu64,nx=off", "nx", False),
        ("qemu64,nx=no", "nx", False),
        ("486,sse2=on", "sse2", True),
        ("486,sse2", "sse2", True),
        ("qemu64,+sse4_1", "sse4.1", True),
        ("qemu64,+sse4-2", "sse4.2", True),
        ("qemu64,lahf_lm=off", "lahf-lm", False),
        ("qemu64,-hypervisor", "hypervisor", False),
        ("max,-smap,+smap", "smap", True),
        ("qemu64,,+aes,", "aes", True),
    ],
)
def test_features_by_option(option: str, name: str, shown: bool) -> None:
    assert Table(option).has(name) is shown


def test_properties() -> None:
    table = Table("qemu64,family=6,model=0x1a,stepping=3,level=4,xlevel=0x80000008,vendor=GenuineIntel,model-id=My CPU")
    assert table(1)[0] == 0x106A3
    assert (table(0)[0], table(0x80000000)[0]) == (4, 0x80000008)
    assert table.model.vendor == "GenuineIntel"
    assert struct.pack("<4I", *table(0x80000002)) == b"My CPU".ljust(16, b"\0")
    assert table(0x40000000)[1] == int.from_bytes(b"TCGT", "little")
    for option in ("qemu64,tcg-cpuid=off", "qemu64,-hypervisor"):
        assert Table(option)(0x40000000) == (0, 0, 0, 0)
    long = Table("qemu64,model-id=" + "x" * 60)
    assert struct.pack("<4I", *long(0x80000004)) == b"x" * 16


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pentium9", "unable to find CPU model 'pentium9'"),
        ("", "unable to find CPU model ''"),
        ("Nehalem-v0", "unable to find CPU model 'Nehalem-v0'"),
        ("Nehalem-v99", "unable to find CPU model 'Nehalem-v99'"),
        ("Nehalem-vx", "unable to find CPU model 'Nehalem-vx'"),
        ("host", "CPU model 'host' requires KVM or HVF"),
        ("qemu64,+warp", "Property 'qemu64-x86_64-cpu.warp' not found"),
        ("qemu64,-warp", "Property 'qemu64-x86_64-cpu.warp' not found"),
        ("qemu64,warp=on", "Property 'qemu64-x86_64-cpu.warp' not found"),
        ("qemu64,nx=maybe", "Parameter 'nx' expects 'on' or 'off'"),
        ("qemu64,nx=", "Parameter 'nx' expects 'on' or 'off'"),
        ("qemu64,check=5", "Parameter 'check' expects 'on' or 'off'"),
        ("qemu64,family=many", "Parameter 'family' expects a number"),
        ("qemu64,stepping=16", "Property 'qemu64-x86_64-cpu.stepping' doesn't take value 16"),
        ("qemu64,family=271", "Property 'qemu64-x86_64-cpu.family' doesn't take value 271"),
        ("qemu64,model=-1", "Property 'qemu64-x86_64-cpu.model' doesn't take value -1"),
        ("qemu64,vendor=Me", "Property 'qemu64-x86_64-cpu.vendor' doesn't take value 'Me'"),
        ("Haswell,enforce", "TCG doesn't support requested feature: "),
        ("qemu64,+avx,enforce=on", "TCG doesn't support requested feature: avx"),
    ],
)
def test_refusals(option: str, message: str) -> None:
    with pytest.raises(CpuModelError) as error:
        build_model(option, ONE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_features_are_named_unless_enforced() -> None:
    assert build_model("Nehalem,+avx", ONE).missing == ["avx"]
    assert build_model("Nehalem,+avx,enforce=off", ONE).missing == ["avx"]
    assert build_model("Nehalem,+avx,enforce,-avx", ONE).missing == []
    assert "avx" in build_model("Haswell", ONE).missing


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("+-=,abcsex0123_.", max_size=10), max_size=4).map(",".join))
def test_any_option_is_a_model_or_an_error(text: str) -> None:
    for option in (text, f"qemu64,{text}"):
        with suppress(CpuModelError):
            cpuid_table(build_model(option, ONE), ONE)


# ---- Topology, caches, XSAVE


SHAPES = [
    Topology(sockets, cores, threads)
    for sockets, cores, threads in itertools.product((1, 2, 3), (1, 2, 3, 4, 6, 8, 16, 24), (1, 2, 3))
    if sockets * cores * threads <= 64
]


@pytest.mark.parametrize("option", ["qemu64", "max", "Nehalem"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.sockets}.{shape.cores}.{shape.threads}")
def test_what_the_table_says_of_the_topology_fits_the_apic_ids(option: str, shape: Topology) -> None:
    table = Table(option, shape)
    count = shape.sockets * shape.cores * shape.threads
    ids = apic_ids(count, shape)
    assert len(set(ids)) == count
    siblings = shape.cores * shape.threads
    assert table.has("ht") is (siblings > 1)
    if siblings > 1:
        assert table(1)[1] >> 16 & 0xFF == siblings
    where = [(index // siblings, index // shape.threads, index) for index in range(count)]
    if table.model.level >= 0xB:
        threads, package = table(0xB, 0), table(0xB, 1)
        assert (threads[1], package[1]) == (shape.threads, siblings)
        assert (threads[2] >> 8, package[2] >> 8, table(0xB, 2)) == (1, 2, (0, 0, 0, 0))
        assert [apic_id >> package[0] for apic_id in ids] == [socket for socket, _, _ in where]
        cores = [apic_id >> threads[0] for apic_id in ids]
        assert len(set(cores)) == shape.sockets * shape.cores
        assert all(
            (a == b) is (c[1] == d[1])
            for a, c in zip(cores, where, strict=True)
            for b, d in zip(cores, where, strict=True)
        )
    if table.model.vendor == "AuthenticAMD":
        assert table.has("cmp-legacy") is (siblings > 1)
        ecx = table(0x80000008)[2]
        if siblings > 1:
            assert ecx & 0xFF == siblings - 1
            assert [apic_id >> (ecx >> 12 & 15) for apic_id in ids] == [socket for socket, _, _ in where]
    else:
        assert not table.has("cmp-legacy")
    for subleaf in range(4):
        assert (table(4, subleaf)[0] >> 26) + 1 >= shape.cores


def test_cache_sizes() -> None:
    table = Table("max")
    sizes = []
    for subleaf in itertools.count():
        eax, ebx, ecx, _ = table(4, subleaf)
        if not eax & 31:
            break
        sizes.append(
            (eax & 31, eax >> 5 & 7, ((ebx >> 22) + 1) * ((ebx >> 12 & 0x3FF) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1))
        )
    assert sizes == [(1, 1, 32 << 10), (2, 1, 32 << 10), (3, 2, 4 << 20), (3, 3, 16 << 20)]


def test_amd_repeats_basic_features_in_the_extended_leaf() -> None:
    both = 0x0183F3FF
    for name in ("qemu64", "EPYC", "Opteron_G1", "max"):
        table = Table(name)
        assert table(0x80000001)[3] & both == table(1)[3] & both
    assert Table("Nehalem")(0x80000001)[3] & 0xFF == 0


@pytest.mark.parametrize("option", ["max", "max,-pku", "max,-xsave", "qemu64", "max,+pku"])
def test_xsave_area(option: str) -> None:
    table = Table(option)
    eax, ebx, ecx, edx = table(0xD, 0)
    if not table.has("xsave"):
        assert (eax, ebx, ecx, edx) == (0, 0, 0, 0)
        return
    assert eax & 3 == 3
    assert bool(eax >> 9 & 1) is table.has("pku")
    end = 576
    for component in range(2, 32):
        size, offset, _, _ = table(0xD, component)
        assert bool(size) is bool(eax >> component & 1)
        end = max(end, offset + size)
    assert (ecx, edx) == (end, 0)
    assert ebx == 576


def test_feature_words_follow_their_order() -> None:
    words = feature_words(build_model("max", ONE))
    assert len(words) == len(features.WORDS)
    assert words[0] & 1


# ---- Seen by guest code


def ask(rig: Rig, leaf: int, subleaf: int) -> tuple[int, ...]:
    """Execute CPUID."""
    rig.protected(bytes.fromhex("0fa2 e6f4 faf4"), rax=leaf, rcx=subleaf, ds=(0x10, 0, 0xFFFFFFFF, DATA32))
    rig.run_until_port()
    return tuple(rig.get(name) for name in ("rax", "rbx", "rcx", "rdx"))


def test_a_guest_sees_the_table() -> None:
    table = Table("max")
    with Rig() as rig:
        for leaf, subleaf in (
            (0, 0),
            (0, 7),
            (2, 0),
            (4, 1),
            (4, 9),
            (7, 0),
            (7, 5),
            (0xB, 0),
            (0x80000002, 3),
            (0x80000008, 0),
        ):
            assert ask(rig, leaf, subleaf) == table(leaf, subleaf)
        assert ask(rig, 0x40000000, 0) == table(0x40000000)
        highest = table(table.model.level)
        for leaf in (table.model.level + 1, 0x20000000, 0x80000000 + 0x1000, 0xC0000000, 0xFFFFFFFF):
            seen = ask(rig, leaf, 0)
            assert seen in (highest, (0, 0, 0, 0)) or leaf == 0xC0000000 or seen[0] == highest[0], hex(leaf)
