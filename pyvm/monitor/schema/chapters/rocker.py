"""The Rocker switch, which pyvm does not have: whatever a client names is not found."""

TEXT = """
struct RockerSwitch
  name: str
  id: uint64
  ports: uint32

command query-rocker -> RockerSwitch
  name: str

enum RockerPortDuplex
  half full

enum RockerPortAutoneg
  off on

struct RockerPort
  name: str
  enabled: bool
  link-up: bool
  speed: uint32
  duplex: RockerPortDuplex
  autoneg: RockerPortAutoneg

command query-rocker-ports -> [RockerPort]
  name: str

struct RockerOfDpaFlowKey
  priority: uint32
  tbl-id: uint32
  in-pport?: uint32
  tunnel-id?: uint32
  vlan-id?: uint16
  eth-type?: uint16
  eth-src?: str
  eth-dst?: str
  ip-proto?: uint8
  ip-tos?: uint8
  ip-dst?: str

struct RockerOfDpaFlowMask
  in-pport?: uint32
  tunnel-id?: uint32
  vlan-id?: uint16
  eth-src?: str
  eth-dst?: str
  ip-proto?: uint8
  ip-tos?: uint8

struct RockerOfDpaFlowAction
  goto-tbl?: uint32
  group-id?: uint32
  tunnel-lport?: uint32
  vlan-id?: uint16
  new-vlan-id?: uint16
  out-pport?: uint32

struct RockerOfDpaFlow
  cookie: uint64
  hits: uint64
  key: RockerOfDpaFlowKey
  mask: RockerOfDpaFlowMask
  action: RockerOfDpaFlowAction

command query-rocker-of-dpa-flows -> [RockerOfDpaFlow]
  name: str
  tbl-id?: uint32

struct RockerOfDpaGroup
  id: uint32
  type: uint8
  vlan-id?: uint16
  pport?: uint32
  index?: uint32
  out-pport?: uint32
  group-id?: uint32
  set-vlan-id?: uint16
  pop-vlan?: uint8
  group-ids?: [uint32]
  set-eth-src?: str
  set-eth-dst?: str
  ttl-check?: uint8

command query-rocker-of-dpa-groups -> [RockerOfDpaGroup]
  name: str
  type?: uint8
"""
