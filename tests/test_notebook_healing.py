"""Notebooks through outages: JupyterLab in Chromium, a cell that prints meanwhile, and the waiting room.

Everything is real: Lab on the server of a network of namespaces, the browser and holdfast on its client.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.request import Request, urlopen

import pytest
from websocket import WebSocket, WebSocketException, create_connection

from tests.browser import Browser, needs_chromium
from tests.conftest import get, tunnel
from tests.network import Network, network, network_or_skip
from tests.sshd import free_port, wait_for

__all__ = ["network"]

# Seconds from the network's being back to a page that can go on. Lab itself waits up to 1 s before it connects.
GOES_ON = 5.0
# Lines, one a second, that may be lost until the dead-man's switch has told the far side that nobody listens.
MOST_LOST = 15
# Seconds until a browser is shown the waiting room: two by the guard's rule, and some for a busy machine.
SHOWN = 3.0


class Lab(NamedTuple):
    """A JupyterLab on the network's server, and the client's port that leads to it."""

    network: Network
    port: int
    token: str

    def page(self, notebook: str) -> str:
        return f"http://localhost:{self.port}/lab/tree/{notebook}?token={self.token}"

    def start_kernel(self) -> str:
        """The id of a new kernel, which ends with the network."""
        address = f"http://127.0.0.1:{self.port}/api/kernels"
        request = Request(address, b"{}", {"Authorization": f"token {self.token}"})

        def answer() -> Any:
            with urlopen(request, timeout=30) as response:
                return json.load(response)

        return str(self.network.client.call(answer)["id"])

    def open_channel(self, kernel: str, session: str) -> WebSocket:
        """The kernel's WebSocket, as a page with that session opens it. Raises OSError, WebSocketException."""
        address = f"ws://127.0.0.1:{self.port}/api/kernels/{kernel}/channels"
        query = f"session_id={session}&token={self.token}"
        return self.network.client.call(lambda: create_connection(f"{address}?{query}", timeout=60))


@contextlib.contextmanager
def lab_through_a_tunnel(network: Network, home: Path, *options: str, as_notebook: bool = False) -> Iterator[Lab]:
    """Lab over a tunnel that was brought up with `options`. Its notebooks are in `home`.

    `as_notebook`: holdfast knows what it is.
    """
    lab, far = Lab(network, free_port(), secrets.token_hex(16)), free_port()
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    process = subprocess.Popen(
        [
            *(*network.server.prefix, sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ServerApp.ip=127.0.0.1", f"--port={far}", "--ServerApp.port_retries=0"),
            *(f"--ServerApp.root_dir={home}", "--LabApp.expose_app_in_browser=True"),
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env={**network.environment, **places, "JUPYTER_TOKEN": lab.token, "IPYTHONDIR": str(home / "ipython")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None
        with contextlib.suppress(OSError):
            return bool(network.server.call(lambda: get(far, "/api")))
        return False

    try:
        wait_for(answers, "Lab to answer", 40)
        bring_up(network, f"{lab.port}:{far}", *options)
        if as_notebook:
            found = network.holdfast("jupyter", "lab", "--port", str(far), "--no-browser")
            assert f"localhost:{lab.port}/lab?token={lab.token}" in found.stdout, found.stderr
        yield lab
    finally:
        process.kill()  # its kernels end with the network
        process.wait()


def bring_up(network: Network, forward: str, *options: str) -> None:
    up = network.holdfast("up", "-F", str(network.config), *options, "lab", forward)
    assert up.returncode == 0, up.stderr


_KERNEL = "[...jupyterapp.shell.widgets('main')][0].sessionContext.session.kernel"
_IS_CONNECTED = f"{_KERNEL}.connectionStatus === 'connected'"
_WATCHING = f"""
    window.reconnections = 0;
    window.dialogues = [];
    {_KERNEL}.connectionStatusChanged.connect(() => {{ reconnections += {_IS_CONNECTED} }});
    new MutationObserver(() => {{
        dialogues.push(...[...document.querySelectorAll(".jp-Dialog")].map((dialogue) => dialogue.innerText));
    }})
        .observe(document.body, {{ childList: true }});
"""
_OUTPUTS = "[...document.querySelectorAll('.jp-OutputArea-output')].map(output => output.innerText.trim())"


class NotebookPage:
    """A notebook in a browser. Its cells are run as a person does it, by Shift+Enter."""

    def __init__(self, browser: Browser, lab: Lab, home: Path, *cells: str) -> None:
        (home / "work.ipynb").write_text(json.dumps(_notebook(cells)))
        self._browser = browser
        browser.open(lab.page("work.ipynb"))
        browser.wait_until(f"{_IS_CONNECTED} && {_KERNEL}.status === 'idle'", 40)
        browser.wait_until("document.activeElement.closest('.jp-Notebook')")
        browser.evaluate(_WATCHING)

    @property
    def is_undisturbed(self) -> bool:
        """Whether it was never loaded again, and no dialogue was ever in the user's way."""
        return bool(self._browser.evaluate("window.dialogues.length === 0"))

    @property
    def dialogues(self) -> list[str]:
        """What the dialogues said that were in the user's way since it was loaded."""
        return [str(text) for text in self._browser.evaluate("window.dialogues")]

    @property
    def outputs(self) -> list[str]:
        """What its cells show."""
        return [str(text) for text in self._browser.evaluate(_OUTPUTS)]

    def wait_until_reconnected(self) -> None:
        """Until it has found its kernel again, since it was opened or this was last called."""
        self._browser.wait_until(f"reconnections > 0 && {_IS_CONNECTED}", GOES_ON)
        self._browser.evaluate("window.reconnections = 0")

    def run_next_cell(self) -> None:
        for part in ("rawKeyDown", "keyUp"):
            self._browser.command(
                "Input.dispatchKeyEvent",
                type=part,
                key="Enter",
                code="Enter",
                windowsVirtualKeyCode=13,
                modifiers=8,
            )

    def wait_for_outputs(self, *printed: str) -> None:
        """Until these are the outputs of its cells, from the first on."""
        self._browser.wait_until(f"{_OUTPUTS}.join() === {json.dumps(','.join(printed))}")


def _notebook(cells: Sequence[str]) -> dict[str, object]:
    empty: dict[str, object] = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
    return {
        "cells": [{**empty, "id": f"cell{number}", "source": source} for number, source in enumerate(cells)],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


@needs_chromium
def test_a_page_that_nobody_touches_runs_its_next_cell_after_a_cut_and_in_a_new_network(
    network: Network, home: Path
) -> None:
    with (
        lab_through_a_tunnel(network, home) as lab,
        Browser(home / "profile", prefix=network.client.prefix) as browser,
    ):
        page = NotebookPage(browser, lab, home, "x = 6; print(x)", "print(x * 7)", "print(x * 8)")
        page.run_next_cell()
        page.wait_for_outputs("6")

        network.cut()
        mended_at = time.monotonic() + 30
        wait_for(lambda: time.monotonic() > mended_at, "the end of the cut", 40)
        network.mend()
        page.wait_until_reconnected()
        page.run_next_cell()
        page.wait_for_outputs("6", "42")

        network.change_address()
        page.wait_until_reconnected()
        page.run_next_cell()
        page.wait_for_outputs("6", "42", "48")
        assert page.is_undisturbed


class PrintingCell(threading.Thread):
    """A cell that prints the numbers from 0, one a second, and whoever reads them as a Lab page does.

    When its WebSocket ends it is opened again for the same session, and the server sends what it kept meanwhile.
    """

    def __init__(self, lab: Lab, seconds: int) -> None:
        super().__init__()
        self.network = lab.network
        self._lab = lab
        self._numbers = range(seconds)
        self._seen: set[int] = set()
        self._progress = lab.network.sshd.home / "progress"
        self._progress.write_text("")
        self._kernel, self._session = lab.start_kernel(), secrets.token_hex(8)
        self._channel = lab.open_channel(self._kernel, self._session)
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self._execute(
            f"""
            import time
            for number in {self._numbers!r}:
                print(number, flush=True)
                with open({str(self._progress)!r}, "a") as progress:
                    print(number, file=progress)
                time.sleep(1)
            """
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if own := self._channel.sock:
            with contextlib.suppress(OSError):
                own.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self.join()

    @property
    def lost(self) -> int:
        """How many of the numbers never arrived. Waits for the cell's end."""
        assert self._is_over.wait(len(self._numbers)), f"the cell did not end; {sorted(self._seen)} arrived"
        return len(self._numbers) - len(self._seen)

    def wait_until_printed(self, count: int) -> None:
        """Until it has printed so many over there, whatever arrives here: seconds by the outage's own clock."""
        wait_for(lambda: self._progress.read_text().count("\n") >= count, f"the cell to print {count} lines", 90)

    def wait_until_arrived(self, count: int) -> None:
        """Until so many are here, the last one just now: for most of a second nothing is on its way."""
        wait_for(lambda: count - 1 in self._seen, f"line {count} to arrive", 90)

    def run(self) -> None:
        while not self._is_over.is_set():
            received: str | bytes = ""
            with contextlib.suppress(OSError, WebSocketException):
                received = self._channel.recv()
            if received:
                self._read(json.loads(received))
            else:
                self._open_again()
        self._hang_up()

    def _read(self, message: Mapping[str, Any]) -> None:
        if message["parent_header"].get("msg_id") != self._session:
            return
        content = message["content"]
        if message["msg_type"] == "stream":
            self._seen.update(map(int, content["text"].split()))
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            self._is_over.set()

    def _hang_up(self) -> None:
        if own := self._channel.sock:  # None once the other side has ended it
            own.close()

    def _open_again(self) -> None:
        self._hang_up()
        while not self._is_over.wait(0.5):
            with contextlib.suppress(OSError, WebSocketException):
                self._channel = self._lab.open_channel(self._kernel, self._session)
                return

    def _execute(self, code: str) -> None:
        header = {"msg_id": self._session, "msg_type": "execute_request", "session": self._session}
        content = {"code": inspect.cleandoc(code), "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": {**header, "username": "", "version": "5.3"}, "content": content}
        self._channel.send(json.dumps({**message, "parent_header": {}, "metadata": {}, "channel": "shell"}))


Start = Callable[..., PrintingCell]


@pytest.fixture
def start(home: Path, keys: Path, environment: Mapping[str, str]) -> Iterator[Start]:
    """Starts a cell that prints for some seconds, each in a network of its own; tunnels take the options given."""
    with contextlib.ExitStack() as stack:

        def start(seconds: int, *options: str) -> PrintingCell:
            own = Path(tempfile.mkdtemp(dir=home))
            places = {"HOLDFAST_RUNTIME_DIR": f"{own}/run", "HOLDFAST_STATE_DIR": f"{own}/state"}
            network = stack.enter_context(network_or_skip(own, keys, {**environment, **places}))
            lab = stack.enter_context(lab_through_a_tunnel(network, own, *options))
            return stack.enter_context(PrintingCell(lab, seconds))

        yield start


@pytest.mark.timeout(180)
def test_the_switch_is_why_a_silent_cut_of_50_s_costs_a_printing_cell_few_lines(start: Start) -> None:
    _, moves, plain = cells = [start(66), start(66), start(66, "--no-switch")]
    plain.wait_until_printed(5)
    for cell in cells:
        cell.network.drop()
    plain.wait_until_printed(55)
    for cell in (moves, plain):  # or TCP would bring the old connection back, and lose nothing
        cell.network.change_address()
    for cell in cells:
        cell.network.pass_again()
    lost = [cell.lost for cell in cells]
    assert max(lost[:2]) <= MOST_LOST
    assert lost[2] >= 45


def test_a_connection_that_ends_cleanly_costs_a_printing_cell_nothing(start: Start) -> None:
    cell = start(8)
    for arrived in (2, 5):
        cell.wait_until_arrived(arrived)  # what sshd had yet to send would die with it
        cell.network.kill_sessions()
    assert cell.lost == 0


@pytest.fixture
def port(network: Network) -> int:
    """The client's port of a forward that carries HTTP, to a `Web`."""
    port = free_port()
    bring_up(network, f"{port}:{network.serve_web().port}", "--http")
    return port


def cut_and_noticed(network: Network) -> None:
    network.cut()
    wait_for(lambda: tunnel(network.holdfast("status", "--json"))["state"] == "stalled", "the stall")


@needs_chromium
def test_a_browser_sees_the_waiting_room_in_a_cut_and_then_the_page_by_itself(
    network: Network, port: int, home: Path
) -> None:
    with Browser(home / "profile", prefix=network.client.prefix) as browser:
        cut_and_noticed(network)
        went_at = time.monotonic()
        browser.open(f"http://localhost:{port}/")
        browser.wait_until("document.title === 'Waiting for lab'", SHOWN)
        assert time.monotonic() - went_at < SHOWN
        assert browser.evaluate("performance.getEntriesByType('navigation')[0].responseStatus") == 503
        network.mend()
        browser.wait_until("document.body.textContent === 'hello'", GOES_ON)
        assert not any("REFUSED" in failure for failure in browser.failures)


_NAVIGATION = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nSec-Fetch-Dest: document\r\n\r\n"
_OF_CURL = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\r\n"
# Evaluates to nothing that would be waited for.
_ASKING = """
    window.answers = [];
    window.channel = new WebSocket(`ws://${location.host}/`);
    channel.onerror = () => answers.push("error");
    fetch("/").then(async (answer) => answers.push(answer.status, await answer.text()));
    null
"""


@needs_chromium
def test_what_is_no_navigation_is_held_while_navigations_are_answered(
    network: Network, port: int, home: Path
) -> None:
    with Browser(home / "profile", prefix=network.client.prefix) as browser:
        browser.open(f"http://localhost:{port}/")
        cut_and_noticed(network)
        with network.connect(port) as curl:
            curl.sendall(_OF_CURL)
            browser.evaluate(_ASKING)
            with network.connect(port) as navigation:  # later than they, and answered all the same
                navigation.sendall(_NAVIGATION)
                assert navigation.recv(1000).startswith(b"HTTP/1.1 503 ")
            assert browser.evaluate("[answers, channel.readyState]") == [[], 0]
            assert not select.select([curl], [], [], 0)[0]
            network.mend()
            browser.wait_until("answers.join().includes('200,hello')", GOES_ON)
            assert curl.recv(1000).startswith(b"HTTP/1.0 200 ")
