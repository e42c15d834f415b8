"""`apply`: changes what runs to what the configuration file describes, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import click

from holdfast import client, paths
from holdfast.cli import bringing
from holdfast.cli.asking import check_timeout, tunnels
from holdfast.cli.main import complain
from holdfast.config.difference import Change, difference, first_additions, stopgap
from holdfast.config.reading import Described, parse_bytes
from holdfast.config.users import users_content
from holdfast.control import Down, Up
from holdfast.errors import Exit, UsageError
from holdfast.forward import Forward


@click.command(short_help="change what runs to what the configuration file describes")
@click.option("--dry-run", is_flag=True, help="only show what would be changed")
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait until it is proven")
@click.option("--no-wait", is_flag=True, help="return at once; it comes up in the background")
def apply(dry_run: bool, timeout: float, no_wait: bool) -> int:
    """Compares the configuration file with what runs, and changes only what is different.

    Tunnels that start at login are brought up. Those that were brought up from the file get its forwards and
    options, and go down when they aren't in it any more. What was brought up by hand is left alone.
    """
    check_timeout(timeout)
    path, content = paths.config_file(), users_content()
    if content is None:
        raise UsageError(f"there is no {path}", "begin one: holdfast config add HOST")
    described = parse_bytes(content, path)
    found = difference(described, tunnels(timeout=30), str(path))
    for change in found.changes:
        click.echo(change)
    if found.alone:
        click.echo(f"left alone: {', '.join(found.alone)}{_handing_over(found.alone, described)}")
    if not found.changes:
        click.echo("nothing to change")
    if dry_run or not found.changes:
        return Exit.OK
    return _carry_out(found.changes, timeout, wait=not no_wait)


def _handing_over(alone: Sequence[str], described: Sequence[Described]) -> str:
    """How one of those that are left alone becomes the file's, if that describes it; or ''."""
    name = next((tunnel.name for tunnel in described if tunnel.name in alone), "")
    return f"; holdfast up {name} makes it the file's" if name else ""


def _carry_out(changes: Sequence[Change], timeout: float, *, wait: bool) -> int:
    """First what goes, so that its ports are free for what comes; the worst exit code."""
    wanted = [change.described for change in changes if change.described is not None]
    with contextlib.ExitStack() as held:
        for change in changes:
            if additions := first_additions(change):
                assert change.described is not None
                _up([change.described._replace(forwards=additions)], timeout, wait=True)
            elif forward := stopgap(change):
                assert change.described is not None
                held.enter_context(_held(change.described, forward, timeout))
        for change in changes:
            if change.described is None or change.replaced or change.removed:
                goes = Down(
                    (change.name,), () if change.replaced else change.removed, False, forget=not change.removed
                )
                client.ask(goes, timeout=timeout, notice=complain)
    return bringing.tell(_up(wanted, timeout, wait=wait), as_json=False, waited=wait)


@contextlib.contextmanager
def _held(tunnel: Described, forward: Forward, timeout: float) -> Iterator[None]:
    """Keeps the connection of a tunnel that runs, by a forward that ends with us, until its own are asked for."""
    from holdfast.leasing import Tunnel

    stands_in: Up = bringing.request_for(tunnel._replace(forwards=(forward,)), wait=False)
    request = stands_in._replace(terminal=False, lease=True)
    with Tunnel(request, timeout):
        yield
        _up([tunnel], timeout, wait=False)


def _up(wanted: Sequence[Described], timeout: float, *, wait: bool) -> list[bringing.Outcome]:
    requests: list[Up] = [bringing.request_for(tunnel, wait=wait) for tunnel in wanted]
    return bringing.bring_up(requests, timeout)
