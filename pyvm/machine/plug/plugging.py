"""Plugging devices into the board: what `-device` and `-drive` ask for, on the buses that are there.

The one place that turns a device record of the configuration into a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from pyvm.block.errors import BlockError
from pyvm.config import ROM_FOLDER, DeviceConfig
from pyvm.devices.properties import DeviceModel, find_model, in_use, not_found, set_properties
from pyvm.errors import ConfigError, MissingError
from pyvm.machine.board import SERIAL_PORTS
from pyvm.machine.disks import Disks
from pyvm.machine.entropy import BuiltinEntropy, Entropy
from pyvm.machine.plug.boot_places import card_path, cards, check_boot_index, read_rom
from pyvm.machine.plug.buses import Buses
from pyvm.machine.plug.models import DEVICE_MODELS, GUARDS, PCI_CARDS, VIRTIO_PCI, variant
from pyvm.memory import OverlapError
from pyvm.records import field, record, replace

if TYPE_CHECKING:
    from pyvm.chardev.base import Chardev
    from pyvm.chardev.registry import ChardevSet
    from pyvm.config import MachineConfig
    from pyvm.devices.display.vga import Vga
    from pyvm.devices.e1000.card import E1000
    from pyvm.devices.pci.bus import PciBus
    from pyvm.devices.pci.function import PciFunction
    from pyvm.devices.virtio.balloon import VirtioBalloon
    from pyvm.devices.virtio.blk import VirtioBlk
    from pyvm.devices.virtio.console import VirtioConsole
    from pyvm.devices.virtio.console_port import ConsolePort
    from pyvm.devices.virtio.pci import AnyVirtioDevice, VirtioPci
    from pyvm.devices.virtio.rng import VirtioRng
    from pyvm.devices.virtio.scsi import VirtioScsi
    from pyvm.devices.virtio.vsock import VirtioVsock
    from pyvm.devices.vmgenid import VmGenId
    from pyvm.machine.board import Board
    from pyvm.machine.network import Network
    from pyvm.machine.plug.sockets import Sockets
    from pyvm.machine.storage import Storage
    from pyvm.machine.user_objects import UserObjects
    from pyvm.machine.video import Display
    from pyvm.net.vsock import VsockHost

_TRANSPORT = ("vectors", "packed", "event_idx", "indirect_desc", "any_layout", "notify_on_empty", "queue_reset")
_NEXT_FREE = 0xFFFFFFFF
_VGA_SLOT = "02.0"
_LAST_INDEX = 0x3FFF


@record(frozen=True)
class PlugEvents:
    """What plugged devices tell the machine."""

    guest_opened_port: Callable[[str, bool], None]
    """The ID of a virtio-serial port, and whether the guest has it open now."""
    balloon_changed: Callable[[int], None]
    """How many bytes of memory the guest has now."""
    debug_exit: Callable[[int], None]
    """The exit status that the guest asks for."""
    watchdog_expired: Callable[[], None]
    """The guest was silent for too long."""
    guest_panicked: Callable[[], None]
    crash_kernel_started: Callable[[], None]


@record(eq=False)
class PluggedDevice:
    """One device that was plugged in: what was asked for, and what came of it."""

    config: DeviceConfig
    model: DeviceModel
    values: dict[str, Any]
    """All properties of the model."""
    made: object
    built_in: bool = False
    """Whether the board has the device by itself."""
    hotplugged: bool = False
    """Whether it came when the machine existed already."""
    realized: bool = True
    """Whether it is on its bus."""
    number: int = 0
    """How many devices without an ID the user had plugged in before."""
    entropy: Entropy | None = None


@record
class Plugged:
    """All plugged devices, for whoever looks for one."""

    identifiers: dict[str, object] = field(default_factory=dict)
    serial_buses: dict[str, VirtioConsole] = field(default_factory=dict)
    """By the name of the bus, as in ``virtio-serial0.0``."""
    pci_buses: dict[str, PciBus] = field(default_factory=dict)
    """Those behind bridges, by the name of the bus."""
    balloon: VirtioBalloon | None = None
    display: Display | None = None
    panic_port: int = 0
    generation_id: VmGenId | None = None
    virtio: list[AnyVirtioDevice] = field(default_factory=list)
    vsock_hosts: dict[VirtioVsock, VsockHost] = field(default_factory=dict)
    """What serves the programs on the host, by the device."""
    cards: list[E1000] = field(default_factory=list)
    devices: list[PluggedDevice] = field(default_factory=list)
    """All devices in the order in which they came."""


class Plugger:
    """Makes devices from their records.  Errors are ConfigErrors with the option as it was typed."""

    def __init__(
        self,
        board: Board,
        config: MachineConfig,
        chardevs: ChardevSet,
        storage: Storage,
        events: PlugEvents,
        objects: UserObjects,
        network: Network,
    ) -> None:
        self.plugged = Plugged()
        self.disks = Disks(board, config, storage)
        self.buses = Buses(self)
        self._board = board
        self._config = config
        self._chardevs = chardevs
        self._events = events
        self._objects = objects
        self._network = network
        self._pci_target = board.pci
        """Where the PCI device that is being plugged in goes."""
        self.sockets: Sockets | None = None
        """Where CPUs and memory modules go."""
        self._hotplugged = False
        """Whether the device that is being plugged in comes when the machine existed already."""
        self._anonymous = 0
        self._entropy: Entropy | None = None
        """What the device that is being plugged in draws from."""

    def plug_all(self) -> None:
        """Plug in all that the configuration names: what the board has by itself, devices, and drives on PCI."""
        if self._config.vga == "std":
            self.plug(DeviceConfig("VGA", properties={"addr": _VGA_SLOT}), built_in=True)
        drives = (*self._config.drives, *self._config.default_drives)
        wanted = [device for drive in drives if (device := self.disks.device_for(drive)) is not None]
        for device in wanted:
            if device.bus is not None:
                self._with_origin(device.origin, self._plug_built_in, device)
        for device in (*self._config.devices, *(device for device in wanted if device.bus is None)):
            self._with_origin(device.origin, self.plug, device)
        self.disks.add_floppy_controller()

    def _plug_built_in(self, device: DeviceConfig) -> None:
        self.plug(device, built_in=True)

    @staticmethod
    def _with_origin(origin: str, action: Callable[[Any], object], argument: Any) -> None:
        try:
            action(argument)
        except ConfigError as error:
            raise type(error)(f"{origin}: {error}" if origin else str(error)) from None

    def boot_order(self) -> bytes:
        """Return what has a boot index as firmware in the guest wants to have it; empty where nothing has one."""
        found = [(index, card_path(function)) for index, function in cards(self._board.pci, self.plugged.devices)]
        for rom in self._config.option_roms:
            if rom.bootindex is not None:
                found.append((rom.bootindex, f"/rom@{ROM_FOLDER}{rom.name}"))
        return self.disks.boot_order(found)

    def card_places(self) -> dict[int, int]:
        """Return the boot indices of network cards by slot << 3 | function."""
        found = cards(self._board.pci, self.plugged.devices)
        return {function.slot << 3 | function.fn: index for index, function in found}

    def pause(self) -> None:
        """The guest has stopped."""
        for device in self.plugged.virtio:
            device.pause()
        for card in self.plugged.cards:
            card.pause()

    def resume(self) -> None:
        """The guest is about to run."""
        for device in self.plugged.virtio:
            device.resume()
        for card in self.plugged.cards:
            card.resume()

    def close(self) -> None:
        """Let go what entropy comes from."""
        for device in self.plugged.devices:
            if device.entropy is not None:
                device.entropy.release()
        for host in self.plugged.vsock_hosts.values():
            host.close()

    def plug(self, device: DeviceConfig, *, built_in: bool = False, hotplugged: bool = False) -> PluggedDevice:
        """Plug one device in; raises ConfigError."""
        model = find_model(DEVICE_MODELS, device.driver)
        values = set_properties(model, device.properties, typed=device.typed, overrides=self._config.globals)
        check_boot_index(values, self.plugged.devices, self._config.option_roms)
        self._entropy = None
        self._hotplugged = hotplugged
        try:
            there = device if model.bus is None else replace(device, bus=self.buses.choose(model, device.bus))
            made = self._make(model, there, values)
        except (ValueError, BlockError, OverlapError) as error:
            self._drop_entropy()
            raise ConfigError(str(error)) from None
        except ConfigError:
            self._drop_entropy()
            raise
        if device.id is not None:
            self.plugged.identifiers[device.id] = made
        plugged = PluggedDevice(device, model, values, made, built_in, hotplugged, entropy=self._entropy)
        if device.id is None and not built_in:
            plugged.number = self._anonymous
            self._anonymous += 1
        self.plugged.devices.append(plugged)
        return plugged

    def _drop_entropy(self) -> None:
        """Let go what a device that could not be made draws from."""
        if self._entropy is not None:
            self._entropy.release()

    def _make(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> object:
        if model.name in GUARDS:
            return self._plug_guard(model, device, values)
        if model.bus is None and self.sockets is not None:
            return self.sockets.plug(model, device, values)
        plain, suffix = variant(model.name)
        if plain in VIRTIO_PCI:
            self._pci_target = self._find_pci_bus(device)
            return self._plug_virtio(model, plain, suffix, device, values)
        if model.name == "pci-bridge":
            self._pci_target = self._find_pci_bus(device)
            return self._plug_bridge(device, values)
        if model.name in PCI_CARDS:
            self._pci_target = self._find_pci_bus(device)
            return self._plug_card(model, device, values)
        if model.name == "VGA":
            self._pci_target = self._find_pci_bus(device)
            return self._plug_vga(values)
        plug = {
            "virtio-serial-bus": self._plug_port,
            "IDE": self.disks.plug_ide,
            "SCSI": self.disks.plug_scsi,
            "floppy-bus": self.disks.plug_floppy,
        }.get(model.bus or "")
        if plug is not None:
            return plug(model, device, values)
        if model.name == "isa-debug-exit":
            return self._plug_debug_exit(values)
        if model.name == "isa-debugcon":
            chardev = self._chardev(model, values)
            if chardev is None:
                raise ConfigError("Can't create debugcon device, empty char device")
            return self.add_debug_console(chardev, values["iobase"], values["readback"])
        return self._plug_serial(model, values)

    def _find_pci_bus(self, device: DeviceConfig) -> PciBus:
        """Return the PCI bus that a device is to be plugged into."""
        return self.plugged.pci_buses.get(device.bus or "", self._board.pci)

    def _plug_bridge(self, device: DeviceConfig, values: dict[str, Any]) -> PciFunction:
        from pyvm.devices.pci.bridge import PciBridge

        board = self._board
        bridge = PciBridge("pci-bridge", board.ports, board.mmio, chassis=values["chassis_nr"])
        self._install(bridge, device, values)
        self.plugged.pci_buses[device.id or self.buses.numbered("pci")] = bridge.secondary_bus
        return bridge

    def _chardev(self, model: DeviceModel, values: dict[str, Any]) -> Chardev | None:
        """Return the free port of the back end that a device's `chardev` property names."""
        name = values["chardev"]
        if name is None:
            return None
        chardev = self._chardevs.find(name)
        if chardev is None:
            raise not_found(model, "chardev", name)
        port = chardev.port()
        if port.frontend is not None:
            raise in_use(model, "chardev", name)
        return port

    # ---- Virtio

    def _plug_virtio(
        self, model: DeviceModel, plain: str, suffix: str, device: DeviceConfig, values: dict[str, Any]
    ) -> VirtioPci:
        makers: dict[str, Callable[[DeviceModel, DeviceConfig, dict[str, Any]], AnyVirtioDevice]] = {
            "virtio-serial-pci": self._make_console,
            "virtio-balloon-pci": self._make_balloon,
            "virtio-rng-pci": self._make_rng,
            "virtio-blk-pci": lambda model, device, values: self.disks.make_virtio_disk(model, device, values),
            "virtio-net-pci": lambda model, device, values: self._network.make_virtio(model, device, values),
            "virtio-scsi-pci": self._make_scsi_host,
            "virtio-vsock-pci": self._make_vsock,
        }
        from pyvm.devices.virtio.pci import VirtioPci

        made = makers[plain](model, device, values)
        try:
            function = VirtioPci(
                model.name,
                made,
                self._board.memory,
                disable_legacy=suffix == "-non-transitional" or values["disable-legacy"] == "on",
                disable_modern=values["disable-modern"],
                **{name: values[name] for name in _TRANSPORT if name in values},
            )
            name = self._install(function, device, values)
        except BaseException:
            self._abandon(made)
            raise
        self._board.components[f"{name}/virtio"] = made
        self.plugged.virtio.append(made)
        self.disks.plugged(made, function, values)
        return function

    def _abandon(self, made: AnyVirtioDevice) -> None:
        """Undo the making of a device for which there is no place."""
        self.forget(made)
        host = self.plugged.vsock_hosts.pop(cast("VirtioVsock", made), None)
        if host is not None:
            host.close()
        ready = getattr(made, "source_ready", None)
        if self._entropy is not None and ready in self._entropy.waiting:
            self._entropy.waiting.remove(ready)
        if made.name == "virtio-blk":
            self.disks.spare(cast("VirtioBlk", made).backend)

    def forget(self, inner: Any) -> None:
        """What was behind a PCI function is there no more: neither for other devices nor for the network."""
        plugged = self.plugged
        if inner is plugged.balloon:
            plugged.balloon = None
        plugged.serial_buses = {name: console for name, console in plugged.serial_buses.items() if console is not inner}
        self.disks.host_unplugged(inner)
        client = getattr(inner, "client", None)
        if client is not None:
            self._network.drop_client(client)

    def _install(self, function: PciFunction, device: DeviceConfig, values: dict[str, Any]) -> str:
        """Put a function on its bus, and among the board's components; return its name there."""
        function.identifier = device.id or ""
        self._attach(function, values)
        if device.id is not None:
            name = self._board.name_for(device.id)
        else:
            behind = next((f"{name}/" for name, bus in self.plugged.pci_buses.items() if bus is function.bus), "")
            name = f"{function.name}@{behind}{function.slot:02x}.{function.fn}"
        self._board.components[name] = function
        return name

    def _attach(self, function: PciFunction, values: dict[str, Any]) -> None:
        address = values["addr"]
        slot, number = (None, 0) if address is None else divmod(address, 8)
        self._check_index(values.get("acpi-index", 0))
        self._check_reachable(function.name, slot, number)
        rom = read_rom(values)
        if rom is not None:
            function.add_rom(*rom)
        self._pci_target.attach(function, slot, number)

    def _check_index(self, index: int) -> None:
        if index > _LAST_INDEX:
            raise ConfigError(f"acpi-index should be less or equal to {_LAST_INDEX}")
        if index and any(device.values.get("acpi-index") == index for device in self.plugged.devices):
            raise ConfigError(f"a PCI device with acpi-index = {index} already exist")

    def _check_reachable(self, name: str, slot: int | None, number: int) -> None:
        """Raise ConfigError for a further function of a slot when the guest may have looked at the slot already."""
        first = self._pci_target.function_at(slot) if number and slot is not None else None
        if self._hotplugged and first is not None and self._pci_target.function_at(slot or 0, number) is None:
            raise ConfigError(
                f"PCI: slot {slot} function 0 already occupied by {first.name}, new func {name} cannot be exposed to"
                " guest."
            )

    def _plug_vga(self, values: dict[str, Any]) -> Vga:
        from pyvm.machine.video import Display

        display = self.plugged.display = Display(self._board)
        self._attach(display.vga, values)
        self._board.components["vga"] = display.vga
        return display.vga

    def _make_console(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> VirtioConsole:
        from pyvm.devices.virtio.console import VirtioConsole

        del model
        console = VirtioConsole(max_ports=values["max_ports"], emergency_write=values["emergency-write"])
        console.on_guest_open = self._guest_opened
        name = f"{device.id}.0" if device.id else self.buses.numbered("virtio-serial-bus")
        self.plugged.serial_buses[name] = console
        return console

    def _guest_opened(self, port: ConsolePort, opened: bool) -> None:
        for identifier, device in self.plugged.identifiers.items():
            if device is port:
                self._events.guest_opened_port(identifier, opened)

    def _make_scsi_host(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> VirtioScsi:
        del model
        return self.disks.make_scsi_host(f"{device.id}.0" if device.id else self.buses.numbered("scsi"), values)

    def _make_balloon(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> VirtioBalloon:
        del model, device
        if self.plugged.balloon is not None:
            raise ConfigError("Only one balloon device is supported")
        from pyvm.devices.virtio.balloon import VirtioBalloon

        balloon = VirtioBalloon(
            self._board.clock,
            deflate_on_oom=values["deflate-on-oom"],
            free_page_reporting=values["free-page-reporting"],
            page_poison=values["page-poison"],
        )
        balloon.on_change = self._events.balloon_changed
        balloon.set_polling_interval(values["guest-stats-polling-interval"])
        self.plugged.balloon = balloon
        return balloon

    def _make_rng(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> VirtioRng:
        del model, device
        from pyvm.devices.virtio.rng import VirtioRng

        source = self._entropy = self._random_source(values["rng"])
        rng = VirtioRng(self._board.clock, source.read, max_bytes=values["max-bytes"], period=values["period"])
        source.waiting.append(rng.source_ready)
        return rng

    def _make_vsock(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> VirtioVsock:
        del model, device
        from pyvm.machine.plug.vsock import make_vsock

        made, host = make_vsock(self._network.host.loop, self._board.clock, values)
        self.plugged.vsock_hosts[made] = host
        return made

    def _random_source(self, name: str | None) -> Entropy:
        if name is None:
            return BuiltinEntropy()
        found = self._objects.find(name)
        source = getattr(found, "entropy", None)
        if source is None:
            raise MissingError(f"Device '{name}' not found")
        assert isinstance(source, Entropy)
        source.hold()
        return source

    # ---- Virtio-serial ports

    def _plug_port(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> ConsolePort:
        from pyvm.devices.virtio.console_port import ConsolePort

        chardev = self._chardev(model, values)
        is_console = model.name == "virtconsole"
        port = ConsolePort(nr=values["nr"], name=values["name"] or "", chardev=chardev, console=is_console)
        self.plugged.serial_buses[device.bus or ""].add_port(port)
        return port

    # ---- Network cards

    def _plug_card(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> PciFunction:
        function = self._network.make_e1000(model, device, values, self._board.memory)
        try:
            name = self._install(function, device, values)
        except BaseException:
            self.forget(function.device)
            raise
        self._board.components[f"{name}/card"] = function.device
        self.plugged.cards.append(function.device)
        return function

    # ---- Watchdogs and the like

    def _plug_guard(self, model: DeviceModel, device: DeviceConfig, values: dict[str, Any]) -> object:
        from pyvm.machine.plug.guards import Guards

        if model.bus == "PCI":
            self._pci_target = self._find_pci_bus(device)
        elif model.bus is None and device.bus is not None:
            raise ConfigError(f"Device '{model.name}' can't go on a bus")
        guards = Guards(
            self._board, self._events, self.plugged, lambda function: self._install(function, device, values)
        )
        return guards.plug(model.name, device, values)

    # ---- ISA

    def _plug_debug_exit(self, values: dict[str, Any]) -> object:
        from pyvm.devices.isa_debug_exit import IsaDebugExit

        device = IsaDebugExit(self._events.debug_exit, iobase=values["iobase"], iosize=values["iosize"])
        self._board.ports.add(device.iobase, device.iosize, device.read, device.write, "isa-debug-exit")
        return device

    def add_debug_console(self, chardev: Chardev, port: int, readback: int = 0xE9) -> object:
        """Plug in a debug console: a byte written to its port goes to `chardev`."""
        from pyvm.devices.debugcon import DebugConsole

        device = DebugConsole(chardev, readback)
        self._board.components[f"debugcon@{port:x}"] = device
        self._board.ports.add(port, 1, device.read, device.write, "isa-debugcon", max_access=1)
        return device

    def _plug_serial(self, model: DeviceModel, values: dict[str, Any]) -> object:
        free = [number for number in range(len(SERIAL_PORTS)) if not self._board.has_serial(number)]
        number = values["index"]
        if number == _NEXT_FREE:
            if not free:
                raise ConfigError(f"Max. supported number of ISA serial ports is {len(SERIAL_PORTS)}.")
            number = free[0]
        if number not in free:
            raise ConfigError(f"serial port {number} is taken or does not exist")
        self._board.add_serial(number, self._chardev(model, values))
        return self._board.serials[number]
