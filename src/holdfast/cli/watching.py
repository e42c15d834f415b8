"""`status --watch`: the tunnels and what goes through them, drawn again and again in the same place.

What is drawn is pure; the terminal is left as it is (no other screen, no hidden cursor), so that nothing has to be
put right afterwards, however it ends.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

import click

from holdfast import client
from holdfast.cli import render
from holdfast.cli.asking import now
from holdfast.cli.following import Watch, chooser
from holdfast.control import ForwardStatus, TunnelStatus
from holdfast.errors import UsageError
from holdfast.rates import Rate, Traffic, amount

# Seconds between two frames.
SHORTEST, LONGEST = 0.1, 3600.0

_HEADINGS = ("NAME", "STATE", "FORWARD", "RTT", "CONNS", "IN", "OUT")
_CODE = re.compile(r"(\x1b\[[0-9;]*m)")
_RESET = "\x1b[0m"


def frame(
    tunnels: Sequence[TunnelStatus], traffic: Traffic, at: datetime, columns: int, lines: int, note: str = ""
) -> list[str]:
    """What is shown at the time `at`, in at most so many columns and lines. `note` stands in the first one."""
    summary = render.short(tunnels) or "no tunnels"
    first = f"{at:%H:%M:%S}  {summary}{note}"
    rows = [(tunnel, list(_rows(tunnel, traffic.rate(tunnel["name"])))) for tunnel in tunnels]
    shown = render.listing(_HEADINGS, rows, lambda tunnel: render.remarks(tunnel, at), columns)
    shown = [first, *(shown if tunnels else [])]
    if lines < 2:  # there is room for the first one only
        shown = shown[:1]
    elif len(shown) > lines:
        hidden = len(shown) - lines + 1
        shown = [*shown[: lines - 1], "1 more line" if hidden == 1 else f"{hidden} more lines"]
    return [cut(line, columns) for line in shown]


def _rows(tunnel: TunnelStatus, rate: Rate | None) -> Iterator[render.Row]:
    name, rtt = tunnel["name"], render.round_trip(tunnel)
    rates: render.Row = ("-", "-") if rate is None else (amount(rate.received), amount(rate.sent))
    for forward in tunnel["forwards"]:
        carried = "-" if forward["connections"] is None else str(forward["connections"])
        ends = _brief_ends(forward) + render.exposed_mark(forward)
        yield (name, forward["state"], ends, rtt, carried, *rates)
        name, rtt, rates = "", "", ("", "")


def _brief_ends(forward: ForwardStatus) -> str:
    """A forward as it may be asked for: ports of this machine or of the host itself without their addresses."""
    listen = forward["listen"].removeprefix("localhost:")
    target = (forward["target"] or "SOCKS").removeprefix("127.0.0.1:").removeprefix("localhost:")
    return f"{target} <- {listen}" if forward["kind"] == "remote" else f"{listen} -> {target}"


def cut(line: str, columns: int) -> str:
    """What of `line` fits into so many columns; codes for colour take no room, and end with it."""
    shown, left, is_styled = [], columns, False
    for part in _CODE.split(line):
        if _CODE.fullmatch(part):
            shown.append(part)
            is_styled = part != _RESET
        elif left < (room := render.columns_of(part)):
            ends = itertools.accumulate(map(render.columns_of, part))
            shown.append(part[: sum(end <= left for end in ends)] + _RESET * is_styled)
            break
        else:
            shown.append(part)
            left -= room
    return "".join(shown)


def split_interval(text: str) -> tuple[float, tuple[str, ...]]:
    """The seconds that --watch was given; or those by default, and the name of a tunnel that stood in their place.

    Raises UsageError.
    """
    try:
        seconds = float(text)
    except ValueError:
        return 1.0, (text,)
    if not SHORTEST <= seconds <= LONGEST:
        raise UsageError(f"'{text}' can't be the seconds of --watch", f"from {SHORTEST:g} to {LONGEST:g}")
    return seconds, ()


def show(names: Sequence[str], interval: float) -> int:
    """Draws until Ctrl-C. Raises UsageError where there is no terminal to draw on."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        raise UsageError("--watch needs a terminal to draw on", "for programs there is holdfast events --json")
    is_chosen = chooser(names)
    screen, traffic = _Screen(), Traffic()
    signal.signal(signal.SIGCONT, lambda *_: screen.forget())
    try:
        with Watch(interval) as watch:
            watch.wait(interval)
            while True:
                tunnels = [tunnel for name, tunnel in watch.tunnels.items() if is_chosen(name)]
                note = f"; {doubt}, so this is how they were" if (doubt := _doubt(watch, interval)) else ""
                traffic.note(tunnels, time.monotonic())
                columns, lines = shutil.get_terminal_size()
                screen.draw(frame(tunnels, traffic, now(), columns, lines - 1, note), (columns, lines))
                watch.wait(interval)
    finally:
        print(flush=True)


def _doubt(watch: Watch, interval: float) -> str:
    """Why what is known of the tunnels may not be so any more, or nothing."""
    if not watch.has_keeper:
        return "no keeper runs"
    return "" if watch.answers(max(client.SILENCE, 2 * interval)) else "the keeper doesn't answer"


class _Screen:
    """Draws over what it drew before. The whole screen is cleared only when its size has changed, since what was
    drawn has then been folded in ways that nobody can know."""

    def __init__(self) -> None:
        self._height = 0
        self._size = (0, 0)

    def forget(self) -> None:
        """Others have written to the terminal: what comes next goes below."""
        self._height = 0

    def draw(self, lines: Sequence[str], size: tuple[int, int]) -> None:
        if self._height and size != self._size:
            start = "\x1b[2J\x1b[H"
        else:
            start = f"\x1b[{self._height - 1}A\r" if self._height > 1 else "\r"
        plain = render.colour_allowed() is False
        text = "\x1b[K\r\n".join(click.unstyle(line) if plain else line for line in lines)
        sys.stdout.write(f"{start}{text}\x1b[K\x1b[J")
        sys.stdout.flush()
        self._height, self._size = len(lines), size
