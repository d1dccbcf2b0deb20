"""Runs that take too long for the test suite, one module each: ``python -m tests.soak.NAME``."""
