"""Has links and forwards show what the system has counted by now. Blocking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from holdfast.forward import Kind
from holdfast.keeper import counters, guard
from holdfast.keeper.counters import Connection
from holdfast.keeper.link import Link


def count(links: Collection[Link]) -> None:
    """Notes the connections at each forward that listens here, and the traffic of each link's connection."""
    found = counters.tcp_connections()
    if found is None:
        return
    forwards = [own for link in links for own in link.forwards if own.forward.kind is not Kind.REMOTE]
    has_paths = any(own.forward.listen.path for own in forwards)
    unix = counters.unix_connections() if has_paths else Counter()
    by_port: dict[int, list[Connection]] = {}
    for connection in found:
        by_port.setdefault(connection.local.port, []).append(connection)
    for own in forwards:
        there = by_port.get(own.forward.listen.port, [])
        taken = counters.connections_of(own.forward.listeners, there, unix, guard.BESIDE)
        own.connections = max(0, taken - (own.guard.waiting if own.guard else 0))
    traffic = {connection.inode: connection.traffic for connection in found}
    for link in links:
        attempt = link.serving
        master = attempt.master if attempt else None  # it may end at any time: this is another thread
        if attempt is not None and master is not None:
            if attempt.own_connection is None:
                attempt.own_connection = counters.own_connection(master.pid, is_direct=attempt.is_direct)
            attempt.traffic = traffic.get(attempt.own_connection or 0)
