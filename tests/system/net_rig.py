"""A machine's networks for tests that execute each command once."""

from __future__ import annotations

from typing import Any

from pyvm.machine.network import Network
from pyvm.net.make import make_netdev
from tests.system import machine_rig

ARGUMENTS: dict[str, dict[str, Any]] = {
    "netdev_add": {"type": "hubport", "id": "new", "hubid": 7},
    "netdev_del": {"id": "old"},
    "set_link": {"name": "old", "up": False},
    "announce-self": {"initial": 50, "max": 100, "rounds": 1, "step": 10},
}
"""What makes each command succeed."""


def network() -> Network:
    """Return networks with one back end called `old`."""
    made = Network(machine_rig.shared().pc)
    make_netdev(made.host, {"type": "hubport", "id": "old", "hubid": 0})
    return made
