"""Devices: their properties, plugging and unplugging."""

TEXT = """
command device-list-properties -> [ObjectPropertyInfo]
  typename: str

# Takes the properties of the device, too, whatever its driver has.
command device_add raw !json-cli !json-cli-hotplug
  driver: str
  bus?: str
  id?: str

command device_del
  id: str

event DEVICE_DELETED
  device?: str
  path: str

event DEVICE_UNPLUG_GUEST_ERROR
  device?: str
  path: str
"""
