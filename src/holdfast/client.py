"""The blocking client: finds the keeper, starts it if need be, asks, and hands on what it answers. No asyncio.

A newer command replaces an older keeper; the masters and their connections are not touched by that.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from holdfast import lock, paths
from holdfast.control import (
    PROTOCOL,
    Answer,
    Changes,
    Follow,
    Greeting,
    LoginEnded,
    LoginOrder,
    Request,
    Stop,
    TunnelStatus,
    encode_request,
    error_from,
)
from holdfast.errors import KeeperError
from holdfast.peer import peer_uid
from holdfast.version import __version__

# Seconds for a keeper to start listening, and for a running one to greet.
START = 20.0
GREETING = 5.0


class Connection:
    """A greeted connection to the keeper, for one request."""

    def __init__(self, connected: socket.socket, greeting: Greeting) -> None:
        self._socket = connected
        self._file = connected.makefile("rb")
        self.greeting = greeting

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def hang_up(self) -> None:
        """Ends it from another thread: whoever receives there is told that the keeper went away."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, request: Request) -> None:
        try:
            self._socket.sendall(encode_request(request))
        except OSError as error:
            raise KeeperError(f"the keeper went away: {error.strerror}", "try again") from None

    def receive(self, timeout: float | None) -> Answer:
        """The next answer. Raises TimeoutError after `timeout` seconds without one, KeeperError."""
        self._socket.settimeout(timeout)
        try:
            line = self._file.readline()
        except TimeoutError:
            raise
        except OSError as error:
            raise KeeperError(f"the keeper went away: {error.strerror}", "try again") from None
        if not line.endswith(b"\n"):
            raise KeeperError(
                "the keeper went away before it had answered", "try again; holdfast doctor tells more"
            )
        answer: Answer = json.loads(line)
        return answer


def ask(
    request: Request,
    *,
    timeout: float | None = None,
    progress: Callable[[TunnelStatus], None] = lambda _: None,
    log_in: Callable[[LoginOrder], int] = lambda _: 255,
    notice: Callable[[str], None] = lambda _: None,
    output: Callable[[str], None] = lambda _: None,
    running: float | None = None,
) -> list[TunnelStatus]:
    """The keeper's answer to `request`.

    `progress` is called with each intermediate state; `log_in` when a person must log in at this terminal, and
    returns ssh's exit status; `notice` with what the user has to be told once; `output` with what a program over
    there prints, as it comes. `timeout` is in seconds, and doesn't run during a login; a program that has begun
    may run for `running` seconds more.
    Raises HoldfastError as the keeper says, KeeperError, TimeoutError.
    """
    with contextlib.closing(connect()) as connection:
        if connection.greeting["notice"]:
            notice(connection.greeting["notice"])
        connection.send(request)
        clock = _Clock(timeout)
        is_running = False
        while True:
            answer = connection.receive(clock.left())
            if "progress" in answer:
                progress(answer["progress"])
            elif "login" in answer:
                with clock.stopped():
                    status = log_in(answer["login"])
                connection.send(LoginEnded(answer["login"]["number"], status))
            elif "output" in answer:
                if not is_running:
                    is_running, clock = True, _Clock(running)
                output(answer["output"])
            elif "error" in answer:
                raise error_from(answer["error"])
            else:
                return answer["done"]


class Following:
    """The tunnels of these names, or all, as they change: an iterator of control.Changes, those there are first.

    `interval` is in seconds: how often their counters are told, 0 for never. Raises KeeperError when the keeper goes
    away, HoldfastError for a name that it doesn't know. To be closed, from any thread.
    """

    def __init__(self, names: Sequence[str] = (), interval: float = 0.0) -> None:
        self._connection = connect()
        self._connection.send(Follow(tuple(names), round(interval * 1000)))

    def __iter__(self) -> Iterator[Changes]:
        while True:
            yield self.receive(None)

    def receive(self, timeout: float | None) -> Changes:
        """The next changes. Raises TimeoutError after `timeout` seconds without any, KeeperError, HoldfastError."""
        answer = self._connection.receive(timeout)
        if "error" in answer:
            raise error_from(answer["error"])
        return answer["changes"]

    def close(self) -> None:
        self._connection.hang_up()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._connection.close()


def connect() -> Connection:
    """A connection to a keeper that this command understands, started or replaced if need be."""
    connection = find()
    if connection is not None and _is_newer(__version__, connection.greeting["holdfast"]):
        stop(connection)
        connection = None
    if connection is None:
        connection = _start()
    if connection.greeting["protocol"] != PROTOCOL:
        raise KeeperError(
            f"the keeper is holdfast {connection.greeting['holdfast']}, this command is {__version__}",
            "use the newer holdfast, or end the keeper (tunnels stay up): holdfast keeper stop",
        )
    return connection


def something_is_wanted() -> bool:
    """Whether a tunnel is up or was up when the keeper ended; when in doubt, yes."""
    try:
        record = json.loads(paths.state_file().read_text())
        # A master without a tunnel was being taken down when the keeper died: the next one ends it.
        return bool(record["masters"]) or any(tunnel["wanted"] for tunnel in record["tunnels"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


def find() -> Connection | None:
    """A connection to the keeper that runs, or None. Its lock's file says where it listens."""
    try:
        path = paths.lock_file().read_text()
    except OSError:
        return None
    if not path:
        return None
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(GREETING)
    try:
        connected.connect(path)
        if peer_uid(connected) != os.getuid():  # it would be told our environment, and obeyed
            raise ConnectionRefusedError
        greeting = _read_greeting(connected)
    except (FileNotFoundError, ConnectionError):
        connected.close()
        return None
    except TimeoutError:
        connected.close()
        raise KeeperError(
            "the keeper doesn't answer", "end it, tunnels stay up: pkill -u $USER -f holdfast.keeper"
        ) from None
    return Connection(connected, greeting)


def stop(connection: Connection) -> None:
    """Ends the keeper at the other end, and waits until it is gone. Tunnels stay up."""
    with contextlib.closing(connection):
        connection.send(Stop())
        connection.receive(GREETING)
    with _locked(paths.lock_file(), START):  # held for as long as the keeper lives
        pass


def _start() -> Connection:
    """Starts the keeper. Of many commands that find none, one does; the others wait for it."""
    with _locked(paths.state_dir() / "start.lock", START):
        connection = find()
        if connection is None:
            _spawn()
            connection = find()
    if connection is None:
        raise KeeperError("the keeper did not start", f"its own words: {paths.keeper_log()}")
    return connection


def _spawn() -> None:
    import subprocess  # a command that finds its keeper doesn't need it

    ready, told = os.pipe()
    with os.fdopen(ready, "rb") as answer:
        try:
            with paths.keeper_log().open("ab") as log:
                # -P: a folder named `holdfast` where the user happens to be must not be imported.
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "holdfast.keeper", "--ready", str(told)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd="/",
                    pass_fds=[told],
                    start_new_session=True,
                )
                process.returncode = 0  # it outlives this command: no warning that nobody waits for it
        finally:
            os.close(told)
        if not select.select([answer], [], [], START)[0]:
            raise KeeperError(
                f"the keeper did not start within {START:g} s", f"its own words: {paths.keeper_log()}"
            )
        said = answer.readline().decode().strip()
    if said != "ready":
        message, _, hint = said.partition("\t")
        raise KeeperError(message or "the keeper did not start", hint or f"its own words: {paths.keeper_log()}")


def _read_greeting(connected: socket.socket) -> Greeting:
    received = b""
    while not received.endswith(b"\n"):
        chunk = connected.recv(1024)
        if not chunk:
            raise ConnectionResetError
        received += chunk
    greeting: Greeting = json.loads(received)
    return greeting


def _is_newer(one: str, other: str) -> bool:
    return _numbers(one) > _numbers(other)


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


@contextlib.contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    descriptor = lock.acquire(path, seconds)
    if descriptor is None:
        raise KeeperError(f"waited {seconds:g} s for another holdfast command", f"see who has it: fuser {path}")
    try:
        yield
    finally:
        os.close(descriptor)


class _Clock:
    """Counts down from so many seconds, or never; can be stopped while a person types."""

    def __init__(self, seconds: float | None) -> None:
        self._ends = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, None for ever. Raises TimeoutError when there are none."""
        if self._ends is None:
            return None
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        if self._ends is not None:
            self._ends += time.monotonic() - began
