"""A link, and the attempts that carry it: each from nothing, to a proven master, to that master's end.

An attempt is one coroutine. It reports by posting events that name it, and never touches the link's state. A link
has at most one that serves and one that is tried; those that served before drain until their last connection has
ended. Cancelled, an attempt leaves its master running: ending that is for `release`, or for nobody when the
keeper stops.
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
from typing import TYPE_CHECKING, NamedTuple, Protocol

from holdfast.errors import MasterError
from holdfast.keeper import processes
from holdfast.keeper.counters import Traffic
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.states import LinkEvent, LinkState, connect_patience, failure_event, is_dead
from holdfast.keeper.watch import elapsed, local_addresses
from holdfast.openssh import command, heartbeat, master
from holdfast.openssh.diagnose import Remedy, Trouble, diagnose
from holdfast.openssh.heartbeat import Heartbeat, HeartbeatEnded
from holdfast.openssh.master import LoginFailed, Master
from holdfast.openssh.settings import Settings, preferences, processor_has_aes

if TYPE_CHECKING:
    from holdfast.keeper.ports import Ports

# Seconds from a master that is there to the first sign of life from the far side.
PROOF = 15.0
# The bounds of the seconds that a heartbeat is given.
SHORTEST_DEADLINE, LONGEST_DEADLINE = 1.0, 3.0
# Handshakes at once, to all hosts together.
HANDSHAKES = 8
# Seconds from one look at a connect that nobody has answered yet to the next, and until it is one.
LOOK, SLOW = 0.25, 0.5


class Terminal(Protocol):
    """A client at whose terminal a person can log in."""

    async def log_in(self, argv: list[str], socket: Path, log: Path) -> int:
        """ssh's exit status. Raises LoginFailed when the client goes away."""


class News(NamedTuple):
    """An event of an attempt, for the keeper's queue."""

    link: Link
    attempt: Attempt
    event: LinkEvent
    trouble: Trouble | None = None


class Known(NamedTuple):
    """A master of ours that lived when the keeper before this one ended."""

    socket: Path
    control_path: Path | None
    attended: bool
    draining: bool


@dataclass(slots=True, eq=False)
class Link:
    """One host's connection as the keeper knows it. Only driving.py assigns `state`."""

    host: str
    options: tuple[str, ...]
    environment: dict[str, str]
    state: LinkState = LinkState.DOWN
    trouble: Trouble | None = None
    retry_at: datetime | None = None
    retry: asyncio.TimerHandle | None = None
    failures: int = 0
    # Losses in a row, each but the first soon after a login.
    losses: int = 0
    serving: Attempt | None = None
    trying: Attempt | None = None
    draining: list[Attempt] = field(default_factory=list)
    # Those whose masters are being ended.
    ending: list[Attempt] = field(default_factory=list)
    ports: Ports | None = None
    keeping: asyncio.Task[None] | None = None
    forwards: list[OpenForward] = field(default_factory=list)
    terminals: list[Terminal] = field(default_factory=list)
    # The ending of what served before, which the next attempt waits for.
    releasing: asyncio.Task[None] | None = None
    # The keeper has just started, and doesn't know yet whether its masters still live.
    is_restored: bool = False
    known: list[Known] = field(default_factory=list)
    # When it was last up again, and when its master was proven, on the loop's clock.
    up_at: float = 0.0
    proven_at: float = 0.0
    # What brought it back last, in words.
    mended_by: str = ""
    # Until when, on the same clock, it isn't logged in to beside a connection that has stalled.
    peace_until: float = 0.0
    # When something last spoke for the network's being there, on the clock that counts sleep.
    heard_at: float = 0.0
    # What ssh would use, when that was just found out.
    settings: Settings | None = None
    # Whether a person had to log in last time; whether their SSH_ASKPASS may ask on their desktop, once an outage.
    attended: bool = False
    may_ask: bool = False
    # Whether the far side may end its end of a connection from which nothing comes: all its tunnels agree.
    switch: bool = True
    # Programs that are being run over it; the end of the time for which it stays for another, without a tunnel.
    visits: int = 0
    lingering: asyncio.TimerHandle | None = None
    # What ends it once nobody has used it for a while, where only lazy tunnels need it.
    idling: asyncio.Task[None] | None = None

    def take_session(self, environment: dict[str, str], terminal: Terminal | None) -> None:
        """Has logins use what this session has. One without an agent (a service, cron) takes nobody's away."""
        if environment:
            has_agent = bool(environment.get("SSH_AUTH_SOCK"))
            self.environment = environment if has_agent else {**self.environment, **environment}
        if terminal is not None:
            self.terminals.append(terminal)

    @property
    def is_gone(self) -> bool:
        """Whether it is down, and nothing of it is left that the next one of its name would have to wait for."""
        is_released = self.releasing is None or self.releasing.done()
        return self.state is LinkState.DOWN and is_released and not (self.attempts or self.ending or self.known)

    @property
    def attempts(self) -> list[Attempt]:
        """All that may have a master, the serving one first."""
        return [attempt for attempt in (self.serving, self.trying, *self.draining) if attempt is not None]


class Gate:
    """Lets one handshake at a time through to each first hop, and `HANDSHAKES` in all. People don't queue here."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(HANDSHAKES)
        self._hops: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def pass_to(self, hop: str) -> AsyncIterator[Pass]:
        async with self._hops.setdefault(hop, asyncio.Lock()):
            await self._all.acquire()
            granted = Pass(self._all)
            try:
                yield granted
            finally:
                granted.step_aside()


class Pass:
    """The right to one handshake."""

    def __init__(self, all_of_them: asyncio.Semaphore) -> None:
        self._all = all_of_them
        self._is_counted = True

    def step_aside(self) -> None:
        """No handshake takes place as long as nobody answers: others needn't wait for it."""
        if self._is_counted:
            self._is_counted = False
            self._all.release()


class Attempt:
    """One try at serving a link. With `known`, that master of ours is found again first."""

    def __init__(self, link: Link, gate: Gate, post: Callable[[News], None], known: Known | None = None) -> None:
        self.link = link
        self.master: Master | None = None
        self.heartbeat: Heartbeat | None = None
        self.round_trip: float | None = None
        self.task: asyncio.Task[None] | None = None
        self.log_start = 0
        self.control_path = known.control_path if known else None
        # Somebody had to type something for its master.
        self.attended = known.attended if known else False
        self.is_draining = known.draining if known else False
        self.is_late = False
        self.known = known
        self._is_abandoned = False
        self._gate = gate
        self._post = post
        self._address = ""
        self._heard_at = elapsed()
        self._beat_now = asyncio.Event()
        self._hurry = asyncio.Event()
        self._next_beat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beating = asyncio.Lock()
        self._was_proven = False
        self._is_restored_silent = False
        # The master's TCP connection is its own, with no jump host or ProxyCommand in between.
        self.is_direct = True
        # That leads to an address of this very machine.
        self.leads_home = False
        # The inode of its TCP connection, and the bytes that went over that, as they were counted last.
        self.own_connection: int | None = None
        self.traffic: Traffic | None = None
        self._control_path_wanted: Path | None = None

    async def run(self) -> None:
        """Serves the link until its master is gone, posting what happens on the way."""
        try:
            await self._obtain()
            await self._prove()
            if self._is_abandoned:
                await self._end()
            else:
                await self._serve()
        except LoginFailed as failure:
            self.fail(failure.trouble)
        except (MasterError, OSError) as error:
            if self.master is not None:
                await self._end()
            hint = error.hint if isinstance(error, MasterError) else ""
            self.fail(Trouble(str(error), hint, Remedy.RETRY_LATER))
        finally:
            self._next_beat.cancel()
            self._close_heartbeat()

    def fail(self, trouble: Trouble) -> None:
        """Reports that the attempt came to nothing, or to its end."""
        if self.master is not None:
            if self.master.ours and not self.master.control.closed.is_set():
                master.kill_with_children(self.master.pid)  # nobody would know of it
            self.master.control.close()
            self.master = None
        self._report(LinkEvent.LOST if self._was_proven else failure_event(trouble.remedy), trouble)

    def abandon(self) -> None:
        """Nobody needs it any more. A login under way is let finish: servers punish those who break off."""
        self._is_abandoned = True

    def drain(self) -> None:
        """Another one serves from now on. Its connections stay for as long as they may live."""
        self.is_draining = True
        self._unlink()
        self._beat_now.set()

    def nudge(self) -> None:
        """The network may be back, or another one: asks the far side now, and connects anew if it is at that."""
        self._hurry.set()
        if self.is_serving and not self.is_late and self._address_is_gone():
            self._say_late(f"this machine's address {self._address}, from which it was connected, is gone")
        self._beat_now.set()

    @property
    def is_serving(self) -> bool:
        return self._was_proven and not self.is_draining

    @property
    def switch(self) -> float | None:
        return self.heartbeat.switch if self.heartbeat else None

    async def prove(self) -> None:
        """Has the far side answer now: returns when a heartbeat has come back, or is late."""
        if self.heartbeat is not None and not self.is_late:
            self._beat_now.set()
            await asyncio.wait([self._next_beat])

    async def release(self) -> None:
        """Ends the attempt, and its master if that is ours. Never fails for a master that is gone."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        if self.master is None and self.known is not None and not self._was_proven:
            self.master = await self._find_again(self.known.socket)
        if self.master is not None:
            await self._end()

    async def beat(self) -> float:
        """The round trip to the far side in seconds. Raises MasterError when it took longer than the deadline."""
        async with self._beating:
            if self.heartbeat is None:
                raise MasterError("its session is being opened anew")
            deadline = min(LONGEST_DEADLINE, max(SHORTEST_DEADLINE, 4 * (self.round_trip or 0)))
            return await self.heartbeat.beat(deadline)

    def _report(self, event: LinkEvent, trouble: Trouble | None = None) -> None:
        self._post(News(self.link, self, event, trouble))

    async def _obtain(self) -> None:
        """A master: our own from before, else the user's own, else a new one."""
        link = self.link
        settings, link.settings = link.settings, None
        if settings is None:
            settings = await self._settings()
        path = settings.control_path
        self.is_direct = not (settings.proxy_jump or settings.get("proxycommand"))
        if self.known is not None:
            self.master = await self._find_again(self.known.socket)
            if self.master is None and self.is_draining:
                raise MasterError("it has ended")
        if self.master is None:
            self.attended = False
            if path is not None and not master.is_our_link(path):
                self.master = await self._adopt(path)
        if self.master is None:
            self.master = await self._log_in(settings)
        self._control_path_wanted = path

    async def _settings(self) -> Settings:
        """What ssh would use. Raises LoginFailed; for a link that has been up, a mistake may be the network's."""
        link = self.link
        try:
            return await master.settings(link.host, link.options, environment_with(link.environment))
        except LoginFailed as failure:
            if link.up_at and failure.trouble is not master.NO_SSH:
                raise LoginFailed(failure.trouble._replace(remedy=Remedy.RETRY_LATER)) from None
            raise

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
        others = [attempt.master.pid for attempt in self.link.attempts if attempt.master is not None]
        if found.pid in others:  # the one that has stalled
            found.control.close()
            return None
        try:
            self.heartbeat, self.round_trip = await heartbeat.start(path, PROOF)
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
        if not link.terminals:
            try:
                if link.attended:
                    hint = f"holdfast up {link.host}"
                    raise LoginFailed(Trouble(f"{link.host} lets only a person log in", hint, Remedy.LOGIN))
                async with self._gate.pass_to(settings.first_hop) as granted:
                    return await self._log_in_unattended(build, settings, environment, granted)
            except LoginFailed as failure:
                if failure.trouble.remedy is not Remedy.LOGIN:
                    raise
                if link.may_ask:
                    return await self._log_in_by_dialogue(build, environment)
                if not link.terminals:  # a person may have come to one meanwhile
                    raise
        self.attended = True
        socket, log = master.new_socket()
        argv = build(options=link.options, socket=socket, log=log, in_terminal=True)
        status = await link.terminals[0].log_in(argv, socket, log)
        return await master.after_terminal_login(socket, status, link.host)

    async def _log_in_by_dialogue(self, build: Callable[..., list[str]], environment: dict[str, str]) -> Master:
        """Has the user's SSH_ASKPASS ask on their desktop, once an outage."""
        self.link.may_ask = False
        self.attended = True
        socket, log = master.new_socket()
        argv = build(options=self.link.options, socket=socket, log=log, in_terminal=False, in_dialogue=True)
        asking = {**environment, "SSH_ASKPASS_REQUIRE": "force"}
        return await master.start(argv, socket, log, self.link.host, asking, master.DIALOGUE)

    async def _log_in_unattended(
        self, build: Callable[..., list[str]], settings: Settings, environment: dict[str, str], granted: Pass
    ) -> Master:
        """Connects anew for as long as nobody answers and the outage is young: see states.connect_patience."""
        options = command.unattended(self.link.options, settings.proxy_jump, settings.lacks(command.RECENT))
        while True:
            if self._is_abandoned:
                raise LoginFailed(Trouble("it isn't needed any more", "", Remedy.RETRY))
            socket, log = master.new_socket()
            argv = build(options=options, socket=socket, log=log, in_terminal=False)
            starting = asyncio.create_task(master.start(argv, socket, log, self.link.host, environment))
            try:
                await self._until_answered_or_impatient(starting, log, granted)
                if starting.done():
                    return await starting
            finally:
                if not starting.done():
                    starting.cancel()
                    await asyncio.wait([starting])

    async def _until_answered_or_impatient(self, starting: asyncio.Task[Master], log: Path, granted: Pass) -> None:
        """Returns when `starting` is done, or is better begun anew."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        self._hurry.clear()
        while not starting.done():
            await asyncio.wait([starting], timeout=LOOK)
            hurried = self._hurry.is_set()
            waited = clock() - begun
            if waited < SLOW or not await asyncio.to_thread(master.is_unanswered, log):
                continue
            granted.step_aside()
            if hurried or waited > connect_patience(elapsed() - self.link.heard_at):
                return

    async def _prove(self) -> None:
        assert self.master is not None
        if self.heartbeat is None:
            try:
                patience = LONGEST_DEADLINE if self.known else PROOF
                self.heartbeat, self.round_trip = await self._start_heartbeat(self.master, patience)
            except (MasterError, OSError) as error:
                if self.known is None or self.master.control.closed.is_set():
                    await self._give_up(error)
                # It was proven before this keeper's time, and has stalled since.
                self._is_restored_silent = True
                self.heartbeat = await heartbeat.forwards_over(self.master.socket, fast_path=True)
        self.log_start = self.master.log_size()
        self._heard_at = elapsed()
        if self.is_direct:
            self._address, other = await asyncio.to_thread(processes.own_addresses, self.master.pid)
            self.leads_home = bool(other) and self._address == other
        self._was_proven = True
        if not self._is_abandoned and not self.is_draining:
            self._link()
            self.master.control.when_closed = self._hand_over
            self._report(LinkEvent.PROVEN)
            if self._is_restored_silent:
                self._say_late("nothing comes back from it")

    async def _give_up(self, error: Exception) -> None:
        """Ends a master whose far side doesn't answer. Raises LoginFailed."""
        assert self.master is not None
        if self.master.control.closed.is_set():
            trouble = await self._loss()
        else:
            reason = f"{self.link.host} let us in, but does not answer ({error})"
            trouble = Trouble(reason, f"try it: ssh {self.link.host} true", Remedy.RETRY_LATER)
        await self._end()
        raise LoginFailed(trouble) from None

    async def _start_heartbeat(self, over: Master, timeout: float) -> tuple[Heartbeat, float]:
        switch = over.ours and not self.attended and self.link.switch
        return await heartbeat.start(over.socket, timeout, switch=switch, direct=self.is_direct)

    async def _serve(self) -> None:
        assert self.master is not None
        beating = asyncio.create_task(self._keep_beating())
        try:
            closing = asyncio.create_task(self.master.control.closed.wait())
            await asyncio.wait([beating, closing], return_when=asyncio.FIRST_COMPLETED)
            closing.cancel()
        finally:
            beating.cancel()
            await asyncio.wait([beating])
        if not beating.cancelled():
            beating.result()  # it has drained, or failed
        trouble = await self._loss() if self.master.control.closed.is_set() else None
        await self._end()
        self._report(LinkEvent.LOST, trouble)

    def _hand_over(self) -> None:
        """The master has gone. Why, takes a while to find out; the ports can't wait for it."""
        if self is self.link.serving and self.link.ports is not None:
            self.link.ports.take_over()

    async def _loss(self) -> Trouble:
        assert self.master is not None
        if not self.master.ours:
            return Trouble("the master that you started yourself has ended", "", Remedy.RETRY)
        said = await master.last_words(self.master, self.log_start)
        # Said by ssh at the login, which is done: what follows is a loss.
        return diagnose(f"Authenticated to {self.link.host}.\n{said}", self.link.host)._replace(
            remedy=Remedy.RETRY
        )

    async def _end(self) -> None:
        """Ends the master if it is ours; hangs up on it if it isn't."""
        assert self.master is not None
        self._unlink()
        self._close_heartbeat()
        await master.end(self.master)
        self.master = None

    def _close_heartbeat(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.close()
            self.heartbeat = None

    def _link(self) -> None:
        assert self.master is not None
        path = self._control_path_wanted
        with contextlib.suppress(OSError):
            if self.master.ours and path is not None and master.link_control_path(path, self.master.socket):
                self.control_path = path

    def _unlink(self) -> None:
        """Takes the user's ControlPath away, unless it leads to another master already."""
        if self.control_path is not None and self.master is not None:
            master.unlink_control_path(self.control_path, self.master.socket)
            self.control_path = None

    async def _keep_beating(self) -> None:
        """Until cancelled, or until it has drained."""
        while True:
            await self._beat_once()
            self._next_beat.set_result(None)
            self._next_beat = asyncio.get_running_loop().create_future()
            if self.is_draining and await self._is_drained():
                return
            assert self.master is not None
            self.master.log_size()  # emptied in time, though nobody looks
            # While it is late, the next question has been on its way for as long as the deadline.
            pace = self.heartbeat.pace if self.heartbeat and not self.is_late else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pace):
                    await self._beat_now.wait()
            self._beat_now.clear()

    async def _beat_once(self) -> None:
        if self.heartbeat is None:
            await asyncio.sleep(LOOK)
            await self._start_heartbeat_again()
        try:
            self.round_trip = await self.beat()
        except HeartbeatEnded:
            await self._start_heartbeat_again()
        except MasterError:
            self._say_late("nothing comes back from it")
        else:
            self._heard_at = elapsed()
            if self.is_late:
                self._report(LinkEvent.ANSWERED)
            elif self.is_serving:
                self.link.heard_at = self._heard_at
            self.is_late = False
            if self._is_restored_silent:
                self._is_restored_silent = False
                await self._start_heartbeat_again()

    def _say_late(self, why: str) -> None:
        if not self.is_late:
            reason = f"{self.link.host} does not answer any more: {why}"
            hint = "holdfast keeps your port, and goes on trying"
            self._report(LinkEvent.LATE, Trouble(reason, hint, Remedy.RETRY))
        self.is_late = True

    async def _start_heartbeat_again(self) -> None:
        """Somebody over there has ended its session; the link may be as well as ever."""
        assert self.master is not None
        fast_path = self.heartbeat.fast_path if self.heartbeat else True
        self._close_heartbeat()
        with contextlib.suppress(MasterError, OSError):  # it may be the master that has ended
            self.heartbeat = await heartbeat.forwards_over(self.master.socket, fast_path=fast_path)
            better, self.round_trip = await self._start_heartbeat(self.master, PROOF)
            self._close_heartbeat()
            self.heartbeat = better

    async def _is_drained(self) -> bool:
        """Whether nothing goes over it any more, or ever will."""
        assert self.master is not None
        if not self.master.ours:
            return True  # the user's own: it stays, without us
        silence = elapsed() - self._heard_at
        if self.is_late and is_dead(silence, self.switch, address_is_gone=self._address_is_gone()):
            return True
        return await asyncio.to_thread(
            processes.carries_nothing, self.master.pid, self.master.socket, self.is_direct
        )

    def _address_is_gone(self) -> bool:
        try:
            return bool(self._address) and self._address not in local_addresses()
        except OSError:
            return False


def environment_with(session: dict[str, str]) -> dict[str, str]:
    """The keeper's own environment, with the user's session's where ssh needs it."""
    return {**os.environ, **session}
