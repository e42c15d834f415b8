"""The list's lines: which columns a width has room for, and what of a row stands in each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from holdfast.ui.board import RESTING, Row, sparkline

# Beside each state, so that it can be told at a glance, and without colour.
SYMBOLS = {
    "up": "●",
    "idle": "○",
    "connecting": "…",
    "stalled": "~",
    "waiting": "~",
    "needs login": "?",
    "no service": "!",
    "port taken": "×",
    "refused": "×",
    "failed": "×",
    RESTING: "-",
}


class Look(StrEnum):
    """How a piece of a line is shown; a component class of the list."""

    PLAIN = "plain"
    STRONG = "strong"
    FAINT = "faint"
    GOOD = "good"
    BUSY = "busy"
    WARNING = "warning"
    LOGIN = "login"
    BAD = "bad"


LOOKS = {
    "up": Look.GOOD,
    "idle": Look.BUSY,
    "connecting": Look.BUSY,
    "stalled": Look.WARNING,
    "waiting": Look.WARNING,
    "no service": Look.WARNING,
    "needs login": Look.LOGIN,
    RESTING: Look.FAINT,
}


class Piece(NamedTuple):
    text: str
    look: Look


class Column(NamedTuple):
    """`least` is the width of the whole from which on there is room for it."""

    title: str
    width: int
    text: Callable[[Row, int], str]
    least: int = 0
    right: bool = False
    look: Look = Look.PLAIN


def look_of(state: str) -> Look:
    return LOOKS.get(state, Look.BAD)


def columns(width: int) -> list[Column]:
    """The columns that fit into `width` characters, and fill it."""
    spark = max(7, min(30, (width - 45) // 5))
    fixed = [
        Column("STATE", 13, lambda row, _: f"{SYMBOLS.get(row.state, '×')} {row.state}"),
        Column("", spark, lambda row, size: sparkline(row.trips, size), 68, look=Look.BUSY),
        Column("RTT", 7, lambda row, _: row.rtt, 40, right=True),
        Column("IN/s", 4, lambda row, _: row.received, 56, right=True),
        Column("OUT/s", 5, lambda row, _: row.sent, 56, right=True),
        Column("CONN", 4, lambda row, _: row.connections, 62, right=True),
        Column("SINCE", 6, lambda row, _: row.since, 50, right=True),
        Column("OUTAGE", 18, lambda row, _: row.outage, 128, right=True),
    ]
    chosen = [column for column in fixed if width >= column.least]
    left = width - sum(column.width + 1 for column in chosen) - 1
    name = max(6, min(24, left * 2 // 5))
    host = min(30, (left - name) * 2 // 5) if width >= 110 else 0
    named = Column("TUNNEL", name, lambda row, _: row.name, look=Look.STRONG)
    ends = Column("FORWARDS", max(4, left - name - (host and host + 1)), _ends)
    hosted = [Column("HOST", host, lambda row, _: row.host)] if host else []
    return [named, chosen[0], ends, *hosted, *chosen[1:]]


def heading(columns: Sequence[Column]) -> list[Piece]:
    texts = (_sized(column.title, column.width, right=column.right) for column in columns)
    return [Piece(" ".join(texts), Look.FAINT)]


def line(row: Row, columns: Sequence[Column]) -> list[Piece]:
    """The row's own line. What is at rest is faint as a whole."""
    pieces: list[Piece] = []
    for column in columns:
        look = look_of(row.state) if column.title == "STATE" else column.look
        text = _sized(column.text(row, column.width), column.width, right=column.right)
        pieces.append(Piece(text + " ", Look.FAINT if row.state == RESTING else look))
    return pieces


def trouble_line(text: str, width: int) -> list[Piece]:
    """A line below a row's own."""
    return [Piece("  " + _sized(f"└ {text}", width - 2), Look.PLAIN)]


def _ends(row: Row, width: int) -> str:
    """As many forwards as there is room for, and how many more there are."""
    for count in range(len(row.forwards), 0, -1):
        more = f" +{len(row.forwards) - count}" if count < len(row.forwards) else ""
        shown = ", ".join(row.forwards[:count])
        if count == 1 or cell_len(shown + more) <= width:
            return _sized(shown, min(cell_len(shown), max(2, width - len(more)))) + more
    return ""


def _sized(text: str, width: int, *, right: bool = False) -> str:
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, max(0, width - 1)) + "…"
    return " " * (width - size) + text if right else text + " " * (width - size)
