"""The screen, keyboard and pointer of a machine for VNC viewers: the Remote Framebuffer Protocol, RFC 6143.

:mod:`protocol` has the numbers and records of the wire, :mod:`pixels` and :mod:`encodings` what pictures look like on
it, :mod:`session` one conversation as a pure state machine, :mod:`connection` its socket, :mod:`server` one display
with its sockets and clients, and :mod:`displays` all displays of a machine as its monitors see them.
"""
