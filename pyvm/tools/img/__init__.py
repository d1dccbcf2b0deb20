"""``pyvm-img``: qemu-img's subcommands, with its options, exit statuses and output.

:mod:`.cli` finds the subcommand, each of which is the module of its name with a function ``run(argv) -> int``;
:mod:`.arguments`, :mod:`.sizes`, :mod:`.console` and :mod:`.opening` are what they share.  A subcommand imports what
it needs when it runs, so that ``pyvm-img info`` starts fast.
"""
