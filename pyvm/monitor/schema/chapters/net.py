"""Networks: what network cards let through."""

TEXT = """
enum RxState
  normal none all

struct RxFilterInfo
  name: str
  promiscuous: bool
  multicast: RxState
  unicast: RxState
  vlan: RxState
  broadcast-allowed: bool
  multicast-overflow: bool
  unicast-overflow: bool
  main-mac: str
  vlan-table: [int]
  unicast-table: [str]
  multicast-table: [str]

command query-rx-filter -> [RxFilterInfo]
  name?: str

event NIC_RX_FILTER_CHANGED
  name?: str
  path: str
"""
