"""Drives links through the table of states.py: what happens to one, and what is done then.

An event is what an attempt reports, a time that has come, a change of the network, or what somebody wants. All of
this is decided one at a time (decisions.py); what takes time runs in tasks and comes back as an event.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from holdfast import paths
from holdfast.keeper import journal
from holdfast.keeper.decisions import Decisions
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.idling import Idling
from holdfast.keeper.link import Attempt, Gate, Known, Link, News
from holdfast.keeper.notebooks import Follower
from holdfast.keeper.ports import Ports
from holdfast.keeper.states import LinkAction, LinkEvent, LinkState, next_link_state, retry_delay
from holdfast.keeper.tunnel import Tunnel
from holdfast.keeper.watch import Change, elapsed
from holdfast.openssh.diagnose import Remedy, Trouble

# A link whose master came up this long ago, in seconds, starts its delays anew when it is lost.
STEADY = 10.0
# Losses in a row, each soon after the login, before a server is left in peace.
QUICK_LOSSES = 2
# Seconds between a login and the next one beside it: no logins help a server that is overloaded, and answers late.
PEACE = 10.0
# What a server is not troubled by when it is tried again at once.
_NOT_REACHED = (Remedy.RETRY, Remedy.RETRY_REFUSED)
# Seconds after a change of the network, or a wake, for which it is said to have brought a link back.
CREDIT = 15.0


class Driver:
    """Drives the links of `tunnels`. `idling` knows which are lazy; `notebooks` is told who serves."""

    def __init__(
        self,
        tunnels: Mapping[str, Tunnel],
        decisions: Decisions,
        idling: Idling,
        notebooks: Follower,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._tunnels = tunnels
        self._decisions = decisions
        self._idling = idling
        self._notebooks = notebooks
        self._tasks = tasks
        self._gate = Gate()
        # What happened to the machine last, and when on the clock that counts sleep.
        self._change: tuple[Change, float] | None = None

    def recover(self, link: Link) -> None:
        """Has the masters that the keeper before this one left drain, but for one: that is for the next try."""
        serving = [known for known in link.known if not known.draining]
        drained = [known for known in link.known if known not in serving[:1]]
        for known in drained:
            attempt = self._attempt(link, known._replace(draining=True))
            link.draining.append(attempt)
            attempt.task = self._tasks.create_task(_carry(attempt, None))
        link.known = serving[:1]

    def nudge(self, links: Iterable[Link], change: Change) -> None:
        """The network may be another one: whoever serves is asked, whoever waits for it tries."""
        self._change = (change, elapsed())
        journal.note(change.value)
        for link in links:
            if link.state is LinkState.DOWN:
                continue
            link.heard_at = elapsed()
            link.failures = link.losses = 0
            link.peace_until = 0.0
            for attempt in link.attempts:
                attempt.nudge()
            # A server that was reached and failed us has its peace, whatever our network does.
            if link.retry is not None and link.trouble is not None and link.trouble.remedy in _NOT_REACHED:
                self._fall_due(link)

    def _post(self, news: News) -> None:
        """Puts an event of an attempt into the queue."""
        self._decisions.ask_later(lambda: self._take(news))

    def _take(self, news: News) -> None:
        """Takes in what an attempt reports, if it still counts."""
        link, attempt = news.link, news.attempt
        if attempt in link.draining:
            if news.event not in (LinkEvent.LATE, LinkEvent.ANSWERED):
                link.draining.remove(attempt)
                journal.note(f"{link.host}: an old master has ended")
            return
        event = news.event
        if attempt is link.trying:
            if event is LinkEvent.LOST:  # it broke between its proof and the news of it
                event = LinkEvent.RETRYABLE
            if event is not LinkEvent.PROVEN:
                link.trying = None
        elif attempt is not link.serving:
            if event is LinkEvent.PROVEN:  # it was given up in that very moment
                self._end_some(link, [attempt])
            return
        elif event is LinkEvent.LOST:
            link.serving = None
            self._count_drop(link)
        self.apply(link, event, news.trouble)

    def apply(self, link: Link, event: LinkEvent, trouble: Trouble | None = None) -> None:
        """Has it happen to the link. The only place that assigns a link's state, and that logs it."""
        before = link.state
        link.state, actions = next_link_state(link.state, event)
        if link.state is not before:
            journal.note(f"{link.host}: {before} -> {link.state} ({event.value})")
        now = asyncio.get_running_loop().time()
        match event:
            case LinkEvent.PROVEN | LinkEvent.ANSWERED:
                link.mended_by = self._credit(event)
                link.up_at = now
                if event is LinkEvent.PROVEN:
                    link.proven_at = now
                link.heard_at = elapsed()
                link.attended = any(own.attended for own in (link.trying, link.serving) if own and own.master)
                link.may_ask = _has_dialogue(link.environment) and not self._idling.is_lazy(link)
                link.trouble = None
            case LinkEvent.UNWANTED:
                link.trouble = None
                link.failures = link.losses = 0
                link.up_at = 0.0
            case LinkEvent.LOST:
                steady = now - link.proven_at > STEADY
                link.failures = 1 if steady else link.failures + 1
                link.losses = 1 if steady else link.losses + 1
                if trouble is not None and link.losses > QUICK_LOSSES:
                    trouble = trouble._replace(remedy=Remedy.RETRY_LATER)  # it lets us in, and ends it again
            case LinkEvent.RETRYABLE:
                link.failures += 1
        link.trouble = trouble or link.trouble
        if link.state is LinkState.NEEDS_LOGIN and link.up_at:
            self._decisions.notice = (
                f"{link.host} was lost, and lets only a person log in: holdfast up {link.host}"
            )
        link.is_restored = link.is_restored and link.state is LinkState.CONNECTING
        for action in actions:
            self._act(link, action)

    def _credit(self, event: LinkEvent) -> str:
        """What brought a link back, in words."""
        what = "a new connection" if event is LinkEvent.PROVEN else "the same connection"
        if self._change is not None and elapsed() - self._change[1] < CREDIT:
            return f"{what}, after {self._change[0].value}"
        return what

    def _act(self, link: Link, action: LinkAction) -> None:  # noqa: PLR0912 - a case for each action
        match action:
            case LinkAction.CONNECT:
                known = link.known.pop() if link.known else None
                link.trying = self._attempt(link, known)
                is_stalled = link.serving is not None and not link.terminals
                peace = max(0.0, link.peace_until - elapsed()) if is_stalled else 0.0
                link.trying.task = self._tasks.create_task(_carry(link.trying, link.releasing, peace))
            case LinkAction.ABANDON:
                if link.trying is not None:
                    link.trying.abandon()
                link.trying = None
            case LinkAction.SERVE:
                self._serve(link)
            case LinkAction.RESUME:
                if link.ports is not None:
                    link.ports.serve(link.serving)
                self._notebooks.look(link)
            case LinkAction.HOLD:
                if link.ports is None:
                    link.ports = Ports(link, self._look)
                    link.keeping = self._tasks.create_task(guarded(link.ports.run(), after=link.releasing))
                link.ports.serve(None)
            case LinkAction.SCHEDULE:
                self._schedule(link)
            case LinkAction.CANCEL:
                if link.retry is not None:
                    link.retry.cancel()
                link.retry = link.retry_at = None
            case LinkAction.END:
                self.end(link)
            case LinkAction.DRAIN:
                served, link.serving = link.serving, None
                if served is not None:
                    _drain(link, served)
            case LinkAction.CLOSE:
                self._close(link)

    def _attempt(self, link: Link, known: Known | None) -> Attempt:
        return Attempt(link, self._gate, self._post, known)

    def _serve(self, link: Link) -> None:
        """The one that was tried serves; the one before it drains."""
        before, link.serving, link.trying = link.serving, link.trying, None
        if before is not None:
            self._count_drop(link)
            link.peace_until = elapsed() + PEACE
            _drain(link, before)
        self._notebooks.withhold(link)
        if link.ports is not None:
            link.ports.serve(link.serving)
        self._notebooks.look(link)

    def _count_drop(self, link: Link) -> None:
        for tunnel in self._tunnels.values():
            tunnel.drops += tunnel.link is link

    def end(self, link: Link) -> None:
        """Has all the link's attempts let go of everything, once those before them have."""
        ending, link.serving, link.trying, link.draining = link.attempts, None, None, []
        ending += [self._attempt(link, known) for known in link.known]
        link.known = []
        self._end_some(link, ending)

    def _end_some(self, link: Link, ending: list[Attempt]) -> None:
        if ending:
            link.ending += ending
            release = guarded(self._release(link, ending), after=link.releasing)
            link.releasing = self._tasks.create_task(release)

    async def _release(self, link: Link, ending: Sequence[Attempt]) -> None:
        await asyncio.gather(*(guarded(attempt.release()) for attempt in ending))
        link.ending = [attempt for attempt in link.ending if attempt not in ending]
        self._look()  # they needn't be found again any more

    def _close(self, link: Link) -> None:
        """Closes the link's forwards, those at a master that isn't ours too."""
        if link.ports is not None and link.keeping is not None:
            closing = _close_all(link.ports, link.keeping, list(link.forwards))
            link.releasing = self._tasks.create_task(guarded(closing, after=link.releasing))
        link.ports = link.keeping = None

    def _schedule(self, link: Link) -> None:
        remedy = link.trouble.remedy if link.trouble else Remedy.RETRY
        chance = random.random()  # noqa: S311 - spreads load, guards nothing
        delay = retry_delay(remedy, link.failures, chance, elapsed() - link.heard_at)
        link.retry_at = datetime.now().astimezone() + timedelta(seconds=delay)
        link.retry = asyncio.get_running_loop().call_later(delay, self._fall_due, link)

    def _fall_due(self, link: Link) -> None:
        retry = link.retry

        def decide() -> None:
            if retry is not None and link.retry is retry:  # it wasn't cancelled while this waited in the queue
                retry.cancel()  # after a nudge it would still go off
                link.retry = link.retry_at = None
                is_waited_for = any(own.guard.waiting for own in link.forwards if own.guard)
                is_unused = link.state is LinkState.WAITING and self._idling.is_lazy(link) and not is_waited_for
                self.apply(link, LinkEvent.UNUSED if is_unused else LinkEvent.DUE)

        self._decisions.ask_later(decide)

    def _look(self) -> None:
        """Something about a forward is different: has the consumer tell whom it concerns."""
        self._decisions.ask_later(lambda: None)


def _drain(link: Link, served: Attempt) -> None:
    """Has one that served end with its last connection."""
    served.drain()
    link.draining.append(served)


def _has_dialogue(session: Mapping[str, str]) -> bool:
    """Whether ssh can ask on the user's desktop, by the program that they have chosen for that."""
    return bool(session.get("SSH_ASKPASS") and (session.get("DISPLAY") or session.get("WAYLAND_DISPLAY")))


async def _close_all(ports: Ports, keeping: asyncio.Task[None], forwards: Sequence[OpenForward]) -> None:
    keeping.cancel()
    await asyncio.wait([keeping])
    await asyncio.gather(*(ports.close(forward) for forward in forwards))


async def _carry(attempt: Attempt, before: asyncio.Task[None] | None, delay: float = 0.0) -> None:
    """Runs `attempt` once the one before it has let go, after `delay` seconds."""
    await asyncio.sleep(delay)
    if before is not None:
        await asyncio.wait([before])
    try:
        await attempt.run()
    except Exception as error:
        journal.note(traceback.format_exc())
        hint = f"please report it: {paths.keeper_log()}"
        attempt.fail(Trouble(f"a bug in holdfast: {error!r}", hint, Remedy.RETRY_LATER))


async def guarded(work: Coroutine[Any, Any, None], after: asyncio.Task[None] | None = None) -> None:
    """Does `work`, after another task's end. Its failure is noted, and is no other link's."""
    if after is not None:
        await asyncio.wait([after])
    try:
        await work
    except Exception:
        journal.note(traceback.format_exc())
