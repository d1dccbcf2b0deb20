"""pyvm and QEMU side by side, in one run on one host: `make bench`, or `python -m benchmarks --help`."""
