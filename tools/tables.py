"""The tables of the documents' reference, in Markdown, each made from the code that it tells of.

What a field, a member or a key means is the string after it. The rest (types, defaults, labels, transitions) is
what the program itself uses.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from holdfast.cli.jupyter import ListedServer
from holdfast.config.keys import TunnelTable
from holdfast.config.reading import Described
from holdfast.config.spelling import duration, shown_mode
from holdfast.control import ForwardStatus, NotebookStatus, OutageStatus, TunnelStatus, Upkeep, UpkeepStatus
from holdfast.errors import Exit
from holdfast.events import FIELDS, Event, EventRecord, Kind
from holdfast.keeper.states import LINK, LinkState
from holdfast.metrics import METRICS
from tools.attribute_docs import attribute_docs

# Characters of a cell that its column is made as wide as. Longer ones stick out.
LONGEST_PADDED = 80
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
# The records that have a heading of their own, and that heading's anchor.
ANCHORS: dict[Any, str] = {
    UpkeepStatus: "how-it-is-kept",
    OutageStatus: "an-outage",
    ForwardStatus: "a-forward",
    NotebookStatus: "a-notebook",
}
# How a value of control.Upkeep stands in the configuration file, where that isn't plain.
SPELLINGS: dict[str, Callable[[int], str]] = {"hold_for": duration, "idle": duration, "mode": shown_mode}


def record(kind: type, *others: type) -> str:
    """A row for each field of a record in JSON. What it doesn't explain itself, one of the `others` does."""
    rows = [
        (f"`{name}`", json_type(hint), as_cell(meaning(name, kind, *others)))
        for name, hint in get_type_hints(kind).items()
    ]
    return markdown(("field", "type", "meaning"), rows)


def keys() -> str:
    """A row for each key of a tunnel's table in the configuration file."""
    rows = []
    for key, hint in get_type_hints(TunnelTable).items():
        says, _, left_out = meaning(key, TunnelTable).partition(" Left out: ")
        rows.append((f"`{key}`", as_cell(says), as_cell(left_out) or default(key, hint)))
    return markdown(("key", "what it says", "when left out"), rows)


def default(key: str, hint: Any) -> str:
    """What the program has for a key that is left out, as it would stand in the file."""
    if get_origin(hint) is list:
        return "none"
    value = {**Described._field_defaults, **Upkeep._field_defaults}[key]
    return f"`{json.dumps(SPELLINGS[key](value) if key in SPELLINGS else value)}`"


def exit_codes() -> str:
    rows = [(str(code.value), as_cell(meaning(code.name, Exit))) for code in Exit]
    return markdown(("exit code", "meaning"), rows)


def event_kinds() -> str:
    rows = [(f"`{kind}`", listed(FIELDS[kind]), as_cell(meaning(kind.name, Kind))) for kind in Kind]
    return markdown(("event", "its own fields", "what happened"), rows)


def metrics() -> str:
    rows = [(f"`{one.name}`", one.kind, listed(one.labels), as_cell(one.help)) for one in METRICS]
    return markdown(("metric", "type", "labels", "meaning"), rows)


def link_states() -> str:
    """A row for each event that a state names."""
    rows = [
        (
            f"`{short(state)}`",
            event.value,
            "stays" if after is state else f"`{short(after)}`",
            ", ".join(action.name.lower() for action in actions),
        )
        for state, row in LINK.items()
        for event, (after, actions) in row.items()
    ]
    return markdown(("state", "event", "then", "done"), rows)


# Each table, by what stands between its markers in a document.
TABLES: dict[str, Callable[[], str]] = {
    "control.TunnelStatus": functools.partial(record, TunnelStatus),
    "control.UpkeepStatus": functools.partial(record, UpkeepStatus, Upkeep),
    "control.OutageStatus": functools.partial(record, OutageStatus),
    "control.ForwardStatus": functools.partial(record, ForwardStatus),
    "control.NotebookStatus": functools.partial(record, NotebookStatus),
    "cli.jupyter.ListedServer": functools.partial(record, ListedServer),
    "events.Kind": event_kinds,
    "events.EventRecord": functools.partial(record, EventRecord, Event),
    "errors.Exit": exit_codes,
    "config.keys.TunnelTable": keys,
    "metrics.METRICS": metrics,
    "keeper.states.LINK": link_states,
}


def with_own_tables(page: str) -> str:
    """The page with each table between its markers as it is now."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, found, rest = page.partition(begin)
        if found:
            _, found, after = rest.partition(end)
            if not found:
                raise ValueError(f"the table {name} has no end")
            page = f"{before}{begin}\n{table()}\n\n{end}{after}"
    return page


def meaning(name: str, *owners: type) -> str:
    """What the first of these classes that explains `name` says. Raises ValueError."""
    for owner in owners:
        if told := attribute_docs(owner).get(name):
            return told
    raise ValueError(f"there is no string after {owners[0].__name__}.{name} that says what it means")


def json_type(hint: Any) -> str:
    """What JSON has for a value with this annotation, with a link to where it is explained."""
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(json_type, get_args(hint)))
    if origin in (list, tuple):
        inner, name = get_args(hint)[0], "array"
    else:
        inner, name = hint, "object" if is_typeddict(hint) else JSON_TYPES[hint]
    return f"[{name}](#{ANCHORS[inner]})" if inner in ANCHORS else name


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned."""
    lines = [header, *rows]
    widths = [
        max(len(line[column]) for line in lines if len(line[column]) <= LONGEST_PADDED)
        for column in range(len(header))
    ]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(f'{cell:{width}}' for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def as_cell(sentence: str) -> str:
    """It without its full stop, and in lower case unless it begins with a name such as ISO or Ctrl-C."""
    begins_with_name = any(letter.isupper() for letter in sentence.partition(" ")[0][1:])
    start = sentence[:1] if begins_with_name else sentence[:1].lower()
    return f"{start}{sentence[1:].removesuffix('.')}"


def listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def short(state: LinkState) -> str:
    """What the architecture calls a state."""
    return state.name.lower().replace("_", " ")
