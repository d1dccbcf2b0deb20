"""The block layer: disk images as a graph of nodes.

A node is an image opened by a driver: *file* (a host file or block device), *raw* (the bytes of another node), *qcow2*.
A guest disk is the root node of such a graph, and offers what :class:`pyvm.devices.virtio.blk.BlockBackend` asks for.
:func:`pyvm.block.open.open_image` builds the graph for an image.  All nodes are used synchronously, by the holder of
the machine lock.

What a graph can do: read, write, flush, discard and write zeroes.  It does not create, resize, convert, snapshot or
check images, track dirty bitmaps, or decrypt.
"""
