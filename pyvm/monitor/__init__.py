"""The QMP monitor: wire protocol, schema as data, and the commands by chapter."""
