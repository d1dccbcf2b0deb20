"""The command line as a person types it: the console on a terminal, the background, signals, and what is refused."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.build import Image
from pyvm.agent import AgentClient
from pyvm.qmp_client import QmpClient, QmpDisconnected
from tests.guest.conftest import ProcessFactory
from tests.guest.support import BOOT, PYVM, SOON, Process, agent_options, boot_options, until
from tests.unit.listeners import listens


class Terminal:
    """A program on a pseudo-terminal, and somebody who reads and types there."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        self.settings = slave
        self.text = ""
        self._position = 0

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout: float = BOOT) -> re.Match[str]:
        end = time.monotonic() + timeout
        while True:
            match = re.compile(pattern).search(self.text, self._position)
            if match is not None:
                self._position = match.end()
                return match
            assert time.monotonic() < end, f"{pattern!r} did not appear within {timeout} s:\n{self.text[-2000:]}"
            if select.select([self._master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._master, 65536).decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self.settings)


@pytest.fixture
def terminal() -> Iterator[type[Terminal]]:
    made: list[Terminal] = []

    class Made(Terminal):
        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            made.append(self)

    yield Made
    for item in made:
        item.close()


class TestTerminal:
    def test_the_command_line_of_the_manual(self, terminal: type[Terminal], demo: Image, tmp_path: Path) -> None:
        """A kernel with its console here, an agent on a socket, a monitor on another."""
        agent_path, qmp_path = tmp_path / "ga.sock", tmp_path / "q.sock"
        command = (
            f'-m 512 -smp 2 -kernel {demo.kernel} -initrd {demo.initrd} -append "{demo.append}" -nographic '
            f"-device virtio-serial-pci -chardev socket,path={agent_path},server=on,wait=off,id=ga0 "
            "-device virtserialport,chardev=ga0,name=org.qemu.guest_agent.0 "
            f"-qmp unix:{qmp_path},server=on,wait=off"
        )
        screen = terminal([*PYVM, *shlex.split(command)])
        screen.expect("Linux version")
        screen.expect("root@pyvm-demo:[^#]*# ")
        screen.type("echo $((6*7)) $(nproc)\r")
        screen.expect(r"\n42 2\s")
        # Ctrl-C is the guest's: it ends what runs there.  That has to be in the foreground already: a shell that is
        # about to start it takes the signal for itself.
        screen.type("sh -c 'echo sl\"\"eeping; exec sleep 1000'\r")
        screen.expect(r"\nsleeping\s")
        screen.type("\x03")
        screen.expect("# ", SOON)
        with AgentClient(str(agent_path)).wait(BOOT) as agent:
            assert agent.run("uname -r").text == demo.release
        with QmpClient.connect(str(qmp_path)) as qmp:
            assert qmp.greeting["QMP"]["version"]
            assert qmp.command("query-status")["running"] is True
            # Ctrl-A Ctrl-A is one Ctrl-A for the guest; Ctrl-A h helps; Ctrl-A x ends it.
            screen.type("echo st''art; cat -v; echo do''ne\r")
            screen.expect(r"\nstart\s")
            screen.type("\x01\x01\r\x04")
            screen.expect(r"\^A")
            screen.expect(r"\ndone\s")
            screen.type("\x01h")
            screen.expect("exit emulator")
            screen.type("\x01x")
            assert screen.process.wait(SOON) == 0
            assert qmp.wait_event("SHUTDOWN", timeout=SOON)["data"]["guest"] is False
        assert not agent_path.exists()
        assert not qmp_path.exists()

    def test_no_display_option_gives_the_console_too(self, terminal: type[Terminal], demo: Image) -> None:
        screen = terminal([*PYVM, *boot_options(demo)])
        screen.expect("root@pyvm-demo:[^#]*# ")
        screen.type("poweroff\r")
        assert screen.process.wait(SOON) == 0

    def test_terminal_is_as_it_was_afterwards(self, terminal: type[Terminal]) -> None:
        import termios

        screen = terminal([*PYVM, "-nographic", "-S", "-qmp", "none"])
        before = termios.tcgetattr(screen.settings)
        until(lambda: termios.tcgetattr(screen.settings)[3] != before[3], "raw mode")
        screen.type("\x01x")
        assert screen.process.wait(SOON) == 0
        assert termios.tcgetattr(screen.settings) == before


class TestLife:
    def test_signal_ends_it_cleanly(self, pyvm: ProcessFactory, demo: Image) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process = pyvm(*boot_options(demo))
            qmp = process.qmp
            until(lambda process=process: "Linux version" in process.console_text, "the first line of the kernel")
            process.process.send_signal(number)
            event = qmp.wait_event("SHUTDOWN", timeout=SOON)
            assert event["data"] == {"guest": False, "reason": "host-signal"}
            status, out, error = process.end()
            assert (status, out) == (0, "")
            assert error == f"pyvm: terminating on signal {int(number)}\n"
            assert not process.qmp_path.exists()

    def test_daemonize_and_pidfile(self, demo: Image, tmp_path: Path) -> None:
        pidfile, agent_path, qmp_path = tmp_path / "pid", tmp_path / "ga.sock", tmp_path / "q.sock"
        command = [
            *(*PYVM, *boot_options(demo), *agent_options(agent_path), "-display", "none", "-serial", "null"),
            *("-daemonize", "-pidfile", str(pidfile), "-qmp", f"unix:{qmp_path},server=on,wait=off"),
        ]
        done = subprocess.run(command, capture_output=True, timeout=SOON, check=False, text=True)
        # Its sockets are there when the command returns.
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with QmpClient.connect(str(qmp_path)) as qmp:
            number = int(pidfile.read_text())
            assert os.getsid(number) != os.getsid(0)
            with AgentClient(str(agent_path)).wait(BOOT) as agent:
                assert agent.run("nproc").text == "1"
            qmp.command("quit")
        until(lambda: not Path(f"/proc/{number}").exists() or _is_zombie(number), "the end of the process")
        assert not pidfile.exists()

    def test_start_paused_then_continue(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        process = pyvm(*boot_options(demo), *agent_options(tmp_path / "ga.sock"), "-S")
        assert process.qmp.command("query-status") == {"running": False, "singlestep": False, "status": "prelaunch"}
        time.sleep(1)
        assert process.console_text == ""
        process.qmp.command("cont")
        with AgentClient(str(tmp_path / "ga.sock")).wait(BOOT) as agent:
            assert abs(agent.get_time() - time.time_ns()) < 5e9
        assert process.qmp.command("query-status")["status"] == "running"

    def test_no_reboot_ends_at_a_reset(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        agent_path = tmp_path / "ga.sock"
        process = pyvm(*boot_options(demo), *agent_options(agent_path), "-no-reboot")
        with AgentClient(str(agent_path)).wait(BOOT) as agent:
            qmp = process.qmp
            agent.shutdown("reboot", silence=0.1)
        event = qmp.wait_event("SHUTDOWN", timeout=SOON)
        assert event["data"] == {"guest": True, "reason": "guest-reset"}
        assert process.end() == (0, "", "")

    def test_no_shutdown_keeps_the_process(self, pyvm: ProcessFactory, demo: Image, tmp_path: Path) -> None:
        agent_path = tmp_path / "ga.sock"
        process = pyvm(*boot_options(demo), *agent_options(agent_path), "-no-shutdown")
        with AgentClient(str(agent_path)).wait(BOOT) as agent:
            agent.shutdown(silence=0.1)
        event = process.qmp.wait_event("SHUTDOWN", timeout=SOON)
        assert event["data"] == {"guest": True, "reason": "guest-shutdown"}
        until(lambda: process.qmp.command("query-status")["status"] == "shutdown", "the run state shutdown")
        process.qmp.command("system_reset")
        process.qmp.command("cont")
        with AgentClient(str(agent_path)).wait(BOOT) as agent:
            assert float(agent.run("cut -d ' ' -f 1 /proc/uptime").text) < BOOT
        with contextlib.suppress(QmpDisconnected):
            process.qmp.command("quit")
        assert process.end() == (0, "", "")

    def test_qmp_listens_without_being_told(self, pyvm: ProcessFactory, tmp_path: Path) -> None:
        path = tmp_path / "q.sock"
        pyvm("-S", "-qmp", f"unix:{path}", qmp=False)
        until(lambda: listens(path), "the socket")
        for _ in range(2):
            with QmpClient.connect(str(path)) as qmp:
                assert qmp.command("query-status")["status"] == "prelaunch"

    def test_qmp_connects_where_somebody_listens(self, pyvm: ProcessFactory, tmp_path: Path) -> None:
        path = tmp_path / "q.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(SOON)
            pyvm("-S", "-qmp", f"unix:{path}", qmp=False)
            connection, _ = listener.accept()
            with QmpClient(connection) as qmp:
                assert qmp.command("query-status")["status"] == "prelaunch"


def _is_zombie(number: int) -> bool:
    return " Z " in Path(f"/proc/{number}/stat").read_text()


CHARDEV = ("-chardev", "null,id=c0")
REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown option": (["-frobnicate"], "frobnicate: invalid option"),
    "argument that is none": (["disk.img", "other.img"], "disk.img|drive"),
    "option without argument": (["-m"], "requires an argument"),
    "unknown machine": (["-machine", "vax"], "unsupported machine type"),
    "unknown CPU": (["-cpu", "z80"], "unable to find CPU model 'z80'"),
    "unknown CPU feature": (["-cpu", "qemu64,+warp"], "Property .*warp' not found"),
    "unknown device": (["-device", "flux-capacitor"], "'flux-capacitor' is not a valid device model name"),
    "unknown property": (["-device", "virtio-rng-pci,warp=9"], "Property 'virtio-rng-pci.warp' not found"),
    "bad property": (["-device", "virtio-rng-pci,vectors=many"], "vectors"),
    "slot taken": (["-device", "virtio-rng-pci,addr=3", "-device", "virtio-rng-pci,addr=3"], "PCI: slot 3"),
    "slot of the bridge": (["-device", "virtio-rng-pci,addr=1"], "PCI: slot 1 .*in use"),
    "same ID twice": (["-device", "virtio-rng-pci,id=a", "-device", "virtio-rng-pci,id=a"], "[Dd]uplicate.* 'a'"),
    "port without a bus": ([*CHARDEV, "-device", "virtserialport,chardev=c0"], "No 'virtio-serial-bus' bus found"),
    "port without a chardev": (["-device", "virtio-serial", "-device", "virtserialport,chardev=c9"], "c9"),
    "unknown chardev": (["-chardev", "telepathy,id=c0"], "telepathy"),
    "chardev without ID": (["-chardev", "null"], "id"),
    "chardev twice": (
        [*CHARDEV, "-serial", "chardev:c0", "-mon", "chardev=c0,mode=control"],
        "'?c0'? is (already )?in use",
    ),
    "no memory": (["-m", "0"], "."),
    "negative memory": (["-m", "-1"], "."),
    "nonsense memory": (["-m", "lots"], "."),
    "too much memory": (["-m", "100000T"], "."),
    "no CPUs": (["-smp", "0"], "[Ii]nvalid.*CPU|CPUs"),
    "too many CPUs": (["-smp", "100000"], "[Ii]nvalid.*CPUs|CPUs"),
    "topology that does not fit": (["-smp", "3,cores=2,threads=2,sockets=1"], "topology"),
    "initrd without kernel": (["-initrd", "/bin/sh"], "-initrd only allowed with -kernel"),
    "append without kernel": (["-append", "x"], "-append only allowed with -kernel"),
    "missing kernel": (["-kernel", "/no/such/kernel"], "/no/such/kernel.*No such file"),
    "directory as kernel": (["-kernel", "/tmp"], "/tmp.*directory"),
    "bad display": (["-display", "hologram"], "hologram"),
    "missing disk": (["-drive", "file=/no/such/disk,if=none,format=raw,id=d0"], "/no/such/disk"),
    "directory that is not there": (["-serial", "unix:/no/such/dir/x.sock,server=on,wait=off"], "No such file"),
    "fw_cfg file that is not there": (["-fw_cfg", "name=opt/a,file=/no/such"], "/no/such"),
    "negative RTC": (["-rtc", "base=yesterday"], "yesterday"),
}


def refusal(arguments: list[str]) -> str:
    """Run pyvm with arguments that it must refuse, and return its one line."""
    done = subprocess.run(
        [*PYVM, "-display", "none", *arguments],
        capture_output=True,
        text=True,
        timeout=SOON,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("pyvm: ")
    assert "Traceback" not in done.stderr
    return done.stderr


class TestRefusals:
    @pytest.mark.parametrize("case", list(REFUSED))
    def test_one_line_says_what_and_why(self, case: str) -> None:
        arguments, pattern = REFUSED[case]
        message = refusal(arguments)
        assert re.search(pattern, message), message
        # It names the option, or what was wrong in it.
        assert any(word.lstrip("-").split(",")[0].split("=")[-1] in message for word in arguments), message

    def test_broken_kernels(self, tmp_path: Path, demo: Image) -> None:
        whole = demo.kernel.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2 : len(whole) // 2 + 4096] = bytes(4096)
        for name, content in (
            ("empty", b""),
            ("text", b"#!/bin/sh\necho hello\n" * 1000),
            ("cut", whole[: len(whole) // 3]),
            ("header only", whole[:0x300]),
            ("damaged", bytes(damaged)),
            ("elf", b"\x7fELF\x02\x01\x01" + bytes(200)),
        ):
            path = tmp_path / name
            path.write_bytes(content)
            assert str(path) in refusal(["-kernel", str(path), "-S"])

    def test_initrd_that_does_not_fit(self, tmp_path: Path, demo: Image) -> None:
        initrd = tmp_path / "initrd"
        with initrd.open("wb") as file:
            file.truncate(600 << 20)
        message = refusal(["-m", "512", "-kernel", str(demo.kernel), "-initrd", str(initrd)])
        assert re.search("initrd.*(too large|does not fit|too big|not enough)", message), message
        assert "/no/such" in refusal(["-kernel", str(demo.kernel), "-initrd", "/no/such"])
        assert "m" in refusal(["-m", "8", "-kernel", str(demo.kernel)])

    def test_socket_in_use(self, pyvm: ProcessFactory, tmp_path: Path) -> None:
        first: Process = pyvm("-S")
        assert first.qmp.command("query-status")["status"] == "prelaunch"
        first.qmp.close()
        message = refusal(["-S", "-serial", f"unix:{first.qmp_path},server=on,wait=off"])
        assert "in use" in message
        assert str(first.qmp_path) in message
        # The first one has not suffered.
        with QmpClient.connect(str(first.qmp_path)) as again:
            assert again.command("query-status")["status"] == "prelaunch"

    def test_port_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert "in use" in refusal(["-S", "-serial", f"tcp:127.0.0.1:{port},server=on,wait=off"])
        assert "refused" in refusal(["-S", "-serial", f"tcp:127.0.0.1:{port}"])

    def test_stale_socket_is_replaced(self, pyvm: ProcessFactory, tmp_path: Path) -> None:
        path = tmp_path / "q.sock"
        with socket.socket(socket.AF_UNIX) as left_behind:
            left_behind.bind(str(path))
        pyvm("-S", "-qmp", f"unix:{path},server=on,wait=off", qmp=False)

        def connects() -> bool:
            with contextlib.suppress(QmpDisconnected):
                QmpClient.connect(str(path)).close()
                return True
            return False

        until(connects, "a monitor on the socket")

    def test_pidfile_in_use(self, pyvm: ProcessFactory, tmp_path: Path) -> None:
        pidfile = tmp_path / "pid"
        first: Process = pyvm("-S", "-pidfile", str(pidfile))
        assert first.qmp.command("query-status")["status"] == "prelaunch"
        assert str(pidfile) in refusal(["-S", "-pidfile", str(pidfile)])
        assert int(pidfile.read_text()) == first.process.pid
