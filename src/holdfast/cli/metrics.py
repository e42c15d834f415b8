"""`metrics`: tunnels as Prometheus reads them, printed or served."""

from __future__ import annotations

from collections.abc import Callable

import click

from holdfast import client, metrics
from holdfast.cli.completing import complete_tunnel
from holdfast.cli.following import chooser
from holdfast.errors import Exit
from holdfast.version import __version__

# Seconds that the keeper may take to say what it knows.
_PATIENCE = 5.0


@click.command("metrics", short_help="figures for Prometheus, printed or served")
@click.argument("names", nargs=-1, shell_complete=complete_tunnel)
@click.option("--serve", metavar="ADDRESS", help="answer GET /metrics there: a loopback port or a socket's path")
def metrics_command(names: tuple[str, ...], serve: str | None) -> int:
    """Prints what the keeper knows of the tunnels named, or of all, as Prometheus reads it.

    ADDRESS is a port of this machine, as in 9101 or 127.0.0.1:9101, or a path for a Unix socket that only
    you can use. It is served until Ctrl-C. Neither starts a keeper, or asks a far side.
    """
    is_chosen = chooser(names)
    if serve is None:
        click.echo(text(is_chosen), nl=False)
        return Exit.OK
    from holdfast.cli import serving

    with serving.server(serve, lambda: text(is_chosen)) as server:
        click.echo(server.url)
        server.serve_forever()
    return Exit.OK


def text(is_chosen: Callable[[str], bool]) -> str:
    """Raises KeeperError, TimeoutError."""
    known = client.known_now(_PATIENCE, counted=True)
    chosen = None if known is None else [tunnel for tunnel in known if is_chosen(tunnel["name"])]
    return metrics.exposition(chosen, __version__)
