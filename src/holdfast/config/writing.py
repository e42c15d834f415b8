"""Tunnels written into the text of a configuration file; all else in it, comments too, stays as it is. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.config.reading import FORWARDS, KEYS, ConfigError, Described, Start, merged_options, parse, usual
from holdfast.config.spelling import duration, shown_mode
from holdfast.control import ForwardStatus, TunnelStatus, Upkeep
from holdfast.errors import HoldfastError, UsageError
from holdfast.forward import Address, Forward, Kind, parse_address

_FLAGS = ("http", "switch", "notify")


def table_of(tunnel: Described, upkeep: dict[str, int], options: Sequence[str]) -> dict[str, Any]:
    """What a file says of `tunnel`; `upkeep` and `options` are what its [defaults] say already."""
    kept = _without(tunnel.options, options)
    before = {**Upkeep()._asdict(), **upkeep}
    changed = {field: value for field, value in tunnel.whole_upkeep.items() if value != before[field]}
    found: dict[str, Any] = {"host": tunnel.host if tunnel.host != tunnel.name else ""}
    for key, kind in FORWARDS.items():
        found[key] = [written(forward) for forward in tunnel.forwards if forward.kind is kind]
    found["groups"] = list(tunnel.groups)
    found["start"] = "" if tunnel.start is Start.MANUAL else tunnel.start.value
    found |= {field: bool(changed[field]) for field in _FLAGS if field in changed}
    found |= {"hold": changed["hold"]} if "hold" in changed else {}
    found |= {"hold_for": duration(changed["hold_for"])} if "hold_for" in changed else {}
    found |= {"idle": duration(changed["idle"])} if "idle" in changed and tunnel.start is Start.DEMAND else {}
    found |= {"mode": shown_mode(changed["mode"])} if "mode" in changed else {}
    found |= {"expose": True} if tunnel.expose else {}
    found["ssh"] = kept
    return {key: found[key] for key in KEYS if key in found and found[key] not in ("", [])}


def with_tunnel(text: str, tunnel: Described, path: Path) -> str:
    """`text`, the file at `path`, with the table of `tunnel` added to it, or changed in it.

    Raises ConfigError where the file has mistakes, UsageError where it would have, HoldfastError where its form is
    in the way.
    """
    before = parse(text, path)
    table = table_of(tunnel, *usual(text, path))
    own = next((other for other in before if other.name == tunnel.name), None)
    if own is None:
        changed = _added(text, tunnel.name, table)
    else:
        changed = _changed(text, tunnel.name, table_of(own, *usual(text, path)), table)
    others = [other for other in before if other.name != tunnel.name]
    try:
        after = parse(changed, path)
    except ConfigError as error:
        if any(mistake.keys for mistake in error.mistakes):
            # Their lines are those of a text that nobody has.
            raise UsageError(
                f"not written: {'; '.join(mistake.text for mistake in error.mistakes)}",
                "change what you asked for; the file is as it was",
            ) from None
        raise _in_the_way(tunnel.name) from None  # it isn't TOML any more: `tunnels = {...}` ends with its line
    if [other for other in after if other.name != tunnel.name] != others or len(after) != len(others) + 1:
        raise _in_the_way(tunnel.name)
    return changed


def table_text(name: str, table: dict[str, Any]) -> str:
    """The table as it stands in a file."""
    import tomlkit  # 37 ms

    lines = [f"{key} = {tomlkit.item(value).as_string()}\n" for key, value in table.items()]
    return f"[tunnels.{tomlkit.key(name).as_string()}]\n{''.join(lines)}"


def written(forward: Forward) -> str:
    """`forward` as forward.parse takes it, as short as it goes."""
    listen, target = forward.listen, forward.target
    if target is None:
        return _listening(listen)
    if target.path or (listen.path and target.host != "127.0.0.1"):
        return f"{_listening(listen)}:{_end(target)}"
    if target.host == "127.0.0.1" and (listen.path or listen.host == "localhost"):
        is_bare = forward.kind is Kind.LOCAL and listen.port == target.port
        return str(target.port) if is_bare else f"{_listening(listen)}:{target.port}"
    return f"{_listening(listen)}:{_end(target)}"


def described(status: TunnelStatus) -> Described:
    """A running tunnel as a file would describe it; of its forwards those that stay. Raises UsageError.

    A program's and a notebook's don't: where they listen and lead is new each time.
    """
    upkeep = {field: int(value) for field, value in status["upkeep"].items() if isinstance(value, int)}
    kept = [forward for forward in status["forwards"] if forward["kept"] and not forward["notebook"]]
    return Described(
        name=status["name"],
        host=status["host"],
        forwards=tuple(map(asked, kept)),
        start=Start.DEMAND if upkeep.get("lazy") else Start.MANUAL,
        options=tuple(status["options"]),
        upkeep=upkeep,
        expose=any(forward["exposed"] for forward in kept),
    )


def asked(forward: ForwardStatus) -> Forward:
    """A running forward as it was asked for."""
    target = parse_address(forward["target"]) if forward["target"] else None
    return Forward(Kind(forward["kind"]), parse_address(forward["asked"]), target)


def _added(text: str, name: str, table: dict[str, Any]) -> str:
    gap = "\n\n" if text and not text.endswith("\n") else "\n" if text.strip() else ""
    return f"{text}{gap}{table_text(name, table)}"


def _changed(text: str, name: str, before: dict[str, Any], table: dict[str, Any]) -> str:
    """What means the same as before stays as it is written."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        tunnels: Any = document["tunnels"]
        own = tunnels[name]
        for key in before.keys() - table.keys():
            own.pop(key, None)
        with _above_what_follows(own):
            for key, value in table.items():
                if before.get(key) != value:
                    own[key] = _rewritten(own.get(key), before.get(key, []), value)
        return tomlkit.dumps(document)
    except (TOMLKitError, LookupError, TypeError, ValueError, AttributeError):
        raise _in_the_way(name) from None


@contextlib.contextmanager
def _above_what_follows(table: Any) -> Iterator[None]:
    """Has new keys come after the last one that is there: a comment below may belong to the next table."""
    from tomlkit.items import Table

    body = table.value.body if isinstance(table, Table) else []  # one of dotted keys has no body of its own
    count = next((number for number, (key, _) in enumerate(reversed(body)) if key is not None), len(body))
    following = body[len(body) - count :]
    del body[len(body) - count :]
    yield
    body += following


def _rewritten(item: Any, before: Any, value: Any) -> Any:
    """`value`; of a list on several lines, what was there `before` stands as it is in `item`, comments too."""
    import difflib
    import tomllib

    import tomlkit
    from tomlkit.items import Array

    if not isinstance(item, Array) or "\n" not in item.as_string() or len(item) != len(before):
        return value
    array: Any = tomlkit.parse(f"_ = {item.as_string()}")["_"]
    changes = difflib.SequenceMatcher(None, before, value, autojunk=False).get_opcodes()
    for tag, start, end, first, last in reversed(changes):
        if tag != "equal":
            del array[start:end]
            for text in reversed(value[first:last]):
                array.insert(start, text)
    try:
        is_right = tomllib.loads(f"_ = {array.as_string()}")["_"] == array.unwrap()
    except tomllib.TOMLDecodeError:  # what follows an item without a comma isn't always seen
        is_right = False
    return array if is_right else value


def _in_the_way(name: str) -> HoldfastError:
    return HoldfastError(
        "the form of the file is in the way", f"write [tunnels.{name}] yourself: holdfast config edit"
    )


def _without(options: Sequence[str], usual: Sequence[str]) -> list[str]:
    """`options` without those at their end that every tunnel of the file gets beside its own."""
    own = (options[:count] for count in range(0, len(options), 2))
    return list(next((few for few in own if merged_options(few, usual) == tuple(options)), options))


def _listening(listen: Address) -> str:
    return str(listen.port) if not listen.path and listen.host == "localhost" else _end(listen)


def _end(address: Address) -> str:
    return address.path.replace(":", "\\:") if address.path else str(address)
