"""Options about the board itself: machine type, memory, CPUs, clock, and what boots."""

from __future__ import annotations

import os
from typing import Literal

from pyvm.commandline.descriptors import passed_fds
from pyvm.commandline.files import check_readable, read_file
from pyvm.commandline.groups import GROUPS
from pyvm.commandline.numa import numa_options
from pyvm.commandline.reader import CommandLine
from pyvm.commandline.tracing import add_log_options, trace_options
from pyvm.config import (
    DEFAULT_MACHINE,
    DEFAULT_MEMORY,
    MACHINE_TYPES,
    MIB,
    ActionConfig,
    BoardConfig,
    CpuConfig,
    FwCfgConfig,
    MachineConfig,
    MemoryConfig,
    RtcConfig,
    SmpConfig,
)
from pyvm.errors import ConfigError
from pyvm.options import Options, parse_number, parse_uuid

_MEMORY_ALIGNMENT = 8192
_MEMORY_SLOTS = 256
_FW_CFG_NAME_LIMIT = 55
_FW_CFG_CONTENT_LIMIT = 256 * MIB
_ACCELERATORS = ("tcg", "kvm", "xen", "hax", "hvf", "nvmm", "whpx", "qtest")

# Machine properties that pyvm has in one setting only, and that setting's names.
_FIXED_PROPERTIES: dict[str, tuple[str, ...]] = {
    "confidential-guest-support": (),
    "default-bus-bypass-iommu": ("off",),
    "graphics": ("on", "off"),
    "hmat": ("off",),
    "i8042": ("on",),
    "igd-passthru": ("off",),
    "max-fw-size": (),
    "max-ram-below-4g": (),
    "memory-encryption": (),
    "nvdimm": ("off",),
    "nvdimm-persistence": (),
    "pcspk-audiodev": (),
    "pflash0": (),
    "pflash1": (),
    "pit": ("on",),
    "sata": ("on",),
    "smbus": ("on",),
    "smm": ("off", "auto"),
    "usb": ("off",),
    "vmport": ("off", "auto"),
    # What follows concerns QEMU's own process or KVM, never the guest under TCG.
    "aes-key-wrap": ("on", "off"),
    "dea-key-wrap": ("on", "off"),
    "dump-guest-core": ("on", "off"),
    "kernel-irqchip": ("on", "off", "split"),
    "mem-merge": ("on", "off"),
    "suppress-vmdesc": ("on", "off"),
}
_PC_ONLY = frozenset({"acpi", "hpet", "pit", "i8042", "sata", "smbus", "smm", "vmport", "hmat", "nvdimm", "fd-bootchk"})


def configure(line: CommandLine, config: MachineConfig) -> None:
    """Fill in the records about the board."""
    _configure_board(line, config)
    config.accelerator = _accelerator(line)
    config.memory = _memory(line, config)
    config.smp = _smp(line, config)
    config.cpu = _cpu(line)
    _configure_boot(line, config)
    config.rtc = _rtc(line)
    config.actions = _actions(line)
    config.fw_cfg = [_fw_cfg(options) for options in line.groups["fw_cfg"]]
    config.passed_fds = passed_fds(line.groups["add-fd"])
    config.numa = numa_options(line.groups["numa"])
    config.traces = trace_options(line.groups["trace"])
    add_log_options(line, config.traces)
    config.single_instructions = "singlestep" in line.flags
    _configure_names(line, config)
    if line.groups["option-rom"]:
        from pyvm.commandline.option_roms import configure_option_roms

        configure_option_roms(line.groups["option-rom"], config)
    if line.groups["acpitable"]:
        from pyvm.commandline.acpi_tables import configure_acpi_tables

        config.acpi_tables = configure_acpi_tables(line.groups["acpitable"])
    if line.groups["smbios"]:
        from pyvm.commandline.smbios import configure_smbios

        configure_smbios(line.groups["smbios"], config)
    _check_messages(line, config)
    _sandbox(line, config)


def _configure_board(line: CommandLine, config: MachineConfig) -> None:
    options = line.last("machine")
    name = options.string("type") or DEFAULT_MACHINE
    aliases = {kind.alias: kind.name for kind in MACHINE_TYPES.values() if kind.alias}
    machine = MACHINE_TYPES.get(aliases.get(name, name))
    if machine is None:
        raise options.error(f"unsupported machine type '{name}' (-machine help lists the supported ones)")
    config.board = BoardConfig(machine.name)
    for key, value in options:
        if key in ("type", "accel"):
            continue
        prefix, dot, member = key.partition(".")
        if dot and prefix in _PREFIX_GROUPS:
            group = _PREFIX_GROUPS[prefix]
            line.add(group, _checked_member(options, group, member, value), merge=True)
        elif key in ("kernel", "initrd", "append", "firmware"):
            line.values.setdefault(_STANDS_FOR.get(key, key), (options.required(key), options.origin))
        else:
            _machine_property(config.board, options, key)


_STANDS_FOR = {"firmware": "bios"}
_PREFIX_GROUPS = {"smp": "smp-opts", "boot": "boot-opts", "memory": "memory"}


def _checked_member(options: Options, group: str, member: str, value: object) -> Options:
    moved = Options(GROUPS[group], options.origin, [(member, str(value))])
    moved.check()
    return moved


def _machine_property(board: BoardConfig, options: Options, key: str) -> None:
    known = key in ("acpi", "fd-bootchk", "hpet", "memory-backend") or key in _FIXED_PROPERTIES
    if not known or (board.type == "none" and key in _PC_ONLY):
        raise options.error(f"Property '{board.type}-machine.{key}' not found")
    if key == "acpi":
        board.acpi = options.choice(key, ("on", "off", "auto"), "auto") != "off"
    elif key == "hpet":
        board.hpet = options.boolean(key)
    elif key == "fd-bootchk":
        board.fd_bootchk = options.boolean(key)
    elif key == "memory-backend":
        board.memory_backend = options.required(key)
    else:
        accepted = _FIXED_PROPERTIES[key]
        value = options.required(key)
        if value not in accepted:
            hint = f" (only {' or '.join(accepted)})" if accepted else ""
            raise options.error(f"{key}={value} is not supported by pyvm yet{hint}")


def _accelerator(line: CommandLine) -> Literal["tcg", "qtest"]:
    """Return the first of the accelerators to try that there is; refuse a command line that names none."""
    machine = line.last("machine")
    wanted: list[tuple[str, Options]] = []
    if "accel" in machine:
        names = machine.required("accel").split(":")
        wanted = [(name, machine) for name in names if name]
        if not wanted:
            raise machine.error("no accelerator found")
    for options in line.groups["accel"]:
        if "accel" in machine:
            raise options.error('The -accel and "-machine accel=" options are incompatible')
        wanted.append((options.required("accel"), options))
        options.choice("thread", ("single", "multi"), "single")
    for name, options in wanted:
        if name not in _ACCELERATORS:
            raise options.error(f"invalid accelerator {name}")
    for name, _ in wanted:
        if name == "tcg":
            return "tcg"
        if name == "qtest":
            return "qtest"
    if wanted:
        name, options = wanted[0]
        raise options.error(f"accelerator {name} is not supported by pyvm (only tcg)")
    return "tcg"


def _memory(line: CommandLine, config: MachineConfig) -> MemoryConfig:
    options = line.last("memory")
    size = DEFAULT_MEMORY
    text = options.string("size")
    if text is not None and text != "":
        size = options.size("size", unit="M")
        if size < MIB:
            raise options.error("the guest needs at least 1 MiB of memory")
    size = -(-size // _MEMORY_ALIGNMENT) * _MEMORY_ALIGNMENT
    slots = options.number("slots", high=_MEMORY_SLOTS)
    if "maxmem" in options:
        largest = options.size("maxmem", unit="B")
        if largest < size:
            raise options.error(
                f"invalid value of maxmem: maximum memory size ({largest:#x}) must be at least "
                f"the initial memory size ({size:#x})"
            )
        if slots and largest == size:
            raise options.error("invalid value of maxmem: memory slots were specified but maximum memory size is "
                                f"equal to the initial memory size ({size:#x})")  # fmt: skip
        return MemoryConfig(size, slots, largest if slots else size)
    if slots:
        raise options.error("slots specified but no max-size")
    return MemoryConfig(size, 0, size)


def _smp(line: CommandLine, config: MachineConfig) -> SmpConfig:
    """Return the CPU topology; what was not given follows from the rest, cores before sockets."""
    options = line.last("smp-opts")
    limit = MACHINE_TYPES[config.board.type].max_cpus
    for key, _ in options:
        if options.number(key) == 0:
            raise options.error("Invalid CPU topology: CPU topology parameters must be greater than zero")
    if options.number("clusters", 1) > 1:
        raise options.error("clusters not supported by this machine's CPU topology")
    cpus, most = options.number("cpus"), options.number("maxcpus")
    sockets, cores, threads = options.number("sockets"), options.number("cores"), options.number("threads")
    dies = options.number("dies", 1)
    total = most or cpus
    if not total:
        sockets, cores, threads = sockets or 1, cores or 1, threads or 1
    elif not cores:
        sockets, threads = sockets or 1, threads or 1
        cores = total // (sockets * dies * threads)
    elif not sockets:
        threads = threads or 1
        sockets = total // (dies * cores * threads)
    if not threads:
        threads = total // (sockets * dies * cores)
    product = sockets * dies * cores * threads
    total = total or product
    hierarchy = f"sockets ({sockets}) * dies ({dies}) * cores ({cores}) * threads ({threads})"
    if product != total:
        raise options.error(
            f"Invalid CPU topology: product of the hierarchy must match maxcpus: {hierarchy} != maxcpus ({total})"
        )
    cpus = cpus or total
    if total < cpus:
        raise options.error(
            "Invalid CPU topology: maxcpus must be equal to or greater than smp: "
            f"{hierarchy} == maxcpus ({total}) < smp_cpus ({cpus})"
        )
    if total > limit:
        raise options.error(
            f"Invalid SMP CPUs {total}. The max CPUs supported by machine '{config.board.type}' is {limit}"
        )
    return SmpConfig(cpus, total, sockets, dies, cores, threads)


def _cpu(line: CommandLine) -> CpuConfig:
    text, origin = line.values.get("cpu", (None, ""))
    if text is None:
        return CpuConfig()
    if not text.partition(",")[0]:
        raise ConfigError("-cpu option cannot be empty")
    return CpuConfig(text, origin)


def _configure_boot(line: CommandLine, config: MachineConfig) -> None:
    boot = config.boot
    boot.kernel, boot.initrd = line.value("kernel"), line.value("initrd")
    boot.append = line.value("append") or ""
    if boot.kernel is None:
        for name in ("append", "initrd"):
            if name in line.values:
                raise ConfigError(f"-{name} only allowed with -kernel option")
    elif config.board.type == "none":
        raise ConfigError(f"-kernel {boot.kernel}: machine 'none' has nothing that could boot a kernel")
    else:
        check_readable(boot.kernel, f"could not open kernel file '{boot.kernel}'")
    if boot.initrd is not None:
        check_readable(boot.initrd, f"could not load initrd '{boot.initrd}'")
    if config.daemonize:
        # A daemon's directory is the root, and a reset reads these files again.
        boot.kernel, boot.initrd = (path and os.path.abspath(path) for path in (boot.kernel, boot.initrd))
    if "no-fd-bootchk" in line.flags and config.board.type != "none":
        config.board.fd_bootchk = False
    options = line.last("boot-opts")
    boot.order = _drive_letters(options, "order") or boot.order
    boot.once = _drive_letters(options, "once")
    boot.strict = options.boolean("strict")
    boot.menu = options.boolean("menu")
    if "splash-time" in options:
        boot.splash_time = options.number("splash-time", high=0xFFFF)
    if "reboot-timeout" in options:
        boot.reboot_timeout = _reboot_timeout(options)
    boot.splash = options.string("splash")
    boot.bios = line.value("bios")
    if boot.splash is not None and boot.bios is None:
        raise options.error("splash pictures are shown by a firmware (-bios FILE); the built-in BIOS has text only")
    if boot.bios is not None:
        check_readable(boot.bios, f"could not load PC BIOS '{boot.bios}'")
        if boot.kernel is not None:
            raise ConfigError(f"-bios {boot.bios}: firmware is not used where -kernel boots a kernel directly")
        if config.daemonize:
            boot.bios = os.path.abspath(boot.bios)


def _reboot_timeout(options: Options) -> int:
    text = options.required("reboot-timeout")
    try:
        value = int(text)
    except ValueError:
        value = -2
    if not -1 <= value <= 0xFFFF:
        raise options.error("reboot timeout is invalid, it should be a value between -1 and 65535")
    return value


def _drive_letters(options: Options, name: str) -> str | None:
    letters = options.string(name)
    for index, letter in enumerate(letters or ""):
        if not "a" <= letter <= "p":
            raise options.error(f"Invalid boot device '{letter}'")
        if letter in (letters or "")[:index]:
            raise options.error(f"Boot device '{letter}' was given twice")
    return letters


def _rtc(line: CommandLine) -> RtcConfig:
    options = line.last("rtc")
    rtc = RtcConfig()
    base = options.string("base") or "utc"
    if base == "localtime":
        rtc.base = "localtime"
    elif base != "utc":
        rtc.base = _seconds(options, base)
    rtc.clock = options.choice("clock", ("host", "rt", "vm"), rtc.clock)  # type: ignore[assignment]
    rtc.driftfix = options.choice("driftfix", ("none", "slew"), rtc.driftfix)  # type: ignore[assignment]
    return rtc


def _seconds(options: Options, text: str) -> int:
    from datetime import UTC, datetime

    try:
        if len(text) not in (len("2006-06-17"), len("2006-06-17T16:01:21")):
            raise ValueError(text)
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise options.error("invalid datetime format (valid formats: '2006-06-17T16:01:21' or '2006-06-17')") from None


_ACTIONS: dict[str, tuple[str, ...]] = {
    "reboot": ("reset", "shutdown"),
    "shutdown": ("poweroff", "pause"),
    "panic": ("pause", "shutdown", "exit-failure", "none"),
    "watchdog": ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"),
}


def _actions(line: CommandLine) -> ActionConfig:
    options = line.last("action")
    actions = ActionConfig()
    for name, choices in _ACTIONS.items():
        setattr(actions, name, options.choice(name, choices, getattr(actions, name)))
    return actions


def _fw_cfg(options: Options) -> FwCfgConfig:
    name, text, path = options.string("name"), options.string("string"), options.string("file")
    if "gen_id" in options:
        raise options.error("'gen_id' is not supported by pyvm yet")
    if not name or (text is None) == (path is None):
        raise options.error("name, plus exactly one of file, string and gen_id, are needed")
    if len(name) > _FW_CFG_NAME_LIMIT:
        raise options.error(f"name too long (max. {_FW_CFG_NAME_LIMIT} char)")
    if not name.isascii() or not name.isprintable():
        raise options.error("name must be printable ASCII")
    if text is not None:
        return FwCfgConfig(name, os.fsencode(text))
    assert path is not None
    return FwCfgConfig(name, read_file(path, _FW_CFG_CONTENT_LIMIT, f"{options.origin}: can't load {path}"))


def _configure_names(line: CommandLine, config: MachineConfig) -> None:
    options = line.last("name")
    config.name = options.string("guest")
    config.process_name = options.string("process")
    config.debug_threads = options.boolean("debug-threads")
    text, origin = line.values.get("uuid", (None, ""))
    if text is not None:
        try:
            config.uuid = parse_uuid(text)
        except ConfigError:
            raise ConfigError(f"{origin}: failed to parse UUID string: wrong format") from None
    text, origin = line.values.get("echr", (None, ""))
    if text is not None:
        try:
            config.escape_character = parse_number("echr", text)
        except ConfigError:
            config.escape_character = -1
        if not 0 <= config.escape_character <= 255:
            raise ConfigError(f"{origin}: Bad argument to echr: expected the number of a character, 0 to 255")


def _check_messages(line: CommandLine, config: MachineConfig) -> None:
    """Take in how messages look, and refuse what QEMU could do about its own process and pyvm cannot."""
    messages = line.last("msg")
    config.message_timestamps = messages.boolean("timestamp")
    config.message_guest_name = messages.boolean("guest-name")
    overcommit = line.last("overcommit")
    for name in ("mem-lock", "cpu-pm"):
        if overcommit.boolean(name):
            raise overcommit.error(f"{name}=on is not supported by pyvm yet")
    for name, value in line.last("compat"):
        if value != "accept":
            raise line.last("compat").error(f"{name}={value} is not supported by pyvm yet (only accept)")


_SANDBOX_CHOICES = {
    "obsolete": ("deny", "allow"),
    "elevateprivileges": ("allow", "deny", "children"),
    "spawn": ("allow", "deny"),
    "resourcecontrol": ("allow", "deny"),
}
"""What each parameter of -sandbox may be, its default first."""


def _sandbox(line: CommandLine, config: MachineConfig) -> None:
    options = line.last("sandbox")
    if not options.boolean("enable"):
        return
    from pyvm.sandbox import SandboxConfig

    chosen = {}
    for name, choices in _SANDBOX_CHOICES.items():
        chosen[name] = options.string(name) or choices[0]
        if chosen[name] not in choices:
            raise options.error(f"invalid argument for {name}")
    config.sandbox = SandboxConfig(
        obsolete=chosen["obsolete"] == "deny",
        privileges=chosen["elevateprivileges"] == "deny",
        children_privileges=chosen["elevateprivileges"] == "children",
        spawn=chosen["spawn"] == "deny",
        resources=chosen["resourcecontrol"] == "deny",
    )
