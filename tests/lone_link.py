"""A link with its ports and its masters, but without a keeper: whoever uses it decides who serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from holdfast.forward import Kind, parse
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.guard import Guard, Hold, Lobby
from holdfast.keeper.link import Attempt, Gate, Link, News
from holdfast.keeper.ports import Ports
from holdfast.keeper.states import LinkEvent


async def until(condition: Callable[[], object], what: str, seconds: float = 15) -> None:
    """`wait_for`, where an event loop has to go on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await asyncio.sleep(0.002)


class LoneLink:
    """Between `async with` and its end the link's ports are held; then its masters end, and its ports are free."""

    def __init__(
        self,
        config: Path,
        *forwards: str,
        kind: Kind = Kind.LOCAL,
        hold: Hold | None = None,
        page: Callable[[], bytes] | None = None,
    ) -> None:
        self.link = Link("lab", ("-F", str(config)), {}, switch=False)
        self.news: list[News] = []
        self.lobby = Lobby()
        self._gate = Gate()
        self._hold = hold or Hold()
        self._page = page
        self.link.forwards = [self._forward(text, kind) for text in forwards]
        self.link.ports = self.ports = Ports(self.link, lambda: None)

    def _forward(self, text: str, kind: Kind) -> OpenForward:
        forward = parse(text, kind)
        made = OpenForward(forward, forward)
        if forward.kind is not Kind.REMOTE:
            made.guard = Guard(forward, self._hold, self.lobby, made.tally, self._page)
        return made

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self.ports.run())
        self.ports.serve(None)
        await until(lambda: self.is_held, "the guards to listen")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.wait([self._keeping])
        for forward in self.link.forwards:
            await self.ports.close(forward)
        await asyncio.gather(*(attempt.release() for attempt in self.link.attempts))
        await self.lobby.close()

    @property
    def guard(self) -> Guard:
        """That of the first forward."""
        guard = self.link.forwards[0].guard
        assert guard is not None
        return guard

    @property
    def is_held(self) -> bool:
        """Whether the guards listen on everything."""
        return all(
            own.guard is None or set(own.guard.holds) == set(own.forward.listeners) for own in self.link.forwards
        )

    @property
    def is_served(self) -> bool:
        """Whether the serving master listens on everything, and nobody waits any more."""
        serving = self.link.serving
        return all(
            serving is not None
            and own.master is serving.master
            and len(own.listening) == len(own.forward.listeners)
            and not (own.guard and (own.guard.waiting or own.guard.holds))
            for own in self.link.forwards
        )

    def events(self, attempt: Attempt) -> Sequence[LinkEvent]:
        """What `attempt` has reported so far."""
        return [news.event for news in self.news if news.attempt is attempt]

    def try_to_connect(self) -> Attempt:
        """A new attempt, that runs."""
        attempt = Attempt(self.link, self._gate, self.news.append)
        self.link.trying = attempt
        attempt.task = asyncio.create_task(attempt.run())
        return attempt

    async def prove(self) -> Attempt:
        """A new attempt whose master has answered."""
        attempt = self.try_to_connect()
        await until(lambda: self.events(attempt), "the login")
        assert self.events(attempt) == [LinkEvent.PROVEN], self.news[-1].trouble
        return attempt

    async def serve(self, attempt: Attempt | None = None) -> Attempt:
        """Has `attempt`, or a new one, serve in place of the one before, which drains."""
        attempt = attempt or await self.prove()
        before, self.link.serving, self.link.trying = self.link.serving, attempt, None
        if before is not None:
            before.drain()
            self.link.draining.append(before)
        await self.give_to_master()
        return attempt

    async def give_to_master(self) -> None:
        """The serving master gets the ports."""
        self.ports.serve(self.link.serving)
        await until(lambda: self.is_served, "the master to listen")

    async def give_to_guards(self) -> None:
        """The guards get the ports."""
        self.ports.serve(None)
        await until(lambda: self.is_held, "the guards to listen")
