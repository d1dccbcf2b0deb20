"""Int 19h and 18h: finding something to boot, with a menu before that where the user wants one.

BIOS Boot Specification 1.01 (Compaq, Phoenix, Intel), sections 4 and 6: what is tried comes from a list by priority,
and a boot sector that gives up calls int 18h to have the next one tried.  What a CD-ROM boots is El Torito's affair
(:mod:`.cdrom_boot`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from pyvm.firmware.bios import data_area as area
from pyvm.firmware.bios.cdrom_boot import CdBootError
from pyvm.firmware.bios.core import Core
from pyvm.firmware.bios.disk import Disk, DiskError
from pyvm.firmware.bios.drives import FIRST_DISK, SECTOR, Drive, Drives
from pyvm.firmware.bios.keyboard import Keyboard
from pyvm.firmware.bios.machine import DEFAULT_SPLASH_MS, DiskKind
from pyvm.firmware.bios.option_roms import OptionRoms, Vector
from pyvm.firmware.bios.registers import FLAG_CARRY, FLAG_FIXED, FLAG_INTERRUPTS, Registers
from pyvm.firmware.bios.rom import INT13, SEGMENT
from pyvm.firmware.bios.video import Video
from pyvm.firmware.errors import BootError as KernelError
from pyvm.memory import GuestMemoryError
from pyvm.records import record

BOOT_ADDRESS: Final = 0x7C00
STACK_TOP: Final = 0x7000
BOOT_SIGNATURE: Final = b"\x55\xaa"
_ENTRY_AX: Final = 0xAA55
_MILLISECOND: Final = 1_000_000
_NO_CHOICE: Final = 0xFF
_ESCAPE_SCAN: Final = 0x01
_UNITS: Final = ((30, "GiB"), (20, "MiB"))
_KEYS: Final = "123456789abcdefghijklmnopqrstuvwxyz"
_KERNEL_PLACE: Final = (0, 0)
Kind = DiskKind | Literal["rom"]
_LETTERS: Final[dict[Kind, str]] = {"floppy": "a", "disk": "c", "cdrom": "d", "rom": "n"}
_USUAL: Final = "acdn"
_NAMES: Final[dict[Kind, str]] = {"floppy": "Floppy", "disk": "Hard Disk", "cdrom": "DVD/CD", "rom": "ROM"}
_DISK_VECTOR: Final = 4 * 0x13
_READ_FIRST_SECTOR: Final = 0x0201


class BootError(Exception):
    """A drive does not boot; the text is for the screen."""


@record(frozen=True)
class Kernel:
    """The kernel that the user gave, which is booted as an option ROM would boot it."""

    load: Callable[[], None]
    title: str = "Kernel"


Bootable = Drive | Vector | Kernel


@record(frozen=True)
class Entry:
    """Something to boot from: a drive, what an option ROM has, or a kernel."""

    kind: Kind
    item: Bootable
    place: tuple[int, int]
    """Its priority: lower is earlier."""


class Boot:
    """The services, and the menu."""

    def __init__(
        self, core: Core, drives: Drives, disk: Disk, video: Video, keyboard: Keyboard, roms: OptionRoms
    ) -> None:
        self._core = core
        self._ebda = core.ebda
        self._drives = drives
        self._disk = disk
        self._video = video
        self._keyboard = keyboard
        self._roms = roms
        self._order = core.machine.boot.order
        self._started = False

    def initialise(self) -> None:
        """Take over the order for this start of the machine; at each reset."""
        boot = self._core.machine.boot
        self._order = boot.order if self._started or boot.once is None else boot.once
        self._started = True
        self._ebda.set_byte(area.BOOT_CHOICE, _NO_CHOICE)
        self._disk.emulation.clear()
        self._drives.forget()
        self._roms.initialise()

    # -- the list ---------------------------------------------------------------------------------------------------

    def _all(self) -> list[Entry]:
        """Return every drive, in the order in which the menu shows and int 19h tries them."""
        vectors, machine = self._roms.vectors(), self._core.machine
        indices = [item.bootindex for item in machine.disks] + [item.bootindex for item in vectors]
        ordered = machine.kernel is not None or any(index is not None for index in indices)
        strict = machine.boot.strict and ordered
        entries = [] if machine.kernel is None else [Entry("rom", Kernel(machine.kernel), _KERNEL_PLACE)]
        for drive in (*self._drives.floppies, *self._drives.disks, *self._drives.cds):
            place = self._place(drive.disk.kind, drive.disk.bootindex)
            if not strict or drive.disk.bootindex is not None:
                entries.append(Entry(drive.disk.kind, drive, place))
        for vector in vectors:
            kind: Kind = "disk" if vector.drives else "rom"
            if not strict or vector.drives or vector.bootindex is not None:
                entries.append(Entry(kind, vector, self._place(kind, vector.bootindex)))
        return sorted(entries, key=lambda entry: entry.place)

    def _place(self, kind: Kind, index: int | None) -> tuple[int, int]:
        letter = _LETTERS[kind]
        if index is not None:
            return 0, index
        position = self._order.find(letter)
        return (1, position) if position >= 0 else (2, _USUAL.index(letter))

    def _to_try(self) -> list[Entry]:
        """Return what int 19h tries: of floppy drives and hard disks the first only."""
        result: list[Entry] = []
        for entry in self._chosen():
            if entry.kind in ("cdrom", "rom") or all(other.kind != entry.kind for other in result):
                result.append(entry)
        return result

    def _chosen(self) -> list[Entry]:
        """Return every drive, and first what the menu chose."""
        entries = self._all()
        choice = self._ebda.byte(area.BOOT_CHOICE)
        if choice < len(entries):
            entries.insert(0, entries.pop(choice))
        return entries

    # -- the menu ---------------------------------------------------------------------------------------------------

    def start(self, registers: Registers) -> None:
        """Go on from POST: offer the menu, or boot."""
        boot = self._core.machine.boot
        self._go(registers)
        if boot.menu and self._all():
            self._video.print("Press ESC for boot menu.\n\n")
            milliseconds = DEFAULT_SPLASH_MS if boot.splash_time is None else max(boot.splash_time, 0)
            self._core.push_deadline(registers, milliseconds * _MILLISECOND)
            registers.goto = "menu_prompt"

    def _go(self, registers: Registers) -> None:
        """Boot, but let option ROMs that have drives connect them before."""
        registers.goto = "start"
        if any(vector.drives for vector in self._roms.vectors()):
            registers.goto = "connect"
        else:
            self._roms.memory_manager.close()

    def menu_prompt(self, registers: Registers) -> None:
        """Wait for Esc while the prompt is shown."""
        key = self._keyboard.take()
        if key is not None and key >> 8 == _ESCAPE_SCAN:
            self._core.drop_deadline(registers)
            self._show_menu()
            registers.goto = "menu_choice"
        elif self._core.time_left(registers):
            registers.goto = "menu_prompt"
        else:
            self._go(registers)

    def _show_menu(self) -> None:
        lines = [f"{key}. {self._title(entry.item)}" for key, entry in zip(_KEYS, self._all(), strict=False)]
        self._video.print("Select boot device:\n\n" + "\n".join(lines) + "\n")

    def _title(self, drive: Bootable) -> str:
        if not isinstance(drive, Drive):
            return drive.title
        kind = _NAMES[drive.disk.kind]
        if drive.disk.kind == "floppy":
            return f"{kind} [Drive {'AB'[drive.number & 1]}]"
        size = drive.disk.backend.size
        shift, unit = next((pair for pair in _UNITS if size >= 10 << pair[0]), (10, "KiB"))
        text = f"{size >> shift} {unit}"
        return f"{kind} [{drive.disk.name}] ({drive.disk.interface}, {text if size else 'no medium'})"

    def menu_choice(self, registers: Registers) -> None:
        """Wait for the key of an entry; Esc boots in the usual order."""
        registers.goto = "menu_choice"
        key = self._keyboard.take()
        if key is None:
            return
        character = chr(key & 0xFF).lower()
        index = _KEYS.find(character) if key & 0xFF else -1
        if key >> 8 == _ESCAPE_SCAN:
            self._go(registers)
        elif 0 <= index < len(self._all()):
            self._choose(index)
            self._go(registers)

    def _choose(self, index: int) -> None:
        drive = self._all()[index].item
        if isinstance(drive, Drive) and drive.disk.kind == "disk":
            self._drives.put_first(drive)
            index = next(place for place, entry in enumerate(self._all()) if _is_first_disk(entry.item))
        self._ebda.set_byte(area.BOOT_CHOICE, index)
        self._video.print("\n")

    # -- drives of option ROMs -------------------------------------------------------------------------------------

    def connect(self, registers: Registers) -> bool:
        """Number the hard disks, and let option ROMs add theirs, in the order of booting; return whether all is done.

        A ROM takes the number behind those that the data area counts.
        """
        done = self._ebda.byte(area.ROM_CONNECT)
        if done == 0:
            self._drives.hide_disks()
        entries = [entry for entry in self._chosen() if entry.kind == "disk"]
        for index in range(done, len(entries)):
            self._ebda.set_byte(area.ROM_CONNECT, index + 1)
            item = entries[index].item
            if isinstance(item, Vector):
                self._roms.call(registers, item.segment, item.offset, item.address, "connect")
                return False
            assert isinstance(item, Drive)
            self._drives.show(next(place for place, drive in enumerate(self._drives.disks) if drive.disk is item.disk))
        self._drives.show_all()
        self._roms.memory_manager.close()
        registers.goto = "start"
        return True

    # -- int 19h and 18h --------------------------------------------------------------------------------------------

    def first(self, registers: Registers) -> None:
        """Int 19h: boot."""
        self._disk.emulation.clear()
        self._boot_from(registers, 0)

    def next(self, registers: Registers) -> None:
        """Int 18h: what was booted has given up; try the one behind it."""
        self._disk.emulation.clear()
        self._boot_from(registers, self._ebda.byte(area.BOOT_NEXT))

    def _boot_from(self, registers: Registers, first: int) -> None:
        entries = self._to_try()
        for index in range(first, len(entries)):
            self._ebda.set_byte(area.BOOT_NEXT, index + 1)
            item = entries[index].item
            self._video.print(f"Booting from {_NAMES[entries[index].kind]}...\n")
            if isinstance(item, Vector) and not item.drives:
                self._roms.call(registers, item.segment, item.offset, item.address, "int18")
                return
            if isinstance(item, Kernel):
                if self._enter_kernel(item):
                    return
                continue
            if entries[index].kind != "cdrom" and self._is_disk_service_taken():
                self._read_by_interrupt(registers, entries[index].kind)
                return
            try:
                segment, number = self._load(item)
            except BootError as error:
                self._video.print(f"Boot failed: {error}\n\n")
                continue
            self._enter(registers, segment, number)
            return
        self._ebda.set_byte(area.BOOT_NEXT, len(entries))
        self._nothing(registers)

    def _enter_kernel(self, kernel: Kernel) -> bool:
        """Load the kernel, which then has the processor; return False where it cannot be loaded any more."""
        try:
            kernel.load()
        except KernelError as error:
            self._video.print(f"Boot failed: {error}\n\n")
            return False
        return True

    def _is_disk_service_taken(self) -> bool:
        return self._core.memory.read_u32(_DISK_VECTOR) != SEGMENT << 16 | INT13

    def _read_by_interrupt(self, registers: Registers, kind: Kind) -> None:
        """Have the first sector read by int 13h itself: an option ROM answers it now."""
        registers.ax, registers.cx = _READ_FIRST_SECTOR, 1
        registers.dx = FIRST_DISK if kind == "disk" else 0
        registers.ss, registers.esp = 0, STACK_TOP
        registers.es, registers.bx = 0, BOOT_ADDRESS
        registers.eflags = FLAG_FIXED | FLAG_INTERRUPTS
        registers.goto = "boot_read"

    def read_done(self, registers: Registers) -> None:
        """Int 13h has read, or failed to read, a boot sector."""
        index, entries = self._ebda.byte(area.BOOT_NEXT), self._to_try()
        is_disk = 0 < index <= len(entries) and entries[index - 1].kind == "disk"
        try:
            if registers.eflags & FLAG_CARRY:
                raise BootError("could not read the boot disk")
            self._check_boot_sector(is_disk)
        except BootError as error:
            self._video.print(f"Boot failed: {error}\n\n")
            self._boot_from(registers, index)
        else:
            self._enter(registers, BOOT_ADDRESS >> 4, FIRST_DISK if is_disk else 0)

    def _check_boot_sector(self, is_disk: bool) -> None:
        if not is_disk and not self._core.machine.boot.check_floppies:
            return
        if self._core.memory.read(BOOT_ADDRESS + SECTOR - 2, 2) != BOOT_SIGNATURE:
            raise BootError("not a bootable disk")

    def _load(self, drive: Drive | Vector) -> tuple[int, int]:
        """Load what `drive` boots; return (segment, drive number) to start it with.  Raises BootError."""
        if isinstance(drive, Drive) and drive.disk.kind == "cdrom":
            try:
                return self._disk.emulation.load(drive)
            except CdBootError as error:
                raise BootError(f"Could not read from CDROM (code {error.code:04x})") from None
            except GuestMemoryError:
                raise BootError("the CDROM's boot image does not fit in memory") from None
        is_disk = isinstance(drive, Vector) or drive.disk.kind == "disk"
        number = FIRST_DISK if is_disk else 0
        current = self._drives.find(number)
        try:
            if current is None:
                raise BootError("could not read the boot disk")
            self._disk.transfer(current, BOOT_ADDRESS, 0, 1, False)
        except DiskError:
            raise BootError("could not read the boot disk") from None
        self._check_boot_sector(is_disk)
        return BOOT_ADDRESS >> 4, number

    def _enter(self, registers: Registers, segment: int, number: int) -> None:
        """Enter what was loaded with the drive's number in DL."""
        for name in ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "ds", "es", "ss"):
            setattr(registers, name, 0)
        registers.ax, registers.dl = _ENTRY_AX, number
        registers.esp = STACK_TOP
        registers.eflags = FLAG_FIXED | FLAG_INTERRUPTS
        # Some boot sectors take for granted that the segment is 0.
        registers.cs, registers.eip = segment & 0xF000, (segment & 0x0FFF) << 4

    def _nothing(self, registers: Registers) -> None:
        timeout = self._core.machine.boot.reboot_timeout
        registers.ss, registers.esp = 0, STACK_TOP
        if timeout is None or timeout < 0:
            self._video.print("No bootable device.\n")
            registers.goto = "halt"
        else:
            self._video.print(f"No bootable device.  Retrying in {timeout // 1000} seconds.\n")
            self._core.push_deadline(registers, timeout * _MILLISECOND)
            registers.goto = "retry"

    def retry(self, registers: Registers) -> None:
        """Wait, then start the machine again."""
        registers.goto = "retry"
        if self._core.time_left(registers) == 0:
            self._video.print("Rebooting.\n")
            self._core.reset_machine()
            registers.goto = "halt"


def _is_first_disk(item: Bootable) -> bool:
    return isinstance(item, Drive) and item.number == FIRST_DISK
