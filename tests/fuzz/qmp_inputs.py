"""Clients that mean harm: QMP commands made from the schema, with arguments that are right, wrong, missing or huge.

    python -m tests.fuzz.qmp_inputs [--seed N] [--seconds S] [--verbose]

Each command goes as bytes through the parser and the monitor of a whole machine that does not run its guest.  It must
get one reply, which the schema allows, in a bounded time; the machine must answer after it; nothing may be logged as an
error of pyvm; and the process's memory must stay within bounds.  Commands come in cases of some dozens, each on a new
machine and made from its seed alone, so that a case that failed can be run again: with `--verbose` each command is
printed before it is sent.  Files are made in the current directory: run it in an empty one.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import json
import logging
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

from pyvm.commandline import parse_arguments
from pyvm.machine.pc import Pc
from pyvm.monitor.dispatcher import Dispatcher
from pyvm.monitor.events import EventMessage
from pyvm.monitor.qmp import QmpMonitor
from pyvm.monitor.schema.model import (
    AlternateType,
    ArrayType,
    Builtin,
    Command,
    EnumType,
    Member,
    ObjectType,
    Type,
    load,
)
from pyvm.monitor.schema.validate import Validator
from tests.unit.monitor_support import Wire

COMMANDS = 60
"""Commands of one case."""
PATIENCE = 60.0
"""Seconds that one command may take."""
LIMIT_BYTES = 1 << 30
"""How far the process's memory may grow."""
FILE_BYTES = 64 << 20
"""How long a file may become."""
ADDRESS_SPACE = 16 << 30

NEVER = frozenset({"quit", "cont", "system_wakeup"})
"""Commands that end the machine, or let its guest run, for which there is no vCPU thread here."""
HOST_NETWORKS = ("tap", "bridge", "vde", "netmap")
"""Back ends that change the networks of the host, and run its scripts."""
NEVER_TYPED = frozenset({"q", "quit", "c", "cont", "system_wakeup"})

ERROR_CLASSES = frozenset({"GenericError", "CommandNotFound", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap"})

MACHINE = (
    *("-nodefaults", "-S", "-display", "none", "-m", "16", "-smp", "2,maxcpus=4", "-vga", "std"),
    *("-blockdev", "null-co,node-name=n0,size=1048576", "-blockdev", "file,filename=a.img,node-name=f0"),
    *("-blockdev", "raw,file=f0,node-name=r0", "-device", "virtio-blk-pci,drive=r0,id=d0"),
    *("-device", "virtio-scsi-pci,id=s0", "-blockdev", "null-co,node-name=n1,size=4096"),
    *("-device", "scsi-hd,drive=n1,id=d1", "-device", "ide-cd,id=cd0"),
    *("-chardev", "ringbuf,id=c0", "-chardev", "null,id=c1", "-device", "virtio-serial-pci,id=vs0"),
    *("-device", "virtserialport,chardev=c1,id=p0,name=x"),
    *("-object", "iothread,id=t0", "-object", "rng-random,filename=/dev/urandom,id=o0"),
    *("-object", "throttle-group,id=g0", "-object", "secret,id=k0,data=abc"),
    *("-device", "virtio-rng-pci,id=rng0,rng=o0", "-device", "virtio-balloon-pci,id=b0"),
)

NAMES = """
n0 f0 r0 d0 s0 n1 d1 cd0 c0 c1 vs0 p0 t0 o0 g0 k0 rng0 b0 x missing snap1 bitmap0 job0
""".split()
PATHS = """
/machine /machine/peripheral/d0 /machine/peripheral/d0/virtio-backend /machine/peripheral-anon /machine/unattached
/machine/unattached/device[0] /objects /objects/g0 /objects/t0 /machine/i440fx /machine/peripheral/b0 d0 b0 c0 / // /x/y
""".split()
PROPERTIES = """
type realized guest-stats guest-stats-polling-interval drive x-iops-total limits id hotplugged bootindex legacy-addr
""".split()
TYPES = """
virtio-blk-pci virtio-rng-pci virtio-serial-pci virtserialport scsi-hd scsi-cd ide-hd VGA isa-serial virtio-scsi-pci
virtio-balloon-pci virtio-net-pci qemu64-x86_64-cpu pc-i440fx-7.2-machine memory-backend-ram iothread object device
""".split()
FILES = [
    "a.img",
    "b.img",
    "c.qcow2",
    "out",
    "missing/x",
    "",
    "file:core",
    "fd:x",
    "/dev/null",
    "/dev/fdset/0",
    "json:{}",
]
HOSTS = ["localhost", "127.0.0.1", "::1", ""]
TEXTS = ["", "a", "0", "-1", "on", "ret", "a-b", "é", "\U0001f600", "\x00", "%s%n", "..", "a" * 300, "\ud800", "16M"]
NUMBERS = [
    0, 1, -1, 2, 7, 255, 256, 512, 4095, 4096, 65535, 65536, (1 << 20), (1 << 24), (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 31), -(1 << 63),
    -(1 << 63) - 1, 10**30,
]  # fmt: skip
SIZES = [0, 1, -1, 511, 512, 4096, 65536, 1 << 20, (1 << 20) + 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


class FuzzError(AssertionError):
    """Something did not go as it must."""


class Maker:
    """Makes values for the types of the schema, from a source of chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.wrong = 0.0
        """How often a value is not what the schema wants."""

    def request(self, command: Command) -> dict[str, Any]:
        """Return a request for a command."""
        self.wrong = self.chance.choice((0.0, 0.0, 0.03, 0.15, 0.5))
        request: dict[str, Any] = {"execute": command.name}
        if command.name == "human-monitor-command" and self.wrong < 0.1:
            request["arguments"] = {"command-line": self.line()}
        elif command.arguments.members or command.arguments.tag or self.strange():
            request["arguments"] = self.value(command.arguments, "")
        if command.name == "netdev_add" and any(kind in str(request) for kind in HOST_NETWORKS):
            request["arguments"] = {"type": "user", "id": "x"}
        if command.name == "set-action" and "shutdown" in str(request.get("arguments")):
            request["arguments"] = {}  # else the next reset ends the machine
        if self.chance.random() < 0.05 and self.wrong:
            request[self.chance.choice(("exec-oob", "control", "x", "arguments"))] = self.anything()
        return request

    def strange(self) -> bool:
        """Return whether to do something else than what is right."""
        return self.chance.random() < self.wrong

    def value(self, kind: Type, name: str, depth: int = 0) -> Any:
        """Return a value of a type, for the member `name`, or something else."""
        if self.strange():
            return self.anything()
        if isinstance(kind, EnumType):
            return self.chance.choice(kind.values).name
        if isinstance(kind, ArrayType):
            return [self.value(kind.element, name, depth + 1) for _ in range(self.chance.choice((0, 1, 1, 2, 5)))]
        if isinstance(kind, AlternateType):
            branch = self.chance.choice(kind.branches)
            return self.value(branch.type, name, depth + 1)
        if isinstance(kind, ObjectType):
            return self._object(kind, depth)
        assert isinstance(kind, Builtin)
        return self._builtin(kind, name)

    def _object(self, kind: ObjectType, depth: int) -> dict[str, Any]:
        members: list[Member] = list(kind.members)
        found: dict[str, Any] = {}
        if kind.tag is not None:
            assert isinstance(kind.tag.type, EnumType)
            choices = list(kind.variants) or [value.name for value in kind.tag.type.values]
            found[kind.tag.name] = self.chance.choice(choices)
            members.remove(kind.tag)
            if variant := kind.variants.get(found[kind.tag.name]):
                assert isinstance(variant.type, ObjectType)
                found |= self._object(variant.type, depth + 1)
        often = 0.35 if depth < 4 else 0.1
        for member in members:
            if member.optional and self.chance.random() > often:
                continue
            if self.strange():
                continue
            found[member.name] = self._member(member, depth)
        if self.strange():
            found[self.chance.choice(("extra", "id", "", "é", "driver"))] = self.anything()
        return found

    def _member(self, member: Member, depth: int) -> Any:
        if member.name == "wait" and member.type.name == "bool":
            return False  # a server that waits for its client holds up the machine, in QEMU as well
        if member.name in ("host", "to", "localaddr"):
            return self.chance.choice(HOSTS)
        return self.value(member.type, member.name, depth + 1)

    def _builtin(self, kind: Builtin, name: str) -> Any:
        if kind.name == "str":
            return self.text(name)
        if kind.name == "bool":
            return self.chance.random() < 0.5
        if kind.name == "number":
            return self.chance.choice((0, 0.5, -1.5, 1e300, 7))
        if kind.name == "null":
            return None
        if kind.name == "any":
            return self.anything()
        if self.chance.random() < 0.6:
            return self.chance.choice((0, 1, 2, 4, 100, 512, 4096))
        return self.chance.choice(SIZES if "size" in name or name in ("length", "prealloc-threads") else NUMBERS)

    def text(self, name: str) -> str:
        """Return a string for the member `name`."""
        chance = self.chance
        if chance.random() < 0.1 or (self.wrong and chance.random() < 0.2):
            return chance.choice(TEXTS)
        if "path" in name and name not in ("path", "qom-path", "qompath"):
            return chance.choice(FILES)
        if name in ("path", "qom-path", "qompath"):
            return chance.choice(PATHS + FILES[:3])
        if name == "property":
            return chance.choice(PROPERTIES)
        if name in ("typename", "implements", "driver", "qom-type"):
            return chance.choice(TYPES)
        if name in ("filename", "protocol", "file", "logfile", "out", "in", "url", "dir", "target", "snapshot-file"):
            return chance.choice(FILES)
        if name == "port":
            return chance.choice(("0", "1", "65536", "x"))
        return chance.choice(NAMES)

    def anything(self) -> Any:
        """Return any value, perhaps a huge one or one that is nested deeply."""
        chance = self.chance
        kind = chance.randrange(12)
        if kind < 3:
            return chance.choice(NUMBERS)
        if kind < 6:
            return chance.choice(TEXTS + NAMES)
        if kind == 6:
            return chance.choice((True, False, None, 0.5, 1e308))
        if kind == 7:
            return [self.anything() for _ in range(chance.randrange(4))]
        if kind == 8:
            return {chance.choice(NAMES + TEXTS[:6]): self.anything() for _ in range(chance.randrange(4))}
        if kind == 9:
            value: Any = chance.choice(NUMBERS)
            for _ in range(chance.choice((5, 100, 900))):
                value = [value] if chance.random() < 0.5 else {"a": value}
            return value
        if kind == 10:
            return chance.choice(("x", "é", "/", "\\", '"')) * chance.choice((100, 5000, 200_000))
        return [chance.choice(NUMBERS)] * chance.choice((10, 20_000))

    def line(self) -> str:
        """Return a line for the human monitor."""
        from pyvm.monitor.hmp.commands import COMMANDS

        names = [name for name in COMMANDS.complete("", True)[1] if name not in NEVER_TYPED]
        words = [self.chance.choice(names)]
        if words[0] == "info":
            words.append(self.chance.choice(COMMANDS.complete("info ", True)[1]))
        for _ in range(self.chance.randrange(4)):
            kind = self.chance.randrange(4)
            if kind == 0:
                words.append(str(self.chance.choice(NUMBERS)))
            elif kind == 1:
                words.append(self.chance.choice(NAMES + FILES))
            elif kind == 2:
                words.append(
                    self.chance.choice(("-a", "-f", "-n", "/4xw", "/i", "$rip", "1+(2", "'", '"a', "on", "off"))
                )
            else:
                words.append(self.chance.choice(TEXTS))
        return " ".join(words)


class Errors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


class Target:
    """A machine and a client connected to it; what it replies and tells is checked against the schema."""

    def __init__(self) -> None:
        Path("a.img").write_bytes(bytes(1 << 20))
        self.pc = Pc(parse_arguments(MACHINE))
        self.loop = self.pc.mainloop.loop
        self.validator = Validator(load())
        self.dispatcher = Dispatcher(self.pc, self.loop.create_task)
        self.wire = Wire()
        self.monitor = QmpMonitor(self.wire, self.dispatcher, self.pc.events, self.pc.mainloop)
        self.pc.events.subscribe(self._event)
        self.count = 0
        self.dead: str | None = None
        with self.pc.lock:
            self.wire.connect()
        self.take()
        self.ask({"execute": "qmp_capabilities"})

    def close(self) -> None:
        """End the machine."""
        with self.pc.lock:
            self.wire.disconnect()
            self.monitor.close()
        self.pc.close()

    def _event(self, event: EventMessage) -> None:
        name, data = event.message["event"], event.message.get("data", {})
        known = load().event(name)
        if known is None:
            raise FuzzError(f"no event {name}")
        self.validator.check_event(known, data)

    def take(self) -> list[dict[str, Any]]:
        """Return the messages that came; a long one comes in several parts."""
        end = self.wire.output.rfind(b"\r\n") + 2
        if end < 2:
            return []
        text = self.wire.output[:end].decode("ascii")
        del self.wire.output[:end]
        return [json.loads(line) for line in text.split("\r\n") if line]

    def _run(self, seconds: float) -> None:
        with self.pc.lock:
            self.loop.run_until_complete(asyncio.sleep(seconds))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request, wait for its reply, and return that."""
        self.count += 1
        request = request | {"id": self.count}
        with self.pc.lock:
            self.wire.waiting += json.dumps(request).encode() + b"\n"
            self.wire.accept_input()
        replies: list[dict[str, Any]] = []
        end = time.monotonic() + PATIENCE
        pause = 0.0
        while not replies:
            self._run(pause)
            pause = min(pause + 0.001, 0.02)
            replies = [message for message in self.take() if "event" not in message]
            if time.monotonic() > end:
                raise FuzzError("no reply")
        if len(replies) != 1:
            raise FuzzError(f"{len(replies)} replies: {replies}")
        return replies[0]

    def check(self, command: Command, request: dict[str, Any]) -> bool:
        """Send a request and check what comes back; return whether the machine did what was asked for."""
        reply = self.ask(request)
        if reply.get("id") != self.count and "JSON parse error" not in str(reply.get("error")):
            raise FuzzError(f"the reply has another id: {reply}")
        if "return" in reply:
            self.validator.checker(command.returns)(reply["return"], None)
        else:
            error = reply["error"]
            if set(error) != {"class", "desc"} or error["class"] not in ERROR_CLASSES or not error["desc"]:
                raise FuzzError(f"a strange error: {reply}")
            if error["desc"].startswith("Internal error"):
                raise FuzzError(f"an error of pyvm: {reply}")
        if "running" not in self.ask({"execute": "query-status"}).get("return", {}):
            raise FuzzError("the machine does not answer")
        return "return" in reply


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Run:
    """All cases of one run."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.errors = Errors()
        self.sent = 0
        self.accepted = 0
        logging.getLogger().addHandler(self.errors)
        schema = load()
        self.commands = [schema.command(name) for name in schema.command_names if name not in NEVER]
        self.start = _memory()

    def case(self, seed: int) -> None:
        """Send the commands of one case."""
        chance = random.Random(seed)
        maker = Maker(chance)
        target = Target()
        try:
            for _ in range(COMMANDS):
                command = chance.choice(self.commands)
                assert command is not None
                request = maker.request(command)
                if self.verbose:
                    print(f"{seed}: {json.dumps(request)[:2000]}", flush=True)
                faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
                try:
                    self.accepted += target.check(command, request)
                except Exception as error:
                    raise FuzzError(
                        f"case {seed}, {json.dumps(request)[:1500]}: {type(error).__name__}: {error}"
                    ) from error
                self._check_process(seed, request)
                self.sent += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
            target.close()

    def _check_process(self, seed: int, request: dict[str, Any]) -> None:
        if self.errors.texts:
            raise FuzzError(f"case {seed}, {json.dumps(request)[:2000]}: logged: {self.errors.texts}")
        if (grown := _memory() - self.start) > LIMIT_BYTES:
            raise FuzzError(f"case {seed}, {json.dumps(request)[:2000]}: {grown >> 20} MiB more memory")


def main(words: list[str]) -> int:
    """Run cases for some time."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.qmp_inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--cases", type=int, default=1 << 62)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--keep-going", action="store_true", help="tell of all failures, not only of the first")
    given = parser.parse_args(words)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    run = Run(given.verbose)
    end = time.monotonic() + given.seconds
    cases = failed = 0
    while cases < given.cases and (time.monotonic() < end or not cases):
        try:
            run.case(given.seed + cases)
        except FuzzError as error:
            failed += 1
            print(f"{type(error).__name__}: {error}", flush=True)
            run.errors.texts.clear()
            if not given.keep_going:
                return 1
        cases += 1
    print(f"cases: {cases}, commands: {run.sent}, accepted: {run.accepted}")
    return failed != 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
