"""Asks the keeper, at a terminal or without one: what is waited for is told, and a person can log in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from holdfast import client
from holdfast.cli import render
from holdfast.cli.main import complain
from holdfast.client import environment
from holdfast.control import (
    LoginOrder,
    Restart,
    Run,
    Status,
    TunnelStatus,
    Up,
    check_host,
    check_options,
)
from holdfast.errors import HoldfastError, UsageError
from holdfast.openssh import script

# The states in which a tunnel does all that it should: what is idle connects when somebody comes.
WORKS = ("up", "no service", "idle")
LONGEST_TIMEOUT = 86400.0
# Seconds that a program's end may take to be told.
_SLACK = 5.0

Command = TypeVar("Command", bound=Callable[..., Any])


class Far(NamedTuple):
    """A host, and ssh's options for it, as words: both checked. `name` is the tunnel's, if not the host's own."""

    host: str
    options: tuple[str, ...]
    name: str = ""

    @property
    def called(self) -> str:
        """What a person types for it, in a hint."""
        return self.name or self.host


def ssh_options(command: Command) -> Command:
    """Adds ssh's own options to a command; `far` makes something of what it is then given."""
    for option in (
        click.option("-l", "login", metavar="USER", help="ssh's: the user over there"),
        click.option("-J", "jump", metavar="HOST", help="ssh's: the jump host"),
        click.option("-i", "identities", multiple=True, metavar="FILE", help="ssh's: the key"),
        click.option("-p", "ssh_port", metavar="PORT", help="ssh's: the port of its sshd"),
        click.option("-o", "settings", multiple=True, metavar="OPTION=VALUE", help="ssh's: any of ssh_config"),
        click.option("-F", "config", metavar="FILE", help="ssh's: the configuration file"),
    ):
        command = option(command)
    return command


def far(host: str, given: dict[str, Any]) -> Far:
    """What the command line's HOST and the values of `ssh_options` name. Raises UsageError."""
    words: list[str] = []
    for flag, name in (
        ("-F", "config"),
        ("-o", "settings"),
        ("-p", "ssh_port"),
        ("-i", "identities"),
        ("-J", "jump"),
        ("-l", "login"),
    ):
        value = given[name]
        for text in value if isinstance(value, tuple) else [value] if value else []:
            words += [flag, text]
    return Far(check_host(host), check_options(client.absolute(words)))


def far_or_described(word: str, given: dict[str, Any]) -> Far:
    """As `far`, but `word` may also be a tunnel of the user's configuration file. Raises UsageError.

    What is up is as it runs, which the keeper knows.
    """
    from holdfast.cli.completing import known_tunnels
    from holdfast.config.users import of_user

    there = far(word, given)
    described = None
    if word not in known_tunnels(only_wanted=True):
        described = next((tunnel for tunnel in of_user() if tunnel.name == word), None)
    if described is None:
        return there
    from holdfast.config.reading import merged_options

    return Far(described.host, merged_options(there.options, described.options), described.name)


def ask(
    request: Up | Restart | Run,
    name: str,
    timeout: float,
    output: Callable[[str], None] = lambda _: None,
    running: float | None = None,
    turn: AbstractContextManager[object] | None = None,
) -> list[TunnelStatus]:
    """The keeper's answer, telling meanwhile what is waited for. Raises HoldfastError when it takes too long.

    `turn`: others are asked for at the same time, and this is to be had for the terminal.
    """
    waiting = _Waiting(turn)
    try:
        return client.ask(
            request,
            timeout=timeout,
            progress=waiting.show,
            log_in=waiting.log_in,
            notice=complain,
            output=output,
            running=running,
        )
    except TimeoutError:
        raise waiting.overdue(name, timeout, goes_on=not isinstance(request, Run)) from None
    finally:
        waiting.clear()


def run_there(there: Far, program: str, timeout: float, seconds: int = 20) -> str:
    """What `program` printed on that host, reached within `timeout` seconds, and run within `seconds`.

    Raises HoldfastError.
    """
    mark = _mark()
    printed: list[str] = []
    request = _run(there, script.wrap(program, mark), seconds, keep_input=False)
    ask(request, there.host, timeout, printed.append, seconds + _SLACK)
    return script.unwrap("".join(printed), mark, there.host)


def follow_there(there: Far, program: str, show: Callable[[str], None], timeout: float) -> list[str]:
    """Hands on the lines that `program` prints as they come, until Ctrl-C; the parts that it told of.

    Raises HoldfastError, also when the connection ends before it has.
    """
    mark = _mark()
    output = script.Unwrapping(mark, show)
    request = _run(there, script.wrap(program, mark, until_hung_up=True), int(LONGEST_TIMEOUT), keep_input=True)
    ask(request, there.host, timeout, output.take)
    if not output.has_begun:
        raise script.not_run(there.host)
    return output.parts


def _mark() -> str:
    return os.urandom(8).hex()  # `secrets` would do, and takes 8 ms to import


def _run(there: Far, wrapped: str, seconds: int, *, keep_input: bool) -> Run:
    return Run(there.host, there.options, environment(), at_terminal(), wrapped, seconds, keep_input)


def tunnels(timeout: float) -> list[TunnelStatus]:
    """All that are wanted. No keeper is started for that."""
    return client.ask(Status(()), timeout=timeout) if client.something_is_wanted() else []


def at_terminal() -> bool:
    """Whether a person can be asked something here: ssh asks on the terminal, whatever stdout is."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def check_timeout(seconds: float) -> None:
    """Raises UsageError."""
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise UsageError(
            f"the time-out is {seconds:g} seconds", "give more than 0 and at most a day: --timeout 30"
        )


def now() -> datetime:
    return datetime.now().astimezone()


class _Waiting:
    """Tells what is being waited for: one line that is rewritten in a terminal, each news once elsewhere."""

    def __init__(self, turn: AbstractContextManager[object] | None) -> None:
        self._turn = turn or nullcontext()
        self._rewrites = turn is None and sys.stderr.isatty()
        self._last: TunnelStatus | None = None
        self._told = ""

    def show(self, tunnel: TunnelStatus) -> None:
        self._last = tunnel
        if tunnel["state"] in WORKS:  # only a further forward is waited for
            return
        if self._rewrites:
            click.echo(f"\r\033[K{render.waiting_line(tunnel, now())}", err=True, nl=False)
        elif tunnel["reason"] and tunnel["reason"] != self._told:
            self._told = tunnel["reason"]
            with self._turn:
                complain(render.waiting_line(tunnel, now()))

    def log_in(self, order: LoginOrder) -> int:
        from holdfast.openssh.foreground import log_in

        with self._turn:
            self.clear()
            return log_in(order["argv"], Path(order["log"]))

    def clear(self) -> None:
        if self._rewrites and self._last is not None:
            click.echo("\r\033[K", err=True, nl=False)

    def overdue(self, name: str, timeout: float, *, goes_on: bool) -> HoldfastError:
        name = self._last["name"] if self._last else name
        why = render.waiting_line(self._last, now()) if self._last else f"{name} is not up"
        goes_on_hint = f"it goes on trying: holdfast status {name}; to give up: holdfast down {name}"
        return HoldfastError(
            f"{why}, after {timeout:g} s", goes_on_hint if goes_on else f"try it by hand: ssh {name}"
        )
