"""Back ends without a host side: `null`, and `vc` on a machine without a display."""

from __future__ import annotations

from pyvm.chardev.base import Buffer, Chardev


class NullChardev(Chardev):
    """Takes everything, gives nothing."""

    def __init__(self, label: str, kind: str = "null") -> None:
        super().__init__(label)
        self._kind = kind

    @property
    def filename(self) -> str:
        """Return the kind of back end."""
        return self._kind

    def _write(self, data: Buffer) -> int:
        return len(data)
