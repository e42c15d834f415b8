"""What people read: tunnels as a table, waiting as a line. Pure: values in, text out; click drops the colour
where there is no terminal for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from holdfast.control import ForwardStatus, TunnelStatus

if TYPE_CHECKING:
    from holdfast.jupyter.servers import Server

_COLOURS = {
    "up": "green",
    "connecting": "cyan",
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
    widths = [
        max(len(row[column]) for row in [_HEADINGS, *(row for _, rows_ in rows for row in rows_)])
        for column in range(len(_HEADINGS))
    ]
    lines = [_dim(_line(_HEADINGS, widths))]
    for tunnel, cells in rows:
        lines += [_line(row, widths) for row in cells]
        lines += [f"{'':{widths[0]}}  {text}" for text in remarks(tunnel, now)]
    return "\n".join(lines)


def remarks(tunnel: TunnelStatus, now: datetime) -> Iterator[str]:
    """What is worth knowing of a tunnel besides its row: why, and what to do about it."""
    troubles = [(forward["reason"], forward["hint"]) for forward in tunnel["forwards"] if forward["reason"]]
    for reason, hint in dict.fromkeys([(tunnel["reason"], tunnel["hint"]), *troubles]):
        if reason:
            yield reason + (_next_try(tunnel, now) if reason == tunnel["reason"] else "")
        if hint:
            yield _dim(f"hint: {hint}")
    if tunnel["held"]:
        yield "1 connection waits" if tunnel["held"] == 1 else f"{tunnel['held']} connections wait"
    if tunnel["fast_path"] is False:
        yield f"{tunnel['host']} {_NO_FAST_PATH}"
    if tunnel["adopted"]:
        yield _dim("over the master that you started yourself")


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
    widths = [
        max(len(row[column]) for row in [_SERVER_HEADINGS, *rows]) for column in range(len(_SERVER_HEADINGS))
    ]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    heading = "  ".join(f"{cell:{width}}" for cell, width in zip(_SERVER_HEADINGS, widths, strict=True)).rstrip()
    return "\n".join([_dim(heading), *lines])


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
    return f"{tunnel['name']} is {tunnel['state']}{reason}"


def age(seconds: float) -> str:
    """A time span in the unit that says most: '12 s', '5 min', '3 h', '4 d'."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{max(0, int(seconds // size))} {unit}"
    return f"{int(seconds // 86400)} d"


def colour_allowed() -> bool | None:
    """False where the user has asked for none (no-color.org); None leaves it to the terminal."""
    return False if os.environ.get("NO_COLOR") else None


def _rows(tunnel: TunnelStatus, now: datetime) -> Iterator[tuple[str, ...]]:
    since = age((now - datetime.fromisoformat(tunnel["since"])).total_seconds())
    rtt = f"{tunnel['rtt_ms']:.1f} ms" if tunnel["rtt_ms"] is not None else "-"
    about = (tunnel["host"], since, rtt, str(tunnel["drops"]))
    name = tunnel["name"]
    for forward in tunnel["forwards"]:
        yield (name, forward["state"], _ends(forward), *about)
        name, about = "", ("", "", "", "")


def _ends(forward: ForwardStatus) -> str:
    listen, target = forward["listen"], forward["target"] or "SOCKS"
    return f"{target} <- {listen}" if forward["kind"] == "remote" else f"{listen} -> {target}"


def _next_try(tunnel: TunnelStatus, now: datetime) -> str:
    if tunnel["retry_at"] is None:
        return ""
    seconds = (datetime.fromisoformat(tunnel["retry_at"]) - now).total_seconds()
    return f"; next try in {age(seconds)}" if seconds >= 1 else "; trying again"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)]
    if cells is not _HEADINGS:
        padded[1] = click.style(padded[1], fg=_COLOURS.get(cells[1], "red"))
    return "  ".join(padded).rstrip()


def _dim(text: str) -> str:
    return click.style(text, dim=True)
