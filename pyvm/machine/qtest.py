"""qtest: a machine whose devices are driven from outside, by text over a character device.

The protocol is that of QEMU's `docs/devel/qtest`: one command a line, each answered by a line that begins with OK or
FAIL.  Clients read and write memory, registers and ports, let guest time pass, and hear of interrupts.  With
`-accel qtest` no CPU runs, firmware does nothing and guest time stands still until the client says `clock_step`;
without it the client has everything but the clock.

This is the client's side of the board: :class:`Qtest` is a front end of a character device, and calls the handlers
that guest code would reach.
"""

from __future__ import annotations

import base64
import binascii
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from pyvm.chardev.base import Chardev, ChardevEvent
from pyvm.clock import NANOSECONDS, RunningClock
from pyvm.cpu.vcpu import APIC_PAGE, VcpuSet
from pyvm.errors import ConfigError
from pyvm.memory import GuestMemoryError
from pyvm.monitor.errors import QmpError

if TYPE_CHECKING:
    from pyvm.machine.pc import Pc

_CHUNK = 1 << 16
_LINE_LIMIT = 64 << 20
_ADDRESS_END = 1 << 64
_WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}
_PAGE = 0x1000
_UNNAMED = "unnamed-gpio-in"


class QtestError(Exception):
    """A command that cannot be carried out; the message follows FAIL."""


class SteppedClock(RunningClock):
    """Guest time that moves only when it is told to, whether the machine runs or not."""

    def start(self) -> None:
        """The machine runs; time does not."""

    def stop(self) -> None:
        """The machine has stopped."""

    def advance_to(self, end: int) -> None:
        """Move to `end` ns, running each timer at its own deadline; earlier times are past and stay so."""
        while (deadline := self.queue.next_deadline()) is not None and deadline <= end:
            self.set(max(self.now(), deadline))
            self.queue.run_expired(self.now())
        self.set(max(self.now(), end))


class IdleVcpus(VcpuSet):
    """vCPUs that have their registers and never run."""

    def start(self, clock_offset: int) -> None:
        """The machine runs; its vCPUs do not."""


class _Log:
    """What was said, on standard error or in a file, with the time since the client came."""

    def __init__(self, path: str | None) -> None:
        self._file: IO[str] | None = None
        self._own = False
        self._start = time.monotonic_ns()
        if path is None:
            self._file = sys.stderr
        elif path != "none":
            try:
                self._file = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - until close()
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not a file name"
                raise ConfigError(f"-qtest-log {path}: {reason}") from None
            self._own = True

    def opened(self) -> None:
        """A client is there: time begins."""
        self._start = time.monotonic_ns()
        self._write("[I 0.000000] OPENED")

    def note(self, kind: str, text: str) -> None:
        """Note a line of a kind: R received, S sent, I information."""
        if self._file is not None:
            seconds, rest = divmod(time.monotonic_ns() - self._start, NANOSECONDS)
            self._write(f"[{kind} +{seconds}.{rest // 1000:06}] {text}")

    def _write(self, line: str) -> None:
        if self._file is not None:
            try:
                print(line, file=self._file, flush=True)
            except OSError:
                self._file = None  # whoever read it is gone

    def close(self) -> None:
        if self._own and self._file is not None:
            self._file.close()
        self._file = None


class Qtest:
    """One client.  Commands are carried out in the main loop, one after the other."""

    def __init__(self, pc: Pc, chardev: Chardev, log: str | None) -> None:
        """Attach to `chardev`; raises ConfigError where it or the file for the log cannot be had."""
        self._pc = pc
        self._chardev = chardev
        self._log = _Log(log)
        self._input = bytearray()
        self._output = bytearray()
        self._intercepted: str | None = None
        self._has_client = False
        self._commands = self._table()
        try:
            chardev.attach(self)
        except ValueError as error:
            raise ConfigError(f"-qtest: {error}") from None

    def close(self) -> None:
        """End the log and leave the back end."""
        self._chardev.detach()
        self._client_left()
        self._log.close()

    # ---- The character device

    def can_receive(self) -> int:
        """Return how many bytes :meth:`receive` takes; none while the machine is not made or answers wait."""
        return _CHUNK if self._pc.initialized and not self._output else 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the client, and answer all lines that are complete."""
        self._input += data
        while (end := self._input.find(b"\n")) >= 0:
            line = self._input[:end].decode("utf-8", "replace")
            del self._input[: end + 1]
            self._answer(line)
        if len(self._input) > _LINE_LIMIT:
            self._input.clear()

    def event(self, event: ChardevEvent) -> None:
        """A client came or left."""
        if event is ChardevEvent.OPENED:
            self._input.clear()
            self._output.clear()
            self._log.opened()
            self._has_client = True
        elif event is ChardevEvent.CLOSED:
            self._client_left()

    def _client_left(self) -> None:
        if self._has_client:
            self._log.note("I", "CLOSED")
        self._has_client = False

    def writable(self) -> None:
        """The client reads again."""
        while self._output:
            taken = self._chardev.write(bytes(self._output[:_CHUNK]))
            if not taken:
                return
            del self._output[:taken]
        self._chardev.accept_input()

    def _send(self, line: str) -> None:
        self._log.note("S", line)
        self._output += line.encode() + b"\n"
        self.writable()

    # ---- Commands

    def _table(self) -> dict[str, Callable[[list[str]], str]]:
        table: dict[str, Callable[[list[str]], str]] = {
            "endianness": lambda words: "little",
            "clock_step": self._clock_step,
            "clock_set": self._clock_set,
            "irq_intercept_in": self._intercept,
            "set_irq_in": self._set_irq,
            "read": self._read,
            "write": self._write,
            "b64read": lambda words: base64.b64encode(self._fetch(words)).decode(),
            "b64write": self._write_base64,
            "memset": self._memset,
        }
        for letter, size in _WIDTHS.items():
            table[f"read{letter}"] = self._reader(self._load, size, 16)
            table[f"write{letter}"] = self._writer(self._store, size, _ADDRESS_END)
            if size < 8:
                table[f"in{letter}"] = self._reader(self._pc.ports.read, size, 4)
                table[f"out{letter}"] = self._writer(self._pc.ports.write, size, 1 << 16)
        return table

    def _answer(self, line: str) -> None:
        self._log.note("R", line)
        words = line.split()
        if not words:
            return
        command = self._commands.get(words[0])
        try:
            if command is None:
                raise QtestError(f"Unknown command '{words[0]}'")
            result = command(words[1:])
        except QtestError as error:
            self._send(f"FAIL {error}")
        else:
            self._send(f"OK {result}" if result else "OK")

    @staticmethod
    def _reader(read: Callable[[int, int], int], size: int, digits: int) -> Callable[[list[str]], str]:
        return lambda words: f"{read(_number(words, 0), size):#0{digits + 2}x}"

    @staticmethod
    def _writer(write: Callable[[int, int, int], None], size: int, end: int) -> Callable[[list[str]], str]:
        def command(words: list[str]) -> str:
            address, value = _number(words, 0), _number(words, 1)
            write(address % end, size, value & ((1 << 8 * size) - 1))
            return ""

        return command

    # ---- Memory: RAM, and where there is none registers

    def _load(self, address: int, size: int) -> int:
        if address & -_PAGE == APIC_PAGE:
            return self._pc.board.lapics[0].read(address % _PAGE, size)
        if self._pc.mmio.find(address) is None:
            try:
                return int.from_bytes(self._pc.memory.read(address, size), "little")
            except GuestMemoryError:
                return 0  # what QEMU reads where nothing is
        return self._pc.mmio.read(address, size)

    def _store(self, address: int, size: int, value: int) -> None:
        if address & -_PAGE == APIC_PAGE:
            self._pc.board.lapics[0].write(address % _PAGE, size, value)
        elif self._pc.mmio.find(address) is not None:
            self._pc.mmio.write(address, size, value)
        else:
            try:
                self._pc.memory.write(address, value.to_bytes(size, "little"))
            except GuestMemoryError:
                pass  # a write to nothing is lost

    def _fetch(self, words: list[str]) -> bytes:
        address, length = self._range(words)
        try:
            return self._pc.memory.read(address, length)
        except GuestMemoryError:
            return bytes(self._load(address + index, 1) for index in range(length))

    def _put(self, address: int, data: bytes) -> None:
        try:
            self._pc.memory.write(address, data)
        except GuestMemoryError:
            for index, value in enumerate(data):
                self._store(address + index, 1, value)

    def _range(self, words: list[str]) -> tuple[int, int]:
        address, length = _number(words, 0), _number(words, 1)
        if not 0 < length <= max(self._pc.memory.size, _PAGE):
            raise QtestError(f"Invalid length '{words[1]}'")
        return address, length

    def _read(self, words: list[str]) -> str:
        return f"0x{self._fetch(words).hex()}"

    def _write(self, words: list[str]) -> str:
        address, length = self._range(words)
        text = words[2] if len(words) > 2 else ""
        try:
            data = bytes.fromhex(text[2:])[:length]
        except ValueError:
            data = b""
        if not text.startswith("0x") or not data:
            raise QtestError("Invalid data")
        self._put(address, data.ljust(length, b"\0"))
        return ""

    def _write_base64(self, words: list[str]) -> str:
        address, length = self._range(words)
        try:
            data = base64.b64decode(words[2] if len(words) > 2 else "", validate=True)
        except (binascii.Error, ValueError):
            raise QtestError("Invalid data") from None
        self._put(address, data[:length])
        return ""

    def _memset(self, words: list[str]) -> str:
        address, length = self._range(words)
        self._put(address, bytes([_number(words, 2) & 0xFF]) * length)
        return ""

    # ---- Time

    def _clock(self) -> SteppedClock:
        clock = self._pc.clock
        if not isinstance(clock, SteppedClock):
            raise QtestError("Guest time can be set with -accel qtest only")
        return clock

    def _clock_step(self, words: list[str]) -> str:
        """Move by so many ns; without a number, up to the next timer."""
        clock = self._clock()
        if words:
            clock.advance_to(clock.now() + _number(words, 0))
        else:
            deadline = clock.queue.next_deadline()
            clock.advance_to(clock.now() if deadline is None else deadline)
        return str(clock.now())

    def _clock_set(self, words: list[str]) -> str:
        clock = self._clock()
        clock.advance_to(_number(words, 0))
        return str(clock.now())

    # ---- Interrupts

    def _controller(self, words: list[str]) -> Any:
        """Return the interrupt controller at a path of the object tree."""
        if not words:
            raise QtestError("Unknown device")
        model = self._pc.model.qom
        try:
            path = model.resolve(words[0]).path
        except QmpError:
            path = ""
        named = {model.chip_path("ioapic"): self._pc.board.ioapic}
        if not path or path not in named:
            raise QtestError("Unknown device")
        return named[path]

    def _intercept(self, words: list[str]) -> str:
        """Tell of every change of an interrupt controller's inputs, from now on."""
        controller = self._controller(words)
        if self._intercepted not in (None, words[0]):
            raise QtestError("IRQ intercept already enabled")
        if self._intercepted is None:
            self._intercepted = words[0]
            self._watch(controller)
        return ""

    def _watch(self, controller: Any) -> None:
        pass_on = controller.set_irq
        levels: dict[int, bool] = {}

        def tell(pin: int, level: bool) -> None:
            pass_on(pin, level)
            if levels.get(pin, False) != level:
                levels[pin] = level
                self._send(f"IRQ {'raise' if level else 'lower'} {pin}")

        controller.set_irq = tell

    def _set_irq(self, words: list[str]) -> str:
        controller = self._controller(words)
        pin, level = _number(words, 2), _number(words, 3)
        if words[1] != _UNNAMED or pin >= len(controller.save().entries):
            raise QtestError(f"Unknown input '{words[1]}' {pin}")
        controller.set_irq(pin, bool(level))
        return ""


def _number(words: list[str], index: int) -> int:
    """Return a word that is a number of C, decimal, octal or hexadecimal; negative ones wrap around."""
    try:
        text = words[index]
        digits = text.lstrip("+-")
        base = 16 if digits[:2].lower() == "0x" else 8 if digits[:1] == "0" else 10
        return int(text, base) % _ADDRESS_END
    except IndexError:
        raise QtestError("Missing argument") from None
    except ValueError:
        raise QtestError(f"Invalid number '{text}'") from None
