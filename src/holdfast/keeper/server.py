"""The keeper's process: its lock, its socket, its signals, and one conversation a client.

Whoever holds the lock is the keeper; the lock's file says where its socket is. A service manager may have made
that socket, at a path of its own, and keeps it. A conversation that breaks off, or is garbage, ends that
conversation and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from holdfast import lock, paths
from holdfast.control import LONGEST_REQUEST
from holdfast.errors import HoldfastError
from holdfast.keeper import journal
from holdfast.keeper.activation import ServiceManager
from holdfast.keeper.conversation import Conversation
from holdfast.keeper.keeper import Keeper

# Seconds without a tunnel and without a client after which a keeper that nobody asked for by name ends.
IDLE = 60.0
# Seconds that a keeper which is just ending may keep the lock.
HAND_OVER = 5.0
MOST_DESCRIPTORS = 16384


class AlreadyRunning(HoldfastError):
    """Another process is the keeper."""


def run(*, stay: bool, manager: ServiceManager, ready: Callable[[], None]) -> None:
    """Is the keeper until told to stop; with `stay` also when nothing is wanted. Calls `ready` when it listens.

    `manager` is told as well, and its socket is listened on, if it passed one on. The locks are held for as long
    as this process lives. Raises AlreadyRunning, HoldfastError.
    """
    held = lock.acquire(paths.lock_file(), HAND_OVER)
    if held is None:
        raise AlreadyRunning("the keeper is running already", "holdfast keeper stop ends it")
    runtime = paths.runtime_dir()
    if lock.acquire(runtime / "keeper.lock", HAND_OVER) is None:
        raise HoldfastError(
            f"a keeper with another HOLDFAST_STATE_DIR or XDG_STATE_HOME uses {runtime}",
            "set the same everywhere, or another HOLDFAST_RUNTIME_DIR as well",
        )
    _allow_descriptors()
    _take_signals()
    asyncio.run(_serve(held, stay, manager, ready))


def _allow_descriptors() -> None:
    """Lifts the limit of open files as far as may be: each link takes several, and its master, which inherits
    the limit, one for each connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _take_signals() -> None:
    """Whatever the program that started this one blocks or ignores: a signal ends a keeper, and it hears how its
    ssh ended."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


async def _serve(held: int, stay: bool, manager: ServiceManager, ready: Callable[[], None]) -> None:
    passed = manager.listener(paths.service_socket())
    path = paths.keeper_socket() if passed is None else paths.service_socket()
    if manager.passed and passed is None:
        journal.note(f"the service manager's socket is not {paths.service_socket()}: holdfast service install")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    keeper = Keeper()
    await keeper.restore()
    server = _Server(keeper, stop)
    listener = await (_listen(path, server) if passed is None else _listen_on(passed, server))
    os.ftruncate(held, 0)
    os.pwrite(held, os.fsencode(path), 0)
    ready()
    manager.tell("READY=1", f"STATUS=listens at {path}")
    try:
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(keeper.run())]
            if not stay:
                working.append(tasks.create_task(server.stop_when_idle()))
            await stop.wait()
            manager.tell("STOPPING=1", "STATUS=ends; the tunnels stay up")
            listener.close()
            for task in [*working, *server.conversations]:
                task.cancel()
    finally:
        os.ftruncate(held, 0)
        if passed is None:
            path.unlink(missing_ok=True)


async def _listen(path: Path, server: _Server) -> asyncio.Server:
    path.unlink(missing_ok=True)  # whoever had it is gone: we hold the lock
    mask = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(server.converse, path, limit=LONGEST_REQUEST)
    finally:
        os.umask(mask)


async def _listen_on(passed: socket.socket, server: _Server) -> asyncio.Server:
    if sys.version_info >= (3, 13):  # it would remove the file, which is not ours
        return await asyncio.start_unix_server(
            server.converse, sock=passed, limit=LONGEST_REQUEST, cleanup_socket=False
        )
    return await asyncio.start_unix_server(server.converse, sock=passed, limit=LONGEST_REQUEST)


class _Server:
    """Who is talking to the keeper, and whether it is still needed."""

    def __init__(self, keeper: Keeper, stop: asyncio.Event) -> None:
        self.conversations: set[asyncio.Task[None]] = set()
        self._keeper = keeper
        self._stop = stop
        self._left = asyncio.Event()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.conversations.add(task)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the keeper stops: nobody waits for this task
                await Conversation(self._keeper, self._stop, reader, writer).run()
        finally:
            self.conversations.discard(task)
            self._left.set()

    async def stop_when_idle(self) -> None:
        """Stops the keeper once nothing is wanted of it, and nobody has talked to it for `IDLE` seconds."""
        while True:
            self._left.clear()
            try:
                async with asyncio.timeout(IDLE):
                    await self._left.wait()
            except TimeoutError:
                if self._keeper.is_idle and not self.conversations:
                    self._stop.set()
                    return
