"""CPU models as clients see them: which there are, what each lacks here, and the value of every property.

QEMU calls it expansion: a model's name and changes to it become the properties of the CPU that they lead to, all of
them (full) or those that with the model ``base`` make the same CPU (static).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyvm.cpu import features as feature_bits
from pyvm.cpu.cpuid import CpuModel, CpuModelError, available_features, base_model, family_version, model_names
from pyvm.monitor.errors import QmpError
from pyvm.qom.types import CPU_SUFFIX, SYSTEM_MEMORY, UNSET, load

STATIC_MODEL = "base"
_LESS_PORTABLE = ("max", "host")
_NUMBERS = {"family": 0xFF + 0xF, "model": 0xFF, "stepping": 0xF, "level": 0xFFFFFFFF, "xlevel": 0xFFFFFFFF}
_STATIC_EXTRA = ("family", "min-level", "min-xlevel", "model", "model-id", "stepping", "vendor", "lmce")
_NO_FEATURES = frozenset({"legacy-cache"})
_NOT_EXPANDED = frozenset({
    "type", "parent_bus", "hotplugged", "hotpluggable", "feature-words", "filtered-features", "crash-information",
    "unavailable-features", "legacy-memory",
})  # fmt: skip
_REGISTERS = ("EAX", "EBX", "ECX", "EDX")
_FEATURE_REGISTERS: tuple[tuple[int, int | None, str], ...] = (
    (0xD, 1, "EDX"), (0xD, 1, "ECX"), (0x12, 1, "EAX"), (0x12, 0, "EBX"), (0x12, 0, "EAX"), (0x14, 0, "ECX"),
    (0xD, 0, "EDX"), (0xD, 0, "EAX"), (6, None, "EAX"), (0xD, 1, "EAX"), (0x8000000A, None, "EDX"),
    (0x40000001, None, "EDX"), (0x40000001, None, "EAX"), (0xC0000001, None, "EDX"), (0x80000008, None, "EBX"),
    (0x80000007, None, "EDX"), (0x80000001, None, "ECX"), (0x80000001, None, "EDX"), (7, 1, "EAX"), (7, 0, "EDX"),
    (7, 0, "ECX"), (7, 0, "EBX"), (1, None, "ECX"), (1, None, "EDX"),
)  # fmt: skip
"""CPUID registers that hold features: leaf, subleaf where the leaf has any, and register."""
_ZERO: dict[str, Any] = {"bool": False, "str": "", "string": "", "link<memory-region>": SYSTEM_MEMORY}
_LBR_UNSET = ~0x3F & ((1 << 64) - 1)


def expand(name: str, changes: Mapping[str, Any]) -> CpuModel:
    """Return the CPU that a model with `changes` leads to; raises QmpError for what cannot be."""
    if name not in model_names():
        raise QmpError(f"CPU model '{name}' not found")
    try:
        model = base_model("max" if name == "host" else name)
    except CpuModelError as error:
        raise QmpError(str(error)) from None
    model.name = name
    known = load()[name + CPU_SUFFIX].properties
    for key, value in changes.items():
        if key not in known:
            raise QmpError(f"Property '{name}{CPU_SUFFIX}.{key}' not found")
        _change(model, key, known[key].kind, value)
    if name != STATIC_MODEL:
        model.features.add("hypervisor")
    model.features &= available_features()
    return model


def _change(model: CpuModel, key: str, kind: str, value: Any) -> None:
    if kind == "bool":
        if type(value) is not bool:
            raise QmpError(f"Invalid parameter type for '{key}', expected: boolean")
        feature = feature_bits.canonical(key)
        if feature in feature_bits.FEATURES:
            (model.features.add if value else model.features.discard)(feature)
        elif key == "tcg-cpuid":
            model.hypervisor_leaves = value
    elif key in _NUMBERS:
        if type(value) is not int:
            raise QmpError(f"Invalid parameter type for '{key}', expected: integer")
        if not 0 <= value <= _NUMBERS[key]:
            raise QmpError(f"Property .{key} doesn't take value {value} (minimum: 0, maximum: {_NUMBERS[key]})")
        setattr(model, key, value)
    elif key in ("vendor", "model-id"):
        if type(value) is not str:
            raise QmpError(f"Invalid parameter type for '{key}', expected: string")
        if key == "vendor" and len(value) != 12:
            raise QmpError(f"Property '.vendor' doesn't take value '{value}'")
        setattr(model, {"vendor": "vendor", "model-id": "brand"}[key], value)


def feature_names() -> Iterator[str]:
    """Yield the names of all CPUID features and the like, those that no CPU of pyvm has included."""
    kind = load()["x86_64-cpu"]
    for name, item in kind.own.items():
        if item.kind == "bool" and item.default is UNSET and name not in _NO_FEATURES:
            yield name


def value_of(model: CpuModel, name: str) -> Any:
    """Return the value of a property of a CPU; raises KeyError where the type has no such property."""
    item = load()[model.name + CPU_SUFFIX].properties[name]
    plain = _plain_values(model)
    if name in plain:
        return plain[name]
    feature = feature_bits.canonical(name)
    if item.kind == "bool" and feature in feature_bits.FEATURES:
        return feature in model.features
    if item.default is not UNSET:
        return item.default
    if name in ("lbr-fmt", "lbr_fmt"):
        return _LBR_UNSET
    return _ZERO.get(item.kind, 0)


def _plain_values(model: CpuModel) -> dict[str, Any]:
    return {
        "family": model.family,
        "model": model.model,
        "stepping": model.stepping,
        "vendor": model.vendor,
        "model-id": model.brand,
        "level": model.level,
        "min-level": model.level,
        "xlevel": model.xlevel,
        "min-xlevel": model.xlevel,
        "xlevel2": 0,
        "level-func7": 0,
        "tcg-cpuid": model.hypervisor_leaves,
        "legacy-cache": True,
    }


def static_properties(model: CpuModel) -> dict[str, Any]:
    """Return what makes the model ``base`` into this CPU."""
    return {name: value_of(model, name) for name in (*feature_names(), *_STATIC_EXTRA)}


def full_properties(model: CpuModel) -> dict[str, Any]:
    """Return all properties of the CPU that can be set."""
    properties = load()[model.name + CPU_SUFFIX].properties
    return {name: value_of(model, name) for name in properties if name not in _NOT_EXPANDED}


def feature_word_infos(model: CpuModel, missing: bool) -> list[dict[str, Any]]:
    """Return X86CPUFeatureWordInfo of each CPUID register: the features that are on, or those `missing` here."""
    words: dict[tuple[int, int, str], int] = {}
    for name in model.missing if missing else model.features:
        index, bit = feature_bits.FEATURES[name]
        word = feature_bits.WORDS[index]
        place = (word.leaf, word.subleaf, _REGISTERS[word.register])
        words[place] = words.get(place, 0) | 1 << bit
    infos = []
    for leaf, subleaf, register in _FEATURE_REGISTERS:
        info: dict[str, Any] = {"cpuid-register": register, "cpuid-input-eax": leaf}
        if subleaf is not None:
            info["cpuid-input-ecx"] = subleaf
        infos.append({**info, "features": words.get((leaf, subleaf or 0, register), 0)})
    return infos


def unavailable(model: CpuModel) -> list[str]:
    """Return the features that a model asks for and cannot have, in the order of their bits."""
    return sorted(model.features - available_features(), key=lambda name: feature_bits.FEATURES[name])


def definitions() -> list[dict[str, Any]]:
    """Return the CpuDefinitionInfo of all models: those that are no fixed CPU first."""
    special = [*_LESS_PORTABLE, STATIC_MODEL]
    rest = sorted(set(model_names()) - set(special), reverse=True)
    return [_definition(name) for name in (*special, *rest)]


def _definition(name: str) -> dict[str, Any]:
    info: dict[str, Any] = {
        "name": name,
        "typename": name + CPU_SUFFIX,
        "unavailable-features": ["kvm"] if name == "host" else unavailable(base_model(name)),
        "static": name == STATIC_MODEL,
        "migration-safe": name not in _LESS_PORTABLE,
        "deprecated": False,
    }
    if name not in (*_LESS_PORTABLE, STATIC_MODEL):
        family, version = family_version(name)
        if name != f"{family}-v{version}":
            info["alias-of"] = f"{family}-v{version}"
    return info
