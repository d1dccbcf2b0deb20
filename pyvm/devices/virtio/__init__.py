"""Virtio: queues, the transport over PCI, and the devices, which do not know their transport."""
