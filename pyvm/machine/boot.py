"""What firmware does between reset and the operating system, for a kernel that is loaded directly.

It sets up PCI and the interrupt controllers as a BIOS leaves them, puts the tables that describe the machine into RAM,
loads the kernel, and gives the boot processor its first registers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pyvm.config import ROM_FOLDER
from pyvm.cpu.cpuid import PHYSICAL_ADDRESS_BITS, feature_words, signature
from pyvm.devices.ide.piix3 import IDETIM
from pyvm.errors import ConfigError
from pyvm.firmware.affinity import Affinity
from pyvm.firmware.bootstate import BootState, EntryMode, SegmentValue
from pyvm.firmware.e820 import hardware_map, high_ram_end, low_ram_end
from pyvm.firmware.errors import BootError
from pyvm.firmware.machine_info import RESET_PORT, MachineInfo, Processor, SerialPort, SystemStrings
from pyvm.firmware.smbios_fields import SmbiosFields
from pyvm.firmware.tables import FW_CFG_FILES, InstalledTables, Tables, waking_vector
from pyvm.machine import cmos
from pyvm.machine.board import FAST_A20_PORT, SERIAL_PORTS
from pyvm.machine.chip_globals import POWER_CHIP, chip_number
from pyvm.memory import FOUR_GIB, GuestMemory
from pyvm.records import record

if TYPE_CHECKING:
    from pyvm.config import MachineConfig
    from pyvm.devices.vmgenid import VmGenId
    from pyvm.firmware.e820 import E820Entry
    from pyvm.machine.bios import BuiltInBios
    from pyvm.machine.board import Board
    from pyvm.machine.plug.plugging import Plugger
    from pyvm.machine.video import Display

_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_REAL_MODE_IDT_LIMIT = 0x3FF
_REAL_MODE_LIMIT = 0xFFFF
_CODE16 = 0x9B00
_A20_OPEN = 0x02
_HARD_RESET = 0x06
_VIDEO_BIOS = "vgabios-stdvga.bin"
_ALL_BUT_CASCADE, _ALL = 0xFB, 0xFF
"""Masks of the interrupt controllers."""


@record(eq=False)
class Boot:
    """The firmware of one machine; its tables are built once."""

    board: Board
    config: MachineConfig
    tables: Tables
    plugger: Plugger
    """Knows what the BIOS may boot from."""
    display: Display | None = None
    generation_id: VmGenId | None = None
    _installed: InstalledTables | None = None
    _restored: Tables | None = None
    """The tables that the guest has since it was restored, where nobody has asked yet where they are."""
    _bios: BuiltInBios | None = None
    _started: bool = False
    _kept: tuple[bytes, int] = (b"", 0)

    def describe_to_guest(self) -> None:
        """Offer what the machine is, its tables and the user's files in fw_cfg; once.  Raises ConfigError."""
        config, fw_cfg, info = self.config, self.board.fw_cfg, self.tables.info
        fw_cfg.add_machine(
            uuid=info.system.uuid,
            ram_size=self.board.memory.size,
            cpus=self.board.vcpus.count,
            max_cpus=config.smp.max_cpus,
            boot_menu=config.boot.menu,
        )
        self._describe_booting()
        memory_map = b"".join(entry.pack() for entry in hardware_map(self.board.memory.blocks))
        # What the tables say may change as CPUs come and go: they are made when they are read.
        tables = {name: partial(self._table_file, name) for name in FW_CFG_FILES}
        files: dict[str, bytes | Callable[[], bytes]] = {**tables, "etc/e820": memory_map}
        try:
            for rom in config.option_roms:
                fw_cfg.add_file(ROM_FOLDER + rom.name, rom.content)
            for name, content in [*files.items(), *((file.name, file.content) for file in config.fw_cfg)]:
                fw_cfg.add_file(name, content)
        except ValueError as error:
            raise ConfigError(f"-fw_cfg: {error}") from None

    def _table_file(self, name: str) -> bytes:
        return self.tables.fw_cfg_files()[name]

    def _describe_booting(self) -> None:
        """Store how to boot where firmware in the guest looks for it."""
        board, boot = self.board, self.config.boot
        low, high = low_ram_end(board.memory.blocks), high_ram_end(board.memory.blocks)
        cmos.describe_memory(board.rtc, low, high - FOUR_GIB, board.vcpus.count)
        board.fw_cfg.add_file("etc/boot-fail-wait", struct.pack("<i", boot.reboot_timeout))
        if order := self.plugger.boot_order():
            board.fw_cfg.add_file("bootorder", order)
        if boot.splash_time is not None:
            board.fw_cfg.add_file("etc/boot-menu-wait", struct.pack("<H", boot.splash_time))
        if boot.splash is not None:
            from pyvm.machine.splash import read_picture

            board.fw_cfg.add_file(*read_picture(boot.splash))
        if boot.bios is not None and self.display is not None:
            from pathlib import Path

            # The video BIOS of a firmware lies beside it; without one there is just no picture.
            video = Path(boot.bios).with_name(_VIDEO_BIOS)
            if video.is_file() and not self.display.vga.rom_size:
                self.display.vga.add_rom(video.read_bytes())

    def run(self) -> None:
        """Make the reset machine ready for its kernel and load that; raises ConfigError.

        A firmware file does this itself.  Without a kernel the BIOS looks for something to boot, and with one it starts
        only to run option ROMs before that.
        """
        board, boot = self.board, self.config.boot
        first, self._started = not self._started, True
        self._describe_order(boot.once if first and boot.once else boot.order)
        try:
            self.tables.build()
        except BootError as error:
            raise ConfigError(str(error)) from None
        if boot.bios is not None or self.config.accelerator == "qtest":
            return
        self._set_up_hardware()
        try:
            self._installed = installed = self.tables.install(board.memory)
            self._restored = None
            self._place_generation_id()
            if boot.kernel is None:
                self._start_bios(installed.e820)
                return
            if not self._has_roms():
                self._show_text_screen()
            # With option ROMs, too: what is wrong with a kernel is said at once.
            registers = self._load_kernel(installed)
        except BootError as error:
            raise ConfigError(str(error)) from None
        if self._has_roms():
            self._start_bios(installed.e820)
        else:
            board.vcpus.set_registers(0, registers)

    def _load_kernel(self, installed: InstalledTables) -> dict[str, Any]:
        """Load the kernel; return the registers with which it is entered.  Raises BootError."""
        # Loaders and decompressors are not needed by a machine without a kernel.
        from pyvm.firmware.loader import load_kernel

        boot = self.config.boot
        assert boot.kernel is not None
        arguments = (boot.kernel, boot.initrd, boot.append, installed.e820, installed.rsdp)
        try:
            state = load_kernel(self.board.memory, *arguments, text_screen=self.display is not None)
        except BootError as error:
            raise BootError(_with_file(str(error), boot.kernel, boot.initrd)) from None
        return registers_of(state)

    def _load_kernel_again(self) -> dict[str, Any]:
        """The BIOS has run the option ROMs, which may have used the memory of the kernel."""
        assert self.installed is not None
        return self._load_kernel(self.installed)

    def _has_roms(self) -> bool:
        """Return whether there are option ROMs to run before a kernel is entered."""
        if self.config.option_roms:
            return True
        cards = (device for device in self.plugger.plugged.devices if device.model.category != "Display")
        return any(device.values.get("romfile") for device in cards)

    def _has_bios(self) -> bool:
        """Return whether it is the built-in BIOS that starts the machine."""
        return self.config.boot.kernel is None or self._has_roms()

    def _place_generation_id(self) -> None:
        """Tell the device where its identifier goes, as a BIOS does that follows the table loader's script."""
        if self.generation_id is not None and self.installed is not None:
            self.generation_id.put_at(self.installed.generation_id)

    def restored(self) -> None:
        """Take the place of the firmware that started the machine whose state is loaded next."""
        self._started = True
        if self.config.boot.bios is not None:
            return
        self._installed, self._restored = None, Tables(self.tables.info)
        if self._has_bios() and (installed := self.installed) is not None:
            self._bios_for(installed.e820).resume()

    @property
    def installed(self) -> InstalledTables | None:
        """Where the tables are that the guest has; None before there are any."""
        restored, self._restored = self._restored, None
        if restored is not None:
            # That is found by installing them elsewhere: the guest may have changed those that it has.
            scratch = GuestMemory(self.board.memory.size, self.board.memory.blocks)
            try:
                self._installed = restored.install(scratch)
            finally:
                scratch.close()
        return self._installed

    def _show_text_screen(self) -> None:
        if self.display is not None:
            from pyvm.machine.bios import show_text_screen

            show_text_screen(self.board, self.display)

    def _start_bios(self, e820: list[E820Entry]) -> None:
        """Let the built-in BIOS start the machine."""
        self._bios_for(e820).start()

    def _bios_for(self, e820: list[E820Entry]) -> BuiltInBios:
        if self._bios is None:
            from pyvm.machine.bios import BuiltInBios

            disks, places = self.plugger.disks.bootable, self.plugger.card_places()
            kernel = None if self.config.boot.kernel is None else self._load_kernel_again
            self._bios = BuiltInBios(self.board, self.config, disks, e820, places, kernel)
        return self._bios

    def set_order(self, letters: str) -> None:
        """Boot from these drives, as `-boot order=` names them, from the next reset on."""
        self.config.boot.order, self.config.boot.once = letters, None
        self._describe_order(letters)
        if self._bios is not None:
            self._bios.set_boot_order(letters)

    def _describe_order(self, letters: str) -> None:
        cmos.describe_boot_order(self.board.rtc, letters, check_floppies=self.config.board.fd_bootchk)

    def devices_changed(self) -> None:
        """Let the BIOS look again at what it can boot from when it starts next."""
        self._bios = None

    def firmware_call(self, vcpu: int) -> None:
        """Run the firmware service at whose entry point a vCPU is."""
        if self._bios is not None:
            self._bios.call(vcpu)

    def _set_up_hardware(self) -> None:
        from pyvm.firmware import cpu_setup, pci_setup
        from pyvm.firmware.pic_setup import pic_setup

        board = self.board
        pci_setup.setup(board.pci, self.tables.info, board.ports.write)
        for port, value in (*pic_setup(_ALL_BUT_CASCADE, _ALL), (FAST_A20_PORT, _A20_OPEN)):
            board.ports.write(port, 1, value)
        cpu_setup.virtual_wire(board.lapics[0].write)
        for index, value in cpu_setup.memory_types(self.tables.info, PHYSICAL_ADDRESS_BITS):
            board.vcpus.set_shared_msr(index, value)

    def before_resume(self) -> None:
        """The machine is about to be reset to wake from suspend-to-RAM."""
        self._kept = self.board.host_bridge.pam(), self.board.ide.config_read(IDETIM, 4)

    def resume(self) -> None:
        """Enter a guest that suspended itself to RAM where its FACS says."""
        board = self.board
        if self.config.boot.bios is not None:
            # By its copy in RAM, as it left that, firmware finds out that it runs for the second time; and it does not
            # switch IDE channels on again, which systems do not do either.
            shadow, timing = self._kept
            board.host_bridge.set_pam(shadow)
            board.ide.config_write(IDETIM, 4, timing)
            board.rtc.set_cmos(cmos.SHUTDOWN_STATUS, cmos.RESUME_FROM_RAM)
            return
        self._set_up_hardware()
        self._place_generation_id()
        self._show_text_screen()
        vector = waking_vector(board.memory, self.installed.facs) if self.installed else 0
        if not vector:
            # The guest went to sleep without saying where it is to wake: it starts anew.
            board.vcpus.set_registers(0, {"activity": "halted"})
            board.ports.write(RESET_PORT, 1, _HARD_RESET)
            return
        segment = (vector >> 4) & 0xFFFF
        board.vcpus.set_registers(
            0, {"rip": vector & 0xF, "cs": (segment, segment << 4, _REAL_MODE_LIMIT, _CODE16), "gdt": (0, 0, 0xFFFF, 0)}
        )


def _with_file(message: str, kernel: str | None, initrd: str | None) -> str:
    """Return what is wrong with a kernel or initrd with the file's name before it, unless it is in the message."""
    option, path = ("-initrd", initrd) if message.startswith("initrd") else ("-kernel", kernel)
    return message if path is None or path in message else f"{option} {path}: {message}"


def registers_of(state: BootState) -> dict[str, Any]:
    """Return the registers that a boot loader asks for as the vCPU takes them."""

    def segment(value: SegmentValue) -> tuple[int, int, int, int]:
        return value.selector, value.base, value.limit, value.attributes

    general = b"".join(state.registers.get(name, 0).to_bytes(8, "little") for name in _REGISTERS)
    data = segment(state.data)
    return {
        "gpr": general,
        "rip": state.registers.get("rip", 0),
        "rflags": state.registers.get("rflags", 2),
        "cs": segment(state.cs),
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        "tr": segment(state.tr),
        "cr0": state.cr0,
        "cr3": state.cr3,
        "cr4": state.cr4,
        "efer": state.efer,
        "gdt": (0, state.gdt_base, state.gdt_limit, 0),
        "idt": (0, 0, _REAL_MODE_IDT_LIMIT if state.mode is EntryMode.REAL else 0, 0),
        "activity": "running",
    }


def describe(board: Board, config: MachineConfig, *, vga: bool, affinity: Affinity | None = None) -> MachineInfo:
    """Return the machine as firmware describes it to an operating system."""
    uuid = bytes.fromhex(config.uuid.replace("-", "")) if config.uuid else bytes(16)
    model = board.vcpus.model
    serials = tuple(
        SerialPort(number + 1, *SERIAL_PORTS[number]) for number in range(len(SERIAL_PORTS)) if board.has_serial(number)
    )
    return MachineInfo(
        processors=tuple(Processor(apic_id) for apic_id in board.vcpus.apic_ids),
        low_ram_end=low_ram_end(board.memory.blocks),
        high_ram_end=high_ram_end(board.memory.blocks),
        serial_ports=serials,
        hpet=config.board.hpet,
        vga=vga,
        sleep_s3=not chip_number(config, POWER_CHIP, "disable_s3"),
        sleep_s4=not chip_number(config, POWER_CHIP, "disable_s4"),
        cores_per_socket=config.smp.cores,
        threads_per_core=config.smp.threads,
        cpu_signature=signature(model),
        cpu_features=feature_words(model)[0],
        affinity=affinity or Affinity(),
        system=SystemStrings(version=config.board.type, uuid=uuid),
        smbios=config.smbios or SmbiosFields(),
        acpi_tables=tuple(config.acpi_tables),
    )
