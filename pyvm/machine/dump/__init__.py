"""Dumps of the guest's memory for debuggers."""
