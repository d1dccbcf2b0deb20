"""The built-in BIOS on this machine: what it is told of the board, and how its services reach a vCPU's registers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyvm.firmware.bios.bios import Bios
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.machine import BiosDisk, BiosMachine, OptionRom
from pyvm.firmware.bios.machine import BootConfig as BiosBootConfig
from pyvm.firmware.bios.pci import Pci
from pyvm.firmware.bios.registers import Registers
from pyvm.firmware.bios.rom import ROM_SIZE, ROM_START
from pyvm.firmware.bios.video import TEXT_80X25, Video
from pyvm.machine.board import SERIAL_PORTS
from pyvm.records import replace

if TYPE_CHECKING:
    from pyvm.config import MachineConfig
    from pyvm.firmware.e820 import E820Entry
    from pyvm.machine.board import Board
    from pyvm.machine.video import Display

_GENERAL = struct.Struct("<16Q")
_NAMES = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_SEGMENTS = ("cs", "ds", "es", "ss")
_REAL_MODE_LIMIT = 0xFFFF
_CODE16 = 0x9B00


def show_text_screen(board: Board, display: Display) -> None:
    """Leave the display in text mode as a BIOS does, for a kernel that is entered without one."""
    core = Core(BiosMachine(memory=board.memory, ports=board.ports, mmio=board.mmio, clock=board.clock))
    Video(core, Pci(core)).set_mode(TEXT_80X25, clear=False)
    display.clear_text()


class BuiltInBios:
    """The services of one machine.

    `disks` are all drives that can be booted from, `card_places` the boot indices of PCI devices with a ROM for that.
    `kernel` loads what is booted before all of them, and returns the registers with which it is entered.
    """

    def __init__(
        self,
        board: Board,
        config: MachineConfig,
        disks: Sequence[BiosDisk],
        e820: list[E820Entry],
        card_places: Mapping[int, int],
        kernel: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        boot = config.boot
        self._vcpus = board.vcpus
        self._kernel = kernel
        self._entry: dict[str, Any] | None = None
        """The registers with which the kernel is to be entered, once it has been loaded."""
        self._bios = Bios(
            BiosMachine(
                memory=board.memory,
                ports=board.ports,
                mmio=board.mmio,
                clock=board.clock,
                disks=disks,
                e820=e820,
                serial_ports=[base if board.has_serial(number) else 0 for number, (base, _) in enumerate(SERIAL_PORTS)],
                boot=BiosBootConfig(
                    order=boot.order,
                    once=boot.once,
                    menu=boot.menu,
                    splash_time=boot.splash_time,
                    strict=boot.strict,
                    check_floppies=config.board.fd_bootchk,
                    reboot_timeout=None if boot.reboot_timeout < 0 else boot.reboot_timeout,
                ),
                console_on_serial=config.text_console,
                cpus=config.smp.cpus,
                option_roms=[OptionRom(rom.content, bootindex=rom.bootindex) for rom in config.option_roms],
                kernel=None if kernel is None else self._load_kernel,
                card_places=card_places,
            )
        )

    def set_boot_order(self, order: str) -> None:
        """Boot from these drives, as `-boot order=` names them, from the next reset on."""
        machine = self._bios.core.machine
        machine.boot = replace(machine.boot, order=order, once=None)

    def start(self) -> None:
        """Put the BIOS into the memory of the reset machine, and the boot processor at its first instruction."""
        self._bios.install()
        self._vcpus.set_firmware(ROM_START, ROM_SIZE)
        segment, offset = self._bios.entry
        code = (segment, segment << 4, _REAL_MODE_LIMIT, _CODE16)
        self._vcpus.set_registers(0, {"cs": code, "rip": offset})

    def resume(self) -> None:
        """Serve a machine whose memory has the BIOS already."""
        self._vcpus.set_firmware(ROM_START, ROM_SIZE)

    def _load_kernel(self) -> None:
        assert self._kernel is not None
        self._entry = self._kernel()

    def call(self, vcpu: int) -> None:
        """Run the service at whose entry point a vCPU is."""
        state = self._vcpus.registers(vcpu)
        general = list(_GENERAL.unpack(state["gpr"]))
        registers = Registers(
            **{name: general[index] & 0xFFFFFFFF for index, name in enumerate(_NAMES)},
            eip=state["rip"],
            eflags=state["rflags"],
            **{name: state[name][0] for name in _SEGMENTS},
        )
        self._bios.call(registers)
        if self._entry is not None:
            entry, self._entry = self._entry, None
            self._vcpus.set_registers(vcpu, entry)
            return
        for index, name in enumerate(_NAMES):
            general[index] = getattr(registers, name) & 0xFFFFFFFF
        changed: dict[str, Any] = {
            "gpr": _GENERAL.pack(*general),
            "rip": registers.eip & 0xFFFF,
            "rflags": registers.eflags,
        }
        for name in _SEGMENTS:
            selector, _, limit, attributes = state[name]
            new = getattr(registers, name) & 0xFFFF
            if new != selector:
                changed[name] = (new, new << 4, limit, attributes)
        self._vcpus.set_registers(vcpu, changed)
