"""The text of `info migrate`: a MigrationInfo, line by line, as QEMU 7.2 shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_KIB = 1024
_TIMES = (("expected-downtime", "expected downtime"), ("downtime", "downtime"), ("setup-time", "setup"))
_RAM = (
    ("transferred", "transferred ram: {kib} kbytes"), ("mbps", "throughput: {value:0.2f} mbps"),
    ("remaining", "remaining ram: {kib} kbytes"), ("total", "total ram: {kib} kbytes"),
    ("duplicate", "duplicate: {value} pages"), ("skipped", "skipped: {value} pages"),
    ("normal", "normal: {value} pages"), ("normal-bytes", "normal bytes: {kib} kbytes"),
    ("dirty-sync-count", "dirty sync count: {value}"), ("page-size", "page size: {kib} kbytes"),
    ("multifd-bytes", "multifd bytes: {kib} kbytes"), ("pages-per-second", "pages-per-second: {value}"),
)  # fmt: skip
_RAM_IF_ANY = (
    ("dirty-pages-rate", "dirty pages rate: {value} pages"), ("postcopy-requests", "postcopy request count: {value}"),
    ("precopy-bytes", "precopy ram: {kib} kbytes"), ("downtime-bytes", "downtime ram: {kib} kbytes"),
    ("postcopy-bytes", "postcopy ram: {kib} kbytes"),
)  # fmt: skip
_CACHE = (
    ("cache-size", "cache size: {value} bytes"), ("bytes", "xbzrle transferred: {kib} kbytes"),
    ("pages", "xbzrle pages: {value} pages"), ("cache-miss", "xbzrle cache miss: {value} pages"),
    ("cache-miss-rate", "xbzrle cache miss rate: {value:0.2f}"),
    ("encoding-rate", "xbzrle encoding rate: {value:0.2f}"), ("overflow", "xbzrle overflow: {value}"),
)  # fmt: skip
_COMPRESSION = (
    ("pages", "compression pages: {value} pages"), ("busy", "compression busy: {value}"),
    ("busy-rate", "compression busy rate: {value:0.2f}"), ("compressed-size", "compressed size: {kib} kbytes"),
    ("compression-rate", "compression rate: {value:0.2f}"),
)  # fmt: skip


def lines(info: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that show how a migration goes; none where there is none."""
    if "status" in info:
        reason = f" ({info['error-desc']})" if "error-desc" in info else ""
        yield f"Migration status: {info['status']}{reason}"
        yield f"total time: {info.get('total-time', 0)} ms"
        yield from (f"{text}: {info[name]} ms" for name, text in _TIMES if name in info)
    ram = info.get("ram", {})
    yield from _figures(_RAM, ram)
    yield from _figures(_RAM_IF_ANY, {name: value for name, value in ram.items() if value})
    yield from _figures(_CACHE, info.get("xbzrle-cache", {}))
    yield from _figures(_COMPRESSION, info.get("compression", {}))
    if "cpu-throttle-percentage" in info:
        yield f"cpu throttle percentage: {info['cpu-throttle-percentage']}"
    if "postcopy-blocktime" in info:
        yield f"postcopy blocktime: {info['postcopy-blocktime']}"
        yield f"postcopy vcpu blocktime: {','.join(map(str, sorted(set(info['postcopy-vcpu-blocktime']))))}"
    if "socket-address" in info:
        yield "socket address: ["
        yield from (f"\t{_address(address)}" for address in info["socket-address"])
        yield "]"


def _figures(texts: tuple[tuple[str, str], ...], values: Mapping[str, Any]) -> Iterator[str]:
    for name, text in texts:
        if name in values:
            yield text.format(value=values[name], kib=int(values[name]) // _KIB)


def _address(address: Mapping[str, Any]) -> str:
    return f"unix:{address['path']}" if address["type"] == "unix" else f"tcp:{address['host']}:{address['port']}"
