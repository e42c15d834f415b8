"""A tunnel: what a person named, and what they are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from holdfast.control import (
    ForwardStatus,
    NotebookStatus,
    OutageStatus,
    TunnelStatus,
    Upkeep,
    UpkeepStatus,
)
from holdfast.errors import UsageError
from holdfast.forward import Forward
from holdfast.keeper import journal, waiting_room
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.link import Link
from holdfast.keeper.states import ForwardState, LinkState, tunnel_state
from holdfast.keeper.watch import elapsed


@dataclass(slots=True, eq=False)
class Outage:
    """A time in which the link was not up. The counts are of the connections that waited for it."""

    began: datetime
    began_at: float  # on the clock that counts sleep
    reason: str
    held_before: int
    through_before: int
    ended: datetime | None = None
    lasted: float = 0.0
    mended_by: str = ""
    held: int = 0
    let_through: int = 0

    @property
    def seconds(self) -> float:
        return self.lasted if self.ended else elapsed() - self.began_at

    def __str__(self) -> str:
        waited = ""
        if self.held:
            waited = f"; {_connections(self.held)} waited, {self.let_through or 'none'} of them let through"
        return f"up again after {_span_of(self.seconds)}, by {self.mended_by}{waited}"


@dataclass(slots=True, eq=False)
class Tunnel:
    """One or more forwards over one link. Its forwards are in the link's list as well."""

    name: str
    link: Link
    upkeep: Upkeep = field(default_factory=Upkeep)
    forwards: list[OpenForward] = field(default_factory=list)
    # The configuration file that describes it, or ''.
    origin: str = ""
    # How many times somebody has asked for it.
    asked: int = 0
    drops: int = 0
    # Times that the link was not up, the seconds of all that are over, and the last one.
    outages: int = 0
    down_seconds: int = 0
    outage: Outage | None = None
    # The connections held and let through until the last outage was over: those since are the next one's.
    tallied: tuple[int, int] = (0, 0)
    # The keeper has just started, and is finding out what is still true of it.
    is_restored: bool = False
    # What was last told in its log, and since when that is so.
    told: str = ""
    since: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def shown(self) -> str:
        """Its state, as people and programs read it."""
        return tunnel_state(self.link.state, (forward.state for forward in self.forwards))

    @property
    def is_settled(self) -> bool:
        """Whether whoever asked for it can be given an answer: it works, or won't by itself."""
        link = self.link
        if link.state is LinkState.UP:
            return all(forward.state is not ForwardState.CLOSED for forward in self.forwards)
        return link.state in (LinkState.NEEDS_LOGIN, LinkState.FAILED, LinkState.IDLE)

    @property
    def is_kept(self) -> bool:
        """Whether somebody wants it for longer than a program runs."""
        return any(own.kept for own in self.forwards)

    @property
    def is_lazy(self) -> bool:
        """Whether its link has to be there only while somebody is connected."""
        return self.upkeep.lazy and not any(own.leases for own in self.forwards)

    @property
    def _is_served(self) -> bool:
        """Whether everything about it is found out, and nobody waits any more."""
        return self.is_settled and not any(own.guard.waiting for own in self.forwards if own.guard)

    @property
    def is_being_opened(self) -> bool:
        """Whether its master is being found again, or has not yet answered for all its forwards."""
        link = self.link
        return link.is_restored or (link.state is LinkState.UP and not self.is_settled)

    @property
    def plain_forwards(self) -> list[Forward]:
        return [own.forward for own in self.forwards]

    def own(self, forward: Forward, *, or_like: bool = False) -> OpenForward | None:
        """The one of its own that is `forward`, as asked for or as it became (a port for 0).

        `or_like`: for any port here it may be one that leads to the same place, and from this machine alone.
        """
        found = next((own for own in self.forwards if forward in (own.asked, own.forward, own.shown)), None)
        if found is not None or not or_like or forward.listen.port or forward.listen.path:
            return found
        same = (own for own in self.forwards if own.forward[::2] == forward[::2] and not own.forward.listen.path)
        return next((own for own in same if own.forward.listen.is_loopback), None)

    def on(self, listens: Sequence[str]) -> list[OpenForward]:
        """Its forwards that listen on one of `listens` (a port, an address, a path); all when none is named.

        Raises UsageError for one that it hasn't.
        """
        if not listens:
            return list(self.forwards)
        chosen = []
        for text in listens:
            matched = [own for own in self.forwards if text in _spellings(own)]
            if not matched:
                have = ", ".join(str(own.shown.listen) for own in self.forwards)
                raise UsageError(f"the tunnel '{self.name}' has no forward on {text[:60]}", f"it has {have}")
            chosen += [own for own in matched if own not in chosen]
        return chosen

    def tell_change(self) -> str:
        """Writes a new state to the log, with its reason; what was written if that is a loss or a return."""
        shown = self.shown
        reason, _ = self._reason() if shown != LinkState.CONNECTING else ("", "")
        told = f"{shown}: {reason}" if reason else shown
        if told == self.told or (self.link.state is LinkState.UP and not self._is_served):
            return ""
        before = self.told.partition(":")[0]
        if self._span(before) != self._span(shown):
            self.since = datetime.now().astimezone()
        self.told = told
        outages = self.outages
        mended = self._track_outage(before, reason)
        line = f"{told}; {mended}" if mended and reason else mended or told
        journal.record(self.name, line)
        needs_person = before != shown and shown in (LinkState.NEEDS_LOGIN, LinkState.FAILED)
        return line if mended or needs_person or self.outages > outages else ""

    def _track_outage(self, before: str, reason: str) -> str:
        """Begins an outage, or ends one, as the link is; what is to be told of one that has ended, or ''."""
        outage = self.outage if self.outage is not None and self.outage.ended is None else None
        if self.link.state is LinkState.IDLE:
            if outage is not None:
                self._end_outage(outage, datetime.now().astimezone(), "nobody waited for it any more")
            return ""
        if self.link.state is not LinkState.UP:
            if outage is None and before and self._span(before) not in ("trying", *_NEVER_UP):
                self.outages += 1
                self.outage = Outage(self.since, elapsed(), reason, *self.tallied)
            return ""
        if outage is None:
            return ""
        self._end_outage(outage, self.since, self.link.mended_by)
        return str(outage)

    def _end_outage(self, outage: Outage, ended: datetime, mended_by: str) -> None:
        held, through = self.tallied = self._tallied()
        outage.held, outage.let_through = held - outage.held_before, through - outage.through_before
        outage.ended, outage.lasted, outage.mended_by = ended, outage.seconds, mended_by
        self.down_seconds += round(outage.seconds)

    def _tallied(self) -> tuple[int, int]:
        tallies = [forward.tally for forward in self.forwards]
        return sum(tally.held for tally in tallies), sum(tally.let_through for tally in tallies)

    def waiting_page(self, forward: OpenForward) -> bytes:
        """What a browser is shown that waits for `forward`."""
        link = self.link
        now = datetime.now().astimezone()
        reason, hint = self._reason()
        since = self.outage.began if self.outage and not self.outage.ended else self.since
        next_try = link.retry_at if link.retry else None
        return waiting_room.page(link.host, str(forward.forward.target), since, now, reason, hint, next_try)

    @staticmethod
    def _span(state: str) -> str:
        """Waiting and connecting take turns: together they are one time of not being up."""
        return "trying" if state in (LinkState.WAITING, LinkState.CONNECTING) else state

    def status(self, forwards: Sequence[OpenForward] | None = None) -> TunnelStatus:
        """What `status` says of it, with these of its forwards, or all."""
        link = self.link
        attempt = link.serving
        master = attempt.master if attempt else None
        heartbeat = attempt.heartbeat if attempt else None
        reason, hint = self._reason()
        is_up = link.state is LinkState.UP
        traffic = attempt.traffic if attempt and is_up else None
        return TunnelStatus(
            name=self.name,
            host=link.host,
            state=self.shown,
            reason=reason or None,
            hint=hint or None,
            since=self.since.isoformat(timespec="seconds"),
            retry_at=link.retry_at.isoformat(timespec="milliseconds") if link.retry_at else None,
            rtt_ms=round(attempt.round_trip * 1000, 3) if attempt and attempt.round_trip and is_up else None,
            drops=self.drops,
            outages=self.outages,
            down_seconds=self.down_seconds,
            last_outage=self._last_outage(),
            held=sum(forward.guard.waiting for forward in self.forwards if forward.guard),
            switch_seconds=attempt.switch if attempt else None,
            fast_path=heartbeat.fast_path if heartbeat and is_up else None,
            adopted=master is not None and not master.ours,
            master_pid=master.pid if master else None,
            sent_bytes=traffic.sent if traffic else None,
            received_bytes=traffic.received if traffic else None,
            options=list(link.options),
            upkeep=cast(UpkeepStatus, self.upkeep._asdict()),
            config=self.origin or None,
            forwards=[
                _forward_status(own, link.state) for own in (self.forwards if forwards is None else forwards)
            ],
        )

    def _last_outage(self) -> OutageStatus | None:
        outage = self.outage
        if outage is None:
            return None
        held, through = self._tallied()
        return OutageStatus(
            began=outage.began.isoformat(timespec="seconds"),
            ended=outage.ended.isoformat(timespec="seconds") if outage.ended else None,
            seconds=round(outage.seconds, 1),
            reason=outage.reason,
            mended_by=outage.mended_by or None,
            held=outage.held if outage.ended else held - outage.held_before,
            let_through=outage.let_through if outage.ended else through - outage.through_before,
        )

    def _reason(self) -> tuple[str, str]:
        """Why it isn't up, or what is worth knowing although it is, and the next step."""
        if self.link.state is not LinkState.UP:
            trouble = self.link.trouble
            return (trouble.reason, trouble.hint) if trouble else ("", "")
        worst = next((own for own in self.forwards if own.state.value == self.shown), None)
        return (worst.reason, worst.hint) if worst else ("", "")


# States, by what they are told as, that a tunnel may be in without ever having been up.
_NEVER_UP = (LinkState.NEEDS_LOGIN.value, LinkState.FAILED.value, LinkState.DOWN.value, LinkState.IDLE.value)


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _span_of(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes) + [f"{rest} s"] * (not hours)
    return " ".join(parts) if seconds >= 1 else f"{seconds:.1f} s"


def _spellings(own: OpenForward) -> set[str]:
    return {str(end.listen.port or end.listen) for end in (own.asked, own.shown)} | {
        str(own.asked.listen),
        str(own.shown.listen),
    }


def _forward_status(own: OpenForward, link: LinkState) -> ForwardStatus:
    state = own.state.value if link is LinkState.UP else link.shown
    forward = own.shown
    return ForwardStatus(
        kind=forward.kind.value,
        listen=str(forward.listen),
        asked=str(own.asked.listen),
        target=str(forward.target) if forward.target else None,
        url=own.notebook.url(forward.listen) if own.notebook and forward.url else forward.url,
        state=state,
        reason=own.reason or None,
        hint=own.hint or None,
        notebook=_notebook_status(own),
        exposed=not forward.listen.is_loopback,
        leases=len(own.leases),
        kept=own.kept,
        connections=own.connections,
    )


def _notebook_status(own: OpenForward) -> NotebookStatus | None:
    known = own.notebook
    if known is None:
        return None
    return NotebookStatus(directory=known.directory, base_url=known.base_url, version=known.version, pid=known.pid)
