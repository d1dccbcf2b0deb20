"""The set of vCPUs: their thread, and what connects guest code with memory, ports and local APICs."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvm.cpu.cpuid import Topology, build_model
from pyvm.cpu.vcpu import APIC_PAGE, TSC_HZ, CpuEvents, VcpuSet, apic_ids
from pyvm.memory import GuestMemory, IoSpace, pc_ram_blocks
from pyvm.state import StateError

SIZE = 4 << 20
FLAT_CODE = (8, 0, 0xFFFFFFFF, 0xC09B00)
FLAT_DATA = (16, 0, 0xFFFFFFFF, 0xC09300)
SECONDS = 60


class Apic:
    """A local APIC that notes what it is asked."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.log: list[tuple[Any, ...]] = []
        self.apic_base = APIC_PAGE | 0x900
        self.vector: int | None = None

    def acknowledge(self) -> int | None:
        self.log.append(("ack",))
        return self.vector

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return 0x10 + self.index

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size, value))

    def write_apic_base(self, value: int) -> bool:
        self.log.append(("base", value))
        return value != 0

    def read_tsc_deadline(self) -> int:
        return 77

    def write_tsc_deadline(self, value: int) -> None:
        self.log.append(("deadline", value))

    def msr_read(self, index: int) -> int | None:
        return 5 if index == 0x802 else None

    def msr_write(self, index: int, value: int) -> bool:
        self.log.append(("msr", index, value))
        return index == 0x80B

    def read_cr8(self) -> int:
        return 3

    def write_cr8(self, value: int) -> None:
        self.log.append(("cr8", value))


class Machine:
    """vCPUs with memory and ports, and no devices but those of a test."""

    def __init__(self, count: int = 1) -> None:
        self.lock = threading.RLock()
        self.memory = GuestMemory(SIZE, pc_ram_blocks(SIZE))
        self.ports, self.mmio = IoSpace("I/O"), IoSpace("memory")
        self.triple_faults = 0
        self.failures: list[BaseException] = []
        self.happened = threading.Event()
        self.output: list[tuple[int, int]] = []
        self.locked: list[bool] = []
        topology = Topology(count)
        self.cpus = VcpuSet(
            count,
            build_model("max", topology),
            topology,
            lock=self.lock,
            memory=self.memory,
            mmio=self.mmio,
            ports=self.ports,
            events=CpuEvents(self._triple_fault, self._failed),
        )
        self.apics = [Apic(index) for index in range(count)]
        self.cpus.attach_lapics(self.apics)  # type: ignore[arg-type]
        self.ports.add(0x80, 8, lambda offset, size: 0xA5, self._out, "test")

    def _out(self, offset: int, size: int, value: int) -> None:
        self.locked.append(self.lock._is_owned())  # type: ignore[attr-defined]
        self.output.append((offset, value))
        if offset == 4:
            self.cpus.stop_soon()
            self.happened.set()

    def _triple_fault(self) -> None:
        self.triple_faults += 1
        self.cpus.stop_soon()
        self.happened.set()

    def _failed(self, error: BaseException) -> None:
        self.failures.append(error)
        self.cpus.stop_soon()
        self.happened.set()

    def load(self, code: str, index: int = 0, at: int = 0x8000, **values: Any) -> None:
        self.memory.write(at, bytes.fromhex(code))
        registers = dict.fromkeys(("ds", "es", "ss"), FLAT_DATA) | {"cs": FLAT_CODE, "cr0": 0x11, "rip": at}
        self.cpus.set_registers(index, {**registers, **values})

    def run(self, code: str, **values: Any) -> None:
        """Run 32-bit code until it writes to port 0x84, fails or faults."""
        self.load(code, **values)
        self.happened.clear()
        with self.lock:
            self.cpus.start(0)
        assert self.happened.wait(SECONDS)
        with self.lock:
            self.cpus.stop()

    def close(self) -> None:
        self.cpus.release()
        self.memory.close()


@pytest.fixture
def machine():
    machine = Machine()
    yield machine
    machine.close()


DONE = "e684 ebfe"


def test_ports_and_memory_reach_devices_with_the_lock_held(machine: Machine) -> None:
    accesses: list[tuple[int, int, int | None]] = []
    machine.mmio.add(
        0xFEB00000,
        0x1000,
        lambda offset, size: accesses.append((offset, size, None)) or 0x1234,
        lambda offset, size, value: accesses.append((offset, size, value)),
        "test",
    )
    # in al, 0x81; out 0x80, al; mov eax, [0xfeb00010]; mov [0xfeb00020], eax
    machine.run("e481 e680 a11000b0fe a32000b0fe " + DONE)
    assert machine.output[0] == (0, 0xA5)
    assert accesses == [(0x10, 4, None), (0x20, 4, 0x1234)]
    assert all(machine.locked)


def test_unassigned_ports_and_addresses_read_all_ones(machine: Machine) -> None:
    # in eax, 0x70; mov ebx, eax; mov ecx, [0xd0000000]; mov [0xd0000000], ecx; out 0x70, eax
    machine.run("e570 89c3 8b0d000000d0 890d000000d0 e770 " + DONE)
    gpr = machine.cpus.registers(0)["gpr"]
    assert gpr[24:28] == gpr[8:12] == b"\xff\xff\xff\xff"


def test_the_local_apic_of_the_vcpu_that_asks(machine: Machine) -> None:
    # mov eax, [0xfee00020]; mov [0xfee000b0], ecx; then MSRs 0x1b, 0x6e0, 0x802 and 0x80b by rdmsr, wrmsr
    code = "a12000e0fe 890db000e0fe b91b000000 0f32 89c3 0f30 b9e0060000 0f30 0f32 89c6 "
    machine.run(code + "b902080000 0f32 89c7 b90b080000 0f30 " + DONE)
    log = machine.apics[0].log
    assert log[:2] == [("read", 0x20, 4), ("write", 0xB0, 4, 0)]
    assert log[2] == ("base", APIC_PAGE | 0x900)
    assert log[3][0] == "deadline"
    assert log[4][:2] == ("msr", 0x80B)
    gpr = machine.cpus.registers(0)["gpr"]
    assert int.from_bytes(gpr[24:32], "little") == APIC_PAGE | 0x900
    assert (gpr[48], gpr[56]) == (77, 5)


def test_each_vcpu_has_its_own_local_apic() -> None:
    machine = Machine(2)
    try:
        # mov eax, [0xfee00020]; mov [...], eax; the first waits until the second has
        machine.load("a12000e0fe a304a00000 ebfe", index=1, at=0x9000, activity="running")
        machine.run("a12000e0fe a300a00000 833d04a0000000 74f7 " + DONE)
        assert (machine.memory.read_u32(0xA000), machine.memory.read_u32(0xA004)) == (0x10, 0x11)
    finally:
        machine.close()


def test_interrupts_by_the_port_of_a_local_apic(machine: Machine) -> None:
    port = machine.cpus.port(0)
    machine.apics[0].vector = 0x30
    handler = 0x9000
    machine.memory.write(handler, bytes.fromhex(DONE))
    machine.memory.write(0x500, bytes(8) + 0x00CF9B000000FFFF.to_bytes(8, "little"))
    machine.memory.write(0x1000 + 8 * 0x30, (handler | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little"))
    machine.load("fb f4 ebfe", rsp=0, rflags=2, gdt=(0, 0x500, 15, 0), idt=(0, 0x1000, 0x7FF, 0))
    state = machine.cpus.registers(0)
    machine.cpus.set_registers(0, {"gpr": state["gpr"][:32] + (0x7000).to_bytes(8, "little") + state["gpr"][40:]})
    with machine.lock:
        machine.cpus.start(0)
    while not machine.cpus.counters()["halt"]:
        time.sleep(0.001)
    port.vectors.extint = True  # so that the local APIC is asked which
    port.vectors.update()
    assert machine.happened.wait(SECONDS)
    assert ("ack",) in machine.apics[0].log
    port.vectors.extint = False
    port.vectors.update()


def test_a_triple_fault_is_reported_and_the_machine_can_be_reset(machine: Machine) -> None:
    machine.run("0f0b", idt=(0, 0, 0, 0))
    assert machine.triple_faults == 1
    machine.cpus.reset()
    machine.run(DONE)
    assert machine.output == [(4, 0)]


def test_an_error_of_a_device_is_reported(machine: Machine) -> None:
    def broken(offset: int, size: int) -> int:
        raise ZeroDivisionError("device")

    machine.ports.add(0x100, 1, broken, lambda offset, size, value: None, "broken")
    machine.run("66ba0001 ec ebfe")
    assert [type(error) for error in machine.failures] == [ZeroDivisionError]
    machine.run(DONE)
    assert [offset for offset, _ in machine.output] == [4]


def test_stopping_and_going_on_many_times(machine: Machine) -> None:
    """The program counts; no stop or start is lost, and nothing is counted while stopped."""
    machine.load("ff0500a00000 ebf8")
    before = 0
    for _ in range(50):
        with machine.lock:
            machine.cpus.start(0)
        while machine.memory.read_u32(0xA000) == before:
            time.sleep(0)
        with machine.lock:
            machine.cpus.stop()
            before = machine.memory.read_u32(0xA000)
        assert machine.memory.read_u32(0xA000) == before


def test_a_stop_before_the_thread_has_begun(machine: Machine) -> None:
    machine.load("ebfe")
    with machine.lock:
        machine.cpus.start(0)
        machine.cpus.stop_soon()
        machine.cpus.stop()
    machine.run(DONE)
    assert machine.output == [(4, 0)]


def test_a_stop_without_a_run_does_not_hold_up_the_next_start(machine: Machine) -> None:
    with machine.lock:
        machine.cpus.stop_soon()
    machine.run(DONE)
    assert machine.output == [(4, 0)]


def test_the_thread_is_the_same_in_all_runs(machine: Machine) -> None:
    assert machine.cpus.thread_id == threading.get_native_id()
    machine.run(DONE)
    first = machine.cpus.thread_id
    assert first != threading.get_native_id()
    machine.run(DONE)
    assert machine.cpus.thread_id == first
    assert machine.cpus.current == 0


def test_guest_time_is_what_start_says(machine: Machine) -> None:
    offset = 10**15 - time.monotonic_ns()
    machine.load("0f31 " + DONE)
    with machine.lock:
        machine.cpus.start(offset)
    assert machine.happened.wait(SECONDS)
    with machine.lock:
        machine.cpus.stop()
    gpr = machine.cpus.registers(0)["gpr"]
    tsc = int.from_bytes(gpr[0:4], "little") | int.from_bytes(gpr[16:20], "little") << 32
    assert TSC_HZ == 10**9
    assert 10**15 <= tsc < 10**15 + 2 * SECONDS * 10**9


def test_saving_and_loading() -> None:
    first, second = Machine(2), Machine(2)
    try:
        first.load("b878563412 ebfe", index=1, at=0x9000, activity="halted")
        first.run("bb11223344 " + DONE)
        states = first.cpus.save()
        assert [state.activity for state in states] == ["running", "halted"]
        second.cpus.load([type(state).from_dict(state.to_dict()) for state in states])
        assert second.cpus.save() == states
        second.memory.write(0x8000, first.memory.read(0x8000, 64))
        states[1].cr0 = 1 << 31
        with pytest.raises(StateError):
            second.cpus.load(states)
        assert second.cpus.save()[0] == states[0]
    finally:
        first.close()
        second.close()


def test_a20_and_shared_registers(machine: Machine) -> None:
    machine.cpus.set_a20(False)
    assert machine.cpus.registers(0)["a20_mask"] == 0xFFEFFFFF
    machine.cpus.set_shared_msr(0x2FF, 0xC06)
    machine.run("b9ff020000 0f32 a200a00000 " + DONE)
    assert machine.memory.read(0xA000, 1) == b"\x06"


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3))
def test_apic_ids(sockets: int, cores: int, threads: int) -> None:
    topology = Topology(sockets, cores, threads)
    ids = apic_ids(sockets * cores * threads, topology)
    assert ids[0] == 0
    assert ids == sorted(set(ids))
    if cores & cores - 1 == 0 and threads & threads - 1 == 0:
        assert ids == list(range(len(ids)))
