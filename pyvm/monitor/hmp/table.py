"""The table of commands: names, arguments, help and handlers; and finding a command for a line.

A handler takes a :class:`~pyvm.monitor.hmp.shell.Shell` and the arguments as keywords.  It returns the text to show,
each line of it ended by a newline; or raises :class:`~pyvm.monitor.errors.QmpError`, which is shown as an error.  A
handler that has to wait is a coroutine function.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pyvm.monitor.hmp.arguments import Argument, declare

Handler = Callable[..., Any]

_NAME = re.compile(r"[ \t\n\v\f\r]*([^/ \t\n\v\f\r]*)")


class Command(NamedTuple):
    """One command.  `parameters` is how its help shows the arguments."""

    names: tuple[str, ...]
    arguments: tuple[Argument, ...]
    parameters: str
    help: str
    handler: Handler
    preconfig: bool = False
    """Whether it may be used before the machine is initialised."""
    subcommands: CommandTable | None = None
    """Commands whose names follow this one's; the handler is for the name alone."""
    completes: CommandTable | None = None
    """The table whose commands are this one's argument."""

    @property
    def label(self) -> str:
        """All names, as help and messages show them."""
        return "|".join(self.names)


class UnknownCommandError(Exception):
    """There is no such command; the message is one line for the person at the prompt."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown command: '{name}'")


class CommandTable:
    """Commands by name; filled by the decorator :meth:`command`."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}

    def command(
        self,
        names: str,
        arguments: str = "",
        *,
        parameters: str = "",
        description: str,
        preconfig: bool = False,
        subcommands: CommandTable | None = None,
        completes: CommandTable | None = None,
    ) -> Callable[[Handler], Handler]:
        """Return a decorator that makes a function the handler of the command that goes by any of `names`."""

        def register(handler: Handler) -> Handler:
            command = Command(
                tuple(names.split("|")),
                declare(arguments),
                parameters,
                description,
                handler,
                preconfig,
                subcommands,
                completes,
            )
            for name in command.names:
                if name in self._commands:
                    raise ValueError(f"command {name} exists already")
                self._commands[name] = command
            return handler

        return register

    def include(self, other: CommandTable) -> None:
        """Take over all commands of another table."""
        for name, command in other._commands.items():
            if name in self._commands:
                raise ValueError(f"command {name} exists already")
            self._commands[name] = command

    def get(self, name: str) -> Command | None:
        """Return the command of that name."""
        return self._commands.get(name)

    def commands(self, initialized: bool) -> list[Command]:
        """Return all commands that can be used now, sorted by name."""
        usable = {command.label: command for command in self._commands.values() if initialized or command.preconfig}
        return [usable[label] for label in sorted(usable)]

    def names(self, prefix: str, initialized: bool) -> list[str]:
        """Return all names that begin with `prefix` and can be used now, sorted."""
        return sorted(
            name
            for name, command in self._commands.items()
            if name.startswith(prefix) and (initialized or command.preconfig)
        )

    def help(self, path: str, initialized: bool) -> str:
        """Return the help on all commands; `path` is what comes before their names."""
        return "".join(help_line(path, command) for command in self.commands(initialized))

    def find(self, line: str) -> tuple[Command, str, int]:
        """Return the command of a line, its name as it was typed, and the position behind that.

        Raises :class:`UnknownCommandError`.
        """
        table: CommandTable | None = self
        command: Command | None = None
        start = position = 0
        while table is not None:
            found = _NAME.match(line, position)
            assert found is not None, "the pattern matches the empty string"
            if command is None:
                start = found.start(1)
            elif not found[1]:
                if line[found.end() : found.end() + 1] == "/":
                    raise UnknownCommandError(line[start:position])  # a format, where a name has to follow
                break
            command, position = table.get(found[1]), found.end()
            if command is None:
                raise UnknownCommandError(line[start:position])
            table = command.subcommands
        assert command is not None, "there is at least one table"
        return command, line[start:position], position

    def complete(self, text: str, initialized: bool) -> tuple[int, list[str]]:
        """Return how long the last word of `text` is, and the names that it may become."""
        words = text.split()
        prefix = words.pop() if words and not text[-1].isspace() else ""
        table: CommandTable | None = self
        for word in words:
            command = None if table is None else table.get(word)
            table = None if command is None else command.subcommands or command.completes
        return len(prefix), [] if table is None else table.names(prefix, initialized)


def help_line(path: str, command: Command) -> str:
    """Return the help on one command."""
    return f"{path}{command.label} {command.parameters} -- {command.help}\n"
