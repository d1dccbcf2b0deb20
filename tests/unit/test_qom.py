"""The object model: types and their properties, and the tree of objects."""

from __future__ import annotations

import pytest

from pyvm.commandline.objects import OBJECT_TYPES
from pyvm.config import MACHINE_TYPES
from pyvm.devices.properties import shown_kind
from pyvm.machine.object_kinds import KINDS
from pyvm.machine.plug.models import DEVICE_MODELS
from pyvm.monitor.errors import QmpError
from pyvm.monitor.schema.model import EnumType
from pyvm.monitor.schema.model import load as load_schema
from pyvm.qom.tree import Property, QomObject, container, resolve
from pyvm.qom.types import UNSET, TypeRegistry, load

TEXT = """
thing abstract +user-creatable
  type : string

animal : thing abstract
  legs : int =4 | how many
  name : str

dog : animal
  name tail : str | as it is called
cart : thing +movable ~dog
  wheels : uint8 =2
"""
TEXT = TEXT.replace("thing abstract +user-creatable", "thing +user-creatable abstract")


def test_the_notation() -> None:
    types = TypeRegistry([TEXT])
    dog = types["dog"]
    assert [kind.name for kind in dog.ancestry()] == ["dog", "animal", "thing"]
    assert {name: (item.kind, item.description) for name, item in dog.properties.items()} == {
        "type": ("string", None),
        "legs": ("int", "how many"),
        "name": ("str", "as it is called"),
        "tail": ("str", "as it is called"),
    }
    assert dog.properties["legs"].default == 4
    assert dog.properties["tail"].default is UNSET
    assert list(types["cart"].properties) == ["type", "legs", "name", "tail", "wheels"]
    assert types.get("cat") is None


def test_which_types_implement_what() -> None:
    types = TypeRegistry([TEXT])
    assert [kind.name for kind in types.implementing("thing", abstract=False)] == ["dog", "cart"]
    assert [kind.name for kind in types.implementing("animal", abstract=True)] == ["animal", "dog"]
    assert [kind.name for kind in types.implementing("movable", abstract=False)] == ["cart"]
    assert types["dog"].implements("user-creatable")
    assert types.implementing("nothing", abstract=True) == []


@pytest.mark.parametrize("text", ["a b c", "a\n  no kind", "a\na"])
def test_errors_in_the_notation(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot understand|defined twice"):
        TypeRegistry([text])


def test_each_device_model_is_a_type_with_its_properties() -> None:
    for name, model in DEVICE_MODELS.items():
        known = load()[name]
        assert known.implements("device")
        assert not known.abstract
        for key, item in model.properties.items():
            if "transitional" in name and key in ("disable-legacy", "disable-modern"):
                continue  # what these names say already
            assert known.properties[key].kind == shown_kind(item), (name, key)
            default = known.properties[key].default
            if item.default is not None and default is not UNSET:
                assert default == item.default, (name, key)


def test_each_object_type_can_be_created_and_has_its_properties_in_the_schema() -> None:
    creatable = {kind.name for kind in load().implementing("user-creatable", abstract=False)}
    assert creatable == set(KINDS) == set(OBJECT_TYPES)
    kinds = load_schema().type("ObjectType")
    assert isinstance(kinds, EnumType)
    # QEMU's schema has another name for this one, by which it cannot be made.
    assert creatable - {"authz-list-file"} <= {value.name for value in kinds.values}


def test_each_machine_is_a_type() -> None:
    for name in MACHINE_TYPES:
        assert load()[f"{name}-machine"].implements("machine")


# ---- The tree


def tree() -> QomObject:
    root = container()
    machine = root.add("machine", QomObject("pc", (Property("kernel", "string", lambda: "vmlinuz"),)))
    bus = machine.add("bus", QomObject("bus", links=lambda: {"child[0]": disk}))
    disk = QomObject("disk", (Property("serial", "str", put=lambda value: None),))
    parts = machine.add("parts", container(lambda: {"a": disk}))
    assert parts.children()["a"] is disk
    bus.add("disk", QomObject("label"))
    return root


def test_paths() -> None:
    root = tree()
    assert root.path == "/"
    for path, expected in (
        ("/", "/"),
        ("/machine", "/machine"),
        ("//machine//bus/", "/machine/bus"),
        ("/machine/bus/child[0]", "/machine/parts/a"),
        ("parts", "/machine/parts"),
        ("bus/disk", "/machine/bus/disk"),
        ("a", "/machine/parts/a"),
    ):
        assert resolve(root, path).path == expected


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", "Path '' is ambiguous"),
        ("/nope", "Device '/nope' not found"),
        ("nope", "Device 'nope' not found"),
        ("/machine/bus/child[1]", "Device '/machine/bus/child[1]' not found"),
    ],
)
def test_paths_that_lead_nowhere(path: str, error: str) -> None:
    with pytest.raises(QmpError) as caught:
        resolve(tree(), path)
    assert caught.value.description == error


def test_an_ambiguous_path() -> None:
    root = container()
    for name in "ab":
        root.add(name, container()).add("same", container())
    with pytest.raises(QmpError, match="Path 'same' is ambiguous"):
        resolve(root, "same")
    assert resolve(root, "b/same").path == "/b/same"


def test_properties() -> None:
    root = tree()
    machine = resolve(root, "/machine")
    assert {item.name: item.kind for item in machine.properties()} == {
        "type": "string",
        "kernel": "string",
        "bus": "child<bus>",
        "parts": "child<container>",
    }
    assert machine.get("type") == "pc"
    assert machine.get("bus") == "/machine/bus"
    assert resolve(root, "bus").get("child[0]") == "/machine/parts/a"
    resolve(root, "a").put("serial", "x")
    for action, error in (
        (lambda: machine.get("nope"), "Property 'pc.nope' not found"),
        (lambda: machine.put("kernel", "x"), "Property 'pc.kernel' is not writable"),
        (lambda: resolve(root, "a").get("serial"), "Property 'disk.serial' is not readable"),
    ):
        with pytest.raises(QmpError) as caught:
            action()
        assert caught.value.description == error
