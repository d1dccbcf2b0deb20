"""Device models and their properties: values, defaults, globals, help."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.devices.properties import (
    PCI_PROPERTIES,
    DeviceModel,
    Property,
    find_model,
    model_list,
    parse_property,
    property_list,
    set_properties,
)
from pyvm.errors import ConfigError
from tests.unit.config_support import config

MODEL = DeviceModel(
    "virtio-x-pci",
    "PCI",
    "Misc",
    {
        **PCI_PROPERTIES,
        "flag": Property("bool", True, "on/off"),
        "ports": Property("uint32", 31),
        "level": Property("int8", -1),
        "room": Property("size", 0),
        "legacy": Property("OnOffAuto", "auto", "on/off/auto"),
        "chardev": Property("chardev", None, "ID of a chardev to use as a backend"),
    },
    aliases=("virtio-x",),
)


def test_properties_have_defaults_globals_and_values() -> None:
    globals_ = config("-global", "virtio-x-pci.ports=7", "-global", "virtio-x.flag=off", "-global", "other.z=1").globals
    values = set_properties(MODEL, {"ports": "0x10", "addr": "06.1", "room": "1k"}, overrides=globals_)
    assert values == {
        "addr": 0x31, "multifunction": False, "flag": False, "ports": 16, "level": -1, "room": 1024, "legacy": "auto",
        "chardev": None, "acpi-index": 0, "romfile": None, "rombar": 1, "romsize": 0xFFFFFFFF,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("xx", "1", "Property 'virtio-x-pci.xx' not found"),
        ("flag", "maybe", "Parameter 'flag' expects 'on' or 'off'"),
        ("ports", "x", "Parameter 'ports' expects integer"),
        ("ports", "-1", "Parameter 'ports' expects uint32_t"),
        ("ports", "99999999999", "Parameter 'ports' expects uint32_t"),
        ("level", "128", "Parameter 'level' expects int8_t"),
        ("room", "x", "Parameter 'room' expects a size value"),
        ("legacy", "x", "Parameter 'legacy' does not accept value 'x'"),
        ("addr", "zz", "Property 'virtio-x-pci.addr' doesn't take value 'zz'"),
        ("addr", "20", "Property 'virtio-x-pci.addr' doesn't take value '20'"),
        ("addr", "1.8", "Property 'virtio-x-pci.addr' doesn't take value '1.8'"),
        ("addr", "", "Property 'virtio-x-pci.addr' doesn't take value ''"),
    ],
)
def test_bad_properties(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_property(MODEL, name, value)
    assert str(caught.value) == message


def test_json_properties_have_types() -> None:
    assert parse_property(MODEL, "flag", False, typed=True) is False
    assert parse_property(MODEL, "ports", 8, typed=True) == 8
    assert parse_property(MODEL, "addr", 0x31, typed=True) == 0x31
    for name, value, message in (
        ("flag", "on", "Invalid parameter type for 'flag', expected: boolean"),
        ("ports", "8", "Parameter 'ports' expects uint64"),
        ("ports", True, "Parameter 'ports' expects uint64"),
        ("legacy", True, "Invalid parameter type for 'legacy', expected: string"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_property(MODEL, name, value, typed=True)
        assert str(caught.value) == message


def test_bad_globals_are_named() -> None:
    globals_ = config("-global", "virtio-x-pci.foo=1").globals
    with pytest.raises(
        ConfigError, match=r"^can't apply global virtio-x-pci.foo=1: Property 'virtio-x-pci.foo' not found$"
    ):
        set_properties(MODEL, {}, overrides=globals_)


def test_models_are_found_by_name_and_alias() -> None:
    models = {MODEL.name: MODEL}
    assert find_model(models, "virtio-x") is find_model(models, "virtio-x-pci") is MODEL
    with pytest.raises(ConfigError, match=r"^'foo' is not a valid device model name$"):
        find_model(models, "foo")


def test_help_lists_models_and_properties() -> None:
    assert model_list({MODEL.name: MODEL}) == 'Misc devices:\nname "virtio-x-pci", bus PCI, alias "virtio-x"'
    lines = property_list(MODEL).splitlines()
    assert lines[0] == "virtio-x-pci options:"
    assert "  addr=<int32>           - Slot and optional function number, example: 06.0 or 06 (default: -1)" in lines
    assert "  flag=<bool>            - on/off (default: true)" in lines
    assert '  legacy=<OnOffAuto>     - on/off/auto (default: "auto")' in lines
    assert "  chardev=<str>          - ID of a chardev to use as a backend" in lines


# Anything at all


@given(
    st.sampled_from(sorted(MODEL.properties)), st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none())
)
@settings(max_examples=300)
def test_any_property_value_is_understood_or_refused(name: str, value: str | int | bool | None) -> None:
    for typed in (False, True):
        message = name
        try:
            parse_property(MODEL, name, value, typed=typed)
        except ConfigError as error:
            message = str(error)
        assert name in message
