"""QEMU's own tests of its block layer, run against pyvm: ``make iotests``, or ``python -m tests.iotests``."""
