"""A debugger's session: what each packet does, and what is answered.

GDB manual, appendix E.2 to E.5.  The replies are QEMU's where the manual leaves a choice.  Packets come from outside:
what they say is checked, and one that makes no sense is answered with an error, one that is not known with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING

from pyvm.cpu.vcpu import Pace
from pyvm.machine.debugger import Access, Watchpoint
from pyvm.monitor.errors import QmpError
from pyvm.monitor.gdb import threads
from pyvm.monitor.gdb.packets import PACKET_SIZE, escaped, from_hex, unescaped, unsigned
from pyvm.monitor.gdb.registers import REGISTERS, annex, read_register, write_register
from pyvm.runstate import RunState
from pyvm.state import StateError

if TYPE_CHECKING:
    from pyvm.cpu.vcpu import DebugStop
    from pyvm.machine.debugger import Debugger, DebugRegisters

OK, UNKNOWN = b"OK", b""
BAD_REQUEST, BAD_ADDRESS = b"E22", b"E14"
"""With the host's numbers for an invalid argument and a bad address."""
NO_ANNEX = b"E00"

_MEMORY_LIMIT = PACKET_SIZE // 2
_BREAKPOINT, _HARDWARE_BREAKPOINT = b"0", b"1"
_WATCHPOINTS = {b"2": Access.WRITE, b"3": Access.READ, b"4": Access.ANY}
_WATCH_NAMES = {Access.WRITE: b"watch", Access.READ: b"rwatch", Access.ANY: b"awatch"}
_STEP_ENABLE, _STEP_WITHOUT_INTERRUPTS = 1, 2

# GDB's own numbers of signals.
SIGNAL_INTERRUPT, SIGNAL_TRAP, SIGNAL_UNKNOWN = 2, 5, 143
_SIGNALS = {
    RunState.DEBUG: SIGNAL_TRAP,
    RunState.PAUSED: SIGNAL_INTERRUPT,
    RunState.SHUTDOWN: 3,
    RunState.INTERNAL_ERROR: 6,
    RunState.WATCHDOG: 14,
    RunState.IO_ERROR: 23,
    RunState.FINISH_MIGRATE: 24,
}


class Later(Enum):
    """What takes the place of a reply."""

    STOPPED = "stopped"
    """The reply comes when the guest has stopped."""
    MONITOR = "monitor"
    """The reply comes when a line of the monitor has been executed."""
    NO_ACKS = "no acknowledgements"
    """The reply is OK, and from then on packets are not acknowledged any more."""
    ENDS = "ends"
    """The reply is OK, and then the machine ends."""
    KILLED = "killed"
    """The machine ends, and there is no reply."""


Reply = bytes | Later


class Session:
    """One debugger, from its connection on."""

    def __init__(self, target: Debugger, run_line: Callable[[str], None]) -> None:
        """`run_line` has a line of the monitor executed."""
        self.multiprocess = False
        self._target = target
        self._run_line = run_line
        self._names_breakpoints = False
        self._selected = 0
        """The vCPU that registers and memory are of."""
        self._stepped = 0
        """The vCPU that steps."""
        self._physical = False
        self._step_bits = _STEP_ENABLE | _STEP_WITHOUT_INTERRUPTS
        self._listed: Iterator[int] = iter(())
        self._hardware: list[int] = []
        """The addresses of what the debugger calls hardware breakpoints."""
        self._commands: dict[bytes, Callable[[bytes], Reply]] = {
            b"?": self._ask_reason, b"!": lambda rest: OK, b"g": self._read_all, b"G": self._write_all,
            b"p": self._read_one, b"P": self._write_one, b"m": self._read_memory, b"M": self._write_memory,
            b"X": self._write_binary, b"Z": self._insert, b"z": self._remove, b"H": self._select, b"T": self._is_alive,
            b"c": self._continue, b"C": self._continue_signalled, b"s": self._step, b"S": self._step_signalled,
            b"D": self._detach, b"k": lambda rest: Later.KILLED,
        }  # fmt: skip
        self._named: tuple[tuple[bytes, Callable[[bytes], Reply]], ...] = (
            (b"qSupported", self._supported),
            (b"qXfer:features:read:", self._read_features),
            (b"qRcmd,", self._monitor),
            (b"qThreadExtraInfo,", self._thread_info),
            (b"qfThreadInfo", self._first_thread),
            (b"qsThreadInfo", self._next_thread),
            (b"qAttached", lambda rest: b"1"),
            (b"qC", lambda rest: b"QC" + self._thread(self._selected)),
            (b"qqemu.sstepbits", lambda rest: b"ENABLE=1,NOIRQ=2"),
            (b"qqemu.sstep", lambda rest: b"%#x" % self._step_bits),
            (b"Qqemu.sstep=", self._set_step_bits),
            (b"qqemu.PhyMemMode", lambda rest: b"%d" % self._physical),
            (b"Qqemu.PhyMemMode:", self._set_physical),
            (b"qqemu.Supported", lambda rest: b"sstepbits;sstep;PhyMemMode"),
            (b"QStartNoAckMode", lambda rest: Later.NO_ACKS),
            (b"vCont?", lambda rest: b"vCont;c;C;s;S"),
            (b"vCont;", self._resume_each),
            (b"vAttach;", self._attach),
            (b"vKill;", self._kill),
        )

    def handle(self, packet: bytes) -> Reply:
        """Do what a packet says while the guest is stopped; return the reply, or what takes its place."""
        if packet[:1] in (b"q", b"Q", b"v"):
            for name, action in self._named:
                rest = packet[len(name) :]
                if packet.startswith(name) and (not name[-1:].isalpha() or rest[:1] in (b"", b":")):
                    return action(rest)
            return UNKNOWN
        command = self._commands.get(packet[:1])
        return UNKNOWN if command is None else command(packet[1:])

    # ---- Why the guest has stopped

    def _thread(self, vcpu: int) -> bytes:
        return threads.shown(vcpu, multiprocess=self.multiprocess)

    def stop_reply(self, state: RunState) -> bytes:
        """Return what tells the debugger that the guest has stopped, and why."""
        stop = self._target.last_stop
        if state is not RunState.DEBUG or stop is None:
            return b"T%02xthread:%b;" % (_SIGNALS.get(state, SIGNAL_UNKNOWN), self._thread(self._present()))
        self._selected = self._stepped = stop.vcpu
        return b"T%02xthread:%b;%b" % (SIGNAL_TRAP, self._thread(stop.vcpu), self._reason(stop))

    def _reason(self, stop: DebugStop) -> bytes:
        watchpoint = self._target.last_watchpoint
        if stop.reason == "watchpoint" and watchpoint is not None:
            return b"%b:%x;" % (_WATCH_NAMES[watchpoint.access], watchpoint.address)
        if stop.reason == "breakpoint" and self._names_breakpoints:
            state = self._target.registers(stop.vcpu)
            return b"hwbreak:;" if state.cs.base + state.rip in self._hardware else b"swbreak:;"
        return b""

    def _present(self) -> int:
        """Return the vCPU that registers are of, another where that has been unplugged."""
        present = self._target.vcpus()
        if self._selected not in present:
            self._selected = present[0]
        return self._selected

    def _ask_reason(self, rest: bytes) -> Reply:
        # A debugger that has just come asks this first, and knows of no breakpoints.
        self._target.clear()
        self._hardware.clear()
        return b"T%02xthread:%b;" % (SIGNAL_TRAP, self._thread(self._present()))

    # ---- What both sides can do

    def _supported(self, rest: bytes) -> Reply:
        theirs = rest.removeprefix(b":").split(b";")
        self.multiprocess = b"multiprocess+" in theirs
        self._names_breakpoints = b"swbreak+" in theirs and b"hwbreak+" in theirs
        ours = [b"PacketSize=%x" % PACKET_SIZE, b"qXfer:features:read+", b"vContSupported+", b"QStartNoAckMode+"]
        if self.multiprocess:
            ours.append(b"multiprocess+")
        if self._names_breakpoints:
            ours += [b"swbreak+", b"hwbreak+"]
        return b";".join(ours)

    def _read_features(self, rest: bytes) -> Reply:
        name, _, place = rest.partition(b":")
        offset, length = _pair(place)
        if offset is None or length is None:
            return BAD_REQUEST
        content = annex(name.decode("latin-1"))
        if content is None or offset > len(content):
            return NO_ANNEX
        # Escapes may make it twice as long.
        part = content[offset : offset + min(length, _MEMORY_LIMIT - 1)]
        more = offset + len(part) < len(content)
        return (b"m" if more else b"l") + escaped(part)

    # ---- Threads

    def _vcpu(self, text: bytes) -> int | None:
        """Return the vCPU of a thread identifier, the first where any will do; None where there is none."""
        thread = threads.parse(text)
        if thread is None:
            return None
        return next((vcpu for vcpu in self._target.vcpus() if thread.matches(vcpu)), None)

    def _select(self, rest: bytes) -> Reply:
        operation, vcpu = rest[:1], self._vcpu(rest[1:])
        if operation not in (b"c", b"g") or vcpu is None:
            return BAD_REQUEST
        thread = threads.parse(rest[1:])
        if thread is not None and threads.ALL in thread:
            return OK
        if operation == b"c":
            self._stepped = vcpu
        else:
            self._selected = vcpu
        return OK

    def _is_alive(self, rest: bytes) -> Reply:
        return BAD_REQUEST if self._vcpu(rest) is None else OK

    def _first_thread(self, rest: bytes) -> Reply:
        self._listed = iter(self._target.vcpus())
        return self._next_thread(rest)

    def _next_thread(self, rest: bytes) -> Reply:
        vcpu = next(self._listed, None)
        return b"l" if vcpu is None else b"m" + self._thread(vcpu)

    def _thread_info(self, rest: bytes) -> Reply:
        vcpu = self._vcpu(rest)
        if vcpu is None:
            return BAD_REQUEST
        activity = "halted " if self._target.is_halted(vcpu) else "running"
        return f"CPU#{vcpu} [{activity}]".encode("ascii").hex().encode("ascii")

    # ---- Registers

    def _registers(self) -> DebugRegisters:
        return self._target.registers(self._present())

    def _read_linear(self, state: DebugRegisters) -> Callable[[int, int], bytes | None]:
        return lambda address, length: self._target.read(state, address, length)

    def _read_all(self, rest: bytes) -> Reply:
        state = self._registers()
        return b"".join(read_register(state, number) for number in range(len(REGISTERS))).hex().encode("ascii")

    def _write_all(self, rest: bytes) -> Reply:
        data = from_hex(rest)
        if data is None:
            return BAD_REQUEST
        state = self._registers()
        position = 0
        for number, register in enumerate(REGISTERS):
            size = register.bits // 8
            if position + size > len(data):
                break
            write_register(state, number, data[position : position + size], self._read_linear(state))
            position += size
        return self._take(state)

    def _read_one(self, rest: bytes) -> Reply:
        number = unsigned(rest, 32)
        if number is None or number >= len(REGISTERS):
            return BAD_ADDRESS
        return read_register(self._registers(), number).hex().encode("ascii")

    def _write_one(self, rest: bytes) -> Reply:
        name, _, value = rest.partition(b"=")
        number, data = unsigned(name, 32), from_hex(value)
        if number is None or number >= len(REGISTERS) or not data:
            return BAD_REQUEST
        state = self._registers()
        write_register(state, number, data, self._read_linear(state))
        return self._take(state)

    def _take(self, state: DebugRegisters) -> Reply:
        try:
            self._target.set_registers(self._present(), state)
        except StateError:
            return BAD_REQUEST
        return OK

    # ---- Memory

    def _space(self) -> DebugRegisters | None:
        """Return by what registers addresses are linear ones; None for physical ones."""
        return None if self._physical else self._registers()

    def _read_memory(self, rest: bytes) -> Reply:
        address, length = _pair(rest)
        if address is None or length is None or length > _MEMORY_LIMIT:
            return BAD_REQUEST
        data = self._target.read(self._space(), address, length)
        return BAD_ADDRESS if data is None else data.hex().encode("ascii")

    def _write_memory(self, rest: bytes) -> Reply:
        place, _, digits = rest.partition(b":")
        return self._write(place, from_hex(digits))

    def _write_binary(self, rest: bytes) -> Reply:
        place, _, data = rest.partition(b":")
        return self._write(place, unescaped(data))

    def _write(self, place: bytes, data: bytes | None) -> Reply:
        address, length = _pair(place)
        if address is None or length is None or data is None or len(data) != length:
            return BAD_REQUEST
        return OK if self._target.write(self._space(), address, data) else BAD_ADDRESS

    def _set_physical(self, rest: bytes) -> Reply:
        if rest not in (b"0", b"1"):
            return BAD_REQUEST
        self._physical = rest == b"1"
        return OK

    # ---- Breakpoints and watchpoints

    def _insert(self, rest: bytes) -> Reply:
        kind, address, length = _point(rest)
        if address is None or length is None:
            return BAD_REQUEST
        if kind in (_BREAKPOINT, _HARDWARE_BREAKPOINT):
            done = self._target.add_breakpoint(address)
            if done and kind == _HARDWARE_BREAKPOINT:
                self._hardware.append(address)
        elif kind in _WATCHPOINTS:
            done = self._target.add_watchpoint(Watchpoint(address, length, _WATCHPOINTS[kind]))
        else:
            return UNKNOWN
        return OK if done else BAD_REQUEST

    def _remove(self, rest: bytes) -> Reply:
        kind, address, length = _point(rest)
        if address is None or length is None:
            return BAD_REQUEST
        if kind in (_BREAKPOINT, _HARDWARE_BREAKPOINT):
            done = self._target.remove_breakpoint(address)
            if done and kind == _HARDWARE_BREAKPOINT and address in self._hardware:
                self._hardware.remove(address)
        elif kind in _WATCHPOINTS:
            done = self._target.remove_watchpoint(Watchpoint(address, length, _WATCHPOINTS[kind]))
        else:
            return UNKNOWN
        return OK if done else BAD_REQUEST

    # ---- Running

    def _set_step_bits(self, rest: bytes) -> Reply:
        bits = unsigned(rest, 32)
        if bits is None or bits & ~(_STEP_ENABLE | _STEP_WITHOUT_INTERRUPTS):
            return BAD_REQUEST
        self._step_bits = bits
        return OK

    def _run(self, paces: dict[int, Pace]) -> Reply:
        if not self._step_bits & _STEP_ENABLE:
            paces = {vcpu: Pace.FREE if pace is Pace.ONE_STEP else pace for vcpu, pace in paces.items()}
        try:
            self._target.resume(paces, interrupts=not self._step_bits & _STEP_WITHOUT_INTERRUPTS)
        except QmpError:
            return self.stop_reply(self._target.run_state)
        return Later.STOPPED

    def _resume_each(self, rest: bytes) -> Reply:
        paces: dict[int, Pace] = {}
        for action in rest.split(b";"):
            kind, separator, place = action.partition(b":")
            pace = {b"c": Pace.FREE, b"C": Pace.FREE, b"s": Pace.ONE_STEP, b"S": Pace.ONE_STEP}.get(kind[:1])
            signal_wrong = kind[:1] in (b"C", b"S") and unsigned(kind[1:], 8) is None
            if pace is None or signal_wrong or (kind[:1] in (b"c", b"s") and len(kind) > 1):
                return UNKNOWN
            thread = threads.parse(place) if separator else threads.ThreadId(threads.ALL, threads.ALL)
            meant = [vcpu for vcpu in self._target.vcpus() if thread is not None and thread.matches(vcpu)]
            if not meant:
                return BAD_REQUEST
            if thread is not None and threads.ANY in thread[1:]:
                del meant[1:]
            for vcpu in meant:
                paces.setdefault(vcpu, pace)
        return self._run(paces)

    def _resume_from(self, address: bytes, stepped: int | None) -> Reply:
        """Let all vCPUs run, one of them for a step only; from an address where there is one."""
        if address:
            place = unsigned(address)
            if place is None:
                return BAD_REQUEST
            state = self._registers()
            state.rip = place
            if self._take(state) != OK:
                return BAD_REQUEST
        return self._run({vcpu: Pace.ONE_STEP if vcpu == stepped else Pace.FREE for vcpu in self._target.vcpus()})

    def _continue(self, rest: bytes) -> Reply:
        return self._resume_from(rest, None)

    def _continue_signalled(self, rest: bytes) -> Reply:
        signal, _, address = rest.partition(b";")
        return BAD_REQUEST if unsigned(signal, 8) is None else self._resume_from(address, None)

    def _stepping(self) -> int:
        present = self._target.vcpus()
        return self._stepped if self._stepped in present else present[0]

    def _step(self, rest: bytes) -> Reply:
        return self._resume_from(rest, self._stepping())

    def _step_signalled(self, rest: bytes) -> Reply:
        signal, _, address = rest.partition(b";")
        return BAD_REQUEST if unsigned(signal, 8) is None else self._resume_from(address, self._stepping())

    # ---- Coming and going

    def _process(self, text: bytes) -> bool:
        return unsigned(text, 32) == threads.PROCESS

    def _attach(self, rest: bytes) -> Reply:
        if not self._process(rest):
            return BAD_REQUEST
        self._selected = self._stepped = self._target.vcpus()[0]
        return self._ask_reason(rest)

    def _detach(self, rest: bytes) -> Reply:
        if rest and not (rest[:1] == b";" and self._process(rest[1:])):
            return BAD_REQUEST
        self._target.clear()
        self._hardware.clear()
        try:
            self._target.resume(dict.fromkeys(self._target.vcpus(), Pace.FREE))
        except QmpError:
            return BAD_REQUEST
        return OK

    def _kill(self, rest: bytes) -> Reply:
        return Later.ENDS if self._process(rest) else BAD_REQUEST

    def _monitor(self, rest: bytes) -> Reply:
        line = from_hex(rest)
        if not line:
            return BAD_REQUEST
        self._run_line(line.decode("utf-8", "surrogateescape"))
        return Later.MONITOR


def _pair(text: bytes) -> tuple[int | None, int | None]:
    """Return the two numbers of ``ADDRESS,LENGTH``."""
    first, _, second = text.partition(b",")
    return unsigned(first), unsigned(second, 32)


def _point(text: bytes) -> tuple[bytes, int | None, int | None]:
    """Return kind, address and length of ``KIND,ADDRESS,LENGTH``, behind which conditions may stand."""
    kind, _, rest = text.partition(b",")
    return kind, *_pair(rest.partition(b";")[0])
