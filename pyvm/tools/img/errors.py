"""What ends a subcommand."""

from __future__ import annotations


class ImgError(Exception):
    """The subcommand failed; `text` is for the person at the prompt, `status` the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class UsageError(ImgError):
    """The command line is wrong; the text is followed by where to find help."""


class HelpAsked(Exception):  # noqa: N818 - nothing went wrong
    """The person asked for help."""
