"""Format driver *qcow2*.

The format: :mod:`.structures` (header, table entries), :mod:`.records` (snapshots, bitmaps).

An open image: :mod:`.image` (the file, its damage, the order of writing), :mod:`.overlap` (where metadata is),
:mod:`.tables` (caches), :mod:`.refcounts` (allocation), :mod:`.mapping` (L1 and L2 tables), :mod:`.compressed`,
:mod:`.encryption`, :mod:`.reader`, :mod:`.update` (writes), :mod:`.disk` (all of them), :mod:`.options`,
:mod:`.driver` (the node).

Operations on a whole image: :mod:`.creation`, :mod:`.snapshots`, :mod:`.vmstate`, :mod:`.bitmaps`, :mod:`.resize`,
:mod:`.amend`, :mod:`.check` with :mod:`.references`, :mod:`.tally` and :mod:`.rebuild`; they share :mod:`.walk`.

What it knows: versions 2 and 3 with any cluster size and refcount width, subclusters, backing files, external data
files, encryption (LUKS, and the old AES method), compressed clusters (zlib, zstd), internal snapshots with the state of
a VM, lazy refcounts, the dirty and the corrupt bit, resizing, preallocation, amending, checks and repairs. Persistent
bitmaps are kept; one that should follow the guest's writes is marked as out of date by the first of them, which it then
is.

Refused, each with a line that says so: unknown incompatible features, and writing to an image that is marked as
corrupt. What has been damaged otherwise is found at the first change, and marks the image as corrupt.
"""
