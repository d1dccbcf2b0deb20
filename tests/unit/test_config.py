"""From the command line to the record of a machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvm.chardev.address import FdAddress
from pyvm.chardev.options import SocketOptions, VcOptions
from pyvm.commandline import HelpRequest, parse_arguments
from pyvm.commandline.table import OPTIONS
from pyvm.errors import ConfigError
from tests.unit.config_support import MIB, config, refused

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
            "-drive file=/x,if=virtio,format=dmg",
            (
                "-drive file=/x,if=virtio,format=dmg: format 'dmg' is not supported by pyvm yet"
                " (only raw, qcow2, luks, qcow, bochs, cloop, parallels, qed, vdi, vhdx, vmdk and vpc)"
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


def test_fw_cfg(file: Callable[[str], str]) -> None:
    path = file("f", "from a file")
    found = config("-fw_cfg", "opt/a,string=x=1", "-fw_cfg", f"name=opt/b,file={path}").fw_cfg
    assert [(item.name, item.content) for item in found] == [("opt/a", b"x=1"), ("opt/b", b"from a file")]


# Consoles and monitors


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
