"""What goes through the connection of each tunnel in a second, by what its counters said. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from holdfast.control import TunnelStatus

# Seconds that a rate is the mean of.
WINDOW = 3.0


class Rate(NamedTuple):
    """Bytes a second, each way."""

    received: float
    sent: float


class _Count(NamedTuple):
    """What the counters of the connection of the master `pid` said at a time."""

    at: float
    pid: int | None
    received: int
    sent: int

    def continues(self, before: _Count) -> bool:
        """Whether it is of the same connection: another one starts anew."""
        return self.pid == before.pid and self.received >= before.received and self.sent >= before.sent


class Traffic:
    """The rates of the tunnels that it was told of last."""

    def __init__(self) -> None:
        self._counted: dict[str, deque[_Count]] = {}

    def note(self, tunnels: Iterable[TunnelStatus], at: float) -> None:
        """Takes the counters in; `at` is in seconds, on any clock that only goes forward."""
        before, self._counted = self._counted, {}
        for tunnel in tunnels:
            received, sent = tunnel["received_bytes"], tunnel["sent_bytes"]
            if received is None or sent is None:
                continue
            count = _Count(at, tunnel["master_pid"], received, sent)
            counted = before.get(tunnel["name"], deque())
            if counted and not count.continues(counted[-1]):
                counted.clear()
            if counted and counted[-1].at >= at:
                counted.pop()
            counted.append(count)
            while len(counted) > 2 and counted[1].at <= at - WINDOW:
                counted.popleft()
            self._counted[tunnel["name"]] = counted

    def rate(self, name: str) -> Rate | None:
        """None until there is something to compare."""
        counted: Sequence[_Count] = self._counted.get(name, ())
        if len(counted) < 2:
            return None
        first, last = counted[0], counted[-1]
        span = last.at - first.at
        return Rate((last.received - first.received) / span, (last.sent - first.sent) / span)


def amount(rate: float) -> str:
    """Bytes a second for people: '950 B/s', '1.2 kB/s', '12 MB/s'."""
    for unit in ("B/s", "kB/s", "MB/s"):
        if rate < 999.5:
            return f"{rate:.0f} {unit}" if rate >= 10 or unit == "B/s" else f"{rate:.1f} {unit}"
        rate /= 1000
    return f"{rate:.1f} GB/s"
