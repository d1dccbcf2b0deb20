"""An engine with a little RAM and devices that note what they hear, for tests made of a few machine instructions."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from pyvm.cpu import features
from pyvm.cpu.cpuid import Topology, build_model, cpuid_table, feature_words
from pyvm.cpu.engine import open_engine
from pyvm.memory import GuestMemory, RamBlock

MIB = 1 << 20
RAM = 4 * MIB
HOLE = 0xA0000
"""Device registers between two runs of RAM, as on a PC."""
HOLE_END = 0xC0000
PHYSICAL_END = 1 << 40
CODE = 0x7C00
STACK = 0x7000
GDT = 0x500
IDT = 0x1000
PAGE_TABLES = 0x10000
TSS = 0x600
DEADLINE = 60.0
"""Seconds after which a run that should have ended has failed."""

CODE16, DATA16 = 0x9B00, 0x9300
CODE32, DATA32 = 0xC09B00, 0xC09300
CODE64 = 0xA09B00
TSS_BUSY = 0x8B00
CR0_PE, CR0_PG, CR0_ET = 1, 1 << 31, 1 << 4
CR4_PAE, CR4_OSFXSR, CR4_OSXSAVE = 1 << 5, 1 << 9, 1 << 18
EFER_LONG = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11  # SCE, LME, LMA, NXE

HLT = b"\xf4"
CLI_HLT = b"\xfa\xf4"
STI = b"\xfb"
JUMP_TO_SELF = b"\xeb\xfe"
DONE = b"\xe6\xf4"  # out 0xf4, al
DONE_HLT = DONE + CLI_HLT

Segment = tuple[int, int, int, int]


def code(*parts: str | bytes) -> bytes:
    """Return machine code made of hexadecimal digits and bytes."""
    return b"".join(bytes.fromhex(part) if isinstance(part, str) else part for part in parts)


class Devices:
    """What guest code reaches outside of RAM.  Ports and registers read as `port_value` and `mmio_value`."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int, int]] = []
        self.noting = True
        self.port_value: int | bytes = 0xA1B2C3D4
        self.mmio_value: Callable[[int, int], int] = lambda gpa, size: 0x1122334455667788
        self.on_port: Callable[[int, int, int], None] = lambda port, size, value: None
        self.on_firmware: Callable[[int], None] = lambda vcpu: None
        self.vector: Callable[[int], int | None] = lambda vcpu: None
        self.cr8 = 0
        self.told: list[tuple[str, Sequence[int], dict[str, Any] | None]] = []
        self.msrs: dict[int, int] = {0x1B: 0xFEE00900}

    def _note(self, kind: str, address: int, size: int, value: int) -> None:
        if self.noting:
            self.log.append((kind, address, size, value))

    def written(self, kind: str = "out") -> list[tuple[int, int]]:
        """Return (address, value) of all writes of one kind."""
        return [(address, value) for what, address, _, value in self.log if what == kind]

    def port_read(self, port: int, size: int) -> int | bytes:
        self._note("in", port, size, 0)
        return self.port_value

    def port_write(self, port: int, size: int, value: int) -> None:
        self._note("out", port, size, value)
        self.on_port(port, size, value)

    def port_consume(self, port: int, count: int) -> None:
        self._note("consume", port, count, 0)

    def mmio_read(self, gpa: int, size: int) -> int:
        self._note("read", gpa, size, 0)
        return self.mmio_value(gpa, size)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self._note("write", gpa, size, value)

    def acknowledge(self, vcpu: int) -> int | None:
        return self.vector(vcpu)

    def msr_read(self, vcpu: int, index: int) -> int | None:
        return self.msrs.get(index)

    def msr_write(self, vcpu: int, index: int, value: int) -> bool:
        if index in self.msrs:
            self.msrs[index] = value
            return True
        return False

    def cr8_read(self, vcpu: int) -> int:
        return self.cr8

    def cr8_write(self, vcpu: int, value: int) -> None:
        self.cr8 = value

    def firmware_call(self, vcpu: int) -> None:
        self.on_firmware(vcpu)

    def block_translated(self, vcpu: int, values: Sequence[int], registers: dict[str, Any]) -> None:
        self.told.append(("translated", values, registers))

    def block_entered(self, vcpu: int, values: Sequence[int], registers: dict[str, Any] | None) -> None:
        self.told.append(("entered", values, registers))

    def interrupt_taken(self, vcpu: int, values: Sequence[int], registers: dict[str, Any]) -> None:
        self.told.append(("interrupt", values, registers))


class Rig:
    """One engine.  The helpers put code at `CODE` and registers into a mode of operation."""

    def __init__(
        self, vcpus: int = 1, *, cpu: str = "max", tsc_hz: int = 10**9, devices: Devices | None = None
    ) -> None:
        self.devices = devices or Devices()
        self.engine: Any = open_engine(vcpus, self.devices, tsc_hz)
        self.memory = GuestMemory(RAM, [RamBlock(0, HOLE, 0), RamBlock(HOLE_END, RAM - HOLE_END, HOLE_END)])
        topology = Topology(vcpus)
        model = build_model(cpu, topology)
        for word, bits in zip(features.WORDS, feature_words(model), strict=True):
            self.engine.set_features(word.engine_word, bits)
        self.engine.set_cpuid(cpuid_table(model, topology))
        for index in range(vcpus):
            self.engine.reset_vcpu(index)
        for block in self.memory.blocks:
            self.engine.map_ram(block.gpa, self.memory.mapping, block.offset, block.size, True)
        self.engine.map_io(HOLE, HOLE_END - HOLE)
        self.engine.map_io(RAM, PHYSICAL_END - RAM)
        self.memory.on_write = self.engine.invalidate
        self._run: Run | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the engine and its RAM; what still runs after a failed test is stopped."""
        if self._run is not None and not self._run.ended(0):
            self._run.stop()
        self.engine.close()
        self.memory.close()

    # ---- Registers

    def set(self, vcpu: int = 0, **values: Any) -> None:
        """Set registers of a stopped vCPU; general registers by their names."""
        names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
        general = list(struct.unpack("<16Q", self.engine.get_state(vcpu)["gpr"]))
        for index, name in enumerate(names):
            general[index] = values.pop(name, general[index])
        self.engine.set_state(vcpu, {"gpr": struct.pack("<16Q", *general), **values})

    def get(self, name: str, vcpu: int = 0) -> Any:
        """Return one register; general registers by their names."""
        names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
        state = self.engine.get_state(vcpu)
        if name in names:
            return struct.unpack_from("<Q", state["gpr"], 8 * names.index(name))[0]
        return state[name]

    # ---- Modes

    def real(self, code: bytes, at: int = CODE, vcpu: int = 0, **values: Any) -> None:
        """Be about to run 16-bit code at linear address `at`, with segments at 0 and a stack."""
        self.memory.write(at, code)
        self.engine.reset_vcpu(vcpu)
        self.set(vcpu, **{"rip": at, "cs": (0, 0, 0xFFFF, CODE16), "rsp": STACK, "activity": "running", **values})

    def vector16(self, vector: int, handler: bytes, at: int) -> None:
        """Install a real-mode interrupt handler."""
        self.memory.write_u32(4 * vector, at)
        self.memory.write(at, handler)

    def _tables(self, gate_size: int, handlers: dict[int, bytes], at: int) -> None:
        code, data = (
            (0x00CF9B000000FFFF, 0x00CF93000000FFFF) if gate_size == 8 else (0x00AF9B000000FFFF, 0x00CF93000000FFFF)
        )
        user = (0x00CFFB000000FFFF, 0x00CFF3000000FFFF) if gate_size == 8 else (0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
        tss = 0x67 | (TSS & 0xFFFFFF) << 16 | 0x8B << 40
        self.memory.write(GDT, struct.pack("<7Q", 0, code, data, *user, tss, 0))
        self.memory.write(TSS, bytes(104))
        self.memory.write_u64(TSS + 4, STACK - 0x800 if gate_size == 16 else 0x10 << 32 | STACK - 0x800)
        for vector, handler in handlers.items():
            low = at & 0xFFFF | 8 << 16 | (0xEE00 | 0) << 32 | (at >> 16 & 0xFFFF) << 48
            self.memory.write(IDT + gate_size * vector, struct.pack("<QQ", low, at >> 32)[:gate_size])
            self.memory.write(at, handler)
            at += len(handler) + 15 & ~15

    def protected(self, code: bytes, handlers: dict[int, bytes] | None = None, vcpu: int = 0, **values: Any) -> None:
        """Be about to run 32-bit code at `CODE` in ring 0, flat, without paging."""
        self._tables(8, handlers or {}, 0x3000)
        self.memory.write(CODE, code)
        self.engine.reset_vcpu(vcpu)
        data: Segment = (0x10, 0, 0xFFFFFFFF, DATA32)
        registers: dict[str, Any] = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data)
        registers |= {"cr0": CR0_PE | CR0_ET, "cr4": CR4_OSFXSR, "cs": (8, 0, 0xFFFFFFFF, CODE32)}
        registers |= {"gdt": (0, GDT, 55, 0), "idt": (0, IDT, 256 * 8 - 1, 0), "tr": (0x28, TSS, 0x67, TSS_BUSY)}
        self.set(vcpu, **{"rip": CODE, "rsp": STACK, "activity": "running", **registers, **values})

    def map_pages(self) -> None:
        """Make page tables: all RAM and some of the hole above it, writable, executable, for all rings."""
        level4, level3, level2, level1 = (PAGE_TABLES + 0x1000 * index for index in range(4))
        self.memory.write_u64(level4, level3 | 7)
        self.memory.write_u64(level3, level2 | 7)
        self.memory.write_u64(level2, level1 | 7)
        self.memory.write(level1, struct.pack("<512Q", *(page << 12 | 7 for page in range(512))))
        self.memory.write(level2 + 8, struct.pack("<3Q", *(page << 21 | 0x87 for page in range(1, 4))))

    def long(self, code: bytes, handlers: dict[int, bytes] | None = None, vcpu: int = 0, **values: Any) -> None:
        """Be about to run 64-bit code at `CODE` in ring 0 with 8 MiB mapped one to one."""
        self._tables(16, handlers or {}, 0x3000)
        self.map_pages()
        self.memory.write(CODE, code)
        self.engine.reset_vcpu(vcpu)
        data: Segment = (0x10, 0, 0xFFFFFFFF, DATA32)
        registers: dict[str, Any] = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data)
        registers |= {"cr0": CR0_PE | CR0_PG | CR0_ET, "cr3": PAGE_TABLES, "cr4": CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE}
        registers |= {"efer": EFER_LONG, "cs": (8, 0, 0xFFFFFFFF, CODE64), "tr": (0x28, TSS, 0x67, TSS_BUSY)}
        registers |= {"gdt": (0, GDT, 55, 0), "idt": (0, IDT, 256 * 16 - 1, 0)}
        self.set(vcpu, **{"rip": CODE, "rsp": STACK, "activity": "running", **registers, **values})

    # ---- Running

    def start(self) -> Run:
        """Run guest code on a thread of its own."""
        self._run = Run(self.engine)
        return self._run

    def run_until_port(self, port: int = 0xF4) -> Run:
        """Run guest code until it writes to a port; it must then stay where it is, or halt."""
        reached = threading.Event()
        inner = self.devices.on_port

        def on_port(number: int, size: int, value: int) -> None:
            inner(number, size, value)
            if number == port:
                reached.set()
                self.engine.stop()

        self.devices.on_port = on_port
        run = self.start()
        try:
            if run.join() == "stopped" and not reached.is_set():  # a stop that came after the end of the run before
                run = self.start()
                run.join()
        finally:
            self.devices.on_port = inner
        assert reached.is_set(), (run.result, run.error)
        return run


class Run:
    """A run of an engine on its own thread."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.result: str | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self.result = self.engine.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self, seconds: float) -> bool:
        """Say whether the run has ended within a time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def join(self) -> str | None:
        """Wait for the end; return what run() returned."""
        assert self.ended(DEADLINE), "guest code did not come to its end"
        return self.result

    def stop(self) -> str | None:
        """Stop guest code if it still runs, and wait."""
        if not self.ended(0):
            self.engine.stop()
        return self.join()
