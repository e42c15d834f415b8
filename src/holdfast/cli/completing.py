"""What the shell's Tab offers: tunnels and hosts."""

from __future__ import annotations

import json

import click

from holdfast import paths
from holdfast.errors import HoldfastError


def complete_tunnel(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """The names of tunnels that are wanted or were."""
    return [name for name in _tunnels() if name.startswith(incomplete)]


def complete_host(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    """The names of tunnels, and the hosts that ssh_config spells out."""
    from holdfast.openssh.hosts import host_names

    return [name for name in sorted({*_tunnels(), *host_names()}) if name.startswith(incomplete)]


def _tunnels() -> list[str]:
    try:
        record = json.loads(paths.state_file().read_text())
        return sorted(str(tunnel["name"]) for tunnel in record["tunnels"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, HoldfastError):
        return []
