"""Emulated devices, one file each.  None of them knows its address, its thread or its host resources."""
