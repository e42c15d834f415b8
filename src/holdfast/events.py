"""What happens to tunnels, as events: what is different between two looks at them. Pure.

Machines read these: a kind or a field is never renamed, and never means something else, within a VERSION.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, NotRequired, TypedDict, cast

from holdfast.control import Changes, ForwardStatus, TunnelStatus

VERSION = 1

# What a tunnel or a forward may be shown as, as docs/states.md explains.
STATES = (
    "up",
    "connecting",
    "idle",
    "stalled",
    "waiting",
    "needs login",
    "failed",
    "no service",
    "port taken",
    "refused",
    "down",
)


class Kind(StrEnum):
    ADDED = "added"
    """The tunnel is there: it was brought up, or was there when you began to listen."""
    REMOVED = "removed"
    """It was taken down."""
    STATE = "state"
    """Its state is another."""
    REASON = "reason"
    """Its state is the same, for another reason."""
    OUTAGE_BEGAN = "outage_began"
    """Its connection is not up any more."""
    OUTAGE_ENDED = "outage_ended"
    """It is up again."""
    FORWARD_ADDED = "forward_added"
    """It has another forward."""
    FORWARD_REMOVED = "forward_removed"
    """A forward was taken away."""
    FORWARD_MOVED = "forward_moved"
    """A forward leads elsewhere, as its notebook server does, or the server gave it another port."""
    FORWARD_STATE = "forward_state"
    """A forward's state is another."""


# The fields that each kind has besides `at`, `tunnel` and `host`.
FIELDS: dict[Kind, tuple[str, ...]] = {
    Kind.ADDED: ("state", "reason", "hint", "forwards"),
    Kind.REMOVED: ("before",),
    Kind.STATE: ("state", "before", "reason", "hint"),
    Kind.REASON: ("state", "reason", "hint"),
    Kind.OUTAGE_BEGAN: ("reason",),
    Kind.OUTAGE_ENDED: ("reason", "seconds", "mended_by", "held", "let_through"),
    Kind.FORWARD_ADDED: ("forward",),
    Kind.FORWARD_REMOVED: ("forward",),
    Kind.FORWARD_MOVED: ("forward", "listen_before", "target_before"),
    Kind.FORWARD_STATE: ("forward", "before"),
}


class EventRecord(TypedDict):
    """An event as `events --json` prints it: its kind says which fields it has. They mean what Event's do."""

    version: int
    """1, for as long as kinds and fields keep their names and meanings."""
    at: str
    """When it was noticed; ISO 8601 with offset, to the millisecond."""
    event: str
    """Its kind."""
    tunnel: str
    host: str
    state: NotRequired[str]
    before: NotRequired[str]
    reason: NotRequired[str | None]
    hint: NotRequired[str | None]
    forwards: NotRequired[tuple[ForwardStatus, ...]]
    forward: NotRequired[ForwardStatus]
    listen_before: NotRequired[str]
    target_before: NotRequired[str | None]
    """Where it led; null for SOCKS."""
    seconds: NotRequired[float]
    mended_by: NotRequired[str | None]
    held: NotRequired[int]
    let_through: NotRequired[int]


class Event(NamedTuple):
    """Something that happened to a tunnel. What its kind doesn't have, as FIELDS says, is None."""

    at: datetime
    """When it was noticed."""
    kind: Kind
    """What happened."""
    tunnel: str
    """The tunnel's name."""
    host: str
    """What was given to ssh."""
    state: str | None = None
    """The tunnel's [state](states.md)."""
    before: str | None = None
    """The state that ended, the forward's for `forward_state`."""
    reason: str | None = None
    """Why it isn't up, or wasn't."""
    hint: str | None = None
    """What to try."""
    forward: ForwardStatus | None = None
    """The forward as it is now, or was."""
    forwards: tuple[ForwardStatus, ...] | None = None
    """The tunnel's forwards."""
    listen_before: str | None = None
    """Where it listened."""
    target_before: str | None = None
    """Where it led; None for SOCKS."""
    seconds: float | None = None
    """How long the outage took."""
    mended_by: str | None = None
    """What brought the connection back, in words for a person."""
    held: int | None = None
    """How many connections waited."""
    let_through: int | None = None
    """How many of them were served after it."""

    def as_json(self) -> EventRecord:
        """The record that `events --json` prints."""
        own = {name: getattr(self, name) for name in FIELDS[self.kind]}
        record = {
            "version": VERSION,
            "at": self.at.isoformat(timespec="milliseconds"),
            "event": self.kind.value,
            "tunnel": self.tunnel,
            "host": self.host,
            **own,
        }
        return cast(EventRecord, record)


class Known:
    """The tunnels as they were last told of, by name; what is different then becomes events."""

    def __init__(self) -> None:
        self.tunnels: dict[str, TunnelStatus] = {}

    def learn(self, told: Changes, at: datetime) -> list[Event]:
        """Takes in what a keeper told."""
        found: list[Event] = []
        for name in told["gone"]:
            found += changes(self.tunnels.pop(name, None), None, at)
        for tunnel in told["tunnels"]:
            found += changes(self.tunnels.get(tunnel["name"]), tunnel, at)
            self.tunnels[tunnel["name"]] = tunnel
        return found

    def start_over(self, told: Changes, at: datetime) -> list[Event]:
        """Takes in what another keeper told first, which is all that there is."""
        there = {tunnel["name"] for tunnel in told["tunnels"]}
        gone = [name for name in self.tunnels if name not in there]
        return self.learn(Changes(tunnels=told["tunnels"], gone=gone), at)


def changes(before: TunnelStatus | None, now: TunnelStatus | None, at: datetime) -> list[Event]:
    """What happened to one tunnel between two looks at it, the second one at `at`. None: it wasn't there."""
    if now is None:
        return [Event(at, Kind.REMOVED, before["name"], before["host"], before=before["state"])] if before else []
    if before is None:
        return [_added(now, at)]
    return [*_state_changes(before, now, at), *_outages(before, now, at), *_forward_changes(before, now, at)]


def _added(tunnel: TunnelStatus, at: datetime) -> Event:
    return Event(
        at,
        Kind.ADDED,
        tunnel["name"],
        tunnel["host"],
        state=tunnel["state"],
        reason=tunnel["reason"],
        hint=tunnel["hint"],
        forwards=tuple(tunnel["forwards"]),
    )


def _state_changes(old: TunnelStatus, new: TunnelStatus, at: datetime) -> Iterator[Event]:
    name, host, state = new["name"], new["host"], new["state"]
    why = (new["reason"], new["hint"])
    if state != old["state"]:
        yield Event(at, Kind.STATE, name, host, state, old["state"], *why)
    elif why != (old["reason"], old["hint"]):
        yield Event(at, Kind.REASON, name, host, state, None, *why)


def _outages(old: TunnelStatus, new: TunnelStatus, at: datetime) -> Iterator[Event]:
    """The beginning and the end of the last outage, where they weren't known before."""
    last, outage = old["last_outage"], new["last_outage"]
    if outage is None:  # a keeper that has just started
        return
    is_another = last is None or (last["began"], old["outages"]) != (outage["began"], new["outages"])
    if is_another:
        yield Event(at, Kind.OUTAGE_BEGAN, new["name"], new["host"], reason=outage["reason"])
    if outage["ended"] is not None and (is_another or (last is not None and last["ended"] is None)):
        yield Event(
            at,
            Kind.OUTAGE_ENDED,
            new["name"],
            new["host"],
            reason=outage["reason"],
            seconds=outage["seconds"],
            mended_by=outage["mended_by"],
            held=outage["held"],
            let_through=outage["let_through"],
        )


def _forward_changes(old: TunnelStatus, new: TunnelStatus, at: datetime) -> Iterator[Event]:
    name, host = new["name"], new["host"]
    pairs, removed, added = _paired(old["forwards"], new["forwards"])
    for forward in removed:
        yield Event(at, Kind.FORWARD_REMOVED, name, host, forward=forward)
    for forward in added:
        yield Event(at, Kind.FORWARD_ADDED, name, host, forward=forward)
    for was, forward in pairs:
        if _ends(was) != _ends(forward):
            yield Event(
                at,
                Kind.FORWARD_MOVED,
                name,
                host,
                forward=forward,
                listen_before=was["listen"],
                target_before=was["target"],
            )
        if was["state"] != forward["state"]:
            yield Event(at, Kind.FORWARD_STATE, name, host, forward=forward, before=was["state"])


def _ends(forward: ForwardStatus) -> tuple[str, str, str | None]:
    return forward["kind"], forward["listen"], forward["target"]


def _listening_end(forward: ForwardStatus) -> tuple[str, str]:
    return forward["kind"], forward["listen"]


def _as_asked(forward: ForwardStatus) -> tuple[str, str, str | None]:
    return forward["kind"], forward["asked"], forward["target"]


def _paired(
    old: Iterable[ForwardStatus], new: Iterable[ForwardStatus]
) -> tuple[list[tuple[ForwardStatus, ForwardStatus]], list[ForwardStatus], list[ForwardStatus]]:
    """Each forward before and now, those that went, and those that came.

    The same one has the same ends; or it listens where it did (its notebook moved), or it was asked for as it was
    (the server gave it another port).
    """
    left, came = list(old), list(new)
    pairs = []
    for key in (_ends, _listening_end, _as_asked):
        for forward in list(came):
            was = next((other for other in left if key(other) == key(forward)), None)
            if was is not None:
                left.remove(was)
                came.remove(forward)
                pairs.append((was, forward))
    return pairs, left, came
