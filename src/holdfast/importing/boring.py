"""The configuration of boring (github.com/alebeck/boring), as of 0.15."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from holdfast.config.reading import Described
from holdfast.errors import UsageError
from holdfast.forward import Address, Forward, Kind, build, parse_address
from holdfast.importing import tables
from holdfast.importing.found import Found, Remark, collect, describe, reason, shortened

# The kind of each mode, and which end listens. SOCKS has no other end.
_MODES = {
    **dict.fromkeys(("local", "l", "-l"), (Kind.LOCAL, "local", "remote")),
    **dict.fromkeys(("remote", "r", "-r"), (Kind.REMOTE, "remote", "local")),
    "socks": (Kind.DYNAMIC, "local", ""),
    "socks-remote": (Kind.REMOTE, "remote", ""),
}
_KEYS = ("name", "local", "remote", "host", "mode", "user", "identity", "port", "group", "keep_alive")
_KEEP_ALIVE = "keep_alive is left out: holdfast asks the far side every few seconds by itself"


def read(text: str) -> Found:
    """The tunnels of boring's configuration; what can't be taken is remarked upon."""
    try:
        document = _lower(tables.parse(text))
        entries = tables.entries(document, "tunnels")
    except UsageError as error:
        return Found(remarks=(Remark("", reason(error)),))
    remarks = list(tables.unknown(document, ("tunnels", "keep_alive"), ""))
    if "keep_alive" in document:
        remarks.append(Remark("", _KEEP_ALIVE))
    parts = [_tunnel(_lower(entry), number) for number, entry in enumerate(entries, 1)]
    return collect([Found(remarks=tuple(remarks)), *parts])


def _lower(table: tables.Table) -> dict[str, Any]:
    """boring takes its keys in any case."""
    return {key.lower(): value for key, value in table.items()}


def _tunnel(entry: dict[str, Any], number: int) -> Found:
    place = shortened(entry.get("name") or f"tunnel {number}")
    remarks = tuple(_asides(entry, place))
    try:
        user, host = tables.word(entry, "user", ""), tables.word(entry, "host")
        identity = tables.word(entry, "identity", "")
        group = tables.word(entry, "group", "")
        tunnel = Described(
            name=tables.word(entry, "name"),
            host=f"{user}@{host}" if user else host,
            forwards=(_forward(entry),),
            groups=(group,) if group else (),
            options=(*tables.port(entry, "port"), *(("-i", identity) if identity else ())),
        )
        return collect([Found(remarks=remarks), describe(tunnel, place)])
    except UsageError as error:
        return Found(remarks=(*remarks, Remark(place, f"not taken: {reason(error)}")))


def _asides(entry: dict[str, Any], place: str) -> Iterator[Remark]:
    yield from tables.unknown(entry, _KEYS, place)
    if "keep_alive" in entry:
        yield Remark(place, _KEEP_ALIVE)
    mode = str(entry.get("mode", "")).lower()
    if mode in _MODES and not _MODES[mode][2]:
        unused = "remote" if mode == "socks" else "local"
        if unused in entry:
            yield Remark(place, f"'{unused}' is left out: {mode} has no such end")


def _forward(entry: dict[str, Any]) -> Forward:
    """Raises UsageError."""
    mode = tables.word(entry, "mode", "local")
    if mode.lower() not in _MODES:
        raise UsageError(f"its mode is '{shortened(mode)}'", "boring has local, remote, socks and socks-remote")
    kind, listening, target = _MODES[mode.lower()]
    listen = _address(tables.word(entry, listening), listening, "*")
    end = _address(tables.word(entry, target), target, "localhost") if target else None
    return build(kind, listen, end, f"{listen} -> {end}")


def _address(text: str, key: str, empty_host: str) -> Address:
    """As boring reads it: a port alone is localhost's; without a colon it is a socket's path.

    Go listens on every address where the host is empty, and connects to this machine.
    """
    if text.isascii() and text.isdigit():
        text = f"localhost:{text}"
    elif ":" not in text and not text.startswith("/"):
        raise UsageError(f"its {key} is '{shortened(text)}'", "a socket needs its whole path")
    return parse_address(f"{empty_host}{text}" if text.startswith(":") else text)
