"""How the programs of this package end."""

from __future__ import annotations

import os
import sys

from pyvm.annotations import NoReturn


def leave(status: int) -> NoReturn:
    """End the process with `status`, or with 1 where what was printed cannot be written.

    All files are closed by now, and threads of clients may still be on their way out.  To take the interpreter apart
    as well would take longer than many a subcommand.
    """
    try:
        sys.stdout.flush()
    except OSError:
        status = status or 1
    sys.stderr.flush()
    os._exit(status)
