"""A stub for debuggers that speak GDB's remote serial protocol: `-gdb`, `-s` and `gdbserver`.

GDB manual, appendix E.  It is a monitor with another language: it stands on a character device, executes the lines of
the monitor for people, and reaches the machine through :class:`pyvm.machine.debugger.Debugger` only.
"""

CHARDEV = "gdb"
"""The name of the character device that is made for it."""
DEFAULT_DEVICE = "tcp::1234"


def device_options(device: str) -> str:
    """Return the short form of the back end that `device` stands for: TCP sockets listen unless they say otherwise."""
    return f"{device},wait=off,nodelay=on,server=on" if device.startswith("tcp:") else device
