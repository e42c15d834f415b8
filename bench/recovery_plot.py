"""Outages as a picture: a lane for each contender, a bar for each request, as high as it had to wait. SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from bench.recovery_load import EVERY, Outcome

# Seconds from a request's begin, counted from the fault, and of its wait; and what became of it.
Mark = tuple[float, float, Outcome]

WIDTH, LEFT, RIGHT = 940, 150, 16
LANE, GAP, TITLE, AXIS, LEGEND = 36, 8, 30, 34, 58
# Seconds that are shown before the fault; a wait that is a full bar; a wait that nobody notices, and its height.
BEFORE, FULL, QUICK, LOWEST = 3.0, 60.0, 0.5, 3
# Distinct for colour-blind eyes, too.
COLOURS = {
    "at once": "#2a78b5",
    "late": "#f0a030",
    Outcome.BROKEN.value: "#8b1a4a",
    Outcome.REFUSED.value: "#e0301e",
    Outcome.UNANSWERED.value: "#777777",
}


@dataclass(frozen=True)
class Lane:
    name: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Panel:
    """One fault, and the seconds for which it lasted."""

    title: str
    lasted: float
    lanes: Sequence[Lane]

    @property
    def height(self) -> int:
        return TITLE + len(self.lanes) * (LANE + GAP) + AXIS

    @property
    def seconds(self) -> float:
        """From the fault to the last request."""
        return max((began for lane in self.lanes for began, _, _ in lane.marks), default=0.0) + EVERY

    def x(self, seconds: float) -> float:
        """Where the time is, counted from the fault."""
        return LEFT + (seconds + BEFORE) / (self.seconds + BEFORE) * (WIDTH - LEFT - RIGHT)


def draw(panels: Sequence[Panel]) -> str:
    """The whole picture, as a document."""
    height = LEGEND + sum(panel.height for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        *_legend(),
    ]
    top = LEGEND
    for panel in panels:
        parts += _panel(panel, top)
        top += panel.height
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> Iterator[str]:
    x = LEFT
    for name, colour in COLOURS.items():
        yield f'<rect x="{x}" y="12" width="12" height="12" fill="{colour}"/>'
        yield _text(x + 18, 22, name)
        x += 50 + 7 * len(name)
    yield _text(
        LEFT,
        44,
        f"A bar for each request, where it began; the longer it waited the higher: {FULL:.0f} s and more fill it.",
    )


def _panel(panel: Panel, top: int) -> Iterator[str]:
    yield _text(12, top + 20, panel.title, weight="bold")
    lanes_top, bottom = top + TITLE, top + panel.height - AXIS
    struck, back = panel.x(0), panel.x(panel.lasted)
    yield (
        f'<rect x="{struck:.0f}" y="{lanes_top}" width="{max(1.0, back - struck):.0f}" '
        f'height="{bottom - lanes_top}" fill="#e6e6e6"/>'
    )
    for number, lane in enumerate(panel.lanes):
        base = lanes_top + number * (LANE + GAP) + LANE
        yield _text(12, base - 10, lane.name)
        yield f'<path d="M{LEFT} {base + 0.5}H{WIDTH - RIGHT}" stroke="#bbbbbb"/>'
        yield from _bars(panel, lane, base)
    yield from _axis(panel, bottom)


def _bars(panel: Panel, lane: Lane, base: int) -> Iterator[str]:
    """A path for each colour; where a column has several requests of a colour, the longest wait counts."""
    heights: dict[str, dict[int, int]] = {name: {} for name in COLOURS}
    for began, waited, outcome in lane.marks:
        if began >= -BEFORE:
            column, found = int(panel.x(began)), heights[_colour_name(waited, outcome)]
            found[column] = max(_height(waited), found.get(column, 0))
    step = max(1, math.ceil(panel.x(EVERY) - panel.x(0)))
    for name, found in heights.items():
        if found:
            path = "".join(_outline(sorted(found.items()), base, step))
            yield f'<path d="{path}" fill="{COLOURS[name]}"/>'


def _colour_name(waited: float, outcome: Outcome) -> str:
    if outcome is Outcome.ANSWERED:
        return "at once" if waited < QUICK else "late"
    return outcome.value


def _height(waited: float) -> int:
    """In pixels. The root, so that two seconds are seen beside sixty."""
    return max(LOWEST, round(LANE * min(1.0, math.sqrt(waited / FULL))))


def _outline(columns: Iterable[tuple[int, int]], base: int, step: int) -> Iterator[str]:
    """Rectangles over the columns; neighbours of one height share one."""

    def place(numbered: tuple[int, tuple[int, int]]) -> tuple[int, int]:
        number, (column, height) = numbered
        return column - step * number, height

    for (_, height), run in itertools.groupby(enumerate(columns), place):
        found = [column for _, (column, _) in run]
        width = found[-1] - found[0] + step
        yield f"M{found[0]} {base}v-{height}h{width}v{height}z"


def _axis(panel: Panel, top: int) -> Iterator[str]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if panel.seconds / step <= 12)
    for seconds in range(0, int(panel.seconds) + 1, step):
        x = panel.x(seconds)
        yield f'<path d="M{x:.1f} {top}v4" stroke="#555555"/>'
        yield _text(x, top + 17, f"{seconds} s", anchor="middle")


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
