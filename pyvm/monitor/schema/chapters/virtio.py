"""Virtio devices and their queues, for debugging."""

TEXT = """
struct VirtioInfo
  path: str
  name: str

command x-query-virtio -> [VirtioInfo] !unstable

struct VirtioDeviceStatus
  statuses: [str]
  unknown-statuses?: uint8

struct VhostDeviceProtocols
  protocols: [str]
  unknown-protocols?: uint64

struct VirtioDeviceFeatures
  transports: [str]
  dev-features?: [str]
  unknown-dev-features?: uint64

struct VhostStatus
  n-mem-sections: int
  n-tmp-sections: int
  nvqs: uint32
  vq-index: int
  features: VirtioDeviceFeatures
  acked-features: VirtioDeviceFeatures
  backend-features: VirtioDeviceFeatures
  protocol-features: VhostDeviceProtocols
  max-queues: uint64
  backend-cap: uint64
  log-enabled: bool
  log-size: uint64

struct VirtioStatus
  name: str
  device-id: uint16
  vhost-started: bool
  device-endian: str
  guest-features: VirtioDeviceFeatures
  host-features: VirtioDeviceFeatures
  backend-features: VirtioDeviceFeatures
  num-vqs: int
  status: VirtioDeviceStatus
  isr: uint8
  queue-sel: uint16
  vm-running: bool
  broken: bool
  disabled: bool
  use-started: bool
  started: bool
  start-on-kick: bool
  disable-legacy-check: bool
  bus-name: str
  use-guest-notifier-mask: bool
  vhost-dev?: VhostStatus

command x-query-virtio-status -> VirtioStatus !unstable
  path: str

struct VirtQueueStatus
  name: str
  queue-index: uint16
  inuse: uint32
  vring-num: uint32
  vring-num-default: uint32
  vring-align: uint32
  vring-desc: uint64
  vring-avail: uint64
  vring-used: uint64
  last-avail-idx?: uint16
  shadow-avail-idx?: uint16
  used-idx: uint16
  signalled-used: uint16
  signalled-used-valid: bool

command x-query-virtio-queue-status -> VirtQueueStatus !unstable
  path: str
  queue: uint16

struct VirtVhostQueueStatus
  name: str
  kick: int
  call: int
  desc: uint64
  avail: uint64
  used: uint64
  num: int
  desc-phys: uint64
  desc-size: uint32
  avail-phys: uint64
  avail-size: uint32
  used-phys: uint64
  used-size: uint32

command x-query-virtio-vhost-queue-status -> VirtVhostQueueStatus !unstable
  path: str
  queue: uint16

struct VirtioRingDesc
  addr: uint64
  len: uint32
  flags: [str]

struct VirtioRingAvail
  flags: uint16
  idx: uint16
  ring: uint16

struct VirtioRingUsed
  flags: uint16
  idx: uint16

struct VirtioQueueElement
  name: str
  index: uint32
  descs: [VirtioRingDesc]
  avail: VirtioRingAvail
  used: VirtioRingUsed

command x-query-virtio-queue-element -> VirtioQueueElement !unstable
  path: str
  queue: uint16
  index?: uint16
"""
