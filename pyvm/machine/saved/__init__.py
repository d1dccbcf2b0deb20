"""Machines that are saved, restored, forked, and moved elsewhere: where that happens in a machine's life."""
