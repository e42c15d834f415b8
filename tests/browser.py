"""A real Chromium without a window, for one test: a fresh profile, loopback only, no process afterwards."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest

from tests.sshd import wait_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome on the PATH")

# Chromium speaks the DevTools protocol on descriptors 3 and 4, which subprocess can't give it: a pipe, and not a
# port, is reached from outside a network namespace, and Chromium ends when it closes.
_LAUNCHER = (
    "import fcntl, os, sys; pipe = fcntl.fcntl(int(sys.argv[1]), fcntl.F_DUPFD, 10); "
    "os.dup2(pipe, 3); os.dup2(pipe, 4); os.close(pipe); os.execv(sys.argv[2], sys.argv[2:])"
)
_SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-sync",
    "--disable-extensions",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-default-apps",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--password-store=basic",
    "--use-mock-keychain",
    "--hide-scrollbars",
    # Nothing but this machine is reached, whatever a page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1",
)


class BrowserError(Exception):
    """The browser, or the page's script, could not do what it was asked for; the message says why."""


class Browser:
    """One tab of a Chromium that this starts. What its page says and fails to load is in `console` and `failures`.

    `prefix` is put before its command line (`ip netns exec ...`). To be used with `with`, or closed.
    """

    def __init__(self, profile: Path, *, width: int = 1000, height: int = 700, prefix: Sequence[str] = ()) -> None:
        assert CHROMIUM, "tests that use this are marked with needs_chromium"
        self._console: list[str] = []
        self._failures: list[str] = []
        self._urls: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._received = bytearray()
        self._session: str | None = None
        self._pipe, theirs = socket.socketpair()
        home = profile / "home"
        home.mkdir(parents=True)
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(*prefix, sys.executable, "-c", _LAUNCHER, str(theirs.fileno()), CHROMIUM, *_SWITCHES),
                    *(f"--user-data-dir={profile / 'data'}", "about:blank"),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)},
                start_new_session=True,
            )
        try:
            self._attach()
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def console(self) -> list[str]:
        """What was logged so far, 'error: ...': by scripts, or by the browser (uncaught, refused by a policy)."""
        self._receive_pending()
        return list(self._console)

    @property
    def failures(self) -> list[str]:
        """The requests that got no answer so far: 'net::ERR_CONNECTION_REFUSED http://...'."""
        self._receive_pending()
        return list(self._failures)

    def open(self, url: str, seconds: float = 30) -> None:
        """Goes to `url`; returns when its answer has begun. Raises BrowserError when there is none."""
        answer = self.command("Page.navigate", seconds, url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")

    def evaluate(self, script: str, seconds: float = 30) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise.

        Raises BrowserError when it throws, or when the page goes away meanwhile.
        """
        answer = self.command(
            "Runtime.evaluate",
            seconds,
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        if thrown := answer.get("exceptionDetails"):
            raise BrowserError(_described(thrown))
        return answer["result"].get("value")

    def wait_until(self, script: str, seconds: float = 15) -> None:
        """Returns once the expression is true, on whatever page is there; fails the test after `seconds`."""
        deadline = time.monotonic() + seconds
        while not self._holds(script, deadline):
            assert time.monotonic() < deadline, (
                f"waited {seconds} s for {script}; {self._console} {self._failures}"
            )
            time.sleep(0.02)

    def screenshot(self, path: Path) -> None:
        """Saves what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))

    def prefer_dark(self, dark: bool = True) -> None:
        """Sets the colour scheme that pages are told the user prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def resize(self, width: int, height: int) -> None:
        """Makes the page's viewport this large, in CSS pixels."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def command(self, method: str, seconds: float = 30, **parameters: object) -> dict[str, Any]:
        """What the DevTools protocol's `method` answers. Raises BrowserError when it refuses or takes longer."""
        deadline = time.monotonic() + seconds
        number = self._send(method, seconds, parameters)
        for answer in self._messages(deadline):
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
        raise BrowserError(f"{method}: no answer in {seconds} s")

    def _send(self, method: str, seconds: float, parameters: Mapping[str, object]) -> int:
        """The number by which the answer is known."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._pipe.settimeout(seconds)
        self._pipe.sendall(json.dumps(message).encode() + b"\0")
        return number

    def close(self) -> None:
        """Ends the browser and waits until none of its processes is left."""
        family = [self._process.pid, *self._descendants()]
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        wait_for(lambda: not any(map(_is_running, family)), "the browser's processes to end", 10)

    def _attach(self) -> None:
        targets = self.command("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.command("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def _descendants(self) -> list[int]:
        try:
            return [child.pid for child in psutil.Process(self._process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _holds(self, script: str, deadline: float) -> bool:
        try:
            # An element, by value, is an empty object here: the page itself says whether it is there.
            truth = f"(async () => Boolean(await ({script})))()"
            return bool(self.evaluate(truth, max(0.1, deadline - time.monotonic())))
        except BrowserError:
            return False

    def _receive_pending(self) -> None:
        for _ in self._messages(time.monotonic()):
            pass

    def _messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        """The messages that arrive until `deadline`; events among them are noted."""
        while True:
            message, end, rest = self._received.partition(b"\0")
            if end:
                self._received = rest
                yield self._noted(json.loads(message))
                continue
            self._pipe.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                arrived = self._pipe.recv(1 << 20)
            except (TimeoutError, BlockingIOError):
                return
            assert arrived, "the browser has ended"
            self._received += arrived

    def _noted(self, message: dict[str, Any]) -> dict[str, Any]:
        found = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                words = (str(value.get("value", value.get("description"))) for value in found["args"])
                self._console.append(f"{found['type']}: {' '.join(words)}")
            case "Runtime.exceptionThrown":
                self._console.append(f"error: {_described(found['exceptionDetails'])}")
            case "Log.entryAdded":
                self._console.append(f"{found['entry']['level']}: {found['entry']['text']}")
            case "Page.javascriptDialogOpening":  # such as whether to leave a page with work that isn't saved
                self._send("Page.handleJavaScriptDialog", 30, {"accept": True})
            case "Network.requestWillBeSent":
                self._urls[found["requestId"]] = found["request"]["url"]
            case "Network.loadingFailed":
                self._failures.append(f"{found['errorText']} {self._urls.get(found['requestId'], '')}".rstrip())
        return message


def _described(thrown: dict[str, Any]) -> str:
    """What was thrown, from the DevTools protocol's ExceptionDetails."""
    return str(thrown.get("exception", {}).get("description", thrown["text"]))


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
