"""Intel's 82540EM Gigabit Ethernet controller and its relatives, which most PC operating systems have a driver for."""
