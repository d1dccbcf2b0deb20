"""Subcommands that change the guest: file systems, power, CPUs and memory, accounts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pyvm.agent import AgentClient
from pyvm.agent.records import GuestLogicalProcessor, GuestMemoryBlock
from pyvm.tools.ga import queries
from pyvm.tools.ga.failures import FAILED, GaError
from pyvm.tools.ga.output import show_json, show_table, size, text

_NANOSECONDS = 1_000_000_000


def _done(options: argparse.Namespace, answer: object, line: str = "") -> int:
    """Show an answer, for people as `line` if there is one."""
    if options.json:
        show_json(answer)
    elif line:
        sys.stdout.write(f"{line}\n")
    return 0


# ---- Time


def time(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show or set the guest's clock."""
    if options.set is None:
        return queries.show_time(agent, options)
    agent.set_time(_moment(options.set))
    return _done(options, {})


def _moment(given: str) -> int | None:
    """Return ns since the epoch; None for the guest's RTC."""
    import time as clock

    if given == "rtc":
        return None
    if given == "now":
        return clock.time_ns()
    try:
        return round(float(given) * _NANOSECONDS)
    except (ValueError, OverflowError):
        raise GaError(f"--set: '{given}' is not a number of seconds since 1970, nor 'now' or 'rtc'", 2) from None


# ---- File systems


def freeze(agent: AgentClient, options: argparse.Namespace) -> int:
    """Hold file systems, all or some."""
    points: Sequence[str] = options.mountpoint
    count = agent.fsfreeze_freeze_list(points) if points else agent.fsfreeze_freeze()
    return _done(options, count, f"{count} file systems are frozen")


def thaw(agent: AgentClient, options: argparse.Namespace) -> int:
    """Let file systems go on."""
    count = agent.fsfreeze_thaw()
    return _done(options, count, f"{count} file systems go on")


def freeze_status(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show whether file systems are frozen."""
    status = agent.fsfreeze_status()
    return _done(options, status, text(status))


def trim(agent: AgentClient, options: argparse.Namespace) -> int:
    """Let file systems discard what they do not use."""
    if options.json:
        show_json(agent.command("guest-fstrim", minimum=options.minimum))
        return 0
    found = agent.fstrim(options.minimum)
    rows = [(item.path, size(item.trimmed), size(item.minimum), item.error) for item in found]
    show_table(("MOUNTED AT", "DISCARDED", "MINIMUM", "ERROR"), rows)
    return FAILED if any(item.error for item in found) else 0


# ---- Power


def suspend(agent: AgentClient, options: argparse.Namespace) -> int:
    """Let the guest sleep."""
    {"ram": agent.suspend_ram, "disk": agent.suspend_disk, "hybrid": agent.suspend_hybrid}[options.mode]()
    return _done(options, {})


def shutdown(agent: AgentClient, options: argparse.Namespace) -> int:
    """End the guest's work: as the subcommand is called."""
    mode = {"shutdown": "powerdown"}.get(options.command, options.command)
    agent.shutdown(mode)
    return _done(options, {})


# ---- CPUs and memory


def _numbers(given: Sequence[str], option: str) -> list[int]:
    """Return the numbers of ``1,3-5``."""
    found: list[int] = []
    for word in ",".join(given).split(","):
        first, dash, last = word.partition("-")
        try:
            numbers = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise GaError(f"{option}: '{word}' is not a number, nor a range such as 2-5", 2) from None
        found += numbers
    return found


def _switches(options: argparse.Namespace) -> list[tuple[int, bool]]:
    """Return which numbers are to go online, and which offline."""
    online = _numbers(options.online, "--online") if options.online else []
    offline = _numbers(options.offline, "--offline") if options.offline else []
    return [(number, True) for number in online] + [(number, False) for number in offline]


def vcpus(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show or switch CPUs."""
    wanted = [GuestLogicalProcessor(number, online) for number, online in _switches(options)]
    if not wanted:
        return queries.vcpus(agent, options)
    done = agent.set_vcpus(wanted)
    if done < len(wanted):
        raise GaError(f"CPU {wanted[done].logical_id} could not be switched; {done} of {len(wanted)} were")
    return _done(options, done, f"{done} CPUs are as they should be")


def memory_blocks(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show or switch blocks of memory."""
    wanted = [GuestMemoryBlock(number, online) for number, online in _switches(options)]
    if not wanted:
        return queries.memory_blocks(agent, options)
    found = agent.set_memory_blocks(wanted)
    if options.json:
        show_json([item.raw for item in found])
    else:
        show_table(("BLOCK", "RESULT", "ERROR"), [(item.phys_index, item.response, item.error_code) for item in found])
    return 0 if all(item.response == "success" for item in found) else FAILED


# ---- Accounts


def passwd(agent: AgentClient, options: argparse.Namespace) -> int:
    """Set a password, which is asked for or read from the first line of standard input."""
    if sys.stdin.isatty():
        import getpass

        password = getpass.getpass(f"New password of {options.user} in the guest: ")
        if not options.crypted and getpass.getpass("Once more: ") != password:
            raise GaError("the two are not the same")
    else:
        password = sys.stdin.readline().removesuffix("\n")
    agent.set_user_password(options.user, password, options.crypted)
    return _done(options, {})


def ssh_keys(agent: AgentClient, options: argparse.Namespace) -> int:
    """Show or change the keys that may log in to an account."""
    if options.add or options.remove or options.reset:
        if options.remove:
            agent.ssh_remove_authorized_keys(options.user, _keys(options.remove))
        if options.add or options.reset:
            agent.ssh_add_authorized_keys(options.user, _keys(options.add), reset=options.reset or None)
        return _done(options, {})
    keys = agent.ssh_get_authorized_keys(options.user)
    return _done(options, {"keys": keys}, "\n".join(text(key) for key in keys))


def _keys(given: Sequence[str]) -> list[str]:
    """Return the keys in the files named ``@FILE``, and those given themselves."""
    found: list[str] = []
    for word in given:
        if word.startswith("@"):
            with open(word[1:], encoding="utf-8") as file:
                found += [line.strip() for line in file if line.strip() and not line.startswith("#")]
        else:
            found.append(word)
    return found
