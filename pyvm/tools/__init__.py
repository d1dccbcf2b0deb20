"""Commands beside the emulator itself, for working with disk images: ``pyvm-img`` and ``pyvm-io``."""
