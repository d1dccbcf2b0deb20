"""Image formats of other virtual machines, which pyvm reads and does not write.

Each is a file that tells where in it the blocks of the disk are; :mod:`.mapped` does with that what all have in common.
"""
