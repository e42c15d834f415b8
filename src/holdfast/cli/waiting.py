"""`wait`: for tunnels to be in a state. It changes nothing."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence

import click

from holdfast import client
from holdfast.cli import choosing, render
from holdfast.cli.asking import check_timeout, now
from holdfast.cli.completing import complete_tunnel
from holdfast.cli.following import Watch
from holdfast.cli.main import complain
from holdfast.control import Status, TunnelStatus, check_name
from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.events import STATES

# What only a tunnel can be whose connection stands: no use waiting for it while a person is needed for that.
_CONNECTED = {"up", "no service", "port taken", "refused"}
# Seconds between tries to have a state proven that the keeper believes in.
_AGAIN = 0.5


@click.command(short_help="wait until tunnels are up, or in another state")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_tunnel)
@click.option(
    "--state", "states", multiple=True, metavar="STATE", help="the state to wait for, or one of several (up)"
)
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait")
def wait(names: tuple[str, ...], states: tuple[str, ...], timeout: float) -> int:
    """Waits until each of the tunnels is in the state, proven by a round trip. It brings none up.

    A NAME may also be a group of the configuration, or a pattern ('gpu*'): all that it stands for are waited for,
    also those that nobody has brought up yet. STATE is one of those that status shows, as in --state up --state
    no-service. A tunnel that isn't there is down.

    Exit code 0: they are; 1: the time is over, or trying again can't help; 4: one needs a login.
    """
    wanted = {_state(text) for text in states} or {"up"}
    check_timeout(timeout)
    chosen = tuple(check_name(name) for name in choosing.named_or_new(names, choosing.expected))
    with Watch() as watch:
        return _wait(watch, chosen, wanted, timeout)


def unmet(names: Sequence[str], tunnels: Mapping[str, TunnelStatus], wanted: set[str]) -> list[str]:
    """Those of `names` that aren't in one of the states `wanted`; a tunnel that isn't there is down."""
    return [name for name in names if (tunnels[name]["state"] if name in tunnels else "down") not in wanted]


def hopeless(names: Sequence[str], tunnels: Mapping[str, TunnelStatus], wanted: set[str]) -> list[str]:
    """Those that won't get there by themselves."""
    if not wanted <= _CONNECTED:
        return []
    return [name for name in names if name in tunnels and tunnels[name]["state"] in ("needs login", "failed")]


def _wait(watch: Watch, names: Sequence[str], wanted: set[str], timeout: float) -> int:
    ends = time.monotonic() + timeout
    if watch.has_keeper:
        watch.wait(timeout)  # until it has told what there is
    while True:
        left = max(0.0, ends - time.monotonic())
        missing = unmet(names, watch.tunnels, wanted)
        if not missing and _is_proven(watch, names, wanted, max(left, _AGAIN)):
            return Exit.OK
        lost = hopeless(missing, watch.tunnels, wanted)
        if lost:
            return _give_up(lost, watch.tunnels, "")
        if not left:
            return _give_up(missing or names, watch.tunnels, f", after {timeout:g} s")
        watch.wait(left if missing else min(left, _AGAIN))


def _is_proven(watch: Watch, names: Sequence[str], wanted: set[str], timeout: float) -> bool:
    """Whether a round trip says so too."""
    asked = tuple(name for name in names if name in watch.tunnels)
    if not asked:
        return watch.has_keeper or not client.something_is_wanted()
    try:
        told = client.ask(Status(asked), timeout=timeout, notice=complain)
    except (HoldfastError, TimeoutError):  # it went down, or its keeper did: what is said of it next decides
        return False
    return not unmet(asked, {tunnel["name"]: tunnel for tunnel in told}, wanted)


def _give_up(names: Sequence[str], tunnels: Mapping[str, TunnelStatus], when: str) -> int:
    """Says what each of `names` is instead, and why."""
    code = Exit.FAILED
    for name in names:
        if name not in tunnels:
            complain(
                f"there is no tunnel '{name}'{when}", f"holdfast up {name}; or see what there is: holdfast status"
            )
            continue
        tunnel = tunnels[name]
        is_idle = tunnel["state"] == "idle"
        hint = "connect to it: it logs in then; or wait for --state idle" if is_idle else f"holdfast logs {name}"
        complain(f"{render.waiting_line(tunnel, now())}{when}", tunnel["hint"] or hint)
        if tunnel["state"] == "needs login":
            code = Exit.NEEDS_LOGIN
    return code


def _state(text: str) -> str:
    """The state that is meant, words joined by - or _ as well. Raises UsageError."""
    state = text.lower().replace("-", " ").replace("_", " ")
    if state not in STATES:
        near = difflib.get_close_matches(state, STATES, 1)
        hint = f"did you mean --state {near[0].replace(' ', '-')}" if near else f"one of {', '.join(STATES)}"
        raise UsageError(f"there is no state '{text[:60]}'", hint)
    return state
