"""Virtio SCSI host device (virtio 1.2, section 5.6): a host bus adapter with a bus of logical units.

Queues: 0 control (task management), 1 events, then request queues.  A request is a LUN, a tag and a CDB, data either
way, and a response with status and sense data.  Requests are carried out by the units while the guest goes on, and
end in any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pyvm.block.vectors import behind
from pyvm.devices.properties import Properties, Property
from pyvm.devices.scsi import sense as s
from pyvm.devices.scsi.bus import AbsentUnit, Address, ScsiBus
from pyvm.devices.scsi.constants import TYPE_ROM
from pyvm.devices.scsi.sense import Sense
from pyvm.devices.scsi.target import Direction, ScsiCommand, ScsiResult, ScsiTarget
from pyvm.devices.virtio import scsi_records as r
from pyvm.devices.virtio.constants import ID_SCSI, MAX_QUEUE_SIZE, MAX_QUEUES, STATUS_DRIVER_OK
from pyvm.devices.virtio.device import VirtioDevice, VirtioState
from pyvm.devices.virtio.queue import ChainState, VirtQueue, check_chains
from pyvm.devices.virtio.ring import Chain
from pyvm.state import flag, integer, record, sequence

_FIXED_SEG_MAX = 126
_CONTROL_LIMIT = r.TMF.size
_REQUESTS_LIMIT = MAX_QUEUES * MAX_QUEUE_SIZE
_ONE_QUEUE_PER_CPU = 0xFFFFFFFF


def keywords(values: Mapping[str, Any], *, cpus: int) -> dict[str, Any]:
    """Return the keywords of :class:`VirtioScsi` for property values, in a machine with `cpus` vCPUs."""
    options = {name: values[name] for name in VirtioScsi.PROPERTIES if name != "iothread"}
    if options["num_queues"] == _ONE_QUEUE_PER_CPU:
        options["num_queues"] = min(cpus, MAX_QUEUES - r.FIXED_QUEUES)
    return options


class ScsiHostState(VirtioState):
    """Migratable state; `requests` are those in flight, task management last.  The units have records of their own."""

    sense_size: int = integer(0, r.MAX_SENSE_SIZE, r.DEFAULT_SENSE_SIZE)
    cdb_size: int = integer(0, r.MAX_CDB_SIZE, r.DEFAULT_CDB_SIZE)
    events_dropped: bool = flag()
    requests: list[ChainState] = sequence(record(ChainState), _REQUESTS_LIMIT)


class _Request:
    """A command on its way."""

    __slots__ = ("chain", "queue", "response", "room", "room_in", "size", "tag", "unit", "waiting")

    def __init__(self, queue: VirtQueue, chain: Chain) -> None:
        self.queue = queue
        self.chain = chain
        self.tag = 0
        self.unit: ScsiTarget | AbsentUnit | None = None
        self.response = r.S_OK
        """What the driver is told in place of the result, where the command was aborted meanwhile."""
        self.size = 0
        """Bytes of the response."""
        self.room = 0
        """Bytes of data either way, as the driver has it."""
        self.room_in = 0
        self.waiting: list[_TaskManagement] = []


class _TaskManagement:
    """A task management function that ends when the commands that it aborted have ended."""

    __slots__ = ("chain", "left", "queue")

    def __init__(self, queue: VirtQueue, chain: Chain) -> None:
        self.queue = queue
        self.chain = chain
        self.left = 0


class VirtioScsi(VirtioDevice[ScsiHostState]):
    """A host bus adapter; the keywords are QEMU's properties.  Raises ValueError for impossible ones."""

    device_id = ID_SCSI
    name = "virtio-scsi"
    state_type = ScsiHostState
    PROPERTIES: ClassVar[Properties] = {
        "num_queues": Property("uint32", _ONE_QUEUE_PER_CPU, "request queues; 4294967295: one for each vCPU"),
        "virtqueue_size": Property("uint32", 256, "entries of each queue, a power of two"),
        "seg_max_adjust": Property("bool", True, "let the longest request follow the size of the queue"),
        "max_sectors": Property("uint32", 0xFFFF, "longest transfer that the driver should ask for, in sectors"),
        "cmd_per_lun": Property("uint32", 128, "most commands at a time that the driver should give a unit"),
        "hotplug": Property("bool", True, "tell the driver of units that come and go"),
        "param_change": Property("bool", True, "tell the driver of changed parameters"),
        "iothread": Property("link<iothread>", None, "ID of the iothread object that carries out the requests"),
    }

    def __init__(
        self,
        *,
        num_queues: int = 1,
        virtqueue_size: int = 256,
        seg_max_adjust: bool = True,
        max_sectors: int = 0xFFFF,
        cmd_per_lun: int = 128,
        hotplug: bool = True,
        param_change: bool = True,
        bus_name: str = "",
    ) -> None:
        limit = MAX_QUEUES - r.FIXED_QUEUES
        if not 0 < num_queues <= limit:
            raise ValueError(
                f"Invalid number of queues (= {num_queues}), must be a positive integer less than {limit}."
            )
        if virtqueue_size <= 2 or virtqueue_size > MAX_QUEUE_SIZE or virtqueue_size & (virtqueue_size - 1):
            raise ValueError(
                f"invalid virtqueue_size property (= {virtqueue_size}), must be a power of 2 between 4 and 1024"
            )
        features = (r.F_HOTPLUG if hotplug else 0) | (r.F_CHANGE if param_change else 0)
        super().__init__([virtqueue_size] * (num_queues + r.FIXED_QUEUES), features, r.CONFIG.size)
        self.bus = ScsiBus(bus_name)
        self.bus.on_plugged = self._plugged
        self.bus.on_unplugged = self._unplugged
        self.bus.on_change = self._unit_changed
        self._seg_max = virtqueue_size - 2 if seg_max_adjust else _FIXED_SEG_MAX
        self._max_sectors = max_sectors
        self._cmd_per_lun = cmd_per_lun
        self._sense_size = r.DEFAULT_SENSE_SIZE
        self._cdb_size = r.DEFAULT_CDB_SIZE
        self._events_dropped = False
        self._in_flight: dict[_Request, None] = {}
        self._tasks: dict[_TaskManagement, None] = {}
        self._waiting: list[tuple[VirtQueue, Chain]] = []
        """What a loaded state had in flight, to be carried out when the device runs."""
        self._submitting = False
        self._ended: set[VirtQueue] = set()

    # Queues

    def handle_queue(self, queue: VirtQueue) -> None:
        """Take what the driver made available."""
        if queue.index == r.EVENT_QUEUE:
            if self._events_dropped:
                self._send_event(r.NO_EVENT, bytes(8), 0)
            return
        self._submitting = True
        try:
            if self._waiting:
                self._restart()
            while (chain := queue.pop()) is not None:
                if not self._take(queue, chain):
                    break
        finally:
            self._submitting = False
        self._flush_ended()

    def _restart(self) -> None:
        waiting, self._waiting = self._waiting, []
        for queue, chain in waiting:
            if not self._take(queue, chain):
                return

    def _flush_ended(self) -> None:
        ended, self._ended = self._ended, set()
        for queue in ended:
            queue.flush()

    def _take(self, queue: VirtQueue, chain: Chain) -> bool:
        """Start one request; return False where it is none, which breaks the device."""
        if queue.index == r.CONTROL_QUEUE:
            return self._control(queue, chain)
        request = _Request(queue, chain)
        header = r.COMMAND.size + self._cdb_size
        request.size = r.RESPONSE.size + self._sense_size
        out_bytes, in_bytes = chain.readable_bytes - header, chain.writable_bytes - request.size
        if out_bytes < 0 or in_bytes < 0:
            self.fail("wrong size for virtio-scsi headers")
            return False
        request.room, request.room_in = out_bytes + in_bytes, in_bytes
        self._in_flight[request] = None
        self._start(request, chain.gather(header), out_bytes)
        return True

    def _start(self, request: _Request, header: bytes, out_bytes: int) -> None:
        """Hand a command to its unit, if there is one and the data has room."""
        lun, request.tag, _, _, _ = r.COMMAND.unpack_from(header)
        if out_bytes and request.room_in:
            self._answer(request, r.S_FAILURE)  # VIRTIO_SCSI_F_INOUT is not offered
            return
        place = r.lun_address(lun)
        unit = self.bus.find(0, *place) if place is not None else None
        if unit is None:
            self._answer(request, r.S_BAD_TARGET)
            return
        request.unit = unit
        cdb = header[r.COMMAND.size :]
        direction, length = unit.demand(cdb)
        if length > (request.room_in if direction is Direction.IN else out_bytes):
            self._answer(request, r.S_OVERRUN)
            return
        chain = request.chain
        data_in = behind(chain.writable, request.size) if request.room_in else ()
        data_out = behind(chain.readable, len(header)) if out_bytes else ()
        unit.execute(ScsiCommand(cdb, data_in, data_out, lambda result: self._done(request, result)))

    def _done(self, request: _Request, result: ScsiResult) -> None:
        """A unit is done with a command."""
        if request.response != r.S_OK:
            self._answer(request, request.response)
            return
        sense = result.sense[: self._sense_size]
        residual = max(request.room - result.transferred, 0)
        header = r.RESPONSE.pack(len(sense), residual, 0, result.status, r.S_OK)
        self._end(request, header + sense, result.transferred if request.room_in and not sense else request.room_in)

    def _answer(self, request: _Request, response: int) -> None:
        """End a request that has no status."""
        self._end(request, r.RESPONSE.pack(0, request.room, 0, 0, response), request.room_in)

    def _end(self, request: _Request, response: bytes, data: int) -> None:
        """Give the request back, unless it was forgotten by a reset.  `data` is how much may have been written."""
        if request not in self._in_flight:
            return
        del self._in_flight[request]
        chain = request.chain
        chain.scatter(response)
        self._push(request.queue, chain, request.size + data)
        for task in request.waiting:
            task.left -= 1
            if not task.left:
                self._task_done(task, r.S_FUNCTION_COMPLETE)

    def _push(self, queue: VirtQueue, chain: Chain, written: int) -> None:
        queue.push(chain, written)
        if self._submitting:
            self._ended.add(queue)
        else:
            queue.flush()

    # Task management

    def _control(self, queue: VirtQueue, chain: Chain) -> bool:
        """Carry out a control request; return False where it is none, which breaks the device."""
        data = chain.gather(_CONTROL_LIMIT)
        kind = r.CONTROL_TYPE.unpack_from(data)[0] if len(data) >= r.CONTROL_TYPE.size else None
        if kind == r.T_TMF:
            if len(data) < r.TMF.size or chain.writable_bytes < r.TMF_RESPONSE.size:
                self.fail("wrong size for virtio-scsi headers")
                return False
            task = _TaskManagement(queue, chain)
            self._tasks[task] = None
            response = self._manage(task, *r.TMF.unpack(data)[1:])
            if response is not None:
                self._task_done(task, response)
        elif kind in (r.T_AN_QUERY, r.T_AN_SUBSCRIBE):
            if len(data) < r.AN.size or chain.writable_bytes < r.AN_RESPONSE.size:
                self.fail("wrong size for virtio-scsi headers")
                return False
            # No unit has asynchronous notifications: none of the events asked for.
            self._push(queue, chain, chain.scatter(r.AN_RESPONSE.pack(0, r.S_OK)))
        else:
            # There is nothing in the chain that could tell the driver.
            self._push(queue, chain, 0)
        return True

    def _task_done(self, task: _TaskManagement, response: int) -> None:
        if task in self._tasks:
            del self._tasks[task]
            self._push(task.queue, task.chain, task.chain.scatter(r.TMF_RESPONSE.pack(response)))

    def _manage(self, task: _TaskManagement, function: int, lun: bytes, tag: int) -> int | None:
        """Do what a task management function asks; return its response, None where that comes later."""
        place = r.lun_address(lun)
        if function == r.TMF_I_T_NEXUS_RESET:
            units = self.bus.of_target(0, place[0]) if place is not None else []
            if not units:
                return r.S_BAD_TARGET
            for unit in units:
                self._reset_unit(unit)
            return r.S_FUNCTION_COMPLETE
        if function not in _OF_A_UNIT:
            return r.S_FUNCTION_REJECTED
        found = self.bus.find(0, *place) if place is not None else None
        if found is None:
            return r.S_BAD_TARGET
        if isinstance(found, AbsentUnit):
            return r.S_INCORRECT_LUN
        if function == r.TMF_LOGICAL_UNIT_RESET:
            self._reset_unit(found)
            return r.S_FUNCTION_COMPLETE
        chosen = [
            request
            for request in self._in_flight
            if request.unit is found and (function not in _OF_A_TASK or request.tag == tag)
        ]
        if function in (r.TMF_QUERY_TASK, r.TMF_QUERY_TASK_SET):
            return r.S_FUNCTION_SUCCEEDED if chosen else r.S_FUNCTION_COMPLETE
        return self._abort(task, chosen)

    @staticmethod
    def _abort(task: _TaskManagement, requests: Sequence[_Request]) -> int | None:
        """Let `requests` end as aborted: what the back end has cannot be taken back, so this is when it is done."""
        for request in requests:
            request.response = r.S_ABORTED
            request.waiting.append(task)
        task.left = len(requests)
        return None if requests else r.S_FUNCTION_COMPLETE

    def _reset_unit(self, unit: ScsiTarget) -> None:
        for request in self._in_flight:
            if request.unit is unit:
                request.response = r.S_RESET
        unit.reset()

    # Events

    def _send_event(self, event: int, lun: bytes, reason: int) -> None:
        """Tell the driver of an event, or as soon as it gives a buffer that one was missed."""
        if not self.status & STATUS_DRIVER_OK or not self.running:
            return
        queue = self.queues[r.EVENT_QUEUE]
        chain = queue.pop()
        if chain is None:
            self._events_dropped = True
            return
        if self._events_dropped:
            event |= r.EVENTS_MISSED
            self._events_dropped = False
        if chain.readable_bytes or chain.writable_bytes < r.EVENT.size:
            self.fail("wrong size for virtio-scsi headers")
            return
        queue.push(chain, chain.scatter(r.EVENT.pack(event, lun, reason)))
        queue.flush()

    def _plugged(self, address: Address) -> None:
        if self.has(r.F_HOTPLUG):
            self._send_event(r.TRANSPORT_RESET, r.event_lun(address.target, address.lun), r.RESET_RESCAN)
            self.bus.unit_attention(s.LUNS_CHANGED)

    def _unplugged(self, address: Address) -> None:
        if self.has(r.F_HOTPLUG):
            self._send_event(r.TRANSPORT_RESET, r.event_lun(address.target, address.lun), r.RESET_REMOVED)
            self.bus.unit_attention(s.LUNS_CHANGED)

    def _unit_changed(self, address: Address, sense: Sense) -> None:
        if self.has(r.F_CHANGE) and self.bus.units[address].device_type != TYPE_ROM:
            reason = sense.asc | sense.ascq << 8
            self._send_event(r.PARAM_CHANGE, r.event_lun(address.target, address.lun), reason)

    # Configuration and life

    def config(self) -> bytes:
        """Return the configuration space."""
        return r.CONFIG.pack(
            len(self.queues) - r.FIXED_QUEUES,
            self._seg_max,
            self._max_sectors,
            self._cmd_per_lun,
            r.EVENT.size,
            self._sense_size,
            self._cdb_size,
            self.bus.max_channel,
            self.bus.max_target,
            self.bus.max_lun,
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """Let the driver choose how long CDBs and sense data are; legacy drivers write bytes."""
        image = bytearray(self.config())
        image[offset : offset + len(data)] = data
        fields = r.CONFIG.unpack(image)
        sense_size, cdb_size = fields[5], fields[6]
        if sense_size > r.MAX_SENSE_SIZE or cdb_size > r.MAX_CDB_SIZE:
            self.fail("bad data written to virtio-scsi configuration space")
            return
        self._sense_size, self._cdb_size = sense_size, cdb_size

    def resume(self) -> None:
        """Go on after :meth:`pause`, or with a loaded state."""
        super().resume()
        if self._waiting and self.running:
            for queue in self.queues:
                self.handle_queue(queue)

    def _drain(self) -> None:
        for unit in self.bus.units.values():
            unit.backend.drain(cancel=True)

    def _forget(self) -> None:
        self._in_flight.clear()
        self._tasks.clear()
        self._waiting.clear()

    def reset(self) -> None:
        """Return to the state after power-on, with all units on the bus."""
        super().reset()
        self.bus.reset()

    def reset_device(self) -> None:
        """Forget all requests; units, which have states of their own, keep them."""
        self._forget()
        self._drain()
        self._sense_size = r.DEFAULT_SENSE_SIZE
        self._cdb_size = r.DEFAULT_CDB_SIZE
        self._events_dropped = False

    def reset_queue(self, queue: VirtQueue) -> None:
        """Let requests end that came through `queue`, which is about to go away."""
        self._drain()
        self._waiting = [item for item in self._waiting if item[0] is not queue]

    # State

    def save_device(self) -> ScsiHostState:
        """Return the sizes that the driver chose, and the requests in flight."""
        held: list[tuple[VirtQueue, Chain]] = [(item.queue, item.chain) for item in self._in_flight]
        held += [(item.queue, item.chain) for item in self._tasks]
        held += self._waiting
        return ScsiHostState(
            sense_size=self._sense_size,
            cdb_size=self._cdb_size,
            events_dropped=self._events_dropped,
            requests=[queue.save_chain(chain) for queue, chain in held if queue.ready],
        )

    def check_device(self, state: ScsiHostState) -> None:
        """Verify that the requests in flight are those that the rings say."""
        check_chains(state.queues, state.features, state.requests)

    def load_device(self, state: ScsiHostState) -> None:
        """Take over sizes and requests, which wait for :meth:`resume`."""
        self._sense_size = state.sense_size
        self._cdb_size = state.cdb_size
        self._events_dropped = state.events_dropped
        for saved in state.requests:
            queue = self.queues[saved.queue]
            self._waiting.append((queue, queue.load_chain(saved)))


_OF_A_TASK = frozenset({r.TMF_ABORT_TASK, r.TMF_QUERY_TASK})
_OF_A_UNIT = _OF_A_TASK | {
    r.TMF_ABORT_TASK_SET,
    r.TMF_CLEAR_TASK_SET,
    r.TMF_LOGICAL_UNIT_RESET,
    r.TMF_QUERY_TASK_SET,
}
