"""ACPI: what the guest's operating system said of devices that were plugged in or out."""

TEXT = """
enum ACPISlotType
  DIMM CPU

struct ACPIOSTInfo
  device?: str
  slot: str
  slot-type: ACPISlotType
  source: int
  status: int

command query-acpi-ospm-status -> [ACPIOSTInfo]

event ACPI_DEVICE_OST
  info: ACPIOSTInfo
"""
