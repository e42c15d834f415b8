"""`up`, `down` and `restart`: what changes tunnels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from holdfast import client
from holdfast.cli import render
from holdfast.cli.asking import WORKS, ask, at_terminal, check_timeout, environment, far, now, ssh_options
from holdfast.cli.completing import complete_host, complete_tunnel
from holdfast.cli.main import complain
from holdfast.control import Down, Restart, TunnelStatus, Up, check_name, check_upkeep, encode_forward
from holdfast.errors import Exit, UsageError
from holdfast.forward import Forward, Kind, parse


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
@ssh_options
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
    **options: Any,
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
    there = far(host, options)
    check_timeout(timeout)
    upkeep = {"http": http, "hold": hold, "hold_for": hold_for, "switch": switch, "notify": notify}
    said = {name: int(value) for name, value in upkeep.items() if value is not None}
    check_upkeep(said)
    request = Up(
        host=there.host,
        name=check_name(name) if name else "",
        options=there.options,
        forwards=tuple(encode_forward(forward) for forward in wanted),
        environment=environment(),
        terminal=at_terminal(),
        wait=not no_wait,
        expose=expose,
        upkeep=said,
    )
    tunnels = ask(request, name or host, timeout)
    code = _report(tunnels, as_json=as_json, waited=not no_wait)
    if not no_wait:
        from holdfast.cli import people

        people.tell_of(tunnels[0])
    return code


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
    check_timeout(timeout)
    tunnels = ask(Restart(names, environment(), at_terminal()), names[0], timeout)
    return _report(tunnels, as_json=as_json, waited=True)


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
            complain(next(iter(render.remarks(tunnel, now()))))
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


def _check_twice(forwards: Sequence[Forward]) -> None:
    for place, forward in enumerate(forwards):
        taken = {listen for other in forwards[:place] if other.kind == forward.kind for listen in other.listeners}
        if taken & {listen for listen in forward.listeners if listen.port or listen.path}:
            raise UsageError(f"{forward.listen} is named twice", "each forward needs a port of its own")


def _is_listen(word: str) -> bool:
    """Whether `word` names a forward's listening end rather than a tunnel."""
    return word.isdigit() or word.startswith("/") or ":" in word
