"""What of the tunnels and the masters a keeper after this one has to know, and what it makes of that."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from holdfast.control import check_upkeep
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.journal import SavedForward, SavedMaster, SavedTunnel
from holdfast.keeper.link import Known, Link
from holdfast.keeper.states import LinkState
from holdfast.keeper.tunnel import Tunnel


def saved_tunnel(tunnel: Tunnel, *, wanted: bool) -> SavedTunnel:
    link = tunnel.link
    return SavedTunnel(
        tunnel.name,
        link.host,
        link.options,
        link.environment,
        wanted,
        drops=tunnel.drops,
        outages=tunnel.outages,
        down_seconds=tunnel.down_seconds,
        up_since=tunnel.since.isoformat() if tunnel.told == LinkState.UP.value else "",
        upkeep=tunnel.upkeep._asdict(),
        origin=tunnel.origin,
        forwards=tuple(
            SavedForward(own.asked, own.forward, own.notebook, own.kept, own.chosen_port)
            for own in tunnel.forwards
        ),
    )


def restored_tunnel(saved: SavedTunnel, link: Link) -> Tunnel:
    tunnel = Tunnel(
        saved.name,
        link,
        check_upkeep(saved.upkeep),
        [_restored_forward(own) for own in saved.forwards],
        origin=saved.origin,
        drops=saved.drops,
        outages=saved.outages,
        down_seconds=saved.down_seconds,
        is_restored=True,
    )
    if saved.up_since:
        tunnel.told, tunnel.since = LinkState.UP.value, datetime.fromisoformat(saved.up_since)
    return tunnel


def _restored_forward(saved: SavedForward) -> OpenForward:
    return OpenForward(
        saved.asked,
        saved.forward,
        notebook=saved.notebook,
        kept=saved.kept,
        chosen_port=saved.chosen_port,
    )


def saved_masters(link: Link) -> list[SavedMaster]:
    """The masters of ours that a keeper after this one must find again, those of one before that aren't yet."""
    own = [*link.attempts, *link.ending]
    living = [
        Known(each.master.socket, each.control_path, each.attended, each.is_draining or each in link.ending)
        for each in own
        if each.master is not None and each.master.ours
    ]
    unseen = [each.known for each in own if each.master is None and each.known is not None]
    return [
        SavedMaster(
            link.host,
            link.options,
            str(known.socket),
            str(known.control_path or ""),
            known.attended,
            known.draining,
        )
        for known in (*link.known, *unseen, *living)
    ]


def restored_master(saved: SavedMaster) -> Known:
    control_path = Path(saved.control_path) if saved.control_path else None
    return Known(Path(saved.socket), control_path, saved.attended, saved.draining)
