"""The schema: notation, validation with QEMU's error texts, introspection, and that it and the handlers agree."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.registry import ChardevInfo
from pyvm.clock import ManualClock
from pyvm.devices.display.vga import Vga
from pyvm.monitor.dispatcher import load_handler
from pyvm.monitor.errors import QmpError
from pyvm.monitor.events import THROTTLED
from pyvm.monitor.machine import VcpuInfo
from pyvm.monitor.registry import CommandTable
from pyvm.monitor.schema.introspect import introspect
from pyvm.monitor.schema.model import (
    BUILTINS,
    CHAPTERS,
    EMPTY,
    AlternateType,
    ArrayType,
    Builtin,
    Command,
    EnumType,
    Member,
    ObjectType,
    Schema,
    SchemaError,
    Type,
    load,
)
from pyvm.monitor.schema.record import Record, python_name
from pyvm.monitor.schema.validate import Validator
from pyvm.runstate import RunState, ShutdownCause
from tests.system import machine_rig, net_rig
from tests.unit import block_rig, host_rig, job_rig
from tests.unit.monitor_support import Bench, FakeBalloon

# ---- The schema and the handlers

COMMANDS = [typing.cast("Command", load().command(name)) for name in load().command_names]


def tables() -> dict[str, CommandTable]:
    return {
        chapter: importlib.import_module(f"pyvm.monitor.commands.{chapter.replace('-', '_')}").COMMANDS
        for chapter in CHAPTERS
    }


def test_every_command_has_a_handler_in_its_chapter_and_every_handler_a_command() -> None:
    handled = {(chapter, name) for chapter, table in tables().items() for name in table.handlers}
    assert handled == {(command.chapter, command.name) for command in COMMANDS}


def test_a_second_handler_for_a_command_is_refused() -> None:
    table = CommandTable()
    table.command("stop")(len)
    with pytest.raises(ValueError, match="command stop has a handler already"):
        table.command("stop")(len)


def annotation_of(kind: Type) -> object:
    """Return the annotation that a handler's parameter of this type has."""
    if isinstance(kind, ArrayType):
        return list[annotation_of(kind.element)]  # type: ignore[misc]
    if isinstance(kind, EnumType):
        return str
    if isinstance(kind, ObjectType):
        return Record
    if isinstance(kind, AlternateType):
        return Any
    plain = {"string": str, "int": int, "boolean": bool, "number": float, "null": None, "value": Any}
    return plain[kind.json_type]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_handler_takes_what_the_schema_gives(command: Command) -> None:
    handler = load_handler(command)
    hints = typing.get_type_hints(handler, localns={"Record": Record})
    parameters = list(inspect.signature(handler).parameters)[1:]
    assert inspect.getdoc(handler)
    if command.raw or command.boxed:
        assert parameters == ["arguments"]
        return
    expected: dict[str, object] = {}
    for member in command.arguments.members:
        annotation: Any = annotation_of(member.type)
        expected[python_name(member.name)] = annotation | None if member.optional else annotation
    assert {name: hints[name] for name in parameters} == expected
    assert (hints["return"] is types.NoneType) == (command.returns is EMPTY)
    if command.oob:
        assert not inspect.iscoroutinefunction(handler)


def test_everything_in_the_schema_can_be_resolved_and_is_used() -> None:
    schema = load()
    seen: set[str] = set()
    inherited: set[int] = set()

    def visit(kind: Type) -> None:
        if kind.name in seen and kind.name:
            return
        seen.add(kind.name)
        for reference in references(kind):
            visit(reference)

    def references(kind: Type) -> list[Type]:
        if isinstance(kind, ArrayType):
            return [kind.element]
        if isinstance(kind, AlternateType):
            return [branch.type for branch in kind.branches]
        if isinstance(kind, ObjectType):
            if kind.tag is not None:
                assert isinstance(kind.tag.type, EnumType)
                assert set(kind.variants) <= {value.name for value in kind.tag.type.values}
            inherited.update(map(id, kind.members))
            return [member.type for member in (*kind.members, *kind.variants.values())]
        return []

    def is_base(kind: Type | None) -> bool:
        return isinstance(kind, ObjectType) and bool(kind.members) and inherited.issuperset(map(id, kind.members))

    for command in COMMANDS:
        visit(command.arguments)
        visit(command.returns)
    for name in schema.event_names:
        event = schema.event(name)
        assert event is not None
        visit(event.arguments)
    assert [name for name in schema.type_names if name not in seen and not is_base(schema.type(name))] == []


def test_enums_of_the_schema_are_those_of_the_machine() -> None:
    for name, enum in (("RunState", RunState), ("ShutdownCause", ShutdownCause)):
        kind = load().type(name)
        assert isinstance(kind, EnumType)
        assert [value.name for value in kind.values] == [member.value for member in enum]


def test_throttled_events_have_the_member_that_tells_them_apart() -> None:
    for name, (_, member) in THROTTLED.items():
        event = load().event(name)
        if event is not None and member is not None:
            assert member in {entry.name for entry in event.arguments.members}
    assert {"RTC_CHANGE", "BALLOON_CHANGE", "VSERPORT_CHANGE", "WATCHDOG"} <= set(load().event_names) & set(THROTTLED)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_what_a_handler_returns_is_what_the_schema_says(command: Command, tmp_path: Path) -> None:
    bench = Bench()
    machine = bench.machine
    machine.name = "name"
    machine.wakeup_supported = True
    machine.balloon = FakeBalloon()
    machine.cpus = [VcpuInfo(0, "/machine/unattached/device[0]", 17, {"socket-id": 0, "core-id": 0, "thread-id": 0})]
    machine.devices = [ChardevInfo("compat_monitor0", "unix:/q,server=on", True)]
    if command.name == "system_wakeup":
        machine.states.set(RunState.RUNNING)
        machine.states.set(RunState.SUSPENDED)
    machine.screens = [Vga(ManualClock())]
    client = bench.client(negotiate=command.name != "qmp_capabilities")
    needed = {"balloon": {"value": 1 << 20}, "human-monitor-command": {"command-line": "info status"}}
    needed["screendump"] = {"filename": os.devnull}
    machine.storage, block = block_rig.prepare(bench.events, tmp_path)
    needed.update(block)
    if command.chapter in job_rig.CHAPTERS:
        needed.update(job_rig.prepare(machine.storage))
        client.take()
    machine.model = machine_rig.shared().pc.model  # type: ignore[attr-defined]
    needed.update(machine_rig.ARGUMENTS)
    machine.network = net_rig.network()  # type: ignore[attr-defined]
    needed.update(net_rig.ARGUMENTS)
    host = host_rig.Host(bench, tmp_path)
    needed.update(host.prepare(client))
    arguments = needed.get(command.name, {})
    messages = client.ask({"execute": command.name, "arguments": arguments})
    for work in bench.spawned:
        asyncio.run(work)
        messages += client.messages()
    reply = next(message for message in messages if "event" not in message)
    machine.storage.close()
    host.close()
    if command.name in {*block_rig.REFUSED, *machine_rig.REFUSED, *host_rig.REFUSED}:
        assert "error" in reply
        return
    Validator(load()).checker(command.returns)(reply["return"], None)


# ---- The notation

EXAMPLE = """
# a comment
enum Colour !unstable
  red green      # another
  blue !deprecated

struct Point
  x: int
  y?: int
  # members in between

struct Named : Point
  node-name: str
  class?: str !deprecated

enum Shape
  dot line none

union Drawing : Point by shape
  shape: Shape
  case dot: Dot
  case line: Line

struct Dot
  colour: Colour

struct Line
  to: [Point]
  width?: uint8

alternate Reference
  definition: Tree
  reference: str
  many: [int]
  nothing: null

struct Tree
  left?: Reference
  right?: Tree

struct Numbers
  i8?: int8
  i?: int
  u16?: uint16
  u64?: uint64
  size?: size
  number?: number
  list?: [uint8]

command draw
  what: Drawing
  loud?: bool
  tags?: [str]

command add : Tree -> Named
command count : Numbers
command raw-one raw
  driver: str
command locked -> int oob preconfig !deprecated
command linux-only if=linux
command other-only if=other
event DRAWN
  what: Drawing
event NAMED : Named
"""


def example(conditions: frozenset[str] = frozenset()) -> Schema:
    return Schema([("example", EXAMPLE)], conditions)


def command(name: str) -> Command:
    found = example().command(name)
    assert found is not None
    return found


def test_the_notation() -> None:
    schema = example()
    colour = schema.type("Colour")
    assert isinstance(colour, EnumType)
    assert colour.features == ("unstable",)
    assert [(value.name, value.features) for value in colour.values] == [
        ("red", ()),
        ("green", ()),
        ("blue", ("deprecated",)),
    ]
    named = schema.type("Named")
    assert isinstance(named, ObjectType)
    assert [(m.name, m.type_name, m.optional, m.features) for m in named.members] == [
        ("x", "int", False, ()),
        ("y", "int", True, ()),
        ("node-name", "str", False, ()),
        ("class", "str", True, ("deprecated",)),
    ]
    drawing = schema.type("Drawing")
    assert isinstance(drawing, ObjectType)
    assert isinstance(drawing.tag, Member)
    assert drawing.tag.name == "shape"
    assert {case: variant.type.name for case, variant in drawing.variants.items()} == {"dot": "Dot", "line": "Line"}
    assert isinstance(schema.type("[Point]"), ArrayType)
    locked = command("locked")
    assert (locked.oob, locked.preconfig, locked.raw, locked.boxed) == (True, True, False, False)
    assert locked.features == ("deprecated",)
    assert isinstance(locked.returns, Builtin)
    assert command("add").boxed
    assert command("raw-one").raw
    event = schema.event("NAMED")
    assert event is not None
    assert event.arguments is named


def test_conditions() -> None:
    assert "linux-only" not in example().command_names
    assert list(example(frozenset({"linux"})).command_names)[-1] == "linux-only"
    assert "other-only" in example(frozenset({"linux", "other"})).command_names
    text = "enum E\n  a b\n  c if=x\nstruct S\n  m: E\n  n: E if=x\n"
    for conditions, values, members in ((frozenset(), "ab", "m"), (frozenset({"x"}), "abc", "mn")):
        schema = Schema([("", text)], conditions)
        enum, struct = schema.type("E"), schema.type("S")
        assert isinstance(enum, EnumType)
        assert isinstance(struct, ObjectType)
        assert "".join(value.name for value in enum.values) == values
        assert "".join(member.name for member in struct.members) == members


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ("struct A\n  x: Missing\n", "A", "type Missing is not defined"),
        ("struct A\n  x int\n", "A", "A: cannot understand 'x int'"),
        ("struct A\n  x: int loudly\n", "A", "A: cannot understand 'loudly'"),
        ("union A by x\n  x: int\n", "A", "a union has an enum member to go by"),
        ("union A by y\n  x: int\n", "A", "a union has an enum member to go by"),
        ("enum E\n  a\nstruct A\n  x: E\n  case a: A\n", "A", "a struct has none"),
        ("struct A : int\n  x: int\n", "A", "A: int cannot be a base"),
    ],
)
def test_errors_in_the_text(text: str, name: str, error: str) -> None:
    with pytest.raises(SchemaError, match=error):
        Validator(Schema([("", text)])).check(name, {})


def test_errors_in_commands() -> None:
    with pytest.raises(SchemaError, match="command a is defined twice"):
        Schema([("one", "command a\n"), ("two", "command a\n")])
    with pytest.raises(SchemaError, match="cannot understand 'noisy'"):
        Schema([("", "command a noisy\n")]).command("a")
    with pytest.raises(SchemaError, match="str cannot be the arguments"):
        Schema([("", "command a : str\n")]).command("a")
    assert Schema([("", "command a\n")]).command("b") is None
    assert Schema([("", "command a\n")]).event("a") is None


# ---- Validation

VALIDATOR = Validator(example())


def arguments(name: str, values: Any) -> dict[str, Any]:
    return VALIDATOR.arguments(command(name), values)


def test_arguments_become_keywords_and_records() -> None:
    got = arguments("draw", {"what": {"shape": "line", "x": 1, "to": [{"x": 2, "y": 3}], "width": 7}})
    assert got["loud"] is None
    assert got["tags"] is None
    what = got["what"]
    assert isinstance(what, Record)
    assert (what.x, what.y, what.shape, what.width) == (1, None, "line", 7)
    assert [(point.x, point.y) for point in what.to] == [(2, 3)]
    assert repr(what) == "Drawing_line(x=1, y=None, shape='line', to=[Point(x=2, y=3)], width=7)"
    with pytest.raises(AttributeError):
        what.colour  # noqa: B018 - a member of another variant
    plain = VALIDATOR.check("Drawing", {"shape": "none", "x": 1})
    assert plain == VALIDATOR.check("Drawing", {"x": 1, "shape": "none"})
    assert plain != what
    assert plain != "Drawing"


def test_a_boxed_command_gets_one_record_and_a_raw_one_the_arguments_as_they_came() -> None:
    tree = arguments("add", {"left": "name", "right": {"left": {"left": [1, 2]}, "right": {"left": None}}})["arguments"]
    assert tree.left == "name"
    assert tree.right.left.left == [1, 2]
    assert tree.right.right.left is None
    assert arguments("raw-one", {"anything": {}}) == {"arguments": {"anything": {}}}
    named = VALIDATOR.check("Named", {"x": 1, "node-name": "n", "class": "c"})
    assert (named.node_name, named.class_) == ("n", "c")


POINT = {"x": 1}
DEFECTS: list[tuple[str, Any, str]] = [
    ("draw", {}, "Parameter 'what' is missing"),
    ("draw", {"what": 1}, "Invalid parameter type for 'what', expected: object"),
    ("draw", {"what": None}, "Invalid parameter type for 'what', expected: object"),
    ("draw", {"what": {"shape": "dot"}}, "Parameter 'what.x' is missing"),
    ("draw", {"what": {"shape": "dot", "x": "1"}}, "Invalid parameter type for 'what.x', expected: integer"),
    ("draw", {"what": {"shape": "dot", "x": True}}, "Invalid parameter type for 'what.x', expected: integer"),
    ("draw", {"what": {"shape": "dot", "x": 1.0}}, "Invalid parameter type for 'what.x', expected: integer"),
    ("draw", {"what": {"shape": "dot", "x": 2**63}}, "Invalid parameter type for 'what.x', expected: integer"),
    ("draw", {"what": POINT}, "Parameter 'what.shape' is missing"),
    ("draw", {"what": {"shape": "star", **POINT}}, "Parameter 'shape' does not accept value 'star'"),
    ("draw", {"what": {"shape": 1, **POINT}}, "Invalid parameter type for 'what.shape', expected: string"),
    ("draw", {"what": {"shape": "dot", **POINT}}, "Parameter 'what.colour' is missing"),
    ("draw", {"what": {"shape": "none", "colour": "red", **POINT}}, "Parameter 'what.colour' is unexpected"),
    (
        "draw",
        {"what": {"shape": "line", "to": [5], **POINT}},
        "Invalid parameter type for 'what.to[0]', expected: object",
    ),
    ("draw", {"what": {"shape": "line", "to": [POINT, {}], **POINT}}, "Parameter 'what.to[1].x' is missing"),
    ("draw", {"what": {"shape": "line", "to": [{"q": 1, **POINT}], **POINT}}, "Parameter 'what.to[0].q' is unexpected"),
    ("draw", {"what": {"shape": "none", **POINT}, "loud": 1}, "Invalid parameter type for 'loud', expected: boolean"),
    ("draw", {"what": {"shape": "none", **POINT}, "tags": {}}, "Invalid parameter type for 'tags', expected: array"),
    (
        "draw",
        {"what": {"shape": "none", **POINT}, "tags": ["a", 1]},
        "Invalid parameter type for 'tags[1]', expected: string",
    ),
    ("draw", {"what": {"shape": "none", **POINT}, "zz": 1}, "Parameter 'zz' is unexpected"),
    ("add", {"left": 5}, "Invalid parameter type for 'left', expected: Reference"),
    ("add", {"left": [5, "a"]}, "Invalid parameter type for 'left[1]', expected: integer"),
    ("add", {"left": {"left": True}}, "Invalid parameter type for 'left', expected: Reference"),
    ("add", {"right": {"right": {"q": 1}}}, "Parameter 'right.right.q' is unexpected"),
    ("count", {"i8": 128}, "Parameter 'i8' expects int8_t"),
    ("count", {"i8": -129}, "Parameter 'i8' expects int8_t"),
    ("count", {"i8": 1.5}, "Invalid parameter type for 'i8', expected: integer"),
    ("count", {"u16": 70000}, "Parameter 'u16' expects uint16_t"),
    ("count", {"u16": -1}, "Parameter 'u16' expects uint16_t"),
    ("count", {"u16": 1.5}, "Parameter 'u16' expects uint64"),
    ("count", {"u64": 2**64}, "Parameter 'u64' expects uint64"),
    ("count", {"u64": "1"}, "Parameter 'u64' expects uint64"),
    ("count", {"size": 1.0}, "Parameter 'size' expects uint64"),
    ("count", {"list": [1, 300]}, "Parameter 'null' expects uint8_t"),
    ("count", {"list": ["a"]}, "Parameter 'list[0]' expects uint64"),
    ("count", {"number": "1"}, "Invalid parameter type for 'number', expected: number"),
    ("locked", {"foo": 1, "bar": 2}, "Parameter 'bar' is unexpected"),
    ("locked", {"zz": 1, "yy": 2}, "Parameter 'yy' is unexpected"),
    ("locked", {str(n): n for n in range(12)}, "Parameter '4' is unexpected"),
]


@pytest.mark.parametrize(("name", "values", "error"), DEFECTS)
def test_wrong_arguments(name: str, values: Any, error: str) -> None:
    with pytest.raises(QmpError) as caught:
        arguments(name, values)
    assert caught.value.description == error


def test_an_unexpected_member_that_looks_like_a_known_one_in_python() -> None:
    with pytest.raises(QmpError, match="Parameter 'node_name' is unexpected"):
        VALIDATOR.check("Named", {"x": 1, "node-name": "n", "node_name": "m"})


def test_numbers() -> None:
    values = arguments(
        "count", {"i8": -128, "i": -(2**63), "u16": 65535, "u64": -1, "size": 2**64 - 1, "number": 3, "list": [255]}
    )["arguments"]
    assert (values.i8, values.i, values.u16, values.u64) == (-128, -(2**63), 65535, 2**64 - 1)
    assert (values.size, values.number, values.list) == (2**64 - 1, 3.0, [255])


NAMES = st.sampled_from(
    ["what", "shape", "x", "y", "to", "colour", "left", "right", "u64", "list", "tags", "q", "dot", "line"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=200)
@given(st.sampled_from(list(example().command_names)), st.dictionaries(NAMES, ANYTHING, max_size=4))
def test_arguments_are_accepted_or_refused_but_never_fail(name: str, values: dict[str, Any]) -> None:
    found = command(name)
    names = {"arguments"} if found.boxed or found.raw else {python_name(m.name) for m in found.arguments.members}
    try:
        checked = arguments(name, values)
    except QmpError:
        return
    assert set(checked) == names


# ---- Introspection


def test_introspection() -> None:
    infos = {info["name"]: info for info in introspect(example())}
    draw = infos["draw"]
    assert (draw["meta-type"], draw["ret-type"]) == ("command", infos["locked"]["arg-type"])
    members = {member["name"]: member for member in infos[draw["arg-type"]]["members"]}
    assert members["loud"] == {"name": "loud", "type": "bool", "default": None}
    assert members["tags"]["type"] == "[str]"
    assert infos["[str]"] == {"name": "[str]", "meta-type": "array", "element-type": "str"}
    assert infos["str"] == {"name": "str", "meta-type": "builtin", "json-type": "string"}
    drawing = infos[members["what"]["type"]]
    assert [member["name"] for member in drawing["members"]] == ["x", "y", "shape"]
    assert drawing["tag"] == "shape"
    assert [variant["case"] for variant in drawing["variants"]] == ["dot", "line", "none"]
    assert infos[drawing["variants"][2]["type"]]["members"] == []
    dot = infos[drawing["variants"][0]["type"]]
    colour = infos[dot["members"][0]["type"]]
    assert colour["values"] == ["red", "green", "blue"]
    assert colour["members"][2] == {"name": "blue", "features": ["deprecated"]}
    assert colour["features"] == ["unstable"]
    assert infos["locked"]["allow-oob"] is True
    assert infos["locked"]["features"] == ["deprecated"]
    assert infos["locked"]["ret-type"] == "int"
    left = infos[infos["add"]["arg-type"]]["members"][0]
    assert infos[left["type"]]["meta-type"] == "alternate"
    assert [branch["type"] for branch in infos[left["type"]]["members"]][1:] == ["str", "[int]", "null"]
    numbers = infos[infos["count"]["arg-type"]]["members"]
    assert {member["type"] for member in numbers} == {"int", "number", "[int]"}
    assert infos["DRAWN"]["meta-type"] == "event"


def test_introspection_hides_names_and_is_complete() -> None:
    infos = introspect(load())
    by_name = {info["name"]: info for info in infos}
    assert len(by_name) == len(infos)
    named = set(load().command_names) | set(load().event_names) | set(BUILTINS)
    for name, info in by_name.items():
        assert name in named or name.strip("[]").isdigit() or name.strip("[]") in BUILTINS
        for key in ("arg-type", "ret-type", "element-type"):
            assert info.get(key, "str") in by_name
        if info["meta-type"] != "enum":
            assert all(member["type"] in by_name for member in [*info.get("members", []), *info.get("variants", [])])
    assert [info["name"] for info in infos[:3]] == ["query-status", "SHUTDOWN", "POWERDOWN"]
    assert (by_name["query-status"]["arg-type"], by_name["query-status"]["ret-type"]) == ("0", "1")
