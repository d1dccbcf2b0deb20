"""``pyvm-vmstate``: shows what is in a saved machine.

It takes the folder of a saved machine or the `state` file in it, a file that a migration wrote (``migrate file:``,
``exec:``), or a qcow2 image with a snapshot: ``disk.qcow2@TAG``; without a tag, the newest that has a machine's state.
Checksums are checked on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyvm.block.errors import BlockError
from pyvm.errors import ConfigError
from pyvm.records import field, record
from pyvm.sizes import human

_QCOW2_MAGIC = b"QFI\xfb"
_SHOWN_BYTES = 16
_SHOWN_ITEMS = 16


@record
class Contents:
    """What a saved machine consists of."""

    source: str
    kind: str
    header: dict[str, Any]
    sections: dict[str, Any] = field(default_factory=dict)
    """Decoded fields by the section's name."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each section."""
    records: dict[str, list[int]] = field(default_factory=dict)
    """By kind of what else is in a stream: how many records, and their bytes."""
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    """By file beside the state: its size, and the bytes that it takes."""


# ---- Reading


def read(source: str) -> Contents:
    """Return what is in a folder, a file or an image.  Raises ConfigError, BlockError, OSError."""
    if os.path.isdir(source):
        contents = _read_state_file(os.path.join(source, "state"), source, "the folder of a saved machine")
        contents.files = {name: _file_sizes(os.path.join(source, name)) for name in sorted(os.listdir(source))}
        return contents
    path, _, tag = source.rpartition("@")
    if path and not os.path.exists(source):
        return _read_image(source, path, tag)
    with open(source, "rb") as file:
        magic = file.read(8)
        file.seek(0)
        if magic.startswith(_QCOW2_MAGIC):
            return _read_image(source, source, None)
        if magic == b"pyvmstat":
            return _read_state_file(source, source, "the state of a machine without its memory")
        return _read_stream(Contents(source, "the stream of a machine", {}), file)


def _file_sizes(path: str) -> dict[str, int]:
    status = os.stat(path)
    return {"size": status.st_size, "allocated": status.st_blocks * 512}


def _read_state_file(path: str, source: str, kind: str) -> Contents:
    from pyvm.migration.state_file import read_state
    from pyvm.migration.values import encode_value

    header, sections = read_state(path)
    return Contents(source, kind, header, sections, {name: len(encode_value(it)) for name, it in sections.items()})


def _read_stream(contents: Contents, file: Any) -> Contents:
    from pyvm.migration.stream import SECTION, StreamReader, parse_section

    reader = StreamReader(file)
    contents.header = reader.header
    for head, body in reader.records():
        if head.kind == SECTION:
            section = parse_section(head, body)
            contents.sections[section.name] = {**_as_dict(section.fields), **section.subsections}
            contents.sizes[section.name] = head.length
        else:
            figures = contents.records.setdefault(head.kind.decode("ascii", "replace"), [0, 0])
            figures[0] += 1
            figures[1] += head.length
    return contents


def _as_dict(fields: Any) -> dict[str, Any]:
    return fields if isinstance(fields, dict) else {"value": fields}


def _read_image(source: str, path: str, tag: str | None) -> Contents:
    from pyvm.block.graph import BlockGraph
    from pyvm.block.open import Opener
    from pyvm.block.options import Dialect
    from pyvm.migration.vmstate import VmstateReader

    # A machine may have it open; what belongs to a snapshot does not change.
    tree = {"driver": "qcow2", "read-only": True, "file": {"locking": "off"}}
    image: Any = Opener(BlockGraph(), Dialect.DRIVE, prefix="disk").open(path, tree)
    try:
        kept = [it for it in image.snapshots if it.vm_state_size and tag in (None, it.name, it.identifier)]
        if not kept:
            what = "no snapshot with the state of a machine" if tag is None else f"no such snapshot: '{tag}'"
            raise ConfigError(what)
        snapshot = kept[-1]
        contents = Contents(source, f"snapshot '{snapshot.name}' in a qcow2 image", {})
        shown = image.open_snapshot(snapshot.identifier)
        return _read_stream(contents, VmstateReader(shown.read_vmstate, snapshot.vm_state_size))
    finally:
        image.release()


# ---- Showing


def lines(contents: Contents, *, fields: bool) -> Iterator[str]:
    """Yield what a person sees."""
    yield f"{contents.source}: {contents.kind}"
    yield "header:"
    yield from _members(contents.header, 1)
    for name, sizes in contents.files.items():
        yield f"file {name}: {human(sizes['size'])}, {human(sizes['allocated'])} on the host"
    for name, (count, size) in contents.records.items():
        yield f"records of kind {name}: {count}, {human(size)}"
    for name, value in contents.sections.items():
        yield f"section {name}: {contents.sizes[name]} bytes"
        if fields:
            yield from _members(_as_dict(value), 1)


def _members(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in values.items():
        yield from _member(name, value, depth)


def _member(name: str, value: Any, depth: int) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, dict):
        yield f"{indent}{name}:"
        yield from _members(value, depth + 1)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from _member(f"{name}[{index}]", item, depth)
    else:
        yield f"{indent}{name}: {_text(value)}"


def _text(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        more = " ..." if len(value) > _SHOWN_BYTES else ""
        return f"{len(value)} bytes: {value[:_SHOWN_BYTES].hex(' ')}{more}" if value else "no bytes"
    if isinstance(value, list):
        more = f" ... ({len(value)} in all)" if len(value) > _SHOWN_ITEMS else ""
        return "[" + ", ".join(_text(item) for item in value[:_SHOWN_ITEMS]) + more + "]"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value} ({value:#x})" if isinstance(value, int) and value > 9 else str(value)


def as_json(contents: Contents) -> str:
    """Return all of it as JSON; bytes are in hexadecimal digits."""
    members = {
        "source": contents.source,
        "kind": contents.kind,
        "header": contents.header,
        "files": contents.files,
        "records": {name: {"count": it[0], "bytes": it[1]} for name, it in contents.records.items()},
        "sections": [
            {"name": name, "bytes": contents.sizes[name], "fields": value} for name, value in contents.sections.items()
        ],
    }
    return json.dumps(members, indent=2, default=lambda value: bytes(value).hex())


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyvm-vmstate``; return the exit status."""
    parser = argparse.ArgumentParser(prog="pyvm-vmstate", description="Show what is in a saved machine.")
    parser.add_argument("source", metavar="FOLDER|FILE|IMAGE[@SNAPSHOT]", help="the saved machine")
    parser.add_argument("--json", action="store_true", help="for programs: everything, as JSON")
    parser.add_argument("--summary", action="store_true", help="sizes only, without the fields of sections")
    parser.add_argument("--section", action="append", metavar="NAME", help="this section only; may be given again")
    arguments = parser.parse_args(argv)
    try:
        contents = read(arguments.source)
    except OSError as error:
        return _fail(error.strerror or str(error), arguments.source)
    except (ConfigError, BlockError) as error:
        return _fail(str(error).removeprefix(f"{arguments.source}: "), arguments.source)
    if arguments.section:
        missing = [name for name in arguments.section if name not in contents.sections]
        if missing:
            return _fail(f"there is no section '{missing[0]}'", arguments.source)
        contents.sections = {name: contents.sections[name] for name in arguments.section}
    try:
        if arguments.json:
            print(as_json(contents))
        else:
            for line in lines(contents, fields=not arguments.summary):
                print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; keep Python from trying again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _fail(message: str, source: str) -> int:
    print(f"pyvm-vmstate: {source}: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
