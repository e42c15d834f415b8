from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.sshd import Sshd, make_key, wait_for


@pytest.fixture(scope="session")
def keys() -> Iterator[Path]:
    """A directory with the keys `host`, `other_host` and `user`."""
    with tempfile.TemporaryDirectory(prefix="hfk") as made:
        for name in ("host", "other_host", "user"):
            make_key(Path(made) / name)
        yield Path(made)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short directory (sockets live in it), and the check that a test leaves no process behind."""
    made = Path(tempfile.mkdtemp(prefix="hf"))
    yield made
    deadline = time.monotonic() + 3
    while (left := _processes_of(made)) and time.monotonic() < deadline:
        time.sleep(0.02)  # what holds a connection leaves by itself when that has ended
    for process in left:
        process.kill()
    shutil.rmtree(made)
    assert not left, f"left running: {[process.info['cmdline'] for process in left]}"


def _processes_of(home: Path) -> list[psutil.Process]:
    """The processes that have the test's directory in their command line or environment."""
    mark, found = str(home), []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        try:
            words = process.info["cmdline"] or []
            if process.pid == os.getpid() or process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            if any(mark in word for word in words) or mark in process.environ().get("HOLDFAST_RUNTIME_DIR", ""):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def sshd(home: Path, keys: Path) -> Iterator[Sshd]:
    """A running sshd that `ssh -F sshd.config lab` gets into."""
    server = Sshd(home, keys).start()
    yield server
    server.stop()


@pytest.fixture
def environment(home: Path) -> Mapping[str, str]:
    """The environment of a user whose keeper, sockets and state are this test's alone."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}
    return {
        **kept,
        "HOLDFAST_RUNTIME_DIR": str(home / "run"),
        "HOLDFAST_STATE_DIR": str(home / "state"),
        "PYTHONWARNINGS": "error",
        "COLUMNS": "120",
    }


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def tunnel(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one tunnel that a command printed with --json."""
    (found,) = json.loads(result.stdout)["tunnels"]
    return dict(found)


def get(port: int, path: str = "/", host: str = "127.0.0.1") -> bytes:
    """What an HTTP server here answers to GET."""
    address = f"[{host}]" if ":" in host else host
    with urllib.request.urlopen(f"http://{address}:{port}{path}", timeout=20) as response:
        return bytes(response.read())


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something listens on the port."""
    try:
        socket.create_connection((host, port), 2).close()
    except (ConnectionRefusedError, ConnectionResetError):  # or it was closed just then
        return False
    return True


@pytest.fixture
def holdfast(environment: Mapping[str, str], home: Path) -> Iterator[Run]:
    """Runs the real command as a user would; ends the keeper and every master it left when the test is over.

    Whoever else is on this machine, which is the far side, too, has been told of already.
    """
    say_nothing_of_others(home)

    def run(*words: str, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *words],
            env={**environment, **more},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    yield run
    if (home / "state" / "keeper.lock").exists():
        run("down", "--all")
        run("keeper", "stop")
        wait_for(lambda: not _keepers(home), "the keeper to end", 10)


def say_nothing_of_others(home: Path, *hosts: str) -> None:
    """Has `up` not tell of other people on the host: it was told."""
    (home / "state").mkdir(mode=0o700, exist_ok=True)
    (home / "state" / "people.json").write_text(json.dumps(dict.fromkeys(hosts or ("lab",), "told")))


def _keepers(home: Path) -> list[int]:
    found = [p for p in _processes_of(home) if "holdfast.keeper" in p.info["cmdline"]]
    pids = {p.pid for p in found}
    with contextlib.suppress(psutil.Error):
        return [p.pid for p in found if p.ppid() not in pids]  # a child looks like its parent until it is ssh
    return _keepers(home)  # one has just ended


@pytest.fixture
def kill_keeper(home: Path) -> Callable[[], None]:
    def kill() -> None:
        killed = _keepers(home)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        # A program with a lease starts another one at once.
        wait_for(lambda: not set(killed).intersection(_keepers(home)), "the keeper to be gone")

    return kill


class Web(ThreadingHTTPServer):
    """A service on the far side: `/` says hello, `/big` sends `BIG` bytes, slowly enough to be interrupted."""

    BIG = 20_000_000

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _WebHandler)
        self.port = self.server_address[1]


class _WebHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/big":
            for _ in range(200):
                self.wfile.write(b"x" * (Web.BIG // 200))
                time.sleep(0.005)
        else:
            self.wfile.write(b"hello")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    """A running `Web`."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    """A running `Web`."""
    with serving() as server:
        yield server
