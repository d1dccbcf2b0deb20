"""The parameters of each option that takes any: their names and kinds, as data."""

from __future__ import annotations

from pyvm.options import Group, Kind


def _kinds(**names: str) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for kind in ("string", "boolean", "number", "size"):
        kinds.update(dict.fromkeys(names.get(kind, "").split(), kind))
    return kinds


def _groups() -> dict[str, Group]:
    groups = (
        Group(
            "acpitable",
            "data",
            _kinds(string="file data sig rev oem_id oem_table_id oem_rev asl_compiler_id asl_compiler_rev"),
            strict=True,
        ),
        Group("accel", "accel", _kinds(string="accel thread", number="tb-size", boolean="split-wx one-insn-per-tb")),
        Group("action", None, _kinds(string="reboot shutdown panic watchdog")),
        Group("add-fd", None, _kinds(string="opaque", number="fd set")),
        Group("audiodev", "driver", strict=True),
        Group(
            "boot-opts",
            "order",
            _kinds(string="order once splash reboot-timeout", boolean="menu strict", number="splash-time"),
            strict=True,
        ),
        Group("blockdev", "driver", strict=True),
        Group("chardev", "backend"),
        Group(
            "compat",
            None,
            _kinds(string="deprecated-input deprecated-output unstable-input unstable-output"),
            strict=True,
        ),
        Group("device", "driver"),
        # What is not for the drive is for the block nodes below it.
        Group("drive"),
        Group("fw_cfg", "name", _kinds(string="name file string gen_id")),
        Group("global", None, _kinds(string="driver property value")),
        Group("machine", "type", strict=True, aliases={"kernel_irqchip": "kernel-irqchip"}),
        Group("memory", "size", _kinds(size="size maxmem", number="slots")),
        Group("mon", "chardev", _kinds(string="chardev mode", boolean="pretty")),
        Group("msg", None, _kinds(boolean="timestamp guest-name")),
        Group("name", "guest", _kinds(string="guest process", boolean="debug-threads")),
        Group("net", "type"),
        Group("netdev", "type"),
        Group("nic", "type"),
        Group("numa", "type"),
        Group("object", "qom-type", strict=True),
        Group("option-rom", "romfile", _kinds(string="romfile bootindex")),
        Group("overcommit", None, _kinds(boolean="mem-lock cpu-pm")),
        Group("smbios"),
        Group("rtc", None, _kinds(string="base clock driftfix")),
        Group(
            "sandbox",
            "enable",
            _kinds(boolean="enable", string="obsolete elevateprivileges spawn resourcecontrol"),
            strict=True,
        ),
        Group(
            "vnc",
            "vnc",
            _kinds(
                string="vnc websocket tls-creds tls-authz sasl-authz share display password-secret audiodev",
                boolean="ipv4 ipv6 password reverse lock-key-sync sasl lossy non-adaptive power-control",
                number="head connections to key-delay-ms",
            ),
        ),
        Group("trace", "enable", _kinds(string="enable events file")),
        Group("smp-opts", "cpus", _kinds(number="cpus maxcpus sockets dies clusters cores threads"), strict=True),
    )
    return {group.name: group for group in groups}


GROUPS: dict[str, Group] = _groups()
