"""Brings tunnels up, several at the same time, and tells of them in the order in which they were named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from holdfast.cli import render
from holdfast.cli.asking import WORKS, ask, at_terminal, now
from holdfast.cli.main import complain
from holdfast.cli.tunnel_options import Said
from holdfast.client import environment
from holdfast.config.reading import Described, merged_options
from holdfast.control import TunnelStatus, Up, encode_forward
from holdfast.errors import Exit, HoldfastError

if TYPE_CHECKING:
    import threading


class Outcome(NamedTuple):
    """What became of one request: the tunnel, or why there is no answer. `name` is the tunnel that was meant."""

    name: str
    tunnels: list[TunnelStatus]
    error: HoldfastError | None = None


def request_for(
    tunnel: Described, *, wait: bool, said: Said | None = None, options: Sequence[str] = (), name: str = ""
) -> Up:
    """The request for a tunnel of the configuration, with what the command line adds to that, or says instead.

    With a `name` of its own it is another tunnel to that host, which has only the forwards that are said, if any.
    """
    forwards = list(tunnel.forwards if not (name and said and said.forwards) else ())
    forwards += [forward for forward in (said.forwards if said else ()) if forward not in forwards]
    return Up(
        host=tunnel.host,
        name=name or tunnel.name,
        options=merged_options(options, tunnel.options),
        forwards=tuple(map(encode_forward, forwards)),
        environment=environment(),
        terminal=at_terminal(),
        wait=wait,
        expose=tunnel.expose or bool(said and said.expose),
        upkeep={**tunnel.whole_upkeep, **(said.upkeep if said else {})},
        origin="" if name else tunnel.origin,
    )


def bring_up(requests: Sequence[Up], timeout: float) -> list[Outcome]:
    """What became of each. A login that needs a person has the terminal for itself."""
    if len(requests) == 1:
        return [_outcome(requests[0], timeout, None)]
    import threading

    turn = threading.Lock()
    outcomes: dict[int, Outcome | Exception] = {}

    def work(number: int, request: Up) -> None:
        try:
            outcomes[number] = _outcome(request, timeout, turn)
        except Exception as error:
            outcomes[number] = error

    # Daemons: Ctrl-C ends the command, and the keeper sees its clients leave.
    threads = [
        threading.Thread(target=work, args=(number, request), daemon=True)
        for number, request in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [outcomes[number] for number in range(len(requests))]
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one for one in found if isinstance(one, Outcome)]


def tell(outcomes: Sequence[Outcome], *, as_json: bool, waited: bool) -> int:
    """Prints them; the worst exit code."""
    code: int = Exit.OK
    if as_json:
        told = [tunnel for outcome in outcomes for tunnel in outcome.tunnels]
        click.echo(json.dumps({"version": 1, "tunnels": told}))
    for outcome in outcomes:
        if outcome.error is not None:
            whose = f"{outcome.name}: " if len(outcomes) > 1 else ""
            complain(f"{whose}{outcome.error.message}", outcome.error.hint)
            code = max(code, outcome.error.exit_code)
        for tunnel in outcome.tunnels:
            code = max(code, _tell_of(tunnel, as_json=as_json, waited=waited))
    return code


def _outcome(request: Up, timeout: float, turn: threading.Lock | None) -> Outcome:
    name = request.name or request.host
    try:
        return Outcome(name, ask(request, name, timeout, turn=turn))
    except HoldfastError as error:
        return Outcome(name, [], error)


def _tell_of(tunnel: TunnelStatus, *, as_json: bool, waited: bool) -> int:
    for forward in tunnel["forwards"]:
        if not as_json and (forward["state"] in WORKS or not waited):
            click.echo(render.forward_line(forward, tunnel["host"]))
    if waited and tunnel["state"] not in ("up", "idle"):
        return _complain_of(tunnel)
    if tunnel["fast_path"] is False:
        complain(next(iter(render.remarks(tunnel, now()))))
    return Exit.OK


def _complain_of(tunnel: TunnelStatus) -> Exit:
    """Says why the tunnel isn't up. A service that isn't there yet is no failure: the tunnel is."""
    told: list[tuple[str | None, str | None]]
    told = [(forward["reason"], forward["hint"]) for forward in tunnel["forwards"] if forward["reason"]]
    for reason, hint in dict.fromkeys(told or [(tunnel["reason"], tunnel["hint"])]):
        complain(reason or f"{tunnel['name']} is {tunnel['state']}", hint or "")
    if tunnel["state"] in WORKS:
        return Exit.OK
    return Exit.NEEDS_LOGIN if tunnel["state"] == "needs login" else Exit.FAILED
