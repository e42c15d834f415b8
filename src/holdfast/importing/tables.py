"""Reads other programs' TOML: each value is looked at before it is believed."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from holdfast.errors import UsageError
from holdfast.importing.found import Remark, shortened

Table = Mapping[str, Any]


def parse(text: str) -> dict[str, Any]:
    """The document. Raises UsageError for what isn't TOML."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UsageError("it is no TOML: it is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"it is no TOML: {shortened(error)}") from None


def entries(document: Table, key: str) -> list[Table]:
    """The tables of `[[key]]`. Raises UsageError where it is something else."""
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UsageError(f"'{key}' is not a list of tables", f"each begins with [[{key}]]")
    return found


def table(document: Table, key: str) -> Table:
    """The table `[key]`, empty where there is none. Raises UsageError where it is something else."""
    found = document.get(key, {})
    if not isinstance(found, dict):
        raise UsageError(f"'{key}' is not a table", f"it begins with [{key}]")
    return found


def word(entry: Table, key: str, otherwise: str | None = None) -> str:
    """The text of `key`, a number as well. Raises UsageError where there is none, and no `otherwise`."""
    value = entry.get(key, otherwise)
    if value is None:
        raise UsageError(f"it has no '{key}'")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"its '{key}' is {shortened(value)}, which is no text")
    return str(value)


def port(entry: Table, key: str) -> tuple[str, ...]:
    """ssh's option for the port that `key` names, if it names one that isn't ssh's own choice (0)."""
    number = word(entry, key, "")
    return ("-p", number) if number not in ("", "0") else ()


def unknown(entry: Table, known: Collection[str], place: str) -> Iterator[Remark]:
    """A remark for each key that the other program doesn't document."""
    for key in entry:
        if key not in known:
            yield Remark(place, f"'{shortened(key)}' isn't known, and left out")
