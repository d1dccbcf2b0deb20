"""Boots the demo guest and shows what the real qemu-ga in it answers; or gives a person its console.

    python -m images.demo               boot, ask, shut down
    python -m images.demo --console     boot with the console on this terminal (Ctrl-A x ends it)

`--emulator` runs another emulator with the same options, for comparison; what follows `--` is added to them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from images import debian
from images.build import BuildError, Image, build
from pyvm.agent import AgentClient, AgentFailure

BOOT_SECONDS = 120.0
SHUTDOWN_SECONDS = 30.0
TAIL_LINES = 20
WIDTH = 110


class DemoError(RuntimeError):
    """The demo cannot go on; the message is for the person at the prompt."""


def _machine(image: Image, emulator: list[str], socket: Path, more: list[str]) -> list[str]:
    """Return the command line of a machine whose agent listens at `socket`."""
    return [
        *emulator,
        *("-m", "512", "-smp", "2", "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", image.append, "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,path={socket},server=on,wait=off,id=ga0"),
        *("-device", "virtserialport,chardev=ga0,name=org.qemu.guest_agent.0"),
        *more,
    ]


def _shown(answer: Any) -> str:
    """Return an answer as JSON, as much of it as fits on two lines."""
    text = json.dumps(answer, ensure_ascii=False)
    return text if len(text) <= 2 * WIDTH else f"{text[: 2 * WIDTH - 4]} ..."


def _ask_everything(agent: AgentClient) -> None:
    def ask(command: str, *, show: Callable[[Any], Any] = lambda answer: answer, **arguments: Any) -> Any:
        answer = agent.command(command, **arguments)
        given = " ".join(f"{key}={value}" for key, value in arguments.items())
        print(f"\n> {command} {given}".rstrip())
        print(_shown(show(answer)))
        return answer

    ask("guest-sync", id=20240229)
    ask("guest-ping")
    ask("guest-info", show=lambda info: f"version {info['version']}, {len(info['supported_commands'])} commands")
    for command in ("osinfo", "host-name", "timezone", "time", "users", "vcpus", "memory-block-info", "memory-blocks"):
        ask(f"guest-get-{command}")
    ask("guest-network-get-interfaces")
    for command in ("fsinfo", "disks", "diskstats", "cpustats"):
        ask(f"guest-get-{command}")
    for line in ("uname -a", "cat /proc/uptime", "ls -l /dev/virtio-ports"):
        print(f"\n> guest-exec /bin/sh -c '{line}'\n{agent.run(line, check=True).stdout.decode().rstrip()}")
    agent.write_file("/tmp/note", b"written through the agent\n")
    print(
        f"\n> guest-file-open, -write, -close, -open, -read, -close\n{agent.read_file('/tmp/note').decode().rstrip()}"
    )


def _wait(agent: AgentClient, process: subprocess.Popen[bytes], console: Path) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while True:
        if process.poll() is not None:
            raise DemoError(f"the machine has ended with status {process.returncode}{_tail(console)}")
        try:
            agent.wait(1.0)
        except AgentFailure:
            if time.monotonic() > end:
                raise DemoError(f"no answer from the guest agent in {BOOT_SECONDS:.0f} s{_tail(console)}") from None
        else:
            return


def _tail(console: Path) -> str:
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return "".join(f"\n    {line}" for line in ["; the console's last lines:", *lines[-TAIL_LINES:]]) if lines else ""


def _show_agent(image: Image, emulator: list[str], more: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="pyvm-demo-") as name:
        socket, console = Path(name) / "ga.sock", Path(name) / "console"
        options = ["-display", "none", "-serial", f"file:{console}", *more]
        start = time.monotonic()
        with subprocess.Popen(_machine(image, emulator, socket, options), stdin=subprocess.DEVNULL) as process:
            try:
                with AgentClient(str(socket)) as agent:
                    _wait(agent, process, console)
                    took = time.monotonic() - start
                    print(f"the guest's kernel {image.release} and its agent are up after {took:.1f} s")
                    _ask_everything(agent)
                    print("\n> guest-shutdown mode=powerdown")
                    agent.shutdown("powerdown")
                status = process.wait(SHUTDOWN_SECONDS)
                print(f"the machine has powered off, status {status}")
            except subprocess.TimeoutExpired:
                raise DemoError(f"the guest did not power off in {SHUTDOWN_SECONDS:.0f} s{_tail(console)}") from None
            finally:
                process.kill()
        if process.returncode != 0:
            raise DemoError(f"the machine ended with status {process.returncode}")


def _give_console(image: Image, emulator: list[str], more: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="pyvm-demo-") as name:
        command = _machine(image, emulator, Path(name) / "ga.sock", ["-nographic", *more])
        subprocess.run(command, check=False)


def main(arguments: list[str]) -> int:
    """Run the demo as the module's docstring says."""
    own = Path(sys.executable).with_name("pyvm")
    parser = argparse.ArgumentParser(prog="images.demo", description="Boot the demo guest and talk to its agent.")
    parser.add_argument("--console", action="store_true", help="give the console instead")
    parser.add_argument("--guest", default="demo", help="which guest (demo, generic)")
    parser.add_argument("--emulator", default=str(own), help="the emulator's command")
    parser.add_argument("more", nargs="*", help="more options for the emulator, after --")
    given = parser.parse_args(arguments)
    emulator = given.emulator.split()
    try:
        image = build(given.guest)
        (_give_console if given.console else _show_agent)(image, emulator, given.more)
    except (BuildError, debian.PackageError, DemoError, AgentFailure, OSError) as error:
        print(f"images.demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    raise SystemExit(main(sys.argv[1:]))
