"""What somebody notices of an outage: a small HTTP request every 100 ms, each on a connection of its own.

No request waits for another; each has its own patience. Times are seconds of time.monotonic().
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from tests.network import Namespace

from bench.servers import BODY

EVERY = 0.1
# Seconds that a request waits for its answer: longer than an outage with all that is granted after it.
PATIENCE = 150.0
# Connections that may wait at a time, all contenders together.
MOST_OPEN = 16_000

_REQUEST = b"GET /api HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Outcome(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    BROKEN = "connection ended without an answer"
    UNANSWERED = "no answer by the end"


@dataclass(frozen=True, slots=True)
class Request:
    began: float
    ended: float
    outcome: Outcome

    @property
    def waited(self) -> float:
        return self.ended - self.began


class Load:
    """The requests to each contender's port, and what became of those that are over."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = ports
        self._requests: dict[str, list[Request]] = {name: [] for name in ports}
        self._stopped = threading.Event()

    def requests(self, name: str) -> list[Request]:
        """Those that are over, in the order of their ends."""
        return list(self._requests[name])

    def run(self) -> None:
        """Asks until `stop`; then what still waits is given up."""
        asyncio.run(self._run())

    def stop(self) -> None:
        self._stopped.set()

    async def _run(self) -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            waiting: set[asyncio.Task[None]] = set()
            while not self._stopped.is_set():
                for name in self._ports:
                    task = group.create_task(self._request(name))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
                due += EVERY
                await asyncio.sleep(due - time.monotonic())
            for task in waiting:
                task.cancel()

    async def _request(self, name: str) -> None:
        began, outcome = time.monotonic(), Outcome.UNANSWERED
        try:
            outcome = await _ask(self._ports[name])
        finally:
            self._requests[name].append(Request(began, time.monotonic(), outcome))


@contextlib.contextmanager
def load(namespace: Namespace, ports: Mapping[str, int]) -> Iterator[Load]:
    """A `Load` that runs in the namespace for as long as the context lasts."""
    made = Load(ports)
    with _room_for_connections(), ThreadPoolExecutor(1) as thread:
        running = thread.submit(namespace.call, made.run)
        try:
            yield made
        finally:
            made.stop()
    running.result()


async def _ask(port: int) -> Outcome:
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(_REQUEST)
                await reader.readuntil(BODY)
    except ConnectionRefusedError:
        return Outcome.REFUSED
    except TimeoutError:
        return Outcome.UNANSWERED
    except (OSError, asyncio.IncompleteReadError):
        return Outcome.BROKEN
    return Outcome.ANSWERED


@contextlib.contextmanager
def _room_for_connections() -> Iterator[None]:
    """More descriptors, for this process alone: the contenders are started with as many as users have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MOST_OPEN)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
