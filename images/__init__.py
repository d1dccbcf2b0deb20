"""Recipes for guests: built from Debian packages, as any user, into the user's cache directory; never committed."""
