"""Protocol drivers *http* and *https*: a file on a web server, read by range requests.

RFC 9110, section 14 (range requests).  The library is urllib3, an optional extra: it keeps connections open from one
request to the next, and is quick to import.  What the server says is checked: a reply that has not exactly the bytes
asked for, or those of a file that has changed, is an error and never data.
"""

from __future__ import annotations

import errno
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit, urlunsplit

from pyvm.block.errors import BlockError
from pyvm.block.node import Node
from pyvm.block.vectors import Buffers, Cursor, behind, fill_zero, total
from pyvm.errors import ConfigError

if TYPE_CHECKING:
    import urllib3

    from pyvm.block.graph import BlockGraph
    from pyvm.block.options import Settings

__all__ = ["HttpNode", "HttpsNode", "make", "make_https", "parse_filename"]

SECTOR = 512
DEFAULT_READAHEAD = 256 << 10
DEFAULT_TIMEOUT = 5
_MAX_TIMEOUT = 10000
_WINDOWS = 8
"""How many runs of bytes that were read ahead are kept."""
_MAX_READAHEAD = 64 << 20
_MAX_REDIRECTS = 10
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_NO_RANGE = re.compile(r"bytes \*/(\d{1,19})", re.ASCII)
_PARTIAL, _UNSATISFIABLE = 206, 416
_MISSING = "HTTP needs the library urllib3, which is not installed: pip install 'pyvm[http]'"


@dataclass(frozen=True)
class HttpOptions:
    """How a server is talked to.  Sizes are in bytes, times in seconds; `timeout` 0 waits for ever."""

    readahead: int = DEFAULT_READAHEAD
    timeout: int = DEFAULT_TIMEOUT
    ssl_verify: bool = True
    username: str | None = None
    password: str = field(default="", repr=False)
    proxy_username: str | None = None
    proxy_password: str = field(default="", repr=False)
    cookie: str | None = field(default=None, repr=False)


class HttpNode(Node):
    """A file on a web server, for reading only.  Its length is shown in whole sectors, the last filled up with zeros.

    Raises BlockError where the server or the file cannot be used.
    """

    driver: ClassVar[str] = "http"

    def __init__(self, url: str, options: HttpOptions | None = None, *, name: str = "") -> None:
        super().__init__(name, read_only=True)
        self.path = url
        self.identity = ("http", url)
        self._options = options or HttpOptions()
        self._windows: OrderedDict[int, memoryview] = OrderedDict()
        """What was read ahead, by where it starts; the one that was used last is the last."""
        self._url, self._headers = _prepare(url, self._options)
        self._pool = _make_pool(self._options, self._url)
        self._etag: str | None = None
        self._size = 0
        try:
            self._size = self._probe()
        except BaseException:
            self._pool.clear()
            raise

    @property
    def filename(self) -> str:
        """The address."""
        return self.path

    @property
    def size(self) -> int:
        """Length in bytes, whole sectors."""
        return -(-self._size // SECTOR) * SECTOR

    def length(self) -> int:
        """Return the length of the file, to the byte."""
        return self._size

    def allocated_bytes(self) -> int | None:
        """Return None: a server does not say."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._windows.clear()
        self._pool.clear()

    # ---- Requests

    def _request(self, start: int, end: int) -> urllib3.BaseHTTPResponse:
        """Ask for the bytes from `start` up to, but without, `end`; the reply's body is still to be read.

        Raises OSError.
        """
        from urllib3.exceptions import HTTPError

        headers = {**self._headers, "Range": f"bytes={start}-{end - 1}"}
        try:
            return self._pool.request(
                "GET", self._url, headers=headers, preload_content=False, decode_content=False, redirect=True
            )
        except HTTPError as error:
            raise _Unreachable(_reason(error)) from None

    def _probe(self) -> int:
        """Return the length of the file; find out that the server can do what is needed.  Raises BlockError."""
        try:
            reply = self._request(0, 1)
        except _Unreachable as error:
            raise BlockError(f"CURL: Error opening file: {error.reason}") from None
        try:
            if reply.status >= 400 and reply.status != _UNSATISFIABLE:
                raise BlockError(f"CURL: Error opening file: The requested URL returned error: {reply.status}")
            where = reply.headers.get("Content-Range", "")
            match = _RANGE.fullmatch(where) if reply.status == _PARTIAL else _NO_RANGE.fullmatch(where)
            if match is None and reply.status == _PARTIAL:
                raise BlockError("CURL: Error opening file: Server didn't report file size.")
            if match is None:
                raise BlockError("CURL: Error opening file: Server does not support 'range' (byte ranges).")
            self._etag = _strong(reply.headers.get("ETag"))
            if reply.length_remaining == 1:
                # The connection can be used again once all of the reply was read.
                _read_into(reply, memoryview(bytearray(1)))
            return int(match[match.lastindex or 1])
        finally:
            _finish(reply)

    def _fetch(self, start: int, end: int, buffers: Buffers) -> None:
        """Fill the buffers from `start` on, and keep what is behind them up to `end`.  Raises OSError."""
        reply = self._request(start, end)
        try:
            self._check(reply, start, end)
            for buffer in buffers:
                _read_into(reply, buffer)
            ahead = end - start - total(buffers)
            if ahead:
                window = memoryview(bytearray(ahead))
                _read_into(reply, window)
                self._keep(end - ahead, window)
        finally:
            _finish(reply)

    def _check(self, reply: urllib3.BaseHTTPResponse, start: int, end: int) -> None:
        """Raise OSError unless the reply is what was asked for."""
        match = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        if reply.status != _PARTIAL or match is None:
            raise _broken()
        if tuple(map(int, match.groups())) != (start, end - 1, self._size):
            raise _broken()
        if self._etag is not None and reply.headers.get("ETag") != self._etag:
            raise _broken()
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise _broken()

    # ---- Reading

    def readv(self, offset: int, buffers: Buffers) -> None:
        """Fill all buffers from `offset` on.  Raises OSError."""
        self.check_range(offset, total(buffers))
        rest = buffers
        while total(rest):
            if offset >= self._size:
                fill_zero(rest)
                return
            count = self._take_kept(offset, rest) or self._read_some(offset, rest)
            offset += count
            rest = behind(rest, count)

    def _read_some(self, offset: int, buffers: Buffers) -> int:
        """Get data from the server; return how much of the buffers is filled.  Raises OSError."""
        count = min(total(buffers), self._size - offset)
        end = min(offset + count + self._options.readahead, self._size)
        wanted = Cursor(buffers).take(count)
        try:
            self._fetch(offset, end, wanted)
        except _Interrupted:
            # A server may close a connection at any time; once is no reason to give up.
            self._fetch(offset, end, wanted)
        return count

    def _take_kept(self, offset: int, buffers: Buffers) -> int:
        """Fill the start of the buffers with what was read ahead; return how much that is."""
        for start, window in self._windows.items():
            if start <= offset < start + len(window):
                self._windows.move_to_end(start)
                data = window[offset - start :][: total(buffers)]
                _copy_start(buffers, data)
                return len(data)
        return 0

    def _keep(self, start: int, window: memoryview) -> None:
        self._windows[start] = window
        self._windows.move_to_end(start)
        while len(self._windows) > _WINDOWS:
            self._windows.popitem(last=False)

    # ---- What cannot be

    def writev(self, offset: int, buffers: Buffers) -> None:
        """Refuse."""
        self.check_write(offset, total(buffers))

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Refuse."""
        self.check_write(offset, length)

    def flush(self) -> None:
        """Nothing was written."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing can be given back."""


class HttpsNode(HttpNode):
    """The same over TLS."""

    driver: ClassVar[str] = "https"


class _Unreachable(OSError):  # noqa: N818 - it is what happened
    """The server cannot be reached, or does not answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EIO, os.strerror(errno.EIO))
        self.reason = reason


class _Interrupted(OSError):  # noqa: N818 - it is what happened
    """The reply ended too early."""


def _broken() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _reason(error: Exception) -> str:
    """Return what is behind the errors that the library wraps into one another."""
    from urllib3.exceptions import (
        ConnectTimeoutError,
        MaxRetryError,
        NameResolutionError,
        NewConnectionError,
        ReadTimeoutError,
        SSLError,
    )

    if isinstance(error, MaxRetryError) and error.reason is not None:
        error = error.reason
    if isinstance(error, NameResolutionError):
        return "Could not resolve host"
    if isinstance(error, NewConnectionError):
        return re.sub(r".*(: |\[Errno -?\d+\] )", "", str(error))
    if isinstance(error, (ConnectTimeoutError, ReadTimeoutError)):
        return "Timeout was reached"
    if isinstance(error, SSLError):
        return f"SSL: {error}"
    return str(error).rpartition(": ")[2] or type(error).__name__


def _read_into(reply: urllib3.BaseHTTPResponse, buffer: memoryview) -> None:
    """Fill a buffer with what comes next of a reply.  Raises OSError."""
    from urllib3.exceptions import HTTPError

    while buffer:
        try:
            count = reply.readinto(buffer)
        except HTTPError:
            raise _Interrupted(errno.EIO, os.strerror(errno.EIO)) from None
        if not count:
            raise _Interrupted(errno.EIO, os.strerror(errno.EIO))
        buffer = buffer[count:]


def _finish(reply: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back where the whole reply was read; close it where not: the rest may be endless."""
    if reply.length_remaining == 0:
        reply.release_conn()
    else:
        reply.close()


def _copy_start(buffers: Buffers, data: memoryview) -> None:
    for buffer in buffers:
        part = data[: len(buffer)]
        buffer[: len(part)] = part
        data = data[len(part) :]


def _strong(etag: str | None) -> str | None:
    """Return a tag that stays the same as long as each byte does."""
    return etag if etag is not None and not etag.startswith("W/") else None


def _prepare(url: str, options: HttpOptions) -> tuple[str, dict[str, str]]:
    """Return the address without name and password, and the headers of each request.  Raises BlockError."""
    from urllib3 import make_headers

    headers = {"Accept-Encoding": "identity", "User-Agent": "pyvm"}
    try:
        parts = urlsplit(url)
        username, password = parts.username, parts.password
    except ValueError:
        raise BlockError("CURL: Error opening file: URL using bad/illegal format or missing URL") from None
    if not parts.hostname:
        raise BlockError("CURL: Error opening file: URL using bad/illegal format or missing URL")
    if options.username is not None:
        username, password = options.username, options.password
    elif username is not None:
        username, password = unquote(username), unquote(password or "")
    if username is not None:
        headers.update(make_headers(basic_auth=f"{username}:{password or ''}"))
    if options.cookie is not None:
        headers["Cookie"] = options.cookie
    if any(character in value for value in headers.values() for character in "\r\n\0"):
        raise BlockError("CURL: Error opening file: a header must be one line")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), headers


def _make_pool(options: HttpOptions, url: str) -> urllib3.PoolManager:
    """Return what makes requests: directly, or through the proxy that the environment names."""
    from urllib.request import getproxies, proxy_bypass

    import urllib3

    parts = urlsplit(url)
    limit = options.timeout or None
    settings: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=limit, read=limit),
        # A connection that was kept and has gone away meanwhile is worth another try.
        "retries": urllib3.Retry(
            total=None, connect=0, read=1, redirect=_MAX_REDIRECTS, status=0, other=0, raise_on_redirect=True
        ),
        "maxsize": 2,
    }
    if not options.ssl_verify:
        # The person said so: nothing more needs to be said.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        settings.update(cert_reqs="CERT_NONE", assert_hostname=False)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(**settings)
    login = None
    if options.proxy_username is not None:
        login = urllib3.make_headers(proxy_basic_auth=f"{options.proxy_username}:{options.proxy_password}")
    return urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}", proxy_headers=login, **settings)


# ---- Options


def parse_filename(name: str) -> dict[str, Any]:
    """Return the options that a file name stands for."""
    return {"url": name}


def _find_secret(graph: BlockGraph, own: Mapping[str, Any], option: str) -> str | None:
    """Return the secret whose ID an option gives; None where it is not given.  Raises BlockError."""
    identifier = own.get(option)
    if identifier is None:
        return None
    try:
        return graph.secrets.find_text(identifier).decode()
    except ConfigError as error:
        raise BlockError(str(error)) from None


def _read_options(own: Mapping[str, Any], graph: BlockGraph) -> HttpOptions:
    readahead = own.get("readahead", DEFAULT_READAHEAD)
    if readahead % SECTOR:
        raise BlockError(f"HTTP_READAHEAD_SIZE {readahead} is not a multiple of 512")
    if readahead > _MAX_READAHEAD:
        raise BlockError(f"readahead {readahead} is more than {_MAX_READAHEAD}")
    timeout = own.get("timeout", DEFAULT_TIMEOUT)
    if timeout > _MAX_TIMEOUT:
        raise BlockError("timeout parameter is too large or negative")
    if "cookie" in own and "cookie-secret" in own:
        raise BlockError("curl driver cannot handle both cookie and cookie secret")
    return HttpOptions(
        readahead,
        timeout,
        own.get("sslverify", True),
        own.get("username"),
        _find_secret(graph, own, "password-secret") or "",
        own.get("proxy-username"),
        _find_secret(graph, own, "proxy-password-secret") or "",
        own.get("cookie", _find_secret(graph, own, "cookie-secret")),
    )


def make(
    settings: Settings,
    own: dict[str, Any],
    children: dict[str, Node],
    graph: BlockGraph,
    kind: type[HttpNode] = HttpNode,
) -> HttpNode:
    """Open a file; see :mod:`pyvm.block.options`."""
    del children
    url = own["url"]
    if not url.startswith(f"{kind.driver}://"):
        raise BlockError(
            f"{kind.driver} curl driver cannot handle the URL '{url}' (does not start with '{kind.driver}://')"
        )
    if not settings.read_only and not settings.auto_read_only:
        raise BlockError("curl driver does not support writes")
    options = _read_options(own, graph)
    try:
        import urllib3
    except ImportError:
        raise BlockError(_MISSING) from None
    del urllib3
    return kind(url, options, name=settings.name)


def make_https(settings: Settings, own: dict[str, Any], children: dict[str, Node], graph: BlockGraph) -> HttpNode:
    """Open a file over TLS."""
    return make(settings, own, children, graph, HttpsNode)
