"""The version of QEMU whose interface this is: clients decide by it what they may use."""

EMULATED_VERSION = (7, 2, 22)
