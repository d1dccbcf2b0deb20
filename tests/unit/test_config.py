"""From the command line to the record of a machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.address import FdAddress, UnixAddress
from pyvm.chardev.options import SocketOptions, StdioOptions, VcOptions
from pyvm.commandline import HelpRequest, parse_arguments
from pyvm.commandline.table import OPTIONS
from pyvm.config import MachineConfig
from pyvm.devices.properties import (
    PCI_PROPERTIES,
    DeviceModel,
    Property,
    find_model,
    model_list,
    parse_property,
    property_list,
    set_properties,
)
from pyvm.errors import ConfigError
from pyvm.options import escape

MIB = 1 << 20


def config(*words: str, terminal: bool = False) -> MachineConfig:
    return parse_arguments(words, terminal=terminal)


def refused(*words: str) -> str:
    """Return the one line that the command line is refused with."""
    with pytest.raises(ConfigError) as caught:
        parse_arguments(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that makes a file and returns its path."""

    def make(name: str, text: str = "content") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make


# The machine and its memory


def test_nothing_said_is_qemus_default_machine() -> None:
    found = config()
    assert found.board.type == "pc-i440fx-7.2"
    assert found.memory.size == 128 * MIB
    assert (found.smp.cpus, found.smp.max_cpus) == (1, 1)
    assert found.cpu.option == "qemu64"
    assert [type(chardev.options) for chardev in found.chardevs] == [VcOptions]
    assert found.serials == ["serial0"]
    assert found.monitors == []


def test_order_is_free_and_the_last_word_counts() -> None:
    found = config("-device", "virtserialport,chardev=c", "-m", "1G", "-chardev", "null,id=c", "-m", "256")
    assert found.memory.size == 256 * MIB
    assert found.devices[0].properties == {"chardev": "c"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64 * MIB),
        ("1G", 1024 * MIB),
        ("1.5G", 1536 * MIB),
        ("size=2048k", 2 * MIB),
        ("", 128 * MIB),
        ("1025k", 1056768),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert config("-m", text).memory.size == size


def test_memory_slots() -> None:
    memory = config("-m", "512,slots=2,maxmem=1G").memory
    assert (memory.size, memory.slots, memory.max_size) == (512 * MIB, 2, 1024 * MIB)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-foo", "-foo: invalid option"),
        ("--foo", "--foo: invalid option"),
        ("-m", "-m: requires an argument"),
        ("-m 0", "-m 0: the guest needs at least 1 MiB of memory"),
        ("-m 512k", "-m 512k: the guest needs at least 1 MiB of memory"),
        ("-m 1G,foo=1", "-m 1G,foo=1: Invalid parameter 'foo'"),
        ("-m 99999999999T", "-m 99999999999T: Value '99999999999T' is out of range for parameter 'size'"),
        ("-m 1G,slots=2", "-m 1G,slots=2: slots specified but no max-size"),
        (
            "-m 3G,maxmem=2G,slots=1",
            ("-m 3G,maxmem=2G,slots=1: invalid value of maxmem: maximum memory size (0x80000000) must be at least "
            "the initial memory size (0xc0000000)"),
        ),
        ("-smp 0", "-smp 0: Invalid CPU topology: CPU topology parameters must be greater than zero"),
        ("-smp abc", "-smp abc: Parameter 'cpus' expects a number"),
        ("-smp -1", "-smp -1: Parameter 'cpus' expects a number"),
        ("-smp 256", "-smp 256: Invalid SMP CPUs 256. The max CPUs supported by machine 'pc-i440fx-7.2' is 255"),
        (
            "-smp 2,maxcpus=1",
            ("-smp 2,maxcpus=1: Invalid CPU topology: maxcpus must be equal to or greater than smp: "
            "sockets (1) * dies (1) * cores (1) * threads (1) == maxcpus (1) < smp_cpus (2)"),
        ),
        (
            "-smp 4,cores=3",
            ("-smp 4,cores=3: Invalid CPU topology: product of the hierarchy must match maxcpus: "
            "sockets (1) * dies (1) * cores (3) * threads (1) != maxcpus (4)"),
        ),
        ("-smp 1,clusters=2", "-smp 1,clusters=2: clusters not supported by this machine's CPU topology"),
        ("-machine none -smp 2", "-smp 2: Invalid SMP CPUs 2. The max CPUs supported by machine 'none' is 1"),
        ("-machine q", "-machine q: unsupported machine type 'q' (-machine help lists the supported ones)"),
        ("-machine pc,foo=1", "-machine pc,foo=1: Property 'pc-i440fx-7.2-machine.foo' not found"),
        ("-machine none,hpet=on", "-machine none,hpet=on: Property 'none-machine.hpet' not found"),
        ("-machine pc,usb=on", "-machine pc,usb=on: usb=on is not supported by pyvm yet (only off)"),
        ("-machine pc,accel=x", "-machine pc,accel=x: invalid accelerator x"),
        ("-machine pc,accel=", "-machine pc,accel=: no accelerator found"),
        ("-machine accel=tcg -accel tcg", '-accel tcg: The -accel and "-machine accel=" options are incompatible'),
        ("-accel kvm", "-accel kvm: accelerator kvm is not supported by pyvm (only tcg)"),
        ("-accel tcg,thread=x", "-accel tcg,thread=x: Parameter 'thread' does not accept value 'x'"),
        ("-cpu ,+avx", "-cpu option cannot be empty"),
        ("-kernel /nonexistent", "could not open kernel file '/nonexistent': No such file or directory"),
        ("-kernel /", "could not open kernel file '/': Is a directory"),
        ("-initrd x", "-initrd only allowed with -kernel option"),
        ("-append x", "-append only allowed with -kernel option"),
        ("-boot z", "-boot z: Invalid boot device 'z'"),
        ("-boot aa", "-boot aa: Boot device 'a' was given twice"),
        (
            "-boot splash=x.bmp",
            "-boot splash=x.bmp: splash pictures are shown by a firmware (-bios FILE); the built-in BIOS has text only",
        ),
        ("-boot foo=1", "-boot foo=1: Invalid parameter 'foo'"),
        ("-uuid x", "-uuid x: failed to parse UUID string: wrong format"),
        ("-name a,foo=1", "-name a,foo=1: Invalid parameter 'foo'"),
        ("-rtc clock=x", "-rtc clock=x: Parameter 'clock' does not accept value 'x'"),
        (
            "-rtc base=x",
            "-rtc base=x: invalid datetime format (valid formats: '2006-06-17T16:01:21' or '2006-06-17')",
        ),
        ("-action panic=x", "-action panic=x: Parameter 'panic' does not accept value 'x'"),
        ("-watchdog-action x", "-watchdog-action x: Parameter 'watchdog' does not accept value 'x'"),
        ("-echr xx", "-echr xx: Bad argument to echr: expected the number of a character, 0 to 255"),
        ("-device ,x=1", "-device ,x=1: Parameter 'driver' is missing"),
        (
            "-device a,id=1",
            (
                "-device a,id=1: Parameter 'id' expects an identifier "
                "(letters, digits, '-', '.', '_', starting with a letter)"
            ),
        ),
        ("-device a,id=x -device b,id=x", "-device b,id=x: Duplicate ID 'x' for device"),
        ("-object foo,id=a", "-object foo,id=a: Parameter 'qom-type' does not accept value 'foo'"),
        ("-object rng-egd,id=a", "-object rng-egd,id=a: Parameter 'chardev' is missing"),
        ("-object pef-guest,id=a", "-object pef-guest,id=a: invalid object type: pef-guest"),
        (
            "-object iothread,id=a,poll-grow=x",
            "-object iothread,id=a,poll-grow=x: Parameter 'poll-grow' expects an int64 value",
        ),
        (
            "-object memory-backend-ram,id=a,size=x",
            "-object memory-backend-ram,id=a,size=x: Parameter 'size' expects a size value",
        ),
        ("-object rng-random", "-object rng-random: Parameter 'id' is missing"),
        ("-object rng-random,id=a,foo=1", "-object rng-random,id=a,foo=1: Invalid parameter 'foo'"),
        ("-object memory-backend-ram,id=m", "-object memory-backend-ram,id=m: Parameter 'size' is missing"),
        (
            "-object memory-backend-ram,id=m,size=0",
            "-object memory-backend-ram,id=m,size=0: property 'size' of memory-backend-ram doesn't take value '0'",
        ),
        ("-machine memory-backend=m", "Memory backend 'm' not found"),
        (
            "-m 1M -machine memory-backend=m -object memory-backend-ram,id=m,size=2M",
            "Machine memory size does not match the size of the memory backend",
        ),
        ("-drive file=/x,if=foo", "-drive file=/x,if=foo: unsupported bus type 'foo'"),
        ("-drive if=virtio", "-drive if=virtio: Device needs media, but drive is empty"),
        ("-drive file=/x,if=virtio", "-drive file=/x,if=virtio: Could not open '/x': No such file or directory"),
        ("-drive file=/x,if=virtio,format=foo", "-drive file=/x,if=virtio,format=foo: Unknown driver 'foo'"),
        (
            "-drive file=/x,if=virtio,format=vmdk",
            (
                "-drive file=/x,if=virtio,format=vmdk: format 'vmdk' is not supported by pyvm yet"
                " (only raw, qcow2 and luks)"
            ),
        ),
        ("-drive file=/x,if=none,cache=x", "-drive file=/x,if=none,cache=x: invalid cache option"),
        ("-global foo=1", "-global foo=1: Invalid parameter 'foo'"),
        ("-set foo", '-set foo: can\'t parse: "foo"'),
        ("-set device.a.b=1", '-set device.a.b=1: there is no device "a" defined'),
        ("-serial foo", "-serial foo: 'foo' is not a valid char driver"),
        ("-serial chardev:x", '-serial chardev:x: chardev "x" not found'),
        ("-machine none -serial null", "-serial null: machine 'none' has no serial ports"),
        ("-mon x", '-mon x: chardev "x" not found'),
        ("-chardev null,id=a -mon a,mode=x", "-mon a,mode=x: Parameter 'mode' does not accept value 'x'"),
        ("-chardev null,id=a -mon a,pretty=on", "-mon a,pretty=on: 'pretty' is not compatible with HMP monitors"),
        ("-chardev null,id=a -mon a -mon a", "-mon a: Device 'a' is in use"),
        ("-chardev null,id=a -mon a -device x,chardev=a", "-device x,chardev=a: Device 'a' is in use"),
        ("-chardev null", "-chardev null: chardev: no id specified"),
        ("-chardev null,id=a -chardev null,id=a", "-chardev null,id=a: Duplicate ID 'a' for chardev"),
        ("-chardev foo,id=a", "-chardev foo,id=a: 'foo' is not a valid char driver name"),
        ("-chardev null,id=a,foo=1", "-chardev null,id=a,foo=1: Invalid parameter 'foo'"),
        ("-serial stdio -monitor stdio", "-monitor stdio: cannot use stdio by multiple character devices"),
        ("-daemonize -serial stdio", "-serial stdio: cannot use stdio with -daemonize"),
        ("-daemonize -nographic", "-nographic cannot be used with -daemonize"),
        ("-display foo", "-display foo: Parameter 'type' does not accept value 'foo'"),
        ("-display gtk,gl=on", "-display gtk,gl=on: not supported by pyvm yet (only none and vnc)"),
        ("-vga foo", "-vga foo: unknown vga type: foo"),
        ("-net zz", "-net zz: Parameter 'type' does not accept value 'zz'"),
        ("-sandbox maybe", "-sandbox maybe: Parameter 'enable' expects 'on' or 'off'"),
        ("-sandbox on,spawn=children", "-sandbox on,spawn=children: invalid argument for spawn"),
        ("-sandbox on,x=deny", "-sandbox on,x=deny: Invalid parameter 'x'"),
        ("-overcommit mem-lock=on", "-overcommit mem-lock=on: mem-lock=on is not supported by pyvm yet"),
        ("-msg timestamp=x", "-msg timestamp=x: Parameter 'timestamp' expects 'on' or 'off'"),
        ("-spice port=1", "-spice: not supported by pyvm yet"),
        ("-enable-kvm", "-enable-kvm: not supported by pyvm yet"),
        ("-fw_cfg foo", "-fw_cfg foo: name, plus exactly one of file, string and gen_id, are needed"),
        ("-readconfig /x", "-readconfig /x: Could not open '/x': No such file or directory"),
    ],
)  # fmt: skip
def test_refusals(words: str, message: str) -> None:
    assert refused(*words.split(" ")) == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", (4, 4, 1, 1, 4, 1)),
        ("4,sockets=2", (4, 4, 2, 1, 2, 1)),
        ("4,cores=2", (4, 4, 2, 1, 2, 1)),
        ("8,sockets=2,cores=2", (8, 8, 2, 1, 2, 2)),
        ("2,maxcpus=8,threads=2", (2, 8, 1, 1, 4, 2)),
        ("cores=2,threads=2", (4, 4, 1, 1, 2, 2)),
        ("4,dies=2", (4, 4, 1, 2, 2, 1)),
        ("255", (255, 255, 1, 1, 255, 1)),
    ],
)
def test_topology(text: str, expected: tuple[int, ...]) -> None:
    smp = config("-smp", text).smp
    assert (smp.cpus, smp.max_cpus, smp.sockets, smp.dies, smp.cores, smp.threads) == expected


def test_machine_properties_reach_the_board_and_other_records() -> None:
    found = config("-M", "pc-i440fx-6.2,accel=kvm:tcg,hpet=off,smp.cpus=3,memory.size=64M", "-no-acpi")
    assert (found.board.type, found.board.hpet, found.board.acpi) == ("pc-i440fx-6.2", False, False)
    assert found.smp.cpus == 3
    assert found.memory.size == 64 * MIB


def test_a_memory_backend_gives_the_size() -> None:
    found = config(
        "-machine", "memory-backend=m", "-object", '{"qom-type":"memory-backend-ram","id":"m","size":33554432}'
    )
    assert found.memory.size == found.memory.max_size == 32 * MIB
    assert found.objects[0].properties == {"size": 32 * MIB}


def test_where_main_memory_is(tmp_path: Path) -> None:
    found = config("-m", "32", "-mem-path", str(tmp_path))
    assert found.board.memory_backend == "pc.ram"
    (backend,) = found.objects
    assert (backend.type, backend.id) == ("memory-backend-file", "pc.ram")
    assert backend.properties == {"size": 32 * MIB, "prealloc": False, "mem-path": str(tmp_path)}
    (backend,) = config("-m", "32", "-mem-prealloc").objects
    assert (backend.type, backend.properties) == ("memory-backend-ram", {"size": 32 * MIB, "prealloc": True})
    taken = ("-machine", "memory-backend=m", "-object", "memory-backend-ram,id=m,size=32M")
    assert refused("-mem-path", "/tmp", *taken) == "'-mem-path' can't be used together with '-machine memory-backend'"
    assert [item.id for item in config("-mem-prealloc", *taken).objects] == ["m"]


def test_boot(file: Callable[[str], str]) -> None:
    kernel, initrd = file("k"), file("i")
    found = config(
        "-kernel", kernel, "-initrd", initrd, "-append", "a=1,2 b", "-boot", "once=d,strict=on,reboot-timeout=-1"
    )
    assert (found.boot.kernel, found.boot.initrd, found.boot.append) == (kernel, initrd, "a=1,2 b")
    assert (found.boot.order, found.boot.once, found.boot.strict) == ("cad", "d", True)
    assert "machine 'none'" in refused("-machine", "none", "-kernel", kernel)
    assert "could not load initrd '/x'" in refused("-kernel", kernel, "-initrd", "/x")


def test_a_daemon_finds_its_files_from_the_root_directory(
    file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(file("k"))
    monkeypatch.chdir(path.parent)
    assert config("-kernel", "k").boot.kernel == "k"
    found = config("-daemonize", "-kernel", "k", "-initrd", "k")
    assert (found.boot.kernel, found.boot.initrd) == (str(path), str(path))


def test_names_and_clock() -> None:
    found = config(
        "-name", "guest=g,process=p,debug-threads=on", "-uuid", "00112233-4455-6677-8899-AABBCCDDEEFF",
        "-rtc", "base=2006-06-17T16:01:21,clock=vm,driftfix=slew", "-msg", "timestamp=on", "-echr", "0x14",
    )  # fmt: skip
    assert (found.name, found.process_name, found.debug_threads) == ("g", "p", True)
    assert found.uuid == "00112233-4455-6677-8899-aabbccddeeff"
    assert (found.rtc.base, found.rtc.clock, found.rtc.driftfix) == (1150560081, "vm", "slew")
    assert found.message_timestamps
    assert found.escape_character == 0x14
    assert config("-rtc", "base=localtime").rtc.base == "localtime"


def test_actions_and_their_short_forms() -> None:
    actions = config("-no-reboot", "-no-shutdown", "-action", "panic=none", "-watchdog-action", "pause").actions
    assert (actions.reboot, actions.shutdown, actions.panic, actions.watchdog) == ("shutdown", "pause", "none", "pause")


def test_flags() -> None:
    found = config("-S", "-nodefaults", "-daemonize", "-pidfile", "/tmp/p", "-no-user-config")
    assert found.start_paused
    assert found.nodefaults
    assert found.daemonize
    assert found.pidfile == "/tmp/p"
    assert found.serials == found.chardevs == []


# Devices, drives and the like


def test_devices_in_both_syntaxes() -> None:
    found = config(
        "-device", "virtio-rng-pci,id=r,bus=pci.0,addr=5", "-device", '{"driver":"b","id":"x","v":true,"n":2}'
    )
    first, second = found.devices
    assert (first.driver, first.id, first.bus, first.properties, first.typed) == (
        "virtio-rng-pci", "r", "pci.0", {"addr": "5"}, False,
    )  # fmt: skip
    assert (second.driver, second.id, second.properties, second.typed) == ("b", "x", {"v": True, "n": 2}, True)
    assert second.origin.startswith("-device {")


def test_set_changes_an_earlier_option() -> None:
    assert config("-device", "x,id=a", "-set", "device.a.addr=7").devices[0].properties == {"addr": "7"}


def test_globals() -> None:
    found = config("-global", "a.b.c=d,e", "-global", "driver=x,property=y,value=z").globals
    assert [(item.driver, item.property, item.value) for item in found] == [("a", "b.c", "d,e"), ("x", "y", "z")]


def test_drives(file: Callable[[str], str]) -> None:
    path = file("disk")
    first, second = config(
        "-drive", f"file={path},format=raw,if=virtio,readonly=on,cache=none,discard=unmap",
        "-drive", f"file={path},if=none,id=d,cache.direct=off,cache=directsync,werror=stop",
    ).drives  # fmt: skip
    assert (first.id, first.interface, first.format, first.readonly) == ("virtio0", "virtio", "raw", True)
    assert (first.writeback, first.direct, first.no_flush, first.discard) == (True, True, False, True)
    assert (second.id, second.interface, second.format) == ("d", "none", None)
    assert (second.writeback, second.direct, second.werror) == (False, False, "stop")
    assert "Duplicate ID 'd' for drive" in refused(*["-drive", f"file={path},if=none,id=d"] * 2)


def test_where_drives_are(file: Callable[[str], str]) -> None:
    """The names are QEMU's; without ``if=`` a drive is virtio here."""
    path = file("disk,1")
    found = config("-hdb", path, "-drive", f"file={escape(path)}", "-cdrom", path, "-fdb", path, path)
    places = [(it.id, it.interface, it.bus, it.unit, it.media, it.readonly) for it in found.drives]
    assert places == [
        ("ide0-hd1", "ide", 0, 1, "disk", False),
        ("virtio0", "virtio", 0, 0, "disk", False),
        ("ide1-cd0", "ide", 1, 0, "cdrom", True),
        ("floppy1", "floppy", 0, 1, "disk", False),
        ("ide0-hd0", "ide", 0, 0, "disk", False),
    ]
    assert all(it.file == path for it in found.drives)
    assert [it.id for it in found.default_drives] == ["floppy0"]
    found = config("-drive", "if=ide,media=cdrom", "-drive", "if=ide,media=cdrom,id=x", "-drive", "if=none,index=3")
    assert [(it.id, it.bus, it.unit) for it in found.drives] == [("ide0-cd0", 0, 0), ("x", 0, 1), ("none3", 0, 3)]
    for arguments, names in (
        ([], ["ide1-cd0", "floppy0"]),
        (["-nodefaults"], []),
        (["-machine", "none"], []),
        (["-device", "scsi-hd"], ["floppy0"]),
        (["-device", "isa-fdc"], ["ide1-cd0"]),
        (["-hdc", path], ["floppy0"]),
    ):
        assert [it.id for it in config(*arguments).default_drives] == names


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("if=none,index=0", "drive with bus=0, unit=0 (index=0) exists"),
        ("if=none,unit=0", "drive with bus=0, unit=0 (index=-1) exists"),
        ("if=ide,media=cdrom,bus=0,unit=7", "unit 7 too big (max is 1)"),
        ("if=ide,media=cdrom,index=1,unit=1", "index cannot be used with bus and unit"),
        ("if=ide,media=cdrom,index=4", "machine type does not support if=ide,bus=2,unit=0"),
        ("if=floppy,index=2", "machine type does not support if=floppy,bus=0,unit=2"),
        ("if=scsi,media=cdrom", "machine type does not support if=scsi,bus=0,unit=0"),
        ("if=pflash", "if=pflash is not supported by pyvm yet"),
        ("if=ide", "Device needs media, but drive is empty"),
        ("if=none,media=x", "'x' invalid media"),
        ("if=none,aio=x", "invalid aio option"),
        ("if=none,discard=x", "Invalid discard option"),
        ("if=none,detect-zeroes=x", "invalid parameter value: x"),
        ("if=none,werror=x", "'x' invalid write error action"),
        ("if=none,rerror=enospc", "'enospc' invalid read error action"),
        ("if=floppy,werror=stop", "werror is not supported by this bus type"),
        (
            "if=none,bps=1,throttling.bps-total=1",
            "'throttling.bps-total' and its alias 'bps' can't be used at the same",
        ),
        ("if=none,iops_rd_max=1", "bps_max/iops_max require corresponding bps/iops values"),
        ("if=none,read-only=on,readonly=on", "'read-only' and its alias 'readonly' can't be used at the same time"),
        ("if=none,stats-intervals.0=0", "Invalid interval length: 0"),
        ("if=none,format=raw,driver=raw", "Cannot specify both 'driver' and 'format'"),
        ("if=none,file=/x,file.filename=/x", "Can't specify 'file' and 'filename' options at the same time"),
    ],
)
def test_drives_that_cannot_be(parameters: str, message: str) -> None:
    """The texts are those of QEMU 7.2."""
    given = refused("-drive", "if=none,id=first", "-drive", parameters)
    assert given.startswith(f"-drive {parameters}: {message}")


def test_what_is_said_of_a_drive(file: Callable[[str], str]) -> None:
    path = file("disk")
    drive = config(
        "-drive", f"file={path},iops=10,bps_wr_max=50,bps_wr=5,group=g,snapshot=on,copy-on-read=on,aio=io_uring,"
        "stats-intervals.0=5,stats-account-failed=off,node-name=n,file.locking=off,detect-zeroes=unmap",
    ).drives[0]  # fmt: skip
    assert drive.limits == {"iops-total": 10, "bps-write": 5, "bps-write-max": 50}
    assert (drive.throttle_group, drive.snapshot, drive.copy_on_read, drive.aio) == ("g", True, True, "io_uring")
    assert (drive.stats_intervals, drive.account_failed, drive.account_invalid) == ([5], False, True)
    assert drive.options == {"node-name": "n", "file.locking": "off"}
    assert drive.detect_zeroes == "on"
    assert config("-snapshot", "-drive", f"file={path}").drives[0].snapshot
    assert not config("-snapshot", "-drive", f"file={path},snapshot=off").drives[0].snapshot


def test_block_nodes() -> None:
    found = config("-blockdev", "null-co,node-name=a,cache.direct=on", "-blockdev", '{"driver":"x","size":5}').blockdevs
    assert [(it.options, it.typed) for it in found] == [
        ({"driver": "null-co", "node-name": "a", "cache": {"direct": "on"}}, False),
        ({"driver": "x", "size": 5}, True),
    ]


def test_throttle_groups(file: Callable[[str], str]) -> None:
    found = config(
        "-object", "throttle-group,id=a,x-iops-total=5",
        "-object", '{"qom-type":"throttle-group","id":"b","limits":{"bps-read":7}}',
        "-object", "iothread,id=c,poll-max-ns=1",
    ).objects  # fmt: skip
    assert [it.properties for it in found] == [{"x-iops-total": 5}, {"x-bps-read": 7}, {"poll-max-ns": 1}]
    text = '{"qom-type":"throttle-group","id":"b","limits":{"foo":7}}'
    assert refused("-object", text).endswith("Parameter 'limits.foo' is unexpected")


def test_fw_cfg(file: Callable[[str], str]) -> None:
    path = file("f", "from a file")
    found = config("-fw_cfg", "opt/a,string=x=1", "-fw_cfg", f"name=opt/b,file={path}").fw_cfg
    assert [(item.name, item.content) for item in found] == [("opt/a", b"x=1"), ("opt/b", b"from a file")]


# Consoles and monitors


def test_the_issues_own_command_line(file: Callable[[str], str]) -> None:
    found = config(
        "-m", "512", "-smp", "2", "-kernel", file("k"), "-initrd", file("i"), "-append", "console=ttyS0", "-nographic",
        "-device", "virtio-serial-pci", "-chardev", "socket,path=/tmp/ga.sock,server=on,wait=off,id=ga0",
        "-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0",
        "-qmp", "unix:/tmp/q.sock,server=on,wait=off",
    )  # fmt: skip
    assert [chardev.id for chardev in found.chardevs] == ["ga0", "compat_monitor0", "serial0"]
    qmp = found.chardev("compat_monitor0").options
    assert isinstance(qmp, SocketOptions)
    assert (qmp.address, qmp.server, qmp.wait, qmp.connect_if_live) == (UnixAddress("/tmp/q.sock"), True, False, False)
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("compat_monitor0", "control")]
    assert found.serials == ["serial0"]


@pytest.mark.parametrize(
    ("text", "implicit"),
    [("unix:/q", True), ("unix:/q,server=on,wait=off", False), ("unix:/q,server=off", False), ("tcp:h:1", False)],
)
def test_a_qmp_socket_without_a_side_listens_unless_somebody_does(text: str, implicit: bool) -> None:
    for option in ("-qmp", "-qmp-pretty"):
        options = config(option, text).chardevs[0].options
        assert isinstance(options, SocketOptions)
        assert options.connect_if_live is implicit
    options = config("-monitor", text).chardevs[0].options
    assert isinstance(options, SocketOptions)
    assert not options.connect_if_live


def test_nographic_shares_the_terminal() -> None:
    found = config("-nographic")
    stdio = found.chardev("serial0").options
    assert isinstance(stdio, StdioOptions)
    assert (stdio.mux, stdio.signal) == (True, False)
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("serial0", "readline")]


def test_nographic_leaves_out_what_was_given() -> None:
    found = config("-nographic", "-qmp", "tcp:h:1,server=on")
    stdio = found.chardev("serial0").options
    assert isinstance(stdio, StdioOptions)
    assert not stdio.mux
    found = config("-nographic", "-serial", "none")
    assert found.serials == [None]
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("compat_monitor0", "readline")]
    found = config("-nographic", "-serial", "none", "-monitor", "none", "-qmp", "stdio")
    assert [type(chardev.options) for chardev in found.chardevs] == [StdioOptions]
    assert config("-nographic", "-nodefaults").chardevs == []


def test_without_a_display_option_the_console_is_on_the_terminal() -> None:
    found = config(terminal=True)
    stdio = found.chardev("serial0").options
    assert isinstance(stdio, StdioOptions)
    assert stdio.mux
    assert not stdio.signal
    assert [monitor.chardev for monitor in found.monitors] == ["serial0"]
    for words in (("-display", "none"), ("-qmp", "stdio"), ("-nodefaults",), ("-serial", "null"), ("-daemonize",)):
        found = config(*words, terminal=True)
        assert not any(
            isinstance(chardev.options, StdioOptions) and chardev.id == "serial0" for chardev in found.chardevs
        )


def test_serial_ports_are_numbered_and_four() -> None:
    found = config("-serial", "none", "-serial", "mon:pty", "-serial", "chardev:c", "-chardev", "null,id=c")
    assert found.serials == [None, "serial1", "c"]
    assert [(monitor.chardev, monitor.mode) for monitor in found.monitors] == [("serial1", "readline")]
    assert refused(*["-serial", "null"] * 5) == "-serial null: the machine has only 4 serial ports"


def test_a_shared_back_end_has_a_multiplexer() -> None:
    found = config("-chardev", "stdio,id=c,mux=on", "-serial", "chardev:c", "-mon", "chardev=c,mode=control,pretty=on")
    assert found.serials == ["c"]
    assert (found.monitors[0].mode, found.monitors[0].pretty) == ("control", True)


def test_inherited_descriptors() -> None:
    options = config("-chardev", "socket,id=m,fd=7,server=on,wait=off").chardevs[0].options
    assert isinstance(options, SocketOptions)
    assert options.address == FdAddress("7")


def test_libvirts_probe_is_understood() -> None:
    found = config(
        "-S", "-no-user-config", "-nodefaults", "-nographic", "-machine", "none,accel=kvm:tcg",
        "-qmp", "unix:/d/qmp.monitor,server=on,wait=off", "-pidfile", "/d/qmp.pid", "-daemonize",
    )  # fmt: skip
    assert found.board.type == "none"
    assert (found.daemonize, found.start_paused, found.pidfile) == (True, True, "/d/qmp.pid")


def test_libvirts_harmless_options_are_understood() -> None:
    found = config(
        "-name", "guest=g,debug-threads=on", "-S", "-machine",
        "pc-i440fx-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram,hpet=off,acpi=on", "-accel", "tcg",
        "-cpu", "qemu64", "-m", "size=262144k", "-overcommit", "mem-lock=off", "-display", "none", "-no-user-config",
        "-object", '{"qom-type":"memory-backend-ram","id":"pc.ram","size":268435456}', "-nodefaults",
        "-chardev", "socket,id=charmonitor,fd=5,server=on,wait=off", "-mon",
        "chardev=charmonitor,id=monitor,mode=control",
        "-rtc", "base=utc", "-no-shutdown", "-boot", "strict=on", "-audiodev", '{"id":"audio1","driver":"none"}',
        "-sandbox", "off,elevateprivileges=deny", "-msg", "timestamp=on",
    )  # fmt: skip
    assert found.memory.size == 256 * MIB
    assert [monitor.chardev for monitor in found.monitors] == ["charmonitor"]


def test_readconfig(file: Callable[..., str]) -> None:
    path = file(
        "pc.cfg",
        """
        # a machine
        [machine]
          type = "pc"
          hpet = "off"
        [memory]
          size = "64"
        [chardev "c"]
          backend = "null"
        [mon "m"]
          chardev = "c"
          mode = "control"
        [device "b"]
          driver = "virtio-balloon-pci"
        [smp-opts]
          cpus = "2"
        """,
    )
    found = config("-readconfig", path)
    assert not found.board.hpet
    assert (found.memory.size, found.smp.cpus) == (64 * MIB, 2)
    assert [monitor.chardev for monitor in found.monitors] == ["c"]
    assert (found.devices[0].id, found.devices[0].driver) == ("b", "virtio-balloon-pci")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('a = "b"', ":1: no group defined"),
        ("[machine]\nx", ":2: parse error"),
        ("[machine]\nx = y", ":2: parse error"),
        ("[machine", ":1: parse error"),
        ("[device a]", ":1: parse error"),
        ('[device "1"]', ":1: Parameter 'id' expects an identifier"),
        ("[nonsense]", ":1: [nonsense]: there is no option group 'nonsense'"),
        ('[memory]\nfoo = "1"', ":1: [memory]: Invalid parameter 'foo'"),
    ],
)
def test_bad_config_files_are_refused_by_line(file: Callable[..., str], text: str, complaint: str) -> None:
    path = file("bad.cfg", text)
    assert refused("-readconfig", path).startswith(path + complaint)


# Device properties

MODEL = DeviceModel(
    "virtio-x-pci",
    "PCI",
    "Misc",
    {
        **PCI_PROPERTIES,
        "flag": Property("bool", True, "on/off"),
        "ports": Property("uint32", 31),
        "level": Property("int8", -1),
        "room": Property("size", 0),
        "legacy": Property("OnOffAuto", "auto", "on/off/auto"),
        "chardev": Property("chardev", None, "ID of a chardev to use as a backend"),
    },
    aliases=("virtio-x",),
)


def test_properties_have_defaults_globals_and_values() -> None:
    globals_ = config("-global", "virtio-x-pci.ports=7", "-global", "virtio-x.flag=off", "-global", "other.z=1").globals
    values = set_properties(MODEL, {"ports": "0x10", "addr": "06.1", "room": "1k"}, overrides=globals_)
    assert values == {
        "addr": 0x31, "multifunction": False, "flag": False, "ports": 16, "level": -1, "room": 1024, "legacy": "auto",
        "chardev": None, "acpi-index": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("xx", "1", "Property 'virtio-x-pci.xx' not found"),
        ("flag", "maybe", "Parameter 'flag' expects 'on' or 'off'"),
        ("ports", "x", "Parameter 'ports' expects integer"),
        ("ports", "-1", "Parameter 'ports' expects uint32_t"),
        ("ports", "99999999999", "Parameter 'ports' expects uint32_t"),
        ("level", "128", "Parameter 'level' expects int8_t"),
        ("room", "x", "Parameter 'room' expects a size value"),
        ("legacy", "x", "Parameter 'legacy' does not accept value 'x'"),
        ("addr", "zz", "Property 'virtio-x-pci.addr' doesn't take value 'zz'"),
        ("addr", "20", "Property 'virtio-x-pci.addr' doesn't take value '20'"),
        ("addr", "1.8", "Property 'virtio-x-pci.addr' doesn't take value '1.8'"),
        ("addr", "", "Property 'virtio-x-pci.addr' doesn't take value ''"),
    ],
)
def test_bad_properties(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_property(MODEL, name, value)
    assert str(caught.value) == message


def test_json_properties_have_types() -> None:
    assert parse_property(MODEL, "flag", False, typed=True) is False
    assert parse_property(MODEL, "ports", 8, typed=True) == 8
    assert parse_property(MODEL, "addr", 0x31, typed=True) == 0x31
    for name, value, message in (
        ("flag", "on", "Invalid parameter type for 'flag', expected: boolean"),
        ("ports", "8", "Parameter 'ports' expects uint64"),
        ("ports", True, "Parameter 'ports' expects uint64"),
        ("legacy", True, "Invalid parameter type for 'legacy', expected: string"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse_property(MODEL, name, value, typed=True)
        assert str(caught.value) == message


def test_bad_globals_are_named() -> None:
    globals_ = config("-global", "virtio-x-pci.foo=1").globals
    with pytest.raises(
        ConfigError, match=r"^can't apply global virtio-x-pci.foo=1: Property 'virtio-x-pci.foo' not found$"
    ):
        set_properties(MODEL, {}, overrides=globals_)


def test_models_are_found_by_name_and_alias() -> None:
    models = {MODEL.name: MODEL}
    assert find_model(models, "virtio-x") is find_model(models, "virtio-x-pci") is MODEL
    with pytest.raises(ConfigError, match=r"^'foo' is not a valid device model name$"):
        find_model(models, "foo")


def test_help_lists_models_and_properties() -> None:
    assert model_list({MODEL.name: MODEL}) == 'Misc devices:\nname "virtio-x-pci", bus PCI, alias "virtio-x"'
    lines = property_list(MODEL).splitlines()
    assert lines[0] == "virtio-x-pci options:"
    assert "  addr=<int32>           - Slot and optional function number, example: 06.0 or 06 (default: -1)" in lines
    assert "  flag=<bool>            - on/off (default: true)" in lines
    assert '  legacy=<OnOffAuto>     - on/off/auto (default: "auto")' in lines
    assert "  chardev=<str>          - ID of a chardev to use as a backend" in lines


# Anything at all

NAMES = sorted(name for name in OPTIONS if name != "readconfig")
WORDS = st.one_of(
    st.sampled_from([f"-{name}" for name in NAMES]),
    st.sampled_from(
        ["help", "none", "null,id=a", "pc", "chardev=a", "mon:stdio", "a.b.c=1", '{"driver":"x"}', "4,cores=2"]
    ),
    st.text(max_size=20),
)


@given(st.lists(WORDS, max_size=6))
@settings(max_examples=400)
def test_any_command_line_is_understood_or_refused(words: list[str]) -> None:
    try:
        parse_arguments(words)
    except (ConfigError, HelpRequest):
        pass


@given(
    st.sampled_from(sorted(MODEL.properties)), st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none())
)
@settings(max_examples=300)
def test_any_property_value_is_understood_or_refused(name: str, value: str | int | bool | None) -> None:
    for typed in (False, True):
        message = name
        try:
            parse_property(MODEL, name, value, typed=typed)
        except ConfigError as error:
            message = str(error)
        assert name in message
