"""Options and file names of block nodes, and what is said about mistakes: QEMU's words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.node import Node
from pyvm.block.open import Opener, open_node
from pyvm.block.options import DRIVERS, Dialect, check_tree, parse_filename, unflatten


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(65536))
    return str(path)


def opened(name: str | None, tree: dict[str, Any]) -> Node:
    return Opener(BlockGraph(), Dialect.DRIVE, warn=lambda text: None).open(name, tree)


def shape(node: Node) -> Any:
    """Return the drivers of a graph."""
    return (node.driver, *(shape(child.node) for child in node.children))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "Parameter 'driver' is missing"),
        ({"driver": 7}, "Invalid parameter type for 'driver', expected: string"),
        ({"driver": "foo"}, "Parameter 'driver' does not accept value 'foo'"),
        ({"driver": "iscsi"}, "Driver 'iscsi' is not supported by pyvm yet"),
        ({"driver": "dmg"}, "Driver 'dmg' is not supported by pyvm yet"),
        ({"driver": "file"}, "Parameter 'filename' is missing"),
        ({"driver": "raw"}, "Parameter 'file' is missing"),
        ({"driver": "raw", "file": {}}, "Parameter 'file.driver' is missing"),
        ({"driver": "raw", "file": 7}, "Invalid parameter type for 'file', expected: BlockdevRef"),
        (
            {"driver": "raw", "file": {"driver": "file", "filename": "x", "foo": 1}},
            "Parameter 'file.foo' is unexpected",
        ),
        ({"driver": "null-co", "size": "x"}, "Invalid parameter type for 'size', expected: integer"),
        ({"driver": "null-co", "size": True}, "Invalid parameter type for 'size', expected: integer"),
        ({"driver": "null-co", "size": -1}, "Parameter 'size' expects a non-negative number"),
        ({"driver": "null-co", "read-zeroes": 1}, "Invalid parameter type for 'read-zeroes', expected: boolean"),
        ({"driver": "null-co", "discard": "on"}, "Parameter 'discard' does not accept value 'on'"),
        ({"driver": "null-co", "cache": 7}, "Invalid parameter type for 'cache', expected: object"),
        ({"driver": "null-co", "cache": {"x": True}}, "Parameter 'cache.x' is unexpected"),
        (
            {"driver": "qcow2", "file": "f", "backing": 7},
            "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
        ),
    ],
)
def test_a_tree_is_checked_before_anything_is_opened(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockError) as error:
        check_tree(tree, Dialect.JSON)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"driver": "null-co", "size": "10M"}, "Parameter 'size' expects integer"),
        ({"driver": "null-co", "read-zeroes": "maybe"}, "Parameter 'read-zeroes' expects 'on' or 'off'"),
        (
            {"driver": "raw", "file": {"driver": "null-co", "latency-ns": "x"}},
            "Parameter 'file.latency-ns' expects integer",
        ),
    ],
)
def test_text_is_checked(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockError) as error:
        check_tree(tree, Dialect.KEYVAL)
    assert str(error.value) == message


def test_values_get_their_types() -> None:
    given_text = {"driver": "raw", "offset": "512", "read-only": "on", "file": {"driver": "null-co", "size": "1024"}}
    assert check_tree(given_text, Dialect.KEYVAL) == {
        "driver": "raw",
        "offset": 512,
        "read-only": True,
        "file": {"driver": "null-co", "size": 1024},
    }


def test_file_names() -> None:
    for name, driver, own in (
        ("a/b:c", "file", {"filename": "a/b:c"}),
        ("file:x/y:z", "file", {"filename": "x/y:z"}),
        ("file:x:y", "file", {"filename": "./x:y"}),
        ("host_device:/dev/x", "host_device", {"filename": "/dev/x"}),
        ("/dev/null", "host_device", {"filename": "/dev/null"}),
        ("null-co://", "null-co", {}),
        ("null-aio://", "null-aio", {}),
    ):
        found, options = parse_filename(name)
        assert (found.name, options) == (driver, own)
    for name, message in (
        ("foo:x", "Unknown protocol 'foo'"),
        ("null-co://x", "The only allowed filename for this driver is 'null-co://'"),
        ("iscsi://host/x", "Protocol 'iscsi' is not supported by pyvm yet: 'iscsi://host/x'"),
        ("fat:/tmp", "Protocol 'vvfat' is not supported by pyvm yet: 'fat:/tmp'"),
    ):
        with pytest.raises(BlockError) as error:
            parse_filename(name)
        assert str(error.value) == message


def test_the_same_image_by_many_names(image: str) -> None:
    inner = {"driver": "raw", "file": {"driver": "file", "filename": image}}
    for name, tree in (
        (image, {"driver": "raw"}),
        (f"file:{image}", {"driver": "raw"}),
        (f"json:{json.dumps(inner)}", {}),
        ("json:" + json.dumps({"driver": "raw", "file.driver": "file", "file.filename": image}), {}),
        ("json:" + json.dumps({"driver": "qcow2", "file.filename": image}), {"driver": "raw"}),
        (None, inner),
        (None, {"driver": "raw", "file": {"filename": image}}),
        (None, {"file": {"filename": image}}),
        (image, {}),
        (image, {"file": {"locking": "off"}}),
    ):
        node = opened(name, tree)
        assert shape(node) == ("raw", ("file",))
        assert node.filename == image
        node.close()
    for name, tree in ((image, {"driver": "file"}), (None, {"driver": "file", "filename": image})):
        node = opened(name, tree)
        assert shape(node) == ("file",)
        node.close()


@pytest.mark.parametrize(
    ("name", "tree", "message"),
    [
        ("IMAGE", {"driver": "foo"}, "Unknown driver 'foo'"),
        ("IMAGE", {"driver": "raw", "foo": "1"}, "Block format 'raw' does not support the option 'foo'"),
        ("IMAGE", {"driver": "raw", "cache": {"x": "1"}}, "Block format 'raw' does not support the option 'cache.x'"),
        ("IMAGE", {"driver": "raw", "a": {"b": "1"}}, "Block format 'raw' does not support the option 'a.b'"),
        (
            "IMAGE",
            {"driver": "raw", "file": {"foo": "1"}},
            "Block protocol 'file' doesn't support the option 'foo'",
        ),
        (
            "IMAGE",
            {"driver": "raw", "file": {"filename": "x"}},
            "Can't specify 'file' and 'filename' options at the same time",
        ),
        (None, {"driver": "raw"}, 'A block device must be specified for "file"'),
        (None, {"driver": "file"}, "The 'file' block driver requires a file name"),
        (
            "IMAGE",
            {"driver": "raw", "offset": "1G"},
            "Offset (1073741824) cannot be greater than size",
        ),
        ("IMAGE", {"driver": "qcow2"}, "Image is not in qcow2 format"),
        ("IMAGE", {"driver": "raw", "force-share": "on"}, "force-share=on can only be used with read-only images"),
        ("IMAGE", {"driver": "raw", "discard": "x"}, "Invalid discard option"),
        (
            "IMAGE",
            {"driver": "raw", "file": {"aio": "native"}},
            "aio=native was specified, but it requires",
        ),
        ("IMAGE", {"driver": "raw", "file": {"pr-manager": "p"}}, "No persistent reservation manager with id 'p'"),
        ("json:{", {}, "Could not parse the JSON options: JSON parse error, premature EOI"),
        ("json:{'driver': 'raw'} 1", {}, "Could not parse the JSON options: Expecting at most one JSON value"),
        ("json:[]", {}, "Invalid JSON object given"),
        ("/nowhere/x", {}, "Could not open '/nowhere/x': No such file or directory"),
    ],
)
def test_mistakes_in_a_drive(image: str, name: str | None, tree: dict[str, Any], message: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BlockError) as error:
        opened(image if name == "IMAGE" else name, tree)
    assert str(error.value).startswith(message)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_name_in_json_takes_what_a_drive_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes of both kinds; and numbers for text, as everything becomes text."""
    monkeypatch.chdir(tmp_path)
    Path("12").write_bytes(bytes(1024))
    node = opened("json:{'driver': 'raw', \"size\": '512', 'file': {'driver': 'file', 'filename': 12}}", {})
    assert node.size == 512
    node.close()


def test_children_take_over_what_is_said_above(image: str) -> None:
    node = opened(
        image, {"driver": "raw", "read-only": "on", "discard": "unmap", "cache": {"no-flush": "on"}, "node-name": "n"}
    )
    file = node.file
    assert file is not None
    assert node.name == "n"
    assert (file.read_only, file.unmap, file.no_flush, file.direct) == (True, True, True, False)
    node.close()
    node = opened(image, {"driver": "raw", "discard": "unmap", "file": {"discard": "ignore"}})
    assert node.file is not None
    assert (node.unmap, node.file.unmap) == (True, False)
    node.close()


def test_a_node_needs_a_name() -> None:
    with pytest.raises(BlockError, match=r"^'node-name' must be specified for the root node$"):
        open_node({"driver": "null-co"}, BlockGraph())
    with pytest.raises(BlockError, match="setting detect-zeroes to unmap is not allowed without setting discard"):
        open_node({"driver": "null-co", "node-name": "n", "detect-zeroes": "unmap"}, BlockGraph())


def test_every_driver_of_the_table_is_there_or_refused() -> None:
    from importlib import import_module

    for name, driver in DRIVERS.items():
        if driver.module and name != "qcow2":
            assert callable(getattr(import_module(driver.module), driver.make))


def test_dotted_names_become_structures() -> None:
    assert unflatten({"a.b": 1, "a.c.d": 2, "e": {"f.g": 3}}) == {"a": {"b": 1, "c": {"d": 2}}, "e": {"f": {"g": 3}}}
    with pytest.raises(BlockError, match=r"^Parameters 'a\.\*' used inconsistently$"):
        unflatten({"a": 1, "a.b": 2})


_KEYS = st.sampled_from(
    [
        "driver",
        "file",
        "filename",
        "node-name",
        "size",
        "offset",
        "backing",
        "cache",
        "discard",
        "read-only",
        "x",
        "a.b",
    ]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["raw", "file", "null-co", "qcow2", "on", "n", "/x", ""]),
    lambda inner: st.dictionaries(_KEYS, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _VALUES, max_size=5), st.sampled_from(list(Dialect)))
def test_any_options_are_taken_or_refused(tree: dict[str, Any], dialect: Dialect) -> None:
    graph = BlockGraph()
    try:
        node = open_node({"node-name": "n", **tree}, graph, dialect=dialect, warn=lambda text: None)
    except BlockError:
        assert not graph.nodes
    else:
        node.release()
    try:
        name = "json:" + json.dumps(tree)
        node = Opener(graph, Dialect.DRIVE, warn=lambda text: None).open(name, {})
    except BlockError:
        assert not graph.nodes
    else:
        node.release()
    assert not graph.nodes
