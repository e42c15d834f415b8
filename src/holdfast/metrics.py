"""Tunnels as Prometheus reads them: the text exposition format 0.0.4. Pure.

The names follow OpenMetrics: base units, counters end in `_total`. What isn't known has no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from holdfast.control import ForwardStatus, TunnelStatus
from holdfast.events import STATES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Value = float | None
# The values of a metric's labels, in their order, and its own.
Sample = tuple[tuple[str, ...], Value]


class Metric(NamedTuple):
    """A family of samples, before there are any."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class OfTunnel(NamedTuple):
    metric: Metric
    value: Callable[[TunnelStatus], Value]


class OfForward(NamedTuple):
    metric: Metric
    value: Callable[[ForwardStatus], Value]


_TUNNEL = ("tunnel",)
_FORWARD = ("tunnel", "kind", "listen", "target")

BUILD = Metric("holdfast_build_info", "gauge", ("version",), "Always 1; the version is that of this holdfast")
KEEPER = Metric("holdfast_keeper_up", "gauge", (), "1 while a keeper runs: without one nobody watches the tunnels")
INFO = Metric("holdfast_tunnel_info", "gauge", ("tunnel", "host"), "Always 1; the host is as it was given to ssh")
STATE = Metric(
    "holdfast_tunnel_state",
    "gauge",
    ("tunnel", "state"),
    "1 for the state that the tunnel is in, 0 for each other",
)

TUNNELS = (
    OfTunnel(
        Metric("holdfast_tunnel_up", "gauge", _TUNNEL, "1 when the far side answered, and all its forwards work"),
        lambda tunnel: tunnel["state"] == "up",
    ),
    OfTunnel(
        Metric("holdfast_tunnel_rtt_seconds", "gauge", _TUNNEL, "The last round trip to the far side"),
        lambda tunnel: None if tunnel["rtt_ms"] is None else round(tunnel["rtt_ms"] / 1000, 9),
    ),
    OfTunnel(
        Metric(
            "holdfast_tunnel_drops_total",
            "counter",
            _TUNNEL,
            "Connections that were lost, or replaced for not answering",
        ),
        lambda tunnel: tunnel["drops"],
    ),
    OfTunnel(
        Metric("holdfast_tunnel_outages_total", "counter", _TUNNEL, "Times that it was not up, after it had been"),
        lambda tunnel: tunnel["outages"],
    ),
    OfTunnel(
        Metric(
            "holdfast_tunnel_down_seconds_total", "counter", _TUNNEL, "How long all its outages took that are over"
        ),
        lambda tunnel: tunnel["down_seconds"],
    ),
    OfTunnel(
        Metric("holdfast_tunnel_held_connections", "gauge", _TUNNEL, "Connections that wait for it to come back"),
        lambda tunnel: tunnel["held"],
    ),
    OfTunnel(
        Metric(
            "holdfast_tunnel_sent_bytes_total",
            "counter",
            _TUNNEL,
            "Bytes sent over the serving connection, by all who use it; starts anew with each connection",
        ),
        lambda tunnel: tunnel["sent_bytes"],
    ),
    OfTunnel(
        Metric(
            "holdfast_tunnel_received_bytes_total",
            "counter",
            _TUNNEL,
            "Bytes received over the serving connection, by all who use it; starts anew with each connection",
        ),
        lambda tunnel: tunnel["received_bytes"],
    ),
)
FORWARDS = (
    OfForward(
        Metric("holdfast_forward_up", "gauge", _FORWARD, "1 when the forward works"),
        lambda forward: forward["state"] == "up",
    ),
    OfForward(
        Metric("holdfast_forward_connections", "gauge", _FORWARD, "Connections that it carries just now"),
        lambda forward: forward["connections"],
    ),
    OfForward(
        Metric("holdfast_forward_leases", "gauge", _FORWARD, "Programs that hold it"),
        lambda forward: forward["leases"],
    ),
    OfForward(
        Metric("holdfast_forward_exposed", "gauge", _FORWARD, "1 when other machines can reach it"),
        lambda forward: forward["exposed"],
    ),
)
METRICS = (
    BUILD,
    KEEPER,
    INFO,
    STATE,
    *(metric for metric, _ in TUNNELS),
    *(metric for metric, _ in FORWARDS),
)


def exposition(tunnels: Sequence[TunnelStatus] | None, version: str) -> str:
    """The text that tells of these tunnels; None: no keeper runs. `version` is holdfast's own."""
    known = tunnels or ()
    lines = [
        *_family(BUILD, [((version,), 1)]),
        *_family(KEEPER, [((), tunnels is not None)]),
        *_family(INFO, [((tunnel["name"], tunnel["host"]), 1) for tunnel in known]),
        *_family(STATE, (sample for tunnel in known for sample in _states(tunnel))),
    ]
    for metric, of_tunnel in TUNNELS:
        lines += _family(metric, (((tunnel["name"],), of_tunnel(tunnel)) for tunnel in known))
    ends = [(_ends(tunnel["name"], forward), forward) for tunnel in known for forward in tunnel["forwards"]]
    for metric, of_forward in FORWARDS:
        lines += _family(metric, ((labels, of_forward(forward)) for labels, forward in ends))
    return "".join(f"{line}\n" for line in lines)


def _states(tunnel: TunnelStatus) -> Iterator[Sample]:
    for state in dict.fromkeys((*STATES, tunnel["state"])):
        yield (tunnel["name"], state), state == tunnel["state"]


def _ends(name: str, forward: ForwardStatus) -> tuple[str, ...]:
    return name, forward["kind"], forward["listen"], forward["target"] or ""


def _family(metric: Metric, samples: Iterable[Sample]) -> list[str]:
    """The lines of one metric; none when it has no sample. Of samples with the same labels the last one counts:
    Prometheus refuses all when two are alike (two remote forwards whose ports aren't known yet)."""
    known = {labels: value for labels, value in samples if value is not None}
    if not known:
        return []
    return [
        f"# HELP {metric.name} {metric.help}",
        f"# TYPE {metric.name} {metric.kind}",
        *(f"{metric.name}{_label_set(metric, labels)} {_number(value)}" for labels, value in known.items()),
    ]


def _label_set(metric: Metric, values: tuple[str, ...]) -> str:
    named = zip(metric.labels, values, strict=True)
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in named)
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return f"{value:.16g}"
