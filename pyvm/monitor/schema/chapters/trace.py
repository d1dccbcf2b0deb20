"""Trace events: what the emulator tells of its own work when asked to."""

TEXT = """
enum TraceEventState
  unavailable disabled enabled

struct TraceEventInfo
  name: str
  state: TraceEventState
  vcpu: bool

command trace-event-get-state -> [TraceEventInfo]
  name: str
  vcpu?: int

command trace-event-set-state
  name: str
  enable: bool
  ignore-unavailable?: bool
  vcpu?: int
"""
