"""What the screen shows, as values: the tunnels as they were last told of, with their past, become rows. Pure.

A row is text, so that two of them are equal exactly when they look the same: what is equal isn't drawn again.
What is kept is bounded: a tunnel has `KEPT` round trips and the counters of the last seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import click

from holdfast.cli import render
from holdfast.control import Changes, ForwardStatus, TunnelStatus
from holdfast.rates import Rate, Traffic, amount

# Seconds that one round trip in the history stands for, and how many there are: ten minutes.
EVERY = 5.0
KEPT = 120
# The state of a tunnel that the keeper doesn't tell of.
RESTING = "down"
# In these a far side has answered, or would have.
_ANSWERED = ("up", "no service", "port taken", "refused")


class Ends(NamedTuple):
    """Where a forward listens and leads, in full."""

    kind: str
    listen: str
    target: str


class Resting(NamedTuple):
    """A tunnel that could be brought up: of the configuration `origin`, or one that was taken down."""

    name: str
    host: str
    forwards: tuple[Ends, ...]
    groups: tuple[str, ...] = ()
    origin: str = ""


class Row(NamedTuple):
    """A tunnel as the list shows it. `troubles` are lines of their own; `trips` are as `Trips.of` gives them."""

    name: str
    state: str
    host: str
    forwards: tuple[str, ...]
    trips: tuple[float | None, ...] = ()
    rtt: str = "-"
    received: str = "-"
    sent: str = "-"
    connections: str = "-"
    since: str = "-"
    outage: str = "-"
    troubles: tuple[str, ...] = ()


class Trips:
    """The round trips of the last minutes, in milliseconds: the longest of each `EVERY` seconds.

    None: in that time there was one that did not come back. The first is one that did.
    """

    def __init__(self) -> None:
        self._kept: dict[str, deque[float | None]] = {}
        self._begun: float | None = None

    def note(self, tunnels: Iterable[TunnelStatus], at: float) -> None:
        """Takes in what is known at `at`, in seconds."""
        is_new = self._begun is None or at - self._begun >= EVERY
        if is_new:
            self._begun = at
        before, self._kept = self._kept, {}
        for tunnel in tunnels:
            kept = self._kept[tunnel["name"]] = before.get(tunnel["name"]) or deque(maxlen=KEPT)
            trip = tunnel["rtt_ms"] if tunnel["state"] in _ANSWERED else None
            if trip is None and (not kept or tunnel["state"] in (*_ANSWERED, "idle")):
                continue  # nothing was asked, or has ever come back
            if is_new or not kept:
                kept.append(trip)
            else:
                last = kept.pop()
                kept.append(None if last is None or trip is None else max(last, trip))

    def of(self, name: str) -> tuple[float | None, ...]:
        return tuple(self._kept.get(name, ()))


class Board:
    """All that is known. `tunnels` are those that the keeper tells of."""

    def __init__(self) -> None:
        self.tunnels: dict[str, TunnelStatus] = {}
        self._resting: dict[str, Resting] = {}
        self._traffic = Traffic()
        self._trips = Trips()

    def start_over(self, told: Changes) -> None:
        """Takes in what a keeper tells first: all that there is."""
        self.tunnels = {}
        self.learn(told)

    def learn(self, told: Changes) -> None:
        for name in told["gone"]:
            self.tunnels.pop(name, None)
        self.tunnels.update({tunnel["name"]: tunnel for tunnel in told["tunnels"]})

    def rest(self, resting: Iterable[Resting]) -> None:
        """Takes in what could be brought up; what is up already doesn't matter here."""
        self._resting = {one.name: one for one in resting}

    def tick(self, at: float) -> None:
        """Takes what is known now into the past; once a second or so. `at` is in seconds, and never goes back."""
        self._traffic.note(self.tunnels.values(), at)
        self._trips.note(self.tunnels.values(), at)

    def resting(self, name: str) -> Resting | None:
        """What is to be brought up by that name, as it was described; None for what is there already."""
        return None if name in self.tunnels else self._resting.get(name)

    def trips(self, name: str) -> tuple[float | None, ...]:
        return self._trips.of(name)

    def rate(self, name: str) -> Rate | None:
        return self._traffic.rate(name)

    def rows(self, now: datetime, needle: str = "") -> list[Row]:
        """The rows that `needle` is found in: those that there are by their names, then those at rest."""
        there = [self._row(tunnel, now) for _, tunnel in sorted(self.tunnels.items())]
        resting = [_resting_row(one) for name, one in sorted(self._resting.items()) if name not in self.tunnels]
        groups = {name: one.groups for name, one in self._resting.items()}
        return [row for row in (*there, *resting) if _fits(row, needle, groups.get(row.name, ()))]

    def summary(self, width: int) -> str:
        """All tunnels in a few words and, if that fits into `width` characters, what goes through them.

        A connection that several share counts once.
        """
        words = render.short(list(self.tunnels.values())) or "no tunnel is up"
        served = {tunnel["master_pid"] or name: self.rate(name) for name, tunnel in self.tunnels.items()}
        rates = [rate for rate in served.values() if rate is not None]
        received, sent = sum(rate.received for rate in rates), sum(rate.sent for rate in rates)
        whole = f"{words}   {amount(received)} in, {amount(sent)} out"
        return whole if self.tunnels and len(whole) <= width else words

    def what_breaks(self, name: str) -> str:
        """A sentence on the connections that end with the tunnel; nothing when there are none."""
        forwards = self.tunnels[name]["forwards"] if name in self.tunnels else []
        count = sum(forward["connections"] or 0 for forward in forwards)
        if not count:
            return ""
        return " 1 connection breaks off." if count == 1 else f" {count} connections break off."

    def _row(self, tunnel: TunnelStatus, now: datetime) -> Row:
        rate = self.rate(tunnel["name"])
        counted = [one["connections"] for one in tunnel["forwards"] if one["connections"] is not None]
        return Row(
            name=tunnel["name"],
            state=tunnel["state"],
            host=tunnel["host"],
            forwards=tuple(_exposed(one) + brief(_ends(one)) for one in tunnel["forwards"]),
            trips=self.trips(tunnel["name"]),
            rtt=_round_trip(tunnel),
            received="-" if rate is None else short_amount(rate.received),
            sent="-" if rate is None else short_amount(rate.sent),
            connections=str(sum(counted)) if counted else "-",
            since=_age(tunnel["since"], now),
            outage=_last_outage(tunnel, now),
            troubles=tuple(_troubles(tunnel, now)),
        )


def brief(ends: Ends) -> str:
    """A forward as it may be asked for: ports of this machine or of the host itself without their addresses."""
    listen = ends.listen.removeprefix("localhost:")
    target = (ends.target or "SOCKS").removeprefix("127.0.0.1:").removeprefix("localhost:")
    return f"{target} ← {listen}" if ends.kind == "remote" else f"{listen} → {target}"


def short_amount(rate: float) -> str:
    """Bytes a second in at most four characters: '950', '1.2k', '12M'."""
    for unit in ("", "k", "M"):
        if rate < 999.5:
            return f"{rate:.0f}{unit}" if rate >= 9.95 or not unit else f"{rate:.1f}{unit}"
        rate /= 1000
    return f"{rate:.1f}G" if rate < 9.95 else f"{rate:.0f}G"


def sparkline(trips: Sequence[float | None], width: int) -> str:
    """The last `width` round trips as bars, with a cross for one that did not come back.

    The scale begins at nothing. A steady line stands at half height; differences below a millisecond look small.
    """
    shown = trips[-width:]
    there = [trip for trip in shown if trip is not None]
    top = max([*there, 2 * min(there), 1.0]) if there else 1.0
    bars = ("×" if trip is None else "▁▂▃▄▅▆▇█"[min(7, int(trip / top * 8))] for trip in shown)
    return "".join(bars).rjust(width)


def _resting_row(resting: Resting) -> Row:
    return Row(resting.name, RESTING, resting.host, tuple(map(brief, resting.forwards)))


def _fits(row: Row, needle: str, groups: Sequence[str] = ()) -> bool:
    """Whether all words of `needle` are found in the row, whatever their case."""
    whole = "\n".join((row.name, row.host, row.state, *row.forwards, *row.troubles, *groups)).lower()
    return all(word in whole for word in needle.lower().split())


def _exposed(forward: ForwardStatus) -> str:
    """The mark of one that other machines can reach, which no lack of room cuts off: it comes first."""
    mark = render.exposed_mark(forward).strip()
    return f"{mark} " if mark else ""


def _ends(forward: ForwardStatus) -> Ends:
    return Ends(forward["kind"], forward["listen"], forward["target"] or "")


def _round_trip(tunnel: TunnelStatus) -> str:
    """In at most seven characters, below 10 s."""
    rtt = tunnel["rtt_ms"]
    return f"{rtt:.0f} ms" if rtt is not None and rtt >= 99.95 else render.round_trip(tunnel)


def _age(moment: str, now: datetime) -> str:
    return render.age((now - datetime.fromisoformat(moment)).total_seconds())


def _last_outage(tunnel: TunnelStatus, now: datetime) -> str:
    """How long it took, and how long ago that was."""
    outage = tunnel["last_outage"]
    if outage is None:
        return "-"
    if outage["ended"] is None:
        return f"for {_age(outage['began'], now)}"
    return f"{render.age(outage['seconds'])}, {_age(outage['ended'], now)} ago"


def _troubles(tunnel: TunnelStatus, now: datetime) -> Iterator[str]:
    """What is wrong with it, and who waits for that."""
    if tunnel["reason"] or any(forward["reason"] for forward in tunnel["forwards"]):
        yield click.unstyle(next(render.remarks(tunnel, now)))
    if tunnel["held"]:
        yield "1 connection waits" if tunnel["held"] == 1 else f"{tunnel['held']} connections wait"
