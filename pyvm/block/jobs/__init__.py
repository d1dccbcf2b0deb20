"""Jobs: work on images that goes on while the guest runs.

:mod:`.states` says what a job may do when, :mod:`.job` is the life of one job and of several together, :mod:`.manager`
knows them all.  :mod:`.block_job` adds what jobs on nodes have in common; then there is one module for each kind.
"""
