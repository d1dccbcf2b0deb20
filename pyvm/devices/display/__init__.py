"""The display adapter, and pictures of what it shows."""
