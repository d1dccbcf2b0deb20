"""The block layer: disk images as a graph of nodes, and what is a disk to a device.

A node is an image opened by a driver: *file* (a host file), *raw* (the bytes of another node), *qcow2*, or a filter
such as *throttle*.  Nodes do their I/O at once, for one thread at a time; :mod:`.options` has the table of drivers,
:mod:`.open` makes nodes from file names and options, and :mod:`.graph` knows all nodes of a machine and what each may
do.

A guest's disk is a :class:`.backend.BlockBackend` on the root node of such a graph.  It takes requests without keeping
its caller waiting, and has them carried out by the worker of an I/O context (:mod:`.context`), within limits
(:mod:`.throttling`), counted (:mod:`.accounting`), and with a policy for errors.
"""
