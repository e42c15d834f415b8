"""`up`, `down` and `restart`: what changes tunnels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from holdfast import client
from holdfast.cli.asking import ask, at_terminal, check_timeout, far
from holdfast.cli.choosing import named
from holdfast.cli.completing import complete_host, complete_tunnel
from holdfast.cli.main import complain
from holdfast.cli.tunnel_options import Said, said, tunnel_options
from holdfast.client import environment
from holdfast.control import Down, Restart, Up, check_name, encode_forward
from holdfast.errors import Exit, UsageError

if TYPE_CHECKING:
    from holdfast.config.reading import Described


@click.command(short_help="bring tunnels up, or add forwards to one")
@click.argument("words", nargs=-1, metavar="[HOST [FORWARD]... | NAME...]", shell_complete=complete_host)
@click.option("--name", default="", help="the tunnel's name (default: the host's)")
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait until it is proven")
@click.option("--no-wait", is_flag=True, help="return at once; it comes up in the background")
@click.option("--login", "at_login", is_flag=True, help="the tunnels of the configuration that start at login")
@click.option("--json", "as_json", is_flag=True, help="print the tunnel's status as JSON")
@tunnel_options
def up(
    words: tuple[str, ...], name: str, timeout: float, no_wait: bool, at_login: bool, as_json: bool, **options: Any
) -> int:
    """Brings the tunnel to HOST up, waits until it is proven, and prints where each forward is.

    HOST is whatever ssh takes. A FORWARD is a port (8888), 9999:8888, 5432:db:5432, 8888:/run/x.sock,
    0:8888 (any free port here) or [::1]:8888:localhost:8888. With none: those it had, else the host's own
    LocalForward lines, else 8888. Doing it again changes nothing; other forwards are added.

    A NAME is a tunnel of the configuration, a group, or a pattern ('gpu*'). With nothing named: the tunnels of
    the project's file, else those that start at login.
    """
    check_timeout(timeout)
    if name:
        check_name(name)
    requests = _requests(words, options, name=name, at_login=at_login, wait=not no_wait)
    from holdfast.cli import bringing

    outcomes = bringing.bring_up(requests, timeout)
    if len(outcomes) == 1 and outcomes[0].error is not None:
        raise outcomes[0].error
    code = bringing.tell(outcomes, as_json=as_json, waited=not no_wait)
    if not no_wait:
        from holdfast.cli import people

        for tunnel in (tunnel for outcome in outcomes for tunnel in outcome.tunnels):
            people.tell_of(tunnel)
    return code


def _requests(
    words: tuple[str, ...], options: dict[str, Any], *, name: str, at_login: bool, wait: bool
) -> list[Up]:
    """What the command line asks for. Raises UsageError."""
    from holdfast.cli import configured

    if at_login and words:
        raise UsageError("--login is for the tunnels of the configuration, all of them", "holdfast up --login")
    if not words:
        wanted = said((), options)
        if name or wanted.forwards:
            raise UsageError("there is no host to bring that up for", "as in holdfast up lab 8888")
        tunnels = configured.login_set() if at_login else configured.usual()
        return _configured(tunnels, wanted, options, wait=wait)
    tunnels, rest, is_one = configured.chosen(words)
    if not tunnels:
        return [_by_hand(words[0], said(words[1:], options), options, name=name, wait=wait)]
    if not is_one and (rest or name):
        raise _said_of_one(rest[0] if rest else name, tunnels)
    return _configured(tunnels, said(rest, options), options, name=name, wait=wait)


def _said_of_one(word: str, tunnels: list[Described]) -> UsageError:
    """That `word` is about one tunnel, named by its own name."""
    what = "several tunnels" if len(tunnels) > 1 else "a group or a pattern"
    return UsageError(f"'{word[:60]}' can't be said of {what}", f"as in holdfast up {tunnels[0].name}")


def _configured(
    tunnels: list[Described], wanted: Said, options: dict[str, Any], *, wait: bool, name: str = ""
) -> list[Up]:
    from holdfast.cli import bringing

    if wanted.forwards and len(tunnels) > 1:
        raise UsageError("forwards can be added to one tunnel at a time", "as in holdfast up lab 8888")
    given = [far(tunnel.host, options).options for tunnel in tunnels]
    return [
        bringing.request_for(tunnel, wait=wait, said=wanted, options=own, name=name)
        for tunnel, own in zip(tunnels, given, strict=True)
    ]


def _by_hand(host: str, wanted: Said, options: dict[str, Any], *, name: str, wait: bool) -> Up:
    """The request for a host that the configuration doesn't know. Raises UsageError."""
    if host.isdigit():
        raise UsageError(f"'{host}' is a port, not a host", f"did you mean holdfast up HOST {host}")
    there = far(host, options)
    return Up(
        host=there.host,
        name=name,
        options=there.options,
        forwards=tuple(encode_forward(forward) for forward in wanted.forwards),
        environment=environment(),
        terminal=at_terminal(),
        wait=wait,
        expose=wanted.expose,
        upkeep=wanted.upkeep,
    )


@click.command(short_help="take tunnels down, or some of their forwards")
@click.argument("words", nargs=-1, metavar="NAME... [PORT]...", shell_complete=complete_tunnel)
@click.option("--all", "everything", is_flag=True, help="all tunnels")
def down(words: tuple[str, ...], everything: bool) -> int:
    """Ends the tunnels: their forwards here, and their connection when no other tunnel uses it.

    A NAME may also be a group of the configuration, or a pattern ('gpu*').
    With a PORT after the NAME only that forward is taken away: holdfast down lab 8888.
    """
    names = [word for word in words if not _is_listen(word)]
    listens = [word for word in words if _is_listen(word)]
    if bool(names) == everything:
        raise UsageError("name the tunnels to take down, or say --all", "see what there is: holdfast status")
    names = list(named(names))
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
    """Ends the connection of each tunnel and makes a new one; what it carries breaks off.

    A NAME may also be a group of the configuration, or a pattern ('gpu*').
    """
    check_timeout(timeout)
    tunnels = ask(Restart(named(names), environment(), at_terminal()), names[0], timeout)
    from holdfast.cli import bringing

    return bringing.tell([bringing.Outcome("", tunnels)], as_json=as_json, waited=True)


def _is_listen(word: str) -> bool:
    """Whether `word` names a forward's listening end rather than a tunnel."""
    return word.isdigit() or word.startswith("/") or ":" in word
