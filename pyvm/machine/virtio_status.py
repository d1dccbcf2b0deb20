"""What a virtio device and its queues are doing, as `x-query-virtio-status` and its like show it.

Names of features and status bits: virtio 1.2, sections 2.1, 5.2.3, 5.3.3, 5.5.3, 5.6.3 and 6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyvm.devices.virtio import constants as c
from pyvm.memory import GuestMemoryError
from pyvm.monitor.errors import QmpError

if TYPE_CHECKING:
    from pyvm.devices.virtio.pci import AnyVirtioDevice
    from pyvm.devices.virtio.queue import VirtQueue
    from pyvm.memory import GuestMemory

_TRANSPORT = (
    (29, "VIRTIO_RING_F_EVENT_IDX", "Used & avail. event fields enabled"),
    (28, "VIRTIO_RING_F_INDIRECT_DESC", "Indirect descriptors supported"),
    (34, "VIRTIO_F_RING_PACKED", "Device supports packed VQ layout"),
    (33, "VIRTIO_F_IOMMU_PLATFORM", "Device can be used on IOMMU platform"),
    (32, "VIRTIO_F_VERSION_1", "Device compliant for v1 spec (legacy)"),
    (27, "VIRTIO_F_ANY_LAYOUT", "Device accepts arbitrary desc. layouts"),
    (24, "VIRTIO_F_NOTIFY_ON_EMPTY", "Notify when device runs out of avail. descs. on VQ"),
)
_VHOST_USER = (30, "VHOST_USER_F_PROTOCOL_FEATURES", "Vhost-user protocol features negotiation supported")
"""A bit of servers outside, which the models offer that may be served there."""
_DEVICE: dict[int, tuple[tuple[int, str, str], ...]] = {
    c.ID_BLOCK: (
        _VHOST_USER,
        (11, "VIRTIO_BLK_F_CONFIG_WCE", "Cache writeback and writethrough modes supported"),
        (9, "VIRTIO_BLK_F_FLUSH", "Flush command supported"),
        (14, "VIRTIO_BLK_F_WRITE_ZEROES", "Write zeroes command supported"),
        (13, "VIRTIO_BLK_F_DISCARD", "Discard command supported"),
        (12, "VIRTIO_BLK_F_MQ", "Multiqueue supported"),
        (10, "VIRTIO_BLK_F_TOPOLOGY", "Topology information available"),
        (6, "VIRTIO_BLK_F_BLK_SIZE", "Block size of disk available"),
        (5, "VIRTIO_BLK_F_RO", "Device is read-only"),
        (4, "VIRTIO_BLK_F_GEOMETRY", "Legacy geometry available"),
        (2, "VIRTIO_BLK_F_SEG_MAX", "Max segments in a request is seg_max"),
        (1, "VIRTIO_BLK_F_SIZE_MAX", "Max segment size is size_max"),
    ),
    c.ID_NET: (
        (63, "VIRTIO_NET_F_SPEED_DUPLEX", "Device set linkspeed and duplex"),
        (23, "VIRTIO_NET_F_CTRL_MAC_ADDR", "MAC address set through control channel"),
        (22, "VIRTIO_NET_F_MQ", "Multiqueue with automatic receive steering supported"),
        (21, "VIRTIO_NET_F_GUEST_ANNOUNCE", "Driver sending gratuitous packets supported"),
        (20, "VIRTIO_NET_F_CTRL_RX_EXTRA", "Extra RX mode control supported"),
        (19, "VIRTIO_NET_F_CTRL_VLAN", "Control channel VLAN filtering supported"),
        (18, "VIRTIO_NET_F_CTRL_RX", "Control channel RX mode supported"),
        (17, "VIRTIO_NET_F_CTRL_VQ", "Control channel available"),
        (16, "VIRTIO_NET_F_STATUS", "Configuration status field available"),
        (15, "VIRTIO_NET_F_MRG_RXBUF", "Driver can merge receive buffers"),
        (14, "VIRTIO_NET_F_HOST_UFO", "Device can receive UFO"),
        (13, "VIRTIO_NET_F_HOST_ECN", "Device can receive TSO with ECN"),
        (12, "VIRTIO_NET_F_HOST_TSO6", "Device can receive TSOv6"),
        (11, "VIRTIO_NET_F_HOST_TSO4", "Device can receive TSOv4"),
        (10, "VIRTIO_NET_F_GUEST_UFO", "Driver can receive UFO"),
        (9, "VIRTIO_NET_F_GUEST_ECN", "Driver can receive TSO with ECN"),
        (8, "VIRTIO_NET_F_GUEST_TSO6", "Driver can receive TSOv6"),
        (7, "VIRTIO_NET_F_GUEST_TSO4", "Driver can receive TSOv4"),
        (6, "VIRTIO_NET_F_GSO", "Handling GSO-type packets supported"),
        (5, "VIRTIO_NET_F_MAC", "Device has given MAC address"),
        (3, "VIRTIO_NET_F_MTU", "Maximum MTU that the device has set"),
        (2, "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS", "Control channel offloading reconfiguration supported"),
        (1, "VIRTIO_NET_F_GUEST_CSUM", "Driver handling packets with partial checksum supported"),
        (0, "VIRTIO_NET_F_CSUM", "Device handling packets with partial checksum supported"),
    ),
    c.ID_CONSOLE: (
        (2, "VIRTIO_CONSOLE_F_EMERG_WRITE", "Emergency write supported"),
        (1, "VIRTIO_CONSOLE_F_MULTIPORT", "Multiple ports for device supported"),
        (0, "VIRTIO_CONSOLE_F_SIZE", "Host providing console size"),
    ),
    c.ID_BALLOON: (
        (5, "VIRTIO_BALLOON_F_REPORTING", "Page reporting VQ enabled"),
        (4, "VIRTIO_BALLOON_F_PAGE_POISON", "Guest page poisoning enabled"),
        (3, "VIRTIO_BALLOON_F_FREE_PAGE_HINT", "VQ to report free pages enabled"),
        (2, "VIRTIO_BALLOON_F_DEFLATE_ON_OOM", "Deflate balloon when guest OOM"),
        (1, "VIRTIO_BALLOON_F_STATS_VQ", "Guest memory stats VQ available"),
        (0, "VIRTIO_BALLOON_F_MUST_TELL_HOST", "Tell host before reclaiming pages"),
    ),
    c.ID_SCSI: (
        _VHOST_USER,
        (2, "VIRTIO_SCSI_F_CHANGE", "Reporting and handling LUN changes supported"),
        (1, "VIRTIO_SCSI_F_HOTPLUG", "Reporting and handling hot-plug events supported"),
        (0, "VIRTIO_SCSI_F_INOUT", "Requests including read and writable data buffers supported"),
    ),
    c.ID_ENTROPY: (_VHOST_USER,),
    c.ID_VSOCK: (
        (1, "VIRTIO_VSOCK_F_SEQPACKET", "SOCK_SEQPACKET supported"),
        (0, "VIRTIO_VSOCK_F_STREAM", "SOCK_STREAM supported"),
    ),
}
_STATUS = (
    (c.STATUS_ACKNOWLEDGE, "VIRTIO_CONFIG_S_ACKNOWLEDGE", "Valid virtio device found"),
    (c.STATUS_DRIVER, "VIRTIO_CONFIG_S_DRIVER", "Guest OS compatible with device"),
    (c.STATUS_FEATURES_OK, "VIRTIO_CONFIG_S_FEATURES_OK", "Feature negotiation complete"),
    (c.STATUS_DRIVER_OK, "VIRTIO_CONFIG_S_DRIVER_OK", "Driver setup and ready"),
    (c.STATUS_NEEDS_RESET, "VIRTIO_CONFIG_S_NEEDS_RESET", "Irrecoverable error, device needs reset"),
    (c.STATUS_FAILED, "VIRTIO_CONFIG_S_FAILED", "Error in guest, device failed"),
)
_DESCRIPTOR_FLAGS = (
    (c.DESC_F_NEXT, "next"),
    (c.DESC_F_WRITE, "write"),
    (c.DESC_F_INDIRECT, "indirect"),
)
_DESCRIPTOR = struct.Struct("<QIHH")


def features(device_id: int, bits: int) -> dict[str, Any]:
    """Return a VirtioDeviceFeatures."""
    known = _DEVICE[device_id]
    found: dict[str, Any] = {
        "transports": [f"{name}: {text}" for bit, name, text in _TRANSPORT if bits >> bit & 1],
        "dev-features": [f"{name}: {text}" for bit, name, text in known if bits >> bit & 1],
    }
    for bit, _, _ in (*known, *_TRANSPORT):
        bits &= ~(1 << bit)
    if bits:
        found["unknown-dev-features"] = bits
    return found


def device_status(device: AnyVirtioDevice, *, running: bool, isr: int, selected: int) -> dict[str, Any]:
    """Return a VirtioStatus; `isr` and `selected` are registers of the transport."""
    identifier = device.device_id
    status = device.status
    statuses = [f"{name}: {text}" for bit, name, text in _STATUS if status & bit]
    unknown = status & ~sum(bit for bit, _, _ in _STATUS)
    started = bool(status & c.STATUS_DRIVER_OK)
    return {
        "name": device.name,
        "device-id": identifier,
        "vhost-started": False,
        "device-endian": "little",
        "guest-features": features(identifier, device.driver_features),
        "host-features": features(identifier, device.offered_features),
        "backend-features": features(identifier, 0),
        "num-vqs": len(device.queues),
        "status": {"statuses": statuses, **({"unknown-statuses": unknown} if unknown else {})},
        "isr": isr,
        "queue-sel": selected,
        "vm-running": running,
        "broken": device.broken,
        "disabled": False,
        "use-started": True,
        "started": started,
        "start-on-kick": False,
        "disable-legacy-check": False,
        "bus-name": "",
        "use-guest-notifier-mask": True,
    }


def find_queue(device: AnyVirtioDevice, number: int) -> VirtQueue:
    """Return a queue by its number; raises QmpError."""
    if number >= len(device.queues):
        raise QmpError(f"Invalid virtqueue number {number}")
    return device.queues[number]


def queue_status(device: AnyVirtioDevice, queue: VirtQueue) -> dict[str, Any]:
    """Return a VirtQueueStatus."""
    state = queue.save()
    return {
        "name": device.name,
        "queue-index": queue.index,
        "inuse": (state.next_avail - state.next_used) % (1 << 16) if queue.ready else 0,
        "vring-num": queue.size,
        "vring-num-default": queue.max_size,
        "vring-align": c.LEGACY_RING_ALIGN,
        "vring-desc": queue.desc,
        "vring-avail": queue.driver,
        "vring-used": queue.device,
        "last-avail-idx": state.next_avail,
        "shadow-avail-idx": state.next_avail,
        "used-idx": state.next_used,
        "signalled-used": state.next_used,
        "signalled-used-valid": queue.ready,
    }


def queue_element(device: AnyVirtioDevice, memory: GuestMemory, queue: VirtQueue, index: int | None) -> dict[str, Any]:
    """Return the VirtioQueueElement at a place of a split ring, by default the next to be used; raises QmpError."""
    if device.features & c.F_RING_PACKED:
        raise QmpError("Packed ring not supported")
    if not queue.ready:
        raise QmpError("Region caches not initialized")
    place = queue.save().next_avail if index is None else index
    try:
        head = memory.read_u16(queue.driver + 4 + 2 * (place % queue.size))
        return {
            "name": device.name,
            "index": head,
            "descs": list(_descriptors(memory, queue.desc, queue.size, head)),
            "avail": {
                "flags": memory.read_u16(queue.driver),
                "idx": memory.read_u16(queue.driver + 2),
                "ring": head,
            },
            "used": {"flags": memory.read_u16(queue.device), "idx": memory.read_u16(queue.device + 2)},
        }
    except GuestMemoryError as error:
        raise QmpError(f"Cannot map descriptor ring: {error}") from None


def _descriptors(memory: GuestMemory, table: int, size: int, head: int) -> Iterator[dict[str, Any]]:
    """Yield a chain of descriptors, those of an indirect table in place of the one that leads there."""
    index, indirect = head, False
    for _ in range(size + c.MAX_QUEUE_SIZE):
        if index >= size:
            return
        data = memory.read(table + index * _DESCRIPTOR.size, _DESCRIPTOR.size)
        address, length, flags, following = _DESCRIPTOR.unpack(data)
        if flags & c.DESC_F_INDIRECT and not indirect:
            table, size, index, indirect = address, length // _DESCRIPTOR.size, 0, True
            continue
        names = [name for bit, name in _DESCRIPTOR_FLAGS if flags & bit]
        yield {"addr": address, "len": length, "flags": names}
        if not flags & c.DESC_F_NEXT:
            return
        index = following
