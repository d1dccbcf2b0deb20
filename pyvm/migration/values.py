"""Plain values as bytes: JSON, in which bytes are ``{"base64": "..."}``.

That is how records of state are written, whatever holds them: files with the state of a machine, and streams.
"""

from __future__ import annotations

import binascii
import json
from typing import Any

_BYTES = "base64"


def encode_value(value: Any) -> bytes:
    """Return a value of dicts, lists, strings, integers, bytes, booleans and None as bytes.  Raises TypeError."""
    return json.dumps(value, default=_plain_bytes, separators=(",", ":")).encode()


def decode_value(data: bytes) -> Any:
    """Return what :func:`encode_value` made bytes of.  Raises ValueError."""
    try:
        return json.loads(data, object_hook=_real_bytes)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _plain_bytes(value: Any) -> dict[str, str]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {_BYTES: binascii.b2a_base64(value, newline=False).decode()}
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def _real_bytes(value: dict[str, Any]) -> Any:
    if value.keys() != {_BYTES}:
        return value
    text = value[_BYTES]
    if not isinstance(text, str):
        raise ValueError("bytes that are none")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
