"""A tunnel through a network of its own, and clients that never stop calling: what they see is what counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from tests.network import Network
from tests.sshd import free_port, wait_for

# Seconds from one call to the next, and that calls which still wait at the end are given.
PACE = 0.1
PATIENCE = 30.0
# Seconds after a master's sudden end in which its ports may be nobody's: the keeper has to see it first.
GAP = 0.2
# Connections that the web service takes at once: all that waited come together.
CROWD = 1024


class Outcome(StrEnum):
    ANSWERED = "answered"
    REFUSED = "refused"
    BROKEN = "broken"
    UNANSWERED = "unanswered"


class Call(NamedTuple):
    """When it began and ended, on the monotonic clock, and what the client saw."""

    port: int
    began: float
    ended: float
    outcome: Outcome


class Callers:
    """On the client somebody calls the web service behind each of `ports` all the time, answered or not.

    They call `localhost` as a browser does: who is refused at one of its addresses tries the other (`detours`).

    As a context manager; leaving it waits for the calls under way, at most PATIENCE seconds.
    """

    def __init__(self, network: Network, *ports: int) -> None:
        self.calls: list[Call] = []
        self.detours = 0
        self._network = network
        self._ports = ports
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def that(self, *outcomes: Outcome, since: float = 0.0, before: float = float("inf")) -> list[Call]:
        """The calls that ended with one of `outcomes` and began in that time."""
        return [call for call in list(self.calls) if call.outcome in outcomes and since <= call.began < before]

    def first_answer(self, since: float) -> float | None:
        """When the first call was answered at `since` or later."""
        answers = [
            call.ended for call in list(self.calls) if call.outcome is Outcome.ANSWERED and call.ended >= since
        ]
        return min(answers, default=None)

    def _run(self) -> None:
        self._network.client.call(lambda: asyncio.run(self._keep_calling()))

    async def _keep_calling(self) -> None:
        calling: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            for port in self._ports:
                task = asyncio.create_task(self._call(port))
                calling.add(task)
                task.add_done_callback(calling.discard)
            await asyncio.sleep(PACE)
        if calling:
            await asyncio.wait(calling, timeout=PATIENCE)
        for task in list(calling):
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to `localhost`. Raises OSError, of the second address."""
        try:
            return await asyncio.open_connection("::1", port)
        except ConnectionRefusedError:
            self.detours += 1
            return await asyncio.open_connection("127.0.0.1", port)

    async def _call(self, port: int) -> None:
        began, outcome = time.monotonic(), Outcome.UNANSWERED
        try:
            reader, writer = await self._connect(port)
            try:
                writer.write(b"GET / HTTP/1.0\r\n\r\n")
                answer = await reader.read()
            finally:
                writer.close()
            outcome = Outcome.ANSWERED if answer.endswith(b"hello") else Outcome.BROKEN
        except ConnectionRefusedError:
            outcome = Outcome.REFUSED
        except OSError:
            outcome = Outcome.BROKEN
        finally:
            self.calls.append(Call(port, began, time.monotonic(), outcome))


class _EchoHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while line := self.rfile.readline():
                self.wfile.write(line)


class _Echo(socketserver.ThreadingTCPServer):
    daemon_threads = True


class Conversation:
    """A connection that was established before the trouble. Raises OSError where it is broken."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._said = 0

    def goes_on(self, seconds: float = 10) -> bool:
        """Whether a line comes back unharmed within `seconds`: everything said before has, too."""
        self._said += 1
        line = f"line {self._said}\n".encode()
        try:
            self._connection.settimeout(seconds)
            self._connection.sendall(line)
            received = b""
            while not received.endswith(b"\n"):
                piece = self._connection.recv(100)
                if not piece:
                    return False
                received += piece
        except OSError:
            return False
        return received == line

    def close(self) -> None:
        self._connection.close()


@dataclass(slots=True, eq=False)
class Scene:
    """A network with a tunnel `lab` that is up: to a web service at `port`, and to an echo at `echo_port`."""

    network: Network
    port: int
    echo_port: int

    @property
    def home(self) -> Path:
        return self.network.sshd.home

    def holdfast(self, *words: str) -> str:
        """What the command prints, whether or not all is well."""
        return self.network.holdfast(*words).stdout

    def status(self, name: str = "lab") -> dict[str, Any]:
        """What `status` says of the tunnel, its keeper being started if there is none."""
        found = {record["name"]: record for record in json.loads(self.holdfast("status", "--json"))["tunnels"]}
        return dict(found[name])

    def wait_for_state(self, state: str, seconds: float = 15) -> dict[str, Any]:
        """The first status in which the tunnel is in `state`."""
        seen: list[dict[str, Any]] = []

        def is_reached() -> bool:
            seen.append(self.status())
            return bool(seen[-1]["state"] == state)

        try:
            wait_for(is_reached, state, seconds)
        except AssertionError as error:
            error.add_note(f"it was {seen[-1]['state']}: {seen[-1]['reason']}\n{self.keeper_log()}")
            raise
        return seen[-1]

    def keeper_log(self) -> str:
        log = self.home / "state" / "keeper.log"
        return log.read_text() if log.exists() else ""

    def wait_for_note(self, text: str, seconds: float = 15, after: int = 0) -> None:
        """Returns when the keeper's log, from its byte `after` on, has `text`. Nobody is asked for that."""
        wait_for(lambda: text in self.keeper_log()[after:], f"{text!r} in the keeper's log", seconds)

    def wait_for_answer(self, seconds: float = 15, port: int | None = None) -> None:
        """Returns when the web service answers through the tunnel, and fails when a call is refused."""
        with self.network.connect(port or self.port, timeout=seconds) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            received = b""
            while piece := connection.recv(1000):
                received += piece
        assert received.endswith(b"hello")

    def converse(self) -> Conversation:
        """A connection through the tunnel that is known to work."""
        conversation = Conversation(self.network.connect(self.echo_port))
        assert conversation.goes_on()
        return conversation

    def keepers(self) -> list[int]:
        """The keeper's pid, if there is one; a child that has yet to become another program isn't one."""
        found = self._running(lambda words: "holdfast.keeper" in words)
        return [pid for pid in found if _parent(pid) not in found]

    def masters(self) -> list[int]:
        """The pids of all masters, those that drain included. What ssh runs for itself (a jump) isn't one."""
        return self._running(lambda words: words[:1] == ["ssh"] and "-M" in words)

    def descriptors(self) -> int:
        """How many files the keeper has open."""
        (keeper,) = self.keepers()
        return psutil.Process(keeper).num_fds()

    def _running(self, chosen: Callable[[Sequence[str]], bool]) -> list[int]:
        found = []
        for pid in self.network.client.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and chosen(process.cmdline()):
                    found.append(pid)
        return found


def _parent(pid: int) -> int | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return None


@contextlib.contextmanager
def scene(network: Network, *words: str) -> Iterator[Scene]:
    """Brings the tunnel up, with `words` added to the command line. At the end it goes, and nothing is left."""
    web = network.serve_web()
    web.socket.listen(CROWD)
    echo = network.server.call(lambda: _Echo(("127.0.0.1", 0), _EchoHandler))
    serving = threading.Thread(target=echo.serve_forever, kwargs={"poll_interval": 0.02})
    serving.start()
    made = Scene(network, free_port(), free_port())
    forwards = (f"{made.port}:{web.port}", f"{made.echo_port}:{echo.server_address[1]}")
    try:
        up = network.holdfast("up", "-F", str(network.config), "lab", *forwards, *words)
        assert up.returncode == 0, up.stderr
        yield made
        check_that_nothing_is_left(made)
    finally:
        network.holdfast("keeper", "stop")
        echo.shutdown()
        echo.server_close()
        serving.join()


def check_that_nothing_is_left(made: Scene) -> None:
    """Takes the tunnels down and stops the keeper, as a person would: then no process and no socket is there.

    Nor has the keeper met with what it calls a bug meanwhile.
    """
    for words in (("down", "--all"), ("keeper", "stop")):
        done = made.network.holdfast(*words)
        assert done.returncode == 0, done.stderr
    wait_for(lambda: not _ours(made), f"{[psutil.Process(pid).cmdline() for pid in _ours(made)]} to end", 10)
    sockets = [path for path in (made.home / "run").rglob("*") if path.is_socket()]
    assert not sockets
    assert "Traceback" not in made.keeper_log(), made.keeper_log()


def _ours(made: Scene) -> list[int]:
    """The pids of what holdfast runs on the client, whatever it is."""
    return made._running(lambda words: words[:1] == ["ssh"] or any("holdfast" in word for word in words))


@contextlib.contextmanager
def scene_of_its_own(keys: Path, environment: Mapping[str, str], **more: bool) -> Iterator[Scene]:
    """A scene in a network and directories of its own, for many of them at once."""
    home = Path(tempfile.mkdtemp(prefix="hf"))
    own = {
        **environment,
        "HOLDFAST_RUNTIME_DIR": str(home / "run"),
        "HOLDFAST_STATE_DIR": str(home / "state"),
    }
    try:
        with Network(home, keys, own, **more) as network, scene(network) as made:
            yield made
    finally:
        shutil.rmtree(home)
