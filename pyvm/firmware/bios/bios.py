"""The dispatcher: which service answers which trap."""

from __future__ import annotations

from collections.abc import Callable

from pyvm.firmware.bios.boot import Boot
from pyvm.firmware.bios.clock import Clock
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.data_area import EQUIPMENT, MEMORY_KIB
from pyvm.firmware.bios.disk import Disk
from pyvm.firmware.bios.drives import Drives
from pyvm.firmware.bios.hardware import Hardware
from pyvm.firmware.bios.keyboard import Keyboard
from pyvm.firmware.bios.machine import BiosMachine
from pyvm.firmware.bios.option_roms import OptionRoms
from pyvm.firmware.bios.pci import Pci
from pyvm.firmware.bios.post import Post
from pyvm.firmware.bios.printer import Printer
from pyvm.firmware.bios.registers import FLAG_CARRY, FLAG_ZERO, Registers, linear
from pyvm.firmware.bios.rom import POST, SEGMENT
from pyvm.firmware.bios.serial import Serial
from pyvm.firmware.bios.system import System
from pyvm.firmware.bios.video import Video
from pyvm.memory import GuestMemoryError

Service = Callable[[Registers], None]


class Bios:
    """The BIOS of one machine.  `install` at each reset, then the boot processor starts at `entry` in real mode."""

    entry = (SEGMENT, POST)
    """CS and IP of the first instruction."""

    def __init__(self, machine: BiosMachine) -> None:
        self.core = core = Core(machine)
        self.pci = Pci(core)
        self.video = Video(core, self.pci)
        self.drives = Drives(core)
        self.disk = Disk(core, self.drives)
        self.hardware = Hardware(core)
        self.keyboard = Keyboard(core, self.video.console)
        self.serial = Serial(core)
        self.printer = Printer(core, self.video)
        self.clock = Clock(core, self.pci, self.keyboard)
        self.system = System(core, self.hardware)
        self.option_roms = OptionRoms(core, self.pci)
        self.boot = Boot(core, self.drives, self.disk, self.video, self.keyboard, self.option_roms)
        self.post = Post(
            *(core, self.video, self.drives, self.printer, self.clock, self.boot, self.hardware, self.keyboard),
            self.option_roms,
        )
        self._services: dict[str, Service] = {
            "post": self.post.start,
            "menu_prompt": self.boot.menu_prompt,
            "menu_choice": self.boot.menu_choice,
            "boot": self.boot.first,
            "boot_next": self.boot.next,
            "retry": self.boot.retry,
            "boot_read": self.boot.read_done,
            "rom_returned": self.post.rom_returned,
            "connect": self.post.connect,
            "pmm": self.option_roms.memory_manager.call,
            "video": self.video.call,
            "equipment": self._equipment,
            "memory_size": self._memory_size,
            "disk": self.disk.call,
            "diskette": self.disk.call,
            "serial": self.serial.call,
            "serial_again": self.serial.again,
            "system": self.system.call,
            "delay_again": self.system.delay_again,
            "keyboard": self.keyboard.call,
            "key_fetch": self.keyboard.fetch,
            "key_scan": self.keyboard.scan,
            "key_paused": self.keyboard.paused,
            "printer": self.printer.call,
            "print_screen": self.printer.print_screen,
            "clock": self.clock.call,
            "tick": self.clock.tick,
            "clock_interrupt": self.clock.interrupt,
            "irq_master": self.hardware.irq_master,
            "irq_slave": self.hardware.irq_slave,
            "mouse_interrupt": self.hardware.mouse_interrupt,
        }
        traps = core.rom.services
        self._at = {address: self._services[name] for address, name in traps.items()}

    def install(self) -> None:
        """Put the ROM, the interrupt vectors and the data areas into guest RAM; at each reset."""
        self.post.install()

    def call(self, registers: Registers) -> None:
        """Serve the trap whose OUT instruction ends at cs:eip; the registers are changed in place.

        Nothing that the guest passes raises an exception.  An address that is no trap of this ROM does nothing.
        """
        service = self._at.get(linear(registers.cs, registers.ip))
        if service is None:
            return
        registers.begin()
        try:
            service(registers)
        except GuestMemoryError:
            registers.carry = True
        if registers.goto is not None:
            registers.cs, registers.eip = SEGMENT, self.core.rom.labels[registers.goto]
        else:
            self._return_flags(registers)

    def _return_flags(self, registers: Registers) -> None:
        mask = FLAG_CARRY * (registers.carry is not None) | FLAG_ZERO * (registers.zero is not None)
        if mask:
            value = FLAG_CARRY * bool(registers.carry) | FLAG_ZERO * bool(registers.zero)
            try:
                self.core.change_caller_flags(registers, mask, value)
            except GuestMemoryError:
                pass  # a stack that is no memory: the return will go wrong as well

    def _equipment(self, registers: Registers) -> None:
        """Int 11h."""
        registers.ax = self.core.bda.word(EQUIPMENT)

    def _memory_size(self, registers: Registers) -> None:
        """Int 12h."""
        registers.ax = self.core.bda.word(MEMORY_KIB)
