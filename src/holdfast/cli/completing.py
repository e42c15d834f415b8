"""What the shell's Tab offers: tunnels, groups and hosts. Never an error: what can't be read isn't offered."""

from __future__ import annotations

import contextlib
import json

import click

from holdfast import paths
from holdfast.errors import HoldfastError


def complete_tunnel(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """The names of tunnels that are wanted or were, and of the groups that they are in."""
    known = known_tunnels()
    groups = {group for tunnel in _configured() if tunnel[0] in known for group in tunnel[1]}
    return [name for name in sorted({*known, *groups}) if name.startswith(incomplete)]


def complete_host(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """The names of tunnels and groups, also of the configuration, and the hosts that ssh_config spells out."""
    from holdfast.openssh.hosts import host_names

    configured = {name for tunnel in _configured() for name in (tunnel[0], *tunnel[1])}
    return [name for name in sorted({*known_tunnels(), *configured, *host_names()}) if name.startswith(incomplete)]


def known_tunnels(*, only_wanted: bool = False) -> list[str]:
    """The names of tunnels that are wanted or were, as the keeper has saved them."""
    try:
        record = json.loads(paths.state_file().read_text())
        tunnels = [tunnel for tunnel in record["tunnels"] if tunnel["wanted"] or not only_wanted]
        return sorted(str(tunnel["name"]) for tunnel in tunnels)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, HoldfastError):
        return []


def _configured() -> list[tuple[str, tuple[str, ...]]]:
    """The name and the groups of each tunnel of the configuration."""
    from holdfast.cli import configured

    with contextlib.suppress(OSError, HoldfastError):
        return [(tunnel.name, tunnel.groups) for tunnel in configured.trusted()]
    return []
