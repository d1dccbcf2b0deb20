"""Drivers: what turns a host file, or another node, into a node."""
