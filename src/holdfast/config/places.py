"""Where in a TOML text each key stands: what tomllib doesn't tell. For texts that tomllib has read. No I/O."""

from __future__ import annotations

import bisect
import itertools
import re
import tomllib
from collections.abc import Iterator
from typing import Any

# The table's name, its key, and so on, as in ("tunnels", "lab", "host").
Keys = tuple[str, ...]

_QUOTED = r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\''
_HEADER = re.compile(rf"[ \t]*\[\[?((?:{_QUOTED}|[^\"'\]\n])+)\]")
# Possessive: a line of very many blanks must not be looked at from each of them again.
_ASSIGNMENT = re.compile(rf"[ \t]*+((?:{_QUOTED}|[^\"'=#\n])++)=")
# What a value is made of; a line's end outside of brackets ends it.
_PART = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" rf"|{_QUOTED}" r"|#[^\n]*|[\[{]|[\]}]|\n|[^\"'#\[\]{}\n]+|.",
    re.DOTALL,
)


class Places:
    """The lines of the tables and keys of `text`, from 1."""

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        starts = list(itertools.accumulate((len(line) + 1 for line in self._lines), initial=0))
        self._spans = {
            keys: (bisect.bisect(starts, start), bisect.bisect(starts, end)) for keys, start, end in _spans(text)
        }

    def line(self, keys: Keys, found: object = None) -> int:
        """The line of the value `found` in what `keys` name, else that of the innermost key that has one."""
        while keys and keys not in self._spans:
            keys = keys[:-1]
        first, last = self._spans.get(keys, (1, 1))
        lines = range(first, last + 1) if found is not None else ()
        return next((line for line in lines if str(found) in self._lines[line - 1]), first)


def _spans(text: str) -> Iterator[tuple[Keys, int, int]]:
    """Each key and table, with where it starts and ends in `text`."""
    table: Keys = ()
    start = 0
    while start < len(text):
        end = _end_of_line(text, start)
        if header := _HEADER.match(text, start, end):
            table = _keys(header[1])
            yield table, start, end
        elif assignment := _ASSIGNMENT.match(text, start, end):
            end = _end_of_value(text, assignment.end())
            yield (*table, *_keys(assignment[1])), start, end
        start = end + 1


def _end_of_value(text: str, start: int) -> int:
    depth = 0
    for part in _PART.finditer(text, start):
        if part[0] == "\n" and not depth:
            return part.start()
        depth += (part[0] in "[{") - (part[0] in "]}")
    return len(text)


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _keys(text: str) -> Keys:
    """The parts of a dotted key, as tomllib understands them."""
    inner: Any = tomllib.loads(f"{text} = 0")
    keys: list[str] = []
    while isinstance(inner, dict):
        ((key, inner),) = inner.items()
        keys.append(key)
    return tuple(keys)
