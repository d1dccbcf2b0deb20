"""The built-in BIOS: the services that real-mode software calls, written in Python.

The ROM that the guest sees at 0xf8000-0xfffff has next to no code in it.  Each service entry is a stub that writes to
a port; the engine then calls :meth:`pyvm.firmware.bios.bios.Bios.call` with the processor's registers, a service here
does the work on them and on guest memory, and the stub returns to the caller.  Like a BIOS in ROM this one keeps all
its state in the data areas in guest memory (:mod:`.data_area`), so it needs no state record of its own.

One module is one chapter of the manual: :mod:`.video` (int 10h), :mod:`.disk` (int 13h), :mod:`.serial` (int 14h),
:mod:`.system` (int 15h), :mod:`.keyboard` (int 16h and IRQ 1), :mod:`.printer` (int 17h and 05h), :mod:`.boot` (int
18h and 19h), :mod:`.clock` (int 1Ah, IRQ 0 and 8), :mod:`.pci` (int 1Ah AH=B1), and :mod:`.post` for what happens
before all of them.
"""
