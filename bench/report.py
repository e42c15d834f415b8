"""Figures as tables: printed, and written between the markers of a page, with their picture beside it."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.sshd import SSHD

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

DISTURBED = (
    " **Other programs used the CPUs meanwhile**: times are longer, and spreads wider, than on an idle machine."
)


@dataclass(frozen=True)
class Goal:
    """A figure that is aimed at, and what was found."""

    what: str
    found: float
    spread: str
    bound: float
    at_least: bool
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    def row(self) -> list[str]:
        sign = "at least" if self.at_least else "at most"
        return [
            self.what,
            _figure(self.found, self.unit),
            self.spread,
            f"{sign} {self.bound:g} {self.unit}",
            "yes" if self.met else "**no**",
        ]


@dataclass
class Section:
    """One measurement: its goals, and the figures they come from."""

    title: str
    goals: list[Goal] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    picture: str = ""
    """An SVG, for the page that it is written to."""


def ratio(what: str, one: Sequence[float], other: Sequence[float], bound: float, *, at_least: bool = True) -> Goal:
    """The median of the rounds' own ratios: what disturbs a round disturbs both of its sides."""
    ratios = [mine / theirs for mine, theirs in zip(one, other, strict=True)]
    return Goal(what, statistics.median(ratios), spread(ratios), bound, at_least)


def at_most(what: str, values: Sequence[float], bound: float, unit: str) -> Goal:
    return Goal(what, statistics.median(values), spread(values), bound, at_least=False, unit=unit)


def spread(values: Sequence[float]) -> str:
    return f"{_short(min(values))} - {_short(max(values))}" if len(values) > 1 else ""


def median(values: Sequence[float]) -> str:
    return _short(statistics.median(values))


def as_text(sections: Sequence[Section]) -> str:
    goals = [goal.row() for section in sections for goal in section.goals]
    parts = [machine(), table(["measured", "median", "min - max", "goal", "met"], goals)]
    for section in sections:
        parts.append(f"### {section.title}")
        if section.rows:
            parts.append(table(section.header, section.rows))
        parts += section.remarks
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def machine() -> str:
    """What it was measured on."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.partition(",")[0]
    system = platform.system()
    if sys.platform == "linux":
        system = platform.freedesktop_os_release().get("PRETTY_NAME", system)
    return (
        f"Measured on {os.cpu_count()} CPUs ({platform.machine()}), {system}, {ssh}, sshd {_sshd_version()}, "
        + (f"Python {platform.python_version()}; everything on this one machine, in one run.")
    )


def write(path: Path, sections: Sequence[Section]) -> None:
    """Replaces what stands between the markers in the file at `path`, and the picture of that name beside it."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{path} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n\n{as_text(sections)}\n{END}{after}")
    for section in sections:
        if section.picture:
            path.with_suffix(".svg").write_text(section.picture)


def _sshd_version() -> str:
    said = subprocess.run([SSHD, "-V"], capture_output=True, text=True, check=False).stderr
    found = [word for word in said.split() if word.startswith("OpenSSH_")]
    return found[0].removeprefix("OpenSSH_").rstrip(",") if found else "of unknown version"


def _figure(value: float, unit: str) -> str:
    return _short(value) if math.isinf(value) else f"{_short(value)} {unit}"


def _short(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "never"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
