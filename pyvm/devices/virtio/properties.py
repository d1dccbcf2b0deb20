"""Descriptions of device properties, which the command line and QMP validate against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """One property by QEMU's name: its kind in QEMU's words, default (None: not set), and what it is."""

    kind: str
    """bool, uint16, uint32, uint64, int, size, str, OnOffAuto, chardev or drive (IDs of those), or link<TYPE>."""
    default: bool | int | str | None
    description: str


Properties = dict[str, Property]
