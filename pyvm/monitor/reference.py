"""The reference of the monitor as a text for people, made from what the monitor itself works with.

    python -m pyvm.monitor.reference docs/qmp-reference.md

Commands, events and types come from the schema, what a command does from its handler, the human monitor's commands from
their table.  So the reference says what this very pyvm does; `make docs` writes it anew.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from pyvm.monitor.dispatcher import load_handler
from pyvm.monitor.events import THROTTLED
from pyvm.monitor.hmp.table import CommandTable
from pyvm.monitor.schema.model import CHAPTERS, Command, Event, ObjectType, Schema, load

ABSENT_CHAPTERS = {
    "rocker": "there is no such switch",
    "tpm": "there is no TPM",
    "spice": "there is no SPICE",
    "replay": "nothing is recorded or replayed",
    "misc-target": "there is no such processor",
}
"""Chapters about what pyvm does not have, and why: the answers are those of a QEMU in which it is not used."""
ABSENT_COMMANDS = {
    "query-kvm": "there is no KVM",
    "dumpdtb": "a PC has no device tree",
    "x-query-rdma": "there is no RDMA",
    "x-query-usb": "there is no USB",
    "x-query-profile": "the translator has no profiler",
    "x-query-opcount": "the translator does not count",
    "xen-set-global-dirty-log": "there is no Xen",
    "xen-colo-do-checkpoint": "there is no COLO",
    "query-colo-status": "there is no COLO",
    "x-colo-lost-heartbeat": "there is no COLO",
    "query-pr-managers": "there are no such helpers",
    "query-stats": "there is no KVM",
    "query-stats-schemas": "there is no KVM",
}
"""The same for single commands."""
FORMER = frozenset(
    "change cpu-add query-cpus query-events migrate_set_speed migrate_set_downtime migrate-set-cache-size block_passwd "
    "query-migrate-cache-size x-blockdev-reopen query-cpu-model-baseline query-cpu-model-comparison".split()
)
"""Commands that QEMU had up to 4.2, and has no longer."""

_HEAD = """\
# The monitor's commands and events

This file is made by `make docs` from what the monitor itself works with; do not edit it.

**Support** says what to expect:

- *yes*: it does what the name says;
- *refused*: it answers with an error, as the part of pyvm that it needs is not there;
- *absent*: it is about something that pyvm does not have; the answer is that of a QEMU in which it is not used;
- *sent*, *not sent*: whether there is anything in pyvm that leads to the event.

After that, *oob* means that the command can be executed out of band, *preconfig* that it can be used before the machine
exists.  *deprecated* and *unstable* are features that introspection shows; *up to 4.2*: QEMU has it no longer.

Types are shown in pyvm's own notation, as they stand in its sources: `name?` is optional, `[type]` is a list, a union
has the members of the `case` that its tag names besides its own, an alternate is one of its branches.
"""


def reference(schema: Schema) -> str:
    """Return the whole reference as Markdown."""
    parts = [_HEAD, *_contents(), *(part for chapter in CHAPTERS for part in _chapter(schema, chapter)), *_human()]
    return "\n".join(parts).rstrip() + "\n"


def _title(chapter: str) -> str:
    return chapter.replace("-", " ").capitalize()


def _contents() -> Iterator[str]:
    yield "## Contents\n"
    for chapter in CHAPTERS:
        yield f"- [{_title(chapter)}](#{chapter})"
    yield "- [The human monitor](#the-human-monitor)\n"


def _module(chapter: str) -> str:
    return f"pyvm.monitor.schema.chapters.{chapter.replace('-', '_')}"


def _chapter(schema: Schema, chapter: str) -> Iterator[str]:
    module = importlib.import_module(_module(chapter))
    yield f'## <a id="{chapter}"></a>{_title(chapter)}\n'
    yield _paragraph(module.__doc__) + "\n"
    named = map(schema.command, schema.command_names)
    commands = [command for command in named if command is not None and command.chapter == chapter]
    if commands:
        yield "| command | arguments | returns | support | what it does |"
        yield "|---|---|---|---|---|"
        yield from map(_command_row, commands)
        yield ""
    events = [event for name in _event_names(module.TEXT) if (event := schema.event(name))]
    if events:
        yield "| event | data | support |"
        yield "|---|---|---|"
        yield from map(_event_row, events)
        yield ""
    types = _types(module.TEXT)
    if types:
        yield f"<details><summary>Types</summary>\n\n```\n{types}\n```\n\n</details>\n"


def _event_names(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.startswith("event ")]


def _types(text: str) -> str:
    """Return the definitions of types in a chapter's text, without its comments."""
    kept: list[str] = []
    wanted = False
    for line in text.splitlines():
        content = line.partition("#")[0].rstrip()
        if content and not content.startswith(" "):
            wanted = content.split()[0] not in ("command", "event")
            if wanted and kept:
                kept.append("")
        if wanted and content:
            kept.append(content)
    return "\n".join(kept)


def _paragraph(text: str | None) -> str:
    """Return a docstring's first paragraph on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _members(kind: ObjectType) -> str:
    """Return the members of arguments or data as one cell; those of a named type stand with the type."""
    if kind.name:
        return f"`{kind.name}`"
    return ", ".join(f"`{member.name}{'?' if member.optional else ''}: {member.type_name}`" for member in kind.members)


def support(command: Command) -> str:
    """Return what to expect of a command: a word of the support column, with the reason where there is one."""
    reason = ABSENT_COMMANDS.get(command.name) or ABSENT_CHAPTERS.get(command.chapter)
    if reason:
        return f"absent: {reason}"
    return "refused" if _paragraph(load_handler(command).__doc__).startswith("Refuse") else "yes"


def _command_row(command: Command) -> str:
    marks = [support(command)]
    marks += [mark for mark, there in (("oob", command.oob), ("preconfig", command.preconfig)) if there]
    marks += [feature for feature in command.features if feature in ("deprecated", "unstable")]
    if command.name in FORMER:
        marks.append("up to 4.2")
    returned = (
        "" if isinstance(command.returns, ObjectType) and not command.returns.name else f"`{command.returns.name}`"
    )
    does = _paragraph(load_handler(command).__doc__)
    cells = (f"`{command.name}`", _members(command.arguments), returned, ", ".join(marks), does)
    return "| " + " | ".join(map(_cell, cells)) + " |"


def is_sent(name: str) -> bool:
    """Return whether pyvm's sources, the schema aside, mention the event."""
    return any(f'"{name}"' in text for text in _sources())


def _sources() -> list[str]:
    if not _TEXTS:
        import pyvm

        root = Path(pyvm.__file__).parent
        passed_over = {root / "monitor" / "reference.py", root / "monitor" / "events.py"}
        paths = (path for path in sorted(root.rglob("*.py")) if "schema" not in path.parts and path not in passed_over)
        _TEXTS.extend(path.read_text() for path in paths)
    return _TEXTS


_TEXTS: list[str] = []


def _event_row(event: Event) -> str:
    marks = ["sent" if is_sent(event.name) else "not sent"]
    if event.name in THROTTLED:
        seconds, member = THROTTLED[event.name]
        marks.append(f"at most every {seconds:g} s" + (f" for each `{member}`" if member else ""))
    marks += [feature for feature in event.features if feature in ("deprecated", "unstable")]
    return "| " + " | ".join(map(_cell, (f"`{event.name}`", _members(event.arguments), ", ".join(marks)))) + " |"


def _human() -> Iterator[str]:
    from pyvm.monitor.hmp.commands import COMMANDS

    yield "## The human monitor\n"
    yield "These can be typed into `-monitor`, and sent with `human-monitor-command`.\n"
    yield "| command | what it does |"
    yield "|---|---|"
    yield from _human_rows(COMMANDS, "")


def _human_rows(table: CommandTable, path: str) -> Iterator[str]:
    for command in table.commands(initialized=True):
        words = " ".join(f"{path}{command.label} {command.parameters}".split())
        yield f"| `{_cell(words)}` | {_cell(' '.join(command.help.split()))} |"
        if command.subcommands is not None:
            yield from _human_rows(command.subcommands, f"{path}{command.names[0]} ")


def main(words: list[str]) -> int:
    """Write the reference to the file that is named."""
    if len(words) != 1:
        print("usage: python -m pyvm.monitor.reference FILE", file=sys.stderr)
        return 1
    Path(words[0]).write_text(reference(load()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
