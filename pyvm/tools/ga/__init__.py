"""The command ``pyvm-ga``: a guest's agent for a person and for scripts."""
