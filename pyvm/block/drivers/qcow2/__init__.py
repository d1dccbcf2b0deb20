"""Format driver *qcow2*.

:mod:`.structures` has the format, :mod:`.image` the file, its damage and the order of writing, :mod:`.tables` the
caches, :mod:`.refcounts` allocation, :mod:`.mapping` the L1 and L2 tables, :mod:`.compressed` compressed clusters,
:mod:`.update` writes, and :mod:`.driver` the node.

What a node can do: read, write, flush, discard and write zeroes on images of versions 2 and 3 with any cluster size
and refcount width, subclusters, backing files, external data files, compressed clusters (read; what is written over
them is not compressed), internal snapshots (kept) and persistent bitmaps (kept; one that should follow the guest's
writes is marked as out of date, which it then is).  Lazy refcounts are allowed, and never needed: counts on the disk
are never too low.

Refused, each with a line that says so: encryption, unknown incompatible features, and writing to an image that is
marked as corrupt or as not closed cleanly (dirty), or whose tables overlap.
"""
