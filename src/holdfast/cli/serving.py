"""An HTTP server for `metrics --serve`: GET /metrics, on loopback or on a Unix socket, and nothing else.

What it tells (hosts, ports) is nobody else's business. So a port of this machine only, and no page of a browser's
whose name was made to lead here; a socket is the user's alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import socketserver
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, UsageError
from holdfast.metrics import CONTENT_TYPE
from holdfast.peer import is_stale

PATH = "/metrics"
_EXAMPLES = "as in --serve 9101, --serve 127.0.0.1:9101 or --serve /run/user/1000/holdfast-metrics"
# Seconds for which a connection may say nothing.
_PATIENCE = 30.0

Text = Callable[[], str]


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves what `text()` gives at that time. `listener` is bound and listens; closed with the server."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, text: Text) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.text = text

    @property
    def is_local_socket(self) -> bool:
        return self.socket.family == socket.AF_UNIX

    @property
    def url(self) -> str:
        """Where it is: a URL, or the path of the socket."""
        name = self.socket.getsockname()
        if self.is_local_socket:
            return str(name)
        host, port = name[:2]
        return f"http://[{host}]:{port}{PATH}" if ":" in host else f"http://{host}:{port}{PATH}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nobody's trouble; anything else is to be seen."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE
    server: Server

    def do_GET(self) -> None:
        if not self.server.is_local_socket and not _is_ours(self.headers.get("Host", "")):
            self._answer(HTTPStatus.FORBIDDEN, "this is served to this machine only\n")
        elif self.path.partition("?")[0] != PATH:
            self._answer(HTTPStatus.NOT_FOUND, f"there is only {PATH}\n")
        else:
            try:
                self._answer(HTTPStatus.OK, self.server.text(), CONTENT_TYPE)
            except (HoldfastError, TimeoutError) as error:
                why = str(error) or "the keeper did not answer in time"
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{why}\n")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "holdfast"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def server(address: str, text: Text) -> Iterator[Server]:
    """A server on `address`, a loopback port or a path, that ends with its `with`, also by SIGTERM.

    Raises UsageError for an address that isn't one of these, HoldfastError when it can't be had.
    """
    path = Path(address) if "/" in address else None
    with contextlib.ExitStack() as ending:
        listener = _listen_at(path) if path else _listen_on(*_parse(address))
        if path:
            ending.callback(_remove, path, path.lstat().st_ino)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        ending.callback(signal.signal, signal.SIGTERM, before)
        yield ending.enter_context(Server(listener, text))


def _parse(address: str) -> tuple[str, int]:
    """The loopback address and port that are meant. Raises UsageError."""
    host, colon, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise UsageError(f"'{address[:60]}' is not a port or a path", _EXAMPLES)
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    if not _is_loopback(host):
        raise UsageError(
            f"'{host[:60]}' is not an address of this machine alone, and metrics name your hosts and ports",
            f"serve them on --serve {port}, and have them fetched through a tunnel",
        )
    return ("127.0.0.1" if host == "localhost" else host), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_ours(host: str) -> bool:
    """Whether a request's Host is this machine, which no name that a page was loaded from can be."""
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return _is_loopback(name)


def _listen_on(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise HoldfastError(f"can't listen on {host}:{port}: {error.strerror}", "try another port") from None
    return listener


def _listen_at(path: Path) -> socket.socket:
    """A listener at `path` that only its user can connect to; a socket on which nobody listens is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        if is_stale(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        listener.close()
        raise HoldfastError(f"can't listen at {path}: {error.strerror or error}", "try another path") from None
    finally:
        os.umask(mask)
    return listener


def _remove(path: Path, inode: int) -> None:
    """Removes the socket, unless another has taken its place."""
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_ino == inode:
            path.unlink()
