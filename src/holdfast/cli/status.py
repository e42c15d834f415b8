"""`status`: what is true of the tunnels."""

from __future__ import annotations

import json
from datetime import datetime

import click

from holdfast import client
from holdfast.cli import render
from holdfast.cli.completing import complete_tunnel
from holdfast.cli.main import complain
from holdfast.control import Status
from holdfast.errors import Exit


@click.command(short_help="what is true of the tunnels, proven by a round trip")
@click.argument("names", nargs=-1, shell_complete=complete_tunnel)
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def status(names: tuple[str, ...], as_json: bool) -> int:
    """Asks the far side of each tunnel for a sign of life, and shows what came back.

    Exit code 0: everything asked about is up; 3: something is not.
    """
    if not names and not client.something_is_wanted():
        tunnels = []
    else:
        tunnels = client.ask(Status(names), timeout=30, notice=complain)
    if as_json:
        click.echo(json.dumps({"version": 1, "tunnels": tunnels}))
    elif tunnels:
        click.echo(render.table(tunnels, datetime.now().astimezone()), color=render.colour_allowed())
    else:
        complain("no tunnels", "holdfast up HOST")
    return Exit.OK if all(tunnel["state"] == "up" for tunnel in tunnels) else Exit.NOT_UP
