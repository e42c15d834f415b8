"""Notebook servers over there, as users start them, of today and of years ago; and the end of all that is left."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
import pytest

from tests.sshd import free_port, wait_for

NEWEST = Path(sys.prefix)
LAB3 = NEWEST / "old" / "lab3"
NOTEBOOK6 = NEWEST / "old" / "notebook6"

# A variable and its value, both below the home, with which servers announce themselves in that directory.
RUNTIME_DIRS = (
    ("JUPYTER_RUNTIME_DIR", "a b", "a b"),
    ("JUPYTER_DATA_DIR", "data", "data/runtime"),
    ("XDG_DATA_HOME", "share", "share/jupyter/runtime"),
    ("XDG_RUNTIME_DIR", "run", "run/jupyter"),
    ("UNUSED", "", "Library/Jupyter/runtime"),
)


def needs(prefix: Path) -> pytest.MarkDecorator:
    """Skips what wants the environment `prefix`, where it could not be made."""
    return pytest.mark.skipif(
        not (prefix / "bin" / "python").exists(), reason=f"there is no {prefix}: tools/setup.sh says why"
    )


class Jupyter:
    """A server that the user whose home is `home` has started in `directory`. It is ready after `ready`.

    `options` are its command line's, `environment` is added to its variables, and `before` is put before its
    command line (`ip netns exec ...`). It listens on `port`, unless the options name a socket. To be closed.
    """

    def __init__(
        self,
        home: Path,
        *options: str,
        app: str = "jupyter_server",
        prefix: Path = NEWEST,
        directory: Path | None = None,
        port: int | None = None,
        before: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self.home = home
        self.directory = directory or home / "work"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = 0 if any(option.startswith("--sock") for option in options) else port or free_port()
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "USER") if name in os.environ}
        listen = (f"--port={self.port}", "--port-retries=0") if self.port else ()
        self.process = subprocess.Popen(
            [*before, prefix / "bin" / "python", "-m", app, "--no-browser", "--allow-root", *listen, *options],
            env={**kept, "HOME": str(home), **environment},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> Self:
        """Itself, once it has announced itself."""

        def has_announced() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.process.args!r}"
            with contextlib.suppress(ValueError):
                return bool(self.record)
            return False

        wait_for(has_announced, "the server to announce itself", 90)
        return self

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def token(self) -> str:
        return str(self.record["token"])

    @property
    def record(self) -> dict[str, Any]:
        """What its file says; empty while there is none."""
        for name in ("jpserver", "nbserver"):
            with contextlib.suppress(FileNotFoundError):
                return dict(json.loads((runtime_dir(self.home) / f"{name}-{self.pid}.json").read_text()))
        return {}

    def close(self) -> None:
        """Ends it as its user does, with its kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it at once: its file stays."""
        kill_with_children(self.pid)
        self.process.wait(10)


def runtime_dir(home: Path) -> Path:
    return home / ".local" / "share" / "jupyter" / "runtime"


def kill_with_children(pid: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


class Left(NamedTuple):
    """What a start by holdfast made: its directory, and the server's pid."""

    directory: Path
    pid: int

    @property
    def record(self) -> dict[str, Any]:
        """What the server's file says. It is in the runtime directory that the server has told."""
        runtime = Path((self.directory / "runtime-dir").read_text())
        (file,) = runtime.glob(f"*server-{self.pid}.json")
        return dict(json.loads(file.read_text()))


def started_in(home: Path) -> list[Left]:
    """What holdfast started for the user whose home is `home`, or that has a directory in it."""
    found = []
    for directory in Path("/tmp").glob("holdfast-*"):
        with contextlib.suppress(OSError, ValueError):
            if Path((directory / "directory").read_text().strip()).is_relative_to(home):
                found.append(Left(directory, int((directory / "pid").read_text())))
    return found


@contextlib.contextmanager
def all_ended(home: Path) -> Iterator[None]:
    """Ends what holdfast has started there, and removes it: it outlives holdfast, and is not to outlive a test."""
    try:
        yield
    finally:
        for left in started_in(home):
            kill_with_children(left.pid)
            shutil.rmtree(left.directory, ignore_errors=True)
        for process in psutil.process_iter():  # kernels whose server was killed
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(home) and "ipykernel_launcher" in process.cmdline():
                    process.kill()


class Visit(NamedTuple):
    """What a browser without scripts had: the page's address in the end, its status, and its cookies' names."""

    url: str
    status: int
    cookies: list[str]


def visit(url: str) -> Visit:
    """Goes to `url` as a browser does. No certificate is doubted."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(jar), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(url, timeout=20) as response:
        return Visit(response.url, response.status, [cookie.name for cookie in jar])
