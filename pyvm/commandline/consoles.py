"""Options about back ends and what stands on them: serial ports, monitors, the debug console, the terminal."""

from __future__ import annotations

from typing import Literal

from pyvm.chardev.options import MuxOptions, StdioOptions
from pyvm.commandline.chardevs import from_chardev_option, from_short_form
from pyvm.commandline.reader import CommandLine
from pyvm.commandline.vnc import add_display, configure_vnc
from pyvm.config import SERIAL_PORTS, ChardevConfig, MachineConfig, MonitorConfig
from pyvm.errors import ConfigError
from pyvm.monitor.gdb import CHARDEV, device_options
from pyvm.options import Options

_DISPLAYS = ("gtk", "sdl", "curses", "egl-headless", "spice-app", "dbus", "cocoa")
_VGAS = ("cirrus", "vmware", "qxl", "virtio", "xenfb", "tcx", "cg3")
# A serial port given as a device takes the place of the one that is there by default.
_SERIAL_DEVICES = ("isa-serial",)


def configure(line: CommandLine, config: MachineConfig, *, terminal: bool) -> None:
    """Fill in the records about back ends, serial ports and monitors."""
    for options in line.groups["chardev"]:
        _add(config, from_chardev_option(options))
    for text, origin in line.serials:
        _serial(config, text, origin)
    for given in line.monitors:
        if isinstance(given, Options):
            _mon(config, given)
        else:
            _monitor(config, *given)
    _debugcon(line, config)
    _gdb(line, config)
    _qtest(line, config)
    _check_display(line)
    configure_vnc(line, config)
    _vga(line, config)
    if not config.nodefaults:
        _add_defaults(line, config, terminal=terminal)
    _check_sharing(config)


def _add(config: MachineConfig, chardev: ChardevConfig) -> None:
    if any(other.id == chardev.id for other in config.chardevs):
        raise ConfigError(f"{chardev.origin}: Duplicate ID '{chardev.id}' for chardev")
    if isinstance(chardev.options, StdioOptions) and _stdio_taken(config):
        raise ConfigError(f"{chardev.origin}: cannot use stdio by multiple character devices")
    if isinstance(chardev.options, StdioOptions) and config.daemonize:
        raise ConfigError(f"{chardev.origin}: cannot use stdio with -daemonize")
    config.chardevs.append(chardev)


def _stdio_taken(config: MachineConfig) -> bool:
    return any(isinstance(chardev.options, StdioOptions) for chardev in config.chardevs)


def _backend(config: MachineConfig, text: str, identifier: str, origin: str, *, implicit_server: bool = False) -> str:
    """Return the ID of the back end that `text` names or describes."""
    described = from_short_form(text, identifier, origin, implicit_server=implicit_server)
    if isinstance(described, str):
        return _find(config, described, origin).id
    _add(config, described)
    return identifier


def _find(config: MachineConfig, name: str, origin: str) -> ChardevConfig:
    try:
        return config.chardev(name)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _serial(config: MachineConfig, text: str, origin: str) -> None:
    if config.board.type == "none":
        raise ConfigError(f"{origin}: machine 'none' has no serial ports")
    if len(config.serials) == SERIAL_PORTS:
        raise ConfigError(f"{origin}: the machine has only {SERIAL_PORTS} serial ports")
    if text == "none":
        config.serials.append(None)
        return
    identifier = _backend(config, text, f"serial{len(config.serials)}", origin)
    config.serials.append(identifier)
    if text.startswith("mon:"):
        config.monitors.append(MonitorConfig(identifier, "readline", origin=origin))


def _monitor(config: MachineConfig, kind: str, text: str, origin: str) -> None:
    if text == "none":
        return
    number = sum(chardev.id.startswith("compat_monitor") for chardev in config.chardevs)
    implicit_server = kind != "readline"
    identifier = _backend(config, text, f"compat_monitor{number}", origin, implicit_server=implicit_server)
    mode: Literal["readline", "control"] = "readline" if kind == "readline" else "control"
    config.monitors.append(MonitorConfig(identifier, mode, kind == "pretty", origin))


def _mon(config: MachineConfig, options: Options) -> None:
    name = options.required("chardev")
    _find(config, name, options.origin)
    mode: Literal["readline", "control"] = "readline"
    if options.choice("mode", ("readline", "control"), "readline") == "control":
        mode = "control"
    pretty = options.boolean("pretty")
    if pretty and mode == "readline":
        raise options.error("'pretty' is not compatible with HMP monitors")
    config.monitors.append(MonitorConfig(name, mode, pretty, options.origin))


def _debugcon(line: CommandLine, config: MachineConfig) -> None:
    text, origin = line.values.get("debugcon", ("none", ""))
    if text != "none":
        config.debugcon = _backend(config, text, "debugcon", origin)


def _gdb(line: CommandLine, config: MachineConfig) -> None:
    text, origin = line.values.get("gdb", ("none", ""))
    if text != "none":
        config.gdb = _backend(config, device_options(text), CHARDEV, origin)


def _qtest(line: CommandLine, config: MachineConfig) -> None:
    text, origin = line.values.get("qtest", (None, ""))
    if text is not None:
        config.qtest = _backend(config, text, "qtest", origin)
        config.qtest_log = line.value("qtest-log")


def _check_display(line: CommandLine) -> None:
    text, origin = line.values.get("display", ("none", ""))
    kind = text.partition(",")[0].partition("=")[0]
    if kind == "vnc":
        add_display(line, text, origin)
        return
    if kind in _DISPLAYS:
        raise ConfigError(f"{origin}: not supported by pyvm yet (only none and vnc)")
    if text != "none":
        raise ConfigError(f"{origin}: Parameter 'type' does not accept value '{kind}'")


def _vga(line: CommandLine, config: MachineConfig) -> None:
    """Choose the graphics card: there is one unless nothing but what was asked for is wanted."""
    text, origin = line.values.get("vga", ("none" if config.nodefaults else "std", ""))
    if text in _VGAS:
        raise ConfigError(f"{origin}: not supported by pyvm yet (only std and none)")
    if text not in ("std", "none"):
        raise ConfigError(f"{origin}: unknown vga type: {text}")
    own = config.board.type == "none" or any(device.driver == "VGA" for device in config.devices)
    config.vga = "std" if text == "std" and not own else "none"


def _add_defaults(line: CommandLine, config: MachineConfig, *, terminal: bool) -> None:
    """Add the serial port and monitor that are there unless somebody says otherwise.

    With -nographic they share standard input and output, as in QEMU; without any display option only where that is a
    terminal, else the serial console goes nowhere.  On a terminal there always is the escape character with its help,
    also where another option says where monitors are: how else would a person get out?
    """
    want_serial = not line.serials and config.board.type != "none"
    want_serial = want_serial and not any(device.driver in _SERIAL_DEVICES for device in config.devices)
    want_monitor = not line.monitors
    config.text_console = "nographic" in line.flags
    if config.text_console:
        if config.daemonize and (want_serial or want_monitor):
            raise ConfigError("-nographic cannot be used with -daemonize")
        if want_serial and terminal and not want_monitor and not _stdio_taken(config):
            config.serials.append(_backend(config, "mon:stdio", "serial0", "-nographic"))
        elif want_serial:
            _serial(config, "mon:stdio" if want_monitor else "stdio", "-nographic")
        elif want_monitor:
            _monitor(config, "readline", "stdio", "-nographic")
    elif (
        want_serial and terminal and not _stdio_taken(config) and not config.daemonize and "display" not in line.values
    ):
        config.serials.append(_backend(config, "mon:stdio", "serial0", ""))
        config.text_console = True
        if want_monitor:
            config.monitors.append(MonitorConfig("serial0", "readline"))
    elif want_serial:
        _serial(config, "vc", "")


def _check_sharing(config: MachineConfig) -> None:
    """Refuse two users of one back end that is no multiplexer."""
    users = [(name, "-serial") for name in config.serials if name is not None]
    users += [(monitor.chardev, monitor.origin) for monitor in config.monitors]
    if config.debugcon is not None:
        users.append((config.debugcon, "-debugcon"))
    if config.gdb is not None:
        users.append((config.gdb, "-gdb"))
    if config.qtest is not None:
        users.append((config.qtest, "-qtest"))
    # A device's chardev is looked up, and missed, when the device is made.
    known = {chardev.id for chardev in config.chardevs}
    named = ((device.properties.get("chardev"), device.origin) for device in config.devices)
    users += [(name, origin) for name, origin in named if isinstance(name, str) and name in known]
    seen: set[str] = set()
    for name, origin in users:
        if name in seen and not _shareable(config, name):
            raise ConfigError(f"{origin}: Device '{name}' is in use")
        seen.add(name)


def _shareable(config: MachineConfig, name: str) -> bool:
    options = config.chardev(name).options
    return options.mux or isinstance(options, MuxOptions)
