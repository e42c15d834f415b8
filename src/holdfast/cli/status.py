"""`status`: what is true of the tunnels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

import click

from holdfast import client
from holdfast.cli import choosing, render
from holdfast.cli.completing import complete_tunnel
from holdfast.cli.main import complain
from holdfast.control import Status, TunnelStatus
from holdfast.errors import Exit, UsageError

# The states in which a tunnel is as it should be.
FINE = ("up", "idle")
# Seconds for which a prompt waits for the keeper.
_PROMPT = 1.0


@click.command(short_help="what is true of the tunnels, proven by a round trip")
@click.argument("names", nargs=-1, shell_complete=complete_tunnel)
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
@click.option("--short", is_flag=True, help="a few words for a prompt, of what the keeper knows; it asks nobody")
@click.option(
    "--watch", is_flag=False, flag_value="1", metavar="[SECONDS]", help="show it, and the traffic, until Ctrl-C"
)
def status(names: tuple[str, ...], as_json: bool, short: bool, watch: str | None) -> int:
    """Asks the far side of each tunnel for a sign of life, and shows what came back.

    Exit code 0: everything asked about is up, or idle; 3: something is not.
    """
    if as_json + short + (watch is not None) > 1:
        raise UsageError("--json, --short and --watch don't go together", "holdfast events --json goes on")
    if watch is not None:
        from holdfast.cli.watching import show, split_interval

        interval, more = split_interval(watch)
        return show((*more, *names), interval)
    if short:
        return _show_short(names)
    if not names and not client.something_is_wanted():
        tunnels = []
    else:
        tunnels = client.ask(Status(choosing.named_or_new(names)), timeout=30, notice=complain)
    if as_json:
        click.echo(json.dumps({"version": 1, "tunnels": tunnels}))
    elif tunnels:
        click.echo(render.table(tunnels, datetime.now().astimezone()), color=render.colour_allowed())
    else:
        complain("no tunnels", "holdfast up HOST")
    return _code(tunnels)


def _show_short(names: Sequence[str]) -> int:
    """A line for a prompt; none where there are no tunnels."""
    known = client.known_now(_PROMPT)
    if known is None:
        if not client.something_is_wanted():
            return Exit.OK
        click.echo("tunnels unwatched")
        return Exit.NOT_UP
    chosen = choosing.named(names)
    tunnels = [tunnel for tunnel in known if not names or tunnel["name"] in chosen]
    if tunnels:
        click.echo(render.short(tunnels))
    return _code(tunnels)


def _code(tunnels: Sequence[TunnelStatus]) -> Exit:
    return Exit.OK if all(tunnel["state"] in FINE for tunnel in tunnels) else Exit.NOT_UP
