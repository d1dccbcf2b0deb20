"""The PCI bus and what is on it."""

TEXT = """
struct PciMemoryRange
  base: int
  limit: int

struct PciMemoryRegion
  bar: int
  type: str
  address: int
  size: int
  prefetch?: bool
  mem_type_64?: bool

struct PciBusInfo
  number: int
  secondary: int
  subordinate: int
  io_range: PciMemoryRange
  memory_range: PciMemoryRange
  prefetchable_range: PciMemoryRange

struct PciBridgeInfo
  bus: PciBusInfo
  devices?: [PciDeviceInfo]

struct PciDeviceClass
  desc?: str
  class: int

struct PciDeviceId
  device: int
  vendor: int
  subsystem?: int
  subsystem-vendor?: int

struct PciDeviceInfo
  bus: int
  slot: int
  function: int
  class_info: PciDeviceClass
  id: PciDeviceId
  irq?: int
  irq_pin: int
  qdev_id: str
  pci_bridge?: PciBridgeInfo
  regions: [PciMemoryRegion]

struct PciInfo
  bus: int
  devices: [PciDeviceInfo]

command query-pci -> [PciInfo]
"""
