"""The real qemu-ga in a real guest: every command that needs no more than this machine."""

from __future__ import annotations

import base64
import json
import random
import socket
import time

import pytest

from images.build import Image
from pyvm import Machine
from pyvm.agent import AgentClient, AgentDisconnected, AgentError, AgentTimeout, ExecError, ExecTimeout
from pyvm.agent.commands import COMMANDS
from pyvm.agent.records import GuestLogicalProcessor, GuestMemoryBlock
from tests.guest.conftest import GuestFactory
from tests.guest.ext2 import make_ext2
from tests.guest.support import BOOT, SOON, boot_id, complaints, until

DISK_SIZE = 64 << 20
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExample00 {}@host"


@pytest.fixture(scope="module")
def vm(boot_shared: GuestFactory, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A guest with two CPUs and a disk with a file system."""
    disk = tmp_path_factory.mktemp("disk") / "disk.raw"
    make_ext2(disk, DISK_SIZE)
    return boot_shared(
        smp=2,
        drive={"file": str(disk), "if": "none", "id": "d0", "format": "raw", "discard": "unmap"},
        device={"driver": "virtio-blk-pci", "drive": "d0", "serial": "SERIAL-1", "addr": "0x6"},
    )


@pytest.fixture
def agent(vm: Machine) -> AgentClient:
    return vm.agent


def refused(error: pytest.ExceptionInfo[AgentError]) -> tuple[str, str]:
    return error.value.error_class, error.value.desc


class TestProtocol:
    def test_sync(self, agent: AgentClient) -> None:
        agent.ping()
        for number in (0, 1, 99, (1 << 63) - 1):
            assert agent.sync(number) == number
            assert agent.sync_delimited(number) == number
        agent.synchronise()
        agent.ping()

    def test_info_names_all_commands(self, agent: AgentClient) -> None:
        info = agent.info()
        assert info.version.startswith("7.2.")
        commands = {command.name: command for command in info.supported_commands}
        assert set(commands) == set(COMMANDS)
        assert len(commands) == 42
        assert [name for name, command in commands.items() if not command.enabled] == ["guest-get-devices"]
        assert {name for name, command in commands.items() if not command.success_response} == {
            name for name, command in COMMANDS.items() if not command.answers
        }

    def test_refusals(self, agent: AgentClient) -> None:
        with pytest.raises(AgentError) as error:
            agent.command("no-such-command")
        assert refused(error) == ("CommandNotFound", "The command no-such-command has not been found")
        with pytest.raises(AgentError) as error:
            agent.command("guest-ping", bogus=1)
        assert refused(error) == ("GenericError", "Parameter 'bogus' is unexpected")
        with pytest.raises(AgentError) as error:
            agent.command("guest-sync")
        assert refused(error) == ("GenericError", "Parameter 'id' is missing")
        with pytest.raises(AgentError) as error:
            agent.get_devices()
        assert refused(error) == ("CommandNotFound", "Command guest-get-devices has been disabled")
        agent.ping()

    def test_many_pings(self, agent: AgentClient) -> None:
        for number in range(300):
            assert agent.sync(number) == number

    def test_answer_that_comes_too_late_is_dropped(self, agent: AgentClient, vm: Machine) -> None:
        with pytest.raises(AgentTimeout):
            agent.command("guest-get-osinfo", timeout=0)
        vm.pause()
        try:
            with pytest.raises(AgentTimeout):
                agent.command("guest-get-users", timeout=0.3)
        finally:
            vm.resume()
        assert agent.sync(7) == 7

    def test_raw_conversation(self, boot: GuestFactory, tmp_path) -> None:
        """What is sent before there is an agent waits for it; half a request is flushed by 0xFF; ids are echoed."""
        path = str(tmp_path / "ga.sock")
        vm = boot(
            *("-device", "virtio-serial-pci", "-chardev", f"socket,path={path},server=on,wait=off,id=ga"),
            *("-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0"),
            agent=False,
        )
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(BOOT)
            connection.connect(path)
            connection.sendall(b'{"execute":"guest-ping","id":"early"}\n')
            stream = connection.makefile("rb")
            assert json.loads(stream.readline()) == {"return": {}, "id": "early"}, vm.console_tail
            connection.sendall(b'{"execute":"guest-sy\xff{"execute":"guest-sync-delimited","arguments":{"id":5}}\n')
            assert "error" in json.loads(stream.readline())
            answer = stream.readline()
            while not answer.startswith(b"\xff"):
                answer = stream.readline()
            assert json.loads(answer[1:]) == {"return": 5}
            connection.sendall(b'[1]\n{"foo":1}\n{"execute":"guest-ping","id":{"a":[1]}}\n')
            assert json.loads(stream.readline())["error"]["desc"] == "QMP input must be a JSON object"
            assert json.loads(stream.readline())["error"]["desc"] == "QMP input member 'foo' is unexpected"
            assert json.loads(stream.readline()) == {"return": {}, "id": {"a": [1]}}


class TestSystem:
    def test_osinfo(self, agent: AgentClient, demo: Image, vm: Machine) -> None:
        info = agent.get_osinfo()
        assert info.kernel_release == demo.release == vm.run("uname -r").text
        assert info.kernel_version == vm.run("uname -v").text
        assert info.machine == "x86_64"
        assert (info.id, info.pretty_name, info.variant_id) == ("pyvm-demo", "pyvm demo guest", "demo")

    def test_host_name(self, agent: AgentClient, vm: Machine) -> None:
        assert agent.get_host_name() == vm.run("hostname").text == "pyvm-demo"
        vm.run("hostname other")
        assert agent.get_host_name() == "other"
        vm.run("hostname pyvm-demo")

    def test_timezone(self, agent: AgentClient) -> None:
        zone = agent.get_timezone()
        assert (zone.zone, zone.offset) == ("UTC", 0)

    def test_users(self, agent: AgentClient, vm: Machine) -> None:
        vm.wait_console("root@pyvm-demo:", SOON, rewind=True)
        (user,) = agent.get_users()
        assert user.user == "root"
        assert abs(user.login_time - time.time()) < 3600

    def test_time(self, agent: AgentClient, vm: Machine) -> None:
        assert abs(agent.get_time() - time.time_ns()) < 5e9
        vm.monitor.events()
        later = time.time_ns() + 3600 * 10**9
        agent.set_time(later)
        assert 0 <= agent.get_time() - later < 30e9
        # The RTC is set too.
        event = vm.wait_event("RTC_CHANGE", SOON)
        assert 3595 <= event["data"]["offset"] <= 3605
        vm.run("date -u -s '2020-01-01 00:00:00'")
        agent.set_time()
        # The RTC counts whole seconds.
        assert -2e9 < agent.get_time() - later < 60e9
        agent.set_time(time.time_ns())
        assert abs(agent.get_time() - time.time_ns()) < 5e9

    def test_network(self, agent: AgentClient) -> None:
        (loopback,) = agent.network_get_interfaces()
        assert loopback.name == "lo"
        addresses = {(entry.ip_address_type, entry.ip_address, entry.prefix) for entry in loopback.ip_addresses or []}
        assert addresses == {("ipv4", "127.0.0.1", 8), ("ipv6", "::1", 128)}

    def test_network_statistics_count(self, agent: AgentClient, vm: Machine) -> None:
        vm.run("ping -c 3 -i 0.2 127.0.0.1")
        (loopback,) = agent.network_get_interfaces()
        assert loopback.statistics is not None
        assert loopback.statistics.rx_packets == loopback.statistics.tx_packets >= 6
        assert loopback.statistics.rx_bytes > 0

    def test_cpu_statistics(self, agent: AgentClient, vm: Machine) -> None:
        before = {row.cpu: row for row in agent.get_cpustats()}
        assert set(before) == {0, 1}
        vm.run("taskset 2 sh -c 'i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done'")
        after = {row.cpu: row for row in agent.get_cpustats()}
        assert after[1].user > before[1].user
        assert after[0].idle > before[0].idle

    def test_passwords(self, agent: AgentClient, vm: Machine) -> None:
        agent.set_user_password("demo", "sec ret:x")
        shadow = vm.run("grep ^demo: /etc/shadow").text.split(":")[1]
        assert shadow.startswith("$6$")
        salt = shadow.split("$")[2]
        assert vm.run(["mkpasswd", "-m", "sha512", "-S", salt, "sec ret:x"]).text == shadow
        agent.set_user_password("demo", "!", crypted=True)
        assert vm.run("grep ^demo: /etc/shadow").text.split(":")[1] == "!"
        with pytest.raises(AgentError, match="failed"):
            agent.set_user_password("nobody-here", "x")

    def test_ssh_keys(self, agent: AgentClient, vm: Machine) -> None:
        with pytest.raises(AgentError, match="No such file or directory"):
            agent.ssh_get_authorized_keys("demo")
        one, two = KEY.format("one"), KEY.format("two")
        agent.ssh_add_authorized_keys("demo", [one])
        agent.ssh_add_authorized_keys("demo", [two, one])
        assert sorted(agent.ssh_get_authorized_keys("demo")) == [one, two]
        assert vm.run("stat -c '%U %a' /home/demo/.ssh/authorized_keys").text == "demo 600"
        agent.ssh_remove_authorized_keys("demo", [one])
        assert agent.ssh_get_authorized_keys("demo") == [two]
        agent.ssh_add_authorized_keys("demo", [one], reset=True)
        assert agent.ssh_get_authorized_keys("demo") == [one]


class TestHardware:
    def test_second_cpu_goes_and_comes(self, agent: AgentClient, vm: Machine) -> None:
        def online() -> dict[int, bool]:
            return {vcpu.logical_id: vcpu.online for vcpu in agent.get_vcpus()}

        assert online() == {0: True, 1: True}
        assert {vcpu.logical_id: vcpu.can_offline for vcpu in agent.get_vcpus()} == {0: False, 1: True}
        for _ in range(3):
            assert agent.set_vcpus([GuestLogicalProcessor(1, online=False)]) == 1
            assert online() == {0: True, 1: False}
            assert vm.run("nproc").text == "1"
            assert agent.set_vcpus([GuestLogicalProcessor(1, online=True)]) == 1
            assert online() == {0: True, 1: True}
            assert vm.run("nproc").text == "2"
        assert vm.run("taskset 2 cut -d ' ' -f 39 /proc/self/stat").text == "1"
        assert complaints(vm.run("dmesg").text) == []

    def test_cpus_that_cannot_go(self, agent: AgentClient) -> None:
        with pytest.raises(AgentError) as error:
            agent.set_vcpus([GuestLogicalProcessor(0, online=False)])
        assert refused(error) == ("GenericError", "logical processor #0 can't be offlined")
        with pytest.raises(AgentError, match="No such file or directory"):
            agent.set_vcpus([GuestLogicalProcessor(9, online=False)])

    def test_memory_blocks(self, agent: AgentClient, vm: Machine) -> None:
        assert agent.get_memory_block_info().size == 128 << 20
        assert vm.run("cat /sys/devices/system/memory/block_size_bytes").text == "8000000"
        blocks = {block.phys_index: block for block in agent.get_memory_blocks()}
        assert set(blocks) == {0, 1, 2, 3}
        assert all(block.online for block in blocks.values())
        (response,) = agent.set_memory_blocks([GuestMemoryBlock(0, online=False)])
        assert (response.phys_index, response.response, response.error_code) == (0, "operation-failed", 22)
        (response,) = agent.set_memory_blocks([GuestMemoryBlock(1, online=True)])
        assert (response.phys_index, response.response) == (1, "success")

    def test_disks(self, agent: AgentClient) -> None:
        disks = {disk.name: disk for disk in agent.get_disks()}
        assert set(disks) - {"/dev/sr0", "/dev/fd0"} == {"/dev/vda"}
        disk = disks["/dev/vda"]
        assert (disk.name, disk.partition, disk.dependencies) == ("/dev/vda", False, [])
        assert disk.address is not None
        assert (disk.address.bus_type, disk.address.dev) == ("virtio", "/dev/vda")
        pci = disk.address.pci_controller
        assert (pci.domain, pci.bus, pci.slot, pci.function) == (0, 0, 6, 0)

    def test_file_systems(self, agent: AgentClient, vm: Machine) -> None:
        (system,) = agent.get_fsinfo()
        assert (system.name, system.mountpoint, system.type) == ("vda", "/mnt", "ext2")
        assert [disk.bus_type for disk in system.disk] == ["virtio"]
        assert system.total_bytes is not None
        assert system.used_bytes is not None
        assert DISK_SIZE * 0.8 < system.total_bytes <= DISK_SIZE
        vm.run("dd if=/dev/urandom of=/mnt/filler bs=1M count=8 && sync")
        (later,) = agent.get_fsinfo()
        assert later.used_bytes is not None
        assert (8 << 20) <= later.used_bytes - system.used_bytes < (9 << 20)
        vm.run("rm /mnt/filler && sync")

    def test_disk_statistics(self, agent: AgentClient, vm: Machine) -> None:
        def stats() -> tuple[int, int]:
            (disk,) = [entry for entry in agent.get_diskstats() if entry.name == "vda"]
            assert disk.stats.write_sectors is not None
            assert disk.stats.write_ios is not None
            return disk.stats.write_sectors, disk.stats.write_ios

        sectors, requests = stats()
        vm.run("dd if=/dev/zero of=/mnt/zeros bs=64k count=16 conv=fsync && rm /mnt/zeros")
        assert stats()[0] - sectors >= 2048
        assert stats()[1] > requests

    def test_freeze(self, agent: AgentClient, vm: Machine) -> None:
        assert agent.fsfreeze_status() == "thawed"
        with agent.frozen() as count:
            assert count == 1
            assert agent.fsfreeze_status() == "frozen"
            agent.ping()
            with pytest.raises(AgentError) as error:
                agent.get_fsinfo()
            assert refused(error) == (
                "CommandNotFound",
                "Command guest-get-fsinfo has been disabled: the agent is in frozen state",
            )
            vm.console_write("\ntouch /mnt/late && echo wr''itten\n")
            assert vm.console.wait("^written", 1.0) is None
        vm.wait_console("^written", SOON)
        assert agent.fsfreeze_status() == "thawed"
        assert agent.fsfreeze_freeze_list(["/mnt"]) == 1
        assert agent.fsfreeze_thaw() == 1
        assert agent.fsfreeze_freeze_list(["/nothing/here"]) == 0
        agent.fsfreeze_thaw()

    def test_trim(self, agent: AgentClient) -> None:
        (first,) = agent.fstrim()
        assert first.path == "/mnt"
        assert first.error is None
        assert first.trimmed is not None
        assert DISK_SIZE // 2 < first.trimmed <= DISK_SIZE
        (second,) = agent.fstrim(1 << 30)
        assert second.minimum == 1 << 30 or second.error is not None


class TestPrograms:
    def test_output_and_exit_status(self, vm: Machine) -> None:
        result = vm.run("echo out; echo err >&2; exit 3", check=False)
        assert (result.exit_code, result.signal, result.stdout, result.stderr) == (3, None, b"out\n", b"err\n")
        with pytest.raises(ExecError, match="exit status 3: err"):
            vm.run("echo err >&2; exit 3")

    def test_arguments_are_not_interpreted(self, vm: Machine) -> None:
        words = ["a b", "$HOME", "*", "", "'\"\\", "\N{SNOWMAN}"]
        assert vm.run(["printf", "%s\\n", *words]).text.split("\n") == words

    def test_input_and_environment(self, vm: Machine) -> None:
        data = bytes(range(256)) * 100
        assert vm.run(["cat"], input=data).stdout == data
        assert vm.run(["/bin/env"], env={"A": "b c", "D": ""}).text.splitlines() == ["A=b c", "D="]

    def test_signals(self, vm: Machine) -> None:
        result = vm.run("kill -9 $$", check=False)
        assert (result.exit_code, result.signal) == (None, 9)
        with pytest.raises(ExecError, match="signal 11"):
            vm.run("kill -11 $$")

    def test_long_output(self, vm: Machine) -> None:
        result = vm.run(["seq", "200000"])
        assert result.stdout == b"".join(b"%d\n" % number for number in range(1, 200001))
        assert not result.truncated
        # The agent keeps 16 MiB.
        assert vm.run("yes | head -c 20000000", SOON).truncated

    def test_program_that_is_not_there(self, agent: AgentClient) -> None:
        with pytest.raises(AgentError, match="No such file or directory"):
            agent.exec("/no/such")
        with pytest.raises(AgentError) as error:
            agent.exec_status(99999)
        assert refused(error) == ("GenericError", "Invalid parameter 'pid'")

    def test_program_that_does_not_end(self, vm: Machine, agent: AgentClient) -> None:
        with pytest.raises(ExecTimeout) as error:
            vm.run(["sleep", "600"], timeout=0.5)
        vm.run(f"kill {error.value.pid}")
        status = until(lambda: (now := agent.exec_status(error.value.pid)).exited and now, "the program's end")
        assert status.signal == 15
        # The agent tells it once.
        with pytest.raises(AgentError, match="Invalid parameter 'pid'"):
            agent.exec_status(error.value.pid)

    def test_several_programs_at_once(self, agent: AgentClient) -> None:
        pids = [agent.exec("/bin/sh", ["-c", f"sleep 0.3; exit {n}"], capture_output=True) for n in range(8)]
        for number, pid in enumerate(pids):
            status = until(lambda pid=pid: (now := agent.exec_status(pid)).exited and now, "a program's end")
            assert status.exitcode == number


class TestFiles:
    def test_binary_content(self, vm: Machine) -> None:
        data = random.Random(1).randbytes(1 << 20)
        vm.write_file("/tmp/binary", data)
        assert vm.run("stat -c %s /tmp/binary").text == str(len(data))
        assert vm.read_file("/tmp/binary") == data
        assert vm.agent.read_file("/tmp/binary", limit=1000) == data[:1000]

    def test_seek_and_partial_reads(self, agent: AgentClient) -> None:
        with agent.opened("/tmp/seek", "w+") as handle:
            assert agent.file_write(handle, b"0123456789") == 10
            assert agent.file_write(handle, b"abcdef", count=3) == 3
            agent.file_flush(handle)
            assert agent.file_seek(handle, 4, "set").position == 4
            assert agent.file_read(handle, 4) == (b"4567", False)
            assert agent.file_seek(handle, -2, "cur").position == 6
            assert agent.file_read(handle, 2) == (b"67", False)
            assert agent.file_seek(handle, -3, "end").position == 10
            assert agent.file_read(handle) == (b"abc", True)
            assert agent.file_read(handle, 5) == (b"", True)
            # Numbers do as well: 0 set, 1 cur, 2 end.
            assert agent.file_seek(handle, 0, 2).position == 13

    def test_modes(self, agent: AgentClient, vm: Machine) -> None:
        agent.write_file("/tmp/modes", b"one")
        agent.write_file("/tmp/modes", b" two", mode="a")
        assert vm.run("cat /tmp/modes").text == "one two"
        agent.write_file("/tmp/modes", b"new")
        assert agent.read_file("/tmp/modes") == b"new"
        assert agent.read_file("/proc/version").startswith(b"Linux version")
        with pytest.raises(AgentError, match="mode"):
            agent.file_open("/tmp/modes", "x")

    def test_refusals(self, agent: AgentClient) -> None:
        with pytest.raises(AgentError) as error:
            agent.file_open("/no/such")
        assert refused(error)[1] == "failed to open file '/no/such' (mode: 'r'): No such file or directory"
        with pytest.raises(AgentError, match="handle '4711' has not been found"):
            agent.file_close(4711)
        handle = agent.file_open("/tmp", "r")
        with pytest.raises(AgentError, match="failed to read file"):
            agent.file_read(handle, 10)
        with pytest.raises(AgentError, match="count"):
            agent.file_read(handle, -1)
        agent.file_close(handle)

    def test_base64_of_the_wire(self, agent: AgentClient) -> None:
        handle = agent.command("guest-file-open", path="/tmp/wire", mode="w+")
        agent.command("guest-file-write", handle=handle, buf_b64="aGVsbG8gZ29sZGVuCg==")
        agent.command("guest-file-seek", handle=handle, offset=0, whence="set")
        answer = agent.command("guest-file-read", handle=handle)
        assert answer == {"count": 13, "buf-b64": "aGVsbG8gZ29sZGVuCg==", "eof": True}
        assert base64.b64decode(answer["buf-b64"]) == b"hello golden\n"
        agent.file_close(handle)


class TestEnds:
    def test_shutdown_modes(self, guest: GuestFactory) -> None:
        vm = guest()
        with pytest.raises(AgentError, match="mode is invalid"):
            vm.agent.shutdown("bogus", silence=10)
        before = boot_id(vm)
        vm.agent.shutdown("reboot")
        vm.wait_event("RESET", SOON)
        vm.wait_agent(BOOT)
        assert boot_id(vm) != before
        vm.agent.shutdown("powerdown", silence=SOON)
        assert vm.wait_event("SHUTDOWN", SOON)["data"] == {"guest": True, "reason": "guest-shutdown"}
        vm.wait(SOON)
        with pytest.raises(AgentDisconnected):
            vm.agent.ping()

    def test_suspend_to_ram(self, guest: GuestFactory) -> None:
        vm = guest(smp=2)
        vm.run("echo kept > /tmp/kept")
        before = boot_id(vm)
        for _ in range(2):
            vm.agent.suspend_ram()
            vm.wait_event("SUSPEND", SOON)
            assert vm.qmp("query-status")["status"] == "suspended"
            vm.qmp("system_wakeup")
            vm.wait_event("WAKEUP", SOON)
            vm.wait_agent(SOON)
            assert boot_id(vm) == before
        assert vm.run("cat /tmp/kept; nproc").text == "kept\n2"
        assert complaints(vm.run("dmesg").text) == []

    def test_suspend_without_swap_is_refused(self, guest: GuestFactory) -> None:
        vm = guest()
        with pytest.raises(AgentError, match="child process has failed to suspend"):
            vm.agent.suspend_disk(silence=SOON)
        vm.agent.ping()
        with pytest.raises(AgentError, match=r"suspend mode"):
            vm.agent.suspend_hybrid(silence=SOON)
        vm.agent.ping()
