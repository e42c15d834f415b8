"""Has links and forwards show what the system has counted by now. Blocking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from holdfast.forward import Kind
from holdfast.keeper import counters, guard
from holdfast.keeper.link import Link


def count(links: Collection[Link]) -> None:
    """Notes the connections at each forward that listens here, and the traffic of each link's connection."""
    forwards = [own for link in links for own in link.forwards if own.forward.kind is not Kind.REMOTE]
    listens = [end for own in forwards for end in own.forward.listeners]
    found = counters.tcp_connections({end.port for end in listens})
    unix = counters.unix_connections() if any(end.path for end in listens) else Counter()
    for own in forwards:
        own.connections = counters.connections_of(own.forward.listeners, found, unix, guard.BESIDE)
    traffic = counters.traffic()
    for link in links:
        attempt = link.serving
        if attempt is not None and attempt.master is not None and traffic:
            if attempt.own_connection is None:
                attempt.own_connection = counters.own_connection(attempt.master.pid, is_direct=attempt.is_direct)
            attempt.traffic = traffic.get(attempt.own_connection or 0)
