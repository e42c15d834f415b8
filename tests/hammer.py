"""`python -m tests.hammer PORT HOST...`: a program that connects all the time, whatever becomes of it.

With more than one HOST each connection tries them in turn, as browsers do. It stops when stdin ends, and prints
a `Count` as JSON. `python -m tests.hammer serve` is what it should reach: prints its port, greets whoever comes.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

GREETING = b"!"
# Connections a second of each hammer: some for each millisecond would leave this machine no time for ssh.
PACE = 200.0
# Seconds that a connection may wait for its greeting when the hammer has stopped.
PATIENCE = 20.0


@dataclass
class Count:
    """What became of a hammer's connections: when the unlucky ones began, on the monotonic clock."""

    connections: int = 0
    greeted: int = 0
    refused: list[float] = field(default_factory=list)
    reset: list[float] = field(default_factory=list)

    def __add__(self, other: Count) -> Count:
        return Count(
            self.connections + other.connections,
            self.greeted + other.greeted,
            self.refused + other.refused,
            self.reset + other.reset,
        )


class Hammer:
    """A hammer in a process of its own, from `with` to `stop`, which says what it saw."""

    def __init__(self, port: int, *hosts: str) -> None:
        self._argv = [sys.executable, "-m", "tests.hammer", str(port), *hosts]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def stop(self) -> Count:
        printed, _ = self._process.communicate(timeout=PATIENCE + 10)
        return Count(**json.loads(printed))

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()


@contextlib.contextmanager
def service() -> Iterator[int]:
    """The port of a greeting service in a process of its own."""
    argv = [sys.executable, "-m", "tests.hammer", "serve"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def serve() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(GREETING)


def hammer(port: int, hosts: Sequence[str]) -> Count:
    count = Count()
    with select.epoll() as ready:
        ready.register(sys.stdin.fileno(), select.EPOLLIN)
        pending: dict[int, tuple[socket.socket, float]] = {}
        due, is_over = 0.0, False
        while not is_over:
            if time.monotonic() >= due:
                _connect(port, hosts, count, pending, ready)
                due = time.monotonic() + 1 / PACE
            is_over = _collect(count, pending, ready, due - time.monotonic())
        end = time.monotonic() + PATIENCE
        ready.unregister(sys.stdin.fileno())
        while pending and time.monotonic() < end:
            _collect(count, pending, ready, end - time.monotonic())
    return count


def _connect(
    port: int,
    hosts: Sequence[str],
    count: Count,
    pending: dict[int, tuple[socket.socket, float]],
    ready: select.epoll,
) -> None:
    count.connections += 1
    began = time.monotonic()
    for host in hosts:
        try:
            connection = socket.create_connection((host, port), PATIENCE)
        except ConnectionRefusedError:
            continue
        except ConnectionResetError:  # the listener was closed in the middle of the handshake
            count.reset.append(began)
            return
        pending[connection.fileno()] = connection, began
        ready.register(connection, select.EPOLLIN)
        return
    count.refused.append(began)


def _collect(
    count: Count, pending: dict[int, tuple[socket.socket, float]], ready: select.epoll, wait: float
) -> bool:
    """Takes in what has come within `wait` seconds. Whether stdin has ended."""
    is_over = False
    for descriptor, _ in ready.poll(max(0.0, wait)):
        if descriptor not in pending:
            is_over = True
            continue
        connection, began = pending.pop(descriptor)
        with connection:
            ready.unregister(connection)
            try:
                greeted = connection.recv(1) == GREETING
            except OSError:
                greeted = False
        if greeted:
            count.greeted += 1
        else:
            count.reset.append(began)
    return is_over


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(asdict(hammer(int(sys.argv[1]), sys.argv[2:]))))
