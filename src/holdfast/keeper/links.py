"""The links: which there are, what needs them, and when one is let go.

A link carries the forwards of tunnels, and programs that are run over there (visits). It is there for as long as
one of them needs it; after a visit it lingers for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence

from holdfast.keeper import journal
from holdfast.keeper.decisions import Decisions
from holdfast.keeper.driving import Driver, guarded
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.idling import Idling
from holdfast.keeper.link import Link, Terminal
from holdfast.keeper.notebooks import Follower
from holdfast.keeper.states import LinkEvent, LinkState
from holdfast.keeper.tunnel import Tunnel
from holdfast.keeper.watch import Change, watch
from holdfast.openssh.settings import Settings

# Seconds for which a link stays after a program was run over it, for the next one, where no tunnel needs it.
LINGER = 45.0


class Links:
    """The links that `tunnels` go over, which whoever made this goes on changing. Their work runs in `tasks`."""

    def __init__(self, tunnels: Mapping[str, Tunnel], decisions: Decisions, tasks: asyncio.TaskGroup) -> None:
        self._tunnels = tunnels
        self._decisions = decisions
        self._tasks = tasks
        self._links: dict[tuple[str, tuple[str, ...]], Link] = {}
        self._idling = Idling(tunnels, lambda link: decisions.ask_later(lambda: self._rest(link)))
        self.notebooks = Follower(lambda: list(self._links.values()), decisions.ask_later, self._record)
        self._driver = Driver(tunnels, decisions, self._idling, self.notebooks, tasks)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def to(self, host: str, options: tuple[str, ...]) -> Link:
        """The link to a host with these options; a new one where there is none."""
        return self._links.setdefault((host, options), Link(host, options, {}))

    def start(self) -> None:
        """Brings up those that were wanted when the keeper before this one ended."""
        self._tasks.create_task(guarded(watch(self._nudge_later)))
        self._tasks.create_task(guarded(self.notebooks.run()))
        self._idling.start(self._tasks)
        for link in self._links.values():
            link.switch = self._may_switch(link)
            self._driver.recover(link)
            if link.forwards:
                self._ask_for(link, or_adopt=bool(link.known))
            elif link.known or link.draining:  # it was being taken down when the keeper before this one died
                self._driver.end(link)

    def carry(
        self,
        link: Link,
        forwards: Sequence[OpenForward],
        environment: dict[str, str],
        terminal: Terminal | None,
        settings: Settings | None,
        *,
        in_doubt: bool,
    ) -> None:
        """Has it carry `forwards` too, which a tunnel has by now. `in_doubt`: their notebooks may have moved.

        `settings` is what ssh would use, if that has just been found out.
        """
        link.switch = self._may_switch(link)
        link.settings = settings if link.state is LinkState.DOWN else None
        link.take_session(environment, terminal)
        link.forwards += forwards
        self._stop_lingering(link)
        self._ask_for(link)
        if link.state is LinkState.IDLE:  # when somebody comes, that may be out of date
            link.settings = None
        if in_doubt:
            self.notebooks.withhold(link)
        self.notebooks.look(link)
        if link.ports is not None:
            link.ports.open_wanted()

    def give_up(self, link: Link, forwards: Sequence[OpenForward]) -> list[asyncio.Task[None]]:
        """Closes some of its forwards, which no tunnel has any more, and ends it where nothing else needs it.

        Returns what to wait for.
        """
        if not self._is_needed(link):
            self._let_down(link)
            return [link.releasing] if link.releasing else []
        link.forwards = [forward for forward in link.forwards if forward not in forwards]
        link.switch = self._may_switch(link)
        if link.ports is None:
            return []
        return [self._tasks.create_task(guarded(link.ports.close(forward))) for forward in forwards]

    def restart(self, link: Link, environment: dict[str, str], terminal: Terminal | None) -> None:
        """Gives it a new connection."""
        link.take_session(environment, terminal)
        self._driver.apply(link, LinkEvent.RESTARTED)

    def visit(self, link: Link, environment: dict[str, str], terminal: Terminal | None) -> None:
        """Keeps it for a program, which is to be run over it, until `leave`."""
        link.take_session(environment, terminal)
        self._stop_lingering(link)
        self._driver.apply(link, LinkEvent.WANTED)
        link.visits += 1

    def leave(self, visited: Iterable[Link]) -> None:
        """Ends visits. A link that nothing else needs stays for the next one, if it is up."""
        for link in visited:
            link.visits -= 1
            if self._is_needed(link):
                continue
            if link.state is LinkState.UP:
                self._linger(link)
            else:
                self._let_down(link)

    def end_visits(self) -> list[asyncio.Task[None]]:
        """Ends the links that only stay for a next visit; what to wait for."""
        lingering = [link for link in self._links.values() if link.lingering]
        for link in lingering:
            self._end_lingering(link)
        return [link.releasing for link in lingering if link.releasing]

    @property
    def are_visited(self) -> bool:
        """Whether a program is being run over one, or one stays for the next."""
        return any(link.visits or link.lingering for link in self._links.values())

    def serves(self, host: str, options: tuple[str, ...]) -> bool:
        """Whether there is a connection already."""
        link = self._links.get((host, options))
        return link is not None and link.state is LinkState.UP

    def came(self, link: Link) -> None:
        """Somebody waits for a port; where the link is idle, they have been waited for."""
        if link.state is LinkState.IDLE:
            self._decisions.ask_later(lambda: self._wake(link))

    def forget_terminal(self, terminal: Terminal) -> None:
        """Asks nobody at `terminal` any more."""
        for link in self._links.values():
            link.terminals = [other for other in link.terminals if other is not terminal]

    def follow_up(self) -> None:
        """After each decision: watches links for which nobody may have a use, and forgets those that are gone."""
        for key, link in list(self._links.items()):
            self._idling.watch(link)
            if link.is_gone and not self._is_needed(link):
                del self._links[key]

    def _ask_for(self, link: Link, *, or_adopt: bool = False) -> None:
        """A tunnel wants the link: now, or when somebody connects. `or_adopt`: one of its masters may live."""
        is_at_rest = link.state in (LinkState.DOWN, LinkState.IDLE)
        lazily = is_at_rest and self._idling.is_lazy(link) and not or_adopt
        self._driver.apply(link, LinkEvent.LAZILY_WANTED if lazily else LinkEvent.WANTED)

    def _wake(self, link: Link) -> None:
        if link.state is LinkState.IDLE:
            self._driver.apply(link, LinkEvent.WANTED)

    def _rest(self, link: Link) -> None:
        """Nobody has used it for a while; unless that has just changed, it ends until somebody comes."""
        if self._idling.allowed(link):
            self._driver.apply(link, LinkEvent.UNUSED)

    def _is_needed(self, link: Link) -> bool:
        """Whether a tunnel or a program goes over it."""
        return link.visits > 0 or any(tunnel.link is link for tunnel in self._tunnels.values())

    def _may_switch(self, link: Link) -> bool:
        return all(tunnel.upkeep.switch for tunnel in self._tunnels.values() if tunnel.link is link)

    def _linger(self, link: Link) -> None:
        def end_later() -> None:
            self._decisions.ask_later(lambda: self._end_lingering(link))

        link.lingering = asyncio.get_running_loop().call_later(LINGER, end_later)

    def _stop_lingering(self, link: Link) -> None:
        if link.lingering:
            link.lingering.cancel()
            link.lingering = None

    def _end_lingering(self, link: Link) -> None:
        if link.lingering and not self._is_needed(link):
            self._let_down(link)

    def _let_down(self, link: Link) -> None:
        """Ends a link that nothing needs any more."""
        self._stop_lingering(link)
        self._driver.apply(link, LinkEvent.UNWANTED)
        link.forwards = []

    def _nudge_later(self, change: Change) -> None:
        self._decisions.ask_later(lambda: self._driver.nudge(self._links.values(), change))

    def _record(self, forward: OpenForward, text: str) -> None:
        """Tells in its tunnel's log what happened to a forward."""
        for tunnel in self._tunnels.values():
            if forward in tunnel.forwards:
                journal.record(tunnel.name, text)
