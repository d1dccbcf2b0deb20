"""The machine as a tree of objects, with the paths that QEMU's `pc` has.

Board chips are `/machine/unattached/device[N]`, numbered as QEMU numbers them: a number that belongs to a chip that
pyvm does not have stays free.  Devices of `-device` are in `/machine/peripheral` under their ID, or in
`/machine/peripheral-anon`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pyvm.firmware.e820 import high_ram_end
from pyvm.machine.plug.sockets import memory_room, window_start
from pyvm.machine.qom.chips import board_chips
from pyvm.machine.qom.devices import BusObject, DeviceObject, TypedObject
from pyvm.machine.qom.machine import machine_object
from pyvm.machine.qom.plugged import PluggedObjects
from pyvm.machine.qom.regions import device_memory, machine_regions
from pyvm.qom.tree import Property, QomObject, container, resolve
from pyvm.qom.types import load

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc
    from pyvm.machine.user_objects import UserObject, UserObjects

_CHARDEV_TYPES = {
    "NullChardev": "chardev-null",
    "RingbufChardev": "chardev-ringbuf",
    "FileChardev": "chardev-file",
    "PipeChardev": "chardev-pipe",
    "SocketChardev": "chardev-socket",
    "UdpChardev": "chardev-udp",
    "StdioChardev": "chardev-stdio",
    "PtyChardev": "chardev-pty",
    "SerialChardev": "chardev-serial",
    "MuxChardev": "chardev-mux",
}


class MachineTree:
    """The objects of one machine."""

    def __init__(self, pc: Pc, objects: UserObjects) -> None:
        self._pc = pc
        self._items = objects
        self._users: dict[int, tuple[UserObject, QomObject]] = {}
        self._chips_added = False
        self.root = container()
        self.machine = machine_object(pc)
        self.unattached = container(self._unattached)
        self.root.add("machine", self.machine)
        self.root.add("objects", container(self._objects))
        self.root.add("chardevs", container(self._chardevs))
        self.machine.add("unattached", self.unattached)
        self.plugged = PluggedObjects(pc, self._bus)
        self.machine.add("peripheral", self.plugged.with_id)
        self.machine.add("peripheral-anon", self.plugged.without_id)
        self._chips: dict[str, QomObject] = {}
        self._numbered: list[tuple[int, QomObject]] = []
        self._buses: dict[str, BusObject] = {}

    # ---- Looking for objects

    def resolve(self, path: str) -> QomObject:
        """Return the object at a path, absolute or partial; raises QmpError."""
        self._complete()
        return resolve(self.root, path)

    def chip_path(self, name: str) -> str:
        """Return the path of a board chip by pyvm's name for it; empty where the machine has none."""
        self._complete()
        return self._chips[name].path if name in self._chips else ""

    def device_path(self, made: object) -> str:
        """Return the path of a device that was plugged in; empty where there is no such device."""
        self._complete()
        found = self.plugged.of(made)
        return "" if found is None else found.path

    def cpu_path(self, index: int) -> str:
        """Return the path of a vCPU."""
        return f"/machine/unattached/device[{cpu_number(index)}]"

    # ---- Parts

    def _complete(self) -> None:
        """Add what is there once the machine is made."""
        if self._chips_added or not self._pc.initialized:
            return
        self._chips_added = True
        if self._pc.config.board.type == "none":
            return
        layout = board_chips(self._pc, self.plugged)
        self._chips, self._numbered, self._buses = layout.named, layout.numbered, layout.buses
        self.machine.add("fw_cfg", layout.named["fw_cfg"])
        self.machine.add("i440fx", layout.named["host"])
        room = memory_room(self._pc.config.memory)
        if room:
            start = window_start(high_ram_end(self._pc.memory.blocks))
            self.machine.add("device-memory[0]", device_memory(start, room))
        for number, chip in self._numbered:
            self.unattached.add(f"device[{number}]", chip)
        for name, found in machine_regions().items():
            self.unattached.add(name, found)
        self.unattached.add("sysbus", layout.buses["main-system-bus"])
        if self._pc.displays():
            self.root.add("backend", container()).add("console[0]", self._console())

    def _console(self) -> QomObject:
        device = Property("device", "link<device>", lambda: self.chip_path("vga") or self._plugged_vga())
        return QomObject("qemu-console", (device, Property("head", "uint32", lambda: 0)))

    def _plugged_vga(self) -> str:
        return self.device_path(self._pc.displays()[0])

    def _bus(self, name: str) -> BusObject | None:
        self._complete()
        return self._buses.get(name)

    def drop_cpu(self, index: int) -> None:
        """Forget a vCPU that the board came with."""
        self._complete()
        chip = self._chips.pop(f"cpu{index}")
        self.unattached.drop(chip)

    def _unattached(self) -> Mapping[str, QomObject]:
        return {}

    # ---- Users' objects and character devices

    def _objects(self) -> Mapping[str, QomObject]:
        found: dict[str, QomObject] = {}
        for item in self._items:
            known = self._users.get(id(item))
            if known is None or known[0] is not item:
                known = self._users[id(item)] = (item, _user_object(item))
            found[item.id] = known[1]
        if len(self._users) > 2 * len(found) + 16:
            self._users = {key: entry for key, entry in self._users.items() if entry[1] in found.values()}
        return found

    def _chardevs(self) -> Mapping[str, QomObject]:
        return {chardev.label: _chardev_object(chardev) for chardev in self._pc.chardev_set}

    # ---- Walking

    def devices(self) -> Iterator[QomObject]:
        """Yield all objects that are devices."""
        self._complete()

        def walk(start: QomObject) -> Iterator[QomObject]:
            if isinstance(start, DeviceObject):
                yield start
            for child in start.children().values():
                yield from walk(child)

        yield from walk(self.machine)


def cpu_number(index: int) -> int:
    """Return the number of a vCPU among the unattached devices: QEMU has a helper device behind the first."""
    return index if index == 0 else index + 1


def _user_object(item: UserObject) -> QomObject:
    def get(name: str) -> Any:
        return item.get(name)

    put: Callable[[str, Any], None] = item.put
    return TypedObject(load()[item.type], get, put)


def _chardev_object(chardev: Any) -> QomObject:
    kind = load().get(_CHARDEV_TYPES.get(type(chardev).__name__, "chardev-null"))
    assert kind is not None

    def get(name: str) -> Any:
        if name == "connected":
            return chardev.connected
        if name == "addr":
            return _socket_address(chardev.filename)
        raise KeyError(name)

    return TypedObject(kind, get)


def _socket_address(filename: str) -> dict[str, Any]:
    """Return the address of a socket from its description."""
    kind, _, rest = filename.removeprefix("disconnected:").partition(":")
    address = rest.partition(",")[0]
    if kind == "unix":
        return {"type": "unix", "path": address}
    if kind == "fd":
        return {"type": "fd", "str": address}
    host, _, port = address.rpartition(":")
    return {"type": "inet", "host": host.strip("[]"), "port": port}
