"""Character devices: what a UART, a virtio-serial port or a monitor talks to on the host.

There is no back end of Python callbacks.  A script in the same process makes a `socket.socketpair()` and gives one end
away as ``fd=``: so it has the same flow control as any other peer, and may run in any thread.
"""
