"""When nobody uses a lazy tunnel's link any more. The system is asked: no byte passes through here.

A connection that came and went between two looks is seen as well: the kernel remembers those that have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from holdfast.forward import Kind
from holdfast.keeper import counters, processes
from holdfast.keeper.link import Link
from holdfast.keeper.states import LinkState
from holdfast.keeper.tunnel import Tunnel
from holdfast.keeper.watch import elapsed

# Seconds from one look to the next, at most: well within the kernel's memory.
LONGEST_PAUSE = 15.0


class Idling:
    """Watches the links that only lazy ones of `tunnels` need; `rest` is called for one that nobody has used."""

    def __init__(self, tunnels: Mapping[str, Tunnel], rest: Callable[[Link], object]) -> None:
        self._tunnels = tunnels
        self._rest = rest
        self._tasks: asyncio.TaskGroup | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Has what is watched be watched in `tasks`."""
        self._tasks = tasks

    def is_lazy(self, link: Link) -> bool:
        """Whether the link has to be there only while somebody is connected."""
        return not link.visits and all(tunnel.is_lazy for tunnel in self._of(link))

    def allowed(self, link: Link) -> float:
        """Seconds without use after which the link may end; 0 for never, as where a person had to log in."""
        tunnels = self._of(link)
        if link.state is not LinkState.UP or link.attended or not (tunnels and self.is_lazy(link)):
            return 0.0
        times = [float(tunnel.upkeep.idle) for tunnel in tunnels]
        return max(times) if all(times) else 0.0

    def watch(self, link: Link) -> None:
        """Watches it if need be. To be called whenever something has changed."""
        is_watched = link.idling is not None and not link.idling.done()
        if self._tasks is not None and not is_watched and self.allowed(link):
            link.idling = self._tasks.create_task(self._watch(link))

    def _of(self, link: Link) -> list[Tunnel]:
        return [tunnel for tunnel in self._tunnels.values() if tunnel.link is link]

    async def _watch(self, link: Link) -> None:
        used_at = elapsed()
        while (seconds := self.allowed(link)) > 0:
            await asyncio.sleep(min(LONGEST_PAUSE, seconds / 4))
            now = elapsed()
            ago = await asyncio.to_thread(_last_use, link)
            if ago is not None:
                used_at = max(used_at, now - ago)
            if now - used_at >= seconds:
                self._rest(link)
                return


def _last_use(link: Link) -> float | None:
    """Seconds since a connection went over it, as far as the system remembers."""
    for attempt in link.attempts:
        carrier = attempt.master
        if carrier is not None and not processes.carries_nothing(carrier.pid, carrier.socket, attempt.is_direct):
            return 0.0
    listens = [
        end for own in link.forwards if own.forward.kind is not Kind.REMOTE for end in own.forward.listeners
    ]
    return counters.last_use(listens, counters.tcp_connections(ended=True) or ())
