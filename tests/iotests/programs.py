"""The programs that the suite runs: pyvm's under QEMU's names, or QEMU's own to know what fails with them."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_PYVM = {
    "qemu-img": "pyvm.tools.img.cli",
    "qemu-io": "pyvm.tools.io.cli",
    "qemu-nbd": "pyvm.tools.nbd.cli",
}
"""Modules with a function `main`."""
_VARIABLES = {
    "qemu-img": "QEMU_IMG_PROG",
    "qemu-io": "QEMU_IO_PROG",
    "qemu-nbd": "QEMU_NBD_PROG",
    "qemu-storage-daemon": "QSD_PROG",
}
_PYTHON = """\
#!{python}
import sys
sys.path.insert(0, {root!r})
from {module} import main
sys.exit(main())
"""
_REFUSAL = """\
#!/bin/sh
echo "$(basename "$0"): pyvm has no such program" >&2
exit 1
"""
# Debian's QEMU comes without its accelerator for tests; a machine that is not started has nothing else to offer either.
_REAL = """\
#!/bin/bash
words=()
for word; do
    [ "$word" = qtest ] && word=tcg
    words+=("${{word//accel=qtest/accel=tcg}}")
done
exec {program} "${{words[@]}}"
"""


def make_programs(directory: Path, *, real: bool) -> dict[str, str]:
    """Write the programs into `directory`; return the variables that name them to the suite."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = _qemu_programs() if real else _pyvm_programs()
    for name, text in texts.items():
        path = directory / name
        path.write_text(text)
        path.chmod(0o755)
    emulator = next(name for name in texts if name not in _VARIABLES)
    return {
        "QEMU_PROG": str(directory / emulator),
        **{variable: str(directory / name) for name, variable in _VARIABLES.items()},
    }


def _pyvm_programs() -> dict[str, str]:
    texts = {"pyvm": _python("pyvm.cli"), "qemu-storage-daemon": _REFUSAL}
    for name, module in _PYVM.items():
        texts[name] = _python(module) if _exists(module) else _REFUSAL
    return texts


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _python(module: str) -> str:
    return _PYTHON.format(python=sys.executable, root=str(ROOT), module=module)


def _qemu_programs() -> dict[str, str]:
    texts = {}
    for name in ("qemu-system-x86_64", *_VARIABLES):
        program = shutil.which(name)
        if program is None:
            texts[name] = _REFUSAL
        elif name in _VARIABLES:
            texts[name] = f'#!/bin/sh\nexec {program} "$@"\n'
        else:
            texts[name] = _REAL.format(program=program)
    return texts
