"""Status records as a keeper makes them, with what a test doesn't care about left as it usually is."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import cast

from holdfast.control import Changes, ForwardStatus, OutageStatus, TunnelStatus, Upkeep, UpkeepStatus

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))


def forward(
    listen: str = "localhost:8888",
    target: str | None = "127.0.0.1:8888",
    kind: str = "local",
    state: str = "up",
    reason: str | None = None,
    hint: str | None = None,
    url: str | None = None,
    asked: str | None = None,
    exposed: bool = False,
    leases: int = 0,
    kept: bool = True,
    connections: int | None = 0,
) -> ForwardStatus:
    return ForwardStatus(
        kind=kind,
        listen=listen,
        asked=asked or listen,
        target=target,
        url=url,
        state=state,
        reason=reason,
        hint=hint,
        notebook=None,
        exposed=exposed,
        leases=leases,
        kept=kept,
        connections=connections,
    )


def tunnel(
    name: str = "lab",
    *forwards: ForwardStatus,
    state: str = "up",
    reason: str | None = None,
    hint: str | None = None,
    age: float = 12,
    retry_in: float | None = None,
    rtt_ms: float | None = 1.26,
    drops: int = 0,
    outages: int = 0,
    down_seconds: int = 0,
    last_outage: OutageStatus | None = None,
    held: int = 0,
    fast_path: bool | None = True,
    adopted: bool = False,
    sent_bytes: int | None = None,
    received_bytes: int | None = None,
) -> TunnelStatus:
    return TunnelStatus(
        name=name,
        host=f"{name}.example",
        state=state,
        reason=reason,
        hint=hint,
        since=(NOW - timedelta(seconds=age)).isoformat(),
        retry_at=None if retry_in is None else (NOW + timedelta(seconds=retry_in)).isoformat(),
        rtt_ms=rtt_ms,
        drops=drops,
        outages=outages,
        down_seconds=down_seconds,
        last_outage=last_outage,
        held=held,
        switch_seconds=None,
        fast_path=fast_path,
        adopted=adopted,
        master_pid=None,
        sent_bytes=sent_bytes,
        received_bytes=received_bytes,
        options=[],
        upkeep=cast(UpkeepStatus, Upkeep()._asdict()),
        config=None,
        forwards=list(forwards) or [forward(state=state)],
    )


def outage(
    began: str = "2024-05-01T11:59:00+02:00", ended: str | None = None, seconds: float = 19.3, held: int = 0
) -> OutageStatus:
    return OutageStatus(
        began=began,
        ended=ended,
        seconds=seconds,
        reason="nothing comes back",
        mended_by="a new connection" if ended else None,
        held=held,
        let_through=held,
    )


def changes(*tunnels: TunnelStatus, gone: tuple[str, ...] = ()) -> Changes:
    return Changes(tunnels=list(tunnels), gone=list(gone))
