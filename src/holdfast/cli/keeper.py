"""`keeper run` and `keeper stop`: for service managers, and for upgrades."""

from __future__ import annotations

import os
import sys

import click

from holdfast import client
from holdfast.errors import Exit


@click.group(short_help="the background process that looks after the tunnels")
def keeper() -> None:
    """One keeper a user looks after the tunnels. The first command that needs it starts it."""


@keeper.command(short_help="be the keeper, in the foreground")
@click.option("--take-over", is_flag=True, help="end the keeper that runs, if any, and take its place")
def run(take_over: bool) -> None:
    """Is the keeper until it is told to end; for service managers. The tunnels outlive it."""
    # Nobody may ask at a socket that was passed on: it would be us who had to answer.
    if take_over and client.keeper_runs() and (connection := client.find()):
        client.stop(connection)
    command = [sys.executable, "-P", "-m", "holdfast.keeper", "--stay"]
    os.execv(sys.executable, command)  # noqa: S606 - the same interpreter


@keeper.command(short_help="end the keeper; tunnels stay up")
def stop() -> int:
    """Ends the keeper. The tunnels stay up, unwatched until the next command starts a keeper again."""
    connection = client.find()
    if connection is None:
        click.echo("the keeper is not running")
        return Exit.OK
    pid = connection.greeting["pid"]
    client.stop(connection)
    click.echo(f"the keeper (pid {pid}) has ended; tunnels stay up")
    return Exit.OK
