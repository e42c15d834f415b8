"""The arrival curves of bench/herd.py as SVG: holdfast's as an area, the restart loop's as a thin line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import log10
from typing import NamedTuple

# In pixels: a panel a scenario, one below the other.
WIDTH, LEFT, RIGHT, HEIGHT, GAP, TOP = 760, 48, 736, 90, 36, 40
# In seconds, and connections.
SHOWN, MOST = 150, 3000
BLUE, ORANGE = "#2f6db3", "#c8581c"


class Panel(NamedTuple):
    """How many connections there are in each second, of whom; and when the bastion is back."""

    title: str
    over_at: float
    ours: Counter[int]
    loop: Counter[int]


def plot(panels: Sequence[Panel], crowding: float) -> str:
    """`crowding`: from how many connections a second on sshd turns some away."""
    height = TOP + len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        ' font-size="11" fill="#444">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" fill="#111">Connections that reach sshd in each second</text>',
        f'<text x="{RIGHT}" y="18" text-anchor="end"><tspan fill="{BLUE}">\u25a0 holdfast</tspan>'
        f'<tspan fill="{ORANGE}" dx="14">\u2014 restart loop</tspan>'
        '<tspan dx="14">\u2504 from here on sshd turns some away</tspan></text>',
    ]
    for index, panel in enumerate(panels):
        parts += _drawn(panel, TOP + index * (HEIGHT + GAP) + HEIGHT, crowding)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(panel: Panel, bottom: float, crowding: float) -> list[str]:
    limit, over = _y(crowding, bottom), _x(panel.over_at)
    lines = [
        f'<path d="{_curve(panel.ours, bottom)}" fill="{BLUE}" fill-opacity="0.75"/>',
        f'<path d="{_curve(panel.loop, bottom)}" fill="none" stroke="{ORANGE}"/>',
        f'<path d="M{LEFT} {bottom - HEIGHT}V{bottom}H{RIGHT}" fill="none" stroke="#999"/>',
        f'<path d="M{LEFT} {limit}H{RIGHT}" fill="none" stroke="#777" stroke-dasharray="3 3"/>',
        f'<text x="{RIGHT}" y="{bottom - HEIGHT + 8}" text-anchor="end" font-size="12">{panel.title}</text>',
    ]
    if panel.over_at:
        lines.append(f'<path d="M{over} {bottom}v-{HEIGHT}" stroke="#999" stroke-width="0.5"/>')
        lines.append(f'<text x="{over - 3}" y="{bottom - HEIGHT + 8}" text-anchor="end">back</text>')
    for count in (1, 10, 100, 1000):
        lines.append(f'<text x="{LEFT - 5}" y="{_y(count, bottom) + 4:.1f}" text-anchor="end">{count:,}</text>')
    for second in range(0, SHOWN + 1, 30):
        lines.append(f'<text x="{_x(second)}" y="{bottom + 14}" text-anchor="middle">{second} s</text>')
    return lines


def _curve(counts: Counter[int], bottom: float) -> str:
    """A step a second, from the bottom and back to it."""
    steps = "".join(f"V{_y(counts[second], bottom)}H{_x(second + 1)}" for second in range(SHOWN))
    return f"M{_x(0)} {bottom}{steps}V{bottom}"


def _x(seconds: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * seconds / SHOWN, 1)


def _y(count: float, bottom: float) -> float:
    """On a logarithmic scale on which none is nothing."""
    return round(bottom - HEIGHT * log10(1 + count) / log10(1 + MOST), 1)
