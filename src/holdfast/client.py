"""The blocking client: finds the keeper, starts it if need be, asks, and hands on what it answers. No asyncio.

A newer command replaces an older keeper; the masters and their connections are not touched by that.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from holdfast import lock, paths
from holdfast.control import (
    ENVIRONMENT,
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

# Seconds for a keeper to start listening, for a running one to greet, and for one that its service starts.
START = 20.0
GREETING = 5.0
# Seconds without a change after which who follows a keeper asks whether it still answers.
SILENCE = 5.0
# Milliseconds: counters are told once, and not again while anybody listens.
_SELDOM = 86_400_000
ACTIVATION = 10.0

# Those to keepers, from before they are connected.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def abandon_all() -> None:
    """Closes a child's copies of all connections: its parent goes on with them, and may be just reading."""
    for connected in list(_sockets):
        with contextlib.suppress(OSError):
            os.close(connected.detach())


class Connection:
    """A greeted connection to the keeper, for one request."""

    def __init__(self, connected: socket.socket, greeting: Greeting) -> None:
        self._socket = connected
        self._received = b""
        self.greeting = greeting

    def close(self) -> None:
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
        """The next answer. Raises TimeoutError after `timeout` seconds in which nothing came, KeeperError.

        After a time-out it may be called again: what came of an answer is kept.
        """
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                raise KeeperError(f"the keeper went away: {error.strerror}", "try again") from None
            if not chunk:
                raise KeeperError(
                    "the keeper went away before it had answered", "try again; holdfast doctor tells more"
                )
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
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
        return answer_of(connection, request, timeout, progress, log_in, output, running)


def answer_of(
    connection: Connection,
    request: Request,
    timeout: float | None = None,
    progress: Callable[[TunnelStatus], None] = lambda _: None,
    log_in: Callable[[LoginOrder], int] = lambda _: 255,
    output: Callable[[str], None] = lambda _: None,
    running: float | None = None,
) -> list[TunnelStatus]:
    """As `ask`, over a connection that stays open."""
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


def environment() -> dict[str, str]:
    """What ssh needs of this session."""
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def absolute(options: Sequence[str]) -> tuple[str, ...]:
    """ssh's options with their files' paths made absolute: the keeper runs in another folder."""
    words = list(options)
    for place, (flag, value) in enumerate(zip(options[::2], options[1::2], strict=False)):
        if flag in ("-F", "-i") and value != "none" and Path(value).exists():
            words[2 * place + 1] = str(Path(value).absolute())
    return tuple(words)


class Following:
    """The tunnels of these names, or all, as they change: an iterator of control.Changes, those there are first.

    `interval` is in seconds: how often their counters are told, 0 for never. Raises KeeperError when the keeper
    goes away. To be closed, from any thread.
    """

    def __init__(self, names: Sequence[str] = (), interval: float = 0.0) -> None:
        self._connection = connect()
        self._connection.send(Follow(tuple(names), round(interval * 1000)))

    def __iter__(self) -> Iterator[Changes]:
        while True:
            yield self.receive(None)

    def receive(self, timeout: float | None) -> Changes:
        """The next changes. Raises KeeperError, TimeoutError after so many seconds: it may be called again."""
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
    connection = find() or _start()
    for may_activate in (True, False):  # the service may be of an older holdfast, too
        if _is_older(connection):
            connection.close()
            connection = _start(may_activate=may_activate)
    _check_protocol(connection)
    return connection


def known_now(timeout: float, *, counted: bool = False) -> list[TunnelStatus] | None:
    """The tunnels as the keeper knows them, without asking any far side; None when no keeper runs. Starts none.

    `counted`: with what has gone through them, and their connections, as these are now.
    Raises KeeperError, TimeoutError after `timeout` seconds without an answer.
    """
    connection = find_running(min(timeout, GREETING))
    if connection is None:
        return None
    with contextlib.closing(connection):
        _check_protocol(connection)
        connection.send(Follow((), _SELDOM if counted else 0))
        answer = connection.receive(timeout)
    if "error" in answer:
        raise error_from(answer["error"])
    return answer["changes"]["tunnels"]


def _check_protocol(connection: Connection) -> None:
    """Raises KeeperError for a keeper that speaks another one."""
    if connection.greeting["protocol"] != PROTOCOL:
        raise KeeperError(
            f"the keeper is holdfast {connection.greeting['holdfast']}, this command is {__version__}",
            "use the newer holdfast, or end the keeper (tunnels stay up): holdfast keeper stop",
        )


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


def find(seconds: float = GREETING) -> Connection | None:
    """A connection to the keeper that runs, or None. Its lock's file says where it listens.

    Raises KeeperError for one that doesn't answer within so many seconds.
    """
    try:
        path = paths.lock_file().read_text()
    except OSError:
        return None
    try:
        return _greeted(path, seconds) if path else None
    except TimeoutError:
        if not keeper_runs():  # its service listened for it
            return None
        raise KeeperError(
            "the keeper doesn't answer", "end it, tunnels stay up: pkill -u $USER -f holdfast.keeper"
        ) from None


def is_there() -> bool:
    """Whether a keeper runs and answers. Raises KeeperError for one that doesn't answer."""
    connection = find()
    if connection is not None:
        connection.close()
    return connection is not None


def find_running(seconds: float = GREETING) -> Connection | None:
    """As `find`, for those who only look on: a keeper that its service would start for it stays at rest."""
    return find(seconds) if paths.lock_file().exists() and keeper_runs() else None


def keeper_runs() -> bool:
    """Whether some process is the keeper, even one that doesn't answer."""
    descriptor = lock.acquire(paths.lock_file(), 0)
    if descriptor is not None:
        lock.release(descriptor)
    return descriptor is None


def _greeted(path: str, seconds: float) -> Connection | None:
    """A connection to the keeper at `path`, or None when it isn't there. Raises TimeoutError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _sockets.add(connected)
    connected.settimeout(seconds)
    try:
        _connect(connected, path, seconds)
        if peer_uid(connected) != os.getuid():  # it would be told our environment, and obeyed
            raise ConnectionRefusedError
        return Connection(connected, _read_greeting(connected))
    except (FileNotFoundError, ConnectionError):
        connected.close()
        return None
    except TimeoutError:
        connected.close()
        raise


def _connect(connected: socket.socket, path: str, seconds: float) -> None:
    """Raises TimeoutError after so many seconds in which the keeper's queue was full, OSError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connected.connect(path)
        except BlockingIOError:  # Linux, of a Unix socket: it is not waited for
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.02)


def stop(connection: Connection) -> None:
    """Ends the keeper at the other end, and waits until it is gone. Tunnels stay up."""
    with contextlib.closing(connection):
        connection.send(Stop())
        connection.receive(GREETING)
    with _locked(paths.lock_file(), START):  # held for as long as the keeper lives
        pass


def _start(*, may_activate: bool = True) -> Connection:
    """Starts the keeper, by its service if there is one, in the place of an older one. Of many commands that find
    none, one does it; programs with an older holdfast, whose keeper has just ended, wait for that."""
    with _locked(paths.state_dir() / "start.lock", START):
        connection = find()
        if connection is not None and _is_older(connection):
            stop(connection)
            connection = None
        if connection is None and may_activate:
            connection = _activate()
        if connection is None:
            _spawn()
            connection = find()
    if connection is None:
        raise KeeperError("the keeper did not start", f"its own words: {paths.keeper_log()}")
    return connection


def _activate() -> Connection | None:
    """A connection to the keeper that the service manager starts for it; None where no service works."""
    with contextlib.suppress(TimeoutError):
        return _greeted(str(paths.service_socket()), ACTIVATION)
    return None


# Keepers that this process has started. A program that runs for long may see them end.
_started: list[int] = []


def _reap() -> None:
    """Takes leave of those that have ended: they would stay as zombies."""
    for pid in list(_started):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _started.remove(pid)


def _pipe() -> tuple[int, int]:
    """Its writing end is none of the first three descriptors, which a program may have closed: a child has others
    in their places."""
    ready, first = os.pipe()
    told = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(first)
    return ready, told


def _spawn() -> None:
    import subprocess  # a command that finds its keeper doesn't need it

    _reap()

    ready, told = _pipe()
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
                _started.append(process.pid)
        finally:
            os.close(told)
        waiting = select.poll()  # select() takes no descriptor above 1023, which a program may have
        waiting.register(answer, select.POLLIN)
        if not waiting.poll(START * 1000):
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


def _is_older(connection: Connection) -> bool:
    """Whether the keeper is, than this command."""
    return _is_newer(__version__, connection.greeting["holdfast"])


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
        lock.release(descriptor)


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
