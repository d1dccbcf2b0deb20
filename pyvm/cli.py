"""The command ``pyvm``: QEMU's command line in, a running machine out.

Only what the command line needs is imported before it has been checked, so that help and errors come at once.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvm.commandline import HelpRequest, parse_arguments
from pyvm.errors import ConfigError

if TYPE_CHECKING:
    from pyvm.config import MachineConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyvm`` with the arguments `argv`, by default the process's; return the exit status."""
    # Next to nothing of what a start makes is garbage, and to look for that takes a tenth of the time.
    gc.disable()
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    finally:
        gc.enable()


def _main(arguments: list[str]) -> int:
    try:
        config = parse_arguments(arguments, terminal=_on_terminal())
    except HelpRequest as request:
        return _help(request)
    except ConfigError as error:
        complain(str(error))
        return 1
    try:
        return _run(config)
    except ConfigError as error:
        complain(str(error), config)
        return 1
    except KeyboardInterrupt:
        return 130


def complain(message: str, config: MachineConfig | None = None) -> None:
    """Tell the person at the prompt what is wrong, in the form that ``-msg`` asked for."""
    prefix = ""
    if config is not None and config.message_timestamps:
        now = time.time()
        prefix += time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1_000_000):06d}Z "
    if config is not None and config.message_guest_name and config.name:
        prefix += f"{config.name} "
    print(f"{prefix}pyvm: {message}", file=sys.stderr)


def _on_terminal() -> bool:
    try:
        return os.isatty(0) and os.isatty(1)
    except OSError:
        return False


def _help(request: HelpRequest) -> int:
    from pyvm.commandline.helptext import answer

    try:
        print(answer(request), flush=True)
    except ConfigError as error:
        complain(str(error))
        return 1
    except BrokenPipeError:
        # The reader has seen enough; keep Python from trying again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _run(config: MachineConfig) -> int:
    """Build the machine and run it to its end, in the background where that was asked for."""
    from pyvm.daemon import detach, write_pidfile

    parent_ready = detach() if config.daemonize else lambda: None
    if config.process_name:
        _name_process(config.process_name)
    if config.pidfile is not None:
        write_pidfile(config.pidfile)
    if config.sandbox is not None:
        from pyvm.sandbox import enter

        enter(config.sandbox)
    config.ready = parent_ready
    from pyvm.native import barrier

    barrier()  # the first one takes the kernel many milliseconds once the process has threads
    if config.restore is not None or config.loadvm is not None:
        from pyvm.machine.saved.ahead import read_saved

        read_saved(config)
    from pyvm.machine import run

    return run(config)


def _name_process(name: str) -> None:
    with open("/proc/self/comm", "wb") as file:
        file.write(os.fsencode(name))
