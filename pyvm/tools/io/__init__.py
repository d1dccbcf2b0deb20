"""``pyvm-io``: qemu-io's commands, options, exit status and output.

:mod:`.cli` is the program; :mod:`.table` finds and checks the command of a line, and has :func:`.table.run`, which is
all that the monitor's ``qemu-io`` needs.  The commands are in one module a group; :mod:`.session` is what they work on.
"""
