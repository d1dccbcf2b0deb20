"""The command ``pyvm-ga``: its options and subcommands, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from pyvm.tools.ga.failures import PROGRAM, STATUSES, USAGE, GaError
from pyvm.tools.leaving import leave

_DEFAULT_TIMEOUT = 30.0
_PROBE_SECONDS = 1.0
_SOCKET_VARIABLE = "PYVM_GA_SOCKET"

Add = Callable[[str, str], argparse.ArgumentParser]
"""Makes the parser of a subcommand of its name and what it does."""

_HANDLERS = {
    "exec": "execute.run",
    "cp": "copying.run",
    "shell": "shell.run",
    "raw": "raw.run",
    "time": "actions.time",
    "vcpus": "actions.vcpus",
    "memory-blocks": "actions.memory_blocks",
    **{name: f"queries.{name}" for name in ("ping", "sync", "info", "osinfo", "users", "fsinfo", "disks", "network")},
    **{name: f"actions.{name}" for name in ("freeze", "thaw", "trim", "suspend", "shutdown", "passwd")},
    "freeze-status": "actions.freeze_status",
    "reboot": "actions.shutdown",
    "halt": "actions.shutdown",
    "ssh-keys": "actions.ssh_keys",
}
"""The function of each subcommand; its module is imported when it is called."""


def _epilogue() -> str:
    statuses = "".join(f"  {number:>3}  {meaning}\n" for number, meaning in STATUSES)
    return f"""\
SOCKET is the path of a unix socket, tcp:HOST:PORT, or vsock:PATH:PORT for an agent that listens at PORT of a guest
whose virtio-vsock-pci device has uds=PATH.  {_SOCKET_VARIABLE} in the environment names it where -s does not.

examples:
  pyvm-ga -s /tmp/ga.sock exec -- uname -a
  tar c . | pyvm-ga -s /tmp/ga.sock exec -- tar x -C /srv
  pyvm-ga -s /tmp/ga.sock cp notes.txt :/root/ && pyvm-ga -s /tmp/ga.sock cp :/var/log/syslog .
  pyvm-ga -s /tmp/ga.sock raw guest-file-open '{{"path": "/etc/hostname"}}'

exit status:
{statuses}"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Ask and tell a guest through its agent, qemu-ga.",
        epilog=_epilogue(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-s", "--socket", default=os.environ.get(_SOCKET_VARIABLE), help="where the agent's channel is")
    parser.add_argument("--wait", metavar="SEC", type=float, help="wait so long for an agent to be there")
    timeout = "how long the agent may take for one answer (%(default)s)"
    parser.add_argument("--timeout", metavar="SEC", type=float, default=_DEFAULT_TIMEOUT, help=timeout)
    parser.add_argument("--json", action="store_true", help="show answers as JSON, as the agent gives them")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        # It may stand behind the subcommand as well.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return command

    _add_work(add)
    _add_queries(add)
    _add_system(add)
    return parser


def _add_work(add: Add) -> None:
    """Programs and files."""
    command = add("exec", "run a program in the guest, with its input, output and exit status as if it ran here")
    command.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="set a variable")
    command.add_argument("--clear-env", action="store_true", help="give the program no other variables")
    command.add_argument("-C", "--cwd", metavar="DIR", help="run it in this directory")
    command.add_argument(
        "-i", "--input", metavar="FILE", help="its standard input, read to its end first; -: ours, even a terminal"
    )
    command.add_argument("-d", "--detach", action="store_true", help="print its process ID, and do not wait")
    plain = "use no files in the guest: output comes at the end, 16 MiB of it at most"
    command.add_argument("--plain", action="store_true", help=plain)
    command.add_argument("words", metavar="-- PROGRAM ARGUMENTS", nargs=argparse.REMAINDER, help="what to run")
    command = add("cp", "copy files to the guest or from it; the guest's paths begin with a colon, - is a stream here")
    command.add_argument("-q", "--quiet", action="store_true", help="show no progress on a terminal")
    command.add_argument("--no-mode", action="store_true", help="do not copy permissions")
    command.add_argument("paths", metavar="PATH", nargs="+", help="sources, then the destination")
    add("shell", "carry out lines in the guest's shell")
    command = add("raw", "send any command, and show the answer")
    command.add_argument("request", help="a command's name, a request in JSON, or - to read one")
    command.add_argument("arguments", nargs="?", help="its arguments in JSON, behind a name")


def _add_queries(add: Add) -> None:
    """What the guest is and has."""
    add("ping", "see whether the agent answers")
    add("sync", "drop what the agent still sends of earlier conversations")
    add("info", "show the agent's version and commands").add_argument("--commands", action="store_true", help="all")
    add("osinfo", "show the operating system")
    command = add("time", "show the guest's time, or set it")
    command.add_argument("--set", metavar="SEC|now|rtc", help="seconds since 1970, the host's time, or the RTC's")
    add("users", "show who is logged in")
    add("fsinfo", "show mounted file systems")
    add("disks", "show disks and partitions")
    add("network", "show network interfaces")
    for name, what in (("vcpus", "CPUs"), ("memory-blocks", "blocks of memory")):
        command = add(name, f"show {what}, or switch them on and off")
        command.add_argument("--online", metavar="LIST", action="append", help="switch on, as in 1,3-5")
        command.add_argument("--offline", metavar="LIST", action="append", help="switch off")


def _add_system(add: Add) -> None:
    """What changes the guest."""
    add("freeze", "hold file systems").add_argument("mountpoint", nargs="*", help="only these")
    add("thaw", "let file systems go on")
    add("freeze-status", "show whether file systems are frozen")
    command = add("trim", "let file systems discard what they do not use")
    command.add_argument("--minimum", metavar="BYTES", type=int, help="leave shorter free ranges alone")
    command = add("suspend", "let the guest sleep")
    command.add_argument("mode", choices=("ram", "disk", "hybrid"))
    add("shutdown", "switch the guest off")
    add("reboot", "start the guest anew")
    add("halt", "stop the guest, and leave the machine on")
    command = add("passwd", "set a password, typed or read from standard input")
    command.add_argument("user")
    command.add_argument("--crypted", action="store_true", help="it is encrypted by crypt(3) already")
    command = add("ssh-keys", "show or change the keys that may log in to an account")
    command.add_argument("user")
    command.add_argument("--add", metavar="KEY|@FILE", action="append", default=[], help="let a key log in")
    command.add_argument("--remove", metavar="KEY|@FILE", action="append", default=[], help="no longer let it")
    command.add_argument("--reset", action="store_true", help="with --add: let no others")


def script() -> NoReturn:
    """Run ``pyvm-ga`` as a program of its own, which starts and ends as fast as it can."""
    leave(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyvm-ga`` with the arguments `argv`, by default the process's; return the exit status."""
    options = make_parser().parse_args(argv)
    try:
        status = _run(options)
        sys.stdout.flush()
    except GaError as error:
        from pyvm.tools.ga.output import text

        sys.stderr.write(f"{PROGRAM}: {text(error)}\n")
        return error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{PROGRAM}: {where}{error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _run(options: argparse.Namespace) -> int:
    from pyvm.agent import AgentClient, AgentFailure
    from pyvm.tools.ga.failures import explain

    if not options.socket:
        raise GaError(f"which agent? Name its socket by -s, or by {_SOCKET_VARIABLE}", USAGE)
    module, _, function = _HANDLERS[options.command].partition(".")
    handler = getattr(import_module(f"pyvm.tools.ga.{module}"), function)
    with AgentClient(options.socket, options.timeout, probe=_PROBE_SECONDS) as agent:
        try:
            if options.wait is not None:
                agent.wait(options.wait)
            return int(handler(agent, options))
        except AgentFailure as error:
            raise explain(error) from None


if __name__ == "__main__":
    script()
