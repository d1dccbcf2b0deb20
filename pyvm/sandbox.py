"""What ``-sandbox`` does to the process: from then on the host's kernel refuses it whole groups of system calls.

A guest that finds a hole in a device gets hold of a process that can start no program, take no other identity and use
none of the kernel's oldest parts.  The filter is a program for the kernel's packet filter (seccomp(2)), which looks at
each call before it is carried out; a call that is not allowed ends the process.  It cannot be taken off again, and
holds for all threads.
"""

from __future__ import annotations

import ctypes
import os
import platform

from pyvm.errors import ConfigError
from pyvm.records import record


@record
class SandboxConfig:
    """Which groups of system calls are refused."""

    obsolete: bool = True
    privileges: bool = False
    """Calls that take another user's or group's identity."""
    children_privileges: bool = False
    """Whether programs that are started can gain no privileges; the process itself may."""
    spawn: bool = False
    """Calls that start other processes."""
    resources: bool = False
    """Calls that change priority, scheduling and the processors that are used."""


_ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
_X32_CALL = 0x40000000  # calls of the other ABI of the same processor have this bit
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16  # in struct seccomp_data
_ARGUMENT_SIZE = 8
_NR_SECCOMP = 317

# Instructions of the packet filter: load a word, jump where equal, where at least, where a bit is set, and return.
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_FILTER_ALL_THREADS = 1

_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x00010000
_SCHED_IDLE = 5

# Numbers of system calls of x86-64.
_OBSOLETE = {
    "sysfs": 139, "_sysctl": 156, "ustat": 136, "uselib": 134, "create_module": 174, "get_kernel_syms": 177,
    "query_module": 178, "afs_syscall": 183, "getpmsg": 181, "putpmsg": 182, "tuxcall": 184, "security": 185,
    "vserver": 236, "reboot": 169, "swapon": 167, "swapoff": 168, "syslog": 103, "mount": 165, "umount2": 166,
    "kexec_load": 246,
}  # fmt: skip
_PRIVILEGES = {
    "setuid": 105, "setgid": 106, "setpgid": 109, "setsid": 112, "setreuid": 113, "setregid": 114, "setresuid": 117,
    "setresgid": 119, "setfsuid": 122, "setfsgid": 123,
}  # fmt: skip
_SPAWN = {"fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "setns": 308, "unshare": 272}
_CLONE, _CLONE3 = 56, 435
_RESOURCES = {"setpriority": 141, "sched_setparam": 142, "sched_setaffinity": 203}
_SCHED_SETSCHEDULER = 144

_Instruction = tuple[int, int, int, int]
"""Operation, distance of the jump where its condition holds, and where not, and a constant."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _answer(number: int, action: int) -> list[_Instruction]:
    """Return what ends with `action` for one call; the number of the call is loaded."""
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]


def _argument(index: int) -> int:
    return _ARGUMENTS_OFFSET + index * _ARGUMENT_SIZE


def filter_program(config: SandboxConfig) -> list[_Instruction]:
    """Return the filter for what the configuration refuses."""
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_AT_LEAST, 0, 1, _X32_CALL),
        (_RETURN, 0, 0, _KILL),
    ]
    refused: dict[str, int] = {}
    if config.obsolete:
        refused |= _OBSOLETE
    if config.privileges:
        refused |= _PRIVILEGES
    if config.spawn:
        refused |= _SPAWN
    if config.resources:
        refused |= _RESOURCES
    for number in refused.values():
        program += _answer(number, _KILL)
    if config.spawn:
        # Its flags lie in memory, where a filter cannot look; the C library goes on with clone.
        program += _answer(_CLONE3, _ERROR | _ENOSYS)
        program += [
            (_EQUAL, 0, 4, _CLONE),
            (_LOAD, 0, 0, _argument(0)),
            (_BITS, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER_OFFSET),
        ]
    if config.resources:
        # A thread may step back behind all others, as those do that work when there is nothing else to do.
        program += [
            (_EQUAL, 0, 3, _SCHED_SETSCHEDULER),
            (_LOAD, 0, 0, _argument(1)),
            (_EQUAL, 1, 0, _SCHED_IDLE),
            (_RETURN, 0, 0, _ERROR | _EPERM),
        ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def enter(config: SandboxConfig) -> None:
    """Put the filter on this process, for good; raises ConfigError where the host does not let us."""
    if platform.machine() != "x86_64":
        raise ConfigError("-sandbox on: not supported by pyvm on this kind of host")
    libc = ctypes.CDLL(None, use_errno=True)
    # Who is not root may only filter what can gain no privileges; -sandbox of QEMU does the same for everybody.
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise ConfigError(f"-sandbox on: no_new_privs: {os.strerror(ctypes.get_errno())}")
    instructions = filter_program(config)
    code = b"".join(
        operation.to_bytes(2, "little") + bytes((true, false)) + constant.to_bytes(4, "little")
        for operation, true, false, constant in instructions
    )
    program = _Program(len(instructions), code)
    arguments = (_SECCOMP_SET_MODE_FILTER, _FILTER_ALL_THREADS, ctypes.byref(program))
    if libc.syscall(_NR_SECCOMP, *arguments):
        reason = os.strerror(ctypes.get_errno())
        raise ConfigError(f"-sandbox on: failed to install seccomp syscall filter in the kernel: {reason}")
