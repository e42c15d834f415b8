"""`up`, `down` and `restart`: what changes tunnels."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from holdfast import client
from holdfast.cli import render
from holdfast.cli.completing import complete_host, complete_tunnel
from holdfast.cli.main import complain
from holdfast.control import (
    ENVIRONMENT,
    Down,
    LoginOrder,
    Restart,
    TunnelStatus,
    Up,
    check_host,
    check_name,
    check_options,
    check_upkeep,
    encode_forward,
)
from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.forward import Forward, Kind, parse

WORKS = ("up", "no service")
LONGEST_TIMEOUT = 86400.0


@click.command(short_help="bring a tunnel up, or add forwards to it")
@click.argument("host", shell_complete=complete_host)
@click.argument("forwards", nargs=-1, metavar="[FORWARD]...")
@click.option("-L", "local", multiple=True, metavar="FORWARD", help="a local forward, as in ssh")
@click.option("-R", "remote", multiple=True, metavar="FORWARD", help="a remote forward, as in ssh")
@click.option("-D", "dynamic", multiple=True, metavar="[ADDRESS:]PORT", help="a SOCKS proxy, as in ssh")
@click.option("--name", default="", help="the tunnel's name (default: the host's)")
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait until it is proven")
@click.option("--no-wait", is_flag=True, help="return at once; it comes up in the background")
@click.option("--http/--no-http", default=None, help="it carries HTTP: show browsers a page while they wait")
@click.option("--hold", type=int, help="connections that may wait at each forward during an outage (512)")
@click.option("--hold-for", type=int, metavar="SECONDS", help="how long each of them may wait (120)")
@click.option("--switch/--no-switch", default=None, help="the far side ends a connection that is dead (yes)")
@click.option("--notify/--no-notify", default=None, help="tell of loss and return on the desktop")
@click.option("--expose", is_flag=True, help="allow listening on addresses that other machines can reach")
@click.option("--json", "as_json", is_flag=True, help="print the tunnel's status as JSON")
@click.option("-F", "config", metavar="FILE", help="ssh's: the configuration file")
@click.option("-o", "settings", multiple=True, metavar="OPTION=VALUE", help="ssh's: any option of ssh_config")
@click.option("-p", "port", metavar="PORT", help="ssh's: the port of its sshd")
@click.option("-i", "identities", multiple=True, metavar="FILE", help="ssh's: the key")
@click.option("-J", "jump", metavar="HOST", help="ssh's: the jump host")
@click.option("-l", "login", metavar="USER", help="ssh's: the user over there")
def up(
    host: str,
    forwards: tuple[str, ...],
    local: tuple[str, ...],
    remote: tuple[str, ...],
    dynamic: tuple[str, ...],
    name: str,
    timeout: float,
    no_wait: bool,
    http: bool | None,
    hold: int | None,
    hold_for: int | None,
    switch: bool | None,
    notify: bool | None,
    expose: bool,
    as_json: bool,
    config: str | None,
    settings: tuple[str, ...],
    port: str | None,
    identities: tuple[str, ...],
    jump: str | None,
    login: str | None,
) -> int:
    """Brings the tunnel to HOST up, waits until it is proven, and prints where each forward is.

    HOST is whatever ssh takes. A FORWARD is a port (8888), 9999:8888, 5432:db:5432, 8888:/run/x.sock,
    0:8888 (any free port here) or [::1]:8888:localhost:8888. With none: those it had, else the host's own
    LocalForward lines, else 8888. Doing it again changes nothing; other forwards are added.
    """
    if host.isdigit():
        raise UsageError(f"'{host}' is a port, not a host", f"did you mean holdfast up HOST {host}")
    wanted = [parse(text) for text in (*forwards, *local)]
    wanted += [parse(text, Kind.REMOTE) for text in remote]
    wanted += [parse(text, Kind.DYNAMIC) for text in dynamic]
    _check_twice(wanted)
    options = _options(
        ("-F", [config] if config else []),
        ("-o", settings),
        ("-p", [port] if port else []),
        ("-i", identities),
        ("-J", [jump] if jump else []),
        ("-l", [login] if login else []),
    )
    _check_timeout(timeout)
    upkeep = {"http": http, "hold": hold, "hold_for": hold_for, "switch": switch, "notify": notify}
    said = {name: int(value) for name, value in upkeep.items() if value is not None}
    check_upkeep(said)
    request = Up(
        host=check_host(host),
        name=check_name(name) if name else "",
        options=check_options(options),
        forwards=tuple(encode_forward(forward) for forward in wanted),
        environment=_environment(),
        terminal=_at_terminal(),
        wait=not no_wait,
        expose=expose,
        upkeep=said,
    )
    tunnels = _ask(request, name or host, timeout)
    return _report(tunnels, as_json=as_json, waited=not no_wait)


@click.command(short_help="take tunnels down, or some of their forwards")
@click.argument("words", nargs=-1, metavar="NAME... [PORT]...", shell_complete=complete_tunnel)
@click.option("--all", "everything", is_flag=True, help="all tunnels")
def down(words: tuple[str, ...], everything: bool) -> int:
    """Ends the tunnels: their forwards here, and their connection when no other tunnel uses it.

    With a PORT after the NAME only that forward is taken away: holdfast down lab 8888.
    """
    names = [word for word in words if not _is_listen(word)]
    listens = [word for word in words if _is_listen(word)]
    if bool(names) == everything:
        raise UsageError("name the tunnels to take down, or say --all", "see what there is: holdfast status")
    if listens and len(names) != 1:
        raise UsageError("ports can be taken from one tunnel at a time", "as in holdfast down lab 8888")
    if everything and not client.something_is_wanted():
        return Exit.OK
    left = client.ask(Down(tuple(names), tuple(listens), everything), timeout=60, notice=complain)
    if everything:
        click.echo("all tunnels are down")
    kept = {tunnel["name"] for tunnel in left}
    for name in names:
        click.echo(f"{name}: {', '.join(listens)} closed" if name in kept else f"{name} is down")
    return Exit.OK


@click.command(short_help="give tunnels a new connection")
@click.argument("names", nargs=-1, required=True, shell_complete=complete_tunnel)
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait until they are proven")
@click.option("--json", "as_json", is_flag=True, help="print their status as JSON")
def restart(names: tuple[str, ...], timeout: float, as_json: bool) -> int:
    """Ends the connection of each tunnel and makes a new one; what it carries breaks off."""
    _check_timeout(timeout)
    tunnels = _ask(Restart(names, _environment(), _at_terminal()), names[0], timeout)
    return _report(tunnels, as_json=as_json, waited=True)


def _ask(request: Up | Restart, name: str, timeout: float) -> list[TunnelStatus]:
    """The keeper's answer, telling meanwhile what is waited for. Raises HoldfastError when it takes too long."""
    waiting = _Waiting()
    try:
        return client.ask(request, timeout=timeout, progress=waiting.show, log_in=waiting.log_in, notice=complain)
    except TimeoutError:
        raise waiting.overdue(name, timeout) from None
    finally:
        waiting.clear()


class _Waiting:
    """Tells what is being waited for: one line that is rewritten in a terminal, each news once elsewhere."""

    def __init__(self) -> None:
        self._rewrites = sys.stderr.isatty()
        self._last: TunnelStatus | None = None
        self._told = ""

    def show(self, tunnel: TunnelStatus) -> None:
        self._last = tunnel
        if tunnel["state"] in WORKS:  # only a further forward is waited for
            return
        if self._rewrites:
            click.echo(f"\r\033[K{render.waiting_line(tunnel, _now())}", err=True, nl=False)
        elif tunnel["reason"] and tunnel["reason"] != self._told:
            self._told = tunnel["reason"]
            complain(render.waiting_line(tunnel, _now()))

    def log_in(self, order: LoginOrder) -> int:
        from holdfast.openssh.foreground import log_in

        self.clear()
        return log_in(order["argv"], Path(order["log"]))

    def clear(self) -> None:
        if self._rewrites and self._last is not None:
            click.echo("\r\033[K", err=True, nl=False)

    def overdue(self, name: str, timeout: float) -> HoldfastError:
        name = self._last["name"] if self._last else name
        why = render.waiting_line(self._last, _now()) if self._last else f"{name} is not up"
        return HoldfastError(
            f"{why}, after {timeout:g} s",
            f"it goes on trying: holdfast status {name}; to give up: holdfast down {name}",
        )


def _report(tunnels: Sequence[TunnelStatus], *, as_json: bool, waited: bool) -> int:
    if as_json:
        click.echo(json.dumps({"version": 1, "tunnels": tunnels}))
    code = Exit.OK
    for tunnel in tunnels:
        for forward in tunnel["forwards"]:
            if not as_json and (forward["state"] in WORKS or not waited):
                click.echo(render.forward_line(forward, tunnel["host"]))
        if waited and tunnel["state"] != "up":
            code = max(code, _complain_of(tunnel))
        elif tunnel["fast_path"] is False:
            complain(next(iter(render.remarks(tunnel, _now()))))
    return code


def _complain_of(tunnel: TunnelStatus) -> Exit:
    """Says why the tunnel isn't up. A service that isn't there yet is no failure: the tunnel is."""
    told: list[tuple[str | None, str | None]]
    told = [(forward["reason"], forward["hint"]) for forward in tunnel["forwards"] if forward["reason"]]
    for reason, hint in dict.fromkeys(told or [(tunnel["reason"], tunnel["hint"])]):
        complain(reason or f"{tunnel['name']} is {tunnel['state']}", hint or "")
    if tunnel["state"] in WORKS:
        return Exit.OK
    return Exit.NEEDS_LOGIN if tunnel["state"] == "needs login" else Exit.FAILED


def _check_timeout(seconds: float) -> None:
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise UsageError(
            f"the time-out is {seconds:g} seconds", "give more than 0 and at most a day: --timeout 30"
        )


def _check_twice(forwards: Sequence[Forward]) -> None:
    for place, forward in enumerate(forwards):
        taken = {listen for other in forwards[:place] if other.kind == forward.kind for listen in other.listeners}
        if taken & {listen for listen in forward.listeners if listen.port or listen.path}:
            raise UsageError(f"{forward.listen} is named twice", "each forward needs a port of its own")


def _options(*given: tuple[str, Sequence[str]]) -> tuple[str, ...]:
    """ssh's options as words. Files are made absolute: the keeper doesn't run in this folder."""
    words: list[str] = []
    for flag, values in given:
        for value in values:
            is_file = flag in ("-F", "-i") and value != "none" and Path(value).exists()
            words += [flag, str(Path(value).absolute()) if is_file else value]
    return tuple(words)


def _is_listen(word: str) -> bool:
    """Whether `word` names a forward's listening end rather than a tunnel."""
    return word.isdigit() or word.startswith("/") or ":" in word


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}


def _at_terminal() -> bool:
    """Whether a person can be asked something here: ssh asks on the terminal, whatever stdout is."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _now() -> datetime:
    return datetime.now().astimezone()
