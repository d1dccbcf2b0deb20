"""What a machine consists of beside its hardware: users' objects, the tree of all objects, and what comes and goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pyvm.config import MAIN_MEMORY
from pyvm.errors import ConfigError
from pyvm.machine.descriptions import Descriptions
from pyvm.machine.memory_backends import JoinedMemory, MemoryBackend
from pyvm.machine.numa import Numa
from pyvm.machine.plug.hotplug import Hotplug
from pyvm.machine.plug.sockets import Sockets, memory_room
from pyvm.machine.texts import Texts
from pyvm.machine.user_objects import ObjectHost, UserObjects
from pyvm.memory import GuestMemory, pc_ram_blocks
from pyvm.monitor.errors import QmpError

if TYPE_CHECKING:
    from pyvm.config import NumaConfig, ObjectConfig
    from pyvm.machine.dirty_rate import DirtyRate
    from pyvm.machine.pc import Pc
    from pyvm.machine.plug.memory_window import MemoryWindow
    from pyvm.machine.storage import Storage
    from pyvm.migration.fork_ram import LayeredRam, Layers

STORED = ("iothread", "throttle-group", "secret")
"""Types of objects that the storage has; it makes those of the command line itself."""


class MachineModel(Descriptions, Texts):
    """The parts of one machine that monitors can look at, make and take away."""

    def __init__(self, pc: Pc) -> None:
        super().__init__(pc)
        config = pc.config
        host = ObjectHost(chardevs=pc.chardev_set, storage=self._storage, default_threads=config.smp.cpus)
        host.clock = pc.clock
        host.netdev = lambda name: pc.network.clients.find_netdev(name)
        self.objects = UserObjects(host)
        self.numa = Numa(config)
        self.hotplug = Hotplug(pc)
        self._main: MemoryBackend | None = None
        """The RAM of a machine for which the user named no memory."""
        self.layered: LayeredRam | None = None
        """The RAM of a machine that was made of another one, or of which another one was made."""
        self.window: MemoryWindow | None = None
        """The RAM of a machine into which modules can be plugged, with the room for them."""

    @cached_property
    def sockets(self) -> Sockets:
        """The places for CPUs and memory modules; first looked at when the board is there."""
        return Sockets(self._pc)

    @cached_property
    def dirty_rate(self) -> DirtyRate:
        """What measures how fast the guest writes to its memory."""
        from pyvm.machine.dirty_rate import DirtyRate

        pc = self._pc
        return DirtyRate(lambda: pc.memory, pc.mainloop)

    def _storage(self) -> Storage | None:
        return getattr(self._pc, "storage", None)

    def close(self) -> None:
        """Let go what users' objects hold."""
        if self.window is not None:
            self.window.close()
        if self._main is not None and self.objects.find(MAIN_MEMORY) is not self._main:
            self._main.close()
        self.objects.close()
        if self.layered is not None:
            self.layered.close()

    # ---- Making the machine

    def create_objects(self, types: tuple[str, ...], *, wanted: bool) -> None:
        """Create the objects of the command line that are of these `types`, or all others.  Raises ConfigError."""
        for item in self._pc.config.objects:
            if (item.type in types) is wanted:
                self._create(item)

    def _create(self, item: ObjectConfig) -> None:
        try:
            self.objects.add(item.type, item.id, dict(item.properties))
        except QmpError as error:
            raise ConfigError(f"{item.origin}: {error}" if item.origin else str(error)) from None

    def make_memory(self) -> GuestMemory:
        """Return the guest's RAM: the memory backend that was named, or one made for it.  Raises ConfigError."""
        config = self._pc.config
        size, name = config.memory.size, config.board.memory_backend
        blocks = pc_ram_blocks(size)
        if self._pc.snapshot is not None:
            self.layered = self._pc.snapshot.ram(size)
            return self._with_room(self.layered)
        try:
            if config.board.type == "none":
                return GuestMemory(size, blocks)
            if name is None:
                self._main = MemoryBackend(self.objects.host, "memory-backend-ram", MAIN_MEMORY, {"size": size})
                return self._with_room(self._main, -1 if self._main.private else self._main.fd)
        except (OSError, OverflowError, ValueError, QmpError) as error:
            raise ConfigError(f"cannot set up guest memory: {error}") from None
        backend = self.objects.find(name)
        if not isinstance(backend, MemoryBackend):
            raise ConfigError(f"Memory backend '{name}' not found")
        if backend.values.get("readonly"):
            raise ConfigError(f"memory backend '{name}' cannot be written")
        backend.mapped = True
        return self._with_room(backend, -1 if backend.private else backend.fd)

    def _with_room(self, backing: MemoryBackend | LayeredRam, fd: int = -1) -> GuestMemory:
        """Return RAM with room for the modules that may be plugged in; holes may be punched in the file `fd`."""
        memory = self._pc.config.memory
        blocks = pc_ram_blocks(memory.size)
        room = memory_room(memory)
        if not room:
            return GuestMemory(memory.size, blocks, backing)
        from pyvm.machine.plug.memory_window import MemoryWindow

        try:
            self.window = MemoryWindow(backing, memory.size, room, fd)
            if self.layered is not None:
                self.window.join(self.layered)
        except (OSError, OverflowError, ValueError) as error:
            raise ConfigError(f"cannot set up guest memory: {error}") from None
        return GuestMemory(memory.size, blocks, self.window)

    @property
    def memory_fd(self) -> int:
        """The descriptor of the guest's RAM where it is anonymous memory of its own, else -1."""
        return -1 if self._main is None or self._main.private or self.layered is not None else self._main.fd

    def main_layers(self) -> Layers:
        """Return the RAM of a machine that is about to be forked as the lowest layer.  Raises OSError."""
        from pyvm.migration.fork_ram import Layers, copied

        memory = self._pc.memory
        if self.memory_fd >= 0 and not self.numa.has_memory:
            return Layers(memory.size, os.dup(self.memory_fd))
        return copied(memoryview(memory.mapping)[: memory.size])

    def rest_on(self, layered: LayeredRam) -> None:
        """Layers have taken the place of the guest's RAM, modules aside."""
        self.layered = layered
        if self.window is not None:
            self.window.join(layered)
        else:
            self._pc.memory.rest_on(layered)

    def settle_memory(self) -> None:
        """Give NUMA nodes their memory, and show what RAM consists of.  Raises ConfigError."""
        main = self._main
        if main is None and self.numa.has_memory:
            raise ConfigError("'-machine memory-backend' and '-numa memdev' properties are mutually exclusive")
        nodes = self.numa.complete(self.objects)
        if nodes:
            assert main is not None, "nodes have memory of their own"
            try:
                joined = JoinedMemory(nodes, self._pc.memory.mapping)
            except OSError as error:
                raise ConfigError(f"cannot set up guest memory: {error.strerror}") from None
            if self.window is not None:
                self.window.join(joined)
            else:
                self._pc.memory.rest_on(joined)
            for backend in nodes:
                backend.mapped = True
        elif main is not None:
            if self.objects.find(MAIN_MEMORY) is not None:
                raise ConfigError(
                    f"object name '{MAIN_MEMORY}' is reserved for the default RAM backend, it can't be used for any"
                    " other purposes. Change the object's 'id' to something else"
                )
            main.mapped = True
            self.objects.adopt(main)

    # ---- Life

    def before_reset(self) -> None:
        """The hardware is about to be reset: what was to be unplugged goes."""
        self.hotplug.finish()

    def before_run(self) -> None:
        """The guest is about to run: firmware has to know what was plugged in meanwhile."""
        self.hotplug.settle()

    # ---- While the machine waits to be made

    def describe_numa(self, options: Mapping[str, Any]) -> None:
        """Take in a NUMA description before the machine is made; raises QmpError."""
        self.numa.add(options["type"], options, self.objects)

    def describe_nodes(self, items: Iterable[NumaConfig]) -> None:
        """Take in the NUMA descriptions of the command line; raises ConfigError."""
        for item in items:
            try:
                self.describe_numa(item.options)
            except QmpError as error:
                raise ConfigError(f"{item.origin}: {error}" if item.origin else str(error)) from None

    def finish(self) -> str | None:
        """Make the machine that waits with `-preconfig`, and start it.

        A machine that cannot be made ends with exit status 1; what is wrong with it is returned.
        """
        pc = self._pc
        try:
            pc.complete()
        except ConfigError as error:
            print(f"pyvm: {error}", file=sys.stderr, flush=True)
            pc.lifecycle.exit_status = 1
            pc.lifecycle.end()
            return str(error)
        pc.begin()
        return None
