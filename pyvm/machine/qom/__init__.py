"""The object tree that monitors see of the machine, by chapter."""
