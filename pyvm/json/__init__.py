"""QEMU's JSON dialect, which the monitor speaks and options on the command line may be in: a reader and a writer."""
