"""A tunnel: what a person named, and what they are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from holdfast.control import ForwardStatus, TunnelStatus
from holdfast.errors import UsageError
from holdfast.forward import Forward
from holdfast.keeper import journal
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.link import Link
from holdfast.keeper.states import ForwardState, LinkState, tunnel_state


@dataclass(slots=True, eq=False)
class Tunnel:
    """One or more forwards over one link. Its forwards are in the link's list as well."""

    name: str
    link: Link
    forwards: list[OpenForward] = field(default_factory=list)
    drops: int = 0
    # The keeper has just started, and is finding out what is still true of it.
    is_restored: bool = False
    # What was last told in its log, and since when that is so.
    told: str = ""
    since: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def state(self) -> LinkState | ForwardState:
        return tunnel_state(self.link.state, (forward.state for forward in self.forwards))

    @property
    def is_settled(self) -> bool:
        """Whether whoever asked for it can be given an answer: it works, or won't by itself."""
        link = self.link
        if link.state is LinkState.UP:
            return all(forward.state is not ForwardState.CLOSED for forward in self.forwards)
        return link.state in (LinkState.NEEDS_LOGIN, LinkState.FAILED)

    @property
    def is_being_opened(self) -> bool:
        """Whether its master is being found again, or has not yet answered for all its forwards."""
        link = self.link
        return link.is_restored or (link.state is LinkState.UP and not self.is_settled)

    def has(self, forward: Forward) -> bool:
        """Whether `forward` is among its own, as asked for or as it became (a port for 0)."""
        return any(forward in (own.asked, own.forward) for own in self.forwards)

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

    def tell_change(self) -> None:
        """Writes a new state to the log, with its reason."""
        reason, _ = self._reason() if self.state is not LinkState.CONNECTING else ("", "")
        told = f"{self.state}: {reason}" if reason else str(self.state)
        if told != self.told:
            if self._span(self.told.partition(":")[0]) != self._span(self.state):
                self.since = datetime.now().astimezone()
            self.told = told
            journal.record(self.name, told)

    @staticmethod
    def _span(state: str) -> str:
        """Waiting and connecting take turns: together they are one time of not being up."""
        return "trying" if state in (LinkState.WAITING, LinkState.CONNECTING) else state

    def status(self) -> TunnelStatus:
        """What `status` says of it."""
        link = self.link
        attempt = link.attempt
        master = attempt.master if attempt else None
        heartbeat = attempt.heartbeat if attempt else None
        reason, hint = self._reason()
        is_up = link.state is LinkState.UP
        return TunnelStatus(
            name=self.name,
            host=link.host,
            state=self.state.value,
            reason=reason or None,
            hint=hint or None,
            since=self.since.isoformat(timespec="seconds"),
            retry_at=link.retry_at.isoformat(timespec="milliseconds")
            if link.retry_at and link.state is LinkState.WAITING
            else None,
            rtt_ms=round(attempt.round_trip * 1000, 3) if attempt and attempt.round_trip and is_up else None,
            drops=self.drops,
            fast_path=heartbeat.fast_path if heartbeat and is_up else None,
            adopted=master is not None and not master.ours,
            master_pid=master.pid if master else None,
            forwards=[_forward_status(forward, link.state) for forward in self.forwards],
        )

    def _reason(self) -> tuple[str, str]:
        """Why it isn't up, or what is worth knowing although it is, and the next step."""
        if self.link.state is not LinkState.UP:
            trouble = self.link.trouble
            return (trouble.reason, trouble.hint) if trouble else ("", "")
        worst = next((own for own in self.forwards if own.state is self.state), None)
        return (worst.reason, worst.hint) if worst else ("", "")


def _spellings(own: OpenForward) -> set[str]:
    return {str(end.listen.port or end.listen) for end in (own.asked, own.shown)} | {
        str(own.asked.listen),
        str(own.shown.listen),
    }


def _forward_status(own: OpenForward, link: LinkState) -> ForwardStatus:
    state = own.state if link is LinkState.UP else link
    forward = own.shown
    return ForwardStatus(
        kind=forward.kind.value,
        listen=str(forward.listen),
        target=str(forward.target) if forward.target else None,
        url=forward.url,
        state=state.value,
        reason=own.reason or None,
        hint=own.hint or None,
    )
