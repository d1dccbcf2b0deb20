"""The HTTP driver against a server with range requests, and against servers that do not behave."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("urllib3", reason="urllib3, which the extra 'http' installs, is not there")

from pyvm.block.drivers.http import HttpNode, HttpOptions
from pyvm.block.errors import BlockError
from pyvm.block.graph import BlockGraph
from pyvm.block.open import open_image, open_node
from pyvm.block.options import Dialect

CONTENT = os.urandom(300_001)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the content, unless the server's `behave` has sent something else."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append({name.lower(): value for name, value in self.headers.items()})
        self.server.clients.add(self.client_address)
        if self.server.behave(self):
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match is not None
        first, last = map(int, match.groups())
        content = self.server.content
        if first >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        last = min(last, len(content) - 1)
        self.answer(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"ETag": self.server.etag, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.requests: list[dict[str, str]] = []
        self.clients: set[Any] = set()
        self.behave: Callable[[Handler], bool] = lambda handler: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/disk.img"

    def handle_error(self, *arguments: Any) -> None:
        """A client that has gone is no surprise."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    it = Server()
    thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield it
    it.shutdown()
    thread.join()
    it.server_close()


@pytest.fixture
def node(server: Server) -> Iterator[HttpNode]:
    it = HttpNode(server.url, HttpOptions(readahead=4096))
    yield it
    it.close()


def ranges(server: Server) -> list[str]:
    return [it["range"].removeprefix("bytes=") for it in server.requests[1:]]


def test_reading(node: HttpNode, server: Server) -> None:
    assert (node.size, node.length()) == (300_032, len(CONTENT))
    assert node.read(0, node.size) == CONTENT + bytes(31)
    for offset, length in ((0, 1), (5, 70_000), (299_999, 33), (300_001, 31), (123_456, 4096)):
        assert node.read(offset, length) == (CONTENT + bytes(31))[offset : offset + length]
    data = memoryview(bytearray(1000))
    node.readv(1234, [data[:10], data[10:10], data[10:600], data[600:]])
    assert data == CONTENT[1234:2234]
    assert len(server.clients) == 1, "the connection is kept"


def test_readahead(node: HttpNode, server: Server) -> None:
    for offset in range(0, 5120, 512):
        assert node.read(offset, 512) == CONTENT[offset : offset + 512]
    assert ranges(server) == ["0-4607", "4608-9215"]
    node.read(8192, 2048)
    assert ranges(server)[2:] == ["9216-14335"]


def test_what_was_read_ahead_is_bounded(node: HttpNode, server: Server) -> None:
    for index in range(20):
        node.read(index * 10_000, 512)
    assert len(node._windows) == 8
    assert len(server.requests) == 21
    node.read(19 * 10_000 + 512, 4096)
    assert len(server.requests) == 21
    node.read(512, 512)
    assert len(server.requests) == 22


def test_end_of_the_file(node: HttpNode, server: Server) -> None:
    assert node.read(299_520, 512) == CONTENT[299_520:] + bytes(31)
    assert ranges(server) == ["299520-300000"]


def test_empty_file(server: Server) -> None:
    server.content = b""
    node = HttpNode(server.url)
    assert node.size == 0
    node.close()


def test_writing_is_refused(node: HttpNode) -> None:
    assert node.read_only
    with pytest.raises(OSError, match="not permitted"):
        node.write(0, b"x")
    with pytest.raises(OSError, match="not permitted"):
        node.write_zeroes(0, 512, False)
    node.flush()
    node.discard(0, 512)
    with pytest.raises(OSError, match="Input/output error"):
        node.read(node.size, 1)


# ---- Servers that do not behave


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (200, {}, "Server does not support 'range' (byte ranges)."),
        (206, {}, "Server didn't report file size."),
        (206, {"Content-Range": "bytes 0-0/*"}, "Server didn't report file size."),
        (206, {"Content-Range": "bytes 0-0/" + "9" * 40}, "Server didn't report file size."),
        (416, {}, "Server does not support 'range' (byte ranges)."),
        (404, {}, "The requested URL returned error: 404"),
        (500, {}, "The requested URL returned error: 500"),
    ],
)
def test_files_that_cannot_be_used(server: Server, status: int, headers: dict[str, str], text: str) -> None:
    def behave(handler: Handler) -> bool:
        handler.answer(status, b"x", headers)
        return True

    server.behave = behave
    with pytest.raises(BlockError) as caught:
        HttpNode(server.url)
    assert str(caught.value) == f"CURL: Error opening file: {text}"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {}),
        (206, {}),
        (206, {"Content-Range": f"bytes 1-4608/{len(CONTENT)}"}),
        (206, {"Content-Range": f"bytes 0-4606/{len(CONTENT)}"}),
        (206, {"Content-Range": f"bytes 0-4607/{len(CONTENT) + 1}"}),
        (206, {"Content-Range": f"bytes 0-4607/{len(CONTENT)}", "ETag": '"two"'}),
        (206, {"Content-Range": f"bytes 0-4607/{len(CONTENT)}", "Content-Encoding": "gzip"}),
        (404, {}),
        (503, {}),
    ],
)
def test_replies_that_are_not_the_data(node: HttpNode, server: Server, status: int, headers: dict[str, str]) -> None:
    def behave(handler: Handler) -> bool:
        handler.answer(status, CONTENT[:4608], headers)
        return True

    server.behave = behave
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    server.behave = lambda handler: False
    assert node.read(0, 512) == CONTENT[:512], "the next request is a new one"


def test_file_that_changes(node: HttpNode, server: Server) -> None:
    assert node.read(0, 512) == CONTENT[:512]
    server.etag = '"two"'
    with pytest.raises(OSError, match="Input/output error"):
        node.read(100_000, 512)


def test_weak_tags_say_nothing(server: Server) -> None:
    server.etag = 'W/"one"'
    node = HttpNode(server.url)
    server.etag = 'W/"two"'
    assert node.read(0, 512) == CONTENT[:512]
    node.close()


def test_reply_that_ends_too_early_is_asked_for_once_more(node: HttpNode, server: Server) -> None:
    def behave(handler: Handler) -> bool:
        if len(server.requests) > 2:
            return False
        where = {"Content-Range": f"bytes 0-4607/{len(CONTENT)}"}
        handler.answer(206, CONTENT[:100], where, length=4608)
        handler.close_connection = True
        return True

    server.behave = behave
    assert node.read(0, 512) == CONTENT[:512]
    assert ranges(server) == ["0-4607", "0-4607"]


def test_replies_that_always_end_too_early(node: HttpNode, server: Server) -> None:
    def behave(handler: Handler) -> bool:
        handler.answer(206, b"", {"Content-Range": f"bytes 0-4607/{len(CONTENT)}"}, length=4608)
        handler.close_connection = True
        return True

    server.behave = behave
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    assert len(server.requests) == 3


def test_server_that_closes_idle_connections(node: HttpNode, server: Server) -> None:
    def behave(handler: Handler) -> bool:
        handler.close_connection = True
        return False

    server.behave = behave
    for offset in (0, 50_000, 100_000):
        assert node.read(offset, 512) == CONTENT[offset : offset + 512]


def test_server_that_sends_no_http(node: HttpNode, server: Server) -> None:
    def behave(handler: Handler) -> bool:
        handler.wfile.write(b"\0garbage\r\n" * 10)
        handler.close_connection = True
        return True

    server.behave = behave
    with pytest.raises(OSError, match="Input/output error"):
        node.read(0, 512)
    with pytest.raises(BlockError, match="CURL: Error opening file"):
        HttpNode(server.url)


def test_body_longer_than_it_says_it_is(node: HttpNode, server: Server) -> None:
    def behave(handler: Handler) -> bool:
        if len(server.requests) > 2:
            return False
        handler.answer(
            206, CONTENT[:4608] + b"HTTP/1.1 206 OK\r\n\r\nevil", {"Content-Range": f"bytes 0-4607/{len(CONTENT)}"}
        )
        return True

    server.behave = behave
    assert node.read(0, 512) == CONTENT[:512]
    assert node.read(100_000, 512) == CONTENT[100_000:100_512]


def test_silent_server(server: Server) -> None:
    let_go = threading.Event()
    server.behave = lambda handler: let_go.wait(60)
    node = HttpNode.__new__(HttpNode)
    with pytest.raises(BlockError, match="Timeout was reached"):
        node.__init__(server.url, HttpOptions(timeout=0.05))  # type: ignore[misc]
    let_go.set()


def test_nobody_listens(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(BlockError, match="CURL: Error opening file: Connection refused"):
        HttpNode(f"http://127.0.0.1:{port}/")


def test_secrets(server: Server) -> None:
    graph = BlockGraph()
    graph.secrets.add("s", {"data": "secret"})
    graph.secrets.add("c", {"data": "a=b"})
    node = open_node(tree(server, **{"username": "me", "password-secret": "s", "cookie-secret": "c"}), graph)
    assert server.requests[0]["authorization"] == "Basic bWU6c2VjcmV0"
    assert server.requests[0]["cookie"] == "a=b"
    node.release()


# ---- Redirects, names and passwords


def redirect(target: str) -> Callable[[Handler], bool]:
    def behave(handler: Handler) -> bool:
        if handler.path == "/disk.img":
            handler.answer(302, b"", {"Location": target})
            return True
        return False

    return behave


def test_redirects_are_followed(server: Server) -> None:
    server.behave = redirect("/elsewhere")
    node = HttpNode(server.url)
    assert node.read(0, 512) == CONTENT[:512]
    node.close()


def test_redirects_in_a_circle(server: Server) -> None:
    server.behave = redirect("/disk.img")
    with pytest.raises(BlockError, match="CURL: Error opening file"):
        HttpNode(server.url)
    assert len(server.requests) == 11


def test_passwords_are_not_told_to_other_hosts(server: Server) -> None:
    server.behave = redirect(f"http://localhost:{server.server_address[1]}/elsewhere")
    node = HttpNode(server.url, HttpOptions(username="me", password="secret", cookie="a=b"))
    assert server.requests[0]["authorization"] == "Basic bWU6c2VjcmV0"
    assert server.requests[0]["cookie"] == "a=b"
    assert "authorization" not in server.requests[1]
    assert "cookie" not in server.requests[1]
    node.close()


def test_password_in_the_address(server: Server) -> None:
    node = HttpNode(server.url.replace("//", "//me:sec%72et@"))
    assert server.requests[0]["authorization"] == "Basic bWU6c2VjcmV0"
    assert "secret" not in repr(HttpOptions(password="secret"))
    node.close()


def test_headers_cannot_be_smuggled_in(server: Server) -> None:
    with pytest.raises(BlockError, match="one line"):
        HttpNode(server.url, HttpOptions(cookie="a\r\nX: y"))


def test_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    node = HttpNode("http://far.away.invalid/disk.img", HttpOptions(proxy_username="me", proxy_password="secret"))
    assert node.read(0, 512) == CONTENT[:512]
    assert server.requests[0]["host"] == "far.away.invalid"
    assert server.requests[0]["proxy-authorization"] == "Basic bWU6c2VjcmV0"
    node.close()


# ---- Options


def test_opening_by_name(server: Server) -> None:
    node = open_image(server.url, format="raw", read_only=True)
    assert node.filename == server.url
    assert node.read(0, 512) == CONTENT[:512]
    node.release()
    with pytest.raises(BlockError, match="curl driver does not support writes"):
        open_image(server.url, format="raw")


def tree(server: Server, **options: Any) -> dict[str, Any]:
    return {"driver": "http", "node-name": "a", "url": server.url, "read-only": True, **options}


def test_options(server: Server) -> None:
    options = tree(server, readahead="1k", timeout="7", cookie="a=b", username="me")
    node = open_node({**options, "readahead": "1024", "read-only": "on"}, BlockGraph(), dialect=Dialect.KEYVAL)
    node.read(0, 512)
    assert ranges(server) == ["0-1535"]
    assert server.requests[0]["cookie"] == "a=b"
    node.release()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "https://a/"}, "http curl driver cannot handle the URL 'https://a/' (does not start with 'http://')"),
        ({"readahead": 100}, "HTTP_READAHEAD_SIZE 100 is not a multiple of 512"),
        ({"readahead": 1 << 40}, f"readahead {1 << 40} is more than {64 << 20}"),
        ({"timeout": 20000}, "timeout parameter is too large or negative"),
        ({"password-secret": "s"}, "No secret with id 's'"),
        ({"cookie": "a", "cookie-secret": "s"}, "curl driver cannot handle both cookie and cookie secret"),
        ({"read-only": False}, "curl driver does not support writes"),
        ({"url": "http://"}, "CURL: Error opening file: URL using bad/illegal format or missing URL"),
        ({"url": "http://[a/"}, "CURL: Error opening file: URL using bad/illegal format or missing URL"),
    ],
)
def test_bad_options(server: Server, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BlockError) as caught:
        open_node(tree(server, **options), BlockGraph())
    assert str(caught.value) == text


def test_auto_read_only(server: Server) -> None:
    node = open_node(tree(server, **{"read-only": False, "auto-read-only": True}), BlockGraph())
    assert node.read_only
    node.release()


def test_library_that_is_not_installed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(
        BlockError, match=r"needs the library urllib3, which is not installed: pip install 'pyvm\[http\]'"
    ):
        open_node(tree(server), BlockGraph())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_certificates(server: Server, tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=nobody -days 2".split()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    options = {**tree(server), "driver": "https", "url": server.url.replace("http", "https")}
    with pytest.raises(BlockError, match="CURL: Error opening file: SSL"):
        open_node(options, BlockGraph())
    node = open_node({**options, "sslverify": False}, BlockGraph())
    assert node.read(0, 512) == CONTENT[:512]
    node.release()
