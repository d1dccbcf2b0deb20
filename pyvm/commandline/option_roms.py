"""Option ROMs that a user adds to the machine: ``-option-rom``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pyvm.commandline.files import read_file
from pyvm.config import ROM_FOLDER, MachineConfig, OptionRomConfig
from pyvm.errors import ConfigError
from pyvm.options import Options

_MOST = 16
_LARGEST = 16 << 20
_LAST_INDEX = 0x7FFFFFFF
_KERNEL_INDEX = 0
"""A kernel is booted before everything that has a place in the order of booting."""


def configure_option_roms(given: Sequence[Options], config: MachineConfig) -> None:
    """Fill in the ROMs; raises ConfigError."""
    config.option_roms = [_option_rom(options) for options in given]
    if len(given) > _MOST:
        raise given[_MOST].error("too many option ROMs")
    if config.boot.kernel is not None and any(rom.bootindex == _KERNEL_INDEX for rom in config.option_roms):
        raise ConfigError(f"Two devices with same boot index {_KERNEL_INDEX}")
    names = [rom.name for rom in config.option_roms]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"duplicate fw_cfg file name: {ROM_FOLDER}{name}")


def _option_rom(options: Options) -> OptionRomConfig:
    path = options.string("romfile")
    if not path:
        raise options.error("Option ROM file is not specified")
    content = read_file(path, _LARGEST, f"Could not open option rom '{path}'")
    return OptionRomConfig(os.path.basename(path), content, _boot_index(options))


def _boot_index(options: Options) -> int | None:
    """Return the place in the order of booting; a negative one is none."""
    text = options.string("bootindex")
    if text is None:
        return None
    try:
        index = int(text, 0)
    except ValueError:
        raise options.error("Parameter 'bootindex' expects a number") from None
    if index > _LAST_INDEX:
        raise options.error(f"Parameter 'bootindex' expects a number up to {_LAST_INDEX}")
    return index if index >= 0 else None
