"""Errors meant for the person at the prompt."""

from __future__ import annotations


class ConfigError(Exception):
    """What was asked for cannot be done.  The message is one line: what was asked, and what is wrong with it."""
