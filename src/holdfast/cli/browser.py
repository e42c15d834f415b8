"""Opens a page in the user's browser without showing its address, which has a token in it, to anybody else.

A browser is started with the address on its command line, which every user of the machine can read. So it is
given another one, good for one time and for this user only: who asks for it is who the kernel says.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

from holdfast import paths

# Seconds that the browser may take to ask.
PATIENCE = 20.0
# Bytes of its request that are read.
_LONGEST_REQUEST = 8192
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
        return _start(_redirecting_file(url), as_app=as_app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = f"/{secrets.token_urlsafe(24)}"
        address = f"http://127.0.0.1:{listener.getsockname()[1]}{path}"
        return _start(address, as_app=as_app) and _redirect_once(listener, path, url)


def _start(address: str, *, as_app: bool) -> bool:
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


def _redirect_once(listener: socket.socket, path: str, url: str) -> bool:
    """Sends whoever asks for `path` first, if it is a process of this user's, on to `url`."""
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            connection, client = listener.accept()
        except TimeoutError:
            return False
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2.0)
            asked = connection.recv(_LONGEST_REQUEST).partition(b"\r\n")[0]
            is_right = secrets.compare_digest(asked.split(b" ")[1] if b" " in asked else b"", path.encode())
            if is_right and _owner(client, listener.getsockname()) == os.getuid():
                connection.sendall(_answer("302 Found", f"Location: {url}\r\n"))
                return True
            connection.sendall(_answer("404 Not Found", ""))
    return False


def _answer(status: str, field: str) -> bytes:
    common = "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nContent-Length: 0\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{field}{common}\r\n\r\n".encode()


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


def _redirecting_file(url: str) -> str:
    """The address of a file, readable by this user only, that leads to `url`."""
    descriptor, name = tempfile.mkstemp(prefix="open-", suffix=".html", dir=paths.runtime_dir())
    with os.fdopen(descriptor, "w") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(url)}">')
    return Path(name).as_uri()
