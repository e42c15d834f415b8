"""What people read: tunnels as a table or as a few words, waiting and events as lines. Pure: values in, text out;
click drops the colour where there is no terminal for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from holdfast.control import ForwardStatus, TunnelStatus

if TYPE_CHECKING:
    from holdfast.events import Event
    from holdfast.jupyter.servers import Server

Row = tuple[str, ...]

_COLOURS = {
    "up": "green",
    "connecting": "cyan",
    "idle": "blue",
    "no service": "yellow",
    "waiting": "yellow",
    "stalled": "yellow",
    "needs login": "magenta",
}
_SERVER_HEADINGS = ("DIRECTORY", "AT", "OVER", "LOGIN", "VERSION", "PID")
_HEADINGS = ("NAME", "STATE", "FORWARD", "HOST", "SINCE", "RTT", "DROPS")
_NO_FAST_PATH = (
    "lets no session be opened, so the fast path is not available: small replies may take 40 ms (sshd before 10.1)"
)


def table(tunnels: Sequence[TunnelStatus], now: datetime) -> str:
    """The tunnels, one row a forward, with reason and next step under what isn't up."""
    rows = [(tunnel, list(_rows(tunnel, now))) for tunnel in tunnels]
    return "\n".join(listing(_HEADINGS, rows, lambda tunnel: [*remarks(tunnel, now), *_carried(tunnel)]))


def listing(
    headings: Row,
    tunnels: Sequence[tuple[TunnelStatus, Sequence[Row]]],
    remarks_on: Callable[[TunnelStatus], Iterable[str]],
    width: int | None = None,
) -> list[str]:
    """The lines of a table: each tunnel's rows, with the remarks on it below, which are folded at `width`."""
    heading, *lines = laid_out(headings, [row for _, rows in tunnels for row in rows])
    indent = max(len(row[0]) for row in (headings, *(row for _, rows in tunnels for row in rows))) + 2
    shown = [heading]
    for tunnel, rows in tunnels:
        shown += lines[: len(rows)]
        del lines[: len(rows)]
        for remark in remarks_on(tunnel):
            shown += [" " * indent + text for text in _folded(remark, width and width - indent)]
    return shown


def laid_out(headings: Row, rows: Sequence[Row]) -> list[str]:
    """The headings and the rows, a line each, in columns as wide as their widest cells. A STATE has its colour."""
    widths = [max(map(columns_of, column)) for column in zip(headings, *rows, strict=True)]
    coloured = headings.index("STATE") if "STATE" in headings else None
    lines = [_dim(_line(headings, widths))]
    for row in rows:
        cells = _padded(row, widths)
        if coloured is not None:
            cells[coloured] = click.style(cells[coloured], fg=_COLOURS.get(row[coloured], "red"))
        lines.append("  ".join(cells).rstrip())
    return lines


def remarks(tunnel: TunnelStatus, now: datetime) -> Iterator[str]:
    """What is worth knowing of a tunnel besides its row: why, and what to do about it."""
    troubles = [(forward["reason"], forward["hint"]) for forward in tunnel["forwards"] if forward["reason"]]
    for reason, hint in dict.fromkeys([(tunnel["reason"], tunnel["hint"]), *troubles]):
        if reason:
            yield reason + (_next_try(tunnel, now) if reason == tunnel["reason"] else "")
        if hint:
            yield _dim(f"hint: {hint}")
    if tunnel["state"] == "idle" and not tunnel["reason"]:
        yield _dim("the login happens when somebody connects")
    if tunnel["held"]:
        yield "1 connection waits" if tunnel["held"] == 1 else f"{tunnel['held']} connections wait"
    for forward in tunnel["forwards"]:
        if forward["exposed"]:
            where = f" on {tunnel['host']}" if forward["kind"] == "remote" else ""
            yield f"other machines can reach {forward['listen']}{where}"
    yield from _leases(tunnel)
    if tunnel["fast_path"] is False:
        yield f"{tunnel['host']} {_NO_FAST_PATH}"
    if tunnel["adopted"]:
        yield _dim("over the master that you started yourself")


def _carried(tunnel: TunnelStatus) -> Iterator[str]:
    count = sum(forward["connections"] or 0 for forward in tunnel["forwards"])
    if count:
        yield _dim("1 connection goes through it" if count == 1 else f"{count} connections go through it")


def _leases(tunnel: TunnelStatus) -> Iterator[str]:
    """Which programs hold its forwards: of all of them in one line, where that is the same for all."""
    held = {ends_of(forward): _lease(forward) for forward in tunnel["forwards"]}
    if len(set(held.values())) == 1:
        yield from (_dim(text) for text in set(held.values()) if text)
    else:
        yield from (_dim(f"{ends} is {text}") for ends, text in held.items() if text)


def _lease(forward: ForwardStatus) -> str:
    count = forward["leases"]
    if not count:
        return ""
    held = "held by 1 program" if count == 1 else f"held by {count} programs"
    return held if forward["kept"] else f"{held}, and ends with {'it' if count == 1 else 'them'}"


def short(tunnels: Sequence[TunnelStatus]) -> str:
    """The tunnels in a few words, for a prompt: '2 up, db stalled'; nothing when there are none."""
    named: dict[str, list[str]] = {"up": []}
    for tunnel in tunnels:
        named.setdefault(tunnel["state"], []).append(tunnel["name"])
    return ", ".join(
        f"{names[0]} {state}" if len(names) == 1 and state != "up" else f"{len(names)} {state}"
        for state, names in named.items()
        if names
    )


def event_lines(events: Sequence[Event]) -> Iterator[str]:
    """What happened at one time, a line each. What follows from something else that is told is left out."""
    moves = {(event.tunnel, event.before, event.state) for event in events if event.kind == "state"}
    ended = {event.tunnel for event in events if event.kind == "outage_ended"}
    for event in events:
        match event.kind.value:
            case "outage_began":  # the state says it
                continue
            case "reason" if not event.reason:
                continue
            case "state" if event.tunnel in ended and not event.reason:
                continue
            case "forward_state" if event.forward and (
                (event.tunnel, event.before, event.forward["state"]) in moves
            ):
                continue
        yield f"{event.at.isoformat(' ', 'seconds')}  {event.tunnel}  {_told(event)}"


def _told(event: Event) -> str:
    """An event in words, without its time and tunnel."""
    because = f": {event.reason}" if event.reason else ""
    ends = ends_of(event.forward) if event.forward else ""
    match event.kind.value:
        case "added":
            return (
                f"{event.state}{because or ''.join(f'; {ends_of(forward)}' for forward in event.forwards or ())}"
            )
        case "removed":
            return f"down; it was {event.before}"
        case "outage_ended":
            return f"up again after {event.seconds:g} s, by {event.mended_by}{_waited(event)}"
        case "forward_added":
            return f"{ends} was added"
        case "forward_removed":
            return f"{ends} was closed"
        case "forward_moved":
            return f"{ends} was {event.listen_before} -> {event.target_before or 'SOCKS'}"
        case "forward_state" if event.forward:
            why = f": {event.forward['reason']}" if event.forward["reason"] else ""
            return f"{ends} is {event.forward['state']}{why}"
        case _:
            return f"{event.state}{because}"


def _waited(event: Event) -> str:
    if not event.held:
        return ""
    waited = "1 connection" if event.held == 1 else f"{event.held} connections"
    return f"; {waited} waited, {event.let_through or 'none'} of them let through"


def servers_table(servers: Sequence[Server]) -> str:
    """Notebook servers, one a row."""
    rows = [
        (
            server.directory,
            str(server.place),
            "TLS" if server.secure else "socket" if server.place.path else "TCP",
            "token" if server.token else "password" if server.password else "none",
            server.version or "-",
            str(server.pid),
        )
        for server in servers
    ]
    return "\n".join(laid_out(_SERVER_HEADINGS, rows))


def forward_line(forward: ForwardStatus, host: str) -> str:
    """A forward as `up` prints it: where it is here, and where that leads."""
    match forward["kind"]:
        case "remote":
            return f"{forward['listen']} on {host} -> {forward['target'] or 'SOCKS'} here"
        case "dynamic":
            return f"socks5://{forward['listen']} -> anywhere that {host} reaches"
        case _:
            return f"{forward['url'] or forward['listen']} -> {forward['target']} on {host}"


def waiting_line(tunnel: TunnelStatus, now: datetime) -> str:
    """What `up` is waiting for."""
    reason = f": {tunnel['reason']}{_next_try(tunnel, now)}" if tunnel["reason"] else ""
    state = tunnel["state"]
    return f"{tunnel['name']} {state if state == 'needs login' else f'is {state}'}{reason}"


def round_trip(tunnel: TunnelStatus) -> str:
    return f"{tunnel['rtt_ms']:.1f} ms" if tunnel["rtt_ms"] is not None else "-"


def age(seconds: float) -> str:
    """A time span in the unit that says most: '12 s', '5 min', '3 h', '4 d'."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{max(0, int(seconds // size))} {unit}"
    return f"{int(seconds // 86400)} d"


def columns_of(text: str) -> int:
    """How many columns of a terminal `text` takes: two for a wide character, none for one that joins another."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(one) in ("Mn", "Me", "Cf") else 2 if east_asian_width(one) in "WF" else 1 for one in text
    )


def colour_allowed() -> bool | None:
    """False where the user has asked for none (no-color.org); None leaves it to the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _rows(tunnel: TunnelStatus, now: datetime) -> Iterator[Row]:
    since = age((now - datetime.fromisoformat(tunnel["since"])).total_seconds())
    rtt = round_trip(tunnel)
    about: Row = (tunnel["host"], since, rtt, str(tunnel["drops"]))
    name = tunnel["name"]
    for forward in tunnel["forwards"]:
        yield (name, forward["state"], ends_of(forward) + exposed_mark(forward), *about)
        name, about = "", ("", "", "", "")


def ends_of(forward: ForwardStatus) -> str:
    """A forward as tables show it: whence, and where that leads."""
    listen, target = forward["listen"], forward["target"] or "SOCKS"
    return f"{target} <- {listen}" if forward["kind"] == "remote" else f"{listen} -> {target}"


def exposed_mark(forward: ForwardStatus) -> str:
    return " (exposed)" if forward["exposed"] else ""


def _next_try(tunnel: TunnelStatus, now: datetime) -> str:
    if tunnel["retry_at"] is None:
        return ""
    seconds = (datetime.fromisoformat(tunnel["retry_at"]) - now).total_seconds()
    return f"; next try in {age(seconds)}" if seconds >= 1 else "; trying again"


def _line(cells: Row, widths: Sequence[int]) -> str:
    return "  ".join(_padded(cells, widths)).rstrip()


def _padded(cells: Row, widths: Sequence[int]) -> list[str]:
    return [cell + " " * (width - columns_of(cell)) for cell, width in zip(cells, widths, strict=True)]


def _folded(text: str, width: int | None) -> list[str]:
    """`text` as lines that take at most `width` columns, dim if it was."""
    plain = click.unstyle(text)
    if width is None or columns_of(plain) <= width:
        return [text]
    import textwrap

    width = max(width, 10)
    if not plain.isascii():  # a wide character counts twice, and may be parted from what stands for its half
        plain, width = "".join("\0" * (columns_of(one) - 1) + one for one in plain), width - 1
    lines = [line.replace("\0", "") for line in textwrap.wrap(plain, width)]
    return lines if text == click.unstyle(text) else [_dim(line) for line in lines]


def _dim(text: str) -> str:
    return click.style(text, dim=True)
