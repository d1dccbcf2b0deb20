"""Structures and numbers of the virtio SCSI host device (virtio 1.2, section 5.6)."""

from __future__ import annotations

import struct

# Feature bits (5.6.3)
F_INOUT = 1 << 0
F_HOTPLUG = 1 << 1
F_CHANGE = 1 << 2
F_T10_PI = 1 << 3

# Queues (5.6.2)
CONTROL_QUEUE = 0
EVENT_QUEUE = 1
FIXED_QUEUES = 2

# Configuration space (5.6.4): u32 num_queues, seg_max, max_sectors, cmd_per_lun, event_info_size, sense_size, cdb_size,
# u16 max_channel, max_target, u32 max_lun
CONFIG = struct.Struct("<IIIIIIIHHI")
CONFIG_SENSE_SIZE = 20
CONFIG_CDB_SIZE = 24
DEFAULT_SENSE_SIZE = 96
DEFAULT_CDB_SIZE = 32
MAX_SENSE_SIZE = 65536
MAX_CDB_SIZE = 256

# Request (5.6.6.1): u8 lun[8], u64 id, u8 task_attr, prio, crn, then the CDB
COMMAND = struct.Struct("<8sQBBB")
# Its response: u32 sense_len, residual, u16 status_qualifier, u8 status, response, then sense data
RESPONSE = struct.Struct("<IIHBB")

# Responses (5.6.6.1.1, 5.6.6.2)
S_OK = 0
S_OVERRUN = 1
S_ABORTED = 2
S_BAD_TARGET = 3
S_RESET = 4
S_FAILURE = 9
S_FUNCTION_COMPLETE = 0
S_FUNCTION_SUCCEEDED = 10
S_FUNCTION_REJECTED = 11
S_INCORRECT_LUN = 12

# Control requests (5.6.6.2): u32 type; task management: u32 subtype, u8 lun[8], u64 id; asynchronous notification:
# u8 lun[8], u32 event_requested
CONTROL_TYPE = struct.Struct("<I")
TMF = struct.Struct("<II8sQ")
TMF_RESPONSE = struct.Struct("<B")
AN = struct.Struct("<I8sI")
AN_RESPONSE = struct.Struct("<IB")
T_TMF = 0
T_AN_QUERY = 1
T_AN_SUBSCRIBE = 2
TMF_ABORT_TASK = 0
TMF_ABORT_TASK_SET = 1
TMF_CLEAR_ACA = 2
TMF_CLEAR_TASK_SET = 3
TMF_I_T_NEXUS_RESET = 4
TMF_LOGICAL_UNIT_RESET = 5
TMF_QUERY_TASK = 6
TMF_QUERY_TASK_SET = 7

# Events (5.6.6.3): u32 event, u8 lun[8], u32 reason
EVENT = struct.Struct("<I8sI")
EVENTS_MISSED = 1 << 31
NO_EVENT = 0
TRANSPORT_RESET = 1
PARAM_CHANGE = 3
RESET_RESCAN = 1
RESET_REMOVED = 2


def lun_address(lun: bytes) -> tuple[int, int] | None:
    """Return target and number of the unit that an 8-byte LUN means; None where it means none (5.6.6.1)."""
    if lun[0] != 1 or not (lun[2] == 0 or 0x40 <= lun[2] < 0x80):
        return None
    return lun[1], (lun[2] << 8 | lun[3]) & 0x3FFF


def event_lun(target: int, lun: int) -> bytes:
    """Return the LUN of an event, in the form that REPORT LUNS has."""
    first = lun >> 8 | 0x40 if lun > 0xFF else 0
    return bytes((1, target, first, lun & 0xFF, 0, 0, 0, 0))
