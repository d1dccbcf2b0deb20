"""Types of watchdogs, panic devices and the generation identifier, in the notation of :mod:`pyvm.qom.type_text`."""

TEXT = """
i6300esb : pci-device +conventional-pci-device

ib700 : isa-device

pvpanic : isa-device +acpi-dev-aml-interface
  ioport : uint16 =1285
  events : uint8 =3

pvpanic-pci : pci-device +conventional-pci-device
  events : uint8 =3

vmgenid : device
  guid : str ="auto" | UUID (aka GUID) or "auto" for random value (default)
"""
