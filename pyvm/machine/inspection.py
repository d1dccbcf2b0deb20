"""What a machine tells of itself to those who look at it through a monitor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from pyvm.monitor.machine import VcpuInfo

if TYPE_CHECKING:
    from pyvm.chardev.registry import ChardevInfo, ChardevSet
    from pyvm.config import MachineConfig
    from pyvm.cpu.registers import RegisterState
    from pyvm.cpu.vcpu import VcpuSet
    from pyvm.machine.board import Board
    from pyvm.machine.debugger import Debugger
    from pyvm.machine.dump.dumper import Dumper
    from pyvm.machine.gdb import GdbStub
    from pyvm.machine.model import MachineModel
    from pyvm.machine.network import Network
    from pyvm.machine.pc import Pc
    from pyvm.machine.storage import Storage
    from pyvm.memory import GuestMemory
    from pyvm.monitor.dispatcher import Dispatcher
    from pyvm.monitor.events import EventBus
    from pyvm.monitor.hmp.arguments import Format


class Inspection(ABC):
    """The part of a machine that is looked at; what few ask for is made when somebody does."""

    config: MachineConfig
    cpus: VcpuSet
    events: EventBus
    chardev_set: ChardevSet
    model: MachineModel
    memory: GuestMemory
    network: Network
    board: Board
    storage: Storage

    @property
    def _pc(self) -> Pc:
        """This part as the whole that it is a part of."""
        return cast("Pc", self)

    @abstractmethod
    def _give_back(self, action: Callable[[], None]) -> None:
        """Have `action` called, with the lock held, when the machine is closed."""

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """What carries out the commands of all monitors; made with the first one."""
        from pyvm.monitor.dispatcher import Dispatcher

        return Dispatcher(self._pc, self._pc.mainloop.loop.create_task, traces=self._pc.traces)

    @cached_property
    def shown_format(self) -> Format:
        """How a person last had memory shown."""
        from pyvm.monitor.hmp.arguments import Format

        return Format()

    @cached_property
    def debugger(self) -> Debugger:
        """What a debugger may do; made when one comes, or guest code stops for one."""
        from pyvm.machine.debugger import Debugger

        return Debugger(self._pc)

    @cached_property
    def gdb(self) -> GdbStub:
        """The stub for GDB; made when somebody first asks for it."""
        from pyvm.machine.gdb import GdbStub

        stub = GdbStub(self._pc)
        self._give_back(stub.close)
        return stub

    @cached_property
    def dumper(self) -> Dumper:
        """What dumps the guest's memory; made when somebody first asks for it."""
        from pyvm.machine.dump.dumper import Dumper

        dumper = Dumper(self._pc, self.events.emit)
        self._give_back(dumper.close)
        return dumper

    @property
    def dump_in_progress(self) -> bool:
        """Whether the guest's memory is being dumped."""
        return "dumper" in vars(self) and self.dumper.active

    def register_states(self) -> list[RegisterState]:
        """Return the registers of all vCPUs; a guest that runs is held up for a moment."""
        if self.config.board.type == "none":
            return []
        with self.cpus.paused():
            return self.cpus.save()

    def vcpus(self) -> Sequence[VcpuInfo]:
        """Return the vCPUs in the order of their index."""
        model = self.model
        infos: list[VcpuInfo] = []
        if self.config.board.type == "none":
            return infos
        for index in self.cpus.present:
            infos.append(VcpuInfo(index, model.cpu_path(index), self.cpus.thread_id, model.cpu_place(index)))
        return infos

    def chardevs(self) -> Sequence[ChardevInfo]:
        """Return the character devices."""
        return self.chardev_set.query()
