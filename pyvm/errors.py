"""Errors meant for the person at the prompt."""

from __future__ import annotations


class ConfigError(Exception):
    """What was asked for cannot be done.  The message is one line: what was asked, and what is wrong with it."""


class MissingError(ConfigError):
    """What is named is not there: monitors tell this from other errors."""
