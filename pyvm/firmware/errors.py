"""What goes wrong while a machine is made ready to boot."""

from __future__ import annotations


class BootError(ValueError):
    """A kernel, initrd or command line cannot be booted; the message is one line for the person at the prompt."""
