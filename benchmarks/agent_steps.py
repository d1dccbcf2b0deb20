"""Every command of the guest agent's protocol, tried in a guest; what comes of it as a few words.

The words are the same on each run where nothing is wrong: times, counters and other numbers that no two runs share are
only said to be what they should be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.agent_machine import PATIENCE, Session
from pyvm.agent import records as r
from pyvm.qmp_client import QmpError

_HOUR = 3600
_SECOND = 1_000_000_000
_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExample00 table"
_BLOCK = 128 << 20
_LOGIN_SECONDS = 20.0
"""How soon somebody is logged in at the console, where that happens by itself."""
_ALARM_SECONDS = 25
_NETWORK = ("10.", "fec0:")
"""What the addresses of a card begin with in the network of the emulator: IPv4 and IPv6."""
_NETWORK_SECONDS = 60.0
_HOOKS = "/etc/qemu/fsfreeze-hook.d"
_AGENT = "/usr/sbin/qemu-ga"
_SETTINGS = "/etc/systemd/system/qemu-guest-agent.service.d"


@dataclass(frozen=True)
class Step:
    """One command of the table."""

    command: str
    asked: str
    """What is asked, for people."""
    run: Callable[[Session], str]
    """Returns what comes of it."""
    quick: bool = True
    """Whether the machine is as before, and no time is lost."""


# ---- The agent itself


def _sync_delimited(s: Session) -> str:
    return f"{s.agent.sync_delimited(5)}, behind 0xFF"


def _info(s: Session) -> str:
    info = s.agent.info()
    disabled = ", ".join(item.name for item in info.supported_commands if not item.enabled)
    return f"{len(info.supported_commands)} commands; disabled: {disabled}"


def _ping(s: Session) -> str:
    s.agent.ping()
    return f"{{}}; with it: {s.refusal(lambda: s.agent.execute('guest-ping', {'bogus': 1}))}"


def _sync(s: Session) -> str:
    return f"{s.agent.sync(7)}; without: {s.refusal(lambda: s.agent.execute('guest-sync', {}))}"


# ---- Time


def _get_time(s: Session) -> str:
    away = abs(s.agent.get_time() - time.time_ns()) / _SECOND
    return "the host's time" if away < 60 else f"{away:.0f} s from the host's"


def _set_time(s: Session) -> str:
    s.qmp.events()
    s.agent.set_time(time.time_ns() + _HOUR * _SECOND)
    change = s.event("RTC_CHANGE")["offset"]
    s.shell("date -u -s '2020-01-01 00:00:00'")
    s.agent.set_time()
    away = (s.agent.get_time() - time.time_ns()) / _SECOND
    s.agent.set_time(time.time_ns())
    return f"an hour ahead: RTC_CHANGE {round(change, -2):+d} s; from the RTC: {round(away, -2):+.0f} s"


# ---- Files


def _file_open(s: Session) -> str:
    missing = s.refusal(lambda: s.agent.file_open("/no/such/file"))
    s.notes["handle"] = s.agent.file_open("/tmp/table", "w+")
    return f"a handle; where there is no file: {missing}"


def _file_write(s: Session) -> str:
    return f"{s.agent.file_write(s.notes['handle'], bytes(range(256)) * 256)} bytes"


def _file_flush(s: Session) -> str:
    s.agent.file_flush(s.notes["handle"])
    return f"{{}}, and the file has {s.shell('stat -c %s /tmp/table')} bytes"


def _file_seek(s: Session) -> str:
    found = s.agent.file_seek(s.notes["handle"], -256, "end")
    return f"position {found.position}, eof {found.eof}"


def _file_read(s: Session) -> str:
    data, eof = s.agent.file_read(s.notes["handle"], 300)
    return f"{len(data)} bytes, eof {eof}, {'as written' if data == bytes(range(256)) else 'others than written'}"


def _file_close(s: Session) -> str:
    handle = s.notes.pop("handle")
    s.agent.file_close(handle)
    again = s.refusal(lambda: s.agent.file_close(handle)).replace(str(handle), "N")
    return f"{{}}; again: {again}"


# ---- Programs


def _exec(s: Session) -> str:
    s.notes["pid"] = s.agent.exec("/bin/sh", ["-c", "cat; echo error >&2; exit 7"], None, b"input", capture_output=True)
    missing = s.refusal(lambda: s.agent.exec("/no/such/program"))
    return f"a process ID; where there is no program: {missing}"


def _ended(s: Session, pid: int) -> r.GuestExecStatus:
    found: r.GuestExecStatus = s.until(lambda: (found := s.agent.exec_status(pid)).exited and found)
    return found


def _exec_killed(s: Session) -> str:
    return f"signal {_ended(s, s.agent.exec('/bin/sh', ['-c', 'kill -9 $$'])).signal}"


def _exec_status(s: Session) -> str:
    pid = s.notes["pid"]
    status = _ended(s, pid)
    out, error = s.agent.outputs(status)
    again = s.refusal(lambda: s.agent.exec_status(pid))
    return f"exit code {status.exitcode}, {out!r} and {error!r}; again: {again}"


# ---- The system


def _host_name(s: Session) -> str:
    return s.agent.get_host_name()


def _osinfo(s: Session) -> str:
    found = s.agent.get_osinfo()
    return f"{found.pretty_name}, Linux {found.kernel_release}, {found.machine}"


def _timezone(s: Session) -> str:
    found = s.agent.get_timezone()
    return f"{found.zone}, {found.offset} s"


def _users(s: Session) -> str:
    if s.system is not None and s.system.systemd:
        s.shell("systemd-run --quiet /sbin/agetty --autologin root --noclear tty2 linux")
    found = s.until(s.agent.get_users, _LOGIN_SECONDS)
    return ", ".join(user.user for user in found) or "nobody is logged in"


def _devices(s: Session) -> str:
    return s.refusal(s.agent.get_devices)


def _addresses(item: r.GuestNetworkInterface) -> list[str]:
    return sorted(f"{it.ip_address}/{it.prefix}" for it in item.ip_addresses or ())


def _interfaces(s: Session) -> str:
    def ready() -> bool:
        cards = [item for item in s.agent.network_get_interfaces() if item.name != "lo"]
        return all(any(text.startswith(kind) for text in _addresses(item)) for item in cards for kind in _NETWORK)

    s.until(ready, _NETWORK_SECONDS)
    shown = []
    for item in s.agent.network_get_interfaces():
        counts = ", counters" if item.statistics else ""
        shown.append(f"{item.name} {item.hardware_address} {' '.join(_addresses(item))}{counts}")
    return "; ".join(shown)


# ---- Accounts


def _encrypted(s: Session, password: str, like: str) -> str:
    """Return a password as the guest would keep it, by the method and with the salt of another."""
    if s.shell("command -v mkpasswd || true"):
        return s.shell(f"mkpasswd -m sha512 -S {like.split('$')[2]} {password}")
    return s.shell(f"perl -e 'print crypt($ARGV[0], $ARGV[1])' {password} '{like}'")


def _password(s: Session) -> str:
    s.shell("grep -q ^demo: /etc/passwd || useradd --create-home demo")
    s.agent.set_user_password("demo", "secret")
    shadow = s.shell("grep ^demo: /etc/shadow").split(":")[1]
    same = _encrypted(s, "secret", shadow) == shadow
    nobody = s.refusal(lambda: s.agent.set_user_password("nobody-here", "x"))
    return f"{{}}, and it {'is' if same else 'is not'} the password; of nobody: {nobody}"


def _no_keys(s: Session) -> str:
    return s.refusal(lambda: s.agent.ssh_get_authorized_keys("demo"))


def _add_keys(s: Session) -> str:
    s.agent.ssh_add_authorized_keys("demo", [_KEY])
    return "{}, and " + s.shell("stat -c '%U %a' /home/demo/.ssh/authorized_keys")


def _get_keys(s: Session) -> str:
    keys = s.agent.ssh_get_authorized_keys("demo")
    return f"{len(keys)} key, {'the one added' if keys == [_KEY] else 'another'}"


def _remove_keys(s: Session) -> str:
    s.agent.ssh_remove_authorized_keys("demo", [_KEY])
    return f"{{}}, and {len(s.agent.ssh_get_authorized_keys('demo'))} are left"


# ---- CPUs and memory


def _vcpus(s: Session) -> str:
    found = sorted(s.agent.get_vcpus(), key=lambda item: item.logical_id)
    states = {True: "online", False: "offline"}
    return "; ".join(
        f"{item.logical_id} {states[item.online]}{', may go' if item.can_offline else ''}" for item in found
    )


def _set_vcpus(s: Session) -> str:
    first = s.refusal(lambda: s.agent.set_vcpus([r.GuestLogicalProcessor(0, False)]))
    missing = s.refusal(lambda: s.agent.set_vcpus([r.GuestLogicalProcessor(9, False)]))
    s.agent.set_vcpus([r.GuestLogicalProcessor(1, False)])
    off = s.shell("nproc")
    s.agent.set_vcpus([r.GuestLogicalProcessor(1, True)])
    return f"1 off and on: {off} and {s.shell('nproc')} CPUs; 0 off: {first}; 9 off: {missing}"


def _plug_cpu(s: Session) -> str:
    free = next(slot for slot in s.qmp.execute("query-hotpluggable-cpus") if "qom-path" not in slot)
    try:
        s.qmp.execute("device_add", {"driver": free["type"], "id": "cpu2", **free["props"]})
    except QmpError as error:
        return f"device_add of a CPU: {error.desc}"
    number = s.until(lambda: [item.logical_id for item in s.agent.get_vcpus() if item.logical_id == 2])
    s.agent.set_vcpus([r.GuestLogicalProcessor(2, True)])
    return f"a CPU plugged in is number {number[0] if number else 'none'}; switched on: {s.shell('nproc')} CPUs"


def _cpustats(s: Session) -> str:
    found = s.agent.get_cpustats()
    counting = all(item.user + item.system + item.idle > 0 for item in found)
    return f"{len(found)} CPUs of type {found[0].type}{', counting' if counting else ''}"


def _block_info(s: Session) -> str:
    return f"{s.agent.get_memory_block_info().size >> 20} MiB"


def _blocks(s: Session) -> str:
    found = sorted(s.agent.get_memory_blocks(), key=lambda item: item.phys_index)
    return f"blocks {', '.join(str(item.phys_index) for item in found)}; {sum(item.online for item in found)} online"


def _set_blocks(s: Session) -> str:
    answers = [s.agent.set_memory_blocks([r.GuestMemoryBlock(0, online)])[0] for online in (False, True)]
    return "; ".join(f"{item.response}{f' ({item.error_code})' if item.error_code else ''}" for item in answers)


def _plug_memory(s: Session) -> str:
    try:
        s.qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "mem0", "size": _BLOCK})
        s.qmp.execute("device_add", {"driver": "pc-dimm", "id": "dimm0", "memdev": "mem0"})
    except QmpError as error:
        return f"device_add of a pc-dimm: {error.desc}"

    def new() -> list[r.GuestMemoryBlock]:
        return [item for item in s.agent.get_memory_blocks() if item.phys_index >= 32]

    found = s.until(new, 60)
    if not found:
        return "a pc-dimm plugged in, and no new block"
    number = found[0].phys_index
    before = int(s.shell("grep MemTotal /proc/meminfo").split()[1])
    done = [] if found[0].online else s.agent.set_memory_blocks([r.GuestMemoryBlock(number, True)])
    more = int(s.shell("grep MemTotal /proc/meminfo").split()[1]) - before
    result = done[0].response if done else "is online already"
    return f"a pc-dimm plugged in is block {number}; switched on: {result}, {more >> 10} MiB more"


# ---- Disks


def _place(disk: r.GuestDiskAddress) -> str:
    pci = disk.pci_controller
    return f"{disk.bus_type} {pci.domain:04x}:{pci.bus:02x}:{pci.slot:02x}.{pci.function} {disk.serial or ''}".strip()


def _prepare_disk(s: Session) -> None:
    """Put a file system onto the first disk, once."""
    if "mounted" not in s.notes:
        s.shell("mke2fs -F -m 0 /dev/vda >/dev/null 2>&1; mount -t ext4 /dev/vda /mnt && echo data >/mnt/file && sync")
        s.notes["mounted"] = True


def _fsinfo(s: Session) -> str:
    _prepare_disk(s)
    return "; ".join(
        f"{item.name} at {item.mountpoint}, {item.type}, {(item.total_bytes or 0) >> 20} MiB, "
        f"{', '.join(_place(disk) for disk in item.disk)}"
        for item in s.agent.get_fsinfo()
    )


def _disks(s: Session) -> str:
    found = sorted(s.agent.get_disks(), key=lambda item: item.name)
    return "; ".join(f"{item.name}{' ' + _place(item.address) if item.address else ''}" for item in found)


def _diskstats(s: Session) -> str:
    found = sorted(s.agent.get_diskstats(), key=lambda item: item.name)
    busy = [item.name for item in found if (item.stats.read_ios or 0) > 0]
    return f"{', '.join(item.name for item in found)}; read from: {', '.join(busy)}"


def _freeze_status(s: Session) -> str:
    return s.agent.fsfreeze_status()


def _freeze(s: Session) -> str:
    _prepare_disk(s)
    count = s.agent.fsfreeze_freeze()
    status = s.agent.fsfreeze_status()
    blocked = s.refusal(lambda: s.agent.exec("/bin/true"))
    s.notes["frozen"] = True
    return f"{count}, then {status}; guest-exec meanwhile: {blocked}"


def _thaw(s: Session) -> str:
    count = s.agent.fsfreeze_thaw()
    s.shell("echo more >>/mnt/file && sync")
    return f"{count}, then {s.agent.fsfreeze_status()}, and files can be written"


def _freeze_list(s: Session) -> str:
    one = s.agent.fsfreeze_freeze_list(["/mnt"])
    s.agent.fsfreeze_thaw()
    none = s.agent.fsfreeze_freeze_list(["/nowhere"])
    s.agent.fsfreeze_thaw()
    return f"/mnt: {one}; /nowhere: {none}"


def _let_hooks_run(s: Session) -> None:
    """Have a script run at each freeze and thaw; the agent of a system with systemd is not told to by itself."""
    s.shell(f"mkdir -p {_HOOKS} && printf '#!/bin/sh\\necho $1 >>/tmp/hook\\n' >{_HOOKS}/note")
    s.shell(f"chmod 755 {_HOOKS}/note; rm -f /tmp/hook")
    if s.system is None or not s.system.systemd:
        return
    s.shell(
        f"mkdir -p {_SETTINGS} && printf '[Service]\\nExecStart=\\nExecStart={_AGENT} -F\\n' >{_SETTINGS}/hook.conf"
    )
    s.shell("systemctl daemon-reload; systemctl show --property MainPID qemu-guest-agent >/tmp/agent")
    s.agent.exec("/bin/systemctl", ["restart", "--no-block", "qemu-guest-agent"])
    s.back()
    new = "systemctl show --property MainPID qemu-guest-agent | cmp -s - /tmp/agent || echo new"
    s.until(lambda: s.attempt(lambda: s.shell(new)))


def _freeze_with_hook(s: Session) -> str:
    _prepare_disk(s)
    _let_hooks_run(s)
    count = s.agent.fsfreeze_freeze()
    thawed = s.agent.fsfreeze_thaw()
    told = s.shell("cat /tmp/hook").split()
    s.shell(f"rm {_HOOKS}/note")
    return f"{count} and {thawed}; the script was told: {', '.join(told)}"


def _trim_large(s: Session) -> str:
    found = next(item for item in s.agent.fstrim(1 << 20) if item.path == "/mnt")
    return f"{found.path}: {(found.trimmed or 0) >> 20} MiB, at least {found.minimum} bytes"


def _trim(s: Session) -> str:
    _prepare_disk(s)
    s.shell("dd if=/dev/urandom of=/mnt/big bs=1M count=8 2>/dev/null; sync; rm /mnt/big; sync")
    found = s.agent.fstrim()
    return "; ".join(
        f"{item.path}: {item.error or f'{(item.trimmed or 0) >> 20} MiB, at least {item.minimum} bytes'}"
        for item in found
    )


# ---- Power


def _sleep_and_wake(s: Session) -> str:
    """See the guest go to sleep, and wake it."""
    s.event("SUSPEND")
    status = s.until(lambda: s.qmp.execute("query-status")["status"] == "suspended") and "suspended"
    s.qmp.execute("system_wakeup")
    s.event("WAKEUP")
    s.back()
    return f"SUSPEND, {status}; system_wakeup: WAKEUP, and the agent answers"


def _suspend_ram(s: Session) -> str:
    s.qmp.events()
    s.agent.suspend_ram()
    return _sleep_and_wake(s)


def _alarm(s: Session) -> str:
    s.qmp.events()
    alarm = "/sys/class/rtc/rtc0/wakealarm"
    s.shell(f"echo 0 >{alarm}; echo +{_ALARM_SECONDS} >{alarm}")
    s.agent.suspend_ram()
    s.event("SUSPEND")
    s.event("WAKEUP")
    s.back()
    return "SUSPEND; WAKEUP by itself, and the agent answers"


def _without_swap(s: Session) -> str:
    s.shell("[ ! -e /etc/fstab ] || swapoff -a")
    disk = s.refusal(lambda: s.agent.suspend_disk(silence=PATIENCE))
    return f"{disk}; guest-suspend-hybrid: {s.refusal(lambda: s.agent.suspend_hybrid(silence=PATIENCE))}"


def _swap_on(s: Session) -> None:
    if s.system is not None and s.system.systemd:
        s.shell("swapon -a")
    else:
        s.shell("grep -q vdb /proc/swaps || { mkswap /dev/vdb >/dev/null && swapon /dev/vdb; }")


def _suspend_hybrid(s: Session) -> str:
    s.qmp.events()
    _swap_on(s)
    refused = s.refusal(s.agent.suspend_hybrid)
    return _sleep_and_wake(s) if refused == "answers None" else refused


def _suspend_disk(s: Session) -> str:
    s.qmp.events()
    _swap_on(s)
    s.shell("umount /mnt 2>/dev/null; sync")
    before = s.boot_id()
    s.agent.suspend_disk(silence=0)
    s.event("SUSPEND_DISK")
    reason = s.event("SHUTDOWN")["reason"]
    assert s.process is not None
    s.process.wait(PATIENCE)
    s.restart()
    s.back()
    went_on = s.boot_id() == before
    s.shell("swapoff /dev/vdb 2>/dev/null; true")
    return f"SUSPEND_DISK, SHUTDOWN ({reason}); started again, it {'goes on' if went_on else 'boots anew'}"


def _shutdown(s: Session) -> str:
    bogus = s.refusal(lambda: s.agent.shutdown("bogus"))
    before = s.boot_id()
    s.qmp.events()
    s.agent.shutdown("reboot")
    reason = s.event("RESET")["reason"]
    s.back()
    s.until(lambda: s.boot_id() != before)
    s.agent.shutdown("halt")
    halted = s.until(lambda: "halted" in s.notes["console"]().lower(), PATIENCE) is not None
    status = s.qmp.execute("query-status")["status"]
    s.qmp.execute("system_reset")
    s.back()
    s.qmp.events()
    s.agent.shutdown("powerdown")
    off = s.event("SHUTDOWN")["reason"]
    assert s.process is not None
    return (
        f"reboot: RESET ({reason}); halt: {status if halted else 'unknown'}; powerdown: SHUTDOWN ({off}), "
        f"exit status {s.process.wait(PATIENCE)}; bogus: {bogus}"
    )


STEPS: tuple[Step, ...] = (
    Step("guest-sync-delimited", "id 5", _sync_delimited),
    Step("guest-sync", "id 7; no id", _sync),
    Step("guest-ping", "with and without an argument", _ping),
    Step("guest-info", "", _info),
    Step("guest-get-time", "", _get_time),
    Step("guest-set-time", "an hour ahead, then from the RTC", _set_time),
    Step("guest-get-timezone", "", _timezone),
    Step("guest-get-osinfo", "", _osinfo),
    Step("guest-get-host-name", "", _host_name),
    Step("guest-get-users", "", _users),
    Step("guest-get-devices", "", _devices),
    Step("guest-exec", "a program with input; one that is not there", _exec),
    Step("guest-exec-status", "its end; once more", _exec_status),
    Step("guest-exec-status", "of a program that a signal ended", _exec_killed),
    Step("guest-file-open", "w+; a file that is not there", _file_open),
    Step("guest-file-write", "64 KiB", _file_write),
    Step("guest-file-flush", "", _file_flush),
    Step("guest-file-seek", "256 bytes before the end", _file_seek),
    Step("guest-file-read", "300 bytes", _file_read),
    Step("guest-file-close", "twice", _file_close),
    Step("guest-set-user-password", "of demo; of nobody", _password),
    Step("guest-ssh-get-authorized-keys", "of a user without any", _no_keys),
    Step("guest-ssh-add-authorized-keys", "one key", _add_keys),
    Step("guest-ssh-get-authorized-keys", "", _get_keys),
    Step("guest-ssh-remove-authorized-keys", "that key", _remove_keys),
    Step("guest-network-get-interfaces", "", _interfaces),
    Step("guest-get-fsinfo", "", _fsinfo),
    Step("guest-get-disks", "", _disks),
    Step("guest-get-diskstats", "", _diskstats),
    Step("guest-fsfreeze-status", "", _freeze_status),
    Step("guest-fsfreeze-freeze", "", _freeze),
    Step("guest-fsfreeze-thaw", "", _thaw),
    Step("guest-fsfreeze-freeze-list", "one that is mounted, one that is not", _freeze_list),
    Step("guest-fsfreeze-freeze", "with a hook script", _freeze_with_hook, quick=False),
    Step("guest-fstrim", "after a file of 8 MiB was removed", _trim),
    Step("guest-fstrim", "once more, ranges of 1 MiB at least", _trim_large),
    Step("guest-get-cpustats", "", _cpustats),
    Step("guest-get-memory-block-info", "", _block_info),
    Step("guest-get-memory-blocks", "", _blocks),
    Step("guest-get-vcpus", "", _vcpus),
    Step("guest-set-vcpus", "CPU 1, CPU 0, and one that is none", _set_vcpus),
    Step("guest-set-memory-blocks", "block 0 off and on", _set_blocks),
    Step("guest-suspend-ram", "", _suspend_ram, quick=False),
    Step("guest-suspend-ram", f"with the RTC's alarm set to {_ALARM_SECONDS} s from now", _alarm, quick=False),
    Step("guest-suspend-disk", "without swap", _without_swap, quick=False),
    Step("guest-suspend-hybrid", "with swap", _suspend_hybrid, quick=False),
    Step("guest-suspend-disk", "with swap", _suspend_disk, quick=False),
    Step("guest-set-vcpus", "a CPU that is plugged in", _plug_cpu, quick=False),
    Step("guest-set-memory-blocks", "a pc-dimm that is plugged in", _plug_memory, quick=False),
    Step("guest-shutdown", "reboot, halt, powerdown, and a mode that is none", _shutdown, quick=False),
)
