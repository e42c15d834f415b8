"""`service install`, `remove` and `status`: the keeper and the login set from login on, by systemd or launchd."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Protocol

import click

from holdfast import client
from holdfast.cli.doctor import Finding, show
from holdfast.cli.installing import this_program
from holdfast.errors import Exit
from holdfast.service import Program


class Manager(Protocol):
    """What a service manager is asked for. The lines that are returned are for the user."""

    def install(self, program: Program) -> Iterator[str]:
        """Has it start `program` at login, and now. Raises HoldfastError."""
        ...

    def remove(self) -> Iterator[str]:
        """Takes away what `install` made. Raises HoldfastError."""
        ...

    def findings(self) -> Iterator[Finding]:
        """Whether it starts at login and runs, and whatever would surprise."""
        ...


@click.group(short_help="start at login, by systemd or launchd")
def service() -> None:
    """Has the keeper run from login on, and brings up the tunnels that the configuration starts at login."""


@service.command(short_help="start at login from now on")
def install() -> int:
    """Installs the service, for you alone, and starts it. Doing it again changes nothing.

    A keeper that runs already makes way for the service's; tunnels stay up.
    """
    for line in _manager().install(this_program()):
        click.echo(line)
    return Exit.OK


@service.command(short_help="no longer start at login; tunnels stay up")
def remove() -> int:
    """Takes away what `holdfast service install` made. The tunnels stay up, looked after until logout."""
    for line in _manager().remove():
        click.echo(line)
    if client.something_is_wanted():
        client.connect().close()
    return Exit.OK


@service.command(short_help="whether it starts at login, and runs")
def status() -> int:
    """Shows whether the service is installed, starts at login and runs. Exit code 3 when something is amiss."""
    return Exit.OK if show([*_manager().findings()]) else Exit.NOT_UP


def _manager() -> Manager:
    if sys.platform == "darwin":
        from holdfast.cli.launchd import Launchd

        return Launchd()
    from holdfast.cli.systemd import Systemd

    return Systemd()
