"""`python -m bench [--write FILE]`: measures holdfast beside its peers, and says which goals are met.

Recovery is measured when it is asked for (`--only recovery`): its outages take minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import commands, idle, notebooks, programs, recovery, report, requests, screen, throughput
from bench.report import Section
from bench.rig import holdfast, rig


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="update the tables in FILE, too")
    parser.add_argument("--only", choices=(*PARTS, RECOVERY), help="part of it")
    parser.add_argument("--rounds", type=int, default=recovery.ROUNDS, help="of recovery (%(default)s)")
    given = parser.parse_args()
    began = time.monotonic()
    if os.getloadavg()[0] > 1:
        print("bench: this machine is busy: the figures will be worse than they should be", file=sys.stderr)
    sections = measure(given.only, given.rounds)
    print(report.as_text(sections))
    if given.write:
        report.write(given.write, sections)
    missed = [goal.what for section in sections for goal in section.goals if not goal.met]
    print(f"bench: {time.monotonic() - began:.0f} s; goals missed: {'; '.join(missed) or 'none'}", file=sys.stderr)
    return 0


def measure(only: str | None, rounds: int) -> list[Section]:
    if only == RECOVERY:
        return recovery.measure(rounds)
    sections = []
    for name, part in PARTS.items():
        if only in (None, name):
            print(f"bench: {name}", file=sys.stderr)
            sections += part()
    return sections


def _requests() -> list[Section]:
    with rig() as made, holdfast(made, "a") as one:
        return requests.measure(made, one)


def _throughput() -> list[Section]:
    with rig() as made, holdfast(made, "a") as one:
        return throughput.measure(made, one)


def _commands() -> list[Section]:
    with rig() as made, holdfast(made, "a") as one, holdfast(made, "b") as many:
        target = made.serve("pieces")
        commands.fill(many, target)
        return [*commands.measure(made, one, many, target), *idle.measure(many)]


def _notebooks() -> list[Section]:
    with rig() as made, holdfast(made, "a") as one:
        return notebooks.measure(made, one)


def _programs() -> list[Section]:
    with rig() as made, holdfast(made, "a") as one:
        return programs.measure(made, one, made.serve("pieces"))


def _screen() -> list[Section]:
    with rig() as made, holdfast(made, "a") as one:
        commands.fill(one, made.serve("pieces"), hosts=5)
        return screen.measure(one)


PARTS: dict[str, Callable[[], list[Section]]] = {
    "requests": _requests,
    "throughput": _throughput,
    "commands": _commands,
    "notebooks": _notebooks,
    "programs": _programs,
    "idle": idle.measure_links,
    "screen": _screen,
}
RECOVERY = "recovery"


if __name__ == "__main__":
    sys.exit(main())
