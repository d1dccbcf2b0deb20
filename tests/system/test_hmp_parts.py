"""Commands of the human monitor about objects, memory, parts and migration.  Texts are QEMU 7.2's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyvm.cpu.registers import RegisterState
from tests.system.machine_rig import Machine


def hmp(machine: Machine, line: str) -> str:
    text: str = machine.execute("human-monitor-command", command_line=line)
    return text.replace("\r\n", "\n")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine(
        *("-m", "16,slots=2,maxmem=64M", "-smp", "1,maxcpus=2", "-device", "virtio-rng-pci,id=r0"),
        *("-device", "virtio-balloon-pci,id=bal", "-object", "memory-backend-ram,id=m,size=1M"),
        *("-blockdev", "null-co,node-name=n", "-device", "virtio-blk-pci,drive=n,id=vb"),
        *("-device", "virtio-serial-pci,id=vs"),
    ) as made:
        yield made


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("info mem", "PG disabled\n"),
        ("info tlb", "PG disabled\n"),
        ("info capture", ""),
        ("info memory-devices", ""),
        ("info memory_size_summary", "base memory: 16777216\nplugged memory: 0\n"),
        ("info numa", "1 nodes\nnode 0 cpus: 0\nnode 0 size: 16 MB\nnode 0 plugged: 0 MB\n"),
        ("info opcount", "[TCG profiler not compiled]\n"),
        ("info profile", "Error: Internal profiler not compiled\n"),
        ("info rdma", ""),
        ("info sev", "SEV is not enabled\n"),
        ("info sgx", "No EPC regions defined, SGX not available\n"),
        ("info stats vm", ""),
        ("info stats zz", "invalid stats target zz\n"),
        ("info stats vm * zz", "invalid stats provider zz\n"),
        ("info usb", "Error: USB support not enabled\n"),
        ("info usbhost", 'Command "info usbhost" is not available.\n'),
        ("info vm-generation-id", "Error: VM Generation ID device not found\n"),
        ("info spice", "Server: disabled\n"),
        ("info vcpu_dirty_limit", "Dirty page limit not enabled!\n"),
        ("info virtio-status /x", "Error: Path /x is not a VirtIODevice\n"),
        ("info qom-tree /zz", "Path '/zz' could not be resolved.\n"),
        ("device_add", "Error: Parameter 'driver' is missing\n"),
        ("device_add zz", "Error: 'zz' is not a valid device model name\n"),
        ("device_add virtio-rng-pci,id=r0", "Error: Duplicate device ID 'r0'\n"),
        ("device_add virtio-rng-pci,zz=1", "Error: Property 'virtio-rng-pci.zz' not found\n"),
        ("device_del zz", "Error: Device 'zz' not found\n"),
        ("object_add rng-random,help", "rng-random options:\n  filename=<string>\n"),
        ("object_add rng-builtin", "Error: Parameter 'id' is missing\n"),
        ("object_add rng-random,id=b,zz=1", "Error: Parameter 'zz' is unexpected\n"),
        ("object_add zz,id=a", "Error: Parameter 'qom-type' does not accept value 'zz'\n"),
        ("object_del zz", "Error: object 'zz' not found\n"),
        ("qom-list", "/\n"),
        ("qom-list /zz", "Error: Device '/zz' not found\n"),
        ("qom-get /machine type", '"pc-i440fx-7.2-machine"\n'),
        ("qom-get /objects/m size", "1048576\n"),
        ("qom-get /machine boot", '{\n    "order": "cad"\n}\n'),
        ("qom-get /machine zz", "Error: Property 'pc-i440fx-7.2-machine.zz' not found\n"),
        ("qom-set /objects/m share off", "Error: cannot change property value\n"),
        ("qom-set /objects/m dump zz", "Error: Parameter 'dump' expects 'on' or 'off'\n"),
        ('qom-set -j /objects/m dump "true"', "Error: Invalid parameter type for 'dump', expected: boolean\n"),
        ("qom-set -j /objects/m dump {", "Error: JSON parse error, premature EOI\n"),
        (
            "qom-set /machine/peripheral/bal guest-stats-polling-interval x",
            "Error: Parameter 'guest-stats-polling-interval' expects int64\n",
        ),
        ("xp 0xffffff00000", "00000ffffff00000: Cannot access memory\n"),
        ("xp /3sw 0", "invalid char in format: 's'\nTry \"help xp\" for more information\n"),
        ("xp /0x 0", ""),
        ("xp /900000000000xg 0", "Error: This would show more than 1 MiB of memory\n"),
        ("gva2gpa 0", "gpa: 0\n"),
        ("gva2gpa 0x1234", "gpa: 0x1234\n"),
        ("dumpdtb x", "Error: This machine doesn't have a FDT\n"),
        ("exit_preconfig", "Error: The command is permitted only before machine initialization\n"),
        ("pcie_aer_inject_error zz 1", "id or pci device path is invalid or device not found. zz\n"),
        ("pcie_aer_inject_error r0 1", "the device doesn't support pci express. r0\n"),
        ("wavcapture x zz", "Audiodev 'zz' not found\n"),
        ("stopcapture 0", ""),
        ("snapshot_blkdev zz", "Error: Parameter 'snapshot-file' is missing\n"),
        ("snapshot_blkdev zz x", "Error: Cannot find device='zz' nor node-name=''\n"),
    ],
)
def test_texts(machine: Machine, line: str, text: str) -> None:
    assert hmp(machine, line) == text


def test_objects_and_devices_come_and_go(machine: Machine) -> None:
    assert hmp(machine, "object_add rng-builtin,id=entropy") == ""
    assert "/entropy (rng-builtin)\n" in hmp(machine, "info qom-tree /objects")
    assert "entropy (child<rng-builtin>)\n" in hmp(machine, "qom-list /objects")
    assert hmp(machine, "object_del entropy") == ""
    assert "entropy" not in hmp(machine, "info qom-tree /objects")
    assert hmp(machine, "device_add virtserialport,id=port,bus=vs.0") == ""
    tree = hmp(machine, "info qtree")
    assert "bus: vs.0\n" in tree
    assert 'dev: virtserialport, id "port"\n' in tree
    assert hmp(machine, "device_del port") == ""
    assert '"port"' not in hmp(machine, "info qtree")
    assert 'name "virtio-rng-pci", bus PCI' in hmp(machine, "device_add help")
    assert hmp(machine, "info qdm") == hmp(machine, "device_add help")
    assert "rng=" in hmp(machine, "device_add virtio-rng-pci,help")


def test_properties_can_be_set(machine: Machine) -> None:
    assert hmp(machine, "qom-set /objects/m dump off") == ""
    assert hmp(machine, "qom-get /objects/m dump") == "false\n"
    assert hmp(machine, "qom-set -j /objects/m dump true") == ""
    assert hmp(machine, "qom-get /objects/m dump") == "true\n"
    assert hmp(machine, "qom-set /machine/peripheral/bal guest-stats-polling-interval 5") == ""
    assert hmp(machine, "qom-get /machine/peripheral/bal guest-stats-polling-interval") == "5\n"
    hmp(machine, "qom-set /machine/peripheral/bal guest-stats-polling-interval 0")


def test_the_device_tree_has_the_values_of_properties(machine: Machine) -> None:
    lines = hmp(machine, "info qtree").splitlines()
    assert lines[:2] == ["bus: main-system-bus", "  type System"]
    start = lines.index('      dev: virtio-rng-pci, id "r0"')
    below = [line.strip() for line in lines[start : start + 60]]
    assert "max-bytes = 9223372036854775807 (0x7fffffffffffffff)" in below
    assert "page-per-vq = false" in below
    assert any(line.startswith("class ") and ", addr 00:" in line and "pci id 1af4:1005" in line for line in below)
    assert "        pci-hole64-size = 2147483648 (2 GiB)" in lines or any("(2 GiB)" in line for line in lines)


def test_parts_are_listed(machine: Machine) -> None:
    assert hmp(machine, "info hotpluggable-cpus").startswith(
        'Hotpluggable CPUs:\n  type: "qemu64-x86_64-cpu"\n  vcpus_count: "1"\n'
    )
    assert "memory backend: m\n  size:  1048576\n  merge: true\n" in hmp(machine, "info memdev")
    assert "    Host bridge: PCI device 8086:1237\n      PCI subsystem 1af4:1100\n" in hmp(machine, "info pci")
    assert "/machine/peripheral/r0/virtio-backend [virtio-rng]\n" in hmp(machine, "info virtio")
    status = hmp(machine, "info virtio-status /machine/peripheral/r0/virtio-backend")
    assert "  device_name:             virtio-rng \n  device_id:               4\n" in status
    assert "\tVIRTIO_F_NOTIFY_ON_EMPTY: Notify when device runs out of avail. descs. on VQ\n" in status
    queue = hmp(machine, "info virtio-queue-status /machine/peripheral/r0/virtio-backend 0")
    assert "  VRing:\n    num:          8\n    num_default:  8\n    align:        4096\n" in queue
    element = hmp(machine, "info virtio-queue-element /machine/peripheral/r0/virtio-backend 0")
    assert element == "Error: Region caches not initialized\n"


def test_memory_as_values(machine: Machine) -> None:
    machine.pc.memory.write(0x1000, bytes.fromhex("4324 83c4 205b 5e5f 5dc3 5557 5653 83ec 0889"))
    assert hmp(machine, "xp /4xb 0x1000") == "0000000000001000: 0x43 0x24 0x83 0xc4\n"
    assert hmp(machine, "xp /2xg 0x1000") == "0000000000001000: 0x5f5e5b20c4832443 0xec8353565755c35d\n"
    assert hmp(machine, "xp /2dg 0x1000") == "0000000000001000:  6872030277707965507 -1404187028511931555\n"
    assert hmp(machine, "xp /2uw 0x1000") == "0000000000001000: 3296928835 1600019232\n"
    assert hmp(machine, "xp /3oh 0x1000") == "0000000000001000: 022103 0142203 055440\n"
    assert hmp(machine, "xp /3cb 0x1000") == "0000000000001000: 'C' '$' '\\x83'\n"
    assert hmp(machine, "xp /9xb 0x1000").splitlines()[1] == "0000000000001008: 0x5d"
    assert hmp(machine, "xp /5xw 0x1000").splitlines()[1] == "0000000000001010: 0x00008908"
    assert hmp(machine, "x /1xw 0x1000") == "0000000000001000: 0xc4832443\n"
    assert hmp(machine, "x /1xw 0xffff800000000000") == "ffff800000000000: Cannot access memory\n"


def test_the_last_format_holds_for_the_next_line(machine: Machine) -> None:
    machine.pc.memory.write(0x1000, bytes.fromhex("4324 83c4"))
    assert hmp(machine, "xp /2ub 0x1000") == "0000000000001000:  67  36\n"
    assert hmp(machine, "xp 0x1000") == "0000000000001000:  67\n"
    assert hmp(machine, "print 255") == "255\n"
    assert hmp(machine, "xp /1xw 0x1000") == "0000000000001000: 0xc4832443\n"
    assert hmp(machine, "print 255") == "0xff\n"


def test_memory_as_instructions(machine: Machine) -> None:
    code = bytes.fromhex("ea5be000f0 30362f32 332f 0f0b")
    machine.pc.memory.write(0x2000, code + bytes.fromhex("66c78424 00010000 0500 ffff"))
    assert hmp(machine, "xp /3i 0x2000") == (
        "0x00002000:  ea 5b e0 00 f0           ljmpw    $0xf000:$0xe05b\n"
        "0x00002005:  30 36 2f 32              xorb     %dh, 0x322f\n"
        "0x00002009:  33 2f                    xorw     (%bx), %bp\n"
    )
    assert hmp(machine, "xp /1i 0xffffff").startswith("0x00ffffff:")


def paged(machine: Machine) -> RegisterState:
    """Map one large page and two small ones in long mode."""
    memory = machine.pc.memory
    for table, index, entry in (
        (0x10000, 0, 0x11000 | 7),
        (0x11000, 0, 0x12000 | 7),
        (0x12000, 1, 0x400000 | 0x83),
        (0x12000, 2, 0x13000 | 7),
        (0x13000, 0, 0x5000 | 5),
        (0x13000, 1, 0x7000 | 1 << 63 | 5),
    ):
        memory.write(table + 8 * index, entry.to_bytes(8, "little"))
    state = machine.pc.cpus.save()[0]
    state.cr0, state.cr3, state.cr4, state.efer = 0x80000011, 0x10000, 0x20, 0x500
    return state


def test_mappings(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    state = paged(machine)
    monkeypatch.setattr("pyvm.monitor.hmp.hardware.cpu_states", lambda machine, index=None: {0: state})
    assert hmp(machine, "info tlb") == (
        "0000000000200000: 0000000000400000 --P-----W\n"
        "0000000000400000: 0000000000005000 -------U-\n"
        "0000000000401000: 0000000000007000 X------U-\n"
    )
    assert hmp(machine, "info mem") == (
        "0000000000200000-0000000000400000 0000000000200000 -rw\n"
        "0000000000400000-0000000000402000 0000000000002000 ur-\n"
    )
    assert hmp(machine, "gva2gpa 0x401234") == "gpa: 0x7234\n"
    assert hmp(machine, "gva2gpa 0x600000") == "Unmapped\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("migrate_set_parameter zz 5", "Error: invalid parameter value: zz\n"),
        ("migrate_set_parameter max-bandwidth zz", "Error: Invalid size zz\n"),
        (
            "migrate_set_parameter compress-level 10",
            "Error: Parameter 'compress_level' expects a value between 0 and 9\n",
        ),
        (
            "migrate_set_parameter block-bitmap-mapping x",
            "Error: The block-bitmap-mapping parameter can only be set through QMP\n",
        ),
        (
            "migrate_set_parameter multifd-compression zz",
            "Error: Parameter 'multifd-compression' does not accept value 'zz'\n",
        ),
        (
            "migrate_set_parameter block-incremental zz",
            "Error: Parameter 'block-incremental' expects 'on' or 'off'\n",
        ),
        ("migrate_set_capability zz on", "Error: invalid parameter value: zz\n"),
        ("migrate_set_capability postcopy-preempt on", "Error: Postcopy preempt requires postcopy-ram\n"),
        ("migrate_continue zz", "Error: invalid parameter value: zz\n"),
        ("migrate_continue device", "Error: Migration not in expected state: none\n"),
        ("migrate_incoming x", "Error: '-incoming' was not specified on the command line\n"),
        (
            "migrate_pause",
            "Error: migrate-pause is currently only supported during postcopy-active state\n",
        ),
        ("migrate_recover x", "Error: Migrate recover can only be run when postcopy is paused.\n"),
        (
            "migrate_start_postcopy",
            "Error: Enable postcopy with migrate_set_capability before the start of migration\n",
        ),
        ("migrate_cancel", ""),
        ("migrate x", "Error: Parameter 'uri' expects a valid migration protocol\n"),
        ("client_migrate_info spice h 1", "Error: SPICE is not in use\n"),
        ("x_colo_lost_heartbeat", "Error: The feature 'colo' is not enabled\n"),
        ("nbd_server_stop", "Error: NBD server not running\n"),
        ("nbd_server_remove x", "Error: Export 'x' is not found\n"),
        ("calc_dirty_rate 0", "Incorrect period length specified!\n"),
        ("calc_dirty_rate -r -b 1", "Either dirty ring or dirty bitmap can be specified!\n"),
        ("calc_dirty_rate 100", "Error: calc-time is out of range[1, 60].\n"),
        (
            "cancel_vcpu_dirty_limit",
            "[Please use 'info vcpu_dirty_limit' to query dirty limit for virtual CPU]\n",
        ),
    ],
)
def test_migration(machine: Machine, line: str, text: str) -> None:
    assert hmp(machine, line) == text


def test_migration_settings(machine: Machine) -> None:
    for line in (
        "migrate_set_parameter max-bandwidth 2.5",
        "migrate_set_parameter xbzrle-cache-size 1M",
        "migrate_set_parameter downtime-limit 5",
        "migrate_set_parameter tls-hostname h",
        "migrate_set_parameter block-incremental on",
        "migrate_set_capability xbzrle on",
    ):
        assert hmp(machine, line) == ""
    shown = hmp(machine, "info migrate_parameters").splitlines()
    assert "max-bandwidth: 2621440 bytes/second" in shown
    assert "xbzrle-cache-size: 1048576 bytes" in shown
    assert "downtime-limit: 5 ms" in shown
    assert "tls-hostname: 'h'" in shown
    assert "block-incremental: on" in shown
    assert hmp(machine, "info migrate_capabilities").startswith("xbzrle: on\nrdma-pin-all: off\n")
    assert "only-migratable: off\n" in hmp(machine, "info migrate")


def test_before_the_machine_is_made() -> None:
    with Machine("-preconfig") as waiting:
        from pyvm.monitor.hmp.commands import COMMANDS
        from pyvm.monitor.hmp.information import INFORMATION

        names = {command.names[0] for command in COMMANDS.commands(initialized=False)}
        assert {"exit_preconfig", "object_add", "qom-set", "getfd", "nbd_server_stop", "block_resize"} <= names
        assert not {"device_add", "x", "stop", "migrate"} & names
        subjects = {command.names[0] for command in INFORMATION.commands(initialized=False)}
        assert {"hotpluggable-cpus", "memdev", "virtio", "qom-tree", "iothreads"} <= subjects
        assert not {"qtree", "cpus", "pci", "mem"} & subjects
        assert waiting.error("human-monitor-command", command_line="info virtio").startswith("The command")


def test_what_is_at_each_address(machine: Machine) -> None:
    flat = hmp(machine, "info mtree -f")
    assert flat.startswith('FlatView #0\n AS "memory", root: system\n Root memory region: system\n  0000000000000000-')
    assert "  00000000000c0000-0000000000ffffff (prio 0, ram): pc.ram @00000000000c0000\n" in flat
    assert "  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\n" in flat
    assert '\nFlatView #1\n AS "I/O", root: io\n' in flat
    starts = [int(line.split("-")[0], 16) for line in flat.split("FlatView #1")[0].splitlines() if line[:3] == "  0"]
    assert starts == sorted(starts)
    assert hmp(machine, "info mtree -D") == hmp(machine, "info mtree")
    assert hmp(machine, "info mtree -o").startswith("mtree: unsupported option -o\n")
