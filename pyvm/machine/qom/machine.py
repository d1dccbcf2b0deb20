"""The machine itself as an object of the tree: the properties of `-machine`, and where its parts are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyvm.config import BoardConfig
from pyvm.devices.rtc import B_24_HOUR, B_BINARY, CENTURY, REGISTER_B
from pyvm.machine.qom.devices import TypedObject
from pyvm.qom.tree import Property, QomObject
from pyvm.qom.types import MACHINE_SUFFIX, load

if TYPE_CHECKING:
    from pyvm.devices.rtc import Rtc
    from pyvm.machine.pc import Pc

_SECONDS, _MINUTES, _HOURS, _DAY, _MONTH, _YEAR = 0, 2, 4, 7, 8, 9
_PM = 0x80
_BEFORE_MAKING = frozenset({"pflash0", "pflash1"})
"""Drives for firmware are gone once the machine is made without them."""
_TM_EPOCH = 1900
_MAX_BELOW_4G = 0xE0000000
_MAX_FIRMWARE = 8 << 20
_OEM_ID, _OEM_TABLE_ID = "BOCHS ", "BXPC    "
_TRUE = ("graphics", "dump-guest-core", "mem-merge", "sata", "smbus", "i8042")
_AUTO = ("pit", "pic", "smm")


def rtc_time(rtc: Rtc) -> dict[str, int]:
    """Return the date and time that the guest's clock shows, as C's ``struct tm`` has it."""
    control = rtc.cmos(REGISTER_B)

    def number(index: int) -> int:
        value = rtc.cmos(index)
        return value if control & B_BINARY else (value >> 4) * 10 + (value & 0xF)

    raw = rtc.cmos(_HOURS)
    hour = number(_HOURS) if control & B_24_HOUR or not raw & _PM else number(_HOURS) - 80
    if not control & B_24_HOUR:
        hour = hour % 12 + (12 if raw & _PM else 0)
    return {
        "tm_year": number(CENTURY) * 100 + number(_YEAR) - _TM_EPOCH,
        "tm_mon": number(_MONTH) - 1,
        "tm_mday": number(_DAY),
        "tm_hour": hour,
        "tm_min": number(_MINUTES),
        "tm_sec": number(_SECONDS),
    }


def machine_object(pc: Pc) -> QomObject:
    """Return the object `/machine`, without its children."""
    kind = load()["none-machine" if pc.config.board.type == "none" else pc.config.board.type + MACHINE_SUFFIX]

    def get(name: str) -> Any:
        return _value(pc, name)

    def hidden() -> frozenset[str]:
        return _BEFORE_MAKING if pc.initialized else frozenset()

    return TypedObject(kind, get, extra=_parts(pc), hidden=hidden)


def _parts(pc: Pc) -> list[Property]:
    if pc.config.board.type == "none":
        return []
    return [
        Property("smram", "link<memory-region>", lambda: f"{pc.model.qom.chip_path('i440fx')}/smram[0]"),
        Property("rtc_state", "link<isa-device>", lambda: pc.model.qom.chip_path("rtc")),
        Property("acpi-device", "link<hotplug-handler>", lambda: pc.model.qom.chip_path("pm")),
        Property("rtc-time", "struct tm", lambda: rtc_time(pc.board.rtc)),
    ]


def _value(pc: Pc, name: str) -> Any:
    config = pc.config
    board: BoardConfig = config.board
    if name in _TRUE:
        return True
    if name in _AUTO:
        return "auto"
    if name in ("memory", "smp", "boot"):
        return {"memory": _memory, "smp": _topology, "boot": _boot}[name](pc)
    plain = {
        "kernel": config.boot.kernel or "",
        "initrd": config.boot.initrd or "",
        "append": config.boot.append,
        "firmware": config.boot.bios or "",
        "memory-backend": f"/objects/{board.memory_backend or 'pc.ram'}" if pc.initialized else "",
        "hpet": board.hpet,
        "acpi": "auto" if board.acpi else "off",
        "vmport": "off",
        "smbios-entry-point-type": "32",
        "max-ram-below-4g": _MAX_BELOW_4G,
        "max-fw-size": _MAX_FIRMWARE,
        "x-oem-id": _OEM_ID,
        "x-oem-table-id": _OEM_TABLE_ID,
        "sgx-epc": [],
        "cxl-fmw": [],
    }
    return plain[name]


def _memory(pc: Pc) -> dict[str, int]:
    memory = pc.config.memory
    info = {"size": memory.size}
    if memory.slots or memory.max_size != memory.size:
        info |= {"max-size": memory.max_size, "slots": memory.slots}
    return info


def _topology(pc: Pc) -> dict[str, int]:
    smp = pc.config.smp
    names = ("cpus", "sockets", "dies", "cores", "threads")
    return {**{name: getattr(smp, name) for name in names}, "clusters": 1, "maxcpus": smp.max_cpus}


def _boot(pc: Pc) -> dict[str, Any]:
    boot = pc.config.boot
    info: dict[str, Any] = {"order": boot.order}
    if boot.once is not None:
        info["once"] = boot.once
    if boot.menu:
        info["menu"] = True
    if boot.strict:
        info["strict"] = True
    if boot.splash is not None:
        info["splash"] = boot.splash
    if boot.splash_time is not None:
        info["splash-time"] = boot.splash_time
    if boot.reboot_timeout != -1:
        info["reboot-timeout"] = boot.reboot_timeout
    return info
