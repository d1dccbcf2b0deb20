"""What a machine that was saved needs soon: read from the host's disk while Python still imports modules.

A tester's host may start such a machine once in a while, and has let its files go meanwhile.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pyvm.native import read_ahead

if TYPE_CHECKING:
    from pyvm.config import MachineConfig

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_RAM = "ram"
"""The name of the file that is mapped to be RAM, in the folder of a saved machine."""


def read_saved(config: MachineConfig) -> None:
    """Begin to read the byte code, and the RAM of a machine that is restored from a folder; nothing waits for it."""
    paths = [_PACKAGE]
    if config.restore is not None:
        paths.append(os.path.join(config.restore, _RAM))
    read_ahead([os.fsencode(path) for path in paths], f".{sys.implementation.cache_tag}.pyc".encode())
