"""Devices that are plugged into the machine and out of it, before it starts and while it runs."""
