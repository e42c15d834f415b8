"""`python -m bench.gap`: what a hand-over of a port costs those who connect in that very moment.

Separate processes connect all the time, to one address and, as browsers do, to either of `localhost`'s, while the
port goes to and fro between a master and its guard. The gap is how long nobody listens, from the share refused.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.hammer import PACE, Count, Hammer, service
from tests.lone_link import LoneLink, until
from tests.sshd import free_port

from bench.rig import rig

ROUNDS, KILLS = 200, 20
# Seconds for which each side has the port.
TURN = 0.1
ONE_ADDRESS, LOCALHOST = ("127.0.0.1",), ("::1", "127.0.0.1")


@dataclass
class Kind:
    """Hand-overs of one kind: when each began and ended."""

    title: str
    spans: list[tuple[float, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.spans.append((began, time.monotonic()))

    def among(self, times: Sequence[float]) -> int:
        """How many of `times` fall into one of them."""
        return sum(any(began <= moment <= ended for began, ended in self.spans) for moment in times)

    def gap(self, refused: int) -> float:
        """Microseconds in which nobody listens, on the average: `refused` clients, 1 / PACE apart, came then."""
        return refused / len(self.spans) / PACE * 1e6 if self.spans else 0.0


async def hand_over(lone: LoneLink, rounds: int, kills: int) -> list[Kind]:
    """Every kind of hand-over, again and again."""
    kinds = to_master, to_guard, from_killed = (
        Kind("guard to master"),
        Kind("master to guard"),
        Kind("killed master to guard"),
    )
    for _ in range(rounds):
        with to_guard.timed():
            await lone.give_to_guards()
        await asyncio.sleep(TURN)
        with to_master.timed():
            await lone.give_to_master()
        await asyncio.sleep(TURN)
    for _ in range(kills):
        await kill(lone, from_killed)
    return list(kinds)


async def kill(lone: LoneLink, kind: Kind) -> None:
    """Kills the serving master, and has another one serve."""
    serving = lone.link.serving
    assert serving is not None
    assert serving.master is not None
    with kind.timed():
        os.kill(serving.master.pid, signal.SIGKILL)
        await until(lambda: lone.is_held, "the guard to listen")
    lone.link.serving = None
    await lone.serve()


def measure(rounds: int, kills: int, hosts: Sequence[str], listen: str) -> tuple[list[Kind], Count]:
    port = free_port()
    with rig() as made, service() as target, contextlib.ExitStack() as hammers:
        os.environ["HOLDFAST_RUNTIME_DIR"] = str(made.home / "r")
        os.environ["HOLDFAST_STATE_DIR"] = str(made.home / "s")

        async def run() -> tuple[list[Kind], Count]:
            async with LoneLink(made.sshd.config, f"{listen}:{port}:127.0.0.1:{target}") as lone:
                await lone.serve()
                hammer = hammers.enter_context(Hammer(port, *hosts))
                kinds = await hand_over(lone, rounds, kills)
                return kinds, await asyncio.to_thread(hammer.stop)

        return asyncio.run(run())


def table(title: str, kinds: Sequence[Kind], count: Count) -> str:
    lines = [f"{title}: {count.connections} connections, {count.greeted} greeted"]
    for kind in kinds:
        refused, reset = kind.among(count.refused), kind.among(count.reset)
        lines.append(
            f"  {len(kind.spans):4} x {kind.title:24} {refused:4} refused {reset:4} reset"
            f" {kind.gap(refused):7.0f} us"
        )
    failed = len(count.refused) + len(count.reset)
    lines.append(
        f"  in all {len(count.refused)} refused, {len(count.reset)} reset:"
        f" {1000 * failed / count.connections:.2f} per thousand"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gap", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kills", type=int, default=KILLS)
    given = parser.parse_args()
    for title, hosts, listen in (
        ("127.0.0.1", ONE_ADDRESS, "127.0.0.1"),
        ("localhost", LOCALHOST, "localhost"),
    ):
        print(table(title, *measure(given.rounds, given.kills, hosts, listen)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
