"""Text of others for people to read."""

from __future__ import annotations


def printable(text: str | bytes) -> str:
    """Return a text without what a terminal would act on; bytes are UTF-8."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
