"""`python -m bench.herd [--write docs/politeness.md]`: a thousand keepers whose bastion goes away and comes back.

A simulation: holdfast's own policy (keeper/states.py) against a model of sshd with its default limits, on a clock
of its own. Nothing is connected to, and the same seed gives the same figures.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from enum import Enum
from math import ceil
from pathlib import Path
from random import Random
from typing import NamedTuple

from bench.herd_plot import Panel, plot
from bench.report import table
from holdfast.keeper.states import CONNECT_TIMEOUT, RENEWAL, connect_patience, retry_delay
from holdfast.openssh.diagnose import Remedy
from holdfast.openssh.heartbeat import PACE

# All times are in seconds.
ROUND_TRIP = 0.030
# From the banner to "authenticated": key exchange, service, the key offered, the key signed.
ROUND_TRIPS = 5
# When TCP repeats a SYN that nobody answered; in 15 s there are no others.
SYNS = (0.0, 1.0, 3.0, 7.0)
# A connection repeats what was lost after this, then after twice as long each time.
FIRST_REPEAT = 0.2
# The longest that ssh takes from its start to its SYN.
START_UP = 0.05
# The server's CPU time for a login, measured with OpenSSH 9.2 (10.5): 7 (8) ms until the banner, 23 (18) for
# `ssh -N`, 28 (22) with a session. Where among them authentication ends is a guess, as is what it costs to turn a
# connection away.
BANNER, EXCHANGE, SESSION, TURNING_AWAY = 0.007, 0.012, 0.009, 0.0002
# sshd_config(5), the defaults: MaxStartups 10:30:100, PerSourcePenalties noauth:1s min:15s max:600s.
CROWD, RATE, FULL = 10, 30, 100
NO_AUTHENTICATION, ENFORCED_FROM, LONGEST_PENALTY = 1.0, 15.0, 600.0
# The end of the simulation.
LAST = 1800.0
# A connection that nobody disturbs is unauthenticated for so long; so many each second make a crowd.
HANDSHAKE = BANNER + EXCHANGE + (1 + ROUND_TRIPS) * ROUND_TRIP
CROWDING = CROWD / HANDSHAKE
# What the page has between.
BEGIN, END = "<!-- simulated: begin -->", "<!-- simulated: end -->"

# What a process of the simulation yields: the seconds for which it sleeps, or None to sleep until it is started.
Pauses = Generator[float | None, None, None]


class Reception(Enum):
    """What becomes of a SYN sent to the bastion."""

    SILENCE = "nobody answers"
    REFUSAL = "the kernel refuses it: sshd doesn't listen"
    SSHD = "sshd accepts the connection"


class Scenario(NamedTuple):
    """What happens to the bastion, from 0 on."""

    name: str
    # Until when it receives how; then sshd listens.
    phases: tuple[tuple[float, Reception], ...] = ()
    # Whether all sessions are reset at 0. Otherwise nothing comes from them any more.
    resets: bool = False
    # Whether silent sessions go on when the silence is over.
    spares_sessions: bool = False

    @property
    def over_at(self) -> float:
        return self.phases[-1][0] if self.phases else 0.0


SCENARIOS = (
    Scenario("reboot", ((20, Reception.SILENCE), (25, Reception.REFUSAL)), resets=True),
    Scenario("sshd restarted", ((10, Reception.REFUSAL),), resets=True),
    Scenario("power cut", ((60, Reception.SILENCE), (63, Reception.REFUSAL))),
    Scenario("network cut", ((30, Reception.SILENCE),), spares_sessions=True),
    Scenario("sessions killed", resets=True),
)


class Policy(NamedTuple):
    """How a client notices a loss, and when it tries again."""

    name: str
    # Between signs of life, and how long the answer to one may take.
    pace: float
    deadline: float
    # What failed, how often in a row, a number from 0 up to 1, the time since the last sign of life: the seconds
    # until the next try.
    delay: Callable[[Remedy, int, float, float], float]
    # The seconds that a SYN may stay unanswered, so long after the last sign of life.
    patience: Callable[[float], float]


HOLDFAST = Policy("holdfast", PACE, 1.0, retry_delay, connect_patience)
# `while :; do ssh -o ServerAliveInterval=15 -o ConnectTimeout=15 ...; sleep 1; done`: whatever happened, a second.
LOOP = Policy("restart loop", 15.0, 45.0, lambda *_: 1.0, lambda _: CONNECT_TIMEOUT)


class Herd(NamedTuple):
    """Who loses the bastion, and what it runs on."""

    keepers: int = 1000
    # Links of each keeper that lead through the bastion.
    links: int = 1
    # Whether all come from one address (NAT): that is what penalties go by.
    shares_address: bool = True
    cores: int = 4
    # How many times as long as on the machine that was measured everything takes its CPUs.
    slowness: float = 1.0


class Figures(NamedTuple):
    """What came of it."""

    # When connections reached sshd, and those of them that it turned away for MaxStartups or a penalty.
    arrivals: list[float]
    turned_away: int
    banned: int
    penalties: int
    # When somebody was authenticated, and when links were back: logged in, or their old session went on.
    logins: list[float]
    back: list[float]
    most_unauthenticated: int
    # Seconds in which a stranger risked being turned away, and in which work waited for a CPU.
    crowded: float
    saturated: float

    @property
    def busiest_second(self) -> int:
        return max(per_second(self.arrivals).values(), default=0)

    def back_at(self, share: float) -> float:
        """When this share of the links that came back was back."""
        return sorted(self.back)[ceil(share * len(self.back)) - 1]


class Clock:
    """Runs processes in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.running: Pauses | None = None
        self._due: list[tuple[float, int, Pauses]] = []
        self._order = itertools.count()

    def start(self, process: Pauses, after: float = 0.0) -> None:
        """Runs `process`, or goes on with it, `after` seconds from now."""
        heapq.heappush(self._due, (self.now + after, next(self._order), process))

    def run(self) -> None:
        while self._due and self._due[0][0] <= LAST:
            self.now, _, self.running = heapq.heappop(self._due)
            pause = next(self.running, None)
            if pause is not None:
                self.start(self.running, pause)


class Gate:
    """One handshake at a time, first come, first served: what keeper/link.py grants to each first hop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_taken = False
        self._waiting: deque[Pauses] = deque()

    def enter(self) -> Pauses:
        if self._is_taken:
            assert self._clock.running is not None
            self._waiting.append(self._clock.running)
            yield None
        self._is_taken = True

    def leave(self) -> None:
        if self._waiting:  # it stays taken, by the next
            self._clock.start(self._waiting.popleft())
        else:
            self._is_taken = False


class Bastion:
    """A machine with sshd, its limits at their defaults, and what it has seen."""

    def __init__(self, clock: Clock, random: Random, scenario: Scenario, herd: Herd) -> None:
        self.arrivals: list[float] = []
        self.logins: list[float] = []
        self.turned_away = self.banned = self.penalties = self.most_unauthenticated = 0
        self.crowded = self.saturated = 0.0
        self._clock = clock
        self._random = random
        self._phases = scenario.phases
        self._slowness = herd.slowness
        self._cores_free_at = [0.0] * herd.cores
        self._saturated_until = 0.0
        self._unauthenticated = 0
        self._counted_at = 0.0
        # For each address: when its penalty ends, and whether it is enforced.
        self._penalties: dict[int, tuple[float, bool]] = {}

    def reception(self) -> Reception:
        now = self._clock.now
        return next((reception for until, reception in self._phases if now < until), Reception.SSHD)

    def accept(self, address: int) -> bool:
        """Whether sshd lets the new connection begin."""
        self.arrivals.append(self._clock.now)
        ends, is_enforced = self._penalties.get(address, (0.0, False))
        is_banned = is_enforced and ends >= self._clock.now
        if is_banned or self._drops_early():
            self.banned += is_banned
            self.turned_away += 1
            self.work(TURNING_AWAY)
            return False
        self._count_unauthenticated(1)
        return True

    def work(self, seconds: float) -> float:
        """Gives so much work to the next free CPU. Returns the seconds until it is done."""
        now, starts = self._clock.now, max(self._clock.now, self._cores_free_at[0])
        ends = starts + seconds * self._slowness
        heapq.heapreplace(self._cores_free_at, ends)
        self.saturated += max(0.0, starts - max(now, self._saturated_until))
        self._saturated_until = max(self._saturated_until, starts)
        return ends - now

    def authenticate(self) -> None:
        self._count_unauthenticated(-1)
        self.logins.append(self._clock.now)
        self.work(SESSION)

    def hang_up(self, address: int) -> None:
        """The client has gone before it was authenticated: the only thing here that costs a penalty."""
        self._count_unauthenticated(-1)
        self.penalties += 1
        now = self._clock.now
        ends, is_enforced = self._penalties.get(address, (0.0, False))
        is_enforced = is_enforced and ends >= now
        ends = min(max(ends, now) + NO_AUTHENTICATION, now + LONGEST_PENALTY)
        self._penalties[address] = (ends, is_enforced or ends - now > ENFORCED_FROM)

    def _drops_early(self) -> bool:
        """MaxStartups: from RATE percent at CROWD connections, in a straight line, to all at FULL."""
        if self._unauthenticated < CROWD:
            return False
        return self._random.random() * 100 < RATE + (100 - RATE) * (self._unauthenticated - CROWD) / (FULL - CROWD)

    def _count_unauthenticated(self, change: int) -> None:
        if self._unauthenticated >= CROWD:
            self.crowded += self._clock.now - self._counted_at
        self._counted_at = self._clock.now
        self._unauthenticated += change
        self.most_unauthenticated = max(self.most_unauthenticated, self._unauthenticated)


class Link:
    """A keeper's link through the bastion, which was up before 0. `back_at` is when it is so again."""

    def __init__(self, bastion: Bastion, clock: Clock, random: Random, gate: Gate, address: int) -> None:
        self.back_at: float | None = None
        self._bastion = bastion
        self._clock = clock
        self._random = random
        self._gate = gate
        self._address = address
        self._heard_at = 0.0
        self._session_back_at = LAST

    def keep(self, scenario: Scenario, policy: Policy) -> Pauses:
        """Notices the loss, and tries until the link is back."""
        self._heard_at = -policy.pace * self._random.random()
        lost_at = self._heard_at + policy.pace
        if scenario.spares_sessions:
            self._session_back_at = _first_repeat(lost_at, scenario.over_at)
        failures = 0
        remedy: Remedy | None = Remedy.RETRY
        if not scenario.resets:
            yield lost_at + policy.deadline
            remedy = yield from self._try(policy)
        while remedy is not None and self._clock.now < self._session_back_at:
            failures += 1
            silence = self._clock.now - self._heard_at
            delay = policy.delay(remedy, failures, self._random.random(), silence)
            yield min(delay, self._session_back_at - self._clock.now)
            if self._clock.now < self._session_back_at:
                remedy = yield from self._try(policy)
        self.back_at = min(self._clock.now, self._session_back_at)

    def _try(self, policy: Policy) -> Generator[float | None, None, Remedy | None]:
        """One try, in its turn. Returns what can help, or None when it has logged in."""
        yield from self._gate.enter()
        try:
            return (yield from self._log_in(policy))
        finally:
            self._gate.leave()

    def _log_in(self, policy: Policy) -> Generator[float | None, None, Remedy | None]:
        deadline = yield from self._connect(policy)
        if isinstance(deadline, Remedy):
            return deadline
        if not self._bastion.accept(self._address):
            yield ROUND_TRIP
            return Remedy.RETRY_MUCH_LATER
        banner = self._bastion.work(BANNER) + ROUND_TRIP
        if self._clock.now + banner > deadline:
            yield deadline - self._clock.now
            self._bastion.hang_up(self._address)
            return Remedy.RETRY_LATER
        yield banner
        yield self._bastion.work(EXCHANGE) + ROUND_TRIPS * ROUND_TRIP
        self._bastion.authenticate()
        return None

    def _connect(self, policy: Policy) -> Generator[float | None, None, float | Remedy]:
        """Sends SYNs, anew for as long as the policy is impatient. Returns by when the banner must have come."""
        while self._clock.now < self._session_back_at:
            yield START_UP * self._random.random()
            began = self._clock.now
            # What silence will be, if none of these is answered either.
            patience = policy.patience(began - self._heard_at + RENEWAL)
            for pause in _pauses(sent for sent in SYNS if sent < patience):
                yield pause
                reception = self._bastion.reception()
                if reception is not Reception.SILENCE:
                    yield ROUND_TRIP
                    return began + CONNECT_TIMEOUT if reception is Reception.SSHD else Remedy.RETRY_REFUSED
            yield began + patience - self._clock.now
            if patience >= CONNECT_TIMEOUT:
                break
        return Remedy.RETRY


def _pauses(times: Iterable[float]) -> list[float]:
    """The seconds from each of `times` to the next, the first from 0."""
    moments = list(times)
    return [after - before for before, after in zip([0.0, *moments], moments, strict=False)]


def _first_repeat(lost_at: float, over_at: float) -> float:
    """When TCP brings through what was sent at `lost_at`, nothing having come through before `over_at`."""
    wait = 0.0
    while lost_at + wait < over_at:
        wait = 2 * wait + FIRST_REPEAT
    return lost_at + wait


def simulate(scenario: Scenario, policy: Policy = HOLDFAST, herd: Herd = Herd(), seed: int = 1) -> Figures:  # noqa: B008
    clock, random = Clock(), Random(seed)
    bastion = Bastion(clock, random, scenario, herd)
    links = []
    for keeper in range(herd.keepers):
        gate = Gate(clock)
        for _ in range(herd.links):
            link = Link(bastion, clock, random, gate, address=0 if herd.shares_address else keeper)
            links.append(link)
            clock.start(link.keep(scenario, policy))
    clock.run()
    return Figures(
        arrivals=bastion.arrivals,
        turned_away=bastion.turned_away,
        banned=bastion.banned,
        penalties=bastion.penalties,
        logins=bastion.logins,
        back=[link.back_at for link in links if link.back_at is not None],
        most_unauthenticated=bastion.most_unauthenticated,
        crowded=bastion.crowded,
        saturated=bastion.saturated,
    )


def per_second(times: Iterable[float]) -> Counter[int]:
    """How many of `times` are in each second."""
    return Counter(int(time) for time in times)


# Who is shown: what its rows are called, and what is simulated.
CASES = (
    (HOLDFAST.name, HOLDFAST, Herd()),
    ("holdfast, 5 links each", HOLDFAST, Herd(links=5)),
    ("holdfast, 100 keepers", HOLDFAST, Herd(keepers=100)),
    ("holdfast, a slow bastion", HOLDFAST, Herd(cores=1, slowness=4.0)),
    (LOOP.name, LOOP, Herd()),
)
HEADER = (
    "bastion",
    "clients",
    "connections, busiest second",
    "turned away, per link",
    "unauthenticated at once",
    "s crowded",
    "s short of CPU",
    "penalties",
    "logins",
    "half back after, s",
    "95 %",
    "all",
)


def row(scenario: Scenario, clients: str, found: Figures) -> list[str]:
    """A row of the table. Being back is counted from when the bastion is."""
    back = [f"{found.back_at(share) - scenario.over_at:.1f}" for share in (0.5, 0.95, 1.0)]
    return [
        scenario.name,
        clients,
        f"{found.busiest_second:,}",
        f"{found.turned_away / len(found.back):.2f}",
        str(found.most_unauthenticated),
        f"{found.crowded:.1f}",
        f"{found.saturated:.1f}",
        str(found.penalties),
        f"{len(found.logins):,}",
        *back,
    ]


def panel_of(scenario: Scenario, ours: Figures, loop: Figures) -> Panel:
    return Panel(scenario.name, scenario.over_at, per_second(ours.arrivals), per_second(loop.arrivals))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.herd", description=__doc__)
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="update the table in FILE, and the plot beside it"
    )
    given = parser.parse_args()
    rows, panels = [], []
    for scenario in SCENARIOS:
        found = {clients: simulate(scenario, policy, herd) for clients, policy, herd in CASES}
        rows += [row(scenario, clients, figures) for clients, figures in found.items()]
        panels.append(panel_of(scenario, found[HOLDFAST.name], found[LOOP.name]))
    text = table(HEADER, rows)
    print(text)
    if given.write:
        _replace_table(given.write, text)
        given.write.with_suffix(".svg").write_text(plot(panels, CROWDING))
    return 0


def _replace_table(page: Path, text: str) -> None:
    before, _, rest = page.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} has no {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
