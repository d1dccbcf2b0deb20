"""What a machine needs of the host's side for commands about input, dumps, character devices and descriptors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyvm.chardev.registry import ChardevSet
from pyvm.clock import ManualClock, RunningClock
from pyvm.cpu.registers import RegisterState
from pyvm.devices.ps2_keyboard import Ps2Keyboard
from pyvm.devices.ps2_mouse import Ps2Mouse
from pyvm.input import InputRouter, KeyboardInput, MouseInput
from pyvm.machine.dump.dumper import Dumper
from pyvm.mainloop import MainLoop
from pyvm.memory import IoSpace, pc_ram_blocks
from pyvm.migration.settings import MigrationSettings
from pyvm.monitor.descriptors import FdSets
from pyvm.monitor.schema.model import load
from pyvm.monitor.trace import TraceEvents
from tests.unit.monitor_support import Bench, Client
from tests.unit.scratch_ram import scratch_ram

NULL: dict[str, Any] = {"type": "null", "data": {}}

REFUSED = frozenset(
    {
        *("query-rocker", "query-rocker-ports", "query-rocker-of-dpa-flows", "query-rocker-of-dpa-groups"),
        *("replay-break", "replay-delete-break", "replay-seek", "set_password", "expire_password", "closefd"),
        *("change-vnc-password", "display-update"),
        *("migrate", "migrate-continue", "migrate-incoming", "migrate-pause", "migrate-recover"),
        *("migrate-start-postcopy", "client_migrate_info", "x-colo-lost-heartbeat"),
        *("xen-save-devices-state", "xen-load-devices-state", "snapshot-save", "snapshot-load", "snapshot-delete"),
        *("nbd-server-start", "nbd-server-stop", "nbd-server-add", "nbd-server-remove"),
        *("block-export-add", "block-export-del"),
    }
)
"""Commands that fail on a machine without what they are about."""


class Host:
    """The host's side of a bench's machine."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        machine: Any = bench.machine
        self._loop = MainLoop(RunningClock())
        self.devices = machine.chardev_set = ChardevSet(self._loop)
        machine.chardevs = self.devices.query
        machine.input = InputRouter(ManualClock(), lambda: True)
        machine.input.register(KeyboardInput(Ps2Keyboard(), lambda: None))
        machine.input.register(MouseInput(Ps2Mouse(), lambda: None))
        self._memory = machine.memory = scratch_ram(1 << 20, pc_ram_blocks(1 << 20))
        machine.mmio = IoSpace("memory")
        machine.register_states = lambda: [RegisterState()]
        machine.dumper = Dumper(machine, bench.events.emit)
        machine.traces = TraceEvents(lambda: load().command_names)
        machine.set_actions = lambda **actions: None
        machine.migration = MigrationSettings()
        self._sets = machine.fdsets = FdSets()
        self._folder = folder

    def close(self) -> None:
        """Give back what the host has given."""
        self._sets.close()
        self._memory.close()
        self.devices.close_all()
        self._loop.close()

    def prepare(self, client: Client) -> dict[str, dict[str, Any]]:
        """Return arguments with which each of the commands can be called once, and make what they name.

        Nothing is made where capabilities are still to be negotiated.
        """
        if client.monitor.session is None or client.monitor.session.negotiating:
            return {}
        client.wire.take_fds = lambda: [os.open(os.devnull, os.O_RDWR)]  # type: ignore[method-assign]
        client.execute("getfd", fdname="passed")
        self._sets.add(os.open(os.devnull, os.O_RDWR), 0)
        client.execute("chardev-add", id="ring", backend={"type": "ringbuf", "data": {}})
        client.execute("chardev-add", id="free", backend=NULL)
        file = str(self._folder / "file")
        rocker = {"name": "sw1"}
        return {
            "watchdog-set-action": {"action": "pause"},
            "ringbuf-write": {"device": "ring", "data": "x"},
            "ringbuf-read": {"device": "ring", "size": 1},
            "chardev-add": {"id": "pty", "backend": {"type": "pty", "data": {}}},
            "chardev-change": {"id": "free", "backend": NULL},
            "chardev-remove": {"id": "free"},
            "chardev-send-break": {"id": "free"},
            "dump-guest-memory": {"paging": False, "protocol": f"file:{file}"},
            "memsave": {"val": 0, "size": 16, "filename": file},
            "pmemsave": {"val": 0, "size": 16, "filename": file},
            "query-rocker": rocker,
            "query-rocker-ports": rocker,
            "query-rocker-of-dpa-flows": rocker,
            "query-rocker-of-dpa-groups": rocker,
            "change-vnc-password": {"password": "x"},
            "display-reload": {"type": "vnc"},
            "display-update": {"type": "vnc"},
            "set_password": {"protocol": "vnc", "password": "x"},
            "expire_password": {"protocol": "vnc", "time": "now"},
            "send-key": {"keys": [{"type": "qcode", "data": "a"}]},
            "input-send-event": {"events": []},
            "xen-set-global-dirty-log": {"enable": True},
            "xen-set-replication": {"enable": True, "primary": True},
            "trace-event-get-state": {"name": "qmp_*"},
            "trace-event-set-state": {"name": "qmp_*", "enable": False},
            "replay-break": {"icount": 1},
            "replay-seek": {"icount": 1},
            "yank": {"instances": []},
            "add_client": {"protocol": "vnc", "fdname": "passed"},
            "getfd": {"fdname": "other"},
            "closefd": {"fdname": "missing"},
            "remove-fd": {"fdset-id": 0},
            "migrate": {"uri": "unix:x"},
            "migrate-continue": {"state": "device"},
            "migrate-incoming": {"uri": "unix:x"},
            "migrate-recover": {"uri": "unix:x"},
            "migrate-set-capabilities": {"capabilities": [{"capability": "xbzrle", "state": True}]},
            "migrate_set_downtime": {"value": 0.5},
            "migrate_set_speed": {"value": 1},
            "migrate-set-cache-size": {"value": 1 << 20},
            "client_migrate_info": {"protocol": "spice", "hostname": "x"},
            "snapshot-save": {"job-id": "j", "tag": "t", "vmstate": "n", "devices": []},
            "snapshot-load": {"job-id": "j", "tag": "t", "vmstate": "n", "devices": []},
            "snapshot-delete": {"job-id": "j", "tag": "t", "devices": []},
            "xen-save-devices-state": {"filename": file},
            "xen-load-devices-state": {"filename": file},
        }
