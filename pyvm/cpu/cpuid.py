"""Building the CPUID table of a machine from a CPU model and `-cpu` feature flags.

Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.  The table goes to the engine, which adds the few
bits that depend on the state of a processor (APIC ID, OSXSAVE, the size of the XSAVE area).
"""

from __future__ import annotations

import struct

from pyvm.cpu import features as feature_bits
from pyvm.cpu import models
from pyvm.records import field, record

ANY_SUBLEAF = 0xFFFFFFFF
PHYSICAL_ADDRESS_BITS = 40
LINEAR_ADDRESS_BITS = 48

Entry = tuple[int, int, int, int, int, int]
"""Leaf, subleaf, EAX, EBX, ECX, EDX."""

INVARIANT_TSC = "invtsc"
_INVARIANT_TSC_BIT = 1 << 8
_TSC_ADJUST_BIT = 1 << 1
_XCR0_X87_SSE = 3
_XCR0_PKRU = 1 << 9


class CpuModelError(Exception):
    """A CPU model or feature that does not exist, or that cannot be had."""


@record(frozen=True)
class Topology:
    """How the CPUs are arranged: `cores` in a socket, `threads` in a core."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1


@record
class CpuModel:
    """A CPU as the guest identifies it."""

    name: str
    vendor: str = "AuthenticAMD"
    family: int = 15
    model: int = 107
    stepping: int = 1
    brand: str = "QEMU Virtual CPU version 2.5+"
    level: int = 0xD
    xlevel: int = 0x8000000A
    features: set[str] = field(default_factory=set)
    hypervisor_leaves: bool = True
    steady_tsc: bool = True
    """Whether the guest is told that its TSC never changes its pace, also where `invtsc` was not asked for.

    One clock is the TSC of all vCPUs here.  An operating system that is not told so distrusts the TSC of a
    multiprocessor and reads a much slower clock.  With the adjustment of the TSC, which is there then, Linux does not
    watch it by that clock either, which takes it for broken where the host is busy.  As a feature it would be said to
    clients too, and libvirt neither saves nor migrates a machine that has it.
    """
    missing: list[str] = field(default_factory=list)
    """Features that were asked for and that the translator cannot do."""


def model_names() -> list[str]:
    """Return all names that `-cpu` takes, sorted."""
    names = ["max", "base", "host"]
    for family, data in models.FAMILIES.items():
        names.append(family)
        names.extend(f"{family}-v{version}" for version in range(1, len(data.versions) + 2))
    names.extend(models.VERSION_NAMES)
    return sorted(names, key=lambda name: (name.lower(), name))


def family_version(name: str) -> tuple[str, int]:
    """Return the family of a named model, and the model's version in it; raises CpuModelError."""
    name = models.VERSION_NAMES.get(name, name)
    if name in models.FAMILIES:
        return name, 1
    family, mark, version = name.rpartition("-v")
    if mark and family in models.FAMILIES and version.isdecimal():
        number = int(version)
        if 1 <= number <= len(models.FAMILIES[family].versions) + 1:
            return family, number
    raise CpuModelError(f"unable to find CPU model '{name}'")


def _named_model(name: str) -> CpuModel:
    family_name, version = family_version(name)
    family = models.FAMILIES[family_name]
    wanted = set(family.features.split())
    brand = family.name
    for later_brand, changes in family.versions[: version - 1]:
        brand = later_brand
        for change in changes.split():
            (wanted.add if change[0] == "+" else wanted.discard)(change[1:])
    return CpuModel(name, family.vendor, *family.signature, brand, family.level, family.xlevel, wanted)


def available_features() -> set[str]:
    """Return the names of all features that a guest can have."""
    return set(feature_bits.TRANSLATED | feature_bits.PROVIDED)


def base_model(name: str) -> CpuModel:
    """Return a model as it is named, with features that nothing provides; raises CpuModelError."""
    if name == "host":
        raise CpuModelError("CPU model 'host' requires KVM or HVF")
    if name == "base":
        return CpuModel(name, "", 0, 0, 0, "", 0, 0)
    if name == "max":
        everything = available_features() - {INVARIANT_TSC, "tsc-deadline", "x2apic", "ht", "cmp-legacy", "monitor"}
        return CpuModel(name, brand="QEMU TCG CPU version 2.5+", features=everything)
    return _named_model(name)


def _flag(text: str) -> tuple[str, str]:
    if text[:1] in "+-" and "=" not in text:
        return text[1:], "on" if text[0] == "+" else "off"
    name, equals, value = text.partition("=")
    return name, value if equals else "on"


def _set_property(model: CpuModel, name: str, value: str) -> None:
    """Apply one `name=value` of the `-cpu` option."""
    numbers = {"family": 0xFF + 0xF, "model": 0xFF, "stepping": 0xF, "level": 0xFFFFFFFF, "xlevel": 0xFFFFFFFF}
    if name in numbers:
        try:
            number = int(value, 0)
        except ValueError:
            raise CpuModelError(f"Parameter '{name}' expects a number") from None
        if not 0 <= number <= numbers[name]:
            raise CpuModelError(f"Property '{model.name}-x86_64-cpu.{name}' doesn't take value {value}")
        setattr(model, name, number)
    elif name == "vendor":
        if len(value) != 12:
            raise CpuModelError(f"Property '{model.name}-x86_64-cpu.vendor' doesn't take value '{value}'")
        model.vendor = value
    elif name == "model-id":
        model.brand = value
    elif name == "tcg-cpuid":
        model.hypervisor_leaves = _boolean(name, value)
    elif name in ("check", "enforce", "migratable"):
        _boolean(name, value)
    else:
        _set_feature(model, feature_bits.canonical(name), _boolean(name, value))


def _boolean(name: str, value: str) -> bool:
    if value in ("on", "yes", "true", "y"):
        return True
    if value in ("off", "no", "false", "n"):
        return False
    raise CpuModelError(f"Parameter '{name}' expects 'on' or 'off'")


def _set_feature(model: CpuModel, name: str, enabled: bool) -> None:
    if name not in feature_bits.FEATURES:
        raise CpuModelError(f"Property '{model.name}-x86_64-cpu.{name}' not found")
    (model.features.add if enabled else model.features.discard)(name)
    if name == INVARIANT_TSC:
        model.steady_tsc = enabled


def build_model(option: str, topology: Topology) -> CpuModel:
    """Return the CPU that a `-cpu MODEL[,+feature][,-feature][,name=value]...` option describes.

    Features that nothing provides are dropped and listed in :attr:`CpuModel.missing`, unless `enforce` is given.
    Raises :class:`CpuModelError` for an unknown model or feature, or for a missing one with `enforce`.
    """
    name, *flags = option.split(",")
    model = base_model(name)
    model.features.add("hypervisor")
    enforce = False
    for text in flags:
        if text:
            key, value = _flag(text)
            _set_property(model, key, value)
            enforce = value == "on" if key == "enforce" else enforce
    model.missing = sorted(model.features - available_features())
    if enforce and model.missing:
        raise CpuModelError(f"TCG doesn't support requested feature: {model.missing[0]}")
    model.features &= available_features()
    if topology.cores * topology.threads > 1:
        model.features.add("ht")
        if model.vendor == "AuthenticAMD":
            model.features.add("cmp-legacy")
    return model


def feature_words(model: CpuModel) -> list[int]:
    """Return the feature bits in the order of :data:`pyvm.cpu.features.WORDS`."""
    words = [0] * len(feature_bits.WORDS)
    for name in model.features:
        index, bit = feature_bits.FEATURES[name]
        words[index] |= 1 << bit
    if model.vendor == "AuthenticAMD":
        # AMD repeats these bits of leaf 1 EDX in the extended leaf (APM volume 3, E.4.2).
        words[6] |= words[0] & 0x0183F3FF
    return words


def _text_words(text: str, size: int) -> tuple[int, ...]:
    return struct.unpack(f"<{size // 4}I", text.encode("latin-1", "replace")[:size].ljust(size, b"\0"))


def signature(model: CpuModel) -> int:
    """Return EAX of CPUID leaf 1: family, model and stepping."""
    family, extended_family = (model.family, 0) if model.family < 15 else (15, model.family - 15)
    return (
        extended_family << 20 | (model.model >> 4) << 16 | family << 8 | (model.model & 15) << 4 | model.stepping
    )  # fmt: skip


def _width(count: int) -> int:
    return (count - 1).bit_length()


def _vendor_leaf(leaf: int, highest: int, vendor: str) -> Entry:
    first, second, third = _text_words(vendor, 12)
    return (leaf, ANY_SUBLEAF, highest, first, third, second)


def _cache_leaves(topology: Topology) -> list[Entry]:
    """Leaf 4: 32 KiB L1, 4 MiB L2, 16 MiB L3 for all cores."""
    cores = (1 << _width(topology.cores)) - 1
    threads = topology.threads - 1
    siblings = topology.cores * topology.threads - 1
    return [
        (4, 0, cores << 26 | threads << 14 | 0x121, 0x01C0003F, 0x3F, 1),
        (4, 1, cores << 26 | threads << 14 | 0x122, 0x01C0003F, 0x3F, 1),
        (4, 2, cores << 26 | threads << 14 | 0x143, 0x03C0003F, 0xFFF, 1),
        (4, 3, cores << 26 | siblings << 14 | 0x163, 0x03C0003F, 0x3FFF, 6),
    ]


def _xsave_leaves(model: CpuModel, extended: int) -> list[Entry]:
    if "xsave" not in model.features:
        return []
    components, size = _XCR0_X87_SSE, 576
    entries: list[Entry] = []
    if "pku" in model.features:
        components, size = components | _XCR0_PKRU, 2696
        entries.append((0xD, 9, 8, 2688, 0, 0))
    return [(0xD, 0, components, 576, size, 0), (0xD, 1, extended, 0, 0, 0), *entries]


def _topology_leaves(topology: Topology) -> list[Entry]:
    thread_width = _width(topology.threads)
    package_width = thread_width + _width(topology.cores)
    return [
        (0xB, 0, thread_width, topology.threads, 0x100, 0),
        (0xB, 1, package_width, topology.cores * topology.threads, 0x201, 0),
        (0xB, ANY_SUBLEAF, 0, 0, 0, 0),
    ]


def _basic_leaves(model: CpuModel, topology: Topology, words: list[int]) -> list[Entry]:
    siblings = topology.cores * topology.threads
    logical = siblings << 16 if siblings > 1 else 0
    return [
        _vendor_leaf(0, model.level, model.vendor),
        (1, ANY_SUBLEAF, signature(model), logical | 8 << 8, words[1], words[0]),
        (2, ANY_SUBLEAF, 1, 0, 0x4D, 0x2C307D),
        *_cache_leaves(topology),
        (6, ANY_SUBLEAF, words[12], 0, 0, 0),
        (7, 0, 1 if words[5] else 0, words[2] | (_TSC_ADJUST_BIT if model.steady_tsc else 0), words[3], words[4]),
        (7, 1, words[5], 0, 0, 0),
        *(_topology_leaves(topology) if model.level >= 0xB else []),
        *_xsave_leaves(model, words[11]),
    ]


def _extended_leaves(model: CpuModel, topology: Topology, words: list[int]) -> list[Entry]:
    siblings = topology.cores * topology.threads
    brand = _text_words(model.brand, 48)
    is_amd = model.vendor == "AuthenticAMD"
    return [
        _vendor_leaf(0x80000000, model.xlevel, model.vendor),
        (0x80000001, ANY_SUBLEAF, signature(model), 0, words[7], words[6]),
        (0x80000002, ANY_SUBLEAF, brand[0], brand[1], brand[2], brand[3]),
        (0x80000003, ANY_SUBLEAF, brand[4], brand[5], brand[6], brand[7]),
        (0x80000004, ANY_SUBLEAF, brand[8], brand[9], brand[10], brand[11]),
        (0x80000005, ANY_SUBLEAF, 0x01FF01FF, 0x01FF01FF, 0x40020140, 0x40020140),
        (0x80000006, ANY_SUBLEAF, 0, 0x42004200, 0x02008140, 0x00808140),
        (0x80000007, ANY_SUBLEAF, 0, 0, 0, words[8] | (_INVARIANT_TSC_BIT if model.steady_tsc else 0)),
        (
            0x80000008,
            ANY_SUBLEAF,
            LINEAR_ADDRESS_BITS << 8 | PHYSICAL_ADDRESS_BITS,
            words[9],
            (_width(siblings) << 12 | siblings - 1) if is_amd and siblings > 1 else 0,
            0,
        ),
        (0x8000000A, ANY_SUBLEAF, 0, 0, 0, 0),
    ]


def cpuid_table(model: CpuModel, topology: Topology) -> list[Entry]:
    """Return all CPUID leaves of a model, for :meth:`pyvm.native.Engine.set_cpuid`."""
    words = feature_words(model)
    entries = _basic_leaves(model, topology, words)
    if model.xlevel:
        entries += _extended_leaves(model, topology, words)
    if model.hypervisor_leaves and "hypervisor" in model.features:
        entries += [_vendor_leaf(0x40000000, 0x40000001, "TCGTCGTCGTCG"), (0x40000001, ANY_SUBLEAF, 0, 0, 0, 0)]
    return entries
