"""Opens a page in the user's browser without showing its address, which has a token in it, to anybody else.

A browser is started with the address on its command line, which every user of the machine can read. So it is
given another one, good for one time and for this user only: who asks for it is who the kernel says.
"""

from __future__ import annotations

import http.server
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from html import escape
from pathlib import Path

from holdfast import paths

# Seconds that the browser may take to ask.
PATIENCE = 20.0
# Seconds that it may take to read a file.
READING = 5.0
_CHROMES = (
    "google-chrome",
    "google-chrome-stable",
    "chromium",
    "chromium-browser",
    "brave-browser",
    "microsoft-edge",
)


def is_there() -> bool:
    """Whether a browser with a window can be opened from here."""
    if os.environ.get("BROWSER") or sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(url: str, *, as_app: bool = False) -> bool:
    """Opens `url`; whether a browser has taken it. `as_app`: in a Chromium window of its own, if possible."""
    if not Path("/proc/net/tcp").exists():
        return _open_file(url, as_app=as_app)
    with _HandOver(url) as server:
        # Some browsers are waited for until they end.
        threading.Thread(target=_start, args=(server.address, as_app), daemon=True).start()
        deadline = time.monotonic() + PATIENCE
        while not server.is_taken and time.monotonic() < deadline:
            server.handle_request()
        return server.is_taken


class _HandOver(http.server.ThreadingHTTPServer):
    """Sends the first process of this user's that asks for its address on to `url`; others are hung up on."""

    timeout = 0.2

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = url
        self.path = f"/{secrets.token_urlsafe(24)}"
        self.is_taken = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"

    def verify_request(self, request: object, client_address: object) -> bool:  # noqa: ARG002
        assert isinstance(client_address, tuple)
        return _owner(client_address, ("127.0.0.1", self.server_port)) == os.getuid()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no trouble of ours."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _HandOver
    timeout = 2.0

    def do_GET(self) -> None:
        is_right = (
            secrets.compare_digest(self.path.encode(), self.server.path.encode()) and not self.server.is_taken
        )
        self.send_response(302 if is_right else 404)
        if is_right:
            self.send_header("Location", self.server.url)
        for name, value in (("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer")):
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.is_taken = self.server.is_taken or is_right

    def log_message(self, format: str, *args: object) -> None:
        """The terminal is for other things."""


def _start(address: str, as_app: bool) -> bool:
    if as_app and (chrome := next(filter(None, map(shutil.which, _CHROMES)), None)):
        process = subprocess.Popen(
            [chrome, f"--app={address}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process.returncode = 0  # it outlives this command
        return True
    import webbrowser

    return webbrowser.open(address)


def _owner(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The uid of the process at the client's end of a connection on this machine."""
    local, remote = (f"{_reversed(host)}:{port:04X}" for host, port in (client, server))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[2] == remote:
            return int(fields[7])
    return None


def _reversed(host: str) -> str:
    return socket.inet_aton(host)[::-1].hex().upper()


def _open_file(url: str, *, as_app: bool) -> bool:
    """By a file, readable by this user only, that leads to `url`; it goes when the browser has had time for it."""
    descriptor, name = tempfile.mkstemp(prefix="open-", suffix=".html", dir=paths.runtime_dir())
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(url)}">')
        has_started = _start(Path(name).as_uri(), as_app)
        time.sleep(READING)
    finally:
        Path(name).unlink()
    return has_started
