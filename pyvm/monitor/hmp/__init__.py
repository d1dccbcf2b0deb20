"""The human monitor (HMP): commands for people, on a chardev with line editing or through QMP.

    chardev -> HumanMonitor: bytes -> LineEditor -> line -> Dispatcher -> `human-monitor-command` -> text -> chardev
                                                                                |
                             find_command -> parse_arguments -> handler -> QMP commands, or Inspectable hardware

A line becomes the QMP command `human-monitor-command`, so it waits its turn among the commands of all other monitors.
A handler asks the machine by calling QMP commands itself; only what QMP does not show is read from the hardware.
"""
