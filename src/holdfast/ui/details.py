"""All that is known of one tunnel, as lines for its pane. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import click

from holdfast.cli import render
from holdfast.control import TunnelStatus
from holdfast.rates import Rate, amount
from holdfast.ui.board import Resting, sparkline
from holdfast.ui.columns import SYMBOLS


class Fact(NamedTuple):
    """`label` is empty on lines that go on with the one before."""

    label: str
    text: str


def of_tunnel(
    tunnel: TunnelStatus, now: datetime, trips: Sequence[float | None], rate: Rate | None, width: int
) -> list[Fact]:
    """What there is to say of a tunnel; bars of its round trips fill `width` characters."""
    since = render.age((now - datetime.fromisoformat(tunnel["since"])).total_seconds())
    facts = [Fact("state", f"{SYMBOLS.get(tunnel['state'], '×')} {tunnel['state']}, for {since}")]
    facts += _under("", (click.unstyle(remark) for remark in render.remarks(tunnel, now)))
    facts.append(Fact("host", " ".join((tunnel["host"], *tunnel["options"]))))
    facts += _under("forwards", _forwards(tunnel))
    facts.append(Fact("round trip", _round_trips(tunnel, trips, width)))
    if rate is not None:
        facts.append(Fact("traffic", f"{amount(rate.received)} in, {amount(rate.sent)} out"))
    facts += _under("outages", _outages(tunnel, now))
    if tunnel["config"]:
        facts.append(Fact("config", tunnel["config"]))
    return facts


def of_resting(resting: Resting) -> list[Fact]:
    """What there is to say of a tunnel that isn't there."""
    why = "it is in the configuration" if resting.origin else "it was taken down, and is remembered"
    facts = [Fact("state", f"- down: {why}"), Fact("", "u brings it up"), Fact("host", resting.host)]
    ends = (f"{one.target or 'SOCKS'} <- {one.listen}" if one.kind == "remote" else _arrow(one.listen, one.target)
            for one in resting.forwards)  # fmt: skip
    facts += _under("forwards", ends)
    if resting.groups:
        facts.append(Fact("groups", ", ".join(resting.groups)))
    return facts + [Fact("config", resting.origin)] * bool(resting.origin)


def _arrow(listen: str, target: str) -> str:
    return f"{listen} -> {target or 'SOCKS'}"


def _forwards(tunnel: TunnelStatus) -> Iterator[str]:
    for forward in tunnel["forwards"]:
        state = "" if forward["state"] == tunnel["state"] else f"  ({forward['state']})"
        count = forward["connections"]
        carried = "" if not count else "  1 connection" if count == 1 else f"  {count} connections"
        yield render.forward_line(forward, tunnel["host"]) + render.exposed_mark(forward) + state + carried
        if forward["notebook"]:
            yield f"  the notebook server in {forward['notebook']['directory']}"


def _round_trips(tunnel: TunnelStatus, trips: Sequence[float | None], width: int) -> str:
    shown = sparkline(trips, min(width, len(trips)))
    there = [trip for trip in trips if trip is not None]
    span = f"  {min(there):.1f} to {max(there):.1f} ms" if there else ""
    return f"{render.round_trip(tunnel)}  {shown}{span}"


def _outages(tunnel: TunnelStatus, now: datetime) -> Iterator[str]:
    if tunnel["outages"]:
        times = "once" if tunnel["outages"] == 1 else f"{tunnel['outages']} times"
        lost = f", and {tunnel['drops']} times lost its connection" if tunnel["drops"] > 1 else ""
        yield f"{times}, {render.age(tunnel['down_seconds'])} in all{lost}"
    outage = tunnel["last_outage"]
    if outage is None:
        if not tunnel["outages"]:
            yield "none"
        return
    began = render.age((now - datetime.fromisoformat(outage["began"])).total_seconds())
    took = "it goes on" if outage["ended"] is None else f"took {outage['seconds']:g} s"
    yield f"the last began {began} ago, {took}: {outage['reason']}"
    if outage["mended_by"]:
        waited = f"; {outage['held']} waited, {outage['let_through']} let through" if outage["held"] else ""
        yield f"mended by {outage['mended_by']}{waited}"


def _under(label: str, texts: Iterator[str]) -> list[Fact]:
    """One fact a line, the first with the label."""
    return [Fact(label if not number else "", text) for number, text in enumerate(texts)]
