"""What has to change for the tunnels that run to be those of a configuration file. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from holdfast.config.reading import Described, Start, listeners
from holdfast.config.spelling import duration, shown_mode
from holdfast.config.writing import asked, written
from holdfast.control import ForwardStatus, TunnelStatus
from holdfast.forward import Address, Forward, Kind


class Change(NamedTuple):
    """What is done about one tunnel: without `described` it is taken down, without `running` it is brought up.

    `replaced`: it goes elsewhere, so it is taken down and brought up. Otherwise forwards are `added`; those that
    are `removed` are told by the addresses on which they listen; `upkeep` has the fields that are different.
    """

    name: str
    described: Described | None
    running: TunnelStatus | None = None
    replaced: bool = False
    added: tuple[Forward, ...] = ()
    removed: tuple[str, ...] = ()
    upkeep: Mapping[str, int] = {}

    def __str__(self) -> str:
        """As a line of a plan: `+ lab: 8888 on lab`, `~ lab: + 6006`, `- old`."""
        if self.described is None:
            return f"- {self.name}"
        if self.running is None:
            forwards = ", ".join(map(_shown, self.described.forwards))
            return f"+ {self.name}: {forwards or 'its own forwards, or 8888'} on {self.described.host}"
        if self.replaced:
            before = " ".join((*self.running["options"], self.running["host"]))
            after = " ".join((*self.described.options, self.described.host))
            return f"~ {self.name}: goes to {after}, not {before}: down, and up again"
        parts = [f"+ {_shown(forward)}" for forward in self.added] + [f"- {listen}" for listen in self.removed]
        parts += [f"{field} = {_value(field, value)}" for field, value in self.upkeep.items()]
        return f"~ {self.name}: {', '.join(parts)}"


class Difference(NamedTuple):
    """`alone` are the tunnels that were brought up and aren't the file's."""

    changes: list[Change]
    alone: list[str]


def difference(described: Iterable[Described], running: Iterable[TunnelStatus], origin: str) -> Difference:
    """Between what the file `origin` describes and what runs.

    What is to be there is what starts at login, and what was brought up from that file. A tunnel that only
    programs hold goes with them: nobody has brought it up.
    """
    runs = {tunnel["name"]: tunnel for tunnel in running if any(forward["kept"] for forward in tunnel["forwards"])}
    ours = {name: tunnel for name, tunnel in runs.items() if tunnel["config"] == origin}
    wanted = {tunnel.name: tunnel for tunnel in described}
    changes = [Change(name, None, tunnel) for name, tunnel in ours.items() if name not in wanted]
    for name, tunnel in wanted.items():
        if name in ours:
            changes += _changes(tunnel, ours[name])
        elif name not in runs and tunnel.start is not Start.MANUAL:
            changes.append(Change(name, tunnel))
    return Difference(changes, [name for name in runs if name not in ours])


def _changes(tunnel: Described, runs: TunnelStatus) -> list[Change]:
    if (tunnel.host, list(tunnel.options)) != (runs["host"], list(runs["options"])):
        return [Change(tunnel.name, tunnel, runs, replaced=True)]
    before = {field: int(value) for field, value in runs["upkeep"].items() if isinstance(value, int)}
    change = Change(
        tunnel.name,
        tunnel,
        runs,
        added=_added(tunnel, runs["forwards"]),
        removed=_removed(tunnel, runs["forwards"]),
        upkeep={field: value for field, value in tunnel.whole_upkeep.items() if before.get(field) != value},
    )
    return [change] if change.added or change.removed or change.upkeep else []


def _added(tunnel: Described, runs: Sequence[ForwardStatus]) -> tuple[Forward, ...]:
    have = {asked(forward) for forward in runs if forward["kept"]}
    return tuple(forward for forward in tunnel.forwards if forward not in have)


def _removed(tunnel: Described, runs: Sequence[ForwardStatus]) -> tuple[str, ...]:
    """Where forwards listen that the file doesn't say. A notebook's, or a program's, is none of its business."""
    if not tunnel.forwards:
        return ()
    return tuple(
        forward["listen"]
        for forward in runs
        if forward["kept"] and not forward["notebook"] and asked(forward) not in tunnel.forwards
    )


def first_additions(change: Change) -> tuple[Forward, ...]:
    """The forwards to add before any is removed, where otherwise none would be left for a moment, and the
    connection would end: those that can stand beside what is there."""
    if not _loses_all(change):
        return ()
    assert change.running is not None
    taken = {one for forward in change.running["forwards"] for one in listeners(asked(forward))}
    return tuple(forward for forward in change.added if not taken & listeners(forward))


def stopgap(change: Change) -> Forward | None:
    """A forward that keeps the connection meanwhile where none of those to add can come first."""
    if not _loses_all(change) or not change.added or first_additions(change):
        return None
    return change.added[0]._replace(listen=Address("localhost"))


def _loses_all(change: Change) -> bool:
    return change.running is not None and 0 < len(change.running["forwards"]) <= len(change.removed)


def _shown(forward: Forward) -> str:
    flag = {Kind.LOCAL: "", Kind.REMOTE: "-R ", Kind.DYNAMIC: "-D "}[forward.kind]
    return f"{flag}{written(forward)}"


def _value(field: str, value: int) -> str:
    if field in ("hold_for", "idle"):
        return duration(value)
    if field == "mode":
        return shown_mode(value)
    return str(value) if field == "hold" else str(bool(value)).lower()
