"""The options that describe a tunnel, as `up` and `config add` take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from holdfast.cli.asking import ssh_options
from holdfast.control import check_upkeep
from holdfast.errors import UsageError
from holdfast.forward import Forward, Kind, parse

Command = TypeVar("Command", bound=Callable[..., Any])

_UPKEEP = ("http", "hold", "switch", "notify", "lazy")


class Said(NamedTuple):
    """What the command line says of a tunnel; `upkeep` has fields of control.Upkeep."""

    forwards: list[Forward]
    upkeep: dict[str, int]
    expose: bool


def tunnel_options(command: Command) -> Command:
    """Adds them to a command; `said` makes something of what it is then given."""
    for option in (
        ssh_options,
        click.option("--expose", is_flag=True, help="allow listening on addresses that other machines can reach"),
        click.option("--mode", metavar="MODE", help="the permissions of its Unix sockets, as for chmod (0600)"),
        click.option(
            "--idle", metavar="TIME", help="lazy: disconnect after so long without a connection, as in 30m"
        ),
        click.option(
            "--lazy/--no-lazy", default=None, help="log in when somebody connects; hold the port till then"
        ),
        click.option("--notify/--no-notify", default=None, help="tell of loss and return on the desktop"),
        click.option(
            "--switch/--no-switch", default=None, help="the far side ends a connection that is dead (yes)"
        ),
        click.option("--hold-for", metavar="TIME", help="how long each of them may wait, as in 90s or 5m (2m)"),
        click.option("--hold", type=int, help="connections that may wait at each forward during an outage (512)"),
        click.option(
            "--http/--no-http", default=None, help="it carries HTTP: show browsers a page while they wait"
        ),
        click.option("-D", "dynamic", multiple=True, metavar="[ADDRESS:]PORT", help="a SOCKS proxy, as in ssh"),
        click.option("-R", "remote", multiple=True, metavar="FORWARD", help="a remote forward, as in ssh"),
        click.option("-L", "local", multiple=True, metavar="FORWARD", help="a local forward, as in ssh"),
    ):
        command = option(command)
    return command


def said(forwards: Sequence[str], given: dict[str, Any]) -> Said:
    """What `forwards` and the values of `tunnel_options` mean. Raises UsageError."""
    wanted = [parse(text) for text in (*forwards, *given["local"])]
    wanted += [parse(text, Kind.REMOTE) for text in given["remote"]]
    wanted += [parse(text, Kind.DYNAMIC) for text in given["dynamic"]]
    check_twice(wanted)
    upkeep = {name: int(given[name]) for name in _UPKEEP if given[name] is not None}
    if upkeep.get("lazy") == 0:
        upkeep["idle"] = 0
    if given["idle"] is not None:
        from holdfast.config.spelling import parse_duration

        upkeep["idle"] = parse_duration(given["idle"])
    if given["hold_for"] is not None:
        upkeep["hold_for"] = _seconds(given["hold_for"])
    if given["mode"] is not None:
        from holdfast.config.spelling import parse_mode

        upkeep["mode"] = parse_mode(given["mode"])
    # Whether it is lazy may have been said before; the keeper knows.
    check_upkeep({"lazy": 1, **upkeep} if upkeep.get("idle") else upkeep)
    return Said(wanted, upkeep, given["expose"])


def _seconds(text: str) -> int:
    """Of a time, or of a plain number: seconds are what the option took before. Raises UsageError."""
    from holdfast.config.spelling import parse_duration

    return parse_duration(f"{text}s" if text.isdigit() else text)


def check_twice(forwards: Sequence[Forward]) -> None:
    """That each has a port of its own. Raises UsageError."""
    from holdfast.config.reading import named_twice

    twice = named_twice(forwards)
    if twice is not None:
        raise UsageError(f"{twice.listen} is named twice", "each forward needs a port of its own")
