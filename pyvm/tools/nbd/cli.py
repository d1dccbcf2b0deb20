"""The command ``pyvm-nbd``: what its arguments ask for, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from pyvm.tools.img.errors import HelpAsked, ImgError, UsageError
from pyvm.tools.leaving import leave

PROGRAM = "pyvm-nbd"


def script() -> NoReturn:
    """Run ``pyvm-nbd`` as a program of its own."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyvm-nbd`` with the arguments `argv`, by default the process's; return the exit status."""
    from pyvm.block.errors import BlockError
    from pyvm.errors import ConfigError

    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except HelpAsked:
        from pyvm.tools.nbd.helptext import HELP

        sys.stdout.write(HELP)
        return 0
    except UsageError as error:
        complain(f"{error}\nTry `{PROGRAM} --help' for more information.")
    except (ImgError, BlockError, ConfigError) as error:
        complain(str(error))
    except OSError as error:
        complain(error.strerror or str(error))
    except KeyboardInterrupt:
        pass
    return 1


def complain(text: str) -> None:
    """Print an error."""
    sys.stdout.flush()
    sys.stderr.write(f"{PROGRAM}: {text}\n")


def _run(argv: list[str]) -> int:
    from pyvm.tools.nbd import options

    settings = options.read(argv)
    if settings is None:
        from pyvm import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    if settings.trace is not None:
        _trace(settings.trace)
    if settings.listing:
        from pyvm.tools.nbd.listing import show

        return show(settings)
    from pyvm.tools.nbd.serving import serve

    return serve(settings)


def _trace(text: str) -> None:
    """Warn of events that are to be traced: there are none."""
    from pyvm.options import Group, parse

    options = parse(Group("trace", "enable", {"enable": "string", "events": "string", "file": "string"}), text)
    pattern = options.string("enable")
    if pattern and "*" not in pattern:
        complain(f"warning: trace event '{pattern.lstrip('-')}' does not exist")


if __name__ == "__main__":
    script()
