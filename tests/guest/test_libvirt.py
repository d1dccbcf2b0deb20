"""libvirt's own daemon with pyvm as the emulator: it probes it, and runs a domain from its start to its end.

Nothing is set up for the tests but where files lie: domains run with libvirt's defaults, the sandbox included.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from images.build import Image, build
from tests.guest.libvirt_support import Libvirt, running, why_not
from tests.guest.support import BOOT, SOON, until

pytestmark = [pytest.mark.guest, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

MIB = 1 << 20
MEMORY_MIB = 256
DISK_BYTES = 64 * MIB
QEMU = shutil.which("qemu-system-x86_64")
AGENT = "org.qemu.guest_agent.0"
MAC = "52:54:00:12:34:99"
GRAPHICS = "<graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>"
CARD = f"<interface type='user'><mac address='{MAC}'/><model type='virtio'/></interface>"


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Libvirt]:
    with running() as libvirt:
        yield libvirt


@pytest.fixture(scope="module")
def other() -> Iterator[Libvirt]:
    """The daemon of another host, or so it believes."""
    with running("other") as libvirt:
        yield libvirt


def address(libvirt: Libvirt) -> str:
    return f"qemu+unix:///session?socket={libvirt.socket}"


@pytest.fixture(scope="module")
def image() -> Image:
    return build("demo")


def domain(libvirt: Libvirt, image: Image, name: str, disk: Path, more: str = "") -> Path:
    """Return the file with the description of a domain that boots the demo guest."""
    text = f"""
    <domain type='qemu'>
      <name>{name}</name>
      <memory unit='MiB'>{MEMORY_MIB}</memory>
      <vcpu>2</vcpu>
      <os>
        <type arch='x86_64' machine='pc'>hvm</type>
        <kernel>{image.kernel}</kernel><initrd>{image.initrd}</initrd><cmdline>{image.append}</cmdline>
      </os>
      <features><acpi/><apic/></features>
      <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
      <devices>
        <emulator>{libvirt.emulator}</emulator>
        <disk type='file' device='disk'>
          <driver name='qemu' type='raw'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
          <serial>libvirt-disk</serial>
        </disk>
        <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
        <controller type='usb' model='none'/>
        <serial type='pty'/><console type='pty'/>
        <channel type='unix'><target type='virtio' name='{AGENT}'/></channel>
        <input type='keyboard' bus='ps2'/>
        <memballoon model='virtio'><stats period='1'/></memballoon>
        <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
        <video><model type='vga' vram='16384'/></video>
        {more}
      </devices>
    </domain>"""
    path = libvirt.directory / f"{name}.xml"
    path.write_text(text)
    return path


def make_disk(libvirt: Libvirt, name: str) -> Path:
    path = libvirt.directory / name
    path.touch()
    os.truncate(path, DISK_BYTES)
    return path


def agent_answers(libvirt: Libvirt, name: str) -> bool:
    return libvirt.attempt("qemu-agent-command", name, '{"execute": "guest-ping"}')[0] == 0


def ask_agent(libvirt: Libvirt, name: str, command: str, **arguments: object) -> Any:
    """Return what the agent answered; None where it could not: the guest may be going down or coming up."""
    text = json.dumps({"execute": command, "arguments": arguments})
    status, answer, _ = libvirt.attempt("qemu-agent-command", name, text)
    return json.loads(answer)["return"] if status == 0 else None


def boot_id(libvirt: Libvirt, name: str) -> str:
    """Return what is another one each time that a guest boots; nothing where it cannot say."""
    handle = ask_agent(libvirt, name, "guest-file-open", path="/proc/sys/kernel/random/boot_id")
    read = None if handle is None else ask_agent(libvirt, name, "guest-file-read", handle=handle)
    return "" if read is None else str(read["buf-b64"])


@pytest.fixture(scope="module")
def demo(libvirt: Libvirt, image: Image) -> str:
    """A domain whose guest has booted."""
    path = domain(libvirt, image, "demo", make_disk(libvirt, "demo.raw"), GRAPHICS + CARD)
    libvirt.virsh("create", str(path))
    until(lambda: agent_answers(libvirt, "demo"), "the guest's agent", BOOT)
    return "demo"


def pairs(text: str) -> dict[str, str]:
    """Return a table of names and values as virsh prints it."""
    return {
        name.rstrip(":"): value.strip()
        for name, _, value in (line.strip().partition(" ") for line in text.splitlines())
    }


class TestCapabilities:
    @staticmethod
    def ask(libvirt: Libvirt, emulator: str) -> ElementTree.Element:
        words = ("--emulatorbin", emulator, "--machine", "pc", "--arch", "x86_64", "--virttype", "qemu")
        return ElementTree.fromstring(libvirt.virsh("domcapabilities", *words))

    def test_the_probe_finds_what_pyvm_has(self, libvirt: Libvirt) -> None:
        found = self.ask(libvirt, str(libvirt.emulator))
        assert found.findtext("machine") == "pc-i440fx-7.2"
        vcpu = found.find("vcpu")
        assert vcpu is not None
        assert vcpu.get("max") == "255"
        buses = {value.text for value in found.findall("devices/disk/enum[@name='bus']/value")}
        assert {"ide", "fdc", "scsi", "virtio"} <= buses
        videos = {value.text for value in found.findall("devices/video/enum[@name='modelType']/value")}
        assert {"vga", "none"} <= videos
        rng = {value.text for value in found.findall("devices/rng/enum[@name='backendModel']/value")}
        assert {"random", "builtin"} <= rng
        assert not [line for line in libvirt.errors() if "CommandNotFound" in line]

    @pytest.mark.parity
    @pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
    def test_it_promises_nothing_that_qemu_does_not_have(self, libvirt: Libvirt) -> None:
        assert QEMU is not None
        ours, theirs = (self.ask(libvirt, emulator) for emulator in (str(libvirt.emulator), QEMU))

        def values(root: ElementTree.Element) -> set[tuple[str, str, str | None]]:
            return {
                (parent.tag, enum.get("name", ""), value.text)
                for parent in root.iter()
                for enum in parent.findall("enum")
                for value in enum.findall("value")
            }

        def models(root: ElementTree.Element) -> set[str | None]:
            return {model.text for model in root.findall("cpu/mode[@name='custom']/model")}

        assert values(ours) <= values(theirs)
        assert models(ours) == models(theirs)

    def test_a_default_emulator_is_described(self, libvirt: Libvirt) -> None:
        words = (
            "--emulatorbin",
            str(libvirt.emulator),
            "--arch",
            "x86_64",
            "--virttype",
            "qemu",
            "--machine",
            "pc-q35-7.2",
        )
        status, _, error = libvirt.attempt("domcapabilities", *words)
        assert status != 0
        assert "pc-q35-7.2" in error


class TestDomain:
    def test_it_runs_with_libvirts_defaults(self, libvirt: Libvirt, demo: str) -> None:
        assert libvirt.virsh("domstate", demo, "--reason") == "running (booted)"
        info = pairs(libvirt.virsh("dominfo", demo))
        assert libvirt.virsh("dominfo", demo).count("running") == 1
        assert info["UUID"] == libvirt.virsh("domuuid", demo)
        log = (libvirt.directory / "cache/libvirt/qemu/log/demo.log").read_text()
        assert "-sandbox on," in log
        pid = next((libvirt.directory / "run/libvirt/qemu/run").glob(f"{demo}.pid")).read_text().strip()
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Seccomp:\t2\n" in status

    def test_monitor_and_agent(self, libvirt: Libvirt, demo: str) -> None:
        reply = json.loads(libvirt.virsh("qemu-monitor-command", demo, '{"execute": "query-status"}'))
        assert reply["return"]["status"] == "running"
        assert libvirt.virsh("qemu-monitor-command", demo, "--hmp", "info status") == "VM status: running"
        reply = json.loads(libvirt.virsh("qemu-agent-command", demo, '{"execute": "guest-get-osinfo"}'))
        assert reply["return"]["id"] == "pyvm-demo"
        assert libvirt.virsh("domhostname", demo) == "pyvm-demo"

    def test_suspend_and_resume(self, libvirt: Libvirt, demo: str) -> None:
        libvirt.virsh("suspend", demo)
        assert libvirt.virsh("domstate", demo, "--reason") == "paused (user)"
        libvirt.virsh("resume", demo)
        assert libvirt.virsh("domstate", demo) == "running"
        assert agent_answers(libvirt, demo)

    def test_disks(self, libvirt: Libvirt, demo: str) -> None:
        before = int(libvirt.virsh("domblkstat", demo, "vda").split("wr_bytes ")[1].split()[0])
        write = {"path": "/bin/sh", "arg": ["-c", "echo written | dd of=/dev/vda bs=512 conv=sync; sync"]}
        libvirt.virsh("qemu-agent-command", demo, json.dumps({"execute": "guest-exec", "arguments": write}))
        until(lambda: (libvirt.directory / "demo.raw").read_bytes()[:8] == b"written\n", "what the guest wrote")
        after = int(libvirt.virsh("domblkstat", demo, "vda").split("wr_bytes ")[1].split()[0])
        assert after > before
        assert libvirt.virsh("domblkinfo", demo, "vda").split()[1] == str(DISK_BYTES)
        assert "demo.raw" in libvirt.virsh("domblklist", demo)
        libvirt.virsh("blkdeviotune", demo, "vda", "--total-iops-sec", "1000")
        assert "total_iops_sec : 1000" in libvirt.virsh("blkdeviotune", demo, "vda")
        libvirt.virsh("blkdeviotune", demo, "vda", "--total-iops-sec", "0")
        libvirt.virsh("blockresize", demo, "vda", f"{2 * DISK_BYTES}B")
        assert libvirt.virsh("domblkinfo", demo, "vda").split()[1] == str(2 * DISK_BYTES)
        assert (libvirt.directory / "demo.raw").stat().st_size == 2 * DISK_BYTES

    def test_a_cd_is_put_in_and_taken_out(self, libvirt: Libvirt, demo: str) -> None:
        disc = libvirt.directory / "disc.iso"
        disc.write_bytes(b"disc".ljust(2048 * 32, b"\0"))
        libvirt.virsh("change-media", demo, "hdc", str(disc), "--insert")
        assert "disc.iso" in libvirt.virsh("domblklist", demo)
        blocks = json.loads(libvirt.virsh("qemu-monitor-command", demo, '{"execute": "query-block"}'))["return"]
        assert [entry["inserted"]["image"]["virtual-size"] for entry in blocks if entry["removable"]] == [2048 * 32]
        libvirt.virsh("change-media", demo, "hdc", "--eject", "--force")
        assert "disc.iso" not in libvirt.virsh("domblklist", demo)

    def test_memory(self, libvirt: Libvirt, demo: str) -> None:
        def statistics() -> dict[str, str]:
            return pairs(libvirt.virsh("dommemstat", demo))

        until(lambda: int(statistics().get("available", "0")) > 0, "statistics of the guest's memory")
        libvirt.virsh("setmem", demo, f"{200 * 1024}")
        until(lambda: statistics()["actual"] == str(200 * 1024), "the balloon")
        libvirt.virsh("setmem", demo, f"{MEMORY_MIB * 1024}")
        until(lambda: statistics()["actual"] == str(MEMORY_MIB * 1024), "the balloon")

    def test_cpus(self, libvirt: Libvirt, demo: str) -> None:
        assert [line.split()[-1] for line in libvirt.virsh("vcpucount", demo, "--current").splitlines()] == ["2"] or (
            libvirt.virsh("vcpucount", demo, "--current", "--live") == "2"
        )
        statistics = libvirt.virsh("domstats", demo)
        assert "vcpu.current=2" in statistics
        assert "balloon.maximum=262144" in statistics
        assert "block.count=2" in statistics

    def test_what_is_on_the_screen(self, libvirt: Libvirt, demo: str) -> None:
        picture = libvirt.directory / "screen"
        libvirt.virsh("screenshot", demo, str(picture))
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" or picture.read_bytes()[:2] == b"P6"

    def test_a_viewer_is_greeted(self, libvirt: Libvirt, demo: str) -> None:
        host, _, display = libvirt.virsh("vncdisplay", demo).rpartition(":")
        with socket.create_connection((host, 5900 + int(display)), timeout=SOON) as viewer:
            assert viewer.recv(12) == b"RFB 003.008\n"

    def test_its_network_card(self, libvirt: Libvirt, demo: str) -> None:
        assert MAC in libvirt.virsh("domiflist", demo)

        def has_address() -> bool:
            return "10.0.2.15/24" in libvirt.virsh("domifaddr", demo, "--source", "agent")

        until(has_address, "an address")
        libvirt.virsh("domif-setlink", demo, MAC, "down")
        assert libvirt.virsh("domif-getlink", demo, MAC).endswith("down")
        libvirt.virsh("domif-setlink", demo, MAC, "up")

    def test_snapshots_and_copies_of_a_disk(self, libvirt: Libvirt, demo: str) -> None:
        libvirt.virsh(
            "snapshot-create-as",
            demo,
            "first",
            "--disk-only",
            "--atomic",
            "--no-metadata",
            "--diskspec",
            "hdc,snapshot=no",
        )
        assert "demo.first" in libvirt.virsh("domblklist", demo)
        write = {"path": "/bin/sh", "arg": ["-c", "echo behind | dd of=/dev/vda bs=512 seek=9 conv=sync; sync"]}
        libvirt.virsh("qemu-agent-command", demo, json.dumps({"execute": "guest-exec", "arguments": write}))
        until(lambda: b"behind\n" in (libvirt.directory / "demo.first").read_bytes(), "what the guest wrote")
        libvirt.virsh("blockcommit", demo, "vda", "--active", "--pivot", "--wait")
        assert "demo.raw" in libvirt.virsh("domblklist", demo)
        assert (libvirt.directory / "demo.raw").read_bytes()[9 * 512 :][:7] == b"behind\n"
        copy = libvirt.directory / "copy.raw"
        libvirt.virsh("blockcopy", demo, "vda", str(copy), "--format", "raw", "--wait", "--finish", "--transient-job")
        assert copy.read_bytes() == (libvirt.directory / "demo.raw").read_bytes()

    def test_keys_and_interrupts(self, libvirt: Libvirt, demo: str) -> None:
        libvirt.virsh("send-key", demo, "KEY_LEFTCTRL", "KEY_A")
        libvirt.virsh("inject-nmi", demo)
        assert agent_answers(libvirt, demo)

    def test_the_description_of_what_runs(self, libvirt: Libvirt, demo: str) -> None:
        found = ElementTree.fromstring(libvirt.virsh("dumpxml", demo))
        aliases = {alias.get("name") for alias in found.iter("alias")}
        assert {"virtio-disk0", "serial0", "channel0", "balloon0", "rng0", "video0"} <= aliases
        assert [target.get("state") for target in found.findall("devices/channel/target")] == ["connected"]
        terminal = found.find("devices/console[@tty]")
        assert terminal is not None
        assert libvirt.virsh("ttyconsole", demo) == terminal.get("tty")

    def test_its_console(self, libvirt: Libvirt, demo: str) -> None:
        controller, terminal = pty.openpty()
        client = subprocess.Popen(
            libvirt.command("console", demo, "--force"),
            env=libvirt.environment | {"TERM": "dumb"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        seen = b""
        end = time.monotonic() + SOON
        try:
            while b"answer-42" not in seen:
                assert time.monotonic() < end, seen
                os.write(controller, b"echo answer-$((6*7))\r")
                if select.select([controller], [], [], 1)[0]:
                    seen += os.read(controller, 4096)
        finally:
            client.kill()
            client.wait()
            os.close(controller)

    def test_its_memory_as_a_file(self, libvirt: Libvirt, demo: str) -> None:
        dump = libvirt.directory / "core"
        libvirt.virsh("dump", demo, str(dump), "--memory-only")
        assert dump.read_bytes()[:4] == b"\x7fELF"
        assert dump.stat().st_size > MEMORY_MIB * MIB
        dump.unlink()
        assert libvirt.virsh("domstate", demo) == "running"

    def test_saved_to_a_file_and_restored(self, libvirt: Libvirt, demo: str, tmp_path: Path) -> None:
        before = boot_id(libvirt, demo)
        saved = tmp_path / "saved"
        libvirt.virsh("save", demo, str(saved))
        assert demo not in libvirt.virsh("list", "--name").split()
        libvirt.virsh("restore", str(saved))
        assert libvirt.virsh("domstate", demo, "--reason") == "running (restored)"
        until(lambda: agent_answers(libvirt, demo), "the guest's agent")
        assert boot_id(libvirt, demo) == before

    def test_migrated_to_another_host_and_back(self, libvirt: Libvirt, other: Libvirt, demo: str) -> None:
        before = boot_id(libvirt, demo)
        away, back = ("--live", "--unsafe", demo), ("--live", "--unsafe", "--p2p", demo)
        tcp = ("--auto-converge", "--comp-methods", "xbzrle", "--migrateuri", "tcp://127.0.0.1")
        unix = ("--parallel", "--parallel-connections", "2", "--migrateuri", f"unix://{other.directory}/move")
        libvirt.virsh("migrate", *away, address(other), *tcp)
        assert demo not in libvirt.virsh("list", "--name").split()
        assert other.virsh("domstate", demo, "--reason") == "running (migrated)"
        until(lambda: agent_answers(other, demo), "the guest's agent")
        assert boot_id(other, demo) == before
        other.virsh("migrate", *back, address(libvirt), *unix)
        assert libvirt.virsh("domstate", demo, "--reason") == "running (migrated)"
        until(lambda: agent_answers(libvirt, demo), "the guest's agent")
        assert boot_id(libvirt, demo) == before
        assert "Memory total:     272.000 MiB" in libvirt.virsh("domjobinfo", demo, "--completed")

    def test_reset_and_reboot(self, libvirt: Libvirt, demo: str) -> None:
        def current() -> str:
            return boot_id(libvirt, demo)

        ids = [until(current, "the guest")]
        for words in (("reset", demo), ("reboot", demo, "--mode", "agent"), ("reboot", demo, "--mode", "acpi")):
            libvirt.virsh(*words)
            until(lambda: current() not in ("", *ids), f"the guest after {words}", BOOT)
            ids.append(current())
            assert libvirt.virsh("domstate", demo) == "running"

    def test_shutdown_is_the_last(self, libvirt: Libvirt, demo: str) -> None:
        libvirt.virsh("shutdown", demo)
        until(lambda: demo not in libvirt.virsh("list", "--name").split(), "the end of the domain", BOOT)
        unexpected = [line for line in libvirt.errors() if "DeviceNotFound" not in line and "KVM" not in line]
        assert not unexpected


def test_a_domain_is_defined_started_and_destroyed(libvirt: Libvirt, image: Image) -> None:
    libvirt.virsh("define", str(domain(libvirt, image, "kept", make_disk(libvirt, "kept.raw"))))
    assert libvirt.virsh("domstate", "kept") == "shut off"
    libvirt.virsh("start", "kept", "--paused")
    assert libvirt.virsh("domstate", "kept") == "paused"
    libvirt.virsh("resume", "kept")
    assert libvirt.virsh("domstate", "kept") == "running"
    libvirt.virsh("managedsave", "kept")
    assert libvirt.virsh("domstate", "kept", "--reason") == "shut off (saved)"
    libvirt.virsh("start", "kept")
    assert libvirt.virsh("domstate", "kept", "--reason") == "running (restored)"
    libvirt.virsh("destroy", "kept")
    assert libvirt.virsh("domstate", "kept", "--reason") == "shut off (destroyed)"
    libvirt.virsh("start", "kept")
    libvirt.virsh("destroy", "kept", "--graceful")
    libvirt.virsh("undefine", "kept")
    assert libvirt.attempt("domstate", "kept")[0] != 0


USUAL = """
<features><acpi/><apic/></features>
<clock offset='utc'>
  <timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/><timer name='hpet' present='no'/>
</clock>
<pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
<iothreads>1</iothreads>
<cpu mode='host-model'><numa>
  <cell id='0' cpus='0' memory='128' unit='MiB'/><cell id='1' cpus='1' memory='128' unit='MiB'/>
</numa></cpu>
"""
"""What tools for making domains write into them."""


def test_a_domain_with_all_that_tools_ask_for(libvirt: Libvirt, image: Image) -> None:
    log = libvirt.directory / "serial.log"
    more = f"""
    <controller type='scsi' model='virtio-scsi'/>
    <disk type='file' device='cdrom'><target dev='sdb' bus='scsi'/><readonly/></disk>
    <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    <serial type='file'><source path='{log}'/></serial>
    <console type='pty'><target type='virtio'/></console>"""
    path = domain(libvirt, image, "usual", make_disk(libvirt, "usual.raw"), more)
    path.write_text(path.read_text().replace("<features><acpi/><apic/></features>", USUAL))
    libvirt.virsh("create", str(path))
    until(lambda: agent_answers(libvirt, "usual"), "the guest's agent", BOOT)
    write = {"path": "/bin/sh", "arg": ["-c", "echo on the second line >/dev/ttyS1; ls /sys/devices/system/node"]}
    libvirt.virsh("qemu-agent-command", "usual", json.dumps({"execute": "guest-exec", "arguments": write}))
    until(lambda: b"on the second line" in log.read_bytes(), "the log of the second serial port")
    assert "iothread1" in libvirt.virsh("qemu-monitor-command", "usual", '{"execute": "query-iothreads"}')
    libvirt.virsh("destroy", "usual")


def test_what_pyvm_lacks_is_named(libvirt: Libvirt, image: Image) -> None:
    """libvirt gives a machine a USB controller unless it is told not to."""
    path = domain(libvirt, image, "usb", make_disk(libvirt, "usb.raw"))
    path.write_text(path.read_text().replace("<controller type='usb' model='none'/>", ""))
    status, _, error = libvirt.attempt("create", str(path))
    assert status != 0
    assert "pyvm: -usb: not supported by pyvm yet" in error
