"""When nobody uses a lazy tunnel's link any more. The system is asked: no byte passes through here.

A connection that came and went between two looks is seen as well: the kernel remembers those that have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.forward import Kind
from holdfast.keeper import counters, processes
from holdfast.keeper.link import Link
from holdfast.keeper.watch import elapsed

# Seconds from one look to the next, at most: well within the kernel's memory.
LONGEST_PAUSE = 15.0


async def until_unused(link: Link, allowed: Callable[[], float]) -> bool:
    """Returns once nobody has used the link for `allowed()` seconds: True; or once that is 0: False."""
    used_at = elapsed()
    while (seconds := allowed()) > 0:
        await asyncio.sleep(min(LONGEST_PAUSE, seconds / 4))
        now = elapsed()
        ago = await asyncio.to_thread(_last_use, link)
        if ago is not None:
            used_at = max(used_at, now - ago)
        if now - used_at >= seconds:
            return allowed() > 0
    return False


def _last_use(link: Link) -> float | None:
    """Seconds since a connection went over it, as far as the system remembers."""
    for attempt in link.attempts:
        carrier = attempt.master
        if carrier is not None and not processes.carries_nothing(carrier.pid, carrier.socket, attempt.is_direct):
            return 0.0
    listens = [
        end for own in link.forwards if own.forward.kind is not Kind.REMOTE for end in own.forward.listeners
    ]
    return counters.last_use(listens, counters.tcp_connections({end.port for end in listens}))
