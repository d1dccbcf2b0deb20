"""``python -m pyvm`` is ``pyvm``."""

from __future__ import annotations

import sys

from pyvm.cli import main

sys.exit(main())
