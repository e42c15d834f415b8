"""A link, and the attempt that carries it: from nothing, to a proven master, to that master's end.

An attempt is one coroutine. It reports by posting events that bear its number, and never touches the link's
state. Cancelled, it leaves its master running: ending that is for `release`, or for nobody when the keeper stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from holdfast.errors import MasterError
from holdfast.keeper import forwarding, processes
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.states import ForwardState, LinkEvent, LinkState, failure_event
from holdfast.openssh import command, heartbeat, master
from holdfast.openssh.diagnose import Remedy, Trouble, diagnose
from holdfast.openssh.heartbeat import ForwardHeartbeat, Heartbeat, HeartbeatEnded
from holdfast.openssh.master import LoginFailed, Master
from holdfast.openssh.settings import Settings, preferences, processor_has_aes

# Seconds from a master that is there to the first sign of life from the far side.
PROOF = 15.0
# The bounds of the seconds that a heartbeat is given.
SHORTEST_DEADLINE, LONGEST_DEADLINE = 1.0, 3.0
# Seconds until a forward that could not be opened is tried again.
REOPEN = 10.0
# Handshakes at once, to all hosts together.
HANDSHAKES = 8


class Terminal(Protocol):
    """A client at whose terminal a person can log in."""

    async def log_in(self, argv: list[str], socket: Path, log: Path) -> int:
        """ssh's exit status. Raises LoginFailed when the client goes away."""


class News(NamedTuple):
    """An event of an attempt, for the keeper's queue."""

    link: Link
    attempt: int
    event: LinkEvent
    trouble: Trouble | None = None


@dataclass(slots=True, eq=False)
class Link:
    """One host's connection as the keeper knows it. Only the keeper assigns `state`."""

    host: str
    options: tuple[str, ...]
    environment: dict[str, str]
    state: LinkState = LinkState.DOWN
    trouble: Trouble | None = None
    since: datetime = field(default_factory=lambda: datetime.now().astimezone())
    retry_at: datetime | None = None
    retry: asyncio.TimerHandle | None = None
    attempts: int = 0
    failures: int = 0
    forwards: list[OpenForward] = field(default_factory=list)
    terminals: list[Terminal] = field(default_factory=list)
    attempt: Attempt | None = None
    # The ending of an attempt before this one, which the next waits for.
    releasing: asyncio.Task[None] | None = None
    # The keeper has just started, and doesn't know yet whether its master still lives.
    is_restored: bool = False
    # When it was last proven, on the loop's clock.
    up_at: float = 0.0
    # What ssh would use, when that was just found out.
    settings: Settings | None = None
    # Our master's socket, and the user's ControlPath that leads to it; from the journal after a restart.
    socket: Path | None = None
    control_path: Path | None = None


class Gate:
    """Lets one handshake at a time through to each first hop, and `HANDSHAKES` in all. People don't queue here."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(HANDSHAKES)
        self._hops: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def pass_to(self, hop: str) -> AsyncIterator[None]:
        async with self._hops.setdefault(hop, asyncio.Lock()), self._all:
            yield


class Attempt:
    """One try at serving a link. `changed` is called whenever something that status shows is different."""

    def __init__(self, link: Link, gate: Gate, post: Callable[[News], None], changed: Callable[[], None]) -> None:
        self.link = link
        self.number = link.attempts
        self.master: Master | None = None
        self.heartbeat: Heartbeat | None = None
        self.round_trip: float | None = None
        self.task: asyncio.Task[None] | None = None
        self._gate = gate
        self._post = post
        self._changed = changed
        self._late = False
        self._beat_now = asyncio.Event()
        self._next_beat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = asyncio.Event()
        self._forwarding = asyncio.Lock()
        self._beating = asyncio.Lock()
        self._log_start = 0
        self._was_proven = False

    async def run(self) -> None:
        """Serves the link until its master is gone, posting what happens on the way."""
        try:
            await self._obtain()
            await self._prove()
            await self._serve()
        except LoginFailed as failure:
            self.fail(failure.trouble)
        except (MasterError, OSError) as error:
            hint = error.hint if isinstance(error, MasterError) else ""
            self.fail(Trouble(str(error), hint, Remedy.RETRY_LATER))
        finally:
            self._next_beat.cancel()
            if self.heartbeat is not None:
                self.heartbeat.close()
                self.heartbeat = None

    def fail(self, trouble: Trouble) -> None:
        """Reports that the attempt came to nothing, or to its end: the next one finds its master again."""
        if self.master is not None:
            self.master.control.close()
            self.master = None
        self._report(LinkEvent.LOST if self._was_proven else failure_event(trouble.remedy), trouble)

    def open_wanted(self) -> None:
        """Opens the link's forwards that aren't open yet, soon."""
        self._wanted.set()

    async def prove(self) -> None:
        """Has the far side answer now: returns when a heartbeat has come back, or is late."""
        if self.heartbeat is not None and not self._late:
            self._beat_now.set()
            await asyncio.wait([self._next_beat])

    async def look_again(self) -> None:
        """Finds out anew about the forwards whose target may have come or gone since."""
        master = self.master
        if master is None or self.heartbeat is None or self._late:
            return
        was_refused = "open failed" in master.read_log(self._log_start)
        self._log_start = master.log_size()
        doubtful = [own for own in self.link.forwards if was_refused or own.state is not ForwardState.UP]
        await self._probe(master, [own for own in doubtful if own.listening])

    async def close(self, forward: OpenForward) -> None:
        """Closes a forward that is no longer among the link's. Its connections stay."""
        async with self._forwarding:
            if self.master is not None:
                await forwarding.close_forward(self.master, forward)
                forward.lost()

    async def release(self, forwards: list[OpenForward]) -> None:
        """Ends the attempt; closes `forwards`, which it had opened; ends the master if it is ours."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        if self.master is None and self.link.socket is not None:  # it had not been found again yet
            self.master = await self._find_again(self.link.socket)
        if self.master is None:
            return
        self._unlink()
        if not self.master.ours:
            for forward in forwards:
                await forwarding.close_forward(self.master, forward)
        await master.end(self.master)
        for forward in forwards:
            forwarding.forget_listeners(forward)
            forward.lost()
        self.master = self.link.socket = None

    def _report(self, event: LinkEvent, trouble: Trouble | None = None) -> None:
        self._post(News(self.link, self.number, event, trouble))

    async def _obtain(self) -> None:
        """A master: our own from before, else the user's own, else a new one."""
        link = self.link
        settings, link.settings = link.settings, None
        if settings is None:
            settings = await master.settings(link.host, link.options, environment_with(link.environment))
        path = settings.control_path
        if link.socket is not None:
            self.master = await self._find_again(link.socket)
        if self.master is None and path is not None and not master.is_our_link(path):
            self.master = await self._adopt(path)
        if self.master is None:
            self.master = await self._log_in(settings)
        link.socket = self.master.socket if self.master.ours else None
        link.control_path = None
        if self.master.ours and path is not None and master.link_control_path(path, self.master.socket):
            link.control_path = path

    async def _find_again(self, socket: Path) -> Master | None:
        """Our own master from before; one that doesn't answer is ended, since it has our ports."""
        found = await master.adopt(socket, ours=True)
        if found is None and socket.exists():
            await asyncio.to_thread(processes.end_master, socket)
        return found

    async def _adopt(self, path: Path) -> Master | None:
        """The user's own master, if one lives at their ControlPath and its far side answers."""
        found = await master.adopt(path, ours=False)
        if found is None:
            return None
        try:
            self.heartbeat, self.round_trip = await heartbeat.start(found.control, path, PROOF)
        except BaseException as error:
            found.control.close()
            if isinstance(error, MasterError | OSError):
                return None
            raise
        return found

    async def _log_in(self, settings: Settings) -> Master:
        """A new master: without a question where nobody is at a terminal, else in that terminal."""
        link = self.link
        environment = environment_with(link.environment)
        baseline = await master.baseline(environment)
        build = functools.partial(
            command.master,
            link.host,
            defaults=preferences(settings, baseline, has_aes=processor_has_aes()),
            unknown=baseline.lacks(command.RECENT),
        )
        socket, log = master.new_socket()
        if not link.terminals:
            options = command.unattended(link.options, settings.proxy_jump)
            argv = build(options=options, socket=socket, log=log, in_terminal=False)
            try:
                async with self._gate.pass_to(settings.first_hop):
                    return await master.start(argv, socket, log, link.host, environment)
            except LoginFailed as failure:
                # A person may have come to a terminal meanwhile.
                if failure.trouble.remedy is not Remedy.LOGIN or not link.terminals:
                    raise
        argv = build(options=link.options, socket=socket, log=log, in_terminal=True)
        status = await link.terminals[0].log_in(argv, socket, log)
        return await master.after_terminal_login(socket, status, link.host)

    async def _prove(self) -> None:
        assert self.master is not None
        if self.heartbeat is None:
            try:
                self.heartbeat, self.round_trip = await heartbeat.start(
                    self.master.control, self.master.socket, PROOF
                )
            except (MasterError, OSError) as error:
                if self.master.control.closed.is_set():
                    trouble = await self._loss()
                else:
                    reason = f"{self.link.host} let us in, but does not answer ({error})"
                    trouble = Trouble(reason, f"try it: ssh {self.link.host} true", Remedy.RETRY_LATER)
                self._unlink()
                await master.end(self.master)
                self.master = self.link.socket = None
                raise LoginFailed(trouble) from None
        self._log_start = self.master.log_size()
        self._was_proven = True
        self._report(LinkEvent.PROVEN)

    async def _serve(self) -> None:
        assert self.master is not None
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(self._beat()), tasks.create_task(self._keep_open())]
            await self.master.control.closed.wait()
            for task in working:
                task.cancel()
        trouble = await self._loss()
        self._unlink()
        await master.bury(self.master)
        self.master = self.link.socket = None
        self._report(LinkEvent.LOST, trouble)

    async def _loss(self) -> Trouble:
        assert self.master is not None
        if not self.master.ours:
            return Trouble("the master that you started yourself has ended", "", Remedy.RETRY)
        said = await master.last_words(self.master, self._log_start)
        # Said by ssh at the login, which is done: what follows is a loss.
        return diagnose(f"Authenticated to {self.link.host}.\n{said}", self.link.host)._replace(
            remedy=Remedy.RETRY
        )

    def _unlink(self) -> None:
        assert self.master is not None
        if self.link.control_path is not None:
            master.unlink_control_path(self.link.control_path, self.master.socket)
            self.link.control_path = None

    async def _beat(self) -> None:
        assert self.master is not None
        while True:
            await self._beat_once()
            self._log_start = min(self._log_start, self.master.log_size())  # it may just have been emptied
            self._next_beat.set_result(None)
            self._next_beat = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.heartbeat.pace if self.heartbeat else heartbeat.PACE):
                    await self._beat_now.wait()
            self._beat_now.clear()

    async def _beat_once(self) -> None:
        try:
            self.round_trip = await self._round_trip()
        except HeartbeatEnded:
            await self._start_heartbeat_again()
        except MasterError:
            if not self._late:
                trouble = Trouble(
                    f"{self.link.host} does not answer any more",
                    "it may come back by itself; `holdfast restart` makes a new connection at once",
                    Remedy.RETRY,
                )
                self._report(LinkEvent.LATE, trouble)
            self._late = True
        else:
            if self._late:
                self._report(LinkEvent.ANSWERED)
            self._late = False

    async def _start_heartbeat_again(self) -> None:
        """Somebody over there has ended its session; the link may be as well as ever."""
        assert self.master is not None
        assert self.heartbeat is not None
        self.heartbeat.close()
        self.heartbeat = ForwardHeartbeat(self.master.control, fast_path=self.heartbeat.fast_path)
        with contextlib.suppress(MasterError, OSError):
            self.heartbeat, self.round_trip = await heartbeat.start(self.master.control, self.master.socket, PROOF)

    async def _round_trip(self) -> float:
        async with self._beating:
            assert self.heartbeat is not None
            deadline = min(LONGEST_DEADLINE, max(SHORTEST_DEADLINE, 4 * (self.round_trip or 0)))
            return await self.heartbeat.beat(deadline)

    async def _probe(self, master: Master, forwards: list[OpenForward]) -> None:
        """Tries the targets of `forwards`, all at once: one that takes long holds up no other."""
        await asyncio.gather(*(self._probe_one(master, forward) for forward in forwards))

    async def _probe_one(self, master: Master, forward: OpenForward) -> None:
        with contextlib.suppress(MasterError, OSError):
            await forwarding.probe(master, forward, self.link.host, self._round_trip)

    async def _keep_open(self) -> None:
        assert self.master is not None
        while True:
            self._wanted.clear()
            opened = []
            for forward in list(self.link.forwards):
                async with self._forwarding:
                    if forward in self.link.forwards and not forward.is_open:
                        with contextlib.suppress(MasterError, OSError):
                            await forwarding.open_forward(self.master, forward, self.link.host)
                            opened += [forward] if forward.listening else []
            await self._probe(self.master, opened)
            self._changed()
            shut = any(not forward.is_open for forward in self.link.forwards)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REOPEN if shut else None):
                    await self._wanted.wait()


def environment_with(session: dict[str, str]) -> dict[str, str]:
    """The keeper's own environment, with the user's session's where ssh needs it."""
    return {**os.environ, **session}
