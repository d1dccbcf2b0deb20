"""The back end `user`: a small network inside the process, behind address translation to the host's sockets.

The guest sees a gateway that leads to the host and from there everywhere, a name server, and a DHCP server.  Nothing of
it needs privileges: what the guest sends is carried on by ordinary sockets of this process.
"""
