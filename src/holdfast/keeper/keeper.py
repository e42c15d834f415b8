"""The keeper: which tunnels are wanted, which links carry them, and what to do about it.

One queue, one consumer. Requests and the events of attempts wait in the same queue; the consumer decides, in
code that awaits nothing, and saves what must survive before anybody is answered. What takes time runs in tasks
and comes back as an event.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import random
import traceback
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from holdfast import paths
from holdfast.control import Up, check_name, default_name
from holdfast.errors import Exit, HoldfastError, KeeperError, UsageError
from holdfast.forward import Forward, Kind, parse
from holdfast.keeper import journal, processes
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.journal import Saved, SavedForward, SavedMaster, SavedTunnel
from holdfast.keeper.link import Attempt, Gate, Link, News, Terminal
from holdfast.keeper.states import (
    LinkAction,
    LinkEvent,
    LinkState,
    next_link_state,
    retry_delay,
)
from holdfast.keeper.tunnel import Tunnel
from holdfast.openssh.diagnose import Remedy, Trouble
from holdfast.openssh.settings import Settings

Result = TypeVar("Result")

DEFAULT_FORWARD = parse("8888")
# A link that was up for this long, in seconds, starts its delays anew when it is lost.
STEADY = 10.0


class Keeper:
    def __init__(self) -> None:
        self.tunnels: dict[str, Tunnel] = {}
        # What the next client has to tell its user.
        self.notice = ""
        self._past: dict[str, SavedTunnel] = {}
        self._links: dict[tuple[str, tuple[str, ...]], Link] = {}
        self._queue: asyncio.Queue[tuple[Callable[[], Any], asyncio.Future[Any] | None]] = asyncio.Queue()
        self._watchers: set[asyncio.Event] = set()
        self._gate = Gate()
        # What takes the current decision back when it can't be saved.
        self._undo: Callable[[], object] | None = None
        self._saved = Saved()
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Brings up what was wanted, then decides what the queue brings, until cancelled. Masters outlive it."""
        async with self._tasks:
            for link in self._links.values():
                if link.forwards:
                    self._apply(link, LinkEvent.WANTED)
                elif link.socket is not None:  # it was being taken down when the keeper before this one died
                    self._release(link, Attempt(link, self._gate, self.post, self._look))
            while True:
                decide, answer = await self._queue.get()
                try:
                    result = await self._carry_out(decide)
                except HoldfastError as error:
                    if answer is None:
                        journal.note(error.message)
                    elif not answer.done():
                        answer.set_exception(error)
                else:
                    if answer is not None and not answer.done():
                        answer.set_result(result)
                for watcher in self._watchers:
                    watcher.set()

    async def _carry_out(self, decide: Callable[[], Result]) -> Result:
        """Runs a decision and saves what it changed; takes it back when it can't be saved."""
        self._undo = None
        try:
            result = decide()
            self._note_changes()
            await self._save_or_note()
        except HoldfastError:
            if self._undo is not None:
                self._undo()
            raise
        except Exception as error:
            journal.note(traceback.format_exc())
            raise KeeperError(
                f"this is a bug in the keeper: {error!r}", f"please report it: {paths.keeper_log()}"
            ) from None
        return result

    async def _save_or_note(self) -> None:
        """Saves. Where that fails: an error for whoever asked for what can be taken back, else a note."""
        try:
            await self._save()
        except HoldfastError as error:
            if self._undo is not None:
                raise
            self.notice = error.message
            journal.note(error.message)

    async def ask(self, decide: Callable[[], Result]) -> Result:
        """The result of `decide`, run by the consumer and saved. Raises the HoldfastError of either."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((decide, answer))
        return await answer

    def ask_later(self, decide: Callable[[], object]) -> None:
        """Has the consumer run `decide`; nobody waits for it."""
        self._queue.put_nowait((decide, None))

    async def wait_until(self, condition: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Returns once `condition()` is true; calls `changed` after each change until then."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            while not condition():
                changed()
                await watcher.wait()
                watcher.clear()
        finally:
            self._watchers.discard(watcher)

    def find(self, request: Up) -> SavedTunnel:
        """What `request` is about: a tunnel that is known, by name or by host, or a new one without forwards.

        Raises UsageError when the name is known, and goes elsewhere.
        """
        name = request.name or (request.host if self._known(request.host) else default_name(request.host))
        known = self._known(name)
        if known is None:
            check_name(name)
            return SavedTunnel(name, request.host, request.options, request.environment, True, 0, "", ())
        elsewhere = request.host not in (known.host, known.name)
        if elsewhere or (request.options and request.options != known.options):
            if name in self.tunnels:
                goes_to = " ".join([*known.options, known.host])
                raise UsageError(
                    f"the tunnel '{name}' is up already, and goes to {goes_to}",
                    f"give this one another name with --name, or first: holdfast down {name}",
                )
            return known._replace(host=request.host, options=request.options, forwards=())
        return known

    def want(
        self,
        found: SavedTunnel,
        forwards: Sequence[Forward],
        environment: dict[str, str],
        settings: Settings | None = None,
        terminal: Terminal | None = None,
    ) -> Tunnel:
        """Brings the tunnel up, with `forwards` besides those it has. Raises UsageError, and changes nothing.

        `settings` is what ssh would use, if the caller has just found out; a person can log in at `terminal`.
        """
        tunnel = self.tunnels.get(found.name)
        added = [forward for forward in forwards if not (tunnel and tunnel.has(forward))]
        for forward in added:
            self._check_overlap(forward)
        opened = [self._prepare(forward, found) for forward in added]
        if tunnel is None:
            tunnel = Tunnel(found.name, self._link_to(found.host, found.options))
            self.tunnels[found.name] = tunnel
            self._past.pop(found.name, None)
        link = tunnel.link
        link.environment = environment or link.environment
        link.settings = settings if link.state is LinkState.DOWN else None
        link.terminals += [terminal] if terminal else []
        tunnel.forwards += opened
        link.forwards += opened
        self._apply(link, LinkEvent.WANTED)
        if link.attempt is not None:
            link.attempt.open_wanted()
        self._undo = functools.partial(self._take_away, tunnel, opened)
        return tunnel

    def drop(self, names: Iterable[str], listens: Sequence[str]) -> list[asyncio.Task[None]]:
        """Takes tunnels down, or their forwards on `listens`; what to wait for. Raises UsageError first of all."""
        chosen = [
            self.get(name) for name in dict.fromkeys(names) if name in self.tunnels or name not in self._past
        ]
        matched = [tunnel.on(listens) for tunnel in chosen]
        for tunnel, forwards in zip(chosen, matched, strict=True):
            if len(forwards) == len(tunnel.forwards):
                self._past[tunnel.name] = saved_tunnel(tunnel, wanted=False)
        return [
            task
            for tunnel, forwards in zip(chosen, matched, strict=True)
            for task in self._take_away(tunnel, forwards)
        ]

    def restart(
        self, names: Iterable[str], environment: dict[str, str], terminal: Terminal | None
    ) -> list[Tunnel]:
        """Gives the tunnels a new connection; other tunnels to the same host get it as well."""
        chosen = [self.get(name) for name in names]
        for link in {tunnel.link: None for tunnel in chosen}:
            link.environment = environment or link.environment
            link.terminals += [terminal] if terminal else []
            self._apply(link, LinkEvent.RESTARTED)
        return chosen

    def get(self, name: str) -> Tunnel:
        """The tunnel of that name. Raises HoldfastError, with the name that may be meant."""
        if name in self.tunnels:
            return self.tunnels[name]
        if name in self._past:
            raise HoldfastError(f"the tunnel '{name}' is down", f"holdfast up {name}", Exit.NOT_UP)
        near = difflib.get_close_matches(name, self.tunnels, 1)
        hint = f"did you mean {near[0]}" if near else "see what there is: holdfast status"
        raise HoldfastError(f"there is no tunnel '{name[:60]}'", hint)

    def forget_terminal(self, terminal: Terminal) -> None:
        """Asks nobody at `terminal` any more."""
        for link in self._links.values():
            link.terminals = [other for other in link.terminals if other is not terminal]

    def post(self, news: News) -> None:
        """Puts an event of an attempt into the queue."""
        self.ask_later(lambda: self._take(news))

    def _take_away(self, tunnel: Tunnel, forwards: Sequence[OpenForward]) -> list[asyncio.Task[None]]:
        """Ends some forwards of a tunnel, it when it has no others, and its link when that has no other tunnel."""
        link = tunnel.link
        tunnel.forwards = [forward for forward in tunnel.forwards if forward not in forwards]
        if not tunnel.forwards:
            journal.record(tunnel.name, "taken down")
            del self.tunnels[tunnel.name]
        if not any(other.link is link for other in self.tunnels.values()):
            self._apply(link, LinkEvent.UNWANTED)
            link.forwards = []
            return [link.releasing] if link.releasing else []
        link.forwards = [forward for forward in link.forwards if forward not in forwards]
        if link.attempt is None:
            return []
        return [self._tasks.create_task(_guarded(link.attempt.close(forward))) for forward in forwards]

    def _known(self, name: str) -> SavedTunnel | None:
        if name in self.tunnels:
            return saved_tunnel(self.tunnels[name], wanted=True)
        return self._past.get(name)

    def _link_to(self, host: str, options: tuple[str, ...]) -> Link:
        return self._links.setdefault((host, options), Link(host, options, {}))

    def _check_overlap(self, forward: Forward) -> None:
        if forward.kind is Kind.REMOTE or not (forward.listen.port or forward.listen.path):
            return
        for other in self.tunnels.values():
            for own in other.forwards:
                there = own.forward
                if there.kind is not Kind.REMOTE and set(there.listeners) & set(forward.listeners):
                    end = there.listen.port or there.listen
                    raise UsageError(
                        f"{forward.listen} leads to {there.target or 'SOCKS'} already, in tunnel '{other.name}'",
                        f"use another port, or first: holdfast down {other.name} {end}",
                    )

    def _prepare(self, asked: Forward, found: SavedTunnel) -> OpenForward:
        """`asked`, with a port of its own where any free one will do: the one it had, or a new one."""
        if asked.kind is Kind.REMOTE or asked.listen.path or asked.listen.port:
            return OpenForward(asked, asked)
        before = next((saved.forward for saved in found.forwards if saved.asked == asked), None)
        if before is not None and all(processes.is_free(listen) for listen in before.listeners):
            return OpenForward(asked, before)
        port = processes.free_port(asked.listeners)
        return OpenForward(asked, asked._replace(listen=asked.listen._replace(port=port)))

    def _take(self, news: News) -> None:
        if news.attempt != news.link.attempts:
            return  # of an attempt that was given up
        for tunnel in self.tunnels.values():
            if tunnel.link is news.link and news.event is LinkEvent.LOST:
                tunnel.drops += 1
        self._apply(news.link, news.event, news.trouble)

    def _apply(self, link: Link, event: LinkEvent, trouble: Trouble | None = None) -> None:
        """The only place that assigns a link's state, and that logs it."""
        before = link.state
        link.state, actions = next_link_state(link.state, event)
        if link.state is not before:
            journal.note(f"{link.host}: {before} -> {link.state} ({event.value})")
        now = asyncio.get_running_loop().time()
        match event:
            case LinkEvent.PROVEN:
                link.up_at = now
                link.trouble = None
            case LinkEvent.ANSWERED:
                link.trouble = None
            case LinkEvent.UNWANTED:
                link.trouble = None
                link.failures = 0
            case LinkEvent.RETRYABLE | LinkEvent.LOST:
                steady = event is LinkEvent.LOST and now - link.up_at > STEADY
                link.failures = 1 if steady else link.failures + 1
        link.trouble = trouble or link.trouble
        link.is_restored = link.is_restored and link.state is LinkState.CONNECTING
        if event in (LinkEvent.LOST, LinkEvent.RETRYABLE, LinkEvent.LOGIN_NEEDED, LinkEvent.HOPELESS):
            for forward in link.forwards:
                forward.lost()
        for action in actions:
            self._act(link, action)

    def _act(self, link: Link, action: LinkAction) -> None:
        match action:
            case LinkAction.CONNECT:
                link.attempts += 1
                link.attempt = Attempt(link, self._gate, self.post, self._look)
                link.attempt.task = self._tasks.create_task(_carry(link.attempt, link.releasing))
            case LinkAction.SCHEDULE:
                self._schedule(link)
            case LinkAction.CANCEL:
                if link.retry is not None:
                    link.retry.cancel()
                link.retry = link.retry_at = None
                link.attempts += 1  # a DUE that waits in the queue is of the past
            case LinkAction.RELEASE:
                link.attempts += 1
                if link.attempt is not None:
                    self._release(link, link.attempt)
                link.attempt = None

    def _release(self, link: Link, attempt: Attempt) -> None:
        """Has `attempt` let go of everything, once the one before it has."""
        ending = _guarded(attempt.release(list(link.forwards)), after=link.releasing)
        link.releasing = self._tasks.create_task(ending)

    def _schedule(self, link: Link) -> None:
        remedy = link.trouble.remedy if link.trouble else Remedy.RETRY
        delay = retry_delay(remedy, link.failures, random.random())  # noqa: S311 - spreads load, guards nothing
        due = News(link, link.attempts, LinkEvent.DUE)
        link.retry_at = datetime.now().astimezone() + timedelta(seconds=delay)
        link.retry = asyncio.get_running_loop().call_later(delay, self.post, due)

    def _look(self) -> None:
        """Something about a forward is different: has the consumer tell whom it concerns."""
        self.ask_later(lambda: None)

    def _note_changes(self) -> None:
        for tunnel in self.tunnels.values():
            # What was true before a keeper's restart has to be found out again: that is no change.
            tunnel.is_restored = tunnel.is_restored and tunnel.is_being_opened
            if not tunnel.is_restored:
                tunnel.tell_change()

    async def restore(self) -> None:
        """Reads what was wanted, and ends masters that nobody knows. Before `run`."""
        saved, self.notice = await asyncio.to_thread(journal.load)
        if self.notice:
            journal.note(self.notice)
        known = {master.socket for master in saved.masters}
        # When the file could not be read, whatever runs goes on: somebody may be working over it.
        if not self.notice and any(
            path.with_suffix("").as_posix() not in known for path in paths.masters_dir().iterdir()
        ):
            await asyncio.to_thread(processes.end_left_over_masters, paths.masters_dir(), known)
        for master in saved.masters:
            link = self._link_to(master.host, master.options)
            link.socket = Path(master.socket)
            link.control_path = Path(master.control_path) if master.control_path else None
        for record in saved.tunnels:
            if not record.wanted:
                self._past[record.name] = record
                continue
            tunnel = Tunnel(record.name, self._link_to(record.host, record.options), drops=record.drops)
            tunnel.forwards = [OpenForward(pair.asked, pair.forward) for pair in record.forwards]
            tunnel.link.environment = record.environment
            tunnel.link.forwards += tunnel.forwards
            self.tunnels[record.name] = tunnel
            tunnel.is_restored = tunnel.link.is_restored = True
            if record.up_since:
                tunnel.told, tunnel.since = LinkState.UP, datetime.fromisoformat(record.up_since)
        self._saved = saved

    async def _save(self) -> None:
        past = list(self._past.values())[-journal.LONGEST_MEMORY :]
        masters = [
            SavedMaster(link.host, link.options, str(link.socket), str(link.control_path or ""))
            for link in self._links.values()
            if link.socket is not None
        ]
        wanted = [saved_tunnel(tunnel, wanted=True) for tunnel in self.tunnels.values()]
        now = Saved((*past, *wanted), tuple(masters))
        if now != self._saved:
            await asyncio.to_thread(journal.save, now)
            self._saved = now


def saved_tunnel(tunnel: Tunnel, *, wanted: bool) -> SavedTunnel:
    link = tunnel.link
    forwards = tuple(SavedForward(forward.asked, forward.forward) for forward in tunnel.forwards)
    up_since = tunnel.since.isoformat() if tunnel.told == LinkState.UP else ""
    return SavedTunnel(
        tunnel.name, link.host, link.options, link.environment, wanted, tunnel.drops, up_since, forwards
    )


async def _carry(attempt: Attempt, before: asyncio.Task[None] | None) -> None:
    """Runs `attempt` once the one before it has let go."""
    if before is not None:
        await asyncio.wait([before])
    try:
        await attempt.run()
    except Exception as error:
        journal.note(traceback.format_exc())
        hint = f"please report it: {paths.keeper_log()}"
        attempt.fail(Trouble(f"a bug in holdfast: {error!r}", hint, Remedy.RETRY_LATER))


async def _guarded(work: Coroutine[Any, Any, None], after: asyncio.Task[None] | None = None) -> None:
    """Does `work`, after another task's end. Its failure is noted, and is no other link's."""
    if after is not None:
        await asyncio.wait([after])
    try:
        await work
    except Exception:
        journal.note(traceback.format_exc())
