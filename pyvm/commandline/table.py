"""Every command line option, as data: its parameters, what becomes of it, and its line of help.

The command line reader, the help text and the check for options that pyvm does not have are all made from this table.
Options that QEMU has and pyvm does not are listed too, so that the answer to them can say so.
"""

from __future__ import annotations

from typing import Literal

Handling = Literal["merge", "add", "flag", "value", "monitor", "serial", "alias", "disk", "call", "harmless", "missing"]


class OptionSpec:
    """One option.

    `handling` says what becomes of it: ``merge`` joins all its uses in one record of group `target`, ``add`` makes a
    record of that group for each, ``flag`` sets and ``value`` keeps something under the name `target`, ``monitor``
    and ``serial`` keep each use in order, ``alias`` stands for the option text in `target`, ``disk`` is
    a drive with the parameters in `target` and the argument as its file, ``call`` is carried out
    when it is met, ``harmless`` may be given and changes nothing in pyvm, ``missing`` is not there yet.
    """

    __slots__ = ("arguments", "handling", "help", "name", "section", "target")

    def __init__(self, section: str, name: str, arguments: str, handling: Handling, target: str, text: str) -> None:
        self.section = section
        self.name = name
        self.arguments = arguments
        self.handling = handling
        self.target = target
        self.help = text


SECTIONS = {
    "machine": "Machine",
    "boot": "Booting",
    "devices": "Devices, disks and back ends",
    "chardev": "Consoles, sockets and monitors",
    "run": "Running",
}

_PRESENT: tuple[tuple[str, str, str, Handling, str, str], ...] = (
    ("machine", "machine", "[type=]NAME[,PROPERTY=VALUE...]", "merge", "machine",
     "the machine (default pc; '-machine help' lists them); properties: acpi, hpet, memory-backend"),
    ("machine", "M", "NAME", "alias", "machine", "short for -machine"),
    ("machine", "accel", "[accel=]tcg|qtest[,thread=single|multi]", "add", "accel",
     "what runs guest code: tcg, or nothing at all (qtest)"),
    ("machine", "cpu", "MODEL[,+FEATURE][,-FEATURE][,PROPERTY=VALUE]", "value", "cpu",
     "the CPU model (default qemu64; '-cpu help' lists them), with features switched on or off"),
    ("machine", "smp", "[cpus=]N[,maxcpus=N][,sockets=N][,dies=N][,cores=N][,threads=N]", "merge", "smp-opts",
     "how many CPUs, and their topology"),
    ("machine", "numa", "node|cpu|dist,PROPERTY=VALUE...", "add", "numa",
     "a NUMA node with its memory (memdev=ID) and CPUs, where CPUs are, or how far two nodes are apart"),
    ("machine", "m", "[size=]SIZE[,slots=N,maxmem=SIZE]", "merge", "memory",
     "guest RAM in MiB, or with a suffix k, M, G or T (default 128)"),
    ("machine", "uuid", "UUID", "value", "uuid", "the machine's UUID"),
    ("machine", "name", "[guest=]NAME[,process=NAME][,debug-threads=on|off]", "merge", "name",
     "names for the guest, the process and its threads"),
    ("machine", "rtc", "[base=utc|localtime|DATE][,clock=host|rt|vm]", "merge", "rtc",
     "where the guest's clock starts, and what makes it go"),
    ("machine", "no-acpi", "", "alias", "machine acpi=off", "short for -machine acpi=off"),
    ("machine", "no-hpet", "", "alias", "machine hpet=off", "short for -machine hpet=off"),
    ("machine", "mem-path", "PATH", "value", "mem-path", "the guest's memory is this file, or one in this directory"),
    ("machine", "mem-prealloc", "", "flag", "mem-prealloc", "take all memory from the host at the start"),
    ("machine", "nodefaults", "", "flag", "nodefaults", "no devices but those asked for"),
    ("boot", "kernel", "FILE", "value", "kernel", "boot this Linux (bzImage, vmlinux), PVH or multiboot kernel"),
    ("boot", "initrd", "FILE", "value", "initrd", "the kernel's initial RAM disk"),
    ("boot", "append", "TEXT", "value", "append", "the kernel's command line"),
    ("boot", "bios", "FILE", "value", "bios", "firmware to run instead of the built-in BIOS services"),
    ("boot", "boot",
     "[order=DRIVES][,once=DRIVES][,menu=on|off][,splash=FILE][,splash-time=MS][,reboot-timeout=MS][,strict=on|off]",
     "merge", "boot-opts", "which drives to boot from: a, b floppies, c disk, d CD-ROM, n network"),
    ("boot", "smbios", "file=FILE | type=NUMBER[,FIELD=VALUE...]", "add", "smbios",
     "what the guest reads in the tables that name the machine"),
    ("boot", "no-fd-bootchk", "", "flag", "no-fd-bootchk", "boot floppy disks without a boot signature, too"),
    ("boot", "acpitable",
     "file|data=FILE[:FILE...][,sig=SIG][,rev=N][,oem_id=ID][,oem_table_id=ID][,oem_rev=N][,asl_compiler_id=ID]...",
     "add", "acpitable", "an ACPI table for the guest: a whole one in files, or what is behind its header"),
    ("boot", "fw_cfg", "[name=]NAME,file=FILE|string=TEXT", "add", "fw_cfg", "a file that the guest finds in fw_cfg"),
    ("boot", "option-rom", "[romfile=]FILE[,bootindex=N]", "add", "option-rom",
     "a ROM that the BIOS runs before it boots, or boots from at that place of the order"),
    ("devices", "device", "MODEL[,PROPERTY=VALUE...]", "add", "device",
     "plug in a device ('-device help' lists the models, '-device MODEL,help' its properties)"),
    ("devices", "drive", "file=FILE[,format=FORMAT][,if=virtio|ide|floppy|none][,id=ID][,PARAMETER=VALUE...]", "add",
     "drive", "a disk image, with a device for it unless if=none; without if= a virtio disk (QEMU: IDE)"),
    ("devices", "blockdev", "[driver=]DRIVER,node-name=NAME[,PARAMETER=VALUE...]", "add", "blockdev",
     "a block node for -device drive=NAME, or for others to be made from"),
    ("devices", "hda", "FILE", "disk", "if=ide,index=0,media=disk", "a disk image as IDE disk 0"),
    ("devices", "hdb", "FILE", "disk", "if=ide,index=1,media=disk", "a disk image as IDE disk 1"),
    ("devices", "hdc", "FILE", "disk", "if=ide,index=2,media=disk", "a disk image as IDE disk 2"),
    ("devices", "hdd", "FILE", "disk", "if=ide,index=3,media=disk", "a disk image as IDE disk 3"),
    ("devices", "cdrom", "FILE", "disk", "if=ide,index=2,media=cdrom", "a CD-ROM image, in place of IDE disk 2"),
    ("devices", "fda", "FILE", "disk", "if=floppy,index=0", "a floppy image in drive A"),
    ("devices", "fdb", "FILE", "disk", "if=floppy,index=1", "a floppy image in drive B"),
    ("devices", "snapshot", "", "flag", "snapshot", "keep what guests write to disks in temporary files"),
    ("devices", "object", "TYPE,id=ID[,PROPERTY=VALUE...]", "add", "object",
     "a helper object such as rng-random or memory-backend-ram ('-object help' lists the types)"),
    ("devices", "global", "MODEL.PROPERTY=VALUE", "add", "global", "another default for a property of a device model"),
    ("devices", "set", "GROUP.ID.PROPERTY=VALUE", "call", "set", "change a parameter of an option given before"),
    ("devices", "audiodev", "none,id=ID", "add", "audiodev", "an audio back end; only the silent one"),
    ("devices", "netdev", "TYPE,id=ID[,PARAMETER=VALUE...]", "add", "netdev",
     "a network back end for a card's property netdev ('-netdev help' lists the types)"),
    ("devices", "nic", "TYPE|none[,model=MODEL][,mac=ADDRESS][,PARAMETER=VALUE...]", "add", "nic",
     "a network back end as for -netdev, with a card (there is none by default)"),
    ("devices", "net", "nic|TYPE|none[,PARAMETER=VALUE...]", "add", "net",
     "a card or a back end on hub 0: the older form"),
    ("chardev", "chardev", "BACKEND,id=ID[,PARAMETER=VALUE...]", "add", "chardev",
     "a back end for consoles, ports and monitors ('-chardev help' lists them)"),
    ("chardev", "serial", "BACKEND", "serial", "serial",
     "the next serial port: none, null, stdio, mon:stdio, pty, unix:PATH, tcp:HOST:PORT, file:PATH, chardev:ID"),
    ("chardev", "monitor", "BACKEND", "monitor", "readline", "a monitor for people on a back end as for -serial"),
    ("chardev", "qmp", "BACKEND", "monitor", "control",
     "a QMP monitor on a back end as for -serial; unix:PATH alone listens there, or connects where somebody listens"),
    ("chardev", "qmp-pretty", "BACKEND", "monitor", "pretty", "a QMP monitor with indented answers"),
    ("chardev", "mon", "[chardev=]ID[,mode=readline|control][,pretty=on|off]", "monitor", "mon",
     "a monitor on a -chardev"),
    ("chardev", "debugcon", "BACKEND", "value", "debugcon", "connect the debug console at port 0xe9"),
    ("chardev", "parallel", "none", "call", "parallel", "the parallel port; only none"),
    ("chardev", "echr", "NUMBER", "value", "echr", "the escape character of the terminal (default 1, Ctrl-A)"),
    ("chardev", "nographic", "", "flag", "nographic", "serial port and monitor on the terminal"),
    ("chardev", "display", "none|vnc=ADDRESS[,...]", "value", "display", "the display: none, or the same as -vnc"),
    ("chardev", "vnc",
     "[HOST]:DISPLAY|unix:PATH|none[,to=DISPLAY][,password=on][,password-secret=ID][,share=POLICY][,PARAMETER=VALUE...]",
     "add", "vnc", "show the screen to VNC viewers, and let them type and point"),
    ("chardev", "vga", "std|none", "value", "vga", "the graphics card (default std)"),
    ("run", "S", "", "flag", "start_paused", "do not start the guest until 'cont'"),
    ("run", "preconfig", "", "flag", "preconfig", "do not make the machine until a QMP client says 'x-exit-preconfig'"),
    ("run", "loadvm", "TAG", "value", "loadvm", "go on as the machine that savevm left in its disks"),
    ("run", "incoming",
     "file:FOLDER[,disks=images|overlay][,clock=keep|step]|file:PATH|tcp:HOST:PORT|unix:PATH|fd:N|exec:COMMAND|defer",
     "value", "incoming", "go on as the machine that was saved in a folder, or that migrates to here"),
    ("run", "no-reboot", "", "alias", "action reboot=shutdown", "end instead of rebooting"),
    ("run", "no-shutdown", "", "alias", "action shutdown=pause", "stop instead of ending when the guest shuts down"),
    ("run", "action", "[reboot=reset|shutdown][,shutdown=poweroff|pause][,panic=ACTION][,watchdog=ACTION]", "merge",
     "action", "what follows these events"),
    ("run", "watchdog-action", "ACTION", "alias", "action watchdog=", "short for -action watchdog=ACTION"),
    ("run", "add-fd", "fd=FD,set=SET[,opaque=TEXT]", "add", "add-fd",
     "add an inherited descriptor to the set that files named /dev/fdset/SET are opened from"),
    ("run", "trace", "[enable=]PATTERN[,events=FILE][,file=FILE]", "add", "trace",
     "tell of these trace events ('-trace help' lists them), of those in a file, in a file"),
    ("run", "dfilter", "RANGE[,RANGE...]", "value", "dfilter",
     "of which guest code to write: FIRST..LAST, FIRST+SIZE or LAST-SIZE"),
    ("run", "singlestep", "", "flag", "singlestep", "translate guest code by one instruction at a time"),
    ("run", "d", "ITEM[,ITEM...]", "value", "log", "what else to write to the log ('-d help' lists the items)"),
    ("run", "D", "FILE", "value", "logfile", "write the log to a file, not to standard error"),
    ("run", "gdb", "BACKEND", "value", "gdb",
     "let GDB connect to a back end as for -serial, e.g. tcp::1234, and debug the guest"),
    ("run", "s", "", "alias", "gdb tcp::1234", "short for -gdb tcp::1234"),
    ("run", "qtest", "BACKEND", "value", "qtest", "let a client of the qtest protocol drive the devices"),
    ("run", "qtest-log", "FILE|none", "value", "qtest-log", "where that is noted (default standard error)"),
    ("run", "daemonize", "", "flag", "daemonize", "go to the background once all is set up"),
    ("run", "pidfile", "FILE", "value", "pidfile", "write the process ID to a file, which ends with the process"),
    ("run", "msg", "[timestamp=on|off][,guest-name=on|off]", "merge", "msg", "what stands before error messages"),
    ("run", "readconfig", "FILE", "call", "readconfig", "read options from a file"),
    ("run", "h", "", "call", "help", "this text"),
    ("run", "help", "", "call", "help", "this text"),
    ("run", "version", "", "call", "version", "the version"),
    ("run", "sandbox",
     "on|off[,obsolete|spawn|resourcecontrol=allow|deny][,elevateprivileges=allow|deny|children]",
     "merge", "sandbox", "let the host refuse system calls that pyvm can do without"),
    ("run", "overcommit", "[mem-lock=off][,cpu-pm=off]", "merge", "overcommit", "only off"),
    ("run", "compat", "[deprecated-input=accept][,...]", "merge", "compat", "only the defaults"),
)  # fmt: skip

# Options that change nothing which pyvm has: no user configuration, no firmware files, no keyboard layout to apply, no
# device that cannot be migrated.
_HARMLESS = {
    "no-user-config": "",
    "L": "DIRECTORY",
    "k": "LAYOUT",
    "async-teardown": "",
    "only-migratable": "",
}

_MISSING_FLAGS = (
    "audio-help dump-vmstate enable-kvm enable-sync-profile full-screen "
    "portrait usb win2k-hack xen-attach xen-domid-restrict"
)
_MISSING_WITH_ARGUMENT = (
    "audio chroot dtb fsdev icount "
    "iscsi mtdblock pflash plugin rotate runas sd seed spice "
    "tpmdev usbdevice virtfs xen-domid"
)


def _build() -> dict[str, OptionSpec]:
    table = {row[1]: OptionSpec(*row) for row in _PRESENT}
    for name, arguments in _HARMLESS.items():
        table[name] = OptionSpec("", name, arguments, "harmless", "", "accepted; changes nothing in pyvm")
    for name in _MISSING_FLAGS.split():
        table[name] = OptionSpec("", name, "", "missing", "", "")
    for name in _MISSING_WITH_ARGUMENT.split():
        table[name] = OptionSpec("", name, "ARGUMENT", "missing", "", "")
    return table


OPTIONS: dict[str, OptionSpec] = _build()
