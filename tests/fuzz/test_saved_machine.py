"""Saved machines with something else in them: they are refused, or they are machines."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pyvm import Machine
from pyvm.errors import ConfigError
from pyvm.migration.state_file import read_state, write_state

OPTIONS = ("-S", "-m", "16", "-smp", "2", "-device", "virtio-serial-pci", "-device", "virtio-balloon-pci")
ROUNDS = 150
VALUES = (0, 1, -1, 255, 1 << 31, 1 << 63, 1 << 64, "", "x", b"", b"\xff" * 64, None, True, [], [0] * 40, {}, {"x": 1})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved machine without a guest."""
    folder = tmp_path_factory.mktemp("folder") / "saved"
    with Machine(*OPTIONS) as vm:
        vm.snapshot(folder)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def change(sections: dict[str, Any], source: random.Random) -> str:
    """Put another value, or none, in some place; return what was done."""
    *way, last = source.choice([place for place in places(sections) if place])
    target: Any = sections
    for key in way:
        target = target[key]
    if source.random() < 0.2:
        del target[last]
        return f"{way} {last} removed"
    before = target[last]
    near = isinstance(before, int) and not isinstance(before, bool) and source.random() < 0.5
    target[last] = before ^ 1 << source.randrange(64) if near else source.choice(VALUES)
    return f"{way} {last} = {target[last]!r}"


@pytest.mark.parametrize("seed", range(3))
def test_other_states(saved: Path, tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    folder = tmp_path / "changed"
    shutil.copytree(saved, folder)
    refused = 0
    for number in range(ROUNDS // 3):
        header, sections = read_state(str(saved / "state"))
        done = [change(sections, source) for _ in range(source.randint(1, 3))]
        (folder / "state").unlink()
        write_state(str(folder / "state"), header, sections)
        machine = Machine(*OPTIONS, "-incoming", f"file:{folder}")
        try:
            with machine:
                assert machine.qmp("query-status")["status"] == "prelaunch"
                machine.resume()
                machine.pause()
        except ConfigError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"round {number}: {done}") from error
    assert refused
