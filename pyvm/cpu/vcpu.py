"""The vCPUs of a machine: the thread that runs guest code, and their connection to memory, ports and local APICs.

All vCPUs take turns on one engine and one thread (`pyvm/native/sched.c`).  The thread leaves the engine only when the
machine is stopped, and then waits on the machine lock's condition until it is started again.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyvm.cpu import features
from pyvm.cpu.cpuid import CpuModel, Topology, cpuid_table, feature_words
from pyvm.cpu.engine import open_engine
from pyvm.cpu.registers import RegisterState
from pyvm.memory import GuestMemory
from pyvm.records import record

if TYPE_CHECKING:
    from mmap import mmap

    from pyvm.cpu.engine import GuestCodeLog
    from pyvm.devices.lapic import Lapic
    from pyvm.memory import DeviceRam, IoRegion, IoSpace
    from pyvm.native import LapicVectors

TSC_HZ = 1_000_000_000
MSR_APIC_BASE = 0x1B
MSR_TSC_DEADLINE = 0x6E0
PHYSICAL_END = 1 << 40
APIC_PAGE = 0xFEE00000
_LOW_PCI_HOLE_END = 1 << 32
MAX_BREAKPOINTS = 1024
MAX_WATCHPOINTS = 28
WATCH_READ, WATCH_WRITE = 1, 2


NothingThere = Callable[[str, int, int], None]
"""Takes what a guest did where there is nothing, ``read`` or ``write``, at which address, and with how many bytes."""


def apic_ids(count: int, topology: Topology) -> list[int]:
    """Return the APIC ID of each of `count` CPUs: socket, core and thread in bit fields of their own."""
    thread_width = (topology.threads - 1).bit_length()
    core_width = (topology.cores - 1).bit_length()
    ids = []
    for index in range(count):
        core, thread = divmod(index, topology.threads)
        socket, core = divmod(core, topology.cores)
        ids.append((socket << core_width | core) << thread_width | thread)
    return ids


class Pace(enum.IntEnum):
    """How far a debugger lets a vCPU run."""

    FREE = 0
    ONE_STEP = 1
    HELD = 2


@record(frozen=True)
class DebugStop:
    """Why guest code has stopped for a debugger."""

    vcpu: int
    reason: str
    """``breakpoint``, ``step`` or ``watchpoint``."""
    watchpoint: int
    """Which of the watchpoints it was."""


@record
class CpuEvents:
    """What the vCPU thread reports; called on that thread with the machine lock held."""

    triple_fault: Callable[[], None]
    failed: Callable[[BaseException], None]
    firmware_call: Callable[[int], None] = lambda vcpu: None
    """A vCPU is at the entry point of a firmware service; its registers may be read and set."""
    debug: Callable[[DebugStop], None] = lambda stop: None
    """Guest code has come to where a debugger wants it to stop; it does not go on before it is started again."""


class _Phase(enum.Enum):
    STOPPED = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


class LapicPort:
    """How a local APIC drives its vCPU."""

    def __init__(self, engine: Any, index: int) -> None:
        self._engine = engine
        self._index = index
        self.vectors: LapicVectors = engine.vectors(index)
        """The interrupts of the local APIC, which drive INTR."""

    def nmi(self) -> None:
        """Deliver an NMI."""
        self._engine.nmi(self._index)

    def init(self) -> None:
        """Deliver INIT."""
        self._engine.init(self._index)

    def startup(self, vector: int) -> None:
        """Deliver a start-up IPI."""
        self._engine.startup(self._index, vector)


class _Callbacks:
    """What guest code asks of the machine; every call takes the machine lock."""

    def __init__(self, lock: Any, memory: IoSpace, ports: IoSpace, events: CpuEvents) -> None:
        self._lock = lock
        self._events = events
        self._memory_find = memory.find
        self._port_find = ports.find
        self.lapics: Mapping[int, Lapic] = {}
        self.current: Callable[[], int] = lambda: 0
        self.on_nothing: NothingThere | None = None
        self.log: GuestCodeLog | None = None

    def port_read(self, port: int, size: int) -> int | memoryview:
        region = self._port_find(port)
        if region is None:
            return 0xFFFFFFFF
        with self._lock:
            if region.stream is not None and port == region.base:
                ahead = region.stream.peek(size)
                if ahead:
                    return ahead
            return region.load(port - region.base, size)

    def port_consume(self, port: int, count: int) -> None:
        region = self._port_find(port)
        if region is not None and region.stream is not None:
            with self._lock:
                region.stream.consume(count)

    def port_write(self, port: int, size: int, value: int) -> None:
        region = self._port_find(port)
        if region is not None:
            with self._lock:
                region.store(port - region.base, size, value)

    def mmio_read(self, gpa: int, size: int) -> int:
        with self._lock:
            lapic = self.lapics[self.current()]
            if gpa & ~0xFFF == APIC_PAGE:
                return lapic.read(gpa & 0xFFF, size)
            region = self._memory_find(gpa)
            if region is not None:
                return region.load(gpa - region.base, size)
            if self.on_nothing is not None:
                self.on_nothing("read", gpa, size)
            return 0xFFFFFFFFFFFFFFFF

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        with self._lock:
            if gpa & ~0xFFF == APIC_PAGE:
                self.lapics[self.current()].write(gpa & 0xFFF, size, value)
                return
            region = self._memory_find(gpa)
            if region is not None:
                region.store(gpa - region.base, size, value)
            elif self.on_nothing is not None:
                self.on_nothing("write", gpa, size)

    def acknowledge(self, vcpu: int) -> int | None:
        with self._lock:
            return self.lapics[vcpu].acknowledge()

    def msr_read(self, vcpu: int, index: int) -> int | None:
        with self._lock:
            lapic = self.lapics[vcpu]
            if index == MSR_TSC_DEADLINE:
                return lapic.read_tsc_deadline()
            if index == MSR_APIC_BASE:
                return lapic.apic_base
            return lapic.msr_read(index)

    def msr_write(self, vcpu: int, index: int, value: int) -> bool:
        with self._lock:
            lapic = self.lapics[vcpu]
            if index == MSR_TSC_DEADLINE:
                lapic.write_tsc_deadline(value)
                return True
            if index == MSR_APIC_BASE:
                return lapic.write_apic_base(value)
            return lapic.msr_write(index, value)

    def cr8_read(self, vcpu: int) -> int:
        with self._lock:
            return self.lapics[vcpu].read_cr8()

    def cr8_write(self, vcpu: int, value: int) -> None:
        with self._lock:
            self.lapics[vcpu].write_cr8(value)

    def firmware_call(self, vcpu: int) -> None:
        with self._lock:
            self._events.firmware_call(vcpu)

    def block_translated(self, vcpu: int, values: Sequence[int], registers: dict[str, Any]) -> None:
        if self.log is not None:
            with self._lock:
                self.log.block_translated(vcpu, values, registers)

    def block_entered(self, vcpu: int, values: Sequence[int], registers: dict[str, Any] | None) -> None:
        if self.log is not None:
            with self._lock:
                self.log.block_entered(vcpu, values, registers)

    def interrupt_taken(self, vcpu: int, values: Sequence[int], registers: dict[str, Any]) -> None:
        if self.log is not None:
            with self._lock:
                self.log.interrupt_taken(vcpu, values, registers)


class Overlay:
    """Memory, or registers, over what is mapped; shown and hidden by guest code or while the machine is stopped."""

    def __init__(self, engine: Any, gpa: int, size: int, buffer: mmap | None, offset: int, writable: bool) -> None:
        self._engine = engine
        self._number = engine.overlay(gpa, buffer, offset, size, writable)

    def show(self, gpa: int) -> None:
        """Show it at `gpa` and nowhere else."""
        self._engine.show_overlay(self._number, gpa)

    def hide(self) -> None:
        """Let what is mapped below show again."""
        self._engine.hide_overlay(self._number)


class VcpuSet:
    """All vCPUs of a machine.

    Methods are called with the machine lock held.  The machine makes the local APICs on :meth:`port` and hands them
    over with :meth:`attach_lapics` before the first start.  There may be more places for vCPUs than vCPUs.
    """

    def __init__(
        self,
        count: int,
        model: CpuModel,
        topology: Topology,
        *,
        lock: Any,
        memory: GuestMemory,
        mmio: IoSpace,
        ports: IoSpace,
        events: CpuEvents,
        places: int | None = None,
    ) -> None:
        self.present = list(range(count))
        """The places in which there are vCPUs, in the order in which they came."""
        self.model = model
        self.apic_ids = apic_ids(places or count, topology)
        """The APIC ID of each place."""
        self._callbacks = _Callbacks(lock, mmio, ports, events)
        self._engine = open_engine(len(self.apic_ids), self._callbacks, TSC_HZ)
        self._callbacks.current = lambda: self._engine.current
        self._events = events
        self._memory = memory
        self._changed = threading.Condition(lock)
        self._phase = _Phase.STOPPED
        self._inside = False
        self._stopping = False
        """Whether somebody asked for a stop that the machine still has to hear of."""
        self._thread: threading.Thread | None = None
        self._told = 0
        self._single_instructions = False
        self._set_model(topology)
        self._map_memory(memory)
        memory.on_write = self._engine.invalidate
        memory.on_vector = self._engine.invalidate_vector
        self._device_memory: dict[DeviceRam, Overlay] = {}
        mmio.on_ram = self._show_device_memory

    def _set_model(self, topology: Topology) -> None:
        for word, bits in zip(features.WORDS, feature_words(self.model), strict=True):
            self._engine.set_features(word.engine_word, bits)
        self._engine.set_cpuid(cpuid_table(self.model, topology))
        for index, apic_id in enumerate(self.apic_ids):
            self._engine.set_apic_id(index, apic_id)
            self._engine.reset_vcpu(index)

    def _map_memory(self, memory: GuestMemory) -> None:
        """Map RAM, and everything else as registers, so that no access is ever unmapped for the engine."""
        position = 0
        for block in memory.blocks:
            if block.gpa > position:
                self._engine.map_io(position, block.gpa - position)
            self._engine.map_ram(block.gpa, memory.mapping, block.offset, block.size, True)
            position = block.end
        self._engine.map_io(position, PHYSICAL_END - position)

    def overlay(
        self, gpa: int, size: int, memory: DeviceRam | GuestMemory | None, *, offset: int = 0, writable: bool = True
    ) -> Overlay:
        """Lay `size` bytes over what is mapped at `gpa`, and show them.

        They are device memory from `offset` on, or the guest's own RAM of that address, or registers where there is no
        `memory`.  Writes are dropped unless it is `writable`.  What an overlay needs of the engine is never given back:
        make it once, then show and hide it.
        """
        if isinstance(memory, GuestMemory):
            offset = memory.offset(gpa, size)
        buffer = None if memory is None else memory.mapping
        return Overlay(self._engine, gpa, size, buffer, offset, writable)

    def _show_device_memory(self, region: IoRegion, shown: bool) -> None:
        assert region.ram is not None
        overlay = self._device_memory.get(region.ram)
        if not shown:
            if overlay is not None:
                overlay.hide()
        elif overlay is not None:
            overlay.show(region.base)
        else:
            self._device_memory[region.ram] = self.overlay(region.base, region.size, region.ram)

    def set_firmware(self, start: int, size: int) -> None:
        """Say where the entry points of firmware services are, in linear addresses; stopped only."""
        self._engine.set_firmware(start, size)

    def port(self, index: int) -> LapicPort:
        """Return what the local APIC of vCPU `index` drives."""
        return LapicPort(self._engine, index)

    def attach_lapics(self, lapics: Mapping[int, Lapic]) -> None:
        """Connect the local APICs, one for each place that ever had a vCPU; the mapping may grow."""
        self._callbacks.lapics = lapics

    @property
    def on_nothing(self) -> NothingThere | None:
        """What is told of accesses to addresses at which there is nothing; called with the machine lock held."""
        return self._callbacks.on_nothing

    @on_nothing.setter
    def on_nothing(self, listener: NothingThere | None) -> None:
        self._callbacks.on_nothing = listener

    def tell(
        self,
        log: GuestCodeLog,
        *,
        translations: bool = False,
        blocks: bool = False,
        registers: bool = False,
        interrupts: bool = False,
    ) -> None:
        """Tell `log` of these things from now on; `registers` come with blocks.  Not on the vCPU thread."""
        wanted = ((translations, 1), (blocks, 2), (registers, 4), (interrupts, 8))
        self._callbacks.log = log
        self._told = sum(bit for on, bit in wanted if on)
        self._set_log()

    @property
    def single_instructions(self) -> bool:
        """Whether guest code is translated by one instruction at a time."""
        return self._single_instructions

    @single_instructions.setter
    def single_instructions(self, on: bool) -> None:
        self._single_instructions = on
        self._set_log()

    def _set_log(self) -> None:
        with self.paused():
            self._engine.set_log(self._told, self._single_instructions)

    @property
    def count(self) -> int:
        """How many vCPUs there are."""
        return len(self.present)

    def plug(self, index: int) -> None:
        """Put a vCPU, which waits to be started, into a place that is free; not on the vCPU thread."""
        with self.paused():
            self._engine.reset_vcpu(index)
            self._engine.interrupt(index, False)
        self.present.append(index)

    def unplug(self, index: int) -> None:
        """Take a vCPU away, whatever it does; not the first."""
        self.present.remove(index)
        self._engine.interrupt(index, False)
        self._engine.init(index)

    @property
    def current(self) -> int:
        """Return the index of the vCPU that has the engine."""
        return self._engine.current

    @property
    def thread_id(self) -> int:
        """Return the host's number of the vCPU thread; the process's own before the first start."""
        thread = self._thread
        return (thread.native_id if thread is not None else None) or threading.get_native_id()

    # ---- Running

    def start(self, clock_offset: int) -> None:
        """Let guest code run; `clock_offset` is guest time less host monotonic time in ns."""
        self._engine.set_clock(clock_offset)
        self._stopping = False
        self._phase = _Phase.RUNNING
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="CPU/TCG", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def stop_soon(self) -> None:
        """Have guest code leave the engine soon; from any thread."""
        self._stopping = True
        if self._phase is _Phase.RUNNING:
            self._phase = _Phase.STOPPED
        self._engine.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep guest code from running for a moment, while its clock goes on; not on the vCPU thread."""
        running = self._phase is _Phase.RUNNING
        self.stop()
        try:
            yield
        finally:
            # While it was being stopped, the guest may have asked for a reset: then it stays stopped.
            if running and not self._stopping:
                self._phase = _Phase.RUNNING
                self._changed.notify_all()

    def go_on(self) -> None:
        """Let guest code run again that :meth:`stop` has held up, while the machine runs."""
        if not self._stopping:
            self._phase = _Phase.RUNNING
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop guest code and return when none runs any more; not on the vCPU thread."""
        if self._phase is _Phase.RUNNING:
            self._phase = _Phase.STOPPED
        while self._inside:
            self._engine.stop()
            self._changed.wait(0.1)

    def release(self) -> None:
        """End the thread and close the engine; without the machine lock, and not on the vCPU thread."""
        with self._changed:
            self.stop()
            self._phase = _Phase.ENDED
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._engine.close()

    def _main(self) -> None:
        with self._changed:
            while self._phase is not _Phase.ENDED:
                if self._phase is _Phase.STOPPED:
                    self._changed.wait()
                else:
                    self._run_once()

    def _run_once(self) -> None:
        """Run guest code until it is stopped; entered and left with the lock held, which guest code runs without."""
        self._inside = True
        reason, failure = "", None
        self._changed.release()
        try:
            reason = self._engine.run()
        except Exception as error:  # noqa: BLE001 - whatever a device raised: the machine stops, and says why
            failure = error
        finally:
            self._changed.acquire()
            self._inside = False
            self._changed.notify_all()
        if failure is not None:
            self._events.failed(failure)
        elif reason == "triple-fault":
            self._events.triple_fault()
        elif reason == "debug":
            self._events.debug(DebugStop(*self._engine.debugged))

    # ---- State, while stopped

    def reset(self) -> None:
        """Put all vCPUs into their power-on state."""
        for index in range(len(self.apic_ids)):
            self._engine.reset_vcpu(index)
            self._engine.interrupt(index, False)

    def set_registers(self, index: int, values: dict[str, Any]) -> None:
        """Set some registers of a vCPU that is stopped or in a firmware call.

        They are named as in :class:`RegisterState`, segments are 4-tuples.
        """
        self._engine.set_state(index, values)

    def set_shared_msr(self, index: int, value: int) -> None:
        """Set an MTRR, which all vCPUs share; stopped only."""
        self._engine.set_shared_msr(index, value)

    def registers(self, index: int) -> dict[str, Any]:
        """Return the registers of a vCPU that is stopped or in a firmware call."""
        return self._engine.get_state(index)

    def set_a20(self, enabled: bool) -> None:
        """Open or close the A20 gate."""
        self._engine.set_a20(enabled)

    def nmi(self, index: int) -> None:
        """Deliver an NMI to one vCPU."""
        self._engine.nmi(index)

    def save(self) -> list[RegisterState]:
        """Return the state of all vCPUs; stopped only."""
        return [RegisterState.from_engine(self._engine.get_state(index)) for index in sorted(self.present)]

    def load(self, states: list[RegisterState]) -> None:
        """Take over the state of all vCPUs; stopped only.  Raises :class:`pyvm.state.StateError`."""
        for state in states:
            state.check()
        for index, state in zip(sorted(self.present), states, strict=True):
            self._engine.set_state(index, state.to_engine())

    # ---- Debugging, while stopped

    def set_breakpoints(self, addresses: Sequence[int]) -> None:
        """Have guest code stop in front of the instructions at these linear addresses, and at no others.

        There are at most :data:`MAX_BREAKPOINTS`.
        """
        self._engine.set_breakpoints(addresses)

    def set_watchpoints(self, ranges: Sequence[tuple[int, int, int]]) -> None:
        """Have guest code stop behind an access to these ranges, and to no others.

        Each is a linear address, a length of at least 1, and the kinds of access: :data:`WATCH_READ`,
        :data:`WATCH_WRITE`.  There are at most :data:`MAX_WATCHPOINTS`.
        """
        self._engine.set_watchpoints(ranges)

    def set_pace(self, index: int, pace: Pace, *, interrupts: bool = False) -> None:
        """Say how far a vCPU may run from now on; a step enters an interrupt that waits where `interrupts` is set."""
        self._engine.set_pace(index, pace, interrupts)

    # ---- Writes to guest RAM

    def log_writes(self) -> None:
        """Begin to note which pages of RAM the guest and its devices write; nothing is noted yet."""
        with self.paused():
            self._engine.dirty_start(memoryview(self._memory.mapping)[: self._memory.size])

    def take_writes(self, log: bytearray) -> int:
        """Move what was noted to `log`, a bit for each page, and begin anew; return how many pages were written."""
        with self.paused():
            return self._engine.dirty_take(log)

    def forget_writes(self) -> None:
        """Note no writes any more."""
        with self.paused():
            self._engine.dirty_stop()

    def counters(self) -> dict[str, int]:
        """Return how often guest code left for the machine, by cause."""
        return self._engine.counters()
