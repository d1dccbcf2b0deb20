"""Exports: block nodes that other programs use while this one has them open, and the NBD server."""
