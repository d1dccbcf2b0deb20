"""``pyvm-nbd``: serve an image to NBD clients, or list what a server has."""
