"""The forward lines of the user's ssh_config, as `ssh -G` sees them."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.config.reading import Described
from holdfast.control import default_name
from holdfast.errors import UsageError
from holdfast.forward import Forward, Kind
from holdfast.importing.found import Found, Remark, collect, describe, reason, ssh_forward
from holdfast.openssh.settings import Settings

_KEYWORDS = {Kind.LOCAL: "LocalForward", Kind.REMOTE: "RemoteForward", Kind.DYNAMIC: "DynamicForward"}
_SHARED = "stands outside of every Host, so it belongs to none of them, and is left out"
_STAYS = "the lines stay where they are, and a plain ssh to that host wants the same ports: take them out there"


def read(hosts: Mapping[str, Settings], nobody: Settings, options: tuple[str, ...]) -> Found:
    """The tunnels of those `hosts` that have forwards of their own.

    `nobody` is what ssh would use for a host that the configuration doesn't name: what it has, all have.
    `options` are those with which ssh finds this configuration.
    """
    shared = [(kind, text) for kind in Kind for text in nobody.forward_lines(kind)]
    parts = [_tunnel(host, settings, shared, options) for host, settings in hosts.items()]
    remarks = [Remark("", f"{_KEYWORDS[kind]} {text} {_SHARED}") for kind, text in shared]
    found = collect([Found(remarks=tuple(remarks)), *parts])
    if found.tunnels:
        names = ", ".join(tunnel.host for tunnel in found.tunnels)
        found = collect([found, Found(remarks=(Remark(names, _STAYS),))])
    return found


def _tunnel(host: str, settings: Settings, shared: list[tuple[Kind, str]], options: tuple[str, ...]) -> Found:
    own = [(kind, text) for kind in Kind for text in settings.forward_lines(kind) if (kind, text) not in shared]
    everywhere = settings.get("gatewayports") == "yes"
    forwards: list[Forward] = []
    remarks: list[Remark] = []
    for kind, text in own:
        try:
            forwards.append(ssh_forward(text, kind, everywhere=everywhere))
        except UsageError as error:
            remarks.append(Remark(host, f"{_KEYWORDS[kind]} {text} is left out: {reason(error)}"))
    if not forwards:
        return Found(remarks=tuple(remarks))
    try:
        tunnel = describe(Described(default_name(host), host, tuple(forwards), options=options), host)
    except UsageError as error:
        tunnel = Found(remarks=(Remark(host, f"not taken: {reason(error)}"),))
    return collect([Found(remarks=tuple(remarks)), tunnel])
