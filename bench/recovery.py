"""How long the network's return takes to reach the user, and what is lost meanwhile: holdfast beside its peers.

Every contender runs on the same client and loses the same network at the same instant.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.network import Network, why_not
from tests.sshd import free_port, wait_for

from bench.contenders import Way, ways
from bench.recovery_load import EVERY, Load, Outcome, Request, load
from bench.recovery_plot import Lane, Panel, draw
from bench.recovery_rig import rig_apart
from bench.report import DISTURBED, Goal, Section, at_most, median, spread
from bench.rig import Holdfast, Rig, listens

ROUNDS = 1
# Seconds: of peace before a fault, of outage, that are granted after it, and for which one more answer is watched.
BEFORE, OUTAGE, GRANTED, AFTER = 3.0, 30.0, 120.0, 5.0
# Seconds after which an answer is called late.
LATE = 1.0
KEEPALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ExitOnForwardFailure=yes")
AUTOSSH = {"AUTOSSH_GATETIME": "0", "AUTOSSH_POLL": "60"}
HOLDFAST = "holdfast"


@dataclass(frozen=True)
class Fault:
    """What happens to the network, for how many seconds, and within how many more holdfast should answer again."""

    title: str
    strike: Callable[[Network], object]
    end: Callable[[Network], object] | None = None
    lasts: float = 0.0
    goal: float | None = None


FAULTS = (
    Fault(f"A {OUTAGE:.0f} s cable cut", Network.cut, Network.mend, OUTAGE, goal=2),
    Fault(f"A {OUTAGE:.0f} s silent drop on the way", Network.drop, Network.pass_again, OUTAGE),
    Fault("A changed client address", Network.change_address, goal=3),
    Fault("A killed server session", Network.kill_sessions, goal=0.5),
)


@dataclass(frozen=True)
class Outage:
    """One fault, lived through by all contenders at once. Times as the requests have them."""

    fault: Fault
    struck: float
    back: float
    requests: dict[str, list[Request]]


@dataclass(frozen=True)
class Loss:
    """What a fault cost the users of one contender."""

    requests: int
    again: float
    """Seconds from the network's return to the first answer to a request that began after it; infinite: none."""
    first: float
    """The same, to the first answer to any request."""
    refused: int
    broken: int
    unanswered: int
    late: int
    longest: float
    """Seconds that the slowest answer took."""


def measure(rounds: int = ROUNDS) -> list[Section]:
    """A section for each fault. Raises SystemExit where there are no network namespaces."""
    if reason := why_not():
        raise SystemExit(f"bench: recovery: {reason}")
    was_busy = os.getloadavg()[0] > 1
    sections, last, missing = [], [], set[str]()
    for fault in FAULTS:
        outages = []
        for number in range(rounds):
            print(f"bench: recovery: {fault.title}, round {number + 1} of {rounds}", file=sys.stderr)
            outage, lost = _live_through(fault)
            outages.append(outage)
            missing.update(lost)
        sections.append(_section(fault, outages))
        last.append(outages[-1])
    sections[-1].remarks += [f"Not in this run: {reason}." for reason in sorted(missing)]
    if was_busy:
        sections[-1].remarks.append(DISTURBED.strip())
    sections[0].picture = draw([_panel(outage) for outage in last])
    return sections


def loss(outage: Outage, name: str) -> Loss:
    requests = outage.requests[name]
    answered = [request for request in requests if request.outcome is Outcome.ANSWERED]
    waits = [request.waited for request in answered]
    counts = {outcome: sum(request.outcome is outcome for request in requests) for outcome in Outcome}
    return Loss(
        requests=len(requests),
        again=_first_end(request for request in answered if request.began >= outage.back) - outage.back,
        first=_first_end(request for request in answered if request.ended >= outage.back) - outage.back,
        refused=counts[Outcome.REFUSED],
        broken=counts[Outcome.BROKEN],
        unanswered=counts[Outcome.UNANSWERED],
        late=sum(wait > LATE for wait in waits),
        longest=max(waits, default=math.inf),
    )


def _first_end(requests: Iterator[Request]) -> float:
    return min((request.ended for request in requests), default=math.inf)


def _live_through(fault: Fault) -> tuple[Outage, list[str]]:
    """The outage; and which contenders aren't in it, and why."""
    with rig_apart() as (network, rig):
        ports, missing = _start_contenders(network, rig)
        network.client.call(_keep_off_the_ports)
        with load(network.client, ports) as asked:
            _wait_for_answers(asked, ports)
            struck, back = _suffer(fault, network)
            _wait_until_all_answer(asked, ports, back)
        return Outage(fault, struck, back, {name: asked.requests(name) for name in ports}), missing


def _suffer(fault: Fault, network: Network) -> tuple[float, float]:
    """When it began, and when the network was back."""
    struck = time.monotonic()
    fault.strike(network)
    if fault.end is None:
        return struck, struck
    time.sleep(struck + fault.lasts - time.monotonic())
    back = time.monotonic()
    fault.end(network)
    return struck, back


def _start_contenders(network: Network, rig: Rig) -> tuple[dict[str, int], list[str]]:
    """Their ports on the client; and which aren't there, and why. Without holdfast there is nothing to measure."""
    target = network.server.call(lambda: rig.serve("whole"))
    contenders, missing = _contenders(rig)
    ports = {}
    for name, way in contenders.items():
        try:
            ports[name] = network.client.call(partial(way, rig, target))
        except (RuntimeError, AssertionError) as error:
            if name == HOLDFAST:
                raise
            missing.append(f"{name} could not be measured: {error}")
    return ports, missing


def _contenders(rig: Rig) -> tuple[dict[str, Way], list[str]]:
    """Those of the other benchmarks that try again by themselves, set as their users set them."""
    found, missing = ways(Holdfast(rig, "a"))
    contenders: dict[str, Way] = {HOLDFAST: found[HOLDFAST], "ssh, started again": _ssh_in_a_loop}
    if "autossh" in found:
        contenders["autossh"] = _autossh
    if "boring" in found:
        contenders["boring"] = found["boring"]
    return contenders, missing


def _autossh(rig: Rig, target: int) -> int:
    port = free_port()
    rig.start(["autossh", "-M", "0", *rig.ssh[1:], *_forwarding(port, target)], **AUTOSSH)
    return _ready(port, "autossh")


def _ssh_in_a_loop(rig: Rig, target: int) -> int:
    port = free_port()
    rig.start(["sh", "-c", 'while :; do "$@"; sleep 1; done', "sh", *rig.ssh, *_forwarding(port, target)])
    return _ready(port, "ssh")


def _forwarding(port: int, target: int) -> list[str]:
    return ["-NT", *KEEPALIVE, "-L", f"127.0.0.1:{port}:127.0.0.1:{target}", "lab"]


def _ready(port: int, who: str) -> int:
    wait_for(lambda: listens(port), f"{who} to listen")
    return port


def _keep_off_the_ports() -> None:
    """Connections get local ports from elsewhere: one could sit on a port that a contender wants to have back."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("10000 32000")


def _wait_for_answers(asked: Load, names: Iterable[str]) -> None:
    """Until each contender has answered for a while. Raises RuntimeError when one of them never does."""
    enough = BEFORE / EVERY
    if not _comes_true(lambda: all(len(_answered(asked, name)) >= enough for name in names), 20):
        counts = {name: len(_answered(asked, name)) for name in names}
        raise RuntimeError(f"not everybody answers before the fault: {counts}")


def _wait_until_all_answer(asked: Load, names: Iterable[str], back: float) -> None:
    """Until each contender has answered a request of after the outage, and a little longer; not for ever."""

    def all_answer() -> bool:
        return all(any(request.began >= back for request in _answered(asked, name)) for name in names)

    end = back + GRANTED
    _comes_true(all_answer, end - time.monotonic())
    time.sleep(max(0.0, min(AFTER, end - time.monotonic())))


def _answered(asked: Load, name: str) -> list[Request]:
    return [request for request in asked.requests(name) if request.outcome is Outcome.ANSWERED]


def _comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it does within `seconds`. Looks seldom: to look takes time from those who are measured."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.25)
    return found


def _section(fault: Fault, outages: Sequence[Outage]) -> Section:
    losses = {name: [loss(outage, name) for outage in outages] for name in outages[0].requests}
    ours = losses[HOLDFAST]
    section = Section(fault.title)
    if fault.goal is not None:
        again = [each.again for each in ours]
        section.goals.append(at_most(f"{fault.title}: holdfast answers again after", again, fault.goal, "s"))
    refused = sum(each.refused for each in ours)
    lost = sum(each.broken + each.unanswered for each in ours)
    section.goals += [
        Goal(f"{fault.title}: refused by holdfast", refused, "", 0, False, "requests"),
        Goal(f"{fault.title}: broken or unanswered through holdfast", lost, "", 0, False, "requests"),
    ]
    section.header = [
        "through",
        "again after, s",
        "min - max",
        "any answer after, s",
        "requests",
        "refused",
        "broken",
        "unanswered",
        "late",
        "longest wait, s",
    ]
    section.rows = [_row(name, found) for name, found in losses.items()]
    return section


def _row(name: str, losses: Sequence[Loss]) -> list[str]:
    again = [each.again for each in losses]
    counts = ("requests", "refused", "broken", "unanswered", "late")
    return [
        name,
        median(again),
        spread(again),
        median([each.first for each in losses]),
        *(f"{sum(getattr(each, count) for each in losses):,}" for count in counts),
        median([max(each.longest for each in losses)]),
    ]


def _panel(outage: Outage) -> Panel:
    """The outage as a picture, its time counted from the fault."""
    lanes = [
        Lane(name, [(request.began - outage.struck, request.waited, request.outcome) for request in requests])
        for name, requests in outage.requests.items()
    ]
    return Panel(outage.fault.title, outage.back - outage.struck, lanes)
