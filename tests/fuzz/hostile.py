"""Guests that mean harm: random machine code, instructions picked for mischief, and random processor states.

    python -m tests.fuzz.hostile [--seed N] [--seconds S] [--verbose]

Each case is made from its seed alone, so that a case that killed the process can be run again: with `--verbose` the
seed and the code of a case are printed before it runs.  Exit status 0 means that all cases ended as they should: with a
triple fault, or because they were asked to stop, and never later than `PATIENCE` seconds after that.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from collections.abc import Callable

from pyvm.cpu.registers import RegisterState
from tests.unit.engine_rig import CODE, HOLE, IDT, PAGE_TABLES, RAM, Devices, Rig

CASE_SECONDS = 0.03
PATIENCE = 60.0
CHUNK = 96
SECOND_CODE = 0x6000

# An address of each kind that matters: RAM, code, tables, a page's last bytes, RAM beside registers, registers,
# nothing at all, above what the processor can address, not canonical.
PLACES = (
    0, CODE, IDT, PAGE_TABLES, 0x2FFD, 0x8000, HOLE - 3, HOLE, HOLE + 0xFFC, HOLE + 0x1FFFD, RAM - 1, RAM, 0xFEE00000,
    0xFEE00FFD, 0xFFFFFFF0, (1 << 32) - 2, (1 << 40) - 4, 1 << 40, 1 << 47, (1 << 64) - 4096, (1 << 64) - 1, 1 << 51,
)  # fmt: skip
MSRS = (
    0x10, 0x1B, 0x8B, 0xFE, 0x174, 0x175, 0x176, 0x179, 0x1A0, 0x200, 0x201, 0x20F, 0x210, 0x250, 0x277, 0x2FF, 0x400,
    0x480, 0x6E0, 0x802, 0x830, 0xD90, 0xDA0, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101,
    0xC0000103, 0xC0010114, 0xC0010117, 0x4B564D00,
)  # fmt: skip

# Instructions that reach unusual parts of the processor.  `@` stands for a ModRM byte with a memory operand or not.
TRICKS = """
0f00@ 0f01@ 0f02@ 0f03@ 0f05 0f06 0f07 0f08 0f09 0f0b 0f0d@ 0f0e 0f20c0 0f22c0 0f20c8 0f22d8 0f22e0 0f22c8
0f20e0 0f22d0 440f22c0 440f20c0 0f21c0 0f23f8 0f23c0 0f23d0 0f30 0f31 0f32 0f33 0f34 0f35 480f35 0f37 0fa2 0faa
0fae@ 0fc7@ 480fc7@ 480fae@ f00fc7@ f348ab f3aa f3a4 f2ae f3a6 f36c f36e f30fae@ 660fae@ 0f01d0 0f01d1 0f01c8
0f01c9 0f01d8 0f01d9 0f01da 0f01db 0f01dc 0f01dd 0f01de 0f01df 0f01f8 480f01f8 0f01f9 0f01ca 0f01cb 0f01ee
0f01ef f00f01@ f0ff@ f087@ f00fc1@ f00fb1@ f048ff@ f029@ f00fab@ f00fba@0f 0fb2@ 0fb4@ 0fb5@ c4@ c5@ 62@ 8e@ 8c@
9a000007007c0000 ea007c00000800 ea007c0000 ff@ cf 48cf 66cf cb ca0400 48cb cd80 cd08 cc ce f1 0f1a@ 0f1b@
f30f1a@ f30f1b@ f20f1a@ f20f1b@ 660f1a@ 660f1b@ 9c 9d 669c 669d fa fb f4 f390 fb f4 17 1f 07 16 0fa1 0fa9 db@
dd@ d9@ df@ 0f10@ 0f11@ 660fe7@ 0fe7@ 0fc3@ 0f2b@ 660ff7c1 0ff7c1 f20ff0@ 660f38@ 660f3a@11 0f38@ f20f38f1@
660f3882@ f30fc7@ 660fc7@ 8f@ c8ffff1f c80000ff 6c 6d 6e 6f e4f0 e7f0 ec ed ee ef 0fc0@ 0fb0@ 63@ 0fff@ 0f0f@9e
0fb8@ f30fb8@ d7 f2f0 666666 2e 3e 26 64 65 f0 f3 67 48 0f 0f38 0f3a 0f78@ 0f79@ 0f04 0f0a 0f36 0f24c0 0f26c0
c7f800000000 c6f800 0fb9@ f30f01@ f20f01@ 660f01@ f30f00@ 0fa6c0 0fa7c8 9bdbe3 ddd8 dfe0 9bd9@
""".split()


class Source:
    """Random code and values from one seed."""

    def __init__(self, seed: int, bits: int) -> None:
        self.random = random.Random(seed)
        self.bits = bits

    def address(self) -> int:
        """Return an address of some kind."""
        return (self.random.choice(PLACES) + self.random.choice((0, 0, 0, -1, 1, 4, 8, 4094))) & (1 << 64) - 1

    def value(self) -> int:
        """Return a number as hostile programs like them."""
        kind = self.random.randrange(4)
        if kind == 0:
            return self.random.getrandbits(64)
        if kind == 1:
            return 1 << self.random.randrange(64)
        return self.random.randrange(64) if kind == 2 else self.address()

    def _operand(self) -> bytes:
        if self.bits == 16 or self.random.random() < 0.3:
            return bytes([self.random.getrandbits(8)]) + self.random.randbytes(self.random.choice((0, 1, 2, 4)))
        register = self.random.randrange(8) << 3
        if self.random.random() < 0.5:
            return bytes([register | self.random.choice((0, 1, 2, 3, 6, 7))])
        address = self.address() & 0xFFFFFFFF
        form = bytes([4 | register, 0x25]) if self.bits == 64 else bytes([5 | register])
        return form + struct.pack("<I", address)

    def _load(self, register: int, value: int) -> bytes:
        if self.bits == 64:
            return bytes([0x48, 0xB8 + register]) + struct.pack("<Q", value)
        size = self.bits // 8
        return bytes([0xB8 + register]) + (value & (1 << self.bits) - 1).to_bytes(size, "little")

    def _trick(self) -> bytes:
        code = b""
        for part in self.random.choice(TRICKS).replace("@", "#@#").split("#"):
            code += self._operand() if part == "@" else bytes.fromhex(part)
        return code

    def instruction(self) -> bytes:
        """Return some bytes of code."""
        kind = self.random.random()
        if kind < 0.25:
            return self.random.randbytes(self.random.randrange(1, 9))
        if kind < 0.5:
            return self._load(self.random.choice((0, 1, 2, 3, 6, 7)), self.value())
        if kind < 0.6:
            msr = (
                self._load(1, self.random.choice(MSRS))
                if self.bits != 16
                else b"\x66\xb9" + struct.pack("<I", 0xC0000080)
            )
            return (
                msr
                + self._load(0, self.value())
                + self._load(2, self.value())
                + self.random.choice((b"\x0f\x30", b"\x0f\x32"))
            )
        return self._trick()

    def code(self) -> bytes:
        """Return a chunk of code."""
        if self.random.random() < 0.2:
            return self.random.randbytes(CHUNK)
        code = b""
        while len(code) < CHUNK:
            code += self.instruction()
        return code


# What exceptions lead to: the next byte of the program is tried.  Registers are set anew where the handler can.
_SKIP64 = bytes.fromhex("48830424 01 48cf".replace(" ", ""))
_SKIP64_CODE = bytes.fromhex("4883c408 48830424 01 48cf".replace(" ", ""))
_SKIP32 = bytes.fromhex("83042401cf")
_SKIP32_CODE = bytes.fromhex("83c404 83042401cf".replace(" ", ""))
_SKIP16 = bytes.fromhex("5589e583460201 5dcf".replace(" ", ""))
_WITH_CODE = (8, 10, 11, 12, 13, 14, 17)


def _handlers(plain: bytes, with_code: bytes) -> dict[int, bytes]:
    return {vector: with_code if vector in _WITH_CODE else plain for vector in range(32)}


def real_mode(rig: Rig, source: Source, code: bytes) -> None:
    """16-bit code; every vector skips a byte."""
    for vector in range(256):
        rig.vector16(vector, _SKIP16, 0x600)
    rig.real(code, rbx=source.value(), rsi=source.value(), rdi=source.value())


def protected_mode(rig: Rig, source: Source, code: bytes) -> None:
    """32-bit code without paging."""
    general = {name: source.value() & 0xFFFFFFFF for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")}
    rig.protected(code, _handlers(_SKIP32, _SKIP32_CODE), **general)


def virtual_8086(rig: Rig, source: Source, code: bytes) -> None:
    """VM86 code under a protected-mode monitor, which skips a byte at each fault."""
    general = {name: source.value() & 0xFFFF for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")}
    segment = (0, 0, 0xFFFF, 0xF300)
    segments = dict.fromkeys(("ds", "es", "fs", "gs", "ss", "cs"), segment)
    flags = 0x20202 | source.random.choice((0, 0x3000))
    cr4 = source.random.choice((0, 1, 0x201))
    rig.protected(code, _handlers(_SKIP32, _SKIP32_CODE), **{**general, **segments, "rflags": flags, "cr4": cr4})


def long_mode(rig: Rig, source: Source, code: bytes) -> None:
    """64-bit code, of ring 0 or 3."""
    general = {name: source.value() for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r12")}
    values: dict[str, object] = dict(general)
    if source.random.random() < 0.3:
        values |= {"cs": (0x23, 0, 0xFFFFFFFF, 0xA0FB00), "ss": (0x1B, 0, 0xFFFFFFFF, 0xC0F300)}
    if source.random.random() < 0.3:
        values["xcr0"] = source.random.choice((1, 3, 0x1B, 0x21B))
        values["cr4"] = 0x40620 | source.random.choice((0, 1 << 16, 1 << 20, 1 << 21, 1 << 22))
    rig.long(code, _handlers(_SKIP64, _SKIP64_CODE), **values)
    for _ in range(source.random.choice((0, 0, 0, 2))):  # spoil the page tables
        table = PAGE_TABLES + 0x1000 * source.random.randrange(4)
        rig.memory.write_u64(
            table + 8 * source.random.randrange(8), source.value() | source.random.choice((0, 1, 7, 0x87))
        )


def any_state(rig: Rig, source: Source, code: bytes) -> None:
    """A processor state as a hostile saved machine could hold it."""
    chance = source.random
    rig.long(code, _handlers(_SKIP64, _SKIP64_CODE))
    state = RegisterState.from_engine(rig.engine.get_state(0)).to_dict()
    for name, value in state.items():
        if chance.random() < 0.25:
            if isinstance(value, bytes):
                state[name] = chance.randbytes(len(value))
            elif isinstance(value, dict):
                state[name] = {key: source.value() & (1 << (64 if key == "base" else 32)) - 1 for key in value}
            elif isinstance(value, int) and not isinstance(value, bool) and name != "a20_mask":
                state[name] = value ^ source.value()
    try:
        record = RegisterState.from_dict(state)
        record.check()
        rig.engine.set_state(0, record.to_engine())
    except ValueError:
        pass  # refused, as it should be; the state before it runs


CASES: tuple[tuple[Callable[[Rig, Source, bytes], None], int], ...] = (
    (real_mode, 16),
    (protected_mode, 32),
    (virtual_8086, 16),
    (long_mode, 64),
    (any_state, 64),
)


class CaseError(Exception):
    """A case did not end as it should."""


def run_case(rig: Rig, seed: int, verbose: bool = False) -> str:
    """Run the case of a seed; return how it ended."""
    prepare, bits = CASES[seed % len(CASES)]
    source = Source(seed, bits)
    code = source.code()
    if verbose:
        print(f"{seed} {prepare.__name__} {code.hex()}", flush=True)
    rig.memory.write(0, bytes(0x20000))
    rig.devices.cr8 = 0
    rig.engine.set_a20(True)
    rig.engine.interrupt(0, False)
    rig.engine.reset_vcpu(1)
    prepare(rig, source, code)
    if source.random.random() < 0.3:  # a second processor does harm of its own, in real mode
        rig.real(Source(seed, 16).code(), at=SECOND_CODE, vcpu=1)
    run = rig.start()
    if not run.ended(CASE_SECONDS):
        rig.engine.interrupt(0, True)
        rig.engine.nmi(0)
        run.ended(CASE_SECONDS / 3)
        rig.engine.stop()
        if not run.ended(PATIENCE):
            raise CaseError(f"case {seed}: the engine does not stop")
    if run.error is not None:
        raise CaseError(f"case {seed}: {type(run.error).__name__}: {run.error}") from run.error
    return str(run.result)


def main() -> int:
    """Run cases for some seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1 << 60)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    devices = Devices()
    devices.noting = False
    devices.vector = lambda vcpu: 0x40
    devices.mmio_value = lambda gpa, size: (
        (0xFFFFFFFFFFFFFFFF if gpa >= RAM else gpa * 0x9E3779B97F4A7C15) & (1 << 8 * size) - 1
    )
    ends: dict[str, int] = {}
    end = time.monotonic() + arguments.seconds
    with Rig(2, devices=devices) as rig:
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            if time.monotonic() > end:
                break
            try:
                result = run_case(rig, seed, arguments.verbose)
            except CaseError as error:
                print(error)
                return 1
            ends[result] = ends.get(result, 0) + 1
            if arguments.verbose:
                print(f"    {result}", flush=True)
    print(f"{sum(ends.values())} cases: {ends}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
