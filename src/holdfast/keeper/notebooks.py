"""Keeps forwards leading to their notebook servers, when those come back on another port or socket, or go.

The servers are never asked: their files over there are read, after each reconnect, when a connection was refused
(which the master's log tells), and while somebody waits for one that was gone. Until it is known who listens over
there, and while it isn't ours, the guard has the port here: so no cookie is sent to a stranger, and a browser is
shown the waiting room.
"""

from __future__ import annotations

import asyncio
import shlex
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError
from holdfast.jupyter import servers
from holdfast.jupyter.servers import Found, Server
from holdfast.keeper import journal
from holdfast.keeper.forwarding import OpenForward, Withheld
from holdfast.keeper.states import ForwardState, LinkState
from holdfast.keeper.watch import elapsed
from holdfast.openssh import session
from holdfast.openssh.script import NotRun

if TYPE_CHECKING:
    from holdfast.keeper.link import Attempt, Link

# Seconds from one look at the masters' logs to the next.
PACE = 0.5
# Seconds that the far side may take to tell which servers there are.
PATIENCE = 15.0
_UNKNOWN = Withheld(
    "where its notebook server is could not be found out, since its host did not answer in time",
    "holdfast goes on asking",
)
# The bounds of the seconds between looks for a server that somebody waits for.
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 15.0


class Follower:
    """Looks after the notebooks of all links. `decide` has the keeper's consumer run something; `tell` tells what
    happened to a forward, in words."""

    def __init__(
        self,
        links: Callable[[], Iterable[Link]],
        decide: Callable[[Callable[[], object]], None],
        tell: Callable[[OpenForward, str], None],
    ) -> None:
        self._links = links
        self._decide = decide
        self._tell = tell
        self._looks: dict[Attempt, asyncio.Task[None]] = {}
        # How much of the serving master's log was read; when a link was last looked at, whether that told nothing,
        # and since when one of its servers has been gone.
        self._read: dict[Attempt, int] = {}
        self._looked_at: dict[Link, float] = {}
        self._unknown: set[Link] = set()
        self._gone_since: dict[Link, float] = {}
        self._wanted = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def run(self) -> None:
        """Until cancelled."""
        async with self._tasks:
            while True:
                if not any(map(_notebooks, self._links())):
                    await self._wanted.wait()
                self._wanted.clear()
                for link in self._links():
                    if _notebooks(link) and self._is_due(link):
                        self.look(link)
                await asyncio.sleep(PACE)

    def withhold(self, link: Link) -> None:
        """From now on no master listens for the link's notebooks, until a look has told where they are.

        But for those on Unix sockets: where they were, nobody else can be.
        """
        for own in _notebooks(link):
            if own.forward.target is not None and not own.forward.target.path:
                own.withheld = Withheld()

    def look(self, link: Link) -> asyncio.Task[None] | None:
        """Finds out where the link's notebooks are now; the task that does, None where there is nothing to do."""
        self._wanted.set()
        attempt = link.serving
        if attempt is None or attempt.master is None or not _notebooks(link):
            return None
        if attempt not in self._looks:
            task = self._looks[attempt] = self._tasks.create_task(self._look(link, attempt))
            task.add_done_callback(lambda _: self._looks.pop(attempt, None))
        return self._looks[attempt]

    async def look_again(self, links: Iterable[Link], *, doubt: bool) -> None:
        """Looks for those that were not up, or with `doubt` for all, and returns when that is known."""

        def is_doubtful(link: Link) -> bool:
            return doubt or any(own.state is not ForwardState.UP for own in _notebooks(link))

        doubtful = filter(is_doubtful, links)
        tasks = [task for link in doubtful if (task := self.look(link))]
        if tasks:
            await asyncio.wait(tasks)

    def _is_due(self, link: Link) -> bool:
        attempt = link.serving
        if attempt is None or attempt.master is None or link.state is not LinkState.UP:
            return False
        since = elapsed() - self._looked_at.get(link, -LONGEST_PAUSE)
        if since < SHORTEST_PAUSE:
            return False
        size, before = attempt.master.log_size(), self._read.get(attempt, 0)
        self._read = {attempt: read for attempt, read in self._read.items() if attempt in attempt.link.attempts}
        self._read[attempt] = size
        if size > before and "open failed" in attempt.master.read_log(before):
            return True
        is_waited_for = link in self._unknown or any(
            own.withheld and own.guard and own.guard.waiting for own in _notebooks(link)
        )
        return is_waited_for and since >= pause(elapsed() - self._gone_since.get(link, elapsed()))

    async def _look(self, link: Link, attempt: Attempt) -> None:
        assert attempt.master is not None
        found: Found | None = None
        can_look = True
        try:
            printed = await session.run(attempt.master.socket, servers.PROGRAM, link.host, PATIENCE)
            found = servers.read(printed)
        except NotRun:
            can_look = False
        except (HoldfastError, OSError) as error:
            journal.note(f"{link.host}: can't tell where its notebooks are: {error}")
        except Exception:
            journal.note(traceback.format_exc())
        self._looked_at[link] = elapsed()
        decided = asyncio.Event()

        def decide() -> None:
            try:
                if link.serving is attempt:
                    self._take(link, found, can_look=can_look)
            finally:
                decided.set()

        self._decide(decide)
        await decided.wait()

    def _take(self, link: Link, found: Found | None, *, can_look: bool) -> None:
        """Takes in what a look has told, or that it told nothing."""
        self._unknown.discard(link)
        withheld = [own for own in _notebooks(link) if own.withheld is not None]
        if found is not None:
            self._follow(link, found)
        elif can_look:
            self._unknown.add(link)
            for own in withheld:
                own.withheld = _UNKNOWN
        else:  # nobody will ever tell: each leads to where it was
            for own in withheld:
                own.withheld = None
        if any(own.withheld for own in _notebooks(link)):
            self._gone_since.setdefault(link, elapsed())
        else:
            self._gone_since.pop(link, None)
        if link.ports is not None:
            link.ports.open_wanted()

    def _follow(self, link: Link, found: Found) -> None:
        """Has each notebook's forward lead to where that is now."""
        known = {own: _same(own, found) for own in _notebooks(link)}
        left = [server for server in found.servers if server not in known.values()]
        for own, same in known.items():
            assert own.notebook is not None
            server = same or servers.successor(own.notebook, left)
            if server is None:
                self._lose(link, own)
                continue
            if server in left:
                left.remove(server)
            self._lead(own, server)

    def _lose(self, link: Link, own: OpenForward) -> None:
        assert own.notebook is not None
        directory = own.notebook.directory
        own.withheld = Withheld(
            f"the notebook server in {directory} does not run on {link.host} any more",
            "this goes on by itself when it does: "
            f"holdfast jupyter {link.host} --start --dir {shlex.quote(directory)}",
        )

    def _lead(self, own: OpenForward, server: Server) -> None:
        own.withheld = None
        if server.place != (own.moves_to or own.forward.target):
            own.moves_to = server.place
            self._tell(own, f"the notebook server in {server.directory} is at {server.place} now")
        own.notebook = server.kept


def pause(gone_for: float) -> float:
    """Seconds until the next look for a server that has been gone for so many seconds, while somebody waits."""
    return min(LONGEST_PAUSE, max(SHORTEST_PAUSE, gone_for / 10))


def _notebooks(link: Link) -> list[OpenForward]:
    return [own for own in link.forwards if own.notebook is not None]


def _same(own: OpenForward, found: Found) -> Server | None:
    """The server that `own` leads to, if it runs."""
    target = own.moves_to or own.forward.target
    if own.notebook is None or target is None:
        return None
    return servers.same(own.notebook, target, found.servers)
